import sys
from typing import NamedTuple

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional
from torch.utils import checkpoint
from zennit.layer import Sum

import xai_lib
from xai_lib import attribution, calls, layerwise
from xai_lib.layerwise import Layerwise, ruled


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Written(nn.Module):
    """A network of named parts whose forward pass is a function: ``forward(parts, x)``."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.written = forward
        for name, part in parts.items():
            self.add_module(name, part)
        self.double().eval()

    def forward(self, x):
        return self.written(self, x)


def norm(channels=4, seed=0, **more):
    """Return a BatchNorm far from the identity."""
    made = nn.BatchNorm2d(channels, **more)
    if made.affine:
        made.weight.data, made.bias.data = random(channels, seed=seed) + 2, random(channels, seed=seed + 1)
    if made.track_running_stats:
        made.running_mean, made.running_var = random(channels, seed=seed + 2), random(channels, seed=seed + 3) ** 2 + 1
    return made


def conv(channels=4, seed=0, **more):
    torch.manual_seed(seed)
    return nn.Conv2d(channels, 4, 3, padding=1, **more)


class Given(NamedTuple):
    """What a rule was given."""

    name: str
    module: nn.Module
    x: torch.Tensor
    y: torch.Tensor


def by_gradient(noted):
    """Return a rule that notes what it is given, and goes back by the gradient of the layer's module."""

    def rule(layer, x, y):
        noted.append(Given(layer.name, layer.module, x.detach(), y.detach()))
        return ruled(x, y, lambda x, slope: torch.func.vjp(layer.module, x)[1](slope)[0])

    return rule


def follow(model, images, strict=True):
    """Return what a rule is given, the output, and the gradient of its sum by the layers' modules."""
    noted, images = [], images.detach().clone().requires_grad_()
    with Layerwise(model, by_gradient(noted) if strict else noting(noted), strict) as network:
        output = network.output(images)
    return noted, output.detach(), torch.autograd.grad(output.square().sum(), images)[0]


def noting(noted):
    return lambda layer, x, y: (noted.append(Given(layer.name, layer.module, x.detach(), y.detach())), y)[1]


def assert_followed(model, images=None, names=None):
    """Assert that strict or not the output and the gradient are the network's own, and each module is its layer."""
    images = random(2, 4, 6, 5) if images is None else images
    leaf = images.clone().requires_grad_()
    expected = model(leaf + 0)
    (slope,) = torch.autograd.grad(expected.square().sum(), leaf)
    for strict in (False, True):
        noted, output, found = follow(model, images, strict)
        assert torch.equal(output, expected)
        torch.testing.assert_close(found, slope, rtol=1e-9, atol=1e-11)
        for one in noted:
            torch.testing.assert_close(one.module(one.x), one.y, rtol=1e-9, atol=1e-11)
    if names is not None:
        assert [one.name for one in noted] == names
    return noted


def head(x):
    return x.mean((2, 3))


# what a rule is given


def test_each_layer_has_its_name_module_input_and_output():
    model = nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 3)).double().eval()
    noted = assert_followed(model, random(2, 4, 6, 5), ["0", "1", "2", "4"])
    assert [type(one.module) for one in noted] == [nn.Conv2d, nn.ReLU, calls.MaxPool, nn.Linear]
    assert torch.equal(noted[0].x, random(2, 4, 6, 5))
    assert torch.equal(noted[1].x, noted[0].y)
    assert torch.equal(noted[3].x, noted[2].y.flatten(1)), "what moves values alone is no layer"


def test_a_layer_that_is_used_again_has_a_number():
    one = conv()
    model = Written(lambda m, x: m.relu(m.conv(m.relu(m.conv(x)))) + m.conv(x), conv=one, relu=nn.ReLU())
    noted = assert_followed(model, names=["conv", "relu", "conv#2", "relu#2", "conv#3", ""])
    assert torch.equal(noted[0].module.weight, noted[2].module.weight)


