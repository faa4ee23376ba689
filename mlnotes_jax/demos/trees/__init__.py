"""Demos of the chapter `trees`."""

from mlnotes_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.submodules(
    __name__, ["boosting", "criteria", "decision_tree", "forest", "pruning"]
)
