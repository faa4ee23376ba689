r"""The training loop as a pure function: `fit(key, model, optimizer, loss, data) -> result`.

An *update* (or iteration) t takes the next batch and moves the parameters,

$$g_t = \nabla_\theta \frac{1}{|B_t|} \sum_{i \in B_t} \ell(f_\theta(x_i), y_i), \qquad
  (u_t, s_{t+1}) = \operatorname{optimizer}(g_t, s_t, \theta_t), \qquad
  \theta_{t+1} = \theta_t + u_t;$$

an *epoch* is one pass over the data in an order drawn from the key and the number of the epoch. A
step is `(walk, batch) -> (walk, row)`, the shape of `jax.lax.scan`: an epoch is one compiled scan,
many runs at once are the `vmap` of it, and going on from a saved `TrainState` is the same function.

Reference: Bottou, Curtis and Nocedal, *Optimization Methods for Large-Scale Machine Learning*
(SIAM Review, 2018), sections 3 and 4; Goodfellow, Bengio and Courville, *Deep Learning* (2016),
section 8.1.3.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree

from mlnotes_jax import _checks
from mlnotes_jax.data import loading
from mlnotes_jax.generalization import early_stopping
from mlnotes_jax.optimization import averaging, stability
from mlnotes_jax.training import _evaluation, _inputs, _report

__all__ = [
    "Apply",
    "Bound",
    "FitResult",
    "Runs",
    "TrainState",
    "bind",
    "evaluate",
    "fit",
    "fit_many",
    "merge",
    "predict",
]

Fn = Callable[[PyTree, PyTree], Array]  # of outputs and targets

RUNNING, STOPPED, NOT_FINITE = 0, 1, 2
_STATUS = ("finished", "stopped early", "not finite")


class Bound(NamedTuple):
    """A model taken apart. A model that is no Flax module is given to `fit` in this form.

    Attributes:
        params: What is trained.
        state: Everything else: running statistics, random streams.
        apply: `apply(params, state, x, *, key=None, train=False) -> (outputs, new_state)`, pure.
    """

    params: PyTree
    state: PyTree
    apply: Callable[..., tuple[PyTree, PyTree]]


class TrainState(NamedTuple):
    """Everything that the next epoch depends on: a pytree of arrays, to be saved and gone on from.

    Attributes:
        params: The parameters now.
        state: What else the model remembers, such as running statistics.
        opt_state: What the optimizer remembers.
        average: What the parameter average remembers; None without one.
        key: The key that `fit` was given.
        epoch: Epochs done, shape `()`.
        step: Updates done, shape `()`.
        stopping: What the stopping rule remembers; None without one.
        best: Lowest validation loss so far with its `(params, state)` and epoch; None where it is
            not kept.
        status: 0 training may go on, 1 stopped by the rule, 2 not finite; shape `()`.
    """

    params: PyTree
    state: PyTree
    opt_state: PyTree
    average: PyTree
    key: Key[Array, ""]
    epoch: Int[Array, ""]
    step: Int[Array, ""]
    stopping: PyTree
    best: early_stopping.Best | None
    status: Int[Array, ""]


class FitResult(NamedTuple):
    """A trained model.

    Attributes:
        model: As the model given, a new one: with the best parameters where they are kept, else
            the last good ones (those of the average, if there is one).
        history: One number for each epoch of this call, as NumPy arrays: `"loss"` (mean over the
            batches, each with the parameters it met), metrics on training batches by their names,
            `"validation_loss"`, `"validation_<metric>"`; and where gradients are clipped or their
            norms recorded, `"grad_norm"` (mean over the updates, before clipping) and
            `"grad_norm_max"`.
        state: Where training ended; `fit(..., start=state)` goes on from it.
        status: `"finished"`, `"stopped early"` or `"not finite"`.
        message: The same as a sentence, with numbers.
    """

    model: Any
    history: dict[str, np.ndarray]
    state: TrainState
    status: str
    message: str


class Runs(NamedTuple):
    """Many trained models, from one program. Arrays have a leading axis of runs.

    Attributes:
        params: The parameters that `FitResult.model` has, of each run.
        state: The rest of each model.
        history: As in `FitResult`, shape `(runs, epochs)`; NaN where a run had ended before.
        states: Where training ended, of each run.
        status: One for each run.
        message: One for each run.
        apply: The function of all of them: what all models say about `x` is
            `jax.vmap(lambda p, s: apply(p, s, x)[0])(params, state)`.
    """

    params: PyTree
    state: PyTree
    history: dict[str, np.ndarray]
    states: TrainState
    status: tuple[str, ...]
    message: tuple[str, ...]
    apply: Callable[..., tuple[PyTree, PyTree]]

    def model(self, index: int) -> Any:
        """Get the model of one run."""
        return _rebuild(self.apply, *_lane((self.params, self.state), index))


@dataclasses.dataclass(frozen=True)
class Apply:
    """The pure function of a Flax module; what `bind` returns.

    It is equal to, and hashes like, the one of any module built alike: a second model does not
    compile a second time.

    Attributes:
        graphdef: The module without its arrays.
        streams: For each leaf of the state, whether it is a random stream's key or count.
    """

    graphdef: Any
    streams: tuple[str, ...]

    def __call__(
        self,
        params: PyTree,
        state: PyTree,
        x: PyTree,
        *,
        key: Key[Array, ""] | None = None,
        train: bool = False,
    ) -> tuple[PyTree, PyTree]:
        """Apply the module in train or eval mode.

        Args:
            params: As `Bound.params`.
            state: As `Bound.state`.
            x: Input, the module's only argument.
            key: What every random stream of the module draws from, each in its own way; where None,
                streams go on as they would in Flax.
            train: Whether to call `module.train()` or `module.eval()` first; static.

        Returns:
            Outputs and new state. With a key, the streams in it are as they were.
        """
        leaves, treedef = jax.tree.flatten(state)
        seeded = leaves
        if key is not None:
            kinds = zip(self.streams, leaves, strict=True)
            seeded = [_seed(kind, leaf, key, i) for i, (kind, leaf) in enumerate(kinds)]
        module = nnx.merge(self.graphdef, params, jax.tree.unflatten(treedef, seeded))
        module.train() if train else module.eval()
        outputs = module(x)
        new_state = nnx.as_pure(nnx.split(module, nnx.Param, ...)[2])
        if key is not None:
            new, treedef = jax.tree.flatten(new_state)
            kept = [a if s else b for s, a, b in zip(self.streams, leaves, new, strict=True)]
            new_state = jax.tree.unflatten(treedef, kept)
        return outputs, new_state


def bind(model: nnx.Module) -> Bound:
    """Split a module into parameters, other state, and a pure function.

    Args:
        model: Any module that is called with one argument.

    Returns:
        Values to train and the function that takes them; `model` is not changed, now or later.

    Raises:
        TypeError: `model` is no module.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from mlnotes_jax.training import loop
        >>> params, state, apply = loop.bind(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
        >>> outputs, state = apply(params, state, jnp.ones((5, 3)))
        >>> outputs.shape
        (5, 2)
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"model must be an nnx.Module, got {type(model).__name__}")
    graphdef, params, state = nnx.split(model, nnx.Param, ...)
    variables = jax.tree.leaves(state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    streams = tuple(
        "key" if isinstance(v, nnx.RngKey) else "count" if isinstance(v, nnx.RngCount) else ""
        for v in variables
    )
    return Bound(nnx.as_pure(params), nnx.as_pure(state), Apply(graphdef, streams))


def merge(model: nnx.Module, params: PyTree, state: PyTree) -> nnx.Module:
    """Make a new module with these values; `model` itself is untouched.

    Args:
        model: A module of the form wanted; the new one is in the same mode, train or eval.
        params: As `bind` returns them.
        state: As `bind` returns it.

    Returns:
        A module that shares nothing with `model`.
    """
    return nnx.merge(nnx.split(model, nnx.Param, ...)[0], params, state)


def fit(
    key: Key[Array, ""],
    model: nnx.Module | Bound,
    optimizer: optax.GradientTransformation,
    loss: Fn,
    data: Any,
    *,
    num_epochs: int,
    batch_size: int = 64,
    validation: Any = None,
    metrics: Mapping[str, Fn] | None = None,
    train_metrics: bool = False,
    penalty: Callable[[PyTree], Array] | None = None,
    stopping: early_stopping.Rule | None = None,
    keep_best: bool = True,
    average: averaging.Average | None = None,
    clip_norm: Float[ArrayLike, ""] | None = None,
    record_norm: bool = False,
    epoch: Literal["auto", "scan", "steps"] = "auto",
    remainder: Literal["drop", "keep"] = "drop",
    start: TrainState | Callable[[TrainState], TrainState] | None = None,
    on_epoch: Callable[[TrainState, dict[str, Any]], None] | None = None,
    progress: bool = False,
) -> FitResult:
    """Train a model by mini-batches; the one given is not changed.

    On the device an epoch is one program; on the host, a Python loop over epochs calls it. So it
    cannot be called under `jit` or `vmap`: for many runs in one program there is `fit_many`.

    In training the model is in train mode: dropout drops, batch norm uses the statistics of the
    batch and moves its running ones. For validation, and in `evaluate` and `predict`, it is in
    eval mode: nothing is dropped, and the running statistics are used and not moved. The learning
    rate is the optimizer's and has nothing to do with the mode.

    Args:
        key: Decides the order of the rows, `loading.epoch_order(key, epoch, n)`, and all that the
            model draws. The same key, the same result.
        model: Any Flax module called with one argument, or a `Bound` of any pure function.
        optimizer: Any Optax optimizer. It may ask for the loss by an argument `value`.
        loss: `loss(outputs, targets)`, the mean over the batch, a scalar. It must take any number
            of rows: the last batch of an evaluation may be smaller.
        data: A tuple `(x, targets)` of arrays, or of pytrees of arrays, with one leading axis of
            rows. Or batches `(x, targets)`: an iterable that gives them anew for each epoch, or a
            function of the epoch (from 0), such as a `loading` loader.
        num_epochs: Passes over the data, those of `start` included.
        batch_size: Rows of a batch where `data` are arrays, and of one of the validation.
        validation: Like `data`, for the loss and the metrics after each epoch. A function is
            called with 0.
        metrics: Functions like `loss`, by name. They are means over rows too; for what is no mean,
            such as the area under a curve, use `predict`.
        train_metrics: Whether to have the metrics on training batches too, from the outputs of the
            updates (in train mode, with the parameters of each). Without `validation` that is done
            in any case.
        penalty: A function of the parameters, added to the training loss (and to its history).
        stopping: A rule that looks at the training and the validation loss after each epoch.
        keep_best: Whether to return the parameters with the lowest validation loss, where there is
            a validation.
        average: An average of the parameters, updated after each step. It is what is validated,
            kept as best, and returned. Statistics of batch norm are those of the raw parameters.
        clip_norm: Scale gradients with a larger global norm down to this one, as
            `optimization.stability.clip_by_global_norm` does. Traced.
        record_norm: Whether to record the norm where it is not needed for clipping. It takes one
            more pass over the gradients, some percent of a step of a small network.
        epoch: How to run an epoch of arrays. `"scan"`: one compiled loop. `"steps"`: a compiled
            step, called from Python, that reuses the memory of the parameters. `"auto"`: scan,
            unless on a CPU the step holds a convolution in a form that is slow in a loop: of
            `jax.lax` and `flax.nnx`, but not of `mlnotes_jax.nets.convolution`. The order, the
            keys and the results are the same. Batches from an iterable always are steps.
        remainder: What becomes of the last n mod `batch_size` rows of an epoch's order: left out,
            or a smaller batch.
        start: Go on from here, with the same key and options; or a function that is given the
            state before the first epoch and returns the one to go on from, such as
            `lambda fresh: checkpoints.resume(folder, fresh)`. The result is bit for bit that of a
            run without a break. A state with `status` other than 0 has ended, and stays as it is.
        on_epoch: Called with the state and the numbers of each epoch: for saving or printing. The
            state may be kept.
        progress: Whether to draw a progress bar.

    Returns:
        Model, history, the state to go on from, and how it ended. Where a loss is not finite,
        training ends after that epoch; the state then holds the parameters of the last finite
        loss, and `message` says when it was.

    Raises:
        ValueError: A count is less than 1, or `batch_size` more than the rows; arrays are empty,
            not finite or of different lengths; `loss` is no scalar, or refuses the targets (labels
            out of range, say); `stopping` is given without `validation`; an option is unknown;
            `start` is of another model, optimizer, average or rule, or made with another key.
        TypeError: `key` is no key, `model` no model, `optimizer` no optimizer, or `data` of a kind
            not described above.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from flax import nnx
        >>> from mlnotes_jax.foundations import losses
        >>> from mlnotes_jax.training import loop
        >>> x = jnp.linspace(-1.0, 1.0, 32).reshape(32, 1)
        >>> line = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
        >>> result = loop.fit(
        ...     jax.random.key(0), line, optax.sgd(0.5), losses.mse, (x, 3 * x - 1),
        ...     num_epochs=30, batch_size=8,
        ... )
        >>> result.status, round(float(result.model.kernel[0, 0]), 3)
        ('finished', 3.0)

    Note:
        Programs are compiled once for the same `loss`, `optimizer`, metrics, average and rule, and
        a model of the same form. These are compared as Python objects: make an optimizer once and
        use it twice, rather than writing `optax.sgd(0.1)` twice.
    """
    bound = _bound("model", model)
    chosen, history, state, messages = _train(
        None,
        key,
        bound,
        True,
        optimizer,
        None,
        loss,
        data,
        num_epochs=num_epochs,
        batch_size=batch_size,
        validation=validation,
        metrics=metrics,
        train_metrics=train_metrics,
        penalty=penalty,
        stopping=stopping,
        keep_best=keep_best,
        average=average,
        clip_norm=clip_norm,
        record_norm=record_norm,
        epoch=epoch,
        remainder=remainder,
        start=start,
        on_epoch=on_epoch,
        progress=progress,
    )
    status = _STATUS[int(state.status)]
    return FitResult(_rebuild(bound.apply, *chosen), history, state, status, messages[0])


def fit_many(
    keys: Key[Array, "*runs"],
    model: nnx.Module | Bound | Callable[[PyTree], nnx.Module | Bound],
    optimizer: optax.GradientTransformation | Callable[[PyTree], optax.GradientTransformation],
    settings: PyTree,
    loss: Fn,
    data: Any,
    **options: Any,
) -> Runs:
    """Train many models side by side in one program: `fit` under `vmap`.

    Sixteen learning rates are

        fit_many(key, model, optax.sgd, rates, loss, data, num_epochs=10)

    and sixteen initialisations are

        fit_many(key, lambda key: MLP(widths, rngs=nnx.Rngs(key)), optimizer, keys, loss, data, ...)

    Args:
        keys: As the key of `fit`. One for all runs: they see the same batches and draw the same
            numbers, so that they differ in their settings alone (and shuffling is done once). Or
            one for each, shape `(runs,)`.
        model: Where all runs start; or a function that makes the model of one run from its
            setting. Models differ in their arrays only.
        optimizer: Of all runs; or a function that makes the optimizer of one run from its setting.
        settings: What the runs differ in: a pytree of arrays with a leading axis of runs. None, if
            they differ in their keys only.
        loss: As in `fit`.
        data: As in `fit`, shared by all runs.
        **options: As in `fit`. Every run is stopped, kept as best and guarded on its own: one that
            has ended stays as it is, while the others go on. `num_epochs` must be given.

    Returns:
        All models, histories and states. Each run is what `fit` would give, to round-off.

    Raises:
        ValueError: `keys` and `settings` have no one leading axis, or as in `fit`.
        TypeError: As in `fit`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from flax import nnx
        >>> from mlnotes_jax.foundations import losses
        >>> from mlnotes_jax.training import loop
        >>> x = jnp.linspace(-1.0, 1.0, 32).reshape(32, 1)
        >>> line, rates = nnx.Linear(1, 1, rngs=nnx.Rngs(0)), jnp.array([0.5, 1e9])
        >>> runs = loop.fit_many(
        ...     jax.random.key(0), line, optax.sgd, rates, losses.mse, (x, 3 * x),
        ...     num_epochs=30, batch_size=8,
        ... )
        >>> runs.status
        ('finished', 'not finite')
        >>> round(float(runs.model(0).kernel[0, 0]), 3)
        3.0
    """
    num_runs = _inputs.num_runs(keys, settings)
    shared = isinstance(model, nnx.Module | Bound)
    if shared:
        bound = _bound("model", model)
    else:
        build, applies = _builder(model)
        params, state = build(settings)
        bound = Bound(params, state, applies[0])
    chosen, history, states, messages = _train(
        num_runs,
        keys,
        bound,
        shared,
        optimizer,
        settings,
        loss,
        data,
        **{**(fit.__kwdefaults__ or {}), **options},
    )
    status = tuple(_STATUS[code] for code in np.asarray(states.status))
    return Runs(*chosen, history, states, status, tuple(messages), bound.apply)


def evaluate(
    model: nnx.Module | Bound, data: Any, fns: Mapping[str, Fn] | Fn, *, batch_size: int = 256
) -> Any:
    """Take means over a data set, in eval mode, batch by batch.

    Args:
        model: A module or a `Bound`.
        data: As in `fit`; a function is called with 0.
        fns: A function of outputs and targets that returns a mean over rows, or several by name.
        batch_size: Rows at a time. The last batch may be smaller; batches count by their rows, so
            that the result is the mean over all rows, whatever the size.

    Returns:
        One scalar, or one for each name.

    Raises:
        ValueError: `data` is empty, not finite or of different lengths, or `batch_size` is less
            than 1.
        TypeError: `model` is no model, or `data` of another kind.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from mlnotes_jax.foundations import losses
        >>> from mlnotes_jax.training import loop
        >>> x = jnp.arange(5.0).reshape(5, 1)
        >>> identity = loop.Bound({}, {}, lambda params, state, x, **mode: (x, state))
        >>> float(loop.evaluate(identity, (x, jnp.zeros_like(x)), losses.mse, batch_size=2))
        6.0
    """
    params, state, apply = _bound("model", model)
    _checks.positive_int("batch_size", batch_size)
    named = {"": fns} if callable(fns) else dict(fns)
    values = _evaluation.evaluate(
        _evaluation.evaluator(apply, tuple(named.items()), "none"),
        params,
        state,
        _inputs.source("data", data),
        batch_size,
    )
    return values[""] if callable(fns) else values


def predict(model: nnx.Module | Bound, x: PyTree, *, batch_size: int = 256) -> PyTree:
    """Apply a model in eval mode, batch by batch.

    Args:
        model: A module or a `Bound`.
        x: Inputs, an array or a pytree of arrays with one leading axis of rows.
        batch_size: Rows at a time; the last batch may be smaller.

    Returns:
        Outputs of all rows, in order.

    Raises:
        ValueError: `x` is empty or its arrays differ in length, or `batch_size` is less than 1.
        TypeError: `model` is no model.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from mlnotes_jax.training import loop
        >>> loop.predict(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), jnp.ones((5, 3)), batch_size=2).shape
        (5, 2)
    """
    params, state, apply = _bound("model", model)
    _checks.positive_int("batch_size", batch_size)
    x = jax.tree.map(jnp.asarray, x)
    _inputs.num_rows("x", x)
    return _evaluation.predictor(apply)(params, state, x, batch_size=batch_size)


# --- one update, one epoch ------------------------------------------------------------------------


class _Recipe(NamedTuple):
    """What the compiled step is made from."""

    apply: Callable[..., Any]
    loss: Fn
    optimizer: Any
    metrics: tuple[tuple[str, Fn], ...]
    penalty: Callable[[PyTree], Array] | None
    average: averaging.Average | None
    record_norm: bool


def _step(
    recipe: _Recipe, dials: Any, walk: TrainState, batch: Any, step: Array
) -> tuple[TrainState, dict[str, Array]]:
    """One update: forward in train mode, backward, clip, move, average."""
    (settings, clip_norm), (x, targets) = dials, batch
    # The same key gives the order of the rows, with the number of the epoch; this is far from it.
    key = jax.random.fold_in(jax.random.fold_in(walk.key, np.uint32(2**32 - 1)), step)

    def objective(params: PyTree) -> tuple[Array, tuple[PyTree, PyTree]]:
        outputs, state = recipe.apply(params, walk.state, x, key=key, train=True)
        value = recipe.loss(outputs, targets)
        if recipe.penalty is not None:
            value = value + recipe.penalty(params)
        return value, (outputs, state)

    (value, (outputs, state)), grads = jax.value_and_grad(objective, has_aux=True)(walk.params)
    row = {"loss": value} | {name: fn(outputs, targets) for name, fn in recipe.metrics}
    if clip_norm is not None:
        grads, row["grad_norm"] = stability.clip_by_global_norm(grads, clip_norm)
    elif recipe.record_norm:
        row["grad_norm"] = stability.global_norm(grads)
    updates, opt_state = _optimizer(recipe.optimizer, settings).update(
        grads, walk.opt_state, walk.params, value=value
    )
    params = optax.apply_updates(walk.params, updates)
    average = walk.average
    if recipe.average is not None:
        average = recipe.average.update(average, params)
    walk = walk._replace(
        params=params, state=state, opt_state=opt_state, average=average, step=walk.step + 1
    )
    return walk, jax.tree.map(_evaluation.wide, row)


def _epoch(
    recipe: _Recipe,
    batch_size: int,
    remainder: Any,
    dials: Any,
    walk: TrainState,
    data: Any,
    epoch: Array,
    first_step: Array,
) -> tuple[TrainState, dict[str, Array]]:
    """All updates of an epoch as one scan, which gathers its batches itself."""

    def update(walk: TrainState, now: tuple[Array, Array]) -> tuple[TrainState, dict[str, Array]]:
        rows, step = now
        batch = jax.tree.map(lambda leaf: leaf.at[rows].get(mode="promise_in_bounds"), data)
        return _step(recipe, dials, walk, batch, step)

    order = loading.epoch_order(walk.key, epoch, _inputs.num_rows("data", data))
    batches = loading.batch_indices(order, batch_size=batch_size, remainder=remainder)
    count = len(batches.full)
    steps = first_step + jnp.arange(count, dtype=jnp.int32)
    walk, rows = jax.lax.scan(update, walk, (batches.full, steps))
    if batches.rest.size:
        walk, last = update(walk, (batches.rest, first_step + count))
        rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), rows, last)
    return walk, rows


