"""Encodings and counts against scikit-learn and NumPy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import preprocessing
from sklearn.utils.class_weight import compute_class_weight

from mlnotes_jax.data import labels

#: One list of labels of any one type.
SOME_LABELS = st.one_of(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5), min_size=1
    ),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1),
    st.lists(st.booleans(), min_size=1),
    st.lists(st.integers(-(2**50), 2**50).map(float), min_size=1),
)


@settings(deadline=None, max_examples=25)
@given(SOME_LABELS)
def test_decode_inverts_encode(some):
    encoding = labels.fit(some)
    codes = labels.encode(encoding, some)
    assert codes.dtype == np.int32
    assert labels.decode(encoding, codes).tolist() == some
    assert sorted(set(codes.tolist())) == list(range(encoding.num_classes))
    peer = preprocessing.LabelEncoder().fit(some)
    assert peer.classes_.tolist() == encoding.classes.tolist()
    np.testing.assert_array_equal(peer.transform(some), codes)


@pytest.mark.parametrize(
    "some",
    [
        np.array(["b", "a", "b"]),
        np.array(["b", "a", "b"], object),
        np.array([7, -1, 7], np.int8),
        np.array([7, 0, 7], np.uint64),
        np.array([True, False, True]),
        jnp.array([7, -1, 7]),
        jnp.array([7.0, -0.0, 7.0]),
        (np.str_("b"), "a", "b"),
        [np.int64(7), 1, 7],
    ],
    ids=str,
)
def test_kinds_of_arrays(some):
    encoding = labels.fit(some)
    assert labels.encode(encoding, some).tolist() == [1, 0, 1]
    assert labels.decode(encoding, jnp.array([[1], [0]])).shape == (2, 1)


def test_classes_in_an_order_of_ones_own():
    sizes = labels.Encoding(np.array(["small", "medium", "large"]))
    assert labels.encode(sizes, ["large", "small", "medium"]).tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match="classes must be distinct"):
        labels.encode(labels.Encoding(np.array(["a", "b", "a"])), ["a"])


def test_an_unknown_label_is_named_with_its_row():
    encoding = labels.fit(["cat", "dog"])
    with pytest.raises(
        ValueError, match=r"labels\[2\] is 'cow', .* not one of the 2 classes 'cat'"
    ):
        labels.encode(encoding, ["dog", "cat", "cow", "ant"])
    with pytest.raises(ValueError, match=r"labels\[0\] is 5"):
        labels.encode(labels.fit(range(5)), [5])
    with pytest.raises(TypeError, match="labels must be strings, as the classes, got integers"):
        labels.encode(encoding, [0, 1])


@pytest.mark.parametrize(
    ("some", "error", "message"),
    [
        (["a", 1], TypeError, "one type, got strings in row 0 and integers in row 1: 'a' and 1"),
        ([1, True], TypeError, "one type, got integers in row 0 and bools in row 1"),
        ([1, 2.0], TypeError, "one type, got integers in row 0 and floats in row 1"),
        (["a", None], TypeError, "got None of type NoneType in row 1"),
        (np.array(["a", None]), TypeError, "got None of type NoneType in row 1"),
        ([[1], [2]], TypeError, r"got \[1\] of type list in row 0"),
        (np.array([1j]), TypeError, "got dtype complex128"),
        ("cat", TypeError, "labels must be a sequence of labels, got str"),
        ([], ValueError, r"labels must be a non-empty vector, got shape \(0,\)"),
        (
            np.zeros((2, 2), int),
            ValueError,
            r"labels must be a non-empty vector, got shape \(2, 2\)",
        ),
        ([1.0, 0.5], ValueError, "0.5 in row 1 is not a whole number"),
        ([1.0, np.nan], ValueError, "nan in row 1 is not a whole number"),
        ([1, 2**63], ValueError, "labels must fit int64, got 9223372036854775808 in row 1"),
        (np.array([1, 2**63], np.uint64), ValueError, "must fit int64, got 9223372036854775808 in"),
        (["a", "b\0"], ValueError, "in row 1 ends in a NUL"),
    ],
    ids=str,
)
def test_what_are_no_labels(some, error, message):
    with pytest.raises(error, match=message):
        labels.fit(some)


def test_encoding_is_for_the_host():
    encoding = labels.fit([1, 2])
    with pytest.raises(TypeError, match="labels must be concrete"):
        jax.jit(lambda y: labels.encode(encoding, y))(jnp.array([1]))
    with pytest.raises(TypeError, match="codes must be concrete"):
        jax.jit(lambda y: labels.decode(encoding, y))(jnp.array([1]))


def test_a_wrong_code_is_not_decoded():
    encoding = labels.fit(["a", "b"])
    with pytest.raises(ValueError, match=r"codes must be in 0..1 \(2 classes\), got -1 at index 1"):
        labels.decode(encoding, [0, -1])
    with pytest.raises(TypeError, match="codes must be integers, got dtype float64"):
        labels.decode(encoding, [0.0])


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_one_hot(dtype):
    codes = np.array([2, 0, 1, 2])
    rows = labels.one_hot(codes, 3, dtype=dtype)
    assert rows.dtype == (dtype or jnp.float32)
    peer = preprocessing.OneHotEncoder(sparse_output=False).fit_transform(codes[:, None])
    np.testing.assert_array_equal(rows.astype(jnp.float32), peer)
    chex.assert_trees_all_equal(
        jax.jit(labels.one_hot, static_argnums=1)(codes, 3), labels.one_hot(codes, 3)
    )
    chex.assert_trees_all_equal(
        jax.vmap(lambda c: labels.one_hot(c, 3))(codes), labels.one_hot(codes, 3)
    )
    assert rows.argmax(axis=-1).tolist() == codes.tolist()  # the inverse map


def test_one_hot_of_a_wrong_code():
    with pytest.raises(ValueError, match=r"codes must be in 0..2 \(3 classes\), got 3 at index 1"):
        labels.one_hot([0, 3], 3)
    rows = jax.jit(lambda c: labels.one_hot(c, 3))(jnp.array([[0, 3], [-1, 2]]))
    assert jnp.isnan(rows).all(axis=-1).tolist() == [[False, True], [True, False]]
    assert rows[0, 0].tolist() == [1, 0, 0]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8)), min_size=6, max_size=6))
def test_counts_agree_with_numpy(rows):
    codes, weight = map(np.array, zip(*rows, strict=True))
    assert labels.counts(codes, 4).tolist() == np.bincount(codes, minlength=4).tolist()
    weighted = labels.counts(codes, 4, sample_weight=weight / 8)  # eighths: exact in float32
    np.testing.assert_array_equal(weighted, np.bincount(codes, weight / 8, minlength=4))
    masked = labels.counts(codes, 4, sample_weight=weight > 4)
    assert masked.dtype == jnp.int32
    assert masked.tolist() == np.bincount(codes[weight > 4], minlength=4).tolist()


def test_counts_under_transformations():
    codes = jnp.array([0, 2, 2, 1, 2])
    folds = jnp.array([[True, True, True, False, False], [False, False, True, True, True]])
    once = jax.jit(chex.assert_max_traces(lambda c, w: labels.counts(c, 3, sample_weight=w), n=1))
    batched = jax.vmap(lambda w: once(codes, w))(folds)
    assert batched.tolist() == [[1, 0, 2], [0, 1, 2]]
    batched = jax.vmap(lambda w: once(codes + 0, w))(~folds)
    assert batched.tolist() == [[0, 1, 1], [1, 0, 1]]


def test_counts_of_bfloat16_weights_do_not_stop_at_256():
    weight = jnp.ones(1000, jnp.bfloat16)
    total = labels.counts(jnp.zeros(1000, jnp.int32), 1, sample_weight=weight)
    assert (total.dtype, total.tolist()) == (jnp.float32, [1000])


def test_counts_are_linear_in_the_weights(x64):
    codes = jnp.array([0, 2, 2])
    chex.assert_numerical_grads(
        lambda w: labels.counts(codes, 3, sample_weight=w), (jnp.array([1.0, 2.0, 3.0]),), order=1
    )


def test_counts_of_a_wrong_code():
    with pytest.raises(ValueError, match=r"codes must be in 0..2 \(3 classes\), got 3 at index 2"):
        labels.counts([0, -1, 3], 3, sample_weight=[1.0, 0.0, 1.0])
    assert labels.counts([0, -1], 3, sample_weight=[True, False]).tolist() == [1, 0, 0]  # padding
    spoilt = jax.jit(lambda c: labels.counts(c, 3))
    assert spoilt(jnp.array([0, 3])).tolist() == [-1, -1, -1]
    assert spoilt(jnp.array([0, -1])).tolist() == [-1, -1, -1]
    floating = jax.jit(lambda c, w: labels.counts(c, 3, sample_weight=w))
    assert jnp.isnan(floating(jnp.array([0, 3]), jnp.ones(2))).all()
    assert floating(jnp.array([0, 3]), jnp.array([1.0, 0.0])).tolist() == [1, 0, 0]


def test_balanced_weights():
    codes = np.array([0, 0, 0, 1, 2, 2])
    weights = labels.balanced_weights(codes, 3)
    # one division in float32
    np.testing.assert_allclose(
        weights, compute_class_weight("balanced", classes=np.arange(3), y=codes), rtol=1e-6
    )
    np.testing.assert_allclose(weights[codes].sum(), len(codes), rtol=1e-6)
    absent = labels.balanced_weights(codes, 5)
    chex.assert_trees_all_equal(absent, jnp.concatenate([weights, jnp.zeros(2)]))
    sampled = labels.balanced_weights(codes, 3, sample_weight=jnp.array([0.0, 0, 1, 1, 1, 1]))
    np.testing.assert_allclose(sampled, [4 / 3, 4 / 3, 2 / 3], rtol=1e-6)
    assert jnp.isnan(jax.jit(lambda c: labels.balanced_weights(c, 3))(jnp.array([0, 3]))).all()


def test_bad_input():
    with pytest.raises(TypeError, match="codes must be an integer array, got dtype float32"):
        labels.one_hot([0.5], 2)
    with pytest.raises(TypeError, match="dtype must be floating, got int32"):
        labels.one_hot([0], 2, dtype=jnp.int32)
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        labels.counts([0], 0)
    with pytest.raises(ValueError, match=r"codes must be 1-D, got shape \(1, 1\)"):
        labels.counts([[0]], 1)
    with pytest.raises(ValueError, match="codes and sample_weight must have as many rows"):
        labels.counts([0, 1], 2, sample_weight=[1.0])
    with pytest.raises(ValueError, match="sample_weight must not be negative, got -1"):
        labels.counts([0, 1], 2, sample_weight=[1.0, -1.0])
    with pytest.raises(ValueError, match=r"sample_weight must be 1-D, got shape \(\)"):
        labels.counts([0], 1, sample_weight=True)
