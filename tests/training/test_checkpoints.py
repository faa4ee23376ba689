import dataclasses
import functools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mlnotes_jax.data import labels, scaling
from mlnotes_jax.foundations import linear_regression, losses
from mlnotes_jax.training import _atomic, checkpoints, loop, reproducibility


def tree():
    return {
        "params": {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.zeros(3, jnp.bfloat16)},
        "opt": optax.sgd(0.1, momentum=0.9).init({"w": jnp.ones((2, 3))}),
        "key": jax.random.key(5),
        "epoch": 3,
    }


def bits(a, b):
    return reproducibility.same_bits(a, b) and jax.tree.structure(a) == jax.tree.structure(b)


# --- round trips ---------------------------------------------------------------------------------


def kinds():
    return {
        "float32": jnp.array([1.5, -0.0, jnp.nan, jnp.inf, 1e-45]),
        "bfloat16": jnp.array([1.5, -0.0], jnp.bfloat16),
        "float8": jnp.array([1.5, -0.0], jnp.float8_e4m3fn),
        "int4": jnp.array([-8, 7], jnp.int4),
        "bool": jnp.array([True, False]),
        "complex": jnp.array([1 + 2j], jnp.complex64),
        "scalar": jnp.int32(-7),
        "empty": jnp.zeros((0, 3)),
        "key": jax.random.key(1),
        "rbg keys": jax.random.split(jax.random.key(1, impl="rbg"), 3),
        "no keys": jax.random.split(jax.random.key(1), 2)[:0],
        "old key": jax.random.PRNGKey(1),
        "numpy float64": np.array([0.1, np.nan]),
        "numpy int64": np.array([[2**62, -1]]),
        "numpy bfloat16": np.ones(2, ml_dtypes.bfloat16),
        "numpy big-endian": np.arange(3, dtype=">i4"),
        "numpy transposed": np.arange(6.0).reshape(2, 3).T,
        "numpy scalar": np.float32(0.1),
        "text": np.array(["cat", "狗", ""]),
        "text scalar": np.array("猫"),
        "bytes array": np.array([b"ab", b"c"]),
        "dates": np.array(["2024-02-29", "NaT"], "datetime64[D]"),
        "python": [True, -(10**30), 0.1, -0.0, float("inf"), 1 - 2j, "名\n", b"\x00\xff", None],
        "containers": [(), [], {}, {3: (np.ones(1), [jnp.ones(1)])}],
    }


def test_every_kind_of_leaf_comes_back_with_its_bits(tmp_path):
    for step, (name, value) in enumerate(kinds().items()):
        like = jax.tree.map(lambda v: type(v)() if isinstance(v, float | int | str) else v, value)
        checkpoints.save(tmp_path, step, value)
        back = checkpoints.restore(tmp_path, like)
        for a, b in zip(jax.tree.leaves(value), jax.tree.leaves(back), strict=True):
            assert type(a) is type(b), name
            if name != "numpy big-endian":  # it comes back in the order of this machine
                assert getattr(a, "dtype", None) == getattr(b, "dtype", None), name
        assert bits(value, back), name


def arrays(*dtypes):
    shapes = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
    return npst.arrays(st.sampled_from(dtypes), shapes)


