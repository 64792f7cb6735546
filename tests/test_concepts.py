import math
import re

import pytest
import torch
from torch import Tensor

from xai_lib import concepts, data
from xai_lib.concepts import Sampling, Window


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def image_set(images: Tensor, labels: list[int]) -> data.ImageSet:
    return data.ImageSet(images, torch.tensor(labels), tuple(map(str, range(max(labels) + 1))), "own")


def numbered(count=40, size=6) -> data.ImageSet:
    """Image i is 128 + i everywhere, with label i % 2: every pixel of a sample tells which image it was cut from."""
    images = torch.arange(128, 128 + count, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, size, size)
    return image_set(images, [i % 2 for i in range(count)])


def centre(value: int, size=6) -> Tensor:
    return torch.full((1, 1, size, size), value, dtype=torch.uint8)


OWN = (Window(0, 10, (1, 4), (2, 5)), Window(1, 11, (0, 6), (3, 6)))


def origins(found: concepts.Concepts) -> Tensor:
    """What number the image has that each sample of `numbered` was cut from, by its pixels."""
    return found.images.flatten(1).amax(1).long() - 128


# the windows


def test_windows_of_mnist():
    """The table of the public code, by label: digit, rows, columns."""
    table = """
        10 8 0-28 13-26    11 8 0-28 0-15    12 8 13-28 0-28    13 8 0-13 0-28     14 7 0-12 0-28    15 7 12-28 0-28
        16 6 0-12 0-28     17 6 12-28 0-28   18 5 5-11 0-28     19 5 11-28 0-28    20 4 5-17 0-28    21 4 17-28 17-23
        22 3 5-16 0-28     23 3 16-28 0-28   24 2 3-15 0-28     25 2 15-28 0-28    26 9 3-17 0-28    27 9 17-28 0-28
    """
    numbers = list(map(int, re.findall(r"\d+", table)))
    expected = [numbers[k : k + 6] for k in range(0, len(numbers), 6)]
    assert [[one.label, one.digit, *one.rows, *one.columns] for one in concepts.MNIST_WINDOWS] == expected
    assert torch.cat([one.edges for one in concepts.MNIST_WINDOWS]).tolist() == [row[2:] for row in expected]


# cutting


@pytest.mark.parametrize(
    ("channels", "dtype", "background"), [(1, torch.uint8, 0), (3, torch.uint8, 255), (2, torch.float64, 7)]
)
def test_cut_is_the_slow_form(channels, dtype, background):
    images = torch.randint(0, 256, (60, channels, 7, 9), generator=seeded()).to(dtype)
    edges = torch.randint(-3, 13, (60, 4), generator=seeded(1))  # beyond the image, and from behind to
    before, expected = images.clone(), torch.full_like(images, background)
    for n, (upper, lower, left, right) in enumerate(edges.tolist()):
        for row in range(max(upper, 0), min(lower, 7)):
            for column in range(max(left, 0), min(right, 9)):
                expected[n, :, row, column] = images[n, :, row, column]
    found = concepts.cut(images, edges, background)
    assert found.dtype == dtype
    assert torch.equal(found, expected)
    assert torch.equal(images, before), "its argument stays"
    assert torch.equal(
        concepts.cut(images, edges[:1], background), concepts.cut(images, edges[:1].expand(60, 4), background)
    )


def test_empty_by_hand():
    images = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    images[1, 2, 0, 1], images[2, 0, 1, 1] = 127, 128
    images[3] = 255
    assert concepts.is_empty(images).tolist() == [True, True, False, False]
    assert concepts.is_empty(images, ink=0).tolist() == [True, False, False, False]
    assert concepts.is_empty(images, background=255).tolist() == [False, False, False, True], "dark ink on white"
    assert concepts.is_empty(images, background=100, ink=100).tolist() == [True, True, True, False]


# jitter


def chances(sd: float, limit: float) -> dict[int, float]:
    """Chance of each step: a normal between the limits, rounded."""

    def below(x):
        return 0.5 * (1 + math.erf(min(max(x, -limit), limit) / sd / math.sqrt(2)))

    most = math.floor(limit + 0.5)
    inside = below(limit) - below(-limit)
    return {k: (below(k + 0.5) - below(k - 0.5)) / inside for k in range(-most, most + 1)}


