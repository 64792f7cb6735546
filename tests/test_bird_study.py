import itertools

import pytest
import torch

from xai_lib import bird_study, birds, data

BEAK, BELLY, TAIL = (1 + birds.PARTS.index(one) for one in ("beak", "belly", "tail"))  # as they stand in masks


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def drawn():
    return birds.draw(12, 32, species=10, seed=bird_study.SEEDS["test"])


def by_hand(images, masks, labels=None):
    """Birds of two species: the first differs in its beak, the second in belly and tail."""
    truth = torch.zeros(2, 15, dtype=torch.bool)
    truth[0, BEAK - 1] = truth[1, [BELLY - 1, TAIL - 1]] = True
    none = torch.zeros(2, 15, dtype=torch.int64)
    species = birds.Species(("one", "two"), torch.zeros(2, dtype=torch.int64), none, none, truth)
    count = len(masks)
    labels = torch.zeros(count, dtype=torch.int64) if labels is None else torch.tensor(labels)
    parts, boxes = torch.zeros(count, 15, 3), torch.tensor([0.0, 0, 4, 4]).expand(count, 4)
    return birds.Birds(images, labels, torch.tensor(masks, dtype=torch.uint8), parts, boxes, species)


# which images serve what


def test_network_modules_and_tests_see_different_images():
    made = [birds.draw(6, 32, species=10, seed=seed).images for seed in bird_study.SEEDS.values()]
    assert sorted(bird_study.SEEDS) == ["modules", "network", "test"]
    different = {one.numpy().tobytes() for one in torch.cat(made)}
    assert len(different) == 18


def test_categories_are_distinct_species_in_order():
    for species, count in ((200, 30), (10, 10), (7, 1)):
        found = bird_study.categories(species, count).tolist()
        assert found == sorted(set(found))
        assert len(found) == count
        assert set(found) <= set(range(species))


def test_categories_depend_on_the_seed_alone():
    found = [bird_study.categories(200, 30, seed) for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], bird_study.categories(200, 30)), "seed 0 unless said"
    assert not torch.equal(found[0], found[2])
    assert found[0].max() > 100, "of all species, not the first ones"


@pytest.mark.parametrize("count", [0, -1, 11])
def test_categories_checks_their_number(count):
    with pytest.raises(ValueError, match=f"count must lie between 1 and the 10 species; got {count}$"):
        bird_study.categories(10, count)


def slow_tested(labels, chosen, positives, negatives):
    """One list of rows and one of positives for each category."""
    rows, own = [], []
    for category in chosen:
        first = [i for i, label in enumerate(labels) if label == category][:positives]
        others = [i for i, label in enumerate(labels) if label != category][:negatives]
        rows.append(sorted(first + others))
        own.append(first)
    return rows, own


def test_tested_by_hand():
    found = bird_study.tested(torch.tensor([2, 0, 0, 1, 2, 0]), torch.tensor([0, 2]), 2, 3)
    assert found.categories.tolist() == [0, 2]
    assert found.positive.T.int().tolist() == [[0, 1, 1, 0, 0, 0], [1, 0, 0, 0, 1, 0]]
    assert found.rows.T.int().tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0]]


@pytest.mark.parametrize(("positives", "negatives"), [(1, 1), (3, 20), (4, 41)])
def test_tested_is_the_slow_form(positives, negatives):
    labels = torch.arange(60).remainder(8)[torch.randperm(60, generator=seeded())]
    chosen = torch.tensor([1, 4, 7])
    found = bird_study.tested(labels, chosen, positives, negatives)
    rows, own = slow_tested(labels.tolist(), chosen.tolist(), positives, negatives)
    assert [one.nonzero()[:, 0].tolist() for one in found.rows.T] == rows
    assert [one.nonzero()[:, 0].tolist() for one in found.positive.T] == own
    assert found.positive.sum(0).tolist() == [positives] * 3
    assert found.rows.sum(0).tolist() == [positives + negatives] * 3


