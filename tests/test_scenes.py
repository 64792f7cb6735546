import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from xai_lib import data, scenes


def fingerprints(images):
    return {hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in images}


def equal(one, other):
    fields = [field.name for field in dataclasses.fields(scenes.Scenes)]
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in fields)


def first(made, count):
    return scenes.Scenes(made.images[:count], made.labels[:count], made.masks[:count], made.boxes[:count])


@pytest.fixture(scope="module")
def single():
    return scenes.draw(2000)


@pytest.fixture(scope="module")
def double():
    return scenes.draw(300, size=32, objects=2)


@pytest.fixture
def flat(monkeypatch):
    """One colour per object, for the ground and for clutter: what is where can be read off the image."""
    monkeypatch.setattr(scenes, "DEPTH", (0, 0))
    monkeypatch.setattr(scenes, "GRAIN", 0)


# what is drawn


def test_there_are_ten_classes():
    assert len(set(scenes.CLASSES)) == 10


@pytest.mark.parametrize(("size", "objects"), [(64, 1), (32, 2), (17, 2)])
def test_shapes_types_and_ranges(size, objects):
    made = scenes.draw(7, size=size, objects=objects)
    assert (made.images.shape, made.images.dtype) == ((7, 3, size, size), torch.uint8)
    assert (made.labels.shape, made.labels.dtype) == ((7, objects), torch.int64)
    assert (made.masks.shape, made.masks.dtype) == ((7, objects, size, size), torch.bool)
    assert (made.boxes.shape, made.boxes.dtype) == ((7, objects, 4), torch.float32)
    assert made.images.flatten(1).float().std(1).min() > 5, "no image is of one colour"


def slow_box(mask):
    places = [(x, y) for y, row in enumerate(mask) for x, one in enumerate(row) if one]
    across, down = zip(*places, strict=True)
    return [min(across), min(down), max(across) + 1, max(down) + 1]


def test_boxes_are_those_of_the_masks(single, double):
    for made in (first(single, 100), double):
        for masks, boxes in zip(made.masks.tolist(), made.boxes.tolist(), strict=True):
            assert [slow_box(mask) for mask in masks] == boxes


def test_box_of_one_pixel():
    masks = np.zeros((1, 2, 8, 9), bool)
    masks[0, 0, 5, 3] = masks[0, 1, 0, 0] = masks[0, 1, 7, 8] = True
    assert scenes._boxes(masks).tolist() == [[[3, 5, 4, 6], [0, 0, 9, 8]]]


@pytest.mark.parametrize(("size", "objects"), [(16, 1), (16, 2), (33, 2), (64, 1)])
def test_objects_lie_inside_the_image_and_are_cut_nowhere(size, objects):
    made = scenes.draw(150, size=size, objects=objects)
    assert made.masks.any(-1).any(-1).all()
    margin = int(scenes.MARGIN * size)
    assert made.boxes.min() >= margin
    assert made.boxes.max() <= size - margin
    share = made.masks.double().mean((2, 3))
    least, most = (
        np.pi * (radius * (1 + sign * scenes.UNEVEN)) ** 2
        for radius, sign in zip(scenes.SIZES[objects], (-1, 1), strict=True)
    )
    rounding = 1.5 / size if size < 32 else 0.4 / size  # of the pixels that an outline runs through
    assert least * (0.95**4 if objects == 2 else 1) - rounding <= share.min(), "two may have to shrink"
    assert share.max() <= most + rounding


def slow_inside(name, right, up):
    """Unit shapes by hand: disc of radius 1, square of half side 1, triangle with corners at distance 1."""
    if name == "disc":
        return np.hypot(right, up) - 1
    if name == "square":
        return max(abs(right), abs(up)) - 1
    lines = [right * np.cos(turn) + up * np.sin(turn) for turn in np.radians([-90, 30, 150])]
    return max(lines) - 0.5


