"""Which question tells most about a melon, and which criteria can be fooled.

The data are the seventeen melons of Zhou's *Machine Learning* (tables 4.1 and 4.3). Every attribute
is rated by gain, gain ratio and Gini index; density and sugar by all their thresholds. Then
attributes that are drawn at random, and so tell nothing: the more values they have, the more every
criterion believes in them.
"""

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures
from mlnotes_jax.trees import criteria

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "ATTRIBUTES",
    "CLASSES",
    "NUMBERS",
    "Melons",
    "Rating",
    "Result",
    "expected_gain",
    "melons",
    "plot",
    "problem",
    "run",
    "tables",
]

#: Attribute -> its values, in the order of their first row, which is the order of their codes.
ATTRIBUTES = {
    "colour 色泽": ("green 青绿", "black 乌黑", "white 浅白"),
    "root 根蒂": ("curled 蜷缩", "slightly curled 稍蜷", "stiff 硬挺"),
    "knock 敲声": ("muffled 浊响", "dull 沉闷", "crisp 清脆"),
    "texture 纹理": ("clear 清晰", "slightly blurry 稍糊", "blurry 模糊"),
    "navel 脐部": ("sunken 凹陷", "slightly sunken 稍凹", "flat 平坦"),
    "touch 触感": ("hard smooth 硬滑", "soft sticky 软粘"),
}
NUMBERS = ("density 密度", "sugar 含糖率")
CLASSES = ("good 好瓜", "bad 坏瓜")

# Codes of the six attributes, density, sugar, class; one melon in each line, number 1 first.
_MELONS = """
0 0 0 0 0 0  .697 .460  0
1 0 1 0 0 0  .774 .376  0
1 0 0 0 0 0  .634 .264  0
0 0 1 0 0 0  .608 .318  0
2 0 0 0 0 0  .556 .215  0
0 1 0 0 1 1  .403 .237  0
1 1 0 1 1 1  .481 .149  0
1 1 0 0 1 0  .437 .211  0
1 1 1 1 1 0  .666 .091  1
0 2 2 0 2 1  .243 .267  1
2 2 2 2 2 0  .245 .057  1
2 0 0 2 2 1  .343 .099  1
0 1 0 1 0 0  .639 .161  1
2 1 1 1 0 0  .657 .198  1
1 1 0 0 1 1  .360 .370  1
2 0 0 2 2 0  .593 .042  1
0 0 1 1 1 0  .719 .103  1
"""
_TRAIN = (1, 2, 3, 6, 7, 10, 14, 15, 16, 17)  # of the book's example of pruning


class Melons(NamedTuple):
    """Seventeen melons.

    Attributes:
        codes: The six attributes of table 4.1, shape `(17, 6)`; the names are in `ATTRIBUTES`.
        numbers: Density and sugar of table 4.3, shape `(17, 2)`.
        y: 0 for a good melon, 1 for a bad one, shape `(17,)`.
        train: The ten melons of table 4.2 that trees grow from; the other seven are held out.
        source: Where they come from.
    """

    codes: Int[np.ndarray, "17 6"]
    numbers: Float[np.ndarray, "17 2"]
    y: Int[np.ndarray, " 17"]
    train: Bool[np.ndarray, " 17"]
    source: datasets.Source


class Rating(NamedTuple):
    """What the criteria say of one column; `threshold` is the best one, NaN for an attribute."""

    gain: float
    intrinsic_value: float
    gain_ratio: float
    gini_index: float
    threshold: float


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The data.
        ratings: Name of a column -> its rating; one column just numbers the melons.
        curves: Density and sugar: thresholds and the gain of each.
        num_values: Of the attributes drawn at random.
        num_rows: Rows of these attributes; the classes are equally frequent.
        num_draws: How many attributes of each kind.
        random: Means over the draws, shape `(kinds, 3)`: gain, gain ratio, decrease of Gini.
    """

    source: datasets.Source
    ratings: dict[str, Rating]
    curves: dict[str, tuple[np.ndarray, np.ndarray]]
    num_values: tuple[int, ...]
    num_rows: int
    num_draws: int
    random: np.ndarray


def melons() -> Melons:
    """Give the melons of tables 4.1 to 4.3 of Zhou's book."""
    rows = np.array([line.split() for line in _MELONS.split("\n") if line], np.float32)
    return Melons(
        codes=rows[:, :6].astype(np.int32),
        numbers=rows[:, 6:8],
        y=rows[:, 8].astype(np.int32),
        train=np.isin(np.arange(1, 18), _TRAIN),
        source=datasets.Source(
            "17 melons", "Zhou, Machine Learning, tables 4.1 to 4.3", "facts", "17 rows of 8"
        ),
    )


