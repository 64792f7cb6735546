"""CUB-200-2011 (Wah et al. 2011): photographs of birds with a box and 15 parts each, in 200 species or fewer.

Read in the official layout from ``CUB_200_2011`` under ``$XAI_DATA``, with the official split. A window of
each photograph is scaled to the wanted size, and boxes and parts move with it. There are two kinds of window:

- ``centre``: the largest square about the centre, as in folders of images (`data.load`). What sticks out of it is cut
  off, at worst the whole bird: the image is kept, so that the split stays the official one, its box has no area (x0 =
  x1 or y0 = y1, at the image's edge) and its parts are hidden.
- ``box``: a square about the middle of the box, `MARGIN` of the box's longer side wider on each side. It is moved into
  the photograph as far as that goes; where it is larger than the photograph, the pixels at the edge are repeated. The
  whole bird is always in it. It takes the true box, which a network in use would not have: say so beside a result.

Where an image has no such part, or the window cuts it off, x, y and visibility are 0, as CUB itself has it.
"""

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from PIL import Image
from torch import Tensor

from xai_lib import data

FOLDER, SPECIES = "CUB_200_2011", 200
PARTS = (  # in CUB's order, 1 to 15
    *("back", "beak", "belly", "breast", "crown", "forehead", "left eye", "left leg", "left wing", "nape"),
    *("right eye", "right leg", "right wing", "tail", "throat"),
)
CROPS = ("centre", "box")
MARGIN = 0.1  # of the longer side of the box, on each side of it


def image_set(
    split: str,
    size: int = 64,
    limit: int | None = None,
    species: Sequence[str | int] | None = None,
    crop: str = "centre",
) -> data.ImageSet:
    """Return a split of CUB with boxes and parts; see `data.load`.

    Parameters
    ----------
    split : str
        ``train`` or ``test``, the official ones.
    size : int
        Side of the square images in pixels.
    limit : int, optional
        Keep so many images, the same ones each time.
    species : sequence of str or int, optional
        Names such as ``001.Black_footed_Albatross`` or numbers of ``classes.txt``, in any order; default: all of which
        there are images.
    crop : str
        ``centre`` or ``box``, see above.

    Returns
    -------
    ImageSet
        Images (N, 3, size, size) in the order of ``images.txt``. Classes in the order of ``classes.txt``, such as
        ``Black footed Albatross``. Boxes (N, 4) clipped to the image, right and lower ends exclusive: the pixel at x 3,
        y 5 is (3, 5, 4, 6). Parts (N, 15, 3) in the order of `PARTS`.

    Raises
    ------
    FileNotFoundError
        The set or a file of it is not there; the message holds the command that gets it.
    ValueError
        An argument is out of its range, a species is unknown or without images, the files contradict each other or
        hold a malformed line, an image is unreadable.
    """
    _check(split, size, limit, crop)
    top = data.root() / FOLDER
    classes, files = _named(top / "classes.txt"), _named(top / "images.txt")
    labels = _labels(top, classes, files)
    wanted = _wanted(top, classes, labels, species)
    of_split = _of_split(top, list(files), split)
    kept = [k for k, label in enumerate(labels) if of_split[k] and label in wanted]
    if lacking := set(wanted) - {labels[k] for k in kept}:
        raise ValueError(f"species: {top} has no {split} images of {classes[min(lacking)]}")
    whole = len(kept)
    if limit is not None and limit < whole:
        order = torch.randperm(whole, generator=torch.Generator().manual_seed(0))[:limit].sort().values
        kept = [kept[k] for k in order.tolist()]
    boxes, parts = _annotations(top, list(files))
    names = list(files.values())
    images, boxes, parts = _pictures([top / "images" / names[k] for k in kept], boxes[kept], parts[kept], size, crop)
    name = f"cub/{split}" + f"@{size}" * (size != 64) + ",box" * (crop == "box")
    name += f"[{len(wanted)} species]" * (len(wanted) < SPECIES) + f"[{limit}]" * (len(kept) < whole)
    numbers = torch.tensor([wanted.index(labels[k]) for k in kept], dtype=torch.int64)
    readable = tuple(classes[one].split(".", 1)[-1].replace("_", " ") for one in wanted)
    return data.ImageSet(images, numbers, readable, name, boxes=boxes, parts=parts)


