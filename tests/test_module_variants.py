import math
from types import SimpleNamespace

import pytest
import torch
from module_toys import SHORT, random, task
from torch import nn

from xai_lib import explanation, module_variants, srae, training

pytestmark = pytest.mark.usefixtures("light")
Z, LOGITS, WEIGHTS = (one.float() for one in task(2, samples=60))
POSITIVE = torch.arange(60)[:, None] % 5 == torch.arange(2)
OBJECTIVE, SIZE = srae.Objective("log"), srae.Size((8, 6), 3)


# linear modules


def normal_equations(x, y, w):
    """Weighted least squares with an intercept: coefficients, the intercept last."""
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    return torch.linalg.solve(x.T @ (w[:, None] * x), x.T @ (w * y))


def test_pca_is_the_weighted_covariance_and_a_weighted_regression():
    model = module_variants.linear(Z, LOGITS, WEIGHTS, "pca", 3)
    for k in range(2):
        w, x, y = WEIGHTS[:, k].double(), Z.double(), LOGITS[:, k].double()
        mean = sum(w[i] * x[i] for i in range(60)) / w.sum()
        covariance = sum(w[i] * torch.outer(x[i] - mean, x[i] - mean) for i in range(60))
        top = torch.linalg.eigh(covariance).eigenvectors[:, -3:]
        e = (x - mean) @ top
        found = normal_equations(e, y, w)
        predicted = (e @ found[:3] + found[3]).float()
        torch.testing.assert_close(model(Z)[:, k], predicted, rtol=0, atol=1e-4)
        back = model.single_decoder(k)(model.single(k)(Z))
        torch.testing.assert_close(back, (e @ top.T + mean).float(), rtol=0, atol=1e-4)
    assert (model.head > 0).all()


def test_nmf_finds_components_that_share_no_dimension():
    """The layer is a non-negative mixture of two such components, the logit linear in how much of each there is."""
    amounts, components = random(60, 2), torch.zeros(2, 6, dtype=torch.float64)
    components[0, :3], components[1, 3:] = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 1.0, 1.0])
    z, logits = (amounts @ components).float(), (4 * amounts[:, :1] - 3 * amounts[:, 1:] - 1).float()
    model = module_variants.linear(z, logits, torch.ones(60, 1), "nmf", 2)
    torch.testing.assert_close(model(z), logits, rtol=0, atol=0.4)  # of a range of 7
    assert module_variants.rebuilt(model, z, 1).item() > 99
    found = nn.functional.normalize(model.decoder[0].detach().double(), dim=1)
    torch.testing.assert_close(
        (found @ nn.functional.normalize(components, dim=1).T).amax(1), torch.ones(2).double(), rtol=0, atol=0.01
    )
    assert (model.encode(-z) >= 0).all()  # rectified


def test_regression_is_one_x_feature_that_is_the_logit():
    model = module_variants.linear(Z, LOGITS, WEIGHTS, "regression")
    for k in range(2):
        expected = normal_equations(Z.double(), LOGITS[:, k].double(), WEIGHTS[:, k].double()).float()
        torch.testing.assert_close(model(Z)[:, k], Z @ expected[:-1] + expected[-1], rtol=0, atol=1e-4)
    assert model.encode(Z).shape == (2, 60, 1)


@pytest.mark.parametrize("method", module_variants.METHODS)
def test_linear_modules_answer_like_autoencoders(method):
    model = module_variants.linear(Z, LOGITS, WEIGHTS, method, 3)
    for k in range(2):
        torch.testing.assert_close(model.single(k)(Z), model.encode(Z)[k])
    torch.testing.assert_close(model.contributions(Z), model.head[:, None] * model.encode(Z))
    torch.testing.assert_close(model(Z), model.contributions(Z).sum(2).T + model.intercept)


