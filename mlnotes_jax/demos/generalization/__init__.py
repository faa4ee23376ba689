"""Demos of the chapter `generalization`."""

from mlnotes_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.submodules(
    __name__,
    [
        "bias_variance",
        "bounds",
        "cross_validation",
        "diagnosis",
        "early_stopping",
        "mismatch",
        "search",
    ],
)
