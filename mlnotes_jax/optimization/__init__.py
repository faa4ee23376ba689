"""Finding the lowest point of a loss.

Modules:
    adam: Adam and its kin: AMSGrad, NAdam, RAdam.
    adaptive: A rate for each parameter: Adagrad and RMSProp, the notes' forms and the usual ones.
    averaging: Averages of the parameters along the way.
    bounded: From Adam to SGD: AdaBound, AMSBound, SWATS.
    critical_points: Where the gradient vanishes, and what the Hessian says there.
    lookahead: Slow and fast weights, around any rule.
    momentum: SGD, the heavy ball and Nesterov's momentum.
    schedules: Learning rates that change: decays, warm-up, cycles; the range test.
    sharpness: How sharp a minimum is, and pictures of the loss around it.
    stability: Clipping, norm constraints, gradient noise, steps that are skipped.
    weight_decay: L2 in the loss against decay of the weights: SGDW and AdamW.
"""

from mlnotes_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.submodules(
    __name__,
    [
        "adam",
        "adaptive",
        "averaging",
        "bounded",
        "critical_points",
        "lookahead",
        "momentum",
        "schedules",
        "sharpness",
        "stability",
        "weight_decay",
    ],
)
