"""VGG-16 with BatchNorm for small images, the classifier of the XCNN paper's larger experiments (Tavanaei 2020).

Thirteen convolutions 3x3 in five blocks (Simonyan, Zisserman 2015, table 1, column D), each with BatchNorm and ReLU,
max pooling after each block, and one linear layer in place of VGG's three: 512 inputs at 32 pixels, 2,048 at 64, as in
the authors' public code. Deviation: a width multiple makes the same network narrower for small machines.
"""

from torch import nn

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # channels of the convolutions


def vgg16(classes: int = 10, in_channels: int = 3, size: int = 32, width: float = 1.0) -> nn.Sequential:
    """Return an untrained VGG-16 with BatchNorm, images (N, in_channels, size, size) to logits (N, classes).

    At full width it has 14,728,266 parameters for ten classes of RGB images of 32 pixels.

    Parameters
    ----------
    classes, in_channels : int
        Number of logits; channels of the input.
    size : int
        Side of the square input in pixels, 32 or more.
    width : float
        Multiple of all channel numbers, each rounded, at least 1.

    Raises
    ------
    ValueError
        `size` is too small for five poolings, or `width` not above 0.
    """
    if size < 2 ** len(BLOCKS):
        raise ValueError(f"size must be at least {2 ** len(BLOCKS)} for {len(BLOCKS)} poolings; got {size}")
    if not 0 < width < float("inf"):
        raise ValueError(f"width must be above 0 and finite; got {width}")
    layers: list[nn.Module] = []
    channels = in_channels
    for block in BLOCKS:
        for full in block:
            wanted = max(1, round(width * full))
            layers += [nn.Conv2d(channels, wanted, 3, padding=1), nn.BatchNorm2d(wanted), nn.ReLU()]
            channels = wanted
        layers.append(nn.MaxPool2d(2))
    side = size // 2 ** len(BLOCKS)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side**2, classes))
