"""Compare heatmaps: what travels to the page, and that its boxes and scores are those of `localisation`."""

import base64
import functools

import numpy as np
import pytest
import torch
import widget_pages
from site_browser import needs_browser
from torch.nn import functional

from xai_lib import localisation
from xai_lib.widgets import compare

HEIGHT, WIDTH = 13, 17
HOSTILE = "<img src=x onerror=\"document.title='run'\">"
CLASSES = ["disc", HOSTILE, "star"]
THRESHOLDS = [k / 100 for k in range(1, 100)]


def made():
    """Maps of three images: smooth and signed, with ties at levels and in size, isolated peaks, and one value."""
    random = torch.Generator().manual_seed(0)
    noise = torch.rand(4, 3, 1, HEIGHT, WIDTH, generator=random)
    steps = (noise[1] * 6).floor() / 5  # some thresholds are met exactly
    steps[:, :, 0, :2] = torch.tensor([0.0, 1.0])  # so that 0 and 1 are there
    peaks = functional.max_pool2d((noise[2] > 0.97).float() * noise[3], (1, 2), 1)[..., :WIDTH]
    return {
        "smooth": 1e-3 * (functional.avg_pool2d(noise[0], 5, 1, 2) - 0.3),
        "steps": steps,
        "peaks": functional.pad(peaks, (0, WIDTH - peaks.shape[-1])),
        "flat": torch.full((3, 1, HEIGHT, WIDTH), -2.5),
    }


MAPS = made()
GIVEN = {
    "images": torch.randint(
        0, 256, (3, 3, HEIGHT, WIDTH), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    ),
    "maps": MAPS,
    "boxes": torch.tensor([[2.0, 3, 9, 11], [0, 0, 17, 13], [5.5, 2, 8.25, 6]]),
    "labels": torch.tensor([0, 1, 2]),
    "classes": CLASSES,
    "probabilities": {"smooth": torch.tensor([[0.5, 0.3, 0.2], [0.001, 0.998, 0.001], [0.61, 0, 0.39]])},
}


# ---------------------------------------------------------------------------------------------------------------------
# What travels


def test_maps_travel_from_their_minimum_to_their_maximum():
    for name, maps in MAPS.items():
        found = compare.rounded(maps)
        for one, exact in zip(found, maps.double(), strict=True):
            low, high = exact.min(), exact.max()
            assert (one == one.round()).all()
            if name == "flat":
                assert (one == 0).all()
            else:
                assert (one.min(), one.max()) == (0, 255)
                assert (low + one / 255 * (high - low) - exact).abs().max() <= (high - low) * (0.5 / 255 + 1e-9)
    data = compare.Compare(**GIVEN, pair=("peaks", "flat")).data
    sent = np.frombuffer(data["maps"]["bytes"], np.uint8).reshape(data["maps"]["shape"])
    assert sent.shape == (4, 3, HEIGHT, WIDTH)
    assert (sent[2] == compare.rounded(MAPS["peaks"])[:, 0].numpy()).all()
    assert data["ranges"][0][1] == [MAPS["smooth"][1].min().item(), MAPS["smooth"][1].max().item()]
    assert (data["pair"], data["says"][1]) == ([2, 3], None)
    assert data["says"][0][2] == pytest.approx([0, 0.61, 0.39])


