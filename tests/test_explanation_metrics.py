import itertools
import math

import pytest
import torch

from xai_lib import explanation_metrics as measures


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def near(expected):
    return pytest.approx(expected, abs=1e-6, nan_ok=True)


# faithfulness


def slow_r_squared(found, wanted):
    centre = mean(wanted)
    total = sum((one - centre) ** 2 for one in wanted)
    return 1 - sum((a - b) ** 2 for a, b in zip(found, wanted, strict=True)) / total


def slow_unchanged(logits, replaced):
    """Section 4.1, faithfulness (b): c_r / M. `replaced` holds a dictionary {class: logit} for each example."""
    same = 0
    for row, new in zip(logits, replaced, strict=True):
        after = [new.get(k, one) for k, one in enumerate(row)]
        same += after.index(max(after)) == row.index(max(row))
    return 100 * same / len(logits)


def test_errors_of_a_prediction_by_hand():
    target, prediction = torch.tensor([0.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 2.0])
    assert measures.mean_absolute_error(prediction, target) == 1
    assert measures.r_squared(prediction, target) == pytest.approx(1 - 5 / 8)
    assert (measures.mean_absolute_error(target, target), measures.r_squared(target, target)) == (0, 1)
    assert measures.r_squared(torch.full((3,), 2.0), target) == 0, "the mean explains nothing"
    assert measures.r_squared(-target, target) < -4, "worse than the mean"


def test_errors_of_a_prediction_are_the_slow_forms():
    target = random(203) * 4 + 1000  # far from zero: float32 sums would not do
    prediction = target + random(203, seed=1)
    found, wanted = prediction.tolist(), target.tolist()
    slow = mean(abs(a - b) for a, b in zip(found, wanted, strict=True))
    assert measures.mean_absolute_error(prediction, target) == near(slow)
    assert measures.r_squared(prediction, target) == near(slow_r_squared(found, wanted))
    assert measures.r_squared(prediction * 3 - 7, target * 3 - 7) == pytest.approx(
        measures.r_squared(prediction, target), abs=1e-4
    )


def test_r_squared_of_a_constant_target_is_not_defined():
    for value in (0.0, 0.1, 1e6):  # the mean of seven times 0.1 is not 0.1
        assert math.isnan(measures.r_squared(random(7), torch.full((7,), value)))


def test_unchanged_classes_by_hand():
    logits = torch.tensor([[3.0, 1.0, 0.0], [2.0, 5.0, 0.0], [0.0, 1.0, 4.0], [1.0, 0.0, 2.0]])
    assert measures.unchanged_classes(logits, 0, logits[:, 0]) == 100
    assert measures.unchanged_classes(logits, 0, torch.tensor([2.0, 4.9, -9.0, 2.5])) == 75, "the last changes"
    assert measures.unchanged_classes(logits, 0, torch.tensor([0.5, 6.0, 4.5, 2.5])) == 0
    both = torch.stack([torch.tensor([1.5, 2.0, 0.0, 1.0]), torch.tensor([2.0, 5.0, 1.0, 0.0])], 1)
    for k in (0, 1):  # each alone leaves all classes as they are: 1.5 > 1, 2 < 3; together 1.5 < 2
        assert measures.unchanged_classes(logits, k, both[:, k]) == 100
    assert measures.unchanged_classes_jointly(logits, torch.tensor([0, 1]), both) == 75


def test_unchanged_classes_are_the_slow_form():
    logits, categories = random(150, 6), torch.tensor([4, 1, 5])
    predictions = logits[:, categories] + random(150, 3, seed=1)
    rows = logits.tolist()
    for k, category in enumerate(categories.tolist()):
        slow = slow_unchanged(rows, [{category: one} for one in predictions[:, k].tolist()])
        assert 0 < slow < 100
        assert measures.unchanged_classes(logits, category, predictions[:, k]) == near(slow)
    slow = slow_unchanged(rows, [dict(zip([4, 1, 5], one, strict=True)) for one in predictions.tolist()])
    found = measures.unchanged_classes_jointly(logits, categories, predictions)
    assert found == near(slow)
    order = torch.tensor([2, 0, 1])
    assert measures.unchanged_classes_jointly(logits, categories[order], predictions[:, order]) == found
    assert torch.equal(logits, random(150, 6)), "the logits themselves stay"


