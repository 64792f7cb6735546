import gc
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import slow_attribution as slow
import torch
import zennit.attribution
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from zennit import composites

from xai_lib import attribution, xcnn

BOUNDS = (-1.0, 1.5)  # of the pixels of `images_for`
PATTERNS = ("patternnet", "pattern_attribution")
EXCITATION = ("excitation_bp", "contrastive_excitation_bp")
RELEVANCE = ("deep_taylor", "lrp")
BACKPROPAGATION = ("gradient", "guided_backprop", "deconvolution", *RELEVANCE)
STRICT = (*RELEVANCE, *EXCITATION)  # methods that refuse what they have no rule for
COMMON = (*BACKPROPAGATION, *EXCITATION, "grad_cam")  # what any classifier of images takes without more arguments


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# networks


class Residual(nn.Module):
    """Convolution, BatchNorm, ReLU, convolution, BatchNorm, added to the input or its `shortcut`; ReLU."""

    def __init__(self, width_in, width_out, stride=1):
        super().__init__()
        self.first = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width_out)
        self.second = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(width_out)
        other = [nn.Conv2d(width_in, width_out, 1, stride, bias=False), nn.BatchNorm2d(width_out)]
        self.shortcut = nn.Sequential(*(other if stride > 1 else []))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        short = self.shortcut(x)
        x = self.relu(self.norm1(self.first(x)))
        x = self.norm2(self.second(x))
        x += short
        return self.relu(x)

    def parts(self):
        inner = [self.first, self.norm1, nn.ReLU(), self.second, self.norm2]
        return [("sum", inner, list(self.shortcut)), nn.ReLU()]


class Mixed(nn.Module):
    """A layer used twice, BatchNorm that follows none with weights, both kinds of upsampling, cat; functions only."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        x = self.twice(functional.relu(self.twice(functional.relu(self.first(x)))))
        x = functional.interpolate(torch.tanh(x), size=(5, 6), mode="bilinear", align_corners=False)
        x = self.norm(functional.interpolate(x, size=(6, 9), mode="bilinear", align_corners=True))
        return self.last(torch.cat([functional.avg_pool2d(x, (6, 9)).flatten(1), functional.relu(x).mean((2, 3))], 1))

    def parts(self):
        def grow(*size, corners):
            return nn.Upsample(size, mode="bilinear", align_corners=corners)

        ways = ("cat", [nn.AdaptiveAvgPool2d(1)], [nn.ReLU(), nn.AdaptiveAvgPool2d(1)])
        head = [self.first, nn.ReLU(), self.twice, nn.ReLU(), self.twice, nn.Tanh()]
        return [*head, grow(5, 6, corners=False), grow(6, 9, corners=True), self.norm, ways, nn.Flatten(), self.last]


def randomised(model, seed=1):  # the seed with which no map of the tests is empty
    """Return the model in float64 and eval mode; normal weights, and biases and BatchNorm statistics far from 0, 1."""
    generator = seeded(seed)
    model.double().eval()
    for layer in model.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            spread = max(1, parameter[0].numel()) ** 0.5 if name == "weight" else 2
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / spread
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = torch.randn(layer.running_mean.shape, generator=generator, dtype=torch.float64) / 3
            layer.running_var = torch.rand(layer.running_var.shape, generator=generator, dtype=torch.float64) + 0.5
    return model


class Case(NamedTuple):
    model: nn.Module
    nodes: list  # the same network for the slow form
    shape: tuple  # of an image
    start: int | None  # the node at which excitation is read, None where no layer serves
    cam: int | None  # the node of Grad-CAM


def convolutional():
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(20, 4)]
    return nn.Sequential(*layers), None, (2, 10, 9), 1, 4


def strided():
    layers = [nn.Conv2d(3, 4, 3, stride=2, padding=2, dilation=2), nn.ReLU()]
    layers += [nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(1, 0), groups=2, bias=False), nn.BatchNorm2d(6)]
    layers += [nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2, 1, 1), nn.Flatten(), nn.Linear(48, 3, bias=False)]
    return nn.Sequential(*layers), None, (3, 10, 9), 1, 3


def convolution_on_top():
    layers = [nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), None, (1, 8, 7), 1, 3


def residual():
    layers = [nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), Residual(4, 4)]
    layers += [Residual(4, 5, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)]
    return nn.Sequential(*layers), [*layers[:3], *layers[3].parts(), *layers[4].parts(), *layers[5:]], (1, 7, 8), 1, 7


def fully_connected():
    layers = [nn.Flatten(), nn.Linear(24, 7), nn.ReLU(), nn.Linear(7, 4)]
    return nn.Sequential(*layers), None, (2, 3, 4), None, None


def mixed():
    model = Mixed()
    return model, model.parts(), (2, 7, 8), None, None


def heatmap(in_channels=1):
    model = xcnn.XCNN(xcnn.Generator(1, 3), xcnn.small_cnn((2, 3), classes=4, in_channels=in_channels, size=8))
    grow = nn.Upsample((8, 8), mode="bilinear", align_corners=True)
    more = [("cat", *[[]] * in_channels)] if in_channels > 1 else []
    parts = [model.generator.encode, grow, model.generator.decode, *more, model.discriminator]
    return model, parts, (1, 8, 8), 7 + len(more), 10 + len(more)


NETWORKS = {
    "conv": convolutional,
    "strided": strided,
    "top": convolution_on_top,
    "residual": residual,
    "linear": fully_connected,
    "mixed": mixed,
    "xcnn": heatmap,
    "xcnn3": lambda: heatmap(3),
}


@cache
def case(name) -> Case:
    model, parts, shape, start, cam = NETWORKS[name]()
    randomised(model)
    return Case(model, slow.from_torch(parts or model, shape), shape, start, cam)


def images_for(name, count=2, seed=0, positive=False):
    """Return images whose values fill [-1, 1.5] or, positive, [0, 1]."""
    images = torch.rand((count, *case(name).shape), generator=seeded(seed), dtype=torch.float64)
    return images if positive else images * (BOUNDS[1] - BOUNDS[0]) + BOUNDS[0]


@cache
def patterns_for(name, estimator):
    """Return patterns by the library and by the slow form; batches that do not divide the images."""
    images = images_for(name, 5, seed=3)
    ours = attribution.fit_patterns(case(name).model, images, estimator=estimator, batch_size=2)
    return ours, slow.fit_patterns(case(name).nodes, images.numpy(), estimator)


def extras(method, name, estimator="two-component"):
    """Return the further arguments of ours and of the slow form."""
    if method in PATTERNS:
        ours, theirs = patterns_for(name, estimator)
        return {"patterns": ours}, {"patterns": theirs}
    if method in EXCITATION:
        return {}, {"layer": case(name).start}
    if method == "grad_cam":
        return {}, {"layer": case(name).cam}
    return ({"bounds": BOUNDS}, {"bounds": BOUNDS}) if method == "deep_taylor" else ({}, {})


def explain(method, name, images, target, **more):
    return attribution.explain(method, case(name).model, images, target, **extras(method, name)[0], **more)


def assert_near(found, expected, tolerance=1e-6):
    """Assert that the largest difference is within `tolerance` of the largest value, which is not 0."""
    assert found.shape == expected.shape
    size = expected.abs().max()
    assert size > 0
    assert (found - expected).abs().max() <= tolerance * size


def supports(method, name):
    place = {"grad_cam": case(name).cam}.get(method, case(name).start if method in EXCITATION else 0)
    return place is not None


def slow_maps(method, name, images, targets, **more):
    maps = [
        slow.explain(method, case(name).nodes, image.numpy(), target, **more)
        for image, target in zip(images, targets, strict=True)
    ]
    return torch.from_numpy(np.stack(maps))[:, None]


PAIRS = [(method, name) for name in NETWORKS for method in COMMON if supports(method, name)]


# the slow form


@pytest.mark.parametrize("name", NETWORKS)
def test_the_slow_form_computes_the_network_and_its_gradient(name):
    """Its own check: the matrices are the network, by torch's forward pass and autograd."""
    images = images_for(name).requires_grad_()
    logits = case(name).model(images)
    found = np.stack([slow.run(case(name).nodes, image.ravel())[-1].z for image in images.detach().numpy()])
    assert_near(torch.from_numpy(found), logits.detach(), 1e-12)
    slope = torch.autograd.grad(logits[:, 1].sum(), images)[0].sum(1, keepdim=True)
    assert_near(slow_maps("gradient", name, images.detach(), (1, 1)), slope, 1e-12)


