r"""The concept VAE: a convolutional autoencoder with a latent image and a loss on feature maps (arXiv 2109.00479).

.. math:: L = \mathrm{NLL} + \beta\,\mathrm{KL} + w \sum_c \mathrm{mean}_{x \in c}\,\mathrm{MSE}(F_c(x), x)

NLL is the Bernoulli negative log-likelihood summed over the pixels, F_c map number c of decoder layer 3, x a sample of
concept c at the size of the map. Digits have no concept loss (3.4; equations are ours, as the paper prints none).

Channels and strides are the public code's. So is the count of decoder layers from 0: layer 3 is the first of 14 x 14
pixels, with 256 maps after the leaky ReLU. Counted from 1 the paper's third would have 7 x 7. Its five layers a side
are the hidden ones; a convolution to the latent image and one to the output, with sigmoid, join them. Kernels of 3 x 3,
slope 0.2, Glorot's initial weights, the sum over concepts and w = 1 are the code's too, where the paper is silent.

Deviations: mean and log-variance are a map each, without activation; the code, which applies leaky ReLU and softplus,
flattens the two maps and takes the first half as means, so that they are the upper half of both maps. Padding is 1 on
all sides. The NLL is computed on logits, not on clipped outputs. Images have any size and number of channels.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

CHANNELS = (512, 256, 256, 128, 64)  # of the encoder's layers; the decoder's are the same backwards
STRIDES = (2, 1, 2, 1, 2)
CONCEPT_LAYER = 3  # of the decoder, counted from 0: `ConceptVAE.get_submodule("decoder.layer_3")`
Images = Float[Tensor, "n c h w"]  # 0 to 1
Latent = Float[Tensor, "n 1 i j"]  # latent images
Maps = Float[Tensor, "n k s t"]  # of a decoder layer
SCORES = ("bernoulli_nll", "squared_error", "kl")  # columns of `scores`


class ConceptVAE(nn.Module):
    """Variational autoencoder with a latent image; layers are ``encoder.layer_0`` to ``decoder.layer_4``.

    With the defaults: 28 x 28 pixels, latent image of 4 x 4, 4,289,603 parameters.

    Parameters
    ----------
    in_channels : int
        Channels of the images.
    size : int or (int, int)
        Their side in pixels, or height and width.
    width : float
        Multiple of all channel numbers, each rounded, at least 1.
    min_maps : int
        Least number of maps in decoder layer 3, more than the largest label of a concept: 28 on MNIST.

    Attributes
    ----------
    image_shape : (C, H, W)
    latent_size : (int, int), height and width of the latent image
    channels : tuple of int, maps of the decoder's layers 0 to 4

    Raises
    ------
    ValueError
        `width` not above 0; `in_channels`, a side or `min_maps` below 1.
    """

    def __init__(self, in_channels: int = 1, size: int | tuple[int, int] = 28, width: float = 1.0, min_maps: int = 32):
        super().__init__()
        self.image_shape = (in_channels, *((size, size) if isinstance(size, int) else size))
        if not 0 < width < math.inf:
            raise ValueError(f"width must be above 0 and finite; got {width}")
        if min(*self.image_shape, min_maps) < 1:
            raise ValueError(f"images and min_maps must be at least 1; got {self.image_shape} and {min_maps}")
        widths = [max(1, round(width * one)) for one in CHANNELS]
        sizes = [self.image_shape[1:]]
        for stride in STRIDES:
            sizes.append(tuple(math.ceil(side / stride) for side in sizes[-1]))
        maps = widths[::-1]
        maps[CONCEPT_LAYER] = max(min_maps, maps[CONCEPT_LAYER])
        self.channels, self.latent_size = tuple(maps), sizes[-1]
        down = zip([in_channels, *widths[:-1]], widths, STRIDES, strict=True)
        self.encoder = _layers([nn.Conv2d(one, other, 3, stride, padding=1) for one, other, stride in down])
        self.latent = nn.Conv2d(widths[-1], 2, 3, padding=1)
        up = zip([1, *maps], [*maps, in_channels], [1, *STRIDES[::-1]], sizes[::-1], strict=True)
        *hidden, output = (_transposed(*one) for one in up)
        self.decoder = _layers(hidden)
        self.decoder.add_module("output", output)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def encode(self, x: Images) -> tuple[Latent, Latent]:
        """Return mean and log-variance of the latent image, any real numbers.

        Raises
        ------
        ValueError
            Images of another shape than `image_shape`.
        """
        if tuple(x.shape[1:]) != self.image_shape:
            raise ValueError(f"x must be images (N, {', '.join(map(str, self.image_shape))}); got {tuple(x.shape)}")
        mean, log_variance = self.latent(self.encoder(x)).chunk(2, 1)
        return mean, log_variance

    def sample(self, mean: Latent, log_variance: Latent) -> Latent:
        """Draw latent images; torch's own generator decides, so that `torch.manual_seed` repeats them."""
        return mean + (log_variance / 2).exp() * torch.randn_like(mean)

    def features(self, latent: Latent, layer: int = CONCEPT_LAYER) -> Maps:
        """Return the maps of a decoder layer, 0 to 4, after the leaky ReLU: any real numbers.

        Raises
        ------
        ValueError
            There is no such layer.
        """
        return self.decoder[: self._after(layer)](latent)

    def finish(self, maps: Maps, layer: int = CONCEPT_LAYER) -> Images:
        """Return the logits of the images that the layers behind `layer` make of its maps.

        Raises
        ------
        ValueError
            There is no such layer.
        """
        return self.decoder[self._after(layer) :](maps)

    def decode(self, latent: Latent) -> Images:
        """Return images, 0 to 1."""
        return self.decoder(latent).sigmoid()

    def forward(self, x: Images) -> Images:
        """Return the reconstructions of images by the mean of their latent image, 0 to 1; nothing is drawn."""
        return self.decode(self.encode(x)[0])

    def _after(self, layer: int) -> int:
        if not 0 <= layer < len(CHANNELS):
            raise ValueError(f"layer must be from 0 to {len(CHANNELS) - 1}; got {layer}")
        return layer + 1


