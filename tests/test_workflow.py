"""The workflow on a small project of its own: three tiny notebooks, the real Snakefile and runner."""

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import workflow.build
from workflow import claim_pages, profiles, readme, site
from xai_lib import records

ROOT = Path(__file__).resolve().parent.parent

CLAIM = {
    "paper": "xcnn",
    "where": "section 0",
    "claim": "Two is more than one.",
    "value": 0.5,
    "unit": "points",
    "needs": {"data": [], "profile": "smoke"},
    "rule": {"kind": "order", "text": "Positive supports it."},
    "reason": "not yet run",
}

SOCKETS = """import json
from ipykernel.connect import get_connection_file
print("sockets:", json.load(open(get_connection_file()))["ip"])"""


def write_notebook(path, imports, body):
    """Write a notebook with a title, imports, parameters, one cell of work, and a record."""
    name = path.stem
    cells = [
        new_markdown_cell(f"# {name}"),
        new_code_cell(f"from xai_lib import ledger, data\n{imports}"),
        new_code_cell(
            'profile = "lab"\nseeds = [0]\nsteps = 1\nrate = 0.5\nlabel = "a"\n', metadata={"tags": ["parameters"]}
        ),
        new_code_cell(body),
        new_code_cell(
            f'ledger.record("{name}", parameters=globals(), sets=[data.load("digits", "test")],\n'
            f'    values={{"xcnn-{name}": {{seed: steps + 0.1 * seed for seed in seeds}}}}, measures={{}})'
        ),
    ]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), path)


