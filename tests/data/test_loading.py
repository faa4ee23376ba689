"""Loading: one order whoever reads, against PyTorch, Grain and closed forms."""

import functools
import itertools
import json
import multiprocessing
import pickle
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mlnotes_jax.data import _grain, loading

KEY = jax.random.key(0)
REMAINDERS = ["drop", "keep", "pad"]
remainders = pytest.mark.parametrize("remainder", REMAINDERS)


def columns(num_rows, width=3):
    x = np.arange(num_rows * width, dtype=np.float32).reshape(num_rows, width)
    return x, np.arange(num_rows, dtype=np.int32)


class Rows:
    """A source that computes its rows, and says which were asked for."""

    def __init__(self, num_rows):
        self.x, self.y = columns(num_rows)
        self.asked = []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        self.asked.append(index)
        return {"x": self.x[index], "y": self.y[index]}


def readers():
    return [child for child in multiprocessing.active_children() if "grain" in child.name]


def assert_same_batches(found, wanted):
    found, wanted = list(found), list(wanted)
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        chex.assert_trees_all_equal(one, other)  # rows are copied, never computed: exact


# --- the order -----------------------------------------------------------------------------------


def test_order_is_the_permutation_of_the_folded_key():
    order = loading.epoch_order(KEY, 5, 100)
    wanted = jax.random.permutation(jax.random.fold_in(KEY, 5), 100)
    assert order.dtype == jnp.int32
    assert order.tolist() == wanted.tolist()
    assert sorted(order.tolist()) == list(range(100))


def test_order_differs_by_epoch_and_by_key():
    orders = [
        tuple(loading.epoch_order(jax.random.key(seed), epoch, 20).tolist())
        for seed, epoch in itertools.product(range(3), range(3))
    ]
    assert len(set(orders)) == 9


def test_every_order_is_equally_likely():
    orders = jax.vmap(lambda epoch: loading.epoch_order(KEY, epoch, 4))(jnp.arange(4800))
    codes = np.asarray(orders) @ np.array([64, 16, 4, 1])
    counts = np.unique(codes, return_counts=True)[1]
    assert len(counts) == 24
    # one fixed key, so this either holds or not: the usual test at 0.1 %
    assert stats.chisquare(counts).pvalue > 1e-3


def test_order_does_not_depend_on_precision_or_transformation(x64):
    plain = loading.epoch_order(KEY, 2, 50)
    traced = chex.assert_max_traces(loading.epoch_order, n=1)
    compiled = jax.jit(traced, static_argnums=2)
    many = jax.vmap(lambda epoch: loading.epoch_order(KEY, epoch, 50))(jnp.arange(4))
    with jax.enable_x64(False):
        assert loading.epoch_order(KEY, 2, 50).tolist() == plain.tolist()
    for epoch in range(4):  # compiled once
        chex.assert_trees_all_equal(compiled(KEY, epoch, 50), many[epoch])
    chex.assert_trees_all_equal(many[2], plain)


# --- batches of an order -------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    num_rows=st.integers(1, 60),
    share=st.integers(1, 8),
    process_count=st.integers(1, 4),
    remainder=st.sampled_from(REMAINDERS),
)
def test_processes_have_the_batches_of_one(num_rows, share, process_count, remainder):
    batch_size = share * process_count
    rest = num_rows % batch_size
    if batch_size > num_rows or (remainder == "keep" and rest % process_count):
        with pytest.raises(ValueError, match=r"batch_size must be at most|keep"):
            loading.batch_indices(
                np.arange(num_rows),
                batch_size=batch_size,
                remainder=remainder,
                process_count=process_count,
            )
        return
    order = np.random.default_rng(num_rows).permutation(num_rows)
    cut = functools.partial(
        loading.batch_indices, order, batch_size=batch_size, remainder=remainder
    )
    whole = jax.device_get(cut())
    parts = [cut(process_index=p, process_count=process_count) for p in range(process_count)]
    for name, axis in (("full", 1), ("mask", 1), ("rest", 0)):
        joined = np.concatenate([getattr(part, name) for part in parts], axis=axis)
        np.testing.assert_array_equal(joined, getattr(whole, name))
    # what counts is the order itself, up to its end or to the last full batch
    counted = np.concatenate([whole.full[whole.mask], whole.rest])
    wanted = order[: num_rows - rest] if remainder == "drop" else order
    np.testing.assert_array_equal(counted, wanted)
    assert whole.full.shape[1] == batch_size
    assert whole.rest.shape == (rest if remainder == "keep" else 0,)


