"""The results explorer: what travels to the page, and that a reader finds, orders and opens claims with it."""

import dataclasses
import functools
import json
import re
from pathlib import Path

import pytest
import widget_pages
from site_browser import needs_browser

from xai_lib import ledger
from xai_lib.widgets import explorer

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = "<img src=x onerror=\"document.title='run'\"></script><b>"


def row(name, **changes):
    """A claim that nobody has tested, but for the changes."""
    plain = {field.name: "" for field in dataclasses.fields(ledger.Row)} | {
        "id": name,
        "paper": "xcnn",
        "where": "section 1",
        "title": f"Claim {name}",
        "paper_value": None,
        "ours": None,
        "sd": None,
        "seeds": 0,
        "rule": "A rule.",
        "verdict": "not tested",
        "stale": [],
        "notebook": "one",
        "published": True,
    }
    return ledger.Row(**(plain | changes))


def claim(kind="none", **rule):
    return {"claim": "The paper says so.", "rule": {"kind": kind, **rule}}


def run(ours, sd, seeds, **more):
    return {"ours": ours, "sd": sd, "seeds": seeds, "profile": "desk", "data": "mnist", "device": "cpu"} | more


ROWS = [
    row("a", title="Zebra", verdict="reproduced", paper_value=-2.5, unit="points", ours_text="−2", **run(-2.0, 2.0, 2)),
    row(
        "b",
        title=f"Hostile {HOSTILE}",
        paper="srae",
        notebook="two",
        verdict="partly",
        ours_text="p: 1; q: 4",
        stale=["xcnn.py"],
        **run({"p": 1.0, "q": 4.0}, {"p": 1.0, "q": 0.0}, 3),
    ),
    row("c", title="Alpha", paper="srae", notebook="two", rule=f"Locality {HOSTILE}", paper_value=7),
    row("d", title="Mind the gap", verdict="inconclusive", **run(0.5, 0.25, 2)),
]
CLAIMS = {
    "a": claim("level", tolerance=1),
    "b": claim("qualitative", above=-0.5),
    "c": claim(),
    "d": claim("order"),
}
VALUES = {
    "a": {"0": -3.123456789, "1": -0.876543211},
    "b": {"p": {"0": 0, "1": 1, "2": 2}, "q": {"0": 4, "1": 4, "2": 4}},
    "d": {"0": 0.25, "1": 0.75},
}
LINKS = {
    "a": {"entry": "page.html#a", "record": "records/one.json"},
    "b": {"entry": "javascript:document.title='run'"},
}


# ---------------------------------------------------------------------------------------------------------------------
# What travels


def test_rows_become_a_state():
    data = explorer.packed(ROWS, VALUES, claims=CLAIMS, papers={"xcnn": "XCNN"}, links=LINKS)
    json.dumps(data, allow_nan=False)
    a, b, c, d = data["rows"]
    assert data["papers"] == {"xcnn": "XCNN", "srae": "srae"}
    assert a["values"] == {"": {"0": -3.12346, "1": -0.876543}}
    assert (a["paper_text"], a["line"], a["threshold"]) == ("−2.5 points", -2.5, None)
    assert (b["ours"], b["sd"], b["line"], b["threshold"]) == (1.0, 1.0, None, -0.5)
    assert b["values"]["q"] == {"0": 4.0, "1": 4.0, "2": 4.0}
    assert (c["values"], c["ours"], c["sd"], c["paper_text"]) == ({}, None, None, "7")
    assert c["line"] is None, "the paper's value is a line only where the rule compares our number with it"
    assert (d["threshold"], d["links"]) == (0, {})
    assert a["links"] == LINKS["a"]
    assert data["address"]
    assert not explorer.packed(ROWS, VALUES, claims=CLAIMS)["address"]


