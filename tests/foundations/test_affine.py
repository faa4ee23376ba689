"""Affine maps, exact separability against scipy's linear programming, and regions."""

import functools
import itertools
import math
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnotes_jax.demos.foundations import affine as demo
from mlnotes_jax.foundations import activations, affine

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 3))
W, B = RNG.normal(size=(3, 4)), RNG.normal(size=4)


def proves_inseparable(points, labels, multipliers):
    """The certificate, checked without the library: integers or fractions only."""
    lam = [Fraction(m) for m in multipliers]
    rows = [[Fraction(v) for v in (*p, 1)] for p in points]
    sums = [
        sum(m * int(y) * row[j] for m, y, row in zip(lam, labels, rows, strict=True))
        for j in range(len(rows[0]))
    ]
    return min(lam) >= 0 and max(lam) > 0 and not any(sums)


def separates(points, labels, weight, bias):
    """The hyperplane, checked without the library."""
    return all(
        int(y) * (sum(Fraction(w) * Fraction(v) for w, v in zip(weight, p, strict=True)) + bias) > 0
        for p, y in zip(points, labels, strict=True)
    )


# --- Affine maps ----------------------------------------------------------------------------------


def test_affine_against_numpy_and_torch(torch, x64):
    ours = affine.affine(X, W, B)
    np.testing.assert_allclose(ours, X @ W + B, rtol=1e-14)
    layer = torch.nn.Linear(3, 4, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(W.T))  # PyTorch keeps the transpose
        layer.bias.copy_(torch.tensor(B))
        np.testing.assert_allclose(ours, layer(torch.tensor(X)).numpy(), rtol=1e-13)


def test_any_batch_axes_jit_and_vmap():
    x, w, b = (v.astype(np.float32) for v in (X, W, B))
    whole = jax.jit(affine.affine)(x, w, b)
    # float32, three products: a few ulps
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    close(affine.affine(x, w, b), whole)
    close(affine.affine(x[0], w, b), whole[0])
    close(affine.affine(x.reshape(2, 3, 3), w, b), whole.reshape(2, 3, 4))
    close(jax.vmap(lambda row: affine.affine(row, w, b))(x), whole)
    assert affine.affine([1, 2, 3], w, b).dtype == jnp.float32


def test_affine_maps_in_a_row_are_one(x64):
    layers = [(RNG.normal(size=(a, c)), RNG.normal(size=c)) for a, c in [(3, 5), (5, 2), (2, 4)]]
    deep = X
    for layer in layers:
        deep = affine.affine(deep, *layer)
    np.testing.assert_allclose(affine.affine(X, *affine.compose(layers)), deep, rtol=1e-12)


def test_one_neuron_is_a_half_plane(x64):
    w, b = np.array([3.0, -4.0]), 2.0
    x = RNG.normal(size=(50, 2))
    r = affine.signed_distance(x, w, b)
    foot = x - np.asarray(r)[:, None] * w / 5
    np.testing.assert_allclose(foot @ w + b, 0, atol=1e-14)  # on the line
    side = x @ w + b > 0
    assert side.any()
    assert not side.all()
    for phi in (activations.sigmoid, activations.tanh):
        assert ((phi(x @ w + b) > phi(0.0)) == side).all()
    np.testing.assert_allclose(affine.signed_distance(x, 7 * w, 7 * b), r, rtol=1e-12)


def test_gradients_against_finite_differences_and_no_recompilation(x64):
    @jax.jit
    @functools.partial(chex.assert_max_traces, n=1)
    def total(x, kernel, bias, weight):
        z = affine.affine(affine.lift_products(x), *affine.compose([(kernel, bias), (W, B)]))
        return jnp.sin(z).sum() + affine.signed_distance(x, weight, bias[0]).sum()

    inputs = (X, RNG.normal(size=(6, 3)), RNG.normal(size=3), RNG.normal(size=3))
    # central differences, good to eps^(2/3)
    chex.assert_numerical_grads(total, inputs, order=1, atol=1e-7, rtol=1e-6)


def test_lift_products_by_hand():
    assert affine.lift_products([2.0, 3.0, 5.0]).tolist() == [2, 3, 5, 6, 10, 15]
    assert affine.lift_products(X).shape == (6, 6)
    assert affine.lift_products([7.0]).tolist() == [7]


# --- XOR ------------------------------------------------------------------------------------------


def test_xor_is_not_separable():
    points, labels = affine.xor()
    assert labels.tolist() == [2 * (a ^ b) - 1 for a, b in points.tolist()]
    verdict = affine.separability(points, labels)
    assert not verdict.separable
    assert verdict.weight is None
    assert verdict.multipliers == (Fraction(1, 4),) * 4
    assert proves_inseparable(points.tolist(), labels, verdict.multipliers)
    assert affine.verify_certificate(points, labels, verdict.multipliers)
    assert affine.common_point(points, labels, verdict.multipliers) == (Fraction(1, 2),) * 2


