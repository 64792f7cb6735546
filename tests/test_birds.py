import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from scipy import ndimage

from xai_lib import birds, data

EYES, LEGS, WINGS = (
    [birds.PARTS.index(f"{side} {kind}") for side in ("left", "right")] for kind in ("eye", "leg", "wing")
)


def fingerprints(images):
    return {hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in images}


FIELDS = ("images", "labels", "masks", "parts", "boxes")


def equal(one, other, count=None):
    return all(torch.equal(getattr(one, name)[:count], getattr(other, name)[:count]) for name in FIELDS)


@pytest.fixture(scope="module")
def made():
    return birds.draw(400)


@pytest.fixture(scope="module")
def free():
    """The same birds with nothing before them."""
    return birds.draw(400, occlusion=0.0)


# species


def test_parts_are_those_of_cub():
    """Names and order of parts/parts.txt of CUB-200-2011."""
    assert ", ".join(birds.PARTS) == (
        "back, beak, belly, breast, crown, forehead, left eye, left leg, left wing, nape, right eye, right leg, "
        "right wing, tail, throat"
    )


def looks(species, s):
    return list(zip(species.colours[s].tolist(), species.patterns[s].tolist(), strict=True))


@pytest.mark.parametrize("count", [2, 3, 5, 9, 14, 200])
def test_discriminative_parts_differ_from_every_other_of_the_family(count):
    species = birds.catalogue(count)
    for s in range(count):
        family = [t for t in range(count) if species.family[t] == species.family[s] and t != s]
        own = looks(species, s)
        expected = [all(own[part] != looks(species, t)[part] for t in family) for part in range(15)]
        assert species.discriminative[s].tolist() == expected


def kinds(flags):
    return {birds.PARTS[part].split()[-1] for part in np.flatnonzero(flags)}


@pytest.mark.parametrize("count", [3, 14, 200])
def test_species_of_a_family_differ_in_three_marks_each_of_head_and_body(count):
    species = birds.catalogue(count)
    for s in range(count):
        marks = kinds(species.discriminative[s])
        assert len(marks) == birds.MARKS
        assert marks & set(birds.HEAD)
        assert marks & set(birds.BODY)
        for t in np.flatnonzero(species.family == species.family[s]):
            differ = kinds([one != other for one, other in zip(looks(species, s), looks(species, t), strict=True)])
            assert differ == (marks | kinds(species.discriminative[t]) if s != t else set())


def test_two_species_differ_in_the_marks_of_both():
    one, two = birds.catalogue(2).discriminative
    assert torch.equal(one, two)
    assert 3 <= len(kinds(one)) <= 6


def test_marks_have_colours_of_the_family_that_no_other_has_there():
    species = birds.catalogue(200)
    for family in species.family.unique():
        colours, marks = species.colours[species.family == family], species.discriminative[species.family == family]
        assert len(colours.unique()) <= 5
        assert sum(colour < 6 for colour in colours.unique()) <= 3
        for part in range(15):
            for s in np.flatnonzero(marks[:, part]):
                assert (colours[:, part] == colours[s, part]).sum() == 1


def test_left_and_right_are_alike_and_small_parts_have_no_pattern():
    species = birds.catalogue(200)
    for one, two in (EYES, LEGS, WINGS):
        for table in (species.colours, species.patterns, species.discriminative):
            assert torch.equal(table[:, one], table[:, two])
    small = [kinds([k == part for k in range(15)]) <= set(birds.PLAIN) for part in range(15)]
    assert (species.patterns[:, small] == 0).all()
    share = species.patterns[:, ~np.array(small)].flatten().bincount() / (200 * small.count(False))
    assert share.tolist() == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6], abs=0.08)


def test_all_species_are_different_and_every_kind_of_part_is_a_mark_of_some():
    species = birds.catalogue(200)
    assert len({str(looks(species, s)) for s in range(200)}) == len(set(species.names)) == 200
    assert species.discriminative.any(0).all()
    assert species.colours.unique().tolist() == list(range(len(birds.COLOURS))) == list(range(len(birds.RGB)))


