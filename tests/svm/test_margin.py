"""Distances and margins in closed form; streets against libsvm and linear programming; proofs."""

import functools
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from sklearn.svm import SVC

from mlnotes_jax.data import datasets
from mlnotes_jax.demos.svm import margin as demo
from mlnotes_jax.foundations import affine
from mlnotes_jax.svm import margin

RNG = np.random.default_rng(0)
W, B = np.array([3.0, -4.0, 12.0]), 2.0  # of length 13
X = RNG.normal(size=(20, 3))
Y = RNG.integers(0, 2, 20)


def separate(x, y, *, sample_weight=None, **options):
    """The answer as NumPy arrays, from one compiled program for all problems of a size.

    Compiling takes three seconds for each shape: problems are filled up with rows of weight zero
    and features that are zero, which change nothing.
    """
    x, y = np.asarray(x), np.asarray(y)
    if not np.issubdtype(x.dtype, np.floating):
        x = x.astype(np.float32)
    (n, d), (rows, columns) = x.shape, ((8, 3) if len(x) <= 8 else (569, 64))
    weight = np.ones(n) if sample_weight is None else np.asarray(sample_weight)
    found = margin.separate(
        np.pad(x, ((0, rows - n), (0, columns - d))),
        np.pad(y, (0, rows - n)),
        sample_weight=np.pad(weight.astype(x.dtype), (0, rows - n)),
        **options,
    )
    found = jax.tree.map(np.asarray, found)
    return found._replace(w=found.w[:d], weights=found.weights[:n], nearest=found.nearest[:, :d])


def exact(values):
    return [[Fraction(float(v)) for v in row] for row in np.asarray(values, np.float64)]


def dot(a, b):
    return sum((u * v for u, v in zip(a, b, strict=True)), Fraction(0))


def check_margin(found_margin, w, b, x, y):
    """`found_margin` is not above the true margin of w, b: in rational numbers."""
    (w,), b = exact([w]), Fraction(float(b))
    worst = min(
        (1 if label else -1) * (dot(w, p) + b) for p, label in zip(exact(x), y, strict=True)
    )
    claimed = Fraction(float(found_margin))
    square = abs(worst) * worst  # keeps the sign
    assert square >= abs(claimed) * claimed * dot(w, w)


def check_bound(found_bound, weights, x, y):
    """`found_bound` is not below half the distance of the weighted means: in rational numbers."""
    lam = exact([weights])[0]
    means = []
    for label in (0, 1):
        rows = [(v, p) for v, p, c in zip(lam, exact(x), y, strict=True) if c == label]
        total = sum(v for v, _ in rows)
        means.append([sum(v * p[j] for v, p in rows) / total for j in range(len(x[0]))])
    z = [a - b for a, b in zip(*means, strict=True)]
    assert dot(z, z) <= 4 * Fraction(float(found_bound)) ** 2
    assert min(lam) >= 0


def check_proofs(found, x, y):
    """Everything that a `Separation` claims, without the library's arithmetic."""
    x, y = np.asarray(x), np.asarray(y)
    held = np.asarray(found.weights) > 0
    check_bound(found.bound, np.asarray(found.weights)[held], x[held], y[held])
    assert 0 <= found.margin <= found.bound
    if found.status == margin.SEPARABLE:
        assert found.margin > 0
        check_margin(found.margin, found.w, found.b, x, y)
        assert affine.verify_hyperplane(x, 2 * y - 1, found.w.tolist(), float(found.b))
    else:
        assert np.isnan(found.w).all()
        assert found.margin == 0
    if found.status == margin.INSEPARABLE:
        # the points of the proof alone are not separable, by the simplex method on fractions
        assert not affine.separability(x[held], 2 * y[held] - 1).separable


def linear_program(x, y):
    """The largest t with s (w x + b) >= t and entries of w in [-1, 1]: > 0 where separable."""
    s = (2.0 * np.asarray(y) - 1)[:, None]
    n, d = x.shape
    rows = np.concatenate([-s * x, -s, np.ones((n, 1))], axis=1)
    found = optimize.linprog(
        np.append(np.zeros(d + 1), -1.0),
        A_ub=rows,
        b_ub=np.zeros(n),
        bounds=[(-1, 1)] * d + [(None, None), (None, 1)],
    )
    assert found.status == 0
    return found.x[-1]


