"""Kernels against closed forms, scikit-learn and NumPy."""

import dataclasses
import itertools
import math
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from sklearn.metrics import pairwise
from sklearn.preprocessing import KernelCenterer

from mlnotes_jax.demos.svm import kernels as demo
from mlnotes_jax.svm import kernels

ALL = {
    "linear": kernels.linear(),
    "polynomial": kernels.polynomial(3, gamma=0.1, offset=0.5),
    "notes' polynomial": kernels.polynomial(2),
    "gaussian": kernels.gaussian(0.1),
    "laplacian": kernels.laplacian(0.1),
    "manhattan": kernels.laplacian(0.1, norm="manhattan"),
    "sigmoid": kernels.sigmoid(0.1, offset=-0.5),
    "sum": kernels.linear() + 0.5 * kernels.gaussian(0.1),
    "product": kernels.polynomial(2, offset=1.0) * kernels.laplacian(0.1),
}

gram = jax.jit(kernels.gram)
semidefinite = jax.jit(kernels.is_positive_semidefinite)


@jax.jit
def forms(ks, x, z):
    """Every form of several kernels, in one program."""
    return {
        name: {
            "gram": kernels.gram(k, x, z),
            "own": kernels.gram(k, x),
            "diagonal": kernels.diagonal(k, x),
            "pair": k(x[4], z[2]),
        }
        for name, k in ks.items()
    }


def peer(name, x, z):
    """scikit-learn's kernels, and NumPy for what it does not have."""
    if name == "linear":
        return pairwise.linear_kernel(x, z)
    if name == "polynomial":
        return pairwise.polynomial_kernel(x, z, degree=3, gamma=0.1, coef0=0.5)
    if name == "notes' polynomial":
        return pairwise.polynomial_kernel(x, z, degree=2, gamma=1, coef0=0)
    if name == "gaussian":
        return pairwise.rbf_kernel(x, z, gamma=0.1)
    if name == "laplacian":
        return np.exp(-0.1 * pairwise.euclidean_distances(x, z))
    if name == "manhattan":
        return pairwise.laplacian_kernel(x, z, gamma=0.1)
    if name == "sigmoid":
        return pairwise.sigmoid_kernel(x, z, gamma=0.1, coef0=-0.5)
    if name == "sum":
        return peer("linear", x, z) + 0.5 * peer("gaussian", x, z)
    return pairwise.polynomial_kernel(x, z, degree=2, gamma=1, coef0=1) * peer("laplacian", x, z)


