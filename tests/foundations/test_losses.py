"""Losses against closed forms, PyTorch, Optax and scikit-learn."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from jax.flatten_util import ravel_pytree

from mlnotes_jax.demos.foundations import losses as demo
from mlnotes_jax.foundations import losses

N, K = 6, 4

RNG = np.random.default_rng(0)
Y = RNG.normal(size=(N,))
Y_HAT = Y + RNG.normal(size=N) * 2
P = RNG.uniform(0.05, 0.95, size=N)
HARD = np.array([0, 1, 1, 0, 1, 0])
SOFT = RNG.uniform(size=N)
LOGITS = RNG.normal(size=(N, K)) * 3
LABELS = np.array([0, 3, 1, 2, 2, 0])
TARGETS = RNG.dirichlet(np.ones(K), size=N)
SIGNS = np.array([1, -1, 1, 1, -1, -1])
LOG_P = LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))

# Every reduced loss with a pair of inputs; the first is the one that is differentiated.
CASES = {
    "mae": (losses.mae, Y_HAT, Y),
    "mse": (losses.mse, Y_HAT, Y),
    "huber": (functools.partial(losses.huber, delta=0.8), Y_HAT, Y),
    "epsilon_insensitive": (functools.partial(losses.epsilon_insensitive, epsilon=0.3), Y_HAT, Y),
    "binary_cross_entropy": (losses.binary_cross_entropy, P, SOFT),
    "binary_cross_entropy_with_logits": (losses.binary_cross_entropy_with_logits, Y_HAT, SOFT),
    "softmax_cross_entropy": (losses.softmax_cross_entropy, LOGITS, TARGETS),
    "softmax_cross_entropy_with_integer_labels": (
        losses.softmax_cross_entropy_with_integer_labels,
        LOGITS,
        LABELS,
    ),
    "nll": (losses.nll, LOG_P, LABELS),
    "hinge": (losses.hinge, Y_HAT, SIGNS),
    "squared_hinge": (losses.squared_hinge, Y_HAT, SIGNS),
    "exponential": (losses.exponential, Y_HAT, SIGNS),
    "logistic": (losses.logistic, Y_HAT, SIGNS),
}
each_loss = pytest.mark.parametrize(("loss", "a", "b"), CASES.values(), ids=CASES)


def every(transform=lambda loss: loss):
    """One compiled function of all pairs of inputs: `{name: transform(loss)(a, b, **options)}`."""

    @jax.jit
    def together(pairs, **options):
        return {name: transform(CASES[name][0])(*pair, **options) for name, pair in pairs.items()}

    return together


def in_float32():
    return {
        name: (a.astype(np.float32), b if b.dtype.kind == "i" else b.astype(np.float32))
        for name, (_, a, b) in CASES.items()
    }


# Loss and gradient in float64, both a few operations long: a few ulps, relative to numbers of
# order 1 to 100.
EXACT = {"rtol": 1e-13, "atol": 1e-14}


def test_every_loss_is_tested():
    penalties = {"l1_penalty", "l2_penalty", "elastic_net_penalty"}
    assert set(CASES) | penalties == set(losses.__all__)


# Closed forms


def test_values_by_hand():
    e = np.array([-3, -1, 0, 0.5, 1, 2], np.float32)

    def values(loss, **options):
        target = np.ones(N) if loss in (losses.hinge, losses.squared_hinge) else np.zeros(N)
        return jax.jit(functools.partial(loss, reduction="none", **options))(e, target).tolist()

    assert values(losses.mae) == [3, 1, 0, 0.5, 1, 2]
    assert values(losses.mse) == [9, 1, 0, 0.25, 1, 4]
    assert values(losses.huber, delta=2.0) == [4, 0.5, 0, 0.125, 0.5, 2]
    assert values(losses.epsilon_insensitive, epsilon=1.0) == [2, 0, 0, 0, 0, 1]
    assert values(losses.hinge) == [4, 2, 1, 0.5, 0, 0]
    assert values(losses.squared_hinge) == [16, 4, 1, 0.25, 0, 0]


def test_values_against_numpy(x64):
    m = Y_HAT * SIGNS
    exact = {
        "binary_cross_entropy": -SOFT * np.log(P) - (1 - SOFT) * np.log1p(-P),
        "binary_cross_entropy_with_logits": np.logaddexp(0, Y_HAT) - SOFT * Y_HAT,
        "softmax_cross_entropy": -(TARGETS * LOG_P).sum(1),
        "softmax_cross_entropy_with_integer_labels": -LOG_P[np.arange(N), LABELS],
        "nll": -LOG_P[np.arange(N), LABELS],
        "exponential": np.exp(-m),
        "logistic": np.log1p(np.exp(-m)),
    }
    pairs = {name: CASES[name][1:] for name in exact}
    ours = every(lambda loss: functools.partial(loss, reduction="none"))(pairs)
    for name, value in exact.items():
        np.testing.assert_allclose(ours[name], value, **EXACT, err_msg=name)


def test_gradients_at_the_kinks():
    def slope(loss, x, y):
        return float(jax.jit(jax.grad(loss))(x, y))

    assert slope(losses.mae, 1.0, 1.0) == 0
    assert slope(functools.partial(losses.huber, delta=1.0), 2.0, 1.0) == 1
    assert slope(functools.partial(losses.epsilon_insensitive, epsilon=1.0), 2.0, 1.0) == 0
    assert slope(losses.hinge, 1.0, 1.0) == 0


def test_gradient_of_softmax_cross_entropy_is_p_minus_y_for_all_classes(x64):
    p = np.exp(LOG_P)
    grad = jax.jit(jax.grad(functools.partial(losses.softmax_cross_entropy, reduction="sum")))
    np.testing.assert_allclose(grad(LOGITS, TARGETS), p - TARGETS, **EXACT)
    hard = functools.partial(losses.softmax_cross_entropy_with_integer_labels, reduction="sum")
    np.testing.assert_allclose(
        jax.jit(jax.grad(hard))(LOGITS, LABELS), p - np.eye(K)[LABELS], **EXACT
    )


def test_hessian_of_softmax_cross_entropy(x64):
    p = np.exp(LOG_P[0])
    hessian = jax.jit(jax.hessian(losses.softmax_cross_entropy_with_integer_labels))(LOGITS[0], 1)
    np.testing.assert_allclose(hessian, np.diag(p) - np.outer(p, p), **EXACT)
    eigenvalues, vectors = np.linalg.eigh(hessian)
    # the smallest eigenvalue is 0 up to the rounding of a matrix of norm < 1, the others are not
    assert abs(eigenvalues[0]) < 1e-15
    assert eigenvalues[1] > 1e-6
    np.testing.assert_allclose(np.abs(vectors[:, 0]), 0.5, atol=1e-9)  # (1, 1, 1, 1) / 2


def test_cross_entropy_is_kl_up_to_the_entropy_of_the_targets(x64):
    scipy_special = pytest.importorskip("scipy.special")
    kl = scipy_special.rel_entr(TARGETS, np.exp(LOG_P)).sum(1)
    entropy = scipy_special.entr(TARGETS).sum(1)
    ours = losses.softmax_cross_entropy(LOGITS, TARGETS, reduction="none")
    np.testing.assert_allclose(ours, kl + entropy, **EXACT)


# Peers


def torch_losses(torch):
    """PyTorch's function for each of ours; its targets come second, as ours do."""
    f = torch.nn.functional

    def signed(loss):
        return lambda scores, labels, reduction: loss(scores, labels.double(), reduction=reduction)

    return {
        "mae": f.l1_loss,
        "mse": f.mse_loss,
        "huber": functools.partial(f.huber_loss, delta=0.8),
        "binary_cross_entropy": f.binary_cross_entropy,
        "binary_cross_entropy_with_logits": f.binary_cross_entropy_with_logits,
        "softmax_cross_entropy": f.cross_entropy,
        "softmax_cross_entropy_with_integer_labels": f.cross_entropy,
        "nll": f.nll_loss,
        "logistic": signed(f.soft_margin_loss),
    }


