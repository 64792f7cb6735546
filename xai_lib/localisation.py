"""Localisation: does a heatmap point at the object?

Maps are signed, larger is more relevant; the truth is a mask or a box of each image. A box is x0, y0, x1, y1 in pixel
edges, x1 and y1 exclusive: the one pixel in column 3 of row 5 is (3, 5, 4, 6). A measure that is not defined for an
image is NaN there, so that the caller counts such images and leaves them out; it is never a hit or a miss.
"""

import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

CANDIDATES = tuple(k / 20 for k in range(1, 20))


def is_constant(maps: Float[Tensor, "n 1 h w"], name: str = "maps") -> Bool[Tensor, " n"]:
    """Say which maps (N,) have one value in all pixels: they rank nothing, and most measures are NaN for them.

    Equality is exact: a map that is flat up to rounding counts as a map. `name` is what an error calls the maps.

    Raises
    ------
    ValueError
        Not such a batch, or values that are not finite.
    """
    if maps.ndim != 4 or maps.shape[1] != 1 or not maps.is_floating_point() or 0 in maps.shape[2:]:
        raise ValueError(f"{name} must be float heatmaps (N, 1, H, W); got {maps.dtype} {tuple(maps.shape)}")
    if not maps.isfinite().all():
        raise ValueError(f"{name} must be finite; got {maps[~maps.isfinite()][0].item()}")
    return maps.amax((1, 2, 3)) == maps.amin((1, 2, 3))


def box_masks(boxes: Float[Tensor, "n 4"], height: int, width: int) -> Bool[Tensor, "n h w"]:
    """Return masks of the pixels whose centre lies in the box; a centre on its left or upper edge does.

    Raises
    ------
    ValueError
        A box outside its image, without area, or between pixel centres, so that its mask would be empty.
    """
    _check_boxes("boxes", boxes, (height, width))
    x, y = (torch.arange(side, device=boxes.device) + 0.5 for side in (width, height))
    x0, y0, x1, y1 = boxes[:, :, None].unbind(1)
    masks = ((y0 <= y) & (y < y1))[:, :, None] & ((x0 <= x) & (x < x1))[:, None, :]
    empty = ~masks.any(2).any(1)
    if empty.any():
        raise ValueError(f"boxes must hold the centre of a pixel; got {boxes[empty][0].tolist()}")
    return masks


def area_share(masks: Bool[Tensor, "n h w"]) -> Float[Tensor, " n"]:
    """Return the share (N,) of each image that its mask covers, above 0 to 1.

    It is no score of a map but the chance level of `inside_share` (relevance spread evenly) and of `pointing_game`
    without tolerance (a maximum anywhere).

    Raises
    ------
    ValueError
        An empty mask.
    """
    _check_masks(masks)
    return masks.double().mean((1, 2))


def pointing_game(
    maps: Float[Tensor, "n 1 h w"], masks: Bool[Tensor, "n h w"], tolerance: float | int = 0
) -> Float[Tensor, " n"]:
    """Return 1 where the maximum of the map lies on the object, else 0 (N,): the pointing game (Zhang et al. 2016).

    Range 0 to 1, higher is better; its mean over images is the pointing accuracy. Where several pixels share the
    maximum, it is the share of them that hit, which is what drawing one of them hits on average: no position is
    preferred, and a saturated map gains nothing. Degenerate: NaN for a constant map, which has no maximum.

    `tolerance` is the radius in pixels of the circle around the maximum that has to touch the object; Zhang et al. take
    15 on natural images.

    Raises
    ------
    ValueError
        An empty mask, masks of another size, maps that are not finite, a negative tolerance.
    """
    flat = is_constant(maps)
    _check_masks(masks, maps)
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be 0 or more pixels; got {tolerance}")
    if tolerance:  # distance of each pixel to the next one of its mask
        near = [ndimage.distance_transform_edt(~one) <= tolerance for one in masks.cpu().numpy()]
        masks = torch.from_numpy(np.array(near, bool).reshape(masks.shape)).to(maps.device)
    top = (maps == maps.amax((2, 3), keepdim=True))[:, 0]
    return ((top & masks).sum((1, 2)).double() / top.sum((1, 2))).masked_fill(flat, math.nan)


def inside_share(maps: Float[Tensor, "n 1 h w"], masks: Bool[Tensor, "n h w"]) -> Float[Tensor, " n"]:
    """Return the share (N,) of a map's positive relevance that lies on the object.

    The energy-based pointing game (Wang et al. 2020, Score-CAM), or relevance mass accuracy (Arras et al. 2022).
    Range 0 to 1, higher is better; chance is `area_share`. Negative relevance does not count. Degenerate: NaN for a
    map without positive relevance. A constant positive map is defined: it scores chance.

    Raises
    ------
    ValueError
        An empty mask, masks of another size, maps that are not finite.
    """
    is_constant(maps)
    _check_masks(masks, maps)
    positive = maps[:, 0].double().clamp(min=0)
    return (positive * masks).sum((1, 2)) / positive.sum((1, 2))  # 0 / 0 is NaN


