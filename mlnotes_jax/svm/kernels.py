r"""Kernels: inner products after a map that is never computed.

A kernel is a symmetric function $k(x, z)$ for which there is a map $\phi$ into an inner-product
space with

$$ k(x, z) = \langle \phi(x), \phi(z) \rangle. $$

Such a map exists exactly if every Gram matrix $K_{ij} = k(x_i, x_j)$ is positive semidefinite.

| name | $k(x, z)$ | a kernel? |
| --- | --- | --- |
| `linear` | $x^\top z$ | yes |
| `polynomial` | $(\gamma\, x^\top z + r)^p$ | for $\gamma > 0$, $r \ge 0$, $p = 1, 2, \dots$ |
| `gaussian` | $\exp(-\gamma \lVert x - z \rVert^2)$ | for $\gamma > 0$ |
| `laplacian` | $\exp(-\gamma \lVert x - z \rVert)$, Euclidean or 1-norm | for $\gamma > 0$ |
| `sigmoid` | $\tanh(\gamma\, x^\top z + r)$ | no |

A kernel here is a small pytree. Its real parameters are leaves, so they may be traced, mapped over
and differentiated; sums, products and positive multiples of kernels are kernels.

Reference: Schölkopf and Smola, *Learning with Kernels* (2002), chapters 2 and 13; Cover,
*Geometrical and Statistical Properties of Systems of Linear Inequalities with Applications in
Pattern Recognition* (1965).
"""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Key, Num

from mlnotes_jax import _checks
from mlnotes_jax.svm import _kernel_blocks as blocks

__all__ = [
    "FourierFeatures",
    "Kernel",
    "Semidefinite",
    "centered",
    "diagonal",
    "gaussian",
    "gram",
    "is_positive_semidefinite",
    "laplacian",
    "linear",
    "polynomial",
    "precomputed",
    "random_fourier_features",
    "resolve",
    "separable_labelings",
    "sigmoid",
]

Norm = Literal["euclidean", "manhattan"]

_T = TypeVar("_T")

# Two halves of a matrix that came from somewhere else agree up to so many units in the last place.
_SYMMETRY_ULPS = 1000


class Kernel:
    """What the kernels of this module can do; a base for kernels of your own, too.

    A subclass, a frozen dataclass registered by `jax.tree_util.register_dataclass`, needs
    `__call__(x, z)` for two single examples. `gram` and `diagonal` follow from it, and may be
    written again where there is a faster way.

    `k1 + k2`, `k1 * k2` and `2.0 * k` are kernels, with all forms derived from those of their
    parts. A part may be any callable. There is no difference of kernels: it need not be a kernel.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.svm import kernels
        >>> k = kernels.linear() + 0.5 * kernels.linear() * kernels.linear()
        >>> float(k(jnp.array([1.0, 2.0]), jnp.array([3.0, 1.0])))  # 5 + 25 / 2
        17.5
    """

    __array_ufunc__ = None  # a NumPy number times a kernel comes to `__rmul__`

    def __call__(self, x: Num[Array, " d"], z: Num[Array, " d"]) -> Float[Array, ""]:
        """The kernel of two examples."""
        raise NotImplementedError(f"{type(self).__name__} needs a method __call__(x, z)")

    def gram(self, x: Num[Array, "n d"], z: Num[Array, "m d"]) -> Float[Array, "n m"]:
        """The kernel of all pairs of rows."""
        return _by_pairs(self, x, z)

    def diagonal(self, x: Num[Array, "n d"]) -> Float[Array, " n"]:
        """The kernel of each row with itself."""
        return jax.vmap(self)(x, x)

    def own_gram(self, x: Num[Array, "n d"]) -> Float[Array, "n n"]:
        """The kernel of all pairs of rows of one array."""
        return self.gram(x, x)

    def prepared(self, x: Num[Array, "n d"]) -> Num[Array, "n e"]:
        """Rows in the form that `prepared_gram` takes."""
        return x

    def prepared_gram(self, x: Num[Array, "n e"], z: Num[Array, "m e"]) -> Float[Array, "n m"]:
        """`gram` of rows from `prepared`: what can be done once for many blocks was done there."""
        return self.gram(x, z)

    def __repr__(self) -> str:
        fields = dataclasses.fields(self) if dataclasses.is_dataclass(self) else ()
        values = (f"{field.name}={getattr(self, field.name)!r}" for field in fields)
        return f"{type(self).__name__.lstrip('_')}({', '.join(values)})"

    def __add__(self, other: Any) -> "Kernel":
        return _Sum(self, other) if callable(other) else NotImplemented

    def __radd__(self, other: Any) -> "Kernel":
        return _Sum(other, self) if callable(other) else NotImplemented

    def __mul__(self, other: Any) -> "Kernel":
        return _Product(self, other) if callable(other) else _scaled(other, self)

    def __rmul__(self, other: Any) -> "Kernel":
        return _Product(other, self) if callable(other) else _scaled(other, self)


