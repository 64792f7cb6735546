import math

import pytest
import torch

from xai_lib import birds, parts

NAN = float("nan")
DISTANCES = ["region", "box", "none"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_case(images=3, units=4, count=5, height=9, width=11, seed=0):
    """Maps, labels with one hidden in each image (at no place), boxes that cut through pixels."""
    maps = torch.rand(images, units, height, width, generator=seeded(seed)) ** 4
    maps /= maps.sum((2, 3), keepdim=True)
    labels = torch.rand(images, count, 3, generator=seeded(seed + 1)) * torch.tensor([width, height, 1])
    labels[torch.arange(images), torch.arange(images) % count] = torch.tensor([NAN, -99, 0])
    draw = torch.rand(images, 4, generator=seeded(seed + 2))
    boxes = torch.stack([3 * draw[:, 0], 3 * draw[:, 1], width - 3 * draw[:, 2], height - 3 * draw[:, 3]], 1)
    return maps, labels, boxes


def slow_regions(labels, box, height, width):
    """One image: the part and the distance of each pixel, and a list of the pixels of each part, loop by loop."""
    graphs, far = [[] for _ in range(len(labels) + 1)], {}
    x0, y0, x1, y1 = box
    for i in range(height):
        for j in range(width):
            nearest, least = len(labels), math.inf
            for p, (x, y, seen) in enumerate(labels):
                d = math.sqrt((i + 0.5 - y) ** 2 + (j + 0.5 - x) ** 2) if seen > 0 else math.inf
                if d < least:
                    nearest, least = p, d
            inside = x0 <= j + 0.5 < x1 and y0 <= i + 0.5 < y1
            graphs[nearest if inside else len(labels)].append((i, j))
            far[i, j] = least
    return graphs, far


def slow_voronoi(maps, labels, boxes, distance, context):
    """Algorithm 1, line by line, in float64."""
    found = torch.zeros(len(maps), maps.shape[1], labels.shape[1] + 1, dtype=torch.float64)
    for m, (one, label, box) in enumerate(zip(maps.tolist(), labels.tolist(), boxes.tolist(), strict=True)):
        graphs, far = slow_regions(label, box, *maps.shape[2:])
        for n, S in enumerate(one):
            for p, graph in enumerate(graphs[:-1]):
                largest = max((far[pixel] for pixel in graph), default=0)
                by = {"region": largest, "box": math.hypot(box[2] - box[0], box[3] - box[1]), "none": math.inf}[
                    distance
                ]
                for i, j in graph:
                    found[m, n, p] += (1 - min(far[i, j] / by if by else 0, 1)) * S[i][j]
            found[m, n, -1] = context * sum(S[i][j] for i, j in graphs[-1])
    return found


def slow_histogram(probabilities, kept, seen):
    rows = []
    for t in range(probabilities.shape[1]):
        row = []
        for p in range(probabilities.shape[2]):
            values = [
                probabilities[n, t, p].item()
                for n in range(len(probabilities))
                if (kept is None or kept[n, t]) and (seen is None or seen[n, p])
            ]
            row.append(sum(values) / len(values) if values else 0)
        rows.append([one / sum(row) if sum(row) else NAN for one in row])
    return torch.tensor(rows, dtype=torch.float64)


def same(found, expected, atol=1e-6):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected, atol=atol, rtol=0, equal_nan=True)


# the toy: 3 x 6 pixels, its last column outside the box, labels at the centres of columns 0 and 3 of the middle row


TOY = torch.tensor([[[0.5, 1.5, 1], [3.5, 1.5, 1], [2.5, 1.5, 0]]])
TOY_BOX = torch.tensor([[0.0, 0, 5, 3]])


def test_regions_by_hand():
    expected = torch.tensor([[[0, 0, 1, 1, 1, 3]] * 3])
    assert torch.equal(parts.regions(TOY, TOY_BOX, (3, 6)), expected)
    assert torch.equal(
        parts.regions(TOY + torch.tensor([1.0, 0, 0]), TOY_BOX, (3, 6))[0, 1], torch.tensor([0, 0, 0, 1, 1, 3])
    )