@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_explain_is_the_slow_form(method, name):
    images, targets = images_for(name), torch.tensor([1, 2])
    found = explain(method, name, images, targets)
    assert found.dtype == torch.float64
    assert not found.requires_grad
    assert_near(found, slow_maps(method, name, images, targets.tolist(), **extras(method, name)[1]))


@pytest.mark.parametrize("estimator", ["linear", "two-component"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", PATTERNS)
def test_patterns_are_the_slow_form(method, name, estimator):
    images, (ours, theirs) = images_for(name), extras(method, name, estimator)
    found = attribution.explain(method, case(name).model, images, torch.tensor([1, 2]), **ours)
    assert_near(found, slow_maps(method, name, images, (1, 2), **theirs))


@pytest.mark.parametrize("method", EXCITATION)
@pytest.mark.parametrize("name", ["conv", "strided", "residual", "linear"])
def test_excitation_at_the_pixels_is_the_slow_form(method, name):
    images = images_for(name, positive=True)
    found = attribution.explain(method, case(name).model, images, torch.tensor([1, 2]), layer="")
    assert_near(found, slow_maps(method, name, images, (1, 2)))


@pytest.mark.parametrize("method", [*EXCITATION, "grad_cam"])
@pytest.mark.parametrize(("layer", "node"), [("3", 2), ("5", 4), ("6", 5)])
def test_a_named_layer_is_the_slow_form(method, layer, node):
    images, model = images_for("conv"), case("conv").model
    found = attribution.explain(method, model, images, torch.tensor([1, 2]), layer=layer)
    assert_near(found, slow_maps(method, "conv", images, (1, 2), layer=node))


@pytest.mark.parametrize("epsilon", [1e-3, 0.5])
@pytest.mark.parametrize("method", RELEVANCE)
def test_epsilon_is_the_slow_form(method, epsilon):
    images, more = images_for("residual"), {"bounds": BOUNDS, "epsilon": epsilon}
    found = attribution.explain(method, case("residual").model, images, torch.tensor([1, 2]), **more)
    assert_near(found, slow_maps(method, "residual", images, (1, 2), **more))
    assert not torch.allclose(found, explain(method, "residual", images, torch.tensor([1, 2])), rtol=1e-4)


@pytest.mark.parametrize("shape", [(2, 1, 1), (1, 2, 1, 1), (2, 10, 9)])
def test_bounds_may_differ_by_channel(shape):
    low, high = torch.full(shape, -1.0), torch.full(shape, 1.5)
    low.view(-1, *shape[-2:])[1] = -1.25
    high.view(-1, *shape[-2:])[0] = 2.0
    images = images_for("conv")
    found = attribution.explain("deep_taylor", case("conv").model, images, 1, bounds=(low, high))
    bounds = [bound.double().view(-1, *shape[-2:]).numpy() for bound in (low, high)]
    assert_near(found, slow_maps("deep_taylor", "conv", images, (1, 1), bounds=bounds))


# several targets, batches, precision


@pytest.mark.parametrize("method", [*COMMON, *PATTERNS])
def test_several_targets_are_one_at_a_time(method):
    """And an int is that target for all images."""
    images = images_for("conv")
    found = explain(method, "conv", images, torch.tensor([[0, 3, 1], [2, 0, 0]]))
    singly = [explain(method, "conv", images, target) for target in range(4)]
    for i, row in enumerate([[0, 3, 1], [2, 0, 0]]):
        assert_near(found[i], torch.cat([singly[target][i] for target in row]), 1e-12)


@pytest.mark.parametrize("method", [*COMMON, *PATTERNS])
def test_a_batch_is_its_images_one_by_one(method):
    images, targets = images_for("residual", 3), torch.tensor([[0, 1], [2, 1], [1, 0]])
    found = explain(method, "residual", images, targets)
    pairs = zip(images.split(1), targets.split(1), strict=True)
    assert_near(found, torch.cat([explain(method, "residual", *pair) for pair in pairs]), 1e-12)
    assert_near(found, explain(method, "residual", images, targets, batch_size=2), 1e-12)


@pytest.mark.parametrize("method", [*COMMON, *PATTERNS])
def test_float32_is_close_to_float64(method):
    model, images = randomised(convolutional()[0]), images_for("conv").clamp(-0.99, 1.49)
    many = images_for("conv", 9, seed=4)
    more = {"patterns": attribution.fit_patterns(model, many)} if method in PATTERNS else {"bounds": BOUNDS}
    expected = attribution.explain(method, model, images, 1, **more)
    if method in PATTERNS:
        more = {"patterns": attribution.fit_patterns(model.float(), many.float())}
    found = attribution.explain(method, model.float(), images.float(), 1, **more)
    assert found.dtype == torch.float32
    assert_near(found.double(), expected, 1e-3)


# sums that hold


def relevance_sums(method, model, images, **more):
    """Return the sum of each map and the logit, both (N,)."""
    with torch.no_grad():
        logits = model(images)[:, 1]
    return attribution.explain(method, model, images, 1, epsilon=1e-12, **more).sum((1, 2, 3)), logits


def wide_residual():
    """A network wide enough for each neuron to have positive contributions, where rules lose nothing."""
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), Residual(8, 8), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 3)), None, (1, 7, 8), None, None


