r"""Cross-validation: every row is predicted once, by a fit that has not seen it.

The rows are divided into $K$ folds. With $f^{(-k)}$ fitted to all rows but those of fold $F_k$ and
a score $s$ of predictions against targets,

$$
\text{CV} = \frac1K \sum_{k=1}^K s_k , \qquad
s_k = s\big( \{ f^{(-k)}(x_i) \}_{i \in F_k},\, \{ y_i \}_{i \in F_k} \big) .
$$

It is an unbiased estimate of the score of a fit to $n (1 - 1/K)$ rows. Everything that is learnt
from rows, the scaling too, is learnt anew in each fold.

Reference: Stone, *Cross-Validatory Choice and Assessment of Statistical Predictions* (Journal of
the Royal Statistical Society B, 1974).
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, PyTree

from mlnotes_jax import _checks, _protocol
from mlnotes_jax.generalization import _engine
from mlnotes_jax.generalization._engine import Failure
from mlnotes_jax.generalization._folds import (
    group_k_fold,
    k_fold,
    leave_one_out,
    stratified_k_fold,
)

__all__ = [
    "Evaluation",
    "Failure",
    "Final",
    "Nested",
    "evaluate",
    "group_k_fold",
    "k_fold",
    "leave_one_out",
    "leave_one_out_predictions",
    "mean_score",
    "negated",
    "nested",
    "out_of_fold",
    "refit",
    "select",
    "standard_error",
    "stratified_k_fold",
]

Mode = Literal["auto", "program", "loop"]
Settings = Mapping[str, Any] | None
Prepare = tuple[Callable[..., Any], Callable[..., Any]] | None
Rule = Literal["best", "one_standard_error"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["test_score", "train_score", "failed"],
    meta_fields=["num_folds", "mode", "failures"],
)
@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of m settings in K folds, or in r repeats of K folds, one after the other.

    Attributes:
        test_score: On the rows held out, shape `(m, r * K)`; NaN where failed.
        train_score: On the rows fitted, likewise; None unless asked for.
        failed: Where a score, or a prediction of a row that counts, is no number, likewise.
        num_folds: K; static.
        mode: `"program"` or `"loop"`: how it was computed; static.
        failures: The reasons, as far as they are known: of a loop; static.
    """

    test_score: Float[Array, "m folds"]
    train_score: Float[Array, "m folds"] | None
    failed: Bool[Array, "m folds"]
    num_folds: int
    mode: str
    failures: tuple[Failure, ...] = ()


class Final(NamedTuple):
    """The fit to all rows.

    Attributes:
        model: What `fit` returned.
        state: What the preparation has learnt; None without one. Predict by
            `predict(final.model, apply(final.state, x))`.
    """

    model: PyTree
    state: PyTree


class Nested(NamedTuple):
    """Scores of "choose the setting, then fit" on rows that had no say in either.

    Attributes:
        test_score: Of the chosen setting in each outer fold, shape `(K,)`.
        chosen: Its number, shape `(K,)`.
        outer: Scores of all settings in the outer folds.
    """

    test_score: Float[Array, " K"]
    chosen: Int[Array, " K"]
    outer: Evaluation


