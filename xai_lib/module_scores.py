"""What the maps of a module's x-features say, on drawn birds where the truth is known.

One category's test positives at a time: `locate` lays the maps over the parts, by the paper's stand-ins and by the true
masks, and `scores` gives one number for each question. ExcitationBP is a module with one unit. Several `Located` give
the correlations over all x-features and categories.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor
from torch.nn import functional

from xai_lib import bird_study, birds, excitation, explanation_metrics, parts, srae

COUNT = len(birds.PARTS)
SMALL = tuple(birds.PARTS.index(one) for one in ("left eye", "right eye", "beak"))
WIDE = tuple(birds.PARTS.index(one) for one in ("left wing", "right wing", "tail"))
LARGE = (*WIDE, birds.PARTS.index("belly"))
COVERED = 2.0  # a part is covered where the map's mean inside is above so many times its mean over the image
ACTIVE = 0.01  # share of the samples for which an active dimension of a layer is above 0
HELD = 0.1  # a part counts in a map where it holds this share of it


@dataclass(frozen=True)
class Located:
    """Maps of T units on N images of one category, and where they lie.

    Attributes
    ----------
    maps : tensor (N, T, H, W), P(pixel | unit), each sums to 1 or is all zero
    kept : bool tensor (N, T), false for all-zero maps
    by_region, by_plain : tensors (N, T, 16), algorithm 1, with the distance factor and without
    by_label : tensor (N, T, 15), the map at the part labels
    by_mask : tensor (N, T, 16), the map inside the true part masks, what is off the bird last
    """

    maps: Float[Tensor, "n t h w"]
    kept: Bool[Tensor, "n t"]
    by_region: Float[Tensor, "n t 16"]
    by_plain: Float[Tensor, "n t 16"]
    by_label: Float[Tensor, "n t 15"]
    by_mask: Float[Tensor, "n t 16"]


def locate(maps: Float[Tensor, "n t h w"], drawn: birds.Birds) -> Located:
    """Return where signed c-MWP maps lie on drawn birds."""
    found, kept = excitation.pixel_probabilities(maps)
    return Located(
        found,
        kept,
        parts.voronoi(found, drawn.parts, drawn.boxes),
        parts.voronoi(found, drawn.parts, drawn.boxes, distance="none"),
        parts.at_labels(found, drawn.parts),
        parts.in_masks(found, drawn.masks, COUNT),
    )


def localities(one: Located, by: str = "by_region") -> Float[Tensor, " t"]:
    """Return the locality of each unit in nats: the entropy of its part histogram, the mean over images."""
    return parts.locality(parts.histogram(getattr(one, by), one.kept))


def scores(one: Located, contributions: Float[Tensor, "n t"], drawn: birds.Birds) -> dict[str, float]:
    """Return one number for each question about the maps of a category; NaN where it has no answer.

    Parameters
    ----------
    one : Located
    contributions : tensor (N, T)
        What each unit adds to the logit of each image, v_n E_n; ones for ExcitationBP.
    drawn : birds.Birds
        The images, with their truth.

    Returns
    -------
    dict with

    - ``locality``, ``locality_true``: mean over units, by algorithm 1 and by the true masks, nats, lower is more local
    - ``o1``, ``o2``, ``kept``: orthogonality of the units' maps, 0 is best, and how many units have a map that varies
    - ``discriminative``: percent of the module's map on the parts that tell the species apart
    - ``covered``: percent of these parts, where seen, that the module's map covers
    - ``parts``: parts that hold a tenth or more of a map, mean over units that contribute positively
    - ``same``, ``other``: cosine between part histograms of one unit in two images, and of two units in one image
    - ``main``: share of the main unit's map on the discriminative parts over the share of the image that they cover

    The module's map is the mean of the units' maps, weighted by their positive contributions.
    """
    correlations, kept = explanation_metrics.map_correlations(one.maps)
    wanted = bird_study.discriminative_masks(drawn)
    whole = module_map(one, contributions)
    helps = one.kept & (contributions > 0)
    main = one.maps[torch.arange(len(one.maps)), torch.where(one.kept, contributions, -math.inf).argmax(1)]
    area = wanted.float().mean((1, 2))
    return {
        "locality": _mean(localities(one)),
        "locality_true": _mean(localities(one, "by_mask")),
        "o1": explanation_metrics.o1(correlations),
        "o2": explanation_metrics.o2(correlations),
        "kept": float(kept.sum()),
        "discriminative": 100 * _mean((whole * wanted).sum((1, 2)) / whole.sum((1, 2))),
        "covered": 100 * _mean(_covered(whole, drawn)),
        "parts": _mean(parts.count_above(one.by_mask, HELD)[helps]),
        "same": _mean(_same_unit(one)),
        "other": _mean(_other_unit(one)),
        "main": _mean(((main * wanted).sum((1, 2)) / area)[(area > 0) & one.kept.any(1)]),
    }


def module_map(one: Located, contributions: Float[Tensor, "n t"]) -> Float[Tensor, "n h w"]:
    """Return the mean of the units' maps weighted by their positive contributions; zero where none is positive."""
    weights = contributions.clamp(min=0) * one.kept
    return torch.einsum("nt,nthw->nhw", weights / weights.sum(1, keepdim=True).clamp(min=1e-12), one.maps)


