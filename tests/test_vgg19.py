from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

from xai_lib.vgg19 import FC1, FC2, last_convolution, small_vgg, vgg19

PAIRS = 3 * 64 + 64**2 + 64 * 128 + 128**2 + 128 * 256 + 3 * 256**2 + 256 * 512 + 7 * 512**2  # 16 convolutions
CHANNELS = 2 * 64 + 2 * 128 + 4 * 256 + 8 * 512
LINEAR = 7 * 7 * 512 * 4096 + 4096 + 4096 * 4096 + 4096  # the first two


@pytest.fixture
def meta():
    """Shapes without numbers: the networks have 140 million weights."""
    with torch.device("meta"):
        yield


def count(model):
    return sum(one.numel() for one in model.parameters())


def kinds(model):
    return [type(layer).__name__ for layer in model]


def test_vgg19_has_the_papers_layers(meta):
    """Simonyan and Zisserman (2015), table 1, column E, with BatchNorm; 143,678,248 weights for ImageNet's classes."""
    assert 9 * PAIRS + 3 * CHANNELS + LINEAR + 4096 * 1000 + 1000 == 143_678_248
    model = vgg19(50)
    assert count(model) == 143_678_248 - 950 * 4097
    triple, pool = ["Conv2d", "BatchNorm2d", "ReLU"], ["MaxPool2d"]
    assert kinds(model.features) == (triple * 2 + pool) * 2 + (triple * 4 + pool) * 3
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 50)


@pytest.mark.parametrize("build", [vgg19, small_vgg])
def test_the_named_layers_are_relus_after_the_first_two_linear_layers(build, meta):
    """The paper's Z is the first fully-connected layer, with 4,096 dimensions; networks share the names."""
    model = build(7)
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    assert linear == ["classifier.0", "classifier.3", "classifier.6"]
    for name, before in ((FC1, linear[0]), (FC2, linear[1])):
        assert isinstance(model.get_submodule(name), nn.ReLU)
        head, _, place = name.rpartition(".")
        assert before == f"{head}.{int(place) - 1}"
    assert [name for name, _ in model.named_children()] == ["features", "avgpool", "classifier"]
    assert kinds(model.classifier) == ["Linear", "ReLU", "Dropout"] * 2 + ["Linear"]
    units = [model.get_submodule(name).out_features for name in linear]
    assert units == [4096 if build is vgg19 else 512] * 2 + [7]


@pytest.mark.parametrize("build", [vgg19, small_vgg])
def test_the_last_convolution_is_read_after_its_relu_and_pooling(build, meta):
    model = build(7)
    before, relu, last = (model.get_submodule(f"features.{len(model.features) - k}") for k in (3, 2, 1))
    assert model.get_submodule(last_convolution(model)) is last
    assert [type(one) for one in (before, relu, last)] == [nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d]


# pretrained


def test_pretrained_starts_from_imagenets_weights_with_a_last_layer_of_its_own(meta, monkeypatch):
    """torchvision's network without BatchNorm, as the weights are for; nothing is downloaded here."""
    asked = []
    original = torchvision.models.vgg19()

    def loaded(*, weights):
        asked.append(weights)
        return original

    monkeypatch.setattr(torchvision.models, "vgg19", loaded)
    before = dict(original.named_parameters())
    model = vgg19(30, pretrained=True)
    assert asked == [torchvision.models.VGG19_Weights.IMAGENET1K_V1]
    after = dict(model.named_parameters())
    assert [name for name in after if after[name] is not before[name]] == ["classifier.6.weight", "classifier.6.bias"]
    assert count(model) == 9 * PAIRS + CHANNELS + LINEAR + 4096 * 30 + 30
    assert isinstance(model.get_submodule(FC1), nn.ReLU)
    assert isinstance(model.get_submodule(FC2), nn.ReLU)


def test_weights_that_cannot_be_had_are_one_clear_line(monkeypatch):
    def offline(**settings):
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.models, "vgg19", offline)
    with pytest.raises(
        ValueError, match="pretrained: the weights for ImageNet .* no route to host.*; got True"
    ) as error:
        vgg19(30, pretrained=True)
    assert "\n" not in str(error.value)


# the small one


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # Convolutions without biases, BatchNorms with two numbers a channel, three linear layers with biases.
        (
            {"classes": 50},
            9 * (3 * 16 + 16**2 + 16 * 32 + 32**2 + 32 * 64 + 64**2 + 64 * 128 + 128**2)
            + 2 * 2 * (16 + 32 + 64 + 128)
            + (128 * 4 * 4 * 512 + 512)
            + (512 * 512 + 512)
            + (512 * 50 + 50),
        ),
        (
            {"classes": 3, "size": 11, "widths": (4, 6), "hidden": 12},  # 11 to 5 to 2 pixels
            9 * (3 * 4 + 4**2 + 4 * 6 + 6**2) + 2 * 2 * (4 + 6) + (6 * 2 * 2 * 12 + 12) + (12 * 12 + 12) + (12 * 3 + 3),
        ),
    ],
)
def test_parameters_of_the_small_one_by_hand(settings, expected, meta):
    model = small_vgg(**settings)
    assert count(model) == expected
    size = settings.get("size", 64)
    assert model.eval()(torch.zeros(2, 3, size, size)).shape == (2, settings["classes"])


def test_blocks_of_the_small_one(meta):
    features = small_vgg(2, 8, (4, 6, 5), 12).features
    assert kinds(features) == (["Conv2d", "BatchNorm2d", "ReLU"] * 2 + ["MaxPool2d"]) * 3
    convolutions = [layer for layer in features if isinstance(layer, nn.Conv2d)]
    channels = [(layer.in_channels, layer.out_channels) for layer in convolutions]
    assert channels == [(3, 4), (4, 4), (4, 6), (6, 6), (6, 5), (5, 5)]
    assert {(layer.kernel_size, layer.padding) for layer in convolutions} == {((3, 3), (1, 1))}


def test_images_must_outlast_the_poolings():
    assert small_vgg(2, 4, (4, 4), 3).eval()(torch.zeros(1, 3, 4, 4)).shape == (1, 2)
    with pytest.raises(ValueError, match="size must be at least 4 for 2 poolings; got 3"):
        small_vgg(2, 3, (4, 4), 3)


def test_dropout_is_of_the_hidden_layers_in_training_alone():
    model = small_vgg(2, 4, (4,), 200, dropout=0.25)
    images = torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    dropped = []
    for name in ("classifier.2", "classifier.5"):
        model.get_submodule(name).register_forward_hook(
            lambda _, inputs, output: dropped.append(((inputs[0] != 0) & (output == 0)).sum() / (inputs[0] != 0).sum())
        )
    torch.manual_seed(0)
    model.train()(images)
    assert [one.item() for one in dropped] == pytest.approx([0.25, 0.25], abs=0.04)
    model.eval()(images)
    assert dropped[2:] == [0, 0]
    assert {layer.p for layer in small_vgg(2, 4, (4,), 3).modules() if isinstance(layer, nn.Dropout)} == {0.0}
