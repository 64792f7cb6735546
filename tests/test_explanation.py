import copy
import functools
from collections import OrderedDict

import pytest
import torch
from torch import nn

from xai_lib import attribution, explanation, one_vs_all, srae, training
from xai_lib.explanation import ExplanationModule, Front
from xai_lib.training import Recipe
from xai_lib.vgg19 import FC1, FC2, small_vgg

HASHES = functools.cache(training.provenance.code_hashes)
LAYER = "classifier.1"
SETTINGS = {"size": srae.Size((8,), 4), "recipe": Recipe(epochs=3, batch_size=10, weight_decay=0.0)}


@pytest.fixture(autouse=True, scope="module")
def light():
    """One thread, as toys wait for a second one longest; and the library, which stays as it is, is hashed once."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.provenance, "code_hashes", HASHES)
        yield
    torch.set_num_threads(before)


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def network(seed=0):
    """Images (N, 3, 8, 8) to three logits by a layer of 12 units, with ReLUs in place as torchvision's VGG has them."""
    torch.manual_seed(seed)
    parts = {
        "features": nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        "flatten": nn.Flatten(),
        "classifier": nn.Sequential(nn.Linear(64, 12), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(12, 3)),
    }
    return nn.Sequential(OrderedDict(parts))


def up_to_layer(net, *more):
    """The same network as one plain chain that ends after the layer."""
    return nn.Sequential(*net.features, net.flatten, *net.classifier[:2], *more).eval()


IMAGES, LABELS = random(30, 3, 8, 8), torch.arange(30) % 3


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    """Modules of categories 2 and 0, in this order."""
    attached = ExplanationModule.attach(network(), LAYER)
    return attached.fit(IMAGES, LABELS, [2, 0], folder=tmp_path_factory.mktemp("modules"), **SETTINGS)


# the front of a network


def test_activations_are_the_layers_and_the_networks_output():
    net = network().train()
    z, logits = explanation.activations(net, LAYER, IMAGES)
    with torch.no_grad():
        torch.testing.assert_close(z, up_to_layer(net)(IMAGES))
        torch.testing.assert_close(logits, net.eval()(IMAGES))
    assert z.shape == (30, 12)
    assert (z > 0).any()


def test_front_flattens_a_layer_with_positions_and_goes_on_with_the_top():
    net = network().eval()
    pooled = net.features(IMAGES)
    torch.testing.assert_close(Front(net, "features")(IMAGES), pooled.flatten(1))
    torch.testing.assert_close(Front(net, "features.2")(IMAGES), pooled.flatten(1))
    top = nn.Linear(64, 2)
    torch.testing.assert_close(Front(net, "features", top)(IMAGES), top(pooled.flatten(1)))


def test_front_stops_at_the_layer():
    net = network().eval()
    after = []
    net.classifier[3].register_forward_hook(lambda *_: after.append(1))
    Front(net, LAYER)(IMAGES)
    assert not after
    net(IMAGES)
    assert after


class Idle(nn.Module):
    """Has a layer that it does not run."""

    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), nn.ReLU()

    def forward(self, images):
        return self.used(images)


def test_a_layer_that_is_not_run_is_an_error_and_leaves_no_hook():
    net = Idle()
    for draw in (lambda: Front(net, "spare")(IMAGES), lambda: explanation.activations(net, "spare", IMAGES)):
        with pytest.raises(ValueError, match="layer 'spare' is not run by Idle"):
            draw()
    assert not net.spare._forward_hooks


def test_a_layer_that_is_not_there_names_those_like_it():
    net = small_vgg(3, 8, (4,), 12)
    for wrong, near in (("classifier1", "classifier.1"), ("clasifier.4", "classifier.4"), ("feature", "features")):
        for attach in (explanation.check_layer, Front, ExplanationModule.attach):
            with pytest.raises(ValueError, match=f"layer must be a module .* {near}[,;] ?.*got '{wrong}'"):
                attach(net, wrong)
    with pytest.raises(ValueError, match="for instance .*classifier.6; got 'QQ'"):
        explanation.check_layer(net, "QQ")
    with pytest.raises(ValueError, match="layer must be a module .*; got ''"):
        explanation.check_layer(net, "")
    assert explanation.check_layer(net, FC1) == FC1


