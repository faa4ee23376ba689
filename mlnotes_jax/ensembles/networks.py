r"""Ensembles of networks: their answers averaged, and one small network that learns the average.

Members $m = 1, \dots, M$ give probabilities $p_m(x)$. Two averages are in use,

$$
P = \frac1M \sum_{m=1}^M p_m , \qquad
G = \frac1Z \prod_{m=1}^M p_m^{1/M} = \operatorname{softmax}\Big( \frac1M \sum_m z_m \Big) ,
$$

of the probabilities and of the logits $z_m$. For squared error the gain is known to the last digit:
the error of the mean is the mean error minus the spread of the members about their mean,

$$
\| \bar f - y \|^2 = \frac1M \sum_m \| f_m - y \|^2 - \frac1M \sum_m \| f_m - \bar f \|^2 .
$$

Reference: Krogh and Vedelsby, *Neural Network Ensembles, Cross Validation, and Active Learning*
(NIPS 1994); Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural Network* (2015).
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from mlnotes_jax import _checks
from mlnotes_jax.optimization import averaging
from mlnotes_jax.training import loop

__all__ = [
    "Decomposition",
    "Ensemble",
    "ambiguity",
    "best",
    "combine",
    "cross_entropy_ambiguity",
    "disagreement",
    "distillation_loss",
    "error_by_size",
    "from_models",
    "from_runs",
    "outputs",
    "predict",
    "predict_proba",
    "snapshots",
    "soft_targets",
]

Kind = Literal["probabilities", "logits"]


@partial(jax.tree_util.register_dataclass, data_fields=["params", "state"], meta_fields=["apply"])
@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Networks of one form: their values, with a leading axis of members.

    Attributes:
        params: Parameters, each leaf of shape `(m, ...)`.
        state: The rest of each network, likewise.
        apply: The function of all of them, as in `loop.Bound`; static.
    """

    params: PyTree
    state: PyTree
    apply: Callable[..., tuple[PyTree, PyTree]]

    @property
    def num_members(self) -> int:
        """How many networks there are."""
        return jax.tree.leaves(self.params)[0].shape[0]


class Decomposition(NamedTuple):
    """Where an ensemble's error comes from, row by row: `error = mean_error - ambiguity`.

    Attributes:
        error: Of the ensemble, shape `(n,)`; computed by itself, not as the difference.
        mean_error: The mean of the members' errors, shape `(n,)`.
        ambiguity: How much the members differ, shape `(n,)`.
    """

    error: Float[Array, " n"]
    mean_error: Float[Array, " n"]
    ambiguity: Float[Array, " n"]


# --- Members --------------------------------------------------------------------------------------


def from_runs(runs: loop.Runs, index: Int[ArrayLike, " m"] | None = None) -> Ensemble:
    """Take the networks that `loop.fit_many` has trained side by side.

    Args:
        runs: Their values: other initialisations, or other settings of a search.
        index: Which of them, shape `(m,)`; all, by default. See `best`.

    Returns:
        The ensemble.

    Raises:
        ValueError: A concrete index is out of range, or there is none.
        TypeError: `index` are not integers.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from mlnotes_jax.ensembles import networks
        >>> from mlnotes_jax.foundations import losses
        >>> from mlnotes_jax.nets.mlp import MLP
        >>> from mlnotes_jax.training import loop
        >>> from flax import nnx
        >>> keys = jax.random.split(jax.random.key(0), 3)
        >>> runs = loop.fit_many(
        ...     keys, lambda key: MLP((2, 4, 2), rngs=nnx.Rngs(key)), optax.sgd(0.1), keys,
        ...     losses.softmax_cross_entropy_with_integer_labels,
        ...     (jnp.eye(2), jnp.arange(2)), num_epochs=2, batch_size=2,
        ... )
        >>> networks.from_runs(runs).num_members
        3
    """
    params, state = runs.params, runs.state
    if index is not None:
        index = _checks.integer("index", index, ndim=1)
        _checks.not_empty("index", index)
        _checks.in_range("index", index, 0, len(runs.status) - 1)
        params, state = jax.tree.map(lambda leaf: leaf[index], (params, state))
    return Ensemble(params, state, runs.apply)