@pytest.mark.parametrize(("sd", "limit"), [(1.0, 3.0), (2.0, 2.2), (0.4, 9.0)])
@pytest.mark.parametrize("reading", concepts.READINGS)
def test_steps_are_a_truncated_normal_rounded(reading, sd, limit):
    """At 1 and 3 the chance of a step of 3 is 0.49 %; clipped instead of truncated it would be 0.62 %, 8 sigma away."""
    window, count = Window(0, 10, (30, 50), (40, 70)), 200_000
    edges = concepts.jitter(window, count, Sampling(reading=reading, sd=sd, limit=limit), seeded())
    steps = edges - window.edges
    if reading == "corner":
        steps[:, 1::2] -= steps[:, ::2]  # of the extents
    expected = chances(sd, limit)
    assert steps.min() >= min(expected)
    assert steps.max() <= max(expected)
    for k, chance in expected.items():
        tolerance = 4.5 * math.sqrt(chance * (1 - chance) / count) + 1e-12
        assert ((steps == k).double().mean(0) - chance).abs().max() < tolerance, k
    variance = sum(k * k * chance for k, chance in expected.items())
    torch.testing.assert_close(steps.T.double().cov() / variance, torch.eye(4).double(), atol=0.02, rtol=0)


def test_readings_differ_in_what_is_independent():
    """Upper and lower edge, height: variances 1, 1, 2 if edges jitter; 1, 2, 1 if corner and height do."""
    spread = sum(k * k * chance for k, chance in chances(1, 3).items())
    found = {}
    for reading in concepts.READINGS:
        upper, lower, left, right = (
            concepts.jitter(Window(0, 10, (8, 20), (9, 15)), 50_000, Sampling(reading=reading), seeded()).double().T
        )
        parts = [upper, lower, lower - upper, left, right, right - left]
        found[reading] = [one.var().item() / spread for one in parts]
        assert torch.stack([upper, lower, left, right]).mean(1).tolist() == pytest.approx([8, 20, 9, 15], abs=0.04)
    assert found["edges"] == pytest.approx([1, 1, 2] * 2, abs=0.06)
    assert found["corner"] == pytest.approx([1, 2, 1] * 2, abs=0.06)


def test_an_upper_or_left_edge_outside_is_0_and_a_corner_keeps_its_extent():
    window, up = Window(0, 10, (0, 12), (1, 28)), chances(1, 3)
    raised = sum(k * chance for k, chance in up.items() if k > 0)  # mean of the upper edge: steps up are cut off
    for reading, lower in (("edges", 12), ("corner", 12 + raised)):
        edges = concepts.jitter(window, 100_000, Sampling(reading=reading), seeded())
        assert edges[:, [0, 2]].min() == 0
        assert edges[:, 3].max() > 28, "the other edges may lie beyond"
        means = edges.double().mean(0)
        assert means[:2].tolist() == pytest.approx([raised, lower], abs=0.02), reading
        assert (edges[:, 0] == 0).double().mean().item() == pytest.approx(sum(up[k] for k in (-3, -2, -1, 0)), abs=0.01)


@pytest.mark.parametrize("reading", concepts.READINGS)
@pytest.mark.parametrize("still", [{"sd": 0.0}, {"limit": 0.0}, {"limit": 0.4}, {"sd": 0.0, "limit": 0.0}])
def test_no_jitter(reading, still):
    window = Window(0, 10, (0, 7), (3, 4))
    found = concepts.jitter(window, 50, Sampling(reading=reading, **still), seeded())
    assert torch.equal(found, window.edges.expand(50, 4))


# the sampler


def test_samples_are_the_images_that_they_say():
    images = numbered()
    found = concepts.sample(images, seeded(), OWN, Sampling(count=300, p=1.0))
    assert found.images.shape == (600, 1, 6, 6)
    assert found.labels.tolist() == [10] * 300 + [11] * 300
    assert torch.equal(found.sources, origins(found))
    assert torch.equal(found.images, concepts.cut(images.images[found.sources], found.edges))
    assert set(found.sources[:300].tolist()) == set(range(0, 40, 2)), "all images of the window's digit"
    assert set(found.sources[300:].tolist()) == set(range(1, 40, 2))
    assert found.windows == OWN
    for part, window in zip(found.edges.split(300), OWN, strict=True):
        assert part.unique(dim=0).shape[0] > 100, "each sample has a window of its own"
        assert ((part - window.edges).abs() <= 3).all()


