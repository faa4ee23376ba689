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
from mlnotes_jax.svm import classifier, kernels

FIELDS = ("dual_coef", "intercept", "violation", "converged")


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


#: Kernel, and the same written down in NumPy.
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
}


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


def check_against_libsvm(gram, y, C, tol, beta, scores, converged, class_weight=(1.0, 1.0)):
    """The three promises: objective, decision values, violation."""
    assert converged
    costs = C * np.asarray(class_weight)[np.asarray(y)]
    # 1e-12: the gradient of the test and of the code round differently
    assert true_violation(gram, y, costs, beta) <= tol + 1e-12
    peer_beta, peer_scores = libsvm(gram, y, C, tol, class_weight)
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
    model = classifier.fit([[-1.0], [1.0]], [0, 1], kernel=kernels.linear(), C=C, num_classes=2)
    a = min(C, 0.5)
    np.testing.assert_allclose(model.dual_coef, [[-a, a]], rtol=1e-12)
    np.testing.assert_allclose(model.intercept, [0], atol=1e-12)
    scores = classifier.decision_function(model, [[3.0], [-2.0]])
    np.testing.assert_allclose(scores, [6 * a, -4 * a], rtol=1e-12)
    assert classifier.predict(model, [[3.0], [-2.0]]).tolist() == [1, 0]
    proof = classifier.certificate(model, [[-1.0], [1.0]], [0, 1])
    primal = 2 * a * a + 2 * C * max(0, 1 - 2 * a)
    np.testing.assert_allclose(np.ravel(proof.primal), primal, rtol=1e-12)
    np.testing.assert_allclose(np.ravel(proof.dual), 2 * a - 2 * a * a, rtol=1e-12)
    np.testing.assert_allclose(np.ravel(proof.gap), 0, atol=1e-12)
    free = 2 if a < C else 0
    assert (np.ravel(proof.num_free), np.ravel(proof.num_bound)) == ([free], [2 - free])


# --- Peers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_equals_libsvm(name, x64):
    x, y = standardised("iris")
    x, y = x[50:], y[50:] - 1
    kernel, formula = KERNELS[name]
    gram = formula(x, x)
    for C, tol, class_weight in [
        (1e-3, 1e-6, (1.0, 1.0)),
        (1.0, 1e-3, (3.0, 0.5)),
        (1.0, 1e-6, (0.2, 1.0)),
        (100.0, 1e-3, (1.0, 1.0)),
        (100.0, 1e-6, (1.0, 1.0)),
    ]:
        model = classifier.fit(
            x, y, kernel=kernel, C=C, tol=tol, class_weight=class_weight, num_classes=2
        )
        beta = np.asarray(model.dual_coef[0])
        scores = np.asarray(classifier.decision_function(model, x))
        np.testing.assert_allclose(scores, gram @ beta + model.intercept[0], atol=1e-9)
        check_against_libsvm(gram, y, C, tol, beta, scores, bool(model.converged[0]), class_weight)


def test_a_kernel_that_is_none_is_judged_by_its_violation(x64):
    # tanh: no single answer, so only the KKT conditions can be held against it
    x, y = standardised("breast_cancer")
    x, y = x[:100, :10], y[:100]
    gram = np.tanh(0.3 * x @ x.T - 1.0)
    assert np.linalg.eigvalsh(gram)[0] < -1
    for C, tol in [(0.1, 1e-3), (10.0, 1e-6)]:
        kernel = kernels.sigmoid(0.3, offset=-1.0)
        model = classifier.fit(x, y, kernel=kernel, C=C, tol=tol, num_classes=2)
        violation = true_violation(gram, y, np.full(100, C), model.dual_coef[0])
        np.testing.assert_allclose(model.violation[0], violation, atol=1e-10)
        assert bool(model.converged[0]) == (violation <= tol)
        assert model.converged[0]


