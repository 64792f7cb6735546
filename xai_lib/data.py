"""Image data sets behind one door: ``load(name, split)``.

Embedded sets need no file (``digits``); real sets are looked for under ``$XAI_DATA`` (default ``data/``) in their
official layouts (``mnist``); a path names a folder with one sub-folder per class. ``auto:mnist`` is the real set where
it is there, else its embedded stand-in; `ImageSet.name` says which one came.

A module of the package that has a function ``image_set(split, size, limit)`` is a data set of its own, loaded under its
name (``scenes``). It is found by name and not imported here, so that a change of its code concerns only the notebooks
that import it.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from xai_lib import provenance

SPLITS = ("train", "test")
STAND_INS = {"mnist": "digits"}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}


@dataclass(frozen=True)
class ImageSet:
    """Labelled images in memory.

    Attributes
    ----------
    images : uint8 tensor (N, C, H, W), values 0 to 255
    labels : int64 tensor (N,), indices into `classes`
    classes : tuple of str, the names of the classes
    name : str, the set and split that these images are of
    checksum : str, SHA-256 of images and labels
    boxes : float tensor (N, 4) or None, x0, y0, x1, y1 in pixels
    parts : float tensor (N, P, 3) or None, x, y in pixels and visibility (0 or 1)
    masks : bool tensor (N, H, W) or None, true on the object
    """

    images: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]
    name: str
    checksum: str = ""
    boxes: Tensor | None = None
    parts: Tensor | None = None
    masks: Tensor | None = None

    def __post_init__(self):
        if not self.checksum:
            total = provenance.tensors_sha256({"images": self.images, "labels": self.labels})
            object.__setattr__(self, "checksum", total)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor, name: str) -> "ImageSet":
        """Return the images at `index` (int64 tensor) as a set of their own, called `name`."""
        kept = {key: value[index] for key, value in self._per_image().items() if value is not None}
        return dataclasses.replace(self, **kept, name=name, checksum="")

    def _per_image(self) -> dict[str, Tensor | None]:
        return {key: getattr(self, key) for key in ("images", "labels", "boxes", "parts", "masks")}


@dataclass(frozen=True)
class Normalize:
    """Turn uint8 images into floats: (x / 255 - mean) / std, one mean and std for all channels."""

    mean: float
    std: float

    def __call__(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return normalised float32 images (N, C, H, W)."""
        return images.float().div_(255).sub_(self.mean).div_(self.std)

    @classmethod
    def of(cls, images: UInt8[Tensor, "n c h w"]) -> "Normalize":
        """Return the normalisation that gives `images` mean 0 and standard deviation 1.

        Raises
        ------
        ValueError
            All pixels have one value.
        """
        count = torch.bincount(images.flatten().to(torch.int64), minlength=256).double()
        values = torch.arange(256, dtype=torch.float64) / 255
        mean = (count * values).sum() / count.sum()
        std = ((count * (values - mean) ** 2).sum() / count.sum()).sqrt()
        if std < 1e-4:
            raise ValueError(f"images must not be all of one value; got {mean.item() * 255:g} everywhere")
        return cls(round(mean.item(), 4), round(std.item(), 4))


def root() -> Path:
    """Return the folder of the real data sets: ``$XAI_DATA``, else ``data`` at the top of the project."""
    top = next((p for p in [Path.cwd(), *Path.cwd().parents] if (p / "claims.yml").exists()), Path.cwd())
    return Path(os.environ.get("XAI_DATA") or top / "data")