def from_models(models: Sequence[nnx.Module | loop.Bound]) -> Ensemble:
    """Stack networks that were trained one by one.

    Args:
        models: At least one; all of one form.

    Returns:
        The ensemble.

    Raises:
        ValueError: There is none, or their forms or shapes differ.
        TypeError: One is no model.

    Example:
        >>> from flax import nnx
        >>> from mlnotes_jax.ensembles import networks
        >>> nets = [nnx.Linear(3, 2, rngs=nnx.Rngs(seed)) for seed in range(4)]
        >>> networks.from_models(nets).num_members
        4
    """
    bound = [_bound(f"models[{i}]", model) for i, model in enumerate(models)]
    if not bound:
        raise ValueError("models must hold at least one model, got none")
    shapes = [jax.tree.map(jnp.shape, one[:2]) for one in bound]
    for i, one in enumerate(bound):
        if one.apply != bound[0].apply or shapes[i] != shapes[0]:
            raise ValueError(f"models must be of one form, got another in models[{i}]")
    params, state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(one[:2] for one in bound))
    return Ensemble(params, state, bound[0].apply)


def snapshots(model: nnx.Module | loop.Bound, average: averaging.AverageState) -> Ensemble:
    """Take checkpoints of one run: networks that cost no more than one.

    With a learning rate that falls to zero again and again, such as
    [`warm_restarts`][mlnotes_jax.optimization.schedules.warm_restarts] of L updates, the last
    update of every cycle is kept by `averaging.snapshots(m, start=L - 1, every=L)`, given to
    `loop.fit` as `average`.

    Args:
        model: A network of the form that was trained.
        average: `result.state.average`, what the average remembers.

    Returns:
        The ensemble, oldest first. Entries that the run was too short to fill are left out.

    Raises:
        ValueError: `average` is of another kind, or (where concrete) holds nothing yet; or the
            network keeps running statistics, which the average does not.
        TypeError: `model` is no model.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.ensembles import networks
        >>> from mlnotes_jax.optimization import averaging
        >>> from mlnotes_jax.training import loop
        >>> line = loop.Bound(jnp.eye(1), {}, lambda params, state, x, **mode: (x @ params, state))
        >>> average = averaging.snapshots(2)
        >>> state = average.init(line.params)
        >>> for slope in (1.0, 2.0, 5.0):
        ...     state = average.update(state, slope * line.params)
        >>> networks.outputs(networks.snapshots(line, state), jnp.ones((1, 1))).ravel().tolist()
        [2.0, 5.0]

    Reference:
        Huang, Li, Pleiss, Liu, Hopcroft and Weinberger, *Snapshot Ensembles: Train 1, Get M for
        Free* (ICLR 2017).
    """
    _, state, apply = _bound("model", model)
    if any(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(state)):
        raise ValueError(
            "model must keep no running statistics, as batch norm does: a snapshot has none of its "
            "own; compute them anew for each, and use from_models"
        )
    params, filled = averaging.held(average)
    if _checks.is_concrete(filled):
        count = int(np.asarray(filled).sum())
        if not count:
            raise ValueError("average must hold at least one snapshot, got none")
        params = jax.tree.map(lambda leaf: leaf[-count:], params)
    num = jax.tree.leaves(params)[0].shape[0]
    state = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (num, *leaf.shape)), state)
    return Ensemble(params, state, apply)


def best(losses: Float[ArrayLike, " runs"], num: int) -> Int[Array, " num"]:
    """Number the runs of the lowest losses, the lowest first: the best of a search.

    Args:
        losses: One for each run, on rows that were not fitted, shape `(runs,)`; NaN comes last.
        num: How many; static.

    Returns:
        Numbers of runs, int32, shape `(num,)`; the first of equals first.

    Raises:
        ValueError: `num` is less than 1, or more than there are runs.
        TypeError: `num` is no integer, or `losses` are not real.

    Example:
        >>> from mlnotes_jax.ensembles import networks
        >>> networks.best([0.3, float("nan"), 0.1, 0.2], 2).tolist()
        [2, 3]
    """
    losses = _checks.floating("losses", losses, ndim=1)
    _checks.positive_int("num", num)
    if num > losses.shape[0]:
        raise ValueError(f"num must be at most the {losses.shape[0]} runs, got {num}")
    return jnp.argsort(losses)[:num].astype(jnp.int32)


# --- What they say --------------------------------------------------------------------------------