def rows(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


# Single examples, blocks, peers


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dim", [3, 12])  # squared differences; a matrix product
def test_block_pair_and_peer_agree(name, dim):
    x, z = rows(11, dim), rows(7, dim, seed=1)
    expected = peer(name, x.astype(float), z.astype(float))
    ours = jax.tree.map(np.asarray, forms(ALL, x, z)[name])
    # Sums of 12 products in float32, cubed at most: some tens of units in the last place.
    tol = {"rtol": 1e-5, "atol": 3e-6 * np.abs(expected).max()}
    assert {form: value.shape for form, value in ours.items()} == {
        "gram": (11, 7), "own": (11, 11), "diagonal": (11,), "pair": ()
    }  # fmt: skip
    assert {value.dtype for value in ours.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(ours["gram"], expected, **tol)
    np.testing.assert_allclose(ours["pair"], expected[4, 2], **tol)

    expected = peer(name, x.astype(float), x.astype(float))
    np.testing.assert_allclose(ours["own"], expected, **tol)
    np.testing.assert_array_equal(ours["own"], ours["own"].T)
    np.testing.assert_allclose(ours["diagonal"], np.diag(expected), rtol=1e-5)


@pytest.mark.parametrize("name", ["gaussian", "laplacian", "manhattan"])
def test_the_own_diagonal_is_exactly_one(name):
    x = 100 + rows(11, 12)
    ours = forms(ALL, x, x[:7].copy())[name]
    np.testing.assert_array_equal(np.diag(ours["own"]), 1)
    np.testing.assert_array_equal(ours["diagonal"], 1)
    # Not told that they are the same rows, the Laplacian still finds distance zero.
    if name != "gaussian":
        np.testing.assert_array_equal(np.diag(ours["gram"]), 1)


def test_nearly_equal_rows_of_the_euclidean_laplacian():
    u, v = np.eye(12, dtype=np.float32)[:2]
    x = np.stack([u, -u, u + 1e-3 * v, u + 5e-3 * v, -u, -u])  # at distance one from their mean
    got = gram(ALL["laplacian"], x, x.copy())
    # Below 0.0014 they count as equal; above, a squared distance of 2.5e-5 is known to 2.4e-7.
    assert got[0, 2] == 1
    assert float(got[0, 3]) == pytest.approx(math.exp(-0.1 * 5e-3), abs=1e-5)
    assert float(got[0, 3]) < 1 - 4e-4


def test_closed_forms():
    x, z = jnp.array([1.0, 2.0]), jnp.array([4.0, 6.0])  # product 16, distance 5, 1-norm 7
    for k, value in {
        kernels.linear(): 16,
        kernels.polynomial(3): 16**3,
        kernels.polynomial(2, gamma=0.5, offset=2.0): 100,
        kernels.gaussian(0.02): math.exp(-0.5),
        kernels.gaussian(sigma=5.0): math.exp(-0.5),
        kernels.laplacian(0.2): math.exp(-1),
        kernels.laplacian(0.2, norm="manhattan"): math.exp(-1.4),
        kernels.sigmoid(0.1, offset=-1.0): math.tanh(0.6),
        3.0 * kernels.linear() * kernels.linear() + kernels.linear(): 3 * 256 + 16,
    }.items():
        assert float(k(x, z)) == pytest.approx(value, rel=1e-6)


def test_explicit_maps_of_degree_two(x64):
    x, gamma, r = rows(6, 3, dtype=float), 0.7, 0.4
    i, j = np.triu_indices(3, 1)
    squares = np.concatenate([x**2, np.sqrt(2) * x[:, i] * x[:, j]], axis=1)
    np.testing.assert_allclose(kernels.gram(kernels.polynomial(2), x), squares @ squares.T)
    lower = np.sqrt(2 * gamma * r) * x
    phi = np.concatenate([gamma * squares, lower, np.full((6, 1), r)], axis=1)
    k = kernels.polynomial(2, gamma=gamma, offset=r)
    np.testing.assert_allclose(kernels.gram(k, x), phi @ phi.T)


def test_gaussian_is_the_limit_of_its_taylor_map(x64):
    x, gamma = rows(5, 2, dtype=float), 0.3
    exact = kernels.gram(kernels.gaussian(gamma), x)
    errors = []
    for top in (2, 6, 20):
        powers = [a for a in itertools.product(range(top + 1), repeat=2) if sum(a) <= top]
        phi = np.stack(
            [
                np.sqrt((2 * gamma) ** sum(a) / (math.factorial(a[0]) * math.factorial(a[1])))
                * np.prod(x ** np.array(a), axis=1)
                for a in powers
            ],
            axis=1,
        ) * np.exp(-gamma * (x**2).sum(axis=1, keepdims=True))
        errors.append(np.abs(phi @ phi.T - exact).max())
    assert errors[0] > 1e-3
    assert errors[1] < errors[0] / 10
    assert errors[2] < 1e-12


def test_far_from_the_origin_nothing_cancels():
    x = (1000 + rows(30, 20)).astype(np.float32)
    exact = pairwise.rbf_kernel(x.astype(float), gamma=0.05)
    # Squared norms are about 2e7, of which one unit in the last place is 2: unshifted, the
    # exponent would be off by 0.1.
    np.testing.assert_allclose(kernels.gram(kernels.gaussian(0.05), x), exact, atol=1e-5)
    ours = kernels.gram(kernels.gaussian(0.05), x[:4], x)
    np.testing.assert_allclose(ours, exact[:4], atol=1e-5)


def test_what_solvers_call_keeps_the_digits():
    x = (1000 + rows(30, 20)).astype(np.float32)
    bell = pairwise.rbf_kernel(x[:4].astype(float), x.astype(float), gamma=0.05)
    product = 1e-9 * x[:4].astype(float) @ x.T.astype(float)  # 0.02, and it moves with the rows
    tiny = 1e-9 * kernels.linear()
    for k, expected in {
        kernels.gaussian(0.05): bell,
        2.0 * kernels.gaussian(0.05): 2 * bell,
        kernels.gaussian(0.05) + tiny: bell + product,
        50.0 * tiny * kernels.gaussian(0.05): 50 * bell * product,
    }.items():
        ready = kernels.prepared(k, x)
        np.testing.assert_allclose(kernels.prepared_gram(k, ready[:4], ready), expected, atol=1e-5)


def test_blocks_of_rows_of_the_1_norm():
    x, z = rows(150, 4), rows(1000, 4, seed=1)  # 65 rows at a time: two blocks and a rest
    expected = pairwise.laplacian_kernel(x, z, gamma=0.1)
    np.testing.assert_allclose(gram(ALL["manhattan"], x, z), expected, rtol=1e-5)


def test_no_array_of_all_differences():
    """The compiled blocks, and the gradient of the 1-norm, stay far below n x m x d numbers."""
    n, m, d = 256, 512, 64
    x, z = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((n, d), (m, d)))
    for name in ("gaussian", "laplacian", "manhattan"):
        k = ALL[name]
        compiled = jax.jit(kernels.gram).lower(k, x, z).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 4 * n * m * d / 8
    slope = jax.jit(jax.grad(lambda x, z: kernels.gram(ALL["manhattan"], x, z).sum()))
    memory = slope.lower(x, z).compile().memory_analysis().temp_size_in_bytes
    assert memory < 4 * n * m * d / 4


# Which are kernels


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([1e-3, 1.0, 100.0]),
    name=st.sampled_from(["linear", "polynomial", "gaussian", "laplacian", "manhattan", "product"]),
)
def test_gram_matrices_are_positive_semidefinite(seed, spread, name):
    x = spread * rows(9, 12, seed=seed)
    # Entries are rounded, some of them twice (products, then cubes): 10 units for each of 9 rows.
    found = semidefinite(gram(ALL[name], x), tol=90 * np.finfo(np.float32).eps)
    assert bool(found), (found.eigenvalue, found.threshold)


