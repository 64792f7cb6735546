import contextlib
import itertools
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from xai_lib import cifar10, data, provenance

KEYS = ("batch_label", "labels", "data", "filenames")


# fake sets in both layouts


def python2(labels, images, keys=KEYS):
    """Return a batch as cPickle of Python 2 wrote it with protocol 2: byte strings, and lists in steps of 1,000."""
    numbers = itertools.count(1)

    def put():
        number = next(numbers)
        return b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<i", number)

    def text(raw):
        head = b"U" + bytes([len(raw)]) if len(raw) < 256 else b"T" + struct.pack("<i", len(raw))
        return head + raw + put()

    def listed(items):
        steps = [items[k : k + 1000] for k in range(0, len(items), 1000)]
        return b"]" + put() + b"".join(one[0] + b"a" if len(one) == 1 else b"(" + b"".join(one) + b"e" for one in steps)

    made = {
        "batch_label": lambda: text(b"training batch 1 of 5"),
        "labels": lambda: listed([b"K" + bytes([label]) for label in labels]),
        "data": lambda: (
            (b"cnumpy.core.multiarray\n_reconstruct\n" + put() + b"cnumpy\nndarray\n" + put())
            + (b"K\x00\x85U\x01b\x87R" + put() + b"(K\x01M" + struct.pack("<H", len(images)) + b"M\x00\x0c\x86")
            + (b"cnumpy\ndtype\n" + put() + b"U\x02u1K\x00K\x01\x87R" + put())
            + (b"(K\x03U\x01|NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00tb\x89" + text(images.tobytes()) + b"tb")
        ),
        "filenames": lambda: listed([text(b"ship_s_%06d.png" % k) for k in range(len(labels))]),
    }
    return b"\x80\x02}" + put() + b"(" + b"".join(text(key.encode()) + made[key]() for key in keys) + b"u."


def python3(protocol, as_bytes):
    def dump(labels, images):
        pixels = images.tobytes() if as_bytes else images.reshape(len(images), -1)
        return pickle.dumps({"batch_label": "testing batch 1 of 1", "labels": labels, "data": pixels}, protocol)

    return dump


def drawn(count, seed):
    """Labels and images in no order, `count` of each class."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(10).repeat(count)).tolist()
    return labels, random.integers(0, 256, (10 * count, 3, 32, 32), dtype=np.uint8)


def in_order(labels, images):
    """By class, and in a class by bytes: slow."""
    rows = [row for k in range(10) for row in sorted(one.tobytes() for one in images[np.array(labels) == k])]
    ordered = np.stack([np.frombuffer(row, np.uint8).reshape(3, 32, 32) for row in rows])
    return torch.from_numpy(ordered), torch.tensor(sorted(labels))


@pytest.fixture
def fakes(own_data, monkeypatch):
    """Labels and images of 20 + 10 made-up photographs, whose checksums take the place of the real ones."""
    fakes = {"train": drawn(2, 1), "test": drawn(1, 2)}
    for split, fake in fakes.items():
        images, labels = in_order(*fake)
        total = provenance.tensors_sha256({"images": images, "labels": labels})
        monkeypatch.setitem(cifar10.SHA256, split, total)
    return fakes


def write_batches(root, fakes, dump=python2):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for split, (labels, images) in fakes.items():
        names = cifar10.BATCHES[split]
        count = len(labels) // len(names)
        for k, name in enumerate(names):
            part = slice(k * count, (k + 1) * count)
            (folder / name).write_bytes(dump(labels[part], images[part]))
    return folder


def write_pictures(root, fakes):
    for split, (labels, images) in fakes.items():
        for k, (label, image) in enumerate(zip(labels, images, strict=True)):
            file = root / "cifar10" / split / cifar10.CLASSES[label] / f"{99 - k}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(file)
    return root / "cifar10"


LAYOUTS = {"batches": write_batches, "pictures": write_pictures}


@contextlib.contextmanager
def one_line(kind, *parts):
    """Expect an error whose message is one line that holds `parts`."""
    with pytest.raises(kind) as error:
        yield
    assert "\n" not in str(error.value)
    assert [part for part in map(str, parts) if part not in str(error.value)] == [], str(error.value)


# what is read


def test_the_batch_written_by_hand_is_one_that_python_reads(fakes):
    labels, images = fakes["train"]
    found = pickle.loads(python2(labels, images), encoding="latin1")
    assert tuple(found) == KEYS
    assert found["labels"] == labels
    assert np.array_equal(found["data"], images.reshape(20, 3072))
    assert len(found["filenames"]) == 20


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("split", data.SPLITS)
def test_both_layouts_give_the_set_by_class_and_then_by_bytes(own_data, fakes, layout, split):
    LAYOUTS[layout](own_data, fakes)
    found = cifar10.image_set(split)
    images, labels = in_order(*fakes[split])
    assert torch.equal(found.images, images)
    assert torch.equal(found.labels, labels)
    assert found.classes == cifar10.CLASSES
    assert found.name == f"cifar10/{split}"
    assert found.checksum == cifar10.SHA256[split]
    assert (found.boxes, found.parts, found.masks) == (None, None, None)


@pytest.mark.parametrize("as_bytes", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_batches_that_python_3_wrote_are_the_same_set(own_data, fakes, protocol, as_bytes):
    write_batches(own_data, fakes, python3(protocol, as_bytes))
    assert torch.equal(cifar10.image_set("train").images, in_order(*fakes["train"])[0])


@pytest.mark.parametrize("keys", [KEYS, KEYS[::-1]])
def test_labels_of_more_than_one_step_and_any_order_of_keys(tmp_path, keys):
    """The last of 2,001 is a step of its own, and is written in another way."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 2001).tolist()
    images = random.integers(0, 256, (2001, 3, 32, 32), dtype=np.uint8)
    (tmp_path / "batch").write_bytes(python2(labels, images, keys))
    found, found_labels = cifar10._batch(tmp_path / "batch")
    assert found_labels.tolist() == labels
    assert np.array_equal(found.numpy(), images)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_data_load_reaches_it_and_size_and_channels_do_not_matter(own_data, fakes, layout):
    LAYOUTS[layout](own_data, fakes)
    expected = cifar10.image_set("test")
    for more in ({}, {"size": 8}, {"size": 100, "channels": 1}):
        found = data.load("cifar10", "test", **more)
        assert (found.name, found.checksum) == ("cifar10/test", expected.checksum)
        assert torch.equal(found.images, expected.images)


