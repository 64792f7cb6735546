"""The x-feature explorer: what Python packs, and in Chromium its sums, votes and what comes from outside."""

import base64
import json

import numpy as np
import pytest
import torch
import widget_pages
from conftest import unchecked
from site_browser import needs_browser
from test_votes import HTML, REFUSED, entry, file

from xai_lib import srae
from xai_lib.widgets import votes
from xai_lib.widgets.xfeatures import XFeatures

CLASSES = ("crow", "jay <b>old</b>", "owl", "rook")
C, N, n, K = 2, 14, 3, 4


def given(**changes):
    """Two categories of four classes on 14 images; E and v are those of untrained modules."""
    generator = torch.Generator().manual_seed(0)
    modules = srae.Autoencoders(6, hidden=(5, 4), features=n, seeds=(0, 3))
    z = torch.rand(N, 6, generator=generator)
    logits = modules(z)[:, [0, 0, 1, 1]].detach() + 0.4 * torch.randn(N, K, generator=generator)
    maps = torch.rand(C, N, n, 8, 8, generator=generator) - 0.5
    maps[0, 0, 0] = 0
    maps[0, 0, 0, :4, :4] = 3.0  # the corner, nothing else
    named = {
        "images": torch.randint(0, 256, (N, 3, 8, 8), dtype=torch.uint8, generator=generator),
        "labels": torch.arange(N) % K,
        "classes": CLASSES,
        "categories": [0, 1],
        "logits": logits,
        "activations": modules.encode(z).detach(),
        "weights": modules.head.detach(),
        "maps": maps,
    }
    return named | changes


def unpacked(packed):
    found = np.frombuffer(packed["bytes"], np.dtype(packed["dtype"]).newbyteorder("<"))
    return torch.from_numpy(found.astype(np.float64).reshape(packed["shape"]))


# ---------------------------------------------------------------------------------------------------------------------
# What is packed


def test_the_terms_packed_add_up_to_the_modules_logits():
    made, data = given(), XFeatures(**given()).data
    terms = unpacked(data["weights"])[:, None] * unpacked(data["activations"])
    slow = torch.stack([made["weights"][k].double() @ made["activations"][k].double().T for k in range(C)])
    torch.testing.assert_close(terms.sum(2), slow, rtol=0, atol=1e-12)
    assert terms.abs().amax((1, 2)).min() > 0.01, "there is something to add"


def test_rivals_are_the_largest_of_the_other_logits():
    made, data = given(), XFeatures(**given()).data
    for k in range(C):
        for i, row in enumerate(made["logits"].tolist()):
            others = {one: logit for one, logit in enumerate(row) if one != made["categories"][k]}
            best = max(others, key=others.get)
            assert data["rival_of"][k][i] == best
            assert unpacked(data["rivals"])[k, i].item() == others[best]
            assert unpacked(data["logits"])[k, i].item() == row[made["categories"][k]]


def test_images_and_maps_are_averaged_down_and_each_map_has_its_own_peak():
    data = XFeatures(**given(), thumbnail=4, side=2).data
    images, maps = given()["images"].double(), given()["maps"].clamp(min=0).double()
    assert data["images"]["shape"] == [N, 3, 4, 4]
    by_hand = images[2, 1, 2:4, 4:6].mean()
    assert abs(unpacked(data["images"])[2, 1, 1, 2] - by_hand) <= 0.5
    assert data["maps"]["shape"] == [C, N, n, 2, 2]
    assert unpacked(data["maps"])[0, 0, 0].tolist() == [[255, 0], [0, 0]]
    quarters = torch.stack([maps[1, 5, 2, y : y + 4, x : x + 4].mean() for y in (0, 4) for x in (0, 4)])
    assert (unpacked(data["maps"])[1, 5, 2].flatten() - 255 * quarters / quarters.max()).abs().max() <= 0.51
    assert unpacked(XFeatures(**given(maps=torch.zeros(C, N, n, 8, 8))).data["maps"]).max() == 0
    assert XFeatures(**given()).data["images"]["shape"] == [N, 3, 8, 8], "nothing is scaled up"


def test_votes_belong_to_one_module():
    first = XFeatures(**given()).data["module"]
    assert first == XFeatures(**given(images=255 - given()["images"])).data["module"]
    assert first != XFeatures(**given(weights=given()["weights"] + 0.01)).data["module"]
    assert first != XFeatures(**given(categories=[0, 2])).data["module"]