def test_cut_compiles_with_a_traced_order():
    cut = functools.partial(loading.batch_indices, batch_size=4, remainder="keep")
    order = loading.epoch_order(KEY, 0, 10)
    chex.assert_trees_all_equal(jax.jit(cut)(order), cut(order))


@pytest.mark.parametrize("remainder", ["drop", "keep"])  # PyTorch does not pad
@pytest.mark.parametrize("batch_size", [1, 4, 11])
def test_agrees_with_torch(torch, remainder, batch_size):
    x, y = columns(11)
    loader = loading.map_style(KEY, (x, y), batch_size=batch_size, remainder=remainder)
    peer = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y)),
        batch_size=batch_size,
        sampler=loading.epoch_order(KEY, 3, 11).tolist(),
        drop_last=remainder == "drop",
    )
    assert_same_batches(loader(3), [(a.numpy(), b.numpy()) for a, b in peer])
    assert len(loader) == len(peer)


@pytest.mark.parametrize("remainder", ["drop", "keep"])
def test_agrees_with_a_plain_grain_pipeline(remainder):
    import grain

    x, _ = columns(11)
    order = np.asarray(loading.epoch_order(KEY, 1, 11))
    peer = (
        grain.MapDataset.source(x[order]).batch(4, drop_remainder=remainder == "drop")
    ).to_iter_dataset()
    assert_same_batches(loading.map_style(KEY, x, batch_size=4, remainder=remainder)(1), peer)


@remainders
def test_an_epoch_of_gradients_sums_to_the_full_gradient(x64, remainder):
    x, y = (
        jnp.asarray(column, jnp.float64) for column in columns(12 if remainder == "drop" else 11)
    )
    y = y[:, None]

    def loss(w, x, y, weight):
        return (weight * (jnp.sin(x @ w) - y) ** 2).sum()

    gradient = jax.jit(jax.grad(loss))
    w = jnp.array([[0.3], [-0.2], [0.1]])
    total = jnp.zeros_like(w)
    for batch in loading.in_memory(KEY, (x, y), batch_size=4, remainder=remainder)(0):
        (bx, by), mask = batch if remainder == "pad" else (batch, np.ones(len(batch[1]), bool))
        total += gradient(w, bx, by, jnp.asarray(mask, jnp.float64)[:, None])
    everything = jnp.ones_like(y)
    # the same terms, summed in another order in float64
    chex.assert_trees_all_close(total, gradient(w, x, y, everything), rtol=1e-12)
    numeric = [
        (loss(w + 1e-6 * e, x, y, everything) - loss(w - 1e-6 * e, x, y, everything)) / 2e-6
        for e in jnp.eye(3)[:, :, None]
    ]
    # central differences: h^2 f''' and cancellation of f ~ 1e3 at 1e-16 / 1e-6
    np.testing.assert_allclose(total[:, 0], numeric, rtol=1e-5)


# --- the same order whoever reads ----------------------------------------------------------------


@remainders
@pytest.mark.parametrize("batch_size", [1, 3, 7, 11])
def test_grain_and_memory_agree(remainder, batch_size):
    x, y = columns(11)
    sources = [(x, y), [(x[i], y[i]) for i in range(11)]]
    for seed, epoch, shuffle in [(0, 0, True), (0, 4, True), (7, 1, True), (7, 1, False)]:
        key = jax.random.key(seed)
        options = {"batch_size": batch_size, "remainder": remainder, "shuffle": shuffle}
        memory = loading.in_memory(key, (x, y), **options)
        wanted = list(memory(epoch))
        assert len(memory) == len(wanted)
        for source, num_threads in itertools.product(sources, [0, 1, 3]):
            loader = loading.map_style(
                key, source, num_threads=num_threads, read_ahead=4, **options
            )
            assert_same_batches(loader(epoch), wanted)
            assert len(loader) == len(wanted)
            assert_same_batches(loader(epoch, first_batch=1), wanted[1:])


