import math
from collections import Counter
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch import nn

from xai_lib import attribution, comparison, xcnn


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def same(found, expected, atol=1e-12):
    torch.testing.assert_close(found.double(), torch.as_tensor(expected, dtype=torch.float64), atol=atol, rtol=0)


def test_the_methods_are_those_of_figures_4_and_5_and_five_are_the_others():
    """Rules of the claims: "the other five (gradient, Guided Backprop, deconvolution, LRP, PatternNet)"."""
    assert len(comparison.METHODS) == len(set(comparison.METHODS)) == 8
    assert set(comparison.METHODS) <= set(attribution.METHODS)
    assert comparison.METHODS[-1] == "xcnn"
    assert comparison.OTHERS == ("gradient", "guided_backprop", "deconvolution", "lrp", "patternnet")
    assert set(comparison.OTHERS) | set(comparison.BEST) == set(comparison.METHODS)


# drawers


@pytest.fixture(scope="module")
def drawn():
    """A plain network and an XCNN, images, and what `drawers` makes of them."""
    torch.manual_seed(0)
    plain = xcnn.small_cnn((4, 8), classes=5, in_channels=3, size=8).eval()
    own = xcnn.XCNN(xcnn.Generator(3, 4), xcnn.small_cnn((4, 8), classes=5, size=8)).eval()
    known = torch.rand(40, 3, 8, 8, generator=seeded()) * 4 - 1  # -1 to 3
    return plain, own, known, comparison.drawers(plain, own, known, (-1.0, 3.0))


def test_drawers_come_in_the_order_of_the_figures(drawn):
    assert tuple(drawn[3]) == comparison.METHODS


@pytest.mark.parametrize("method", comparison.SEVEN)
def test_a_known_method_explains_the_plain_network(drawn, method):
    plain, _, known, made = drawn
    extra = {"bounds": (-1.0, 3.0)} if method == "deep_taylor" else {}
    wrong = {"bounds": (-9.0, 9.0)} if method == "deep_taylor" else {}
    if method.startswith("pattern"):
        extra = {"patterns": attribution.fit_patterns(plain, known, "two-component")}
        wrong = {"patterns": attribution.fit_patterns(plain, known, "linear")}
    images, target = known[:3], torch.tensor([[0, 4], [1, 3], [2, 2]])
    found = made[method](images, target)
    assert found.shape == (3, 2, 8, 8)
    assert torch.equal(found, attribution.explain(method, plain, images, target, **extra))
    assert not wrong or not torch.allclose(found, attribution.explain(method, plain, images, target, **wrong))


def test_xcnn_draws_the_map_of_its_generator_whatever_the_target(drawn):
    _, own, known, made = drawn
    with torch.no_grad():
        expected = own.generator(known[:3])
    assert torch.equal(made["xcnn"](known[:3], 0), expected)
    assert torch.equal(made["xcnn"](known[:3], torch.tensor([[0, 4]] * 3)), expected.expand(-1, 2, -1, -1))


# all_correct


def logits_of(*answers):
    return torch.nn.functional.one_hot(torch.tensor(answers), 3).float()


def test_all_correct_by_hand():
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    one, two = logits_of(0, 1, 2, 0, 0, 0), logits_of(1, 1, 2, 0, 1, 2)
    assert comparison.all_correct([one], labels, 9).tolist() == [0, 1, 2, 3]
    assert comparison.all_correct([one, two], labels, 9).tolist() == [1, 2, 3], "fewer than asked for: all, sorted"
    assert comparison.all_correct((each for each in (one, two)), labels, 3).tolist() == [1, 2, 3]
    assert comparison.all_correct([], labels, 9).tolist() == [0, 1, 2, 3, 4, 5], "no network: every image"


