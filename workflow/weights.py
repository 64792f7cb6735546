"""Trained networks beside a published run: ``python -m workflow.weights PROFILE NOTEBOOK`` (`make publish` calls it).

The small ones are offered, so that nobody has to train a network to try it. What a file was made of (code, settings,
data, seed) stands in the file itself, as `training.fit` wrote it.
"""

import shutil
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from xai_lib import records, training

# notebook -> {network: the parameter of the notebook that says for how many epochs it was trained}
OFFERED = {
    "xcnn_mnist": {"xcnn_mnist": "epochs", "plain_mnist": "epochs"},
    "concept_vae": {"concept_vae_plain": "epochs", "concept_vae_both": "epochs"},
}


def beside(notebook: Path) -> dict[str, Path]:
    """Return {network: file} of what is offered of a published run."""
    found = {name: notebook.parent / f"{name}.safetensors" for name in OFFERED.get(notebook.stem, ())}
    return {name: path for name, path in found.items() if path.exists()}


def used(models: Path, name: str, record: Mapping, epochs: int) -> Path:
    """Return the file of a network as a run trained it: of the run's first seed, epochs and training code.

    Of several, which differ in data or in code of the model, it is the last before the run ended.

    Raises
    ------
    FileNotFoundError
        There is none.
    """
    results = record["results"]
    ended = datetime.strptime(record["circumstances"]["finished"], "%Y-%m-%d %H:%M %Z").replace(tzinfo=UTC)
    before, fits = ended.timestamp() + 60, []  # records tell minutes
    for path in models.glob(f"{name}-*.safetensors"):
        if path.stat().st_mtime > before:
            continue
        made_of = training.read(path)[1]["made_of"]
        same_code = all(results["code"].get(module) == one for module, one in made_of["training"].items())
        if same_code and (made_of["seed"], made_of["recipe"]["epochs"]) == (results["parameters"]["seeds"][0], epochs):
            fits.append(path)
    if not fits:
        raise FileNotFoundError(f"no {name} of {epochs} epochs in {models} that this run can have used")
    return max(fits, key=lambda path: path.stat().st_mtime)


def publish(profile: str, notebook: str, results: Path = Path("results")) -> None:
    """Copy the offered networks of a run to ``results/<profile>``, all or none."""
    record = records.read_record(results / profile / f"{notebook}.json")
    models = records.folder(profile) / "models"
    found = {
        name: used(models, name, record, record["results"]["parameters"][epochs])
        for name, epochs in OFFERED.get(notebook, {}).items()
    }
    for name, path in found.items():
        shutil.copy(path, results / profile / f"{name}.safetensors")


if __name__ == "__main__":
    publish(*sys.argv[1:])
