"""What the widgets share: packing, files, and the page's host that runs modules without a kernel."""

import json

import numpy as np
import pytest
import widget_pages
from site_browser import needs_browser, serve

from workflow import widgets
from xai_lib.widgets import base

MODULE = """export default { render({ model, el }) {
  const packed = unpack(model.get("data").array);
  const said = spoken();
  said.textContent = JSON.stringify([packed.shape, [...packed.values], model.get("kept")]);
  const add = button("add", () => {
    model.set("kept", { n: (model.get("kept").n ?? 0) + 1 });
    model.save_changes();
  });
  if (model.get("data").fails) throw new Error("on purpose");
  frame(model, el, said, add);
} };
"""


class Fake(base.Widget):
    _esm = "export default {}"


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("float16", 5e-4), ("int8", 1 / 254), ("uint8", 0)])
def test_pack_keeps_the_values(dtype, error):
    values = np.array([[0.0, 255.0, 3.0], [17.0, 1.0, 128.0]])
    packed = base.pack(values, dtype)
    read = np.frombuffer(packed["bytes"], np.dtype(dtype).newbyteorder("<")) * packed["scale"]
    assert packed["shape"] == [2, 3]
    assert np.abs(read.reshape(2, 3) - values).max() <= error * 255
    assert len(packed["bytes"]) == 6 * np.dtype(dtype).itemsize


def test_pack_keeps_signs_and_zeros():
    packed = base.pack([-2.0, 0.0, 1.0], "int8")
    assert np.frombuffer(packed["bytes"], np.int8).tolist() == [-127, 0, 64]
    assert base.pack([0.0, 0.0], "int8")["scale"] == 1.0


@pytest.mark.parametrize(
    ("array", "dtype", "message"),
    [
        ([1.0], "float64", "dtype is float32, float16, uint8 or int8, got 'float64'"),
        ([np.nan], "float32", r"array does not fit into float32: its values are in \[nan"),
        ([70000.0], "float16", r"array does not fit into float16: its values are in \[70000.0"),
        ([-1.0], "uint8", r"array does not fit into uint8: its values are in \[-1.0"),
        ([np.inf], "int8", "array does not fit into int8"),
    ],
)
def test_pack_refuses(array, dtype, message):
    with pytest.raises(ValueError, match=message):
        base.pack(array, dtype)


def test_source_joins_what_all_share_and_names_what_there_is():
    for name in base.names():
        assert base.source(name).startswith((base.FOLDER / "common.js").read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match="no widget 'nothing'; there are "):
        base.source("nothing")


def test_what_the_reader_made_is_kept_in_a_file(tmp_path):
    file = tmp_path / "votes.json"
    Fake({}, "a widget", file).kept = {"name": "Schnabel <b>"}
    assert json.loads(file.read_text(encoding="utf-8")) == {"name": "Schnabel <b>"}
    assert Fake({}, "a widget", file).kept == {"name": "Schnabel <b>"}
    assert [path.name for path in tmp_path.iterdir()] == ["votes.json"]


@pytest.mark.parametrize("name", ["gone/votes.json", "."])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_voted(tmp_path, name):
    with pytest.raises(ValueError, match="file must be a file in a folder that is there; got .*"):
        Fake({}, "a widget", tmp_path / name)


@pytest.mark.parametrize("text", ["[1]", "{", ""])
def test_a_file_that_holds_something_else_is_refused_and_left_alone(tmp_path, text):
    file = tmp_path / "votes.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="holds no JSON object"):
        Fake({}, "a widget", file)
    assert file.read_text() == text


# ---------------------------------------------------------------------------------------------------------------------
# The page's host


@pytest.fixture
def fake_page(tmp_path, monkeypatch):
    """Write a page with a widget of the kind `fake`; return its path."""
    monkeypatch.setattr(widgets, "kind_of", lambda state: "fake")

    def write(**more):
        path = widget_pages.write_page(Fake({"array": base.pack([[1.5, -2.0, 3e-5]])} | more, "a widget"), tmp_path)
        module = (base.FOLDER / "common.js").read_text(encoding="utf-8") + MODULE
        script = widgets.script("fake", {"module": module, "style": base.style()})
        (tmp_path / "widgets" / "fake.js").write_text(script, encoding="utf-8")
        return path

    return write


@needs_browser
@pytest.mark.parametrize("scheme", ["http", "file"])
def test_a_widget_runs_and_what_is_kept_outlives_the_page(browser, fake_page, scheme):
    path, said = fake_page(), []
    address, stop = serve(path.parent) if scheme == "http" else (path.parent.as_uri(), lambda: None)
    page = widget_pages.opened(browser, f"{address}/index.html", said)
    shape, values, kept = json.loads(page.inner_text(".xw-said"))
    assert shape == [1, 3]
    assert values == pytest.approx([1.5, -2.0, 3e-5], rel=1e-3)  # the last one is subnormal in float16
    assert kept == {}
    page.get_by_role("button", name="add").press("Enter")
    page.reload()
    page.wait_for_selector('[data-state="running"]')
    assert json.loads(page.inner_text(".xw-said"))[2] == {"n": 1}
    assert page.locator("text=static picture").count() == 0
    page.evaluate("Object.keys(localStorage).forEach(key => localStorage.setItem(key, '[broken'))")
    page.reload()
    page.wait_for_selector('[data-state="running"]')
    assert json.loads(page.inner_text(".xw-said"))[2] == {}
    stop()
    assert said == []


@needs_browser
def test_where_a_widget_fails_the_picture_stays(browser, fake_page):
    page = browser.new_page()
    page.goto(fake_page(fails=True).as_uri())
    page.wait_for_selector('[data-state="failed"]')
    assert page.inner_text(".xai-widget") == "static picture"
    page.close()


@needs_browser
def test_a_widget_far_below_waits_for_its_reader(browser, fake_page):
    path = fake_page()
    path.write_text(path.read_text().replace("<main>", '<main><div style="height: 5000px"></div>'))
    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_timeout(300)
    assert page.get_attribute(".xai-widget", "data-state") is None
    page.locator(".xai-widget").scroll_into_view_if_needed()
    page.wait_for_selector('[data-state="running"]')
    page.close()
