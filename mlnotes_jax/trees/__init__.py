"""Questions in order.

Modules:
    boosting: Trees that each mend what the ones before left, by histograms.
    criteria: How much a question tells: entropy, Gini and what follows from them.
    decision_tree: One question after the other, for classes and for numbers.
    forest: Many trees on drawn rows and features, and their average.
    pruning: Cutting a tree back to what held-out data, or a price for leaves, support.
"""

from mlnotes_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.submodules(
    __name__, ["boosting", "criteria", "decision_tree", "forest", "pruning"]
)