leaves = st.one_of(
    arrays("int8", "uint16", "int64", "float16", "float32", "float64", "bool"),
    arrays("int8", "uint16", "float16", "float32", "bool").map(jnp.asarray),
    st.integers(0, 99).map(jax.random.key),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=4), inner, max_size=3),
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=15)
@given(trees)
def test_any_tree_comes_back_with_its_bits(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("any")
    checkpoints.save(folder, 0, value)
    assert bits(value, checkpoints.restore(folder, value))


def test_a_template_gives_form_and_place_but_no_values(tmp_path):
    saved = tree()
    checkpoints.save(tmp_path, 1, saved)
    abstract = jax.eval_shape(lambda: tree() | {"epoch": jnp.int32(0)}) | {"epoch": 0}
    back = checkpoints.restore(tmp_path, abstract)
    assert bits(back, saved)
    committed = jax.device_put(saved["params"]["w"], jax.devices()[0])
    like = saved | {"params": saved["params"] | {"w": committed * 0}}
    back = checkpoints.restore(tmp_path, like)["params"]
    assert back["w"].committed
    assert not back["b"].committed
    # NumPy in the template: NumPy comes back.
    host = jax.tree.map(np.asarray, {"w": jnp.ones(2)})
    checkpoints.save(tmp_path, 2, {"w": jnp.ones(2)})
    assert type(checkpoints.restore(tmp_path, host)["w"]) is np.ndarray


@pytest.mark.parametrize("value", [1.0, jnp.full((2,), 3)], ids=["scalar", "vector"])
def test_weak_types_survive(tmp_path, value):
    weak = jnp.asarray(value) if isinstance(value, float) else value
    assert weak.weak_type
    checkpoints.save(tmp_path, 0, weak)
    back = checkpoints.restore(tmp_path, weak)
    assert back.weak_type  # else a resumed program is compiled again, and may round otherwise
    assert bits(back, weak)


def test_arrays_are_plain_orbax(tmp_path):
    """The independent peer: Orbax reads them without this library."""
    import orbax.checkpoint as ocp

    path = checkpoints.save(tmp_path, 0, {"b": np.arange(3.0), "a": np.ones((2, 2))})
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        found = reader.restore(path / "arrays")
    np.testing.assert_array_equal(found["00000"], np.ones((2, 2)))
    np.testing.assert_array_equal(found["00001"], np.arange(3.0))


def test_the_tree_is_not_changed_and_may_be_changed_after(tmp_path):
    host = np.arange(3.0)
    path = checkpoints.save(tmp_path, 0, {"a": host})
    host[:] = 9
    assert checkpoints.restore(tmp_path, {"a": host})["a"].tolist() == [0, 1, 2]
    assert path == tmp_path / "step_00000000"


# --- which checkpoints there are -----------------------------------------------------------------


def test_steps_latest_best_and_describe(tmp_path):
    assert checkpoints.steps(tmp_path / "none") == []
    assert checkpoints.latest(tmp_path) is None
    assert checkpoints.best(tmp_path) is None
    assert checkpoints.resume(tmp_path / "none", {"a": 1}) == {"a": 1}
    for step, metric in [(10, 0.5), (2, 0.25), (7, float("nan")), (12, None), (3, 0.25)]:
        checkpoints.save(tmp_path, jnp.int32(step), {"a": step}, metric=metric)
    assert checkpoints.steps(tmp_path) == [2, 3, 7, 10, 12]
    assert checkpoints.latest(tmp_path) == 12
    assert checkpoints.best(tmp_path) == 2  # the first of equals
    assert checkpoints.best(tmp_path, lower_is_better=False) == 10
    assert checkpoints.restore(tmp_path, {"a": 0}) == {"a": 12}
    assert checkpoints.restore(tmp_path, {"a": 0}, step=7) == {"a": 7}
    assert checkpoints.resume(tmp_path, {"a": 0}) == {"a": 12}
    contents = checkpoints.describe(tmp_path, 10)
    assert (contents.step, contents.metric, contents.position) == (10, 0.5, None)
    assert contents.leaves == {"['a']": "int"}
    assert contents.versions["jax"] == jax.__version__
    assert np.isnan(checkpoints.describe(tmp_path, 7).metric)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"keep_last": 2}, [4, 5]),
        ({"keep_best": 2}, [2, 4, 5]),
        ({"keep_last": 2, "keep_best": 1}, [2, 4, 5]),
        ({"keep_last": 1, "keep_best": 2, "lower_is_better": False}, [1, 3, 5]),
    ],
)
def test_old_checkpoints_are_removed(tmp_path, options, kept):
    metrics = {1: 5.0, 2: 1.0, 3: 3.0, 4: 2.0, 5: jnp.float32(jnp.nan)}
    for step, metric in metrics.items():
        checkpoints.save(tmp_path, step, {"a": step}, metric=metric, **options)
    assert checkpoints.steps(tmp_path) == kept
    assert len(os.listdir(tmp_path)) == len(kept)  # and nothing else is left


def test_a_step_is_saved_once_unless_it_is_replaced(tmp_path):
    checkpoints.save(tmp_path, 1, {"a": 1})
    with pytest.raises(ValueError, match=r"step 1 has been saved before: .*step_00000001 exists"):
        checkpoints.save(tmp_path, 1, {"a": 2})
    assert checkpoints.restore(tmp_path, {"a": 0}) == {"a": 1}
    checkpoints.save(tmp_path, 1, {"a": 2}, replace=True)
    assert checkpoints.restore(tmp_path, {"a": 0}) == {"a": 2}
    assert os.listdir(tmp_path) == ["step_00000001"]