def _layers(convolutions: list[nn.Module]) -> nn.Sequential:
    """Return convolutions named layer_0 and so on, each followed by a leaky ReLU."""
    parts = (nn.Sequential(one, nn.LeakyReLU(0.2)) for one in convolutions)
    return nn.Sequential(OrderedDict((f"layer_{k}", part) for k, part in enumerate(parts)))


def _transposed(channels_in: int, channels_out: int, stride: int, target: tuple[int, int]) -> nn.ConvTranspose2d:
    """Return the mirror of a convolution, which gives maps of the size `target`."""
    missing = tuple((side - 1) % stride for side in target)  # a stride of 2 takes 13 and 14 pixels to 7
    return nn.ConvTranspose2d(channels_in, channels_out, 3, stride, padding=1, output_padding=missing)


@dataclass(frozen=True)
class Objective:
    """The loss to minimise, for `training.fit`; NLL and KL are means over images, in nats.

    Attributes
    ----------
    beta : float, weight of the KL divergence, 0 or more
    weight : float, weight w of the concept loss, 0 or more
    augmented : bool, whether samples of concepts are reconstructed too; else they enter the concept loss only
    first : int, smallest label of a concept, 1 or more; images of smaller labels are digits

    Raises
    ------
    ValueError
        A value out of its range; when called, what `ConceptVAE.encode`, `bernoulli_nll` and `concept_error` raise.
    """

    beta: float = 5.0
    weight: float = 1.0
    augmented: bool = True
    first: int = 10

    def __post_init__(self):
        for name in ("beta", "weight", "first"):
            least, value = int(name == "first"), getattr(self, name)
            if not least <= value < math.inf:
                raise ValueError(f"{name} must be at least {least} and finite; got {value}")

    def __call__(self, model: ConceptVAE, images: Images, labels: Int64[Tensor, " n"]) -> Float[Tensor, ""]:
        """Return the loss of a batch with a drawn latent image each; a batch without concepts has no concept loss."""
        mean, log_variance = model.encode(images)
        maps = model.features(model.sample(mean, log_variance))
        loss = bernoulli_nll(model.finish(maps), images) + self.beta * kl_divergence(mean, log_variance)
        if not self.augmented:
            loss = loss[labels < self.first]
        loss = loss.sum() / max(1, len(loss))  # a batch may hold no digit
        return loss + self.weight * concept_loss(maps, images, labels, self.first) if self.weight else loss


