import dataclasses
import functools
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from xai_lib import concept_study, concept_vae, concepts, data, training, xcnn
from xai_lib.concept_study import Watched, Watching

pytestmark = pytest.mark.usefixtures("light")
SMALL = {"size": 8, "width": 1 / 64, "min_maps": 14}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small(seed=0):
    torch.manual_seed(seed)
    return concept_vae.ConceptVAE(**SMALL)


def grey(count, size=8, seed=0):
    return torch.randint(0, 256, (count, 1, size, size), generator=seeded(seed), dtype=torch.uint8)


def labelled(images, labels, classes=10):
    return data.ImageSet(images, torch.tensor(labels), tuple(map(str, range(classes))), "by hand")


# training that is watched

TENSORS = (grey(10), torch.tensor([0, 1, 2, 3, 10, 11, 12, 13, 10, 11]))
RECIPE = training.Recipe(2, 4, betas=(0.9, 0.999), weight_decay=0.0, drop_by=1.0)
OBJECTIVE = concept_vae.Objective()


def fit(folder, build, loss, **changes):
    recipe = dataclasses.replace(RECIPE, **changes)
    return training.fit(build, loss, TENSORS, recipe, seed=3, name="net", folder=folder, prepare=concept_study.UNIT)


def watched(folder, epochs=2, **changes):
    build = functools.partial(Watched, epochs, 4, **SMALL)
    return fit(folder, build, Watching(OBJECTIVE, grey(6, seed=1), 3), epochs=epochs, **changes)


def test_watching_leaves_the_training_as_it_is(tmp_path):
    plain, noted = fit(tmp_path, functools.partial(concept_vae.ConceptVAE, **SMALL), OBJECTIVE), watched(tmp_path)
    assert plain.losses == noted.losses
    found = noted.model.state_dict()
    assert set(found) - set(plain.model.state_dict()) == {"steps", "curve", "norms"}
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, found[name]), name


def test_the_curve_holds_the_score_after_each_epoch_but_the_last(tmp_path):
    one, two, three = (watched(tmp_path, epochs).model for epochs in (1, 2, 3))
    assert [int(model.steps) for model in (one, two, three)] == [3, 6, 9]
    after = [concept_study.mean_scores(model, grey(6, seed=1))[0].item() for model in (one, two)]
    assert three.curve[:2].tolist() == after
    assert after[0] != after[1]
    assert [model.curve[-1].isnan().item() for model in (one, two, three)] == [True] * 3


def test_notes_are_kept_with_the_weights(tmp_path):
    done, again = watched(tmp_path), watched(tmp_path)
    assert again.reused
    for name in ("steps", "curve", "norms"):
        assert torch.equal(getattr(done.model, name).nan_to_num(), getattr(again.model, name).nan_to_num())
    assert done.model.norms.gt(0).all()


def test_norms_are_those_of_each_layers_gradient():
    torch.manual_seed(0)
    model = Watched(1, 2, **SMALL)
    watching = Watching(OBJECTIVE, grey(2), 10)
    images, labels = TENSORS[0] / 255, TENSORS[1]
    layers = [model.get_submodule(name) for name in concept_study.LAYERS]
    weights = [(one[0] if isinstance(one, nn.Sequential) else one).weight for one in layers]
    for step in range(3):
        torch.manual_seed(step)
        expected = torch.autograd.grad(OBJECTIVE(model, images, labels), weights)
        torch.manual_seed(step)
        model.zero_grad()
        watching(model, images, labels).backward()
        before = model.norms.clone() if step else None
        if step < 2:
            torch.testing.assert_close(model.norms[step], torch.stack([one.norm() for one in expected]))
            assert model.norms[step + 1 :].isnan().all(), "steps to come have no norm"
        else:
            assert torch.equal(model.norms, before), "only the first steps are noted"
    assert (
        len(concept_study.LAYERS) == 12 == len({name for name, _ in model.named_modules()} & set(concept_study.LAYERS))
    )


def test_untrained_is_where_fit_begins(tmp_path):
    build = functools.partial(concept_vae.ConceptVAE, **SMALL)
    begun = fit(tmp_path, build, OBJECTIVE, epochs=1, learning_rate=1e-30).model
    state = torch.get_rng_state()
    found = concept_study.untrained(build, 3)
    assert not found.training
    for name, value in begun.state_dict().items():
        torch.testing.assert_close(value, found.state_dict()[name], rtol=0, atol=1e-20)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("count", "steps"), [(42_000, 312), (10, 6), (10, 7), (10, 10), (7, 1), (980, 26), (101, 50)])
