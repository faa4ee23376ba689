r"""Checkpoints: stop at any moment, and go on to the same last bit.

One epoch of training is a function of everything that it depends on, and of nothing else:

$$s_{t+1} = F(s_t, \text{data}), \qquad
  s_t = (\text{parameters}, \text{state}, \text{optimizer}, \text{key}, \text{position}).$$

If $R(W(s)) = s$ bit for bit for writing $W$ and reading $R$, then by induction a run that was
interrupted and went on from $R(W(s_t))$ ends at the same $s_T$ as one that was not.

A checkpoint is a folder: arrays written by Orbax, and a manifest with the form of the tree and the
SHA-256 of each file. It is written under a hidden name and renamed when it is complete, so that
under its own name there is a whole checkpoint or none. Reading compares form and checksums before
any array is used, and executes nothing: no file is unpickled.

Reference: Eisenman et al., *Check-N-Run: a Checkpointing System for Training Deep Learning
Recommendation Models* (NSDI, 2022), section 2.
"""

import json
import math
import operator
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from mlnotes_jax import _checks
from mlnotes_jax.training import _atomic, _trees

__all__ = [
    "Contents",
    "best",
    "describe",
    "latest",
    "load_model",
    "restore",
    "resume",
    "save",
    "save_model",
    "steps",
]

Folder = str | os.PathLike[str]


class Contents(NamedTuple):
    """What is in a checkpoint, besides the numbers.

    Attributes:
        step: Its number; None for a model.
        metric: What `save` was given, or None.
        position: What `save` was given, or None: the place in the data.
        leaves: For each leaf its path, with dtype and shape, or the type of a Python value.
        versions: Of Python and the libraries that wrote it, and the version of the format.
    """

    step: int | None
    metric: float | None
    position: Any
    leaves: dict[str, str]
    versions: dict[str, str]


def save(
    folder: Folder,
    step: int | Int[Array, ""],
    tree: PyTree,
    *,
    metric: float | Float[Array, ""] | None = None,
    position: Any = None,
    keep_last: int | None = None,
    keep_best: int | None = None,
    lower_is_better: bool = True,
    replace: bool = False,
) -> Path:
    """Save everything that training depends on, in one step or not at all.

    The checkpoint appears under its name when it is complete and on the disk. Whatever kills the
    process before that leaves a hidden folder, which nothing reads and the next `save` removes.

    Args:
        folder: Where the checkpoints of one run lie; made if it is not there.
        step: The number of this one, at least 0: epochs or updates, as you like.
        tree: Any pytree: arrays of JAX (typed keys, too) and NumPy (text, too), Python numbers,
            text and bytes, and Flax modules, of which the state is saved. Save from one process.
        metric: How good it is; for `keep_best` and `best`. NaN is never among the best.
        position: The place in the data: bytes, or whatever JSON can hold, such as the answer of
            `get_state()` of a Grain iterator. It comes back by `describe`.
        keep_last: After saving, keep this many of the newest.
        keep_best: After saving, keep this many with the best metric, too. If neither is given,
            all are kept; with this one alone, also the newest.
        lower_is_better: Whether a small metric is a good one.
        replace: Whether to remove a checkpoint of the same step first.

    Returns:
        The folder of the checkpoint, `folder/step_<number>`.

    Raises:
        TypeError: A leaf is something else (the message says which), `step` or a count is not an
            integer, or `position` cannot be held by JSON.
        ValueError: A count is too small, `step` has been saved before, or an array lies on devices
            of other processes.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.training import checkpoints
        >>> folder = tempfile.mkdtemp()
        >>> for epoch in range(4):
        ...     state = {"weight": jnp.full(2, epoch), "epoch": epoch}
        ...     path = checkpoints.save(folder, epoch, state, keep_last=2)
        >>> path.name, checkpoints.steps(folder)
        ('step_00000003', [2, 3])

    Note:
        `orbax.checkpoint.CheckpointManager` is the choice for many processes or asynchronous
        writing. By itself Orbax converts to the dtype that is asked for, and does not notice every
        flipped bit.
    """
    if isinstance(step, jax.Array | np.ndarray):
        step = operator.index(np.asarray(step)[()])
    _checks.positive_int("step", step, least=0)
    for name, count in (("keep_last", keep_last), ("keep_best", keep_best)):
        if count is not None:
            _checks.positive_int(name, count)
    body = {
        "step": int(step),
        "metric": None if metric is None else _number("metric", metric).hex(),
        "position": _to_json(position),
    }
    target = Path(os.path.abspath(folder)) / _name(int(step))
    _write(target, body, tree, replace, f"step {step}")
    _atomic.clean(target.parent, r"step_\d+")
    _prune(target.parent, keep_last, keep_best, lower_is_better)
    return target