def _check(split: str, size: int, limit: int | None, crop: str) -> None:
    if split not in data.SPLITS:
        raise ValueError(f"split must be one of {', '.join(data.SPLITS)}; got {split!r}")
    if crop not in CROPS:
        raise ValueError(f"crop must be one of {', '.join(CROPS)}; got {crop!r}")
    for name, value in (("size", size), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")


# The text files


def _missing(file: Path) -> FileNotFoundError:
    return FileNotFoundError(f"cub: {file} is missing; `make data SETS=cub` gets it, or set XAI_DATA")


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError
    return value


def _length(text: str) -> float:
    if (value := _number(text)) <= 0:
        raise ValueError
    return value


def _flag(text: str) -> bool:
    return bool(("0", "1").index(text))


def _rows(file: Path, *kinds: Callable[[str], object]) -> list[tuple]:
    """Return the fields of each line of a file; `kinds` read them, with ValueError where they cannot."""
    if not file.exists():
        raise _missing(file)
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split(maxsplit=len(kinds) - 1)
        try:
            rows.append(tuple(kind(field) for kind, field in zip(kinds, fields, strict=True)))
        except ValueError:
            raise ValueError(f"cub: line {number} of {file} is malformed; got {line!r}") from None
    return rows


def _named(file: Path) -> dict[int, str]:
    """Return what a file names, by number."""
    rows = _rows(file, int, str)
    found = dict(rows)
    if not found:
        raise ValueError(f"cub: {file} is empty")
    if len(found) < len(rows):
        numbers = [number for number, _ in rows]
        twice = next(number for number in numbers if numbers.count(number) > 1)
        raise ValueError(f"cub: {file} has number {twice} twice")
    return found


def _rows_of(file: Path, keys: Sequence[int | tuple[int, int]], *kinds: Callable[[str], object]) -> list[tuple]:
    """Return the fields of the lines that begin with `keys`, in their order; the file has one line for each of them."""
    count = 2 if isinstance(keys[0], tuple) else 1
    rows = _rows(file, *[int] * count, *kinds)
    if len(rows) != len(keys):
        raise ValueError(f"cub: {file} must have {len(keys)} lines to match images.txt; got {len(rows)}")
    found = {row[:count] if count > 1 else row[0]: row[count:] for row in rows}
    if odd := set(keys) - set(found):
        raise ValueError(f"cub: {file} lacks a line for {min(odd)}, which follows from images.txt")
    return [found[key] for key in keys]


def _of_split(top: Path, ids: Sequence[int], split: str) -> list[bool]:
    rows = _rows_of(top / "train_test_split.txt", ids, _flag)
    return [is_training == (split == "train") for (is_training,) in rows]


def _annotations(top: Path, ids: Sequence[int]) -> tuple[Float64[np.ndarray, "n 4"], Float64[np.ndarray, "n 15 3"]]:
    """Return the boxes x0, y0, x1, y1 and the parts of all images, in the pixels of the files."""
    if (named := tuple(_named(top / "parts" / "parts.txt").items())) != tuple(enumerate(PARTS, 1)):
        raise ValueError(f"cub: {top / 'parts' / 'parts.txt'} must name parts 1 to 15: {', '.join(PARTS)}; got {named}")
    boxes = np.array(_rows_of(top / "bounding_boxes.txt", ids, _number, _number, _length, _length))
    keys = [(one, part) for one in ids for part in range(1, 16)]
    parts = np.array(_rows_of(top / "parts" / "part_locs.txt", keys, _number, _number, _flag))
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1), parts.reshape(-1, 15, 3)


def _labels(top: Path, classes: dict[int, str], files: dict[int, str]) -> list[int]:
    """Return the number of the species of each image, which names the image's folder too."""
    labels = [label for (label,) in _rows_of(top / "image_class_labels.txt", list(files), int)]
    for (one, name), label in zip(files.items(), labels, strict=True):
        if Path(name).parent.name != classes.get(label):
            known = classes.get(label, "not in classes.txt")
            raise ValueError(f"cub: {top} has image {one} as {name}, but its class as {label} ({known})")
    return labels


def _wanted(
    top: Path, classes: dict[int, str], labels: Sequence[int], species: Sequence[str | int] | None
) -> list[int]:
    """Return the numbers of the wanted species in the order of classes.txt."""
    there = set(labels)
    known = [one for one in classes if one in there]
    if species is None:
        return known
    unknown = [one for one in species if one not in known and one not in [classes[k] for k in known]]
    if unknown or not species:
        raise ValueError(
            f"species must be names or numbers of the {len(known)} in {top / 'classes.txt'} with images; got {unknown}"
        )
    return [one for one in known if one in species or classes[one] in species]


