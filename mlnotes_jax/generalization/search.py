r"""Search: which settings give the best score on rows that were not fitted?

A setting $\lambda$ (a penalty, a learning rate, a depth) is chosen from a space $\Lambda$ by the
mean score over the folds of a [cross-validation][mlnotes_jax.generalization.cross_validation],

$$\hat\lambda = \arg\max_{\lambda \in \{\lambda_1, \dots, \lambda_m\}}
  \frac1K \sum_{k=1}^K S\big(f_{\lambda, -k},\, \text{fold } k\big) ,$$

where $f_{\lambda, -k}$ was fitted without fold $k$. What differs between the methods is where the
$\lambda_i$ come from: a grid, a draw, a draw that closes in on the best (coarse to fine), many with
little effort and few with much (successive halving), or a model of the scores so far (Bayesian, by
Optuna, in a study on disk that several processes share).

Real settings are arguments of one compiled program, which fits them all; others (integers, text)
are static, and each of their combinations is a program of its own.

Reference: Bergstra and Bengio, *Random Search for Hyper-Parameter Optimization* (JMLR, 2012).
"""

import functools
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, PyTree

from mlnotes_jax import _checks, _protocol
from mlnotes_jax.generalization import _spaces, cross_validation
from mlnotes_jax.generalization._spaces import (
    Choice,
    Range,
    choice,
    integer,
    log_uniform,
    uniform,
)
from mlnotes_jax.generalization._study import Trial, best_trial, create_study, trials, work

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Border",
    "Choice",
    "CoarseToFine",
    "Halving",
    "Range",
    "Rung",
    "Search",
    "Trial",
    "best_trial",
    "chance_of_top",
    "choice",
    "coarse_to_fine",
    "create_study",
    "expected_improvement",
    "grid",
    "grid_points",
    "halving_plan",
    "integer",
    "listed",
    "log_uniform",
    "plot",
    "random",
    "sample",
    "save_scored",
    "scored",
    "successive_halving",
    "trials",
    "uniform",
    "work",
]

Space = _spaces.Space
Settings = dict[str, Any]
Folder = str | os.PathLike[str]

#: The best value is at the edge of a range if it is in this share of its scale next to an end.
EDGE = 0.05


class Border(NamedTuple):
    """A best value at the edge of its range: a better one may lie beyond.

    Attributes:
        name: Of the setting.
        value: The best one.
        side: `"lower"` or `"upper"` end.
        low: Lower end of the range.
        high: Upper end.
    """

    name: str
    value: float
    side: Literal["lower", "upper"]
    low: float
    high: float

    def __str__(self) -> str:
        """The warning in words."""
        return (
            f"the best {self.name}, {self.value:.4g}, is at the {self.side} end of "
            f"[{self.low:.4g}, {self.high:.4g}]: a better one may lie beyond, widen the range"
        )


class Search(NamedTuple):
    """Settings, and how they scored.

    Attributes:
        space: Name to dimension.
        settings: Name to the values that were tried: an array of shape `(m,)` where they are
            traced, else a list of m.
        scores: Of each setting on each fold, larger is better, shape `(m, folds)`; NaN where a
            setting has failed.
        standard_error: Of the mean over the folds, a little too small since the folds share rows,
            shape `(m,)`; see `cross_validation.standard_error`.
        reasons: Why a setting has failed; empty where it has not.
        borders: Settings whose best value is at the edge of its range.
    """

    space: dict[str, _spaces.Dimension]
    settings: Settings
    scores: Float[np.ndarray, "m folds"]
    standard_error: Float[np.ndarray, " m"]
    reasons: tuple[str, ...]
    borders: tuple[Border, ...]

    @property
    def failed(self) -> Bool[np.ndarray, " m"]:
        """Which settings have failed, shape `(m,)`."""
        return np.array([bool(reason) for reason in self.reasons])

    @property
    def mean_score(self) -> Float[np.ndarray, " m"]:
        """Mean over the folds, shape `(m,)`; NaN where a setting has failed."""
        return self.scores.mean(axis=1)

    @property
    def best_index(self) -> int:
        """Place of the largest mean score, the first of equals."""
        return int(np.nanargmax(self.mean_score))

    @property
    def best(self) -> Settings:
        """The settings with the largest mean score."""
        return _row(self.settings, self.best_index)

    @property
    def best_score(self) -> float:
        """The largest mean score."""
        return float(self.mean_score[self.best_index])

    def table(self) -> list[dict[str, Any]]:
        """One row for each setting, the best first and those that failed last."""
        mean, error = self.mean_score, self.standard_error
        order = sorted(range(len(mean)), key=lambda i: (self.failed[i], -np.nan_to_num(mean[i])))
        return [
            {
                **_row(self.settings, i),
                "score": float(mean[i]),
                "standard error": float(error[i]),
                "failed because": self.reasons[i],
            }
            for i in order
        ]


