import io
import math
import re

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
import torch
from markdown_it import MarkdownIt
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from xai_lib import figures, ledger, xcnn


@pytest.fixture(autouse=True)
def style():
    """The book's style for each test, and nothing left open or set afterwards."""
    with plt.rc_context():
        figures.use_style()
        yield
        plt.close("all")


def drawn(figure):
    """Draw a figure to a picture; any warning is an error."""
    assert isinstance(figure, Figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    assert stream.getvalue().startswith(b"\x89PNG")
    return figure


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# layers and their shapes


def toy():
    return nn.Sequential(
        nn.Conv2d(1, 4, (3, 5), padding=(1, 2)),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(4, 2, 1), nn.AvgPool2d(2), nn.Tanh()),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


def test_layer_shapes_of_a_toy_by_hand():
    assert figures.layer_shapes(toy(), torch.zeros(1, 1, 6, 8)) == [
        ("0", "conv 3×5", (4, 6, 8)),
        ("1", "BatchNorm", (4, 6, 8)),
        ("2", "ReLU", (4, 6, 8)),
        ("3", "max pool 2", (4, 3, 4)),
        ("4.0", "conv 1×1", (2, 3, 4)),
        ("4.1", "average pool 2", (2, 1, 2)),
        ("4.2", "tanh", (2, 1, 2)),
        ("5", "flatten", (4,)),
        ("6", "linear", (5,)),
    ]


def test_a_layer_without_an_abbreviation_is_called_by_its_class():
    model = nn.Sequential(nn.Hardswish(), nn.Upsample(scale_factor=2))
    assert [label for _, label, _ in figures.layer_shapes(model, torch.zeros(1, 1, 2, 2))] == [
        "hardswish",
        "upsample",
    ]
    named = nn.Sequential(nn.ConvTranspose2d(1, 1, 3, padding=1), nn.LeakyReLU())
    assert [label for _, label, _ in figures.layer_shapes(named, torch.zeros(1, 1, 2, 2))] == [
        "transposed conv 3×3",
        "leaky ReLU",
    ]
    shapes = figures.layer_shapes(xcnn.Generator(1, 4), torch.zeros(1, 1, 4, 4))
    assert ("upsample", "bilinear upsample", (4, 4, 4)) in shapes


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.ReLU(), nn.AvgPool2d(2)

    def forward(self, x):
        return self.two(self.one(self.two(x)))


def test_layers_come_in_the_order_of_use_each_time_that_they_are_used():
    assert [path for path, _, _ in figures.layer_shapes(Twice(), torch.zeros(1, 1, 8, 8))] == ["two", "one", "two"]


def test_layer_shapes_leave_the_model_as_it_was():
    model = toy().train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    figures.layer_shapes(model, seeded(1, 1, 6, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[0].training
    assert not model[1].training
    assert not any(part._forward_hooks for part in model.modules())
    with pytest.raises(RuntimeError):
        figures.layer_shapes(model, torch.zeros(1, 3, 6, 8))
    assert not any(part._forward_hooks for part in model.modules())
    assert model[0].training


# the architecture


def blocks(figure):
    [axes] = figure.axes
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def texts(figure):
    [axes] = figure.axes
    return [text.get_text() for text in axes.texts]


def test_architecture_of_a_toy_has_a_block_for_each_shape():
    figure = drawn(figures.architecture(toy(), torch.zeros(1, 1, 6, 8), {}))
    shapes = [text for text in texts(figure) if re.fullmatch(r"\d+(×\d+)*", text)]
    assert shapes == ["1×6×8", "4×6×8", "4×3×4", "2×3×4", "2×1×2", "4", "5"]
    assert len(blocks(figure)) == len(shapes)
    labels = [text for text in texts(figure) if text not in shapes]
    assert labels == [
        "image",
        "conv 3×5\nBatchNorm\nReLU",
        "max pool 2",
        "conv 1×1",
        "average\npool 2\ntanh",
        "flatten",
        "linear",
    ]


GROUPS = {"generator": "generator I(x)", "discriminator": "discriminator D"}


def test_figure_1_is_the_paper_network_by_hand():
    figure = drawn(figures.architecture(xcnn.xcnn_mnist(), torch.zeros(1, 1, 28, 28), GROUPS))
    found = texts(figure)
    assert [text for text in found if re.fullmatch(r"\d+(×\d+)*", text)] == [
        "1×28×28",
        *("32×28×28", "32×14×14", "32×28×28", "1×28×28"),
        *("16×28×28", "16×14×14", "32×14×14", "32×7×7", "64×7×7", "64×3×3", "576", "10"),
    ]
    assert found[-2:] == ["generator I(x)", "discriminator D"]
    [axes] = figure.axes
    frames = [tuple(line.get_xdata()) for line in axes.lines]
    assert frames == [(0.6, 4.4), (-0.4, 7.4)], "over blocks 1 to 4 of the first row, all 8 of the second"


def test_texts_of_figure_1_do_not_cover_each_other():
    figure = drawn(figures.architecture(xcnn.xcnn_mnist(), torch.zeros(1, 1, 28, 28), GROUPS))
    [axes] = figure.axes
    boxes = [(text.get_text(), text.get_window_extent()) for text in axes.texts]
    pairs = [(one, two) for k, (one, a) in enumerate(boxes) for two, b in boxes[k + 1 :] if a.overlaps(b)]
    assert pairs == []


def test_blocks_of_larger_maps_are_higher():
    figure = figures.architecture(toy(), torch.zeros(1, 1, 8, 8)[..., :6, :], {})
    heights = [patch.get_height() for patch in blocks(figure)][:5]
    assert heights[0] == heights[1] > heights[2] == heights[3] > heights[4] > 0


def test_a_group_that_no_layer_belongs_to_is_left_out():
    figure = drawn(figures.architecture(toy(), torch.zeros(1, 1, 6, 8), {"4": "inside", "other": "nowhere"}))
    assert texts(figure)[-1] == "inside"
    assert "nowhere" not in texts(figure)


# rows of images


def shown(figure):
    """The pictures of a figure, as rows of arrays with their limits of colour, and the axes."""
    return [(axes, axes.images[0].get_array(), axes.images[0].get_clim()) for axes in figure.axes]


def test_image_rows_show_the_images_in_their_places():
    digits = torch.arange(2 * 5 * 7).view(2, 1, 5, 7).to(torch.uint8)
    maps = seeded(2, 1, 5, 7)
    figure = drawn(figures.image_rows([("digit", digits, "image"), ("I(x)", maps, "map")], titles=["3 as 5", "8 as 0"]))
    found = shown(figure)
    assert len(found) == 4
    for (axes, array, _), image in zip(found, [*digits, *maps], strict=True):
        assert torch.equal(torch.as_tensor(array.data), image[0])
        assert len(axes.get_xticks()) == len(axes.get_yticks()) == 0
    assert [axes.get_title() for axes, _, _ in found] == ["3 as 5", "8 as 0", "", ""]
    assert [axes.get_ylabel() for axes, _, _ in found] == ["digit", "", "I(x)", ""]


def test_maps_share_one_scale_around_zero():
    maps = torch.stack([torch.full((1, 3, 3), 0.1), torch.full((1, 3, 3), -0.8)])
    figure = drawn(figures.image_rows([("a", maps, "map"), ("b", maps / 2, "map")]))
    lows, highs = zip(*(clim for _, _, clim in shown(figure)), strict=True)
    assert highs == pytest.approx([0.8, 0.8, 0.4, 0.4])
    assert lows == pytest.approx([-0.8, -0.8, -0.4, -0.4])
    cool, warm = (figures.plt.get_cmap(figures.MAP_COLOURS)(x) for x in (0.0, 1.0))
    assert warm[0] > warm[2], "positive is red"
    assert cool[2] > cool[0], "negative is blue"


def test_a_map_of_zeros_is_white():
    figure = drawn(figures.image_rows([("a", torch.zeros(2, 1, 3, 3), "map")]))
    picture = figure.axes[0].images[0]
    assert picture.to_rgba(picture.get_array())[..., :3].min() > 0.9


def test_masks_are_grey_between_0_and_1():
    """A mask of a half is half grey, one of ones is full, one of zeros is empty: no scale of its own."""
    masks = torch.stack([torch.full((1, 3, 3), x) for x in (0.0, 0.5, 1.0)])
    figure = drawn(figures.image_rows([("mask", masks, "mask")]))
    assert [clim for _, _, clim in shown(figure)] == [(0, 1)] * 3


def test_masks_may_be_of_type_bool():
    mask = torch.tensor([[True, False], [False, True]]).view(1, 1, 2, 2)
    figure = drawn(figures.image_rows([("mask", mask, "mask")]))
    assert torch.equal(torch.as_tensor(shown(figure)[0][1].data).bool(), mask[0, 0])


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_rgb_images(kind):
    images = (
        torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * (255 if kind == torch.uint8 else 1)
    ).to(kind)
    figure = drawn(figures.image_rows([("photo", images, "image"), ("I(x)", seeded(2, 1, 4, 5), "map")]))
    array = torch.as_tensor(shown(figure)[0][1].data)
    assert torch.equal(array, images[0].permute(1, 2, 0))


def test_image_rows_draw_boxes_on_the_first_row():
    """A box of pixels goes half a pixel beyond their centres; one of NaN is left out; the legend names both kinds."""
    photos = seeded(2, 3, 6, 8)
    true = torch.tensor([[1.0, 2.0, 5.0, 6.0], [0.0, 0.0, 8.0, 6.0]])
    found = torch.tensor([[2.0, 2.0, 4.0, 3.0], [math.nan] * 4])
    rows = [("photo", photos, "image"), ("map", photos[:, :1], "map")]
    figure = drawn(figures.image_rows(rows, boxes=[("true", true), ("from the map", found)]))
    patches = [[(*one.get_xy(), one.get_width(), one.get_height()) for one in axis.patches] for axis in figure.axes]
    assert patches == [[(0.5, 1.5, 4, 4), (1.5, 1.5, 2, 1)], [(-0.5, -0.5, 8, 6)], [], []]
    first, second = (one.get_edgecolor() for one in figure.axes[0].patches)
    assert first != second
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["true", "from the map"]
    assert not drawn(figures.image_rows(rows)).legends


@pytest.mark.parametrize("count", [1, 2, 10])
def test_image_rows_of_any_number_draw_without_warnings(count):
    rows = [("digit", seeded(count, 1, 28, 28), "image")]
    rows += [(f"I(x), seed {seed}", seeded(count, 1, 28, 28), "map") for seed in range(3)]
    drawn(figures.image_rows(rows, titles=["8 as 3"] * count))


def test_no_images_at_all():
    """A run may have no misclassified digit: the figure is empty, or an error says what there is none of."""
    nothing, said = torch.zeros(0, 1, 28, 28), ""
    try:
        figure = figures.image_rows([("digit", nothing, "image"), ("I(x)", nothing, "map")])
    except ValueError as error:
        said = str(error)
    if said:
        assert re.search("image|rows", said)
    else:
        drawn(figure)


def test_rows_of_different_length_are_refused():
    with pytest.raises(ValueError, match="zip|rows|images"):
        figures.image_rows([("a", seeded(2, 1, 3, 3), "image"), ("b", seeded(3, 1, 3, 3), "map")])


# dots


def dots(figure):
    [axes] = figure.axes
    return (
        axes,
        [line for line in axes.lines if line.get_marker() == "o"],
        [line for line in axes.lines if line.get_marker() != "o"],
    )


def test_seed_dots():
    groups = {"XCNN": {"0": 1.0, "1": 2.0, "2": 6.0}, "CNN alone": {"0": 4.0}}
    figure = drawn(figures.seed_dots(groups, "test accuracy, %"))
    axes, points, bars = dots(figure)
    assert [list(line.get_ydata()) for line in points] == [[1.0, 2.0, 6.0], [4.0]]
    assert points[0].get_xdata() == pytest.approx([-0.05, 0.0, 0.05])
    assert points[1].get_xdata() == pytest.approx([1.0])
    assert [list(line.get_ydata()) for line in bars] == [[3.0, 3.0], [4.0, 4.0]], "means"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["XCNN", "CNN alone"]
    assert axes.get_ylabel() == "test accuracy, %"
    assert not [one for one in axes.collections if isinstance(one, PathCollection)]


def test_seed_dots_with_a_reference_line():
    _, _, bars = dots(drawn(figures.seed_dots({"a": {"0": -1.0}}, "points", zero=0.0)))
    assert list(bars[-1].get_ydata()) == [0, 0]
    assert len(bars) == 2


def test_seed_dots_as_the_notebook_calls_it():
    """Seeds are whole numbers there, and so may values and the line be."""
    drawn(figures.seed_dots({"fall": {0: 1.0, 1: 2}}, "logits", zero=0))


@pytest.mark.parametrize(
    "names",
    [
        ("linear, x", "linear, I(x)", "mlp, x", "mlp, I(x)"),
        ("VGG-16", "XCNN", "three channels", "random generator", "with 1x1"),
        ("ExcitationBP, true parts",) * 6,
    ],
)
def test_labels_of_many_groups_do_not_cover_each_other(names):
    """The notebooks' longest rows of names."""
    groups = {name + " " * k: {"0": 1.0, "1": 2.0} for k, name in enumerate(names)}
    axes, _, _ = dots(drawn(figures.seed_dots(groups, "usable information, bits")))
    boxes = [text.get_window_extent() for text in axes.get_xticklabels()]
    assert all(one.x1 + 4 < two.x0 for one, two in zip(boxes, boxes[1:], strict=False))


# tables


def cells(table):
    """The cells of a table as a Markdown parser sees them, row by row."""
    tokens = MarkdownIt("commonmark").enable("table").parse(table._repr_markdown_())
    assert tokens[0].type == "table_open"
    assert sum(token.type == "table_open" for token in tokens) == 1
    rows = []
    for before, token in zip(tokens, tokens[1:], strict=False):
        if token.type == "tr_open":
            rows.append([])
        elif before.type in ("th_open", "td_open"):
            rows[-1].append("".join(" " if t.type.endswith("break") else t.content for t in token.children))
    assert tokens[-1].type == "table_close", "the table is not broken off"
    return rows


def test_table():
    table = figures.Table(["name", "value"], [["a", 1], ["b", 2.5], ["", None]])
    assert cells(table) == [["name", "value"], ["a", "1"], ["b", "2.5"], ["", "None"]]
    assert cells(figures.Table(["name"], [])) == [["name"]]


@pytest.mark.parametrize("text", ["|x| is large", "a|b", "two\nlines", "an empty\n\nline"])
def test_a_cell_of_any_text_stays_one_cell(text):
    [_, first, second] = cells(figures.Table(["a", "b"], [[text, "right"], ["left", "last"]]))
    assert len(first) == 2
    assert first[1] == "right"
    assert second == ["left", "last"]
    assert re.sub(r"\W+", " ", first[0]) == re.sub(r"\W+", " ", text), "nothing is lost"


def row(**more):
    plain = {
        "id": "toy-order",
        "paper": "toy",
        "where": "table 1",
        "title": "Title",
        "paper_value": 0.71,
        "unit": "points",
        "ours": 1.5,
        "sd": 0.5,
        "seeds": 3,
        "ours_text": "+1.50 ± 0.50 points",
        "data": "mnist",
        "profile": "desk",
        "device": "CPU",
        "rule": "Rule.",
        "verdict": "reproduced",
        "reason": "",
        "stale": [],
        "notebook": "toy",
        "published": True,
    }
    return ledger.Row(**{**plain, **more})


def test_paper_and_ours():
    rows = [row(), row(paper_value=None, ours_text="drawn", verdict="not tested", reason="budget")]
    assert cells(figures.paper_and_ours(one for one in rows)) == [
        ["claim", "paper", "ours", "verdict"],
        ["Title", "0.71 points", "+1.50\u00a0±\u00a00.50 points", "reproduced"],
        ["Title", "", "drawn", "not tested (budget)"],
    ]


def test_use_style_changes_what_follows_and_no_fonts_are_missing():
    figure = drawn(figures.seed_dots({"×, −, ±, ŷ": {"0": 1.0}}, "I(x) · ½"))
    assert figure.get_facecolor() == (1.0, 1.0, 1.0, 1.0)
    [axes] = figure.axes
    assert not axes.spines["top"].get_visible()


def test_spread_is_mean_and_deviation_or_none():
    assert figures.spread({0: 1.0, 1: 3.0}) == "2.0 ± 1.4"
    assert figures.spread({7: 2.0}) == "2"
    assert figures.spread({}) == "none"


def test_many_dots_stay_with_their_group():
    """Thirty dots on either side of a border would else mix with those of the next group."""
    figure = figures.seed_dots({"one": dict.fromkeys(range(30), 1.0), "two": dict.fromkeys(range(30), 2.0)}, "value")
    dots = [line.get_xdata() for line in figure.axes[0].get_lines() if line.get_linestyle() == "None"]
    assert [len(one) for one in dots] == [30, 30]
    assert max(dots[0]) < 0.5 < min(dots[1])


def test_cells_of_differences_in_pairs():
    # mean 1, sd 2, and Student's t with two degrees of freedom, 4.3027, times 2 / sqrt(3)
    assert figures.pair_cells({"a": 1.0, "b": -1.0, "c": 3.0}) == ["+1.0 ± 2.0", "3", "−3.97 to +5.97", "2 of 3"]
    assert figures.pair_cells({"a": 0.5}) == ["+0.5", "1", "none", "1 of 1"]
    assert figures.pair_cells({}) == ["none", "0", "none", "none"]


def test_interval_as_text():
    assert figures.interval({"a": 2.0}) == "+2.000"  # one value has no interval
    assert figures.interval({"a": 1.0, "b": 3.0}) == "+2.000 [−10.706, +14.706]"  # 12.706 standard errors of 1