def _covered(whole: Tensor, drawn: birds.Birds) -> Tensor:
    """Return the share of visible discriminative parts of each image (N,) that its map covers; NaN without any."""
    inside = functional.one_hot(drawn.masks.long(), COUNT + 1)[..., 1:].double()  # (N, H, W, 15)
    means = torch.einsum("nhw,nhwp->np", whole.double(), inside) / inside.sum((1, 2)).clamp(min=1)
    asked = drawn.species.discriminative[drawn.labels] & (drawn.parts[:, :, 2] > 0)
    found = asked & (means > COVERED * whole.double().mean((1, 2))[:, None])
    return torch.where(asked.any(1), found.sum(1) / asked.sum(1).clamp(min=1), math.nan)


def _cosines(one: Located) -> tuple[Tensor, Tensor]:
    """Return unit part histograms (N, T, 16), zero where there is no map, and the mask of those there are."""
    return functional.normalize(one.by_mask.double(), dim=2), one.kept


def _same_unit(one: Located) -> Tensor:
    """Return, for each unit (T,), the mean cosine between two different images."""
    rows, kept = _cosines(one)
    sums, count = rows.sum(0), kept.sum(0).double()
    return torch.where(count > 1, (sums.square().sum(1) - count) / (count * (count - 1)), math.nan)


def _other_unit(one: Located) -> Tensor:
    """Return, for each image (N,), the mean cosine between two different units."""
    rows, kept = _cosines(one)
    sums, count = rows.sum(1), kept.sum(1).double()
    return torch.where(count > 1, (sums.square().sum(1) - count) / (count * (count - 1)), math.nan)


def _mean(values: Tensor) -> float:
    return values.double().nanmean().item()


# ---------------------------------------------------------------------------------------------------------------------
# Over all x-features and categories


def collected(rows: Sequence[Mapping[str, float]]) -> dict[str, Tensor]:
    """Return {name: (C,)} of C dictionaries of numbers, such as those of `scores`."""
    return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}


def rank_correlation(x: Tensor, y: Tensor) -> float:
    """Return Spearman's rank correlation of two samples, -1 to 1, ties shared; NaN pairs left out, NaN if constant."""
    both = ~(x.isnan() | y.isnan())
    x, y = x[both].double(), y[both].double()
    if len(x) < 2 or x.max() == x.min() or y.max() == y.min():
        return math.nan
    return float(stats.spearmanr(x.numpy(), y.numpy()).statistic)


def order_correlation(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> float:
    """Return Kendall's rank correlation (tau-b) of two orders, -1 to 1; NaN if one is constant."""
    return float(stats.kendalltau(x.numpy(), y.numpy()).statistic)


def fidelity(many: Sequence[Located], by: str = "by_label") -> Float[Tensor, " 15"]:
    """Return, for each part, the rank correlation of its probability by a stand-in with that by the true mask."""
    kept = torch.cat([one.kept.flatten() for one in many])
    stand_in, truth = (torch.cat([getattr(one, each).flatten(0, 1) for one in many])[kept] for each in (by, "by_mask"))
    return torch.tensor([rank_correlation(stand_in[:, p], truth[:, p]) for p in range(COUNT)], dtype=torch.float64)


def histogram_error(many: Sequence[Located], by: str) -> tuple[float, float]:
    """Return how far part histograms by a stand-in are from those by the true masks, each normalised to sum 1.

    Returns
    -------
    error : float, mean absolute difference on wings, tail and belly
    bias : float, mean difference on wings, tail and belly less that on eyes and beak; above 0: large parts score high
    """
    placed = (one.kept & (one.by_label.sum(2) > 0) & (one.by_region[..., :COUNT].sum(2) > 0) for one in many)
    kept = torch.cat([rows.flatten() for rows in placed])  # the same maps for every stand-in
    shares = []
    for each in (by, "by_mask"):
        values = torch.cat([getattr(one, each)[..., :COUNT].flatten(0, 1) for one in many])[kept].double()
        shares.append(values / values.sum(1, keepdim=True))
    difference = shares[0] - shares[1]
    difference = difference[~difference.isnan().any(1)]
    bias = difference[:, list(LARGE)].mean() - difference[:, list(SMALL)].mean()
    return difference[:, list(LARGE)].abs().mean().item(), bias.item()


def counts_parts(many: Sequence[Located], share: float = 0.05) -> float:
    """Return the rank correlation of locality and the log of the number of parts that hold `share` of the true map."""
    entropy, number = [], []
    for one in many:
        held = torch.where(one.kept, parts.count_above(one.by_mask, share).double(), math.nan)
        entropy.append(localities(one))
        number.append(held.nanmean(0).clamp(min=1e-3).log())
    return rank_correlation(torch.cat(entropy), torch.cat(number))


def mixed(one: Located, share: float = HELD) -> Float[Tensor, " t"]:
    """Return, for each unit, 1 where two parts or more each hold `share` of its histogram by the true masks, else 0."""
    number = parts.count_above(parts.histogram(one.by_mask, one.kept), share)
    return torch.where(number.isnan(), math.nan, (number >= 2).double())


# ---------------------------------------------------------------------------------------------------------------------
# Faithfulness and reconstruction of many modules


def faithfulness(
    predictions: Float[Tensor, "n c"],
    logits: Float[Tensor, "n k"],
    categories: Sequence[int],
    rows: Bool[Tensor, "n c"],
    positive: Bool[Tensor, "n c"],
) -> dict[str, Float[Tensor, " c"]]:
    """Return the measures of faithfulness of each category's module.

    Parameters
    ----------
    predictions, logits : tensors (N, C) and (N, K)
        What the modules say, and the network.
    categories : C numbers, whose logits they explain
    rows, positive : bool tensors (N, C)
        The samples that count for each category, and its positives among them.

    Returns
    -------
    dict of tensors (C,)

    - ``freg``, ``r2``, ``fcls`` (percent): over all rows
    - ``freg_positive``, ``fcls_positive``, ``relative`` (error in percent of the mean absolute logit): over positives
    - ``switched``: how many rows change their class
    """
    found: dict[str, list[float]] = {}
    for k, category in enumerate(categories):
        some, own = rows[:, k], positive[:, k]
        guess, target = predictions[:, k], logits[:, category]
        fcls = explanation_metrics.unchanged_classes(logits[some], int(category), guess[some])
        own_error = explanation_metrics.mean_absolute_error(guess[own], target[own])
        one = {
            "freg": explanation_metrics.mean_absolute_error(guess[some], target[some]),
            "r2": explanation_metrics.r_squared(guess[some], target[some]),
            "fcls": fcls,
            "switched": float(round((1 - fcls / 100) * int(some.sum()))),
            "freg_positive": own_error,
            "fcls_positive": explanation_metrics.unchanged_classes(logits[own], int(category), guess[own]),
            "relative": 100 * own_error / target[own].abs().mean().item(),
        }
        for name, value in one.items():
            found.setdefault(name, []).append(value)
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}


