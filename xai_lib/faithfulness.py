r"""Faithfulness: does a heatmap follow the model?

Deletion and insertion change the image where the map is high and watch the score; the sanity checks change the model,
or the class asked for, and watch the map. Maps are signed, larger is more relevant. A measure that is not defined for
an image is NaN there, so that the caller counts such images and leaves them out.

.. math:: \text{area} = \int_0^1 s(x_p)\, dp \tag{RISE: the area under deletion and insertion curves}

where :math:`x_p` is the image whose share p of pixels, the most relevant first, is removed or inserted.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from xai_lib import localisation

ORDERS = ("top-down", "independent")


@dataclass(frozen=True)
class ScoreCurve:
    """Scores of images while their pixels go or come in the order of their maps.

    Attributes
    ----------
    shares : float64 tensor (S + 1,), the share of pixels changed, from 0 to 1
    scores : float64 tensor (N, S + 1), a row of NaN for a constant map
    """

    shares: Float[Tensor, " s"]
    scores: Float[Tensor, "n s"]

    @property
    def area(self) -> Float[Tensor, " n"]:
        """Return the area under each curve (N,) by the trapezoid rule, within the range of the scores."""
        return torch.trapezoid(self.scores, self.shares, dim=1)


def deletion(
    score: Callable[[Tensor], Tensor],
    images: Float[Tensor, "n c h w"],
    maps: Float[Tensor, "n 1 h w"],
    baseline: Float[Tensor, "n c h w"] | float | int,
    steps: int = 50,
    seed: int = 0,
) -> ScoreCurve:
    """Remove pixels from images, the most relevant first, and return the scores (Petsiuk et al. 2018, RISE).

    The area is within the range of the scores, lower is better: the score falls early where the map names what the
    model uses. All channels of a pixel go together. Pixels of equal relevance go in one random order, the same for all
    images, for by position they would go from the top. Degenerate: a row of NaN for a constant map, whose order would
    be this random one alone.

    Parameters
    ----------
    score : callable
        Images (N, C, H, W) to one number each (N,), such as the probability of the target class by a model in eval
        mode; called without gradients on all images at once, ``steps + 1`` times.
    images : tensor (N, C, H, W), as the model takes them
    maps : tensor (N, 1, H, W)
    baseline : tensor (N, C, H, W) or number
        What a removed pixel becomes: 0, a mean, the blurred image. Results depend on it.
    steps : int
        Pixels go in so many groups of equal size, up to one pixel. RISE takes as many pixels a step as a row has.
    seed : int
        Of the order of pixels of equal relevance.

    Raises
    ------
    ValueError
        Images, maps or baseline of different size or not finite, steps below 1 or above the number of pixels, scores
        that are not one finite number per image.
    """
    start, end = _ends(images, maps, baseline, steps)
    return _curve(score, start, end, maps, steps, seed)


def insertion(
    score: Callable[[Tensor], Tensor],
    images: Float[Tensor, "n c h w"],
    maps: Float[Tensor, "n 1 h w"],
    baseline: Float[Tensor, "n c h w"] | float | int,
    steps: int = 50,
    seed: int = 0,
) -> ScoreCurve:
    """Put pixels of images into a baseline, the most relevant first, and return the scores (Petsiuk et al. 2018, RISE).

    The area is within the range of the scores, higher is better. All else is as in `deletion`; RISE inserts into the
    blurred image, since sharp edges on a flat ground are evidence themselves.

    Raises
    ------
    ValueError
        As `deletion`.
    """
    start, end = _ends(images, maps, baseline, steps)
    return _curve(score, end, start, maps, steps, seed)


def randomised(model: nn.Module, order: str = "top-down", seed: int = 0) -> Iterator[tuple[str, nn.Module]]:
    """Yield copies of a model in which layers are re-initialised one after another (Adebayo et al. 2018).

    The model parameter randomisation test compares the maps of the model with those of each copy by
    `rank_correlation`: high means that the map ignores what was learnt there, lower is better. A layer is a module
    with weights of its own, or running statistics, that has ``reset_parameters``. BatchNorm's running statistics go
    too, since they were learnt: signals then pass unscaled. Layers count in the order in which the model registers
    them, taken as the order of computation.

    The model, its mode and the global random numbers stay as they are. A layer draws the same weights in each order,
    and on each device.

    Parameters
    ----------
    model : nn.Module
    order : str
        ``top-down``: from the output down, each copy keeps the random layers before (cascading). ``independent``:
        each copy has one random layer.
    seed : int
        Of the random weights.

    Yields
    ------
    name : str, of the layer re-initialised in this step, as in ``model.named_modules()``: empty for the model itself
    copy : nn.Module, an independent copy

    Raises
    ------
    ValueError
        Unknown order, a model without weights, parameters in a module without ``reset_parameters``.
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}; got {order!r}")
    names = _layers(model)[::-1]
    seeds = torch.randint(2**31, (len(names),), generator=torch.Generator().manual_seed(seed)).tolist()
    # A function of its own, so that errors come with the call and not with the first copy.
    return _copies(copy.deepcopy(model), names, seeds, order)


