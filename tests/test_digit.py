"""Draw a digit: the layers that travel, and in Chromium what they give and what strokes do."""

import dataclasses
import functools
import re
import statistics

import numpy as np
import pytest
import torch
import widget_pages
from site_browser import needs_browser
from torch import nn

from xai_lib import data, losses, training, xcnn
from xai_lib.widgets import base, digit

PREPARE = data.Normalize(0.13, 0.31)


def digits(count=10, name="digits"):
    """The first `count` test digits."""
    return data.load(name, "test").take(torch.arange(count), "some")


def stirred(build, seed=0):
    """A network with weights, and averages of BatchNorm, that leave no layer idle."""
    torch.manual_seed(seed)
    model = build()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.2, 2)
        if isinstance(part, nn.BatchNorm2d) and part.affine:
            nn.init.uniform_(part.weight, -1, 2)
            nn.init.normal_(part.bias)
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.weight.data *= 2.5
    return model.eval()


def other(classes=10):
    """Another generator and classifier of the same types of layers, and other settings of all of them."""
    generator = xcnn.Generator(1, 5)
    generator.encode = nn.Sequential(nn.Conv2d(1, 5, 5, padding=2, bias=False), nn.Tanh(), nn.MaxPool2d(3))
    discriminator = nn.Sequential(
        nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(3, 6, (3, 2)), nn.BatchNorm2d(6, affine=False, eps=0.1), nn.MaxPool2d(3),
        nn.Flatten(), nn.Linear(6 * 4 * 4, 12, bias=False), nn.Tanh(), nn.Linear(12, classes),
    )  # fmt: skip
    return xcnn.XCNN(generator, discriminator)


def taught():
    """XCNN after a few passes over real digits: sure of its answers, which an untrained one is not."""
    torch.manual_seed(0)
    model, train = xcnn.xcnn_mnist(), data.load("digits", "train", limit=500)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for part in torch.arange(500).split(25) * 3:
        loss = losses.cross_entropy(model, PREPARE(train.images[part]), train.labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def trained():
    return taught()


# ---------------------------------------------------------------------------------------------------------------------
# What travels


@pytest.mark.parametrize("build", [xcnn.xcnn_mnist, other])
def test_the_layers_are_the_network(build, double):
    model = stirred(build)
    images = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    generator, discriminator = (
        [{k: _double(v) for k, v in one.items()} for one in part] for part in digit.parts(model)
    )
    with torch.no_grad():
        maps, logits = model.heatmap(images), model(images)
    found = digit.replay(generator, images)
    torch.testing.assert_close(found, maps, rtol=0, atol=1e-6)
    torch.testing.assert_close(digit.replay(discriminator, found), logits, rtol=1e-5, atol=1e-5)
    assert "batch" not in " ".join(one["type"] for one in discriminator)


def _double(value):
    return value.double() if isinstance(value, torch.Tensor) else value


def test_what_travels_is_small_and_exact():
    samples, model = digits(), stirred(xcnn.xcnn_mnist)
    widget = digit.Digit(model, PREPARE, samples, sign=-1)
    stored = widget_pages.entry(widget)
    assert sum(len(one["data"]) for one in stored["buffers"]) + len(base.source("digit")) + len(base.style()) < 250_000
    shown = widget.data
    np.testing.assert_array_equal(np.frombuffer(shown["samples"]["bytes"], np.uint8), samples.images.flatten())
    assert (shown["labels"], shown["sign"], shown["classes"]) == (samples.labels.tolist(), -1, list("0123456789"))
    kept = np.frombuffer(shown["generator"][0]["weight"]["bytes"], np.float32)
    np.testing.assert_array_equal(kept, model.generator.encode[0].weight.detach().flatten())


BAD_LAYERS = {
    "network.0: the browser knows no layer GELU": nn.Sequential(nn.GELU()),
    "network.1.0: the browser knows no layer Dropout": nn.Sequential(nn.ReLU(), nn.Sequential(nn.Dropout())),
    "stride, dilation, groups of 1": nn.Sequential(nn.Conv2d(2, 2, 3, stride=2)),
    "got Conv2d.*groups=2": nn.Sequential(nn.Conv2d(2, 2, 3, groups=2)),
    "got Conv2d.*padding=same": nn.Sequential(nn.Conv2d(2, 2, 3, padding="same")),
    r"got Conv2d.*padding=\(1, 0\)": nn.Sequential(nn.Conv2d(2, 2, 3, padding=(1, 0))),
    "got Conv2d.*circular": nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")),
    "whole squares.*MaxPool2d": nn.Sequential(nn.MaxPool2d(3, stride=2)),
    "whole squares.*AvgPool2d": nn.Sequential(nn.AvgPool2d(2, ceil_mode=True)),
    r"whole squares.*\(2, 3\)": nn.Sequential(nn.MaxPool2d((2, 3))),
    "all but the batch": nn.Sequential(nn.Flatten(2)),
    "it follows relu": nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.BatchNorm2d(2)),
    "it follows nothing": nn.Sequential(nn.BatchNorm2d(2)),
    "must keep averages": nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)),
}


