r"""Support vector classification: the widest street between two classes, with any kernel.

For labels $y_i = \pm 1$ and $f(x) = \langle w, \phi(x) \rangle + b$,

$$\min_{w, b}\; \tfrac12 \|w\|^2 + \sum_i c_i \max(0, 1 - y_i f(x_i)), \qquad c_i = C s_i .$$

Its dual has one variable for each row. With the sign of the label in it, $\beta_i = \alpha_i y_i$,

$$\max_\beta\; y^\top \beta - \tfrac12 \beta^\top K \beta
  \quad\text{with}\quad \textstyle\sum_i \beta_i = 0,\; 0 \le y_i \beta_i \le c_i ,$$

and $f(x) = \sum_i \beta_i k(x_i, x) + b$. Rows beyond the edge of the street have $\beta_i = 0$.

Reference: Cortes and Vapnik, *Support-vector networks* (Machine Learning, 1995); Chang and Lin,
*LIBSVM* (2011).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, DTypeLike, Float, Int

from mlnotes_jax import _checks
from mlnotes_jax.generalization._folds import deal
from mlnotes_jax.svm import _linear, _machines, _smo, kernels
from mlnotes_jax.svm._linear import LinearClassifier, fit_linear
from mlnotes_jax.svm._platt import Calibrated, Sigmoid, calibrate, couple, platt, predict_proba

__all__ = [
    "SVC",
    "Calibrated",
    "Certificate",
    "Grid",
    "LinearClassifier",
    "Sigmoid",
    "calibrate",
    "certificate",
    "couple",
    "decision_function",
    "fit",
    "fit_linear",
    "grid",
    "machines",
    "platt",
    "predict",
    "predict_proba",
]

Multiclass = Literal["one_vs_one", "one_vs_rest"]

# Sizes of subproblems are rounded up to a multiple of this, so that programs are used again.
_UNIT = 32


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "kernel",
        "x",
        "dual_coef",
        "intercept",
        "bound",
        "violation",
        "num_iterations",
        "converged",
    ],
    meta_fields=["num_classes", "multiclass", "precomputed"],
)
@dataclasses.dataclass(frozen=True)
class SVC:
    r"""Fitted machines: a pytree of fixed shapes, whatever the number of support vectors.

    Two classes take one machine, whose positive class is 1. One-vs-one takes $k (k - 1) / 2$, for
    the pairs (0, 1), (0, 2), ..., (1, 2), ...; the first of a pair is positive. One-vs-rest takes
    $k$.

    Attributes:
        kernel: $k$, with every `"scale"` replaced by its number; None for a precomputed matrix.
        x: The rows of the fit, shape `(n, d)`; `(n, 0)` for a precomputed matrix.
        dual_coef: $\beta$, shape `(machines, n)`; zero for rows that a machine does not need.
        intercept: $b$, shape `(machines,)`.
        bound: $c_i$, what the error of each row costs, the largest size of $\beta_i$, shape
            `(n,)`.
        violation: How far the optimality conditions are violated, shape `(machines,)`; see
            `Certificate`.
        num_iterations: Pairs of duals changed, shape `(machines,)`.
        converged: Whether `violation` is at most the tolerance, shape `(machines,)`.
        num_classes: k; static.
        multiclass: `"one_vs_one"` or `"one_vs_rest"`; static.
        precomputed: Whether kernel rows take the place of rows; static.
    """

    kernel: Any
    x: Float[Array, "n d"]
    dual_coef: Float[Array, "machines n"]
    intercept: Float[Array, " machines"]
    bound: Float[Array, " n"]
    violation: Float[Array, " machines"]
    num_iterations: Int[Array, " machines"]
    converged: Bool[Array, " machines"]
    num_classes: int
    multiclass: Multiclass
    precomputed: bool

    @property
    def support(self) -> Bool[Array, " n"]:
        """The support vectors: rows that some machine needs, shape `(n,)`."""
        return jnp.any(self.dual_coef != 0, axis=0)


class Certificate(NamedTuple):
    r"""What proves how near each machine is to its optimum, computed from the data.

    Attributes:
        primal: $\tfrac12 \beta^\top K \beta + \sum_i c_i \max(0, 1 - y_i f(x_i))$, shape
            `(machines,)`.
        dual: $y^\top \beta - \tfrac12 \beta^\top K \beta$, shape `(machines,)`.
        gap: `primal - dual`, added up from terms that are not negative, shape `(machines,)`. The
            primal objective is at most so much above its minimum, if the kernel is positive
            semidefinite.
        violation: What raising the best $\beta_i$ and lowering the best $\beta_j$ by one unit each
            would gain, shape `(machines,)`; 0 at the optimum. libsvm stops where this is at most
            its `tol`.
        num_free: Rows on the edge of the street: $0 < |\beta_i| < c_i$, shape `(machines,)`.
        num_bound: Rows with $|\beta_i| = c_i > 0$, inside of the street or beyond, shape
            `(machines,)`.
    """

    primal: Float[Array, " machines"]
    dual: Float[Array, " machines"]
    gap: Float[Array, " machines"]
    violation: Float[Array, " machines"]
    num_free: Int[Array, " machines"]
    num_bound: Int[Array, " machines"]


class Grid(NamedTuple):
    """Held-out scores over a grid of settings.

    Attributes:
        C: Shape `(a,)`.
        gamma: Shape `(b,)`.
        scores: Share of the held-out rows that is predicted rightly, shape `(a, b, folds)`.
        converged: Whether all machines converged, shape `(a, b, folds)`.
    """

    C: Float[Array, " a"]
    gamma: Float[Array, " b"]
    scores: Float[Array, "a b folds"]
    converged: Bool[Array, "a b folds"]

    def table(self) -> list[dict[str, Any]]:
        """One row for each setting, the best first: C, gamma, mean and spread of the scores."""
        scores = np.asarray(self.scores)
        rows = [
            {
                "C": float(self.C[i]),
                "gamma": float(self.gamma[j]),
                "score": float(scores[i, j].mean()),
                "standard deviation": float(scores[i, j].std()),
                "converged": bool(self.converged[i, j].all()),
            }
            for i, j in np.ndindex(*scores.shape[:2])
        ]
        return sorted(rows, key=lambda row: -row["score"])


def fit(
    x: Float[ArrayLike, "n d"],
    y: Int[ArrayLike, " n"],
    *,
    kernel: Any,
    C: Float[ArrayLike, ""] = 1.0,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    class_weight: Float[ArrayLike, " k"] | Literal["balanced"] | None = None,
    num_classes: int | None = None,
    multiclass: Multiclass = "one_vs_one",
    tol: Float[ArrayLike, ""] = 1e-3,
    max_iter: Int[ArrayLike, ""] = 10_000_000,
    dual_dtype: DTypeLike | None = None,
) -> SVC:
    r"""Fit machines for two or more classes, from the dual, with any kernel.

    Up to 2048 rows (5120 with 64 features or more) the Gram matrix is kept. Beyond, working sets of
    up to 8192 duals are solved in turn, and kernel values are computed as they are needed: memory
    grows with $n$, never with $n^2$. Works under `jit`, inside of larger programs, and under `vmap`
    over `C`, the parameters of the kernel, weights and labels; the members of a batch are solved
    one after the other, and those of one kernel share its Gram matrix: of a grid, let the costs be
    the inner `vmap`.

    Args:
        x: Rows, shape `(n, d)`, scaled to comparable features; or the Gram matrix, shape `(n, n)`.
        y: Classes 0..k-1, shape `(n,)`; `mlnotes_jax.data.labels` maps any others.
        kernel: From `mlnotes_jax.svm.kernels`, or any callable of two examples; or
            `"precomputed"`. A gamma of `"scale"` is resolved on the rows of positive weight.
        C: What a unit of error costs, > 0; traced. Large: few errors. Small: a wide street.
        sample_weight: $s_i \ge 0$, shape `(n,)`; multiplies C; zero drops a row.
        class_weight: A factor for the rows of each class, shape `(k,)`; or `"balanced"`:
            $n / (k\, n_c)$, as scikit-learn defines it, of the rows with their weights.
        num_classes: k, static; one more than the largest label by default, which must then be
            concrete.
        multiclass: For more than two classes, `"one_vs_one"` (a machine for each pair) or
            `"one_vs_rest"` (one for each class); static.
        tol: Largest violation of the optimality conditions, > 0; traced.
        max_iter: Most pairs of duals changed, for each machine; traced.
        dual_dtype: In which $\beta$ and the gradient are kept; that of `x` by default. `"float64"`
            with float32 rows is nearly as fast as float32 and reaches tolerances that float32
            does not; needs `jax_enable_x64`.

    Returns:
        The model. `converged` is false where `max_iter` or the rounding of the dtype ended a fit,
        or a class has no rows.

    Raises:
        ValueError: Shapes do not match, data are empty or (where concrete) not finite, a class has
            no row of positive weight, a label or a number is out of range, or the kernel is not
            symmetric or not finite on the data.
        TypeError: Data are not real numbers, labels are not integers, or `kernel` is none.

    Example:
        >>> from mlnotes_jax.svm import classifier, kernels
        >>> x, y = [[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]], [0, 0, 1, 1]
        >>> model = classifier.fit(x, y, kernel=kernels.gaussian(1.0), C=10.0)
        >>> classifier.predict(model, x).tolist()
        [0, 0, 1, 1]

    Reference:
        Fan, Chen and Lin, *Working set selection using second order information* (JMLR, 2005).

    Note:
        `sklearn.svm.SVC` has the same objective, tolerance and defaults; its kernel is `"rbf"` with
        gamma `"scale"`, here `kernels.gaussian("scale")`. For rows of one class only, libsvm gives
        a constant; here it is an error.
    """
    x, codes, num_classes, weight, factors = _linear.labelled(
        x, y, sample_weight, class_weight, num_classes
    )
    _checks.one_of("multiclass", multiclass, ("one_vs_one", "one_vs_rest"))
    weight = weight * factors
    kernel, precomputed = _machines.checked_kernel(kernel, x)
    dtype = _machines.dual_dtype(dual_dtype, x.dtype)
    C, tol, steps = _linear.options(C, tol, max_iter, dtype)
    class_rows = _rows_of_a_class(codes, num_classes, multiclass)
    model = _fit(
        x,
        codes,
        C,
        weight.astype(dtype),
        kernel,
        tol,
        steps,
        num_classes,
        multiclass,
        precomputed,
        class_rows,
    )
    _machines.check_finite(model.violation)
    return model


def machines(model: SVC, x: Float[ArrayLike, "m d"]) -> Float[Array, "m machines"]:
    """The value f(x) of each machine.

    Args:
        model: From `fit`.
        x: Rows, shape `(m, d)`; kernel rows `k(x, x_i)`, shape `(m, n)`, for a model that was
            fitted to a precomputed matrix.

    Returns:
        Shape `(m, machines)`, in the order of `SVC`; 1 and -1 are the edges of the street.

    Raises:
        ValueError: The number of columns is not that of the fit, or (where concrete) a value is
            not finite.
        TypeError: `x` is not numeric.

    Example:
        >>> from mlnotes_jax.svm import classifier, kernels
        >>> x, y = [[0.0], [2.0], [4.0]], [0, 1, 2]
        >>> model = classifier.fit(x, y, kernel=kernels.linear(), C=10.0)
        >>> classifier.machines(model, x).round(2)[0].tolist()  # 0 against 1, 0 and 1 against 2
        [1.0, 1.0, 3.0]
    """
    return _values(model, _machines.known_rows(model, x))


def decision_function(
    model: SVC | LinearClassifier, x: Float[ArrayLike, "m d"]
) -> Float[Array, " m"] | Float[Array, "m k"]:
    r"""Scores of the classes.

    One-vs-one: the votes of a class, plus the sum $s$ of its machines' values squeezed into
    $(-\tfrac13, \tfrac13)$ by $s / (3 (|s| + 1))$, which decides between equal votes only.
    One-vs-rest: the values.

    Args:
        model: From `fit` or `fit_linear`.
        x: Rows, as in `machines`.

    Returns:
        Shape `(m,)` for two classes, positive for class 1; else `(m, k)`.

    Raises:
        ValueError: As `machines`.
        TypeError: As `machines`.

    Example:
        >>> from mlnotes_jax.svm import classifier, kernels
        >>> model = classifier.fit([[0.0], [2.0]], [0, 1], kernel=kernels.linear())
        >>> classifier.decision_function(model, [[2.0], [1.0], [-1.0]]).round(3).tolist()
        [1.0, 0.0, -2.0]

    Note:
        `SVC(decision_function_shape="ovr")` of scikit-learn has the same scores.
    """
    if isinstance(model, LinearClassifier):
        return _linear.decision_function(model, x)
    return _scores(machines(model, x), model.num_classes, model.multiclass)


def predict(model: SVC | LinearClassifier, x: Float[ArrayLike, "m d"]) -> Int[Array, " m"]:
    """The class with the largest score.

    Args:
        model: From `fit` or `fit_linear`.
        x: Rows, as in `machines`.

    Returns:
        Classes, shape `(m,)`, int32.

    Raises:
        ValueError: As `machines`.
        TypeError: As `machines`.

    Example:
        >>> from mlnotes_jax.svm import classifier, kernels
        >>> x, y = [[0.0], [2.0], [4.0]], [0, 1, 2]
        >>> model = classifier.fit(x, y, kernel=kernels.linear(), C=10.0)
        >>> classifier.predict(model, [[0.5], [2.2], [9.0]]).tolist()
        [0, 1, 2]

    Note:
        `SVC` of scikit-learn gives equal votes to the class that comes first, unless
        `break_ties=True`.
    """
    if isinstance(model, LinearClassifier):
        return _linear.predict(model, x)
    return _classes(decision_function(model, x))


def certificate(model: SVC, x: Float[ArrayLike, "n d"], y: Int[ArrayLike, " n"]) -> Certificate:
    """Compute from the data how near a fit is to the optimum.

    Nothing is taken from the solver but the duals and the intercept. The Gram matrix is computed
    again, in blocks, in float64 where `jax_enable_x64` is set, whatever the dtype of the model.

    Args:
        model: From `fit`.
        x: The rows of the fit in their order, or its Gram matrix.
        y: The classes of the fit.

    Returns:
        For each machine: objectives, their gap, the violation, and how many rows hold the street.

    Raises:
        ValueError: `x` or `y` have another shape than in the fit, or a label is out of range.
        TypeError: Data are not numeric, or labels are not integers.

    Example:
        >>> from mlnotes_jax.svm import classifier, kernels
        >>> x, y = [[0.0], [2.0], [3.0]], [0, 1, 1]
        >>> model = classifier.fit(x, y, kernel=kernels.linear(), C=10.0)
        >>> proof = classifier.certificate(model, x, y)
        >>> proof.primal.round(3).tolist(), proof.dual.round(3).tolist(), proof.num_free.tolist()
        ([0.5], [0.5], [2])

    Reference:
        Keerthi et al., *Improvements to Platt's SMO algorithm* (2001), for the violation.
    """
    x = _machines.known_rows(model, x)
    if x.shape[0] != model.dual_coef.shape[1]:
        raise ValueError(
            f"x must be the {model.dual_coef.shape[1]} rows of the fit, got shape {x.shape}"
        )
    codes = _checks.integer("y", y, ndim=1)
    _checks.same_length(x=x, y=codes)
    _checks.class_labels("y", codes, model.num_classes)
    return _certificate(model, x, codes.astype(jnp.int32))


def grid(
    x: Float[ArrayLike, "n d"],
    y: Int[ArrayLike, " n"],
    *,
    C: Float[ArrayLike, " a"],
    gamma: Float[ArrayLike, " b"],
    folds: int | Int[ArrayLike, " n"] = 5,
    kernel: Callable[[Any], Any] = kernels.gaussian,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    class_weight: Float[ArrayLike, " k"] | Literal["balanced"] | None = None,
    num_classes: int | None = None,
    multiclass: Multiclass = "one_vs_one",
    tol: Float[ArrayLike, ""] = 1e-3,
    max_iter: Int[ArrayLike, ""] = 10_000_000,
) -> Grid:
    """Fit every pair of C and gamma without each fold, score it on the fold: one program.

    Args:
        x: Rows, shape `(n, d)`. Prepare them (scaling) without looking at held-out rows where that
            matters; `mlnotes_jax.generalization` has the general search.
        y: Classes 0..k-1, shape `(n,)`.
        C: Costs to try, shape `(a,)`; traced.
        gamma: Parameters of the kernel to try, shape `(b,)`; traced.
        folds: The fold that holds each row out, 0..K-1, shape `(n,)`, concrete; or the number of
            folds, to deal the rows of each class out in turn. Shuffle rows whose order means
            something.
        kernel: Makes a kernel from a gamma, as `kernels.gaussian` does.
        sample_weight: As in `fit`; weighs the scores, too.
        class_weight: As in `fit`; `"balanced"` counts all rows.
        num_classes: As in `fit`.
        multiclass: As in `fit`.
        tol: As in `fit`.
        max_iter: As in `fit`.

    Returns:
        The scores; their method `table()` lists the settings, the best first.

    Raises:
        ValueError: As `fit`; or `folds` has another shape, or a fold is empty.
        TypeError: As `fit`.

    Example:
        >>> from mlnotes_jax.data import datasets
        >>> from mlnotes_jax.svm import classifier
        >>> iris = datasets.load("iris")
        >>> found = classifier.grid(iris.x, iris.y, C=[0.1, 10.0], gamma=[0.1, 1.0])
        >>> found.scores.shape, found.table()[0]["score"] > 0.95
        ((2, 2, 5), True)
    """
    x, codes, num_classes, weight, factors = _linear.labelled(
        x, y, sample_weight, class_weight, num_classes
    )
    _checks.one_of("multiclass", multiclass, ("one_vs_one", "one_vs_rest"))
    fold = _folds(folds, codes)
    costs, gammas = _positive_list("C", C, x.dtype), _positive_list("gamma", gamma, x.dtype)
    _, tol, steps = _linear.options(1.0, tol, max_iter, x.dtype)
    class_rows = _rows_of_a_class(codes, num_classes, multiclass)
    scores, converged = _grid(
        x,
        codes,
        weight,
        factors,
        jnp.asarray(fold, jnp.int32),
        costs,
        gammas,
        tol,
        steps,
        kernel,
        int(fold.max()) + 1,
        num_classes,
        multiclass,
        class_rows,
    )
    return Grid(costs, gammas, scores, converged)


# --- Programs -------------------------------------------------------------------------------------


@functools.partial(
    jax.jit, static_argnames=("num_classes", "multiclass", "precomputed", "class_rows")
)
def _fit(
    x: Array,
    codes: Array,
    C: Array,
    weight: Array,
    kernel: Any,
    tol: Array,
    max_iter: Array,
    num_classes: int,
    multiclass: Multiclass,
    precomputed: bool,
    class_rows: int,
) -> SVC:
    n, bound = x.shape[0], C * weight
    if precomputed:
        data = jnp.arange(n)[:, None]
    else:
        data, kernel = x, kernels.resolve(kernel, x, weight)
    pairs = _pairs(num_classes, multiclass)
    # Several machines on few rows share kernel values.
    share = len(pairs) > 1 and _smo.is_held(*x.shape)
    if class_rows == n:
        gram = _gram(kernel, data) if share else None
        one = functools.partial(_on_all_rows, data, codes, bound, kernel, gram, tol, max_iter)
    else:
        # Rows are sorted by class: a pair takes two windows of them.
        order = jnp.argsort(codes, stable=True)
        counts = jnp.zeros(num_classes, jnp.int32).at[codes].add(1)
        starts = jnp.cumsum(counts) - counts
        firsts = jnp.minimum(starts, n - class_rows)
        places = firsts[:, None] + jnp.arange(class_rows, dtype=jnp.int32)[None]
        inside = (places >= starts[:, None]) & (places < (starts + counts)[:, None])
        rows = order[places]
        windows = _Windows(rows, data[rows], jnp.where(inside, bound[rows], 0))
        blocks = None
        if share:
            ready = kernels.prepared(kernel, data)[rows]
            own = jax.lax.map(lambda part: kernels.prepared_gram(kernel, part, part), ready)
            blocks = ready, own
        one = functools.partial(_on_two_windows, windows, n, kernel, blocks, tol, max_iter)
    found = jax.lax.map(one, jnp.asarray(pairs))
    return SVC(
        kernel=None if precomputed else kernel,
        x=jnp.zeros((n, 0), x.dtype) if precomputed else x,
        dual_coef=found.beta,
        intercept=found.intercept,
        bound=bound,
        violation=found.violation,
        num_iterations=found.num_iterations,
        converged=found.converged,
        num_classes=num_classes,
        multiclass=multiclass,
        precomputed=precomputed,
    )


def _gram(kernel: Any, x: Array) -> Array:
    rows = kernels.prepared(kernel, x)
    return kernels.prepared_gram(kernel, rows, rows)


def _on_all_rows(
    x: Array,
    codes: Array,
    bound: Array,
    kernel: Any,
    gram: Array | None,
    tol: Array,
    max_iter: Array,
    pair: Array,
) -> _smo.Dual:
    """The machine of two classes; -1 stands for all others. Rows of no class of both cost 0."""
    up = codes == pair[0]
    taken = up | (codes == pair[1]) | (pair[1] < 0)
    signs = jnp.where(up, 1, -1).astype(bound.dtype)
    return _solve(x, signs, jnp.where(taken, bound, 0), kernel, gram, tol, max_iter)


class _Windows(NamedTuple):
    """As many rows for each class: its own, and others that cost 0."""

    rows: Array  # their numbers, (k, width)
    x: Array  # (k, width, d)
    bound: Array  # (k, width)


def _on_two_windows(
    windows: _Windows,
    num_rows: int,
    kernel: Any,
    blocks: tuple[Array, Array] | None,
    tol: Array,
    max_iter: Array,
    pair: Array,
) -> _smo.Dual:
    """The machine of two classes; `blocks`: rows ready for the kernel, its values in each class."""
    rows, x, bound = (a[pair] for a in windows)
    signs = jnp.repeat(jnp.asarray([1, -1], bound.dtype), rows.shape[1])
    gram = None
    if blocks is not None:
        (first, second), (top, bottom) = (a[pair] for a in blocks)
        across = kernels.prepared_gram(kernel, first, second)
        gram = jnp.block([[top, across], [across.T, bottom]])
    x = x.reshape(-1, x.shape[-1])
    found = _solve(x, signs, bound.ravel(), kernel, gram, tol, max_iter)
    beta = jnp.zeros(num_rows, bound.dtype).at[rows.ravel()].add(found.beta)
    return found._replace(beta=beta)


def _solve(
    x: Array,
    signs: Array,
    bound: Array,
    kernel: Any,
    gram: Array | None,
    tol: Array,
    max_iter: Array,
) -> _smo.Dual:
    lower, upper = jnp.where(signs > 0, 0, -bound), jnp.where(signs > 0, bound, 0)
    return _smo.solve(kernel, x, signs, lower, upper, gram=gram, tol=tol, max_iter=max_iter)


@jax.jit
def _values(model: SVC, x: Array) -> Array:
    return _machines.sums(model, x, model.dual_coef.T) + model.intercept[None]


@functools.partial(jax.jit, static_argnames=("num_classes", "multiclass"))
def _scores(values: Array, num_classes: int, multiclass: Multiclass) -> Array:
    if num_classes == 2:
        return values[:, 0]
    if multiclass == "one_vs_rest":
        return values
    pairs = _pairs(num_classes, multiclass)
    first, second = np.eye(num_classes)[pairs[:, 0]], np.eye(num_classes)[pairs[:, 1]]
    up = (values > 0).astype(values.dtype)
    votes = up @ first.astype(values.dtype) + (1 - up) @ second.astype(values.dtype)
    total = values @ (first - second).astype(values.dtype)
    return votes + total / (3 * (jnp.abs(total) + 1))


def _classes(scores: Array) -> Array:
    if scores.ndim == 1:
        return (scores > 0).astype(jnp.int32)
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


@jax.jit
def _certificate(model: SVC, x: Array, codes: Array) -> Certificate:
    wide = _linear.wider(model.dual_coef.dtype, jnp.result_type(float))
    everything = _machines.sums(model, x, model.dual_coef.T.astype(wide)).T
    pairs = jnp.asarray(_pairs(model.num_classes, model.multiclass))

    def one(pair: Array, beta: Array, intercept: Array, values: Array) -> Certificate:
        up = codes == pair[0]
        taken = up | (codes == pair[1]) | (pair[1] < 0)
        bound = jnp.where(taken, model.bound.astype(wide), 0)
        y = jnp.where(up, 1, -1).astype(wide)
        lower, upper = jnp.where(up, 0, -bound), jnp.where(up, bound, 0)
        size, error = y * beta, 1 - y * (values + intercept)
        # primal - dual, row by row; not negative where the duals are in their box. What the sum
        # of the duals is off zero by rounding is told, too.
        terms = (bound - size) * jnp.maximum(error, 0) + size * jnp.maximum(-error, 0)
        v = y - values
        best = jnp.max(jnp.where(beta < upper, v, -jnp.inf))
        least = jnp.min(jnp.where(beta > lower, v, jnp.inf))
        at_bound = (size >= bound) & (bound > 0)
        return Certificate(
            primal=beta @ values / 2 + bound @ jnp.maximum(error, 0),
            dual=y @ beta - beta @ values / 2,
            gap=terms.sum() + jnp.abs(intercept * beta.sum()),
            violation=jnp.where(best > least, best - least, 0),
            num_free=jnp.sum((beta != 0) & ~at_bound),
            num_bound=jnp.sum(at_bound),
        )

    duals, intercepts = model.dual_coef.astype(wide), model.intercept.astype(wide)
    return jax.vmap(one)(pairs, duals, intercepts, everything)


@functools.partial(
    jax.jit, static_argnames=("kernel", "num_folds", "num_classes", "multiclass", "class_rows")
)
def _grid(
    x: Array,
    codes: Array,
    weight: Array,
    factors: Array,
    fold: Array,
    costs: Array,
    gammas: Array,
    tol: Array,
    max_iter: Array,
    kernel: Callable[[Any], Any],
    num_folds: int,
    num_classes: int,
    multiclass: Multiclass,
    class_rows: int,
) -> tuple[Array, Array]:
    def one(cost: Array, gamma: Array, out: Array) -> tuple[Array, Array]:
        model = _fit(
            x,
            codes,
            cost,
            jnp.where(fold == out, 0, weight * factors),
            kernel(gamma),
            tol,
            max_iter,
            num_classes,
            multiclass,
            False,
            class_rows,
        )
        predicted = _classes(_scores(_values(model, x), num_classes, multiclass))
        held_out = jnp.where(fold == out, weight, 0)
        right = jnp.sum(jnp.where(predicted == codes, held_out, 0))
        return right / jnp.sum(held_out), jnp.all(model.converged)

    # Fits of one kernel share its Gram matrix: a batch of costs and folds makes it once.
    of_folds = jax.vmap(one, (None, None, 0))
    of_costs = jax.vmap(of_folds, (0, None, None))
    all_folds = jnp.arange(num_folds)
    found = jax.lax.map(lambda gamma: of_costs(costs, gamma, all_folds), gammas)
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), found)


# --- Helpers --------------------------------------------------------------------------------------


def _pairs(num_classes: int, multiclass: Multiclass) -> np.ndarray:
    """Positive and negative class of each machine; -1 for all others."""
    if num_classes == 2:
        return np.array([[1, 0]], np.int32)
    if multiclass == "one_vs_rest":
        classes = np.arange(num_classes, dtype=np.int32)
        return np.stack([classes, np.full(num_classes, -1, np.int32)], axis=1)
    return np.stack(np.triu_indices(num_classes, 1), axis=1).astype(np.int32)


def _rows_of_a_class(codes: Array, num_classes: int, multiclass: Multiclass) -> int:
    """Room for the largest class where that saves work, else for all rows."""
    n = codes.shape[0]
    if num_classes == 2 or multiclass == "one_vs_rest" or not _checks.is_concrete(codes):
        return n
    largest = int(np.bincount(np.asarray(codes), minlength=num_classes).max())
    room = -(-largest // _UNIT) * _UNIT
    return room if 2 * room < n else n


def _folds(folds: int | ArrayLike, codes: Array) -> np.ndarray:
    n = codes.shape[0]
    if np.ndim(folds) == 0:
        _checks.positive_int("folds", folds, least=2)
        if not _checks.is_concrete(codes):
            raise ValueError("folds must be an array where y is traced, got a number")
        fold = np.asarray(deal(None, codes, int(folds))[1])  # type: ignore[arg-type]
    else:
        fold = np.asarray(_checks.integer("folds", folds, ndim=1))
        if fold.shape != (n,):
            raise ValueError(f"folds must have shape ({n},), got {fold.shape}")
    sizes = np.bincount(fold) if fold.min() >= 0 else np.zeros(1)
    if len(sizes) < 2 or not sizes.all():
        raise ValueError(
            f"folds must number at least two folds 0..K-1, each with a row, got sizes {sizes}"
        )
    return fold


def _positive_list(name: str, values: ArrayLike, dtype: Any) -> Array:
    array = _checks.floating(name, values, ndim=1)
    _checks.not_empty(name, array)
    _checks.finite(name, array)
    _checks.positive(name, array)
    return array.astype(dtype)
