"""What a reader can take away of each published run: executed notebook, record, numbers as CSV, trained networks."""

import csv
import hashlib
import io
import shutil
from collections.abc import Mapping
from pathlib import Path

from workflow import weights
from xai_lib import figures, records, training
from xai_lib.verdicts import by_part

FOLDER = "downloads"  # at the top of the site
COLUMNS = ["kind", "name", "part", "seed", "value"]


def numbers_csv(record: Mapping) -> str:
    """Return all numbers of a run record as CSV: one row for each claim's value or measure, part and seed.

    Parts are what a measure is split by; a plain measure has none and its `part` is empty.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for kind, block in (("claim", "values"), ("measure", "measures")):
        for name, values in sorted(record["results"][block].items()):
            for part, by_seed in by_part(values).items():
                writer.writerows([kind, name, part, seed, value] for seed, value in by_seed.items())
    return text.getvalue()


def lay_out(notebook: Path, folder: Path) -> None:
    """Copy an executed notebook, its record and networks into a folder, and write its numbers beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    record = notebook.with_suffix(".json")
    for path in (notebook, record, *weights.beside(notebook).values()):
        shutil.copy(path, folder)
    (folder / f"{notebook.stem}.csv").write_text(numbers_csv(records.read_record(record)), encoding="utf-8")


def table(runs: Mapping[str, Path], root: str) -> str:
    """Return a table with a link, the size and the first digits of the SHA-256 of each file of each run.

    Parameters
    ----------
    runs : dict
        {name: path of the executed notebook}, laid out before by `lay_out`.
    root : str
        Where their folders are, seen from the page.
    """
    lines = []
    for name, path in runs.items():
        files = {"notebook": path, "record": path.with_suffix(".json")}
        cells = [_link(f"{root}/{name}/{file.name}", label, file.read_bytes()) for label, file in files.items()]
        numbers = numbers_csv(records.read_record(path.with_suffix(".json"))).encode()
        lines.append([name, *cells, _link(f"{root}/{name}/{name}.csv", "CSV", numbers)])
    return str(figures.Table(["run", "executed notebook", "run record", "numbers"], lines)) if lines else ""


def networks(runs: Mapping[str, Path], root: str) -> str:
    """Return a table of the trained networks beside the runs; parameters as in `table`."""
    lines = []
    for run, notebook in runs.items():
        for name, path in weights.beside(notebook).items():
            tensors, about = training.read(path)
            made_of, count = about["made_of"], sum(one.numel() for one in tensors.values())
            link = _link(f"{root}/{run}/{path.name}", path.name, path.read_bytes())
            lines.append([name, run, f"{count:,}", made_of["seed"], made_of["recipe"]["epochs"], link])
    return str(figures.Table(["network", "run", "numbers", "seed", "epochs", "file"], lines)) if lines else ""


def _link(address: str, label: str, content: bytes) -> str:
    size = f"{len(content) / 1000:.{len(content) < 10_000:d}f} kB"
    return f'<a href="{address}" download>{label}</a>, {size}, `{hashlib.sha256(content).hexdigest()[:12]}`'
