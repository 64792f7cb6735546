import math
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import ops

from xai_lib import localisation

NAN = float("nan")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def one_map(rows):
    return torch.tensor(rows, dtype=torch.float32)[None, None]


def one_mask(rows):
    return torch.tensor(rows, dtype=torch.bool)[None]


def random_boxes(number, height, width, seed=0):
    """Boxes with whole edges, at least one pixel large."""
    draw = torch.rand(number, 4, generator=seeded(seed))
    low = (draw[:, :2] * torch.tensor([width, height])).floor()
    high = low + 1 + (draw[:, 2:] * (torch.tensor([width, height]) - low)).floor()
    return torch.cat([low, high.minimum(torch.tensor([width, height]))], 1)


def random_truth(number=6, height=8, width=9, share=0.3):
    masks = torch.rand(number, height, width, generator=seeded(7)) < share
    masks[:, 2, 3] = True
    return masks


def same(found, expected):
    torch.testing.assert_close(
        found.double(),
        torch.tensor(expected, dtype=torch.float64),
        atol=1e-12,
        rtol=1e-12,
        equal_nan=True,
        check_device=False,
    )


@pytest.fixture(scope="module")
def quantus():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("quantus", reason="the comparison with Quantus needs it")


def by_quantus(metric, maps, masks):
    """Scores of a metric of Quantus, which takes numpy, wants images and a model, and here uses neither."""
    images, labels = np.zeros(maps.shape, np.float32), np.zeros(len(maps), int)
    score = metric(abs=False, normalise=False, disable_warnings=True)
    found = score(model=None, x_batch=images, y_batch=labels, a_batch=maps.numpy(), s_batch=masks[:, None].numpy())
    return np.array(found, dtype=float).tolist()


# slow forms: nested loops on Python floats


def slow_pointing(grid, mask, tolerance):
    pixels = [(y, x) for y in range(len(grid)) for x in range(len(grid[0]))]
    top = max(grid[y][x] for y, x in pixels)
    if top == min(grid[y][x] for y, x in pixels):
        return NAN
    maxima = [(y, x) for y, x in pixels if grid[y][x] == top]
    hits = [any(mask[v][u] and math.hypot(y - v, x - u) <= tolerance for v, u in pixels) for y, x in maxima]
    return sum(hits) / len(hits)


def slow_inside(grid, mask):
    inside = total = 0.0
    for row, marks in zip(grid, mask, strict=True):
        for value, mark in zip(row, marks, strict=True):
            total += max(value, 0.0)
            inside += max(value, 0.0) * mark
    return inside / total if total else NAN


def slow_window(mask, rule):
    """`any` or `all` of the 3x3 pixels around each, as far as they lie in the image."""
    height, width = len(mask), len(mask[0])

    def window(y, x):
        rows, columns = range(max(y - 1, 0), min(y + 2, height)), range(max(x - 1, 0), min(x + 2, width))
        return [mask[v][u] for v in rows for u in columns]

    return [[rule(window(y, x)) for x in range(width)] for y in range(height)]


def slow_largest_box(mask):
    """Flood fill; (x0, y0, x1, y1) of the largest component."""
    height, width = len(mask), len(mask[0])
    left = [(y, x) for y in range(height) for x in range(width) if mask[y][x]]
    best = []
    while left:
        part, front = [], [left.pop(0)]
        while front:
            y, x = front.pop()
            part.append((y, x))
            near = [one for one in left if abs(one[0] - y) <= 1 and abs(one[1] - x) <= 1]
            left = [one for one in left if one not in near]
            front += near
        best = max(best, part, key=len)  # the first of equals
    if not best:
        return [NAN] * 4
    rows, columns = [y for y, _ in best], [x for _, x in best]
    return [min(columns), min(rows), max(columns) + 1, max(rows) + 1]


def slow_threshold_box(grid, threshold, closing):
    values = [value for row in grid for value in row]
    low, high = min(values), max(values)
    if low == high:
        return [NAN] * 4
    mask = [[(value - low) / (high - low) >= threshold for value in row] for row in grid]
    return slow_largest_box(slow_window(slow_window(mask, any), all) if closing else mask)


# boxes and masks


