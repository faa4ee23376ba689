"""The peers' side in PyTorch: the same networks, the same start, the same batches.

Each function takes the arrays of an `.npz` file, prepares, and returns `run() -> quality`, or a
function that computes the quality afterwards. It runs
in a process that never imports JAX; see `torch_process`. The arrays are `x`, `y`, `order` (rows of
each step, `(steps, batch)`) and the parameters, named as PyTorch names them, in PyTorch's layout.
"""

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

Arrays = dict[str, np.ndarray]
Run = Callable[[], float]


class Mlp(nn.Sequential):
    """Linear layers with ReLU between them."""

    def __init__(self, widths: list[int]):
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        super().__init__(*layers[:-1])


class Cnn(nn.Sequential):
    """Blocks of convolution, batch norm, ReLU and pooling; then one linear layer."""

    def __init__(self, widths: list[int], classes: int, side: int, channels: int):
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
            channels, side = width, side // 2
        super().__init__(*layers, nn.Flatten(), nn.Linear(channels * side * side, classes))


class Block(nn.Module):
    """A basic residual block, or a bottleneck."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool, project: bool):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        shapes = (
            [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
            if bottleneck
            else [(inputs, width, 3, stride), (width, width, 3, 1)]
        )
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, k, stride=s, padding=k // 2, bias=False) for i, o, k, s in shapes
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _, _ in shapes)
        self.stride, self.extra = stride, outputs - inputs
        self.down = None
        if project and (stride != 1 or inputs != outputs):
            self.down = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs of the block."""
        y = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(y))
            if i + 1 < len(self.convs):
                y = F.relu(y)
        if self.down is not None:
            x = self.down(x)
        elif self.extra or self.stride != 1:  # every other pixel, zeros for new channels
            half = self.extra // 2
            x = F.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.extra - half)
            )
        return F.relu(y + x)


class ResNet(nn.Module):
    """ResNet-20 and its kin for 32x32 pictures; ResNet-50 for large ones."""

    def __init__(self, counts: list[int], width: int, classes: int, *, imagenet: bool):
        super().__init__()
        window = 7 if imagenet else 3
        self.stem = nn.Sequential(
            nn.Conv2d(
                3, width, window, stride=2 if imagenet else 1, padding=window // 2, bias=False
            ),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            *([nn.MaxPool2d(3, stride=2, padding=1)] if imagenet else []),
        )
        blocks: list[nn.Module] = []
        channels = width
        for stage, count in enumerate(counts):
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(Block(channels, width << stage, stride, imagenet, imagenet))
                channels = (width << stage) * (4 if imagenet else 1)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def mlp(arrays: Arrays, *, widths: list[int], **options: Any) -> Run:
    """The fully connected network."""
    return _train(Mlp(widths), arrays, **options)


def cnn(arrays: Arrays, *, widths: list[int], classes: int, **options: Any) -> Run:
    """The convolutional network; `x` is (n, height, width, channels)."""
    _, side, _, channels = arrays["x"].shape
    return _train(Cnn(widths, classes, side, channels), arrays, pictures=True, **options)


def resnet(
    arrays: Arrays, *, counts: list[int], width: int, classes: int, imagenet: bool, **options: Any
) -> Run:
    """A residual network; its own start, as the layout of its blocks differs from ours."""
    torch.manual_seed(0)
    model = ResNet(counts, width, classes, imagenet=imagenet)
    return _train(model, arrays, pictures=True, **options)


def many(arrays: Arrays, *, widths: list[int], rates: list[float], **options: Any) -> Run:
    """One training run after the other, one for each learning rate; `order` has epochs first."""
    runs = [
        _train(Mlp(widths), arrays, learning_rate=rate, momentum=0.0, **options) for rate in rates
    ]
    return lambda: min(run() for run in runs)


def matmul_chain(
    arrays: Arrays, *, rows: int, width: int, depth: int, device: str, compiled: bool = True
) -> Run:
    """Loss and gradients of `depth` products of bf16 matrices with GELU between them."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        values = torch.randn(*shape, generator=generator) / shape[0] ** 0.5
        return values.to(device, torch.bfloat16)

    x, *weights = draw(rows, width), *(draw(width, width) for _ in range(depth))
    for weight in weights:
        weight.requires_grad_(True)

    def loss() -> torch.Tensor:
        y = x
        for weight in weights:
            y = F.gelu(y @ weight, approximate="tanh")
        return y.float().square().mean()

    chain = torch.compile(loss) if compiled else loss

    def run() -> float:
        value = chain()
        value.backward()
        for weight in weights:
            weight.grad = None
        return float(value.detach())

    return run


def update(
    arrays: Arrays, *, rule: str, keywords: dict[str, Any], num_steps: int, device: str = "cpu"
) -> Callable[[], Callable[[], float]]:
    """Steps of `torch.optim`, fused where it can be. Quality: mean change of a parameter.

    The arrays are `p0`, `g0`, `p1`, ...: parameters and gradients.
    """
    num_leaves = len(arrays) // 2
    start = [torch.from_numpy(arrays[f"p{i}"]).to(device) for i in range(num_leaves)]
    params = [p.clone() for p in start]
    for i, p in enumerate(params):
        p.requires_grad_(True)
        p.grad = torch.from_numpy(arrays[f"g{i}"]).to(device)
    make = getattr(torch.optim, rule)
    fused = "fused" in inspect.signature(make).parameters
    optimizer = make(params, **keywords, **({"fused": True} if fused else {"foreach": True}))

    @torch.no_grad()
    def change() -> float:
        size = sum(p.numel() for p in params)
        return float(sum((p - s).abs().sum() for p, s in zip(params, start, strict=True)) / size)

    def run() -> Callable[[], float]:
        for _ in range(num_steps):
            optimizer.step()
        if device != "cpu":
            torch.cuda.synchronize()
        return change

    return run


def _train(
    model: nn.Module,
    arrays: Arrays,
    *,
    learning_rate: float,
    momentum: float,
    compiled: bool,
    channels_last: bool = False,
    pictures: bool = False,
    device: str = "cpu",
    bfloat16: bool = False,
) -> Run:
    """The steps of `order` with SGD; each run starts anew. Quality: mean loss of the last epoch.

    `order` has the shape (steps, batch) of one epoch, or (epochs, steps, batch).
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.from_numpy(arrays["x"]).to(device)
    if pictures:
        # PyTorch's order of axes; `channels_last` changes where the numbers lie, not the shape.
        x = x.permute(0, 3, 1, 2).contiguous(memory_format=layout)
    y = torch.from_numpy(arrays["y"].astype(np.int64)).to(device)
    order = torch.from_numpy(arrays["order"].astype(np.int64)).to(device)
    given = {name: torch.from_numpy(arrays[name]) for name in model.state_dict() if name in arrays}
    model.load_state_dict({**model.state_dict(), **given})
    model = model.to(device)
    if pictures:
        model = model.to(memory_format=layout)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    call = torch.compile(model) if compiled else model

    def run() -> float:
        model.load_state_dict(start)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=momentum)
        losses = []
        for rows in order.reshape(-1, order.shape[-1]):
            batch = x[rows]
            with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
                loss = F.cross_entropy(call(batch), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return float(torch.stack(losses[-order.shape[-2] :]).mean())

    return run
