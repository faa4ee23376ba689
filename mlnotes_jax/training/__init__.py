"""The training loop, and what keeps it safe.

Modules:
    loop: One pure, compiled loop: fit, evaluate, predict.
    checkpoints: Save, resume bit for bit, refuse what does not fit.
    reproducibility: Seeds, keys, and what may differ between devices.
"""

from mlnotes_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.submodules(
    __name__, ["loop", "checkpoints", "reproducibility"]
)
