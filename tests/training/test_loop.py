"""The loop against hand-written ones, a closed form and PyTorch; what it keeps, and refuses."""

import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnotes_jax.data import loading
from mlnotes_jax.demos.training import loop as demo
from mlnotes_jax.foundations import losses
from mlnotes_jax.generalization import early_stopping
from mlnotes_jax.nets import convolution
from mlnotes_jax.optimization import averaging
from mlnotes_jax.training import loop

KEY = jax.random.key(7)
SGD = optax.sgd(0.1, momentum=0.5)
EMA = averaging.ema(0.8)
CROSS_ENTROPY = losses.softmax_cross_entropy_with_integer_labels


def accuracy(outputs, labels):
    return (outputs.argmax(axis=-1) == labels).mean()


class Net(nnx.Module):
    """What a loop must treat with care: running statistics and random draws."""

    def __init__(self, *, rngs):
        self.first = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(0.25, rngs=rngs)
        self.last = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.relu(self.norm(self.first(x)))))


class Small(nnx.Module):
    """One layer with dropout: quick to compile."""

    def __init__(self, *, rngs):
        self.drop = nnx.Dropout(0.25, rngs=rngs)
        self.layer = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.layer(self.drop(x))


def line(params, state, x, *, key=None, train=False):
    return x @ params["w"] + params["b"], state


def flat_line():
    return loop.Bound({"w": jnp.zeros((3, 1)), "b": jnp.zeros(())}, {}, line)


@pytest.fixture(scope="module")
def classes():
    """30 rows of 4 numbers in 3 classes."""
    x = jax.random.normal(jax.random.key(1), (30, 4))
    return x, (x[:, :2] > 0).sum(axis=1, dtype=jnp.int32)


@pytest.fixture(scope="module")
def numbers():
    """12 rows on a line with noise."""
    x = jax.random.normal(jax.random.key(2), (12, 3))
    noise = jax.random.normal(jax.random.key(3), (12, 1))
    return x, x @ jnp.array([[1.0], [-2.0], [0.5]]) + 0.3 + 0.1 * noise


@pytest.fixture(scope="module")
def net():
    return Net(rngs=nnx.Rngs(0))