def test_negative_activations_are_an_error(tmp_path):
    net = network()
    for draw in (
        lambda: explanation.activations(net, "classifier.0", IMAGES),
        lambda: ExplanationModule(net, "classifier.0").fit(IMAGES, LABELS, [0], folder=tmp_path, **SETTINGS),
    ):
        with pytest.raises(ValueError, match="layer 'classifier.0' must be non-negative, as after a ReLU; got -"):
            draw()


# maps


def test_maps_of_all_x_features_are_those_one_by_one_and_of_a_plain_network(module):
    """c-MWP of n units at once, of each alone, and of one chain of layers from the pixels to the x-features."""
    images = IMAGES[:5]
    for k, category in enumerate((2, 0)):
        encoder = module.autoencoders.single(k)
        found = module.maps(images, category)
        assert found.shape == (5, 4, 8, 8)
        plain = up_to_layer(module.network, *encoder)
        for unit in range(4):
            [one] = explanation.unit_maps(module.network, LAYER, images, [unit], encoder).transpose(0, 1)
            torch.testing.assert_close(found[:, unit], one)
            chained = attribution.explain("contrastive_excitation_bp", plain, images, unit)
            torch.testing.assert_close(found[:, unit], chained[:, 0])
        assert (found < 0).any(), "signed"
        assert (found.abs().sum((2, 3)) > 0).any(0).sum() >= 2
    assert not torch.allclose(module.maps(images, 2), module.maps(images, 0))


def test_maps_do_not_depend_on_the_batch(module):
    torch.testing.assert_close(module.maps(IMAGES[:5], 0, batch_size=2), module.maps(IMAGES[:5], 0))


@pytest.mark.parametrize(("layer", "end"), [(LAYER, 6), ("features.1", 2)])
def test_maps_of_the_layers_own_units_are_those_of_a_network_that_ends_there(layer, end):
    net, units = network(), torch.tensor([7, 0, 3])
    found = explanation.unit_maps(net, layer, IMAGES[:4], units)
    plain = nn.Sequential(*up_to_layer(net)[:end], *([nn.Flatten()] if end == 2 else []))
    expected = attribution.explain("contrastive_excitation_bp", plain, IMAGES[:4], units.expand(4, 3))
    torch.testing.assert_close(found, expected)
    assert found.abs().sum() > 0


@pytest.mark.parametrize("layer", [FC1, FC2])
def test_a_small_vgg_is_explained_at_the_papers_layers(layer, tmp_path):
    """With BatchNorm and dropout; maps are of the network in eval mode."""
    torch.manual_seed(1)
    net = small_vgg(3, 8, (4, 6), 12, dropout=0.3)
    module = ExplanationModule.attach(net, layer).fit(IMAGES, LABELS, [1], folder=tmp_path, **SETTINGS)
    chain = [*net.features, net.avgpool, *net.classifier[: int(layer[-1]) + 1], *module.autoencoders.single(0)]
    plain = copy.deepcopy(nn.Sequential(*chain)).eval()
    targets = torch.arange(4).expand(3, 4)
    expected = attribution.explain("contrastive_excitation_bp", plain, IMAGES[:3], targets)
    torch.testing.assert_close(module.maps(IMAGES[:3], 1), expected)
    assert expected.abs().sum() > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_images_on_the_cpu_do_for_a_network_on_the_gpu(module):
    """As for `fit` and `contributions`, which take images where they are and give results on the CPU."""
    expected, there = module.maps(IMAGES[:3], 0), copy.deepcopy(module)
    there.network.cuda()
    torch.testing.assert_close(there.maps(IMAGES[:3], 0).cpu(), expected, atol=1e-4, rtol=1e-3)