def _finish(
    stopping: early_stopping.Rule | None,
    before: TrainState,
    walk: TrainState,
    chosen: PyTree,
    rows: dict[str, Array],
    sizes: Array,
    checked: dict[str, Array],
) -> tuple[TrainState, dict[str, Array], Array]:
    """Close an epoch: its means, the best parameters, the stopping rule, the guard."""
    share = sizes / sizes.sum()
    row = {name: (values * share.astype(values.dtype)).sum() for name, values in rows.items()}
    if "grad_norm" in rows:
        row["grad_norm_max"] = rows["grad_norm"].max()
    row |= {f"validation_{name}": value for name, value in checked.items()}

    # Failed at the first loss that is not finite; or after the last update, which no loss has seen.
    finite = jnp.isfinite(rows["loss"])
    sound = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(walk.params)]
    if checked:
        sound.append(jnp.isfinite(checked["loss"]))
    failed = ~(finite.all() & jnp.stack(sound).all())
    bad = jnp.where(finite.all(), finite.size, jnp.argmin(finite))

    stop, rule, best = jnp.zeros((), bool), before.stopping, before.best
    if best is not None:
        best = early_stopping.keep_best(best, chosen, checked["loss"], before.epoch)
    if stopping is not None:
        rule, stop = stopping.update(rule, row["loss"], checked["loss"])
    status = jnp.where(failed, NOT_FINITE, jnp.where(stop, STOPPED, RUNNING)).astype(jnp.int32)
    after = walk._replace(epoch=before.epoch + 1, stopping=rule, best=best, status=status)

    # Under `vmap`, a run that has ended stays as it is while others go on.
    ended = before.status != RUNNING
    after = jax.tree.map(
        lambda old, new: jnp.where(ended, old, new),
        before._replace(key=None),
        after._replace(key=None),
    )
    row = {name: jnp.where(ended, jnp.nan, value) for name, value in row.items()}
    return after._replace(key=walk.key), row, bad


