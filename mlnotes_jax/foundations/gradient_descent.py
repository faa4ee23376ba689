r"""Gradient descent: small steps against the gradient.

With the learning rate $\eta$ and the gradient $g_t$ of the whole loss, or of its mean over a
mini-batch $B_t$,

$$\theta_{t+1} = \theta_t - \eta\, g_t, \qquad
  g_t = \frac{1}{|B_t|} \sum_{i \in B_t} \nabla \ell_i(\theta_t).$$

On a quadratic whose Hessian has the eigenvalues $\lambda_{\min} \dots \lambda_{\max}$ it converges
for $0 < \eta < 2 / \lambda_{\max}$ and does so fastest at $\eta = 2 / (\lambda_{\min} +
\lambda_{\max})$.

Reference: Bottou, Curtis and Nocedal, *Optimization Methods for Large-Scale Machine Learning*
(SIAM Review, 2018), sections 3 and 4.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, PyTree

from mlnotes_jax import _checks

__all__ = [
    "Counts",
    "Descent",
    "MultiStart",
    "Training",
    "best_learning_rate",
    "contraction_factor",
    "counts",
    "example_gradients",
    "exponential_average",
    "gradient_descent",
    "minibatch_variance",
    "minimize",
    "multi_start",
    "stable_learning_rate",
]


class Descent(NamedTuple):
    """A walk down a function, all of it.

    Attributes:
        params: Where it ended; as `start`.
        path: Where it was: every leaf of `start` with a leading axis of `num_steps + 1`.
        loss: The function there, shape `(num_steps + 1,)`.
        gradient_norm: The Euclidean norm of the gradient there, shape `(num_steps + 1,)`.
        converged: Whether the last gradient norm is at most `tolerance`, shape `()`.
        diverged: Whether the loss ended higher than it began, or not finite, shape `()`.
    """

    params: PyTree
    path: PyTree
    loss: Float[Array, " steps"]
    gradient_norm: Float[Array, " steps"]
    converged: Bool[Array, ""]
    diverged: Bool[Array, ""]


class MultiStart(NamedTuple):
    """Several walks, and the one that ended lowest.

    Attributes:
        best: The walk with the lowest finite loss at its end (the first of equals). Where none is
            finite, the first walk, whose `diverged` then says so.
        index: Which it was, shape `()`.
        runs: All walks, stacked along a leading axis.
    """

    best: Descent
    index: Int[Array, ""]
    runs: Descent


class Training(NamedTuple):
    """What mini-batch descent did.

    Attributes:
        params: Where it ended; as the `params` it began with.
        batch_loss: The loss of each batch just before the update that the batch caused, shape
            `(num_epochs, updates_per_epoch)`.
        epoch_loss: The loss of all the data before the first epoch and after each, shape
            `(num_epochs + 1,)`.
        diverged: Whether `epoch_loss` ended higher than it began, or not finite, shape `()`.
    """

    params: PyTree
    batch_loss: Float[Array, "epochs updates"]
    epoch_loss: Float[Array, " epochs_and_start"]
    diverged: Bool[Array, ""]


class Counts(NamedTuple):
    """How often things happen in training.

    Attributes:
        updates_per_epoch: Batches, and so steps of the parameters, in one pass over the data.
        num_updates: Updates in all. An *iteration* is the same thing as an update.
        last_batch_size: Rows in the last batch of an epoch.
        examples_seen: Example gradients computed in all.
    """

    updates_per_epoch: int
    num_updates: int
    last_batch_size: int
    examples_seen: int


def gradient_descent(
    f: Callable[..., Array],
    start: PyTree,
    *args: Any,
    learning_rate: Float[ArrayLike, "*num_steps"],
    num_steps: int,
    tolerance: Float[ArrayLike, ""] = 1e-4,
) -> Descent:
    r"""Walk down `f` by $\theta_{t+1} = \theta_t - \eta \nabla f(\theta_t)$ and keep the path.

    Failure is data: a learning rate that is too large is not an error but a walk whose
    `diverged` is true.

    Args:
        f: Differentiable map from parameters (an array or a pytree of them) and `args` to a
            scalar.
        start: Where to begin. Integers are promoted to floats.
        *args: What else `f` needs, such as data. Passed, not closed over, so that it does not
            become a constant of the compiled program.
        learning_rate: $\eta > 0$: one number, or one for each step, shape `(num_steps,)`.
        num_steps: How many steps; static. The path takes `num_steps + 1` times the memory of
            `start` (under `jit`, only if it is used).
        tolerance: The gradient norm at which the walk counts as converged.

    Returns:
        The path with its losses and gradient norms.

    Raises:
        ValueError: `num_steps` is less than 1, `learning_rate` is not positive or has another
            shape, or `tolerance` is negative.

    Example:
        >>> from mlnotes_jax.foundations import gradient_descent as gd
        >>> walk = gd.gradient_descent(lambda x: (x - 3.0) ** 2, 0, learning_rate=0.5, num_steps=1)
        >>> float(walk.params), bool(walk.converged)
        (3.0, True)

    Reference:
        Cauchy (1847); Nocedal and Wright, *Numerical Optimization* (2006), section 3.3.
    """
    start = _parameters("start", start)
    _checks.positive_int("num_steps", num_steps)
    rates = _rates(learning_rate, num_steps)
    _checks.not_negative("tolerance", tolerance)
    value_and_grad = jax.value_and_grad(f)

    def step(params: PyTree, rate: Array) -> tuple[PyTree, tuple[PyTree, Array, Array]]:
        value, grad = value_and_grad(params, *args)
        return _move(params, grad, rate), (params, value, _norm(grad))

    last, (path, values, norms) = jax.lax.scan(step, start, rates)
    value, grad = value_and_grad(last, *args)
    path = jax.tree.map(lambda past, end: jnp.concatenate([past, end[None]]), path, last)
    loss = jnp.concatenate([values, value[None]])
    norms = jnp.concatenate([norms, _norm(grad)[None]])
    converged = norms[-1] <= jnp.asarray(tolerance, norms.dtype)
    return Descent(last, path, loss, norms, converged, _diverged(loss))


def multi_start(
    f: Callable[..., Array],
    starts: PyTree,
    *args: Any,
    learning_rate: Float[ArrayLike, "*num_steps"],
    num_steps: int,
    tolerance: Float[ArrayLike, ""] = 1e-4,
) -> MultiStart:
    r"""Run `gradient_descent` from many points at once and keep the best end.

    One walk finds the bottom of the basin that it starts in. If the basin of the lowest point
    holds a share $p$ of the places where one may start, then $k$ independent starts all miss it
    with probability $(1 - p)^k$.

    Args:
        f: As in `gradient_descent`.
        starts: Where to begin: parameters with a leading axis, one entry for each walk.
        *args: What else `f` needs; shared by all walks.
        learning_rate: As in `gradient_descent`; shared by all walks.
        num_steps: As in `gradient_descent`.
        tolerance: As in `gradient_descent`.

    Returns:
        The best walk, its index, and all walks.

    Raises:
        ValueError: A leaf of `starts` has no leading axis or another length, or as in
            `gradient_descent`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.foundations import gradient_descent as gd
        >>> f = lambda x: (x**2 - 1.0) ** 2 + 0.2 * x  # two valleys, the left one deeper
        >>> found = gd.multi_start(f, jnp.array([1.0, -0.5]), learning_rate=0.05, num_steps=100)
        >>> int(found.index), [round(float(end), 2) for end in found.runs.params]
        (1, [0.97, -1.02])
    """
    starts = _parameters("starts", starts)
    _num_rows("starts", starts)

    def run(start: PyTree) -> Descent:
        return gradient_descent(
            f,
            start,
            *args,
            learning_rate=learning_rate,
            num_steps=num_steps,
            tolerance=tolerance,
        )

    runs = jax.vmap(run)(starts)
    final = runs.loss[:, -1]
    index = jnp.argmin(jnp.where(jnp.isfinite(final), final, jnp.inf))
    return MultiStart(jax.tree.map(lambda leaf: leaf[index], runs), index, runs)


def minimize(
    key: Key[Array, ""],
    loss: Callable[[PyTree, PyTree], Array],
    params: PyTree,
    data: PyTree,
    *,
    batch_size: int,
    num_epochs: int,
    learning_rate: Float[ArrayLike, "*num_updates"],
    shuffle: bool = True,
    drop_remainder: bool = False,
) -> Training:
    r"""Full-batch, mini-batch or stochastic gradient descent, by `batch_size`.

    One `lax.scan` over epochs; in each, one `lax.scan` over the batches of a fresh permutation of
    the rows. `batch_size = n` is full-batch descent (one update an epoch, in the order of the
    rows), `batch_size = 1` is stochastic descent (n updates an epoch). A remainder of rows is a
    smaller last batch unless it is dropped.

    Args:
        key: For the permutations.
        loss: Maps parameters and a batch (`data` with fewer rows) to the *mean* loss of the batch.
            With a sum, the size of a step would change with the size of the batch.
        params: Where to begin, an array or a pytree.
        data: Pytree of arrays with one leading axis of n rows.
        batch_size: Rows in a batch, 1 to n; static.
        num_epochs: Passes over the data; static.
        learning_rate: $\eta > 0$: one number, or one for each update, shape
            `(num_epochs * updates_per_epoch,)`; see `counts`.
        shuffle: Whether to permute the rows anew in each epoch; static. A full batch never is.
        drop_remainder: Whether to leave out the last batch where it would be smaller; static.

    Returns:
        Parameters and losses. `epoch_loss` costs one more forward pass an epoch (under `jit`, only
        if it or `diverged` is used).

    Raises:
        ValueError: `batch_size` is not in 1..n, a count is less than 1, leaves of `data` differ in
            length, or `learning_rate` is not positive or has another shape.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.foundations import gradient_descent as gd
        >>> loss = lambda mean, batch: 0.5 * ((batch - mean) ** 2).mean()
        >>> data = jnp.array([1.0, 2.0, 3.0, 6.0])
        >>> full = gd.minimize(
        ...     jax.random.key(0), loss, 0.0, data, batch_size=4, num_epochs=1, learning_rate=1.0
        ... )
        >>> float(full.params)
        3.0

    Reference:
        Robbins and Monro, *A Stochastic Approximation Method* (1951); Bottou, Curtis and Nocedal
        (2018), section 3.
    """
    params, data = _parameters("params", params), jax.tree.map(jnp.asarray, data)
    n = _num_rows("data", data)
    count = counts(n, batch_size=batch_size, num_epochs=num_epochs, drop_remainder=drop_remainder)
    rates = _rates(learning_rate, count.num_updates, name="num_updates")
    full_batches = n // batch_size
    remainder = count.updates_per_epoch - full_batches

    def update(params: PyTree, rows_and_rate: tuple[Array, Array]) -> tuple[PyTree, Array]:
        rows, rate = rows_and_rate
        batch = jax.tree.map(lambda leaf: leaf[rows], data)
        value, grad = jax.value_and_grad(loss)(params, batch)
        return _move(params, grad, rate), value

    def epoch(
        params: PyTree, key_and_rates: tuple[Array, Array]
    ) -> tuple[PyTree, tuple[Array, Array]]:
        key, rates = key_and_rates
        order = jnp.arange(n)
        if shuffle and batch_size < n:
            order = jax.random.permutation(key, order)
        batches = order[: full_batches * batch_size].reshape(full_batches, batch_size)
        params, values = jax.lax.scan(update, params, (batches, rates[:full_batches]))
        if remainder:
            rest = order[full_batches * batch_size :]
            params, value = update(params, (rest, rates[-1]))
            values = jnp.concatenate([values, value[None]])
        return params, (values, loss(params, data))

    keys = jax.random.split(key, num_epochs)
    rates = rates.reshape(num_epochs, count.updates_per_epoch)
    first = loss(params, data)
    params, (batch_loss, epoch_loss) = jax.lax.scan(epoch, params, (keys, rates))
    epoch_loss = jnp.concatenate([first[None], epoch_loss])
    return Training(params, batch_loss, epoch_loss, _diverged(epoch_loss))


def counts(
    num_examples: int, *, batch_size: int, num_epochs: int = 1, drop_remainder: bool = False
) -> Counts:
    r"""Count updates: $\lceil n / B \rceil$ an epoch, or $\lfloor n / B \rfloor$ without remainder.

    An *epoch* is one pass over the data; an *update*, or *iteration*, is one step of the
    parameters, made from one batch. All arguments are Python integers, and so are the answers.

    Args:
        num_examples: Rows of the data, n.
        batch_size: Rows in a batch, B, from 1 to n.
        num_epochs: Passes over the data.
        drop_remainder: Whether a smaller last batch is left out.

    Returns:
        The counts.

    Raises:
        ValueError: A count is less than 1, or `batch_size` more than `num_examples`.
        TypeError: A count is not an integer.

    Example:
        >>> from mlnotes_jax.foundations import gradient_descent as gd
        >>> gd.counts(1000, batch_size=64, num_epochs=10)
        Counts(updates_per_epoch=16, num_updates=160, last_batch_size=40, examples_seen=10000)
    """
    _checks.positive_int("num_examples", num_examples)
    _checks.positive_int("batch_size", batch_size)
    _checks.positive_int("num_epochs", num_epochs)
    if batch_size > num_examples:
        raise ValueError(
            f"batch_size must be at most the number of rows, {num_examples}, got {batch_size}"
        )
    full, rest = divmod(num_examples, batch_size)
    if rest and not drop_remainder:
        return Counts(full + 1, num_epochs * (full + 1), rest, num_epochs * num_examples)
    return Counts(full, num_epochs * full, batch_size, num_epochs * full * batch_size)


def exponential_average(
    values: Float[ArrayLike, "steps ..."],
    *,
    decay: Float[ArrayLike, ""],
    start: Literal["debiased", "zero", "first"] = "debiased",
) -> Float[Array, "steps ..."]:
    r"""Average a series with weights that fade into the past, to see a curve through its noise.

    $$m_t = \beta\, m_{t-1} + (1 - \beta)\, v_t, \qquad t = 1, 2, \dots$$

    where $\beta$ is `decay`. From $m_0 = 0$ the weights add up to $1 - \beta^t$, so that the first
    averages are too small; dividing by that sum removes the bias. The window is about
    $1 / (1 - \beta)$ values long.

    Args:
        values: The series along its first axis, shape `(steps, ...)`.
        decay: $\beta$ in [0, 1). Some courses write $\beta$ for the weight of the *new* value:
            that is `1 - decay`.
        start: `"debiased"`: $m_0 = 0$ and the division; `"zero"`: $m_0 = 0$ without it;
            `"first"`: $m_0 = v_1$, so that the first value counts more than a later one.

    Returns:
        $m_1, \dots, m_T$ (or their debiased form), shape of `values`, in at least float32.

    Raises:
        ValueError: `values` is a scalar or empty, `decay` is not in [0, 1), or `start` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.foundations import gradient_descent as gd
        >>> gd.exponential_average(jnp.array([8.0, 4.0]), decay=0.5, start="zero").tolist()
        [4.0, 4.0]

    Note:
        `optax.ema(decay, debias=...)` is `"debiased"` and `"zero"`.
    """
    values = _checks.floating("values", values)
    if values.ndim == 0:
        raise ValueError("values must have a first axis, got a scalar")
    _checks.not_empty("values", values)
    decay = _checks.floating("decay", decay, ndim=0)
    _checks.not_negative("decay", decay)
    _checks.positive("1 - decay", 1 - decay)
    _checks.one_of("start", start, ("debiased", "zero", "first"))
    values = _wide(values)
    return _average(values, decay.astype(values.dtype), start)


def stable_learning_rate(eigenvalues: Float[ArrayLike, " d"]) -> Float[Array, ""]:
    r"""Where descent on a quadratic begins to diverge: $2 / \lambda_{\max}$.

    Args:
        eigenvalues: Of the Hessian, in any order, none negative, shape `(d,)`; at a minimum of a
            general loss, the answer holds near it.

    Returns:
        The limit, shape `()`: descent converges below it. Infinite where all eigenvalues are zero,
        NaN where one is negative: then no rate is stable.

    Raises:
        ValueError: `eigenvalues` is not a vector, empty, or (where concrete) has a negative entry.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.foundations import gradient_descent as gd
        >>> float(gd.stable_learning_rate(jnp.array([1.0, 4.0])))
        0.5
    """
    eigenvalues = _spectrum(eigenvalues)
    return 2 / eigenvalues.max()


def best_learning_rate(eigenvalues: Float[ArrayLike, " d"]) -> Float[Array, ""]:
    r"""The fastest constant rate on a quadratic: $2 / (\lambda_{\min} + \lambda_{\max})$.

    With the condition number $\kappa = \lambda_{\max} / \lambda_{\min}$, every step then multiplies
    the distance to the minimum by at most $(\kappa - 1) / (\kappa + 1)$.

    Args:
        eigenvalues: As in `stable_learning_rate`. Where zeros mean directions that do not matter,
            leave them out.

    Returns:
        The rate, shape `()`.

    Raises:
        ValueError: As in `stable_learning_rate`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.foundations import gradient_descent as gd
        >>> float(gd.best_learning_rate(jnp.array([1.0, 3.0])))
        0.5
    """
    eigenvalues = _spectrum(eigenvalues)
    return 2 / (eigenvalues.min() + eigenvalues.max())


def contraction_factor(
    eigenvalues: Float[ArrayLike, " d"], *, learning_rate: Float[ArrayLike, ""]
) -> Float[Array, ""]:
    r"""The worst factor of one step on a quadratic: $\max_i |1 - \eta \lambda_i|$.

    Args:
        eigenvalues: As in `stable_learning_rate`; here they may be negative.
        learning_rate: $\eta > 0$.

    Returns:
        The factor, shape `()`: less than 1 is convergence from everywhere.

    Raises:
        ValueError: `eigenvalues` is not a non-empty vector, or `learning_rate` is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.foundations import gradient_descent as gd
        >>> float(gd.contraction_factor(jnp.array([1.0, 3.0]), learning_rate=0.5))
        0.5
    """
    eigenvalues = _checks.floating("eigenvalues", eigenvalues, ndim=1)
    _checks.not_empty("eigenvalues", eigenvalues)
    _checks.positive("learning_rate", learning_rate)
    return jnp.abs(1 - jnp.asarray(learning_rate, eigenvalues.dtype) * eigenvalues).max()


def example_gradients(
    loss: Callable[[PyTree, PyTree], Array], params: PyTree, data: PyTree
) -> PyTree:
    """The gradient of each example's own loss.

    Args:
        loss: As in `minimize`; it sees batches of one row.
        params: Where the gradients are taken, an array or a pytree.
        data: Pytree of arrays with one leading axis of n rows.

    Returns:
        Gradients: `params` with a leading axis of n. That is n times the memory of `params`.

    Raises:
        ValueError: Leaves of `data` differ in length.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.foundations import gradient_descent as gd
        >>> loss = lambda mean, batch: 0.5 * ((batch - mean) ** 2).mean()
        >>> gd.example_gradients(loss, 0.0, jnp.array([1.0, 3.0])).tolist()
        [-1.0, -3.0]
    """
    params, data = _parameters("params", params), jax.tree.map(jnp.asarray, data)
    _num_rows("data", data)

    def gradient(example: PyTree) -> PyTree:
        return jax.grad(loss)(params, jax.tree.map(lambda leaf: leaf[None], example))

    return jax.vmap(gradient)(data)


def minibatch_variance(
    gradients: PyTree, *, batch_size: Float[ArrayLike, ""], replacement: bool = False
) -> PyTree:
    r"""Variance of the gradient of a random mini-batch, entry by entry.

    With $\sigma^2$ the variance of the n example gradients (the mean square about their mean),

    $$\operatorname{Var} g_B = \frac{\sigma^2}{B} \quad \text{with replacement}, \qquad
      \frac{\sigma^2}{B} \cdot \frac{n - B}{n - 1} \quad \text{without}.$$

    The batches of a shuffled epoch are drawn without: at B = n the noise is gone.

    Args:
        gradients: Of the n examples: a pytree with one leading axis of n; see `example_gradients`.
        batch_size: B, from 1 to n (more than n is allowed with replacement). Traced.
        replacement: Whether an example may come twice in a batch; static.

    Returns:
        Variances: a pytree without the leading axis, in at least float32.

    Raises:
        ValueError: Leaves differ in length, or `batch_size` is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.foundations import gradient_descent as gd
        >>> gradients = jnp.array([-3.0, -1.0, 1.0, 3.0])  # variance 5
        >>> float(gd.minibatch_variance(gradients, batch_size=2, replacement=True))
        2.5
        >>> float(gd.minibatch_variance(gradients, batch_size=4))
        0.0

    Reference:
        Cochran, *Sampling Techniques* (1977), section 2.4: the finite-population factor.
    """
    gradients = _parameters("gradients", gradients)
    n = _num_rows("gradients", gradients)
    if replacement:
        _checks.positive("batch_size", batch_size)
    else:
        _checks.in_range("batch_size", batch_size, 1, n)

    def variance(leaf: Array) -> Array:
        leaf = _wide(leaf)
        size = jnp.asarray(batch_size, leaf.dtype)
        factor = 1 / size if replacement else (n - size) / (size * max(n - 1, 1))
        return leaf.var(axis=0) * factor

    return jax.tree.map(variance, gradients)


def _parameters(name: str, params: PyTree) -> PyTree:
    if not jax.tree.leaves(params):
        raise ValueError(f"{name} must hold at least one array, got {params!r}")
    return jax.tree.map(lambda leaf: _checks.floating(name, leaf), params)


def _num_rows(name: str, data: PyTree) -> int:
    shapes = [leaf.shape for leaf in jax.tree.leaves(data)]
    if not shapes or any(not shape or shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f"{name} must hold arrays with one common first axis, got shapes {shapes}")
    if shapes[0][0] == 0:
        raise ValueError(f"{name} must not be empty, got shapes {shapes}")
    return shapes[0][0]


def _rates(learning_rate: ArrayLike, num_steps: int, name: str = "num_steps") -> Array:
    rates = _checks.floating("learning_rate", learning_rate)
    if rates.shape not in ((), (num_steps,)):
        raise ValueError(
            f"learning_rate must be a scalar or have shape ({name},) = ({num_steps},), "
            f"got shape {rates.shape}"
        )
    _checks.positive("learning_rate", rates)
    _checks.finite("learning_rate", rates)
    return jnp.broadcast_to(rates, (num_steps,))


def _move(params: PyTree, grad: PyTree, rate: Array) -> PyTree:
    return jax.tree.map(lambda p, g: p - rate.astype(p.dtype) * g, params, grad)


def _norm(tree: PyTree) -> Array:
    squares = [jnp.square(_wide(leaf)).sum() for leaf in jax.tree.leaves(tree)]
    dtype = max((square.dtype for square in squares), key=lambda dtype: dtype.itemsize)
    return jnp.sqrt(jnp.stack([square.astype(dtype) for square in squares]).sum())


def _wide(array: Array) -> Array:
    return array.astype(jnp.float32) if jnp.finfo(array.dtype).bits < 32 else array


def _diverged(loss: Array) -> Array:
    return ~(jnp.isfinite(loss[-1]) & (loss[-1] <= loss[0]))


@functools.partial(jax.jit, static_argnames="start")
def _average(values: Array, decay: Array, start: str) -> Array:
    def step(carry: tuple[Array, Array], value: Array) -> tuple[tuple[Array, Array], Array]:
        mean, weight = carry
        mean = decay * mean + (1 - decay) * value
        weight = decay * weight + (1 - decay)  # the same average of a series of ones
        return (mean, weight), mean / weight if start == "debiased" else mean

    initial = values[0] if start == "first" else jnp.zeros_like(values[0])
    return jax.lax.scan(step, (initial, jnp.zeros_like(decay)), values)[1]


def _spectrum(eigenvalues: ArrayLike) -> Array:
    eigenvalues = _checks.floating("eigenvalues", eigenvalues, ndim=1)
    _checks.not_empty("eigenvalues", eigenvalues)
    _checks.not_negative("eigenvalues", eigenvalues)
    return jnp.where((eigenvalues < 0).any(), jnp.nan, eigenvalues)
