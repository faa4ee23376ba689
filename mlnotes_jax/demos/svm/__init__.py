"""Demos of the chapter `svm`."""

from mlnotes_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.submodules(
    __name__, ["classifier", "duality", "kernels", "margin", "regressor"]
)
