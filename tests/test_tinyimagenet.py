import contextlib

import numpy as np
import pytest
import torch
from PIL import Image

from xai_lib import data, tinyimagenet

# In the order of wnids.txt, which is none of the alphabet; the third is listed and not there.
LISTED = ("n00000003", "n00000001", "n00000009", "n00000002")
THERE = ("n00000003", "n00000001", "n00000002")
WORDS = {
    "n00000001": "crane, lifting device",
    "n00000002": "crane",
    "n00000003": "king penguin, Aptenodytes patagonica",
    "n00000009": "goldfish",
    "n00000100": "a word that is no class",
}
PER_CLASS = {"train": 3, "test": 2}


def colour(split, identifier, k):
    """A colour of its own for each picture: class, number, split."""
    return 60 * THERE.index(identifier), 50 + 60 * k, {"train": 0, "test": 200}[split]


def box(split, identifier, k):
    """Both ends included, and another one for each picture."""
    return [THERE.index(identifier), k, 40 + k, 50 if split == "train" else 60]


def rows(split):
    """(identifier, number) of each picture in the order of our sets."""
    return [(one, k) for one in THERE for k in range(PER_CLASS[split])]


def save(file, shade, mode="RGB"):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (64, 64), shade).save(file, quality=100, subsampling=0)


def line(*fields):
    return "\t".join(map(str, fields)) + "\n"


@pytest.fixture
def top(own_data, monkeypatch):
    """Three classes of 3 + 2 plain pictures in the official layout; the validation set mixes the classes."""
    monkeypatch.setattr(tinyimagenet, "PER_CLASS", PER_CLASS)
    top = own_data / "tiny-imagenet-200"
    for one in THERE:
        for k in range(3):
            save(top / "train" / one / "images" / f"{one}_{k}.JPEG", colour("train", one, k))
        lines = [line(f"{one}_{k}.JPEG", *box("train", one, k)) for k in range(3)]
        (top / "train" / one / f"{one}_boxes.txt").write_text("".join(lines))
    lines = []
    for k in range(2):
        for one in sorted(THERE):
            name = f"val_{len(lines)}.JPEG"
            save(top / "val" / "images" / name, colour("test", one, k))
            lines.append(line(name, one, *box("test", one, k)))
    (top / "val" / "val_annotations.txt").write_text("".join(lines))
    (top / "wnids.txt").write_text("\n".join(LISTED))
    (top / "words.txt").write_text("".join(line(*one) for one in WORDS.items()))
    return top


def annotations(top, split):
    if split == "test":
        return top / "val" / "val_annotations.txt"
    return top / "train" / "n00000001" / "n00000001_boxes.txt"


def a_picture(top, split):
    """A picture of n00000001."""
    return top / ("val/images/val_0.JPEG" if split == "test" else "train/n00000001/images/n00000001_2.JPEG")


@contextlib.contextmanager
def one_line(kind, *parts):
    """Expect an error whose message is one line that holds `parts`."""
    with pytest.raises(kind) as error:
        yield
    assert "\n" not in str(error.value)
    assert [part for part in map(str, parts) if part not in str(error.value)] == [], str(error.value)


# what is read


@pytest.mark.parametrize("split", data.SPLITS)
def test_pictures_labels_and_boxes_belong_together_class_by_class(top, split):
    found = tinyimagenet.image_set(split)
    assert found.images.shape == (len(rows(split)), 3, 64, 64)
    assert found.labels.tolist() == [THERE.index(one) for one, _ in rows(split)], "one label in both splits"
    for image, (one, k) in zip(found.images.int(), rows(split), strict=True):
        assert (image - torch.tensor(colour(split, one, k)).view(3, 1, 1)).abs().max() <= 2, "as JPEG has it"
    expected = [[x0, y0, x1 + 1, y1 + 1] for x0, y0, x1, y1 in (box(split, *row) for row in rows(split))]
    assert found.boxes.dtype == torch.float32
    assert found.boxes.tolist() == expected
    assert found.name == f"tinyimagenet/{split}[3 classes]"
    assert (found.parts, found.masks) == (None, None)


def test_data_load_reaches_it_and_size_and_channels_do_not_matter(top):
    expected = tinyimagenet.image_set("test")
    for more in ({}, {"size": 8}, {"size": 100, "channels": 1}):
        found = data.load("tinyimagenet", "test", **more)
        assert (found.name, found.classes, found.checksum) == (expected.name, expected.classes, expected.checksum)
        assert torch.equal(found.boxes, expected.boxes)


