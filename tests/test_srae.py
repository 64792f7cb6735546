import functools
import math
from dataclasses import replace

import pytest
import torch
from module_toys import SHORT, random, seeded, task
from torch import nn

from xai_lib import srae
from xai_lib.srae import Autoencoders, Objective, Size
from xai_lib.training import Recipe

pytestmark = pytest.mark.usefixtures("light")


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def modules(count=3, inputs=7, hidden=(6, 5), features=3, **more):
    """Untrained modules in float64, with biases, which start at 0, drawn at random."""
    model = Autoencoders(inputs, hidden, features, range(count), **more).double()
    for layer in (*model.encoder, *model.decoder):
        layer.bias.data = random(*layer.bias.shape, seed=9) / 2
    return model


def batch(model, size=11, seed=0):
    """Activations, logits and weights for some modules; every fifth sample of a module has no part in it."""
    count = len(model.head)
    weights = random(size, count, seed=seed + 2) * 2
    weights[torch.arange(size * count).view(size, count) % 5 == 0] = 0
    inputs = model.encoder[0].weight.shape[2]
    return random(size, inputs, seed=seed), random(size, count, seed=seed + 1) * 8 - 4, weights


# the paper's equation, one number at a time


def slow_layers(layers, k, x):
    for layer in layers:
        rows = zip(layer.weight[k].tolist(), layer.bias[k].tolist(), strict=True)
        x = [max(0.0, bias + sum(w * v for w, v in zip(row, x, strict=True))) for row, bias in rows]
    return x


def slow_penalty(kind, q, error):
    if kind == "log":
        return math.log(1 + q * error)
    if kind == "epsilon_l1":
        return math.sqrt(error**2 + 0.01)
    if kind == "kl":
        share = error / (1 + error)
        return 0.05 * math.log(0.05 / share) + 0.95 * math.log(0.95 / (1 - share))
    return {"l1": error, "none": 0.0}[kind]


def slow_errors(model, k, z, weights):
    """Q of module k: for each dimension the mean of the squared error over the samples."""
    rows = z.tolist()
    back = [slow_layers(model.decoder, k, slow_layers(model.encoder, k, row)) for row in rows]
    triples = list(zip(weights[:, k].tolist(), back, rows, strict=True))
    return [sum(w * (one[d] - row[d]) ** 2 for w, one, row in triples) / len(rows) for d in range(len(rows[0]))]


def slow_objective(model, k, z, logits, weights, kind, beta, q, decay):
    """Equation 4 for one module; a sample's weight counts in both terms."""
    head, m = model.head[k].tolist(), len(z)
    total = 0.0
    for row, logit, weight in zip(z.tolist(), logits[:, k].tolist(), weights[:, k].tolist(), strict=True):
        features = slow_layers(model.encoder, k, row)
        total += weight * (sum(v * e for v, e in zip(head, features, strict=True)) - logit) ** 2 / m
    if kind != "none":
        errors = slow_errors(model, k, z, weights)
        total += beta * sum(slow_penalty(kind, q, one) for one in errors) / len(errors)
    matrices = [layer.weight[k] for layer in (*model.encoder, *model.decoder)]
    return total + decay * sum(w**2 for one in (*matrices, model.head[k]) for w in one.flatten().tolist())


@pytest.mark.parametrize("kind", srae.PENALTIES)
def test_objective_is_equation_4_in_loops(kind):
    model = modules(decoder=kind != "none")
    z, logits, weights = batch(model)
    beta, q, decay = (0.3, 2.0, 0.0), (1.0, 10.0, 100.0), (1e-2, 0.0, 0.5)
    found = Objective(kind, beta, q, decay)(model, z, logits, weights)
    each = [slow_objective(model, k, z, logits, weights, kind, beta[k], q[k], decay[k]) for k in range(3)]
    assert found.item() == pytest.approx(sum(each), rel=1e-10)
    found = Objective(kind, 0.7, 5.0, 1e-3)(model, z, logits, weights)
    each = [slow_objective(model, k, z, logits, weights, kind, 0.7, 5.0, 1e-3) for k in range(3)]
    assert found.item() == pytest.approx(sum(each), rel=1e-10), "one number for all"


