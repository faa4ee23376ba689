"""Link targets in the documentation of other projects, made from the installed packages.

An inventory says where a symbol is documented: with it, ``[`jax.grad`][jax.grad]`` becomes a link,
and a name that does not exist fails the build. Each project's own inventory is on its web site;
these are made without a network, from the public names of the packages and the rule by which
each site names its pages; the addresses of the sites are in `mkdocs.yml`.
"""

import builtins
import collections.abc
import importlib
import importlib.metadata
import inspect
import json
import pkgutil
import platform
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType

from mkdocstrings import Inventory, InventoryItem

from mlnotes_site.project import CACHE

__all__ = ["PROJECTS", "write"]

_JAX_MODULES = (
    *("jax", "jax.custom_batching", "jax.debug", "jax.flatten_util", "jax.image", "jax.lax"),
    *("jax.lax.linalg", "jax.nn", "jax.nn.initializers", "jax.numpy", "jax.numpy.fft"),
    *("jax.numpy.linalg", "jax.ops", "jax.profiler", "jax.random", "jax.scipy.cluster.vq"),
    *("jax.scipy.fft", "jax.scipy.integrate", "jax.scipy.linalg", "jax.scipy.ndimage"),
    *("jax.scipy.optimize", "jax.scipy.signal", "jax.scipy.sparse.linalg", "jax.scipy.spatial"),
    *("jax.scipy.special", "jax.scipy.stats", "jax.sharding", "jax.stages", "jax.tree"),
    "jax.tree_util",
)

#: Optax documents a symbol on the page of the module that defines it.
_OPTAX_PAGES = {
    "optax._src.alias": "optimizers",
    "functools": "optimizers",  # nadam and nadamw are partial functions
    "optax._src.base": "transformations",
    "optax._src.factorized": "transformations",
    "optax._src.linesearch": "transformations",
    "optax._src.transform": "transformations",
    "optax._src.linear_algebra": "utilities",
    "optax._src.numerics": "utilities",
    "optax._src.utils": "utilities",
    "optax._src.lookahead": "optimizer_wrappers",
    "optax._src.update": "apply_updates",
    "optax.schedules": "optimizer_schedules",
    "optax.transforms._accumulation": "optimizer_wrappers",
    "optax.transforms._adding": "transformations",
    "optax.transforms._clipping": "transformations",
    "optax.transforms._combining": "combining_optimizers",
    "optax.transforms._conditionality": "optimizer_wrappers",
    "optax.transforms._constraining": "transformations",
    "optax.transforms._freezing": "transformations",
    "optax.transforms._layouts": "optimizer_wrappers",
    "optax.transforms._masking": "optimizer_wrappers",
    "optax.transforms._monitoring": "transformations",
    "optax.tree_utils._tree_math": "transformations",
}

#: Names that are not on the page of their defining module.
_OPTAX_EXCEPTIONS = {
    "ema": "transformations",
    "EmaState": "transformations",
    "trace": "transformations",
    "TraceState": "transformations",
    "conditionally_mask": "transformations",
    "conditionally_transform": "transformations",
    "global_norm": "transformations",
    "value_and_grad_from_state": "utilities",
    "Schedule": "optimizer_schedules",
    "OptState": "transformations",
    "Params": "transformations",
    "Updates": "transformations",
}

#: Submodules of Optax with a page of their own.
_OPTAX_MODULES = {
    "losses": "losses",
    "projections": "projections",
    "second_order": "utilities",
    "tree_utils": "utilities",
    "contrib": "contrib",
    "assignment": "assignment",
    "perturbations": "perturbations",
}

#: Flax: defining module -> page below `api_reference/flax.nnx/`, prefix of the anchor.
_FLAX_PAGES = {
    "flax.nnx.filterlib": ("filterlib", "flax.nnx"),
    "flax.nnx.graphlib": ("graph", "flax.nnx"),
    "flax.nnx.helpers": ("helpers", "flax.nnx"),
    "flax.nnx.module": ("module", "flax.nnx"),
    "flax.nnx.nn.attention": ("nn/attention", "flax.nnx"),
    "flax.nnx.nn.linear": ("nn/linear", "flax.nnx"),
    "flax.nnx.nn.lora": ("nn/lora", "flax.nnx"),
    "flax.nnx.nn.normalization": ("nn/normalization", "flax.nnx"),
    "flax.nnx.nn.recurrent": ("nn/recurrent", "flax.nnx.nn.recurrent"),
    "flax.nnx.nn.stochastic": ("nn/stochastic", "flax.nnx"),
    "flax.nnx.rnglib": ("rnglib", "flax.nnx"),
    "flax.nnx.spmd": ("spmd", "flax.nnx"),
    "flax.nnx.statelib": ("state", "flax.nnx"),
    "flax.nnx.training.metrics": ("training/metrics", "flax.nnx.metrics"),
    "flax.nnx.training.optimizer": ("training/optimizer", "flax.nnx.optimizer"),
    "flax.nnx.transforms.autodiff": ("transforms", "flax.nnx"),
    "flax.nnx.transforms.compilation": ("transforms", "flax.nnx"),
    "flax.nnx.transforms.iteration": ("transforms", "flax.nnx"),
    "flax.nnx.transforms.transforms": ("transforms", "flax.nnx"),
    "flax.nnx.variablelib": ("variables", "flax.nnx"),
}

