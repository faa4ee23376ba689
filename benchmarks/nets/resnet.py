"""Steps of a residual network: ResNet-20 on a CPU, ResNet-50 in bfloat16 on a GPU.

Work, on a CPU: ResNet-20 for 32x32 pictures in batches of 128, SGD with learning rate 0.1 and
momentum 0.9, float32, 8 steps. On a GPU: ResNet-50 for 224x224 pictures in batches of 256, bfloat16
products with float32 parameters, 20 steps, against `torch.compile` with autocast. `small` takes 2
steps of 8 pictures. The pictures are random. Quality: the mean training loss of the steps; the
starts are drawn alike (He), but not equal, so it agrees to a few hundredths at the first steps.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks import networks, torch_process
from benchmarks.harness import Case, Job
from mlnotes_jax.foundations import losses
from mlnotes_jax.nets import resnet
from mlnotes_jax.training import loop

QUALITY = "mean training loss of the steps; starts are drawn alike, not equal"

LEARNING_RATE, MOMENTUM = 0.1, 0.9
