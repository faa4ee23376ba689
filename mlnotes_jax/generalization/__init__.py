"""Will it hold on data not seen?

Modules:
    bias_variance: Where the error of a fit comes from, measured over many data sets.
    bounds: How far a measured error can be from the true one.
    early_stopping: When to stop training, and which parameters to keep.
    metrics: How good a prediction is, in numbers.
"""

from mlnotes_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.submodules(
    __name__, ["bias_variance", "bounds", "early_stopping", "metrics"]
)
