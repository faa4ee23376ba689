"""Two sides of one problem: bounds that meet at the optimum.

A support vector machine with a linear kernel is fitted to breast tumours, as a quadratic program.
After every step of the solver two numbers are true: a value that the machine's objective cannot go
below, and one that it has reached. They meet. Then two features of three pairs of irises: two pairs
have a widest street between them; for the third, the solver proves that there is none.
"""

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures
from mlnotes_jax.svm import duality

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Pairs", "Problem", "Result", "Steps", "plot", "problem", "run", "tables"]

PAIRS = ((0, 1), (0, 2), (1, 2))
NUM_STEPS = 14  # more than the method needs


class Problem(NamedTuple):
    """Tumours and irises.

    Attributes:
        x: Tumours, standardised, shape `(n, d)`.
        y: -1 malignant, 1 benign, shape `(n,)`.
        petals: Length and width of each pair's petals in cm, shape `(3, 100, 2)`.
        sides: -1 for the first species of a pair, 1 for the second, shape `(3, 100)`.
        names: Of the pairs.
        source: Of the tumours; the irises come from the same place.
    """

    x: Float[np.ndarray, "n d"]
    y: Float[np.ndarray, " n"]
    petals: Float[np.ndarray, "3 m 2"]
    sides: Float[np.ndarray, "3 m"]
    names: tuple[str, ...]
    source: datasets.Source


class Steps(NamedTuple):
    """Bounds after each step, shape `(steps,)` each.

    Attributes:
        lower: The best value so far of the dual, at multipliers that are exactly feasible.
        upper: The best value so far of the primal, at some `(w, b)`.
        gap: Their difference.
        primal: Relative residual of the constraints of the quadratic program.
        dual: Relative residual of the gradient of its Lagrangian.
    """

    lower: Array
    upper: Array
    gap: Array
    primal: Array
    dual: Array


