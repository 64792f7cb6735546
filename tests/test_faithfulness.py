import copy
import math
import warnings

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from xai_lib import faithfulness, metrics, xcnn

NAN = float("nan")
CURVES = ["deletion", "insertion"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def distinct_maps(number=5, height=6, width=7, seed=0):
    """Maps without ties."""
    orders = [torch.randperm(height * width, generator=seeded(seed + k)) for k in range(number)]
    return torch.stack(orders).view(number, 1, height, width).double() - 11


def first_pixel(images):
    return images[:, 0, 0, 0]


def mean(images):
    return images.mean((1, 2, 3))


def network(classes=3, seed=0):
    """A network with convolution, BatchNorm with statistics of its own, and linear layers."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 42, classes)
    )
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(50, 1, 6, 7) * 3 + 1)
    return model.eval()


class Patterned(nn.Linear):
    """A layer that resets to weights of its own, whatever the random numbers."""

    def reset_parameters(self):
        with torch.no_grad():
            self.weight.copy_(torch.linspace(-1, 2, self.weight.numel()).view_as(self.weight).sin())
            self.bias.zero_()


@pytest.fixture
def bare(plain):
    """The module without shape checks, nor those of the module that it uses."""
    module = plain("faithfulness")
    module.localisation = plain("localisation")
    return module


@pytest.fixture(scope="module")
def quantus():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("quantus", reason="the comparison with Quantus needs it")


# slow forms: loops on Python floats


def slow_curve(score, image, grid, baseline, steps, insert):
    """Sort (value, pixel), change pixel after pixel, score at each share."""
    channels, height, width = image.shape
    pixels = [(y, x) for y in range(height) for x in range(width)]
    pixels.sort(key=lambda one: -grid[one[0]][one[1]].item())
    now, target = (baseline.clone(), image) if insert else (image.clone(), baseline)
    shares, scores, done = [], [], 0
    for step in range(steps + 1):
        while done < step * len(pixels) // steps:
            y, x = pixels[done]
            for channel in range(channels):
                now[channel, y, x] = target[channel, y, x].item()
            done += 1
        shares.append(done / len(pixels))
        scores.append(score(now[None]).item())
    area = sum((shares[k + 1] - shares[k]) * (scores[k] + scores[k + 1]) / 2 for k in range(steps))
    return shares, scores, area


def slow_ranks(values):
    """1 + how many are lower + half of how many others are equal."""
    return [1 + sum(b < a for b in values) + (sum(b == a for b in values) - 1) / 2 for a in values]


def slow_spearman(one, two):
    one, two = slow_ranks(one), slow_ranks(two)
    mean_one, mean_two = sum(one) / len(one), sum(two) / len(two)
    both = sum((a - mean_one) * (b - mean_two) for a, b in zip(one, two, strict=True))
    spread = sum((a - mean_one) ** 2 for a in one) * sum((b - mean_two) ** 2 for b in two)
    return both / math.sqrt(spread) if spread else NAN


# deletion and insertion


def test_deletion_and_insertion_by_hand():
    """Score: the sum of four pixels 8, 4, 2, 1; the order of the map is 4, 8, 1, 2."""
    images, maps = torch.tensor([[[[8.0, 4], [2, 1]]]]), torch.tensor([[[[3.0, 9], [-1, 0]]]])

    def total(images):
        return images.sum((1, 2, 3))

    gone = faithfulness.deletion(total, images, maps, 0.0, steps=4)
    assert gone.shares.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert gone.scores.tolist() == [[15, 11, 3, 2, 0]]
    assert gone.area.tolist() == [(15 / 2 + 11 + 3 + 2) / 4]
    come = faithfulness.insertion(total, images, maps, 0.0, steps=4)
    assert come.scores.tolist() == [[0, 4, 12, 13, 15]]
    assert come.area.tolist() == [(4 + 12 + 13 + 15 / 2) / 4]
    halves = faithfulness.deletion(total, images, maps, 100.0, steps=2)
    assert halves.scores.tolist() == [[15, 203, 400]]
    thirds = faithfulness.deletion(total, images, maps, 0, steps=3)  # four pixels in three steps: 1, 1, 2
    assert thirds.shares.tolist() == [0, 0.25, 0.5, 1]
    assert thirds.area.tolist() == [(15 + 11) / 8 + (11 + 3) / 8 + 3 / 4]


@pytest.mark.parametrize("steps", [1, 4, 42])
@pytest.mark.parametrize("kind", CURVES)
def test_curves_are_the_slow_form(kind, steps):
    images = torch.randn(5, 3, 6, 7, generator=seeded(), dtype=torch.float64)
    baseline = torch.randn(images.shape, generator=seeded(1), dtype=torch.float64)
    maps, weights = distinct_maps(), torch.randn(3, 6, 7, generator=seeded(2), dtype=torch.float64)

    def score(images):
        return (images * weights).sum((1, 2, 3)).sigmoid()

    found = getattr(faithfulness, kind)(score, images, maps, baseline, steps)
    for k in range(5):
        shares, scores, area = slow_curve(score, images[k], maps[k, 0], baseline[k], steps, kind == "insertion")
        assert found.shares.tolist() == pytest.approx(shares, abs=1e-12)
        assert found.scores[k].tolist() == pytest.approx(scores, abs=1e-12)
        assert found.area[k].item() == pytest.approx(area, abs=1e-12)


def test_insertion_is_deletion_from_the_other_end():
    """Deleting the least relevant first undoes an insertion: equal numbers of pixels are left."""
    images, maps = torch.rand(5, 1, 6, 7, generator=seeded(), dtype=torch.float64), distinct_maps()
    come = faithfulness.insertion(mean, images, maps, 0.0, 6)
    gone = faithfulness.deletion(mean, images, -maps, 0.0, 6)
    torch.testing.assert_close(come.scores, gone.scores.flip(1), atol=1e-12, rtol=0)
    torch.testing.assert_close(come.area, gone.area, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", CURVES)
def test_curves_keep_their_value_under_scale_and_shift_of_the_map_and_one_by_one(kind):
    images, maps = torch.rand(6, 2, 6, 7, generator=seeded()), torch.randint(-3, 4, (6, 1, 6, 7), generator=seeded())
    maps, curve = maps.float(), getattr(faithfulness, kind)  # many ties
    found = curve(first_pixel, images, maps, 0.5, 42).scores
    assert torch.equal(curve(first_pixel, images, maps * 4 + 16, 0.5, 42).scores, found)
    alone = [curve(first_pixel, images[k : k + 1], maps[k : k + 1], 0.5, 42).scores for k in range(6)]
    assert torch.equal(torch.cat(alone), found)


def test_ties_go_in_a_random_order_that_the_seed_fixes():
    """Half of the pixels tie: by position, those of the first rows would always go before those of the last."""
    maps = torch.zeros(1, 1, 6, 7)
    maps[..., -1, -1] = -1
    images = torch.arange(42.0).view(1, 1, 6, 7)

    def first_left(images):
        return images.amin((1, 2, 3))

    def found(seed):
        return faithfulness.deletion(first_left, images, maps, 99.0, 42, seed).scores[0, :-1]

    by_position = torch.arange(42, dtype=torch.float64)
    assert torch.equal(found(0), found(0))
    different = {tuple(found(seed).tolist()) for seed in range(5)}
    assert len(different) == 5
    assert all(torch.tensor(one).double().sub(by_position).abs().max() > 5 for one in different)


def test_the_order_of_ties_favours_no_pixel():
    """Mean place of the first pixel over seeds: the middle, to five standard deviations."""
    maps = torch.zeros(1, 1, 6, 7)
    maps[..., -1, -1] = -1
    images = torch.ones(1, 1, 6, 7)
    areas = [faithfulness.deletion(first_pixel, images, maps, 0.0, 42, seed).area.item() for seed in range(144)]
    assert np.mean(areas) == pytest.approx(20.5 / 42, abs=5 * 0.29 / 12)


def test_the_better_map_has_the_lower_deletion_and_the_higher_insertion():
    images = torch.rand(8, 1, 6, 7, generator=seeded())
    maps, noise = images.clone(), torch.rand(images.shape, generator=seeded(1))
    for curve, sign in ((faithfulness.deletion, -1), (faithfulness.insertion, 1)):
        best, random, worst = (curve(mean, images, one, 0.0, 42).area for one in (maps, noise, -maps))
        assert (sign * (best - random) > 0).all()
        assert (sign * (random - worst) > 0).all()


@pytest.mark.parametrize("kind", CURVES)
def test_the_curve_of_a_constant_map_is_not_defined(kind):
    images, maps = torch.rand(3, 1, 6, 7, generator=seeded()), distinct_maps(3).float()
    maps[1] = 2
    found = getattr(faithfulness, kind)(mean, images, maps, 0.0, 4)
    assert found.scores.isnan().all(1).tolist() == found.scores.isnan().any(1).tolist() == [False, True, False]
    assert found.area.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("kind", CURVES)
def test_curves_leave_their_arguments_and_the_random_numbers(kind):
    images = torch.rand(2, 1, 6, 7, generator=seeded()).requires_grad_()
    maps, baseline = distinct_maps(2).float().requires_grad_(), torch.zeros(2, 1, 6, 7)
    before, state = (images.detach().clone(), maps.detach().clone()), torch.get_rng_state()
    found = getattr(faithfulness, kind)(mean, images, maps, baseline, 4)
    assert torch.equal(images, before[0])
    assert torch.equal(maps, before[1])
    assert not baseline.any()
    assert torch.equal(torch.get_rng_state(), state)
    assert not found.area.requires_grad


def test_a_score_may_be_a_probability_or_a_margin_of_a_model():
    model, labels = network(), torch.tensor([0, 1, 2, 1])
    images, maps = torch.randn(4, 1, 6, 7, generator=seeded()), distinct_maps(4).float()

    def probability(images):
        return model(images).softmax(1)[torch.arange(len(images)), labels]

    def margin(images):
        return metrics.margin(model(images), labels, (labels + 1) % 3)

    found = faithfulness.deletion(probability, images, maps, 0.0, 6)
    with torch.no_grad():
        first, last = probability(images).double(), probability(torch.zeros_like(images)).double()
    torch.testing.assert_close(found.scores[:, [0, -1]], torch.stack([first, last], 1), atol=1e-6, rtol=0)
    assert ((found.area > 0) & (found.area < 1)).all()
    assert faithfulness.insertion(margin, images, maps, 0.0, 6).area.shape == (4,)


@pytest.mark.parametrize("kind", CURVES)
def test_curves_check_their_arguments(bare, kind):
    curve = getattr(bare, kind)
    images, maps = torch.rand(2, 3, 6, 7, generator=seeded()), distinct_maps(2).float()

    def refused(message, images=images, maps=maps, baseline=0.0, steps=4, score=mean):
        with pytest.raises(ValueError, match=message) as caught:
            curve(score, images, maps, baseline, steps)
        assert "\n" not in str(caught.value)

    for wrong in (images[:1], images[:, :, :5], images[0]):
        refused(r"images must have the size of maps \(2, 1, 6, 7\); got \(", images=wrong)
    refused(r"maps must be float heatmaps \(N, 1, H, W\); got torch.float32 \(2, 3, 6, 7\)", maps=images)
    refused(r"baseline must be a number or have the shape of images; got \(1, 3, 6, 7\)", baseline=images[:1])
    for value in (NAN, math.inf):
        spoilt = images.clone()
        spoilt[1, 2, 3, 4] = value
        refused(f"images must be finite; got {value}", images=spoilt)
        refused(f"baseline must be finite; got {value}", baseline=spoilt)
        refused(f"baseline must be finite; got {value}", baseline=value)
        refused(f"maps must be finite; got {value}", maps=spoilt[:, 2:])
        got = rf"got shape \(2,\), \[{value}\]"
        refused(f"score must give 2 finite numbers; {got}", score=lambda x, value=value: torch.tensor([1, value]))
    for steps in (0, 43, -1):
        refused(f"steps must lie between 1 and the number of pixels, 42; got {steps}", steps=steps)
    refused(r"score must give 2 finite numbers; got shape \(2, 3\), \[\]", score=lambda x: x.mean((2, 3)))
    refused(r"score must give 2 finite numbers; got shape \(\), \[\]", score=lambda x: x.mean())


# randomised copies


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(before, after):
    return {name.rsplit(".", 1)[0] for name in before if not torch.equal(before[name], after[name])}


def test_randomised_goes_from_the_output_down():
    model = network()
    before, state = weights(model), torch.get_rng_state()
    found = list(faithfulness.randomised(model))
    assert [name for name, _ in found] == ["4", "1", "0"]
    assert [changed(before, weights(one)) for _, one in found] == [{"4"}, {"4", "1"}, {"4", "1", "0"}]
    assert changed(before, weights(model)) == set(), "the model itself stays"
    assert torch.equal(torch.get_rng_state(), state), "and so do the random numbers"
    assert not any(one.training for _, one in found), "copies are in the model's mode"
    assert network().train().training
    assert all(one.training for _, one in faithfulness.randomised(network().train()))


def test_randomised_keeps_the_layers_already_random():
    (_, first), (_, second), (_, third) = faithfulness.randomised(network())
    assert torch.equal(first[4].weight, second[4].weight)
    assert torch.equal(second[4].weight, third[4].weight)


def test_randomised_one_layer_at_a_time_draws_the_same_weights():
    model = network()
    before, whole = weights(model), [one for _, one in faithfulness.randomised(model)][-1]
    for name, one in faithfulness.randomised(model, "independent"):
        assert changed(before, weights(one)) == {name}
        for key, value in one.get_submodule(name).state_dict().items():
            assert torch.equal(value, whole.get_submodule(name).state_dict()[key])


def test_randomised_copies_share_nothing():
    model = network()
    (_, first), (_, second), _ = faithfulness.randomised(model)
    kept = weights(second), weights(model)
    with torch.no_grad():
        for value in first.parameters():
            value.zero_()
    assert changed(kept[0], weights(second)) == changed(kept[1], weights(model)) == set()


def test_randomised_takes_the_model_as_it_was_when_asked():
    model = network()
    before, copies = weights(model), faithfulness.randomised(model)
    with torch.no_grad():
        model[0].weight.zero_()
    assert changed(before, weights(next(copies)[1])) == {"4"}


def test_randomised_resets_batchnorm_to_what_is_untrained():
    model = network()
    assert model[1].running_mean.abs().max() > 0.1
    *_, (_, last) = faithfulness.randomised(model)
    assert weights(last[1]).keys() == weights(nn.BatchNorm2d(4)).keys()
    assert all(torch.equal(value, weights(nn.BatchNorm2d(4))[key]) for key, value in weights(last[1]).items())


def test_randomised_counts_statistics_without_weights_as_a_layer():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, affine=False))
    model[1].running_mean.fill_(3)
    (name, first), _ = faithfulness.randomised(model)
    assert name == "1"
    assert first[1].running_mean.tolist() == [0, 0]
    without = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, affine=False, track_running_stats=False), nn.ReLU())
    assert [name for name, _ in faithfulness.randomised(without)] == ["0"]


def test_randomised_weights_are_those_of_the_seed():
    def last(seed):
        return [one for _, one in faithfulness.randomised(network(), seed=seed)][-1][4].weight

    torch.manual_seed(5)
    first = last(0)
    torch.manual_seed(6)
    assert torch.equal(first, last(0))
    assert not torch.equal(first, last(1))


def test_layers_of_one_shape_get_different_weights_of_the_initial_spread():
    model = nn.Sequential(nn.Linear(50, 50), nn.Linear(50, 50))
    nn.init.constant_(model[0].weight, 9)
    *_, (_, found) = faithfulness.randomised(model)
    assert not torch.equal(found[0].weight, found[1].weight)
    for layer in found:  # torch's own: uniform within 1 / sqrt(50)
        assert layer.weight.abs().max() <= 50**-0.5
        assert layer.weight.std().item() == pytest.approx(50**-0.5 / 3**0.5, rel=0.05)


def test_randomised_takes_a_single_layer_and_an_xcnn():
    [(name, one)] = faithfulness.randomised(nn.Linear(3, 2))
    assert name == ""
    assert isinstance(one, nn.Linear)
    names = [name for name, _ in faithfulness.randomised(xcnn.xcnn_mnist())]
    assert names[0] == "discriminator.13"
    assert names[-2:] == ["generator.decode.0", "generator.encode.0"]
    assert len(names) == 9


class Scaled(nn.Module):
    """A weight that nothing resets."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2), Scaled()), "model must hold no Scaled, without .* got it as '1'"),
        (nn.MultiheadAttention(4, 2), "model must hold no MultiheadAttention, without reset_parameters; got it as ''"),
        (nn.Sequential(nn.ReLU()), "model must have layers with weights; got Sequential without"),
    ],
)
def test_randomised_checks_the_model_when_called(model, message):
    with pytest.raises(ValueError, match=message):
        faithfulness.randomised(model)  # not at the first copy only