# --- Distances and margins ------------------------------------------------------------------------


def test_distance_in_closed_form(x64):
    r = margin.distance(W, B, X)
    np.testing.assert_allclose(r, (X @ W + B) / 13, rtol=1e-13)
    foot = margin.project(W, B, X)
    np.testing.assert_allclose(np.asarray(foot) @ W + B, 0, atol=1e-13)  # on the plane
    np.testing.assert_allclose(np.linalg.norm(X - foot, axis=1), np.abs(r), rtol=1e-12)
    # no nearer point on the plane: a constrained minimiser finds the same foot
    peer = optimize.minimize(
        lambda p: np.sum((p - X[0]) ** 2),
        np.zeros(3),
        constraints={"type": "eq", "fun": lambda p: p @ W + B},
        tol=1e-12,
    )
    np.testing.assert_allclose(foot[0], peer.x, atol=1e-6)  # the peer's own tolerance
    np.testing.assert_allclose(margin.distance(W, B, X[0]), r[0], rtol=1e-13)
    np.testing.assert_allclose(
        margin.distance(W, B, X.reshape(4, 5, 3)), r.reshape(4, 5), rtol=1e-13
    )


def test_margins_and_their_scale(x64):
    s = 2 * Y - 1
    functional = margin.functional_margin(W, B, X, Y)
    geometric = margin.geometric_margin(W, B, X, Y)
    np.testing.assert_allclose(functional, s * (X @ W + B), rtol=1e-13)
    np.testing.assert_allclose(geometric, functional / 13, rtol=1e-13)
    np.testing.assert_allclose(margin.functional_margin(5 * W, 5 * B, X, Y), 5 * functional)
    np.testing.assert_allclose(margin.geometric_margin(5 * W, 5 * B, X, Y), geometric, rtol=1e-12)
    smallest = margin.data_margin(W, B, X, Y)
    assert int(smallest.row) == np.argmin(functional)
    assert smallest.functional == functional.min()
    assert abs(smallest.geometric - geometric.min()) < 1e-14
    keep = np.arange(20) != int(smallest.row)
    without = margin.data_margin(W, B, X, Y, sample_weight=keep)
    assert without.functional == functional[keep].min() > smallest.functional
    assert margin.functional_margin(np.zeros(3), 1.0, X[0], 1) == 1


def test_canonical_plane_does_not_move(x64):
    y = (X @ W + B > 0).astype(int)
    plane = margin.canonical(W, B, X, y)
    np.testing.assert_allclose(margin.data_margin(*plane, X, y).functional, 1, rtol=1e-13)
    np.testing.assert_allclose(
        margin.distance(*plane, X), margin.distance(W, B, X), rtol=1e-10, atol=1e-13
    )
    np.testing.assert_allclose(
        1 / np.linalg.norm(plane.w), margin.data_margin(W, B, X, y).geometric, rtol=1e-12
    )
    assert np.isnan(jax.jit(margin.canonical)(W, B, X, 1 - y).w).all()


def test_gradients_jit_vmap_and_one_trace(x64):
    @jax.jit
    @functools.partial(chex.assert_max_traces, n=1)
    def total(w, b, x, y):
        values = margin.geometric_margin(w, b, x, y) + margin.functional_margin(w, b, x, y) ** 2
        return values.sum() + jnp.sin(margin.project(w, b, x)).sum()

    # central differences, good to eps^(2/3)
    chex.assert_numerical_grads(
        lambda w, b, x: total(w, b, x, Y), (W, np.array(B), X), order=1, atol=1e-6, rtol=1e-6
    )
    loop = jnp.stack(
        [margin.geometric_margin(W, B, x, y) for x, y in zip(X[:4], Y[:4], strict=True)]
    )
    mapped = jax.vmap(margin.geometric_margin, in_axes=(None, None, 0, 0))(W, B, X[:4], Y[:4])
    np.testing.assert_allclose(mapped, loop, rtol=1e-13)


