r"""Early stopping: end training when the validation loss says so, and keep the best parameters.

After update $t$ (mostly an epoch) training reports the losses $L_t$ on the training set and $V_t$
on the validation set. A rule looks at them and stops at the first $t$ at which

$$V_t > c, \qquad \min_{t - N < s \le t} V_s \ge \min_{s \le t - N} V_s, \qquad
  V_s > L_s \;\text{ for all } t - N < s \le t :$$

over a threshold $c$, no new lowest value in $N$ updates, above the training loss $N$ times running.
On a quadratic, stopping gradient descent after $t$ steps of size $\eta$ shrinks the solution as an
L2 penalty $\alpha \approx 1 / (\eta t)$ does.

Reference: Prechelt, *Early Stopping, but When?* (1998); Goodfellow, Bengio and Courville, *Deep
Learning* (2016), section 7.8.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from mlnotes_jax import _checks

__all__ = [
    "Best",
    "Rule",
    "State",
    "Stopped",
    "above_training",
    "any_of",
    "descent_filter",
    "equivalent_penalty",
    "keep_best",
    "no_improvement",
    "ridge_filter",
    "start_best",
    "stopped_at",
    "threshold",
    "until_stopped",
]


class State(NamedTuple):
    """What a rule remembers: a pytree, for the carry of a loop.

    Attributes:
        num_updates: How many updates the rule has seen, shape `()`.
        stopped_at: Index of the update at which it first said stop, counted from 0; -1 until then,
            shape `()`. It never changes again: a rule that has stopped stays stopped.
        memory: What the rule itself needs.
    """

    num_updates: Int[Array, ""]
    stopped_at: Int[Array, ""]
    memory: PyTree


class Rule(NamedTuple):
    """A stopping rule: two pure functions.

    Attributes:
        init: `init() -> state`.
        update: `update(state, train_loss, validation_loss) -> (state, stop)`, both losses scalars,
            `stop` a Boolean array of shape `()`. Call it once after each update (or epoch).
    """

    init: Callable[[], State]
    update: Callable[[State, ArrayLike, ArrayLike], tuple[State, Bool[Array, ""]]]


class Best(NamedTuple):
    """The parameters with the lowest validation loss so far.

    Attributes:
        params: These parameters.
        loss: Their loss, shape `()`; infinite while there is none.
        epoch: When they came, shape `()`; -1 while there is none.
    """

    params: PyTree
    loss: Float[Array, ""]
    epoch: Int[Array, ""]


class Stopped(NamedTuple):
    """A loop that a rule ended.

    Attributes:
        carry: The carry after the last update.
        best: What `keep_best` kept.
        training: Training loss of each update, shape `(max_updates,)`; NaN after the last one.
        validation: Validation loss of each update, likewise.
        num_updates: How many updates were made, shape `()`.
        stopped: Whether the rule ended the loop; otherwise `max_updates` did, shape `()`.
    """

    carry: PyTree
    best: Best
    training: Float[Array, " max_updates"]
    validation: Float[Array, " max_updates"]
    num_updates: Int[Array, ""]
    stopped: Bool[Array, ""]


def threshold(
    limit: Float[ArrayLike, ""],
    *,
    when: Literal["above", "below"] = "above",
    after: Int[ArrayLike, ""] = 0,
) -> Rule:
    r"""Stop when the validation loss is over a threshold (or, the other way, under it).

    Above, $V_t > c$, guards against divergence and over-fitting; below, $V_t < c$, ends training
    that is good enough. A NaN counts as above.

    Args:
        limit: $c$. Traced.
        when: On which side of `limit` to stop; static.
        after: How many first updates are not judged. Above, training would otherwise end at once
            where the first losses are high. Traced.

    Returns:
        The rule.

    Raises:
        ValueError: `limit` is not a number, `when` is unknown, or `after` is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import early_stopping
        >>> losses = jnp.array([5.0, 2.0, 1.0, 3.5])
        >>> rule = early_stopping.threshold(3.0, after=1)
        >>> int(early_stopping.stopped_at(rule, losses, losses))
        3
    """
    limit = _scalar("limit", limit)
    _checks.one_of("when", when, ("above", "below"))
    after = _checks.count("after", after, least=0)

    def fires(seen: Array, train_loss: Array, validation_loss: Array) -> tuple[Array, Array]:
        del train_loss
        bound = limit.astype(validation_loss.dtype)
        # Not `>`: a comparison with NaN is false.
        crossed = ~(validation_loss <= bound) if when == "above" else validation_loss < bound
        return seen + 1, crossed & (seen >= after)

    return _rule(lambda: jnp.zeros((), jnp.int32), fires)


def no_improvement(patience: Int[ArrayLike, ""], *, min_delta: Float[ArrayLike, ""] = 0.0) -> Rule:
    r"""Stop when the validation loss has no new lowest value in `patience` updates.

    $V_t$ is a new lowest value if $V_t < V_\text{low} - \delta$, where $V_\text{low}$ is the last
    one that was. The first finite loss always is; a NaN never is.

    Args:
        patience: $N \ge 1$: stop at the $N$-th update in a row that brings none. Traced.
        min_delta: $\delta \ge 0$: a smaller gain does not count. Traced.

    Returns:
        The rule.

    Raises:
        ValueError: `patience` is less than 1, or `min_delta` is negative.
        TypeError: `patience` is not an integer.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import early_stopping
        >>> losses = jnp.array([3.0, 2.0, 2.5, 2.1, 1.9])
        >>> rule = early_stopping.no_improvement(2)
        >>> int(early_stopping.stopped_at(rule, losses, losses))
        3

    Note:
        Counting differs between libraries. Flax's `EarlyStopping(patience=N)` and scikit-learn's
        `n_iter_no_change=N` stop one update later, at the $(N + 1)$-th in a row.
    """
    patience = _checks.count("patience", patience)
    min_delta = _scalar("min_delta", min_delta)
    _checks.not_negative("min_delta", min_delta)

    def fires(
        memory: tuple[Array, Array], train_loss: Array, validation_loss: Array
    ) -> tuple[tuple[Array, Array], Array]:
        del train_loss
        lowest, waited = memory
        better = validation_loss < lowest - min_delta.astype(lowest.dtype)
        lowest = jnp.where(better, validation_loss, lowest)
        waited = jnp.where(better, 0, waited + 1)
        return (lowest, waited), waited >= patience

    return _rule(lambda: (jnp.full((), jnp.inf, _dtype()), jnp.zeros((), jnp.int32)), fires)


def above_training(patience: Int[ArrayLike, ""]) -> Rule:
    """Stop when the validation loss is above the training loss `patience` times running.

    A NaN counts as above.

    Args:
        patience: How many times in a row, at least 1. Traced.

    Returns:
        The rule.

    Raises:
        ValueError: `patience` is less than 1.
        TypeError: `patience` is not an integer.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import early_stopping
        >>> training = jnp.array([3.0, 2.0, 1.0, 0.5])
        >>> validation = jnp.array([3.5, 1.5, 1.2, 1.1])
        >>> rule = early_stopping.above_training(2)
        >>> int(early_stopping.stopped_at(rule, training, validation))
        3
    """
    patience = _checks.count("patience", patience)

    def fires(waited: Array, train_loss: Array, validation_loss: Array) -> tuple[Array, Array]:
        waited = jnp.where(validation_loss <= train_loss, 0, waited + 1)
        return waited, waited >= patience

    return _rule(lambda: jnp.zeros((), jnp.int32), fires)


def any_of(*rules: Rule) -> Rule:
    """Stop as soon as one of several rules does.

    `state.memory` holds the states of the rules, in order: their `stopped_at` tells which it was.

    Args:
        *rules: At least one.

    Returns:
        The rule.

    Raises:
        ValueError: No rule is given.
        TypeError: Something else than a rule is given.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import early_stopping
        >>> rule = early_stopping.any_of(
        ...     early_stopping.threshold(9.0), early_stopping.no_improvement(3)
        ... )
        >>> losses = jnp.array([3.0, 2.0, 9.5, 2.5, 2.5])
        >>> int(early_stopping.stopped_at(rule, losses, losses))
        2
    """
    if not rules:
        raise ValueError("rules must hold at least one rule, got none")
    for rule in rules:
        _check_rule("rules", rule)

    def fires(
        states: tuple[State, ...], train_loss: Array, validation_loss: Array
    ) -> tuple[tuple[State, ...], Array]:
        updated = [
            rule.update(state, train_loss, validation_loss)
            for rule, state in zip(rules, states, strict=True)
        ]
        return tuple(state for state, _ in updated), jnp.stack([stop for _, stop in updated]).any()

    return _rule(lambda: tuple(rule.init() for rule in rules), fires)


def stopped_at(
    rule: Rule, train_loss: Float[ArrayLike, " n"], validation_loss: Float[ArrayLike, " n"]
) -> Int[Array, ""]:
    """Find where a rule would have stopped on recorded losses.

    Args:
        rule: Any rule.
        train_loss: Training losses, shape `(n,)`.
        validation_loss: Validation losses, shape `(n,)`.

    Returns:
        Index of the update at which it stops, counted from 0, shape `()`; -1 if it does not.

    Raises:
        ValueError: The losses are not vectors of one length.
        TypeError: `rule` is not a rule.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import early_stopping
        >>> rule = early_stopping.no_improvement(5)
        >>> int(early_stopping.stopped_at(rule, jnp.ones(3), jnp.ones(3)))
        -1
    """
    _check_rule("rule", rule)
    train_loss = _checks.floating("train_loss", train_loss, ndim=1)
    validation_loss = _checks.floating("validation_loss", validation_loss, ndim=1)
    _checks.same_length(train_loss=train_loss, validation_loss=validation_loss)

    def step(state: State, losses: tuple[Array, Array]) -> tuple[State, None]:
        return rule.update(state, *losses)[0], None

    return jax.lax.scan(step, rule.init(), (train_loss, validation_loss))[0].stopped_at


def start_best(params: PyTree) -> Best:
    """Begin to keep the best parameters: nothing yet, with a loss of infinity.

    Args:
        params: Any pytree of arrays, to be returned if no loss is ever finite.

    Returns:
        The start, for the carry of a loop.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import early_stopping
        >>> int(early_stopping.start_best(jnp.zeros(2)).epoch)
        -1
    """
    params = jax.tree.map(jnp.asarray, params)
    return Best(params, jnp.full((), jnp.inf, _dtype()), jnp.full((), -1, jnp.int32))


def keep_best(
    best: Best, params: PyTree, loss: Float[ArrayLike, ""], epoch: Int[ArrayLike, ""]
) -> Best:
    """Keep whichever has the lower loss; the earlier of equals. A NaN is never kept.

    Args:
        best: From `start_best` or the last call.
        params: The parameters now; structure, shapes and dtypes as in `best`.
        loss: Their validation loss.
        epoch: When it was measured.

    Returns:
        The better one.

    Raises:
        ValueError: `params` has another structure, or other shapes or dtypes, than `best.params`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import early_stopping
        >>> best = early_stopping.start_best(jnp.zeros(2))
        >>> best = early_stopping.keep_best(best, jnp.ones(2), 0.5, 0)
        >>> best = early_stopping.keep_best(best, jnp.full(2, 7.0), 0.8, 1)
        >>> best.params.tolist(), float(best.loss), int(best.epoch)
        ([1.0, 1.0], 0.5, 0)
    """
    _same_kind(best.params, params)
    loss = _loss("loss", loss)
    better = loss < best.loss

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(better, new, old)

    return Best(
        jax.tree.map(choose, params, best.params),
        choose(loss, best.loss),
        choose(_checks.integer("epoch", epoch, ndim=0).astype(jnp.int32), best.epoch),
    )


def until_stopped(
    step: Callable[..., tuple[PyTree, ArrayLike, ArrayLike]],
    carry: PyTree,
    rule: Rule,
    *args: Any,
    max_updates: int,
    params: Callable[[PyTree], PyTree] = lambda carry: carry,
) -> Stopped:
    """Repeat an update in one compiled loop until a rule ends it; keep the best parameters.

    A `lax.while_loop`. Under `vmap` every lane stops at its own update: a lane that has stopped
    keeps its carry while others go on (the loop runs as long as the slowest lane).

    Args:
        step: `step(carry, *args) -> (carry, train_loss, validation_loss)`; the losses are those of
            the carry returned.
        carry: Where to begin, any pytree of arrays.
        rule: When to stop.
        *args: What else `step` needs, such as data.
        max_updates: Stop after so many in any case; static.
        params: Picks from the carry what is to be kept; static.

    Returns:
        Carry, best parameters, losses.

    Raises:
        ValueError: `max_updates` is less than 1.
        TypeError: `rule` is not a rule, or `max_updates` is not an integer.

    Example:
        >>> from mlnotes_jax.generalization import early_stopping
        >>> step = lambda x: (x + 1.0, x, (x - 2.0) ** 2)  # lowest validation loss at x = 2
        >>> run = early_stopping.until_stopped(
        ...     step, 0.0, early_stopping.no_improvement(3), max_updates=100
        ... )
        >>> float(run.best.params), int(run.best.epoch), int(run.num_updates), bool(run.stopped)
        (3.0, 2, 6, True)
    """
    _check_rule("rule", rule)
    _checks.positive_int("max_updates", max_updates)
    carry = jax.tree.map(jnp.asarray, carry)
    blank = jnp.full(max_updates, jnp.nan, _dtype())
    start = (rule.init(), carry, start_best(params(carry)), blank, blank)

    def running(loop: tuple[Any, ...]) -> Array:
        return (loop[0].num_updates < max_updates) & (loop[0].stopped_at < 0)

    def body(loop: tuple[Any, ...]) -> tuple[Any, ...]:
        state, carry, best, training, validation = loop
        index = state.num_updates
        carry, train_loss, validation_loss = step(carry, *args)
        train_loss = _loss("train_loss", train_loss)
        validation_loss = _loss("validation_loss", validation_loss)
        state, _ = rule.update(state, train_loss, validation_loss)
        best = keep_best(best, params(carry), validation_loss, index)
        training = training.at[index].set(train_loss)
        return state, carry, best, training, validation.at[index].set(validation_loss)

    state, carry, best, training, validation = jax.lax.while_loop(running, body, start)
    return Stopped(carry, best, training, validation, state.num_updates, state.stopped_at >= 0)


def descent_filter(
    eigenvalues: Float[ArrayLike, " d"],
    *,
    learning_rate: Float[ArrayLike, ""],
    num_steps: Int[ArrayLike, ""],
) -> Float[Array, " d"]:
    r"""Share of the solution that descent from zero has reached: $1 - (1 - \eta \lambda_i)^t$.

    Along the eigenvector of $\lambda_i$ of a quadratic's Hessian, gradient descent from zero stands
    after $t$ steps at this multiple of the minimum.

    Args:
        eigenvalues: $\lambda_i \ge 0$, shape `(d,)`.
        learning_rate: $\eta > 0$. Traced.
        num_steps: $t \ge 0$. Traced.

    Returns:
        The shares, shape `(d,)`.

    Raises:
        ValueError: `eigenvalues` is not a vector or negative, `learning_rate` is not positive, or
            `num_steps` is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import early_stopping
        >>> early_stopping.descent_filter(
        ...     jnp.array([0.0, 1.0, 2.0]), learning_rate=0.5, num_steps=2
        ... ).tolist()
        [0.0, 0.75, 1.0]
    """
    eigenvalues = _eigenvalues(eigenvalues)
    _checks.positive("learning_rate", learning_rate)
    t = _checks.count("num_steps", num_steps, least=0).astype(eigenvalues.dtype)
    x = jnp.asarray(learning_rate, eigenvalues.dtype) * eigenvalues
    # For small x by logarithms: 1 - (1 - x)^t would lose the digits of t x.
    small = x < 0.5
    smooth = -jnp.expm1(t * jnp.log1p(-jnp.where(small, x, 0.0)))
    return jnp.where(small, smooth, 1 - (1 - x) ** t)


def ridge_filter(
    eigenvalues: Float[ArrayLike, " d"], *, penalty: Float[ArrayLike, "*d"]
) -> Float[Array, " d"]:
    r"""Share of the solution that an L2 penalty leaves: $\lambda_i / (\lambda_i + \alpha_i)$.

    Args:
        eigenvalues: $\lambda_i \ge 0$, shape `(d,)`.
        penalty: $\alpha \ge 0$ of $\tfrac12 \alpha \|\theta\|^2$: one number, or one for each
            direction, shape `(d,)`. Traced.

    Returns:
        The shares, shape `(d,)`; 0 where both numbers are 0, and where the penalty is infinite.

    Raises:
        ValueError: `eigenvalues` or `penalty` is negative or of the wrong shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import early_stopping
        >>> early_stopping.ridge_filter(jnp.array([0.0, 1.0, 3.0]), penalty=1.0).tolist()
        [0.0, 0.5, 0.75]
    """
    eigenvalues = _eigenvalues(eigenvalues)
    alpha = _checks.floating("penalty", penalty, ndim=(0, 1)).astype(eigenvalues.dtype)
    if alpha.shape not in ((), eigenvalues.shape):
        raise ValueError(
            f"penalty must be a scalar or have shape {eigenvalues.shape}, got shape {alpha.shape}"
        )
    _checks.not_negative("penalty", alpha)
    total = eigenvalues + alpha
    return jnp.where(total > 0, eigenvalues / jnp.where(total > 0, total, 1.0), 0.0)


def equivalent_penalty(
    eigenvalues: Float[ArrayLike, " d"],
    *,
    learning_rate: Float[ArrayLike, ""],
    num_steps: Int[ArrayLike, ""],
) -> Float[Array, " d"]:
    r"""The L2 penalties that do exactly what $t$ steps of descent do.

    $$\alpha_i = \lambda_i \frac{(1 - \eta \lambda_i)^t}{1 - (1 - \eta \lambda_i)^t}
      \;\to\; \frac{1}{\eta t} \quad (\lambda_i \to 0).$$

    One for each direction; they are nearly equal where $\eta \lambda_i t$ is small.

    Args:
        eigenvalues: $\lambda_i \ge 0$, shape `(d,)`.
        learning_rate: $\eta > 0$; with $\eta \lambda_i > 1$ a penalty may be negative. Traced.
        num_steps: $t \ge 1$. Traced.

    Returns:
        The penalties, shape `(d,)`.

    Raises:
        ValueError: As in `descent_filter`, or `num_steps` is less than 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import early_stopping
        >>> early_stopping.equivalent_penalty(
        ...     jnp.array([0.0, 1.0]), learning_rate=0.5, num_steps=1
        ... ).tolist()
        [2.0, 1.0]
    """
    eigenvalues = _eigenvalues(eigenvalues)
    num_steps = _checks.count("num_steps", num_steps)
    share = descent_filter(eigenvalues, learning_rate=learning_rate, num_steps=num_steps)
    steps = jnp.asarray(learning_rate, share.dtype) * num_steps.astype(share.dtype)
    flat = eigenvalues == 0
    exact = eigenvalues * (1 - share) / jnp.where(flat, 1.0, share)
    return jnp.where(flat, 1 / steps, exact)


def _rule(
    remember: Callable[[], PyTree],
    fires: Callable[[Any, Array, Array], tuple[PyTree, Array]],
) -> Rule:
    """Make a rule that counts updates and stays stopped."""

    def init() -> State:
        return State(jnp.zeros((), jnp.int32), jnp.full((), -1, jnp.int32), remember())

    def update(
        state: State, train_loss: ArrayLike, validation_loss: ArrayLike
    ) -> tuple[State, Array]:
        memory, fired = fires(
            state.memory,
            _loss("train_loss", train_loss),
            _loss("validation_loss", validation_loss),
        )
        first = fired & (state.stopped_at < 0)
        when = jnp.where(first, state.num_updates, state.stopped_at)
        return State(state.num_updates + 1, when, memory), when >= 0

    return Rule(init, update)


def _dtype() -> Any:
    return jnp.result_type(float)  # float32, or float64 where that is on


def _loss(name: str, value: ArrayLike) -> Array:
    return _checks.floating(name, value, ndim=0).astype(_dtype())


def _scalar(name: str, value: ArrayLike) -> Array:
    array = _checks.floating(name, value, ndim=0)
    if _checks.is_concrete(array) and bool(jnp.isnan(array)):
        raise ValueError(f"{name} must be a number, got nan")
    return array


def _eigenvalues(eigenvalues: ArrayLike) -> Array:
    array = _checks.floating("eigenvalues", eigenvalues, ndim=1)
    _checks.not_negative("eigenvalues", array)
    return array


def _check_rule(name: str, rule: object) -> None:
    if not isinstance(rule, Rule):
        raise TypeError(f"{name} must hold a Rule such as no_improvement(5), got {rule!r}")


def _same_kind(wanted: PyTree, got: PyTree) -> None:
    if jax.tree.structure(wanted) != jax.tree.structure(got):
        raise ValueError(
            f"params must have the structure {jax.tree.structure(wanted)} of best.params, "
            f"got {jax.tree.structure(got)}"
        )
    paths = jax.tree_util.tree_leaves_with_path(wanted)
    for (path, old), new in zip(paths, jax.tree.leaves(got), strict=True):
        new = jnp.asarray(new)
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            where = jax.tree_util.keystr(path)
            raise ValueError(
                f"params{where} must have shape {old.shape} and dtype {old.dtype} as in "
                f"best.params, got {new.shape} and {new.dtype}"
            )
