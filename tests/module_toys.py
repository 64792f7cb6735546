"""Toys and fixtures for the tests of explanation modules."""

import torch

from xai_lib.training import Recipe

SHORT = Recipe(epochs=2, batch_size=16, weight_decay=0.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, seed=0):
    return torch.rand(shape, generator=seeded(seed), dtype=torch.float64)


def task(count=3, samples=40, inputs=10):
    z = random(samples, inputs) * (random(samples, inputs, seed=1) > 0.3)
    logits = random(samples, count, seed=2) * 6 - 3
    weights = random(samples, count, seed=3) * (random(samples, count, seed=4) > 0.2)
    return z, logits, weights / weights.mean(0)
