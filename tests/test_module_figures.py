import io
import math
from dataclasses import replace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.patches import Circle, Rectangle

from xai_lib import figures, module_figures, srae
from xai_lib.module_figures import Panel

MINUS = "\N{MINUS SIGN}"
STAGES = {"image": "3×8×8", "convolutions": "4×2×2", "Z": "7", "linear": "9", "logits": "3"}


@pytest.fixture(autouse=True)
def style():
    """The book's style for each test, and nothing left open or set afterwards."""
    with plt.rc_context():
        figures.use_style()
        yield
        plt.close("all")


def drawn(figure):
    """Draw a figure to a picture, as wide as a page at most; any warning is an error."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    assert stream.getvalue().startswith(b"\x89PNG")
    assert figure.get_size_inches()[0] <= module_figures.WIDTH + 1e-6
    return figure


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def modules(features=4, decoder=True):
    return srae.Autoencoders(7, (6, 5), features, seeds=(0, 1), decoder=decoder)


def image(height=4, width=4, seed=0):
    return (255 * random(3, height, width, seed=seed)).byte()


def words(axes):
    return {text.get_text().replace("\n", " "): text.get_position() for text in axes.texts if text.get_text()}


def pictures(axes):
    return [one.get_array() for one in axes.images]


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


# drawings from sizes


def test_the_module_hangs_below_its_layer_with_the_sizes_that_it_has():
    [axes] = drawn(module_figures.attachment(STAGES, "Z", modules())).axes
    found = words(axes)
    for x, (name, size) in enumerate(STAGES.items()):
        assert found[name] == (x, 0.1)
        assert found[size][0] == x
    below = {"encoder": 2, "x-features E": 3, "logit again": 4, "7 → 6 → 5": 2, "4": 3, module_figures.LOGIT: 4}
    assert {name: found[name][0] for name in below} == below
    assert all(found[name][1] < -1 for name in below)
    assert len([patch for patch in axes.patches if isinstance(patch, Rectangle)]) == 8
    ends = [(one.xyann, one.xy) for one in axes.texts if not one.get_text()]
    assert ((2, -0.36), (2, -0.89)) in ends
    assert len(ends) == 4 + 2 + 2, "from stage to stage, through the module, down to it and back to the logit"


def test_the_module_may_be_on_another_layer():
    [axes] = module_figures.attachment(STAGES, "convolutions", modules()).axes
    assert words(axes)["encoder"][0] == 1


@pytest.mark.parametrize("layer", ["fc1", "linear", "logits"])
def test_a_layer_that_is_no_stage_or_too_late_is_an_error(layer):
    with pytest.raises(ValueError, match=f"layer must be one of image, convolutions, Z; got '{layer}'"):
        module_figures.attachment(STAGES, layer, modules())


@pytest.mark.parametrize(("decoder", "sizes"), [(True, [7, 6, 5, 4, 5, 6, 7]), (False, [7, 6, 5, 4])])
def test_layers_of_an_autoencoder(decoder, sizes):
    [axes] = drawn(module_figures.autoencoder(modules(decoder=decoder))).axes
    numbers = [text for text in axes.texts if text.get_text().isdigit()]
    assert [int(text.get_text()) for text in numbers] == sizes
    assert [text.get_position()[0] for text in numbers] == list(range(len(sizes)))
    assert [patch.center[0] for patch in axes.patches if isinstance(patch, Circle)] == [3] * 4
    heights = {
        round(one.get_x() + 0.13): round(one.get_height(), 6) for one in axes.patches if isinstance(one, Rectangle)
    }
    assert list(heights) == [x for x in range(len(sizes)) if x != 3]
    assert heights[0] > heights[1] > heights[2]
    assert [heights[x] for x in (4, 5, 6) if decoder] == [heights[x] for x in (2, 1, 0) if decoder]
    assert ("Z again, in part" in words(axes)) == decoder
    assert words(axes)["x-features E"][0] == 3
    assert sum(text.get_text() == "ReLU" for text in axes.texts) == len(sizes) - 1


def test_the_log_penalty_is_its_formula_and_wholly_seen():
    figure = drawn(module_figures.log_penalty([1, 10]))
    assert titles(figure) == ["q = 1", "q = 10"]
    for axes, q in zip(figure.axes, (1, 10), strict=True):
        x, y = (values.tolist() for values in axes.lines[0].get_data())
        assert (x[0], x[-1]) == (-3, 3)
        assert y == pytest.approx([math.log(1 + q * one**2) for one in x], abs=1e-5)
        assert axes.get_ylim()[0] == 0
        assert axes.get_ylim()[1] >= math.log(91)


# maps over images


def test_x_features_come_in_the_order_of_their_contributions_with_these_above():
    given, maps = image(), random(5, 4, 4)
    found = module_figures.by_contribution(given, maps, torch.tensor([0.5, -0.0, 2.345, -1.0, 0.5]))
    assert [panel.title for panel in found] == ["+2.35", "+0.50", "+0.50", "+0.00", f"{MINUS}1.00"]
    assert [maps.tolist().index(panel.map.tolist()) for panel in found] == [2, 0, 4, 1, 3]
    assert all(torch.equal(panel.image, given) for panel in found)


def test_panels_stand_in_rows_with_labels_and_titles():
    one = Panel(image(), title="a")
    rows = [
        ("first", [one, replace(one, title="b"), replace(one, title="")]),
        ("second\nrow", [replace(one, title="c")]),
    ]
    figure = drawn(module_figures.panels(rows))
    assert titles(figure) == ["a", "b", "c"]
    assert [len(axes.images) for axes in figure.axes] == [1, 1, 1, 1, 0, 0]
    assert [list(words(axes)) for axes in figure.axes] == [["first"], [], [], ["second row"], [], []]


def test_many_panels_are_no_wider_than_a_page():
    drawn(module_figures.panels([("some long label", [Panel(image(), random(4, 4), "+1.00")] * 8)]))


@pytest.mark.parametrize("rows", [[], [("empty", [])]])
def test_no_panels_are_an_error(rows):
    with pytest.raises(ValueError, match=f"rows must hold at least one panel; got none in {len(rows)} rows"):
        module_figures.panels(rows)


def test_an_image_without_a_map_keeps_its_colours():
    given = image()
    [shown] = pictures(module_figures.panels([("", [Panel(given)])]).axes[0])
    assert shown.tolist() == given.permute(1, 2, 0).tolist()


def test_a_map_is_orange_over_light_grey_with_the_root_of_its_share_of_the_peak_as_opacity():
    given = torch.tensor([[[0, 255]], [[0, 0]], [[0, 255]]], dtype=torch.uint8)  # black and magenta
    figure = drawn(module_figures.panels([("", [Panel(given, torch.tensor([[0.2, 0.05]]))])]))
    grey, layer = pictures(figure.axes[0])
    assert grey.tolist()[0] == pytest.approx([0.35, 0.35 + 0.65 * (0.299 + 0.114)], abs=1e-5)
    assert layer[0, :, 3].tolist() == pytest.approx([1, 0.5])
    assert [round(255 * one) for one in layer[0, 0, :3].tolist()] == [0xD5, 0x5E, 0]
    [first, second] = figure.axes[0].images
    assert first.get_clim() == (0, 1), "two images of one brightness look alike"


def test_an_all_zero_map_says_so():
    [axes] = drawn(module_figures.panels([("", [Panel(image(), torch.zeros(4, 4))])])).axes
    assert "no map" in words(axes)
    assert len(axes.images) == 1


# parts


def test_labels_and_regions_of_an_image_stand_before_its_maps():
    labels = torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [3.5, 2.5, 1.0]])
    maps = [Panel(image(), random(4, 4, seed=k), f"+{k}.00") for k in range(9)]
    figure = drawn(
        module_figures.nine(image(), labels, torch.tensor([0.0, 0, 4, 4]), maps, ["back", "beak", "left wing"])
    )
    assert len(figure.axes) == 12
    assert titles(figure) == ["image", "part labels", "Voronoi regions", *(panel.title for panel in maps)]
    for axes in figure.axes[1:3]:
        [dots] = [one for one in axes.collections if isinstance(one, PathCollection)]
        assert dots.get_offsets().tolist() == [[0.5, 1.5], [3, 2]], "the hidden part has no place"
    assert [text.get_text() for text in figure.axes[1].texts] == ["1", "3"]
    assert [text.xy for text in figure.axes[1].texts] == [(0.5, 1.5), (3, 2)]
    assert figure.get_supxlabel() == "1 back, 3 left wing"


@pytest.mark.parametrize(
    ("labels", "box", "edges"),
    [
        ([[1, 2], [3, 2]], [0, 0, 4, 4], [[(1.5, r - 0.5), (1.5, r + 0.5)] for r in range(4)]),
        (
            [[2, 2]],
            [1, 1, 2, 2],
            [[(0.5, 0.5), (1.5, 0.5)], [(0.5, 1.5), (1.5, 1.5)], [(0.5, 0.5), (0.5, 1.5)], [(1.5, 0.5), (1.5, 1.5)]],
        ),
    ],
)
def test_borders_lie_between_pixels_of_different_regions(labels, box, edges):
    seen = torch.cat([torch.tensor(labels), torch.ones(len(labels), 1)], 1)
    figure = module_figures.nine(image(), seen, torch.tensor(box).float(), [], ["beak", "tail"])
    [lines] = [one for one in figure.axes[2].collections if isinstance(one, LineCollection)]
    assert [[tuple(end) for end in segment.tolist()] for segment in lines.get_segments()] == edges


def test_bars_are_the_shares_to_one_scale_in_each_column():
    shares = {"pixel": random(3, 2), "Voronoi": 9 * random(3, 3, seed=1)}
    figure = drawn(module_figures.part_bars(shares, ["+1.00", "0", "+0.10"], ["beak", "tail", "context"]))
    columns = [figure.axes[0::2], figure.axes[1::2]]
    for column, (measure, values) in zip(columns, shares.items(), strict=True):
        assert column[0].get_title() == measure
        assert [[bar.get_height() for bar in axes.patches] for axes in column] == values.tolist()
        assert len({axes.get_ylim() for axes in column}) == 1
        assert [label.get_text() for label in column[-1].get_xticklabels()] == ["beak", "tail", "context"]
    assert columns[1][0].get_ylim() != columns[0][0].get_ylim()
    assert [axes.get_ylabel() for axes in columns[0]] == ["+1.00", "0", "+0.10"]


# pairs


def correlation(x, y):
    x, y = (values.double().flatten().tolist() for values in (x, y))
    means = sum(x) / len(x), sum(y) / len(y)
    pairs = [(a - means[0], b - means[1]) for a, b in zip(x, y, strict=True)]
    sizes = math.sqrt(sum(a * a for a, _ in pairs)), math.sqrt(sum(b * b for _, b in pairs))
    return sum(a * b for a, b in pairs) / sizes[0] / sizes[1]


@pytest.mark.parametrize("alike", [True, False])
def test_the_most_and_the_least_alike_pair_are_those_of_the_slow_form(alike):
    maps = random(4, 5, 3, 3)
    each = {(m, i, j): correlation(maps[m, i], maps[m, j]) for m in range(4) for i in range(5) for j in range(i + 1, 5)}
    best = (max if alike else min)(each, key=each.get)
    *found, value = module_figures.extreme_pair(maps, alike)
    assert tuple(found) == best
    assert value == pytest.approx(each[best], abs=1e-6)


def test_pairs_lie_in_one_image_and_constant_maps_are_in_none():
    left, right = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    none = torch.zeros(1, 2)
    maps = torch.stack([torch.stack([none, left, none]), torch.stack([left, none, right])])
    for alike in (True, False):
        assert module_figures.extreme_pair(maps, alike) == pytest.approx((1, 0, 2, -1))
    with pytest.raises(ValueError, match="two that are not constant; got none of 1"):
        module_figures.extreme_pair(maps[:1], True)


def test_of_equal_pairs_the_first_is_chosen():
    maps = random(1, 1, 2, 2).expand(2, 3, 2, 2)
    assert module_figures.extreme_pair(maps, True)[:3] == module_figures.extreme_pair(maps, False)[:3] == (0, 0, 1)
