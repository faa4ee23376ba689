"""What a tree is, as JSON: its containers by name, its leaves by type, dtype and shape.

A description says enough to refuse a tree that does not fit, leaf by leaf, before any array is
read; with a class at hand it is enough to build the tree again. Nothing in it is code, and no name
in it is ever imported.
"""

import dataclasses
import sys
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlnotes_jax import _checks

Description = dict[str, Any]

_PYTHON = (bool, int, float, complex, str, bytes)


def pure(tree: Any) -> Any:
    """Replace each Flax module by its state: graphs and functions stay behind."""
    nnx = sys.modules.get("flax.nnx")  # not imported: then there is no module to replace
    if nnx is None:
        return tree
    is_module = _is_module(nnx)
    return jax.tree.map(
        lambda node: nnx.as_pure(nnx.split(node)[1]) if is_module(node) else node,
        tree,
        is_leaf=is_module,
    )


def impure(like: Any, tree: Any) -> Any:
    """Undo `pure`: where `like` has a module, make a new one from the state in `tree`."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None:
        return tree
    is_module = _is_module(nnx)
    return jax.tree.map(
        lambda node, part: nnx.merge(nnx.split(node)[0], part) if is_module(node) else part,
        like,
        tree,
        is_leaf=is_module,
    )


def describe(tree: Any, path: str = "", *, abstract: bool = False) -> tuple[Description, list[Any]]:
    """Describe a pure tree, and list its leaves that are arrays, in order.

    Args:
        tree: The tree.
        path: Where it is in a larger one.
        abstract: Whether `jax.ShapeDtypeStruct` may stand for an array.

    Returns:
        The description and the arrays.

    Raises:
        TypeError: A leaf is not an array, a key or a Python value; the message names it.
        ValueError: A leaf lies on devices of other processes.
    """
    children = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: node is not tree)[0]
    if len(children) == 1 and children[0][0] == ():
        return _describe_leaf(tree, path, abstract)
    node: Description = {"type": type(tree).__qualname__, "children": []}
    leaves: list[Any] = []
    for (key,), child in children:
        name = jax.tree_util.keystr((key,))
        description, more = describe(child, path + name, abstract=abstract)
        node["children"].append([name, description])
        leaves += more
    if isinstance(tree, dict):
        keys = [key.key for (key,), _ in children]
        node["keys"] = keys if all(type(key) in (str, int) for key in keys) else None
    if dataclasses.is_dataclass(tree):
        names = {name for name, _ in node["children"]}
        fields = [field.name for field in dataclasses.fields(tree) if "." + field.name not in names]
        node["static"] = {name: _static(getattr(tree, name)) for name in fields}
    return node, leaves


def differences(saved: Description, like: Description, path: str = "") -> list[str]:
    """Say where a saved tree does not fit: one line for each place."""
    where = path or "the tree"
    kinds = [_kind(saved), _kind(like)]
    if "node" in kinds and kinds[0] != kinds[1]:
        return [f"{where} must be {_named(like)}, the checkpoint has {_named(saved)}"]
    if "node" not in kinds:
        return _leaf_differences(saved, like, where)
    if saved["type"] != like["type"]:
        return [f"{where} must be of type {like['type']}, the checkpoint has {saved['type']}"]
    ours, theirs = dict(like["children"]), dict(saved["children"])
    found = [f"{path}{name} is missing in the checkpoint" for name in ours if name not in theirs]
    found += [f"{path}{name} is only in the checkpoint" for name in theirs if name not in ours]
    for name, value in like.get("static", {}).items():
        other = saved.get("static", {}).get(name)
        if other != value:
            found.append(
                f"{path}.{name} (static) must be {_shown(value)}, the checkpoint has "
                f"{_shown(other)}"
            )
    for name, child in ours.items():
        if name in theirs:
            found += differences(theirs[name], child, path + name)
    return found


def stored(leaf: Any) -> np.ndarray | None:
    """Give an array leaf the form in which it is written; None where it has no element."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    if array.size == 0:
        return None
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)
    unit = {"U": np.uint32, "S": np.uint8, "M": np.int64, "m": np.int64}.get(array.dtype.kind)
    if unit is None:
        return array
    return array.view(unit) if array.ndim else array.reshape(1).view(unit)