def test_dtypes():
    assert margin.distance(W, B, X.astype(np.float16)).dtype == jnp.float32
    assert margin.distance([3, 4], 0, [1, 2]) == 11 / 5
    with jax.enable_x64(True):
        assert margin.distance(W, B, X.astype(np.float32)).dtype == jnp.float64


# --- Closed forms ---------------------------------------------------------------------------------


def square(corner):
    return np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]) + np.array(corner)


@pytest.mark.parametrize(
    ("corner", "half", "direction"),
    [
        ((3.0, 0.5), 1.0, (1.0, 0.0)),  # edge against edge
        ((4.0, 5.0), 2.5, (0.6, 0.8)),  # corner against corner: the gap is (3, 4)
        ((-3.0, 0.25), 1.0, (-1.0, 0.0)),
    ],
)
def test_two_squares(corner, half, direction, x64):
    x = np.concatenate([square((0, 0)), square(corner)])
    y = np.repeat([0, 1], 4)
    found = separate(x, y)
    assert found.status == margin.SEPARABLE
    assert found.separable
    assert found.converged
    np.testing.assert_allclose(found.margin, half, rtol=1e-13)
    np.testing.assert_allclose(found.w * found.margin, direction, atol=1e-13)
    np.testing.assert_allclose(np.linalg.norm(found.w), 1 / half, rtol=1e-13)
    assert 0 <= found.gap < 1e-13
    check_proofs(found, x, y)


def test_the_smallest_problems():
    two = separate(np.float32([[1], [4]]), [0, 1])
    assert (two.status, float(two.w[0] * 2.5 + two.b)) == (margin.SEPARABLE, 0.0)
    np.testing.assert_allclose(two.margin, 1.5, rtol=1e-5)  # less the rounding errors of float32
    same = separate(np.float32([[0.1, 0.7], [0.1, 0.7]]), [0, 1])
    assert same.status == margin.INSEPARABLE
    assert same.weights.tolist() == [1, 1]
    assert same.nearest.tolist() == np.float32([[0.1, 0.7]] * 2).tolist()
    # by hand: (0, 0) against (2, 0), (0, 2) and, far behind, (9, 9)
    x, y = np.float32([[0, 0], [2, 0], [0, 2], [9, 9]]), np.array([0, 1, 1, 1])
    corner = separate(x, y)
    np.testing.assert_allclose(corner.w, [1, 1], rtol=1e-6)
    np.testing.assert_allclose(corner.b, -1, rtol=1e-6)
    np.testing.assert_allclose(corner.dual, [1, 0.5, 0.5, 0], rtol=1e-6)
    assert corner.support.tolist() == [True, True, True, False]


def test_xor_and_its_certificate():
    points, labels = affine.xor()
    y = (labels > 0).astype(int)
    found = separate(points, y)
    assert found.status == margin.INSEPARABLE
    assert found.weights.tolist() == [0.5] * 4
    assert affine.verify_certificate(points, labels, found.weights.tolist())
    assert margin.hulls_meet(found.weights, points, y)
    lifted = affine.lift_products(points)
    street = separate(lifted, y)
    check_proofs(street, lifted, y)
    assert street.separable


def test_one_point_with_both_labels():
    # The classes only touch in that point, which no small change of the weights could repair.
    x = np.float32([[0.1, 0.3], [-1, 0.2], [-2, 0.7], [0.1, 0.3], [1, 0.1], [2, 0.9]])
    y = np.repeat([0, 1], 3)
    found = separate(x, y)
    assert found.status == margin.INSEPARABLE
    assert found.weights.tolist() == [1, 0, 0, 1, 0, 0]
    check_proofs(found, x, y)
    dropped = separate(x, y, sample_weight=[1, 1, 1, 0, 1, 1])
    assert dropped.separable
    keep = np.arange(6) != 3
    check_proofs(dropped._replace(weights=dropped.weights[keep]), x[keep], y[keep])


# --- Against peers --------------------------------------------------------------------------------


