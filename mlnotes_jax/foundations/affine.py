r"""Affine maps: half-planes, what they cannot separate, and the regions that layers cut.

With the rows of $X$ as examples, the kernel $W$ of shape `(inputs, outputs)` and the bias $b$,

$$ X \mapsto X W + \mathbf 1\, b^\top . $$

One output is one number $w^\top x + b$ for each example; its sign splits the space into two
half-spaces. Two finite sets of points can be split like this, or there are weights $\lambda \ge 0$
that prove that they cannot (Farkas): never both, never neither. XOR is of the second kind, until a
feature is added. The answers about separability are exact, in rational numbers.

Reference: Minsky and Papert, *Perceptrons* (1969); Farkas (1902), in Boyd and Vandenberghe,
*Convex Optimization* (2004), section 5.8.3; Zaslavsky, *Facing up to Arrangements* (1975).
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from mlnotes_jax import _checks

__all__ = [
    "Region",
    "Separability",
    "Weights",
    "activation_regions",
    "affine",
    "common_point",
    "compose",
    "lift_products",
    "region_bound",
    "separability",
    "signed_distance",
    "verify_certificate",
    "verify_hyperplane",
    "xor",
    "xor_network",
]

#: Kernel `(inputs, outputs)` and bias `(outputs,)` of each affine layer, first layer first.
Weights = Sequence[tuple[Float[ArrayLike, "inputs outputs"], Float[ArrayLike, " outputs"]]]


class Separability(NamedTuple):
    r"""Whether a hyperplane splits two finite sets of points, and the proof.

    All numbers are exact. One of the two proofs is there, the other is None.

    Attributes:
        separable: Whether some $w, b$ have $y_i (w^\top x_i + b) > 0$ for every $i$.
        weight: Such a $w$, with $y_i (w^\top x_i + b) \ge 1$, for
            [`verify_hyperplane`][mlnotes_jax.foundations.affine.verify_hyperplane].
        bias: Its $b$.
        multipliers: Otherwise the $\lambda_i \ge 0$, adding up to 1, for
            [`verify_certificate`][mlnotes_jax.foundations.affine.verify_certificate].
    """

    separable: bool
    weight: tuple[Fraction, ...] | None
    bias: Fraction | None
    multipliers: tuple[Fraction, ...] | None


class Region(NamedTuple):
    r"""A convex polygon on which a ReLU network is one affine map.

    Attributes:
        corners: In order around it, shape `(c, 2)`.
        pattern: Which hidden units are on, all layers one after another, shape `(units,)`.
        kernel: The network there is $x \mapsto x K + k$: $K$, shape `(2, outputs)`.
        bias: $k$, shape `(outputs,)`.
    """

    corners: Float[np.ndarray, "c 2"]
    pattern: np.ndarray
    kernel: Float[np.ndarray, "2 outputs"]
    bias: Float[np.ndarray, " outputs"]


def affine(
    x: Float[ArrayLike, "... d"], kernel: Float[ArrayLike, "d m"], bias: Float[ArrayLike, " m"]
) -> Float[Array, "... m"]:
    r"""An affine map of each example, $x^\top W + b^\top$.

    Column $k$ of the kernel and entry $k$ of the bias are one neuron.

    Args:
        x: Examples, features last, shape `(..., d)`.
        kernel: $W$, shape `(d, m)`: rows are inputs, columns are outputs. `torch.nn.Linear` keeps
            the transpose.
        bias: $b$, shape `(m,)`.

    Returns:
        Shape `(..., m)`, the dtype of `x`.

    Raises:
        ValueError: Shapes do not fit.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import affine
        >>> print(affine.affine([[1.0, 2.0]], [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]], [0.0, 0.0, -1.0]))
        [[1. 2. 2.]]

    Reference: Goodfellow, Bengio and Courville, *Deep Learning* (2016), section 6.1.
    """
    x, (w, b) = _checks.floating("x", x), _pair(kernel, bias)
    if x.ndim == 0 or x.shape[-1] != w.shape[0]:
        raise ValueError(f"x must have {w.shape[0]} features on its last axis, got shape {x.shape}")
    return x @ w.astype(x.dtype) + b.astype(x.dtype).reshape((1,) * (x.ndim - 1) + b.shape)


def compose(weights: Weights) -> tuple[Float[Array, "d m"], Float[Array, " m"]]:
    r"""Many affine maps in a row are one: of two, $W_1 W_2$ and $b_1^\top W_2 + b_2^\top$.

    That is why layers need an activation between them.

    Args:
        weights: The maps, first layer first.

    Returns:
        Kernel and bias of the one map.

    Raises:
        ValueError: There is no layer, or shapes do not fit.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import affine
        >>> kernel, bias = affine.compose([([[2.0]], [1.0]), ([[3.0]], [-1.0])])
        >>> print(kernel, bias)  # 3 (2 x + 1) - 1
        [[6.]] [2.]
    """
    if not len(weights):
        raise ValueError("weights must hold at least one layer, got none")
    kernel, bias = _pair(*weights[0])
    for layer in weights[1:]:
        next_kernel, next_bias = _pair(*layer)
        if next_kernel.shape[0] != kernel.shape[1]:
            raise ValueError(
                f"weights must fit together, got kernels {kernel.shape} and {next_kernel.shape}"
            )
        kernel, bias = kernel @ next_kernel, bias @ next_kernel + next_bias
    return kernel, bias


def signed_distance(
    x: Float[ArrayLike, "... d"], weight: Float[ArrayLike, " d"], bias: Float[ArrayLike, ""]
) -> Float[Array, "..."]:
    r"""Distance to the boundary of one neuron, $(w^\top x + b) / \lVert w \rVert$.

    Positive on the side that $w$ points to. A strictly increasing activation $\phi$ does not
    change the half-plane, as $\phi(z) > \phi(0)$ exactly where $z > 0$.

    Args:
        x: Points, shape `(..., d)`.
        weight: $w \ne 0$, normal to the boundary, shape `(d,)`.
        bias: $b$, shape `()`.

    Returns:
        Shape `(...)`; NaN or infinite for a traced $w = 0$.

    Raises:
        ValueError: Shapes do not fit, or a concrete `weight` is all zero.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import affine
        >>> print(affine.signed_distance([[0.0, 0.0], [3.0, 4.0]], [3.0, 4.0], -5.0))
        [-1.  4.]
    """
    w, b = _checks.floating("weight", weight, ndim=1), _checks.floating("bias", bias, ndim=0)
    if _checks.is_concrete(w) and not np.asarray(w).any():
        raise ValueError("weight must not be all zero: there is then no boundary")
    z = affine(x, w.reshape(-1, 1), b.reshape(1))[..., 0]
    return z / jnp.linalg.norm(w).astype(z.dtype)


def lift_products(x: Float[ArrayLike, "... d"]) -> Float[Array, "... m"]:
    r"""Lift points into more dimensions: append every product $x_i x_j$ with $i < j$.

    $(x_1, x_2) \mapsto (x_1, x_2, x_1 x_2)$. Of bits, $x_1 \operatorname{xor} x_2 = x_1 + x_2 - 2
    x_1 x_2$ is then an affine function.

    Args:
        x: Points, shape `(..., d)`.

    Returns:
        Shape `(..., d + d * (d - 1) / 2)`.

    Raises:
        ValueError: `x` is a scalar.
        TypeError: `x` is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import affine
        >>> print(affine.lift_products([2.0, 3.0, 5.0]))
        [ 2.  3.  5.  6. 10. 15.]
    """
    x = _checks.floating("x", x)
    if x.ndim == 0:
        raise ValueError("x must have features on its last axis, got shape ()")
    i, j = np.triu_indices(x.shape[-1], k=1)
    return jnp.concatenate([x, x[..., i] * x[..., j]], axis=-1)


def xor() -> tuple[Int[np.ndarray, "4 2"], Int[np.ndarray, " 4"]]:
    """The four points of "either, or, but not both", as bits, and their labels -1 and +1.

    Example:
        >>> from mlnotes_jax.foundations import affine
        >>> points, labels = affine.xor()
        >>> print(points.tolist(), labels)
        [[0, 0], [0, 1], [1, 0], [1, 1]] [-1  1  1 -1]
    """
    return np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), np.array([-1, 1, 1, -1])


def xor_network() -> list[tuple[Float[Array, "inputs outputs"], Float[Array, " outputs"]]]:
    r"""Two ReLUs and one output that are XOR, without training.

    $\operatorname{relu}(x_1 + x_2) - 2 \operatorname{relu}(x_1 + x_2 - 1)$ is 0, 1, 1, 0 on the
    four points. The hidden layer moves $(0, 1)$ and $(1, 0)$ onto one point, and $(1, 1)$ aside.

    Returns:
        Kernels and biases, widths 2-2-1, for
        [`mlp.forward`][mlnotes_jax.nets.mlp.forward] or two calls of `affine`.

    Example:
        >>> from mlnotes_jax.foundations import activations, affine
        >>> hidden, output = affine.xor_network()
        >>> lifted = activations.relu(affine.affine(affine.xor()[0], *hidden))
        >>> print(affine.affine(lifted, *output).ravel())
        [0. 1. 1. 0.]

    Reference: Goodfellow, Bengio and Courville (2016), section 6.1.
    """
    hidden = (jnp.ones((2, 2)), jnp.array([0.0, -1.0]))
    return [hidden, (jnp.array([[1.0], [-2.0]]), jnp.zeros(1))]


# --- Can a hyperplane separate them? --------------------------------------------------------------


def separability(x: ArrayLike, labels: Int[ArrayLike, " n"]) -> Separability:
    r"""Separate two finite sets of points by a hyperplane, or prove that none does.

    Either there are $w, b$ with $y_i (w^\top x_i + b) > 0$ for all $i$, or there are multipliers
    $\lambda_i \ge 0$, not all 0, with

    $$ \sum_i \lambda_i y_i x_i = 0 \quad \text{and} \quad \sum_i \lambda_i y_i = 0 . $$

    Found by the simplex method on the multipliers, in exact rational numbers (a float *is* a
    rational number), with Bland's rule, so that it ends. Runs on the host; made for small sets:
    each pivot costs $n (d + 2)$ operations on fractions, whose digits may grow.

    Args:
        x: Points, shape `(n, d)`: integers, floats, or nested lists of `Fraction`.
        labels: -1 or +1, shape `(n,)`.

    Returns:
        The verdict with its proof. If all labels are equal, the proof is $w = 0$, $b = \pm 1$.

    Raises:
        ValueError: Shapes differ, there are no points, a value is not finite, or a label is not
            -1 or +1.
        TypeError: `x` is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import affine
        >>> print(*affine.separability(*affine.xor()).multipliers)
        1/4 1/4 1/4 1/4
        >>> points, labels = affine.xor()
        >>> affine.separability(affine.lift_products(points), labels).separable
        True

    Reference: Boyd and Vandenberghe (2004), section 5.8.3; Bland, "New Finite Pivoting Rules for
    the Simplex Method" (1977).
    """
    points, signs = _exact(x, labels)
    dimension = len(points[0])
    # lambda >= 0 with sum_i lambda_i y_i (x_i, 1) = 0 and sum_i lambda_i = 1
    columns = [
        [s * v for v in (*p, Fraction(1))] + [Fraction(1)]
        for p, s in zip(points, signs, strict=True)
    ]
    multipliers, dual = _feasible(columns, [Fraction(0)] * (dimension + 1) + [Fraction(1)])
    if multipliers is not None:
        return Separability(False, None, None, tuple(multipliers))
    # The dual has y_i (x_i, 1) v + t <= 0 for all i, and t > 0.
    *v, t = dual
    weight = tuple(-entry / t for entry in v[:-1])
    return Separability(True, weight, -v[-1] / t, None)


def verify_certificate(
    x: ArrayLike, labels: Int[ArrayLike, " n"], multipliers: Sequence[Fraction | float]
) -> bool:
    r"""Whether these multipliers prove that no hyperplane separates the points, exactly.

    If $\lambda \ge 0$, $\sum_i \lambda_i y_i x_i = 0$ and $\sum_i \lambda_i y_i = 0$, then for all
    $w, b$ the weighted sum $\sum_i \lambda_i\, y_i (w^\top x_i + b)$ is 0; so the terms with
    $\lambda_i > 0$ are not all positive.

    Args:
        x: Points, shape `(n, d)`.
        labels: -1 or +1, shape `(n,)`.
        multipliers: $\lambda$, shape `(n,)`. A float counts as exactly what it is.

    Returns:
        Whether all conditions hold and some $\lambda_i > 0$.

    Raises:
        ValueError: As in `separability`, or `multipliers` has another length.
        TypeError: `x` is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import affine
        >>> points, labels = affine.xor()
        >>> affine.verify_certificate(points, labels, [1, 1, 1, 1])
        True
        >>> affine.verify_certificate(points, labels, [1, 1, 1, 2])
        False
    """
    points, signs = _exact(x, labels)
    weights = _multipliers(multipliers, len(points))
    zero = all(
        sum(w * s * v for w, s, v in zip(weights, signs, column, strict=True)) == 0
        for column in (*zip(*points, strict=True), (Fraction(1),) * len(points))
    )
    return zero and min(weights) >= 0 and max(weights) > 0


def verify_hyperplane(
    x: ArrayLike,
    labels: Int[ArrayLike, " n"],
    weight: Sequence[Fraction | float],
    bias: Fraction | float,
) -> bool:
    r"""Whether $y_i (w^\top x_i + b) > 0$ for every point, exactly.

    Args:
        x: Points, shape `(n, d)`.
        labels: -1 or +1, shape `(n,)`.
        weight: $w$, shape `(d,)`. A float counts as exactly what it is.
        bias: $b$.

    Returns:
        Whether the hyperplane separates the two sets.

    Raises:
        ValueError: As in `separability`, or `weight` has another length.
        TypeError: `x` is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import affine
        >>> affine.verify_hyperplane([[0, 0], [1, 1]], [-1, 1], [1, 1], -1)
        True
    """
    points, signs = _exact(x, labels)
    w = [_fraction("weight", v) for v in weight]
    if len(w) != len(points[0]):
        raise ValueError(f"weight must have {len(points[0])} entries, got {len(w)}")
    b = _fraction("bias", bias)
    values = (sum(a * v for a, v in zip(w, p, strict=True)) + b for p in points)
    return all(s * value > 0 for s, value in zip(signs, values, strict=True))


def common_point(
    x: ArrayLike, labels: Int[ArrayLike, " n"], multipliers: Sequence[Fraction | float]
) -> tuple[Fraction, ...]:
    r"""A point in the convex hull of both sets: the certificate as a picture.

    $\sum_i \lambda_i y_i = 0$ says that both sides have one total $\Lambda$. Divided by it,
    $\sum_{y_i = 1} \lambda_i x_i = \sum_{y_i = -1} \lambda_i x_i$ is a mean of points of either
    set.

    Args:
        x: Points, shape `(n, d)`.
        labels: -1 or +1, shape `(n,)`.
        multipliers: A valid certificate.

    Returns:
        The point, exact.

    Raises:
        ValueError: The certificate is not valid.

    Example:
        >>> from mlnotes_jax.foundations import affine
        >>> print(*affine.common_point(*affine.xor(), [1, 1, 1, 1]))
        1/2 1/2
    """
    if not verify_certificate(x, labels, multipliers):
        raise ValueError("multipliers must be a valid certificate for these points")
    points, signs = _exact(x, labels)
    weights = _multipliers(multipliers, len(points))
    total = sum(w for w, s in zip(weights, signs, strict=True) if s > 0)
    plus = [(w, p) for w, p, s in zip(weights, points, signs, strict=True) if s > 0]
    return tuple(
        sum((w * p[j] for w, p in plus), Fraction(0)) / total for j in range(len(points[0]))
    )


# --- Regions --------------------------------------------------------------------------------------


def region_bound(widths: Sequence[int]) -> int:
    r"""The most pieces into which the hidden ReLU layers can cut their input space.

    One layer of $m$ units draws $m$ hyperplanes in $\mathbb R^d$: at most

    $$ r(m, d) = \sum_{k=0}^{d} \binom mk $$

    regions, reached by hyperplanes in general position (Zaslavsky, for one layer). On each region
    the next layer is again $m$ hyperplanes, so that several layers cut at most the product of
    their $r(d_l, d_0)$. That product is a bound only: layers cannot be chosen for each region anew.

    Args:
        widths: $d_0$, the number of inputs, and then the width of each hidden layer.

    Returns:
        The bound, a Python integer.

    Raises:
        ValueError: There is no hidden layer, or a width is less than 1.
        TypeError: A width is not an integer.

    Example:
        >>> from mlnotes_jax.foundations import affine
        >>> affine.region_bound((2, 3)), affine.region_bound((2, 3, 3))
        (7, 49)

    Reference: Zaslavsky (1975), theorem C; Montúfar, Pascanu, Cho and Bengio, "On the Number of
    Linear Regions of Deep Neural Networks" (2014).
    """
    widths = tuple(widths)
    if len(widths) < 2:
        raise ValueError(f"widths must hold the inputs and a hidden layer, got {widths}")
    for i, width in enumerate(widths):
        _checks.positive_int(f"widths[{i}]", width)
    inputs, *hidden = widths
    return math.prod(sum(math.comb(m, k) for k in range(min(inputs, m) + 1)) for m in hidden)


def activation_regions(
    weights: Weights, *, low: Sequence[float], high: Sequence[float]
) -> list[Region]:
    r"""Cut a rectangle into the polygons on which a ReLU network of two inputs is affine.

    Layer by layer: on a polygon the inputs of the next layer are affine in $x$, so each of its
    units is a straight line that cuts the polygon in two, or misses it. On either side the ReLU
    is 0 or the identity, and the map stays affine. On the host, in float64.

    The polygons are those of different activation patterns. Two neighbours may happen to have the
    same affine map, if a later layer ignores what changes between them.

    Args:
        weights: Of a network with two inputs, as for
            [`mlp.forward`][mlnotes_jax.nets.mlp.forward]; ReLU after every layer but the last.
        low: Lower left corner of the rectangle.
        high: Upper right corner.

    Returns:
        The regions; together they fill the rectangle. Slivers thinner than about $10^{-9}$ of the
        rectangle are not cut off.

    Raises:
        ValueError: There is no layer, shapes do not fit, the network has not two inputs, or the
            rectangle is empty.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import affine
        >>> len(affine.activation_regions(affine.xor_network(), low=(-1, -1), high=(2, 2)))
        3

    Reference: Montúfar, Pascanu, Cho and Bengio (2014), section 2.
    """
    layers = _host_layers(weights)
    (x0, y0), (x1, y1) = _corner("low", low), _corner("high", high)
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"low must be below high, got {(x0, y0)} and {(x1, y1)}")
    box = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    tolerance = 1e-9 * max(x1 - x0, y1 - y0)
    # Polygon, pattern, and the affine map from x to the outputs of the layers so far.
    cells = [(box, np.zeros(0, bool), np.eye(2), np.zeros(2))]
    for kernel, bias in layers[:-1]:
        cut = []
        for corners, pattern, k, b in cells:
            k, b = k @ kernel, b @ kernel + bias
            for part in _split(corners, k, b, tolerance):
                on = part.mean(axis=0) @ k + b > 0
                cut.append((part, np.concatenate([pattern, on]), k * on, b * on))
        cells = cut
    kernel, bias = layers[-1]
    return [Region(c, p, k @ kernel, b @ kernel + bias) for c, p, k, b in cells]


# --- Helpers --------------------------------------------------------------------------------------


def _pair(kernel: ArrayLike, bias: ArrayLike) -> tuple[Array, Array]:
    w, b = _checks.floating("kernel", kernel, ndim=2), _checks.floating("bias", bias, ndim=1)
    if b.shape[0] != w.shape[1]:
        raise ValueError(
            f"bias must have one entry for each column of the kernel, of shape {w.shape}, "
            f"got shape {b.shape}"
        )
    return w, b


def _host_layers(weights: Weights) -> list[tuple[np.ndarray, np.ndarray]]:
    layers = [(np.asarray(k, np.float64), np.asarray(b, np.float64)) for k, b in weights]
    features = 2
    for i, (k, b) in enumerate(layers):
        if k.ndim != 2 or k.shape[0] != features or b.shape != k.shape[1:]:
            raise ValueError(
                f"layer {i} of weights must have a kernel ({features}, outputs) and a bias "
                f"(outputs,), got {k.shape} and {b.shape}"
            )
        features = k.shape[1]
    if not layers:
        raise ValueError("weights must hold at least one layer, got none")
    return layers


def _corner(name: str, value: Sequence[float]) -> tuple[float, float]:
    corner = np.asarray(value, np.float64)
    if corner.shape != (2,) or not np.isfinite(corner).all():
        raise ValueError(f"{name} must be two finite numbers, got {value}")
    return float(corner[0]), float(corner[1])


def _split(
    corners: np.ndarray, kernel: np.ndarray, bias: np.ndarray, tolerance: float
) -> list[np.ndarray]:
    """Cut one convex polygon along the zero of every column of `x @ kernel + bias`."""
    parts = [corners]
    for w, b in zip(kernel.T, bias, strict=True):
        norm = np.linalg.norm(w)
        if norm == 0:
            continue  # constant on the polygon: nothing to cut
        parts = [half for part in parts for half in _halves(part, w / norm, b / norm, tolerance)]
    return parts


def _halves(corners: np.ndarray, w: np.ndarray, b: float, tolerance: float) -> list[np.ndarray]:
    """Both sides of a line through a convex polygon, or the polygon if the line misses it."""
    distance = corners @ w + b
    if distance.max() <= tolerance or distance.min() >= -tolerance:
        return [corners]
    below: list[np.ndarray] = []
    above: list[np.ndarray] = []
    for here, there, p, q in zip(
        distance, np.roll(distance, -1), corners, np.roll(corners, -1, axis=0), strict=True
    ):
        if here <= tolerance:
            below.append(p)
        if here >= -tolerance:
            above.append(p)
        if min(here, there) < -tolerance and max(here, there) > tolerance:
            crossing = p + here / (here - there) * (q - p)
            below.append(crossing)
            above.append(crossing)
    return [np.array(side) for side in (below, above)]


def _fraction(name: str, value: object) -> Fraction:
    if isinstance(value, Fraction):
        return value
    try:
        return Fraction(np.asarray(value).item())
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} must be finite numbers, got {value!r}") from error


def _exact(x: ArrayLike, labels: ArrayLike) -> tuple[list[list[Fraction]], list[int]]:
    """Points as fractions, and labels as -1 and +1."""
    array = np.asarray(x)
    if array.dtype != object and not np.issubdtype(array.dtype, np.number) and array.dtype != bool:
        array = np.asarray(_checks.floating("x", x), np.float64)  # bfloat16, or a clear message
    if array.ndim != 2 or not array.size:
        raise ValueError(f"x must be 2-D and not empty, got shape {array.shape}")
    if array.dtype != object:
        _checks.finite("x", array)  # pyright: ignore[reportArgumentType]
    signs = np.asarray(labels)
    if signs.shape != array.shape[:1]:
        raise ValueError(
            f"labels must have one entry for each row of x, of shape {array.shape}, "
            f"got shape {signs.shape}"
        )
    wrong = signs[(signs != 1) & (signs != -1)]
    if wrong.size:
        raise ValueError(f"labels must be -1 or +1, got {wrong[0]}")
    # `.item()`: an int or a float, of which Fraction takes the exact value.
    points = [[_fraction("x", value) for value in row] for row in array]
    return points, [int(s) for s in signs]


def _multipliers(multipliers: Sequence[Fraction | float], count: int) -> list[Fraction]:
    weights = [_fraction("multipliers", m) for m in multipliers]
    if len(weights) != count:
        raise ValueError(
            f"multipliers must have one entry for each of {count} points, got {len(weights)}"
        )
    return weights


def _feasible(
    columns: list[list[Fraction]], target: list[Fraction]
) -> tuple[list[Fraction] | None, list[Fraction]]:
    """Solve `sum_j columns[j] * s_j = target`, `s >= 0`, for a target that is not negative.

    Phase one of the simplex method: artificial variables, one for each row, start as the basis
    and are driven out. Returns `(s, dual)`, or `(None, dual)` where there is no solution; then
    every column times the dual is at most 0, and the target times the dual is positive (Farkas).
    """
    rows, count = len(target), len(columns)
    # Row i of the tableau: the columns, the artificial columns (at last the inverse of the
    # basis), and the right-hand side.
    table = [
        [column[i] for column in columns]
        + [Fraction(int(i == k)) for k in range(rows)]
        + [target[i]]
        for i in range(rows)
    ]
    basis = list(range(count, count + rows))
    # Reduced costs of "sum of the artificial variables", and minus its value at the end.
    cost = [-sum((row[j] for row in table), Fraction(0)) for j in range(count)]
    cost += [Fraction(0)] * rows + [-sum(target, Fraction(0))]
    while True:
        # Bland: the first column that helps; of the rows that limit it, the one whose basic
        # variable has the lowest number. So no basis comes twice.
        enter = next((j for j in range(count) if cost[j] < 0), None)
        if enter is None:
            break
        limits = [
            (table[i][-1] / table[i][enter], basis[i], i)
            for i in range(rows)
            if table[i][enter] > 0
        ]
        _, _, leave = min(limits)
        pivot = table[leave][enter]
        table[leave] = [value / pivot for value in table[leave]]
        for row in (*(table[i] for i in range(rows) if i != leave), cost):
            factor = row[enter]
            if factor:
                row[:] = [a - factor * b for a, b in zip(row, table[leave], strict=True)]
        basis[leave] = enter
    # The reduced cost of artificial variable k is 1 - dual_k (it began at 0 with dual 1).
    dual = [Fraction(1) - cost[count + k] for k in range(rows)]
    if cost[-1] != 0:
        return None, dual
    solution = [Fraction(0)] * count
    for i, j in enumerate(basis):
        if j < count:
            solution[j] = table[i][-1]
    return solution, dual
