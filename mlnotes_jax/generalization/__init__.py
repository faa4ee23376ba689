"""Will it hold on data not seen?

Modules:
    early_stopping: When to stop training, and which parameters to keep.
"""

from mlnotes_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.submodules(__name__, ["early_stopping"])
