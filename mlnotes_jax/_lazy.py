"""Submodules that load on first use (PEP 562)."""

import importlib
from collections.abc import Callable, Iterable
from types import ModuleType


def submodules(
    package: str, names: Iterable[str]
) -> tuple[Callable[[str], ModuleType], Callable[[], list[str]], list[str]]:
    """Make a package's `__getattr__`, `__dir__` and `__all__` from the names of its modules.

    Args:
        package: The package's `__name__`.
        names: Its public submodules.

    Returns:
        The three values, to be assigned at the top level of the package.
    """
    public = sorted(names)

    def load(name: str) -> ModuleType:
        if name in public:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def directory() -> list[str]:
        return public

    return load, directory, public
