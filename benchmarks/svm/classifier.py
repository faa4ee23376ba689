"""Support vector machines: kernels against libsvm, the linear one against liblinear.

Work: C-SVC with a Gaussian kernel (gamma "scale") on synthetic data of 2000 to 20 000 rows with 20
and 100 features, half of which matter, in eight clusters, 2 % of the labels wrong; a grid of 16
pairs of C and gamma; the ten digits, one against one; epsilon-SVR; the primal linear machine with
squared hinge on 100 000 rows. Everybody works to a tolerance of 1e-3, ours in float32, libsvm in
float64 with a cache of 1000 MB; the linear ones to the same objective.

Predicted, before the first full run: kernel values are a matrix product and an exponential, ten
times as fast as libsvm's; but each is computed two to five times, as none is kept, and pairs of
duals are chosen as in libsvm, one after the other. So 3 to 5 for the binary fits, more for many
features and small C, less where most duals stay free; 5 or more for the grid, about 2 for the
digits, whose machines are small; 3 for SVR; 20 or more for the linear machine, which needs six
passes over the data.

Came out (`results/svm-classifier-cpu-1thread.json`, one core of a Zen 4): 4.4 in the geometric mean
of the binary fits (4.6 in the run before), from 3.0 (n = 20 000, d = 20, C = 10) to 8.6. Lowest
where many duals stay free and pairs take most of the time. The grid 3.7, less than predicted: with
C = 100 there are up to 43 000 pairs, and they cost 2.5 microseconds each on 2000 rows, half of it
to fetch two rows of the Gram matrix. The digits 1.7: one Gram matrix serves all 45 machines, but a
third of the time is that matrix, in float32 hardly faster than libsvm's. SVR 4.0 to 4.8. The linear
machine 25, where the Hessian of a sixteenth of the rows serves for all steps. At the same
objectives to 1e-6.
"""

import functools
import math
from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits, make_classification, make_regression
from sklearn.svm import SVC, SVR, LinearSVC

from benchmarks.harness import Case, Job, Row
from mlnotes_jax.svm import classifier, kernels, regressor

QUALITY = "objective in float64: dual (kernels, larger is better), primal (linear, smaller is)"

TOL = 1e-3
GRID_C, GRID_GAMMA = (0.1, 1.0, 10.0, 100.0), (0.25, 0.5, 1.0, 2.0)  # gamma times 1 / d


def cases(size: Literal["small", "full"]) -> Iterable[Case]:
    """All the work; on a GPU, n runs from 10 000 to 100 000 instead, against the CPU's libsvm."""
    small = size == "small"
    rows = (400,) if small else (2000, 5000, 10_000, 20_000)
    if jax.default_backend() == "gpu" and not small:
        rows = (10_000, 20_000, 50_000, 100_000)
    for n in rows:
        for d in (20, 100):
            for C in (1.0, 10.0):
                yield _binary(n, d, C)
    yield _grid(300 if small else 2000)
    yield _digits()
    for n in (300,) if small else (2000, 5000, 10_000):
        yield _tube(n)
    yield _linear(2000 if small else 100_000)


def summary(rows: list[Row]) -> list[str]:
    """Geometric mean and the worst of the binary fits, and how their time grows with n."""
    binary = [row for row in rows if row.case.startswith("SVC")]
    mean = math.exp(sum(math.log(row.ratio) for row in binary) / len(binary))
    lines = [f"binary fits: geometric mean {mean:.2f}, worst {min(r.ratio for r in binary):.2f}"]
    groups: dict[str, list[Row]] = {}
    for row in binary:
        groups.setdefault(row.case.partition(", ")[2], []).append(row)
    for name, group in groups.items():
        if len(group) > 1:
            n = np.log([float(row.case.split()[3]) for row in group])
            ours = np.polyfit(n, np.log([row.ours_s for row in group]), 1)[0]
            peer = np.polyfit(n, np.log([row.peer_s for row in group]), 1)[0]
            lines.append(f"{name}: time grows like n^{ours:.2f}, the peer's like n^{peer:.2f}")
    return lines