def write_profile(project, **notebooks):
    entries = {name: {"minutes": 0.1, "parameters": parameters} for name, parameters in notebooks.items()}
    (project / "profiles" / "smoke.yml").write_text(yaml.safe_dump({"notebooks": entries}))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project whose library is a copy, so that tests can edit it."""
    top = tmp_path_factory.mktemp("project")
    for name in ("xai_lib", "workflow"):
        shutil.copytree(ROOT / name, top / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", top)
    for name in ("notebooks", "profiles", "book/results", "results"):
        (top / name).mkdir(parents=True)
    claims = [{**CLAIM, "id": f"xcnn-{one}", "title": f"Claim {one}", "notebook": one} for one in ("one", "two", "bad")]
    (top / "claims.yml").write_text(yaml.safe_dump({"claims": claims}))
    for name in ("_ext", "_static"):
        shutil.copytree(ROOT / "book" / name, top / "book" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("_config.yml", "references.bib", "references.md"):
        shutil.copy(ROOT / "book" / name, top / "book")
    (top / "book" / "index.md").write_text("# A book\n\n{{ tables.all }}\n")
    papers = [{"file": f"results/{paper}"} for paper in claim_pages.PAPERS]
    parts = [{"caption": "All", "chapters": [*papers, {"file": "references"}]}]
    (top / "book" / "_toc.yml").write_text(yaml.safe_dump({"format": "jb-book", "root": "index", "parts": parts}))
    write_notebook(top / "notebooks" / "one.ipynb", "from xai_lib import xcnn", f"print(xcnn.map_sign)\n{SOCKETS}")
    write_notebook(top / "notebooks" / "two.ipynb", "from xai_lib import metrics", f"print(metrics)\n{SOCKETS}")
    write_profile(top, one={"seeds": [0, 1, 2]}, two={"steps": 2})
    return top


def environment(project):
    return {**os.environ, "PYTHONPATH": str(project), "XAI_DATA": str(project / "data")}


def build(project, *words, profile="smoke"):
    """Run the command behind `make book` in the project; return its exit status and output."""
    command = [sys.executable, "-m", "workflow.build", "--profile", profile, *words]
    done = subprocess.run(
        command, cwd=project, env=environment(project), text=True, timeout=300, check=False, capture_output=True
    )
    return done.returncode, done.stdout + done.stderr


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.fixture(scope="module")
def built(project):
    status, said = build(project)
    assert status == 0, said
    assert "[one] starts" in said
    assert "[two] done" in said
    assert f"site: {project / 'build/smoke/site/index.html'}" in said
    assert "Claim one" in said, "the table of paper and ours"
    return project


def test_the_site_holds_the_own_run(built):
    page = (built / "build/smoke/site/index.html").read_text()
    assert "Claim one" in page
    assert "+1.10" in page, "the mean of 1, 1.1 and 1.2"
    assert "Content-Security-Policy" in page
    assert (built / "build/smoke/site/runs/own/one/one.html").exists()


def test_kernels_have_sockets_of_their_own(built):
    """Two that start at the same moment, as on a machine with four cores, would else answer each other."""
    runs = [(built / f"build/smoke/runs/{name}.ipynb").read_text() for name in ("one", "two")]
    one, two = (Path(re.search(r"sockets: ([^\\]+)", run)[1]) for run in runs)
    assert one.is_absolute()
    assert one.parent != two.parent
    assert not one.parent.exists(), "nothing is left behind"


def test_nothing_changed_runs_nothing(built):
    begun = time.monotonic()
    status, said = build(built)
    assert status == 0
    assert "starts" not in said, said
    assert time.monotonic() - begun < 30, "10 s on an idle machine"


def test_a_comment_runs_nothing_and_a_function_its_own_notebooks_alone(built):
    edit(built / "xai_lib" / "xcnn.py", "class Generator", "# a comment\nclass Generator")
    assert "starts" not in build(built)[1]
    edit(built / "xai_lib" / "metrics.py", "return 100 * (logits", "return 100.0 * (logits")
    status, said = build(built)
    assert status == 0
    assert "[two] starts" in said
    assert "[one]" not in said


def test_one_slice_of_the_profile_runs_its_own_notebook_alone(built):
    write_profile(built, one={"seeds": [0, 1, 2]}, two={"steps": 3})
    status, said = build(built)
    assert status == 0
    assert "[two] starts" in said
    assert "[one]" not in said


def test_seeds_can_be_given(built):
    status, said = build(built, "--notebook", "one", "--seeds", "3,4")
    assert status == 0, said
    assert "record: " in said
    record = yaml.safe_load((built / "build/smoke/runs/one.json").read_text())
    assert record["results"]["parameters"]["seeds"] == [3, 4]
    assert record["results"]["values"] == {"xcnn-one": {"3": 1.3, "4": 1.4}}


def test_a_failing_notebook_is_named_and_stops_no_other(built):
    write_notebook(built / "notebooks" / "bad.ipynb", "", 'value = 1\nraise RuntimeError("no such luck")')
    write_profile(built, bad={}, one={"seeds": [5, 6]}, two={"steps": 3})
    status, said = build(built)
    assert status != 0
    assert "[bad] FAILED in cell 5 (value = 1): RuntimeError: no such luck" in said
    assert "[one] done" in said
    assert "the book was not built" in said
    log = built / "build/smoke/logs/bad.log"
    assert str(log) in said
    assert "no such luck" in log.read_text()
    assert (built / "build/smoke/logs/bad.ipynb").exists()
    assert not (built / "build/smoke/runs/bad.ipynb").exists()


def test_a_dead_kernel_is_a_failure_too(built):
    write_notebook(built / "notebooks" / "bad.ipynb", "import os", "os._exit(9)")
    write_profile(built, bad={})
    status, said = build(built, "--notebook", "bad")
    assert status != 0
    assert "[bad] FAILED in cell 5" in said


def test_stopped_and_called_again_it_goes_on(built):
    body = (
        "import time, pathlib\npathlib.Path('../begun').touch()\n"
        "while pathlib.Path('../wait').exists():\n    time.sleep(0.1)"
    )
    write_notebook(built / "notebooks" / "bad.ipynb", "", body)
    write_profile(built, bad={}, one={"seeds": [5, 6]})
    (built / "wait").touch()
    running = subprocess.Popen(
        [sys.executable, "-m", "workflow.build", "--profile", "smoke"],
        cwd=built,
        env=environment(built),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        # a shell starts what it puts in the background deaf to Ctrl-C, and that is inherited
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    limit = time.monotonic() + 120
    while not (built / "begun").exists():
        assert time.monotonic() < limit
        assert running.poll() is None
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGINT)  # what Ctrl-C does
    said, _ = running.communicate(timeout=60)
    assert running.returncode != 0, said
    assert not (built / "build/smoke/runs/bad.json").exists()
    (built / "wait").unlink()
    status, said = build(built)
    assert status == 0, said
    assert "[bad] done" in said
    assert "[one]" not in said, "it was done before"


WRONG = {
    "name": ({"one": {"sedes": [1]}}, "has no parameter 'sedes'; did you mean 'seeds'?"),
    "type": ({"one": {"steps": "3"}}, "steps must be of type int as in the notebook; got '3'"),
    "type in list": ({"one": {"seeds": ["a"]}}, "seeds must be of type list as in the notebook; got ['a']"),
    "bool": ({"one": {"steps": True}}, "steps must be of type int as in the notebook; got True"),
    "notebook": ({"three": {}}, "there is no notebooks/three.ipynb"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_parameters_stop_before_anything_runs(built, monkeypatch, case):
    monkeypatch.chdir(built)
    entries, message = WRONG[case]
    write_profile(built, **entries)
    with pytest.raises(ValueError, match="smoke.yml") as error:
        profiles.read("smoke")
    assert message in str(error.value)


def test_a_whole_number_does_for_a_float(built, monkeypatch):
    monkeypatch.chdir(built)
    write_profile(built, one={"rate": 1})
    assert profiles.read("smoke")["one"]["parameters"] == {"rate": 1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bogus", None, None), "PROFILE must be one of smoke, quick, desk, paper; got 'bogus'"),
        (("smoke", "on", None), "NOTEBOOK must be one of one; got 'on'"),
        (("smoke", None, "1"), "SEEDS=1 needs NOTEBOOK=..."),
        (("smoke", "one", "1,x"), "SEEDS must be whole numbers with commas between them; got '1,x'"),
        (("smoke", "one", "1,1"), "SEEDS must be different and 0 or above; got '1,1'"),
    ],
)
def test_wrong_words_are_named(built, monkeypatch, words, message):
    monkeypatch.chdir(built)
    write_profile(built, one={})
    with pytest.raises(ValueError, match="must|needs") as error:
        profiles.read(*words)
    assert message in str(error.value)


def test_the_projects_own_profiles_are_in_order(monkeypatch):
    monkeypatch.chdir(ROOT)
    for profile in ("smoke", "quick", "desk", "paper"):
        plan = profiles.read(profile)
        assert set(plan) == {path.stem for path in Path("notebooks").glob("*.ipynb")}


def test_a_page_that_names_a_claim_without_record_stops_the_build(built):
    write_profile(built, one={"seeds": [5, 6]})
    page = built / "book" / "index.md"
    whole = page.read_text()
    page.write_text(whole + "\n{{ claims.xcnn_one.ours }}\n")
    status, said = build(built)
    page.write_text(whole)
    assert status != 0
    assert "[book] FAILED" in said
    assert "xcnn_one" in said


def test_a_published_run_is_not_made_again(project):
    status, said = build(project, "--notebook", "one", profile="published")
    assert status == 2
    assert said.strip().endswith("PROFILE must be smoke, quick, desk or paper to run a notebook; got published")


@pytest.mark.parametrize(("given", "found"), [("mine", "{here}/mine"), ("~/mine", "{home}/mine"), ("/a/b", "/a/b")])
def test_xai_data_means_one_folder_for_every_command(monkeypatch, tmp_path, given, found):
    """Notebooks run in a folder of their own, where a relative path would lead elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(records, "project", lambda: ROOT)
    monkeypatch.setenv("XAI_DATA", given)
    assert workflow.build.main(["--profile", "unknown"]) == 2
    assert os.environ["XAI_DATA"] == found.format(here=tmp_path.resolve(), home=Path.home())


