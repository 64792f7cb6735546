"""Augmentation of training images on the device: a random crop after padding, and a random flip.

As on CIFAR-10 in the XCNN authors' public code: four pixels of black around the image, a crop of the old size at a
random place, mirrored in half of the cases. Random numbers are torch's global ones, which `training.fit` seeds in each
epoch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class CropAndFlip:
    """Shift and mirror each image at random, then prepare the batch.

    Attributes
    ----------
    prepare : callable, turns uint8 images into floats (`data.Normalize`)
    padding : int, pixels of black around the image, so the largest shift; 0 or more
    """

    prepare: Callable[[Tensor], Tensor]
    padding: int = 4

    def __post_init__(self):
        if self.padding < 0:
            raise ValueError(f"padding must be at least 0; got {self.padding}")

    def __call__(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return augmented and prepared images (N, C, H, W)."""
        count, _, height, width = images.shape
        # Drawn on the CPU: the same numbers on every device.
        top, left = torch.randint(2 * self.padding + 1, (2, count)).to(images.device)
        rows = top[:, None] + torch.arange(height, device=images.device)
        columns = left[:, None] + torch.arange(width, device=images.device)
        mirrored = (torch.rand(count) < 0.5).to(images.device)
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        padded = functional.pad(images, (self.padding,) * 4).permute(0, 2, 3, 1)
        which = torch.arange(count, device=images.device)[:, None, None]
        return self.prepare(padded[which, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2))
