"""The widest margin: support vector machines, derived and certified.

Modules:
    margin: Distance to a hyperplane, its margin, and whether one separates the data.
    kernels: Inner products after a map that is never computed.
    duality: Lagrangian, KKT conditions, and a solver for quadratic programs.
    classifier: Support vector classification, with any kernel or in the primal.
    regressor: Support vector regression: a tube around the data.
"""

from mlnotes_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.submodules(
    __name__, ["classifier", "duality", "kernels", "margin", "regressor"]
)
