"""Tiny ImageNet (Le, Yang 2015): photographs of 64 x 64 pixels with one box each, in 200 classes or fewer.

A class has 500 images for training and 50 for validation, read in the official layout from ``tiny-imagenet-200`` under
``$XAI_DATA``. Split ``test`` is the official validation set, since the labels of its test set were never published.
Grey photographs become RGB. Boxes come as pixels, both ends included; here the right and lower ends are exclusive, as
everywhere in the book.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from xai_lib import data

SIZE, PER_CLASS = 64, {"train": 500, "test": 50}
FOLDER = "tiny-imagenet-200"


def image_set(
    split: str, size: int = SIZE, limit: int | None = None, classes: Sequence[str] | None = None
) -> data.ImageSet:
    """Return a split of Tiny ImageNet with boxes; see `data.load`.

    Parameters
    ----------
    split : str
        ``train`` or ``test``, the official validation set.
    size : int
        Not used: the images have 64 pixels.
    limit : int, optional
        Keep so many images, the same ones each time.
    classes : sequence of str, optional
        WordNet identifiers such as ``n01443537``, in any order; default: all in ``wnids.txt`` that are there.

    Returns
    -------
    ImageSet
        Classes in the order of ``wnids.txt``, by the first of their names in ``words.txt``; the identifier is added
        where two have one name.

    Raises
    ------
    FileNotFoundError
        The set is not there; the message holds the command that gets it.
    ValueError
        An unknown class, a class that is incomplete, an image without a box, an unreadable image.
    """
    if split not in data.SPLITS:
        raise ValueError(f"split must be one of {', '.join(data.SPLITS)}; got {split!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1; got {limit}")
    top = data.root() / FOLDER
    listed = _lines(top / "wnids.txt")
    there = [one for one in listed if (top / "train" / one).is_dir()]
    wanted = there if classes is None else [one for one in listed if one in set(classes)]
    unknown = sorted(set(classes or ()) - set(there))
    if unknown or len(wanted) < 2:
        raise ValueError(f"classes must be two or more of the {len(there)} in {top}; got {unknown or wanted}")
    found = _training(top, wanted) if split == "train" else _validation(top, wanted)
    labels = torch.tensor([wanted.index(one) for one, _, _ in found], dtype=torch.int64)
    counts = torch.bincount(labels, minlength=len(wanted)).tolist()
    short = [f"{one} ({count})" for one, count in zip(wanted, counts, strict=True) if count != PER_CLASS[split]]
    if short:
        raise ValueError(f"tinyimagenet: {top} needs {PER_CLASS[split]} {split} images of each class; got {short[0]}")
    boxes = torch.tensor([box for _, _, box in found], dtype=torch.float32)
    boxes = torch.cat([boxes[:, :2].minimum(boxes[:, 2:]), boxes[:, :2].maximum(boxes[:, 2:]) + 1], 1)
    order = torch.arange(len(labels))
    if limit is not None and limit < len(labels):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:limit].sort().values
    images = data._decoded([found[k][1] for k in order.tolist()], SIZE, 3)
    name = f"tinyimagenet/{split}" + (f"[{len(wanted)} classes]" if len(wanted) < 200 else "")
    name += f"[{limit}]" if len(order) < len(labels) else ""
    return data.ImageSet(images, labels[order], _names(top, wanted), name, boxes=boxes[order].clamp(0, SIZE))


def _lines(file: Path) -> list[str]:
    """Return the lines of a text file of the set."""
    if not file.exists():
        raise FileNotFoundError(
            f"tinyimagenet: {file} is missing; `make data SETS=tinyimagenet` gets it, or set XAI_DATA"
        )
    return file.read_text(encoding="utf-8").splitlines()


def _training(top: Path, wanted: Sequence[str]) -> list[tuple[str, Path, list[int]]]:
    """Return (class, file, box) of each training image."""
    found = []
    for one in wanted:
        folder = top / "train" / one
        found += [(one, folder / "images" / name, box) for name, box in _rows(folder / f"{one}_boxes.txt", 1)]
    return found


def _validation(top: Path, wanted: Sequence[str]) -> list[tuple[str, Path, list[int]]]:
    """Return (class, file, box) of each validation image, class by class."""
    place = {one: k for k, one in enumerate(wanted)}
    rows = _rows(top / "val" / "val_annotations.txt", 2)
    kept = [(one, top / "val" / "images" / name, box) for name, one, box in rows if one in place]
    return sorted(kept, key=lambda row: place[row[0]])


def _rows(file: Path, texts: int) -> list[tuple]:
    """Return the lines of an annotation file: so many texts, and a box of four whole numbers."""
    rows = []
    for number, line in enumerate(_lines(file), 1):
        fields = line.split("\t")
        try:
            x0, y0, x1, y1 = map(int, fields[texts:])
        except ValueError:
            raise ValueError(f"tinyimagenet: line {number} of {file} is no image with a box; got {line!r}") from None
        rows.append((*fields[:texts], [x0, y0, x1, y1]))
    return rows


def _names(top: Path, wanted: Sequence[str]) -> tuple[str, ...]:
    """Return a readable name for each class."""
    words = dict(line.split("\t", 1) for line in _lines(top / "words.txt"))
    first = [words.get(one, one).split(",")[0] for one in wanted]
    return tuple(f"{name} ({one})" if first.count(name) > 1 else name for name, one in zip(first, wanted, strict=True))
