r"""From Adam to SGD: AdaBound and AMSBound close bounds around the rate, SWATS switches once.

AdaBound holds Adam's rate of each parameter between two bounds that close on one number,

$$\eta_t = \operatorname{clip}\!\left(\frac{\alpha}{\sqrt{v_t}},\;
  \eta^* \frac{\gamma t}{\gamma t + 1},\; \eta^* \frac{\gamma t + 1}{\gamma t}\right), \qquad
  \theta_t = \theta_{t-1} - \eta_t\, m_t ,$$

so that it begins as Adam and ends as SGD with momentum. SWATS takes Adam's steps $p_t$ and computes
with each the rate of SGD that it stands for,

$$\rho_t = \frac{p_t^\top p_t}{-\, p_t^\top g_t} ;$$

once that number agrees with its own average, it goes on as SGD with that rate.

Reference: Luo, Xiong, Liu and Sun, *Adaptive Gradient Methods with Dynamic Bound of Learning Rate*
(ICLR 2019), algorithm 2; Keskar and Socher, *Improving Generalization Performance by Switching from
Adam to SGD* (2017), algorithm 1.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from mlnotes_jax import _checks
from mlnotes_jax.optimization import _adam, _rules, adam

__all__ = [
    "Bounds",
    "SWATSState",
    "adabound",
    "amsbound",
    "bounds",
    "projected_rate",
    "swats",
]

Convention = Literal["code", "paper"]


class Bounds(NamedTuple):
    r"""Between which rates a step is held.

    Attributes:
        low: $\eta^* \gamma t / (\gamma t + 1)$.
        high: $\eta^* (\gamma t + 1) / (\gamma t)$.
    """

    low: Float[Array, "*shape"]
    high: Float[Array, "*shape"]


class SWATSState(NamedTuple):
    r"""What SWATS remembers, and what it reports.

    Attributes:
        count: Updates done, int32, shape `()`.
        first_moment: Adam's $m$, as the parameters, in at least float32; after the first update as
            SGD, its velocity $u_t = \beta_1 u_{t-1} + g_t$.
        second_moment: Adam's $v$; it stays as it is after the switch.
        estimate: $\rho_t$ of the newest step of Adam that had one, 0 before; shape `()`.
        average: $\lambda_t$, the average of the estimates from zero, not corrected; shape `()`.
        switched_at: The number of the last update of Adam, after which SGD began; 0 as long as it
            is Adam. int32, shape `()`.
        rate: $\Lambda$, the rate of SGD that was found at the switch; 0 before; shape `()`.
        adam_rate: The learning rate of Adam at the switch; 0 before; shape `()`.
    """

    count: Int[Array, ""]
    first_moment: PyTree
    second_moment: PyTree
    estimate: Float[Array, ""]
    average: Float[Array, ""]
    switched_at: Int[Array, ""]
    rate: Float[Array, ""]
    adam_rate: Float[Array, ""]


# --- AdaBound and AMSBound ------------------------------------------------------------------------


def bounds(
    step: ArrayLike, *, final_rate: Float[ArrayLike, "..."], gamma: Float[ArrayLike, "..."]
) -> Bounds:
    r"""The bounds of a step: $\eta^* (1 - 1 / (\gamma t + 1))$ and $\eta^* (1 + 1 / (\gamma t))$.

    Their product is always $(\eta^*)^2$: on a scale of logarithms they close on $\eta^*$ from both
    sides alike, and are $2 \ln(1 + 1 / (\gamma t))$ apart.

    Args:
        step: $t$, the number of the update, from 1; a number or an array.
        final_rate: $\eta^* \ge 0$, a number or an array of that shape.
        gamma: $\gamma > 0$, a number or an array of that shape.

    Returns:
        Both bounds, of the shape of the arguments.

    Raises:
        ValueError: `step` is less than 1, `final_rate` negative, or `gamma` not positive.
        TypeError: One of them is not numeric.

    Example:
        >>> from mlnotes_jax.optimization import bounded
        >>> low, high = bounded.bounds([1, 1000, 1_000_000], final_rate=0.1, gamma=1e-3)
        >>> print([f"{rate:.4f}" for rate in low.tolist()])
        ['0.0001', '0.0500', '0.0999']
        >>> print([f"{rate:.4f}" for rate in high.tolist()])
        ['100.1000', '0.2000', '0.1001']

    Reference: Luo et al. (2019), section 4, with $\gamma = 1 - \beta_2$.
    """
    t, gamma = _checks.floating("step", step), _checks.floating("gamma", gamma)
    final_rate = _checks.floating("final_rate", final_rate)
    _checks.not_negative("step - 1", t - 1)
    _checks.positive("gamma", gamma)
    _checks.not_negative("final_rate", final_rate)
    return _bounds(t, final_rate, gamma.astype(t.dtype))


def _bounds(t: Array, final_rate: Array, gamma: Array) -> Bounds:
    progress = gamma * t
    final_rate = final_rate.astype(progress.dtype)
    # As quotients: 1 - 1 / (x + 1) would lose its digits for small x.
    return Bounds(
        final_rate * (progress / (progress + 1)), final_rate * ((progress + 1) / progress)
    )


def adabound(
    learning_rate: _rules.Rate = 1e-3,
    *,
    final_rate: _rules.Rate = 0.1,
    gamma: Float[ArrayLike, ""] = 1e-3,
    beta1: Float[ArrayLike, ""] = 0.9,
    beta2: Float[ArrayLike, ""] = 0.999,
    epsilon: Float[ArrayLike, ""] = 1e-8,
    convention: Convention = "code",
) -> optax.GradientTransformation:
    r"""AdaBound: Adam with its rates held between bounds that close on the rate of SGD.

    $$\theta_t = \theta_{t-1} - \operatorname{clip}(\eta_t, \text{low}_t, \text{high}_t)\, m_t,
      \qquad \eta_t = \alpha\, \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \cdot
      \frac{1}{\sqrt{v_t} + \epsilon},$$

    with Adam's moments $m_t$ and $v_t$, and `bounds`. As $\gamma t$ grows, every rate comes within
    $1 \pm 1 / (\gamma t)$ of $\eta^*$; the rule is then SGD with the averaged gradient as its step:
    the heavy ball with momentum and dampening $\beta_1$.

    Args:
        learning_rate: $\alpha \ge 0$, Adam's: a number, traced or not, or a schedule.
        final_rate: $\eta^* \ge 0$, that of SGD: likewise. A schedule for both must be given twice.
        gamma: $\gamma > 0$, how fast the bounds close. Traced.
        beta1: $\beta_1$ in [0, 1). Traced.
        beta2: $\beta_2$ in [0, 1). Traced.
        epsilon: $\epsilon \ge 0$. Traced.
        convention: Whose step; static. `"code"`: the authors' code, as above. `"paper"`: the
            pseudo-code, which corrects nothing and lets all rates fall,
            $\eta_t = \alpha / (\sqrt{v_t} + \epsilon)$, and the clipped rate divided by $\sqrt t$
            (its $\epsilon$ is 0).

    Returns:
        The rule. Its state is an
        [`AdamState`][mlnotes_jax.optimization.adam.AdamState].

    Raises:
        ValueError: A rate or `epsilon` is negative or not finite, `gamma` not positive, a beta not
            in [0, 1), one of them no scalar, or `convention` unknown; in `update`, the tree is not
            that of `init`.
        TypeError: A hyper-parameter is not numeric; in `init` or `update`, a leaf is no array of
            floats.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import bounded
        >>> rule = bounded.adabound(1e-3, final_rate=0.1, gamma=1.0)
        >>> state, slope = rule.init(jnp.array(0.0)), jnp.array(20.0)
        >>> update, state = rule.update(slope, state)  # Adam's rate is far below the lower bound
        >>> print(f"{update:.4f} = -0.05 * {state.first_moment:.1f}")
        -0.1000 = -0.05 * 2.0

    Reference: Luo, Xiong, Liu and Sun (2019), algorithm 2.

    Note:
        The authors' code scales the final rate with a learning rate that changes: give
        `final_rate=lambda count: 0.1 * schedule(count) / schedule(0)` for that. It adds weight
        decay to the gradient: `optax.add_decayed_weights` before this rule. PyTorch and Optax have
        neither rule.
    """
    return _bounded(
        learning_rate, final_rate, gamma, beta1, beta2, epsilon, convention, keep_largest=False
    )


def amsbound(
    learning_rate: _rules.Rate = 1e-3,
    *,
    final_rate: _rules.Rate = 0.1,
    gamma: Float[ArrayLike, ""] = 1e-3,
    beta1: Float[ArrayLike, ""] = 0.9,
    beta2: Float[ArrayLike, ""] = 0.999,
    epsilon: Float[ArrayLike, ""] = 1e-8,
    convention: Convention = "code",
) -> optax.GradientTransformation:
    r"""AMSBound: AdaBound with the largest second moment so far, as AMSGrad has it.

    $\hat v_t = \max(\hat v_{t-1}, v_t)$ takes the place of $v_t$, so that between the bounds a rate
    never grows (but for the correction of its first steps). The maximum is taken before the
    correction.

    Args:
        learning_rate: As in [`adabound`][mlnotes_jax.optimization.bounded.adabound].
        final_rate: As there.
        gamma: As there.
        beta1: As there.
        beta2: As there.
        epsilon: As there.
        convention: As there.

    Returns:
        The rule. Its state is an
        [`AMSGradState`][mlnotes_jax.optimization.adam.AMSGradState], with the largest $v$ so far.

    Raises:
        ValueError: As in `adabound`.
        TypeError: As there.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import bounded
        >>> rule = bounded.amsbound(beta2=0.5)
        >>> state = rule.init(jnp.array(0.0))
        >>> for slope in (4.0, 0.0, 0.0):
        ...     _, state = rule.update(jnp.array(slope), state)
        >>> print(state.second_moment, state.largest)
        2.0 8.0

    Reference: Luo, Xiong, Liu and Sun (2019), algorithm 3.
    """
    return _bounded(
        learning_rate, final_rate, gamma, beta1, beta2, epsilon, convention, keep_largest=True
    )


def _bounded(
    learning_rate: _rules.Rate,
    final_rate: _rules.Rate,
    gamma: ArrayLike,
    beta1: ArrayLike,
    beta2: ArrayLike,
    epsilon: ArrayLike,
    convention: str,
    *,
    keep_largest: bool,
) -> optax.GradientTransformation:
    rate, final = _rules.rate(learning_rate), _rules.rate(final_rate, name="final_rate")
    speed = _rules.scalar("gamma", gamma)
    _checks.positive("gamma", gamma)
    _rules.share("beta1", beta1)
    _rules.share("beta2", beta2)
    _rules.not_negative("epsilon", epsilon)
    _checks.one_of("convention", convention, ("code", "paper"))

    def init(params: PyTree) -> Any:
        _rules.check_params(params)
        moments = [_rules.zeros(params) for _ in range(3 if keep_largest else 2)]
        zero = jnp.zeros((), jnp.int32)
        return (adam.AMSGradState if keep_largest else adam.AdamState)(zero, *moments)

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        del params
        count = _rules.next_count(state.count)
        t = count.astype(jnp.result_type(float))
        low, high = _bounds(t, final(state.count), speed.astype(t.dtype))
        numbers = _adam.step_numbers(count, beta1, beta2, epsilon)

        def leaf(g: Array, m: Array, v: Array, *rest: Array) -> tuple[Array, ...]:
            if keep_largest:
                largest, alpha, low, high, slowed, *others = rest
            else:
                largest, (alpha, low, high, slowed, *others) = v, rest
            step = _adam.Step(*others)
            m, v = _adam.moments(g, m, v, step)
            top = jnp.maximum(largest, v) if keep_largest else v
            if convention == "code":
                eta = jnp.clip(alpha * step.scale1 / _adam.root(top, step, hat=True), low, high)
            else:
                eta = jnp.clip(alpha / (jnp.sqrt(top) + step.epsilon), low, high) * slowed
            return (-eta * m, m, v, top) if keep_largest else (-eta * m, m, v)

        moments = state[1:]
        scalars = (rate(state.count), low, high, 1 / jnp.sqrt(t), *numbers)
        change, *moments = _rules.per_leaf(
            leaf, 1 + len(moments), updates, *moments, scalars=scalars
        )
        return change, type(state)(count, *moments)

    return optax.GradientTransformation(init, update)


# --- SWATS ----------------------------------------------------------------------------------------


def projected_rate(step: PyTree, gradient: PyTree) -> Float[Array, ""]:
    r"""The rate at which the step of SGD has a given step as its shadow: $p^\top p / (-p^\top g)$.

    The one number $\rho$ for which the projection of $-\rho g$ onto the line along $p$ is $p$.

    Args:
        step: $p$, what is added to the parameters: a pytree of arrays.
        gradient: $g$: likewise, of the same shapes.

    Returns:
        $\rho$, shape `()`, in at least float32. Negative where the step goes up the slope,
        infinite where it is at a right angle to it, NaN where it is zero.

    Raises:
        ValueError: The trees differ.
        TypeError: A leaf is no array of floats.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import bounded
        >>> p, g = jnp.array([-1.0, -1.0]), jnp.array([1.0, 3.0])
        >>> rate = bounded.projected_rate(p, g)
        >>> shadow = (p @ (-rate * g)) / (p @ p) * p
        >>> print(rate, shadow)
        0.5 [-1. -1.]

    Reference: Keskar and Socher (2017), section 3; they write $\gamma$.
    """

    def leaf(g: Array, p: Array) -> tuple[Array, ...]:
        return g, (p * p).sum(), (p * g).sum()

    _rules.check_params(step)
    _rules.same_tree("step", step, gradient, of="gradient")
    _, squares, products = _rules.per_leaf(leaf, 3, gradient, step)
    dtype = _widest(gradient)
    return _total(squares, dtype) / -_total(products, dtype)


def swats(
    learning_rate: _rules.Rate = 1e-3,
    *,
    beta1: Float[ArrayLike, ""] = 0.9,
    beta2: Float[ArrayLike, ""] = 0.999,
    epsilon: Float[ArrayLike, ""] = 1e-9,
    tolerance: Float[ArrayLike, ""] = 1e-9,
    relative_tolerance: Float[ArrayLike, ""] = 0.0,
) -> optax.GradientTransformation:
    r"""SWATS: Adam, until it is known which rate of SGD it stands for; then SGD with that rate.

    With Adam's step $p_t$ and $\rho_t$ of
    [`projected_rate`][mlnotes_jax.optimization.bounded.projected_rate], over all parameters,

    $$\lambda_t = \beta_2 \lambda_{t-1} + (1 - \beta_2)\, \rho_t, \qquad
      \Lambda_t = \frac{\lambda_t}{1 - \beta_2^t} .$$

    At the first $t > 1$ with $|\Lambda_t - \rho_t| < \tau$ the rule switches, once and for all.
    From then on the update is $-(1 - \beta_1)\, \Lambda\, u_t$ with $u_t = \beta_1 u_{t-1} + g_t$,
    from $u = 0$ at the switch. The state reports when it was, `switched_at`, and at which rate,
    `rate`.

    Args:
        learning_rate: $\alpha \ge 0$, Adam's: a number, traced or not, or a schedule. After the
            switch a schedule goes on: $\Lambda$ is multiplied by how much $\alpha$ has changed
            since.
        beta1: $\beta_1$ in [0, 1), of Adam, and the momentum of SGD. Traced.
        beta2: $\beta_2$ in [0, 1), of Adam and of the average of the rates. Traced.
        epsilon: $\epsilon \ge 0$ beside $\sqrt{v_t}$, before the correction. Traced.
        tolerance: The absolute part of $\tau$. Traced.
        relative_tolerance: $\tau$ is `tolerance` plus this times $|\Lambda_t|$. Traced.

    Returns:
        The rule. Its state is a [`SWATSState`][mlnotes_jax.optimization.bounded.SWATSState].

    Raises:
        ValueError: A hyper-parameter is negative or not finite, a beta not in [0, 1), or one of
            them no scalar; in `update`, the tree is not that of `init`.
        TypeError: A hyper-parameter is not numeric; in `init` or `update`, a leaf is no array of
            floats.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import bounded
        >>> rule = bounded.swats(0.01)
        >>> state, slope = rule.init(jnp.zeros(2)), jnp.array([1.0, 3.0])
        >>> for _ in range(4):  # on a constant slope Adam's steps are all alike
        ...     update, state = rule.update(slope, state)
        >>> print(state.switched_at, f"{state.rate:.4f}")  # 0.01 / mean(1, 3)
        2 0.0050

    Reference: Keskar and Socher (2017), algorithm 1.

    Note:
        The paper has one $\epsilon$ of 1e-9 for both uses. In float32 that is less than the
        distance of two neighbouring numbers above 0.016, so that only equality passes: set
        `relative_tolerance`. Unlike in the paper's pseudo-code, a $\Lambda_t$ that is not positive
        is no rate, and does not switch. Implementations for PyTorch compare each tensor on its own
        (with a relative tolerance of 1e-6, or their $\epsilon$), and all of them switch with the
        first. `optax.partition` with one label for each leaf lets each switch when it is ready.
    """
    rate = _rules.rate(learning_rate)
    _rules.share("beta1", beta1)
    _rules.share("beta2", beta2)
    _rules.not_negative("epsilon", epsilon)
    _rules.not_negative("tolerance", tolerance)
    _rules.not_negative("relative_tolerance", relative_tolerance)

    def init(params: PyTree) -> SWATSState:
        _rules.check_params(params)
        none, zero = jnp.zeros((), jnp.int32), jnp.zeros((), _widest(params))
        return SWATSState(
            none, _rules.zeros(params), _rules.zeros(params), zero, zero, none, zero, zero
        )

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, SWATSState]:
        del params
        dtype = state.average.dtype
        count = _rules.next_count(state.count)
        alpha = rate(state.count)
        numbers = _adam.step_numbers(count, beta1, beta2, epsilon)
        switched = state.switched_at > 0
        first = switched & (state.count == state.switched_at)  # of the updates as SGD
        change = alpha.astype(dtype) / jnp.where(switched, state.adam_rate, 1)
        sgd_rate = jnp.where(switched, state.rate * change, 0)

        def leaf(
            g: Array, m: Array, v: Array, alpha: Array, sgd_rate: Array, *numbers: Array
        ) -> tuple[Array, ...]:
            step = _adam.Step(*numbers)
            velocity = step.beta1 * jnp.where(first, 0, m) + g
            m, new_v = _adam.moments(g, m, v, step)
            p = -alpha * step.scale1 * m / _adam.root(new_v, step, hat=True)
            return (
                jnp.where(switched, -(sgd_rate * step.share1) * velocity, p),
                jnp.where(switched, velocity, m),
                jnp.where(switched, v, new_v),
                (p * p).sum(),
                (p * g).sum(),
            )

        step, first_moment, second_moment, squares, products = _rules.per_leaf(
            leaf,
            5,
            updates,
            state.first_moment,
            state.second_moment,
            scalars=(alpha, sgd_rate, *numbers),
        )

        # The rate of SGD that this step of Adam stands for.
        slope = _total(products, dtype)
        usable = (slope != 0) & ~switched
        estimate = _total(squares, dtype) / jnp.where(usable, -slope, 1)
        beta, share = (jnp.asarray(x, dtype) for x in (beta2, _adam.complement(beta2)))
        average = jnp.where(usable, beta * state.average + share * estimate, state.average)
        mean = average * jnp.asarray(numbers.scale2, dtype)
        near = jnp.asarray(tolerance, dtype) + jnp.asarray(relative_tolerance, dtype) * abs(mean)
        now = usable & (count > 1) & (abs(mean - estimate) < near) & (mean > 0)
        return step, SWATSState(
            count,
            first_moment,
            second_moment,
            jnp.where(usable, estimate, state.estimate),
            average,
            jnp.where(now, count, state.switched_at),
            jnp.where(now, mean, state.rate),
            jnp.where(now, alpha.astype(dtype), state.adam_rate),
        )

    return optax.GradientTransformation(init, update)


def _widest(tree: PyTree) -> Any:
    """The widest dtype in which moments of the leaves are held; float32 where there are none."""
    dtypes: Sequence[Any] = [_rules.wide(jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree)]
    return max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits, default=jnp.float32)


def _total(tree: PyTree, dtype: Any) -> Array:
    return sum((leaf.astype(dtype) for leaf in jax.tree.leaves(tree)), jnp.zeros((), dtype))
