r"""Figures of an explanation module: where it is attached, its parts, and the maps of its x-features.

The drawings of Qi, Khorram, Li 2017 (figures 1 to 4 and those of the supplement) from trained modules. Maps are
P(pixel | x-feature), as `excitation.pixel_probabilities` gives them: orange, which any colour vision tells from grey,
over the grey image, its opacity the root of the map over its own peak, so that what is weak is seen, too. Other
colours are those of the figure style (C0 accent, C1 second, C2 ink, C3 quiet).
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from torch import Tensor

from xai_lib import explanation_metrics, parts, srae

MAP = "#d55e00"  # vermilion of Okabe and Ito
WIDTH = 6.4  # inches: about 700 pixels at the book's resolution
LOGIT = r"$\bar{y} = \sum_n v_n E_n$"


def attachment(stages: Mapping[str, str], layer: str, modules: srae.Autoencoders) -> Figure:
    """Draw a network as a row of boxes and below it the module on one of them (figure 1a).

    Parameters
    ----------
    stages : mapping
        {name: size as text} in the order of the pass; the logit comes last.
    layer : str
        The stage that the module is attached to, with at least two after it.
    modules : srae.Autoencoders

    Raises
    ------
    ValueError
        `layer` is no such stage.
    """
    names = list(stages)
    if layer not in names[:-2]:
        raise ValueError(f"layer must be one of {', '.join(names[:-2])}; got {layer!r}")
    at, sizes = names.index(layer), _sizes(modules)
    below = {"encoder": " → ".join(map(str, sizes[:-1])), "x-features E": str(sizes[-1]), "logit again": LOGIT}
    axes = _drawing((WIDTH, 2.5), (-0.6, len(names) - 0.4), (-1.75, 0.6))
    for row, first, y in ((stages, 0, 0), (below, at, -1.25)):
        for x, (name, size) in enumerate(row.items(), first):
            colour = "C0" if y or x == at else "C1"
            axes.add_patch(Rectangle((x - 0.4, y - 0.36), 0.8, 0.72, facecolor="none", edgecolor=colour, linewidth=1.4))
            axes.text(x, y + 0.1, textwrap.fill(name, 13), ha="center", va="center", fontsize=8.5)
            axes.text(x, y - 0.22, size, ha="center", va="center", fontsize=8, color=colour)
            if x > first:
                _arrow(axes, (x - 0.6, y), (x - 0.4, y))
    _arrow(axes, (at, -0.36), (at, -0.89), "C0")
    _arrow(axes, (at + 2, -0.36), (at + 2, -0.89), style="<->")
    axes.text(at + 2.08, -0.62, "alike", ha="left", va="center")
    axes.text(at - 0.5, -1.25, "explanation\nmodule", ha="right", va="center", color="C0")
    return axes.figure


def autoencoder(modules: srae.Autoencoders) -> Figure:
    """Draw the layers of a module with their sizes (figure 2a); without its decoder where it has none."""
    encoder = _sizes(modules)
    sizes = [*encoder, *(layer.weight.shape[1] for layer in modules.decoder)]
    middle, last = len(encoder) - 1, len(sizes) - 1
    axes = _drawing((WIDTH, 3.2), (-0.6, last + 0.6), (-1.75, 1.9))
    for x, size in enumerate(sizes):
        tall = 0.45 + 1.75 * math.log(size) / math.log(max(sizes))
        step = min(0.3, 1.6 / size)
        if x == middle:
            for k in range(size):
                axes.add_patch(Circle((x, step * (k - (size - 1) / 2)), 0.42 * step, color="C0"))
        else:
            axes.add_patch(Rectangle((x - 0.13, -tall / 2), 0.26, tall, color="C1"))
        if x:
            _arrow(axes, (x - 0.78, 0), (x - 0.22, 0))
            axes.text(x - 0.5, 0.06, "ReLU", ha="center", va="bottom", fontsize=8)
        axes.text(x, -1.2, str(size), ha="center", va="top")
    for x, name in {0: "Z", last: "Z again,\nin part", middle: "x-features E"}.items():
        axes.text(x, -1.42, name, ha="center", va="top", color="C0" if x == middle else "C2")
    _arrow(axes, (middle, 0.85), (middle, 1.38), "C0")
    axes.text(middle, 1.42, f"logit again  {LOGIT}", ha="center", va="bottom", color="C0")
    return axes.figure


def log_penalty(q: Sequence[float | int]) -> Figure:
    """Draw log(1 + q x^2) on [-3, 3], a panel for each q (figures 2b and 2c)."""
    figure, axes = plt.subplots(1, len(q), figsize=(WIDTH, 2.5), sharey=True, squeeze=False)
    x = torch.linspace(-3, 3, 301)
    for place, one in zip(axes[0], q, strict=True):
        place.plot(x, torch.log1p(one * x.square()), color="C1")
        place.set(title=f"q = {one:g}", xlabel="error x of the reconstruction")
    axes[0, 0].set(ylabel=r"$\log(1 + q\,x^2)$", ylim=(0, None))
    return figure


def _sizes(modules: srae.Autoencoders) -> list[int]:
    return [modules.encoder[0].weight.shape[2], *(layer.weight.shape[1] for layer in modules.encoder)]


def _drawing(size: tuple[float, float], x: tuple[float, float], y: tuple[float, float]) -> Axes:
    axes = plt.subplots(figsize=size)[1]
    axes.set(xlim=x, ylim=y)
    axes.axis("off")
    return axes


def _arrow(axes: Axes, start: tuple, end: tuple, colour: str = "C3", style: str = "->") -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": style, "color": colour, "shrinkA": 0, "shrinkB": 0})


@dataclass(frozen=True)
class Panel:
    """An image in colour, or in grey below a map; an all-zero map says so."""

    image: UInt8[Tensor, "3 h w"]
    map: Float[Tensor, "h w"] | None = None
    title: str = ""


def by_contribution(
    image: UInt8[Tensor, "3 h w"], maps: Float[Tensor, "n h w"], contributions: Float[Tensor, " n"]
) -> list[Panel]:
    """Return a panel for each x-feature, the one with the highest contribution first; v_n E_n is its title."""
    order = contributions.argsort(descending=True, stable=True).tolist()
    return [Panel(image, maps[n], f"{contributions[n] + 0:+.2f}".replace("-", "\u2212")) for n in order]  # no -0


def panels(rows: Sequence[tuple[str, Sequence[Panel]]]) -> Figure:
    """Draw rows of panels, each with its label at the left.

    Raises
    ------
    ValueError
        There is no panel.
    """
    columns = max((len(row) for _, row in rows), default=0)
    if not columns:
        raise ValueError(f"rows must hold at least one panel; got none in {len(rows)} rows")
    beside = 0.075 * max(len(line) for label, _ in rows for line in label.split("\n"))
    side = min((WIDTH - beside) / columns, 1.4)
    titled = 0.2 * any(panel.title for _, row in rows for panel in row)
    figure, axes = _grid(len(rows), columns, (side * columns + beside, (side + titled) * len(rows)))
    for line, (label, row) in zip(axes, rows, strict=True):
        line[0].text(-0.06, 0.5, label, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
        for place, panel in zip(line, row, strict=False):
            _show(place, panel)
    return figure


def _grid(rows: int, columns: int, size: tuple[float, float]):
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for place in axes.flat:
        place.axis("off")
    return figure, axes


def _show(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title, fontsize=9, pad=2)
    if panel.map is None:
        axes.imshow(panel.image.permute(1, 2, 0).numpy(), interpolation="nearest")
        return
    _grey(axes, panel.image)
    if panel.map.any():
        colour = torch.tensor(to_rgb(MAP)).expand(*panel.map.shape, 3)
        opacity = (panel.map / panel.map.max()).sqrt()
        axes.imshow(torch.cat([colour, opacity[:, :, None]], 2).numpy(), interpolation="nearest")
    else:
        axes.text(0.5, 0.5, "no map", transform=axes.transAxes, ha="center", va="center", fontsize=9)


def _grey(axes: Axes, image: Tensor) -> None:
    """Show an image in light greys, on which colours stand out."""
    grey = torch.einsum("chw,c->hw", image / 255, torch.tensor([0.299, 0.587, 0.114]))
    axes.imshow((0.35 + 0.65 * grey).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def nine(
    image: UInt8[Tensor, "3 h w"],
    labels: Float[Tensor, "p 3"],
    box: Float[Tensor, " 4"],
    maps: Sequence[Panel],
    names: Sequence[str],
) -> Figure:
    """Draw an image, its part labels (`names`), their Voronoi regions (`parts.regions`) and its maps (figure 3a)."""
    rows = -(-(3 + len(maps)) // 4)
    figure, axes = _grid(rows, 4, (WIDTH, 1.75 * rows + 0.4))
    truth = [Panel(image, title=title) for title in ("image", "part labels", "Voronoi regions")]
    for place, panel in zip(axes.flat, [*truth, *maps], strict=False):
        _show(place, panel)
    seen = (labels[:, 2] > 0).nonzero()[:, 0].tolist()
    places = (labels[seen, :2] - 0.5).tolist()  # a pixel's centre is a whole number in the picture
    for place in axes.flat[1:3]:
        _grey(place, image)
        place.scatter(*torch.tensor(places).T, s=9, color=MAP)
    for p, at in zip(seen, places, strict=True):
        axes.flat[1].annotate(str(p + 1), at, (1.5, 1.5), textcoords="offset points", fontsize=7)
    region = parts.regions(labels[None], box[None], tuple(image.shape[1:]))[0]
    axes.flat[2].add_collection(LineCollection(_borders(region), colors="C1", linewidths=1))
    figure.supxlabel(textwrap.fill(", ".join(f"{p + 1} {names[p]}" for p in seen), 105), fontsize=8)
    return figure


def _borders(region: Tensor) -> list[list[tuple[float, float]]]:
    """Return the edges (from, to) between pixels of different regions, in the picture's coordinates."""
    down, across = (region[1:] != region[:-1]).nonzero().tolist(), (region[:, 1:] != region[:, :-1]).nonzero().tolist()
    flat = [[(c - 0.5, r + 0.5), (c + 0.5, r + 0.5)] for r, c in down]
    return flat + [[(c + 0.5, r - 0.5), (c + 0.5, r + 0.5)] for r, c in across]


