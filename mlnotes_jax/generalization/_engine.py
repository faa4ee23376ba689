"""Fits without each fold, and what becomes of them: as one program, or one after the other.

In a program a fold is left out by weights of 0, so that shapes stay fixed. In a loop its rows are
cut out.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mlnotes_jax import _checks, _protocol

__all__ = [
    "Failure",
    "Job",
    "Plan",
    "job",
    "predict_in_loop",
    "predict_in_program",
    "prepared",
    "program",
    "score_in_loop",
    "score_in_program",
]

Prepare = tuple[Callable[..., Any], Callable[..., Any]] | None


class Failure(NamedTuple):
    """Why a setting has no score in a fold.

    Attributes:
        setting: Its number.
        fold: The number of the fold, that is of the column of `test_score`.
        reason: What the fit, the prediction or the score said.
    """

    setting: int
    fold: int
    reason: str


class Plan(NamedTuple):
    """Everything static: what a program is compiled for."""

    fit: Callable[..., Any]
    predict: Callable[..., Any] | None = None
    score: Callable[..., Any] | None = None
    prepare: Prepare = None
    num_folds: int = 0
    train_scores: bool = False
    path: bool = False
    warm_start: bool = False
    batch_folds: int | None = None
    batch_settings: int | None = 1


class Job(NamedTuple):
    """Everything else, checked."""

    x: Any
    y: Any
    weight: Array | None
    folds: Any
    settings: dict[str, Any]
    num_settings: int
    keys: Array | None

    def setting(self, i: Any) -> dict[str, Any]:
        """The i-th value of each."""
        return {name: values[i] for name, values in self.settings.items()}

    def weights(self) -> Array:
        """Ones where there are none, in a dtype that fits the rows."""
        if self.weight is not None:
            return self.weight
        dtype = jax.dtypes.canonicalize_dtype(self.x.dtype)
        wide = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize >= 4
        return jnp.ones(self.x.shape[0], dtype if wide else jnp.result_type(float))


# --- Checks ---------------------------------------------------------------------------------------


def job(
    plan: Plan,
    x: Any,
    y: Any,
    *,
    folds: Any = None,
    num_folds: int | None = None,
    repeats: bool = False,
    settings: Any = None,
    sample_weight: Any = None,
    key: Any = None,
) -> tuple[Plan, Job]:
    """Check everything that is not the business of the functions themselves."""
    _check_plan(plan)
    # Arrays stay what they are: a loop is to hand NumPy's to functions that know no others.
    x, y = (a if isinstance(a, np.ndarray | jax.Array) else jnp.asarray(a) for a in (x, y))
    if x.ndim == 0 or y.ndim == 0 or x.shape[0] != y.shape[0]:
        raise ValueError(f"x and y must have as many rows, got x {x.shape}, y {y.shape}")
    _checks.not_empty("x", x)
    weight = None
    if sample_weight is not None:
        weight = _checks.floating("sample_weight", sample_weight, ndim=1)
        if weight.shape != x.shape[:1]:
            raise ValueError(f"sample_weight must have shape {x.shape[:1]}, got {weight.shape}")
        _checks.finite("sample_weight", weight)
        _checks.not_negative("sample_weight", weight)
    _check_finite("x", x, weight)
    _check_finite("y", y, weight)
    values, num_settings = _settings(plan, settings)
    if folds is None:
        fold = np.zeros((1, x.shape[0]), np.int32)
    else:
        fold, num_folds = _folds(folds, num_folds, x.shape[0], weight, repeats)
        plan = plan._replace(num_folds=num_folds)
    keys = key
    if _protocol.takes_key(plan.fit):
        if key is None:
            raise ValueError("key must be given, since fit takes one, got None")
        if folds is not None:
            keys = jax.random.split(key, fold.shape[0] * plan.num_folds)
    elif folds is not None:
        keys = None
    return plan, Job(x, y, weight, fold, values, num_settings, keys)


def _check_plan(plan: Plan) -> None:
    functions = {"fit": plan.fit, "predict": plan.predict, "score": plan.score}
    for name, function in functions.items():
        if not callable(function) and (function is not None or name == "fit"):
            raise TypeError(f"{name} must be callable, got {function!r}")
    if plan.prepare is not None:
        pair = isinstance(plan.prepare, tuple) and len(plan.prepare) == 2
        if not pair or not all(map(callable, plan.prepare)):
            raise TypeError(f"prepare must be two functions (fit, apply), got {plan.prepare!r}")
    if plan.batch_folds is not None:
        _checks.positive_int("batch_folds", plan.batch_folds)
    if plan.batch_settings is not None:
        _checks.positive_int("batch_settings", plan.batch_settings)
    if plan.warm_start and not _protocol.accepts(plan.fit, "start"):
        raise TypeError("fit must take start for warm_start")
    if plan.warm_start and plan.batch_settings != 1:
        raise ValueError(f"batch_settings must be 1 for warm_start, got {plan.batch_settings}")


def _check_finite(name: str, array: Any, weight: Array | None) -> None:
    if not jnp.issubdtype(array.dtype, jnp.floating) or not _checks.is_concrete((array, weight)):
        return
    values: Any = array
    if weight is not None:  # a row of weight 0 may hold anything
        counted = (np.asarray(weight) > 0).reshape(-1, *(1,) * (array.ndim - 1))
        values = np.where(counted, np.asarray(array), 0)
    _checks.finite(name, values)


def _settings(plan: Plan, settings: Any) -> tuple[dict[str, Any], int]:
    if settings is None:
        if plan.path:
            raise ValueError("settings must be given for path, got None")
        return {}, 1
    if not isinstance(settings, Mapping) or not settings:
        raise TypeError(f"settings must map names to values, got {settings!r}")
    for name, values in settings.items():
        if not isinstance(values, list | tuple) and not np.ndim(values):
            raise ValueError(f"settings[{name!r}] must be an array or a list, got {values!r}")
    lengths = {name: len(values) for name, values in settings.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ValueError(f"settings must have as many values each, at least one, got {lengths}")
    if plan.path and (_lists(settings) or plan.warm_start):
        raise ValueError("path needs settings that are arrays, and no warm_start")
    return dict(settings), next(iter(lengths.values()))


def _lists(settings: Mapping[str, Any]) -> bool:
    return any(isinstance(values, list | tuple) for values in settings.values())


def _folds(
    folds: Any, num_folds: int | None, n: int, weight: Array | None, repeats: bool
) -> tuple[Any, int]:
    fold = _checks.integer("folds", folds, ndim=(1, 2) if repeats else 1)
    if fold.shape[-1] != n or fold.size == 0:
        shapes = f"({n},)" + (f" or (r, {n})" if repeats else "")
        raise ValueError(f"folds must have shape {shapes}, got {fold.shape}")
    if not _checks.is_concrete(folds):
        if num_folds is None:
            raise ValueError("num_folds must be given where folds are traced, got None")
        _checks.positive_int("num_folds", num_folds, least=2)
        return jnp.atleast_2d(fold.astype(jnp.int32)), num_folds
    known = np.atleast_2d(np.asarray(folds, np.int32))  # not a tracer, even under `jit`
    if num_folds is None:
        num_folds = int(known.max()) + 1
        if num_folds < 2:
            raise ValueError(f"folds must number two folds 0..K-1 at least, got {num_folds}")
    _checks.positive_int("num_folds", num_folds, least=2)
    _checks.class_labels("folds", np.reshape(known, np.shape(folds)), num_folds)
    if _checks.is_concrete(weight):
        counted = slice(None) if weight is None else np.asarray(weight) > 0
        for rows in known:
            sizes = np.bincount(rows[counted], minlength=num_folds)
            if not sizes.all():
                raise ValueError(
                    "folds must each hold a row of positive weight, got none in fold "
                    f"{sizes.argmin()} of 0..{num_folds - 1}"
                )
    return known, num_folds


def program(mode: str, plan: Plan, job: Job, compute: Callable[..., Any]) -> Any:
    """Compute a program where that is wanted and possible; None where it is to be a loop."""
    _checks.one_of("mode", mode, ("auto", "program", "loop"))
    data = job.x, job.y, job.weight, job.folds
    if mode != "loop":
        why_not = _obstacle(plan, job)
        if why_not and mode == "program":
            raise ValueError(f"mode must be 'loop', got 'program': {why_not}")
        if not why_not:
            values = {name: jnp.asarray(array) for name, array in job.settings.items()}
            fixed = plan._replace(
                **{name: _protocol.stable(getattr(plan, name)) for name in plan._fields[:3]},
                prepare=plan.prepare and tuple(map(_protocol.stable, plan.prepare)),
            )
            try:
                return compute(fixed, *data[:2], job.weights(), job.folds, job.keys, values)
            except _protocol.UNTRACEABLE:
                if mode == "program" or not _checks.is_concrete((data, values)):
                    raise
    if not _checks.is_concrete(data):
        raise TypeError("x, y, sample_weight and folds must be concrete for a loop, got tracers")
    return None


def _obstacle(plan: Plan, job: Job) -> str:
    if _lists(job.settings):
        return "settings are lists"
    functions = {"fit": plan.fit, "score": plan.score, "prepare": plan.prepare and plan.prepare[0]}
    for name, function in functions.items():
        if function is not None and not _protocol.accepts(function, "sample_weight"):
            return f"{name} takes no sample_weight, by which rows are left out"
    return ""


# --- A program ------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames="plan")
def score_in_program(
    plan: Plan, x: Array, y: Array, weight: Array, folds: Array, keys: Any, settings: dict[str, Any]
) -> tuple[Array, Array | None, Array]:
    """Test scores, training scores if wanted, and failures, each of shape `(m, r * K)`."""
    x, y = jnp.asarray(x), jnp.asarray(y)

    def one_fold(place: Any) -> tuple[Array, Array | None, Array]:
        fold, k, key = place
        train, test = jnp.where(fold == k, 0, weight), jnp.where(fold == k, weight, 0)
        _, z = prepared(plan.prepare, x, y, train)
        fitted = partial(_protocol.keyed(plan.fit), key, z, y, sample_weight=train)

        def judged(model: Any) -> tuple[Array, Array | None, Array]:
            outputs = plan.predict(model, z)  # type: ignore[misc]
            value = _score(plan, outputs, y, {"sample_weight": test})
            failed = _no_answer(outputs, y, test > 0) | ~jnp.isfinite(value)
            seen = None
            if plan.train_scores:
                seen = _score(plan, outputs, y, {"sample_weight": train})
            return jnp.where(failed, jnp.nan, value), seen, failed

        if plan.path:
            return jax.vmap(judged)(fitted(**settings))
        if not settings:
            return jax.tree.map(lambda leaf: leaf[None], judged(fitted()))
        if plan.warm_start:
            return _in_turn(fitted, judged, settings)
        return _over(lambda setting: judged(fitted(**setting)), settings, plan.batch_settings)

    # A batch of folds, each a loop over the settings, is a loop over the settings with the folds
    # batched inside: one pass over the rows serves all folds.
    found = _over(one_fold, _places(plan, folds, keys), plan.batch_folds)
    return jax.tree.map(jnp.transpose, found)


@partial(jax.jit, static_argnames="plan")
def predict_in_program(
    plan: Plan, x: Array, y: Array, weight: Array, folds: Array, keys: Any, settings: dict[str, Any]
) -> Any:
    """Outputs of each row, by the fit that has not seen it."""
    del settings
    x, y = jnp.asarray(x), jnp.asarray(y)

    def one_fold(place: Any) -> Any:
        fold, k, key = place
        train = jnp.where(fold == k, 0, weight)
        _, z = prepared(plan.prepare, x, y, train)
        model = _protocol.keyed(plan.fit)(key, z, y, sample_weight=train)
        return _for_each_row(plan.predict(model, z), len(x))  # type: ignore[misc]

    every = _over(one_fold, _places(plan, folds, keys), plan.batch_folds)
    rows = jnp.arange(folds.shape[1], dtype=jnp.int32)
    return jax.tree.map(lambda leaf: leaf[folds[0], rows], every)


def _for_each_row(outputs: Any, num_rows: int) -> Any:
    for leaf in jax.tree.leaves(outputs):
        if np.shape(leaf)[:1] != (num_rows,):
            raise ValueError(
                f"predict must return one output for each row: of {num_rows} rows it made an "
                f"array of shape {np.shape(leaf)}"
            )
    return outputs


def _places(plan: Plan, folds: Array, keys: Any) -> Any:
    repeats = folds.shape[0]
    numbers = jnp.tile(jnp.arange(plan.num_folds, dtype=jnp.int32), repeats)
    return jnp.repeat(folds, plan.num_folds, axis=0), numbers, keys


def _over(function: Callable[[Any], Any], places: Any, batch: int | None) -> Any:
    """Map over the leading axis: all at once, one after the other, or in batches."""
    if batch is None:
        return jax.vmap(function)(places)
    return jax.lax.map(function, places, batch_size=batch if batch > 1 else None)


def _in_turn(
    fitted: Callable[..., Any], judged: Callable[[Any], Any], settings: dict[str, Any]
) -> Any:
    """Each setting from the last model that did not fail; from zeros, if the first has failed."""

    def better(failed: Array, model: Any, start: Any) -> Any:
        return jax.tree.map(lambda new, old: jnp.where(failed, old, new), model, start)

    def step(start: Any, setting: dict[str, Any]) -> tuple[Any, Any]:
        model = fitted(**setting, start=start)
        found = judged(model)
        return better(found[2], model, start), found

    first = fitted(**{name: values[0] for name, values in settings.items()})
    found = judged(first)
    start = better(found[2], first, jax.tree.map(jnp.zeros_like, first))
    _, rest = jax.lax.scan(step, start, {name: values[1:] for name, values in settings.items()})
    return jax.tree.map(lambda one, others: jnp.concatenate([one[None], others]), found, rest)


# --- A loop ---------------------------------------------------------------------------------------


def score_in_loop(plan: Plan, job: Job) -> tuple[Array, Array | None, Array, tuple[Failure, ...]]:
    """As `score_in_program`, and the reasons of the failures."""
    shape = job.num_settings, len(job.folds) * plan.num_folds
    test, train = np.full(shape, np.nan), np.full(shape, np.nan)
    failures: list[Failure] = []
    errors: list[Exception] = []

    def fail(i: int, j: int, error: Exception) -> None:
        errors.append(error)
        failures.append(Failure(i, j, f"{type(error).__name__}: {error}"))

    for j in range(shape[1]):
        try:
            fold = _Fold(plan, job, j)
            models = fold.fitted(**job.settings) if plan.path else None
        except (ArithmeticError, ValueError) as error:
            for i in range(shape[0]):
                fail(i, j, error)
            continue
        start: dict[str, Any] = {}
        for i in range(shape[0]):
            try:
                if models is None:
                    model = fold.fitted(**job.setting(i), **start)
                else:
                    model = jax.tree.map(lambda leaf, i=i: leaf[i], models)
                test[i, j], train[i, j], reason = fold.judged(model)
            except (ArithmeticError, ValueError) as error:
                fail(i, j, error)
                continue
            if reason:
                test[i, j] = np.nan
                failures.append(Failure(i, j, reason))
            elif plan.warm_start:
                start = {"start": model}
    if len(errors) == test.size:
        raise errors[0]
    dtype = job.weights().dtype
    return (
        jnp.asarray(test, dtype),
        jnp.asarray(train, dtype) if plan.train_scores else None,
        jnp.asarray(np.isnan(test)),
        tuple(sorted(failures)),
    )


def predict_in_loop(plan: Plan, job: Job) -> Any:
    """As `predict_in_program`."""
    parts = []
    for k in range(plan.num_folds):
        fold = _Fold(plan, job, k, everyone=True)
        outputs = plan.predict(fold.fitted(), fold.test[0])  # type: ignore[misc]
        parts.append(_for_each_row(outputs, len(fold.test[1])))
    back = np.argsort(np.argsort(np.asarray(job.folds[0]), kind="stable"))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[back], *parts)


class _Fold:
    """The rows of one fold, cut out."""

    def __init__(self, plan: Plan, job: Job, place: int, *, everyone: bool = False) -> None:
        repeat, k = divmod(place, plan.num_folds)
        out = np.asarray(job.folds[repeat]) == k
        counted = np.ones(len(out), bool)
        weight: Any = job.weight
        if weight is not None:
            weight = np.asarray(weight) if isinstance(job.x, np.ndarray) else weight
            counted = np.asarray(weight) > 0
            if (np.asarray(weight)[counted] == 1).all():
                weight = None  # functions need not know of weights where there are none

        def part(rows: np.ndarray) -> tuple[Any, Any, dict[str, Any]]:
            index = np.flatnonzero(rows)
            options = {} if weight is None else {"sample_weight": weight[index]}
            return job.x[index], job.y[index], options

        x, y, options = part(~out & counted)
        state, x = prepared(plan.prepare, x, y, options.get("sample_weight"))
        self.train = x, y, options
        x, y, options = part(out if everyone else out & counted)
        self.test = plan.prepare[1](state, x) if plan.prepare else x, y, options
        self.plan, self.key = plan, None if job.keys is None else job.keys[place]

    def fitted(self, **setting: Any) -> Any:
        x, y, options = self.train
        return _protocol.keyed(self.plan.fit)(self.key, x, y, **options, **setting)

    def judged(self, model: Any) -> tuple[float, float, str]:
        """The score on the test rows, on the training rows if wanted, and what went wrong."""
        x, y, options = self.test
        outputs = self.plan.predict(model, x)  # type: ignore[misc]
        value, seen = float(_score(self.plan, outputs, y, options)), np.nan
        if self.plan.train_scores:
            x_train, y_train, weights = self.train
            again = self.plan.predict(model, x_train)  # type: ignore[misc]
            seen = float(_score(self.plan, again, y_train, weights))
        reason = "" if np.isfinite(value) else f"the score is {value}"
        if _no_answer(outputs, y, True, np):
            reason = "a prediction is no number, or no class"
        return value, seen, reason


# --- Shared ---------------------------------------------------------------------------------------


def prepared(prepare: Prepare, x: Any, y: Any, weight: Any) -> tuple[Any, Any]:
    """What the preparation has learnt from the rows, and the rows as it makes them."""
    if prepare is None:
        return None, x
    options = {} if weight is None else {"sample_weight": weight}
    if _protocol.named(prepare[0], "y"):
        options["y"] = y
    state = prepare[0](x, **options)
    return state, prepare[1](state, x)


def _score(plan: Plan, outputs: Any, y: Any, options: dict[str, Any]) -> Array:
    value = jnp.asarray(plan.score(outputs, y, **options))  # type: ignore[misc]
    if value.shape != ():
        raise ValueError(f"score must return a scalar, got shape {value.shape}")
    return value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(float)


def _no_answer(outputs: Any, y: Any, counted: Any, xp: Any = jnp) -> Any:
    """Whether a row that counts is predicted NaN; or a class below 0, which no label is."""
    found, y = xp.asarray(False), xp.asarray(y)
    whole = jnp.issubdtype(y.dtype, jnp.signedinteger)
    for leaf in map(xp.asarray, jax.tree.leaves(outputs)):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            bad = xp.isnan(leaf)
        elif whole and jnp.issubdtype(leaf.dtype, jnp.signedinteger):
            bad = (leaf < 0) & (y.min() >= 0)
        else:
            continue
        found |= (bad.reshape(len(leaf), -1).any(axis=1) & counted).any()
    return found
