"""What else can stand where XCNN has its generator: the paper's own variant, its design choices, and controls.

Tavanaei (2020) chooses average pooling to preserve localisation (2.1), one channel (2.1) and, for more accuracy, a 1x1
convolution beside the generator (3.4, figure 7). `Frozen` and `Edges` are controls that the paper lacks: generators
that learn nothing, in front of a classifier that does.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from xai_lib import xcnn

POOLINGS = ("average", "max", "stride")


def generator(in_channels: int, features: int, pooling: str = "average") -> xcnn.Generator:
    """Return the paper's generator with another way of halving the image.

    Parameters
    ----------
    in_channels, features : int
        As in `xcnn.Generator`.
    pooling : str
        ``average`` (the paper's), ``max``, or ``stride``: the first convolution takes every second pixel, no pooling.

    Raises
    ------
    ValueError
        `pooling` is none of `POOLINGS`.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}; got {pooling!r}")
    made = xcnn.Generator(in_channels, features)
    if pooling == "max":
        made.encode[2] = nn.MaxPool2d(2)
    if pooling == "stride":
        made.encode = nn.Sequential(nn.Conv2d(in_channels, features, 3, stride=2, padding=1), nn.ReLU())
    return made


class Wide(nn.Module):
    """XCNN without its bottleneck: the generator has several output channels, so there is no heatmap.

    Parameters
    ----------
    in_channels, features : int
        As in `xcnn.Generator`.
    channels : int
        Output channels, which the discriminator takes.
    discriminator : nn.Module
        (N, channels, H, W) to logits (N, K).
    """

    def __init__(self, in_channels: int, features: int, channels: int, discriminator: nn.Module):
        super().__init__()
        made = xcnn.Generator(in_channels, features)
        self.encode, self.upsample = made.encode, made.upsample
        self.decode = nn.Sequential(nn.Conv2d(features, channels, 3, padding=1), nn.Tanh())
        self.discriminator = discriminator

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return the logits of the classifier, which sees `channels` maps."""
        return self.discriminator(self.decode(self.upsample(self.encode(x), x.shape[-2:])))


class Frozen(nn.Module):
    """A generator that keeps its initial, random weights while the classifier behind it is trained.

    Parameters
    ----------
    generator : nn.Module
        Its parameters no longer take gradients. BatchNorm in it would still follow the data.
    """

    def __init__(self, generator: nn.Module):
        super().__init__()
        self.generator = generator.requires_grad_(False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
        """Return the heatmaps of the generator."""
        return self.generator(x)


def edges(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
    """Return the gradient magnitude of the grey images (Sobel filter), 0 where they are flat.

    Grey is the mean over channels. The rim of the image is repeated outwards, so that it is no edge of its own. A step
    from a to b along a row or column gives ``abs(b - a)`` on either side of it.
    """
    sobel = torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]]).to(images) / 4
    grey = functional.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    slopes = functional.conv2d(grey, torch.stack([sobel, sobel.T])[:, None])
    return torch.linalg.vector_norm(slopes, dim=1, keepdim=True)


class Edges(nn.Module):
    """The edges of the image in place of a learnt map: tanh of `edges`, 0 to 1. It has nothing to train."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
        """Return edge maps."""
        return edges(x).tanh()


class XCNN1x1(xcnn.XCNN):
    """The paper's variant for more accuracy: a 1x1 convolution of the image joins the heatmap (3.4, figure 7).

    The branch is followed by tanh and has one channel, as in the authors' public code, where it is commented out. The
    classifier then takes the heatmap and the branch, 1 + `channels` channels.

    Parameters
    ----------
    generator, discriminator : nn.Module
        As in `xcnn.XCNN`, but for the input channels of the discriminator.
    in_channels : int
        Channels of the image.
    channels : int
        Feature maps of the branch, C in figure 7.
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module, in_channels: int, channels: int = 1):
        super().__init__(generator, discriminator)
        self.branch = nn.Sequential(nn.Conv2d(in_channels, channels, 1), nn.Tanh())
        if self.channels != 1 + channels:
            raise ValueError(f"discriminator must take {1 + channels} channels, map and branch; got {self.channels}")

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return the logits of the classifier, which sees the heatmap and the branch."""
        return self.discriminator(torch.cat([self.heatmap(x), self.branch(x)], 1))
