"""Costs against sums worked out by hand."""

import time

import pytest
import torch

from xai_lib import costs


def test_flops_of_a_matrix_product():
    one, two = torch.ones(3, 4), torch.ones(4, 5)
    assert costs.cost(lambda: one @ two).flops == 2 * 3 * 4 * 5


def test_flops_of_a_backward_pass():
    weights = torch.ones(4, 5, requires_grad=True)
    inputs = torch.ones(3, 4)
    assert costs.cost(lambda: (inputs @ weights).sum().backward()).flops == 2 * 2 * 3 * 4 * 5


def test_memory_is_what_lived_at_once():
    def chain():
        one = torch.zeros(1000)
        two = one + 1
        del one
        return two * 2  # two of the three at a time

    assert costs.cost(chain).memory == 2 * 4000


def test_views_and_work_in_place_take_no_memory():
    kept = torch.zeros(1000)
    assert costs.cost(lambda: kept.view(10, 100).T.add_(1)).memory == 0


def test_seconds():
    assert 0.02 <= costs.cost(lambda: time.sleep(0.02)).seconds < 1


def test_number_of_calls():
    calls = []
    costs.cost(lambda: calls.append(1), repeat=4)
    assert len(calls) == 5


def test_bad_repeat():
    with pytest.raises(ValueError, match="repeat must be at least 1; got 0"):
        costs.cost(lambda: None, repeat=0)