def unstored(array: np.ndarray | None, leaf: Description) -> np.ndarray:
    """Undo `stored`."""
    shape = tuple(leaf["shape"])
    if leaf["leaf"] == "key":
        size = jax.random.key_data(jax.random.key(0, impl=leaf["impl"])).shape
        return np.zeros(shape + size, np.uint32) if array is None else array
    dtype = jnp.dtype(leaf["dtype"])
    if array is None:
        return np.zeros(shape, dtype)
    return array.view(dtype).reshape(shape) if dtype.kind in "USMm" else array


def stored_form(leaf: Description) -> tuple[str, tuple[int, ...]] | None:
    """What dtype and shape the written array must have; None for text, whose width varies."""
    shape = tuple(leaf["shape"])
    if leaf["leaf"] == "key":
        data = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=leaf["impl"])))
        return str(data.dtype), shape + data.shape
    dtype = jnp.dtype(leaf["dtype"])
    return None if dtype.kind in "USMm" else (dtype.name, shape)


def array_leaves(description: Description, path: str = "") -> list[tuple[str, Description]]:
    """List the array leaves of a description with their paths, in the order of `describe`."""
    if _kind(description) == "node":
        return [
            pair
            for name, child in description["children"]
            for pair in array_leaves(child, path + name)
        ]
    return [] if description["leaf"] == "python" else [(path, description)]


def python_leaves(description: Description, path: str = "") -> list[tuple[str, Any]]:
    """List the leaves that are Python values, with their paths."""
    if _kind(description) == "node":
        return [
            pair
            for name, child in description["children"]
            for pair in python_leaves(child, path + name)
        ]
    if description["leaf"] != "python":
        return []
    return [(path, _from_python_value(description["type"], description["value"]))]


def field_names(cls: Any) -> list[str]:
    """List the fields of a NamedTuple or a dataclass; none of any other class."""
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls)]
    return list(getattr(cls, "_fields", ()))


def summary(description: Description, path: str = "") -> dict[str, str]:
    """Name each leaf with its dtype and shape, or its Python type."""
    if _kind(description) == "node":
        parts = [summary(child, path + name) for name, child in description["children"]]
        return {name: text for part in parts for name, text in part.items()}
    if description["leaf"] == "python":
        return {path: description["type"]}
    return {path: f"{description['dtype']} {tuple(description['shape'])}"}


def fill(like: Any, description: Description, arrays: list[np.ndarray | None]) -> Any:
    """Build a tree in the form of `like`, which fits the description, from what was read."""
    values = _leaf_values(description, iter(arrays))
    leaves, structure = jax.tree.flatten(like)
    pairs = zip(leaves, values, strict=True)
    return jax.tree.unflatten(structure, [_place(leaf, *value) for leaf, value in pairs])


def build(cls: type, description: Description, arrays: list[np.ndarray | None]) -> Any:
    """Build an instance of `cls` from a description: containers of containers, too."""
    return _build(description, iter(arrays), {cls.__qualname__: cls}, "model")


def _is_module(nnx: Any) -> typing.Callable[[Any], bool]:
    return lambda node: isinstance(node, nnx.Module | nnx.Pytree)