class Semidefinite(NamedTuple):
    """What `is_positive_semidefinite` found; true in an `if` where the matrix passed.

    Attributes:
        verdict: Whether the smallest eigenvalue is at least `-threshold`, shape `()`.
        eigenvalue: The smallest one, shape `()`.
        threshold: `tol` times the largest absolute eigenvalue, shape `()`.
    """

    verdict: Bool[Array, ""]
    eigenvalue: Float[Array, ""]
    threshold: Float[Array, ""]

    def __bool__(self) -> bool:
        return bool(self.verdict)


class FourierFeatures(NamedTuple):
    r"""A map whose inner products estimate a Gaussian kernel: a pytree, called on examples.

    $$ \hat\phi(x) = \sqrt{2 / D}\, (\cos \omega_1^\top x, \dots, \cos \omega_{D/2}^\top x,\,
       \sin \omega_1^\top x, \dots, \sin \omega_{D/2}^\top x), $$

    of length one.

    Attributes:
        frequencies: The $\omega_i$ as columns, shape `(d, D / 2)`.
    """

    frequencies: Float[Array, "d half"]

    def __call__(self, x: Num[Array, "*batch d"]) -> Float[Array, "*batch features"]:
        """Features of one example, or of any batch of them, in the dtype of `x`."""
        x = _checks.floating("x", x)
        dim, half = self.frequencies.shape
        if x.ndim < 1 or x.shape[-1] != dim:
            raise ValueError(f"x must have {dim} features, got shape {x.shape}")
        dtype = blocks.wider(x.dtype, jnp.float32)
        rows = x.reshape(-1, dim).astype(dtype)
        angles = blocks.products(rows, self.frequencies.T.astype(dtype))
        waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1) / math.sqrt(half)
        return waves.reshape(*x.shape[:-1], 2 * half).astype(x.dtype)


# --- Kernels ----------------------------------------------------------------------------------


def linear() -> Kernel:
    r"""The inner product itself, $k(x, z) = x^\top z$.

    Returns:
        A kernel without parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.svm import kernels
        >>> float(kernels.linear()(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])))
        11.0
    """
    return _Linear()


def polynomial(
    degree: int = 3, *, gamma: ArrayLike | Literal["scale"] = 1.0, offset: ArrayLike = 0.0
) -> Kernel:
    r"""All products of up to (`offset` > 0) or exactly (`offset` = 0) `degree` features.

    $$ k(x, z) = (\gamma\, x^\top z + r)^p $$

    with `gamma` $\gamma$, `offset` $r$ and `degree` $p$.

    Args:
        degree: $p$, an integer of at least 1; static.
        gamma: $\gamma > 0$, or `"scale"`: see `resolve`.
        offset: $r \ge 0$. With $r < 0$ the function is no kernel.

    Returns:
        The kernel.

    Raises:
        TypeError: `degree` is no integer, or a parameter is no number.
        ValueError: `degree` is below 1, `gamma` not positive, `offset` negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.svm import kernels
        >>> k = kernels.polynomial(2, offset=1.0)
        >>> float(k(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])))  # (11 + 1)^2
        144.0

    Note:
        The notes have $\gamma = 1$ and no offset. scikit-learn calls the offset `coef0`; it is 1 in
        `polynomial_kernel` and 0 in `SVC` by default.
    """
    _checks.positive_int("degree", degree)
    gamma = _gamma(gamma)
    offset = _parameter("offset", offset)
    _checks.not_negative("offset", offset)
    return _Polynomial(gamma, offset, int(degree))


def gaussian(
    gamma: ArrayLike | Literal["scale"] | None = None, *, sigma: ArrayLike | None = None
) -> Kernel:
    r"""Similarity that fades with the squared distance: the radial basis function (RBF) kernel.

    $$ k(x, z) = \exp(-\gamma \lVert x - z \rVert^2)
       = \exp\Bigl(-\frac{\lVert x - z \rVert^2}{2 \sigma^2}\Bigr),
       \qquad \gamma = \frac{1}{2 \sigma^2} $$

    `sigma` is a distance, in the units of the features; `gamma` is one over a squared distance.
    A large `gamma` is a narrow kernel.

    Args:
        gamma: $\gamma > 0$, or `"scale"`: see `resolve`.
        sigma: $\sigma > 0$, in place of `gamma`.

    Returns:
        The kernel; its leaf is `gamma`.

    Raises:
        TypeError: Neither or both are given, or the one given is no number.
        ValueError: It is not positive and finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.svm import kernels
        >>> x, z = jnp.array([0.0, 0.0]), jnp.array([3.0, 4.0])
        >>> round(float(kernels.gaussian(sigma=5.0)(x, z)), 4)  # exp(-25 / 50)
        0.6065
        >>> kernels.gaussian(sigma=5.0)
        Gaussian(gamma=0.02)
    """
    if (gamma is None) == (sigma is None):
        raise TypeError("gaussian takes gamma or sigma: one of them, and not both")
    if sigma is not None:
        width = _positive_parameter("sigma", sigma)
        gamma = 0.5 / _positive_parameter("the square of sigma", width * width)
    return _Gaussian(_gamma(gamma))


