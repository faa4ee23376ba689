r"""Stacking: a second model learns how much to believe each of several first ones.

Base learners $f_1, \dots, f_p$ of any kind answer a row, and their answers are the features of a
meta-learner $g$, which predicts the target:

$$
z_i = \big( f_1^{(-k(i))}(x_i), \dots, f_p^{(-k(i))}(x_i) \big), \qquad
\hat g = \operatorname{fit}\big( \{ (z_i, y_i) \} \big), \qquad
\hat y(x) = \hat g\big( f_1(x), \dots, f_p(x) \big) .
$$

$f_j^{(-k)}$ is fitted without fold $k$, and $k(i)$ is the fold of row $i$: $g$ is trained on what
the base learners say about rows that they have not seen, for it will be asked about such rows.

Reference: Wolpert, *Stacked Generalization* (Neural Networks, 1992); Breiman, *Stacked
Regressions* (Machine Learning, 1996).
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, PyTree

from mlnotes_jax import _checks, _protocol
from mlnotes_jax.generalization import cross_validation

__all__ = ["Learner", "Stack", "blend", "features", "fit", "predict"]

Prepare = tuple[Callable[..., Any], Callable[..., Any]] | None


class Learner(NamedTuple):
    """How a model is fitted and what it answers.

    Attributes:
        fit: `fit(x, y, *, sample_weight) -> model`, or `fit(key, x, y, ...)`. Fix its settings by
            `functools.partial`; of a classifier, `num_classes` too.
        predict: `predict(model, x)`. Of a base learner: numbers, shape `(n,)` or `(n, c)`, such as
            predictions, probabilities or scores; no class codes, which are no quantities. Of a
            meta-learner: whatever the stack is to answer.
        prepare: A pair `(fit_state, apply)`, such as `(scaling.fit_standard, scaling.apply)`, that
            is fitted to the same rows as the model; None for none.
    """

    fit: Callable[..., Any]
    predict: Callable[[Any, Any], Any]
    prepare: Prepare = None


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["models", "meta", "training_features"],
    meta_fields=["learners", "meta_learner", "passthrough", "classes"],
)
@dataclasses.dataclass(frozen=True)
class Stack:
    """Fitted base learners, and the model of what they say.

    Attributes:
        models: The fit of each base learner, with the state of its preparation.
        meta: That of the meta-learner.
        training_features: What the meta-learner was fitted to, shape `(n, p)`: answers about rows
            that the base learners had not seen. 0 in rows that it was not fitted to.
        learners: Names and functions of the base learners; static.
        meta_learner: Those of the meta-learner; static.
        passthrough: Whether the columns of `x` are features, too; static.
        classes: Whether the targets were integers, class codes; static. Of a learner's two columns
            only the second is then a feature: the first, one minus it, would repeat it.
    """

    models: tuple[cross_validation.Final, ...]
    meta: cross_validation.Final
    training_features: Float[Array, "n p"]
    learners: tuple[tuple[str, Learner], ...]
    meta_learner: Learner
    passthrough: bool
    classes: bool


def fit(
    x: ArrayLike,
    y: ArrayLike,
    *,
    learners: Mapping[str, Learner],
    meta: Learner,
    folds: int | Int[ArrayLike, " n"] = 5,
    num_folds: int | None = None,
    passthrough: bool = False,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    key: Key[Array, ""] | None = None,
    mode: cross_validation.Mode = "auto",
    batch_folds: int | None = None,
) -> Stack:
    r"""Fit base learners out of fold, a meta-learner to what they say, and the former to all rows.

    1. $z_i$: each learner answers row $i$ from a fit to the other folds
       ([`out_of_fold`][mlnotes_jax.generalization.cross_validation.out_of_fold]).
    2. The meta-learner is fitted to $(z_i, y_i)$, $i = 1, \dots, n$.
    3. Each base learner is fitted once more, to all rows, for rows to come.

    Args:
        x: Rows, shape `(n, ...)`; `(n, d)` for `passthrough`.
        y: Numbers, or classes as integers, shape `(n,)`.
        learners: The base learners by name; a plain pair `(fit, predict)` will do.
        meta: The meta-learner, of features `(n, p)`.
        folds: The fold of each row, shape `(n,)`. Or K, static: then the rows are dealt out in turn
            in the order they have, those of each class by themselves.
        num_folds: As in `cross_validation.evaluate`; needed where `folds` are traced.
        passthrough: Whether the meta-learner sees the columns of `x`, too, after the answers;
            static.
        sample_weight: $w_i \ge 0$, shape `(n,)`; zero drops a row, which may then hold anything.
        key: For learners that draw; each has a key of its own.
        mode: As in `cross_validation.out_of_fold`.
        batch_folds: As in `cross_validation.out_of_fold`.

    Returns:
        The stack. All in all (K + 1) fits of each base learner, and one of the meta-learner.

    Raises:
        ValueError: Shapes do not fit, data are empty or not finite, a fold is empty, a learner
            answers with NaN or in a wrong shape, or what a `fit` raises.
        TypeError: `learners` is no such mapping, or a learner answers with integers.

    Example:
        >>> import functools
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.ensembles import stacking
        >>> from mlnotes_jax.foundations import linear_regression
        >>> constant = (lambda x, y: y.mean(), lambda mean, x: jnp.full(len(x), mean))
        >>> line = (linear_regression.fit, linear_regression.predict)
        >>> x = jnp.linspace(-1.0, 1.0, 8).reshape(8, 1)
        >>> stack = stacking.fit(
        ...     x, 3 * x[:, 0], learners={"constant": constant, "line": line}, meta=line, folds=4
        ... )
        >>> print(stacking.predict(stack, jnp.array([[0.5]])).round(4))
        [1.5]

    Reference:
        Wolpert (1992); Breiman (1996), section 1.

    Note:
        scikit-learn's `StackingClassifier` and `StackingRegressor`: the same features with the same
        folds (its integer `cv` cuts blocks), and the columns of `passthrough` behind them. With
        three classes or more the probabilities of a learner add up to 1, so that a linear
        meta-learner with an intercept needs a penalty for its weights to be unique.
    """
    job = _Job.checked(x, y, learners, meta, passthrough, sample_weight, key)
    fold, count = _folds(job, folds, num_folds)

    def unseen(name: str, learner: Learner, key: Any) -> tuple[Any, cross_validation.Final]:
        outputs = cross_validation.out_of_fold(
            learner.fit,
            _protocol.stable(partial(_said, name, learner.predict)),
            job.x,
            job.y,
            folds=fold,
            num_folds=count,
            prepare=learner.prepare,
            sample_weight=job.weight,
            key=_part(key, 0),
            mode=mode,
            batch_folds=batch_folds,
        )
        return outputs, _refit(learner, job.x, job.y, job.weight, _part(key, 1))

    return _stacked(job, unseen, job.weight)


def blend(
    x: ArrayLike,
    y: ArrayLike,
    *,
    learners: Mapping[str, Learner],
    meta: Learner,
    held_out: Bool[ArrayLike, " n"],
    passthrough: bool = False,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    key: Key[Array, ""] | None = None,
) -> Stack:
    """Fit base learners to one part of the rows, and the meta-learner to what they say of the rest.

    One fit of each learner instead of K + 1. The price: neither stage sees all rows. Rows are left
    out by weights of 0, so that shapes stay fixed and `held_out` may be traced and batched.

    Args:
        x: As in `fit`.
        y: As in `fit`.
        learners: As in `fit`; each must take `sample_weight`.
        meta: As in `fit`; likewise.
        held_out: Which rows the meta-learner is fitted to, shape `(n,)`. The others are for the
            base learners.
        passthrough: As in `fit`.
        sample_weight: As in `fit`.
        key: As in `fit`.

    Returns:
        The stack; its base learners have not seen the held-out rows.

    Raises:
        ValueError: As in `fit`, or one of the two parts holds no row of positive weight.
        TypeError: As in `fit`, or `held_out` is not Boolean, or a learner takes no weights.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.ensembles import stacking
        >>> from mlnotes_jax.foundations import linear_regression
        >>> line = (linear_regression.fit, linear_regression.predict)
        >>> x = jnp.linspace(-1.0, 1.0, 8).reshape(8, 1)
        >>> stack = stacking.blend(
        ...     x, 3 * x[:, 0], learners={"line": line}, meta=line, held_out=jnp.arange(8) % 2 == 0
        ... )
        >>> print(stacking.predict(stack, jnp.array([[0.5]])).round(4))
        [1.5]
    """
    job = _Job.checked(x, y, learners, meta, passthrough, sample_weight, key)
    for name, learner in (*job.learners, ("meta", job.meta)):
        if not _protocol.accepts(learner.fit, "sample_weight"):
            raise TypeError(f"the fit of {name!r} must take sample_weight: it leaves rows out")
    mask = held_out if isinstance(held_out, jax.Array) else np.asarray(held_out)
    if mask.dtype != np.bool_:
        raise TypeError(f"held_out must be a Boolean array, got dtype {mask.dtype}")
    if mask.shape != job.x.shape[:1]:
        raise ValueError(f"held_out must have shape {job.x.shape[:1]}, got {mask.shape}")
    weight = job.weight
    if weight is None:
        weight = jnp.ones(len(mask), job.dtype)
    fitted, judged = jnp.where(mask, 0, weight), jnp.where(mask, weight, 0)
    for name, part in (("without", fitted), ("within", judged)):
        if _checks.is_concrete(part) and not np.asarray(part).any():
            raise ValueError(f"held_out must leave a row of positive weight {name} it, got none")

    def unseen(name: str, learner: Learner, key: Any) -> tuple[Any, cross_validation.Final]:
        final = _refit(learner, job.x, job.y, fitted, key)
        return _said(name, partial(_answer, learner), final, job.x), final

    return _stacked(job, unseen, judged)


def features(model: Stack, x: ArrayLike) -> Float[Array, "n p"]:
    """What the base learners say of some rows: the input of the meta-learner.

    Of the rows that the base learners were fitted to, these are *not* the `training_features`.

    Args:
        model: A fitted stack.
        x: Rows, shape `(n, ...)`.

    Returns:
        A column for each answer, learner by learner, then those of `x` for `passthrough`. A
        meta-learner's other functions can be applied to it, such as
        `predict_proba(model.meta.model, features(model, x))`.

    Raises:
        ValueError: What the base learners raise.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.ensembles import stacking
        >>> from mlnotes_jax.foundations import linear_regression
        >>> line = (linear_regression.fit, linear_regression.predict)
        >>> x = jnp.linspace(-1.0, 1.0, 8).reshape(8, 1)
        >>> stack = stacking.fit(
        ...     x, 3 * x[:, 0], learners={"line": line}, meta=line, passthrough=True
        ... )
        >>> print(stacking.features(stack, jnp.array([[0.5]])).round(4))
        [[1.5 0.5]]
    """
    rows = _rows(x)
    answers = [
        _columns(_said(name, partial(_answer, learner), final, rows), model.classes)
        for (name, learner), final in zip(model.learners, model.models, strict=True)
    ]
    return _table(answers, rows, model.passthrough, model.training_features.dtype)


def predict(model: Stack, x: ArrayLike) -> PyTree:
    """What the meta-learner makes of what the base learners say.

    Args:
        model: A fitted stack.
        x: Rows, shape `(n, ...)`.

    Returns:
        The outputs of the meta-learner's `predict`.

    Raises:
        ValueError: What the learners raise.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.ensembles import stacking
        >>> from mlnotes_jax.foundations import linear_regression
        >>> line = (linear_regression.fit, linear_regression.predict)
        >>> x = jnp.linspace(-1.0, 1.0, 8).reshape(8, 1)
        >>> stack = stacking.fit(x, 3 * x[:, 0], learners={"line": line}, meta=line)
        >>> print(stacking.predict(stack, jnp.array([[1.0], [2.0]])).round(4))
        [3. 6.]
    """
    return _answer(model.meta_learner, model.meta, features(model, x))


# --- What comes in --------------------------------------------------------------------------------


class _Job(NamedTuple):
    """What both ways to stack are given, checked."""

    x: Any
    y: Any
    learners: tuple[tuple[str, Learner], ...]
    meta: Learner
    passthrough: bool
    weight: Array | None
    key: Any
    dtype: Any
    classes: bool

    @classmethod
    def checked(
        cls, x: Any, y: Any, learners: Any, meta: Any, passthrough: bool, weight: Any, key: Any
    ) -> "_Job":
        if not isinstance(learners, Mapping) or not learners:
            raise TypeError(f"learners must map names to (fit, predict), got {learners!r}")
        named = tuple(
            (str(name), _learner(f"learners[{name!r}]", one)) for name, one in learners.items()
        )
        meta = _learner("meta", meta)
        x, y = _rows(x), _rows(y)
        if y.ndim != 1 or x.ndim == 0 or len(x) != len(y):
            raise ValueError(f"x and y must have as many rows, got x {x.shape}, y {y.shape}")
        if passthrough and x.ndim != 2:
            raise ValueError(f"x must be 2-D for passthrough, got shape {x.shape}")
        if weight is not None:
            weight = _checks.floating("sample_weight", weight, ndim=1)
            if weight.shape != y.shape:
                raise ValueError(f"sample_weight must have shape {y.shape}, got {weight.shape}")
            x, y = _blanked(x, weight), _blanked(y, weight)
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize < 4:
            dtype = jnp.result_type(float)
        classes = jnp.issubdtype(y.dtype, jnp.integer)
        return cls(x, y, named, meta, passthrough, weight, key, dtype, classes)


def _learner(name: str, given: Any) -> Learner:
    """A learner whose functions are equal where what they do is: programs are found by them."""
    if not isinstance(given, tuple) or not 2 <= len(given) <= 3:
        raise TypeError(f"{name} must be (fit, predict) or a Learner, got {given!r}")
    fit, predict, prepare = Learner(*given)
    for what, function in (("fit", fit), ("predict", predict)):
        if not callable(function):
            raise TypeError(f"{what} of {name} must be callable, got {function!r}")
    if prepare is not None:
        if not isinstance(prepare, tuple) or len(prepare) != 2 or not all(map(callable, prepare)):
            raise TypeError(f"prepare of {name} must be two functions, got {prepare!r}")
        prepare = (_protocol.stable(prepare[0]), _protocol.stable(prepare[1]))
    return Learner(_protocol.stable(fit), _protocol.stable(predict), prepare)


def _rows(values: Any) -> Any:
    """An array as it came: a loop is to hand NumPy's to functions that know no others."""
    return values if isinstance(values, np.ndarray | jax.Array) else jnp.asarray(values)


