"""How often a measured error deceives, against what a bound allows.

Pictures of two classes are told apart by one number, how many of their pixels are on an edge, and
one threshold on it. All pictures together are the large set; thousands of small training sets are
drawn from it. How often is the loss of some threshold off by epsilon or more? Then thousands of
models that guess at random: how good does the luckiest look, and how good is it?
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import _pictures, figures, progress
from mlnotes_jax.generalization import bounds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CLASSES", "Problem", "Result", "plot", "problem", "run", "tables"]

#: The two classes that are told apart, of each set of pictures, unless said otherwise.
CLASSES = {"digits": (0, 1), "fashion-mnist": (7, 9)}
NUM_CURVES = 40
WORDS = (4, 6)  # of 32 labels each: validation and test set of the guessing models


class Problem(NamedTuple):
    """Two classes of pictures, as one number each.

    Attributes:
        pictures: Grey pictures, shape `(n, height, width)`.
        feature: Edge counts, shape `(n,)`.
        y: Classes 0 and 1; 1 is the class with more edges, shape `(n,)`.
        thresholds: All that make a difference, shape `(num_hypotheses,)`.
        names: Of class 0 and class 1.
        source: Where the pictures come from.
    """

    pictures: Float[np.ndarray, "n h w"]
    feature: Int[Array, " n"]
    y: Int[Array, " n"]
    thresholds: Float[Array, " num_hypotheses"]
    names: tuple[str, str]
    source: datasets.Source


class Result(NamedTuple):
    r"""What `run` found.

    Attributes:
        source: The pictures.
        names: Of the two classes.
        feature: Edge counts of all pictures.
        y: Their classes.
        thresholds: The hypotheses.
        best: The fit to all pictures.
        epsilon: The deviation that is called bad.
        example_size: Rows of the training sets of `curves` and `example`.
        curves: Losses of all thresholds on some training sets, shape `(40, num_hypotheses)`.
        example: Many training sets of this size.
        num_draws: How many training sets of each size.
        sizes: Numbers of rows.
        single_rate: How often $h^{\text{all}}$ was off by `epsilon` or more, for each size.
        single_exact: The probability of that, from the binomial distribution.
        single_bound: Hoeffding's bound.
        any_rate: How often some threshold was off by `epsilon` or more.
        any_bound: The union bound.
        broken: Share of all draws in which the excess of $h^{\text{train}}$ was above twice the
            deviation: it must be 0.
        counts: Sizes of hypothesis sets.
        count_losses: For each: the lowest loss on all pictures, the mean of $L(h^{\text{train}},
            D_{\text{train}})$, the mean of $L(h^{\text{train}}, D_{\text{all}})$, and the mean
            deviation, shape `(len(counts), 4)`.
        count_size: Rows of the training sets for this.
        models: Numbers of guessing models.
        lucky_validation: Accuracy of the best of them on the validation set: mean over repeats.
        lucky_test: The same model's accuracy on the test set: mean over repeats.
        lucky_error: Standard errors of both, shape `(len(models), 2)`.
        lucky_exact: `expected_best`.
        lucky_bound: `expected_best_bound`.
        num_validation: Rows of the validation set.
    """

    source: datasets.Source
    names: tuple[str, str]
    feature: Array
    y: Array
    thresholds: Array
    best: bounds.ThresholdFit
    epsilon: float
    example_size: int
    curves: Array
    example: bounds.TrainingDraws
    num_draws: int
    sizes: tuple[int, ...]
    single_rate: np.ndarray
    single_exact: np.ndarray
    single_bound: np.ndarray
    any_rate: np.ndarray
    any_bound: np.ndarray
    broken: float
    counts: np.ndarray
    count_losses: np.ndarray
    count_size: int
    models: np.ndarray
    lucky_validation: np.ndarray
    lucky_test: np.ndarray
    lucky_error: np.ndarray
    lucky_exact: np.ndarray
    lucky_bound: np.ndarray
    num_validation: int


def problem(
    key: Key[Array, ""],
    *,
    data: _pictures.Name = "digits",
    data_dir: Path | None = None,
    classes: tuple[int, int] | None = None,
    sharpness: float = 0.15,
) -> Problem:
    """Load the pictures of two classes and count their edges.

    Args:
        key: Not used for more than the order of the rows.
        data: Which pictures.
        data_dir: Folder of Fashion-MNIST.
        classes: Which two classes; by default those of `CLASSES`.
        sharpness: Slope from which on a pixel is on an edge, in brightness per pixel.

    Returns:
        Pictures, edge counts, classes, thresholds.

    Raises:
        ValueError: The classes are equal or do not exist.
    """
    loaded = _pictures.load(key, data, data_dir=data_dir)
    first, second = classes or CLASSES[data]
    num_classes = len(loaded.class_names)
    if first == second or not {first, second} <= set(range(num_classes)):
        raise ValueError(f"classes must be two of 0..{num_classes - 1}, got {first}, {second}")
    x = np.concatenate([loaded.x_train, loaded.x_test])[..., 0]
    y = np.concatenate([loaded.y_train, loaded.y_test])
    chosen = (y == first) | (y == second)
    x, label = x[chosen], y[chosen] == second
    feature = jax.jit(bounds.edge_count)(x, sharpness=sharpness)
    # The class with more edges is class 1, so that "at least" is the right way round.
    counts = np.asarray(feature)
    if counts[label].mean() < counts[~label].mean():
        first, second, label = second, first, ~label
    return Problem(
        pictures=x,
        feature=feature,
        y=jnp.asarray(label, jnp.int32),
        thresholds=jnp.arange(x[0].size + 2, dtype=jnp.float32),
        names=(str(loaded.class_names[first]), str(loaded.class_names[second])),
        source=loaded.source,
    )


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    data: _pictures.Name = "digits",
    data_dir: Path | None = None,
    classes: tuple[int, int] | None = None,
    sharpness: float = 0.15,
    epsilon: float = 0.1,
    num_draws: int = 4000,
    num_repeats: int = 200,
) -> Result:
    """Draw training sets of many sizes, and let random models compete.

    Args:
        key: Draws training sets and guesses.
        quick: A quarter of the draws and repeats, and fewer sizes.
        data: Which pictures.
        data_dir: Folder of Fashion-MNIST.
        classes: Which two classes to tell apart.
        sharpness: Slope from which on a pixel is on an edge, in brightness per pixel.
        epsilon: The deviation that is called bad.
        num_draws: Training sets of each size.
        num_repeats: How often the random models compete.

    Returns:
        Rates, bounds and losses.
    """
    if quick:
        num_draws, num_repeats = max(1, num_draws // 4), max(2, num_repeats // 4)
    load_key, curve_key, draw_key, count_key, guess_key = jax.random.split(key, 5)
    chosen = problem(load_key, data=data, data_dir=data_dir, classes=classes, sharpness=sharpness)
    feature, y, thresholds = chosen.feature, chosen.y, chosen.thresholds
    sizes = (25, 50, 100, 200, 400) if quick else (25, 50, 100, 200, 400, 800)

    # All sizes in one program; in chunks, so that long training sets do not need much memory.
    n = jnp.asarray(sizes)
    chunks = jax.random.split(draw_key, 8)
    parts: list[Any] = [
        jax.device_get(
            _draw(chunk, feature, y, thresholds, n, sizes[-1], max(1, num_draws // len(chunks)))
        )
        for chunk in progress.track(list(chunks), "training sets")
    ]
    drawn: list[Any] = [np.concatenate([part[i] for part in parts], axis=1) for i in range(1, 6)]
    draws = bounds.TrainingDraws(jax.tree.map(lambda leaf: leaf[0], parts[0].best), *drawn)
    best, num_draws = draws.best, draws.deviation.shape[1]
    single = np.mean(draws.single_deviation >= epsilon, axis=1)
    every = np.mean(draws.deviation >= epsilon, axis=1)
    # Rounding: three sums of n numbers k/n in float32.
    broken = (draws.all_loss - best.loss > 2 * draws.deviation + 1e-5).mean()

    shown, count_size = 2, 25
    example_size = sizes[shown]
    curves = _curves(curve_key, feature, y, thresholds, example_size)
    counts = 2 ** np.arange(1, 1 + int(np.log2(len(thresholds))))
    grids = np.stack([
        np.resize(np.linspace(0, float(thresholds[-1]), m + 1)[:-1].round(), counts[-1])
        for m in counts
    ])  # fmt: skip
    by_count = _by_count(
        count_key, feature, y, jnp.asarray(grids, jnp.float32), count_size, num_draws
    )

    order = np.asarray(jax.random.permutation(load_key, len(y)))
    packed = np.packbits(np.asarray(y, np.uint8)[order][: 32 * sum(WORDS)]).view(np.uint32)
    models = 2 ** np.arange(0, 11 if quick else 13)
    validation, test = _lucky(
        jax.random.split(guess_key, num_repeats),
        jnp.asarray(packed[: WORDS[0]]),
        jnp.asarray(packed[WORDS[0] :]),
        jnp.asarray(models, jnp.int32),
        int(models[-1]),
    )
    num_validation = 32 * WORDS[0]
    scores = np.stack([validation, test], axis=-1)
    return Result(
        source=chosen.source,
        names=chosen.names,
        feature=feature,
        y=y,
        thresholds=thresholds,
        best=best,
        epsilon=epsilon,
        example_size=example_size,
        curves=curves,
        example=bounds.TrainingDraws(best, *(leaf[shown] for leaf in draws[1:])),
        num_draws=num_draws,
        sizes=sizes,
        single_rate=single,
        single_exact=np.array([_binomial_tail(m, float(best.loss), epsilon) for m in sizes]),
        single_bound=np.asarray(bounds.hoeffding(n, epsilon)),
        any_rate=every,
        any_bound=np.asarray(bounds.union(len(thresholds), n, epsilon)),
        broken=float(broken),
        counts=counts,
        count_losses=np.asarray(by_count),
        count_size=count_size,
        models=models,
        lucky_validation=scores[..., 0].mean(axis=0),
        lucky_test=scores[..., 1].mean(axis=0),
        lucky_error=scores.std(axis=0, ddof=1) / num_repeats**0.5,
        lucky_exact=np.asarray(_expected(jnp.asarray(models, jnp.float32), num_validation)),
        lucky_bound=np.asarray(bounds.expected_best_bound(models, num_validation)),
        num_validation=num_validation,
    )


@partial(jax.jit, static_argnames=("capacity", "num_draws"))
def _draw(
    key: Array,
    feature: Array,
    y: Array,
    thresholds: Array,
    sizes: Array,
    capacity: int,
    num_draws: int,
) -> bounds.TrainingDraws:
    """For each size its draws; a longer training set begins with the shorter one."""
    return jax.vmap(
        lambda n: bounds.draw_training_sets(
            key, feature, y, thresholds, n=n, capacity=capacity, num_draws=num_draws
        )
    )(sizes)


@partial(jax.jit, static_argnames="n")
def _curves(key: Array, feature: Array, y: Array, thresholds: Array, n: int) -> Array:
    rows = jax.random.randint(key, (NUM_CURVES, n), 0, len(y))
    return jax.vmap(lambda row: bounds.threshold_losses(feature[row], y[row], thresholds))(rows)


@partial(jax.jit, static_argnames=("n", "num_draws"))
def _by_count(key: Array, feature: Array, y: Array, grids: Array, n: int, num_draws: int) -> Array:
    def one(thresholds: Array) -> Array:
        found = bounds.draw_training_sets(key, feature, y, thresholds, n=n, num_draws=num_draws)
        means = (found.train_loss.mean(), found.all_loss.mean(), found.deviation.mean())
        return jnp.stack([found.best.loss, *means])

    return jax.lax.map(one, grids)


@partial(jax.jit, static_argnames="num_models")
def _lucky(
    keys: Array, validation: Array, test: Array, models: Array, num_models: int
) -> tuple[Array, Array]:
    """Accuracy on both sets of the best of the first m models, each a row of random bits."""

    def one(key: Array) -> tuple[Array, Array]:
        validation_key, test_key = jax.random.split(key)
        guesses = jax.random.bits(validation_key, (num_models, len(validation)), jnp.uint32)
        right = _agreement(guesses, validation[None])
        # The best so far, and the first of equals, in one number.
        leader = jax.lax.cummax(right * num_models + jnp.arange(num_models)[::-1])[models - 1]
        winners = num_models - 1 - leader % num_models

        def judge(model: Array) -> Array:  # each model has its own guesses, drawn when needed
            guess = jax.random.bits(jax.random.fold_in(test_key, model), test.shape, jnp.uint32)
            return _agreement(guess, test)

        return leader // num_models, jax.vmap(judge)(winners)

    right, judged = jax.vmap(one)(keys)
    return right / (32 * len(validation)), judged / (32 * len(test))


@partial(jax.jit, static_argnames="n")
def _expected(models: Array, n: int) -> Array:
    return jax.vmap(lambda m: bounds.expected_best(m, n))(models)


def _agreement(guess: Array, truth: Array) -> Array:
    """The number of equal bits."""
    return jax.lax.population_count(~(guess ^ truth)).sum(axis=-1, dtype=jnp.int32)


def _binomial_tail(n: int, p: float, epsilon: float) -> float:
    """P(|K / n - p| >= epsilon) for a binomial K."""
    from scipy import stats

    k = np.arange(n + 1)
    return float(stats.binom.pmf(k, n, p)[np.abs(k / n - p) >= epsilon].sum())


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture."""
    return {
        f"{result.names[0]} or {result.names[1]}, by their edges": [
            {
                "pictures": len(result.y),
                "hypotheses": len(result.thresholds),
                "h_all": int(result.best.threshold),
                "L(h_all, D_all)": round(float(result.best.loss), 4),
                f"rows needed for {result.epsilon:g}": bounds.sample_size(
                    len(result.thresholds), result.epsilon, 0.05
                ),
            }
        ],
        f"How often off by {result.epsilon:g} or more, in {result.num_draws} draws": [
            {
                "rows": n,
                "h_all alone": float(result.single_rate[i]),
                "exact": float(f"{result.single_exact[i]:.3g}"),
                "Hoeffding": float(f"{result.single_bound[i]:.3g}"),
                "any h": float(result.any_rate[i]),
                "union bound": float(f"{result.any_bound[i]:.3g}"),
            }
            for i, n in enumerate(result.sizes)
        ],
        f"How many hypotheses? {result.count_size} rows, means": [
            {
                "hypotheses": int(count),
                "L(h_all, D_all)": round(float(row[0]), 4),
                "L(h_train, D_train)": round(float(row[1]), 4),
                "L(h_train, D_all)": round(float(row[2]), 4),
                "deviation": round(float(row[3]), 4),
            }
            for count, row in zip(result.counts, result.count_losses, strict=True)
        ],
        f"Best of M guessing models on {result.num_validation} rows": [
            {
                "models": int(count),
                "validation": round(float(result.lucky_validation[i]), 4),
                "expected": round(float(result.lucky_exact[i]), 4),
                "bound": round(float(result.lucky_bound[i]), 4),
                "test": round(float(result.lucky_test[i]), 4),
            }
            for i, count in enumerate(result.models)
            if i % 2 == 0
        ],
    }