def test_what_is_not_a_checkpoint_is_never_removed(tmp_path):
    mine = tmp_path / "step_00000001"
    mine.mkdir()
    (mine / "diary.txt").write_text("mine")
    with pytest.raises(ValueError, match="not a checkpoint of mlnotes_jax"):
        checkpoints.save(tmp_path, 1, {"a": 1}, replace=True)
    with pytest.raises(ValueError, match="not a checkpoint of mlnotes_jax"):
        checkpoints.save_model(mine, {"a": 1}, replace=True)
    checkpoints.save(tmp_path, 2, {"a": 1}, keep_last=1)
    assert (mine / "diary.txt").read_text() == "mine"


# --- damage --------------------------------------------------------------------------------------


def test_every_damage_to_every_file_is_refused_by_its_name(tmp_path):
    good = checkpoints.save(tmp_path / "run", 4, tree())
    files = sorted(path.relative_to(good) for path in good.rglob("*") if path.is_file())
    assert len(files) > 5

    def spoil(name, change):
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "run", tmp_path / "bad")
        file = tmp_path / "bad" / good.name / name
        change(file)
        with pytest.raises(ValueError, match=r"damaged|foreign") as error:
            checkpoints.restore(tmp_path / "bad", tree())
        # A missing manifest is said with the folder's name, as it may be no checkpoint at all.
        shown = name.name if name.name == "manifest.json" else str(file)
        assert shown in str(error.value)

    def flip(file):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)

    def cut(file):
        file.write_bytes(file.read_bytes()[:-1])

    for name in files:
        for change in (flip, cut, os.unlink, lambda file: file.write_bytes(b"")):
            spoil(name, change)
        spoil(name.parent / "stranger", lambda file: file.write_bytes(b"x"))
    assert bits(checkpoints.restore(tmp_path / "run", tree()), tree())


def test_every_bit_of_the_manifest_counts(tmp_path):
    path = checkpoints.save(tmp_path, 0, {"a": jnp.ones(3)}, metric=0.5)
    file = path / "manifest.json"
    text = file.read_bytes()
    blank = {i for i in range(len(text)) if text[i : i + 1].isspace()}
    refused = 0
    for place in range(0, len(text), 7):
        data = bytearray(text)
        data[place] ^= 1  # a blank becomes another character
        file.write_bytes(data)
        with pytest.raises(ValueError, match=r"manifest\.json"):
            checkpoints.restore(tmp_path, {"a": jnp.ones(3)})
        refused += place not in blank
    assert refused > 50


def test_a_damaged_checkpoint_is_not_passed_over_in_silence(tmp_path):
    for step in (1, 2):
        checkpoints.save(tmp_path, step, {"a": step})
    (tmp_path / "step_00000002" / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"step_00000002/manifest\.json is damaged") as error:
        checkpoints.resume(tmp_path, {"a": 0})
    assert error.value.__notes__ == [f"{tmp_path} has other steps: 1"]
    assert checkpoints.restore(tmp_path, {"a": 0}, step=1) == {"a": 1}
    # Pruning leaves it, for somebody to look at.
    checkpoints.save(tmp_path, 3, {"a": 3}, keep_last=1)
    assert checkpoints.steps(tmp_path) == [2, 3]


def rewrite(path, change):
    """Change a manifest and give it a checksum that fits: not damaged, but wrong."""
    file = path / "manifest.json"
    body = json.loads(file.read_text())["body"]
    change(body)
    file.write_text(json.dumps({"body": body, "sha256": _atomic._checksum(body)}))


def test_another_version_or_format_is_refused(tmp_path):
    path = checkpoints.save(tmp_path, 0, {"a": jnp.ones(3)})
    rewrite(path, lambda body: body.update(version=2))
    with pytest.raises(ValueError, match=r"has version 2, but this library reads version 1"):
        checkpoints.restore(tmp_path, {"a": jnp.ones(3)})
    rewrite(path, lambda body: body.update(version=1, format="somebody else's"))
    with pytest.raises(ValueError, match=r"must have the format .* got \"somebody else's\""):
        checkpoints.restore(tmp_path, {"a": jnp.ones(3)})


def test_a_manifest_that_lies_about_the_arrays_is_refused(tmp_path):
    path = checkpoints.save(tmp_path, 0, {"a": jnp.ones(3)})
    leaf = {"leaf": "jax", "dtype": "float32", "shape": [4]}
    rewrite(path, lambda body: body["tree"].update(children=[["['a']", leaf]]))
    with pytest.raises(
        ValueError, match=r"\['a'\] must be stored as .*\(4,\).* got float32 \(3,\)"
    ):
        checkpoints.restore(tmp_path, {"a": jnp.ones(4)})


