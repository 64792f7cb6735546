"""Figures of the book: one style, functions that take tensors and return a matplotlib figure.

Heatmaps are drawn in red and blue around white, the same scale for all maps of a figure.
"""

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Rectangle
from torch import Tensor, nn

from xai_lib import training, verdicts

INK, ACCENT, SECOND, QUIET = "#22313f", "#c0392b", "#2471a3", "#8395a7"
MAP_COLOURS = "RdBu_r"  # positive red, negative blue
_ABBREVIATIONS = {
    nn.Conv2d: lambda m: f"conv {m.kernel_size[0]}×{m.kernel_size[1]}",
    nn.ConvTranspose2d: lambda m: f"transposed conv {m.kernel_size[0]}×{m.kernel_size[1]}",
    nn.Linear: lambda m: "linear",
    nn.AvgPool2d: lambda m: f"average pool {m.kernel_size}",
    nn.MaxPool2d: lambda m: f"max pool {m.kernel_size}",
    nn.BatchNorm2d: lambda m: "BatchNorm",
    nn.ReLU: lambda m: "ReLU",
    nn.LeakyReLU: lambda m: "leaky ReLU",
    nn.Tanh: lambda m: "tanh",
    nn.Flatten: lambda m: "flatten",
}


def use_style() -> None:
    """Set the book's style for all figures that follow."""
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 110,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.edgecolor": QUIET,
            "axes.labelcolor": INK,
            "axes.titlesize": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "lines.linewidth": 1.8,
            "axes.prop_cycle": plt.cycler(color=[ACCENT, SECOND, INK, QUIET]),
        }
    )


def layer_shapes(model: nn.Module, image: Tensor) -> list[tuple[str, str, tuple[int, ...]]]:
    """Run one image through a model; return (path, description, output shape without batch) of each layer in turn.

    Parameters
    ----------
    model : nn.Module
    image : float tensor (1, C, H, W)
    """
    found: list[tuple[str, str, tuple[int, ...]]] = []

    def note(path):
        def hook(module, _, output):
            words = re.sub("(?<=[a-z])(?=[A-Z])", " ", type(module).__name__).lower()
            label = _ABBREVIATIONS.get(type(module), lambda m: words)(module)
            found.append((path, label, tuple(output.shape[1:])))

        return hook

    leaves = [(path, part) for path, part in model.named_modules() if not list(part.children())]
    hooks = [part.register_forward_hook(note(path)) for path, part in leaves]
    try:
        with torch.no_grad(), training.evaluating(model):
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def architecture(model: nn.Module, image: Tensor, groups: Mapping[str, str]) -> Figure:
    """Draw a model from the model itself: a block for each shape that an image takes on its way.

    Parameters
    ----------
    model : nn.Module
    image : float tensor (1, C, H, W)
    groups : mapping
        {prefix of layer paths: name}, drawn as frames around the blocks, in this order.
    """
    blocks: list[tuple[str, list[str], tuple[int, ...]]] = [("", ["image"], tuple(image.shape[1:]))]
    for path, label, shape in layer_shapes(model, image):
        group = next((prefix for prefix in groups if path.startswith(prefix)), "")
        if blocks[-1][0] == group and blocks[-1][2] == shape:
            blocks[-1][1].append(label)
        else:
            blocks.append((group, [label], shape))
    places = _places([group for group, _, _ in blocks])
    across, down = max(x for x, _ in places) + 1, max(y for _, y in places) + 1
    figure, axes = plt.subplots(figsize=(max(4.0, 0.98 * across), 3.2 * down))
    tallest = max(shape[-1] for _, _, shape in blocks if len(shape) == 3)
    for number, ((_, labels, shape), (x, row)) in enumerate(zip(blocks, places, strict=True)):
        middle = -_ROW * row
        height = 2.4 * shape[-1] / tallest if len(shape) == 3 else 1.6
        width = 0.12 + 0.06 * math.log2(shape[0]) if len(shape) == 3 else 0.12
        corner = x - width / 2, middle - height / 2
        axes.add_patch(Rectangle(corner, width, height, color=SECOND if number else QUIET))
        axes.text(x, middle + height / 2 + 0.12, "×".join(map(str, shape)), ha="center", va="bottom", fontsize=9)
        lines = "\n".join(textwrap.fill(label, 10) for label in labels)
        axes.text(x, middle - 1.55, lines, ha="center", va="top", fontsize=9)
        if number:
            ends = (x - 0.72, middle), (x - 0.28, middle)
            axes.add_patch(FancyArrowPatch(*ends, arrowstyle="->", color=QUIET, mutation_scale=9))
    for prefix, name in groups.items():
        inside = [place for place, block in zip(places, blocks, strict=True) if block[0] == prefix]
        if inside:
            left, right, top = inside[0][0], inside[-1][0], 2.05 - _ROW * inside[0][1]
            axes.plot([left - 0.4, right + 0.4], [top, top], color=ACCENT)
            axes.text((left + right) / 2, top + 0.07, name, ha="center", va="bottom", color=ACCENT)
    axes.set(xlim=(-0.8, across - 0.3), ylim=(-2.9 - _ROW * (down - 1), 2.6))
    axes.axis("off")
    return figure