def without_biases(model):
    for layer in model.modules():
        if getattr(layer, "bias", None) is not None:
            layer.bias.data.zero_()
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.zero_()
    return model


@pytest.mark.parametrize("name", ["conv", "strided", "linear"])
def test_deep_taylor_conserves_relevance(name):
    """With biases: they are not in the normaliser."""
    sums, logits = relevance_sums("deep_taylor", case(name).model, images_for(name), bounds=BOUNDS)
    torch.testing.assert_close(sums, logits, rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", RELEVANCE)
@pytest.mark.parametrize("build", [convolutional, strided, wide_residual, fully_connected, heatmap, lambda: heatmap(3)])
def test_relevance_is_conserved_without_biases(build, method):
    """Through convolutions, pooling, bilinear upsampling, tanh, residual sums, expansion."""
    model, _, shape, *_ = build()
    images = torch.rand((2, *shape), generator=seeded(), dtype=torch.float64) * 2.5 - 1
    more = {"bounds": BOUNDS} if method == "deep_taylor" else {}
    sums, logits = relevance_sums(method, without_biases(randomised(model)), images, **more)
    assert logits.abs().min() > 1e-3
    torch.testing.assert_close(sums, logits, rtol=1e-6, atol=0)


class Upsampled(nn.Module):
    """Upsampling of both kinds, tanh, a global mean; no weights but in the last layer, which has no bias."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 4, bias=False)

    def forward(self, x):
        x = functional.interpolate(torch.tanh(x), size=(13, 4), mode="bilinear", align_corners=False)
        x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        return self.last((-(0.5 - 2 * x) / 3).mean((2, 3)))


def test_lrp_conserves_relevance_through_upsampling_and_constants():
    images = torch.rand((2, 3, 6, 5), generator=seeded(), dtype=torch.float64) - 0.3
    sums, logits = relevance_sums("lrp", randomised(Upsampled()), images)
    torch.testing.assert_close(sums, logits, rtol=1e-6, atol=0)


@pytest.mark.parametrize("build", [convolutional, wide_residual, convolution_on_top])
def test_excitation_is_a_probability(build):
    """At the pixels; and for c-MWP the difference of two has the sum 0, where both units have positive weights."""
    model, _, shape, *_ = build()
    images = torch.rand((2, *shape), generator=seeded(), dtype=torch.float64)
    model = without_biases(randomised(model))
    total = attribution.explain("excitation_bp", model, images, 1, layer="").sum((1, 2, 3))
    torch.testing.assert_close(total, torch.ones(2, dtype=torch.float64))
    total = attribution.explain("contrastive_excitation_bp", model, images, 1, layer="").sum((1, 2, 3))
    torch.testing.assert_close(total, torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["conv", "xcnn"])
def test_excitation_is_read_at_the_first_rectified_layer_of_the_images_size(name):
    """There upsampling does nothing, so the sum is still 1."""
    total = explain("excitation_bp", name, images_for(name), torch.tensor([0, 2])).sum((1, 2, 3))
    torch.testing.assert_close(total, torch.ones(2, dtype=torch.float64))


def test_contrastive_excitation_by_hand():
    """a = (2, 1, 1), w+ = (1, 0, 3), (-w)+ = (0, 4, 0): (2, 0, 3) / 5 - (0, 1, 0)."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 1)).double()
    model[1].weight.data = torch.tensor([[1.0, -4, 3]]).double()
    images = torch.tensor([2.0, 1, 1]).double().view(1, 1, 1, 3)
    found = attribution.explain("excitation_bp", model, images, 0, layer="")
    torch.testing.assert_close(found.flatten(), torch.tensor([0.4, 0, 0.6]).double())
    found = attribution.explain("contrastive_excitation_bp", model, images, 0, layer="")
    torch.testing.assert_close(found.flatten(), torch.tensor([0.4, -1, 0.6]).double())


def test_a_unit_without_positive_weights_has_an_empty_map():
    model = randomised(convolutional()[0])
    model[-1].weight.data[2] = -model[-1].weight.data[2].abs()
    found = attribution.explain("excitation_bp", model, images_for("conv"), torch.tensor([[2, 1], [2, 1]]))
    assert (found[:, 0] == 0).all()
    assert (found[:, 1].sum((1, 2)) > 0.99).all()


def test_a_sum_with_a_negative_constant_is_not_rectified():
    """ReLU - 1 can be negative, so the map is read at the ReLU after the next convolution."""

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
            self.last, self.relu = nn.Linear(3, 4), nn.ReLU()

        def forward(self, x):
            x = self.relu(self.first(x)) + (-1)
            return self.last(self.relu(self.second(x)).mean((2, 3)))

    images = torch.rand((2, 1, 5, 5), generator=seeded(), dtype=torch.float64)
    total = attribution.explain("excitation_bp", randomised(Shifted()), images, 1).sum((1, 2, 3))
    torch.testing.assert_close(total, torch.ones(2, dtype=torch.float64))


def test_pixel_probabilities_by_hand():
    maps = torch.tensor([[[1.0, 3], [0, 0]], [[-1, 2], [-5, 2]], [[0, 0], [0, 0]], [[-1, -2], [0, 0]]])
    probabilities, kept = attribution.pixel_probabilities(maps[None])
    expected = torch.tensor([[[0.25, 0.75], [0, 0]], [[0, 0.5], [0, 0.5]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]])
    torch.testing.assert_close(probabilities, expected[None])
    assert kept.tolist() == [[True, True, False, False]]


# patterns


def test_patterns_find_the_signal_by_hand():
    """Kindermans et al. 2017, section 2: x = y (1, 0) + d (1, 1) has the filter w = (1, -1) and the signal (1, 0)."""
    y, d = torch.randn(2, 200, generator=seeded(), dtype=torch.float64)
    y, d = y - y.mean(), d - d.mean()
    d = d - (d @ y) / (y @ y) * y  # uncorrelated, exactly
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1)).double()
    model[1].weight.data = torch.tensor([[1.0, -1]]).double()
    images = torch.stack([y + d, d], 1).view(-1, 1, 1, 2)
    patterns = attribution.fit_patterns(model, images, estimator="linear", batch_size=7)
    signal = torch.tensor([1.0, 0]).double().view(1, 1, 1, 2)
    found = attribution.explain("patternnet", model, images[:2], 0, patterns=patterns)
    torch.testing.assert_close(found, signal.expand(2, 1, 1, 2), atol=1e-10, rtol=0)
    logits = model(images[:2]).detach().view(2, 1, 1, 1)
    found = attribution.explain("pattern_attribution", model, images[:2], 0, patterns=patterns)
    torch.testing.assert_close(found, signal * logits, atol=1e-10, rtol=0)