@pytest.mark.parametrize(
    ("count", "sizes"), [(2, [2]), (4, [4]), (5, [5]), (9, [9]), (11, [5, 6]), (19, [5, 5, 9]), (20, [5] * 4)]
)
def test_families_are_of_five_and_the_rest_joins_the_last(count, sizes):
    assert birds.catalogue(count).family.bincount().tolist() == sizes


@pytest.mark.parametrize(("few", "many"), [(3, 5), (5, 9), (20, 200)])
def test_the_first_families_are_the_same_for_any_number(few, many):
    one, other = birds.catalogue(few), birds.catalogue(many)
    for name in ("colours", "patterns", "discriminative"):
        assert torch.equal(getattr(one, name), getattr(other, name)[:few])
    assert one.names == other.names[:few]


def test_names_say_the_number_and_a_mark():
    species = birds.catalogue(40)
    for s, name in enumerate(species.names):
        number, mark = name.lower().split(".")
        colour, kind = mark.split("_")
        assert int(number) == s + 1
        [part, *_] = [k for k, part in enumerate(birds.PARTS) if part.endswith(kind)]
        assert birds.COLOURS[species.colours[s, part]] == colour
        assert species.discriminative[s, part]


# truth about the images


@pytest.mark.parametrize(("size", "species"), [(64, 200), (33, 2)])
def test_shapes_types_and_ranges(size, species):
    found = birds.draw(5, size=size, species=species)
    shapes = [(5, 3, size, size), (5,), (5, size, size), (5, 15, 3), (5, 4)]
    types = [torch.uint8, torch.int64, torch.uint8, torch.float32, torch.float32]
    assert [tuple(getattr(found, name).shape) for name in FIELDS] == shapes
    assert [getattr(found, name).dtype for name in FIELDS] == types
    assert found.masks.max() <= 15
    assert found.labels.max() < species
    assert found.images.flatten(1).float().std(1).min() > 5, "no image is of one colour"


def slow_points(mask):
    """The definition, by loops: mean of the pixels' centres of each part, and the pixel nearest to it."""
    places = [(x + 0.5, y + 0.5, part) for y, row in enumerate(mask) for x, part in enumerate(row) if part]
    for k in range(1, 16):
        own = [(x, y) for x, y, part in places if part == k]
        if len(own) < birds.LEAST * len(places):
            yield None
        else:
            mean_x, mean_y = (sum(one) / len(own) for one in zip(*own, strict=True))
            distances = {(x, y): (x - mean_x) ** 2 + (y - mean_y) ** 2 for x, y in own}
            yield {place for place, far in distances.items() if far < min(distances.values()) + 1e-9}


def slow_box(mask):
    places = [(x, y) for y, row in enumerate(mask) for x, part in enumerate(row) if part]
    across, down = zip(*places, strict=True)
    return [min(across), min(down), max(across) + 1, max(down) + 1]


def test_points_and_boxes_follow_from_the_masks(made):
    hidden = 0
    for mask, parts, box in zip(made.masks[:60].tolist(), made.parts.tolist(), made.boxes.tolist(), strict=False):
        assert slow_box(mask) == box
        for (x, y, visible), expected in zip(parts, slow_points(mask), strict=True):
            if expected is None:
                assert (x, y, visible) == (0, 0, 0)
                hidden += 1
            else:
                assert visible == 1
                assert (x, y) in expected
    assert 60 < hidden < 600


def test_visible_parts_lie_on_their_own_mask(made):
    image, part = torch.nonzero(made.parts[..., 2], as_tuple=True)
    x, y = made.parts[image, part, :2].long().T
    assert torch.equal(made.masks[image, y, x].long(), part + 1)


