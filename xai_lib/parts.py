r"""Parts: which part of an object a unit's map falls on, and how local the unit is (Qi, Khorram and Li 2017).

Algorithm 1 of the supplement: pixels in the object's box go to the nearest part label (Voronoi regions :math:`G_p`),
those outside it to the context: P(part p | unit) is :math:`\sum_{ij \in G_p} (1 - \bar d_{ijp}) P(pixel_{ij} | unit)`
with the distance d of pixel and label normalised into 0 to 1. The mean over images, normalised to sum 1, is the unit's
histogram; its entropy is the locality (section 4.1).

Maps (N, T, H, W) are those of `excitation.pixel_probabilities`: each sums to 1 or is all zero. The centre of the pixel
in row r, column c is at x = c + 0.5, y = r + 0.5. Parts (N, P, 3) are x, y in pixels and visibility, hidden unless
above 0. Boxes (N, 4) are x0, y0, x1, y1 in pixel edges, x1 and y1 exclusive.
"""

import math

import torch
from jaxtyping import Bool, Float, Float64, Int64, Integer
from torch import Tensor

DISTANCES = ("region", "box", "none")
Maps, Parts, Boxes = Float[Tensor, "n t h w"], Float[Tensor, "n p 3"], Float[Tensor, "n 4"]
Shares = Float[Tensor, "n t q"]


def regions(parts: Parts, boxes: Boxes, size: tuple[int, int]) -> Int64[Tensor, "n h w"]:
    """Return the nearest visible part, the first of those equally near, where a pixel's centre is in the box, else P.

    Raises
    ------
    ValueError
        Shapes that do not fit, an image with all parts hidden, a visible part at no finite place, a box without area.
    """
    return _nearest(parts, boxes, size)[0]


def voronoi(maps: Maps, parts: Parts, boxes: Boxes, *, distance: str = "region", context: float | int = 1) -> Shares:
    """Return P(part | unit) by algorithm 1: (N, T, P + 1), the context last, values 0 to 1, 0 for hidden parts.

    What the paper leaves open, our default first:

    - `distance`, what normalises it (line 5): "region", the largest in the part's region, as the line stands in the
      loop over parts and line 7 goes on with 1 outside; "box", the box's diagonal, more than 1 is 1; "none": factor 1.
    - `context`, weight of pixels outside the box: 1, as section 4.1 gives the context all of the map there; 0 omits it.
    - Hidden parts have no region, so that what falls on them goes to others.

    Degenerate: zeros for an all-zero map; with "region" 0 for a region of one pixel, unless its centre is the label.

    Raises
    ------
    ValueError
        As `regions`; also negative maps, an unknown distance, a context outside 0 to 1.
    """
    _require(distance in DISTANCES, "distance", f"be one of {', '.join(DISTANCES)}", repr(distance))
    _require(0 <= context <= 1, "context", "lie between 0 and 1", context)
    _check_maps(maps, "parts", parts)
    region, far = _nearest(parts, boxes, tuple(maps.shape[2:]))
    flat, outside = region.flatten(1), region == parts.shape[1]
    if distance == "region":
        largest = far.new_zeros(len(far), parts.shape[1] + 1).scatter_reduce(1, flat, far.flatten(1), "amax")
        largest = largest.gather(1, flat).view_as(far)
    else:
        largest = (boxes[:, 2:] - boxes[:, :2]).double().norm(dim=1)[:, None, None]
    weight = 1 - torch.where((largest > 0) & (distance != "none"), far / largest, 0).clamp(max=1)
    return _sums(maps, region, torch.where(outside, context, weight), parts.shape[1])


def at_labels(maps: Maps, parts: Parts) -> Float[Tensor, "n t p"]:
    """Return the map at the pixel that holds each label (section 4.1): (N, T, P), no context, 0 for hidden parts.

    Raises
    ------
    ValueError
        Shapes that do not fit, negative maps, an image with all parts hidden, a visible part outside its image.
    """
    _check_maps(maps, "parts", parts)
    visible, (column, row, _), (height, width) = _visible(parts), parts.floor().unbind(2), maps.shape[2:]
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    _require(inside | ~visible, "parts that are visible", f"lie in the image, {height} x {width}", parts)
    pixel = torch.where(visible, row * width + column, 0).long()[:, None].expand(-1, maps.shape[1], -1)
    return maps.flatten(2).gather(2, pixel) * visible[:, None]


def in_masks(maps: Maps, masks: Integer[Tensor, "n h w"], count: int) -> Shares:
    """Return what each of `count` parts has of the map by true masks: (N, T, count + 1), what is outside them last.

    Masks are those of `birds.Birds`: k for part k - 1, 0 for none. Values 0 to 1; each row sums to what its map does.

    Raises
    ------
    ValueError
        Shapes that do not fit, negative maps, masks that are not integers from 0 to `count`.
    """
    _check_maps(maps, "masks", masks)
    _require(masks.shape[1:] == maps.shape[2:], "masks", f"be {tuple(maps.shape[2:])} as maps are", tuple(masks.shape))
    _require(not masks.is_floating_point() and masks.dtype != torch.bool, "masks", "be integers", masks.dtype)
    _require((masks >= 0) & (masks <= count), "masks", f"be 0 to count = {count}", masks)
    return _sums(maps, (masks.long() - 1) % (count + 1), torch.ones_like(masks), count)


