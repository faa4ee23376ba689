import functools
import hashlib
import itertools
import os
import random
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mlnotes_jax.training import reproducibility as rp


@pytest.fixture
def key():
    return jax.random.key(3)


# --- keys ----------------------------------------------------------------------------------------


def test_a_stream_is_folding_in_a_number_that_every_process_agrees_on(key):
    # From `printf dropout | sha256sum`: the first eight digits.
    expected = jax.random.fold_in(key, np.uint32(0x1B4C0A29))
    assert rp.stream(key, "dropout") == expected
    expected = jax.random.fold_in(jax.random.fold_in(expected, 7), 2**32 - 1)
    assert rp.stream(key, "dropout", 7, 2**32 - 1) == expected
    assert rp.stream(key, "dropout", 7) != rp.stream(key, "dropout", 8)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(max_size=8), min_size=2, max_size=6, unique=True))
def test_streams_differ_and_do_not_depend_on_each_other(names):
    key = jax.random.key(0)
    keys = rp.streams(key, *names)
    assert list(keys) == names
    for a, b in itertools.combinations(names, 2):
        assert keys[a] != keys[b]
    fewer = rp.streams(key, *names[::-1][:-1])  # another order, and one name less
    assert all(fewer[name] == keys[name] for name in fewer)


def test_stream_under_jit_and_vmap(key):
    traces = []

    @jax.jit
    def at(key, epoch, step):
        traces.append(None)
        return rp.stream(key, "noise", epoch, step)

    assert at(key, 1, 2) == rp.stream(key, "noise", 1, 2)
    at(key, 3, 4)
    assert len(traces) == 1
    steps = jnp.arange(4)
    many = jax.vmap(lambda step: rp.stream(key, "noise", step))(steps)
    assert (many == jnp.stack([rp.stream(key, "noise", step) for step in range(4)])).all()


def test_streams_look_independent(key):
    """4 pairs of 10 000 draws: a correlation has the standard error 1/100; 5 of them in 1e-6."""
    names = ["init", "shuffle", "dropout", "augment", "noise"]
    draws = [jax.random.normal(rp.stream(key, name), 10_000) for name in names]
    for a, b in itertools.pairwise(draws):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.05


def test_seeds_are_accepted_by_other_generators(key, torch):
    seed = rp.seed(rp.stream(key, "numpy"))
    assert type(seed) is int
    assert 0 <= seed < 2**32
    assert seed == rp.seed(rp.stream(key, "numpy")) != rp.seed(rp.stream(key, "torch"))
    first, again = (np.random.default_rng(seed).normal(size=3) for _ in range(2))
    assert rp.same_bits(first, again)
    assert random.Random(seed).random() == random.Random(seed).random()
    first, again = (torch.rand(3, generator=torch.Generator().manual_seed(seed)) for _ in range(2))
    assert (first == again).all()


def test_bad_keys_names_and_numbers(key):
    stream, old, two = functools.partial(rp.stream, key), jax.random.PRNGKey(0), jnp.arange(2)
    for error, message, call in [
        (TypeError, "key must be a typed key .* got uint32", lambda: rp.stream(old, "a")),
        (TypeError, "key must be a typed key .* got int", lambda: rp.seed(0)),
        (ValueError, "key must be 0-D", lambda: rp.stream(jax.random.split(key), "a")),
        (TypeError, "name must be text, got 3", lambda: stream(3)),
        (TypeError, r"numbers\[1\] must be an integer", lambda: stream("a", 0, 0.5)),
        (ValueError, r"numbers\[0\] must be in \[0, 4294967295\], got -1", lambda: stream("a", -1)),
        (ValueError, r"numbers\[0\] must be in", lambda: stream("a", 2**32)),
        (ValueError, r"numbers\[0\] must be in", lambda: stream("a", jnp.int32(-1))),
        (ValueError, r"numbers\[0\] must be 0-D", lambda: stream("a", two)),
        (ValueError, "names must be distinct, got 'a', 'a'", lambda: rp.streams(key, "a", "a")),
        (TypeError, "key must be concrete", lambda: jax.jit(rp.seed)(key)),
    ]:
        with pytest.raises(error, match=message):
            call()


def test_names_that_share_a_number_are_refused(key, monkeypatch):
    monkeypatch.setattr(rp, "_number_of", lambda name: 1)
    with pytest.raises(ValueError, match="names 'a' and 'b' share a key by chance"):
        rp.streams(key, "a", "b")


# --- bits ----------------------------------------------------------------------------------------


def test_the_fingerprint_is_the_hash_that_the_page_describes():
    value = {"w": np.array([1.0, 2.0], ">f4"), "n": 3}
    digest = hashlib.sha256()
    for part in ["['n']", "int", "3", "['w']", "float32 (2,)"]:
        digest.update(struct.pack("<Q", len(part)) + part.encode())
    digest.update(struct.pack("<Q", 8) + struct.pack("<2f", 1.0, 2.0))
    assert rp.fingerprint(value) == digest.hexdigest()