def test_a_state_as_in_the_book_is_below_a_megabyte():
    images = torch.zeros(10, 3, 64, 64, dtype=torch.uint8)
    maps = {f"method {k}": torch.rand(10, 1, 64, 64, generator=torch.Generator().manual_seed(k)) for k in range(12)}
    boxes, labels = torch.tensor([[0.0, 0, 9, 9]]).expand(10, 4), torch.zeros(10, dtype=torch.int64)
    entry = widget_pages.entry(compare.Compare(images, maps, boxes, labels, ["one"]))
    assert sum(len(base64.b64decode(one["data"])) for one in entry["buffers"]) >= 614_400
    assert sum(len(one["data"]) for one in entry["buffers"]) + len(str(entry["state"]["data"])) < 1_000_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"images": GIVEN["images"][:, :2]},
            r"images must be uint8 \(N, 1 or 3, H, W\), N above 0; got torch.uint8 \(3, 2",
        ),
        ({"images": GIVEN["images"].float()}, r"images must be uint8 .* got torch.float32"),
        ({"boxes": GIVEN["boxes"][:2]}, r"boxes must be \(3, 4\), one for each image; got \(2, 4\)"),
        ({"boxes": GIVEN["boxes"] + 1}, r"boxes must lie in the image of 17x13; got \[1.0, 1.0, 18.0, 14.0\]"),
        ({"labels": torch.tensor([0, 1, 3])}, r"labels must be 3 classes below 3; got \[0, 1, 3\]"),
        ({"labels": torch.tensor([0, 1])}, r"labels must be 3 classes below 3; got \[0, 1\]"),
        ({"maps": {"smooth": MAPS["smooth"]}}, r"maps must hold two methods or more; got \['smooth'\]"),
        (
            {"maps": MAPS | {"odd": MAPS["smooth"][:, :, 1:]}},
            r"maps\['odd'\] must be \(3, 1, 13, 17\), as the images are; got \(3, 1, 12, 17\)",
        ),
        ({"maps": MAPS | {"odd": MAPS["smooth"] / 0}}, r"maps\['odd'\] must be finite; got -?inf"),
        ({"pair": ("smooth", "rough")}, r"pair must name two of the methods smooth, .* got \['smooth', 'rough'\]"),
        ({"probabilities": {"rough": torch.zeros(3, 3)}}, "probabilities: there is no method 'rough'"),
        (
            {"probabilities": {"flat": torch.zeros(3, 2)}},
            r"probabilities\['flat'\] must be \(3, 3\), 0 to 1; got \(3, 2\)",
        ),
        ({"probabilities": {"flat": torch.full((3, 3), 1.5)}}, r"0 to 1; got \(3, 3\), 1.5 to 1.5"),
    ],
)
def test_what_cannot_be_shown_is_refused(plain, change, message):
    with pytest.raises(ValueError, match=message):
        plain("widgets/compare").Compare(**(GIVEN | change))


# ---------------------------------------------------------------------------------------------------------------------
# In the browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    widget = compare.Compare(**GIVEN)
    return widget_pages.write_page(widget, tmp_path_factory.mktemp("compare")).parent


@pytest.fixture
def opened(browser, folder):
    """Open the page; at the end nothing may have gone wrong on it."""
    with widget_pages.visits(browser) as visit:
        yield functools.partial(visit, folder)


def side(page, name):
    return page.get_by_role("group", name=name, exact=True)


def choose(page, image, left, right):
    page.get_by_role("combobox", name="Image").select_option(index=image)
    side(page, "Left").get_by_role("combobox").select_option(left)
    side(page, "Right").get_by_role("combobox").select_option(right)


SWEEP = """(frame, thresholds) => {
  const input = frame.querySelector("input[type=range]"); // the first is the threshold
  return thresholds.map((one) => {
    input.value = one;
    input.dispatchEvent(new Event("input"));
    return [...frame.querySelectorAll("figure")].map((figure) => {
      const box = figure.querySelector("[data-box=found]");
      const [x, y, width, height] = ["x", "y", "width", "height"].map((name) => box && +box.getAttribute(name));
      return [box && [x, y, x + width, y + height], figure.querySelector(".xw-iou").textContent];
    });
  });
}"""


def swept(page):
    """[[box, what is said of its IoU] of the left and the right side] at all thresholds."""
    return page.locator(".xw-frame").evaluate(SWEEP, THRESHOLDS)


def expected(method, image):
    """Boxes (99, 4) and IoUs (99,) at all thresholds, by `localisation`."""
    maps, truth = compare.rounded(MAPS[method][image : image + 1]), GIVEN["boxes"][image : image + 1]
    boxes = torch.cat([localisation.threshold_boxes(maps, one) for one in THRESHOLDS])
    return boxes, localisation.box_iou(boxes, truth.expand(len(boxes), 4))


@needs_browser
@pytest.mark.parametrize("scheme", ["http", "file"])
def test_boxes_and_scores_are_those_of_the_library(opened, scheme):
    page, distinct = opened(scheme), set()
    for image in range(3) if scheme == "file" else [0]:
        choose(page, image, "steps", "peaks" if image else "smooth")
        found = swept(page)
        for k, method in enumerate(["steps", "peaks" if image else "smooth"]):
            boxes, ious = expected(method, image)
            assert [one[k][0] for one in found] == boxes.tolist(), (method, image)
            shown = [float(one[k][1].removeprefix("IoU ")) for one in found]
            assert shown == pytest.approx(ious.tolist(), abs=0.00501)
            curve = page.locator("polyline").nth(k).get_attribute("points").split(" ")
            points = [tuple(map(float, one.split(","))) for one in curve]
            assert [x for x, _ in points] == pytest.approx([100 * one for one in THRESHOLDS])
            assert [1 - y / 100 for _, y in points] == pytest.approx(ious.tolist(), abs=1e-5)
            distinct |= {tuple(one) for one in boxes.tolist()}
    assert len(distinct) > 10


