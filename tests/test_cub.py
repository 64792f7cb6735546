import contextlib
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from xai_lib import birds, cub, data

# In the order of classes.txt, which is that of neither the numbers nor the names.
CLASSES = {9: "009.Sea_Gull", 2: "002.Red_tailed_Wren", 4: "004.Owl"}


class Picture(NamedTuple):
    """One photograph; `parts` gives places by name, the others are hidden."""

    number: int
    species: int
    is_training: int
    sides: tuple[int, int] = (32, 16)
    box: tuple[float, ...] = (10, 4, 12, 6)
    parts: dict = {}
    grey: bool = False

    @property
    def name(self):
        return f"{CLASSES[self.species]}/bird_{self.number}.jpg"

    @property
    def colour(self):
        return 19 * self.number, 250 - 13 * self.number, 90


PICTURES = (
    Picture(5, 4, 1),
    Picture(3, 9, 1, (16, 24)),
    Picture(8, 2, 0, (16, 16)),
    Picture(1, 9, 0, (40, 20)),
    Picture(6, 2, 1, (30, 20), parts={"tail": (12.5, 8)}),
    Picture(7, 4, 0, (18, 18)),
    Picture(12, 9, 1, (24, 24)),
    Picture(2, 4, 1, (22, 30)),
)
OF = {"train": [5, 3, 6, 12, 2], "test": [8, 1, 7]}
LABELS = {"train": [2, 0, 1, 0, 2], "test": [1, 0, 2]}
PER_IMAGE = ("image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt", "parts/part_locs.txt")


def save(file, image):
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, quality=100, subsampling=0)


def write(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(" ".join(map(str, row)) + "\n" for row in rows))


def lay_out(folder, pictures):
    """Write the official layout; only images.txt says in which order the images come."""
    top = folder / "CUB_200_2011"
    write(top / "classes.txt", CLASSES.items())
    write(top / "images.txt", [(one.number, one.name) for one in pictures])
    write(top / "image_class_labels.txt", sorted((one.number, one.species) for one in pictures))
    write(top / "train_test_split.txt", [(one.number, one.is_training) for one in pictures])
    write(top / "bounding_boxes.txt", [(one.number, *one.box) for one in reversed(pictures)])
    write(top / "parts" / "parts.txt", enumerate(cub.PARTS, 1))
    rows = []
    for one in pictures:
        places = [(*one.parts[part], 1) if part in one.parts else ("0.0", "0.0", 0) for part in cub.PARTS]
        rows += [(one.number, k, *place) for k, place in enumerate(places, 1)]
        shade = one.colour[0] if one.grey else one.colour
        save(top / "images" / one.name, Image.new("L" if one.grey else "RGB", one.sides, shade))
    write(top / "parts" / "part_locs.txt", rows[::-1])
    return top


@pytest.fixture
def top(own_data):
    return lay_out(own_data, PICTURES)


def change(file, number, line):
    """Put `line` in the place of a line of a file, or leave it out."""
    lines = file.read_text().splitlines()
    lines[number - 1 : number] = [] if line is None else [line]
    file.write_text("".join(one + "\n" for one in lines))


@contextlib.contextmanager
def one_line(kind, *parts):
    """Expect an error whose message is one line that holds `parts`."""
    with pytest.raises(kind) as error:
        yield
    assert "\n" not in str(error.value)
    assert [part for part in map(str, parts) if part not in str(error.value)] == [], str(error.value)


# what is read


@pytest.mark.parametrize("crop", cub.CROPS)
@pytest.mark.parametrize("split", data.SPLITS)
def test_images_and_labels_belong_together_in_the_order_of_images_txt(top, split, crop):
    found = cub.image_set(split, size=8, crop=crop)
    assert found.images.shape == (len(OF[split]), 3, 8, 8)
    assert found.labels.tolist() == LABELS[split]
    assert found.classes == ("Sea Gull", "Red tailed Wren", "Owl")
    pictures = {one.number: one for one in PICTURES}
    for image, number in zip(found.images.int(), OF[split], strict=True):
        assert (image - torch.tensor(pictures[number].colour).view(3, 1, 1)).abs().max() <= 3, number
    assert found.masks is None