# the network stays as it is


def state(net):
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    parts = [(name, part.training, [len(getattr(part, one)) for one in hooks]) for name, part in net.named_modules()]
    flags = [(name, one.requires_grad, one.grad) for name, one in net.named_parameters()]
    return parts, flags, {name: value.clone() for name, value in net.state_dict().items()}


def test_the_network_is_as_before_also_after_an_error(tmp_path):
    torch.manual_seed(0)
    net = small_vgg(3, 8, (4,), 12, dropout=0.3)
    net.features.train()
    net.classifier.eval()
    net.features[0].weight.requires_grad_(False)
    net.classifier[1].register_forward_hook(lambda *_: None)
    before = state(net)

    def unchanged():
        after = state(net)
        assert after[:2] == before[:2]
        assert all(torch.equal(value, before[2][name]) for name, value in after[2].items())
        return True

    module = ExplanationModule.attach(net, FC1).fit(IMAGES, LABELS, [0, 1], folder=tmp_path, **SETTINGS)
    assert unchanged()
    module(IMAGES)
    assert unchanged()
    module.maps(IMAGES[:2], 1)
    assert unchanged()
    with pytest.raises(RuntimeError):
        module(torch.rand(2, 5, 8, 8))
    assert unchanged()
    with pytest.raises(ValueError, match="cannot take an input"):
        module.maps(torch.rand(2, 5, 8, 8), 1)
    assert unchanged()
    with pytest.raises(ValueError, match="target must lie between 0 and 3; got 4"):
        explanation.unit_maps(net, FC1, IMAGES[:2], [0, 4], module.autoencoders.single(0))
    assert unchanged()


# training