def classes(name, first, second, standardize=False):
    data = datasets.load(name)
    rows = np.isin(data.y, (first, second))
    x, y = data.x[rows].astype(np.float64), (data.y[rows] == second).astype(int)
    return ((x - x.mean(axis=0)) / x.std(axis=0) if standardize else x), y


@pytest.mark.parametrize(
    ("name", "standardize"), [("iris", False), ("wine", True), ("breast_cancer", True)]
)
def test_the_widest_street_on_real_data(name, standardize, x64):
    x, y = classes(name, 0, 1, standardize)
    found = separate(x, y)
    assert found.status == margin.SEPARABLE
    assert found.converged
    # what is left is rounding: 70 spacings of data of size 1 to 10
    assert 0 <= found.gap < 1e-12
    # both ends in rational numbers
    check_margin(found.margin, found.w, found.b, x, y)
    held = found.weights > 0
    check_bound(found.bound, found.weights[held], x[held], y[held])
    assert linear_program(x, y) > 0
    length = np.linalg.norm(found.w)
    if name != "breast_cancer":  # libsvm takes seconds for it, and stays 4% behind
        peer = SVC(kernel="linear", C=1e10, tol=1e-8).fit(x, y)
        np.testing.assert_allclose(peer.coef_[0], found.w, atol=1e-5 * length)
        np.testing.assert_allclose(peer.intercept_[0], found.b, rtol=1e-4)
        theirs = margin.margin_above(peer.coef_[0], peer.intercept_[0], x, y)
        assert found.margin * (1 - 1e-5) <= theirs <= found.bound
    # KKT: stationarity, and duals only on the border of the street
    alpha, s = np.asarray(found.dual), 2 * y - 1
    np.testing.assert_allclose((alpha * s) @ x, found.w, atol=1e-9 * length)
    assert abs((alpha * s).sum()) < 1e-9 * alpha.sum()
    values = s * (x @ found.w + found.b)
    np.testing.assert_allclose(values[alpha > 0], 1, atol=1e-9)
    assert values.min() > 1 - 1e-9


def test_no_street_between_versicolor_and_virginica(x64):
    x, y = classes("iris", 1, 2)
    found = separate(x, y)
    assert found.status == margin.INSEPARABLE
    assert found.bound < 1e-13
    assert linear_program(x, y) < 1e-9
    np.testing.assert_allclose(found.nearest[0], found.nearest[1], atol=1e-13)
    held = np.asarray(found.support)
    assert held.sum() <= 2 * (4 + 1)
    assert not affine.separability(x[held], 2 * y[held] - 1).separable
    wrong = np.asarray(found.weights).copy()
    wrong[np.flatnonzero(held)[0]] *= 2  # a point moved is no proof
    assert not margin.hulls_meet(wrong, x, y)
    assert margin.margin_below(wrong, x, y) > 1e-3


def test_more_dimensions_than_points(x64):
    # 12 digits with labels by chance, in 64 dimensions: always separable
    x = datasets.load("digits").x[:12].astype(np.float64)
    y = np.arange(12) % 2
    x, y = np.repeat(x, 2, axis=0), np.repeat(y, 2)  # and every one of them twice
    found = separate(x, y)
    assert found.status == margin.SEPARABLE
    peer = SVC(kernel="linear", C=1e10, tol=1e-9).fit(x, y)
    np.testing.assert_allclose(found.margin, 1 / np.linalg.norm(peer.coef_), rtol=1e-6)
    assert found.gap < 1e-11


def test_quadratic_program(x64):
    duality = pytest.importorskip("mlnotes_jax.svm.duality")
    x, y = np.array([[0.0, 0.0], [1.0, -1.0], [2.0, 1.0], [1.0, 3.0]]), np.array([0, 0, 1, 1])
    found = separate(x, y)
    s = 2.0 * y - 1
    # over (w, b): 1/2 |w|^2 with -s (w x + b) <= -1
    solved = duality.solve_qp(
        np.diag([1.0, 1.0, 0.0]), np.zeros(3), G=-s[:, None] * np.column_stack([x, np.ones(4)]),
        h=-np.ones(4),
    )  # fmt: skip
    np.testing.assert_allclose(solved.x, np.append(found.w, found.b), atol=1e-6)


