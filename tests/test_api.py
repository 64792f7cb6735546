"""The reference in book/api: every module once, an example for each, and the examples run."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "book" / "api").glob("*.md"))
SECTION = re.compile(
    r"## `(?P<name>[\w.]+)`\n\n```pycon\n(?P<example>>>> .+?)\n```\n\n"
    r"```\{eval-rst\}\n\.\. automodule:: xai_lib\.(?P<documented>[\w.]+)\n   :members:\n```\n",
    re.DOTALL,
)


def modules():
    """Dotted names of the library's modules, without the package's own."""
    files = [path.relative_to(ROOT / "xai_lib") for path in (ROOT / "xai_lib").rglob("*.py")]
    return sorted(".".join(path.with_suffix("").parts) for path in files if path.name != "__init__.py")


def sections():
    """(name, example, documented, page) of all modules on all pages."""
    return [(*one.group("name", "example", "documented"), page) for page in PAGES for one in read(page)]


def read(page):
    return SECTION.finditer(page.read_text(encoding="utf-8"))


def test_every_module_stands_once_under_its_name():
    found = sections()
    assert sorted(name for name, *_ in found) == modules()
    assert [name for name, _, documented, _ in found if name != documented] == []
    assert sum(page.read_text(encoding="utf-8").count("automodule::") for page in PAGES) == len(found)


def test_a_module_without_example_is_seen():
    text = "## `a`\n\n```pycon\n>>> 1\n1\n```\n\n```{eval-rst}\n.. automodule:: xai_lib.a\n   :members:\n```\n"
    assert SECTION.search(text)["example"] == ">>> 1\n1"
    assert not SECTION.search(text.replace("```pycon\n>>> 1\n1\n```\n\n", ""))


@pytest.mark.parametrize(("name", "example"), [one[:2] for one in sections()], ids=[one[0] for one in sections()])
def test_example(name, example, monkeypatch):
    monkeypatch.chdir(ROOT)
    parsed = doctest.DocTestParser().get_doctest(example + "\n", {}, name, f"example of {name}", 0)
    said = []
    done = doctest.DocTestRunner(verbose=False).run(parsed, out=said.append)
    assert done.attempted >= 2
    assert done.failed == 0, "".join(said)
    assert f"{name.split('.')[-1]}." in example.split("import", 1)[1], "it uses the module"