def test_workers_read_the_same_batches(tmp_path):
    # One start of workers shows it all: a memory-mapped file by its name, a transform, padding.
    x, y = columns(22)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    loader = loading.map_style(
        KEY,
        (mapped, y),
        batch_size=4,
        remainder="pad",
        transform=lambda row: {"x": row[0], "y": row[1]},
        num_workers=2,
    )
    memory = loading.in_memory(KEY, {"x": x, "y": y}, batch_size=4, remainder="pad")
    assert_same_batches(loader(1), memory(1))


def test_workers_take_turns_in_an_iterable_and_end_when_closed():
    plain = functools.partial(
        loading.iterable,
        KEY,
        range(1000),
        batch_size=4,
        window=5,
        transform=lambda number: {"half": number / 2, "number": number},
    )
    batches, wanted = plain(num_workers=2)(2), plain()(2)
    assert_same_batches(itertools.islice(batches, 5), itertools.islice(wanted, 5))
    assert len(readers()) == 2
    batches.close()
    assert not readers()


def test_a_mapped_file_is_sent_to_workers_by_name(tmp_path):
    x = np.asfortranarray(np.arange(400_000, dtype=np.float32).reshape(1000, 400))
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for leaf, largest in ((mapped, 1000), (mapped[::2], 1e6)):  # a part of one goes by value
        sent = pickle.dumps(_grain._Batches(leaf, [np.array([2, 5])], True, None))
        assert len(sent) < largest
        chex.assert_trees_all_equal(pickle.loads(sent)[0].content, np.asarray(leaf[[2, 5]]))


def test_rows_are_read_when_they_are_due():
    rows = Rows(40)
    options = {"batch_size": 4, "num_threads": 0}
    batches = loading.map_style(KEY, rows, **options)(0)
    order = loading.epoch_order(KEY, 0, 40).tolist()
    assert rows.asked == []
    next(batches)
    assert rows.asked == order[:4]
    next(batches)
    assert rows.asked == order[:8]

    ahead = Rows(40)
    batches = loading.map_style(KEY, ahead, batch_size=4, num_threads=1, read_ahead=3)(0)
    next(batches)
    batches.close()
    assert len(ahead.asked) <= 4 + 3 * 4


def test_a_source_may_give_many_rows_at_once():
    class Many(Rows):
        def __getitems__(self, indices):
            assert len(indices) == 4
            return [self[index] for index in indices]

    assert_same_batches(
        loading.map_style(KEY, Many(8), batch_size=4)(0),
        loading.map_style(KEY, Rows(8), batch_size=4)(0),
    )

    class Few(Rows):
        def __getitems__(self, indices):
            return [self[index] for index in indices[:-1]]

    with pytest.raises(ValueError, match="as many rows as asked for, 4, got 3"):
        next(loading.map_style(KEY, Few(8), batch_size=4)(0))


# --- iterable sources ----------------------------------------------------------------------------


def test_windows_are_permuted_one_by_one():
    found = np.concatenate(
        list(loading.iterable(KEY, range(17), batch_size=5, window=6, remainder="keep")(3))
    )
    fold = jax.random.fold_in(KEY, 3)
    wanted = [
        6 * number + loading.epoch_order(fold, number, size)
        for number, size in enumerate([6, 6, 5])
    ]
    assert found.tolist() == np.concatenate(wanted).tolist()
    in_order = loading.iterable(KEY, range(17), batch_size=5, remainder="keep")(3)
    assert np.concatenate(list(in_order)).tolist() == list(range(17))


@remainders
@pytest.mark.parametrize("num_rows", [8, 10, 12])
def test_iterable_remainders_and_processes(remainder, num_rows):
    options = {"batch_size": 4, "remainder": remainder, "window": 3}
    whole = list(loading.iterable(KEY, range(num_rows), **options)(0))
    parts = [
        loading.iterable(KEY, range(num_rows), process_index=p, process_count=2, **options)(0)
        for p in range(2)
    ]
    joined = [jax.tree.map(lambda *leaf: np.concatenate(leaf), *pair) for pair in zip(*parts)]  # noqa: B905
    assert_same_batches(joined, whole)
    rows = [b.batch[b.mask] if remainder == "pad" else b for b in whole]
    kept = num_rows - num_rows % 4 if remainder == "drop" else num_rows
    assert len(np.unique(np.concatenate(rows))) == sum(map(len, rows)) == kept
    assert all(len(b.batch) == 4 for b in whole if remainder == "pad")
    with pytest.raises(TypeError, match="no length"):
        len(loading.iterable(KEY, range(8), batch_size=4))