def test_box_masks_by_hand():
    assert localisation.box_masks(torch.tensor([[3.0, 5, 4, 6]]), 8, 9)[0].nonzero().tolist() == [[5, 3]]
    assert localisation.box_masks(torch.tensor([[0.0, 0, 9, 8]]), 8, 9).all()
    halves = torch.tensor([[0.0, 0, 1.5, 2], [1.5, 0, 3, 2]])  # the centre of column 1 lies on the common edge
    left, right = localisation.box_masks(halves, 2, 3)
    assert left.tolist() == [[True, False, False]] * 2, "not on the right edge"
    assert torch.equal(left, ~right), "boxes side by side share no pixel and leave none out"


def test_box_masks_are_the_slow_form():
    boxes = random_boxes(40, 7, 5)
    boxes += torch.rand(boxes.shape, generator=seeded(3)) * torch.tensor([0.4, 0.4, -0.4, -0.4])
    for box, mask in zip(boxes.tolist(), localisation.box_masks(boxes, 7, 5), strict=True):
        x0, y0, x1, y1 = box
        expected = [[x0 <= x + 0.5 < x1 and y0 <= y + 0.5 < y1 for x in range(5)] for y in range(7)]
        assert mask.tolist() == expected
    assert localisation.box_masks(torch.zeros(0, 4), 7, 5).shape == (0, 7, 5)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([-1, 0, 2, 2], r"boxes must lie in the image of 5x7; got \[-1.0, 0.0, 2.0, 2.0\]"),
        ([0, -0.5, 2, 2], r"boxes must lie in the image of 5x7; got \[0.0, -0.5, 2.0, 2.0\]"),
        ([0, 0, 5.5, 2], r"boxes must lie in the image of 5x7; got \[0.0, 0.0, 5.5, 2.0\]"),
        ([0, 0, 2, 8], r"boxes must lie in the image of 5x7; got \[0.0, 0.0, 2.0, 8.0\]"),
        ([2, 0, 2, 2], r"boxes must have x0 < x1 and y0 < y1; got \[2.0, 0.0, 2.0, 2.0\]"),
        ([0, 3, 2, 2], r"boxes must have x0 < x1 and y0 < y1; got \[0.0, 3.0, 2.0, 2.0\]"),
        ([0, 0, NAN, 2], r"boxes must have x0 < x1 and y0 < y1; got \[0.0, 0.0, nan, 2.0\]"),
        ([0, 0, math.inf, 2], r"boxes must have x0 < x1 and y0 < y1; got \[0.0, 0.0, inf, 2.0\]"),
        ([1.6, 0, 2.4, 2], r"boxes must hold the centre of a pixel; got \[1.6.*, 0.0, 2.4.*, 2.0\]"),
    ],
)
def test_box_masks_check_their_boxes(box, message):
    boxes = torch.tensor([[0.0, 0, 5, 7], [float(one) for one in box]])
    with pytest.raises(ValueError, match=message):
        localisation.box_masks(boxes, 7, 5)


def test_area_share_by_hand():
    masks = torch.cat([one_mask([[1, 0], [0, 0]]), one_mask([[1, 1], [1, 1]]), one_mask([[1, 0], [1, 0]])])
    same(localisation.area_share(masks), [0.25, 1.0, 0.5])
    with pytest.raises(ValueError, match="masks must not be empty; got no pixel in mask 1"):
        localisation.area_share(torch.stack([masks[0], ~masks[1]]))


def test_is_constant_is_exact():
    maps = torch.cat([torch.full((1, 1, 2, 2), 0.1), torch.zeros(1, 1, 2, 2), one_map([[1, 1], [1, 1.0000001]])])
    assert localisation.is_constant(maps).tolist() == [True, True, False]
    assert localisation.is_constant(torch.zeros(0, 1, 2, 2)).tolist() == []


# the pointing game


