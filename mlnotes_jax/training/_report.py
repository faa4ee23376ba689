"""What `loop` says: a progress bar, and how a run ended."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


@contextlib.contextmanager
def bar(progress: bool, num_epochs: int) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """Show how far training is, if `progress`."""
    if not progress:
        yield lambda done, row: None
        return
    from rich.progress import Progress

    with Progress() as drawn:
        task = drawn.add_task("training", total=num_epochs)

        def tell(done: int, row: dict[str, Any]) -> None:
            lowest = {name: np.fmin.reduce(row[name], axis=None) for name in row}
            shown = [f"{n} {lowest[n]:.4g}" for n in ("loss", "validation_loss") if n in lowest]
            drawn.update(task, completed=done, description=", ".join(shown))

        yield tell


def not_finite(losses: np.ndarray, first: int, step: int, epoch: int, kept: int) -> str:
    """Say where a loss, the first of `losses`, was not finite, and what was kept."""
    what = f"parameters or validation loss were not finite after epoch {epoch + 1}"
    if first < len(losses):
        what = f"the loss was {losses[first]} at update {step + first + 1}"
        what += f" (epoch {epoch + 1}, batch {first + 1} of {len(losses)})"
    return (
        f"{what}; the parameters kept are those after update {kept}, the last with a finite loss. "
        "Try a smaller learning rate or clip_norm, and look at the data"
    )


def ended(
    epochs: int, updates: int, num_epochs: int, *, stopped: bool, best: tuple[float, int] | None
) -> str:
    """Say how a run ended; `best` is the lowest validation loss and its epoch."""
    text = f"{epochs} epoch{'s' * (epochs != 1)}, {updates} update{'s' * (updates != 1)}"
    if stopped:
        text = f"stopped by the rule after epoch {epochs} of {num_epochs}"
    if best is not None and best[1] >= 0:
        text += f"; lowest validation loss {best[0]:.6g} after epoch {best[1] + 1}"
    return text