@needs_browser
def test_methods_swap_and_a_map_of_one_value_has_no_box(opened):
    page = opened()
    choose(page, 2, "flat", "smooth")
    low, high = MAPS["smooth"][2].min().item(), MAPS["smooth"][2].max().item()
    assert side(page, "Left").locator(".xw-iou").inner_text() == "No box: the map has one value everywhere"
    assert side(page, "Left").locator(".xw-ends").inner_text().split() == ["−2.5", "−2.5"]
    assert side(page, "Left").locator("[data-box]").count() == 1, "the true box alone"
    assert "Sees no network." in side(page, "Left").inner_text()
    ends = [float(one.replace("−", "-")) for one in side(page, "Right").locator(".xw-ends").inner_text().split()]
    assert ends == pytest.approx([low, high], rel=0.06)
    assert ends[0] < 0 < ends[1]
    assert "Network: disc 61 %, star 39 %." in side(page, "Right").inner_text()
    score = side(page, "Right").locator(".xw-iou").inner_text()
    page.get_by_role("button", name="Swap").click()
    assert side(page, "Left").get_by_role("combobox").input_value() == "smooth"
    assert side(page, "Left").locator(".xw-iou").inner_text() == score
    said = page.inner_text(".xw-said")
    assert said == f"star, IoU at threshold 0.50: smooth {score.removeprefix('IoU ')}, flat no box."


def pixels(page, name):
    return widget_pages.pixels(side(page, name).locator("canvas").first)


@needs_browser
def test_opacity_goes_from_the_image_to_the_map_and_the_region_can_stand_alone(opened):
    page = opened()
    choose(page, 0, "smooth", "flat")
    image, exact = GIVEN["images"][0].permute(1, 2, 0).numpy(), MAPS["smooth"][0, 0].numpy()
    slider = page.get_by_label("Opacity")
    slider.fill("0")
    assert (pixels(page, "Left") == image).all()
    slider.fill("1")
    whole = pixels(page, "Left")
    redder, clear = whole[..., 0] - whole[..., 2], np.abs(exact) > 0.05 * np.abs(exact).max()
    assert (np.sign(redder) == np.sign(exact))[clear].all(), "red above zero, blue below"
    assert {-1, 1} <= set(np.sign(exact[clear]))
    page.get_by_role("button", name="Boxed region only").click()
    inside = (pixels(page, "Left") != image).any(-1)
    columns, rows = inside.any(0).nonzero()[0], inside.any(1).nonzero()[0]
    box = localisation.threshold_boxes(compare.rounded(MAPS["smooth"][:1]), 0.5)[0].tolist()
    assert [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] == box
    assert (pixels(page, "Left")[inside] == whole[inside]).all()
    assert (pixels(page, "Right") == image).all(), "a map without a box has no region"


@needs_browser
def test_everything_by_keyboard_and_names_stay_text(opened):
    page = opened()
    widget_pages.tab_to(page, "Next")
    page.keyboard.press("Enter")
    assert page.get_by_role("combobox", name="Image").input_value() == f"2: {HOSTILE}"
    assert page.inner_text(".xw-said").startswith(HOSTILE)
    assert (page.locator(".xw img").count(), page.title()) == (0, "widget")
    assert f"Network: {HOSTILE} over 99 %." in side(page, "Left").inner_text()
    widget_pages.tab_to(page, "Threshold")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    iou = expected("smooth", 1)[1][52].item()
    assert f"IoU at threshold 0.53: smooth {iou:.2f}" in page.inner_text(".xw-said")
    widget_pages.tab_to(page, "Left")
    page.keyboard.press("ArrowDown")
    assert side(page, "Left").get_by_role("combobox").input_value() == "steps"
    for _ in range(2):
        page.get_by_role("button", name="Previous").press("Space")
    assert page.get_by_role("combobox", name="Image").input_value() == "3: star", "the last comes before the first"


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_everything_has_a_name(opened, scheme):
    page = opened(color_scheme=scheme, viewport={"width": 400, "height": 800}, has_touch=True)
    widget_pages.assert_fits(page)
    left, right = (side(page, name).locator("canvas").first.bounding_box() for name in ("Left", "Right"))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] < right["x"], "side by side"
    page.get_by_role("button", name="Boxed region only").tap()
    assert page.get_by_role("button", name="Boxed region only").get_attribute("aria-pressed") == "true"
