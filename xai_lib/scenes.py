"""Scenes: drawn textured objects on textured ground, with exact masks and boxes, to score heatmaps on.

The class of an object is its shape, and nothing else tells it: colours and textures of ground, objects and clutter come
from the same distributions, whatever the class, and all shapes have the same area at the same size. Shapes are turned
(by 25 degrees at most), stretched, scaled and moved. Clutter is small blobs and strokes on the ground, half of them in
the colours and texture of an object, so that neither an edge nor a colour gives the object away.

Image i depends on the seed, on i and on the arguments of `draw` alone. At another `size` the same seed gives the same
scenes, drawn coarser or finer, but for their grain.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from xai_lib import data

# Inside or not, of points u (to the right) and v (up). Area and place are set right by `_unit_shape`.
SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda u, v: u**2 + v**2 < 1,
    "ring": lambda u, v: (u**2 + v**2 < 1) & (u**2 + v**2 > 0.55**2),
    "square": lambda u, v: np.maximum(abs(u), abs(v)) < 1,
    "triangle": lambda u, v: (v > -0.5) & (v + np.sqrt(3) * abs(u) < 1),
    "star": lambda u, v: _star(u, v),
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.33) & (np.maximum(abs(u), abs(v)) < 1),
    "crescent": lambda u, v: (u**2 + v**2 < 1) & ((u - 0.55) ** 2 + v**2 > 0.85**2),
    "heart": lambda u, v: (u**2 + v**2 - 1) * (u**2 + v**2 - 1) ** 2 < v * (u * v) ** 2,
    "arrow": lambda u, v: np.where(v > 0, abs(u) < 0.95 * (1 - v), (abs(u) < 0.32) & (v > -1)),
    "hourglass": lambda u, v: (abs(v) < 1) & (abs(u) < 0.08 + 0.77 * abs(v)),
}
CLASSES: tuple[str, ...] = tuple(SHAPES)
TEXTURES = ("grain", "gradient", "stripes", "checks", "dots", "blotches")

# Lengths are shares of the image's side; the size of an object is the radius of the disc of its area.
SIZES, UNEVEN = {1: (0.16, 0.25), 2: (0.145, 0.18)}, 0.05  # by the number of objects; share by which each is off
MARGIN, GAP = 0.02, 0.045  # least distance to the edge of the image; between objects, and from them to clutter
TURN, STRETCH = np.radians(25), 1.2  # largest angle; largest ratio of the two axes
PERIODS = (0.09, 0.22)  # of a texture
CONTRAST, DEPTH = 0.4, (0.04, 0.11)  # least distance of two RGB colours; depth of a texture in each channel
GRAIN = 0.025  # standard deviation of the noise in each pixel
SAMPLES = 3  # a pixel's coverage is the mean over SAMPLES x SAMPLES points; odd, so that its centre is one of them
SPLIT_SEEDS, SPLIT_COUNTS = {"train": 1, "test": 2}, {"train": 8000, "test": 2000}


@dataclass(frozen=True)
class Scenes:
    """Drawn images and the truth about them; K objects in each.

    Attributes
    ----------
    images : uint8 tensor (N, 3, H, W), values 0 to 255
    labels : int64 tensor (N, K), indices into `CLASSES`
    masks : bool tensor (N, K, H, W), true where the centre of the pixel is on the object; nothing hides an object
    boxes : float tensor (N, K, 4), x0, y0, x1, y1 of the mask in pixels; the pixel at x 3, y 5 is (3, 5, 4, 6)
    """

    images: UInt8[Tensor, "n 3 h w"]
    labels: Int64[Tensor, "n k"]
    masks: Bool[Tensor, "n k h w"]
    boxes: Float[Tensor, "n k 4"]


def draw(count: int, size: int = 64, objects: int = 1, clutter: int = 4, seed: int = 0) -> Scenes:
    """Draw scenes.

    Parameters
    ----------
    count : int
        Number of images. The first of them are those of a smaller `count`.
    size : int
        Side of the images in pixels, 16 or more.
    objects : int
        Objects in each image, 1 or 2. Two are of different classes, about equally large, and do not touch.
    clutter : int
        Blobs and strokes in each image, 0 or more; one that finds no room is left out.
    seed : int
        0 or more.

    Returns
    -------
    Scenes

    Raises
    ------
    ValueError
        An argument is out of its range.
    """
    for name, value, least in (("count", count, 1), ("size", size, 16), ("clutter", clutter, 0), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}; got {value}")
    if objects not in SIZES:
        raise ValueError(f"objects must be 1 or 2; got {objects}")
    images = np.empty((count, 3, size, size), np.uint8)
    labels, masks = np.empty((count, objects), np.int64), np.empty((count, objects, size, size), bool)
    for i in range(count):
        images[i], labels[i], masks[i] = _scene(np.random.default_rng([seed, i]), size, objects, clutter)
    return Scenes(*map(torch.from_numpy, (images, labels, masks, _boxes(masks))))


def image_set(split: str, size: int = 64, limit: int | None = None) -> data.ImageSet:
    """Return scenes with one object each as a labelled set with masks and boxes; see `data.load`.

    Parameters
    ----------
    split : str
        ``train`` or ``test``, drawn from different seeds.
    size : int
        Side of the images in pixels, 16 or more.
    limit : int, optional
        Number of images, default 8,000 for training and 2,000 for testing.

    Raises
    ------
    ValueError
        Unknown split, `limit` below 1 or `size` below 16.
    """
    if split not in data.SPLITS:
        raise ValueError(f"split must be one of {', '.join(data.SPLITS)}; got {split!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1; got {limit}")
    count = limit or SPLIT_COUNTS[split]
    made = draw(count, size, seed=SPLIT_SEEDS[split])
    name = f"scenes/{split}" + f"@{size}" * (size != 64) + f"[{count}]" * (count != SPLIT_COUNTS[split])
    return data.ImageSet(made.images, made.labels[:, 0], CLASSES, name, boxes=made.boxes[:, 0], masks=made.masks[:, 0])


def _boxes(masks: np.ndarray) -> np.ndarray:
    """Return the tight boxes (N, K, 4) of masks (N, K, H, W), none of them empty: x0, y0, x1, y1, ends exclusive."""
    columns, rows = masks.any(-2), masks.any(-1)
    first = [along.argmax(-1) for along in (columns, rows)]
    end = [along.shape[-1] - along[..., ::-1].argmax(-1) for along in (columns, rows)]
    return np.stack([*first, *end], -1).astype(np.float32)


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Five points at distance 1: the points that at most one of the star's five lines cuts off from the centre."""
    turn = 2 * np.pi / 5
    return sum(np.cos(k * turn) * v + np.sin(k * turn) * u < -np.cos(turn) for k in range(5)) <= 1