def outputs(ensemble: Ensemble, x: PyTree, *, batch_size: int = 256) -> Float[Array, "m n ..."]:
    """Ask every member, in eval mode: logits, or predicted numbers.

    Args:
        ensemble: Networks of one form.
        x: Inputs, with one leading axis of n rows.
        batch_size: Rows at a time; static.

    Returns:
        Shape `(m, n, ...)`, member first.

    Raises:
        ValueError: `x` is empty, or `batch_size` is less than 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from mlnotes_jax.ensembles import networks
        >>> nets = [nnx.Linear(3, 2, rngs=nnx.Rngs(seed)) for seed in range(4)]
        >>> networks.outputs(networks.from_models(nets), jnp.ones((5, 3))).shape
        (4, 5, 2)
    """
    together = loop.Bound(ensemble.params, ensemble.state, _Together(ensemble.apply))
    found = loop.predict(together, x, batch_size=batch_size)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), found)


def combine(
    logits: Float[ArrayLike, "m *n k"],
    *,
    average: Kind = "probabilities",
    weights: Float[ArrayLike, " m"] | None = None,
) -> Float[Array, "*n k"]:
    r"""Average the members, and give logarithms of probabilities.

    $$
    \ln P_c = \ln \sum_m w_m\, e^{\ln p_{mc}} , \qquad
    \ln G_c = \sum_m w_m \ln p_{mc} - \ln \sum_j e^{\sum_m w_m \ln p_{mj}}
    $$

    Args:
        logits: Of the members, shape `(m, ..., k)`; logarithms of probabilities are logits, too.
        average: Of the `"probabilities"`, $P$, or of the `"logits"`, $G$; static.
        weights: $w_m \ge 0$, shape `(m,)`, divided by their sum; zero drops a member.

    Returns:
        Shape `(..., k)`, in at least float32.

    Raises:
        ValueError: There is no member or no class, weights do not fit, are negative or all 0, or
            `average` is unknown.
        TypeError: An array is not real.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.ensembles import networks
        >>> members = jnp.log(jnp.array([[[0.5, 0.5]], [[0.9, 0.1]]]))
        >>> for average in ("probabilities", "logits"):
        ...     first, second = jnp.exp(networks.combine(members, average=average))[0]
        ...     print(f"{first:.2f} {second:.2f}")
        0.70 0.30
        0.75 0.25

    Reference:
        Hinton, *Training Products of Experts by Minimizing Contrastive Divergence* (Neural
        Computation, 2002), section 1, on the two averages.
    """
    _checks.one_of("average", average, ("probabilities", "logits"))
    z, share = _members("logits", logits, weights, least=2)
    return _combine(z, share, average)


def predict_proba(
    ensemble: Ensemble,
    x: PyTree,
    *,
    average: Kind = "probabilities",
    weights: Float[ArrayLike, " m"] | None = None,
    batch_size: int = 256,
) -> Float[Array, "n k"]:
    """Probability of each class, averaged over the members.

    Args:
        ensemble: Networks that give logits.
        x: As in `outputs`.
        average: As in `combine`.
        weights: As in `combine`.
        batch_size: As in `outputs`.

    Returns:
        Shape `(n, k)`; each row adds up to 1.

    Raises:
        ValueError: As in `outputs` and `combine`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from mlnotes_jax.ensembles import networks
        >>> nets = [nnx.Linear(3, 2, rngs=nnx.Rngs(seed)) for seed in range(4)]
        >>> networks.predict_proba(networks.from_models(nets), jnp.ones((5, 3))).shape
        (5, 2)
    """
    logits = outputs(ensemble, x, batch_size=batch_size)
    return jnp.exp(combine(logits, average=average, weights=weights))


def predict(
    ensemble: Ensemble,
    x: PyTree,
    *,
    average: Kind = "probabilities",
    weights: Float[ArrayLike, " m"] | None = None,
    batch_size: int = 256,
) -> Int[Array, " n"]:
    """The most probable class of the average, the first of equals.

    Args:
        ensemble: As in `predict_proba`.
        x: As in `outputs`.
        average: As in `combine`.
        weights: As in `combine`.
        batch_size: As in `outputs`.

    Returns:
        Classes as int32, shape `(n,)`; -1 where a probability is no number.

    Raises:
        ValueError: As in `outputs` and `combine`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from mlnotes_jax.ensembles import networks
        >>> nets = [nnx.Linear(3, 2, rngs=nnx.Rngs(seed)) for seed in range(4)]
        >>> networks.predict(networks.from_models(nets), jnp.ones((5, 3))).shape
        (5,)
    """
    p = predict_proba(ensemble, x, average=average, weights=weights, batch_size=batch_size)
    return jnp.where(jnp.isnan(p).any(axis=-1), -1, p.argmax(axis=-1).astype(jnp.int32))