def test_foreign_checkpoints_are_refused(tmp_path):
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
        writer.save(tmp_path / "step_00000001", args=ocp.args.PyTreeSave({"a": np.ones(3)}))
    with pytest.raises(ValueError, match=r"step_00000001 is not a checkpoint of mlnotes_jax"):
        checkpoints.restore(tmp_path, {"a": np.ones(3)})
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"weights.pkl is not a checkpoint of mlnotes_jax"):
        checkpoints.load_model(tmp_path / "weights.pkl", {"a": 1})


unpickled: list[str] = []
sys.addaudithook(lambda event, args: unpickled.append(event) if "pickle" in event else None)


def test_nothing_is_unpickled(tmp_path):
    """The system reports every look-up of a class by any unpickler; an attack needs one."""
    evil = pickle.dumps(types.SimpleNamespace(a=1))
    pickle.loads(evil)
    assert "pickle.find_class" in unpickled  # the alarm works
    unpickled.clear()
    path = checkpoints.save(tmp_path, 0, tree())
    checkpoints.restore(tmp_path, tree())
    checkpoints.save_model(tmp_path / "m", labels.fit(["a", "b"]))
    checkpoints.load_model(tmp_path / "m", labels.Encoding)
    for file in [file for file in path.rglob("*") if file.is_file()]:
        old = file.read_bytes()
        file.write_bytes(evil)
        with pytest.raises(ValueError, match="damaged"):
            checkpoints.restore(tmp_path, tree())
        file.write_bytes(old)
    assert unpickled == []


# --- what does not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"params": {"w": jnp.ones((3, 2)), "b": jnp.zeros(3, jnp.bfloat16)}},
            r"\['params'\]\['w'\] must have shape \(3, 2\), the checkpoint has \(2, 3\)",
        ),
        (
            {"params": {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}},
            r"\['params'\]\['b'\] must have dtype float32, the checkpoint has bfloat16",
        ),
        (
            {"params": {"w": jnp.ones((2, 3))}},
            r"\['params'\]\['b'\] is only in the checkpoint",
        ),
        (
            {"extra": jnp.ones(1)},
            r"\['extra'\] is missing in the checkpoint",
        ),
        (
            {"opt": optax.scale_by_adam().init({"w": jnp.ones((2, 3))})},
            r"\['opt'\] must be of type ScaleByAdamState, the checkpoint has tuple",
        ),
        ({"epoch": 3.0}, r"\['epoch'\] must be a Python float, the checkpoint has a Python int"),
        (
            {"epoch": jnp.int32(0)},
            r"\['epoch'\] must be an array of dtype int32 and shape \(\), .* has a Python int",
        ),
        ({"key": jax.random.key(0, impl="rbg")}, r"\['key'\] must have dtype key<rbg>"),
        ({"key": jax.random.PRNGKey(0)}, r"\['key'\] must have dtype uint32"),
        ({"params": jnp.ones(3)}, r"\['params'\] must be an array .* the checkpoint has a dict"),
        ({"params": None}, r"\['params'\] must be of type NoneType, the checkpoint has dict"),
    ],
)
def test_a_template_of_another_form_is_refused_by_leaf(tmp_path, change, message):
    checkpoints.save(tmp_path, 0, tree())
    with pytest.raises(ValueError, match=message) as error:
        checkpoints.restore(tmp_path, tree() | change)
    assert str(tmp_path / "step_00000000") in str(error.value)