def test_all_correct_draws_every_such_image_equally_often_by_its_seed():
    labels = torch.zeros(8, dtype=torch.int64)
    logits = logits_of(0, 0, 1, 0, 0, 0, 0, 0)
    draws = [comparison.all_correct([logits], labels, 3, seed).tolist() for seed in range(700)]
    assert draws == [comparison.all_correct([logits], labels, 3, seed).tolist() for seed in range(700)]
    assert all(one == sorted(set(one)) and len(one) == 3 for one in draws)
    counts = Counter(k for one in draws for k in one)
    assert set(counts) == {0, 1, 3, 4, 5, 6, 7}
    assert all(abs(count - 300) < 65 for count in counts.values()), "five standard deviations"


def test_all_correct_needs_one_image():
    with pytest.raises(ValueError, match="logits: no image of 2 is classified correctly"):
        comparison.all_correct([logits_of(0, 1), logits_of(1, 0)], torch.tensor([0, 0]), 5)


# deletion_gains


class OnePixel(nn.Module):
    """Two classes, told apart by the one pixel in row 1, column 2: logits (4 times the pixel, 0)."""

    def forward(self, x):
        return torch.stack([4 * x[:, 0, 1, 2], torch.zeros(len(x), dtype=x.dtype)], 1)


MARKED = torch.zeros(3, 4).index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(1.0))


def test_deletion_gain_of_the_one_pixel_that_counts():
    """p is p0 until the pixel goes and 1/2 from then on: if r of 12 pixels go before it, the area is
    (p0 (r + 1/2) + (12 - r - 1/2) / 2) / 12; so the gain is (1 - 1 / (2 p0)) (r_random - r_map) / 12."""
    count = 600
    images = torch.ones(count, 1, 3, 4)
    unit = (1 - 0.5 * (1 + math.exp(-4))) / 12
    maps = MARKED.expand(count, 1, 3, 4)
    found = comparison.deletion_gains(OnePixel(), images, {"map": maps, "reversed": -maps}, steps=12)
    before = found["map"] / unit  # r_random
    same(before, before.round(), 1e-5)
    assert set(before.round().int().tolist()) == set(range(12)), "each image has a random order of its own"
    assert abs(before.mean().item() - 5.5) < 5 * math.sqrt(143 / 12 / count), "five standard errors"
    same(found["map"] - found["reversed"], torch.full((count,), 11 * unit), 1e-6)
    assert found["reversed"].le(1e-6).all()
    assert found["reversed"].mean() < -0.15


def test_deletion_gain_is_negative_where_the_map_hides_what_counts_and_0_for_no_order():
    images = torch.cat([torch.ones(50, 1, 3, 4), -torch.ones(50, 1, 3, 4)])  # class 0, then class 1
    flat = torch.full_like(images, 0.3)
    for name, gains in comparison.deletion_gains(OnePixel(), images, {-1: -MARKED + flat, 0: flat}, steps=4).items():
        assert gains.shape == (100,)
        assert gains.isfinite().all()
        assert gains.eq(0).all() if name == 0 else gains[:50].mean() < -0.1 and gains[50:].mean() < -0.1


def slow_area(weight, bias, image, falling, steps):
    """The area under the probability, over its start, of a linear softmax model while pixels go in `falling` order."""
    channels, height, width = image.shape
    pixels, scores = height * width, []

    def probabilities(gone):
        logits = []
        for row, shift in zip(weight.tolist(), bias.tolist(), strict=True):
            kept = ((c, p) for c in range(channels) for p in range(pixels) if p not in gone)
            logits.append(shift + sum(row[c * pixels + p] * image.flatten(1)[c, p].item() for c, p in kept))
        top = sum(math.exp(one) for one in logits)
        return [math.exp(one) / top for one in logits]

    whole = probabilities(set())
    label = whole.index(max(whole))
    counts = [math.floor(k * pixels / steps) for k in range(steps + 1)]
    scores = [probabilities(set(falling[:count]))[label] for count in counts]
    strips = zip(counts, counts[1:], scores, scores[1:], strict=False)
    return sum((right - left) * (a + b) / 2 for left, right, a, b in strips) / pixels / whole[label]


