"""What all demos share: pictures, progress, and one look for figures."""

import re

import jax
import numpy as np
import pytest

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import _pictures, figures, progress, tables


def draw():
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    with figures.style():
        figure, axes = plt.subplots(figsize=(3, 2))
        axes.plot([0, 1], [1, 0], label="line")
        axes.set(xlabel="steps", title="A <line>")
        axes.legend()
    plt.close(figure)
    return figure


def luminance(color):
    """Relative luminance of `#rrggbb`, WCAG 2.2."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("color", figures.COLORS)
@pytest.mark.parametrize("page", ["#ffffff", "#1e2129"])
def test_colors_can_be_seen_on_light_and_dark_pages(color, page):
    assert contrast(color, page) >= 3  # WCAG 2.2, 1.4.11: graphical objects


def test_svg_follows_the_text_colour_and_is_reproducible():
    picture = figures.svg(draw())
    assert picture.startswith("<svg ")
    assert "currentColor" in picture
    assert "#010203" not in picture
    assert 'aria-label="A &lt;line&gt;"' in picture
    assert picture == figures.svg(draw())


def test_svg_ids_do_not_clash_with_those_of_another_figure():
    ids = [set(re.findall(r'\bid="([^"]+)"', figures.svg(draw(), title=t))) for t in ("a", "b")]
    figure = draw()
    figure.axes[0].set_title("another")
    ids.append(set(re.findall(r'\bid="([^"]+)"', figures.svg(figure))))
    assert ids[0]
    assert not ids[0] & ids[2]


def test_every_reference_in_an_svg_has_its_target():
    picture = figures.svg(draw())
    targets = set(re.findall(r'\bid="([^"]+)"', picture))
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', picture)) <= targets


@pytest.mark.parametrize("ending", [".svg", ".png"])
def test_saved_figures_stand_on_white(ending, tmp_path):
    target = tmp_path / f"figure{ending}"
    figures.save(draw(), str(target))
    if ending == ".png":
        import matplotlib.image

        assert tuple(matplotlib.image.imread(target)[0, 0, :3]) == (1, 1, 1)
    else:
        assert "fill: #ffffff" in target.read_text()


def test_progress_is_told_to_a_listener_only():
    told = []
    with progress.listen(lambda *event: told.append(event)):
        assert list(progress.track("ab", "reading")) == ["a", "b"]
    assert list(progress.track("ab", "reading")) == ["a", "b"]
    assert told == [("reading", 0, 2), ("reading", 1, 2), ("reading", 2, 2)]


def test_tables_as_text():
    rows = [
        {"road": "closed form", "loss": 0.123456, "steps": np.int32(12000), "share": "5%"},
        {"road": "[a] search", "loss": float("nan"), "steps": 3, "share": ""},
    ]
    lines = tables.text({"Two [roads]": rows}, width=60).splitlines()
    assert lines[0] == "Two [roads]"
    assert lines[2].split() == ["road", "loss", "steps", "share"]
    assert lines[4].split() == ["closed", "form", "0.1235", "12000", "5%"]
    assert lines[5].split() == ["[a]", "search", "nan", "3"]
    assert (
        len({line.index(word) for line, word in zip(lines[4:], ("closed", "[a]"), strict=True)})
        == 1
    )
    narrow = tables.text({"Two [roads]": rows}, width=24)
    assert max(map(len, narrow.splitlines())) <= 24
    assert "…" not in narrow  # folded, not cut


def test_digits_where_fashion_mnist_is_not(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match="Fashion-MNIST"):  # a named folder must have it
        _pictures.load(jax.random.key(0), "auto", data_dir=tmp_path)

    def nowhere(data_dir, part):
        raise FileNotFoundError

    monkeypatch.setattr(datasets, "fashion_mnist", nowhere)
    found = _pictures.load(jax.random.key(0), "auto")
    assert found.source.name == "digits"
    assert len(found.x_train) + len(found.x_test) == 1797
