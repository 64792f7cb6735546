"""The five widgets in a real JupyterLab: its own anywidget draws them, a kernel keeps what the reader makes of them.

One server and one notebook for the whole module; each test but the last leaves its widget as it found it.
"""

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
import test_compare
import test_digit
import test_explorer
import test_mixer
import test_votes
import test_xfeatures
import torch
from axe_playwright_python.sync_playwright import Axe
from site_browser import ROOT, needs_browser, watched

pytestmark = [
    needs_browser,
    pytest.mark.skipif(not importlib.util.find_spec("jupyterlab"), reason="no jupyterlab in this Python"),
]

OPTIONS = ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"]
OPTIONS += ["--LabApp.news_url=None", "--LabApp.extension_manager=readonly"]  # nothing is asked of other hosts
QUIET = {"fetchNews": "false", "checkForUpdates": False}
LABELS = {  # how they begin
    "digit": "Draw a digit",
    "compare": "Compare heatmaps",
    "xfeatures": "x-feature explorer",
    "mixer": "Concept mixer",
    "explorer": "results explorer",
}
FIRST = """import os, sys, torch
from xai_lib.widgets.compare import Compare
from xai_lib.widgets.digit import Digit
from xai_lib.widgets.explorer import Explorer
from xai_lib.widgets.mixer import Mixer
from xai_lib.widgets.xfeatures import XFeatures
given = torch.load("given.pt", weights_only=False)
print(sys.executable, os.getpid())"""
CELLS = [
    FIRST,
    'Digit(**given["digit"])',
    'Compare(**given["compare"])',
    'XFeatures(**given["xfeatures"], file="votes.json")',
    'Mixer(**given["mixer"])',
    'Explorer(**given["explorer"])',
]


@functools.cache
def given():
    """What the widgets are made of: as in the tests of each."""
    samples = test_digit.digits()
    return {
        "digit": {"model": test_digit.taught(), "prepare": test_digit.PREPARE, "samples": samples, "sign": -1},
        "compare": test_compare.GIVEN,
        "xfeatures": test_xfeatures.given(),
        "mixer": {"model": test_mixer.network(), "images": test_mixer.DIGITS, "names": test_mixer.NAMES},
        "explorer": {"rows": test_explorer.ROWS, "values": test_explorer.VALUES, "claims": test_explorer.CLAIMS},
    }


# ---------------------------------------------------------------------------------------------------------------------
# The server and the notebook


