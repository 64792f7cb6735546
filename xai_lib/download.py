"""Fetch the real data sets: ``python -m xai_lib.download [names...]``, which is what ``make data`` runs.

They go under ``$XAI_DATA`` (default ``data`` in the current folder). Nothing is ever half there: a download grows in
``<file>.part`` and is renamed once its MD5 is right, an archive is unpacked beside its place and renamed once its
contents are complete. After any stop, run again: only what is missing is fetched. Archives got by hand are used too.
"""

import errno
import gzip
import hashlib
import http.client
import os
import shutil
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

TIMEOUT = 30  # seconds without a byte
RETRIES = 3  # after a connection that broke off
BLOCK = 1 << 16  # bytes
DEFAULT = ("mnist", "cifar10")


@dataclass(frozen=True)
class Source:
    """Where a data set (its name is its key in `SOURCES`) comes from, and what it is when complete.

    Parameters
    ----------
    licence, home : str
        Terms of use in one line, and the page from which the files can be got by hand.
    mirrors : tuple of str
        Addresses that the file names are appended to, in the order to try.
    files : mapping of str to str
        File name to published MD5.
    target : str
        Folder that the set becomes, relative to the data folder.
    contents : mapping of str to (int or str)
        What `target` must hold: a pattern and how many paths match it at least, or a file and its SHA-256.
    """

    licence: str
    home: str
    mirrors: tuple[str, ...]
    files: Mapping[str, str]
    target: str
    contents: Mapping[str, int | str]