def with_gradient(loss, **options):
    """The value, and the gradient of its sum with respect to the first argument."""

    def both(a, b):
        value, pull_back = jax.vjp(lambda a: loss(a, b, **options), a)
        return value, pull_back(jnp.ones_like(value))[0]

    return both


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_values_and_gradients_of_pytorch_in_float64(torch, x64, reduction):
    peers = torch_losses(torch)
    pairs = {name: CASES[name][1:] for name in peers}
    ours = every(functools.partial(with_gradient, reduction=reduction))(pairs)
    for name, theirs in peers.items():
        a, b = pairs[name]
        x = torch.tensor(a, requires_grad=True)
        expected = theirs(x, torch.tensor(b), reduction=reduction)
        expected.sum().backward()
        value, gradient = ours[name]
        np.testing.assert_allclose(value, expected.detach().numpy(), **EXACT, err_msg=name)
        np.testing.assert_allclose(gradient, x.grad.numpy(), **EXACT, err_msg=name)


def test_class_weights_of_pytorch(torch, x64):
    class_weights = np.array([0.5, 2.0, 1.0, 3.0])
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(LOGITS), torch.tensor(LABELS), weight=torch.tensor(class_weights)
    )
    ours = losses.softmax_cross_entropy_with_integer_labels(
        LOGITS, LABELS, weights=class_weights[LABELS]
    )
    np.testing.assert_allclose(ours, expected.item(), **EXACT)


