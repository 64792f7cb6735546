"""The concept mixer: what travels to the page, and that the decoder in the browser is torch's."""

import dataclasses
import re

import numpy as np
import pytest
import torch
import widget_pages
from site_browser import needs_browser

from xai_lib import concept_study, concepts
from xai_lib.concept_vae import CONCEPT_LAYER, ConceptVAE
from xai_lib.widgets import mixer

WINDOWS = concepts.MNIST_WINDOWS
BLOCKS = torch.randint(0, 256, (10, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
DIGITS = BLOCKS.repeat_interleave(7, 2).repeat_interleave(7, 3)
NAMES = [str(k) for k in range(10)]


def network(**settings):
    """An untrained network whose drawings are not all grey."""
    torch.manual_seed(0)
    model = ConceptVAE(**{"width": 1 / 32, "min_maps": 30} | settings).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(2.5 if "weight" in name else 1)
            weight.add_(0.1 * torch.randn_like(weight) if name.endswith("bias") else 0)
    return model


def latent(model, share=0.0, start=3, end=8):
    means = concept_study.latents(model, DIGITS)
    return (means[start] + share * (means[end] - means[start])).view(1, 1, *model.latent_size)


@torch.no_grad()
def drawn(model, at, strengths=None):
    """What the decoder draws with strengths {map: factor}, by torch."""
    maps = model.features(at)
    for label, strength in (strengths or {}).items():
        maps[:, label] *= strength
    return model.finish(maps).sigmoid()[0, 0].numpy()


# ---------------------------------------------------------------------------------------------------------------------
# What travels


def test_small_decoders_travel_as_float16_and_larger_ones_as_int8(monkeypatch):
    model = network()
    assert {one["weight"]["dtype"] for one in mixer.packed(model)} == {"float16"}
    count = sum(layer.weight.numel() for layer in model.decoder.modules() if hasattr(layer, "stride"))
    monkeypatch.setattr(mixer, "LIMIT", 2 * count - 1)
    assert {one["weight"]["dtype"] for one in mixer.packed(model)} == {"int8"}
    monkeypatch.setattr(mixer, "LIMIT", count - 1)
    with pytest.raises(ValueError, match=f"at most {count - 1:,} weights in its decoder; got {count:,}"):
        mixer.packed(model)


@pytest.mark.parametrize(("limit", "error"), [(mixer.LIMIT, 5e-4), (10_000, 0.5 / 127 + 1e-6)])
def test_rounded_weights_are_as_near_as_their_type_allows(monkeypatch, limit, error):
    """The error of int8 is relative to its own channel, which a factor for the whole layer would not keep."""
    model = network()
    with torch.no_grad():
        model.decoder.layer_3[0].weight[:, 0] *= 0.01
        model.decoder.layer_3[0].weight[:, 1] = 0
    monkeypatch.setattr(mixer, "LIMIT", limit)
    twin = mixer.rounded(model)
    for one, other in zip(model.decoder.parameters(), twin.decoder.parameters(), strict=True):
        if one.ndim == 4:
            apart = (one - other).abs().amax((0, 2, 3))
            assert (apart <= error * one.abs().amax((0, 2, 3))).all()
        else:
            assert torch.equal(one, other)
    assert not torch.equal(model.decoder.layer_3[0].weight, twin.decoder.layer_3[0].weight)


@pytest.mark.parametrize("size", [28, (13, 18)])
def test_sizes_of_layers_are_those_that_torch_makes(size):
    model, found = network(size=size), []
    x = torch.zeros(1, 1, *model.latent_size)
    for layer in model.decoder:
        x = layer(x)
        found.append(list(x.shape[-2:]))
    assert [one["to"] for one in mixer.packed(model)] == found


def test_places_are_told_by_the_middle_of_the_window():
    assert [f"{mixer.place(one, 28, 28)} {one.digit}" for one in WINDOWS[:5]] == [
        *("right 8", "left 8", "lower 8", "upper 8", "upper 7")
    ]
    assert mixer.place(concepts.Window(4, 10, (17, 28), (17, 23)), 28, 28) == "lower right"
    assert mixer.place(concepts.Window(4, 10, (0, 28), (1, 28)), 28, 28) == "middle"


def test_ink_changed_is_what_disappears_and_what_is_new():
    model = network()
    found = mixer.ink_changed(model, DIGITS, WINDOWS[:2])
    at = concept_study.latents(model, DIGITS)[4].view(1, 1, *model.latent_size)
    before = drawn(model, at)
    rise = [drawn(model, at, {one.label: 0}) - before for one in WINDOWS[:2]]
    slow = [[np.maximum(sign * one, 0).sum() / before.sum() for sign in (-1, 1)] for one in rise]
    assert found.shape == (10, 2, 2)
    assert found[4].flatten().tolist() == pytest.approx(np.ravel(slow), abs=1e-5)
    assert np.min(slow) > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": network(in_channels=3)}, "model must draw images of one channel; got 3"),
        ({"images": DIGITS[:1]}, r"images must be uint8 \(2 or more, 1, 28, 28\); got torch.uint8 \(1, 1, 28, 28\)"),
        ({"images": DIGITS[..., 1:]}, r"images must be uint8 .* got torch.uint8 \(10, 1, 28, 27\)"),
        ({"names": NAMES[:9]}, "names must name each of the 10 images; got 9"),
        ({"windows": WINDOWS[:1] * 2}, r"below the number of maps, 30; got \[10, 10\]"),
        ({"windows": [dataclasses.replace(WINDOWS[0], label=30)]}, r"below the number of maps, 30; got \[30\]"),
        ({"windows": []}, r"got \[\]"),
    ],
)
def test_what_cannot_be_shown_is_refused(change, message):
    given = {"model": network(), "images": DIGITS, "names": NAMES, "windows": WINDOWS} | change
    with pytest.raises(ValueError, match=message):
        mixer.Mixer(**given)