# --- Never a false claim --------------------------------------------------------------------------

GRID = st.integers(-3, 3)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(GRID, GRID), min_size=8, max_size=8),
    st.lists(st.sampled_from([0, 1, 2]), min_size=8, max_size=8),
)
def test_agrees_with_exact_arithmetic(points, marks):
    # 2 drops a row: one shape, one compilation. Of either class one row is always there.
    marks = np.array([0, 1, *marks[2:]])
    x, y, keep = np.float32(points), np.where(marks == 2, 0, marks), marks < 2
    found = separate(x, y, sample_weight=keep)
    verdict = affine.separability(x[keep], 2 * y[keep] - 1)
    # Hulls that touch may be undecided, as on a grid of thirds; two that are apart never are.
    assert bool(found.separable) == verdict.separable
    if not verdict.separable:
        assert found.bound < 1e-5
    assert found.converged
    check_proofs(found._replace(weights=found.weights[keep]), x[keep], y[keep])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.floats(-1e-6, 1e-6), st.sampled_from([1.0, 1e-3, 100.0]))
def test_hulls_that_nearly_touch(seed, gap, offset):
    """Float32, hulls closer than its rounding errors: any answer must be proved or undecided."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(8, 2))
    x[:4, 0] = np.abs(x[:4, 0])
    x[4:, 0] = -np.abs(x[4:, 0]) - gap
    x[0] = [0.0, 0.3]
    x[4] = [-gap, 0.1]
    x[5] = [-gap, 0.6]
    x = (x + offset).astype(np.float32)
    y = np.repeat([1, 0], 4)
    check_proofs(separate(x, y), x, y)


def test_one_ulp():
    above = np.nextafter(np.float32(0.1), np.float32(1))
    apart = separate(np.float32([[0.1], [above]]), [0, 1])
    # There is a plane, and float32 has no number between: no false claim, and a true bound.
    assert apart.status != margin.INSEPARABLE
    assert 0 < apart.bound < 1e-7
    between = np.float32([[0.1], [0.2], [0.3]])
    found = separate(between, [1, 0, 1])
    assert found.status == margin.INSEPARABLE
    check_proofs(found, between, np.array([1, 0, 1]))
    # Three points on a line in reals are not on one in floats; here they are, in thirds.
    line = np.float32([[0, 0], [1, 1], [3, 3]])
    third = separate(line, [1, 0, 1])
    assert third.status == margin.UNDECIDED
    assert third.converged
    assert third.bound < 1e-5
    assert not affine.separability(line, [1, -1, 1]).separable


def test_bounds_of_any_plane_and_any_weights():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(8, 2)).astype(np.float32), np.repeat([1, 0], 4)
        w, b = rng.normal(size=2).astype(np.float32), np.float32(rng.normal())
        low = margin.margin_above(w, b, x, y)
        check_margin(low, w, b, x, y)
        np.testing.assert_allclose(low, margin.data_margin(w, b, x, y).geometric, atol=2e-5)
        weights = rng.uniform(size=8).astype(np.float32)
        check_bound(margin.margin_below(weights, x, y), weights, x, y)
        assert not margin.hulls_meet(weights, x, y)


def test_units_and_origin():
    x, y = classes("iris", 0, 1)
    x, y = x[46:54].astype(np.float32)[:, :3], y[46:54]
    plain = separate(x, y)
    for unit in (2.0**-80, 2.0**80):
        scaled = separate(x * np.float32(unit), y)
        assert scaled.status == margin.SEPARABLE
        np.testing.assert_allclose(scaled.margin / unit, plain.margin, rtol=1e-6)
        np.testing.assert_allclose(scaled.w * unit, plain.w, rtol=1e-4)
    moved = separate(x + np.float32(64.0), y)
    np.testing.assert_allclose(moved.w, plain.w, rtol=1e-4)  # what x lost: 4e-6 of about 1
    # So far away that b in float32 cannot be told: no claim, though the bound stays true.
    far = separate(x + np.float32(2.0**22), y)
    assert far.status == margin.UNDECIDED


# --- As a program ---------------------------------------------------------------------------------


def test_jit_vmap_one_trace_and_data_that_cannot_be_checked():
    x, y = RNG.normal(size=(5, 8, 3)).astype(np.float32), np.tile([0, 1], (5, 4))
    x[:, :, 0] += 2 * y
    weight = np.ones((5, 8), np.float32)
    weight[1, ::3] = 0
    one_class, unknown, nan = 2, 3, 4
    y[one_class], y[unknown, 5], x[nan, 3, 1] = 0, 2, np.nan

    @jax.jit
    @functools.partial(chex.assert_max_traces, n=1)
    def many(x, y, weight):
        return jax.vmap(lambda *v: margin.separate(v[0], v[1], sample_weight=v[2]))(x, y, weight)

    found = jax.tree.map(np.asarray, many(x, y, weight))
    for k in range(2):
        alone = separate(x[k], y[k], sample_weight=weight[k])
        together = margin.Separation(*(v[k] for v in found))
        assert alone.status == together.status
        assert alone.num_iterations == together.num_iterations
        # the same operations, fused otherwise: a few spacings
        for a, b in zip(alone[1:7], together[1:7], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        keep = weight[k] > 0
        check_proofs(together._replace(weights=together.weights[keep]), x[k, keep], y[k, keep])
        assert not together.weights[~keep].any()
    for k in (one_class, unknown, nan):
        bad = margin.Separation(*(v[k] for v in found))
        assert bad.status == margin.UNDECIDED
        assert not bad.converged
        assert all(np.isnan(v).all() for v in bad[1:7])
    many(x[::-1], y, weight)
    signed = jax.jit(margin.functional_margin)([1.0, 1.0], 0.0, np.ones((2, 2)), [0, 5])
    assert signed[0] == -2
    assert np.isnan(signed[1])


def test_too_few_steps_are_told(x64):
    x, y = classes("wine", 0, 1, True)
    full = separate(x, y)
    for steps in (1, 10):
        short = separate(x, y, max_iter=steps)
        assert not short.converged
        assert short.num_iterations == steps
        assert short.margin <= full.margin <= full.bound <= short.bound
        assert short.gap > 1e-6


def test_derivative_of_the_margin_in_closed_form(x64):
    x, y = classes("iris", 0, 1)
    found = separate(x, y)
    s = 2 * y - 1
    z = found.nearest[1] - found.nearest[0]
    slope = 0.5 * (s * np.asarray(found.weights))[:, None] * np.asarray(z / jnp.linalg.norm(z))
    direction = RNG.normal(size=x.shape)
    h = 1e-6
    ahead, behind = (separate(x + t * direction, y).bound for t in (h, -h))
    # the second derivative leaves h^2, rounding 1e-15 / h
    np.testing.assert_allclose((ahead - behind) / (2 * h), (slope * direction).sum(), rtol=1e-6)


# --- Bad input ------------------------------------------------------------------------------------

POINTS = [[0.0, 0.0], [1.0, 1.0]]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: margin.distance([0.0, 0.0], 1.0, POINTS),
            ValueError,
            "w must not be 0: there is then no hyperplane",
        ),
        (
            lambda: margin.distance([1.0, 0.0, 0.0], 1.0, POINTS),
            ValueError,
            r"x must have 3 features on its last axis, got shape \(2, 2\)",
        ),
        (lambda: margin.distance([1.0], 1.0, 2.0), ValueError, r"1 features .* got shape \(\)"),
        (lambda: margin.distance("word", 1.0, POINTS), TypeError, "w must be a numeric array"),
        (
            lambda: margin.functional_margin([1.0, 1.0], 0.0, POINTS, [0]),
            ValueError,
            r"y must have one entry for each point of x, of shape \(2, 2\), got shape \(1,\)",
        ),
        (
            lambda: margin.functional_margin([1.0, 1.0], 0.0, POINTS, [-1, 1]),
            ValueError,
            r"y must be in 0..1 \(2 classes\), got -1 at index 0",
        ),
        (
            lambda: margin.geometric_margin([1.0, 1.0], 0.0, POINTS, [0.0, 1.0]),
            TypeError,
            "y must be an integer array",
        ),
        (
            lambda: margin.canonical([1.0, 1.0], 0.0, POINTS, [1, 0]),
            ValueError,
            "w and b must separate the classes, got the functional margin -2 in row 1",
        ),
        (
            lambda: margin.separate(POINTS, [1, 1]),
            ValueError,
            "y must hold both classes, 0 and 1, in rows of positive weight, got only 1",
        ),
        (
            lambda: margin.separate(POINTS, [0, 1], sample_weight=[1.0, 0.0]),
            ValueError,
            "y must hold both classes, 0 and 1, in rows of positive weight, got only 0",
        ),
        (
            lambda: margin.separate(POINTS, [0, 1], sample_weight=[0.0, 0.0]),
            ValueError,
            "sample_weight must be positive in some row, got only zeros",
        ),
        (
            lambda: margin.separate(POINTS, [0, 1], sample_weight=[1.0, -1.0]),
            ValueError,
            "sample_weight must not be negative, got -1",
        ),
        (lambda: margin.separate(POINTS, [0, 2]), ValueError, r"y must be in 0..1 .* got 2"),
        (
            lambda: margin.separate([[0.0, 1.0], [np.nan, 1.0]], [0, 1]),
            ValueError,
            "x must be finite, got nan in row 1, column 0",
        ),
        (lambda: margin.separate(np.zeros((0, 2)), np.zeros(0, int)), ValueError, "x must not be"),
        (lambda: margin.separate(POINTS, [0]), ValueError, "x and y must have as many rows"),
        (lambda: margin.separate([1.0, 2.0], [0, 1]), ValueError, "x must be 2-D"),
        (lambda: margin.separate(POINTS, [0, 1], max_iter=0), ValueError, "max_iter must be in"),
        (
            lambda: margin.margin_below([1.0, -1.0], POINTS, [0, 1]),
            ValueError,
            "weights must not be negative",
        ),
        (
            lambda: margin.hulls_meet([1.0, 0.0], POINTS, [0, 1]),
            ValueError,
            "y must hold both classes, 0 and 1, in rows of positive weight, got only 0",
        ),
        (
            lambda: margin.margin_below([1.0], POINTS, [0, 1]),
            ValueError,
            "x and weights must have as many rows",
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


def test_streets_and_proofs_on_real_data(result):
    iris, wine, cancer, digits = (answer.double for answer in result.answers)
    assert all(answer.single is None for answer in result.answers)
    assert [margin.STATUSES[s] for s in iris.status] == ["separable", "separable", "inseparable"]
    for found in (wine, cancer, digits):
        assert (found.status == margin.SEPARABLE).all()
    for answer in result.answers:
        double = answer.double
        assert double.converged.all()
        assert (double.margin <= double.bound).all()
        assert (double.bound - double.margin < 1e-11).all()
    (setosa, street), (_, none) = result.pictures
    assert street.status == margin.SEPARABLE
    assert none.status == margin.INSEPARABLE
    # float32 says less, and not the contrary
    low = margin.margin_above(street.w.astype(np.float32), np.float32(street.b), setosa.x, setosa.y)
    high = margin.margin_below(street.weights.astype(np.float32), setosa.x, setosa.y)
    assert low <= street.bound
    assert high >= street.margin
    assert high - low < 1e-4


def test_demo_shows_its_numbers(result):
    import matplotlib as mpl

    mpl.use("agg")
    tables = demo.tables(result)
    assert [len(rows) for rows in tables.values()] == [7, 5, 4]
    assert len(demo.plot(result).axes) == 4
    assert result.source.name.startswith("iris")


def test_hull_of_the_picture():
    inner = RNG.uniform(0.1, 0.9, size=(30, 2))
    corners = demo.hull(np.concatenate([inner, square((0, 0)), [[0.5, 0.0]]]))
    assert corners.tolist() == [[0, 0], [1, 0], [1, 1], [0, 1]]
    assert demo.hull(np.ones((3, 2))).tolist() == [[1, 1]]