def test_images_are_equally_likely():
    found = concepts.sample(numbered(20), seeded(), OWN[:1], Sampling(count=20_000, p=1.0))
    share = found.sources.bincount(minlength=20)[::2] / 20_000
    assert (share - 0.1).abs().max() < 4 * math.sqrt(0.09 / 20_000)


@pytest.mark.parametrize("reading", concepts.READINGS)
def test_no_segment_of_a_held_out_image(reading):
    """Seen in the pixels, not only in what the sampler says about itself."""
    images, order = numbered(), torch.randperm(40, generator=seeded(3))
    centres = {digit: centre(200 + digit) for digit in (0, 1)}
    for index in (order[:25], order[25:]):
        found = concepts.sample(images, seeded(), OWN, Sampling(count=500, reading=reading), centres, index)
        real = found.sources >= 0
        assert set(origins(found)[real].tolist()) == set(index.tolist())
        assert torch.equal(found.sources[real], origins(found)[real])
        assert torch.equal(origins(found)[~real] + 128, 200 + (found.labels[~real] == 11).long())


@pytest.mark.parametrize("p", [0.0, 0.35, 0.8, 1.0])
def test_p_is_the_share_of_training_images(p):
    count = 20_000
    centres = {0: torch.cat([centre(200), centre(220)])} if p < 1 else None
    found = concepts.sample(numbered(), seeded(), OWN[:1], Sampling(count=count, p=p), centres)
    real = found.sources >= 0
    assert abs(real.double().mean().item() - p) <= 4 * math.sqrt(p * (1 - p) / count)
    assert torch.equal(real, origins(found) < 40)
    kinds = (origins(found)[~real] + 128).bincount(minlength=221)[[200, 220]]
    assert kinds.sum() == (~real).sum()
    if p < 1:
        assert (kinds[0] / kinds.sum()).item() == pytest.approx(0.5, abs=0.05), "centres are equally likely"


def test_p_of_0_needs_no_images_of_the_digit():
    images, centres = image_set(numbered().images, [5] * 40), {0: centre(200)}
    found = concepts.sample(
        images, seeded(), OWN[:1], Sampling(count=9, p=0.0), centres, torch.tensor([], dtype=torch.int64)
    )
    assert (found.sources == -1).all()
    assert found.images.amax((1, 2, 3)).tolist() == [200] * 9


def test_the_seed_decides_and_nothing_else():
    images, centres, sampling = numbered(), {0: centre(200), 1: centre(201)}, Sampling(count=40)
    found = []
    for seed, other in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(other)
        state = torch.random.get_rng_state()
        found.append(concepts.sample(images, seeded(seed), OWN, sampling, centres))
        assert torch.equal(torch.random.get_rng_state(), state), "torch's global numbers stay"
    one, same, different = ([one.images, one.sources, one.edges] for one in found)
    assert all(map(torch.equal, one, same))
    assert not any(map(torch.equal, one, different))


def test_the_default_is_the_papers():
    assert Sampling() == Sampling(count=3000, p=0.8, reading="edges", sd=1.0, limit=3.0, background=0)
    images = image_set(torch.full((8, 1, 28, 28), 255, dtype=torch.uint8), list(range(2, 10)))
    centres = {digit: centre(255, 28) for digit in range(2, 10)}
    found = concepts.sample(images, seeded(), centres=centres)
    assert found.labels.bincount().tolist() == [0] * 10 + [3000] * 18, "54,000 samples"
    assert (found.empty.tolist(), found.left_out.tolist()) == ([0] * 18, [0] * 18)


# what comes out empty


def half_inked() -> data.ImageSet:
    """Of label 0: ink at the top alone in the even images, at the bottom too in the odd ones."""
    images = torch.zeros(20, 1, 10, 10, dtype=torch.uint8)
    images[:, :, 0] = 255
    images[1::2, :, 9] = 255
    return image_set(images, [0] * 20)


