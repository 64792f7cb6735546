import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from xai_lib import bird_study, birds, explanation_metrics, module_scores, parts, srae

BEAK, BELLY, TAIL = (1 + birds.PARTS.index(one) for one in ("beak", "belly", "tail"))  # as they stand in masks
NAN = math.nan


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def mean(values):
    values = [one for one in values if not math.isnan(one)]
    return sum(values) / len(values) if values else NAN


def near(expected, tolerance=1e-5):
    return pytest.approx(expected, abs=tolerance, nan_ok=True)


# drawn birds with random maps: some units have none in some images, one has none at all


def random_maps(drawn, units, seed):
    """Signed maps that prefer some parts, with a little everywhere, as blurred maps have it."""
    likes = torch.rand(len(drawn.labels), units, 16, generator=seeded(seed)) ** 6
    masks = drawn.masks.flatten(1)[:, None].expand(-1, units, -1).long()
    maps = likes.gather(2, masks).unflatten(2, drawn.masks.shape[1:])
    maps = maps * torch.rand(maps.shape, generator=seeded(seed + 1)) - 0.05
    maps[1, 2], maps[:, 3] = -1, 0
    return maps


@pytest.fixture(scope="module")
def drawn():
    return birds.draw(6, 32, species=5, seed=5)


@pytest.fixture(scope="module")
def signed(drawn):
    return random_maps(drawn, 5, 1)


@pytest.fixture(scope="module")
def located(drawn, signed):
    return module_scores.locate(signed, drawn)


@pytest.fixture(scope="module")
def many(drawn, located):
    some = bird_study.take(drawn, torch.arange(4))
    return [located, module_scores.locate(random_maps(some, 4, 3), some)]


@pytest.fixture(scope="module")
def contributions():
    """In the last image no unit contributes positively; the largest contribution is often one without a map."""
    found = torch.randn(6, 5, generator=seeded(2))
    found[:, 3] = 4
    found[1, 2], found[5] = 3, -found[5].abs()
    return found


def normalised(one):
    """Pixel probabilities of a signed map as a list, None where nothing is positive."""
    values = [max(value, 0.0) for row in one.tolist() for value in row]
    return [value / sum(values) for value in values] if sum(values) else None


def share(values, mask, wanted):
    return sum(value for value, part in zip(values, mask, strict=True) if part in wanted) / sum(values)


def cosine(one, other):
    dot, *squares = (
        sum(a * b for a, b in zip(*pair, strict=True)) for pair in ((one, other), (one,) * 2, (other,) * 2)
    )
    return dot / math.sqrt(squares[0] * squares[1])


def slow_scores(maps, contributions, drawn):
    """As the texts of the claims have it, loop by loop."""
    found = {name: [] for name in ("discriminative", "covered", "parts", "main", "same", "other")}
    histograms = []
    for m, (given, adds, label) in enumerate(zip(maps, contributions.tolist(), drawn.labels.tolist(), strict=True)):
        mask = drawn.masks[m].flatten().tolist()
        asked = [p + 1 for p in range(15) if drawn.species.discriminative[label, p]]
        visible = [p for p in asked if drawn.parts[m, p - 1, 2] > 0]
        units = {t: normalised(one) for t, one in enumerate(given) if normalised(one)}
        histograms.append({t: [share(one, mask, {p}) for p in range(16)] for t, one in units.items()})
        helping = {t: adds[t] for t in units if adds[t] > 0}
        whole = [sum(add * units[t][i] for t, add in helping.items()) for i in range(len(mask))]
        if helping:
            found["discriminative"].append(100 * share(whole, mask, asked))
        covered = []
        for p in visible:
            inside = [value for value, part in zip(whole, mask, strict=True) if part == p]
            covered.append(100.0 * (mean(inside) > 2 * mean(whole)))
        found["covered"].append(mean(covered))
        for t in helping:
            found["parts"].append(sum(one >= 0.1 for one in histograms[-1][t][1:]))
        area = sum(part in asked for part in mask) / len(mask)
        if area:
            main = max(units, key=lambda t: adds[t])
            found["main"].append(share(units[main], mask, asked) / area)
        pairs = itertools.combinations(histograms[-1].values(), 2)
        found["other"].append(mean(cosine(*pair) for pair in pairs))
    for t in range(maps.shape[1]):
        pairs = itertools.combinations([one[t] for one in histograms if t in one], 2)
        found["same"].append(mean(cosine(*pair) for pair in pairs))
    return {name: mean(values) for name, values in found.items()}