def test_calls_in_the_root_have_the_empty_name():
    def forward(m, x):
        x = functional.relu(functional.conv2d(x, m.inner.weight))
        return head(m.inner(functional.avg_pool2d(x, 2)))

    model = Written(forward, inner=conv())
    assert_followed(model, random(2, 4, 8, 8), ["", "#2", "#3", "inner", "#4"])


def test_names_of_nested_modules_are_full():
    """And a call in a part has the name of the part, not of what it calls."""
    inner = Written(lambda m, x: functional.relu(m.conv(x)) * 2, conv=conv())
    outer = Written(lambda m, x: m.inner(x).tanh(), inner=inner)
    model = nn.Sequential(nn.ModuleDict({"unused": conv()})["unused"], nn.Sequential(outer))
    names = ["0", "1.0.inner.conv", "1.0.inner", "1.0.inner#2", "1.0"]
    assert_followed(model.double().eval(), names=names)


def test_a_module_with_two_names_has_the_first():
    shared = conv()
    model = Written(lambda m, x: m.other(m.one(x).relu()), one=shared, other=shared)
    assert_followed(model, names=["one", "", "one#2"])


def test_a_list_of_modules_in_a_loop():
    def forward(m, x):
        for layer in m.layers:
            x = layer(x).relu()
        return head(x)

    model = Written(forward, layers=nn.ModuleList([conv(), conv(seed=1)]))
    assert_followed(model, names=["layers.0", "", "layers.1", "#2", "#3"])


def test_a_forward_with_keyword_arguments_that_have_defaults():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv()

        def forward(self, x, *, scale=2.0, inner=None):
            return self.conv(input=x) * scale if inner is None else inner

    model = nn.Sequential(Optional()).double().eval()
    assert_followed(model, names=["0.conv", "0"])


def test_a_sum_is_given_its_terms():
    model = Written(lambda m, x: m.conv(x) + m.other(x), conv=conv(), other=conv(seed=1))
    *_, last = assert_followed(model, names=["conv", "other", ""])
    assert isinstance(last.module, Sum)
    assert torch.equal(last.x[..., 0], model.conv(random(2, 4, 6, 5)))


def test_a_part_may_return_a_tuple():
    part = Written(lambda m, x: (m.conv(x), x, 3), conv=conv())
    model = Written(lambda m, x: m.part(x)[0].relu(), part=part)
    assert_followed(model, names=["part.conv", ""])


def test_calls_without_the_images_are_no_layers():
    def forward(m, x):
        return m.conv(x) * torch.sigmoid(m.scale.weight).mean() + functional.relu(torch.ones(4, 1, 1))

    assert_followed(Written(forward, conv=conv(), scale=nn.Linear(2, 2)), names=["conv", "", "#2"])


def test_the_names_begin_anew_with_each_pass():
    model = nn.Sequential(conv(), nn.ReLU()).double().eval()
    for _ in range(2):
        assert [one.name for one in follow(model, random(1, 4, 3, 3))[0]] == ["0", "1"]


def test_the_output_of_a_watched_module_is_kept():
    model = nn.Sequential(conv(), norm(), nn.ReLU(inplace=True)).double().eval()
    images = random(2, 4, 3, 3)
    for strict in (True, False):
        for name, end in (("0", 1), ("1", 2), ("2", 3)):
            with Layerwise(model, by_gradient([]), strict, watch=name) as network:
                network.output(images.clone().requires_grad_())
            assert torch.equal(network.watched, model[:end](images))
    with Layerwise(model, by_gradient([])) as network:
        network.output(images.clone().requires_grad_())
    assert network.watched is None


def test_a_rule_runs_without_being_watched():
    """Its own calls are no layers, and those that have no rule are allowed."""
    noted = []

    def rule(layer, x, y):
        noted.append(layer.name)
        return ruled(x, torch.sort(layer.module(x), 1).values.relu(), lambda x, slope: slope)

    with Layerwise(nn.Sequential(conv(), nn.ReLU()).double(), rule) as network:
        network.output(random(1, 4, 3, 3).requires_grad_())
    assert noted == ["0", "1"]


