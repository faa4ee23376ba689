"""From the start of a process to the end of its first epoch; run by `training/loop`.

`python -m benchmarks.first_epoch ours|torch ARRAYS`: imports, reads the arrays and the start,
trains the notes' network for one epoch, prints the mean loss. Ours finds compiled programs where
`JAX_COMPILATION_CACHE_DIR` says.
"""

import sys

import numpy as np


def ours(path: str) -> float:
    """One epoch by `loop.fit`."""
    import jax
    import optax
    from flax import nnx

    from benchmarks import networks
    from mlnotes_jax.foundations import losses
    from mlnotes_jax.nets import mlp
    from mlnotes_jax.training import loop

    with np.load(path) as stored:
        arrays = dict(stored)
    data = jax.device_put((arrays["x"], arrays["y"].astype(np.int32)))
    start = {name: array for name, array in arrays.items() if name[0].isdigit()}
    fitted = loop.fit(
        jax.random.key(0),
        networks.fill(mlp.notes_mlp(rngs=nnx.Rngs(0)), start),
        optax.sgd(0.01, momentum=0.5),
        losses.softmax_cross_entropy_with_integer_labels,
        data,
        num_epochs=1,
    )
    return float(fitted.history["loss"][0])


def torch(path: str) -> float:
    """The same epoch by PyTorch, eager."""
    from benchmarks import torch_peers

    with np.load(path) as stored:
        arrays = dict(stored)
    run = torch_peers.mlp(
        arrays,
        widths=[784, 512, 256, 128, 64, 10],
        learning_rate=0.01,
        momentum=0.5,
        compiled=False,
    )
    return run()


if __name__ == "__main__":
    print({"ours": ours, "torch": torch}[sys.argv[1]](sys.argv[2]))
