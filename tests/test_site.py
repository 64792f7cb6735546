"""The built site in headless Chromium: calm, whole, open to everybody, and talking to no one."""

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from site_browser import needs_browser, serve, visit

pytestmark = needs_browser

OPEN = "document.querySelectorAll('details').forEach(one => { one.open = true })"
GRAVE = ("serious", "critical")
ALL = {"resultTypes": ["violations"], "preload": False}  # it would ask for style sheets by wrong addresses
SEEN = {**ALL, "runOnly": ["color-contrast", "scrollable-region-focusable"]}  # what a style alone can break
SETTINGS = (("light", 1200, ALL), ("dark", 1200, SEEN), ("light", 400, SEEN), ("dark", 400, SEEN))
SETTLE = 350  # ms; the theme waits 300 before it looks which boxes have to be scrolled
STILL = "*, ::before, ::after { transition: none !important }"  # else colours fade, and none is what it will be
# Executed notebooks and the reference are long, and coloured as the chapters are: axe looks once, and not at code.
NO_CODE = {"exclude": [[".highlight"]]}
LONG = ("/runs/", "/api/")


def wide(page):
    """Say whether the page is wider than its window, or an image has no alt text."""
    over = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    silent = page.evaluate("[...document.querySelectorAll('article img')].filter(i => !i.alt.trim()).map(i => i.src)")
    return [f"{over} px too wide"] * (over > 0) + [f"no alt text: {one}" for one in silent]


def unfilled(page):
    """Say which values and roles of the source have stayed as they were written, outside blocks of code."""
    text = """(() => {
        const copy = document.querySelector('article')?.cloneNode(true) ?? document.body.cloneNode(true)
        copy.querySelectorAll('pre, script').forEach(one => one.remove())
        return copy.textContent
    })()"""
    found = re.findall(r"\{\{.*|\{(?:ref|doc|cite|eq)\b.*", page.evaluate(text))
    return [f"not filled in: {one}" for one in found]


def heavy(page):
    """Say whether the page has loaded more than 5 MB before anybody touched it (over http)."""
    entries = "[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
    size = page.evaluate(f"{entries}.reduce((sum, one) => sum + one.encodedBodySize, 0)")
    return [f"{size / 1e6:.1f} MB to load"] * (size > 5e6)


def barriers(page, options):
    """Ask axe-core what stands in somebody's way: what it calls serious or critical."""
    long = any(one in page.url for one in LONG)
    if long and options is not ALL:
        return []
    if options is not ALL:
        page.wait_for_timeout(SETTLE)
    found = Axe().run(page, context=NO_CODE if long else None, options=options).response["violations"]
    return [
        f"{rule['id']}: {node['html'][:150]}" for rule in found if rule["impact"] in GRAVE for node in rule["nodes"]
    ]


def flaws(page):
    """Open what is folded away, then look at the page light and dark, wide and narrow."""
    said = heavy(page) + unfilled(page)
    page.evaluate(OPEN)
    page.add_style_tag(content=STILL)
    for scheme, width, options in SETTINGS:
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        for _ in range(40):  # the theme hears of it after a moment
            if (shown := page.evaluate("document.documentElement.dataset.theme")) in (scheme, None):
                break
            page.wait_for_timeout(50)
        found = [f"{shown} is shown, not {scheme}"] * (shown not in (scheme, None)) + wide(page)
        said += [f"{scheme}, {width} px: {one}" for one in found + barriers(page, options)]
    return said


def test_every_page_over_http(browser, address, pages):
    assert visit(browser, address, pages, flaws, viewport={"width": 1200, "height": 900}) == {}


def test_every_page_from_a_file(browser, site, pages):
    assert visit(browser, site.as_uri(), pages, wide) == {}


def test_barriers_are_found(browser):
    page = browser.new_page()
    page.set_content(
        '<html lang="en"><title>t</title><main><h1>t</h1><img src="data:,"><button></button>'
        "<style>@media (prefers-color-scheme: dark) { p { color: #bbb; background: #fff } }</style><p>faint</p>"
        "<style>@media (max-width: 500px) { pre { width: 300px; overflow: auto } }</style>"
        f"<pre>{'a long line of code ' * 4}</pre>"
        "<style>@media (max-width: 500px) { b { color: #bbb } }</style><b>faint on a phone</b>"
        '<details><summary>more</summary><input type="text"></details></main>'
    )
    found = {tuple(one.split(": ")[:2]) for one in flaws(page)}
    page.close()
    assert found == {
        ("light, 1200 px", "image-alt"),
        ("light, 1200 px", "button-name"),
        ("light, 1200 px", "label"),
        ("dark, 1200 px", "color-contrast"),
        ("light, 400 px", "color-contrast"),
        ("dark, 400 px", "color-contrast"),
        ("light, 400 px", "scrollable-region-focusable"),
        ("dark, 400 px", "scrollable-region-focusable"),
    }


def test_the_check_can_fail(browser, tmp_path):
    (tmp_path / "large.js").write_text(" " * 5_000_001)
    (tmp_path / "bad.html").write_text(
        '<img src="http://192.0.2.1/a.png"><script>undefined_name()</script><div style="width:3000px">x</div>'
        '<script src="large.js"></script><p><code>{{ runs.none }}</code></p><pre>{{ in a block }}</pre>'
    )
    address, stop = serve(tmp_path)
    said = " ".join(visit(browser, address, ["bad.html"], flaws)["bad.html"])
    stop()
    assert "5.0 MB to load" in said
    assert "not filled in: {{ runs.none }}" in said
    assert "in a block" not in said
    assert "192.0.2.1" in said
    assert "undefined_name" in said
    for setting in ("light, 1200 px", "dark, 400 px"):
        assert re.search(rf"{setting}: \d+ px too wide", said)


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
