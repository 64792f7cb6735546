import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from zennit.layer import Sum

from xai_lib import calls


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Seen(TorchFunctionMode):
    """Notes what `LAYERS` makes of each call that it knows."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in calls.LAYERS:
            self.found.append(calls.LAYERS[func](func, *args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def seen(call, x):
    """Return what `LAYERS` makes of the one call that it knows in ``call(x)``, and the result; `x` stays as it is."""
    with Seen() as mode:
        result = call(x.clone())  # what comes from a tensor that is tracked is tracked
    [found] = mode.found
    return found, result


IMAGES = random(2, 4, 7, 6)
WEIGHT, GROUPED, BIAS = random(6, 4, 3, 2, seed=1), random(6, 2, 3, 3, seed=2), random(6, seed=3)
MEAN, VAR, SCALE, SHIFT = random(4, seed=4), random(4, seed=5) ** 2, random(4, seed=6), random(4, seed=7)
COLUMN = random(4, 1, 1, seed=8)


def module(made):
    """Return a module in float64 and eval mode, BatchNorm with statistics of its own."""
    made.double().eval()
    for one in made.modules():
        if isinstance(one, nn.BatchNorm2d):
            one.running_mean, one.running_var = MEAN.clone(), VAR.clone()
    return made


# name: (call, layer that it is)
CONVOLUTIONS = {
    "module": module(nn.Conv2d(4, 6, 3)),
    "module, all settings": module(nn.Conv2d(4, 6, (3, 2), (2, 1), (2, 1), (1, 2), 2, bias=False)),
    "module, same": module(nn.Conv2d(4, 4, 3, padding="same", dilation=3, groups=4)),
    "module, valid": module(nn.Conv2d(4, 6, 3, padding="valid")),
    "weight alone": lambda x: functional.conv2d(x, WEIGHT),
    "by position": lambda x: torch.conv2d(x, GROUPED, BIAS, 2, 1, 2, 2),
    "by position, pairs": lambda x: functional.conv2d(x, WEIGHT, BIAS, (2, 1), (0, 1), (1, 3)),
    "by keyword": lambda x: functional.conv2d(x, weight=WEIGHT, padding=(1, 0), stride=2, bias=BIAS),
    "no bias, same": lambda x: functional.conv2d(x, GROUPED, None, 1, "same", 2, 2),
    "input by keyword": lambda x: functional.conv2d(weight=GROUPED, groups=2, dilation=2, input=x),
}
DENSE = {
    "module": module(nn.Linear(6, 3)),
    "module without bias": module(nn.Linear(6, 3, bias=False)),
    "by position": lambda x: functional.linear(x, WEIGHT.flatten(1)[:, :6], BIAS),
    "by keyword": lambda x: functional.linear(bias=BIAS, weight=WEIGHT.flatten(1)[:, :6], input=x),
}
MEANS = {
    "avg module": nn.AvgPool2d(2),
    "avg module, all settings": nn.AvgPool2d((3, 2), (2, 1), (1, 0), True, False, 5),
    "avg by position": lambda x: functional.avg_pool2d(x, 3, 2, 1, True, False),
    "avg by keyword": lambda x: functional.avg_pool2d(x, kernel_size=(2, 3), ceil_mode=True, padding=(1, 0)),
    "avg without the edge": lambda x: functional.avg_pool2d(x, 3, padding=1, count_include_pad=False),
    "avg, divisor": lambda x: functional.avg_pool2d(x, 2, divisor_override=3),
    "adaptive module": nn.AdaptiveAvgPool2d((3, None)),
    "adaptive": lambda x: functional.adaptive_avg_pool2d(x, 1),
    "adaptive by keyword": lambda x: functional.adaptive_avg_pool2d(x, output_size=(2, 5)),
    "mean": lambda x: x.mean((2, 3)),
    "mean kept": lambda x: x.mean([-1, -2], True),
    "mean by keyword": lambda x: torch.mean(x, dim=(3, 2), keepdim=True),
}
UPSAMPLINGS = {
    "module": nn.Upsample(scale_factor=2),
    "module, corners": nn.Upsample((9, 11), mode="bilinear", align_corners=True),
    "module by its own name": nn.UpsamplingBilinear2d(scale_factor=2),
    "size": lambda x: functional.interpolate(x, (5, 9)),
    "scale": lambda x: functional.interpolate(x, scale_factor=(1.5, 2), mode="bilinear", align_corners=False),
    "scale, corners": lambda x: functional.interpolate(x, scale_factor=1.7, mode="bilinear", align_corners=True),
    "by position": lambda x: functional.interpolate(x, None, 2, "bilinear", True),
    "area": lambda x: functional.interpolate(x, size=3, mode="area"),
    "antialias": lambda x: functional.interpolate(x, size=(4, 3), mode="bilinear", antialias=True),
    "recomputed": lambda x: functional.interpolate(
        x, scale_factor=1.3, mode="bilinear", recompute_scale_factor=True, align_corners=False
    ),
}
MAXIMA = {
    "module": nn.MaxPool2d(2),
    "module, all settings": nn.MaxPool2d(3, 2, 1, 1, ceil_mode=True),
    "by position": lambda x: functional.max_pool2d(x, 3, 2, 1, 1, True),
    "by keyword": lambda x: functional.max_pool2d(x, kernel_size=(2, 3), dilation=(2, 1), stride=1),
    "torch's": lambda x: torch.max_pool2d(x, 2, ceil_mode=True),
    "adaptive module": nn.AdaptiveMaxPool2d((2, 3)),
    "adaptive": lambda x: functional.adaptive_max_pool2d(x, 1),
}
RELUS = {
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "function": functional.relu,
    "function in place": lambda x: functional.relu(x, True),
    "torch's": torch.relu,
    "method": lambda x: x.relu(),
}
RECTIFIERS = {
    "sigmoid": torch.sigmoid,
    "sigmoid method": lambda x: x.sigmoid(),
    "sigmoid module": nn.Sigmoid(),
    "softplus": lambda x: functional.softplus(x, 2.0, threshold=1),
    "relu6": functional.relu6,
    "relu6 module": nn.ReLU6(inplace=True),
    "hardtanh from 0": lambda x: functional.hardtanh(x, 0.0, 0.5),
    "hardtanh module from 0.1": nn.Hardtanh(0.1, 0.5, inplace=True),
}
ELEMENTWISE = {
    "tanh": torch.tanh,
    "tanh method": lambda x: x.tanh(),
    "tanh module": nn.Tanh(),
    "leaky": lambda x: functional.leaky_relu(x, 0.2),
    "leaky in place": lambda x: functional.leaky_relu(x, negative_slope=0.3, inplace=True),
    "leaky by position": lambda x: functional.leaky_relu(x, 0.3, True),
    "leaky module": nn.LeakyReLU(0.4, inplace=True),
    "elu": lambda x: functional.elu(x, alpha=0.5),
    "elu module": nn.ELU(0.6, inplace=True),
    "selu": functional.selu,
    "celu": lambda x: torch.celu(x, 0.7),
    "gelu": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu module": nn.GELU(),
    "silu module": nn.SiLU(inplace=True),
    "mish": functional.mish,
    "hardswish": nn.Hardswish(inplace=True),
    "softsign": functional.softsign,
    "hardtanh": functional.hardtanh,
    "hardtanh from -0.5": lambda x: functional.hardtanh(x, min_val=-0.5, max_val=0.5),
    "batch_norm module": module(nn.BatchNorm2d(4)),
    "batch_norm without scale": module(nn.BatchNorm2d(4, affine=False, eps=0.1)),
    "batch_norm by position": lambda x: functional.batch_norm(x, MEAN, VAR, SCALE, SHIFT, False, 0.5, 0.2),
    "batch_norm by keyword": lambda x: functional.batch_norm(x, running_var=VAR, running_mean=MEAN, weight=SCALE),
    "sum with a number": lambda x: x + 2,
    "a number and it": lambda x: 2 + x,
    "sum with a tensor": lambda x: torch.add(x, COLUMN),
    "a tensor and it": lambda x: COLUMN + x,
    "sum with alpha": lambda x: torch.add(x, COLUMN, alpha=3),
    "difference": lambda x: x - COLUMN,
    "from a number": lambda x: 1 - x,
    "from a tensor": lambda x: COLUMN - x,
    "rsub": lambda x: torch.rsub(x, COLUMN, alpha=2),
    "difference with alpha": lambda x: torch.sub(x, 2, alpha=3),
    "product": lambda x: x * 3,
    "product from the left": lambda x: -3 * x,
    "product with a tensor": lambda x: torch.mul(input=x, other=COLUMN),
    "product of a tensor": lambda x: COLUMN.mul(x),
    "quotient": lambda x: x / 4,
    "quotient by a tensor": lambda x: torch.div(x, COLUMN),
    "negative": lambda x: -x,
    "negative by name": torch.neg,
}
KINDS = {  # kind of layer: calls
    nn.Conv2d: CONVOLUTIONS,
    nn.Linear: DENSE,
    (nn.AvgPool2d, nn.AdaptiveAvgPool2d): MEANS,
    calls.Upsample: UPSAMPLINGS,
    calls.MaxPool: MAXIMA,
    nn.ReLU: RELUS,
    calls.Rectifier: RECTIFIERS,
    calls.Elementwise: ELEMENTWISE,
}
CASES = [
    pytest.param(kind, call, id=f"{title(kind)}: {name}")
    for title in [lambda kind: kind.__name__ if isinstance(kind, type) else "mean"]
    for kind, spellings in KINDS.items()
    for name, call in spellings.items()
]


# what a call becomes


@pytest.mark.parametrize(("kind", "call"), CASES)
def test_a_call_becomes_a_layer_that_does_the_same(kind, call):
    """The same values, for the input of the call and for another one."""
    tracked = IMAGES.clone().requires_grad_()
    (layer, x), result = seen(call, tracked)
    assert isinstance(layer, kind)
    assert (type(layer) is calls.Elementwise) == (kind is calls.Elementwise), "no kind of its own"
    assert not list(layer.buffers())
    assert all(not one.requires_grad for one in layer.parameters())
    if not getattr(call, "inplace", False) and x.grad_fn.name() == "CloneBackward0":
        assert torch.equal(x, tracked), "the input of the layer is that of the call"
    torch.testing.assert_close(layer(IMAGES), result, rtol=1e-12, atol=1e-14)
    other = random(*IMAGES.shape, seed=9)
    torch.testing.assert_close(layer(other), call(other.clone()), rtol=1e-12, atol=1e-14)


IN_PLACE = [*(kind for kind in RELUS if "place" in kind), "relu6 module", "hardtanh module from 0.1"]
IN_PLACE += ["leaky in place", "leaky by position", "leaky module", "elu module", "silu module", "hardswish"]


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_layer_never_works_in_place(name):
    """Others may read its input later."""
    call = {**RELUS, **RECTIFIERS, **ELEMENTWISE}[name]
    (layer, _), _ = seen(call, IMAGES.clone().requires_grad_())
    x = IMAGES.clone()
    assert not torch.equal(layer(x), x)
    assert torch.equal(x, IMAGES)


def test_a_convolution_is_known_by_its_settings():
    """Rules read them."""
    (layer, _), _ = seen(CONVOLUTIONS["by position"], IMAGES.clone().requires_grad_())
    sizes = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.groups)
    assert sizes == (4, 6, (3, 3), 2)
    assert (layer.stride, layer.padding, layer.dilation, layer.training) == ((2, 2), (1, 1), (2, 2), False)
    (layer, _), _ = seen(DENSE["by position"], IMAGES.clone().requires_grad_())
    assert (layer.in_features, layer.out_features) == (6, 6)


def test_with_weights_keeps_the_settings():
    old = module(nn.Conv2d(4, 6, (3, 2), (2, 1), (2, 1), (1, 2), 2))
    new = calls.with_weights(old, GROUPED[:, :, :, :2], None)
    assert torch.equal(new(IMAGES), functional.conv2d(IMAGES, GROUPED[:, :, :, :2], None, (2, 1), (2, 1), (1, 2), 2))
    assert new.bias is None
    assert not new.weight.requires_grad
    assert torch.equal(calls.with_weights(old, old.weight, old.bias)(IMAGES), old(IMAGES))


def test_weights_are_not_copied():
    """Memory, and no random numbers are drawn."""
    state = torch.get_rng_state()
    (layer, _), _ = seen(CONVOLUTIONS["by keyword"], IMAGES.clone().requires_grad_())
    assert layer.weight.data_ptr() == WEIGHT.data_ptr()
    assert layer.bias.data_ptr() == BIAS.data_ptr()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("call", [torch.add, lambda x, y: x + y, lambda x, y: x.add(y)])
@pytest.mark.parametrize("shape", [(2, 4, 7, 6), (4, 1, 1), (1, 4, 7, 1)])
def test_a_sum_of_two_computed_values_is_a_sum_over_a_new_dimension(call, shape):
    one, other = IMAGES.clone().requires_grad_(), random(*shape, seed=1).requires_grad_()
    with Seen() as mode:
        result = call(one, other)
    [(layer, x)] = mode.found
    assert isinstance(layer, Sum)
    assert x.shape == (2, 4, 7, 6, 2)
    assert torch.equal(layer(x), result)
    assert torch.equal(x[..., 1], other.expand(2, 4, 7, 6))


@pytest.mark.parametrize(
    "call",
    [
        nn.Dropout(0.9),
        nn.Dropout2d(0.9),
        nn.AlphaDropout(0.9),
        nn.FeatureAlphaDropout(0.9),
        lambda x: functional.dropout(x, 0.9, False),
        lambda x: functional.dropout(x, training=False),
        lambda x: functional.alpha_dropout(x),
        lambda x: torch.dropout(x, 0.9, False),
    ],
)
def test_dropout_that_is_off_is_its_input(call):
    if isinstance(call, nn.Module):
        call.eval()
    found, result = seen(call, IMAGES.clone().requires_grad_())
    assert isinstance(found, torch.Tensor)
    assert torch.equal(found, IMAGES)
    assert torch.equal(found, result)


# what is refused


def refusals():
    x = IMAGES.clone().requires_grad_()
    off = nn.BatchNorm2d(4, track_running_stats=False).double().eval()
    return {
        "product of two": (lambda: x * torch.tanh(x), "of two computed values"),
        "square": (lambda: torch.mul(x, x), "of two computed values"),
        "difference of two": (lambda: x - 2 * x, "of two computed values"),
        "quotient of two": (lambda: x / x, "of two computed values"),
        "divided by it": (lambda: torch.div(COLUMN, x), "by a computed value"),
        "larger constant": (lambda: x[:, :1] * random(4, 1, 1), "with a constant of a larger shape"),
        "larger constant added": (lambda: x[:, :1] + random(4, 1, 1), "with a constant of a larger shape"),
        "alpha": (lambda: torch.add(x, x, alpha=2), "with alpha"),
        "mean of all": (lambda: x.mean(), "over other dimensions than 2 and 3"),
        "mean of channels": (lambda: x.mean(1), "over other dimensions than 2 and 3"),
        "mean of three": (lambda: x.mean((1, 2, 3)), "over other dimensions than 2 and 3"),
        "mean of rows": (lambda: x.flatten(2).mean(2), "over other dimensions than 2 and 3"),
        "bicubic": (lambda: functional.interpolate(x, (9, 9), mode="bicubic"), "by bicubic curves"),
        "bicubic by position": (lambda: functional.interpolate(x, (9, 9), None, "bicubic"), "by bicubic curves"),
        "own statistics": (lambda: off(x), "with batch statistics"),
        "batch statistics": (lambda: functional.batch_norm(x, MEAN.clone(), VAR, training=True), "batch statistics"),
        "no statistics": (lambda: functional.batch_norm(x, None, None, training=True), "with batch statistics"),
        "dropout": (lambda: functional.dropout(x), "that is active in eval mode"),
        "dropout2d": (lambda: functional.dropout2d(x, 0.2, True), "that is active in eval mode"),
    }


@pytest.mark.parametrize("name", refusals())
def test_what_has_no_rule_says_why(name):
    call, text = refusals()[name]
    with Seen() as mode:
        call()
    assert text in mode.found[-1]


@pytest.mark.parametrize("name", ["module", "by position", "same"])
def test_a_convolution_can_be_printed(name):
    """As whoever writes a rule does."""
    call = CONVOLUTIONS["no bias, same" if name == "same" else name]
    (layer, _), _ = seen(call, IMAGES.clone().requires_grad_())
    assert "Conv2d(4, 6, kernel_size=(3, 3)" in repr(layer)


def test_a_circular_convolution_is_a_pad_and_a_convolution():
    call = module(nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"))
    (layer, x), result = seen(call, IMAGES.clone().requires_grad_())
    assert x.shape == (2, 4, 9, 8)
    torch.testing.assert_close(layer(x), result, rtol=1e-12, atol=0)


def test_what_does_not_depend_on_the_images_is_a_constant():
    x = IMAGES.clone().requires_grad_()
    with Seen() as mode:
        result = x * (COLUMN * COLUMN)
    layer, source = mode.found[-1]
    assert source is x
    assert torch.equal(layer(IMAGES), result)


PASSIVE = {
    "flatten": lambda x: torch.flatten(x, 1),
    "nn.Flatten": nn.Flatten(),
    "view": lambda x: x.view(2, -1),
    "reshape": lambda x: torch.reshape(x, (2, 28, 6)),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, 2),
    "index": lambda x: x[:, 1:3],
    "chunk": lambda x: x.chunk(2, 1)[1],
    "split": lambda x: torch.split(x, [1, 3], 1)[1],
    "unbind": lambda x: x.unbind(1)[2],
    "cat": lambda x: torch.cat([x, x], 1),
    "stack": lambda x: torch.stack([x, x]),
    "pad": lambda x: functional.pad(x, (1, 1)),
    "nn.ZeroPad2d": nn.ZeroPad2d(1),
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "pixel shuffle": nn.PixelShuffle(2),
    "channel shuffle": nn.ChannelShuffle(2),
    "identity": nn.Identity(),
    "to": lambda x: x.to(torch.float64),
    "contiguous": lambda x: x.contiguous(),
    "flip": lambda x: x.flip(3),
}


@pytest.mark.parametrize("name", PASSIVE)
def test_what_moves_values_alone_is_passive(name):
    """Each value of the result is one of the input's, or zero; no call in it is a layer."""
    noted = []

    class Note(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            noted.append(func)
            return func(*args, **(kwargs or {}))

    with Note():
        result = PASSIVE[name](IMAGES)
    assert all(func in calls.PASSIVE and func not in calls.LAYERS for func in noted)
    assert bool(noted) == (name != "identity")
    assert set(result.flatten().tolist()) <= {0.0, *IMAGES.flatten().tolist()}


def test_no_function_is_of_two_kinds():
    assert not calls.PASSIVE & calls.LAYERS.keys()
    assert not calls.OUT_OF_PLACE.keys() & (calls.PASSIVE | calls.LAYERS.keys())


@pytest.mark.parametrize(
    ("name", "more"),
    [("relu_", ()), ("add_", (2,)), ("mul_", (2,)), ("div_", (2,)), ("sub_", (2,)), ("neg_", ()), ("tanh_", ())]
    + [("sigmoid_", ()), ("__iadd__", (2,)), ("__imul__", (3,)), ("__isub__", (4,)), ("__idiv__", (5,))],
)
def test_calls_in_place_have_a_form_that_is_not(name, more):
    x = IMAGES.clone()
    function = getattr(torch.Tensor, name)
    result = calls.OUT_OF_PLACE[function](x, *more)
    assert torch.equal(x, IMAGES)
    function(x, *more)
    assert torch.equal(x, result)
    assert calls.OUT_OF_PLACE[function] in calls.LAYERS


# torch's own spellings, whose arguments have another order or another name


def test_batch_norm_by_torchs_own_name():
    """torch.batch_norm takes weight and bias first."""
    (layer, x), result = seen(
        lambda x: torch.batch_norm(x, SCALE, SHIFT, MEAN, VAR, False, 0.1, 0.2, False), IMAGES.clone().requires_grad_()
    )
    assert torch.equal(layer(x), result)


def test_dropout_by_torchs_own_name():
    """torch.dropout calls it `train`."""
    found, _ = seen(lambda x: torch.dropout(x, p=0.9, train=False), IMAGES.clone().requires_grad_())
    assert torch.equal(found, IMAGES)


def test_a_mean_over_an_axis():
    """The name that numpy has for it, which torch takes as well."""
    (layer, x), result = seen(lambda x: x.mean(axis=(2, 3)), IMAGES.clone().requires_grad_())
    assert torch.equal(layer(x), result)


# what is known of a tensor


def marked(names=(), nonnegative=False):
    tensor = random(2, 3)
    tensor.passed, tensor.nonnegative = frozenset(names), nonnegative
    return tensor


def test_nothing_is_known_of_a_plain_tensor():
    x = random(2, 3).abs()
    assert not calls.is_nonnegative(x), "by construction, not by value"
    assert calls.passed(x) == frozenset()
    assert not calls.is_tracked(x)
    assert calls.is_tracked(x.requires_grad_())
    assert not calls.is_tracked(2.0)
    assert not calls.is_tracked(None)
    waiting = random(2, 3)
    waiting.waiting = ()
    assert calls.is_tracked(waiting)


def test_a_result_passed_what_all_of_its_sources_passed():
    one, other = marked("abc"), marked("bcd")
    assert calls.passed(calls.inherited(random(1), [one])) == set("abc")
    assert calls.passed(calls.inherited(random(1), [one, other])) == set("bc")
    assert calls.passed(calls.inherited(random(1), [one, other], "e")) == set("bce")
    assert calls.passed(calls.inherited(random(1), [one, random(1)])) == frozenset()
    assert calls.passed(calls.inherited(random(1), [marked()], "")) == {""}, "a function in the root has a name too"


def test_a_result_is_nonnegative_if_all_of_its_sources_are():
    yes, no = marked(nonnegative=True), marked()
    for sources, sign, expected in [
        ([yes], None, True),
        ([no], None, False),
        ([yes, yes], None, True),
        ([yes, no], None, False),
        ([no], True, True),
        ([yes], False, False),
    ]:
        assert calls.is_nonnegative(calls.inherited(random(1), iter(sources), "a", sign)) is expected


def test_all_parts_of_a_result_inherit():
    parts = calls.inherited((random(1), [random(1), 3], "text"), [marked("ab", True)])
    for one in (parts[0], parts[1][0]):
        assert calls.passed(one) == {"a", "b"}
        assert calls.is_nonnegative(one)


def test_which_layers_are_linear_means_or_rectifiers():
    assert set(calls.LINEAR) == {nn.Conv2d, nn.Linear}
    assert isinstance(calls.SpatialMean(True), calls.MEANS)
    assert isinstance(Sum(-1), calls.MEANS)
    assert isinstance(calls.Rectifier(torch.sigmoid), calls.RECTIFIERS)
    for kind in (calls.Elementwise, calls.MaxPool):
        assert not isinstance(kind(torch.tanh), (*calls.MEANS, *calls.RECTIFIERS, *calls.LINEAR))