def test_many_misfits_are_counted(tmp_path):
    checkpoints.save(tmp_path, 0, [jnp.ones(1)] * 9)
    with pytest.raises(ValueError, match=r"\[0\] .*; \[4\] .*\(and 4 more\)"):
        checkpoints.restore(tmp_path, [jnp.ones(2)] * 9)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (object(), TypeError, "the tree must be an array, a key, a number, text or bytes, got"),
        ({"f": len}, TypeError, r"\['f'\] must be an array, .* got builtin_function"),
        ([np.array([None])], TypeError, r"\[0\] must be numbers or text, .* dtype object"),
        ([np.ones(1, np.longdouble)], TypeError, r"\[0\] must be numbers or text"),
        ([np.zeros(1, "i4,f4")], TypeError, r"\[0\] must be numbers or text"),
        (jax.ShapeDtypeStruct((2,), np.float32), TypeError, "got ShapeDtypeStruct"),
    ],
)
def test_leaves_that_cannot_be_saved_are_named(tmp_path, value, error, message):
    with pytest.raises(error, match=message):
        checkpoints.save(tmp_path / "run", 0, value)
    assert checkpoints.steps(tmp_path / "run") == []
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments(tmp_path):
    save = functools.partial(checkpoints.save, tmp_path)
    for error, message, call in [
        (ValueError, "step must be at least 0, got -1", lambda: save(-1, 1)),
        (TypeError, "step must be an integer, got 1.5", lambda: save(1.5, 1)),
        (ValueError, "keep_last must be at least 1, got 0", lambda: save(0, 1, keep_last=0)),
        (ValueError, "keep_best must be at least 1, got 0", lambda: save(0, 1, keep_best=0)),
        (TypeError, "metric must be one number", lambda: save(0, 1, metric="good")),
        (TypeError, "metric must be one number", lambda: save(0, 1, metric=jnp.ones(2))),
        (TypeError, "position must be bytes or what JSON", lambda: save(0, 1, position={1: 2})),
        (TypeError, "position must be bytes or what JSON", lambda: save(0, 1, position=len)),
    ]:
        with pytest.raises(error, match=message):
            call()
    assert list(tmp_path.iterdir()) == []

    with pytest.raises(TypeError, match="must be concrete, got a tracer"):
        jax.jit(lambda x: save(0, x) and x)(jnp.ones(2))
    with pytest.raises(
        FileNotFoundError, match=r"no complete checkpoint in .*/none: no such folder"
    ):
        checkpoints.restore(tmp_path / "none", 1)
    with pytest.raises(FileNotFoundError, match="no complete checkpoint in"):
        checkpoints.restore(tmp_path, 1)
    save(3, 1)
    with pytest.raises(
        FileNotFoundError, match=r"no checkpoint of step 4 in .*; there are steps 3"
    ):
        checkpoints.restore(tmp_path, 1, step=4)
    with pytest.raises(FileNotFoundError, match="none does not exist"):
        checkpoints.load_model(tmp_path / "none", 1)


def test_float64_is_not_rounded_in_silence(tmp_path):
    with jax.enable_x64(True):
        model = scaling.fit_standard(jnp.array([[1.0], [1 / 3]]))
        assert model.shift.dtype == jnp.float64
        path = checkpoints.save_model(tmp_path / "m", model)
        assert bits(checkpoints.load_model(path, scaling.Scaling), model)
    with pytest.raises(
        ValueError, match=r"model.shift has dtype float64, which needs jax_enable_x64"
    ):
        checkpoints.load_model(path, scaling.Scaling)


# --- fitted models -------------------------------------------------------------------------------


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["scaler", "weights"],
    meta_fields=["degree", "names"],
)
@dataclasses.dataclass(frozen=True)
class Pipeline:
    scaler: scaling.Scaling
    weights: dict[str, list[jax.Array]]
    degree: int
    names: tuple[str, ...] = ()


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["gamma"], meta_fields=["function"]
)
@dataclasses.dataclass(frozen=True)
class Kernel:
    gamma: jax.Array
    function: Any


class Machine(NamedTuple):
    kernel: Kernel | None
    parts: tuple[labels.Encoding, ...]
    anything: Any


x = np.linspace(-1, 1, 20, dtype=np.float32)[:, None]


@pytest.mark.parametrize(
    ("model", "cls"),
    [
        (lambda: scaling.fit_standard(x), scaling.Scaling),
        (lambda: linear_regression.fit(x, 2 * x[:, 0]), linear_regression.LinearModel),
        (
            lambda: linear_regression.select_degree(
                x, x[:, 0], max_degree=1, held_out=np.arange(20) > 12
            ),
            linear_regression.DegreeSelection,
        ),
        (lambda: labels.fit(["dog", "cat", "熊猫"]), labels.Encoding),
        (lambda: labels.fit([3, -(2**60)]), labels.Encoding),
        (
            lambda: Pipeline(
                scaling.fit_standard(x), {"a": [jnp.ones(2), jnp.zeros(0)]}, 3, ("p", "q")
            ),
            Pipeline,
        ),
        (lambda: Machine(None, (labels.fit([1]), labels.fit(["a"])), 0.5), Machine),
    ],
)
def test_models_are_saved_and_loaded_by_their_class(tmp_path, model, cls):
    model = model()
    path = checkpoints.save_model(tmp_path / "model", model)
    back = checkpoints.load_model(path, cls)
    assert type(back) is cls
    assert bits(back, model)
    assert bits(checkpoints.load_model(path, model), model)
    contents = checkpoints.describe(path)
    assert contents.step is None
    assert contents.leaves
    with pytest.raises(ValueError, match=r"has been saved before"):
        checkpoints.save_model(path, model)