def test_optax(x64):
    peers = {
        "huber": functools.partial(optax.losses.huber_loss, delta=0.8),
        "mse": lambda a, b: 2 * optax.losses.l2_loss(a, b),
        "hinge": lambda a, b: optax.losses.hinge_loss(a, b.astype(a.dtype)),
        "binary_cross_entropy_with_logits": optax.losses.sigmoid_binary_cross_entropy,
        "softmax_cross_entropy": optax.losses.softmax_cross_entropy,
        "softmax_cross_entropy_with_integer_labels": (
            optax.losses.softmax_cross_entropy_with_integer_labels
        ),
    }
    pairs = {name: CASES[name][1:] for name in peers}
    ours = every(lambda loss: functools.partial(loss, reduction="none"))(pairs)
    theirs = jax.jit(lambda pairs: {name: peers[name](*pair) for name, pair in pairs.items()})(
        jax.tree.map(jnp.asarray, pairs)
    )
    for name in peers:
        np.testing.assert_allclose(ours[name], theirs[name], **EXACT, err_msg=name)


def test_scikit_learn_takes_the_labels_first_and_weighs_as_we_do(x64):
    from sklearn import metrics

    w = np.arange(1.0, N + 1)
    for ours, theirs in [
        (losses.mae(Y_HAT, Y, weights=w), metrics.mean_absolute_error(Y, Y_HAT, sample_weight=w)),
        (losses.mse(Y_HAT, Y, weights=w), metrics.mean_squared_error(Y, Y_HAT, sample_weight=w)),
        (
            losses.hinge(Y_HAT, SIGNS, weights=w),
            metrics.hinge_loss(SIGNS, Y_HAT, sample_weight=w),
        ),
        (
            losses.binary_cross_entropy(P, HARD, weights=w),
            metrics.log_loss(HARD, P, sample_weight=w),
        ),
        (
            losses.nll(LOG_P, LABELS, weights=w),
            metrics.log_loss(LABELS, np.exp(LOG_P), sample_weight=w),
        ),
    ]:
        np.testing.assert_allclose(ours, theirs, **EXACT)