def problem(key: Key[Array, ""] | None = None) -> Melons:
    """Give the melons.

    Args:
        key: Not used: nothing is drawn.

    Returns:
        Codes, numbers, classes, the book's split, source.
    """
    del key
    return melons()


def run(key: Key[Array, ""], *, quick: bool = False, num_draws: int = 2000) -> Result:
    """Rate every attribute of the melons, and attributes that tell nothing.

    Args:
        key: For the random attributes.
        quick: Fewer of them.
        num_draws: Random attributes of each number of values.

    Returns:
        Ratings, curves over thresholds, and means over random attributes.
    """
    if quick:
        num_draws = min(num_draws, 300)
    data = melons()
    columns = dict(zip(ATTRIBUTES, data.codes.T, strict=True))
    columns["number 编号"] = np.arange(17)
    # One shape, so one program, for all: branches without rows change nothing.
    counts = jnp.stack(
        [criteria.table(c, data.y, num_branches=17, num_classes=2) for c in columns.values()]
    )
    ratings = _rate(counts)
    found = {
        name: Rating._make((*(float(part[i]) for part in ratings), float("nan")))
        for i, name in enumerate(columns)
    }
    curves = {}
    for j, name in enumerate(NUMBERS):
        splits = criteria.threshold_tables(data.numbers[:, j], data.y, num_classes=2)
        ratings = _rate(splits.sums)
        best = int(jnp.argmax(ratings[0]))
        threshold = np.asarray(splits.threshold)
        found[name] = Rating._make(
            (*(float(part[best]) for part in ratings), float(threshold[best]))
        )
        real = np.isfinite(threshold)
        curves[name] = threshold[real], np.asarray(ratings[0])[real]

    num_values, num_rows = (2, 3, 4, 6, 8, 12, 16, 24, 32), 200
    random = _random_ratings(
        key, jnp.array(num_values), num_rows=num_rows, num_draws=num_draws, most=max(num_values)
    )
    return Result(
        source=data.source,
        ratings=found,
        curves=curves,
        num_values=num_values,
        num_rows=num_rows,
        num_draws=num_draws,
        random=np.asarray(random),
    )


def _rate(counts: Array) -> tuple[Array, ...]:
    return (
        criteria.information_gain(counts),
        criteria.intrinsic_value(counts),
        criteria.gain_ratio(counts),
        criteria.gini_index(counts),
    )


@functools.partial(jax.jit, static_argnames=("num_rows", "num_draws", "most"))
def _random_ratings(
    key: Array, num_values: Array, *, num_rows: int, num_draws: int, most: int
) -> Array:
    y = jnp.arange(num_rows, dtype=jnp.int32) % 2

    def one(key: Array, values: Array) -> Array:
        codes = jax.random.randint(key, (num_rows,), 0, values, jnp.int32)
        counts = criteria.table(codes, y, num_branches=most, num_classes=2)
        decrease = criteria.decrease(counts, criteria.gini)
        return jnp.stack([criteria.information_gain(counts), criteria.gain_ratio(counts), decrease])

    keys = jax.random.split(key, num_draws)
    return jax.lax.map(
        lambda values: jax.vmap(lambda key: one(key, values))(keys).mean(axis=0), num_values
    )


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """Put the numbers into rows.

    Args:
        result: What `run` returned.

    Returns:
        Title to rows.
    """
    title = f"{result.num_draws} random attributes of {result.num_rows} rows: means, expected gain"
    return {
        "The melons": [
            {
                "attribute": name,
                "gain": f"{rating.gain:.3f}",
                "intrinsic value": f"{rating.intrinsic_value:.3f}",
                "gain ratio": f"{rating.gain_ratio:.3f}",
                "Gini index": f"{rating.gini_index:.3f}",
                "threshold": f"{rating.threshold:.4f}" if np.isfinite(rating.threshold) else "",
            }
            for name, rating in result.ratings.items()
        ],
        title: [
            {
                "values": values,
                "gain": f"{gain:.4f}",
                "expected": f"{expected_gain(values, 2, result.num_rows):.4f}",
                "gain ratio": f"{ratio:.4f}",
                "Gini decrease": f"{decrease:.4f}",
            }
            for values, (gain, ratio, decrease) in zip(
                result.num_values, result.random, strict=True
            )
        ],
    }