def laplacian(gamma: ArrayLike | Literal["scale"], *, norm: Norm = "euclidean") -> Kernel:
    r"""Similarity that fades with the distance, and has a tip where the Gaussian is round.

    $$ k(x, z) = \exp(-\gamma \lVert x - z \rVert) $$

    Args:
        gamma: $\gamma > 0$, or `"scale"`: see `resolve`. The notes' $\sigma$ is $1 / \gamma$.
        norm: Which distance; static.

    Returns:
        The kernel.

    Raises:
        TypeError: `gamma` is no number.
        ValueError: `gamma` is not positive and finite, or the norm is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.svm import kernels
        >>> x, z = jnp.array([0.0, 0.0]), jnp.array([3.0, 4.0])
        >>> round(float(kernels.laplacian(0.1)(x, z)), 4)  # exp(-0.5)
        0.6065
        >>> round(float(kernels.laplacian(0.1, norm="manhattan")(x, z)), 4)  # exp(-0.7)
        0.4966

    Note:
        The notes' norm is the Euclidean one. scikit-learn's `laplacian_kernel` has the 1-norm:
        `norm="manhattan"`. The derivative by an example is taken as 0 where the distance is 0.
    """
    _checks.one_of("norm", norm, ("euclidean", "manhattan"))
    return _Laplacian(_gamma(gamma), norm)


def sigmoid(gamma: ArrayLike | Literal["scale"], *, offset: ArrayLike = 0.0) -> Kernel:
    r"""$\tanh(\gamma\, x^\top z + r)$: called a kernel, but it is not positive semidefinite.

    Its Gram matrix has negative eigenvalues for some examples, whatever $\gamma > 0$ and $r$ are.
    So there is no map $\phi$, and a support vector machine with it has no single answer.

    Args:
        gamma: $\gamma > 0$, or `"scale"`: see `resolve`.
        offset: $r$, of any sign; negative in the notes.

    Returns:
        The function, in the form of a kernel.

    Raises:
        TypeError: A parameter is no number.
        ValueError: `gamma` is not positive and finite, or `offset` not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.svm import kernels
        >>> k = kernels.sigmoid(1.0, offset=-1.0)
        >>> round(float(k(jnp.array([0.5]), jnp.array([0.5]))), 4)  # tanh(-0.75): x with itself!
        -0.6351
    """
    return _Sigmoid(_gamma(gamma), _parameter("offset", offset))


def precomputed(matrix: Num[ArrayLike, "n n"]) -> Kernel:
    """A Gram matrix that is known already; examples are row numbers.

    Args:
        matrix: Symmetric, shape `(n, n)`.

    Returns:
        A kernel of examples of shape `(1,)`: the number of a row, as an integer, or as a float
        without fraction. A number that is no row gives NaN under a transformation.

    Raises:
        TypeError: `matrix` is not numeric.
        ValueError: `matrix` is not square, or concrete and not finite or not symmetric.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.svm import kernels
        >>> k = kernels.precomputed([[2.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 2.0]])
        >>> kernels.gram(k, jnp.array([[0], [2]]), jnp.array([[0], [1], [2]])).tolist()
        [[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]
    """
    matrix = _square("matrix", matrix)
    _checks.finite("matrix", matrix)
    check_symmetric("matrix", matrix)
    return _Precomputed(matrix)


# --- Their forms ------------------------------------------------------------------------------


def gram(
    k: Callable[..., Any], x: Num[ArrayLike, "n d"], z: Num[ArrayLike, "m d"] | None = None
) -> Float[Array, "n m"]:
    r"""The kernel of all pairs of rows, $K_{ij} = k(x_i, z_j)$, in blocks.

    Linear, polynomial and sigmoid kernels are one matrix product and an elementwise function. So
    are the Gaussian and the Euclidean Laplacian, by
    $\lVert x - z \rVert^2 = \lVert x \rVert^2 + \lVert z \rVert^2 - 2 x^\top z$. That difference
    cancels where distances are small beside norms; so the mean of `z` is subtracted from both
    first, which changes no distance, and what is left below zero is set to zero. Up to 8 features
    are subtracted directly: no cancellation. The 1-norm is summed feature by feature.

    Args:
        k: A kernel of this module; or any callable of two examples: its method `gram(x, z)` is used
            where it has one, else `k` is mapped over all pairs.
        x: Examples as rows, shape `(n, d)`.
        z: Other examples, shape `(m, d)`; where None, `x` again, and the result is exactly
            symmetric, with exact ones on the diagonal of a Gaussian or Laplacian.

    Returns:
        The matrix, shape `(n, m)`, in the dtype of the examples; computed in at least float32.

    Raises:
        TypeError: `k` is not callable, or the examples are not numeric.
        ValueError: The shapes do not fit, or `k` has an unresolved `gamma="scale"`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.svm import kernels
        >>> x = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
        >>> kernels.gram(kernels.polynomial(2, offset=1.0), x).tolist()
        [[1.0, 1.0, 1.0], [1.0, 4.0, 1.0], [1.0, 1.0, 25.0]]

    Note:
        Differs from calling `k` pair by pair in the last digits. In float32 and with more than 8
        features, rows nearer to each other than about 0.0014 of their distance from the mean
        count as equal for the Euclidean Laplacian.
    """
    _check_kernel(k)
    x = _examples("x", x)
    if z is None:
        return k.own_gram(x) if isinstance(k, Kernel) else _block(k, x, x)
    z = _examples("z", z)
    _check_features(x, z)
    return _block(k, x, z)


