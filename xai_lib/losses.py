"""Losses for `training.fit`: functions of the model and a batch that return one number to minimise."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


def cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of the logits of `model`, 0 or more.

    This is what equation 3 of the XCNN paper has to mean: minus the log of the true class's probability.
    """
    return functional.cross_entropy(model(images).float(), labels)


def printed_equation_3(model: nn.Module, images: Tensor, labels: Tensor) -> Float[Tensor, ""]:
    """Equation 3 of the XCNN paper as printed: the mean of *plus* log D(I(x)), unbounded below."""
    return -cross_entropy(model, images, labels)


def negative_log_likelihood(logits: Float[Tensor, "n k"], labels: Tensor) -> Float[Tensor, " n"]:
    """Return the cross-entropy in nats of each sample (N,)."""
    return functional.cross_entropy(logits.float(), labels.to(torch.int64), reduction="none")