_ROW = 5.6  # distance of two rows of blocks


def _places(groups: Sequence[str]) -> list[tuple[int, int]]:
    """Return (column, row) of each block: a row for each named group, what comes before the first beside it."""
    places, row, named = [], 0, False
    for before, group in zip(["", *groups], groups, strict=False):
        if group and group != before:
            row, named = row + named, True
        places.append((sum(y == row for _, y in places), row))
    return places


def image_rows(
    rows: Sequence[tuple[str, Tensor, str]],
    titles: Sequence[str] = (),
    boxes: Sequence[tuple[str, Tensor]] = (),
) -> Figure:
    """Draw rows of small images under each other, a column for each sample.

    Parameters
    ----------
    rows : sequence of (label, images, kind)
        Images are tensors (N, 1 or 3, H, W); kind is ``image`` (grey, darker is more), ``map`` (red and blue around 0,
        one scale for the row) or ``mask`` (grey, 0 to 1).
    titles : sequence of str
        One over each column.
    boxes : sequence of (label, boxes), at most two
        Tensors (N, 4), x0, y0, x1, y1 in pixels, drawn on the images of the first row, the first in blue, the second
        in red; a row of NaN is left out. A legend names them.

    Raises
    ------
    ValueError
        There are no images.
    """
    count = len(rows[0][1])
    if not count:
        raise ValueError("rows must hold at least one image; got none")
    beside = 0.3 + 0.078 * max(len(label) for label, _, _ in rows)  # inches that the labels take
    size = (0.82 * count + beside, 0.82 * len(rows) + 0.3)
    figure, axes = plt.subplots(len(rows), count, figsize=size, squeeze=False)
    for line, (label, images, kind) in zip(axes, rows, strict=True):
        limit = images.float().abs().max().item() or 1.0
        scales = {
            "map": {"cmap": MAP_COLOURS, "vmin": -limit, "vmax": limit},
            "image": {"cmap": "gray_r", "vmin": 0},
            "mask": {"cmap": "gray_r", "vmin": 0, "vmax": 1},
        }
        for place, image in zip(line, images, strict=True):
            place.imshow(image.permute(1, 2, 0).squeeze(-1).cpu().numpy(), interpolation="nearest", **scales[kind])
            place.set(xticks=[], yticks=[])
            for spine in place.spines.values():
                spine.set(visible=True, color="#dfe6e9")
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
    for place, title in zip(axes[0], titles, strict=False):
        place.set_title(title, fontsize=8.5)
    marks = []
    for (label, found), colour in zip(boxes, (SECOND, ACCENT), strict=False):
        marks.append(Line2D([], [], color=colour, label=label))
        for place, box in zip(axes[0], found.tolist(), strict=True):
            if not any(map(math.isnan, box)):
                x0, y0, x1, y1 = box
                corner = (x0 - 0.5, y0 - 0.5)  # a pixel's centre is a whole number in the picture, its edge is not
                place.add_patch(Rectangle(corner, x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.6))
    if marks:
        figure.legend(handles=marks, loc="outside lower center", ncols=2, frameon=False)
    return figure


