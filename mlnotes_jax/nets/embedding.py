r"""Embeddings: a learned vector for each of finitely many symbols.

With a table $E \in \mathbb R^{n \times d}$ and the one-hot vector $\mathbf e_i$ of the id $i$,

$$\operatorname{lookup}(E, i) = \mathbf e_i^\top E = E_i, \qquad
  \frac{\partial L}{\partial E_j} = \sum_{p \,:\, i_p = j} \frac{\partial L}{\partial h_p}, \qquad
  h_p = E_{i_p} :$$

a product that nobody computes, because it picks a row; and a gradient that adds what arrives at the
places of a row to that row.

Reference: Bengio, Ducharme, Vincent and Jauvin, *A Neural Probabilistic Language Model* (JMLR 3,
2003), section 2.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int

from mlnotes_jax import _checks
from mlnotes_jax.data import labels

__all__ = [
    "Embedding",
    "Neighbors",
    "context_features",
    "cosine_similarity",
    "lookup",
    "nearest",
    "one_hot_lookup",
    "windows",
]


class Neighbors(NamedTuple):
    """The rows of a table that are nearest to a vector, nearest first.

    Attributes:
        ids: Which rows, shape `(k,)`; -1 where there are fewer than k that have a direction and
            are not excluded.
        scores: Their cosine similarity (falling) or Euclidean distance (rising), shape `(k,)`; NaN
            where the id is -1.
    """

    ids: Int[Array, " k"]
    scores: Float[Array, " k"]


def lookup(
    table: Float[ArrayLike, "n d"], ids: Int[ArrayLike, "..."], *, padding_id: int | None = None
) -> Float[Array, "... d"]:
    r"""Pick rows of a table: $h_p = E_{i_p}$.

    Args:
        table: $E$, shape `(n, d)`.
        ids: Integers in 0..n-1, any shape.
        padding_id: An id whose row gets no gradient, so that training leaves it as it is; static.

    Returns:
        The rows, shape `(..., d)`, dtype of `table`. Under a transformation, where values cannot be
        looked at, the row of an id outside of 0..n-1 is NaN (and no gradient goes through it).
        Nothing is clipped, and a negative id does not count from the end.

    Raises:
        TypeError: `ids` are not integers.
        ValueError: `table` is not a matrix, `padding_id` is not in 0..n-1, or a concrete id is not.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.nets import embedding
        >>> table = jnp.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
        >>> embedding.lookup(table, [2, 0]).tolist()
        [[4.0, 5.0], [0.0, 1.0]]

    Note:
        `table[ids]` clips an id that is too large under `jit`, and takes the last row for -1.
        `torch.nn.functional.embedding` always raises.
    """
    table, ids = _table(table), _checks.integer("ids", ids)
    _check_ids("ids", ids, len(table))
    places = _places(ids, len(table))
    rows = table.at[places].get(mode="fill", fill_value=jnp.nan)
    if padding_id is None:
        return rows
    _check_padding(padding_id, len(table))
    padding = (places == padding_id)[..., None]
    return jnp.where(padding, jax.lax.stop_gradient(rows), rows)


def one_hot_lookup(
    table: Float[ArrayLike, "n d"], ids: Int[ArrayLike, "..."]
) -> Float[Array, "... d"]:
    r"""The definition of a lookup: one-hot vectors times the table, $\mathbf e_i^\top E$.

    It costs $2 n d$ operations an id where `lookup` costs $d$ reads. Its gradient is a matrix
    product too, which an accelerator may prefer to a scatter where n is small.

    Args:
        table: $E$, shape `(n, d)`.
        ids: Integers in 0..n-1, any shape.

    Returns:
        The rows, shape `(..., d)`; NaN for a traced id outside of 0..n-1.

    Raises:
        TypeError: `ids` are not integers.
        ValueError: `table` is not a matrix, or a concrete id is not in 0..n-1.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.nets import embedding
        >>> embedding.one_hot_lookup(jnp.array([[0.0, 1.0], [2.0, 3.0]]), [1]).tolist()
        [[2.0, 3.0]]

    Note:
        An infinite entry of the table spoils every row: 0 times infinity is NaN.
    """
    table, ids = _table(table), _checks.integer("ids", ids)
    _check_ids("ids", ids, len(table))
    vectors = labels.one_hot(ids, len(table), dtype=table.dtype)
    # One row each, so nothing is added up; but a narrow product would round what it picks.
    return jnp.matmul(vectors, table, precision=jax.lax.Precision.HIGHEST)


def windows(
    ids: Int[ArrayLike, "*batch t"], *, before: int, after: int, padding_id: int
) -> Int[Array, "*batch t w"]:
    """Give every place of a sequence its neighbourhood: the ids before it, its own, those after.

    Args:
        ids: A sequence of integers, shape `(..., t)`.
        before: How many places to the left; static.
        after: How many places to the right; static.
        padding_id: What stands where the sequence has ended; static.

    Returns:
        Windows, shape `(..., t, before + 1 + after)`, dtype of `ids`.

    Raises:
        TypeError: `ids` are not integers, or a count is not one.
        ValueError: `ids` is a scalar, a count or `padding_id` is negative, or `padding_id` does not
            fit into the dtype of `ids`.

    Example:
        >>> from mlnotes_jax.nets import embedding
        >>> embedding.windows([5, 6, 7], before=1, after=1, padding_id=0).tolist()
        [[0, 5, 6], [5, 6, 7], [6, 7, 0]]
    """
    ids = _checks.integer("ids", ids)
    if ids.ndim == 0:
        raise ValueError("ids must be a sequence, got a scalar")
    _checks.positive_int("before", before, least=0)
    _checks.positive_int("after", after, least=0)
    _checks.positive_int("padding_id", padding_id, least=0)
    if padding_id > jnp.iinfo(ids.dtype).max:
        raise ValueError(f"padding_id must fit into {ids.dtype}, got {padding_id}")
    edges = [(0, 0)] * (ids.ndim - 1) + [(before, after)]
    padded = jnp.pad(ids, edges, constant_values=padding_id)
    length = ids.shape[-1]
    shifted = [padded[..., first : first + length] for first in range(before + 1 + after)]
    return jnp.stack(shifted, axis=-1)


def context_features(
    table: Float[ArrayLike, "n d"],
    ids: Int[ArrayLike, "*batch t"],
    *,
    before: int,
    after: int,
    padding_id: int,
) -> Float[Array, "*batch t wd"]:
    """Describe every place of a sequence by the embeddings of its window, side by side.

    A layer on top sees the neighbours, in order; what is farther away it does not see.

    Args:
        table: Shape `(n, d)`.
        ids: A sequence, shape `(..., t)`, in 0..n-1.
        before: As in `windows`.
        after: As in `windows`.
        padding_id: As in `windows`, in 0..n-1; its row gets no gradient.

    Returns:
        Features, shape `(..., t, (before + 1 + after) * d)`.

    Raises:
        TypeError: As in `windows`.
        ValueError: As in `windows` and `lookup`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.nets import embedding
        >>> table = jnp.array([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]])
        >>> embedding.context_features(table, [1, 2], before=1, after=0, padding_id=0).tolist()
        [[0.0, 0.0, 1.0, 2.0], [1.0, 2.0, 3.0, 4.0]]
    """
    near = windows(ids, before=before, after=after, padding_id=padding_id)
    rows = lookup(table, near, padding_id=padding_id)
    return rows.reshape(*near.shape[:-1], near.shape[-1] * rows.shape[-1])


def cosine_similarity(x: Float[ArrayLike, " d"], y: Float[ArrayLike, " d"]) -> Float[Array, ""]:
    r"""Cosine of the angle between two vectors: $x^\top y / (\|x\| \|y\|)$.

    Args:
        x: A vector.
        y: Another of its length.

    Returns:
        The cosine, shape `()`, in at least float32; NaN where a vector is zero, which has no
        direction.

    Raises:
        ValueError: They are not vectors of one length.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.nets import embedding
        >>> float(embedding.cosine_similarity(jnp.array([3.0, 0.0]), jnp.array([1.0, 0.0])))
        1.0
    """
    x, y = _checks.floating("x", x, ndim=1), _checks.floating("y", y, ndim=1)
    _checks.same_shape(x=x, y=y)
    x, y = _unit(_wide(x)), _unit(_wide(y))
    dtype = max(x.dtype, y.dtype, key=lambda dtype: dtype.itemsize)
    return jnp.dot(x.astype(dtype), y.astype(dtype), precision=jax.lax.Precision.HIGHEST)


def nearest(
    table: Float[ArrayLike, "n d"],
    query: Float[ArrayLike, " d"],
    *,
    k: int = 5,
    metric: Literal["cosine", "euclidean"] = "cosine",
    exclude: Int[ArrayLike, "*m"] | None = None,
) -> Neighbors:
    r"""Find the rows of a table that are nearest to a vector.

    Cosine similarity compares directions, Euclidean distance also lengths. For rows of length 1
    both give one order, because $\|x - y\|^2 = 2 - 2 \cos(x, y)$. For many queries, `vmap`.

    Args:
        table: Shape `(n, d)`.
        query: Shape `(d,)`.
        k: How many, from 1 to n; static.
        metric: What nearness is; static.
        exclude: One id or several, shape `()` or `(m,)`, not to be found: mostly that of `query`.
            A traced id outside of 0..n-1 excludes nothing.

    Returns:
        Ids and scores. A zero row has no cosine, and a row with a NaN no distance: they are never
        found. A zero query has no nearest direction: its scores are NaN and its ids -1.

    Raises:
        TypeError: `k` or `exclude` are not integers.
        ValueError: Shapes do not fit, `k` is not in 1..n, `metric` is unknown, or a concrete id of
            `exclude` is not in 0..n-1.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.nets import embedding
        >>> table = jnp.array([[1.0, 0.0], [5.0, 1.0], [0.9, 0.5], [-1.0, 0.0]])
        >>> embedding.nearest(table, table[0], k=2, exclude=0).ids.tolist()
        [1, 2]
        >>> embedding.nearest(table, table[0], k=2, metric="euclidean", exclude=0).ids.tolist()
        [2, 3]
    """
    table, query = _table(table), _checks.floating("query", query, ndim=1)
    n, d = table.shape
    if query.shape != (d,):
        raise ValueError(f"query must have shape ({d},) as the rows of table, got {query.shape}")
    _checks.positive_int("k", k)
    if k > n:
        raise ValueError(f"k must be at most the {n} rows of table, got {k}")
    _checks.one_of("metric", metric, ("cosine", "euclidean"))
    rows = _wide(table)
    vector = query.astype(rows.dtype)[None]
    if metric == "cosine":
        closeness = (jax.vmap(_unit)(rows) * _unit(vector[0])[None]).sum(axis=1)
    else:
        # Not |x|^2 - 2 xy + |y|^2: that loses the digits of a small distance.
        closeness = -_length(rows - vector)
    allowed = ~jnp.isnan(closeness)
    if exclude is not None:
        left_out = _checks.integer("exclude", exclude, ndim=(0, 1))
        _check_ids("exclude", left_out, n)
        allowed = allowed.at[_places(left_out, n)].set(False, mode="drop")
    best, ids = jax.lax.top_k(jnp.where(allowed, closeness, -jnp.inf), k)
    found = allowed[ids]
    scores = best if metric == "cosine" else -best
    return Neighbors(jnp.where(found, ids, -1), jnp.where(found, scores, jnp.nan))


class Embedding(nnx.Module):
    """A table of embeddings that is trained.

    Attributes:
        embedding: The table, a `Param` of shape `(num_embeddings, features)`.

    Args:
        num_embeddings: How many ids there are.
        features: Length of each vector.
        padding_id: An id that means "nothing here": its row begins as zero and gets no gradient.
        embedding_init: `init(key, shape, dtype) -> table`; by default standard normal numbers.
        dtype: Of the table.
        rngs: The stream `params` is drawn from.

    Raises:
        TypeError: A size is not an integer.
        ValueError: A size is less than 1, or `padding_id` is not an id.

    Example:
        >>> from flax import nnx
        >>> from mlnotes_jax.nets import embedding
        >>> layer = embedding.Embedding(10, 4, padding_id=0, rngs=nnx.Rngs(0))
        >>> layer([[1, 2, 0]]).shape
        (1, 3, 4)
        >>> layer([0]).tolist()
        [[0.0, 0.0, 0.0, 0.0]]

    Note:
        Begins as `torch.nn.Embedding` does. `nnx.Embed` draws with variance 1 / `features`, and has
        no padding.
    """

    def __init__(
        self,
        num_embeddings: int,
        features: int,
        *,
        padding_id: int | None = None,
        embedding_init: Callable[..., Array] | None = None,
        dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        _checks.positive_int("num_embeddings", num_embeddings)
        _checks.positive_int("features", features)
        if padding_id is not None:
            _check_padding(padding_id, num_embeddings)
        init = jax.nn.initializers.normal(1.0) if embedding_init is None else embedding_init
        table = init(rngs.params(), (num_embeddings, features), dtype)
        if padding_id is not None:
            table = table.at[padding_id].set(0)
        self.embedding = nnx.Param(table)
        self.num_embeddings = num_embeddings
        self.features = features
        self.padding_id = padding_id

    def __call__(self, ids: Int[ArrayLike, "..."]) -> Float[Array, "... d"]:
        """Look ids up; see `lookup`."""
        return lookup(self.embedding[...], ids, padding_id=self.padding_id)

    def attend(self, x: Float[Array, "... d"]) -> Float[Array, "... n"]:
        """Inner products with every row: logits that share the table with the input."""
        return x @ self.embedding[...].T


def _table(table: ArrayLike) -> Array:
    table = _checks.floating("table", table, ndim=2)
    _checks.not_empty("table", table)
    return table


def _check_padding(padding_id: int, num_embeddings: int) -> None:
    _checks.positive_int("padding_id", padding_id, least=0)
    if padding_id >= num_embeddings:
        raise ValueError(
            f"padding_id must be in 0..{num_embeddings - 1} ({num_embeddings} embeddings), "
            f"got {padding_id}"
        )


def _check_ids(name: str, ids: Array, num_embeddings: int) -> None:
    if not _checks.is_concrete(ids):
        return
    values = np.asarray(ids)
    bad = np.argwhere((values < 0) | (values >= num_embeddings))
    if len(bad):
        first = tuple(int(i) for i in bad[0])
        place = f" at index {first[0] if len(first) == 1 else first}" if first else ""
        raise ValueError(
            f"{name} must be in 0..{num_embeddings - 1} ({num_embeddings} embeddings), "
            f"got {values[first]}{place}"
        )


def _places(ids: Array, num_embeddings: int) -> Array:
    """Ids as int32, with `num_embeddings` (past the end) for whatever is out of range."""
    bad = ids < 0
    if num_embeddings <= jnp.iinfo(ids.dtype).max:  # otherwise no id can be too large
        bad |= ids >= num_embeddings
    return jnp.where(bad, num_embeddings, ids.astype(jnp.int32))


def _length(x: Array) -> Array:
    return jnp.sqrt(jnp.square(x).sum(axis=-1))


def _unit(x: Array) -> Array:
    """The vector of length 1 in this direction, without overflow; NaN for a zero vector."""
    x = x / jnp.abs(x).max()
    return x / _length(x)


def _wide(x: Array) -> Array:
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x