@pytest.mark.parametrize("split", data.SPLITS)
@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((10, 20, 30, 40), [10, 20, 31, 41]),
        ((30, 40, 10, 20), [10, 20, 31, 41]),
        ((30, 20, 10, 40), [10, 20, 31, 41]),
        ((10, 40, 30, 20), [10, 20, 31, 41]),
        ((7, 9, 7, 9), [7, 9, 8, 10]),
        ((0, 0, 63, 63), [0, 0, 64, 64]),
        ((0, 5, 64, 70), [0, 5, 64, 64]),
        ((-3, 70, 20, -1), [0, 0, 21, 64]),
    ],
)
def test_ends_of_boxes_are_exclusive_in_order_and_in_the_image(top, split, ends, expected):
    file = annotations(top, split)
    lines = file.read_text().splitlines(keepends=True)
    name = lines[0].split("\t")[0]
    lines[0] = line(name, "n00000001", *ends) if split == "test" else line(name, *ends)
    file.write_text("".join(lines))
    found = tinyimagenet.image_set(split)
    assert found.boxes[rows(split).index(("n00000001", 0))].tolist() == expected


def test_grey_photographs_become_rgb(top):
    shades = np.arange(64, dtype=np.uint8).repeat(64).reshape(64, 64) * 4
    Image.fromarray(shades).save(a_picture(top, "train"), quality=100)
    found = tinyimagenet.image_set("train").images[rows("train").index(("n00000001", 2))].int()
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert (found[0] - torch.from_numpy(shades)).abs().max() <= 2


# classes


@pytest.mark.parametrize("split", data.SPLITS)
@pytest.mark.parametrize("wanted", [("n00000003", "n00000002"), ["n00000002", "n00000003"]])
def test_some_classes_in_any_order(top, split, wanted):
    whole, found = tinyimagenet.image_set(split), tinyimagenet.image_set(split, classes=wanted)
    kept = whole.labels != 1
    assert found.classes == ("king penguin", "crane"), "in the order of wnids.txt"
    assert found.labels.tolist() == [0] * PER_CLASS[split] + [1] * PER_CLASS[split]
    assert torch.equal(found.images, whole.images[kept])
    assert torch.equal(found.boxes, whole.boxes[kept])
    assert found.name == f"tinyimagenet/{split}[2 classes]"


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        (("n00000001", "n00000003", "n00000007"), "['n00000007']"),
        (("n00000001", "n00000003", "n00000009"), "['n00000009']"),
        (("n00000003",), "['n00000003']"),
        (("n00000003", "n00000003"), "['n00000003']"),
        ((), "[]"),
    ],
    ids=["unknown", "not there", "one", "one twice", "none"],
)
def test_classes_are_checked(top, wanted, named):
    with one_line(ValueError, f"classes must be two or more of the 3 in {top}; got {named}"):
        tinyimagenet.image_set("train", classes=wanted)


def test_all_200_classes_need_no_number_in_the_name(top, monkeypatch):
    """The same pictures stand for 200 classes; words.txt knows few of them."""
    many = [f"n1{k:07}" for k in range(200)]
    (top / "wnids.txt").write_text("\n".join(many))
    (top / "val" / "val_annotations.txt").write_text("".join(line("val_0.JPEG", one, 1, 2, 3, 4) for one in many))
    for one in many:
        (top / "train" / one).mkdir()
    monkeypatch.setattr(tinyimagenet, "PER_CLASS", {"test": 1})
    found = tinyimagenet.image_set("test")
    assert (found.name, len(found)) == ("tinyimagenet/test", 200)
    assert tinyimagenet.image_set("test", limit=7).name == "tinyimagenet/test[7]"


def test_names_are_the_first_words_and_equal_ones_get_the_identifier(top):
    assert tinyimagenet.image_set("test").classes == ("king penguin", "crane (n00000001)", "crane (n00000002)")
    assert tinyimagenet.image_set("test", classes=("n00000001", "n00000003")).classes == ("king penguin", "crane")


def test_a_class_without_words_is_called_by_its_identifier(top):
    (top / "words.txt").write_text(line("n00000003", "king penguin"))
    assert tinyimagenet.image_set("test").classes == ("king penguin", "n00000001", "n00000002")


# a part of it


def test_a_limit_keeps_the_same_pictures_each_time(top):
    whole = tinyimagenet.image_set("train")
    few = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        few.append(data.load("tinyimagenet", "train", limit=4))
    for one in few:
        assert (len(one), one.name) == (4, "tinyimagenet/train[3 classes][4]")
        assert one.checksum == few[0].checksum
    place = [[k for k in range(9) if torch.equal(whole.images[k], one)] for one in few[0].images]
    assert all(len(one) == 1 for one in place), "each is one of the set"
    kept = [k for [k] in place]
    assert kept == sorted(set(kept)), "none twice, in the order of the set"
    assert kept != list(range(4)), "not the first classes only"
    assert torch.equal(few[0].labels, whole.labels[kept])
    assert torch.equal(few[0].boxes, whole.boxes[kept])
    assert few[0].classes == whole.classes


