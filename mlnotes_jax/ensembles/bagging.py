r"""Bagging: one fit on many samples drawn from the same rows, and the average of the answers.

Model $b$ is fitted to a bootstrap sample: row $i$ is drawn $c_{bi}$ times, where
$(c_{b1}, \dots, c_{bn})$ is multinomial with $n$ draws and equal chances, and so weighs $c_{bi}$.
The answer is the mean, or for classes the vote,

$$
\bar f(x) = \frac1B \sum_{b=1}^B f_b(x) , \qquad
\hat y(x) = \arg\max_k \sum_{b=1}^B [f_b(x) = k] .
$$

A row is out of bag for the models with $c_{bi} = 0$, about $1/e$ = 37 % of them. Their answers
judge the average without any held-out rows.

Reference: Breiman, *Bagging Predictors* (Machine Learning, 1996).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key, Num, PyTree

from mlnotes_jax import _checks, _protocol
from mlnotes_jax.ensembles import _learners
from mlnotes_jax.ensembles._learners import Learner, Mode, Task
from mlnotes_jax.generalization import metrics

__all__ = [
    "Bagging",
    "OutOfBag",
    "draw_counts",
    "fit",
    "members",
    "out_of_bag",
    "predict",
    "predict_proba",
]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["models", "counts", "features"],
    meta_fields=["predict_one", "num_classes", "batch_models", "mode"],
)
@dataclasses.dataclass(frozen=True)
class Bagging:
    """Many fitted models of one kind.

    Attributes:
        models: What the learner returned: of a program with a leading axis of B, of a loop a tuple.
        counts: How often each model was given each row, shape `(B, n)`.
        features: The columns that each model sees, ascending, shape `(B, q)`; None if it sees all.
        predict_one: The learner's `predict`; static.
        num_classes: k; 0 for a regression; static.
        batch_models: As in `fit`; static.
        mode: `"program"` or `"loop"`: how it was fitted; static.
    """

    models: PyTree
    counts: Int[Array, "B n"]
    features: Int[Array, "B q"] | None
    predict_one: Callable[[Any, Any], Any]
    num_classes: int
    batch_models: int | None
    mode: str


class OutOfBag(NamedTuple):
    """What the models say about the training rows that they were not given.

    Attributes:
        average: Votes or mean probabilities, shape `(n, k)`; or means, shape `(n, ...)`. NaN for a
            row that every model was given.
        prediction: Classes as int32, -1 for such a row; for a regression the same as `average`.
        score: Accuracy, or $R^2$, over the rows that have an answer; shape `()`.
        num_models: How many models were not given the row, shape `(n,)`.
    """

    average: Float[Array, "n ..."]
    prediction: Num[Array, "n ..."]
    score: Float[Array, ""]
    num_models: Int[Array, " n"]


def fit(
    key: Key[Array, ""],
    x: Num[ArrayLike, "n ..."],
    y: Num[ArrayLike, " n"],
    *,
    learner: Learner,
    num_models: int = 50,
    task: Task = "classification",
    fraction: Float[ArrayLike, ""] = 1.0,
    replace: bool = True,
    num_features: int | None = None,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    num_classes: int | None = None,
    missing: bool = False,
    batch_models: int | None = 1,
    mode: Mode = "auto",
) -> Bagging:
    r"""Fit the learner to many samples of the rows.

    A sample is a weight for each row, the number of times that it was drawn; so all samples have
    one shape, and all fits are one compiled program. A learner that cannot be traced, or that takes
    no weights, is called in a loop with the same draws; without weights it is given the rows as
    often as they were drawn.

    Args:
        key: Draws the samples and the columns, and is handed on to a learner that takes a key.
        x: Rows, shape `(n, ...)`; 2-D for `num_features`.
        y: Classes 0..k-1, shape `(n,)`; for a regression numbers, shape `(n,)` or `(n, m)`.
        learner: Two functions. `fit(x, y, *, sample_weight) -> model`, or `fit(key, x, y, ...)`; it
            is given `num_classes`, too, if it has a parameter of this name. And
            `predict(model, x)`: classes, shape `(n,)`, which vote; probabilities, shape `(n, k)`,
            or for a regression numbers, which are averaged.
        num_models: B; static.
        task: `"classification"` or `"regression"`; static.
        fraction: Size of a sample, as a share of the rows that count, in (0, 1]; rounded to the
            nearest whole number, at least 1. Traced.
        replace: Draw with replacement (a bootstrap sample), or each row once at most; static.
        num_features: q: each model is fitted to as many columns, drawn without replacement and cut
            out (random subspaces); static. By default to all.
        sample_weight: $w_i \ge 0$, shape `(n,)`. Zero drops a row: it is never drawn, and may hold
            anything. The weight of a row in a sample is $c_{bi} w_i$.
        num_classes: k, static; by default the largest label plus one. Needed where `y` is traced.
        missing: Whether `x` may hold NaN; static. Only for a learner that knows what to do.
        batch_models: How many models are fitted side by side; static. By default one after the
            other, which needs the least memory. None: all, by one `vmap`.
        mode: `"program"`, `"loop"`, or `"auto"`: a program where that is possible; static.

    Returns:
        The models.

    Raises:
        ValueError: Shapes do not fit; data are empty or (where concrete) not finite, or no classes;
            an option is not allowed; a learner without weights meets weights other than 0 and 1.
        TypeError: The learner is no pair of functions, `y` are no integers for a classification, or
            a loop is asked for under a transformation.

    Example:
        >>> import functools, jax
        >>> from mlnotes_jax.classification import gaussian
        >>> from mlnotes_jax.data import datasets
        >>> from mlnotes_jax.ensembles import bagging
        >>> wine = datasets.load("wine")
        >>> learner = functools.partial(gaussian.fit, covariance="naive"), gaussian.predict
        >>> model = bagging.fit(jax.random.key(0), wine.x, wine.y, learner=learner, num_models=25)
        >>> bagging.predict(model, wine.x[:3]).tolist()
        [0, 0, 0]
        >>> float(bagging.out_of_bag(model, wine.x, wine.y).score) > 0.95
        True

    Reference:
        Breiman, *Bagging Predictors* (Machine Learning, 1996); Ho, *The Random Subspace Method for
        Constructing Decision Forests* (IEEE Transactions on Pattern Analysis, 1998).

    Note:
        scikit-learn's `BaggingClassifier` averages probabilities where its learner has them: pass
        `predict_proba` as the learner's second function for that. Its `sample_weight` are (since
        version 1.8) chances to be drawn, and do not reach the learner.
    """
    pair = _learners.pair(learner)
    _checks.positive_int("num_models", num_models)
    if batch_models is not None:
        _checks.positive_int("batch_models", batch_models)
    fraction = _fraction(fraction)
    data = _learners.rows(x, y, sample_weight, task=task, num_classes=num_classes, missing=missing)
    if num_features is not None:
        _check_num_features(num_features, data.x.shape)
    options = ()
    if task == "classification" and _protocol.named(pair[0], "num_classes"):
        options = (("num_classes", data.num_classes),)
    weighted = _protocol.accepts(pair[0], "sample_weight")
    plan = _Plan(
        pair[0], pair[1], options, num_models, bool(replace), num_features, batch_models,
        data.num_classes,
    )  # fmt: skip
    arrays = key, data.x, data.y, data.weights(), fraction
    found = _learners.in_program(
        mode,
        "" if weighted else "the learner's fit takes no sample_weight",
        (data.x, data.y, data.weight),
        lambda: _fit_in_program(plan, *arrays),
    )
    how = "program"
    if found is None:
        found, how = _fit_in_loop(plan, key, data, fraction, weighted), "loop"
    models, counts, features = found
    return Bagging(models, counts, features, plan.predict, plan.num_classes, plan.batch_models, how)


def predict(model: Bagging, x: Num[ArrayLike, "m ..."]) -> Num[Array, "m ..."]:
    """The class with the most votes, or the mean.

    Args:
        model: A fitted model.
        x: Rows, shape `(m, ...)`.

    Returns:
        Classes as int32, shape `(m,)`, the first of equals; -1 where a probability is no number, or
        no model answers with a class. For a regression the mean, shape `(m, ...)`.

    Raises:
        ValueError: The learner's outputs have another shape than `fit` asks for.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from mlnotes_jax.ensembles import bagging
        >>> learner = (
        ...     lambda x, y, sample_weight: sample_weight @ y / sample_weight.sum(),
        ...     lambda mean, x: jnp.full(len(x), mean),
        ... )
        >>> x, y = jnp.zeros((4, 1)), jnp.array([1.0, 1.0, 1.0, 1.0])
        >>> model = bagging.fit(jax.random.key(0), x, y, learner=learner, task="regression")
        >>> bagging.predict(model, jnp.zeros((2, 1))).tolist()
        [1.0, 1.0]
    """
    average = _average(model, x, None)
    return _best(average) if model.num_classes else average


def predict_proba(model: Bagging, x: Num[ArrayLike, "m ..."]) -> Float[Array, "m k"]:
    """Share of the votes for each class, or the mean of the learner's probabilities.

    Args:
        model: A fitted model of classes.
        x: Rows, shape `(m, ...)`.

    Returns:
        Shape `(m, k)`.

    Raises:
        ValueError: The model is a regression, or the learner's outputs have another shape than
            `fit` asks for.

    Example:
        >>> import jax
        >>> from mlnotes_jax.classification import gaussian
        >>> from mlnotes_jax.ensembles import bagging
        >>> x, y = [[0.0], [2.0], [3.0], [5.0]] * 5, [0, 0, 1, 1] * 5
        >>> learner = gaussian.fit, gaussian.predict
        >>> model = bagging.fit(jax.random.key(0), x, y, learner=learner)
        >>> bagging.predict_proba(model, [[0.0], [5.0]]).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if not model.num_classes:
        raise ValueError("model must be a classification, got a regression: use predict")
    return _average(model, x, None)