def slow_entropies(shares, kept):
    """Section 4.1: of each unit's mean over the images in which it has a map."""
    found = []
    for t in range(kept.shape[1]):
        rows = [shares[n, t].double().tolist() for n in range(len(kept)) if kept[n, t]]
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        values = [one / sum(means) for one in means]
        found.append(-sum(one * math.log(one) for one in values if one) if rows else NAN)
    return found


# where the maps lie


def test_locate_normalises_maps_and_marks_those_without(located, signed):
    assert located.kept.tolist() == [[not (t == 3 or (n, t) == (1, 2)) for t in range(5)] for n in range(6)]
    for n, t in itertools.product(range(6), range(5)):
        expected = normalised(signed[n, t]) or [0.0] * 32 * 32
        torch.testing.assert_close(located.maps[n, t].flatten(), torch.tensor(expected), atol=1e-7, rtol=1e-4)


def test_locate_lays_the_maps_over_labels_and_masks(located, drawn):
    for n, t in itertools.product(range(6), range(5)):
        one, mask, labels = located.maps[n, t].tolist(), drawn.masks[n].tolist(), drawn.parts[n].tolist()
        at_label = [one[int(y)][int(x)] if seen else 0 for x, y, seen in labels]
        in_mask = [0.0] * 16
        for i, j in itertools.product(range(32), range(32)):
            in_mask[mask[i][j] - 1] += one[i][j]
        assert located.by_label[n, t].tolist() == near(at_label, 1e-7)
        assert located.by_mask[n, t].tolist() == near(in_mask)


