r"""The margin: how far points are from a hyperplane, and the widest street between two classes.

The hyperplane $H = \{x : w^\top x + b = 0\}$ and a point $x$ of the class with sign $s = \pm 1$:

$$ r = \frac{w^\top x + b}{\|w\|}, \qquad
   \hat\gamma = s\,(w^\top x + b) \text{ (functional)}, \qquad
   \gamma = s\, r \text{ (geometric margin)} . $$

The hard margin is the largest $\gamma$ that all points can have at once. It is half the distance of
the convex hulls of the classes,

$$ \max_{w, b}\, \min_i \gamma_i = \tfrac12 \min_{\lambda, \mu}
   \Big\| \sum_{i \in +} \lambda_i x_i - \sum_{j \in -} \mu_j x_j \Big\| , $$

over weights that are not negative and add up to 1 in either class. Where the hulls meet, those
weights prove that no hyperplane separates the classes (Farkas, Gordan).

Classes are the integers 0 and 1; class 1 is the positive side.

Reference: Vapnik, *Statistical Learning Theory* (1998), section 10.1; Bennett and Bredensteiner,
*Duality and Geometry in SVM Classifiers* (2000); Wolfe, *Finding the nearest point in a polytope*
(1976).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from mlnotes_jax import _checks
from mlnotes_jax.svm import _separate

__all__ = [
    "INSEPARABLE",
    "SEPARABLE",
    "STATUSES",
    "UNDECIDED",
    "DataMargin",
    "Plane",
    "Separation",
    "canonical",
    "data_margin",
    "distance",
    "functional_margin",
    "geometric_margin",
    "hulls_meet",
    "margin_above",
    "margin_below",
    "project",
    "separate",
]

#: What `Separation.status` means, by number.
STATUSES = ("separable", "inseparable", "undecided")
#: A hyperplane separates the classes, and is there.
SEPARABLE = 0
#: None does, and the weights prove it.
INSEPARABLE = 1
#: The numbers of this precision prove neither.
UNDECIDED = 2


class Plane(NamedTuple):
    r"""A hyperplane $w^\top x + b = 0$ with a positive side.

    Attributes:
        w: Normal to it, shape `(d,)`.
        b: Shape `()`.
    """

    w: Float[Array, " d"]
    b: Float[Array, ""]


class DataMargin(NamedTuple):
    r"""The smallest margins of a data set.

    Attributes:
        functional: $\min_i s_i (w^\top x_i + b)$, shape `()`.
        geometric: The same divided by $\|w\|$, shape `()`: positive where the plane separates.
        row: The first row that has it, shape `()`.
    """

    functional: Float[Array, ""]
    geometric: Float[Array, ""]
    row: Int[Array, ""]


class Separation(NamedTuple):
    r"""The widest street between two classes, or the proof that there is none.

    In exact arithmetic the hard margin $\gamma^*$ (0 where no hyperplane separates) obeys
    `margin` $\le \gamma^* \le$ `bound`, whatever the status: both are computed from the data and
    the returned numbers, with all rounding errors bounded.

    Attributes:
        status: Index into `STATUSES`, shape `()`.
        w: Normal of the hyperplane, so long that the smallest functional margin is 1, shape
            `(d,)`; NaN unless separable.
        b: Its offset, shape `()`; NaN unless separable.
        margin: The geometric margin of `w`, `b` is at least this, shape `()`; 0 unless separable.
        bound: No hyperplane has a larger margin than this, shape `()`.
        weights: $\lambda$ and $\mu$: at least 0, of total 1 in either class, shape `(n,)`.
        nearest: Their means, the nearest points of the two hulls: class 0, then class 1, shape
            `(2, d)`. Where the hulls meet they are one point.
        num_iterations: Steps of the search, shape `()`.
        converged: Whether the search ended by itself, rather than at `max_iter`, shape `()`.
    """

    status: Int[Array, ""]
    w: Float[Array, " d"]
    b: Float[Array, ""]
    margin: Float[Array, ""]
    bound: Float[Array, ""]
    weights: Float[Array, " n"]
    nearest: Float[Array, "2 d"]
    num_iterations: Int[Array, ""]
    converged: Bool[Array, ""]

    @property
    def separable(self) -> Bool[Array, ""]:
        """Whether a hyperplane was found and proved to separate."""
        return self.status == SEPARABLE

    @property
    def support(self) -> Bool[Array, " n"]:
        """The points that hold the street in place, or that the proof rests on."""
        return self.weights > 0

    @property
    def dual(self) -> Float[Array, " n"]:
        r"""$\alpha_i = \tfrac12 \|w\|^2 \lambda_i$, the dual variables of the hard margin."""
        return 0.5 * jnp.sum(self.w * self.w) * self.weights

    @property
    def gap(self) -> Float[Array, ""]:
        """`bound` less `margin`: how much wider another street could be, at most, on each side."""
        return self.bound - self.margin


# --- Distances and margins ------------------------------------------------------------------------


def distance(
    w: Float[ArrayLike, " d"], b: Float[ArrayLike, ""], x: Float[ArrayLike, "... d"]
) -> Float[Array, "..."]:
    r"""Signed distance of points to a hyperplane, $r = (w^\top x + b) / \|w\|$.

    Positive on the side to which $w$ points; the distance itself is its absolute value.

    Args:
        w: Normal, not 0, shape `(d,)`.
        b: Offset, shape `()`.
        x: One point or many, shape `(..., d)`.

    Returns:
        Shape `(...)`, in the widest dtype of the arguments and at least float32; NaN or infinite
        for a traced $w = 0$.

    Raises:
        ValueError: Shapes do not fit, or a concrete `w` is 0.
        TypeError: An argument is not a real array.

    Example:
        >>> from mlnotes_jax.svm import margin
        >>> print(margin.distance([3.0, 4.0], -5.0, [[0.0, 0.0], [3.0, 4.0]]))
        [-1.  4.]

    Reference: Boser, Guyon and Vapnik, *A training algorithm for optimal margin classifiers*
    (1992).
    """
    w, b, x = _plane(w, b, x)
    return _scores(w, b, x) / _length(w)


def project(
    w: Float[ArrayLike, " d"], b: Float[ArrayLike, ""], x: Float[ArrayLike, "... d"]
) -> Float[Array, "... d"]:
    r"""The nearest point on the hyperplane, $x - r\, w / \|w\|$.

    Args:
        w: Normal, not 0, shape `(d,)`.
        b: Offset, shape `()`.
        x: One point or many, shape `(..., d)`.

    Returns:
        Shape `(..., d)`.

    Raises:
        ValueError: As for `distance`.
        TypeError: As for `distance`.

    Example:
        >>> from mlnotes_jax.svm import margin
        >>> print(margin.project([0.0, 2.0], -2.0, [[5.0, 4.0]]))
        [[5. 1.]]
    """
    w, b, x = _plane(w, b, x)
    length = _length(w)
    r = _scores(w, b, x) / length
    return x - r[..., None] * jnp.broadcast_to(w / length, x.shape)


def functional_margin(
    w: Float[ArrayLike, " d"],
    b: Float[ArrayLike, ""],
    x: Float[ArrayLike, "... d"],
    y: Int[ArrayLike, "..."],
) -> Float[Array, "..."]:
    r"""$\hat\gamma = s\,(w^\top x + b)$, with $s = +1$ for class 1 and $-1$ for class 0.

    Positive where the plane has the point on its right side. It doubles when $w$ and $b$ double,
    though the plane stays where it is.

    Args:
        w: Normal, shape `(d,)`; may be 0.
        b: Offset, shape `()`.
        x: One point or many, shape `(..., d)`.
        y: Classes 0 or 1, shape `(...)`.

    Returns:
        Shape `(...)`; NaN for a traced class that is neither 0 nor 1.

    Raises:
        ValueError: Shapes do not fit, or a concrete class is neither 0 nor 1.
        TypeError: An argument is not numeric, or classes are not integers.

    Example:
        >>> from mlnotes_jax.svm import margin
        >>> print(margin.functional_margin([3.0, 4.0], -5.0, [[0.0, 0.0], [3.0, 4.0]], [0, 1]))
        [ 5. 20.]
    """
    w, b, x = _plane(w, b, x, nonzero=False)
    return _signs(y, x) * _scores(w, b, x)


def geometric_margin(
    w: Float[ArrayLike, " d"],
    b: Float[ArrayLike, ""],
    x: Float[ArrayLike, "... d"],
    y: Int[ArrayLike, "..."],
) -> Float[Array, "..."]:
    r"""$\gamma = s\,(w^\top x + b) / \|w\|$: the distance, negative on the wrong side.

    Args:
        w: Normal, not 0, shape `(d,)`.
        b: Offset, shape `()`.
        x: One point or many, shape `(..., d)`.
        y: Classes 0 or 1, shape `(...)`.

    Returns:
        Shape `(...)`; NaN for a traced class that is neither 0 nor 1.

    Raises:
        ValueError: As for `functional_margin`, or a concrete `w` is 0.
        TypeError: As for `functional_margin`.

    Example:
        >>> from mlnotes_jax.svm import margin
        >>> print(margin.geometric_margin([3.0, 4.0], -5.0, [[0.0, 0.0], [3.0, 4.0]], [0, 1]))
        [1. 4.]
    """
    w, b, x = _plane(w, b, x)
    return _signs(y, x) * _scores(w, b, x) / _length(w)


def data_margin(
    w: Float[ArrayLike, " d"],
    b: Float[ArrayLike, ""],
    x: Float[ArrayLike, "n d"],
    y: Int[ArrayLike, " n"],
    *,
    sample_weight: Float[ArrayLike, " n"] | None = None,
) -> DataMargin:
    """The smallest functional and geometric margin of a data set, and whose it is.

    Args:
        w: Normal, not 0, shape `(d,)`.
        b: Offset, shape `()`.
        x: Points, shape `(n, d)`.
        y: Classes 0 or 1, shape `(n,)`.
        sample_weight: At least 0, shape `(n,)`; zero drops a row, other values do not matter.

    Returns:
        The smallest margins, as they are computed, without a bound on rounding errors; see
        `margin_above` for one.

    Raises:
        ValueError: Shapes do not fit; concrete data are empty, not finite, or of a class other
            than 0 and 1; a concrete `w` is 0, or all weights are.
        TypeError: An argument is not numeric, or classes are not integers.

    Example:
        >>> from mlnotes_jax.svm import margin
        >>> found = margin.data_margin([3.0, 4.0], -5.0, [[0.0, 0.0], [3.0, 4.0]], [0, 1])
        >>> float(found.functional), float(found.geometric), int(found.row)
        (5.0, 1.0, 0)
    """
    x, y, counted = _data(x, y, sample_weight, both=False)
    w, b, x = _plane(w, b, x)
    values = jnp.where(counted, _signs(y, x) * _scores(w, b, x), jnp.inf)
    row = jnp.argmin(values).astype(jnp.int32)
    return DataMargin(values[row], values[row] / _length(w), row)


def canonical(
    w: Float[ArrayLike, " d"],
    b: Float[ArrayLike, ""],
    x: Float[ArrayLike, "n d"],
    y: Int[ArrayLike, " n"],
    *,
    sample_weight: Float[ArrayLike, " n"] | None = None,
) -> Plane:
    r"""Rescale a separating hyperplane so that its smallest functional margin is 1.

    The plane stays where it is. Afterwards its geometric margin is $1 / \|w\|$.

    Args:
        w: Normal, not 0, shape `(d,)`.
        b: Offset, shape `()`.
        x: Points, shape `(n, d)`.
        y: Classes 0 or 1, shape `(n,)`.
        sample_weight: At least 0, shape `(n,)`; zero drops a row.

    Returns:
        $w / \hat\gamma$ and $b / \hat\gamma$; NaN where traced values do not separate.

    Raises:
        ValueError: As for `data_margin`, or concrete `w`, `b` do not separate the classes.
        TypeError: As for `data_margin`.

    Example:
        >>> from mlnotes_jax.svm import margin
        >>> plane = margin.canonical([3.0, 4.0], -5.0, [[0.0, 0.0], [3.0, 4.0]], [0, 1])
        >>> print(plane.w, plane.b)
        [0.6 0.8] -1.0
    """
    smallest = data_margin(w, b, x, y, sample_weight=sample_weight)
    if _checks.is_concrete(smallest) and not smallest.functional > 0:
        raise ValueError(
            "w and b must separate the classes, got the functional margin "
            f"{float(smallest.functional):g} in row {int(smallest.row)}"
        )
    scale = jnp.where(smallest.functional > 0, smallest.functional, jnp.nan)
    w, b, _ = _plane(w, b, x)
    return Plane(w / scale, b / scale)


# --- The widest street, or a proof of none --------------------------------------------------------


def separate(
    x: Float[ArrayLike, "n d"],
    y: Int[ArrayLike, " n"],
    *,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    max_iter: Int[ArrayLike, ""] | None = None,
) -> Separation:
    r"""Separate two classes by the hyperplane of the widest margin, or prove that none separates.

    Finds the nearest points of the convex hulls, $\bar x_1 = \sum \lambda_i x_i$ and $\bar x_0 =
    \sum \mu_j x_j$, by Wolfe's method. With $z = \bar x_1 - \bar x_0$,

    - if $z \ne 0$: $w = 2 z / \|z\|^2$ and $b = -\tfrac12 w^\top (\bar x_1 + \bar x_0)$ have the
      margin $\tfrac12 \|z\|$, and no hyperplane has more;
    - if $z = 0$: for all $w, b$ the means of $w^\top x + b$ over the two classes, with these
      weights, are equal; so no hyperplane separates.

    Floating point cannot always tell a small $z$ from 0. The status is `SEPARABLE` only if the
    returned plane separates in exact arithmetic (`margin_above`), `INSEPARABLE` only if exact
    weights exist (`hulls_meet`), and otherwise `UNDECIDED`. Then `bound` says how thin a street
    would have to be; try float64, or
    [`affine.separability`][mlnotes_jax.foundations.affine.separability], in rational numbers,
    on the rows of `support`.

    Works under `jit` and `vmap` (one problem after another). It has a loop, and so no derivative in
    reverse mode; that of the margin is in closed form, see the page.

    Args:
        x: Points, shape `(n, d)`, of about one scale: features that are far from 0 compared to
            their spread should be centred first, or `b` cannot be told exactly enough.
        y: Classes 0 and 1, shape `(n,)`; both must occur.
        sample_weight: At least 0, shape `(n,)`; zero drops a row, other values do not matter: no
            point may be on the wrong side, however light.
        max_iter: The most steps; about one for each point that the street rests on, and a few
            more. By default 1000 and fifty for each dimension.

    Returns:
        The plane or the proof, with bounds on the margin, in the dtype of `x` and at least float32.
        Where traced data lack a class, are not finite or of another class, the status is
        `UNDECIDED` and the numbers are NaN.

    Raises:
        ValueError: Shapes do not fit; concrete data are empty, not finite, of a class other than 0
            and 1, or all of one class; a weight is negative; `max_iter` is less than 1.
        TypeError: `x` is not a real array, or classes are not integers.

    Example:
        >>> from mlnotes_jax.svm import margin
        >>> found = margin.separate([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]], [0, 1, 1])
        >>> margin.STATUSES[found.status], round(float(found.margin), 4)
        ('separable', 0.7071)
        >>> found = margin.separate([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], [0, 1, 1, 0])
        >>> margin.STATUSES[found.status], found.weights.tolist()
        ('inseparable', [0.5, 0.5, 0.5, 0.5])

    Reference: Wolfe, *Finding the nearest point in a polytope* (1976); Bennett and Bredensteiner,
    *Duality and Geometry in SVM Classifiers* (2000).

    Note:
        Dual variables of the hard margin are `dual`; scikit-learn's `SVC(kernel="linear", C=1e10)`
        has them as `abs(dual_coef_)`.
    """
    x, y, counted = _data(x, y, sample_weight, both=True)
    if max_iter is None:
        max_iter = 1000 + 50 * min(x.shape)
    return _separated(x, y, counted, _checks.count("max_iter", max_iter))


def margin_above(
    w: Float[ArrayLike, " d"],
    b: Float[ArrayLike, ""],
    x: Float[ArrayLike, "n d"],
    y: Int[ArrayLike, " n"],
    *,
    sample_weight: Float[ArrayLike, " n"] | None = None,
) -> Float[Array, ""]:
    r"""A number that the smallest geometric margin of a hyperplane surely is not below.

    `data_margin`, less a bound on every rounding error. If it is positive, these very floats `w`
    and `b` separate these very floats `x`. Use it to check a plane from anywhere.

    Args:
        w: Normal, not 0, shape `(d,)`.
        b: Offset, shape `()`.
        x: Points, shape `(n, d)`.
        y: Classes 0 or 1, shape `(n,)`.
        sample_weight: At least 0, shape `(n,)`; zero drops a row.

    Returns:
        A bound from below on $\min_i s_i (w^\top x_i + b) / \|w\|$, shape `()`.

    Raises:
        ValueError: As for `data_margin`.
        TypeError: As for `data_margin`.

    Example:
        >>> from mlnotes_jax.svm import margin
        >>> bool(0.99 < margin.margin_above([1.0], 0.0, [[-1.0], [2.0]], [0, 1]) <= 1)
        True

    Reference: Higham, *Accuracy and Stability of Numerical Algorithms* (2002), section 3.1.
    """
    x, y, counted = _data(x, y, sample_weight, both=False)
    w, b, x = _plane(w, b, x)
    with jax.default_matmul_precision("highest"):
        return _above(w, b, x, y, counted)


def margin_below(
    weights: Float[ArrayLike, " n"], x: Float[ArrayLike, "n d"], y: Int[ArrayLike, " n"]
) -> Float[Array, ""]:
    r"""A number that no hyperplane's margin surely exceeds: half the distance of two points.

    Any weights prove something: $\gamma \le \tfrac12 \| \bar x_1 - \bar x_0 \|$, with the weighted
    means of the classes. The bound holds for these very floats, rounding errors included.

    Args:
        weights: At least 0, and positive somewhere in either class, shape `(n,)`. They need not
            add up to 1.
        x: Points, shape `(n, d)`.
        y: Classes 0 or 1, shape `(n,)`.

    Returns:
        The bound, shape `()`; infinite where traced weights prove nothing.

    Raises:
        ValueError: Shapes do not fit; data are as bad as for `separate`; concrete weights are
            negative, or zero in a whole class.
        TypeError: An argument is not numeric, or classes are not integers.

    Example:
        >>> from mlnotes_jax.svm import margin
        >>> bool(1.5 <= margin.margin_below([1.0, 1.0], [[-1.0], [2.0]], [0, 1]) < 1.51)
        True
    """
    x, y, weights = _weighted(weights, x, y)
    with jax.default_matmul_precision("highest"):
        return _below(weights, x, y)


def hulls_meet(
    weights: Float[ArrayLike, " n"], x: Float[ArrayLike, "n d"], y: Int[ArrayLike, " n"]
) -> Bool[Array, ""]:
    r"""Whether these weights prove that no hyperplane separates the classes.

    On paper they do if $\sum \lambda_i x_i = \sum \mu_j x_j$. In floating point both sides are
    rounded. Two things are proofs nevertheless:

    - the sums agree, and no operation had to round: short numbers, or one point in both classes;
    - the sums nearly agree, and a small change of the weights, for which they all stay positive,
      would make them agree exactly. That needs points around the common point in every direction.

    Args:
        weights: At least 0, and positive somewhere in either class, shape `(n,)`. They count as
            exactly what they are, up to one factor.
        x: Points, shape `(n, d)`; float32 and float64 count as exactly what they are.
        y: Classes 0 or 1, shape `(n,)`.

    Returns:
        True only if it is proved. False proves nothing.

    Raises:
        ValueError: As for `margin_below`.
        TypeError: As for `margin_below`.

    Example:
        >>> from mlnotes_jax.svm import margin
        >>> bool(margin.hulls_meet([1.0, 0.5, 0.5], [[0.1], [-1.0], [2.0]], [0, 1, 1]))
        False
        >>> bool(margin.hulls_meet([1.0, 0.5, 0.5], [[0.5], [-1.0], [2.0]], [0, 1, 1]))
        True

    Reference: Rump, *Verification methods: rigorous results using floating-point arithmetic*
    (2010), section 10.
    """
    x, y, weights = _weighted(weights, x, y)
    with jax.default_matmul_precision("highest"):
        return _meet(weights, x, y)


# --- Helpers --------------------------------------------------------------------------------------


@jax.jit
def _above(w: Array, b: Array, x: Array, y: Array, counted: Array) -> Array:
    found = _separate.lower(w, b, x, y == 1, counted)
    return jnp.where(_valid(x, y, counted, both=False), found, jnp.nan)


@jax.jit
def _below(weights: Array, x: Array, y: Array) -> Array:
    found = _separate.upper(weights, x, y == 1)
    return jnp.where(_valid(x, y, weights > 0, both=True), found, jnp.inf)


@jax.jit
def _meet(weights: Array, x: Array, y: Array) -> Array:
    inside = _separate.meet_inside(weights, x, y == 1)
    exactly = _separate.cancels_exactly(weights, x, y == 1)
    return _valid(x, y, weights > 0, both=True) & (inside | exactly)


# One after another under vmap: each problem has its own number of steps.
@jax.jit
@jax.custom_batching.sequential_vmap
def _separated(x: Array, y: Array, counted: Array, max_iter: Array) -> Separation:
    positive = y == 1
    valid = _valid(x, y, counted, both=True)
    with jax.default_matmul_precision("highest"):
        middle = _separate.midrange(x, counted)
        centred = jnp.where(counted[:, None], x - middle[None, :], 0.0)
        unit = _separate.unit_scale(jnp.max(jnp.abs(centred)))
        points = centred * unit  # exact: a power of two
        found = _separate.nearest(points, positive, counted, max_iter)
        scores = points @ found.direction
        inner = jnp.min(jnp.where(counted & positive, scores, jnp.inf))
        outer = jnp.max(jnp.where(counted & ~positive, scores, -jnp.inf))
        w = found.direction * (2.0 / (inner - outer)) * unit
        b = -(inner + outer) / (inner - outer) - w @ middle
        margin = _separate.lower(w, b, x, positive, counted)
        bound = _separate.upper(found.weights, x, positive)
        shares = found.weights[None, :] * jnp.stack([~positive, positive]).astype(x.dtype)
        nearest = shares @ centred + middle[None, :]
        meet = _meet(found.weights, x, y)
    separable = valid & (margin > 0) & jnp.isfinite(margin)
    inseparable = valid & ~separable & meet
    status = jnp.where(separable, SEPARABLE, jnp.where(inseparable, INSEPARABLE, UNDECIDED))
    nan = float("nan")
    return Separation(
        status=status.astype(jnp.int32),
        w=jnp.where(separable, w, nan),
        b=jnp.where(separable, b, nan),
        margin=jnp.where(valid, jnp.where(separable, margin, 0.0), nan),
        bound=jnp.where(valid, bound, nan),
        weights=jnp.where(valid, found.weights, nan),
        nearest=jnp.where(valid, nearest, nan),
        num_iterations=found.num_iterations,
        converged=found.converged & valid,
    )


def _valid(x: Array, y: Array, counted: Array, *, both: bool) -> Array:
    """What `_data` checks of concrete values, for traced ones."""
    good = jnp.all(jnp.isfinite(x)) & jnp.all(~counted | (y == 0) | (y == 1))
    if both:
        good &= jnp.any(counted & (y == 0)) & jnp.any(counted & (y == 1))
    return good & jnp.any(counted)


def _data(
    x: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None, *, both: bool
) -> tuple[Array, Array, Array]:
    """Points, classes, and which rows count."""
    x, y = _checks.floating("x", x, ndim=2), _checks.integer("y", y, ndim=1)
    _checks.same_length(x=x, y=y)
    _checks.not_empty("x", x)
    _checks.finite("x", x)
    counted = jnp.ones(y.shape, bool)
    if sample_weight is not None:
        weight = _checks.floating("sample_weight", sample_weight, ndim=1)
        _checks.same_length(x=x, sample_weight=weight)
        _checks.finite("sample_weight", weight)
        _checks.not_negative("sample_weight", weight)
        counted = weight > 0
    _check_classes(y, counted, both=both)
    return _widest(x)[0], jnp.where(counted, y, 0).astype(jnp.int32), counted


def _check_classes(y: Array, counted: Array, *, both: bool, name: str = "sample_weight") -> None:
    _checks.class_labels("y", y, 2, counted=counted)
    if not _checks.is_concrete((y, counted)):
        return
    present = np.unique(np.asarray(y)[np.asarray(counted)]).tolist()
    if not present:
        raise ValueError(f"{name} must be positive in some row, got only zeros")
    if both and len(present) < 2:
        raise ValueError(
            f"y must hold both classes, 0 and 1, in rows of positive weight, got only {present[0]}"
        )


def _weighted(weights: ArrayLike, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array, Array]:
    x, y, _ = _data(x, y, None, both=True)
    weights = _checks.floating("weights", weights, ndim=1)
    _checks.same_length(x=x, weights=weights)
    _checks.finite("weights", weights)
    _checks.not_negative("weights", weights)
    _check_classes(y, weights > 0, both=True, name="weights")
    x, weights = _widest(x, weights)
    return x, y, weights


def _plane(
    w: ArrayLike, b: ArrayLike, x: ArrayLike, *, nonzero: bool = True
) -> tuple[Array, Array, Array]:
    w, b = _checks.floating("w", w, ndim=1), _checks.floating("b", b, ndim=0)
    x = _checks.floating("x", x)
    if x.ndim == 0 or x.shape[-1] != w.shape[0]:
        raise ValueError(f"x must have {w.shape[0]} features on its last axis, got shape {x.shape}")
    if nonzero and _checks.is_concrete(w) and not np.asarray(w).any():
        raise ValueError("w must not be 0: there is then no hyperplane")
    w, b, x = _widest(w, b, x)
    return w, b, x


def _scores(w: Array, b: Array, x: Array) -> Array:
    with jax.default_matmul_precision("highest"):
        return x @ w + b


def _signs(y: ArrayLike, x: Array) -> Array:
    """+1 and -1 for the classes 1 and 0."""
    y = _checks.integer("y", y)
    if y.shape != x.shape[:-1]:
        raise ValueError(
            f"y must have one entry for each point of x, of shape {x.shape}, got shape {y.shape}"
        )
    _checks.class_labels("y", y, 2)
    one = jnp.ones((), x.dtype)
    return jnp.where(y == 1, one, jnp.where(y == 0, -one, jnp.nan))


def _length(w: Array) -> Array:
    return jnp.sqrt(jnp.sum(w * w))


def _widest(*arrays: Array) -> tuple[Array, ...]:
    """All in the widest of their dtypes, and at least float32: no value changes."""
    with jax.numpy_dtype_promotion("standard"):
        dtype = functools.reduce(jnp.promote_types, (v.dtype for v in arrays), jnp.float32)
    return tuple(v.astype(dtype) for v in arrays)
