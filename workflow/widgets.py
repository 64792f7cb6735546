"""Widgets on pages without a kernel: what papermill stored of them, as scripts that ``host.js`` reads.

A notebook's cell tagged ``widget-<name>`` shows one widget of `xai_lib.widgets`. Its state is taken out of the executed
notebook into ``widgets/<run>/<notebook>/<tag>.js``; the widget's module comes from the library as it is now, so that a
mended widget needs no new run. Plain scripts: a page opened from a disk may read no JSON and import no module by path.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from xai_lib.widgets import base

VIEW, STATE = "application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json"


def script(path: str, value: Mapping) -> str:
    """Return a script that hands a value to ``host.js`` under a path."""
    return f"xaiWidgets({json.dumps(path)}, {json.dumps(value, separators=(',', ':'))});\n"


def kind_of(state: Mapping) -> str:
    """Return which widget a stored state belongs to: ``digit`` for ``xai_lib.widgets.digit.Digit``.

    Raises
    ------
    ValueError
        It is no widget of this library.
    """
    name = str(state.get("_anywidget_id", "")).removeprefix("xai_lib.widgets.").split(".")[0]
    if name not in base.names():
        raise ValueError(f"no widget of xai_lib: {state.get('_anywidget_id')}")
    return name


def place(path: str, kind: str, inside: str = "") -> str:
    """Return the HTML of a widget's place; what is `inside` stands there until it runs, or where it cannot."""
    return f'<div class="xai-widget" data-widget="{path}" data-kind="{kind}">{inside}</div>'


def stored(notebook: Mapping) -> dict[str, dict]:
    """Return {tag: {"state", "buffers"}} of the widgets that an executed notebook shows in tagged cells."""
    states = notebook["metadata"].get("widgets", {}).get(STATE, {}).get("state", {})
    found = {}
    for cell in notebook["cells"]:
        for tag in cell["metadata"].get("tags", []):
            for output in cell.get("outputs", []) if tag.startswith("widget-") else []:
                if shown := output.get("data", {}).get(VIEW):
                    found[tag] = _trimmed(states[shown["model_id"]])
    return found


def _trimmed(one: Mapping) -> dict:
    """Leave out the module and the style that anywidget stored: the library's own of today are used."""
    state = {name: value for name, value in one["state"].items() if name not in ("_esm", "_css")}
    return {"state": state, "buffers": one.get("buffers", [])}


def lay_out(notebook: Mapping, path: str, folder: Path) -> dict:
    """Write the states of a notebook's widgets below `folder`; return the notebook with places instead of views.

    Parameters
    ----------
    notebook : dict
        An executed notebook.
    path : str
        Its run, for instance ``published/xcnn_digit``.
    folder : Path
        The site's folder of widgets.
    """
    states = stored(notebook)
    for tag, one in states.items():
        target = folder / path / f"{tag}.js"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(script(f"{path}/{tag}", one), encoding="utf-8")
    copy = json.loads(json.dumps(notebook))
    copy["metadata"].pop("widgets", None)
    for cell in copy["cells"]:
        for output in cell.get("outputs", []):
            if output.get("data", {}).pop(VIEW, None):
                tag = next((tag for tag in cell["metadata"].get("tags", []) if tag in states), None)
                if tag:
                    output["data"]["text/html"] = place(f"{path}/{tag}", kind_of(states[tag]["state"]))
    return copy


def write_modules(folder: Path) -> None:
    """Write ``host.js`` and a script for each widget's module into the site's folder of widgets."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "host.js").write_text((base.FOLDER / "host.js").read_text(encoding="utf-8"), encoding="utf-8")
    for name in base.names():
        value = {"module": base.source(name), "style": base.style()}
        (folder / f"{name}.js").write_text(script(name, value), encoding="utf-8")