def test_points_by_hand():
    mask = np.zeros((8, 9), np.uint8)
    mask[2, 3:8] = 2  # the beak is the row at 2
    mask[3:6, 7] = 15
    mask[7, 0] = 1
    points, box = birds._points(mask)
    assert points[[0, 1, 14]].tolist() == [[0.5, 7.5, 1], [5.5, 2.5, 1], [7.5, 4.5, 1]]
    assert points.sum() == points[[0, 1, 14]].sum()
    assert box.tolist() == [0, 2, 8, 8]
    large = np.full((30, 30), 3, np.uint8)
    large[0, :4] = 4
    assert birds._points(large)[0][:4, 2].tolist() == [0, 0, 1, 0], "4 of 900 pixels are too few"
    large[0, 4] = 4
    assert birds._points(large)[0][:4, 2].tolist() == [0, 0, 1, 1], "5 are enough"


@pytest.mark.parametrize("part", range(15))
def test_a_mask_is_where_the_colour_of_the_part_shows(part, made):
    """Changing the colour of a part from black to white changes its mask, and no pixel apart from it."""
    black, plain, masked, beside = np.zeros(15, np.int64), np.zeros(15, np.int64), 0, 0
    white = np.where(np.arange(15) == part, birds.COLOURS.index("white"), black)
    for i in made.parts[:, part, 2].nonzero()[:6, 0].tolist():
        (one, mask), (two, same) = (
            birds._picture(np.random.default_rng([0, i]), 64, colours, plain, 0.5) for colours in (black, white)
        )
        assert (mask == same).all()
        assert (mask == made.masks[i].numpy()).all()
        own, changed = mask == part + 1, (one != two).any(0)
        masked += own.sum()
        beside += (changed & ~ndimage.binary_dilation(own, np.ones((3, 3)))).sum()
        assert changed[own].mean() > 0.4
        if part not in EYES:  # pupils are black
            assert changed[own].all()
    assert masked > 20
    assert beside < 0.2 * masked, "slivers that no centre of a pixel is on"


# drawing


def slow_cast(solids, x, y):
    """Nearest solid on a line of sight in float64, by the quadratic equation of |A^-1 (p - c)| = 1; its point."""
    hits = []
    for k, solid in enumerate(solids):
        inverse = np.linalg.inv(solid[:, 1:4])
        start, step = inverse @ (np.array([x, y, 0]) - solid[:, 0]), inverse[:, 2]
        a, b, c = step @ step, 2 * start @ step, start @ start - 1
        if b * b - 4 * a * c > 0:
            hits.append(((-b + (b * b - 4 * a * c) ** 0.5) / (2 * a), k))
    if not hits:
        return None
    z, k = max(hits)
    point, axes = np.array([x, y, z]), solids[k][:, 1:4]
    facing = np.linalg.inv(axes @ axes.T) @ (point - solids[k][:, 0])
    return k, np.linalg.solve(solids[k][:, 5:], point - solids[k][:, 4]), facing / np.linalg.norm(facing)


def test_casting_is_the_slow_form():
    random = np.random.default_rng(0)
    solids = np.concatenate([random.uniform(-0.3, 0.3, (6, 3, 8)), np.full((1, 3, 8), 5.0)])
    solids[:6, :2, 0] += 0.5  # some reach beyond the image
    solids[6, :, 1:] = random.uniform(size=(3, 7))  # one lies outside
    row, column, solid, place, facing = birds._cast(solids, 8)
    found = {(r, c): k for k, (r, c) in enumerate(zip(row.tolist(), column.tolist(), strict=True))}
    assert len(found) == len(row)
    assert (np.diff(solid.astype(int)) >= 0).all()
    for r in range(24):
        for c in range(24):
            expected = slow_cast(solids, (c + 0.5) / 24, (r + 0.5) / 24)
            assert (expected is not None) == ((r, c) in found)
            if expected is not None:
                k = found[r, c]
                assert solid[k] == expected[0]
                np.testing.assert_allclose(place[:, k], expected[1], atol=2e-4)
                np.testing.assert_allclose(facing[:, k], expected[2], atol=2e-3)
    assert len(set(solid.tolist())) >= 4


