r"""XCNN: an encoder-decoder in front of a classifier draws the heatmap that the classifier sees (Tavanaei 2020).

.. math:: I(x) = \tanh(\mathrm{Decode}(\mathrm{Encode}(x))), \qquad \hat y = D(I(x)) \tag{paper, equation 1}

Sizes of the networks are those of footnotes 1 and 2 and of the authors' public code. Deviations: the generator takes
images of any size (the public code needs even sides), and a classifier with several input channels gets the heatmap in
each of them (the paper's classifiers have one).
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class BilinearUpsample(nn.Module):
    """Bilinear upsampling to a given size, corners aligned: a layer of its own, so that others can hook it."""

    def forward(self, x: Float[Tensor, "n c h w"], size: Sequence[int]) -> Float[Tensor, "n c h2 w2"]:
        """Return `x` at `size` (height, width)."""
        return functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


class Generator(nn.Module):
    """Encoder-decoder that turns an image into a heatmap (paper, figure 1 and equation 1).

    Convolution 3x3, ReLU, average pooling 2; bilinear upsampling (corners aligned), convolution 3x3, tanh.

    Parameters
    ----------
    in_channels : int
        Channels of the image.
    features : int
        Feature maps of the encoder: 32 on MNIST, 128 on CIFAR-10 and Tiny ImageNet.
    """

    def __init__(self, in_channels: int, features: int):
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(in_channels, features, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2))
        self.upsample = BilinearUpsample()
        self.decode = nn.Sequential(nn.Conv2d(features, 1, 3, padding=1), nn.Tanh())

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
        """Return heatmaps in [-1, 1]."""
        return self.decode(self.upsample(self.encode(x), x.shape[-2:]))


class XCNN(nn.Module):
    """A generator in front of any classifier, which is used as it is.

    Parameters
    ----------
    generator : nn.Module
        Image (N, C, H, W) to heatmap (N, 1, H, W).
    discriminator : nn.Module
        Heatmap to logits (N, K). Where its first convolution takes more than one channel, each gets the heatmap.
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module):
        super().__init__()
        self.generator = generator
        self.discriminator = discriminator
        convolutions = (layer for layer in discriminator.modules() if isinstance(layer, nn.Conv2d))
        self.channels = next((layer.in_channels for layer in convolutions), 1)

    def heatmap(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
        """Return the heatmaps I(x) in [-1, 1] (paper, equation 1).

        Raises
        ------
        ValueError
            `x` is not a batch of images, has other channels than the generator takes, or a side under 2 pixels.
        """
        first = next((layer for layer in self.generator.modules() if isinstance(layer, nn.Conv2d)), None)
        if x.ndim != 4 or (first is not None and x.shape[1] != first.in_channels) or min(x.shape[-2:]) < 2:
            channels = "C" if first is None else first.in_channels
            raise ValueError(f"x must be images (N, {channels}, H, W), sides of 2 or more; got shape {tuple(x.shape)}")
        return self.generator(x)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return the logits of the classifier, which sees the heatmap alone."""
        return self.discriminator(self.heatmap(x).expand(-1, self.channels, -1, -1))


def small_cnn(widths: Sequence[int] = (16, 32, 64), classes: int = 10, in_channels: int = 1, size: int = 28):
    """Return the paper's MNIST classifier (3.1): convolution, BatchNorm, ReLU, max pooling per width, a linear layer.

    Parameters
    ----------
    widths : sequence of int
        Kernels per block.
    classes, in_channels : int
        Number of logits; channels of the input.
    size : int
        Side of the square input in pixels.

    Raises
    ------
    ValueError
        `size` is too small for so many poolings.
    """
    if size < 2 ** len(widths):
        raise ValueError(f"size must be at least {2 ** len(widths)} for {len(widths)} poolings; got {size}")
    layers: list[nn.Module] = []
    for width_in, width_out in zip([in_channels, *widths], widths, strict=False):
        convolution = nn.Conv2d(width_in, width_out, 3, padding=1)
        layers += [convolution, nn.BatchNorm2d(width_out), nn.ReLU(), nn.MaxPool2d(2)]
    side = size // 2 ** len(widths)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * side**2, classes))


def xcnn_mnist(classes: int = 10, features: int = 32) -> XCNN:
    """Return the paper's MNIST network (3.1): 29,899 parameters with ten classes and 32 feature maps."""
    return XCNN(Generator(1, features), small_cnn(classes=classes))


def map_sign(heatmaps: Float[Tensor, "n 1 h w"], images: Tensor) -> int:
    """Return the sign (1 or -1) that makes heatmaps agree with the ink of *training* images.

    The sign of a trained map is arbitrary, since the next convolution can absorb it; the authors negate it by hand on
    MNIST. The rule here: the sign of the mean, over images, of the covariance of map and pixel values within an image.

    Parameters
    ----------
    heatmaps : tensor (N, 1, H, W)
    images : tensor (N, 1, H, W), brighter means more ink
    """
    ink = images.to(heatmaps.dtype)
    centred = (heatmaps - heatmaps.mean((2, 3), keepdim=True)) * (ink - ink.mean((2, 3), keepdim=True))
    return 1 if centred.mean() >= 0 else -1
