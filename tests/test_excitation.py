import pytest
import torch
from torch import nn
from torch.nn import functional

from xai_lib import attribution, calls, excitation
from xai_lib.layerwise import Layerwise


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def maps(model, images, units, **more):
    return excitation.maps(model, images, lambda logits: torch.as_tensor(units), **more)


def dense(*weights, biases=None):
    """Return Flatten, then a ReLU between dense layers with these weights."""
    layers = [nn.Flatten()]
    for k, weight in enumerate(weights):
        layer = nn.Linear(len(weight[0]), len(weight))
        layer.weight.data, layer.bias.data = numbers(*weight), numbers(*(biases[k] if biases else [0] * len(weight)))
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double().eval()


# by hand

# Pixels (1, 2); hidden units with weights (1, 1) and (2, -1) plus 3: h = (3, 3). The top has weights (1, -2), and as
# second unit (1, 2).
TWO_TWO = dense([[1.0, 1], [2, -1]], [[1.0, -2], [1, 2]], biases=[[0.0, 3], [-7, 5]])
PIXELS = numbers(1, 2).view(1, 1, 1, 2)


def test_two_layers_by_hand():
    """Unit 0: all to hidden unit 0, shared 1 : 2. Unit 1: 3 : 6 = 1/3 and 2/3; hidden unit 1 is excited by x0 alone.

    So P(x0) = 1/3 * 1/3 + 2/3 * 1 = 7/9 and P(x1) = 1/3 * 2/3 = 2/9. Biases get nothing.
    """
    found = maps(TWO_TWO, PIXELS, [[0, 1]], layer="")
    torch.testing.assert_close(found.view(2, 2), numbers([1 / 3, 2 / 3], [7 / 9, 2 / 9]))


def test_two_layers_by_hand_contrastive():
    """Unit 0: W+ gives hidden (1, 0), (-W)+ gives (0, 1), so (1, -1) goes down: (1/3 - 1, 2/3 - 0).

    Unit 1 has no negative weights, so its dual unit gets nothing, and all is as before.
    """
    found = maps(TWO_TWO, PIXELS, [[0, 1]], layer="", contrastive=True)
    torch.testing.assert_close(found.view(2, 2), numbers([-2 / 3, 2 / 3], [7 / 9, 2 / 9]))


def test_two_layers_and_one_output_by_hand():
    """2-2-1, inputs (3, 1), rows (1, 2) and (-1, 4), h = (5, 1), top (2, -5).

    P(h) = (1, 0) and P(x) = (3/5, 2/5). Dual: P(h) = (0, 1), of which x1 alone was excitatory: (0, 1).
    The contrastive map is (3/5, 2/5 - 1).
    """
    model, pixels = dense([[1.0, 2], [-1, 4]], [[2.0, -5]]), numbers(3, 1).view(1, 1, 2, 1)
    torch.testing.assert_close(maps(model, pixels, [[0]], layer="").flatten(), numbers(0.6, 0.4))
    found = maps(model, pixels, [[0]], layer="", contrastive=True)
    torch.testing.assert_close(found.flatten(), numbers(0.6, -0.6))


def test_the_dual_unit_is_at_the_top_layer_alone():
    """2-1-1 with a negative weight (1, -1) below: contrast at the top, where w = 1, changes nothing."""
    model, pixels = dense([[1.0, -1]], [[1.0]]), numbers(3, 1).view(1, 1, 1, 2)
    for contrastive in (False, True):
        found = maps(model, pixels, [[0]], layer="", contrastive=contrastive)
        torch.testing.assert_close(found.flatten(), numbers(1, 0))