# --- many epochs, positions ----------------------------------------------------------------------


def loaders(num_rows=7, **options):
    x, _ = columns(num_rows)
    return {
        "memory": loading.in_memory(KEY, x, **options),
        "grain": loading.map_style(KEY, x, num_threads=0, **options),
        "iterable": loading.iterable(KEY, x, window=3, **options),
    }


@pytest.mark.parametrize("kind", ["memory", "grain", "iterable"])
def test_epochs_follow_one_another(kind):
    loader = loaders(batch_size=3, remainder="keep")[kind]
    one_by_one = [batch for epoch in range(3) for batch in loader(epoch)]
    assert_same_batches(loader.iterate(num_epochs=3), one_by_one)
    assert_same_batches(itertools.islice(loader.iterate(), 9), one_by_one)  # without end
    assert np.concatenate(one_by_one[:3]).tolist() != np.concatenate(one_by_one[3:6]).tolist()


@remainders
@pytest.mark.parametrize("kind", ["memory", "grain", "iterable"])
def test_resumes_from_every_position(kind, remainder):
    loader = loaders(batch_size=3, remainder=remainder)[kind]
    wanted = list(loader.iterate(num_epochs=2))
    batches = loader.iterate(num_epochs=2)
    for position in range(len(wanted) + 1):
        state = json.loads(json.dumps(batches.get_state()))  # it can be written to any file
        resumed = loader.iterate(num_epochs=2)
        resumed.set_state(state)
        assert_same_batches(resumed, wanted[position:])
        batches.close()  # closing loses nothing but what was read ahead
        if position < len(wanted):
            chex.assert_trees_all_equal(next(batches), wanted[position])
    assert next(batches, None) is None


def test_a_position_is_good_for_other_readers_of_the_same_order():
    both = loaders(8, batch_size=4)
    batches = both["memory"].iterate()
    next(batches)
    resumed = both["grain"].iterate()
    resumed.set_state(batches.get_state())
    wanted = next(batches)
    chex.assert_trees_all_equal(next(resumed), wanted)
    # and on two processes, as the batch is the same
    halves = []
    for p in range(2):
        half = loading.in_memory(KEY, columns(8)[0], batch_size=4, process_index=p, process_count=2)
        half = half.iterate()
        half.set_state(dict.fromkeys(["epoch"], 0) | batches.get_state() | {"epoch": 0, "batch": 1})
        halves.append(next(half))
    chex.assert_trees_all_equal(np.concatenate(halves), wanted)


def test_a_foreign_position_is_refused_by_name():
    own = loaders(8, batch_size=4)["grain"].iterate()
    x = columns(8)[0]
    for name, other in {
        "key": loading.in_memory(jax.random.key(1), x, batch_size=4),
        "num_rows": loading.in_memory(KEY, columns(9)[0], batch_size=4),
        "batch_size": loading.in_memory(KEY, x, batch_size=2),
        "remainder": loading.in_memory(KEY, x, batch_size=4, remainder="pad"),
        "shuffle": loading.in_memory(KEY, x, batch_size=4, shuffle=False),
    }.items():
        with pytest.raises(ValueError, match=f"state must be of a loader with {name} = "):
            own.set_state(other.iterate().get_state())
    with pytest.raises(ValueError, match=r"none for \['batch'\]"):
        own.set_state({k: v for k, v in own.get_state().items() if k != "batch"})
    with pytest.raises(ValueError, match=r"state\['epoch'\] must be at least 0, got -1"):
        own.set_state(own.get_state() | {"epoch": -1})
    windows = loading.iterable(KEY, x, batch_size=4, window=2).iterate()
    with pytest.raises(ValueError, match="window = 2, got 3"):
        windows.set_state(loaders(8, batch_size=4)["iterable"].iterate().get_state())


# --- several hosts -------------------------------------------------------------------------------


def test_two_hosts_are_disjoint_and_complete():
    x, y = columns(24)
    whole = loading.in_memory(KEY, (x, y), batch_size=8)
    hosts = [
        loading.map_style(KEY, (x, y), batch_size=8, process_index=p, process_count=2)
        for p in range(2)
    ]
    for epoch in range(2):
        seen = [np.concatenate([batch_y for _, batch_y in host(epoch)]) for host in hosts]
        assert not set(seen[0]) & set(seen[1])
        assert sorted(np.concatenate(seen)) == list(range(24))
        joined = [
            jax.tree.map(lambda a, b: np.concatenate([a, b]), *pair)
            for pair in zip(hosts[0](epoch), hosts[1](epoch), strict=True)
        ]
        assert_same_batches(joined, whole(epoch))