def test_objectives_of_scikit_learn_are_stationary_for_our_penalties(x64):
    def slope(objective, w):
        return jax.jit(jax.grad(objective))(w)

    # At the optimum of a smooth strongly convex objective its gradient is zero: this fixes the
    # factors, ½ or not, mean or sum. Tolerance: that of the solvers.
    from sklearn import linear_model, svm

    x = RNG.normal(size=(60, 3))
    y = x @ np.array([1.0, -2.0, 0.5]) + 0.1 * RNG.normal(size=60)
    sign = np.where(y > 0, 1, -1)

    ridge = linear_model.Ridge(alpha=0.7, fit_intercept=False).fit(x, y)
    gradient = slope(
        lambda w: losses.mse(x @ w, y, reduction="sum") + 2 * 0.7 * losses.l2_penalty(w),
        ridge.coef_,
    )
    np.testing.assert_allclose(gradient, 0, atol=1e-9)

    net = linear_model.ElasticNet(alpha=0.1, l1_ratio=0.3, fit_intercept=False, tol=1e-12)
    net = net.fit(x, y)
    assert (net.coef_ != 0).all()  # where no coefficient is zero, the objective is smooth
    gradient = slope(
        lambda w: 0.5 * losses.mse(x @ w, y) + 0.1 * losses.elastic_net_penalty(w, l1_ratio=0.3),
        net.coef_,
    )
    np.testing.assert_allclose(gradient, 0, atol=1e-9)

    machine = svm.LinearSVC(C=0.5, fit_intercept=False, tol=1e-9, dual=False).fit(x, sign)
    gradient = slope(
        lambda w: 0.5 * losses.squared_hinge(x @ w, sign, reduction="sum") + losses.l2_penalty(w),
        machine.coef_[0],
    )
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_epsilon_insensitive_of_scikit_learn(x64):
    # `LinearSVR` minimises C times our sum, plus ½ |w|²: no step away from its answer is lower.
    from sklearn import svm

    x, y = RNG.normal(size=(30, 2)), RNG.normal(size=30)
    model = svm.LinearSVR(epsilon=0.2, C=0.5, fit_intercept=False, tol=1e-10, max_iter=200_000)
    w = model.fit(x, y).coef_

    def objective(w):
        tube = losses.epsilon_insensitive(x @ w, y, epsilon=0.2, reduction="sum")
        return 0.5 * tube + losses.l2_penalty(w)

    steps = 1e-3 * np.stack([np.cos(a := np.linspace(0, 6, 12)), np.sin(a)], 1)
    around = [float(objective(w + step)) for step in steps]
    assert float(objective(w)) < min(around)


# Reduction, weights, masks


@each_loss
def test_reductions_weights_and_masks_agree_with_numpy(loss, a, b, x64):
    rng = np.random.default_rng(1)
    w, m = rng.uniform(0.5, 2, N), np.array([True, False, True, True, False, True])
    plain = np.asarray(loss(a, b, reduction="none"))
    assert plain.shape == (N,)
    for weights, where in [(None, None), (w, None), (None, m), (w, m)]:
        factor = (1 if weights is None else w) * (np.ones(N) if where is None else m)
        options = {"weights": weights, "where": where}
        none = loss(a, b, reduction="none", **options)
        np.testing.assert_allclose(none, factor * plain, **EXACT)
        total = loss(a, b, reduction="sum", **options)
        np.testing.assert_allclose(total, (factor * plain).sum(), **EXACT)
        mean = loss(a, b, **options)
        np.testing.assert_allclose(mean, (factor * plain).sum() / factor.sum(), **EXACT)


def test_a_masked_entry_reaches_neither_value_nor_gradient():
    m, w = np.array([True, False, True, True, False, True]), np.full(N, 2, np.float32)
    both, pairs = every(jax.value_and_grad), in_float32()
    clean = both(pairs, where=m, weights=w)
    for poison in (np.nan, np.inf):

        def spoil(x):
            wrong = -100 if x.dtype.kind == "i" else poison  # noqa: B023
            return np.where(m.reshape(-1, *[1] * (x.ndim - 1)), x, wrong).astype(x.dtype)

        spoilt = both(jax.tree.map(spoil, pairs), where=m, weights=spoil(w))
        for name, (value, gradient) in spoilt.items():
            # the same program on the same numbers
            assert value == clean[name][0], name
            np.testing.assert_array_equal(gradient, clean[name][1], err_msg=name)
            assert (np.asarray(gradient)[~m] == 0).all(), name
            assert (np.asarray(gradient)[m] != 0).any(), name


def test_a_mean_over_nothing_is_nan_and_a_sum_is_zero():
    off = [False, False]
    assert np.isnan(losses.mse([1.0, 2.0], [0.0, 0.0], where=off))
    assert np.isnan(losses.mse([1.0, 2.0], [0.0, 0.0], weights=[0.0, 0.0]))
    assert losses.mse([1.0, 2.0], [0.0, 0.0], where=off, reduction="sum") == 0


def test_row_weights_and_masks_spread_over_the_columns():
    predictions, zero = np.array([[1.0, 3.0], [2.0, 4.0]], np.float32), np.zeros((2, 2))
    assert losses.mse(predictions, zero, weights=[3.0, 1.0]) == (3 * 10 + 20) / (3 * 2 + 2)
    assert losses.mse(predictions, zero, where=[False, True]) == 10
    assert losses.mse(predictions, zero, weights=[1.0, 1.0]) == losses.mse(predictions, zero)