def test_launch_buttons_are_there_where_a_repository_is_named(built, monkeypatch, tmp_path):
    monkeypatch.chdir(built)
    site.assemble("smoke", tmp_path / "without")
    monkeypatch.setenv("REPOSITORY_URL", "https://example.org/house/book")
    site.assemble("smoke", tmp_path / "with")
    without, named = (yaml.safe_load((tmp_path / one / "_config.yml").read_text()) for one in ("without", "with"))
    assert "launch_buttons" not in without
    assert "repository" not in without
    assert named["repository"]["url"] == "https://example.org/house/book"
    assert named["launch_buttons"]["notebook_interface"] == "jupyterlab"


def test_the_readme_shows_what_the_ledger_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = readme.README.read_text(encoding="utf-8")
    assert text == readme.filled(text), "python -m workflow.readme brings it up to date"


def test_a_measure_that_is_defined_for_no_seed_gives_no_number():
    from workflow import site

    about = {"device": "two cores", "seconds": 60, "peak_memory_mb": 9, "versions": {"python": "3.11"}}
    results = {"measures": {"none": {}, "some": {"0": 1.0, "1": 3.0}}, "parameters": {"seeds": [0, 1]}}
    found = site._run_numbers({"results": results, "circumstances": about, "profile": "desk"})
    assert "none" not in found
    assert found["some"] == "2.0 ± 1.4"
