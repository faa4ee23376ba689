"""What counts as a fit, for helpers that take any."""

import functools

import jax
import jax.numpy as jnp
import pytest

from mlnotes_jax import _protocol


def plain(x, y, *, sample_weight=None, ridge=1.0):
    return x, y, sample_weight, ridge


def drawing(key, x, y, *, ridge=1.0, **options):
    return key, x, y, ridge, options


def test_a_key_is_passed_only_to_a_fit_that_takes_one_first():
    assert _protocol.keyed(plain)("key", 1, 2, ridge=3) == (1, 2, None, 3)
    assert _protocol.keyed(drawing) is drawing
    assert _protocol.keyed(functools.partial(drawing, ridge=3))("key", 1, 2)[:4] == ("key", 1, 2, 3)
    assert _protocol.keyed(jax.jit(lambda key, x: x))(0, 5) == 5
    # Fixed beforehand, or somewhere else: the key that comes is not for it.
    assert not _protocol.takes_key(functools.partial(drawing, "mine"))
    assert not _protocol.takes_key(functools.partial(drawing, key="mine"))
    assert not _protocol.takes_key(lambda x, key: x)
    assert not _protocol.takes_key(max)  # a built-in function without a signature


def test_keywords_that_a_function_takes():
    assert _protocol.named(plain, "ridge")
    assert not _protocol.named(drawing, "start")
    assert _protocol.accepts(drawing, "start")
    assert not _protocol.accepts(plain, "start")
    assert _protocol.accepts(functools.partial(plain, ridge=2.0), "sample_weight")


def test_equal_partials_are_one_program():
    def same(**options):
        return _protocol.stable(functools.partial(plain, **options))

    assert same(ridge=2) == same(ridge=2)
    assert hash(same(ridge=2)) == hash(same(ridge=2))
    for other in ({"ridge": 3}, {"ridge": 2.0}, {"ridge": True}, {"sample_weight": 2}, {}):
        assert same(ridge=2) != same(**other)
    assert same(ridge=functools.partial(max, 1)) == same(ridge=functools.partial(max, 1))
    assert same(ridge=2)(1, 2) == (1, 2, None, 2)
    assert _protocol.accepts(same(ridge=2), "sample_weight")
    assert _protocol.takes_key(_protocol.stable(functools.partial(drawing, ridge=2)))

    traces = 0

    @functools.partial(jax.jit, static_argnames="function")
    def call(function, x):
        nonlocal traces
        traces += 1
        return function(x)

    for _ in range(2):
        scale = _protocol.stable(functools.partial(jnp.multiply, 3.0))
        assert call(scale, jnp.float32(2)) == 6
    assert traces == 1


@pytest.mark.parametrize(
    "function", [plain, functools.partial(plain, ridge=jnp.ones(2)), 3, "text"]
)
def test_what_cannot_be_compared_stays_as_it_is(function):
    assert _protocol.stable(function) is function
