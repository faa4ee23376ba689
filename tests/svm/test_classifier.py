"""Support vector classification against libsvm, NumPy, and what is known on paper."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlnotes_jax.data import datasets
from mlnotes_jax.demos.svm import classifier as demo
from mlnotes_jax.svm import _smo, classifier, kernels


@functools.cache
def standardised(name):
    data = datasets.load(name)
    x = np.asarray(data.x, np.float64)
    spread = x.std(0)
    return (x - x.mean(0)) / np.where(spread > 0, spread, 1), np.asarray(data.y)


@functools.cache
def blobs(n, d=2, seed=0, dtype=np.float32):
    """Two clouds that overlap."""
    rng = np.random.default_rng(seed)
    y = (np.arange(n) % 2).astype(np.int32)
    return (rng.normal(size=(n, d)) + 0.8 * (2 * y[:, None] - 1)).astype(dtype), y


def squared_distances(x, z):
    return np.square(x[:, None] - z[None]).sum(-1)


#: Kernels, and the same written down in NumPy.
KERNELS = {
    "linear": (kernels.linear(), lambda x, z: x @ z.T),
    "polynomial": (
        kernels.polynomial(3, gamma=0.25, offset=1.0),
        lambda x, z: (0.25 * x @ z.T + 1) ** 3,
    ),
    "gaussian": (kernels.gaussian(0.25), lambda x, z: np.exp(-0.25 * squared_distances(x, z))),
    "laplacian": (
        kernels.laplacian(0.5),
        lambda x, z: np.exp(-0.5 * np.sqrt(squared_distances(x, z))),
    ),
    "manhattan": (
        kernels.laplacian(0.5, norm="manhattan"),
        lambda x, z: np.exp(-0.5 * np.abs(x[:, None] - z[None]).sum(-1)),
    ),
    "sigmoid": (kernels.sigmoid(0.3, offset=-1.0), lambda x, z: np.tanh(0.3 * x @ z.T - 1)),
}


@jax.jit
def fit_any_kernel(x, y, which, C, tol, class_weight, sample_weight):
    """One program for all kernels: their sum, of which `which` has one 1 and zeros."""
    kernel = which[0] * kernels.linear()
    for share, (k, _) in zip(which[1:], list(KERNELS.values())[1:], strict=True):
        kernel = kernel + share * k
    model = classifier.fit(
        x,
        y,
        kernel=kernel,
        C=C,
        tol=tol,
        class_weight=class_weight,
        sample_weight=sample_weight,
        num_classes=2,
    )
    return model, classifier.decision_function(model, x)


def kernel_fit(name, x, y, C, tol, class_weight=(1.0, 1.0), sample_weight=None):
    which = (np.array(list(KERNELS)) == name).astype(float)
    weight = np.ones(len(y)) if sample_weight is None else sample_weight
    return jax.tree.map(
        np.asarray, fit_any_kernel(x, y, which, C, tol, np.asarray(class_weight), weight)
    )


def box(y, costs):
    """Signs, lower and upper bounds of signed duals; class 1 is positive."""
    sign = np.where(np.asarray(y) == 1, 1.0, -1.0)
    return sign, np.minimum(0, sign * costs), np.maximum(0, sign * costs)


def true_violation(gram, y, costs, beta):
    """Of the KKT conditions, in float64 and from nothing but the duals."""
    sign, lower, upper = box(y, costs)
    beta = np.asarray(beta, np.float64)
    assert ((beta >= lower) & (beta <= upper)).all(), "outside of the box"
    v = sign - gram @ beta
    return v[beta < upper].max() - v[beta > lower].min()


def dual_objective(gram, y, beta):
    sign, _, _ = box(y, 1)
    return sign @ beta - beta @ gram @ beta / 2


def libsvm(gram, y, C, tol, class_weight=(1.0, 1.0)):
    """Signed duals and training scores of scikit-learn's SVC, positive for class 1."""
    from sklearn.svm import SVC

    weights = dict(enumerate(class_weight))
    peer = SVC(kernel="precomputed", C=C, tol=tol, class_weight=weights).fit(gram, y)
    beta = np.zeros(len(y))
    beta[peer.support_] = peer.dual_coef_[0]
    return beta, peer.decision_function(gram)


def polish(gram, y, costs, beta):
    """Solve the KKT conditions in float64, given which duals of `beta` are free and which bound.

    libsvm keeps kernel values in float32: asked for 1e-6 or 1e-10, its true violation may stay at
    1e-5. What it knows well is which duals are free; then the rest is a linear system.
    """
    sign, lower, upper = box(y, costs)
    free = (np.abs(beta) > 1e-9 * costs) & (np.abs(beta) < costs * (1 - 1e-9))
    exact = np.where(free | (np.abs(beta) < costs / 2), 0, sign * costs)
    count = free.sum()
    system = np.ones((count + 1, count + 1))
    system[:count, :count], system[count, count] = gram[np.ix_(free, free)], 0
    right = np.append((sign - gram @ exact)[free], -exact.sum())
    found = np.linalg.lstsq(system, right, rcond=None)[0]
    exact[free] = found[:count]
    assert count
    assert ((exact >= lower) & (exact <= upper)).all()
    assert true_violation(gram, y, costs, exact) < 1e-8
    return exact, gram @ exact + found[count]


def check_against_libsvm(gram, y, C, tol, beta, scores, converged, class_weight=(1.0, 1.0)):
    """The three promises: objective, decision values, violation."""
    assert converged
    costs = C * np.asarray(class_weight)[np.asarray(y)]
    # 1e-12: the gradient of the test and of the code round differently
    assert true_violation(gram, y, costs, beta) <= tol + 1e-12
    peer_beta, peer_scores = libsvm(gram, y, C, tol, class_weight)
    if tol < 1e-3:
        peer_beta, peer_scores = polish(gram, y, costs, peer_beta)
    ours, theirs = dual_objective(gram, y, beta), dual_objective(gram, y, peer_beta)
    assert ours >= theirs - 1e-6 * abs(theirs)
    # Both are within tol of the optimum, by their own stopping rule; the bounds
    bound = {1e-3: 1e-2, 1e-6: 1e-5}[tol] * max(1, np.abs(peer_scores).max())
    assert np.abs(scores - peer_scores).max() <= bound