def test_a_loaded_encoding_works(tmp_path):
    encoding = labels.fit(["dog", "cat", "熊猫"])
    path = checkpoints.save_model(tmp_path / "classes", encoding)
    back = checkpoints.load_model(path, labels.Encoding)
    assert labels.decode(back, labels.encode(encoding, ["熊猫", "cat"])).tolist() == ["熊猫", "cat"]
    # Classes of another width are no misfit: how wide text is stored is not its form.
    assert checkpoints.load_model(path, labels.fit(["a", "b", "c"])).classes.dtype == "<U3"


def test_static_fields_are_saved_compared_and_never_imported(tmp_path):
    pipeline = Pipeline(scaling.fit_standard(x), {}, 3, ("p",))
    path = checkpoints.save_model(tmp_path / "p", pipeline)
    other = dataclasses.replace(pipeline, degree=4)
    with pytest.raises(ValueError, match=r"\.degree \(static\) must be 4, the checkpoint has 3"):
        checkpoints.load_model(path, other)

    kernel = Kernel(jnp.float32(0.5), jnp.exp)
    path = checkpoints.save_model(tmp_path / "k", kernel)
    assert checkpoints.load_model(path, kernel).function is jnp.exp
    with pytest.raises(ValueError, match=r"model.function is static and was saved by name only"):
        checkpoints.load_model(path, Kernel)
    with pytest.raises(ValueError, match=r"\.function \(static\) must be "):
        checkpoints.load_model(path, dataclasses.replace(kernel, function=os.path.join))


def test_classes_that_do_not_fit_are_refused(tmp_path):
    path = checkpoints.save_model(tmp_path / "m", scaling.fit_standard(x))
    with pytest.raises(ValueError, match=r"must hold a LinearModel, it holds a Scaling"):
        checkpoints.load_model(path, linear_regression.LinearModel)
    with pytest.raises(TypeError, match=r"like must be a model, .* got the class Linear"):
        checkpoints.load_model(path, nnx.Linear)
    hidden = Machine(None, (), scaling.fit_standard(x))
    path = checkpoints.save_model(tmp_path / "h", hidden)
    with pytest.raises(
        ValueError, match=r"model.anything is a Scaling, .* annotations do not lead"
    ):
        checkpoints.load_model(path, Machine)
    assert bits(checkpoints.load_model(path, hidden), hidden)

    class Scaling(NamedTuple):  # the same name, other fields
        shift: jax.Array
        size: jax.Array

    path = checkpoints.save_model(tmp_path / "s", scaling.fit_standard(x))
    Scaling.__qualname__ = "Scaling"
    with pytest.raises(ValueError, match=r"must have the fields shift, size of Scaling"):
        checkpoints.load_model(path, Scaling)


def linear(inputs, outputs, rngs):
    # Compiling random draws takes seconds, and is not what is tested here.
    return nnx.Linear(inputs, outputs, kernel_init=nnx.initializers.ones, rngs=rngs)


class Net(nnx.Module):
    def __init__(self, width, *, rngs):
        self.layers = nnx.List([linear(4, width, rngs), linear(width, 3, rngs)])
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.layers[1](self.dropout(nnx.relu(self.norm(self.layers[0](x)))))


def test_flax_modules_come_back_with_statistics_and_streams(tmp_path):
    inputs = jax.random.normal(jax.random.key(0), (8, 4))
    model = Net(5, rngs=nnx.Rngs(1, dropout=2))
    model(inputs)  # moves the running mean, and the count of the dropout stream
    path = checkpoints.save_model(tmp_path / "net", {"net": model, "scaler": None})
    fresh = {"net": Net(5, rngs=nnx.Rngs(7, dropout=8)), "scaler": None}
    before = reproducibility.fingerprint(fresh)
    back = checkpoints.load_model(path, fresh)["net"]
    assert reproducibility.fingerprint(fresh) == before
    assert reproducibility.same_bits(model, back)
    np.testing.assert_array_equal(model(inputs), back(inputs))  # the same dropout, too

    abstract = nnx.eval_shape(lambda: Net(5, rngs=nnx.Rngs(0, dropout=0)))
    back = checkpoints.load_model(path, {"net": abstract, "scaler": None})["net"]
    assert isinstance(back.norm.mean, nnx.BatchStat)
    with pytest.raises(ValueError, match=r"\['net'\].*\['kernel'\] must have shape \(4, 6\)"):
        checkpoints.load_model(path, {"net": Net(6, rngs=nnx.Rngs(0, dropout=0)), "scaler": None})


