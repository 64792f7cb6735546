"""Build the book: ``python -m workflow.site PROFILE``, or ``published`` for the published runs alone.

The pages of ``book/`` are copied, what the runs found is laid beside them (figures, executed notebooks, records,
tables, numbers for the prose), and jupyter-book renders all of it. Nothing is computed here.
"""

import ast
import base64
import functools
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import yaml

from workflow import claim_pages, downloads, profiles, widgets
from workflow.execute import duration
from xai_lib import figures, ledger, provenance, records
from xai_lib.verdicts import by_part, summarize
from xai_lib.widgets import base

BOOK, RESULTS = Path("book"), Path("results")
# what lies in extra/ is copied to the site's root
WIDGETS, DOWNLOADS = Path("extra") / "widgets", Path("extra") / downloads.FOLDER


def state() -> str:
    """Return a hash of all that the book is made of, the runs of this machine left out."""
    files = [path for top in (BOOK, RESULTS) for path in top.rglob("*") if path.is_file()]
    files += [path for path in base.FOLDER.iterdir() if path.suffix in (".js", ".css")]
    files += [*Path("workflow").glob("*.py"), *Path("notebooks").glob("*.ipynb"), Path("claims.yml")]
    parts = [f"{path} {provenance.file_sha256(path)}" for path in files if "__pycache__" not in path.parts]
    # of the library, what its reference shows and what it does; no comments
    code = {path: ast.dump(ast.parse(path.read_text(encoding="utf-8"))) for path in Path("xai_lib").rglob("*.py")}
    parts += [f"{path} {provenance.digest(text)}" for path, text in code.items()]
    return provenance.digest("\n".join([*sorted(parts), version("jupyter-book"), os.environ.get("REPOSITORY_URL", "")]))


def assemble(profile: str, target: Path) -> None:
    """Lay the source of the book out in `target`: pages, figures, executed notebooks, records, tables, numbers."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(BOOK, target, ignore=shutil.ignore_patterns("__pycache__"))
    published = _published()
    own = {} if profile == "published" else _executed(records.folder(profile) / "runs")
    widgets.write_modules(target / WIDGETS)
    for which, runs in (("published", published), ("own", own)):
        for name, path in runs.items():
            _lay_out(path, target, f"{which}/{name}")
    for name, path in published.items():
        downloads.lay_out(path, target / DOWNLOADS / name)
    claims = ledger.read_claims()
    rows = ledger.table(claims=claims)
    own_rows = [] if profile == "published" else ledger.table(ledger.own_runs(profile), claims=claims)
    claim_pages.write_pages(target / "results", rows, claims, published)
    claim_pages.write_explorer(target / WIDGETS / "results.js", rows, claims, published)
    config = yaml.safe_load((target / "_config.yml").read_text(encoding="utf-8"))
    config["parse"]["myst_substitutions"] = substitutions(rows, own_rows, published)
    if url := os.environ.get("REPOSITORY_URL"):
        config["repository"] = {"url": url, "path_to_book": "book", "branch": "main"}
        config["html"] |= {"use_repository_button": True, "use_issues_button": True}
        config["launch_buttons"] = {"binderhub_url": "https://mybinder.org", "notebook_interface": "jupyterlab"}
    (target / "_config.yml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    contents = yaml.safe_load((target / "_toc.yml").read_text(encoding="utf-8"))
    pages = [
        {"file": f"runs/{which}/{name}/{name}", "title": f"{name}, {label}"}
        for which, runs, label in (("published", published, "published run"), ("own", own, f"your {profile} run"))
        for name in runs
    ]
    contents["parts"].append({"caption": "Executed notebooks", "chapters": pages or [{"file": "no-runs"}]})
    if not pages:
        (target / "no-runs.md").write_text("# No runs\n\nNo notebook has been run yet.\n", encoding="utf-8")
    (target / "_toc.yml").write_text(yaml.safe_dump(contents, sort_keys=False), encoding="utf-8")


def _executed(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.ipynb")) if path.with_suffix(".json").exists()}


def _published() -> dict[str, Path]:
    """Return the published run of each notebook, of the highest profile."""
    found: dict[str, Path] = {}
    for folder, _ in ledger.published_runs():
        found |= _executed(folder)
    return found


def _lay_out(notebook: Path, target: Path, run: str) -> None:
    """Copy an executed notebook and its record, and take its tagged figures and widgets out into files of their own.

    A cell that shows one figure gives ``<tag>.png``, one that shows several ``<tag>-1.png`` and so on.
    """
    folder = target / "runs" / run
    folder.mkdir(parents=True)
    record = records.read_record(notebook.with_suffix(".json"))
    shutil.copy(notebook.with_suffix(".json"), folder)
    source = json.loads(notebook.read_text(encoding="utf-8"))
    page = widgets.lay_out(source, run, target / WIDGETS)
    (folder / notebook.name).write_text(json.dumps(page), encoding="utf-8")
    alts = {}
    shown = list(_tagged(notebook, "figure-", "image/png"))
    count = Counter(tag for tag, _, _ in shown)
    for number, (tag, metadata, image) in enumerate(shown):
        same = sum(before == tag for before, _, _ in shown[:number])
        name = tag if count[tag] == 1 else f"{tag}-{same + 1}"
        (folder / f"{name}.png").write_bytes(base64.b64decode(image))
        alts[name] = metadata.get("mystnb", {}).get("image", {}).get("alt", "")
    kinds = {tag: widgets.kind_of(one["state"]) for tag, one in widgets.stored(source).items()}
    about = {"profile": record["profile"], "alt": alts, "widgets": kinds}
    (folder / "figures.json").write_text(json.dumps(about), encoding="utf-8")


def _tagged(notebook: Path, prefix: str, kind: str) -> Iterator[tuple[str, Mapping, str]]:
    """Yield (tag, metadata, content) of what cells with a tag of that prefix show as that media type."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for tag in cell["metadata"].get("tags", []):
            for output in cell.get("outputs", []) if tag.startswith(prefix) else []:
                if shown := output.get("data", {}).get(kind):
                    yield tag, cell["metadata"], "".join(shown)