# --- Closed forms ---------------------------------------------------------------------------------


@pytest.mark.parametrize("C", [0.1, 10.0])
def test_two_points_by_hand(C, x64):
    # x = -1 and 1: D = 2 a - 2 a^2 with a <= C, so a = min(C, 1/2), w = 2 a; b = 0 by symmetry:
    # with a = C < 1/2 no vector is free, and the middle of the interval is taken.
    # All other rows have weight 0.
    x, y, weight = np.full((100, 4), 9.0), np.zeros(100, np.int32), np.zeros(100)
    x[:2], y[1], weight[:2] = [[-1, 0, 0, 0], [1, 0, 0, 0]], 1, 1
    model, _ = kernel_fit("linear", x, y, C, 1e-9, sample_weight=weight)
    a = min(C, 0.5)
    np.testing.assert_allclose(model.dual_coef, [[-a, a] + [0] * 98], rtol=1e-12)
    np.testing.assert_allclose(model.intercept, [0], atol=1e-12)
    points = np.array([[3.0, 0, 0, 0], [-2.0, 7, 7, 7]])
    scores = classifier.decision_function(model, points)
    np.testing.assert_allclose(scores, [6 * a, -4 * a], rtol=1e-12)
    assert classifier.predict(model, points).tolist() == [1, 0]
    proof = classifier.certificate(model, x, y)
    primal = 2 * a * a + 2 * C * max(0, 1 - 2 * a)
    np.testing.assert_allclose(proof.primal, [primal], rtol=1e-12)
    np.testing.assert_allclose(proof.dual, [2 * a - 2 * a * a], rtol=1e-12)
    np.testing.assert_allclose(proof.gap, [0], atol=1e-12)
    free = 2 if a < C else 0
    assert (proof.num_free.tolist(), proof.num_bound.tolist()) == ([free], [2 - free])
    assert np.flatnonzero(model.support).tolist() == [0, 1]


# --- Peers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in KERNELS if name != "sigmoid"])
def test_every_kernel_equals_libsvm(name, x64):
    x, y = standardised("iris")
    x, y = x[50:], y[50:] - 1
    gram = KERNELS[name][1](x, x)
    for C, tol, class_weight in [
        (1e-3, 1e-3, (1.0, 1.0)),
        (1.0, 1e-3, (3.0, 0.5)),
        (1.0, 1e-6, (0.2, 1.0)),
        (100.0, 1e-3, (1.0, 1.0)),
        (100.0, 1e-6, (1.0, 1.0)),
    ]:
        model, scores = kernel_fit(name, x, y, C, tol, class_weight)
        beta = model.dual_coef[0]
        np.testing.assert_allclose(scores, gram @ beta + model.intercept[0], atol=1e-9)
        check_against_libsvm(gram, y, C, tol, beta, scores, model.converged[0], class_weight)


def test_a_kernel_that_is_none_is_judged_by_its_violation(x64):
    # tanh: no single answer, so only the KKT conditions can be held against it
    x, y = standardised("iris")
    x, y = x[50:], y[50:] - 1
    gram = KERNELS["sigmoid"][1](x, x)
    assert np.linalg.eigvalsh(gram)[0] < -1
    for C, tol in [(0.1, 1e-3), (10.0, 1e-6)]:
        model, _ = kernel_fit("sigmoid", x, y, C, tol)
        violation = true_violation(gram, y, np.full(100, C), model.dual_coef[0])
        np.testing.assert_allclose(model.violation[0], violation, atol=1e-10)
        assert model.converged[0] == (violation <= tol)
        assert model.converged[0]


@functools.cache
def tumours():
    """Breast cancer in float64, and its Gram matrix for gamma = 1/30."""
    x, y = standardised("breast_cancer")
    return x, y, np.exp(-squared_distances(x, x) / 30)


def fit_tumours(**options):
    x, y, _ = tumours()
    return classifier.fit(x, y, kernel=kernels.gaussian(1 / 30), num_classes=2, **options)


def test_breast_cancer_equals_libsvm(x64):
    x, y, gram = tumours()
    for C, tol in [(1e-3, 1e-3), (1.0, 1e-3), (1.0, 1e-6), (100.0, 1e-3), (100.0, 1e-6)]:
        model = fit_tumours(C=C, tol=tol)
        scores = np.asarray(classifier.decision_function(model, x))
        beta = np.asarray(model.dual_coef[0])
        check_against_libsvm(gram, y, C, tol, beta, scores, bool(model.converged[0]))


@jax.jit
def fit_three(x, y, gamma, C, tol, sample_weight):
    model = classifier.fit(
        x,
        y,
        kernel=kernels.gaussian(gamma),
        C=C,
        tol=tol,
        sample_weight=sample_weight,
        num_classes=3,
    )
    return model, classifier.machines(model, x), classifier.decision_function(model, x)


def check_pairs(gram, y, C, tol, model, raw, scores):
    """Every machine of a pair against libsvm, and their votes by hand."""
    k, n = y.max() + 1, len(y)
    pairs = list(itertools.combinations(range(k), 2))
    votes, sums = np.zeros((n, k)), np.zeros((n, k))
    for m, (first, second) in enumerate(pairs):
        mine = (y == first) | (y == second)
        beta = model.dual_coef[m][:n]
        assert not beta[~mine].any()
        # positive is the first class of a pair: call it class 1
        check_against_libsvm(
            gram[np.ix_(mine, mine)],
            (y[mine] == first).astype(int),
            C,
            tol,
            beta[mine],
            raw[mine, m],
            bool(model.converged[m]),
        )
        votes[:, first] += raw[:, m] > 0
        votes[:, second] += raw[:, m] <= 0
        sums[:, first] += raw[:, m]
        sums[:, second] -= raw[:, m]
    by_hand = votes + sums / (3 * (np.abs(sums) + 1))
    np.testing.assert_allclose(scores, by_hand, atol=1e-9)


