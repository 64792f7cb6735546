import contextlib
import copy
import json
import os
import re
import resource
import subprocess
from pathlib import Path

import pytest

from xai_lib import records


@pytest.fixture
def top(tmp_path, monkeypatch):
    """A project of this test's own, which is the working directory."""
    (tmp_path / "claims.yml").write_text("claims: []\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# where things are


def test_project_is_the_nearest_folder_upwards_with_claims(top, monkeypatch):
    inner = top / "notebooks" / "deep"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert records.project() == top
    (top / "notebooks" / "claims.yml").write_text("claims: []\n")
    assert records.project() == top / "notebooks"


def test_project_falls_back_to_the_one_that_the_library_lies_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert records.project() == Path(records.__file__).resolve().parent.parent


def test_no_project_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(records, "__file__", str(tmp_path / "site-packages" / "xai_lib" / "records.py"))
    with pytest.raises(FileNotFoundError, match=f"{re.escape(str(tmp_path))} upwards holds claims.yml"):
        records.project()


def test_folder(top):
    assert records.folder("desk") == top / "build" / "desk"
    assert not (top / "build").exists(), "asking makes nothing"


# written whole or not at all


def test_write_text_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "c.json"
    records.write_text(path, "one, a little longer ±\n")
    records.write_text(path, "two −\n")
    assert path.read_bytes() == "two −\n".encode()
    assert os.listdir(path.parent) == ["c.json"]


@contextlib.contextmanager
def small_files():
    """A limit of 4 kB on every file that this process writes: the system itself breaks off a longer write.

    Around the write alone, as pytest's own output may go to a file that is longer.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_the_system_breaks_off_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "run.json"
    records.write_text(path, "old\n")
    with pytest.raises(OSError, match="File too large"), small_files():
        records.write_text(path, "new\n" * 5000)
    assert path.read_text() == "old\n"
    assert os.listdir(tmp_path) == ["run.json"], "no part is left"


def test_a_rename_that_fails_leaves_no_part(tmp_path):
    (tmp_path / "run.json" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        records.write_text(tmp_path / "run.json", "new\n")
    assert os.listdir(tmp_path) == ["run.json"]


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path, seen = tmp_path / "run.json", []
    records.write_text(path, "old\n")
    write = Path.write_text

    def watched(self, text, **how):
        done = write(self, text, **how)
        seen.append((self.name, path.read_text()))
        return done

    monkeypatch.setattr(Path, "write_text", watched)
    records.write_text(path, "new\n")
    assert [text for _, text in seen] == ["old\n"]
    assert seen[0][0] != "run.json"
    assert path.read_text() == "new\n"


# circumstances


def git(folder, *words):
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", folder, *who, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_circumstances_hold_what_the_contract_names(top):
    found = records.circumstances()
    assert {"finished", "seconds", "peak_memory_mb", "device", "versions", "commit", "dirty"} <= found.keys()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", found["finished"])
    assert found["seconds"] > 0
    assert 20 < found["peak_memory_mb"] < 2**20
    assert found["device"]
    assert found["versions"].keys() >= {"python", "torch"}
    json.dumps(found, allow_nan=False)
    assert str(top) not in json.dumps(found), "no path of this machine"


def test_outside_a_repository_the_commit_is_unknown(top, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(top.parent))
    found = records.circumstances()
    assert (found["commit"], found["dirty"]) == ("unknown", None)


def test_without_git_the_commit_is_unknown(top, monkeypatch):
    monkeypatch.setenv("PATH", str(top))
    found = records.circumstances()
    assert (found["commit"], found["dirty"]) == ("unknown", None)


def test_commit_and_changes_are_those_of_the_project(top):
    git(top, "init", "--quiet")
    assert records.circumstances()["commit"] == "unknown", "no commit yet"
    git(top, "add", "claims.yml")
    git(top, "commit", "--quiet", "-m", "one")
    found = records.circumstances()
    assert found["commit"] == git(top, "rev-parse", "HEAD")
    assert found["dirty"] is False
    (top / "claims.yml").write_text("claims: [] # changed\n")
    assert records.circumstances()["dirty"] is True


# reading


def record(values=None, measures=None, **results):
    return {
        "schema": 1,
        "profile": "desk",
        "results": {
            "notebook": "toy",
            "parameters": {"epochs": 3, "seeds": [0, 1, 2]},
            "threads": 2,
            "data": {"digits/test": "d1"},
            "values": values or {},
            "measures": measures or {},
            "rules": {"toy-a": "r1"},
            "code": {"toy.ipynb": "c1", "losses.py": "c2"},
            **results,
        },
        "circumstances": {"device": "some CPU", "seconds": 1.5},
    }


def test_read_record_gives_back_what_was_written(tmp_path):
    path, content = tmp_path / "toy.json", record({"toy-a": {"0": 0.1 + 0.2}})
    records.write_text(path, json.dumps(content))
    assert records.read_record(path) == content


def test_read_records_of_a_folder(tmp_path):
    assert records.read_records(tmp_path / "not there") == {}
    for name in ("b", "a"):
        records.write_text(tmp_path / f"{name}.json", json.dumps(record(notebook=name)))
    (tmp_path / "a.json.123.part").write_text('{"half')  # what a kill -9 leaves
    (tmp_path / "a.ipynb").write_text("{}")
    assert list(records.read_records(tmp_path)) == ["a", "b"]


def malformed(**changes):
    content = record({"toy-a": {"0": 1.0}})
    for name, value in changes.items():
        if value is None:
            del content[name]
        else:
            content[name] = value
    return json.dumps(content).encode()


WHOLE = json.dumps(record()).encode()
UNREADABLE = {
    "empty": b"",
    "half": WHOLE[: len(WHOLE) // 2],
    "text": b"no record",
    "a list": b"[1, 2]",
    "a number": b"3",
    "no schema": malformed(schema=None),
    "schema 2": malformed(schema=2),
    "no results": malformed(results=None),
    "bytes": WHOLE.replace(b"some", b"\xff\xfe\x80"),
    "empty results": malformed(results={}),
    "results are a list": malformed(results=[]),
    "no profile": malformed(profile=None),
    "no circumstances": malformed(circumstances=None),
    "no values": malformed(results={k: v for k, v in record()["results"].items() if k != "values"}),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_is_no_record_is_named_in_one_line(tmp_path, kind):
    path = tmp_path / "toy.json"
    path.write_bytes(UNREADABLE[kind])
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        records.read_record(path)
    assert "no run record" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        records.read_records(tmp_path)


# two records side by side

VALUES = {"toy-a": {"0": 1.0, "1": 2.0, "2": 3.0}, "toy-b": {"x": {"0": 1.0, "1": 1.5}, "y": {"0": 5.0, "1": 5.0}}}
MEASURES = {"accuracy": {"0": 90.0, "1": 91.0, "2": 92.0}}


def other(change):
    """The record of VALUES and MEASURES, and another after `change` of its results."""
    one = record(copy.deepcopy(VALUES), copy.deepcopy(MEASURES))
    two = copy.deepcopy(one)
    change(two["results"])
    return one, two


def test_identical_results_under_other_circumstances():
    one, two = other(lambda results: None)
    two["circumstances"] = {"device": "another"}
    two["profile"] = "quick"
    same, lines = records.compare(one, two)
    assert same
    assert len(lines) == 1
    assert lines[0].startswith("identical")


def shift(by):
    def change(results):
        results["values"]["toy-a"] = {seed: x + by for seed, x in results["values"]["toy-a"].items()}

    return change


@pytest.mark.parametrize(
    ("by", "same", "word"), [(1.63, True, "within"), (1.64, False, "beyond"), (-1.64, False, "beyond")]
)
def test_two_standard_errors_by_hand(by, same, word):
    """Both have sd 1 and n 3: twice the root of 1/3 + 1/3 is 1.633."""
    found, lines = records.compare(*other(shift(by)))
    assert found is same
    [line] = lines
    assert line.startswith("toy-a: 2 and ")
    assert f"{word} two standard errors (1.63)" in line


def test_one_part_beyond_is_named_and_decides():
    def change(results):
        results["values"]["toy-b"]["y"] = {"0": 5.0, "1": 5.001}  # sd 0 against 0.0007: 0.0005 is within 0.001
        results["values"]["toy-b"]["x"] = {"0": 9.0, "1": 9.5}
        results["measures"]["accuracy"]["0"] = 90.5

    same, lines = records.compare(*other(change))
    assert not same
    assert [line.split(":")[0] for line in lines] == ["toy-b x", "toy-b y", "accuracy"]
    assert ["beyond" in line for line in lines] == [True, False, False]


def test_one_seed_must_agree_exactly():
    one, two = record({"toy-a": {"0": 1.0}}), record({"toy-a": {"0": 1.0000001}})
    same, [line] = records.compare(one, two)
    assert not same
    assert "beyond" in line
    assert records.compare(one, record({"toy-a": {"5": 1.0}}))[0], "the same number of another seed"


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    ("remove", "label"),
    [
        (lambda results: results["values"].pop("toy-a"), "toy-a"),
        (lambda results: results["values"]["toy-b"].pop("y"), "toy-b y"),
        (lambda results: results["measures"].pop("accuracy"), "accuracy"),
    ],
)
def test_what_only_one_has(remove, label, swap):
    pair = other(remove)
    same, lines = records.compare(*(pair[::-1] if swap else pair))
    assert not same
    assert lines == [f"{label}: only in one of them"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"parameters": {"epochs": 4, "seeds": [0, 1, 2], "width": 1}}, "parameters differ: epochs, width"),
        ({"threads": 4}, "threads differ: 2 and 4"),
        ({"notebook": "other"}, "notebook differ: toy and other"),
        ({"data": {"digits/test": "d2"}}, "data differ: digits/test"),
        ({"rules": {"toy-a": "r2"}}, "rules differ: toy-a"),
        ({"code": {"toy.ipynb": "c1", "metrics.py": "c3"}}, "code differ: losses.py, metrics.py"),
    ],
)
def test_same_numbers_from_something_else(change, line):
    """They are the same results, and what was not the same is said."""
    one, two = other(lambda results: results.update(change))
    assert records.compare(one, two) == (True, [line])
    assert records.compare(two, one)[0]


def test_parameters_and_numbers_differ():
    def change(results):
        results["parameters"]["epochs"] = 4
        shift(10)(results)

    same, lines = records.compare(*other(change))
    assert not same
    assert [line.split(":")[0] for line in lines] == ["parameters differ", "toy-a"]


def test_figures_compare_as_equal():
    one, two = record({"toy-figure": {}}), record({"toy-figure": {}}, {"more": {"0": 1.0}})
    assert records.compare(one, two) == (False, ["more: only in one of them"])