def test_no_affine_lift_separates_xor():
    points, labels = affine.xor()
    lifted = points @ RNG.integers(-9, 10, size=(2, 7)) + RNG.integers(-9, 10, size=7)
    assert not affine.separability(lifted, labels).separable
    assert proves_inseparable(lifted.tolist(), labels, [1, 1, 1, 1])


def test_lifts_that_bend_separate_xor():
    points, labels = affine.xor()
    hidden, output = affine.xor_network()
    relus = activations.relu(affine.affine(points, *hidden))
    assert relus.tolist() == [[0, 0], [1, 0], [1, 0], [2, 1]]
    assert affine.affine(relus, *output).ravel().tolist() == [0, 1, 1, 0]
    for lifted in (affine.lift_products(points), relus):
        verdict = affine.separability(lifted, labels)
        assert verdict.separable
        assert verdict.multipliers is None
        assert separates(lifted.tolist(), labels, verdict.weight, verdict.bias)
        assert affine.verify_hyperplane(lifted, labels, verdict.weight, verdict.bias)


def test_boolean_functions_of_two_bits():
    points, _ = affine.xor()
    bad = [
        signs
        for signs in itertools.product((-1, 1), repeat=4)
        if not affine.separability(points, signs).separable
    ]
    assert bad == [(-1, 1, 1, -1), (1, -1, -1, 1)]


# --- Separability ---------------------------------------------------------------------------------


@st.composite
def labelled_points(draw):
    n, d = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    row = st.lists(st.integers(-3, 3), min_size=d, max_size=d)
    points = draw(st.lists(row, min_size=n, max_size=n))
    return points, draw(st.lists(st.sampled_from([-1, 1]), min_size=n, max_size=n))


@settings(deadline=None, max_examples=100)
@given(labelled_points())
def test_always_exactly_one_proof(case):
    points, labels = case
    verdict = affine.separability(points, labels)
    if verdict.separable:
        assert verdict.multipliers is None
        assert separates(points, labels, verdict.weight, verdict.bias)
        margins = [
            y * (sum(w * v for w, v in zip(verdict.weight, p, strict=True)) + verdict.bias)
            for p, y in zip(points, labels, strict=True)
        ]
        assert min(margins) >= 1
        assert affine.verify_hyperplane(points, labels, verdict.weight, verdict.bias)
    else:
        assert verdict.weight is None
        assert verdict.bias is None
        assert proves_inseparable(points, labels, verdict.multipliers)
        assert sum(verdict.multipliers) == 1
        assert sum(m > 0 for m in verdict.multipliers) <= len(points[0]) + 2
        assert affine.verify_certificate(points, labels, verdict.multipliers)
        # the common point is in both hulls, with these very weights
        point = affine.common_point(points, labels, verdict.multipliers)
        for sign in (-1, 1):
            mine = [
                (m, p)
                for m, p, y in zip(verdict.multipliers, points, labels, strict=True)
                if y == sign
            ]
            total = sum(m for m, _ in mine)
            assert all(
                sum(m * p[j] for m, p in mine) == total * point[j] for j in range(len(point))
            )
    assert verdict.separable == separable_by_scipy(points, labels)


def separable_by_scipy(points, labels):
    """Feasibility of y_i (w x_i + b) >= 1 by HiGHS. Data are small integers, so it is safe."""
    optimize = pytest.importorskip("scipy.optimize")
    a = np.array(labels)[:, None] * np.column_stack([points, np.ones(len(points))])
    found = optimize.linprog(
        np.zeros(a.shape[1]), A_ub=-a, b_ub=-np.ones(len(a)), bounds=(None, None)
    )
    assert found.status in (0, 2)  # solved, or infeasible
    return found.status == 0


def test_floats_count_as_exactly_what_they_are():
    # On the line through 0.1 and 0.3 the float 0.2 is not quite in the middle, but between.
    assert not affine.separability([[0.1], [0.2], [0.3]], [1, -1, 1]).separable
    # a gap of one ulp is a gap
    above = np.nextafter(0.1, 1)
    verdict = affine.separability([[0.1], [above]], [-1, 1])
    assert verdict.separable
    assert affine.verify_hyperplane([[0.1], [above]], [-1, 1], verdict.weight, verdict.bias)
    # three points on a line in reals are not on one in floats
    points = [[0.1, 0.3], [0.2, 0.6], [0.3, 0.9]]
    assert Fraction(0.3) != 3 * Fraction(0.1)
    assert not affine.verify_certificate(points, [1, -1, 1], [1, 2, 1])
    assert affine.verify_certificate([[1, 3], [2, 6], [3, 9]], [1, -1, 1], [1, 2, 1])
    exact = [[Fraction(1, 10)], [Fraction(2, 10)], [Fraction(3, 10)]]
    assert affine.verify_certificate(exact, [1, -1, 1], [1, 2, 1])


