r"""Adam and its kin: AMSGrad, NAdam and RAdam.

Averages of the gradient $g_t$ and of its square, each divided by the sum of its weights:

$$m_t = \beta_1 m_{t-1} + (1 - \beta_1)\, g_t, \qquad
  v_t = \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2, \qquad m_0 = v_0 = 0,$$

$$\theta_t = \theta_{t-1} - \eta\, \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}, \qquad
  \hat m_t = \frac{m_t}{1 - \beta_1^t}, \quad \hat v_t = \frac{v_t}{1 - \beta_2^t}.$$

AMSGrad divides by the largest second moment so far; NAdam puts the newest gradient into the average
once more, as Nesterov's momentum does; RAdam holds the step back while $\hat v_t$ rests on too few
gradients. Where authors and libraries differ, the defaults are PyTorch's, and one argument each
selects the other form.

Reference: Kingma and Ba, *Adam: A Method for Stochastic Optimization* (2015), algorithm 1.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from mlnotes_jax import _checks
from mlnotes_jax.optimization import _adam, _rules

__all__ = [
    "AMSGradState",
    "AdamState",
    "NAdamState",
    "Rectification",
    "adam",
    "amsgrad",
    "nadam",
    "radam",
    "rectification",
    "step_bound",
]


class AdamState(NamedTuple):
    """What Adam and RAdam remember.

    Attributes:
        count: Updates done, int32, shape `()`.
        first_moment: $m$: as the parameters, in at least float32, not corrected.
        second_moment: $v$: likewise.
    """

    count: Int[Array, ""]
    first_moment: PyTree
    second_moment: PyTree


class AMSGradState(NamedTuple):
    """What AMSGrad remembers.

    Attributes:
        count: Updates done, int32, shape `()`.
        first_moment: $m$: as the parameters, in at least float32, not corrected.
        second_moment: $v$: likewise.
        largest: The largest second moment so far, of each parameter: of $v$, or of its corrected
            form, whichever the maximum is taken of.
    """

    count: Int[Array, ""]
    first_moment: PyTree
    second_moment: PyTree
    largest: PyTree


class NAdamState(NamedTuple):
    r"""What NAdam remembers.

    Attributes:
        count: Updates done, int32, shape `()`.
        first_moment: $m$: as the parameters, in at least float32, not corrected.
        second_moment: $v$: likewise.
        momentum_product: $\mu_1 \mu_2 \cdots \mu_t$, shape `()`.
    """

    count: Int[Array, ""]
    first_moment: PyTree
    second_moment: PyTree
    momentum_product: Float[Array, ""]


class Rectification(NamedTuple):
    r"""How far the second moment can be trusted after some steps.

    Attributes:
        length: $\rho_t$: the simple average of as many squares is as old on average.
        factor: $r_t$, by which RAdam multiplies Adam's step; 1 where it is not rectified.
        rectified: Whether the length is beyond the threshold. Where it is not, RAdam leaves out
            the division by the root.
    """

    length: Float[Array, "*shape"]
    factor: Float[Array, "*shape"]
    rectified: Bool[Array, "*shape"]


def adam(
    learning_rate: _rules.Rate = 1e-3,
    *,
    beta1: Float[ArrayLike, ""] = 0.9,
    beta2: Float[ArrayLike, ""] = 0.999,
    epsilon: Float[ArrayLike, ""] = 1e-8,
    epsilon_in_root: bool = False,
    epsilon_hat: bool = False,
) -> optax.GradientTransformation:
    r"""Adam: momentum divided by the root mean square of the gradients, both corrected.

    $$\theta_t = \theta_{t-1} - \eta\, \frac{m_t / (1 - \beta_1^t)}
                                            {\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}.$$

    Args:
        learning_rate: $\eta \ge 0$: a number, traced or not, or a schedule. About the length of a
            step in each parameter; see `step_bound`.
        beta1: $\beta_1$ in [0, 1), the decay of the average of gradients. Traced.
        beta2: $\beta_2$ in [0, 1), the decay of the average of squares. Traced.
        epsilon: $\epsilon \ge 0$. With 0, a parameter that has had no gradient yet becomes NaN.
            Traced.
        epsilon_in_root: Whether it stands in the root, $\sqrt{\hat v_t + \epsilon}$, where it has
            the unit of a squared gradient; static. The derivative of the step is then finite at a
            gradient of zero, for those who differentiate through it.
        epsilon_hat: Whether it is added before the correction, $(\sqrt{v_t} + \epsilon) /
            \sqrt{1 - \beta_2^t}$: the paper's $\hat\epsilon$ of section 2; static.

    Returns:
        The rule, with the state `AdamState`.

    Raises:
        ValueError: `learning_rate` or `epsilon` is negative or not finite, or a decay is not in
            [0, 1).
        TypeError: One of them is no real number; in `init` and `update`, a leaf is no array of
            floats.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from mlnotes_jax.optimization import adam
        >>> rule = adam.adam(0.5)
        >>> params = {"w": jnp.array([1.0, 1.0])}
        >>> state = rule.init(params)
        >>> updates, state = rule.update({"w": jnp.array([1e-3, -1e3])}, state, params)
        >>> new = optax.apply_updates(params, updates)
        >>> [round(float(w), 3) for w in new["w"]]  # by sign, at first
        [0.5, 1.5]

    Reference:
        Kingma and Ba (2015), algorithm 1.

    Note:
        `torch.optim.Adam` and `optax.adam` are this. Optax's `eps_root` is our
        `epsilon_in_root=True` with their `eps=0`. TensorFlow and Keras have `epsilon_hat=True`.
    """
    rate = _rules.rate(learning_rate)
    _check(beta1, beta2, epsilon)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, AdamState]:
        del params
        count = _rules.next_count(state.count)

        def leaf(g: Array, m: Array, v: Array, eta: Array, *numbers: Array) -> tuple[Array, ...]:
            step = _adam.Step(*numbers)
            m, v = _adam.moments(g, m, v, step)
            root = _adam.root(v, step, in_root=epsilon_in_root, hat=epsilon_hat)
            return -eta * (m * step.scale1 / root), m, v

        numbers = _adam.step_numbers(count, beta1, beta2, epsilon)
        moved, m, v = _rules.per_leaf(
            leaf,
            3,
            updates,
            state.first_moment,
            state.second_moment,
            scalars=(rate(state.count), *numbers),
        )
        return moved, AdamState(count, m, v)

    return optax.GradientTransformation(_at_rest, update)


def amsgrad(
    learning_rate: _rules.Rate = 1e-3,
    *,
    beta1: Float[ArrayLike, ""] = 0.9,
    beta2: Float[ArrayLike, ""] = 0.999,
    epsilon: Float[ArrayLike, ""] = 1e-8,
    epsilon_in_root: bool = False,
    maximum_of: Literal["raw", "corrected"] = "raw",
    bias_correction: bool = True,
) -> optax.GradientTransformation:
    r"""AMSGrad: Adam that divides by the largest second moment so far, and so forgets no gradient.

    $$\theta_t = \theta_{t-1} - \eta\, \frac{\hat m_t}{\sqrt{u_t} + \epsilon}, \qquad
      u_t = \frac{\max_{i \le t} v_i}{1 - \beta_2^t} \;\text{(raw)}, \qquad
      u_t = \max_{i \le t} \hat v_i \;\text{(corrected)}.$$

    The divisor of the corrected form never shrinks. That of the raw form does, in the first steps:
    $1 - \beta_2^t$ grows faster than the maximum.

    Args:
        learning_rate: $\eta \ge 0$: a number, traced or not, or a schedule.
        beta1: $\beta_1$ in [0, 1). Traced.
        beta2: $\beta_2$ in [0, 1). Traced.
        epsilon: $\epsilon \ge 0$. Traced.
        epsilon_in_root: Whether it stands in the root, $\sqrt{u_t + \epsilon}$; static.
        maximum_of: Whether the maximum is of $v_i$, and its result corrected (`"raw"`), or of
            $\hat v_i$ (`"corrected"`); static.
        bias_correction: Whether there are corrections at all; without them $u_t = \max v_i$ and
            $\hat m_t = m_t$, as in the paper; static.

    Returns:
        The rule, with the state `AMSGradState`.

    Raises:
        ValueError: `learning_rate` or `epsilon` is negative or not finite, a decay is not in
            [0, 1), or `maximum_of` is unknown.
        TypeError: One of them is no real number; in `init` and `update`, a leaf is no array of
            floats.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import adam
        >>> rule = adam.amsgrad(1.0, beta1=0.0, beta2=0.5, maximum_of="corrected")
        >>> state, steps = rule.init(jnp.zeros(())), []
        >>> for gradient in (4.0, 1.0, 1.0):
        ...     step, state = rule.update(jnp.array(gradient), state)
        ...     steps.append(float(step))
        >>> steps  # the gradient of 4 stays in the divisor
        [-1.0, -0.25, -0.25]

    Reference:
        Reddi, Kale and Kumar, *On the Convergence of Adam and Beyond* (2018), algorithm 2.

    Note:
        `torch.optim.Adam(amsgrad=True)` takes the maximum of the raw moment, `optax.amsgrad` that
        of the corrected one. The paper corrects nothing, as `optax.amsgrad` does with
        `bias_correction_mu=False, bias_correction_nu=False`.
    """
    rate = _rules.rate(learning_rate)
    _check(beta1, beta2, epsilon)
    _checks.one_of("maximum_of", maximum_of, ("raw", "corrected"))

    def init(params: PyTree) -> AMSGradState:
        _rules.check_params(params)
        return AMSGradState(_zero(), *(_rules.zeros(params) for _ in range(3)))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, AMSGradState]:
        del params
        count = _rules.next_count(state.count)

        def leaf(
            g: Array, m: Array, v: Array, largest: Array, eta: Array, *numbers: Array
        ) -> tuple[Array, ...]:
            step = _adam.Step(*numbers)
            m, v = _adam.moments(g, m, v, step)
            if not bias_correction:
                step = step._replace(scale1=jnp.ones_like(eta), scale2=jnp.ones_like(eta))
            if maximum_of == "raw":
                largest = jnp.maximum(largest, v)
                root = _adam.root(largest, step, in_root=epsilon_in_root)
            else:
                largest = jnp.maximum(largest, v * step.scale2)
                corrected = step._replace(scale2=jnp.ones_like(eta))
                root = _adam.root(largest, corrected, in_root=epsilon_in_root)
            return -eta * (m * step.scale1 / root), m, v, largest

        numbers = _adam.step_numbers(count, beta1, beta2, epsilon)
        moved, *rest = _rules.per_leaf(
            leaf, 4, updates, *state[1:], scalars=(rate(state.count), *numbers)
        )
        return moved, AMSGradState(count, *rest)

    return optax.GradientTransformation(init, update)


def nadam(
    learning_rate: _rules.Rate = 1e-3,
    *,
    beta1: Float[ArrayLike, ""] = 0.9,
    beta2: Float[ArrayLike, ""] = 0.999,
    epsilon: Float[ArrayLike, ""] = 1e-8,
    epsilon_in_root: bool = False,
    momentum_decay: Float[ArrayLike, ""] | None = 4e-3,
    scheduled_average: bool = False,
) -> optax.GradientTransformation:
    r"""NAdam: Adam with Nesterov's momentum, whose strength may rise from half.

    $$\theta_t = \theta_{t-1} - \frac{\eta}{\sqrt{\hat v_t} + \epsilon} \left(
        \frac{\mu_{t+1}\, m_t}{1 - \prod_{i=1}^{t+1} \mu_i}
      + \frac{(1 - \mu_t)\, g_t}{1 - \prod_{i=1}^{t} \mu_i} \right), \qquad
      \mu_t = \beta_1 \left( 1 - \tfrac12\, 0.96^{\,t \psi} \right).$$

    Args:
        learning_rate: $\eta \ge 0$: a number, traced or not, or a schedule.
        beta1: $\beta_1$ in [0, 1). Traced.
        beta2: $\beta_2$ in [0, 1). Traced.
        epsilon: $\epsilon \ge 0$. Traced.
        epsilon_in_root: Whether it stands in the root, $\sqrt{\hat v_t + \epsilon}$; static.
        momentum_decay: $\psi \ge 0$, how fast $\mu_t$ rises from $\tfrac12 \beta_1$ to $\beta_1$;
            with 0 it stays. Traced. None: $\mu_t = \beta_1$ from the start, the simple form.
        scheduled_average: Whether $m_t$ too is an average with $\mu_t$ in place of $\beta_1$;
            static. Its weights then add up to $1 - \prod \mu_i$, which the division is for.

    Returns:
        The rule, with the state `NAdamState`.

    Raises:
        ValueError: `learning_rate`, `epsilon` or `momentum_decay` is negative or not finite, or a
            decay is not in [0, 1).
        TypeError: One of them is no real number; in `init` and `update`, a leaf is no array of
            floats.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import adam
        >>> rule = adam.nadam(1.0, momentum_decay=None)
        >>> step, state = rule.update(jnp.array(7.0), rule.init(jnp.array(0.0)))
        >>> round(float(step), 4)  # 1 + 0.9 * 0.1 / (1 - 0.9**2): longer than the rate
        -1.4737

    Reference:
        Dozat, *Incorporating Nesterov Momentum into Adam* (2016), algorithm 2.

    Note:
        `torch.optim.NAdam` is the default (its learning rate is 2e-3), `optax.nadam` the simple
        form. The paper has `scheduled_average=True`, and a further factor $\beta_2$ in
        $\hat v_t$ that no library keeps. PyTorch holds the product in its default dtype, also
        where the parameters are in double precision.
    """
    rate = _rules.rate(learning_rate)
    _check(beta1, beta2, epsilon)
    if momentum_decay is not None:
        _rules.not_negative("momentum_decay", momentum_decay)

    def momentum(count: Int[Array, ""]) -> Float[Array, ""]:
        dtype = jnp.result_type(float)
        limit = jnp.asarray(beta1, dtype)
        if momentum_decay is None:
            return limit
        return limit * (
            1 - 0.5 * 0.96 ** (count.astype(dtype) * jnp.asarray(momentum_decay, dtype))
        )

    def init(params: PyTree) -> NAdamState:
        _rules.check_params(params)
        one = jnp.ones((), jnp.result_type(float))
        return NAdamState(_zero(), _rules.zeros(params), _rules.zeros(params), one)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, NAdamState]:
        del params
        count = _rules.next_count(state.count)
        now, ahead = momentum(count), momentum(_rules.next_count(count))
        product = state.momentum_product * now
        of_average, of_gradient = ahead / (1 - product * ahead), (1 - now) / (1 - product)
        step = _adam.step_numbers(count, beta1, beta2, epsilon)
        if scheduled_average:
            step = step._replace(beta1=now, share1=1 - now)

        def leaf(
            g: Array,
            m: Array,
            v: Array,
            eta: Array,
            of_average: Array,
            of_gradient: Array,
            *numbers: Array,
        ) -> tuple[Array, ...]:
            step = _adam.Step(*numbers)
            m, v = _adam.moments(g, m, v, step)
            root = _adam.root(v, step, in_root=epsilon_in_root)
            return -eta * ((of_average * m + of_gradient * g) / root), m, v

        moved, m, v = _rules.per_leaf(
            leaf,
            3,
            updates,
            state.first_moment,
            state.second_moment,
            scalars=(rate(state.count), of_average, of_gradient, *step),
        )
        return moved, NAdamState(count, m, v, product)

    return optax.GradientTransformation(init, update)


def radam(
    learning_rate: _rules.Rate = 1e-3,
    *,
    beta1: Float[ArrayLike, ""] = 0.9,
    beta2: Float[ArrayLike, ""] = 0.999,
    epsilon: Float[ArrayLike, ""] = 1e-8,
    epsilon_in_root: bool = False,
    epsilon_hat: bool = True,
    threshold: Float[ArrayLike, ""] = 5.0,
    inclusive: bool = False,
) -> optax.GradientTransformation:
    r"""RAdam: Adam whose step is held back while the second moment rests on too few gradients.

    $$\theta_t = \theta_{t-1} - \eta\, r_t\, \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}
      \;\text{ if } \rho_t > \rho^*, \qquad
      \theta_t = \theta_{t-1} - \eta\, \hat m_t \;\text{ else,}$$

    with $\rho_t$ and $r_t$ of `rectification`. The first steps, five for $\beta_2$ near 1, are
    those of momentum alone: the length of the gradient counts in them.

    Args:
        learning_rate: $\eta \ge 0$: a number, traced or not, or a schedule.
        beta1: $\beta_1$ in [0, 1). Traced.
        beta2: $\beta_2$ in [0, 1). With 0.6 or less no step is ever rectified. Traced.
        epsilon: $\epsilon \ge 0$. Traced.
        epsilon_in_root: Whether it stands in the root; static.
        epsilon_hat: Whether it is added before the correction, as in `adam`; static.
        threshold: $\rho^* \ge 4$. Traced.
        inclusive: Whether a length equal to the threshold is enough; static.

    Returns:
        The rule, with the state `AdamState`.

    Raises:
        ValueError: `learning_rate` or `epsilon` is negative or not finite, a decay is not in
            [0, 1), or `threshold` is less than 4.
        TypeError: One of them is no real number; in `init` and `update`, a leaf is no array of
            floats.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import adam
        >>> rule = adam.radam(1.0)
        >>> state, steps = rule.init(jnp.zeros(())), []
        >>> for _ in range(6):
        ...     step, state = rule.update(jnp.array(9.0), state)
        ...     steps.append(round(float(step), 3))
        >>> steps[0], steps[4], steps[5]  # five steps of momentum, then a small one
        (-9.0, -9.0, -0.026)

    Reference:
        Liu et al., *On the Variance of the Adaptive Learning Rate and Beyond* (2020), algorithm 2.

    Note:
        `torch.optim.RAdam` is the default. `optax.radam` has `epsilon_hat=False, inclusive=True`.
        The paper's threshold is 4; both libraries have 5.
    """
    rate = _rules.rate(learning_rate)
    _check(beta1, beta2, epsilon)
    _check_threshold(threshold)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, AdamState]:
        del params
        count = _rules.next_count(state.count)
        trust = rectification(count, beta2=beta2, threshold=threshold, inclusive=inclusive)

        def leaf(
            g: Array, m: Array, v: Array, eta: Array, factor: Array, *numbers: Array
        ) -> tuple[Array, ...]:
            step = _adam.Step(*numbers)
            m, v = _adam.moments(g, m, v, step)
            root = _adam.root(v, step, in_root=epsilon_in_root, hat=epsilon_hat)
            length = m * step.scale1
            return -eta * jnp.where(trust.rectified, factor * length / root, length), m, v

        numbers = _adam.step_numbers(count, beta1, beta2, epsilon)
        moved, m, v = _rules.per_leaf(
            leaf,
            3,
            updates,
            state.first_moment,
            state.second_moment,
            scalars=(rate(state.count), trust.factor, *numbers),
        )
        return moved, AdamState(count, m, v)

    return optax.GradientTransformation(_at_rest, update)


def rectification(
    count: Int[ArrayLike, "*shape"],
    *,
    beta2: Float[ArrayLike, ""] = 0.999,
    threshold: Float[ArrayLike, ""] = 5.0,
    inclusive: bool = False,
) -> Rectification:
    r"""How much RAdam trusts the second moment after `count` steps.

    $$\rho_\infty = \frac{2}{1 - \beta_2} - 1, \qquad
      \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t}, \qquad
      r_t = \sqrt{\frac{(\rho_t - 4)(\rho_t - 2)\, \rho_\infty}
                       {(\rho_\infty - 4)(\rho_\infty - 2)\, \rho_t}}.$$

    At first $\rho_t \approx t$; it is computed so that nothing cancels there.

    Args:
        count: $t \ge 1$, any shape.
        beta2: $\beta_2$ in [0, 1). Traced.
        threshold: $\rho^* \ge 4$. Traced.
        inclusive: Whether a length equal to the threshold is enough; static.

    Returns:
        Length, factor and verdict, each with the shape of `count`.

    Raises:
        ValueError: A count is less than 1, `beta2` is not in [0, 1), `threshold` is less than 4.
        TypeError: `count` holds no integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import adam
        >>> trust = adam.rectification(jnp.array([1, 5, 6, 2000]))
        >>> [round(float(rho), 2) for rho in trust.length]
        [1.0, 5.0, 5.99, 1373.65]
        >>> trust.rectified.tolist(), [round(float(r), 3) for r in trust.factor]
        ([False, False, True, True], [1.0, 1.0, 0.026, 0.828])

    Reference:
        Liu et al. (2020), equations 1 to 5.
    """
    count = _checks.integer("count", count)
    _checks.positive("count", count)
    _rules.share("beta2", beta2)
    _check_threshold(threshold)
    dtype = jnp.result_type(float)
    share = jnp.asarray(_adam.complement(beta2), dtype)
    return _rectify(count, share, jnp.asarray(threshold, dtype), inclusive)


def step_bound(
    num_steps: Int[ArrayLike, "*shape"],
    *,
    beta1: Float[ArrayLike, ""] = 0.9,
    beta2: Float[ArrayLike, ""] = 0.999,
) -> Float[Array, "*shape"]:
    r"""The longest step that Adam can make, in units of the learning rate.

    Whatever the gradients were, with $\epsilon = 0$, by Cauchy and Schwarz,

    $$\frac{|\hat m_t|}{\sqrt{\hat v_t}} \le B_t = \frac{1 - \beta_1}{1 - \beta_1^t}
      \sqrt{\frac{1 - \beta_2^t}{1 - \beta_2} \sum_{k=0}^{t-1}
      \left( \frac{\beta_1^2}{\beta_2} \right)^{k}},$$

    with equality where each gradient is $\beta_2 / \beta_1$ times the one before.

    Args:
        num_steps: $t \ge 1$, any shape.
        beta1: $\beta_1$ in [0, 1). Traced.
        beta2: $\beta_2$ in (0, 1). Traced.

    Returns:
        $B_t$, shape of `num_steps`. For $\beta_1^2 < \beta_2$ it tends to $(1 - \beta_1) /
        \sqrt{(1 - \beta_2)(1 - \beta_1^2 / \beta_2)}$.

    Raises:
        ValueError: A number is less than 1, `beta1` is not in [0, 1), `beta2` is not in (0, 1).
        TypeError: `num_steps` holds no integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import adam
        >>> [round(float(b), 2) for b in adam.step_bound(jnp.array([1, 2, 100, 10_000]))]
        [1.0, 1.0, 2.24, 7.27]

    Note:
        The paper's bound (section 2.1), $(1 - \beta_1) / \sqrt{1 - \beta_2} = 3.16$ for the default
        decays, is that of a single gradient after many zeros. Growing gradients exceed it.
    """
    num_steps = _checks.integer("num_steps", num_steps)
    _checks.positive("num_steps", num_steps)
    _rules.share("beta1", beta1)
    _rules.share("beta2", beta2)
    _checks.positive("beta2", beta2)
    dtype = jnp.result_type(float)
    betas = (jnp.asarray(beta, dtype) for beta in (beta1, beta2))
    shares = (jnp.asarray(_adam.complement(beta), dtype) for beta in (beta1, beta2))
    return _bound(num_steps, *betas, *shares)


# Compiled, because each is a dozen small operations.


@jax.jit
def _bound(count: Array, beta1: Array, beta2: Array, share1: Array, share2: Array) -> Array:
    t = count.astype(beta1.dtype)
    excess = beta1**2 / beta2 - 1  # of the ratio over 1: what the sum of the series is divided by
    safe = jnp.where(excess == 0, 1, excess)
    series = jnp.where(excess == 0, t, jnp.expm1(t * jnp.log1p(safe)) / safe)
    weight1, weight2 = _adam.weight(share1, t), _adam.weight(share2, t)
    return share1 / weight1 * jnp.sqrt(weight2 / share2 * series)


@functools.partial(jax.jit, static_argnames="inclusive")
def _rectify(count: Array, share: Array, threshold: Array, inclusive: bool) -> Rectification:
    length, longest = _length(count, share), 2 / share - 1
    rectified = length >= threshold if inclusive else length > threshold
    ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    return Rectification(length, jnp.sqrt(jnp.where(rectified, ratio, 1)), rectified)


def _length(count: Array, share: Array) -> Array:
    r"""$\rho_t = 1 + 2 \times$ the mean age of a square in the corrected average.

    With $L = -\ln \beta_2$ and $x = tL$ it is $\rho_\infty - 2t / (e^x - 1)$. For small x both
    terms are near $2 / L$ and cancel; float32 and a beta2 of 0.9999 give 6.3 for $\rho_2 = 2$.
    There, by $\rho_\infty = \coth(L / 2)$, $2 / (e^x - 1) = \coth(x / 2) - 1$ and
    $\coth y = 1 / y + \ell(y)$, it is $t - t\, \ell(x / 2) + \ell(L / 2)$.
    """
    t = count.astype(share.dtype)
    rate = -jnp.log1p(-share)
    x = rate * t
    far = 2 / share - 1 - 2 * t / jnp.expm1(x)
    near = t - t * _langevin(x / 2) + _langevin(rate / 2)
    return jnp.where(x < 0.2, near, far)


def _langevin(y: Array) -> Array:
    r"""$\coth y - 1 / y$ to round-off for $0 \le y \le 0.1$."""
    square = y * y
    return y * (1 / 3 - square * (1 / 45 - square * (2 / 945 - square * (1 / 4725))))


def _check(beta1: ArrayLike, beta2: ArrayLike, epsilon: ArrayLike) -> None:
    _rules.share("beta1", beta1)
    _rules.share("beta2", beta2)
    _rules.not_negative("epsilon", epsilon)


def _check_threshold(threshold: ArrayLike) -> None:
    _rules.scalar("threshold", threshold)
    if _checks.is_concrete(threshold) and np.asarray(threshold) < 4:
        raise ValueError(f"threshold must be at least 4, got {threshold}")


def _at_rest(params: PyTree) -> AdamState:
    """What Adam and RAdam begin with: `init` of both."""
    _rules.check_params(params)
    return AdamState(_zero(), _rules.zeros(params), _rules.zeros(params))


def _zero() -> Int[Array, ""]:
    return jnp.zeros((), jnp.int32)
