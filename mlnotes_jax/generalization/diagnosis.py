r"""Diagnosis: what is wrong with a model, read from a few losses, in the order of the lectures.

With the training losses $T_s$ and $T_\ell$ of a small and a large model, the loss $V$ of the large
one on held-out rows, the loss $E$ on the rows it is meant for, and a loss $c$ that would do:

$$
\begin{array}{lll}
T_\ell > c & T_\ell > T_s & \text{optimization issue} \\
           & T_\ell \le T_s & \text{model bias} \\
T_\ell \le c & V > c & \text{over-fitting} \\
           & V \le c < E & \text{mismatch} \\
           & V, E \le c & \text{fine}
\end{array}
$$

where the large model contains the small one, and "larger" means by more than a margin.

Reference: Ng, *Machine Learning Yearning* (2018), chapters 20 to 27 and 40 to 43; He, Zhang,
Ren and Sun, *Deep residual learning for image recognition* (CVPR 2016), section 1.
"""

import enum
from types import MappingProxyType
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from mlnotes_jax import _checks
from mlnotes_jax.generalization.bias_variance import Estimate

__all__ = [
    "ADVICE",
    "Comparison",
    "Diagnosis",
    "Verdict",
    "decide",
    "diagnose",
    "explain",
    "mean_loss",
]

Loss = Float[ArrayLike, ""] | Estimate


class Verdict(enum.IntEnum):
    """What is wrong.

    Attributes:
        FINE: Nothing that these losses could show.
        MODEL_BIAS: No function of the model comes near enough.
        OPTIMIZATION_ISSUE: There is a better function in the model; training did not find it.
        OVERFITTING: It is good on the rows it was chosen by, and not on others like them.
        MISMATCH: It is good on rows like those it was trained on, and the others are not like them.
    """

    FINE = 0
    MODEL_BIAS = 1
    OPTIMIZATION_ISSUE = 2
    OVERFITTING = 3
    MISMATCH = 4


#: What to try, for each verdict, the first thing first.
ADVICE = MappingProxyType(
    {
        Verdict.FINE: ("keep it, and watch the loss on the rows it meets",),
        Verdict.MODEL_BIAS: (
            "give the model more to look at: more features, more of the past",
            "make it more flexible: more units, more layers with a bend between them",
        ),
        Verdict.OPTIMIZATION_ISSUE: (
            "change what trains it: learning rate, warm-up, momentum, Adam",
            "make gradients reach every layer: residual connections, normalization, ReLU, the "
            "scale of the first weights",
            "start from the small model, which does better",
        ),
        Verdict.OVERFITTING: (
            "more training rows, or augmented ones",
            "a model with less freedom: fewer or shared parameters, fewer features",
            "early stopping, weight decay, dropout",
            "if only the test loss is high: a fresh validation set, since this one was asked too "
            "often",
        ),
        Verdict.MISMATCH: (
            "look at the most foreign rows, and find out what differs",
            "train on rows like those of the test: collect them, or change the training rows",
            "weigh the training rows by how likely they are among the test rows",
        ),
    }
)


class Comparison(NamedTuple):
    """One question: is a loss larger than a limit?

    Attributes:
        value: The loss.
        limit: What it is compared with.
        margin: By how much it may be larger.
        larger: Whether it is larger than limit and margin together, or no number.
    """

    value: Float[Array, ""]
    limit: Float[Array, ""]
    margin: Float[Array, ""]
    larger: Bool[Array, ""]


class Diagnosis(NamedTuple):
    """A verdict, and every question that led to it.

    Attributes:
        verdict: A `Verdict` as int32, shape `()`.
        train: The large model's training loss against the desired one; None without one.
        size: The large model's training loss against the small one's.
        validation: The validation loss against the desired one, or else the training loss.
        test: The same for the test loss; None without one.
        mismatched: Whether the p-value says that the rows come from elsewhere; None without one.
        p_value: As given.
    """

    verdict: Int[Array, ""]
    train: Comparison | None
    size: Comparison
    validation: Comparison
    test: Comparison | None
    mismatched: Bool[Array, ""] | None
    p_value: Float[Array, ""] | None


