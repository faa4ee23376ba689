"""Finding the lowest point of a loss.

Modules:
    critical_points: Where the gradient vanishes, and what the Hessian says there.
"""

from mlnotes_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.submodules(__name__, ["critical_points"])