@pytest.mark.parametrize("message", BAD_LAYERS)
def test_layers_that_the_browser_does_not_know_are_named(message):
    with pytest.raises(ValueError, match=message):
        digit.layers(BAD_LAYERS[message])


def test_bad_input():
    model, samples = xcnn.xcnn_mnist(), digits()
    with pytest.raises(ValueError, match="model must be an xcnn.XCNN; got Sequential"):
        digit.Digit(xcnn.small_cnn(), PREPARE, samples)
    with pytest.raises(ValueError, match="a logit for each of 10 classes"):
        digit.Digit(xcnn.xcnn_mnist(classes=7), PREPARE, samples)
    with pytest.raises(ValueError, match="model must take grey images of 28x28"):
        digit.Digit(xcnn.XCNN(xcnn.Generator(1, 2), xcnn.small_cnn(size=32)), PREPARE, samples)
    with pytest.raises(ValueError, match="images"):
        digit.Digit(xcnn.XCNN(xcnn.Generator(3, 2), xcnn.small_cnn()), PREPARE, samples)
    with pytest.raises(ValueError, match=r"samples must be 1 to 100 .*\(0, 1, 28, 28\)"):
        digit.Digit(model, PREPARE, samples.take(torch.arange(0), "none"))
    with pytest.raises(ValueError, match=r"samples must be .*\(10, 1, 7, 7\)"):
        digit.Digit(model, PREPARE, dataclasses.replace(samples, images=samples.images[:, :, ::4, ::4]))
    with pytest.raises(ValueError, match="sign must be 1 or -1; got 0"):
        digit.Digit(model, PREPARE, samples, sign=0)
    with pytest.raises(ValueError, match="discriminator.0: the browser knows no layer Softplus"):
        digit.Digit(xcnn.XCNN(xcnn.Generator(1, 2), nn.Sequential(nn.Softplus())), PREPARE, samples)


# ---------------------------------------------------------------------------------------------------------------------
# In Chromium: the parts


@pytest.fixture
def parts(browser, tmp_path):
    """Call a function of JavaScript with what ``digit.js`` exports and one argument."""
    page = browser.new_page()
    page.goto("about:blank")
    source = base.source("digit")

    def call(code, argument=None):
        load = "const url = URL.createObjectURL(new Blob([source], { type: 'text/javascript' }))"
        return page.evaluate(
            f"async ([source, argument]) => {{ {load}; return ({code})(await import(url), argument); }}",
            [source, argument],
        )

    yield call
    page.close()


RUN = """({ network }, { state, buffers, images }) => {
  for (const { path, data } of buffers) {
    let place = state;
    for (const step of path.slice(0, -1)) place = place[step];
    place[path.at(-1)] = new DataView(Uint8Array.from(atob(data), (one) => one.charCodeAt(0)).buffer);
  }
  const read = network(state.data);
  return images.map((pixels) => {
    const begun = performance.now(), { map, chances } = read(Uint8Array.from(pixels));
    return { milliseconds: performance.now() - begun, map: [...map], chances: [...chances] };
  });
}"""


