"""Stopping rules against their definitions and Flax; the filters against descent and ridge."""

import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.training import early_stopping as flax_stopping
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnotes_jax.demos.generalization import early_stopping as demo
from mlnotes_jax.foundations import gradient_descent as gd
from mlnotes_jax.foundations import linear_regression as lr
from mlnotes_jax.generalization import early_stopping as es

TRAINING = np.array([3.0, 2.0, 1.5, 1.6, 1.0, 0.9, 0.8, 0.7], np.float32)
VALIDATION = np.array([2.8, 2.1, 1.4, 1.7, 1.3, 1.5, 1.6, 1.9], np.float32)
NAN = math.nan

replay = jax.jit(es.stopped_at, static_argnums=0)


def at(rule, training=TRAINING, validation=VALIDATION):
    return int(es.stopped_at(rule, np.float32(training), np.float32(validation)))


# The rules, by their definitions


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (lambda: es.threshold(2.5), 0),
        (lambda: es.threshold(1.65, after=2), 3),
        (lambda: es.threshold(1.85, after=2), 7),
        (lambda: es.threshold(5.0), -1),
        (lambda: es.threshold(1.4, when="below"), 4),  # 1.4 itself is not below
        (lambda: es.threshold(1.9), 0),
        (lambda: es.no_improvement(1), 3),
        (lambda: es.no_improvement(2), 6),
        (lambda: es.no_improvement(4), -1),
        (lambda: es.no_improvement(2, min_delta=0.15), 4),  # 1.3 gains only 0.1 on 1.4
        (lambda: es.above_training(1), 1),
        (lambda: es.above_training(2), 4),
        (lambda: es.above_training(6), -1),
    ],
)
def test_where_each_rule_stops(rule, expected):
    assert at(rule()) == expected


values = st.one_of(
    st.floats(0, 4, width=32).map(lambda v: round(v * 4) / 4),  # exact, with ties
    st.just(NAN),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(values, values), min_size=1, max_size=12), st.integers(1, 4))
def test_rules_are_their_definitions(pairs, patience):
    """Over whole prefixes of the curve, as the page defines them; NaN is never a lowest value."""
    training, validation = (np.array(v) for v in zip(*pairs, strict=True))
    low = np.where(np.isnan(validation), np.inf, validation)
    n, first = len(low), {"patience": -1, "above": -1, "over": -1}
    for t in reversed(range(n)):
        last = slice(t - patience + 1, t + 1)
        if t + 1 > patience and low[last].min() >= low[: t - patience + 1].min():
            first["patience"] = t
        if t + 1 >= patience and low[: t + 1].min() == np.inf:  # no lowest value at all
            first["patience"] = t
        if t + 1 >= patience and not (validation[last] <= training[last]).any():
            first["above"] = t
        if not validation[t] <= 2.0:
            first["over"] = t
    padded = [np.full(12, 0.0, np.float32) for _ in range(2)]  # one length, one compilation
    for row, curve in zip(padded, (training, validation), strict=True):
        row[:n] = curve
    for name, rule in [
        ("patience", es.no_improvement(patience)),
        ("above", es.above_training(patience)),
        ("over", es.threshold(2.0)),
    ]:
        state = rule.init()
        for t in range(n):
            state, stop = rule.update(state, padded[0][t], padded[1][t])
            assert bool(stop) == (0 <= first[name] <= t)
        assert int(state.stopped_at) == first[name]


def test_patience_counts_one_less_than_flax():
    rng = np.random.default_rng(0)
    for patience, min_delta in [(1, 0.0), (3, 0.0), (2, 0.125), (5, 0.25)]:
        curve = np.float32(rng.integers(0, 16, 40) / 8 + np.linspace(2, 0, 40).round(2))
        peer, stop = flax_stopping.EarlyStopping(min_delta=min_delta, patience=patience - 1), -1
        for t, value in enumerate(curve):
            peer = peer.update(float(value))
            if peer.should_stop and stop < 0:
                stop = t
        assert at(es.no_improvement(patience, min_delta=min_delta), curve, curve) == stop


def test_a_rule_with_patience_is_late_by_its_patience():
    for patience in (1, 2):
        stop = at(es.no_improvement(patience))
        assert stop - patience == VALIDATION[: stop + 1].argmin()


