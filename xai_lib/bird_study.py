"""The drawn birds on which explanation modules are studied, and what a run knows of one species' test positives.

The paper's numbers: for each category 50 positives and 8,000 negatives to train a module, 8 to 10 positives and 2,000
negatives to test it (Qi, Khorram, Li 2017, section 4.2). Network and modules are trained on different images.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from xai_lib import birds, data

SEEDS = {"network": 1, "modules": 3, "test": 5}  # of `birds.draw`


@dataclass(frozen=True)
class Tested:
    """Which test images count for which category.

    Attributes
    ----------
    categories : int64 tensor (C,), the species explained
    positive : bool tensor (N, C), test positives, the same number for each
    rows : bool tensor (N, C), these and the test negatives
    """

    categories: Int64[Tensor, " c"]
    positive: Bool[Tensor, "n c"]
    rows: Bool[Tensor, "n c"]


def categories(species: int, count: int, seed: int = 0) -> Int64[Tensor, " c"]:
    """Return the species to explain, drawn at random and sorted.

    Raises
    ------
    ValueError
        More than there are.
    """
    if not 1 <= count <= species:
        raise ValueError(f"count must lie between 1 and the {species} species; got {count}")
    return torch.randperm(species, generator=torch.Generator().manual_seed(seed))[:count].sort().values


def tested(labels: Int64[Tensor, " n"], chosen: Int64[Tensor, " c"], positives: int, negatives: int) -> Tested:
    """Return the first `positives` test images of each category, and the first `negatives` of the others.

    Raises
    ------
    ValueError
        A category has fewer of either.
    """
    own = labels[:, None] == chosen
    for name, wanted, there in (("positives", positives, own), ("negatives", negatives, ~own)):
        least = int(there.sum(0).min())
        if not 1 <= wanted <= least:
            raise ValueError(f"{name} must lie between 1 and {least}, what each category has in the test; got {wanted}")
    positive = own & (own.cumsum(0) <= positives)
    return Tested(chosen, positive, positive | (~own & ((~own).cumsum(0) <= negatives)))


def as_set(drawn: birds.Birds, part: str) -> data.ImageSet:
    """Return drawn birds as a set that a run record can name; `part` is one of `SEEDS`."""
    count, size, species = len(drawn.labels), drawn.images.shape[-1], len(drawn.species.names)
    name = f"birds/{part}, seed {SEEDS[part]}, {species} species, {size} px, {count} images"
    truth = {"boxes": drawn.boxes, "parts": drawn.parts, "masks": drawn.masks > 0}
    return data.ImageSet(drawn.images, drawn.labels, drawn.species.names, name, **truth)


def take(drawn: birds.Birds, rows: Tensor) -> birds.Birds:
    """Return some of the drawn birds, by index or mask."""
    tables = (drawn.images, drawn.labels, drawn.masks, drawn.parts, drawn.boxes)
    return birds.Birds(*(table[rows] for table in tables), drawn.species)


def discriminative_masks(drawn: birds.Birds) -> Bool[Tensor, "n h w"]:
    """Return the pixels of the parts that tell each bird's species from its family, where they are seen."""
    wanted = torch.cat(
        [torch.zeros(len(drawn.labels), 1, dtype=torch.bool), drawn.species.discriminative[drawn.labels]], 1
    )
    return wanted.gather(1, drawn.masks.flatten(1).long()).view_as(drawn.masks)


def other_ground(drawn: birds.Birds) -> tuple[Tensor, Tensor]:
    """Return the images with another ground, and with another bird: (N, 3, H, W) each, from the next image in line.

    The first keeps the bird's pixels and takes all others from the next image; the second keeps all but the bird's
    pixels. Where the next image shows a bird in the ground's place, the mean colour of its ground stands in.
    """
    inside, given = (drawn.masks > 0)[:, None], drawn.images.float()
    other, hides = given.roll(-1, 0), inside.roll(-1, 0)
    colour = (given * ~inside).sum((2, 3), keepdim=True) / (~inside).sum((2, 3), keepdim=True).clamp(min=1)
    ground = torch.where(hides, colour.roll(-1, 0), other)
    return (torch.where(inside, given, ground).byte(), torch.where(inside, other, given).byte())


def mean_colour(images: Tensor) -> Float[Tensor, "3 1 1"]:
    """Return the mean colour of images (N, 3, H, W), 0 to 255: what a masked pixel is set to."""
    return images.float().mean((0, 2, 3))[:, None, None]