def plot(result: Result) -> "Figure":
    """Draw edge counts, losses, how often they deceive, and the luck of many models."""
    import matplotlib.pyplot as plt

    with figures.style():
        figure, axes = plt.subplots(2, 3, figsize=(9.5, 6))
        counts, loss, histogram, rates, trade, luck = axes.ravel()
        feature, y = np.asarray(result.feature), np.asarray(result.y)
        bins = np.histogram_bin_edges(feature, bins=min(30, int(np.ptp(feature)) + 1))
        for label, (name, color, hatch) in enumerate(
            zip(result.names, (figures.BLUE, figures.VERMILLION), ("//", ".."), strict=True)
        ):
            counts.hist(feature[y == label], bins, alpha=0.5, color=color, hatch=hatch, label=name)
        counts.axvline(
            float(result.best.threshold), color=figures.GREEN, linestyle="--", label="$h^{all}$"
        )
        counts.set(xlabel="edge pixels", ylabel="pictures", title="One number for a picture")
        counts.legend(fontsize="small")

        for curve in np.asarray(result.curves):
            loss.plot(result.thresholds, curve, "-", color=figures.GREY, alpha=0.4, linewidth=0.7)
        loss.plot(
            result.thresholds, result.best.losses, "-", color=figures.VERMILLION, label="$D_{all}$"
        )
        loss.plot([], [], "-", color=figures.GREY, linewidth=0.7, label="$D_{train}$")
        loss.set(
            xlabel="threshold h", ylabel="L(h, D)", title=f"{result.example_size} rows each",
            xlim=(feature.min() - 1, feature.max() + 2),
        )  # fmt: skip
        loss.legend(fontsize="small")

        train, everywhere = (np.asarray(a) for a in result.example[2:4])
        # One bar for each value that a mean of n zeros and ones can have.
        step = max(1, round(result.example_size / 50)) / result.example_size
        edges = np.arange(train.min() - step / 2, max(train.max(), everywhere.max()) + step, step)
        for values, color, hatch, label in (
            (train, figures.BLUE, "//", "$L(h^{train}, D_{train})$"),
            (everywhere, figures.VERMILLION, "..", "$L(h^{train}, D_{all})$"),
        ):
            histogram.hist(values, edges, alpha=0.5, color=color, hatch=hatch, label=label)
        histogram.axvline(
            float(result.best.loss), color=figures.GREEN, linestyle="--",
            label="$L(h^{all}, D_{all})$",
        )  # fmt: skip
        histogram.set(
            xlabel="loss", ylabel="training sets", title=f"{result.num_draws} training sets"
        )
        histogram.legend(fontsize="small")

        for values, style, color, label in (
            (result.any_bound, "-", figures.VERMILLION, "union bound"),
            (result.any_rate, "o--", figures.VERMILLION, "any h, measured"),
            (result.single_bound, "-", figures.BLUE, "Hoeffding"),
            (result.single_exact, "-.", figures.BLUE, "$h^{all}$, exact"),
            (result.single_rate, "s", figures.BLUE, "$h^{all}$, measured"),
        ):
            shown = np.where(values > 0, values, np.nan)  # a rate of 0 has no logarithm
            rates.loglog(result.sizes, shown, style, color=color, label=label, markersize=4)
        rates.axhline(1, color=figures.GREY, linestyle=":")
        rates.set(
            xlabel="training rows", ylabel="probability", ylim=(0.3 / result.num_draws, 1e6),
            title=f"Off by {result.epsilon:g} or more",
        )  # fmt: skip
        rates.legend(fontsize="small", loc="upper right")

        for column, style, label in (
            (1, "o-", "$L(h^{train}, D_{train})$"),
            (2, "s--", "$L(h^{train}, D_{all})$"),
            (0, "D:", "$L(h^{all}, D_{all})$"),
            (3, "^-.", "deviation"),
        ):
            trade.plot(
                result.counts, result.count_losses[:, column], style, markersize=4, label=label
            )
        trade.set(
            xscale="log", xlabel="hypotheses", ylabel="mean", ylim=(0, None),
            title=f"How many? {result.count_size} rows",
        )  # fmt: skip
        trade.legend(fontsize="small")

        luck.plot(result.models, result.lucky_bound, ":", color=figures.GREY, label="bound")
        luck.plot(result.models, result.lucky_exact, "-", color=figures.BLUE, label="expected")
        luck.plot(
            result.models, result.lucky_validation, "o", color=figures.BLUE, markersize=4,
            label="validation",
        )  # fmt: skip
        luck.plot(
            result.models, result.lucky_test, "s--", color=figures.VERMILLION, markersize=4,
            label="test",
        )  # fmt: skip
        luck.set(
            xscale="log", xlabel="models tried", ylabel="accuracy of the best",
            title="Nothing but luck",
        )  # fmt: skip
        luck.legend(fontsize="small")
        rates.set_xticks(result.sizes, [str(n) for n in result.sizes], minor=False)
        trade.set_xticks(result.counts, [str(n) for n in result.counts], minor=False)
        for panel in (rates, trade):
            panel.tick_params(which="minor", bottom=False, labelbottom=False)
    return figure
