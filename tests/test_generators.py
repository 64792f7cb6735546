import math

import pytest
import torch
from test_xcnn import slow_bilinear, slow_convolution, slow_pool
from torch import nn

from xai_lib import attribution, generators, losses, training, xcnn
from xai_lib.vgg import vgg16


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def count(model):
    return sum(one.numel() for one in model.parameters())


# the paper's generator with other choices


def slow_max_pool(plane):
    """Maximum of each 2x2 square; an odd last row or column is dropped."""
    rows, columns = len(plane) // 2, len(plane[0]) // 2
    return [
        [max(plane[2 * y + i][2 * x + j] for i in range(2) for j in range(2)) for x in range(columns)]
        for y in range(rows)
    ]


def every_second(plane):
    return [row[::2] for row in plane[::2]]


HALVE = {"average": slow_pool, "max": slow_max_pool, "stride": every_second}


def slow_maps(generator, pooling, image):
    height, width = image.shape[-2:]
    first, last = (layer for layer in generator.modules() if isinstance(layer, nn.Conv2d))
    planes = slow_convolution(image.tolist(), first.weight.tolist(), first.bias.tolist())
    planes = [[[max(0.0, one) for one in row] for row in plane] for plane in planes]
    planes = [slow_bilinear(HALVE[pooling](plane), height, width) for plane in planes]
    planes = slow_convolution(planes, last.weight.tolist(), last.bias.tolist())
    return [[[math.tanh(one) for one in row] for row in plane] for plane in planes]


@pytest.mark.parametrize("pooling", generators.POOLINGS)
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 6, 9), (1, 7, 5), (2, 2, 3), (1, 3, 2)])
def test_the_generator_is_the_slow_form(pooling, channels, height, width):
    torch.manual_seed(0)
    generator = generators.generator(channels, 4, pooling).double()
    images = torch.randn(2, channels, height, width, dtype=torch.float64)
    expected = torch.tensor([slow_maps(generator, pooling, one) for one in images], dtype=torch.float64)
    torch.testing.assert_close(generator(images), expected, atol=1e-13, rtol=1e-11)
    model = xcnn.XCNN(generator, xcnn.small_cnn((2,), 2, size=2))
    torch.testing.assert_close(model.heatmap(images), expected, atol=1e-13, rtol=1e-11)


def test_wide_gives_the_classifier_each_of_its_channels():
    torch.manual_seed(0)
    model = generators.Wide(2, 4, 3, nn.Identity()).double()
    images = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    expected = torch.tensor([slow_maps(model, "average", one) for one in images], dtype=torch.float64)
    torch.testing.assert_close(model.decode(model.upsample(model.encode(images), (5, 6))), expected)
    model.discriminator = xcnn.small_cnn((2,), 5, in_channels=3, size=8).double().eval()
    images = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    maps = model.decode(model.upsample(model.encode(images), (8, 8)))
    torch.testing.assert_close(model(images), model.discriminator(maps))


def test_the_default_is_the_papers_generator():
    torch.manual_seed(0)
    paper = xcnn.Generator(3, 8)
    torch.manual_seed(0)
    found = generators.generator(3, 8)
    assert repr(found) == repr(paper)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(found(images), paper(images))


@pytest.mark.parametrize("pooling", generators.POOLINGS)
def test_parameters_by_hand(pooling):
    with torch.device("meta"):
        found = generators.generator(3, 128, pooling)
    assert count(found) == 3 * 128 * 9 + 128 + 128 * 9 + 1


def test_parameters_of_wide_by_hand():
    with torch.device("meta"):
        found = generators.Wide(3, 128, 3, nn.Identity())
    assert count(found) == 3 * 128 * 9 + 128 + 128 * 3 * 9 + 3


@pytest.mark.parametrize("pooling", ["mean", "", "Max"])
def test_pooling_is_checked(pooling):
    with pytest.raises(ValueError, match=f"pooling must be one of average, max, stride; got '{pooling}'"):
        generators.generator(1, 4, pooling)


# training in front of a classifier


