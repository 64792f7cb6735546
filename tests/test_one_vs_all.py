import functools

import pytest
import torch
from module_toys import SHORT, seeded, task

from xai_lib import one_vs_all, srae
from xai_lib.srae import Objective, Size
from xai_lib.training import Recipe

pytestmark = pytest.mark.usefixtures("light")

LABELS = torch.tensor([0, 0, 1, 1, 1, 1, 2, 2])


def test_sample_weights_by_hand():
    """Two positives share half of 8, two each; six negatives the other half, 2/3 each."""
    found = one_vs_all.sample_weights(LABELS, [0, 1])
    torch.testing.assert_close(found[:, 0], torch.tensor([2.0] * 2 + [2 / 3] * 6))
    torch.testing.assert_close(found[:, 1], torch.ones(8))
    quarter = one_vs_all.sample_weights(LABELS, [2], share=0.1)[:, 0]
    torch.testing.assert_close(quarter, torch.tensor([0.9 * 8 / 6] * 6 + [0.4] * 2))
    even = one_vs_all.sample_weights(LABELS, [2], positives=1, share=0.0)[:, 0]
    assert sorted(even.tolist()) == pytest.approx([0] + [8 / 7] * 7), "no share: all samples that are drawn alike"


@pytest.mark.parametrize(("positives", "negatives"), [(None, None), (3, 20), (50, 1), (1, 10_000)])
def test_sample_weights_have_mean_1_and_the_numbers_asked_for(positives, negatives):
    labels = torch.randint(0, 5, (300,), generator=seeded())
    found = one_vs_all.sample_weights(labels, [3, 1], positives, negatives, share=0.3)
    torch.testing.assert_close(found.mean(0), torch.ones(2))
    for k, category in enumerate((3, 1)):
        inside = labels == category
        for rows, count, share in ((inside, positives, 0.3), (~inside, negatives, 0.7)):
            there = found[rows, k]
            assert (there > 0).sum() == min(count or 300, int(rows.sum()))
            assert there.sum().item() == pytest.approx(300 * share, rel=1e-5)
            assert there[there > 0].unique().numel() == 1


def test_sample_weights_are_drawn_by_seed_and_category_alone():
    labels = torch.randint(0, 5, (300,), generator=seeded())
    draw = functools.partial(one_vs_all.sample_weights, labels, positives=5, negatives=30)
    both = draw(categories=[3, 1])
    torch.manual_seed(99)
    assert torch.equal(both, draw(categories=[3, 1]))
    assert torch.equal(both.flip(1), draw(categories=[1, 3]))
    assert torch.equal(both[:, 1:], draw(categories=[1]))
    assert not torch.equal(both, draw(categories=[3, 1], seed=1))
    common = ((both > 0).all(1) & (labels != 3) & (labels != 1)).sum()
    assert common < 20, "each category draws negatives of its own"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"categories": [0, 7]}, "categories: 7 has no positives among 8 samples"),
        ({"labels": torch.ones(4, dtype=torch.int64), "categories": [1]}, "categories: 1 has no negatives among 4"),
        ({"share": 1.0}, "share must be 0 or more and below 1; got 1.0"),
        ({"share": -0.1}, "share must be 0 or more and below 1; got -0.1"),
        ({"positives": 0}, "positives must be at least 1; got 0"),
        ({"negatives": -3}, "negatives must be at least 1; got -3"),
    ],
)
def test_sample_weights_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        one_vs_all.sample_weights(**{"labels": LABELS, "categories": [0], **settings})


def test_folds_share_positives_and_negatives_evenly():
    labels = torch.randint(0, 6, (200,), generator=seeded())
    weights = one_vs_all.sample_weights(labels, [2, 4], positives=23, negatives=61)
    found = one_vs_all.folds(weights, 5)
    assert torch.equal(found == -1, weights == 0)
    for k, category in enumerate((2, 4)):
        for rows in (labels == category, labels != category):
            counts = found[rows, k][found[rows, k] >= 0].bincount(minlength=5)
            assert len(counts) == 5
            assert counts.sum() == (23 if rows[labels == category].all() else 61)
            assert counts.max() - counts.min() <= 1
    assert torch.equal(found, one_vs_all.folds(weights, 5))
    assert not torch.equal(found, one_vs_all.folds(weights, 5, seed=1))
    first = found[found[:, 0] >= 0, 0]
    assert not torch.equal(first, first.sort().values), "dealt at random"