@pytest.mark.parametrize(
    ("positives", "negatives", "message"),
    [
        (3, 1, "positives must lie between 1 and 2, .*; got 3$"),
        (0, 1, "positives must lie between 1 and 2, .*; got 0$"),
        (2, 4, "negatives must lie between 1 and 3, .*; got 4$"),
        (2, 0, "negatives must lie between 1 and 3, .*; got 0$"),
    ],
)
def test_tested_checks_what_there_is_of_the_scarcest_category(positives, negatives, message):
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    bird_study.tested(labels, torch.tensor([0, 1]), 2, 3)
    with pytest.raises(ValueError, match=message):
        bird_study.tested(labels, torch.tensor([0, 1]), positives, negatives)


def test_tested_names_a_category_without_test_images():
    with pytest.raises(ValueError, match="positives must lie between 1 and 0, .*; got 1$"):
        bird_study.tested(torch.tensor([0, 0, 1]), torch.tensor([0, 5]), 1, 1)


# the birds as a set, and some of them


def test_as_set_holds_the_birds_and_their_truth(drawn):
    found = bird_study.as_set(drawn, "test")
    assert isinstance(found, data.ImageSet)
    assert len(found) == 12
    assert found.classes == drawn.species.names
    for name in ("images", "labels", "boxes", "parts"):
        assert torch.equal(getattr(found, name), getattr(drawn, name)), name
    assert found.masks.dtype == torch.bool
    assert torch.equal(found.masks, drawn.masks != 0)
    assert "[" not in found.name, "a bracket says that a set is a subset of another"
    assert all(one in found.name for one in ("birds/test", "10 species", "32 px", "12 images"))


def test_as_set_has_the_checksum_of_its_images_and_labels(drawn):
    found = bird_study.as_set(drawn, "test")
    again = bird_study.as_set(birds.draw(12, 32, species=10, seed=bird_study.SEEDS["test"]), "test")
    assert found.checksum == again.checksum
    assert found.checksum == data.ImageSet(drawn.images, drawn.labels, drawn.species.names, "by hand").checksum
    assert found.checksum != bird_study.as_set(bird_study.take(drawn, torch.arange(11)), "test").checksum


@pytest.mark.parametrize("part", list(bird_study.SEEDS))
def test_as_set_shares_no_name_with_other_images(part):
    """A record holds names and checksums: one name, one set of images. Those of `data.load` have other seeds."""
    count, size, species = 5, 32, 4
    found = bird_study.as_set(birds.draw(count, size, species, bird_study.SEEDS[part]), part)
    for split in data.SPLITS:
        other = birds.image_set(split, size, count, species)
        assert found.name != other.name or found.checksum == other.checksum


def test_names_differ_between_parts(drawn):
    names = [bird_study.as_set(drawn, part).name for part in bird_study.SEEDS]
    assert len(set(names)) == 3


@pytest.mark.parametrize("rows", [torch.tensor([7, 2, 2]), torch.arange(12) % 5 == 1])
def test_take_keeps_images_and_truth_together(drawn, rows):
    found = bird_study.take(drawn, rows)
    chosen = rows.tolist() if rows.dtype == torch.int64 else [1, 6, 11]
    assert len(found.labels) == 3
    assert found.species is drawn.species
    for (k, i), name in itertools.product(enumerate(chosen), ("images", "labels", "masks", "parts", "boxes")):
        assert torch.equal(getattr(found, name)[k], getattr(drawn, name)[i]), name


# the truth on the images


def test_discriminative_masks_are_the_slow_form(drawn):
    found = bird_study.discriminative_masks(drawn)
    marks = drawn.species.discriminative.tolist()
    expected = [
        [[part > 0 and marks[label][part - 1] for part in row] for row in mask]
        for mask, label in zip(drawn.masks.tolist(), drawn.labels.tolist(), strict=True)
    ]
    assert found.tolist() == expected
    assert 0 < found.sum() < (drawn.masks > 0).sum()