@pytest.mark.parametrize(
    ("offset", "points"), [(-1.0, [0.0]), (0.0, [1.0, 2.0]), (1.0, [0.0, 1.0, -1.0])]
)
@pytest.mark.parametrize("gamma", [0.3, 1.0, 7.0])
def test_the_sigmoid_is_no_kernel(offset, points, gamma, x64):
    x = np.array(points)[:, None] / np.sqrt(gamma)
    matrix = kernels.gram(kernels.sigmoid(gamma, offset=offset), x)
    found = kernels.is_positive_semidefinite(matrix)
    assert not found
    assert float(found.eigenvalue) < -0.05
    assert float(found.eigenvalue) == pytest.approx(np.linalg.eigvalsh(matrix)[0], rel=1e-9)


def test_semidefinite_up_to_a_stated_tolerance():
    q, _ = np.linalg.qr(rows(5, 5))
    matrix = (q * np.array([-1e-3, 0.1, 0.2, 1, 2])) @ q.T
    matrix = (matrix + matrix.T) / 2
    found = kernels.is_positive_semidefinite(matrix)
    assert not found
    assert float(found.eigenvalue) == pytest.approx(-1e-3, rel=1e-3)
    assert float(found.threshold) == pytest.approx(2 * 5 * 2**-23, rel=1e-5)
    loose = kernels.is_positive_semidefinite(matrix, tol=1e-3)
    assert loose
    assert float(loose.threshold) == pytest.approx(2e-3, rel=1e-5)
    assert not semidefinite(jnp.full((2, 2), jnp.nan))
    assert not semidefinite(jnp.array([[1.0, 0.5], [0.0, 1.0]]))  # not symmetric, under jit
    assert kernels.is_positive_semidefinite(jnp.zeros((2, 2)))