def test_parts_are_in_the_order_of_the_drawn_birds():
    assert cub.PARTS == birds.PARTS


def test_parts_and_boxes_are_those_of_their_image(top):
    """20 of 30 pixels at 8 are scaled by 0.4; 2 of 12 columns go on the left."""
    found = cub.image_set("train", size=8)
    assert (found.boxes.dtype, found.parts.dtype) == (torch.float32, torch.float32)
    assert found.boxes.shape == (5, 4)
    assert found.parts.shape == (5, 15, 3)
    torch.testing.assert_close(found.boxes[2], torch.tensor([2, 1.6, 6.8, 4]))
    torch.testing.assert_close(found.parts[2, cub.PARTS.index("tail")], torch.tensor([3, 3.2, 1]))
    found.parts[2, cub.PARTS.index("tail")] = 0
    assert (found.parts == 0).all(), "all that is hidden is 0"


def test_grey_photographs_become_rgb(own_data):
    lay_out(own_data, [Picture(1, 9, 1), Picture(7, 9, 1, grey=True)])
    for crop in cub.CROPS:
        found = cub.image_set("train", size=8, crop=crop).images.int()
        assert found.shape == (2, 3, 8, 8)
        assert (found[1] - 19 * 7).abs().max() <= 2


# where things are: centre


@pytest.mark.parametrize(
    ("sides", "box", "expected"),
    [
        ((32, 16), (10, 4, 12, 6), (1, 2, 7, 5)),  # half the size, 4 columns off
        ((16, 24), (2, 6, 10, 12), (1, 1, 6, 7)),  # half the size, 2 rows off
        ((16, 16), (2, 4, 10, 6), (1, 2, 6, 5)),
        ((31, 17), (15.5, 8.5, 6.2, 4.25), (4.5, 4, 7.5, 6)),  # 15 of 31 columns, 3 of 7 off on the left
        ((4, 6), (1, 2, 2, 1), (2, 2, 6, 4)),  # twice the size
        ((32, 16), (0, 0, 32, 16), (0, 0, 8, 8)),  # clipped to the crop
        ((16, 16), (-3, 4, 100, 2), (0, 2, 8, 3)),  # and to the photograph
        ((32, 16), (0, 2, 6, 4), (0, 1, 0, 3)),  # outside the crop, on the left
        ((16, 24), (2, 21, 4, 2), (1, 8, 3, 8)),  # and below
    ],
)
def test_boxes_move_with_the_centre(own_data, sides, box, expected):
    lay_out(own_data, [Picture(1, 9, 1, sides, box)])
    found = cub.image_set("train", size=8)
    torch.testing.assert_close(found.boxes, torch.tensor([expected]).float())


@pytest.mark.parametrize(
    ("sides", "place", "expected"),
    [
        ((32, 16), (10, 5), (1, 2.5, 1)),
        ((16, 24), (10, 5), (5, 0.5, 1)),
        ((31, 17), (15.5, 8.5), (4.5, 4, 1)),
        ((32, 16), (8, 0), (0, 0, 1)),  # on the left and the upper edge: the first pixel
        ((32, 16), (23.5, 15.5), (7.75, 7.75, 1)),
        ((32, 16), (24, 5), (0, 0, 0)),  # on the right edge: a pixel too far
        ((32, 16), (7.5, 5), (0, 0, 0)),
        ((16, 24), (5, 3.5), (0, 0, 0)),
        ((16, 24), (5, 20), (0, 0, 0)),
        ((16, 16), (-1, 5), (0, 0, 0)),  # visible, by the file, outside the photograph
    ],
)
def test_parts_move_with_the_centre_and_hide_outside_it(own_data, sides, place, expected):
    lay_out(own_data, [Picture(1, 9, 1, sides, (0, 0, *sides), {"nape": place})])
    found = cub.image_set("train", size=8).parts[0]
    assert found[9].tolist() == pytest.approx(expected, abs=1e-5)
    assert (found[[k for k in range(15) if k != 9]] == 0).all()


# where things are: box