def test_a_convolution_by_hand():
    """Pixels (1, 2, 0, 4), weights (1, 1), edges of 0: outputs 3, 2, 4; the top takes the first and the last, 1 : 3.

    (1, 2, 0, 4): sums of neighbours are (3, 2, 4). Top weights (1, -1, 3): 3 : 12, so P = (0.2, 0, 0.8), and
    P(x) = (0.2/3, 0.4/3, 0, 0.8).
    """
    model = nn.Sequential(nn.Conv2d(1, 1, (1, 2)), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)).double()
    model[0].weight.data, model[0].bias.data = torch.ones(1, 1, 1, 2).double(), numbers(0)
    model[3].weight.data = numbers([1, -1, 3])
    found = maps(model, numbers(1, 2, 0, 4).view(1, 1, 1, 4), [[0]], layer="")
    torch.testing.assert_close(found.flatten(), numbers(0.2 / 3, 0.4 / 3, 0, 0.8))


def test_pooling_by_hand():
    """The maximum wins all; a mean is shared by value: P = (2, 6) / 8."""
    top = nn.Linear(1, 1)
    top.weight.data = numbers([2])
    for pool, expected in [(nn.MaxPool2d((1, 2)), (0, 1)), (nn.AvgPool2d((1, 2)), (0.25, 0.75))]:
        found = maps(nn.Sequential(pool, nn.Flatten(), top).double(), numbers(2, 6).view(1, 1, 1, 2), [[0]], layer="")
        torch.testing.assert_close(found.flatten(), numbers(*expected))


def test_in_a_sum_a_negative_summand_gets_nothing_by_hand():
    """The summands 2 x0 and tanh(x1 - 2): at (1, 3) they are 2 and tanh(1), at (1, 1) the second is negative."""

    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.top = nn.Linear(1, 1)

        def forward(self, x):
            return self.top((x[..., :1] * 2 + torch.tanh(x[..., 1:] - 2)).relu().flatten(1))

    model = Joined().double()
    model.top.weight.data = torch.ones(1, 1).double()
    share = 2 / (2 + torch.tanh(numbers(1)).item())
    for pixels, expected in [((1, 3), (share, 1 - share)), ((1, 1), (1, 0))]:
        found = maps(model, numbers(*pixels).view(1, 1, 1, 2), [[0]], layer="")
        torch.testing.assert_close(found.flatten(), numbers(*expected))


def test_a_neuron_that_nothing_excites_loses_its_probability():
    """h = (3, 2): the second is positive by its bias alone, and its half of P is gone."""
    model = dense([[1.0, 1], [-1, -1]], [[2.0, 3]], biases=[[0.0, 5], [0.0]])
    found = maps(model, PIXELS, [[0]], layer="")
    torch.testing.assert_close(found.flatten(), numbers(1, 2) / 3 / 2)


# probabilities


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3)]
    layers += [nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(32, 16), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(16, 5)).double().eval()


NETWORK, IMAGES = network(), random(3, 3, 10, 10)


def test_probabilities_are_between_0_and_1_and_their_sum_is_1():
    found = maps(NETWORK, IMAGES, [[0, 1, 2, 3, 4]] * 3)
    assert found.min() >= 0
    assert found.max() > 0
    torch.testing.assert_close(found.sum((2, 3)), torch.ones(3, 5).double())


@pytest.mark.parametrize("layer", ["5", "3", "2", None])
def test_the_sum_is_1_at_every_layer(layer):
    """Upsampling multiplies it by the ratio of the areas, here whole numbers."""
    images = random(3, 3, 12, 12)
    model = nn.Sequential(*list(network())[:6], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).double()
    total = maps(model, images, [[0], [1], [0]], layer=layer).sum((1, 2, 3))
    ratio = {"5": (12 / 4) ** 2, "3": (12 / 6) ** 2}.get(layer, 1)
    torch.testing.assert_close(total, torch.full((3,), ratio).double())


def test_the_sum_of_c_mwp_is_what_unit_and_dual_unit_have():
    """1 - 1, or 1 - 0 where there is no dual."""
    model = network()
    model[10].weight.data[0].abs_()
    total = maps(model, IMAGES, [[0, 1]] * 3, contrastive=True).sum((2, 3))
    torch.testing.assert_close(total, numbers(1, 0).expand(3, 2), rtol=0, atol=1e-12)


