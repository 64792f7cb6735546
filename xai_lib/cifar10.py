"""CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 colour photographs of ten classes, 32 x 32 pixels; it has no boxes.

Read from the folder of its official Python batches, ``cifar-10-batches-py``, or from images in class folders,
``cifar10/{train,test}/<class>/*.png``, under ``$XAI_DATA``. Images are put in one order, by class and then by their
bytes, so that both layouts give the same set and one checksum tells whether it is whole. The batches are pickles; they
are read opcode by opcode and never unpickled.
"""

import pickletools
from pathlib import Path

import numpy as np
import torch

from xai_lib import data, provenance

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIZE = 32
BATCHES = {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)}
SHA256 = {  # of images and labels in our order
    "train": "9fdf380943ab0ff21803912039a4244901e110bc77f00112981f273e78d0a905",
    "test": "64b37eefe6c229e1ebf04b94b4f5daef584cfa336d042d6878569200752bfbd6",
}


def image_set(split: str, size: int = SIZE, limit: int | None = None) -> data.ImageSet:
    """Return a split of CIFAR-10; see `data.load`.

    Parameters
    ----------
    split : str
        ``train`` (50,000) or ``test`` (10,000).
    size : int
        Not used: the images have 32 pixels.
    limit : int, optional
        Keep so many images, the same ones each time.

    Raises
    ------
    FileNotFoundError
        The set is not there; the message holds the command that gets it.
    ValueError
        It is incomplete or altered.
    """
    if split not in data.SPLITS:
        raise ValueError(f"split must be one of {', '.join(data.SPLITS)}; got {split!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1; got {limit}")
    folder, batches = data.root() / "cifar10", data.root() / "cifar-10-batches-py"
    if folder.is_dir():
        found = data.load(str(folder), split, size=SIZE)
        if found.classes != CLASSES:
            raise ValueError(f"cifar10: {folder} must hold the classes {', '.join(CLASSES)}; got {found.classes}")
        images, labels = found.images, found.labels
    elif batches.is_dir():
        parts = [_batch(batches / name) for name in BATCHES[split]]
        images, labels = (torch.cat(one) for one in zip(*parts, strict=True))
    else:
        raise FileNotFoundError(
            f"cifar10: {folder} and {batches} are missing; `make data SETS=cifar10` gets it, or set XAI_DATA"
        )
    keys = [(label, image.tobytes()) for label, image in zip(labels.tolist(), images.numpy(), strict=True)]
    order = torch.tensor(sorted(range(len(keys)), key=keys.__getitem__))
    images, labels = images[order], labels[order]
    total = provenance.tensors_sha256({"images": images, "labels": labels})
    if total != SHA256[split]:
        where = folder if folder.is_dir() else batches
        raise ValueError(
            f"cifar10: {where} is incomplete or altered: {len(labels)} {split} images with SHA-256 {total}, "
            f"expected {SHA256[split]}"
        )
    whole = data.ImageSet(images, labels, CLASSES, f"cifar10/{split}", total)
    if limit is None or limit >= len(whole):
        return whole
    kept = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))[:limit].sort().values
    return whole.take(kept, f"{whole.name}[{limit}]")


def _batch(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images (N, 3, 32, 32) and labels of an official batch: a pickled dictionary with raw pixels in one string.

    Raises
    ------
    FileNotFoundError, ValueError
        The file is not there, or not such a pickle.
    """
    if not path.exists():
        raise FileNotFoundError(f"cifar10: {path} is missing; `make data SETS=cifar10` gets it, or set XAI_DATA")
    labels, pixels, key = [], b"", ""
    try:
        for code, value, _ in pickletools.genops(path.read_bytes()):
            if isinstance(value, str) and value in ("batch_label", "labels", "data", "filenames"):
                key = value
            elif key == "labels" and code.name.startswith("BININT"):
                labels.append(value)
            elif key == "data" and isinstance(value, str | bytes) and len(value) > len(pixels):
                pixels = value if isinstance(value, bytes) else value.encode("latin-1")
    except (ValueError, UnicodeError) as error:
        raise ValueError(f"cifar10: {path} cannot be read: {error}") from None
    if not labels or len(pixels) != 3 * SIZE**2 * len(labels):
        raise ValueError(
            f"cifar10: {path} is truncated or altered: {len(labels)} labels, {len(pixels)} bytes of pixels"
        )
    images = np.frombuffer(pixels, np.uint8).reshape(-1, 3, SIZE, SIZE)
    return torch.from_numpy(images.copy()), torch.tensor(labels, dtype=torch.int64)