@pytest.mark.parametrize("name", ["wine", "iris"])
def test_three_classes_equal_libsvm(name, x64):
    x, y = standardised(name)
    n, d = x.shape
    gamma = 1 / (d * x.var())
    gram = np.exp(-gamma * squared_distances(x, x))
    # One program for both sets: rows of weight 0, and features that are 0.
    wide, codes = np.zeros((178, 13)), np.zeros(178, np.int32)
    wide[:n, :d], codes[:n] = x, y
    for C, tol in [(100.0, 1e-3), (1.0, 1e-6)]:
        found = fit_three(wide, codes, gamma, C, tol, (np.arange(178) < n).astype(float))
        model, raw, scores = jax.tree.map(np.asarray, found)
        assert not model.dual_coef[:, n:].any()
        check_pairs(gram, y, C, tol, model, raw[:n], scores[:n])
    # The last fit, of tolerance 1e-6, against the whole of scikit-learn
    from sklearn.svm import SVC

    peer = SVC(C=1.0, tol=1e-6, break_ties=True).fit(x, y)
    # libsvm's kernel values are float32; squashing is flatter than the identity
    np.testing.assert_allclose(scores[:n], peer.decision_function(x), atol=1e-4)
    np.testing.assert_array_equal(classifier.predict(model, wide)[:n], peer.predict(x))
    # A dual that is 0 for one may be 1e-9 for the other
    assert abs(int(model.support.sum()) - len(peer.support_)) <= 2


def test_ten_classes_from_a_gram_matrix_equal_libsvm(x64):
    x, y = standardised("digits")
    x, y = x[:400], y[:400]
    gram = np.exp(-squared_distances(x, x) / 64)
    for C, tol in [(10.0, 1e-3), (1.0, 1e-6)]:
        model = classifier.fit(gram, y, kernel="precomputed", C=C, tol=tol, num_classes=10)
        raw, scores = classifier.machines(model, gram), classifier.decision_function(model, gram)
        found = jax.tree.map(np.asarray, (model, raw, scores))
        check_pairs(gram, y, C, tol, *found)
    proof = jax.tree.map(np.asarray, classifier.certificate(model, gram, y))
    assert (proof.violation <= 1e-6).all()
    assert (proof.gap >= 0).all()
    with pytest.raises(ValueError, match="x must have 400 columns"):
        classifier.predict(model, gram[:, :7])