def test_a_constant_keeps_the_class_of_all_negatives():
    """Why F_cls says little: with 1 positive in 50, knowing nothing scores 98."""
    logits = random(100, 10).clamp(-3, 3)
    logits[:, 7] = -5
    logits[:2, 7] = 9
    constant = torch.full((100,), -5.0)
    assert measures.unchanged_classes(logits, 7, constant) == 98
    assert measures.unchanged_classes(logits[:2], 7, constant[:2]) == 0, "on positives alone"


def test_equal_logits_go_to_the_first():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert measures.unchanged_classes(logits, 1, torch.tensor([1.0, 0.5])) == 100
    assert measures.unchanged_classes(logits, 0, torch.tensor([1.0, 1.0])) == 50, "a draw in the second: class 0"


# orthogonality


def slow_correlations(maps, per_image):
    """Covariances of the maps of each two x-features (lists m x n x h x w), then diag(C)^-1/2 C diag(C)^-1/2."""
    samples = [[[pixel for row in image[k] for pixel in row] for image in maps] for k in range(len(maps[0]))]

    def covariance(one, two):
        return mean((a - mean(one)) * (b - mean(two)) for a, b in zip(one, two, strict=True))

    def whole(j, k):
        if per_image:
            return mean(covariance(a, b) for a, b in zip(samples[j], samples[k], strict=True))
        return covariance(sum(samples[j], []), sum(samples[k], []))

    n = range(len(samples))
    return [[whole(j, k) / math.sqrt(whole(j, j) * whole(k, k)) for k in n] for j in n]


def slow_determinant(rows):
    """Leibniz: the signed sum over all permutations."""
    total = 0.0
    for order in itertools.permutations(range(len(rows))):
        swaps = sum(a > b for a, b in itertools.combinations(order, 2))
        total += (-1) ** swaps * math.prod(rows[k][one] for k, one in enumerate(order))
    return total


@pytest.mark.parametrize("per_image", [False, True])
def test_orthogonality_is_the_slow_form(per_image):
    maps = random(3, 4, 3, 5) + random(3, 4, 1, 1, seed=1)
    maps[:, 2] += maps[:, 0]
    slow = slow_correlations(maps.double().tolist(), per_image)
    found, kept = measures.map_correlations(maps, per_image=per_image)
    assert kept.tolist() == [True] * 4
    torch.testing.assert_close(found, torch.tensor(slow, dtype=torch.float64), atol=1e-6, rtol=0)
    frobenius = math.sqrt(sum(one**2 for row in slow for one in row))
    assert measures.o1(found) == near(frobenius - 2)
    assert measures.o2(found) == near(-math.log(slow_determinant(slow)))
    other, _ = measures.map_correlations(maps, per_image=not per_image)
    assert (found - other).abs().max() > 0.05, "the two readings differ"


def test_correlations_of_maps_by_hand():
    maps = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]], [[1.0, 1.0]]], [[[1.0, 0.0]], [[2.0, 0.0]], [[0.0, 0.0]]]])
    found, _ = measures.map_correlations(maps)  # the first against the second: 1 - 1 = 0; the third: 1/2 - 1/2 = 0
    assert found.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert (measures.o1(found), measures.o2(found)) == (pytest.approx(0), 0)
    found, kept = measures.map_correlations(maps, per_image=True)
    assert kept.tolist() == [True, True, False], "the third varies between images alone"
    assert found.tolist() == [[1, 0], [0, 1]]


def test_correlations_of_maps_keep_their_value_under_affine_change_and_order():
    maps = random(4, 3, 5, 5)
    found, _ = measures.map_correlations(maps)
    scale, shift = torch.tensor([2.0, 1e-4, 70.0]).view(3, 1, 1), torch.tensor([5.0, 0.0, -3.0]).view(3, 1, 1)
    changed, _ = measures.map_correlations(maps.double() * scale + shift)
    torch.testing.assert_close(changed, found, atol=1e-9, rtol=0)
    order = torch.tensor([2, 0, 1])
    permuted, _ = measures.map_correlations(maps[:, order].flip(0, 2))
    torch.testing.assert_close(permuted, found[order][:, order], atol=1e-12, rtol=0)
    for measure in (measures.o1, measures.o2):
        assert measure(permuted) == pytest.approx(measure(found), abs=1e-12)
    turned = -maps[:, :1]
    found, _ = measures.map_correlations(torch.cat([maps[:, :1], turned], 1))
    torch.testing.assert_close(found, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double(), atol=1e-12, rtol=0)