def test_locate_has_algorithm_1_with_and_without_its_distance(located, drawn):
    for found, distance in ((located.by_region, "region"), (located.by_plain, "none")):
        expected = parts.voronoi(located.maps, drawn.parts, drawn.boxes, distance=distance)
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(located.by_plain.sum(2), located.kept.float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(located.by_plain[..., -1], located.by_region[..., -1])
    assert (located.by_region[..., :-1].sum(2) < located.by_plain[..., :-1].sum(2))[located.kept].all()


@pytest.mark.parametrize("by", ["by_region", "by_plain", "by_label", "by_mask"])
def test_localities_are_the_slow_form(located, by):
    found = module_scores.localities(located, by)
    assert found.tolist() == near(slow_entropies(getattr(located, by), located.kept))
    assert found.isnan().tolist() == [False, False, False, True, False]
    assert by != "by_region" or torch.equal(found.nan_to_num(), module_scores.localities(located).nan_to_num())


# the numbers of one category


def test_the_random_case_has_what_matters(located, contributions, drawn):
    """Hidden parts among those asked for, parts covered and not, weights on maps that are not there."""
    asked = drawn.species.discriminative[drawn.labels]
    assert (asked & (drawn.parts[:, :, 2] == 0)).any()
    main = contributions.argmax(1, keepdim=True)
    assert located.kept.gather(1, main)[:, 0].tolist() == [False] * 5 + [True], "the largest contributes without a map"
    assert 10 < module_scores.scores(located, contributions, drawn)["covered"] < 90


def test_scores_are_the_slow_form(located, signed, contributions, drawn):
    found = module_scores.scores(located, contributions, drawn)
    expected = slow_scores(signed, contributions, drawn)
    assert {name: found[name] for name in expected} == near(expected, 1e-3)
    assert not any(math.isnan(one) for one in found.values())
    assert found["locality"] == near(mean(slow_entropies(located.by_region, located.kept)))
    assert found["locality_true"] == near(mean(slow_entropies(located.by_mask, located.kept)))


def test_scores_have_the_orthogonality_of_the_maps_over_all_images(located, contributions, drawn):
    rows = located.maps[:, [0, 1, 2, 4]].double().transpose(0, 1).flatten(1).numpy()
    matrix = np.corrcoef(rows)
    found = module_scores.scores(located, contributions, drawn)
    assert found["kept"] == 4
    assert found["o1"] == near(np.sqrt((matrix**2).sum()) - 2)
    assert found["o2"] == near(-np.log(np.linalg.det(matrix)))


def test_scores_of_one_unit_are_those_of_its_own_map(located, signed, drawn):
    """ExcitationBP: ones as contributions; there is no other unit in the same image."""
    fields = ("maps", "kept", "by_region", "by_plain", "by_label", "by_mask")
    single = module_scores.Located(*(getattr(located, one)[:, :1] for one in fields))
    found = module_scores.scores(single, torch.ones(6, 1), drawn)
    expected = slow_scores(signed[:, :1], torch.ones(6, 1), drawn)
    assert {name: found[name] for name in expected} == near(expected, 1e-3)
    assert math.isnan(found["other"])
    assert found["o1"] == found["o2"] == 0


def test_scores_ignore_the_scale_of_maps_and_contributions(located, signed, contributions, drawn):
    scales = torch.rand(6, 5, 1, 1, generator=seeded()) + 0.5
    found = module_scores.scores(module_scores.locate(signed * scales, drawn), 7 * contributions, drawn)
    assert found == near(module_scores.scores(located, contributions, drawn), 1e-3)


def test_a_unit_without_maps_changes_nothing(located, signed, contributions, drawn):
    alive = [0, 1, 2, 4]
    found = module_scores.scores(module_scores.locate(signed[:, alive], drawn), contributions[:, alive], drawn)
    assert found == near(module_scores.scores(located, contributions, drawn))


# toys: 8 x 8 pixels; a beak of 4, a belly of 8 and a tail of 4; the first species differs in its beak, the second in
# belly and tail

MASK = torch.zeros(8, 8, dtype=torch.uint8)
MASK[1:3, 1:3], MASK[4:6, 2:6], MASK[4:6, 6:8] = BEAK, BELLY, TAIL
EVERYWHERE = torch.ones(8, 8)
ON = {part: (part == MASK).float() for part in (BEAK, BELLY, TAIL)}


def toy(*labels, hidden=()):
    truth = torch.zeros(2, 15, dtype=torch.bool)
    truth[0, BEAK - 1] = truth[1, [BELLY - 1, TAIL - 1]] = True
    none = torch.zeros(2, 15, dtype=torch.int64)
    species = birds.Species(("one", "two"), torch.zeros(2, dtype=torch.int64), none, none, truth)
    points = torch.zeros(15, 3)
    for part, place in ((BEAK, (2.5, 2.5, 1)), (BELLY, (4.5, 4.5, 1)), (TAIL, (6.5, 5.5, 1))):
        points[part - 1] = torch.tensor(place) * (part not in hidden)
    count = len(labels)
    every = [one.expand(count, *one.shape) for one in (MASK, points, torch.tensor([1.0, 1, 8, 6]))]
    images = torch.zeros(count, 3, 8, 8, dtype=torch.uint8)
    return birds.Birds(images, torch.tensor(labels), *every, species)


def toy_scores(units, contributions, *labels, hidden=(), masks=None):
    """Scores of the same maps in each image."""
    drawn = toy(*labels, hidden=hidden)
    drawn = drawn if masks is None else replace(drawn, masks=masks)
    located = module_scores.locate(torch.stack(units).expand(len(labels), -1, -1, -1), drawn)
    return module_scores.scores(located, torch.tensor(contributions).float().expand(len(labels), -1), drawn)


def test_a_map_on_the_one_discriminative_part():
    found = toy_scores([ON[BEAK]], [1], 0, 0)
    assert found == near(
        {
            **{"locality": 0, "locality_true": 0, "o1": 0, "o2": 0, "kept": 1},
            **{"discriminative": 100, "covered": 100, "parts": 1, "same": 1, "other": NAN, "main": 64 / 4},
        }
    )
    assert found["locality"] == found["locality_true"] == 0, "exactly"


def test_a_map_on_another_part_alone():
    found = toy_scores([ON[BELLY]], [1], 0)
    assert [found[name] for name in ("discriminative", "covered", "parts", "main")] == [0, 0, 1, 0]


def test_a_uniform_map_covers_nothing():
    found = toy_scores([EVERYWHERE], [1], 0, 1)
    assert [found[name] for name in ("covered", "main")] == near([0, 1])
    assert found["discriminative"] == near(100 * (4 / 64 + 12 / 64) / 2)
    assert found["parts"] == 1, "the belly alone has a tenth of the image"
    assert found["locality_true"] == near(-sum(n / 64 * math.log(n / 64) for n in (4, 8, 4, 48)))
    assert math.isnan(found["o1"]), "a constant has no correlation"
    assert math.isnan(found["o2"])


def test_two_equal_units():
    found = toy_scores([ON[BEAK]] * 2, [1, 3], 0, 0)
    assert found["o2"] == math.inf
    assert [found[name] for name in ("o1", "same", "other", "kept")] == near([2 - math.sqrt(2), 1, 1, 2])


def test_two_units_show_the_two_aspects_of_which_one_map_has_one():
    both, one = toy_scores([ON[BELLY], ON[TAIL]], [1, 1], 1, 1), toy_scores([ON[BELLY]], [1], 1, 1)
    merged = toy_scores([ON[BELLY] + ON[TAIL]], [1], 1, 1)
    assert [each["covered"] for each in (both, one, merged)] == [100, 50, 100]
    assert [each["parts"] for each in (both, one, merged)] == [1, 1, 2]
    assert [each["discriminative"] for each in (both, one, merged)] == near([100, 100, 100])
    assert [both["same"], both["other"]] == near([1, 0])


def test_units_weigh_by_their_positive_contribution():
    """3/4 on the beak, 1/4 on the tail of the second species; the unit that speaks against it does not count."""
    found = toy_scores([ON[BEAK], ON[TAIL], ON[BELLY] + ON[TAIL]], [3, 1, -5], 1)
    assert found["discriminative"] == near(25)
    assert found["covered"] == 50, "1/16 on average on the tail, above 2/64"
    assert found["parts"] == 1, "not that of the third unit, which has two"
    assert found["main"] == 0


def test_the_main_unit_is_that_of_each_image():
    drawn = toy(0, 0)
    located = module_scores.locate(torch.stack([ON[BEAK], EVERYWHERE]).expand(2, -1, -1, -1), drawn)
    found = module_scores.scores(located, torch.tensor([[2.0, 1.0], [-2.0, -1.0]]), drawn)
    assert found["main"] == near((16 + 1) / 2)


def test_a_part_is_covered_only_above_twice_the_mean():
    """Exact in binary: 2/64 on each pixel of the beak, 56 others of 1/64, 4 without."""
    edge = EVERYWHERE + ON[BEAK]
    edge[7, :4] = 0
    assert toy_scores([edge], [1], 0)["covered"] == 0
    assert toy_scores([edge + 0.01 * ON[BEAK]], [1], 0)["covered"] == 100


def test_a_hidden_part_is_not_asked_for():
    assert toy_scores([ON[BELLY]], [1], 1, hidden=[TAIL])["covered"] == 100
    assert math.isnan(toy_scores([ON[BELLY]], [1], 1, hidden=[TAIL, BELLY])["covered"])


def test_an_image_that_shows_no_discriminative_part_has_no_answer_for_the_main_unit():
    masks = torch.stack([MASK, MASK * (MASK != BEAK)])
    found = toy_scores([ON[BEAK]], [1], 0, 0, masks=masks)
    assert found["main"] == near(16), "of the first image alone"
    assert found["discriminative"] == near(50)


def test_one_image_has_no_other_to_be_like():
    assert math.isnan(toy_scores([ON[BEAK], ON[TAIL]], [1, 1], 0)["same"])


def test_no_positive_contribution_is_a_module_without_map():
    located = module_scores.locate(torch.stack([ON[BEAK], ON[TAIL]])[None], toy(0))
    assert module_scores.module_map(located, torch.tensor([[-1.0, 0.0]])).abs().max() == 0
    found = toy_scores([ON[BEAK], ON[TAIL]], [-1, 0], 0, 0)
    assert math.isnan(found["discriminative"])
    assert math.isnan(found["parts"])
    assert found["covered"] == 0, "what is not there covers nothing"
    assert found["main"] == 0, "the tail's, whose contribution is the largest"
    assert [found["same"], found["other"], found["kept"]] == near([1, 0, 2])


def test_module_map_is_the_weighted_mean(located, contributions):
    found = module_scores.module_map(located, contributions)
    for n in range(6):
        weights = {t: contributions[n, t].item() for t in range(5) if located.kept[n, t] and contributions[n, t] > 0}
        expected = sum(weight * located.maps[n, t].double() for t, weight in weights.items())
        expected = expected / sum(weights.values()) if weights else torch.zeros(32, 32)
        torch.testing.assert_close(found[n].double(), expected.double(), atol=1e-7, rtol=1e-5)
        assert found[n].sum().item() == near(float(bool(weights)))


def test_all_dead_has_no_answer():
    """Also for the main unit: the share of a map that is not there is not 0."""
    found = toy_scores([0 * EVERYWHERE, -EVERYWHERE], [1, 2], 0, 0)
    assert found.pop("kept") == found.pop("covered") == 0
    assert [name for name, value in found.items() if not math.isnan(value)] == []


def test_an_image_without_any_map_leaves_the_numbers_of_the_others():
    drawn = toy(0, 0)
    maps = torch.stack([ON[BEAK], 0 * EVERYWHERE])[:, None]
    found = module_scores.scores(module_scores.locate(maps, drawn), torch.ones(2, 1), drawn)
    assert [found[name] for name in ("discriminative", "parts", "main", "locality")] == near([100, 1, 16, 0])
    assert math.isnan(found["same"]), "one image with a map"


# over all x-features and categories


def slow_ranks(values):
    return [sum(other < one for other in values) + (sum(other == one for other in values) + 1) / 2 for one in values]


def slow_correlation(x, y):
    a, b = mean(x), mean(y)
    x, y = [one - a for one in x], [one - b for one in y]
    norms = math.sqrt(sum(one * one for one in x) * sum(one * one for one in y))
    return sum(one * other for one, other in zip(x, y, strict=True)) / norms if norms else NAN


def slow_rank_correlation(x, y):
    pairs = [pair for pair in zip(x, y, strict=True) if not any(map(math.isnan, pair))]
    return slow_correlation(*map(slow_ranks, zip(*pairs, strict=True))) if len(pairs) > 1 else NAN


def test_rank_correlation_by_hand():
    one = torch.tensor([1.0, 5.0, 2.0, 9.0])
    assert module_scores.rank_correlation(one, one.exp()) == near(1)
    assert module_scores.rank_correlation(one, -one) == near(-1)
    tied = module_scores.rank_correlation(torch.tensor([1.0, 2, 2, 3]), torch.tensor([1.0, 2, 3, 4]))
    assert tied == near(math.sqrt(0.9)), "ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 over the root of 4.5 times 5"


def test_rank_correlation_is_the_slow_form_without_pairs_that_have_nan():
    x, y = torch.randint(0, 9, (2, 80), generator=seeded()).float()
    y, x[3], y[3:5] = y + x, NAN, NAN
    found = module_scores.rank_correlation(x, y)
    assert found == near(slow_rank_correlation(x.tolist(), y.tolist()), 1e-12)
    assert 0.3 < found < 0.95


@pytest.mark.parametrize(
    ("x", "y"), [([], []), ([1], [2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [0, 0, NAN]), ([NAN, 1, 2], [1, 2, NAN])]
)
def test_rank_correlation_has_no_answer(x, y):
    assert math.isnan(module_scores.rank_correlation(torch.tensor(x).float(), torch.tensor(y).float()))


def slow_order_correlation(x, y):
    """Tau-b: pairs in order less pairs out of order, over the root of the pairs without a tie in either."""
    signs = [(np.sign(a - b), np.sign(c - d)) for (a, c), (b, d) in itertools.combinations(zip(x, y, strict=True), 2)]
    untied = [sum(abs(pair[k]) for pair in signs) for k in (0, 1)]
    return sum(one * other for one, other in signs) / math.sqrt(untied[0] * untied[1])


def test_order_correlation_is_the_slow_form():
    x, y = torch.randint(0, 7, (2, 25), generator=seeded()).float()
    y = y + x
    found = module_scores.order_correlation(x, y)
    assert found == near(slow_order_correlation(x.tolist(), y.tolist()), 1e-9)
    assert module_scores.order_correlation(y, x) == near(found, 1e-12)
    assert module_scores.order_correlation(x, -2 * y) == near(-found, 1e-12)
    assert module_scores.order_correlation(x, x) == near(1)


def test_order_correlation_by_hand():
    """Of three pairs two are in order; of five methods that tie in one pair, all of the other nine."""
    assert module_scores.order_correlation(torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 9, 2])) == near(1 / 3)
    tied = module_scores.order_correlation(torch.arange(5.0), torch.tensor([1.0, 1, 2, 3, 4]))
    assert tied == near(9 / math.sqrt(90))