# ---------------------------------------------------------------------------------------------------------------------
# Numbers and tables


def substitutions(rows: Sequence[ledger.Row], own: Sequence[ledger.Row], published: Mapping[str, Path]) -> dict:
    """Return what pages may name: claims and runs that have a published record, and tables; nothing else."""
    claims = {
        row.id.replace("-", "_"): {
            "ours": row.ours_text,
            "paper": claim_pages.number(row.paper_value, row.unit),
            "verdict": claim_pages.badge(row.verdict),
            "seeds": str(row.seeds),
            "rule": row.rule,
        }
        for row in rows
        if row.profile
    }
    runs = {name: _run_numbers(records.read_record(path.with_suffix(".json"))) for name, path in published.items()}
    for name, path in published.items():
        runs[name] |= {tag.replace("-", "_"): text for tag, _, text in _tagged(path, "table-", "text/markdown")}
    notebooks = sorted({row.notebook for row in [*rows, *own] if row.profile})
    tables = {name: claim_pages.side_by_side([row for row in rows if row.notebook == name], own) for name in notebooks}
    run = {row.id for row in [*rows, *own] if row.profile}
    tables["all"] = claim_pages.side_by_side([row for row in rows if row.id in run], own)
    counts = {paper: claim_pages.counts([row for row in rows if row.paper == paper]) for paper in claim_pages.PAPERS}
    texts = {
        "made": _made(published),
        "downloads": downloads.table(published, downloads.FOLDER),
        "networks": downloads.networks(published, downloads.FOLDER),
    }
    return {"claims": claims, "runs": runs, "tables": tables, "counts": counts, **texts}


def _run_numbers(record: Mapping) -> dict:
    """Return {measure: "mean ± sd"} of a record, and its circumstances in words."""
    results, about = record["results"], record["circumstances"]
    numbers = {
        name: summarize(part).text()
        for name, values in results["measures"].items()
        for part in by_part(values).values()
        if part  # what was defined for no seed has no number
    }
    numbers |= {
        f"{name}_by_seed": ", ".join(f"{x:g}" for x in one.values()) for name, one in results["measures"].items()
    }
    return numbers | {
        "profile": record["profile"],
        "device": about["device"],
        "time": duration(about["seconds"]),
        "memory": f"{about['peak_memory_mb'] / 1000:.1f} GB",
        "versions": ", ".join(f"{name} {one}" for name, one in about["versions"].items()),
        "seeds": str(len(results["parameters"].get("seeds", []))),
        "parameters": {name: str(value) for name, value in results["parameters"].items()},
    }


def _made(published: Mapping[str, Path]) -> str:
    """Return a table of the published runs: profile, time and what the profile expects, memory, device, versions."""
    lines, read = [], functools.cache(profiles.read)
    for name, path in published.items():
        one = _run_numbers(records.read_record(path.with_suffix(".json")))
        link, plan = f"[{name}](/runs/published/{name}/{name}.ipynb)", read(one["profile"])
        expected = f"about {plan[name]['minutes']:g} min" if name in plan else ""
        lines.append([link, one["profile"], one["time"], expected, one["memory"], one["device"], one["versions"]])
    header = ["notebook", "profile", "time", "from nothing", "memory", "device", "versions"]
    return str(figures.Table(header, lines)) if lines else "No run has been published yet."


# ---------------------------------------------------------------------------------------------------------------------


def build(profile: str) -> int:
    """Assemble and render the book of a profile into ``build/<profile>/site``; return the exit status."""
    base = records.folder(profile)
    source, rendered, log = base / "book", base / "rendered", base / "logs" / "book.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print("[book] starts, about 30 s", flush=True)
    assemble(profile, source)
    shutil.rmtree(rendered, ignore_errors=True)
    command = [Path(sys.executable).with_name("jupyter-book"), "build", source, "--path-output", rendered]
    done = subprocess.run([*command, "-W", "-n", "--keep-going"], capture_output=True, text=True, check=False)
    log.write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        problems = [line for line in log.read_text().splitlines() if "WARNING" in line or "ERROR" in line]
        print("\n".join(["[book] FAILED", *(problems[:20] or done.stderr.splitlines()[-20:]), f"    log: {log}"]))
        return 1
    shutil.rmtree(base / "site", ignore_errors=True)
    (rendered / "_build" / "html").replace(base / "site")
    shutil.rmtree(rendered)
    print("[book] done", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(build(sys.argv[1]))