def largest_boxes(masks: Bool[Tensor, "n h w"]) -> Float[Tensor, "n 4"]:
    """Return the box (N, 4) around the largest connected component of each mask, NaN where the mask is empty.

    Pixels that touch at a corner are connected; of components with equally many pixels, the first in reading order.

    Raises
    ------
    ValueError
        Masks that are not bool (N, H, W).
    """
    _check_masks(masks, may_be_empty=True)
    boxes = torch.full((len(masks), 4), math.nan, device=masks.device)
    for k, mask in enumerate(masks.cpu().numpy()):
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        if count:
            rows, columns = np.nonzero(labels == 1 + np.bincount(labels.flat)[1:].argmax())
            boxes[k] = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    return boxes


def threshold_boxes(maps: Float[Tensor, "n 1 h w"], threshold: float, closing: bool = True) -> Float[Tensor, "n 4"]:
    """Return the box (N, 4) around the largest component of what a map has above a threshold (Zhou et al. 2016, 3.2).

    Each map is scaled to 0 to 1 (minimum to maximum), pixels of `threshold` or more are kept. With `closing` they are
    dilated, then eroded by 3x3 pixels, so that gaps of one or two pixels close, and of one to the border. At threshold
    0.5 this is the box of the XCNN authors' public code, but for "largest": theirs is the contour of the largest area,
    holes included, ours the component with the most pixels. Degenerate: a row of NaN for a constant map.

    Raises
    ------
    ValueError
        A threshold not between 0 and 1, maps that are not finite.
    """
    _check_between("threshold", threshold)
    is_constant(maps)
    maps = maps.detach().double()
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    found = (maps - low) / (high - low) >= threshold  # a constant map is NaN here and keeps nothing
    if closing:  # padding is neutral in both, as in OpenCV: the image's border does not erode
        found = -functional.max_pool2d(-functional.max_pool2d(found.float(), 3, 1, 1), 3, 1, 1) > 0
    return largest_boxes(found[:, 0])


def box_iou(boxes: Float[Tensor, "n 4"], truth: Float[Tensor, "n 4"]) -> Float[Tensor, " n"]:
    """Return the intersection over union (N,) of each box with its truth (Everingham et al. 2010).

    Range 0 to 1, higher is better. Degenerate: NaN where `boxes` has a row of NaN, for no box was found; whether that
    is excluded or a failure (0) is the caller's to say.

    Raises
    ------
    ValueError
        A box without area, or lengths that differ.
    """
    _check_boxes("truth", truth)
    _check_boxes("boxes", boxes, number=len(truth), may_be_nan=True)
    boxes, truth = boxes.double(), truth.double()
    sides = (torch.minimum(boxes, truth)[:, 2:] - torch.maximum(boxes, truth)[:, :2]).clamp(min=0)
    areas = [(one[:, 2:] - one[:, :2]).prod(1) for one in (boxes, truth)]
    return sides.prod(1) / (areas[0] + areas[1] - sides.prod(1))


def best_threshold(
    maps: Float[Tensor, "n 1 h w"],
    truth_boxes: Float[Tensor, "n 4"],
    candidates: Sequence[float] = CANDIDATES,
    closing: bool = True,
) -> float:
    """Return the threshold of `threshold_boxes` with the highest mean IoU on training maps.

    It is chosen on *training* images and then used for the test maps: chosen on test maps, it would flatter them. A
    constant map counts as IoU 0, whatever the threshold. Of equally good candidates the first is returned.

    Raises
    ------
    ValueError
        No candidates or one not between 0 and 1, maps that are all constant or not finite, a box outside its image.
    """
    if not len(candidates):
        raise ValueError(f"candidates must hold a threshold; got {candidates!r}")
    for one in candidates:
        _check_between("candidates", one)
    if is_constant(maps).all():
        raise ValueError(f"maps must not all be constant; got {len(maps)} of {len(maps)} constant")
    _check_boxes("truth_boxes", truth_boxes, tuple(maps.shape[2:]), len(maps))
    ious = [box_iou(threshold_boxes(maps, one, closing), truth_boxes).nan_to_num(0).mean() for one in candidates]
    return candidates[int(torch.stack(ious).argmax())]