# a part of it


def test_a_limit_keeps_the_same_images_each_time(own_data, fakes):
    write_batches(own_data, fakes)
    whole = cifar10.image_set("train")
    few = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        few.append(data.load("cifar10", "train", limit=6))
    for one in few:
        assert (len(one), one.name) == (6, "cifar10/train[6]")
        assert torch.equal(one.images, few[0].images)
    place = [[k for k in range(20) if torch.equal(whole.images[k], one)] for one in few[0].images]
    assert all(len(one) == 1 for one in place), "each is one of the set"
    kept = [k for [k] in place]
    assert kept == sorted(set(kept)), "none twice, in the order of the set"
    assert kept != list(range(6)), "not the first classes only"
    assert few[0].labels.tolist() == whole.labels[kept].tolist()
    assert few[0].checksum == provenance.tensors_sha256({"images": few[0].images, "labels": few[0].labels})


@pytest.mark.parametrize("limit", [10, 11])
def test_a_limit_that_leaves_nothing_out_is_the_whole(own_data, fakes, limit):
    write_batches(own_data, fakes)
    found = cifar10.image_set("test", limit=limit)
    assert (len(found), found.name, found.checksum) == (10, "cifar10/test", cifar10.SHA256["test"])


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"split": "val"}, "split must be one of train, test; got 'val'"),
        ({"split": "test", "limit": 0}, "limit must be at least 1; got 0"),
        ({"split": "test", "limit": -1}, "limit must be at least 1; got -1"),
    ],
)
def test_arguments_are_checked(own_data, fakes, wrong, text):
    write_batches(own_data, fakes)
    with one_line(ValueError, text):
        cifar10.image_set(**wrong)


# nothing is unpickled


@pytest.mark.parametrize("place", ["before", "within"])
def test_what_a_batch_would_run_is_not_run(own_data, fakes, tmp_path, place):
    marker = str(tmp_path / "marker").encode()
    run = b"cos\nmkdir\n(T" + struct.pack("<i", len(marker)) + marker + b"tR0"  # os.mkdir(marker), result dropped
    folder = write_batches(own_data, fakes)
    plain = (folder / "test_batch").read_bytes()
    at = 2 if place == "before" else plain.index(b"U\x09filenames")
    hostile = plain[:at] + run + plain[at:]
    (folder / "test_batch").write_bytes(hostile)
    assert cifar10.image_set("test").checksum == cifar10.SHA256["test"]
    assert not (tmp_path / "marker").exists()
    pickle.loads(hostile, encoding="latin1")
    assert (tmp_path / "marker").exists(), "what unpickling does, so that the test can fail"