def diagnose(
    *,
    small_train: Loss,
    large_train: Loss,
    validation: Loss,
    test: Loss | None = None,
    desired: Float[ArrayLike, ""] | None = None,
    mismatch_p_value: Float[ArrayLike, ""] | None = None,
    level: Float[ArrayLike, ""] = 0.05,
    tolerance: Float[ArrayLike, ""] = 0.0,
    num_standard_errors: Float[ArrayLike, ""] = 2.0,
) -> Diagnosis:
    r"""Say what is wrong with the large model, the first thing first.

    A loss is larger than a limit if it exceeds it by more than

    $$ \text{tolerance} + k \sqrt{\mathrm{SE}^2(\text{loss}) + \mathrm{SE}^2(\text{limit})} , $$

    with $k$ the number of standard errors. A loss that is no number, or infinite, is larger than
    anything: training that went astray is an optimization issue, whatever the small model did.

    Everything is a scalar; use `vmap` for many. Works under `jit`.

    Args:
        small_train: Training loss of a small model, one that is easy to train.
        large_train: Training loss of the model in question, which contains the small one.
        validation: Its loss on rows that it was not trained on, from the source of the training
            rows. If there is only one held-out set, it is this one.
        test: Its loss on the rows that it is meant for, where they may come from elsewhere.
        desired: The loss that would do. Without it no training loss is too large by itself, so
            model bias cannot be seen, and held-out losses are compared with the training loss.
        mismatch_p_value: Of a test whether the test rows (without them, the validation rows) come
            from where the training rows come from, for example
            [`classifier_two_sample`][mlnotes_jax.generalization.mismatch.classifier_two_sample].
        level: Below it a p-value counts as a mismatch.
        tolerance: A difference of losses that does not matter.
        num_standard_errors: $k$: how many standard errors do not count. Each loss is a number, or
            an [`Estimate`][mlnotes_jax.generalization.bias_variance.Estimate] with a standard
            error.

    Returns:
        The verdict as data; [`explain`][mlnotes_jax.generalization.diagnosis.explain] puts it into
        words.

    Raises:
        ValueError: An argument is not a scalar, or a concrete one is out of range.
        TypeError: An argument is not a real number.

    Example:
        >>> from mlnotes_jax.generalization import diagnosis
        >>> found = diagnosis.diagnose(
        ...     small_train=0.2, large_train=0.5, validation=0.5, desired=0.1
        ... )
        >>> diagnosis.Verdict(int(found.verdict)).name
        'OPTIMIZATION_ISSUE'

    Note:
        The training losses of two models on the same rows are compared as they are. Their
        differences from run to run belong into `tolerance`, not into a standard error over rows.
    """
    options = {"tolerance": tolerance, "num_standard_errors": num_standard_errors}
    slack, count = (_scalar(name, value) for name, value in options.items())
    for name, value in (("tolerance", slack), ("num_standard_errors", count)):
        _checks.not_negative(name, value)
    threshold = _scalar("level", level)
    _checks.in_range("level", threshold, 0, 1)
    small, large = _loss("small_train", small_train), _loss("large_train", large_train)
    held_out = _loss("validation", validation)
    goal = large if desired is None else _loss("desired", desired)
    if desired is not None:
        _checks.finite("desired", goal.value)

    def compare(loss: Estimate, limit: Estimate) -> Comparison:
        error = jnp.hypot(loss.standard_error, limit.standard_error)
        margin = slack + count * error
        # Not "value > limit": a NaN must not pass for a small loss. A limit that is no number does
        # not hold anybody back.
        top = jnp.where(jnp.isnan(limit.value), jnp.inf, limit.value + margin)
        larger = ~(loss.value <= top) | ~jnp.isfinite(loss.value)
        return Comparison(loss.value, limit.value, margin, larger)

    size, train = compare(large, small), None if desired is None else compare(large, goal)
    on_validation = compare(held_out, goal)
    on_test = None if test is None else compare(_loss("test", test), goal)
    p_value = mismatched = None
    if mismatch_p_value is not None:
        p_value = _scalar("mismatch_p_value", mismatch_p_value)
        _checks.in_range("mismatch_p_value", p_value, 0, 1)
        mismatched = p_value < threshold
    verdict = decide(
        train_large=size.larger if train is None else train.larger,
        worse_than_small=size.larger,
        validation_large=on_validation.larger,
        test_large=None if on_test is None else on_test.larger,
        mismatched=mismatched,
    )
    return Diagnosis(verdict, train, size, on_validation, on_test, mismatched, p_value)