# ---------------------------------------------------------------------------------------------------------------------
# In the browser


@pytest.fixture
def opened(browser, tmp_path):
    """Open a page with a mixer of a model; what goes wrong on it fails the test."""
    with widget_pages.visits(browser) as visit:

        def start(model, scheme="file", **settings):
            widget_pages.write_page(mixer.Mixer(model, DIGITS, NAMES), tmp_path)
            return visit(tmp_path, scheme, **settings)

        yield start


def pixels(page, label="what the decoder draws"):
    """What is painted on a canvas, (28, 28, 3) from 0 to 1."""
    return widget_pages.pixels(page.get_by_role("img", name=label, exact=True)) / 255


def tile(page, label):
    return page.locator(f'[data-map="{label}"]')


def slide(page, name, value):
    page.get_by_label(name).evaluate(
        "(one, value) => { one.value = value; one.dispatchEvent(new Event('input', {bubbles: true})); }", str(value)
    )


def agree(page, model, at, strengths=None):
    return np.abs(1 - pixels(page)[..., 0] - drawn(mixer.rounded(model), at, strengths)).max() < 1e-2


@needs_browser
@pytest.mark.parametrize(("scheme", "limit"), [("http", mixer.LIMIT), ("file", 10_000)])
def test_the_browser_draws_what_torch_draws(opened, monkeypatch, scheme, limit):
    """As float16 over http, as int8 from a file; for digits, a walk, one map off, one stronger, one alone."""
    monkeypatch.setattr(mixer, "LIMIT", limit)
    model = network()
    page, start = opened(model, scheme), latent(model)
    assert agree(page, model, start)
    assert np.ptp(drawn(model, start)) > 0.3
    tile(page, 14).click()
    assert agree(page, model, start, {14: 0})
    assert np.abs(drawn(model, start) - drawn(model, start, {14: 0})).max() > 0.05
    slide(page, "Strength", 1.75)
    slide(page, "Walk", 0.25)
    halfway = latent(model, 0.25)
    assert agree(page, model, halfway, {14: 1.75})
    assert np.abs(drawn(model, start) - drawn(model, halfway)).max() > 0.05
    page.get_by_role("button", name="Only this map").click()
    assert agree(page, model, halfway, dict.fromkeys(range(model.channels[CONCEPT_LAYER]), 0) | {14: 1.75})
    page.get_by_role("button", name="Reset").click()
    slide(page, "Walk", 0)
    for digit in range(10):
        page.get_by_label("From").select_option(NAMES[digit])
        assert agree(page, model, latent(model, 0, digit)), digit


