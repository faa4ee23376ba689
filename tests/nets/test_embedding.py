"""Embeddings against one-hot products, PyTorch, Flax and NumPy."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnotes_jax.nets import embedding

TABLE = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
IDS = np.array([[2, 0, 2, 6], [5, 2, 2, 1]])

traced_lookup = jax.jit(embedding.lookup, static_argnames="padding_id")

# Lookup


def test_a_lookup_is_a_one_hot_product():
    rows = embedding.lookup(TABLE, IDS)
    np.testing.assert_array_equal(rows, TABLE[IDS])
    one_hot = np.eye(7, dtype=np.float32)[IDS]
    np.testing.assert_array_equal(rows, one_hot @ TABLE)  # one term each: exact
    np.testing.assert_array_equal(embedding.one_hot_lookup(TABLE, IDS), rows)
    assert embedding.lookup(TABLE, 3).shape == (4,)
    assert embedding.lookup(TABLE, np.zeros((0, 2), int)).shape == (0, 2, 4)


def test_the_gradient_adds_up_what_arrives():
    arriving = np.random.default_rng(1).normal(size=(*IDS.shape, 4)).astype(np.float32)
    scattered = np.zeros_like(TABLE)
    np.add.at(scattered, IDS, arriving)
    for f in (embedding.lookup, embedding.one_hot_lookup):
        _, vjp = jax.vjp(lambda table, f=f: f(table, IDS), jnp.asarray(TABLE))
        # float32: four terms at most, in another order
        np.testing.assert_allclose(vjp(arriving)[0], scattered, rtol=1e-6, atol=1e-7)
    assert (scattered[[3, 4]] == 0).all()  # ids that do not occur


@pytest.mark.parametrize("padding_id", [None, 2])
def test_equals_torch(torch, padding_id):
    """Outputs, gradients and one SGD step, with copied weights."""
    peer = torch.nn.Embedding(7, 4, padding_idx=padding_id)
    with torch.no_grad():
        peer.weight.copy_(torch.tensor(TABLE))
    layer = embedding.Embedding(7, 4, padding_id=padding_id, rngs=nnx.Rngs(0))
    layer.embedding = nnx.Param(jnp.asarray(TABLE))
    target = np.random.default_rng(2).normal(size=(*IDS.shape, 4)).astype(np.float32)

    theirs = peer(torch.tensor(IDS))
    np.testing.assert_array_equal(layer(IDS), theirs.detach())
    (theirs - torch.tensor(target)).square().sum().backward()
    grad = jax.grad(
        lambda table: jnp.square(embedding.lookup(table, IDS, padding_id=padding_id) - target).sum()
    )(layer.embedding[...])
    np.testing.assert_allclose(grad, peer.weight.grad, rtol=1e-6, atol=1e-6)
    torch.optim.SGD(peer.parameters(), lr=0.1).step()
    np.testing.assert_allclose(TABLE - 0.1 * grad, peer.weight.detach(), rtol=1e-6, atol=1e-6)
    looked_up = {0, 1, 2, 5, 6} - {padding_id}
    assert set(np.flatnonzero(np.asarray(grad).any(axis=1))) == looked_up


def test_gradient_against_differences(x64):
    table = jnp.asarray(TABLE, float)

    @jax.jit
    def f(table):
        rows = embedding.lookup(table, IDS)
        near = embedding.context_features(table, IDS[0], before=1, after=2, padding_id=4)
        return jnp.sin(rows).sum() + jnp.square(near).sum() + jnp.cos(rows[0] @ rows[1].T).sum()

    def without_padding(table):  # the row of the padding gets no gradient
        return f(table.at[4].set(jax.lax.stop_gradient(table[4])))

    step = 1e-6
    grad = jax.grad(f)(table)
    for i, j in [(0, 0), (2, 1), (5, 3), (6, 2), (3, 1)]:
        moved = [without_padding(table.at[i, j].add(sign * step)) for sign in (1, -1)]
        # central differences: error about 1e-10
        assert float(grad[i, j]) == pytest.approx(float(moved[0] - moved[1]) / (2 * step), abs=1e-7)
    assert (grad[4] == 0).all()


# Ids out of range


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.uint32])
def test_traced_ids_out_of_range_are_nan_not_clipped(dtype):
    wrong = [7, 100] + ([-1, -7, -8] if np.issubdtype(dtype, np.signedinteger) else [255 % 256])
    ids = np.array([0, *wrong, 6], dtype)
    for f in (traced_lookup, jax.jit(embedding.one_hot_lookup)):
        rows = np.asarray(f(TABLE, ids))
        np.testing.assert_array_equal(rows[[0, -1]], TABLE[[0, 6]])
        assert np.isnan(rows[1:-1]).all()
    for i in range(1, len(ids) - 1):
        with pytest.raises(ValueError, match=re.escape(f"got {ids[i]} at index 0")):
            embedding.lookup(TABLE, ids[i : i + 1])


def test_large_ids_do_not_wrap_around(x64):
    ids = np.array([2**32, 2**40 + 3, -(2**32), 3])
    rows = np.asarray(traced_lookup(TABLE, ids))
    assert np.isnan(rows[:3]).all()
    np.testing.assert_array_equal(rows[3], TABLE[3])


def test_an_id_out_of_range_gets_no_gradient():
    @jax.jit
    def grad(ids):
        # Rows that are NaN must not poison the gradient of the others
        def f(table):
            rows = embedding.lookup(table, ids)
            return jnp.where(jnp.isnan(rows), 0.0, rows).sum()

        return jax.grad(f)(jnp.asarray(TABLE))

    got = np.asarray(grad(np.array([1, -1, 9])))
    np.testing.assert_array_equal(got, np.where(np.arange(7)[:, None] == 1, 1.0, np.zeros((7, 4))))


def test_a_small_id_type_in_a_large_table():
    table = np.arange(1000, dtype=np.float32)[:, None]
    assert traced_lookup(table, np.array([255, 3], np.uint8))[:, 0].tolist() == [255.0, 3.0]
    assert np.isnan(traced_lookup(table, np.array([-1], np.int8))).all()


# Windows


@settings(deadline=None, max_examples=8)  # every shape is compiled
@given(st.integers(1, 9), st.integers(0, 4), st.integers(0, 4))
def test_windows_are_slices(length, before, after):
    ids = np.random.default_rng(length).integers(1, 7, (2, length))
    padded = np.pad(ids, ((0, 0), (before, after)))
    ours = embedding.windows(ids, before=before, after=after, padding_id=0)
    expected = np.stack([padded[:, t : t + before + 1 + after] for t in range(length)], axis=1)
    np.testing.assert_array_equal(ours, expected)
    near = embedding.context_features(TABLE, ids, before=before, after=after, padding_id=0)
    np.testing.assert_array_equal(near, TABLE[expected].reshape(2, length, -1))


# Neighbours


def by_numpy(query, k, metric, exclude=()):
    if metric == "cosine":
        score = -(TABLE @ query) / np.linalg.norm(TABLE, axis=1) / np.linalg.norm(query)
    else:
        score = np.linalg.norm(TABLE - query, axis=1)
    score[list(exclude)] = np.inf
    ids = np.argsort(score, kind="stable")[:k]
    return ids, (-score if metric == "cosine" else score)[ids]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_nearest_equals_numpy(metric):
    for i in range(7):
        for exclude in ((), (i,), (i, 3)):
            kept = np.array(exclude) if exclude else None
            ours = embedding.nearest(TABLE, TABLE[i], k=4, metric=metric, exclude=kept)
            ids, scores = by_numpy(TABLE[i], 4, metric, exclude)
            assert ours.ids.tolist() == ids.tolist()
            np.testing.assert_allclose(ours.scores, scores, rtol=1e-5, atol=1e-6)


def test_of_rows_of_length_one_both_metrics_give_one_order():
    unit = TABLE / np.linalg.norm(TABLE, axis=1, keepdims=True)
    cosine = embedding.nearest(unit, unit[0], k=7)
    euclidean = embedding.nearest(unit, unit[0], k=7, metric="euclidean")
    assert cosine.ids.tolist() == euclidean.ids.tolist()
    np.testing.assert_allclose(euclidean.scores**2, 2 - 2 * cosine.scores, atol=1e-6)


def test_rows_without_a_direction_are_never_found():
    table = np.array([[0, 0], [1, 0], [np.nan, 1], [0, 1]], np.float32)
    found = embedding.nearest(table, np.array([1, 0.1], np.float32), k=4)
    assert found.ids.tolist() == [1, 3, -1, -1]
    assert np.isnan(found.scores[2:]).all()
    found = embedding.nearest(table, np.zeros(2, np.float32), k=2)
    assert found.ids.tolist() == [-1, -1]
    found = embedding.nearest(table, np.zeros(2, np.float32), k=4, metric="euclidean", exclude=1)
    assert found.ids.tolist() == [0, 3, -1, -1]


def test_nearest_under_vmap_and_with_traced_exclude():
    ids = jnp.arange(7)
    both = jax.jit(
        jax.vmap(lambda row, i: embedding.nearest(TABLE, row, k=3, exclude=i)), static_argnums=()
    )(TABLE, ids)
    for i in range(7):
        assert both.ids[i].tolist() == by_numpy(TABLE[i], 3, "cosine", (i,))[0].tolist()
    nothing = jax.jit(lambda i: embedding.nearest(TABLE, TABLE[0], k=1, exclude=i).ids)
    assert int(nothing(-1)[0]) == int(nothing(99)[0]) == 0  # excludes nothing


def test_cosine_similarity():
    assert float(embedding.cosine_similarity([3.0, 4.0], [4.0, 3.0])) == pytest.approx(0.96)
    # Squares of these would overflow, or vanish
    assert float(embedding.cosine_similarity([1e30, 1e30], [1e-30, 0.0])) == pytest.approx(0.5**0.5)
    assert np.isnan(embedding.cosine_similarity([0.0, 0.0], [1.0, 0.0]))
    half = embedding.cosine_similarity(jnp.ones(300, jnp.bfloat16), jnp.ones(300, jnp.bfloat16))
    assert half.dtype == jnp.float32
    assert float(half) == pytest.approx(1.0, rel=1e-6)


# Transformations


def test_jit_equals_eager_vmap_equals_a_loop_and_no_second_compilation():
    traced = jax.jit(chex.assert_max_traces(lambda t, i: embedding.lookup(t, i, padding_id=1), n=1))
    for seed in range(3):
        ids = np.random.default_rng(seed).integers(0, 7, (2, 5))
        np.testing.assert_array_equal(
            traced(TABLE, ids), embedding.lookup(TABLE, ids, padding_id=1)
        )
    tables = np.stack([TABLE, 2 * TABLE])
    batched = jax.vmap(embedding.lookup)(tables, IDS)
    for i in range(2):
        np.testing.assert_array_equal(batched[i], embedding.lookup(tables[i], IDS[i]))


def test_dtype_follows_the_table():
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        table = jnp.asarray(TABLE, dtype)
        assert embedding.lookup(table, IDS).dtype == dtype
        assert embedding.one_hot_lookup(table, IDS).dtype == dtype
        near = embedding.context_features(table, IDS, before=1, after=0, padding_id=0)
        assert near.dtype == dtype
    layer = embedding.Embedding(3, 2, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert layer([0, 1]).dtype == jnp.bfloat16


# The module


def test_module_as_a_value():
    layer = embedding.Embedding(7, 4, padding_id=0, rngs=nnx.Rngs(0))
    assert layer.embedding[...].shape == (7, 4)
    assert not layer.embedding[0].any()
    graphdef, params = nnx.split(layer, nnx.Param)

    @jax.jit
    def grad(params, ids):
        return jax.grad(lambda p: jnp.square(nnx.merge(graphdef, p)(ids) - 1.0).sum())(params)

    pure = nnx.as_pure(grad(params, IDS))
    rows = np.asarray(pure["embedding"])
    assert not rows[0].any()  # padding
    assert not rows[[3, 4]].any()  # not looked up
    assert rows[[1, 2, 5, 6]].any(axis=1).all()
    logits = layer.attend(layer(IDS))
    np.testing.assert_allclose(
        logits, layer.embedding[...][IDS] @ layer.embedding[...].T, rtol=1e-5
    )


def test_module_equals_flax():
    theirs = nnx.Embed(7, 4, rngs=nnx.Rngs(0))
    ours = embedding.Embedding(
        7, 4, embedding_init=lambda *_: theirs.embedding[...], rngs=nnx.Rngs(0)
    )
    np.testing.assert_array_equal(ours(IDS), theirs(jnp.asarray(IDS)))
    x = jnp.asarray(TABLE)
    np.testing.assert_allclose(ours.attend(x), theirs.attend(x), rtol=1e-5, atol=1e-6)


def test_module_begins_standard_normal():
    table = embedding.Embedding(300, 200, rngs=nnx.Rngs(0)).embedding[...]
    assert abs(float(table.mean())) < 0.02  # 60000 draws: standard error 0.004
    assert abs(float(table.std()) - 1) < 0.015  # standard error 0.003


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: embedding.lookup(TABLE, [[0, 1], [2, 7]]),
            ValueError,
            "ids must be in 0..6 (7 embeddings), got 7 at index (1, 1)",
        ),
        (
            lambda: embedding.lookup(TABLE, -1),
            ValueError,
            "ids must be in 0..6 (7 embeddings), got -1",
        ),
        (lambda: embedding.lookup(TABLE, [0.0]), TypeError, "ids must be an integer array"),
        (lambda: embedding.lookup(TABLE[0], [0]), ValueError, "table must be 2-D, got shape (4,)"),
        (
            lambda: embedding.lookup(np.zeros((0, 4)), np.zeros(0, int)),
            ValueError,
            "table must not be empty, got shape (0, 4)",
        ),
        (
            lambda: embedding.lookup(TABLE, [0], padding_id=7),
            ValueError,
            "padding_id must be in 0..6 (7 embeddings), got 7",
        ),
        (
            lambda: embedding.windows(3, before=1, after=1, padding_id=0),
            ValueError,
            "ids must be a sequence, got a scalar",
        ),
        (
            lambda: embedding.windows([1], before=-1, after=1, padding_id=0),
            ValueError,
            "before must be at least 0, got -1",
        ),
        (
            lambda: embedding.windows([1], before=1, after=1.0, padding_id=0),
            TypeError,
            "after must be an integer, got 1.0",
        ),
        (
            lambda: embedding.windows([1], before=1, after=1, padding_id=-1),
            ValueError,
            "padding_id must be at least 0, got -1",
        ),
        (
            lambda: embedding.windows(np.array([1], np.int8), before=1, after=1, padding_id=300),
            ValueError,
            "padding_id must fit into int8, got 300",
        ),
        (
            lambda: embedding.nearest(TABLE, TABLE[0], k=8),
            ValueError,
            "k must be at most the 7 rows",
        ),
        (
            lambda: embedding.nearest(TABLE, TABLE[0], k=0),
            ValueError,
            "k must be at least 1, got 0",
        ),
        (
            lambda: embedding.nearest(TABLE, TABLE[0, :3]),
            ValueError,
            "query must have shape (4,) as the rows of table, got (3,)",
        ),
        (
            lambda: embedding.nearest(TABLE, TABLE[0], metric="angle"),
            ValueError,
            "metric must be one of 'cosine', 'euclidean', got 'angle'",
        ),
        (
            lambda: embedding.nearest(TABLE, TABLE[0], exclude=7),
            ValueError,
            "exclude must be in 0..6 (7 embeddings), got 7",
        ),
        (
            lambda: embedding.cosine_similarity(np.ones(2), np.ones(3)),
            ValueError,
            "x and y must have one shape, got x (2,), y (3,)",
        ),
        (
            lambda: embedding.Embedding(0, 2, rngs=nnx.Rngs(0)),
            ValueError,
            "num_embeddings must be at least 1, got 0",
        ),
        (
            lambda: embedding.Embedding(2, 2.0, rngs=nnx.Rngs(0)),
            TypeError,
            "features must be an integer, got 2.0",
        ),
        (
            lambda: embedding.Embedding(2, 2, padding_id=2, rngs=nnx.Rngs(0)),
            ValueError,
            "padding_id must be in 0..1 (2 embeddings), got 2",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