def test_ruled_goes_back_as_it_is_told():
    x = random(3).requires_grad_()
    y = ruled(x, (x * 2).detach(), lambda x, relevance: x * relevance)
    assert torch.equal(y, 2 * x)
    (found,) = torch.autograd.grad(y, x, torch.tensor([1.0, 2, 3]).double())
    assert torch.equal(found, x.detach() * torch.tensor([1.0, 2, 3]).double())


@pytest.mark.parametrize("strict", [False, True])
def test_a_rule_that_returns_the_output_goes_back_by_the_gradient(strict):
    model = nn.Sequential(conv(), norm(), nn.Tanh(), nn.Flatten(), nn.Linear(36, 2)).double().eval()
    images = random(2, 4, 3, 3).requires_grad_()
    (slope,) = torch.autograd.grad(model(images).sum(), images)
    with Layerwise(model, lambda layer, x, y: y, strict) as network:
        output = network.output(images)
    assert output.requires_grad
    torch.testing.assert_close(torch.autograd.grad(output.sum(), images)[0], slope)


# BatchNorm


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("made", [norm(eps=0.3), norm(affine=False)], ids=["affine", "plain"])
def test_batch_norm_is_merged_into_the_convolution_before_it(bias, made):
    model = nn.Sequential(conv(bias=bias), made, nn.ReLU()).double().eval()
    first, _ = assert_followed(model, names=["0", "2"])
    scale = 1 / (made.running_var + made.eps).sqrt() * (made.weight if made.affine else 1)
    shift = (made.bias if made.affine else 0) - made.running_mean * scale
    torch.testing.assert_close(first.module.weight, model[0].weight * scale.view(4, 1, 1, 1))
    expected = shift + (model[0].bias * scale if bias else 0)
    torch.testing.assert_close(first.module.bias, expected)
    torch.testing.assert_close(first.y, model[:2](random(2, 4, 6, 5)))


def test_batch_norm_is_merged_into_a_dense_layer():
    flat = nn.BatchNorm1d(3).double()
    flat.running_mean, flat.running_var = random(3), random(3, seed=1) ** 2 + 1
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 3), flat, nn.ReLU()).double().eval()
    assert_followed(model, random(5, 2, 2, 2), ["1", "3"])


def test_two_batch_norms_are_merged_in_turn():
    assert_followed(nn.Sequential(conv(), norm(), norm(seed=5), nn.ReLU()).double().eval(), names=["0", "3"])


def test_merging_follows_the_data_and_not_the_order_of_modules():
    """The modules stand in the wrong order, and the convolutions share a BatchNorm."""

    def forward(m, x):
        one, other = m.first(x), m.second(x)  # both wait
        return m.norm(other).relu() + m.norm(one)

    model = Written(forward, norm=norm(), second=conv(seed=1), first=conv())
    noted = assert_followed(model, names=["second", "", "first", "#2"])
    assert not torch.equal(noted[0].module.weight, model.second.weight)


def test_grouped_and_functional_batch_norm_is_merged():
    def forward(m, x):
        x = functional.conv2d(x, m.conv.weight, None, 1, 1, 1, 2)
        x = functional.batch_norm(x, m.norm.running_mean, m.norm.running_var, m.norm.weight, eps=0.2)
        return x.relu()

    assert_followed(Written(forward, conv=conv(groups=2), norm=norm()), names=["", "#2"])


@pytest.mark.parametrize(
    "between",
    [nn.ReLU(), nn.MaxPool2d(2), nn.ZeroPad2d(1), nn.ChannelShuffle(2), nn.Tanh(), nn.Upsample(scale_factor=2)],
)
def test_batch_norm_that_is_not_directly_behind_is_a_layer(between):
    model = nn.Sequential(conv(), between, norm()).double().eval()
    noted = assert_followed(model)
    assert noted[-1].name == "2"
    assert isinstance(noted[-1].module, calls.Elementwise)
    assert torch.equal(noted[0].module.weight, model[0].weight)
    assert len(noted) == 2 + (not isinstance(between, nn.ZeroPad2d | nn.ChannelShuffle))