@functools.cache
def _data(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = make_classification(
        n,
        d,
        n_informative=d // 2,
        n_redundant=0,
        n_clusters_per_class=4,
        flip_y=0.02,
        random_state=0,
    )
    return ((x - x.mean(0)) / x.std(0)).astype(np.float32), y.astype(np.int32)


def _dual_objective(x: np.ndarray, linear: np.ndarray, beta: np.ndarray, gamma: float) -> float:
    """The objective, p'beta - beta'K beta / 2 over the support vectors, in float64."""
    used = beta != 0
    z, b = x[used].astype(float), beta[used].astype(float)
    norms = np.square(z).sum(1)
    total = 0.0
    for k in range(0, len(z), 1000):
        part = slice(k, k + 1000)
        squares = norms[part, None] + norms - 2 * z[part] @ z.T
        total += b[part] @ np.exp(-gamma * np.maximum(squares, 0)) @ b
    return float(linear[used] @ b - total / 2)


def _ready(fit: Any, *arguments: Any) -> Any:
    """Compile a fit of arrays, all of them arguments, and return it ready to be timed."""
    arrays = jax.tree.map(jnp.asarray, arguments)
    compiled = jax.jit(fit).lower(*arrays).compile()
    return lambda: jax.block_until_ready(compiled(*arrays))


def _binary(n: int, d: int, C: float) -> Case:
    x, y = _data(n, d)
    gamma = 1 / (d * float(x.var()))
    signs = 2.0 * y - 1

    def fit(x: jax.Array, y: jax.Array, C: jax.Array) -> Any:
        kernel = kernels.gaussian("scale")
        return classifier.fit(x, y, kernel=kernel, C=C, num_classes=2, tol=TOL)

    def ours(model: classifier.SVC) -> float:
        assert model.converged.all(), "ours did not converge"
        return _dual_objective(x, signs, np.asarray(model.dual_coef[0]), gamma)

    def theirs(model: SVC) -> float:
        beta = np.zeros(n)
        beta[model.support_] = model.dual_coef_[0]
        return _dual_objective(x, signs, beta, gamma)

    def libsvm() -> Any:
        return lambda: SVC(C=C, gamma=gamma, tol=TOL, cache_size=1000).fit(x, y)

    return Case(
        f"SVC, n = {n} rows, d = {d}, C = {C:g}",
        Job(lambda: _ready(fit, x, y, C), ours),
        {"libsvm": Job(libsvm, theirs)},
    )


def _grid(n: int) -> Case:
    x, y = _data(n, 20)
    settings = [(C, gamma / 20) for gamma in GRID_GAMMA for C in GRID_C]
    signs = 2.0 * y - 1

    def fit(x: jax.Array, y: jax.Array, C: jax.Array, gamma: jax.Array) -> Any:
        def one(C: jax.Array, gamma: jax.Array) -> Any:
            kernel = kernels.gaussian(gamma)
            return classifier.fit(x, y, kernel=kernel, C=C, num_classes=2, tol=TOL)

        # The costs inside: those of one gamma share its Gram matrix.
        return jax.vmap(jax.vmap(one, (0, None)), (None, 0))(C, gamma)

    def ours(model: classifier.SVC) -> float:
        duals = np.asarray(model.dual_coef[..., 0, :]).reshape(len(settings), n)
        return sum(
            _dual_objective(x, signs, beta, gamma)
            for beta, (_, gamma) in zip(duals, settings, strict=True)
        )

    def theirs(models: list[SVC]) -> float:
        total = 0.0
        for model, (_, gamma) in zip(models, settings, strict=True):
            beta = np.zeros(n)
            beta[model.support_] = model.dual_coef_[0]
            total += _dual_objective(x, signs, beta, gamma)
        return total

    def libsvm() -> Any:
        def run() -> list[SVC]:
            return [
                SVC(C=C, gamma=gamma, tol=TOL, cache_size=1000).fit(x, y) for C, gamma in settings
            ]

        return run

    axes = np.asarray(GRID_C, np.float32), np.asarray(GRID_GAMMA, np.float32) / 20
    return Case(
        f"grid of {len(settings)} (C, gamma), n = {n}, d = 20",
        Job(lambda: _ready(fit, x, y, *axes), ours),
        {"libsvm": Job(libsvm, theirs)},
    )


def _digits() -> Case:
    data, y = load_digits(return_X_y=True)
    x = (data / 16).astype(np.float32)
    gamma = 1 / (64 * float(x.var()))
    pairs = [(a, b) for a in range(10) for b in range(a + 1, 10)]

    def objective(duals: np.ndarray) -> float:
        return sum(
            _dual_objective(x, np.where(y == a, 1.0, -1.0), beta, gamma)
            for (a, _), beta in zip(pairs, duals, strict=True)
        )

    def libsvm_duals(model: SVC) -> np.ndarray:
        """Row a of libsvm's table holds the duals of class a's rows against each other class."""
        duals = np.zeros((len(pairs), len(y)))
        for m, (a, b) in enumerate(pairs):
            for mine, other in ((a, b - 1), (b, a)):
                columns = y[model.support_] == mine
                duals[m, model.support_[columns]] = model.dual_coef_[other, columns]
        return duals

    def ours() -> Any:
        rows, labels, kernel = jnp.asarray(x), jnp.asarray(y), kernels.gaussian("scale")
        # Not under jit: the number of rows of a pair is then known, and the fit compiles for it.
        run = functools.partial(classifier.fit, kernel=kernel, num_classes=10, tol=TOL)
        jax.block_until_ready(run(rows, labels))
        return lambda: jax.block_until_ready(run(rows, labels))

    return Case(
        f"digits, {len(pairs)} machines one against one",
        Job(ours, lambda model: objective(np.asarray(model.dual_coef))),
        {
            "libsvm": Job(
                lambda: lambda: SVC(gamma=gamma, tol=TOL, cache_size=1000).fit(x, y),
                lambda model: objective(libsvm_duals(model)),
            )
        },
    )


def _tube(n: int) -> Case:
    x, y = make_regression(n, 20, n_informative=10, noise=10.0, random_state=0)
    x, y = x.astype(np.float32), ((y - y.mean()) / y.std()).astype(np.float32)
    gamma = 1 / (20 * float(x.var()))

    def fit(x: jax.Array, y: jax.Array) -> Any:
        return regressor.fit(x, y, kernel=kernels.gaussian("scale"), epsilon=0.1, tol=TOL)

    def objective(beta: np.ndarray) -> float:
        return _dual_objective(x, y.astype(float), beta, gamma) - 0.1 * float(np.abs(beta).sum())

    def theirs(model: SVR) -> float:
        beta = np.zeros(n)
        beta[model.support_] = model.dual_coef_[0]
        return objective(beta)

    return Case(
        f"SVR, n = {n} rows, d = 20, C = 1",
        Job(
            lambda: _ready(fit, x, y),
            lambda model: objective(np.asarray(model.dual_coef)),
        ),
        {
            "libsvm": Job(
                lambda: lambda: SVR(gamma=gamma, tol=TOL, cache_size=1000).fit(x, y), theirs
            )
        },
    )


def _linear(n: int) -> Case:
    x, y = make_classification(n, 50, n_informative=20, flip_y=0.05, random_state=0)
    x = np.column_stack([(x - x.mean(0)) / x.std(0), np.ones(n)]).astype(np.float32)
    y = y.astype(np.int32)
    signs = 2.0 * y - 1

    # liblinear penalises the intercept; so a column of ones takes its place, for both.
    def fit(x: jax.Array, y: jax.Array) -> Any:
        return classifier.fit_linear(x, y, num_classes=2, fit_intercept=False)

    def objective(w: np.ndarray) -> float:
        margins = np.maximum(0, 1 - signs * (x.astype(float) @ w.astype(float)))
        return float(w @ w / 2 + np.square(margins).sum())

    def liblinear() -> Any:
        machine = {"loss": "squared_hinge", "fit_intercept": False, "random_state": 0}
        return lambda: LinearSVC(**machine, dual=False).fit(x, y)

    return Case(
        f"linear, squared hinge, n = {n} rows, d = 50",
        Job(lambda: _ready(fit, x, y), lambda model: objective(np.asarray(model.coef[0]))),
        {
            "LinearSVC, primal": Job(liblinear, lambda model: objective(model.coef_[0])),
        },
    )