def restore(folder: Folder, like: PyTree, step: int | None = None) -> PyTree:
    """Read a checkpoint back: the same bits, or an error.

    Args:
        folder: As in `save`.
        like: A tree of the same form: containers, dtypes and shapes. Its values do not matter: a
            freshly initialised state will do, or `jax.ShapeDtypeStruct` for arrays and keys. Leaves
            come back as what they are here: JAX arrays where `like` has them (on the device they
            are tied to), NumPy arrays, Python values. Flax modules come back as new modules.
        step: Which one; None for the newest that is complete.

    Returns:
        The tree that was saved. `like` is not changed.

    Raises:
        FileNotFoundError: There is no such checkpoint; the message lists what there is.
        ValueError: The checkpoint is damaged, foreign, of another version of the format, or does
            not fit `like`; the message names the file or the leaf. Nothing is returned by halves.

    Example:
        >>> import tempfile
        >>> import jax
        >>> from mlnotes_jax.training import checkpoints
        >>> folder = tempfile.mkdtemp()
        >>> _ = checkpoints.save(folder, 7, {"key": jax.random.key(3), "epoch": 7})
        >>> state = checkpoints.restore(folder, {"key": jax.random.key(0), "epoch": 0})
        >>> state["epoch"], bool(state["key"] == jax.random.key(3))
        (7, True)
    """
    path = _path(folder, step)
    try:
        return _read(path, like)
    except ValueError as error:
        others = [found for found in steps(folder) if _name(found) != path.name]
        if others:
            error.add_note(f"{path.parent} has other steps: {', '.join(map(str, others))}")
        raise


def resume(folder: Folder, like: PyTree) -> PyTree:
    """Restore the newest complete checkpoint, or give `like` back where there is none.

    So the first start of a program and every restart are the same line.

    Args:
        folder: As in `save`. It need not exist.
        like: The state to begin with; as in `restore`.

    Returns:
        The state to go on from.

    Raises:
        ValueError: As in `restore`. A damaged checkpoint is never taken for none.

    Example:
        >>> import tempfile
        >>> from mlnotes_jax.training import checkpoints
        >>> folder = tempfile.mkdtemp()
        >>> for _ in range(3):  # a program that is started three times
        ...     state = checkpoints.resume(folder, {"epoch": 0})
        ...     _ = checkpoints.save(folder, state["epoch"], {"epoch": state["epoch"] + 1})
        >>> state["epoch"]
        2
    """
    return like if latest(folder) is None else restore(folder, like)


def steps(folder: Folder) -> list[int]:
    """List the steps of the complete checkpoints in a folder, in order; none if it is not there."""
    folder = Path(os.path.abspath(folder))
    names = os.listdir(folder) if folder.is_dir() else []
    found = [int(name[5:]) for name in names if re.fullmatch(r"step_\d{8,}", name)]
    return sorted(step for step in set(found) if _name(step) in names)


def latest(folder: Folder) -> int | None:
    """Find the step of the newest complete checkpoint; None if there is none."""
    return max(steps(folder), default=None)


def best(folder: Folder, *, lower_is_better: bool = True) -> int | None:
    """Find the step with the best metric, the first of equals; None if no metric was saved.

    Raises:
        ValueError: A manifest is damaged, foreign or of another version.
    """
    path = Path(os.path.abspath(folder))
    manifests = {step: _atomic.read_manifest(path / _name(step)) for step in steps(folder)}
    return next(iter(_ranked(manifests, lower_is_better)), None)


