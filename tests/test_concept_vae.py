import math

import pytest
import torch
from torch import distributions, nn

from xai_lib import concept_vae, concepts, training
from xai_lib.concept_vae import ConceptVAE, Objective

pytestmark = pytest.mark.usefixtures("light")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small(seed=0, **settings):
    torch.manual_seed(seed)
    return ConceptVAE(**{"size": 8, "width": 1 / 64, "min_maps": 14, **settings})


def images_of(model, count=5, seed=0):
    return torch.rand(count, *model.image_shape, generator=seeded(seed))


# the network


def test_layers_are_those_of_the_public_code():
    """Channels 512-256-256-128-64, strides 2-1-2-1-2, one 4 x 4 latent image, 256 maps of 14 x 14 in layer 3: FACTS."""
    model, x, shapes = ConceptVAE(), torch.zeros(1, 1, 28, 28), {}
    for name, part in model.named_modules():
        part.register_forward_hook(lambda _, __, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
    mean, log_variance = model.encode(x)
    assert mean.shape == log_variance.shape == (1, 1, 4, 4)
    assert model.finish(model.features(mean)).shape == (1, 1, 28, 28)
    encoder = [(512, 14, 14), (256, 14, 14), (256, 7, 7), (128, 7, 7), (64, 4, 4)]
    decoder = [(64, 4, 4), (128, 7, 7), (256, 7, 7), (256, 14, 14), (512, 14, 14)]
    assert [shapes[f"encoder.layer_{k}"] for k in range(5)] == encoder
    assert [shapes[f"decoder.layer_{k}"] for k in range(5)] == decoder
    assert shapes["latent"] == (2, 4, 4)
    assert shapes["decoder.output"] == (1, 28, 28)
    assert len(model.encoder) == 5
    assert len(model.decoder) == 6
    assert {one.negative_slope for one in model.modules() if isinstance(one, nn.LeakyReLU)} == {0.2}
    assert model.channels == (64, 128, 256, 256, 512)
    assert model.latent_size == (4, 4)


def test_parameters_by_hand():
    """Kernels of 3 x 3 with a bias each: 9 a b + b from a to b channels."""
    encoder = 9 * (1 * 512 + 512 * 256 + 256 * 256 + 256 * 128 + 128 * 64) + 512 + 256 + 256 + 128 + 64
    middle = 9 * 64 * 2 + 2
    decoder = 9 * (1 * 64 + 64 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 512) + 64 + 128 + 256 + 256 + 512 + 1
    assert encoder + middle + decoder == 4_289_603
    assert sum(one.numel() for one in ConceptVAE().parameters()) == 4_289_603


def test_a_narrow_network_keeps_maps_for_all_concepts():
    """A sixteenth of 64, 128, 256, 256, 512, but 32 maps in layer 3, as the concepts of MNIST take maps 10 to 27."""
    model = ConceptVAE(width=1 / 16)
    assert model.channels == (4, 8, 16, 32, 32)
    assert [layer[0].out_channels for layer in model.encoder] == [32, 16, 16, 8, 4]
    assert ConceptVAE(width=1 / 16, min_maps=40).channels == (4, 8, 16, 40, 32)
    assert ConceptVAE(width=1 / 4, min_maps=40).channels == (16, 32, 64, 64, 128)
    assert ConceptVAE(width=1e-9).channels == (1, 1, 1, 32, 1)


@pytest.mark.parametrize(("size", "latent"), [(8, (1, 1)), ((13, 30), (2, 4)), (1, (1, 1)), ((32, 9), (4, 2))])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_size(size, latent, channels):
    model = small(in_channels=channels, size=size)
    x = images_of(model, 2)
    mean, log_variance = model.encode(x)
    assert mean.shape == log_variance.shape == (2, 1, *latent)
    height, width = x.shape[-2:]
    assert model.features(mean).shape == (2, 14, math.ceil(height / 2), math.ceil(width / 2))
    assert model(x).shape == x.shape
    assert concept_vae.scores(model, x).isfinite().all()


def test_decoder_goes_through_any_layer():
    model = small()
    latent = torch.randn(3, 1, 1, 1, generator=seeded())
    caught = []
    model.get_submodule("decoder.layer_3").register_forward_hook(lambda _, __, out: caught.append(out))
    maps = model.features(latent)
    assert torch.equal(maps, caught[0])
    assert maps.lt(0).any(), "a leaky ReLU, not a ReLU"
    images = model.decode(latent)
    assert images.gt(0).all()
    assert images.lt(1).all()
    for layer in range(5):
        maps = model.features(latent, layer)
        assert maps.shape[1] == model.channels[layer]
        torch.testing.assert_close(model.finish(maps, layer).sigmoid(), images)


def test_forward_draws_nothing():
    model = small()
    x = images_of(model)
    state = torch.get_rng_state()
    assert torch.equal(model(x), model.decode(model.encode(x)[0]))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(training.predict(model, x, batch_size=2), model(x))


def test_samples_follow_mean_and_variance_and_torchs_seed():
    """100,000 draws: mean and standard deviation have standard errors of sd / 316 and sd / 447."""
    model = small()
    mean = torch.tensor([-1.0, 0.0, 2.0, 5.0]).view(1, 1, 2, 2).expand(100_000, -1, -1, -1)
    sd = torch.tensor([0.5, 1.0, 2.0, 0.0]).view(1, 1, 2, 2).expand_as(mean)
    torch.manual_seed(3)
    drawn = model.sample(mean, 2 * sd.log())
    torch.testing.assert_close(drawn.mean(0), mean[0], atol=5 * 2 / 316, rtol=0)
    torch.testing.assert_close(drawn.std(0), sd[0], atol=5 * 2 / 447, rtol=0)
    assert (drawn[:, 0, 1, 1] == 5).all()
    torch.manual_seed(3)
    assert torch.equal(model.sample(mean, 2 * sd.log()), drawn)


# reconstruction and divergence


def slow_nll(probabilities, images):
    """-sum x log p + (1 - x) log(1 - p), one pixel at a time."""
    pairs = zip(probabilities.flatten(1).tolist(), images.flatten(1).tolist(), strict=True)
    return [-sum(x * math.log(p) + (1 - x) * math.log(1 - p) for p, x in zip(*one, strict=True)) for one in pairs]


def test_nll_is_the_slow_form():
    logits = torch.randn(4, 2, 3, 5, generator=seeded(), dtype=torch.float64) * 5
    images = torch.rand(4, 2, 3, 5, generator=seeded(1), dtype=torch.float64)
    found = concept_vae.bernoulli_nll(logits, images)
    assert found.tolist() == pytest.approx(slow_nll(logits.sigmoid(), images), rel=1e-11)
    single = concept_vae.bernoulli_nll(logits.float(), images.float())
    assert single.tolist() == pytest.approx(found.tolist(), rel=1e-5)


def test_nll_by_hand():
    """784 even chances: 784 log 2; sure and right: 0; sure and wrong by 200 nats: 200, where a sigmoid is 1 exactly."""
    half = concept_vae.bernoulli_nll(torch.zeros(1, 1, 28, 28), torch.rand(1, 1, 28, 28, generator=seeded()))
    assert half.item() == pytest.approx(784 * math.log(2), rel=1e-6)
    logits = torch.tensor([200.0, -200.0]).view(2, 1, 1, 1)
    assert concept_vae.bernoulli_nll(logits, torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)).tolist() == [0, 0]
    assert concept_vae.bernoulli_nll(logits, torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)).tolist() == [200, 200]
    assert concept_vae.bernoulli_nll(torch.zeros(0, 1, 2, 2), torch.zeros(0, 1, 2, 2)).shape == (0,)


