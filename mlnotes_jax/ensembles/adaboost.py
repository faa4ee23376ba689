r"""AdaBoost: rows that were missed count more in the next round.

Round $t$ fits a learner $h_t$ to rows of weight $w_i$, sum 1. From its weighted error
$e_t = \sum_i w_i [h_t(x_i) \ne y_i]$ follow its say and the weights of the next round,

$$
\begin{gathered}
\alpha_t = \tfrac12 \Big( \ln \frac{1 - e_t}{e_t} + \ln (K - 1) \Big) , \qquad
w_i \leftarrow \frac{w_i\, e^{2 \alpha_t [h_t(x_i) \ne y_i]}}{\sum_j w_j\,
e^{2 \alpha_t [h_t(x_j) \ne y_j]}} , \\
\hat y(x) = \arg\max_k \sum_t \alpha_t [h_t(x) = k] .
\end{gathered}
$$

For two classes, $K = 2$, this is the coordinate-wise minimisation of the exponential loss, with
$\alpha_t = \frac12 \ln \frac{1 - e_t}{e_t}$. For any $K$ the training error is at most
$\prod_t Z_t$, $Z_t = (1 - e_t)\, e^{-\alpha_t} + e_t\, e^{\alpha_t}$.

Reference: Freund and Schapire, *A Decision-Theoretic Generalization of On-Line Learning and an
Application to Boosting* (Journal of Computer and System Sciences, 1997); Zhu, Zou, Rosset and
Hastie, *Multi-class AdaBoost* (Statistics and Its Interface, 2009).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import logsumexp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, Num, PyTree

from mlnotes_jax import _checks, _protocol
from mlnotes_jax.ensembles import _learners
from mlnotes_jax.ensembles._learners import Learner, Mode

__all__ = [
    "AdaBoost",
    "decision_function",
    "first_rounds",
    "fit",
    "fit_resampled",
    "margins",
    "predict",
    "staged_predict",
    "votes",
]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "models", "alpha", "error", "train_error", "bound", "restarts", "num_used", "perfect",
        "too_weak",
    ],
    meta_fields=["predict_one", "num_classes", "mode"],
)  # fmt: skip
@dataclasses.dataclass(frozen=True)
class AdaBoost:
    r"""The learners of T rounds, and their say.

    Attributes:
        models: What the learner returned: of a program with a leading axis of T, of which the first
            `num_used` count and the others repeat the last; of a loop a tuple.
        alpha: $\alpha_t$, 0 from `num_used` on, shape `(T,)`.
        error: $e_t$, by the weights of the round, shape `(T,)`; of the learner that was refused,
            too, where one was; NaN after it.
        train_error: Weighted training error of the vote of the first t learners, shape `(T,)`.
        bound: $\prod_{s \le t} Z_s$, which is not below `train_error`, shape `(T,)`.
        restarts: How many learners were thrown away before one was kept, shape `(T,)`.
        num_used: How many learners vote, shape `()`. 0 only under a transformation: then `predict`
            answers -1.
        perfect: Whether the rounds ended because a learner missed no row, shape `()`.
        too_weak: Whether they ended because a learner was no better than a guess, shape `()`.
        predict_one: The learner's `predict`; static.
        num_classes: K; static.
        mode: `"program"` or `"loop"`: how it was fitted; static.
    """

    models: PyTree
    alpha: Float[Array, " T"]
    error: Float[Array, " T"]
    train_error: Float[Array, " T"]
    bound: Float[Array, " T"]
    restarts: Int[Array, " T"]
    num_used: Int[Array, ""]
    perfect: Bool[Array, ""]
    too_weak: Bool[Array, ""]
    predict_one: Callable[[Any, Any], Any]
    num_classes: int
    mode: str


def fit(
    x: Num[ArrayLike, "n ..."],
    y: Int[ArrayLike, " n"],
    *,
    learner: Learner | None = None,
    num_rounds: int = 50,
    learning_rate: Float[ArrayLike, ""] = 1.0,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    num_classes: int | None = None,
    key: Key[Array, ""] | None = None,
    missing: bool = False,
    mode: Mode = "auto",
) -> AdaBoost:
    r"""Fit by re-weighting: each learner is given all rows with the weights of its round.

    The rounds end where a learner misses no row: it then has a say above that of all before it
    together, the limit of $\alpha_t$ for $e_t \to 0$ as far as the vote is concerned. And where a
    learner is no better than a guess, $e_t \ge 1 - 1/K$ up to rounding: it is not kept. `perfect`
    and `too_weak` tell. All rounds are one compiled program; a learner that cannot be traced is
    called in a loop. Everything works under `vmap`, over `sample_weight` and `learning_rate` as
    well as over data.

    Args:
        x: Rows, shape `(n, ...)`.
        y: Classes 0..K-1, shape `(n,)`.
        learner: Two functions. `fit(x, y, *, sample_weight) -> model`, or `fit(key, x, y, ...)`; it
            is given `num_classes`, too, if it has a parameter of this name. And
            `predict(model, x)`: classes as integers, shape `(n,)`. By default a
            [tree][mlnotes_jax.trees.decision_tree.fit] of one question.
        num_rounds: T, the largest number of rounds; static.
        learning_rate: $\nu > 0$: $\alpha_t$ is multiplied by it. Traced.
        sample_weight: Weights of the first round, $\ge 0$, shape `(n,)`; zero drops a row, which
            may then hold anything. The learner is given weights of the same sum in each round.
        num_classes: K, static; by default the largest label plus one. Needed where `y` is traced.
        key: For a learner that draws.
        missing: Whether `x` may hold NaN; static. Only for a learner that knows what to do.
        mode: `"program"`, `"loop"`, or `"auto"`: a program where that is possible; static.

    Returns:
        The learners, their say, and the errors of each round.

    Raises:
        ValueError: Shapes do not fit; data are empty or (where concrete) not finite, or no classes;
            there is only one class; an option is not allowed; the learner takes no weights, answers
            with another shape, or is no better than a guess in the first round.
        TypeError: The learner is no pair of functions or does not answer with integers, `y` are no
            integers, or a loop is asked for under a transformation.

    Example:
        >>> from mlnotes_jax.data import datasets
        >>> from mlnotes_jax.ensembles import adaboost
        >>> data = datasets.load("breast_cancer")
        >>> model = adaboost.fit(data.x, data.y, num_rounds=20)
        >>> bool((model.train_error <= model.bound).all())
        True
        >>> [round(100 * float(error), 1) for error in model.train_error[::19]]
        [7.7, 1.1]

    Reference:
        Freund and Schapire (1997), figure 2 and theorem 6; Zhu and others (2009), algorithm 2.

    Note:
        scikit-learn's `AdaBoostClassifier`: its `estimator_weights_` are $2 \alpha_t$, without the
        factor 1/2, which changes neither the vote nor the weights. A perfect learner has there the
        weight 1, whatever was before it.
    """
    return _fit(
        key, x, y, learner, num_rounds, learning_rate, sample_weight, num_classes, missing, mode,
        resampled=False, max_restarts=0,
    )  # fmt: skip


def fit_resampled(
    key: Key[Array, ""],
    x: Num[ArrayLike, "n ..."],
    y: Int[ArrayLike, " n"],
    *,
    learner: Learner | None = None,
    num_rounds: int = 50,
    max_restarts: int = 10,
    learning_rate: Float[ArrayLike, ""] = 1.0,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    num_classes: int | None = None,
    missing: bool = False,
    mode: Mode = "auto",
) -> AdaBoost:
    r"""Fit by re-sampling: each learner is given n rows drawn with the weights as chances.

    For learners that take no weights. The error $e_t$ is still that of all rows with their weights.
    A learner that is no better than a guess, $e_t \ge 1 - 1/K$, is thrown away, and another is
    fitted to a new sample of the same weights: re-weighting would have to stop there. A draw with
    replacement is handed on as a whole number for each row, by which a learner that takes weights
    is one compiled program again; else it is given the rows as often as they were drawn.

    Args:
        key: Draws the samples, and is handed on to a learner that takes a key.
        x: As in `fit`.
        y: As in `fit`.
        learner: As in `fit`; in a loop it need not take `sample_weight`.
        num_rounds: As in `fit`.
        max_restarts: How many learners may be thrown away in one round before the rounds end;
            static.
        learning_rate: As in `fit`.
        sample_weight: As in `fit`; as many rows are drawn as there are rows of positive weight.
        num_classes: As in `fit`.
        missing: As in `fit`.
        mode: As in `fit`.

    Returns:
        The learners, their say, the errors of each round, and how often it was started again.

    Raises:
        ValueError: As in `fit`; no learner of the first round is better than a guess.
        TypeError: As in `fit`.

    Example:
        >>> import jax
        >>> from mlnotes_jax.data import datasets
        >>> from mlnotes_jax.ensembles import adaboost
        >>> data = datasets.load("breast_cancer")
        >>> model = adaboost.fit_resampled(jax.random.key(0), data.x, data.y, num_rounds=20)
        >>> bool((model.train_error <= model.bound).all())
        True

    Reference:
        Freund and Schapire, *Experiments with a New Boosting Algorithm* (ICML 1996); Zhou, *Machine
        Learning* (2021), section 8.2, for starting again.
    """
    _checks.positive_int("max_restarts", max_restarts, least=0)
    return _fit(
        key, x, y, learner, num_rounds, learning_rate, sample_weight, num_classes, missing, mode,
        resampled=True, max_restarts=max_restarts,
    )  # fmt: skip


def votes(model: AdaBoost, x: Num[ArrayLike, "m ..."]) -> Float[Array, "m K"]:
    r"""The say for each class, $\sum_t \alpha_t [h_t(x) = k]$.

    Args:
        model: A fitted model.
        x: Rows, shape `(m, ...)`.

    Returns:
        Shape `(m, K)`.

    Example:
        >>> from mlnotes_jax.ensembles import adaboost
        >>> model = adaboost.fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1])
        >>> adaboost.votes(model, [[0.5], [2.5]]).tolist()  # the first learner is perfect
        [[1.0, 0.0], [0.0, 1.0]]
    """
    return _tally(model, x, staged=False)


def decision_function(model: AdaBoost, x: Num[ArrayLike, "m ..."]) -> Float[Array, "m ..."]:
    r"""For two classes $F(x) = \sum_t \alpha_t h_t(x)$, $h_t = \pm 1$; for more, `votes`.

    Half of the log-odds is what minimises the expected exponential loss, so that $2 F$ estimates
    the log-odds; it is far too sure after many rounds.

    Args:
        model: A fitted model.
        x: Rows, shape `(m, ...)`.

    Returns:
        Shape `(m,)`, positive for class 1; or `(m, K)`.

    Example:
        >>> from mlnotes_jax.ensembles import adaboost
        >>> model = adaboost.fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1])
        >>> adaboost.decision_function(model, [[0.5], [2.5]]).tolist()
        [-1.0, 1.0]

    Note:
        scikit-learn's is $2 F(x) / \sum_t \alpha_t$ for two classes; for more, a vote for another
        class counts $-1 / (K - 1)$, and the sum is divided likewise.
    """
    total = votes(model, x)
    return total[:, 1] - total[:, 0] if model.num_classes == 2 else total


def predict(model: AdaBoost, x: Num[ArrayLike, "m ..."]) -> Int[Array, " m"]:
    """The class with the largest say, the first of equals.

    Args:
        model: A fitted model.
        x: Rows, shape `(m, ...)`.

    Returns:
        Classes as int32, shape `(m,)`; -1 where no learner names a class.

    Example:
        >>> from mlnotes_jax.ensembles import adaboost
        >>> model = adaboost.fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1])
        >>> adaboost.predict(model, [[0.5], [2.5]]).tolist()
        [0, 1]
    """
    return _best(votes(model, x))


def staged_predict(model: AdaBoost, x: Num[ArrayLike, "m ..."]) -> Int[Array, "T m"]:
    """What the first t learners answer, for each t.

    Args:
        model: A fitted model.
        x: Rows, shape `(m, ...)`.

    Returns:
        Classes as int32, shape `(T, m)`; from `num_used` on they do not change any more.

    Example:
        >>> from mlnotes_jax.data import datasets
        >>> from mlnotes_jax.ensembles import adaboost
        >>> data = datasets.load("breast_cancer")
        >>> model = adaboost.fit(data.x, data.y, num_rounds=20)
        >>> errors = (adaboost.staged_predict(model, data.x) != data.y[None]).mean(axis=1)
        >>> bool(abs(errors - model.train_error).max() < 1e-6)
        True
    """
    return _tally(model, x, staged=True)


def margins(
    model: AdaBoost, x: Num[ArrayLike, "n ..."], y: Int[ArrayLike, " n"]
) -> Float[Array, " n"]:
    r"""How far the right class leads, as a share of the whole say.

    $$
    m_i = \frac{\sum_t \alpha_t [h_t(x_i) = y_i] - \max_{k \ne y_i} \sum_t \alpha_t [h_t(x_i) = k]}
    {\sum_t \alpha_t} \in [-1, 1]
    $$

    For two classes it is $y_i F(x_i) / \sum_t \alpha_t$ with $y_i = \pm 1$.

    Args:
        model: A fitted model.
        x: Rows, shape `(n, ...)`.
        y: Their classes, shape `(n,)`.

    Returns:
        Shape `(n,)`; not positive where the vote is wrong. NaN if no learner votes.

    Raises:
        ValueError: There are not as many classes as rows, or a concrete one is no class.

    Example:
        >>> from mlnotes_jax.ensembles import adaboost
        >>> x, y = [[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1]
        >>> model = adaboost.fit(x, y)
        >>> adaboost.margins(model, x, y).tolist()
        [1.0, 1.0, 1.0, 1.0]

    Reference:
        Schapire, Freund, Bartlett and Lee, *Boosting the Margin* (Annals of Statistics, 1998).
    """
    labels = _checks.integer("y", y, ndim=1)
    _checks.class_labels("y", y, model.num_classes)
    total = votes(model, x)
    if total.shape[:1] != labels.shape:
        raise ValueError(f"x and y must have as many rows, got {total.shape[0]} and {len(labels)}")
    return _margins(total, labels, model.alpha.sum())


def first_rounds(model: AdaBoost, num_rounds: Int[ArrayLike, ""]) -> AdaBoost:
    """The ensemble as it was after some rounds: the others lose their say.

    Args:
        model: A fitted model.
        num_rounds: How many learners vote; traced.

    Returns:
        A model of the same shapes, for `predict`, `decision_function` and `margins`. What was
        measured in the rounds stays.

    Raises:
        ValueError: `num_rounds` is less than 1.

    Example:
        >>> from mlnotes_jax.data import datasets
        >>> from mlnotes_jax.ensembles import adaboost
        >>> data = datasets.load("breast_cancer")
        >>> model = adaboost.fit(data.x, data.y, num_rounds=20)
        >>> bool((adaboost.first_rounds(model, 3).alpha[3:] == 0).all())
        True
    """
    kept = _checks.count("num_rounds", num_rounds)
    place = jnp.arange(len(model.alpha), dtype=jnp.int32)
    return dataclasses.replace(
        model,
        alpha=jnp.where(place < kept, model.alpha, 0),
        num_used=jnp.minimum(model.num_used, kept),
    )


# --- Rounds ---------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """Everything static: what a program is compiled for."""

    fit: Callable[..., Any]
    predict: Callable[[Any, Any], Any]
    options: tuple[tuple[str, Any], ...]
    num_rounds: int
    num_classes: int
    resampled: bool
    max_restarts: int
    tree: bool  # the learner is a decision tree, which can be given the columns sorted


class _State(NamedTuple):
    """What a round hands on to the next."""

    # Logarithms never underflow, and a row that is always right loses weight in every round.
    log_weight: Array  # the weights have the sum 1; minus infinity for a row that is dropped
    votes: Array
    say: Array  # the sum of all alpha
    log_bound: Array
    going: Array


class _Round(NamedTuple):
    """What is kept of a round."""

    alpha: Array
    error: Array
    train_error: Array
    bound: Array
    restarts: Array
    used: Array
    perfect: Array
    too_weak: Array


class _Given(NamedTuple):
    """What all rounds share."""

    y: Array
    weight: Array  # of the first round, with the sum 1
    rate: Array


def _fit(
    key: Any,
    x: Any,
    y: Any,
    learner: Any,
    num_rounds: int,
    learning_rate: ArrayLike,
    sample_weight: Any,
    num_classes: int | None,
    missing: bool,
    mode: str,
    *,
    resampled: bool,
    max_restarts: int,
) -> AdaBoost:
    learner = _stump(missing) if learner is None else learner
    fit, predict_one = _learners.pair(learner)
    _checks.positive_int("num_rounds", num_rounds)
    data = _learners.rows(x, y, sample_weight, num_classes=num_classes, missing=missing)
    k = data.num_classes
    if k < 2:
        raise ValueError(
            "y must have at least two classes, got class 0 alone: pass num_classes=2 if there are "
            "others"
        )
    rate = _checks.floating("learning_rate", learning_rate, ndim=0)
    _checks.positive("learning_rate", rate)
    if key is None and _protocol.takes_key(fit):
        raise ValueError("key must be given, since the learner's fit takes one, got None")
    weighted = _protocol.accepts(fit, "sample_weight")
    if not weighted and not resampled:
        raise ValueError("learner's fit must take sample_weight: use fit_resampled for one without")
    options = (("num_classes", k),) if _protocol.named(fit, "num_classes") else ()
    tree = _is_tree(learner[0])
    plan = _Plan(fit, predict_one, options, num_rounds, k, resampled, max_restarts, tree)
    found = _learners.in_program(
        mode,
        "" if weighted else "the learner's fit takes no sample_weight",
        (data.x, data.y, data.weight, rate),
        lambda: _fit_in_program(plan, key, data.x, data.y, data.weights(), rate),
    )
    how = "program"
    if found is None:
        found, how = _fit_in_loop(plan, key, data, rate, weighted), "loop"
    models, rounds = found
    model = AdaBoost(
        models,
        alpha=rounds.alpha,
        error=rounds.error,
        train_error=rounds.train_error,
        bound=rounds.bound,
        restarts=rounds.restarts,
        num_used=rounds.used.sum(dtype=jnp.int32),
        perfect=rounds.perfect.any(),
        too_weak=rounds.too_weak.any(),
        predict_one=predict_one,
        num_classes=k,
        mode=how,
    )
    if _checks.is_concrete(model.num_used) and not model.num_used:
        raise ValueError(
            "learner must be better than a guess in the first round: its weighted error is "
            f"{model.error[0]:.4g}, and a guess among {k} classes errs {1 - 1 / k:.4g}"
        )
    return model


def _stump(missing: bool) -> Learner:
    from mlnotes_jax.trees import decision_tree

    return partial(decision_tree.fit, max_depth=1, missing=missing), decision_tree.predict


def _is_tree(fit: Any) -> bool:
    from mlnotes_jax.trees import decision_tree

    return getattr(fit, "func", fit) is decision_tree.fit


def _fitted(plan: _Plan, x: Any) -> Callable[..., Any]:
    """The learner's fit, called as `(key, x, y, sample_weight=...)`."""
    from mlnotes_jax.trees import decision_tree

    # Rows do not move from round to round, only their weights: one sort serves all.
    shared = {"order": decision_tree.presort(x)} if plan.tree else {}
    return partial(_protocol.keyed(plan.fit), **shared, **dict(plan.options))


@partial(jax.jit, static_argnames="plan")
def _fit_in_program(
    plan: _Plan, key: Any, x: Array, y: Array, weight: Array, rate: Array
) -> tuple[Any, _Round]:
    x = _learners.blanked(x, weight)
    # A label that is no class spoils all weights, so that no learner is kept.
    known = ((y >= 0) & (y < plan.num_classes)) | (weight == 0)
    total = jnp.where(known, weight, jnp.nan).sum()
    given = _Given(y, weight / total, rate.astype(weight.dtype))
    fitted = _fitted(plan, x)

    def attempt(key: Any, state: _State, restarts: Array) -> tuple[Any, _State, _Round]:
        own_weight = total * jnp.exp(state.log_weight)
        if plan.resampled:
            key, draw_key = jax.random.split(jax.random.fold_in(key, restarts))
            own_weight = _draw(draw_key, state.log_weight).astype(weight.dtype)
        model = fitted(key, x, y, sample_weight=own_weight)
        answers = _classes(plan.predict(model, x), len(y))
        return model, *_judge(state, answers, given, restarts)

    def attempts(key: Any, state: _State) -> tuple[Any, _State, _Round]:
        none = jnp.zeros((), jnp.int32)
        if not plan.resampled:
            return attempt(key, state, none)

        def failed(carry: Any) -> Array:
            (_, _, judged), tried = carry
            return ~judged.used & (tried <= plan.max_restarts)

        def again(carry: Any) -> Any:
            return attempt(key, state, carry[1]), carry[1] + 1

        return jax.lax.while_loop(failed, again, (_zeros(attempt, key, state, none), none))[0]

    def one_round(carry: Any, key: Any) -> tuple[Any, Any]:
        # After the last round its model is kept: zeros would be no model, which `predict` may
        # not survive (a tree of zeros leads from its root to its root).
        model, state, judged = jax.lax.cond(
            carry[1].going,
            lambda: attempts(key, carry[1]),
            lambda: (*carry, _idle(carry[1], given)),
        )
        return (model, state), (model, judged)

    keys = None if key is None else jax.random.split(key, plan.num_rounds)
    state = _start(given, plan.num_classes)
    start = _zeros(attempts, key, state)[0], state
    return jax.lax.scan(one_round, start, keys, length=plan.num_rounds)[1]


def _fit_in_loop(
    plan: _Plan, key: Any, data: _learners.Rows, rate: Array, weighted: bool
) -> tuple[Any, _Round]:
    kept = np.flatnonzero(data.present())
    as_given = np.asarray if isinstance(data.x, np.ndarray) else jnp.asarray
    x, y, weight = data.x[kept], data.y[kept], data.weights()[kept]
    labels, total = as_given(y), weight.sum()
    given = _Given(y, weight / total, rate.astype(weight.dtype))
    fitted = _fitted(plan, x)
    keys: Any = [None] * plan.num_rounds if key is None else jax.random.split(key, plan.num_rounds)
    state = _start(given, plan.num_classes)
    models, rounds = [], []
    for own_key in keys:
        for restarts in range(plan.max_restarts + 1):
            fit_key, own_weight = own_key, total * jnp.exp(state.log_weight)
            if plan.resampled:
                fit_key, draw_key = jax.random.split(jax.random.fold_in(own_key, restarts))
                own_weight = _draw(draw_key, state.log_weight)
            if weighted:
                own_weight = as_given(own_weight.astype(weight.dtype))
                model = fitted(fit_key, x, labels, sample_weight=own_weight)
            else:
                drawn = np.repeat(np.arange(len(y)), np.asarray(own_weight))
                model = fitted(fit_key, x[drawn], labels[drawn])
            answers = _classes(plan.predict(model, x), len(y))
            after, judged = _judge(state, answers, given, jnp.asarray(restarts, jnp.int32))
            if judged.used:
                models.append(model)
                break
        state = after
        rounds.append(judged)
        if not state.going:
            break
    rounds += (plan.num_rounds - len(rounds)) * [_idle(state, given)]
    return tuple(models), jax.tree.map(lambda *leaves: jnp.stack(leaves), *rounds)


def _start(given: _Given, num_classes: int) -> _State:
    zero = jnp.zeros((), given.weight.dtype)
    ballots = jnp.zeros((len(given.y), num_classes), zero.dtype)
    return _State(jnp.log(given.weight), ballots, zero, zero, jnp.asarray(True))


@jax.jit
def _judge(state: _State, answers: Array, given: _Given, restarts: Array) -> tuple[_State, _Round]:
    """Weigh a learner by its answers: go on with it, or stop without."""
    log_weight, k = state.log_weight, state.votes.shape[1]
    wrong = answers != given.y
    log_wrong = logsumexp(jnp.where(wrong, log_weight, -jnp.inf))
    log_right = logsumexp(jnp.where(wrong, -jnp.inf, log_weight))
    error = jnp.exp(log_wrong)
    perfect = log_wrong == -jnp.inf
    # The learner of the round before now errs as a guess does, but for rounding.
    guess = 1 - 1 / k - 10 * float(jnp.finfo(error.dtype).eps)
    used = perfect | (error < guess)

    alpha = given.rate * 0.5 * (log_right - log_wrong + float(np.log(k - 1)))
    alpha = jnp.where(perfect, 1 + state.say, alpha)
    log_weight = log_weight + jnp.where(wrong, 2 * alpha, 0)
    ahead = _State(
        log_weight=log_weight - logsumexp(log_weight),
        votes=_add(state.votes, alpha, answers),
        say=state.say + alpha,
        # Z = (1 - e) exp(-alpha) + e exp(alpha)
        log_bound=state.log_bound + jnp.logaddexp(log_right - alpha, log_wrong + alpha),
        going=~perfect,
    )
    stopped = state._replace(going=jnp.zeros_like(state.going))
    after = jax.tree.map(lambda yes, no: jnp.where(used, yes, no), ahead, stopped)
    alpha = jnp.where(used, alpha, 0)
    return after, _Round(alpha, error, *_so_far(after, given), restarts, used, perfect, ~used)


@jax.jit
def _idle(state: _State, given: _Given) -> _Round:
    """A round after the last."""
    zero, no = jnp.zeros_like(state.say), jnp.zeros_like(state.going)
    none = jnp.zeros((), jnp.int32)
    return _Round(zero, jnp.full_like(zero, jnp.nan), *_so_far(state, given), none, no, no, no)


def _so_far(state: _State, given: _Given) -> tuple[Array, Array]:
    """The training error of the vote, and its bound."""
    missed = jnp.where(_best(state.votes) != given.y, given.weight, 0).sum()
    return missed, jnp.exp(state.log_bound)


@jax.jit
def _draw(key: Array, log_weight: Array) -> Array:
    """How often each row is drawn, with its weight as its chance, in as many draws as rows."""
    n = len(log_weight)
    drawn = jax.random.choice(key, n, (n,), p=jnp.exp(log_weight))
    there = (log_weight > -jnp.inf).sum(dtype=jnp.int32)
    counted = (jnp.arange(n, dtype=jnp.int32) < there).astype(jnp.int32)
    return jnp.zeros(n, jnp.int32).at[drawn].add(counted)


def _zeros(function: Callable[..., Any], *args: Any) -> Any:
    """Zeros in the shape of what a function returns."""
    return jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, *args)
    )


