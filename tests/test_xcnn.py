import math

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import nn
from torchvision.models import resnet18

from xai_lib import xcnn


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# the generator against loops


def slow_convolution(image, weight, bias):
    """3x3 convolution with zero padding 1 of one image (C, H, W) as nested lists."""
    height, width = len(image[0]), len(image[0][0])

    def pixel(c, y, x):
        return image[c][y][x] if 0 <= y < height and 0 <= x < width else 0.0

    def value(o, y, x):
        window = ((c, i, j) for c in range(len(image)) for i in range(3) for j in range(3))
        return bias[o] + sum(weight[o][c][i][j] * pixel(c, y + i - 1, x + j - 1) for c, i, j in window)

    return [[[value(o, y, x) for x in range(width)] for y in range(height)] for o in range(len(weight))]


def slow_pool(plane):
    """Mean of each 2x2 square; an odd last row or column is dropped."""
    rows, columns = len(plane) // 2, len(plane[0]) // 2
    return [
        [sum(plane[2 * y + i][2 * x + j] for i in range(2) for j in range(2)) / 4 for x in range(columns)]
        for y in range(rows)
    ]


def slow_bilinear(plane, height, width):
    """Corners aligned: target pixel y lies at y (h - 1) / (height - 1) of the source."""

    def at(target, size, wanted):
        place = target * (size - 1) / (wanted - 1)
        low = min(math.floor(place), size - 1)
        return low, min(low + 1, size - 1), place - low

    def value(y, x):
        top, bottom, down = at(y, len(plane), height)
        left, right, along = at(x, len(plane[0]), width)
        upper = plane[top][left] * (1 - along) + plane[top][right] * along
        lower = plane[bottom][left] * (1 - along) + plane[bottom][right] * along
        return upper * (1 - down) + lower * down

    return [[value(y, x) for x in range(width)] for y in range(height)]


def convolutions(model):
    return [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]


def slow_heatmap(generator, image):
    first, last = convolutions(generator)
    height, width = image.shape[-2:]
    planes = slow_convolution(image.tolist(), first.weight.tolist(), first.bias.tolist())
    planes = [[[max(0.0, one) for one in row] for row in plane] for plane in planes]
    planes = [slow_bilinear(slow_pool(plane), height, width) for plane in planes]
    [plane] = slow_convolution(planes, last.weight.tolist(), last.bias.tolist())
    return [[math.tanh(one) for one in row] for row in plane]


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 6, 10), (1, 7, 5), (2, 2, 3), (1, 3, 2)])
def test_generator_is_the_slow_form(channels, height, width):
    torch.manual_seed(0)
    generator = xcnn.Generator(channels, 4).double()
    images = torch.randn(2, channels, height, width, dtype=torch.float64)
    expected = torch.tensor([slow_heatmap(generator, one) for one in images], dtype=torch.float64)[:, None]
    torch.testing.assert_close(generator(images), expected, atol=1e-13, rtol=1e-11)


def test_generator_parameters():
    """Footnotes 1 and 2: K kernels 3x3 over the image, one 3x3 over the K maps; no BatchNorm."""
    generator = xcnn.Generator(3, 128)
    assert [tuple(one.weight.shape) for one in convolutions(generator)] == [(128, 3, 3, 3), (1, 128, 3, 3)]
    assert sum(one.numel() for one in generator.parameters()) == 128 * 28 + 128 * 9 + 1
    assert not [one for one in generator.modules() if isinstance(one, nn.BatchNorm2d)]


# the paper's MNIST network


def test_xcnn_mnist_has_the_papers_parameters():
    """29,899 with 576 inputs to the linear layer: the authors' public code, FACTS.md."""
    model = xcnn.xcnn_mnist()
    assert sum(one.numel() for one in model.parameters()) == 29_899
    assert sum(one.numel() for one in model.generator.parameters()) == 32 * 10 + 32 * 9 + 1
    assert model.discriminator[-1].in_features == 576
    kinds = [type(layer).__name__ for layer in model.discriminator]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"] * 3 + ["Flatten", "Linear"]
    assert [layer.out_channels for layer in convolutions(model.discriminator)] == [16, 32, 64]
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_small_cnn_sizes():
    assert xcnn.small_cnn((4, 8), classes=3, in_channels=3, size=13)(torch.zeros(2, 3, 13, 13)).shape == (2, 3)
    assert xcnn.small_cnn((4,), classes=2, size=2)(torch.zeros(1, 1, 2, 2)).shape == (1, 2)
    with pytest.raises(ValueError, match="size must be at least 8 for 3 poolings; got 7"):
        xcnn.small_cnn(size=7)


# the heatmap


@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (1, 1, 27, 31), (2, 1, 5, 4), (1, 1, 2, 2), (0, 1, 8, 8)])
def test_heatmap_has_the_images_size_and_lies_between_minus_1_and_1(shape):
    torch.manual_seed(0)
    model = xcnn.xcnn_mnist()
    found = model.heatmap(torch.randn(shape, generator=seeded()) * 100)
    assert found.shape == shape
    assert found.abs().le(1).all()
    if shape[0]:
        assert found.std() > 0.01, "a map, not a constant"


