r"""Excitation Backprop and its contrastive form, c-MWP (Zhang et al. 2016, "Top-down neural attention").

The probability of winning goes from the top unit down: of a layer with activations :math:`a \ge 0` and weights w,

.. math:: P(a_i) = a_i \sum_j \frac{w_{ij}^+ P(a_j)}{\sum_{i'} a_{i'} w_{i'j}^+} \qquad \text{(equations 2 and 5)}

without biases. The contrastive form subtracts, at the layer below the top, what the dual unit (with negated weights)
gets, and goes on with the difference.

Normalised pixels can be negative, where the rule is undefined: the map is read at the first layer that is non-negative
by construction and that all paths pass, as the authors do, summed over channels and upsampled. Deviation: in a residual
sum or a mean a negative value inhibits and gets nothing; the paper's networks have no such layers.

One forward pass serves any number of units: their probabilities go down together, through one copy of activations and
normalisers. For n units that is the arithmetic of 2 + n forward passes in place of the 3n of n calls.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from xai_lib import calls
from xai_lib.layerwise import Layer, Layerwise, ruled

METHODS = ("excitation_bp", "contrastive_excitation_bp")


class Rule:
    """The rule of Excitation Backprop for `Layerwise`, and the places where the map may be read.

    Attributes
    ----------
    top : the last layer with weights, after the pass
    places : (name, output) of each rectified layer with positions since the last layer with weights and signed inputs
    undefined : str, that layer and what it is
    """

    def __init__(self):
        self.top: Layer | None = None
        self.places: list[tuple[str, Tensor]] = []
        self.undefined = ""
        self.contrastive = False

    def __call__(self, layer: Layer, x: Tensor, y: Tensor) -> Tensor:
        """Return the layer's output, with its rule for the way down."""
        module = layer.module
        if isinstance(module, calls.LINEAR):
            self.top = layer
        if isinstance(module, calls.MaxPool):
            return y
        if not isinstance(module, (*calls.LINEAR, *calls.MEANS)):
            y = ruled(x, y, lambda x, p: p)
            if isinstance(module, calls.RECTIFIERS) and y.ndim == 4:
                self.places.append((layer.name, y))
            return y
        if isinstance(module, calls.LINEAR) and not calls.is_nonnegative(x):
            self.places, self.undefined = [], f"{layer.name!r} ({type(module).__name__})"
        shares: dict[int, tuple] = {}
        return ruled(x, y, lambda x, p: self._down(layer, x, p, shares))

    def place(self, logits: Tensor) -> Tensor:
        """Return the first place that all paths to the logits pass.

        Raises
        ------
        ValueError
            There is none.
        """
        for name, output in self.places:
            if name in calls.passed(logits):
                return output
        why = f"none that all paths pass is above layer {self.undefined}"
        raise ValueError(f"model: Excitation Backprop needs a non-negative layer with positions; {why}")

    def _down(self, layer: Layer, x: Tensor, p: Tensor, shares: dict[int, tuple]) -> Tensor:
        """Return the probabilities at the input of a layer; normalisers are kept in `shares` for further units."""
        module = layer.module
        if isinstance(module, calls.MEANS):
            x = x.clamp(min=0)
        elif (lowest := x.min().item()) < 0:
            where = f"layer {layer.name!r} gets {lowest:.3g}"
            raise ValueError(f"images: Excitation Backprop is undefined for negative activations; {where}")
        signs = (1, -1) if self.contrastive and layer is self.top else (1,)
        parts = []
        for sign in signs:
            if sign not in shares:
                shares[sign] = torch.func.vjp(_excitatory(module, sign), x)
            normaliser, pull = shares[sign]
            parts.append(x * pull(torch.where(normaliser > 0, p / normaliser, 0))[0])
        return parts[0] if len(parts) == 1 else parts[0] - parts[1]


def _excitatory(module: nn.Module, sign: int):
    """Return the layer without bias, with the positive ones of its weights, or of the negated ones."""
    if not isinstance(module, calls.LINEAR):
        return module
    return calls.with_weights(module, (sign * module.weight).clamp(min=0), None)


@torch.inference_mode(False)
@torch.enable_grad()
def maps(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    select,
    *,
    contrastive: bool = False,
    layer: str | None = None,
) -> Float[Tensor, "n t h w"]:
    """Return the maps of several units for each image, all from one forward pass.

    Parameters
    ----------
    model : nn.Module
    images : tensor (N, C, H, W)
    select : callable
        ``select(logits)`` gives the (N, T) indices of the units.
    contrastive : bool
        Subtract the dual unit (c-MWP); the maps are then signed.
    layer : str, optional
        Name of the module at whose output the map is read, ``""`` for the pixels; default the first non-negative one.

    Raises
    ------
    ValueError
        No layer is non-negative, or one that the probabilities pass has negative inputs.
    """
    rule = Rule()
    images = images.detach().clone().requires_grad_()
    with Layerwise(model, rule, watch=layer or None) as network:
        logits = network.output(images)
        units = select(logits)
        rule.contrastive = contrastive
        place = images if layer == "" else network.watched if layer else rule.place(logits)
        if not isinstance(place, Tensor) or place.ndim != 4:
            found = tuple(place.shape) if isinstance(place, Tensor) else "none"
            raise ValueError(f"layer must give (N, C, h, w) activations in the pass; {layer!r} gives {found}")
        start = functional.one_hot(units, logits.shape[1]).to(logits.dtype)  # (N, T, K)
        found = torch.autograd.grad(logits, place, start.transpose(0, 1), is_grads_batched=True)[0]
        rule.places.clear()  # they hold the graph, which holds the rule: a circle
    found = found.sum(2).transpose(0, 1)  # (T, N, C, h, w) to (N, T, h, w)
    if found.shape[2:] == images.shape[2:]:
        return found
    return functional.interpolate(found, size=images.shape[2:], mode="bilinear", align_corners=False)


def pixel_probabilities(maps: Float[Tensor, "n t h w"]) -> tuple[Float[Tensor, "n t h w"], Tensor]:
    """Return P(pixel | unit): negative values of c-MWP clipped to 0, then each map divided by its sum.

    Returns
    -------
    probabilities : tensor (N, T, H, W), each map sums to 1, or is all zero
    kept : bool tensor (N, T), false for the all-zero maps, which a caller excludes and counts
    """
    clipped = maps.clamp(min=0)
    total = clipped.sum((2, 3), keepdim=True)
    kept = total[:, :, 0, 0] > 0
    return torch.where(total > 0, clipped / total, 0), kept