@pytest.mark.parametrize("estimator", ["linear", "two-component"])
def test_a_neuron_that_never_varies_has_no_pattern(estimator):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    model[1].weight.data = torch.tensor([[1.3, 2.1, 0, 0], [0, 0, 1, 2]]).double()
    model[1].bias.data, model[3].weight.data = torch.zeros(2).double(), torch.eye(2).double()
    images = torch.rand((5000, 1, 2, 2), generator=seeded(), dtype=torch.float64)
    images[:, :, 0] = 20
    patterns = attribution.fit_patterns(model, images, estimator=estimator)
    found = attribution.explain("patternnet", model, images[:1], torch.tensor([[0, 1]]), patterns=patterns)
    assert (found[0, 0] == 0).all()
    assert (found[0, 1, 1] > 0).all()


@pytest.mark.parametrize("estimator", ["linear", "two-component"])
def test_patterns_do_not_depend_on_the_batches(estimator):
    images = images_for("residual", 7)
    first, *others = [
        attribution.explain(
            "patternnet",
            case("residual").model,
            images[:1],
            1,
            patterns=attribution.fit_patterns(
                case("residual").model, images, estimator=estimator, batch_size=batch_size
            ),
        )
        for batch_size in (100, 7, 3, 1)
    ]
    for other in others:
        assert_near(other, first, 1e-10)