def load(
    name: str, split: str = "train", *, size: int | None = None, channels: int = 3, limit: int | None = None
) -> ImageSet:
    """Load a data set.

    Parameters
    ----------
    name : str
        ``digits``, ``mnist``, ``auto:mnist``, a module's set (``scenes``), or the path of a folder of images (a path
        holds a ``/`` or exists).
    split : str
        ``train`` or ``test``. A folder is split by its sub-folders ``train`` and ``test`` where it has both, else
        one image in five of each class, drawn with a fixed seed, is for testing.
    size : int, optional
        Side of the square images in pixels, default 64: folders are scaled and centre-cropped to it, a module draws
        at it. Other sets have the size they have.
    channels : int
        Folders only: 1 (grey) or 3 (RGB).
    limit : int, optional
        Keep the first `limit` images of a fixed random order; a module that draws makes so many.

    Returns
    -------
    ImageSet

    Raises
    ------
    ValueError
        Unknown set or split, a limit below 1, a folder with one class, unreadable images, an altered file.
    FileNotFoundError
        The set is not there; the message holds the command that gets it.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1; got {limit}")
    wanted = name.removeprefix("auto:")
    if name.startswith("auto:"):
        if wanted not in STAND_INS:
            raise ValueError(f"name: no stand-in is known for {name!r}; known: auto:{', auto:'.join(STAND_INS)}")
        if not is_available(wanted):
            wanted = STAND_INS[wanted]
    if wanted in LOADERS:
        images = LOADERS[wanted](split)
    elif "/" in wanted or Path(wanted).is_dir():
        images = _folder(Path(wanted), split, 64 if size is None else size, channels)
    elif wanted in modules():
        return importlib.import_module(f"{provenance.PACKAGE.name}.{wanted}").image_set(
            split, 64 if size is None else size, limit
        )
    else:
        known = ", ".join([*LOADERS, *modules(), *(f"auto:{one}" for one in STAND_INS)])
        raise ValueError(f"name: unknown data set {name!r}; known: {known}, or the path of a folder of images")
    if limit is not None and limit < len(images):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        images = images.take(order[:limit].sort().values, f"{images.name}[{limit}]")
    return images


def split(images: ImageSet, fraction: float, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """Divide a set in two at random, class by class: (all but `fraction`, `fraction`).

    Raises
    ------
    ValueError
        `fraction` is not between 0 and 1, or leaves a part without an image of some class.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1; got {fraction}")
    counts, part = torch.bincount(images.labels), round(fraction * len(images))
    classes = int((counts > 0).sum())
    if counts[counts > 0].min() < 2 or not classes <= part <= len(images) - classes:
        raise ValueError(f"fraction {fraction} of {len(images)} images leaves a part without some of {classes} classes")
    one, two = _divide(images.labels, fraction, seed)
    return images.take(one, f"{images.name}, 1 - {fraction}"), images.take(two, f"{images.name}, {fraction}")