def diagonal(k: Callable[..., Any], x: Num[ArrayLike, "n d"]) -> Float[Array, " n"]:
    r"""$k(x_i, x_i)$ of every row: the squared lengths $\lVert \phi(x_i) \rVert^2$.

    Args:
        k: A kernel, or any callable of two examples; its method `diagonal(x)` is used
            where it has one.
        x: Examples, shape `(n, d)`.

    Returns:
        Shape `(n,)`; exactly one for the Gaussian and the Laplacian.

    Raises:
        TypeError: As `gram`.
        ValueError: As `gram`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.svm import kernels
        >>> kernels.diagonal(kernels.linear(), jnp.array([[3.0, 4.0], [1.0, 0.0]])).tolist()
        [25.0, 1.0]
    """
    _check_kernel(k)
    x = _examples("x", x)
    method: Any = getattr(k, "diagonal", None)
    return jax.vmap(k)(x, x) if method is None else method(x)


def resolve(
    k: _T, x: Num[ArrayLike, "n d"], sample_weight: Num[ArrayLike, " n"] | None = None
) -> _T:
    r"""Replace every `gamma="scale"` inside a kernel by a number that fits the data.

    $$ \gamma = \frac{1}{d\, v}, \qquad
       v = \frac{1}{n d} \sum_{i,j} (x_{ij} - \bar x)^2, \qquad
       \bar x = \frac{1}{n d} \sum_{i,j} x_{ij} $$

    For features that each have mean $\bar x$, two rows drawn at random have $2 d v$ as their mean
    squared distance. So a typical $\gamma \lVert x - z \rVert^2$ is about 2, in any units.

    Args:
        k: A kernel, or any pytree with kernels inside.
        x: The training examples, shape `(n, d)`.
        sample_weight: Shape `(n,)`; rows of weight zero do not count, all others count the same.

    Returns:
        `k` with numbers; `k` itself if there is nothing to replace. 1 where all entries are equal.

    Raises:
        TypeError: The arrays are not numeric.
        ValueError: The shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.svm import kernels
        >>> k = kernels.resolve(kernels.gaussian("scale"), jnp.array([[0.0, 2.0], [4.0, 2.0]]))
        >>> float(k.gamma)  # d = 2, v = 2
        0.25

    Note:
        As scikit-learn defines `gamma="scale"`, except that it also counts rows of weight zero.
    """
    is_scale = lambda node: isinstance(node, _Scale)  # noqa: E731
    if not any(map(is_scale, jax.tree.leaves(k, is_leaf=is_scale))):
        return k
    x = blocks.wide(_checks.floating("x", x, ndim=2))
    counted = jnp.ones(len(x), bool)
    if sample_weight is not None:
        weight = _checks.floating("sample_weight", sample_weight, ndim=1)
        _checks.same_length(x=x, sample_weight=weight)
        counted = weight > 0
    size = jnp.maximum(jnp.sum(counted, dtype=x.dtype) * x.shape[1], 1)
    # From an entry that counts: a constant is then exactly zero, and so is its variance.
    moved = jnp.where(counted[:, None], x - x[jnp.argmax(counted)][None, :1], 0)
    spread = jnp.where(counted[:, None], moved - jnp.sum(moved) / size, 0)
    variance = jnp.sum(jnp.square(spread)) / size
    flat = variance == 0
    gamma = jnp.where(flat, 1, 1 / (x.shape[1] * jnp.where(flat, 1, variance)))
    return jax.tree.map(lambda node: gamma if is_scale(node) else node, k, is_leaf=is_scale)


# --- Gram matrices ----------------------------------------------------------------------------


