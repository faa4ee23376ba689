r"""Sharpness: how fast the loss rises around a minimum, and pictures of it.

Let $\theta$ be a minimum of the training loss $f$, with the Hessian $H$. If the loss that counts
(on other data) is the same function *shifted* by $s$, then at $\theta$ it is

$$f(\theta - s) \approx f(\theta) + \tfrac12 s^\top H s
  \le f(\theta) + \tfrac12 \lambda_{\max} \|s\|^2,$$

so the same shift costs more where $H$ is large: at a sharp minimum. Measures of it: the largest
eigenvalue $\lambda_{\max}$ (`top_eigenvalue`), the highest loss in a small region
(`epsilon_sharpness`), the mean rise after random shifts (`shift_increase`), and slices of the loss
along directions that are scaled like the network's own filters
(`filter_normalized_directions`, `slice_1d`, `slice_2d`).

As in `critical_points`, a function `f` takes one pytree of real arrays and returns a scalar; data
belong to the caller's `jit`.

Reference: Keskar et al., *On Large-Batch Training for Deep Learning: Generalization Gap and Sharp
Minima* (2017), section 2.2; Li, Xu, Taylor, Studer and Goldstein, *Visualizing the Loss Landscape
of Neural Nets* (2018), section 4.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, PyTree

from mlnotes_jax import _checks
from mlnotes_jax.optimization import critical_points

__all__ = [
    "EpsilonSharpness",
    "TopEigenvalue",
    "epsilon_sharpness",
    "filter_normalized_direction",
    "filter_normalized_directions",
    "shift_increase",
    "slice_1d",
    "slice_2d",
    "top_eigenvalue",
]

Params = PyTree[Array]
Objective = Callable[[Any], Array]


class TopEigenvalue(NamedTuple):
    r"""The largest eigenvalue of a Hessian, with its certificate.

    Attributes:
        value: $\vartheta = u^\top H u$, shape `()`.
        vector: The unit vector $u$: a pytree like the parameters, in at least float32.
        residual: $\|H u - \vartheta u\|_2$, shape `()`: an eigenvalue lies within this distance.
        num_steps: How many products with $H$ were taken, shape `()`.
        converged: Whether the residual is as small as asked for, shape `()`.
    """

    value: Float[Array, ""]
    vector: Params
    residual: Float[Array, ""]
    num_steps: Int[Array, ""]
    converged: Bool[Array, ""]


class EpsilonSharpness(NamedTuple):
    r"""The highest loss found in a small region around a point.

    Attributes:
        value: $100\,(f(\theta + z) - f(\theta)) / (1 + f(\theta))$, in percent, shape `()`.
        loss: $f(\theta)$, shape `()`.
        highest: $f(\theta + z)$, shape `()`.
        displacement: $z$: a pytree like the parameters, in at least float32; zero where nothing
            higher was found.
    """

    value: Float[Array, ""]
    loss: Float[Array, ""]
    highest: Float[Array, ""]
    displacement: Params


def top_eigenvalue(
    key: Key[Array, ""],
    f: Objective,
    params: Params,
    *,
    tol: Float[ArrayLike, ""] = 1e-3,
    max_steps: Int[ArrayLike, ""] = 200,
) -> TopEigenvalue:
    r"""Find the largest eigenvalue of the Hessian by power iteration.

    From a random unit vector, multiply and normalise,

    $$u \leftarrow \frac{H u}{\|H u\|}, \qquad \vartheta = u^\top H u, \qquad
      r = \|H u - \vartheta u\|,$$

    until $r \le \text{tol} \cdot |\vartheta|$. That leads to the eigenvalue that is largest in
    magnitude. Where that is negative, $\vartheta < 0$, the iteration begins again with $H -
    \vartheta I$, which has no negative eigenvalue, and finds the largest one of $H$.

    Args:
        key: Draws the start.
        f: Twice differentiable map from a pytree like `params` to a scalar.
        params: Where; a pytree of real arrays.
        tol: Largest residual, relative to the largest magnitude. The error of the value is much
            smaller: of second order in the residual. Traced.
        max_steps: Products at most, one each. Traced.

    Returns:
        Value, vector and residual.

    Raises:
        TypeError: A leaf of `params` or the value of `f` is not real, or `max_steps` is not an
            integer.
        ValueError: `params` is empty, `f` does not return a scalar, `tol` is negative, or
            `max_steps` is less than 1.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import sharpness
        >>> f = lambda x: x[0] ** 2 + 3 * x[1] ** 2 - 5 * x[2] ** 2
        >>> top = sharpness.top_eigenvalue(jax.random.key(0), f, jnp.zeros(3))
        >>> print(f"{top.value:.3f}", jnp.abs(top.vector).round(2), top.converged)
        6.000 [0. 1. 0.] True

    Reference: Golub and Van Loan, *Matrix Computations* (2013), section 7.3.1.

    Note:
        Each step shrinks the error by the ratio of the second eigenvalue to the first:
        `critical_points.lanczos` needs fewer products, and memory for all its vectors; this needs
        a few. Two eigenvalues $\pm\lambda$ of one magnitude never settle: `converged` is
        false then, and the residual says so.
    """
    operator = critical_points.hessian_operator(f, params)
    params = _arrays("params", params)
    _checks.not_negative("tol", tol)
    limit = _checks.count("max_steps", max_steps)
    start = _unit(_normal(key, params))
    dtype = _dot(start, start).dtype
    tol = _checks.floating("tol", tol, ndim=0).astype(dtype)

    def product(vector: Params) -> Params:
        return _wide(operator(_cast(vector, params)))

    def advance(carry: tuple) -> tuple:
        _, vector, _, _, shift, steps, _ = carry
        image = product(vector)
        value = _dot(vector, image)
        residual = _norm(jax.tree.map(lambda w, v: w - value.astype(w.dtype) * v, image, vector))
        settled = residual <= tol * jnp.maximum(jnp.abs(value), shift)
        # The largest in magnitude is negative: shift it to zero, and begin again.
        again = settled & (value < 0) & (shift == 0)
        shift = jnp.where(again, -value, shift)
        done = settled & ~again
        moved = jax.tree.map(lambda w, v: w + shift.astype(w.dtype) * v, image, vector)
        following = _select(again, start, _unit(moved, otherwise=vector))
        return vector, following, value, residual, shift, steps + 1, done

    zero = jnp.zeros((), dtype)
    vector, _, value, residual, _, steps, done = lax.while_loop(
        lambda carry: ~carry[6] & (carry[5] < limit),
        advance,
        (start, start, zero, zero + jnp.inf, zero, jnp.int32(0), jnp.bool_(False)),
    )
    return TopEigenvalue(value, vector, residual, steps, done)


def epsilon_sharpness(
    key: Key[Array, ""],
    f: Objective,
    params: Params,
    *,
    epsilon: Float[ArrayLike, ""] = 1e-3,
    region: Literal["box", "ball"] = "box",
    step_size: Float[ArrayLike, ""] = 1.0,
    num_steps: int = 30,
) -> EpsilonSharpness:
    r"""Search a small region for the highest loss: Keskar's sharpness.

    $$\varphi = 100 \cdot \frac{\max_{z \in C} f(\theta + z) - f(\theta)}{1 + f(\theta)}, \qquad
      C = \{ |z_i| \le \varepsilon (|\theta_i| + 1) \} \quad\text{or}\quad
      \{ \|z\|_2 \le \varepsilon \}.$$

    The search is projected ascent from a random point near $\theta$, in steps of steepest ascent in
    the region's own norm: $z \leftarrow P_C(z + \alpha\, \varepsilon (|\theta| + 1)
    \operatorname{sign} g)$ in the box, $z \leftarrow P_C(z + \alpha\, \varepsilon\, g / \|g\|)$ in
    the ball. The best point seen is kept.

    At a critical point of a quadratic, the maximum over the ball is $\tfrac12 \varepsilon^2
    \lambda_{\max}$ above $f(\theta)$.

    Args:
        key: Draws the first point.
        f: Differentiable map from a pytree like `params` to a scalar, above $-1$.
        params: $\theta$, a pytree of real arrays.
        epsilon: $\varepsilon > 0$. Traced.
        region: The box of Keskar et al., or the ball of Dinh et al.; static.
        step_size: $\alpha > 0$, in units of the region. Traced.
        num_steps: Gradients to take, at least 1; static.

    Returns:
        The sharpness in percent, and where it was found. It is a lower bound of the maximum, and
        never negative.

    Raises:
        TypeError: A leaf of `params` or a number is not real, or `num_steps` is not an integer.
        ValueError: `params` is empty, `f` does not return a scalar, a number is not positive, or
            `region` is unknown.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import sharpness
        >>> f = lambda x: x[0] ** 2 + 3 * x[1] ** 2
        >>> found = sharpness.epsilon_sharpness(
        ...     jax.random.key(0), f, jnp.zeros(2), epsilon=0.1, region="ball"
        ... )
        >>> print(found.highest.round(4))  # 0.1 ** 2 * 6 / 2
        0.03

    Reference: Keskar et al. (2017), metric 2.1 with $A = I$; Dinh et al., *Sharp Minima Can
        Generalize for Deep Nets* (2017), definition 2, for the ball.

    Note:
        Keskar et al. take ten steps of L-BFGS-B; their second table restricts $z$ to a random
        subspace.
    """
    critical_points.gradient_norm(f, params)  # checks f and params
    params = _arrays("params", params)
    for name, value in (("epsilon", epsilon), ("step_size", step_size)):
        _checks.finite(name, _checks.floating(name, value, ndim=0))
        _checks.positive(name, value)
    _checks.one_of("region", region, ("box", "ball"))
    _checks.positive_int("num_steps", num_steps)
    center = _wide(params)
    draw = _normal(key, params)
    dtype = _dot(draw, draw).dtype
    epsilon = _checks.floating("epsilon", epsilon).astype(dtype)
    step_size = _checks.floating("step_size", step_size).astype(dtype)

    if region == "box":
        radius = jax.tree.map(lambda p: epsilon.astype(p.dtype) * (jnp.abs(p) + 1), center)

        def project(z: Params) -> Params:
            return jax.tree.map(lambda a, r: jnp.clip(a, -r, r), z, radius)

        def uphill(g: Params) -> Params:
            return jax.tree.map(lambda a, r: r * jnp.sign(a), g, radius)
    else:

        def project(z: Params) -> Params:
            norm = _norm(z)
            return _scale(jnp.minimum(1, epsilon / jnp.where(norm > 0, norm, 1)), z)

        def uphill(g: Params) -> Params:
            return _scale(epsilon, _unit(g))

    def loss(z: Params) -> Array:
        return f(_cast(jax.tree.map(jnp.add, center, z), params)).astype(dtype)

    def climb(carry: tuple, _: None) -> tuple[tuple, None]:
        z, best, highest = carry
        value, gradient = jax.value_and_grad(loss)(z)
        better = value > highest
        best, highest = _select(better, z, best), jnp.where(better, value, highest)
        z = project(jax.tree.map(jnp.add, z, _scale(step_size, uphill(gradient))))
        return (z, best, highest), None

    here = f(params).astype(dtype)
    nowhere = jax.tree.map(jnp.zeros_like, center)
    (_, best, highest), _ = lax.scan(
        climb, (_scale(jnp.asarray(0.01, dtype), uphill(draw)), nowhere, here), length=num_steps
    )
    return EpsilonSharpness(100 * (highest - here) / (1 + here), here, highest, best)


def shift_increase(
    key: Key[Array, ""],
    f: Objective,
    params: Params,
    *,
    radius: Float[ArrayLike, ""],
    num_shifts: int = 16,
    batch_size: int = 8,
) -> Float[Array, " n"]:
    r"""Shift the parameters by random vectors of one length, and see how much the loss rises.

    For $s$ uniform on the sphere of radius $r$, $\mathbb E[s s^\top] = (r^2 / d) I$. So to second
    order the mean rise is $\tfrac12 (r^2 / d) \operatorname{tr} H$: the *mean* eigenvalue counts,
    while the worst shift meets the largest.

    Args:
        key: Draws the shifts.
        f: Map from a pytree like `params` to a scalar.
        params: Where; a pytree of real arrays with $d$ numbers in all.
        radius: $r > 0$. Traced.
        num_shifts: $n$; static.
        batch_size: How many are evaluated side by side; static.

    Returns:
        $f(\theta + s_i) - f(\theta)$, shape `(n,)`.

    Raises:
        TypeError: A leaf of `params` or `radius` is not real, or a count is not an integer.
        ValueError: `params` is empty, `f` does not return a scalar, or a number is not positive.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import sharpness
        >>> bowl = lambda x: 3 * x @ x  # all eigenvalues are 6
        >>> print(sharpness.shift_increase(jax.random.key(0), bowl, jnp.zeros(5), radius=0.1)[:2])
        [0.03 0.03]
    """
    critical_points.gradient_norm(f, params)
    params = _arrays("params", params)
    _checks.positive("radius", radius)
    _checks.positive_int("num_shifts", num_shifts)
    _checks.positive_int("batch_size", batch_size)
    radius = _checks.floating("radius", radius, ndim=0)
    here = f(params)

    def one(key: Array) -> Array:
        direction = _unit(_normal(key, params))
        return _along(f, params, (direction,), (radius,)) - here.astype(_float32_or_wider(here))

    return lax.map(one, jax.random.split(key, num_shifts), batch_size=batch_size)


def filter_normalized_direction(
    key: Key[Array, ""], params: Params, *, vectors: Literal["zero", "whole"] = "zero"
) -> Params:
    r"""Draw a random direction whose filters are as long as those of the network.

    A Gaussian $d$, in which each filter is scaled to the length of the same filter of $\theta$:

    $$d_j \leftarrow \frac{d_j}{\|d_j\|}\, \|\theta_j\|.$$

    The filter of an output is what all inputs are multiplied with to make it: a column of a kernel
    `(inputs, outputs)`, the entries `[..., j]` of a kernel `(height, width, inputs, outputs)`.
    Where a network can be rescaled without a change of what it computes, the direction rescales
    with it, so that pictures of different networks can be compared.

    Args:
        key: Draws it.
        params: $\theta$, a pytree of real arrays.
        vectors: What to do with leaves of fewer than two axes, such as biases and the scales of
            norms: do not move them, as Li et al. do, or take each of them as one filter; static.

    Returns:
        A pytree like `params`, in at least float32.

    Raises:
        TypeError: A leaf of `params` is not real.
        ValueError: `params` is empty, or `vectors` is unknown.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import sharpness
        >>> kernel = jnp.array([[3.0, 0.0], [4.0, 1.0]])
        >>> d = sharpness.filter_normalized_direction(
        ...     jax.random.key(0), {"kernel": kernel, "bias": jnp.ones(2)}
        ... )
        >>> print(jnp.linalg.norm(d["kernel"], axis=0), d["bias"])
        [5. 1.] [0. 0.]

    Reference: Li et al., *Visualizing the Loss Landscape of Neural Nets* (2018), section 4.
    """
    _checks.one_of("vectors", vectors, ("zero", "whole"))
    params = _arrays("params", params)

    def one(draw: Array, leaf: Array) -> Array:
        if leaf.ndim < 2 and vectors == "zero":
            return jnp.zeros_like(draw)
        axes = tuple(range(leaf.ndim - 1)) if leaf.ndim >= 2 else None
        ours = jnp.sqrt(jnp.sum(draw**2, axis=axes, keepdims=True))
        theirs = jnp.sqrt(jnp.sum(leaf**2, axis=axes, keepdims=True))
        return draw * (theirs / jnp.where(ours > 0, ours, 1))

    return jax.tree.map(one, _normal(key, params), _wide(params))


def filter_normalized_directions(
    key: Key[Array, ""],
    params: Params,
    *,
    num: int = 2,
    vectors: Literal["zero", "whole"] = "zero",
) -> Params:
    r"""Draw several independent filter-normalised directions, for `slice_2d`.

    In $d$ dimensions the cosine of the angle between two of them is about $1/\sqrt d$: they are
    nearly at right angles.

    Args:
        key: Draws them.
        params: As in `filter_normalized_direction`.
        num: How many; static.
        vectors: As in `filter_normalized_direction`.

    Returns:
        A pytree like `params` with a leading axis of `num`.

    Raises:
        TypeError: A leaf of `params` is not real, or `num` is not an integer.
        ValueError: `params` is empty, `num` is less than 1, or `vectors` is unknown.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import sharpness
        >>> d = sharpness.filter_normalized_directions(jax.random.key(0), jnp.ones((5, 3)), num=4)
        >>> print(d.shape)
        (4, 5, 3)
    """
    _checks.positive_int("num", num)
    draw = jax.vmap(lambda key: filter_normalized_direction(key, params, vectors=vectors))
    return draw(jax.random.split(key, num))


def slice_1d(
    f: Objective,
    params: Params,
    direction: Params,
    lengths: Float[ArrayLike, " k"],
    *,
    batch_size: int = 16,
) -> Float[Array, " k"]:
    r"""Evaluate the loss along a line: $f(\theta + t_i u)$.

    Args:
        f: Map from a pytree like `params` to a scalar.
        params: $\theta$, a pytree of real arrays.
        direction: $u$, a pytree like `params`.
        lengths: $t_i$, shape `(k,)`.
        batch_size: How many are evaluated side by side (`vmap`); the blocks follow one another;
            static.

    Returns:
        The losses, in at least float32, shape `(k,)`.

    Raises:
        TypeError: A leaf or `lengths` is not real, or `batch_size` is not an integer.
        ValueError: `direction` is of another structure or shape, `lengths` is not a vector, or
            `batch_size` is less than 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import sharpness
        >>> f = lambda x: x @ x
        >>> print(sharpness.slice_1d(f, jnp.zeros(2), jnp.array([1.0, 1.0]), [-1.0, 0.0, 2.0]))
        [2. 0. 8.]
    """
    params = _arrays("params", params)
    direction = _like("direction", direction, params)
    lengths = _checks.floating("lengths", lengths, ndim=1)
    _checks.positive_int("batch_size", batch_size)

    def at(length: Array) -> Array:
        return _along(f, params, (direction,), (length,))

    return lax.map(at, lengths, batch_size=batch_size)


def slice_2d(
    f: Objective,
    params: Params,
    first: Params,
    second: Params,
    first_lengths: Float[ArrayLike, " k"],
    second_lengths: Float[ArrayLike, " m"],
    *,
    batch_size: int = 16,
) -> Float[Array, "k m"]:
    r"""Evaluate the loss on a grid in a plane: $f(\theta + s_i u + t_j v)$.

    Args:
        f: Map from a pytree like `params` to a scalar.
        params: $\theta$, a pytree of real arrays.
        first: $u$, a pytree like `params`.
        second: $v$, likewise.
        first_lengths: $s_i$, shape `(k,)`.
        second_lengths: $t_j$, shape `(m,)`.
        batch_size: As in `slice_1d`.

    Returns:
        The losses, in at least float32, shape `(k, m)`.

    Raises:
        TypeError: As `slice_1d`.
        ValueError: As `slice_1d`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import sharpness
        >>> f = lambda x: x[0] - 10 * x[1]
        >>> u, v = jnp.eye(2)
        >>> print(sharpness.slice_2d(f, jnp.zeros(2), u, v, [0.0, 1.0], [0.0, 1.0, 2.0]))
        [[  0. -10. -20.]
         [  1.  -9. -19.]]
    """
    params = _arrays("params", params)
    u, v = _like("first", first, params), _like("second", second, params)
    s = _checks.floating("first_lengths", first_lengths, ndim=1)
    t = _checks.floating("second_lengths", second_lengths, ndim=1)
    _checks.positive_int("batch_size", batch_size)

    def at(place: tuple[Array, Array]) -> Array:
        return _along(f, params, (u, v), place)

    grid = (jnp.repeat(s, len(t)), jnp.tile(t, len(s)))
    return lax.map(at, grid, batch_size=batch_size).reshape(len(s), len(t))


def _along(
    f: Objective, params: Params, directions: tuple[Params, ...], lengths: tuple[Array, ...]
) -> Array:
    """The loss after a step that is a sum of directions, in at least float32."""
    moved = _wide(params)
    for direction, length in zip(directions, lengths, strict=True):
        moved = jax.tree.map(lambda p, u, t=length: p + t.astype(p.dtype) * u, moved, direction)
    value = f(_cast(moved, params))
    return value.astype(_float32_or_wider(value))


def _arrays(name: str, tree: Params) -> Params:
    tree = jax.tree.map(lambda leaf: _checks.floating(f"each leaf of {name}", leaf), tree)
    if not sum(leaf.size for leaf in jax.tree.leaves(tree)):
        raise ValueError(f"{name} must hold at least one number, got {tree!r}")
    return tree


def _like(name: str, tree: Params, params: Params) -> Params:
    """Check that a direction fits the parameters; it keeps at least float32."""
    tree = _arrays(name, tree)
    wanted, got = jax.tree.structure(params), jax.tree.structure(tree)
    if wanted != got:
        raise ValueError(f"{name} must have the structure {wanted}, got {got}")
    for leaf, like in zip(jax.tree.leaves(tree), jax.tree.leaves(params), strict=True):
        if leaf.shape != like.shape:
            raise ValueError(f"{name} must have a leaf of shape {like.shape}, got {leaf.shape}")
    return jax.tree.map(lambda leaf, like: leaf.astype(_float32_or_wider(like)), tree, params)


def _float32_or_wider(leaf: Array) -> Any:
    return jnp.float32 if leaf.dtype.itemsize < 4 else leaf.dtype


def _wide(tree: Params) -> Params:
    return jax.tree.map(lambda leaf: leaf.astype(_float32_or_wider(leaf)), tree)


def _cast(tree: Params, like: Params) -> Params:
    return jax.tree.map(lambda leaf, p: leaf.astype(p.dtype), tree, like)


def _normal(key: Array, like: Params) -> Params:
    """Independent normal numbers in the shapes of the parameters, in at least float32."""
    leaves, treedef = jax.tree.flatten(like)
    dtypes = [_float32_or_wider(leaf) for leaf in leaves]
    # One draw for all leaves: a generator takes long to compile.
    ends = np.cumsum([leaf.size for leaf in leaves])
    widest = max(dtypes, key=lambda dtype: jnp.dtype(dtype).itemsize)
    parts = jnp.split(jax.random.normal(key, (ends[-1],), widest), ends[:-1])
    return treedef.unflatten(
        part.reshape(leaf.shape).astype(dtype)
        for part, leaf, dtype in zip(parts, leaves, dtypes, strict=True)
    )


def _dot(a: Params, b: Params) -> Array:
    """Inner product of wide trees, in the widest of their dtypes."""
    parts = [
        jnp.vdot(x, y, precision="highest")
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ]
    dtype = max((part.dtype for part in parts), key=lambda dtype: dtype.itemsize)
    return jnp.sum(jnp.stack([part.astype(dtype) for part in parts]))


def _norm(tree: Params) -> Array:
    return jnp.sqrt(_dot(tree, tree))


def _scale(factor: Array, tree: Params) -> Params:
    return jax.tree.map(lambda leaf: factor.astype(leaf.dtype) * leaf, tree)


def _unit(tree: Params, otherwise: Params | None = None) -> Params:
    """Scale to length one; what has no length stays as it is, or becomes `otherwise`."""
    norm = _norm(tree)
    scaled = _scale(1 / jnp.where(norm == 0, 1, norm), tree)
    return scaled if otherwise is None else _select(norm == 0, otherwise, scaled)


def _select(which: Array, yes: Params, no: Params) -> Params:
    return jax.tree.map(lambda a, b: jnp.where(which, a, b), yes, no)