def test_kl_is_that_of_torch():
    mean, log_variance = torch.randn(2, 6, 1, 4, 4, generator=seeded(), dtype=torch.float64) * 2
    normal = distributions.Normal(mean, (log_variance / 2).exp())
    expected = distributions.kl_divergence(normal, distributions.Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(concept_vae.kl_divergence(mean, log_variance), expected)
    zero = torch.zeros(1, 1, 4, 4)
    assert concept_vae.kl_divergence(zero, zero).item() == 0


def test_squared_error_by_hand():
    images = torch.tensor([[0.0, 1.0], [0.5, 0.25]]).view(2, 1, 1, 2)
    assert concept_vae.squared_error(images + 0.5, images).tolist() == [0.5, 0.5]
    assert concept_vae.squared_error(images, images).tolist() == [0, 0]


def test_scores_of_each_image():
    model = small()
    x = images_of(model)
    mean, log_variance = model.encode(x)
    for sampled, latent in ((False, mean), (True, None)):
        torch.manual_seed(7)
        latent = model.sample(mean, log_variance) if latent is None else latent
        torch.manual_seed(7)
        found = dict(zip(concept_vae.SCORES, concept_vae.scores(model, x, sampled).T, strict=True))
        image = model.decode(latent)
        assert found["bernoulli_nll"].tolist() == pytest.approx(slow_nll(image, x), rel=1e-5)
        torch.testing.assert_close(found["squared_error"], ((image - x) ** 2).sum((1, 2, 3)))
        torch.testing.assert_close(found["kl"], concept_vae.kl_divergence(mean, log_variance))
    by_batches = training.predict(model, x, function=concept_vae.scores, batch_size=2)
    torch.testing.assert_close(by_batches, concept_vae.scores(model, x))


def test_sums_are_not_made_in_half_precision():
    """1,000 pixels of even chance, 693.147 nats: bfloat16 knows 692 and 696 there."""
    half = torch.zeros(1, 1, 10, 100, dtype=torch.bfloat16)
    assert concept_vae.bernoulli_nll(half, half).item() == pytest.approx(1000 * math.log(2), rel=1e-6)
    assert concept_vae.squared_error(half + 1, half + 0.5).dtype == torch.float32
    assert concept_vae.kl_divergence(half + 1, half).item() == 500
    assert concept_vae.concept_loss(half + 1, half, torch.tensor([0]), 0).dtype == torch.float32


# the concept loss


def slow_concept_loss(maps, images, labels, first):
    """Sum over concepts of the mean over samples of the mean over pixels; sides halve, so 2 x 2 pixels become one."""
    total = 0.0
    for concept in range(first, maps.shape[1]):
        errors = []
        for k in [k for k, label in enumerate(labels.tolist()) if label == concept]:
            rows, columns = range(maps.shape[2]), range(maps.shape[3])
            blocks = {(i, j): images[k, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for i in rows for j in columns}
            errors.append(sum((maps[k, concept, i, j] - value) ** 2 for (i, j), value in blocks.items()) / len(blocks))
        total += sum(errors) / len(errors) if errors else 0
    return float(total)


LABELS = torch.tensor([2, 11, 3, 10, 11, 13, 11])  # three samples of concept 11, one each of 10 and 13, two digits


@pytest.fixture
def batch():
    maps = torch.randn(7, 14, 3, 4, generator=seeded(), dtype=torch.float64)
    return maps, torch.rand(7, 2, 6, 8, generator=seeded(1), dtype=torch.float64)


@pytest.mark.parametrize("first", [10, 11, 3])
def test_concept_loss_is_the_slow_form(batch, first):
    expected = slow_concept_loss(*batch, LABELS, first)
    assert concept_vae.concept_loss(*batch, LABELS, first).item() == pytest.approx(expected, rel=1e-12)


def test_a_sample_is_compared_at_the_size_of_the_map_as_concepts_make_it():
    images = torch.randint(0, 256, (3, 3, 9, 14), generator=seeded(), dtype=torch.uint8)
    maps = torch.zeros(3, 12, 5, 7)
    maps[:, 11] = concepts.targets(images, (5, 7))
    found = concept_vae.concept_error(maps, images / 255, torch.tensor([11, 11, 10]))
    assert found[:2].tolist() == pytest.approx([0, 0], abs=1e-12)
    assert found[2] > 0.1, "its map 10 is empty"


def test_digits_have_no_concept_error(batch):
    found = concept_vae.concept_error(*batch, LABELS)
    assert found.isnan().tolist() == [True, False, True, False, False, False, False]
    no_concept = torch.zeros(7, dtype=torch.int64)
    assert concept_vae.concept_error(*batch, no_concept).isnan().all()
    assert concept_vae.concept_loss(*batch, no_concept).item() == 0


def test_concept_loss_touches_its_map_and_its_samples_only(batch):
    maps, images = batch
    maps.requires_grad_()
    concept_vae.concept_loss(maps, images, LABELS).backward()
    own = torch.zeros(7, 14, dtype=torch.bool)
    for k in (1, 3, 4, 5, 6):
        own[k, LABELS[k]] = True
    touched = maps.grad.ne(0)
    assert touched[own].all()
    assert not touched[~own].any(), "zero exactly: other maps, and all maps of digits"
    # The more samples of a concept, the less each counts; pixels of a map count alike.
    sample = nn.functional.avg_pool2d(images.mean(1), 2)
    for k, share in ((1, 1 / 3), (3, 1), (5, 1), (6, 1 / 3)):
        difference = maps[k, LABELS[k]].detach() - sample[k]
        torch.testing.assert_close(maps.grad[k, LABELS[k]], 2 * difference * share / 12)


def gradients(objective, labels, images, model):
    model.zero_grad()
    torch.manual_seed(0)
    objective(model, images, labels).backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def test_objective_is_the_sum_of_its_parts():
    model = small().double()
    images, digits = images_of(model, 7).double(), LABELS < 10
    mean, log_variance = model.encode(images)
    torch.manual_seed(0)
    maps = model.features(model.sample(mean, log_variance))
    nll = concept_vae.bernoulli_nll(model.finish(maps), images)
    kl, concept = concept_vae.kl_divergence(mean, log_variance), slow_concept_loss(maps.detach(), images, LABELS, 10)
    for augmented, kept in ((True, slice(None)), (False, digits)):
        torch.manual_seed(0)
        found = Objective(beta=3.0, weight=2.0, augmented=augmented)(model, images, LABELS).item()
        assert found == pytest.approx((nll[kept] + 3 * kl[kept]).mean().item() + 2 * concept, rel=1e-9)


def test_without_weight_concepts_are_images_as_any_other():
    model, images = small(), images_of(small(), 7)
    plain, concept = Objective(weight=0.0), Objective(weight=5.0)
    found = gradients(plain, LABELS, images, model)
    digits = torch.zeros(7, dtype=torch.int64)
    for same in (gradients(plain, LABELS + 99, images, model), gradients(concept, digits, images, model)):
        assert all(torch.equal(one, same[name]) for name, one in found.items())
    assert not torch.equal(
        found["decoder.layer_3.0.weight"], gradients(concept, LABELS, images, model)["decoder.layer_3.0.weight"]
    )


def test_without_augmentation_concepts_enter_the_concept_loss_only():
    """So layers behind layer 3, which reconstruct, get from a batch what its digits alone give them."""
    model, images = small(), images_of(small(), 7)
    objective = Objective(beta=0.0, augmented=False)
    only_concepts = gradients(objective, torch.full((7,), 12), images, model)
    assert not any(
        one.any() for name, one in only_concepts.items() if name.startswith(("decoder.layer_4", "decoder.o"))
    )
    for early in ("encoder.layer_0.0.weight", "latent.weight", "decoder.layer_3.0.weight"):
        assert only_concepts[early].any(), f"{early} learns from the concept loss"
    nothing = gradients(Objective(weight=0.0, augmented=False), torch.full((7,), 12), images, model)
    assert not any(one.any() for one in nothing.values())


# training


def strokes(count, seed):
    """A toy of two concepts on 16 x 16 pixels, a bar at the left (10) and one at the top (11); digits (0) hold both."""
    labels = torch.tensor([0, 10, 11]).repeat(count)
    images = 0.1 * torch.rand(3 * count, 1, 16, 16, generator=seeded(seed))
    places = torch.randint(0, 3, (3 * count,), generator=seeded(seed + 1)) * 4
    for image, label, k in zip(images[:, 0], labels.tolist(), places.tolist(), strict=True):
        if label != 11:
            image[:, k : k + 4] = 0.9
        if label != 10:
            image[k : k + 4] = 0.9
    return images, labels


def toy():
    return ConceptVAE(size=16, width=1 / 16)


RECIPE = training.Recipe(epochs=15, batch_size=32, learning_rate=1e-2, drop_by=1.0)


def own_correlation(model, images, labels):
    """Mean correlation of map c with samples of concept c."""
    maps = training.predict(model, images, function=concept_vae.feature_maps)
    chosen = labels >= 10
    sample = nn.functional.avg_pool2d(images[chosen, 0], 2).flatten(1)
    pairs = torch.stack([maps[chosen, labels[chosen]].flatten(1), sample], 1)
    return sum(torch.corrcoef(pair)[0, 1].item() for pair in pairs) / len(pairs)


def test_map_c_learns_concept_c(tmp_path):
    held_out = strokes(20, 5)

    def score(weight):
        loss = Objective(beta=0.1, weight=weight)
        made = training.fit(toy, loss, strokes(100, 1), RECIPE, seed=0, name="toy", folder=tmp_path)
        assert made.losses[-1] < made.losses[0]
        return own_correlation(made.model, *held_out)

    assert score(20.0) > 0.9
    assert score(0.0) < 0.5


def test_training_repeats_bit_for_bit(tmp_path):
    def fit(folder, **settings):
        loss, recipe = Objective(**settings), training.Recipe(epochs=2, batch_size=16)
        return training.fit(toy, loss, strokes(10, 1), recipe, seed=1, name="toy", folder=tmp_path / folder)

    first, again = fit("a"), fit("b")
    assert not again.reused
    assert first.losses == again.losses
    for name, weight in first.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name]), name
    assert fit("a").reused
    for settings in ({"beta": 4.0}, {"weight": 2.0}, {"augmented": False}, {"first": 11}):
        assert not fit("a", **settings).reused, f"the key holds {settings}"