def reconstruction(
    model: srae.Autoencoders, z: Float[Tensor, "n z"], logits: Float[Tensor, "n c"]
) -> dict[str, Float[Tensor, " c"]]:
    """Return what each module reconstructs of its layer, over the active dimensions.

    A dimension is active where at least `ACTIVE` of the samples are above 0: one that hardly ever is has next to no
    variance to explain, and an R^2 without a lower bound that would decide the mean.

    Returns
    -------
    dict of tensors (C,)

    - ``selectivity``: mean R^2 over the tenth of dimensions that correlates most with the logit, less that over the
      half that correlates least
    - ``share``: percent of dimensions with an R^2 above one half
    - ``irrelevant``: mean R^2 over the half that correlates least
    """
    layer, active = z, (z > 0).double().mean(0) >= ACTIVE
    z = layer[:, active]
    found: dict[str, list[float]] = {"selectivity": [], "share": [], "irrelevant": []}
    for k in range(logits.shape[1]):
        with torch.no_grad():
            back = model.single_decoder(k)(model.single(k)(layer))[:, active]
        fit = explanation_metrics.reconstruction_r_squared(back, z)
        near = explanation_metrics.correlations_with(z, logits[:, k]).abs()
        varies = ~(fit.isnan() | near.isnan())
        order = near[varies].argsort(stable=True)
        found["selectivity"].append(explanation_metrics.selectivity(fit, near))
        found["share"].append(100 * (fit[varies] > 0.5).double().mean().item())
        found["irrelevant"].append(fit[varies][order[: len(order) // 2]].mean().item())
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}


def column(table: Mapping[tuple[str, int], Mapping[str, Tensor]], kind: str, what: str) -> Float[Tensor, "s c"]:
    """Return one measure of one kind of module from {(kind, seed): {measure: (C,)}}, a row for each seed."""
    return torch.stack([one[what].double() for (name, _), one in table.items() if name == kind])


def per_seed(values: Float[Tensor, "s c"], seeds: Sequence[int]) -> dict[int, float]:
    """Return {seed: mean over categories}, of finite values; a seed without any is left out."""
    pairs = zip(seeds, values, strict=True)
    return {seed: row[row.isfinite()].mean().item() for seed, row in pairs if row.isfinite().any()}


def per_category(values: Float[Tensor, "s c"], categories: Sequence[int]) -> dict[int, float]:
    """Return {category: mean over seeds}; a category with a value that is not finite is left out."""
    pairs = zip(categories, values.mean(0).tolist(), strict=True)
    return {int(category): value for category, value in pairs if math.isfinite(value)}


def finite(values: Mapping) -> dict:
    """Return nested numbers without those that are not finite, and without mappings that are left empty by it."""
    kept = {}
    for key, one in values.items():
        if isinstance(one, Mapping):
            inner = finite(one)
            if inner or not one:
                kept[key] = inner
        elif math.isfinite(one):
            kept[key] = one
    return kept