def test_other_dtypes_and_one_class():
    points, labels = affine.xor()
    for x in (points.astype(bool), jnp.asarray(points, jnp.bfloat16), points.astype(np.float16)):
        assert affine.separability(x, labels).multipliers == (Fraction(1, 4),) * 4
    for sign in (-1, 1):
        verdict = affine.separability(points, [sign] * 4)
        assert verdict.separable
        assert verdict.bias * sign > 0


def test_wrong_proofs_are_refused():
    points, labels = affine.xor()
    for wrong in ([1, 1, 1, 2], [0, 0, 0, 0], [-1, -1, -1, -1], [1, 1, 0, 0]):
        assert not affine.verify_certificate(points, labels, wrong)
    assert not affine.verify_hyperplane(points, labels, [1, 1], -0.5)
    assert not affine.verify_hyperplane([[0], [1]], [-1, 1], [1], 0)  # on the border is not beyond
    with pytest.raises(ValueError, match="multipliers must be a valid certificate"):
        affine.common_point(points, labels, [1, 1, 1, 2])


# --- Regions --------------------------------------------------------------------------------------


def random_network(widths, seed):
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(a, b)), rng.normal(size=b)) for a, b in itertools.pairwise(widths)]


def outputs(weights, x):
    """A NumPy forward pass, and the pattern of its hidden units."""
    pattern = []
    for kernel, bias in weights[:-1]:
        z = x @ kernel + bias
        pattern.append(z > 0)
        x = np.maximum(z, 0)
    return x @ weights[-1][0] + weights[-1][1], np.concatenate(pattern, axis=-1)


def area(corners):
    x, y = corners.T
    return 0.5 * abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))


def test_bound_by_its_recursion():
    def most(m, d):
        return 1 if m == 0 or d == 0 else most(m - 1, d) + most(m - 1, d - 1)

    for m, d in itertools.product(range(1, 7), range(1, 5)):
        assert affine.region_bound((d, m)) == most(m, d)
    assert affine.region_bound((2, 3, 5)) == most(3, 2) * most(5, 2)
    assert affine.region_bound((9, 4)) == 2**4  # more dimensions than units: every pattern


@pytest.mark.parametrize("units", [1, 2, 3, 6, 9])
def test_lines_in_general_position_reach_the_bound(units):
    # The square is so large that it holds every crossing of these lines.
    weights = random_network((2, units, 1), seed=units)
    regions = affine.activation_regions(weights, low=(-1e5, -1e5), high=(1e5, 1e5))
    assert len(regions) == affine.region_bound((2, units)) == 1 + units + math.comb(units, 2)


@pytest.mark.parametrize("widths", [(2, 5, 1), (2, 4, 4, 3), (2, 3, 3, 3, 1)])
def test_regions_of_deep_networks(widths):
    low, high = (-2.0, -1.0), (1.5, 3.0)
    weights = random_network(widths, seed=3)
    regions = affine.activation_regions(weights, low=low, high=high)
    assert 5 < len(regions) <= affine.region_bound(widths[:-1])
    # they fill the rectangle, and no pattern comes twice
    np.testing.assert_allclose(sum(area(r.corners) for r in regions), 3.5 * 4, rtol=1e-9)
    patterns = {tuple(r.pattern) for r in regions}
    assert len(patterns) == len(regions)
    rng = np.random.default_rng(0)
    for region in regions:
        # random points of the polygon: its map and its pattern are those of the network
        share = rng.dirichlet(np.ones(len(region.corners)), size=5)
        x = share @ region.corners
        expected, pattern = outputs(weights, x)
        np.testing.assert_allclose(x @ region.kernel + region.bias, expected, atol=1e-9)
        assert (pattern == region.pattern).all()
    # every pattern on a grid is one of them
    grid = np.stack(np.meshgrid(*np.linspace(low, high, 60).T), axis=-1).reshape(-1, 2)
    assert {tuple(p) for p in outputs(weights, grid)[1]} <= patterns