def describe(folder: Folder, step: int | None = None) -> Contents:
    """Say what is in a checkpoint, or a saved model, without reading its arrays.

    Args:
        folder: As in `save`, or the path of a saved model.
        step: Which one; None for the newest that is complete.

    Returns:
        Step, metric, position, and the form of each leaf.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: Its manifest is damaged, foreign or of another version.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from mlnotes_jax.training import checkpoints
        >>> folder = tempfile.mkdtemp()
        >>> _ = checkpoints.save(folder, 5, {"a": np.zeros((2, 3)), "b": 1}, metric=0.25)
        >>> contents = checkpoints.describe(folder)
        >>> contents.metric, contents.leaves
        (0.25, {"['a']": 'float64 (2, 3)', "['b']": 'int'})
    """
    is_model = step is None and (Path(folder) / _atomic.MANIFEST).is_file()
    body = _atomic.read_manifest(Path(os.path.abspath(folder)) if is_model else _path(folder, step))
    return Contents(
        body.get("step"),
        _metric(body),
        _from_json(body.get("position")),
        _trees.summary(body["tree"]),
        {**body["libraries"], "format": str(body["version"])},
    )


def save_model(path: Folder, model: PyTree, *, replace: bool = False) -> Path:
    """Save a fitted model of any chapter: a NamedTuple, a registered dataclass, a Flax module.

    Args:
        path: The folder to make.
        model: Any tree that `save` takes. Static fields of a dataclass are saved, too, if they are
            numbers, text, or tuples of these; of others, such as functions, only the name.
        replace: Whether to remove a model that is there first. Anything else that is there is
            never removed.

    Returns:
        The path.

    Raises:
        TypeError: As in `save`.
        ValueError: As in `save`, or something is at `path`.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.data import scaling
        >>> from mlnotes_jax.training import checkpoints
        >>> fitted = scaling.fit_standard(jnp.array([[1.0], [3.0]]))
        >>> path = checkpoints.save_model(tempfile.mkdtemp() + "/scaling", fitted)
        >>> checkpoints.load_model(path, scaling.Scaling).shift.tolist()
        [2.0]
    """
    target = Path(os.path.abspath(path))
    _write(target, {}, model, replace, str(target))
    _atomic.clean(target.parent, re.escape(target.name))
    return target


def load_model(path: Folder, like: Any) -> Any:
    """Load a model that `save_model` has written.

    Args:
        path: Its folder.
        like: The class of the model (a NamedTuple or a registered dataclass, whose annotations lead
            to the classes of its parts): shapes and static fields then come from the file. Or a
            model of the same form, as in `restore`; its static fields must agree. A Flax module
            needs the latter: `nnx.eval_shape(lambda: Net(rngs=nnx.Rngs(0)))` computes nothing.

    Returns:
        The model.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        TypeError: `like` is a class of another kind.
        ValueError: As in `restore`.

    Example:
        >>> import tempfile
        >>> from mlnotes_jax.data import labels
        >>> from mlnotes_jax.training import checkpoints
        >>> path = tempfile.mkdtemp() + "/classes"
        >>> _ = checkpoints.save_model(path, labels.fit(["cat", "dog", "ant"]))
        >>> checkpoints.load_model(path, labels.Encoding).classes.tolist()
        ['ant', 'cat', 'dog']
    """
    target = Path(os.path.abspath(path))
    if not isinstance(like, type):
        return _read(target, like)
    if not _trees.field_names(like):
        raise TypeError(
            "like must be a model, or the class of a NamedTuple or dataclass, got the class "
            f"{like.__qualname__}"
        )
    body = _atomic.read_manifest(target)
    if body["tree"].get("type") != like.__qualname__:
        what = body["tree"].get("type", body["tree"].get("leaf"))
        raise ValueError(f"{target} must hold a {like.__qualname__}, it holds a {what}")
    arrays = _arrays(target, body)
    try:
        return _trees.build(like, body["tree"], arrays)
    except ValueError as error:
        raise ValueError(f"{target}: {error}") from error