@pytest.mark.parametrize(("name", "area"), [("disc", np.pi), ("square", 4), ("triangle", 3**1.5 / 4)])
@pytest.mark.parametrize(("stretch", "angle"), [(1.0, 0.0), (1.2, 0.4), (0.85, -0.3)])
def test_masks_are_the_pixels_whose_centre_is_inside(name, area, stretch, angle):
    """By loops, each pixel taken back to the unit shape; those closer than 1 % to the outline are left out."""
    size, radius, place = 40, 0.25, np.array([0.53, 0.47])
    part, share, inside = scenes._shape(name, radius, stretch, angle).cover(place, size)
    mask, cover = np.zeros((size, size), bool), np.zeros((size, size))
    mask[part], cover[part] = inside, share
    scale, compared = radius / np.sqrt(area / np.pi), 0
    for row in range(size):
        for column in range(size):
            x, y = (column + 0.5) / size - place[0], (row + 0.5) / size - place[1]
            right = (x * np.cos(angle) + y * np.sin(angle)) / scale / stretch**0.5
            up = -(-x * np.sin(angle) + y * np.cos(angle)) / scale * stretch**0.5
            distance = slow_inside(name, right, up)
            if abs(distance) > 0.02:
                assert mask[row, column] == (distance < 0)
                compared += 1
            if abs(distance) > 0.3:
                assert cover[row, column] == (distance < 0)
    assert compared > 0.95 * size**2
    assert cover.mean() == pytest.approx(np.pi * radius**2, rel=0.01)


def test_all_shapes_have_one_area():
    for name in scenes.CLASSES:
        for stretch, angle in ((1.0, 0.0), (1.2, 0.4)):
            _, share, _ = scenes._shape(name, 0.25, stretch, angle).cover(np.array([0.5, 0.5]), 128)
            assert share.sum() / 128**2 == pytest.approx(np.pi / 16, rel=0.01), name


def test_shapes_are_the_right_way_up_and_turn_clockwise():
    def drawn(name, angle=0.0):
        part, share, _ = scenes._shape(name, 0.25, 1.0, angle).cover(np.array([0.5, 0.5]), 64)
        cover = np.zeros((64, 64))
        cover[part] = share
        return cover

    for name, top_is_wider in (("triangle", False), ("heart", True)):
        rows = drawn(name).sum(1)
        assert (rows[rows > 0][:6].sum() > rows[rows > 0][-6:].sum()) == top_is_wider, name
    symmetric = [name for name in scenes.CLASSES if np.allclose(drawn(name), drawn(name)[:, ::-1])]
    assert symmetric == [name for name in scenes.CLASSES if name != "crescent"]
    assert np.argwhere(drawn("triangle", 0.3) > 0)[0][1] > np.argwhere(drawn("triangle") > 0)[0][1], (
        "the tip goes right"
    )


def test_an_image_shows_its_masks(flat):
    """Without textures, all pixels well inside a mask have one colour, and all those well outside have another."""
    for made in (scenes.draw(50, size=48, clutter=0), scenes.draw(50, size=64, objects=2, clutter=0)):
        for image, masks in zip(made.images.numpy(), made.masks.numpy(), strict=True):
            grown = [ndimage.binary_dilation(mask, np.ones((5, 5))) for mask in masks]  # tips of less than a pixel
            inner = [ndimage.binary_erosion(mask, np.ones((3, 3))) for mask in masks]
            colours = [np.unique(image[:, part], axis=1) for part in (~np.any(grown, 0), *inner)]
            assert {one.shape[1] for one in colours} == {1}
            for k, one in enumerate(colours):
                for other in colours[:k]:
                    assert np.linalg.norm(one / 255.0 - other / 255.0) >= scenes.CONTRAST - 0.01


def test_clutter_lies_on_the_ground_and_touches_no_object(flat):
    for objects in (1, 2):
        bare, full = (scenes.draw(80, size=48, objects=objects, clutter=clutter) for clutter in (0, 6))
        assert torch.equal(bare.masks, full.masks)
        changed = (bare.images != full.images).any(1)
        near = ndimage.binary_dilation(bare.masks.any(1).numpy(), np.ones((1, 3, 3)))
        assert not changed[torch.from_numpy(near)].any()
        assert changed.flatten(1).any(1).all()
        share = changed.float().mean((1, 2))
        assert 0.02 < share.mean() < 0.12
        assert share.max() < full.masks.float().mean((2, 3)).mean() * 1.5, "pieces are small"


def test_about_half_the_clutter_has_the_colour_of_an_object(flat):
    made, bare = (scenes.draw(200, size=64, clutter=clutter) for clutter in (1, 0))
    same = []
    for image, ground, mask in zip(made.images.numpy(), bare.images.numpy(), made.masks[:, 0].numpy(), strict=True):
        piece = (image != ground).any(0)
        own = image[:, ndimage.binary_erosion(mask)][:, 0]
        same.append((image[:, piece] == own[:, None]).all(0).any())
    assert 0.4 < np.mean(same) < 0.6