def test_paced_takes_just_so_many_steps(count, steps):
    rows = torch.arange(count)
    (one, two), size = concept_study.paced((rows[:, None], -rows), steps)
    assert math.ceil(len(one) / size) == steps
    assert torch.equal(one[:, 0], -two)
    assert torch.equal(two[:count], -rows)
    assert torch.equal(two[count:], -rows[: len(two) - count])
    if len(two) > count:
        assert math.ceil((len(two) - 1) / size) == steps - 1, "one row less would not do"


def test_repeated_begins_anew():
    assert [one.tolist() for one in concept_study.repeated((torch.arange(3), torch.tensor([5, 6, 7])), 7)] == [
        [0, 1, 2, 0, 1, 2, 0],
        [5, 6, 7, 5, 6, 7, 5],
    ]


@pytest.mark.parametrize(("target", "steps"), [(9.0, 5), (8.0, 10), (6.9, 20), (1.0, 25)])
def test_steps_to_by_hand(target, steps):
    assert concept_study.steps_to(torch.tensor([9.0, 7.0, 8.0, 6.0]), target, 5) == steps


# scores


def test_mean_scores_are_those_of_single_images():
    model, images = small(), grey(5)
    each = torch.cat([concept_vae.scores(model, one[None] / 255) for one in images]).double().mean(0)
    torch.testing.assert_close(concept_study.mean_scores(model, images), each.float())


def test_mixture_weighs_as_60000_to_54000():
    digits, samples = torch.tensor([114.0, 0.0, 5.0]), torch.tensor([0.0, 114.0, 5.0])
    assert concept_study.mixture(digits, samples).tolist() == pytest.approx([60.0, 54.0, 5.0])


def test_joined_keeps_images_and_labels_together():
    digits = labelled(grey(3), [4, 5, 6])
    samples = by_hand([[[9]], [[8]]], [12, 13], size=8)
    images, labels = concept_study.joined(digits, samples)
    assert labels.tolist() == [4, 5, 6, 12, 13]
    assert torch.equal(images, torch.cat([digits.images, samples.images]))


def by_hand(pixels, labels, size=None):
    images = torch.as_tensor(pixels, dtype=torch.uint8)[:, None]
    images = images.expand(-1, -1, size, size).clone() if size else images
    labels, none = torch.tensor(labels, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    edges = torch.zeros(len(labels), 4, dtype=torch.int64)
    return concepts.Concepts(images, labels, labels, edges, concepts.MNIST_WINDOWS[:1], none, none)


def test_least_nll_is_reached_by_the_image_itself():
    images = grey(3, seed=2)
    x = images.double() / 255
    expected = -(torch.xlogy(x, x) + torch.xlogy(1 - x, 1 - x)).sum((1, 2, 3))
    torch.testing.assert_close(concept_study.least_nll(images), expected)
    reached = concept_vae.bernoulli_nll(x.logit(1e-12), x)
    torch.testing.assert_close(concept_study.least_nll(images), reached, rtol=1e-6, atol=1e-6)
    assert concept_study.least_nll(images.gt(99) * torch.tensor(255, dtype=torch.uint8)).eq(0).all()
    half = torch.full((1, 1, 2, 2), 127, dtype=torch.uint8)
    assert concept_study.least_nll(half).item() == pytest.approx(4 * math.log(2), rel=1e-4)


def test_explained_variance_by_hand():
    images = torch.tensor([0, 255, 255, 255], dtype=torch.uint8).view(4, 1, 1, 1)  # variance about 3/4: 3/4 in all
    x = images / 255
    assert concept_study.explained_variance(images, x) == pytest.approx(100)
    assert concept_study.explained_variance(images, torch.full_like(x, 0.75)) == pytest.approx(0)
    assert concept_study.explained_variance(images, torch.ones_like(x)) == pytest.approx(100 * (1 - 4 / 3))
    with pytest.raises(ValueError, match="images must differ; got 2 without variance"):
        concept_study.explained_variance(images[1:3], x[1:3])


def test_diversity_by_hand():
    """Concept 10: two pixels of variance 1/4 and 0; concept 11: of 1/4 and 1/4; concept 12: one image."""
    samples = by_hand([[[0, 255]], [[255, 255]], [[0, 255]], [[255, 0]], [[7, 8]]], [10, 10, 11, 11, 12])
    assert concept_study.diversity(samples) == pytest.approx((0.25 + 0.5 + 0) / 3)
    assert concept_study.diversity(by_hand(torch.zeros(0, 1, 1), [])) == 0


# clusters

POINTS = torch.cat([torch.randn(20, 3, generator=seeded()) + 20 * k for k in range(3)])


@pytest.mark.parametrize("kind", ["kmeans", "mixture"])
def test_clusters_find_what_lies_apart(kind):
    centres, members = concept_study.clusters(POINTS, 3, kind=kind)
    assert [len(one.unique()) for one in members.view(3, 20)] == [1, 1, 1]
    assert len(members.unique()) == 3
    for k in range(3):
        torch.testing.assert_close(centres[k], POINTS[members == k].double().mean(0), rtol=1e-5, atol=1e-5)
    again = concept_study.clusters(POINTS.view(60, 1, 3), 3, kind=kind)
    assert torch.equal(members, again[1])


def test_clusters_check_what_they_are_asked_for():
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"count must be from 1 to the 3 points; got {count}"):
            concept_study.clusters(POINTS[:3], count)
    with pytest.raises(ValueError, match="kind must be kmeans or mixture; got 'ward'"):
        concept_study.clusters(POINTS, 2, kind="ward")