IMAGES = torch.rand(40, 1, 8, 8, generator=seeded())
LABELS = torch.randint(0, 3, (40,), generator=seeded(1))
RECIPE = training.Recipe(epochs=4, batch_size=16, learning_rate=0.01, weight_decay=0.1)  # 3 batches an epoch


@pytest.fixture
def small_training(monkeypatch):
    """One thread, as their number is in the key; the library's code not hashed, which takes longer than to train."""
    monkeypatch.setattr(training.provenance, "code_hashes", lambda path: {path.name: "the same throughout"})
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Steps:
    """Counts steps, and ends a training at one; no part of what a model's key hangs on."""

    done = 0
    last = None


class Interrupted(BaseException):
    """Ends a training as a signal does."""


def watched(model, images, labels):
    Steps.done += 1
    if Steps.done == Steps.last:
        raise Interrupted
    return losses.cross_entropy(model, images, labels)


def with_generator(make):
    return lambda: xcnn.XCNN(make(), xcnn.small_cnn((4, 6), 3, size=8))


def learnt():
    return xcnn.Generator(1, 3)


def frozen():
    return generators.Frozen(xcnn.Generator(1, 3))


def train(folder, build, last=None, recipe=RECIPE):
    Steps.done, Steps.last = 0, last
    return training.fit(build, watched, [IMAGES, LABELS], recipe, seed=0, name="toy", folder=folder)


def initial(build):
    """The weights that a training with seed 0 starts from."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().state_dict()


def unchanged(fit, build, part):
    """Names of the weights and statistics of a part that are as they were before training."""
    before = initial(build)
    after = fit.model.state_dict()
    assert list(after) == list(before)
    return {name for name in before if name.startswith(part) and torch.equal(before[name], after[name])}


@pytest.mark.usefixtures("small_training")
def test_frozen_keeps_its_weights_while_the_classifier_learns(tmp_path):
    build = with_generator(frozen)
    done = train(tmp_path, build)
    assert Steps.done == 12
    kept = unchanged(done, build, "generator.")
    assert len(kept) == 4, "the weights and biases of two convolutions; weight decay does not count"
    assert not unchanged(done, build, "discriminator.")
    assert not any(one.requires_grad for one in done.model.generator.parameters())
    assert all(one.requires_grad for one in done.model.discriminator.parameters())
    assert not unchanged(train(tmp_path, with_generator(learnt)), with_generator(learnt), "generator.")


@pytest.mark.usefixtures("small_training")
def test_frozen_starts_from_the_weights_of_the_learnt_generator():
    one, two = (list(initial(with_generator(make)).values()) for make in (learnt, frozen))
    assert all(torch.equal(first, second) for first, second in zip(one, two, strict=True))


@pytest.mark.usefixtures("small_training")
def test_models_of_one_name_and_seed_with_other_generators_have_files_of_their_own(tmp_path):
    builds = {
        name: with_generator(make)
        for name, make in {
            "learnt": learnt,
            "frozen": frozen,
            "edges": generators.Edges,
            "max": lambda: generators.generator(1, 3, "max"),
            "stride": lambda: generators.generator(1, 3, "stride"),
            "frozen max": lambda: generators.Frozen(generators.generator(1, 3, "max")),
        }.items()
    }
    builds["1x1"] = lambda: generators.XCNN1x1(learnt(), xcnn.small_cnn((4, 6), 3, in_channels=2, size=8), 1)
    short = training.Recipe(epochs=1, batch_size=40)
    first = {name: train(tmp_path, build, recipe=short) for name, build in builds.items()}
    assert len({done.path for done in first.values()}) == len(builds)
    for name, build in builds.items():
        again = train(tmp_path, build, last=1, recipe=short)
        assert (again.reused, again.path) == (True, first[name].path), name
        assert torch.equal(training.predict(again.model, IMAGES), training.predict(first[name].model, IMAGES)), name


@pytest.mark.usefixtures("small_training")
@pytest.mark.parametrize("make", [frozen, generators.Edges])
def test_an_interrupted_training_goes_on(tmp_path, monkeypatch, make):
    """The optimiser has no state for what takes no gradients, and the checkpoint none either."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    whole = train(tmp_path / "whole", with_generator(make))
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", with_generator(make), last=8)
    resumed = train(tmp_path / "parts", with_generator(make))
    assert Steps.done == 6, "the epochs three and four alone"
    assert resumed.losses == whole.losses
    assert resumed.path.name == whole.path.name
    one, two = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