SOURCES: dict[str, Source] = {
    "mnist": Source(
        "CC BY-SA 3.0, (c) Yann LeCun and Corinna Cortes",
        "https://github.com/cvdfoundation/mnist",  # the authors' own page no longer serves the files
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        "MNIST/raw",
        {
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
    "cifar10": Source(
        "no licence published; cite Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        ("https://www.cs.toronto.edu/~kriz/",),
        {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
        "cifar-10-batches-py",
        {"data_batch_[1-5]": 5, "test_batch": 1, "batches.meta": 1},
    ),
    "cub": Source(
        "non-commercial research and teaching only; the photographs belong to their authors",
        "https://www.vision.caltech.edu/datasets/cub_200_2011/",
        ("https://data.caltech.edu/records/65de6-vp158/files/",),
        {"CUB_200_2011.tgz": "97eceeb196236b17998738112f37df78"},
        "CUB_200_2011",
        {"images/*/*.jpg": 11788, "*.txt": 5, "parts/part_locs.txt": 1},
    ),
    "tinyimagenet": Source(
        "ImageNet's terms of access: non-commercial research and education only",
        "https://www.kaggle.com/c/tiny-imagenet",
        ("http://cs231n.stanford.edu/", "https://cs231n.stanford.edu/"),
        {"tiny-imagenet-200.zip": "90528d7ca1a48142e341f4ef8d21d0de"},
        "tiny-imagenet-200",
        {"train/*/images/*.JPEG": 100_000, "val/images/*.JPEG": 10_000, "val/val_annotations.txt": 1, "*.txt": 2},
    ),
}


class _DroppedError(ConnectionError):
    """A connection that broke off: worth another try."""

    def __init__(self, url: str, reason: object):
        super().__init__(f"url {url}: connection interrupted ({reason}), run again to resume")


def _digest(path: Path, kind: str = "md5") -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, kind).hexdigest()


def _open(url: str, offset: int) -> http.client.HTTPResponse | None:
    """Ask for a file from a byte on; None where the server says that nothing follows (416)."""
    headers = {"User-Agent": "xai_lib"} | ({"Range": f"bytes={offset}-"} if offset else {})
    try:
        return urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416 and offset:
            return None
        raise ConnectionError(f"url {url}: HTTP {error.code} {error.reason}") from None
    except URLError as error:
        raise ConnectionError(f"url {url}: {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _DroppedError(url, error) from None


def _blocks(url: str, response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Read a response to its end; the network's errors, and no others, become a `_DroppedError`."""
    left = int(response.headers.get("Content-Length", 0))
    try:
        while block := response.read(BLOCK):
            left -= len(block)
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise _DroppedError(url, error) from None
    if left > 0:
        raise _DroppedError(url, f"{left} bytes are missing")


def _transfer(url: str, part: Path, md5: str) -> None:
    """Add to `part` what it lacks, from the byte that it ends at if the server can do so."""
    offset = part.stat().st_size if part.exists() else 0
    response = _open(url, offset)
    if response is None:
        if _digest(part) != md5:
            part.unlink()
            _transfer(url, part, md5)
        return
    start = offset if response.status == 206 else 0
    total = start + int(response.headers.get("Content-Length", 0)) or None
    bar = tqdm(total=total, initial=start, desc=part.stem, unit="B", unit_scale=True, disable=None)
    with response, bar, open(part, "ab" if start else "wb") as stream:
        for block in _blocks(url, response):
            stream.write(block)
            bar.update(len(block))


def _download(url: str, path: Path, md5: str) -> None:
    """Download a file by way of ``<path>.part``, which stays after an interruption and goes if its MD5 is wrong."""
    part = path.with_name(f"{path.name}.part")
    for left in reversed(range(RETRIES + 1)):
        try:
            _transfer(url, part, md5)
            break
        except _DroppedError:
            if not left:
                raise
    if (found := _digest(part)) != md5:
        part.unlink()
        raise ValueError(f"file {part} from {url}: MD5 expected {md5}, found {found}, removed")
    part.replace(path)


def _fetch_file(source: Source, file: str, folder: Path) -> None:
    """Download one file from the first mirror that gives it, unless it is there; say what is wrong with the others."""
    md5 = source.files[file]
    if (folder / file).exists() and _digest(folder / file) == md5:
        return
    for left, mirror in zip(reversed(range(len(source.mirrors))), source.mirrors, strict=True):
        try:
            _download(mirror + file, folder / file, md5)
            return
        except (ConnectionError, ValueError) as error:
            problem = f"{error}; by hand: get {file} (MD5 {md5}) from {source.home}, put it in {folder}, run again"
            if not left:
                raise (ValueError if isinstance(error, ValueError) else ConnectionError)(problem) from None
            print(f"{problem}; trying the next mirror", file=sys.stderr)


def _extract(archive: Path, folder: Path) -> None:
    """Extract a zip, tar or single gz file into a folder; ValueError if it is damaged or would write elsewhere."""
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as stream:
                _stay_inside(archive, folder, stream.namelist())
                stream.extractall(folder)
        elif archive.name.endswith((".tgz", ".tar.gz")):
            with tarfile.open(archive) as stream:
                plain = [member for member in stream.getmembers() if member.isfile() or member.isdir()]
                _stay_inside(archive, folder, [member.name for member in plain])
                # Python 3.11 before 3.11.4 has no filters; then names and kinds of members are all that is checked.
                stream.extractall(folder, plain, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        else:
            with gzip.open(archive) as stream, open(folder / archive.stem, "wb") as out:
                shutil.copyfileobj(stream, out)
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"archive {archive}: {error}") from None


def _stay_inside(archive: Path, folder: Path, names: list[str]) -> None:
    for name in names:
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"archive {archive}: member {name!r} lies outside the folder, refused")


def _lack(source: Source, target: Path) -> str:
    """Say what a folder lacks to be the complete set, such as ``50 of 200 images/*``; empty when it is complete."""
    for pattern, wanted in source.contents.items():
        if isinstance(wanted, int):
            if (count := sum(1 for _ in target.glob(pattern))) < wanted:
                return f"{count} of {wanted} {pattern}"
        elif not (target / pattern).is_file():
            return f"no {pattern}"
        elif (found := _digest(target / pattern, "sha256")) != wanted:
            return f"{pattern} of SHA-256 {found}, expected {wanted}"
    return ""


def _unpack(source: Source, folder: Path) -> None:
    """Turn the archives into the folder of the set, by way of a temporary folder beside it, and remove them."""
    target = folder / source.target
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for file in source.files:
            _extract(folder / file, temporary)
        inner = temporary / target.name
        made = inner if inner.is_dir() else temporary
        if lack := _lack(source, made):
            raise ValueError(f"archive {folder / next(iter(source.files))}: incomplete, it holds {lack}")
        if target.exists():
            target.rmdir()  # empty, as `fetch` saw
        made.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for file in source.files:
        (folder / file).unlink()


def fetch(name: str, folder: Path, sources: Mapping[str, Source] = SOURCES) -> Path:
    """Download and unpack a data set unless it is there, after printing its licence.

    Parameters
    ----------
    name : str
        A key of `sources`.
    folder : Path
        The data folder, made where needed.
    sources : mapping of str to Source
        The known sets.

    Returns
    -------
    Path
        The folder of the set.

    Raises
    ------
    ValueError
        The name is unknown, a checksum is wrong, or an archive is damaged or unsafe.
    OSError
        No mirror gave a file (ConnectionError), the set's folder is there but incomplete (FileExistsError; it is
        never touched), or the disk cannot take it.
    """
    if name not in sources:
        raise ValueError(f"name: unknown data set {name!r}; known: {', '.join(sources)}")
    source, folder = sources[name], Path(folder)
    target = folder / source.target
    if not (lack := _lack(source, target)):
        print(f"{name}: already complete in {target}")
        return target
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f"folder {target}: it is there, but with {lack}; move it away to have the set fetched")
    print(f"{name}: {source.licence}; {source.home}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.files:
        _fetch_file(source, file, folder)
    _unpack(source, folder)
    print(f"{name}: complete in {target}")
    return target


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch the named data sets one after the other, whatever becomes of each.

    Parameters
    ----------
    argv : sequence of str, optional
        Names of sets (none: `DEFAULT`); where not given, the command line's.

    Returns
    -------
    int
        Exit code: 0 all are there, 1 one or more failed, 2 unknown name, 130 stopped by Ctrl-C.
    """
    names = list(dict.fromkeys(sys.argv[1:] if argv is None else argv)) or DEFAULT
    if unknown := [name for name in names if name not in SOURCES]:
        print(f"names: unknown data set {', '.join(unknown)}; known: {', '.join(SOURCES)}", file=sys.stderr)
        return 2
    folder, code = Path(os.environ.get("XAI_DATA") or "data").expanduser(), 0
    for name in names:
        try:
            fetch(name, folder, SOURCES)
        except (ValueError, OSError) as error:
            full = isinstance(error, OSError) and error.errno == errno.ENOSPC
            reason = f"folder {folder}: the disk is full, make room and run again to resume" if full else error
            print(f"{name}: {' '.join(str(reason).split())}", file=sys.stderr)
            code = 1
        except KeyboardInterrupt:
            print(f"{name}: interrupted, run again to resume", file=sys.stderr)
            return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
