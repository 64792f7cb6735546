import dataclasses
import errno
import hashlib
import importlib
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from PIL import Image
from sklearn.datasets import load_digits

from xai_lib import data, provenance


def fingerprints(images):
    """One text per image, to compare sets of images."""
    return [hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in images.images]


# an image set


@pytest.fixture
def toy():
    generator = torch.Generator().manual_seed(0)
    return data.ImageSet(
        images=torch.randint(0, 256, (12, 1, 4, 4), generator=generator, dtype=torch.uint8),
        labels=torch.arange(12) % 3,
        classes=("a", "b", "c"),
        name="toy/train",
        boxes=torch.arange(48.0).view(12, 4),
        parts=torch.arange(72.0).view(12, 2, 3),
        masks=torch.rand(12, 4, 4, generator=generator) < 0.5,
    )


def test_take_keeps_everything_that_belongs_to_an_image(toy):
    index = torch.tensor([7, 2, 2])
    few = toy.take(index, "few")
    assert len(few) == 3
    assert few.name == "few"
    assert few.classes == toy.classes
    for key in ("images", "labels", "boxes", "parts", "masks"):
        assert torch.equal(getattr(few, key), torch.stack([getattr(toy, key)[k] for k in (7, 2, 2)])), key
    assert dataclasses.replace(toy, boxes=None).take(index, "few").boxes is None


def test_the_checksum_is_of_images_and_labels(toy):
    same = data.ImageSet(toy.images.clone(), toy.labels.clone(), ("x", "y", "z"), "other")
    assert same.checksum == toy.checksum
    assert same.checksum == provenance.tensors_sha256({"images": toy.images, "labels": toy.labels})
    few = toy.take(torch.arange(3), "few")
    assert few.checksum == provenance.tensors_sha256({"images": toy.images[:3], "labels": toy.labels[:3]})
    changed = toy.images.clone()
    changed[3, 0, 1, 1] += 1
    assert data.ImageSet(changed, toy.labels, toy.classes, "toy").checksum != toy.checksum
    assert data.ImageSet(toy.images, toy.labels.flip(0), toy.classes, "toy").checksum != toy.checksum


def test_an_image_set_is_frozen_and_its_shapes_are_checked(toy):
    with pytest.raises(dataclasses.FrozenInstanceError):
        toy.name = "other"
    with pytest.raises(TypeCheckError):
        data.ImageSet(toy.images, toy.labels[:5], toy.classes, "toy")
    with pytest.raises(TypeCheckError):
        data.ImageSet(toy.images.float(), toy.labels, toy.classes, "toy")


def test_split_divides_class_by_class(toy):
    rest, part = data.split(toy, 0.25)
    assert (len(rest), len(part)) == (9, 3)
    assert sorted(rest.boxes[:, 0].tolist() + part.boxes[:, 0].tolist()) == toy.boxes[:, 0].tolist(), "each image once"
    assert rest.labels.bincount().tolist() == [3, 3, 3]
    assert part.labels.bincount().tolist() == [1, 1, 1]
    for one in (rest, part):
        assert (one.boxes[:, 0].diff() > 0).all(), "in the order of the set"
        index = (one.boxes[:, 0] / 4).long()
        assert torch.equal(one.images, toy.images[index])
        assert torch.equal(one.labels, toy.labels[index])
    assert len({toy.name, rest.name, part.name}) == 3


def test_split_is_fixed_by_its_seed():
    digits = data.load("digits", "test")
    one, two, other = (data.split(digits, 0.3, seed)[1].checksum for seed in (0, 0, 1))
    assert one == two != other


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 30.0])
def test_split_checks_its_fraction(toy, fraction):
    with pytest.raises(ValueError, match=f"fraction .* got {fraction}"):
        data.split(toy, fraction)


# normalisation


