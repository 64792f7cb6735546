r"""Patterns for PatternNet and PatternAttribution (Kindermans et al. 2017, "Learning how to explain neural networks").

The input of a neuron holds signal and distractor; its weights must cancel the distractor, so they do not show the
signal. The direction of the signal, the pattern a, is estimated from data. With :math:`y = w^T x`,

.. math::
   a = \frac{E[xy] - E[x]E[y]}{E[y^2] - E[y]^2}, \qquad
   a_+ = \frac{E_+[xy] - E_+[x]E[y]}{w^T E_+[xy] - w^T E_+[x]E[y]}
   \qquad \text{(section 4: linear and two-component estimator)}

where :math:`E_+` is the mean over those samples whose neuron is active. Guesses, as the paper is silent: E_+ is a
conditional mean; a layer without ReLU after it (the last one) takes the linear estimator; every position of a
convolution is a sample, padding included; a neuron that never varies has the pattern 0.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from xai_lib import calls
from xai_lib.layerwise import Layer, Layerwise, check

ESTIMATORS = ("linear", "two-component")


@dataclass(frozen=True)
class Patterns:
    """The patterns of a network.

    Attributes
    ----------
    estimator : str, one of `ESTIMATORS`
    of : dict, {name of the layer: tensor in the shape of its weights}
    """

    estimator: str
    of: dict[str, Tensor]


class _Sums:
    """What one layer needs to remember: sums over samples, for all of them and for those with an active neuron."""

    def __init__(self, layer: nn.Module, two_component: bool):
        self.layer, self.two_component = layer, two_component
        self.weight = torch.block_diag(*layer.weight.flatten(1).double().chunk(_groups(layer))).T  # (D, K)
        self.bias = 0.0 if layer.bias is None else layer.bias.double()
        self.rectified = False
        self.count = 0
        self.x = self.y = self.yy = self.xy = torch.zeros((), dtype=torch.float64)  # (D,), (K,), (K,), (D, K)
        self.active = self.x_active = self.xy_active = self.x  # (K,), (D, K), (D, K)

    def add(self, x: Tensor):
        """Take in a batch of the layer's inputs, a few images at a time."""
        for few in x.split(max(1, 2**22 // (len(self.weight) * x[0, 0].numel()))):
            samples = _samples(self.layer, few)  # (S, D)
            outputs = samples @ self.weight  # (S, K)
            self.count += len(samples)
            self.x, self.y = self.x + samples.sum(0), self.y + outputs.sum(0)
            self.yy, self.xy = self.yy + outputs.square().sum(0), self.xy + samples.T @ outputs
            if self.two_component:
                on = (outputs + self.bias > 0).double()
                self.active, self.x_active = self.active + on.sum(0), self.x_active + samples.T @ on
                self.xy_active = self.xy_active + samples.T @ (outputs * on)

    def pattern(self) -> Tensor:
        """Return the pattern in the shape of the weights."""
        mean_y = self.y / self.count
        if self.two_component and self.rectified:
            number = self.active.clamp(min=1)
            direction = self.xy_active / number - self.x_active / number * mean_y
            scale = (self.weight * direction).sum(0)
        else:
            direction = self.xy / self.count - torch.outer(self.x / self.count, mean_y)
            scale = self.yy / self.count - mean_y.square()
        never = scale.abs() < 1e-12 * (self.yy / self.count).clamp(min=1)
        pattern = torch.where(never, 0, direction / scale).T  # (K, D), in blocks where there are groups
        groups = _groups(self.layer)
        blocks = [rows.chunk(groups, 1)[k] for k, rows in enumerate(pattern.chunk(groups))]
        return torch.cat(blocks).reshape(self.layer.weight.shape).to(self.layer.weight.dtype)


def _groups(layer: nn.Module) -> int:
    return getattr(layer, "groups", 1)


def _samples(module: nn.Module, x: Tensor) -> Tensor:
    """Return a layer's inputs as samples (S, D): for a convolution one for each position."""
    x = x.double()
    if isinstance(module, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    padding = module.padding
    if isinstance(padding, str):  # "same" or "valid"
        sides = zip(module.dilation, module.kernel_size, strict=True)
        total = [d * (k - 1) if padding == "same" else 0 for d, k in sides]
        x = functional.pad(x, [side for one in total[::-1] for side in (one // 2, one - one // 2)])
        padding = 0
    patches = functional.unfold(x, module.kernel_size, module.dilation, padding, module.stride)
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


@torch.inference_mode(False)
@torch.enable_grad()
def fit_patterns(
    model: nn.Module, images: Float[Tensor, "n c h w"], estimator: str = "linear", batch_size: int = 100
) -> Patterns:
    """Estimate the patterns of all layers with weights in one pass over (training) images, in constant memory.

    Parameters
    ----------
    model : nn.Module
        In eval mode for the time; BatchNorm is merged into the layer before it.
    images : tensor (N, C, H, W)
    estimator : str
        ``linear`` or ``two-component``.
    batch_size : int
        Images at a time.

    Raises
    ------
    ValueError
        Unknown estimator, images that the model cannot take or fewer than two, a layer that no rule covers.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}; got {estimator!r}")
    check(model, images)
    if len(images) < 2:
        raise ValueError(f"images must be two or more; got {len(images)}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    sums: dict[str, _Sums] = {}

    def rule(layer: Layer, x: Tensor, y: Tensor) -> Tensor:
        if isinstance(layer.module, calls.LINEAR):
            if layer.name not in sums:
                sums[layer.name] = _Sums(layer.module, estimator == "two-component")
            sums[layer.name].add(x.detach())
            y = y.detach().requires_grad_()
            y.made_by = sums[layer.name]
        elif isinstance(layer.module, nn.ReLU) and hasattr(x, "made_by"):
            x.made_by.rectified = True
        return y

    for batch in images.split(batch_size):
        batch = batch.detach().clone().requires_grad_()
        with Layerwise(model, rule) as network:
            network.output(batch)
    return Patterns(estimator, {name: one.pattern() for name, one in sums.items()})