# a generator that is frozen


def test_frozen_draws_the_maps_of_its_generator():
    torch.manual_seed(0)
    inner = xcnn.Generator(3, 4)
    images = torch.randn(2, 3, 7, 6, generator=seeded())
    expected = inner(images)
    model = xcnn.XCNN(generators.Frozen(inner), xcnn.small_cnn((2,), 5, size=6))
    assert torch.equal(model.heatmap(images), expected)
    with pytest.raises(ValueError, match=r"x must be images \(N, 3, H, W\).* got shape \(2, 1, 7, 6\)"):
        model.heatmap(images[:, :1])
    with pytest.raises(ValueError, match=r"x must be images \(N, 3, H, W\).* got shape \(2, 3, 1, 6\)"):
        model.heatmap(images[:, :, :1])


@pytest.mark.parametrize("method", ["gradient", "lrp", "xcnn"])
def test_a_frozen_generator_is_explained_as_it_was_before(method):
    torch.manual_seed(0)
    model = xcnn.XCNN(xcnn.Generator(3, 4), xcnn.small_cnn((2, 3), 5, size=8))
    images = torch.randn(2, 3, 8, 8, generator=seeded())
    before = attribution.explain(method, model, images, 1)
    model.generator = generators.Frozen(model.generator)
    after = attribution.explain(method, model, images, 1)
    assert before.std() > 0
    torch.testing.assert_close(after, before)
    assert not any(one.requires_grad for one in model.generator.parameters()), "still frozen"


# edges


def slow_edges(image):
    """Gradient magnitude of one image (C, H, W) as nested lists, the rim repeated."""
    height, width = len(image[0]), len(image[0][0])
    weights = {-1: 0.25, 0: 0.5, 1: 0.25}

    def grey(y, x):
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        return sum(plane[y][x] for plane in image) / len(image)

    def value(y, x):
        down = sum(share * (grey(y + 1, x + k) - grey(y - 1, x + k)) for k, share in weights.items())
        along = sum(share * (grey(y + k, x + 1) - grey(y + k, x - 1)) for k, share in weights.items())
        return math.hypot(down, along)

    return [[value(y, x) for x in range(width)] for y in range(height)]


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 6, 5), (3, 4, 7), (2, 2, 2), (1, 1, 4), (1, 1, 1)])
def test_edges_are_the_slow_form(channels, height, width):
    images = torch.randn(3, channels, height, width, generator=seeded(), dtype=torch.float64)
    expected = torch.tensor([[slow_edges(one)] for one in images.tolist()], dtype=torch.float64)
    found = generators.edges(images)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, atol=1e-14, rtol=1e-12)
    torch.testing.assert_close(generators.Edges()(images), expected.tanh(), atol=1e-14, rtol=1e-12)
    torch.testing.assert_close(generators.edges(images.float()).double(), expected, atol=1e-5, rtol=1e-5)


HALF, DIAGONAL = 0.5, math.sqrt(2) / 4


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        # a step from 1 to 4: 3 on either side, also where it meets the rim; nothing further off
        ([[1, 1, 1, 4, 4, 4]] * 4, [[0, 0, 3, 3, 0, 0]] * 4),
        # one step at the rim itself
        ([[0, 2, 2, 2]] * 3, [[2, 2, 0, 0]] * 3),
        # a ramp of 2 a pixel: the difference over two pixels, half of it at the rim, which is repeated
        ([[0, 2, 4, 6, 8]] * 3, [[2, 4, 4, 4, 2]] * 3),
        # a plane, 3 down and 4 along: 5 a pixel
        (
            [[3 * y + 4 * x for x in range(4)] for y in range(4)],
            [[math.hypot(3 * (1 + (0 < y < 3)), 4 * (1 + (0 < x < 3))) for x in range(4)] for y in range(4)],
        ),
        # one bright pixel
        (
            [[0] * 5, [0] * 5, [0, 0, 1, 0, 0], [0] * 5, [0] * 5],
            [
                [0] * 5,
                [0, DIAGONAL, HALF, DIAGONAL, 0],
                [0, HALF, 0, HALF, 0],
                [0, DIAGONAL, HALF, DIAGONAL, 0],
                [0] * 5,
            ],
        ),
        # a flat image has no rim of its own
        ([[7] * 4] * 3, [[0] * 4] * 3),
    ],
)
def test_edges_by_hand(image, expected):
    image, expected = (torch.tensor([[one]], dtype=torch.float32) for one in (image, expected))
    torch.testing.assert_close(generators.edges(image), expected)
    torch.testing.assert_close(generators.edges(image.mT), expected.mT)
    torch.testing.assert_close(generators.edges(-image), expected)
    torch.testing.assert_close(generators.edges(3 * image + 5), 3 * expected)