# --- to the device -------------------------------------------------------------------------------


def counted(num_batches, seen):
    for index in range(num_batches):
        seen.append(index)
        yield {"x": np.full((2, 3), index, np.float32)}


@pytest.mark.parametrize("size", [1, 3])
def test_prefetch_is_ahead_by_size(size):
    seen = []
    batches = loading.prefetch(counted(6, seen), size=size)
    assert seen == []
    for index, batch in enumerate(batches):
        assert isinstance(batch["x"], jax.Array)
        assert batch["x"].tolist() == [[index] * 3] * 2
        assert len(seen) == min(index + 1 + size, 6)
    assert len(seen) == 6


def test_prefetch_to_a_device_or_a_sharding():
    device = jax.devices()[0]
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    for target in (device, spread):
        for batch in loading.prefetch(counted(3, []), device=target):
            found = batch["x"].sharding
            assert found == spread if target is spread else found.device_set == {device}


def test_prefetch_counts_what_it_handed_out():
    loader = loaders(8, batch_size=2)["memory"]
    wanted = list(loader.iterate(num_epochs=2))
    batches = loading.prefetch(loader.iterate(num_epochs=2), size=3)
    for position in range(len(wanted) + 1):
        resumed = loading.prefetch(loader.iterate(num_epochs=2), size=2)
        next(resumed)
        resumed.set_state(batches.get_state())  # forgets what was under way
        assert_same_batches(resumed, wanted[position:])
        next(batches, None)
    batches.close()
    stateless = loading.prefetch(loader(0))
    with pytest.raises(TypeError, match=r"generator has no get_state; see Loader\.iterate"):
        stateless.get_state()
    with pytest.raises(TypeError, match="no set_state"):
        stateless.set_state({})


# --- collation -----------------------------------------------------------------------------------


def test_collates_pytrees():
    rows = [{"x": np.full(2, i, np.uint8), "y": (i, 0.5 * i)} for i in range(3)]
    batch = loading.collate(rows)
    wanted = {
        "x": np.array([[0, 0], [1, 1], [2, 2]], np.uint8),
        "y": (np.arange(3), np.arange(3) / 2),
    }
    chex.assert_trees_all_equal(batch, wanted)
    assert batch["x"].dtype == np.uint8


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([], ValueError, "rows must not be empty"),
        ([()], ValueError, "row 0 must hold at least one"),
        (
            [{"x": np.ones(2)}, {"x": np.ones(3)}],
            ValueError,
            r"row 1\['x'\] must have shape \(2,\)",
        ),
        ([np.float32(1), np.float64(1)], ValueError, "row 1 must have .* dtype float32 like row 0"),
        ([(1, 2), (1, 2), (1,)], ValueError, "row 2 must be built like row 0"),
        ([{"name": "a"}], TypeError, r"row 0\['name'\] must be numeric, got str"),
    ],
)
def test_rows_that_do_not_stack(rows, error, message):
    with pytest.raises(error, match=message):
        loading.collate(rows)


def test_a_bad_row_is_named_by_its_number_in_the_source():
    rows = [np.zeros(2) if i != 5 else np.zeros(3) for i in range(8)]
    for loader in (
        loading.map_style(KEY, rows, batch_size=4, shuffle=False),
        loading.iterable(KEY, rows, batch_size=4),
        loading.map_style(KEY, rows, batch_size=4, shuffle=False, num_threads=0),
    ):
        batches = loader(0)
        next(batches)
        with pytest.raises(ValueError, match=r"row 5 must have shape \(2,\) .* row 4, got \(3,\)"):
            next(batches)


# --- bad input -----------------------------------------------------------------------------------

X = columns(8)[0]