def members(model: Bagging, x: Num[ArrayLike, "m ..."]) -> Num[Array, "B m ..."]:
    """What each model says: to see how far they agree, or to average by another rule.

    Args:
        model: A fitted model.
        x: Rows, shape `(m, ...)`.

    Returns:
        The learner's outputs, shape `(B, m, ...)`.

    Example:
        >>> import jax
        >>> from mlnotes_jax.classification import gaussian
        >>> from mlnotes_jax.ensembles import bagging
        >>> x, y = [[0.0], [2.0], [3.0], [5.0]] * 5, [0, 0, 1, 1] * 5
        >>> learner = gaussian.fit, gaussian.predict
        >>> model = bagging.fit(jax.random.key(0), x, y, learner=learner, num_models=7)
        >>> bagging.members(model, [[0.0], [5.0]]).shape
        (7, 2)
    """
    x = _queries(model, x)
    if model.mode == "program":
        return _members(model, jnp.asarray(x))
    return jnp.stack([jnp.asarray(outputs) for outputs in _each(model, x)])


def out_of_bag(
    model: Bagging,
    x: Num[ArrayLike, "n ..."],
    y: Num[ArrayLike, " n"],
    *,
    sample_weight: Float[ArrayLike, " n"] | None = None,
) -> OutOfBag:
    r"""Judge the average by the models that have not seen the row.

    $$
    \bar f_{\text{oob}}(x_i) = \frac{\sum_b [c_{bi} = 0]\, f_b(x_i)}{\sum_b [c_{bi} = 0]}
    $$

    Args:
        model: A fitted model.
        x: The rows that it was fitted to, shape `(n, ...)`.
        y: Their targets.
        sample_weight: Their weights, as in `fit`.

    Returns:
        Answers, score, and how many models each answer rests on. The score is NaN under a
        transformation if no row has an answer.

    Raises:
        ValueError: The rows are not as many as were fitted, or every model was given every row.

    Example:
        >>> import jax
        >>> from mlnotes_jax.classification import gaussian
        >>> from mlnotes_jax.ensembles import bagging
        >>> x, y = [[0.0], [2.0], [3.0], [5.0]] * 5, [0, 0, 1, 1] * 5
        >>> learner = gaussian.fit, gaussian.predict
        >>> model = bagging.fit(jax.random.key(0), x, y, learner=learner)
        >>> float(bagging.out_of_bag(model, x, y).score)
        1.0

    Reference:
        Breiman, *Out-of-bag Estimation* (1996).

    Note:
        scikit-learn's `oob_score_` counts a row that every model was given as class 0, or as the
        number 0, with a warning; here it is left out.
    """
    task = "classification" if model.num_classes else "regression"
    data = _learners.rows(
        x, y, sample_weight, task=task, num_classes=model.num_classes or None, missing=True
    )
    if len(data.y) != model.counts.shape[1]:
        raise ValueError(
            f"x must be the {model.counts.shape[1]} rows that were fitted, got {len(data.y)}"
        )
    unseen = model.counts == 0
    num_models = unseen.sum(axis=0, dtype=jnp.int32)
    answered = (num_models > 0) & (data.weights() > 0)
    if _checks.is_concrete(answered) and not np.asarray(answered).any():
        raise ValueError(
            "model must have rows that some of its models were not given, got none: draw with "
            "replacement, or a fraction below 1"
        )
    average = _average(model, data.x, unseen)
    prediction = _best(average) if model.num_classes else average
    score = metrics.accuracy if model.num_classes else metrics.r2
    if model.num_classes:
        value = score(prediction, data.y, sample_weight=data.weights(), mask=answered)
    else:
        given = answered.reshape(-1, *(1,) * (average.ndim - 1))
        value = score(
            jnp.where(given, average, 0), jnp.where(given, data.y, 0),
            sample_weight=data.weights(), mask=answered,
        )  # fmt: skip
    return OutOfBag(average, prediction, value, num_models)