def test_objective_in_single_precision():
    model = modules()
    z, logits, weights = batch(model)
    expected = Objective()(model, z, logits, weights).item()
    found = Objective()(model.float(), z.float(), logits.float(), weights.float())
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_equation_4_by_hand():
    """One unit in each place: E = 2 z, back = E / 4, head -1; z of 0 and 2, logits 1 and -1.

    E is 0 and 4: (0 - 1)^2 and (-4 + 1)^2, mean 5. Back is 0 and 1: Q = (0 + 1) / 2. Weights 2, 1/4 and -1.
    """
    model = Autoencoders(1, (), 1)
    model.encoder[0].weight.data.fill_(2.0)
    model.decoder[0].weight.data.fill_(0.25)
    model.head.data.fill_(-1.0)
    z, logits, ones = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [-1.0]]), torch.ones(2, 1)
    found = Objective(beta=3.0, q=4.0, decay=0.1)(model, z, logits, ones)
    assert found.item() == pytest.approx(5 + 3 * math.log(1 + 4 * 0.5) + 0.1 * (4 + 1 / 16 + 1))
    assert Objective("l1", 3.0, decay=0.0)(model, z, logits, ones).item() == pytest.approx(5 + 3 * 0.5)
    assert Objective("none", 3.0, decay=0.0)(model, z, logits, ones).item() == pytest.approx(5)
    second_alone = torch.tensor([[0.0], [2.0]])
    found = Objective("l1", 3.0, decay=0.0)(model, z, logits, second_alone)
    assert found.item() == pytest.approx(9 + 3 * 1)