@pytest.mark.parametrize("make", [loading.in_memory, loading.map_style, loading.iterable])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be an integer"),
        ({"batch_size": 9}, ValueError, "batch_size must be at most the number of rows, 8, got 9"),
        ({"batch_size": 4, "remainder": "wrap"}, ValueError, "remainder must be one of 'drop'"),
        (
            {"batch_size": 4, "process_index": 2, "process_count": 2},
            ValueError,
            r"process_index must be in 0\.\.1 \(process_count = 2\), got 2",
        ),
        ({"batch_size": 4, "process_index": -1}, ValueError, "process_index must be at least 0"),
        ({"batch_size": 4, "process_count": 0}, ValueError, "process_count must be at least 1"),
        ({"batch_size": 4, "process_count": 3}, ValueError, "must be a multiple of .* = 3, got 4"),
        (
            {"batch_size": 6, "process_count": 3, "remainder": "keep"},
            ValueError,
            "would leave 2 rows to 3 processes",
        ),
    ],
)
def test_bad_options(make, options, error, message):
    with pytest.raises(error, match=message):
        list(make(KEY, X, **options)(0))


@pytest.mark.parametrize("make", [loading.in_memory, loading.map_style, loading.iterable])
def test_bad_sources_and_keys(make):
    with pytest.raises(ValueError, match="the source must not be empty"):
        list(make(KEY, X[:0], batch_size=2)(0))
    with pytest.raises(TypeError, match=r"key must come from jax\.random\.key, got int"):
        make(0, X, batch_size=2)
    with pytest.raises(
        ValueError, match=r"key must be one key, got an array of keys of shape \(2,\)"
    ):
        make(jax.random.split(KEY), X, batch_size=2)
    with pytest.raises(ValueError, match="epoch must be at least 0"):
        make(KEY, X, batch_size=2)(-1)
    with pytest.raises(ValueError, match="num_epochs must be at least 1"):
        make(KEY, X, batch_size=2).iterate(num_epochs=0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: loading.epoch_order(KEY, -1, 3), ValueError, "epoch must not be negative, got -1"),
        (lambda: loading.epoch_order(KEY, 0.5, 3), TypeError, "epoch must be an integer array"),
        (lambda: loading.epoch_order(KEY, 0, 0), ValueError, "num_rows must be at least 1"),
        (lambda: loading.epoch_order(0, 0, 3), TypeError, "key must come from"),
        (
            lambda: loading.batch_indices(np.ones(3), batch_size=1),
            TypeError,
            "order must be an int",
        ),
        (lambda: loading.batch_indices(np.ones((3, 1), int), batch_size=1), ValueError, "1-D"),
        (
            lambda: loading.in_memory(KEY, (X, X[:3]), batch_size=2),
            ValueError,
            r"data must hold arrays with one common first axis",
        ),
        (
            lambda: loading.map_style(KEY, (X, X[:3]), batch_size=2),
            ValueError,
            r"source must hold arrays with one common first axis, got .*\(8, 3\), \(3, 3\)",
        ),
        (
            lambda: loading.map_style(KEY, ([1], [2]), batch_size=1),
            TypeError,
            "rows go into a list",
        ),
        (lambda: loading.map_style(KEY, iter([1]), batch_size=1), TypeError, "see `iterable`"),
        (
            lambda: loading.map_style(KEY, X, batch_size=1, num_workers=-1),
            ValueError,
            "num_workers",
        ),
        (
            lambda: loading.map_style(KEY, X, batch_size=1, num_threads=-1),
            ValueError,
            "num_threads",
        ),
        (lambda: loading.map_style(KEY, X, batch_size=1, read_ahead=0), ValueError, "read_ahead"),
        (lambda: loading.iterable(KEY, iter(X), batch_size=1), TypeError, "not a generator"),
        (lambda: loading.iterable(KEY, 3, batch_size=1), TypeError, "again and again"),
        (lambda: loading.iterable(KEY, X, batch_size=1, window=0), ValueError, "window"),
        (lambda: loading.prefetch([X], size=0), ValueError, "size must be at least 1"),
        (lambda: loading.prefetch(3), TypeError, "batches must be iterable, got int"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_says_what_to_install_where_grain_is_missing(monkeypatch):
    import mlnotes_jax.data

    loader = loading.map_style(KEY, X, batch_size=4)
    monkeypatch.delattr(mlnotes_jax.data, "_grain", raising=False)
    monkeypatch.delitem(sys.modules, "mlnotes_jax.data._grain", raising=False)
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r'pip install "mlnotes-jax\[data\]"'):
        list(loader(0))
    assert len(list(loading.in_memory(KEY, X, batch_size=4)(0))) == 2  # needs none