@pytest.mark.parametrize(
    ("sides", "box", "size", "expected"),
    [
        ((40, 20), (20, 5, 10, 6), 24, (2, 6, 22, 18)),  # 12 pixels from (19, 2), twice the size
        ((20, 40), (5, 20, 6, 10), 24, (6, 2, 18, 22)),
        ((40, 20), (0, 0, 10, 10), 24, (0, 0, 20, 20)),  # moved into the photograph
        ((40, 20), (30, 10, 10, 10), 24, (4, 4, 24, 24)),
        ((40, 20), (25, 5, 60, 6), 18, (3, 5, 18, 11)),  # cut to 15 x 6: 18 pixels from (23.5 -> 22, -1 -> 0)
        ((40, 20), (0, 5, 40, 10), 24, (2, 9.5, 22, 14.5)),  # 48 pixels from (-4, -14)
        ((40, 20), (0, 0, 30, 8), 18, (0, 7, 15, 11)),  # 36 pixels from (-3 -> 0, -14)
        ((40, 20), (10, 18, 30, 2), 18, (3, 9, 18, 10)),  # 36 pixels from (7 -> 4, 1 -> 0)
    ],
)
def test_boxes_in_squares_about_them(own_data, sides, box, size, expected):
    x, y, width, height = box
    corners = {"back": (x, y), "beak": (min(x + width, sides[0]) - 1, y + height - 1)}
    lay_out(own_data, [Picture(1, 9, 1, sides, box, corners)])
    found = cub.image_set("train", size=size, crop="box")
    torch.testing.assert_close(found.boxes, torch.tensor([expected]).float())
    scale = (expected[2] - expected[0]) / (min(x + width, sides[0]) - x)
    assert found.parts[0, 0].tolist() == pytest.approx([*expected[:2], 1], abs=1e-5)
    assert found.parts[0, 1].tolist() == pytest.approx([expected[2] - scale, expected[3] - scale, 1], abs=1e-5)


def test_a_square_larger_than_the_photograph_repeats_its_edge(own_data):
    """40 x 20 pixels, four stripes across; the square is 48 wide."""
    top = lay_out(own_data, [Picture(1, 9, 1, (40, 20), (0, 5, 40, 10))])
    stripes = np.array([200, 40, 120, 250], np.uint8).repeat(10)[None].repeat(20, 0)
    save(top / "images" / Picture(1, 9, 1).name, Image.fromarray(stripes))
    found = cub.image_set("train", size=48, crop="box").images[0].int()
    expected = torch.from_numpy(np.pad(stripes, ((14, 14), (4, 4)), mode="edge")).int()
    assert (found - expected).abs().max() <= 4, "as JPEG has it"


# where things are: looked for in the picture