def test_breast_cancer_equals_libsvm(x64):
    x, y = standardised("breast_cancer")
    gamma = 1 / (30 * x.var())
    gram = np.exp(-gamma * np.maximum(squared_distances(x, x), 0))
    for C, tol in [(1e-3, 1e-6), (1.0, 1e-3), (1.0, 1e-6), (100.0, 1e-3), (100.0, 1e-6)]:
        model = classifier.fit(x, y, kernel=kernels.gaussian("scale"), C=C, tol=tol, num_classes=2)
        scores = np.asarray(classifier.decision_function(model, x))
        beta = np.asarray(model.dual_coef[0])
        check_against_libsvm(gram, y, C, tol, beta, scores, bool(model.converged[0]))


def several(name):
    x, y = standardised(name)
    return (x[:400], y[:400]) if name == "digits" else (x, y)


@pytest.mark.parametrize("name", ["wine", "iris", "digits"])
def test_several_classes_equal_libsvm(name, x64):
    x, y = several(name)
    k = y.max() + 1
    gamma = 1 / (x.shape[1] * x.var())
    gram = np.exp(-gamma * squared_distances(x, x))
    for C, tol in [(100.0, 1e-3), (1.0, 1e-6)]:
        model = classifier.fit(x, y, kernel=kernels.gaussian("scale"), C=C, tol=tol, num_classes=k)
        raw = np.asarray(classifier.machines(model, x))
        pairs = list(itertools.combinations(range(k), 2))
        assert raw.shape == (len(x), len(pairs))
        for m, (first, second) in enumerate(pairs):
            mine = (y == first) | (y == second)
            beta = np.asarray(model.dual_coef[m])
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
        votes, sums = np.zeros((len(x), k)), np.zeros((len(x), k))
        for m, (first, second) in enumerate(pairs):
            votes[:, first] += raw[:, m] > 0
            votes[:, second] += raw[:, m] <= 0
            sums[:, first] += raw[:, m]
            sums[:, second] -= raw[:, m]
        by_hand = votes + sums / (3 * (np.abs(sums) + 1))
        scores = np.asarray(classifier.decision_function(model, x))
        np.testing.assert_allclose(scores, by_hand, atol=1e-9)
        np.testing.assert_array_equal(classifier.predict(model, x), by_hand.argmax(1))


def test_decision_values_and_classes_are_those_of_sklearn(x64):
    from sklearn.svm import SVC

    x, y = standardised("wine")
    model = classifier.fit(x, y, kernel=kernels.gaussian("scale"), C=1.0, tol=1e-6, num_classes=3)
    peer = SVC(C=1.0, tol=1e-6, break_ties=True).fit(x, y)
    # Both are solved to 1e-6, and the squashing is flatter than the identity
    np.testing.assert_allclose(
        classifier.decision_function(model, x), peer.decision_function(x), atol=1e-5
    )
    np.testing.assert_array_equal(classifier.predict(model, x), peer.predict(x))
    # A row is support if its dual is not 0; a dual that is 0 for one is 1e-9 for the other
    assert abs(int(model.support.sum()) - len(peer.support_)) <= 2


