"""Compare heatmaps: two methods on one image, with the box that follows a threshold and its IoU with the true box.

Maps travel as 8-bit numbers, each one from its own minimum (0) to its maximum (255), which go with it. So the box of a
threshold is, on the page, that of `localisation.threshold_boxes` on `rounded` maps, to the pixel.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from xai_lib import localisation
from xai_lib.widgets import base

THRESHOLD = 0.5  # where the page begins: that of the XCNN authors' public code, see `localisation.threshold_boxes`


class Compare(base.Widget):
    """Two heatmaps of one image side by side.

    Parameters
    ----------
    images : uint8 tensor (N, C, H, W)
        Grey or RGB.
    maps : mapping
        {method: float tensor (N, 1, H, W)}, two methods or more, signed. Each map explains the class in `labels`.
    boxes : tensor (N, 4)
        The true boxes: x0, y0, x1, y1 in pixels.
    labels : int64 tensor (N,)
        The true classes, for which the maps were asked.
    classes : sequence of str
        Names of the K classes.
    probabilities : mapping, optional
        {method: float tensor (N, K)}: what the network that the method explains says of the images, 0 to 1. A method
        that is missing here is shown as one that sees no network.
    pair : (str, str), optional
        The methods shown first, left and right; default: the first two.

    Raises
    ------
    ValueError
        Shapes, types or ranges are others, a map is not finite, a method is unknown.
    """

    _esm = base.source("compare")
    _css = base.style()

    def __init__(
        self,
        images: UInt8[Tensor, "n c h w"],
        maps: Mapping[str, Tensor],
        boxes: Tensor,
        labels: Int64[Tensor, " n"],
        classes: Sequence[str],
        probabilities: Mapping[str, Tensor] | None = None,
        pair: Sequence[str] | None = None,
    ) -> None:
        probabilities, pair = probabilities or {}, list(maps)[:2] if pair is None else list(pair)
        _check_images(images, boxes, labels, classes)
        _check_maps(images, maps, pair)
        _check_probabilities(probabilities, maps, (len(images), len(classes)))
        shown = {
            "images": base.pack(images.cpu().numpy(), "uint8"),
            "maps": base.pack(torch.stack([rounded(one)[:, 0] for one in maps.values()]).cpu().numpy(), "uint8"),
            "ranges": [torch.stack([one.amin((1, 2, 3)), one.amax((1, 2, 3))], 1).tolist() for one in maps.values()],
            "methods": list(maps),
            "boxes": boxes.tolist(),
            "labels": labels.tolist(),
            "classes": list(classes),
            "says": [_says(probabilities.get(method), labels) for method in maps],
            "pair": [list(maps).index(method) for method in pair],
            "threshold": THRESHOLD,
        }
        super().__init__(shown, "Compare heatmaps: two methods on one image")


def rounded(maps: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h w"]:
    """Return maps as the page has them: whole numbers, 0 at the minimum of each map, 255 at its maximum.

    A map that is constant is 0 everywhere.

    Raises
    ------
    ValueError
        Not such maps, or values that are not finite.
    """
    flat = localisation.is_constant(maps)
    maps = maps.detach().double()
    low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
    return (255 * (maps - low) / (high - low)).round().masked_fill(flat[:, None, None, None], 0)


def _says(probabilities: Tensor | None, labels: Tensor) -> list[list] | None:
    """Return for each image the likeliest class, its probability, and that of the true class."""
    if probabilities is None:
        return None
    top, asked = probabilities.max(1), probabilities.gather(1, labels[:, None].to(probabilities.device))[:, 0]
    return [list(one) for one in zip(top.indices.tolist(), top.values.tolist(), asked.tolist(), strict=True)]


def _check_images(images: Tensor, boxes: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(f"images must be uint8 (N, 1 or 3, H, W), N above 0; got {images.dtype} {tuple(images.shape)}")
    if tuple(boxes.shape) != (len(images), 4):
        raise ValueError(f"boxes must be ({len(images)}, 4), one for each image; got {tuple(boxes.shape)}")
    localisation.box_masks(boxes, *images.shape[2:])  # raises for a box that is not in its image
    if len(labels) != len(images) or not 0 <= labels.min() <= labels.max() < len(classes):
        raise ValueError(f"labels must be {len(images)} classes below {len(classes)}; got {labels.tolist()}")


def _check_maps(images: Tensor, maps: Mapping[str, Tensor], pair: Sequence[str]) -> None:
    if len(maps) < 2:
        raise ValueError(f"maps must hold two methods or more; got {list(maps)}")
    wanted = (len(images), 1, *images.shape[2:])
    for method, one in maps.items():
        if tuple(one.shape) != wanted:
            raise ValueError(f"maps[{method!r}] must be {wanted}, as the images are; got {tuple(one.shape)}")
        localisation.is_constant(one, f"maps[{method!r}]")
    if len(pair) != 2 or not set(pair) <= maps.keys():
        raise ValueError(f"pair must name two of the methods {', '.join(maps)}; got {pair}")


def _check_probabilities(probabilities: Mapping[str, Tensor], maps: Mapping[str, Tensor], shape: tuple) -> None:
    if strange := probabilities.keys() - maps.keys():
        raise ValueError(f"probabilities: there is no method {min(strange)!r}")
    for method, one in probabilities.items():
        if tuple(one.shape) != shape or not ((one >= 0) & (one <= 1)).all():
            found = f"{tuple(one.shape)}, {one.min():g} to {one.max():g}"
            raise ValueError(f"probabilities[{method!r}] must be {shape}, 0 to 1; got {found}")