def test_randomised_checks_its_order():
    with pytest.raises(ValueError, match="order must be one of top-down, independent; got 'bottom-up'"):
        faithfulness.randomised(network(), "bottom-up")


# rank correlation


def test_rank_correlation_by_hand():
    one = torch.tensor([[[[1.0, 2], [3, 4]]]])
    for rows, expected in (
        ([[10, 20], [30, 400]], 1),
        ([[4, 3], [2, 1]], -1),
        ([[2, 1], [3, 4]], 0.8),  # 1 - 6 (1 + 1) / (4 * 15)
        ([[1, 1], [2, 2]], 4 / math.sqrt(5 * 4)),  # ranks 1.5, 1.5, 3.5, 3.5
    ):
        found = faithfulness.rank_correlation(one, torch.tensor([[rows]]).float())
        assert found.tolist() == [pytest.approx(expected, abs=1e-12)]
        assert faithfulness.target_sensitivity(one, torch.tensor([[rows]]).float()).item() == pytest.approx(
            1 - expected
        )


@pytest.mark.parametrize("absolute", [False, True])
def test_rank_correlation_is_the_slow_form_and_scipys(absolute):
    one = torch.randint(-4, 5, (12, 1, 6, 7), generator=seeded()).double()  # ties
    two = one * 0.5 + torch.randn(one.shape, generator=seeded(1), dtype=torch.float64).round()
    found = faithfulness.rank_correlation(one, two, absolute)
    assert found.dtype == torch.float64
    for k, value in enumerate(found.tolist()):
        a, b = ((each[k].abs() if absolute else each[k]).flatten() for each in (one, two))
        assert value == pytest.approx(slow_spearman(a.tolist(), b.tolist()), abs=1e-12)
        assert value == pytest.approx(scipy.stats.spearmanr(a.numpy(), b.numpy()).statistic, abs=1e-12)
    assert found.min() < 0.7
    assert found.max() <= 1
    same = 1 - faithfulness.target_sensitivity(one, two, absolute)
    torch.testing.assert_close(same, found, atol=1e-12, rtol=0)


