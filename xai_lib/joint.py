r"""One module for many logits: the same x-features, a linear head for each logit (Qi, Khorram, Li 2017, section 2.1).

The paper explains one logit at a time, since a few x-features are "generally" not enough for many. This is the other
way, to test that: equation 4 with the mean over logits of the first term; a sample counts in :math:`Q_k` by its mean
weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from xai_lib import srae


class JointAutoencoder(nn.Module):
    """One encoder and decoder as in `srae.Autoencoders`, and K heads.

    Parameters
    ----------
    inputs : int
        Dimensions of the layer.
    hidden : sequence of int
        Units between the layer and the x-features.
    features, outputs : int
        Number of x-features, n, and of logits, K.
    seed : int
        Of the initial weights.

    Raises
    ------
    ValueError
        A number is below 1, or there are more x-features than dimensions.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], features: int, outputs: int, seed: int = 0):
        super().__init__()
        if outputs < 1:
            raise ValueError(f"outputs must be 1 or more; got {outputs}")
        self.body = srae.Autoencoders(inputs, hidden, features, (seed,))
        heads = [srae.Autoencoders(features, (), features, (1000 * seed + k,), decoder=False) for k in range(outputs)]
        self.heads = nn.Parameter(torch.cat([one.head.detach() for one in heads]))
        self.body.head.requires_grad_(False)  # not used

    def forward(self, z: Float[Tensor, "b z"]) -> Float[Tensor, "b k"]:
        """Return the approximated logits."""
        return self.body.encode(z)[0] @ self.heads.T


@dataclass(frozen=True)
class JointObjective:
    """Equation 4 over many logits, for `training.fit`; `single` holds penalty and weights, with numbers alone."""

    single: srae.Objective

    def __call__(
        self,
        model: JointAutoencoder,
        z: Float[Tensor, "b z"],
        logits: Float[Tensor, "b k"],
        weights: Float[Tensor, "b k"],
    ) -> Float[Tensor, ""]:
        """Return the objective on a batch.

        Raises
        ------
        ValueError
            Predictions, logits and weights differ in shape.
        """
        e = model.body.encode(z)
        predicted = e[0] @ model.heads.T
        if not predicted.shape == logits.shape == weights.shape:
            shapes = f"{tuple(predicted.shape)}, {tuple(logits.shape)} and {tuple(weights.shape)}"
            raise ValueError(f"logits must have the shape of the prediction and of the weights; got {shapes}")
        faithful = (weights * (predicted - logits).square()).mean()
        errors = (weights.mean(1)[:, None] * (model.body.decode(e)[0] - z).square()).mean(0, keepdim=True)
        rebuilt = self.single.sparsity(errors, model.body).mean()
        layers = (*model.body.encoder, *model.body.decoder)
        size = sum(layer.weight.square().sum() for layer in layers) + model.heads.square().sum()
        return faithful + self.single.beta * rebuilt + self.single.decay * size