def test_batch_norm_first_is_a_layer():
    assert_followed(nn.Sequential(norm(), conv(), nn.ReLU()).double().eval(), names=["0", "1", "2"])


def test_an_identity_does_not_come_between():
    assert_followed(nn.Sequential(conv(), nn.Identity(), norm(), nn.ReLU()).double().eval(), names=["0", "3"])


def test_dropout_is_no_layer():
    noted = assert_followed(nn.Sequential(conv(), nn.Dropout(0.9), norm(), nn.ReLU()).double().eval())
    assert "1" not in [one.name for one in noted]


@pytest.mark.parametrize("before", [conv(), nn.ReLU()], ids=["convolution", "relu"])
def test_batch_statistics_are_refused(before):
    model = nn.Sequential(before, norm(track_running_stats=False), nn.ReLU()).double().eval()
    with pytest.raises(ValueError, match="^model: no rule covers batch_norm with batch statistics in layer '1'$"):
        follow(model, random(2, 4, 3, 3))
    follow(model, random(2, 4, 3, 3), strict=False)


def test_the_weights_of_the_network_are_not_merged_into():
    model = nn.Sequential(conv(), norm(), nn.ReLU()).double().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    follow(model, random(2, 4, 3, 3))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_batch_norm_over_other_channels_than_those_of_a_dense_layer_is_not_merged():
    """A dense layer on the last of four dimensions, BatchNorm on the second; both of length 4."""
    assert_followed(nn.Sequential(nn.Linear(4, 4), norm(), nn.ReLU()).double().eval(), random(2, 4, 3, 4))


def test_batch_norm_over_another_number_of_channels_than_those_of_a_dense_layer():
    assert_followed(nn.Sequential(nn.Linear(4, 5), norm(), nn.ReLU()).double().eval(), random(2, 4, 3, 4))


def test_a_layer_read_with_and_without_its_batch_norm():
    """Two layers for a rule, which must not take the one for the other: patterns are kept by name."""

    def forward(m, x):
        x = m.conv(x)
        return m.norm(x).relu() + x

    noted = assert_followed(Written(forward, conv=conv(), norm=norm()))
    names = [one.name for one in noted]
    assert len(set(names)) == len(names)


# calls in place


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.conv(x).relu_(),
        lambda m, x: functional.relu(m.conv(x), inplace=True) + 1,
        lambda m, x: m.conv(x).add_(x).mul_(2),
        lambda m, x: m.norm(m.conv(x)).neg_().tanh_(),
        lambda m, x: m.conv(x).sub_(1).div_(3).sigmoid_(),
    ],
)
def test_calls_in_place_are_seen(forward):
    assert_followed(Written(forward, conv=conv(), norm=norm()))


def test_a_call_in_place_is_seen_by_all_who_hold_the_tensor():
    def forward(m, x):
        held = x = m.conv(x)
        x += 1
        x.relu_()
        x *= held  # a square, by torch the product of one tensor with itself
        return held

    model = Written(forward, conv=conv())
    assert torch.equal(follow(model, random(2, 4, 3, 3), strict=False)[1], model(random(2, 4, 3, 3)))


def test_the_images_are_not_overwritten():
    images = random(2, 4, 3, 3).requires_grad_()
    copy = images.detach().clone()
    with Layerwise(nn.Sequential(nn.ReLU(inplace=True), conv()).double(), by_gradient([])) as network:
        network.output(images)
    assert torch.equal(images, copy)


def in_a_view(m, x):
    x = m.conv(x)
    x.flatten(1).relu_()
    return x


def in_a_part(m, x):
    x = m.conv(x)
    x[:, :2].mul_(3)
    return x


