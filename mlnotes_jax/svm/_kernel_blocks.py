"""Products and distances between all rows of two arrays, without an array of n x m x d.

Everything here runs in at least float32; callers round the result. It is compiled, so that also
outside of a program no more than a few arrays of n x m are alive.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Up to so many features, squared differences are as cheap as a matrix product, and they do not
# cancel. Few features are also where points lie close together.
DIRECT = 8

# Rows of |x - z| that are summed up at a time: the running sums of a block stay in cache.
_BLOCK = 1 << 16

# A squared distance below so many units in the last place of the squared norms is rounding.
_ULPS = 8


def wider(a: Any, b: Any) -> Any:
    """The dtype that holds both, also where JAX is told to promote none by itself."""
    a, b = jnp.dtype(a), jnp.dtype(b)
    if a != b and a.itemsize == b.itemsize:  # float16 and bfloat16
        return jnp.dtype(jnp.float32)
    return a if a.itemsize >= b.itemsize else b


def wide(x: Array) -> Array:
    """Float32 or wider."""
    return x.astype(wider(x.dtype, jnp.float32))


def products(x: Float[Array, "n d"], z: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """All inner products, in one matrix product at full precision."""
    x, z = wide(x), wide(z)
    return lax.dot_general(x, z, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)


@jax.jit
def own_products(x: Float[Array, "n d"]) -> Float[Array, "n n"]:
    """`products(x, x)`, exactly symmetric."""
    half = 0.5 * products(x, x)
    return half + half.T


def squared_norms(x: Float[Array, "n d"]) -> Float[Array, " n"]:
    """Squared Euclidean norm of each row."""
    return jnp.sum(jnp.square(wide(x)), axis=1)


@jax.jit
def squared_distances(x: Float[Array, "n d"], z: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Squared Euclidean distances, never negative."""
    if z.shape[1] <= DIRECT:
        return _direct(wide(x), wide(z))
    x, z = _shifted(x, z)
    total = squared_norms(x)[:, None] + squared_norms(z)[None, :]
    return jnp.maximum(total - 2 * products(x, z), 0)


@jax.jit
def own_squared_distances(x: Float[Array, "n d"]) -> Float[Array, "n n"]:
    """`squared_distances(x, x)`, exactly symmetric, exactly zero on the diagonal."""
    if x.shape[1] <= DIRECT:
        return _direct(wide(x), wide(x))
    x, _ = _shifted(x, x)
    norms = squared_norms(x)
    squares = jnp.maximum(norms[:, None] + norms[None, :] - 2 * own_products(x), 0)
    return jnp.where(jnp.eye(len(x), dtype=bool), 0, squares)


@jax.jit
def distances(x: Float[Array, "n d"], z: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Euclidean distances; their derivative at zero is zero."""
    if z.shape[1] <= DIRECT:
        return root(_direct(wide(x), wide(z)))
    x, z = _shifted(x, z)
    total = squared_norms(x)[:, None] + squared_norms(z)[None, :]
    return _snapped_root(total - 2 * products(x, z), total)


@jax.jit
def own_distances(x: Float[Array, "n d"]) -> Float[Array, "n n"]:
    """`distances(x, x)`, exactly symmetric, exactly zero on the diagonal."""
    if x.shape[1] <= DIRECT:
        return root(_direct(wide(x), wide(x)))
    x, _ = _shifted(x, x)
    norms = squared_norms(x)
    total = norms[:, None] + norms[None, :]
    squares = jnp.where(jnp.eye(len(x), dtype=bool), 0, total - 2 * own_products(x))
    return _snapped_root(squares, total)


def prepared(x: Float[Array, "n d"]) -> Float[Array, "n e"]:
    """Rows less their mean, with their squared norm and a one behind: made once for many blocks."""
    x = wide(x)
    if x.shape[1] <= DIRECT:
        return x
    x, _ = _shifted(x, x)
    norms = squared_norms(x)[:, None]
    return jnp.concatenate([x, norms, jnp.ones_like(norms)], axis=1)


def prepared_squares(x: Float[Array, "n e"], z: Float[Array, "m e"]) -> Float[Array, "n m"]:
    """Squared distances of rows from `prepared`, in one matrix product."""
    if z.shape[1] <= DIRECT:
        return _direct(x, z)
    z = jnp.concatenate([-2 * z[:, :-2], z[:, -1:], z[:, -2:-1]], axis=1)
    return jnp.maximum(products(x, z), 0)


def root(square: Array) -> Array:
    """Square root with derivative zero at zero, where the true one is infinite."""
    zero = square <= 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))


@jax.jit
def manhattan(x: Float[Array, "n d"], z: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Sums of absolute differences: a scan over features inside a map over blocks of rows."""
    x, columns = wide(x), wide(z).T

    @jax.checkpoint  # or the backward pass would keep every |x - z|: n x m x d
    def term(one: Array, column: Array) -> Array:
        return jnp.abs(one[None] - column)

    def one_row(row: Array) -> Array:
        start = jnp.zeros(columns.shape[1:], columns.dtype)
        return lax.scan(lambda s, pair: (s + term(*pair), None), start, (row, columns))[0]

    rows = max(1, _BLOCK // max(1, len(z)))
    if len(x) <= rows:
        return jax.vmap(one_row)(x)
    return lax.map(one_row, x, batch_size=rows)


def _shifted(x: Array, z: Array) -> tuple[Array, Array]:
    # Distances do not change, but the norms that cancel become as small as the spread of z.
    z = wide(z)
    shift = lax.stop_gradient(z.mean(axis=0, keepdims=True))
    return wide(x) - shift, z - shift


def _direct(x: Array, z: Array) -> Array:
    total = jnp.zeros((len(x), len(z)), x.dtype)
    for j in range(x.shape[1]):
        total += jnp.square(x[:, j, None] - z[None, :, j])
    return total


def _snapped_root(squares: Array, total: Array) -> Array:
    # The root turns an error of 1e-7 into one of 3e-4: better that equal rows are at distance 0.
    return root(jnp.where(squares <= _ULPS * jnp.finfo(squares.dtype).eps * total, 0, squares))