def draw_counts(
    key: Key[Array, ""],
    num_rows: int,
    *,
    num_models: int = 1,
    fraction: Float[ArrayLike, ""] = 1.0,
    replace: bool = True,
    sample_weight: Float[ArrayLike, " n"] | None = None,
) -> Int[Array, "B n"]:
    r"""Draw samples as whole-numbered weights of the rows.

    With replacement, m draws among n rows give counts with the multinomial distribution

    $$ P(c_1, \dots, c_n) = \frac{m!}{c_1! \cdots c_n!}\, n^{-m} , \qquad \textstyle\sum_i c_i = m ,
    $$

    so $c_i$ is 0 with probability $(1 - 1/n)^m$: for $m = n$ nearly $1/e$. Without replacement m of
    the counts are 1.

    Args:
        key: A key.
        num_rows: n, static.
        num_models: B, static.
        fraction: $m / n$ in (0, 1], rounded so that m is whole. Traced.
        replace: With replacement, or without; static.
        sample_weight: Rows of weight 0 are never drawn, and do not count in n; shape `(n,)`.

    Returns:
        Counts as int32, shape `(B, n)`.

    Raises:
        ValueError: A count is less than 1, `fraction` is not in (0, 1], or shapes do not fit.

    Example:
        >>> import jax
        >>> from mlnotes_jax.ensembles import bagging
        >>> counts = bagging.draw_counts(jax.random.key(0), 1000, num_models=3)
        >>> counts.sum(axis=1).tolist()
        [1000, 1000, 1000]
        >>> half = bagging.draw_counts(jax.random.key(0), 10, fraction=0.5, replace=False)
        >>> int(half.sum()), int(half.max())
        (5, 1)
    """
    _checks.positive_int("num_rows", num_rows)
    _checks.positive_int("num_models", num_models)
    fraction = _fraction(fraction)
    if sample_weight is None:
        return _draw(key, jnp.ones(num_rows, bool), fraction, num_models, bool(replace))
    weight = _checks.floating("sample_weight", sample_weight, ndim=1)
    if weight.shape != (num_rows,):
        raise ValueError(f"sample_weight must have shape ({num_rows},), got {weight.shape}")
    _checks.not_negative("sample_weight", weight)
    return _draw(key, weight > 0, fraction, num_models, bool(replace))


