"""What a reader can take away of each published run: the executed notebook, its record, its numbers as CSV."""

import csv
import hashlib
import io
import shutil
from collections.abc import Mapping
from pathlib import Path

from xai_lib import figures, records
from xai_lib.verdicts import by_part

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
    """Copy an executed notebook and its record into a folder, and write its numbers beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    record = notebook.with_suffix(".json")
    shutil.copy(notebook, folder / f"{notebook.stem}.ipynb")
    shutil.copy(record, folder)
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


def _link(address: str, label: str, content: bytes) -> str:
    size = f"{len(content) / 1000:.0f} kB"
    return f'<a href="{address}" download>{label}</a>, {size}, `{hashlib.sha256(content).hexdigest()[:12]}`'