def test_decay_spares_the_biases():
    model = modules()
    z, logits, weights = batch(model)
    named = dict(model.named_parameters())
    slopes = {}
    for decay in (0.0, 0.5):
        value = Objective(decay=decay)(model, z, logits, weights)
        slopes[decay] = torch.autograd.grad(value, list(named.values()))
    for (name, parameter), without, with_decay in zip(named.items(), slopes[0.0], slopes[0.5], strict=True):
        expected = 0 * parameter if name.endswith("bias") else 2 * 0.5 * parameter
        torch.testing.assert_close(with_decay - without, expected.detach(), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("pull", [0.0, 2.0])
@pytest.mark.parametrize("kind", ["log", "none"])
def test_samples_without_weight_have_no_part(kind, pull):
    """Neither in the value nor in the slope: samples held out, or not drawn for a category."""
    model = modules(1, decoder=kind != "none")
    z, logits, weights = batch(model)
    other = torch.where(weights > 0, z, 3 * random(*z.shape, seed=7))
    logits_there = torch.where(weights > 0, logits, 50.0)
    objective = Objective(kind, pull_away=pull)
    values = [objective(model, z, logits, weights), objective(model, other, logits_there, weights)]
    torch.testing.assert_close(values[1], values[0])
    slopes = [torch.autograd.grad(value, list(model.parameters())) for value in values]
    torch.testing.assert_close(slopes[1], slopes[0])


def test_penalties_are_0_at_no_error_but_for_two():
    model, zero = modules(1, inputs=3), torch.zeros(1, 3, dtype=torch.float64)
    assert Objective("log").sparsity(zero, model).tolist() == [[0, 0, 0]]
    assert Objective("l1").sparsity(zero, model).tolist() == [[0, 0, 0]]
    assert Objective("epsilon_l1").sparsity(zero, model).flatten().tolist() == pytest.approx([0.1] * 3)
    lowest = Objective("kl").sparsity(numbers([1 / 19] * 3), model)  # Q / (1 + Q) = 0.05, where KL wants it
    assert lowest.flatten().tolist() == pytest.approx([0] * 3, abs=1e-12)
    assert (Objective("kl").sparsity(zero, model) > 0.1).all()
    assert Objective("kl").sparsity(zero, model).isfinite().all()


# the mean inside the logarithm: over a batch, or over the data


def reconstruction(model, z, **settings):
    """The second term of equation 4 with beta 1, weights of 1: logits are what the module says."""
    ones = torch.ones(len(z), len(model.head), dtype=z.dtype)
    return Objective(decay=0.0, **settings)(model, z, model(z).detach(), ones)


def test_the_log_of_a_batchs_mean_is_too_small_on_average():
    """The mean of logarithms lies below the logarithm of the mean; SAE's sum has no such gap."""
    model, z = modules(2), random(60, 7) ** 3 * 4
    for kind, gap in (("log", 0.01), ("l1", 0.0)):
        whole = reconstruction(model, z, penalty=kind).item()
        by_batch = [reconstruction(model, part, penalty=kind).item() for part in z.split(4)]
        found = whole - sum(by_batch) / len(by_batch)
        assert found > gap if gap else abs(found) < 1e-12


def test_over_data_starts_at_the_first_batch_and_remembers():
    """The first batch is the running mean itself: the slope of log(1 + q Q) there, q / (1 + q Q), times Q.

    After the second batch the mean is 0.99 of the first and 0.01 of the second.
    """
    model = modules(2).train()
    first, second = random(9, 7), random(8, 7, seed=1) * 3
    weights = random(9, 2, seed=2), random(8, 2, seed=3)
    objective, q = Objective(beta=1.0, q=(3.0, 30.0), decay=0.0, over="data"), (3.0, 30.0)
    q_1, q_2 = ([slow_errors(model, k, z, w) for k in range(2)] for z, w in zip((first, second), weights, strict=True))

    def expected(mean, now):
        each = [q[k] * now[k][d] / (1 + q[k] * mean[k][d]) for k in range(2) for d in range(7)]
        return sum(each) / 7

    found = objective(model, first, model(first).detach(), weights[0])
    assert found.item() == pytest.approx(expected(q_1, q_1))
    by_batch = replace(objective, over="batch")(model, first, model(first).detach(), weights[0])
    inside = [*model.encoder.parameters(), *model.decoder.parameters()]
    for one, other in zip(torch.autograd.grad(found, inside), torch.autograd.grad(by_batch, inside), strict=True):
        torch.testing.assert_close(one, other)  # the same slope, so far
    mean = [[0.99 * a + 0.01 * b for a, b in zip(*each, strict=True)] for each in zip(q_1, q_2, strict=True)]
    found = objective(model, second, model(second).detach(), weights[1])
    assert found.item() == pytest.approx(expected(mean, q_2))
    torch.testing.assert_close(model.mean_errors, numbers(*mean))


def test_over_data_gives_the_slope_of_the_whole_data_on_average(monkeypatch):
    """With the errors of the whole data as the mean, batches of one size average to its slope; by batch they do not."""
    monkeypatch.setattr(srae, "MEMORY", 0.0)
    model, z = modules(1).train(), random(40, 7) ** 3 * 4
    model.mean_errors.copy_(numbers(slow_errors(model, 0, z, torch.ones(40, 1))))
    inside = list(model.decoder.parameters())

    def slope(part, over):
        return torch.cat([one.flatten() for one in torch.autograd.grad(reconstruction(model, part, over=over), inside)])

    whole = slope(z, "batch")
    by_data, by_batch = (torch.stack([slope(part, over) for part in z.split(4)]).mean(0) for over in ("data", "batch"))
    torch.testing.assert_close(by_data, whole)
    assert (by_batch - whole).norm() > 0.02 * whole.norm()


def test_over_data_changes_nothing_without_a_logarithm_or_in_eval_mode():
    model, z = modules(2), random(9, 7)
    values = [reconstruction(model.train(), z, penalty="l1", over=over).item() for over in ("batch", "data")]
    assert values[0] == pytest.approx(values[1])
    model = modules(2).eval()
    assert reconstruction(model, z, over="data").item() == reconstruction(model, z).item()
    assert not model.mean_errors.any()


def test_the_running_mean_of_a_module_starts_with_its_own_samples():
    """The first batch holds no sample of the second module: as if it were alone, its mean starts at the next one."""
    objective, second = Objective(over="data"), random(9, 7, seed=1)
    together, alone = modules(2).train(), modules(2).train()
    beginning = torch.ones(9, 2, dtype=torch.float64)
    beginning[:, 1] = 0
    for model, columns in ((together, beginning), (alone, torch.zeros_like(beginning))):
        for z, weights in ((random(9, 7), columns), (second, torch.ones_like(columns))):
            objective(model, z, model(z).detach(), weights)
    expected = slow_errors(alone, 1, second, torch.ones(9, 2))
    assert alone.mean_errors[1].tolist() == pytest.approx(expected)
    assert together.mean_errors[1].tolist() == pytest.approx(expected)


# pull-away


def slow_pull_away(columns):
    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    n = len(columns)
    return sum(cosine(columns[i], columns[j]) ** 2 for i in range(n) for j in range(n) if i != j) / (n * (n - 1))


def test_pull_away_by_hand():
    same, across = numbers([1, 1], [2, 2], [0, 0]), numbers([1, 0], [2, 0], [0, 5])
    opposite, half = numbers([1, -1], [2, -2], [0, 0]), numbers([1, 1], [1, 0], [0, 0])
    found = srae.pull_away(torch.stack([same, across, opposite, half]))
    assert found.tolist() == pytest.approx([1, 0, 1, 0.5])
    assert srae.pull_away(torch.stack([same, across])[:, :, :1]).tolist() == [0, 0], "one x-feature: no other"
    dead = numbers([1, 0, 1], [2, 0, 2])[None]  # two of six ordered pairs
    assert srae.pull_away(dead).item() == pytest.approx(1 / 3)


def test_pull_away_is_the_slow_form_and_enters_with_its_weight():
    model = modules(2)
    z, logits, _ = batch(model)
    ones = torch.ones(len(z), 2, dtype=torch.float64)
    found = srae.pull_away(model.contributions(z))
    slow = [slow_pull_away(one.T.tolist()) for one in model.contributions(z)]
    assert found.tolist() == pytest.approx(slow)
    without, with_it = (Objective(pull_away=each)(model, z, logits, ones).item() for each in (0.0, (0.5, 3.0)))
    assert with_it - without == pytest.approx(0.5 * slow[0] + 3 * slow[1])


# the modules


def test_parameters_by_hand():
    """4096-800-100-5, as in the paper, and back; biases everywhere but at the head."""
    forth = 4096 * 800 + 800 + 800 * 100 + 100 + 100 * 5 + 5
    back = 5 * 100 + 100 + 100 * 800 + 800 + 800 * 4096 + 4096
    assert sum(one.numel() for one in Autoencoders(4096).parameters()) == forth + back + 5
    small = Autoencoders(20, (8,), 3, seeds=(0, 1), decoder=False)
    assert sum(one.numel() for one in small.parameters()) == 2 * (20 * 8 + 8 + 8 * 3 + 3 + 3)
    assert [tuple(one.weight.shape[1:]) for one in Autoencoders(20, (8, 4), 3).decoder] == [(4, 3), (8, 4), (20, 8)]


def test_initial_weights_depend_on_the_seed_alone():
    together = Autoencoders(300, (40,), 4, seeds=(5, 2, 9))
    torch.manual_seed(123)
    for k, seed in enumerate((5, 2, 9)):
        alone = Autoencoders(300, (40,), 4, seeds=(seed,))
        for name, value in alone.state_dict().items():
            assert torch.equal(together.state_dict()[name][k], value[0]), name
    assert not torch.equal(together.head[0], together.head[1])
    assert together.encoder[0].weight.std().item() == pytest.approx(math.sqrt(2 / 300), rel=0.03)
    assert together.decoder[-1].weight.std().item() == pytest.approx(math.sqrt(2 / 40), rel=0.03)
    assert not any(layer.bias.any() for layer in (*together.encoder, *together.decoder))
    assert together.head.sign().tolist() == [[1, -1, 1, -1]] * 3


def test_outputs_are_the_slow_forms():
    model, z = modules(), random(4, 7)
    features, back = model.encode(z), model.decode(model.encode(z))
    for k in range(3):
        for i, row in enumerate(z.tolist()):
            slow = slow_layers(model.encoder, k, row)
            assert features[k, i].tolist() == pytest.approx(slow)
            assert back[k, i].tolist() == pytest.approx(slow_layers(model.decoder, k, slow))
    expected = model.head.detach()[:, None] * features.detach()
    torch.testing.assert_close(model.contributions(z).detach(), expected)
    torch.testing.assert_close(model(z), model.contributions(z).sum(2).T)
    assert model(z).shape == (4, 3)


def test_single_is_the_encoder_of_one_module_and_single_decoder_its_decoder():
    model, z = modules(), random(6, 7)
    for k in range(3):
        one, back = model.single(k), model.single_decoder(k)
        assert [type(layer) for layer in one] == [type(layer) for layer in back] == [nn.Linear, nn.ReLU] * 3
        torch.testing.assert_close(one(z), model.encode(z)[k])
        torch.testing.assert_close(back(one(z)), model.decode(model.encode(z))[k])
    assert not torch.equal(model.single(0)(z), model.single(1)(z))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": 8}, "features must be at most the 7 dimensions of the layer; got 8"),
        ({"features": 0}, "must be 1 or more; got .7, 6, 0., 1 seeds"),
        ({"hidden": (6, 0)}, "must be 1 or more; got .7, 6, 0, 5., 1 seeds"),
        ({"seeds": ()}, "must be 1 or more; got .7, 6, 5., 0 seeds"),
    ],
)
def test_sizes_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Autoencoders(7, **{"hidden": (6,), **settings})