def dotted(sides, places, side):
    """Draw a red, a green and a blue square of `side` pixels about places."""
    pixels = np.zeros((sides[1], sides[0], 3), np.uint8)
    for channel, (x, y) in enumerate(places):
        pixels[y - side // 2 : y + side // 2, x - side // 2 : x + side // 2, channel] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("crop", cub.CROPS)
@pytest.mark.parametrize(
    ("sides", "box", "places", "side"),
    [
        ((301, 170), (80, 30, 130, 110), [(90, 40), (190, 120), (120, 100)], 12),
        ((170, 301), (30, 80, 110, 130), [(40, 90), (120, 190), (100, 120)], 12),
        ((301, 170), (3, 50, 296, 70), [(90, 65), (220, 100), (150, 80)], 14),  # wider than the photograph is high
        ((233, 233), (0, 0, 100, 90), [(20, 20), (80, 70), (50, 30)], 10),
        ((40, 51), (8, 12, 26, 28), [(14, 18), (28, 32), (18, 30)], 6),
    ],
    ids=["landscape", "portrait", "wide", "corner", "small"],
)
def test_a_dot_at_a_part_is_found_where_the_part_is(own_data, crop, sides, box, places, side):
    named = dict(zip(("crown", "left wing", "throat"), places, strict=True))
    picture = Picture(1, 9, 1, sides, box, named)
    save(lay_out(own_data, [picture]) / "images" / picture.name, dotted(sides, places, side))
    found = cub.image_set("train", size=64, crop=crop)
    for image, part in zip(found.images[0].double(), named, strict=True):
        weight = image.where(image > 20, 0)
        middle = torch.arange(64).double() + 0.5
        x, y = ((weight.sum(axis) @ middle / weight.sum()).item() for axis in (0, 1))
        assert found.parts[0, cub.PARTS.index(part)].tolist() == pytest.approx([x, y, 1], abs=0.15)


# species


@pytest.mark.parametrize("wanted", [("002.Red_tailed_Wren", "009.Sea_Gull"), [2, 9], (9, "002.Red_tailed_Wren", 2)])
def test_some_species_by_name_or_number_in_any_order(top, wanted):
    whole, found = cub.image_set("train", size=8), cub.image_set("train", size=8, species=wanted)
    kept = whole.labels != 2
    assert found.classes == ("Sea Gull", "Red tailed Wren"), "in the order of classes.txt"
    assert found.labels.tolist() == [0, 1, 0]
    for key in ("images", "boxes", "parts"):
        assert torch.equal(getattr(found, key), getattr(whole, key)[kept]), key
    assert found.name == "cub/train@8[2 species]"


def test_labels_are_renumbered(top):
    found = cub.image_set("train", size=8, species=[4])
    assert (found.classes, found.labels.tolist()) == (("Owl",), [0, 0])


@pytest.mark.parametrize(
    ("wanted", "named"),
    [((9, 3), "[3]"), (("009.Sea_Gull", "Owl", "010.Auk"), "['Owl', '010.Auk']"), ((), "[]")],
    ids=["number", "name", "none"],
)
def test_species_are_checked(top, wanted, named):
    with one_line(ValueError, f"the 3 in {top / 'classes.txt'} with images; got {named}"):
        cub.image_set("train", species=wanted)


def test_a_species_without_any_image_is_no_class(top):
    """As where a part of the set comes with the list of all 200."""
    with (top / "classes.txt").open("a") as file:
        file.write("200 200.Common_Yellowthroat\n")
    assert cub.image_set("train", size=8).classes == ("Sea Gull", "Red tailed Wren", "Owl")
    with one_line(ValueError, "species must be names or numbers of the 3", "[200]"):
        cub.image_set("train", species=[9, 200])


def test_a_species_without_images_of_the_split_is_named(top):
    """The last one: no count of labels would see it."""
    change(top / "train_test_split.txt", 6, "7 1")
    with one_line(ValueError, f"species: {top} has no test images of 004.Owl"):
        cub.image_set("test")
    assert cub.image_set("test", size=8, species=[9, 2]).labels.tolist() == [1, 0]


# names, limits, arguments


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({}, "cub/test[3 species]"),
        ({"size": 8}, "cub/test@8[3 species]"),
        ({"crop": "box"}, "cub/test,box[3 species]"),
        ({"size": 8, "crop": "box", "species": (9, 4), "limit": 1}, "cub/test@8,box[2 species][1]"),
        ({"limit": 2}, "cub/test[3 species][2]"),
        ({"limit": 3}, "cub/test[3 species]"),
        ({"limit": 4}, "cub/test[3 species]"),
    ],
)
def test_the_name_says_what_it_is(top, asked, name):
    assert cub.image_set("test", **asked).name == name


def test_all_species_need_no_number_in_the_name(top, monkeypatch):
    monkeypatch.setattr(cub, "SPECIES", 3)
    assert cub.image_set("test").name == "cub/test"
    assert cub.image_set("test", species=[2]).name == "cub/test[1 species]"


def test_data_load_reaches_it(top):
    for asked in ({"size": 8}, {}, {"limit": 2}):
        expected, found = cub.image_set("test", **asked), data.load("cub", "test", **asked)
        assert (found.name, found.checksum, found.classes) == (expected.name, expected.checksum, expected.classes)
        assert torch.equal(found.parts, expected.parts)
    assert found.images.shape == (2, 3, 64, 64)


