"""A widget on a page of its own, as the book shows it: no kernel, no other host, the policy in the head."""

import functools
import http.server
import sys
import threading
from pathlib import Path

from ipywidgets import embed

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
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"></head>'
        f'<body><main><h1>Widget</h1>{place}</main><script src="widgets/host.js"></script></body></html>',
        encoding="utf-8",
    )
    return folder / "index.html"


def serve(folder):
    """Serve a folder on loopback; return (address, function that stops it)."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def stop():
        server.shutdown()
        server.server_close()

    return f"http://127.0.0.1:{server.server_port}", stop


def opened(browser, address, said, **settings):
    """Open a page, other hosts blocked; what goes wrong is appended to `said`; return the page, its widget running."""
    context = browser.new_context(**settings)
    allowed = (address.rsplit("/", 1)[0], "data:", "blob:", "about:")
    context.route("**/*", lambda route: route.continue_() if route.request.url.startswith(allowed) else route.abort())
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda one: None if one.url.startswith(allowed) else said.append(one.url))
    page.goto(address)
    page.wait_for_selector('.xai-widget[data-state="running"]', timeout=20_000)
    return page