@pytest.mark.parametrize(
    ("rows", "values", "message"),
    [
        ([], {}, "rows must hold at least one claim; got none"),
        ([ROWS[2], ROWS[2]], {}, "rows: claim 'c' stands there twice"),
        ([row("z")], {}, "rows: claims holds no 'z'"),
        ([row("c", verdict="proved")], {}, "rows: claim 'c' has the verdict 'proved', which is none of"),
        ([ROWS[2]], {"z": {"0": 1}}, "values: no row has the id 'z'"),
        ([ROWS[3]], {"d": {"0": 0.25, "1": 0.5}}, r"values\['d'\] average to 0.375, the row says 0.5"),
        ([ROWS[3]], {}, r"values\['d'\] average to None, the row says 0.5"),
        (
            [ROWS[1]],
            {"b": {"p": {"0": 1.0}}},
            r"values\['b'\] average to {'p': 1.0}, the row says {'p': 1.0, 'q': 4.0}",
        ),
        ([ROWS[3]], {"d": {"0": float("nan")}}, r"values\['d'\] must be finite numbers; got {'0': nan}"),
    ],
)
def test_rows_and_values_that_do_not_fit_are_refused(rows, values, message):
    with pytest.raises(ValueError, match=message):
        explorer.Explorer(rows, values, claims=CLAIMS)


def test_values_are_those_of_the_records(hashed_once, monkeypatch):
    monkeypatch.setattr("xai_lib.provenance.code_hashes", hashed_once)
    record = ROOT / "results" / "desk" / "xcnn_mnist.json"
    if not record.exists():
        pytest.skip("no run of xcnn_mnist has been published")
    said = json.loads(record.read_text(encoding="utf-8"))["results"]["values"]
    names = ["xcnn-figure-1", "xcnn-mnist-parity", "xcnn-equation-4-usable"]
    claims = {name: ledger.read_claims()[name] for name in names}
    rows = ledger.table([(record.parent, True)], claims=claims)
    found = explorer.values_of(rows)
    assert found == {names[0]: {}, names[1]: {"": said[names[1]]}, names[2]: said[names[2]]}
    other = dataclasses.replace(rows[1], ours=rows[1].ours + 1)
    with pytest.raises(ValueError, match="holds the numbers of claim 'xcnn-mnist-parity'; pass values"):
        explorer.values_of([other])
    assert len(explorer.Explorer(rows).data["rows"]) == 3


# ---------------------------------------------------------------------------------------------------------------------
# In the browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    widget = explorer.Explorer(ROWS, VALUES, claims=CLAIMS)
    widget.data = explorer.packed(ROWS, VALUES, claims=CLAIMS, papers={"xcnn": "XCNN"}, links=LINKS)
    return widget_pages.write_page(widget, tmp_path_factory.mktemp("explorer")).parent


@pytest.fixture
def opened(browser, folder):
    """Open the page, as ``opened(scheme, fragment, **settings)``; at the end nothing may have gone wrong on it."""
    with widget_pages.visits(browser) as visit:
        yield functools.partial(visit, folder)


def shown(page):
    """The claims that are seen, from top to bottom."""
    return page.locator("tbody").evaluate_all("""all => all
      .map((one) => [one.getBoundingClientRect(), one.dataset.claim])
      .filter(([box]) => box.height).sort(([a], [b]) => a.top - b.top).map(([, claim]) => claim).join("")""")


def verdict(page, name):
    return page.get_by_role("button", name=re.compile(f"^{name} [0-9]+$"))


def fragment(page):
    page.wait_for_timeout(350)  # it is written a moment late
    return page.evaluate("location.hash")


@needs_browser
@pytest.mark.parametrize("scheme", ["http", "file"])
def test_filters_work_and_stand_in_the_address(opened, scheme):
    page = opened(scheme)
    assert shown(page) == "abcd"
    assert page.locator("text=static picture").count() == 0
    page.get_by_role("combobox", name="Paper").select_option("srae")
    assert shown(page) == "bc"
    assert verdict(page, "reproduced").inner_text() == "reproduced 0", "counts follow the other filters"
    verdict(page, "partly").click()
    assert (shown(page), page.inner_text(".xw-said")) == ("b", "1 of 4 claims")
    verdict(page, "not tested").click()
    assert shown(page) == "bc"
    page.get_by_label("Search").fill("LOCALITY rule")
    assert shown(page) == ""
    page.get_by_label("Search").fill("alpha")
    assert shown(page) == "c"
    page.get_by_label("Notebook").select_option("two")
    assert fragment(page) == "#paper=srae&notebook=two&verdict=partly,not+tested&text=alpha"
    link = page.url
    page.get_by_role("button", name="show all").click()
    assert (shown(page), fragment(page)) == ("abcd", "")
    again = opened(scheme, link[link.index("#") :])
    assert (shown(again), again.get_by_label("Search").input_value()) == ("c", "alpha")
    assert verdict(again, "partly").get_attribute("aria-pressed") == "true"