def test_a_limit_keeps_the_same_images_with_all_that_belongs_to_them(top):
    whole = cub.image_set("train", size=8)
    few = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        few.append(cub.image_set("train", size=8, limit=3))
    assert few[0].checksum == few[1].checksum
    kept = [k for one in few[0].images for k in range(5) if torch.equal(whole.images[k], one)]
    assert len(kept) == 3, "each is one of the set"
    assert kept == sorted(set(kept)), "none twice, in the order of the set"
    assert kept != [0, 1, 2], "not the first ones only"
    for key in ("labels", "boxes", "parts"):
        assert torch.equal(getattr(few[0], key), getattr(whole, key)[kept]), key
    assert few[0].classes == whole.classes


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"split": "val"}, "split must be one of train, test; got 'val'"),
        ({"limit": 0}, "limit must be at least 1; got 0"),
        ({"size": 0}, "size must be at least 1; got 0"),
        ({"crop": "center"}, "crop must be one of centre, box; got 'center'"),
    ],
)
def test_arguments_are_checked_before_anything_is_read(own_data, wrong, text):
    with one_line(ValueError, text):
        cub.image_set(**{"split": "test"} | wrong)


# arrays that are kept


def test_squares_are_decoded_once_for_each_window_and_size(top, monkeypatch):
    real, decoded = cub._cut_one, []
    monkeypatch.setattr(cub, "_cut_one", lambda file, *rest: decoded.append(file) or real(file, *rest))

    def made(**asked):
        decoded.clear()
        return cub.image_set("test", crop="box", **asked).checksum, len(decoded)

    first, count = made(size=8)
    assert count == 3
    assert made(size=8) == (first, 0)
    assert made(size=9)[1] == 3
    for file in (top.parent / "decoded").iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    assert made(size=8) == (first, 3), "a damaged array is made again"
    change(top / "bounding_boxes.txt", 1 + [one.number for one in reversed(PICTURES)].index(8), "8 0 0 9 9")
    assert made(size=8)[1] == 3


def test_a_disk_that_takes_nothing_costs_time_only(top):
    expected = cub.image_set("test", crop="box").checksum
    for file in (top.parent / "decoded").iterdir():
        file.unlink()
    (top.parent / "decoded").rmdir()
    (top.parent / "decoded").write_text("no folder")
    assert cub.image_set("test", crop="box").checksum == expected


# what is wrong with it


def test_a_missing_set_is_said_with_the_command_that_gets_it(own_data):
    with one_line(FileNotFoundError, own_data / "CUB_200_2011", "`make data SETS=cub` gets it, or set XAI_DATA"):
        data.load("cub", "test")


@pytest.mark.parametrize("crop", cub.CROPS)
@pytest.mark.parametrize(
    "name", ["classes.txt", "images.txt", "parts/parts.txt", *PER_IMAGE, f"images/{PICTURES[0].name}"]
)
def test_a_missing_file_is_named(top, name, crop):
    (top / name).unlink()
    with one_line(FileNotFoundError, top / name, "make data SETS=cub"):
        cub.image_set("train", crop=crop)


@pytest.mark.parametrize("crop", cub.CROPS)
@pytest.mark.parametrize("damage", [lambda raw: raw[:-60], lambda raw: b"no image"], ids=["truncated", "other"])
def test_a_damaged_image_is_named(top, crop, damage):
    file = top / "images" / PICTURES[0].name
    file.write_bytes(damage(file.read_bytes()))
    with one_line(ValueError, file, "cannot be read as an image"):
        cub.image_set("train", crop=crop)
    assert len(cub.image_set("test", crop=crop)) == 3, "the other split is whole"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("classes.txt", "002.Red_tailed_Wren"),
        ("classes.txt", "2"),
        ("images.txt", "3.5 a/b.jpg"),
        ("images.txt", ""),
        ("image_class_labels.txt", "2 Owl"),
        ("image_class_labels.txt", "2 4 4"),
        ("train_test_split.txt", "3 2"),
        ("train_test_split.txt", "3"),
        ("bounding_boxes.txt", "12 10 4 12"),
        ("bounding_boxes.txt", "12 10 4 12 6 1"),
        ("bounding_boxes.txt", "12 10 nan 12 6"),
        ("bounding_boxes.txt", "12 10 4 inf 6"),
        ("bounding_boxes.txt", "12 10 4 0 6"),
        ("bounding_boxes.txt", "12 10 4 12 -6"),
        ("parts/parts.txt", "two beak"),
        ("parts/part_locs.txt", "2 14 0.0 0.0"),
        ("parts/part_locs.txt", "2 14 inf 0.0 1"),
        ("parts/part_locs.txt", "2 14 0.0 0.0 0.5"),
    ],
)
def test_a_malformed_line_is_named(top, name, line):
    change(top / name, 2, line)
    with one_line(ValueError, f"cub: line 2 of {top / name} is malformed; got {line!r}"):
        cub.image_set("train")