def test_pointing_game_by_hand():
    grid, masks = one_map([[0, 5, 0], [0, 0, 0], [-9, 0, 1]]), [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    same(localisation.pointing_game(grid, one_mask(masks)), [1.0])
    same(localisation.pointing_game(-grid, one_mask(masks)), [0.0])
    same(localisation.pointing_game(grid - 100, one_mask(masks)), [1.0])


def test_pointing_game_takes_the_mean_over_tied_maxima():
    grid = one_map([[5, 0, 5], [0, 0, 0], [5, 0, 5]])
    for rows, expected in (
        ([[1, 0, 0], [0, 0, 0], [0, 0, 0]], 0.25),
        ([[0, 0, 0], [0, 0, 0], [0, 0, 1]], 0.25),
        ([[1, 1, 1], [1, 1, 1], [0, 0, 1]], 0.75),
        ([[0, 1, 0], [1, 1, 1], [0, 1, 0]], 0.0),
    ):
        same(localisation.pointing_game(grid, one_mask(rows)), [expected])


def test_pointing_game_tolerance_is_a_circle():
    grid, mask = torch.zeros(1, 1, 9, 9), torch.zeros(1, 9, 9, dtype=torch.bool)
    grid[0, 0, 4, 4], mask[0, 1, 0] = 1, True  # 3 up and 4 left: distance 5
    same(localisation.pointing_game(grid, mask, 5), [1.0])
    same(localisation.pointing_game(grid, mask, 4.99), [0.0])
    same(localisation.pointing_game(grid, mask), [0.0])


@pytest.mark.parametrize("tolerance", [0, 1, 1.5, 2, 3])
def test_pointing_game_is_the_slow_form(tolerance):
    maps = torch.randint(0, 12, (40, 1, 6, 7), generator=seeded()).float()  # ties
    maps[3] = 4
    masks = random_truth(40, 6, 7, 0.1)
    expected = [
        slow_pointing(grid[0].tolist(), mask.tolist(), tolerance) for grid, mask in zip(maps, masks, strict=True)
    ]
    assert len({round(one, 6) for one in expected if one == one}) > 3 or tolerance > 1, "shares between 0 and 1"
    same(localisation.pointing_game(maps, masks, tolerance), expected)


def test_pointing_game_keeps_its_value_under_scale_shift_and_one_by_one():
    maps, masks = torch.randn(20, 1, 8, 9, generator=seeded()), random_truth(20)
    found = localisation.pointing_game(maps, masks, 1)
    assert 0 < found.mean() < 1
    assert torch.equal(localisation.pointing_game(maps * 4 - 3, masks, 1), found)
    alone = [localisation.pointing_game(maps[k : k + 1], masks[k : k + 1], 1) for k in range(20)]
    assert torch.equal(torch.cat(alone), found)


def test_pointing_game_of_random_maps_is_at_chance():
    maps, masks = torch.randn(4000, 1, 8, 9, generator=seeded()), random_truth(1).expand(4000, -1, -1)
    chance = localisation.area_share(masks[:1]).item()
    assert localisation.pointing_game(maps, masks).mean().item() == pytest.approx(chance, abs=0.03)
    assert localisation.inside_share(maps, masks).mean().item() == pytest.approx(chance, abs=0.005)


def test_a_constant_map_is_neither_hit_nor_miss():
    maps = torch.cat([torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), -3.0), one_map([[1, 0], [0, 0]])])
    found = localisation.pointing_game(maps, one_mask([[1, 0], [0, 0]]).expand(3, -1, -1), 5)
    same(found, [NAN, NAN, 1.0])


@pytest.mark.parametrize("tolerance", [-1, NAN, math.inf])
def test_pointing_game_checks_its_tolerance(tolerance):
    with pytest.raises(ValueError, match=f"tolerance must be 0 or more pixels; got {tolerance}"):
        localisation.pointing_game(torch.rand(1, 1, 2, 2), one_mask([[1, 0], [0, 0]]), tolerance)


# the share inside


def test_inside_share_by_hand():
    grid, mask = one_map([[3, 1], [-7, 0]]), one_mask([[1, 0], [1, 0]])
    same(localisation.inside_share(grid, mask), [0.75])
    same(localisation.inside_share(-grid, mask), [1.0])
    same(localisation.inside_share(grid, ~mask), [0.25])
    same(localisation.inside_share(grid - 1, mask), [1.0])  # a shift moves relevance: no invariant


def test_inside_share_is_the_slow_form():
    maps, masks = torch.randn(30, 1, 8, 9, generator=seeded()), random_truth(30)
    expected = [slow_inside(grid[0].tolist(), mask.tolist()) for grid, mask in zip(maps, masks, strict=True)]
    found = localisation.inside_share(maps, masks)
    same(found, expected)
    same(localisation.inside_share(maps * 8, masks), expected)
    same(localisation.inside_share(maps, masks) + localisation.inside_share(maps, ~masks), [1.0] * 30)