@pytest.mark.parametrize("steps", [1, 7, 20])
def test_deletion_gains_are_the_slow_form(steps):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(40, 4)).double()
    images = torch.randn(5, 2, 4, 5, dtype=torch.float64, generator=seeded())
    maps = torch.randn(5, 1, 4, 5, dtype=torch.float64, generator=seeded(1))
    noise = torch.rand(5, 1, 4, 5, generator=seeded(3))

    def areas(orders):
        pairs = zip(images, orders.flatten(1).tolist(), strict=True)
        falling = [(one, sorted(range(20), key=lambda p: -order[p])) for one, order in pairs]  # noqa: B023
        return torch.tensor([slow_area(model[1].weight, model[1].bias, *each, steps) for each in falling])

    found = comparison.deletion_gains(model, images, {"map": maps}, steps=steps, seed=3)["map"]
    same(found, (areas(noise) - areas(maps)).double(), 1e-6)
    assert steps == 1 or found.std() > 0.01


def test_deletion_gains_keep_keys_and_seed_and_treat_each_map_alone():
    images = torch.rand(6, 1, 3, 4, generator=seeded())
    maps = {("a", 1): torch.rand(6, 1, 3, 4, generator=seeded(1)), 2: images, "flat": torch.zeros(6, 1, 3, 4)}
    found = comparison.deletion_gains(OnePixel(), images, MappingProxyType(maps), steps=12)
    assert list(found) == [("a", 1), 2, "flat"]
    again = comparison.deletion_gains(OnePixel(), images, {2: maps[2]}, steps=12, seed=0)
    assert torch.equal(again[2], found[2])
    other = comparison.deletion_gains(OnePixel(), images, {2: maps[2]}, steps=12, seed=1)
    assert not torch.equal(other[2], found[2])
    torch.rand(1)
    state = torch.get_rng_state()
    comparison.deletion_gains(OnePixel(), images, maps, steps=12)
    assert torch.equal(torch.get_rng_state(), state), "the global random numbers stay"


def test_deletion_gains_take_the_model_in_eval_mode_and_leave_its_mode():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(12), nn.Linear(12, 3))
    images, maps = torch.rand(8, 1, 3, 4, generator=seeded()), torch.rand(8, 1, 3, 4, generator=seeded(1))
    expected = comparison.deletion_gains(model.eval(), images, {0: maps}, steps=6)[0]
    model.train()
    model[3].eval()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    assert torch.equal(comparison.deletion_gains(model, images, {0: maps}, steps=6)[0], expected)
    assert [one.training for one in model.modules()] == [True, True, True, True, False]
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())


# map_sign


class Scaled(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x):
        return self.by * x


class Ink(nn.Module):
    """Logits (sign * sum of the map, 1), or the other way round."""

    def __init__(self, sign, swapped=False):
        super().__init__()
        self.sign, self.swapped = sign, swapped

    def forward(self, x):
        logits = torch.stack([self.sign * x.sum((1, 2, 3)), torch.ones(len(x))], 1)
        return logits.flip(1) if self.swapped else logits


def spots(value):
    """Images of 0 with three pixels of `value`, all class 0 of a network that adds up what it sees."""
    images = torch.zeros(20, 1, 5, 5)
    for one, image in enumerate(images):
        image.view(-1)[torch.randperm(25, generator=seeded(one))[:3]] = value
    return images


@pytest.mark.parametrize(
    ("generator", "discriminator", "value", "expected"),
    [
        (1, 1, 1, 1),  # what counts is bright, and bright in the map
        (-1, -1, 1, -1),  # the same network and decisions, but the map is negated
        (1, -1, -1, -1),  # what counts is dark in image and map
        (-1, 1, -1, 1),  # what counts is dark in the image and bright in the map
    ],
)
def test_map_sign_is_that_of_what_the_network_misses_first(generator, discriminator, value, expected):
    for swapped in (False, True):  # the names of the classes do not count
        model = xcnn.XCNN(Scaled(generator), Ink(discriminator, swapped)).train()
        assert comparison.map_sign(model, spots(value), steps=5, seed=int(swapped)) == expected
        assert model.training