def test_discriminative_masks_by_hand():
    masks = [[[0, BEAK], [BELLY, TAIL]]] * 2 + [[[0, BELLY], [BELLY, 15]]]
    found = bird_study.discriminative_masks(by_hand(torch.zeros(3, 3, 2, 2, dtype=torch.uint8), masks, [0, 1, 0]))
    assert found.int().tolist() == [[[0, 1], [0, 0]], [[0, 0], [1, 1]], [[0, 0], [0, 0]]]


def test_other_ground_leaves_the_bird_and_the_second_leaves_the_ground(drawn):
    before = drawn.images.clone()
    ground, bird = bird_study.other_ground(drawn)
    assert ground.dtype == bird.dtype == torch.uint8
    for image, mask, first, second in zip(drawn.images, drawn.masks > 0, ground, bird, strict=True):
        assert torch.equal(first[:, mask], image[:, mask])
        assert torch.equal(second[:, ~mask], image[:, ~mask])
        assert (first != image).any(0)[~mask].double().mean() > 0.9
        assert (second != image).any(0)[mask].double().mean() > 0.9
    assert torch.equal(drawn.images, before)


def test_other_ground_is_the_slow_form(drawn):
    """Whole numbers: the mean colour may be one off where it is whole up to rounding."""
    found = bird_study.other_ground(drawn)
    images, masks = drawn.images.tolist(), drawn.masks.tolist()
    places = list(itertools.product(range(32), range(32)))
    expected = drawn.images.repeat(2, 1, 1, 1).int().view(2, 12, 3, 32, 32)
    for n, channel in itertools.product(range(12), range(3)):
        other = (n + 1) % 12
        off = [images[other][channel][i][j] for i, j in places if not masks[other][i][j]]
        for i, j in places:
            if masks[n][i][j]:
                expected[1, n, channel, i, j] = images[other][channel][i][j]
            else:
                shown = sum(off) // len(off) if masks[other][i][j] else images[other][channel][i][j]
                expected[0, n, channel, i, j] = shown
    difference = (torch.stack(found).int() - expected).abs()
    hides = (drawn.masks > 0).roll(-1, 0)[:, None]
    assert difference.max() <= 1
    assert (difference[0] * ~hides).max() == difference[1].max() == 0


def test_other_ground_by_hand():
    """The third image is all bird and has no ground to give: black stands in."""
    grey = torch.tensor([[[10, 20], [30, 40]], [[50, 61], [70, 80]], [[90, 91], [92, 93]]], dtype=torch.uint8)
    masks = [[[BEAK, 0], [0, 0]], [[TAIL, 0], [BELLY, 0]], [[15, 1], [2, 3]]]
    ground, bird = bird_study.other_ground(by_hand(grey[:, None].repeat(1, 3, 1, 1), masks))
    assert all(torch.equal(one[:, 0], one[:, 2]) for one in (ground, bird))
    assert ground[:, 0].tolist() == [[[10, 61], [70, 80]], [[50, 0], [70, 0]], [[90, 91], [92, 93]]]
    assert bird[:, 0].tolist() == [[[50, 20], [30, 40]], [[90, 61], [92, 80]], [[10, 20], [30, 40]]]
    masks[1][1] = [0, BELLY]  # the same, with the next bird in the ground's place: the mean of 61 and 70
    ground, _ = bird_study.other_ground(by_hand(grey[:, None].repeat(1, 3, 1, 1), masks))
    assert ground[0, 1].tolist() == [[10, 61], [70, 65]]


def test_mean_colour_is_that_of_all_pixels():
    images = torch.randint(0, 256, (5, 3, 4, 6), generator=seeded(), dtype=torch.uint8)
    images[:, 1] //= 2
    found = bird_study.mean_colour(images)
    assert found.shape == (3, 1, 1)
    for channel in range(3):
        values = [value for image in images[:, channel].tolist() for row in image for value in row]
        assert found[channel, 0, 0].item() == pytest.approx(sum(values) / len(values), abs=1e-4)