def decide(
    *,
    train_large: Bool[ArrayLike, "..."],
    worse_than_small: Bool[ArrayLike, "..."],
    validation_large: Bool[ArrayLike, "..."],
    test_large: Bool[ArrayLike, "..."] | None = None,
    mismatched: Bool[ArrayLike, "..."] | None = None,
) -> Int[Array, "..."]:
    """The guide itself: from yes and no to one verdict.

    The training loss is asked first. What comes later is looked at only if that is small enough.
    With a test loss, over-fitting is read from the validation loss and mismatch from what the test
    loss adds to it. Without one, the p-value alone decides between the two. If the test loss is
    large, the validation loss is not, and the p-value sees no mismatch, then the validation set was
    over-fitted: it has chosen too often.

    Args:
        train_large: The training loss is larger than desired.
        worse_than_small: The training loss is larger than that of the small model.
        validation_large: The validation loss is too large.
        test_large: The test loss is too large; None: it was not measured.
        mismatched: The held-out rows come from elsewhere; None: it was not tested.

    Returns:
        A `Verdict` as int32, of the shape of the arguments.

    Raises:
        TypeError: An argument is not boolean.
        ValueError: Shapes differ.

    Example:
        >>> from mlnotes_jax.generalization.diagnosis import Verdict, decide
        >>> verdict = decide(train_large=False, worse_than_small=True, validation_large=True)
        >>> Verdict(int(verdict)).name
        'OVERFITTING'
    """
    given = {
        "train_large": train_large,
        "worse_than_small": worse_than_small,
        "validation_large": validation_large,
        "test_large": test_large,
        "mismatched": mismatched,
    }
    asked = {name: _boolean(name, value) for name, value in given.items() if value is not None}
    _checks.same_shape(**asked)
    fine, bias, optimization, overfitting, mismatch = (jnp.int32(v) for v in Verdict)

    foreign = asked.get("mismatched")
    if "test_large" in asked:
        by_test = mismatch if foreign is None else jnp.where(foreign, mismatch, overfitting)
        held_out = jnp.where(
            asked["validation_large"], overfitting, jnp.where(asked["test_large"], by_test, fine)
        )
    else:
        cause = overfitting if foreign is None else jnp.where(foreign, mismatch, overfitting)
        held_out = jnp.where(asked["validation_large"], cause, fine)
    in_training = jnp.where(asked["worse_than_small"], optimization, bias)
    return jnp.where(asked["train_large"], in_training, held_out)


