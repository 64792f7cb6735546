"""Birds: drawn birds on branches with the 15 parts of CUB-200-2011, exact part masks, known discriminative parts.

A species is a choice of one of `COLOURS` and one of `PATTERNS` for each part; left and right are alike. Species come in
families that share these looks, but for three marks of each: parts with a colour that no other of the family has there.
It is one of the family's five colours, so that its birds have much the same colours on the whole. A part is
*discriminative* for a species where its look differs from that of every other species of the family; with three species
or more in a family, these parts are its marks and no others. Nothing else in an image depends on the species.

A bird is some thirty ellipsoids, seen from a random side, so that what is turned away is hidden. Image i depends on the
seed, on i and on the arguments of `draw` alone; the species are the same for all seeds. At another `size` the same seed
gives the same birds, drawn coarser or finer, but for their grain.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from xai_lib import data

PARTS = (  # the order and the names of CUB-200-2011
    *("back", "beak", "belly", "breast", "crown", "forehead", "left eye", "left leg", "left wing", "nape"),
    *("right eye", "right leg", "right wing", "tail", "throat"),
)
HEAD, BODY = ("beak", "crown", "eye", "forehead", "nape", "throat"), ("back", "belly", "breast", "leg", "tail", "wing")
KINDS = (*HEAD, *BODY)  # parts, left and right taken as one
KIND_OF_PART = np.array([KINDS.index(part.split()[-1]) for part in PARTS])
COLOURS = (  # quiet ones, of which a family has three, and others, of which it has two
    *("black", "white", "grey", "brown", "tan", "olive"),
    *("orange", "yellow", "red", "blue", "cyan", "green", "pink", "purple"),
)
PATTERNS, PLAIN = ("plain", "barred", "streaked", "spotted"), ("beak", "eye", "forehead", "leg")  # PLAIN are too small
FAMILY, MARKS = 5, 3  # species of a family, marks of each
_HEX = (
    "14141a f2f0e6 80858c 5c361c c79e66 6b7533 ed7314 f7db2e c71a1a 2145b8 66c2e6 268c33 f294b3 732985"  # COLOURS
    "a8ccee e0ebf2 335429 618040 8cad61 b8c780 755c40 9e8766 c7ad6b 9e8047 859499 5c6b6b"  # grounds, above and below
    "5c422e 807061 3d2e24 408026 739e33 295724 bf8c26 99381f"
)
RGB, GROUNDS, BARK, LEAVES = np.split(np.reshape(list(bytes.fromhex(_HEX)), (-1, 3)) / 255, (14, 26, 29))
SAMPLES = 3  # a pixel is the mean of SAMPLES x SAMPLES points; odd, so that its centre is one of them
LEAST = 0.005  # a part is visible where it has this share of the bird's pixels, a quarter of an eye
MARGIN, LENGTHS = 0.02, (0.62, 0.95)  # least distance to the edge; longer side of the bird: shares of the image's side
PERIOD, GRAIN = 0.17, 0.02  # of a pattern, in lengths of the body; standard deviation of the noise in each pixel
SPLIT_SEEDS, SPLIT_COUNTS = {"train": 1, "test": 2}, {"train": 10_000, "test": 2000}

# The ellipsoids of a bird: name and frame, centre, semi-axes, yaw and pitch in degrees; x is forward, y to the bird's
# left, z up. Those on the left are on the right too. `_plumage` divides torso and head into parts.
_TABLE = """
torso      body     0    0     0  .47 .265 .275   0  0 | torso      body   .14    0  -.01  .32 .272 .285   0  0
torso      body  -.32    0   .03  .32  .17  .17   0  4 | torso      leg      0  .09   .06  .12  .08  .15   0  0
tail       body   -.8    0   .02  .38  .07 .045   0  3 | tail       body  -.77  .05     0  .37  .06 .035  -6  7
left_wing  body   -.1 .215   .04  .42 .085 .185   8  8 | left_wing  body  -.46  .13   .01  .37  .04 .075  10  6
head       lower    0    0     0  .25 .232  .24   0  0 | head       upper    0    0     0 .222 .205 .215   0  0
head       head     0    0     0 .215 .185  .19   0  0 | left_eye   head   .09 .133  .045 .068  .04 .068 -24  0
beak       head    .2    0 -.005   .2 .055  .05   0 -4 | beak       head   .18    0 -.035  .17 .042 .035   0  4
left_leg   leg    .03  .09  -.17 .024 .024  .15   0  0 | left_leg   leg    .09  .12  -.31  .09 .022 .024  20 -8
left_leg   leg    .09  .06  -.31  .09 .022 .024 -20 -8 | left_leg   leg   -.03  .09  -.31  .07 .022 .024   0  8
"""
_ROWS = [row.replace("_", " ", 1).rsplit(None, 9) for row in _TABLE.strip().replace(" | ", "\n").splitlines()]
_ROWS += [[row[0].replace("left", "right"), *row[1:]] for row in _ROWS if float(row[3])]
_TWIG, _LEAF, _TORSO, _HEAD = 15, 16, 17, 18  # materials beside the parts; `_plumage` divides the last two
_MATERIAL = np.array([[*PARTS, "twig", "leaf", "torso", "head"].index(row[0]) for row in _ROWS], np.int8)


@dataclass(frozen=True)
class Species:
    """The truth about S species.

    Attributes
    ----------
    names : tuple of str, number and a mark
    family : int64 tensor (S,), the family of each
    colours, patterns : int64 tensors (S, 15), indices into `COLOURS` and `PATTERNS`; together they are a part's look
    discriminative : bool tensor (S, 15), true where the look differs from that of every other species of the family
    """

    names: tuple[str, ...]
    family: Int64[Tensor, " s"]
    colours: Int64[Tensor, "s 15"]
    patterns: Int64[Tensor, "s 15"]
    discriminative: Bool[Tensor, "s 15"]


@dataclass(frozen=True)
class Birds:
    """Drawn images, one bird in each, and the truth about them.

    Attributes
    ----------
    images : uint8 tensor (N, 3, H, W), values 0 to 255
    labels : int64 tensor (N,), the species
    masks : uint8 tensor (N, H, W), what the centre of the pixel shows: k for `PARTS[k - 1]`, 0 for all but the bird
    parts : float tensor (N, 15, 3), x, y in pixels and visibility (0 or 1), all 0 where hidden: the centre of that
        pixel of the part that is nearest to the mean of them; a part with `LEAST` of the bird's pixels is visible
    boxes : float tensor (N, 4), x0, y0, x1, y1 of what is seen of the bird; the pixel at x 3, y 5 is (3, 5, 4, 6)
    species : Species
    """

    images: UInt8[Tensor, "n 3 h w"]
    labels: Int64[Tensor, " n"]
    masks: UInt8[Tensor, "n h w"]
    parts: Float[Tensor, "n 15 3"]
    boxes: Float[Tensor, "n 4"]
    species: Species


def draw(count: int, size: int = 64, species: int = 200, seed: int = 0, occlusion: float = 0.5) -> Birds:
    """Draw birds.

    Parameters
    ----------
    count : int
        Number of images. The first of them are those of a smaller `count`; each `species` of them show all species.
    size : int
        Side of the images in pixels, 32 or more.
    species, seed : int
        Number of species, 2 or more (see `catalogue`), and a number from 0, which the species do not depend on.
    occlusion : float
        Share of the images that have leaves or a twig before the bird, 0 to 1. It changes nothing else in them.

    Raises
    ------
    ValueError
        An argument is out of its range.
    """
    for name, value, least in (("count", count, 1), ("size", size, 32), ("species", species, 2), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}; got {value}")
    if not 0 <= occlusion <= 1:
        raise ValueError(f"occlusion must lie between 0 and 1; got {occlusion}")
    known = catalogue(species)
    orders = [np.random.default_rng([seed, k, 1]).permutation(species) for k in range(-(-count // species))]
    labels = np.concatenate(orders)[:count]
    images, masks = np.empty((count, 3, size, size), np.uint8), np.empty((count, size, size), np.uint8)
    parts, boxes = np.empty((count, len(PARTS), 3), np.float32), np.empty((count, 4), np.float32)
    for i, looks in enumerate(torch.stack([known.colours, known.patterns], 1).numpy()[labels]):
        images[i], masks[i] = _picture(np.random.default_rng([seed, i]), size, *looks, occlusion)
        parts[i], boxes[i] = _points(masks[i])
    return Birds(*map(torch.from_numpy, (images, labels, masks, parts, boxes)), known)


def image_set(split: str, size: int = 64, limit: int | None = None, species: int = 200) -> data.ImageSet:
    """Return birds as a labelled set with parts, boxes and masks of the whole bird; see `data.load` and `draw`.

    The splits are drawn from different seeds; `limit` is 10,000 for training and 2,000 for testing where it is None.

    Raises
    ------
    ValueError
        Unknown split, or a number that is too small.
    """
    if split not in data.SPLITS:
        raise ValueError(f"split must be one of {', '.join(data.SPLITS)}; got {split!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1; got {limit}")
    count = limit or SPLIT_COUNTS[split]
    made = draw(count, size, species, SPLIT_SEEDS[split])
    name = f"birds/{split}" + f"[{species} species]" * (species != 200) + f"@{size}" * (size != 64)
    name += f"[{count}]" * (count != SPLIT_COUNTS[split])
    truth = {"boxes": made.boxes, "parts": made.parts, "masks": made.masks > 0}
    return data.ImageSet(made.images, made.labels, made.species.names, name, **truth)


@functools.cache
def catalogue(species: int) -> Species:
    """Return species in families of `FAMILY`, the same ones for any number; those left over join the last family.

    Raises
    ------
    ValueError
        `species` is below 2.
    """
    if species < 2:
        raise ValueError(f"species must be at least 2; got {species}")
    family = np.minimum(np.arange(species) // FAMILY, max(species // FAMILY, 1) - 1)
    looks, unique, marks = map(np.concatenate, zip(*map(_family, *np.unique(family, return_counts=True)), strict=True))
    names = (f"{s + 1:03d}.{COLOURS[looks[s, k, 0]]}_{KINDS[k]}".title() for s, k in enumerate(marks))
    tables = family, *np.moveaxis(looks[:, KIND_OF_PART], 2, 0).copy(), unique[:, KIND_OF_PART]
    return Species(tuple(names), *map(torch.from_numpy, tables))


def _family(number: np.integer, size: np.integer) -> tuple[np.ndarray, ...]:
    """Return looks (size, 12, 2) of the kinds of parts, where they are unique (size, 12), a mark (size,) of each."""
    random = np.random.default_rng([0, number, 2])
    palette = np.append(random.permutation(6)[:3], 6 + random.permutation(8)[:2])
    most = np.array([1 if kind in PLAIN else len(PATTERNS) for kind in KINDS])
    common = random.choice(palette, len(KINDS)), random.integers(-2, most).clip(0)  # half of the parts have no pattern
    looks = np.tile(np.stack(common, 1), (size, 1, 1))
    # Marks are dealt like cards, of the head and of the body in turn.
    deck = np.stack([random.permutation(len(HEAD)), len(HEAD) + random.permutation(len(BODY))], 1).ravel()
    hands = deck[np.arange(size * MARKS) % len(deck)].reshape(size, MARKS)
    for s, k in zip(np.arange(size).repeat(MARKS), hands.ravel(), strict=True):
        looks[s, k] = random.choice(np.setdiff1d(palette, looks[:, k, 0])), random.integers(-2, most[k]).clip(0)
    return looks, (looks[:, None] == looks).all(-1).sum(1) == 1, hands[:, 0]


def _points(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the points (15, 3) and the box (4,) of a map of parts (H, W); see `Birds`."""
    rows, columns = np.nonzero(mask)
    part = mask[rows, columns]
    count = np.bincount(part, minlength=1 + len(PARTS))
    x, y = (np.bincount(part, along, len(count)) / np.maximum(count, 1) for along in (columns, rows))
    order = np.lexsort(((columns - x[part]) ** 2 + (rows - y[part]) ** 2, part))
    nearest = order[(count.cumsum() - count)[1:].clip(max=len(order) - 1)]
    points = np.stack([columns[nearest] + 0.5, rows[nearest] + 0.5, np.ones(len(PARTS))], 1)
    box = np.array([columns.min(), rows[0], columns.max() + 1, rows[-1] + 1])
    return points * (count[1:, None] >= LEAST * len(part)), box


