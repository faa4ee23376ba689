"""Residual networks against PyTorch with copied weights, and the published parameter counts."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnotes_jax.demos.nets import resnet as demo
from mlnotes_jax.foundations import losses
from mlnotes_jax.nets import resnet
from mlnotes_jax.training import loop

# Compiled without optimization: the same operations, in half the time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


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


def count(make):
    shapes = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(shapes, nnx.Param)))


def small(depth=8, num_classes=3, *, seed=0, width=2, **options):
    return resnet.cifar_resnet(depth, num_classes, width=width, rngs=nnx.Rngs(seed), **options)


def pictures(n=4, side=8, seed=0):
    return np.random.default_rng(seed).normal(size=(n, side, side, 3)).astype(np.float32)


def leaves(model):
    return [
        np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    ]


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


def test_plain_twins_and_projections_in_the_cifar_kind():
    assert count(lambda rngs: resnet.cifar_resnet(20, plain=True, rngs=rngs)) == 269_722
    # Two projections: 16 x 32 and 32 x 64, with a scale and a bias for each channel.
    two = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert count(lambda rngs: resnet.cifar_resnet(20, shortcut="B", rngs=rngs)) == 269_722 + two


@pytest.mark.parametrize(
    ("depth", "block", "per_block"),
    [(20, "basic", 2), (29, "bottleneck", 3), (14, "preactivation", 2)],
)
def test_depth_counts_layers_with_weights(depth, block, per_block):
    model = nnx.eval_shape(
        lambda: resnet.cifar_resnet(depth, block=block, width=2, rngs=nnx.Rngs(0))
    )
    assert per_block * sum(len(stage) for stage in model.stages) + 2 == depth


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
    import safetensors.torch as safetensors

    num_blocks, kind, options = CASES[case]
    net = torch_resnet(torch, num_blocks, kind, num_classes=5, **options)
    net = net.to(getattr(torch, dtype))
    path = tmp_path / "weights.safetensors"
    safetensors.save_file(net.state_dict(), path)
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

    @jit
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

    for train, (logits, to_x, moved, new) in zip(
        (True, False), work(params, state, x, y), strict=True
    ):
        net.load_state_dict(safetensors.load_file(path))
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
        found = safetensors.load_file(tmp_path / "stepped.safetensors")
        wanted = {n: v.clone() for n, v in net.state_dict().items() if "num_batches" not in n}
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            close(found[name], value, bound)
        net.load_state_dict(found, strict=True)  # as a user of torchvision would read it
        if not train:
            chex.assert_trees_all_equal(new, state)


def test_agrees_with_torch(torch, tmp_path):
    # float32: sums of up to 150 products, through six layers
    agree(torch, "resnet18's", "float32", 1e-4, tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_torch_in_float64(torch, x64, case, tmp_path):
    agree(torch, case, "float64", 1e-9, tmp_path)


# As a function


@pytest.fixture(scope="module")
def tiny():
    return resnet.ResNet([1], width=2, stem="cifar", num_classes=3, rngs=nnx.Rngs(0))


def test_jit_vmap_and_eager_agree_and_compile_once(tiny):
    params, state, apply = loop.bind(tiny)
    traced = 0

    @jit
    def logits(params, state, x):
        nonlocal traced
        traced += 1
        return apply(params, state, x)[0]

    x = pictures()
    compiled = logits(params, state, x)
    again = logits(jax.tree.map(lambda leaf: 2 * leaf, params), state, x + 1)
    assert traced == 1
    assert not np.allclose(compiled, again)
    tiny.eval()
    # float32: programs add in other orders
    np.testing.assert_allclose(tiny(x), compiled, rtol=1e-5, atol=1e-6)
    tiny.train()

    scaled = [jax.tree.map(lambda leaf, s=s: s * leaf, params) for s in (1.0, 0.9)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *scaled)
    several = jax.vmap(lambda p: apply(p, state, x)[0])(stacked)
    for one, own in zip(several, scaled, strict=True):
        np.testing.assert_allclose(one, logits(own, state, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [resnet.BasicBlock, resnet.PreActivationBlock])
def test_gradient_through_a_block_against_finite_differences(x64, kind):
    params, state, apply = loop.bind(kind(2, 3, stride=2, shortcut="A", rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(3, 4, 4, 2)), rng.normal(size=(3, 2, 2, 3))
    at = (jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params), jnp.asarray(x))
    way = jax.tree.map(lambda leaf: 1e-6 * rng.normal(size=leaf.shape), at)

    @jit
    @jax.value_and_grad
    def value(at):
        return (apply(at[0], state, at[1], train=True)[0] * weights).sum()

    _, gradient = value(at)
    ahead, behind = (value(jax.tree.map(op, at, way))[0] for op in (jnp.add, jnp.subtract))
    predicted = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, way)))
    # Central differences with step 1e-6: 1e-9 from rounding, as long as no ReLU is at its kink.
    np.testing.assert_allclose((ahead - behind) / 2, predicted, rtol=1e-5)


def test_skip_of_one_and_zero_are_the_network_and_its_twin():
    model = small(shortcut="A")
    twin = nnx.merge(
        nnx.split(small(shortcut="A", plain=True))[0], nnx.split(model)[1]
    )  # the same values
    model.eval(), twin.eval()
    x = pictures()
    np.testing.assert_array_equal(model(x, skip=1), model(x))
    np.testing.assert_allclose(model(x, skip=jnp.zeros(())), twin(x), rtol=1e-6)
    assert not np.allclose(twin(x), model(x))


def test_zero_branches_leave_the_shallow_network():
    # Nested function classes: a deeper network computes what a shallower one does, exactly.
    for block, norm in (("basic", "norm2"), ("preactivation", None)):
        shallow, deep = small(8, block=block), small(14, block=block, zero_init=True)
        for i in range(3):
            deep.stages[i][0] = shallow.stages[i][0]
        deep.stem, deep.norm, deep.head = shallow.stem, shallow.norm, shallow.head
        shallow.eval(), deep.eval()
        if norm:
            assert not getattr(deep.stages[0][1], norm).scale[...].any()
        np.testing.assert_array_equal(deep(pictures()), shallow(pictures()))


def test_bottleneck_has_its_weights_in_the_wide_ends():
    shapes = nnx.eval_shape(lambda: resnet.Bottleneck(256, 64, rngs=nnx.Rngs(0)))
    kernels = [leaf.size for leaf in jax.tree.leaves(nnx.state(shapes)) if leaf.ndim == 4]
    assert sum(kernels) == 69_632 == 256 * 64 + 9 * 64 * 64 + 64 * 256
    assert 2 * 9 * 256 * 256 == 1_179_648


# Weights from a file


def test_weights_survive_the_file_bit_for_bit(tmp_path):
    trained, other = small(shortcut="B"), small(shortcut="B", seed=1)
    before = leaves(other)
    path = tmp_path / "weights.safetensors"
    resnet.save_torchvision(trained, path)
    loaded = resnet.load_torchvision(other, path)
    chex.assert_trees_all_equal(leaves(loaded), leaves(trained))
    chex.assert_trees_all_equal(leaves(other), before)  # the model given is not changed
    assert [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]
    with pytest.raises(FileNotFoundError):
        resnet.save_torchvision(trained, tmp_path / "none" / "weights.safetensors")

    from safetensors.numpy import load_file, save_file

    # torchvision's counters are passed over; half precision is widened
    arrays = {name: array.astype(np.float16) for name, array in load_file(path).items()}
    save_file({**arrays, "bn1.num_batches_tracked": np.array(7)}, path)
    half = resnet.load_torchvision(other, path)
    for ours, exact in zip(leaves(half), leaves(trained), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, exact, rtol=1e-3, atol=1e-7)  # 11 bits; subnormals


def test_another_head_for_fine_tuning(tmp_path):
    path = tmp_path / "weights.safetensors"
    trained, other = small(num_classes=3), small(num_classes=5, seed=1)
    resnet.save_torchvision(trained, path)
    with pytest.raises(ValueError, match=r"wrong shape: fc.*is \(3,\), must be \(5,\)"):
        resnet.load_torchvision(other, path)
    tuned = resnet.load_torchvision(other, path, head=False)
    np.testing.assert_array_equal(tuned.head.kernel[...], other.head.kernel[...])
    np.testing.assert_array_equal(
        tuned.stages[2][0].conv2.kernel[...], trained.stages[2][0].conv2.kernel[...]
    )


def test_what_does_not_fit_is_listed_and_nothing_is_loaded(tmp_path):
    from safetensors.numpy import load_file, save_file

    model, path = small(), tmp_path / "weights.safetensors"
    resnet.save_torchvision(model, path)
    good = load_file(path)

    def refused(change, *messages):
        arrays = dict(good)
        change(arrays)
        save_file(arrays, path)
        with pytest.raises(ValueError, match="nothing was loaded") as error:
            resnet.load_torchvision(model, path)
        for message in messages:
            assert message in str(error.value)
        return str(error.value)

    refused(lambda a: a.pop("layer2.0.bn1.running_var"), "missing: layer2.0.bn1.running_var")
    refused(lambda a: a.update(extra=a["fc.bias"]), "unexpected: extra")
    kernel = good["layer1.0.conv1.weight"]
    text = refused(
        lambda a: a.update({"layer1.0.conv1.weight": np.zeros((3, 2, 3, 3), np.float32)}),
        "wrong shape: layer1.0.conv1.weight is (3, 2, 3, 3), must be (2, 2, 3, 3)",
    )
    assert "missing" not in text
    refused(
        lambda a: a.update({"layer1.0.conv1.weight": kernel.astype(np.int32)}),
        "wrong type: layer1.0.conv1.weight is I32, must be one of F16, F32, F64",
    )
    # Of a file for quite another network, the list is cut and counted.
    text = refused(lambda a: [a.pop(name) for name in list(a)[:-1]])
    assert text.count(";") == 8
    assert text.endswith(f"; and {len(good) - 1 - 8} more")


def test_files_that_are_none(tmp_path):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(FileNotFoundError, match=r"weights\.safetensors is no file"):
        resnet.load_torchvision(small(), path)
    resnet.save_torchvision(small(), path)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:100], b"", b"PK\x03\x04 a zip file, such as a .pth"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="no complete safetensors file"):
            resnet.load_torchvision(small(), path)


# Fine-tuning


def test_frozen_parts_stay_bit_for_bit():
    model = resnet.ResNet([1, 1], width=2, stem="cifar", num_classes=3, rngs=nnx.Rngs(0))
    model = resnet.freeze(model, ["stage2", "stem", "stem"])
    assert model.frozen == ("stem", "stage2")
    optimizer = optax.multi_transform(
        {"trained": optax.sgd(0.1, momentum=0.9), "frozen": optax.set_to_zero()},
        resnet.labels(model),
    )
    x, y = pictures(8), np.arange(8) % 3
    tuned = loop.fit(
        jax.random.key(0),
        model,
        optimizer,
        losses.softmax_cross_entropy_with_integer_labels,
        (x, y),
        num_epochs=1,
        batch_size=4,
    ).model
    assert tuned.frozen == model.frozen

    def arrays(model, kind):
        tree = nnx.as_pure(nnx.state(model, kind))
        return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}

    for kind in (nnx.Param, nnx.BatchStat):
        old, new = arrays(model, kind), arrays(tuned, kind)
        still = {name for name in old if (old[name] == new[name]).all()}
        named = {name for name in old if name.startswith(("['stem']", "['stages'][1]"))}
        assert still == named
        assert named < set(old)
    assert resnet.freeze(model, []).frozen == ()


def test_labels_follow_the_parts():
    model = resnet.freeze(small(block="preactivation"), ["stage1", "head"])
    assert resnet.parts(model) == ("stem", "stage1", "stage2", "stage3", "head")
    labels = nnx.as_pure(resnet.labels(model))
    params = loop.bind(model).params
    assert jax.tree.structure(labels) == jax.tree.structure(params)
    assert set(jax.tree.leaves(labels["stages"][0])) == {"frozen"}
    assert set(jax.tree.leaves([labels["head"], labels["norm"]])) == {"frozen"}
    assert set(jax.tree.leaves([labels["stem"], labels["stages"][1]])) == {"trained"}
    mask = jax.tree.map(lambda label: label == "trained", labels)
    masked = optax.masked(optax.sgd(1.0), mask)
    updates, _ = masked.update(params, masked.init(params))
    np.testing.assert_array_equal(
        updates["stem"]["conv"]["kernel"], -params["stem"]["conv"]["kernel"]
    )


def test_train_mode_reaches_all_but_the_frozen_parts():
    model = resnet.freeze(small(block="preactivation"), ["stage1", "head"])
    model.train()
    norms = [block.norm1.use_running_average for stage in model.stages for block in stage]
    assert norms == [True, False, False]
    assert model.norm.use_running_average
    model.eval()
    assert all(block.norm1.use_running_average for stage in model.stages for block in stage)


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 21}, r"depth must be 6n \+ 2 .* got 21"),
        ({"depth": 2}, r"depth must be 6n \+ 2 .* got 2"),
        ({"depth": 14, "block": "bottleneck"}, r"depth must be 9n \+ 2"),
        ({"block": "wide"}, "block must be one of 'basic', 'bottleneck', 'preactivation', got"),
        ({"shortcut": "D"}, "shortcut must be one of 'A', 'B', 'C', got 'D'"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        resnet.cifar_resnet(rngs=nnx.Rngs(0), **options)


def test_bad_pictures(tiny):
    with pytest.raises(ValueError, match="NCHW"):
        tiny(jnp.ones((2, 3, 8, 8)))
    with pytest.raises(ValueError, match="3 channels"):
        tiny(jnp.ones((2, 8, 8, 1)))
    with pytest.raises(ValueError, match="x must be 4-D"):
        tiny(jnp.ones((8, 8, 3)))
    with pytest.raises(ValueError, match="num_blocks must have at least one stage"):
        resnet.ResNet([], rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"num_blocks\[1\] must be at least 1, got 0"):
        resnet.ResNet([1, 0], rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="features must be at least the 3 channels"):
        resnet.pad_shortcut(jnp.ones((1, 2, 2, 3)), features=2)


def test_bad_parts(tiny):
    with pytest.raises(ValueError, match="stages must be one of 'stem', 'stage1', 'head'"):
        resnet.freeze(tiny, ["stage2"])
    with pytest.raises(TypeError, match="stages must be a list of names, got the string 'stem'"):
        resnet.freeze(tiny, "stem")


# The demo


def test_demo_shows_degradation_and_its_cure():
    result = demo.run(jax.random.key(0), quick=True)
    loss = {demo.name(run): demo.final_loss(run) for run in result.runs}
    # What the page says; in four trials the first ratio was 1.6 to 2.4, the second 0.5 to 0.8.
    assert loss["plain-14"] > 1.2 * loss["plain-8"]
    assert loss["residual-14"] < loss["plain-14"]
    for run in result.runs:
        assert len(run.norms) == run.depth - 1
        assert (run.norms > 0).all()
    assert "CC BY 4.0" in result.source.licence


def test_demo_shifts_and_mirrors_whole_pictures():
    side = np.arange(64, dtype=np.float32).reshape(1, 8, 8, 1) + 1
    x, y = np.concatenate([side, -side]), np.array([0, 1])
    data = demo.Problem(jnp.asarray(x), jnp.asarray(y), (x, y), None)
    draw = demo.batches(jax.random.key(0), data, batch_size=2, num_steps=6, augment=True)
    seen = [np.asarray(picture[..., 0]) for pictures, _ in draw(3) for picture in pictures]
    shifts = set()
    for picture in seen:
        sign = np.sign(picture.sum())
        rows, columns = np.nonzero(picture)
        inside = sign * picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        mirrored = inside[0, 0] > inside[0, -1]
        inside = inside[:, ::-1] if mirrored else inside
        whole = side[0, :, :, 0]
        i, j = np.argwhere(whole == inside[0, 0])[0]
        np.testing.assert_array_equal(inside, whole[i:, j:][: len(inside), : inside.shape[1]])
        shifts.add((mirrored, *inside.shape))
    assert len(shifts) > 6
    # Chunks follow each other: two steps of the same pass see every picture once.
    plain = demo.batches(jax.random.key(0), data, batch_size=1, num_steps=1, augment=False)
    for first in (0, 2, 4):
        labels = [
            int(label) for chunk in (first, first + 1) for _, y in plain(chunk) for label in y
        ]
        assert sorted(labels) == [0, 1]