def is_positive_semidefinite(
    gram: Num[ArrayLike, "n n"], *, tol: ArrayLike | None = None
) -> Semidefinite:
    r"""Test for $\lambda_{\min} \ge -\mathrm{tol} \cdot \max_i |\lambda_i|$.

    Rounding moves every eigenvalue by about $n \varepsilon \max_i |\lambda_i|$ at most; an
    eigenvalue that is zero on paper comes out on either side of it. A verdict on one matrix proves
    that a function is *no* kernel; it cannot prove that it is one.

    Args:
        gram: Symmetric, shape `(n, n)`.
        tol: Relative tolerance; $n \varepsilon$ of the dtype by default.

    Returns:
        The verdict, the smallest eigenvalue, and the threshold it was held against. NaN anywhere,
        or a matrix that is not symmetric under a transformation, gives a false verdict.

    Raises:
        TypeError: `gram` is not numeric.
        ValueError: `gram` is not square, is empty or concrete and not symmetric; `tol` is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.svm import kernels
        >>> found = kernels.is_positive_semidefinite(jnp.array([[0.0, 1.0], [1.0, 0.0]]))
        >>> bool(found), round(float(found.eigenvalue), 6)
        (False, -1.0)
    """
    matrix = blocks.wide(_square("gram", gram))
    _checks.not_empty("gram", matrix)
    symmetric = check_symmetric("gram", matrix)
    if tol is None:
        tol = len(matrix) * float(jnp.finfo(matrix.dtype).eps)
    _checks.not_negative("tol", tol)
    values = jnp.linalg.eigvalsh(matrix)
    threshold = jnp.asarray(tol, matrix.dtype) * jnp.max(jnp.abs(values))
    return Semidefinite(symmetric & (values[0] >= -threshold), values[0], threshold)


def centered(
    gram: Num[ArrayLike, "n n"], rows: Num[ArrayLike, "m n"] | None = None
) -> Float[Array, "m n"]:
    r"""The Gram matrix of $\phi(x_i) - \bar\phi$, the features minus their mean.

    $$ \tilde K = H K H, \quad H = I - \tfrac1n 1 1^\top, \qquad
       \tilde K_{ij} = K_{ij} - \tfrac1n \sum_b K_{ib} - \tfrac1n \sum_a K_{aj}
       + \tfrac1{n^2} \sum_{a,b} K_{ab} $$

    Args:
        gram: $K$ of the training examples, shape `(n, n)`.
        rows: $k(x_i, x_j)$ of other examples $x_i$ with the training examples $x_j$, shape
            `(m, n)`: centre these, at the mean of the *training* examples.

    Returns:
        Shape `(n, n)`, or `(m, n)` of `rows`, in the dtype of `gram`.

    Raises:
        TypeError: An array is not numeric.
        ValueError: The shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.svm import kernels
        >>> kernels.centered(jnp.array([[1.0, 2.0], [2.0, 4.0]])).tolist()  # of 1 and 2: -0.5, 0.5
        [[0.25, -0.25], [-0.25, 0.25]]

    Reference:
        Schölkopf, Smola and Müller, *Nonlinear Component Analysis as a Kernel Eigenvalue Problem*
        (1998), appendix A.
    """
    matrix = _square("gram", gram)
    _checks.not_empty("gram", matrix)
    if rows is None:
        other, result = matrix, matrix.dtype
    else:
        other = _checks.floating("rows", rows, ndim=2)
        if other.shape[1] != len(matrix):
            raise ValueError(
                f"rows must have one column for each of the {len(matrix)} rows of gram, "
                f"got shape {other.shape}"
            )
        result = blocks.wider(matrix.dtype, other.dtype)
    dtype = blocks.wider(result, jnp.float32)
    matrix, other = matrix.astype(dtype), other.astype(dtype)
    columns = matrix.mean(axis=0, keepdims=True)
    # Half of the grand mean to either side: the result of a symmetric matrix is symmetric.
    row_means = columns.T if rows is None else other.mean(axis=1, keepdims=True)
    grand = columns.mean()
    return (other - ((row_means - 0.5 * grand) + (columns - 0.5 * grand))).astype(result)