def test_any_of_stops_first_and_says_which():
    rules = es.threshold(1.85, after=2), es.no_improvement(2), es.above_training(2)
    either = es.any_of(*rules)
    assert at(either) == min(at(rule) for rule in rules) == 4
    state = either.init()
    for losses in zip(TRAINING, VALIDATION, strict=True):
        state, _ = either.update(state, *losses)
    assert [int(s.stopped_at) for s in state.memory] == [7, 6, 4]
    assert at(es.any_of(either, es.threshold(2.0))) == 0  # nested


def test_a_rule_stays_stopped():
    rule = es.threshold(1.0)
    state, stops = rule.init(), []
    for value in (0.5, 2.0, 0.5):
        state, stop = rule.update(state, 0.0, value)
        stops.append(bool(stop))
    assert stops == [False, True, True]
    assert (int(state.stopped_at), int(state.num_updates)) == (1, 3)


def test_nan_is_over_a_threshold_and_no_improvement():
    curve = [1.0, NAN, NAN, 0.5]
    assert at(es.threshold(2.0), curve, curve) == 1
    assert at(es.threshold(2.0, when="below", after=1), [0] * 4, [3.0, NAN, NAN, 0.5]) == 3
    assert at(es.no_improvement(2), curve, curve) == 2
    assert at(es.no_improvement(2), [0] * 4, [NAN, 1.0, 2.0, 0.5]) == -1
    assert at(es.above_training(2), [0] * 4, [0.0, NAN, NAN, 0.0]) == 2


# Keeping the best


def test_keep_best_keeps_the_first_lowest():
    best = es.start_best({"w": jnp.zeros(2)})
    for epoch, loss in enumerate([NAN, 3.0, 1.0, 1.0, NAN, 2.0]):
        best = es.keep_best(best, {"w": jnp.full(2, float(epoch))}, loss, epoch)
    assert int(best.epoch) == 2
    assert float(best.loss) == 1.0
    assert best.params["w"].tolist() == [2.0, 2.0]


def test_keep_best_without_a_finite_loss_says_so():
    best = es.keep_best(es.start_best(jnp.ones(2)), jnp.zeros(2), jnp.inf, 0)
    assert int(best.epoch) == -1
    assert best.params.tolist() == [1.0, 1.0]
    assert np.isinf(best.loss)


def test_keep_best_takes_any_leaves():
    params = {
        "half": jnp.ones(3, jnp.bfloat16),
        "count": jnp.array(3),
        "key": jax.random.key(1),
        "mask": jnp.array([True, False]),
    }
    other = {**jax.tree.map(lambda v: v, params), "key": jax.random.key(2), "count": jnp.array(4)}
    best = jax.jit(es.keep_best)(es.start_best(params), other, jnp.bfloat16(0.5), 7)
    chex.assert_trees_all_equal_dtypes(best.params, params)
    assert int(best.params["count"]) == 4
    assert (jax.random.key_data(best.params["key"]) == jax.random.key_data(other["key"])).all()


# Inside loops


def train(rate, patience, start):
    """Descent on a bowl whose validation loss has its minimum elsewhere."""

    def step(x, rate):
        x = x - rate * 2 * x
        return x, x**2, (x - 1.0) ** 2

    return es.until_stopped(step, start, es.no_improvement(patience), rate, max_updates=60)


GRID = (np.array([0.02, 0.1, 0.2, 1e-3], np.float32), np.array([3, 5, 2, 4]))


def test_every_lane_stops_at_its_own_time():
    batched = jax.jit(jax.vmap(train, (0, 0, None)))(*GRID, 4.0)
    for i, (rate, patience) in enumerate(zip(*GRID, strict=True)):
        x, low, waited, path = 4.0, math.inf, 0, []
        while len(path) < 60 and waited < patience:
            x -= float(rate) * 2 * x
            path.append((x, x**2, (x - 1) ** 2))
            low, waited = (path[-1][2], 0) if path[-1][2] < low else (low, waited + 1)
        n = len(path)
        assert int(batched.num_updates[i]) == n
        assert bool(batched.stopped[i]) == (waited == patience)
        kept = int(np.argmin([v for _, _, v in path]))
        assert int(batched.best.epoch[i]) == kept
        # float32 against float64 over up to 60 products
        np.testing.assert_allclose(batched.carry[i], path[-1][0], rtol=1e-5)
        np.testing.assert_allclose(batched.best.params[i], path[kept][0], rtol=1e-5)
        np.testing.assert_allclose(batched.training[i, :n], [t for _, t, _ in path], rtol=2e-5)
        assert np.isnan(batched.training[i, n:]).all()
        assert np.isnan(batched.validation[i, n:]).all()
        alone = train(rate, patience, 4.0)
        lane = jax.tree.map(lambda leaf, i=i: leaf[i], batched)
        chex.assert_trees_all_close(lane, alone, rtol=1e-5)
    assert batched.stopped.tolist() == [True, True, True, False]  # the last one is too slow
    assert len(set(batched.num_updates.tolist())) == 4


