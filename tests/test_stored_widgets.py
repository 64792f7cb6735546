"""``workflow.widgets``: what papermill stored of widgets becomes places and scripts on pages."""

import json

import pytest

from workflow import widgets
from xai_lib.widgets import base


def notebook(tags=("widget-one",), kind="digit"):
    state = {"_esm": "x" * 1000, "_css": "y", "_anywidget_id": f"xai_lib.widgets.{kind}.Any", "data": {"a": {}}}
    buffers = [{"path": ["data", "a", "bytes"], "encoding": "base64", "data": "AAEC"}]
    view = {"data": {widgets.VIEW: {"model_id": "m1"}, "text/plain": "Any()"}, "output_type": "display_data"}
    return {
        "metadata": {"widgets": {widgets.STATE: {"state": {"m1": {"state": state, "buffers": buffers}, "m2": {}}}}},
        "cells": [
            {"cell_type": "markdown", "metadata": {}, "source": "text"},
            {"cell_type": "code", "metadata": {"tags": list(tags)}, "source": "w", "outputs": [view]},
        ],
    }


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setattr(base, "names", lambda: ["digit"])


def test_the_state_becomes_a_script_and_the_view_a_place(tmp_path, known):
    source = notebook()
    before = json.dumps(source)
    page = widgets.lay_out(source, "published/nb", tmp_path)
    text = (tmp_path / "published" / "nb" / "widget-one.js").read_text(encoding="utf-8")
    path, value = json.loads(f"[{text.removeprefix('xaiWidgets(').removesuffix(');' + chr(10))}]")
    assert path == "published/nb/widget-one"
    assert value["state"] == {"_anywidget_id": "xai_lib.widgets.digit.Any", "data": {"a": {}}}
    assert value["buffers"][0]["data"] == "AAEC"
    shown = page["cells"][1]["outputs"][0]["data"]
    assert shown["text/html"] == (
        '<div class="xai-widget" data-widget="published/nb/widget-one" data-kind="digit"></div>'
    )
    assert widgets.VIEW not in shown
    assert "widgets" not in page["metadata"]
    assert json.dumps(source) == before, "the notebook that is published stays as it is"


def test_a_widget_without_tag_leaves_its_text_alone(tmp_path, known):
    page = widgets.lay_out(notebook(tags=()), "own/nb", tmp_path)
    assert page["cells"][1]["outputs"][0]["data"] == {"text/plain": "Any()"}
    assert list(tmp_path.iterdir()) == []


def test_a_widget_of_others_is_refused(known):
    with pytest.raises(ValueError, match="no widget of xai_lib: xai_lib.widgets.other.Any"):
        widgets.kind_of({"_anywidget_id": "xai_lib.widgets.other.Any"})
    with pytest.raises(ValueError, match="no widget of xai_lib: None"):
        widgets.kind_of({})


def test_every_widget_has_its_module_on_the_site(tmp_path):
    widgets.write_modules(tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == {"host", *base.names()}
    for name in base.names():
        text = (tmp_path / f"{name}.js").read_text(encoding="utf-8")
        assert "</script" not in text
        assert (
            base.source(name)
            in json.loads(f"[{text.removeprefix('xaiWidgets(').removesuffix(');' + chr(10))}]")[1]["module"]
        )
