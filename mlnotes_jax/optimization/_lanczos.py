r"""The Lanczos recursion on plain vectors: $A V = V T + \beta_m\, v_{m+1} e_m^\top$.

Reference: Golub and Van Loan, *Matrix Computations* (4th ed., 2013), sections 10.1 and 10.3.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

__all__ = ["Ritz", "Tridiagonal", "ritz", "tridiagonalize"]

# Steps between two tests of convergence; the basis grows by so many rows at a time.
CHUNK = 16


class Tridiagonal(NamedTuple):
    r"""What the recursion leaves behind after `num_steps` of at most $m$ steps.

    Attributes:
        diagonal: $\alpha_1 \dots \alpha_m$, shape `(m,)`; zero past `num_steps`.
        off_diagonal: $\beta_1 \dots \beta_m$, shape `(m,)`; $\beta_j$ couples steps $j$ and $j+1$,
            and the one at `num_steps` is the remainder. Zero where the recursion broke down.
        basis: Orthonormal rows $v_1 \dots v_m$, shape `(m, d)`; rows past `num_steps` are unused.
        num_steps: How many steps were taken, shape `()`.
    """

    diagonal: Float[Array, " m"]
    off_diagonal: Float[Array, " m"]
    basis: Float[Array, "m d"]
    num_steps: Int[Array, ""]


class _State(NamedTuple):
    """What one step hands to the next."""

    diagonal: Array
    off_diagonal: Array
    basis: Array
    rest: Array  # beta_j v_{j+1}
    broken: Array  # nothing is left of it: start afresh
    scale: Array  # the largest |A v| so far, a lower bound of the norm


class Ritz(NamedTuple):
    r"""Eigenpairs of $T$, the lowest and the highest, and the quadrature they make.

    Attributes:
        values: Ascending, shape `(2, k)`: row 0 the $k$ lowest, row 1 the $k$ highest.
        vectors: Coordinates in the basis, shape `(2, k, m)`.
        estimates: $\beta_m |s_m|$, the residual in exact arithmetic, shape `(2, k)`.
        nodes: All eigenvalues of $T$, shape `(m,)`; past the steps taken, the highest again.
        weights: Squares of the eigenvectors' first entries, shape `(m,)`; past the steps, zero.
    """

    values: Float[Array, "2 k"]
    vectors: Float[Array, "2 k m"]
    estimates: Float[Array, "2 k"]
    nodes: Float[Array, " m"]
    weights: Float[Array, " m"]


def tridiagonalize(
    key: Key[Array, ""],
    matvec: Callable[[Array], Array],
    *,
    size: int,
    dtype: jnp.dtype,
    num_steps: int,
    num_pairs: int = 1,
    tol: Float[Array, ""] | None = None,
) -> tuple[Tridiagonal, Ritz]:
    """Run the recursion with full reorthogonalisation, `num_steps <= size` steps at most.

    With a `tol` it stops, after a multiple of `CHUNK` steps, once all 2 `num_pairs` outer Ritz
    pairs have an estimated residual of at most `tol` times the largest Ritz value in magnitude.

    Where the basis spans an invariant subspace (breakdown), the coupling is zero and the recursion
    goes on from a random vector orthogonal to it: that is how copies of a repeated eigenvalue are
    found. The start is the same thing, with an empty basis.
    """
    eps = float(jnp.finfo(dtype).eps)
    chunk = min(CHUNK, num_steps)
    rows = -(-num_steps // chunk) * chunk

    def fresh(basis: Array, num_blocks: Array, step: Array) -> Array:
        vector = jax.random.normal(jax.random.fold_in(key, step), (size,), dtype)
        # Three passes: little may be left of it when the basis is nearly complete.
        return lax.fori_loop(
            0,
            3,
            lambda _, vector: _normalize(_project_out(vector, basis, num_blocks, chunk)),
            _normalize(vector),
        )

    def advance(step: Array, state: _State) -> _State:
        num_blocks = step // chunk + 1
        beta = _norm(state.rest)
        v = lax.cond(
            state.broken,
            lambda: fresh(state.basis, num_blocks, step),
            lambda: state.rest / jnp.where(beta == 0, 1, beta),
        )
        basis = state.basis.at[step].set(v)
        w = matvec(v)
        scale = jnp.maximum(state.scale, _norm(w))
        alpha = _dot(v, w)
        w = w - alpha * v
        before = _norm(w)
        w = _project_out(w, basis, num_blocks, chunk)
        once = _norm(w)
        # "Twice is enough" (Parlett, The Symmetric Eigenvalue Problem, section 6.9): a second pass
        # only where the first cancelled; if that one cancels again, nothing is left but rounding.
        w = lax.cond(
            once < 0.7 * before,
            lambda: _project_out(w, basis, num_blocks, chunk),
            lambda: w,
        )
        beta = _norm(w)
        broken = (beta < 0.5 * once) | (beta <= eps * scale)
        return _State(
            state.diagonal.at[step].set(alpha),
            state.off_diagonal.at[step].set(jnp.where(broken, 0, beta)),
            basis,
            w,
            broken,
            scale,
        )

    def outer(state: _State, steps: Array) -> Ritz:
        return ritz(state.diagonal, state.off_diagonal, steps, num_pairs=num_pairs)

    zeros = jnp.zeros(num_steps, dtype)
    zero = jnp.zeros((), dtype)
    basis = jnp.zeros((rows, size), dtype)
    state = _State(zeros, zeros, basis, jnp.zeros(size, dtype), jnp.bool_(True), zero)
    if tol is None:
        steps = jnp.int32(num_steps)
        state = lax.fori_loop(0, num_steps, advance, state)
        pairs = outer(state, steps)
    else:

        def run_chunk(carry: tuple) -> tuple:
            steps, _, state, _ = carry
            end = jnp.minimum(steps + chunk, num_steps)
            state = lax.fori_loop(steps, end, advance, state)
            pairs = outer(state, end)
            converged = jnp.all(pairs.estimates <= tol * jnp.max(jnp.abs(pairs.values)))
            return end, converged & (end >= num_pairs), state, pairs

        unknown = jax.eval_shape(outer, state, jnp.int32(0))
        unknown = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), unknown)
        steps, _, state, pairs = lax.while_loop(
            lambda carry: (carry[0] < num_steps) & ~carry[1],
            run_chunk,
            (jnp.int32(0), jnp.bool_(False), state, unknown),
        )
    return Tridiagonal(state.diagonal, state.off_diagonal, state.basis[:num_steps], steps), pairs


def ritz(
    diagonal: Float[Array, " m"],
    off_diagonal: Float[Array, " m"],
    num_steps: Int[Array, ""],
    *,
    num_pairs: int,
) -> Ritz:
    """Take the outer eigenpairs of the leading `num_steps` rows and columns of T."""
    m = diagonal.shape[0]
    used = jnp.arange(m, dtype=jnp.int32) < num_steps
    coupled = jnp.where(jnp.arange(1, m, dtype=jnp.int32) < num_steps, off_diagonal[:-1], 0)
    # The unused rows get an eigenvalue above all others (Gershgorin), so they sort last.
    above = 1 + 3 * (jnp.max(jnp.abs(diagonal)) + jnp.max(jnp.abs(off_diagonal)))
    filled = (
        jnp.diag(jnp.where(used, diagonal, above)) + jnp.diag(coupled, 1) + jnp.diag(coupled, -1)
    )
    all_values, all_vectors = jnp.linalg.eigh(filled)
    first = jnp.maximum(num_steps - num_pairs, 0)
    ends = [
        (all_values[:num_pairs], all_vectors[:, :num_pairs]),
        (
            lax.dynamic_slice(all_values, (first,), (num_pairs,)),
            lax.dynamic_slice(all_vectors, (jnp.zeros_like(first), first), (m, num_pairs)),
        ),
    ]
    vectors = jnp.stack([vector.T for _, vector in ends])
    last = jnp.take(vectors, num_steps - 1, axis=2)
    return Ritz(
        values=jnp.stack([value for value, _ in ends]),
        vectors=vectors,
        estimates=off_diagonal[num_steps - 1] * jnp.abs(last),
        nodes=jnp.where(used, all_values, all_values[num_steps - 1]),
        weights=jnp.where(used, all_vectors[0] ** 2, 0),
    )


def _dot(a: Array, b: Array) -> Array:
    return jnp.vdot(a, b, precision="highest")


def _norm(x: Array) -> Array:
    return jnp.sqrt(_dot(x, x))


def _normalize(x: Array) -> Array:
    norm = _norm(x)
    return x / jnp.where(norm > 0, norm, 1)


def _project_out(w: Array, basis: Array, num_blocks: Array, chunk: int) -> Array:
    """Subtract the part of `w` in the span of the basis, block by block (rows not set are zero)."""
    d = w.shape[0]

    def block_step(index: Array, w: Array) -> Array:
        block = lax.dynamic_slice(basis, (index * chunk, jnp.zeros_like(index)), (chunk, d))
        inner = jnp.matmul(block, w, precision="highest")
        return w - jnp.matmul(inner, block, precision="highest")

    return lax.fori_loop(0, num_blocks, block_step, w)
