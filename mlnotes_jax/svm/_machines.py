"""What the machines of this chapter share: checked kernels, dtypes of duals, sums over rows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, DTypeLike

from mlnotes_jax import _checks
from mlnotes_jax.svm import kernels

# Rows of the Gram matrix that exist at a time when values are computed.
_ROWS = 256
# Rows on which a kernel from elsewhere is tried before the fit.
_SAMPLE = 64
_NOT_FINITE = "kernel must be finite on x, got values that are not: scale x, or its parameters"


def checked_kernel(kernel: Any, x: Array) -> tuple[Any, bool]:
    """The kernel as a pytree, and whether `x` is its Gram matrix."""
    if isinstance(kernel, str):
        _checks.one_of("kernel", kernel, ("precomputed",))
        if x.shape[0] != x.shape[1]:
            raise ValueError(
                f"x must be a square Gram matrix for 'precomputed', got shape {x.shape}"
            )
        return kernels.precomputed(x), True
    if not callable(kernel):
        raise TypeError(f"kernel must be a kernel or 'precomputed', got {kernel!r}")
    if any(callable(leaf) for leaf in jax.tree.leaves(kernel)):
        kernel = jax.tree_util.Partial(kernel)  # a plain function is no pytree
    if not isinstance(kernel, kernels.Kernel) and _checks.is_concrete((x, kernel)):
        some = x[np.unique(np.linspace(0, x.shape[0] - 1, _SAMPLE).astype(int))]
        gram = kernels.gram(kernel, some)
        if not np.isfinite(np.asarray(gram)).all():
            raise ValueError(_NOT_FINITE)
        kernels.check_symmetric("the Gram matrix of kernel", gram)
    return kernel, False


def check_finite(violation: Array) -> None:
    """Refuse a fit whose kernel was not finite: all else was checked before."""
    if _checks.is_concrete(violation) and np.isnan(np.asarray(violation)).any():
        raise ValueError(_NOT_FINITE)


def dual_dtype(dtype: DTypeLike | None, of_data: Any) -> Any:
    """The dtype of the duals."""
    if dtype is None:
        return of_data
    wanted = jnp.dtype(dtype)
    if wanted not in (jnp.dtype("float32"), jnp.dtype("float64")):
        raise ValueError(f"dual_dtype must be float32 or float64, got {wanted}")
    if wanted == jnp.dtype("float64") and jnp.result_type(float) != wanted:
        raise ValueError("dual_dtype float64 needs jax.config.update('jax_enable_x64', True)")
    return wanted


def known_rows(model: Any, x: ArrayLike) -> Array:
    """Rows to be judged by a machine, checked against those of its fit."""
    x = _checks.floating("x", x, ndim=2)
    if model.precomputed:
        columns, what = model.dual_coef.shape[-1], "one kernel value for each row of the fit"
    else:
        columns, what = model.x.shape[1], "the features of the fit"
    if x.shape[1] != columns:
        raise ValueError(f"x must have {columns} columns, {what}, got shape {x.shape}")
    _checks.finite("x", x)
    return x


def sums(model: Any, x: Array, coef: Array) -> Array:
    """Sums over the rows of the fit, K(x, rows) @ coef, by blocks of rows, in coef's dtype."""
    dtype = coef.dtype
    x = x.astype(dtype)
    with jax.default_matmul_precision("highest"):
        if model.precomputed:
            return x @ coef
        known = model.x.astype(dtype)

        def block(rows: Array) -> Array:
            return kernels.gram(model.kernel, rows, known).astype(dtype) @ coef

        m = x.shape[0]
        if m <= _ROWS:
            return block(x)
        blocks = jnp.pad(x, ((0, -m % _ROWS), (0, 0)), mode="edge").reshape(-1, _ROWS, x.shape[1])
        return jax.lax.map(block, blocks).reshape(blocks.shape[0] * _ROWS, *coef.shape[1:])[:m]