def grabcut_masks(
    images: UInt8[Tensor, "n c h w"],
    maps: Float[Tensor, "n 1 h w"],
    foreground: float = 0.95,
    background: float = 0.3,
    iterations: int = 5,
) -> Bool[Tensor, "n h w"]:
    """Segment the object by GrabCut (Rother et al. 2004), seeded by the map as by Simonyan et al. (2013, 3.2).

    Pixels above the `foreground` quantile of their map are the object for certain (its maxima always), those below
    the `background` quantile are not, and the rest probably is not: so ties with a quantile stay undecided. Deviation
    from Simonyan et al.: the undecided pixels enter the first colour model of the background. The result depends on
    the image and its map alone: OpenCV's random numbers, of the whole process, are seeded anew for each image.
    Degenerate: an empty mask for a constant map, which `largest_boxes` turns into NaN.

    Images are grey or RGB. `iterations` are rounds of fitting the colours and cutting; the papers give no number.

    Raises
    ------
    ValueError
        Images not uint8, of 1 or 3 channels and of the maps' size; maps not finite; not 0 < `background` <=
        `foreground` < 1; no iterations.
    ImportError
        OpenCV is not installed.
    """
    flat = is_constant(maps)
    _check_between("foreground", foreground)
    _check_between("background", background, foreground)
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1; got {iterations}")
    sizes = [(len(maps), channels, *maps.shape[2:]) for channels in (1, 3)]
    if images.dtype != torch.uint8 or tuple(images.shape) not in sizes:
        raise ValueError(f"images must be uint8 {' or '.join(map(str, sizes))}; got {images.dtype} {(*images.shape,)}")
    try:
        import cv2  # here, as only the book needs it
    except ImportError:
        raise ImportError("GrabCut needs OpenCV, of the extra 'book': pip install 'xai_lib[book]'") from None
    pixels = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    masks = np.zeros((len(maps), *maps.shape[2:]), bool)
    for k, seeds in enumerate(_seeds(cv2, maps, foreground, background)):
        if not flat[k]:
            cv2.setRNGSeed(0)
            models = np.zeros((2, 1, 65))
            found, *_ = cv2.grabCut(pixels[k], seeds, None, *models, iterations, cv2.GC_INIT_WITH_MASK)
            masks[k] = (found == cv2.GC_FGD) | (found == cv2.GC_PR_FGD)
    return torch.from_numpy(masks).to(maps.device)


def grabcut_boxes(
    images: UInt8[Tensor, "n c h w"], maps: Float[Tensor, "n 1 h w"], **settings: float | int
) -> Float[Tensor, "n 4"]:
    """Return `largest_boxes` (N, 4) of `grabcut_masks`, with its settings and errors; NaN for a constant map."""
    return largest_boxes(grabcut_masks(images, maps, **settings))


def _seeds(cv2: ModuleType, maps: Tensor, foreground: float, background: float) -> np.ndarray:
    """Return OpenCV's marks (N, H, W): object, background, and probably background."""
    flat = maps.detach().cpu().double().flatten(1).numpy()
    high, low = (np.quantile(flat, share, axis=1, keepdims=True) for share in (foreground, background))
    seeds = np.full(flat.shape, cv2.GC_PR_BGD, np.uint8)
    seeds[flat < low] = cv2.GC_BGD
    seeds[(flat > high) | (flat == flat.max(1, keepdims=True))] = cv2.GC_FGD
    return seeds.reshape(maps[:, 0].shape)


def _check_between(name: str, value: float, end: float = 1) -> None:
    if not 0 < value <= end or value >= 1:
        raise ValueError(f"{name} must lie between 0 and {end}; got {value}")


def _check_masks(masks: Tensor, maps: Tensor | None = None, may_be_empty: bool = False) -> None:
    wanted = masks.shape if maps is None else maps[:, 0].shape
    if masks.dtype != torch.bool or masks.ndim != 3 or masks.shape != wanted:
        raise ValueError(f"masks must be bool (N, H, W), one per image; got {masks.dtype} {tuple(masks.shape)}")
    empty = ~masks.any(2).any(1)
    if empty.any() and not may_be_empty:
        raise ValueError(f"masks must not be empty; got no pixel in mask {empty.nonzero()[0].item()}")


def _check_boxes(
    name: str, boxes: Tensor, size: tuple[int, int] | None = None, number: int | None = None, may_be_nan: bool = False
) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 4 or number not in (None, len(boxes)):
        raise ValueError(f"{name} must be one box (x0, y0, x1, y1) per image; got shape {tuple(boxes.shape)}")
    good = ((boxes[:, 2:] > boxes[:, :2]) & boxes[:, 2:].isfinite() & boxes[:, :2].isfinite()).all(1)
    good |= may_be_nan & boxes.isnan().all(1)
    if not good.all():
        raise ValueError(f"{name} must have x0 < x1 and y0 < y1; got {boxes[~good][0].tolist()}")
    if size is not None:
        height, width = size
        inside = (boxes[:, :2] >= 0).all(1) & (boxes[:, 2] <= width) & (boxes[:, 3] <= height)
        if not inside.all():
            raise ValueError(f"{name} must lie in the image of {width}x{height}; got {boxes[~inside][0].tolist()}")
