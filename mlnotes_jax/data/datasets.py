"""Bundled data sets, and readers that never return a wrong array."""

from typing import NamedTuple

import numpy as np

__all__ = ["Dataset", "Source", "load"]


class Source(NamedTuple):
    """Where data come from.

    Attributes:
        name: What they are called.
        origin: Who ships them, or which file they were read from.
        licence: Under what terms.
        size: How much there is, in words.
    """

    name: str
    origin: str
    licence: str
    size: str


class Dataset(NamedTuple):
    """Rows, targets, and where they come from.

    Attributes:
        x: Features as the file has them, float32, shape `(n, d)`.
        y: Classes 0..k-1 as int32, or real targets as float32, shape `(n,)`.
        feature_names: One for each column, or empty.
        class_names: One for each class; empty for a regression set.
        source: Where the data come from.
    """

    x: np.ndarray
    y: np.ndarray
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...]
    source: Source


def load(name: str) -> Dataset:
    """Load a set that ships with scikit-learn: `digits`, `diabetes`."""
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    names = tuple(str(n) for n in getattr(bunch, "target_names", ()) if name != "diabetes")
    y = np.asarray(bunch.target, np.int32 if names else np.float32)
    size = f"{len(bunch.data)} rows of {bunch.data.shape[1]} features"
    source = Source(name, "scikit-learn", "to be stated", size)
    return Dataset(np.asarray(bunch.data, np.float32), y, tuple(bunch.feature_names), names, source)