def test_fit_is_srae_on_the_layer_and_its_logits(module, tmp_path):
    """Each category's logit from the layer; seeds from the category, 0 here plus its number."""
    net = network().eval()
    with torch.no_grad():
        z, logits = up_to_layer(net)(IMAGES), net(IMAGES)[:, [2, 0]]
    weights = one_vs_all.sample_weights(LABELS, [2, 0])
    direct = srae.fit(
        z,
        logits,
        weights,
        srae.Objective(),
        SETTINGS["size"],
        SETTINGS["recipe"],
        seeds=[2, 0],
        order=0,
        name="direct",
        folder=tmp_path,
    ).model
    torch.testing.assert_close(dict(module.autoencoders.state_dict()), dict(direct.state_dict()), atol=1e-5, rtol=1e-4)
    assert module.categories == (2, 0)
    with torch.no_grad():
        torch.testing.assert_close(module(IMAGES), direct(z), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(module.contributions(IMAGES), direct.contributions(z), atol=1e-5, rtol=1e-4)


def test_contributions_sum_to_the_output(module):
    contributions = module.contributions(IMAGES)
    assert contributions.shape == (2, 30, 4)
    torch.testing.assert_close(module(IMAGES), contributions.sum(2).T)
    assert not contributions.requires_grad


def test_a_category_is_explained_as_it_is_without_the_others(module, tmp_path):
    alone = ExplanationModule.attach(network(), LAYER)
    assert alone.fit(IMAGES, LABELS, [0], folder=tmp_path, **SETTINGS) is alone
    torch.testing.assert_close(alone(IMAGES)[:, 0], module(IMAGES)[:, 1], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(alone.maps(IMAGES[:3], 0), module.maps(IMAGES[:3], 0), atol=1e-3, rtol=1e-2)


def test_prepare_makes_the_networks_input(tmp_path):
    """In training, in contributions and in maps, which are drawn at the size of what is prepared."""

    def prepare(images):
        return nn.functional.avg_pool2d(images.float() / 255, 2)

    large = (random(30, 3, 16, 16, seed=3) * 255).to(torch.uint8)
    with_it = ExplanationModule.attach(network(), LAYER, prepare)
    without = ExplanationModule.attach(network(), LAYER)
    with_it.fit(large, LABELS, [1], folder=tmp_path, **SETTINGS)
    without.fit(prepare(large), LABELS, [1], folder=tmp_path, **SETTINGS)
    torch.testing.assert_close(with_it(large), without(prepare(large)), atol=1e-4, rtol=1e-3)
    found = with_it.maps(large[:3], 1)
    assert found.shape == (3, 4, 8, 8)
    torch.testing.assert_close(found, without.maps(prepare(large[:3]), 1), atol=1e-3, rtol=1e-2)


def test_numbers_of_samples_and_seed_reach_the_training(tmp_path, monkeypatch):
    seen = {}
    original = srae.fit

    def noted(z, logits, weights, *settings, **more):
        seen.update(weights=weights, **more)
        return original(z, logits, weights, *settings, **more)

    monkeypatch.setattr(srae, "fit", noted)
    module = ExplanationModule.attach(network(), LAYER)
    module.fit(IMAGES, LABELS, [1, 2], folder=tmp_path, positives=4, negatives=9, seed=3, name="few", **SETTINGS)
    assert torch.equal(seen["weights"], one_vs_all.sample_weights(LABELS, [1, 2], 4, 9, seed=3))
    assert (seen["weights"] > 0).sum(0).tolist() == [13, 13]
    assert (list(seen["seeds"]), seen["order"]) == ([3001, 3002], 3)
    assert [path.name.split("-")[0] for path in tmp_path.glob("*.safetensors")] == ["few"]


# errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": [0, 3]}, r"categories must lie between 0 and 2; got \[3\]"),
        ({"categories": [-1]}, r"categories must lie between 0 and 2; got \[-1\]"),
        ({"categories": []}, "categories must lie between 0 and 2; got none"),
        ({"labels": LABELS % 2}, "categories: 2 has no positives among 30 samples"),
        ({"size": srae.Size((8,), 13)}, "features must be at most the 12 dimensions of the layer; got 13"),
        ({"recipe": Recipe()}, "recipe.weight_decay must be 0"),
        ({"objective": srae.Objective(beta=(1.0, 2.0))}, "beta must be one number or 1, one for each module; got 2"),
    ],
)
def test_fit_checks_its_arguments(change, message, tmp_path):
    module = ExplanationModule.attach(network(), LAYER)
    settings = {"images": IMAGES, "labels": LABELS, "categories": [2], "folder": tmp_path, **SETTINGS}
    with pytest.raises(ValueError, match=message):
        module.fit(**{**settings, **change})
    assert module.autoencoders is None
    assert module.categories == ()


def test_what_is_not_trained_explains_nothing(module):
    fresh = ExplanationModule.attach(network(), LAYER)
    for draw in (fresh, fresh.contributions, lambda images: fresh.maps(images, 0)):
        with pytest.raises(ValueError, match="not trained yet, call fit"):
            draw(IMAGES[:1])
    with pytest.raises(ValueError, match="category must be one of 2, 0; got 1"):
        module.maps(IMAGES[:1], 1)


def test_a_map_can_be_read_at_a_coarser_place(module):
    """At the pooling's 4 x 4 positions it is that layer's map, upsampled; a wrong name is answered with near ones."""
    images = IMAGES[:2]
    found = module.maps(images, 0, at="features.2")
    plain = up_to_layer(module.network, *module.autoencoders.single(1))
    targets = torch.arange(4).expand(2, -1)
    expected = attribution.explain("contrastive_excitation_bp", plain, images, targets, layer="2")
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, module.maps(images, 0))
    with pytest.raises(ValueError, match=r"for instance features\.2.*got 'features\.9'"):
        module.maps(images, 0, at="features.9")
