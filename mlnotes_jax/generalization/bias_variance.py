r"""Bias and variance: the parts of a prediction error, measured over many drawn data sets.

A fit to a random data set $D$ gives a random function $f_D$. At a point $x$ a fresh target is
$y = h(x) + \varepsilon$, with $\mathbb E\, \varepsilon = 0$, $\operatorname{Var} \varepsilon =
\sigma^2$, and $\varepsilon$ independent of $D$. With $\bar f(x) = \mathbb E_D f_D(x)$,

$$\mathbb E\, (y - f_D(x))^2 = \underbrace{(\bar f(x) - h(x))^2}_{\text{bias}^2}
  + \underbrace{\mathbb E\, (f_D(x) - \bar f(x))^2}_{\text{variance}}
  + \underbrace{\sigma^2}_{\text{noise}} .$$

Reference: Geman, Bienenstock and Doursat, *Neural Networks and the Bias/Variance Dilemma* (1992),
section 3.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree

from mlnotes_jax import _checks, _protocol

__all__ = [
    "ClosedForm",
    "Decomposition",
    "Estimate",
    "Moments",
    "OutOfBag",
    "Parts",
    "closed_form",
    "decompose",
    "linear_smoother",
    "out_of_bag",
    "variance_estimator",
]


class Estimate(NamedTuple):
    """A measured number, and how sure it is.

    Attributes:
        value: The number.
        standard_error: The standard deviation it would have if the experiment were repeated, as far
            as this one experiment can tell; of the same shape.
    """

    value: Float[Array, "..."]
    standard_error: Float[Array, "..."]


class Parts(NamedTuple):
    r"""The parts of an error, and the error itself.

    Attributes:
        bias_squared: $(\bar f - h)^2$, estimated without bias: where it is nearly 0, the estimate
            may come out negative.
        variance: $\mathbb E (f_D - \bar f)^2$.
        noise: $\sigma^2$.
        total: The sum of the three.
        error: $\mathbb E (y - f_D)^2$, measured directly on fresh targets.
        gap: `error` minus `total`: 0 within a few of its standard errors.
    """

    bias_squared: Estimate
    variance: Estimate
    noise: Estimate
    total: Estimate
    error: Estimate
    gap: Estimate


class Decomposition(NamedTuple):
    """What many fits to many data sets have shown.

    Attributes:
        average: Parts of the error, averaged over all points, each of shape `()`.
        pointwise: Parts at each point, each of shape `(m, ...)`.
        mean_prediction: Average of all fits, shape `(m, ...)`.
        predictions: Of each fit, shape `(num_datasets, m, ...)`.
        targets: The fresh targets drawn beside it, of the same shape.
        num_failed: How many fits predicted something that is not finite, shape `()`. One of them
            makes the numbers at its points NaN or infinite.
    """

    average: Parts
    pointwise: Parts
    mean_prediction: Float[Array, "m ..."]
    predictions: Float[Array, "r m ..."]
    targets: Float[Array, "r m ..."]
    num_failed: Int[Array, ""]


class ClosedForm(NamedTuple):
    """The parts of the error of a linear smoother, exact, each of shape `(m,)`.

    Attributes:
        mean_prediction: Expected prediction.
        bias_squared: As in `Parts`.
        variance: As in `Parts`.
        noise: As in `Parts`.
        total: Their sum, the expected squared error on a fresh target.
    """

    mean_prediction: Float[Array, " m"]
    bias_squared: Float[Array, " m"]
    variance: Float[Array, " m"]
    noise: Float[Array, " m"]
    total: Float[Array, " m"]


class OutOfBag(NamedTuple):
    r"""What resampling one data set shows, each row judged by the fits that have not seen it.

    Attributes:
        variance: Variance of the fits, averaged over rows, shape `()`.
        bias_squared_and_noise: $(y - \bar f)^2$, averaged over rows, shape `()`: with one target
            for each row, bias and noise cannot be told apart.
        error: Squared error, averaged over fits and rows, shape `()`: the sum of the two.
        mean_prediction: Average of the fits that have not seen the row, shape `(n,)`.
        row_variance: Variance for each row, shape `(n,)`.
        num_fits: How many fits have not seen the row, shape `(n,)`; with fewer than two there is no
            answer, and the row's numbers are NaN.
    """

    variance: Estimate
    bias_squared_and_noise: Estimate
    error: Estimate
    mean_prediction: Float[Array, " n"]
    row_variance: Float[Array, " n"]
    num_fits: Int[Array, " n"]


class Moments(NamedTuple):
    """An estimator's quality, each of the shape of the arguments.

    Attributes:
        mean: Its expectation.
        bias: `mean` minus what it should estimate.
        variance: How much it scatters.
        mean_squared_error: `bias` squared plus `variance`.
    """

    mean: Float[Array, "..."]
    bias: Float[Array, "..."]
    variance: Float[Array, "..."]
    mean_squared_error: Float[Array, "..."]


def decompose(
    key: Key[Array, ""],
    fit: Callable[..., PyTree],
    predict: Callable[[PyTree, PyTree], Array],
    draw: Callable[[Array], tuple],
    x: PyTree,
    *,
    observe: Callable[[Array, PyTree], Array] | None = None,
    truth: Callable[[PyTree], Array] | ArrayLike | None = None,
    num_datasets: int = 1000,
    chunk_size: int | None = None,
) -> Decomposition:
    r"""Draw many data sets, fit each, and take the error at `x` apart.

    Data set $r$ gives the prediction $f_r$, and beside it a fresh target $y_r$ at the same points.
    Where the truth $h$ is not given, let $d_r = f_r - y_r$; with sample moments over $r$

    $$\widehat{\text{bias}^2} = \bar d^2 - \tfrac1R s_d^2, \quad
      \widehat{\text{variance}} = s_f^2, \quad \widehat{\text{noise}} = s_y^2, \quad
      \widehat{\text{error}} = \tfrac1R \textstyle\sum_r d_r^2 ,$$

    where $s^2$ divides by $R - 1$. All four are unbiased; the term $s_d^2 / R$ is what the plain
    $\bar d^2$ has too much. They leave a gap of exactly $-2 \operatorname{cov}(f, y)$, a sample
    covariance of independent numbers. If $h$ is given, $u_r = f_r - h$ and $v_r = y_r - h$ take the
    place of $d_r$ in the bias and of $y_r$ in the noise, which makes both more precise. Standard
    errors are those of the jackknife (each data set left out in turn), in closed form; that of
    $\text{bias}^2$ also counts the term $2 s^4 / (R (R - 1))$ of its variance, which the jackknife
    misses where there is no bias. On average over points that is an upper bound.

    Call it under `jax.jit`, or under `vmap` over a setting of `fit`: with one key for all settings,
    all of them see the same data sets.

    Args:
        key: Draws the data sets, the fresh targets, and what `fit` draws.
        fit: `fit(*data) -> model`, for example `fit(x, y)`; where its first argument is called
            `key`, it gets one.
        predict: `predict(model, x)`, shape `(m, ...)`.
        draw: `draw(key) -> data`, a tuple of arrays: one data set, of the same shapes every time.
        x: The points at which the error is measured, for `predict` and `observe`.
        observe: `observe(key, x)`: fresh targets at `x`, of the shape of the predictions. Without
            it targets are the truth itself, and the noise is 0.
        truth: $h(x)$, as a function of `x` or as an array of the shape of the predictions. Without
            it the mean of the fresh targets takes its place.
        num_datasets: R, 3 or more; static.
        chunk_size: How many data sets are fitted at once; static. All, by default. Smaller chunks
            need less memory. All predictions are kept in any case.

    Returns:
        Parts of the error, for each point and averaged over points.

    Raises:
        ValueError: Neither `observe` nor `truth` is given, shapes differ, or a count is too small.
        TypeError: A function is not callable, or `draw` does not return a tuple.

    Example:
        >>> import jax
        >>> from mlnotes_jax.generalization import bias_variance
        >>> def draw(key):  # five numbers around 3; fit their mean
        ...     return (3.0 + jax.random.normal(key, (5,)),)
        >>> parts = bias_variance.decompose(
        ...     jax.random.key(0), lambda y: y.mean(), lambda model, x: model, draw, None,
        ...     truth=3.0, num_datasets=4000,
        ... ).average
        >>> abs(float(parts.variance.value) - 1 / 5) < 4 * float(parts.variance.standard_error)
        True

    Reference:
        Efron and Stein, *The Jackknife Estimate of Variance* (Annals of Statistics, 1981).

    Note:
        The squared loss only. For the zero-one loss there are several decompositions, which do not
        agree with each other (Domingos 2000).
    """
    for name, function in (("fit", fit), ("predict", predict), ("draw", draw)):
        _callable(name, function)
    if observe is not None:
        _callable("observe", observe)
    if observe is None and truth is None:
        raise ValueError("observe or truth must be given, got neither")
    _checks.positive_int("num_datasets", num_datasets, least=3)
    if chunk_size is not None:
        _checks.positive_int("chunk_size", chunk_size)
    fit = _protocol.keyed(fit)
    values = truth(x) if callable(truth) else truth
    known = None if values is None else _wide(_checks.floating("truth", values))

    def one(keys: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        draw_key, fit_key, observe_key = keys
        data = draw(draw_key)
        if not isinstance(data, tuple):
            raise TypeError(f"draw must return a tuple of arrays, got {type(data).__name__}")
        prediction = _wide(_checks.floating("predict(model, x)", predict(fit(fit_key, *data), x)))
        fresh = values if observe is None else observe(observe_key, x)
        target = _wide(_checks.floating("observe(key, x)", cast(ArrayLike, fresh)))
        for name, array in (("truth", known), ("observe(key, x)", target)):
            if array is not None and array.shape != prediction.shape:
                raise ValueError(
                    f"{name} must have the shape {prediction.shape} of predict(model, x), "
                    f"got {array.shape}"
                )
        return prediction, target

    keys = tuple(jax.random.split(key, (3, num_datasets)))
    predictions, targets = _map(one, keys, chunk_size)
    dtype = _wider(predictions.dtype, targets.dtype)
    known = None if known is None else known.astype(dtype)
    return _summary(predictions.astype(dtype), targets.astype(dtype), known)


def linear_smoother(
    fit: Callable[[Array, Array], PyTree],
    predict: Callable[[PyTree, PyTree], Array],
    x_train: Float[ArrayLike, "n ..."],
    x: PyTree,
) -> Float[Array, "m n"]:
    r"""The matrix $L$ of a fit that is linear in the targets: its predictions are $L y$.

    Column $j$ is the prediction after a fit to the $j$-th unit vector: least squares and ridge of
    any features, splines, nearest neighbours, kernel smoothers are of this kind. Trees and networks
    are not.

    Args:
        fit: `fit(x_train, y) -> model`.
        predict: `predict(model, x)`, shape `(m,)`.
        x_train: The rows of the data set, shape `(n, ...)`.
        x: The points at which to predict.

    Returns:
        $L$, shape `(m, n)`. For `x` equal to `x_train` its trace is the effective number of
        parameters.

    Raises:
        ValueError: Predictions do not have one axis, or (where concrete) $L y$ is not what a fit to
            a test vector $y$ predicts: the fit is not linear in the targets.
        TypeError: A function is not callable.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import bias_variance
        >>> mean = bias_variance.linear_smoother(
        ...     lambda x, y: y.mean(), lambda model, x: jnp.full(2, model), jnp.zeros(4), None
        ... )
        >>> mean.tolist()
        [[0.25, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]]

    Reference:
        Hastie, Tibshirani and Friedman, *The Elements of Statistical Learning* (2009), section
        5.4.1.
    """
    _callable("fit", fit)
    _callable("predict", predict)
    rows = _wide(_checks.floating("x_train", x_train))
    if rows.ndim == 0:
        raise ValueError("x_train must have rows, got a scalar")
    _checks.not_empty("x_train", rows)
    n = rows.shape[0]

    def smooth(y: Array) -> Array:
        return _checks.floating("predict(model, x)", predict(fit(rows, y), x), ndim=1)

    # A vector of no special shape, with entries in [-1, 1]: the witness that L is all there is.
    test = jnp.cos(1.7 * jnp.arange(n, dtype=rows.dtype) + 0.3)
    every = jax.vmap(smooth)(jnp.concatenate([jnp.eye(n, dtype=rows.dtype), test[None]]))
    smoother, prediction = every[:n].T, every[n]
    with jax.default_matmul_precision("highest"):
        off = jnp.abs(smoother @ test - prediction).max()
    if _checks.is_concrete(off):
        size = float(jnp.abs(smoother).sum(axis=1).max())
        if not float(off) <= 1e3 * float(jnp.finfo(rows.dtype).eps) * max(size, 1e-30):
            raise ValueError(
                "fit must be linear in the targets, got predictions that differ from L y "
                f"by {float(off):.3g}"
            )
    return smoother


def closed_form(
    smoother: Float[ArrayLike, "m n"],
    truth_train: Float[ArrayLike, " n"],
    truth: Float[ArrayLike, " m"],
    *,
    noise_variance: Float[ArrayLike, ""],
) -> ClosedForm:
    r"""Bias and variance of a linear smoother on a fixed design, without drawing anything.

    With targets $y = h + \varepsilon$ at the rows and independent noise of variance $\sigma^2$, the
    prediction $L y$ has the mean $L h$ and at point $i$ the variance $\sigma^2 \sum_j L_{ij}^2$:

    $$\text{bias}^2_i = \Big( \sum_j L_{ij}\, h_j - h(x_i) \Big)^2 , \qquad
      \text{variance}_i = \sigma^2 \sum_j L_{ij}^2 .$$

    Args:
        smoother: $L$, from `linear_smoother`, shape `(m, n)`.
        truth_train: $h$ at the rows of the data set, shape `(n,)`.
        truth: $h$ at the points, shape `(m,)`.
        noise_variance: $\sigma^2 \ge 0$, of every target; traced.

    Returns:
        The parts at each point.

    Raises:
        ValueError: Shapes do not match, or `noise_variance` is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import bias_variance
        >>> mean = jnp.full((1, 4), 0.25)  # the mean of four targets, for a truth that is 0 0 0 4
        >>> parts = bias_variance.closed_form(
        ...     mean, jnp.array([0.0, 0.0, 0.0, 4.0]), jnp.array([4.0]), noise_variance=1.0
        ... )
        >>> float(parts.bias_squared[0]), float(parts.variance[0])
        (9.0, 0.25)

    Reference:
        Hastie, Tibshirani and Friedman, *The Elements of Statistical Learning* (2009), section 7.3.
    """
    smoother = _wide(_checks.floating("smoother", smoother, ndim=2))
    truth_train = _checks.floating("truth_train", truth_train, ndim=1).astype(smoother.dtype)
    truth = _checks.floating("truth", truth, ndim=1).astype(smoother.dtype)
    if smoother.shape != (truth.shape[0], truth_train.shape[0]):
        raise ValueError(
            f"smoother must have shape ({truth.shape[0]}, {truth_train.shape[0]}), "
            f"a row for each of truth and a column for each of truth_train, got {smoother.shape}"
        )
    noise = _checks.floating("noise_variance", noise_variance, ndim=0).astype(smoother.dtype)
    _checks.not_negative("noise_variance", noise)
    with jax.default_matmul_precision("highest"):
        mean = smoother @ truth_train
    bias_squared = (mean - truth) ** 2
    variance = noise * jnp.square(smoother).sum(axis=1)
    noise = jnp.broadcast_to(noise, truth.shape)
    return ClosedForm(mean, bias_squared, variance, noise, bias_squared + variance + noise)


def out_of_bag(
    key: Key[Array, ""],
    fit: Callable[..., PyTree],
    predict: Callable[[PyTree, Array], Array],
    x: Float[ArrayLike, "n ..."],
    y: Float[ArrayLike, " n"],
    *,
    num_resamples: int = 500,
    chunk_size: int | None = None,
) -> OutOfBag:
    r"""Bias (with noise) and variance of a fit when there is only one data set: the bootstrap.

    Each resample draws n of the n rows with replacement, and misses about $1/e$ = 37 % of them. A
    row is judged by the $R_i$ fits that missed it. With their mean $\bar f_i$ and sample variance
    $s_i^2$,

    $$\frac1{R_i} \sum_r (y_i - f_r(x_i))^2
      = \underbrace{(y_i - \bar f_i)^2 - \tfrac1{R_i} s_i^2}_{\text{bias}^2 + \text{noise}}
      + \underbrace{s_i^2}_{\text{variance}} .$$

    This is an estimate for data sets of about 63 % of the rows, because the others are copies; its
    variance is the scatter between resamples of the same rows, not between data sets.

    Args:
        key: Draws the resamples, and what `fit` draws.
        fit: `fit(x, y, sample_weight=counts) -> model`, or with a first argument called `key`.
        predict: `predict(model, x)`, shape `(n,)`.
        x: Rows, shape `(n, ...)`.
        y: Targets, shape `(n,)`.
        num_resamples: R, 2 or more; static. A row is missed by about 0.37 R of them.
        chunk_size: As in `decompose`.

    Returns:
        The parts averaged over rows. Their standard errors are the standard deviation over rows
        divided by $\sqrt n$: rows are taken as independent.

    Raises:
        ValueError: Shapes do not match, data are empty or not finite, or a count is too small.
        TypeError: A function is not callable.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.foundations import linear_regression
        >>> from mlnotes_jax.generalization import bias_variance
        >>> x = jnp.linspace(-1.0, 1.0, 20)[:, None]
        >>> y = x[:, 0] + (-1.0) ** jnp.arange(20)
        >>> found = bias_variance.out_of_bag(
        ...     jax.random.key(0), linear_regression.fit, linear_regression.predict, x, y
        ... )
        >>> bool(found.variance.value < found.bias_squared_and_noise.value)
        True

    Reference:
        Wolpert and Macready, *An Efficient Method to Estimate Bagging's Generalization Error*
        (Machine Learning, 1999).
    """
    _callable("fit", fit)
    _callable("predict", predict)
    _checks.positive_int("num_resamples", num_resamples, least=2)
    if chunk_size is not None:
        _checks.positive_int("chunk_size", chunk_size)
    x, y = _checks.floating("x", x), _wide(_checks.floating("y", y, ndim=1))
    if x.ndim == 0:
        raise ValueError("x must have rows, got a scalar")
    _checks.same_length(x=x, y=y)
    _checks.not_empty("x", x)
    _checks.finite("x", x)
    _checks.finite("y", y)
    fit, n = _protocol.keyed(fit), y.shape[0]

    def one(keys: tuple[Array, Array]) -> tuple[Array, Array]:
        draw_key, fit_key = keys
        rows = jax.random.randint(draw_key, (n,), 0, n)
        count = jnp.zeros_like(y).at[rows].add(1)
        predicted = predict(fit(fit_key, x, y, sample_weight=count), x)
        predicted = _checks.floating("predict(model, x)", predicted).astype(y.dtype)
        _checks.same_shape(predictions=predicted, y=y)
        return predicted, count == 0

    keys = tuple(jax.random.split(key, (2, num_resamples)))
    predictions, unseen = _map(one, keys, chunk_size)
    votes = unseen.sum(axis=0)
    size = jnp.where(votes > 1, votes, 2).astype(y.dtype)
    # `where`, not a product: a fit that failed does not spoil the rows that it has seen.
    mean = jnp.where(unseen, predictions, 0).sum(axis=0) / size
    squares = jnp.where(unseen, (predictions - mean[None]) ** 2, 0).sum(axis=0)
    errors = jnp.where(unseen, (predictions - y[None]) ** 2, 0).sum(axis=0)
    answered = votes > 1
    row_variance = jnp.where(answered, squares / (size - 1), jnp.nan)
    rest = jnp.where(answered, (y - mean) ** 2, jnp.nan) - row_variance / size
    row_error = jnp.where(answered, errors / size, jnp.nan)

    def over_rows(values: Array) -> Estimate:
        return Estimate(values.mean(), values.std(ddof=1) / n**0.5)

    return OutOfBag(
        variance=over_rows(row_variance),
        bias_squared_and_noise=over_rows(rest),
        error=over_rows(row_error),
        mean_prediction=jnp.where(answered, mean, jnp.nan),
        row_variance=row_variance,
        num_fits=votes,
    )


def variance_estimator(
    num_rows: Float[ArrayLike, "..."],
    *,
    divisor: Float[ArrayLike, "..."],
    variance: Float[ArrayLike, ""] = 1.0,
    kurtosis: Float[ArrayLike, ""] = 3.0,
) -> Moments:
    r"""How good $\frac1c \sum_i (x_i - \bar x)^2$ is as an estimate of a variance.

    For n independent numbers with variance $\sigma^2$ and fourth central moment $\kappa \sigma^4$,

    $$\text{mean} = \frac{n - 1}{c}\, \sigma^2 , \qquad
      \text{variance} = \frac{n - 1}{c^2} \Big( \frac{n - 1}{n} (\kappa - 1) + \frac2n \Big)
      \sigma^4 .$$

    Only the divisor $c = n - 1$ is unbiased. $c = n$ gives too little, by the factor $(n-1)/n$.

    Args:
        num_rows: n, 2 or more.
        divisor: c, positive; of the same shape as `num_rows`, or a scalar.
        variance: $\sigma^2$, positive.
        kurtosis: $\kappa \ge 1$; 3 for the normal distribution, 1.8 for the uniform one.

    Returns:
        Mean, bias, variance and mean squared error of the estimate.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> from mlnotes_jax.generalization import bias_variance
        >>> float(bias_variance.variance_estimator(5, divisor=5).bias)  # doctest: +ELLIPSIS
        -0.2...
        >>> float(bias_variance.variance_estimator(5, divisor=4).bias)
        0.0

    Reference:
        Cramér, *Mathematical Methods of Statistics* (1946), section 27.4.

    Note:
        NumPy's and JAX's `var` divide by n unless told `ddof=1`; PyTorch's divides by n - 1.
    """
    n = _checks.floating("num_rows", num_rows)
    _checks.in_range("num_rows", n, 2, float("inf"))
    c = _checks.floating("divisor", divisor).astype(n.dtype)
    _checks.positive("divisor", c)
    square = _checks.floating("variance", variance, ndim=0).astype(n.dtype)
    _checks.positive("variance", square)
    kappa = _checks.floating("kurtosis", kurtosis, ndim=0).astype(n.dtype)
    _checks.in_range("kurtosis", kappa, 1, float("inf"))
    mean = (n - 1) / c * square
    bias = (n - 1 - c) / c * square
    spread = (n - 1) / c**2 * ((n - 1) / n * (kappa - 1) + 2 / n) * square**2
    return Moments(mean, bias, spread, bias**2 + spread)


def _callable(name: str, value: object) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {type(value).__name__}")


def _map(function: Callable[..., Any], keys: tuple[Array, ...], chunk_size: int | None) -> Any:
    if chunk_size is None:
        return jax.vmap(function)(keys)
    return jax.lax.map(function, keys, batch_size=min(chunk_size, keys[0].shape[0]))


def _wide(array: Array) -> Array:
    """Moments of float16 and bfloat16 would lose their digits."""
    return array.astype(_wider(array.dtype, jnp.float32))


def _wider(*dtypes: Any) -> Any:
    return max(map(jnp.dtype, dtypes), key=lambda dtype: dtype.itemsize)


@jax.jit
def _summary(predictions: Array, targets: Array, truth: Array | None) -> Decomposition:
    parts = _split(predictions, targets, truth)
    failed = ~jnp.isfinite(predictions).reshape(predictions.shape[0], -1).all(axis=1)
    return Decomposition(
        average=Parts(*(_estimate(part, average=True) for part in parts)),
        pointwise=Parts(*(_estimate(part, average=False) for part in parts)),
        mean_prediction=predictions.mean(axis=0),
        predictions=predictions,
        targets=targets,
        num_failed=failed.sum(),
    )


# A statistic and what it changes by when data set r is left out, less the average change: an array
# with a leading axis of data sets. Written out, because a difference of two nearly equal statistics
# would keep no digits in float32. `unseen` is an error that these changes do not show.
class _Statistic(NamedTuple):
    value: Array
    change: Array
    unseen: Array


def _split(predictions: Array, targets: Array, truth: Array | None) -> list[_Statistic]:
    """Bias squared, variance, noise, total, error, gap; as statistics of shape (m, ...)."""
    variance = _variance(predictions)
    if truth is None:
        bias_squared = _mean_squared(predictions - targets)
        noise = _variance(targets)
    else:
        bias_squared = _mean_squared(predictions - truth[None])
        noise = _mean((targets - truth[None]) ** 2)
    error = _mean((predictions - targets) ** 2)
    total = _plus(_plus(bias_squared, variance), noise)
    gap = _plus(error, _Statistic(-total.value, -total.change, total.unseen))
    return [bias_squared, variance, noise, total, error, gap]


def _plus(one: _Statistic, other: _Statistic) -> _Statistic:
    # In the sums bias squared is joined by a variance, which the jackknife sees in full.
    value = one.value + other.value
    return _Statistic(value, one.change + other.change, jnp.zeros_like(value))


def _mean(values: Array) -> _Statistic:
    mean = values.mean(axis=0)
    return _Statistic(mean, -(values - mean[None]) / (values.shape[0] - 1), jnp.zeros_like(mean))


def _variance(values: Array) -> _Statistic:
    r = values.shape[0]
    squares = (values - values.mean(axis=0, keepdims=True)) ** 2
    mean = squares.mean(axis=0)
    change = -(squares - mean[None]) * (r / ((r - 1) * (r - 2)))
    return _Statistic(mean * (r / (r - 1)), change, jnp.zeros_like(mean))


def _mean_squared(values: Array) -> _Statistic:
    """The square of the expectation, without bias: the mean squared, less variance / R."""
    r = values.shape[0]
    mean = values.mean(axis=0)
    variance = _variance(values)
    off = values - mean[None]
    squares = off**2 - (off**2).mean(axis=0, keepdims=True)
    change = -2 * mean[None] * off / (r - 1) + squares / (r - 1) ** 2 - variance.change / (r - 1)
    # Where the mean is nearly 0, so is the change, but not the error: its square has a second term.
    unseen = variance.value * (2 / (r * (r - 1))) ** 0.5
    return _Statistic(mean**2 - variance.value / r, change, unseen)


def _estimate(part: _Statistic, *, average: bool) -> Estimate:
    value, change, unseen = part
    r = change.shape[0]
    if average:  # of the unseen parts only a bound is known: as if all points went together
        value, unseen = value.mean(), unseen.mean()
        change = change.reshape(r, -1).mean(axis=1)
    seen = (r - 1) / r * jnp.square(change).sum(axis=0)
    return Estimate(value, jnp.sqrt(seen + unseen**2))