# Numbers


BIG = np.array([-1e4, -100.0, -17.0, 0.0, 17.0, 100.0, 1e4], np.float32)


@pytest.mark.parametrize("label", [0, 1])
def test_logistic_losses_are_accurate_for_any_logit(label):
    exact = np.logaddexp(0, (1 - 2 * label) * BIG.astype(np.float64))
    sign = 2 * label - 1
    exact_slope = -sign * np.exp(-np.logaddexp(0, sign * BIG.astype(np.float64)))
    signs = np.full(7, sign)
    for loss, target in [
        (losses.binary_cross_entropy_with_logits, np.full(7, label)),
        (losses.logistic, signs),
    ]:
        value = loss(BIG, target, reduction="none")
        gradient = jax.jit(jax.grad(functools.partial(loss, reduction="sum")))(BIG, target)
        # float32, a few ulps, relative: even exp(-100) underflows no more than it must
        np.testing.assert_allclose(value, exact, rtol=5e-7, atol=1e-43)
        np.testing.assert_allclose(gradient, exact_slope, rtol=5e-7, atol=1e-43)


@pytest.mark.parametrize(
    "loss",
    [
        losses.softmax_cross_entropy_with_integer_labels,
        lambda z, y: losses.softmax_cross_entropy(z, jnp.eye(3)[y]),
    ],
)
def test_softmax_cross_entropy_of_huge_logits(loss):
    z = np.array([1e4, -1e4, 0.0], np.float32)
    both = jax.jit(jax.value_and_grad(loss))
    values, gradients = zip(*[both(z, y) for y in range(3)], strict=True)
    assert [float(value) for value in values] == [0, 2e4, 1e4]
    gradients = [gradient.tolist() for gradient in gradients]
    assert gradients == [[0, 0, 0], [1, -1, 0], [1, 0, -1]]


@pytest.mark.parametrize("name", ["mse", "mae", "huber", "epsilon_insensitive", "hinge"])
def test_large_scores_have_finite_losses_and_gradients(name):
    loss = CASES[name][0]
    value, gradient = jax.jit(jax.value_and_grad(loss))(BIG, np.ones(7))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_exponential_is_infinite_where_float32_ends():
    assert np.isfinite(losses.exponential(-88.0, 1))
    assert np.isposinf(losses.exponential(-89.0, 1))


def test_sure_probabilities():
    assert losses.binary_cross_entropy([0.0, 1.0], [0, 1]) == 0
    assert np.isposinf(losses.binary_cross_entropy([0.0], [1]))
    # 0 ln 0 = 0 in the gradient as well: d/dp of -ln(1 - p) at 0, and of -ln p at 1
    total = functools.partial(losses.binary_cross_entropy, reduction="sum")
    gradient = jax.jit(jax.grad(total))(np.float32([0, 1]), np.array([0, 1]))
    assert gradient.tolist() == [1, -1]


def test_an_impossible_class_of_target_zero_costs_nothing():
    z = jnp.array([0.0, 0.0, -jnp.inf])
    both = jax.jit(jax.value_and_grad(losses.softmax_cross_entropy))
    value, gradient = both(z, np.array([1.0, 0, 0]))
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    assert gradient.tolist() == [-0.5, 0.5, 0]


def test_soft_targets_have_a_gradient(x64):
    by_target = jax.jit(jax.grad(losses.softmax_cross_entropy, argnums=1))
    gradient = by_target(LOGITS[0], np.eye(K)[0])
    np.testing.assert_allclose(gradient, -LOG_P[0], **EXACT)  # also where the target is 0