class CoarseToFine(NamedTuple):
    """A search in stages.

    Attributes:
        stages: Each with the part of the space that it drew from. Its `borders` are those of the
            whole space.
    """

    stages: tuple[Search, ...]

    @property
    def best(self) -> Settings:
        """The best settings of the last stage, which has tried the best of each stage before."""
        return self.stages[-1].best

    @property
    def best_score(self) -> float:
        """Their mean score."""
        return self.stages[-1].best_score

    @property
    def borders(self) -> tuple[Border, ...]:
        """Which of them are at an edge of the whole space."""
        return self.stages[-1].borders


class Rung(NamedTuple):
    """A step of successive halving.

    Attributes:
        num_settings: How many are tried.
        budget: What each may use: rows, or steps.
    """

    num_settings: int
    budget: int

    @property
    def cost(self) -> int:
        """The product."""
        return self.num_settings * self.budget


class Halving(NamedTuple):
    """A search that gives most of the effort to few.

    Attributes:
        plan: The rungs.
        rungs: What was found on each.
        survivors: For each rung, which of the first settings were on it.
    """

    plan: tuple[Rung, ...]
    rungs: tuple[Search, ...]
    survivors: tuple[Int[np.ndarray, " m"], ...]

    @property
    def best(self) -> Settings:
        """The best settings of the last rung."""
        return self.rungs[-1].best

    @property
    def best_score(self) -> float:
        """Their mean score, with the largest budget."""
        return self.rungs[-1].best_score

    @property
    def cost(self) -> int:
        """Sum over the rungs of settings times budget."""
        pairs = zip(self.survivors, self.plan, strict=True)
        return sum(len(tried) * rung.budget for tried, rung in pairs)

    @property
    def full_cost(self) -> int:
        """What all settings with the largest budget would have cost."""
        return self.plan[0].num_settings * self.plan[-1].budget


# --- Settings -------------------------------------------------------------------------------------


def sample(key: Key[Array, ""], space: Space, num_settings: int) -> Settings:
    r"""Draw settings, each name independently on its own scale.

    Args:
        key: A key.
        space: Name to dimension.
        num_settings: m, static.

    Returns:
        Name to m values: a float64 NumPy array where they are traced, else a list.

    Raises:
        ValueError: The space is empty or names a setting twice, or `num_settings` is less than 1.
        TypeError: The space is no mapping from names to dimensions.

    Example:
        >>> import jax
        >>> from mlnotes_jax.generalization import search
        >>> space = {"rate": search.log_uniform(1e-4, 1.0), "depth": search.integer(1, 4)}
        >>> drawn = search.sample(jax.random.key(0), space, 3)
        >>> drawn["rate"].shape, len(drawn["depth"])
        ((3,), 3)
    """
    dimensions = _spaces.checked(space)
    _checks.positive_int("num_settings", num_settings)
    place = np.asarray(jax.random.uniform(key, (len(dimensions), num_settings)), float)
    return {
        name: _spaces.column(dimension, dimension.at(row))
        for (name, dimension), row in zip(dimensions.items(), place, strict=True)
    }


def grid_points(space: Space, num_points: int | Mapping[str, int] = 5) -> Settings:
    """Every combination of equidistant values, the last name running fastest.

    Args:
        space: Name to dimension. Of a `choice` all options are taken.
        num_points: How many values of each range, from end to end, or for each name; of an
            `integer`, fewer where two round to one.

    Returns:
        As `sample`.

    Raises:
        ValueError: The space is empty or names a setting twice, or a count is less than 1, or
            `num_points` leaves a range out or has an unknown name.
        TypeError: The space is no mapping from names to dimensions, or a count no integer.

    Example:
        >>> from mlnotes_jax.generalization import search
        >>> space = {"C": search.log_uniform(0.1, 10.0), "loss": search.choice(["hinge", "log"])}
        >>> points = search.grid_points(space, 2)
        >>> points["C"].tolist(), points["loss"]
        ([0.1, 0.1, 10.0, 10.0], ['hinge', 'log', 'hinge', 'log'])
    """
    dimensions = _spaces.checked(space)
    ranges = [name for name, dimension in dimensions.items() if isinstance(dimension, Range)]
    if isinstance(num_points, Mapping):
        counts = dict(num_points)
        if sorted(counts) != sorted(ranges):
            raise ValueError(f"num_points must name the ranges {ranges}, got {list(counts)}")
    else:
        counts = dict.fromkeys(ranges, num_points)
    for count in [num_points] if not isinstance(num_points, Mapping) else counts.values():
        _checks.positive_int("num_points", count)
    return _spaces.product(dimensions, counts)