def under_a_view(m, x):
    x = m.conv(x)
    flat = x.flatten(1)
    x.relu_()
    return flat


@pytest.mark.parametrize("forward", [in_a_view, in_a_part, under_a_view])
@pytest.mark.parametrize("strict", [True, False])
def test_a_call_in_place_in_a_view_changes_what_it_is_a_view_of(forward, strict):
    """Or is refused: the result may not be another one."""
    model, images = Written(forward, conv=conv()), random(2, 4, 3, 3)
    try:
        found = follow(model, images, strict)[1]
    except ValueError as error:
        assert "in place" in str(error)  # noqa: PT017
    else:
        assert torch.equal(found, model(images))


def test_a_call_in_place_without_rule_is_named():
    model = Written(lambda m, x: m.conv(x).relu().clamp_(max=1), conv=conv())
    with pytest.raises(ValueError, match="^model: no rule covers clamp_ in the forward of Written$"):
        follow(model, random(2, 4, 3, 3))


def test_an_assignment_to_a_part_is_refused_or_done():
    def forward(m, x):
        x = m.conv(x)
        x[:, 0] = 0
        return x

    model = Written(forward, conv=conv())
    text = "^model: no rule covers __setitem__ in the forward of Written$"
    with pytest.raises(ValueError, match=text):
        follow(model, random(2, 4, 3, 3))
    assert torch.equal(follow(model, random(2, 4, 3, 3), strict=False)[1], model(random(2, 4, 3, 3)))


# torchvision's networks

SMALLEST = {  # name: side of the smallest images that it takes
    "squeezenet1_1": (17, {}),
    "googlenet": (15, {"init_weights": False, "aux_logits": True}),
    "resnet18": (1, {}),
    "densenet121": (29, {}),
    "mobilenet_v2": (1, {}),
    "shufflenet_v2_x0_5": (1, {}),
}


@pytest.fixture(scope="module", params=SMALLEST)
def network(request):
    """A network of torchvision in train mode, with images of the smallest size that it takes."""
    size, more = SMALLEST[request.param]
    torch.manual_seed(0)
    model = getattr(torchvision.models, request.param)(weights=None, num_classes=10, **more)
    return model.train(), random(2, 3, size, size).float()


def test_torchvisions_networks_are_what_they_are(network):
    """In train mode, with random BatchNorm statistics; strict or not."""
    model, images = network
    for one in model.modules():
        if isinstance(one, nn.BatchNorm2d):
            one.running_mean, one.running_var = (
                random(len(one.running_mean)).float() / 9,
                random(len(one.running_var)).float() ** 2 + 1,
            )
    with torch.no_grad():
        expected = model.eval()(images)
    model.train()
    for strict in (True, False):
        noted = []

        def rule(layer, x, y, noted=noted):
            noted.append(layer.name)
            return ruled(x, y, lambda x, relevance: torch.zeros_like(x))

        with Layerwise(model, rule, strict) as inside:
            found = inside.output(images.clone().requires_grad_())
            assert not model.training
        assert torch.equal(found, expected)
        assert len(set(noted)) == len(noted) > 20
        assert all(one.training for one in model.modules())
        assert all(one.requires_grad for one in model.parameters())


def test_images_too_small_for_a_network_are_refused():
    """By the layer that cannot take them."""
    model = torchvision.models.squeezenet1_1(weights=None)
    with pytest.raises(
        ValueError, match=r"^images: layer 'features\.8' cannot take an input of shape \(1, 256, 1, 1\): "
    ) as info:
        follow(model.eval(), torch.rand(1, 3, 16, 16))
    assert "\n" not in str(info.value)


# the network is left as it was


def hooks(model):
    return [len(held) for one in model.modules() for key, held in vars(one).items() if key.endswith("_hooks")]


def frozen_in_part():
    model = nn.Sequential(conv(), norm(), nn.ReLU(), nn.Sequential(conv(seed=1), norm(seed=1)), nn.Dropout()).double()
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    return model


