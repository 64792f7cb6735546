"""Print the text of the book: ``python -m workflow.pdf PROFILE`` writes ``build/<profile>/book.pdf``.

The chapters are taken from the built site in the order of the contents, joined to one page, and printed by headless
Chromium. What runs and docstrings fill (executed notebooks, the lists of claims, the reference of the library) is left
on the site.
"""

import posixpath
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from bs4 import BeautifulSoup, Tag

from xai_lib import records

BOOK = Path("book")
LEFT_OUT = ("api/",)
NOT_PRINTED = "script, .headerlink, .copybtn, .sd-tab-label, button"
STYLE = """
html { font-size: 13px; }
body { background: white; }
main > section { break-before: page; }
figure, img, pre, .admonition, tr { break-inside: avoid; }
h1, h2, h3, h4 { break-after: avoid; }
img { max-width: 100%; max-height: 20cm; height: auto; }
pre { white-space: pre-wrap; }
.bd-article table { font-size: 7.5pt; overflow-wrap: anywhere; }
.bd-article td { min-width: 4em; box-sizing: content-box; padding: 0.25rem; }
.bd-article th { overflow-wrap: normal; }
.pst-scrollable-table-container, .math { overflow: visible !important; }
nav li { margin: 0.2rem 0; }
"""
FOOTER = '<div style="font-size: 8pt; width: 100%; text-align: center"><span class="pageNumber"></span></div>'


def chapters(contents: Mapping) -> Iterator[str]:
    """Yield the pages of a ``_toc.yml`` that have a source in the book, in their order."""
    for name in _files(contents):
        if (BOOK / f"{name}.md").exists() and not name.startswith(LEFT_OUT):
            yield name


def _files(contents: Mapping) -> Iterator[str]:
    for key in ("root", "file"):
        if key in contents:
            yield contents[key]
    for key in ("parts", "chapters", "sections"):
        for inner in contents.get(key, []):
            yield from _files(inner)


def joined(site: Path, names: Sequence[str]) -> str:
    """Return one page of the articles of some pages of a site, to stand beside the folder of the site.

    Links between these pages stay inside it, links to other hosts stay, all others become text.
    """
    first = _page(site, names[0])
    title = first.title.get_text().rpartition(" \N{EM DASH} ")[2]
    scripts = [one for one in first.select("script") if "mathjax" in str(one).lower()]
    head = [*first.select("link[rel=stylesheet]"), *scripts]
    for one in head:
        for key in {"href", "src"} & one.attrs.keys():
            one[key] = f"{site.name}/{one[key]}"
    contents, sections = [], []
    for name in names:
        article = _article(site, name, names)
        contents.append(f'<li><a href="#{_place(name)}">{article.find("h1").get_text(strip=True)}</a></li>')
        sections.append(f'<section id="{_place(name)}">{article}</section>')
    return (
        f'<!DOCTYPE html><html lang="en" data-theme="light" data-mode="light"><head><meta charset="utf-8">'
        f"<title>{title}</title>{''.join(map(str, head))}<style>{STYLE}</style></head>"
        f'<body><main class="bd-article bd-article-container"><h1>{title}</h1>'
        f"<nav><ul>{''.join(contents[1:])}</ul></nav>{''.join(sections)}</main></body></html>"
    )


def _page(site: Path, name: str) -> BeautifulSoup:
    return BeautifulSoup((site / f"{name}.html").read_text(encoding="utf-8"), "html.parser")


def _place(name: str, anchor: str = "") -> str:
    """Return the id that a place of a page has among all the pages."""
    return f"{name.replace('/', '-')}--{anchor}"


def _article(site: Path, name: str, names: Sequence[str]) -> Tag:
    """Return the article of a page: all is open, ids are its own, links and pictures start from the site."""
    article = _page(site, name).select_one("article")
    for one in article.select(NOT_PRINTED):
        one.decompose()
    for one in article.select("details"):
        one["open"] = ""
    for cell in article.select("td"):  # a narrow column breaks before "± 0.1", not inside a number
        for text in cell.find_all(string=re.compile("\N{NO-BREAK SPACE}")):
            text.replace_with(text.replace("\N{NO-BREAK SPACE}\N{PLUS-MINUS SIGN}", " \N{PLUS-MINUS SIGN}"))
    for key in ("id", "for", "name"):
        for one in article.select(f"[{key}]"):
            one[key] = _place(name, one[key])
    for one in article.select("a[href]"):
        one["href"] = _target(name, one["href"], names)
        if not one["href"]:
            one.unwrap()
    for one in article.select("img[src]"):
        one["src"] = posixpath.normpath(posixpath.join(site.name, posixpath.dirname(name), one["src"]))
    return article


def _target(name: str, link: str, names: Sequence[str]) -> str:
    """Return where a link of a page leads in the joined page, empty where it leads out of it on this machine."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return link
    path = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(parts.path))) if parts.path else name
    page = path.removesuffix(".html")
    return f"#{_place(page, unquote(parts.fragment))}" if page in names else ""


def browser() -> str:
    """Return the path of this machine's Chromium, empty where there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")


def print_page(page: Path, target: Path) -> None:
    """Print a page as PDF on A4, its formulas set, with an outline and page numbers.

    Raises
    ------
    FileNotFoundError
        There is no Chromium on this machine.
    """
    if not (path := browser()):
        raise FileNotFoundError("no chromium on this machine: install it, then run this again")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        opened = chromium.new_page(color_scheme="light")
        opened.goto(page.resolve().as_uri(), wait_until="load")
        opened.evaluate("window.MathJax && MathJax.startup && MathJax.startup.promise.then(() => null)")
        opened.pdf(
            path=target,
            format="A4",
            margin={"top": "2cm", "bottom": "2cm", "left": "2cm", "right": "2cm"},
            print_background=True,
            display_header_footer=True,
            header_template="<span></span>",
            footer_template=FOOTER,
            outline=True,
            tagged=True,
        )
        chromium.close()


def main(profile: str) -> int:
    """Print the book of a profile; return the exit status."""
    base = records.folder(profile)
    site, page = base / "site", base / "print.html"
    if not (site / "index.html").exists():
        print(f"there is no {site / 'index.html'} to print: build the book first", file=sys.stderr)
        return 1
    contents = yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf-8"))
    page.write_text(joined(site, list(chapters(contents))), encoding="utf-8")
    try:
        print_page(page, base / "book.pdf")
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"pdf: {base / 'book.pdf'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