def histogram(
    probabilities: Shares, kept: Bool[Tensor, "n t"] | None = None, seen: Bool[Tensor, "n q"] | None = None
) -> Float64[Tensor, "t q"]:
    """Return the part histogram of each unit: the mean of P(part | unit) over images, normalised to sum 1.

    `kept`: the maps that count (`excitation.pixel_probabilities`). `seen`: which images show a part; its mean is over
    these, 0 if there are none. Without it (the paper is silent), over all, where a hidden part counts 0. The mean comes
    first: maps near labels weigh more. Degenerate: a row of NaN for a unit without a kept image, or with zeros only.

    Raises
    ------
    ValueError
        Shapes that do not fit.
    """
    _require(probabilities.ndim == 3, "probabilities", "be (N, T, Q)", tuple(probabilities.shape))
    every = torch.ones_like(probabilities, dtype=torch.bool)
    kept, seen = every[:, :, 0] if kept is None else kept, every[:, 0] if seen is None else seen
    for name, given, like in (("kept", kept, every[:, :, 0]), ("seen", seen, every[:, 0])):
        _require(given.shape == like.shape, name, f"be {tuple(like.shape)}", tuple(given.shape))
    used = kept[:, :, None] & seen[:, None]
    return _shares((probabilities.double() * used).sum(0) / used.sum(0).clamp(min=1))


def locality(histogram: Float[Tensor, "*s q"], base: float | int = math.e) -> Float[Tensor, "*s"]:
    """Return the entropy of histograms (..., Q), about the logarithm of the number of parts that a unit captures.

    Range 0 (all in one part) to log(Q), lower is better: more local; NaN for a histogram of NaN or of zeros. It is
    divided by its sum first, as in section 4.1. The paper names no base of the logarithm: natural by default.

    Raises
    ------
    ValueError
        A base of 1 or less.
    """
    _require(base > 1, "base", "be above 1", base)
    return torch.special.entr(_shares(histogram)).sum(-1) / math.log(base)


def count_above(histogram: Float[Tensor, "*s q"], share: float, *, last_is_context: bool = True) -> Float[Tensor, "*s"]:
    """Return how many parts hold `share` or more of histograms (..., Q): 0 to Q, fewer is more local.

    With `last_is_context` the last entry counts in the sum alone. Degenerate: NaN for a histogram of NaN or of zeros.

    Raises
    ------
    ValueError
        A share that is not above 0 and at most 1.
    """
    _require(0 < share <= 1, "share", "be above 0 and at most 1", share)
    shares = _shares(histogram)
    held = (shares >= share)[..., : -1 if last_is_context else None].sum(-1)
    return held.to(shares.dtype).masked_fill(shares.isnan().any(-1), math.nan)


def _shares(values: Tensor) -> Tensor:
    return values / values.sum(-1, keepdim=True)  # 0 / 0 is NaN


def _sums(maps: Tensor, region: Tensor, weight: Tensor, count: int) -> Tensor:
    """Return sums (N, T, count + 1) of weighted maps over regions, by one product for all units of an image."""
    spread = maps.new_zeros(len(maps), count + 1, region[0].numel())
    spread.scatter_(1, region.flatten(1)[:, None], weight.flatten(1)[:, None].to(maps.dtype))
    return maps.flatten(2) @ spread.mT


def _nearest(parts: Tensor, boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the regions, and the distance of each pixel's centre to the nearest visible label, float64 (N, H, W)."""
    visible = _visible(parts)
    _require(boxes.shape == (len(parts), 4), "boxes", f"be ({len(parts)}, 4), as parts are", tuple(boxes.shape))
    _require((boxes[:, 2:] > boxes[:, :2]).all(1), "boxes", "have an area", boxes)
    row, column = (torch.arange(side, device=parts.device) + 0.5 for side in size)
    region = torch.full((len(parts), *size), parts.shape[1], device=parts.device)
    least = torch.full(region.shape, math.inf, dtype=torch.float64, device=parts.device)
    for p, (x, y, _) in enumerate(parts.double().permute(1, 2, 0)[..., None]):  # no array (N, P, H, W)
        square = ((row - y) ** 2)[:, :, None] + ((column - x) ** 2)[:, None]
        nearer = visible[:, p, None, None] & (square < least)
        region, least = torch.where(nearer, p, region), torch.where(nearer, square, least)
    x0, y0, x1, y1 = boxes[:, :, None].unbind(1)
    inside = ((y0 <= row) & (row < y1))[:, :, None] & ((x0 <= column) & (column < x1))[:, None]
    return region.masked_fill(~inside, parts.shape[1]), least.sqrt()


def _visible(parts: Tensor) -> Tensor:
    _require(parts.ndim == 3 and parts.shape[-1] == 3, "parts", "be (N, P, 3)", tuple(parts.shape))
    visible = parts[:, :, 2] > 0
    _require(visible.any(1).cpu(), "parts", "not all be hidden in an image", torch.arange(len(parts)), "image ")
    _require(parts.isfinite().all(2) | ~visible, "parts that are visible", "be finite", parts)
    return visible


def _check_maps(maps: Tensor, name: str, other: Tensor) -> None:
    good = maps.ndim == 4 and maps.is_floating_point() and maps.numel() > 0
    _require(good, "maps", "be float (N, T, H, W)", f"{maps.dtype} {tuple(maps.shape)}")
    _require(len(other) == len(maps), name, f"be one per image of maps, {len(maps)}", len(other))
    _require((lowest := maps.min()) >= 0, "maps", "not be negative", lowest)  # the minimum is NaN if any value is


def _require(good: Tensor | bool, name: str, need: str, got: object, before: str = "") -> None:
    """Raise unless all is good; of a tensor, name the first entry that is not."""
    if not torch.as_tensor(good).all():
        value = got[~good][0].tolist() if isinstance(good, Tensor) else got
        raise ValueError(f"{name} must {need}; got {before}{value}")
