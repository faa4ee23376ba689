"""Demos of the chapter `ensembles`."""

from mlnotes_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.submodules(__name__, ["adaboost", "networks", "stacking"])