def test_training_in_half_precision(tmp_path):
    recipe = training.Recipe(epochs=1, batch_size=16, precision="bfloat16")
    made = training.fit(toy, Objective(), strokes(10, 1), recipe, seed=1, name="toy", folder=tmp_path)
    assert math.isfinite(made.losses[0])


def test_generate_takes_centres_of_clusters():
    model = small(size=16)
    latents = torch.randn(5, 1, 2, 2, generator=seeded())
    images = concept_vae.generate(model, latents)
    assert torch.equal(images, model.decode(latents))
    assert not images.requires_grad
    assert torch.equal(concept_vae.generate(model, latents.double().flatten(1)), images)
    assert concept_vae.generate(model, latents[:0]).shape == (0, 1, 16, 16)


# errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0.0}, "width must be above 0 and finite; got 0.0"),
        ({"width": math.inf}, "width must be above 0 and finite; got inf"),
        ({"size": (28, 0)}, r"images and min_maps must be at least 1; got \(1, 28, 0\) and 32"),
        ({"in_channels": 0}, r"images and min_maps must be at least 1; got \(0, 28, 28\) and 32"),
        ({"min_maps": 0}, r"images and min_maps must be at least 1; got \(1, 28, 28\) and 0"),
    ],
)
def test_errors_of_the_network(settings, message):
    with pytest.raises(ValueError, match=message):
        ConceptVAE(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": -1.0}, "beta must be at least 0 and finite; got -1.0"),
        ({"weight": math.nan}, "weight must be at least 0 and finite; got nan"),
        ({"first": 0}, "first must be at least 1 and finite; got 0"),
    ],
)
def test_errors_of_the_objective(settings, message):
    with pytest.raises(ValueError, match=message):
        Objective(**settings)


