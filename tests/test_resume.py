"""An experiment that is killed again and again ends with the same results, bit for bit."""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from xai_lib import provenance

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "profile": "smoke",
    "train_limit": 1000,
    "epochs": 12,  # most of the time is training, so that most kills fall into it
    "epoch_candidates": [2],
    "decoder_epochs": 1,
    "mask_draws": 2,
}


def experiment(top):
    """Lay a project out and return the command that runs its notebook as a script, a checkpoint after each epoch."""
    (top / "notebooks").mkdir(parents=True)
    shutil.copy(ROOT / "claims.yml", top)
    shutil.copy(ROOT / "notebooks" / "xcnn_mnist.ipynb", top / "notebooks")
    code = provenance.notebook_code(top / "notebooks" / "xcnn_mnist.ipynb")
    settings = "\n".join(f"{name} = {value!r}" for name, value in SMALL.items())
    start = "torch.set_num_threads(threads)"
    assert code.count(start) == 1
    code = code.replace(start, f"{settings}\ntraining.CHECKPOINT_SECONDS = 0\nprint('begun', flush=True)\n{start}")
    (top / "notebooks" / "script.py").write_text(code)
    return [sys.executable, "-W", "ignore", "script.py"]


def start(command, top):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    running = subprocess.Popen(
        command, cwd=top / "notebooks", env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert running.stdout.readline() == "begun\n", running.stderr.read()
    return running, time.monotonic()


def wait_for_a_checkpoint(running, top):
    """Wait until training has written another checkpoint, or the run has ended."""

    def there():
        found = set()
        for path in (top / "build").rglob("*.checkpoint"):
            with contextlib.suppress(FileNotFoundError):  # replaced in this moment
                found.add((path.name, path.stat().st_ino))
        return found

    before = there()
    while running.poll() is None and there() <= before:
        time.sleep(0.01)


def results(top):
    return json.loads((top / "build" / "smoke" / "runs" / "xcnn_mnist.json").read_text())["results"]


def test_killed_ten_times_an_experiment_ends_with_the_same_results(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    running, begun = start(experiment(whole), whole)
    _, said = running.communicate(timeout=300)
    assert running.returncode == 0, said
    length = time.monotonic() - begun
    command, moments, resumed = experiment(parts), random.Random(0), 0
    for attempt in range(10):
        running, _ = start(command, parts)
        if attempt < 5:  # into training, however fast the machine is by now
            wait_for_a_checkpoint(running, parts)
            time.sleep(moments.uniform(0, length / 50))
        else:  # anywhere
            time.sleep(moments.uniform(0, length / 3))
        running.kill()
        resumed += running.communicate()[1].count("goes on after epoch")
    running, _ = start(command, parts)
    _, said = running.communicate(timeout=300)
    assert running.returncode == 0, said
    assert resumed + said.count("goes on after epoch") >= 2, "the kills fell into trainings"
    assert results(parts) == results(whole)
    left = [
        path.name for path in (parts / "build" / "smoke").rglob("*") if path.suffix not in (".json", ".safetensors")
    ]
    assert sorted(left) == ["models", "runs"], "nothing half written"