# errors of the objective


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalty": "l2"}, "penalty must be one of log, l1, .*; got 'l2'"),
        ({"over": "epoch"}, "over must be batch or data; got 'epoch'"),
        ({"beta": -1.0}, "beta must be 0 or more; got -1"),
        ({"beta": (1.0, -2.0)}, "beta must be 0 or more; got -2"),
        ({"q": 0.0}, "q must be above 0; got 0"),
        ({"q": (3.0, 0.0)}, "q must be above 0; got 0"),
        ({"decay": float("nan")}, "decay must be 0 or more; got nan"),
        ({"pull_away": -0.5}, "pull_away must be 0 or more; got -0.5"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Objective(**settings)


def test_a_target_that_would_broadcast_is_refused(plain):
    """(N, 1) against (N,) gives (N, N) differences and trains the mean of the batch: FACTS.md."""
    unchecked = plain("srae")
    model, z = unchecked.Autoencoders(4, (3,), 2), torch.rand(5, 4)
    column, flat = torch.zeros(5, 1), torch.zeros(5)
    assert unchecked.Objective()(model, z, column, column + 1).isfinite()
    for logits, weights in ((flat, column), (column, flat), (column[:1], column), (column, torch.zeros(5, 2))):
        with pytest.raises(ValueError, match=r"logits must have the shape of the prediction .* got \(5, 1\), "):
            unchecked.Objective()(model, z, logits, weights)


@pytest.mark.parametrize("name", ["beta", "q", "decay", "pull_away"])
def test_settings_are_one_or_one_for_each_module(name):
    model = modules(3)
    with pytest.raises(ValueError, match=f"{name} must be one number or 3, one for each module; got 2"):
        Objective(**{name: (1.0, 2.0)})(model, *batch(model))


def test_a_reconstruction_needs_a_decoder():
    """Without one, a single x-feature would broadcast against all dimensions of the layer."""
    model = modules(1, features=1, decoder=False)
    with pytest.raises(ValueError, match="decoder"):
        Objective("log")(model, *batch(model))


# training


def trained(folder, columns, objective, *, recipe=SHORT, greedy=0, seeds=(3, 1, 4)):
    z, logits, weights = task()
    each = {
        name: tuple(value[k] for k in columns) if isinstance(value := getattr(objective, name), tuple) else value
        for name in ("beta", "q", "decay", "pull_away")
    }
    return srae.fit(
        z,
        logits[:, columns],
        weights[:, columns],
        replace(objective, **each),
        Size((6, 5), 3),
        recipe,
        seeds=[seeds[k] for k in columns],
        order=0,
        name="modules",
        folder=folder,
        greedy=greedy,
    ).model


@pytest.mark.parametrize(
    ("objective", "greedy"),
    [
        (Objective("log", (0.5, 1.0, 4.0), (1.0, 10.0, 100.0), (0.0, 1e-4, 1e-2)), 0),
        (Objective("log", 1.0, 10.0, pull_away=(0.0, 3.0, 0.1), over="data"), 0),
        (Objective("none", decay=(1e-2, 0.0, 1e-3)), 0),
        (Objective("l1", (0.5, 1.0, 4.0)), 1),
    ],
)
def test_modules_trained_together_are_those_trained_one_by_one(objective, greedy, tmp_path, double):
    """Whatever their number and order: they share the batches and nothing else."""
    together = trained(tmp_path, [0, 1, 2], objective, greedy=greedy).state_dict()
    for columns in ([2, 0], [0], [1], [2]):
        found = trained(tmp_path, columns, objective, greedy=greedy).state_dict()
        for name, value in found.items():
            torch.testing.assert_close(value, together[name][columns], atol=1e-9, rtol=1e-7)
    fresh = Autoencoders(10, (6, 5), 3, (3, 1, 4), objective.penalty != "none").state_dict()
    assert all((together[name] - value).abs().amax() > 1e-4 for name, value in fresh.items() if "mean" not in name)


def test_each_step_is_adams(tmp_path, double):
    """Two steps over the whole data, Adam written out, on the slope of the objective, which alone moves the weights."""
    recipe = Recipe(epochs=2, batch_size=40, weight_decay=0.0, learning_rate=1e-2)
    found = dict(trained(tmp_path, [0], Objective(), recipe=recipe).named_parameters())
    z, logits, weights = task()
    model = Autoencoders(10, (6, 5), 3, (3,))
    moments = {name: (0.0, 0.0) for name, _ in model.named_parameters()}
    for step, rate in ((1, 1e-2), (2, 1e-3)):
        named = dict(model.named_parameters())
        value = Objective()(model, z, logits[:, :1], weights[:, :1])
        for (name, parameter), slope in zip(
            named.items(), torch.autograd.grad(value, list(named.values())), strict=True
        ):
            first, second = moments[name]
            moments[name] = 0.9 * first + 0.1 * slope, 0.99 * second + 0.01 * slope**2
            first, second = moments[name][0] / (1 - 0.9**step), moments[name][1] / (1 - 0.99**step)
            parameter.data -= rate * first / (second.sqrt() + 1e-8)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter, atol=1e-10, rtol=1e-8)