@functools.partial(jax.tree_util.register_dataclass, data_fields=["gamma"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Own:
    """A kernel of one's own."""

    gamma: float

    def __call__(self, x, z):
        return jnp.exp(-self.gamma * jnp.square(x - z).sum())


def test_one_vs_rest_and_a_kernel_of_ones_own(x64):
    x, y = standardised("iris")
    gram = np.exp(-0.25 * squared_distances(x, x))
    model = classifier.fit(
        x, y, kernel=Own(0.25), C=1.0, tol=1e-6, num_classes=3, multiclass="one_vs_rest"
    )
    scores = np.asarray(classifier.decision_function(model, x))
    for c in range(3):
        beta = np.asarray(model.dual_coef[c])
        own = (y == c).astype(int)
        check_against_libsvm(gram, own, 1.0, 1e-6, beta, scores[:, c], bool(model.converged[c]))
    np.testing.assert_array_equal(classifier.predict(model, x), scores.argmax(1))
    np.testing.assert_array_equal(model.support, (np.asarray(model.dual_coef) != 0).any(0))


def test_thousands_of_rows_in_working_sets():
    # More rows than the solver keeps a Gram matrix for; float32, as most people run it.
    x, y = blobs(4500, 3)
    wide = x.astype(np.float64)
    square = np.square(wide).sum(1)
    gram = np.exp(-0.3 * (square[:, None] + square[None] - 2 * wide @ wide.T))
    model = classifier.fit(x, y, kernel=kernels.gaussian(0.3), C=1.0, num_classes=2)
    beta = np.asarray(model.dual_coef[0], np.float64)
    violation = true_violation(gram, y, np.ones(4500), beta)
    assert model.converged[0]
    # What is reported has an estimate of float32's rounding in it: never less than the truth.
    assert violation <= model.violation[0] <= 1e-3
    peer_beta, peer_scores = libsvm(gram, y, 1.0, 1e-3)
    theirs = dual_objective(gram, y, peer_beta)
    assert dual_objective(gram, y, beta) >= theirs - 1e-6 * theirs
    scores = np.asarray(classifier.decision_function(model, x))
    assert np.abs(scores - peer_scores).max() <= 1e-2 * max(1, np.abs(peer_scores).max())


# --- Certificate ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(32, 64, 128, 256), (16, 32, 64, 128)])
def test_the_working_set_grows_with_the_free_duals(sizes, monkeypatch, x64):
    """All sizes in turn, where the largest may hold half of all rows and where it may not."""
    x, y = blobs(384, d=6, dtype=np.float64)
    signs = jnp.asarray(2.0 * y - 1)
    kernel = kernels.gaussian(2.0)  # narrow: nearly all duals are free
    box = jnp.where(signs > 0, 0, -10.0), jnp.where(signs > 0, 10.0, 0)
    held = _smo.solve(kernel, jnp.asarray(x), signs, *box, tol=1e-6)
    monkeypatch.setattr(_smo, "_HELD", 8)
    monkeypatch.setattr(_smo, "_WORKING_SETS", sizes)
    found = _smo.solve(kernel, jnp.asarray(x), signs, *box, tol=1e-6)
    assert jnp.sum(held.beta != 0) > 256
    assert found.converged
    # Violations of 1e-6 leave the duals, of size 1 with curvatures of 1, this far apart.
    np.testing.assert_allclose(found.beta, held.beta, atol=1e-5)


def test_wide_rows_are_held_longer():
    assert _smo.is_held(2048, 2)
    assert not _smo.is_held(2049, 63)
    assert _smo.is_held(5120, 64)
    assert not _smo.is_held(5121, 64)


def test_certificate_is_recomputed_from_the_data(x64):
    x, y, gram = tumours()
    sign = 2.0 * y - 1
    for C, tol in [(0.5, 0.2), (10.0, 1e-3)]:
        model = fit_tumours(C=C, tol=tol)
        proof = classifier.Certificate(*(field[0] for field in classifier.certificate(model, x, y)))
        beta, b = np.asarray(model.dual_coef[0]), float(model.intercept[0])
        primal = beta @ gram @ beta / 2 + C * np.maximum(0, 1 - sign * (gram @ beta + b)).sum()
        dual = dual_objective(gram, y, beta)
        violation = true_violation(gram, y, np.full(len(y), C), beta)
        np.testing.assert_allclose(proof.primal, primal, rtol=1e-10)
        np.testing.assert_allclose(proof.dual, dual, rtol=1e-10)
        # A difference of two numbers of size `primal`, rounded
        np.testing.assert_allclose(proof.gap, primal - dual, atol=1e-10 * primal)
        np.testing.assert_allclose(proof.violation, violation, atol=1e-10)
        assert 0 <= proof.gap <= violation * C * len(y)  # the page's bound, with b in [m, M]
        size = np.abs(beta)
        assert proof.num_free == ((size > 0) & (size < C)).sum()
        assert proof.num_bound == (size == C).sum()
    # It looks at the data it is given: with other rows the machine is not optimal.
    other = classifier.certificate(model, x[::-1], y)
    assert other.violation[0] > 0.1


def test_gradient_of_the_scores_is_that_of_the_kernel(x64):
    x, _, _ = tumours()
    model = fit_tumours()

    def score(t):
        return classifier.decision_function(model, (x[0] + t * (x[1] - x[0]))[None])[0]

    step = 1e-5
    central = (score(0.3 + step) - score(0.3 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(score)(0.3), central, rtol=1e-7)  # step^2, 1e-16 / step


# --- Weights --------------------------------------------------------------------------------------

X40, Y40 = blobs(40)
GAUSSIAN = kernels.gaussian(0.5)


def fit40(x=X40, y=Y40, *, gamma=0.5, **options):
    """Forty rows in float32: many tests, one program."""
    options = {"tol": 1e-4} | options
    return classifier.fit(x, y, kernel=kernels.gaussian(gamma), num_classes=2, **options)


def scores40(model, x=X40):
    return np.asarray(classifier.decision_function(model, x))


def test_weight_zero_drops_a_row_and_weight_two_is_two_rows():
    weight = np.ones(40, np.float32)
    weight[::4], weight[1::4] = 0, 2
    rows = np.repeat(np.arange(40), weight.astype(int))
    assert len(rows) == 40  # so that the shapes, and the program, are the same
    weighted = fit40(sample_weight=weight)
    # Both within 1e-4 of the same optimum, by the violation; scores of size 1
    repeated = fit40(X40[rows], Y40[rows])
    np.testing.assert_allclose(scores40(weighted), scores40(repeated), atol=5e-4)
    assert not weighted.dual_coef[0][::4].any()
    assert not weighted.support[::4].any()


def test_class_weight_is_a_weight_of_rows():
    by_class = fit40(class_weight=[0.3, 2.0])
    by_row = fit40(sample_weight=np.where(Y40 == 1, 2.0, 0.3).astype(np.float32))
    np.testing.assert_allclose(scores40(by_class), scores40(by_row), atol=1e-6)
    assert scores40(by_class).mean() > scores40(fit40()).mean()  # towards the heavier class


def test_balanced_is_the_count_of_the_other():
    lopsided = np.where(np.arange(40) < 8, 1, 0)
    balanced = fit40(y=lopsided, class_weight="balanced")
    by_hand = fit40(y=lopsided, class_weight=[40 / 64, 40 / 16])
    np.testing.assert_allclose(scores40(balanced), scores40(by_hand), atol=1e-5)


# --- Transformations ------------------------------------------------------------------------------


def whole_program(x, key, y, C, gamma, class_weight, sample_weight):
    """A fit among other things: what a search wants."""

    def fit(x, y, sample_weight):
        return classifier.fit(
            x,
            y,
            kernel=kernels.gaussian(gamma),
            C=C,
            class_weight=class_weight,
            sample_weight=sample_weight,
            num_classes=2,
            tol=1e-4,
        )

    calibrated = classifier.calibrate(key, x, y, fit=fit, num_folds=4, sample_weight=sample_weight)
    model = calibrated.model
    right = jnp.where(sample_weight == 0, classifier.predict(model, x) == y, False)
    return {
        "dual_coef": model.dual_coef[0],
        "intercept": model.intercept[0],
        "converged": model.converged[0],
        "calibrated": calibrated.converged[0],
        "accuracy": right.sum() / jnp.maximum((sample_weight == 0).sum(), 1),
        "probabilities": classifier.predict_proba(calibrated, x),
    }


BATCHED = jax.jit(jax.vmap(whole_program, in_axes=(None, 0, 0, 0, 0, 0, 0)))


def batch_of_problems(size):
    rng = np.random.default_rng(0)
    return (
        jax.random.split(jax.random.key(0), size),
        np.where(rng.random((size, 40)) < 0.1, 1 - Y40, Y40),
        np.logspace(-2, 2, size).astype(np.float32),
        np.linspace(0.1, 2, size, dtype=np.float32),
        rng.uniform(0.5, 2, (size, 2)).astype(np.float32),
        (np.arange(40)[None] % size != np.arange(size)[:, None]).astype(np.float32),
    )


def test_jit_and_vmap_equal_a_loop():
    # Over keys, labels, C, gamma, class weights and folds at once; the loop is not compiled as a
    # whole.
    problems = batch_of_problems(4)
    together = BATCHED(X40, *problems)
    for i in range(4):
        key, *numbers = (argument[i] for argument in problems)
        numbers[2] = float(numbers[2])
        alone = whole_program(X40, key, *numbers)
        # Where a tie is broken otherwise, another path to the same optimum, within the tolerance
        # times what a row can cost
        scale = 1e-3 * max(1.0, float(numbers[1]))
        for name, value in alone.items():
            ours, other = (np.asarray(v, np.float32) for v in (together[name][i], value))
            np.testing.assert_allclose(ours, other, atol=scale, err_msg=name)
        assert alone["converged"]
        assert alone["calibrated"]


def test_a_second_call_compiles_nothing(caplog):
    fit40()
    scores40(fit40(C=2.0))
    with jax.log_compiles(), caplog.at_level("WARNING"):
        model = fit40(
            np.roll(X40, 1, 0),
            1 - Y40,
            gamma=0.1,
            C=7.0,
            tol=1e-3,
            max_iter=10_000,
            sample_weight=np.linspace(0, 1, 40, dtype=np.float32),
            class_weight=[1.0, 2.0],
        )
        scores40(model)
    compiled = [r.getMessage() for r in caplog.records if "_fit" in r.getMessage()]
    assert not compiled
    assert model.dual_coef.max() > 1


# --- What can go wrong ----------------------------------------------------------------------------


def test_running_out_of_iterations_is_told():
    model = fit40(C=100.0, max_iter=8)
    assert not model.converged[0]
    assert model.num_iterations[0] <= 8
    wide = X40.astype(np.float64)
    gram = np.exp(-0.5 * squared_distances(wide, wide))
    violation = true_violation(gram, Y40, np.full(40, 100.0), model.dual_coef[0])
    assert violation > 0.1
    np.testing.assert_allclose(model.violation[0], violation, rtol=1e-3)
    proof = classifier.certificate(model, X40, Y40)
    np.testing.assert_allclose(proof.violation[0], violation, rtol=1e-3)
    assert proof.gap[0] > 1
    assert np.isfinite(scores40(model)).all()


@pytest.mark.parametrize("case", ["opposite", "constant", "same"])
def test_points_without_a_border(case):
    x = X40.copy()
    if case == "opposite":  # each point twice, once in each class
        x[1::2] = x[::2]
    if case == "constant":
        x[:, 1] = 3.0
    if case == "same":
        x[:] = 2.0
    model = fit40(x)
    wide = x.astype(np.float64)
    gram = np.exp(-0.5 * squared_distances(wide, wide))
    assert true_violation(gram, Y40, np.ones(40), model.dual_coef[0]) <= 1e-4
    assert model.converged[0]
    if case != "constant":  # every point pulls both ways: all duals at their bound, w = 0
        np.testing.assert_allclose(np.abs(model.dual_coef[0]), 1)
        np.testing.assert_allclose(scores40(model, x), 0, atol=1e-5)


@given(
    x=hnp.arrays(np.int8, (12, 2), elements=st.integers(-2, 2)),
    labels=hnp.arrays(np.int8, 10, elements=st.integers(0, 1)),
    weight=hnp.arrays(np.int8, 10, elements=st.integers(0, 3)),
    C=st.sampled_from([0.001, 0.5, 1.0, 100.0]),
)
@settings(deadline=None, max_examples=30)
def test_what_is_claimed_is_true(x, labels, weight, C):
    """Points on a coarse grid, so that many coincide; any labels, any weights."""
    rows = np.zeros((40, 2), np.float32)
    rows[:12] = x
    y, costs = np.zeros(40, np.int32), np.zeros(40, np.float32)
    y[:12] = [*labels, 0, 1]  # both classes occur
    costs[:12] = [*weight, 1, 1]
    model = fit40(rows, y, gamma=1.0, C=C, sample_weight=costs, tol=1e-3)
    costs = (np.float32(C) * costs).astype(np.float64)
    wide = rows.astype(np.float64)
    gram = np.exp(-squared_distances(wide, wide))
    beta = np.asarray(model.dual_coef[0], np.float64)
    rounding = 1e-5 * max(1, C)  # float32, 12 duals of up to 3 C
    assert abs(beta.sum()) <= rounding
    assert model.converged[0]
    assert true_violation(gram, y, costs, beta) <= 1e-3
    gap = float(classifier.certificate(model, rows, y).gap[0])
    assert 0 <= gap <= (1e-3 + rounding) * costs.sum() + 10 * rounding


NAN = np.where(np.arange(6).reshape(3, 2) == 3, np.nan, 1.0).astype(np.float32)
SMALL = np.arange(6, dtype=np.float32).reshape(3, 2)
FIT_ERRORS = {
    "one class": (dict(y=[0, 0, 0]), ValueError, "class 1"),
    "one class, count not given": (dict(y=[0, 0, 0], num_classes=None), ValueError, "two|class"),
    "no row": (dict(x=np.zeros((0, 2)), y=np.zeros(0, int)), ValueError, "x must not be empty"),
    "NaN": (dict(x=NAN), ValueError, r"x must be finite, got nan in row 1, column 1"),
    "rank": (dict(x=SMALL[:, 0]), ValueError, "x must be 2-D"),
    "rows": (dict(y=[0, 1]), ValueError, "as many rows"),
    "labels are floats": (dict(y=[0.0, 1.0, 1.0]), TypeError, "y must be an integer"),
    "label out of range": (dict(y=[0, 1, 2]), ValueError, r"y must be in 0\.\.1"),
    "label below": (dict(y=[0, 1, -1]), ValueError, "y must be in 0"),
    "C = 0": (dict(C=0.0), ValueError, "C must be positive"),
    "C < 0": (dict(C=-1.0), ValueError, "C must be positive"),
    "C is NaN": (dict(C=np.nan), ValueError, "C must be"),
    "C is infinite": (dict(C=np.inf), ValueError, "C must be"),
    "tol": (dict(tol=0.0), ValueError, "tol must be positive"),
    "iterations": (dict(max_iter=0), ValueError, "max_iter must be"),
    "weights": (dict(sample_weight=[1.0, -1.0, 1.0]), ValueError, "sample_weight must not be neg"),
    "weights' shape": (dict(sample_weight=[1.0, 1.0]), ValueError, "sample_weight"),
    "a class without weight": (dict(sample_weight=[1.0, 0.0, 0.0]), ValueError, "class 1"),
    "class weights": (dict(class_weight=[1.0]), ValueError, "class_weight must have shape"),
    "class weight 0": (dict(class_weight=[1.0, 0.0]), ValueError, "class_weight must be pos"),
    "word": (dict(class_weight="even"), ValueError, "class_weight must be"),
    "way": (dict(multiclass="ovo"), ValueError, "multiclass must be one of"),
    "classes": (dict(num_classes=1), ValueError, "num_classes must be at least 2"),
    "kernel": (dict(kernel="rbf"), (ValueError, TypeError), "kernel must be"),
    "no Gram matrix": (dict(kernel="precomputed"), ValueError, "square|(n, n)"),
    "Gram not symmetric": (
        dict(x=np.array([[1, 2, 0], [0, 1, 0], [0, 0, 1.0]]), kernel="precomputed"),
        ValueError,
        "symmetric",
    ),
    "Gram not finite": (
        dict(x=np.diag([1.0, np.inf, 1.0]), kernel="precomputed"),
        ValueError,
        "finite",
    ),
    "kernel not symmetric": (
        dict(kernel=jax.tree_util.Partial(lambda x, z: x[0] - z[0])),
        ValueError,
        "symmetric",
    ),
    "kernel not finite": (
        dict(kernel=jax.tree_util.Partial(lambda x, z: jnp.log(x[0] * z[0]))),
        ValueError,
        "finite",
    ),
}


@pytest.mark.parametrize("case", FIT_ERRORS)
def test_bad_input_is_refused(case):
    change, error, message = FIT_ERRORS[case]
    arguments = dict(x=SMALL, y=[0, 1, 1], kernel=kernels.linear(), num_classes=2) | change
    with pytest.raises(error, match=message):
        classifier.fit(arguments.pop("x"), arguments.pop("y"), **arguments)


def test_bad_rows_at_prediction_are_refused():
    model = fit40()
    with pytest.raises(ValueError, match="x must"):
        classifier.predict(model, np.zeros((3, 5)))
    with pytest.raises(ValueError, match="x must be finite, got nan in row 0, column 1"):
        classifier.decision_function(model, np.array([[0.0, np.nan]]))
    with pytest.raises(ValueError, match=r"y must be in 0\.\.1"):
        classifier.certificate(model, X40, np.full(40, 7))
    with pytest.raises(ValueError, match="rows"):
        classifier.certificate(model, X40, Y40[:5])


def test_under_jit_bad_data_are_told_by_the_result():
    key, _, C, gamma, class_weight, _ = batch_of_problems(4)
    weight = np.ones((4, 40), np.float32)
    good = np.broadcast_to(Y40, (4, 40))
    bad = X40.copy()
    bad[3, 1] = np.nan
    for name, x, y, weights in [
        ("NaN", bad, good, weight),
        ("one class", X40, np.zeros_like(good), weight),
        ("no row", X40, good, 0 * weight),
    ]:
        spoilt = BATCHED(x, key, y, C, gamma, class_weight, weights)
        assert not spoilt["converged"].any(), name
        assert not spoilt["calibrated"].any(), name


# --- Calibration ----------------------------------------------------------------------------------


def cross_entropy(slope, offset, scores, y, weight):
    positive, negative = weight[y == 1].sum(), weight[y == 0].sum()
    t = np.where(y == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))
    z = float(slope) * scores + float(offset)
    return weight @ (np.logaddexp(0, z) - t * z)


@pytest.mark.parametrize("spread", [0.5, 3.0, 1e4])
def test_platt_is_at_least_as_good_as_sklearn(spread, x64):
    from sklearn.calibration import _sigmoid_calibration

    rng = np.random.default_rng(0)
    y = (rng.random(300) < 0.3).astype(int)
    scores = spread * (rng.normal(size=300) + 2 * y - 0.5)
    weight = rng.integers(0, 3, 300).astype(float)
    ours = classifier.platt(scores, y, weight)
    assert ours.converged
    assert ours.slope > 0
    a, b = _sigmoid_calibration(scores, y, weight)
    mine = cross_entropy(ours.slope, ours.offset, scores, y, weight)
    assert mine <= cross_entropy(-a, -b, scores, y, weight) + 1e-10
    # At the minimum: no step in any direction helps.
    for da, db in [(1e-3 / spread, 0), (-1e-3 / spread, 0), (0, 1e-3), (0, -1e-3)]:
        assert mine < cross_entropy(ours.slope + da, ours.offset + db, scores, y, weight)


def test_platt_in_float32_of_scores_that_separate_and_of_scores_that_say_nothing():
    y = np.repeat([0, 1], 50)
    scores = np.where(y == 1, 5.0, -5.0).astype(np.float32) + 100
    ours = classifier.platt(scores, y)
    # Two values of the score: the sigmoid goes through both targets, 1/52 and 51/52.
    assert ours.converged
    np.testing.assert_allclose(ours.slope, np.log(51) / 5, rtol=1e-4)
    np.testing.assert_allclose(ours.offset, -100 * np.log(51) / 5, rtol=1e-4)
    flat = classifier.platt(np.full(100, 3.3, np.float32), y)
    assert flat.converged
    assert flat.slope == 0
    assert abs(flat.offset) < 1e-6
    # One class only: Laplace's rule of succession, 101/102
    certain = classifier.platt(scores, np.ones(100, int))
    np.testing.assert_allclose(100 * certain.slope + certain.offset, np.log(101.0), rtol=1e-4)


def test_platt_refuses():
    for arguments, message in [
        (([1.0, 2.0], [0, 2]), r"y must be in 0\.\.1"),
        (([1.0, np.nan], [0, 1]), "scores must be finite"),
        (([1.0, 2.0], [0]), "as many rows"),
        (([], np.zeros(0, int)), "scores must not be empty"),
        (([1.0, 2.0], [0, 1], [0.0, 0.0]), "sample_weight must not be zero"),
        (([1.0, 2.0], [0, 1], [-1.0, 0.0]), "sample_weight must not be negative"),
    ]:
        with pytest.raises(ValueError, match=message):
            classifier.platt(*arguments)
    # A row that does not count may hold anything.
    fine = classifier.platt([1.0, 2.0, np.nan], [0, 1, 9], [1.0, 1.0, 0.0])
    assert np.isfinite(fine.slope)


@pytest.mark.parametrize("k", [2, 3, 10])
def test_coupling_solves_the_constrained_problem(k, x64):
    rng = np.random.default_rng(k)
    r = rng.uniform(0.01, 1, (20, k, k)) ** 3  # nothing so near to 0 or 1 that it is moved
    r = r / (r + np.swapaxes(r, 1, 2))
    p = np.asarray(classifier.couple(r))
    for pairwise, ours in zip(r, p, strict=True):
        # Least squares of r_ji p_i - r_ij p_j = 0 over all pairs, on the plane sum p = 1
        pairs = list(itertools.combinations(range(k), 2))
        design = np.zeros((len(pairs), k))
        for row, (i, j) in enumerate(pairs):
            design[row, i], design[row, j] = pairwise[j, i], -pairwise[i, j]
        basis = np.linalg.svd(np.ones((1, k)))[2][1:].T
        start = np.full(k, 1 / k)
        direct = start - basis @ np.linalg.lstsq(design @ basis, design @ start, rcond=None)[0]
        np.testing.assert_allclose(ours, direct, atol=1e-10)
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-12)
    # Pairs that agree give the distribution back.
    true = rng.dirichlet(np.full(k, 2.0), 5)
    agreeing = true[:, :, None] / (true[:, :, None] + true[:, None, :])
    np.testing.assert_allclose(classifier.couple(agreeing), true, atol=1e-9)


def test_coupling_of_certain_pairs_in_float32():
    order = np.array([2, 0, 1])
    r = (order[:, None] > order[None]).astype(np.float32)
    p = np.asarray(classifier.couple(r))
    assert np.isfinite(p).all()
    assert (p >= 0).all()
    assert p[0] > 0.999
    with pytest.raises(ValueError, match="pairwise must be square"):
        classifier.couple(np.ones((3, 2)))


def blob_fit(x, y, sample_weight):
    return fit40(x, y, sample_weight=sample_weight)


def test_scores_come_from_machines_that_did_not_see_the_row():
    weight = np.ones(40, np.float32)
    weight[:3] = 0
    calibrated = classifier.calibrate(
        jax.random.key(0), X40, Y40, fit=blob_fit, num_folds=4, sample_weight=weight
    )
    fold = np.asarray(calibrated.fold)
    for part in range(4):
        mine = fold == part
        # Stratified: of 37 rows that count, 18 and 19 in a class
        for label in (0, 1):
            share = (mine & (label == Y40) & (weight > 0)).sum()
            assert share in (4, 5)
        without = blob_fit(X40, Y40, np.where(mine, 0, weight))
        np.testing.assert_allclose(calibrated.scores[mine, 0], scores40(without)[mine], atol=1e-6)
    fitted = classifier.platt(calibrated.scores[:, 0], Y40, weight)
    for ours, theirs in zip(calibrated.sigmoid, fitted, strict=True):
        np.testing.assert_allclose(ours[0], theirs, rtol=1e-4)
    whole = blob_fit(X40, Y40, weight)
    np.testing.assert_allclose(calibrated.model.dual_coef, whole.dual_coef, atol=1e-6)
    p = np.asarray(classifier.predict_proba(calibrated, X40))
    z = float(fitted.slope) * scores40(whole) + float(fitted.offset)
    np.testing.assert_allclose(p[:, 1], 1 / (1 + np.exp(-z)), rtol=1e-4)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-6)
    assert calibrated.converged.all()