def test_scan_with_frozen_lanes_equals_while_loop():
    """A loop that cannot end early freezes what has stopped: the same parameters."""
    rule = es.no_improvement(3)

    @jax.jit
    def scanned(start):
        def step(carry, _):
            x, state = carry
            new = 0.8 * x
            state_new, _ = rule.update(state, new**2, (new - 1.0) ** 2)
            done = state.stopped_at >= 0
            kept = jax.tree.map(lambda a, b: jnp.where(done, a, b), (x, state), (new, state_new))
            return kept, None

        return jax.lax.scan(step, (start, rule.init()), None, 40)[0]

    x, state = scanned(jnp.array(4.0))
    run = train(0.1, 3, 4.0)
    assert int(state.num_updates) == int(run.num_updates) < 40
    np.testing.assert_allclose(x, run.carry, rtol=1e-5)  # 1 - 0.2 and 0.8 round differently


def test_jit_equals_eager_and_hyper_parameters_do_not_recompile():
    def stops(limit, patience, delta, training, validation):
        rules = es.threshold(limit, after=2), es.no_improvement(patience, min_delta=delta)
        both = es.any_of(*rules, es.above_training(patience))
        return jnp.stack([es.stopped_at(rule, training, validation) for rule in (*rules, both)])

    compiled = jax.jit(chex.assert_max_traces(stops, n=1))
    for options in [(1.65, 2, 0.0), (1.85, 1, 0.15), (9.0, 4, 0.0)]:
        ours = compiled(*options, TRAINING, VALIDATION)
        assert ours.tolist() == stops(*options, TRAINING, VALIDATION).tolist()


def test_batched_patience_equals_a_loop():
    patience = jnp.arange(1, 6)
    stop = jax.vmap(lambda n: es.stopped_at(es.no_improvement(n), TRAINING, VALIDATION))(patience)
    assert stop.tolist() == [at(es.no_improvement(int(n))) for n in patience]


def test_double_precision_losses_are_compared_in_double_precision(x64):
    curve = np.array([1.0, 1.0 - 1e-12, 1.0 - 2e-12])
    assert int(es.stopped_at(es.no_improvement(1), curve, curve)) == -1
    state = es.no_improvement(np.int64(2)).init()
    assert es.no_improvement(2).update(state, 1.0, np.float64(2.0))[0].memory[0].dtype == "float64"


# The quadratic


def problem(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40, 5)) * np.array([3.0, 1.0, 0.5, 0.2, 0.05])
    return x, x @ rng.normal(size=5) + rng.normal(size=40)


def test_descent_is_its_filter_and_ridge_its_own(x64):
    x, y = problem()
    H = np.asarray(lr.hessian(x, fit_intercept=False))
    eigenvalues, vectors = np.linalg.eigh(H)
    solution = np.linalg.lstsq(x, y, rcond=None)[0]
    rate, steps = 0.04, 50
    walk = gd.gradient_descent(
        lambda w, x, y: jnp.square(x @ w - y).mean(), jnp.zeros(5), x, y,
        learning_rate=rate, num_steps=steps,
    )  # fmt: skip
    share = es.descent_filter(eigenvalues, learning_rate=rate, num_steps=steps)
    expected = vectors @ (share * (vectors.T @ solution))
    # float64; the weakest direction has a condition number of about 4000
    np.testing.assert_allclose(walk.params, expected, rtol=1e-9, atol=1e-12)

    penalty = 0.3
    ridge = np.linalg.solve(x.T @ x * 2 / 40 + penalty * np.eye(5), x.T @ y * 2 / 40)
    share = es.ridge_filter(eigenvalues, penalty=penalty)
    np.testing.assert_allclose(ridge, vectors @ (share * (vectors.T @ solution)), rtol=1e-9)

    exact = es.equivalent_penalty(eigenvalues, learning_rate=rate, num_steps=steps)
    one_each = np.linalg.solve(
        x.T @ x * 2 / 40 + vectors @ np.diag(exact) @ vectors.T, x.T @ y * 2 / 40
    )
    np.testing.assert_allclose(walk.params, one_each, rtol=1e-8)