def test_normalize_by_hand():
    images = torch.tensor([0, 51, 102, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    found = data.Normalize(0.2, 0.5)(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([-0.4, 0.0, 0.4, 1.6]).view(1, 1, 2, 2))
    assert images.flatten().tolist() == [0, 51, 102, 255], "the images stay as they are"


def test_normalize_of_is_the_slow_form():
    images = torch.randint(0, 256, (50, 3, 5, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8) // 2
    values = np.float64(images.numpy()) / 255
    found = data.Normalize.of(images)
    assert found.mean == pytest.approx(values.mean(), abs=5.1e-5)
    assert found.std == pytest.approx(values.std(), abs=5.1e-5)
    assert found(images).mean().item() == pytest.approx(0, abs=1e-3)
    assert found(images).std().item() == pytest.approx(1, abs=1e-3)


# digits


def test_digits_are_1400_and_397_and_no_image_is_in_both():
    train, test = (data.load("digits", split) for split in ("train", "test"))
    assert [tuple(one.images.shape) for one in (train, test)] == [(1400, 1, 28, 28), (397, 1, 28, 28)]
    assert (train.name, test.name) == ("digits/train", "digits/test")
    assert train.classes == test.classes == tuple("0123456789")
    assert set(fingerprints(train)).isdisjoint(fingerprints(test))
    raw = load_digits()
    assert (train.labels.bincount() + test.labels.bincount()).tolist() == np.bincount(raw.target).tolist()
    assert len(set(fingerprints(train) + fingerprints(test))) == len({one.tobytes() for one in raw.images})


def test_digits_are_the_raw_digits_scaled_and_centred():
    raw = load_digits()
    whole = [data.load("digits", split) for split in ("train", "test")]
    assert sum(one.images[:, :, 4:-4, 4:-4].double().mean().item() * len(one) for one in whole) / 1797 == pytest.approx(
        raw.images.mean() * 255 / 16, rel=0.01
    )
    for one in whole:
        border = one.images.clone()
        border[:, :, 4:-4, 4:-4] = 0
        assert border.sum() == 0
        assert one.images.max() == 255
    sums = {(int(label), round(image.mean() * 255 / 16)) for image, label in zip(raw.images, raw.target, strict=True)}
    found = whole[1].images[:, 0, 4:-4, 4:-4].double().mean((1, 2)).tolist()
    close = [
        any((label, round(mean) + by) in sums for by in range(-3, 4))
        for label, mean in zip(whole[1].labels.tolist(), found, strict=True)
    ]
    assert all(close), "labels go with their images"


def test_digits_are_the_same_each_time_and_need_no_data(own_data):
    assert data.load("digits").checksum == data.load("digits", "train").checksum
    assert data.load("digits").checksum != data.load("digits", "test").checksum
    assert not list(own_data.iterdir())


def test_limit_keeps_the_first_of_a_fixed_random_order():
    whole = data.load("digits", "test")
    few, more, again = (data.load("digits", "test", limit=limit) for limit in (10, 50, 10))
    assert (len(few), len(more)) == (10, 50)
    assert few.checksum == again.checksum
    assert set(fingerprints(few)) < set(fingerprints(more)) < set(fingerprints(whole))
    assert few.name == "digits/test[10]"
    labels = dict(zip(fingerprints(whole), whole.labels.tolist(), strict=True))
    assert [labels[one] for one in fingerprints(few)] == few.labels.tolist()
    assert fingerprints(few) != fingerprints(whole)[:10], "random"
    places = [fingerprints(whole).index(one) for one in fingerprints(few)]
    assert places == sorted(places)


def test_a_limit_above_the_size_changes_nothing():
    whole = data.load("digits", "test")
    for limit in (397, 1000):
        assert data.load("digits", "test", limit=limit).checksum == whole.checksum
        assert data.load("digits", "test", limit=limit).name == "digits/test"


# names


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_1_is_an_error(limit):
    with pytest.raises(ValueError, match=f"limit .* got {limit}"):
        data.load("digits", limit=limit)


def test_an_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="split must be one of train, test; got 'validation'"):
        data.load("digits", "validation")


def test_an_unknown_set_lists_the_known(own_data, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="unknown data set 'mnits'") as caught:
        data.load("mnits")
    for name in [*data.LOADERS, "auto:mnist", "folder"]:
        assert name in str(caught.value)
    with pytest.raises(ValueError, match="'auto:digits'.*known: auto:mnist"):
        data.load("auto:digits")


def test_is_available(own_data):
    assert data.is_available("digits")
    assert not data.is_available("mnist")
    assert not data.is_available("mnits"), "a set that nobody knows"


def test_root_is_xai_data_or_the_projects_folder(own_data, monkeypatch, tmp_path):
    assert data.root() == own_data
    (tmp_path / "project" / "notebooks").mkdir(parents=True)
    (tmp_path / "project" / "claims.yml").touch()
    monkeypatch.chdir(tmp_path / "project" / "notebooks")
    for unset in (lambda: monkeypatch.setenv("XAI_DATA", ""), lambda: monkeypatch.delenv("XAI_DATA")):
        unset()
        assert data.root() == tmp_path / "project" / "data"


# MNIST: a small folder in the official layout


def write_idx(path, array):
    """Write an IDX file of unsigned bytes (http://yann.lecun.com/exdb/mnist, "THE IDX FILE FORMAT")."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def little_mnist(own_data, monkeypatch):
    """A made-up MNIST of 30 and 20 images 28x28, with its own checksums; returns the arrays."""
    random = np.random.default_rng(0)
    made, known = {}, {}
    for split, prefix, count in (("train", "train", 30), ("test", "t10k", 20)):
        images, labels = random.integers(0, 256, (count, 28, 28)), np.arange(count) % 10
        made[split] = images, labels
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            name = f"MNIST/raw/{prefix}-{kind}-ubyte"
            write_idx(own_data / name, array)
            known[name] = hashlib.sha256((own_data / name).read_bytes()).hexdigest()
    assert known.keys() == data.REAL_FILES["mnist"].keys()
    monkeypatch.setitem(data.REAL_FILES, "mnist", known)
    return made


@pytest.mark.parametrize("name", ["mnist", "auto:mnist"])
def test_mnist_is_read_from_its_official_layout(little_mnist, name):
    for split in data.SPLITS:
        found = data.load(name, split)
        images, labels = little_mnist[split]
        assert found.images.numpy().tolist() == images[:, None].tolist()
        assert found.labels.tolist() == labels.tolist()
        assert (found.name, found.classes) == (f"mnist/{split}", tuple("0123456789"))
        assert (found.images.dtype, found.labels.dtype) == (torch.uint8, torch.int64)
    assert data.load(name, "train", limit=7).name == "mnist/train[7]"


def test_auto_is_the_stand_in_where_the_set_is_not_there(own_data):
    assert data.load("auto:mnist", "test").name == "digits/test"
    assert data.load("auto:mnist", "test").checksum == data.load("digits", "test").checksum


def test_auto_is_the_stand_in_where_a_file_of_the_set_is_missing(little_mnist, own_data):
    (own_data / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    assert data.load("auto:mnist", "train").name == "digits/train", "both splits are of one set"


def test_missing_data_names_the_command(own_data):
    with pytest.raises(FileNotFoundError, match="mnist: .*missing; `make data SETS=mnist`") as caught:
        data.load("mnist")
    assert str(own_data) in str(caught.value)


def cut(raw):
    return raw[:-1]


def empty(raw):
    return b""


def flip(raw):
    return raw[:500] + bytes([raw[500] ^ 1]) + raw[501:]


def longer(raw):
    return raw + b"\0"


@pytest.mark.parametrize("damage", [cut, empty, flip, longer])
@pytest.mark.parametrize("name", ["mnist", "auto:mnist"])
def test_a_truncated_or_altered_file_is_named_with_both_checksums(little_mnist, own_data, name, damage):
    file = own_data / "MNIST/raw/train-images-idx3-ubyte"
    file.write_bytes(damage(file.read_bytes()))
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    expected = data.REAL_FILES["mnist"]["MNIST/raw/train-images-idx3-ubyte"]
    with pytest.raises(ValueError, match=f"{re.escape(str(file))} .*expected {expected}, found {found}"):
        data.load(name, "train")
    assert len(data.load(name, "test")) == 20, "the other split is whole"


# the real MNIST


@pytest.mark.mnist
def test_the_real_mnist():
    """60,000 and 10,000 images; counts per class, mean 0.1307 and standard deviation 0.3081 as everywhere published."""
    train, test = (data.load("mnist", split) for split in ("train", "test"))
    assert train.images.shape == (60000, 1, 28, 28)
    assert test.images.shape == (10000, 1, 28, 28)
    assert train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.Normalize.of(train.images) == data.Normalize(0.1307, 0.3081)
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert data.load("auto:mnist", "test").checksum == test.checksum
    assert test.checksum == provenance.tensors_sha256({"images": test.images, "labels": test.labels})


# folders of images

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def picture(path, colour, size=(10, 10), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path, own_data):
    """Ten red and five blue pictures, each a little different, in one folder per class."""
    for k in range(10):
        picture(tmp_path / "set" / "red" / f"{k}.png", (255 - k, 0, 0))
    for k in range(5):
        picture(tmp_path / "set" / "blue" / "deeper" / f"{k}.PNG", (0, 0, 255 - k))
    (tmp_path / "set" / "red" / "notes.txt").write_text("not a picture")
    (tmp_path / "set" / ".hidden").mkdir()
    return tmp_path / "set"


def test_a_folder_is_split_one_in_five_of_each_class(folder):
    train, test = (data.load(str(folder), split, size=8) for split in data.SPLITS)
    assert train.classes == test.classes == ("blue", "red")
    assert train.labels.bincount().tolist() == [4, 8]
    assert test.labels.bincount().tolist() == [1, 2]
    assert (train.name, test.name) == ("folder:set/train", "folder:set/test")
    assert train.images.shape == (12, 3, 8, 8)
    assert set(fingerprints(train)).isdisjoint(fingerprints(test))
    assert len(set(fingerprints(train) + fingerprints(test))) == 15
    for one in (train, test):
        red, blue = one.images[:, 0, 0, 0] > 100, one.images[:, 2, 0, 0] > 100
        assert torch.equal(one.labels, red.long())
        assert torch.equal(red, ~blue)
    assert data.load(str(folder), "test", size=8).checksum == test.checksum


def test_sizes_and_channels_of_a_folder(folder):
    assert data.load(str(folder), "test").images.shape == (3, 3, 64, 64)
    assert data.load(str(folder), "test", size=5, channels=1).images.shape == (3, 1, 5, 5)
    assert len(data.load(str(folder), "train", size=5, limit=4)) == 4


def test_a_folder_beside_the_notebook_needs_no_slash(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert data.load("set", "test", size=4).name == "folder:set/test"


def test_a_folder_with_train_and_test_is_taken_as_it_is(tmp_path, own_data):
    for split, count in (("train", 3), ("test", 1)):
        for k in range(count):
            for name in ("red", "green"):
                picture(tmp_path / "set" / split / name / f"{k}.png", COLOURS[name])
    train, test = (data.load(str(tmp_path / "set"), split, size=4) for split in data.SPLITS)
    assert (len(train), len(test)) == (6, 2), "one image in a class is enough here"
    assert train.classes == ("green", "red")
    assert test.labels.tolist() == [0, 1]
    assert test.images[:, :, 0, 0].tolist() == [[0, 255, 0], [255, 0, 0]]


def test_train_and_test_with_other_classes_are_an_error(tmp_path, own_data):
    """Else the label 0 means one class in training and another in testing."""
    for split, names in (("train", ("green", "red")), ("test", ("blue", "green", "red"))):
        for name in names:
            picture(tmp_path / "set" / split / name / "0.png", COLOURS[name])
    with pytest.raises(ValueError, match="class folders"):
        data.load(str(tmp_path / "set"), "test", size=4)


@pytest.mark.parametrize(
    ("mode", "suffix", "tolerance"),
    [("RGB", "png", 0), ("RGBA", "png", 0), ("P", "png", 0), ("P", "gif", 0), ("RGB", "bmp", 0), ("RGB", "jpg", 3)],
)
def test_pictures_of_any_kind_keep_their_colours(tmp_path, own_data, mode, suffix, tolerance):
    for name, colour in COLOURS.items():
        for k in range(2):
            picture(tmp_path / "set" / name / f"{k}.{suffix}", colour, mode=mode)
    found = data.load(str(tmp_path / "set"), "train", size=6)
    for image, label in zip(found.images.int(), found.labels.tolist(), strict=True):
        colour = torch.tensor(COLOURS[found.classes[label]]).view(3, 1, 1)
        assert (image - colour).abs().max() <= tolerance


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def test_grey_pictures_keep_their_values(tmp_path, own_data):
    values = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
    for name in ("a", "b"):
        for k in range(2):
            save(tmp_path / "set" / name / f"{k}.png", values)
    grey = data.load(str(tmp_path / "set"), "train", size=8, channels=1)
    assert grey.images[0, 0].tolist() == values.tolist()
    colour = data.load(str(tmp_path / "set"), "train", size=8, channels=3)
    assert colour.images[0].tolist() == [values.tolist()] * 3


def test_grey_pictures_of_16_bits_keep_their_shades(tmp_path, own_data):
    """A file of microscopes and X-ray machines; 65,535 is white, and 32,768 is not."""
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for name in ("a", "b"):
        for k in range(2):
            save(tmp_path / "set" / name / f"{k}.png", values)
    found = data.load(str(tmp_path / "set"), "train", size=8, channels=1).images[0, 0]
    assert (found.double() - torch.from_numpy(values / 257.0)).abs().max() <= 1


def test_a_transparent_palette_gives_no_warning(tmp_path, own_data):
    for name, colour in COLOURS.items():
        for k in range(2):
            path = tmp_path / "set" / name / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (6, 6), colour).convert("P").save(path, transparency=bytes([255] * 255 + [0]))
    assert data.load(str(tmp_path / "set"), "test", size=6).images.amax((2, 3)).sum(1).tolist() == [255] * 3


def test_the_short_side_is_scaled_and_the_centre_is_kept(tmp_path, own_data):
    """20x10: left quarter red, right quarter blue, the middle green; the middle is what is kept."""
    wide = np.zeros((10, 20, 3), np.uint8)
    wide[:, :5, 0], wide[:, 5:15, 1], wide[:, 15:, 2] = 255, 255, 255
    for name, array in (("wide", wide), ("tall", wide.transpose(1, 0, 2))):
        for k in range(2):
            save(tmp_path / "set" / name / f"{k}.png", array)
    for image in data.load(str(tmp_path / "set"), "train", size=10).images:
        assert image.amin((1, 2)).tolist() == [0, 255, 0]
    for image in data.load(str(tmp_path / "set"), "train", size=40).images:
        assert image[:, 10:-10, 10:-10].amin((1, 2)).tolist() == [0, 255, 0]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "nowhere")):
        data.load(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("wrong", [{"channels": 2}, {"size": -1}, {"size": 0}])
def test_sizes_and_channels_are_checked(folder, wrong):
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        data.load(str(folder), **wrong)


def test_a_folder_with_one_class_is_an_error(tmp_path, own_data):
    picture(tmp_path / "set" / "only" / "0.png", (0, 0, 0))
    with pytest.raises(ValueError, match=r"two or more class folders; found 1 \(only\)"):
        data.load(str(tmp_path / "set"))
    picture(tmp_path / "flat" / "0.png", (0, 0, 0))
    with pytest.raises(ValueError, match=r"found 0 \(\)"):
        data.load(str(tmp_path / "flat"))


def test_an_empty_class_folder_is_named(folder):
    (folder / "void").mkdir()
    (folder / "void" / "readme.txt").touch()
    with pytest.raises(ValueError, match=f"{re.escape(str(folder / 'void'))} holds no images"):
        data.load(str(folder))


def test_one_image_in_a_class_cannot_be_split(folder):
    picture(folder / "single" / "0.png", (0, 0, 0))
    with pytest.raises(ValueError, match=f"{re.escape(str(folder / 'single'))} holds one image"):
        data.load(str(folder), size=4)


def bitmap_header(width, height):
    """Head of a BMP file (BITMAPINFOHEADER, 24 bits a pixel)."""
    return struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("content", ["text", "empty", "truncated", "altered", "altered header", "too large"])
def test_an_unreadable_image_is_named(folder, content):
    file = folder / "red" / "3.png"
    raw = file.read_bytes()
    start = raw.index(b"IDAT") + 8
    made = {
        "text": b"<html>not found</html>",
        "empty": b"",
        "truncated": raw[: start + 4],
        "altered": raw[:start] + bytes([raw[start] ^ 0xFF]) + raw[start + 1 :],
        "altered header": raw[:11] + bytes([raw[11] ^ 1]) + raw[12:],  # the length of IHDR
        "too large": bitmap_header(100_000, 100_000) + bytes(100),
    }
    file.write_bytes(made[content])
    with pytest.raises(ValueError, match=f"{re.escape(str(file))} cannot be read as an image"):
        data.load(str(folder), size=4)


def test_folders_are_decoded_once(folder, own_data, monkeypatch):
    real, decoded = data._decode, []
    monkeypatch.setattr(data, "_decode", lambda file, *rest: decoded.append(file) or real(file, *rest))
    first = data.load(str(folder), "train", size=6)
    assert len(decoded) == 15
    assert data.load(str(folder), "train", size=6).checksum == first.checksum
    assert len(data.load(str(folder), "test", size=6)) == 3
    assert len(decoded) == 15, "both splits come from the array file"
    assert [file.suffix for file in (own_data / "decoded").iterdir()] == [".npy"]
    data.load(str(folder), "train", size=7)
    data.load(str(folder), "train", size=6, channels=1)
    assert len(decoded) == 45, "another size, and other channels, are other arrays"
    picture(folder / "red" / "3.png", (101, 0, 0))
    both = [data.load(str(folder), split, size=6).images[:, 0].max(2).values.max(1).values for split in data.SPLITS]
    assert 101 in torch.cat(both), "a picture changed"
    assert len(decoded) == 60


@pytest.mark.parametrize("damage", [cut, empty])
def test_a_damaged_array_file_is_decoded_again(folder, own_data, damage):
    first = data.load(str(folder), "train", size=6)
    [kept] = (own_data / "decoded").iterdir()
    kept.write_bytes(damage(kept.read_bytes()))
    assert data.load(str(folder), "train", size=6).checksum == first.checksum


def failing(error):
    def function(*args, **kwargs):
        raise OSError(error, "cannot")

    return function


def test_a_data_folder_that_cannot_be_made_is_tolerated(folder, tmp_path, monkeypatch):
    expected = data.load(str(folder), "test", size=6)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XAI_DATA", str(tmp_path / "file" / "data"))  # below a file: no folder can be made
    assert data.load(str(folder), "test", size=6).checksum == expected.checksum


def test_a_read_only_data_folder_is_tolerated(folder, own_data, monkeypatch):
    expected = data.load(str(folder), "test", size=6)
    for file in (own_data / "decoded").iterdir():
        file.unlink()
    # as on a read-only file system, where even the removal of what is not there fails so
    monkeypatch.setattr(np, "save", failing(errno.EROFS))
    monkeypatch.setattr(Path, "unlink", failing(errno.EROFS))
    assert data.load(str(folder), "test", size=6).checksum == expected.checksum


def test_a_full_disk_is_tolerated_and_leaves_nothing_half_written(folder, own_data, monkeypatch):
    def save_half(path, array, **options):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", save_half)
        found = data.load(str(folder), "test", size=6)
    assert not list((own_data / "decoded").iterdir())
    assert data.load(str(folder), "test", size=6).checksum == found.checksum


# sets that are modules of the package


def test_modules_that_are_a_set_are_found():
    assert "scenes" in data.modules()
    assert "data" not in data.modules(), "what it is called there does not count"
    assert not set(data.modules()) & set(data.LOADERS)
    for name in data.modules():
        assert callable(importlib.import_module(f"xai_lib.{name}").image_set)


@pytest.mark.parametrize("split", data.SPLITS)
def test_a_modules_set_is_what_the_module_gives(own_data, split):
    found = data.load("scenes", split, size=32, limit=5)
    expected = importlib.import_module("xai_lib.scenes").image_set(split, 32, 5)
    assert (found.name, found.classes, found.checksum) == (expected.name, expected.classes, expected.checksum)
    assert found.images.shape == (5, 3, 32, 32)
    for key in ("images", "labels", "boxes", "masks"):
        assert torch.equal(getattr(found, key), getattr(expected, key)), key


def test_a_modules_set_has_64_pixels_where_nothing_is_said(own_data):
    assert data.load("scenes", "test", limit=1).images.shape == (1, 3, 64, 64)


def test_an_unknown_set_lists_those_of_modules(own_data):
    with pytest.raises(ValueError, match=r"unknown data set 'scene'; known: .*\bscenes\b"):
        data.load("scene")


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"limit": 0}, "limit must be at least 1; got 0"),
        ({"limit": -2}, "limit must be at least 1; got -2"),
        ({"split": "validation"}, "split must be one of train, test; got 'validation'"),
    ],
)
def test_a_modules_set_is_not_drawn_for_bad_arguments(own_data, monkeypatch, more, text):
    scenes = importlib.import_module("xai_lib.scenes")

    def draw(*args, **kwargs):
        raise AssertionError("drawn")

    monkeypatch.setattr(scenes, "draw", draw)
    with pytest.raises(ValueError, match=f"^{text}$"):
        data.load("scenes", **more)
    with pytest.raises(AssertionError, match="drawn"):
        data.load("scenes")


def test_a_folder_called_like_a_module_is_the_folder(folder, own_data, monkeypatch):
    """As a path, and as a bare name where it exists; the module's set has no folder."""
    monkeypatch.chdir(folder.parent)
    folder.rename(folder.parent / "scenes")
    assert data.load("./scenes", "test", size=4).name == "folder:scenes/test"
    assert data.load("scenes", "test", size=4).name == "folder:scenes/test"