def test_one_vs_rest_equals_a_machine_for_each_class(x64):
    x, y = standardised("iris")
    gram = np.exp(-0.25 * squared_distances(x, x))
    kernel = kernels.gaussian(0.25)
    model = classifier.fit(
        x, y, kernel=kernel, C=1.0, tol=1e-6, num_classes=3, multiclass="one_vs_rest"
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


def test_certificate_is_recomputed_from_the_data(x64):
    x, y = standardised("breast_cancer")
    gram = np.exp(-0.1 * squared_distances(x, x))
    sign = 2.0 * y - 1
    for C, tol in [(0.5, 0.2), (10.0, 1e-3)]:
        model = classifier.fit(x, y, kernel=kernels.gaussian(0.1), C=C, tol=tol, num_classes=2)
        proof = jax.tree.map(np.ravel, classifier.certificate(model, x, y))
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
        magnitude = np.abs(beta)
        assert proof.num_free == ((magnitude > 0) & (magnitude < C)).sum()
        assert proof.num_bound == (magnitude == C).sum()
        # It looks at the data it is given: with other labels the machine is not optimal.
        other = jax.tree.map(np.ravel, classifier.certificate(model, x, np.roll(y, 1)))
        assert not other.gap < proof.gap


# --- Weights --------------------------------------------------------------------------------------

X40, Y40 = blobs(40)
GAUSSIAN = kernels.gaussian(0.5)


def fit40(C=1.0, gamma=0.5, class_weight=(1.0, 1.0), y=Y40, sample_weight=None, tol=1e-4):
    weight = jnp.ones(40) if sample_weight is None else jnp.asarray(sample_weight, jnp.float32)
    model = classifier.fit(
        X40,
        y,
        kernel=kernels.gaussian(gamma),
        C=C,
        class_weight=jnp.asarray(class_weight),
        sample_weight=weight,
        num_classes=2,
        tol=tol,
    )
    return model


def scores40(model):
    return np.asarray(classifier.decision_function(model, X40))


def test_weight_zero_drops_a_row_and_weight_two_is_two_rows():
    weight = np.ones(40)
    weight[::4], weight[1::4] = 0, 2
    rows = np.repeat(np.arange(40), weight.astype(int))
    assert len(rows) == 40  # so that the shapes, and the program, are the same
    weighted = fit40(sample_weight=weight)
    repeated = classifier.fit(
        X40[rows],
        Y40[rows],
        kernel=GAUSSIAN,
        C=1.0,
        class_weight=jnp.ones(2),
        sample_weight=jnp.ones(40),
        num_classes=2,
        tol=1e-4,
    )
    # Both within 1e-4 of the same optimum, by the violation; scores of size 1
    np.testing.assert_allclose(
        scores40(weighted), classifier.decision_function(repeated, X40), atol=5e-4
    )
    assert not weighted.dual_coef[0][::4].any()
    assert not weighted.support[::4].any()


def test_class_weight_is_a_weight_of_rows():
    by_class = fit40(class_weight=(0.3, 2.0))
    by_row = fit40(sample_weight=np.where(Y40 == 1, 2.0, 0.3))
    np.testing.assert_allclose(scores40(by_class), scores40(by_row), atol=1e-6)
    assert (scores40(by_class) > scores40(fit40())).mean() > 0.9  # towards the heavier class


def test_balanced_is_the_count_of_the_other():
    lopsided = np.where(np.arange(40) < 8, 1, 0)
    balanced = classifier.fit(
        X40, lopsided, kernel=GAUSSIAN, class_weight="balanced", num_classes=2, tol=1e-4
    )
    by_hand = fit40(y=lopsided, class_weight=(40 / 64, 40 / 16))
    np.testing.assert_allclose(scores40(balanced), scores40(by_hand), atol=1e-5)


# --- Precomputed ----------------------------------------------------------------------------------


def test_a_gram_matrix_takes_the_place_of_a_kernel():
    gram = np.asarray(kernels.gram(GAUSSIAN, X40))
    plain = fit40()
    rows = classifier.fit(gram, Y40, kernel="precomputed", num_classes=2, tol=1e-4)
    numbers = np.arange(40)[:, None]
    by_number = classifier.fit(
        numbers, Y40, kernel=kernels.precomputed(gram), num_classes=2, tol=1e-4
    )
    np.testing.assert_allclose(
        classifier.decision_function(rows, gram[:7]), scores40(plain)[:7], atol=5e-4
    )
    np.testing.assert_allclose(
        classifier.decision_function(by_number, numbers[:7]), scores40(plain)[:7], atol=5e-4
    )
    proofs = [
        classifier.certificate(plain, X40, Y40),
        classifier.certificate(rows, gram, Y40),
        classifier.certificate(by_number, numbers, Y40),
    ]
    duals = [float(np.ravel(proof.dual)[0]) for proof in proofs]
    np.testing.assert_allclose(duals, duals[0], rtol=1e-5)
    assert all(np.ravel(proof.violation)[0] <= 1.1e-4 for proof in proofs)


# --- Transformations ------------------------------------------------------------------------------


@jax.jit
def whole_program(x, y, C, gamma, class_weight, sample_weight):
    """A fit among other things: the numbers that a search wants."""
    model = classifier.fit(
        x,
        y,
        kernel=kernels.gaussian(gamma),
        C=C,
        class_weight=class_weight,
        sample_weight=sample_weight,
        num_classes=2,
        tol=1e-4,
    )
    right = classifier.predict(model, x) == y
    held_out = sample_weight == 0
    accuracy = jnp.where(held_out, right, False).sum() / jnp.maximum(held_out.sum(), 1)
    return {name: getattr(model, name) for name in FIELDS} | {"accuracy": accuracy}


def test_jit_equals_eager_and_vmap_equals_a_loop():
    rng = np.random.default_rng(0)
    batch = 5
    arguments = (
        np.where(rng.random((batch, 40)) < 0.1, 1 - Y40, Y40),
        np.logspace(-2, 2, batch).astype(np.float32),
        np.linspace(0.1, 2, batch, dtype=np.float32),
        rng.uniform(0.5, 2, (batch, 2)).astype(np.float32),
        (np.arange(40)[None] % batch != np.arange(batch)[:, None]).astype(np.float32),
    )
    together = jax.vmap(functools.partial(whole_program, X40))(*arguments)
    for i in range(batch):
        own = [argument[i] for argument in arguments]
        alone = whole_program(X40, *own)
        labels, C, gamma, class_weight, sample_weight = own
        eager = fit40(C, gamma, class_weight, labels, sample_weight)
        for name in FIELDS:
            # The same steps, up to the order of sums; where ties are broken otherwise, another
            # path to the same optimum, within the tolerance times the cost of a row.
            scale = 1e-4 * max(1.0, float(C))
            ours = np.asarray(together[name][i], np.float32)
            np.testing.assert_allclose(ours, np.asarray(alone[name], np.float32), atol=scale)
            np.testing.assert_allclose(ours, np.asarray(getattr(eager, name)), atol=scale)
        assert alone["converged"].all()
        accuracy = (np.asarray(classifier.predict(eager, X40)) == labels)[sample_weight == 0].mean()
        np.testing.assert_allclose(together["accuracy"][i], accuracy, rtol=1e-6)


def test_vmap_over_one_argument_at_a_time():
    Cs = jnp.array([0.1, 10.0])
    by_C = jax.vmap(lambda C: fit40(C=C).dual_coef)(Cs)
    by_gamma = jax.vmap(lambda gamma: fit40(gamma=gamma).dual_coef)(Cs)
    for i, value in enumerate(Cs):
        np.testing.assert_allclose(by_C[i], fit40(C=value).dual_coef, atol=1e-3)
        np.testing.assert_allclose(by_gamma[i], fit40(gamma=value).dual_coef, atol=1e-3)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["gamma"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Counted:
    """A kernel of one's own that counts how often it is traced."""

    gamma: jax.Array
    traces = 0

    def __call__(self, x, z):
        type(self).traces += 1
        return jnp.exp(-self.gamma * jnp.square(x - z).sum())


def test_a_kernel_of_ones_own_and_no_second_compilation():
    def fit(C, gamma):
        return classifier.fit(
            X40, Y40, kernel=Counted(jnp.float32(gamma)), C=C, num_classes=2, tol=1e-4
        )

    np.testing.assert_allclose(scores40(fit(1.0, 0.5)), scores40(fit40()), atol=5e-4)
    traced = Counted.traces
    assert traced > 0
    other = fit(7.0, 0.1)
    classifier.decision_function(other, X40)
    assert Counted.traces == traced
    assert other.dual_coef.max() > 1


def test_gradient_of_the_scores_is_that_of_the_kernel(x64):
    x, y = blobs(40, dtype=np.float64)
    model = classifier.fit(x, y, kernel=kernels.gaussian(0.5), num_classes=2)

    def score(point):
        return classifier.decision_function(model, point[None])[0]

    point, step = jnp.array([0.3, -0.4]), 1e-5
    slope = jax.grad(score)(point)
    for i, unit in enumerate(np.eye(2)):
        central = (score(point + step * unit) - score(point - step * unit)) / (2 * step)
        np.testing.assert_allclose(slope[i], central, rtol=1e-7)  # step^2, and 1e-16 / step


# --- What can go wrong ----------------------------------------------------------------------------


def test_running_out_of_iterations_is_told():
    x, y = standardised("breast_cancer")
    x = x.astype(np.float32)
    model = classifier.fit(x, y, kernel=kernels.gaussian(0.1), num_classes=2, max_iter=5)
    assert not model.converged[0]
    assert model.num_iterations[0] <= 8  # rounded up to a multiple of 8
    gram = np.exp(-0.1 * squared_distances(x.astype(np.float64), x))
    violation = true_violation(gram, y, np.ones(len(y)), model.dual_coef[0])
    assert violation > 0.1
    np.testing.assert_allclose(model.violation[0], violation, rtol=1e-3)
    proof = classifier.certificate(model, x, y)
    assert np.ravel(proof.gap)[0] > 1
    assert np.isfinite(classifier.decision_function(model, x)).all()


@pytest.mark.parametrize("case", ["opposite", "constant", "same"])
def test_points_without_a_border(case):
    x = X40.copy()
    if case == "opposite":  # each point twice, once in each class
        x[1::2] = x[::2]
    if case == "constant":
        x[:, 1] = 3.0
    if case == "same":
        x[:] = 2.0
    model = classifier.fit(
        x,
        Y40,
        kernel=GAUSSIAN,
        C=1.0,
        class_weight=jnp.ones(2),
        sample_weight=jnp.ones(40),
        num_classes=2,
        tol=1e-4,
    )
    wide = x.astype(np.float64)
    gram = np.exp(-0.5 * squared_distances(wide, wide))
    assert true_violation(gram, Y40, np.ones(40), model.dual_coef[0]) <= 1e-4
    assert model.converged[0]
    scores = np.asarray(classifier.decision_function(model, x))
    if case != "constant":  # every point pulls both ways: all duals at their bound, w = 0
        np.testing.assert_allclose(np.abs(model.dual_coef[0]), 1)
        np.testing.assert_allclose(scores, 0, atol=1e-5)


@given(
    x=hnp.arrays(np.int8, (12, 2), elements=st.integers(-2, 2)),
    labels=hnp.arrays(np.int8, 10, elements=st.integers(0, 1)),
    weight=hnp.arrays(np.int8, 12, elements=st.integers(0, 3)),
    C=st.sampled_from([0.001, 0.5, 1.0, 100.0]),
)
@settings(deadline=None, max_examples=30)
def test_what_is_claimed_is_true(x, labels, weight, C):
    """Points on a coarse grid, so that many coincide; any labels, any weights."""
    x = x.astype(np.float32)
    y = np.concatenate([labels, [0, 1]]).astype(np.int32)
    weight = weight.astype(np.float32)
    weight[-2:] = 1  # both classes occur
    costs = np.asarray(np.float32(C) * weight, np.float64)
    model = classifier.fit(
        x, y, kernel=kernels.gaussian(1.0), C=C, sample_weight=weight, num_classes=2
    )
    gram = np.exp(-squared_distances(x.astype(np.float64), x))
    beta = np.asarray(model.dual_coef[0], np.float64)
    rounding = 1e-5 * max(1, C)  # float32, 12 duals of up to 3 C
    assert abs(beta.sum()) <= rounding
    assert model.converged[0]
    assert true_violation(gram, y, costs, beta) <= 1e-3
    proof = classifier.certificate(model, x, y)
    gap = float(np.ravel(proof.gap)[0])
    assert -10 * rounding <= gap <= (1e-3 + rounding) * costs.sum() + 10 * rounding


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
    bad = X40.copy()
    bad[3, 1] = np.nan
    weight = np.ones(40, np.float32)
    spoilt = whole_program(bad, Y40, 1.0, 0.5, np.ones(2, np.float32), weight)
    assert not spoilt["converged"].any()
    one_class = whole_program(X40, np.zeros(40, int), 1.0, 0.5, np.ones(2, np.float32), weight)
    assert not one_class["converged"].any()


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


def blob_fit(**options):
    return functools.partial(
        classifier.fit,
        kernel=GAUSSIAN,
        C=1.0,
        class_weight=jnp.ones(2),
        num_classes=2,
        tol=1e-4,
        **options,
    )


def test_scores_come_from_machines_that_did_not_see_the_row():
    weight = np.ones(40, np.float32)
    weight[:3] = 0
    calibrated = classifier.calibrate(
        jax.random.key(0), X40, Y40, fit=blob_fit(), num_folds=4, sample_weight=weight
    )
    fold = np.asarray(calibrated.fold)
    for part in range(4):
        mine = fold == part
        # Stratified: of 37 rows that count, 18 and 19 in a class
        for label in (0, 1):
            share = (mine & (label == Y40) & (weight > 0)).sum()
            assert share in (4, 5)
        without = blob_fit()(X40, Y40, sample_weight=np.where(mine, 0, weight))
        np.testing.assert_allclose(
            calibrated.scores[mine, 0], classifier.decision_function(without, X40[mine]), atol=1e-6
        )
    fitted = classifier.platt(calibrated.scores[:, 0], Y40, weight)
    for ours, theirs in zip(calibrated.sigmoid, fitted, strict=True):
        np.testing.assert_allclose(ours[0], theirs, rtol=1e-4)
    whole = blob_fit()(X40, Y40, sample_weight=weight)
    np.testing.assert_allclose(calibrated.model.dual_coef, whole.dual_coef, atol=1e-6)
    p = np.asarray(classifier.predict_proba(calibrated, X40))
    z = fitted.slope * classifier.decision_function(whole, X40) + fitted.offset
    np.testing.assert_allclose(p[:, 1], 1 / (1 + np.exp(-z)), rtol=1e-4)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-6)
    assert calibrated.converged.all()


def test_calibration_is_one_program_under_jit_and_vmap():
    @jax.jit
    @jax.vmap
    def program(key, C):
        fit = functools.partial(blob_fit(), C=C)
        calibrated = classifier.calibrate(key, X40, Y40, fit=fit, num_folds=4)
        return classifier.predict_proba(calibrated, X40)

    keys, Cs = jax.random.split(jax.random.key(1), 2), jnp.array([0.1, 3.0])
    together = program(keys, Cs)
    for key, C, ours in zip(keys, Cs, together, strict=True):
        fit = functools.partial(blob_fit(), C=C)
        alone = classifier.calibrate(key, X40, Y40, fit=fit, num_folds=4)
        np.testing.assert_allclose(ours, classifier.predict_proba(alone, X40), atol=2e-4)


@pytest.mark.parametrize("way", ["one_vs_one", "one_vs_rest", "linear"])
def test_probabilities_of_several_classes(way):
    x, y = standardised("iris")
    x = x.astype(np.float32)
    fit = (
        functools.partial(classifier.fit_linear, num_classes=3)
        if way == "linear"
        else functools.partial(
            classifier.fit, kernel=kernels.gaussian(0.25), num_classes=3, multiclass=way
        )
    )
    calibrated = classifier.calibrate(jax.random.key(0), x, y, fit=fit, num_folds=3)
    p = np.asarray(classifier.predict_proba(calibrated, x))
    assert p.shape == (150, 3)
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    assert (p.argmax(1) == y).mean() > 0.9
    log_loss = -np.log(p[np.arange(150), y]).mean()
    assert log_loss < 0.5 * np.log(3)  # far better than a guess
    sigmoids = np.asarray(calibrated.sigmoid.slope)
    assert sigmoids.shape == (3,)
    assert (sigmoids[[0, 2]] > 0).all()


def test_calibrate_refuses():
    key = jax.random.key(0)
    for change, error, message in [
        (dict(fit="svc"), TypeError, "fit must be callable"),
        (dict(num_folds=1), ValueError, "num_folds must be at least 2"),
        (dict(y=np.eye(1, 40, dtype=int)[0]), ValueError, "class 1 has one"),
        (dict(y=Y40[:7]), ValueError, "as many rows"),
        (dict(sample_weight=np.full(40, -1.0)), ValueError, "sample_weight must not be negative"),
    ]:
        arguments = dict(x=X40, y=Y40, fit=blob_fit()) | change
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
    assert result.grid_score.max() > 0.95
    assert result.test_error < 0.06
    assert result.log_loss < 0.3 * result.log_loss_prior
    pairwise, rest = result.several
    assert pairwise.converged
    assert rest.converged
    assert demo.tables(result)