# the form of a network


class Functional(nn.Module):
    """The network "conv" written in functions."""

    def __init__(self, twin):
        super().__init__()
        self.twin = twin

    def forward(self, x):
        first, norm, last = self.twin[0], self.twin[1], self.twin[8]
        x = functional.conv2d(x, first.weight, first.bias, 1, 1)
        x = functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        x = functional.max_pool2d(functional.relu(x), 2)
        x = torch.relu(functional.conv2d(x, self.twin[4].weight, self.twin[4].bias, padding="same"))
        return functional.linear(torch.flatten(functional.avg_pool2d(x, 2), 1), last.weight, last.bias)


class OneRelu(nn.Module):
    """The network "conv" with one ReLU for both places, in place."""

    def __init__(self, twin):
        super().__init__()
        self.layers, self.relu = nn.ModuleList(twin), nn.ReLU(inplace=True)

    def forward(self, x):
        for layer in self.layers:
            x = self.relu(x) if isinstance(layer, nn.ReLU) else layer(x)
        return x


class Discarding(nn.Module):
    """The network "conv" with activations in place whose results are not looked at."""

    def __init__(self, twin):
        super().__init__()
        self.layers, self.relu = nn.ModuleList(twin), nn.ReLU(inplace=True)

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            if not isinstance(layer, nn.ReLU):
                x = layer(x)
            elif i == 2:
                self.relu(x)
            else:
                x.relu_()
        return x


@pytest.mark.parametrize("form", [Functional, OneRelu, Discarding])
@pytest.mark.parametrize("method", [*COMMON, *PATTERNS])
def test_the_form_of_a_network_does_not_matter(method, form):
    images, model = images_for("conv"), form(case("conv").model).eval()
    with torch.no_grad():
        assert torch.equal(model(images), case("conv").model(images))
    more = {"bounds": BOUNDS}
    if method in PATTERNS:
        more["patterns"] = attribution.fit_patterns(model, images_for("conv", 5, seed=3), "two-component", 2)
    found = attribution.explain(method, model, images, torch.tensor([[1, 3], [0, 2]]), **more)
    assert torch.equal(found, explain(method, "conv", images, torch.tensor([[1, 3], [0, 2]])))


class FunctionalResidual(nn.Module):
    """The network "residual" without `Residual`, sums and a mean written out."""

    def __init__(self, twin):
        super().__init__()
        self.twin = twin

    def forward(self, x):
        x = functional.relu(self.twin[1](self.twin[0](x)))
        for block in self.twin[3:5]:
            inner = block.norm2(block.second(torch.relu(block.norm1(block.first(x)))))
            x = (inner + block.shortcut(x)).relu()
        return self.twin[7](x.mean((2, 3)))


@pytest.mark.parametrize("method", [*COMMON, *PATTERNS])
def test_a_residual_network_in_functions_is_the_same(method):
    images, model = images_for("residual"), FunctionalResidual(case("residual").model).eval()
    more = {"bounds": BOUNDS}
    if method in PATTERNS:
        more["patterns"] = attribution.fit_patterns(model, images_for("residual", 5, seed=3), "two-component", 2)
    found = attribution.explain(method, model, images, 1, **more)
    assert torch.equal(found, explain(method, "residual", images, 1))


