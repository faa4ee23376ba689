"""Many weak opinions.

Modules:
    adaboost: Rows that were missed count more in the next round.
    bagging: One fit on many drawn samples, and the vote.
    networks: Several networks, their average, and one small network that learnt from them.
    stacking: A model of what the models say on rows they have not seen.
"""

from mlnotes_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.submodules(
    __name__, ["adaboost", "bagging", "networks", "stacking"]
)
