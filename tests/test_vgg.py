import math

import pytest
import torch
from torch import nn
from torchvision.models import vgg

from xai_lib.vgg import vgg16
from xai_lib.xcnn import XCNN, Generator


def count(model):
    return sum(one.numel() for one in model.parameters())


def convolutions(model):
    return [layer for layer in model if isinstance(layer, nn.Conv2d)]


# Worked out by hand. 4,224 output channels in all, each with a bias, a BatchNorm weight and a BatchNorm bias.
PAIRS = 64 * 64 + 64 * 128 + 128**2 + 128 * 256 + 2 * 256**2 + 256 * 512 + 5 * 512**2  # without the first convolution


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 14_728_266),  # as published for CIFAR-10
        ({}, 9 * (3 * 64 + PAIRS) + 3 * 4224 + 512 * 10 + 10),
        ({"in_channels": 1}, 14_728_266 - 9 * 2 * 64),  # the paper's: 14.7 M, FACTS.md
        ({"classes": 200, "in_channels": 1, "size": 64}, 15_131_784),  # the paper's: 15.1 M, FACTS.md
        ({"classes": 200, "size": 64}, 14_728_266 - 5_130 + 2048 * 200 + 200),
        ({"width": 0.25}, 9 * (3 * 16 + PAIRS // 16) + 3 * 1056 + 128 * 10 + 10),
        ({"width": 2.0, "classes": 7}, 9 * (3 * 128 + PAIRS * 4) + 3 * 8448 + 1024 * 7 + 7),
    ],
)
def test_parameters_by_hand(settings, expected):
    with torch.device("meta"):
        assert count(vgg16(**settings)) == expected


@pytest.mark.parametrize(
    ("classes", "size", "expected"),
    [(10, 32, 14_727_114 + 4_737), (200, 64, 15_131_784 + 4_737)],
)
def test_parameters_of_the_papers_larger_networks(classes, size, expected):
    """Footnote 2: 128 kernels 3x3 over RGB with biases, then one 3x3 over the 128 maps; one heatmap to the VGG."""
    with torch.device("meta"):
        model = XCNN(Generator(3, 128), vgg16(classes, in_channels=1, size=size))
        assert count(model.generator) == 3 * 128 * 9 + 128 + 128 * 9 + 1 == 4_737
        assert count(model) == expected
        assert model(torch.zeros(2, 3, size, size)).shape == (2, classes)


def test_order_of_layers_and_channels():
    """Simonyan and Zisserman (2015), table 1, column D, with BatchNorm, and one linear layer."""
    with torch.device("meta"):
        model = vgg16()
    kinds = [type(layer).__name__ for layer in model]
    triple, pool = ["Conv2d", "BatchNorm2d", "ReLU"], ["MaxPool2d"]
    assert kinds == (triple * 2 + pool) * 2 + (triple * 3 + pool) * 3 + ["Flatten", "Linear"]
    channels = [layer.out_channels for layer in convolutions(model)]
    assert channels == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6


def test_the_features_are_torchvisions():
    torch.manual_seed(0)
    model = vgg16()
    with torch.device("meta"):
        reference = vgg.make_layers(vgg.cfgs["D"], batch_norm=True)
    reference.load_state_dict(model[:-2].state_dict(), assign=True)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = reference(images).flatten(1)
        torch.testing.assert_close(model(images), model[-1](found))
    assert found.std() > 0.1


@pytest.mark.parametrize(("size", "inputs"), [(32, 1), (63, 1), (64, 4), (100, 9)])
def test_logits_and_inputs_of_the_linear_layer(size, inputs):
    torch.manual_seed(0)
    model = vgg16(classes=7, in_channels=2, size=size, width=1 / 64)
    assert model[-1].in_features == 8 * inputs
    logits = model(torch.randn(3, 2, size, size))
    assert logits.shape == (3, 7)
    logits.square().sum().backward()
    assert all(one.grad.isfinite().all() for one in model.parameters())
    assert model[0].weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (0.25, [16, 32, 64, 128]),
        (0.3, [19, 38, 77, 154]),  # 19.2, 38.4, 76.8, 153.6
        (0.01, [1, 1, 3, 5]),  # 0.64, 1.28, 2.56, 5.12
        (0.001, [1, 1, 1, 1]),  # 0.06 to 0.51
        (2.0, [128, 256, 512, 1024]),
    ],
)
def test_width_multiplies_all_channels_rounded_and_at_least_1(width, expected):
    with torch.device("meta"):
        model = vgg16(width=width)
    layers = convolutions(model)
    assert [layer.out_channels for layer in layers] == [
        channels for channels, times in zip(expected, (2, 2, 3, 6), strict=True) for _ in range(times)
    ]
    assert layers[0].in_channels == 3
    assert model[-1].in_features == expected[-1]


@pytest.mark.parametrize("size", [31, 28, 0])
def test_size_is_checked(size):
    with pytest.raises(ValueError, match=f"size must be at least 32 for 5 poolings; got {size}$"):
        vgg16(size=size)


@pytest.mark.parametrize("width", [0.0, -0.5, math.inf, math.nan])
def test_width_is_checked(width):
    with pytest.raises(ValueError, match=f"width must be above 0 and finite; got {width}$"):
        vgg16(width=width)