def same(a, b):
    """Whether two pytrees are equal bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)

    def bits(leaf):
        leaf = jnp.asarray(leaf)
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(bits(x), bits(y)) for x, y in pairs)


def close(a, b, rtol):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol)


FULL = {  # every option that leaves a trace in the state
    "num_epochs": 4,
    "batch_size": 10,
    "metrics": {"accuracy": accuracy},
    "average": EMA,
    "clip_norm": 0.7,
    "stopping": early_stopping.no_improvement(10),
}


@pytest.fixture(scope="module")
def full(net, classes):
    return loop.fit(KEY, net, SGD, CROSS_ENTROPY, classes, validation=classes, **FULL)


# --- what it computes -----------------------------------------------------------------------------


def test_full_batches_follow_the_closed_form(x64):
    # On mse the error shrinks by I - 2 eta X^T X / n in each update.
    x = np.random.default_rng(0).normal(size=(12, 3))
    y = x @ np.array([[1.0], [-2.0], [0.5]])
    start = loop.Bound({"w": jnp.zeros((3, 1)), "b": jnp.zeros(())}, {}, no_intercept)
    result = loop.fit(
        KEY, start, optax.sgd(0.1), losses.mse, (x, y), num_epochs=5, batch_size=12
    )  # fmt: skip
    shrink = np.eye(3) - 0.2 * x.T @ x / 12
    expected = np.array([[1.0], [-2.0], [0.5]])
    expected = expected - np.linalg.matrix_power(shrink, 5) @ expected
    # Five updates in float64: round-off only.
    np.testing.assert_allclose(result.model.params["w"], expected, rtol=1e-12)
    assert int(result.state.step) == 5


def no_intercept(params, state, x, *, key=None, train=False):
    return x @ params["w"], state


def test_agrees_with_a_loop_by_hand(net, classes, full):
    x, y = classes
    params, state, apply = loop.bind(net)
    opt_state, average = SGD.init(params), EMA.init(params)

    @jax.jit
    def update(params, state, opt_state, average, rows, step):
        key = jax.random.fold_in(jax.random.fold_in(KEY, np.uint32(2**32 - 1)), step)

        def objective(params):
            outputs, new = apply(params, state, x[rows], key=key, train=True)
            return CROSS_ENTROPY(outputs, y[rows]), new

        (value, state), grads = jax.value_and_grad(objective, has_aux=True)(params)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, 0.7 / norm), grads)
        updates, opt_state = SGD.update(grads, opt_state)
        params = optax.apply_updates(params, updates)
        return params, state, opt_state, EMA.update(average, params), value, norm

    seen, norms = [], []
    for epoch in range(4):
        order, total = loading.epoch_order(KEY, epoch, 30), 0.0
        for rows in order.reshape(3, 10):
            params, state, opt_state, average, value, norm = update(
                params, state, opt_state, average, rows, len(norms)
            )
            total += float(value) * len(rows)
            norms.append(float(norm))
        seen.append(total / 30)
    # The same operations in another program: round-off of float32 over 12 updates.
    close(full.state.params, params, 1e-5)
    close(full.state.state["norm"], state["norm"], 1e-5)
    np.testing.assert_allclose(full.history["loss"], seen, rtol=1e-5)
    largest = np.reshape(norms, (4, 3)).max(axis=1)
    np.testing.assert_allclose(full.history["grad_norm_max"], largest, rtol=1e-4)
    assert max(norms) > 0.7 > min(norms)  # clipping did something, but not always
    # What is validated is the average.
    outputs, _ = apply(EMA.value(average), state, x)
    found = [full.history[f"validation_{name}"][-1] for name in ("loss", "accuracy")]
    wanted = [float(CROSS_ENTROPY(outputs, y)), float(accuracy(outputs, y))]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert "accuracy" not in full.history
    assert same(nnx.as_pure(nnx.state(full.model, nnx.Param)), full.state.best.params[0])


def test_agrees_with_torch(torch, numbers):
    x, y = (np.asarray(part) for part in numbers)
    layer = torch.nn.Linear(3, 1)
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    with torch.no_grad():
        layer.weight[:] = torch.tensor(np.asarray(model.kernel[...]).T)
        layer.bias[:] = torch.tensor(np.asarray(model.bias[...]))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.5)
    sizes = 5, 10
    for epoch in range(3):
        for rows in np.split(np.asarray(loading.epoch_order(KEY, epoch, 12)), sizes):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(
                layer(torch.tensor(x[rows])), torch.tensor(y[rows])
            ).backward()
            torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
            optimizer.step()
    result = loop.fit(
        KEY, model, SGD, losses.mse, (x, y), num_epochs=3, batch_size=5, remainder="keep",
        clip_norm=1.0,
    )  # fmt: skip
    # torch divides by norm + 1e-6 when it clips; the rest is round-off of float32.
    np.testing.assert_allclose(
        result.model.kernel[...].T, layer.weight.detach().numpy(), rtol=1e-5, atol=1e-6
    )


def test_a_step_follows_the_gradient_by_finite_differences(x64, numbers):
    x, y = (np.asarray(part, np.float64) for part in numbers)
    start = {"w": jnp.array([[0.3], [0.1], [-0.2]]), "b": jnp.array(0.5)}
    result = loop.fit(
        KEY, loop.Bound(start, {}, line), optax.sgd(1.0), losses.mse, (x, y),
        num_epochs=1, batch_size=12, penalty=losses.l2_penalty,
    )  # fmt: skip

    def value(w):
        outputs, _ = line({"w": w, "b": start["b"]}, {}, x)
        return losses.mse(outputs, y) + losses.l2_penalty({"w": w, "b": start["b"]})

    for i in range(3):
        step = np.zeros((3, 1))
        step[i] = 1e-6
        slope = (value(start["w"] + step) - value(start["w"] - step)) / 2e-6
        # Central differences of a quadratic are exact up to round-off / 1e-6.
        np.testing.assert_allclose(start["w"][i] - result.model.params["w"][i], slope, rtol=1e-8)
    np.testing.assert_allclose(result.history["loss"][0], value(start["w"]), rtol=1e-12)


def test_compiled_equals_eager(numbers):
    whole = {"num_epochs": 1, "batch_size": 12}
    compiled = loop.fit(KEY, flat_line(), SGD, losses.mse, numbers, **whole)
    begin = compiled.state._replace(
        params=flat_line().params, opt_state=SGD.init(flat_line().params)
    )
    recipe = loop._Recipe(line, losses.mse, SGD, (), None, None, False)
    with jax.disable_jit():
        eager, row = loop._step(recipe, (None, None), begin, numbers, jnp.int32(0))
    close(compiled.state.params, eager.params, 1e-6)  # round-off: fused or not
    np.testing.assert_allclose(compiled.history["loss"], [row["loss"]], rtol=1e-6)


# --- scan, steps, streams -------------------------------------------------------------------------


def test_scan_steps_and_batches_are_one(net, classes, full):
    steps = loop.fit(
        KEY, net, SGD, CROSS_ENTROPY, classes, validation=classes, epoch="steps", **FULL
    )
    loader = loading.in_memory(KEY, classes, batch_size=10)
    held_out = [(classes[0][i : i + 10], classes[1][i : i + 10]) for i in (0, 10, 20)]
    batches = loop.fit(KEY, net, SGD, CROSS_ENTROPY, loader, validation=held_out, **FULL)
    # Compiled apart: equal up to round-off is what is promised (another mask would show).
    for other in (steps, batches):
        close(other.state.params, full.state.params, 1e-6)
        close(other.state.average, full.state.average, 1e-6)
        for name, values in full.history.items():
            np.testing.assert_allclose(other.history[name], values, rtol=1e-5)
        assert other.message[:20] == full.message[:20]


def test_neither_way_changes_the_model_or_a_state_given_away(net, classes):
    before = jax.tree.map(jnp.copy, nnx.as_pure(nnx.state(net)))
    for epoch in ("scan", "steps"):
        kept: list = []
        result = loop.fit(
            KEY, net, SGD, CROSS_ENTROPY, classes, epoch=epoch,
            on_epoch=lambda *both, kept=kept: kept.append(both), **FULL, validation=classes,
        )  # fmt: skip
        assert same(nnx.as_pure(nnx.state(net)), before)
        assert [int(state.epoch) for state, _ in kept] == [1, 2, 3, 4]
        assert same(kept[-1][0], result.state)
        assert not same(kept[0][0].params, kept[1][0].params)  # readable: not donated
        assert kept[2][1]["loss"] == result.history["loss"][2]
    assert result.model is not net
    assert isinstance(result.model, Net)


@settings(deadline=None, max_examples=6)
@given(
    seed=st.integers(0, 2**31 - 1),
    pause=st.integers(1, 4),
    epoch=st.sampled_from(["scan", "steps"]),
)
def test_going_on_is_the_same_as_no_break(seed, pause, epoch):
    x = jax.random.normal(jax.random.key(1), (30, 4))
    data = x, (x[:, 0] > 0).astype(jnp.int32)
    options = FULL | {"validation": data, "epoch": epoch}
    fit = lambda **more: loop.fit(  # noqa: E731
        jax.random.key(seed), Net(rngs=nnx.Rngs(0)), SGD, CROSS_ENTROPY, data, **options | more
    )
    unbroken = fit()
    first = fit(num_epochs=min(pause, 4))
    second = fit(start=first.state)
    assert same(second.state, unbroken.state)
    assert same(nnx.as_pure(nnx.state(second.model)), nnx.as_pure(nnx.state(unbroken.model)))
    if pause < 4:
        for name, values in unbroken.history.items():
            joined = np.concatenate([first.history[name], second.history[name]])
            np.testing.assert_array_equal(joined, values)
    else:
        assert second.history == {}


@pytest.mark.parametrize(
    ("layer", "scans"),
    [(lambda rngs: nnx.Conv(1, 2, (3, 3), rngs=rngs), False),
     (lambda rngs: convolution.Conv(1, 2, (3, 3), padding=1, rngs=rngs), True)],
)  # fmt: skip
def test_auto_scans_where_it_is_fast(layer, scans, monkeypatch):
    if jax.default_backend() != "cpu":
        pytest.skip("elsewhere an epoch is always a scan")
    walked = []
    walk = loop._walk
    monkeypatch.setattr(loop, "_walk", lambda *a, **k: walked.append(1) or walk(*a, **k))
    pictures = jnp.ones((8, 4, 4, 1))
    model = layer(nnx.Rngs(0))
    data = pictures, jnp.zeros((8, 4, 4, 2))
    loop.fit(KEY, model, SGD, losses.mse, data, num_epochs=1, batch_size=4)
    assert bool(walked) != scans


def test_a_second_fit_compiles_nothing(classes):
    traces = []

    def counted(outputs, targets):
        traces.append(1)
        return CROSS_ENTROPY(outputs, targets)

    def fit(epoch, seed):
        before = len(traces)
        loop.fit(
            jax.random.key(seed), Small(rngs=nnx.Rngs(seed)), SGD, counted, classes,
            num_epochs=2, batch_size=10, validation=classes, epoch=epoch,
        )  # fmt: skip
        return len(traces) - before

    # The loss looks at the targets once for data and once for validation: that traces it alone.
    for epoch in ("auto", "steps"):
        assert fit(epoch, 0) > 2
        assert fit(epoch, 1) == 2  # another key and another model of the same form


# --- what it keeps --------------------------------------------------------------------------------


def overfit(numbers):
    x, y = numbers
    return (x[:4], y[:4]), (x[4:], y[4:])


def test_stops_by_a_rule_and_keeps_the_best(numbers):
    train, held_out = overfit(numbers)
    rule = early_stopping.no_improvement(2)
    result = loop.fit(
        KEY, flat_line(), optax.sgd(0.3), losses.mse, train, num_epochs=60, batch_size=4,
        validation=held_out, stopping=rule,
    )  # fmt: skip
    curve = result.history["validation_loss"]
    stop = int(early_stopping.stopped_at(rule, result.history["loss"], curve))
    assert result.status == "stopped early"
    assert len(curve) == stop + 1 == int(result.state.epoch) < 60
    assert int(result.state.best.epoch) == curve.argmin() == stop - 2
    assert f"epoch {stop + 1} of 60" in result.message
    assert f"after epoch {curve.argmin() + 1}" in result.message
    found = loop.evaluate(result.model, held_out, losses.mse)
    np.testing.assert_allclose(found, curve.min(), rtol=1e-6)  # other batches: round-off
    last = loop.fit(
        KEY, flat_line(), optax.sgd(0.3), losses.mse, train, num_epochs=60, batch_size=4,
        validation=held_out, stopping=rule, keep_best=False,
    )  # fmt: skip
    assert same(last.model.params, result.state.params)
    assert not same(last.model.params, result.model.params)
    # A run that has ended stays so.
    again = loop.fit(
        KEY, flat_line(), optax.sgd(0.3), losses.mse, train, num_epochs=60, batch_size=4,
        validation=held_out, stopping=rule, start=result.state,
    )  # fmt: skip
    assert same(again.state, result.state)
    assert again.status == "stopped early"


@pytest.mark.parametrize("epoch", ["scan", "steps"])
def test_a_loss_that_is_not_finite_ends_it_with_the_last_good_parameters(numbers, epoch):
    options = {"batch_size": 3, "epoch": epoch}
    diverging = optax.sgd(1e6)
    result = loop.fit(KEY, flat_line(), diverging, losses.mse, numbers, num_epochs=9, **options)
    assert result.status == "not finite"
    # 1e6 an update: the square of the output overflows float32 (3.4e38) in the fourth, the second
    # epoch is never seen.
    first = next(i for i in range(4) if f"at update {i + 1} " in result.message)
    assert f"epoch 1, batch {first + 1} of 4" in result.message
    assert int(result.state.step) == first - 1
    assert f"after update {first - 1}" in result.message
    # The same, update for update, by hand: finite with these parameters, and not after the next.
    params, order = flat_line().params, loading.epoch_order(KEY, 0, 12).reshape(4, 3)
    x, y = numbers
    values = []
    for step in range(first + 1):
        if step == first - 1:
            close(result.state.params, params, 1e-5)

        def value(params, rows=order[step]):
            return losses.mse(line(params, {}, x[rows])[0], y[rows])

        values.append(float(value(params)))
        params = jax.tree.map(lambda p, g: p - 1e6 * g, params, jax.grad(value)(params))
    assert np.isfinite(values[:-1]).all()
    assert not np.isfinite(values[-1])
    assert np.isfinite(float(loop.evaluate(result.model, numbers, losses.mse)))
    assert len(result.history["loss"]) == 1
    again = loop.fit(
        KEY,
        flat_line(),
        diverging,
        losses.mse,
        numbers,
        num_epochs=9,
        start=result.state,
        **options,
    )
    assert again.status == "not finite"
    assert same(again.state, result.state)


def test_a_bad_first_batch_goes_back_into_the_epoch_before(numbers):
    x, y = numbers

    def batches(epoch):
        factor = jnp.nan if epoch == 1 else 1.0
        return [(factor * x[:6], y[:6]), (x[6:], y[6:])]

    result = loop.fit(KEY, flat_line(), SGD, losses.mse, batches, num_epochs=3)
    assert "the loss was nan at update 3 (epoch 2, batch 1 of 2)" in result.message
    once = loop.fit(KEY, flat_line(), SGD, losses.mse, lambda epoch: batches(0)[:1], num_epochs=1)
    assert same(result.state.params, once.state.params)  # those of the last finite loss
    assert (int(result.state.step), int(result.state.epoch)) == (1, 0)


def test_the_last_update_of_an_epoch_is_looked_at_too(numbers):
    # The third of three updates makes all infinite: no loss of this epoch has seen it.
    bad = optax.scale_by_schedule(lambda count: jnp.where(count == 2, -jnp.inf, -0.1))
    result = loop.fit(KEY, flat_line(), bad, losses.mse, numbers, num_epochs=3, batch_size=4)
    assert "were not finite after epoch 1" in result.message
    assert int(result.state.step) == 2
    assert np.isfinite(result.state.params["w"]).all()
    assert int(result.state.epoch) == 0


def test_best_parameters_survive_a_later_failure(numbers):
    bad = optax.scale_by_schedule(lambda count: jnp.where(count == 9, jnp.nan, -0.1))
    result = loop.fit(
        KEY, flat_line(), bad, losses.mse, numbers, num_epochs=9, batch_size=4, validation=numbers
    )
    assert result.status == "not finite"
    assert int(result.state.best.epoch) == 2
    found = loop.evaluate(result.model, numbers, losses.mse)
    lowest = np.nanmin(result.history["validation_loss"])
    np.testing.assert_allclose(found, lowest, rtol=1e-6)  # other batches: round-off


def test_progress_bar(numbers, capsys):
    loop.fit(KEY, flat_line(), SGD, losses.mse, numbers, num_epochs=2, batch_size=4, progress=True)
    assert "loss" in capsys.readouterr().out


# --- train and eval -------------------------------------------------------------------------------


def test_modes_and_streams(net, classes):
    x, _ = classes
    params, state, apply = loop.bind(net)
    key = jax.random.key(0)
    trained, moved = apply(params, state, x, key=key, train=True)
    again, _ = apply(params, state, x, key=key, train=True)
    other, _ = apply(params, state, x, key=jax.random.key(1), train=True)
    quiet, still = apply(params, state, x, key=key)
    assert same(trained, again)
    assert not same(trained, other)
    assert same(quiet, loop.predict(net, x, batch_size=7))
    assert same(still, state)  # eval mode moves nothing
    assert not same(moved["norm"], state["norm"])  # train mode moves the statistics
    assert same(moved["drop"], state["drop"])  # streams are as they were: the key decides

    class Noisy(nnx.Module):
        def __init__(self, rngs):
            self.rngs = rngs
            self.drops = nnx.List([nnx.Dropout(0.5, rngs=rngs) for _ in range(2)])

        def __call__(self, x):
            return self.rngs.noise.normal(x.shape), [drop(x) for drop in self.drops]

    # Streams of any name are reached, and no two draw the same numbers.
    params, state, apply = loop.bind(Noisy(nnx.Rngs(dropout=0, noise=1)))
    (a, masks), _ = apply(params, state, x, key=key, train=True)
    (b, _), _ = apply(params, state, x, key=jax.random.key(1), train=True)
    assert not same(a, b)
    assert not same(masks[0], masks[1])


def test_the_mode_of_the_model_given_does_not_matter(classes):
    bounds = []
    for evaluating in (False, True):
        model = Small(rngs=nnx.Rngs(0))
        if evaluating:
            model.eval()
        params, state, apply = loop.bind(model)
        assert loop.merge(model, params, state).drop.deterministic == evaluating
        bounds.append(apply(params, state, classes[0], key=KEY, train=True)[0])
    assert same(*bounds)


@pytest.mark.parametrize("batch_size", [7, 100])
def test_evaluate_and_predict_count_every_row_once(net, classes, batch_size):
    x, y = classes
    params, state, apply = loop.bind(net)
    outputs, _ = apply(params, state, x)
    fns = {"loss": CROSS_ENTROPY, "accuracy": accuracy}
    found = loop.evaluate(net, classes, fns, batch_size=batch_size)
    # Sums in another order: round-off.
    np.testing.assert_allclose(found["loss"], CROSS_ENTROPY(outputs, y), rtol=1e-6)
    np.testing.assert_allclose(found["accuracy"], accuracy(outputs, y), rtol=1e-6)
    close(loop.predict(net, x, batch_size=batch_size), outputs, 1e-6)
    batches = [(x[i : i + batch_size], y[i : i + batch_size]) for i in range(0, 30, batch_size)]
    streamed = loop.evaluate(net, lambda epoch: batches, CROSS_ENTROPY)
    np.testing.assert_allclose(streamed, found["loss"], rtol=1e-6)


class Pair(NamedTuple):
    total: jax.Array
    difference: jax.Array


def test_any_pytrees(numbers):
    def apply(params, state, x, *, key=None, train=False):
        total = x["a"] @ params["w"] + x["b"] @ params["w"]
        return Pair(total, x["a"] @ params["v"]), {"calls": state["calls"] + int(train)}

    def loss(outputs, targets):
        return losses.mse(outputs.total, targets["t"]) + losses.mse(
            outputs.difference, targets["d"]
        )

    x, y = numbers
    model = loop.Bound(
        {"w": jnp.zeros((3, 1)), "v": jnp.zeros((3, 1))}, {"calls": jnp.int32(0)}, apply
    )
    data = {"a": x, "b": 2 * x}, {"t": y, "d": -y}
    result = loop.fit(
        KEY, model, optax.sgd(0.03), loss, data, num_epochs=40, batch_size=4,
        metrics={"again": loss},
    )  # fmt: skip
    assert isinstance(result.model, loop.Bound)
    assert result.model.state == {"calls": 120}
    assert result.history["loss"][-1] < 0.1 * result.history["loss"][0]
    np.testing.assert_allclose(result.history["again"], result.history["loss"], rtol=1e-6)
    outputs = loop.predict(result.model, data[0], batch_size=5)
    assert isinstance(outputs, Pair)
    assert outputs.total.shape == (12, 1)


# --- many runs ------------------------------------------------------------------------------------


def test_many_rates_equal_single_runs(numbers):
    train, held_out = overfit(numbers)
    rates = jnp.array([0.001, 0.3, 1e20])
    options = {
        "num_epochs": 40, "batch_size": 4, "validation": held_out,
        "stopping": early_stopping.no_improvement(2), "metrics": {"mae": losses.mae},
    }  # fmt: skip
    runs = loop.fit_many(KEY, flat_line(), optax.sgd, rates, losses.mse, train, **options)
    ends = []
    for i, rate in [(1, 0.3), (2, 1e20)]:
        one = loop.fit(KEY, flat_line(), optax.sgd(rate), losses.mse, train, **options)
        assert runs.status[i] == one.status
        done = len(one.history["loss"])
        for name, values in one.history.items():
            # Batched and single products round differently.
            np.testing.assert_allclose(runs.history[name][i, :done], values, rtol=1e-5)
            assert np.isnan(runs.history[name][i, done:]).all()
        close(runs.model(i).params, one.model.params, 1e-5)
        assert runs.message[i] == one.message
        assert int(runs.states.step[i]) == int(one.state.step)
        ends.append(done)
    assert runs.status == ("finished", "stopped early", "not finite")
    assert 40 > ends[0] > ends[1]  # they ended at different times
    assert np.isfinite(runs.history["loss"][0]).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(runs.params))
    said = jax.vmap(lambda p, s: runs.apply(p, s, numbers[0])[0])(runs.params, runs.state)
    close(said[1], loop.predict(runs.model(1), numbers[0]), 1e-5)


@pytest.mark.parametrize("epoch", ["scan", "steps"])
def test_many_seeds_equal_single_runs(classes, epoch):
    keys, seeds = jax.random.split(KEY, 3), jax.random.split(jax.random.key(8), 3)
    options = {"num_epochs": 2, "batch_size": 10, "epoch": epoch}
    runs = loop.fit_many(keys, make_small, SGD, seeds, CROSS_ENTROPY, classes, **options)
    for i in range(3):
        one = loop.fit(keys[i], make_small(seeds[i]), SGD, CROSS_ENTROPY, classes, **options)
        # Batched and single products round differently.
        close(loop.bind(runs.model(i)).params, loop.bind(one.model).params, 1e-5)
        np.testing.assert_allclose(runs.history["loss"][i], one.history["loss"], rtol=1e-5)
    options["num_epochs"] = 1
    first = loop.fit_many(keys, make_small, SGD, seeds, CROSS_ENTROPY, classes, **options)
    options["num_epochs"] = 2
    second = loop.fit_many(
        keys, make_small, SGD, seeds, CROSS_ENTROPY, classes, start=first.states, **options
    )
    assert same(second.states, runs.states)


def make_small(key):
    return Small(rngs=nnx.Rngs(key))


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_epochs": 0}, ValueError, "num_epochs must be at least 1, got 0"),
        (
            {"batch_size": 31},
            ValueError,
            "batch_size must be at most the number of rows, 30, got 31",
        ),
        ({"epoch": "fast"}, ValueError, "epoch must be one of 'auto', 'scan', 'steps', got 'fast'"),
        ({"remainder": "pad"}, ValueError, "remainder must be one of 'drop', 'keep', got 'pad'"),
        ({"clip_norm": -1.0}, ValueError, "clip_norm must be positive, got -1.0"),
        ({"stopping": early_stopping.no_improvement(2)}, ValueError, "validation must be given"),
        ({"key": 3}, TypeError, "key must be made by jax.random.key, got int"),
        ({"model": "net"}, TypeError, "model must be an nnx.Module or a Bound, got str"),
        ({"optimizer": 0.1}, TypeError, "optimizer must be an optax.GradientTransformation"),
        ({"loss": None}, TypeError, "loss must be a function, got NoneType"),
        ({"metrics": {"accuracy": 1}}, TypeError, "accuracy must be a function, got int"),
        ({"loss": lambda o, t: o}, ValueError, r"loss must return a scalar.*got float32\[30, 3\]"),
        ({"data": 5}, TypeError, "data must be a tuple .* of arrays, or give batches.*got int"),
        ({"data": (1, 2, 3)}, TypeError, r"data must be a pair \(x, targets\), got tuple of 3"),
        ({"data": iter([])}, TypeError, "data must give its batches anew in every epoch"),
        ({"data": []}, ValueError, "data must give at least one batch in each epoch, got none"),
        ({"data": [1]}, TypeError, r"a batch of data must be a pair \(x, targets\), got int"),
        ({"data": [], "epoch": "scan"}, ValueError, "epoch must be 'auto' or 'steps'"),
        ({"data": (np.ones((4, 4)), np.ones(3, int))}, ValueError, "data must have as many rows"),
        ({"data": (np.ones((0, 4)), np.ones(0, int))}, ValueError, "data must not be empty"),
        (
            {"data": (np.ones(()), np.ones(3))},
            ValueError,
            "data must be arrays with a leading axis",
        ),
        (
            {"data": (np.array([[1.0] * 4, [1, np.nan, 1, 1]]), np.ones(2, int))},
            ValueError,
            "x of data must be finite, got nan in row 1, column 1",
        ),
        (
            {"data": (np.ones((30, 4)), np.full(30, 3))},
            ValueError,
            r"labels must be in 0..2 \(3 classes\), got 3 at index 0",
        ),
        (
            {"validation": (np.ones((3, 4)), np.array([0, -1, 0]))},
            ValueError,
            r"labels must be in 0..2 \(3 classes\), got -1 at index 1",
        ),
        ({"start": 5}, TypeError, "start must be a TrainState, got int"),
    ],
)
def test_bad_input(net, classes, change, error, message):
    arguments = {
        "key": KEY, "model": net, "optimizer": SGD, "loss": CROSS_ENTROPY, "data": classes,
        "num_epochs": 1, "batch_size": 10,
    }  # fmt: skip
    with pytest.raises(error, match=message):
        loop.fit(**{**arguments, **change})


def test_a_state_of_something_else_is_refused(net, classes, full):
    def go_on(model=net, optimizer=SGD, key=KEY, **options):
        options = {**FULL, "validation": classes, "start": full.state, **options}
        loop.fit(key, model, optimizer, CROSS_ENTROPY, classes, **options)

    with pytest.raises(
        ValueError, match=r"start.opt_state must be .*expected int32\[\] at .*count, got nothing"
    ):
        go_on(optimizer=optax.scale_by_adam())
    with pytest.raises(
        ValueError, match=r"start.average must be .*expected nothing at .*, got int32"
    ):
        go_on(average=None)
    with pytest.raises(ValueError, match="key must be the one that start was made with"):
        go_on(key=jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"start.params .*expected float32\[3\] at .*layer.*, got nothing"
    ):
        go_on(model=Small(rngs=nnx.Rngs(0)))
    data = jnp.ones((9, 3)), jnp.ones((9, 1))
    saved = loop.fit(KEY, flat_line(), SGD, losses.mse, data, num_epochs=1, batch_size=3).state
    wide = flat_line()._replace(params={"w": jnp.zeros((3, 2)), "b": jnp.zeros(())})
    with pytest.raises(
        ValueError, match=r"expected float32\[3, 2\] at \['w'\], got float32\[3, 1\]"
    ):
        loop.fit(
            KEY, wide, SGD, losses.mse, (data[0], jnp.ones((9, 2))), num_epochs=2, start=saved,
            batch_size=3,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "rates", "lengths"),
    [
        (KEY, None, r"\[\]"),
        (KEY, 0.1, r"\[0\]"),
        (jax.random.split(KEY, 2), jnp.ones(3), r"\[2, 3\]"),
    ],
)
def test_runs_must_be_counted(net, classes, keys, rates, lengths):
    with pytest.raises(ValueError, match=f"one leading axis of runs.*lengths {lengths}"):
        loop.fit_many(keys, net, optax.sgd, rates, CROSS_ENTROPY, classes, num_epochs=1)


def test_bind_needs_a_module():
    with pytest.raises(TypeError, match=r"model must be an nnx.Module, got dict"):
        loop.bind({})


def test_every_option_is_documented():
    named = inspect.signature(loop.fit).parameters
    text = inspect.getdoc(loop.fit) or ""
    assert all(f"\n    {name}: " in text for name in named)


# --- the demo -------------------------------------------------------------------------------------


def test_the_claims_of_the_page():
    result = demo.run(jax.random.key(0), quick=True)
    final = result.loss[:, -1]
    fine = np.isfinite(final)
    # Rates are ordered: those too large are the ones that fail.
    assert 0 < (~fine).sum() < 8
    assert fine[: fine.sum()].all()
    assert all(
        (status == "not finite") != ok for status, ok in zip(result.status, fine, strict=True)
    )
    best = np.where(fine, final, np.inf).argmin()
    assert 0 < best < fine.sum() - 1  # neither the smallest nor the largest that survives
    assert final[0] > 4 * final[best]
    assert result.accuracy[best, -1] > 0.9
    assert "the loss was" in result.message[int(fine.sum())]
    assert len(result.history["validation_loss"]) == result.kept + 1 + demo.PATIENCE
    assert "stopped by the rule" in result.stopped
    assert demo.tables(result)