def in_javascript(parts, model, images):
    """Maps (N, 784), probabilities (N, K) and milliseconds that the browser gives for uint8 images."""
    stored = widget_pages.entry(digit.Digit(model, PREPARE, digits()))
    state = {"data": stored["state"]["data"]}
    argument = {"state": state, "buffers": stored["buffers"], "images": images.flatten(1).tolist()}
    found = parts(RUN, argument)
    return *(np.array([one[key] for one in found]) for key in ("map", "chances")), [x["milliseconds"] for x in found]


def in_torch(model, images):
    maps = training.predict(model, images, PREPARE, function=xcnn.XCNN.heatmap)
    return maps.flatten(1).numpy(), training.predict(model, images, PREPARE).softmax(1).numpy()


@needs_browser
@pytest.mark.parametrize("name", ["digits", pytest.param("mnist", marks=pytest.mark.mnist)])
def test_the_browser_agrees_with_torch_on_100_real_digits_and_is_fast(parts, trained, name):
    images = digits(100, name).images
    maps, chances, milliseconds = in_javascript(parts, trained, images)
    true_maps, true_chances = in_torch(trained, images)
    assert true_chances.max(1).mean() > 0.6  # sure: to agree says something
    assert len(set(true_chances.argmax(1).tolist())) > 5
    assert np.abs(chances - true_chances).max() < 1e-4
    assert np.abs(maps - true_maps).max() < 1e-4
    median = statistics.median(milliseconds)
    print(f"one pass in the browser, median of 100: {median:.1f} ms")
    assert median < 50


@needs_browser
def test_other_settings_of_the_layers_agree_too(parts):
    model, images = stirred(other, seed=1), digits(20).images
    maps, chances, _ = in_javascript(parts, model, images)
    true_maps, true_chances = in_torch(model, images)
    assert true_maps.std() > 0.05
    assert true_chances.std(0).max() > 1e-3
    assert np.abs(chances - true_chances).max() < 1e-4
    assert np.abs(maps - true_maps).max() < 1e-4


def prepared(parts, ink):
    found = parts("({ prepared }, ink) => [...prepared(Uint8Array.from(ink)).pixels]", ink.flatten().tolist())
    return np.array(found).reshape(28, 28)


def box(left, top, width, height):
    ink = np.zeros((140, 140), int)
    ink[top : top + height, left : left + width] = 255
    return ink


@needs_browser
def test_ink_is_scaled_to_20_pixels_and_centred(parts):
    """By hand: the longer side becomes 20 pixels; the first row of the box is ceil(14 - distance to its centre)."""
    expected = np.zeros((28, 28), int)
    expected[4:24, 12:16] = 255
    np.testing.assert_array_equal(prepared(parts, box(7, 33, 20, 100)), expected)
    np.testing.assert_array_equal(prepared(parts, box(90, 1, 5, 25)), expected)
    expected[:] = 0
    expected[4:24, 10:18], expected[4:24, 18] = 255, round(255 * (30 * 2 / 7 - 8))  # part of a pixel is grey
    np.testing.assert_array_equal(prepared(parts, box(40, 50, 30, 70)), expected)
    for thick in (20, 4):  # a corner of two bars: its centre of mass lies up and left of the box's middle
        found = prepared(parts, box(0, 0, 100, thick) + box(0, thick, thick, 100 - thick))
        # 14 - 6.4 goes up to 8; 14 - 5.3 would go to 9, where 20 pixels do not fit
        assert (found.any(0).argmax(), found.any(0).sum()) == (8, 20)
        assert (found.any(1).argmax(), found.any(1).sum()) == (8, 20)
    assert not prepared(parts, box(0, 0, 0, 0)).any()


@needs_browser
@pytest.mark.mnist
def test_digits_of_mnist_come_back_as_they_were(parts):
    images = digits(100, "mnist").images[:, 0].tolist()
    code = "({ prepared, enlarged }, images) => images.map((one) => [...prepared(enlarged(one.flat())).pixels])"
    np.testing.assert_array_equal(np.array(parts(code, images)), np.array(images).reshape(100, -1))


