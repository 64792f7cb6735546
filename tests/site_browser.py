"""What tests in Chromium share: the built site, its pages, its address, the browser, and a visit to pages.

``SITE`` names a site that is there already; else the published runs are rendered.
"""

import fcntl
import functools
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from workflow import pdf

ROOT = Path(__file__).resolve().parent.parent
BROWSER = pdf.browser()
needs_browser = pytest.mark.skipif(not BROWSER, reason="no chromium on this machine")


@pytest.fixture(scope="session")
def site():
    """The folder of the site: `SITE`, or one built now from the published runs."""
    if named := os.environ.get("SITE"):
        return Path(named).resolve()
    with open(__file__) as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)  # one worker builds, the others wait and find it done
        done = subprocess.run(
            [sys.executable, "-m", "workflow.build", "--profile", "published"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "build" / "published" / "site"


@pytest.fixture(scope="session")
def pages(site):
    found = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html") if "_static" not in path.parts)
    assert "index.html" in found
    assert "xcnn/mnist.html" in found
    assert len(found) >= 10
    return found


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


@pytest.fixture(scope="session")
def address(site):
    """The site over http, on loopback."""
    address, stop = serve(site)
    yield address
    stop()


@pytest.fixture(scope="module")
def browser():
    """Chromium that reaches nothing but this machine, for one module: playwright has one loop at a time."""
    from playwright.sync_api import sync_playwright

    # other hosts are asked for through a proxy that is not there; quicker than to ask Python about each request
    quiet = [
        "--proxy-server=http://127.0.0.1:9",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-sync",
    ]
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=BROWSER, args=quiet)
        yield chromium
        chromium.close()


def watched(browser, base, said, grave=("error", "warning"), **settings):
    """Return an empty page; what goes wrong, requests for what does not begin with `base` among it, goes to `said`."""
    context = browser.new_context(**settings)
    allowed = (base, base.replace("http", "ws", 1), "data:", "blob:", "about:")
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text) if message.type in grave else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    for kind in ("request", "websocket"):
        page.on(kind, lambda one: None if one.url.startswith(allowed) else said.append(one.url))
    return page


def visit(browser, base, names, look, **settings):
    """Open pages one after the other, other hosts blocked; return {page: problems}, `look` adding its own."""
    problems = {}
    for name in names:
        said = []
        page = watched(browser, base, said, ("error",), **settings)
        page.on("requestfailed", lambda one, said=said: said.append(f"failed: {one.url}"))
        page.goto(f"{base}/{name}", wait_until="load")
        said += look(page) or []
        if said:
            problems[name] = said
        page.context.close()
    return problems