def test_of_labels_equally_near_the_first_wins():
    labels = torch.tensor([[[2.5, 0.5, 0], [4.5, 0.5, 1], [0.5, 0.5, 1], [0.5, 0.5, 1]]])
    assert parts.regions(labels, torch.tensor([[0.0, 0, 5, 1]]), (1, 5)).tolist() == [[[2, 2, 1, 1, 1]]]


def test_a_pixel_is_inside_by_its_centre():
    inside = parts.regions(TOY[:, :1], torch.tensor([[0.5, 1.5, 2.5, 2.5]]), (3, 4))[0] == 0
    assert inside.tolist() == [[False] * 4, [True, True, False, False], [False] * 4]
    assert parts.regions(TOY[:, :1], torch.tensor([[0.6, 0.6, 0.9, 0.9]]), (3, 4)).eq(1).all(), "between the centres"


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        # three maps: all at row 0, column 1, at distance root 2, the largest of its region; half there, half at row 2,
        # column 3, at distance 1 of root 2; half at a label, half outside the box
        ("region", [[0, 0, 0, 0], [0, 0.5 - 0.5 / math.sqrt(2), 0, 0], [0.5, 0, 0, 0.5]]),
        (
            "box",
            [[1 - math.sqrt(2 / 34), 0, 0, 0], [0.5 - math.sqrt(0.5 / 34), 0.5 - 0.5 / math.sqrt(34), 0, 0]]
            + [[0.5, 0, 0, 0.5]],
        ),
        ("none", [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.5, 0, 0, 0.5]]),
    ],
)
def test_voronoi_by_hand(distance, expected):
    maps = torch.zeros(1, 3, 3, 6)
    maps[0, 0, 0, 1] = 1
    maps[0, 1, 0, 1] = maps[0, 1, 2, 3] = 0.5
    maps[0, 2, 1, 0] = maps[0, 2, 1, 5] = 0.5
    same(parts.voronoi(maps, TOY, TOY_BOX, distance=distance), [expected])
    expected[2] = [0.5, 0, 0, 0.125]
    same(parts.voronoi(maps, TOY, TOY_BOX, distance=distance, context=0.25), [expected])


# against the slow forms


def test_regions_are_the_slow_form():
    maps, labels, boxes = random_case()
    found = parts.regions(labels, boxes, (9, 11))
    assert found.dtype == torch.int64
    for one, label, box in zip(found, labels.tolist(), boxes.tolist(), strict=True):
        for p, graph in enumerate(slow_regions(label, box, 9, 11)[0]):
            assert {tuple(pixel) for pixel in (one == p).nonzero().tolist()} == set(graph)


@pytest.mark.parametrize("context", [1, 0.3, 0])
@pytest.mark.parametrize("distance", DISTANCES)
def test_voronoi_is_the_slow_form(distance, context):
    case = random_case()
    expected = slow_voronoi(*case, distance, context)
    assert expected[:, :, :-1].count_nonzero() >= 40, "most regions have pixels"
    same(parts.voronoi(*case, distance=distance, context=context), expected)
    double = [one.double() for one in case]
    same(parts.voronoi(*double, distance=distance, context=context), expected, atol=1e-12)


def test_defaults_are_the_region_and_the_whole_context():
    case = random_case()
    same(parts.voronoi(*case), slow_voronoi(*case, "region", 1))


def test_labels_outside_the_box_keep_the_factor_at_0_or_more():
    maps, labels, _ = random_case()
    boxes = torch.tensor([[0.0, 0, 2, 1]]).expand(3, 4)
    for distance in DISTANCES:
        found = parts.voronoi(maps, labels, boxes, distance=distance)
        assert found.min() >= 0
        same(found, slow_voronoi(maps, labels, boxes, distance, 1))


def test_at_labels_is_the_pixel_that_holds_the_label():
    maps, labels, _ = random_case()
    expected = torch.zeros(3, 4, 5)
    for m, label in enumerate(labels.tolist()):
        for p, (x, y, seen) in enumerate(label):
            if seen > 0:
                expected[m, :, p] = maps[m, :, math.floor(y), math.floor(x)]
    assert torch.equal(parts.at_labels(maps, labels), expected)
    corner = torch.tensor([[[10.999, 8.999, 1], [0, 0, 1]]]).expand(3, 2, 3)
    assert torch.equal(parts.at_labels(maps, corner), maps[:, :, [8, 0], [10, 0]])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_in_masks_is_the_slow_form(dtype):
    maps = random_case()[0]
    masks = torch.randint(0, 4, (3, 9, 11), generator=seeded(5)).to(dtype)
    found = parts.in_masks(maps, masks, 4)
    for m, n in ((m, n) for m in range(3) for n in range(4)):
        row = [0.0] * 5
        for k, value in zip(masks[m].flatten().tolist(), maps[m, n].flatten().tolist(), strict=True):
            row[k - 1 if k else 4] += value
        same(found[m, n], row)
    assert not found[:, :, 3].any(), "no image shows it"