@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.Softplus(), nn.ReLU6(), nn.GELU(), nn.LeakyReLU(0.3)])
@pytest.mark.parametrize("method", ["gradient", "guided_backprop", "deconvolution"])
def test_the_backpropagation_methods_change_relu_alone(method, activation):
    model = randomised(nn.Sequential(nn.Conv2d(1, 3, 3), activation, nn.Flatten(), nn.Linear(48, 3)))
    images = torch.rand((2, 1, 6, 6), generator=seeded(), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(model(4 * images)[:, 1].sum(), images)
    assert_near(attribution.explain(method, model, 4 * images.detach(), 1), slope / 4, 1e-12)


@pytest.mark.parametrize("method", ["lrp", "deep_taylor", "excitation_bp"])
def test_dropout_and_identity_are_nothing(method):
    layers = list(randomised(convolutional()[0]))
    model = nn.Sequential(*layers[:4], nn.Dropout2d(0.5), nn.Identity(), *layers[4:8], nn.Dropout(), layers[8])
    model.train()
    found = attribution.explain(method, model, images_for("conv"), 1, bounds=BOUNDS)
    assert torch.equal(found, explain(method, "conv", images_for("conv"), 1))


# the model and the world are left as they were


def state(model):
    """Return all that could be left changed on a model."""
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [(name, id(one), one.requires_grad, one.grad is None) for name, one in model.named_parameters()]
    modules = [(name, id(one), type(one), one.training, sorted(vars(one))) for name, one in model.named_modules()]
    hooks = [len(held) for one in model.modules() for key, held in vars(one).items() if key.endswith("_hooks")]
    return tensors, flags, modules, hooks


def assert_unchanged(model, before):
    tensors, *others = state(model)
    assert others == list(before[1:])
    assert tensors.keys() == before[0].keys()
    assert all(torch.equal(tensors[name], before[0][name]) for name in tensors)


def in_mixed_modes():
    """Return a network in train mode but for one part, one parameter frozen, with a hook of its user."""
    model = randomised(residual()[0]).train()
    model[3].norm1.eval()
    model[0].weight.requires_grad_(False)
    model[2].register_forward_hook(lambda module, inputs, output: None)
    return model


class Broken(nn.Module):
    """A layer that fails in the forward pass, or on the way back."""

    class Back(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, slope):
            raise ZeroDivisionError("on the way back")

    def __init__(self, forward):
        super().__init__()
        self.now = forward

    def forward(self, x):
        if self.now:
            raise ZeroDivisionError("on the way")
        return self.Back.apply(x)


@pytest.mark.parametrize("method", [*COMMON, *PATTERNS])
def test_the_model_is_left_as_it_was(method):
    model = in_mixed_modes()
    before = state(model)
    images = images_for("residual").requires_grad_()
    copy, random = images.detach().clone(), torch.get_rng_state()
    more = {"patterns": attribution.fit_patterns(model, images)} if method in PATTERNS else {"bounds": BOUNDS}
    assert_unchanged(model, before)
    found = attribution.explain(method, model, images, 1, **more)
    assert not found.requires_grad
    assert_unchanged(model, before)
    assert torch.equal(images, copy)
    assert images.requires_grad
    assert images.grad is None
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("method", [*COMMON, *PATTERNS])
def test_the_model_is_left_as_it_was_after_an_error(method):
    model = in_mixed_modes()
    more = {"patterns": attribution.fit_patterns(model, images_for("residual"))} if method in PATTERNS else {}
    model.insert(4, Broken(forward=True))
    before, functions = state(model), dict(vars(functional))
    with pytest.raises(ZeroDivisionError, match="on the way"):
        attribution.explain(method, model, images_for("residual"), 1, bounds=BOUNDS, **more)
    assert_unchanged(model, before)
    with pytest.raises(ZeroDivisionError, match="on the way"):
        attribution.fit_patterns(model, images_for("residual"))
    assert_unchanged(model, before)
    assert dict(vars(functional)) == functions


def test_the_model_is_left_as_it_was_after_an_error_on_the_way_back():
    model = in_mixed_modes()
    model.insert(4, Broken(forward=False))
    before = state(model)
    with pytest.raises(ZeroDivisionError, match="on the way back"):
        attribution.explain("gradient", model, images_for("residual"), 1)
    assert_unchanged(model, before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", [*COMMON, *PATTERNS])
def test_explain_works_without_gradients(method, mode):
    images, targets = images_for("conv"), torch.tensor([[1, 2], [0, 3]])
    expected = explain(method, "conv", images, targets)
    with mode():
        found = explain(method, "conv", images, targets)
    assert torch.equal(found, expected)


def test_fit_patterns_works_without_gradients():
    with torch.no_grad():
        patterns = attribution.fit_patterns(case("conv").model, images_for("conv", 5, seed=3), "two-component", 2)
    found = attribution.explain("patternnet", case("conv").model, images_for("conv"), 1, patterns=patterns)
    assert torch.equal(found, explain("patternnet", "conv", images_for("conv"), 1))


# zennit as a second opinion


def by_zennit(model, images, composite, target=1, start=None):
    """Return zennit's attributions, summed over channels, starting from the logit or from `start`."""

    def at_target(logits):
        chosen = functional.one_hot(torch.full((len(logits),), target), logits.shape[1]).to(logits)
        return chosen * (logits.detach() if start is None else start)

    attributor = zennit.attribution.Gradient(model, composite)
    return attributor(images.clone().requires_grad_(), at_target)[1].detach().sum(1, keepdim=True)


def merged(model):
    """Return the network with each BatchNorm in its convolution. zennit's canonizer leaves a factor sqrt(1 + eps)."""
    layers = list(model)
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.BatchNorm2d):
            layers[i - 1 : i + 1] = [fuse_conv_bn_eval(layers[i - 1], layer), nn.Identity()]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("name", ["conv", "strided", "top", "linear"])
def test_zennit_agrees_on_sequential_networks(name):
    model, images = case(name).model, images_for(name)
    for method, composite in [
        ("gradient", None),
        ("guided_backprop", composites.GuidedBackprop()),
        ("deconvolution", composites.DeconvNet()),
    ]:
        assert_near(explain(method, name, images, 1), by_zennit(model, images, composite, start=1), 1e-12)
    assert_near(explain("lrp", name, images, 1), by_zennit(merged(model), images, composites.EpsilonPlus()), 1e-9)


@pytest.mark.parametrize("name", ["conv", "strided"])
@pytest.mark.parametrize("composite", ["EpsilonGammaBox", "EpsilonPlusFlat", "EpsilonAlpha2Beta1"])
def test_lrp_follows_a_composite(name, composite):
    images, more = images_for(name), {"low": -1.0, "high": 1.5} if "Box" in composite else {}
    composite = getattr(composites, composite)(**more)
    found = explain("lrp", name, images, 1, composite=composite)
    assert_near(found, by_zennit(merged(case(name).model), images, composite), 1e-9)
    assert not torch.allclose(found, explain("lrp", name, images, 1), rtol=1e-3)


def test_zennit_agrees_on_excitation():
    """From the activations of the first ReLU on, with its normaliser next to 0."""
    model, images = case("conv").model, images_for("conv")
    composite = composites.ExcitationBackprop(stabilizer=1e-14, zero_params="bias")
    expected = by_zennit(model[3:], model[:3](images).detach(), composite, start=1)
    assert_near(explain("excitation_bp", "conv", images, 1), expected, 1e-9)


# xcnn


def test_xcnn_gives_the_generators_map_whatever_the_target():
    images, model = images_for("xcnn"), case("xcnn").model
    expected = model.heatmap(images).detach()
    assert torch.equal(attribution.explain("xcnn", model, images, 1), expected)
    found = attribution.explain("xcnn", model, images, torch.tensor([[0, 3, 1], [2, 0, 0]]), batch_size=1)
    assert torch.equal(found, expected.expand(2, 3, 8, 8))
    assert not found.requires_grad


# errors


def refused(*words):
    """Return a context that takes one ValueError of one line with all the words in it."""

    class Refused:
        def __enter__(self):
            self.inner = pytest.raises(ValueError, match=words[0])
            self.info = self.inner.__enter__()

        def __exit__(self, *error):
            caught = self.inner.__exit__(*error)
            text = str(self.info.value)
            assert all(word in text for word in words), text
            assert "\n" not in text
            return caught

    return Refused()


def small(*more):
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), *more, nn.Flatten(), nn.Linear(192, 4)).double()