def test_more_clutter_is_more_until_there_is_no_room():
    shares = []
    for clutter in (2, 8):
        one, bare = scenes.draw(40, size=32, clutter=clutter), scenes.draw(40, size=32, clutter=0)
        shares.append((one.images.int() - bare.images.int()).abs().amax(1).gt(60).float().mean())
    assert shares[1] > 2 * shares[0] > 0
    assert scenes.draw(2, size=16, clutter=300).masks.any(-1).any(-1).all()


def test_two_objects_differ_in_class_are_alike_in_size_and_do_not_touch(double):
    assert (double.labels[:, 0] != double.labels[:, 1]).all()
    grown = ndimage.binary_dilation(double.masks.numpy(), np.ones((1, 1, 3, 3)))
    assert not (grown[:, 0] & double.masks[:, 1].numpy()).any()
    area = double.masks.double().sum((2, 3))
    assert (area.amax(1) / area.amin(1)).max() < 1.5
    assert 0.4 < (area[:, 0] > area[:, 1]).double().mean() < 0.6
    centre = (double.boxes[..., :2] + double.boxes[..., 2:]).mean((0, 2)) / 64
    torch.testing.assert_close(centre, torch.full((2,), 0.5), atol=0.05, rtol=0), "neither has a place of its own"


# seeds


def test_scenes_are_the_same_each_time_and_the_first_are_those_of_fewer():
    made = scenes.draw(30, size=24, objects=2, seed=5)
    torch.manual_seed(3)
    assert equal(made, scenes.draw(30, size=24, objects=2, seed=5))
    assert equal(first(made, 9), scenes.draw(9, size=24, objects=2, seed=5))
    assert len(fingerprints(made.images)) == 30
    other = scenes.draw(30, size=24, objects=2, seed=6)
    assert not fingerprints(made.images) & fingerprints(other.images)
    assert (made.labels != other.labels).any(1).double().mean() > 0.8


def test_the_same_scenes_at_another_size():
    large, small = (scenes.draw(40, size=size, objects=2) for size in (64, 32))
    assert torch.equal(large.labels, small.labels)
    torch.testing.assert_close(large.boxes / 2, small.boxes, atol=2.01, rtol=0)
    shrunk = torch.nn.functional.avg_pool2d(large.images.float(), 2)
    assert (shrunk - small.images).abs().mean() < 12


# the truth is in the shape alone


def test_classes_are_balanced(single, double):
    for labels in (single.labels, double.labels):
        share = labels.flatten().bincount(minlength=10) / labels.numel()
        spread = (0.09 / labels.numel()) ** 0.5
        assert (share - 0.1).abs().max() < 4 * spread


def test_objects_are_as_often_brighter_as_darker_than_the_ground(single):
    grey = single.images.float().mean(1)
    mask = single.masks[:, 0]
    on, off = ((grey * one).sum((1, 2)) / one.sum((1, 2)) for one in (mask, ~mask))
    assert 0.45 < (on > off).float().mean() < 0.55
    assert on.mean().item() == pytest.approx(off.mean().item(), abs=5)
    assert on.std().item() == pytest.approx(off.std().item(), rel=0.15)


def colour_features(image, mask):
    """Mean and standard deviation of the object's RGB, and a histogram of the image of 4 x 4 x 4 colours."""
    red, green, blue = (image * 3.999).astype(int)
    histogram = np.bincount((red * 16 + green * 4 + blue).ravel(), minlength=64) / red.size
    return np.concatenate([image[:, mask].mean(1), image[:, mask].std(1), histogram])


def gradient_features(grey, part):
    """Orientation histogram and energies of the grey values' gradient inside `part`."""
    down, right = np.gradient(grey)
    energy = np.hypot(down, right)[part]
    if not len(energy):
        return np.zeros(12)
    histogram, _ = np.histogram(np.arctan2(down, right)[part] % np.pi, 8, (0, np.pi), weights=energy)
    spread = [energy.mean(), energy.std(), ndimage.laplace(grey)[part].std(), grey[part].std()]
    return np.concatenate([histogram / energy.sum(), spread])


def interior_features(image, mask):
    return gradient_features(image.mean(0), ndimage.binary_erosion(mask, iterations=2))


def ground_features(image, mask):
    return gradient_features(image.mean(0), ~ndimage.binary_dilation(mask, iterations=2))


DOWN, RIGHT = np.meshgrid(np.fft.fftfreq(64), np.fft.rfftfreq(64), indexing="ij")
RADIUS = np.digitize(np.hypot(DOWN, RIGHT), [0.02, 0.05, 0.1, 0.2, 0.3, 0.45])
CELL = (RADIUS * 8 + ((np.arctan2(DOWN, RIGHT) / np.pi + 0.5) * 7.999).astype(int)).ravel()