def expected_gain(num_values: int, num_classes: int, num_rows: int) -> float:
    """The gain, in bits, of an attribute that has nothing to do with the class, for many rows."""
    return (num_values - 1) * (num_classes - 1) / (2 * num_rows * np.log(2))


def plot(result: Result) -> "Figure":
    """Draw the impurities, the melons' ratings, thresholds, and the random attributes.

    Args:
        result: What `run` returned.

    Returns:
        A figure of four panels.
    """
    import matplotlib.pyplot as plt

    with figures.style():
        figure, axes = plt.subplots(2, 2, figsize=(9, 7))
        _draw_impurity(axes[0, 0])
        _draw_ratings(axes[0, 1], result)
        _draw_thresholds(axes[1, 0], result)
        _draw_random(axes[1, 1], result)
        figure.suptitle("What a question tells, and what it only seems to tell")
    return figure


def _draw_impurity(axes) -> None:
    p = np.linspace(0, 1, 201)
    shares = np.stack([p, 1 - p], axis=1)
    entropy = np.asarray(criteria.entropy(shares))
    axes.plot(p, entropy, label="entropy (bits)")
    axes.plot(p, np.asarray(criteria.gini(shares)), label="Gini value")
    axes.plot(p, np.minimum(p, 1 - p), label="share of the minority")
    # A question sends half of the rows to a share of 0.1 and half to 0.7: the chord's middle.
    ends = np.array([0.1, 0.7])
    height = np.interp(ends, p, entropy)
    axes.plot(ends, height, "o-", color=figures.GREY, ms=4, lw=1.2)
    low, high = height.mean(), np.interp(ends.mean(), p, entropy)
    axes.annotate(
        "",
        (ends.mean(), high),
        (ends.mean(), low),
        arrowprops={"arrowstyle": "<->", "color": figures.GREY},
    )
    axes.text(ends.mean() + 0.02, (low + high) / 2 - 0.03, "gain")
    axes.set(xlabel="share of the class", ylabel="impurity", title="Concave: no chord is above")
    axes.legend(fontsize=7, loc="lower center")


def _english(name: str) -> str:
    return name.split()[0]


def _draw_ratings(axes, result: Result) -> None:
    names = [*result.ratings][:7]
    place = np.arange(len(names))
    looks = (("gain", figures.BLUE, ""), ("gain ratio", figures.OCHRE, "//"))
    for shift, (label, color, hatch) in zip((-0.2, 0.2), looks, strict=True):
        height = [getattr(result.ratings[name], label.replace(" ", "_")) for name in names]
        axes.barh(
            place + shift, height, 0.38, color=color, hatch=hatch, label=label, edgecolor="white"
        )
    axes.set_yticks(place, [_english(name) for name in names])
    axes.invert_yaxis()
    axes.set(xlabel="bits; ratio", ylabel="attribute", title="The melons: a number is no reason")
    axes.legend(fontsize=7, loc="center right")


def _draw_thresholds(axes, result: Result) -> None:
    for (name, (threshold, gain)), marker in zip(result.curves.items(), "os", strict=True):
        (line,) = axes.plot(threshold, gain, marker=marker, ms=4, label=_english(name))
        best = int(gain.argmax())
        axes.annotate(
            f"{gain[best]:.3f} at {threshold[best]:.4g}",
            (threshold[best], gain[best]),
            xytext=(6, 2),
            textcoords="offset points",
            fontsize=8,
            color=line.get_color(),
        )
    axes.set(xlabel="threshold", ylabel="gain (bits)", title="Sixteen questions of each number")
    axes.legend(fontsize=7)


def _draw_random(axes, result: Result) -> None:
    values = np.array(result.num_values)
    for column, label, marker in ((0, "gain", "o"), (1, "gain ratio", "s"), (2, "Gini", "^")):
        axes.plot(values, result.random[:, column], marker=marker, ms=4, label=label)
    expected = [expected_gain(v, 2, result.num_rows) for v in result.num_values]
    axes.plot(values, expected, ":", color=figures.GREY, label="gain, expected")
    axes.set(
        xlabel="values of an attribute drawn at random",
        ylabel="mean over draws",
        title=f"{result.num_rows} rows: what chance seems to tell",
    )
    axes.legend(fontsize=7)