def test_centred_gram_matrix_against_scikit_learn():
    x, z = rows(12, 4), rows(5, 4, seed=1)
    k = kernels.polynomial(2, offset=1.0)
    matrix, other = kernels.gram(k, x), kernels.gram(k, z, x)
    ours = kernels.centered(matrix)
    sklearn = KernelCenterer().fit(np.asarray(matrix, float))
    # Entries up to 100, of which means are subtracted.
    np.testing.assert_allclose(ours, sklearn.transform(np.asarray(matrix, float)), atol=1e-4)
    np.testing.assert_array_equal(ours, ours.T)
    expected = sklearn.transform(np.asarray(other, float))
    np.testing.assert_allclose(kernels.centered(matrix, other), expected, atol=1e-4)
    np.testing.assert_allclose(ours.sum(axis=0), 0, atol=1e-3)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_cover_counts_what_linear_programs_find(dim):
    n, points = 6, rows(6, dim, seed=dim, dtype=float)
    lifted = np.concatenate([points, np.ones((n, 1))], axis=1)
    found = 0
    for rest in itertools.product([1, -1], repeat=n - 1):
        y = np.array([1, *rest])
        program = linprog(
            np.zeros(dim + 1), A_ub=-y[:, None] * lifted, b_ub=-np.ones(n), bounds=(None, None)
        )
        found += 2 * (program.status == 0)
    assert found == kernels.separable_labelings(n, dim)


def test_cover_recursion_and_edges():
    count = lambda n, d: kernels.separable_labelings(n, d, bias=False)  # noqa: E731
    for n, d in itertools.product(range(1, 20), range(2, 9)):
        assert count(n + 1, d) == count(n, d) + count(n, d - 1)
    assert all(count(n, n) == 2**n for n in range(1, 9))
    assert all(2 * count(2 * d, d) == 4**d for d in range(1, 99))
    assert kernels.separable_labelings(4, 2) == 14


# Random Fourier features


def test_random_features_are_unbiased_with_the_variance_of_the_formula():
    x, z = rows(2, 5)
    num_draws, size = 4000, 8
    keys = jax.random.split(jax.random.key(0), num_draws)

    @jax.jit
    @jax.vmap
    def estimate(key):
        phi = kernels.random_fourier_features(key, size, 5, gamma=0.1)
        return phi(x) @ phi(z), phi(x) @ phi(x)

    values, lengths = estimate(keys)
    exact = math.exp(-0.1 * np.sum((x - z) ** 2))
    assert 0.1 < exact < 0.9
    deviation = (1 - exact**2) / math.sqrt(size)
    # Five standard errors of the mean; the variance of a variance of 4000 draws is about 3 %.
    assert abs(float(values.mean()) - exact) < 5 * deviation / math.sqrt(num_draws)
    assert float(values.std()) == pytest.approx(deviation, rel=0.1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)