# --- Fits -----------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """Everything static: what a program is compiled for."""

    fit: Callable[..., Any]
    predict: Callable[[Any, Any], Any]
    options: tuple[tuple[str, Any], ...]
    num_models: int
    replace: bool
    num_features: int | None
    batch_models: int | None
    num_classes: int


@partial(jax.jit, static_argnames="plan")
def _fit_in_program(
    plan: _Plan, key: Array, x: Array, y: Array, weight: Array, fraction: Array
) -> tuple[Any, Array, Array | None]:
    x, y = _learners.blanked(x, weight), _learners.blanked(y, weight)
    counts, features, keys = _drawn(plan, key, weight > 0, fraction, x.shape)

    def one(drawn: Any) -> Any:
        count, columns, own_key = drawn
        part = x if columns is None else x[:, columns]
        own_weight = count.astype(weight.dtype) * weight
        fitted = _protocol.keyed(plan.fit)
        return fitted(own_key, part, y, sample_weight=own_weight, **dict(plan.options))

    return _over(one, (counts, features, keys), plan.batch_models), counts, features


def _fit_in_loop(
    plan: _Plan, key: Array, data: _learners.Rows, fraction: Array, weighted: bool
) -> tuple[Any, Array, Array | None]:
    present = data.present()
    counts, features, keys = _drawn_compiled(
        plan._replace(fit=_drawn, predict=_drawn), key, jnp.asarray(present), fraction, data.x.shape
    )
    weight = np.asarray(data.weights())
    if not weighted and not (weight[present] == 1).all():
        raise ValueError(
            "sample_weight must be 0 or 1 for a learner whose fit takes none, got "
            f"{weight[present][weight[present] != 1][0]}"
        )
    as_given = np.asarray if isinstance(data.x, np.ndarray) else jnp.asarray
    x, y, rows = data.x, as_given(data.y), np.flatnonzero(present)
    models = []
    for b in range(plan.num_models):
        options = dict(plan.options)
        count = np.asarray(counts[b])
        if weighted:  # the rows that count stay, drawn or not, so that shapes do not change
            drawn = rows
            options["sample_weight"] = as_given((count * weight)[rows].astype(weight.dtype))
        else:
            drawn = np.repeat(np.arange(len(count)), count)
        part = x[drawn] if features is None else x[drawn][:, np.asarray(features[b])]
        models.append(_protocol.keyed(plan.fit)(keys[b], part, y[drawn], **options))
    return tuple(models), counts, features