# --- interruption --------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["orbax", "manifest", "rename"])
def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch, place):
    checkpoints.save(tmp_path, 1, {"a": np.ones(2)})

    def fail(*args, **kwargs):
        raise OSError("the disk is full")

    if place == "orbax":
        monkeypatch.setattr("orbax.checkpoint.Checkpointer.save", fail)
    elif place == "manifest":
        monkeypatch.setattr(_atomic, "_checksum", fail)
    else:
        monkeypatch.setattr(_atomic.os, "rename", fail)
    with pytest.raises(OSError, match="the disk is full"):
        checkpoints.save(tmp_path, 2, {"a": np.ones(2)})
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["step_00000001"]


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path):
    checkpoints.save(tmp_path, 1, {"a": 1})
    dead = tmp_path / f".step_00000002.{'0' * 16}.part"
    alive = tmp_path / f".step_00000003.{'1' * 16}.part"
    other = tmp_path / ".step_notes.part"
    for folder in (dead, alive, other):
        folder.mkdir()
        (folder / "file").write_text("")
    assert checkpoints.latest(tmp_path) == 1
    with _atomic._locked(alive):  # as a process does that is still at it
        checkpoints.save(tmp_path, 4, {"a": 4})
    assert not dead.exists()
    assert alive.exists()
    assert other.exists()  # not a name of ours
    checkpoints.save(tmp_path, 5, {"a": 5})
    assert not alive.exists()

    # The same for models; "m" is not "m.old".
    for name in (f".m.{'2' * 16}.part", f".m.old.{'2' * 16}.part"):
        (tmp_path / name).mkdir()
    checkpoints.save_model(tmp_path / "m", 1)
    assert [path.name for path in tmp_path.glob(".m.*")] == [f".m.old.{'2' * 16}.part"]


