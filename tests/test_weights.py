"""``workflow.weights``: a network that a reader takes away is the one that the published run scored."""

import json
import os
import time
from pathlib import Path

import pytest
from torch import nn

from workflow import downloads, weights
from xai_lib import data, ledger, losses, metrics, provenance, records, training, xcnn

ROOT = Path(__file__).resolve().parent.parent
RUNS = [path for folder, _ in ledger.published_runs() for path in folder.glob("*.ipynb")]
BUILD = {"xcnn": xcnn.xcnn_mnist, "plain": xcnn.small_cnn}


@pytest.mark.mnist
@pytest.mark.parametrize("kind", BUILD)
def test_a_published_network_scores_what_its_record_says(kind):
    found = {name: path for run in RUNS for name, path in weights.beside(run).items()}
    if f"{kind}_mnist" not in found:
        pytest.skip("the network has not been published")
    path, model = found[f"{kind}_mnist"], BUILD[kind]()
    model.load_state_dict(training.read(path)[0])
    train, test = data.load("mnist", "train"), data.load("mnist", "test")
    logits = training.predict(model.eval(), test.images, data.Normalize.of(train.images))
    record = json.loads((path.parent / "xcnn_mnist.json").read_text(encoding="utf-8"))
    # a processor of another make may round one image of 10,000 to another class
    expected = record["results"]["measures"][f"{kind}_accuracy"]["0"]
    assert metrics.accuracy(logits, test.labels) == pytest.approx(expected, abs=0.011)


@pytest.fixture
def run(tmp_path, light):
    """Four small networks, a run's record, and the file of the one that the run used: ``(models, record, path)``."""
    digits = data.load("digits", "train", limit=20)
    tensors, path = (digits.images[:, :, ::7, ::7].float(), digits.labels), None
    for seed, epochs in ((0, 1), (0, 2), (1, 2), (0, 3)):
        one = training.fit(
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 10)),
            losses.cross_entropy,
            tensors,
            training.Recipe(epochs=epochs),
            seed=seed,
            name="net",
            folder=tmp_path,
        )
        path = one.path if (seed, epochs) == (0, 2) else path
    code = training.read(path)[1]["made_of"]["training"]
    ended = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    record = {"results": {"code": {**code, "data.py": "0"}, "parameters": {"seeds": [0, 1]}}}
    return tmp_path, {**record, "circumstances": {"finished": ended}}, path


def test_the_network_of_the_run_is_found(run):
    models, record, path = run
    assert weights.used(models, "net", record, 2) == path
    with pytest.raises(FileNotFoundError, match="no net of 4 epochs"):
        weights.used(models, "net", record, 4)


def test_no_network_from_after_the_run_and_none_of_other_code(run):
    models, record, path = run
    late = time.time() + 200
    os.utime(path, (late, late))
    with pytest.raises(FileNotFoundError, match="no net of 2 epochs"):
        weights.used(models, "net", record, 2)
    record["results"]["code"]["training.py"] = "0"
    with pytest.raises(FileNotFoundError, match="no net of 3 epochs"):
        weights.used(models, "net", record, 3)


def test_all_that_is_offered_is_published_or_nothing(run, tmp_path, monkeypatch):
    models, record, path = run
    build, results = tmp_path / "build", tmp_path / "results"
    (build / "models").mkdir(parents=True)
    (results / "toy").mkdir(parents=True)
    path.rename(build / "models" / path.name)
    record["results"]["parameters"]["epochs"] = 2
    notebook = results / "toy" / "nb.ipynb"
    notebook.with_suffix(".json").write_text(json.dumps(record), encoding="utf-8")
    monkeypatch.setattr(weights.records, "folder", lambda profile: build)
    monkeypatch.setattr(weights.records, "read_record", lambda file: json.loads(Path(file).read_text()))
    monkeypatch.setattr(weights, "OFFERED", {"nb": {"net": "epochs", "gone": "epochs"}})
    with pytest.raises(FileNotFoundError, match="no gone"):
        weights.publish("toy", "nb", results)
    assert weights.beside(notebook) == {}
    monkeypatch.setattr(weights, "OFFERED", {"nb": {"net": "epochs"}})
    weights.publish("toy", "nb", results)
    copy = weights.beside(notebook)["net"]
    assert copy.read_bytes() == (build / "models" / path.name).read_bytes()
    text = downloads.networks({"nb": notebook}, "files")
    assert 'href="files/nb/net.safetensors"' in text
    assert "| 170 | 0 | 2 |" in text


def test_what_is_offered_is_trained_by_its_notebook():
    for notebook, networks in weights.OFFERED.items():
        parameters = provenance.notebook_parameters(ROOT / "notebooks" / f"{notebook}.ipynb")
        found = weights.beside(ROOT / "results" / "desk" / f"{notebook}.ipynb")
        assert found.keys() == networks.keys()
        run = records.read_record(ROOT / "results" / "desk" / f"{notebook}.json")["results"]["parameters"]
        for name, epochs in networks.items():
            assert epochs in parameters
            assert training.read(found[name])[1]["made_of"]["recipe"]["epochs"] == run[epochs]