def test_plumage_by_hand():
    places = {
        (birds._TORSO, 0, 0.2): "back",
        (birds._TORSO, 0.3, 0): "breast",
        (birds._TORSO, -0.2, -0.2): "belly",
        (birds._HEAD, 0.15, 0.1): "forehead",
        (birds._HEAD, 0, 0.18): "crown",
        (birds._HEAD, -0.2, 0.05): "nape",
        (birds._HEAD, 0.1, -0.15): "throat",
        (1, 0.3, 0.3): "beak",
        (13, 0.3, 0.3): "tail",
    }
    material, along, up = np.array(list(places)).T
    found = birds._plumage(material.astype(np.int8), np.stack([along, 0 * along, up]))
    assert [birds.PARTS[k] for k in found] == list(places.values())


class Still(np.random.Generator):
    """A generator that draws the first and no noise."""

    def choice(self, options, count):
        return options[:count]

    def normal(self, mean, deviation, shape):
        return np.zeros(shape)


def test_colours_and_patterns_by_hand():
    colours, patterns = np.arange(15) % 14, np.zeros(15, np.int64)
    patterns[:4] = 0, 1, 2, 3
    quarter = birds.PERIOD / 4
    points = [
        (part, x, z) for part in range(4) for x, z in ((quarter, quarter), (quarter, -quarter), (-quarter, -quarter))
    ]
    points += [(EYES[0], 0, 0), (EYES[0], 0.06, 0), (birds._TWIG, 0, -quarter)]
    material, along, up = np.array(points).T
    place = np.stack([along, 0 * along, up]).astype(np.float32)
    painted = birds._paint(
        Still(np.random.PCG64()), colours, patterns, material.astype(int), place, np.full(len(points), 0.5, np.float32)
    )
    base = birds.RGB[colours]
    dark = np.where(base.mean(1, keepdims=True) > 0.33, 0.35 * base, 0.4 * base + 0.5)
    second = [[0, 0, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]]  # of bars, streaks, spots at the three places
    expected = [dark[part] if second[part][k] else base[part] for part in range(4) for k in range(3)]
    expected += [[0.03] * 3, base[6], birds.BARK[0]]
    np.testing.assert_allclose(painted.T, 0.5 * np.array(expected), atol=1e-6)


def seen(angles, size=48):
    """The map of parts of a bird with these angles, alone in the middle of the image."""
    bird, _ = birds._bird(np.array(angles))
    bird *= 0.4
    bird[..., [0, 4]] += [[0.5], [0.5], [0]]
    row, column, solid, place, _ = birds._cast(bird, size)
    found = np.zeros((3 * size, 3 * size), int)
    found[row, column] = birds._plumage(birds._MATERIAL[solid], place) + 1
    return found


OTHER = {"left": "right", "right": "left"}
SWAPPED = [0, *(1 + birds.PARTS.index(" ".join(OTHER.get(w, w) for w in part.split())) for part in birds.PARTS)]


@pytest.mark.parametrize("angles", [(0.4, 0.5, 0.3, 0.1, 0.1, 0.1), (-1.2, 0.2, -0.5, -0.1, -0.05, -0.1)])
def test_mirrored_birds_swap_left_and_right(angles):
    yaw, pitch, head_yaw, head_pitch, elevation, lean = angles
    one, other = seen(angles), seen((np.pi - yaw, pitch, -head_yaw, head_pitch, elevation, -lean))
    assert (np.array(SWAPPED)[one[:, ::-1]] == other).mean() > 0.999
    assert (one[:, ::-1] == other).mean() < 0.999, "names matter"