def flags(model):
    return [one.training for one in model.modules()], [one.requires_grad for one in model.parameters()], hooks(model)


@pytest.mark.parametrize("strict", [True, False])
def test_modes_flags_and_hooks_are_put_back(strict):
    model = frozen_in_part()
    before, counts = flags(model), model[3][1].num_batches_tracked.clone()
    with Layerwise(model, by_gradient([]), strict) as network:
        assert not any(one.training for one in model.modules())
        assert not any(one.requires_grad for one in model.parameters())
        network.output(random(2, 4, 3, 3).requires_grad_())
    assert flags(model) == before
    assert torch.equal(model[3][1].num_batches_tracked, counts)


class OwnError(Exception):
    pass


def fail(*_):
    raise OwnError("no")


@pytest.mark.parametrize("where", ["body", "rule", "forward"])
def test_all_is_put_back_after_an_error(where):
    model = frozen_in_part()
    if where == "forward":
        model.append(Written(fail))
        model[-1].train()
    before = flags(model)
    rule = fail if where == "rule" else by_gradient([])
    with pytest.raises(OwnError, match="no"), Layerwise(model, rule) as network:
        (fail if where == "body" else network.output)(random(2, 4, 3, 3).requires_grad_())
    assert flags(model) == before
    assert torch.equal(torch.relu(torch.tensor([-1.0])), torch.zeros(1)), "torch is its own again"


def test_all_is_put_back_where_entering_fails(monkeypatch):
    model = frozen_in_part()
    before = flags(model)
    with monkeypatch.context() as patch:
        patch.setattr(model[4], "register_forward_hook", fail)
        with pytest.raises(OwnError, match="no"), Layerwise(model, by_gradient([])):
            pass
    assert flags(model) == before


def test_hooks_of_the_users_own_stay_and_run():
    """Before the pass and after it; one that changes the output is followed."""
    model, noted = nn.Sequential(conv(), nn.ReLU()).double().eval(), []
    model[0].register_forward_pre_hook(lambda module, inputs: noted.append("before") or (2 * inputs[0],))
    model[0].register_forward_hook(lambda module, inputs, output: noted.append("after") or -output)
    assert_followed(model, names=["", "0", "0#2", "1"])
    noted.clear()
    model(random(2, 4, 3, 3))
    assert noted == ["before", "after"]


def test_backward_hooks_of_the_users_own_do_not_matter():
    model = nn.Sequential(conv(), norm(), nn.ReLU(), conv(seed=1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)).double()
    images = random(2, 4, 3, 3)
    expected = {name: attribution.explain(name, model, images, 1) for name in ("gradient", "lrp", "excitation_bp")}
    model[3].register_full_backward_hook(lambda module, slopes, more: None)
    for name, maps in expected.items():
        assert torch.equal(attribution.explain(name, model, images, 1), maps), name


