import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional

from xai_lib import patterns
from xai_lib.patterns import fit_patterns


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def dense(weight, bias=None, *more):
    """Return Flatten and a dense layer, and more behind it."""
    layer = nn.Linear(len(weight[0]), len(weight))
    layer.weight.data, layer.bias.data = numbers(*weight), numbers(*(bias or [0] * len(weight)))
    return nn.Sequential(nn.Flatten(), layer, *more).double().eval()


def of(model, images, estimator="linear", **more):
    return fit_patterns(model, images, estimator, **more).of


# by hand


def signal_and_distractor(count=500):
    """Return the example of Kindermans et al.: x = a_s y + a_d d with a_s = (1, 0), a_d = (1, 1), and y.

    The filter that cancels the distractor is w = (1, -1). y and d are uncorrelated exactly, and not centred.
    """
    y, d = random(2, count)
    y, d = y - y.mean(), d - d.mean()
    d = d - (d @ y) / (y @ y) * y
    y, d = y + 0.3, 2 * d - 1
    return (y[:, None] * numbers(1, 0) + d[:, None] * numbers(1, 1)).view(-1, 1, 1, 2), y


def test_the_linear_estimator_finds_the_signal_and_not_the_filter():
    images, y = signal_and_distractor()
    model = dense([[1.0, -1]])
    torch.testing.assert_close(model(images)[:, 0], y)
    torch.testing.assert_close(of(model, images)["1"], numbers([1, 0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [0.01, -1, 5, 300])
def test_patterns_are_inverse_to_the_scale_of_the_filter(scale):
    """w^T a = 1."""
    images, _ = signal_and_distractor()
    found = of(dense([[scale, -scale]]), images)["1"]
    torch.testing.assert_close(found, numbers([1 / scale, 0]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bias", [-50.0, 0.0, 3.0])
def test_the_linear_estimator_ignores_the_bias(bias):
    images, _ = signal_and_distractor()
    torch.testing.assert_close(of(dense([[1.0, -1]], [bias], nn.ReLU()), images)["1"], numbers([1, 0]))


def test_the_two_component_estimator_by_hand():
    """w = (1, 0), x = (1, 1), (3, 2), (-1, 5), (-3, 4): y = x0, E[y] = 0. Active are the first two.

    E+[x y] = ((1 + 9) / 2, (1 + 6) / 2) = (5, 3.5), so a = (1, 0.7). The linear one: E[x y] = (20, 1 + 6 - 5 - 12) / 4
    = (5, -2.5) and E[y^2] = 5, so a = (1, -0.5): the inactive samples turn its second part about.
    """
    images = numbers([1, 1], [3, 2], [-1, 5], [-3, 4]).view(4, 1, 1, 2)
    model = dense([[1.0, 0]], [0.0], nn.ReLU())
    torch.testing.assert_close(of(model, images, "two-component")["1"], numbers([1, 0.7]))
    torch.testing.assert_close(of(model, images, "linear")["1"], numbers([1, -0.5]))


def test_with_a_mean_that_is_not_zero_by_hand():
    """w = (1, 0), x = (0, 2), (2, 4), (4, 0): y = 0, 2, 4 and E[y] = 2; with the bias -1 the last two are active.

    E+[x y] = ((4 + 16) / 2, (8 + 0) / 2) = (10, 4), E+[x] = (3, 2): (10, 4) - 2 (3, 2) = (4, 0), so a = (1, 0).
    Without the bias x = 0 is still inactive; with the bias 1 all are: E[xy] = (20, 8) / 3, E[x] = (2, 2), and
    (20/3 - 4, 8/3 - 4) = (8, -4) / 3, so a = (1, -0.5), that of the linear estimator.
    """
    images = numbers([0, 2], [2, 4], [4, 0]).view(3, 1, 1, 2)
    for bias, expected in [(-1.0, (1, 0)), (0.0, (1, 0)), (1.0, (1, -0.5))]:
        found = of(dense([[1.0, 0]], [bias], nn.ReLU()), images, "two-component")["1"]
        torch.testing.assert_close(found, numbers(expected))
    torch.testing.assert_close(of(dense([[1.0, 0]]), images)["1"], numbers([1, -0.5]))


def test_a_layer_without_relu_takes_the_linear_estimator():
    """The last layer, or one before another activation."""
    images = random(20, 1, 1, 2)
    for more in ([], [nn.Tanh()], [nn.LeakyReLU()], [nn.Dropout(), nn.Linear(1, 1)]):
        model = dense([[1.0, 0.5]], [0.2], *more).double()
        expected = of(model, images)["1"]
        assert torch.equal(of(model, images, "two-component")["1"], expected)
    rectified = of(dense([[1.0, 0.5]], [0.2], nn.ReLU()), images, "two-component")["1"]
    assert not torch.allclose(rectified, expected, rtol=1e-3)


def test_a_neuron_that_is_never_active_has_no_pattern():
    images = random(20, 1, 1, 2)
    found = of(dense([[1.0, 0.5], [1, 0.5]], [-100.0, 0], nn.ReLU()), images, "two-component")["1"]
    assert (found[0] == 0).all()
    assert (found[1] != 0).all()


# against loops


def slow_pattern(weight, bias, samples, two_component):
    """Return the pattern of one neuron, sample by sample."""
    means = {"x": torch.zeros_like(weight), "xy": torch.zeros_like(weight), "y": 0.0, "yy": 0.0, "n": 0}
    active = {"x": torch.zeros_like(weight), "xy": torch.zeros_like(weight), "n": 0}
    for x in samples:
        y = (weight @ x).item()
        means["y"], means["yy"], means["n"] = means["y"] + y, means["yy"] + y * y, means["n"] + 1
        for held in [means, active] if y + bias > 0 else [means]:
            held["x"], held["xy"] = held["x"] + x, held["xy"] + x * y
        active["n"] += y + bias > 0
    mean_y = means["y"] / means["n"]
    if two_component:
        direction = active["xy"] / active["n"] - active["x"] / active["n"] * mean_y
        return direction / (weight @ direction)
    return (means["xy"] / means["n"] - means["x"] / means["n"] * mean_y) / (means["yy"] / means["n"] - mean_y**2)


def slow_samples(layer, x, group):
    """Return the patches (S, D) that the neurons of a group see, position by position; `x` is padded already."""
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    width = x.shape[1] // layer.groups
    x = x[:, group * width : (group + 1) * width]
    rows = range(0, x.shape[2] - dh * (kh - 1), sh)
    columns = range(0, x.shape[3] - dw * (kw - 1), sw)
    return [
        image[:, i : i + dh * (kh - 1) + 1 : dh, j : j + dw * (kw - 1) + 1 : dw].flatten()
        for image in x
        for i in rows
        for j in columns
    ]


CONVOLUTIONS = {  # name: (settings, zeros at the left, right, top, bottom)
    "plain": ({"kernel_size": 2}, (0, 0, 0, 0)),
    "padded": ({"kernel_size": 3, "padding": 1}, (1, 1, 1, 1)),
    "strided": ({"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 1)}, (1, 1, 0, 0)),
    "dilated": ({"kernel_size": 2, "dilation": (1, 3), "padding": (1, 2)}, (2, 2, 1, 1)),
    "grouped": ({"kernel_size": 2, "groups": 2}, (0, 0, 0, 0)),
    "depthwise": ({"kernel_size": 3, "groups": 4, "padding": 1}, (1, 1, 1, 1)),
    "same": ({"kernel_size": 3, "padding": "same"}, (1, 1, 1, 1)),
    "same, dilated": ({"kernel_size": (3, 1), "padding": "same", "dilation": 2}, (0, 0, 2, 2)),
    "same, dilated, even": ({"kernel_size": 2, "padding": "same", "dilation": 2}, (1, 1, 1, 1)),
    "same, one side more": ({"kernel_size": (4, 3), "padding": "same"}, (1, 1, 1, 2)),
    "valid": ({"kernel_size": 3, "padding": "valid"}, (0, 0, 0, 0)),
    "1x1, no bias": ({"kernel_size": 1, "bias": False}, (0, 0, 0, 0)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("estimator", patterns.ESTIMATORS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_patterns_of_convolutions_are_a_loop_over_positions(name, estimator):
    settings, sides = CONVOLUTIONS[name]
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 4, **settings).double()
    images = random(2, 4, 5, 4) + 0.3
    found = of(nn.Sequential(layer, nn.ReLU()), images, estimator)["0"]
    assert found.shape == layer.weight.shape
    padded, width = functional.pad(images, sides), 4 // layer.groups
    for k in range(4):
        weight, bias = layer.weight[k].detach().flatten(), 0 if layer.bias is None else layer.bias[k].item()
        expected = slow_pattern(weight, bias, slow_samples(layer, padded, k // width), estimator != "linear")
        torch.testing.assert_close(found[k].flatten(), expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(weight @ found[k].flatten(), numbers(1)[0])


@pytest.mark.parametrize("estimator", patterns.ESTIMATORS)
def test_patterns_of_dense_layers_are_a_loop_over_images(estimator):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    images = random(30, 1, 2, 3)
    found = of(model, images, estimator)
    assert found.keys() == {"1", "3"}
    hidden = model[:3](images).detach()
    for name, samples in (("1", images.flatten(1)), ("3", hidden)):
        layer = model[int(name)]
        for k, weight in enumerate(layer.weight.detach()):
            two_component = estimator != "linear" and name == "1"
            expected = slow_pattern(weight, layer.bias[k].item(), samples, two_component)
            torch.testing.assert_close(found[name][k], expected, rtol=1e-9, atol=1e-12)


def test_a_dense_layer_at_each_position_takes_each_as_a_sample():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 2), nn.ReLU()).double()
    images = random(3, 2, 5, 4)
    found = of(model, images, "two-component")["0"]
    for k, weight in enumerate(model[0].weight.detach()):
        expected = slow_pattern(weight, model[0].bias[k].item(), images.reshape(-1, 4), True)
        torch.testing.assert_close(found[k], expected, rtol=1e-9, atol=1e-12)


# BatchNorm, layers used again


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(4, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)]
    made = nn.Sequential(*layers).double()
    for seed, one in enumerate(layers):
        if isinstance(one, nn.BatchNorm2d):
            one.weight.data = (random(4, seed=seed).abs() + 0.1) * numbers(1, -1, 1, -1)
            one.bias.data = random(4, seed=seed + 20)
            one.running_mean, one.running_var = random(4, seed=seed + 40), random(4, seed=seed + 60) ** 2 + 0.5
    return made


NETWORK, IMAGES = network(), random(13, 2, 8, 8, seed=3)


@pytest.mark.parametrize("estimator", patterns.ESTIMATORS)
def test_a_batch_norm_is_merged_first(estimator):
    """Whose factor may be negative, and whose bias decides which samples are active."""
    first = NETWORK[1]
    scale = (first.weight / (first.running_var + first.eps).sqrt()).detach()
    assert scale.min() < 0 < scale.max()
    merged = nn.Conv2d(2, 4, 3, padding=1).double()
    merged.weight.data = NETWORK[0].weight.detach() * scale.view(4, 1, 1, 1)
    merged.bias.data = ((NETWORK[0].bias - first.running_mean) * scale + first.bias).detach()
    expected = of(nn.Sequential(merged, nn.ReLU()), IMAGES, estimator)["0"]
    torch.testing.assert_close(of(NETWORK, IMAGES, estimator)["0"], expected, rtol=1e-9, atol=1e-12)


def test_a_layer_that_is_used_again_has_two_patterns():
    """Its inputs are others."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(self.layer(x.flatten(1)).relu())

    torch.manual_seed(0)
    model, images = Twice().double(), random(20, 1, 1, 3)
    found = of(model, images, "two-component")
    assert found.keys() == {"layer", "layer#2"}
    single = nn.Sequential(model.layer).double()
    again = model.layer(images.flatten(1)).relu().detach().view(-1, 1, 1, 3)
    torch.testing.assert_close(found["layer#2"], of(single, again)["0"])
    torch.testing.assert_close(found["layer"], of(nn.Sequential(model.layer, nn.ReLU()), images, "two-component")["0"])


class WithAndWithout(nn.Module):
    """A convolution whose output is read before and behind its BatchNorm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = NETWORK[0], NETWORK[1]

    def forward(self, x):
        x = self.conv(x)
        return (self.norm(x).relu() + x).mean((2, 3))


def test_a_layer_read_with_and_without_its_batch_norm_has_a_pattern_for_each():
    found = of(WithAndWithout().double(), IMAGES)
    expected = [of(NETWORK[:2], IMAGES)["0"], of(NETWORK[:1], IMAGES)["0"]]
    assert len(found) == 2
    for one, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(one, other)


# one pass, constant memory


@pytest.mark.parametrize("estimator", patterns.ESTIMATORS)
@pytest.mark.parametrize("batch_size", [1, 7, 13])
def test_batches_give_what_all_images_give_at_once(estimator, batch_size):
    expected = of(NETWORK, IMAGES, estimator, batch_size=1000)
    found = of(NETWORK, IMAGES, estimator, batch_size=batch_size)
    assert list(found) == list(expected) == ["0", "4", "8"]
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-10)


def test_the_order_of_images_does_not_matter():
    expected, found = of(NETWORK, IMAGES, "two-component"), of(NETWORK, IMAGES.flip(0), "two-component", batch_size=4)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-10)


def test_each_image_passes_the_network_once():
    model, sizes = network(), []
    model[4].register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    of(model, IMAGES, "two-component", batch_size=5)
    assert sizes == [5, 5, 3]


def held(sums):
    """Return the number of values that sums hold, the layer's own apart."""
    return sum(value.numel() for value in vars(sums).values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("two_component", [False, True])
def test_memory_does_not_grow_with_the_images(two_component):
    sums, sizes = patterns._Sums(nn.Conv2d(2, 4, 3).double().requires_grad_(False), two_component), []
    for k in range(4):
        sums.add(random(2 + k, 2, 5 + k, 6, seed=k))
        sizes.append(held(sums))
    assert len(set(sizes)) == 1
    assert sums.count == 2 * 3 * 4 + 3 * 4 * 4 + 4 * 5 * 4 + 5 * 6 * 4
    assert all(not value.requires_grad for value in vars(sums).values() if isinstance(value, torch.Tensor))


def test_large_images_are_taken_a_few_at_a_time(monkeypatch):
    """So that the patches of a convolution fit in memory, and with the same result."""
    taken, plain = [], patterns._samples
    monkeypatch.setattr(patterns, "_samples", lambda module, x: (taken.append(len(x)), plain(module, x))[1])
    layer = nn.Conv2d(1, 2, 32, bias=False).double()
    images = random(5, 1, 40, 40)
    whole = patterns._Sums(layer, True)
    whole.add(images)
    assert taken == [2, 2, 1]
    parts = patterns._Sums(layer, True)
    for one in images.split(1):
        parts.add(one)
    torch.testing.assert_close(whole.xy_active, parts.xy_active, rtol=1e-9, atol=1e-9)


def test_sums_are_of_double_precision():
    """Float32 images far from zero: in float32, E[y^2] - E[y]^2 would be lost."""
    images, _ = signal_and_distractor()
    model = dense([[1.0, -1]]).float()
    found = of(model, (images + 1000).float())["1"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([[1.0, 0]]), rtol=1e-3, atol=1e-3)


# the model and the arguments


def test_the_model_and_the_images_are_left_as_they_were():
    model, images = network().train(), IMAGES.clone().requires_grad_()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [one.training for one in model.modules()], [one.requires_grad for one in model.parameters()]
    random_state = torch.get_rng_state()
    found = fit_patterns(model, images, "two-component")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert flags == ([one.training for one in model.modules()], [one.requires_grad for one in model.parameters()])
    assert not [hook for one in model.modules() for hook in (*one._forward_hooks, *one._forward_pre_hooks)]
    assert torch.equal(images, IMAGES)
    assert images.grad is None
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(not one.requires_grad for one in found.of.values())


def test_patterns_say_what_they_are():
    found = fit_patterns(NETWORK, IMAGES, "two-component")
    assert found.estimator == "two-component"
    assert fit_patterns(NETWORK, IMAGES).estimator == "linear"
    assert {name: one.shape for name, one in found.of.items()} == {
        name: NETWORK[int(name)].weight.shape for name in ("0", "4", "8")
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.estimator = "linear"


def test_a_network_without_weights_has_no_patterns():
    assert of(nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), IMAGES) == {}


@pytest.mark.parametrize(
    ("images", "more", "text"),
    [
        (IMAGES, {"estimator": "linear "}, "estimator must be one of linear, two-component; got 'linear '"),
        (IMAGES[:1], {}, "images must be two or more; got 1"),
        (IMAGES[:0], {}, r"images must be \(N, C, H, W\), at least one; got shape \(0, 2, 8, 8\)"),
        (IMAGES[0], {}, r"images must be \(N, C, H, W\), at least one; got shape \(2, 8, 8\)"),
        (IMAGES.half(), {}, "images must be float32 or float64; got torch.float16"),
        (IMAGES / 0, {}, "images must be finite; image 0 holds NaN or infinity .*"),
        (IMAGES.float(), {}, "model must be torch.float32 .*; it is torch.float64 on cpu"),
        (IMAGES[:, :1], {}, r"images: layer '0' cannot take an input of shape \(13, 1, 8, 8\): .*"),
        (IMAGES, {"batch_size": 0}, "batch_size must be at least 1; got 0"),
        (IMAGES, {"batch_size": -3}, "batch_size must be at least 1; got -3"),
    ],
)
def test_bad_arguments_are_refused(plain, images, more, text):
    with pytest.raises(ValueError, match=f"^{text}$"):
        plain("patterns").fit_patterns(NETWORK, images, **more)


def test_a_layer_that_no_rule_covers_is_refused():
    model = nn.Sequential(NETWORK[0], nn.GroupNorm(2, 4)).double()
    with pytest.raises(ValueError, match="^model: no rule covers group_norm in layer '1'$"):
        fit_patterns(model, IMAGES)