def _blanked(values: Any, weight: Array) -> Any:
    """Zeros in rows of weight 0: they may hold anything, which times 0 may be NaN."""
    xp: Any = np if isinstance(values, np.ndarray) and _checks.is_concrete(weight) else jnp
    counted = (xp.asarray(weight) > 0).reshape(-1, *(1,) * (values.ndim - 1))
    return xp.where(counted, values, xp.zeros((), values.dtype))


def _folds(job: _Job, folds: Any, num_folds: int | None) -> tuple[Any, int | None]:
    if not isinstance(folds, int | np.integer) or isinstance(folds, bool):
        return folds, num_folds
    if num_folds not in (None, folds):
        raise ValueError(f"num_folds must be left out where folds is a number, got {num_folds}")
    if not job.classes:
        _checks.positive_int("folds", folds, least=2)
        return np.arange(len(job.x), dtype=np.int32) % folds, int(folds)
    return cross_validation.stratified_k_fold(None, job.y, num_folds=int(folds)), int(folds)


# --- What both do ---------------------------------------------------------------------------------


def _stacked(job: _Job, unseen: Callable[..., Any], weight: Array | None) -> Stack:
    """Collect what each learner says of rows it has not seen, and fit the meta-learner to it."""
    columns, finals = [], []
    for i, (name, learner) in enumerate(job.learners):
        outputs, final = unseen(name, learner, _part(job.key, i))
        columns.append(_columns(outputs, job.classes))
        _check_numbers(name, columns[-1], weight)
        finals.append(final)
    table = _table(columns, job.x, job.passthrough, job.dtype)
    if weight is not None:  # a row that does not count must not spoil what multiplies it by 0
        table = jnp.where((weight > 0)[:, None], table, 0)
    meta = _refit(job.meta, table, job.y, weight, _part(job.key, len(finals)))
    return Stack(tuple(finals), meta, table, job.learners, job.meta, job.passthrough, job.classes)


