"""Duality: against SciPy (SLSQP, HiGHS), certificates checked by hand, and known on paper."""

import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnotes_jax.demos import tables
from mlnotes_jax.demos.svm import duality as demo
from mlnotes_jax.svm import duality

N, E, M = 5, 2, 4  # one shape for nearly all programs: one compilation for each dtype
SOLVED, PRIMAL, DUAL, LIMIT, STALLED = range(5)


def draw(seed, rank=N, dtype=np.float64):
    """A feasible, bounded program with all kinds of constraints; P has the given rank."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(rank, N))
    x = rng.uniform(-1, 1, N)
    A, G = rng.normal(size=(E, N)), rng.normal(size=(M, N))
    lower = np.where(rng.uniform(size=N) < 0.3, -np.inf, x - rng.uniform(0, 1, N))
    upper = np.where(np.isinf(lower), x + 1, np.where(rng.uniform(size=N) < 0.3, np.inf, x + 0.5))
    if rank < N:  # bounded whatever q is
        lower, upper = x - rng.uniform(0, 1, N), x + rng.uniform(0, 1, N)
    h = G @ x + rng.uniform(0, 1, M) * (rng.uniform(size=M) < 0.7)
    parts = (root.T @ root, 2 * rng.normal(size=N), A, A @ x, G, h, lower, upper)
    return duality.QP(*(part.astype(dtype) for part in parts))


def small(P, q, A=(), b=(), G=(), h=(), lower=-np.inf, upper=np.inf):
    """A small program inside one of the common shape: idle variables and idle rows."""
    n = len(q)

    def put(values, shape, rest):
        full = np.full(shape, rest, float)
        values = np.asarray(values, float)
        full[tuple(slice(size) for size in values.shape)] = values
        return full

    full = np.eye(N)
    full[:n, :n] = P
    return duality.QP(
        full,
        put(q, N, 0),
        put(A if len(A) else np.zeros((0, n)), (E, N), 0),
        put(b, E, 0),
        put(G if len(G) else np.zeros((0, n)), (M, N), 0),
        put(h, M, np.inf),
        put(np.broadcast_to(lower, n), N, -np.inf),
        put(np.broadcast_to(upper, n), N, np.inf),
    )


TRACES = []


@jax.jit
def compiled(qp, tol):
    TRACES.append(qp)
    return duality.solve_qp(*qp, tol=tol)


def boxes(qp):
    """Bounds as rows: C x <= c, with the infinite ones left out."""
    C = np.concatenate([qp.G, -np.eye(N), np.eye(N)])
    c = np.concatenate([qp.h, -qp.lower, qp.upper])
    return C, c


def verify(qp, solution, tol):
    """Check a claim, whatever it is, from the data, in NumPy and in double precision."""
    qp = duality.QP(*(np.asarray(part, float) for part in qp))
    C, c = boxes(qp)
    finite = np.isfinite(c)
    status = int(solution.status)

    def flat(duals):
        y, *z = (np.asarray(part, float) for part in duals)
        z = np.concatenate(z)
        assert (z >= 0).all()
        assert (z[~finite] == 0).all()
        return y, z[finite]

    C, c = C[finite], c[finite]
    if status == SOLVED:
        x = np.asarray(solution.x, float)
        y, z = flat(solution.duals)
        scale = 1 + np.abs(C).max() * np.abs(x).max() + np.abs(c).max() + np.abs(qp.b).max()
        assert np.abs(qp.A @ x - qp.b).max() <= tol * scale
        assert (C @ x - c).max() <= tol * scale
        gradient = qp.P @ x + qp.q + qp.A.T @ y + C.T @ z
        terms = (
            np.abs(qp.P) @ np.abs(x) + np.abs(qp.q) + np.abs(qp.A.T) @ np.abs(y) + np.abs(C.T) @ z
        )
        assert np.abs(gradient).max() <= tol * (
            np.abs(qp.q).max() + np.abs(qp.P).max() + terms.max()
        )
        value = 0.5 * x @ qp.P @ x + qp.q @ x
        bound = -0.5 * x @ qp.P @ x - qp.b @ y - c @ z
        size = np.abs(qp.q).max() + np.abs(qp.P).max() + x @ qp.P @ x + np.abs(qp.q) @ np.abs(x)
        # the gap, and the parts of it that come from the two residuals
        slop = tol * (size + np.abs(x).sum() * terms.max() + (np.abs(y).sum() + z.sum()) * scale)
        assert abs(value - bound) <= slop
        assert max(map(float, solution.residuals)) <= tol
    elif status == PRIMAL:
        y, z = flat(solution.certificate.duals)
        assert np.isclose(qp.b @ y + c @ z, -1, atol=10 * tol)
        assert np.abs(qp.A.T @ y + C.T @ z).max() <= tol
        assert np.isnan(solution.x).all()
        assert solution.objective == np.inf
    elif status == DUAL:
        d = np.asarray(solution.certificate.direction, float)
        assert np.isclose(qp.q @ d, -1, atol=10 * tol)
        assert np.abs(qp.P @ d).max() <= tol
        assert np.abs(qp.A @ d).max() <= tol
        assert (C @ d).max() <= tol
        assert solution.dual_objective == -np.inf
    return status


def slsqp(qp):
    from scipy import optimize

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it clips a start that is outside the bounds
        return optimize.minimize(
            lambda x: 0.5 * x @ qp.P @ x + qp.q @ x,
            np.zeros(N),
            jac=lambda x: qp.P @ x + qp.q,
            bounds=list(zip(qp.lower, qp.upper, strict=True)),
            constraints=[
                {"type": "eq", "fun": lambda x: qp.A @ x - qp.b, "jac": lambda x: qp.A},
                {"type": "ineq", "fun": lambda x: qp.h - qp.G @ x, "jac": lambda x: -qp.G},
            ],
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )


def highs(qp):
    from scipy import optimize

    bounds = list(zip(qp.lower, qp.upper, strict=True))
    return optimize.linprog(qp.q, qp.G, qp.h, qp.A, qp.b, bounds, method="highs")


# Closed forms


def test_nearest_point_of_a_half_space_and_a_plane():
    a = np.array([3.0, 4.0])
    for rows in ({"A": [a], "b": [5.0]}, {"G": [-a], "h": [-5.0]}):
        solution = duality.solve_qp(*small(np.eye(2), np.zeros(2), **rows))
        assert solution.solved
        # x = a / |a|^2 * 5, the multiplier 5 / |a|^2. float32 allows a gap of 1e-5 of the terms, 2.
        np.testing.assert_allclose(solution.x[:2], a / 5, atol=3e-5)
        multiplier = solution.duals.equality if "A" in rows else solution.duals.inequality
        np.testing.assert_allclose(np.abs(multiplier[0]), 0.2, atol=3e-5)
        np.testing.assert_allclose(solution.objective, 0.5, atol=3e-5)


def test_a_box_clips(x64):
    t = np.array([-2.0, -0.5, 0.3, 1.7, 5.0])
    upper = np.array([1, 1, 1, 1, np.inf])
    solution = duality.solve_qp(*small(np.eye(N), -t, lower=-1.0, upper=upper))
    np.testing.assert_allclose(solution.x, [-1, -0.5, 0.3, 1, 5], atol=1e-7)
    np.testing.assert_allclose(solution.duals.lower, [1, 0, 0, 0, 0], atol=1e-7)
    np.testing.assert_allclose(solution.duals.upper, [0, 0, 0, 0.7, 0], atol=1e-7)
    assert solution.duals.upper[4] == 0  # where there is no bound there is no multiplier
    assert (solution.x >= -1).all()
    assert (solution.x <= upper).all()


def test_no_constraints_at_all(x64):
    P = np.array([[2.0, 1.0], [1.0, 3.0]])
    q = np.array([1.0, -4.0])
    solution = duality.solve_qp(P, q)
    assert solution.solved
    np.testing.assert_allclose(solution.x, np.linalg.solve(P, -q), rtol=1e-7)
    assert duality.STATUSES[int(duality.solve_qp(np.zeros((2, 2)), q).status)] == "dual_infeasible"


# Peers


@pytest.mark.parametrize("rank", [N, 2])
def test_equals_slsqp(rank, x64):
    for seed in range(6):
        qp = draw(seed, rank)
        solution, peer = duality.solve_qp(*qp), slsqp(qp)
        assert peer.success
        assert verify(qp, solution, 1e-8) == SOLVED
        np.testing.assert_allclose(solution.objective, peer.fun, rtol=1e-7, atol=1e-7)
        if rank == N:  # one solution
            np.testing.assert_allclose(solution.x, peer.x, atol=1e-5)  # SLSQP stops at about 1e-6


def test_equals_highs_on_linear_programs_with_multipliers(x64):
    for seed in range(6):
        qp = draw(seed, 2)._replace(P=np.zeros((N, N)))
        solution, peer = duality.solve_qp(*qp), highs(qp)
        assert verify(qp, solution, 1e-8) == SOLVED
        np.testing.assert_allclose(solution.objective, peer.fun, rtol=1e-7)
        np.testing.assert_allclose(solution.x, peer.x, atol=1e-6)
        # SciPy's marginals are derivatives of the minimum with respect to the right sides.
        for ours, theirs in [
            (solution.duals.equality, -peer.eqlin.marginals),
            (solution.duals.inequality, -peer.ineqlin.marginals),
            (solution.duals.lower, peer.lower.marginals),
            (solution.duals.upper, -peer.upper.marginals),
        ]:
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("rank", [N, 2])
def test_float32_keeps_its_tolerance(rank):
    for seed in range(6):
        qp = draw(seed, rank, np.float32)
        solution = duality.solve_qp(*qp)
        assert solution.x.dtype == jnp.float32
        # 1e-5, and again as much for rounding when float32 itself measured the residual
        assert verify(qp, solution, 2e-5) == SOLVED
        exact = slsqp(duality.QP(*(part.astype(float) for part in qp)))
        np.testing.assert_allclose(solution.objective, exact.fun, rtol=1e-4, atol=1e-4)


# Where it is hard


def test_redundant_degenerate_and_touching_constraints(x64):
    qp = draw(0)
    base = duality.solve_qp(*qp)
    twice = qp._replace(A=np.stack([qp.A[0], 3 * qp.A[0]]), b=qp.b[0] * np.array([1.0, 3.0]))
    once = qp._replace(A=np.stack([qp.A[0], 0 * qp.A[0]]), b=np.array([qp.b[0], 0.0]))
    same = qp._replace(G=np.repeat(qp.G[:1], M, axis=0), h=np.repeat(qp.h[:1], M))
    for other in (twice, once, same):
        assert verify(other, duality.solve_qp(*other), 1e-8) == SOLVED
    np.testing.assert_allclose(duality.solve_qp(*twice).x, duality.solve_qp(*once).x, atol=1e-7)
    # No interior: x is pinned from both sides by bounds, and by a pair of inequalities.
    x = np.asarray(base.x)
    pinned = qp._replace(lower=x, upper=x)
    assert verify(pinned, duality.solve_qp(*pinned), 1e-8) == SOLVED
    pair = qp._replace(
        G=np.stack([qp.G[0], -qp.G[0]] * 2), h=np.array([1, -1, 1, -1]) * (qp.G[0] @ x)
    )
    solution = duality.solve_qp(*pair)
    assert verify(pair, solution, 1e-8) == SOLVED
    # The constraint makes the minimiser weakly active: no slack, no multiplier.
    free = qp._replace(A=0 * qp.A, b=0 * qp.b, lower=np.full(N, -np.inf), upper=np.full(N, np.inf))
    x = -np.linalg.solve(qp.P, qp.q)
    weak = free._replace(h=qp.G @ x)
    solution = duality.solve_qp(*weak)
    assert verify(weak, solution, 1e-8) == SOLVED
    # The gap is about slack times multiplier: each may be as large as its root, 1e-4.
    np.testing.assert_allclose(solution.x, x, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_units_of_rows_and_of_the_objective_do_not_matter(scale, x64):
    qp = draw(3)
    base = duality.solve_qp(*qp)
    other = qp._replace(P=scale * qp.P, q=scale * qp.q, A=scale * qp.A, b=scale * qp.b)
    solution = duality.solve_qp(*other)
    assert solution.solved
    np.testing.assert_allclose(solution.x, base.x, atol=1e-6)
    np.testing.assert_allclose(solution.duals.equality, base.duals.equality, atol=1e-6)
    np.testing.assert_allclose(
        solution.duals.inequality, scale * base.duals.inequality, atol=1e-6 * scale
    )


def test_infeasible_programs_come_with_proofs(x64):
    for seed in range(4):
        qp = draw(seed)
        above = qp._replace(G=np.concatenate([qp.G[:-1], -qp.G[:1]]))
        above.h[-1] = -above.h[0] - 0.5  # g.x >= h + 0.5 and g.x <= h
        crossed = qp._replace(lower=np.where(np.arange(N) == 1, 0.7, -1), upper=np.full(N, 0.5))
        clash = qp._replace(A=np.stack([qp.A[0], qp.A[0]]), b=np.array([0.0, 0.1]))
        for other in (above, crossed, clash):
            solution = duality.solve_qp(*other)
            assert verify(other, solution, 1e-8) == PRIMAL
            assert np.isnan(solution.dual_objective)


def test_unbounded_programs_come_with_a_direction(x64):
    for seed in range(4):
        qp = draw(seed, 2)
        rng = np.random.default_rng(seed)
        d = rng.normal(size=N)
        away = np.eye(N) - np.outer(d, d) / (d @ d)
        open_end = qp._replace(
            P=away @ qp.P @ away,
            q=qp.q - d * (qp.q @ d + 1) / (d @ d),
            A=qp.A @ away,
            G=-np.abs(qp.G) * np.sign(d)[None],
            lower=np.where(d > 0, qp.lower, -np.inf),
            upper=np.where(d < 0, qp.upper, np.inf),
        )
        solution = duality.solve_qp(*open_end)
        if highs(open_end._replace(q=0 * qp.q)).status == 2:
            continue
        assert verify(open_end, solution, 1e-8) == DUAL
        assert np.isnan(solution.objective)


def test_neither_side_feasible(x64):
    # x1 >= 1 and x1 <= 0; and x2 runs away to minus infinity.
    qp = draw(0)
    e = np.eye(N)
    both = duality.QP(
        np.zeros((N, N)), e[1], 0 * qp.A, 0 * qp.b, np.stack([e[0], -e[0], e[0], e[0]]),
        np.array([0.0, -1.0, 1.0, np.inf]), np.full(N, -np.inf), np.full(N, np.inf),
    )  # fmt: skip
    assert verify(both, duality.solve_qp(*both), 1e-8) in (PRIMAL, DUAL)


def test_running_out_of_iterations_is_told(x64):
    qp = draw(0)
    full = duality.solve_qp(*qp)
    for steps in range(1, int(full.num_iterations)):
        early = duality.solve_qp(*qp, max_iter=steps)
        assert early.status == LIMIT
        assert early.num_iterations == steps
        assert max(map(float, early.residuals)) > 1e-8
    # A tolerance that no float64 reaches: it stalls or runs out, and does not say "solved".
    tight = duality.solve_qp(*qp, tol=1e-30)
    assert tight.status in (LIMIT, STALLED)
    assert max(map(float, tight.residuals)) < 1e-8  # but the best point found is returned


def test_an_infinite_right_side_switches_a_row_off(x64):
    qp = draw(1)
    on = np.arange(M) < 2
    solution = duality.solve_qp(*qp._replace(h=np.where(on, qp.h, np.inf)))
    fewer = qp._replace(G=np.where(on[:, None], qp.G, 0), h=np.where(on, qp.h, 1))
    np.testing.assert_allclose(solution.x, duality.solve_qp(*fewer).x, atol=1e-7)
    assert (solution.duals.inequality[2:] == 0).all()
    assert np.abs(solution.x - duality.solve_qp(*qp).x).max() > 1e-3  # the rows did matter


def whole_numbers(seed, linear):
    """Many ties, redundant rows, empty and unbounded sets."""
    rng = np.random.default_rng(seed)
    root = rng.integers(-1, 2, (2, N)) * (not linear)
    A, G = rng.integers(-1, 2, (E, N)), rng.integers(-1, 2, (M, N))
    lower = np.where(rng.uniform(size=N) < 0.4, -np.inf, rng.integers(-2, 1, N))
    upper = np.where(rng.uniform(size=N) < 0.4, np.inf, rng.integers(0, 3, N))
    parts = (root.T @ root, rng.integers(-2, 3, N), A, rng.integers(-2, 3, E), G)
    qp = duality.QP(*parts, rng.integers(-2, 3, M), lower, upper)
    return duality.QP(*(np.asarray(part, float) for part in qp))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_whatever_it_says_is_true(seed, linear):
    qp = whole_numbers(seed, linear)
    with jax.enable_x64(True):
        status = verify(qp, duality.solve_qp(*qp), 1e-8)
    empty = highs(qp._replace(q=np.zeros(N))).status == 2
    assert not (empty and status == SOLVED)
    assert empty or status != PRIMAL
    if linear and not empty:
        unbounded = highs(qp).status == 3
        assert not (unbounded and status == SOLVED)
        assert unbounded or status != DUAL


def test_it_nearly_always_says_something(x64):
    # Of the first 2000 such programs two end as "stalled"; none of these.
    found = [int(duality.solve_qp(*whole_numbers(seed, seed % 2)).status) for seed in range(100)]
    assert set(found) == {SOLVED, PRIMAL, DUAL}


# Transformations


def stacked(qps):
    return duality.QP(*(np.stack(parts) for parts in zip(*qps, strict=True)))


def test_vmap_equals_a_loop_whatever_the_answers(x64):
    qps = [draw(0), draw(1, 2), draw(2)]
    qps[0] = qps[0]._replace(lower=np.full(N, 0.7), upper=np.full(N, 0.5))  # empty
    qps[1] = qps[1]._replace(
        P=np.zeros((N, N)), lower=np.full(N, -np.inf), upper=np.full(N, np.inf)
    )  # unbounded: 2 equalities and 4 inequalities for 5 variables
    batch = jax.vmap(lambda qp: duality.solve_qp(*qp))(stacked(qps))
    assert len(set(batch.status.tolist())) > 1
    for i, qp in enumerate(qps):
        single = duality.solve_qp(*qp)
        # The same steps; batched products may round differently, and 20 steps amplify that.
        chex.assert_trees_all_close(
            jax.tree.map(lambda part, i=i: part[i], batch)._replace(residuals=None, gap=None),
            single._replace(residuals=None, gap=None),
            rtol=1e-6,
            atol=1e-7,
        )


def test_jit_equals_eager_and_does_not_recompile(x64):
    before = len(TRACES)
    for seed, tol in ((0, 1e-8), (1, 1e-7)):
        qp = draw(seed)
        traced, eager = compiled(qp, tol), duality.solve_qp(*qp, tol=tol)
        assert traced.status == eager.status == SOLVED
        np.testing.assert_allclose(traced.x, eager.x, atol=1e-9)
    assert len(TRACES) <= before + 1


def test_derivatives_in_all_the_data(x64):
    qp = draw(4)
    rng = np.random.default_rng(0)
    mix = [jnp.asarray(rng.normal(size=size)) for size in (N, E, M, N, N)]
    finite = np.isfinite(qp.lower), np.isfinite(qp.upper)

    def output(root, q, A, b, G, h, lower, upper):
        lower = jnp.where(finite[0], lower, -jnp.inf)
        upper = jnp.where(finite[1], upper, jnp.inf)
        # a tolerance well below the steps of the differences
        solution = duality.solve_qp(root.T @ root, q, A, b, G, h, lower, upper, tol=1e-12)
        parts = (solution.x, *solution.duals)
        return sum(a @ b for a, b in zip(mix, parts, strict=True)) + solution.objective

    # Some rows and bounds act and others do not, or the test would not test much.
    acts = np.concatenate(duality.solve_qp(*qp).duals[1:]) > 1e-3
    assert acts[:M].any()
    assert acts[M:].any()
    assert not acts.all()
    root = np.linalg.cholesky(qp.P).T
    args = [jnp.asarray(np.where(np.isfinite(part), part, 0.0)) for part in (root, *qp[1:])]
    gradients = jax.grad(output, argnums=range(8))
    reverse = gradients(*args)
    for _ in range(2):
        change = [jnp.asarray(rng.normal(size=arg.shape)) for arg in args]
        there, back = (
            output(*(arg + step * c for arg, c in zip(args, change, strict=True)))
            for step in (1e-5, -1e-5)
        )
        # Central differences: 1e-10 of truncation times a third derivative, and 1e-12 / 1e-5
        expected = (there - back) / 2e-5
        forward = jax.jvp(output, args, change)[1]
        np.testing.assert_allclose(forward, expected, rtol=1e-6, atol=1e-6)
        backward = sum((a * b).sum() for a, b in zip(reverse, change, strict=True))
        np.testing.assert_allclose(backward, expected, rtol=1e-6, atol=1e-6)
    by_lower, by_upper = reverse[6:]
    assert (by_lower[~finite[0]] == 0).all()
    assert (by_upper[~finite[1]] == 0).all()
    # Twice: forward over reverse against differences of the gradient.
    second = jax.jvp(gradients, args, change)[1]
    there, back = (
        gradients(*(arg + step * c for arg, c in zip(args, change, strict=True)))
        for step in (1e-5, -1e-5)
    )
    for ours, up, down in zip(second, there, back, strict=True):
        np.testing.assert_allclose(ours, (up - down) / 2e-5, rtol=1e-4, atol=1e-4)


def test_the_minimum_changes_by_the_multipliers(x64):
    qp = draw(4)
    by_b, by_h = jax.grad(
        lambda b, h: duality.solve_qp(*qp._replace(b=b, h=h)).objective, argnums=(0, 1)
    )(jnp.asarray(qp.b), jnp.asarray(qp.h))
    duals = duality.solve_qp(*qp).duals
    np.testing.assert_allclose(by_b, -duals.equality, atol=1e-6)
    np.testing.assert_allclose(by_h, -duals.inequality, atol=1e-6)


def test_where_there_is_no_derivative_it_says_so(x64):
    qp = draw(0)
    flat = qp._replace(P=np.zeros((N, N)), q=np.eye(N)[0], A=0 * qp.A, b=0 * qp.b, G=0 * qp.G)
    flat = flat._replace(h=np.ones(M), lower=np.zeros(N), upper=np.ones(N))
    x_by_q = jax.grad(lambda q, i: duality.solve_qp(*flat._replace(q=q)).x[i])
    # x_2 may be anything in [0, 1]; x_1 = 0 and the minimum are certain.
    assert np.isnan(x_by_q(jnp.asarray(flat.q), 1)).any()
    np.testing.assert_allclose(x_by_q(jnp.asarray(flat.q), 0), 0, atol=1e-6)
    value = jax.grad(lambda lower: duality.solve_qp(*flat._replace(lower=lower)).objective)
    np.testing.assert_allclose(value(jnp.asarray(flat.lower)), np.eye(N)[0], atol=1e-6)
    # Weakly active: the derivative of one side.
    corner = flat._replace(P=np.eye(N), q=np.zeros(N), upper=np.full(N, np.inf))
    side = jax.jacfwd(lambda q: duality.solve_qp(*corner._replace(q=q)).x)(jnp.asarray(corner.q))
    assert np.isin(np.round(np.diag(side), 6), [0, -1]).all()
    # Nothing solved, nothing to differentiate.
    crossed = qp._replace(lower=np.full(N, 0.7), upper=np.full(N, 0.5))
    gradient = jax.grad(lambda q: duality.solve_qp(*crossed._replace(q=q)).x.sum())
    assert np.isnan(gradient(jnp.asarray(qp.q))).all()


# KKT conditions of any problem


def curved(x):
    """Minimise over a pytree: a Rosenbrock valley, on a circle, above a line."""
    return (1 - x["a"]) ** 2 + 5 * (x["b"] - x["a"] ** 2) ** 2


PROBLEM = duality.Problem(
    curved,
    equality=lambda x: x["a"] ** 2 + x["b"] ** 2 - 1,
    inequality=lambda x: jnp.stack([x["a"] - 0.6, -x["a"] - 2]),
)


def test_kkt_residuals_by_hand(x64):
    # At a = 0.6, b = 0.8 on the circle with the first wall active. Gradient of f: with
    # e = b - a^2 = 0.44, (-2 (1 - a) - 20 a e, 10 e) = (-0.8 - 5.28, 4.4) = (-6.08, 4.4).
    # 4.4 + 1.6 lambda = 0 and -6.08 + 1.2 lambda + mu = 0.
    lam = -4.4 / 1.6
    mu = 6.08 - 1.2 * lam
    point = {"a": 0.6, "b": 0.8}
    dual = duality.Multipliers(jnp.array(lam), jnp.array([mu, 0.0]))
    residuals = duality.kkt_residuals(PROBLEM, point, dual)
    assert residuals.largest < 1e-14
    value = duality.lagrangian(PROBLEM, point, dual)
    np.testing.assert_allclose(value, 0.16 + 5 * 0.44**2, rtol=1e-14)
    # Each condition broken alone is seen in its own field.
    shifted = duality.kkt_residuals(PROBLEM, {"a": 0.7, "b": 0.8}, dual)
    np.testing.assert_allclose(shifted.equality, 0.49 + 0.64 - 1, rtol=1e-12)
    np.testing.assert_allclose(shifted.inequality, [0.1, 0], atol=1e-12)
    np.testing.assert_allclose(shifted.complementarity, [0.1 * mu, 0], atol=1e-12)
    idle = duality.kkt_residuals(PROBLEM, point, dual._replace(inequality=jnp.array([mu, -0.5])))
    np.testing.assert_allclose(idle.dual, [0, 0.5])
    np.testing.assert_allclose(idle.complementarity, [0, 0.5 * 2.6], atol=1e-12)
    np.testing.assert_allclose(idle.stationarity["a"], 0.5, atol=1e-12)
    np.testing.assert_allclose(idle.largest, 1.3)


def test_kkt_residuals_at_slsqps_solution(x64):
    from scipy import optimize

    def unpack(v):
        return {"a": v[0], "b": v[1]}

    peer = optimize.minimize(
        lambda v: float(curved(unpack(v))),
        np.array([0.1, 0.9]),
        constraints=[
            {"type": "eq", "fun": lambda v: v @ v - 1},
            {"type": "ineq", "fun": lambda v: np.array([0.6 - v[0], v[0] + 2])},
        ],
        method="SLSQP",
        options={"ftol": 1e-14},
    )
    lam, mu = -4.4 / 1.6, 6.08 + 1.2 * 4.4 / 1.6
    dual = duality.Multipliers(jnp.array(lam), jnp.array([mu, 0.0]))
    point = unpack(jnp.asarray(peer.x))
    assert duality.kkt_residuals(PROBLEM, point, dual).largest < 1e-5  # its differences: 1e-8^(1/2)


def test_kkt_residuals_of_a_quadratic_program(x64):
    qp = draw(4)
    C, c = boxes(qp)
    finite = np.isfinite(c)
    problem = duality.Problem(
        lambda x: 0.5 * x @ qp.P @ x + qp.q @ x,
        lambda x: qp.A @ x - qp.b,
        lambda x: C[finite] @ x - c[finite],
    )
    solution = duality.solve_qp(*qp)
    y, *z = solution.duals
    dual = duality.Multipliers(y, jnp.concatenate(z)[finite])
    measure = jax.jit(lambda x: duality.kkt_residuals(problem, x, dual))
    assert measure(solution.x).complementarity.shape == (finite.sum(),)
    # The solution and two wrong points: vmap equals a loop.
    points = np.asarray(solution.x)[None] + np.arange(3.0)[:, None]
    batch = jax.jit(jax.vmap(lambda x: duality.kkt_residuals(problem, x, dual).largest))(points)
    loop = [measure(x).largest for x in points]
    # at the solution the residual is rounding itself, of terms up to 10
    np.testing.assert_allclose(batch, np.stack(loop), rtol=1e-12, atol=1e-14)
    assert batch[0] < 1e-6 < batch[1] < batch[2]


def test_without_constraints_kkt_is_the_gradient():
    residuals = duality.kkt_residuals(
        duality.Problem(lambda x: x @ x), jnp.array([1.0, -2.0]), duality.Multipliers()
    )
    np.testing.assert_allclose(residuals.stationarity, [2, -4])
    assert residuals.largest == 4
    assert residuals.complementarity.size == 0


# The dual function, and bounds


def random_duals(rng, scale=1.0):
    parts = [rng.normal(size=E), *(rng.exponential(scale, size) for size in (M, N, N))]
    return duality.QPMultipliers(*parts)


def only_where_bounded(qp, duals):
    return duals._replace(
        lower=np.where(np.isfinite(qp.lower), duals.lower, 0),
        upper=np.where(np.isfinite(qp.upper), duals.upper, 0),
    )


def test_dual_function_is_the_infimum_and_a_bound(x64):
    rng = np.random.default_rng(0)
    qp = draw(2)
    solution = duality.solve_qp(*qp)
    value = jax.jit(lambda duals: duality.dual_function(qp, duals))
    C, c = boxes(qp)
    finite = np.isfinite(c)
    previous = None
    for _ in range(5):
        duals = only_where_bounded(qp, random_duals(rng))
        y, z = duals[0], np.concatenate(duals[1:])[finite]
        gradient = qp.q + qp.A.T @ y + C[finite].T @ z
        x = -np.linalg.solve(qp.P, gradient)
        lowest = 0.5 * x @ qp.P @ x + gradient @ x - qp.b @ y - c[finite] @ z
        np.testing.assert_allclose(value(duals), lowest, rtol=1e-9)
        assert value(duals) <= solution.objective
        assert duality.duality_gap(qp, solution.x, duals) >= 0
        if previous is not None:  # concave: above its chords
            middle = jax.tree.map(lambda a, b: 0.5 * (a + b), duals, previous)
            assert value(middle) >= 0.5 * (value(duals) + value(previous))
        previous = duals
    np.testing.assert_allclose(value(solution.duals), solution.objective, atol=1e-6)
    np.testing.assert_allclose(value(solution.duals), solution.dual_objective, atol=1e-6)
    np.testing.assert_allclose(
        duality.duality_gap(qp, solution.x, solution.duals), solution.gap, atol=1e-6
    )


def test_dual_function_without_curvature(x64):
    # minimise -x with x <= 1: L = -x + mu (x - 1) is bounded for mu = 1 alone.
    qp = duality.QP([[0.0]], [-1.0], upper=1.0)

    def at(upper, lower=0.0):
        return duality.QPMultipliers(np.zeros(0), np.zeros(0), np.array([lower]), np.array([upper]))

    assert duality.dual_function(qp, at(1.0)) == -1
    assert duality.dual_function(qp, at(0.9)) == -np.inf
    assert duality.dual_function(qp, at(2.0, 1.0)) == -np.inf  # a multiplier of no bound
    same = small([[0.0]], [-1.0], upper=1.0)
    solution = duality.solve_qp(*same)
    np.testing.assert_allclose(duality.dual_function(same, solution.duals), -1, rtol=1e-7)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_dual_bound_is_a_bound_from_anywhere(seed):
    rng = np.random.default_rng(seed)
    qp = draw(seed % 5, 2)  # bounded on all sides
    with jax.enable_x64(True):
        solution = duality.solve_qp(*qp)
        point, duals = 3 * rng.normal(size=N), random_duals(rng)
        bound = float(duality.dual_bound(qp, point, duals))
        best = float(duality.dual_bound(qp, solution.x, solution.duals))
        minimum = float(solution.objective)
    assert np.isfinite(bound)
    # The objective is above the minimum, up to residuals of 1e-8.
    assert bound <= minimum + 1e-7
    assert minimum - 1e-6 <= best <= minimum + 1e-7


def test_dual_bound_without_a_wall_to_lean_on():
    qp = duality.QP(np.eye(2), np.ones(2), lower=np.array([0.0, -np.inf]))
    none = duality.QPMultipliers(np.zeros(0), np.zeros(0), np.zeros(2), np.zeros(2))
    assert duality.dual_bound(qp, [0.0, 0.0], none) == -np.inf
    assert duality.dual_bound(qp, [0.0, -1.0], none) == -0.5


# Bad input


GOOD = {"P": np.eye(2), "q": np.zeros(2)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"P": np.ones((2, 3))}, r"P must have shape \(2, 2\) .* got \(2, 3\)"),
        ({"P": np.ones(2)}, r"P must be 2-D, got shape \(2,\)"),
        ({"P": np.array([[1.0, 2.0], [0.0, 1.0]])}, "P must be symmetric, got 2.0 in row 0"),
        (
            {"P": np.diag([1.0, -1e-3])},
            "P must be positive semidefinite, got an eigenvalue of -0.001",
        ),
        ({"P": np.diag([1.0, np.nan])}, "P must be finite, got nan in row 1, column 1"),
        ({"P": np.zeros((0, 0)), "q": np.zeros(0)}, "q must not be empty"),
        ({"q": np.array([0.0, np.inf])}, "q must be finite, got inf in row 1"),
        ({"A": np.ones((1, 2))}, "A and b must be given together"),
        ({"h": np.ones(1)}, "G and h must be given together"),
        ({"A": np.ones((1, 3)), "b": np.ones(1)}, r"A must have shape \(1, 2\)"),
        ({"G": np.ones((2, 2)), "h": np.ones(1)}, r"G must have shape \(1, 2\)"),
        ({"G": np.ones((1, 2)), "h": np.array([-np.inf])}, "h must not be NaN or -inf"),
        ({"G": np.ones((1, 2)), "h": np.array([np.nan])}, "h must not be NaN or -inf, got nan"),
        ({"lower": np.array([0.0, np.inf])}, "lower must not be NaN or inf, got inf at index 1"),
        ({"upper": -np.inf}, "upper must not be NaN or -inf"),
        ({"upper": np.zeros(3)}, r"upper must have shape \(2,\) or \(\), got \(3,\)"),
        ({"tol": 0.0}, "tol must be positive"),
        ({"max_iter": 0}, "max_iter must be in"),
    ],
)
def test_bad_programs(change, message):
    with pytest.raises(ValueError, match=message):
        duality.solve_qp(**(GOOD | change))


def test_complex_and_words_are_refused():
    with pytest.raises(TypeError, match="P must be a real array"):
        duality.solve_qp(np.eye(2) * 1j, np.zeros(2))
    with pytest.raises(TypeError, match="q must be a numeric array"):
        duality.solve_qp(np.eye(2), "no numbers")


def test_bad_values_under_a_transformation_are_never_solved(x64):
    qp = draw(0)
    for name in ("P", "q", "A", "b", "G", "h", "lower"):
        values = np.array(getattr(qp, name))
        values.flat[1] = np.nan
        assert not compiled(qp._replace(**{name: values}), 1e-8).solved
    assert not compiled(qp._replace(lower=np.full(N, np.inf)), 1e-8).solved
    assert compiled(qp, 1e-8).solved


@pytest.mark.parametrize(
    ("dual", "message"),
    [
        (duality.Multipliers(inequality=jnp.zeros(2)), "dual.equality must not be None"),
        (
            duality.Multipliers(jnp.zeros(()), jnp.zeros(3)),
            r"dual.inequality must have the shape \(2,\)",
        ),
    ],
)
def test_bad_multipliers(dual, message):
    with pytest.raises(ValueError, match=message):
        duality.kkt_residuals(PROBLEM, {"a": 0.0, "b": 0.0}, dual)


def test_bad_problems():
    with pytest.raises(ValueError, match=r"problem\.objective must return a scalar"):
        duality.lagrangian(duality.Problem(lambda x: x), jnp.ones(2), duality.Multipliers())
    with pytest.raises(ValueError, match=r"problem\.inequality must not be None"):
        duality.lagrangian(
            duality.Problem(jnp.sum), jnp.ones(2), duality.Multipliers(inequality=jnp.ones(1))
        )
    with pytest.raises(TypeError, match=r"problem\.equality must return real numbers"):
        duality.kkt_residuals(
            duality.Problem(jnp.sum, lambda x: x > 0), jnp.ones(2), duality.Multipliers(jnp.ones(2))
        )
    none = duality.QPMultipliers(np.zeros(0), np.zeros(0), np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match=r"duals.upper must have shape \(2,\), got \(3,\)"):
        duality.dual_function(duality.QP(np.eye(2), np.zeros(2)), none)
    with pytest.raises(ValueError, match=r"duals.lower must be zero for a program without bounds"):
        duality.dual_function(
            duality.QP(np.eye(2), np.zeros(2)), none._replace(lower=np.ones(2), upper=np.zeros(2))
        )
    with pytest.raises(ValueError, match=r"x must have shape \(2,\), got \(1,\)"):
        duality.duality_gap(duality.QP(np.eye(2), np.zeros(2)), [0.0], none)


# The demo


def test_the_bounds_meet_and_the_third_pair_has_no_street():
    result = demo.run(jax.random.key(0), quick=True)
    steps, pairs = result.steps, result.pairs
    lower, upper = np.asarray(steps.lower, float), np.asarray(steps.upper, float)
    assert result.solution.solved
    assert (lower <= upper).all()
    assert (np.diff(lower) >= 0).all()
    assert (np.diff(upper) <= 0).all()
    assert upper[0] - lower[0] > 0.1 * upper[-1]
    assert upper[-1] - lower[-1] < 1e-4 * upper[-1]  # float32, 1e-5 of the sum of all terms
    assert pairs.status.tolist() == [SOLVED, SOLVED, PRIMAL]
    for i in (0, 1):
        *w, b = np.asarray(pairs.weights[i])
        values = result.sides[i] * (result.petals[i] @ np.array(w) + b)
        np.testing.assert_allclose(values.min(), 1, atol=1e-3)  # 1e-5, of terms up to 100
    proof = np.asarray(pairs.proof[2], float)
    assert (proof >= 0).all()
    np.testing.assert_allclose(proof.sum(), 1, atol=1e-5)
    np.testing.assert_allclose(pairs.common[2][0], pairs.common[2][1], atol=1e-4)
    assert tables.text(demo.tables(result), width=60)