# ---------------------------------------------------------------------------------------------------------------------
# In Chromium: the widget


@pytest.fixture
def opened(browser, trained, tmp_path):
    """Open a page with the widget, as ``opened(scheme, **settings)``; at the end nothing may have gone wrong."""
    widget_pages.write_page(digit.Digit(trained, PREPARE, digits(), sign=-1), tmp_path)
    with widget_pages.visits(browser) as visit:
        yield functools.partial(visit, tmp_path)


def surface(page):
    return page.get_by_role("application")


def stroke(page, *places):
    """Draw with the mouse along places in [0, 1]."""
    canvas = surface(page)
    canvas.scroll_into_view_if_needed()
    area, mouse = canvas.bounding_box(), canvas.page.mouse
    first, *rest = [(area["x"] + x * area["width"], area["y"] + y * area["height"]) for x, y in places]
    mouse.move(*first)
    mouse.down()
    for one in rest:
        mouse.move(*one, steps=6)
    mouse.up()


def table(page):
    """Probabilities and changes in percent, as they are written."""
    texts = page.locator("td.xw-number").all_inner_texts()
    return np.array([float(one.replace("−", "-").strip("% ") or "nan") for one in texts]).reshape(-1, 2).T


def pixels(page, name):
    """The colours (H, W, 3) of a canvas."""
    return widget_pages.pixels(page.get_by_role("img", name=name))


@needs_browser
def test_samples_get_what_torch_gives_them(opened, trained):
    page, samples = opened(), digits(3)
    maps, chances = in_torch(trained, samples.images)
    for k in range(3):
        if k:  # the first is there before anybody has done anything
            page.get_by_role("button", name="Sample digit").click()
        assert np.abs(table(page)[0] - 100 * chances[k]).max() < 0.1
        assert page.inner_text("strong") == str(chances[k].argmax())
        assert page.inner_text(".xw-said").startswith(f"A real test digit, a {samples.labels[k]}: read as")
        np.testing.assert_array_equal(
            pixels(page, "What the network sees, 28")[..., 0], 255 - samples.images[k, 0].numpy()
        )
        share, ends = -maps[k].reshape(28, 28, 1), np.array([[33, 102, 172], [178, 24, 43]])  # shown with sign -1
        colours = 255 + np.abs(share) * (np.where(share < 0, ends[0], ends[1]) - 255)
        assert np.abs(pixels(page, "Heatmap") - colours).max() < 2


@needs_browser
@pytest.mark.parametrize("scheme", ["http", "file"])
def test_strokes_change_the_map_and_one_can_step_back(opened, scheme):
    page = opened(scheme)
    page.get_by_role("button", name="Clear").click()
    before, empty = pixels(page, "Heatmap"), table(page)
    assert "empty page" in page.inner_text(".xw-said")
    assert np.isnan(empty[1]).all()
    steps = [empty[0]]
    for line in ([(0.3, 0.2), (0.7, 0.2)], [(0.7, 0.2), (0.4, 0.8)], [(0.2, 0.9), (0.9, 0.9)]):
        stroke(page, *line)
        chances, changes = table(page)
        np.testing.assert_allclose(changes, chances - steps[-1], atol=0.11)  # three rounded numbers
        steps.append(chances)
        assert page.inner_text("strong") == str(chances.argmax())
    said = page.inner_text(".xw-said")
    assert said.startswith(f"Stroke 3: read as {chances.argmax()}")
    assert f"Gained most: {changes.argmax()} (" in said
    assert np.abs(pixels(page, "Heatmap") - before).mean() > 5

    slider = page.get_by_label("After stroke")
    slider.press("ArrowLeft")
    np.testing.assert_array_equal(table(page)[0], steps[2])
    slider.press("Home")
    np.testing.assert_array_equal(table(page)[0], steps[0])
    np.testing.assert_array_equal(pixels(page, "Heatmap"), before)
    slider.press("ArrowRight")
    stroke(page, (0.5, 0.5), (0.5, 0.9))  # from the first stroke on: the second and third are gone
    assert page.locator("output").inner_text() == "2 of 2"
    page.get_by_role("button", name="Clear").click()
    np.testing.assert_array_equal(table(page)[0], steps[0])
    assert slider.is_disabled()


