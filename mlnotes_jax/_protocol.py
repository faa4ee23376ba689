"""What a "fit" is, for helpers that take any: cross-validation, search, bagging, stacking.

A fit is called as `fit(x, y, *, sample_weight=None, **settings) -> model`, or, if it draws random
numbers, as `fit(key, x, y, ...)`. `predict(model, x)` gives outputs, one for each row, and
`score(outputs, y, *, sample_weight=None)` a number, larger is better.
"""

import functools
import inspect
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import jax

__all__ = ["UNTRACEABLE", "accepts", "keyed", "named", "stable", "takes_key"]

Result = TypeVar("Result")

#: What JAX raises where Python looks at the value of a tracer: such a fit is called in a loop.
UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)

_POSITIONAL = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD


def takes_key(fit: Callable[..., Any]) -> bool:
    """Whether the first positional parameter of `fit` is called `key`.

    Args:
        fit: Any function.

    Returns:
        False, too, where the signature of a built-in function is not known.
    """
    first = next(iter(_parameters(fit).values()), None)
    return first is not None and first.name == "key" and first.kind in _POSITIONAL


def keyed(fit: Callable[..., Result]) -> Callable[..., Result]:
    """Make a fit that takes a key first out of any fit.

    Args:
        fit: `fit(key, x, y, ...)` or `fit(x, y, ...)`.

    Returns:
        `fit` itself, or a function of `(key, x, y, ...)` that does not use the key.

    Example:
        >>> from mlnotes_jax import _protocol
        >>> _protocol.keyed(lambda x, y: x + y)(None, 1, 2)
        3
        >>> _protocol.keyed(lambda key, x, y: (key, x + y))("key", 1, 2)
        ('key', 3)
    """
    return fit if takes_key(fit) else lambda key, *data, **options: fit(*data, **options)


def named(function: Callable[..., Any], name: str) -> bool:
    """Whether `function` has a parameter of this name.

    Args:
        function: Any function.
        name: Of the parameter; `**options` do not count.

    Returns:
        False, too, where the signature of a built-in function is not known.
    """
    return name in _parameters(function)


def accepts(function: Callable[..., Any], name: str) -> bool:
    """Whether `function` can be called with the keyword `name`; as `named`, but `**` counts."""
    kinds = {parameter.kind for parameter in _parameters(function).values()}
    return named(function, name) or inspect.Parameter.VAR_KEYWORD in kinds


def stable(function: Any) -> Any:
    """Make a `functools.partial` equal to another of the same function and the same arguments.

    `jax.jit` finds a compiled program by its static arguments. Two partials are never equal, so a
    call with a new one would compile again.

    Args:
        function: A function, a partial, or anything.

    Returns:
        A partial in another form, if all that it holds can be hashed; else what came.

    Example:
        >>> import functools
        >>> from mlnotes_jax import _protocol
        >>> one, two = (functools.partial(round, ndigits=2) for _ in range(2))
        >>> one == two, _protocol.stable(one) == _protocol.stable(two)
        (False, True)
    """
    if not isinstance(function, functools.partial):
        return function
    # 1, 1.0 and True are equal, but do not compile to the same: their types are compared, too.
    held = tuple(stable(value) for value in (*function.args, *function.keywords.values()))
    kinds = tuple(type(value) for value in held)
    token = stable(function.func), tuple(function.keywords), held, kinds
    try:
        hash(token)
    except TypeError:
        return function
    return _Partial(function, token)


# --- Private --------------------------------------------------------------------------------------


class _Partial:
    """A partial that is compared by what it holds."""

    def __init__(self, function: functools.partial, token: Hashable) -> None:
        self._token = token
        self.__wrapped__ = function  # where `inspect.signature` looks

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.__wrapped__(*args, **options)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Partial) and self._token == other._token

    def __hash__(self) -> int:
        return hash(self._token)


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a built-in function without a signature
        return {}
