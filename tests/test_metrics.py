import math
from collections import Counter

import pytest
import torch

from xai_lib import metrics


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def slow_entropy(symbols):
    total = len(symbols)
    return sum(-n / total * math.log2(n / total) for n in Counter(symbols).values())


def slow_usable_information(logits, labels):
    lost = 0.0
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        top = max(row)
        lost += (math.log(sum(math.exp(one - top) for one in row)) + top - row[label]) / math.log(2) / len(labels)
    return slow_entropy(labels.tolist()) - lost


# accuracy


def test_accuracy_by_hand():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, -1.0], [0.0, 0.5]])
    assert metrics.accuracy(logits, torch.tensor([0, 1, 1, 1])) == 75
    assert metrics.accuracy(logits, torch.tensor([1, 0, 1, 0])) == 0
    assert metrics.accuracy(logits, torch.tensor([0, 1, 0, 1])) == 100


def test_accuracy_is_the_slow_form_and_keeps_its_value_under_permutation_and_scale():
    logits, labels = torch.randn(301, 7, generator=seeded()), torch.randint(0, 7, (301,), generator=seeded(1))
    hits = sum(row.index(max(row)) == label for row, label in zip(logits.tolist(), labels.tolist(), strict=True))
    found = metrics.accuracy(logits, labels)
    assert found == pytest.approx(100 * hits / 301, abs=1e-12)
    order = torch.randperm(301, generator=seeded(2))
    assert metrics.accuracy(logits[order] * 5 + 3, labels[order]) == found


@pytest.mark.parametrize("measure", ["accuracy", "usable_information", "empirical_information"])
def test_lengths_are_checked(plain, measure):
    function = getattr(plain("metrics"), measure)
    with pytest.raises(ValueError, match="labels .* got 2, 3"):
        function(torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="labels .* got 0, 0"):
        function(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


# information


def test_entropy_by_hand():
    assert metrics.entropy(torch.tensor([0, 1, 2, 3])) == pytest.approx(2)
    assert metrics.entropy(torch.tensor([0, 0, 0, 1])) == pytest.approx(2 - 0.75 * math.log2(3))
    assert metrics.entropy(torch.tensor([5, 5, 5])) == 0
    assert metrics.entropy(torch.tensor([0, 7])) == pytest.approx(1), "classes without samples do not count"


def test_entropy_is_the_slow_form_and_stays_within_its_range():
    labels = torch.randint(0, 9, (500,), generator=seeded()) ** 2
    found = metrics.entropy(labels)
    assert found == pytest.approx(slow_entropy(labels.tolist()), abs=1e-12)
    assert 0 < found <= math.log2(9)
    renamed = torch.randperm(65, generator=seeded())[labels]
    assert metrics.entropy(renamed) == pytest.approx(found, abs=1e-12)


def test_usable_information_is_the_slow_form():
    logits, labels = torch.randn(200, 6, generator=seeded()) * 3, torch.randint(0, 6, (200,), generator=seeded(1))
    found = metrics.usable_information(logits, labels)
    assert found == pytest.approx(slow_usable_information(logits, labels), abs=1e-6)
    order = torch.randperm(200, generator=seeded(2))
    assert metrics.usable_information(logits[order] + 4, labels[order]) == pytest.approx(found, abs=1e-5)


def test_usable_information_at_its_ends():
    labels = torch.tensor([0, 0, 0, 1])
    share = torch.tensor([0.75, 0.25]).log().expand(4, 2)
    sure = torch.nn.functional.one_hot(labels).float() * 1000
    assert metrics.usable_information(share, labels) == pytest.approx(0, abs=1e-6), "the label frequencies: none"
    assert metrics.usable_information(sure, labels) == pytest.approx(metrics.entropy(labels)), "all there is"
    assert metrics.usable_information(-sure, labels) < -500, "surely wrong: far below 0"
    assert metrics.usable_information(torch.randn(3, 2), torch.tensor([1, 1, 1])) < 0, "one class: nothing to know"


def test_empirical_information_by_hand():
    labels = torch.tensor([0, 0, 1, 1])
    distinct = torch.arange(8).view(4, 2)
    assert metrics.empirical_information(distinct, labels) == pytest.approx(1), "all samples differ: H(Y)"
    assert metrics.empirical_information(torch.zeros(4, 2), labels) == pytest.approx(0, abs=1e-12), "all are equal"
    assert metrics.empirical_information(labels[:, None], labels) == pytest.approx(1)
    half = torch.tensor([0, 1, 1, 2])  # the two in the middle are one symbol with two labels: 1 - 1/2 bit
    assert metrics.empirical_information(half[:, None], labels) == pytest.approx(0.5)


def test_empirical_information_is_the_slow_form():
    samples = torch.randint(0, 3, (90, 1, 2, 2), generator=seeded(), dtype=torch.uint8)
    labels = torch.randint(0, 4, (90,), generator=seeded(1))
    rows = [tuple(one.flatten().tolist()) for one in samples]
    joint = list(zip(rows, labels.tolist(), strict=True))
    expected = slow_entropy(rows) + slow_entropy(labels.tolist()) - slow_entropy(joint)
    assert metrics.empirical_information(samples, labels) == pytest.approx(expected, abs=1e-12)


def test_no_function_of_the_samples_has_more_empirical_information():
    samples = torch.randint(0, 6, (300, 2), generator=seeded())
    labels = (samples.sum(1) + torch.randint(0, 2, (300,), generator=seeded(1))) % 5
    whole = metrics.empirical_information(samples, labels)
    assert 0 < whole < metrics.entropy(labels)
    for function in (lambda x: x // 2, lambda x: x[:, :1], lambda x: x.sum(1, keepdim=True), lambda x: 0 * x):
        assert metrics.empirical_information(function(samples), labels) <= whole + 1e-12
    assert metrics.empirical_information(7 - samples, labels) == pytest.approx(whole), "one to one keeps it"


# margin and masks


def test_margin_by_hand():
    logits = torch.tensor([[1.0, 4.0, 2.0], [0.0, -1.0, 5.0]])
    found = metrics.margin(logits, torch.tensor([1, 0]), torch.tensor([2, 2]))
    assert found.tolist() == [2, -5]
    assert metrics.margin(logits, torch.tensor([2, 0]), torch.tensor([1, 1])).tolist() == [-2, 1]
    assert metrics.margin(logits, torch.tensor([1, 1]), torch.tensor([1, 1])).tolist() == [0, 0]


def test_top_mask_takes_the_highest_pixels_of_each_map():
    maps = torch.tensor([[[[1.0, 9.0], [3.0, 2.0]]], [[[-1.0, -2.0], [-3.0, -4.0]]]])
    assert metrics.top_mask(maps, 0.25).tolist() == [[[[False, True], [False, False]]], [[[True, False], [False] * 2]]]
    assert metrics.top_mask(maps, 0.5).tolist() == [[[[False, True], [True, False]]], [[[True, True], [False] * 2]]]


def test_top_mask_is_the_slow_form():
    maps = torch.randint(0, 9, (6, 1, 5, 7), generator=seeded()).float()  # many ties
    for fraction in (0.01, 0.1, 0.5, 0.9):
        found = metrics.top_mask(maps, fraction)
        assert found.shape == maps.shape
        for one, mask in zip(maps, found, strict=True):
            values = one.flatten().tolist()
            order = sorted(range(35), key=lambda k: (-values[k], k))
            expected = sorted(order[: max(1, round(fraction * 35))])
            assert mask.flatten().nonzero()[:, 0].tolist() == expected


def test_top_mask_of_flat_maps_and_single_pixels():
    assert metrics.top_mask(torch.zeros(2, 1, 2, 2), 0.5).flatten(1).tolist() == [[True, True, False, False]] * 2
    assert metrics.top_mask(torch.zeros(1, 1, 10, 10), 1e-6).sum() == 1, "never empty"
    assert metrics.top_mask(torch.zeros(0, 1, 4, 4), 0.5).shape == (0, 1, 4, 4)


def test_top_mask_keeps_its_value_under_scale_and_shift():
    maps = torch.randn(3, 1, 8, 8, generator=seeded())
    assert torch.equal(metrics.top_mask(maps, 0.3), metrics.top_mask(maps * 4 - 1, 0.3))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 20.0, float("nan")])
