"""The built site in headless Chromium: calm, whole, and talking to no one."""

import pytest
from site_browser import needs_browser, visit

pytestmark = needs_browser


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