# --- all epochs -----------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """What stays the same over the epochs."""

    recipe: _Recipe
    lanes: str  # "none" for one run, "one key" or "own keys" for many
    dials: Any  # settings (one set for each run) and clip_norm
    data: _inputs.Source
    batch_size: int
    remainder: Any
    scan: bool

    @property
    def compiled(self) -> "_Compiled":
        return _compiled(self.recipe, self.lanes, isinstance(self.data, tuple))

    def epoch_arguments(self, state: TrainState, epoch: int, step: int) -> tuple[Any, ...]:
        walk = state._replace(best=None, stopping=None)
        return (self.batch_size, self.remainder, self.dials, walk, self.data, *_int32(epoch, step))

    def batches(self, key: Array, epoch: int) -> Iterator[Any]:
        return _inputs.batches(
            self.data, key, epoch, batch_size=self.batch_size, remainder=self.remainder
        )

    def run(self, state: TrainState, epoch: int, step: int) -> tuple[TrainState, Any, np.ndarray]:
        """All updates of one epoch, either way: the state, a row for each update, batch sizes."""
        if self.scan:
            walk, rows = self.compiled.epoch(*self.epoch_arguments(state, epoch, step))
            n = _inputs.num_rows("data", self.data)
            cut = {"batch_size": self.batch_size, "remainder": self.remainder}
            return walk, rows, _inputs.sizes(n, **cut)
        stacked = self.lanes == "own keys" and isinstance(self.data, tuple)
        walk = state._replace(best=None, stopping=None)
        batches = self.batches(state.key, epoch)
        return _walk(self.compiled.step, self.dials, walk, batches, step, axis=int(stacked))

    def last_good(
        self, begin: TrainState, lane: int | None, epoch: int, step: int, count: int
    ) -> TrainState:
        """Run an epoch of one run once more, for `count` updates."""
        own, dials = begin, self.dials
        if lane is not None:
            own, dials = _lane_of(begin, lane), (_lane(self.dials[0], lane), self.dials[1])
        if count <= 0:
            return own
        alone = self._replace(lanes="none")
        walk = own._replace(best=None, stopping=None)
        batches = itertools.islice(self.batches(own.key, epoch), count)
        walk, _, _ = _walk(alone.compiled.step, dials, walk, batches, step)
        return walk