def test_map_sign_flips_with_any_map():
    for seed in range(3):
        torch.manual_seed(seed)
        model = xcnn.XCNN(xcnn.Generator(1, 2), nn.Sequential(nn.Flatten(), nn.Linear(36, 3)))
        images = torch.randn(4, 1, 6, 6, generator=seeded(seed))
        found = comparison.map_sign(model, images, steps=6)
        with torch.no_grad():
            for parameter in (*model.generator.decode[0].parameters(), model.discriminator[1].weight):
                parameter.neg_()
        assert comparison.map_sign(model, images, steps=6) == -found


def test_map_sign_of_a_map_that_says_nothing_is_1():
    assert comparison.map_sign(xcnn.XCNN(Scaled(0), Ink(1)), spots(1)) == 1


def test_map_sign_passes_steps_on():
    with pytest.raises(ValueError, match="steps must lie between 1 and the number of pixels, 25; got 26"):
        comparison.map_sign(xcnn.XCNN(Scaled(1), Ink(1)), spots(1), steps=26)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_map_sign_on_a_gpu():
    torch.manual_seed(0)
    model = xcnn.XCNN(xcnn.Generator(1, 2), nn.Sequential(nn.Flatten(), nn.Linear(36, 3)))
    images = torch.randn(4, 1, 6, 6, generator=seeded())
    expected = comparison.map_sign(model, images)
    assert comparison.map_sign(model.cuda(), images.cuda()) == expected


# shares inside masks


def random_masks(count=6, height=5, width=4, seed=7):
    masks = torch.rand(count, height, width, generator=seeded(seed)) < 0.4
    masks[:, 2, 3] = True
    return masks


def test_inside_is_the_slow_form_and_chance_where_nothing_is_positive():
    maps, masks = torch.randn(6, 1, 5, 4, generator=seeded()), random_masks()
    maps[1] = 0
    maps[2] = -maps[2].abs() - 1
    maps[3] = 0.5
    expected = []
    for one, mask in zip(maps[:, 0].tolist(), masks.tolist(), strict=True):
        pixels = [(max(0.0, one[y][x]), mask[y][x]) for y in range(5) for x in range(4)]
        total = sum(value for value, _ in pixels)
        hit = sum(value for value, on in pixels if on)
        expected.append(hit / total if total else sum(on for _, on in pixels) / 20)
    found = comparison.inside(maps, masks)
    same(found, expected)
    assert found[3] == pytest.approx(masks[3].double().mean().item()), "spread evenly: chance"
    same(comparison.inside(maps * 1e-20, masks), expected, 1e-6)


def test_inside_raises_what_localisation_raises():
    maps, masks = torch.zeros(2, 1, 5, 4), random_masks(2)
    with pytest.raises(ValueError, match="maps must be finite; got nan"):
        comparison.inside(maps.index_fill(0, torch.tensor([1]), math.nan), masks)
    with pytest.raises(ValueError, match="masks must not be empty; got no pixel in mask 1"):
        comparison.inside(maps, masks & torch.tensor([True, False])[:, None, None])


ASKED = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)[None]
OTHER = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)[None]


def test_inside_of_both_by_hand():
    one = torch.tensor([[2.0, -5.0, 9.0, 6.0], [0.0, 9.0, -9.0, 9.0]])[None, None]  # 2 on the first, 6 on the second
    assert comparison.inside_of_both(one, ASKED, OTHER).tolist() == [0.25]
    assert comparison.inside_of_both(one, OTHER, ASKED).tolist() == [0.75]
    assert comparison.inside_of_both(-one, ASKED, OTHER).tolist() == [1], "5 on the first, nothing on the second"
    assert comparison.inside_of_both(one.double() * 1e-30, ASKED, OTHER).tolist() == pytest.approx([0.25])
    for alike in (torch.full_like(one, 3), torch.zeros_like(one), -one.abs(), one * ~(ASKED | OTHER)):
        assert comparison.inside_of_both(alike, ASKED, OTHER).tolist() == pytest.approx([0.75]), "3 pixels of 4"


