"""``workflow.downloads``: what a reader takes away is what was published, number for number."""

import csv
import hashlib
import io
import json
from pathlib import Path

import pytest

from workflow import downloads
from xai_lib import ledger

RUNS = sorted(path for folder, _ in ledger.published_runs() for path in folder.glob("*.ipynb"))


@pytest.fixture
def run():
    if not RUNS:
        pytest.skip("no run has been published")
    return RUNS[0]


def test_the_csv_holds_every_number_of_the_record(run):
    record = json.loads(run.with_suffix(".json").read_text(encoding="utf-8"))
    rows = list(csv.DictReader(io.StringIO(downloads.numbers_csv(record))))
    assert list(rows[0]) == downloads.COLUMNS

    def leaves(node):
        return sum(map(leaves, node.values())) if isinstance(node, dict) else 1

    results = record["results"]
    assert len(rows) == leaves(results["values"]) + leaves(results["measures"])
    for row in rows:
        found = results["values" if row["kind"] == "claim" else "measures"][row["name"]]
        found = found[row["part"]] if row["part"] else found
        assert float(row["value"]) == found[row["seed"]]


def test_a_part_has_a_column_of_its_own():
    record = {"results": {"values": {}, "measures": {"m": {"a, b": {"0": 1.5, "1": 2}}, "k": {"0": 3}}}}
    assert downloads.numbers_csv(record).splitlines() == [
        "kind,name,part,seed,value",
        "measure,k,,0,3",
        'measure,m,"a, b",0,1.5',
        'measure,m,"a, b",1,2',
    ]


def test_files_are_the_published_ones_and_the_table_says_their_hash(run, tmp_path):
    downloads.lay_out(run, tmp_path / run.stem)
    text = downloads.table({run.stem: run}, "files")
    for name in (f"{run.stem}.ipynb", f"{run.stem}.json", f"{run.stem}.csv"):
        content = (tmp_path / run.stem / name).read_bytes()
        assert f'href="files/{run.stem}/{name}"' in text
        assert hashlib.sha256(content).hexdigest()[:12] in text
    assert (tmp_path / run.stem / run.name).read_bytes() == Path(run).read_bytes()


def test_without_runs_there_is_no_table():
    assert downloads.table({}, "files") == ""