def bernoulli_nll(logits: Images, images: Images) -> Float[Tensor, " n"]:
    """Return the Bernoulli negative log-likelihood summed over the pixels in nats, 0 or more, lower is better.

    0 is reached by images of zeros and ones only; else the least value is the summed entropy of the pixels.

    Raises
    ------
    ValueError
        Images outside 0 to 1.
    """
    if len(images):
        low, high = images.aminmax()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"images must be from 0 to 1; got {low:g} to {high:g}")
    each = functional.binary_cross_entropy_with_logits(_full(logits), _full(images), reduction="none")
    return each.flatten(1).sum(1)


def kl_divergence(mean: Latent, log_variance: Latent) -> Float[Tensor, " n"]:
    """Return the divergence of the latent image's normal from the standard normal in nats, 0 (equal) or more."""
    mean, log_variance = _full(mean), _full(log_variance)
    return (mean.square() + log_variance.exp() - log_variance - 1).flatten(1).sum(1) / 2


def squared_error(reconstructions: Images, images: Images) -> Float[Tensor, " n"]:
    """Return the squared error summed over the pixels, 0 (equal) or more, lower is better."""
    return (_full(reconstructions) - _full(images)).square().flatten(1).sum(1)


def concept_error(maps: Maps, images: Images, labels: Int64[Tensor, " n"], first: int = 10) -> Float[Tensor, " n"]:
    """Return the mean squared error between map c and each sample of concept c, 0 or more; NaN for digits (3.4).

    The sample is brought to the size of the map as by `concepts.targets`: bilinear, mean over channels.

    Raises
    ------
    ValueError
        A concept whose label is no number of a map.
    """
    chosen = labels >= first
    own = labels[chosen]
    if len(own) and own.max() >= maps.shape[1]:
        raise ValueError(f"labels must be below the number of maps, {maps.shape[1]}; got {own.max().item()}")
    grey = _full(images)[chosen].mean(1, keepdim=True)
    sample = functional.interpolate(grey, maps.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    each = (_full(maps[chosen, own]) - sample).square().mean((1, 2))
    error = each.new_full((len(maps),), math.nan)
    error[chosen] = each
    return error


def concept_loss(maps: Maps, images: Images, labels: Int64[Tensor, " n"], first: int = 10) -> Float[Tensor, ""]:
    """Return the `concept_error` averaged over the samples of each concept and summed over concepts; 0 without any."""
    chosen = labels >= first
    _, concept, counts = labels[chosen].unique(return_inverse=True, return_counts=True)
    return (concept_error(maps, images, labels, first)[chosen] / counts[concept]).sum()


def scores(model: ConceptVAE, images: Images, sampled: bool = False) -> Float[Tensor, "n 3"]:
    """Return `SCORES` of each image by the mean of its latent image, or a drawn one as the code does (`sampled`)."""
    mean, log_variance = model.encode(images)
    logits = model.finish(model.features(model.sample(mean, log_variance) if sampled else mean))
    error = squared_error(logits.sigmoid(), images)
    return torch.stack([bernoulli_nll(logits, images), error, kl_divergence(mean, log_variance)], 1)


def feature_maps(model: ConceptVAE, images: Images, layer: int = CONCEPT_LAYER) -> Maps:
    """Return the maps of a decoder layer by the mean of the latent image, for `training.predict`."""
    return model.features(model.encode(images)[0], layer)


@torch.no_grad()
def generate(model: ConceptVAE, latents: Float[Tensor, "n *d"]) -> Images:
    """Return the images of latent images, 0 to 1, on the CPU; flat ones and float64 will do, as of cluster centres.

    Raises
    ------
    ValueError
        Latent images of another number of values than the model's.
    """
    height, width = model.latent_size
    if latents[:1].numel() != height * width and len(latents):
        raise ValueError(f"latents must have {height} x {width} values each; got shape {tuple(latents.shape)}")
    return model.decode(latents.to(model.latent.weight).reshape(len(latents), 1, height, width)).cpu()


def _full(values: Tensor) -> Tensor:
    """Return values in float32 at least: sums are not made in bfloat16."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