def _divide(labels: Tensor, test_size: int | float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return the sorted indices of two random parts, stratified by label; `test_size` is a share or a number."""
    from sklearn.model_selection import train_test_split  # here, as sklearn takes a second to load

    parts = train_test_split(np.arange(len(labels)), test_size=test_size, random_state=seed, stratify=labels.numpy())
    return tuple(torch.from_numpy(np.sort(part)) for part in parts)


def modules() -> list[str]:
    """Return the names of the package's modules that are a data set of their own: those with an ``image_set``."""
    return sorted(
        file.stem for file in provenance.PACKAGE.glob("*.py") if "\ndef image_set(" in file.read_text("utf-8")
    )


def is_available(name: str) -> bool:
    """Say whether a named set can be loaded now: embedded, or its files are under `root`."""
    return name in LOADERS and all((root() / path).exists() for path in REAL_FILES.get(name, {}))


def _digits(split: str) -> ImageSet:
    """scikit-learn's 1,797 real 8x8 digits, scaled to 20x20 and centred in 28x28 as MNIST's are."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    small = torch.from_numpy(raw.images)[:, None].float() * (255 / 16)
    large = functional.interpolate(small, size=(20, 20), mode="bilinear", align_corners=False)
    images = functional.pad(large, (4, 4, 4, 4)).round().clamp(0, 255).to(torch.uint8)
    labels = torch.from_numpy(raw.target).to(torch.int64)
    index = _divide(labels, 397)[SPLITS.index(split)]
    return ImageSet(images[index], labels[index], tuple("0123456789"), f"digits/{split}")


_MNIST_RAW = "MNIST/raw/{}-ubyte"
_MNIST_PREFIX = {"train": "train", "test": "t10k"}
# SHA-256 of the files that a set is made of; images and labels of both splits.
REAL_FILES = {
    "mnist": {
        _MNIST_RAW.format("train-images-idx3"): "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        _MNIST_RAW.format("train-labels-idx1"): "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        _MNIST_RAW.format("t10k-images-idx3"): "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        _MNIST_RAW.format("t10k-labels-idx1"): "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    }
}


def checked_file(name: str, path: str) -> Path:
    """Return the path of a file of a real set after comparing its SHA-256 with the known one.

    Raises
    ------
    FileNotFoundError
        It is not there; the message holds the command that gets it.
    ValueError
        It is truncated or altered.
    """
    file = root() / path
    if not file.exists():
        raise FileNotFoundError(f"{name}: {file} is missing; `make data SETS={name}` gets it, or set XAI_DATA")
    expected, found = REAL_FILES[name][path], provenance.file_sha256(file)
    if found != expected:
        raise ValueError(f"{name}: {file} is truncated or altered: SHA-256 expected {expected}, found {found}")
    return file


def _read_idx(path: Path) -> Tensor:
    """Read an IDX file of unsigned bytes: magic number, one big-endian size per dimension, the values."""
    raw = path.read_bytes()
    dimensions = raw[3]
    shape = struct.unpack(f">{dimensions}I", raw[4 : 4 + 4 * dimensions])
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy())


def _mnist(split: str) -> ImageSet:
    prefix = _MNIST_PREFIX[split]
    images, labels = (
        _read_idx(checked_file("mnist", _MNIST_RAW.format(f"{prefix}-{kind}")))
        for kind in ("images-idx3", "labels-idx1")
    )
    return ImageSet(images[:, None], labels.to(torch.int64), tuple("0123456789"), f"mnist/{split}")


LOADERS: dict[str, Callable[[str], ImageSet]] = {"digits": _digits, "mnist": _mnist}


def _folder(path: Path, split: str, size: int, channels: int) -> ImageSet:
    """Decode a folder of class folders, or read the array file that an earlier call left."""
    if not path.is_dir():
        raise FileNotFoundError(f"name: there is no folder {path}")
    if channels not in (1, 3) or size < 1:
        raise ValueError(f"channels must be 1 or 3 and size at least 1; got channels={channels}, size={size}")
    has_splits = all((path / one).is_dir() for one in SPLITS)
    base = path / split if has_splits else path
    names = _class_names(base)
    if has_splits and _class_names(path / SPLITS[0]) != _class_names(path / SPLITS[1]):
        odd = ", ".join(sorted(set(_class_names(path / SPLITS[0])) ^ set(_class_names(path / SPLITS[1]))))
        raise ValueError(f"name: {path / SPLITS[0]} and {path / SPLITS[1]} hold different class folders: {odd}")
    if len(names) < 2:
        raise ValueError(f"name: {base} needs two or more class folders; found {len(names)} ({', '.join(names)})")
    files = [(file, k) for k, one in enumerate(names) for file in _image_files(base / one)]
    labels = torch.tensor([k for _, k in files], dtype=torch.int64)
    images = _decoded([file for file, _ in files], size, channels)
    full = ImageSet(images, labels, names, f"folder:{path.name}/{split}")
    if has_splits:
        return full
    few = [name for k, name in enumerate(names) if (labels == k).sum() < 2]
    if few:
        raise ValueError(f"name: the class folder {base / few[0]} holds one image; splitting needs two or more")
    wanted = len(labels) // 5
    count = min(max(wanted, len(names)), len(labels) - len(names))
    return full.take(_divide(labels, count)[SPLITS.index(split)], full.name)


def _class_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith(".")))


def _image_files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"name: the class folder {folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return files


def _decoded(files: list[Path], size: int, channels: int) -> Tensor:
    """Decode files into one uint8 array (N, C, size, size), kept beside the data sets under the files' checksum."""
    total = hashlib.sha256(f"{size} {channels}".encode())
    for file in files:
        total.update(file.read_bytes())
    kept = root() / "decoded" / f"{total.hexdigest()[:16]}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # not there, or damaged
        return torch.from_numpy(np.load(kept, allow_pickle=False))
    array = np.stack([_decode(file, size, channels) for file in files])
    part = kept.with_suffix(f".{os.getpid()}.part.npy")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(part, array, allow_pickle=False)
        part.replace(kept)
    except OSError:  # a read-only or full disk costs time, not the result
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return torch.from_numpy(array)


def _decode(file: Path, size: int, channels: int) -> np.ndarray:
    """Read one image, scale its short side to `size`, crop the centre: (C, size, size)."""
    try:
        with Image.open(file) as image:
            if image.mode.startswith("I"):  # 16 bits
                image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
            if "transparency" in image.info:
                image = image.convert("RGBA")
            image = image.convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"name: {file} cannot be read as an image: {error}") from None
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