def test_small_dtypes_are_computed_in_float32():
    both = every(jax.value_and_grad)
    low = {name: (jnp.asarray(a, jnp.bfloat16), b) for name, (a, b) in in_float32().items()}
    exact = both({name: (a.astype(jnp.float32), b) for name, (a, b) in low.items()})
    for name, (value, gradient) in both(low).items():
        assert value.dtype == jnp.float32
        assert gradient.dtype == jnp.bfloat16
        # in float32 from the start; the gradient is rounded once, to 8 bits
        np.testing.assert_allclose(value, exact[name][0], rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(
            np.asarray(gradient, np.float32), exact[name][1], rtol=2**-8, atol=1e-9, err_msg=name
        )


def test_dtypes_follow_the_predictions(x64):
    single = losses.mse(np.float32([1, 2]), np.float64([0, 0]), weights=np.float64([1, 2]))
    assert single.dtype == jnp.float32
    assert losses.mse([1, 2], [0, 0]).dtype == jnp.float64  # integers are promoted


# Penalties


def test_penalties_by_hand_on_any_tree():
    tree = {"kernel": np.array([[3.0, -4.0]]), "rest": [np.float32(2.0), (jnp.zeros(3), None)]}
    assert losses.l1_penalty(tree) == 9
    assert losses.l2_penalty(tree) == 14.5
    assert losses.elastic_net_penalty(tree, l1_ratio=0.25) == 0.25 * 9 + 0.75 * 14.5
    assert losses.l1_penalty({}) == 0
    gradient = jax.jit(jax.grad(losses.l1_penalty))(jnp.array([-2.0, 0.0, 5.0]))
    assert gradient.tolist() == [-1, 0, 1]
    assert jax.jit(jax.grad(losses.l2_penalty))(jnp.array([-2.0, 5.0])).tolist() == [-2, 5]
    assert losses.l2_penalty(jnp.ones(1000, jnp.bfloat16)) == 500  # bfloat16 would stop at 128


# Properties


finite = st.floats(-1e3, 1e3, width=32)
rows_of_cross_entropy = jax.jit(
    functools.partial(losses.softmax_cross_entropy_with_integer_labels, reduction="none")
)


@settings(deadline=None, max_examples=25)
@given(npst.arrays(np.float32, (3, 5), elements=finite), st.integers(0, 4), finite)
def test_softmax_cross_entropy_is_not_negative_and_ignores_a_shift(z, label, shift):
    y = np.full(3, label)
    value = rows_of_cross_entropy(z, y)
    assert (value >= 0).all()
    shifted = rows_of_cross_entropy(z + np.float32(shift), y)
    # rounding of z + shift, up to 2000 in float32, in both the largest and the true logit
    np.testing.assert_allclose(shifted, value, rtol=1e-6, atol=4 * 2000 * 2**-24)


@settings(deadline=None, max_examples=25)
@given(npst.arrays(np.float32, (2, 9), elements=finite), st.floats(0.0625, 64, width=32))
def test_huber_is_between_its_two_limits(pair, delta):
    e = np.abs(pair[0] - pair[1])
    value = np.asarray(losses.huber(*pair, delta=delta, reduction="none"))
    slack = 1 + 1e-6  # two roundings in float32
    assert (value <= slack * np.minimum(0.5 * e**2, delta * e)).all()
    np.testing.assert_allclose(value[e <= delta], 0.5 * e[e <= delta] ** 2, rtol=1e-6)


# Transformations


def test_jit_and_vmap_agree_with_eager_calls_and_a_loop():
    pairs, compiled = in_float32(), every()
    together, batched = compiled(pairs), every(jax.vmap)(pairs)
    rows = [compiled(jax.tree.map(lambda x: x[i], pairs)) for i in range(N)]  # noqa: B023
    for name, (a, b) in pairs.items():
        # the same operations; XLA may fuse a product with a sum, and then rounds once less
        close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7, err_msg=name)
        close(together[name], CASES[name][0](a, b))
        close(batched[name], np.stack([row[name] for row in rows]))


def test_vmap_over_hyper_parameters_equals_a_loop():
    values = jnp.array([0.1, 0.5, 1.0])
    for loss, name in [(losses.huber, "delta"), (losses.epsilon_insensitive, "epsilon")]:
        one = jax.jit(lambda v: loss([1.0, -3.0], [0.0, 0.0], **{name: v}))  # noqa: B023
        batched, loop = jax.jit(jax.vmap(one))(values), [one(v) for v in values]
        np.testing.assert_allclose(batched, loop, rtol=1e-6)
    one = functools.partial(losses.elastic_net_penalty, np.float32([1, -3]))
    batched = jax.jit(jax.vmap(lambda r: one(l1_ratio=r)))(values)
    np.testing.assert_allclose(batched, 4 * values + 5 * (1 - values), rtol=1e-6)