class Pairs(NamedTuple):
    """Widest streets, or proofs that there is none; the three programs are one batch.

    Attributes:
        names: Of the pairs.
        status: Index into `duality.STATUSES`, shape `(3,)`.
        weights: $(w_1, w_2, b)$ of the middle line, shape `(3, 3)`; NaN where there is none.
        width: Of the street in cm, shape `(3,)`; NaN where there is none.
        proof: Multipliers that prove that there is none, shape `(3, 100)`; NaN where there is one.
        residual: Of that proof, shape `(3,)`.
        common: The point of both hulls that the proof shows, for each species, shape `(3, 2, 2)`.
        num_iterations: Shape `(3,)`.
    """

    names: tuple[str, ...]
    status: Int[Array, " 3"]
    weights: Float[Array, "3 3"]
    width: Float[Array, " 3"]
    proof: Float[Array, "3 m"]
    residual: Float[Array, " 3"]
    common: Float[Array, "3 2 2"]
    num_iterations: Int[Array, " 3"]


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The tumours.
        num_rows: How many were fitted.
        solution: Of the quadratic program.
        steps: The bounds on the way.
        pairs: The irises.
        petals: As in `Problem`.
        sides: As in `Problem`.
    """

    source: datasets.Source
    num_rows: int
    solution: duality.QPSolution
    steps: Steps
    pairs: Pairs
    petals: Float[np.ndarray, "3 m 2"]
    sides: Float[np.ndarray, "3 m"]


def problem(key: Key[Array, ""], *, num_rows: int = 569) -> Problem:
    """Load both sets.

    Args:
        key: Draws the tumours, where fewer than all are wanted.
        num_rows: How many tumours.

    Returns:
        The data.
    """
    data = datasets.load("breast_cancer")
    chosen = np.asarray(jax.random.permutation(key, len(data.y)))[:num_rows]
    x, y = data.x[chosen], data.y[chosen]
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    flowers = datasets.load("iris")
    rows = [np.flatnonzero(np.isin(flowers.y, pair)) for pair in PAIRS]
    return Problem(
        x=x.astype(np.float32),
        y=np.where(y == 1, 1, -1).astype(np.float32),
        petals=np.stack([flowers.x[row, 2:] for row in rows]),
        sides=np.stack(
            [
                np.where(flowers.y[row] == second, 1, -1).astype(np.float32)
                for row, (_, second) in zip(rows, PAIRS, strict=True)
            ]
        ),
        names=tuple(
            f"{flowers.class_names[first]}, {flowers.class_names[second]}"
            for first, second in PAIRS
        ),
        source=data.source,
    )


def run(
    key: Key[Array, ""], *, quick: bool = False, num_rows: int = 569, cost: float = 0.1
) -> Result:
    """Watch two bounds meet, and look for three streets.

    Args:
        key: Draws the tumours, where fewer than all are wanted.
        quick: At most 120 tumours.
        num_rows: How many tumours are fitted.
        cost: C, the price of a row on the wrong side of its margin.

    Returns:
        The bounds after each step, and the streets or the proofs.
    """
    data = problem(key, num_rows=min(num_rows, 120) if quick else num_rows)
    solution, steps = _meet(jnp.asarray(data.x), jnp.asarray(data.y), jnp.asarray(cost))
    return Result(
        source=data.source,
        num_rows=len(data.y),
        solution=solution,
        steps=jax.tree.map(lambda part: part[: int(solution.num_iterations)], steps),
        pairs=_streets(data),
        petals=data.petals,
        sides=data.sides,
    )


@jax.jit
def _meet(x: Array, y: Array, cost: Array) -> tuple[duality.QPSolution, Steps]:
    """The dual of the machine as a quadratic program, and what is known after each step."""
    signed = y[:, None] * x
    # Minimise a'Ka/2 - sum(a) with y'a = 0 and 0 <= a <= C.
    qp = duality.QP(
        P=signed @ signed.T, q=-jnp.ones_like(y), A=y[None], b=jnp.zeros(1), lower=0.0, upper=cost
    )

    def after(num_steps: Array) -> tuple[duality.QPSolution, Steps]:
        found = duality.solve_qp(*qp, max_iter=num_steps)
        # Exactly feasible: the heavier side gives way.
        up, down = jnp.where(y > 0, found.x, 0).sum(), jnp.where(y < 0, found.x, 0).sum()
        least = jnp.minimum(up, down)
        alpha = found.x * jnp.where(y > 0, least / up, least / down)
        w = alpha @ signed
        lower = alpha.sum() - 0.5 * (w @ w)
        none = jnp.zeros_like(y)
        duals = duality.QPMultipliers(found.duals.equality, jnp.zeros(0), none, none)
        # The dual of the dual: minus the machine's own objective at w and b.
        upper = -duality.dual_bound(qp, found.x, duals)
        residuals = found.residuals
        return found, Steps(lower, upper, upper - lower, residuals.primal, residuals.dual)

    found, steps = lax.map(after, jnp.arange(1, NUM_STEPS + 1))
    lower, upper = lax.cummax(steps.lower), lax.cummin(steps.upper)
    last = jax.tree.map(lambda part: part[-1], found)
    return last, steps._replace(lower=lower, upper=upper, gap=upper - lower)


def _streets(data: Problem) -> Pairs:
    weights, width, found, common = _widest(jnp.asarray(data.petals), jnp.asarray(data.sides))
    return Pairs(
        names=data.names,
        status=found.status,
        weights=weights,
        width=width,
        proof=found.certificate.duals.inequality,
        residual=found.certificate.residual,
        common=common,
        num_iterations=found.num_iterations,
    )


@jax.jit
def _widest(x: Array, y: Array) -> tuple[Array, Array, duality.QPSolution, Array]:
    """Minimise |w|^2/2 with y (w.x + b) >= 1, for a batch of data."""

    def one(x: Array, y: Array) -> tuple[Array, Array, duality.QPSolution, Array]:
        rows = -y[:, None] * jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
        P = jnp.diag(jnp.array([1.0, 1.0, 0.0]))
        found = duality.solve_qp(P, jnp.zeros(3), G=rows, h=-jnp.ones_like(y))
        width = 2 / jnp.linalg.norm(found.x[:2])
        # The proof weighs both species alike, and both averages are one point.
        proof = found.certificate.duals.inequality
        common = jnp.stack([2 * jnp.where(y == side, proof, 0) @ x for side in (-1, 1)])
        return found.x, width, found, common

    return jax.vmap(one)(x, y)


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture."""
    steps = result.steps
    bounds: list[dict[str, object]] = [
        {
            "step": i + 1,
            "not below": float(steps.lower[i]),
            "reached": float(steps.upper[i]),
            "gap": f"{float(steps.gap[i]):.1e}",
        }
        for i in range(len(steps.gap))
    ]
    pairs = result.pairs
    streets: list[dict[str, object]] = [
        {
            "pair": name,
            "answer": duality.STATUSES[int(pairs.status[i])].replace("_", " "),
            "street in cm": round(float(width), 4) if width == width else "none",
            "common point of both hulls": (
                "none"
                if width == width
                else "({:.3f}, {:.3f})".format(*map(float, pairs.common[i, 0]))
            ),
            "steps": int(pairs.num_iterations[i]),
        }
        for i, (name, width) in enumerate(zip(pairs.names, map(float, pairs.width), strict=True))
    ]
    status = duality.STATUSES[int(result.solution.status)]
    return {f"{result.num_rows} tumours: {status}": bounds, "Pairs of irises, one batch": streets}