def _train(
    num_runs: int | None,
    key: Array,
    bound: Bound,
    shared: bool,
    optimizer: Any,
    settings: PyTree,
    loss: Fn,
    data: Any,
    *,
    num_epochs: int,
    batch_size: int,
    validation: Any,
    metrics: Mapping[str, Fn] | None,
    train_metrics: bool,
    penalty: Callable[[PyTree], Array] | None,
    stopping: early_stopping.Rule | None,
    keep_best: bool,
    average: averaging.Average | None,
    clip_norm: Any,
    record_norm: bool,
    epoch: str,
    remainder: Any,
    start: TrainState | Callable[[TrainState], TrainState] | None,
    on_epoch: Callable[[TrainState, dict[str, Any]], None] | None,
    progress: bool,
) -> tuple[tuple[PyTree, PyTree], dict[str, np.ndarray], TrainState, list[str]]:
    """Epoch after epoch, of `num_runs` runs side by side, or of one where None.

    `shared` says that `bound` holds the parameters of one run, for all.
    """
    # 1. What was passed in.
    if num_runs is None and not isinstance(optimizer, optax.GradientTransformation):
        kind = type(optimizer).__name__
        raise TypeError(f"optimizer must be an optax.GradientTransformation, got {kind}")
    for name, fn in {"loss": loss, "penalty": penalty, **(metrics or {})}.items():
        if fn is not None or name != "penalty":
            _inputs.check_function(name, fn)
    _inputs.check_key("key", key, (0,) if num_runs is None else (0, 1))
    _checks.positive_int("num_epochs", num_epochs)
    _checks.positive_int("batch_size", batch_size)
    _checks.one_of("epoch", epoch, ("auto", "scan", "steps"))
    _checks.one_of("remainder", remainder, ("drop", "keep"))
    if clip_norm is not None:
        _checks.positive("clip_norm", clip_norm)
        clip_norm = jnp.asarray(clip_norm, jnp.result_type(float))
    if stopping is not None and validation is None:
        raise ValueError(
            "validation must be given with stopping, which looks at its loss; got None"
        )
    train = _inputs.source("data", data)
    held_out = None if validation is None else _inputs.source("validation", validation)
    one = bound[:2]
    if not shared:
        one = jax.eval_shape(lambda tree: _lane(tree, 0), one)
    for name, given in (("data", train), ("validation", held_out)):
        if isinstance(given, tuple):
            outputs = _evaluation.predictor(bound.apply).eval_shape(
                *one, given[0], batch_size=batch_size
            )
            _inputs.check_loss(name, outputs, loss, given[1])
    in_memory = isinstance(train, tuple)
    if in_memory and batch_size > (n := _inputs.num_rows("data", train)):
        raise ValueError(f"batch_size must be at most the number of rows, {n}, got {batch_size}")
    if epoch == "scan" and not in_memory:
        raise ValueError("epoch must be 'auto' or 'steps' where data are batches, got 'scan'")

    # 2. What will be compiled, and from where it starts.
    lanes = "none" if num_runs is None else "own keys" if key.ndim else "one key"
    fns = tuple((metrics or {}).items())
    on_batches = fns if train_metrics or validation is None else ()
    record_norm = record_norm or clip_norm is not None
    recipe = _Recipe(bound.apply, loss, optimizer, on_batches, penalty, average, record_norm)
    plan = _Plan(
        recipe, lanes, (settings, clip_norm), train, batch_size, remainder, epoch == "scan"
    )
    finish = _finisher(stopping, lanes)
    check = _evaluation.evaluator(bound.apply, (("loss", loss), *fns), lanes)
    kept = keep_best and held_out is not None
    begin = _starter(recipe, stopping, kept, num_runs, shared)
    state = begin(settings, bound.params, bound.state)._replace(key=key)
    if start is not None:
        start = start(state) if callable(start) else start
        _inputs.check_start(start, state)
        state = start
    if epoch == "auto" and in_memory:
        traced = plan.compiled.epoch.trace(*plan.epoch_arguments(state, 0, 0))
        plan = plan._replace(scan=_evaluation.scans_well(traced))

    # 3. The epochs.
    history, messages, previous = [], [""] * (num_runs or 1), None
    with _report.bar(progress, num_epochs) as tell:
        while True:
            running = np.atleast_1d(state.status) == RUNNING
            if not running.any():
                break
            # Runs that go on are in step with each other.
            now, step = (int(np.atleast_1d(a)[running].max()) for a in (state.epoch, state.step))
            if now >= num_epochs:
                break
            walk, rows, sizes = plan.run(state, now, step)
            params = walk.params if average is None else plan.compiled.value(walk.average)
            chosen = (params, walk.state)
            checked = {}
            if held_out is not None:
                checked = _evaluation.evaluate(check, *chosen, held_out, batch_size)
            after, row, bad = finish(state, walk, chosen, rows, sizes, checked)
            row, bad, status = jax.device_get((row, bad, after.status))
            for run in np.flatnonzero(running & (np.atleast_1d(status) == NOT_FINITE)).tolist():
                lane, first = run if num_runs else None, int(np.atleast_1d(bad)[run])
                if first > 0 or previous is None:
                    good = plan.last_good(state, lane, now, step, first - 1)
                else:  # the loss before it was that of the last update of the epoch before
                    begin, count = previous
                    good = plan.last_good(begin, lane, now - 1, step - count, count - 1)
                after = _put_back(after, good, state, lane)
                values = np.atleast_2d(rows["loss"])[run]
                messages[run] = _report.not_finite(values, first, step, now, int(good.step))
            previous, state = (state, len(sizes)), after
            history.append(row)
            if on_epoch is not None:
                on_epoch(state, row)
            tell(now + 1, row)

    # 4. What came out.
    for run in range(num_runs or 1):
        messages[run] = messages[run] or _how_it_ended(state, run, num_epochs)
    params = state.params if average is None else plan.compiled.value(state.average)
    chosen = _best_or((params, state.state), state.best)
    names = history[0] if history else ()
    stacked = {name: np.stack([row[name] for row in history], axis=-1) for name in names}
    return chosen, stacked, state, messages