def test_second_call_does_not_recompile():
    @jax.jit
    @functools.partial(chex.assert_max_traces, n=1)
    def once(z, y, delta, weights, where):
        fit = losses.huber(z[:, 0], z[:, 1], delta=delta, weights=weights)
        return fit + losses.softmax_cross_entropy_with_integer_labels(z, y, where=where)

    z, y, w = LOGITS.astype(np.float32), LABELS, np.ones(N, np.float32)
    first = once(z, y, 0.5, w, w > 0)
    assert first != once(z + 1, y[::-1], 1.5, 2 * w, y > 0)


def test_gradients_against_finite_differences(x64):
    weights, together = np.arange(1.0, N + 1), every()
    flat, unravel = ravel_pytree({name: a for name, (_, a, _) in CASES.items()})

    def total(flat):
        pairs = {name: (a, CASES[name][2]) for name, a in unravel(flat).items()}
        return sum(together(pairs, weights=weights).values())

    # The inputs are away from every kink, so central differences are good to eps^(2/3).
    chex.assert_numerical_grads(jax.jit(total), (flat,), order=1, atol=1e-7, rtol=1e-6)


def test_gradient_by_delta_and_epsilon(x64):
    chex.assert_numerical_grads(
        jax.jit(
            lambda d, e: (
                losses.huber(Y_HAT, Y, delta=d) + losses.epsilon_insensitive(Y_HAT, Y, epsilon=e)
            )
        ),
        (jnp.array(0.8), jnp.array(0.3)),
        order=1,
    )


# Bad input