# what is wrong with it


def test_a_missing_set_is_said_with_the_command_that_gets_it(own_data):
    with one_line(FileNotFoundError, own_data / "cifar10", own_data / "cifar-10-batches-py", "make data SETS=cifar10"):
        cifar10.image_set("test")


@pytest.mark.parametrize(("split", "name"), [("train", "data_batch_5"), ("test", "test_batch")])
def test_a_missing_batch_is_named(own_data, fakes, split, name):
    folder = write_batches(own_data, fakes)
    (folder / name).unlink()
    with one_line(FileNotFoundError, folder / name, "make data SETS=cifar10"):
        cifar10.image_set(split)
    other = "test" if split == "train" else "train"
    assert cifar10.image_set(other).checksum == cifar10.SHA256[other], "the other split does not need it"


@pytest.mark.parametrize("end", [0, 1, 30, 2000, -20000, -1])
def test_a_truncated_batch_is_named(own_data, fakes, end):
    file = write_batches(own_data, fakes) / "test_batch"
    file.write_bytes(file.read_bytes()[:end])
    with one_line(ValueError, file, "cannot be read"):
        cifar10.image_set("test")


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (pickle.dumps({}), "0 labels, 0 bytes"),
        (python2([1, 2, 3], np.zeros((2, 3, 32, 32), np.uint8)), "3 labels, 6144 bytes"),
        (python2([1, 2], np.zeros((2, 3, 32, 32), np.uint8), KEYS[:2]), "2 labels, 0 bytes"),
        (python2([1, 2], np.zeros((2, 3, 32, 32), np.uint8), KEYS[2:]), "0 labels, 6144 bytes"),
        (pickle.dumps({"labels": [1], "data": "\u2192" * 3072}), "cannot be read"),
        (b"<html>not found</html>", "cannot be read"),
    ],
    ids=["empty", "more labels", "no pixels", "no labels", "text", "page"],
)
def test_a_pickle_that_is_no_batch_is_named(own_data, fakes, raw, found):
    file = write_batches(own_data, fakes) / "test_batch"
    file.write_bytes(raw)
    with one_line(ValueError, file, found):
        cifar10.image_set("test")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("change", ["pixel", "label", "fewer"])
def test_an_altered_set_is_an_error(own_data, fakes, layout, change):
    """A pixel by one, two labels exchanged, or one image that lacks."""
    labels, images = fakes["test"]
    if change == "pixel":
        images[3, 1, 5, 7] ^= 1
    elif change == "label":
        labels[0], labels[1] = labels[1], labels[0]
    if change == "fewer":
        labels, images = fakes["train"][0][:-1], fakes["train"][1][:-1]
    fakes["test"] = labels, images
    where = LAYOUTS[layout](own_data, fakes)
    with one_line(ValueError, where, "incomplete or altered", f"{len(labels)} test images", cifar10.SHA256["test"]):
        cifar10.image_set("test", limit=1)
    cifar10.image_set("train")


def test_a_wrong_class_folder_is_named(own_data, fakes):
    folder = write_pictures(own_data, fakes)
    for split in data.SPLITS:
        (folder / split / "airplane").rename(folder / split / "plane")
    with one_line(ValueError, folder, "must hold the classes airplane, automobile", "plane"):
        cifar10.image_set("test")


def test_a_class_folder_in_one_split_only_is_named(own_data, fakes):
    folder = write_pictures(own_data, fakes)
    (folder / "train" / "zebra").mkdir()
    with one_line(ValueError, folder / "train", folder / "test", "zebra"):
        cifar10.image_set("test")


# the real set


def test_the_real_test_split():
    """1,000 of each class, and the mean of each channel that is published for this split."""
    if not any((data.root() / one).is_dir() for one in ("cifar10", "cifar-10-batches-py")):
        pytest.skip(f"no CIFAR-10 under {data.root()} (make data SETS=cifar10, or set XAI_DATA)")
    found = data.load("cifar10", "test")
    assert found.images.shape == (10000, 3, 32, 32)
    assert found.labels.bincount().tolist() == [1000] * 10
    mean = found.images.transpose(0, 1).flatten(1).sum(1).double() / (10000 * 1024 * 255)
    assert mean.tolist() == pytest.approx([0.4942, 0.4851, 0.4504], abs=5e-5)
