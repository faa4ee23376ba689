"""From a score to a class.

Modules:
    gaussian: One Gaussian per class, and the posterior that follows.
"""

from mlnotes_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.submodules(__name__, ["gaussian"])