# --- The gain, and where it comes from ------------------------------------------------------------


def ambiguity(
    outputs: Float[ArrayLike, "m n ..."],
    targets: Float[ArrayLike, "n ..."],
    *,
    weights: Float[ArrayLike, " m"] | None = None,
) -> Decomposition:
    r"""Split the squared error of a mean: $\|\bar f - y\|^2 = \overline{\|f_m - y\|^2} - A$.

    $\bar f = \sum_m w_m f_m$, and the ambiguity $A = \sum_m w_m \|f_m - \bar f\|^2$ needs no
    target. So a mean is never worse than its members are on average, and better the more they
    differ. With probabilities as outputs and one-hot targets the error is the Brier score.

    Args:
        outputs: Of the members, shape `(m, n)` or `(m, n, ...)`; errors are sums over all but the
            first two axes.
        targets: Shape `(n, ...)`.
        weights: $w_m \ge 0$, shape `(m,)`, divided by their sum.

    Returns:
        The three parts, each of shape `(n,)`.

    Raises:
        ValueError: Shapes do not fit, or weights are negative or all 0.
        TypeError: An array is not real.

    Example:
        >>> from mlnotes_jax.ensembles import networks
        >>> found = networks.ambiguity([[1.0], [4.0]], [3.0])
        >>> [part.item() for part in found]  # 2.5 for 3: 0.25 = (4 + 1) / 2 - 2.25
        [0.25, 2.5, 2.25]

    Reference:
        Krogh and Vedelsby (1994), equation 5.
    """
    f, y, share = _scored(outputs, targets, weights)
    return _ambiguity(f, y, share)


def cross_entropy_ambiguity(
    logits: Float[ArrayLike, "m n k"],
    labels: Int[ArrayLike, " n"],
    *,
    average: Kind = "probabilities",
    weights: Float[ArrayLike, " m"] | None = None,
) -> Decomposition:
    r"""Split the cross-entropy of an ensemble; the ambiguity is never negative, by Jensen.

    Averaged logits: $A = -\ln \sum_c \prod_m p_{mc}^{w_m} = \sum_m w_m
    \operatorname{KL}(G \,\|\, p_m)$, whatever the label. Averaged probabilities:
    $A = \ln \sum_m w_m p_{my} - \sum_m w_m \ln p_{my}$ with the label $y$.

    Args:
        logits: Of the members, shape `(m, n, k)`.
        labels: $y$, shape `(n,)`.
        average: As in `combine`; static.
        weights: As in `combine`.

    Returns:
        The three parts in nats, each of shape `(n,)`; NaN where a label under a transformation is
        no class.

    Raises:
        ValueError: As in `combine`, or shapes do not fit, or a concrete label is no class.
        TypeError: `labels` are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.ensembles import networks
        >>> members = jnp.log(jnp.array([[[0.5, 0.5]], [[0.9, 0.1]]]))
        >>> for average in ("probabilities", "logits"):
        ...     parts = networks.cross_entropy_ambiguity(members, [0], average=average)
        ...     print([round(part.item(), 3) for part in parts])
        [0.357, 0.399, 0.043]
        [0.288, 0.399, 0.112]

    Reference:
        Heskes, *Selecting Weighting Factors in Logarithmic Opinion Pools* (NIPS 1997), equation 4,
        for averaged logits.
    """
    _checks.one_of("average", average, ("probabilities", "logits"))
    z, share = _members("logits", logits, weights, least=2)
    labels = _checks.integer("labels", labels)
    if z.ndim != 3 or labels.shape != z.shape[1:2]:
        raise ValueError(
            f"labels must have shape {z.shape[1:-1]} for 3-D logits, got {labels.shape}"
        )
    _checks.class_labels("labels", labels, z.shape[-1])
    return _cross_entropy(z, labels, share, average)


