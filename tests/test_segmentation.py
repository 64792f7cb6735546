import math

import pytest
import torch

from xai_lib import localisation, segmentation


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def one_map(rows):
    return torch.tensor(rows, dtype=torch.float32)[None, None]


def masks_of(*grids):
    return torch.tensor(grids, dtype=torch.bool)


def random_truth(number=6, height=5, width=7, share=0.4, seed=7):
    masks = torch.rand(number, height, width, generator=seeded(seed)) < share
    masks[:, 2, 3] = True
    return masks


def slow_iou(mask, truth):
    pixels = [(a, b) for one, two in zip(mask, truth, strict=True) for a, b in zip(one, two, strict=True)]
    return sum(a and b for a, b in pixels) / sum(a or b for a, b in pixels)


def slow_mean_iou(masks, truth):
    return sum(slow_iou(*pair) for pair in zip(masks, truth, strict=True)) / len(truth)


def slow_threshold(grid, threshold):
    low, high = min(map(min, grid)), max(map(max, grid))
    return [[high > low and (value - low) / (high - low) >= threshold for value in row] for row in grid]


# threshold_masks


def test_threshold_masks_by_hand():
    grid = one_map([[-2.0, 0.0], [1.0, 2.0]])  # 0, 1/2, 3/4, 1
    assert segmentation.threshold_masks(grid, 0.5).tolist() == [[[False, True], [True, True]]], "reached counts"
    assert segmentation.threshold_masks(grid, 0.51).tolist() == [[[False, False], [True, True]]]
    assert segmentation.threshold_masks(-grid, 0.51).tolist() == [[[True, False], [False, False]]]
    assert not segmentation.threshold_masks(one_map([[3.0, 3.0]]), 0.01).any(), "a constant map keeps nothing"


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.95])
def test_threshold_masks_are_the_slow_form_and_lead_to_the_boxes_of_localisation(threshold):
    maps = torch.randint(-4, 5, (6, 1, 5, 7), generator=seeded()).double()
    maps[2] = 1.5
    found = segmentation.threshold_masks(maps, threshold)
    assert found.tolist() == [slow_threshold(one, threshold) for one in maps[:, 0].tolist()]
    assert torch.equal(found, segmentation.threshold_masks(maps * 4 - 8, threshold)), "scale and level do not count"
    boxes = localisation.threshold_boxes(maps, threshold, closing=False)
    torch.testing.assert_close(localisation.largest_boxes(found), boxes, equal_nan=True)


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.5, 50.0, float("nan")])
def test_threshold_must_lie_between_0_and_1(threshold):
    with pytest.raises(ValueError, match=f"threshold must lie between 0 and 1; got {threshold}"):
        segmentation.threshold_masks(one_map([[0.0, 1.0]]), threshold)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_thresholded_maps_must_be_finite(bad):
    for function in (lambda maps: segmentation.threshold_masks(maps, 0.5), lambda maps: best(maps, maps[:, 0] > 0.5)):
        with pytest.raises(ValueError, match=f"maps must be finite; got {bad}"):
            function(one_map([[1.0, bad]]))


# mask_iou


def test_mask_iou_by_hand():
    truth = masks_of([[1, 1, 0], [0, 0, 0]]).expand(4, -1, -1)
    masks = masks_of([[1, 1, 0], [0, 0, 0]], [[0, 1, 1], [1, 0, 0]], [[0, 0, 1], [1, 1, 1]], [[0, 0, 0], [0, 0, 0]])
    assert segmentation.mask_iou(masks, truth).tolist() == [1, 0.25, 0, 0], "an empty mask has 0"
    assert segmentation.mask_iou(torch.ones(4, 2, 3, dtype=torch.bool), truth).tolist() == pytest.approx([1 / 3] * 4)


def test_mask_iou_is_the_slow_form_and_symmetric():
    masks, truth = random_truth(seed=1), random_truth()
    expected = [slow_iou(*pair) for pair in zip(masks.tolist(), truth.tolist(), strict=True)]
    assert segmentation.mask_iou(masks, truth).tolist() == pytest.approx(expected, abs=1e-12)
    assert torch.equal(segmentation.mask_iou(truth, masks), segmentation.mask_iou(masks, truth))


def test_mask_iou_says_what_is_wrong(plain):
    mask_iou, truth = plain("segmentation").mask_iou, random_truth(2)
    with pytest.raises(ValueError, match=r"masks must be bool of shape \(2, 5, 7\); got torch.bool \(1, 5, 7\)"):
        mask_iou(truth[:1], truth)
    with pytest.raises(ValueError, match=r"masks must be bool of shape \(2, 5, 7\); got torch.float32 \(2, 5, 7\)"):
        mask_iou(truth.float(), truth)
    with pytest.raises(ValueError, match=r"masks must be bool"):
        mask_iou(truth, truth.float())
    with pytest.raises(ValueError, match="truth must not be empty; got no pixel in mask 1"):
        mask_iou(truth, truth & torch.tensor([True, False])[:, None, None])


# best_threshold


best = segmentation.best_threshold


def test_best_threshold_by_hand():
    maps = one_map([[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]])
    truth = masks_of([[0, 0, 0, 1, 1, 1]])
    assert best(maps, truth, (0.1, 0.3, 0.5, 0.7)) == 0.5
    assert best(maps, truth, (0.7, 0.55, 0.45, 0.1)) == 0.55, "of equals the first"
    assert best(maps, truth, (0.45, 0.55)) == 0.45
    assert best(maps, truth) == pytest.approx(0.45), "the first candidate above 0.4 that keeps 0.6"
    assert best(maps, masks_of([[0, 0, 0, 0, 0, 1]]), (0.7, 0.9, 0.3)) == 0.9, "it follows the masks given"