def rank_correlation(
    maps_a: Float[Tensor, "n 1 h w"], maps_b: Float[Tensor, "n 1 h w"], absolute: bool = False
) -> Float[Tensor, " n"]:
    """Return Spearman's rank correlation (N,) of the pixels of each pair of maps, tied pixels sharing a mean rank.

    Range -1 to 1: 1 is the same order of pixels. Between maps of a model and of its `randomised` copy lower is better.
    With `absolute` the sign of relevance does not count; Adebayo et al. (2018) report both, for a network that only
    swaps signs looks random to one and unchanged to the other. Degenerate: NaN where one of the maps is constant.

    Raises
    ------
    ValueError
        Maps of different size or not finite.
    """
    for name, maps in (("maps_a", maps_a), ("maps_b", maps_b)):
        localisation.is_constant(maps, name)
    if maps_a.shape != maps_b.shape:
        raise ValueError(f"maps_b must have the shape of maps_a {tuple(maps_a.shape)}; got {tuple(maps_b.shape)}")
    one, two = (_centred_ranks((maps.abs() if absolute else maps).flatten(1)) for maps in (maps_a, maps_b))
    return (one * two).sum(1) / (one.square().sum(1) * two.square().sum(1)).sqrt()  # 0 / 0 is NaN


def target_sensitivity(
    maps_a: Float[Tensor, "n 1 h w"], maps_b: Float[Tensor, "n 1 h w"], absolute: bool = False
) -> Float[Tensor, " n"]:
    """Return 1 minus the rank correlation (N,) of maps of the same images for two target classes.

    Range 0 to 2, higher is better: 0 is a map that stays the same when asked for another class, 1 one without any
    relation, 2 a reversed one. The random logit test of Sixt et al. (2020), with ranks in place of their SSIM.
    Degenerate: NaN where one of the maps is constant.

    Raises
    ------
    ValueError
        Maps of different size or not finite.
    """
    return 1 - rank_correlation(maps_a, maps_b, absolute)


def _ends(images: Tensor, maps: Tensor, baseline: Tensor | float | int, steps: int) -> tuple[Tensor, Tensor]:
    """Check the arguments of a curve; return the images and the baseline as images."""
    localisation.is_constant(maps)
    if images.ndim != 4 or images[:, :1].shape != maps.shape:
        raise ValueError(f"images must have the size of maps {tuple(maps.shape)}; got {tuple(images.shape)}")
    ground = baseline if isinstance(baseline, Tensor) else torch.full_like(images, baseline)
    if ground.shape != images.shape:
        raise ValueError(f"baseline must be a number or have the shape of images; got {tuple(ground.shape)}")
    for name, values in (("images", images), ("baseline", ground)):
        if not values.isfinite().all():
            raise ValueError(f"{name} must be finite; got {values[~values.isfinite()][0].item()}")
    pixels = math.prod(maps.shape[1:])
    if not 1 <= steps <= pixels:
        raise ValueError(f"steps must lie between 1 and the number of pixels, {pixels}; got {steps}")
    return images, ground


def _curve(score: Callable, start: Tensor, end: Tensor, maps: Tensor, steps: int, seed: int) -> ScoreCurve:
    """Score `start` while its pixels become those of `end`."""
    place, pixels = _places(maps, seed), math.prod(maps.shape[1:])
    counts = [k * pixels // steps for k in range(steps + 1)]
    with torch.no_grad():
        scores = [_scored(score, torch.where(place < count, end, start)) for count in counts]
    shares = torch.tensor(counts, dtype=torch.float64, device=maps.device) / pixels
    rows = torch.stack(scores, 1).to(maps.device)
    return ScoreCurve(shares, rows.masked_fill(localisation.is_constant(maps)[:, None], math.nan))


def _places(maps: Tensor, seed: int) -> Int64[Tensor, "n 1 h w"]:
    """Return the place of each pixel in the order of falling relevance, 0 first."""
    flat = maps.detach().flatten(1)
    shuffled = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed)).to(flat.device)
    order = shuffled[flat[:, shuffled].argsort(dim=1, descending=True, stable=True)]
    places = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, places).view_as(maps)


def _scored(score: Callable, images: Tensor) -> Float[Tensor, " n"]:
    found = score(images)
    if found.shape != (len(images),) or not found.isfinite().all():
        values = found[~found.isfinite()][:1].tolist()
        raise ValueError(f"score must give {len(images)} finite numbers; got shape {tuple(found.shape)}, {values}")
    return found.double()


def _layers(model: nn.Module) -> list[str]:
    """Return the names of the modules with weights or statistics of their own, in the model's order."""
    names = []
    for name, layer in model.named_modules():
        weights, resets = [*layer.parameters(recurse=False)], hasattr(layer, "reset_parameters")
        if weights and not resets:
            raise ValueError(f"model must hold no {type(layer).__name__}, without reset_parameters; got it as {name!r}")
        if resets and (weights or [*layer.buffers(recurse=False)]):
            names.append(name)
    if not names:
        raise ValueError(f"model must have layers with weights; got {type(model).__name__} without")
    return names


def _copies(model: nn.Module, names: list[str], seeds: list[int], order: str) -> Iterator[tuple[str, nn.Module]]:
    changed = copy.deepcopy(model)
    for name, seed in zip(names, seeds, strict=True):
        if order == "independent":
            changed = copy.deepcopy(model)
        _reset(changed.get_submodule(name), seed)
        yield name, copy.deepcopy(changed)


def _reset(layer: nn.Module, seed: int) -> None:
    """Re-initialise a layer on the CPU, so that its weights and the random numbers touched are those of one device."""
    device = next(iter([*layer.parameters(), *layer.buffers()])).device
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        layer.cpu().reset_parameters()
    layer.to(device)


def _centred_ranks(values: Float[Tensor, "n p"]) -> Float[Tensor, "n p"]:
    """Return ranks less their mean, ties at their mean rank: half of (how many are lower - how many are higher)."""
    values = values.detach().contiguous()
    ordered = values.sort(dim=1).values
    lower, not_higher = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return (lower + not_higher - values.shape[1]).double() / 2