def test_inside_share_without_positive_relevance_is_not_defined():
    maps = torch.cat([torch.zeros(1, 1, 2, 2), one_map([[-1, -2], [0, -3]]), torch.ones(1, 1, 2, 2)])
    masks = one_mask([[1, 0], [0, 0]]).expand(3, -1, -1)
    same(localisation.inside_share(maps, masks), [NAN, NAN, 0.25])


# boxes from maps


def test_largest_boxes_by_hand():
    corner = one_mask([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1]])  # two that touch at a corner, first
    ring = one_mask([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]])
    found = localisation.largest_boxes(torch.cat([corner, ring, ~ring & False]))
    same(found, [[0.0, 0, 2, 2], [0, 0, 3, 3], [NAN] * 4])
    assert localisation.largest_boxes(torch.zeros(0, 2, 2, dtype=torch.bool)).shape == (0, 4)


def test_threshold_boxes_by_hand():
    grid = one_map([[0, 0, 0, 0, 0], [0, 10, 5, 0, 4], [0, 0, 0, 0, 0], [9, 0, 0, 0, 0]])
    for threshold, expected in ((0.5, [1, 1, 3, 2]), (0.51, [1, 1, 2, 2]), (0.95, [1, 1, 2, 2])):
        same(localisation.threshold_boxes(grid, threshold, closing=False), [expected])
    same(localisation.threshold_boxes(grid, 0.4, closing=False), [[1, 1, 3, 2]])
    same(localisation.threshold_boxes(-grid, 0.999, closing=False), [[0, 0, 5, 4]])


def test_closing_by_hand():
    grid = torch.zeros(1, 1, 12, 14)
    grid[0, 0, 4, [3, 6, 10]] = 1  # gaps of two and of three pixels
    same(localisation.threshold_boxes(grid, 0.5), [[3, 4, 7, 5]])
    same(localisation.threshold_boxes(grid, 0.5, closing=False), [[3, 4, 4, 5]])
    same(localisation.threshold_boxes(grid[:, :, 3:], 0.5), [[3, 0, 7, 2]])  # one pixel from the border
    same(localisation.threshold_boxes(grid[:, :, 2:], 0.5), [[3, 2, 7, 3]])


@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.8, 0.95])
def test_threshold_boxes_are_the_slow_form(threshold, closing):
    maps = torch.randn(40, 1, 9, 11, generator=seeded(), dtype=torch.float64)
    maps[:5] = 2
    expected = [slow_threshold_box(grid[0].tolist(), threshold, closing) for grid in maps]
    same(localisation.threshold_boxes(maps, threshold, closing), expected)