def test_edges_are_those_of_the_mean_over_channels():
    step = torch.tensor([0.0, 0.0, 3.0, 3.0]).expand(1, 1, 4, 4)
    found = generators.edges(torch.cat([step, 0 * step, 0 * step], 1))
    assert found[0, 0, 0].tolist() == [0, 1, 1, 0]
    assert not generators.edges(torch.cat([step, -step], 1)).any(), "equal in grey"


def test_edge_maps_lie_between_0_and_1_and_are_0_where_an_image_is_flat():
    images = torch.randn(3, 2, 9, 8, generator=seeded()) * torch.tensor([0.1, 1.0, 1000.0]).view(3, 1, 1, 1)
    found = generators.Edges()(images)
    assert (found >= 0).all()
    assert (found <= 1).all()
    assert 0 < found[0].max() < 0.5
    assert found[2].max() == 1
    flat = torch.randn(5, 3, 1, 1, generator=seeded()).expand(-1, -1, 6, 6)
    assert generators.Edges()(flat).max() < 1e-6


def test_edges_have_a_gradient_also_where_an_image_is_flat():
    """A gradient through sqrt(0) is NaN; half of this image has no edge."""
    images = torch.zeros(1, 1, 6, 8)
    images[..., 6:] = 1
    images.requires_grad_()
    generators.edges(images).sum().backward()
    assert images.grad.isfinite().all()
    assert images.grad.abs().max() > 0


def test_edges_stand_in_for_a_learnt_map():
    torch.manual_seed(0)
    model = xcnn.XCNN(generators.Edges(), xcnn.small_cnn((2, 3), 5, in_channels=3, size=8)).eval()
    images = torch.rand(2, 3, 8, 8, generator=seeded())
    seen = generators.edges(images).tanh()
    assert torch.equal(model.heatmap(images), seen)
    assert torch.equal(model(images), model.discriminator(seen.expand(-1, 3, -1, -1)))
    assert torch.equal(attribution.explain("xcnn", model, images, 1), seen)
    assert count(model) == count(model.discriminator)
    slopes = attribution.explain("gradient", model, images, 1)
    assert slopes.isfinite().all()
    assert slopes.abs().max() > 0
    with pytest.raises(ValueError, match="no rule covers mean .* in layer 'generator'"):
        attribution.explain("lrp", model, images, 1)


# the 1x1 branch


def two_ways(channels=1, in_channels=3):
    torch.manual_seed(0)
    classifier = xcnn.small_cnn((4, 6), 5, in_channels=1 + channels, size=8)
    return generators.XCNN1x1(xcnn.Generator(in_channels, 4), classifier, in_channels, channels).eval()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_classifier_sees_map_and_branch_in_this_order(channels):
    model = two_ways(channels)
    images = torch.randn(2, 3, 8, 8, generator=seeded())
    weight, bias = model.branch[0].weight[:, :, 0, 0], model.branch[0].bias
    branch = (torch.einsum("oc,nchw->nohw", weight, images) + bias.view(-1, 1, 1)).tanh()
    assert branch.shape == (2, channels, 8, 8)
    expected = model.discriminator(torch.cat([model.generator(images), branch], 1))
    torch.testing.assert_close(model(images), expected)
    assert torch.equal(model.heatmap(images), model.generator(images)), "the map is the generator's alone"


