"""Machine-learning lecture notes as pure, compiled JAX.

A concept is a module in a chapter: `mlnotes_jax.foundations.losses`. Chapters load on first
use, so `import mlnotes_jax` costs next to nothing.

Chapters:
    foundations: A function, a loss, and a way down.
    optimization: Finding the lowest point.
    classification: From a score to a class.
    svm: The widest margin.
    trees: Questions in order.
    ensembles: Many weak opinions.
    generalization: Will it hold on data not seen?
    nets: Layers and feed-forward networks (Flax).
    data: Getting data in: reading, labels, scaling, loading.
    training: The loop, and what keeps it safe.
    demos: Runnable examples, one for each concept that has something to show.
"""

from mlnotes_jax import _lazy

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = _lazy.submodules(
    __name__,
    [
        "classification",
        "data",
        "demos",
        "ensembles",
        "foundations",
        "generalization",
        "nets",
        "optimization",
        "svm",
        "training",
        "trees",
    ],
)