def random_fourier_features(
    key: Key[Array, ""], num_features: int, dim: int, *, gamma: ArrayLike
) -> FourierFeatures:
    r"""Draw a finite map whose inner products estimate the Gaussian kernel.

    $$ \hat k(x, z) = \hat\phi(x)^\top \hat\phi(z)
       = \frac2D \sum_{i=1}^{D/2} \cos\bigl(\omega_i^\top (x - z)\bigr), \qquad
       \omega_i \sim \mathcal N(0, 2 \gamma I) $$

    $\mathbb E[\hat k] = k = \exp(-\gamma \lVert x - z \rVert^2)$, with variance $(1 - k^2)^2 / D$.

    Args:
        key: Draws the frequencies.
        num_features: $D$, an even number; static.
        dim: Features of an example, $d$; static.
        gamma: $\gamma > 0$ of the kernel.

    Returns:
        The map; it costs $n D d$ operations for $n$ examples, where a Gram matrix costs $n^2 d$.

    Raises:
        TypeError: A count is no integer, or `gamma` no number.
        ValueError: A count is below 1, `num_features` is odd, or `gamma` not positive and finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from mlnotes_jax.svm import kernels
        >>> phi = kernels.random_fourier_features(jax.random.key(0), 4096, 3, gamma=0.5)
        >>> x, z = jnp.array([1.0, 0.0, 0.0]), jnp.array([0.0, 1.0, 0.0])
        >>> exact = kernels.gaussian(0.5)(x, z)
        >>> bool(abs(phi(x) @ phi(z) - exact) < 0.05)
        True

    Note:
        Rahimi and Recht's algorithm 1, and scikit-learn's `RBFSampler`, have one cosine with a
        random phase for each frequency. Its variance is
        $\tfrac12 (1 - k^2)^2 / D + \tfrac12 / D$, never less than that of pairs.

    Reference:
        Rahimi and Recht, *Random Features for Large-Scale Kernel Machines* (2007); Sutherland and
        Schneider, *On the Error of Random Fourier Features* (2015).
    """
    _checks.positive_int("num_features", num_features, least=2)
    if num_features % 2:
        raise ValueError(f"num_features must be even: cosines and sines, got {num_features}")
    _checks.positive_int("dim", dim)
    gamma = _positive_parameter("gamma", gamma)
    dtype = gamma.dtype if isinstance(gamma, jax.Array) else jnp.result_type(float)
    scale = jnp.sqrt(2 * _scalar("gamma", gamma, dtype))
    return FourierFeatures(scale * jax.random.normal(key, (dim, num_features // 2), dtype))


def separable_labelings(num_points: int, dim: int, *, bias: bool = True) -> int:
    r"""Cover's count of the labelings of $n$ points that a hyperplane can realise.

    $$ C(n, D) = 2 \sum_{i=0}^{D-1} \binom{n-1}{i} $$

    of $2^n$ labelings, for planes through the origin in $D$ dimensions; a plane with a bias in
    `dim` dimensions is one through the origin in $D = \mathrm{dim} + 1$. It holds for every set of
    points in general position: any $D$ of them, or fewer (with a 1 appended, where there is a
    bias), are linearly independent.

    Args:
        num_points: $n$.
        dim: Dimensions of the points.
        bias: Whether the plane may miss the origin.

    Returns:
        The count, as a Python integer of any size.

    Raises:
        TypeError: A count is no integer.
        ValueError: A count is below 1.

    Example:
        >>> from mlnotes_jax.svm import kernels
        >>> kernels.separable_labelings(4, 2)  # of 16: all but the two of XOR
        14

    Reference:
        Cover (1965), theorem 1.
    """
    _checks.positive_int("num_points", num_points)
    _checks.positive_int("dim", dim)
    through_origin = int(dim) + bool(bias)
    return 2 * sum(math.comb(int(num_points) - 1, i) for i in range(through_origin))


# --- The pytrees ------------------------------------------------------------------------------


class _Scale(NamedTuple):
    """Stands for a gamma that `resolve` will choose; a pytree without leaves."""

    def __repr__(self) -> str:
        return "'scale'"


def _node(data: tuple[str, ...], static: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """Make a class a frozen pytree; no validation in it, as unflattening makes instances too."""

    def decorate(cls: Any) -> Any:
        cls = dataclasses.dataclass(frozen=True, repr=False)(cls)
        return jax.tree_util.register_dataclass(cls, data, static)

    return decorate


class _Products(Kernel):
    """A function of the inner product."""

    def function(self, product: Array) -> Array:
        raise NotImplementedError

    def __call__(self, x, z):
        x, z, dtype = _pair(x, z)
        return self.function(jnp.sum(x * z)).astype(dtype)

    def gram(self, x, z):
        x, z, dtype = _arrays(x, z)
        return self.function(blocks.products(x, z)).astype(dtype)

    def own_gram(self, x):
        x = _checks.floating("x", x)
        return self.function(blocks.own_products(x)).astype(x.dtype)

    def diagonal(self, x):
        x = _checks.floating("x", x)
        return self.function(blocks.squared_norms(x)).astype(x.dtype)


@_node(())
class _Linear(_Products):
    def function(self, product):
        return product


@_node(("gamma", "offset"), ("degree",))
class _Polynomial(_Products):
    gamma: Any
    offset: Any
    degree: int

    def function(self, product):
        gamma = _scalar("gamma", self.gamma, product.dtype)
        offset = _scalar("offset", self.offset, product.dtype)
        return jax.lax.integer_pow(gamma * product + offset, self.degree)


@_node(("gamma", "offset"))
class _Sigmoid(_Products):
    gamma: Any
    offset: Any

    def function(self, product):
        gamma = _scalar("gamma", self.gamma, product.dtype)
        return jnp.tanh(gamma * product + _scalar("offset", self.offset, product.dtype))


class _Distances(Kernel):
    """An exponential of a distance."""

    gamma: Any

    def distances(self, x: Array, z: Array) -> Array:
        raise NotImplementedError

    def own_distances(self, x: Array) -> Array:
        return self.distances(x, x)

    def one_distance(self, x: Array, z: Array) -> Array:
        raise NotImplementedError

    def function(self, distance: Array) -> Array:
        return jnp.exp(-_scalar("gamma", self.gamma, distance.dtype) * distance)

    def __call__(self, x, z):
        x, z, dtype = _pair(x, z)
        return self.function(self.one_distance(x, z)).astype(dtype)

    def gram(self, x, z):
        x, z, dtype = _arrays(x, z)
        return self.function(self.distances(x, z)).astype(dtype)

    def own_gram(self, x):
        x = _checks.floating("x", x)
        return self.function(self.own_distances(x)).astype(x.dtype)

    def diagonal(self, x):
        return jnp.ones(len(x), _checks.floating("x", x).dtype)


@_node(("gamma",))
class _Gaussian(_Distances):
    gamma: Any

    def distances(self, x, z):
        return blocks.squared_distances(x, z)

    def own_distances(self, x):
        return blocks.own_squared_distances(x)

    def prepared(self, x):
        return blocks.prepared(x)

    def prepared_gram(self, x, z):
        return self.function(blocks.prepared_squares(x, z))

    def one_distance(self, x, z):
        return jnp.sum(jnp.square(x - z))


@_node(("gamma",), ("norm",))
class _Laplacian(_Distances):
    gamma: Any
    norm: Norm

    def distances(self, x, z):
        return blocks.manhattan(x, z) if self.norm == "manhattan" else blocks.distances(x, z)

    def own_distances(self, x):
        return blocks.manhattan(x, x) if self.norm == "manhattan" else blocks.own_distances(x)

    def one_distance(self, x, z):
        if self.norm == "manhattan":
            return jnp.sum(jnp.abs(x - z))
        return blocks.root(jnp.sum(jnp.square(x - z)))


@_node(("matrix",))
class _Precomputed(Kernel):
    matrix: Array

    def __call__(self, x, z):
        return self.gram(jnp.asarray(x)[None], jnp.asarray(z)[None])[0, 0]

    def gram(self, x, z):
        i, j = self._rows("x", x), self._rows("z", z)
        known = (i >= 0)[:, None] & (j >= 0)[None, :]
        return jnp.where(known, self.matrix[i[:, None], j[None, :]], jnp.nan)

    def diagonal(self, x):
        i = self._rows("x", x)
        return jnp.where(i >= 0, self.matrix[i, i], jnp.nan)

    def _rows(self, name: str, x: Array) -> Array:
        """Row numbers; -1 where `x` is none."""
        x, size = jnp.asarray(x), len(self.matrix)
        if x.ndim != 2 or x.shape[1] != 1:
            raise ValueError(
                f"{name} must hold row numbers of the precomputed matrix, "
                f"shape (n, 1), got {x.shape}"
            )
        x = x[:, 0]
        row = x.astype(jnp.int32)
        valid = (row >= 0) & (row < size) & (row.astype(x.dtype) == x)
        if _checks.is_concrete(valid) and not np.asarray(valid).all():
            worst = np.asarray(x)[~np.asarray(valid)][0]
            raise ValueError(f"{name} must hold row numbers in 0..{size - 1}, got {worst}")
        return jnp.where(valid, row, -1)


@_node(("left", "right"))
class _Sum(Kernel):
    left: Any
    right: Any

    def __call__(self, x, z):
        return jnp.add(*_alike(self.left(x, z), self.right(x, z)))

    def gram(self, x, z):
        return jnp.add(*_alike(gram(self.left, x, z), gram(self.right, x, z)))

    def own_gram(self, x):
        return jnp.add(*_alike(gram(self.left, x), gram(self.right, x)))

    def diagonal(self, x):
        return jnp.add(*_alike(diagonal(self.left, x), diagonal(self.right, x)))


@_node(("left", "right"))
class _Product(Kernel):
    left: Any
    right: Any

    def __call__(self, x, z):
        return jnp.multiply(*_alike(self.left(x, z), self.right(x, z)))

    def gram(self, x, z):
        return jnp.multiply(*_alike(gram(self.left, x, z), gram(self.right, x, z)))

    def own_gram(self, x):
        return jnp.multiply(*_alike(gram(self.left, x), gram(self.right, x)))

    def diagonal(self, x):
        return jnp.multiply(*_alike(diagonal(self.left, x), diagonal(self.right, x)))


@_node(("factor", "kernel"))
class _Scaled(Kernel):
    factor: Any
    kernel: Any

    def _times(self, value: Array) -> Array:
        return _scalar("the factor of a kernel", self.factor, value.dtype) * value

    def __call__(self, x, z):
        return self._times(self.kernel(x, z))

    def gram(self, x, z):
        return self._times(gram(self.kernel, x, z))

    def own_gram(self, x):
        return self._times(gram(self.kernel, x))

    def prepared(self, x):
        return prepared(self.kernel, x)

    def prepared_gram(self, x, z):
        return self._times(prepared_gram(self.kernel, x, z))

    def diagonal(self, x):
        return self._times(diagonal(self.kernel, x))


# --- For solvers: what `gram` does once for each block, done once for all ---------------------


def prepared(k: Callable[..., Any], x: Array) -> Array:
    """Rows in the form that `prepared_gram` takes."""
    return k.prepared(x) if isinstance(k, Kernel) else x


def prepared_gram(k: Callable[..., Any], x: Array, z: Array) -> Array:
    """`gram` of rows from `prepared`, not checked again."""
    return k.prepared_gram(x, z) if isinstance(k, Kernel) else _block(k, x, z)


# --- Helpers ----------------------------------------------------------------------------------


def _scaled(factor: Any, kernel: Kernel) -> Kernel:
    factor = _parameter("the factor of a kernel", factor)
    _checks.not_negative("the factor of a kernel", factor)
    return _Scaled(factor, kernel)


def _gamma(value: Any) -> Any:
    if isinstance(value, _Scale) or (isinstance(value, str) and value == "scale"):
        return _Scale()
    if isinstance(value, str):
        raise ValueError(f"gamma must be a positive number or 'scale', got {value!r}")
    return _positive_parameter("gamma", value)


def _positive_parameter(name: str, value: Any) -> Any:
    value = _parameter(name, value)
    _checks.positive(name, value)
    return value


def _parameter(name: str, value: Any) -> Any:
    # Python numbers stay as they are: they take on the dtype of the examples, digits and all. More
    # than one number is for `vmap` over the kernel.
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        value = float(value)
    else:
        value = _checks.floating(name, value)
    _checks.finite(name, value)
    return value


def _scalar(name: str, value: Any, dtype: Any) -> Array:
    if isinstance(value, _Scale):
        raise ValueError(f"{name}='scale' needs data: call kernels.resolve(k, x) with them first")
    value = jnp.asarray(value, dtype)
    if value.ndim:
        raise ValueError(f"{name} must be a scalar, got shape {value.shape}: map over the kernel")
    return value


def _check_kernel(k: Any) -> None:
    if not callable(k):
        raise TypeError(
            f"k must be a kernel, as kernels.gaussian(0.5), or another callable of two examples, "
            f"got {k!r}"
        )


def _examples(name: str, value: Any) -> Array:
    # Integers stay integers: for some kernels they are numbers of rows.
    array = _checks.floating(name, value, ndim=2)
    given = jnp.asarray(value)
    return given if jnp.issubdtype(given.dtype, jnp.integer) else array


def _check_features(x: Array, z: Array) -> None:
    if x.shape[-1] != z.shape[-1]:
        raise ValueError(f"x and z must have as many features, got x {x.shape}, z {z.shape}")


def _arrays(x: Any, z: Any, ndim: int = 2) -> tuple[Array, Array, Any]:
    x, z = _checks.floating("x", x, ndim=ndim), _checks.floating("z", z, ndim=ndim)
    _check_features(x, z)
    dtype = blocks.wider(x.dtype, z.dtype)
    return x.astype(dtype), z.astype(dtype), dtype


def _pair(x: Any, z: Any) -> tuple[Array, Array, Any]:
    x, z, dtype = _arrays(x, z, ndim=1)
    return blocks.wide(x), blocks.wide(z), dtype


def _alike(a: Array, b: Array) -> tuple[Array, Array]:
    dtype = blocks.wider(a.dtype, b.dtype)
    return a.astype(dtype), b.astype(dtype)


def _block(k: Callable[..., Any], x: Array, z: Array) -> Array:
    method: Any = getattr(k, "gram", None)
    result = _by_pairs(k, x, z) if method is None else method(x, z)
    if jnp.shape(result) != (len(x), len(z)):
        raise ValueError(
            f"the kernel's gram(x, z) must have shape {(len(x), len(z))}, got {jnp.shape(result)}"
        )
    return result


def _by_pairs(k: Callable[..., Any], x: Array, z: Array) -> Array:
    result = jax.vmap(lambda a: jax.vmap(lambda b: k(a, b))(z))(x)
    if jnp.shape(result) != (len(x), len(z)):
        raise ValueError(
            f"a kernel of two examples must give a scalar, got shape {jnp.shape(result)[2:]}"
        )
    return result


def _square(name: str, value: Any) -> Array:
    array = _checks.floating(name, value)
    if array.ndim != 2 or array.shape[0] != array.shape[1]:
        raise ValueError(f"{name} must be square, got shape {array.shape}")
    return array


def check_symmetric(name: str, matrix: Array) -> Bool[Array, ""]:
    """Whether it is, up to rounding; an error where it is concrete and is not."""
    difference = jnp.abs(matrix - matrix.T)
    allowed = _SYMMETRY_ULPS * jnp.finfo(matrix.dtype).eps * jnp.max(jnp.abs(matrix), initial=0)
    symmetric = ~jnp.any(difference > allowed)
    if _checks.is_concrete(symmetric) and not symmetric:
        i, j = np.unravel_index(int(jnp.argmax(difference)), matrix.shape)
        raise ValueError(
            f"{name} must be symmetric, got {matrix[i, j]} in row {i}, column {j}, "
            f"but {matrix[j, i]} in row {j}, column {i}"
        )
    return symmetric