@needs_browser
def test_the_address_may_change_or_say_nonsense(opened):
    page = opened(fragment="#paper=%3Cscript%3E&verdict=__proto__,partly&sort=-toString&notebook=x%ZZ")
    assert shown(page) == "b"
    page.evaluate("location.hash = '#verdict=inconclusive'")
    page.get_by_text("1 of 4 claims", exact=True).wait_for()
    page.locator("[data-claim=d]").wait_for()
    page.evaluate("location.hash = '#a-heading'")
    page.wait_for_timeout(100)
    assert shown(page) == "d", "a heading's address is none of ours"


@needs_browser
def test_every_column_sorts_both_ways_and_what_is_missing_comes_last(opened):
    page = opened()
    orders = {
        "Claim": ("cbda", "adbc"),
        "Paper": ("acbd", "cabd"),
        "Ours": ("adbc", "bdac"),
        "Spread": ("dbac", "abdc"),
        "n": ("adbc", "badc"),
        "Verdict": ("abdc", "cdba"),
    }
    assert list(orders) == [one.split("\n")[0] for one in page.locator("th .xw-sort").all_inner_texts()]
    for column, (up, down) in orders.items():
        head = page.get_by_role("columnheader", name=column)
        for direction, order in (("ascending", up), ("descending", down)):
            head.get_by_role("button").click()
            assert (shown(page), head.get_attribute("aria-sort")) == (order, direction), column
        assert fragment(page) == f"#sort=-{column.lower()}"
        head.get_by_role("button").click()
        assert (shown(page), head.get_attribute("aria-sort")) == ("abcd", None)


@needs_browser
def test_dots_lie_where_the_values_are(opened):
    page = opened()
    places = page.locator("[data-claim=a] svg").evaluate(
        "svg => [...svg.querySelectorAll('circle')].map(one => +one.getAttribute('cx'))"
    )
    line = page.locator("[data-claim=a] svg > line").evaluate_all("all => all.map(one => +one.getAttribute('x1'))")
    low, high = VALUES["a"].values()
    assert len(line) == 1, "the paper's value, and no threshold"
    assert (line[0] - places[0]) / (places[1] - places[0]) == pytest.approx((-2.5 - low) / (high - low), abs=2e-3)
    name = page.locator("[data-claim=b] svg").get_attribute("aria-label")
    assert name == "p: 3 values, 0 to 2; q: 3 values, 4 to 4; the rule's threshold −0.5"
    assert page.locator("[data-claim=b] circle").count() == 6
    assert page.locator("[data-claim=c] svg").count() == 0