def _drawn(
    plan: _Plan, key: Array, present: Array, fraction: Array, shape: tuple[int, ...]
) -> tuple[Array, Array | None, Array]:
    """The counts, the columns and the keys of all models."""
    row_key, column_key, fit_key = jax.random.split(key, 3)
    counts = _draw(row_key, present, fraction, plan.num_models, plan.replace)
    features = None
    if plan.num_features is not None:

        def some(key: Array) -> Array:
            columns = jax.random.permutation(key, jnp.arange(shape[1], dtype=jnp.int32))
            return jnp.sort(columns[: plan.num_features])

        features = jax.lax.map(some, jax.random.split(column_key, plan.num_models))
    return counts, features, jax.random.split(fit_key, plan.num_models)


_drawn_compiled = jax.jit(_drawn, static_argnames=("plan", "shape"))


@partial(jax.jit, static_argnames=("num_models", "replace"))
def _draw(key: Array, present: Array, fraction: Array, num_models: int, replace: bool) -> Array:
    n = len(present)
    there = present.sum(dtype=jnp.int32)
    num_draws = jnp.round(fraction * there.astype(fraction.dtype)).astype(jnp.int32)
    num_draws = jnp.maximum(num_draws, 1)
    if replace:
        first = jnp.argsort(~present, stable=True)  # the rows that count come first
        counted = (jnp.arange(n, dtype=jnp.int32) < num_draws).astype(jnp.int32)

        def one(key: Array) -> Array:
            drawn = first[jax.random.randint(key, (n,), 0, there, jnp.int32)]
            return jnp.zeros(n, jnp.int32).at[drawn].add(counted)
    else:

        def one(key: Array) -> Array:
            order = jax.random.permutation(key, jnp.arange(n, dtype=jnp.int32))
            shuffled = present[order]
            taken = shuffled & (jnp.cumsum(shuffled, dtype=jnp.int32) <= num_draws)
            return jnp.zeros(n, jnp.int32).at[order].set(taken.astype(jnp.int32))

    return jax.lax.map(one, jax.random.split(key, num_models))


def _over(function: Callable[[Any], Any], places: Any, batch: int | None) -> Any:
    """Map over the leading axis: all at once, one after the other, or in batches."""
    if batch is None:
        return jax.vmap(function)(places)
    return jax.lax.map(function, places, batch_size=batch if batch > 1 else None)


# --- Answers --------------------------------------------------------------------------------------