LOW, HIGH = Window(0, 10, (5, 10), (0, 10)), Window(0, 11, (0, 10), (0, 10))


def test_empty_draws_are_drawn_again_and_counted():
    """Half of all draws are empty, so that a sample takes two; after 30 more draws none is left."""
    found = concepts.sample(half_inked(), seeded(), [LOW, HIGH], Sampling(count=4000, p=1.0, sd=0.0, redraws=30))
    assert not concepts.is_empty(found.images).any()
    assert found.labels.bincount().tolist() == [0] * 10 + [4000, 4000]
    assert found.empty[0].item() == pytest.approx(4000, rel=0.1)
    assert found.empty[1] == 0
    assert found.left_out.tolist() == [0, 0]
    assert (found.sources[:4000] % 2 == 1).all()
    assert found.sources[:4000].bincount()[1::2].min() > 300, "images are drawn again too, and not the next one taken"


@pytest.mark.parametrize(("redraws", "share"), [(0, 1 / 2), (2, 1 / 8)])
def test_what_stays_empty_is_left_out_and_counted(redraws, share):
    found = concepts.sample(half_inked(), seeded(), [LOW, HIGH], Sampling(count=4000, p=1.0, sd=0.0, redraws=redraws))
    left = found.left_out[0].item()
    assert left == pytest.approx(4000 * share, abs=4 * math.sqrt(4000 * share * (1 - share)))
    assert found.labels.bincount()[10:].tolist() == [4000 - left, 4000]
    assert len(found.images) == len(found.sources) == len(found.edges) == 8000 - left
    draws = found.empty[0].item() + 4000 - left
    assert draws == pytest.approx(4000 * sum(0.5**k for k in range(redraws + 1)), rel=0.05)
    assert torch.equal(found.images, concepts.cut(half_inked().images[found.sources], found.edges)), (
        "rows stay together"
    )


def test_a_concept_without_any_ink_has_no_sample():
    blank = image_set(torch.full((3, 1, 10, 10), 100, dtype=torch.uint8), [0, 0, 0])
    found = concepts.sample(blank, seeded(), [LOW], Sampling(count=7, p=1.0, redraws=4))
    assert found.images.shape == (0, 1, 10, 10)
    assert (found.labels.shape, found.edges.shape) == ((0,), (0, 4))
    assert (found.empty.tolist(), found.left_out.tolist()) == ([35], [7])
    inked = concepts.sample(blank, seeded(), [LOW], Sampling(count=7, p=1.0, ink=99))
    assert len(inked.images) == 7


def test_redrawing_keeps_p():
    """Half of the images are empty and no centre is: if the kind were drawn again too, images would be 2/3."""
    sampling = Sampling(count=8000, sd=0.0)
    found = concepts.sample(half_inked(), seeded(), [LOW], sampling, {0: centre(255, 10)})
    assert (found.sources >= 0).double().mean().item() == pytest.approx(0.8, abs=0.02)
    assert found.empty[0].item() == pytest.approx(6400, rel=0.1)


def test_a_window_that_jitters_away_is_empty():
    """Both edges of one column change places, or meet, in about half of the draws; what is kept has a pixel."""
    found = concepts.sample(numbered(), seeded(), [Window(0, 10, (0, 6), (3, 4))], Sampling(count=2000, p=1.0))
    assert 1000 < found.empty[0] < 3000
    assert (found.edges[:, 3] > found.edges[:, 2]).all()


# other data