def _classes(outputs: Any, num_rows: int) -> Array:
    answers = jnp.asarray(outputs)
    if not jnp.issubdtype(answers.dtype, jnp.integer):
        raise TypeError(
            f"the learner's predict must give classes as integers, got dtype {answers.dtype}"
        )
    if answers.shape != (num_rows,):
        raise ValueError(
            f"the learner's predict must give a class for each row, shape ({num_rows},), got "
            f"{answers.shape}"
        )
    return answers.astype(jnp.int32)


# --- Votes ----------------------------------------------------------------------------------------


def _tally(model: AdaBoost, x: Any, *, staged: bool) -> Array:
    """Votes, shape `(m, K)`; or, staged, the class that leads after each round, `(T, m)`."""
    x = x if isinstance(x, np.ndarray | jax.Array) else jnp.asarray(x)
    if x.ndim == 0:
        raise ValueError("x must have a row for each answer, got a scalar")
    if model.mode == "program":
        return _tally_in_program(model, jnp.asarray(x), staged)
    total = jnp.zeros((len(x), model.num_classes), model.alpha.dtype)
    leads = []
    for one, alpha in zip(model.models, model.alpha, strict=False):
        total = _add(total, alpha, _classes(model.predict_one(one, x), len(x)))
        leads.append(_best(total))
    leads += (len(model.alpha) - len(leads)) * leads[-1:]
    return jnp.stack(leads) if staged else total


@partial(jax.jit, static_argnames="staged")
def _tally_in_program(model: AdaBoost, x: Array, staged: bool) -> Array:
    def add(total: Array, part: Any) -> tuple[Array, Array | None]:
        one, alpha = part
        total = _add(total, alpha, _classes(model.predict_one(one, x), len(x)))
        return total, _best(total) if staged else None

    start = jnp.zeros((len(x), model.num_classes), model.alpha.dtype)
    total, leads = jax.lax.scan(add, start, (model.models, model.alpha))
    return total if leads is None else leads


@jax.jit
def _add(total: Array, alpha: Array, answers: Array) -> Array:
    return total + alpha * jax.nn.one_hot(answers, total.shape[1], dtype=total.dtype)


@jax.jit
def _best(total: Array) -> Array:
    return jnp.where(total.sum(axis=-1) > 0, total.argmax(axis=-1).astype(jnp.int32), -1)


@jax.jit
def _margins(total: Array, y: Array, say: Array) -> Array:
    right = jax.nn.one_hot(y, total.shape[1], dtype=bool)
    rival = jnp.where(right, -jnp.inf, total).max(axis=1)
    return (jnp.where(right, total, 0).sum(axis=1) - rival) / say