Entry = tuple[str, str]


def _public(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Functions, classes and types of a module that are meant for its users."""
    # Not getattr: it would wake deprecated and experimental names.
    contents = vars(module)
    for name in sorted(contents):
        value = contents[name]
        if not name.startswith("_") and value is not None and not inspect.ismodule(value):
            yield name, value


def _jax() -> Iterator[Entry]:
    for module in _JAX_MODULES:
        for name, value in _public(importlib.import_module(module)):
            if callable(value):
                symbol = f"{module}.{name}"
                yield symbol, f"_autosummary/{symbol}.html#{symbol}"
    yield "jax.numpy.ndarray.at", "_autosummary/jax.numpy.ndarray.at.html#jax.numpy.ndarray.at"
    for name, _ in _public(importlib.import_module("jax.errors")):
        yield f"jax.errors.{name}", f"errors.html#jax.errors.{name}"


def _optax() -> Iterator[Entry]:
    import optax

    losses = dict(_public(importlib.import_module("optax.losses")))
    for name, value in _public(optax):
        home = str(getattr(value, "__module__", ""))
        page = _OPTAX_EXCEPTIONS.get(name)
        for start, candidate in _OPTAX_PAGES.items():
            page = page or (candidate if home.startswith(start) else None)
        if name in losses:
            yield f"optax.{name}", f"api/losses.html#optax.losses.{name}"
        elif page:
            yield f"optax.{name}", f"api/{page}.html#optax.{name}"
    for module, page in _OPTAX_MODULES.items():
        for name, _ in _public(importlib.import_module(f"optax.{module}")):
            symbol = f"optax.{module}.{name}"
            yield symbol, f"api/{page}.html#{symbol}"


def _flax() -> Iterator[Entry]:
    from flax import nnx

    for name, value in _public(nnx):
        home = str(getattr(value, "__module__", ""))
        if home in _FLAX_PAGES:
            page, prefix = _FLAX_PAGES[home]
            uri = f"api_reference/flax.nnx/{page}.html#{prefix}.{name}"
            yield f"flax.nnx.{name}", uri


def _numpy() -> Iterator[Entry]:
    for module in ("numpy", "numpy.linalg"):
        for name, value in _public(importlib.import_module(module)):
            if callable(value):
                symbol = f"{module}.{name}"
                yield symbol, f"reference/generated/{symbol}.html#{symbol}"


def _python() -> Iterator[Entry]:
    types = {"str", "tuple", "list", "dict", "set", "frozenset", "bytes", "range"}
    for name, value in vars(builtins).items():
        if isinstance(value, type) and issubclass(value, BaseException):
            yield name, f"library/exceptions.html#{name}"
        elif callable(value) and not name.startswith("_"):
            page = "stdtypes" if name in types else "functions"
            yield name, f"library/{page}.html#{name}"
    for name in typing.__all__:
        yield f"typing.{name}", f"library/typing.html#typing.{name}"
    for name in collections.abc.__all__:
        symbol = f"collections.abc.{name}"
        yield symbol, f"library/collections.abc.html#{symbol}"
    yield "pathlib.Path", "library/pathlib.html#pathlib.Path"


def _sklearn() -> Iterator[Entry]:
    import sklearn

    modules = [name for _, name, _ in pkgutil.iter_modules(sklearn.__path__)]
    for module in sorted(set(modules) & set(sklearn.__all__) - {"experimental"}):
        for name, value in _public(importlib.import_module(f"sklearn.{module}")):
            if callable(value):
                symbol = f"sklearn.{module}.{name}"
                yield symbol, f"modules/generated/{symbol}.html#{symbol}"


#: What makes the entries of each project.
PROJECTS: dict[str, Callable[[], Iterable[Entry]]] = {
    "flax": _flax,
    "jax": _jax,
    "numpy": _numpy,
    "optax": _optax,
    "python": _python,
    "sklearn": _sklearn,
}


def _versions() -> dict[str, str]:
    distributions = {"sklearn": "scikit-learn"}
    return {
        project: platform.python_version()
        if project == "python"
        else importlib.metadata.version(distributions.get(project, project))
        for project in PROJECTS
    }


def write(folder: Path = CACHE / "inventories") -> bool:
    """Write `<project>.inv` for each project, unless those of the same versions are there.

    Args:
        folder: Where to.

    Returns:
        Whether anything was written.
    """
    versions = _versions()
    made_from = json.dumps([versions, Path(__file__).read_text(encoding="utf-8")])
    stamp = folder / "made-from.json"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == made_from:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    for project, entries in PROJECTS.items():
        items = [InventoryItem(name, "py", "obj", uri) for name, uri in dict(entries()).items()]
        inventory = Inventory(items, project=project, version=versions[project])
        (folder / f"{project}.inv").write_bytes(inventory.format_sphinx())
    stamp.write_text(made_from, encoding="utf-8")
    return True