@pytest.mark.parametrize("reading", concepts.READINGS)
def test_own_windows_on_rgb_images(reading):
    """White ground; two windows share a concept; not square."""
    random = torch.randint(0, 200, (30, 3, 10, 14), generator=seeded(), dtype=torch.uint8)
    images = image_set(random, [3 + 4 * (i % 2) for i in range(30)])
    own = [Window(3, 20, (2, 6), (8, 14)), Window(7, 9, (0, 10), (0, 5)), Window(7, 20, (4, 10), (3, 9))]
    centres = {3: random[:2] // 2, 7: random[2:3] // 2}
    sampling = Sampling(count=50, reading=reading, background=255, ink=20)
    found = concepts.sample(images, seeded(), own, sampling, centres)
    assert found.images.shape == (150, 3, 10, 14)
    assert found.labels.tolist() == [20] * 50 + [9] * 50 + [20] * 50
    real = found.sources >= 0
    assert 0 < (~real).sum() < 75
    whole = random[found.sources.clamp(min=0)]
    assert torch.equal(found.images[real], concepts.cut(whole, found.edges, 255)[real])
    assert set(images.labels[found.sources[:50][real[:50]]].tolist()) == {3}
    assert set(images.labels[found.sources[50:][real[50:]]].tolist()) == {7}
    for n in (~real).nonzero()[:, 0].tolist():
        few = centres[own[n // 50].digit]
        cuts = concepts.cut(few, found.edges[n : n + 1], 255)
        assert (found.images[n] == cuts).flatten(1).all(1).any()


def test_real_digits():
    """Centres are the means of each digit's training images, as a blurred stand-in for decoded centres."""
    digits = data.load("digits")
    order = torch.randperm(len(digits), generator=seeded())
    train, held_out = order[:1000], order[1000:]
    kept = digits.images[train].float(), digits.labels[train]
    centres = {digit: kept[0][kept[1] == digit].mean(0, keepdim=True).round().byte() for digit in range(10)}
    found = concepts.sample(digits, seeded(), sampling=Sampling(count=100), centres=centres, index=train)
    test = concepts.sample(digits, seeded(), sampling=Sampling(count=100, p=1.0), index=held_out)
    assert torch.isin(found.sources, torch.cat([train, torch.tensor([-1])])).all()
    assert torch.isin(test.sources, held_out).all()
    assert not torch.isin(found.sources, test.sources).any()
    for one in (found, test):
        assert one.labels.unique().tolist() == list(range(10, 28))
        assert len(one.images) + one.left_out.sum() == 1800
        assert one.empty.argmax() == 11, "a part of the stem of some 4s"
        ink = torch.stack([part.float().mean() for part in one.images.split(one.labels.bincount()[10:].tolist())])
        assert (ink < digits.images.float().mean()).sum() >= 16, "concepts are sparser than digits"


@pytest.mark.mnist
def test_of_real_mnist_only_the_stem_of_4_comes_out_empty_often():
    images = data.load("mnist", "test")
    found = concepts.sample(images, seeded(), sampling=Sampling(count=1000, p=1.0))
    share = found.empty / (1000 - found.left_out + found.empty)
    assert 0.2 < share[11] < 0.4
    assert share[[k for k in range(18) if k != 11]].max() < 0.02


# targets of the concept loss


def slow_bilinear(plane, height, width):
    """Corners not aligned: the centre of target pixel y lies at (y + 1/2) h / height - 1/2, within the image."""

    def at(target, size, wanted):
        place = max((target + 0.5) * size / wanted - 0.5, 0)
        low = min(math.floor(place), size - 1)
        return low, min(low + 1, size - 1), place - low

    def value(y, x):
        (top, bottom, down), (left, right, along) = at(y, len(plane), height), at(x, len(plane[0]), width)
        upper = plane[top][left] * (1 - along) + plane[top][right] * along
        lower = plane[bottom][left] * (1 - along) + plane[bottom][right] * along
        return upper * (1 - down) + lower * down

    return [[value(y, x) for x in range(width)] for y in range(height)]


@pytest.mark.parametrize(
    ("shape", "size"), [((2, 1, 28, 28), (14, 14)), ((2, 3, 10, 7), (5, 3)), ((1, 2, 4, 4), (7, 9))]
)
def test_targets_are_the_slow_form(shape, size):
    images = torch.randint(0, 256, shape, generator=seeded(), dtype=torch.uint8)
    planes = (images.double() / 255).mean(1).tolist()
    expected = torch.tensor([slow_bilinear(plane, *size) for plane in planes], dtype=torch.float32)
    found = concepts.targets(images, size)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_targets_by_hand():
    images = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    images[0, 0, 2, 4], images[0, 0, 26:, 26:] = 255, 255
    expected = torch.zeros(1, 14, 14)
    expected[0, 1, 2], expected[0, 13, 13] = 1 / 4, 1
    assert torch.equal(concepts.targets(images), expected), "the mean of 2 x 2, 0 to 1"


# errors


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rows": (5, 5)}, "rows must be (from, to) with 0 <= from < to; got (5, 5)"),
        ({"rows": (-1, 5)}, "rows must be (from, to) with 0 <= from < to; got (-1, 5)"),
        ({"columns": (6, 2)}, "columns must be (from, to) with 0 <= from < to; got (6, 2)"),
        ({"label": -1}, "label must be at least 0; got -1"),
    ],
)
def test_windows_are_checked(wrong, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Window(**{"digit": 0, "label": 10, "rows": (0, 5), "columns": (0, 5), **wrong})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "count must be at least 1 and finite; got 0"),
        ({"redraws": -1}, "redraws must be at least 0 and finite; got -1"),
        ({"sd": -0.5}, "sd must be at least 0 and finite; got -0.5"),
        ({"limit": math.inf}, "limit must be at least 0 and finite; got inf"),
        ({"limit": math.nan}, "limit must be at least 0 and finite; got nan"),
        ({"p": 1.1}, "p must be from 0 to 1; got 1.1"),
        ({"p": -0.1}, "p must be from 0 to 1; got -0.1"),
        ({"background": 256}, "background must be from 0 to 255; got 256"),
        ({"ink": -1}, "ink must be from 0 to 255; got -1"),
        ({"reading": "centre"}, "reading must be one of edges, corner; got 'centre'"),
    ],
)
def test_settings_are_checked(wrong, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Sampling(**wrong)


TALL, WIDE, TAKEN = Window(0, 10, (0, 7), (0, 6)), Window(0, 10, (0, 6), (2, 7)), Window(0, 1, (0, 6), (0, 6))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"windows": ()}, "windows must hold a window; got ()"),
        ({"windows": [TALL]}, f"windows must lie inside images of 6 x 6 pixels; got {TALL}"),
        ({"windows": [WIDE]}, f"windows must lie inside images of 6 x 6 pixels; got {WIDE}"),
        ({"windows": [TAKEN]}, f"windows must have labels that no image has; got {TAKEN}"),
        ({"index": torch.tensor([0, 40])}, "index must be from 0 to 39; got 0 to 40"),
        ({"index": torch.tensor([-1, 3])}, "index must be from 0 to 39; got -1 to 3"),
        ({"index": torch.tensor([0, 2])}, "images must have each window's digit where p is above 0; got none of 1"),
        ({"index": torch.arange(0)}, "images must have each window's digit where p is above 0; got none of 0"),
        ({"centres": None}, "centres must have each window's digit where p is below 1; got none of 0"),
        ({"centres": {0: centre(1)}}, "centres must have each window's digit where p is below 1; got none of 1"),
        ({"centres": {0: centre(1)[:0]}}, "centres must have each window's digit where p is below 1; got none of 0"),
        (
            {"centres": {0: centre(1, 5)}},
            "centres must be uint8 images (K, 1, 6, 6); got torch.uint8 (1, 1, 5, 5) for 0",
        ),
        (
            {"centres": {0: centre(1).float()}},
            "centres must be uint8 images (K, 1, 6, 6); got torch.float32 (1, 1, 6, 6) for 0",
        ),
    ],
)
def test_what_to_sample_from_is_checked(wrong, message):
    generator = seeded()
    state = generator.get_state()
    right = {"windows": OWN, "sampling": Sampling(count=2), "centres": {0: centre(1), 1: centre(1)}}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        concepts.sample(numbered(), generator, **{**right, **wrong})
    assert torch.equal(generator.get_state(), state), "nothing was drawn"


def test_count_and_size_are_checked():
    with pytest.raises(ValueError, match="^count must be at least 1; got 0$"):
        concepts.jitter(OWN[0], 0, Sampling(), seeded())
    with pytest.raises(ValueError, match=r"^size must be at least \(1, 1\); got \(0, 14\)$"):
        concepts.targets(centre(1), (0, 14))