def test_a_bird_to_the_right_shows_its_right_side():
    found = seen([0, 0.3, 0, 0, 0, 0])
    counts = np.bincount(found.ravel(), minlength=16)[1:]
    for left, right in (EYES, LEGS, WINGS):
        assert counts[right] > 10 * counts[left]
    middle = {part: np.argwhere(found == k + 1).mean(0) for k, part in enumerate(birds.PARTS) if counts[k]}
    row, column = (lambda part: middle[part][0]), (lambda part: middle[part][1])
    assert column("beak") > column("forehead") > column("crown") > column("nape")
    assert column("breast") > column("belly") > column("tail")
    assert row("crown") < row("throat") < row("breast") < row("right leg")
    assert row("back") < row("right wing") < row("belly")


def test_a_bird_that_faces_us_has_its_left_on_our_right():
    found = seen([-np.pi / 2, 0.3, 0, 0, 0, 0])
    for left, right in (EYES, LEGS, WINGS):
        assert np.argwhere(found == left + 1).mean(0)[1] > 75 > 69 > np.argwhere(found == right + 1).mean(0)[1]
    assert not (found == birds.PARTS.index("nape") + 1).any()


def test_pitch_lifts_the_head_and_lean_is_clockwise():
    level, lifted, leaning = (seen([0, pitch, 0, 0, 0, lean]) for pitch, lean in ((0, 0), (0.7, 0), (0, 0.3)))
    tail, beak = (birds.PARTS.index(part) + 1 for part in ("tail", "beak"))
    low = [np.argwhere(found == tail).mean(0)[0] for found in (level, lifted, leaning)]
    assert low[1] > low[0] + 10
    assert low[2] < low[0] - 10
    assert np.argwhere(leaning == beak).mean(0)[0] > np.argwhere(level == beak).mean(0)[0]


def test_birds_are_inside_the_image_at_many_places_and_sizes(free):
    boxes = free.boxes / 64
    assert boxes.min() >= birds.MARGIN - 1 / 64
    assert boxes.max() <= 1 - birds.MARGIN + 1 / 64
    lengths = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    low, high = birds.LENGTHS
    assert lengths.max() <= high + 1 / 64
    assert lengths.min() > low - 0.12, "a branch may hide the end of a tail"
    assert lengths.quantile(0.95) - lengths.quantile(0.05) > 0.6 * (high - low)
    assert ((boxes[:, 2:] + boxes[:, :2]) / 2).std(0).min() > 0.04


def test_half_of_the_birds_look_to_the_left(free):
    beak, tail = (free.parts[:, birds.PARTS.index(part)] for part in ("beak", "tail"))
    both = (beak[:, 2] * tail[:, 2]) > 0
    assert both.float().mean() > 0.8
    assert 0.4 < (beak[both, 0] < tail[both, 0]).float().mean() < 0.6


def test_every_part_is_visible_in_a_fair_share_and_the_far_side_is_hidden(made):
    visible = made.parts[..., 2]
    share = visible.mean(0)
    assert share.min() > 0.35
    assert share.mean() < 0.9
    eyes = visible[:, EYES].sum(1)
    assert (eyes == 1).float().mean() > 0.7
    assert (eyes == 2).float().mean() > 0.005
    for left, right in (EYES, LEGS, WINGS):
        assert abs(share[left] - share[right]) < 0.1
    shown = visible * made.species.discriminative[made.labels]
    assert (shown.sum(1) > 0).float().mean() > 0.99, "something tells the species"


# occlusion


def test_occlusion_has_its_rate_and_changes_nothing_else(made, free):
    lost = made.masks != free.masks
    assert (made.masks[lost] == 0).all()
    hidden = lost.flatten(1).any(1)
    changed = made.images != free.images
    assert torch.equal(hidden, changed.flatten(1).any(1)), "what is before a bird hides some of it"
    assert 0.43 < hidden.float().mean() < 0.57
    assert changed.any(1).float().mean((1, 2)).max() < 0.5
    gone = (free.parts[..., 2] > made.parts[..., 2]).any(1)
    assert gone[hidden].float().mean() > 0.1
    assert lost[hidden].float().mean() > 0.01