@needs_browser
def test_a_claim_opens_by_keyboard_and_what_it_says_stays_text(opened):
    page = opened()
    page.get_by_label("Search").focus()
    page.keyboard.type("hostile")
    widget_pages.tab_to(page, "Hostile")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
    detail = page.locator("[data-claim=b] .xw-detail")
    assert "Stale: since this run, xcnn.py changed" in detail.inner_text()
    assert "Values, p: 0: 0, 1: 1, 2: 2" in detail.inner_text()
    assert HOSTILE in page.locator("[data-claim=b] .xw-open").inner_text()
    assert detail.locator("a").count() == 0, "an address that would run something is no link"
    page.get_by_role("button", name="show all").click()
    page.locator("[data-claim=c] .xw-open").press("Space")
    assert f"Rule (none): Locality {HOSTILE}" in page.locator("[data-claim=c] .xw-detail").inner_text()
    assert page.locator(".xw :is(img, b, script)").count() == 0
    assert page.title() == "widget"
    page.locator("[data-claim=a] .xw-open").click()
    links = page.locator("[data-claim=a] .xw-detail a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
    assert links == ["page.html#a", "records/one.json"]
    page.locator("[data-claim=a] .xw-open").click()
    assert page.locator("[data-claim=a] .xw-detail").is_hidden()


@needs_browser
def test_without_links_the_address_is_left_alone(browser, tmp_path):
    widget_pages.write_page(explorer.Explorer(ROWS, VALUES, claims=CLAIMS), tmp_path)
    with widget_pages.visits(browser) as visit:
        page = visit(tmp_path, fragment="#verdict=partly")
        assert shown(page) == "abcd"
        verdict(page, "inconclusive").click()
        assert (shown(page), fragment(page)) == ("d", "#verdict=partly")


CONTRAST = """element => {
  const light = (colour) => colour.match(/[0-9.]+/g).slice(0, 3).map((one) => one / 255)
    .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4))
    .reduce((sum, x, k) => sum + x * [0.2126, 0.7152, 0.0722][k], 0);
  const { color, backgroundColor } = getComputedStyle(element);
  const [low, high] = [light(color), light(backgroundColor)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}"""


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_verdicts_can_be_read_and_look_like_badges(opened, scheme):
    page = opened(color_scheme=scheme)
    colour = "one => getComputedStyle(one).backgroundColor"
    found = page.locator(".xw-verdict")
    assert found.count() == 6
    badge = page.locator("[data-claim=b] .xw-badge").evaluate(colour)
    assert verdict(page, "partly").evaluate(colour) == badge
    assert min(one.evaluate(CONTRAST) for one in found.all()) >= 4.5
    verdict(page, "partly").click()
    assert verdict(page, "partly").evaluate(colour) == badge
    assert verdict(page, "shown").evaluate(colour) != badge
    assert min(one.evaluate(CONTRAST) for one in found.all()) >= 4.5


@needs_browser
def test_on_a_phone_claims_are_cards(opened):
    page = opened(viewport={"width": 400, "height": 800}, color_scheme="dark", has_touch=True)
    widget_pages.assert_fits(page)
    assert page.locator("thead").is_hidden()
    left = {one.bounding_box()["x"] for one in page.locator("[data-claim=b] .xw-main > :not(:empty)").all()}
    assert max(left) < 300
    assert page.locator("[data-claim=b] [data-column=verdict]").bounding_box()["width"] > 250
    page.get_by_label("Sort by").select_option("ours")
    page.get_by_role("button", name="descending").tap()
    assert shown(page) == "bdac"
    page.locator("[data-claim=b] .xw-open").tap()
    assert page.locator("[data-claim=b] .xw-detail").bounding_box()["width"] <= 400
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


@needs_browser
def test_a_ledger_ten_times_as_long_is_still_fast(browser, tmp_path):
    rows = [row(f"c{k}", title=f"Claim {k % 97}", ours_text="0.5", **run(0.5, 0.25, 2)) for k in range(2000)]
    values = {one.id: VALUES["d"] for one in rows}
    widget = explorer.Explorer(rows, values, claims={one.id: claim("order") for one in rows})
    page = widget_pages.opened(browser, widget_pages.write_page(widget, tmp_path).as_uri(), [])
    spent = page.evaluate("""() => {
      const start = performance.now(), search = document.querySelector(".xw-ledger input");
      search.value = "claim 9";
      search.dispatchEvent(new Event("input"));
      return performance.now() - start;
    }""")
    found = sum("9" in f"c{k} {k % 97}" for k in range(2000))
    assert page.inner_text(".xw-said") == f"{found} of 2000 claims"
    assert spent < 1000
    page.context.close()


# ---------------------------------------------------------------------------------------------------------------------
# On the built site


def test_every_link_on_the_site_leads_somewhere(site):
    text = (site / "widgets" / "results.js").read_text(encoding="utf-8")
    assert len(text) < 400_000
    _, value = json.loads(f"[{text.removeprefix('xaiWidgets(').removesuffix(');' + chr(10))}]")
    rows = value["state"]["data"]["rows"]
    addresses = {address for one in rows for address in one["links"].values()}
    assert len(addresses) >= len(rows)
    for address in addresses:
        file, _, anchor = address.partition("#")
        target = (site / "results" / file).resolve()
        assert target.exists(), address
        assert not anchor or f'id="{anchor}"' in target.read_text(encoding="utf-8"), address


@needs_browser
def test_it_runs_on_its_page_of_the_site(site, browser):
    page, said = browser.new_context().new_page(), []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"{site.as_uri()}/results/index.html#paper=srae&sort=-spread")
    page.locator(".xai-widget").scroll_into_view_if_needed()
    page.wait_for_selector('.xai-widget[data-state="running"]', timeout=20_000)
    assert (
        page.locator("tbody:visible[data-claim^=srae]").count() == page.locator("tbody:visible[data-claim]").count() > 0
    )
    assert min(one.evaluate(CONTRAST) for one in page.locator(".xw-verdict").all()) >= 4.5
    assert said == []
    page.context.close()
