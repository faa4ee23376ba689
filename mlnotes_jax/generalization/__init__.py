"""Will it hold on data not seen?

Modules:
    augmentation: New pictures from old ones, with the same label.
    bias_variance: Where the error of a fit comes from, measured over many data sets.
    bounds: How far a measured error can be from the true one.
    cross_validation: Each row tested once, by a model that has not seen it.
    diagnosis: From measured losses to what is wrong, and what to try.
    early_stopping: When to stop training, and which parameters to keep.
    metrics: How good a prediction is, in numbers.
    mismatch: Whether two sets of rows come from one source.
    search: Which settings are best: grids, random draws, and studies on disk.
"""

from mlnotes_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.submodules(
    __name__,
    [
        "augmentation",
        "bias_variance",
        "bounds",
        "cross_validation",
        "diagnosis",
        "early_stopping",
        "metrics",
        "mismatch",
        "search",
    ],
)