@pytest.mark.parametrize("method", ["gradient", "grad_cam"])
@pytest.mark.parametrize("training", [False, True])
def test_a_part_that_is_run_again_on_the_way_back_is_run_in_eval_mode(method, training):
    """As by torch's checkpoints, which torchvision's DenseNet has where it is to save memory."""
    block = nn.Sequential(norm(), nn.ReLU(), conv(), norm(seed=5))

    def forward(m, x, run):
        return m.head(m.last(run(m.block, m.stem(x))).relu().mean((2, 3)))

    def again(part, x):
        return checkpoint.checkpoint(part, x, use_reentrant=False)

    parts = {"block": block, "stem": conv(), "last": conv(seed=1), "head": nn.Linear(4, 2)}
    images = random(3, 4, 5, 5)
    plain = Written(lambda m, x: forward(m, x, lambda part, x: part(x)), **parts)
    expected = attribution.explain(method, plain, images, 1, layer="stem" if method == "grad_cam" else None)
    model = Written(lambda m, x: forward(m, x, again), **parts).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = attribution.explain(method, model, images, 1, layer="stem" if method == "grad_cam" else None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(found, expected)


def test_parameters_that_share_their_values_are_put_back():
    model = nn.Sequential(conv(), conv(seed=1)).double()
    model[1].weight = model[0].weight
    with Layerwise(model, by_gradient([])) as network:
        network.output(random(1, 4, 3, 3).requires_grad_())
    assert model[1].weight is model[0].weight
    assert model[0].weight.requires_grad


def test_two_contexts_one_after_the_other_around_one_network():
    model, images = frozen_in_part(), random(2, 4, 3, 3)
    before, outer, inner = flags(model), [], []
    expected = follow(model, images)
    with Layerwise(model, by_gradient(outer)) as first:
        first.output(images.clone().requires_grad_())
        done = len(outer)
    with Layerwise(model, by_gradient(inner)) as second:
        found = second.output(images.clone().requires_grad_())
    assert torch.equal(found, expected[1])
    assert [one.name for one in inner] == [one.name for one in outer] == [one.name for one in expected[0]]
    assert done == len(outer) == 3
    assert flags(model) == before


def test_a_context_in_another_one_leaves_all_as_it_was():
    one, other, images = frozen_in_part(), frozen_in_part(), random(2, 4, 3, 3)
    before = flags(one)
    with Layerwise(one, noting([]), strict=False) as outer:
        with Layerwise(other, noting([]), strict=False) as inner:
            found = inner.output(images.clone().requires_grad_())
        inside = flags(one)
        assert flags(other) == before
        assert torch.equal(outer.output(images.clone().requires_grad_()), found)
        assert inside != before
    assert flags(one) == flags(other) == before


def test_a_network_explained_within_another_pass_is_explained_the_same():
    """As by a network that draws a heatmap of a part of itself."""
    part = nn.Sequential(conv(), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)).double().eval()
    images = random(2, 4, 3, 3)
    expected = attribution.explain("lrp", part, images, 1)
    found = []

    def forward(m, x):
        found.append(attribution.explain("lrp", part, images, 1))
        return m.conv(x)

    follow(Written(forward, conv=conv()), images, strict=False)
    assert torch.equal(found[0], expected)


# errors


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.GroupNorm(2, 4), r"model: no rule covers group_norm in layer '1\.0'"),
        (nn.Softmax(1), r"model: no rule covers softmax in layer '1\.0'"),
        (nn.PReLU(), r"model: no rule covers prelu in layer '1\.0'"),
        (nn.MaxPool2d(2, return_indices=True), r"model: no rule covers max_pool2d_with_indices in layer '1\.0'"),
        (nn.Upsample(scale_factor=2, mode="bicubic"), r"model: no rule covers interpolate by bicubic .* '1\.0'"),
        (Written(lambda m, x: x * x), r"model: no rule covers mul of two computed values in layer '1\.0'"),
        (Written(lambda m, x: x.mean(1)), r"model: no rule covers mean over other dimensions .* in layer '1\.0'"),
        (Written(lambda m, x: functional.dropout(x)), r"model: no rule covers dropout that is active .* '1\.0'"),
        (Written(lambda m, x: x[x > 0]), r"model: no rule covers \w+ in layer '1\.0'"),
        (Written(lambda m, x: x @ x.transpose(2, 3)), r"model: no rule covers \w*matmul\w* in layer '1\.0'"),
    ],
)
def test_what_has_no_rule_names_the_layer_and_the_function(layer, text):
    model = nn.Sequential(conv(), nn.Sequential(layer)).double()
    with pytest.raises(ValueError, match=f"^{text}$"):
        follow(model, random(2, 4, 3, 3))


def test_in_the_root_the_networks_class_is_named():
    with pytest.raises(ValueError, match="^model: no rule covers cumsum in the forward of Written$"):
        follow(Written(lambda m, x: torch.cumsum(m.conv(x), 1), conv=conv()), random(2, 4, 3, 3))


