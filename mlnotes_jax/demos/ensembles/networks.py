"""Five ways to more than one network, what each adds, and one small network taught by many.

Few labelled pictures, so that a single network leaves something to gain. Members come from other
initialisations, from a search over learning rates, and from checkpoints of one run with a cyclic
and with a constant rate; a running average of the parameters is compared with the last ones. Then
small networks learn from the ensemble, at several temperatures, and with pictures that have no
label.
"""

import functools
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import _pictures, figures, progress
from mlnotes_jax.ensembles import networks
from mlnotes_jax.foundations import losses
from mlnotes_jax.nets.mlp import MLP
from mlnotes_jax.optimization import adam, averaging, schedules
from mlnotes_jax.training import loop

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Problem", "Result", "Student", "Way", "plot", "problem", "run", "tables"]

BATCH = 16
HIDDEN, STUDENT_HIDDEN = 32, 8
MEMBERS, CYCLES = 8, 5
MOMENTUM = 0.9


class Problem(NamedTuple):
    """Pictures as rows of pixels in [0, 1], and their classes, in four parts.

    Attributes:
        x: Part -> pixels, shape `(n, d)`. Networks are fitted to `"train"`, `"validation"` chooses
            among those of a search, the classes of `"unlabelled"` are not used, `"test"` judges.
        y: Part -> classes, shape `(n,)`.
        source: Where they come from.
    """

    x: dict[str, Float[np.ndarray, "n d"]]
    y: dict[str, Int[np.ndarray, " n"]]
    source: datasets.Source


class Way(NamedTuple):
    """Ensembles of one kind, of 1, 2, … members; measured on the test pictures.

    Attributes:
        name: In a few words.
        num_runs: How many networks were trained for the largest ensemble.
        accuracy: By size, shape `(sizes,)`. Of other starts, the mean over all subsets; of a
            search, the best so many; of checkpoints, the latest so many, the mean over runs.
        log_loss: Likewise, in nats.
        brier: Likewise: the squared error of the probabilities.
        member_accuracy: The mean over the members of the largest ensemble.
        disagreement: How often two of them name different classes.
    """

    name: str
    num_runs: int
    accuracy: np.ndarray
    log_loss: np.ndarray
    brier: np.ndarray
    member_accuracy: float
    disagreement: float