def error_by_size(
    outputs: Float[ArrayLike, "m n ..."], targets: Float[ArrayLike, "n ..."]
) -> Float[Array, "m n"]:
    r"""Squared error of ensembles of 1, 2, …, M of the members, the mean over all such ensembles.

    $$
    E_s = \bar E - \frac{M}{M - 1} \Big( 1 - \frac1s \Big) A
    $$

    with the mean error $\bar E$ and the ambiguity $A$ of all M: no subset has to be drawn. It falls
    like $1/s$, towards a limit that more members do not pass.

    Args:
        outputs: As in `ambiguity`.
        targets: As in `ambiguity`.

    Returns:
        $E_1, \dots, E_M$ of each row, shape `(m, n)`.

    Raises:
        ValueError: Shapes do not fit.
        TypeError: An array is not real.

    Example:
        >>> from mlnotes_jax.ensembles import networks
        >>> networks.error_by_size([[1.0], [4.0]], [3.0]).ravel().tolist()
        [2.5, 0.25]
    """
    f, y, share = _scored(outputs, targets, None)
    return _error_by_size(f, y, share)


def disagreement(logits: Float[ArrayLike, "m n k"]) -> Float[Array, ""]:
    """How often two members name different classes: the mean over all pairs and rows.

    Args:
        logits: Of the members, at least two, shape `(m, n, k)`.

    Returns:
        A share in [0, 1], shape `()`; 0 if all agree on every row.

    Raises:
        ValueError: The rank is not 3, or there are fewer than two members.
        TypeError: `logits` are not real.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.ensembles import networks
        >>> said = jnp.array([[0, 1], [0, 1], [0, 2]])  # three members, two rows
        >>> print(networks.disagreement(jnp.eye(3)[said]).round(4))
        0.3333
    """
    z, _ = _members("logits", logits, None, least=2)
    if z.ndim != 3 or z.shape[0] < 2:
        raise ValueError(f"logits must be 3-D with two members or more, got shape {z.shape}")
    return _disagreement(z)


# --- One network from many ------------------------------------------------------------------------


def soft_targets(
    logits: Float[ArrayLike, "m *n k"],
    *,
    temperature: Float[ArrayLike, ""] = 1.0,
    average: Kind = "probabilities",
    weights: Float[ArrayLike, " m"] | None = None,
) -> Float[Array, "*n k"]:
    r"""What a teacher of several members says at a temperature: the average of $z_m / T$.

    A high temperature shows which wrong classes the teacher takes for likelier than others.

    Args:
        logits: Of the members, shape `(m, ..., k)`; of one teacher, `logits[None]`.
        temperature: $T > 0$; traced.
        average: As in `combine`.
        weights: As in `combine`.

    Returns:
        Probabilities, shape `(..., k)`.

    Raises:
        ValueError: As in `combine`, or `temperature` is not a positive scalar.
        TypeError: As in `combine`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.ensembles import networks
        >>> teacher = jnp.array([[6.0, 2.0, 0.0]])
        >>> print(networks.soft_targets(teacher).round(3))
        [0.98  0.018 0.002]
        >>> print(networks.soft_targets(teacher, temperature=4.0).round(3))
        [0.629 0.231 0.14 ]

    Reference:
        Hinton, Vinyals and Dean (2015), section 2.
    """
    _checks.one_of("average", average, ("probabilities", "logits"))
    z, share = _members("logits", logits, weights, least=2)
    return _soft_targets(z, share, _temperature(temperature, z), average)