def test_errors_of_images_layers_and_latents(plain):
    model = plain("concept_vae").ConceptVAE(size=8, width=1 / 64)
    for shape in ((2, 1, 28, 28), (2, 3, 8, 8), (1, 8, 8)):
        with pytest.raises(ValueError, match=rf"x must be images \(N, 1, 8, 8\); got \({', '.join(map(str, shape))}\)"):
            model(torch.zeros(shape))
    latent = torch.zeros(1, 1, 1, 1)
    for layer in (-1, 5):
        for function in (model.features, model.finish):
            with pytest.raises(ValueError, match=f"layer must be from 0 to 4; got {layer}"):
                function(latent, layer)
    with pytest.raises(ValueError, match=r"latents must have 1 x 1 values each; got shape \(3, 16\)"):
        concept_vae.generate(small(), torch.zeros(3, 16))


@pytest.mark.parametrize(("value", "found"), [(255.0, "0 to 255"), (-0.1, "-0.1 to 0"), (math.nan, "nan to nan")])
def test_images_outside_0_to_1_are_told(value, found):
    model = small()
    images = torch.zeros(2, 1, 8, 8)
    images[1, 0, 3, 3] = value
    message = f"images must be from 0 to 1; got {found}"
    for function in (concept_vae.scores, lambda net, x: Objective()(net, x, torch.zeros(2, dtype=torch.int64))):
        with pytest.raises(ValueError, match=message):
            function(model, images)


def test_labels_beyond_the_maps_are_told():
    model = small()
    with pytest.raises(ValueError, match="labels must be below the number of maps, 14; got 14"):
        Objective()(model, images_of(model, 3), torch.tensor([0, 13, 14]))
