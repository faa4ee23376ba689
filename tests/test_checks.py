"""Every message names the argument, what was required and what came."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes_jax import _checks


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_floats_keep_their_dtype(dtype):
    assert _checks.floating("x", jnp.ones(2, dtype)).dtype == dtype


@pytest.mark.parametrize("value", [3, [1, 2], np.array([True]), np.arange(3, dtype=np.int8)])
def test_integers_are_promoted(value):
    assert _checks.floating("x", value).dtype == jnp.float32


@pytest.mark.parametrize(
    ("check", "error", "message"),
    [
        (lambda: _checks.floating("x", "word"), TypeError, "x must be a numeric array, got str"),
        (
            lambda: _checks.floating("x", [1j]),
            TypeError,
            "x must be a real array, got dtype complex",
        ),
        (
            lambda: _checks.floating("x", [1.0], ndim=2),
            ValueError,
            r"x must be 2-D, got shape \(1,\)",
        ),
        (
            lambda: _checks.floating("x", 1.0, ndim=(1, 2)),
            ValueError,
            r"x must be 1-D or 2-D, got shape \(\)",
        ),
        (
            lambda: _checks.integer("y", [0.5]),
            TypeError,
            "y must be an integer array, got dtype float",
        ),
        (
            lambda: _checks.integer("y", np.array([0, 2**40])),
            ValueError,
            r"y must fit into int32, got 0\.\.1099511627776",
        ),
        (
            lambda: _checks.same_shape(p=jnp.ones(2), q=jnp.ones(3)),
            ValueError,
            r"p and q must have one shape, got p \(2,\), q \(3,\)",
        ),
        (
            lambda: _checks.same_length(x=jnp.ones((2, 3)), y=jnp.ones(3), z=jnp.ones(3)),
            ValueError,
            r"x, y and z must have as many rows, got x \(2, 3\), y \(3,\), z \(3,\)",
        ),
        (
            lambda: _checks.not_empty("x", jnp.ones((0, 3))),
            ValueError,
            r"x must not be empty, got shape \(0, 3\)",
        ),
        (
            lambda: _checks.finite("x", jnp.array([[1.0, 2.0], [3.0, jnp.nan]])),
            ValueError,
            "x must be finite, got nan in row 1, column 1",
        ),
        (
            lambda: _checks.finite("y", jnp.array([1.0, -jnp.inf])),
            ValueError,
            "y must be finite, got -inf in row 1",
        ),
        (lambda: _checks.positive("C", 0.0), ValueError, "C must be positive, got 0.0"),
        (lambda: _checks.positive("C", np.nan), ValueError, "C must be positive, got nan"),
        (
            lambda: _checks.not_negative("w", jnp.array([1.0, -2.0])),
            ValueError,
            "w must not be negative, got -2.0",
        ),
        (lambda: _checks.in_range("p", 1.5, 0, 1), ValueError, r"p must be in \[0, 1\], got 1.5"),
        (
            lambda: _checks.class_labels("y", jnp.array([0, 3, 1]), 3),
            ValueError,
            r"y must be in 0\.\.2 \(3 classes\), got 3 at index 1",
        ),
        (
            lambda: _checks.one_of("reduction", "avg", ("mean", "sum")),
            ValueError,
            "reduction must be one of 'mean', 'sum', got 'avg'",
        ),
        (lambda: _checks.positive_int("n", 0), ValueError, "n must be at least 1, got 0"),
        (lambda: _checks.positive_int("n", True), TypeError, "n must be an integer, got True"),
        (lambda: _checks.positive_int("n", 2.0), TypeError, r"n must be an integer, got 2\.0"),
    ],
)
def test_messages(check, error, message):
    with pytest.raises(error, match=message):
        check()


def test_values_are_not_looked_at_under_a_transformation():
    def f(x):
        _checks.finite("x", x)
        _checks.positive("x", x)
        return x

    assert jnp.isnan(jax.jit(f)(jnp.nan))
