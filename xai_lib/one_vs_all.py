"""One category against all others: samples and their weights, folds, and settings chosen by cross-validation.

The paper trains each explanation module on 50 positives of a category, weighed up, and 8,000 negatives, and tunes all
methods by cross-validation on the training set (Qi, Khorram, Li 2017, section 4.2). It names no weight, no number of
folds and no criterion; ours are stated at each function.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from xai_lib import srae, training


def sample_weights(
    labels: Int64[Tensor, " n"],
    categories: Sequence[int],
    positives: int | None = None,
    negatives: int | None = None,
    share: float = 0.5,
    seed: int = 0,
) -> Float[Tensor, "n c"]:
    """Return the weight of each sample in each category's training, mean 1; 0 for samples that have no part in it.

    Parameters
    ----------
    labels : int64 tensor (N,)
    categories : sequence of int
        The classes to explain, C of them.
    positives, negatives : int, optional
        Numbers of samples of the category and of other classes, drawn for each category; default all.
    share : float
        What the positives weigh together, 0 to 1: with 0.5 as much as all the negatives. The paper weighs them up
        without a number. Where it is 0, all samples weigh the same.
    seed : int

    Raises
    ------
    ValueError
        A category without positives or without negatives, or a number out of its range.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share must be 0 or more and below 1; got {share}")
    for name, value in (("positives", positives), ("negatives", negatives)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    columns = []
    for category in categories:
        inside = labels == category
        if not inside.any() or inside.all():
            kind = "negatives" if inside.any() else "positives"
            raise ValueError(f"categories: {category} has no {kind} among {len(labels)} samples")
        generator = torch.Generator().manual_seed(1_000_003 * seed + int(category))
        positive, negative = _some(inside, positives, generator), _some(~inside, negatives, generator)
        if share:
            column = positive * (share / positive.sum()) + negative * ((1 - share) / negative.sum())
        else:
            column = (positive | negative) / (positive | negative).sum()
        columns.append(column * len(labels))
    return torch.stack(columns, 1).float()


def _some(rows: Bool[Tensor, " n"], count: int | None, generator: torch.Generator) -> Bool[Tensor, " n"]:
    """Return a mask of `count` of the rows that are true, drawn at random."""
    index = rows.nonzero()[:, 0]
    return torch.zeros_like(rows).index_fill(0, index[torch.randperm(len(index), generator=generator)[:count]], True)


def folds(weights: Float[Tensor, "n c"], count: int, seed: int = 0) -> Int64[Tensor, "n c"]:
    """Return the fold, 0 to `count` - 1, of each sample of each category; samples of equal weight are dealt evenly.

    With `sample_weights`, positives and negatives differ in weight, so that each fold has its share of both. Samples
    without weight have -1.

    Raises
    ------
    ValueError
        `count` is below 2, or larger than a category's number of positives.
    """
    if count < 2:
        raise ValueError(f"count must be 2 or more; got {count}")
    found = torch.full(weights.shape, -1, dtype=torch.int64)
    for k, column in enumerate(weights.T):
        for value in column[column > 0].unique():
            rows = (column == value).nonzero()[:, 0]
            if len(rows) < count:
                raise ValueError(
                    f"count must be at most {len(rows)}, the samples of module {k} of one kind; got {count}"
                )
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1_000_003 * seed + k))
            found[rows[order], k] = torch.arange(len(rows)) % count
    return found


def held_out_errors(
    z: Float[Tensor, "n z"],
    logits: Float[Tensor, "n c"],
    weights: Float[Tensor, "n c"],
    settings: Sequence[srae.Objective],
    size: srae.Size,
    recipe: training.Recipe,
    *,
    count: int = 5,
    seed: int = 0,
    name: str,
    folder: Path,
) -> Float[Tensor, "s c f"]:
    """Return the cross-validated error of settings: each trained on all folds but one, and judged on that one.

    All modules (settings, categories, folds) are trained together. The error is the mean absolute difference to the
    logit in which samples count by their weights, so positives as much as negatives.

    Parameters
    ----------
    z : tensor (N, S_z)
        Activations of the layer.
    logits, weights : tensors (N, C)
        As in `srae.fit`.
    settings : sequence of srae.Objective
        S of them, of one penalty and one `over`, with numbers for all modules.
    size : srae.Size
    recipe : training.Recipe
    count : int
        Number of folds F.
    seed : int
        Of the folds, the initial weights and the order of samples.
    name, folder : str, Path
        As in `training.fit`.

    Returns
    -------
    tensor (S, C, F), in logits

    Raises
    ------
    ValueError
        No settings, or of several kinds; see also `folds` and `srae.fit`.
    """
    if not settings:
        raise ValueError("settings must hold at least one; got none")
    one = settings[0]
    if any((each.penalty, each.over) != (one.penalty, one.over) for each in settings):
        raise ValueError(f"settings must have one penalty and one `over`; got {[each.penalty for each in settings]}")
    part = folds(weights, count, seed)
    held = torch.stack([part == k for k in range(count)], 2).flatten(1)  # (N, C F)
    each, target = weights.repeat_interleave(count, 1), logits.repeat_interleave(count, 1)
    trained, judged = (kept / kept.mean(0) for kept in (each * ~held, each * held))
    repeated = {
        key: tuple(value for setting in settings for value in [getattr(setting, key)] * held.shape[1])
        for key in ("beta", "q", "decay", "pull_away")
    }
    fitted = srae.fit(
        z,
        target.repeat(1, len(settings)),
        trained.repeat(1, len(settings)),
        replace(one, **repeated),
        size,
        recipe,
        seeds=[seed] * (len(settings) * held.shape[1]),
        order=seed,
        name=name,
        folder=folder,
    )
    found = training.predict(fitted.model, z).unflatten(1, (len(settings), -1))  # (N, S, C F)
    errors = ((found - target[:, None]).abs() * judged[:, None]).mean(0)
    return errors.unflatten(1, (-1, count))


def most_within_one_error(errors: Float[Tensor, "s c f"], rank: Sequence[float]) -> int:
    """Return the setting with the highest rank among those within one standard error of the best one.

    By error alone no reconstruction always wins, so the rule of one standard error (Breiman et al. 1984) decides: of
    what predicts as well, what reconstructs most. The standard error is that of the best setting's mean over folds.

    Parameters
    ----------
    errors : tensor (S, C, F), from `held_out_errors`
    rank : sequence of S numbers, for instance each setting's weight of the reconstruction; ties: the smaller error
    """
    by_fold = errors.mean(1)  # (S, F)
    means = by_fold.mean(1)
    best = int(means.argmin())
    limit = means[best] + by_fold[best].std() / math.sqrt(by_fold.shape[1])
    within = [k for k in range(len(means)) if means[k] <= limit]
    return max(within, key=lambda k: (rank[k], -means[k].item()))