# --- Searches -------------------------------------------------------------------------------------


def listed(
    fit: Callable[..., Any],
    predict: Callable[..., Any],
    score: Callable[..., Any],
    x: Float[ArrayLike, "n ..."],
    y: ArrayLike,
    space: Space,
    settings: Mapping[str, Any],
    *,
    folds: Int[ArrayLike, "*repeats n"],
    **options: Any,
) -> Search:
    """Score settings that you list.

    Args:
        fit: `fit(x, y, *, sample_weight, **settings) -> model`, or with a key first.
        predict: `predict(model, x)`.
        score: `score(outputs, y, *, sample_weight)`, larger is better. Give the negative of a loss.
        x: Rows, shape `(n, ...)`.
        y: Targets, shape `(n,)`.
        space: Name to dimension: where the values come from, for the warning about edges.
        settings: Name to m values.
        folds: The fold of each row, from `cross_validation`; shape `(n,)`.
        options: More for `cross_validation.evaluate`: `key`, `prepare`, `sample_weight`,
            `num_folds`, `mode`.

    Returns:
        Scores of all settings.

    Raises:
        ValueError: All settings have failed; the message says why the first did. Or `settings` are
            none, or of different numbers, or have other names than `space`.
        TypeError: The space is no mapping from names to dimensions.

    Example:
        >>> from mlnotes_jax.data import datasets
        >>> from mlnotes_jax.foundations import linear_regression as lr
        >>> from mlnotes_jax.generalization import cross_validation, metrics, search
        >>> x, y, *_ = datasets.load("diabetes")
        >>> folds = cross_validation.k_fold(None, len(y), num_folds=5)
        >>> space = {"ridge": search.log_uniform(1e-4, 1e2)}
        >>> found = search.listed(
        ...     lr.fit, lr.predict, metrics.r2, x, y, space, {"ridge": [0.01, 1.0]}, folds=folds
        ... )
        >>> found.scores.shape
        (2, 5)
    """
    dimensions = _spaces.checked(space)
    if sorted(settings) != sorted(dimensions):
        raise ValueError(f"settings must have the names {list(dimensions)}, got {list(settings)}")
    columns = {name: _spaces.column(dimensions[name], settings[name]) for name in dimensions}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ValueError(f"settings must have as many values of each, at least one, got {lengths}")
    return _search(fit, predict, score, x, y, dimensions, columns, {"folds": folds, **options})


def grid(
    fit: Callable[..., Any],
    predict: Callable[..., Any],
    score: Callable[..., Any],
    x: Float[ArrayLike, "n ..."],
    y: ArrayLike,
    space: Space,
    *,
    folds: Int[ArrayLike, "*repeats n"],
    num_points: int | Mapping[str, int] = 5,
    **options: Any,
) -> Search:
    """Score every combination of equidistant values.

    Args:
        fit: As in `listed`.
        predict: As in `listed`.
        score: As in `listed`.
        x: As in `listed`.
        y: As in `listed`.
        space: As in `listed`.
        folds: As in `listed`.
        num_points: As in `grid_points`.
        options: As in `listed`.

    Returns:
        Scores of all combinations.

    Raises:
        ValueError: As `grid_points` and `listed`.
        TypeError: As `grid_points` and `listed`.

    Example:
        >>> from mlnotes_jax.data import datasets
        >>> from mlnotes_jax.foundations import linear_regression as lr
        >>> from mlnotes_jax.generalization import cross_validation, metrics, search
        >>> x, y, *_ = datasets.load("diabetes")
        >>> folds = cross_validation.k_fold(None, len(y), num_folds=5)
        >>> space = {"ridge": search.log_uniform(1e-5, 10.0)}
        >>> found = search.grid(lr.fit, lr.predict, metrics.r2, x, y, space, folds=folds)
        >>> found.best["ridge"] < 1, found.borders
        (True, ())

    Note:
        scikit-learn's `GridSearchCV`, which does not say when the best is at an edge.
    """
    points = grid_points(space, num_points)
    dimensions = _spaces.checked(space)
    return _search(fit, predict, score, x, y, dimensions, points, {"folds": folds, **options})


