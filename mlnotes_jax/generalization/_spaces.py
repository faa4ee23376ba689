"""Search spaces: what values a setting may take, and on which scale they are compared.

NumPy only, so that a worker of a study need not load JAX.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

Settings = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers between two ends, both included.

    A place in it is a number from 0 (`low`) to 1 (`high`), measured along the scale.

    Attributes:
        low: Lower end.
        high: Upper end.
        log: Whether equal *ratios* are equal distances, not equal differences.
        whole: Whether the values are integers.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def at(self, place: Float[np.ndarray, " m"]) -> np.ndarray:
        """Values at places; each integer has the stretch of scale that rounds to it."""
        pad = 0.5 if self.whole else 0.0
        low, high = self.low - pad, self.high + pad
        value = low * (high / low) ** place if self.log else low + (high - low) * place
        return np.clip(np.rint(value) if self.whole else value, self.low, self.high)

    def place(self, value: float) -> float:
        """Where a value lies on the scale."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def points(self, count: int) -> np.ndarray:
        """Equidistant values from end to end; fewer where integers coincide; one in the middle."""
        place = np.linspace(0, 1, count) if count > 1 else np.array([0.5])
        real = dataclasses.replace(self, whole=False).at(place)
        return np.unique(np.rint(real)) if self.whole else real

    def around(self, value: float, share: float) -> "Range":
        """The stretch of this share of the scale about a value, cut off at the ends."""
        real = dataclasses.replace(self, whole=False)
        centre = real.place(value)
        low, high = real.at(np.clip([centre - share / 2, centre + share / 2], 0, 1)).tolist()
        if self.whole:
            low, high = math.floor(low), math.ceil(high)
        return dataclasses.replace(self, low=low, high=high)


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several values, without an order.

    Attributes:
        options: The values.
    """

    options: tuple[Any, ...]

    def at(self, place: Float[np.ndarray, " m"]) -> list[Any]:
        """Values at places: every option has an equal stretch."""
        last = len(self.options) - 1
        return [self.options[min(int(p * len(self.options)), last)] for p in place]

    def points(self, count: int = 1) -> list[Any]:
        """All options, whatever the count."""
        return list(self.options)

    def around(self, value: Any, share: float) -> "Choice":
        """One option alone: there is no order, so none is near another."""
        return Choice((value,))


Dimension = Range | Choice
Space = Mapping[str, Dimension] | Iterable[tuple[str, Dimension]]


def log_uniform(low: float, high: float) -> Range:
    r"""Real numbers whose logarithm is uniform: $\ln v \sim U(\ln a, \ln b)$.

    For what multiplies: learning rates, penalties, widths of kernels.

    Args:
        low: $a > 0$.
        high: $b > a$.

    Returns:
        The dimension; its values are traced.

    Raises:
        ValueError: `low` is not positive, or not below `high`, or an end is not finite.

    Example:
        >>> from mlnotes_jax.generalization import search
        >>> print(search.log_uniform(0.01, 100.0).points(5))
        [1.e-02 1.e-01 1.e+00 1.e+01 1.e+02]
    """
    low, high = _ends(low, high)
    if low <= 0:
        raise ValueError(f"low must be positive on a logarithmic scale, got {low}")
    return Range(low, high, log=True)


def uniform(low: float, high: float) -> Range:
    """Real numbers, uniform between two ends; for what adds, such as a dropout rate.

    Args:
        low: Lower end.
        high: Upper end, above `low`.

    Returns:
        The dimension; its values are traced.

    Raises:
        ValueError: `low` is not below `high`, or an end is not finite.

    Example:
        >>> from mlnotes_jax.generalization import search
        >>> search.uniform(0.0, 0.5).points(3).tolist()
        [0.0, 0.25, 0.5]
    """
    return Range(*_ends(low, high))


def integer(low: int, high: int, *, log: bool = False) -> Range:
    """Integers between two ends, both included.

    Args:
        low: Smallest.
        high: Largest, above `low`.
        log: Whether they are spread evenly in the logarithm.

    Returns:
        The dimension; its values are Python integers, and static: each is a program of its own.

    Raises:
        TypeError: An end is not an integer.
        ValueError: `low` is not below `high`, or not positive where `log` is true.

    Example:
        >>> from mlnotes_jax.generalization import search
        >>> search.integer(1, 64, log=True).points(4).tolist()
        [1.0, 4.0, 16.0, 64.0]
    """
    for name, end in (("low", low), ("high", high)):
        if isinstance(end, bool) or not isinstance(end, int | np.integer):
            raise TypeError(f"{name} must be an integer, got {end!r}")
    _ends(low, high)
    if log and low <= 0:
        raise ValueError(f"low must be positive on a logarithmic scale, got {low}")
    return Range(int(low), int(high), log=log, whole=True)


def choice(options: Sequence[Any]) -> Choice:
    """One of several values.

    Args:
        options: The values. If all are floats they are traced; others (text, integers, Booleans,
            functions) are static: each is a program of its own.

    Returns:
        The dimension.

    Raises:
        TypeError: `options` is a text or no sequence.
        ValueError: There are none, or two are equal, or a float is not finite.

    Example:
        >>> from mlnotes_jax.generalization import search
        >>> search.grid_points({"solver": search.choice(["qr", "svd"])})
        {'solver': ['qr', 'svd']}
    """
    if isinstance(options, str | bytes) or not isinstance(options, Sequence | np.ndarray):
        raise TypeError(f"options must be a sequence of values, got {options!r}")
    values = tuple(options.tolist() if isinstance(options, np.ndarray) else options)
    if not values:
        raise ValueError("options must not be empty")
    for i, value in enumerate(values):
        if any(value == other and type(value) is type(other) for other in values[:i]):
            raise ValueError(f"options must differ, got {value!r} twice")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"options must be finite, got {value}")
    return Choice(values)


def checked(space: Space) -> dict[str, Dimension]:
    """Turn a space into a dictionary, or say what is wrong with it."""
    try:
        pairs: list[Any] = list(space.items() if isinstance(space, Mapping) else space)
        names = [name for name, _ in pairs]
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"space must be a mapping from names to dimensions, got {space!r}"
        ) from error
    if not pairs:
        raise ValueError("space must not be empty: name at least one setting")
    for name, dimension in pairs:
        if not isinstance(name, str) or not name.isidentifier():
            raise TypeError(f"space must have names of settings as keys, got {name!r}")
        if names.count(name) > 1:
            raise ValueError(f"space must name each setting once, got {name!r} twice")
        if not isinstance(dimension, Range | Choice):
            raise TypeError(
                f"space[{name!r}] must be a log_uniform, uniform, integer or choice, "
                f"got {dimension!r}"
            )
    return dict(pairs)


def is_traced(dimension: Dimension) -> bool:
    """Whether the values are real numbers, which a program takes as an argument."""
    if isinstance(dimension, Range):
        return not dimension.whole
    return all(isinstance(value, float) for value in dimension.options)


def column(dimension: Dimension, values: Iterable[Any]) -> Any:
    """Values of one setting: an array where they are traced, else a list of Python values."""
    if is_traced(dimension):
        return np.asarray(list(values), float)
    if isinstance(dimension, Range):
        return [int(value) for value in values]
    return list(values)


def product(space: dict[str, Dimension], counts: Mapping[str, int]) -> Settings:
    """Every combination of the points of each dimension, the last name running fastest."""
    points = [dimension.points(counts.get(name, 1)) for name, dimension in space.items()]
    columns = zip(*itertools.product(*points), strict=True)
    return {n: column(d, c) for (n, d), c in zip(space.items(), columns, strict=True)}


def _ends(low: float, high: float) -> tuple[float, float]:
    for name, end in (("low", low), ("high", high)):
        try:
            finite = math.isfinite(end)
        except TypeError as error:
            raise TypeError(f"{name} must be a number, got {end!r}") from error
        if not finite:
            raise ValueError(f"{name} must be finite, got {end}")
    if low >= high:
        raise ValueError(f"low must be below high, got low = {low} and high = {high}")
    return float(low), float(high)