class Student(NamedTuple):
    """Small networks that were taught in one way.

    Attributes:
        teacher: `"labels"`, `"ensemble"`, or `"ensemble, more pictures"`.
        temperature: Of the soft targets; NaN for labels.
        accuracy: On the test pictures, one for each student.
        agreement: How often each names the class that the ensemble names.
        gap: Mean KL divergence from the ensemble's probabilities to each student's, in nats.
    """

    teacher: str
    temperature: float
    accuracy: np.ndarray
    agreement: np.ndarray
    gap: np.ndarray


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The data.
        num_rows: Of each part.
        widths: Of the members.
        student_widths: Of the students.
        ways: The ways to get members.
        expected_brier: What `error_by_size` predicts for the other starts, shape `(sizes,)`.
        averages: Kind of average -> accuracy and log-loss of the ensemble of all other starts.
        running: What of one run -> mean accuracy and mean log-loss: the last parameters of runs
            with a constant rate, and their exponential moving average.
        merged: Accuracy of networks whose *parameters* were averaged: over other starts, and over
            the snapshots of one run (the mean over runs).
        students: The students.
        teacher_accuracy: Of the ensemble that taught them.
        rates: The learning rates of the search.
        validation_loss: Of the networks of the search.
    """

    source: datasets.Source
    num_rows: dict[str, int]
    widths: tuple[int, ...]
    student_widths: tuple[int, ...]
    ways: tuple[Way, ...]
    expected_brier: np.ndarray
    averages: dict[str, tuple[float, float]]
    running: dict[str, tuple[float, float]]
    merged: dict[str, float]
    students: tuple[Student, ...]
    teacher_accuracy: float
    rates: np.ndarray
    validation_loss: np.ndarray


def problem(
    key: Key[Array, ""], *, data: _pictures.Name = "digits", data_dir: Path | None = None
) -> Problem:
    """Read the pictures and divide them.

    Args:
        key: Draws the parts.
        data: Which pictures: of 1797 digits 15 % are for training, 10 % for validation, 25 % lose
            their labels and half is for testing; of Fashion-MNIST 2000, 1000 and 5000 of the
            training pictures, and all test pictures.
        data_dir: Folder of Fashion-MNIST.

    Returns:
        The parts.
    """
    if data == "digits":
        digits = datasets.load("digits")
        pixels, labels, source = (digits.x / 16).astype(np.float32), digits.y, digits.source
        rows = datasets.split(key, labels, (0.15, 0.1, 0.25, 0.5))
        tested = [(pixels[part], labels[part]) for part in rows]
    else:
        pictures = _pictures.load(key, data, data_dir=data_dir)
        x, y, source = pictures.x_train, pictures.y_train, pictures.source
        order = np.asarray(jax.random.permutation(key, len(y)))
        parts = np.split(order, [2000, 3000, 8000])[:3]
        tested = [(x[part].reshape(len(part), -1), y[part]) for part in parts]
        tested.append((pictures.x_test.reshape(len(pictures.x_test), -1), pictures.y_test))
    names = ("train", "validation", "unlabelled", "test")
    return Problem(
        {name: x for name, (x, _) in zip(names, tested, strict=True)},
        {name: y for name, (_, y) in zip(names, tested, strict=True)},
        source,
    )


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    data: _pictures.Name = "digits",
    data_dir: Path | None = None,
    num_epochs: int = 40,
) -> Result:
    """Train members in every way, then students of the ensemble of other starts.

    Args:
        key: Draws the parts, the initialisations, the rates of the search and the orders of rows.
        quick: Half of the epochs, fewer students, and one temperature.
        data: Which pictures. Fashion-MNIST takes minutes on a CPU.
        data_dir: Folder of Fashion-MNIST.
        num_epochs: Passes over the training pictures of each run.

    Returns:
        Curves, gains and gaps.
    """
    split_key, seed_key, rate_key, student_key = jax.random.split(key, 4)
    pictures = problem(split_key, data=data, data_dir=data_dir)
    num_epochs = max(1, num_epochs // (2 * CYCLES if quick else CYCLES)) * CYCLES
    rate, low, high = (0.15, 0.01, 0.3) if data == "digits" else (0.03, 0.003, 0.1)
    y, parts = pictures.y["test"], tuple(pictures.x)
    rows = np.concatenate([pictures.x[name] for name in parts])
    ends = np.cumsum([len(pictures.y[name]) for name in parts])[:-1]

    def ask(ensemble: networks.Ensemble) -> dict[str, np.ndarray]:
        said = np.asarray(networks.outputs(ensemble, rows, batch_size=len(rows)))
        return dict(zip(parts, np.split(said, ends, axis=1), strict=True))

    # Runs that differ in numbers only are one program. The best of a search are chosen of 2 M.
    sizes = {"seeds": MEMBERS, "constant": MEMBERS, "search": 2 * MEMBERS, "cyclic": MEMBERS}
    kind = np.repeat(list(sizes), list(sizes.values()))
    draws = jax.random.uniform(rate_key, (2 * MEMBERS,), minval=np.log(low), maxval=np.log(high))
    rates = np.full(len(kind), rate, np.float32)
    rates[kind == "search"] = np.exp(draws)
    runs = _runs(
        jax.random.split(seed_key, len(kind)),
        rates,
        np.where(kind == "constant", rates, 0).astype(np.float32),
        kind == "cyclic",
        pictures,
        num_epochs,
    )
    averaged = ask(networks.from_runs(runs))["test"]
    last = runs._replace(params=runs.states.params)
    said = ask(networks.from_runs(last))

    # 1. The ways to get members.
    memory = jax.device_get(runs.states.average[1])

    def checkpoints(name: str) -> np.ndarray:
        lanes = np.flatnonzero(kind == name)
        held = (jax.tree.map(lambda leaf, i=i: leaf[i], memory) for i in lanes)
        model = loop.Bound({}, {}, runs.apply)
        return np.stack([ask(networks.snapshots(model, one))["test"] for one in held])

    seeds, found = said["test"][kind == "seeds"], said["test"][kind == "search"]
    judged = said["validation"][kind == "search"]
    validation_loss = _log_loss(judged, pictures.y["validation"])
    order = np.asarray(networks.best(validation_loss, MEMBERS))
    latest = np.tri(CYCLES)[:, ::-1]
    ways = (
        _way("other starts", MEMBERS, seeds[None], y, _subsets(MEMBERS)),
        _way("best of a search", 2 * MEMBERS, found[order][None], y, np.tri(MEMBERS)),
        _way("checkpoints, cyclic", 1, checkpoints("cyclic"), y, latest),
        _way("checkpoints, constant", 1, checkpoints("constant"), y, latest),
    )

    # 2. What else can be averaged: logits, and parameters.
    averages = {}
    for average in ("probabilities", "logits"):
        together = np.asarray(networks.combine(seeds, average=average))
        averages[average] = _accuracy(together, y), float(_log_loss(together, y))
    constant = {"last": said["test"], "running average": averaged}
    running = {
        name: (
            _accuracy(z[kind == "constant"], y),
            float(_log_loss(z[kind == "constant"], y).mean()),
        )
        for name, z in constant.items()
    }
    alone = jax.device_get(runs.states.params), memory.mean
    ends_at = np.flatnonzero(kind == "cyclic")[0]
    merged = {
        "other starts": jax.tree.map(lambda leaf: leaf[kind == "seeds"].mean(axis=0), alone[0]),
        "snapshots of one run": jax.tree.map(lambda leaf: leaf[ends_at].mean(axis=0), alone[1]),
    }

    # 3. Students.
    taught = {name: z[kind == "seeds"] for name, z in said.items()}
    lessons = [("labels", 1.0)]
    lessons += [("ensemble", t) for t in ((2.0,) if quick else (1.0, 2.0, 4.0, 8.0))]
    lessons += [("ensemble, more pictures", 2.0)]
    keys = jax.random.split(student_key, 6 if quick else 16)
    chances = jax.nn.softmax(seeds)
    return Result(
        source=pictures.source,
        num_rows={name: len(part) for name, part in pictures.y.items()},
        widths=_widths(pictures, HIDDEN),
        student_widths=_widths(pictures, STUDENT_HIDDEN),
        ways=ways,
        expected_brier=np.asarray(
            networks.error_by_size(chances, jax.nn.one_hot(y, 10)).mean(axis=1)
        ),
        averages=averages,
        running=running,
        merged={
            name: _accuracy(
                np.asarray(loop.predict(loop.Bound(one, {}, runs.apply), pictures.x["test"])), y
            )
            for name, one in merged.items()
        },
        students=tuple(
            _students(keys, *lesson, pictures, taught, 2 * num_epochs)
            for lesson in progress.track(lessons, "students")
        ),
        teacher_accuracy=averages["probabilities"][0],
        rates=np.asarray(rates)[kind == "search"],
        validation_loss=validation_loss,
    )


# --- Training -------------------------------------------------------------------------------------


def _widths(pictures: Problem, hidden: int) -> tuple[int, ...]:
    return pictures.x["train"].shape[1], hidden, 10


def _runs(
    keys: Array,
    rates: np.ndarray,
    final: np.ndarray,
    cyclic: np.ndarray,
    pictures: Problem,
    num_epochs: int,
) -> loop.Runs:
    """Runs with a rate that falls along a cosine to another, once or again and again.

    Each remembers an exponential average of its parameters, and its last checkpoints.
    """
    x, y = pictures.x["train"], pictures.y["train"]
    widths, num_steps = _widths(pictures, HIDDEN), len(y) // BATCH
    length = num_epochs // CYCLES * num_steps

    def optimizer(setting: dict[str, Array]) -> optax.GradientTransformation:
        falling = schedules.warm_restarts(
            setting["rate"], first_period=setting["period"], final_rate=setting["final"]
        )
        return optax.sgd(falling, momentum=MOMENTUM)

    ema = averaging.ema(averaging.decay_of_half_life(2.0 * num_steps))
    kept = averaging.snapshots(CYCLES, start=length - 1, every=length)
    period = np.where(cyclic, length, num_epochs * num_steps).astype(np.int32)
    return loop.fit_many(
        keys,
        lambda setting: MLP(widths, rngs=nnx.Rngs(setting["key"])),
        optimizer,
        {"key": keys, "rate": rates, "final": final, "period": period},
        losses.softmax_cross_entropy_with_integer_labels,
        (jnp.asarray(x), jnp.asarray(y)),
        num_epochs=num_epochs,
        batch_size=BATCH,
        average=_both(ema, kept),
    )


def _both(one: averaging.Average, other: averaging.Average) -> averaging.Average:
    """Two averages of one run; the first is what training returns."""

    def init(params: Any) -> Any:
        return one.init(params), other.init(params)

    def update(state: Any, params: Any) -> Any:
        return one.update(state[0], params), other.update(state[1], params)

    def value(state: Any) -> Any:
        return one.value(state[0])

    return averaging.Average(init, update, value)


def _lesson(logits: Array, targets: tuple[Array, Array, Array]) -> Array:
    """A loss whose temperature and weight are data: one program serves all lessons."""
    soft, labels, numbers = targets
    temperature, soft_weight = numbers[0]
    return networks.distillation_loss(
        logits, soft, labels, temperature=temperature, soft_weight=soft_weight
    )


@functools.cache
def _falling(num_steps: int) -> optax.GradientTransformation:
    return adam.adam(schedules.cosine(0.01, num_steps=num_steps))


def _students(
    keys: Array,
    teacher: str,
    temperature: float,
    pictures: Problem,
    taught: dict[str, np.ndarray],
    num_epochs: int,
) -> Student:
    """Small networks from as many starts, the same in all lessons."""
    x, y, z = pictures.x["train"], pictures.y["train"], taught["train"]
    if teacher.endswith("more pictures"):
        x = np.concatenate([x, pictures.x["unlabelled"]])
        y = np.pad(y, (0, len(x) - len(y)))  # not looked at
        z = np.concatenate([z, taught["unlabelled"]], axis=1)
    soft = networks.soft_targets(z, temperature=temperature)
    share = 0.0 if teacher == "labels" else 1.0
    runs = loop.fit_many(
        keys,
        functools.partial(_student, _widths(pictures, STUDENT_HIDDEN)),
        _falling(num_epochs * (len(x) // BATCH)),
        keys,
        _lesson,
        (
            jnp.asarray(x),
            (soft, jnp.asarray(y), jnp.tile(jnp.array([temperature, share]), (len(x), 1))),
        ),
        num_epochs=num_epochs,
        batch_size=BATCH,
    )
    logits = networks.outputs(networks.from_runs(runs), pictures.x["test"])
    together = networks.combine(taught["test"])
    gap = [networks.distillation_loss(one, jnp.exp(together)) for one in logits]
    said = np.asarray(logits.argmax(axis=-1))
    return Student(
        teacher,
        temperature,
        (said == pictures.y["test"]).mean(axis=1),
        (said == np.asarray(together.argmax(axis=-1))).mean(axis=1),
        np.asarray(gap),
    )


def _student(widths: tuple[int, ...], key: Array) -> MLP:
    return MLP(widths, activation=jnp.tanh, rngs=nnx.Rngs(key))


# --- Measuring ------------------------------------------------------------------------------------


def _subsets(num: int) -> np.ndarray:
    """All non-empty subsets, as rows of 0 and 1."""
    return np.array([row for row in itertools.product([0, 1], repeat=num) if any(row)])


def _way(name: str, num_runs: int, logits: np.ndarray, y: np.ndarray, subsets: np.ndarray) -> Way:
    """Measure ensembles: `logits` of shape (repeats, members, n, k), `subsets` of members."""
    chances = np.asarray(jax.nn.softmax(logits))
    sizes = subsets.sum(axis=1).astype(int)
    measures = np.zeros((3, len(chances), len(subsets)))
    truth = np.eye(chances.shape[-1])[y]
    for r, members in enumerate(chances):
        for s, subset in enumerate(subsets):
            p = np.tensordot(subset / sizes[s], members, 1)
            measures[:, r, s] = (
                (p.argmax(axis=1) == y).mean(),
                -np.log(p[np.arange(len(y)), y]).mean(),
                np.square(p - truth).sum(axis=1).mean(),
            )
    by_size = np.stack([measures[:, :, sizes == s].mean(axis=(1, 2)) for s in np.unique(sizes)])
    apart = [networks.disagreement(z) for z in logits]
    accuracy, log_loss, brier = by_size.T
    return Way(
        name, num_runs, accuracy, log_loss, brier, _accuracy(logits, y), float(np.mean(apart))
    )


def _accuracy(logits: np.ndarray, y: np.ndarray) -> float:
    return float((logits.argmax(axis=-1) == y).mean())


def _log_loss(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The mean over rows, for each network."""
    log_p = np.asarray(jax.nn.log_softmax(logits))
    return -log_p[..., np.arange(len(y)), y].mean(axis=-1)