def _walk(
    step_fn: Callable[..., Any],
    dials: Any,
    walk: TrainState,
    batches: Iterable[Any],
    step: int,
    *,
    axis: int = 0,
) -> tuple[TrainState, dict[str, np.ndarray], np.ndarray]:
    """One compiled step after the other, each in the memory of the last."""
    walk = _copy(walk)  # a step donates what it is given; the caller's stays
    rows, sizes = [], []
    for batch in batches:
        batch = _inputs.pair("a batch of data", batch)
        walk, row = step_fn(dials, walk, batch, *_int32(step + len(rows)))
        rows.append(row)
        sizes.append(jax.tree.leaves(batch)[0].shape[axis])
        if len(rows) > 16:  # do not run far ahead of the device: batches would pile up there
            jax.block_until_ready(rows[-16])
    if not rows:
        raise ValueError("data must give at least one batch in each epoch, got none")
    host = jax.device_get(rows)
    stacked = {name: np.stack([row[name] for row in host], axis=-1) for name in host[0]}
    return walk, stacked, np.asarray(sizes, np.float32)


# --- compiled once for the same functions ---------------------------------------------------------


class _Compiled(NamedTuple):
    epoch: Any
    step: Any
    value: Any


@functools.lru_cache(maxsize=64)
def _compiled(recipe: _Recipe, lanes: str, in_memory: bool) -> _Compiled:
    epoch, step = functools.partial(_epoch, recipe), functools.partial(_step, recipe)
    value = recipe.average.value if recipe.average is not None else lambda state: state
    if lanes == "none":
        return _Compiled(
            jax.jit(epoch, static_argnums=(0, 1)), jax.jit(step, donate_argnums=1), jax.jit(value)
        )
    axes, dials = _axes(lanes), (0, None)

    def epochs(batch_size, remainder, *arguments):
        run = functools.partial(epoch, batch_size, remainder)
        return jax.vmap(run, (dials, axes, None, None, None), (axes, 0))(*arguments)

    batch = 0 if lanes == "own keys" and in_memory else None
    steps = jax.vmap(step, (dials, axes, batch, None), (axes, 0))
    return _Compiled(
        jax.jit(epochs, static_argnums=(0, 1)),
        jax.jit(steps, donate_argnums=1),
        jax.jit(jax.vmap(value)),
    )


