"""Weakly supervised segmentation and boxes without a network: what thresholded maps are held against.

Masks of thresholded maps, their overlap with the truth, and two baselines that ignore the image: one centred square and
one centred box, both fitted on training images.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from xai_lib import localisation


def threshold_masks(maps: Float[Tensor, "n 1 h w"], threshold: float) -> Bool[Tensor, "n h w"]:
    """Return the pixels of each map, scaled to 0 to 1 (minimum to maximum), that reach a threshold; none if constant.

    Raises
    ------
    ValueError
        A threshold not between 0 and 1, maps that are not finite.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie between 0 and 1; got {threshold}")
    localisation.is_constant(maps)
    maps = maps.detach().double()
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return ((maps - low) / (high - low) >= threshold)[:, 0]  # a constant map is NaN here and keeps nothing


def mask_iou(masks: Bool[Tensor, "n h w"], truth: Bool[Tensor, "n h w"]) -> Float[Tensor, " n"]:
    """Return the intersection over union (N,) of each mask with its truth: 0 to 1, higher is better; 0 if it is empty.

    Raises
    ------
    ValueError
        Masks of other shape or type than the truth, or a truth without a pixel.
    """
    if masks.shape != truth.shape or masks.dtype != torch.bool or truth.dtype != torch.bool:
        raise ValueError(f"masks must be bool of shape {tuple(truth.shape)}; got {masks.dtype} {tuple(masks.shape)}")
    if not truth.flatten(1).any(1).all():
        raise ValueError(
            f"truth must not be empty; got no pixel in mask {int((~truth.flatten(1).any(1)).nonzero()[0])}"
        )
    return (masks & truth).sum((1, 2)).double() / (masks | truth).sum((1, 2))


def best_threshold(
    maps: Float[Tensor, "n 1 h w"],
    truth: Bool[Tensor, "n h w"],
    candidates: Sequence[float] = localisation.CANDIDATES,
) -> float:
    """Return the threshold of `threshold_masks` with the highest mean IoU on *training* maps; of equals the first.

    Raises
    ------
    ValueError
        No candidates or one not between 0 and 1, maps that are all constant or not finite, an empty truth.
    """
    if not len(candidates):
        raise ValueError(f"candidates must hold a threshold; got {candidates!r}")
    if localisation.is_constant(maps).all():
        raise ValueError(f"maps must not all be constant; got {len(maps)} of {len(maps)} constant")
    means = [mask_iou(threshold_masks(maps, one), truth).mean().item() for one in candidates]
    return candidates[means.index(max(means))]


def centred_square(truth: Bool[Tensor, "n h w"]) -> Bool[Tensor, "h w"]:
    """Return the one centred square with the highest mean IoU on *training* masks: what a map has to beat.

    Its sides are those that a square about the centre of the pixel grid can have.
    """
    height, width = truth.shape[1:]
    down, across = (abs(torch.arange(side) - (side - 1) / 2) for side in (height, width))
    reach = torch.maximum(down[:, None], across)
    squares = [reach <= one for one in reach.unique().tolist()]
    means = [mask_iou(square.expand_as(truth), truth).mean().item() for square in squares]
    return squares[means.index(max(means))]


def centred_box(boxes: Float[Tensor, "n 4"], height: int, width: int) -> Float[Tensor, "4"]:
    """Return one box in the centre of the image, of the mean width and height of *training* boxes.

    Raises
    ------
    ValueError
        No boxes, or one without area.
    """
    if not len(boxes):
        raise ValueError(f"boxes must hold at least one; got shape {tuple(boxes.shape)}")
    good = (boxes[:, 2:] > boxes[:, :2]).all(1)  # false for NaN as well
    if not good.all():
        raise ValueError(f"boxes must have x0 < x1 and y0 < y1; got {boxes[~good][0].tolist()}")
    half = (boxes[:, 2:] - boxes[:, :2]).mean(0) / 2
    centre = torch.tensor([width, height], device=boxes.device) / 2
    return torch.cat([centre - half, centre + half])
