r"""TITLE: one line that says what it is.

The definition, and the equation that defines it:

$$ f(x) = \dots $$

Reference: Author, *Title* (year), section.
"""

from jaxtyping import Array, ArrayLike, Float

from mlnotes_jax import _checks

__all__ = ["FUNCTION"]


def FUNCTION(x: Float[ArrayLike, " d"], *, scale: Float[ArrayLike, ""] = 1.0) -> Float[Array, ""]:
    r"""Say in one line what it gives.

    The idea in two or three sentences. $f(x) = s \sum_i x_i^2$, with $s$ = `scale`.

    Args:
        x: Point, shape `(d,)`, floating.
        scale: Factor, positive. Traced, so it may be batched with `vmap`.

    Returns:
        The value, shape `()`, in the dtype of `x`.

    Raises:
        ValueError: `x` is not a vector, or a concrete `scale` is not positive.

    Example:
        >>> from mlnotes_jax.CHAPTER import CONCEPT
        >>> float(CONCEPT.FUNCTION([3.0, 4.0]))
        25.0
    """
    x = _checks.floating("x", x, ndim=1)
    _checks.positive("scale", scale)
    return scale * (x**2).sum()
