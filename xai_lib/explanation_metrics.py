r"""Measures of an explanation module (Qi, Khorram, Li 2017, section 4.1): faithfulness, orthogonality, masks.

.. math:: F_{reg} = \frac{1}{M} \sum_m |\bar y^{(m)} - \hat y^{(m)}|, \quad
    O_1 = \lVert P \rVert_F - \sqrt{n}, \quad O_2 = -\log \det P

with the logit :math:`\hat y`, its approximation :math:`\bar y` and the matrix P of correlation coefficients of the maps
of n x-features. Sums are in float64. What is not defined is NaN, so that the caller counts it and leaves it out; only
what is exactly constant counts as constant. Who raises ValueError does so for empty and non-finite tensors, too.
"""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def mean_absolute_error(prediction: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> float:
    """Return F_reg, the mean absolute error in logits: 0 to infinity, lower is better.

    Raises
    ------
    ValueError
        Different shapes: (N, 1) against (N,) would broadcast to N x N differences and compare each with each.
    """
    _check(prediction=(prediction, "n"), target=(target, "n"))
    return (prediction.double() - target.double()).abs().mean().item()


def r_squared(prediction: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> float:
    """Return the share of variance explained: minus infinity to 1, higher is better; NaN for a constant target.

    It is 0 for the mean of the target, whose F_reg can be small.

    Raises
    ------
    ValueError
        Different shapes.
    """
    _check(prediction=(prediction, "n"), target=(target, "n"))
    return reconstruction_r_squared(prediction[:, None], target[:, None]).item()


def unchanged_classes(logits: Float[Tensor, "n k"], category: int, prediction: Float[Tensor, " n"]) -> float:
    """Return F_cls: the percentage of samples that keep their class with `prediction` for the category's logit.

    Range 0 to 100, higher is better; of equal logits the first wins. It is nearly trivial where most samples are
    negatives: a constant below all other logits scores about 100 less the percentage of positives. Hence report it on
    positives alone, and for a constant.

    Raises
    ------
    ValueError
        Shapes that do not fit, a category that is none of the logits.
    """
    _check(logits=(logits, "n k"), prediction=(prediction, "n"))
    if not 0 <= category < logits.shape[1]:
        raise ValueError(f"category must lie between 0 and {logits.shape[1] - 1}; got {category}")
    return unchanged_classes_jointly(logits, torch.tensor([category], device=logits.device), prediction[:, None])


def unchanged_classes_jointly(
    logits: Float[Tensor, "n k"], categories: Int64[Tensor, " c"], predictions: Float[Tensor, "n c"]
) -> float:
    """Return F_cls with the logits of several categories replaced at once: 0 to 100 percent, higher is better.

    Raises
    ------
    ValueError
        Shapes that do not fit, categories that are none of the logits or come twice.
    """
    _check(logits=(logits, "n k"), categories=(categories, "c"), predictions=(predictions, "n c"))
    asked = categories.tolist()
    if len(set(asked)) < len(asked) or not 0 <= min(asked) <= max(asked) < logits.shape[1]:
        raise ValueError(f"categories must be distinct, between 0 and {logits.shape[1] - 1}; got {asked}")
    replaced = logits.double().index_copy(1, categories, predictions.double())
    return 100 * (replaced.argmax(1) == logits.argmax(1)).double().mean().item()


def map_correlations(
    maps: Float[Tensor, "m n h w"], per_image: bool = False
) -> tuple[Float[Tensor, "k k"], Bool[Tensor, " n"]]:
    """Return the correlation coefficients (K, K) of the maps of n x-features on m images, and which are `kept` (n,).

    The paper's covariance is "aggregated over the dataset": an x-feature is a random variable with all pixels of all
    images as samples; or, `per_image`, each map is centred in its image and the covariances are averaged, so that
    responding to the same images does not correlate. A constant map (in each image, with `per_image`) has no
    correlation: its x-feature is left out, and K may be 0.

    Raises
    ------
    ValueError
        Not such maps.
    """
    _check(maps=(maps, "m n h w"))
    values, over = maps.double(), (2, 3) if per_image else (0, 2, 3)
    varies = values.amax(over, keepdim=True) > values.amin(over, keepdim=True)
    kept = varies.any(0).flatten()
    rows = torch.where(varies, values - values.mean(over, keepdim=True), 0).transpose(0, 1)[kept].flatten(1)
    rows = rows / rows.norm(dim=1, keepdim=True)
    return (rows @ rows.T).clamp(-1, 1).fill_diagonal_(1), kept


def o1(correlations: Float[Tensor, "k k"]) -> float:
    """Return O_1: 0 (best, no correlation) to k - sqrt(k) (all 1 or -1), so compare at equal k; NaN without maps."""
    return correlations.double().norm().item() - math.sqrt(len(correlations)) if len(correlations) else math.nan


def o2(correlations: Float[Tensor, "k k"]) -> float:
    """Return O_2: 0 (best, no correlation) to infinity (a map is a linear combination of others); NaN without maps.

    It comes from the eigenvalues: one below 1e-12 is zero up to rounding, while a determinant that small need not be.
    """
    if not len(correlations):
        return math.nan
    eigenvalues = torch.linalg.eigvalsh(correlations.double())
    return math.inf if eigenvalues[0] < 1e-12 else 0.0 - eigenvalues.log().sum().item()


def reconstruction_r_squared(
    reconstruction: Float[Tensor, "n z"], features: Float[Tensor, "n z"]
) -> Float[Tensor, " z"]:
    """Return R^2 of each dimension (Z,): minus infinity to 1, higher is better; NaN for a constant dimension.

    Raises
    ------
    ValueError
        Different shapes.
    """
    _check(reconstruction=(reconstruction, "n z"), features=(features, "n z"))
    wanted = features.double()
    residual, total = (reconstruction.double() - wanted).square().sum(0), (wanted - wanted.mean(0)).square().sum(0)
    return torch.where(wanted.amax(0) > wanted.amin(0), 1 - residual / total, math.nan)


def correlations_with(features: Float[Tensor, "n z"], target: Float[Tensor, " n"]) -> Float[Tensor, " z"]:
    """Return each dimension's correlation with the target (Z,), -1 to 1; NaN where either is constant.

    Raises
    ------
    ValueError
        Shapes that do not fit.
    """
    _check(features=(features, "n z"), target=(target, "n"))
    x, y = (values.double() - values.double().mean(0) for values in (features, target))
    varies = (features.amax(0) > features.amin(0)) & (target.amax() > target.amin())
    return torch.where(varies, (y @ x / (x.norm(dim=0) * y.norm())).clamp(-1, 1), math.nan)


def selectivity(r_squared: Float[Tensor, " z"], correlation: Float[Tensor, " z"]) -> float:
    """Return mean R^2 of the dimensions that matter to the logit, less that of those that do not; higher is better.

    They are the tenth (rounded, at least one) of highest absolute correlation and the half (rounded down) of lowest.
    No bounds. Dimensions with NaN are left out; NaN where fewer than two remain.
    """
    active = ~(r_squared.isnan() | correlation.isnan())
    ordered = r_squared[active].double()[correlation[active].abs().argsort(stable=True)]
    count = len(ordered)
    return (ordered[-max(1, round(count / 10)) :].mean() - ordered[: count // 2].mean()).item()


def joined(maps: Float[Tensor, "n t h w"]) -> Float[Tensor, "n 1 h w"]:
    """Return the largest of t maps in each pixel, 0 to 1, each divided by its own maximum first.

    Negative values, as c-MWP has them, count as zero; a map without positive ones stays zero.
    """
    responses = maps.clamp(min=0)
    peaks = responses.amax((2, 3), keepdim=True)
    return torch.where(peaks > 0, responses / peaks, 0).amax(1, keepdim=True)


def responding(maps: Float[Tensor, "n 1 h w"], fraction: float = 0.01) -> Bool[Tensor, "n 1 h w"]:
    """Say which pixels have at least `fraction` of their map's highest response; none where no response is positive.

    Raises
    ------
    ValueError
        Not such maps, a fraction outside (0, 1].
    """
    _check(maps=(maps, "n 1 h w"))
    _check_share("fraction", fraction)
    return (maps > 0) & (maps >= fraction * maps.amax((2, 3), keepdim=True))


def masked(
    images: Float[Tensor, "n c h w"], keep: Bool[Tensor, "n 1 h w"], fill: Float[Tensor, "c 1 1"] | float | int
) -> Float[Tensor, "n c h w"]:
    """Return the images with `fill` in the pixels that are not kept (section 4.2).

    Raises
    ------
    ValueError
        Shapes that do not fit.
    """
    _check(images=(images, "n c h w"), keep=(keep, "n 1 h w"))
    colour = torch.as_tensor(fill, dtype=images.dtype, device=images.device)
    if colour.shape not in ((), (images.shape[1], 1, 1)):
        raise ValueError(f"fill must be a number or ({images.shape[1]}, 1, 1); got {tuple(colour.shape)}")
    return torch.where(keep, images, colour)


def average_precision(scores: Float[Tensor, " n"], positive: Bool[Tensor, " n"]) -> float:
    """Return the average precision of a ranking (table 2): above 0 to 1, higher is better.

    Equal scores are one rank, so a constant gets the share of positives. NaN without positives, 1 without negatives.
    """
    if not positive.any():
        return math.nan
    from sklearn.metrics import average_precision_score  # here, as sklearn takes a second to load

    return float(average_precision_score(positive.cpu().numpy(), scores.detach().double().cpu().numpy()))


def used(contributions: Float[Tensor, "m n"], share: float = 0.01) -> Bool[Tensor, " n"]:
    """Say which x-features are used: mean absolute contribution (weight times activation) on m positives is at least
    `share` of the sum over all x-features. None is where all contribute nothing.

    Raises
    ------
    ValueError
        Not such contributions, a share outside (0, 1].
    """
    _check(contributions=(contributions, "m n"))
    _check_share("share", share)
    sizes = contributions.double().abs().mean(0)
    return (sizes > 0) & (sizes >= share * sizes.sum())


def positive(
    contributions: Float[Tensor, "m n"], logits: Float[Tensor, " m"], share: float = 0.01
) -> Bool[Tensor, " n"]:
    """Say which x-features contribute more than `share` of the mean absolute logit, in the mean over m positives.

    Raises
    ------
    ValueError
        Shapes that do not fit, a share outside (0, 1].
    """
    _check(contributions=(contributions, "m n"), logits=(logits, "m"))
    _check_share("share", share)
    return contributions.double().mean(0) > share * logits.double().abs().mean()


def _check(**named: tuple[Tensor, str]) -> None:
    """Check tensors for finite values and for shapes such as "n z", where a letter is one size in all of them."""
    sizes = {"1": 1}
    for name, (values, shape) in named.items():
        axes, known = shape.split(), sizes.keys() - {"1"}
        fits = values.numel() > 0 and values.ndim == len(axes)
        if not fits or any(sizes.setdefault(axis, size) != size for axis, size in zip(axes, values.shape, strict=True)):
            wanted = ", ".join(f"{axis} = {sizes[axis]}" if axis in known else axis for axis in axes)
            raise ValueError(f"{name} must have shape ({wanted}), not empty; got {tuple(values.shape)}")
        if not values.isfinite().all():
            raise ValueError(f"{name} must be finite; got {values[~values.isfinite()][0].item()}")


def _check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{name} must lie above 0 and not above 1; got {value}")