@functools.lru_cache(maxsize=64)
def _starter(
    recipe: _Recipe,
    stopping: early_stopping.Rule | None,
    keep_best: bool,
    num_runs: int | None,
    shared: bool,
) -> Any:
    """The state before the first update; `shared` where all runs have the parameters of one."""
    average = recipe.average

    def start(settings: PyTree, params: PyTree, state: PyTree) -> TrainState:
        zero = jnp.zeros((), jnp.int32)
        made = TrainState(
            params=params,
            state=state,
            opt_state=_optimizer(recipe.optimizer, settings).init(params),
            average=average.init(params) if average is not None else None,
            key=zero,  # the caller puts the key in its place
            epoch=zero,
            step=zero,
            stopping=stopping.init() if stopping is not None else None,
            best=early_stopping.start_best((params, state)) if keep_best else None,
            status=zero,
        )
        return jax.tree.map(_inputs.strong, made)

    if num_runs is not None:
        axis = None if shared else 0
        start = jax.vmap(start, (0, axis, axis), axis_size=num_runs)
    return jax.jit(start)


@functools.lru_cache(maxsize=64)
def _finisher(stopping: early_stopping.Rule | None, lanes: str) -> Any:
    finish = functools.partial(_finish, stopping)
    if lanes != "none":
        axes = _axes(lanes)
        finish = jax.vmap(finish, (axes, axes, 0, 0, None, 0), (axes, 0, 0))
    return jax.jit(finish)