def test_best_threshold_has_the_highest_mean_iou_over_all_images():
    maps, truth = torch.rand(6, 1, 5, 7, generator=seeded()).double(), random_truth()
    maps[:, 0] += 0.8 * truth
    maps[4] = 0.3  # counts as 0, whatever the threshold
    candidates = (0.15, 0.35, 0.5, 0.65, 0.8)
    means = [
        slow_mean_iou([slow_threshold(one, each) for one in maps[:, 0].tolist()], truth.tolist()) for each in candidates
    ]
    assert len(set(means)) == 5
    expected = candidates[means.index(max(means))]
    assert expected not in (candidates[0], candidates[-1])
    assert best(maps, truth, candidates) == best(maps, truth, candidates[::-1]) == expected


def test_best_threshold_needs_candidates_and_maps_as_that_of_localisation():
    maps, truth = one_map([[0.0, 1.0]]), masks_of([[0, 1]])
    with pytest.raises(ValueError, match=r"candidates must hold a threshold; got \(\)"):
        best(maps, truth, ())
    with pytest.raises(ValueError, match="between 0 and 1; got 1.5"):
        best(maps, truth, (0.5, 1.5))
    with pytest.raises(ValueError, match="maps must not all be constant; got 1 of 1 constant"):
        best(maps * 0, truth)


# centred_square


def square_of(height, width, half):
    """Pixels whose centre lies in a square about the centre of the image, as rows of bool."""
    return [
        [abs(y + 0.5 - height / 2) <= half and abs(x + 0.5 - width / 2) <= half for x in range(width)]
        for y in range(height)
    ]


@pytest.mark.parametrize(("height", "width"), [(6, 6), (7, 7), (4, 8), (7, 3), (5, 4), (1, 1)])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_centred_square_is_the_best_of_all_by_the_slow_form(height, width, share):
    truth = torch.rand(5, height, width, generator=seeded(height)) < share
    truth[:, height // 2, width // 2] = True
    squares = [square_of(height, width, k / 4) for k in range(2 * max(height, width) + 1)]
    squares = [one for one in squares if any(map(any, one))]
    means = [slow_mean_iou([one] * 5, truth.tolist()) for one in squares]
    expected = squares[means.index(max(means))]
    found = segmentation.centred_square(truth)
    assert slow_mean_iou([found.tolist()] * 5, truth.tolist()) == pytest.approx(max(means), abs=1e-12)
    assert found.tolist() == expected, "of equals the smallest"


@pytest.mark.parametrize(("side", "inner"), [(6, 2), (6, 4), (6, 6), (7, 1), (7, 3), (7, 7)])
def test_centred_square_finds_a_centred_square(side, inner):
    """Even sides in an even image, odd ones in an odd one."""
    edge = (side - inner) // 2
    truth = torch.zeros(2, side, side, dtype=torch.bool)
    truth[:, edge : side - edge, edge : side - edge] = True
    found = segmentation.centred_square(truth)
    assert torch.equal(found, truth[0])
    assert found.sum() == inner**2


def test_centred_square_in_an_image_that_is_not_square():
    truth = torch.zeros(1, 4, 8, dtype=torch.bool)
    truth[:, :, 2:6] = True
    assert torch.equal(segmentation.centred_square(truth), truth[0])
    assert segmentation.centred_square(torch.ones_like(truth)).all(), "cut off at the border"
    assert torch.equal(segmentation.centred_square(truth.mT), truth[0].mT)


def test_centred_square_is_a_compromise_and_of_equals_the_smallest():
    small, large = (torch.tensor(square_of(4, 4, half)) for half in (0.5, 1.5))  # 4 and 16 pixels
    found = segmentation.centred_square(torch.stack([small, large]))
    assert torch.equal(found, small), "both have (1 + 1/4) / 2"
    assert torch.equal(segmentation.centred_square(torch.stack([small, large, large])), large)


def test_centred_square_needs_an_object_in_each_image():
    with pytest.raises(ValueError, match="truth must not be empty; got no pixel in mask 1"):
        segmentation.centred_square(torch.stack([torch.ones(3, 3), torch.zeros(3, 3)]).bool())


# centred_box


def test_centred_box_by_hand():
    boxes = torch.tensor([[0.0, 0.0, 4.0, 2.0], [10.0, 3.0, 18.0, 4.0]])  # 4 x 2 and 8 x 1, wherever they are
    found = segmentation.centred_box(boxes, height=10, width=20)
    assert found.tolist() == [7, 4.25, 13, 5.75]
    assert segmentation.centred_box(boxes[:1], 3, 5).tolist() == [0.5, 0.5, 4.5, 2.5], "odd sides"
    moved = segmentation.centred_box(boxes + torch.tensor([1.0, 5.0, 1.0, 5.0]), 10, 20)
    assert torch.equal(moved, found), "the place of the boxes does not count"
    whole = torch.tensor([[0.0, 0.0, 20.0, 10.0]])
    assert localisation.box_iou(segmentation.centred_box(whole, 10, 20)[None], whole).tolist() == [1]


def test_centred_box_needs_boxes():
    with pytest.raises(ValueError, match=r"boxes must hold at least one; got shape \(0, 4\)"):
        segmentation.centred_box(torch.zeros(0, 4), 8, 8)


@pytest.mark.parametrize("bad", [[math.nan] * 4, [5.0, 0.0, 2.0, 4.0]])
def test_centred_box_refuses_boxes_that_are_none(bad):
    """A baseline of NaN would count as no box at all, and any map would beat it."""
    with pytest.raises(ValueError, match="boxes must"):
        segmentation.centred_box(torch.tensor([[0.0, 0.0, 4.0, 4.0], bad]), 8, 8)