@pytest.mark.parametrize("name", PER_IMAGE)
def test_a_file_with_too_few_or_too_many_lines_is_named(top, name):
    file = top / name
    lines = file.read_text().splitlines(keepends=True)
    for wrong in (lines[1:], [*lines, lines[0]]):
        file.write_text("".join(wrong))
        with one_line(ValueError, f"{file} must have {len(lines)} lines to match images.txt; got {len(wrong)}"):
            cub.image_set("train")


@pytest.mark.parametrize("name", PER_IMAGE)
def test_a_line_twice_in_the_place_of_another_is_named(top, name):
    file = top / name
    lines = file.read_text().splitlines()
    change(file, 1, lines[1])
    lost = ", ".join(lines[0].split()[: 2 if "part" in name else 1])
    with one_line(ValueError, file, f"lacks a line for {f'({lost})' if ',' in lost else lost}"):
        cub.image_set("train")


@pytest.mark.parametrize(
    ("name", "line", "twice"), [("classes.txt", "9 010.Auk", 9), ("images.txt", "5 009.Sea_Gull/other.jpg", 5)]
)
def test_a_number_that_stands_there_twice_is_named(top, name, line, twice):
    change(top / name, 2, line)
    with one_line(ValueError, f"{top / name} has number {twice} twice"):
        cub.image_set("train")


@pytest.mark.parametrize("name", ["classes.txt", "images.txt", "parts/parts.txt"])
def test_an_empty_file_is_named(top, name):
    (top / name).write_text("")
    with one_line(ValueError, f"{top / name} is empty"):
        cub.image_set("train")


@pytest.mark.parametrize(
    ("label", "known"), [(2, "002.Red_tailed_Wren"), (7, "not in classes.txt")], ids=["another", "unknown"]
)
def test_labels_must_be_those_of_the_folders(top, label, known):
    change(top / "image_class_labels.txt", 1, f"1 {label}")
    with one_line(ValueError, f"{top} has image 1 as 009.Sea_Gull/bird_1.jpg", f"its class as {label} ({known})"):
        cub.image_set("train")


def test_parts_in_another_order_are_said(top):
    change(top / "parts" / "parts.txt", 1, "1 beak")
    with one_line(ValueError, top / "parts" / "parts.txt", "must name parts 1 to 15: back, beak", "got ((1, 'beak')"):
        cub.image_set("train")


@pytest.mark.parametrize("crop", cub.CROPS)
def test_a_box_outside_the_photograph_is_named(own_data, crop):
    picture = Picture(1, 9, 1, (16, 16), (16, 3, 5, 5))
    top = lay_out(own_data, [picture])
    with one_line(ValueError, f"the box of {top / 'images' / picture.name} in bounding_boxes.txt lies outside"):
        cub.image_set("train", crop=crop)


# the real set


@pytest.mark.parametrize(("crop", "beak"), [("centre", (43.9, 34.8, 1)), ("box", (46.7, 32.5, 1))])
def test_a_real_species(crop, beak):
    """The beak of 1, Black_Footed_Albatross_0046_18.jpg: at 312, 182 of 500 x 335 pixels, its box 60 27 325 304."""
    if not (data.root() / "CUB_200_2011").is_dir():
        pytest.skip(f"no CUB-200-2011 under {data.root()} (make data SETS=cub, or set XAI_DATA)")
    found = cub.image_set("test", species=[1], crop=crop)
    assert found.images.shape == (30, 3, 64, 64)
    assert found.classes == ("Black footed Albatross",)
    assert found.parts[0, 1].tolist() == pytest.approx(beak, abs=0.2)
    seen = found.parts[..., 2] == 1
    assert seen.sum(1).min() > 0
    low, high = found.boxes[:, None, :2], found.boxes[:, None, 2:]
    assert ((found.parts[..., :2] >= low - 0.5) & (found.parts[..., :2] <= high + 0.5)).all(-1)[seen].all()