def evaluate(
    fit: Callable[..., Any],
    predict: Callable[[Any, Any], Any],
    score: Callable[..., ArrayLike],
    x: ArrayLike,
    y: ArrayLike,
    *,
    folds: Int[ArrayLike, "*repeats n"],
    num_folds: int | None = None,
    settings: Settings = None,
    prepare: Prepare = None,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    key: Key[Array, ""] | None = None,
    mode: Mode = "auto",
    train_scores: bool = False,
    path: bool = False,
    warm_start: bool = False,
    batch_folds: int | None = None,
    batch_settings: int = 1,
) -> Evaluation:
    r"""Score every setting in every fold.

    `mode="program"` is one compiled program. A fold is left out by weights of 0, so that shapes
    stay fixed; the folds are batched (`vmap`) inside a loop over the settings. `mode="loop"` cuts
    the rows out and calls the functions one by one, with what they cannot do under a
    transformation. For a fit that draws nothing both give the same scores, up to rounding.

    The program is compiled once for the same functions (equal `functools.partial` count as the
    same, a new `lambda` does not) and the same shapes. It can itself be called under `jit`, `vmap`
    and `grad`: the gradient of a score with respect to a setting, for example.

    Args:
        fit: `fit(x, y, *, sample_weight, **setting) -> model`, or `fit(key, x, y, ...)`.
        predict: `predict(model, x) -> outputs`: an array, or a pytree of arrays, with a row for
            each row of `x`.
        score: `score(outputs, y, *, sample_weight) -> scalar`, larger is better: `metrics.accuracy`
            or `negated(metrics.log_loss)`, for example.
        x: Rows, shape `(n, ...)`.
        y: Targets or classes, shape `(n, ...)`.
        folds: The fold of each row, 0..K-1, shape `(n,)`, or `(r, n)` for r repeats.
        num_folds: K; static. By default the largest fold plus one; needed where `folds` are traced.
        settings: From the name of an argument of `fit` to its m values: an array of shape
            `(m, ...)`, whose entries are traced; or a list of anything, which asks for a loop.
            Setting i takes the i-th value of each. Without settings m is 1.
        prepare: A pair of functions, fitted without the held-out rows in every fold:
            `fit_state(x, *, sample_weight) -> state` (it is given `y`, too, if it has a parameter
            of this name) and `apply(state, x)`; such as `(scaling.fit_standard, scaling.apply)`.
        sample_weight: $w_i \ge 0$, shape `(n,)`; weighs fits and scores, and 0 drops a row. Where
            all others weigh 1, a loop calls the functions without weights: they need not take any.
        key: For a fit that draws. A fold has one key for all settings, so that they differ in
            nothing else.
        mode: `"auto"` is a program, unless settings are lists, or a function takes no
            `sample_weight`, or looks at the values of its arguments; static.
        train_scores: Score the rows that were fitted, too; static.
        path: Static. `fit` takes all values of the settings at once and returns the models of all,
            each leaf with a leading axis of m, such as `linear_regression.ridge_path`.
        warm_start: Static. `fit` gets `start=model`, the model of the setting before, in the order
            given: from a strong penalty to a weak one, say. The first gets no `start`. A model
            that failed is passed over.
        batch_folds: How many folds a program computes side by side; static; all, by default. Fewer
            need less memory; with 1 they run one after the other.
        batch_settings: How many settings likewise; static; one after the other, by default.

    Returns:
        The scores.

    Raises:
        ValueError: Shapes do not fit, a fold is empty or no fold 0..K-1, data are not finite, a
            score is no scalar, or an option is not allowed. In a loop, what the functions raise if
            they do so for every setting in every fold; else this is a failure.
        TypeError: A function is not callable, or takes no `start` for `warm_start`; or a loop is
            asked for under a transformation.

    Example:
        >>> import functools
        >>> import jax, jax.numpy as jnp
        >>> from mlnotes_jax.classification import gaussian
        >>> from mlnotes_jax.data import datasets, scaling
        >>> from mlnotes_jax.generalization import cross_validation, metrics
        >>> wine = datasets.load("wine")
        >>> folds = cross_validation.stratified_k_fold(jax.random.key(0), wine.y, num_folds=5)
        >>> found = cross_validation.evaluate(
        ...     functools.partial(gaussian.fit, num_classes=3), gaussian.predict, metrics.accuracy,
        ...     wine.x, wine.y, folds=folds, prepare=(scaling.fit_standard, scaling.apply),
        ...     settings={"shrinkage": jnp.array([0.0, 0.1, 0.9])},
        ... )
        >>> found.test_score.shape, found.mode
        ((3, 5), 'program')

    Reference:
        Hastie, Tibshirani and Friedman, *The Elements of Statistical Learning* (2009), section
        7.10.

    Note:
        scikit-learn's `cross_validate` and `GridSearchCV`; there a failed fit is a warning and a
        score of NaN, and the score of a weighted fit is not weighted.
    """
    plan = _engine.Plan(
        fit, _given("predict", predict), _given("score", score), prepare, 0, train_scores, path,
        warm_start, batch_folds, batch_settings,
    )  # fmt: skip
    plan, job = _engine.job(
        plan, x, y, folds=folds, num_folds=num_folds, repeats=True, settings=settings,
        sample_weight=sample_weight, key=key,
    )  # fmt: skip
    found = _engine.program(mode, plan, job, _engine.score_in_program)
    if found is not None:
        return Evaluation(*found, num_folds=plan.num_folds, mode="program")
    test, train, failed, failures = _engine.score_in_loop(plan, job)
    return Evaluation(test, train, failed, plan.num_folds, "loop", failures)