@pytest.mark.parametrize("method", module_variants.METHODS)
def test_samples_without_weight_have_no_part(method):
    moved, keep = Z.clone(), WEIGHTS[:, :1] > 0
    moved[~keep[:, 0]] = 9.0
    assert not keep.all()
    one, other = (module_variants.linear(z, LOGITS[:, :1], WEIGHTS[:, :1], method, 2) for z in (Z, moved))
    assert torch.equal(one(Z), other(Z))


@pytest.mark.parametrize("method", ["nmf", "pca"])
def test_maps_start_from_a_component(method):
    """Excitation Backprop takes a linear layer with weights of both signs as it takes a module's encoder."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10), nn.ReLU(), nn.Linear(10, 2)
    network, images = nn.Sequential(*layers).eval(), random(60, 3, 8, 8).float()
    z, logits = explanation.activations(network, "4", images)
    model = module_variants.linear(z, logits, torch.ones(60, 2), method, 2)
    maps = explanation.unit_maps(network, "4", images[:5], [0, 1], model.single(1))
    assert maps.shape == (5, 2, 8, 8)
    assert maps.isfinite().all()
    assert (maps.amax((2, 3)) > 0).all()


def test_bad_input_of_linear_modules(plain):
    linear = plain("module_variants").linear
    with pytest.raises(ValueError, match="method must be one of nmf, pca, regression; got 'ica'"):
        linear(Z, LOGITS, WEIGHTS, "ica")
    with pytest.raises(ValueError, match="features must lie between 1 and 9, below the layer's size; got 10"):
        linear(Z, LOGITS, WEIGHTS, "pca", 10)
    with pytest.raises(ValueError, match="z must be non-negative, the layer after its ReLU; got -0.5"):
        linear(Z - 0.5, LOGITS, WEIGHTS, "nmf")
    with pytest.raises(
        ValueError, match=r"must be \(N, S\), \(N, C\) and \(N, C\); got \(60, 10\), \(60, 2\), \(60, 1\)"
    ):
        linear(Z, LOGITS, WEIGHTS[:, :1], "pca")


# restarts


def untrained(z, logits, weights, objective, size, recipe, *, seeds, **more):
    """In the place of `srae.fit`, a model that its seeds alone decide."""
    return SimpleNamespace(model=srae.Autoencoders(z.shape[1], size.hidden, size.features, seeds))


def by_hand(k, seed, times):
    """Go through the tries of one module one by one: the seed kept, first state, last state, tries."""

    def look(seed):
        model = srae.Autoencoders(10, SIZE.hidden, SIZE.features, (seed,))
        said = model(Z)[:, 0].tolist()
        error = sum(WEIGHTS[i, k].item() * (said[i] - LOGITS[i, k].item()) ** 2 for i in range(60)) / 60
        means = sorted(model.contributions(Z)[0, POSITIVE[:, k]].mean(0).tolist())[::-1]
        return error, not (means[1] > 0 and means[1] >= 0.3 * means[0])

    kept, first, tries = seed, look(seed)[1], 0
    while tries < times and look(kept)[1]:
        tries += 1
        new = seed + module_variants.NEW_SEED * tries
        kept = new if look(new)[0] < look(kept)[0] else kept
    return kept, first, look(kept)[1], tries


@pytest.mark.parametrize("times", [0, 3])
def test_restarts_one_by_one(monkeypatch, tmp_path, times):
    monkeypatch.setattr(module_variants.srae, "fit", untrained)
    seeds = list(range(16))
    many = [torch.cat([one] * 8, 1) for one in (LOGITS, WEIGHTS, POSITIVE)]
    found = module_variants.restarted(
        Z, *many, OBJECTIVE, SIZE, SHORT, seeds=seeds, order=0, name="n", folder=tmp_path, times=times
    )
    kept, *expected = zip(*(by_hand(seed % 2, seed, times) for seed in seeds), strict=True)
    assert [one.tolist() for one in (found.before, found.after, found.tries)] == list(map(list, expected))
    wanted = srae.Autoencoders(10, SIZE.hidden, SIZE.features, kept).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in found.model.state_dict().items())
    if times:  # the toy has all cases: healthy from the start, kept although degenerate, mended
        assert {(one, other) for one, other in zip(*expected[:2], strict=True)} == {
            (False, False),
            (True, True),
            (True, False),
        }
        assert len(set(kept) - set(seeds)) > 1


def test_restarts_with_training(tmp_path):
    """The first try is what `srae.fit` keeps; healthy modules stay as they are, and no training error grows."""
    many = [torch.cat([one] * 4, 1) for one in (LOGITS, WEIGHTS)]
    more = {"order": 0, "name": "n", "folder": tmp_path, "seeds": list(range(8))}
    first = srae.fit(Z, *many, OBJECTIVE, SIZE, SHORT, **more)
    positive = torch.cat([POSITIVE] * 4, 1)
    found = module_variants.restarted(Z, *many, positive, OBJECTIVE, SIZE, SHORT, **more, times=2)
    again = srae.fit(Z, *many, OBJECTIVE, SIZE, SHORT, **more)
    assert again.reused
    assert torch.equal(again.model.head, first.model.head)  # not changed by what was put beside it
    same = ~found.before
    assert same.any()
    assert not same.all()
    assert torch.equal(found.model.head[same], first.model.head[same])
    assert len(list(tmp_path.glob("n_again_1-*"))) == 1
    errors = [(many[1] * (training.predict(one, Z) - many[0]) ** 2).mean(0) for one in (first.model, found.model)]
    assert (errors[1] <= errors[0] + 1e-6).all()


def test_bad_input_of_restarts(tmp_path):
    more = {"order": 0, "name": "n", "folder": tmp_path, "seeds": [0, 1]}
    with pytest.raises(ValueError, match="times must be 0 or more; got -1"):
        module_variants.restarted(Z, LOGITS, WEIGHTS, POSITIVE, OBJECTIVE, SIZE, SHORT, **more, times=-1)
    none = POSITIVE & torch.tensor([True, False])
    with pytest.raises(ValueError, match="positive must hold one for each category; got none for 1"):
        module_variants.restarted(Z, LOGITS, WEIGHTS, none, OBJECTIVE, SIZE, SHORT, **more, times=1)
    assert not list(tmp_path.iterdir())


# measures


def test_active_units_counts_each_category_on_its_positives():
    """By hand: x-features are dimensions of the layer; 0.5 of 100.5 is below one percent."""
    model = srae.Autoencoders(3, (), 3, (0, 1))
    model.encoder[0].weight.data = torch.eye(3).expand(2, 3, 3).clone()
    model.head.data = torch.tensor([[1.0, -1.0, 1.0], [1.0, 1.0, 0.0]])
    z = torch.tensor([[60.0, 40.0, 0.5], [2.0, 0.0, 9.0]])
    assert module_variants.contributions(model, z).tolist()[0] == [[60.0, -40.0, 0.5], [2.0, 0.0, 9.0]]
    assert module_variants.active_units(model, z, torch.eye(2) > 0).tolist() == [2.0, 1.0]


def test_rebuilt_in_loops():
    model = srae.Autoencoders(10, (6,), 4, (0, 1, 2))
    mean = Z.double().mean(0)
    total = sum((Z[i, d].double() - mean[d]) ** 2 for i in range(60) for d in range(10))
    for k, found in enumerate(module_variants.rebuilt(model, Z, 2)):
        back = model.decode(model.encode(Z))[k].double()
        left = sum((Z[i, d] - back[i, d]) ** 2 for i in range(60) for d in range(10))
        torch.testing.assert_close(found, 100 * (1 - left / total), rtol=1e-5, atol=0)
    assert module_variants.rebuilt(model, torch.ones(4, 10), 1).isnan().all()


def test_pairs():
    values, others = torch.tensor([[1.0, 4.0], [3.0, math.nan]]), torch.tensor([[0.0, 5.0], [0.0, 1.0]])
    found = module_variants.paired(values, others)
    assert found == {"0/0": 1.0, "0/1": -1.0, "1/0": 3.0}