@pytest.mark.parametrize(("occlusion", "rate"), [(0.0, 0), (1.0, 1)])
def test_occlusion_of_none_and_of_all(occlusion, rate, free):
    hidden = (birds.draw(40, occlusion=occlusion).masks != free.masks[:40]).flatten(1).any(1)
    assert hidden.float().mean() == rate


# seeds


def test_birds_are_the_same_each_time_and_the_first_are_those_of_fewer(made):
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002, none of the global state is used
    assert equal(made, birds.draw(9), 9)
    assert len(fingerprints(made.images)) == 400
    other = birds.draw(9, seed=1)
    assert not fingerprints(made.images) & fingerprints(other.images)
    assert (made.labels[:9] != other.labels).any()
    assert made.species is other.species


def test_the_number_of_species_changes_labels_and_not_birds(made):
    few = birds.draw(9, species=3)
    assert torch.equal(few.masks, made.masks[:9])


@pytest.mark.parametrize("species", [7, 60])
def test_labels_are_balanced_and_in_no_order(species):
    labels = birds.draw(2 * species, size=32, species=species).labels.reshape(2, species)
    assert all(one.sort().values.tolist() == list(range(species)) for one in labels)
    assert (labels[0] != labels[1]).any()


def test_the_same_birds_at_another_size():
    """The centres of the pixels of 32 are those of every third pixel of 96."""
    large, small = birds.draw(40, size=96), birds.draw(40, size=32)
    assert torch.equal(large.labels, small.labels)
    assert (large.masks[:, 1::3, 1::3] == small.masks).float().mean() > 0.9999
    shrunk = torch.nn.functional.avg_pool2d(large.images.float(), 3)
    assert (shrunk - small.images).abs().mean() < 6
    apart = (large.boxes / 3 - small.boxes).abs()
    assert (apart < 1.01).float().mean() > 0.97, "but for the tips of beaks and tails"
    assert apart.max() < 4
    assert (large.parts[..., 2] == small.parts[..., 2]).float().mean() > 0.92


# what tells the species


def part_features(made):
    """Mean colour and spread of each part (N, 15, 4); nan where less than 2 pixels show it."""
    images = made.images.double() / 255
    features = torch.full((len(images), 15, 4), torch.nan, dtype=torch.float64)
    for i, (image, mask) in enumerate(zip(images, made.masks, strict=True)):
        for k in range(15):
            pixels = image[:, mask == k + 1]
            if pixels.shape[1] > 1:
                features[i, k] = torch.cat([pixels.mean(1), pixels.std(1).mean()[None]])
    return features


