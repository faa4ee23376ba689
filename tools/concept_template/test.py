"""TITLE against a closed form and NumPy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mlnotes_jax.CHAPTER import CONCEPT
from mlnotes_jax.demos.CHAPTER import CONCEPT as demo


def test_closed_form():
    assert CONCEPT.FUNCTION(jnp.array([3.0, 4.0])) == 25


@settings(deadline=None, max_examples=25)
@given(npst.arrays(np.float32, (5,), elements=st.floats(-9, 9, width=32)))
def test_agrees_with_numpy(x):
    # float32: five products and their sum, a few ulps of the largest
    np.testing.assert_allclose(CONCEPT.FUNCTION(x), np.dot(x, x), rtol=1e-6)


def test_vmap_over_scale_equals_a_loop():
    x, scales = jnp.arange(3.0), jnp.array([0.5, 2.0])
    batched = jax.vmap(lambda s: CONCEPT.FUNCTION(x, scale=s))(scales)
    chex.assert_trees_all_close(batched, jnp.stack([CONCEPT.FUNCTION(x, scale=s) for s in scales]))


def test_second_call_does_not_recompile():
    once = jax.jit(chex.assert_max_traces(lambda x, s: CONCEPT.FUNCTION(x, scale=s), n=1))
    chex.assert_trees_all_close(once(jnp.ones(3), 1.0), CONCEPT.FUNCTION(jnp.ones(3)))
    once(jnp.zeros(3), 2.0)


def test_gradient(x64):
    chex.assert_numerical_grads(CONCEPT.FUNCTION, (jnp.array([1.0, -2.0]),), order=1)


def test_bad_input():
    with pytest.raises(ValueError, match=r"x must be 1-D, got shape \(2, 2\)"):
        CONCEPT.FUNCTION(jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="scale must be positive, got -1"):
        CONCEPT.FUNCTION(jnp.ones(2), scale=-1.0)


def test_demo():
    result = demo.run(jax.random.key(0), quick=True)
    assert len(result.values) == 100
