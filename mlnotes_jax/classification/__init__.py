"""From a score to a class.

Modules:
    gaussian: One Gaussian per class, and the posterior that follows.
    linear_scores: One linear score per class, under the hinge and under the softmax.
    logistic_regression: Probabilities from a linear score, fitted by likelihood.
"""

from mlnotes_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.submodules(
    __name__, ["gaussian", "linear_scores", "logistic_regression"]
)
