"""A widget on a page of its own, as the book shows it: no kernel, no other host, the policy in the head.

And what tests of several widgets ask of a page, or of any part of it that a locator names.
"""

import contextlib
import sys
from pathlib import Path

import numpy as np
from ipywidgets import embed
from site_browser import serve, watched

from workflow import widgets

sys.path.append(str(Path(__file__).resolve().parent.parent / "book" / "_ext"))
from run_figure import POLICY  # noqa: E402


def entry(widget):
    """What papermill stores of a widget: {"state", "buffers"}."""
    states = embed.dependency_state([widget], drop_defaults=False)
    return states[widget.model_id]


def write_page(widget, folder, inside="<p>static picture</p>"):
    """Write index.html with one widget, and all that it needs, into a folder; return the path of the page."""
    stored = entry(widget)
    state = {name: value for name, value in stored["state"].items() if name not in ("_esm", "_css")}
    widgets.write_modules(folder / "widgets")
    one = widgets.script("one", {"state": state, "buffers": stored.get("buffers", [])})
    (folder / "widgets" / "one.js").write_text(one, encoding="utf-8")
    place = widgets.place("one", widgets.kind_of(state), inside)
    (folder / "index.html").write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>widget</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><link rel="icon" href="data:,"></head>'
        f'<body><main><h1>Widget</h1>{place}</main><script src="widgets/host.js"></script></body></html>',
        encoding="utf-8",
    )
    return folder / "index.html"


def opened(browser, address, said, **settings):
    """Open a page, other hosts blocked; what goes wrong is appended to `said`; return the page, its widget running."""
    page = watched(browser, address.rsplit("/", 1)[0], said, **settings)
    page.goto(address)
    page.wait_for_selector('.xai-widget[data-state="running"]', timeout=20_000)
    return page


@contextlib.contextmanager
def visits(browser):
    """Give ``visit(folder, scheme, fragment, **settings)``, which opens a folder's page from its file or over http.

    At the end pages are closed and servers stopped, and nothing may have gone wrong on any of them.
    """
    said = []
    with contextlib.ExitStack() as ends:

        def visit(folder, scheme="file", fragment="", **settings):
            address = folder.as_uri()
            if scheme == "http":
                address, stop = serve(folder)
                ends.callback(stop)
            page = opened(browser, f"{address}/index.html{fragment}", said, **settings)
            ends.callback(page.context.close)
            return page

        yield visit
    assert said == [], said


PIXELS = """canvas => {  // read from a copy: Chromium warns where a canvas that is drawn on is read often
  const { width, height } = canvas, copy = new OffscreenCanvas(width, height);
  const context = copy.getContext("2d", { willReadFrequently: true });
  context.drawImage(canvas, 0, 0);
  return [height, width, ...context.getImageData(0, 0, width, height).data];
}"""


def pixels(canvas):
    """Return the colours of a canvas: (H, W, 3), 0 to 255."""
    height, width, *values = canvas.evaluate(PIXELS)
    return np.array(values, float).reshape(height, width, 4)[..., :3]


NAME = "one => one.ariaLabel ?? one.closest('label')?.textContent ?? one.textContent"


def focused(page):
    """Return the name of what has the focus."""
    return page.evaluate(f"({NAME})(document.activeElement)")


def tab_to(page, wanted):
    """Press Tab until the focus is on what has a name that begins so."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if focused(page).startswith(wanted):
            return
    raise AssertionError(f"{wanted} is not reached by Tab")


NAMELESS = """() => {
  const all = (kind) => [...document.querySelectorAll(`.xw :is(${kind})`)].filter((one) => !one.ariaLabel);
  return [
    ...all("canvas:not([aria-hidden]), svg[role=img]"),
    ...all("button").filter((one) => !one.textContent.trim()),
    ...all("input, select").filter((one) => one.labels.length !== 1),
  ].map((one) => one.outerHTML);
}"""


def assert_fits(page):
    """Nothing is wider than the page or the widget's frame, and what is seen or used has a name."""
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    assert page.locator(".xw-frame").evaluate("one => one.scrollWidth - one.clientWidth") <= 0
    assert page.locator(".xw button").count() > 0
    assert page.evaluate(NAMELESS) == []