@functools.lru_cache(maxsize=64)
def _builder(model: Callable[[PyTree], Any]) -> Any:
    applies = []

    def build(setting: PyTree) -> tuple[PyTree, PyTree]:
        bound = _bound("model(setting)", model(setting))
        applies.append(bound.apply)
        return bound.params, bound.state

    return jax.jit(jax.vmap(build)), applies


# --- small parts ----------------------------------------------------------------------------------


def _seed(kind: str, leaf: Array, key: Array, index: int) -> Array:
    """A random stream's key, drawn from `key`; its count, zero; any other leaf as it is."""
    if kind == "key":
        own = jax.random.fold_in(key, index)
        return jax.random.split(own, leaf.shape) if leaf.shape else own
    return jnp.zeros_like(leaf) if kind == "count" else leaf


def _optimizer(optimizer: Any, settings: PyTree) -> optax.GradientTransformationExtraArgs:
    if not isinstance(optimizer, optax.GradientTransformation):
        optimizer = optimizer(settings)
    return optax.with_extra_args_support(optimizer)


def _int32(*numbers: int) -> list[np.int32]:
    return [np.int32(number) for number in numbers]


def _bound(name: str, model: Any) -> Bound:
    if isinstance(model, nnx.Module):
        return bind(model)
    if isinstance(model, Bound):
        params, state = jax.tree.map(_inputs.strong, (model.params, model.state))
        return Bound(params, state, model.apply)
    raise TypeError(f"{name} must be an nnx.Module or a Bound, got {type(model).__name__}")


