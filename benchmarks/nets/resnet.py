"""Steps of a residual network: ResNet-20 on a CPU, ResNet-50 in bfloat16 on a GPU.

Work, on a CPU: ResNet-20 for 32x32 pictures in batches of 128, float32, 8 steps. On a GPU:
ResNet-50 for 224x224 pictures in batches of 256, products in bfloat16 with parameters in float32,
20 steps, against PyTorch's autocast. SGD with learning rate 0.01 and momentum 0.9. `small` takes 2
steps of 8 pictures. The pictures are random, as only time is asked for. Quality: the mean training
loss of the steps; the starts are drawn alike (He), but not equal, so it agrees to some hundredths.

Predicted, from `nets/cnn`, as nearly all of it is convolution: 0.8 against stock eager and 0.7
against `channels_last` on one thread of the machine below (Zen 4).

Came out (`results/nets-resnet-cpu-1thread.json`): 0.8 and 0.65 against stock, 0.75 and 0.6 against
tuned PyTorch. The reasons are those of `nets/cnn`. Nothing was measured on a GPU so far.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks import networks, torch_process
from benchmarks.harness import Case
from mlnotes_jax.nets import resnet
from mlnotes_jax.training import loop

QUALITY = "mean training loss of the steps; starts are drawn alike, not equal"

LEARNING_RATE, MOMENTUM = 0.01, 0.9


def cases(size: Literal["small", "full"]) -> list[Case]:
    """A number of steps, in one pass over as many pictures."""
    gpu, full = jax.default_backend() != "cpu", size == "full"
    batch, steps = ((256, 20) if gpu else (128, 8)) if full else (8, 2)
    side, classes = (224, 1000) if gpu and full else (32, 10)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch * steps, side, side, 3)).astype(np.float32)
    y = rng.integers(0, classes, len(x)).astype(np.int32)
    key = jax.random.key(0)
    order = networks.order_of(key, len(x), batch)
    rngs = nnx.Rngs(0)
    network = resnet.resnet50(rngs=rngs) if gpu and full else resnet.cifar_resnet(20, rngs=rngs)
    model = loop.bind(network)
    if gpu:
        model = _in_bfloat16(model)
    optimizer = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
    data = jnp.asarray(x), jnp.asarray(y)

    ours_job = networks.fit_job(key, model, optimizer, data, batch_size=batch)

    options = {
        "counts": [3, 4, 6, 3] if side == 224 else [3, 3, 3],
        "width": 64 if side == 224 else 16,
        "classes": classes,
        "imagenet": side == 224,
        "learning_rate": LEARNING_RATE,
        "momentum": MOMENTUM,
        "device": "cuda" if gpu else "cpu",
        "bfloat16": gpu,
    }
    files = networks.store(x=x, y=y, order=order)
    peers = {} if gpu else torch_process.jobs("resnet", files, compiled=False, **options)
    peers |= torch_process.jobs("resnet", files, compiled=full, channels_last=True, **options)
    what = "ResNet-50, bfloat16" if side == 224 else "ResNet-20"
    name = f"{what}: {steps} steps of {batch} pictures {side}x{side}"
    return [Case(name, ours_job, peers)]


def _in_bfloat16(bound: loop.Bound) -> loop.Bound:
    """Products in bfloat16; parameters, statistics and the loss in float32."""

    def narrow(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree)

    def apply(params: Any, state: Any, x: Any, **options: Any) -> Any:
        logits, state = bound.apply(narrow(params), state, narrow(x), **options)
        return logits.astype(jnp.float32), state

    return loop.Bound(bound.params, bound.state, apply)
