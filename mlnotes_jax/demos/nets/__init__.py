"""Demos of the chapter `nets`."""

from mlnotes_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.submodules(
    __name__, ["cnn", "convolution", "dropout", "mlp", "normalization", "resnet"]
)