def found(members, count):
    return torch.zeros(count, 2), torch.tensor(members)


def test_counted_by_hand():
    counts = concept_study.counted(found([0, 2, 2, 0, 2], 4), torch.tensor([1, 3, 1, 1, 3]))
    assert counts.tolist() == [[0, 2, 0, 0], [0, 0, 0, 0], [0, 1, 0, 2], [0, 0, 0, 0]]


def test_agreement_by_hand():
    """Clusters of labels 1 1 2, 3 3 1 and 1: labels 1 and 3 lead one, and 5 of 7 points have their cluster's label."""
    labels = torch.tensor([1, 1, 2, 3, 3, 1, 1])
    scores = concept_study.agreement(found([0, 0, 0, 2, 2, 2, 3], 4), labels)
    assert scores["covered"] == 2
    assert scores["purity"] == pytest.approx(5 / 7)
    assert 0 < scores["information"] < 1


def test_agreement_at_its_ends():
    labels = torch.arange(4).repeat(50)
    renamed = concept_study.agreement(found([3, 0, 2, 1] * 50, 4), labels)
    assert renamed == {"covered": 4, "purity": 1.0, "information": pytest.approx(1)}
    chance = concept_study.agreement((torch.zeros(4, 2), torch.randint(0, 4, (200,), generator=seeded())), labels)
    assert chance["information"] == pytest.approx(0, abs=0.05)
    assert concept_study.agreement(found([0, 0], 1), torch.tensor([5, 4]))["covered"] == 1, "the smallest of equals"


def test_representatives_by_hand():
    """Clusters 0 and 3 are led by 7, 1 by 2, and 2 is empty; digit 5 leads none and lies most in 1."""
    model, centres = small(), 100 * torch.randn(4, 1, generator=seeded())
    digits = labelled(grey(9), [7, 7, 5, 2, 2, 2, 5, 5, 7])
    members = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 3])
    drawn = concept_study.representatives(model, digits, (centres, members))
    expected = (concept_vae.generate(model, centres) * 255).round().to(torch.uint8)
    assert {digit: images.tolist() for digit, images in drawn.items()} == {
        2: expected[[1]].tolist(),
        5: expected[[1]].tolist(),
        7: expected[[0, 3]].tolist(),
    }
    assert len({one.numpy().tobytes() for one in expected}) == 4


def test_latents_are_the_means():
    model, images = small(), grey(3)
    torch.testing.assert_close(concept_study.latents(model, images), model.encode(images / 255)[0].flatten(1))


def test_map_clusters_tell_black_from_white():
    model = small()
    images = torch.tensor([0, 255], dtype=torch.uint8).repeat(5).view(10, 1, 1, 1).repeat(1, 1, 8, 8)
    images[::3, :, 0, 0] = 9
    (centres, members), maps = concept_study.map_clusters(model, images, 2)
    assert members[0] != members[1]
    assert torch.equal(members, members[:2].repeat(5))
    assert centres.shape == (2, 10), "components are no more than points"
    torch.testing.assert_close(maps, concept_vae.feature_maps(model, images / 255))


# maps and concepts


def test_correlations_are_the_slow_form():
    maps = torch.randn(3, 4, 4, 4, generator=seeded())
    images = torch.rand(3, 2, 8, 8, generator=seeded(1))
    scores = concept_study.correlations(maps, images)
    small_images = images.view(3, 2, 4, 2, 4, 2).mean((1, 3, 5))  # at half the size: means of 2 x 2
    for n, k in itertools.product(range(3), range(4)):
        expected = np.corrcoef(maps[n, k].double().numpy().ravel(), small_images[n].double().numpy().ravel())[0, 1]
        assert scores[n, k].item() == pytest.approx(expected, abs=1e-6)