def mean_score(evaluation: Evaluation) -> Float[Array, " m"]:
    """Mean of the test scores of each setting over the folds; NaN if one has failed.

    Args:
        evaluation: From `evaluate`.

    Returns:
        Shape `(m,)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import cross_validation
        >>> scores = jnp.array([[0.5, 1.0], [1.0, 1.0]])
        >>> found = cross_validation.Evaluation(scores, None, jnp.isnan(scores), 2, "loop")
        >>> cross_validation.mean_score(found).tolist()
        [0.75, 1.0]
    """
    return evaluation.test_score.mean(axis=1)


def standard_error(evaluation: Evaluation) -> Float[Array, " m"]:
    r"""Spread of the folds' scores, as an error of their mean: $\sqrt{\hat s^2 / K}$.

    $\hat s^2$ is the sample variance over all folds and repeats. The folds share training rows, and
    no estimate from them is unbiased: this one is too small, most often. Repeats divide the same
    rows again: they make $\hat s^2$ steadier, and are not counted in $K$.

    Args:
        evaluation: From `evaluate`.

    Returns:
        Shape `(m,)`; NaN if a fold has failed.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import cross_validation
        >>> scores = jnp.array([[1.0, 2.0, 3.0, 2.0]])
        >>> found = cross_validation.Evaluation(scores, None, jnp.isnan(scores), 4, "loop")
        >>> [round(float(error), 4) for error in cross_validation.standard_error(found)]
        [0.4082]

    Reference:
        Bengio and Grandvalet, *No Unbiased Estimator of the Variance of K-Fold Cross-Validation*
        (Journal of Machine Learning Research, 2004).
    """
    return jnp.sqrt(evaluation.test_score.var(axis=1, ddof=1) / evaluation.num_folds)


def select(evaluation: Evaluation, *, rule: Rule = "best") -> Int[Array, ""]:
    """Choose a setting.

    Args:
        evaluation: From `evaluate`.
        rule: `"best"`: the highest mean, the first of equals. `"one_standard_error"`: the first
            setting whose mean is at most one standard error of the best below it; order settings
            from the simplest to the most flexible. Static.

    Returns:
        The number of the setting. Settings that failed in a fold are not chosen; -1 if all did,
        which is an error where the scores are concrete.

    Raises:
        ValueError: The rule is unknown, or every setting has failed; with the first reason known.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import cross_validation
        >>> scores = jnp.array([[0.0, 0.1], [0.8, 0.9], [0.7, 1.1]])
        >>> found = cross_validation.Evaluation(scores, None, jnp.isnan(scores), 2, "loop")
        >>> int(cross_validation.select(found))
        2
        >>> int(cross_validation.select(found, rule="one_standard_error"))
        1

    Reference:
        Breiman, Friedman, Olshen and Stone, *Classification and Regression Trees* (1984), section
        3.4.3.
    """
    _checks.one_of("rule", rule, ("best", "one_standard_error"))
    usable = ~evaluation.failed.any(axis=1)
    if _checks.is_concrete(usable) and not np.asarray(usable).any():
        reason = f": {evaluation.failures[0].reason}" if evaluation.failures else ""
        raise ValueError(f"evaluation must have a setting that failed in no fold, got none{reason}")
    means = jnp.where(usable, mean_score(evaluation), -jnp.inf)
    best = jnp.argmax(means)
    if rule == "one_standard_error":
        best = jnp.argmax(usable & (means >= means[best] - standard_error(evaluation)[best]))
    return jnp.where(usable.any(), best.astype(jnp.int32), -1)