@pytest.mark.parametrize("way", ["one_vs_one", "linear"])
def test_probabilities_of_several_classes(way):
    data = demo.problem(jax.random.key(0), name="wine")
    fit = (
        functools.partial(classifier.fit_linear, num_classes=3)  # one against the rest
        if way == "linear"
        else functools.partial(classifier.fit, kernel=kernels.gaussian("scale"), num_classes=3)
    )
    calibrated = classifier.calibrate(
        jax.random.key(0), data.x_train, data.y_train, fit=fit, num_folds=3
    )
    p, y = np.asarray(classifier.predict_proba(calibrated, data.x_test)), np.asarray(data.y_test)
    assert p.shape == (len(y), 3)
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    assert (p.argmax(1) == y).mean() > 0.9
    assert -np.log(p[np.arange(len(y)), y]).mean() < 0.3 * np.log(3)  # far better than a guess
    assert (np.asarray(calibrated.sigmoid.slope) > 0).all()
    assert calibrated.converged.shape == (3,)
    assert calibrated.converged.all()


def test_calibrate_refuses():
    key = jax.random.key(0)
    for change, error, message in [
        (dict(fit="svc"), TypeError, "fit must be callable"),
        (dict(num_folds=1), ValueError, "num_folds must be at least 2"),
        (dict(y=np.eye(1, 40, dtype=int)[0]), ValueError, "class 0 has one|class 1 has one"),
        (dict(y=Y40[:7]), ValueError, "as many rows"),
        (dict(sample_weight=np.full(40, -1.0)), ValueError, "sample_weight must not be negative"),
    ]:
        arguments = dict(x=X40, y=Y40, fit=blob_fit) | change
        with pytest.raises(error, match=message):
            classifier.calibrate(key, arguments.pop("x"), arguments.pop("y"), **arguments)
    with pytest.raises(TypeError, match="model must come from calibrate"):
        classifier.predict_proba(fit40(), X40)