def test_inside_of_both_asked_for_either_adds_up_to_1():
    """So a map that does not depend on the class, as that of XCNN, has 50 percent in the mean of the two."""
    maps, asked = torch.randn(6, 1, 5, 4, generator=seeded()), random_masks()
    other = random_masks(seed=8) & ~asked
    other[:, 0, 0], asked[:, 0, 0] = True, False
    maps[0], maps[1] = 0, -1
    found = comparison.inside_of_both(maps, asked, other)
    same(found + comparison.inside_of_both(maps, other, asked), torch.ones(6))
    assert found[2:].std() > 0.05


def test_inside_of_both_treats_a_map_that_is_alike_on_both_as_no_map_also_where_masks_overlap():
    asked, other = ASKED | OTHER, OTHER  # 4 pixels and 1
    alike = comparison.inside_of_both(torch.ones(1, 1, 2, 4), asked, other)
    same(comparison.inside_of_both(torch.zeros(1, 1, 2, 4), asked, other), alike)


def test_inside_of_both_and_detail_refuse_what_they_cannot_score():
    """NaN would count as chance, or 0, and an empty mask as a score."""
    maps, images = torch.rand(1, 1, 2, 4, generator=seeded()), torch.rand(1, 3, 2, 4, generator=seeded(1))
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"maps must be finite; got {bad}"):
            comparison.inside_of_both(maps * bad, ASKED, OTHER)
        with pytest.raises(ValueError, match=f"maps must be finite; got {bad}"):
            comparison.detail(maps * bad, images, ASKED)
    empty = torch.zeros_like(ASKED)
    for masks in ((ASKED, empty), (empty, OTHER), (empty, empty)):
        with pytest.raises(ValueError, match="must not be empty"):
            comparison.inside_of_both(maps, *masks)
    with pytest.raises(ValueError, match="must not be empty"):
        comparison.detail(maps, images, empty)


# detail


def slow_edges(image):
    """Sobel gradient magnitude of the mean over channels of (C, H, W), the rim repeated outwards."""
    channels, height, width = image.shape

    def grey(y, x):
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        return sum(image[c, y, x].item() for c in range(channels)) / channels

    def slope(y, x, down, across):
        """Central difference along (down, across), smoothed 1, 2, 1 over the other direction."""
        sides = [(k, 2 - abs(k)) for k in (-1, 0, 1)]
        ends = [sum(w * grey(y + s * down + k * across, x + s * across + k * down) for k, w in sides) for s in (1, -1)]
        return (ends[0] - ends[1]) / 4

    return [[math.hypot(slope(y, x, 1, 0), slope(y, x, 0, 1)) for x in range(width)] for y in range(height)]


def test_detail_is_the_slow_form():
    maps = torch.randn(4, 1, 6, 7, dtype=torch.float64, generator=seeded())
    images = torch.randn(4, 3, 6, 7, dtype=torch.float64, generator=seeded(1)) + maps
    masks = random_masks(4, 6, 7)
    masks[0] = True
    expected = []
    for one, image, mask in zip(maps, images, masks.numpy(), strict=True):
        expected.append(np.corrcoef(np.array(slow_edges(one))[mask], np.array(slow_edges(image))[mask])[0, 1])
    found = comparison.detail(maps, images, masks)
    same(found, expected)
    alone = [comparison.detail(*(one[k : k + 1] for one in (maps, images, masks))) for k in range(4)]
    same(found, torch.cat(alone))
    same(comparison.detail(maps.float(), images.float(), masks), expected, 1e-6)