def explain(diagnosis: Diagnosis) -> str:
    """Put a diagnosis into words: the verdict, why, and what to try.

    Args:
        diagnosis: What `diagnose` returned, one, not under a transformation.

    Returns:
        A few lines: the verdict, a line for each question that was needed, and the advice.

    Raises:
        TypeError: The values are not known, because this is under a transformation.
        ValueError: There is more than one verdict.

    Example:
        >>> from mlnotes_jax.generalization import diagnosis
        >>> found = diagnosis.diagnose(small_train=0.3, large_train=0.1, validation=0.2)
        >>> print(diagnosis.explain(found).splitlines()[0])
        over-fitting
    """
    if not _checks.is_concrete(diagnosis):
        raise TypeError("diagnosis must be concrete, got a tracer: call explain outside of jit")
    if np.ndim(diagnosis.verdict):
        raise ValueError(
            f"diagnosis must be one, got verdicts of shape {np.shape(diagnosis.verdict)}"
        )
    verdict = Verdict(int(diagnosis.verdict))
    lines = [_NAMES[verdict]]

    def line(what: str, comparison: Comparison, limit: str) -> None:
        relation = "above" if comparison.larger else "not above"
        text = f"{what} {float(comparison.value):.3g} is {relation} {limit}"
        text += f" {float(comparison.limit):.3g}"
        if comparison.margin > 0:
            text += f" by more than {float(comparison.margin):.2g}"
        lines.append(f"- {text}")

    goal = "the training loss" if diagnosis.train is None else "the desired"
    if diagnosis.train is not None:
        line("training loss", diagnosis.train, goal)
    in_training = verdict in (Verdict.OPTIMIZATION_ISSUE, Verdict.MODEL_BIAS)
    if in_training or diagnosis.train is None:
        line("training loss", diagnosis.size, "the small model's")
    if not in_training:
        line("validation loss", diagnosis.validation, goal)
        validated = not diagnosis.validation.larger
        if diagnosis.test is not None and validated:
            line("test loss", diagnosis.test, goal)
        if diagnosis.p_value is not None and verdict != Verdict.FINE:
            says = "come from elsewhere" if diagnosis.mismatched else "may come from the same place"
            p_value = float(diagnosis.p_value)
            number = f"p-value {p_value:.2g}" if p_value else "p-value too small for a float"
            lines.append(f"- the rows {says}: {number}")
    lines.append("try:")
    lines += [f"- {advice}" for advice in ADVICE[verdict]]
    return "\n".join(lines)


def mean_loss(losses: Float[ArrayLike, " n"]) -> Estimate:
    r"""Mean loss over rows, and its standard error $s / \sqrt n$.

    Args:
        losses: One for each row, shape `(n,)`, $n \ge 2$; independent rows.

    Returns:
        The mean and its standard error, with $s^2$ divided by $n - 1$; each of shape `()`.

    Raises:
        ValueError: There are fewer than two rows.
        TypeError: Losses are not real.

    Example:
        >>> from mlnotes_jax.generalization import diagnosis
        >>> mean, error = diagnosis.mean_loss([0.0, 2.0])
        >>> float(mean), float(error)
        (1.0, 1.0)
    """
    losses = _checks.floating("losses", losses, ndim=1)
    if len(losses) < 2:
        raise ValueError(f"losses must have at least 2 rows, got shape {losses.shape}")
    losses = losses.astype(np.promote_types(losses.dtype, np.float32))
    return Estimate(losses.mean(), losses.std(ddof=1) / len(losses) ** 0.5)


# --- Private --------------------------------------------------------------------------------------

_NAMES = {
    Verdict.FINE: "fine",
    Verdict.MODEL_BIAS: "model bias",
    Verdict.OPTIMIZATION_ISSUE: "optimization issue",
    Verdict.OVERFITTING: "over-fitting",
    Verdict.MISMATCH: "mismatch",
}


def _scalar(name: str, value: ArrayLike) -> Array:
    # All losses meet in one comparison, whatever they were computed in.
    return _checks.floating(name, value, ndim=0).astype(jnp.result_type(float))


def _loss(name: str, loss: Loss) -> Estimate:
    if not isinstance(loss, Estimate):
        return Estimate(_scalar(name, loss), jnp.zeros((), jnp.result_type(float)))
    error = _scalar(f"{name}.standard_error", loss.standard_error)
    _checks.not_negative(f"{name}.standard_error", error)
    return Estimate(_scalar(name, loss.value), error)


def _boolean(name: str, value: ArrayLike) -> Array:
    array = jnp.asarray(value)
    if array.dtype != jnp.bool_:
        raise TypeError(f"{name} must be boolean, got dtype {array.dtype}")
    return array
