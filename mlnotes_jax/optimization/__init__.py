"""Finding the lowest point of a loss.

Modules:
    averaging: Averages of the parameters along the way.
    critical_points: Where the gradient vanishes, and what the Hessian says there.
"""

from mlnotes_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.submodules(__name__, ["averaging", "critical_points"])