ARRAYS = npst.arrays(
    st.sampled_from(["int8", "uint32", "float16", "float32", "float64"]),
    npst.array_shapes(max_dims=2, max_side=4),
)


@settings(deadline=None, max_examples=50)
@given(ARRAYS, st.data())
def test_one_bit_makes_another_fingerprint(array, data):
    tree = {"a": [array, 1.0]}
    assert rp.fingerprint(tree) == rp.fingerprint({"a": [array.copy(), 1.0]})
    assert rp.same_bits(tree, {"a": [array.copy(), 1.0]})
    place = data.draw(st.integers(0, array.nbytes * 8 - 1))
    changed = array.copy()
    changed.reshape(-1).view(np.uint8)[place // 8] ^= 1 << place % 8
    other = {"a": [changed, 1.0]}
    assert rp.fingerprint(tree) != rp.fingerprint(other)
    assert not rp.same_bits(tree, other)
    (found,) = rp.differences(tree, other)
    assert (found.path, found.count) == ("['a'][0]", 1)


def test_order_dtype_shape_path_and_kind_count(key):
    a, b = jnp.zeros(2), jnp.ones(2)
    values = [
        [a, b],
        [b, a],
        (a,),
        [jnp.zeros((1, 2)), b],
        [jnp.zeros(2, jnp.int32), b],
        [jnp.zeros(2, jnp.bfloat16), b],
        {"0": a, "1": b},
        [a, [b]],
        [a, -b],
        [-a, b],  # -0.0
        0.0,
        0,
        False,
        "0",
        b"0",
        jnp.zeros(()),
        jnp.zeros(0),
        key,
        jax.random.key_data(key),
        jax.random.key(4),
        jax.random.key(3, impl="rbg"),
        np.array(["a"]),
        np.array([b"a"]),
        nnx.Linear(1, 1, rngs=nnx.Rngs(0)),
        (),
    ]
    assert len({rp.fingerprint(value) for value in values}) == len(values)
    for i, j in itertools.product(range(len(values)), repeat=2):
        assert rp.same_bits(values[i], values[j]) == (i == j)
        assert bool(rp.differences(values[i], values[j])) == (i != j)
    # Where an array lives does not count, nor a tuple for a list: the paths are the same.
    assert rp.fingerprint([a, b]) == rp.fingerprint((np.zeros(2, np.float32), b))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_distances_in_floating_point_numbers(dtype):
    dtype = jnp.dtype(dtype)
    tiny = np.array(0, dtype) + np.array(ml_dtypes.finfo(dtype).smallest_subnormal, dtype)
    # 1 and its neighbour; across zero: -tiny, -0, 0, tiny (both zeros are one number).
    x = np.array([1, -tiny, 2, np.nan, np.inf], dtype)
    y = np.array([1 + ml_dtypes.finfo(dtype).eps, tiny, 2, 0, 1], dtype)
    (found,) = rp.differences({"x": x}, {"x": y})
    assert found.path == "['x']"
    assert found.what == "4 of 5 entries"
    assert (found.count, found.ulps) == (4, 2)
    assert found.largest == float(ml_dtypes.finfo(dtype).eps)
    (found,) = rp.differences(x[:1], y[:1])
    assert found.ulps == 1


def test_differences_in_words(key):
    a = {"k": key, "n": 1, "t": np.array(["a"]), "b": jnp.array([True]), "c": jnp.array([1j])}
    b = {
        "k": jax.random.key(4),
        "n": 2,
        "t": np.array(["b"]),
        "b": jnp.array([False]),
        "c": jnp.array([1j + 1]),
        "m": 0,
    }
    found = {d.path: d for d in rp.differences(a, b)}
    assert found["['m']"].what == "only in the second"
    assert found["['k']"].what == found["['n']"].what == found["['t']"].what == "other value"
    assert found["['b']"][1:] == ("1 of 1 entries", 1, None, None)
    assert found["['c']"][1:] == ("1 of 1 entries", 1, 1.0, None)
    assert [d.path for d in rp.differences(b, a)] == sorted(found)
    (form,) = rp.differences(jnp.ones(2), jnp.ones(3))
    assert form.what == "float32 (2,) and float32 (3,)"
    nan = np.array([np.nan], np.float32)
    assert rp.differences(nan, nan.copy()) == []
    assert rp.differences(nan, -nan)[0][1:] == ("1 of 1 entries", 1, None, None)


def test_what_has_no_bits_is_refused():
    with pytest.raises(TypeError, match=r"\['f'\] must be an array, .* got builtin"):
        rp.fingerprint({"f": len})
    with pytest.raises(TypeError, match="must be concrete"):
        jax.jit(rp.fingerprint)(jnp.ones(1))


# --- settings ------------------------------------------------------------------------------------


def test_report_and_advice():
    found = rp.report()
    assert found["jax"] == jax.__version__
    assert found["numpy"] == np.__version__
    assert all(isinstance(value, str) for value in found.values())
    assert found["devices"] == str(len(jax.devices()))
    cpu = found | {
        "device": "cpu: cpu",
        "matmul precision": "default",
        "random generator": "threefry2x32",
        "threefry partitionable": "True",
        "XLA_FLAGS": "",
    }
    assert rp.advice(cpu) == []
    gpu = cpu | {"device": "gpu: NVIDIA H100"}
    assert [line.split()[1] for line in rp.advice(gpu)] == [
        "XLA_FLAGS=--xla_gpu_deterministic_ops=true",
        "jax_default_matmul_precision",
    ]
    calm = gpu | {"matmul precision": "highest", "XLA_FLAGS": " ".join(rp.flags("gpu"))}
    assert rp.advice(calm) == []
    assert rp.advice(calm | {"XLA_FLAGS": "--xla_gpu_deterministic_ops=false"})
    assert "rbg" in rp.advice(cpu | {"random generator": "rbg"})[0]
    assert "partitionable" in rp.advice(cpu | {"threefry partitionable": "False"})[0]
    with pytest.raises(ValueError, match="found must come from report, it lacks XLA_FLAGS"):
        rp.advice({name: value for name, value in cpu.items() if name != "XLA_FLAGS"})


def test_report_follows_the_settings():
    with jax.default_matmul_precision("highest"), jax.threefry_partitionable(False):
        found = rp.report()
    assert found["matmul precision"] == "highest"
    assert found["threefry partitionable"] == "False"
    with jax.enable_x64(True):
        assert rp.report()["float64"] == "True"


def test_flags():
    assert rp.flags("gpu") == rp.flags("cuda") == ("--xla_gpu_deterministic_ops=true",)
    assert rp.flags("cpu") == rp.flags("tpu") == ()
    assert rp.flags() == rp.flags(jax.default_backend())
    with pytest.raises(ValueError, match="device must be one of 'cpu', 'gpu', 'tpu', got 'abacus'"):
        rp.flags("abacus")


# --- two processes -------------------------------------------------------------------------------

TRAIN = """
import sys
import jax, jax.numpy as jnp, numpy as np
from mlnotes_jax.training import reproducibility as rp

def loss(params, kept, x, y):
    hidden = jnp.where(kept, 2 * jax.nn.relu(x @ params["first"]), 0.0)
    return -(jax.nn.log_softmax(hidden @ params["last"]) * y).sum(axis=1).mean()

@jax.jit
def train(params, kept, rows, x, y):
    def step(carry, batch):
        params, speed = carry
        kept, rows = batch
        value, grads = jax.value_and_grad(loss)(params, kept, x[rows], y[rows])
        speed = jax.tree.map(lambda v, g: 0.9 * v + g, speed, grads)
        return (jax.tree.map(lambda p, v: p - 0.1 * v, params, speed), speed), value

    return jax.lax.scan(step, (params, jax.tree.map(jnp.zeros_like, params)), (kept, rows))

key = jax.random.key(int(sys.argv[1]))
generator = np.random.default_rng(rp.seed(rp.stream(key, "numpy")))
x = jnp.asarray(generator.normal(size=(128, 16)), jnp.float32)
y = jnp.asarray(np.eye(3)[generator.integers(0, 3, 128)], jnp.float32)
rows = jnp.asarray([generator.permutation(128)[:32] for _ in range(40)], jnp.int32)
kept = jax.random.bernoulli(rp.stream(key, "dropout"), 0.5, (40, 32, 32))
params = {name: jax.random.normal(rp.stream(key, name), (512,)) / 4 for name in ("first", "last")}
params = {"first": params["first"].reshape(16, 32), "last": params["last"][:96].reshape(32, 3)}
state, losses = train(params, kept, rows, x, y)
assert losses[-4:].mean() < losses[:4].mean()
print(rp.fingerprint((state, losses)))
"""


def test_two_processes_with_one_seed_train_to_the_same_bits():
    """A third has the GPU's flag, which XLA must know (it stops at an unknown one)."""
    runs = [
        (0, {"PYTHONHASHSEED": "1"}),
        (0, {"PYTHONHASHSEED": "2", "XLA_FLAGS": " ".join(rp.flags("gpu"))}),
        (1, {"PYTHONHASHSEED": "1"}),
    ]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(seed)],
            env=os.environ | {"XLA_FLAGS": ""} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed, environment in runs
    ]
    answers = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], answers
    first, again, other = (output for output, _ in answers)
    assert len(first.strip()) == 64
    assert first == again != other
