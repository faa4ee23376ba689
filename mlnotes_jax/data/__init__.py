"""Getting data in: reading files, naming classes, choosing units, loading batches.

Modules:
    datasets: Bundled sets, and readers that never return a wrong array.
    labels: Any labels to classes 0..k-1, and back.
    loading: Batches in a known order, from memory or from a stream.
    scaling: Put features on one scale, and undo it.
"""

from mlnotes_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.submodules(
    __name__, ["datasets", "labels", "loading", "scaling"]
)
