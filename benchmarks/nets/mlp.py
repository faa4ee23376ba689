"""One epoch of the notes' network, 784-512-256-128-64-10: our loop, PyTorch, and the Flax loop.

Work: 60 000 pictures of Fashion-MNIST in batches of 64 (937 steps), SGD with learning rate 0.01 and
momentum 0.5, float32; `small` takes 640 random pictures. All start with the same weights and see
the same batches. Quality: the mean training loss of the epoch, which must agree.

Predicted, from a prototype on a processor of a later generation (Zen 5, whose vector units are
twice as wide): 2.4 against stock PyTorch, 1.15 against tuned, 2 against the Flax loop. The epoch
costs 158 GFLOP; one core of the machine below multiplies matrices at 105 GFLOP/s in float32, so it
takes at least 1.5 s.

Came out (`results/nets-mlp-cpu-1thread.json`, `results/nets-mlp-cpu.json`; Zen 4): 1.8, 1.4 and 2.4
on one thread; 1.7, 1.6 and 2.1 on two. The first misses the prediction because the slow path of
stock PyTorch costs little here: this processor gains nothing from 512-bit registers, which is what
that path does without. Ours takes 2.1 s; what is beyond the 1.5 s of products is mostly the
optimizer's traffic (575 050 parameters and as many momenta in each of 937 steps) and the gather.

On a GPU there is a second piece of work: loss and gradients of a chain of bf16 matrix products as
wide as those of a Transformer, against `torch.compile`.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks import networks, torch_process
from benchmarks.harness import Case, Job
from mlnotes_jax.data import datasets
from mlnotes_jax.nets import mlp

QUALITY = "mean training loss of the pass (of the chain: its loss); all must agree"

WIDTHS = (784, 512, 256, 128, 64, 10)
LEARNING_RATE, MOMENTUM, BATCH = 0.01, 0.5, 64


def cases(size: Literal["small", "full"]) -> list[Case]:
    """The epoch; on a GPU also the chain of products."""
    key = jax.random.key(0)
    x, y = pictures(size)
    order = networks.order_of(key, len(x), BATCH)
    start = networks.mlp_start(WIDTHS)
    data = jnp.asarray(x), jnp.asarray(y, jnp.int32)
    optimizer = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
    model = networks.fill(mlp.notes_mlp(rngs=nnx.Rngs(0)), start)

    ours_job = networks.fit_job(key, model, optimizer, data, batch_size=BATCH)

    files = networks.store(x=x, y=y, order=order, **start)
    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    peers = torch_process.jobs(
        "mlp",
        files,
        widths=WIDTHS,
        learning_rate=LEARNING_RATE,
        momentum=MOMENTUM,
        device=device,
        compiled=size == "full",
    )
    peers["Flax, nnx.jit step"] = networks.nnx_loop(
        functools.partial(_flax_mlp, start), optimizer, *data, order
    )
    work = [Case(f"epoch of {len(x)} pictures", ours_job, peers)]
    if device == "cuda":
        work.append(_chain(size))
    return work


def pictures(size: Literal["small", "full"]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of 784 pixels in [0, 1] and classes 0..9."""
    if size == "full":
        x, y = datasets.fashion_mnist()[:2]
        return x.reshape(-1, 784).astype(np.float32) / 255, y
    rng = np.random.default_rng(0)
    return rng.uniform(size=(640, 784)).astype(np.float32), rng.integers(0, 10, 640)


def _flax_mlp(start: networks.Weights) -> nnx.Module:
    rngs, layers = nnx.Rngs(0), []
    for inputs, outputs in itertools.pairwise(WIDTHS):
        layers += [nnx.Linear(inputs, outputs, rngs=rngs), nnx.relu]
    return networks.fill(nnx.Sequential(*layers[:-1]), start)


def _chain(size: Literal["small", "full"]) -> Case:
    rows, width, depth = (8192, 4096, 8) if size == "full" else (256, 128, 2)
    keys = jax.random.split(jax.random.key(0), depth + 1)
    x = jax.random.normal(keys[0], (rows, width), jnp.bfloat16) / rows**0.5
    weights = [jax.random.normal(k, (width, width), jnp.bfloat16) / width**0.5 for k in keys[1:]]

    @jax.jit
    def chain(weights: list[jax.Array], x: jax.Array) -> Any:
        def loss(weights: list[jax.Array]) -> jax.Array:
            y = x
            for weight in weights:
                y = jax.nn.gelu(y @ weight)
            return jnp.square(y.astype(jnp.float32)).mean()

        return jax.value_and_grad(loss)(weights)

    def prepare() -> Callable[[], Any]:
        compiled = chain.lower(weights, x).compile()
        return lambda: jax.block_until_ready(compiled(weights, x))

    files = networks.store(x=np.zeros(1))
    peer = torch_process.job(
        "matmul_chain", files, rows=rows, width=width, depth=depth, device="cuda", compiled=True
    )
    # Forward, and two products for each in the backward pass but for the first one's input.
    operations = 2 * rows * width**2 * (3 * depth - 1)
    name = f"{depth} bf16 products {rows}x{width}x{width}, {operations / 1e12:.1f} Tflop"
    return Case(name, Job(prepare, lambda out: float(out[0])), {"PyTorch compiled": peer})