@pytest.mark.parametrize("x", [[1, 1, 1, 1], [1, 2, 3, NAN]])
def test_order_correlation_has_no_answer(x):
    assert math.isnan(module_scores.order_correlation(torch.tensor(x).float(), torch.arange(4.0)))


def rows_of(many, by):
    """What lists of shares there are, over x-features and images that have a map."""
    return [
        getattr(one, by)[n, t].double().tolist()
        for one in many
        for n, t in itertools.product(*map(range, one.kept.shape))
        if one.kept[n, t]
    ]


@pytest.mark.parametrize("by", ["by_label", "by_region", "by_plain"])
def test_fidelity_is_the_slow_form(many, by):
    found = module_scores.fidelity(many, by)
    truth, stand_in = rows_of(many, "by_mask"), rows_of(many, by)
    expected = [slow_rank_correlation(*([row[p] for row in rows] for rows in (stand_in, truth))) for p in range(15)]
    assert found.tolist() == near(expected, 1e-9)
    assert found.isfinite().sum() > 10
    assert by != "by_label" or torch.equal(found.nan_to_num(), module_scores.fidelity(many).nan_to_num())


def test_fidelity_of_the_truth_is_one_and_none_for_a_part_that_is_never_seen():
    drawn = toy(0, 1)
    located = module_scores.locate(torch.rand(2, 3, 8, 8, generator=seeded()), drawn)
    found = module_scores.fidelity([located], "by_mask")
    seen = [part - 1 for part in (BEAK, BELLY, TAIL)]
    assert found[seen].tolist() == near([1, 1, 1])
    assert found.isnan().sum() == 12


