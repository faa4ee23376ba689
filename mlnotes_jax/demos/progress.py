"""Progress of long work, told to whoever listens (nobody, in a library or a test).

A demo wraps its outer loop, the one over compiled chunks:

    for chunk in progress.track(range(20), "training"):
        state = train_chunk(state)

The command line listens and draws a bar; everywhere else this is a plain loop.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TypeVar

__all__ = ["listen", "track"]

Item = TypeVar("Item")

#: Called with (description, done, total).
Listener = Callable[[str, int, int], None]

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Send the progress of everything inside this block to `listener(description, done, total)`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def track(items: Sequence[Item], description: str) -> Iterator[Item]:
    """Iterate over `items`, telling the listener, if any, how many are done.

    Args:
        items: A sequence, so that the total is known.
        description: What is being done, in a word or two.

    Yields:
        The items.
    """
    listener = _listener.get()
    if listener is None:
        yield from items
        return
    listener(description, 0, len(items))
    for done, item in enumerate(items, start=1):
        yield item
        listener(description, done, len(items))