def test_a_call_without_rule_is_allowed_where_it_only_asks_for_a_shape():
    def forward(m, x):
        x = m.conv(x)
        assert (x.dim(), x.is_cuda, x.dtype, len(x), x.numel()) == (4, False, torch.float64, 2, 72)
        return x.reshape(x.size(0), x.shape[1], -1)

    assert_followed(Written(forward, conv=conv()), random(2, 4, 3, 3), ["conv"])


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("model", "text"),
    [
        (
            nn.Sequential(nn.Sequential(conv(3))),
            r"layer '0\.0' cannot take an input of shape \(2, 4, 3, 3\): Given groups=1",
        ),
        (nn.Sequential(nn.Flatten(), nn.Linear(35, 2)), r"layer '1' cannot take an input of shape \(2, 36\): mat1 and"),
        (nn.Sequential(norm(5)), r"layer '0' cannot take an input of shape \(2, 4, 3, 3\): "),
        (nn.MaxPool2d(4), r"the forward of MaxPool2d cannot take an input of shape \(2, 4, 3, 3\): "),
        (
            Written(lambda m, x: x.flatten(1)[:, 36]),
            r"the forward of Written cannot take .* \(2, 36\): index 36 is out",
        ),
    ],
)
def test_images_that_a_layer_cannot_take_name_it_and_their_shape(model, text, strict):
    with pytest.raises(ValueError, match=f"^images: {text}") as info:
        follow(model.double().eval(), random(2, 4, 3, 3), strict)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("method", ["gradient", "lrp", "excitation_bp", "grad_cam"])
@pytest.mark.parametrize(
    ("forward", "kind"),
    [
        (lambda m, x: (head(m.conv(x)), 1), "tuple"),
        (lambda m, x: {"logits": head(m.conv(x))}, "dict"),
        (lambda m, x: [head(m.conv(x).relu_())], "list"),
        (lambda m, x: None, "NoneType"),
    ],
)
def test_an_output_that_is_no_tensor_is_refused(plain, monkeypatch, method, forward, kind):
    for name in ("layerwise", "excitation"):  # without shape checks, which would come first
        monkeypatch.setitem(sys.modules, f"xai_lib.{name}", module := plain(name))
        monkeypatch.setattr(xai_lib, name, module)
    with pytest.raises(ValueError, match=rf"^model must return logits \(N, K\); got {kind}$"):
        plain("attribution").explain(method, Written(forward, conv=conv()), random(2, 4, 3, 3), 1)


def test_memory_that_runs_out_is_no_matter_of_the_images():
    def forward(m, x):
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError, match="full"):
        follow(Written(forward), random(2, 4, 3, 3))


# images


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (torch.zeros(0, 1, 2, 2), r"images must be \(N, C, H, W\), at least one; got shape \(0, 1, 2, 2\)"),
        (torch.zeros(1, 2, 2), r"images must be \(N, C, H, W\), at least one; got shape \(1, 2, 2\)"),
        (torch.zeros(1, 1, 2, 2).half(), r"images must be float32 or float64; got torch\.float16"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.int64), r"images must be float32 or float64; got torch\.int64"),
        (
            torch.tensor([1.0, torch.inf, 1, torch.nan]).view(4, 1, 1, 1),
            r"images must be finite; image 1 holds NaN or infinity \(2 such in all\)",
        ),
        (
            torch.zeros(1, 1, 2, 2).double(),
            r"model must be torch\.float64 on cpu as the images are; it is torch\.float32 on cpu",
        ),
    ],
)
def test_check_names_what_is_wrong(plain, images, text):
    with pytest.raises(ValueError, match=f"^{text}$"):
        plain("layerwise").check(nn.Linear(2, 2), images)


def test_check_allows_a_network_without_parameters_and_whole_numbers():
    model = nn.Flatten()
    model.register_parameter("count", nn.Parameter(torch.tensor(3), requires_grad=False))
    layerwise.check(model, torch.zeros(1, 1, 2, 2))
    layerwise.check(model, torch.zeros(1, 1, 2, 2).double())