@needs_browser
def test_the_map_follows_while_a_stroke_is_drawn(opened):
    page = opened()
    area = surface(page).bounding_box()
    page.mouse.move(area["x"] + 60, area["y"] + 60)
    page.mouse.down()
    taken, seen = [], []
    for k in range(12):
        page.mouse.move(area["x"] + 60 + 10 * k, area["y"] + 80 + 12 * k)
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        seen.append(pixels(page, "What the network sees, 28").sum())
        taken.append(float(surface(page).get_attribute("data-milliseconds")))
    page.mouse.up()
    assert len(set(seen)) > 5
    print(f"one step of a stroke, all of it, median: {statistics.median(taken):.1f} ms")
    assert min(taken) < 50  # ink, network and pictures; the least, as other work on the machine only adds to it


@needs_browser
def test_keys_alone_draw(opened):
    page = opened(viewport={"width": 1000, "height": 300})  # lower than the widget: arrows would scroll it
    assert page.inner_text(".xw-said").startswith("A real test digit")
    widget_pages.tab_to(page, "Drawing surface")
    top = page.evaluate("scrollY")
    page.keyboard.press("Space")
    for _ in range(16):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowLeft")  # the pen is up: no ink
    assert page.evaluate("scrollY") == top
    assert page.inner_text(".xw-said").startswith("Stroke 1: read as")
    ink = 255 - pixels(page, "What the network sees, 28")[..., 0].astype(int)
    assert (ink.any(1).sum(), ink.any(0).sum()) == (20, 3)  # 93 units by 12, scaled by 20 / 93; no sample
    page.keyboard.press("Space")
    page.keyboard.down("ArrowRight")
    page.keyboard.down("ArrowUp")
    page.keyboard.up("ArrowUp")
    page.keyboard.up("ArrowRight")
    page.keyboard.press("Shift+Tab")  # leaving lifts the pen
    assert page.inner_text(".xw-said").startswith("Stroke 2: read as")
    page.keyboard.press("Home")
    assert "empty page" in page.inner_text(".xw-said")


@needs_browser
def test_a_phone_in_the_dark(opened):
    page = opened(viewport={"width": 400, "height": 800}, color_scheme="dark", has_touch=True)
    page.add_style_tag(content=":root { --pst-color-background: #121212; --pst-color-text-base: #eee }")
    area = surface(page).bounding_box()
    page.touchscreen.tap(area["x"] + 100, area["y"] + 100)
    assert page.inner_text(".xw-said").startswith("Stroke 1: read as")
    assert surface(page).evaluate("one => getComputedStyle(one).touchAction") == "none"
    widget_pages.assert_fits(page)
    assert page.locator(".xw-frame").evaluate("one => getComputedStyle(one).backgroundColor") == "rgb(18, 18, 18)"
    assert page.locator("th").first.evaluate("one => getComputedStyle(one).color") == "rgb(238, 238, 238)"


@needs_browser
def test_two_on_a_page_do_not_disturb_each_other(opened, tmp_path):
    file = tmp_path / "index.html"
    text = file.read_text(encoding="utf-8")
    place = re.search(r'<div class="xai-widget".*?</div>', text)[0]
    file.write_text(text.replace(place, place + place), encoding="utf-8")
    page = opened(viewport={"width": 1000, "height": 1600})
    page.locator("[data-state=running]").nth(1).wait_for()
    before = page.locator(".xw-said").all_inner_texts()
    page.get_by_role("button", name="Clear").last.click()
    assert page.locator(".xw-said").first.inner_text() == before[0]
    assert "empty page" in page.locator(".xw-said").last.inner_text()