def part_bars(shares: Mapping[str, Float[Tensor, "n _"]], titles: Sequence[str], names: Sequence[str]) -> Figure:
    """Draw {measure: P(part | x-feature)}, a row for each x-feature, each measure to its scale (supplement 1)."""
    size = (WIDTH, 0.5 * len(titles) + 1.3)
    figure, axes = plt.subplots(len(titles), len(shares), figsize=size, sharex=True, sharey="col", squeeze=False)
    for column, (measure, values) in zip(axes.T, shares.items(), strict=True):
        column[0].set_title(measure, fontsize=9)
        for place, row in zip(column, values.tolist(), strict=True):
            place.bar(range(len(row)), row, color="C1")
            place.tick_params(labelsize=7)
        column[-1].set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    for place, title in zip(axes[:, 0], titles, strict=True):
        place.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
    return figure


def extreme_pair(maps: Float[Tensor, "m n h w"], alike: bool) -> tuple[int, int, int, float]:
    """Return the maps of one image that correlate most, or least: image, x-feature, x-feature, correlation.

    Of all pairs of all images, the first of equals; a constant map is in no pair.

    Raises
    ------
    ValueError
        No image has two maps.
    """
    pairs = []
    for m in range(len(maps)):
        found, varies = explanation_metrics.map_correlations(maps[m : m + 1])
        names = varies.nonzero()[:, 0].tolist()
        pairs += [(m, names[i], names[j], found[i, j].item()) for j in range(len(names)) for i in range(j)]
    if not pairs:
        raise ValueError(f"maps must have an image with two that are not constant; got none of {len(maps)}")
    return (max if alike else min)(pairs, key=lambda pair: pair[3])
