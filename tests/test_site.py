"""The built site in headless Chromium: calm, whole, and talking to no one.

``SITE`` names a site that is there already; else the published runs are rendered into a folder of the test's own.
"""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
pytestmark = pytest.mark.skipif(not BROWSER, reason="no chromium on this machine")


@pytest.fixture(scope="session")
def site():
    """The folder of the site: `SITE`, or one built now from the published runs."""
    if named := os.environ.get("SITE"):
        return Path(named).resolve()
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


@pytest.fixture(scope="session")
def address(site):
    """The site over http, on loopback."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=BROWSER, args=quiet)
        yield chromium
        chromium.close()


def visit(browser, base, names, look, **settings):
    """Open pages one after the other, other hosts blocked; return {page: problems}, `look` adding its own."""
    context = browser.new_context(**settings)
    allowed = (base, "data:", "blob:", "about:")
    context.route("**/*", lambda route: route.continue_() if route.request.url.startswith(allowed) else route.abort())
    problems = {}
    for name in names:
        page, said = context.new_page(), []
        page.on("console", lambda message, said=said: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("request", lambda one, said=said: None if one.url.startswith(allowed) else said.append(one.url))
        page.on("requestfailed", lambda one, said=said: said.append(f"failed: {one.url}"))
        page.goto(f"{base}/{name}", wait_until="load")
        said += look(page) or []
        if said:
            problems[name] = said
        page.close()
    context.close()
    return problems


def wide(page):
    """Say whether the page is wider than its window, or an image has no alt text."""
    over = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    silent = page.evaluate("[...document.querySelectorAll('article img')].filter(i => !i.alt.trim()).map(i => i.src)")
    return [f"{over} px too wide"] * (over > 0) + [f"no alt text: {one}" for one in silent]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400])
def test_every_page_over_http(browser, address, pages, scheme, width):
    assert visit(browser, address, pages, wide, color_scheme=scheme, viewport={"width": width, "height": 900}) == {}


def test_every_page_from_a_file(browser, site, pages):
    assert visit(browser, site.as_uri(), pages, wide) == {}


def test_the_check_can_fail(browser, site, address, tmp_path):
    bad = site / "zz-bad.html"
    bad.write_text(
        '<img src="http://192.0.2.1/a.png"><script>undefined_name()</script><div style="width:3000px">x</div>'
    )
    try:
        said = " ".join(visit(browser, address, [bad.name], wide)[bad.name])
    finally:
        bad.unlink()
    assert "192.0.2.1" in said
    assert "undefined_name" in said
    assert "too wide" in said


def test_dark_mode_is_dark(browser, address):
    def shade(page):
        return [page.evaluate("getComputedStyle(document.body).backgroundColor")]

    found = {
        scheme: visit(browser, address, ["index.html"], shade, color_scheme=scheme)["index.html"]
        for scheme in ("light", "dark")
    }
    assert found["light"] == ["rgb(255, 255, 255)"]
    assert max(int(part) for part in found["dark"][0][4:-1].split(",")) < 60


def test_every_page_has_the_policy_and_formulas_are_set(browser, address, pages, site):
    for name in pages:
        assert "Content-Security-Policy" in (site / name).read_text(encoding="utf-8"), name
    page = browser.new_page()
    page.goto(f"{address}/xcnn/mnist.html")
    page.wait_for_selector("mjx-container", timeout=20_000)
    assert page.locator("mjx-container").count() > 3
    page.close()


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_search_finds_the_chapter(browser, address, site, scheme):
    page = browser.new_page()
    page.goto(f"{address if scheme == 'http' else site.as_uri()}/search.html?q=usable+information")
    page.wait_for_selector("#search-results li a", timeout=20_000)
    assert any("mnist" in (one.get_attribute("href") or "") for one in page.locator("#search-results li a").all())
    page.close()


def test_links_and_anchors_lead_somewhere(browser, address, pages, site):
    """Every link inside the site: the file is there, and so is the place in it."""
    collect = "[...document.querySelectorAll('article a[href]')].map(a => a.href)"
    anchors, links = {}, {}
    page = browser.new_page()
    for name in pages:
        page.goto(f"{address}/{name}")
        anchors[name] = set(page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)"))
        links[name] = page.evaluate(collect)
    page.close()
    broken = []
    for name, targets in links.items():
        for target in targets:
            if not target.startswith(address):
                continue
            file, _, anchor = target[len(address) + 1 :].partition("#")
            file = file.partition("?")[0] or "index.html"
            if not (site / file).exists() or (anchor and file in anchors and anchor not in anchors[file]):
                broken.append(f"{name}: {target}")
    assert broken == []
