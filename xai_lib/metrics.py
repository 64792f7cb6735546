"""Measures of a trained network, pure functions on tensors.

Each says its range, its direction and its degenerate cases.
"""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from xai_lib import losses


def accuracy(logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"]) -> float:
    """Return the percentage of samples whose largest logit is the label's: 0 to 100, higher is better.

    Raises
    ------
    ValueError
        No samples, or logits and labels of different number.
    """
    _same_length(logits, labels)
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def entropy(labels: Int64[Tensor, " n"]) -> float:
    """Return the entropy of the empirical distribution of labels in bits: 0 (one class) to log2 of their number."""
    share = torch.bincount(labels).double() / len(labels)
    return -torch.special.xlogy(share, share).sum().item() / math.log(2)


def usable_information(logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"]) -> float:
    r"""Return the usable information of a decoder's input about the labels in bits (Xu et al. 2020).

    :math:`I_V(X \to Y) = H(Y) - H_V(Y | X)`, where :math:`H_V(Y|X)` is the smallest cross-entropy that the family V
    of decoders reaches, here the cross-entropy of one fitted member on held-out samples.

    Range: minus infinity to H(Y), higher is better; 0 where the decoder is no better than the label frequencies,
    negative where it is worse.

    Raises
    ------
    ValueError
        No samples, or logits and labels of different number.
    """
    _same_length(logits, labels)
    return entropy(labels) - losses.negative_log_likelihood(logits, labels).double().mean().item() / math.log(2)


def empirical_information(samples: Tensor, labels: Int64[Tensor, " n"]) -> float:
    """Return the Shannon information in bits between labels and samples, both as the finite set that they are.

    A sample counts as one symbol, so this is exact for the empirical distribution: H(Y), less what is lost where equal
    samples carry different labels. Range 0 to H(Y). By the data processing inequality no function of the samples has
    more.

    Parameters
    ----------
    samples : tensor (N, ...)
        Compared bit by bit.
    labels : int64 tensor (N,)

    Raises
    ------
    ValueError
        No samples, or samples and labels of different number.
    """
    _same_length(samples, labels)
    _, symbols = torch.unique(samples.reshape(len(samples), -1), dim=0, return_inverse=True)
    joint = symbols * (labels.max() + 1) + labels
    return entropy(labels) + entropy(symbols) - entropy(torch.unique(joint, return_inverse=True)[1])


def margin(logits: Float[Tensor, "n k"], over: Int64[Tensor, " n"], under: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return logit `over` minus logit `under` of each sample (N,), in logits; positive where `over` wins."""
    return (logits.gather(1, over[:, None]) - logits.gather(1, under[:, None]))[:, 0]


def top_mask(maps: Float[Tensor, "n 1 h w"], fraction: float) -> Bool[Tensor, "n 1 h w"]:
    """Return a mask of the highest `fraction` of each map's pixels, exactly as many in each; ties by position.

    Raises
    ------
    ValueError
        `fraction` is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1; got {fraction}")
    flat = maps.flatten(1)
    chosen = flat.argsort(dim=1, descending=True, stable=True)[:, : max(1, round(fraction * flat.shape[1]))]
    return torch.zeros_like(flat, dtype=torch.bool).scatter(1, chosen, True).view_as(maps)


def matched_random_mask(
    mask: Bool[Tensor, "n 1 h w"], ink: Bool[Tensor, "n 1 h w"], generator: torch.Generator
) -> Bool[Tensor, "n 1 h w"]:
    """Return a random mask with as many pixels on the ink, and as many off it, as `mask` has in each image.

    It is the control for a deletion: what falls when as much ink goes, wherever it stands.
    """
    noise = torch.rand(mask.shape, generator=generator)
    chosen = torch.zeros_like(mask)
    for region in (ink, ~ink):
        count = (mask & region).flatten(1).sum(1, keepdim=True)
        order = noise.masked_fill(~region, 2).flatten(1).argsort(dim=1)
        rank = torch.empty_like(order).scatter(1, order, torch.arange(order.shape[1]).expand_as(order))
        chosen |= (rank < count).view_as(mask)
    return chosen


def _same_length(samples: Tensor, labels: Tensor) -> None:
    if len(samples) != len(labels) or not len(labels):
        raise ValueError(f"labels must be one per sample, and there must be some; got {len(labels)}, {len(samples)}")