LARGE = [birds.PARTS.index(one) for one in ("left wing", "right wing", "tail", "belly")]
SMALL = [birds.PARTS.index(one) for one in ("left eye", "right eye", "beak")]


@pytest.mark.parametrize("by", ["by_label", "by_region", "by_plain"])
def test_histogram_error_is_the_slow_form(many, by):
    errors, biases = [], []
    for stand_in, truth in zip(rows_of(many, by), rows_of(many, "by_mask"), strict=True):
        difference = [a / sum(stand_in[:15]) - b / sum(truth[:15]) for a, b in zip(stand_in[:15], truth, strict=False)]
        errors.append(mean(abs(difference[p]) for p in LARGE))
        biases.append(mean(difference[p] for p in LARGE) - mean(difference[p] for p in SMALL))
    assert module_scores.histogram_error(many, by) == near((mean(errors), mean(biases)), 1e-9)
    assert mean(errors) > 0.001


def tables(**named):
    """A Located of one image with these rows {part: share}, one for each unit; the first table where none is given."""
    sizes = {"by_region": 16, "by_plain": 16, "by_label": 15, "by_mask": 16}
    rows = {name: named.get(name, next(iter(named.values()))) for name in sizes}
    units = len(rows["by_mask"])
    made = {
        name: torch.tensor([[[row.get(part, 0.0) for part in range(size)] for row in rows[name]]])
        for name, size in sizes.items()
    }
    return module_scores.Located(torch.zeros(1, units, 2, 2), torch.ones(1, units, dtype=torch.bool), **made)


