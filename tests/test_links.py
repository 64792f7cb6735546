"""Links inside the built site: each leads to a file that is there, and to a place in it. No browser is needed."""

from html.parser import HTMLParser
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

import yaml

from workflow import pdf


class Page(HTMLParser):
    """The ids of a page, and what it links to or loads."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links = set(), []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids |= {found[name] for name in ("id", "name") if found.get(name)}
        self.links += [found[name] for name in ("href", "src", "poster") if found.get(name)]
        self.links += [one.split()[0] for one in (found.get("srcset") or "").split(",") if one.strip()]


def broken(site, names):
    """["page: link"] of links inside a site that lead nowhere; those to other hosts are not followed."""
    pages = {name: Page((site / name).read_text(encoding="utf-8")) for name in names}
    found = []
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = resolved(name, unquote(parts.path))
            missing = target is None or not (site / target).is_file()
            if missing or (parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids):
                found.append(f"{name}: {link}")
    return found


def resolved(name, path):
    """The file that a relative path on a page means; None where it leaves the site, or starts at the host's root."""
    if not path:
        return name
    if path.startswith("/"):  # on file:// that is the root of the disk
        return None
    parts = []
    for part in (PurePosixPath(name).parent / path).parts:
        if part != "..":
            parts.append(part)
        elif not parts:
            return None
        else:
            parts.pop()
    return "/".join(parts)


def test_every_link_inside_the_site_leads_somewhere(site, pages):
    assert broken(site, pages) == []


def test_chapters_to_print_stand_in_the_order_of_the_contents():
    contents = yaml.safe_load((pdf.BOOK / "_toc.yml").read_text(encoding="utf-8"))
    names = list(pdf.chapters(contents))
    assert names[:2] == ["index", "how-to-read"]
    assert names.index("xcnn/index") < names.index("xcnn/mnist")
    assert [name for name in names if name.startswith(("api/", "runs/")) or name == "results/xcnn"] == []


def test_links_of_the_page_to_print(tmp_path):
    """What leads to a printed page stays inside, what leads to another host stays, the rest becomes text."""
    site = tmp_path / "site"
    (site / "x").mkdir(parents=True)
    head = '<head><title>First \N{EM DASH} A book</title><link rel="stylesheet" href="a.css"></head>'
    links = ["x/b.html#s", "x/b.html", "#s", "https://example.org/", "x/run.json", "gone.html"]
    text = "".join(f'<a href="{link}">{link}</a>' for link in links)
    (site / "a.html").write_text(f'{head}<article><h1>First</h1><p id="s">{text}<script>1</script></p></article>')
    (site / "x" / "b.html").write_text('<article><h1>Next</h1><p id="s"><img src="../p.png"></p></article>')
    (site / "a.css").touch()
    (site / "p.png").touch()
    (tmp_path / "print.html").write_text(pdf.joined(site, ["a", "x/b"]))
    assert broken(tmp_path, ["print.html"]) == []
    page = Page((tmp_path / "print.html").read_text())
    expected = ["site/a.css", "#x-b--", "#x-b--s", "#x-b--", "#a--s", "https://example.org/", "site/p.png"]
    assert page.links == expected
    assert {"a--", "x-b--", "a--s", "x-b--s"} <= page.ids


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "picture 1.png").write_bytes(b"")
    (tmp_path / "b.html").write_text('<p id="there"><a name="old">b</a>')
    good = ["#", "#here", "picture%201.png", "../b.html#there", "../b.html?q=1#old", "https://example.org/x", "data:,"]
    bad = ["#gone", "picture 2.png", "../b.html#gone", "../../b.html", "/b.html", "b.html", ".."]
    text = '<h1 id="here">a</h1>' + "".join(f'<a href="{link}">x</a>' for link in good + bad)
    (tmp_path / "a" / "a.html").write_text(f'{text}<img src="gone.png"><img srcset="picture%201.png 1x, gone.jpg 2x">')
    names = ["a/a.html", "b.html"]
    assert broken(tmp_path, names) == [f"a/a.html: {link}" for link in [*bad, "gone.png", "gone.jpg"]]