def test_correlations_at_their_ends():
    image = torch.rand(1, 1, 4, 4, generator=seeded())
    maps = torch.cat([image, 3 * image + 5, -image, torch.full_like(image, 0.7), torch.zeros_like(image)], 1)
    assert concept_study.correlations(maps, image).tolist() == [pytest.approx([1, 1, -1, 0, 0], abs=1e-6)]
    assert concept_study.correlations(maps, torch.full_like(image, 0.3)).eq(0).all()


def test_map_table_is_the_mean_of_each_concept():
    model, images, labels = small(), grey(5), torch.tensor([11, 10, 11, 3, 10])
    for layer, maps in ((2, 2), (3, 3), (3, concept_vae.feature_maps)):
        each = concept_study.correlations(concept_vae.feature_maps(model, images / 255, layer), images / 255)
        expected = torch.stack([(each[1] + each[4]) / 2, (each[0] + each[2]) / 2])
        torch.testing.assert_close(concept_study.map_table(model, images, labels, [10, 11], maps), expected)
    with pytest.raises(ValueError, match=r"labels must hold each concept; got none of \[12, 14\]"):
        concept_study.map_table(model, images, labels, [10, 14, 12])


def test_match_is_one_to_one_and_best_in_all():
    """Concept 0 would take map 1 too, but 0.8 + 0.7 is more than 0.9 + 0.1."""
    chosen, signs = concept_study.match(torch.tensor([[-0.7, 0.9, 0.0], [0.1, -0.8, 0.0]]))
    assert chosen.tolist() == [0, 1]
    assert signs.tolist() == [-1, -1]
    many = torch.rand(4, 6, generator=seeded()) - 0.5
    best = max(itertools.permutations(range(6), 4), key=lambda one: many[range(4), list(one)].abs().sum())
    assert concept_study.match(many)[0].tolist() == list(best)


def test_match_repeats_where_maps_are_few():
    chosen, signs = concept_study.match(torch.tensor([[0.1, -0.9], [0.2, 0.3], [0.5, 0.0]]))
    assert chosen.tolist() == [1, 1, 0]
    assert signs.tolist() == [-1, 1, 1]


def test_selective_by_hand():
    """Concepts with maps 2, 0, 1: own 0.9, 0.5, 0.1; others 0.2 and 0.4, 0 and 0.6, 0.1 and 0.1."""
    table = torch.tensor([[0.2, 0.4, 0.9, 7.0], [0.5, 0.0, 0.6, 7.0], [0.1, 0.1, 0.1, 7.0]])
    found = concept_study.selective(table, torch.tensor([2, 0, 1]))
    assert found == pytest.approx(((0.9 - 0.3) + (0.5 - 0.3) + (0.1 - 0.1)) / 3)
    assert concept_study.selective(torch.ones(3, 4), torch.tensor([2, 0, 1])) == 0


def test_firing_counts_pairs_in_the_right_order():
    model, digits = small(), labelled(grey(12), [0, 1, 2] * 4, 3)
    mean = concept_vae.feature_maps(model, digits.images / 255).mean((2, 3))
    areas = concept_study.firing(model, digits, torch.tensor([4, 1]))
    for (row, k), c in itertools.product(enumerate((4, 1)), range(3)):
        pairs = [
            (a > b) + 0.5 * (a == b)
            for a, label in zip(mean[:, k].tolist(), digits.labels.tolist(), strict=True)
            for b, other in zip(mean[:, k].tolist(), digits.labels.tolist(), strict=True)
            if label == c != other
        ]
        assert areas[row, c].item() == pytest.approx(sum(pairs) / len(pairs))
    same = labelled(grey(1).expand(6, -1, -1, -1).clone(), [0, 1, 2] * 2, 3)
    assert concept_study.firing(model, same, torch.tensor([4])).eq(0.5).all()


# interventions


def test_composed_keeps_maps_and_drops_the_others():
    model, x = small(), grey(3) / 255
    maps = concept_vae.feature_maps(model, x)
    torch.testing.assert_close(concept_study.composed(model, x, range(14)), model(x))
    torch.testing.assert_close(concept_study.composed(model, x, []), model.finish(torch.zeros_like(maps)).sigmoid())
    without = maps.clone()
    without[:, [0, 1, 4, 5]] = 0
    kept = [2, 3, *range(6, 14)]
    torch.testing.assert_close(concept_study.composed(model, x, kept), model.finish(without).sigmoid())