# --- Showing --------------------------------------------------------------------------------------


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture."""
    counts = ", ".join(f"{count} {name}" for name, count in result.num_rows.items())
    ways: list[dict[str, object]] = [
        {
            "members": way.name,
            "runs": way.num_runs,
            "size": len(way.accuracy),
            "a member": f"{way.member_accuracy:.1%}",
            "ensemble": f"{way.accuracy[-1]:.1%}",
            "log-loss": f"{way.log_loss[-1]:.3f}",
            "differ": f"{way.disagreement:.1%}",
        }
        for way in result.ways
    ]
    rows = [(f"{name} of {MEMBERS} starts", *got) for name, got in result.averages.items()]
    rows += [(f"parameters of {name}", got, np.nan) for name, got in result.merged.items()]
    rows += [(f"constant rate, {name}", *got) for name, got in result.running.items()]
    averages: list[dict[str, object]] = [
        {
            "average": name,
            "accuracy": f"{accuracy:.1%}",
            "log-loss": "" if np.isnan(loss) else f"{loss:.3f}",
        }
        for name, accuracy, loss in rows
    ]
    students: list[dict[str, object]] = [
        {
            "taught by": one.teacher,
            "T": "" if one.teacher == "labels" else f"{one.temperature:g}",
            "accuracy": f"{one.accuracy.mean():.1%} ±{_error(one.accuracy):.1%}",
            "agrees": f"{one.agreement.mean():.1%}",
            "KL, nats": f"{one.gap.mean():.3f}",
        }
        for one in result.students
    ]
    return {
        f"Members ({'-'.join(map(str, result.widths))}; {counts})": ways,
        "Averages": averages,
        f"Students ({'-'.join(map(str, result.student_widths))}); "
        f"their teacher has {result.teacher_accuracy:.1%}": students,
    }


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def plot(result: Result) -> "Figure":
    """Draw accuracy and squared error by size, diversity and gain, and the students."""
    import matplotlib.pyplot as plt

    marks = "osD^"
    with figures.style():
        figure, axes = plt.subplots(2, 2, figsize=(9, 7))
        for way, mark in zip(result.ways, marks, strict=True):
            size = np.arange(1, len(way.accuracy) + 1)
            axes[0, 0].plot(size, 100 * way.accuracy, marker=mark, ms=4, label=way.name)
            line = axes[0, 1].plot(size, way.brier, marker=mark, ms=4, label=way.name)[0]
            axes[1, 0].plot(
                100 * way.disagreement, 100 * (way.accuracy[-1] - way.member_accuracy), mark,
                color=line.get_color(), ms=8, label=way.name, linestyle="none",
            )  # fmt: skip
        axes[0, 0].set(xlabel="members", ylabel="test accuracy (%)", title="More members")
        axes[0, 0].legend(fontsize=7)
        s = np.arange(1, len(result.expected_brier) + 1)
        axes[0, 1].plot(
            s, result.expected_brier, "+", color=figures.GREY, ms=10, linestyle="none",
            label="formula, other starts",
        )  # fmt: skip
        axes[0, 1].set(xlabel="members", ylabel="Brier score", title="Squared error falls like 1/s")
        axes[0, 1].legend(fontsize=7, loc=(0.58, 0.5))
        axes[1, 0].axhline(0, color=figures.GREY, lw=1)
        axes[1, 0].set(
            xlabel="pairs of members that differ (%)",
            ylabel="ensemble minus mean member (%)",
            title="Diversity and gain",
        )
        axes[1, 0].legend(fontsize=7)
        _draw_students(axes[1, 1], result)
        figure.suptitle("Networks that differ, their average, and one that learns it")
    return figure


def _draw_students(axes, result: Result) -> None:
    names = []
    for i, one in enumerate(result.students):
        alone = one.teacher == "labels"
        names.append("labels" if alone else f"T = {one.temperature:g}")
        names[-1] += ",\nmore" if one.teacher.endswith("pictures") else ""
        axes.errorbar(
            i, 100 * one.accuracy.mean(), 200 * _error(one.accuracy), fmt="o" if alone else "s",
            color=figures.VERMILLION if alone else figures.BLUE, capsize=3,
        )  # fmt: skip
    axes.axhline(
        100 * result.teacher_accuracy, color=figures.GREEN, linestyle="--", label="the ensemble"
    )
    axes.axhline(
        100 * result.ways[0].accuracy[0], color=figures.GREY, linestyle=":", label="one member"
    )
    axes.set_xticks(range(len(names)), names)
    axes.set(
        xlabel="taught by",
        ylabel="test accuracy (%)",
        title="Small networks (bars: two standard errors)",
    )
    axes.legend(fontsize=7)