# The images


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """Open an image file, with a clear line where it is not there or damaged."""
    try:
        with Image.open(file) as image:
            yield image
    except FileNotFoundError:
        raise _missing(file) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cub: {file} cannot be read as an image: {error}") from None


def _pictures(
    files: list[Path], boxes: Float64[np.ndarray, "n 4"], parts: Float64[np.ndarray, "n 15 3"], size: int, crop: str
) -> tuple[UInt8[Tensor, "n 3 s s"], Tensor, Tensor]:
    """Return images, and boxes and parts in their pixels."""
    sides = np.empty((len(files), 2))
    for k, file in enumerate(files):
        with _opened(file) as image:
            sides[k] = image.size
    boxes = boxes.clip(0, np.tile(sides, 2))
    if empty := [file for file, box in zip(files, boxes, strict=True) if (box[:2] >= box[2:]).any()]:
        raise ValueError(f"cub: the box of {empty[0]} in bounding_boxes.txt lies outside the image")
    if crop == "centre":
        windows, images = _centres(sides, size), data._decoded(files, size, 3)
    else:
        windows = _squares(sides, boxes)
        images = _cut(files, windows, size)
    start, scale = windows[:, None, :2], size / (windows[:, 2:] - windows[:, :2])[:, None]
    boxes = ((boxes.reshape(-1, 2, 2) - start) * scale).clip(0, size).reshape(-1, 4)
    places = ((parts[..., :2] - start) * scale).astype(np.float32)
    visible = (parts[..., 2:] > 0) & ((places >= 0) & (places < size)).all(-1, keepdims=True)
    parts = np.where(visible, np.concatenate([places, visible], -1), 0).astype(np.float32)
    return images, torch.from_numpy(boxes.astype(np.float32)), torch.from_numpy(parts)


def _centres(sides: Float64[np.ndarray, "n 2"], size: int) -> Float64[np.ndarray, "n 4"]:
    """Return the part x0, y0, x1, y1 of images (width, height) that `data._decode` scales to `size`."""
    scaled = (sides * (size / sides.min(1, keepdims=True))).round().clip(size)
    start = (scaled - size) // 2
    return np.concatenate([start, start + size], 1) * np.tile(sides / scaled, 2)


def _squares(sides: Float64[np.ndarray, "n 2"], boxes: Float64[np.ndarray, "n 4"]) -> Float64[np.ndarray, "n 4"]:
    """Return the squares x0, y0, x1, y1 about boxes, inside the images (width, height) as far as they fit."""
    longer = (boxes[:, 2:] - boxes[:, :2]).max(1, keepdims=True)
    side = (1 + 2 * MARGIN) * longer
    room = sides - side  # below 0 where the square is larger: then it holds the image's whole width or height
    start = ((boxes[:, :2] + boxes[:, 2:] - side) / 2).clip(np.minimum(room, 0), np.maximum(room, 0))
    return np.concatenate([start, start + side], 1)


def _cut(files: list[Path], windows: Float64[np.ndarray, "n 4"], size: int) -> UInt8[Tensor, "n 3 s s"]:
    """Scale windows of image files to (N, 3, size, size), kept as `data.load` keeps folders: decoded once."""
    total = hashlib.sha256(f"cub box {size}".encode() + windows.tobytes())
    for file in files:
        total.update(file.read_bytes())
    kept = data.root() / "decoded" / f"{total.hexdigest()[:16]}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # not there, or damaged
        return torch.from_numpy(np.load(kept, allow_pickle=False))
    array = np.stack([_cut_one(file, window, size) for file, window in zip(files, windows, strict=True)])
    part = kept.with_suffix(f".{os.getpid()}.part.npy")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(part, array, allow_pickle=False)
        part.replace(kept)
    except OSError:  # a read-only or full disk costs time, not the result
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return torch.from_numpy(array)


def _cut_one(file: Path, window: Float64[np.ndarray, " 4"], size: int) -> UInt8[np.ndarray, "3 s s"]:
    with _opened(file) as image:
        pixels = np.asarray(image.convert("RGB"))
    x0, y0, x1, y1 = window
    height, width, _ = pixels.shape
    left, above, right, below = (math.ceil(max(0, one)) for one in (-x0, -y0, x1 - width, y1 - height))
    image = Image.fromarray(np.pad(pixels, ((above, below), (left, right), (0, 0)), mode="edge"))
    part = (x0 + left, y0 + above, x1 + left, y1 + above)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=part)).transpose(2, 0, 1)