def plot(result: Result) -> "Figure":
    """Draw the bounds, the gap, and a proof that two sets cannot be separated."""
    import matplotlib.pyplot as plt

    steps, pairs = result.steps, result.pairs
    with figures.style():
        figure, (bounds, gap, proof) = plt.subplots(1, 3, figsize=(10, 3.4))
        k = np.arange(1, len(steps.gap) + 1)
        lower, upper = np.asarray(steps.lower), np.asarray(steps.upper)
        bounds.plot(k, upper, "o-", ms=4, label="reached (primal)")
        bounds.plot(k, lower, "s--", ms=4, label="not below (dual)")
        bounds.fill_between(k, lower, upper, color=figures.GREY, alpha=0.25, lw=0)
        middle, room = lower[-1], 1.2 * abs(lower[-1])
        bounds.set_ylim(middle - room, middle + 2 * room)
        bounds.set(xlabel="step", ylabel="objective of the machine", title="Two bounds that meet")
        bounds.legend(fontsize="small")

        gap.semilogy(k, np.maximum(steps.gap, 1e-12) / abs(lower[-1]), "o-", ms=4, label="gap")
        gap.semilogy(k, steps.primal, "s--", ms=4, label="constraints")
        gap.semilogy(k, steps.dual, "^-.", ms=4, label="gradient of L")
        gap.set(xlabel="step", ylabel="relative residual", title="What is left")
        gap.legend(fontsize="small")

        which = 2
        x, y, weight = result.petals[which], result.sides[which], np.asarray(pairs.proof[which])
        looks = ((-1, "o", figures.BLUE), (1, "^", figures.VERMILLION))
        for (side, mark, colour), name in zip(looks, pairs.names[which].split(", "), strict=True):
            here = y == side
            proof.plot(*x[here].T, mark, ms=3, color=colour, alpha=0.5, label=name)
            proof.scatter(
                *x[here].T, s=400 * weight[here], marker=mark, facecolor="none", edgecolor=colour
            )
        proof.plot(*np.asarray(pairs.common[which, 0]), "*", ms=14, color=figures.GREEN)
        proof.set(
            xlabel="petal length in cm",
            ylabel="petal width in cm",
            title="In both hulls: no street",
        )
        proof.legend(fontsize="small")
    return figure