def refit(
    fit: Callable[..., Any],
    x: ArrayLike,
    y: ArrayLike,
    *,
    settings: Settings = None,
    index: ArrayLike = 0,
    prepare: Prepare = None,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    key: Key[Array, ""] | None = None,
    path: bool = False,
) -> Final:
    """Fit one of the settings to all rows: the model to use, of which the scores are an estimate.

    Args:
        fit: As in `evaluate`.
        x: As in `evaluate`.
        y: As in `evaluate`.
        settings: As in `evaluate`.
        index: Which of them: what `select` returned.
        prepare: As in `evaluate`; fitted to all rows.
        sample_weight: As in `evaluate`.
        key: As in `evaluate`.
        path: As in `evaluate`.

    Returns:
        The model, and the state of the preparation.

    Raises:
        ValueError: Shapes do not fit, there is no such setting, or what `fit` raises.
        TypeError: A function is not callable, or `index` is no integer.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.foundations import linear_regression
        >>> from mlnotes_jax.generalization import cross_validation
        >>> final = cross_validation.refit(
        ...     linear_regression.fit, jnp.array([[-1.0], [1.0]]), jnp.array([-2.0, 2.0]),
        ...     settings={"ridge": jnp.array([0.0, 2.0])}, index=1,
        ... )
        >>> round(float(final.model.coef[0]), 4)
        1.0
    """
    plan = _engine.Plan(fit, prepare=prepare, path=path)
    _, job = _engine.job(plan, x, y, settings=settings, sample_weight=sample_weight, key=key)
    chosen = _checks.integer("index", index, ndim=0)
    _checks.in_range("index", chosen, 0, job.num_settings - 1)
    place = int(chosen) if _checks.is_concrete(chosen) else chosen
    setting = job.setting(place)
    if path:
        setting = {name: jnp.asarray(value)[None] for name, value in setting.items()}
    options = {} if job.weight is None else {"sample_weight": job.weight}
    state, z = _engine.prepared(prepare, job.x, job.y, job.weight)
    model = _protocol.keyed(fit)(key, z, job.y, **options, **setting)
    return Final(jax.tree.map(lambda leaf: leaf[0], model) if path else model, state)