def test_shapes_that_would_broadcast_are_refused():
    message = (
        r"predictions and targets must have one shape, got predictions \(3,\), targets \(3, 1\)"
    )
    with pytest.raises(ValueError, match=message):
        losses.mse(np.ones(3), np.ones((3, 1)))
    with pytest.raises(ValueError, match=r"logits and targets must have one shape"):
        losses.softmax_cross_entropy(np.ones((3, 2)), np.ones(3))
    with pytest.raises(
        ValueError, match=r"labels must have the shape .*\(3,\), got shape \(3, 1\)"
    ):
        losses.nll(np.ones((3, 2)), np.zeros((3, 1), int))
    with pytest.raises(ValueError, match=r"weights must have the leading axes .* got shape \(2,\)"):
        losses.mse(np.ones((3, 2)), np.ones((3, 2)), weights=np.ones(2))
    with pytest.raises(
        ValueError, match=r"where must have the leading axes .* got shape \(3, 2, 1"
    ):
        losses.mse(np.ones((3, 2)), np.ones((3, 2)), where=np.ones((3, 2, 1), bool))
    with pytest.raises(ValueError, match=r"logits must have classes on the last axis, got shape"):
        losses.softmax_cross_entropy(1.0, 1.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: losses.mse([1.0], [1.0], reduction="average"),
            ValueError,
            "reduction must be one",
        ),
        (lambda: losses.mse([1.0], [1.0], weights=[-1.0]), ValueError, "weights must not be neg"),
        (lambda: losses.mse([1.0], [1.0], where=[1.0]), TypeError, "where must be a Boolean array"),
        (lambda: losses.mse([None], [1.0]), TypeError, "predictions must be a numeric array"),
        (
            lambda: losses.huber([1.0], [1.0], delta=0.0),
            ValueError,
            "delta must be positive, got 0",
        ),
        (lambda: losses.huber([1.0], [1.0], delta=[1.0]), ValueError, "delta must be 0-D"),
        (
            lambda: losses.epsilon_insensitive([1.0], [1.0], epsilon=-1.0),
            ValueError,
            "epsilon must not be negative, got -1",
        ),
        (
            lambda: losses.binary_cross_entropy([1.5], [1]),
            ValueError,
            r"probabilities must be in \[0, 1\], got 1.5",
        ),
        (
            lambda: losses.binary_cross_entropy_with_logits([1.5], [2]),
            ValueError,
            r"targets must be in \[0, 1\], got 2",
        ),
        (
            lambda: losses.softmax_cross_entropy([[1.0, 2.0]], [[-1.0, 2.0]]),
            ValueError,
            "targets must not be negative, got -1",
        ),
        (
            lambda: losses.softmax_cross_entropy_with_integer_labels(np.ones((2, 3)), [0, 3]),
            ValueError,
            r"labels must be in 0..2 \(3 classes\), got 3 at index 1",
        ),
        (
            lambda: losses.nll(np.ones((2, 3)), [0.0, 1.0]),
            TypeError,
            "labels must be an integer array",
        ),
        (lambda: losses.hinge([1.0, 2.0], [0, 1]), ValueError, r"labels must be -1 or \+1, got 0"),
        (
            lambda: losses.l1_penalty({"name": np.array(["a"])}),
            TypeError,
            "parameters must be a numeric array",
        ),
        (
            lambda: losses.elastic_net_penalty([1.0], l1_ratio=2.0),
            ValueError,
            r"l1_ratio must be in \[0, 1\], got 2",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("label", [-1, 3])
def test_under_jit_a_wrong_class_is_nan_in_value_and_gradient(label):
    loss = losses.softmax_cross_entropy_with_integer_labels
    both = jax.jit(jax.value_and_grad(functools.partial(loss, reduction="sum")))
    value, gradient = both(np.ones((2, 3), np.float32), np.array([label, 0]))
    assert np.isnan(value)
    assert np.isnan(gradient[0]).all()
    assert np.isfinite(gradient[1]).all()


@pytest.mark.parametrize("name", ["hinge", "squared_hinge", "exponential", "logistic"])
def test_under_jit_a_label_that_is_no_sign_is_nan(name):
    both = jax.jit(jax.value_and_grad(CASES[name][0]))
    value, gradient = both(np.float32(0.3), np.float32(0))
    assert np.isnan(value)
    assert np.isnan(gradient)


# The demo and the page's claims


@pytest.fixture(scope="module")
def result():
    return demo.run(jax.random.key(0), quick=True)


def test_squared_error_is_flat_in_the_wrong_corner(result):
    squared, cross = result.gradient_norms
    z = np.array([-10.0, 10.0, 0.0])
    p = np.exp(z) / np.exp(z).sum()
    delta = 1 - p.max()
    assert squared <= 4 * np.sqrt(2) * delta  # the page's bound
    assert cross > 1.4  # nearly the square root of 2
    assert result.corner_steps[0] > 1000 * result.corner_steps[1] > 0


def test_surfaces_are_the_losses(result):
    z1, z2 = np.meshgrid(result.grid, result.grid)
    z = np.stack([z1, z2, np.zeros_like(z1)], -1).astype(np.float64)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    squared = ((np.exp(log_p) - np.eye(3)[0]) ** 2).sum(-1)
    # float32 against float64; the loss goes up to 24
    np.testing.assert_allclose(result.surfaces[0], squared, atol=1e-6)
    np.testing.assert_allclose(result.surfaces[1], -log_p[..., 0], rtol=1e-6, atol=1e-6)


def test_from_wrong_weights_only_cross_entropy_recovers_soon(result):
    assert result.start_accuracy[1] < 0.05
    (fresh_squared, wrong_squared), (fresh_cross, wrong_cross) = result.accuracies[:, :, -1]
    assert min(fresh_squared, fresh_cross, wrong_cross) > 0.9
    assert wrong_squared < 0.85
    # Far apart where the large rates that do best are still chaotic, and differ by platform
    assert result.accuracies[0, 1, :20].max() < 0.5 < 0.7 < result.accuracies[1, 1, 19]


def test_l1_keeps_edges_and_draws_no_ghosts_but_loses_no_less_ink(result):
    (l2_edges, l1_edges), (l2_ghosts, l1_ghosts) = result.edges_kept, result.ghosts
    assert l1_edges > l2_edges + 0.05
    assert l1_ghosts < l2_ghosts - 0.05
    assert result.ink_lost[1] > result.ink_lost[0]
    assert result.squared_errors[0] < result.squared_errors[1]  # each wins at its own loss
    assert result.absolute_errors[1] < result.absolute_errors[0]


def test_demo_shows_its_numbers(result):
    import matplotlib as mpl

    mpl.use("agg")
    rows = [row for table in demo.tables(result).values() for row in table]
    assert len(rows) == 2 + 4 + 2
    assert rows[1]["steps at rate 1"] == result.corner_steps[1]
    figure = demo.plot(result)
    assert any("cross-entropy" in axes.get_title() for axes in figure.axes)
    assert result.source.name == "digits"
