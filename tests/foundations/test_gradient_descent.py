"""Gradient descent against closed forms on quadratics, Optax and PyTorch."""

import itertools
import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlnotes_jax.demos.foundations import gradient_descent as demo
from mlnotes_jax.foundations import gradient_descent as gd

CURVATURES = np.array([1.0, 2.0, 10.0], np.float32)


def bowl(x, curvatures):
    return 0.5 * (curvatures * x**2).sum()


def squared(params, batch):
    x, y = batch
    return jnp.square(x @ params["w"] + params["b"] - y).mean()


def rows(n=10, d=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)).astype(np.float32), rng.normal(size=n).astype(np.float32)


def zeros(d=2):
    return {"w": jnp.zeros(d), "b": jnp.zeros(())}


walk_down_bowl = jax.jit(
    lambda rate, start, curvatures: gd.gradient_descent(
        bowl, start, curvatures, learning_rate=rate, num_steps=20
    )
)

# Quadratics


def test_path_on_a_quadratic_is_a_power():
    walk = walk_down_bowl(0.15, np.ones(3, np.float32), CURVATURES)
    steps = np.arange(21)[:, None]
    # float32: twenty products, each rounded
    np.testing.assert_allclose(walk.path, (1 - 0.15 * CURVATURES) ** steps, rtol=1e-5)
    path = np.asarray(walk.path)
    np.testing.assert_allclose(walk.loss, 0.5 * (CURVATURES * path**2).sum(1), rtol=1e-6)
    norms = np.linalg.norm(CURVATURES * path, axis=1)
    np.testing.assert_allclose(walk.gradient_norm, norms, rtol=1e-6)
    np.testing.assert_array_equal(walk.params, walk.path[-1])


@pytest.mark.parametrize(("share", "diverges"), [(0.5, False), (0.99, False), (1.01, True)])
def test_stability_limit(share, diverges):
    rate = share * gd.stable_learning_rate(CURVATURES)
    # Only the steepest direction: the others hide the divergence at first.
    walk = walk_down_bowl(rate, np.array([0, 0, 1], np.float32), CURVATURES)
    assert bool(walk.diverged) == diverges
    factor = gd.contraction_factor(CURVATURES, learning_rate=rate)
    assert (factor > 1) == diverges
    np.testing.assert_allclose(walk.path[-1, 2], (1 - 2 * share) ** 20, rtol=1e-4)


def test_converged_is_told_by_the_gradient():
    def converged(tolerance):
        return gd.gradient_descent(
            lambda x: x**2, 1.0, learning_rate=0.25, num_steps=3, tolerance=tolerance
        ).converged

    assert converged(0.25)  # the gradient is 2 * (1/2)^3
    assert not converged(0.2499)


def test_a_loss_that_leaves_the_numbers_has_diverged():
    def ends(f, start, rate):
        return gd.gradient_descent(f, start, learning_rate=rate, num_steps=100)

    assert ends(lambda x: x**4, 10.0, 1.0).diverged  # to infinity and NaN
    assert ends(lambda x: -jnp.exp(x), 1.0, 1.0).diverged  # to minus infinity
    assert not ends(lambda x: jnp.cosh(x), 1.0, 0.1).diverged


spectra = st.lists(st.floats(0.125, 8.0, width=32), min_size=2, max_size=5)


@settings(deadline=None, max_examples=25)
@given(spectra, st.floats(0.0625, 3.0, width=32))
def test_no_rate_beats_the_best(spectrum, share):
    eigenvalues = np.array(spectrum, np.float32)
    kappa = eigenvalues.max() / eigenvalues.min()
    best = gd.best_learning_rate(eigenvalues)
    factor = gd.contraction_factor(eigenvalues, learning_rate=best)
    # float32: factors are differences of numbers up to 2
    np.testing.assert_allclose(factor, (kappa - 1) / (kappa + 1), atol=1e-6)
    other = gd.contraction_factor(eigenvalues, learning_rate=share * best)
    assert other >= factor - 1e-6
    stable = gd.stable_learning_rate(eigenvalues)
    assume(abs(share * best / stable - 1) > 1e-5)  # at the limit the factor is 1
    assert (other < 1) == (share * best < stable)