def test_histogram_error_by_hand():
    """A tenth too much on the tail, too little on the beak; context (15) and what is off the bird do not count."""
    tail, beak = TAIL - 1, BEAK - 1
    one = tables(by_plain=[{tail: 0.3, beak: 0.2, 15: 0.5}], by_mask=[{tail: 0.4, beak: 0.4, 15: 0.2}])
    assert module_scores.histogram_error([one], "by_plain") == near((0.1 / 4, 0.1 / 4 + 0.1 / 3))
    assert module_scores.histogram_error([one], "by_mask") == (0, 0)


def test_histogram_error_leaves_out_maps_without_anything_on_the_bird():
    tail, beak = TAIL - 1, BEAK - 1
    plain = [{tail: 0.6, beak: 0.4}, {tail: 1.0}, {15: 1.0}]
    one = tables(by_plain=plain, by_mask=[{tail: 0.5, beak: 0.5}, {15: 1.0}, {tail: 1.0}])
    assert module_scores.histogram_error([one], "by_plain") == near((0.1 / 4, 0.1 / 4 + 0.1 / 3))
    gone = replace(one, kept=torch.tensor([[False, True, True]]))
    assert all(map(math.isnan, module_scores.histogram_error([gone], "by_plain")))


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_counts_parts_is_the_slow_form(many, share):
    entropies, numbers = [], []
    for one in many:
        entropies += slow_entropies(one.by_region, one.kept)
        for t in range(one.kept.shape[1]):
            rows = [one.by_mask[n, t].tolist() for n in range(len(one.kept)) if one.kept[n, t]]
            numbers.append(mean(sum(value / sum(row) >= share for value in row[:15]) for row in rows))
    expected = slow_rank_correlation(entropies, numbers)  # the logarithm keeps ranks
    assert module_scores.counts_parts(many, share) == near(expected, 1e-9)
    assert share != 0.05 or module_scores.counts_parts(many) == near(expected, 1e-9)
    assert sum(map(math.isnan, entropies)) == 2


def test_counts_parts_has_a_rank_for_a_unit_on_no_part():
    rows = [{1: 0.5, 2: 0.5}, {1: 0.9, 2: 0.1}, {15: 1.0}]
    one = tables(by_region=rows, by_mask=[{1: 0.5, 2: 0.5}, {1: 0.99, 2: 0.01}, {15: 1.0}])
    assert module_scores.counts_parts([one]) == near(1)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_mixed_is_the_slow_form(located, share):
    expected = []
    for t in range(5):
        rows = [located.by_mask[n, t].tolist() for n in range(6) if located.kept[n, t]]
        sums = [sum(column) for column in zip(*rows, strict=True)]
        expected.append(float(sum(one / sum(sums) >= share for one in sums[:15]) >= 2) if rows else NAN)
    assert module_scores.mixed(located, share).tolist() == near(expected)