def test_top_mask_checks_its_fraction(fraction):
    with pytest.raises(ValueError, match=f"fraction .* got {fraction}"):
        metrics.top_mask(torch.zeros(1, 1, 2, 2), fraction)


def test_matched_random_mask_has_as_many_pixels_on_and_off_the_ink():
    ink = torch.rand(40, 1, 9, 7, generator=seeded()) < 0.3
    mask = torch.rand(40, 1, 9, 7, generator=seeded(1)) < torch.linspace(0, 1, 40).view(-1, 1, 1, 1)
    found = metrics.matched_random_mask(mask, ink, seeded(2))
    for region in (ink, ~ink):
        assert torch.equal((found & region).flatten(1).sum(1), (mask & region).flatten(1).sum(1))
    assert not torch.equal(found, mask)
    assert torch.equal(found, metrics.matched_random_mask(mask, ink, seeded(2)))
    assert not torch.equal(found, metrics.matched_random_mask(mask, ink, seeded(3)))


def test_matched_random_mask_of_nothing_everything_and_all_the_ink():
    ink = torch.rand(5, 1, 6, 6, generator=seeded()) < 0.4
    nothing = torch.zeros_like(ink)
    for mask in (nothing, ~nothing, ink, ~ink):
        assert torch.equal(metrics.matched_random_mask(mask, ink, seeded(1)), mask)
        for flat in (nothing, ~nothing):
            found = metrics.matched_random_mask(mask, flat, seeded(1))
            assert torch.equal(found.flatten(1).sum(1), mask.flatten(1).sum(1))


def test_matched_random_mask_draws_every_pixel_equally_often():
    ink = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool).expand(4000, 1, 2, 4)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.bool).expand(4000, 1, 2, 4)
    share = metrics.matched_random_mask(mask, ink, seeded()).double().mean(0)[0]
    assert (share[0] - 0.5).abs().max() < 0.04  # five standard deviations
    assert (share[1] - 0.25).abs().max() < 0.035