def own_environment(home):
    """The environment of a user who has nothing yet: Jupyter and IPython keep all that is theirs below the home."""
    settings = home / ".jupyter/lab/user-settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps(QUIET), encoding="utf-8")
    others = {name: one for name, one in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON", "XDG_"))}
    return others | {"HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def announced(process, home):
    """What the server says of itself in its runtime folder, once it is there; the page to open is written last."""
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        if any(home.rglob("jpserver-*-open.html")):
            return json.loads(next(home.rglob("jpserver-*.json")).read_text(encoding="utf-8"))
        time.sleep(0.1)
    raise AssertionError((home / "log").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """JupyterLab with widgets.ipynb in its folder: {"url", "token", "root_dir", ...}."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("notebooks")
    torch.save(given(), folder / "given.pt")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [nbformat.v4.new_code_cell(one) for one in CELLS]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / "widgets.ipynb")
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *OPTIONS, f"--ServerApp.root_dir={folder}"],
            env=own_environment(home),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield announced(process, home)
    finally:
        process.terminate()  # it ends its kernels
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()  # kernels end where their server is gone
            process.wait()


def menu(page, name, command):
    page.get_by_role("menuitem", name=name, exact=True).click()
    page.locator(f'.lm-Menu-item[data-command="{command}"]').click()


def wait_for_widgets(page):
    """Wait until five new widgets are drawn, or a cell has failed."""
    failed = '[data-mime-type="application/vnd.jupyter.stderr"]'
    drawn = "document.querySelectorAll('.xw-frame:not([data-old])').length === 5"
    page.wait_for_function(f"{drawn} || document.querySelector('{failed}')")
    assert page.locator(failed).all_inner_texts() == []


@pytest.fixture(scope="module")
def notebook(browser, server):
    """The notebook after all its cells have run, and the list of what goes wrong on the page."""
    said = []
    page = watched(browser, server["url"], said, ("error",), viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(90_000)
    page.goto(f"{server['url']}lab/tree/widgets.ipynb?token={server['token']}")
    page.get_by_text(re.compile(r"^Python 3.* \| Idle$")).wait_for()  # in the bar at the bottom: the kernel is there
    menu(page, "Run", "runmenu:run-all")
    wait_for_widgets(page)
    yield page, said
    page.context.close()


@pytest.fixture
def lab(notebook):
    """The page; at the end nothing may have gone wrong on it."""
    page, said = notebook
    yield page
    found = said.copy()
    said.clear()
    assert found == []


def wait_until(page, holds):
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "it does not come about"
        page.wait_for_timeout(100)


def widget(page, name):
    """The output of the cell that holds a widget."""
    found = page.locator(".jp-OutputArea-output", has=page.locator(f'.xw-frame[aria-label^="{LABELS[name]}"]'))
    found.scroll_into_view_if_needed()
    return found


# ---------------------------------------------------------------------------------------------------------------------
# What each is for


def test_the_extension_that_is_installed_draws_them(lab):
    """It came with the package: nothing was built, and no other server is asked for it."""
    config = json.loads(lab.locator("#jupyter-config-data").text_content())
    (load,) = (one["load"] for one in config["federated_extensions"] if one["name"] == "anywidget")
    assert (Path(sys.prefix, "share", "jupyter", "labextensions", "anywidget") / load).is_file()
    loaded = lab.evaluate("performance.getEntriesByType('resource').map((one) => new URL(one.name).pathname)")
    assert any(one.startswith("/lab/extensions/anywidget/static/remoteEntry") for one in loaded)
    assert lab.locator(".jp-OutputArea-output").first.text_content().startswith(f"{sys.executable} ")
    for label in LABELS.values():
        assert lab.get_by_role("group", name=re.compile(f"^{label}")).count() == 1


def test_strokes_change_the_map_and_the_label(lab):
    place, model = widget(lab, "digit"), given()["digit"]["model"]
    place.get_by_role("button", name="Clear").click()
    labels, maps = [place.locator("strong").inner_text()], [test_digit.pixels(place, "Heatmap")]
    for line in ([(0.5, 0.1), (0.5, 0.9)], [(0.2, 0.1), (0.2, 0.5), (0.8, 0.5)]):
        test_digit.stroke(place, *line)
        seen = 255 - test_digit.pixels(place, "What the network sees, 28")[..., 0]
        _, (chances,) = test_digit.in_torch(model, torch.tensor(seen, dtype=torch.uint8)[None, None])
        np.testing.assert_allclose(test_digit.table(place)[0], 100 * chances, atol=0.1)
        labels.append(place.locator("strong").inner_text())
        maps.append(test_digit.pixels(place, "Heatmap"))
        assert labels[-1] == str(chances.argmax())
        assert place.locator(".xw-said").inner_text().startswith(f"Stroke {len(labels) - 1}: read as {labels[-1]} ")
        assert np.abs(maps[-1] - maps[-2]).mean() > 2
    assert len(set(labels)) > 1
    place.get_by_role("button", name="Clear").click()


def test_the_threshold_changes_the_box_and_its_iou(lab):
    place = widget(lab, "compare")
    test_compare.choose(place, 0, "smooth", "peaks")
    found = test_compare.swept(place)
    for k, method in enumerate(["smooth", "peaks"]):
        boxes, ious = test_compare.expected(method, 0)
        assert [one[k][0] for one in found] == boxes.tolist()
        assert [float(one[k][1].removeprefix("IoU ")) for one in found] == pytest.approx(ious.tolist(), abs=0.00501)
        assert len(boxes.unique(dim=0)) > 2
        assert len(ious.unique()) > 2


def test_a_distrusted_x_feature_changes_the_prediction_by_its_term(lab):
    place = widget(lab, "xfeatures")
    before = test_xfeatures.numbers(place)
    distrust = place.get_by_role("button", name="distrust x-feature 1", exact=True)
    distrust.click()
    place.get_by_role("button", name="switch off what I distrust").click()
    after = test_xfeatures.numbers(place)
    assert abs(before["terms"][0]) > 0.1
    assert after["module"] == pytest.approx(before["module"] - before["terms"][0], abs=1e-12)
    place.get_by_role("button", name="all on").click()
    distrust.click()
    assert test_xfeatures.numbers(place) == before


def test_a_concept_button_changes_the_drawing(lab):
    place, model = widget(lab, "mixer"), given()["mixer"]["model"]
    start = test_mixer.latent(model)
    assert test_mixer.agree(place, model, start)
    test_mixer.tile(place, 14).click()
    assert test_mixer.agree(place, model, start, {14: 0})
    assert np.abs(test_mixer.drawn(model, start) - test_mixer.drawn(model, start, {14: 0})).max() > 0.05
    test_mixer.tile(place, 14).click()
    assert test_mixer.agree(place, model, start)


def test_a_filter_changes_the_rows_and_not_the_address(lab):
    place, address = widget(lab, "explorer"), lab.url
    assert test_explorer.shown(place) == "abcd"
    test_explorer.verdict(place, "partly").click()
    assert (test_explorer.shown(place), place.locator(".xw-said").inner_text()) == ("b", "1 of 4 claims")
    place.get_by_role("button", name="show all").click()
    assert test_explorer.shown(place) == "abcd"
    assert test_explorer.fragment(lab) == ""
    assert lab.url == address


# ---------------------------------------------------------------------------------------------------------------------
# What only JupyterLab has: keys of its own, themes of its own, and a kernel


def test_arrow_keys_move_sliders_and_choices_and_not_the_cells(lab):
    place = widget(lab, "compare")
    threshold, image = place.get_by_role("slider", name="Threshold"), place.get_by_role("combobox", name="Image")
    test_compare.choose(place, 0, "smooth", "peaks")
    threshold.fill("0.5")
    for key, value in {"ArrowRight": "0.51", "ArrowUp": "0.52", "ArrowLeft": "0.51", "ArrowDown": "0.5"}.items():
        threshold.press(key)
        assert threshold.input_value() == value, key
    image.press("ArrowDown")
    assert image.evaluate("one => one === document.activeElement && one.selectedIndex") == 1
    assert place.locator(".xw-said").inner_text().startswith(test_compare.HOSTILE)


def grounds(page):
    """How light each widget's ground is, 0 to 255."""
    found = page.locator(".xw-frame").evaluate_all("all => all.map((one) => getComputedStyle(one).backgroundColor)")
    return [sum(map(int, re.findall(r"\d+", one)[:3])) / 3 for one in found]


def contrasts(page):
    """Texts of the widgets that are clear enough to be read, and those that are not, as axe-core sees them."""
    options = {"runOnly": ["color-contrast"], "resultTypes": ["violations", "passes"]}
    found = Axe().run(page, context={"include": [".xw-frame"]}, options=options).response
    return [[node["html"] for rule in found[kind] for node in rule["nodes"]] for kind in ("passes", "violations")]


@pytest.mark.parametrize(("theme", "low", "high"), [("JupyterLab Dark", 0, 60), ("JupyterLab Light", 200, 255)])
def test_texts_can_be_read_in_both_themes(lab, theme, low, high):
    lab.set_viewport_size({"width": 1280, "height": 5000})  # what is far below is not laid out
    lab.add_style_tag(content="body { height: 100vh }")  # JupyterLab's has none: axe would take all for hidden
    lab.get_by_role("menuitem", name="Settings", exact=True).click()
    lab.locator(".lm-Menu-itemLabel", has_text=re.compile("^Theme$")).hover()
    lab.locator('.lm-Menu-item[data-command="apputils:change-theme"]', has_text=re.compile(f"^{theme}$")).click()
    wait_until(lab, lambda: all(low <= one <= high for one in grounds(lab)) and len(contrasts(lab)[0]) > 100)
    assert len(grounds(lab)) == 5
    assert contrasts(lab)[1] == []
    lab.set_viewport_size({"width": 1280, "height": 1000})


def test_names_and_votes_are_in_the_file_and_outlive_the_kernel(lab, server):
    file, place = Path(server["root_dir"], "votes.json"), widget(lab, "xfeatures")
    for label, text in {"name of x-feature 1": "wing", "voter": "Zoë"}.items():
        place.get_by_label(label, exact=True).fill(text)
        place.get_by_label(label, exact=True).press("Tab")
    place.get_by_role("button", name="distrust x-feature 2", exact=True).click()
    entries = test_votes.entry("crow", 1, "wing", None), test_votes.entry("crow", 2, "", "distrust")
    wanted = test_votes.file("Zoë", *entries, module=test_xfeatures.module()) | {"others": [], "aside": []}
    wait_until(lab, lambda: file.exists() and json.loads(file.read_text(encoding="utf-8")) == wanted)

    kernel = lab.locator(".jp-OutputArea-output").first.text_content()
    lab.locator(".xw-frame").evaluate_all("all => all.forEach((one) => { one.dataset.old = 'true'; })")
    menu(lab, "Run", "runmenu:restart-and-run-all")
    lab.get_by_role("button", name="Confirm Kernel Restart").click()
    wait_for_widgets(lab)
    assert lab.locator(".jp-OutputArea-output").first.text_content() != kernel
    place = widget(lab, "xfeatures")
    assert place.get_by_label("name of x-feature 1").input_value() == "wing"
    assert place.get_by_label("voter", exact=True).input_value() == "Zoë"
    distrust = place.get_by_role("button", name="distrust x-feature 2", exact=True)
    assert distrust.get_attribute("aria-pressed") == "true"
    assert json.loads(file.read_text(encoding="utf-8")) == wanted