def test_rank_correlation_keeps_its_value_under_what_keeps_the_order():
    one, two = torch.randn(2, 9, 1, 6, 7, generator=seeded()).unbind(0)
    found = faithfulness.rank_correlation(one, two)
    for other in (two * 4, two * 4 + 1, two.double().exp().float()):
        torch.testing.assert_close(faithfulness.rank_correlation(one, other), found, atol=1e-12, rtol=0)
    torch.testing.assert_close(faithfulness.rank_correlation(two, one), found, atol=1e-12, rtol=0)
    torch.testing.assert_close(faithfulness.rank_correlation(one, -two), -found, atol=1e-12, rtol=0)
    alone = [faithfulness.rank_correlation(one[k : k + 1], two[k : k + 1]) for k in range(9)]
    torch.testing.assert_close(torch.cat(alone), found, atol=1e-12, rtol=0)


def test_absolute_correlation_does_not_see_signs():
    one = torch.randn(4, 1, 6, 7, generator=seeded())
    assert faithfulness.rank_correlation(one, -one).tolist() == [-1] * 4
    assert faithfulness.rank_correlation(one, -one, absolute=True).tolist() == [1] * 4
    assert faithfulness.target_sensitivity(one, one).tolist() == [0] * 4
    assert faithfulness.target_sensitivity(one, -one).tolist() == [2] * 4


