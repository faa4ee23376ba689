"""One step of each update rule on ten million parameters: ours, Optax, PyTorch's fused step.

Work: `STEPS` steps with the same gradient on 10 million float32 parameters in 50 leaves, buffers
donated; `small` has 10 000. Quality: mean change of a parameter after those steps. A rule reads
parameters, gradients and moments once and writes parameters and moments once; that many bytes, and
how many of them in a second, are shown. The first case is a copy in place, x + 1, for comparison.

Rules that neither Optax nor PyTorch has are compared with their formula, compiled and called with
nothing around it.

Predicted: memory is the limit, so as Optax within the spread, as both become one loop for each
leaf; Adam 0.65 of PyTorch's fused step, as in a prototype.

Came out (`results/optimization-update_rules-cpu-1thread.json`,
`results/optimization-update_rules-cpu.json`; two cores of a Zen 4): 0.99 to 1.16 of Optax on one
thread, 0.84 to 1.08 on two, all within the spread of the runs. Of PyTorch's fused steps 0.67 to
1.06 (Adam 0.76), for PyTorch moves 30 to 37 GB/s and XLA's loops 20 to 34. Its rules that are not
fused (RMSProp, NAdam, RAdam) take 4 to 6 times as long as ours.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import networks, torch_process
from benchmarks.harness import Case, Job
from mlnotes_jax.optimization import adam, adaptive, bounded, momentum, weight_decay

QUALITY = "mean change of a parameter after the steps; all must agree"

STEPS, LEAVES, RATE = 5, 50, 1e-3


class Rule(NamedTuple):
    """A rule and its peers.

    Attributes:
        ours: Ours.
        arrays: How often the parameters' bytes are moved at least: read p, g, moments; write p,
            moments.
        of_optax: Optax's, where it has one.
        of_torch: Name and keywords of PyTorch's, where it has one.
        formula: Where no peer has it: `(g, moments, t) -> (update, moments)` of one leaf.
        moments: How many moments `formula` has.
    """

    ours: optax.GradientTransformation
    arrays: int
    of_optax: optax.GradientTransformation | None = None
    of_torch: tuple[str, dict[str, Any]] | None = None
    formula: Callable[..., tuple[jax.Array, tuple[jax.Array, ...]]] | None = None
    moments: int = 0


def rules() -> dict[str, Rule]:
    """Every rule with the same constants as its peers."""
    betas = {"lr": RATE}
    return {
        "SGD": Rule(momentum.sgd(RATE), 3, optax.sgd(RATE), ("SGD", {"lr": RATE})),
        "heavy ball": Rule(
            momentum.heavy_ball(RATE, momentum=0.9),
            5,
            optax.sgd(RATE, momentum=0.9),
            ("SGD", {"lr": RATE, "momentum": 0.9}),
        ),
        "Nesterov": Rule(
            momentum.nesterov(RATE, momentum=0.9),
            5,
            optax.sgd(RATE, momentum=0.9, nesterov=True),
            ("SGD", {"lr": RATE, "momentum": 0.9, "nesterov": True}),
        ),
        "Adagrad": Rule(
            adaptive.adagrad(RATE),
            5,
            optax.adagrad(RATE, initial_accumulator_value=0.0, eps=1e-10),
            ("Adagrad", {"lr": RATE}),
        ),
        "RMSProp": Rule(
            adaptive.rmsprop(RATE, decay=0.99),
            5,
            optax.rmsprop(RATE, decay=0.99, eps_in_sqrt=False),
            ("RMSprop", {"lr": RATE}),
        ),
        "Adam": Rule(adam.adam(RATE), 7, optax.adam(RATE), ("Adam", betas)),
        "AMSGrad": Rule(
            adam.amsgrad(RATE), 9, optax.amsgrad(RATE), ("Adam", {**betas, "amsgrad": True})
        ),
        "NAdam": Rule(adam.nadam(RATE), 7, None, ("NAdam", betas)),
        "RAdam": Rule(adam.radam(RATE), 7, None, ("RAdam", betas)),
        "AdamW": Rule(
            weight_decay.adamw(RATE, weight_decay=0.01),
            7,
            optax.adamw(RATE, weight_decay=0.01),
            ("AdamW", {**betas, "weight_decay": 0.01}),
        ),
        "root-mean Adagrad": Rule(
            adaptive.root_mean_adagrad(RATE), 5, formula=_root_mean_adagrad, moments=1
        ),
        "AdaBound": Rule(bounded.adabound(RATE), 7, formula=_adabound, moments=2),
    }


def cases(size: Literal["small", "full"]) -> list[Case]:
    """The copy, then each rule."""
    total = 10_000 if size == "small" else 10_000_000
    rng = np.random.default_rng(0)
    shape = (LEAVES, total // LEAVES)
    params, gradients = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    names = {
        f"{kind}{i}": a[i] for kind, a in (("p", params), ("g", gradients)) for i in range(LEAVES)
    }
    files = networks.store(**names)
    gigabytes = STEPS * params.nbytes / 1e9
    work = [_copy(params, 2 * gigabytes)]
    for name, rule in rules().items():
        peers = {}
        if rule.of_optax is not None:
            peers["Optax"] = _steps(rule.of_optax, params, gradients)
        if rule.of_torch is not None:
            torch_rule, keywords = rule.of_torch
            peers["PyTorch, fused or foreach"] = torch_process.job(
                "update",
                files,
                rule=torch_rule,
                keywords=keywords,
                num_steps=STEPS,
                device="cpu" if jax.default_backend() == "cpu" else "cuda",
            )
        if rule.formula is not None:
            peers["the bare formula"] = _steps(_bare(rule.formula, rule.moments), params, gradients)
        case = f"{STEPS} steps of {name}, {total} parameters"
        ours = _steps(rule.ours, params, gradients)
        work.append(Case(case, ours, peers, rule.arrays * gigabytes))
    return work


def _steps(rule: optax.GradientTransformation, params: Any, gradients: Any) -> Job:
    """Compiled steps that give their buffers back."""
    start = [np.asarray(leaf) for leaf in params]

    def prepare() -> Callable[[], Any]:
        here = [jnp.asarray(leaf) for leaf in start]
        grads = [jnp.asarray(leaf) for leaf in gradients]
        held = [here, rule.init(here)]

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params: Any, state: Any, grads: Any) -> Any:
            updates, state = rule.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        compiled = step.lower(*held, grads).compile()

        def run() -> Any:
            for _ in range(STEPS):
                held[:] = compiled(*held, grads)
            return jax.block_until_ready(held[0])

        return run

    return Job(prepare, lambda ends: _change(start, ends))


def _change(start: Any, ends: Any) -> float:
    return float(
        np.mean(
            [np.abs(np.asarray(b) - a).mean(dtype=float) for a, b in zip(start, ends, strict=True)]
        )
    )


def _copy(params: np.ndarray, gigabytes: float) -> Case:
    """Add one in place: nothing but memory."""

    def ours() -> Callable[[], Any]:
        held = [[jnp.asarray(leaf) for leaf in params]]
        add = jax.jit(lambda leaves: [leaf + 1 for leaf in leaves], donate_argnums=0)
        compiled = add.lower(held[0]).compile()

        def run() -> Any:
            for _ in range(STEPS):
                held[0] = compiled(held[0])
            return jax.block_until_ready(held[0])

        return run

    def numpy() -> Callable[[], Any]:
        held = [leaf.copy() for leaf in params]

        def run() -> Any:
            for _ in range(STEPS):
                for leaf in held:
                    np.add(leaf, np.float32(1), out=leaf)
            return held

        return run

    def quality(ends: Any) -> float:
        return _change(list(params), ends)

    name = f"{STEPS} times x + 1, {params.size} parameters"
    return Case(name, Job(ours, quality), {"NumPy": Job(numpy, quality)}, gigabytes)


# --- Rules that no peer has -----------------------------------------------------------------------


def _bare(formula: Callable[..., Any], moments: int) -> optax.GradientTransformation:
    """A formula of one leaf, as the least that a transformation can be."""

    def init(params: Any) -> Any:
        return jnp.zeros((), jnp.int32), [
            tuple(jnp.zeros_like(p) for _ in range(moments)) for p in params
        ]

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        count, held = state
        t = (count + 1).astype(jnp.float32)
        pairs = [formula(g, m, t) for g, m in zip(updates, held, strict=True)]
        return [u for u, _ in pairs], (count + 1, [m for _, m in pairs])

    return optax.GradientTransformation(init, update)


def _root_mean_adagrad(g: Any, moments: Any, t: Any) -> Any:
    (total,) = moments
    total = total + g * g
    return -RATE * g / (jnp.sqrt(total / t) + 1e-10), (total,)


def _adabound(g: Any, moments: Any, t: Any) -> Any:
    m, v = moments
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    lower, upper = 0.1 * (1 - 1 / (0.001 * t + 1)), 0.1 * (1 + 1 / (0.001 * t))
    step = RATE * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
    rate = jnp.clip(step / (jnp.sqrt(v) + 1e-8), lower, upper)
    return -rate * m, (m, v)