def test_training_finds_the_dimensions_that_matter(tmp_path):
    """The logit is the sum of two of six independent dimensions, and two x-features can hold two.

    SRAE gives back the logit, and of the layer these two rather than the other four, which only what is left of the
    x-features can hold.
    """
    z = torch.rand(300, 6, generator=seeded()) * 2
    logits = (z[:, :1] + z[:, 1:2]).expand(-1, 3)
    recipe = Recipe(epochs=80, batch_size=50, weight_decay=0.0, learning_rate=1e-2)
    objective, seeds = Objective(beta=0.5, q=10.0, decay=1e-5), (0, 1, 2)
    settings = {"seeds": seeds, "order": 0, "name": "toy", "folder": tmp_path}
    fit = srae.fit(z, logits, torch.ones(300, 3), objective, Size((16, 8), 2), recipe, **settings)
    fresh = torch.rand(500, 6, generator=seeded(1)) * 2
    with torch.no_grad():
        wanted, found = fresh[:, :2].sum(1, keepdim=True), fit.model(fresh)
        errors = (fit.model.decode(fit.model.encode(fresh)) - fresh).square().mean(1) / fresh.var(0)
    r2 = 1 - (found - wanted).square().mean(0) / wanted.var()
    assert (r2 > 0.99).all(), r2
    assert (errors[:, :2].mean(1) < 0.7 * errors[:, 2:].mean(1)).all(), errors
    assert (errors[:, :2] < 0.6).all(), "half of each would be known from the sum alone"
    assert fit.losses[-1] < 0.5 * fit.losses[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": torch.tensor([[0.5, -0.25], [1, 1]])}, "z must be non-negative, the layer after its ReLU; got -0.25"),
        ({"z": torch.ones(2)}, r"z, logits and weights must be \(N, S\), \(N, 1\) and .*; got \(2,\), \(2, 1\), "),
        ({"z": torch.ones(3, 2)}, r"got \(3, 2\), \(2, 1\), \(2, 1\)"),
        ({"logits": torch.ones(2)}, r"got \(2, 2\), \(2,\), \(2, 1\)"),
        ({"weights": torch.ones(2)}, r"got \(2, 2\), \(2, 1\), \(2,\)"),
        ({"seeds": (0, 1)}, r"must be \(N, S\), \(N, 2\) and \(N, 2\); got \(2, 2\), \(2, 1\), \(2, 1\)"),
        ({"recipe": Recipe()}, "recipe.weight_decay must be 0, the objective spares the biases; got 1e-06"),
        ({"size": Size((3,), 3)}, "features must be at most the 2 dimensions of the layer; got 3"),
    ],
)
def test_what_is_trained_on_is_checked(change, message, plain, tmp_path):
    unchecked = plain("srae")
    tensors = {"z": torch.ones(2, 2), "logits": torch.ones(2, 1), "weights": torch.ones(2, 1)}
    settings = {"objective": unchecked.Objective(), "size": Size((3,), 2), "recipe": SHORT, "seeds": (0,)}
    with pytest.raises(ValueError, match=message):
        unchecked.fit(**{**tensors, **settings, **change}, order=0, name="x", folder=tmp_path)
    assert not list(tmp_path.iterdir())


