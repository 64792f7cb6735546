"""Visual concepts: segments of images, cut out by windows that jitter (concept VAE, arXiv 2109.00479, 3.2 to 3.5).

A sample of a concept is an image of the window's digit, with background everywhere outside the window. With probability
p it is a training image, else a decoded cluster centre of a first VAE (3.5). Each sample has its own window, every
number of it drawn from a normal of 1 pixel, truncated at 3 (the code's; not clipped) and rounded. Paper and code differ
in what the numbers are, so both readings are here:

- ``edges`` (public code): each of the four edges. The height then has standard deviation sqrt(2).
- ``corner`` (3.3, and another state of the code): the top left corner, height and width, so that the lower edge is
  the upper one plus the height. The height has standard deviation 1, the lower edge sqrt(2), as it follows the upper.

In both, an upper or left edge outside the image is set to 0, as in the code; the others may lie beyond it.
Of the paper's 3,000 (3.2, 3.3) and 300 (3.5) samples of a concept the first is meant: 18 times 3,000 are its 54,000.
The windows are the public code's, as the paper prints no positions. Look-alikes are not merged, as 3.2 says they were.

Guesses, as the paper is silent: a draw without ink is *empty* and drawn again, image and window anew, but a training
image for a training image and a centre for a centre, so that p stays what it is. What is empty still after
`Sampling.redraws` more draws is left out. `Concepts` counts both by window.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from xai_lib import data

READINGS = ("edges", "corner")


@dataclass(frozen=True)
class Window:
    """Where a concept lies in the images of a digit.

    Attributes
    ----------
    digit : int, label of the images that it is cut from (of a user's own set: any label)
    label : int, label of the concept, 0 or more; windows may share it, and the concept is then cut by all of them
    rows : (int, int), first row in pixels and the one after the last
    columns : (int, int), the same from left to right

    Raises
    ------
    ValueError
        Rows or columns that are empty or begin below 0, a negative label.
    """

    digit: int
    label: int
    rows: tuple[int, int]
    columns: tuple[int, int]

    def __post_init__(self):
        for name, (start, end) in (("rows", self.rows), ("columns", self.columns)):
            if not 0 <= start < end:
                raise ValueError(f"{name} must be (from, to) with 0 <= from < to; got {(start, end)}")
        if self.label < 0:
            raise ValueError(f"label must be at least 0; got {self.label}")

    @property
    def edges(self) -> Int64[Tensor, "1 4"]:
        """Upper, lower, left and right edge in pixels, as `cut` takes them."""
        return torch.tensor([[*self.rows, *self.columns]])


_BY_DIGIT = {  # in the order of the public code: concepts 10 to 27, after the ten labels of the digits
    8: [((0, 28), (13, 26)), ((0, 28), (0, 15)), ((13, 28), (0, 28)), ((0, 13), (0, 28))],
    7: [((0, 12), (0, 28)), ((12, 28), (0, 28))],
    6: [((0, 12), (0, 28)), ((12, 28), (0, 28))],
    5: [((5, 11), (0, 28)), ((11, 28), (0, 28))],
    4: [((5, 17), (0, 28)), ((17, 28), (17, 23))],
    3: [((5, 16), (0, 28)), ((16, 28), (0, 28))],
    2: [((3, 15), (0, 28)), ((15, 28), (0, 28))],
    9: [((3, 17), (0, 28)), ((17, 28), (0, 28))],
}
_PLACES = [(digit, *place) for digit, places in _BY_DIGIT.items() for place in places]
MNIST_WINDOWS = tuple(Window(digit, 10 + k, rows, columns) for k, (digit, rows, columns) in enumerate(_PLACES))


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn.

    Attributes
    ----------
    count : int, samples of each window, 1 or more
    p : float, share of them that is cut from training images, 0 to 1; the rest is cut from cluster centres
    reading : str, what jitters, one of `READINGS`
    sd : float, standard deviation of the jitter in pixels, 0 or more
    limit : float, largest jitter in pixels, 0 or more
    background : int, value of the pixels outside the window, 0 to 255
    ink : int, a draw is empty if no pixel is further than this from the background, 0 to 255 (images as binary: 3.1)
    redraws : int, how often an empty draw is drawn again, 0 or more

    Raises
    ------
    ValueError
        A value out of its range.
    """

    count: int = 3000
    p: float = 0.8
    reading: str = "edges"
    sd: float = 1.0
    limit: float = 3.0
    background: int = 0
    ink: int = 127
    redraws: int = 20

    def __post_init__(self):
        if self.reading not in READINGS:
            raise ValueError(f"reading must be one of {', '.join(READINGS)}; got {self.reading!r}")
        for name in ("count", "sd", "limit", "redraws"):
            least, value = int(name == "count"), getattr(self, name)
            if not least <= value < math.inf:
                raise ValueError(f"{name} must be at least {least} and finite; got {value}")
        for name, most in (("p", 1), ("background", 255), ("ink", 255)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be from 0 to {most}; got {getattr(self, name)}")


@dataclass(frozen=True)
class Concepts:
    """Samples of concepts, and where they come from; those of a window stand together, in the order of `windows`.

    Attributes
    ----------
    images : uint8 tensor (M, C, H, W), background outside the window
    labels : int64 tensor (M,), labels of the concepts
    sources : int64 tensor (M,), index of the image that was cut, -1 for a cluster centre
    edges : int64 tensor (M, 4), the window: upper, lower, left and right edge in pixels
    windows : tuple of Window, of length K
    empty : int64 tensor (K,), draws without ink; all draws of a window are these and its samples
    left_out : int64 tensor (K,), samples that the window is short of, as all their draws were empty
    """

    images: UInt8[Tensor, "m c h w"]
    labels: Int64[Tensor, " m"]
    sources: Int64[Tensor, " m"]
    edges: Int64[Tensor, "m 4"]
    windows: tuple[Window, ...]
    empty: Int64[Tensor, " k"]
    left_out: Int64[Tensor, " k"]


def cut(images: Tensor, edges: Int64[Tensor, "#n 4"], background: int = 0) -> Tensor:
    """Return images (N, C, H, W) with `background` outside their windows; neither size nor type changes.

    `edges` (N, 4), or (1, 4) for all, are the upper, lower, left and right edge in pixels. They may lie outside the
    image; a lower edge that is not below the upper one leaves nothing, and so for left and right.
    """
    upper, lower, left, right = edges[:, :, None].unbind(1)
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
    down, across = (rows >= upper) & (rows < lower), (columns >= left) & (columns < right)
    return images.masked_fill(~(down[:, None, :, None] & across[:, None, None]), background)


def is_empty(images: UInt8[Tensor, "n c h w"], background: int = 0, ink: int = 127) -> Bool[Tensor, " n"]:
    """Return which images have no pixel that is further than `ink` from the background in some channel."""
    return ((images.short() - background).abs() <= ink).flatten(1).all(1)


def jitter(window: Window, count: int, sampling: Sampling, generator: torch.Generator) -> Int64[Tensor, "n 4"]:
    """Draw windows about a window by the `reading`, `sd` and `limit` of a `Sampling`, with a generator on the CPU.

    Upper, lower, left and right edge (N, 4) in pixels; the upper and the left one are 0 or more.

    Raises
    ------
    ValueError
        `count` below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1; got {count}")
    # By the inverse of the normal's distribution function, between its values at the two limits.
    low = 0.5 * math.erfc(sampling.limit / sampling.sd / 2**0.5) if sampling.sd else 0.5
    share = low + (1 - 2 * low) * torch.rand(count, 4, generator=generator, dtype=torch.float64)
    steps = (torch.special.ndtri(share) * sampling.sd).clamp(-sampling.limit, sampling.limit).round().long()
    edges = window.edges + steps
    starts, ends = edges[:, ::2].clamp(min=0), edges[:, 1::2]
    if sampling.reading == "corner":
        ends = starts + ends - window.edges[:, ::2]  # the extent has jittered, not the end
    return torch.stack([starts, ends], 2).flatten(1)


def sample(
    images: data.ImageSet,
    generator: torch.Generator,
    windows: Sequence[Window] = MNIST_WINDOWS,
    sampling: Sampling | None = None,
    centres: Mapping[int, Tensor] | None = None,
    index: Int64[Tensor, " i"] | None = None,
) -> Concepts:
    """Draw samples of the concepts of some windows (3.5).

    Parameters
    ----------
    images : data.ImageSet
        Labelled images of any size and number of channels.
    generator : torch.Generator
        On the CPU; all that is random comes from it.
    windows : sequence of Window
    sampling : Sampling, optional
        Default: the paper's.
    centres : mapping, optional
        {digit: uint8 tensor (K, C, H, W)}: decoded cluster centres of a first VAE, K of them each as likely. That VAE
        may have seen training images only. Not needed where p is 1, as it has to be for held-out samples.
    index : int64 tensor (I,), optional
        The images that may be cut, default all: the training images for samples to train on, the held-out ones for
        samples to test on. So no segment of a held-out image is ever trained on; `Concepts.sources` shows it.

    Raises
    ------
    ValueError
        No windows, a window that reaches outside the images, a concept with a label of the images, an index outside
        the set, a digit without images where p is above 0 or without centres where p is below 1, centres of another
        shape or type than the images.
    """
    sampling, centres = sampling or Sampling(), centres or {}
    index = torch.arange(len(images)) if index is None else index
    _check(images, windows, sampling, centres, index)
    parts = [_of_window(images, window, sampling, centres, index, generator) for window in windows]
    pictures, labels, sources, edges, empty, left_out = zip(*parts, strict=True)
    joined = (torch.cat(one) for one in (pictures, labels, sources, edges))
    return Concepts(*joined, tuple(windows), torch.tensor(empty), torch.tensor(left_out))


def targets(images: UInt8[Tensor, "n c h w"], size: tuple[int, int] = (14, 14)) -> Float[Tensor, "n s t"]:
    """Return what the concept loss compares a feature map with: the sample at the size of the map, 0 to 1 (3.4).

    Bilinear with corners not aligned, our choice: at half the size, each pixel is the mean of 2 x 2. Several channels
    become their mean, as the map of a concept is one.

    Raises
    ------
    ValueError
        A side of `size` below 1.
    """
    if min(size) < 1:
        raise ValueError(f"size must be at least (1, 1); got {size}")
    grey = images.float().mean(1, keepdim=True) / 255
    return functional.interpolate(grey, size=size, mode="bilinear", align_corners=False)[:, 0]


def _check(images: data.ImageSet, windows, sampling: Sampling, centres, index: Tensor):
    """Raise a ValueError for what `sample` cannot do."""
    shape, known, there = images.images.shape[1:], set(images.labels.tolist()), set()
    if not len(windows):
        raise ValueError(f"windows must hold a window; got {windows!r}")
    if len(index):
        low, high = int(index.min()), int(index.max())
        if not 0 <= low <= high < len(images):
            raise ValueError(f"index must be from 0 to {len(images) - 1}; got {low} to {high}")
        there = set(images.labels[index].tolist())
    for one in windows:
        if one.rows[1] > shape[1] or one.columns[1] > shape[2]:
            raise ValueError(f"windows must lie inside images of {shape[1]} x {shape[2]} pixels; got {one}")
        if one.label in known:
            raise ValueError(f"windows must have labels that no image has; got {one}")
        if sampling.p > 0 and one.digit not in there:
            raise ValueError(f"images must have each window's digit where p is above 0; got none of {one.digit}")
        if sampling.p < 1:
            few = centres.get(one.digit, ())
            if not len(few):
                raise ValueError(f"centres must have each window's digit where p is below 1; got none of {one.digit}")
            if few.shape[1:] != shape or few.dtype != torch.uint8:
                found = f"{few.dtype} {tuple(few.shape)} for {one.digit}"
                raise ValueError(f"centres must be uint8 images (K, {', '.join(map(str, shape))}); got {found}")


def _of_window(images: data.ImageSet, window: Window, sampling: Sampling, centres, index: Tensor, generator) -> tuple:
    """Draw the samples of one window: images, labels, sources, edges, number of empty draws and of those left out."""
    own = index[images.labels[index] == window.digit]
    count = sampling.count
    real = torch.rand(count, generator=generator, dtype=torch.float64) < sampling.p  # the same at each redraw
    pictures = torch.full((count, *images.images.shape[1:]), sampling.background, dtype=torch.uint8)
    sources, edges = torch.full((count,), -1), torch.zeros(count, 4, dtype=torch.int64)
    wanted, empty = torch.arange(count), 0
    for _ in range(1 + sampling.redraws):
        edges[wanted] = jitter(window, len(wanted), sampling, generator)
        from_image, from_centre = wanted[real[wanted]], wanted[~real[wanted]]
        if len(from_image):
            sources[from_image] = own[torch.randint(len(own), (len(from_image),), generator=generator)]
            pictures[from_image] = images.images[sources[from_image]]
        if len(from_centre):
            few = centres[window.digit]
            pictures[from_centre] = few[torch.randint(len(few), (len(from_centre),), generator=generator)]
        pictures[wanted] = cut(pictures[wanted], edges[wanted], sampling.background)
        wanted = wanted[is_empty(pictures[wanted], sampling.background, sampling.ink)]
        empty += len(wanted)
        if not len(wanted):
            break
    kept = torch.ones(count, dtype=torch.bool)
    kept[wanted] = False
    labels = torch.full((count - len(wanted),), window.label)
    return pictures[kept], labels, sources[kept], edges[kept], empty, len(wanted)