class Halves(concept_vae.ConceptVAE):
    """Map 10 is the upper half of the image and 11 the lower one; all other maps are ignored."""

    def encode(self, x):
        return x, x

    def features(self, latent, layer):
        maps, middle = latent.repeat(1, 14, 1, 1), latent.shape[2] // 2
        maps[:, 10, middle:] = maps[:, 11, :middle] = 0
        return maps

    def finish(self, maps):
        return 200 * (maps[:, 10:11] + maps[:, 11:12]) - 100

    def forward(self, x):
        return self.finish(self.features(x, 3)).sigmoid()


def test_removal_by_hand():
    """All ink: half of it lies in each half, and switching map 10 off takes the upper one."""
    full = torch.full((2, 1, 4, 4), 255, dtype=torch.uint8)
    corner = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    corner[:, :, 0, 0] = 255
    digits = labelled(torch.cat([full, corner]), [6, 6, 7, 6])
    digits = dataclasses.replace(digits, labels=torch.tensor([6, 6, 7, 7]))
    upper, lower, one_row = (0, 2), (2, 4), (0, 1)
    windows = [
        concepts.Window(digit, label, rows, (0, 4))
        for digit, label, rows in ((6, 10, upper), (6, 10, lower), (6, 10, one_row), (6, 12, upper), (7, 10, upper))
    ]
    points = concept_study.removal(Halves(**SMALL), digits, windows)
    assert points.tolist() == pytest.approx([50, -50, 25, 0, 0], abs=1e-3), "the corner is all in the window already"


class Pooled(concept_vae.ConceptVAE):
    """The latent image is the image at half its size, the same everywhere, or nothing."""

    def __init__(self, kind):
        super().__init__(**SMALL)
        self.kind = kind

    def encode(self, x):
        mean = functional.avg_pool2d(x, 2)
        mean = {"local": mean, "global": mean.mean((2, 3), keepdim=True).expand_as(mean), "nothing": 0 * mean}[
            self.kind
        ]
        return mean, mean


def test_quadrant_share_by_hand():
    images = grey(4).clamp(min=1)
    assert concept_study.quadrant_share(Pooled("local"), images) == pytest.approx(100)
    assert concept_study.quadrant_share(Pooled("global"), images) == pytest.approx(25)
    assert math.isnan(concept_study.quadrant_share(Pooled("nothing"), images))


class Mirrored(Pooled):
    """The left half of the latent image shows the right half of the image, while the upper left quadrant has ink."""

    def encode(self, x):
        mean = super().encode(x)[0]
        mirrored = x[:, :, :4, :4].sum((1, 2, 3), keepdim=True) > 0
        return torch.where(mirrored, mean.flip(3), mean), mean


def test_quadrant_share_leaves_out_quadrants_without_ink():
    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    images[:, :, :4, 4:] = 200
    assert concept_study.quadrant_share(Mirrored("local"), images) == pytest.approx(100), "one quadrant, in its place"
    images[:, :, :4, :4] = 200
    images[:, :, :4, 4:] = 0
    assert concept_study.quadrant_share(Mirrored("local"), images) == pytest.approx(0), "one quadrant, mirrored"


# the classifier


def test_classifier_objective_is_both_losses():
    torch.manual_seed(0)
    model = xcnn.small_cnn((2, 14, 2), size=8)
    images, labels = torch.rand(6, 1, 8, 8, generator=seeded()), torch.tensor([3, 10, 0, 13, 10, 9])
    maps = concept_study.classifier_maps(model, images)
    assert maps.shape == (6, 14, 4, 4)
    assert maps.ge(0).all()
    digits = labels < 10
    expected = functional.cross_entropy(model(images)[digits], labels[digits])
    added = concept_vae.concept_loss(maps, images, labels)
    torch.testing.assert_close(concept_study.ClassifierObjective(2.0)(model, images, labels), expected + 2 * added)
    assert added > 0
    other = concept_study.ClassifierObjective(0.0, first=14)(model, images, labels.clamp(max=9))
    torch.testing.assert_close(other, functional.cross_entropy(model(images), labels.clamp(max=9)))
    alone = concept_study.ClassifierObjective()(model, images, labels.clamp(min=10))
    torch.testing.assert_close(alone, concept_vae.concept_loss(maps, images, labels.clamp(min=10)))


def test_classifier_of_the_study_has_maps_for_all_concepts():
    maps = concept_study.classifier_maps(xcnn.small_cnn((16, 32, 64)), torch.zeros(1, 1, 28, 28))
    assert maps.shape == (1, 32, 14, 14)
    assert max(one.label for one in concepts.MNIST_WINDOWS) < 32
