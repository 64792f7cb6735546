"""VGG-19 as the explanation module's paper explains it (Qi, Khorram, Li 2017), and a small one like it for CPUs.

Both have torchvision's layout, so that layers have the same names: ``features`` (convolutions), ``avgpool``, and
``classifier`` with three linear layers. `FC1` is the first of them after its ReLU, the paper's Z; `FC2` the second.
Deviation: the small network has BatchNorm, without which it hardly trains from scratch, and narrower layers.
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

FC1, FC2 = "classifier.1", "classifier.4"  # after their ReLUs, in both networks


def small_vgg(
    classes: int,
    size: int = 64,
    widths: Sequence[int] = (16, 32, 64, 128),
    hidden: int = 512,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Return an untrained small VGG, images (N, 3, size, size) to logits (N, classes).

    A block for each width: twice a convolution 3x3, BatchNorm and ReLU, then max pooling; then linear layers.

    Parameters
    ----------
    classes : int
        Number of logits.
    size : int
        Side of the square images in pixels.
    widths : sequence of int
        Channels of each block.
    hidden : int
        Units of the first two linear layers, 4,096 in VGG-19.
    dropout : float
        Share of their outputs that is dropped in training, half in VGG-19.

    Raises
    ------
    ValueError
        `size` is too small for so many poolings.
    """
    if size < 2 ** len(widths):
        raise ValueError(f"size must be at least {2 ** len(widths)} for {len(widths)} poolings; got {size}")
    layers: list[nn.Module] = []
    for width_in, width in zip([3, *widths], widths, strict=False):
        for channels in (width_in, width):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    inputs = widths[-1] * (size // 2 ** len(widths)) ** 2
    linear = [
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
    ]
    parts = {
        "features": nn.Sequential(*layers),
        "avgpool": nn.Flatten(),
        "classifier": nn.Sequential(*linear, nn.Linear(hidden, classes)),
    }
    return nn.Sequential(OrderedDict(parts))


def last_convolution(network: nn.Module) -> str:
    """Return the name of the layer after the last convolutions, pooled; non-negative."""
    return f"features.{len(network.features) - 1}"


def vgg19(classes: int, pretrained: bool = False) -> nn.Module:
    """Return torchvision's VGG-19 with a new last layer, images (N, 3, H, W) of 32 pixels or more to logits.

    Parameters
    ----------
    classes : int
        Number of logits.
    pretrained : bool
        Start from the weights for ImageNet, which torchvision downloads; else VGG-19 with BatchNorm from scratch.

    Raises
    ------
    ValueError
        The weights cannot be had.
    """
    import torchvision  # here, as only notebooks need it

    if not pretrained:
        return torchvision.models.vgg19_bn(num_classes=classes)
    try:
        network = torchvision.models.vgg19(weights=torchvision.models.VGG19_Weights.IMAGENET1K_V1)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"pretrained: the weights for ImageNet cannot be had here ({error}); got True") from None
    network.classifier[-1] = nn.Linear(network.classifier[-1].in_features, classes)
    return network
