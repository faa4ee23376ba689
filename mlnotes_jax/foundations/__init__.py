"""A function with unknown parameters, a loss that judges it, and a way down.

Modules:
    losses: What it costs to be wrong.
    activations: The bend between two linear maps.
    linear_regression: The straight line, by closed form, by search and by descent.
    gradient_descent: Small steps against the gradient.
    approximation: Any curve as a sum of bends.
    affine: Half-planes, and the lift that solves XOR.
    backpropagation: The gradient of a chain of layers, by hand.
"""

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