def test_the_scale_of_weights_and_a_shift_of_biases_above_do_not_matter():
    model = network()
    expected = maps(model, IMAGES, [[1], [2], [3]])
    model[10].weight.data *= 7
    model[10].bias.data += 100
    torch.testing.assert_close(maps(model, IMAGES, [[1], [2], [3]]), expected)


# several images and units


@pytest.mark.parametrize("contrastive", [False, True])
@pytest.mark.parametrize("layer", [None, "3", ""])
def test_many_units_of_many_images_are_one_at_a_time(layer, contrastive):
    units = torch.tensor([[0, 1, 2, 0], [4, 4, 3, 1], [2, 0, 1, 3]])
    found = maps(NETWORK, IMAGES, units, layer=layer, contrastive=contrastive)
    assert found.shape == (3, 4, 10, 10)
    for i, row in enumerate(units):
        for t, unit in enumerate(row):
            alone = maps(NETWORK, IMAGES[i : i + 1], unit.view(1, 1), layer=layer, contrastive=contrastive)
            torch.testing.assert_close(found[i, t], alone[0, 0], rtol=1e-9, atol=1e-15)
    assert not torch.allclose(found[0, 0], found[0, 1], rtol=1e-2)


def test_many_units_take_one_forward_pass():
    """And each layer's normaliser is computed once, not once per unit."""
    passes, counted = [], []
    model = network()
    model[4].register_forward_hook(lambda *_: passes.append(1))
    plain = excitation._excitatory

    def counting(module, sign):
        counted.append(sign)
        return plain(module, sign)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(excitation, "_excitatory", counting)
        maps(model, IMAGES, [list(range(5))] * 3, contrastive=True)
    assert len(passes) == 1
    assert sorted(counted) == [-1, 1, 1, 1, 1]  # the top twice; dense, mean, convolution once


def test_units_are_chosen_by_the_logits():
    given = []

    def select(logits):
        given.append(logits.detach())
        return logits.topk(2).indices

    found = excitation.maps(NETWORK, IMAGES, select)
    expected = NETWORK(IMAGES).detach()
    torch.testing.assert_close(given[0], expected)
    torch.testing.assert_close(found, maps(NETWORK, IMAGES, expected.topk(2).indices))


def test_maps_need_no_gradient_and_leave_none():
    with torch.inference_mode():
        found = maps(NETWORK, IMAGES, [[1]] * 3)
    assert not found.requires_grad
    assert not IMAGES.requires_grad
    torch.testing.assert_close(found, maps(NETWORK, IMAGES, [[1]] * 3))


# where the map is read


def conv(width_in=4, width_out=4):
    return nn.Conv2d(width_in, width_out, 3, padding=1)


class Read(nn.Module):
    """A network of convolutions c0, c1, ..., rectifiers r0, r1, ... and a norm; `forward` is given."""

    def __init__(self, forward, width=4):
        super().__init__()
        torch.manual_seed(1)
        self.c0, self.c1, self.c2 = conv(3), conv(), conv()
        self.r0, self.r1, self.r2, self.r3 = (nn.ReLU() for _ in range(4))
        self.n0, self.n1, self.n2 = (nn.BatchNorm2d(4) for _ in range(3))
        self.head = nn.Linear(width, 3)
        self.body = forward
        self.double().eval()

    def forward(self, x):
        return self.head(self.body(self, x).mean((2, 3)))