def random(
    key: Key[Array, ""],
    fit: Callable[..., Any],
    predict: Callable[..., Any],
    score: Callable[..., Any],
    x: Float[ArrayLike, "n ..."],
    y: ArrayLike,
    space: Space,
    *,
    folds: Int[ArrayLike, "*repeats n"],
    num_settings: int,
    **options: Any,
) -> Search:
    r"""Score settings drawn at random, each name independently on its own scale.

    The chance that one of $m$ draws is among the best share $q$ of the space is $1 - (1 - q)^m$,
    whatever the number of names; see `chance_of_top`.

    Args:
        key: Draws the settings, and goes on to a fit that takes a key.
        fit: As in `listed`.
        predict: As in `listed`.
        score: As in `listed`.
        x: As in `listed`.
        y: As in `listed`.
        space: As in `listed`.
        folds: As in `listed`.
        num_settings: m; static.
        options: As in `listed`, without `key`.

    Returns:
        Scores of all draws.

    Raises:
        ValueError: As `sample` and `listed`.
        TypeError: As `sample` and `listed`.

    Example:
        >>> import jax
        >>> from mlnotes_jax.data import datasets
        >>> from mlnotes_jax.foundations import linear_regression as lr
        >>> from mlnotes_jax.generalization import cross_validation, metrics, search
        >>> x, y, *_ = datasets.load("diabetes")
        >>> folds = cross_validation.k_fold(None, len(y), num_folds=5)
        >>> found = search.random(
        ...     jax.random.key(0), lr.fit, lr.predict, metrics.r2, x, y,
        ...     {"ridge": search.log_uniform(1e-3, 1e3)}, folds=folds, num_settings=16,
        ... )
        >>> len(found.table()), found.best["ridge"] < 1
        (16, True)

    Note:
        scikit-learn's `RandomizedSearchCV`.
    """
    draw_key, fit_key = jax.random.split(key)
    settings = sample(draw_key, space, num_settings)
    options = {"folds": folds, **options, **_fit_key(fit, fit_key)}
    return _search(fit, predict, score, x, y, _spaces.checked(space), settings, options)


def coarse_to_fine(
    key: Key[Array, ""],
    fit: Callable[..., Any],
    predict: Callable[..., Any],
    score: Callable[..., Any],
    x: Float[ArrayLike, "n ..."],
    y: ArrayLike,
    space: Space,
    *,
    folds: Int[ArrayLike, "*repeats n"],
    num_settings: int,
    stages: int | Sequence[Mapping[str, Any]] = 3,
    shrink: float = 0.3,
    **options: Any,
) -> CoarseToFine:
    r"""Search at random, then again in a smaller space about the best, and so on.

    Each stage draws from a window of each range, centred at the best value of the stage before and
    cut off at the ends. The window is $\gamma$ times as wide as the last one if smaller and larger
    values were tried, and as wide if the best was the smallest or the largest: then it only moves.
    Of a `choice` the best option stays. The best of a stage takes part in the next one, so that no
    stage ends below the one before, if their fits are the same.

    Args:
        key: As in `random`.
        fit: As in `listed`.
        predict: As in `listed`.
        score: As in `listed`.
        x: As in `listed`.
        y: As in `listed`.
        space: As in `listed`.
        folds: As in `listed`.
        num_settings: In each stage; static.
        stages: How many; or more arguments for the fit, for each stage: short training first, long
            training last, as in `({"num_steps": 50}, {"num_steps": 500})`.
        shrink: $\gamma$, in (0, 1); static.
        options: As in `random`.

    Returns:
        All stages.

    Raises:
        ValueError: As `random`; or an argument is out of range.
        TypeError: As `random`.

    Example:
        >>> import jax
        >>> from mlnotes_jax.data import datasets
        >>> from mlnotes_jax.foundations import linear_regression as lr
        >>> from mlnotes_jax.generalization import cross_validation, metrics, search
        >>> x, y, *_ = datasets.load("diabetes")
        >>> folds = cross_validation.k_fold(None, len(y), num_folds=5)
        >>> found = search.coarse_to_fine(
        ...     jax.random.key(0), lr.fit, lr.predict, metrics.r2, x, y,
        ...     {"ridge": search.log_uniform(1e-5, 1e5)}, folds=folds, num_settings=8,
        ... )
        >>> scores = [stage.best_score for stage in found.stages]
        >>> len(scores), scores == sorted(scores)
        (3, True)
    """
    dimensions = _spaces.checked(space)
    if not 0 < shrink < 1:
        raise ValueError(f"shrink must be in (0, 1), got {shrink}")
    if isinstance(stages, Sequence):
        extras = [dict(stage) for stage in stages]
        if not extras:
            raise ValueError("stages must not be empty")
    else:
        _checks.positive_int("stages", stages)
        extras = [{}] * stages
    _checks.positive_int("num_settings", num_settings, least=2)
    fit_key, *keys = jax.random.split(key, len(extras) + 1)
    options = {"folds": folds, **options, **_fit_key(fit, fit_key)}
    found, window = [], dimensions
    widths = dict.fromkeys(dimensions, 1.0)
    for s, (draw_key, extra) in enumerate(zip(keys, extras, strict=True)):
        settings = sample(draw_key, window, num_settings - min(s, 1))
        if s:
            best = found[-1].best
            settings = {n: _spaces.column(d, [best[n], *settings[n]]) for n, d in window.items()}
        more = functools.partial(fit, **extra) if extra else fit
        stage = _search(more, predict, score, x, y, dimensions, settings, options)
        found.append(stage._replace(space=window))
        window = {}
        for name, dimension in dimensions.items():
            value, tried = stage.best[name], settings[name]
            if isinstance(dimension, Range) and min(tried) < value < max(tried):
                widths[name] *= shrink
            window[name] = dimension.around(value, widths[name])
    return CoarseToFine(tuple(found))


