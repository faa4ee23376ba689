"""What the loop costs beside a hand-written one, many runs at once, and the wait for a first epoch.

Three pieces of work. (1) The notes' network for an epoch of Fashion-MNIST by `loop.fit`, against
the same steps written out as one `scan` with nothing around them: what the loop costs. (2) Sixteen
learning rates, a network 64-64-10 on the digits, ten epochs, in one program (`loop.fit_many`),
against PyTorch, one run after the other. (3) A new process, from its start to the end of its first
epoch of the first network, with compiled programs kept on disk, against PyTorch's eager mode.
`small` takes fewer rows. Quality: training loss of the last epoch (the lowest of the sixteen); all
start from the same weights.

Predicted: (1) no difference beyond the spread; (2) 15, and 18 in a prototype on a processor of a
later generation (Zen 5); (3) 3 s, of which 0.9 s is the epoch, in that prototype.

Came out (`results/training-loop-cpu-1thread.json`, `results/training-loop-cpu.json`; Zen 4):
(1) none beyond the spread, 2.01 s and 2.04 s; (2) 11 on one thread, 8 on two: 1.3 MFLOP a step and
run make 0.08 s of pure products, half of what it takes, and PyTorch's 0.3 ms a step are less than
in the prototype; two threads take longer than one, as the pieces are too small to share; (3) 4.8 s
on one thread, of which the epoch is 2.1 s, and 3.2 s on two: missed by the slower epoch, not by a
longer start.
"""

import functools
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks import networks, torch_process
from benchmarks.harness import Case, Job
from benchmarks.nets.mlp import BATCH, LEARNING_RATE, MOMENTUM, pictures
from mlnotes_jax.data import datasets, loading
from mlnotes_jax.foundations import losses
from mlnotes_jax.nets import mlp
from mlnotes_jax.training import loop

QUALITY = "training loss of the last epoch; of sixteen runs, the lowest"

LOSS = losses.softmax_cross_entropy_with_integer_labels
NUM_RUNS, NUM_EPOCHS = 16, 10


def cases(size: Literal["small", "full"]) -> list[Case]:
    """The three pieces of work."""
    return [_overhead(size), _many_runs(size), _first_epoch(size)]


def _overhead(size: Literal["small", "full"]) -> Case:
    key = jax.random.key(0)
    x, y = pictures(size)
    data = jnp.asarray(x), jnp.asarray(y, jnp.int32)
    model = mlp.notes_mlp(rngs=nnx.Rngs(0))
    optimizer = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)

    params, state, apply = loop.bind(model)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def epoch(params: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> Any:
        order = loading.epoch_order(key, 0, len(x))
        batches = order[: len(x) // BATCH * BATCH].reshape(-1, BATCH)

        def step(carry: Any, rows: jax.Array) -> Any:
            params, opt_state = carry

            def objective(params: Any) -> jax.Array:
                return LOSS(apply(params, state, x[rows], train=True)[0], y[rows])

            value, grads = jax.value_and_grad(objective)(params)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), value

        return jax.lax.scan(step, (params, opt_state), batches)

    def written_out() -> jax.Array:
        fresh = jax.tree.map(jnp.copy, params)
        return jax.block_until_ready(epoch(fresh, optimizer.init(fresh), *data))[1].mean()

    return Case(
        f"epoch of {len(x)} pictures: what the loop costs",
        networks.fit_job(key, model, optimizer, data, batch_size=BATCH),
        {"hand-written scan": Job(functools.partial(_warm, written_out), float)},
    )


def _many_runs(size: Literal["small", "full"]) -> Case:
    digits = datasets.load("digits")
    rows = len(digits.x) if size == "full" else 320
    x, y = digits.x[:rows].astype(np.float32) / 16, digits.y[:rows]
    data = jnp.asarray(x), jnp.asarray(y, jnp.int32)
    epochs = NUM_EPOCHS if size == "full" else 2
    rates = np.geomspace(1e-3, 1.0, NUM_RUNS).astype(np.float32)
    start = networks.mlp_start((64, 64, 10))
    model = networks.fill(mlp.MLP((64, 64, 10), rngs=nnx.Rngs(0)), start)
    keys = jax.random.key(0)

    def runs() -> jax.Array:
        found = loop.fit_many(
            keys,
            model,
            optax.sgd,
            jnp.asarray(rates),
            LOSS,
            data,
            num_epochs=epochs,
            batch_size=BATCH,
        )
        return np.nanmin(found.history["loss"][:, -1])

    order = np.stack([np.asarray(loading.epoch_order(keys, e, rows)) for e in range(epochs)])
    order = order[:, : rows // BATCH * BATCH].reshape(epochs, -1, BATCH)
    files = networks.store(x=x, y=y, order=order, **start)
    peers = torch_process.jobs(
        "many", files, compiled=False, widths=[64, 64, 10], rates=rates.tolist()
    )
    steps = order.shape[0] * order.shape[1] * NUM_RUNS
    name = f"{NUM_RUNS} learning rates, {steps} steps in all"
    return Case(name, Job(functools.partial(_warm, runs), float), peers)


def _first_epoch(size: Literal["small", "full"]) -> Case:
    x, y = pictures(size)
    order = networks.order_of(jax.random.key(0), len(x), BATCH)
    path = networks.store(x=x, y=y, order=order, **networks.mlp_start(mlp.NOTES_WIDTHS))
    cache = tempfile.mkdtemp(prefix="mlnotes-bench-")

    def process(who: str, environment: dict[str, str]) -> Job:
        def run() -> float:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.first_epoch", who, path],
                cwd=pathlib.Path(__file__).parents[2],
                env={**os.environ, **environment},
                capture_output=True,
                text=True,
                check=True,
            )
            return float(done.stdout.split()[-1])

        return Job(functools.partial(_warm, run), float)

    ours = {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    peers = {"PyTorch eager, stock": process("torch", {})}
    if (tuned := torch_process.tuned_environment()) is not None:
        peers["PyTorch eager, tuned"] = process("torch", tuned)
    return Case(f"new process, first epoch of {len(x)} pictures", process("ours", ours), peers)


def _warm(run: Callable[[], Any]) -> Callable[[], Any]:
    """Run once, to compile; then hand the function over."""
    run()
    return run