def cases_of_histogram():
    kept = torch.tensor([[1, 1, 0, 1], [0, 1, 0, 1], [1, 1, 0, 0]]).bool()
    seen = torch.tensor([[1, 0, 0, 1, 1, 1], [1, 1, 0, 1, 0, 1], [0, 1, 0, 1, 1, 1]]).bool()
    return [(None, None), (kept, None), (None, seen), (kept, seen)]


@pytest.mark.parametrize(("kept", "seen"), cases_of_histogram(), ids=["all", "kept", "seen", "both"])
def test_histogram_is_the_slow_form(kept, seen):
    probabilities = torch.rand(3, 4, 6, generator=seeded()) * 0.2
    found = parts.histogram(probabilities, kept, seen)
    same(found, slow_histogram(probabilities, kept, seen), atol=1e-12)
    same(found.sum(1), [1, 1, 1 if kept is None else NAN, 1], atol=1e-12)


def test_histogram_by_hand():
    probabilities = torch.tensor([[[0.4, 0.0, 0.2], [0, 0, 0]], [[0.0, 0.2, 0.2], [0, 0, 0]]])
    same(parts.histogram(probabilities), [[0.4, 0.2, 0.4], [NAN] * 3])
    seen = torch.tensor([[True, False, True], [False, True, True]])
    same(parts.histogram(probabilities, seen=seen), [[0.5, 0.25, 0.25], [NAN] * 3])
    kept = torch.tensor([[True, True], [False, True]])
    same(parts.histogram(probabilities, kept), [[2 / 3, 0, 1 / 3], [NAN] * 3])


def test_locality_is_the_slow_form_and_the_same_for_any_scale():
    rows = torch.rand(2, 5, 16, generator=seeded(), dtype=torch.float64) ** 3
    expected = [[-sum(v / sum(row) * math.log(v / sum(row)) for v in row) for row in some] for some in rows.tolist()]
    same(parts.locality(rows), expected, atol=1e-12)
    same(parts.locality(rows * 7, base=2), torch.tensor(expected, dtype=torch.float64) / math.log(2), atol=1e-12)


def test_locality_at_its_ends():
    rows = torch.tensor([[0, 1.0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.5, 0, 0, 0.5], [NAN] * 4, [0, 0, 0, 0]])
    same(parts.locality(rows, base=2), [0, 2, 1, NAN, NAN])
    assert parts.locality(rows)[0] == 0, "exactly"
    assert parts.locality(rows[1]).item() == pytest.approx(math.log(4))


def test_count_above_by_hand():
    rows = torch.tensor([[0.25, 0.125, 0.125, 0.5], [1, 0, 0, 0], [0, 0, 0, 1.0], [NAN] * 4, [0, 0, 0, 0]])
    same(parts.count_above(rows, 0.25), [1, 1, 0, NAN, NAN])
    same(parts.count_above(rows, 0.125), [3, 1, 0, NAN, NAN])
    same(parts.count_above(rows, 0.125, last_is_context=False), [4, 1, 1, NAN, NAN])
    same(parts.count_above(rows[None] * 8, 0.25, last_is_context=False), [[2, 1, 1, NAN, NAN]])


# invariants


def test_plain_regions_share_the_whole_map():
    case = random_case(seed=3)
    case[0][1, 2] = 0
    same(parts.voronoi(*case, distance="none").sum(2), case[0].sum((2, 3)))
    for distance in ("region", "box"):
        assert (parts.voronoi(*case, distance=distance) <= parts.voronoi(*case, distance="none") + 1e-7).all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_permuted_parts_permute_the_result(distance):
    maps, labels, boxes = random_case(seed=4)
    order = torch.tensor([3, 0, 4, 2, 1])
    found = parts.voronoi(maps, labels, boxes, distance=distance)
    same(parts.voronoi(maps, labels[:, order], boxes, distance=distance), found[:, :, [*order, -1]], atol=1e-7)