def test_detail_keeps_its_value_under_scale_shift_and_sign():
    maps, images = torch.randn(3, 1, 8, 8, generator=seeded()).double(), torch.rand(3, 3, 8, 8, generator=seeded(1))
    masks = random_masks(3, 8, 8)
    found = comparison.detail(maps, images, masks)
    for changed in (7 * maps, 1e-20 * maps, 1e20 * maps, -maps, maps + 3):
        same(comparison.detail(changed, images, masks), found, 1e-9)
    same(comparison.detail(maps, 9 - 5 * images.double(), masks), found, 1e-6)


def test_detail_of_the_grey_image_is_1_and_of_edges_elsewhere_below_0():
    images, masks = torch.rand(3, 3, 8, 8, dtype=torch.float64, generator=seeded()), random_masks(3, 8, 8)
    same(comparison.detail(images.mean(1, keepdim=True), images, masks), torch.ones(3))
    # of 8 columns, the image has its edges in 1 and 2, the map in 5 and 6: (0 - 1/16) / (1/4 * 3/4)
    columns = torch.arange(8.0).expand(1, 1, 8, 8)
    step, other = (columns > 1).float(), (columns > 5).float()
    everywhere = torch.ones(1, 8, 8, dtype=torch.bool)
    same(comparison.detail(other, step, everywhere), [-1 / 3])
    same(comparison.detail(step + other, step, everywhere), [0.5 * math.sqrt(4 / 3)])  # 1/8 / sqrt(3/16 * 1/4)


def test_detail_sees_nothing_outside_the_mask():
    maps, images = torch.randn(2, 1, 9, 9, generator=seeded()), torch.rand(2, 3, 9, 9, generator=seeded(1))
    masks = torch.zeros(2, 9, 9, dtype=torch.bool)
    masks[:, 2:6, 3:7] = True
    far = torch.ones(9, 9)
    far[1:7, 2:8] = 0  # all but the mask and its neighbours, on which its edges depend
    found = comparison.detail(maps, images, masks)
    assert torch.equal(comparison.detail(maps + 100 * far, images - far, masks), found)
    assert not torch.equal(comparison.detail(maps, images, torch.ones_like(masks)), found)


COLUMNS = torch.arange(12, dtype=torch.float64).expand(1, 1, 12, 12)
FLAT = {
    "constant": torch.full((1, 1, 12, 12), 0.1, dtype=torch.float64),
    "constant of many digits": torch.full((1, 1, 12, 12), 1e5 / 3, dtype=torch.float32),
    "a spot outside the mask": (COLUMNS == 0).double() + 0.3,
    "zero": torch.zeros(1, 1, 12, 12),
    "ramp": COLUMNS * 0.25,
    "ramp with rounding": COLUMNS * 0.1 + 7,
    "ramp with rounding in float32": (COLUMNS * 0.1).float(),
}


@pytest.mark.parametrize("kind", FLAT)
def test_detail_is_0_where_map_or_image_has_no_edges_or_equal_ones_in_the_mask(kind):
    """Also up to rounding, which is no detail."""
    other = torch.rand(1, 3, 12, 12, generator=seeded())
    masks = torch.zeros(1, 12, 12, dtype=torch.bool)
    masks[:, 2:11, 3:11] = True
    flat = FLAT[kind]
    found = [comparison.detail(*pair, masks) for pair in ((flat, other), (other[:, :1], flat), (flat, flat))]
    same(torch.cat(found), torch.zeros(3))


def test_detail_of_one_pixel_is_0():
    masks = torch.zeros(1, 5, 5, dtype=torch.bool)
    masks[:, 1, 2] = True
    maps = torch.rand(1, 1, 5, 5, generator=seeded())
    assert comparison.detail(maps, maps * 2, masks).tolist() == [0]


# lead


