from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from xai_lib import concept_classifier, concept_study, concept_vae, concepts, data, training, xcnn
from xai_lib.concept_classifier import Objective, layer_maps, maps_and_logits

pytestmark = pytest.mark.usefixtures("light")
FIRST = 3
LABELS = torch.tensor([0, 2, 3, 3, 4, 1, 4, 4])


def batch(count=8, size=8, channels=1, seed=0):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def network(seed=0):
    """Layers 0 to 3: convolution, ReLU in place, pooling, the same; three classes, six maps."""
    torch.manual_seed(seed)
    convolutions = nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3, padding=1)
    return nn.Sequential(*convolutions, nn.ReLU(), nn.Flatten(), nn.Linear(96, FIRST))


class Parts(nn.Module):
    """A network that is no sequence: one layer runs twice, one never, one gives two things."""

    def __init__(self):
        super().__init__()
        self.twice, self.never, self.head = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 1), nn.Linear(16, 2)
        self.pair = nn.MaxPool2d(2, return_indices=True)

    def forward(self, x):
        return self.head(self.pair(self.twice(self.twice(x)))[0].flatten(1))


# the loss


def slow(model, images, labels, layer, weight):
    """Image by image in float64; `layer` is a position in a sequence of layers."""
    model, images = model.double(), images.double()
    classes, errors = [], {}
    for image, label in zip(images, labels.tolist(), strict=True):
        if label < FIRST:
            classes.append(-model(image[None])[0].log_softmax(0)[label])
            continue
        own = model[: layer + 1](image[None])[0, label]
        small = functional.interpolate(image[None], own.shape, mode="bilinear", align_corners=False)[0, 0]
        errors.setdefault(label, []).append((own - small).square().mean())
    return sum(classes) / len(classes) + weight * sum(sum(one) / len(one) for one in errors.values())


@pytest.mark.parametrize("layer", [1, 2, 3, 4])
def test_the_loss_is_the_slow_one(layer):
    found = Objective(str(layer), FIRST, 2.5)(network(), batch(), LABELS)
    torch.testing.assert_close(found.double(), slow(network(), batch(), LABELS, layer, 2.5), rtol=1e-5, atol=0)


def test_classes_come_from_images_and_concepts_from_samples_alone():
    """Each part of the loss is that of its own images, and its gradient leaves the rest of the network at zero."""
    has_class, model = LABELS < FIRST, network()
    logits = model(batch())
    expected = functional.cross_entropy(logits[has_class], LABELS[has_class])
    torch.testing.assert_close(Objective("1", FIRST, 0.0)(model, batch(), LABELS), expected)
    Objective("4", FIRST)(model, batch()[~has_class], LABELS[~has_class]).backward()
    assert model[6].weight.grad.count_nonzero() == 0, "samples carry no class"
    rows = model[3].weight.grad.flatten(1).abs().sum(1) > 0
    assert rows.tolist() == [False, False, False, True, True, False], "maps 3 and 4 alone"
    assert model[0].weight.grad.abs().sum() > 0


def test_a_batch_of_one_kind_is_whole():
    has_class, one = LABELS < FIRST, Objective("1", FIRST)
    classes = one(network(), batch()[has_class], LABELS[has_class])
    samples = one(network(), batch()[~has_class], LABELS[~has_class])
    torch.testing.assert_close(classes + samples, one(network(), batch(), LABELS))


# the layer


def test_maps_are_those_of_the_layer_even_where_the_next_one_works_in_place():
    model, x = network(), batch()
    maps, logits = maps_and_logits(model, x, "0")
    assert torch.equal(maps, model[0](x))
    assert maps.min() < 0, "before the ReLU"
    assert torch.equal(logits, model(x))
    assert torch.equal(layer_maps(model, x, "1"), model[0](x).relu())
    assert not any(part._forward_hooks for part in model.modules())


def test_any_layer_of_torchvisions_resnet():
    torch.manual_seed(0)
    model, x = torchvision.models.resnet18(num_classes=FIRST).eval(), batch(8, 32, 3)
    stem = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    torch.testing.assert_close(layer_maps(model, x, "layer1.0"), model.layer1[0](stem))
    Objective("layer1.0.bn1", FIRST)(model, x, LABELS).backward()
    assert model.conv1.weight.grad.abs().sum() > 0


def test_a_layer_that_runs_twice_counts_last():
    torch.manual_seed(0)
    model, x = Parts(), batch()
    torch.testing.assert_close(layer_maps(model, x, "twice"), model.twice(model.twice(x)))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("twic", "layer must be a module of the network, for instance twice; got 'twic'"),
        ("never", "layer 'never' is not run by Parts"),
        ("head", r"layer must give maps \(N, K, S, T\); got \(8, 2\) from 'head'"),
        ("pair", r"layer must give maps \(N, K, S, T\); got tuple from 'pair'"),
    ],
)
def test_layers_that_will_not_do(layer, message):
    model = Parts()
    with pytest.raises(ValueError, match=f"^{message}$"):
        maps_and_logits(model, batch(), layer)
    assert not any(part._forward_hooks for part in model.modules())


# bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first": 0}, "first must be at least 1 and finite; got 0"),
        ({"weight": -1.0}, "weight must be at least 0 and finite; got -1.0"),
        ({"weight": float("nan")}, "weight must be at least 0 and finite; got nan"),
    ],
)
def test_settings(settings, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Objective(**{"layer": "1", "first": FIRST, **settings})


def test_images_outside_0_to_1_and_labels_beyond_the_maps():
    with pytest.raises(ValueError, match=r"^images must be from 0 to 1; got -0\.5 to 0\.\d+$"):
        Objective("1", FIRST)(network(), batch() - 0.5 * (batch() == batch().min()) - batch().min(), LABELS)
    with pytest.raises(ValueError, match="^labels must be below the number of maps, 6; got 6$"):
        Objective("1", FIRST)(network(), batch(), LABELS.where(LABELS != 4, 6))


# a toy on which maps learn their concepts


def bars(count):
    """A bar in the upper half (class 0), or one in the lower half (class 1), at a random column, and its windows."""
    random = torch.Generator().manual_seed(0)
    images, labels = torch.zeros(count, 1, 8, 8, dtype=torch.uint8), torch.arange(count) % 2
    for image, label, column in zip(images, labels.tolist(), torch.randint(8, (count,), generator=random), strict=True):
        image[0, 4 * label : 4 * label + 4, column] = 255
        image[0, 7 - 7 * label] = 255  # a line that no window of the class holds
    windows = [concepts.Window(one, 2 + one, (4 * one, 4 * one + 4), (0, 8)) for one in (0, 1)]
    return data.ImageSet(images, labels, ("upper", "lower"), "bars"), windows


def test_map_c_learns_concept_c_while_the_network_learns_to_classify(tmp_path):
    images, windows = bars(64)
    samples = concepts.sample(images, torch.Generator().manual_seed(0), windows, concepts.Sampling(32, p=1.0, sd=0.0))
    recipe, found = training.Recipe(15, 16, learning_rate=1e-2, weight_decay=0.0, drop_by=0.3), {}
    for weight in (0.0, 1.0):
        model = training.fit(
            partial(xcnn.small_cnn, (4, 4), 2, size=8),
            Objective("2", 2, weight),
            concept_study.joined(images, samples),
            recipe,
            seed=0,
            name=f"toy{weight:g}",
            folder=tmp_path,
            prepare=concept_study.UNIT,
        ).model
        assert (training.predict(model, images.images, concept_study.UNIT).argmax(1) == images.labels).all()
        scores = concept_classifier.concept_scores(model, samples, samples, partial(layer_maps, layer="2"))
        found[weight] = scores["map_c"]
    assert found[1.0] > 0.8
    assert found[0.0] < 0.5


# scores


def cut(labels, seed):
    """Samples of one pixel of ink each, of any labels."""
    images = torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8)
    for image, place in zip(images, torch.randperm(64, generator=torch.Generator().manual_seed(seed)), strict=False):
        image.view(-1)[place] = 255
    few = torch.zeros(0, dtype=torch.int64)
    edges = torch.zeros(len(labels), 4, dtype=torch.int64)
    return concepts.Concepts(images, torch.tensor(labels), edges[:, 0], edges, (), few, few)


def test_scores_by_hand():
    """Map 1 copies and maps 2 and 4 are its negative; map 3, of a concept, and map 0 are blind."""
    signs = torch.tensor([0.0, 1.0, -1.0, 0.0, -1.0])[:, None, None]
    found = concept_classifier.concept_scores(
        nn.Identity(), cut([1, 1, 3, 4], 0), cut([4, 3, 1], 1), lambda net, x: x * signs
    )
    # concept 1: 1, others 0 and -1; concept 3: 0, others 1 and -1; concept 4: -1, others 1 and 0
    assert found["map_c"] == pytest.approx(0.0, abs=1e-6)
    assert found["others"] == pytest.approx((-0.5 + 0.0 + 0.5) / 3, abs=1e-6)
    assert found["matched"] == pytest.approx(1.0, abs=1e-6), "maps 1, 2 and 4 are as good for any concept"


def test_matched_maps_are_chosen_on_learnt_samples():
    """Map 1 copies the upper half, map 2 the lower; concepts have changed halves between learnt and unseen samples."""
    halves = torch.zeros(3, 8, 8)
    halves[1, :4], halves[2, 4:] = 1.0, 1.0
    learnt, unseen = cut([1, 2], 0), cut([1, 2], 0)
    for of, upper in ((learnt, 0), (unseen, 1)):
        of.images[:] = 0
        of.images[upper, 0, 1, 3], of.images[1 - upper, 0, 6, 2] = 255, 255
    found = concept_classifier.concept_scores(nn.Identity(), learnt, unseen, lambda net, x: x * halves)
    assert found == {"map_c": 0.0, "others": pytest.approx(1.0), "matched": 0.0}


@pytest.mark.parametrize(("learnt", "unseen"), [([1, 1], [1]), ([1, 2], [1, 3]), ([1, 2, 3], [1, 2])])
def test_scores_need_the_same_concepts(learnt, unseen):
    told = f"{sorted(set(learnt))} and {sorted(set(unseen))}"
    with pytest.raises(ValueError, match="^learnt and unseen must hold the same two concepts or more; got ") as info:
        concept_classifier.concept_scores(nn.Identity(), cut(learnt, 0), cut(unseen, 1), layer_maps)
    assert str(info.value).endswith(told)


def test_the_loss_on_the_second_block_is_that_of_the_studys_classifier():
    """`concept_study.ClassifierObjective`, which decides the paper's claim, is this one at a layer of its own."""
    torch.manual_seed(0)
    model, x, labels = xcnn.small_cnn((4, 14), size=8), batch(), LABELS + 8
    mine = concept_classifier.Objective(str(concept_study.CLASSIFIER_LAYERS - 1), 10)(model, x, labels)
    torch.testing.assert_close(mine, concept_study.ClassifierObjective()(model, x, labels))
    assert concept_vae.concept_loss(layer_maps(model, x, "6"), x, labels) > 0