def test_mixed_by_hand():
    """What is off the bird counts in the sum, but is no part."""
    one = tables(by_mask=[{1: 0.5, 2: 0.5}, {1: 0.95, 2: 0.05}, {1: 0.5, 15: 0.5}, {1: 0.15, 2: 0.08, 15: 0.77}, {}])
    one = replace(one, kept=torch.tensor([[True, True, True, True, False]]))
    assert module_scores.mixed(one).tolist() == near([1, 0, 0, 0, NAN])


# faithfulness and reconstruction


def test_faithfulness_is_the_slow_form():
    logits = torch.randn(40, 6, generator=seeded()) * 2
    categories = [4, 1]
    predictions = logits[:, categories] + torch.randn(40, 2, generator=seeded(1))
    rows = torch.rand(40, 2, generator=seeded(2)) < 0.8
    positive = rows & (torch.rand(40, 2, generator=seeded(3)) < 0.4)
    found = module_scores.faithfulness(predictions, logits, categories, rows, positive)
    for k, category in enumerate(categories):
        errors, own_errors, sizes, same, own_same, total, residual = [], [], [], [], [], 0.0, 0.0
        centre = mean(logits[i, category].item() for i in range(40) if rows[i, k])
        for i in range(40):
            before, guess = logits[i].tolist(), predictions[i, k].item()
            after = [guess if one == category else value for one, value in enumerate(before)]
            kept = after.index(max(after)) == before.index(max(before))
            if rows[i, k]:
                errors.append(abs(guess - before[category]))
                same.append(kept)
                residual += (guess - before[category]) ** 2
                total += (before[category] - centre) ** 2
            if positive[i, k]:
                own_errors.append(abs(guess - before[category]))
                own_same.append(kept)
                sizes.append(abs(before[category]))
        expected = {
            "freg": mean(errors),
            "r2": 1 - residual / total,
            "fcls": 100 * mean(same),
            "switched": len(same) - sum(same),
            "freg_positive": mean(own_errors),
            "fcls_positive": 100 * mean(own_same),
            "relative": 100 * mean(own_errors) / mean(sizes),
        }
        assert {name: values[k].item() for name, values in found.items()} == near(expected)
        assert found["switched"][k] > 0


def test_switched_is_whole_for_many_samples():
    """10,058 samples of which 3 change: 99.97 percent, back to 3."""
    logits = torch.tensor([1.0, 0.0]).repeat(10_058, 1)
    prediction = torch.ones(10_058, 1)
    prediction[[5, 70, 9000]] = -1
    every = torch.ones(10_058, 1, dtype=torch.bool)
    assert module_scores.faithfulness(prediction, logits, [0], every, every)["switched"].tolist() == [3]


def copying(z, chosen):
    """Autoencoders whose x-features are some dimensions, and whose decoder is the linear fit of all from these."""
    made = srae.Autoencoders(z.shape[1], (), len(chosen[0]), range(len(chosen)))
    for layer in (*made.encoder, *made.decoder):
        layer.bias.data.zero_()
    for k, some in enumerate(chosen):
        made.encoder[0].weight.data[k] = torch.nn.functional.one_hot(torch.tensor(some), z.shape[1]).float()
        made.decoder[0].weight.data[k] = torch.linalg.lstsq(z[:, some].double(), z.double()).solution.T.float()
    return made


def test_reconstruction_is_the_slow_form():
    """Dimensions in all degrees of being reconstructed, two constant ones."""
    sources = torch.rand(60, 3, generator=seeded())
    z = (sources @ torch.rand(3, 32, generator=seeded(1)) ** 3) * torch.linspace(0.1, 3, 32)
    z = z + 0.5 * torch.rand(60, 32, generator=seeded(2))
    z[:, [8, 20]] = torch.tensor([0.0, 0.7])
    logits = z[:, [31, 5]] - 2 * z[:, [30, 3]] + torch.rand(60, 2, generator=seeded(3))
    model = copying(z, [[31, 28, 12], [0, 1, 2]])
    found = module_scores.reconstruction(model, z, logits)
    back = model.decode(model.encode(z)).detach()
    for k in range(2):
        measured = []  # (absolute correlation, R^2) of the 30 that vary
        for d in set(range(32)) - {8, 20}:
            wanted, fit = z[:, d].double().tolist(), back[k, :, d].tolist()
            centre = mean(wanted)
            total = sum((one - centre) ** 2 for one in wanted)
            lost = sum((a - b) ** 2 for a, b in zip(fit, wanted, strict=True))
            measured.append((abs(slow_correlation(wanted, logits[:, k].double().tolist())), 1 - lost / total))
        values = [one for _, one in sorted(measured)]
        expected = {
            "selectivity": mean(values[-3:]) - mean(values[:15]),
            "share": 100 * mean(one > 0.5 for one in values),
            "irrelevant": mean(values[:15]),
        }
        assert {name: one[k].item() for name, one in found.items()} == near(expected, 1e-4)
        assert 0 < found["share"][k] < 100