def nested(
    fit: Callable[..., Any],
    predict: Callable[[Any, Any], Any],
    score: Callable[..., ArrayLike],
    x: ArrayLike,
    y: ArrayLike,
    *,
    folds: Int[ArrayLike, " n"],
    settings: Mapping[str, Any],
    num_folds: int | None = None,
    rule: Rule = "best",
    sample_weight: Float[ArrayLike, " n"] | None = None,
    **options: Any,
) -> Nested:
    """Score the choice of a setting, too: each fold is scored with what the others have chosen.

    The best of many scores is too good to be true: it was chosen for being large. So each fold in
    turn is locked away; the other K - 1 are the folds of a cross-validation that chooses; the
    chosen setting, fitted to all of them, is scored on the first. Since the inner folds are the
    outer ones, groups stay together and shares of classes are kept.

    Args:
        fit: As in `evaluate`.
        predict: As in `evaluate`.
        score: As in `evaluate`.
        x: As in `evaluate`.
        y: As in `evaluate`.
        folds: The fold of each row, shape `(n,)`; K is at least 3.
        settings: As in `evaluate`.
        num_folds: As in `evaluate`.
        rule: As in `select`.
        sample_weight: As in `evaluate`.
        **options: Others of `evaluate`.

    Returns:
        Scores and choices. All in all m K fits for the outer folds and m K (K - 1) for the inner.

    Raises:
        ValueError: As in `evaluate` and `select`, or K is less than 3.
        TypeError: As in `evaluate`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from mlnotes_jax.foundations import linear_regression
        >>> from mlnotes_jax.generalization import cross_validation, metrics
        >>> x, noise = jax.random.normal(jax.random.key(0), (2, 30, 1))
        >>> found = cross_validation.nested(
        ...     linear_regression.fit, linear_regression.predict, metrics.r2, x, (x + noise)[:, 0],
        ...     folds=cross_validation.k_fold(None, 30, num_folds=3),
        ...     settings={"ridge": jnp.array([0.1, 1.0, 10.0])},
        ... )
        >>> found.test_score.shape, found.chosen.shape
        ((3,), (3,))

    Reference:
        Varma and Simon, *Bias in Error Estimation When Using Cross-Validation for Model Selection*
        (BMC Bioinformatics, 2006).
    """
    _checks.one_of("rule", rule, ("best", "one_standard_error"))
    run = partial(evaluate, fit, predict, score, x, y, settings=settings, **options)
    outer = run(folds=folds, num_folds=num_folds, sample_weight=sample_weight)
    fold, count = jnp.asarray(folds), outer.num_folds
    if outer.test_score.shape[1] != count:
        raise ValueError(f"folds must not be repeated, got shape {fold.shape}")
    if count < 3:
        raise ValueError(
            f"folds must number at least three, got {count}: two are left to choose by"
        )
    weight = jnp.ones(len(fold), outer.test_score.dtype)
    if sample_weight is not None:
        weight = _checks.floating("sample_weight", sample_weight)
    chosen = []
    for k in range(count):  # its rows weigh nothing; the numbers above it move down
        inner = jnp.where(fold == k, 0, fold - (fold > k).astype(fold.dtype))
        rest = jnp.where(fold == k, 0, weight)
        chosen.append(select(run(folds=inner, num_folds=count - 1, sample_weight=rest), rule=rule))
    picked = jnp.stack(chosen)
    score_of_each = outer.test_score[picked, jnp.arange(count, dtype=jnp.int32)]
    return Nested(score_of_each, picked, outer)


def out_of_fold(
    fit: Callable[..., Any],
    predict: Callable[[Any, Any], Any],
    x: ArrayLike,
    y: ArrayLike,
    *,
    folds: Int[ArrayLike, " n"],
    num_folds: int | None = None,
    prepare: Prepare = None,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    key: Key[Array, ""] | None = None,
    mode: Mode = "auto",
    batch_folds: int | None = None,
) -> PyTree:
    """Predict each row by the fit that has not seen it: what stacking and calibration train on.

    Args:
        fit: As in `evaluate`; fix its settings by `functools.partial`.
        predict: As in `evaluate`.
        x: As in `evaluate`.
        y: As in `evaluate`.
        folds: The fold of each row, shape `(n,)`.
        num_folds: As in `evaluate`.
        prepare: As in `evaluate`.
        sample_weight: As in `evaluate`.
        key: As in `evaluate`.
        mode: As in `evaluate`.
        batch_folds: As in `evaluate`.

    Returns:
        The outputs, each leaf of shape `(n, ...)`.

    Raises:
        ValueError: As in `evaluate`, or what `fit` raises.
        TypeError: As in `evaluate`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import cross_validation
        >>> cross_validation.out_of_fold(
        ...     lambda x, y: y.mean(), lambda mean, x: jnp.full(len(x), mean),
        ...     jnp.zeros((4, 1)), jnp.array([0.0, 2.0, 4.0, 6.0]), folds=[0, 0, 1, 1],
        ... ).tolist()
        [5.0, 5.0, 1.0, 1.0]

    Note:
        scikit-learn's `cross_val_predict`. The rows are predicted by K different models: score
        each fold by itself, or by a mean over rows; a ranking mixes them up.
    """
    plan = _engine.Plan(fit, _given("predict", predict), prepare=prepare, batch_folds=batch_folds)
    plan, job = _engine.job(
        plan, x, y, folds=folds, num_folds=num_folds, sample_weight=sample_weight, key=key
    )
    found = _engine.program(mode, plan, job, _engine.predict_in_program)
    return _engine.predict_in_loop(plan, job) if found is None else found


