"""A tube around the data, and who holds it up.

The rows are 442 patients: how far diabetes had progressed after a year, against the body mass
index. A tube is laid around them. The patients inside of it cost nothing, and have no say: the same
tube comes out without them. Then all ten measurements, and how the error on patients that were not
fitted depends on the height of the tube and on the price of leaving it.
"""

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures, progress
from mlnotes_jax.svm import kernels, regressor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["EPSILONS", "PRICES", "Problem", "Result", "plot", "problem", "run", "tables"]

#: Heights of the tube and prices of leaving it that are compared.
EPSILONS = (0.0, 10.0, 20.0, 40.0, 60.0, 80.0, 110.0, 140.0)
PRICES = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0)

GAMMA = 0.3  # of the curve; the body mass index has standard deviation 1
FOLDS = 5


class Problem(NamedTuple):
    """Body mass index in kg/m², all ten measurements, standardised, and the progression."""

    bmi: np.ndarray
    x: np.ndarray
    y: np.ndarray
    source: datasets.Source


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The data.
        bmi: Body mass index in kg/m², shape `(n,)`.
        y: Progression, shape `(n,)`.
        epsilon: Half the height of the tube in the picture.
        price: C of the tube in the picture.
        dual_coef: Of the tube in the picture, shape `(n,)`.
        certificate: Of the tube in the picture.
        converged: Whether all fits are.
        at: Where the curve was evaluated, in kg/m², shape `(k,)`.
        curve: Its values, shape `(k,)`.
        moved: How far the curve moves when the patients inside are left out: the largest distance.
        moved_by_outside: The same when those outside are left out.
        epsilons: Heights that were compared, shape `(e,)`.
        prices: Prices that were compared, shape `(c,)`.
        errors: Mean absolute error on held-out patients, shape `(c, e)`.
        support: Mean share of support vectors, shape `(c, e)`.
        constant_error: Error of the median of the training rows.
    """

    source: datasets.Source
    bmi: Array
    y: Array
    epsilon: float
    price: float
    dual_coef: Array
    certificate: regressor.Certificate
    converged: bool
    at: Array
    curve: Array
    moved: float
    moved_by_outside: float
    epsilons: np.ndarray
    prices: np.ndarray
    errors: np.ndarray
    support: np.ndarray
    constant_error: float


def problem(key: Key[Array, ""] | None = None) -> Problem:
    """Load the patients.

    Args:
        key: Not used: nothing is drawn.

    Returns:
        Body mass index, all measurements with mean 0 and standard deviation 1, progression, source.
    """
    del key
    data = datasets.load("diabetes_raw")
    x = (data.x - data.x.mean(axis=0)) / data.x.std(axis=0)
    return Problem(data.x[:, data.feature_names.index("bmi")], x, data.y, data.source)


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    epsilon: float = 60.0,
    price: float = 100.0,
) -> Result:
    """Lay a tube around the patients, take out those who do not hold it, and compare tubes.

    Args:
        key: For the split into folds.
        quick: Fewer tubes and folds are compared.
        epsilon: Half the height of the tube in the picture.
        price: What one unit outside of that tube costs (C).

    Returns:
        The tube, who holds it, and the errors on held-out patients.
    """
    data = problem()
    bmi, y = jnp.asarray(data.bmi), jnp.asarray(data.y)
    at = jnp.linspace(bmi.min(), bmi.max(), 200)
    scale = float(data.bmi.std())
    z, z_at = (value[:, None] / scale for value in (bmi, at))
    whole, curve = _tube(z, y, jnp.ones_like(y), z_at, price, epsilon)
    proof = regressor.certificate(whole, z, y)
    outside = jnp.abs(whole.dual_coef) >= whole.bound
    again, without_inside = _tube(z, y, whole.support.astype(y.dtype), z_at, price, epsilon)
    _, without_outside = _tube(z, y, (~outside).astype(y.dtype), z_at, price, epsilon)

    fold = jax.random.permutation(key, len(y)) % FOLDS
    epsilons, prices = np.array(EPSILONS), np.array(PRICES)
    num_folds = FOLDS
    if quick:
        epsilons, prices, num_folds = epsilons[::2], prices[::2], 2
    held_out = fold[None, :] == jnp.arange(num_folds)[:, None]
    errors, support, converged = [], [], [bool(whole.converged), bool(again.converged)]
    for C in progress.track(prices.tolist(), "tubes"):
        error, share, done = _compare(
            jnp.asarray(data.x), y, held_out, jnp.asarray(C), jnp.asarray(epsilons, y.dtype)
        )
        errors.append(np.asarray(error))
        support.append(np.asarray(share))
        converged.append(bool(done))
    middles = [np.median(data.y[~np.asarray(rows)]) for rows in held_out]
    constant = [
        np.abs(data.y[np.asarray(rows)] - middle).mean()
        for rows, middle in zip(held_out, middles, strict=True)
    ]
    return Result(
        source=data.source,
        bmi=bmi,
        y=y,
        epsilon=epsilon,
        price=price,
        dual_coef=whole.dual_coef,
        certificate=proof,
        converged=all(converged),
        at=at,
        curve=curve,
        moved=float(jnp.abs(without_inside - curve).max()),
        moved_by_outside=float(jnp.abs(without_outside - curve).max()),
        epsilons=epsilons,
        prices=prices,
        errors=np.stack(errors),
        support=np.stack(support),
        constant_error=float(np.mean(constant)),
    )


@jax.jit
def _tube(
    z: Array, y: Array, weight: Array, at: Array, price: Float[Array, ""], epsilon: Float[Array, ""]
) -> tuple[regressor.SVR, Array]:
    model = regressor.fit(
        z,
        y,
        kernel=kernels.gaussian(GAMMA),
        C=price,
        epsilon=epsilon,
        sample_weight=weight,
        tol=0.01,
    )
    return model, regressor.predict(model, at)


@jax.jit
def _compare(
    x: Array, y: Array, held_out: Array, price: Array, epsilons: Array
) -> tuple[Array, Array, Array]:
    """Error and share of support vectors of each height, the mean over folds."""

    def one(case: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        epsilon, rows = case
        train = (~rows).astype(y.dtype)
        model = regressor.fit(
            x,
            y,
            kernel=kernels.gaussian("scale"),
            C=price,
            epsilon=epsilon,
            sample_weight=train,
            tol=0.1,
        )
        miss = jnp.abs(regressor.predict(model, x) - y)
        return (
            jnp.where(rows, miss, 0).sum() / rows.sum(dtype=y.dtype),
            model.support.sum(dtype=y.dtype) / train.sum(),
            model.converged,
        )

    num_folds, num_epsilons = held_out.shape[0], epsilons.shape[0]
    cases = jnp.repeat(epsilons, num_folds), jnp.tile(held_out, (num_epsilons, 1))
    # One after the other: each takes as many steps as it needs.
    error, share, converged = jax.lax.map(one, cases)
    shape = (num_epsilons, num_folds)
    return error.reshape(shape).mean(1), share.reshape(shape).mean(1), converged.all()


def _places(result: Result) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks of the patients inside of the tube, on its edge, and outside."""
    size = np.abs(np.asarray(result.dual_coef))
    outside = size >= np.float32(result.price)
    return size == 0, (size > 0) & ~outside, outside


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture."""
    names = ("inside", "on the edge", "outside")
    size = np.abs(np.asarray(result.dual_coef))
    proof = result.certificate
    middle = int(np.flatnonzero(result.epsilons >= 40)[0])
    return {
        f"Who holds the tube (±{result.epsilon:g}, C = {result.price:g})": [
            {
                "patients": name,
                "count": int(mask.sum()),
                "mean |β|": round(float(size[mask].sum() / max(mask.sum(), 1)), 2),
                "largest |β|": round(float(size[mask].max(initial=0)), 2),
            }
            for name, mask in zip(names, _places(result), strict=True)
        ],
        "Leave them out, and the curve moves by at most": [
            {"left out": "those inside", "moves by": f"{result.moved:.1e}"},
            {"left out": "those outside", "moves by": f"{result.moved_by_outside:.1e}"},
        ],
        "Certificate": [
            {
                "primal": round(float(proof.primal), 2),
                "dual": round(float(proof.dual), 2),
                "gap / primal": f"{float(proof.gap / proof.primal):.1e}",
                "violation": f"{float(proof.violation):.1e}",
            }
        ],
        f"Held-out error, ten measurements (median alone: {result.constant_error:.1f})": [
            {
                "C": float(price),
                "best ε": float(result.epsilons[errors.argmin()]),
                "error": round(float(errors.min()), 1),
                "needs": f"{support[errors.argmin()]:.0%}",
                f"error at ±{result.epsilons[middle]:g}": round(float(errors[middle]), 1),
                "needs then": f"{support[middle]:.0%}",
            }
            for price, errors, support in zip(
                result.prices, result.errors, result.support, strict=True
            )
        ],
    }


def plot(result: Result) -> "Figure":
    """Draw the tube with the patients, the errors, and how many patients a tube needs."""
    import matplotlib.pyplot as plt

    with figures.style():
        figure, (tube, errors, support) = plt.subplots(
            1, 3, figsize=(10, 3.6), width_ratios=[1.5, 1.1, 1]
        )
        at, curve = np.asarray(result.at), np.asarray(result.curve)
        tube.fill_between(
            at, curve - result.epsilon, curve + result.epsilon, color=figures.BLUE, alpha=0.12
        )
        tube.plot(at, curve, color=figures.BLUE)
        for edge in (curve - result.epsilon, curve + result.epsilon):
            tube.plot(at, edge, color=figures.BLUE, linestyle="--", linewidth=1)
        looks = [
            ("inside: no say", ".", figures.GREY, 4),
            ("on the edge", "s", figures.VERMILLION, 5),
            ("outside: full say", "x", figures.OCHRE, 4),
        ]
        bmi, y = np.asarray(result.bmi), np.asarray(result.y)
        for mask, (label, marker, color, size) in zip(_places(result), looks, strict=True):
            tube.plot(
                bmi[mask], y[mask], marker, color=color, markersize=size,
                label=f"{label} ({mask.sum()})",
            )  # fmt: skip
        tube.set(
            xlabel="body mass index (kg/m²)",
            ylabel="progression after a year",
            title=f"A tube of ±{result.epsilon:g}",
            ylim=(0, 480),
        )
        tube.legend(fontsize="small", loc="upper left")

        filled = errors.contourf(result.epsilons, np.log10(result.prices), result.errors, levels=12)
        errors.grid(visible=False)
        figure.colorbar(filled, ax=errors, label="mean absolute error", shrink=0.9)
        i, j = np.unravel_index(np.argmin(result.errors), result.errors.shape)
        # On the surface itself the ink is white in both modes, because the surface is dark.
        errors.plot(
            result.epsilons[j], np.log10(result.prices[i]), "*", color="white", markersize=13
        )
        errors.set(xlabel="ε", ylabel="log₁₀ C", title="Held-out error")

        for i in range(0, len(result.prices), 2):
            support.plot(
                result.epsilons, result.support[i], "o-", markersize=3,
                label=f"C = {result.prices[i]:g}",
            )  # fmt: skip
        support.set(
            xlabel="ε", ylabel="share of support vectors", title="Who is needed", ylim=(0, 1.05)
        )
        support.legend(fontsize="small")
    return figure