def halving_plan(
    num_settings: int, *, min_budget: int, max_budget: int, factor: int = 3
) -> tuple[Rung, ...]:
    r"""Say how many settings get how much, when all but one in $\eta$ are dropped each time.

    $$
    m_s = \lfloor m_0 / \eta^s \rfloor, \qquad r_s = \min(r_0\, \eta^s,\, R) ,
    $$

    until the budget is $R$. Where one setting is left it gets $R$ at once.

    Args:
        num_settings: $m_0$.
        min_budget: $r_0$, of each at the beginning.
        max_budget: $R$, of the last ones.
        factor: $\eta$.

    Returns:
        The rungs. If $R = r_0\, \eta^S$ and $\eta^S$ divides $m_0$ each costs $m_0\, r_0$.

    Raises:
        ValueError: A count is too small, or `max_budget` is below `min_budget`.
        TypeError: A count is no integer.

    Example:
        >>> from mlnotes_jax.generalization import search
        >>> [tuple(rung) for rung in search.halving_plan(27, min_budget=10, max_budget=270)]
        [(27, 10), (9, 30), (3, 90), (1, 270)]
    """
    _checks.positive_int("num_settings", num_settings)
    _checks.positive_int("min_budget", min_budget)
    _checks.positive_int("max_budget", max_budget, least=min_budget)
    _checks.positive_int("factor", factor, least=2)
    rungs = [Rung(num_settings, min_budget)]
    while rungs[-1].budget < max_budget:
        count = max(1, rungs[-1].num_settings // factor)
        budget = min(rungs[-1].budget * factor, max_budget)
        rungs.append(Rung(count, max_budget if count == 1 else budget))
    return tuple(rungs)


def successive_halving(
    key: Key[Array, ""],
    fit: Callable[..., Any],
    predict: Callable[..., Any],
    score: Callable[..., Any],
    x: Float[ArrayLike, "n ..."],
    y: ArrayLike,
    space: Space,
    *,
    folds: Int[ArrayLike, " n"],
    num_settings: int,
    min_budget: int,
    max_budget: int | None = None,
    factor: int = 3,
    budget: str = "rows",
    **options: Any,
) -> Halving:
    """Draw many settings, give each a little, drop most, and give the rest more.

    Right where a small budget orders settings much as a large one does.

    Args:
        key: As in `random`; draws the order of the rows, too.
        fit: As in `listed`.
        predict: As in `listed`.
        score: As in `listed`.
        x: As in `listed`.
        y: As in `listed`.
        space: As in `listed`.
        folds: As in `listed`, shape `(n,)`.
        num_settings: On the first rung.
        min_budget: On the first rung.
        max_budget: On the last rung; all rows, by default.
        factor: One in so many goes on to the next rung, and gets so many times as much.
        budget: `"rows"`: so many rows take part, the same share of each fold, held out as well as
            fitted; each rung keeps those of the rung before. Otherwise the name of an argument of
            `fit`, such as `"num_steps"`, that takes an integer; then give `max_budget`.
        options: As in `random`.

    Returns:
        The rungs, and what was found on each.

    Raises:
        ValueError: As `random` and `halving_plan`; or `max_budget` is more than the rows, or left
            out where the budget is not in rows.
        TypeError: As `random`.

    Example:
        >>> import jax
        >>> from mlnotes_jax.data import datasets
        >>> from mlnotes_jax.foundations import linear_regression as lr
        >>> from mlnotes_jax.generalization import cross_validation, metrics, search
        >>> x, y, *_ = datasets.load("diabetes")
        >>> folds = cross_validation.k_fold(None, len(y), num_folds=5)
        >>> found = search.successive_halving(
        ...     jax.random.key(0), lr.fit, lr.predict, metrics.r2, x, y,
        ...     {"ridge": search.log_uniform(1e-5, 1e5)},
        ...     folds=folds, num_settings=9, min_budget=50,
        ... )
        >>> [tuple(rung) for rung in found.plan]
        [(9, 50), (3, 150), (1, 442)]

    Reference:
        Jamieson and Talwalkar, *Non-stochastic Best Arm Identification and Hyperparameter
        Optimization* (AISTATS, 2016).

    Note:
        scikit-learn's `HalvingRandomSearchCV`, which rounds up the number that goes on.
    """
    dimensions = _spaces.checked(space)
    fold = np.asarray(_checks.integer("folds", folds, ndim=1))
    if max_budget is None:
        if budget != "rows":
            raise ValueError(f"max_budget must be given for a budget in {budget}, got None")
        max_budget = len(fold)
    plan = halving_plan(num_settings, min_budget=min_budget, max_budget=max_budget, factor=factor)
    if budget == "rows" and max_budget > len(fold):
        raise ValueError(f"max_budget must be at most the {len(fold)} rows, got {max_budget}")
    draw_key, fit_key, row_key = jax.random.split(key, 3)
    options = {**options, **_fit_key(fit, fit_key)}
    first = sample(draw_key, dimensions, num_settings)
    order = _fair_order(row_key, fold)
    x, y = (part if isinstance(part, jax.Array) else np.asarray(part) for part in (x, y))
    survivors, rungs = [np.arange(num_settings)], []
    for s, rung in enumerate(plan):
        if s:
            mean = np.where(rungs[-1].failed, -np.inf, rungs[-1].mean_score)
            kept = np.argsort(-mean, kind="stable")[: rung.num_settings]
            survivors.append(survivors[-1][np.sort(kept[np.isfinite(mean[kept])])])
        rows, more, opts = np.arange(len(fold)), fit, dict(options)
        if budget == "rows":
            rows = order[: rung.budget]
            if opts.get("sample_weight") is not None:
                opts["sample_weight"] = opts["sample_weight"][rows]
        else:
            more = functools.partial(fit, **{budget: rung.budget})
        settings = {
            name: _spaces.column(dimension, [first[name][i] for i in survivors[-1]])
            for name, dimension in dimensions.items()
        }
        opts["folds"] = fold[rows]
        rungs.append(_search(more, predict, score, x[rows], y[rows], dimensions, settings, opts))
    return Halving(plan, tuple(rungs), tuple(survivors))


# --- How good a search can be ---------------------------------------------------------------------


def chance_of_top(
    num_settings: Float[ArrayLike, "..."], share: Float[ArrayLike, "..."]
) -> Float[Array, "..."]:
    r"""Chance that one of $m$ independent draws is among the best share $q$: $1 - (1 - q)^m$.

    Args:
        num_settings: $m$.
        share: $q$ in [0, 1].

    Returns:
        The chance; the shapes are broadcast.

    Raises:
        ValueError: `share` is not in [0, 1], or `num_settings` is negative.

    Example:
        >>> from mlnotes_jax.generalization import search
        >>> print(f"{search.chance_of_top(60, 0.05):.3f}")
        0.954
    """
    count = _checks.floating("num_settings", num_settings)
    _checks.not_negative("num_settings", count)
    q = _checks.floating("share", share)
    _checks.in_range("share", q, 0, 1)
    count, q = jnp.broadcast_arrays(*_same_dtype(count, q))
    return -jnp.expm1(jax.scipy.special.xlog1py(count, -q))  # keeps the digits of a small share


def expected_improvement(
    mean: Float[ArrayLike, "..."],
    standard_deviation: Float[ArrayLike, "..."],
    best: Float[ArrayLike, "..."],
) -> Float[Array, "..."]:
    r"""Expected gain over the best score so far, if the next one is Gaussian.

    $$
    \mathbb E \max(0, Y - b) = (\mu - b)\, \Phi(z) + \sigma\, \varphi(z), \qquad
    z = \frac{\mu - b}{\sigma}, \quad Y \sim \mathcal N(\mu, \sigma^2) .
    $$

    Args:
        mean: $\mu$, what the model of the scores expects.
        standard_deviation: $\sigma \ge 0$, how sure it is.
        best: $b$, the best score so far.

    Returns:
        The expectation; the shapes are broadcast. For $\sigma = 0$ it is $\max(0, \mu - b)$.

    Raises:
        ValueError: `standard_deviation` is negative.

    Example:
        >>> from mlnotes_jax.generalization import search
        >>> print(f"{search.expected_improvement(0.0, 1.0, 0.0):.4f}")  # 1 / sqrt(2 pi)
        0.3989

    Reference:
        Jones, Schonlau and Welch, *Efficient Global Optimization of Expensive Black-Box Functions*
        (Journal of Global Optimization, 1998), section 4.1.
    """
    deviation = _checks.floating("standard_deviation", standard_deviation)
    _checks.not_negative("standard_deviation", deviation)
    numbers = _same_dtype(_checks.floating("mean", mean), deviation, _checks.floating("best", best))
    return _improvement(*jnp.broadcast_arrays(*numbers))


# --- Checkpoints ----------------------------------------------------------------------------------


def save_scored(folder: Folder, model: PyTree, *, score: float, number: int) -> Path:
    """Save a model under a name that says how good it is.

    A listing of the folder is then a table of the results, and what is worth keeping can be seen
    without opening anything.

    Args:
        folder: Of the study, or any other.
        model: As in `checkpoints.save_model`.
        score: Of the model; a finite number.
        number: Of the trial.

    Returns:
        The folder of the checkpoint, such as `score_+0.973120_trial_00012`.

    Raises:
        ValueError: The score is not finite, or there is a checkpoint of this name.
        TypeError: `number` is no integer, or a leaf of the model cannot be saved.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import search
        >>> folder = tempfile.mkdtemp()
        >>> for number, score in enumerate([0.5, 0.75, -1.0]):
        ...     path = search.save_scored(folder, jnp.ones(3), score=score, number=number)
        >>> path.name
        'score_-1.000000_trial_00002'
        >>> search.scored(folder)[0][0]
        0.75
    """
    from mlnotes_jax.training import checkpoints

    _checks.positive_int("number", number, least=0)
    if not math.isfinite(score):
        raise ValueError(f"score must be finite, got {score}")
    name = f"score_{float(score):+.6f}_trial_{number:05d}"
    return checkpoints.save_model(Path(folder) / name, model)


def scored(folder: Folder) -> list[tuple[float, Path]]:
    """List the checkpoints that `save_scored` has written, the best first.

    Args:
        folder: As in `save_scored`; it need not exist.

    Returns:
        Scores, as in the names, and the folders, for `checkpoints.load_model`.
    """
    names = os.listdir(folder) if os.path.isdir(folder) else []
    found = [re.fullmatch(r"score_([+-]\d+\.\d{6})_trial_\d{5,}", name) for name in sorted(names)]
    pairs = [(float(match[1]), Path(folder) / match[0]) for match in found if match]
    return sorted(pairs, key=lambda pair: -pair[0])


# --- Pictures -------------------------------------------------------------------------------------


def plot(found: Search | CoarseToFine | Halving) -> "Figure":
    """Draw the scores over each setting.

    Args:
        found: From a search; of one in stages, each stage has a colour of its own.

    Returns:
        A figure with a panel for each name: scores with their standard errors, and a star for the
        best. At the bottom are crosses for settings that failed, and triangles for scores that are
        farther below the best than four times the median.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib.pyplot as plt

    if isinstance(found, Search):
        parts = (found,)
    else:
        parts = found.stages if isinstance(found, CoarseToFine) else found.rungs
    # The first has the ranges that all others lie in.
    space = parts[0].space
    figure, axes = plt.subplots(
        1,
        len(space),
        figsize=(4 * len(space), 3.2),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    means = np.concatenate([part.mean_score[~part.failed] for part in parts])
    top, middle = means.max(), np.median(means)
    # A setting that is about to diverge would press all others into one line.
    floor = max(means.min(), top - 4 * (top - middle))
    for panel, (name, dimension) in zip(axes[0], space.items(), strict=True):
        for i, part in enumerate(parts):
            at = np.array([_position(dimension, value) for value in part.settings[name]])
            shown = ~part.failed & (part.mean_score >= floor)
            panel.errorbar(
                at[shown], part.mean_score[shown], part.standard_error[shown], fmt="o",
                color=f"C{i}", markersize=4, linewidth=0.8, label=_stage(found, i),
            )  # fmt: skip
            for rows, mark in ((~part.failed & ~shown, "v"), (part.failed, "x")):
                panel.plot(
                    at[rows], np.zeros(rows.sum()), mark, color=f"C{i}", linestyle="none",
                    transform=panel.get_xaxis_transform(), clip_on=False,
                )  # fmt: skip
        last = parts[-1]
        panel.plot(
            _position(dimension, last.best[name]), last.best_score, "*", color="C1", markersize=14,
            linestyle="none", label="best", zorder=3,
        )  # fmt: skip
        if isinstance(dimension, Range):
            panel.set_xscale("log" if dimension.log else "linear")
        else:
            panel.set_xticks(range(len(dimension.options)), [str(o) for o in dimension.options])
        panel.set_xlabel(name)
    axes[0, 0].set_ylabel("mean score")
    axes[0, 0].legend(fontsize="small")
    figure.suptitle("Score over each setting")
    return figure


# --- Private --------------------------------------------------------------------------------------


def _search(
    fit: Any, predict: Any, score: Any, x: Any, y: Any, space: dict[str, _spaces.Dimension],
    settings: Settings, options: dict[str, Any],
) -> Search:  # fmt: skip
    """Evaluate settings: one program for each combination of static ones."""
    traced = [name for name, dimension in space.items() if _spaces.is_traced(dimension)]
    num_settings = len(next(iter(settings.values())))
    groups: list[tuple[Settings, list[int]]] = []
    for i in range(num_settings):
        static = {name: settings[name][i] for name in space if name not in traced}
        members = next((rows for known, rows in groups if _equal(known, static)), None)
        if members is None:
            groups.append((static, [i]))
        else:
            members.append(i)
    reasons = [""] * num_settings
    scores = errors = np.zeros(0)  # of a shape that the first group tells
    first: Exception | None = None
    for static, members in groups:
        # Partials of equal arguments are one program for cross-validation.
        chosen = functools.partial(fit, **static) if static else fit
        rows = np.array(members)
        values = {name: settings[name][rows] for name in traced} or None
        try:
            found = cross_validation.evaluate(
                chosen, predict, score, x, y, settings=values, **options
            )
        except (ArithmeticError, ValueError) as error:
            first = first or error
            for i in members:
                reasons[i] = f"{type(error).__name__}: {error}"
            continue
        test, failed = np.asarray(found.test_score, float), np.asarray(found.failed)
        if not scores.size:
            scores = np.full((num_settings, test.shape[1]), np.nan)
            errors = np.full(num_settings, np.nan)
        # As `cross_validation.standard_error`, on the host.
        scores[rows], errors[rows] = test, np.sqrt(test.var(axis=1, ddof=1) / found.num_folds)
        why = {failure.setting: failure.reason for failure in reversed(found.failures)}
        for place in np.flatnonzero(failed.any(axis=1)).tolist():
            holes = ", ".join(map(str, np.flatnonzero(failed[place])))
            reasons[members[place]] = why.get(place, f"no finite score in fold {holes}")
    if all(reasons):
        message = f"all {num_settings} settings failed, the first because: {reasons[0]}"
        raise ValueError(message) from first
    result = Search(space, settings, scores, errors, tuple(reasons), ())
    return result._replace(borders=_borders(space, result.best))


@jax.jit
def _improvement(mean: Array, deviation: Array, best: Array) -> Array:
    gain, known = mean - best, deviation == 0
    z = gain / jnp.where(known, 1, deviation)
    norm = jax.scipy.stats.norm
    # Below the best so far the two terms cancel; 1 + z Phi / phi, about 1 / z^2, loses less.
    below = jnp.minimum(z, 0)
    ratio = jnp.exp(norm.logcdf(below) - norm.logpdf(below))
    value = jnp.where(
        z < 0,
        deviation * norm.pdf(below) * (1 + below * ratio),
        gain * norm.cdf(z) + deviation * norm.pdf(z),
    )
    return jnp.where(known, jnp.maximum(gain, 0), value)


def _equal(one: Settings, other: Settings) -> bool:
    """Whether static settings are the same, as types, too: 1, 1.0 and True are three programs."""
    return all(type(one[n]) is type(other[n]) and one[n] == other[n] for n in one)


def _borders(space: dict[str, _spaces.Dimension], best: Settings) -> tuple[Border, ...]:
    found = []
    for name, dimension in space.items():
        if not isinstance(dimension, Range):
            continue
        place = dimension.place(best[name])
        # Of integers only the ends themselves: a step may be longer than the edge.
        edge = 0.0 if dimension.whole else EDGE
        if place <= edge or place >= 1 - edge:
            side = "lower" if place <= edge else "upper"
            found.append(Border(name, best[name], side, dimension.low, dimension.high))
    return tuple(found)


def _row(settings: Settings, i: int) -> Settings:
    return {
        name: float(values[i]) if isinstance(values, np.ndarray) else values[i]
        for name, values in settings.items()
    }


def _fit_key(fit: Any, key: Array) -> dict[str, Array]:
    return {"key": key} if _protocol.takes_key(fit) else {}


def _fair_order(key: Array, fold: np.ndarray) -> np.ndarray:
    """All rows in an order whose beginnings hold the same share of every fold."""
    shuffled = np.asarray(jax.random.permutation(key, len(fold)))
    turn = np.zeros(len(fold), int)
    for k in np.unique(fold):
        mine = shuffled[fold[shuffled] == k]
        turn[mine] = np.arange(len(mine))
    return shuffled[np.argsort(turn[shuffled], kind="stable")]


def _same_dtype(*values: Array) -> list[Array]:
    dtype = np.result_type(*(value.dtype for value in values))
    return [value.astype(dtype) for value in values]


def _position(dimension: _spaces.Dimension, value: Any) -> float:
    return dimension.options.index(value) if isinstance(dimension, Choice) else float(value)


def _stage(found: Any, i: int) -> str:
    if isinstance(found, Halving):
        return f"budget {found.plan[i].budget}"
    return f"stage {i + 1}" if isinstance(found, CoarseToFine) else "settings"