def test_heatmap_of_one_image_does_not_depend_on_the_others():
    torch.manual_seed(0)
    generator, images = xcnn.Generator(3, 8).double(), torch.randn(5, 3, 9, 9, dtype=torch.float64)
    alone = torch.cat([generator(one[None]) for one in images])
    torch.testing.assert_close(generator(images), alone, atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 28, 28), r"x must be images \(N, 1, H, W\).* got shape \(1, 28, 28\)"),
        ((2, 3, 28, 28), r"x must be images \(N, 1, H, W\).* got shape \(2, 3, 28, 28\)"),
        ((2, 1, 1, 28), r"x must .* sides of 2 or more; got shape \(2, 1, 1, 28\)"),
        ((2, 1, 28, 1), r"x must .* sides of 2 or more; got shape \(2, 1, 28, 1\)"),
    ],
)
def test_heatmap_says_what_is_wrong_with_the_images(plain, shape, message):
    model = plain("xcnn").xcnn_mnist()
    for function in (model.heatmap, model):
        with pytest.raises(ValueError, match=message):
            function(torch.zeros(shape))


def test_a_generator_without_convolutions_is_taken_too():
    model = xcnn.XCNN(nn.Tanh(), xcnn.small_cnn(size=8))
    x = torch.randn(2, 1, 8, 8, generator=seeded())
    assert torch.equal(model.heatmap(x), x.tanh())
    with pytest.raises(ValueError, match=r"\(N, C, H, W\).* got shape \(2, 1, 1, 8\)"):
        model.heatmap(x[:, :, :1])


def test_shapes_in_signatures_are_checked_in_the_tests():
    with pytest.raises(TypeCheckError):
        xcnn.Generator(1, 4)(torch.zeros(1, 28, 28))
    with pytest.raises(TypeCheckError):
        xcnn.Generator(1, 4)(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))


# any classifier


class Plain(nn.Module):
    """A classifier without convolutions."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))

    def forward(self, x):
        return self.layers(x)


CLASSIFIERS = {
    "the paper's": (lambda: xcnn.small_cnn(classes=5, size=8), 8, 1),
    "three channels": (lambda: xcnn.small_cnn(classes=5, size=8, in_channels=3), 8, 3),
    "no convolution": (Plain, 8, 1),
    "torchvision's resnet18": (lambda: resnet18(num_classes=5), 32, 3),
}


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_classifier_is_wrapped_as_it_is(kind):
    torch.manual_seed(0)
    build, side, channels = CLASSIFIERS[kind]
    classifier = build().eval()
    modes = [part.training for part in classifier.modules()]
    before = {name: one.clone() for name, one in classifier.state_dict().items()}
    parts = [(name, type(part)) for name, part in classifier.named_modules()]
    model = xcnn.XCNN(xcnn.Generator(3, 4), classifier)
    assert model.discriminator is classifier
    images = torch.randn(2, 3, side, side, generator=seeded())
    logits = model(images)
    assert logits.shape == (2, 5)
    seen = model.heatmap(images)
    assert torch.equal(logits, classifier(torch.cat([seen] * channels, 1))), "it sees the heatmap, in each channel"
    after = classifier.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], one) for name, one in before.items())
    assert [(name, type(part)) for name, part in classifier.named_modules()] == parts
    assert [part.training for part in classifier.modules()] == modes
    logits.sum().backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in model.generator.parameters())


def test_the_classifier_sees_nothing_but_the_heatmap():
    torch.manual_seed(0)
    model = xcnn.xcnn_mnist().eval()
    nn.init.zeros_(convolutions(model.generator)[-1].weight)  # every heatmap is tanh(bias)
    logits = model(torch.randn(4, 1, 28, 28, generator=seeded()))
    assert torch.equal(logits, logits[:1].expand(4, -1))


# the sign


def test_map_sign_by_hand():
    image = torch.tensor([[[[0.0, 0.0], [0.0, 4.0]]]])
    assert xcnn.map_sign(image, image) == 1
    assert xcnn.map_sign(-image, image) == -1
    assert xcnn.map_sign(image - 9, image) == 1, "the level of a map does not count"
    assert xcnn.map_sign(9 - image, image) == -1
    assert xcnn.map_sign(torch.zeros_like(image), image) == 1, "no map: not negated"
    # covariances within the images: 3 for the first (map 4 at the ink), -1 for the second (map 4/3 off the ink)
    maps = torch.cat([image, -image / 3])
    assert xcnn.map_sign(maps, image.expand(2, -1, -1, -1)) == 1
    assert xcnn.map_sign(-maps, image.expand(2, -1, -1, -1)) == -1
    # a bright image with a high map beside a dark one with a low map says nothing: only differences within count
    levels = torch.tensor([10.0, -10.0]).view(2, 1, 1, 1)
    assert xcnn.map_sign(-image + levels, image + levels) == -1


def test_map_sign_takes_pixels_of_any_type_and_scale():
    image = torch.tensor([[[[0, 0], [10, 250]]]], dtype=torch.uint8)
    heatmap = torch.tensor([[[[-0.9, -0.9], [-0.8, 0.2]]]])
    assert xcnn.map_sign(heatmap, image) == 1
    assert xcnn.map_sign(-heatmap, image) == -1
    assert xcnn.map_sign(-heatmap, image.double() / 255) == -1