@needs_browser
def test_switches_by_keyboard_and_what_is_said(opened):
    model = network()
    page = opened(model)
    assert page.inner_text(".xw-said") == "Nothing is changed: the drawing is the network's own."
    tile(page, 12).focus()
    page.keyboard.press("Space")
    assert [tile(page, one).get_attribute("aria-pressed") for one in (11, 12)] == ["true", "false"]
    assert page.get_by_label("Strength").input_value() == "0"
    changed = 100 * mixer.ink_changed(mixer.rounded(model), DIGITS[3:4], WINDOWS)[0]
    said = re.match(r"17 of 18 maps on: (\d+) % of the ink is gone, new ink is (\d+) %", page.inner_text(".xw-said"))
    assert [int(one) for one in said.groups()] == pytest.approx(changed[2].tolist(), abs=0.51)
    shown = [
        re.search("\u2212(\\d+) \\+(\\d+) %", one.inner_text()).groups() for one in page.locator("[data-map]").all()
    ]
    assert np.array(shown, int) == pytest.approx(changed.numpy(), abs=0.51)
    assert len(set(shown)) > 4
    assert "under 1 % for 0 of 18 maps" in page.inner_text(".xw-frame")
    page.get_by_label("Strength").focus()
    page.keyboard.press("ArrowRight")
    assert tile(page, 12).get_attribute("aria-pressed") == "true"
    assert agree(page, model, latent(model), {12: 0.05})
    page.get_by_role("combobox", name="Map").select_option(index=0)
    assert page.get_by_label("Strength").input_value() == "1"


@needs_browser
def test_all_off_leaves_what_the_biases_draw_and_the_further_maps_come_back(opened):
    model = network()
    page, every = opened(model), range(model.channels[CONCEPT_LAYER])
    others = page.get_by_role("button", name="12 further maps")
    page.get_by_role("button", name="All off").click()
    assert agree(page, model, latent(model), dict.fromkeys(every, 0))
    assert others.get_attribute("aria-pressed") == "false"
    assert page.inner_text(".xw-said").startswith("0 of 18 maps on, the further maps off: ")
    others.click()
    assert agree(page, model, latent(model), {one.label: 0 for one in WINDOWS})
    page.get_by_role("button", name="Reset").click()
    assert agree(page, model, latent(model))


@needs_browser
def test_the_difference_is_blue_where_ink_is_gone(opened):
    model = network()
    page = opened(model)
    name = "difference to the unchanged drawing"
    assert (pixels(page, name) == 1).all()
    tile(page, 14).click()
    change = drawn(model, latent(model), {14: 0}) - drawn(model, latent(model))
    redder = pixels(page, name)[..., 0] - pixels(page, name)[..., 2]
    clear = np.abs(change) > 0.03
    assert clear.sum() > 10
    assert (np.sign(redder) == np.sign(change))[clear].all()


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_everything_has_a_name(opened, scheme):
    page = opened(network(), color_scheme=scheme, viewport={"width": 400, "height": 800}, has_touch=True)
    widget_pages.assert_fits(page)
    tile(page, 13).tap()
    assert tile(page, 13).get_attribute("aria-pressed") == "false"
    assert page.get_by_role("button", name="map 13 8 upper").count() == 1