# greedy pretraining


def test_pretraining_lets_each_layer_reconstruct_its_input(tmp_path):
    z = task()[0].float()
    build = functools.partial(Autoencoders, 10, (8, 6), 4, (0, 1))
    recipe = Recipe(epochs=15, batch_size=10, weight_decay=0.0, learning_rate=1e-2)
    state = srae.pretrained(build, z, recipe, order=0, name="modules", folder=tmp_path)
    fresh, model = build(), build()
    model.load_state_dict(state)
    x = z.expand(2, *z.shape)
    for k in range(3):

        def error(from_, x=x, k=k):
            there = torch.relu(from_.encoder[k](x))
            return (torch.relu(from_.decoder[2 - k](there)) - x).square().mean((1, 2))

        with torch.no_grad():
            assert (error(model) < 0.7 * error(fresh)).all(), k
            x = torch.relu(model.encoder[k](x))
    assert torch.equal(model.head, fresh.head)


def test_training_goes_on_from_the_pretrained_layers(tmp_path, double):
    """An objective without slope leaves the modules where pretraining left them."""
    z, logits, weights = task(1)
    recipe = Recipe(epochs=2, batch_size=20, weight_decay=0.0)
    build = functools.partial(Autoencoders, 10, (6,), 3, (0,))
    expected = srae.pretrained(build, z, replace(recipe, epochs=3), order=0, name="a", folder=tmp_path)
    settings = {"seeds": (0,), "order": 0, "name": "a", "folder": tmp_path, "greedy": 3}
    objective = Objective(beta=0.0, decay=0.0)
    found = srae.fit(z, logits, 0 * weights, objective, Size((6,), 3), recipe, **settings).model.state_dict()
    fresh = build().state_dict()
    for name in ("encoder.0.weight", "encoder.1.weight", "decoder.1.weight"):
        torch.testing.assert_close(found[name], expected[name])
        assert (found[name] - fresh[name]).abs().amax() > 1e-3


# degenerate modules


def test_degenerate_by_hand():
    """Mean contributions of each module's x-features over two samples."""
    means = {
        (1.0, 0.3, 0.0): False,  # the second has just 0.3 of the first
        (1.0, 0.29, 0.2): True,
        (1.0, -0.5, -2.0): True,  # one positive
        (-1.0, -1.0, -1.0): True,  # none, however alike
        (0.0, 0.0, 0.0): True,
        (-3.0, 2.0, 0.7): False,  # in whatever order
    }
    off = torch.tensor([[0.5], [-0.5]])
    contributions = torch.stack([torch.tensor(one) + off for one in means])
    assert srae.degenerate(contributions).tolist() == list(means.values())
    assert srae.degenerate(contributions[:, :, :1]).tolist() == [True] * 6, "one x-feature is never enough"
