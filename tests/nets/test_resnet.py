"""Residual networks against PyTorch with copied weights, and the published parameter counts."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnotes_jax.foundations import losses
from mlnotes_jax.nets import resnet
from mlnotes_jax.training import loop


def torch_resnet(torch, num_blocks, kind, **options):
    """A ResNet in PyTorch with torchvision's names and forward pass, and its kin.

    torchvision itself has basic blocks and bottlenecks with projections; the others follow the
    papers in the same style of names.
    """
    nn = torch.nn
    width, small = options.pop("width", 64), options.pop("small", False)
    shortcut, plain = options.pop("shortcut", "B"), options.pop("plain", False)
    num_classes, in_channels = options.pop("num_classes"), options.pop("in_channels", 3)
    assert not options

    def conv(inputs, outputs, window, stride=1):
        return nn.Conv2d(inputs, outputs, window, stride, window // 2, bias=False)

    def pad(x, outputs, stride):
        x = x[:, :, ::stride, ::stride]
        return nn.functional.pad(x, (0, 0, 0, 0, 0, outputs - x.shape[1]))

    class Block(nn.Module):
        def __init__(self, inputs, features, stride):
            super().__init__()
            outputs = features * (4 if kind == "bottleneck" else 1)
            self.relu, self.outputs, self.stride = nn.ReLU(), outputs, stride
            if kind == "bottleneck":
                self.conv1, self.bn1 = conv(inputs, features, 1), nn.BatchNorm2d(features)
                self.conv2, self.bn2 = conv(features, features, 3, stride), nn.BatchNorm2d(features)
                self.conv3, self.bn3 = conv(features, outputs, 1), nn.BatchNorm2d(outputs)
            else:
                first = inputs if kind == "preactivation" else features
                self.conv1, self.bn1 = conv(inputs, features, 3, stride), nn.BatchNorm2d(first)
                self.conv2, self.bn2 = conv(features, features, 3), nn.BatchNorm2d(features)
            changes = stride != 1 or inputs != outputs
            self.downsample = None
            if not plain and (shortcut == "C" or (shortcut == "B" and changes)):
                self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride))
                if kind != "preactivation":
                    self.downsample.append(nn.BatchNorm2d(outputs))

        def add(self, out, x, identity=None):
            if plain:
                return out
            if self.downsample is not None:
                return out + self.downsample(x if identity is None else identity)
            return out + pad(x, self.outputs, self.stride)

        def forward(self, x):
            relu = self.relu
            if kind == "preactivation":
                active = relu(self.bn1(x))
                out = self.conv2(relu(self.bn2(self.conv1(active))))
                return self.add(out, x, active)
            out = relu(self.bn1(self.conv1(x)))
            out = self.bn2(self.conv2(out))
            if kind == "bottleneck":
                out = self.bn3(self.conv3(relu(out)))
            return relu(self.add(out, x))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(
                in_channels, width, *((3, 1, 1) if small else (7, 2, 3)), bias=False
            )
            if kind != "preactivation":
                self.bn1 = nn.BatchNorm2d(width)
            channels = width
            for i, count in enumerate(num_blocks):
                blocks = []
                for j in range(count):
                    blocks.append(Block(channels, width * 2**i, 2 if i and not j else 1))
                    channels = blocks[-1].outputs
                setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
            if kind == "preactivation":
                self.bn = nn.BatchNorm2d(channels)
            self.fc = nn.Linear(channels, num_classes)

        def forward(self, x):
            x = self.conv1(x)
            if kind != "preactivation":
                x = nn.functional.relu(self.bn1(x))
            if not small:
                x = nn.functional.max_pool2d(x, 3, 2, 1)
            for i in range(len(num_blocks)):
                x = getattr(self, f"layer{i + 1}")(x)
            if kind == "preactivation":
                x = nn.functional.relu(self.bn(x))
            return self.fc(x.mean((2, 3)))

    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():  # statistics and scales that are not where they start
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
    return net


def save_torch(net, path):
    from safetensors.torch import save_file

    save_file(net.state_dict(), path)
    return path


def count(make):
    shapes = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(shapes, nnx.Param)))


def small(depth=8, num_classes=3, *, seed=0, width=2, **options):
    return resnet.cifar_resnet(depth, num_classes, width=width, rngs=nnx.Rngs(seed), **options)


def pictures(n=4, side=8, seed=0):
    return np.random.default_rng(seed).normal(size=(n, side, side, 3)).astype(np.float32)


def leaves(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model, (nnx.Param, nnx.BatchStat)))]


# Sizes


@pytest.mark.parametrize(
    ("make", "published"),
    [
        (resnet.resnet18, 11_689_512),  # torchvision's documentation, as for the next two
        (resnet.resnet34, 21_797_672),
        (resnet.resnet50, 25_557_032),
    ],
)
def test_parameter_counts_are_the_published_ones(make, published):
    assert count(make) == published
    # The plain twin lacks the projections alone: a 1×1 kernel and normalization at each of 3 (4).
    expansion = 4 if make is resnet.resnet50 else 1
    ends = [(64, 64 * expansion)] if expansion == 4 else []
    ends += [(expansion * w, 2 * expansion * w) for w in (64, 128, 256)]
    projections = sum(a * b + 2 * b for a, b in ends)
    assert count(lambda rngs: make(plain=True, rngs=rngs)) == published - projections


@pytest.mark.parametrize(
    ("depth", "exact", "published"),  # table 6 of the paper, in millions
    [(20, 269_722, "0.27"), (32, 464_154, "0.46"), (44, 658_586, "0.66"), (56, 853_018, "0.85")],
)
def test_parameter_counts_of_the_cifar_kind(depth, exact, published):
    assert count(lambda rngs: resnet.cifar_resnet(depth, rngs=rngs)) == exact
    assert f"{exact / 1e6:.2f}" == published
    assert count(lambda rngs: resnet.cifar_resnet(depth, plain=True, rngs=rngs)) == exact
    # Two projections: 16 x 32 and 32 x 64, with a scale and a bias for each channel.
    two = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert count(lambda rngs: resnet.cifar_resnet(depth, shortcut="B", rngs=rngs)) == exact + two


def test_depth_counts_layers_with_weights():
    for depth, block, per_block in ((20, "basic", 2), (29, "bottleneck", 3), (14, "preactivation", 2)):
        model = nnx.eval_shape(
            lambda: resnet.cifar_resnet(depth, block=block, width=2, rngs=nnx.Rngs(0))
        )
        blocks = sum(len(stage) for stage in model.stages)
        assert per_block * blocks + 2 == depth


@settings(deadline=None, max_examples=10)
@given(
    st.integers(1, 3), st.integers(0, 3), st.integers(1, 3), st.integers(5, 9), st.integers(5, 9)
)
def test_pad_shortcut_keeps_what_it_picks(channels, added, stride, height, width):
    x = np.random.default_rng(0).normal(size=(2, height, width, channels)).astype(np.float32)
    y = resnet.pad_shortcut(x, features=channels + added, stride=stride)
    assert y.shape == (2, -(-height // stride), -(-width // stride), channels + added)
    np.testing.assert_array_equal(y[..., :channels], x[:, ::stride, ::stride])
    assert not y[..., channels:].any()


# PyTorch

CASES = {
    "resnet18's": ((1, 1), "basic", {"width": 8}),
    "resnet50's": ((1,), "bottleneck", {"width": 4}),
    "option A": ((1, 1), "basic", {"width": 4, "small": True, "shortcut": "A"}),
    "option C": ((2, 1), "basic", {"width": 4, "small": True, "shortcut": "C"}),
    "plain": ((1, 1), "basic", {"width": 4, "small": True, "plain": True}),
    "pre-activation": ((1, 1), "preactivation", {"width": 4, "small": True}),
}
RATE = 0.1


def ours(num_blocks, block, *, num_classes, small=False, **options):
    stem = "cifar" if small else "imagenet"
    return nnx.eval_shape(
        lambda: resnet.ResNet(
            num_blocks, block=block, stem=stem, num_classes=num_classes, rngs=nnx.Rngs(0), **options
        )
    )


def close(ours, peer, bound):
    """Relative error by norms, as everywhere: ‖ours − peer‖ / ‖peer‖."""
    ours, peer = np.asarray(ours, np.float64), np.asarray(peer, np.float64)
    error = np.linalg.norm(ours - peer) / np.linalg.norm(peer)
    assert error < bound, error


def agree(torch, case, dtype, bound, tmp_path):
    """Outputs, input gradients, one SGD step and statistics, in train and in eval mode."""
    num_blocks, kind, options = CASES[case]
    net = torch_resnet(torch, num_blocks, kind, num_classes=5, **options)
    net = net.to(getattr(torch, dtype))
    path = save_torch(net, tmp_path / "weights.safetensors")
    abstract = ours(num_blocks, kind, num_classes=5, **options)
    if dtype == "float64":
        graphdef, state = nnx.split(abstract)
        wide = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float64), state)
        abstract = nnx.merge(graphdef, wide)
    model = resnet.load_torchvision(abstract, path)
    params, state, apply = loop.bind(model)

    rng = np.random.default_rng(1)
    side = 8 if options.get("small") else 32
    x = rng.normal(size=(4, side, side, 3)).astype(dtype)
    y = np.array([0, 3, 2, 4])

    @jax.jit
    def work(params, state, x, y):
        def objective(params, x, train):
            logits, new = apply(params, state, x, train=train)
            return losses.softmax_cross_entropy_with_integer_labels(logits, y), (logits, new)

        results = []
        for train in (True, False):
            gradient = jax.grad(objective, argnums=(0, 1), has_aux=True)
            (to_params, to_x), (logits, new) = gradient(params, x, train)
            moved = jax.tree.map(lambda p, g: p - RATE * g, params, to_params)
            results.append((logits, to_x, moved, new))
        return results

    for train, (logits, to_x, moved, new) in zip((True, False), work(params, state, x, y), strict=True):
        net.load_state_dict(__import__("safetensors.torch").torch.load_file(path))
        net.train(train)
        optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
        optimizer.zero_grad()
        there = torch.tensor(x.transpose(0, 3, 1, 2).copy(), requires_grad=True)
        outputs = net(there)
        torch.nn.functional.cross_entropy(outputs, torch.tensor(y)).backward()
        optimizer.step()
        assert logits.dtype == to_x.dtype == dtype
        close(logits, outputs.detach(), bound)
        close(to_x, there.grad.permute(0, 2, 3, 1), bound)

        # Back through our own writer: every array of the step, in torch's names.
        stepped = loop.merge(model, moved, new)
        resnet.save_torchvision(stepped, tmp_path / "stepped.safetensors")
        found = __import__("safetensors.torch").torch.load_file(tmp_path / "stepped.safetensors")
        wanted = {n: v for n, v in net.state_dict().items() if "num_batches" not in n}
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            close(found[name], value, bound)
        if not train:
            chex.assert_trees_all_equal(new, state)


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_torch(torch, case, tmp_path):
    # float32: sums of up to 500 products, through up to ten layers
    agree(torch, case, "float32", 1e-4, tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_torch_in_float64(torch, x64, case, tmp_path):
    agree(torch, case, "float64", 1e-9, tmp_path)
