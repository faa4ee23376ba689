"""Augmentation: each map against NumPy and SciPy, each draw against its distribution."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from mlnotes_jax.generalization import augmentation

KEY = jax.random.key(0)

RANDOM = {
    "flip": augmentation.random_flip,
    "crop": functools.partial(augmentation.random_crop, size=(5, 4), padding=2, mode="reflect"),
    "shift": functools.partial(augmentation.random_shift, max_shift=2),
    "rotation": functools.partial(augmentation.random_rotation, max_angle=0.5),
    "noise": functools.partial(augmentation.gaussian_noise, scale=0.1),
    "cutout": functools.partial(augmentation.random_cutout, size=3),
}
FLOATS_ONLY = ("rotation", "noise")


def pictures(n=6, h=7, w=5, c=2, dtype=np.float32):
    return np.random.default_rng(0).uniform(1, 2, (n, h, w, c)).astype(dtype)


def padded(x, offset, mode, fill):
    """The peer of `shift`: pad with NumPy, and cut."""
    room = 4
    options = {"constant_values": fill} if mode == "constant" else {}
    wide = np.pad(x, ((room, room), (room, room), (0, 0)), mode=mode, **options)
    top, left = room - offset[0], room - offset[1]
    return wide[top : top + x.shape[0], left : left + x.shape[1]]


# Maps


def test_flip():
    x = pictures()
    np.testing.assert_array_equal(augmentation.flip(x), x[:, :, ::-1])
    np.testing.assert_array_equal(augmentation.flip(x[0], axis="height"), x[0, ::-1])
    np.testing.assert_array_equal(augmentation.flip(augmentation.flip(x)), x)


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
def test_shift_and_crop_equal_numpy(mode):
    x = pictures()[0]
    for offset in itertools.product((-4, -1, 0, 3), (-3, 0, 2)):
        moved = augmentation.shift(x, offset, mode=mode, fill=0.5)
        np.testing.assert_array_equal(moved, padded(x, offset, mode, 0.5))
    cut = augmentation.crop(x, [2, 1], size=(3, 4), mode=mode)
    np.testing.assert_array_equal(cut, x[2:5, 1:5])
    # A fill for each channel
    moved = augmentation.shift(x, [0, 1], fill=[3.0, 4.0])
    assert (np.asarray(moved)[:, 0] == [3, 4]).all()


def test_shift_by_more_than_the_picture():
    x = pictures()[0]
    assert not np.asarray(augmentation.shift(x, [9, 0])).any()
    far = augmentation.shift(x, [-12, 0], mode="reflect")  # one period of 2 (7 - 1)
    np.testing.assert_array_equal(far, x)
    line = pictures(h=1)[0]
    np.testing.assert_array_equal(augmentation.shift(line, [3, 0], mode="reflect"), line)


@pytest.mark.parametrize("degrees", [0.0, 15.0, -30.0, 45.0, 90.0, 180.0, 217.0])
def test_rotate_equals_scipy(degrees, x64):
    x = pictures(dtype=np.float64)[0]
    ours = augmentation.rotate(x, np.deg2rad(degrees), fill=0.25)
    theirs = ndimage.rotate(
        x, degrees, axes=(1, 0), reshape=False, order=1, mode="grid-constant", cval=0.25
    )
    # SciPy turns anticlockwise if its axes are (columns, rows). At a pixel's centre rounding of
    # the angle may choose another neighbour, with a share of 1e-15.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_quarter_turns_are_exact(x64):
    x = pictures(h=6, w=6, dtype=np.float64)[0]
    for quarter in range(4):
        turned = augmentation.rotate(x, quarter * np.pi / 2)
        np.testing.assert_allclose(turned, np.rot90(x, quarter), atol=1e-12)


def test_gradient_of_a_rotation(x64):
    x = pictures(dtype=np.float64)[0]
    away = np.random.default_rng(1).normal(size=x.shape)
    loss = jax.jit(lambda x, angle: (away * augmentation.rotate(x, angle)).sum())
    slope = jax.grad(loss, argnums=(0, 1))(x, 0.3)
    # It is linear in x: exact. In the angle it is smooth between the grid lines.
    way = np.random.default_rng(2).normal(size=x.shape)
    linear = loss(way, 0.3) - loss(np.zeros_like(x), 0.3)
    np.testing.assert_allclose((slope[0] * way).sum(), linear, rtol=1e-12)
    step = 1e-6
    ahead, behind = loss(x, 0.3 + step), loss(x, 0.3 - step)
    np.testing.assert_allclose(slope[1], (ahead - behind) / (2 * step), rtol=1e-7)


def test_cutout_equals_numpy():
    x = pictures()[0]
    for size in (1, 2, 3):
        for r, c in itertools.product((0, 3, 6), (0, 4)):
            expected = x.copy()
            top, left = r - size // 2, c - size // 2
            expected[max(top, 0) : top + size, max(left, 0) : left + size] = 9
            np.testing.assert_array_equal(
                augmentation.cutout(x, [r, c], size=size, fill=9), expected
            )


def test_mix_by_hand():
    x, y = pictures(n=3), np.eye(3, dtype=np.float32)
    partner, share = np.array([1, 2, 2]), np.array([0.25, 0.5, 0.3], np.float32)
    mixed, labels = augmentation.mix(x, y, partner, share)
    np.testing.assert_allclose(mixed[0], 0.25 * x[0] + 0.75 * x[1], rtol=1e-6)
    np.testing.assert_allclose(mixed[2], x[2], rtol=1e-6)
    np.testing.assert_allclose(labels, [[0.25, 0.75, 0], [0, 0.5, 0.5], [0, 0, 1]], rtol=1e-6)
    spoilt, _ = jax.jit(augmentation.mix)(x, y, partner + 1, share)
    assert np.isnan(np.asarray(spoilt)).any(axis=(1, 2, 3)).tolist() == [False, True, True]


# Draws


@pytest.mark.parametrize("name", RANDOM)
def test_a_batch_is_one_picture_each(name):
    x, draw = pictures(), RANDOM[name]
    batch = draw(KEY, x)
    keys = jax.random.split(KEY, len(x))
    for i in (0, 3):
        # Noise and rotation may be fused otherwise
        np.testing.assert_allclose(batch[i], draw(keys[i], x[i]), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(batch, draw(KEY, x))
    assert not np.array_equal(batch, draw(jax.random.key(1), x))
    # The pictures do not all get the same map
    same = np.asarray(draw(KEY, np.broadcast_to(x[:1], (6, *x.shape[1:]))))
    assert len(np.unique(same.reshape(6, -1), axis=0)) > 1
    if name in ("crop", "rotation"):  # inside a program, and under vmap over keys
        compiled = jax.jit(jax.vmap(draw, (0, None)))(keys[:2], x)
        np.testing.assert_allclose(compiled[1], draw(keys[1], x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64, jnp.uint8])
def test_dtypes_are_kept(dtype, x64):
    x = jnp.asarray(pictures()[0]).astype(dtype)
    for name, draw in RANDOM.items():
        if dtype == jnp.float64 and name not in FLOATS_ONLY:
            continue  # they only move values
        if name in FLOATS_ONLY and dtype == jnp.uint8:
            with pytest.raises(TypeError, match=r"x must be floating-point.* got dtype uint8"):
                draw(KEY, x)
        else:
            assert draw(KEY, x).dtype == dtype
    if dtype != jnp.uint8:
        mixed, labels = augmentation.mixup(KEY, x[:5], jnp.eye(5, dtype=jnp.float32))
        assert mixed.dtype == dtype
        assert labels.dtype == jnp.float32


def test_flips_have_their_probability():
    x = np.arange(2.0, dtype=np.float32).reshape(1, 2, 1) * np.ones((4000, 1, 1, 1), np.float32)
    for p in (0.0, 0.3, 1.0):
        flipped = np.asarray(augmentation.random_flip(KEY, x, probability=p))[:, 0, 0, 0]
        # Four standard deviations
        assert abs(flipped.mean() - p) <= 4 * np.sqrt(p * (1 - p) / 4000)
    low = augmentation.random_flip(KEY, np.swapaxes(x, 1, 2), probability=1.0, axis="height")
    assert (np.asarray(low)[:, 0] == 1).all()


def test_moves_are_uniform():
    # A picture whose pixels are their own numbers tells where it was cut
    x = np.broadcast_to(np.arange(12, dtype=np.int32).reshape(1, 3, 4, 1), (6000, 3, 4, 1))
    first = np.asarray(augmentation.random_crop(KEY, x, size=(2, 2)))[:, 0, 0, 0]
    counts = np.bincount(first, minlength=12).reshape(3, 4)
    assert not counts[2].any()
    assert not counts[:, 3].any()
    assert stats.chisquare(counts[:2, :3].ravel()).pvalue > 1e-3
    # Shifts: every one of the 25, and no other
    dot = np.zeros((6000, 5, 5, 1), np.float32)
    dot[:, 2, 2] = 1
    moved = np.asarray(augmentation.random_shift(KEY, dot, max_shift=2))
    assert stats.chisquare(moved.sum(axis=0).ravel()).pvalue > 1e-3
    np.testing.assert_array_equal(
        moved[:9], augmentation.random_crop(KEY, dot, size=(5, 5), padding=2)[:9]
    )
    covered = 1 - np.asarray(augmentation.random_cutout(KEY, np.ones_like(dot), size=1))
    assert stats.chisquare(covered.sum(axis=0).ravel()).pvalue > 1e-3


def test_angles_and_noise():
    # A picture that rises to the right by 1 for each pixel: its slope after the turn is the cosine
    ramp = np.broadcast_to(np.arange(5, dtype=np.float32)[None, None, :, None], (4000, 5, 5, 1))
    turned = np.asarray(augmentation.random_rotation(KEY, ramp, max_angle=0.6))
    sine = turned[:, 1, 2, 0] - turned[:, 2, 2, 0]  # one pixel up from the centre
    angles = np.arcsin(np.clip(sine, -1, 1))
    assert stats.kstest(angles, stats.uniform(-0.6, 1.2).cdf).pvalue > 1e-3
    noise = np.asarray(augmentation.gaussian_noise(KEY, np.zeros((4000, 1, 1, 1)), scale=0.3))
    assert stats.kstest(noise.ravel(), stats.norm(0, 0.3).cdf).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_has_beta_shares(alpha):
    n = 4000
    x = np.arange(n, dtype=np.float32)[:, None]
    mixed, labels = augmentation.mixup(
        KEY, x, np.eye(2, dtype=np.float32)[np.arange(n) % 2], alpha=alpha
    )
    # Rows and labels are mixed alike: a row that has both classes shows its share.
    both = np.asarray(labels)
    np.testing.assert_allclose(both.sum(axis=1), 1, rtol=1e-5)
    share = np.where(np.arange(n) % 2 == 0, both[:, 0], both[:, 1])
    seen = share < 1
    # A partner of the same class hides its share; those of the other class are a half of all
    assert abs(seen.mean() - 0.5) < 0.05 + (alpha < 1) * 0.05
    sample = share[seen]
    if alpha == 1:
        assert stats.kstest(sample, stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    # E λ(1-λ) = α / (2 (2α + 1)), over all rows with such a partner: four standard errors
    product = sample * (1 - sample)
    mean = alpha / (2 * (2 * alpha + 1))
    assert abs(product.sum() / (n / 2) - mean) < 0.015
    # Every row is a partner once: what the partners bring sums to what the rows lose
    other = (np.asarray(mixed)[:, 0][seen] - sample * x[seen, 0]) / (1 - sample)
    firm = (1 - sample) > 0.05  # float32 leaves digits of a partner's number
    nearest = np.round(other[firm])
    np.testing.assert_allclose(other[firm], nearest, atol=0.05)
    assert len(np.unique(nearest)) == firm.sum()


def test_compose():
    x = pictures()
    noise, move = RANDOM["noise"], RANDOM["shift"]
    both = augmentation.compose(move, noise)
    first, second = jax.random.split(KEY)
    np.testing.assert_allclose(both(KEY, x), noise(second, move(first, x)), rtol=1e-6)
    np.testing.assert_array_equal(augmentation.compose()(KEY, x), x)
    traces = 0

    @jax.jit
    def compiled(key, x):
        nonlocal traces
        traces += 1
        return both(key, x)

    np.testing.assert_allclose(compiled(KEY, x), both(KEY, x), rtol=1e-6, atol=1e-6)
    compiled(jax.random.key(5), x + 1)
    assert traces == 1


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**31 - 1), st.floats(-3, 3, width=32), st.floats(-3, 3, width=32))
def test_maps_of_grey_values_are_linear(seed, a, b):
    # The same key draws the same map, whatever the picture; without a fill it is linear.
    key, x = jax.random.key(seed), pictures(n=2)
    other = x[::-1].copy()
    for name in ("flip", "crop", "shift", "rotation", "cutout"):
        draw = RANDOM[name]
        mixed = draw(key, np.float32(a) * x + np.float32(b) * other)
        parts = np.float32(a) * np.asarray(draw(key, x)) + np.float32(b) * np.asarray(
            draw(key, other)
        )
        np.testing.assert_allclose(mixed, parts, atol=1e-5)  # sums of four terms of at most 12


def test_noise_is_a_penalty_of_the_gradient(x64):
    # Of a linear model, exactly: noisy copies along the axes are ridge regression.
    rng = np.random.default_rng(3)
    rows, target, sigma = rng.normal(size=(30, 4)), rng.normal(size=30), 0.7
    away = sigma * 2.0 * np.concatenate([np.eye(4), -np.eye(4)])  # mean 0, covariance σ² I
    copies = (rows[:, None] + away[None]).reshape(-1, 4)
    noisy = np.linalg.lstsq(copies, np.repeat(target, 8), rcond=None)[0]
    ridge = np.linalg.solve(rows.T @ rows + 30 * sigma**2 * np.eye(4), rows.T @ target)
    np.testing.assert_allclose(noisy, ridge, rtol=1e-12)


# What comes in


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: augmentation.flip(x, axis="depth"), ValueError, "axis must be one of 'width'"),
        (lambda x: augmentation.flip(x[0, 0]), ValueError, "x must have axes (..., h, w, c)"),
        (lambda x: augmentation.flip("cat"), TypeError, "x must be an array, got str"),
        (
            lambda x: augmentation.random_flip(KEY, x, probability=1.5),
            ValueError,
            "probability must be in [0, 1], got 1.5",
        ),
        (lambda x: augmentation.random_flip(KEY, x[None]), ValueError, "x must be 3-D or 4-D"),
        (
            lambda x: augmentation.random_crop(KEY, x, size=(8, 5)),
            ValueError,
            "size must fit into the padded picture (7, 5), got (8, 5)",
        ),
        (lambda x: augmentation.random_crop(KEY, x, size=5), TypeError, "size must be a pair"),
        (
            lambda x: augmentation.random_crop(KEY, x, size=(5, 5), mode="wrap"),
            ValueError,
            "mode must be one of 'constant', 'edge', 'reflect'",
        ),
        (
            lambda x: augmentation.random_shift(KEY, x, max_shift=-1),
            ValueError,
            "max_shift must be at least 0",
        ),
        (
            lambda x: augmentation.random_shift(KEY, x, max_shift=1.0),
            TypeError,
            "max_shift must be an integer",
        ),
        (
            lambda x: augmentation.shift(x[0], [0.5, 1.0]),
            TypeError,
            "offset must be an integer array",
        ),
        (lambda x: augmentation.shift(x[0], [1]), ValueError, "offset must have shape (2,)"),
        (lambda x: augmentation.shift(x, [1, 1]), ValueError, "x must be 3-D"),
        (
            lambda x: augmentation.cutout(x[0], [1, 1], size=2, fill=[0.0, 1.0, 2.0]),
            ValueError,
            "fill must have shape () or (2,), got (3,)",
        ),
        (
            lambda x: augmentation.random_rotation(KEY, x, max_angle=-1.0),
            ValueError,
            "max_angle must not be negative",
        ),
        (
            lambda x: augmentation.gaussian_noise(KEY, x, scale=-1.0),
            ValueError,
            "scale must not be negative",
        ),
        (
            lambda x: augmentation.mixup(KEY, x, np.arange(6)),
            TypeError,
            "y must be probabilities: use labels.one_hot; got dtype int",
        ),
        (
            lambda x: augmentation.mixup(KEY, x, np.eye(5)),
            ValueError,
            "x and y must have as many rows",
        ),
        (
            lambda x: augmentation.mixup(KEY, x, np.eye(6), alpha=0.0),
            ValueError,
            "alpha must be positive",
        ),
        (
            lambda x: augmentation.mix(x, np.eye(6), np.arange(6) + 1, np.ones(6)),
            ValueError,
            "partner must be in [0, 5], got 6",
        ),
        (lambda x: augmentation.compose(3), TypeError, "transforms must be functions (key, x)"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call(pictures())
