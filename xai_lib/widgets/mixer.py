"""Concept mixer: the maps of decoder layer 3 of a concept VAE on and off and by strength, while the decoder draws.

The whole decoder runs in the browser, so that a reader can also walk the latent image from one digit to another. Its
weights travel as float16 where they fit on a page, else as int8 with a factor for each output channel; `rounded` is the
network that draws then.
"""

import copy
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from xai_lib import concept_study, concepts, training
from xai_lib.concept_vae import CONCEPT_LAYER, ConceptVAE
from xai_lib.widgets import base

LIMIT = 850_000  # bytes of weights, so that a widget's state stays below 1.2 MB in base64


class Mixer(base.Widget):
    """The maps of a concept VAE as switches, and what the decoder draws from them.

    Parameters
    ----------
    model : ConceptVAE
        Of images with one channel.
    images : uint8 tensor (N, 1, H, W)
        Digits to begin from, two or more.
    names : sequence of str
        What each is called, as ``"8"``.
    windows : sequence of concepts.Window
        The concepts; each has a map of its own, the one of its label.

    Raises
    ------
    ValueError
        Images, names or windows do not fit the model or each other; the decoder is too large for a page.
    """

    _esm = base.source("mixer")
    _css = base.style()

    def __init__(
        self,
        model: ConceptVAE,
        images: UInt8[Tensor, "n c h w"],
        names: Sequence[str],
        windows: Sequence[concepts.Window] = concepts.MNIST_WINDOWS,
    ):
        _check(model, images, names, windows)
        images = images.cpu()
        shape = model.image_shape[1:]
        shown = {
            "layers": packed(model),
            "at": CONCEPT_LAYER,
            "latents": base.pack(concept_study.latents(model, images).numpy(), "float32"),
            "latent_size": list(model.latent_size),
            "images": base.pack(images.numpy(), "uint8"),
            "names": list(names),
            "concepts": [{"map": one.label, "digit": str(one.digit), "place": place(one, *shape)} for one in windows],
        }
        super().__init__(shown, "Concept mixer: switch feature maps and watch the drawing")


def packed(model: ConceptVAE) -> list[dict]:
    """Return the decoder's layers as the widget takes them, the last one without activation.

    Raises
    ------
    ValueError
        The weights are too large for a page, as int8 as well.
    """
    count = sum(one.weight.numel() for one in _convolutions(model))
    if count > LIMIT:
        raise ValueError(f"model must have at most {LIMIT:,} weights in its decoder; got {count:,}")
    dtype = "float16" if 2 * count <= LIMIT else "int8"
    sizes, size = [model.latent_size], model.latent_size
    for one in _convolutions(model):
        size = tuple((side - 1) * one.stride[0] + 1 + more for side, more in zip(size, one.output_padding, strict=True))
        sizes.append(size)
    hidden = [one[1].negative_slope for one in model.decoder[:-1]]
    parts = zip(_convolutions(model), pairwise(sizes), [*hidden, 1.0], strict=True)
    return [
        {**_layer(one, dtype), "stride": one.stride[0], "from": list(before), "to": list(after), "slope": slope}
        for one, (before, after), slope in parts
    ]


def rounded(model: ConceptVAE) -> ConceptVAE:
    """Return a copy of the model whose decoder has the weights that a page carries; errors as of `packed`."""
    twin = copy.deepcopy(model)
    for one, layer in zip(_convolutions(twin), packed(model), strict=True):
        stored = layer["weight"]
        values = np.frombuffer(stored["bytes"], np.dtype(stored["dtype"]).newbyteorder("<")).astype(np.float32)
        weight = torch.from_numpy(values.reshape(stored["shape"]) * np.float32(stored["scale"]))
        factors = torch.from_numpy(np.frombuffer(layer["factors"]["bytes"], "<f4").copy())
        one.weight.data.copy_(weight * factors[:, None, None])
    return twin


def ink_changed(
    model: ConceptVAE, images: UInt8[Tensor, "n c h w"], windows: Sequence[concepts.Window]
) -> Float[Tensor, "n k 2"]:
    """Return how much of the drawing disappears, and how much is new, with the map of each window off alone.

    Summed decrease of pixels over summed pixels, 0 (nothing disappears) to 1, and summed increase over the same, 0 or
    more; 0 where there is no ink.
    """
    every = range(model.channels[CONCEPT_LAYER])

    def shares(net, x):
        before = net(x)
        off = [concept_study.composed(net, x, [k for k in every if k != one.label]) for one in windows]
        rise = torch.stack([one - before for one in off], 1)
        moved = torch.stack([rise.clamp(max=0).neg(), rise.clamp(min=0)], 2).flatten(3).sum(3)
        return moved / before.flatten(1).sum(1)[:, None, None].clamp(min=1e-12)

    return training.predict(model, images, concept_study.UNIT, function=shares)


def place(window: concepts.Window, height: int, width: int) -> str:
    """Return where a window lies in images of `height` x `width` pixels: ``upper``, ``lower right``, ``middle``."""
    sides = ((window.rows, height, "upper", "lower"), (window.columns, width, "left", "right"))
    centres = [(sum(ends) / 2 / side - 0.5, before, after) for ends, side, before, after in sides]
    return " ".join(after if at > 0 else before for at, before, after in centres if abs(at) > 1 / 12) or "middle"


def _convolutions(model: ConceptVAE) -> list[nn.ConvTranspose2d]:
    return [one for one in model.decoder.modules() if isinstance(one, nn.ConvTranspose2d)]


def _layer(convolution: nn.ConvTranspose2d, dtype: str) -> dict:
    """Return weights (in, out, 3, 3) without their factor (out,), which fills the range of int8 for each channel."""
    weight = convolution.weight.detach().cpu().float()
    most = weight.abs().amax((0, 2, 3)) if dtype == "int8" else torch.ones(weight.shape[1])
    factors = torch.where(most > 0, most, 1.0)
    return {
        "weight": base.pack((weight / factors[:, None, None]).numpy(), dtype),
        "factors": base.pack(factors.numpy(), "float32"),
        "bias": base.pack(convolution.bias.detach().cpu().numpy(), "float32"),
    }


def _check(model: ConceptVAE, images: Tensor, names: Sequence[str], windows: Sequence[concepts.Window]) -> None:
    """Raise a ValueError for what a `Mixer` cannot show."""
    if model.image_shape[0] != 1:
        raise ValueError(f"model must draw images of one channel; got {model.image_shape[0]}")
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != model.image_shape or len(images) < 2:
        wanted = ", ".join(map(str, model.image_shape))
        raise ValueError(f"images must be uint8 (2 or more, {wanted}); got {images.dtype} {tuple(images.shape)}")
    if len(names) != len(images):
        raise ValueError(f"names must name each of the {len(images)} images; got {len(names)}")
    labels, most = [one.label for one in windows], model.channels[CONCEPT_LAYER]
    if not labels or len(set(labels)) < len(labels) or max(labels) >= most:
        raise ValueError(f"windows must have a label each, below the number of maps, {most}; got {labels}")