@pytest.mark.parametrize("limit", [6, 7])
def test_a_limit_that_leaves_nothing_out_is_the_whole(top, limit):
    found = tinyimagenet.image_set("test", limit=limit)
    assert (len(found), found.name) == (6, "tinyimagenet/test[3 classes]")


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"split": "val"}, "split must be one of train, test; got 'val'"),
        ({"split": "test", "limit": 0}, "limit must be at least 1; got 0"),
        ({"split": "test", "limit": -1}, "limit must be at least 1; got -1"),
    ],
)
def test_arguments_are_checked(top, wrong, text):
    """Classes are chosen by a call without `data.load`, which would check the others."""
    with one_line(ValueError, text):
        tinyimagenet.image_set(**wrong, classes=THERE[:2])


# what is wrong with it


def test_a_missing_set_is_said_with_the_command_that_gets_it(own_data):
    with one_line(FileNotFoundError, own_data / "tiny-imagenet-200", "make data SETS=tinyimagenet"):
        tinyimagenet.image_set("test")


@pytest.mark.parametrize(
    ("split", "name"),
    [
        ("train", "words.txt"),
        ("train", "train/n00000001/n00000001_boxes.txt"),
        ("test", "val/val_annotations.txt"),
    ],
)
def test_a_missing_file_is_named(top, split, name):
    (top / name).unlink()
    with one_line(FileNotFoundError, top / name, "make data SETS=tinyimagenet"):
        tinyimagenet.image_set(split)


@pytest.mark.parametrize("split", data.SPLITS)
def test_a_missing_picture_is_named(top, split):
    file = a_picture(top, split)
    file.unlink()
    with one_line(FileNotFoundError, file):
        tinyimagenet.image_set(split)


@pytest.mark.parametrize("split", data.SPLITS)
def test_a_truncated_picture_is_named(top, split):
    file = a_picture(top, split)
    file.write_bytes(file.read_bytes()[:-100])
    with one_line(ValueError, file, "cannot be read as an image"):
        tinyimagenet.image_set(split)


@pytest.mark.parametrize("split", data.SPLITS)
@pytest.mark.parametrize("change", [-1, 1])
def test_a_class_with_too_few_or_too_many_is_named(top, split, change):
    file, wanted = annotations(top, split), PER_CLASS[split]
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[1:] if change < 0 else lines[:1] + lines))
    with one_line(ValueError, top, f"{wanted} {split} images of each class", f"n00000001 ({wanted + change})"):
        tinyimagenet.image_set(split)
    assert len(tinyimagenet.image_set(split, classes=("n00000002", "n00000003"))) == 2 * wanted, "without it, whole"


def test_a_class_without_validation_pictures_is_named(top):
    """The last one, which no count of labels reaches."""
    file = annotations(top, "test")
    file.write_text("".join(one for one in file.read_text().splitlines(keepends=True) if "n00000002" not in one))
    with one_line(ValueError, "n00000002 (0)"):
        tinyimagenet.image_set("test")


@pytest.mark.parametrize("split", data.SPLITS)
@pytest.mark.parametrize("ends", [(), (1, 2, 3), (1, 2, 3, 4, 5), (1, 2, 3, "four")])
def test_a_line_without_a_whole_box_is_named(top, split, ends):
    file = annotations(top, split)
    lines = [one.split("\t") for one in file.read_text().splitlines()]
    file.write_text("".join(line(*one[:-4], *(ends if k == 0 else one[-4:])) for k, one in enumerate(lines)))
    with one_line(ValueError, file):
        tinyimagenet.image_set(split)


@pytest.mark.parametrize("split", data.SPLITS)
def test_lines_that_all_lack_an_end_are_no_boxes(top, split):
    """Of three numbers each, arithmetic would make four without a word."""
    for file in [*top.glob("train/*/*_boxes.txt"), annotations(top, "test")]:
        file.write_text("".join(one.rpartition("\t")[0] + "\n" for one in file.read_text().splitlines()))
    with one_line(ValueError, top):
        tinyimagenet.image_set(split)


def test_a_cut_last_line_of_the_validation_set_is_named(top):
    """As a copy leaves it that was stopped."""
    file = annotations(top, "test")
    file.write_text(file.read_text() + "val_6.J")
    with one_line(ValueError, file):
        tinyimagenet.image_set("test")


# the real set


def test_two_real_classes():
    if not (data.root() / "tiny-imagenet-200").is_dir():
        pytest.skip(f"no Tiny ImageNet under {data.root()} (make data SETS=tinyimagenet, or set XAI_DATA)")
    found = tinyimagenet.image_set("test", classes=("n02123045", "n01629819"))
    assert found.images.shape == (100, 3, 64, 64)
    assert found.classes == ("European fire salamander", "tabby")
    assert found.labels.tolist() == [0] * 50 + [1] * 50
    assert found.boxes[0].tolist() == [0, 1, 53, 49], "val_23.JPEG, 0 1 52 48"
    assert (found.boxes >= 0).all()
    assert (found.boxes <= 64).all()
    assert (found.boxes[:, :2] < found.boxes[:, 2:]).all()
