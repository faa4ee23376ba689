"""Steps of a convolutional network with three blocks: our loop, PyTorch, and the Flax loop.

Work: 28x28 pictures in batches of 128; three blocks of 3x3 convolution (32, 64, 128 filters), batch
norm, ReLU and 2x2 max-pooling, then one linear layer; SGD with learning rate 0.05 and momentum 0.9,
float32; 40 steps (`small`: 2 steps of 16 pictures). All start with the same weights and see the
same batches. Quality: the mean training loss of the steps, which must agree.

PyTorch runs with its own order of axes, and with `channels_last`, the order that we use.

Predicted, from a prototype on a processor of a later generation (Zen 5): 1.4 against stock eager,
0.95 to 1.1 against `channels_last`, 3 against the Flax loop.

Came out (`results/nets-cnn-cpu-1thread.json`, `results/nets-cnn-cpu.json`; Zen 4): 1.0, 0.83 and
3.2 on one thread; 0.6, 0.6 and 2.4 on two. Two goals are missed. On one thread four fifths of a
step are convolutions: XLA's (Eigen's) run at 70 to 90 GFLOP/s here, PyTorch's (oneDNN's) at 100 to
125. Batch normalization, ReLU and pooling take us 16 ms and stock PyTorch 37. On two threads XLA's
gradient of the kernel, a convolution with few and large windows, stays on one core: 28 ms a step,
where one thread takes 30. Splitting the batch, or nine products in its place, does not help: 13 ms
and 16 ms for 14x14x32 -> 64, where it takes 13.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks import networks, torch_process
from benchmarks.harness import Case
from benchmarks.nets.mlp import pictures
from mlnotes_jax.nets import cnn

QUALITY = "mean training loss of the steps; all must agree"

WIDTHS, LEARNING_RATE, MOMENTUM = (32, 64, 128), 0.05, 0.9


def cases(size: Literal["small", "full"]) -> list[Case]:
    """A number of steps, in one pass over as many pictures."""
    batch, steps = (128, 40) if size == "full" else (16, 2)
    key = jax.random.key(0)
    x, y = (array[: batch * steps] for array in pictures(size))
    x = x.reshape(-1, 28, 28, 1)
    order = networks.order_of(key, len(x), batch)
    start = networks.he_start(
        {
            "0.weight": (32, 1, 3, 3),
            "4.weight": (64, 32, 3, 3),
            "8.weight": (128, 64, 3, 3),
        }
    )
    # A linear layer that reads pixels in our order, and the same one in PyTorch's order.
    head = networks.he_start({"13.weight": (10, 9, 128)})["13.weight"] / 3
    ours = start | {"13.weight": head.reshape(10, -1)}
    theirs = start | {"13.weight": head.swapaxes(1, 2).reshape(10, -1)}
    theirs["13.bias"] = np.zeros(10, np.float32)
    data = jnp.asarray(x), jnp.asarray(y, jnp.int32)
    optimizer = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
    model = networks.fill(cnn.small_cnn(widths=WIDTHS, rngs=nnx.Rngs(0)), ours)

    ours_job = networks.fit_job(key, model, optimizer, data, batch_size=batch)

    files = networks.store(x=x, y=y, order=order, **theirs)
    options = {
        "widths": WIDTHS,
        "classes": 10,
        "learning_rate": LEARNING_RATE,
        "momentum": MOMENTUM,
        "device": "cpu" if jax.default_backend() == "cpu" else "cuda",
    }
    full = size == "full"
    peers = torch_process.jobs("cnn", files, compiled=False, **options)
    peers |= torch_process.jobs("cnn", files, compiled=full, channels_last=True, **options)
    peers["Flax, nnx.jit step"] = networks.nnx_loop(
        functools.partial(_flax_cnn, ours), optimizer, *data, order
    )
    name = f"{steps} steps of {batch} pictures"
    return [Case(name, ours_job, peers)]


def _flax_cnn(start: networks.Weights) -> nnx.Module:
    rngs, layers, channels = nnx.Rngs(0), [], 1
    for width in WIDTHS:
        layers += [
            nnx.Conv(channels, width, (3, 3), padding=1, use_bias=False, rngs=rngs),
            nnx.BatchNorm(width, momentum=0.9, rngs=rngs),
            nnx.relu,
            functools.partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2)),
        ]
        channels = width
    flatten = functools.partial(jnp.reshape, shape=(-1, 9 * channels))
    return networks.fill(
        nnx.Sequential(*layers, flatten, nnx.Linear(9 * channels, 10, rngs=rngs)), start
    )