IMAGES = torch.rand((2, 1, 8, 8), generator=seeded(5), dtype=torch.float64)


def test_methods_are_listed_and_an_unknown_one_is_refused():
    assert set(attribution.METHODS) == {*COMMON, *PATTERNS, "xcnn"}
    assert len(attribution.METHODS) == 11
    with refused("method", "'saliency'", *attribution.METHODS):
        attribution.explain("saliency", small(), IMAGES, 1)


@pytest.mark.parametrize("method", [*COMMON, "xcnn"])
@pytest.mark.parametrize(
    ("images", "words"),
    [
        (IMAGES[0], ["images", "(1, 8, 8)"]),
        (IMAGES[None], ["images", "(1, 2, 1, 8, 8)"]),
        (IMAGES.half(), ["images", "float16"]),
        (IMAGES.bfloat16(), ["images", "bfloat16"]),
        ((IMAGES * 255).byte(), ["images", "uint8"]),
        (IMAGES / 0, ["images", "finite"]),
        (IMAGES.where(IMAGES < 0.9, torch.nan), ["images", "NaN"]),
    ],
)
def test_bad_images_are_refused(plain, method, images, words):
    with refused(*words):
        plain("attribution").explain(method, small(), images, 1)


@pytest.mark.parametrize("method", COMMON)
@pytest.mark.parametrize(
    ("layers", "images", "words"),
    [
        ([], IMAGES.repeat(1, 3, 1, 1), ["images", "'0'", "3"]),
        ([], IMAGES[:, :, :5], ["images", "'3'", "120", "192"]),
        ([nn.MaxPool2d(9)], IMAGES, ["images", "'2'", "(2, 3, 8, 8)"]),
    ],
)
def test_images_that_the_network_cannot_take_are_refused(method, layers, images, words):
    model = small(*layers)
    before = state(model)
    with refused(*words):
        attribution.explain(method, model, images, 1)
    assert_unchanged(model, before)


@pytest.mark.parametrize("method", COMMON)
@pytest.mark.parametrize(
    ("target", "words"),
    [
        (4, ["target", "4", "3"]),
        (-1, ["target", "-1"]),
        (torch.tensor([1, 9]), ["target", "9"]),
        (torch.tensor([[1, 2], [3, 7]]), ["target", "7"]),
        (torch.tensor([1, 2, 3]), ["target", "(3,)"]),
        (torch.zeros((2, 0), dtype=torch.int64), ["target", "(2, 0)"]),
        (torch.zeros((2, 1, 1), dtype=torch.int64), ["target", "(2, 1, 1)"]),
        (torch.tensor([1.0, 2.0]), ["target", "float32"]),
        (torch.tensor([True, False]), ["target", "bool"]),
        (1.5, ["target", "float"]),
    ],
)
def test_bad_targets_are_refused(plain, method, target, words):
    with refused(*words):
        plain("attribution").explain(method, small(), IMAGES, target)


@pytest.mark.parametrize("method", COMMON)
@pytest.mark.parametrize(
    ("model", "words"),
    [
        (small().float(), ["model", "float32", "float64"]),
        (small().half(), ["model", "float16"]),
        (nn.Conv2d(1, 3, 3).double(), ["model", "logits", "(2, 3, 6, 6)"]),
        (nn.Sequential(*small(), nn.Flatten(0)), ["model", "logits", "(8,)"]),
    ],
)
def test_models_that_do_not_fit_are_refused(method, model, words):
    with refused(*words):
        attribution.explain(method, model, IMAGES, 1)


