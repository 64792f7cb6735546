import math

import pytest
import torch
from torch import nn

from xai_lib import birds, cub_study, data, excitation, explanation_metrics, parts, vgg19


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, seed=0):
    return torch.rand(shape, generator=seeded(seed))


# photographs


@pytest.fixture(scope="module")
def pair():
    return [cub_study.load("birds", split, 32, 3, per_species=4) for split in data.SPLITS]


def test_birds_stand_in_with_as_many_of_each_species_as_asked_for(pair):
    train, test = pair
    assert torch.equal(train.labels.bincount(), torch.tensor([4, 4, 4]))
    assert torch.equal(train.images, birds.image_set("train", 32, 12, 3).images)
    assert (train.name.split("/")[0], train.classes) == ("birds", test.classes)
    assert not torch.equal(train.images, test.images)


def test_cub_gets_the_first_species_the_size_and_the_crop(pair, monkeypatch):
    asked = []
    monkeypatch.setattr(cub_study.cub, "image_set", lambda *given, **named: asked.append((given, named)) or pair[0])
    assert cub_study.load("cub", "test", 48, 3, crop="box") is pair[0]
    cub_study.load("cub", "train", 64, 0)
    assert asked == [
        (("test", 48), {"species": [1, 2, 3], "crop": "box"}),
        (("train", 64), {"species": None, "crop": "centre"}),
    ]


def test_an_unknown_set_is_named():
    with pytest.raises(ValueError, match="^dataset must be one of cub, birds; got 'cats'$"):
        cub_study.load("cats", "train", 32, 2)


def test_both_splits_as_one_set_training_first(pair):
    train, test = pair
    both = cub_study.joined(train, test)
    for name in ("images", "labels", "boxes", "parts"):
        assert torch.equal(getattr(both, name)[:12], getattr(train, name)), name
        assert torch.equal(getattr(both, name)[12:], getattr(test, name)), name
    assert (both.classes, len(both)) == (train.classes, 24)


# the network


def small(classes):
    return vgg19.small_vgg(classes, 16, (4, 4), 6)


@pytest.mark.parametrize("classes", [5, 3])
def test_a_pretrained_network_keeps_all_but_its_last_layer(classes):
    """Also where both have as many classes, so that shapes do not tell which layer is new."""
    torch.manual_seed(0)
    trained, fresh = small(5), small(classes)
    new = cub_study.on_top_of(trained, lambda: fresh)
    assert cub_study.last_layer(new) == "classifier.6"
    for name, value in new.state_dict().items():
        same = trained.state_dict()[name]
        if name.startswith("classifier.6."):
            assert value.shape != same.shape or not torch.equal(value, same), name
        else:
            assert torch.equal(value, same), name
    assert new(torch.zeros(2, 3, 16, 16)).shape == (2, classes)


def test_the_last_layer_is_the_last_of_both_networks():
    with torch.device("meta"):
        assert isinstance(network := vgg19.vgg19(7), nn.Module)
    assert network.get_submodule(cub_study.last_layer(network)).out_features == 7


# who trains and who tests


LABELS = torch.arange(3).repeat_interleave(torch.tensor([60, 58, 52]))
SEEN = torch.cat([torch.arange(60) < 30, torch.arange(58) < 30, torch.arange(52) < 30])


@pytest.fixture(scope="module")
def divided():
    return cub_study.divide(LABELS, SEEN, [0, 1, 2])


def test_fifty_positives_train_and_eight_to_ten_are_left(divided):
    """Section 4.2; the third has 52 and trains with 44, so that 8 are left."""
    own = divided.own
    assert (own & (divided.weights > 0)).sum(0).tolist() == [50, 50, 44]
    assert (own & divided.tested).sum(0).tolist() == [10, 8, 8]
    assert torch.equal(own, LABELS[:, None] == torch.arange(3))


def test_negatives_scale_to_what_there_is_four_to_one(divided):
    negative = ~divided.own
    assert (negative & (divided.weights > 0)).sum(0).tolist() == [88, 89, 94]  # four fifths of 110, 112, 118
    assert (negative & divided.tested).sum(0).tolist() == [22, 22, 23]
    few = cub_study.divide(LABELS, SEEN, [0], negatives=40)
    assert [int((~few.own & rows).sum()) for rows in (few.weights > 0, few.tested)] == [40, 10]


def test_no_image_trains_and_tests(divided):
    assert not ((divided.weights > 0) & divided.tested).any()


def test_positives_weigh_as_much_as_negatives_and_the_mean_is_one(divided):
    for weights, own in zip(divided.weights.T.double(), divided.own.T, strict=True):
        assert weights.mean().item() == pytest.approx(1, abs=1e-5)
        assert weights[own].sum().item() == pytest.approx(weights[~own].sum().item(), rel=1e-5)
        assert len(weights[own & (weights > 0)].unique()) == 1


def test_training_and_test_have_their_share_of_what_the_network_has_seen(divided):
    """30 of 60, 30 of 58 and 30 of 52 are seen; 10, 8 and 8 test."""
    assert (divided.own & divided.tested & SEEN[:, None]).sum(0).tolist() == [5, 4, 5]