def leave_one_out_predictions(
    y: Float[ArrayLike, " n"], fitted: Float[ArrayLike, " n"], leverage: Float[ArrayLike, " n"]
) -> Float[Array, " n"]:
    r"""Leave-one-out predictions of a linear smoother, from one fit to all rows.

    If the fitted values are $\hat y = S y$ and $h_i = S_{ii}$ is the leverage of row $i$, then the
    fit without row $i$ errs there by

    $$ y_i - \hat y_i^{(-i)} = \frac{y_i - \hat y_i}{1 - h_i} . $$

    It is exact for least squares with any quadratic penalty. The sum of the squares is called
    PRESS, the predicted residual sum of squares.

    Args:
        y: Targets, shape `(n,)`.
        fitted: $\hat y$ of the fit to all rows, shape `(n,)`.
        leverage: $h$, shape `(n,)`: the diagonal of
            [linear_smoother][mlnotes_jax.generalization.bias_variance.linear_smoother].

    Returns:
        $\hat y_i^{(-i)}$, shape `(n,)`. NaN where $h_i = 1$ up to rounding: without this row the
        fit has no answer there.

    Raises:
        ValueError: Shapes differ, or data are empty.

    Example:
        >>> from mlnotes_jax.generalization import cross_validation
        >>> y = [0.0, 6.0]  # their mean is 3, of which each is one half
        >>> cross_validation.leave_one_out_predictions(y, [3.0, 3.0], [0.5, 0.5]).tolist()
        [6.0, 0.0]

    Reference:
        Allen, *The Relationship Between Variable Selection and Data Augmentation and a Method for
        Prediction* (Technometrics, 1974).
    """
    y, fitted, leverage = (
        _checks.floating(name, value, ndim=1)
        for name, value in (("y", y), ("fitted", fitted), ("leverage", leverage))
    )
    _checks.same_shape(y=y, fitted=fitted, leverage=leverage)
    _checks.not_empty("y", y)
    dtype = max((y, fitted, leverage), key=lambda array: array.dtype.itemsize).dtype
    y, fitted, leverage = (array.astype(dtype) for array in (y, fitted, leverage))
    rest = 1 - leverage
    alone = jnp.abs(rest) <= 16 * jnp.finfo(dtype).eps
    return y - jnp.where(alone, jnp.nan, (y - fitted) / jnp.where(alone, 1, rest))


def negated(loss: Callable[..., ArrayLike]) -> Callable[..., ArrayLike]:
    """Turn a loss into a score: minus the loss.

    Args:
        loss: `loss(outputs, y, *, sample_weight) -> scalar`, smaller is better.

    Returns:
        The score. Those of one loss count as the same, so that a program is compiled once.

    Example:
        >>> from mlnotes_jax.generalization import cross_validation, metrics
        >>> float(cross_validation.negated(metrics.rmse)([1.0, 2.0], [4.0, 5.0]))
        -3.0
    """
    return partial(_negative, loss)


# --- Private --------------------------------------------------------------------------------------


def _given(name: str, function: Any) -> Callable[..., Any]:
    if not callable(function):
        raise TypeError(f"{name} must be callable, got {function!r}")
    return function


def _negative(loss: Callable[..., Any], outputs: Any, y: Any, **options: Any) -> Any:
    return -loss(outputs, y, **options)