def test_lead_by_hand():
    scores = {"a": {0: 3.0, 5: 1.0}, "b": {0: 1.0, 5: 4.0}, "c": {0: 2.0, 5: -9.0}, "d": {0: 99.0, 5: 99.0}}
    assert comparison.lead(scores, "a", ("b", "c")) == {0: 1, 5: -3}
    assert comparison.lead(scores, "a", ["b", "a", "c"]) == {0: 1, 5: -3}, "a method is not its own rival"
    assert comparison.lead(scores, "c", ("b",)) == {0: 1, 5: -13}
    assert list(comparison.lead(scores, "d", tuple(scores))) == [0, 5]
    assert comparison.lead(scores, "b", ("b", "c", "a")) == {0: -2, 5: 3}


# kept_for_gradients

SIZE = 4 * 25_000  # bytes of x, y and what has their shape


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, y: x.exp(), SIZE),  # its result
        (lambda x, y: x.exp().exp(), 2 * SIZE),
        (lambda x, y: (x + 1) * (y + 1), 2 * SIZE),  # both factors
        (lambda x, y: x * (y + 1).detach(), SIZE),
        (lambda x, y: (x + 1).square(), SIZE),  # its argument
        (lambda x, y: (lambda z: z * z)(x + 1), SIZE),  # one piece of memory
        (lambda x, y: (lambda z: z[:10] * z[10:20])(x + 1), SIZE),  # views keep all of it
        (lambda x, y: (lambda z: z.exp() + z * y)(x.exp()), 2 * SIZE),  # two ways to one tensor
        (lambda x, y: x * y, 0),  # leaves
        (lambda x, y: x + y, 0),
    ],
)
def test_kept_for_gradients_by_hand(function, expected):
    x, y = (torch.rand(25_000, generator=seeded()).requires_grad_() for _ in range(2))
    slopes = []

    def call():
        slopes.append(torch.autograd.grad(function(x, y).sum(), x)[0])

    assert comparison.kept_for_gradients(call) == expected
    assert comparison.kept_for_gradients(
        lambda: torch.autograd.grad([one.sum() for one in (function(x, y), x)], x)
    ) == (expected)
    call()
    assert torch.equal(*slopes), "watched or not"


def test_kept_for_gradients_of_several_starts_is_the_most():
    """Each time the same, although what one start lets go gives its place in memory to the next."""
    x = torch.rand(25_000, generator=seeded()).requires_grad_()

    def call():
        for depth in (1, 3, 2) * 3:
            y = x
            for _ in range(depth):
                y = y.exp()
            torch.autograd.grad(y.sum(), x)

    assert [comparison.kept_for_gradients(call) for _ in range(3)] == [3 * SIZE] * 3


def test_kept_for_gradients_is_0_where_no_gradient_is_asked_for():
    x = torch.rand(25_000, generator=seeded()).requires_grad_()
    assert comparison.kept_for_gradients(lambda: x.exp()) == 0
    with torch.no_grad():
        assert comparison.kept_for_gradients(lambda: x.exp().exp()) == 0


def test_kept_for_gradients_does_not_count_weights():
    """Of convolution, ReLU, linear layer: the ReLU's output, 2 x 8 x 8 numbers, 5 logits, and which of them (int64)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)).eval()
    images = torch.rand(1, 1, 8, 8, generator=seeded())
    found = comparison.kept_for_gradients(lambda: attribution.explain("gradient", model, images, 0))
    assert found == 4 * 128 + 4 * 5 + 8


@pytest.mark.parametrize("method", comparison.METHODS)
def test_kept_for_gradients_by_each_method(drawn, method):
    """The claim xcnn-no-gradient-memory: nothing for XCNN, at least the ReLUs' inputs or outputs for the others."""
    _, _, known, made = drawn
    found = [comparison.kept_for_gradients(lambda: made[method](known[:1], 0)) for _ in range(3)]
    assert len(set(found)) == 1, "the same each time"
    assert found[0] == 0 if method == "xcnn" else found[0] >= 4 * (4 * 64 + 8 * 16)
