import pytest
import torch
from module_toys import SHORT, random, task

from xai_lib import joint, srae, training

pytestmark = pytest.mark.usefixtures("light")


def test_one_logit_is_the_objective_of_one_module():
    """With one head, equal to the module's own, equation 4 is the same."""
    z, logits, weights = (one.float() for one in task(1))
    model, single = joint.JointAutoencoder(10, (8, 6), 3, 1), srae.Objective("log", beta=2.0, q=3.0, decay=0.1)
    model.body.head.data = model.heads.detach().clone()
    found = joint.JointObjective(single)(model, z, logits, weights)
    torch.testing.assert_close(found, single(model.body, z, logits, weights))
    torch.testing.assert_close(model(z), model.body(z))


def test_the_objective_in_loops():
    z, logits, weights = (one.float() for one in task(3, samples=6))
    model = joint.JointAutoencoder(10, (4,), 2, 3, seed=1)
    e = model.body.encode(z)[0]
    back = model.body.decode(e[None])[0]
    expected = 0.0
    for k in range(3):
        for i in range(6):
            expected += weights[i, k] * ((model.heads[k] * e[i]).sum() - logits[i, k]) ** 2 / 18
    for d in range(10):
        error = sum(weights[i].mean() * (back[i, d] - z[i, d]) ** 2 for i in range(6)) / 6
        expected += 5.0 * torch.log(1 + 2.0 * error) / 10
    sizes = [layer.weight for layer in (*model.body.encoder, *model.body.decoder)] + [model.heads]
    expected += 0.01 * sum(value**2 for one in sizes for value in one.flatten())
    found = joint.JointObjective(srae.Objective("log", beta=5.0, q=2.0, decay=0.01))(model, z, logits, weights)
    torch.testing.assert_close(found, expected)


def test_heads_differ_and_depend_on_the_seed_alone():
    one, same, other = (joint.JointAutoencoder(10, (4,), 4, 3, seed).heads for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert len({tuple(head.tolist()) for head in (*one, *other)}) == 6


def test_training_fits_two_logits_that_share_two_x_features(tmp_path):
    z = random(200, 6).float()
    logits = torch.stack([3 * z[:, 0] - z[:, 1], z[:, 0] + 2 * z[:, 1]], 1)
    recipe = training.Recipe(epochs=150, batch_size=50, weight_decay=0.0, learning_rate=1e-2)
    objective = joint.JointObjective(srae.Objective("log", beta=0.0, decay=0.0))
    build = lambda: joint.JointAutoencoder(6, (16,), 4, 2)  # noqa: E731
    tensors = (z, logits, torch.ones(200, 2))
    model = training.fit(build, objective, tensors, recipe, seed=0, name="two", folder=tmp_path).model
    assert ((model(z) - logits).square().mean(0) < 0.05 * logits.var(0)).all()
    again = training.fit(build, objective, tensors, SHORT, seed=0, name="short", folder=tmp_path)
    assert len(again.losses) == SHORT.epochs


def test_bad_input():
    with pytest.raises(ValueError, match="outputs must be 1 or more; got 0"):
        joint.JointAutoencoder(6, (4,), 2, 0)
    with pytest.raises(ValueError, match="features must be at most the 6 dimensions of the layer; got 7"):
        joint.JointAutoencoder(6, (4,), 7, 2)
    z, logits, weights = (one.float() for one in task(3))
    with pytest.raises(ValueError, match=r"logits must have the shape of the prediction .* got \(40, 2\), \(40, 3\)"):
        joint.JointObjective(srae.Objective())(joint.JointAutoencoder(10, (4,), 2, 2), z, logits, weights)