def colour_features(made, whole):
    """Mean colour of the image or of what is seen of the bird (N, 1, 3), and shares of 4 x 4 x 4 colours (N, 1, 64)."""
    means, shares = [], []
    for image, mask in zip(made.images, made.masks, strict=True):
        pixels = image.flatten(1) if whole else image[:, mask > 0]
        means.append(pixels.double().mean(1) / 255)
        red, green, blue = (pixels // 64).long()
        shares.append((red * 16 + green * 4 + blue).bincount(minlength=64).double() / pixels.shape[1])
    return [torch.stack(one)[:, None] for one in (means, shares)]


@pytest.fixture(scope="module")
def sets():
    return birds.draw(480, species=40, seed=3), birds.draw(240, species=40, seed=4)


def nearest(x, y, light=False):
    """The centroid of y that is nearest to x, of what both have; with `light`, after one gain for each channel."""
    known = ~(x.isnan() | y.isnan())
    x, y = (torch.where(known, one, 0) for one in (x, y))
    if light:
        y = y * ((x * y).sum(1, keepdim=True) / (y * y).sum(1, keepdim=True))
    return (((x - y) ** 2).sum((1, 2)) / known.sum((1, 2))).argmin()


def accuracies(sets, x, new, light=False):
    """Shares of species and of families that the nearest centroid gets right."""
    (labels, truth), family = (one.labels for one in sets), sets[0].species.family
    centroids = torch.stack([x[labels == s].nanmean(0) for s in range(40)])
    found = torch.stack([nearest(one.expand_as(centroids), centroids, light) for one in new])
    return [(one == other).double().mean().item() for one, other in ((found, truth), (family[found], family[truth]))]


def test_the_parts_tell_the_species(sets):
    species, family = accuracies(sets, *map(part_features, sets), light=True)
    assert species > 0.97
    assert family > 0.98


def test_the_colours_of_an_image_tell_nothing(sets):
    """Chance is 1 in 40, with a standard deviation of 1 point, and 1 in 8 with one of 2.1."""
    for x, new in zip(*(colour_features(one, whole=True) for one in sets), strict=True):
        species, family = accuracies(sets, x, new)
        assert species < 0.08
        assert family < 0.22


def test_the_colours_of_a_bird_cut_out_tell_far_less_than_its_parts(sets):
    pairs = zip(*(colour_features(one, whole=False) for one in sets), strict=True)
    for (x, new), most in zip(pairs, (0.35, 0.65), strict=True):
        species, family = accuracies(sets, x, new)
        assert species < most
        assert species < 0.8 * family


# as a data set


def test_image_set_is_found_by_name(own_data):
    assert "birds" in data.modules()
    found = data.load("birds", "train", size=32, limit=30)
    made = birds.draw(30, size=32, seed=birds.SPLIT_SEEDS["train"])
    assert (found.name, found.classes, len(found)) == ("birds/train@32[30]", made.species.names, 30)
    for one, other in (
        (found.masks, made.masks > 0),
        *((getattr(found, k), getattr(made, k)) for k in FIELDS if k != "masks"),
    ):
        assert torch.equal(one, other)
    assert found.checksum == birds.image_set("train", size=32, limit=30).checksum


def test_a_set_of_few_species():
    found = birds.image_set("test", size=32, limit=8, species=4)
    assert (found.name, found.classes) == ("birds/test[4 species]@32[8]", birds.catalogue(4).names)
    assert found.labels.bincount().tolist() == [2, 2, 2, 2]


def test_splits_have_no_image_in_common_nor_with_the_default_seed(made):
    found = [birds.image_set(split, limit=30).images for split in data.SPLITS] + [made.images[:30]]
    assert len(set.union(*map(fingerprints, found))) == 90


def test_sets_are_of_10000_and_2000_images(monkeypatch, made):
    drawn = []

    def few(*settings):
        drawn.append(settings)
        return made

    monkeypatch.setattr(birds, "draw", few)
    assert [birds.image_set(split).name for split in data.SPLITS] == ["birds/train", "birds/test"]
    assert [settings[:3] for settings in drawn] == [(10_000, 64, 200), (2000, 64, 200)]
    assert len({seed for *_, seed in drawn} | {0}) == 3


# errors


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "count must be at least 1; got 0"),
        ({"size": 31}, "size must be at least 32; got 31"),
        ({"species": 1}, "species must be at least 2; got 1"),
        ({"seed": -1}, "seed must be at least 0; got -1"),
        ({"occlusion": -0.1}, "occlusion must lie between 0 and 1; got -0.1"),
        ({"occlusion": 1.1}, "occlusion must lie between 0 and 1; got 1.1"),
        ({"occlusion": float("nan")}, "occlusion must lie between 0 and 1; got nan"),
    ],
)
def test_arguments_are_checked(wrong, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        birds.draw(**{"count": 1, **wrong})


def test_arguments_of_a_set_are_checked():
    with pytest.raises(ValueError, match="^split must be one of train, test; got 'validation'$"):
        birds.image_set("validation")
    with pytest.raises(ValueError, match="^limit must be at least 1; got 0$"):
        birds.image_set("train", limit=0)
    with pytest.raises(ValueError, match="^size must be at least 32; got 8$"):
        data.load("birds", size=8)
    with pytest.raises(ValueError, match="^species must be at least 2; got 1$"):
        birds.catalogue(1)


def test_results_are_frozen(made):
    for one, name in ((made, "labels"), (made.species, "family")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(one, name, made.labels)