# --- The page's claim -----------------------------------------------------------------------------


def test_demo_shows_what_the_page_says():
    result = demo.run(jax.random.key(0), quick=True)
    sweep = result.sweep
    num_C = len(demo.C_SWEEP)
    street = np.asarray(sweep.street)
    assert (np.diff(street[:num_C]) < 0).all()  # C grows, the street narrows
    assert (np.asarray(sweep.gap) < 0.01).all()
    # A large gamma learns the rows by heart: it fits better, needs more of them, and errs more.
    train, test = np.asarray(sweep.train_error[num_C:]), np.asarray(sweep.test_error[num_C:])
    support = np.asarray(sweep.support[num_C:]).mean(axis=1)
    assert train[-1] < train[0]
    assert test[-1] > test[0]
    assert support[-1] > 0.5 > support[0]
    assert result.converged
    assert result.violation <= 1e-3
    assert 0 <= np.ravel(result.certificate.gap)[0] <= result.gap_bound
    # The quick run sees two features of thirty.
    assert result.grid_score.max() > 0.85
    assert result.test_error < 0.15
    assert result.log_loss < 0.5 * result.log_loss_prior
    assert demo.tables(result)


# --- Grids and mixed precision --------------------------------------------------------------------


def test_a_grid_equals_a_loop_of_fits():
    x, y = blobs(60, d=3)
    folds = np.arange(60) % 3
    costs, gammas = np.float32([0.1, 10.0]), np.float32([0.05, 1.0])
    found = classifier.grid(x, y, C=costs, gamma=gammas, folds=folds)
    assert found.scores.shape == found.converged.shape == (2, 2, 3)
    assert found.converged.all()
    for i, j, k in itertools.product(range(2), range(2), range(3)):
        weight = (folds != k).astype(np.float32)
        model = classifier.fit(
            x,
            y,
            kernel=kernels.gaussian(gammas[j]),
            C=costs[i],
            sample_weight=weight,
            num_classes=2,
        )
        right = np.asarray(classifier.predict(model, x) == y)[folds == k].mean()
        np.testing.assert_allclose(found.scores[i, j, k], right, rtol=1e-6)
    rows = found.table()
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    best = found.scores.mean(-1).max()
    np.testing.assert_allclose(rows[0]["score"], best, rtol=1e-6)