def spectrum_features(image, mask):
    """Power of the whole image's grey values by 7 frequencies and 8 orientations, in logs."""
    grey = image.mean(0) - image.mean()
    power = np.bincount(CELL, (abs(np.fft.rfft2(grey)) ** 2).ravel(), 56)
    return np.log(power / np.maximum(np.bincount(CELL, minlength=56), 1) + 1e-9)


def outline_features(image, mask):
    """The mask alone, its box scaled to 16 x 16."""
    x0, y0, x1, y1 = slow_box(mask)
    grid = (np.arange(16) + 0.5) / 16
    return mask[(y0 + grid * (y1 - y0)).astype(int)][:, (x0 + grid * (x1 - x0)).astype(int)].ravel()


def best_accuracy(made, features, *models):
    """Highest share of the last 500 of 2,000 scenes that a classifier of these features gets right."""
    pairs = zip(made.images.numpy() / 255, made.masks[:, 0].numpy(), strict=True)
    x, y = np.stack([features(*pair) for pair in pairs]).astype(float), made.labels[:, 0].numpy()
    return max(model.fit(x[:1500], y[:1500]).score(x[1500:], y[1500:]) for model in models)


@pytest.mark.parametrize(
    ("features", "most"),
    [
        (colour_features, 0.18),
        (interior_features, 0.18),
        (ground_features, 0.18),
        (spectrum_features, 0.6),  # edges of the object are in it, so that it is blind to the place alone
    ],
)
def test_neither_colour_nor_texture_tells_the_class(single, features, most):
    """Chance is 10 %, with a standard deviation of 1.3 points."""
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    found = best_accuracy(single, features, linear, RandomForestClassifier(40, random_state=0))
    assert found < most


def test_the_shape_tells_the_class(single):
    assert best_accuracy(single, outline_features, KNeighborsClassifier(1)) > 0.95


# as a data set


def test_image_set_is_found_by_name(own_data):
    assert "scenes" in data.modules()
    found = data.load("scenes", "train", size=32, limit=100)
    made = scenes.draw(100, size=32, seed=scenes.SPLIT_SEEDS["train"])
    assert (found.name, found.classes, len(found)) == ("scenes/train@32[100]", scenes.CLASSES, 100)
    assert torch.equal(found.images, made.images)
    assert torch.equal(found.labels, made.labels[:, 0])
    assert torch.equal(found.masks, made.masks[:, 0])
    assert torch.equal(found.boxes, made.boxes[:, 0])
    assert found.checksum == scenes.image_set("train", size=32, limit=100).checksum


def test_splits_have_no_image_in_common_nor_with_the_default_seed():
    found = [scenes.image_set(split, limit=60).images for split in data.SPLITS] + [scenes.draw(60).images]
    assert len(set.union(*map(fingerprints, found))) == 180


def test_sets_are_of_8000_and_2000_images(monkeypatch):
    drawn = []

    def few(count, size, seed):
        drawn.append((count, size, seed))
        return made

    made = scenes.draw(2, size=16)
    monkeypatch.setattr(scenes, "draw", few)
    assert [scenes.image_set(split).name for split in data.SPLITS] == ["scenes/train", "scenes/test"]
    assert [(count, size) for count, size, _ in drawn] == [(8000, 64), (2000, 64)]
    assert len({seed for *_, seed in drawn} | {0}) == 3
    assert scenes.image_set("test", size=20, limit=9000).name == "scenes/test@20[9000]"


# errors


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "count must be at least 1; got 0"),
        ({"size": 15}, "size must be at least 16; got 15"),
        ({"objects": 3}, "objects must be 1 or 2; got 3"),
        ({"objects": 0}, "objects must be 1 or 2; got 0"),
        ({"clutter": -1}, "clutter must be at least 0; got -1"),
        ({"seed": -1}, "seed must be at least 0; got -1"),
    ],
)
def test_arguments_are_checked(wrong, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        scenes.draw(**{"count": 1, **wrong})


def test_arguments_of_a_set_are_checked():
    with pytest.raises(ValueError, match="^split must be one of train, test; got 'validation'$"):
        scenes.image_set("validation")
    with pytest.raises(ValueError, match="^limit must be at least 1; got 0$"):
        scenes.image_set("train", limit=0)
    with pytest.raises(ValueError, match="^size must be at least 16; got 8$"):
        data.load("scenes", size=8)