def test_closing_is_opencvs():
    """Dilation and erosion as in the authors' code, borders included."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV, of the extra 'book'")
    maps = torch.randn(60, 1, 9, 11, generator=seeded())
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    raw = ((maps.double() - low) / (high.double() - low) >= 0.6)[:, 0]
    kernel = np.ones((3, 3), np.uint8)
    closed = [cv2.erode(cv2.dilate(one, kernel), kernel) for one in raw.numpy().astype(np.uint8)]
    expected = localisation.largest_boxes(torch.from_numpy(np.array(closed)) > 0)
    assert torch.equal(localisation.threshold_boxes(maps, 0.6), expected)
    assert not torch.equal(localisation.threshold_boxes(maps, 0.6, closing=False), expected)


def test_threshold_boxes_keep_their_value_under_scale_and_shift():
    maps = torch.randint(-9, 9, (20, 1, 9, 9), generator=seeded()).float()
    assert torch.equal(localisation.threshold_boxes(maps * 4 + 64, 0.6), localisation.threshold_boxes(maps, 0.6))


def test_threshold_boxes_of_a_constant_map_are_not_defined():
    maps = torch.cat([torch.zeros(1, 1, 3, 3), torch.full((1, 1, 3, 3), 2.0), one_map([[1, 0, 0], [0] * 3, [0] * 3])])
    same(localisation.threshold_boxes(maps, 0.5), [[NAN] * 4, [NAN] * 4, [0, 0, 1, 1]])
    assert localisation.threshold_boxes(maps[:0], 0.5).shape == (0, 4)


def test_maps_that_require_gradients_are_taken():
    maps = torch.rand(2, 1, 4, 4, generator=seeded()).requires_grad_()
    assert torch.equal(localisation.threshold_boxes(maps, 0.5), localisation.threshold_boxes(maps.detach(), 0.5))


# intersection over union


def test_box_iou_by_hand():
    truth = torch.tensor([[0.0, 0, 4, 4]]).expand(5, 4)
    boxes = torch.tensor([[0.0, 0, 4, 4], [2, 2, 6, 6], [4, 0, 8, 4], [1, 1, 3, 3], [NAN] * 4])
    same(localisation.box_iou(boxes, truth), [1.0, 4 / 28, 0.0, 0.25, NAN])


def test_box_iou_counts_pixels_and_is_symmetric():
    boxes, truth = random_boxes(60, 7, 9), random_boxes(60, 7, 9, seed=1)
    one, two = (localisation.box_masks(each, 7, 9) for each in (boxes, truth))
    expected = (one & two).sum((1, 2)).double() / (one | two).sum((1, 2))
    found = localisation.box_iou(boxes, truth)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert torch.equal(found, localisation.box_iou(truth, boxes))
    torch.testing.assert_close(found, localisation.box_iou(boxes * 3 + 5, truth * 3 + 5), atol=1e-12, rtol=0)


def test_box_iou_is_torchvisions():
    boxes, truth = random_boxes(50, 30, 40).double() + 0.25, random_boxes(50, 30, 40, seed=1).double()
    torch.testing.assert_close(
        localisation.box_iou(boxes, truth), ops.box_iou(boxes, truth).diagonal(), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("row", [[1.0, 1, 1, 2], [0.0, 2, 1, 1], [NAN, 0, 1, 1], [0.0, 0, math.inf, 1]])
def test_box_iou_checks_both_boxes(row):
    good, bad = torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([row])
    got = r"must have x0 < x1 and y0 < y1; got \[.*\]"
    with pytest.raises(ValueError, match=f"boxes {got}"):
        localisation.box_iou(bad, good)
    with pytest.raises(ValueError, match=f"truth {got}"):
        localisation.box_iou(good, bad)


def test_only_the_box_found_may_be_missing(plain):
    none, good = torch.full((1, 4), NAN), torch.tensor([[0.0, 0, 1, 1]])
    with pytest.raises(ValueError, match=r"truth must have x0 < x1 and y0 < y1; got \[nan, nan, nan, nan\]"):
        localisation.box_iou(good, none)
    with pytest.raises(ValueError, match=r"boxes must be one box .* per image; got shape \(2, 4\)"):
        plain("localisation").box_iou(good.expand(2, 4), good)


# the threshold


def pyramids(boxes, height=20, width=24):
    """Maps of 1 in the box, 0.6 in a frame of two pixels around it, 0 elsewhere."""
    edges = torch.tensor([width, height, width, height])
    wide = (boxes + torch.tensor([-2.0, -2, 2, 2])).clamp(min=0).minimum(edges)
    inner, outer = (localisation.box_masks(each, height, width)[:, None].float() for each in (boxes, wide))
    return 0.6 * outer + 0.4 * inner


def test_best_threshold_by_hand():
    truth = torch.tensor([[4.0, 5, 12, 11], [8, 3, 15, 15]])
    maps = pyramids(truth)
    assert localisation.best_threshold(maps, truth) == 0.65, "the first above 0.6"
    assert localisation.best_threshold(maps, truth, (0.9, 0.7, 0.1)) == 0.9, "the first of equals"
    assert localisation.best_threshold(maps, truth + torch.tensor([-2.0, -2, 2, 2])) == 0.05
    assert localisation.best_threshold(maps, truth, [0.2]) == 0.2


def test_best_threshold_is_the_slow_form():
    maps = torch.randn(25, 1, 9, 11, generator=seeded(), dtype=torch.float64)
    maps = nn.functional.avg_pool2d(maps, 3, 1, 1)
    maps[4] = 0.5
    truth, candidates = random_boxes(25, 9, 11), (0.2, 0.35, 0.5, 0.65, 0.8)
    for closing in (False, True):
        means = []
        for threshold in candidates:
            boxes = [slow_threshold_box(grid[0].tolist(), threshold, closing) for grid in maps]
            total = 0.0
            for box, one in zip(boxes, truth, strict=True):
                if box[0] == box[0]:  # a constant map counts as 0
                    total += ops.box_iou(torch.tensor([box]).float(), one[None]).item()
            means.append(total / 25)
        assert len(set(means)) == len(means)
        expected = candidates[means.index(max(means))]
        assert localisation.best_threshold(maps, truth, candidates, closing) == expected


def test_a_constant_map_counts_as_a_failure_at_each_threshold():
    """A mean with NaN could not be compared."""
    truth = torch.tensor([[4.0, 5, 12, 11], [8, 3, 15, 15]])
    maps = pyramids(truth)
    maps[1] = 0
    assert localisation.best_threshold(maps, truth) == 0.65


def test_best_threshold_checks_its_arguments(plain):
    maps, truth = torch.rand(2, 1, 4, 4, generator=seeded()), torch.tensor([[0.0, 0, 2, 2], [1, 1, 4, 4]])
    for candidates, got in (((0.5, 1.0), 1.0), ((0.0,), 0.0), ((NAN,), "nan")):
        with pytest.raises(ValueError, match=f"candidates must lie between 0 and 1; got {got}"):
            localisation.best_threshold(maps, truth, candidates)
    with pytest.raises(ValueError, match=r"candidates must hold a threshold; got \(\)"):
        localisation.best_threshold(maps, truth, ())
    with pytest.raises(ValueError, match="maps must not all be constant; got 2 of 2 constant"):
        localisation.best_threshold(maps * 0, truth)
    with pytest.raises(ValueError, match=r"truth_boxes must lie in the image of 4x4; got \[1.0, 1.0, 4.0, 5.0\]"):
        localisation.best_threshold(maps, truth + torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1]]))
    with pytest.raises(ValueError, match=r"truth_boxes must be one box .* per image; got shape \(1, 4\)"):
        plain("localisation").best_threshold(maps, truth[:1])


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.5, 50.0, NAN])
def test_threshold_boxes_check_their_threshold(threshold):
    with pytest.raises(ValueError, match=f"threshold must lie between 0 and 1; got {threshold}"):
        localisation.threshold_boxes(torch.rand(1, 1, 2, 2), threshold)


# GrabCut


@pytest.fixture
def cv2():
    return pytest.importorskip("cv2", reason="OpenCV, of the extra 'book'")


def discs(channels=3, size=40):
    """Noisy images of a bright disc on a dark ground, maps that peak inside it off its centre, and the discs."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    centres = torch.tensor([[14, 18], [24, 22], [20, 13]])
    distance = ((y - centres[:, :1, None]) ** 2 + (x - centres[:, 1:, None]) ** 2).double().sqrt()
    truth = distance <= 9
    colour = torch.tensor([200, 90, 60])[:channels, None, None]
    images = torch.where(truth[:, None], colour, torch.tensor([20, 60, 110])[:channels, None, None])
    noise = torch.randint(-12, 13, images.shape, generator=seeded())
    off = ((y - centres[:, :1, None] - 2) ** 2 + (x - centres[:, 1:, None] + 2) ** 2).double()
    return (images + noise).clamp(0, 255).to(torch.uint8), torch.exp(-off / 60)[:, None].float(), truth