def _rotation(axis: int, angle) -> np.ndarray:
    """Return matrices (..., 3, 3) that turn by angles (...) about axis 0, 1 or 2."""
    cross, angle = np.cross(np.eye(3)[axis], np.eye(3)).T, np.asarray(angle)[..., None, None]
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _solids(centre: np.ndarray, turn: np.ndarray, radii, unit) -> np.ndarray:
    """Return ellipsoids (E, 3, 8); columns: centre, three semi-axes; origin and three units of the pattern on it."""
    return np.concatenate([centre[..., None], turn * np.asarray(radii)[:, None], centre[..., None], turn * unit], 2)


def _ends(solids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the largest x, y of each solid, (E, 2)."""
    reach = np.sqrt((solids[:, :2, 1:4] ** 2).sum(-1))
    return solids[:, :2, 0] - reach, solids[:, :2, 0] + reach


_CENTRES, _RADII, _ANGLES = np.split(np.array([row[2:] for row in _ROWS], float), (3, 6), 1)
_CENTRES[18:, 1], _ANGLES[18:, 0] = -_CENTRES[18:, 1], -_ANGLES[18:, 0]  # those on the right
_OWN = _rotation(2, np.radians(_ANGLES[:, 0])) @ _rotation(1, -np.radians(_ANGLES[:, 1]))
_TEMPLATE, _SHARED = _solids(_CENTRES, _OWN, _RADII, 1), _MATERIAL >= _TORSO
_TEMPLATE[_SHARED, :, 4:] = np.eye(3, 4, 1)  # the pattern runs on over the torso, and over the head
_FRAME = np.array([("body", "leg", "lower", "upper", "head").index(row[1]) for row in _ROWS])
_PATTERN = np.where(_SHARED, np.where(_MATERIAL == _HEAD, 4, 0), _FRAME)


def _bird(angles: np.ndarray, grown: np.ndarray | float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return a bird of body length 1 about the origin, its semi-axes times `grown`, and what its feet stand on (3,)."""
    yaw, pitch, head_yaw, head_pitch, elevation, lean = angles  # yaw 0: to the right; elevation of the viewer
    view = _rotation(2, lean) @ _rotation(0, elevation) @ [[1, 0, 0], [0, 0, -1], [0, -1, 0]] @ _rotation(2, yaw)
    body, head = _rotation(1, -pitch), _rotation(2, head_yaw) @ _rotation(1, -head_pitch)
    leg, neck, top = np.array([[-0.02, 0, -0.20], [0.20, 0, 0.08], [0.31, 0, 0.17]]) @ body.T
    top += [0.06, 0, 0.17]
    frames = np.stack([body, np.eye(3), head, head, head])
    origins = np.stack([0 * leg, leg, 0.7 * neck + 0.3 * top, 0.35 * neck + 0.65 * top, top])
    bird = np.concatenate([frames[_FRAME] @ _TEMPLATE[..., :4], frames[_PATTERN] @ _TEMPLATE[..., 4:]], 2)
    bird[..., [0, 4]] += np.stack([origins[_FRAME], origins[_PATTERN]], 2)
    bird[..., 1:4] *= grown
    return view @ bird, view @ (leg + [0.04, 0, -0.335])


def _perched(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Draw a bird somewhere inside the image; return it, what its feet stand on (3,), the length of its body."""
    turned = (random.standard_normal(2) * [30, 25]).clip([-75, -60], [75, 60])
    pitch, *others = random.uniform([0, -15, -6, -8], [45, 15, 12, 8])
    angles = np.radians([turned[0] + 180 * random.integers(2), pitch, turned[1], *others])
    bird, feet = _bird(angles, random.uniform(0.94, 1.06, (len(_ROWS), 1, 3)))
    low, high = _ends(bird)[0].min(0), _ends(bird)[1].max(0)
    scale = random.uniform(*LENGTHS) / (high - low).max()
    move = np.append(MARGIN - scale * low + random.random(2) * (1 - 2 * MARGIN - scale * (high - low)), 0)
    bird *= scale
    bird[..., [0, 4]] += move[:, None]
    return bird, scale * feet + move, scale


def _leaves(random: np.random.Generator, stems: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return leaves of lengths between two that hang on places (E, 3)."""
    angle, tilt = random.uniform([[0], [-1]], [[7], [1]], (2, len(stems)))
    turn, length = _rotation(2, angle) @ _rotation(0, tilt), random.uniform(low, high, (len(stems), 1))
    radii = length * random.uniform([1, 0.3, 0.15], [1, 0.5, 0.15], (len(stems), 3))
    return _solids(stems + 0.7 * length * turn[..., 0], turn, radii, length[..., None])


def _twig(random: np.random.Generator, place: np.ndarray, width: float, angle: float, count: int) -> np.ndarray:
    """Return the pieces of a crooked twig, the middle one at a place (3,)."""
    turn = _rotation(2, angle + random.normal(0, 0.12, count).cumsum())
    centre = 0.45 * (turn.cumsum(0) - turn / 2)[..., 0]
    radii = random.uniform([0.33, 0.85 * width, width], [0.33, 1.15 * width, width], (count, 3))
    return _solids(centre + place - centre[count // 2], turn, radii, 3 * width)


def _scenery(random, front, bird: np.ndarray, feet: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return twigs, the bird's branch among them, and leaves; if there is a generator `front`, some hide the bird."""
    width = scale * random.uniform(0.045, 0.08)
    twigs = [_twig(random, feet + [0, width, 0], width, random.normal(0, 0.2), 5)]
    for x, y, width, angle in random.uniform([0, 0, 0.006, -1.5], [1, 1, 0.018, 1.5], (random.integers(1, 4), 4)):
        twigs.append(_twig(random, np.array([x, y, -2]), width, angle, 3))
    chosen = np.concatenate(twigs)[random.integers(3 * len(twigs) + 2, size=random.integers(6, 20))]
    stems = chosen[..., 0] + random.uniform(-0.75, 0.75, (len(chosen), 1)) * chosen[..., 1]
    leaves = [_leaves(random, stems * [1, 1, 0] - [0, 0, 1], 0.04, 0.10)]
    if front is not None:
        hidden = bird[front.integers(len(bird), size=front.integers(1, 4)), :, 0] * [1, 1, 0] + [0, 0, 1]
        if front.random() < 0.4:
            twigs.append(_twig(front, hidden[0], front.uniform(0.015, 0.03), front.uniform(-1.5, 1.5), 3))
        else:
            leaves.append(_leaves(front, hidden, 0.12 * scale, 0.22 * scale))
    return np.concatenate(twigs), np.concatenate(leaves)


def _cast(solids: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
    """Find the points of a grid that show a solid: row, column, solid (M,), place on its pattern, direction (3, M).

    Where z' B z = 1 is solved for z along a line of sight, there is a plane plus the root of a quadratic form.
    """
    fine, b = size * SAMPLES, np.linalg.inv(solids[..., 1:4] @ solids[..., 1:4].transpose(0, 2, 1))
    axis = (np.arange(fine, dtype=np.float32) + 0.5) / fine
    start, stop = ((end * fine + 0.5).clip(0, fine).astype(int).tolist() for end in _ends(solids))
    x, y = axis - solids[:, :2, :1].swapaxes(0, 1).astype(np.float32)
    xx, xy, xz, yy, yz, zz = b[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]].T[..., None].astype(np.float32)
    across = np.stack([(1 - (xx - xz**2 / zz) * x**2) / zz, solids[:, 2, :1] - xz / zz * x, x], 1).astype(np.float32)
    down = np.stack([(yy - yz**2 / zz) * y**2 / zz, yz / zz * y, 2 * (xz * yz / zz - xy) * y / zz], 1)
    depth, owner = np.full((fine, fine), -np.inf, np.float32), np.zeros((fine, fine), np.uint8)
    with np.errstate(invalid="ignore"):  # beside a solid there is no root, and no comparison with it is true
        for k, ((left, top), (right, bottom)) in enumerate(zip(start, stop, strict=True)):
            here = slice(top, bottom), slice(left, right)
            (square, plane, x), (less, lower, y) = across[k, :, here[1]], down[k, :, here[0], None]
            height = np.sqrt(x * y + square - less) + plane - lower
            nearer = height > depth[here]
            np.copyto(depth[here], height, where=nearer)
            np.copyto(owner[here], k + 1, where=nearer)
    row, column = np.nonzero(owner > 0)
    order = np.argsort(owner[row, column], kind="stable")
    row, column = row[order], column[order]
    solid, place = owner[row, column] - 1, np.stack([axis[column], axis[row], depth[row, column]])
    maps = np.concatenate([np.linalg.inv(solids[..., 5:]), b], 1)
    shift = np.concatenate([maps[:, :3] @ solids[..., 4:5], b @ solids[..., :1]], 1).astype(np.float32)
    maps, found = maps.astype(np.float32), np.empty((6, len(solid)), np.float32)
    ends = np.searchsorted(solid, np.arange(len(maps) + 1)).tolist()
    for k, here in enumerate(map(slice, ends[:-1], ends[1:])):
        found[:, here] = maps[k] @ place[:, here] - shift[k]
    return row, column, solid, found[:3], found[3:] / np.sqrt((found[3:] ** 2).sum(0))


def _plumage(material: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Divide torso and head into parts by the place in their frame."""
    back, belly, breast, crown, forehead, nape, throat = np.array([0, 2, 3, 4, 5, 9, 14], np.int8)
    along, _, up = place
    lean = along + 0.4 * up
    torso = np.where(up > 0.11, back, np.where(lean > 0.08, breast, belly))
    below = np.where(along < 0.4 * np.minimum(up, 0) - 0.05, nape, throat)
    head = np.where((up > 0.05) & (lean > -0.08), np.where(along > 0.085, forehead, crown), below)
    return np.where(material < _TORSO, material, np.where(material == _TORSO, torso, head))


def _paint(random: np.random.Generator, colours, patterns, material, place, shade) -> np.ndarray:
    """Return the colour (3, M) of points of a bird with the looks of a species, of twigs and leaves."""
    one = np.vstack([RGB[colours], random.choice(BARK, 1), random.choice(LEAVES, 1)]) + random.normal(0, 0.03, (17, 3))
    two = np.where(one.mean(1, keepdims=True) > 0.33, 0.35 * one, 0.4 * one + 0.5)
    two[-2:], two[[6, 10]], patterns = 0.75 * one[-2:], 0.03, np.append(patterns, [2, 5])
    patterns[[6, 10]] = 4  # the pupils of the eyes
    one, two = (paint.T.astype(np.float32).take(material, 1) for paint in (one, two))
    along, across, up = place
    bars, streaks = (np.sin(np.float32(2 * np.pi / PERIOD) * a) for a in (along, up + abs(across)))
    pupil, rib = 1 - 30 * np.hypot(along, up), 0.6 - 30 * abs(across)
    field = np.choose(patterns[material], [np.float32(-1), bars, streaks, bars + streaks - 0.8, pupil, rib])
    quills = np.flatnonzero((material == 8) | (material == 12) | (material == 13))  # of wings and tail
    shade[quills] -= 0.16 * (4 * np.sin(np.float32(2 * np.pi / 0.07) * up[quills]) - 3).clip(0, 1)
    return shade * (one + (3 * field + 0.5).clip(0, 1) * (two - one))


def _ground(random: np.random.Generator, size: int) -> np.ndarray:
    """Return a ground out of focus (3, H, W): two colours, waves, soft discs."""
    above, below = random.choice(GROUNDS.reshape(-1, 2, 3)) + random.normal(0, 0.04, (2, 3))
    tints = random.normal(0, 0.04, 5) + random.normal(0, 0.015, (3, 5))
    x = (np.arange(size, dtype=np.float32) + 0.5) / size
    y = x[:, None]
    waves = random.normal(0, 4, (5, 4)).astype(np.float32)
    bend = 0.4 * (np.sin(4 * x + waves[0, 0]) + np.sin(5 * y + waves[0, 1]))
    fields = [1 + 0 * x + 0 * y, y + 0 * x, *(np.sin(2 * a * x + b * bend + 2 * c * y + 9 * d) for a, b, c, d in waves)]
    image = np.tensordot(np.column_stack([above, below - above, tints]).astype(np.float32), np.stack(fields), 1)
    discs = random.uniform([0, 0, 0.04, 0.2], [1, 1, 0.16, 0.6], (random.integers(6), 4)).astype(np.float32)
    for across, down, radius, strength in discs:
        colour = (random.choice(GROUNDS) + random.normal(0, 0.1, 3)).astype(np.float32)
        soft = strength * (4 - 4 / radius * np.hypot(x - across, y - down)).clip(0, 1)
        image += soft * (colour[:, None, None] - image)
    return image


def _picture(random: np.random.Generator, size: int, colours, patterns, occlusion: float) -> tuple[np.ndarray, ...]:
    """Return one image (3, H, W) and its map of parts (H, W)."""
    noise, front = random.spawn(2)
    bird, feet, scale = _perched(random)
    twigs, leaves = _scenery(random, front if front.random() < occlusion else None, bird, feet, scale)
    row, column, solid, place, facing = _cast(np.concatenate([bird, twigs, leaves]), size)
    others = np.repeat(np.array([_TWIG, _LEAF], np.int8), [len(twigs), len(leaves)])
    material = _plumage(np.append(_MATERIAL, others)[solid], place)
    light = np.array([random.uniform(-0.6, 0.6), -1, 0.7], np.float32)
    shade = 0.52 + 0.5 / np.linalg.norm(light) * np.maximum(light @ facing, 0)
    gain = random.uniform(0.65, 1.2) * random.uniform(0.9, 1.1, (3, 1, 1)).astype(np.float32)
    colour = _paint(random, colours, patterns, material, place, shade)
    pixel = row // SAMPLES * size + column // SAMPLES
    total = np.stack([np.bincount(pixel, one, size**2) for one in [*colour, None]]).reshape(4, size, size) / SAMPLES**2
    image = gain * total[:3] + (1 - total[3]) * _ground(random, size)
    image += GRAIN * noise.standard_normal(image.shape, np.float32)
    seen = (row % SAMPLES == SAMPLES // 2) & (column % SAMPLES == SAMPLES // 2) & (material < len(PARTS))
    mask = np.zeros(size**2, np.uint8)
    mask[pixel[seen]] = material[seen] + 1
    return (image * 255 + 0.5).clip(0, 255).astype(np.uint8), mask.reshape(size, size)