def seed_dots(
    groups: Mapping[str, Mapping[object, float | int]], ylabel: str, zero: float | int | None = None
) -> Figure:
    """Draw a dot for each seed and a bar for the mean of each group; nothing for a group without values.

    Up to six groups stand side by side; more lie under each other, the first on top, so that names can be read.

    Parameters
    ----------
    groups : mapping
        {name: {seed: value}}.
    ylabel : str
        What the values are, with unit.
    zero : float, optional
        Value of a thin reference line.
    """
    lying = len(groups) > 6
    size = (6.4, 0.6 + 0.28 * len(groups)) if lying else (max(4.0, 1.25 * len(groups)), 3.2)
    figure, axes = plt.subplots(figsize=size)

    def plot(places, numbers, *marks, **settings):
        axes.plot(*((numbers, places) if lying else (places, numbers)), *marks, **settings)

    for x, values in enumerate(groups.values()):
        numbers = list(values.values())
        if not numbers:
            continue
        step = min(0.05, 0.6 / len(numbers))  # many dots stay with their group
        spread = [x + step * (k - (len(numbers) - 1) / 2) for k in range(len(numbers))]
        plot(spread, numbers, "o", color=SECOND, markersize=5, alpha=0.85)
        plot([x - 0.25, x + 0.25], [sum(numbers) / len(numbers)] * 2, color=ACCENT)
    if zero is not None:
        (axes.axvline if lying else axes.axhline)(zero, color=QUIET, linewidth=0.8)
    if lying:
        axes.set_yticks(range(len(groups)), list(groups))
        axes.set(xlabel=ylabel, ylim=(len(groups) - 0.4, -0.6))
    else:
        axes.set_xticks(range(len(groups)), [textwrap.fill(str(name), 14) for name in groups])
        axes.set(ylabel=ylabel, xlim=(-0.6, len(groups) - 0.4))
    return figure


def _cell(value: object) -> str:
    text = re.sub(r"\s*\n\s*", " ", str(value)).replace("|", "\\|")
    return text.replace(" ± ", "\u00a0±\u00a0")  # a number and its spread stay on one line


class Table:
    """A table that notebooks and pages show: a header and rows of text or numbers."""

    def __init__(self, header: Sequence[str], rows: Sequence[Sequence[object]]):
        self.header, self.rows = header, rows

    def __str__(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)

    def _repr_markdown_(self) -> str:
        return str(self)


def spread(values: Mapping[object, float | int]) -> str:
    """Return {seed: value} as a table shows it, mean and standard deviation; "none" where there is no value."""
    return verdicts.summarize({str(seed): one for seed, one in values.items()}).text() if values else "none"


def paper_and_ours(rows: Iterable) -> Table:
    """Return a table of claims (`ledger.Row`): the paper's number, ours, the verdict and why there is none."""
    header = ["claim", "paper", "ours", "verdict"]
    return Table(
        header,
        [
            [
                row.title,
                "" if row.paper_value is None else f"{row.paper_value:g} {row.unit}",
                row.ours_text,
                row.verdict + (f" ({row.reason})" if row.reason else ""),
            ]
            for row in rows
        ],
    )


def pair_cells(differences: Mapping[str, float]) -> list[str]:
    """Return a table's cells for differences in pairs: mean ± sd, pairs, 95% t interval of the mean, how many above 0.

    The interval takes pairs as independent; where they are not, it is too narrow.
    """
    if not differences:
        return ["none", "0", "none", "none"]
    one, above = verdicts.summarize(differences), sum(value > 0 for value in differences.values())
    between = "none" if one.sd is None else "{:+.3g} to {:+.3g}".format(*one.bounds(2)).replace("-", "−")
    return [one.text(signed=True), str(one.n), between, f"{above} of {one.n}"]


def interval(values: Mapping[str, float]) -> str:
    """Return "mean [low, high]" with the 95% t interval of the mean, the mean alone for one value."""
    one = verdicts.summarize(values)
    ends = "" if one.sd is None else " [{:+.3f}, {:+.3f}]".format(*one.bounds(2))
    return f"{one.mean:+.3f}{ends}".replace("-", "−")
