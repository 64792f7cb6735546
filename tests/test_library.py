"""What holds for the whole source: docstrings, sizes, notebooks, environment, nothing of one machine."""

import ast
import inspect
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from xai_lib import data, provenance

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "xai_lib").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef

modules = pytest.mark.parametrize("path", MODULES, ids=[path.name for path in MODULES])
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.name for path in NOTEBOOKS])


# ---------------------------------------------------------------------------------------------------------------------
# The library


def members(tree, prefix=""):
    """(name, node) of the functions and classes of a module, methods included."""
    for node in tree.body:
        if isinstance(node, FUNCTIONS | ast.ClassDef):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from members(node, f"{node.name}.")


def public(tree):
    return [(name, node) for name, node in members(tree) if not any(part.startswith("_") for part in name.split("."))]


@modules
def test_every_module_says_what_it_is(path):
    if path.name == "__init__.py":
        assert path.read_text(encoding="utf-8").strip() == "", "the package's own file is empty"
    else:
        assert ast.get_docstring(TREES[path])


@modules
def test_everything_public_has_a_docstring(path):
    assert [name for name, node in public(TREES[path]) if not ast.get_docstring(node)] == []


SECTIONS = ["Parameters", "Attributes", "Returns", "Yields", "Raises", "Notes", "References", "Examples"]


def sections(docstring):
    """{title: lines} of a numpydoc docstring; the summary stands under ""."""
    found, lines = {"": []}, docstring.splitlines()
    title = ""
    for k, line in enumerate(lines):
        if k + 1 < len(lines) and re.fullmatch(r"-{3,}", lines[k + 1]):
            title = line
            assert title not in found, f"section {title} twice"
            assert len(lines[k + 1]) == len(title), f"underline of {title}"
            assert lines[max(k - 1, 0)] == "", f"no empty line before {title}"
            found[title] = []
        elif not re.fullmatch(r"-{3,}", line):
            found[title].append(line)
    return found


def entries(lines):
    """Names that a section describes: ``name : type`` or ``a, b : type`` at its margin."""
    heads = [line.split(" : ")[0] for line in lines if line and not line.startswith(" ")]
    return [name.strip().lstrip("*") for head in heads for name in head.split(",")]


def arguments(node):
    found = node.args
    names = [one.arg for one in [*found.posonlyargs, *found.args, *found.kwonlyargs, found.vararg, found.kwarg] if one]
    return [name for name in names if name not in ("self", "cls")]


def documented_arguments(node):
    """Arguments of a function, or of a class: of its constructor, or its fields."""
    if isinstance(node, FUNCTIONS):
        return arguments(node)
    init = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
    if init:
        return arguments(init[0])
    return [one.target.id for one in node.body if isinstance(one, ast.AnnAssign)]


@modules
def test_docstrings_are_numpydoc(path):
    for name, node in public(TREES[path]):
        found = sections(ast.get_docstring(node))
        summary = found[""][0]
        assert re.search(r"[.:]$", summary) or found[""][1:2] != [""], f"{name}: the summary is a sentence: {summary!r}"
        assert [title for title in found if title] == [title for title in SECTIONS if title in found], (
            f"{name}: sections"
        )
        if "Parameters" in found:
            assert entries(found["Parameters"]) == documented_arguments(node), f"{name}: arguments, in their order"