def test_reconstruction_of_copies_by_hand():
    """One module copies what makes the logit and gives 0 for the rest, below their mean: R^2 is negative there."""
    z = torch.rand(50, 20, generator=seeded())
    logits = (z[:, 0] + z[:, 1])[:, None]
    model = copying(z, [[0, 1]])
    model.decoder[0].weight.data[0, 2:] = 0
    found = module_scores.reconstruction(model, z, logits)
    assert found["share"].item() == near(10)
    assert found["irrelevant"].item() < -1
    assert found["selectivity"].item() == near(1 - found["irrelevant"].item())


def test_reconstruction_has_no_answer_without_a_dimension_that_varies():
    z = torch.ones(9, 4)
    found = module_scores.reconstruction(copying(z, [[0, 1]]), z, torch.arange(9.0)[:, None])
    assert all(one.isnan().all() for one in found.values())


# tables over seeds and categories


def test_collected_is_a_row_of_categories_for_each_number():
    found = module_scores.collected([{"o1": 1.0, "o2": NAN}, {"o2": 3.0, "o1": 2.0}])
    assert {name: values.tolist() for name, values in found.items()} == {"o1": [1, 2], "o2": near([NAN, 3])}
    assert found["o1"].dtype == torch.float64


def test_column_takes_one_kind_and_one_measure():
    table = {
        ("srae", 7): {"r2": torch.tensor([1.0, 2.0]), "freg": torch.zeros(2)},
        ("srae 9", 7): {"r2": torch.tensor([8.0, 8.0])},
        ("srae", 2): {"r2": torch.tensor([3.0, NAN])},
    }
    assert module_scores.column(table, "srae", "r2").tolist() == [[1, 2], near([3, NAN])]
    assert module_scores.column(table, "srae 9", "r2").tolist() == [[8, 8]]


SEVERAL = torch.tensor([[1.0, NAN, 3.0], [math.inf, 5.0, -math.inf], [NAN, NAN, NAN]])


def test_per_seed_is_the_mean_of_what_is_finite():
    assert module_scores.per_seed(SEVERAL, [4, 0, 2]) == {4: 2, 0: 5}
    assert module_scores.per_seed(SEVERAL[2:], [9]) == {}
    with pytest.raises(ValueError, match="zip"):
        module_scores.per_seed(SEVERAL, [4, 0])


def test_per_category_leaves_out_what_is_not_finite_for_any_seed():
    values = torch.tensor([[1.0, NAN, 3.0, 0.0], [2.0, 1.0, 5.0, math.inf]])
    assert module_scores.per_category(values, [7, 9, 30, 31]) == {7: 1.5, 30: 4}
    with pytest.raises(ValueError, match="zip"):
        module_scores.per_category(values, [7, 9, 30])


def test_a_dimension_that_hardly_ever_is_active_does_not_count():
    """One of 200 samples is above 0: with it the mean R^2 of the half that correlates least would be far below -1."""
    torch.manual_seed(0)
    model = srae.Autoencoders(6, (8,), 3, (0,))
    z = torch.rand(200, 6)
    rare = z.clone()
    rare[:, 5] = 0
    rare[0, 5] = 1e-3
    found = module_scores.reconstruction(model, rare, rare[:, :1])
    back = model.single_decoder(0)(model.single(0)(rare)).detach().double()[:, :5]
    fit = 1 - ((back - rare[:, :5]) ** 2).sum(0) / ((rare[:, :5] - rare[:, :5].mean(0)) ** 2).sum(0)
    assert found["share"].item() == pytest.approx(100 * (fit > 0.5).double().mean().item())
    near = explanation_metrics.correlations_with(rare[:, :5], rare[:, 0]).abs()
    least = fit[near.argsort()[:2]].mean().item()
    assert found["irrelevant"].item() == pytest.approx(least, abs=1e-5)


def test_finite_drops_numbers_and_what_they_leave_empty():
    given = {"a": {1: NAN, 2: 3.0, 5: math.inf}, "b": {1: -math.inf}, "c": {}, "d": {"e": {"f": NAN}}, "g": 2}
    assert module_scores.finite(given) == {"a": {2: 3.0}, "c": {}, "g": 2}
    assert given["b"] == {1: -math.inf}, "what is given stays as it is"
