"""SUMMARY."""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from jaxtyping import Array, Float

from mlnotes_jax.CHAPTER import CONCEPT
from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Result", "plot", "problem", "run", "tables"]


class Result(NamedTuple):
    """What `run` gives.

    Attributes:
        values: One value for each row of the data, shape `(n,)`.
        source: The data.
    """

    values: Float[Array, " n"]
    source: datasets.Source


def problem(key: Array, *, n: int) -> datasets.Dataset:
    """Load the data and keep `n` rows of them, drawn with `key`."""
    data = datasets.load("digits")
    rows = jax.random.choice(key, len(data.x), (n,), replace=False)
    return data._replace(x=data.x[rows], y=data.y[rows])


def run(key: Array, *, quick: bool = False, scale: float = 1.0) -> Result:
    """Do the work, compiled.

    Args:
        key: Draws the rows.
        quick: Fewer rows.
        scale: Factor; see `CONCEPT.FUNCTION`.

    Returns:
        The values.
    """
    data = problem(key, n=100 if quick else 1000)
    values = jax.jit(jax.vmap(lambda x: CONCEPT.FUNCTION(x, scale=scale)))(data.x)
    return Result(values, data.source)


def tables(result: Result) -> dict[str, list[dict[str, Any]]]:
    """Lay the numbers out: title -> rows."""
    return {"Values": [{"rows": len(result.values), "mean": float(result.values.mean())}]}


def plot(result: Result) -> "Figure":
    """Draw the values."""
    import matplotlib.pyplot as plt

    with figures.style():
        figure, axes = plt.subplots(figsize=(6, 3.2))
        axes.hist(result.values, color=figures.BLUE)
        axes.set(xlabel="value", ylabel="rows", title="Values")
    return figure