def test_a_grid_deals_out_each_class_by_itself():
    # 40 rows in 4 folds by number: each fold has its share of each class, so that rows in the order
    # of their classes are no harm.
    x, y = blobs(40)
    order = np.argsort(y, kind="stable")
    dealt = np.empty(40, int)
    dealt[order] = np.arange(40) % 4
    settings = {"C": [1.0], "gamma": [0.5]}
    by_number = classifier.grid(x, y, folds=4, **settings)
    by_hand = classifier.grid(x, y, folds=dealt, **settings)
    np.testing.assert_array_equal(by_number.scores, by_hand.scores)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(folds=1), "folds must be at least 2"),
        (dict(folds=np.arange(39) % 3), r"folds must have shape \(40,\)"),
        (dict(folds=np.zeros(40, int)), "at least two folds"),
        (dict(folds=np.arange(40) % 2 * 2), "each with a row"),
        (dict(C=[1.0, 0.0]), "C must be positive"),
        (dict(gamma=[]), "gamma must not be empty"),
    ],
)
def test_a_grid_refuses_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        classifier.grid(X40, Y40, **(dict(C=[1.0], gamma=[1.0]) | change))


def test_float64_duals_on_float32_rows(x64):
    # A smooth kernel and a very large C: float32 cannot reach the tolerance, and says so.
    x, y = standardised("breast_cancer")
    x = x[:, :2].astype(np.float32)
    costs = np.full(len(y), 1e4)
    gram = np.exp(-0.01 * squared_distances(x.astype(np.float64), x))
    fit = functools.partial(classifier.fit, x, y, kernel=kernels.gaussian(0.01), C=1e4)
    mixed = fit(dual_dtype="float64")
    assert mixed.x.dtype == jnp.float32
    assert mixed.dual_coef.dtype == jnp.float64
    assert mixed.converged[0]
    assert true_violation(gram, y, costs, mixed.dual_coef[0]) <= 1e-3 + 1e-6
    single = fit()
    assert single.dual_coef.dtype == jnp.float32
    true = true_violation(gram, y, costs, single.dual_coef[0])
    assert not single.converged[0] or true <= 1e-3


def test_float64_duals_need_x64():
    with pytest.raises(ValueError, match="jax_enable_x64"):
        classifier.fit(X40, Y40, kernel=kernels.linear(), dual_dtype="float64")