READ = {  # name: (body, width of the head, where it is read)
    "plain": (lambda m, x: m.r1(m.c1(m.r0(m.c0(x)))), 4, "r0"),
    "pooled": (lambda m, x: m.r1(m.c1(functional.max_pool2d(m.r0(m.c0(x)), 2))), 4, "r0"),
    "averaged": (lambda m, x: m.r1(m.c1(functional.avg_pool2d(m.r0(m.c0(x)), 2))), 4, "r0"),
    "grown": (lambda m, x: m.r1(m.c1(functional.interpolate(m.r0(m.c0(x)), scale_factor=2))), 4, "r0"),
    "padded": (lambda m, x: m.r1(m.c1(functional.pad(m.r0(m.c0(x)), (1, 1)))), 4, "r0"),
    "no rectifier between": (lambda m, x: m.r0(m.c1(m.c0(x))), 4, "r0"),
    "tanh between": (lambda m, x: m.r1(m.c1(torch.tanh(m.r0(m.c0(x))))), 4, "r1"),
    "norm between": (lambda m, x: m.r1(m.c1(m.n0(m.r0(m.c0(x))))), 4, "r1"),
    "norm at once": (lambda m, x: m.r1(m.n1(m.c1(m.r0(m.n0(m.c0(x)))))), 4, "r0"),
    "residual": (lambda m, x: m.r2((y := m.r0(m.c0(x))) + m.c2(m.r1(m.c1(y)))), 4, "r0"),
    "residual, signed stem": (lambda m, x: m.r2((y := m.c0(x)) + m.c2(m.r1(m.c1(m.r0(y))))), 4, "r2"),
    # BatchNorm and ReLU come before the convolution, and its output joins the channels before it.
    "dense": (lambda m, x: torch.cat([y := m.r0(m.c0(x)), m.c1(m.r1(m.n0(y)))], 1).relu(), 8, "r0"),
    "dense, signed": (lambda m, x: m.r3(torch.cat([y := m.c0(x), m.c1(m.r1(m.n0(y)))], 1)), 8, "r3"),
    # x + c(r(n(x))): the stem is signed, and is not rectified on the way that skips.
    "pre-activated": (lambda m, x: m.r2(m.n1((y := m.c0(x)) + m.c1(m.r0(m.n0(y))))), 4, "r2"),
    "two branches": (lambda m, x: torch.cat([m.r0(y := m.c0(x)), m.r1(m.c1(m.r2(y)))], 1), 8, None),
    "branches behind one": (lambda m, x: torch.cat([(y := m.r2(m.c0(x))), m.r1(m.c1(y))], 1), 8, "r2"),
    "used twice": (lambda m, x: m.r0(m.c1(m.r0(m.c0(x)))), 4, "r0"),
}


@pytest.mark.parametrize("name", READ)
def test_the_map_is_read_at_the_first_non_negative_layer_that_all_paths_pass(name):
    body, width, place = READ[name]
    model, images = Read(body, width), random(2, 3, 8, 8) - 0.5
    if place is None:
        with pytest.raises(ValueError, match="^model: Excitation Backprop needs a non-negative layer with positions;"):
            maps(model, images, [[0], [1]])
        return
    found = maps(model, images, [[0], [1]])
    uses = []
    hook = getattr(model, place).register_forward_hook(lambda module, inputs, output: uses.append(output.shape[2]))
    model(images)
    hook.remove()
    if len(uses) == 1:
        assert torch.equal(found, maps(model, images, [[0], [1]], layer=place))
    rule = excitation.Rule()
    with Layerwise(model, rule) as inside:
        logits = inside.output(images.requires_grad_())
    assert next(one for one, _ in rule.places if one in calls.passed(logits)) == place
    assert found.abs().sum() > 0


def test_a_pre_activated_network_of_two_blocks_with_a_rectified_stem_is_read_at_the_stem():
    """Where the BatchNorm behind the sum is followed by a ReLU, all convolutions have non-negative inputs."""

    def body(m, x):
        x = m.r0(m.c0(x))
        x = x + m.c1(m.r1(m.n0(x)))
        return m.r3(m.n2(x + m.c2(m.r2(m.n1(x)))))

    model, images = Read(body), random(2, 3, 8, 8)
    found = maps(model, images, [[0], [1]])
    assert torch.equal(found, maps(model, images, [[0], [1]], layer="r0"))