def _rebuild(apply: Callable[..., Any], params: PyTree, state: PyTree) -> Any:
    if isinstance(apply, Apply):
        return nnx.merge(apply.graphdef, params, state)
    return Bound(params, state, apply)


def _axes(lanes: str) -> Any:
    """Which fields of a `TrainState` have an axis of runs: all, but for a key that they share."""
    fields: Any = dict.fromkeys(TrainState._fields, 0)
    return TrainState(**{**fields, "key": 0 if lanes == "own keys" else None})


@jax.jit
def _copy(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)


@jax.jit
def _lane(tree: PyTree, index: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index], tree)


@jax.jit
def _set_lane(tree: PyTree, index: int, own: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf, value: leaf.at[index].set(value), tree, own)


def _lane_of(states: TrainState, index: int) -> TrainState:
    key: Any = states.key[index] if states.key.ndim else states.key
    return _lane(states._replace(key=jnp.zeros(index + 1)), index)._replace(key=key)


def _how_it_ended(states: TrainState, run: int, num_epochs: int) -> str:
    def number(leaf: Array) -> Any:
        return np.atleast_1d(leaf)[run].item()

    status, best = number(states.status), states.best
    if status == NOT_FINITE:
        return f"not finite since update {number(states.step)}: nothing was done"
    return _report.ended(
        number(states.epoch),
        number(states.step),
        num_epochs,
        stopped=status == STOPPED,
        best=None if best is None else (number(best.loss), number(best.epoch)),
    )


def _put_back(
    after: TrainState, good: TrainState, before: TrainState, lane: int | None
) -> TrainState:
    """The end of an epoch that failed: good parameters, and what was best before it."""
    fields = ("params", "state", "opt_state", "average", "epoch", "step")
    old = {name: getattr(good, name) for name in fields}
    if lane is None:
        return after._replace(**old, best=before.best, stopping=before.stopping)
    new = {name: getattr(after, name) for name in fields}
    return after._replace(**_set_lane(new, lane, old))


def _best_or(last: PyTree, best: early_stopping.Best | None) -> PyTree:
    """What was kept as best; the last, where nothing was."""
    if best is None:
        return last
    found = np.asarray(best.epoch) >= 0
    if found.all():
        return best.params

    def choose(kept: Array, end: Array) -> Array:
        return jnp.where(found.reshape(found.shape + (1,) * (kept.ndim - found.ndim)), kept, end)

    return jax.tree.map(choose, best.params, last)