def test_parallel_and_equal_and_dead_units():
    kernel = np.array([[1.0, 2.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    weights = [(kernel, np.array([0.0, 0.0, -0.5, 1.0])), (np.ones((4, 1)), np.zeros(1))]
    regions = affine.activation_regions(weights, low=(-1, -1), high=(1, 1))
    assert len(regions) == 3  # at x = 0 (twice) and x = 0.5; the last unit is constant
    assert sorted(round(area(r.corners), 9) for r in regions) == [1, 1, 2]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_folds_multiply(depth):
    weights = demo.fold_network(depth)
    assert len(affine.activation_regions(weights, low=(0, 0), high=(1, 1))) == 4**depth
    x = np.random.default_rng(1).uniform(size=(30, 2))
    saw = x
    for _ in range(depth):
        saw = 1 - np.abs(1 - 2 * saw)
    np.testing.assert_allclose(outputs(weights, x)[0][:, 0], saw.sum(axis=1), atol=1e-12)


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: affine.affine([1.0], W, B), ValueError, "x must have 3 features on its last axis"),
        (
            lambda: affine.affine(1.0, W, B),
            ValueError,
            r"3 features on its last axis, got shape \(\)",
        ),
        (
            lambda: affine.affine(X, W, B[:2]),
            ValueError,
            r"bias must have one entry for each column .* \(3, 4\), got shape \(2,\)",
        ),
        (lambda: affine.compose([]), ValueError, "weights must hold at least one layer"),
        (
            lambda: affine.compose([(W, B), (W, B)]),
            ValueError,
            r"weights must fit together, got kernels \(3, 4\) and \(3, 4\)",
        ),
        (
            lambda: affine.signed_distance(X, [0.0] * 3, 1.0),
            ValueError,
            "weight must not be all zero",
        ),
        (lambda: affine.lift_products(1.0), ValueError, "x must have features on its last axis"),
        (lambda: affine.separability([], []), ValueError, "x must be 2-D and not empty"),
        (
            lambda: affine.separability([1, 2], [1, 1]),
            ValueError,
            r"x must be 2-D .* got shape \(2,",
        ),
        (
            lambda: affine.separability([[1], [2]], [1]),
            ValueError,
            r"labels must have one entry for each row of x, of shape \(2, 1\), got shape \(1,\)",
        ),
        (
            lambda: affine.separability([[1], [2]], [1, 0]),
            ValueError,
            r"labels must be -1 or \+1, got 0",
        ),
        (
            lambda: affine.separability([[1.0], [np.nan]], [1, -1]),
            ValueError,
            "x must be finite, got nan in row 1, column 0",
        ),
        (lambda: affine.separability([["word"]], [1]), TypeError, "x must be a numeric array"),
        (
            lambda: affine.verify_certificate([[1], [2]], [1, -1], [1]),
            ValueError,
            "multipliers must have one entry for each of 2 points, got 1",
        ),
        (
            lambda: affine.verify_certificate([[1]], [1], [np.inf]),
            ValueError,
            "multipliers must be finite numbers, got inf",
        ),
        (
            lambda: affine.verify_hyperplane([[1]], [1], [1, 2], 0),
            ValueError,
            "weight must have 1 entries, got 2",
        ),
        (lambda: affine.region_bound((2,)), ValueError, "widths must hold the inputs and a hidden"),
        (lambda: affine.region_bound((2, 0)), ValueError, r"widths\[1\] must be at least 1, got 0"),
        (
            lambda: affine.activation_regions([(W, B)], low=(0, 0), high=(1, 1)),
            ValueError,
            r"layer 0 of weights must have a kernel \(2, outputs\) .* got \(3, 4\)",
        ),
        (
            lambda: affine.activation_regions([], low=(0, 0), high=(1, 1)),
            ValueError,
            "weights must hold at least one layer",
        ),
        (
            lambda: affine.activation_regions(affine.xor_network(), low=(0, 0), high=(0, 1)),
            ValueError,
            "low must be below high",
        ),
        (
            lambda: affine.activation_regions(affine.xor_network(), low=0, high=(0, 1)),
            ValueError,
            "low must be two finite numbers, got 0",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- The demo and the page's claims ---------------------------------------------------------------


@pytest.fixture(scope="module")
def result():
    return demo.run(jax.random.key(0), quick=True)


def test_no_line_has_versicolor_on_one_side(result):
    data = demo.problem()
    assert not result.flowers.separable
    assert proves_inseparable(data.x.tolist(), data.labels, result.flowers.multipliers)
    assert result.num_flowers <= 4  # d + 2


def test_more_units_cut_more_regions(result):
    one, two, deep = result.networks
    assert len(one.regions) == 2
    assert 3 <= len(two.regions) <= 4  # a strip; where its borders cross, a fourth
    assert 4 < len(deep.regions) <= deep.bound == 121
    assert one.accuracy < 0.8 < 0.93 < two.accuracy  # a half-plane, and a strip
    assert [fold.regions for fold in result.folds] == [4, 16, 64, 256]
    assert result.folds[-1].regions > result.folds[-1].shallow


def test_demo_shows_its_numbers(result):
    import matplotlib as mpl

    mpl.use("agg")
    tables = demo.tables(result)
    assert [len(rows) for rows in tables.values()] == [5, 3, 4]
    assert [row["separable"] for row in next(iter(tables.values()))] == [
        False, False, False, True, True,
    ]  # fmt: skip
    assert len(demo.plot(result).axes) == 6
    assert result.source.name == "iris"