def _part(key: Any, i: int) -> Any:
    return None if key is None else jax.random.fold_in(key, i)


def _refit(learner: Learner, x: Any, y: Any, weight: Any, key: Any) -> cross_validation.Final:
    return cross_validation.refit(
        learner.fit, x, y, prepare=learner.prepare, sample_weight=weight, key=key
    )


def _answer(learner: Learner, final: cross_validation.Final, x: Any) -> Any:
    return learner.predict(
        final.model, x if learner.prepare is None else learner.prepare[1](final.state, x)
    )


def _said(name: str, predict: Callable[..., Any], model: Any, x: Any) -> Array:
    """The answers of one learner: numbers, with a row for each row."""
    outputs = predict(model, x)
    try:
        found = jnp.asarray(outputs)
    except TypeError as error:
        kind = type(outputs).__name__
        raise TypeError(f"learner {name!r} must predict an array of numbers, got {kind}") from error
    if found.ndim not in (1, 2) or found.shape[0] != len(x):
        raise ValueError(
            f"learner {name!r} must predict shape ({len(x)},) or ({len(x)}, c), got {found.shape}"
        )
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise TypeError(
            f"learner {name!r} must predict numbers, such as probabilities, got {found.dtype}: "
            "class codes are no quantities"
        )
    return found


def _columns(answers: Array, classes: bool) -> Array:
    if answers.ndim == 1:
        return answers[:, None]
    return answers[:, 1:] if classes and answers.shape[1] == 2 else answers


def _check_numbers(name: str, columns: Array, weight: Array | None) -> None:
    if not _checks.is_concrete((columns, weight)):
        return
    counted = np.ones(len(columns), bool) if weight is None else np.asarray(weight) > 0
    bad = np.flatnonzero(~np.isfinite(np.asarray(columns)).all(axis=1) & counted)
    if len(bad):
        value = np.asarray(columns)[bad[0]]
        raise ValueError(
            f"learner {name!r} must predict finite numbers, got {value[~np.isfinite(value)][0]} "
            f"in row {bad[0]}"
        )


def _table(columns: list[Array], x: Any, passthrough: bool, dtype: Any) -> Array:
    parts = [*columns, jnp.asarray(x)] if passthrough else columns
    return jnp.concatenate([part.astype(dtype) for part in parts], axis=1)