def raises_value_error(statements, helpers):
    """Whether statements raise ValueError, themselves or through a private function of the module."""
    for node in statements:
        if isinstance(node, FUNCTIONS | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(raised, ast.Name) and raised.id == "ValueError":
                return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in helpers:
            return True
        if isinstance(node, ast.Try) and any("ValueError" in ast.unparse(one.type or node) for one in node.handlers):
            inner = [part for handler in node.handlers for part in handler.body] + node.orelse + node.finalbody
        else:
            inner = list(ast.iter_child_nodes(node))
        if raises_value_error(inner, helpers):
            return True
    return False


def private_that_raise(tree):
    """Names of the private functions of a module that raise ValueError, themselves or through each other."""
    private = {node.name: node for node in tree.body if isinstance(node, FUNCTIONS) and node.name.startswith("_")}
    found: set[str] = set()
    while more := {name for name, node in private.items() if raises_value_error(node.body, found)} - found:
        found |= more
    return found


@modules
def test_functions_that_raise_value_error_say_so(path):
    helpers = private_that_raise(TREES[path])
    silent = [
        name
        for name, node in public(TREES[path])
        if isinstance(node, FUNCTIONS)
        and raises_value_error(node.body, helpers)
        and "ValueError" not in sections(ast.get_docstring(node)).get("Raises", [])
    ]
    assert silent == []


@modules
def test_sizes(path):
    """Functions of 50 lines at most, docstring left out, modules of 400."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    long = {}
    for name, node in members(TREES[path]):
        if isinstance(node, FUNCTIONS):
            first = node.body[0]
            is_docstring = ast.get_docstring(node) is not None
            lines = node.end_lineno - node.lineno + 1 - (first.end_lineno - first.lineno + 1) * is_docstring
            if lines > 50:
                long[name] = lines
    assert long == {}


@modules
def test_no_assert_in_the_library(path):
    assert [node.lineno for node in ast.walk(TREES[path]) if isinstance(node, ast.Assert)] == []


@modules
def test_nothing_is_unpickled(path):
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"\bimport pickle\b|\btorch\.load\(|allow_pickle=True", text) == []


def test_presentation_modules_exist_and_are_not_used_by_what_computes():
    """Widgets only show as well; no hash sees them."""
    names = {path.stem for path in MODULES}
    assert names >= provenance.PRESENTATION
    for path in MODULES:
        if path.stem not in provenance.PRESENTATION | {"__init__"} and path.parent.name != "widgets":
            used = {one.stem for one in provenance.imported_modules(path)}
            assert used & provenance.PRESENTATION == set(), f"{path.name} would change results unseen"
            assert "xai_lib.widgets" not in path.read_text(encoding="utf-8"), f"{path.name} would change results unseen"


def test_every_module_has_tests():
    """`figures` has tests/test_figures.py, and so on: they mirror each other one to one."""
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    assert {path.stem for path in MODULES} - {"__init__"} - tests == set()


# ---------------------------------------------------------------------------------------------------------------------
# Notebooks


def cells(path, kind="code"):
    everything = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in everything if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


def test_there_are_notebooks():
    assert NOTEBOOKS


@notebooks
def test_notebook_has_one_cell_of_parameters_with_a_comment_each(path):
    tagged = [cell for cell in cells(path) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    assert "profile" in provenance.notebook_parameters(path)
    assert [line for line in source(tagged[0]).splitlines() if line.strip() and "  # " not in line] == []


@notebooks
def test_notebook_computes_by_the_library(path):
    tree = ast.parse(provenance.notebook_code(path))
    assert [ast.unparse(node)[:60] for node in ast.walk(tree) if isinstance(node, FUNCTIONS | ast.ClassDef)] == []
    loops = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert [call for call in loops if call.endswith(".backward()") or call.endswith(".step()")] == []


@notebooks
def test_notebook_is_stripped_and_short(path):
    code = cells(path)
    assert [cell["outputs"] for cell in code if cell["outputs"]] == []
    assert {cell["execution_count"] for cell in code} == {None}
    assert len(code) <= 20
    tags = [tag for cell in code for tag in cell["metadata"].get("tags", [])]
    assert "injected-parameters" not in tags
    assert len(set(tags)) == len(tags)


@notebooks
def test_notebook_begins_with_a_title_and_ends_with_paper_and_ours(path):
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    assert first["cell_type"] == "markdown"
    assert source(first).startswith("# ")
    recording = [cell for cell in cells(path) if "ledger.record(" in source(cell)]
    assert len(recording) == 1
    assert f'ledger.record("{path.stem}"' in source(recording[0])
    if "values={}" not in source(recording[0]):  # it decides claims
        assert "paper_and_ours" in source(cells(path)[-1])


@notebooks
def test_figures_of_a_notebook_have_alt_text(path):
    for cell in cells(path):
        if any(tag.startswith("figure-") for tag in cell["metadata"].get("tags", [])):
            alt = cell["metadata"]["mystnb"]["image"]["alt"]
            assert len(alt.split()) >= 8, alt


# ---------------------------------------------------------------------------------------------------------------------
# Environment

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")


def test_environment_yml_is_python_and_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, locked = environment["dependencies"]
    assert (pip, locked) == ("pip", {"pip": ["-r requirements.lock"]})
    version = re.fullmatch(r"python=(3\.\d+)", python)[1]
    assert Version(version) in SpecifierSet(PROJECT["requires-python"])
    assert environment.keys() <= {"name", "dependencies", "channels"}


def locked():
    """{name: [versions]} of the lock."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"(?m)^([A-Za-z0-9._-]+)==([^\s;\\]+)", LOCK):
        found.setdefault(name.lower().replace("_", "-"), []).append(version)
    return found


def test_the_lock_holds_all_that_the_project_names():
    versions = locked()
    extras = PROJECT["optional-dependencies"].values()
    for text in [*PROJECT["dependencies"], *(one for extra in extras for one in extra)]:
        need = Requirement(text)
        assert versions[need.name.lower()], text
        assert all(need.specifier.contains(version) for version in versions[need.name.lower()]), text


def test_the_lock_is_hashes_throughout_and_names_no_place():
    entries = re.split(r"(?m)^(?=\S)", "\n".join(line for line in LOCK.splitlines() if not line.startswith("#")))
    assert [one.split("\n")[0] for one in entries if one.strip() and "--hash=sha256:" not in one] == []
    assert "://" not in LOCK
    assert re.findall(r"(?m)^\s*(?:--index|--extra-index|--find-links|-f |-i |-e ).*", LOCK) == []


# ---------------------------------------------------------------------------------------------------------------------
# Nothing of one machine


def files():
    """Files that git tracks or would track; where git is not there, those of the folders of the project."""
    words = ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        found = [ROOT / name for name in done.stdout.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        tops = ("xai_lib", "notebooks", "book", "profiles", "results", "workflow", "tests", "benchmarks", ".ci")
        found = [path for top in tops for path in (ROOT / top).rglob("*")]
        found += [path for path in ROOT.iterdir() if path.suffix in (".md", ".yml", ".toml", ".lock", ".cff", "")]
    return [path for path in found if path.is_file() and "__pycache__" not in path.parts]


REGISTRY = re.compile(
    r"""(?: \bpypi\.(?:org|python) | python hosted\. | \banaconda\.(?:org|com) | registry\.npmjs | \bnpmjs\.(?:org|com)
    | download\.pytorch | pypi\.nvidia | piwheels\. | \bdevpi\b | \bartifactory\b | \bnexus\. | conda\.io
    | --(?:extra-)?index-url\s*=?\s*http | registry\.yarnpkg | cdn\.jsdelivr | \bunpkg\.com )""",
    re.VERBOSE | re.IGNORECASE,
)
HERE = re.compile(r"(?<![\w.~$}*-])/(?:home|root|work|Users|mnt|private|var/folders)/[\w.-]+")


def test_patterns_find_what_they_are_for():
    for text in ["https://py" + "pi.org/simple", "--index-url " + "https://a", "https://files.python" + "hosted.org/x"]:
        assert REGISTRY.search(text)
    for text in [" /ho" + "me/me/x", '"/wo' + "rk/main", "file:///ro" + "ot/x"]:
        assert HERE.search(text)
    relative = ["book/wo" + "rk/main", "../shared/ro" + "ot/x"]
    for text in [*relative, "~/home/x", "https://example.org/wiki", "pip install ."]:
        assert not HERE.search(text)
        assert not REGISTRY.search(text)


def test_no_address_of_a_registry_and_no_path_of_this_machine():
    found, patterns = [], [REGISTRY, HERE]
    if len(ROOT.parts) > 2:  # /src alone would be a word of many addresses
        patterns.append(re.compile(rf"(?<![\w.~/-]){re.escape(str(ROOT))}(?![\w-])"))
    for path in files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for pattern in patterns:
            found += [f"{path.relative_to(ROOT)}: {hit[0]}" for hit in pattern.finditer(text)]
    assert found == []


def test_published_runs_are_small():
    sizes = {path: path.stat().st_size for path in files() if path.is_relative_to(ROOT / "results")}
    assert [path.name for path, size in sizes.items() if size > 2e6] == []
    assert sum(sizes.values()) <= 16e6


def test_the_checks_see_what_they_look_for():
    """A module made to fail each of them."""
    bad = ast.parse(
        inspect.cleandoc(
            '''
            def silent(x):
                """Return x.

                Parameters
                ----------
                y : int
                """
                if x:
                    _helper(x)

            def _helper(x):
                raise ValueError("x")

            def caught(x):
                """Return x."""
                try:
                    _helper(x)
                except ValueError:
                    pass
            '''
        )
    )
    silent, _, caught = bad.body
    helpers = private_that_raise(bad)
    assert helpers == {"_helper"}
    assert raises_value_error(silent.body, helpers)
    assert not raises_value_error(caught.body, helpers)
    assert entries(sections(ast.get_docstring(silent))["Parameters"]) == ["y"] != documented_arguments(silent)
    with pytest.raises(AssertionError, match="underline"):
        sections("Return.\n\nReturns\n----\nint")


# ---------------------------------------------------------------------------------------------------------------------
# Data sets that are modules


def named_sets(code, *parameters):
    """Names of sets that are modules among the texts of a source and the values of parameters."""
    texts = {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)}
    values = {value for held in parameters for value in held.values() if isinstance(value, str)}
    return (texts | values) & set(data.modules())


def profiles_parameters(notebook):
    """Parameters of a notebook, one dict for each profile."""
    profiles = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / "profiles").glob("*.yml")]
    assert profiles
    return [one["notebooks"].get(notebook, {}).get("parameters", {}) for one in profiles]


@notebooks
def test_a_notebook_imports_the_modules_whose_sets_it_loads(path):
    """By a name alone, as in ``data.load("scenes")``, a change of the module's code would not be seen."""
    used = named_sets(
        provenance.notebook_code(path), provenance.notebook_parameters(path), *profiles_parameters(path.stem)
    )
    assert used - {one.stem for one in provenance.imported_modules(path)} == set()


def test_names_of_sets_are_found():
    assert "scenes" in data.modules()
    assert named_sets('data.load("scenes", "train")') == {"scenes"}
    assert named_sets("data.load(dataset)", {"dataset": "scenes", "seeds": [0]}) == {"scenes"}
    assert named_sets('data.load("digits"); title = "ten scenes"', {"dataset": "auto:mnist"}) == set()
    assert any(named_sets(provenance.notebook_code(path)) for path in NOTEBOOKS)
