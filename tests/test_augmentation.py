from collections import Counter

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import nn

from xai_lib import data, training
from xai_lib.augmentation import CropAndFlip


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(*shape, seed=0):
    """Noise without black pixels, so that black is padding."""
    return torch.randint(1, 256, shape, generator=seeded(seed), dtype=torch.uint8)


def as_float(images):
    return images.float()


def slow_crop(image, padding, top, left, mirrored):
    """One crop of the padded image (C, H, W) as nested lists, pixel by pixel."""
    height, width = len(image[0]), len(image[0][0])

    def pixel(plane, row, column):
        y = row + top - padding
        x = (width - 1 - column if mirrored else column) + left - padding
        return plane[y][x] if 0 <= y < height and 0 <= x < width else 0

    return tuple(pixel(plane, row, column) for plane in image for row in range(height) for column in range(width))


def places(images, found, padding):
    """Return where each output was cropped: (top, left, mirrored); it must be one of the possible crops."""
    steps = range(2 * padding + 1)
    where = []
    for image, one in zip(images.tolist(), found, strict=True):
        crops = {slow_crop(image, padding, y, x, flip): (y, x, flip) for y in steps for x in steps for flip in (0, 1)}
        assert len(crops) == 2 * len(steps) ** 2, "the test can tell all crops of this image apart"
        where.append(crops[tuple(one.int().flatten().tolist())])
    return where


@pytest.mark.parametrize(("channels", "height", "width", "padding"), [(1, 4, 6, 1), (2, 3, 4, 2), (2, 4, 4, 1)])
def test_every_output_is_a_crop_of_the_padded_image_or_its_mirror(channels, height, width, padding):
    images = pictures(600, channels, height, width)
    before = images.clone()
    torch.manual_seed(0)
    found = CropAndFlip(as_float, padding)(images)
    assert found.shape == images.shape
    assert torch.equal(images, before)
    seen = Counter(places(images, found, padding))
    side = 2 * padding + 1
    assert len(seen) == 2 * side**2, "all places and both flips, each image its own"
    mirrored = sum(times for (*_, flip), times in seen.items() if flip)
    assert 240 < mirrored < 360, "half, give or take five standard deviations"
    for axis in (0, 1):
        times = [sum(n for place, n in seen.items() if place[axis] == step) for step in range(side)]
        assert min(times) > 0.6 * 600 / side, "all shifts alike"


def test_without_padding_there_are_only_flips():
    images = pictures(200, 3, 3, 5)
    torch.manual_seed(0)
    found = CropAndFlip(as_float, 0)(images)
    kept = (found == images).flatten(1).all(1)
    mirrored = (found == images.flip(3)).flatten(1).all(1)
    assert (kept ^ mirrored).all()
    assert 65 < kept.sum() < 135


def test_shifts_larger_than_the_image_leave_black():
    torch.manual_seed(0)
    found = CropAndFlip(as_float, 4)(pictures(300, 1, 2, 3))
    assert (found == 0).flatten(1).all(1).any()
    assert (found > 0).flatten(1).all(1).any()


def test_the_default_is_four_pixels():
    """FACTS.md, CIFAR-10: the largest shift is four pixels, to each side."""
    images = pictures(400, 1, 10, 10)
    torch.manual_seed(0)
    found = CropAndFlip(as_float)(images)
    black = found[:, 0] == 0
    for lines in (black.all(2), black.all(1)):  # rows, columns
        for side in (lines, lines.flip(1)):
            assert side.int().cumprod(1).sum(1).max() == 4


def test_the_seed_of_torch_fixes_what_is_drawn():
    images, augment = pictures(50, 3, 6, 6), CropAndFlip(as_float)
    torch.manual_seed(3)
    first, second = augment(images), augment(images)
    torch.manual_seed(3)
    again = augment(images)
    torch.manual_seed(4)
    other = augment(images)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_images_are_prepared_after_the_padding():
    """Padding is black before the normalisation: (0 - mean) / std."""
    images, prepare = pictures(40, 1, 4, 4), data.Normalize(0.4, 0.2)
    torch.manual_seed(0)
    raw = CropAndFlip(as_float, 2)(images)
    torch.manual_seed(0)
    found = CropAndFlip(prepare, 2)(images)
    assert torch.equal(found, prepare(raw.to(torch.uint8)))
    assert found.min().item() == pytest.approx(-2)
    assert (found[raw == 0] == found.min()).all()


def test_no_images():
    assert CropAndFlip(as_float)(pictures(0, 3, 4, 5)).shape == (0, 3, 4, 5)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="padding must be at least 0; got -1"):
        CropAndFlip(as_float, -1)
    with pytest.raises(TypeCheckError):
        CropAndFlip(as_float)(torch.rand(2, 1, 4, 4))


def mean_square(model, images):
    return model(images).square().mean()


def test_a_trained_model_is_kept_under_the_settings_of_its_augmentation(tmp_path, monkeypatch):
    monkeypatch.setattr(training.provenance, "code_hashes", lambda path: {})
    images, recipe = pictures(8, 1, 4, 4), training.Recipe(epochs=1, batch_size=4)

    def file(prepare):
        done = training.fit(
            lambda: nn.Conv2d(1, 1, 3),
            mean_square,
            [images],
            recipe,
            seed=0,
            name="t",
            folder=tmp_path,
            prepare=prepare,
        )
        return done.path.name, done.reused

    prepares = [data.Normalize(0.4, 0.2)]
    prepares += [CropAndFlip(one, padding) for one in (prepares[0], data.Normalize(0.4, 0.3)) for padding in (0, 2)]
    files = [file(prepare) for prepare in prepares]
    assert len({name for name, _ in files}) == 5
    assert not any(reused for _, reused in files)
    assert file(CropAndFlip(data.Normalize(0.4, 0.2), 2)) == (files[2][0], True)