def _describe_leaf(leaf: Any, path: str, abstract: bool) -> tuple[Description, list[Any]]:
    where = path or "the tree"
    if type(leaf) in _PYTHON:
        value = _python_value(leaf)
        return {"leaf": "python", "type": type(leaf).__name__, "value": value}, []
    if not _checks.is_concrete(leaf):
        raise TypeError(
            f"{where} must be concrete, got a tracer: this runs on the host, not under jit or vmap"
        )
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        raise ValueError(f"{where} lies on devices of other processes, which this cannot save")
    if isinstance(leaf, jax.Array) or (abstract and isinstance(leaf, jax.ShapeDtypeStruct)):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            description = {"leaf": "key", "dtype": str(leaf.dtype), "shape": list(leaf.shape)}
            if isinstance(leaf, jax.Array):
                description["impl"] = str(jax.random.key_impl(leaf))
                if description["impl"] not in ("threefry2x32", "rbg", "unsafe_rbg"):
                    raise TypeError(f"{where} must be a key of JAX's own, got {leaf.dtype}")
            return description, [leaf]
        weak = {"weak": True} if getattr(leaf, "weak_type", False) else {}
        return {"leaf": "jax", "dtype": leaf.dtype.name, "shape": list(leaf.shape), **weak}, [leaf]
    if isinstance(leaf, np.ndarray | np.generic):
        dtype = leaf.dtype
        named = dtype.str if dtype.kind in "USMm" else dtype.name
        # Text, dates, and what JAX calls a number (bfloat16, too); long doubles differ by machine.
        number = dtype == np.bool_ or jnp.issubdtype(dtype, np.number)
        if not (number or dtype.kind in "USMm") or dtype.char in "gG":
            raise TypeError(f"{where} must be numbers or text, got a NumPy array of dtype {dtype}")
        scalar = {"scalar": True} if isinstance(leaf, np.generic) else {}
        return {"leaf": "numpy", "dtype": named, "shape": list(leaf.shape), **scalar}, [leaf]
    raise TypeError(
        f"{where} must be an array, a key, a number, text or bytes, got {type(leaf).__name__}"
    )


def _python_value(value: Any) -> Any:
    if isinstance(value, float):
        return value.hex()  # exact, and infinity and NaN have a form
    if isinstance(value, complex):
        return [value.real.hex(), value.imag.hex()]
    return value.hex() if isinstance(value, bytes) else value


def _from_python_value(kind: str, value: Any) -> Any:
    if kind == "float":
        return float.fromhex(value)
    if kind == "complex":
        return complex(*map(float.fromhex, value))
    return bytes.fromhex(value) if kind == "bytes" else value


def _static(value: Any) -> Any:
    """Put a static field into JSON; what JSON cannot hold is kept by name only."""
    if value is None:
        return {"type": "NoneType"}
    if type(value) in _PYTHON:
        return {"type": type(value).__name__, "value": _python_value(value)}
    if type(value) in (tuple, list):
        return {"type": type(value).__name__, "items": [_static(item) for item in value]}
    return {"named": getattr(value, "__qualname__", type(value).__qualname__)}


def _from_static(value: Any, where: str) -> Any:
    if "named" in value:
        raise ValueError(
            f"{where} is static and was saved by name only ({value['named']}): load with a model "
            "that has it instead of a class"
        )
    if "items" in value:
        items = [_from_static(item, where) for item in value["items"]]
        return tuple(items) if value["type"] == "tuple" else items
    return (
        None if value["type"] == "NoneType" else _from_python_value(value["type"], value["value"])
    )


def _shown(static: Any) -> str:
    if static is None:
        return "nothing"
    return static["named"] if "named" in static else repr(_from_static(static, ""))


def _kind(description: Description) -> str:
    return description.get("leaf", "node")


def _named(description: Description) -> str:
    kind = _kind(description)
    if kind == "node":
        return f"a {description['type']}"
    if kind == "python":
        return f"a Python {description['type']}"
    return f"an array of dtype {description['dtype']} and shape {tuple(description['shape'])}"


def _leaf_differences(saved: Description, like: Description, where: str) -> list[str]:
    both = (saved, like)
    if any(leaf["leaf"] == "python" for leaf in both):
        same = all(leaf["leaf"] == "python" for leaf in both) and saved["type"] == like["type"]
        what = f"{where} must be {_named(like)}, the checkpoint has {_named(saved)}"
        return [] if same else [what]
    found = []
    text = [leaf["dtype"].lstrip("<>|=")[0] for leaf in both]
    if saved["dtype"] != like["dtype"] and not (text[0] == text[1] and text[0] in "US"):
        found.append(
            f"{where} must have dtype {like['dtype']}, the checkpoint has {saved['dtype']}"
        )
    if saved["shape"] != like["shape"]:
        found.append(
            f"{where} must have shape {tuple(like['shape'])}, the checkpoint has "
            f"{tuple(saved['shape'])}"
        )
    return found