def test_a_rectifier_behind_the_positions_is_no_place():
    """The dense layers of the head are below no position; the ReLU before the mean is read."""
    layers = [conv(3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)]
    model = nn.Sequential(*layers).double()
    with pytest.raises(ValueError, match=r"^model: .*; none that all paths pass is above layer '4' \(Linear\)$"):
        maps(model, IMAGES, [[0]] * 3)


def test_the_name_of_the_layer_that_is_undefined_is_the_last_one():
    layers = [conv(3), nn.Tanh(), conv(), nn.Flatten(), nn.Linear(400, 2)]
    with pytest.raises(ValueError, match=r"is above layer '4' \(Linear\)$"):
        maps(nn.Sequential(*layers).double(), IMAGES, [[0]] * 3)


def test_a_map_is_upsampled_bilinearly():
    model = nn.Sequential(conv(3), nn.ReLU(), nn.MaxPool2d(2), conv(), nn.ReLU(), nn.Flatten(), nn.Linear(100, 2))
    model = model.double()
    with Layerwise(model, rule := excitation.Rule(), watch="4") as inside:
        logits = inside.output(IMAGES.clone().requires_grad_())
    (coarse,) = torch.autograd.grad(logits[:, 1].sum(), inside.watched)
    expected = functional.interpolate(coarse.sum(1, keepdim=True), (10, 10), mode="bilinear", align_corners=False)
    assert coarse.shape[2:] == (5, 5)
    assert rule.top.name == "6"
    torch.testing.assert_close(maps(model, IMAGES, [[1]] * 3, layer="4"), expected)


@pytest.mark.parametrize(("layer", "found"), [("head", r"\(3, 3\)"), ("r3", "none")])
def test_a_layer_without_positions_is_refused(layer, found):
    with pytest.raises(ValueError, match=rf"^layer must give \(N, C, h, w\) .*; '{layer}' gives {found}$"):
        maps(Read(READ["plain"][0]), IMAGES, [[1]] * 3, layer=layer)


def test_negative_pixels_are_refused_where_the_map_is_read_there():
    images = IMAGES.clone()
    images[1, 2, 3, 4] = -0.25
    with pytest.raises(ValueError, match=r"^images: .* negative activations; layer '0' gets -0\.25$"):
        maps(NETWORK, images, [[1]] * 3, layer="")
    maps(NETWORK, images, [[1]] * 3)


def test_a_layer_below_which_the_map_is_read_may_have_signed_inputs():
    """The rule is not asked of it."""
    model = nn.Sequential(nn.Tanh(), *network()).double()
    assert maps(model, IMAGES - 0.5, [[1]] * 3).sum() > 0


# pixel_probabilities


def test_probabilities_of_tiny_values_are_not_lost():
    values = random(1, 2, 3, 3)
    expected, _ = excitation.pixel_probabilities(values)
    for scale in (1e-300, 1e300):
        found, kept = excitation.pixel_probabilities(values * scale)
        torch.testing.assert_close(found, expected)
        assert kept.all()


def test_probabilities_have_no_gradient_of_nothing_and_no_nan():
    maps_ = torch.stack([torch.zeros(2, 2), -torch.ones(2, 2), torch.eye(2)])[None]
    copy = maps_.clone()
    found, kept = excitation.pixel_probabilities(maps_)
    assert found.isfinite().all()
    assert kept.dtype == torch.bool
    assert kept.tolist() == [[False, False, True]]
    assert torch.equal(found[0, 2], torch.eye(2) / 2)
    assert torch.equal(maps_, copy), "its argument is as it was"


def test_probabilities_keep_the_type_and_take_no_maps():
    assert excitation.pixel_probabilities(random(2, 1, 3, 3).float())[0].dtype == torch.float32
    found, kept = excitation.pixel_probabilities(torch.zeros(0, 2, 3, 3))
    assert found.shape == (0, 2, 3, 3)
    assert kept.shape == (0, 2)


def test_probabilities_are_those_of_attribution():
    assert attribution.pixel_probabilities is excitation.pixel_probabilities
    assert excitation.METHODS == ("excitation_bp", "contrastive_excitation_bp")
