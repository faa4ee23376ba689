"""Draw the picture of README.md, docs/assets/readme.svg: `make picture`."""

from pathlib import Path

import jax
import matplotlib as mpl

from mlnotes_jax.demos import figures
from mlnotes_jax.demos.optimization import critical_points

if __name__ == "__main__":
    mpl.use("agg")
    figure = critical_points.plot(critical_points.run(jax.random.key(0)))
    target = Path(__file__).parents[1] / "docs/assets/readme.svg"
    target.parent.mkdir(parents=True, exist_ok=True)
    figures.save(figure, str(target))
    print(target)