@settings(deadline=None, max_examples=30)
@given(st.floats(1e-7, 0.999), st.integers(1, 10_000))
def test_the_filters_agree_as_far_as_the_page_says(x, steps):
    """0 <= (1 - (1-x)^t) - u / (1 + u), at most 0.204 in the limit of small steps."""
    eigenvalue = np.array([x], np.float32)
    descent = es.descent_filter(eigenvalue, learning_rate=1.0, num_steps=steps)[0]
    # In float64 by another route; the float32 rounding of x is shared.
    assert math.isclose(
        descent, -math.expm1(steps * math.log1p(-float(eigenvalue[0]))), rel_tol=2e-5
    )
    ridge = es.ridge_filter(eigenvalue, penalty=1 / steps)[0]
    assert descent - ridge >= -1e-6
    if x < 1e-3:
        assert descent - ridge < 0.204 + x


def test_filter_beyond_the_best_rate_and_at_the_ends():
    share = es.descent_filter(np.array([0.0, 1.0, 1.5, 2.0]), learning_rate=1.0, num_steps=3)
    np.testing.assert_allclose(share, [0.0, 1.0, 1.125, 2.0], rtol=1e-6)
    assert es.descent_filter(np.ones(1), learning_rate=1.0, num_steps=0)[0] == 0
    assert es.ridge_filter(np.array([0.0, 2.0]), penalty=0.0).tolist() == [0.0, 1.0]
    penalty = es.equivalent_penalty(np.array([0.0, 1e-9]), learning_rate=0.1, num_steps=20)
    np.testing.assert_allclose(penalty, 0.5, rtol=1e-6)  # 1 / (eta t)


def test_gradients_of_the_filters(x64):
    eigenvalues = jnp.array([0.01, 0.3, 0.9, 1.4])

    @jax.jit
    def filters(eigenvalues, rate, penalty):
        descent = es.descent_filter(eigenvalues, learning_rate=rate, num_steps=7)
        exact = es.equivalent_penalty(eigenvalues, learning_rate=rate, num_steps=7)
        return descent + es.ridge_filter(eigenvalues, penalty=penalty) + exact

    args = eigenvalues, jnp.array(1.1), jnp.array(0.2)
    chex.assert_numerical_grads(filters, args, order=1, modes=["rev"])
    # A flat direction and a step onto the minimum: no NaN in the branch that is not taken
    zero = jax.grad(lambda v: filters(v, 1.0, 0.2).sum())(jnp.array([0.0, 1.0]))
    assert np.isfinite(zero).all()