def test_constant_maps_have_no_correlation():
    maps = random(2, 4, 3, 3)
    maps[:, 1] = 0.1  # its mean in float64 is not exactly its value
    maps[0, 3], maps[1, 3] = 0.0, 1.0
    for per_image, wanted in ((False, [0, 2, 3]), (True, [0, 2])):
        found, kept = measures.map_correlations(maps, per_image=per_image)
        assert kept.nonzero()[:, 0].tolist() == wanted
        alone, _ = measures.map_correlations(maps[:, wanted], per_image=per_image)
        assert torch.equal(found, alone)
    found, kept = measures.map_correlations(torch.full((2, 4, 3, 3), 0.1))
    assert (tuple(found.shape), kept.tolist()) == ((0, 0), [False] * 4)
    assert math.isnan(measures.o1(found))
    assert math.isnan(measures.o2(found))


def test_orthogonality_at_its_ends():
    for k in (1, 2, 5):
        assert measures.o1(torch.eye(k)) == pytest.approx(0, abs=1e-6)
        assert str(measures.o2(torch.eye(k))) == "0.0", "not minus zero"
        assert measures.o1(torch.ones(k, k)) == pytest.approx(k - math.sqrt(k))
    half = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    assert measures.o1(half) == pytest.approx(math.sqrt(2.5) - math.sqrt(2))
    assert measures.o2(half) == pytest.approx(-math.log(0.75))
    one, _ = measures.map_correlations(random(3, 1, 4, 4))
    assert (measures.o1(one), measures.o2(one)) == (0, 0)


def test_o2_is_infinite_where_a_map_is_made_of_others():
    for seed in range(8):  # rounding leaves determinants of either sign
        maps = random(3, 3, 8, 8, seed=seed)
        copy, _ = measures.map_correlations(torch.cat([maps, maps[:, :1] * 3 + 1], 1))
        assert measures.o2(copy) == math.inf
        mixed, _ = measures.map_correlations(torch.cat([maps, maps.double()[:, :2].sum(1, keepdim=True)], 1).double())
        assert measures.o2(mixed) == math.inf
    assert measures.o2(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]])) == math.inf
    many = torch.full((40, 40), 0.7) + 0.3 * torch.eye(40)  # regular, with a determinant of 1e-19
    assert measures.o2(many) == pytest.approx(-39 * math.log(0.3) - math.log(0.3 + 40 * 0.7), abs=1e-4)


# reconstruction


def slow_correlation(one, two):
    a, b = mean(one), mean(two)
    product = sum((x - a) * (y - b) for x, y in zip(one, two, strict=True))
    return product / math.sqrt(sum((x - a) ** 2 for x in one) * sum((y - b) ** 2 for y in two))


def test_r_squared_and_correlation_of_each_dimension_are_the_slow_forms():
    features, target = random(60, 7) + 30, random(60, seed=1)
    features[:, 2] += 2 * target
    features[:, 5] = 0.1
    reconstruction = features + random(60, 7, seed=2) * 0.5
    r_squared = measures.reconstruction_r_squared(reconstruction, features)
    correlation = measures.correlations_with(features, target)
    columns, logits = features.T.tolist(), target.tolist()
    for k, (found, wanted) in enumerate(zip(reconstruction.T.tolist(), columns, strict=True)):
        constant = k == 5
        assert r_squared[k].item() == near(math.nan if constant else slow_r_squared(found, wanted))
        assert correlation[k].item() == near(math.nan if constant else slow_correlation(wanted, logits))
    assert measures.correlations_with(features, torch.full((60,), 0.1)).isnan().all()


def test_correlations_with_at_their_ends():
    target = random(50)
    features = torch.stack([target, -target, target * 5 + 2], 1)
    found = measures.correlations_with(features, target)
    torch.testing.assert_close(found, torch.tensor([1.0, -1.0, 1.0]).double(), atol=1e-9, rtol=0)
    assert found.abs().max() <= 1