@pytest.mark.parametrize("method", [*EXCITATION, "grad_cam"])
def test_unknown_layers_are_refused(method):
    with refused("layer", "'nowhere'", "0, 1"):
        attribution.explain(method, small(), IMAGES, 1, layer="nowhere")


@pytest.mark.parametrize("method", [*EXCITATION, "grad_cam"])
@pytest.mark.parametrize("layer", ["2", "3"])
def test_layers_without_positions_are_refused(method, layer):
    with refused("layer", f"'{layer}'"):
        attribution.explain(method, small(), IMAGES, 1, layer=layer)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ((1.0, 0.0), ["bounds", "1", "0"]),
        ((0.5, 0.5), ["bounds", "0.5"]),
        ((0.0, 0.5), ["bounds", "0.5", f"{IMAGES.max().item():.3g}"]),
        ((torch.full((1, 1, 1), 0.4), 1.0), ["bounds", "0.4"]),
        ((torch.zeros(3, 1, 1), 1.0), ["bounds", "(3, 1, 1)"]),
    ],
)
def test_bad_bounds_are_refused(bounds, words):
    with refused(*words):
        attribution.explain("deep_taylor", small(), IMAGES, 1, bounds=bounds)


class Product(nn.Module):
    def forward(self, x):
        return x * torch.sin(x)


class Gated(nn.Module):
    def forward(self, x):
        return x * x


class Overwritten(nn.Module):
    def forward(self, x):
        x[:, :, 0] = 0
        return x


@pytest.mark.parametrize("method", STRICT)
@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.GroupNorm(1, 3), ["group_norm"]),
        (Product(), ["sin"]),
        (Gated(), ["mul"]),
        (Overwritten(), ["setitem"]),
        (nn.Softmax(1), ["softmax"]),
    ],
)
def test_a_call_without_rule_is_refused(method, layer, words):
    model = small(layer)
    before = state(model)
    with refused(*words, "'2'"):
        attribution.explain(method, model, IMAGES, 1)
    assert_unchanged(model, before)


def test_a_call_without_rule_is_no_matter_for_the_gradient():
    model, images = randomised(small(nn.GroupNorm(1, 3), Product())), IMAGES.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(images)[:, 1].sum(), images)
    assert_near(attribution.explain("gradient", model, IMAGES, 1), slope, 1e-12)


@pytest.mark.parametrize("method", PATTERNS)
def test_missing_patterns_and_those_of_another_model_are_refused(method):
    with refused("patterns", "None"):
        attribution.explain(method, small(), IMAGES, 1)
    wider = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4)).double()
    with refused("patterns", "'0'", "(3, 1, 3, 3)", "(4, 1, 3, 3)"):
        attribution.explain(method, small(), IMAGES, 1, patterns=attribution.fit_patterns(wider, IMAGES))
    shorter = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Flatten(), nn.Linear(192, 4)).double()
    with refused("patterns", "'3'"):
        attribution.explain(method, small(), IMAGES, 1, patterns=attribution.fit_patterns(shorter, IMAGES))


def test_bad_arguments_of_fit_patterns_are_refused():
    with refused("estimator", "'quadratic'", "linear", "two-component"):
        attribution.fit_patterns(small(), IMAGES, estimator="quadratic")
    with refused("images", "finite"):
        attribution.fit_patterns(small(), IMAGES / 0)
    with refused("model", "float32"):
        attribution.fit_patterns(small().float(), IMAGES)
    with refused("group_norm", "'2'"):
        attribution.fit_patterns(small(nn.GroupNorm(1, 3)), IMAGES)


@pytest.mark.parametrize("method", EXCITATION)
def test_excitation_refuses_negative_activations(method):
    with refused("'0'", "-1.9"):
        attribution.explain(method, small(), IMAGES.clamp(min=0.1) - 2, 1, layer="")
    with refused("'4'"):
        attribution.explain(method, small(nn.Conv2d(3, 3, 1)), IMAGES, 1, layer="1")


@pytest.mark.parametrize("method", EXCITATION)
def test_excitation_refuses_a_network_without_non_negative_layer(method):
    with refused("'1'", "Linear"):
        attribution.explain(method, nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double(), IMAGES, 1)
    with refused("'4'", "Linear"):
        attribution.explain(method, small(nn.Conv2d(3, 3, 1)), IMAGES, 1)


def test_grad_cam_refuses_a_network_without_positions():
    with refused("layer"):
        attribution.explain("grad_cam", nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double(), IMAGES, 1)


def test_xcnn_refuses_a_model_without_generator():
    with refused("model", "generator", "Sequential"):
        attribution.explain("xcnn", small(), IMAGES, 1)


# memory


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of what gc.get_objects() wakes up in torch
@pytest.mark.parametrize("method", [*COMMON, *PATTERNS])
def test_nothing_of_a_pass_outlives_it(method):
    """A circle through the graph is invisible to the garbage collector: maps of many images would fill the memory."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(16, 3)),
    ).eval()
    images = torch.rand(41, 1, 8, 8)
    more = {"patterns": attribution.fit_patterns(model, images)} if method in PATTERNS else {}

    def alive():
        gc.collect()
        return sum(type(one) is torch.Tensor and one.shape[:1] == (41,) for one in gc.get_objects())

    before = alive()
    found = attribution.explain(method, model, images, 1, **more)
    assert alive() == before + 1, "the maps alone"
    assert len(found) == 41