@pytest.mark.parametrize("channels", [1, 3])
def test_grabcut_finds_the_whole_disc_from_a_map_of_its_middle(cv2, channels):
    images, maps, truth = discs(channels)
    found = localisation.grabcut_masks(images, maps)
    overlap = (found & truth).sum((1, 2)) / (found | truth).sum((1, 2))
    assert overlap.min() > 0.95
    seeds = maps[:, 0] > maps[:, 0].flatten(1).quantile(0.95, dim=1)[:, None, None]
    assert (seeds & truth).sum((1, 2)).div((seeds | truth).sum((1, 2))).max() < 0.5, "what the map alone says"
    boxes = localisation.grabcut_boxes(images, maps)
    rows, columns = truth.any(2), truth.any(1)
    edges = [(one.float().argmax(1), 40 - one.flip(1).float().argmax(1)) for one in (columns, rows)]
    expected = torch.stack([edges[0][0], edges[1][0], edges[0][1], edges[1][1]], 1)
    assert localisation.box_iou(boxes, expected.float()).min() > 0.9


def test_grabcut_depends_on_the_image_and_its_map_alone(cv2):
    noise = nn.functional.avg_pool2d(torch.randn(6, 3, 20, 20, generator=seeded()), 11, 1, 5)
    images = ((noise - noise.amin()) / (noise.amax() - noise.amin()) * 255).to(torch.uint8)  # nothing clear to cut
    maps = nn.functional.avg_pool2d(torch.randn(6, 1, 20, 20, generator=seeded(1)), 7, 1, 3)
    found = localisation.grabcut_masks(images, maps)
    cv2.setRNGSeed(17)
    for order in ([5, 4, 3, 2, 1, 0], [3]):
        assert torch.equal(localisation.grabcut_masks(images[order], maps[order]), found[order])
    assert torch.equal(localisation.grabcut_masks(images, maps * 4), found), "scale of the map"