def test_rank_correlation_with_a_constant_map_is_not_defined():
    one = torch.randn(3, 1, 6, 7, generator=seeded())
    two = one.clone()
    one[0], two[1] = 5, 0
    for function, whole in ((faithfulness.rank_correlation, 1), (faithfulness.target_sensitivity, 0)):
        assert function(one, two).isnan().tolist() == [True, True, False]
        assert function(one, two)[2] == whole
    signs = one.sign()
    assert faithfulness.rank_correlation(signs, signs)[2] == 1
    assert faithfulness.rank_correlation(signs, signs, absolute=True).isnan().all(), "constant without its sign"


@pytest.mark.parametrize("name", ["rank_correlation", "target_sensitivity"])
def test_rank_correlation_checks_its_maps(bare, name):
    function, maps = getattr(bare, name), torch.randn(2, 1, 6, 7, generator=seeded())
    with pytest.raises(ValueError, match=r"maps_b must have the shape of maps_a \(2, 1, 6, 7\); got \(1, 1, 6, 7\)"):
        function(maps, maps[:1])
    spoilt = maps.clone()
    spoilt[1, 0, 2, 3] = NAN
    for one, two, culprit in ((spoilt, maps, "maps_a"), (maps, spoilt, "maps_b")):
        with pytest.raises(ValueError, match=f"{culprit} must be finite; got nan"):
            function(one, two)
    with pytest.raises(
        ValueError, match=r"maps_b must be float heatmaps \(N, 1, H, W\); got torch.float32 \(2, 6, 7\)"
    ):
        function(maps, maps[:, 0])