def test_folds_are_checked():
    weights = one_vs_all.sample_weights(LABELS, [1, 0], share=0.4)
    with pytest.raises(ValueError, match="count must be 2 or more; got 1"):
        one_vs_all.folds(weights, 1)
    with pytest.raises(ValueError, match="count must be at most 2, the samples of module 1 of one kind; got 3"):
        one_vs_all.folds(weights, 3)


def test_held_out_errors_are_those_of_each_fold_trained_alone(tmp_path, double):
    z, logits, _ = task(2, samples=24)
    weights = one_vs_all.sample_weights(torch.arange(24) % 3, [0, 2], negatives=10).double()
    settings, size = [Objective(beta=0.1, decay=1e-3), Objective(beta=9.0, q=100.0, pull_away=1.0)], Size((6,), 3)
    recipe = Recipe(epochs=3, batch_size=8, weight_decay=0.0, learning_rate=1e-2)
    here = {"name": "held", "folder": tmp_path}
    found = one_vs_all.held_out_errors(z, logits, weights, settings, size, recipe, count=2, seed=5, **here)
    assert found.shape == (2, 2, 2)
    part = one_vs_all.folds(weights, 2, seed=5)
    for s, objective in enumerate(settings):
        for c in range(2):
            for fold in range(2):
                kept = torch.where(part[:, c] == fold, 0, weights[:, c])
                model = srae.fit(
                    z,
                    logits[:, [c]],
                    (kept / kept.mean())[:, None],
                    objective,
                    size,
                    recipe,
                    seeds=[5],
                    order=5,
                    **here,
                ).model
                rows = (part[:, c] == fold).nonzero()[:, 0].tolist()
                far = {i: abs(model(z[[i]]).item() - logits[i, c].item()) * weights[i, c].item() for i in rows}
                expected = sum(far.values()) / sum(weights[i, c].item() for i in rows)
                assert found[s, c, fold].item() == pytest.approx(expected, rel=1e-5)
    assert found.unique().numel() == 8


def test_held_out_errors_are_of_one_penalty(tmp_path):
    z, logits, weights = task(1)
    more = (Size((6,), 3), SHORT)
    for other in (Objective("l1"), Objective(over="data")):
        with pytest.raises(ValueError, match="settings must have one penalty and one `over`; got .'log'"):
            one_vs_all.held_out_errors(z, logits, weights, [Objective(), other], *more, name="x", folder=tmp_path)


def test_most_within_one_error_by_hand():
    """Means 1, 1.35, 1.55 and 0.9; the folds of the best, 0.4 and 1.4, have a standard error of 0.5: up to 1.4."""
    best = [[0.4, 1.4]]  # deviation with n - 1: sqrt(0.25 + 0.25) = 0.7071; divided by the root of 2 folds: 0.5
    errors = torch.tensor([[[1.0, 1.0]], [[1.3, 1.4]], [[1.5, 1.6]], best])
    choose = one_vs_all.most_within_one_error
    assert choose(errors, [1.0, 2.0, 3.0, 0.0]) == 1, "the highest rank is too far off"
    assert choose(errors, [5.0, 2.0, 3.0, 0.0]) == 0
    assert choose(errors, [0.0, 0.0, 3.0, 1.0]) == 3
    assert choose(errors, [2.0, 2.0, 9.0, 0.0]) == 0, "a tie: the smaller error"
    two = torch.stack([errors[:, 0], errors[:, 0].flip(1)], 1)  # categories whose folds even each other out
    assert choose(two, [1.0, 2.0, 3.0, 0.0]) == 3, "the folds of the mean over categories count: no error left"
