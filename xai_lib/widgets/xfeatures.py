r"""x-feature explorer: logits as sums of x-features, which readers name, vote on and switch off (Qi et al. 2017).

A module explains the logit of a category as :math:`\sum_n v_n E_n` (`srae.Autoencoders`; there is no intercept). E and
v are packed as float32 with the network's logits, so that the sums on a page are the module's own, and an x-feature
that is switched off changes a prediction by exactly its term. A category is decided for where its logit is above the
largest one of all other classes, as in F_cls (`explanation_metrics.unchanged_classes`).
"""

import hashlib
import os
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from xai_lib.widgets import base


class XFeatures(base.Widget):
    """The x-features of C categories on N images.

    Parameters
    ----------
    images : uint8 tensor (N, 1 or 3, H, W)
    labels : int64 tensor (N,)
        Their classes.
    classes : sequence of str
        A name for each class, all different.
    categories : sequence of int
        The classes explained, C of them.
    logits : tensor (N, K)
        What the network says, a logit for each class.
    activations : tensor (C, N, n)
        x-features E of each category on each image, 0 or more.
    weights : tensor (C, n)
        v.
    maps : tensor (C, N, n, h, w)
        Where each x-feature is in each image; what is negative is shown as 0, and each map by its own largest value.
    thumbnail, side : int
        Images and maps are averaged down to these sides where they are larger.
    label : str
        What a screen reader calls it.
    file : path, optional
        Where JupyterLab keeps names and votes.

    Raises
    ------
    ValueError
        Shapes that do not fit, a class that there is not, or names that are not different.
    """

    _esm = base.source("xfeatures")
    _css = base.style()

    def __init__(
        self,
        images: UInt8[Tensor, "n rgb h w"],
        labels: Int64[Tensor, " n"],
        classes: Sequence[str],
        categories: Sequence[int],
        logits: Float[Tensor, "n k"],
        activations: Float[Tensor, "c n x"],
        weights: Float[Tensor, "c x"],
        maps: Float[Tensor, "c n x hm wm"],
        *,
        thumbnail: int = 48,
        side: int = 16,
        label: str = "x-feature explorer",
        file: str | os.PathLike | None = None,
    ) -> None:
        categories = [int(one) for one in categories]
        _check(images, labels, classes, categories, logits, activations, weights, maps)
        images, labels, logits, activations, weights, maps = (
            one.detach().cpu() for one in (images, labels, logits, activations, weights, maps)
        )
        rivals = torch.stack([logits.index_fill(1, torch.tensor([one]), -torch.inf) for one in categories]).max(2)
        peaks = _smaller(maps.clamp(min=0).flatten(0, 1), side)
        peaks = peaks / peaks.amax((2, 3), keepdim=True).clamp(min=torch.finfo(peaks.dtype).tiny)
        data = {
            "images": base.pack(_smaller(images.float(), thumbnail).round(), "uint8"),
            "maps": base.pack((255 * peaks).round().unflatten(0, maps.shape[:2]), "uint8"),
            "activations": base.pack(activations, "float32"),
            "weights": base.pack(weights, "float32"),
            "logits": base.pack(logits[:, categories].T, "float32"),
            "rivals": base.pack(rivals.values, "float32"),
            "rival_of": rivals.indices.tolist(),
            "truth": labels.tolist(),
            "classes": list(classes),
            "categories": categories,
        }
        super().__init__({**data, "module": identity(data)}, label, file)


def identity(data: dict) -> str:
    """Return twelve letters that tell these x-features from others: votes on one module are none on another."""
    text = "\n".join(data["classes"][one] for one in data["categories"])
    made = hashlib.sha256(data["activations"]["bytes"] + data["weights"]["bytes"] + text.encode())
    return made.hexdigest()[:12]


def _smaller(images: Tensor, side: int) -> Tensor:
    """Return images (B, C, H, W) averaged down until the longer side is `side`; smaller ones as they are."""
    height, width = images.shape[2:]
    share = side / max(height, width)
    size = (max(1, round(share * height)), max(1, round(share * width)))
    return images if share >= 1 else functional.interpolate(images, size, mode="area")


def _check(images, labels, classes, categories, logits, activations, weights, maps) -> None:
    count, features = len(images), activations.shape[-1]
    shapes = {
        "labels": (labels, (count,)),
        "logits": (logits, (count, len(classes))),
        "activations": (activations, (len(categories), count, features)),
        "weights": (weights, (len(categories), features)),
        "maps": (maps, (len(categories), count, features, *maps.shape[3:])),
    }
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not count or images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 (N, 1 or 3, H, W); got {images.dtype} {tuple(images.shape)}")
    for name, (value, shape) in shapes.items():
        if value.shape != shape or not value.numel():
            raise ValueError(f"{name} must have the shape {shape}; got {tuple(value.shape)}")
        if not value.isfinite().all():
            raise ValueError(f"{name} must be finite; got {value[~value.isfinite()][0].item()}")
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise ValueError(f"classes must be two or more different names; got {list(classes)[:5]}")
    if len(set(categories)) < len(categories) or not 0 <= min(categories) <= max(categories) < len(classes):
        raise ValueError(f"categories must be different, between 0 and {len(classes) - 1}; got {categories}")
    if not 0 <= labels.min() <= labels.max() < len(classes):
        raise ValueError(f"labels must lie between 0 and {len(classes) - 1}; got {labels.min()} to {labels.max()}")