def test_rates_of_hopeless_spectra():
    assert np.isinf(gd.stable_learning_rate(np.zeros(2)))
    assert np.isnan(jax.jit(gd.stable_learning_rate)(jnp.array([-1.0, 2.0])))
    assert np.isnan(jax.jit(gd.best_learning_rate)(jnp.array([-1.0, 2.0])))
    assert gd.contraction_factor(jnp.array([-1.0, 2.0]), learning_rate=0.1) == 1.1


# Peers


def test_one_epoch_equals_optax_sgd():
    x, y = rows()
    rates = np.array([0.1, 0.05, 0.2], np.float32)
    ours = gd.minimize(
        jax.random.key(0), squared, zeros(), (x, y), batch_size=4, num_epochs=1,
        learning_rate=rates, shuffle=False,
    )  # fmt: skip
    params, losses = zeros(), []
    for rate, batch in zip(rates, [slice(0, 4), slice(4, 8), slice(8, 10)], strict=True):
        optimizer = optax.sgd(float(rate))
        value, grad = jax.value_and_grad(squared)(params, (x[batch], y[batch]))
        updates, _ = optimizer.update(grad, optimizer.init(params))
        params = optax.apply_updates(params, updates)
        losses.append(value)
    # The same operations in another program: a rounding each
    chex.assert_trees_all_close(ours.params, params, rtol=1e-6)
    np.testing.assert_allclose(ours.batch_loss[0], losses, rtol=1e-6)


def test_full_batch_equals_torch(torch):
    x, y = rows()
    layer = torch.nn.Linear(2, 1)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(25):
        optimizer.zero_grad()
        left = layer(torch.tensor(x))[:, 0] - torch.tensor(y)
        left.square().mean().backward()
        optimizer.step()
    ours = train_full(zeros(), (x, y))
    # 25 steps, a float32 rounding each, on numbers of about 1
    np.testing.assert_allclose(ours.params["w"], layer.weight.detach()[0], atol=1e-6)
    np.testing.assert_allclose(ours.params["b"], layer.bias.detach()[0], atol=1e-6)


@jax.jit
def train_full(params, data):
    return gd.minimize(
        jax.random.key(0), squared, params, data, batch_size=10, num_epochs=25, learning_rate=0.1
    )


def test_full_batch_is_gradient_descent():
    data = rows()
    walk = gd.gradient_descent(squared, zeros(), data, learning_rate=0.1, num_steps=25)
    ours = train_full(zeros(), data)
    np.testing.assert_allclose(ours.epoch_loss, walk.loss, rtol=1e-6)
    np.testing.assert_allclose(ours.batch_loss[:, 0], walk.loss[:-1], rtol=1e-6)
    chex.assert_trees_all_close(ours.params, walk.params, rtol=1e-5)


# Mini-batches


def test_every_epoch_sees_every_row_once_in_a_new_order():
    def seen(total, batch):  # the loss is what was in the batch; the gradient is 0
        return (batch * 10.0 ** jnp.arange(len(batch), dtype=jnp.float32)).sum() + 0 * total

    data = jnp.arange(1.0, 8.0)
    result = gd.minimize(
        jax.random.key(1), seen, 0.0, data, batch_size=3, num_epochs=4, learning_rate=1.0
    )
    digits = [["".join(str(int(v))[::-1]) for v in epoch] for epoch in result.batch_loss]
    assert [[len(batch) for batch in epoch] for epoch in digits] == [[3, 3, 1]] * 4
    orders = ["".join(epoch) for epoch in digits]
    assert all(sorted(order) == list("1234567") for order in orders)
    assert len(set(orders)) == 4