DIRECTIONS = np.stack([np.cos(np.arange(24) * np.pi / 12), np.sin(np.arange(24) * np.pi / 12)])  # (2, 24)


@functools.cache
def _unit_shape(name: str) -> tuple[np.ndarray, float, np.ndarray]:
    """Return of a shape its centroid (u, v), the radius of the disc of its area, its outermost points (P, 2)."""
    axis = (np.arange(300) + 0.5) / 300 * 3 - 1.5
    u, v = np.meshgrid(axis, axis)
    points = np.stack([u, v], -1)[SHAPES[name](u, v)]
    outermost = np.unique((points @ DIRECTIONS).argmax(0))
    return points.mean(0), float(np.sqrt(len(points) / np.pi) * (axis[1] - axis[0])), points[outermost]


class _Figure(NamedTuple):
    """A shape or a piece of clutter: where it is inside, and the map (2, 2) from the image (y down) to its u, v."""

    inside: Callable[[np.ndarray, np.ndarray], np.ndarray]
    inverse: np.ndarray
    origin: np.ndarray  # what u, v are at the place of the figure
    reach: np.ndarray  # distance from its place to its outermost point in each of DIRECTIONS

    def moved(self, places: np.ndarray) -> np.ndarray:
        """Turn uniform numbers (..., 2) into places at which the figure is inside the image."""
        right, down, left, up = self.reach[[0, 6, 12, 18]]
        low, high = np.array([left, up]) + MARGIN, 1 - MARGIN - np.array([right, down])
        return low + places * (high - low)

    def cover(self, place: np.ndarray, size: int) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
        """Return a part of the image, the share of each of its pixels that is covered, and where their centres are."""
        right, down, left, up = self.reach[[0, 6, 12, 18]] * 1.05
        rows, columns = (
            slice(max(int((at - before) * size) - 1, 0), min(int((at + after) * size) + 2, size))
            for at, before, after in ((place[1], up, down), (place[0], left, right))
        )
        fine = (np.arange(size * SAMPLES) + 0.5) / (size * SAMPLES)
        x = fine[columns.start * SAMPLES : columns.stop * SAMPLES] - place[0]
        y = fine[rows.start * SAMPLES : rows.stop * SAMPLES, None] - place[1]
        (a, b), (c, d) = self.inverse
        inside = self.inside(a * x + b * y + self.origin[0], c * x + d * y + self.origin[1])
        samples = inside.reshape(rows.stop - rows.start, SAMPLES, columns.stop - columns.start, SAMPLES)
        share = samples.sum(3, np.uint8).sum(1, np.uint8) / np.float32(SAMPLES**2)
        return (rows, columns), share, samples[:, SAMPLES // 2, :, SAMPLES // 2]


def _shape(name: str, size: float, stretch: float, angle: float) -> _Figure:
    """Return a shape of a class: scaled to the area of a disc of radius `size`, stretched along itself, turned."""
    centroid, radius, outermost = _unit_shape(name)
    cos, sin = np.cos(angle), np.sin(angle)
    forward = np.array([[cos, sin], [sin, -cos]]) * (size / radius) * [stretch**0.5, stretch**-0.5]
    reach = ((outermost - centroid) @ forward.T @ DIRECTIONS).max(0)
    return _Figure(SHAPES[name], np.linalg.inv(forward), centroid, reach)


def _gap(one: _Figure, other: _Figure, offset: np.ndarray) -> np.ndarray:
    """Return the distance (N,) of the hulls of two figures that are `offset` (N, 2) apart; below 0 if they touch."""
    return (offset @ DIRECTIONS - one.reach - np.roll(other.reach, 12)).max(-1)


def _objects(random: np.random.Generator, count: int) -> tuple[np.ndarray, list[tuple[_Figure, np.ndarray]]]:
    """Return the classes of `count` objects, and each as a shape and its place."""
    labels = random.permutation(len(CLASSES))[:count]
    sizes = random.uniform(*SIZES[count]) * random.uniform(1 - UNEVEN, 1 + UNEVEN, count)
    stretches = STRETCH ** random.uniform(-1, 1, count)
    angles = random.uniform(-TURN, TURN, count)
    while True:
        figures = [_shape(CLASSES[label], *how) for label, *how in zip(labels, sizes, stretches, angles, strict=True)]
        places = np.stack([figure.moved(random.random((64, 2))) for figure in figures])
        if count == 1:
            return labels, [(figures[0], places[0, 0])]
        apart = _gap(*figures, places[1] - places[0]) >= GAP
        if apart.any():
            return labels, list(zip(figures, places[:, apart][:, 0], strict=True))
        sizes *= 0.95  # two that find no room become smaller


def _blob(radius: float, one: float, two: float, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    around = np.arctan2(v, u)
    wobble = 1 + 0.4 * np.sin(2 * around + 2 * np.pi * one) + 0.15 * np.sin(4 * around + 2 * np.pi * two)
    return np.hypot(u, v) < radius * wobble


def _stroke(half: float, width: float, bend: float, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (abs(v - bend * (u**2 - half**2 / 2)) < width) & (abs(u) < half)


def _clutter(random: np.random.Generator, objects: list[tuple[_Figure, np.ndarray]]) -> list:
    """Return a blob or a bent stroke, a place clear of the objects, and what fills it; nothing if there is no room."""
    size, angle, one, two = random.random(4)
    if random.random() < 0.5:
        radius = 0.03 + 0.03 * size
        inside, extent = functools.partial(_blob, radius, one, two), 1.6 * radius
    else:
        half, width = 0.05 + 0.06 * size, 0.012 + 0.01 * one
        inside, extent = functools.partial(_stroke, half, width, 8 * two - 4), half + width
    cos, sin = DIRECTIONS[:, int(24 * angle)]
    figure = _Figure(inside, np.array([[cos, sin], [-sin, cos]]), np.zeros(2), np.full(24, extent))
    places = figure.moved(random.random((16, 2)))
    free = np.all([_gap(shape, figure, places - place) >= GAP for shape, place in objects], axis=0)
    filling = random.choice([-1, random.integers(1, 1 + len(objects))])  # its own, or that of an object
    return [(figure, places[free][0], filling)] if free.any() else []


def _colours(random: np.random.Generator, count: int) -> np.ndarray:
    """Return RGB colours (count, 3) from one distribution, every two of them at least CONTRAST apart."""
    one, two = np.triu_indices(count, 1)
    while True:
        hue, value, pallor = random.random((3, 8, count, 1))
        pure = np.clip(abs((6 * hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
        colours = (0.2 + 0.75 * value) * (1 - (0.1 + 0.65 * pallor) * (1 - pure))
        apart = ((colours[:, one] - colours[:, two]) ** 2).sum(-1).min(-1) >= CONTRAST**2
        if apart.any():
            return colours[apart][0]


def _texture(random: np.random.Generator, colour: np.ndarray) -> Callable[[int, np.random.Generator], np.ndarray]:
    """Draw a pattern about a colour: a function of the image's side and a generator of noise, to (3, H, W)."""
    kind = TEXTURES[random.integers(len(TEXTURES))]
    depth = random.uniform(*DEPTH, (3, 1, 1)) * random.choice([-1, 1])
    period, angle, waves = random.uniform(*PERIODS), random.uniform(0, 2 * np.pi), random.random((5, 3))
    return functools.partial(_fill, kind, colour[:, None, None], depth, period, angle, waves)


def _fill(kind, colour, depth, period, angle, waves, size, noise) -> np.ndarray:
    """Return a pattern of one of TEXTURES at every pixel, (3, H, W)."""
    x = (np.arange(size) + 0.5) / size
    wave = functools.partial(_wave, x / max(period, 3 / size), angle)  # shorter ones would alias
    across, along, _ = waves[0]
    fields = {
        "grain": lambda: noise.standard_normal((size, size), np.float32),
        "gradient": lambda: 2 * (np.cos(angle) * (x - 0.5) + np.sin(angle) * (x - 0.5)[:, None]),
        "stripes": lambda: (2 * wave(0, across)).clip(-1, 1),
        "checks": lambda: (3 * wave(0, across, 0.5) * wave(np.pi / 2, along, 0.5)).clip(-1, 1),
        "dots": lambda: (2 * (wave(0, across) + wave(np.pi / 2, along)) - 1).clip(-1, 1) + 0.3,
        "blotches": lambda: sum(wave(2 * np.pi * turn, start, 0.3 + 0.7 * rate) for turn, start, rate in waves) / 2,
    }
    return (colour + depth * fields[kind]()).astype(np.float32)


def _wave(cycles, angle, turn, start, rate=1) -> np.ndarray:
    """Return sin(a x + b y + c) as a sum of two products, since that is fast; `cycles` are x in periods, (W,)."""
    a, b = (2 * np.pi * rate * one * cycles for one in (np.cos(angle + turn), np.sin(angle + turn)))
    a += 2 * np.pi * start
    return np.sin(a) * np.cos(b)[:, None] + np.cos(a) * np.sin(b)[:, None]


def _scene(random: np.random.Generator, size: int, objects: int, clutter: int) -> tuple[np.ndarray, ...]:
    """Return one image (3, H, W), its labels (K,) and masks (K, H, W)."""
    labels, shapes = _objects(random, objects)
    textures = [_texture(random, colour) for colour in _colours(random, objects + 2)]  # ground, objects, clutter
    layers = [layer for _ in range(clutter) for layer in _clutter(random, shapes)]
    layers += [(*shape, k + 1) for k, shape in enumerate(shapes)]
    fillings = [texture(size, random) for texture in textures]
    image, masks = fillings[0], np.zeros((len(layers), size, size), bool)
    for mask, (figure, place, filling) in zip(masks, layers, strict=True):
        part, share, inside = figure.cover(place, size)
        mask[part] = inside
        image[:, *part] += share * (fillings[filling][:, *part] - image[:, *part])
    image += GRAIN * random.standard_normal(image.shape, np.float32)
    return (image.clip(0, 1) * 255).round().astype(np.uint8), labels, masks[-objects:]
