"""Demos of the chapter `optimization`."""

from mlnotes_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.submodules(
    __name__,
    [
        "adam",
        "adaptive",
        "bounded",
        "critical_points",
        "momentum",
        "schedules",
        "sharpness",
        "stability",
        "weight_decay",
    ],
)