def test_a_batch_is_its_images_and_units_one_by_one():
    maps, labels, boxes = random_case(seed=5)
    for n in range(3):
        alone = parts.voronoi(maps[n : n + 1, 1:2], labels[n : n + 1], boxes[n : n + 1])
        same(parts.voronoi(maps, labels, boxes)[n : n + 1, 1:2], alone)


@pytest.mark.parametrize("distance", DISTANCES)
def test_rows_and_columns_are_alike(distance):
    maps, labels, boxes = random_case(seed=6)
    turned = maps.mT, labels[:, :, [1, 0, 2]], boxes[:, [1, 0, 3, 2]]
    same(parts.voronoi(*turned, distance=distance), parts.voronoi(maps, labels, boxes, distance=distance))


# degenerate cases


@pytest.mark.parametrize("distance", DISTANCES)
def test_an_empty_map_gives_zeros(distance):
    maps, labels, boxes = random_case()
    assert not parts.voronoi(0 * maps, labels, boxes, distance=distance).any()
    assert not parts.at_labels(0 * maps, labels).any()
    assert not parts.in_masks(0 * maps, torch.ones(3, 9, 11, dtype=torch.uint8), 2).any()


def test_a_region_of_one_pixel_counts_only_with_the_label_at_its_centre():
    box, maps = torch.tensor([[1.0, 1, 2, 2]]), torch.ones(1, 1, 3, 3) / 9
    same(parts.voronoi(maps, torch.tensor([[[1.5, 1.5, 1]]]), box), [[[1 / 9, 8 / 9]]])
    same(parts.voronoi(maps, torch.tensor([[[1.4, 1.5, 1]]]), box), [[[0, 8 / 9]]])


# the drawn birds


@pytest.fixture(scope="module")
def drawn():
    return birds.draw(4, 32, seed=3)


def test_masks_of_birds_share_the_whole_map(drawn):
    maps = random_case(4, 3, height=32, width=32)[0]
    found = parts.in_masks(maps, drawn.masks, len(birds.PARTS))
    assert found.shape == (4, 3, 16)
    same(found.sum(2), torch.ones(4, 3))
    same(found[:, :, -1], (maps * (drawn.masks == 0)[:, None]).sum((2, 3)))


def test_a_map_at_the_labels_of_birds_is_found_by_each_measure(drawn):
    """One unit for each part, its map the pixel of the label, whose centre the label is."""
    maps = torch.zeros(4, 15, 32, 32)
    image, part = (drawn.parts[:, :, 2] > 0).nonzero(as_tuple=True)
    x, y, _ = drawn.parts[image, part].long().T
    maps[image, part, y, x] = 1
    expected = torch.diag_embed(drawn.parts[:, :, 2])
    assert torch.equal(parts.at_labels(maps, drawn.parts), expected)
    assert torch.equal(parts.in_masks(maps, drawn.masks, 15)[:, :, :-1], expected)
    for distance in DISTANCES:
        assert torch.equal(parts.voronoi(maps, drawn.parts, drawn.boxes, distance=distance)[:, :, :-1], expected)


def test_voronoi_of_birds_is_the_slow_form(drawn):
    """Labels at the centres of pixels, where many are equally near."""
    maps = random_case(4, 2, height=32, width=32)[0]
    case = maps, drawn.parts, drawn.boxes
    same(parts.voronoi(*case), slow_voronoi(*case, "region", 1))


# errors


def changed(place, value):
    """The boxes or labels of a case of two images, one entry of them changed."""
    labels, boxes = torch.tensor([[[1.0, 2, 1]], [[3, 1, 1]]]), torch.tensor([[0.0, 0, 4, 3]] * 2)
    (labels if len(place) == 3 else boxes)[place] = value
    return labels, boxes