def _average(model: Bagging, x: Any, counted: Array | None) -> Array:
    """Mean of the ballots over the models, or over those that are counted, shape `(B, m)`."""
    x = _queries(model, x)
    if model.mode == "program":
        return _average_in_program(model, jnp.asarray(x), counted)
    total, num = jnp.zeros(()), jnp.zeros(())
    for b, outputs in enumerate(_each(model, x)):
        use = None if counted is None else counted[b]
        more, one = _ballot(jnp.asarray(outputs), use, model.num_classes, len(x))
        total, num = (more, one) if b == 0 else (total + more, num + one)
    return total / num


@jax.jit
def _average_in_program(model: Bagging, x: Array, counted: Array | None) -> Array:
    def ballot(part: Any) -> tuple[Array, Array]:
        one, columns, use = part
        outputs = jnp.asarray(model.predict_one(one, x if columns is None else x[:, columns]))
        return _ballot(outputs, use, model.num_classes, len(x))

    parts = model.models, model.features, counted
    if model.batch_models is None:
        total, num = (leaf.sum(axis=0) for leaf in jax.vmap(ballot)(parts))
        return total / num

    def add(sums: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, ballot(part)), None

    first = jax.eval_shape(ballot, jax.tree.map(lambda leaf: leaf[0], parts))
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)
    (total, num), _ = jax.lax.scan(add, start, parts)
    return total / num


def _ballot(
    outputs: Array, counted: Array | None, num_classes: int, num_rows: int
) -> tuple[Array, Array]:
    """What one model puts into the average, and how often: 0 where it is not counted."""
    votes = jnp.issubdtype(outputs.dtype, jnp.integer)
    wanted = (num_rows,) if votes or not num_classes else (num_rows, num_classes)
    if num_classes and outputs.shape != wanted:
        raise ValueError(
            f"the learner's predict must give classes as integers, shape ({num_rows},), or "
            f"probabilities, shape ({num_rows}, {num_classes}), got {outputs.dtype} of shape "
            f"{outputs.shape}"
        )
    if outputs.shape[:1] != (num_rows,):
        raise ValueError(
            f"the learner's predict must give {num_rows} numbers, one for each row, got shape "
            f"{outputs.shape}"
        )
    if num_classes and votes:
        ballot = jax.nn.one_hot(outputs, num_classes)
    else:
        ballot = outputs.astype(jnp.result_type(float)) if votes else outputs
    num = jnp.ones(num_rows, ballot.dtype) if counted is None else counted.astype(ballot.dtype)
    num = num.reshape(-1, *(1,) * (ballot.ndim - 1))
    return jnp.where(num > 0, ballot, 0), num


@jax.jit
def _members(model: Bagging, x: Array) -> Array:
    def outputs(part: Any) -> Array:
        one, columns = part
        return jnp.asarray(model.predict_one(one, x if columns is None else x[:, columns]))

    return _over(outputs, (model.models, model.features), model.batch_models)


def _each(model: Bagging, x: Any) -> Any:
    for b, one in enumerate(model.models):
        part = x if model.features is None else x[:, np.asarray(model.features[b])]
        yield model.predict_one(one, part)


@jax.jit
def _best(average: Array) -> Array:
    answered = (average.sum(axis=-1) > 0) & ~jnp.isnan(average).any(axis=-1)
    return jnp.where(answered, average.argmax(axis=-1).astype(jnp.int32), -1)


def _queries(model: Bagging, x: Any) -> Any:
    x = x if isinstance(x, np.ndarray | jax.Array) else jnp.asarray(x)
    if x.ndim == 0:
        raise ValueError("x must have a row for each answer, got a scalar")
    if model.features is not None and x.ndim != 2:
        raise ValueError(f"x must be 2-D, since the models see some columns, got shape {x.shape}")
    return x


# --- What comes in --------------------------------------------------------------------------------


def _fraction(fraction: ArrayLike) -> Array:
    value = _checks.floating("fraction", fraction, ndim=0)
    _checks.positive("fraction", value)
    _checks.in_range("fraction", value, 0, 1)
    return value


def _check_num_features(num_features: int, shape: tuple[int, ...]) -> None:
    _checks.positive_int("num_features", num_features)
    if len(shape) != 2:
        raise ValueError(f"x must be 2-D for num_features, got shape {shape}")
    if num_features > shape[1]:
        raise ValueError(f"num_features must be at most {shape[1]}, got {num_features}")