def slow_selectivity(r_squared, correlation):
    pairs = zip(correlation, r_squared, strict=True)
    ranked = sorted((abs(c), k, r) for k, (c, r) in enumerate(pairs) if not math.isnan(c) and not math.isnan(r))
    values = [r for _, _, r in ranked]
    tenth = max(1, round(len(values) / 10))
    return mean(values[len(values) - tenth :]) - mean(values[: len(values) // 2])


@pytest.mark.parametrize("count", [2, 3, 9, 20, 47])
def test_selectivity_is_the_slow_form(count):
    r_squared, correlation = random(count), random(count, seed=1).tanh()
    found = measures.selectivity(r_squared, correlation)
    assert found == near(slow_selectivity(r_squared.tolist(), correlation.tolist()))
    order = torch.randperm(count, generator=seeded(2))
    assert measures.selectivity(r_squared[order] + 3, -correlation[order]) == near(found)
    unknown = torch.tensor([math.nan, 0.9])
    longer = measures.selectivity(torch.cat([r_squared, unknown]), torch.cat([correlation, unknown.flip(0)]))
    assert longer == found, "dimensions without R^2 or without correlation are left out"


def test_selectivity_by_hand():
    correlation = torch.tensor([0.0, 0.1, -0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, -0.9])
    matters = torch.tensor([0.0] * 9 + [1.0])
    assert measures.selectivity(matters, correlation) == 1, "only what matters most is reconstructed"
    assert measures.selectivity(torch.ones(10), correlation) == 0, "all alike"
    assert measures.selectivity(correlation.abs(), correlation) == pytest.approx(0.9 - 0.2)
    for count in (0, 1):
        assert math.isnan(measures.selectivity(torch.ones(count), torch.ones(count)))


# masks


def test_joined_maps_by_hand():
    maps = torch.tensor([[[[4.0, 1.0], [0.0, 0.0]], [[0.0, 0.1], [0.2, 0.0]], [[0.0] * 2] * 2]])
    assert measures.joined(maps).tolist() == [[[[1, 0.5], [1, 0]]]]
    assert measures.joined(torch.zeros(2, 3, 2, 2)).tolist() == [[[[0, 0]] * 2]] * 2
    signed = torch.tensor([[[[-3.0, 2.0]], [[-1.0, -4.0]]]])
    assert measures.joined(signed).tolist() == [[[[0, 1]]]], "negative values count as zero"


def slow_joined(image):
    peaks = [max(0.0, max(pixel for row in one for pixel in row)) for one in image]
    shares = [
        [[max(0.0, p) / peak for p in row] for row in one] for one, peak in zip(image, peaks, strict=True) if peak
    ]
    empty = [[0.0] * len(image[0][0])] * len(image[0])
    return [[max(values) for values in zip(*rows, strict=True)] for rows in zip(empty, *shares, strict=True)]


def test_masks_are_the_slow_forms():
    maps, images = random(4, 3, 5, 6), random(4, 2, 5, 6, seed=1)
    maps[1, 2], maps[2] = 0.0, -1.0
    found = measures.joined(maps)
    slow = [slow_joined(image) for image in maps.tolist()]
    torch.testing.assert_close(found, torch.tensor(slow)[:, None], atol=1e-6, rtol=0)
    keep = measures.responding(found, 0.4)
    fill = torch.tensor([7.0, -7.0]).view(2, 1, 1)
    result = measures.masked(images, keep, fill)
    for n, y, x in itertools.product(range(4), range(5), range(6)):
        peak = max(pixel for row in slow[n] for pixel in row)
        shown = peak > 0 and slow[n][y][x] >= 0.4 * peak
        assert keep[n, 0, y, x].item() == shown
        assert result[n, :, y, x].tolist() == (images[n, :, y, x].tolist() if shown else [7, -7])
    assert 0 < keep.double().mean() < 0.75
    assert torch.equal(measures.responding(found * 1000, 0.4), keep)
    assert (measures.masked(images, keep, 0.5)[~keep.expand_as(images)] == 0.5).all()


def test_responding_pixels_by_hand():
    """Section 4.2: pixels below 1% of the highest response are not shown; those at 1% are."""
    maps = torch.tensor([[[[100.0, 1.0, 0.99, 0.0, -5.0]]], [[[0.0] * 5]], [[[-1.0] * 5]], [[[0.02] * 5]]])
    assert measures.responding(maps)[:, 0, 0].tolist() == [
        [True, True, False, False, False],
        [False] * 5,
        [False] * 5,
        [True] * 5,
    ]
    assert measures.responding(maps, 1.0).sum((1, 2, 3)).tolist() == [1, 0, 0, 5]


def slow_average_precision(scores, positive):
    """Precision at each different score, weighted by the recall that it adds."""
    total, before = 0.0, 0
    for threshold in sorted(set(scores), reverse=True):
        hits = [label for score, label in zip(scores, positive, strict=True) if score >= threshold]
        total += sum(hits) / len(hits) * (sum(hits) - before) / sum(positive)
        before = sum(hits)
    return total


def test_average_precision_is_the_slow_form():
    positive = torch.rand(80, generator=seeded()) < 0.2
    for scores in (random(80), torch.randint(0, 6, (80,), generator=seeded(1)).float()):  # the second with ties
        slow = slow_average_precision(scores.tolist(), positive.tolist())
        assert measures.average_precision(scores, positive) == near(slow)
        assert measures.average_precision(scores * 2 + 1, positive) == near(slow)


def test_average_precision_by_hand():
    yes = torch.tensor([True, False, True, False])
    assert measures.average_precision(torch.tensor([4.0, 3.0, 2.0, 1.0]), yes) == pytest.approx((1 + 2 / 3) / 2)
    assert measures.average_precision(torch.tensor([4.0, 2.0, 3.0, 1.0]), yes) == 1
    assert measures.average_precision(torch.zeros(4), yes) == 0.5, "the share of positives"
    assert math.isnan(measures.average_precision(torch.arange(3.0), torch.zeros(3, dtype=torch.bool)))
    assert measures.average_precision(torch.arange(3.0), torch.ones(3, dtype=torch.bool)) == 1


# contributions


def test_used_and_positive_x_features_by_hand():
    contributions = torch.tensor([[97.0, 1.0, -3.0, 0.5, 0.0], [95.0, 1.0, 1.0, 0.5, 0.0]])  # of 99.5 in the mean
    assert measures.used(contributions).tolist() == [True, True, True, False, False], "a minus sign does not matter"
    assert measures.used(contributions, 0.02).tolist() == [True, False, True, False, False]
    assert measures.used(torch.tensor([[99.0, 1.0]])).tolist() == [True, True], "exactly 1% counts"
    assert measures.used(torch.zeros(2, 3)).tolist() == [False] * 3
    logits = torch.tensor([100.0, -100.0])
    assert measures.positive(contributions, logits).tolist() == [True, False, False, False, False], "above, not at 1%"
    assert measures.positive(contributions, logits, 0.004).tolist() == [True, True, False, True, False]
    assert measures.positive(torch.zeros(2, 3), torch.zeros(2)).tolist() == [False] * 3


def test_used_and_positive_x_features_are_the_slow_forms():
    contributions, logits = random(30, 9) * torch.logspace(-4, 0, 9) + 0.03, random(30, seed=1)
    columns = contributions.T.tolist()
    sizes = [mean(abs(one) for one in column) for column in columns]
    used = [size >= 0.05 * sum(sizes) for size in sizes]
    level = 0.04 * mean(abs(one) for one in logits.tolist())
    positive = [mean(column) > level for column in columns]
    assert {*used} == {*positive} == {True, False}
    assert measures.used(contributions, 0.05).tolist() == used
    assert measures.positive(contributions, logits, 0.04).tolist() == positive
    assert measures.used(contributions * 100, 0.05).tolist() == used
    assert measures.positive(contributions * 100, logits * 100, 0.04).tolist() == positive


# errors


NAN = torch.tensor([1.0, math.nan])
WHOLE = torch.zeros(3, 2, 4, 4)
KEEP = torch.ones(3, 1, 4, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("mean_absolute_error", (torch.zeros(3, 1), torch.zeros(3)), r"prediction .*\(n\).* got \(3, 1\)"),
        ("mean_absolute_error", (torch.zeros(3), torch.zeros(3, 1)), r"target .*\(n = 3\).* got \(3, 1\)"),
        ("mean_absolute_error", (torch.zeros(0), torch.zeros(0)), r"prediction .* not empty; got \(0,\)"),
        ("mean_absolute_error", (NAN, torch.zeros(2)), "prediction must be finite; got nan"),
        ("mean_absolute_error", (torch.zeros(2), NAN / 0), "target must be finite; got inf"),
        ("r_squared", (torch.zeros(3, 1), torch.zeros(3)), r"prediction .* got \(3, 1\)"),
        ("r_squared", (torch.zeros(3), torch.zeros(2)), r"target .* got \(2,\)"),
        ("unchanged_classes", (torch.zeros(3, 4), 0, torch.zeros(3, 1)), r"prediction .* got \(3, 1\)"),
        ("unchanged_classes", (torch.zeros(2, 4), 0, NAN), "prediction .* got nan"),
        ("unchanged_classes", (torch.zeros(3, 4), 4, torch.zeros(3)), "category .* 0 and 3; got 4"),
        ("unchanged_classes", (torch.zeros(3, 4), -1, torch.zeros(3)), "category .* 0 and 3; got -1"),
        (
            "unchanged_classes_jointly",
            (torch.zeros(3, 4), torch.tensor([0, 2]), torch.zeros(3, 1)),
            r"predictions .*\(n = 3, c = 2\).* got \(3, 1\)",
        ),
        (
            "unchanged_classes_jointly",
            (torch.zeros(3, 4), torch.tensor([2, 2]), torch.zeros(3, 2)),
            r"categories .* got \[2, 2\]",
        ),
        (
            "unchanged_classes_jointly",
            (torch.zeros(3, 4), torch.tensor([4, 1]), torch.zeros(3, 2)),
            r"categories .* got \[4, 1\]",
        ),
        (
            "unchanged_classes_jointly",
            (torch.zeros(3, 4), torch.tensor([1, -1]), torch.zeros(3, 2)),
            r"categories .* got \[1, -1\]",
        ),
        ("map_correlations", (torch.zeros(2, 4, 4),), r"maps .*\(m, n, h, w\).* got \(2, 4, 4\)"),
        ("map_correlations", (WHOLE[:0],), r"maps .* got \(0, 2, 4, 4\)"),
        ("map_correlations", (WHOLE / 0,), "maps must be finite; got nan"),
        ("reconstruction_r_squared", (torch.zeros(3, 1), torch.zeros(3, 2)), r"features .*z = 1.* got \(3, 2\)"),
        ("correlations_with", (torch.zeros(3, 2), torch.zeros(2)), r"target .* got \(2,\)"),
        ("responding", (WHOLE,), r"maps .*\(n, 1, h, w\).* got \(3, 2, 4, 4\)"),
        ("responding", (WHOLE[:, :1] / 0,), "maps must be finite; got nan"),
        ("responding", (WHOLE[:, :1], 0.0), "fraction .* got 0.0"),
        ("responding", (WHOLE[:, :1], 1.5), "fraction .* got 1.5"),
        ("responding", (WHOLE[:, :1], math.nan), "fraction .* got nan"),
        ("masked", (WHOLE, KEEP[:1], 0), r"keep .*\(n = 3, 1, h = 4, w = 4\).* got \(1, 1, 4, 4\)"),
        ("masked", (WHOLE, KEEP[:, 0], 0), r"keep .* got \(3, 4, 4\)"),
        ("masked", (WHOLE, KEEP, torch.zeros(4)), r"fill .*\(2, 1, 1\); got \(4,\)"),
        ("used", (torch.zeros(0, 5),), r"contributions .* got \(0, 5\)"),
        ("used", (torch.zeros(2, 5), 0.0), "share .* got 0.0"),
        ("positive", (torch.zeros(2, 5), torch.zeros(5)), r"logits .*\(m = 2\).* got \(5,\)"),
        ("positive", (torch.zeros(2, 5), torch.zeros(2), -0.1), "share .* got -0.1"),
    ],
)
def test_what_does_not_fit_is_refused(plain, function, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        getattr(plain("explanation_metrics"), function)(*arguments)
    assert "\n" not in str(caught.value)