def test_grabcut_keeps_its_seeds(cv2):
    images = torch.randint(0, 256, (3, 3, 20, 20), generator=seeded(), dtype=torch.uint8)
    maps = torch.randn(3, 1, 20, 20, generator=seeded(1))
    found = localisation.grabcut_masks(images, maps, foreground=0.9, background=0.6, iterations=2)
    for grid, mask in zip(maps[:, 0], found, strict=True):
        assert mask[grid > grid.flatten().quantile(0.9)].all()
        assert not mask[grid < grid.flatten().quantile(0.6)].any()


@pytest.mark.parametrize("ones", [1, 2, 200, 398, 399])
def test_grabcut_takes_maps_with_ties(cv2, ones):
    """Zeros with some ones: a quantile is a tie, and the ones are the object all the same."""
    images = torch.randint(0, 256, (1, 3, 20, 20), generator=seeded(), dtype=torch.uint8)
    maps = (torch.arange(400) < ones).float().view(1, 1, 20, 20)
    found = localisation.grabcut_masks(images, maps)
    assert found[maps[:, 0] == 1].all()
    assert localisation.grabcut_boxes(images, maps).isfinite().all()


def test_grabcut_leaves_ties_with_the_low_quantile_undecided(cv2):
    """A map of zeros but for the middle of the disc: its zeros are not surely background, so that the disc is found."""
    images, maps, truth = discs()
    maps = (maps > maps.flatten(1).quantile(0.97, dim=1).view(-1, 1, 1, 1)).float()
    found = localisation.grabcut_masks(images, maps)
    assert ((found & truth).sum((1, 2)) / (found | truth).sum((1, 2))).min() > 0.95


def test_grabcut_of_a_constant_map_is_not_defined(cv2):
    images, maps, _ = discs()
    maps[1] = 0.5
    found, boxes = localisation.grabcut_masks(images, maps), localisation.grabcut_boxes(images, maps)
    assert found.flatten(1).any(1).tolist() == [True, False, True]
    assert boxes.isnan().all(1).tolist() == [False, True, False]
    assert localisation.grabcut_masks(images[:0], maps[:0]).shape == (0, 40, 40)


def test_grabcut_without_opencv_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    images, maps, _ = discs()
    with pytest.raises(
        ImportError, match=r"^GrabCut needs OpenCV, of the extra 'book': pip install 'xai_lib\[book\]'$"
    ):
        localisation.grabcut_masks(images, maps)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"foreground": 1.0}, "foreground must lie between 0 and 1; got 1.0"),
        ({"foreground": 0.0}, "foreground must lie between 0 and 1; got 0.0"),
        ({"background": 0.0}, "background must lie between 0 and 0.95; got 0.0"),
        ({"background": 0.96}, "background must lie between 0 and 0.95; got 0.96"),
        ({"foreground": NAN}, "foreground must lie between 0 and 1; got nan"),
        ({"iterations": 0}, "iterations must be at least 1; got 0"),
    ],
)
def test_grabcut_checks_its_settings(settings, message):
    images, maps, _ = discs()
    for function in (localisation.grabcut_masks, localisation.grabcut_boxes):
        with pytest.raises(ValueError, match=message):
            function(images, maps, **settings)


@pytest.mark.parametrize("images", [torch.zeros(3, 2, 40, 40), torch.zeros(3, 3, 40, 41), torch.zeros(2, 3, 40, 40)])
def test_grabcut_checks_its_images(plain, images):
    maps = discs()[1]
    with pytest.raises(ValueError, match=r"images must be uint8 \(3, 1, 40, 40\) or \(3, 3, 40, 40\); got torch.uint8"):
        plain("localisation").grabcut_masks(images.to(torch.uint8), maps)
    with pytest.raises(ValueError, match=r"images must be uint8 .* got torch.float32 \(3, 3, 40, 40\)"):
        plain("localisation").grabcut_masks(torch.zeros(3, 3, 40, 40), maps)


# what all measures check