def blocked(model, *parts):
    """Make the map, the branch, or both the same for all images."""
    for part in parts:
        nn.init.zeros_({"map": model.generator.decode[0], "branch": model.branch[0]}[part].weight)
    return model


@pytest.mark.parametrize("parts", [(), ("map",), ("branch",), ("map", "branch")])
def test_logits_depend_on_the_map_and_on_the_branch(parts):
    model = blocked(two_ways(), *parts)
    logits = model(torch.randn(4, 3, 8, 8, generator=seeded()))
    assert logits.shape == (4, 5)
    if len(parts) == 2:
        assert torch.equal(logits, logits[:1].expand(4, -1))
    else:
        assert logits.std(0).min() > 1e-4
    logits.square().sum().backward()
    learns = {"map": model.generator.decode[0].weight, "branch": model.branch[0].weight}
    assert all(one.grad.abs().max() > 0 for one in learns.values()), "also a blocked part can learn"


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        # the paper's 29,899 on MNIST, one more input channel to 16 kernels 3x3, a weight and a bias
        (lambda: generators.XCNN1x1(xcnn.Generator(1, 32), xcnn.small_cnn(in_channels=2), 1), 29_899 + 16 * 9 + 2),
        # VGG-16 of two channels in place of three, generator, three weights and a bias
        (lambda: generators.XCNN1x1(xcnn.Generator(3, 128), vgg16(in_channels=2), 3), 14_728_266 - 576 + 4_737 + 4),
        (lambda: generators.XCNN1x1(xcnn.Generator(3, 128), vgg16(in_channels=4), 3, 3), 14_728_266 + 576 + 4_737 + 12),
        (lambda: xcnn.XCNN(generators.Edges(), vgg16(in_channels=1)), 14_728_266 - 1_152),
    ],
)
def test_parameters_of_whole_networks_by_hand(build, expected):
    with torch.device("meta"):
        assert count(build()) == expected


@pytest.mark.parametrize(
    ("classifier", "got"),
    [
        (lambda: xcnn.small_cnn(size=8), 1),
        (lambda: xcnn.small_cnn(size=8, in_channels=2), 2),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5)), 1),
    ],
)
def test_the_discriminators_channels_are_checked(classifier, got):
    with pytest.raises(ValueError, match=f"discriminator must take 3 channels, map and branch; got {got}"):
        generators.XCNN1x1(xcnn.Generator(1, 4), classifier(), 1, channels=2)


def test_the_images_channels_are_checked():
    with pytest.raises(ValueError, match=r"x must be images \(N, 3, H, W\).* got shape \(2, 1, 8, 8\)"):
        two_ways()(torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize("parts", [(), ("map",), ("branch",)])
def test_map_and_gradient_of_the_variant(parts):
    model = blocked(two_ways(), *parts)
    images = torch.randn(2, 3, 8, 8, generator=seeded())
    assert torch.equal(attribution.explain("xcnn", model, images, 1), model.heatmap(images))
    images.requires_grad_()
    [slope] = torch.autograd.grad(model(images)[:, 1].sum(), images)
    found = attribution.explain("gradient", model, images.detach(), 1)
    assert found.abs().max() > 0
    torch.testing.assert_close(found, slope.sum(1, keepdim=True))


def test_relevance_comes_through_map_and_branch_and_is_conserved():
    """Without biases, and with positive contributions everywhere, nothing is lost: the pixels sum to the logit."""
    model = two_ways().double()
    for name, one in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(one)
    model.branch[0].weight.data.abs_()
    images = torch.rand(3, 3, 8, 8, generator=seeded(), dtype=torch.float64)
    found = attribution.explain("lrp", model, images, 1)
    torch.testing.assert_close(found.sum((1, 2, 3)), model(images)[:, 1].detach(), rtol=1e-3, atol=1e-6)
    without = [attribution.explain("lrp", blocked(model, part), images, 1) for part in ("map", "branch")]
    assert not torch.allclose(found, without[0], rtol=0.1)
    assert without[0].abs().max() > 0, "through the branch alone"
    assert not without[1].any(), "through neither"
