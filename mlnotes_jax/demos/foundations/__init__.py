"""Demos of the chapter `foundations`."""

from mlnotes_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.submodules(
    __name__,
    [
        "activations",
        "affine",
        "approximation",
        "backpropagation",
        "gradient_descent",
        "linear_regression",
        "losses",
    ],
)