def distillation_loss(
    logits: Float[ArrayLike, "*n k"],
    targets: Float[ArrayLike, "*n k"],
    labels: Int[ArrayLike, "*n"] | None = None,
    *,
    temperature: Float[ArrayLike, ""] = 1.0,
    soft_weight: Float[ArrayLike, ""] = 1.0,
) -> Float[Array, ""]:
    r"""How far a student is from its teacher, and from the labels.

    With the student's logits $z$ and the teacher's probabilities $t$ at the temperature $T$,

    $$
    \begin{aligned}
    \ell &= \alpha\, T^2 \operatorname{KL}\big( t \,\|\, \operatorname{softmax}(z / T) \big)
      - (1 - \alpha) \ln \operatorname{softmax}(z)_y , \\
    \frac{\partial \ell}{\partial z} &= \alpha\, T\, \big( \operatorname{softmax}(z/T) - t \big)
      + (1 - \alpha) \big( \operatorname{softmax}(z) - e_y \big) .
    \end{aligned}
    $$

    The gradient of the KL divergence shrinks like $1 / T^2$; the factor makes up for that, so that
    $\alpha$ means the same at every temperature.

    Args:
        logits: $z$ of the student, shape `(..., k)`.
        targets: $t$, from `soft_targets` **at the same temperature**, shape `(..., k)`.
        labels: $y$, shape `(...)`; not needed where `soft_weight` is 1.
        temperature: $T > 0$; traced.
        soft_weight: $\alpha$ in [0, 1]; traced.

    Returns:
        The mean over rows in nats, shape `()`.

    Raises:
        ValueError: Shapes do not fit, a number is out of range, a concrete label is no class, or
            there are no labels where `soft_weight` is not known to be 1.
        TypeError: `labels` are not integers, or an array is not real.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.ensembles import networks
        >>> teacher = jnp.array([[6.0, 2.0, 0.0]])
        >>> targets = networks.soft_targets(teacher[None], temperature=4.0)
        >>> for student in (teacher, jnp.zeros((1, 3))):
        ...     loss = networks.distillation_loss(student, targets, temperature=4.0)
        ...     print(f"{abs(loss):.3f}")
        0.000
        3.082

    Reference:
        Hinton, Vinyals and Dean (2015), section 2.

    Note:
        `torch.nn.KLDivLoss(reduction="batchmean")` times $T^2$. The cross-entropy of soft targets,
        as the paper writes it, is larger by the teacher's entropy and has the same gradient.
    """
    z = _wide(_checks.floating("logits", logits))
    t = _checks.floating("targets", targets).astype(z.dtype)
    _checks.same_shape(logits=z, targets=t)
    _checks.not_empty("logits", z)
    _checks.not_negative("targets", t)
    temperature = _temperature(temperature, z)
    alpha = _checks.floating("soft_weight", soft_weight, ndim=0).astype(z.dtype)
    _checks.in_range("soft_weight", alpha, 0, 1)
    if labels is None:
        if not _checks.is_concrete(soft_weight) or float(np.asarray(soft_weight)) != 1:
            raise ValueError("labels must be given where soft_weight may be less than 1, got None")
        return _soft_loss(z, t, temperature)
    labels = _checks.integer("labels", labels)
    if labels.shape != z.shape[:-1]:
        raise ValueError(f"labels must have shape {z.shape[:-1]}, got {labels.shape}")
    _checks.class_labels("labels", labels, z.shape[-1])
    hard = -_of_class(jax.nn.log_softmax(z), labels).mean()
    return alpha * _soft_loss(z, t, temperature) + (1 - alpha) * hard


# --- Private --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Together:
    """All members as one function with a row for each row; equal for equal networks."""

    apply: Callable[..., tuple[PyTree, PyTree]]

    def __call__(self, params: PyTree, state: PyTree, x: PyTree, **mode: Any) -> Any:
        ask = jax.vmap(lambda p, s: self.apply(p, s, x, **mode)[0], out_axes=1)
        return ask(params, state), state


def _bound(name: str, model: Any) -> loop.Bound:
    if isinstance(model, nnx.Module):
        return loop.bind(model)
    if isinstance(model, loop.Bound):
        params, state = jax.tree.map(jnp.asarray, (model.params, model.state))
        return loop.Bound(params, state, model.apply)
    raise TypeError(f"{name} must be an nnx.Module or a Bound, got {type(model).__name__}")


def _wide(array: Array) -> Array:
    """In at least float32."""
    return array.astype(jnp.float32) if jnp.finfo(array.dtype).bits < 32 else array


def _temperature(temperature: ArrayLike, like: Array) -> Array:
    value = _checks.floating("temperature", temperature, ndim=0).astype(like.dtype)
    _checks.positive("temperature", value)
    return value


def _members(name: str, values: ArrayLike, weights: Any, *, least: int) -> tuple[Array, Any]:
    """The members' numbers, and their shares of the mean."""
    array = _wide(_checks.floating(name, values))
    if array.ndim < least or array.shape[0] == 0 or array.shape[-1] == 0:
        raise ValueError(f"{name} must have members first and classes last, got {array.shape}")
    if weights is None:
        return array, np.full(array.shape[:1], 1 / array.shape[0], array.dtype)
    share = _checks.floating("weights", weights, ndim=1).astype(array.dtype)
    if share.shape != array.shape[:1]:
        raise ValueError(f"weights must have shape {array.shape[:1]}, got {share.shape}")
    _checks.not_negative("weights", share)
    _checks.positive("the sum of weights", share.sum())
    return array, share / share.sum()


