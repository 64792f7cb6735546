"""CUB as explanation modules are studied on it: which photographs train a module, which test it, where its maps lie.

The paper draws 30 species. Of each, 50 photographs train a module, with 8,000 of other species, and the 8 to 10 that
are left test it, with 2,000 others (Qi, Khorram, Li 2017, section 4.2). That takes both splits of CUB: the network has
been trained on half of these photographs, and a module is tested on some of them. `divide` keeps both kinds apart.

Where CUB is not at hand, drawn birds (`birds`) stand in for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor, nn

from xai_lib import birds, cub, data, excitation, explanation, explanation_metrics, one_vs_all, parts, training

DATASETS = ("cub", "birds")


# ---------------------------------------------------------------------------------------------------------------------
# Photographs and the network


def load(
    dataset: str, split: str, size: int, species: int, crop: str = "centre", per_species: int = 30
) -> data.ImageSet:
    """Return a split of CUB, or of drawn birds, with boxes and parts.

    Parameters
    ----------
    dataset : str
        One of `DATASETS`.
    split, size : see `cub.image_set`
    species : int
        The first so many of CUB, 0 for all of which there are images; drawn birds need a number.
    crop : {"centre", "box"}
        See `cub.image_set`; drawn birds have no crop.
    per_species : int
        Images of each species of drawn birds in each split.

    Returns
    -------
    data.ImageSet

    Raises
    ------
    ValueError
        An unknown data set; see also `cub.image_set` and `birds.image_set`.
    """
    if dataset not in DATASETS:
        raise ValueError(f"dataset must be one of {', '.join(DATASETS)}; got {dataset!r}")
    if dataset == "cub":
        return cub.image_set(split, size, species=list(range(1, species + 1)) or None, crop=crop)
    return birds.image_set(split, size, per_species * species, species)


def joined(train: data.ImageSet, test: data.ImageSet) -> data.ImageSet:
    """Return the images of both splits as one set, those of `train` first."""
    tables = {name: torch.cat([getattr(train, name), getattr(test, name)]) for name in _TABLES}
    return data.ImageSet(**tables, classes=train.classes, name=f"{train.name} and {test.name}")


_TABLES = ("images", "labels", "boxes", "parts")


def on_top_of(trained: nn.Module, build: Callable[[], nn.Module]) -> nn.Module:
    """Return a new network with the weights of a trained one in all layers but the last, which stays new.

    Both have a ``classifier``, as those of `vgg19` do.
    """
    network = build()
    last = f"{last_layer(network)}."
    kept = {name: value for name, value in trained.state_dict().items() if not name.startswith(last)}
    network.load_state_dict(network.state_dict() | kept)
    return network


def last_layer(network: nn.Module) -> str:
    """Return the name of the layer that gives the logits of a network of `vgg19`."""
    return f"classifier.{len(network.classifier) - 1}"


# ---------------------------------------------------------------------------------------------------------------------
# Which images train a module, and which test it


@dataclass(frozen=True)
class Divided:
    """What each of N images is for the module of each of C categories.

    Attributes
    ----------
    weights : tensor (N, C), how much an image counts in training, mean 1; 0 where it has no part in it
    tested : bool tensor (N, C), the images that test it
    own : bool tensor (N, C), the category's own images, its positives
    """

    weights: Float[Tensor, "n c"]
    tested: Bool[Tensor, "n c"]
    own: Bool[Tensor, "n c"]


def divide(
    labels: Int64[Tensor, " n"],
    seen: Bool[Tensor, " n"],
    categories: Sequence[int],
    positives: int = 50,
    negatives: int = 8000,
    left: int = 8,
) -> Divided:
    """Divide the images of each category, and of the others, into those that train its module and those that test it.

    Parameters
    ----------
    labels : int64 tensor (N,)
    seen : bool tensor (N,)
        Which images the network was trained on. Training and test have their share of them, as far as it comes out.
    categories : C numbers
    positives : int
        Positives that train; fewer where less than `left` would be left to test.
    negatives : int
        Negatives that train, at most four fifths of all; a quarter as many test.
    left : int
        Positives that test, at least; all that do not train.

    Raises
    ------
    ValueError
        A number below 1, or a category with `left` images or fewer.
    """
    for name, value in (("positives", positives), ("negatives", negatives), ("left", left)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    weights, tested = torch.zeros(len(labels), len(categories)), torch.zeros(len(labels), len(categories)).bool()
    own = labels[:, None] == torch.tensor(categories)
    for k, category in enumerate(categories):
        generator = torch.Generator().manual_seed(int(category))
        mine, others = (_mixed(rows, seen, generator) for rows in (own[:, k], ~own[:, k]))
        count, many = min(positives, len(mine) - left), min(negatives, 4 * len(others) // 5)
        if count < 1 or many < 4:
            there = f"{category} has {len(mine)} images, and {len(others)} are of others"
            raise ValueError(f"categories must have more than {left} images, and 5 others; {there}")
        rows = torch.cat([mine[:count], others[:many]])
        weights[rows, k] = one_vs_all.sample_weights(labels[rows], [category])[:, 0] * (len(labels) / len(rows))
        tested[torch.cat([mine[count:], others[many : many + many // 4]]), k] = True
    return Divided(weights, tested, own)


def _mixed(rows: Bool[Tensor, " n"], seen: Bool[Tensor, " n"], generator: torch.Generator) -> Int64[Tensor, " k"]:
    """Return the rows that are true in a random order, any beginning of which has its share of seen ones."""
    place = torch.zeros(len(rows), dtype=torch.float64)
    for kind in (rows & seen, rows & ~seen):
        count = int(kind.sum())
        place[kind] = (torch.randperm(count, generator=generator).double() + 0.5) / max(count, 1)
    index = rows.nonzero()[:, 0]
    return index[place[index].argsort(stable=True)]


# ---------------------------------------------------------------------------------------------------------------------
# Maps


@dataclass(frozen=True)
class Located:
    """Maps of T units on N photographs of one category, and the parts that they lie on.

    Attributes
    ----------
    maps : tensor (N, T, H, W), P(pixel | unit), each sums to 1 or is all zero
    placed : bool tensor (N, T), false for all-zero maps and for photographs without a visible part or without a box
    by_region : tensor (N, T, 16), algorithm 1; the context last
    """

    maps: Float[Tensor, "n t h w"]
    placed: Bool[Tensor, "n t"]
    by_region: Float[Tensor, "n t 16"]

    def take(self, rows: Bool[Tensor, " n"]) -> "Located":
        """Return the maps of some of the photographs."""
        return Located(self.maps[rows], self.placed[rows], self.by_region[rows])


def locate(maps: Float[Tensor, "n t h w"], images: data.ImageSet) -> Located:
    """Return where signed c-MWP maps of some photographs lie."""
    found, kept = excitation.pixel_probabilities(maps.cpu())
    good = (images.boxes[:, 2:] > images.boxes[:, :2]).all(1) & (images.parts[:, :, 2] > 0).any(1)
    shares = found.new_zeros(*found.shape[:2], images.parts.shape[1] + 1)
    if good.any():
        shares[good] = parts.voronoi(found[good], images.parts[good], images.boxes[good])
    return Located(found, kept & good[:, None], shares)


def unit_maps(
    network: nn.Module,
    layer: str,
    images: data.ImageSet,
    prepare: Callable[[Tensor], Tensor],
    units: Sequence[int] | Int64[Tensor, " t"],
    top: nn.Module | None = None,
    together: int = 500,
) -> Located:
    """Return the located maps of units on top of a layer; see `explanation.unit_maps`. `together` bounds the memory."""
    inputs = prepare(images.images.to(training.device()))
    at_once = max(1, together // len(units))
    return locate(explanation.unit_maps(network, layer, inputs, units, top, batch_size=at_once), images)


def localities(one: Located) -> Float64[Tensor, " t"]:
    """Return the locality of each unit in nats, lower is more local; NaN for a unit without a map."""
    return parts.locality(parts.histogram(one.by_region, one.placed))


def scores(one: Located) -> dict[str, float]:
    """Return what table 1 asks of the maps of a category; NaN where it has no answer.

    Returns
    -------
    dict with

    - ``locality``: mean over units, nats, 0 to log 16, lower is more local
    - ``context``: percent of the units' part histograms that is outside the bird's box, 0 to 100
    - ``o1``, ``o2``, ``kept``: orthogonality of the units' maps, 0 is best, and how many units have a map that varies;
      not of a single unit, which has none
    """
    histograms = parts.histogram(one.by_region, one.placed)
    found = {
        "locality": parts.locality(histograms).nanmean().item(),
        "context": 100 * histograms[:, -1].nanmean().item(),
    }
    if one.maps.shape[1] == 1:
        return found
    correlations, kept = explanation_metrics.map_correlations(one.maps)
    o1, o2 = explanation_metrics.o1(correlations), explanation_metrics.o2(correlations)
    return {**found, "o1": o1, "o2": o2, "kept": float(kept.sum())}


# ---------------------------------------------------------------------------------------------------------------------
# Table 2


def masked(
    network: nn.Module,
    prepare: Callable[[Tensor], Tensor],
    images: UInt8[Tensor, "n 3 h w"],
    maps: Float[Tensor, "n t h w"] | None,
    category: int,
    others: Float[Tensor, " m"],
    colour: Float[Tensor, "3 1 1"],
    threshold: float = 0.01,
) -> dict[str, float]:
    """Return how well a category's images are still classified where only what its maps show is left (section 4.2).

    Parameters
    ----------
    network, prepare : the network, and what makes its input
    images : tensor (N, 3, H, W), the category's
    maps : tensor (N, T, H, W) of probabilities, the largest of T counts; None: the images as they are
    category : int
    others : tensor (M,), the category's logit on images of other species, which are not masked
    colour : tensor (3, 1, 1), 0 to 255, takes the place of what is not shown
    threshold : float, what is below this share of a map's highest value is not shown

    Returns
    -------
    dict with ``accuracy`` (share classified as the category), ``precision`` (average precision) and ``kept`` (share of
    the pixels), each 0 to 1
    """
    kept = 1.0
    if maps is not None:
        keep = explanation_metrics.responding(explanation_metrics.joined(maps), threshold)
        images = explanation_metrics.masked(images.float(), keep, colour).round().byte()
        kept = keep.double().mean().item()
    logits = training.predict(network, images, prepare)
    ranking = torch.cat([logits[:, category], others])
    return {
        "accuracy": (logits.argmax(1) == category).double().mean().item(),
        "precision": explanation_metrics.average_precision(ranking, torch.arange(len(ranking)) < len(logits)),
        "kept": kept,
    }