def test_filters_batch():
    rates = jnp.array([0.1, 0.5])
    batched = jax.vmap(
        lambda r: es.descent_filter(jnp.array([0.5, 1.0]), learning_rate=r, num_steps=3)
    )(rates)
    np.testing.assert_allclose(
        batched, 1 - (1 - rates[:, None] * np.array([[0.5, 1.0]])) ** 3, 1e-6
    )


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: es.no_improvement(0), ValueError, "patience must be in [1, "),
        (lambda: es.no_improvement(2.5), TypeError, "patience must be an integer array, got dtype"),
        (lambda: es.no_improvement(True), TypeError, "patience must be an integer, got True"),
        (lambda: es.no_improvement([1, 2]), ValueError, "patience must be 0-D, got shape (2,)"),
        (lambda: es.no_improvement(2, min_delta=-1), ValueError, "min_delta must not be negative"),
        (lambda: es.above_training(-3), ValueError, "patience must be in"),
        (lambda: es.threshold(NAN), ValueError, "limit must be a number, got nan"),
        (
            lambda: es.threshold(1.0, when="over"),
            ValueError,
            "when must be one of 'above', 'below'",
        ),
        (lambda: es.threshold(1.0, after=-1), ValueError, "after must be in [0, "),
        (lambda: es.any_of(), ValueError, "rules must hold at least one rule"),
        (
            lambda: es.any_of(5),
            TypeError,
            "rules must hold a Rule such as no_improvement(5), got 5",
        ),
        (
            lambda: es.stopped_at(es.threshold(1.0), np.ones(3), np.ones(2)),
            ValueError,
            "train_loss and validation_loss must have as many rows, got train_loss (3,)",
        ),
        (
            lambda: es.stopped_at(es.no_improvement, np.ones(3), np.ones(3)),
            TypeError,
            "rule must hold a Rule",
        ),
        (
            lambda: es.threshold(1.0).update(es.threshold(1.0).init(), 0.0, np.ones(2)),
            ValueError,
            "validation_loss must be 0-D, got shape (2,)",
        ),
        (
            lambda: es.keep_best(es.start_best({"w": jnp.ones(2)}), jnp.ones(2), 1.0, 0),
            ValueError,
            "params must have the structure",
        ),
        (
            lambda: es.keep_best(es.start_best({"w": jnp.ones(2)}), {"w": jnp.ones(3)}, 1.0, 0),
            ValueError,
            "params['w'] must have shape (2,) and dtype float32 as in best.params, got (3,)",
        ),
        (
            lambda: es.until_stopped(lambda x: (x, x, x), 0.0, es.threshold(1.0), max_updates=0),
            ValueError,
            "max_updates must be at least 1, got 0",
        ),
        (
            lambda: es.descent_filter(np.array([-1.0]), learning_rate=0.1, num_steps=1),
            ValueError,
            "eigenvalues must not be negative, got -1.0",
        ),
        (
            lambda: es.descent_filter(np.ones(1), learning_rate=0.0, num_steps=1),
            ValueError,
            "learning_rate must be positive, got 0.0",
        ),
        (
            lambda: es.equivalent_penalty(np.ones(1), learning_rate=0.1, num_steps=0),
            ValueError,
            "num_steps must be in [1, ",
        ),
        (
            lambda: es.ridge_filter(np.ones(2), penalty=np.ones(3)),
            ValueError,
            "penalty must be a scalar or have shape (2,), got shape (3,)",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


# The demo


def test_demo_claims():
    result = demo.run(jax.random.key(0), quick=True)
    by_rule = {outcome.rule: outcome for outcome in result.outcomes}
    patient, never = by_rule["no new lowest in 10"], by_rule["never"]
    # On the patient side the best epoch is kept, and it is 10 epochs before the stop.
    assert patient.best_epoch == result.validation.argmin() == patient.stopped_at - 10
    # Over-fitting: training keeps falling while validation rises and accuracy is lost. The margins
    # are half of what five other seeds gave (3 to 7 points).
    assert result.training[-1] < 0.75 * result.training[patient.best_epoch]
    assert result.validation[-1] > 1.05 * result.validation.min()
    assert patient.accuracy_kept > never.accuracy_last + 0.015
    runs = result.runs
    assert (runs.num_epochs == runs.best_epoch + 11).all()
    assert len(set(runs.num_epochs.tolist())) > 1
    assert runs.accuracy_kept.mean() > runs.accuracy_full.mean() + 0.02
    np.testing.assert_allclose(result.each.mean(axis=1), result.validation, rtol=1e-5)
    tables = demo.tables(result)
    assert [len(rows) for rows in tables.values()] == [5, 1]
    demo.plot(result)


def test_demo_problem_spoils_the_share_it_was_asked_for():
    clean = demo.problem(jax.random.key(0), noise=0.0)
    noisy = demo.problem(jax.random.key(0), noise=0.3)
    for ours, right in zip(noisy[:2], clean[:2], strict=True):
        share = float((ours[1] != right[1]).mean())
        assert abs(share - 0.3) < 0.1  # 400 draws: standard error 0.023
    chex.assert_trees_all_equal(noisy.test, clean.test)
    with pytest.raises(ValueError, match=r"num_train must be in 1..900, got 0"):
        demo.problem(jax.random.key(0), num_train=0)
    with pytest.raises(ValueError, match=r"noise must be in \[0, 1\], got 2"):
        demo.problem(jax.random.key(0), noise=2)