def measures(module):
    mask, images = one_mask([[1, 0], [0, 0]]), torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    return {
        "is_constant": module.is_constant,
        "pointing_game": lambda maps: module.pointing_game(maps, mask),
        "inside_share": lambda maps: module.inside_share(maps, mask),
        "threshold_boxes": lambda maps: module.threshold_boxes(maps, 0.5),
        "best_threshold": lambda maps: module.best_threshold(maps, torch.tensor([[0.0, 0, 1, 1]])),
        "grabcut_masks": lambda maps: module.grabcut_masks(images, maps),
    }


@pytest.mark.parametrize("name", measures(localisation))
def test_maps_are_checked(plain, name):
    function = measures(plain("localisation"))[name]
    for value in (NAN, math.inf, -math.inf):
        with pytest.raises(ValueError, match=f"maps must be finite; got {value}"):
            function(one_map([[0, 1], [2, value]]))
    for shape in [(1, 2, 2), (1, 3, 2, 2), (1, 1, 0, 2)]:
        with pytest.raises(ValueError, match=r"maps must be float heatmaps \(N, 1, H, W\); got torch.float32 \("):
            function(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"maps must be float heatmaps .* got torch.uint8 \(1, 1, 2, 2\)"):
        function(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))


@pytest.mark.parametrize("name", ["pointing_game", "inside_share"])
def test_masks_are_checked(plain, name):
    function, maps = getattr(plain("localisation"), name), torch.rand(2, 1, 2, 2, generator=seeded())
    masks = one_mask([[1, 0], [0, 1]]).expand(2, -1, -1)
    assert function(maps, masks).shape == (2,)
    with pytest.raises(ValueError, match="masks must not be empty; got no pixel in mask 1"):
        function(maps, torch.stack([masks[0], masks[0] & False]))
    for bad in (masks[:1], masks[:, :1], masks[:, None], masks.float()):
        with pytest.raises(ValueError, match=r"masks must be bool \(N, H, W\), one per image; got torch.* \("):
            function(maps, bad)


def test_largest_boxes_and_area_share_check_their_masks(plain):
    for function in (plain("localisation").largest_boxes, plain("localisation").area_share):
        for bad in (torch.ones(1, 1, 2, 2, dtype=torch.bool), torch.ones(1, 2, 2)):
            with pytest.raises(ValueError, match=r"masks must be bool \(N, H, W\), one per image; got torch"):
                function(bad)


def test_no_images_give_no_results():
    maps, masks = torch.zeros(0, 1, 3, 3), torch.zeros(0, 3, 3, dtype=torch.bool)
    assert localisation.pointing_game(maps, masks, 2).shape == (0,)
    assert localisation.inside_share(maps, masks).shape == (0,)
    assert localisation.box_iou(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


# Quantus


def test_pointing_game_is_quantus(quantus):
    """Without ties: with ties Quantus calls it a hit where any of the maxima hits."""
    maps, masks = torch.randn(40, 1, 8, 9, generator=seeded()), random_truth(40)
    found = localisation.pointing_game(maps, masks)
    assert 0 < found.mean() < 1
    same(found, by_quantus(quantus.PointingGame, maps, masks))


def test_pointing_game_differs_from_quantus_on_ties_and_constant_maps(quantus):
    maps = torch.cat([one_map([[1, 0, 1], [0, 0, 0], [1, 0, 1]]), torch.zeros(1, 1, 3, 3)])
    masks = one_mask([[1, 0, 0], [0, 0, 0], [0, 0, 0]]).expand(2, -1, -1)
    assert by_quantus(quantus.PointingGame, maps, masks) == [1, 1]
    same(localisation.pointing_game(maps, masks), [0.25, NAN])


def test_inside_share_is_quantus_on_maps_without_negative_relevance(quantus):
    """Quantus divides by the sum of all relevance, so that signed maps leave 0 to 1; ours counts the positive."""
    maps, masks = torch.randn(40, 1, 8, 9, generator=seeded()), random_truth(40)
    expected = by_quantus(quantus.RelevanceMassAccuracy, maps.clamp(min=0), masks)
    torch.testing.assert_close(
        localisation.inside_share(maps, masks), torch.tensor(expected).double(), atol=1e-6, rtol=0
    )
    signed = torch.tensor(by_quantus(quantus.RelevanceMassAccuracy, maps, masks))
    assert ((signed < 0) | (signed > 1)).any()