def test_dropping_the_remainder_leaves_rows_out():
    data = jnp.arange(1.0, 8.0)
    mean = partial(gd.minimize, loss=lambda p, batch: batch.mean() + 0 * p, params=0.0, data=data)
    options = {"batch_size": 3, "num_epochs": 2, "learning_rate": 1.0, "shuffle": False}
    kept = mean(jax.random.key(0), **options)
    dropped = mean(jax.random.key(0), drop_remainder=True, **options)
    assert kept.batch_loss.tolist() == [[2.0, 5.0, 7.0]] * 2
    assert dropped.batch_loss.tolist() == [[2.0, 5.0]] * 2


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 5), st.booleans())
def test_counts_are_those_of_a_loop(n, batch_size, epochs, drop):
    assume(batch_size <= n)
    sizes = [
        len(range(n)[first : first + batch_size])
        for _ in range(epochs)
        for first in range(0, n, batch_size)
    ]
    sizes = [size for size in sizes if size == batch_size or not drop]
    count = gd.counts(n, batch_size=batch_size, num_epochs=epochs, drop_remainder=drop)
    assert count == (len(sizes) // epochs, len(sizes), sizes[-1], sum(sizes))


def test_minibatch_variance_over_every_possible_batch(x64):
    data = tuple(a.astype(np.float64) for a in rows(n=6))
    params = {"w": jnp.array([0.3, -1.0]), "b": jnp.array(0.5)}
    gradients = gd.example_gradients(squared, params, data)
    flat = np.concatenate([gradients["b"][:, None], gradients["w"]], axis=1)
    whole = jax.grad(squared)(params, data)
    np.testing.assert_allclose(flat.mean(0)[1:], whole["w"], rtol=1e-12)
    for size in (1, 2, 4, 6):
        without = [flat[list(c)].mean(0) for c in itertools.combinations(range(6), size)]
        ours = gd.minibatch_variance(gradients, batch_size=size)
        ours = np.append(ours["b"], ours["w"])
        np.testing.assert_allclose(ours, np.var(without, axis=0), rtol=1e-12, atol=1e-15)
    again = [flat[list(c)].mean(0) for c in itertools.product(range(6), repeat=3)]
    ours = gd.minibatch_variance(gradients, batch_size=3, replacement=True)
    np.testing.assert_allclose(np.append(ours["b"], ours["w"]), np.var(again, axis=0), rtol=1e-12)


# Starts and averages


def test_multi_start_keeps_the_lowest_finite_end():
    def f(x):  # valleys near 1 and -1, the left one deeper; beyond 4 it explodes
        return (x**2 - 1) ** 2 + 0.2 * x

    starts = jnp.array([1.5, 6.0, -1.5, 0.5])
    found = gd.multi_start(f, starts, learning_rate=0.05, num_steps=100)
    assert found.index == 2
    assert found.runs.diverged.tolist() == [False, True, False, False]
    roots = np.roots([4, 0, -4, 0.2]).real
    np.testing.assert_allclose(found.best.params, roots.min(), rtol=1e-5)  # converged, float32
    np.testing.assert_allclose(found.runs.params[0], roots.max(), rtol=1e-5)
    for i in (0, 3):  # vmap equals a loop; its arithmetic may be fused differently
        alone = gd.gradient_descent(f, starts[i], learning_rate=0.05, num_steps=100)
        np.testing.assert_allclose(found.runs.path[i], alone.path, rtol=1e-4)


def test_exponential_average_equals_optax():
    values = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    for start, debias in [("debiased", True), ("zero", False)]:
        peer = optax.ema(0.9, debias=debias)
        state, expected = peer.init(jnp.zeros(2)), []
        for value in values:
            with jax.numpy_dtype_promotion("standard"):  # Optax raises a float to an integer
                average, state = peer.update(jnp.asarray(value), state)
            expected.append(average)
        ours = gd.exponential_average(values, decay=0.9, start=start)
        # debiasing divides by a small difference: some float32 roundings
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


def test_exponential_average_is_the_weighted_sum(x64):
    values, decay, steps = np.array([3.0, -1.0, 4.0, 1.0, 5.0]), 0.6, np.arange(1, 6)
    weights = 0.4 * 0.6 ** (steps[:, None] - steps)
    weights[steps[:, None] < steps] = 0
    ours = [gd.exponential_average(values, decay=decay, start=s) for s in ("zero", "debiased")]
    np.testing.assert_allclose(ours[0], weights @ values, rtol=1e-14)
    np.testing.assert_allclose(ours[1], weights @ values / (1 - 0.6**steps), rtol=1e-14)
    first = gd.exponential_average(values, decay=decay, start="first")
    np.testing.assert_allclose(first, ours[0] + 0.6**steps * values[0], rtol=1e-14)


@settings(deadline=None, max_examples=25)
@given(st.floats(-100, 100, width=32), st.floats(0, 0.9375, width=32))
def test_the_average_of_a_constant_is_the_constant(value, decay):
    values = np.full(8, value, np.float32)
    for start in ("debiased", "first"):
        ours = gd.exponential_average(values, decay=decay, start=start)
        # Eight roundings; numbers below 1e-37 are flushed to 0
        np.testing.assert_allclose(ours, values, rtol=2e-6, atol=1e-37)


# Transformations


def test_vmap_over_learning_rates_equals_a_loop():
    rates, start = jnp.array([0.01, 0.1, 0.3]), np.ones(3, np.float32)
    batched = jax.vmap(walk_down_bowl, (0, None, None))(rates, start, CURVATURES)
    for i, rate in enumerate(rates):
        one = walk_down_bowl(rate, start, CURVATURES)
        # path values near 0 are differences of numbers near 1
        np.testing.assert_allclose(batched.path[i], one.path, rtol=1e-4, atol=1e-6)
        assert batched.diverged[i] == one.diverged


def test_jit_equals_eager_and_does_not_recompile():
    data = rows()

    def train(key, data, rate):
        return gd.minimize(
            key, squared, zeros(), data, batch_size=4, num_epochs=2, learning_rate=rate
        )

    traced = jax.jit(chex.assert_max_traces(train, n=1))
    traced(jax.random.key(0), data, 0.1)
    key = jax.random.key(5)
    chex.assert_trees_all_close(traced(key, data, 0.02), train(key, data, 0.02), rtol=1e-5)


def test_gradient_through_descent(x64):
    """The learning rate and the start can be learned: d(end)/d(rate) against differences."""
    start, curvatures = jnp.array([1.0, -2.0, 0.5]), jnp.asarray(CURVATURES, float)

    @jax.jit
    def end(rate, start):
        return bowl(
            gd.gradient_descent(bowl, start, curvatures, learning_rate=rate, num_steps=5).params,
            curvatures,
        )

    chex.assert_numerical_grads(end, (jnp.array(0.05), start), order=1, modes=["rev"])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_parameters_keep_their_dtype(dtype):
    start = jnp.full(300, 30, dtype)
    f = partial(gd.gradient_descent, lambda x: jnp.square(x.astype(jnp.float32)).sum())
    walk = f(start, learning_rate=0.25, num_steps=2)
    assert walk.params.dtype == dtype
    assert (walk.params == 7.5).all()
    # The norm, 60 sqrt(300), is that of float32: its square is beyond float16.
    np.testing.assert_allclose(walk.gradient_norm[0], 60 * math.sqrt(300), rtol=1e-6)


def test_integers_are_promoted():
    walk = gd.gradient_descent(lambda x: x**2, 4, learning_rate=0.5, num_steps=1)
    assert walk.params.tolist() == 0.0
    assert walk.params.dtype == jnp.float32


# Bad input

DATA = (np.ones((4, 2), np.float32), np.ones(4, np.float32))


def train(**options):
    options = {"batch_size": 2, "num_epochs": 1, "learning_rate": 0.1, "data": DATA} | options
    return gd.minimize(jax.random.key(0), squared, zeros(), **options)


def descend(**options):
    options = {"learning_rate": 0.1, "num_steps": 2} | options
    return gd.gradient_descent(lambda x: x**2, options.pop("start", 1.0), **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: descend(num_steps=0), "num_steps must be at least 1, got 0"),
        (lambda: descend(learning_rate=0.0), "learning_rate must be positive, got 0.0"),
        (lambda: descend(learning_rate=np.inf), "learning_rate must be finite, got inf"),
        (
            lambda: descend(learning_rate=np.ones(3)),
            r"learning_rate must be a scalar or have shape \(num_steps,\) = \(2,\), got shape \(3,",
        ),
        (lambda: descend(tolerance=-1.0), "tolerance must not be negative"),
        (lambda: descend(start={}), "start must hold at least one array"),
        (lambda: train(batch_size=5), "batch_size must be at most the number of rows, 4, got 5"),
        (lambda: train(batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda: train(num_epochs=0), "num_epochs must be at least 1, got 0"),
        (
            lambda: train(data=(np.ones((4, 2)), np.ones(3))),
            "data must hold arrays with one common",
        ),
        (lambda: train(data=()), "data must hold arrays with one common"),
        (
            lambda: train(data=(np.ones((0, 2)), np.ones(0))),
            r"data must not be empty, got shapes \[\(0, 2\), \(0,\)\]",
        ),
        (
            lambda: train(learning_rate=np.ones(3)),
            r"learning_rate must be a scalar or have shape \(num_updates,\) = \(2,\)",
        ),
        (
            lambda: gd.multi_start(lambda x: x, 1.0, learning_rate=1.0, num_steps=1),
            "starts must hold arrays with one common first axis",
        ),
        (lambda: gd.exponential_average(1.0, decay=0.5), "values must have a first axis"),
        (lambda: gd.exponential_average([1.0], decay=1.0), "1 - decay must be positive, got 0.0"),
        (lambda: gd.exponential_average([1.0], decay=-0.1), "decay must not be negative"),
        (
            lambda: gd.exponential_average([1.0], decay=0.5, start="last"),
            "start must be one of 'debiased', 'zero', 'first', got 'last'",
        ),
        (lambda: gd.stable_learning_rate([[1.0]]), r"eigenvalues must be 1-D, got shape \(1, 1\)"),
        (lambda: gd.stable_learning_rate([-1.0]), "eigenvalues must not be negative, got -1.0"),
        (lambda: gd.best_learning_rate(np.ones(0)), "eigenvalues must not be empty"),
        (
            lambda: gd.minibatch_variance(np.ones(3), batch_size=4),
            r"batch_size must be in \[1, 3\], got 4",
        ),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bad_types():
    with pytest.raises(TypeError, match=r"batch_size must be an integer, got 2\.0"):
        train(batch_size=2.0)
    with pytest.raises(TypeError, match="num_examples must be an integer"):
        gd.counts(1.5, batch_size=1)


# The demo


def test_the_claims_of_the_page():
    result = demo.run(jax.random.key(0), quick=True)
    full, mini, single = (
        np.median(t.epoch_loss[10:]) - result.rates.lowest for t in result.trainings
    )
    # The same passes over the data: mini-batches are ahead, single examples stay on a floor.
    assert mini < full / 10
    assert mini < single
    # The factor of a step is the one that the eigenvalues say: four digits.
    kappa = result.rates.eigenvalues[-1] / result.rates.eigenvalues[0]
    np.testing.assert_allclose(result.rates.predicted[1], (kappa - 1) / (kappa + 1), rtol=1e-5)
    np.testing.assert_allclose(result.rates.measured, result.rates.predicted, rtol=1e-4)
    assert result.rates.diverged.tolist() == [False, False, True]
    # 500 draws: the relative error of a variance is about sqrt(2/500) = 6 %; three of those. The
    # full batch has none but rounding.
    np.testing.assert_allclose(result.noise_measured, result.noise_formula, rtol=0.2, atol=1e-9)
    ends = result.found.runs.loss[:, -1]
    assert result.found.best.loss[-1] == ends.min() < ends.max() - 0.5
    assert demo.tables(result)