def _scored(outputs: ArrayLike, targets: ArrayLike, weights: Any) -> tuple[Array, Array, Any]:
    f, share = _members("outputs", outputs, weights, least=2)
    y = _checks.floating("targets", targets).astype(f.dtype)
    if y.shape != f.shape[1:]:
        raise ValueError(f"targets must have shape {f.shape[1:]}, as each member, got {y.shape}")
    return f, y, share


def _over_members(share: Array, values: Array) -> Array:
    """The weighted mean; a member of weight 0 may hold anything."""
    share = share.reshape(-1, *(1,) * (values.ndim - 1))
    return jnp.where(share == 0, 0, share * jnp.where(share == 0, 0, values)).sum(axis=0)


@partial(jax.jit, static_argnames="average")
def _combine(z: Array, share: Array, average: str) -> Array:
    log_p = jax.nn.log_softmax(z)
    if average == "logits":
        return jax.nn.log_softmax(_over_members(share, log_p))
    share = share.reshape(-1, *(1,) * (z.ndim - 1))
    log_p = jnp.where(share == 0, -jnp.inf, log_p)
    return jax.scipy.special.logsumexp(log_p, axis=0, b=share)


@jax.jit
def _ambiguity(f: Array, y: Array, share: Array) -> Decomposition:
    centre = _over_members(share, f)

    def squares(gap: Array) -> Array:
        return jnp.square(gap).reshape(*gap.shape[: -y.ndim], y.shape[0], -1).sum(axis=-1)

    return Decomposition(
        squares(centre - y),
        _over_members(share, squares(f - y[None])),
        _over_members(share, squares(f - centre[None])),
    )


@jax.jit
def _error_by_size(f: Array, y: Array, share: Array) -> Array:
    found, num = _ambiguity(f, y, share), f.shape[0]
    size = jnp.arange(1, num + 1, dtype=f.dtype)
    gain = (1 - 1 / size) * (num / max(num - 1, 1))
    return found.mean_error[None] - gain[:, None] * found.ambiguity[None]


@partial(jax.jit, static_argnames="average")
def _cross_entropy(z: Array, labels: Array, share: Array, average: str) -> Decomposition:
    log_p, together = jax.nn.log_softmax(z), _combine(z, share, average)
    of_label = jax.vmap(_of_class, (0, None))(log_p, labels)
    if average == "logits":
        # Not as the difference: what the geometric mean lacks of a sum of 1.
        spread = -jax.scipy.special.logsumexp(_over_members(share, log_p), axis=-1)
    else:
        # By the ratios to the largest, less 1: where members agree, all are small.
        top = jnp.where(share[:, None] == 0, -jnp.inf, of_label).max(axis=0)
        ratio = of_label - top[None]
        spread = jnp.log1p(_over_members(share, jnp.expm1(ratio))) - _over_members(share, ratio)
    return Decomposition(-_of_class(together, labels), -_over_members(share, of_label), spread)


@jax.jit
def _disagreement(z: Array) -> Array:
    num = z.shape[0]
    votes = jax.nn.one_hot(z.argmax(axis=-1), z.shape[-1], dtype=z.dtype).sum(axis=0)
    # Ordered pairs of a member that votes for a class and one that does not.
    return (votes * (num - votes)).sum(axis=-1).mean() / (num * (num - 1))


@partial(jax.jit, static_argnames="average")
def _soft_targets(z: Array, share: Array, temperature: Array, average: str) -> Array:
    return jnp.exp(_combine(z / temperature, share, average))


def _of_class(log_p: Array, labels: Array) -> Array:
    """The entry of the label; NaN where that is no class."""
    known = (labels >= 0) & (labels < log_p.shape[-1])
    picked = jnp.take_along_axis(log_p, jnp.where(known, labels, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(known, picked, jnp.nan)


@jax.jit
def _soft_loss(z: Array, t: Array, temperature: Array) -> Array:
    log_q = jax.nn.log_softmax(z / temperature)
    log_t = jnp.log(jnp.where(t > 0, t, 1))
    gap = jnp.where(t > 0, t * (log_t - log_q), 0)
    return jnp.square(temperature) * gap.sum(axis=-1).mean()