def _leaf_values(description: Description, arrays: Any) -> Any:
    if _kind(description) == "node":
        for _, child in description["children"]:
            yield from _leaf_values(child, arrays)
    elif description["leaf"] == "python":
        yield description, _from_python_value(description["type"], description["value"])
    else:
        yield description, unstored(next(arrays), description)


def _place(like: Any, description: Description, value: Any) -> Any:
    """Turn a value that was read into the kind of leaf that `like` is."""
    if description["leaf"] == "python":
        return value
    if isinstance(like, np.ndarray):
        return value
    if isinstance(like, np.generic):
        return value[()]
    if description["leaf"] == "key":
        array = jax.random.wrap_key_data(jnp.array(value), impl=description["impl"])
    else:
        array = _device_array(value, bool(getattr(like, "weak_type", False)))
    if isinstance(like, jax.ShapeDtypeStruct):
        return array if like.sharding is None else jax.device_put(array, like.sharding)
    # An array that is tied to a device stays tied to it; others stay free.
    return jax.device_put(array, like.sharding) if getattr(like, "committed", False) else array


def _device_array(value: np.ndarray, weak: bool) -> jax.Array:
    array = jnp.array(value)
    if not weak:
        return array
    # A weakly typed array takes part in type promotion as a Python number does.
    kind = {"f": float, "i": int, "c": complex, "b": bool}[array.dtype.kind]
    template = jnp.broadcast_to(jnp.asarray(kind(0)), array.shape)
    return template.at[...].set(array) if template.dtype == array.dtype else array


def _build(description: Description, arrays: Any, classes: dict[str, type], where: str) -> Any:
    kind = _kind(description)
    if kind == "python":
        return _from_python_value(description["type"], description["value"])
    if kind == "numpy":
        array = unstored(next(arrays), description)
        return array[()] if description.get("scalar") else array
    if kind == "key":
        data = jnp.array(unstored(next(arrays), description))
        return jax.random.wrap_key_data(data, impl=description["impl"])
    if kind == "jax":
        array = _device_array(
            unstored(next(arrays), description), bool(description.get("weak", False))
        )
        if array.dtype.name != description["dtype"]:
            raise ValueError(
                f"{where} has dtype {description['dtype']}, which needs jax_enable_x64; "
                f"without it JAX would make it {array.dtype}"
            )
        return array
    name, children = description["type"], description["children"]
    if name == "NoneType":
        return None
    cls = {"list": list, "tuple": tuple, "dict": dict}.get(name) or classes.get(name)
    if cls is None or not (cls in (list, tuple, dict) or field_names(cls)):
        raise ValueError(
            f"{where} is a {name}, a class that annotations do not lead to: load with a model of "
            "the same form instead of a class"
        )
    if cls in (list, tuple, dict):
        values = [_build(child, arrays, classes, where + key) for key, child in children]
        if cls is dict and description["keys"] is None:
            raise ValueError(f"{where} has keys that are neither text nor integers")
        return dict(zip(description["keys"], values, strict=True)) if cls is dict else cls(values)
    inner = _annotated(cls)
    values = {
        key[1:]: _build(child, arrays, inner.get(key[1:], {}), where + key)
        for key, child in children
    }
    for field, value in description.get("static", {}).items():
        values[field] = _from_static(value, f"{where}.{field}")
    if set(values) != set(field_names(cls)):
        raise ValueError(
            f"{where} must have the fields {', '.join(field_names(cls))} of {name}, the "
            f"checkpoint has {', '.join(values)}"
        )
    return cls(**values)


def _annotated(cls: type) -> dict[str, dict[str, type]]:
    """Collect the classes that the annotations of each field mention, by name."""
    try:
        hints = typing.get_type_hints(cls)
    except (NameError, TypeError, AttributeError):
        return {}
    return {field: dict(_classes(hint)) for field, hint in hints.items()}


def _classes(hint: Any) -> Any:
    if isinstance(hint, type):
        yield hint.__qualname__, hint
    for argument in typing.get_args(hint):
        yield from _classes(argument)
