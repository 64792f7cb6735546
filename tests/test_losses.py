import math

import pytest
import torch
from torch import nn

from xai_lib import losses


def slow_log_likelihood(logits, labels):
    """-log softmax of the label's logit, one sample and one logit at a time, in double precision."""
    values = []
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        top = max(row)
        values.append(math.log(sum(math.exp(one - top) for one in row)) + top - row[label])
    return values


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(17, 5, generator=generator) * 4, torch.randint(0, 5, (17,), generator=generator)


def test_cross_entropy_is_the_mean_of_the_slow_form(batch):
    slow = slow_log_likelihood(*batch)
    assert losses.cross_entropy(nn.Identity(), *batch).item() == pytest.approx(sum(slow) / len(slow), rel=1e-6)


def test_negative_log_likelihood_is_the_slow_form_per_sample(batch):
    assert losses.negative_log_likelihood(*batch).tolist() == pytest.approx(
        slow_log_likelihood(*batch), rel=1e-5, abs=1e-6
    )


def test_by_hand():
    logits, labels = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    assert losses.negative_log_likelihood(logits, labels).tolist() == pytest.approx([math.log(4 / 3), math.log(2)])
    assert losses.cross_entropy(nn.Identity(), logits, labels).item() == pytest.approx(math.log(8 / 3) / 2)


def test_the_loss_is_of_the_models_logits(batch):
    logits, labels = batch
    model = nn.Linear(5, 5)
    expected = slow_log_likelihood(model(logits).detach(), labels)
    assert losses.cross_entropy(model, logits, labels).item() == pytest.approx(sum(expected) / len(expected), rel=1e-6)


def test_printed_equation_3_has_the_opposite_sign_and_no_lower_bound(batch):
    logits, labels = batch
    right, printed = (f(nn.Identity(), logits, labels) for f in (losses.cross_entropy, losses.printed_equation_3))
    assert right > 0
    assert printed == -right
    wrong_class = torch.tensor([[1e4, 0.0]])
    assert losses.printed_equation_3(nn.Identity(), wrong_class, torch.tensor([1])) == -1e4


def test_gradient_is_softmax_less_one_hot(batch):
    logits, labels = batch
    logits.requires_grad_()
    losses.cross_entropy(nn.Identity(), logits, labels).backward()
    expected = (logits.detach().double().softmax(1) - torch.eye(5, dtype=torch.float64)[labels]) / len(labels)
    torch.testing.assert_close(logits.grad.double(), expected, atol=1e-7, rtol=1e-5)


def test_invariances(batch):
    logits, labels = batch
    value = losses.negative_log_likelihood(logits, labels)
    torch.testing.assert_close(losses.negative_log_likelihood(logits + 7, labels), value, atol=1e-5, rtol=1e-5)
    order, classes = torch.randperm(17), torch.randperm(5)
    assert torch.equal(losses.negative_log_likelihood(logits[order], labels[order]), value[order])
    renamed = losses.negative_log_likelihood(logits[:, classes], classes.argsort()[labels])
    torch.testing.assert_close(renamed, value, atol=1e-6, rtol=1e-6)


def test_huge_logits_stay_finite():
    logits, labels = torch.tensor([[1e30, 0.0], [1e30, 0.0]]), torch.tensor([0, 1])
    assert losses.negative_log_likelihood(logits, labels).tolist() == [0, pytest.approx(1e30)]


def test_half_precision_logits_are_summed_in_single_precision():
    """1,000 equal logits: log 1000 = 6.9078; bfloat16 knows 6.90625 and 6.9375 only."""
    logits, labels = torch.zeros(3, 1000, dtype=torch.bfloat16), torch.tensor([0, 1, 2])
    for value in (losses.cross_entropy(nn.Identity(), logits, labels), losses.negative_log_likelihood(logits, labels)):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, torch.full_like(value, math.log(1000)))


def test_small_label_types_and_no_samples():
    logits = torch.tensor([[0.0, math.log(3)]])
    found = losses.negative_log_likelihood(logits, torch.tensor([1], dtype=torch.uint8))
    assert found.item() == pytest.approx(math.log(4 / 3))
    assert losses.negative_log_likelihood(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).shape == (0,)
