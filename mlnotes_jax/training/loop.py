r"""Training as a pure function."""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import nnx

__all__ = ["Bound", "bind", "merge"]


class Bound(NamedTuple):
    """A module taken apart.

    Attributes:
        params: What is trained.
        state: Everything else: running statistics, random streams.
        apply: `apply(params, state, x, *, key=None, train=False) -> (outputs, new_state)`.
    """

    params: Any
    state: Any
    apply: Callable[..., tuple[Any, Any]]


def bind(model: nnx.Module) -> Bound:
    """Split a module into parameters, other state, and a pure function."""
    graphdef, params, state = nnx.split(model, nnx.Param, ...)

    def apply(params, state, x, *, key=None, train=False):
        module = nnx.merge(graphdef, params, state)
        module.train() if train else module.eval()
        if key is not None:
            # Streams are found by name; a module built with `nnx.Rngs(0)` has only `default`.
            nnx.reseed(module, default=key, dropout=key)
        outputs = module(x)
        return outputs, nnx.as_pure(nnx.split(module, nnx.Param, ...)[2])

    return Bound(nnx.as_pure(params), nnx.as_pure(state), apply)


def merge(model: nnx.Module, params: Any, state: Any) -> nnx.Module:
    """Make a new module with these values; `model` itself is untouched."""
    graphdef, _, _ = nnx.split(model, nnx.Param, ...)
    return nnx.merge(graphdef, params, state)