def test_six_categories_fit_into_a_page():
    """Six categories of five x-features on 44 images of 64 pixels, as the book shows them."""
    wide = XFeatures(
        torch.zeros(44, 3, 64, 64, dtype=torch.uint8),
        torch.zeros(44, dtype=torch.int64),
        [f"species {k}" for k in range(40)],
        range(6),
        torch.zeros(44, 40),
        torch.zeros(6, 44, 5),
        torch.zeros(6, 5),
        torch.zeros(6, 44, 5, 64, 64),
    )
    assert sum(len(base64.b64encode(one["bytes"])) for one in wide.data.values() if isinstance(one, dict)) < 1_000_000


WRONG = {
    "images": (
        {"images": torch.zeros(N, 2, 8, 8, dtype=torch.uint8)},
        r"images must be uint8 \(N, 1 or 3, H, W\); got",
    ),
    "labels": ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels must have the shape \(14,\); got \(3,\)"),
    "a label": ({"labels": torch.full((N,), 4)}, "labels must lie between 0 and 3; got 4 to 4"),
    "names": ({"classes": ("a", "a", "b", "c")}, "classes must be two or more different names; got"),
    "categories": ({"categories": [0, 4]}, r"categories must be different, between 0 and 3; got \[0, 4\]"),
    "twice": ({"categories": [1, 1]}, r"categories must be different, between 0 and 3; got \[1, 1\]"),
    "logits": ({"logits": torch.zeros(N, 3)}, r"logits must have the shape \(14, 4\); got \(14, 3\)"),
    "activations": ({"activations": torch.zeros(1, N, n)}, r"activations must have the shape \(2, 14, 3\); got"),
    "weights": ({"weights": torch.zeros(C, 2)}, r"weights must have the shape \(2, 3\); got \(2, 2\)"),
    "maps": (
        {"maps": torch.zeros(C, N, 2, 4, 4)},
        r"maps must have the shape \(2, 14, 3, 4, 4\); got \(2, 14, 2, 4, 4\)",
    ),
    "not finite": ({"logits": torch.full((N, K), torch.nan)}, "logits must be finite; got nan"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named(name):
    changes, message = WRONG[name]
    with pytest.raises(ValueError, match=f"^{message}"):
        unchecked("widgets/xfeatures").XFeatures(**given(**changes))


def test_names_and_votes_are_kept_in_a_file(tmp_path):
    kept = {**file("Ada", entry()), "others": [], "aside": []}
    XFeatures(**given(), file=tmp_path / "votes.json").kept = kept
    assert XFeatures(**given(), file=tmp_path / "votes.json").kept == kept


# ---------------------------------------------------------------------------------------------------------------------
# In Chromium


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return widget_pages.write_page(XFeatures(**given()), tmp_path_factory.mktemp("xfeatures")).parent


@pytest.fixture
def opened(browser, folder):
    """Open the page; at the end nothing may have gone wrong on it."""
    with widget_pages.visits(browser) as visit:

        def start(scheme="http", **settings):
            page = visit(folder, scheme, **settings)
            page.set_default_timeout(60_000)
            return page

        yield start


def module():
    return XFeatures(**given()).data["module"]


def numbers(page):
    """{"terms", "module", "network", "rival"} as the page has them, in full."""
    sums = page.get_by_role("group", name="One image as a sum of x-features")
    found = sums.locator("data").evaluate_all("all => all.map(one => Number(one.value))")
    return {"terms": found[:n], "module": found[n], "network": found[n + 1], "rival": found[n + 2]}


def choice(page, label):
    return page.locator("label.xw-choice", has_text=label).locator("select")


def upload(page, folder, **files):
    """Import files, each name=content; return what the page says, a line for each."""
    from playwright.sync_api import expect

    for name, content in files.items():
        (folder / name).write_bytes(content)
    page.get_by_label("Import votes").set_input_files([folder / name for name in files])
    expect(page.locator("input[type=file]")).to_have_js_property("value", "")
    return page.locator('[aria-label="Votes"] > [aria-live]').inner_text().splitlines()


def as_bytes(given):
    return json.dumps(given).encode()


def kept(page):
    return page.evaluate("localStorage.getItem('xai-widget one')")


def cells(page, table):
    lines = page.locator(f'table[aria-label="{table}"] tbody tr').all()
    return [[text.replace("\xa0", " ") for text in line.locator("td").all_inner_texts()] for line in lines]


@needs_browser
@pytest.mark.parametrize("scheme", ["http", "file"])
def test_an_x_feature_switched_off_changes_the_prediction_by_exactly_its_term(opened, scheme):
    page, made = opened(scheme), given()
    for k in range(C):
        choice(page, "Category").select_option(index=k)
        for i in (0, 3, 9):
            choice(page, "Image").select_option(index=i)
            before = numbers(page)
            logit = (made["weights"][k].double() * made["activations"][k, i].double()).sum().item()
            assert before["module"] == pytest.approx(logit, abs=1e-12)
            assert sum(before["terms"]) == pytest.approx(before["module"], abs=1e-12)
            assert before["network"] == made["logits"][i, k].item()
            for j in range(n):
                counts = page.get_by_label(f"x-feature {j + 1} counts")
                counts.uncheck()
                after = numbers(page)
                assert after["module"] == pytest.approx(before["module"] - before["terms"][j], abs=1e-12)
                assert after["terms"] == before["terms"]
                counts.check()
            assert numbers(page) == before


@needs_browser
def test_predictions_over_all_images(opened):
    """Against loops, with all x-features and without two of them."""
    page, made = opened(), given()
    choice(page, "Category").select_option(index=1)
    for j in (0, 2):
        page.get_by_label(f"x-feature {j + 1} counts").uncheck()

    def expected(logit):
        right = found = taken = 0
        apart = []
        for i in range(N):
            others = [x for c, x in enumerate(made["logits"][i].tolist()) if c != 1]
            yes, own = logit(i) > max(others), made["labels"][i].item() == 1
            right, found, taken = right + (yes == own), found + (yes and own), taken + (yes and not own)
            apart.append(abs(logit(i) - made["logits"][i, 1].item()))
        own = (made["labels"] == 1).sum().item()
        share = f"{right} of {N}, {100 * right / N:.1f} %"
        return [share, f"{found} of {own}", f"{taken} of {N - own}", f"{np.mean(apart):.2f}"]

    terms = made["weights"][1].double() * made["activations"][1].double()
    wanted = [
        ["the network", *expected(lambda i: made["logits"][i, 1].item())],
        ["all x-features", *expected(lambda i: terms[i].sum().item())],
        ["what counts", *expected(lambda i: terms[i, 1].item())],
    ]
    assert cells(page, "decisions") == wanted
    assert wanted[1] != wanted[2], "it makes a difference"
    said = page.locator(".xw-said").inner_text()
    assert said.startswith("x-feature 3 off: the module's logit is ")
    assert f"{wanted[2][1].split(',')[0]} images right" in said


@needs_browser
@pytest.mark.parametrize("scheme", ["http", "file"])
def test_names_and_votes_survive_a_reload_and_an_export(opened, scheme, tmp_path):
    page = opened(scheme)
    page.get_by_label("name of x-feature 2").fill(f"  {HTML}\u202e ")
    page.get_by_label("name of x-feature 2").press("Enter")
    page.get_by_role("button", name="distrust x-feature 2", exact=True).click()
    page.get_by_role("button", name="trust x-feature 3", exact=True).click()
    page.get_by_role("button", name="trust x-feature 3", exact=True).click()  # no vote after all
    page.get_by_role("button", name="export my votes").click()
    assert "Who votes?" in page.locator('[aria-label="Votes"]').inner_text()
    page.get_by_role("textbox", name="voter").fill("Zoë")
    page.get_by_role("textbox", name="voter").press("Tab")
    page.reload()
    page.wait_for_selector('[data-state="running"]')
    assert page.get_by_role("button", name="distrust x-feature 2", exact=True).get_attribute("aria-pressed") == "true"
    assert page.get_by_role("button", name="trust x-feature 3", exact=True).get_attribute("aria-pressed") == "false"
    assert page.get_by_label("name of x-feature 2").input_value() == HTML
    assert cells(page, "agreement of all voters") == [["crow", "2", HTML, "0", "1", "100 %", "1"]]
    assert page.locator(".xw img").count() == 0
    with page.expect_download() as download:
        page.get_by_role("button", name="export my votes").click()
    download.value.save_as(tmp_path / download.value.suggested_filename)
    wanted = file("Zoë", entry("crow", 2, HTML, "distrust"), module=module())
    assert votes.read(tmp_path / "votes-Zoë.json") == wanted


@needs_browser
def test_voters_are_combined_as_in_python(opened, tmp_path):
    """Two imported, one of them twice, and the reader; what most distrust is switched off."""
    old = CLASSES[1]
    ada = file("Ada", entry("crow", 1, "wing", "distrust"), entry(old, 3), module=module())
    bob = file("Bob", entry("crow", 1, HTML, "distrust"), entry(old, 3, "", "distrust"), module=module())
    page = opened()
    said = upload(page, tmp_path, **{"ada.json": as_bytes(ada), "bob.json": as_bytes(bob), "ada 2.json": as_bytes(ada)})
    assert said[0] == '"ada.json": taken, 2 x-features by "Ada".'
    assert said[2] == '"ada 2.json": refused: votes of "Ada" are here already.'
    page.get_by_role("button", name="trust x-feature 1", exact=True).click()
    me = file("me", entry("crow", 1), module=module())
    wanted = [
        [row.category, str(row.feature), ", ".join(row.names), str(row.trust), str(row.distrust),
         f"{100 * row.agreement:.0f} %", str(row.voters)]
        for row in votes.combine([me, ada, bob])
    ]  # fmt: skip
    assert cells(page, "agreement of all voters") == wanted
    assert wanted[0][3:] == ["1", "2", "67 %", "3"]
    before = numbers(page)
    page.get_by_role("button", name="switch off what I distrust").click()
    assert numbers(page) == before, "I distrust none"
    page.get_by_role("button", name="switch off what most distrust").click()
    assert numbers(page)["module"] == pytest.approx(before["module"] - before["terms"][0], abs=1e-12)
    assert not page.get_by_label("x-feature 1 counts").is_checked()
    choice(page, "Category").select_option(index=1)
    assert page.get_by_label("x-feature 3 counts").is_checked(), "a tie switches nothing off"
    page.get_by_role("button", name="remove votes of Bob").click()
    assert "Bob" not in page.locator('[aria-label="Votes"] li').all_inner_texts()[0]
    assert page.get_by_role("button", name="go on with votes of Ada as mine").is_disabled(), "mine would be lost"
    choice(page, "Category").select_option(index=0)
    page.get_by_role("button", name="trust x-feature 1", exact=True).click()
    page.get_by_role("button", name="go on with votes of Ada as mine").click()
    assert page.get_by_role("textbox", name="voter").input_value() == "Ada"
    assert upload(page, tmp_path, **{"ada.json": as_bytes(ada)}) == [
        '"ada.json": refused: votes of "Ada" are here already, as yours.'
    ]


HOSTILE = {
    name: as_bytes(one | {"module": module()} if isinstance(one, dict) else one) for name, (one, _) in REFUSED.items()
}
HOSTILE |= {
    "other module": as_bytes(file("Ada")),
    "other category": as_bytes(file("Ada", entry("emu"), module=module())),
    "x-feature 4": as_bytes(file("Ada", entry(feature=4), module=module())),
    "no json": b"{",
    "nan": as_bytes(file("Ada", entry(), module=module())).replace(b'"trust"', b"NaN"),
    "html": b"<script>hacked = 1</script>",
    "deep": b"[" * 400_000,
    "no text": b"\xff\xfe\x00",
    "ten megabytes": as_bytes(file("a" * 10_000_000, module=module())),
    "toString": as_bytes(file("Ada", {**entry(), "vote": {"toString": 1, "toJSON": 2}}, module=module())),
}


@needs_browser
def test_what_comes_from_outside_is_refused_in_a_line_and_nothing_is_lost(opened, tmp_path):
    page, dialogs = opened(), []
    page.on("dialog", lambda one: dialogs.append(one.message) or one.dismiss())
    page.get_by_role("button", name="trust x-feature 1", exact=True).click()
    before = kept(page)
    for name, content in HOSTILE.items():
        (line,) = upload(page, tmp_path, **{f"<img src=x onerror=hacked=1> {name}.json": content})
        assert ": refused: " in line, name
        assert len(line) < 200, name
        reason = REFUSED.get(name, ("", ""))[1].replace("this library", "this explorer")
        assert reason in line, name
        assert {"ten megabytes": "10.0 MB is more than 1 MB", "nan": "it is no JSON"}.get(name, "") in line
        assert kept(page) == before, name
    assert page.evaluate("[typeof hacked, ({}).x, document.querySelectorAll('.xw img, .xw script').length]") == [
        "undefined", None, 0,
    ]  # fmt: skip
    assert dialogs == []
    assert numbers(page)["terms"], "the page goes on"


@needs_browser
@pytest.mark.parametrize("what", ["other module", "broken", "hostile"])
def test_what_was_kept_and_does_not_fit_is_set_aside_and_not_lost(opened, what, tmp_path):
    old = {
        "other module": {**file("Ada", entry()), "others": [], "aside": []},
        "broken": {**file("Ada", entry(vote=3), module=module()), "others": "none"},
        "hostile": {"__proto__x": {"polluted": 1}, "features": HTML},
    }[what]
    page = opened()
    page.evaluate("kept => localStorage.setItem('xai-widget one', kept)", json.dumps(old))
    page.reload()
    page.wait_for_selector('[data-state="running"]')
    assert "does not fit" in page.locator('[aria-label="Votes"]').inner_text()
    assert json.loads(kept(page)) == old, "looking changes nothing"
    page.get_by_role("button", name="trust x-feature 1", exact=True).click()
    assert json.loads(kept(page))["aside"] == [old]
    assert cells(page, "agreement of all voters") == [["crow", "1", "", "1", "0", "100 %", "1"]]
    page.reload()
    page.wait_for_selector('[data-state="running"]')
    with page.expect_download() as download:
        page.get_by_role("button", name="save it").click()
    download.value.save_as(tmp_path / "aside.json")
    assert json.loads((tmp_path / "aside.json").read_text()) == [old]
    page.get_by_role("button", name="forget it").click()
    assert json.loads(kept(page))["aside"] == []


@needs_browser
def test_an_exported_file_serves_as_what_is_kept(opened):
    page = opened()
    old = file("Ada", entry(name="wing"), module=module())
    page.evaluate("kept => localStorage.setItem('xai-widget one', kept)", json.dumps(old))
    page.reload()
    page.wait_for_selector('[data-state="running"]')
    assert page.get_by_label("name of x-feature 1").input_value() == "wing"


@needs_browser
def test_images_of_an_x_feature_are_sorted_by_what_it_adds(opened):
    page, made = opened(), given()
    page.get_by_role("button", name="x-feature 3 across images").click()
    terms = (made["weights"][0, 2].double() * made["activations"][0, :, 2].double()).tolist()
    thumbs = page.locator('[aria-label="One x-feature across images"] button:has(canvas)')
    assert thumbs.count() == 12
    page.get_by_role("button", name=f"show all {N}").click()
    shown = [int(one.get_attribute("data-image")) for one in thumbs.all()]
    assert sorted(shown) == list(range(N))
    sizes = [abs(terms[i]) for i in shown]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 0
    thumbs.nth(2).click()
    assert numbers(page)["terms"][2] == pytest.approx(terms[shown[2]], abs=1e-12)
    assert thumbs.nth(2).get_attribute("aria-pressed") == "true"


@needs_browser
def test_an_image_has_its_colours_where_the_map_is(opened):
    """The first map of the first image has its upper left corner alone."""
    page, image = opened(), given()["images"][0]
    found = widget_pages.pixels(page.get_by_role("group", name="x-feature 1", exact=True).locator("canvas"))
    assert found[:3, :3].tolist() == image[:, :3, :3].permute(1, 2, 0).tolist()
    assert found[5:, 5:].min() >= 190, "pale elsewhere"


@needs_browser
def test_by_keyboard_alone(opened):
    page = opened()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")  # the next category
    assert choice(page, "Category").input_value() == CLASSES[1]
    for wanted, key in (("distrust x-feature 1", "Space"), ("x-feature 1 counts", "Space"), ("next image", "Enter")):
        widget_pages.tab_to(page, wanted)
        page.keyboard.press(key)
        assert widget_pages.focused(page) == wanted, "focus stays"
    assert page.get_by_role("button", name="distrust x-feature 1", exact=True).get_attribute("aria-pressed") == "true"
    assert not page.get_by_label("x-feature 1 counts").is_checked()
    assert choice(page, "Image").input_value().startswith("3: owl")
    assert page.locator(".xw-said").inner_text() == "Now image 3, owl."


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_phone_and_everything_has_a_name(opened, scheme):
    page = opened("file", viewport={"width": 400, "height": 800}, color_scheme=scheme)
    name = "w" * 60
    page.get_by_label("name of x-feature 1").fill(name)
    page.get_by_label("name of x-feature 1").press("Tab")
    assert cells(page, "agreement of all voters")[0][2] == name
    widget_pages.assert_fits(page)
    assert page.locator(".xw [id]").count() == 0, "a second one may stand on the page"