def test_random_features_of_batches():
    phi = kernels.random_fourier_features(jax.random.key(1), 6, 3, gamma=jnp.float32(0.5))
    x = rows(2, 4, 3)
    assert phi(x).shape == (2, 4, 6)
    np.testing.assert_allclose(phi(x)[1, 2], phi(x[1, 2]), atol=1e-6)
    assert phi(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


# gamma = "scale"


def test_scale_is_that_of_scikit_learn():
    from sklearn.svm import SVC

    x, y = 3 + rows(20, 6), np.arange(20) % 2
    theirs = SVC(gamma="scale").fit(x, y)._gamma
    k = kernels.resolve(kernels.gaussian("scale"), x)
    assert float(k.gamma) == pytest.approx(theirs, rel=1e-5)
    # Rows of weight zero do not count, whatever they hold.
    padded = np.concatenate([x, 1e6 + x[:5]])
    weight = np.concatenate([np.linspace(0.1, 3, 20), np.zeros(5)])
    weighted = jax.jit(kernels.resolve)(kernels.gaussian("scale"), padded, weight)
    assert float(weighted.gamma) == pytest.approx(theirs, rel=1e-5)


def test_resolve_reaches_every_part_and_leaves_the_rest():
    x = rows(9, 4)
    k = 2.0 * (kernels.gaussian("scale") + kernels.polynomial(2, gamma="scale"))
    k = k * kernels.sigmoid("scale", offset=0.5) + kernels.laplacian(0.3)
    assert "'scale'" in repr(k)
    gamma = kernels.resolve(kernels.gaussian("scale"), x).gamma
    resolved = kernels.resolve(k, x)
    assert "'scale'" not in repr(resolved)
    by_hand = 2.0 * (kernels.gaussian(gamma) + kernels.polynomial(2, gamma=gamma))
    by_hand = by_hand * kernels.sigmoid(gamma, offset=0.5) + kernels.laplacian(0.3)
    chex.assert_trees_all_equal(resolved, by_hand)
    plain = kernels.gaussian(0.5)
    assert kernels.resolve(plain, x) is plain
    assert kernels.resolve(np.dot, x) is np.dot


@pytest.mark.parametrize("value", [0.1, 0.0, 1e6])
def test_scale_of_constant_data_is_one(value):
    assert float(kernels.resolve(kernels.gaussian("scale"), np.full((7, 3), value)).gamma) == 1
    none = kernels.resolve(kernels.gaussian("scale"), rows(3, 2), np.zeros(3))
    assert float(none.gamma) == 1


# Transformations


def test_jit_does_not_compile_again_and_equals_eager():
    x, traces = rows(5, 12), []

    @jax.jit
    def traced(k, x):
        traces.append(1)
        return kernels.gram(k, x)

    for g in (0.1, 0.2, 0.7):
        k = kernels.gaussian(g) * kernels.polynomial(2, offset=g) + g * kernels.laplacian(g)
        np.testing.assert_allclose(traced(k, x), kernels.gram(k, x), rtol=2e-5, atol=1e-5)
    assert len(traces) == 1


def test_vmap_over_a_kernel_equals_a_loop():
    x, gammas = rows(5, 3), jnp.array([0.1, 0.5, 2.0])
    together = jax.vmap(kernels.gram, (0, None))(kernels.gaussian(gammas), x)
    inside = jax.vmap(lambda g: kernels.gram(kernels.gaussian(gamma=g), x))(gammas)
    for g, a, b in zip(gammas, together, inside, strict=True):
        alone = kernels.gram(kernels.gaussian(float(g)), x)
        np.testing.assert_allclose(a, alone, rtol=1e-6)
        np.testing.assert_allclose(b, alone, rtol=1e-6)


def test_gradients_against_differences(x64):
    names = ("gaussian", "product", "sigmoid", "manhattan")
    x, z = rows(3, 10, dtype=float), rows(2, 10, seed=1, dtype=float)
    weight = rows(3, 2, seed=2, dtype=float)

    @jax.jit
    @jax.jacrev
    def slopes(at):
        ks, x, z = at
        return {name: jnp.sum(weight * kernels.gram(k, x, z)) for name, k in ks.items()}

    @jax.jit
    def values(at):
        ks, x, z = at
        return {name: jnp.sum(weight * kernels.gram(k, x, z)) for name, k in ks.items()}

    at = jax.tree.map(np.asarray, ({name: ALL[name] for name in names}, x, z))
    rng = np.random.default_rng(3)
    step = jax.tree.map(lambda leaf: 1e-5 * rng.normal(size=leaf.shape), at)
    ahead, behind = (values(jax.tree.map(op, at, step)) for op in (np.add, np.subtract))
    for name, slope in slopes(at).items():
        along = sum(jax.tree.leaves(jax.tree.map(lambda a, b: np.sum(a * b), slope, step)))
        # Central differences: the square of the step times third derivatives, and 1e-16 / step.
        assert float(ahead[name] - behind[name]) == pytest.approx(2 * float(along), rel=1e-7)


@pytest.mark.parametrize("dim", [2, 12])
def test_gradients_are_finite_at_distance_zero(dim):
    x = jnp.asarray(rows(3, dim)[[0, 0, 1]])  # the first two rows are equal
    names = ("gaussian", "laplacian", "manhattan")

    @jax.jit
    @jax.jacrev
    def slopes(x):
        return [
            (kernels.gram(k, x).sum(), kernels.gram(k, x, x).sum(), k(x[0], x[1]))
            for k in map(ALL.get, names)
        ]

    for slope in jax.tree.leaves(slopes(x)):
        assert np.isfinite(slope).all()


def test_dtype_follows_the_examples():
    x, z = rows(11, 12), rows(7, 12, seed=1)
    ks = {"gaussian": ALL["gaussian"], "traced": kernels.gaussian(jnp.float32(0.1))}
    exact = forms(ks, x, z)["gaussian"]
    for dtype, tol in ((jnp.bfloat16, 2**-7), (jnp.float16, 2**-9)):
        for ours in forms(ks, jnp.asarray(x, dtype), jnp.asarray(z, dtype)).values():
            # Computed in float32: what is lost are the digits of the rows and of the result.
            for form, value in ours.items():
                assert value.dtype == dtype
                close = np.asarray(value, np.float32)
                np.testing.assert_allclose(close, exact[form], atol=2 * tol)
    whole = np.arange(6).reshape(3, 2)
    assert kernels.gram(kernels.linear(), whole).dtype == jnp.float32
    mixed = jax.eval_shape(lambda x, z: kernels.gram(ks["traced"], x, z), x, z.astype(jnp.bfloat16))
    assert mixed.dtype == jnp.float32


def test_double_precision_keeps_all_digits(x64):
    x, z = rows(11, 12, dtype=float), rows(7, 12, seed=1, dtype=float)
    for name, ours in forms(ALL, x, z).items():
        assert ours["gram"].dtype == jnp.float64
        np.testing.assert_allclose(ours["gram"], peer(name, x, z), rtol=1e-7, atol=1e-13)


# Kernels as values


def test_kernels_are_pytrees_that_print_compare_and_pickle():
    k = kernels.gaussian(0.5) + 2.0 * kernels.polynomial(2, offset=1.0)
    assert jax.tree.leaves(k) == [0.5, 2.0, 1.0, 1.0]
    assert repr(k) == (
        "Sum(left=Gaussian(gamma=0.5), right=Scaled(factor=2.0, "
        "kernel=Polynomial(gamma=1.0, offset=1.0, degree=2)))"
    )
    assert pickle.loads(pickle.dumps(k)) == k
    assert jax.tree.leaves(kernels.gaussian("scale")) == []
    assert kernels.gaussian(sigma=2.0) == kernels.gaussian(0.125)
    assert kernels.laplacian(1.0) != kernels.laplacian(1.0, norm="manhattan")


def test_factors_of_every_kind():
    x = rows(3, 2)
    expected = 2 * kernels.gram(kernels.linear(), x)
    for k in (
        2 * kernels.linear(),
        kernels.linear() * 2,
        np.float64(2) * kernels.linear(),
        np.array(2.0) * kernels.linear(),
        jnp.float32(2) * kernels.linear(),
    ):
        np.testing.assert_allclose(kernels.gram(k, x), expected)
        np.testing.assert_allclose(kernels.diagonal(k, x), jnp.diag(expected))


def test_own_kernels():
    x, z = rows(4, 3), rows(2, 3, seed=1)

    def plain(x, z):
        return jnp.minimum(x, z).sum()

    expected = np.minimum(x[:, None], z[None]).sum(axis=2)
    np.testing.assert_allclose(kernels.gram(plain, x, z), expected, rtol=1e-6)
    np.testing.assert_allclose(kernels.diagonal(plain, x), x.sum(axis=1), rtol=1e-6)
    for k in (plain + kernels.linear(), kernels.linear() + plain):
        np.testing.assert_allclose(kernels.gram(k, x, z), expected + x @ z.T, rtol=1e-5)
    for k in (plain * kernels.linear(), kernels.linear() * plain):
        np.testing.assert_allclose(kernels.gram(k, x, z), expected * (x @ z.T), rtol=1e-5)

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Fast(kernels.Kernel):
        width: float

        def __call__(self, x, z):
            raise AssertionError("the block form is to be used")

        def gram(self, x, z):
            return self.width * x @ z.T

    k = kernels.gaussian(0.1) * Fast(0.5)
    got = gram(k, x, z)
    np.testing.assert_allclose(got, peer("gaussian", x, z) * 0.5 * (x @ z.T), rtol=1e-5)


def test_precomputed_matrix():
    x = rows(5, 3)
    matrix = kernels.gram(kernels.gaussian(0.3), x)
    k = kernels.precomputed(matrix)
    i, j = np.array([[4], [0], [2]]), np.array([[1], [2]])
    np.testing.assert_array_equal(kernels.gram(k, i, j), matrix[i, j.T])
    np.testing.assert_array_equal(kernels.gram(k, i.astype(float), j), matrix[i, j.T])
    np.testing.assert_array_equal(kernels.diagonal(k, i), np.ones(3))
    assert k(i[0], j[0]) == matrix[4, 1]
    # No such row, or no row at all: an error, and under jit NaN, not another row's value.
    for bad in (5, -1, 0.5):
        with pytest.raises(ValueError, match=r"x must hold row numbers in 0\.\.4, got"):
            kernels.gram(k, np.array([[bad]]), j)
        got = gram(k, np.array([[bad], [1]]), j)
        assert np.isnan(got[0]).all()
        assert np.isfinite(got[1]).all()


# Bad input


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: kernels.gaussian(0.0), ValueError, "gamma must be positive, got 0.0"),
        (lambda: kernels.gaussian(-1), ValueError, "gamma must be positive, got -1.0"),
        (lambda: kernels.gaussian(math.nan), ValueError, "gamma must be finite, got nan"),
        (lambda: kernels.gaussian(jnp.array([1.0, -2.0])), ValueError, "gamma must be positive"),
        (lambda: kernels.gaussian("auto"), ValueError, "positive number or 'scale', got 'auto'"),
        (lambda: kernels.gaussian(), TypeError, "gamma or sigma"),
        (lambda: kernels.gaussian(1.0, sigma=1.0), TypeError, "gamma or sigma"),
        (lambda: kernels.gaussian(sigma=0.0), ValueError, "sigma must be positive"),
        (lambda: kernels.gaussian(sigma=1e-200), ValueError, "square of sigma must be positive"),
        (lambda: kernels.gaussian(1j), TypeError, "gamma must be a real array"),
        (lambda: kernels.polynomial(0), ValueError, "degree must be at least 1, got 0"),
        (lambda: kernels.polynomial(2.5), TypeError, "degree must be an integer"),
        (lambda: kernels.polynomial(2, offset=-1.0), ValueError, "offset must not be negative"),
        (lambda: kernels.laplacian(1.0, norm="max"), ValueError, "norm must be one of"),
        (lambda: kernels.sigmoid(0.0), ValueError, "gamma must be positive"),
        (lambda: kernels.sigmoid(1.0, offset=math.inf), ValueError, "offset must be finite"),
        (lambda: -1.0 * kernels.linear(), ValueError, "factor of a kernel must not be negative"),
        (lambda: kernels.linear() + 1, TypeError, "unsupported operand"),
        (lambda: kernels.linear() - kernels.linear(), TypeError, "unsupported operand"),
        (lambda: kernels.precomputed(rows(2, 3)), ValueError, r"square, got shape \(2, 3\)"),
        (
            lambda: kernels.precomputed([[1.0, 2.0], [3.0, 1.0]]),
            ValueError,
            r"matrix must be symmetric, got 2\.0 in row 0, column 1, but 3\.0",
        ),
        (
            lambda: kernels.precomputed([[1.0, math.inf], [math.inf, 1.0]]),
            ValueError,
            "matrix must be finite, got inf in row 0, column 1",
        ),
        (lambda: kernels.is_positive_semidefinite(rows(3)), ValueError, "gram must be square"),
        (lambda: kernels.is_positive_semidefinite(np.eye(2), tol=-1), ValueError, "tol must not"),
        (
            lambda: kernels.centered(np.eye(3), np.eye(2)),
            ValueError,
            "one column for each of the 3",
        ),
        (lambda: kernels.separable_labelings(0, 2), ValueError, "num_points must be at least 1"),
        (
            lambda: kernels.random_fourier_features(jax.random.key(0), 5, 2, gamma=1.0),
            ValueError,
            "num_features must be even",
        ),
        (
            lambda: kernels.random_fourier_features(jax.random.key(0), 4, 2, gamma=-1.0),
            ValueError,
            "gamma must be positive",
        ),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda k, x: kernels.gram(k, x, x[:, :2]), ValueError, "as many features"),
        (lambda k, x: kernels.gram(k, x[0]), ValueError, r"x must be 2-D, got shape \(3,\)"),
        (lambda k, x: kernels.gram("gaussian", x), TypeError, "k must be a kernel"),
        (lambda k, x: kernels.gram(k, object()), TypeError, "x must be a numeric array"),
        (lambda k, x: k(x, x), ValueError, r"x must be 1-D, got shape \(4, 3\)"),
        (lambda k, x: k(x[0], x[0, :2]), ValueError, "as many features"),
        (
            lambda k, x: kernels.gram(kernels.gaussian("scale"), x),
            ValueError,
            "gamma='scale' needs data: call kernels.resolve",
        ),
        (
            lambda k, x: kernels.gram(kernels.gaussian(np.ones(2)), x),
            ValueError,
            "gamma must be a scalar",
        ),
        (lambda k, x: kernels.gram(lambda a, b: a, x), ValueError, "must give a scalar"),
        (
            lambda k, x: kernels.gram(kernels.precomputed(np.eye(2)), x),
            ValueError,
            r"shape \(n, 1\)",
        ),
        (
            lambda k, x: kernels.resolve(kernels.gaussian("scale"), x, np.ones(3)),
            ValueError,
            "as many rows",
        ),
        (lambda k, x: kernels.Kernel()(x, x), NotImplementedError, "needs a method"),
    ],
)
def test_bad_examples(call, error, message):
    with pytest.raises(error, match=message):
        call(kernels.gaussian(0.5), rows(4, 3))


# The page's claim


def test_demo_supports_the_page():
    result = demo.run(jax.random.key(1), quick=True)
    linear, square, bell = (float(machine.accuracy) for machine in result.machines)
    assert linear < 0.8  # a half-plane holds at most three clouds of four
    assert min(square, bell) > 0.9
    assert [s.verdict for s in result.spectra] == [True] * 4 + [False]
    assert result.spectra[-1].eigenvalues[-1] < -0.01
    # Four draws of a few frequencies at the smallest size.
    np.testing.assert_allclose(result.fourier.error, result.fourier.expected, rtol=0.5)
    rows_of = demo.tables(result)
    assert all(len({tuple(row) for row in rows}) == 1 for rows in rows_of.values())