def test_no_images_give_no_results():
    none = torch.zeros(0, 1, 6, 7)
    assert faithfulness.rank_correlation(none, none).shape == (0,)
    assert faithfulness.deletion(mean, none, none, 0.0, 4).area.shape == (0,)


# the sanity checks find what they are for


def gradient(model, images):
    images = images.clone().requires_grad_()
    [found] = torch.autograd.grad(model(images)[:, 0].sum(), images)
    return found


def test_randomisation_tells_a_gradient_from_an_edge_detector():
    """A map of the image alone stays the same through all copies: 1, the worst. A gradient does not."""
    model, images = network(), torch.randn(6, 1, 6, 7, generator=seeded())
    original = gradient(model, images)
    for _, one in faithfulness.randomised(model):
        assert faithfulness.rank_correlation(images, images).tolist() == [1] * 6
        assert faithfulness.rank_correlation(original, gradient(one, images)).abs().mean() < 0.6


# Quantus: its curves have no point at share 0, and its area has steps for width, so the curves are compared


@pytest.mark.parametrize("pixels", [1, 7])
def test_deletion_is_pixel_flipping_of_quantus(quantus, pixels):
    model, labels = network(), torch.tensor([0, 1, 2, 1, 0])
    images, maps = torch.randn(5, 1, 6, 7, generator=seeded()), distinct_maps().float()

    def score(images):
        return model(images).softmax(1)[torch.arange(5), labels]

    metric = quantus.PixelFlipping(
        features_in_step=pixels, perturb_baseline=0.0, abs=False, normalise=False, disable_warnings=True
    )
    expected = metric(
        model=model, x_batch=images.numpy(), y_batch=labels.numpy(), a_batch=maps.numpy(), softmax=True, device="cpu"
    )
    found = faithfulness.deletion(score, images, maps, 0.0, 42 // pixels)
    torch.testing.assert_close(found.scores[:, 1:], torch.tensor(expected).double(), atol=1e-6, rtol=0)
    assert found.scores.std(1).min() > 1e-3


def explain(model, inputs, targets, **_):
    """Gradient times input of the target class, as Quantus calls it."""
    inputs = torch.as_tensor(inputs).clone().requires_grad_()
    chosen = model(inputs)[torch.arange(len(inputs)), torch.as_tensor(targets)].sum()
    return (torch.autograd.grad(chosen, inputs)[0] * inputs).detach().numpy()


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(("ours", "theirs"), [("top-down", "top_down"), ("independent", "independent")])
def test_randomisation_is_that_of_quantus(quantus, ours, theirs, absolute):
    """Quantus seeds each layer alike and we do not, so the layers here reset to a pattern."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), Patterned(42, 8), nn.Tanh(), Patterned(8, 6), nn.Tanh(), Patterned(6, 3)).eval()
    for value in model.parameters():
        nn.init.normal_(value)
    images, labels = torch.randn(5, 1, 6, 7, generator=seeded()), np.array([0, 1, 2, 1, 0])
    original = explain(model, images, labels)
    metric = quantus.MPRT(
        quantus.similarity_func.correlation_spearman,
        layer_order=theirs,
        abs=absolute,
        normalise=False,
        disable_warnings=True,
    )
    expected = metric(
        model=copy.deepcopy(model), x_batch=images.numpy(), y_batch=labels, explain_func=explain, device="cpu"
    )
    expected.pop("original")
    copies = list(faithfulness.randomised(model, ours))
    if ours == "top-down":
        assert list(expected) == [name for name, _ in copies]
    assert expected.keys() == {name for name, _ in copies}
    for name, one in copies:
        maps = torch.from_numpy(explain(one, images, labels))
        found = faithfulness.rank_correlation(torch.from_numpy(original), maps, absolute)
        torch.testing.assert_close(found, torch.tensor(expected[name]).double(), atol=1e-6, rtol=0)


def test_target_sensitivity_is_the_random_logit_test_of_quantus(quantus):
    """With ranks in place of its default, SSIM, and two classes, so that the other class is known."""
    model, labels = network(classes=2), np.array([0, 1, 1, 0, 1])
    images = torch.randn(5, 1, 6, 7, generator=seeded())
    metric = quantus.RandomLogit(
        quantus.similarity_func.correlation_spearman, num_classes=2, normalise=False, disable_warnings=True
    )
    expected = metric(model=model, x_batch=images.numpy(), y_batch=labels, explain_func=explain, device="cpu")
    one, two = (torch.from_numpy(explain(model, images, each)) for each in (labels, 1 - labels))
    found = faithfulness.target_sensitivity(one, two)
    torch.testing.assert_close(found, 1 - torch.tensor(np.array(expected)).double(), atol=1e-6, rtol=0)
    assert found.min() > 0.1
