"""What the comparison of the three ideas adds to the measures that other modules have."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from xai_lib import concept_study, concept_vae, data, explanation, srae, three_ideas, training, xcnn

pytestmark = pytest.mark.usefixtures("light")


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def grey(count, size=8, seed=0):
    return (256 * random(count, 1, size, size, seed=seed)).byte()


@pytest.fixture(scope="module")
def judge():
    torch.manual_seed(0)
    return xcnn.small_cnn((3, 4), classes=3, size=8).eval()


def test_chances_are_those_of_each_images_own_class(judge):
    x, classes = random(5, 1, 8, 8), torch.tensor([0, 2, 1, 1, 0])
    with torch.no_grad():
        wanted = [judge(x[k : k + 1]).softmax(1)[0, one].item() for k, one in enumerate(classes.tolist())]
    assert three_ideas.chances(judge, classes, x).tolist() == pytest.approx(wanted, rel=1e-5)


# maps


def test_maps_of_methods_with_one_map(judge):
    torch.manual_seed(1)
    own, images = xcnn.XCNN(xcnn.Generator(1, 2), judge).eval(), grey(4)
    images[:, :, :4] = 0  # background
    maps = three_ideas.single_maps(judge, own, -1, images, concept_study.UNIT, seed=3)
    x = (images / 255).requires_grad_()
    (slope,) = torch.autograd.grad(judge(x).amax(1).sum(), x)
    assert torch.allclose(maps["gradient"], slope * x.detach(), atol=1e-6)  # of the class that is predicted
    assert torch.allclose(maps["xcnn"], -own.heatmap(x.detach()).detach(), atol=1e-6)
    assert maps["edges"][:, :, :3].abs().max() == 0  # row 3 borders on ink
    assert maps["edges"].max() > 0
    assert torch.equal(maps["digit"], images / 255)
    assert set(maps) | {"module", "vae"} == set(three_ideas.METHODS)
    assert {one.shape for one in maps.values()} == {(4, 1, 8, 8)}


@pytest.fixture(scope="module")
def module(judge, tmp_path_factory):
    attached = explanation.ExplanationModule.attach(judge, "8", concept_study.UNIT)
    recipe = training.Recipe(epochs=2, batch_size=10, weight_decay=0.0)
    labels, folder = torch.arange(30) % 3, tmp_path_factory.mktemp("modules")
    return attached.fit(grey(30), labels, [2, 0], folder=folder, recipe=recipe, size=srae.Size((6,), 2))


@pytest.mark.parametrize("at", [None, "3"])
def test_module_parts_are_those_of_each_images_class(module, at):
    images, classes = grey(5, seed=1), torch.tensor([2, 0, 0, 2, 2])
    added, maps = three_ideas.module_parts(module, images, classes, at)
    for k, category in enumerate(classes.tolist()):
        one = images[k : k + 1]
        assert torch.allclose(added[k], module.contributions(one)[module.categories.index(category), 0], atol=1e-5)
        assert torch.allclose(maps[k], module.maps(one, category, at)[0], atol=1e-6)
    assert not torch.allclose(added[0], module.contributions(images[:1])[1, 0])  # the other category's


def test_module_parts_refuse_a_class_without_module(module):
    with pytest.raises(ValueError, match=r"classes must be among \(2, 0\).*got \[1\]"):
        three_ideas.module_parts(module, grey(2), torch.tensor([1, 0]))


def test_what_vanishes_is_what_the_drawing_without_a_map_lacks():
    torch.manual_seed(0)
    model = concept_vae.ConceptVAE(size=8, width=1 / 64, min_maps=14).eval()
    x, numbers = random(3, 1, 8, 8), [11, 13]
    found = training.predict(model, x, function=lambda net, one: three_ideas.vanished(net, one, numbers))
    assert found.abs().amax((2, 3)).min() > 0
    for k, number in enumerate(numbers):
        kept = [one for one in range(14) if one != number]
        with torch.no_grad():
            wanted = model(x) - concept_study.composed(model, x, kept)
        assert torch.allclose(found[:, [k]], wanted, atol=1e-6)


def test_parts_count_by_their_share_without_sign():
    sizes = torch.tensor([[-50.0, 49.0, 1.0], [99.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    assert three_ideas.parts_on(sizes).tolist() == [[True, True, True], [True, False, False], [False] * 3]
    assert three_ideas.parts_on(sizes, 0.5).tolist() == [[True, False, False], [True, False, False], [False] * 3]


@pytest.mark.parametrize("share", [0, 1.5, -0.1])
def test_parts_refuse_a_share(share):
    with pytest.raises(ValueError, match=f"share must lie above 0 and not above 1; got {share}"):
        three_ideas.parts_on(torch.ones(1, 2), share)


def test_sums_of_parts():
    parts = torch.tensor([[[[1.0, -2.0]], [[3.0, 4.0]]]])
    assert three_ideas.weighted(parts, torch.tensor([[2.0, -1.0]])).tolist() == [[[[-1.0, -8.0]]]]
    assert three_ideas.mean_change(parts, torch.tensor([[True, True]])).tolist() == [[[[2.0, 3.0]]]]
    assert three_ideas.mean_change(parts, torch.tensor([[True, False]])).tolist() == [[[[1.0, 2.0]]]]
    assert three_ideas.mean_change(parts, torch.tensor([[False, False]])).tolist() == [[[[0.0, 0.0]]]]


# measures


def test_a_linear_decoder_tells_what_the_parts_tell(tmp_path):
    labels = torch.arange(60) % 3
    parts, noise = codes(labels), random(60, 2, 4)
    recipe = training.Recipe(epochs=40, batch_size=20, learning_rate=0.05)
    for given, least, most in ((parts, 100, 100), (noise, 0, 70)):
        known, new = (given[:30], labels[:30]), (given[30:], labels[30:])
        found = three_ideas.told(known, new, recipe, seed=0, name="told", folder=tmp_path)
        assert least <= found <= most


def codes(labels):
    """Parts (N, 1, 3), the label as one of three places, with another scale and zero."""
    return 1000 + 50 * nn.functional.one_hot(labels, 3)[:, None].float()


def test_parts_that_are_all_the_same_tell_nothing(tmp_path):
    same = (torch.ones(9, 4), torch.arange(9) % 3)
    recipe = training.Recipe(epochs=1)
    assert three_ideas.told(same, same, recipe, seed=0, name="told", folder=tmp_path) == pytest.approx(100 / 3)


def test_agreement_of_methods_and_of_seeds():
    up = torch.arange(6.0).view(1, 1, 2, 3)
    flat = torch.zeros(1, 1, 2, 3)
    maps = {
        0: {"a": torch.cat([up, up]), "b": torch.cat([-up, flat])},
        4: {"a": torch.cat([up, -up]), "b": torch.cat([up, up])},
    }
    found = three_ideas.agreement(maps)
    assert found["a", "b"] == {0: pytest.approx(-1), 4: pytest.approx(0)}  # the flat map does not count
    assert found["a", "a"] == {"0 and 4": pytest.approx(0)}
    assert found["b", "b"] == {"0 and 4": pytest.approx(-1)}
    assert three_ideas.agreement({0: maps[0]})["a", "a"] == {}
    assert list(found) == [("a", "b"), ("a", "a"), ("b", "b")]


def test_paired_differences_over_seeds_and_over_images():
    one = {0: torch.tensor([1.0, 2.0, 9.0]), 1: torch.tensor([3.0, 6.0, math.nan])}
    other = {0: torch.tensor([0.0, 1.0, 0.0]), 1: torch.tensor([0.0, 1.0, 0.0])}
    seeds, images = three_ideas.paired(one, other)
    assert seeds == {"0": 1.0, "1": 4.0}  # the third image counts in neither
    assert images == {"0": 2.0, "1": 3.0}


def test_paired_refuses_other_seeds_and_undefined_measures():
    some, undefined = {0: torch.ones(2)}, {0: torch.full((2,), math.nan)}
    with pytest.raises(ValueError, match=r"other must have the seeds of one, \[0\]; got \[1\]"):
        three_ideas.paired(some, {1: torch.ones(2)})
    with pytest.raises(ValueError, match="must both be defined for some image; got none"):
        three_ideas.paired(some, undefined)


# costs


def test_training_seconds_are_those_of_the_file_with_the_models_weights(tmp_path):
    data = random(20, 4), torch.arange(20) % 3
    short, long = (
        training.fit(
            lambda: nn.Linear(4, 3), cross_entropy, data, training.Recipe(epochs), seed=0, name="net", folder=tmp_path
        )
        for epochs in (1, 30)
    )
    (tmp_path / "net-damaged.safetensors").write_bytes(b"no weights")
    assert short.seconds != long.seconds
    for one in (short, long):
        assert three_ideas.training_seconds(one.model, tmp_path, "net") == pytest.approx(one.seconds, abs=6e-4)
    nn.init.zeros_(short.model.weight)
    assert three_ideas.training_seconds(short.model, tmp_path, "net") is None


def cross_entropy(model, x, labels):
    return nn.functional.cross_entropy(model(x), labels)


def test_the_block_of_the_page_runs(module):
    page = (Path(__file__).resolve().parent.parent / "book" / "three-ideas.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"(?ms)^```python\n(.*?)^```$", page)
    torch.manual_seed(0)
    vae = concept_vae.ConceptVAE(size=8, width=1 / 64, min_maps=28).eval()
    images = labelled(grey(4))
    names = {"module": module, "vae": vae, "digits": images, "classes": torch.tensor([0, 2, 2, 0])}
    exec(block, names)
    changes = names["changes"]
    assert changes.shape == (4, 18, 8, 8)
    assert torch.equal(names["counting"], three_ideas.parts_on(changes.abs().sum((2, 3))))
    assert names["counting"].any()
    assert torch.equal(names["another_map"], three_ideas.mean_change(changes, names["counting"]))
    assert torch.allclose(names["one_map"][:, 0], (names["parts"] * names["added"][:, :, None, None]).sum(1))


def labelled(images):
    return data.ImageSet(images, torch.zeros(len(images), dtype=torch.int64), ("one",), "by hand")