TRAIN = """
import os, signal, sys
import jax, jax.numpy as jnp, numpy as np, optax
from mlnotes_jax.foundations import losses
from mlnotes_jax.training import checkpoints, loop, reproducibility

folder, moment, at = sys.argv[1], sys.argv[2], int(sys.argv[3])

renamed = False
def watch(event, args):  # Python tells of a rename just before it happens
    global renamed
    die = renamed and moment == "after" and event != "os.kill"
    if event == "os.rename":
        old, new = map(str, args[:2])
        renamed = old.endswith(".part") and new.endswith(f"step_{at:08d}")
        die |= renamed and moment == "before"
        die |= moment == "within" and f".step_{at:08d}." in old and "arrays" in old
    if die:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)

def apply(params, state, x, *, key=None, train=False):
    hidden = jnp.tanh(x @ params["first"])
    if train:  # with dropout and running statistics: the key and the state matter, too
        hidden = jnp.where(jax.random.bernoulli(key, 0.5, hidden.shape), 2 * hidden, 0.0)
        state = {"mean": 0.9 * state["mean"] + 0.1 * hidden.mean()}
    return (hidden - state["mean"]) @ params["last"], state

generator = np.random.default_rng(0)
normal = lambda *shape: jnp.asarray(generator.normal(size=shape).astype(np.float32))
model = loop.Bound({"first": normal(8, 16), "last": normal(16, 3)}, {"mean": jnp.zeros(())}, apply)
x, y = normal(96, 8), generator.integers(0, 3, 96).astype(np.int32)
key, optimizer = jax.random.key(0), optax.sgd(0.05, momentum=0.9)
ballast = generator.normal(size=2**20)  # 8 MiB, so that writing takes time

def on_epoch(state, row):
    if moment == "outside" and state.epoch > at:
        signal.pause()  # however late the other process looks, it is not too late
    checkpoints.save(folder, state.epoch, {"train": state, "ballast": ballast}, keep_last=2)

def start(fresh):
    found = checkpoints.resume(folder, {"train": fresh, "ballast": ballast})["train"]
    print(int(found.epoch), flush=True)
    return found

result = loop.fit(
    key, model, optimizer, losses.softmax_cross_entropy_with_integer_labels, (x, y),
    num_epochs=6, batch_size=16, epoch="steps", start=start, on_epoch=on_epoch,
)
print(reproducibility.fingerprint(result.state), flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_training_goes_on_to_the_same_bits(request, tmp_path):
    """Processes that train, killed between and during saves, against one that is left alone."""
    folder = tmp_path / "broken"

    def start(folder, moment="never", at=0):
        process = subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(folder), moment, str(at)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        request.addfinalizer(process.stdout.close)
        request.addfinalizer(process.stderr.close)
        request.addfinalizer(process.wait)
        request.addfinalizer(process.kill)  # the last one comes first
        return process

    def output(process, code=0):
        out, err = process.communicate(timeout=200)
        assert process.returncode == code, err
        return out.split()

    def hidden(step):
        return list(folder.glob(f".step_{step:08d}.*.part"))

    unbroken = start(tmp_path / "unbroken")

    # From outside, at a moment that chance decides: the save of step 2 has begun.
    process = start(folder, "outside", 2)
    while not hidden(2) and checkpoints.latest(folder) != 2 and process.poll() is None:
        time.sleep(0.0005)
    process.kill()
    assert output(process, -signal.SIGKILL) == ["0"]
    assert checkpoints.steps(folder) in ([1], [1, 2])

    # While Orbax is at work on step 3: the arrays lie there, not yet under their name.
    begin = checkpoints.latest(folder)
    assert output(start(folder, "within", 3), -signal.SIGKILL) == [str(begin)]
    assert checkpoints.steps(folder) == [1, 2]
    assert len(hidden(3)) == 1
    assert not (hidden(3)[0] / "manifest.json").exists()
    assert not hidden(2)  # what the first kill left is gone

    # The last moment before step 4 is there: all is written, but under its hidden name.
    assert output(start(folder, "before", 4), -signal.SIGKILL) == ["2"]
    assert checkpoints.steps(folder) == [2, 3]
    assert (hidden(4)[0] / "manifest.json").exists()

    # The first moment after step 5 is there, before older ones are removed.
    assert output(start(folder, "after", 5), -signal.SIGKILL) == ["3"]
    assert checkpoints.steps(folder) == [3, 4, 5]

    begin, digest = output(start(folder))
    assert begin == "5"
    assert [begin.replace("5", "0"), digest] == output(unbroken)
    assert sorted(os.listdir(folder)) == ["step_00000005", "step_00000006"]


def test_the_state_of_a_fit_in_the_same_process(tmp_path):
    """Every part of the state matters: with the optimizer's forgotten, the bits differ."""
    key, model = jax.random.key(0), Net(5, rngs=nnx.Rngs(0))
    optimizer = optax.sgd(0.1, momentum=0.9)
    rows = jax.random.normal(jax.random.key(1), (32, 4)), jnp.arange(32, dtype=jnp.int32) % 3

    def fit(num_epochs, **options):
        loss = losses.softmax_cross_entropy_with_integer_labels
        return loop.fit(
            key, model, optimizer, loss, rows, num_epochs=num_epochs, batch_size=8, **options
        )

    whole = fit(3)
    part = fit(1, on_epoch=lambda state, row: checkpoints.save(tmp_path, state.epoch, state))
    back = checkpoints.restore(tmp_path, part.state)
    assert bits(fit(3, start=back).state, whole.state)
    forgetful = back._replace(opt_state=optimizer.init(back.params))
    assert not bits(fit(3, start=forgetful).state, whole.state)


def test_the_place_in_the_data_comes_back(tmp_path):
    import grain

    data = grain.MapDataset.source(np.arange(20)).seed(1).shuffle().to_iter_dataset().batch(4)
    whole = [batch.tolist() for batch in data]
    iterator = iter(data)
    first = [next(iterator).tolist() for _ in range(2)]
    checkpoints.save(tmp_path, 2, {}, position=iterator.get_state())
    again = iter(data)
    again.set_state(checkpoints.describe(tmp_path).position)
    assert first + [batch.tolist() for batch in again] == whole

    checkpoints.save(tmp_path, 3, {}, position=b"\x00state")
    assert checkpoints.describe(tmp_path).position == b"\x00state"