def test_categories_are_divided_on_their_own_and_at_random(divided):
    again = cub_study.divide(LABELS, SEEN, [2])
    assert torch.equal(again.weights[:, 0], divided.weights[:, 2])
    assert torch.equal(again.tested[:, 0], divided.tested[:, 2])
    tested = (divided.own & divided.tested)[:60, 0].nonzero()[:, 0]
    assert tested.max() - tested.min() > 20, "not the last ones"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"positives": 0}, "positives must be at least 1; got 0"),
        ({"negatives": 0}, "negatives must be at least 1; got 0"),
        ({"left": 0}, "left must be at least 1; got 0"),
        (
            {"left": 58},
            "categories must have more than 58 images, and 5 others; 1 has 58 images, and 112 are of others",
        ),
        ({"categories": [7]}, "categories must have more than 8 images, and 5 others; 7 has 0 images, and 170 are"),
    ],
)
def test_bad_numbers_are_named(given, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        cub_study.divide(LABELS, SEEN, **{"categories": [0, 1], **given})


# maps


@pytest.fixture
def shown(pair):
    return pair[1].take(torch.arange(4), "four")


def test_maps_are_located_by_algorithm_1(shown):
    maps = random(4, 2, 32, 32) - 0.5
    maps[1, 0] = -1  # nothing to show
    found = cub_study.locate(maps, shown)
    expected, kept = excitation.pixel_probabilities(maps)
    assert torch.equal(found.maps, expected)
    assert torch.equal(found.placed, kept)
    assert not found.placed[1, 0]
    torch.testing.assert_close(found.by_region, parts.voronoi(expected, shown.parts, shown.boxes))


def test_a_photograph_without_a_part_or_a_box_counts_nowhere(shown):
    hidden = shown.take(torch.arange(4), "hidden")
    hidden.parts[0, :, 2] = 0
    hidden.boxes[1] = torch.tensor([32.0, 3, 32, 9])
    maps = random(4, 2, 32, 32)
    found, rest = cub_study.locate(maps, hidden), cub_study.locate(maps[2:], shown.take(torch.arange(2, 4), "two"))
    assert found.placed.tolist() == [[False, False], [False, False], [True, True], [True, True]]
    assert torch.equal(cub_study.localities(found), cub_study.localities(rest))
    nowhere = found.take(torch.tensor([True, True, False, False]))
    assert all(math.isnan(cub_study.scores(nowhere)[name]) for name in ("locality", "context"))
    assert cub_study.scores(nowhere)["kept"] == 2, "the maps are there"


def test_units_of_a_network_are_drawn_a_few_at_a_time(shown):
    torch.manual_seed(0)
    network = vgg19.small_vgg(3, 32, (8, 8), 32).eval()
    prepare = data.Normalize(0.5, 0.25)
    (all_at_once, few) = (
        cub_study.unit_maps(network, cub_study.last_layer(network), shown, prepare, [0, 2], together=together)
        for together in (500, 2)
    )
    assert all_at_once.maps.shape == (4, 2, 32, 32)
    assert all_at_once.placed.any()
    torch.testing.assert_close(few.maps, all_at_once.maps)


def test_scores_are_those_of_the_measures(shown):
    found = cub_study.locate(random(4, 3, 32, 32), shown)
    scores = cub_study.scores(found)
    histograms = parts.histogram(found.by_region, found.placed)
    correlations, kept = explanation_metrics.map_correlations(found.maps)
    assert scores["locality"] == pytest.approx(parts.locality(histograms).mean().item())
    assert scores["context"] == pytest.approx(100 * histograms[:, -1].mean().item())
    assert scores["o1"] == explanation_metrics.o1(correlations)
    assert scores["o2"] == explanation_metrics.o2(correlations)
    assert scores["kept"] == kept.sum() == 3


def test_context_is_what_lies_outside_the_box(shown):
    x0, y0, x1, y1 = shown.boxes[0].tolist()
    maps = torch.zeros(1, 1, 32, 32)
    assert min(x0, y0) >= 1, "else there is no outside at the corner"
    maps[0, 0, 0, 0] = 1
    found = cub_study.locate(maps, shown.take(torch.tensor([0]), "one"))
    assert cub_study.scores(found) == {"locality": 0, "context": 100}


def test_one_unit_has_no_orthogonality(shown):
    assert set(cub_study.scores(cub_study.locate(random(4, 1, 32, 32), shown))) == {"locality", "context"}


# table 2


class Brightest(nn.Module):
    """Two logits: how red the image is, and how green."""

    def forward(self, x):
        return x.float().mean((2, 3))[:, :2]


IMAGES = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
IMAGES[:, 0, 0, 0] = 200  # red at the top left
IMAGES[1, 1] = 60  # and green everywhere, so that it is taken for class 1
OTHERS = torch.tensor([45.0, 10.0])


def masked(maps, threshold=0.01):
    black = torch.zeros(3, 1, 1)
    return cub_study.masked(Brightest(), lambda x: x, IMAGES, maps, 0, OTHERS, black, threshold)


def test_whole_images_are_judged_as_they_are():
    """Red is 50 on both; of four in the ranking the two positives are the first. The second is greener than red."""
    assert masked(None) == {"accuracy": 0.5, "precision": 1.0, "kept": 1.0}


def test_what_the_map_shows_is_left():
    top_left = torch.zeros(2, 1, 2, 2)
    top_left[:, :, 0, 0] = 1
    assert masked(top_left) == {"accuracy": 1.0, "precision": 1.0, "kept": 0.25}
    elsewhere = (1 - top_left) / 3  # no red is left: both are ranked last, and a tie goes to class 0
    assert masked(elsewhere) == {"accuracy": 0.5, "precision": 0.5, "kept": 0.75}


def test_the_largest_of_several_maps_counts_and_the_threshold_is_a_share_of_its_peak():
    maps = torch.zeros(2, 2, 2, 2)
    maps[:, 0, 0, 0] = 0.9
    maps[:, 1, 1, 1], maps[:, 1, 0, 1] = 0.004, 0.001
    assert masked(maps)["kept"] == 0.75, "each map is divided by its own peak first"
    assert masked(maps, threshold=0.5)["kept"] == 0.5