MAPS = torch.ones(2, 1, 3, 4) / 12
GOOD = changed((0, 0, 0), 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.voronoi(MAPS[0], *GOOD), r"maps must be float \(N, T, H, W\); got torch.float32 \(1, 3, 4\)"),
        (lambda m: m.voronoi(MAPS.int(), *GOOD), r"maps must be float .*; got torch.int32 \(2, 1, 3, 4\)"),
        (lambda m: m.voronoi(MAPS[:, :0], *GOOD), r"maps must be float .*; got torch.float32 \(2, 0, 3, 4\)"),
        (lambda m: m.voronoi(MAPS[:1], *GOOD), "parts must be one per image of maps, 1; got 2"),
        (lambda m: m.voronoi(MAPS, GOOD[0][..., :2], GOOD[1]), r"parts must be \(N, P, 3\); got \(2, 1, 2\)"),
        (lambda m: m.voronoi(MAPS, GOOD[0], GOOD[1][:1]), r"boxes must be \(2, 4\), as parts are; got \(1, 4\)"),
        (lambda m: m.voronoi(MAPS - 0.5, *GOOD), "maps must not be negative; got -0.41"),
        (lambda m: m.voronoi(MAPS * NAN, *GOOD), "maps must not be negative; got nan"),
        (lambda m: m.voronoi(MAPS, *GOOD, distance="l2"), "distance must be one of region, box, none; got 'l2'"),
        (lambda m: m.voronoi(MAPS, *GOOD, context=1.5), "context must lie between 0 and 1; got 1.5"),
        (lambda m: m.voronoi(MAPS, *GOOD, context=NAN), "context must lie between 0 and 1; got nan"),
        (lambda m: m.voronoi(MAPS, *changed((1, 0, 2), 0)), "parts must not all be hidden in an image; got image 1"),
        (lambda m: m.at_labels(MAPS, changed((1, 0, 2), 0)[0]), "parts must not all be hidden .*; got image 1"),
        (lambda m: m.voronoi(MAPS, *changed((1, 0, 1), NAN)), r"visible must be finite; got \[3.0, nan, 1.0\]"),
        (lambda m: m.regions(*changed((1, 2), 0), (3, 4)), r"boxes must have an area; got \[0.0, 0.0, 0.0, 3.0\]"),
        (lambda m: m.regions(*changed((0, 3), NAN), (3, 4)), r"boxes must have an area; got \[0.0, 0.0, 4.0, nan\]"),
        (lambda m: m.at_labels(MAPS, changed((1, 0, 0), 4)[0]), r"lie in the image, 3 x 4; got \[4.0, 1.0, 1.0\]"),
        (lambda m: m.at_labels(MAPS, changed((1, 0, 1), -0.1)[0]), r"lie in the image, 3 x 4; got \[3.0, -0.1"),
        (lambda m: m.in_masks(MAPS, torch.ones(1, 3, 4).int(), 1), "masks must be one per image of maps, 2; got 1"),
        (
            lambda m: m.in_masks(MAPS, torch.ones(2, 3, 5).int(), 1),
            r"masks must be \(3, 4\) as maps are; got \(2, 3, 5\)",
        ),
        (lambda m: m.in_masks(MAPS, torch.ones(2, 3, 4), 1), "masks must be integers; got torch.float32"),
        (lambda m: m.in_masks(MAPS, torch.ones(2, 3, 4).bool(), 1), "masks must be integers; got torch.bool"),
        (lambda m: m.in_masks(MAPS, torch.full((2, 3, 4), 3), 2), "masks must be 0 to count = 2; got 3"),
        (lambda m: m.in_masks(MAPS, torch.full((2, 3, 4), -1), 2), "masks must be 0 to count = 2; got -1"),
        (lambda m: m.histogram(torch.ones(2, 3)), r"probabilities must be \(N, T, Q\); got \(2, 3\)"),
        (lambda m: m.histogram(torch.ones(2, 3, 4), torch.ones(2, 4).bool()), r"kept must be \(2, 3\); got \(2, 4\)"),
        (
            lambda m: m.histogram(torch.ones(2, 3, 4), None, torch.ones(2, 3).bool()),
            r"seen must be \(2, 4\); got \(2, 3\)",
        ),
        (lambda m: m.locality(torch.ones(3), base=1), "base must be above 1; got 1"),
        (lambda m: m.count_above(torch.ones(3), 0), "share must be above 0 and at most 1; got 0"),
        (lambda m: m.count_above(torch.ones(3), 1.1), "share must be above 0 and at most 1; got 1.1"),
    ],
)
def test_errors_name_the_argument_and_the_value(plain, call, message):
    with pytest.raises(ValueError, match=message):
        call(plain("parts"))