def _write(target: Path, body: dict[str, Any], tree: PyTree, replace: bool, what: str) -> None:
    if jax.process_count() > 1:
        raise ValueError(
            f"save must run in one process, got {jax.process_count()}: use Orbax's "
            "CheckpointManager with several"
        )
    description, leaves = _trees.describe(_trees.pure(tree))
    if target.exists():
        if not replace:
            raise ValueError(f"{what} has been saved before: {target} exists (see replace)")
        _atomic.read_manifest(target)  # whatever is not ours is not removed
    body = {"libraries": _libraries(), **body, "tree": description}
    arrays = {f"{i:05d}": _trees.stored(leaf) for i, leaf in enumerate(leaves)}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    _atomic.commit(target, body, arrays, replace=replace)


def _read(path: Path, like: PyTree) -> PyTree:
    body = _atomic.read_manifest(path)
    pure = _trees.pure(like)
    description, _ = _trees.describe(pure, abstract=True)
    found = _trees.differences(body["tree"], description)
    if found:
        more = f" (and {len(found) - 5} more)" if len(found) > 5 else ""
        raise ValueError(f"{path} does not fit: {'; '.join(found[:5])}{more}")
    return _trees.impure(like, _trees.fill(pure, body["tree"], _arrays(path, body)))


def _arrays(path: Path, body: dict[str, Any]) -> list[np.ndarray | None]:
    """Read all arrays of a checkpoint, whose bytes and forms must be those of its manifest."""
    _atomic.check_files(path, body["files"])
    leaves = _trees.array_leaves(body["tree"])
    names = {f"{i:05d}": leaf for i, leaf in enumerate(leaves) if math.prod(leaf[1]["shape"])}
    arrays = _atomic.read_arrays(path, list(names))
    for name, (where, leaf) in names.items():
        wanted = _trees.stored_form(leaf)
        if wanted and (arrays[name].dtype.name, arrays[name].shape) != wanted:
            raise ValueError(
                f"{path}: {where} must be stored as {wanted}, got {arrays[name].dtype} "
                f"{arrays[name].shape}"
            )
    return [arrays.get(f"{i:05d}") for i in range(len(leaves))]


def _prune(folder: Path, keep_last: int | None, keep_best: int | None, lower: bool) -> None:
    if keep_last is None and keep_best is None:
        return
    manifests = {}
    for step in steps(folder):
        try:
            manifests[step] = _atomic.read_manifest(folder / _name(step))
        except ValueError:
            continue  # it is damaged: it stays, for somebody to look at
    kept = set(sorted(manifests)[-(keep_last or 1) :])
    kept |= set(_ranked(manifests, lower)[: keep_best or 0])
    for step in set(manifests) - kept:
        _atomic.discard(folder / _name(step))


def _ranked(manifests: dict[int, dict[str, Any]], lower: bool) -> list[int]:
    values = {step: _metric(body) for step, body in sorted(manifests.items())}
    known = {step: value for step, value in values.items() if value is not None}
    known = {step: value for step, value in known.items() if not math.isnan(value)}
    return sorted(known, key=lambda step: known[step] if lower else -known[step])


def _metric(body: dict[str, Any]) -> float | None:
    return None if body.get("metric") is None else float.fromhex(body["metric"])


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _path(folder: Folder, step: int | None) -> Path:
    found = steps(folder)
    if (step is None and not found) or (step is not None and step not in found):
        which = "no complete checkpoint" if step is None else f"no checkpoint of step {step}"
        there = f"; there are steps {', '.join(map(str, found))}" if found else ""
        missing = "" if Path(folder).is_dir() else ": no such folder"
        raise FileNotFoundError(f"{which} in {os.path.abspath(folder)}{missing}{there}")
    return Path(os.path.abspath(folder)) / _name(found[-1] if step is None else step)


def _number(name: str, value: Any) -> float:
    try:
        return float(np.asarray(value)[()])
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be one number, got {value!r}") from error


def _to_json(position: Any) -> Any:
    if isinstance(position, bytes):
        return {"bytes": position.hex()}
    try:
        same = json.loads(json.dumps(position)) == position
    except (TypeError, ValueError):
        same = False
    if not same:
        raise TypeError(f"position must be bytes or what JSON can hold, got {position!r}")
    return {"json": position}


def _from_json(position: Any) -> Any:
    if position is None:
        return None
    return bytes.fromhex(position["bytes"]) if "bytes" in position else position["json"]


def _libraries() -> dict[str, str]:
    names = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}
