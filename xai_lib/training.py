"""One training loop for every model: seeded, resumable, its results kept as artefacts.

A trained model is a safetensors file whose name holds the hash of all that made it (`fit`); where the file is there,
nothing is trained. Files carry a SHA-256 of their own content and are replaced in one step, so that a killed process, a
full disk or a flipped bit costs time and never a wrong result. Nothing is ever unpickled.
"""

import contextlib
import copy
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from xai_lib import provenance

CHECKPOINT_SECONDS = 10.0  # a checkpoint is written at the end of an epoch when the last one is older than this


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: Adam, one drop of the learning rate; defaults are the XCNN authors' on MNIST.

    Attributes
    ----------
    epochs : int, passes over the training images
    batch_size : int, images a step; the last batch may be smaller (where it is one image, BatchNorm may refuse it)
    learning_rate, betas, weight_decay : Adam's settings
    drop_at, drop_by : the learning rate is multiplied by `drop_by` after the share `drop_at` of the epochs
    precision : ``float32`` or ``bfloat16`` (autocast; parameters and sums stay in float32)
    """

    epochs: int = 50
    batch_size: int = 128
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-6
    drop_at: float = 0.5
    drop_by: float = 0.1
    precision: str = "float32"

    def __post_init__(self):
        for name in ("epochs", "batch_size", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0; got {getattr(self, name)}")
        _check_precision(self.precision)


def _check_precision(precision: str) -> None:
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision must be float32 or bfloat16; got {precision!r}")


@dataclass(frozen=True)
class Fit:
    """A trained model and how it came about.

    Attributes
    ----------
    model : nn.Module, in eval mode
    losses : tuple of float, mean training loss of each epoch
    path : Path, the file of the trained model
    seconds : float, time spent in training, over all its interruptions
    reused : bool, true where the file was there already
    """

    model: nn.Module
    losses: tuple[float, ...]
    path: Path
    seconds: float
    reused: bool


def device() -> torch.device:
    """Return the device that models are trained on: the first GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fit(
    build: Callable[[], nn.Module],
    loss: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    recipe: Recipe,
    *,
    seed: int,
    name: str,
    folder: Path,
    prepare: Callable[[Tensor], Tensor] | None = None,
) -> Fit:
    """Train a model, or return it where the same training has been done before.

    Parameters
    ----------
    build : callable
        Returns the untrained model; called after seeding.
    loss : callable
        ``loss(model, *batch)`` returns the number to minimise (see `losses`).
    tensors : sequence of tensors (N, ...)
        Training data, images first; a batch takes the same rows of each. Kept on the device throughout.
    recipe : Recipe
    seed : int
        Fixes initial weights, order of samples, augmentation and dropout.
    name, folder : str, Path
        The model is kept as ``<folder>/<name>-<key>.safetensors``. The key is the hash of model, loss, preparation and
        training code, initial weights, recipe, data, seed, torch version, device and number of threads. Of a function
        outside this package its own text counts and what it encloses, not the globals that it reads: hand settings over
        with ``functools.partial``, so that another setting is another training.
    prepare : callable, optional
        Applied to the first tensor of each batch on the device: normalisation and augmentation.

    Returns
    -------
    Fit

    Raises
    ------
    ValueError
        No samples, or tensors of different length.
    FloatingPointError
        The loss is not finite; names epoch and batch. The last good checkpoint stays.
    """
    if len({len(tensor) for tensor in tensors}) != 1 or not len(tensors[0]):
        raise ValueError(f"tensors must have one length above 0; got {[len(tensor) for tensor in tensors]}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build()
        run = _Run(model, loss, tensors, recipe, seed, name, Path(folder), prepare)
        done = _read_good([run.path], run.key, "model")
        if done is None:
            run.train()
        else:
            model.load_state_dict(done[0])
            model.to(memory_format=torch.channels_last)  # as after training: the layout decides how sums are rounded
    losses, seconds = (run.losses, run.seconds) if done is None else (done[1]["losses"], done[1]["seconds"])
    return Fit(model.to(device()).eval(), tuple(losses), run.path, seconds, done is not None)


class _Run:
    """The state of one training, from its key to its checkpoints."""

    def __init__(self, model, loss, tensors, recipe, seed, name, folder, prepare):
        self.model, self.loss, self.tensors, self.recipe, self.seed = model, loss, tensors, recipe, seed
        self.prepare = prepare or (lambda images: images)
        self.name, self.folder = name, folder
        made_of = {
            "model": provenance.object_hash(model),
            "initial weights": provenance.tensors_sha256(model.state_dict()),
            "loss": provenance.object_hash(loss),
            "prepare": prepare and provenance.object_hash(prepare),
            "training": provenance.code_hashes(Path(__file__)),
            "data": provenance.tensors_sha256({str(k): tensor for k, tensor in enumerate(tensors)}),
            "recipe": dataclasses.asdict(recipe),
            "seed": seed,
            "device": device().type,
            "threads": torch.get_num_threads(),
        }
        self.made_of = {**made_of, "torch": torch.__version__.split("+")[0]}
        self.key = provenance.digest(json.dumps(self.made_of, sort_keys=True))
        self.path = folder / f"{name}-{self.key}.safetensors"
        self.checkpoints = [self.path.with_suffix(".checkpoint"), self.path.with_suffix(".checkpoint-before")]
        self.losses: list[float] = []
        self.seconds = 0.0

    def train(self) -> None:
        """Go on from the last good checkpoint to the last epoch, keep the model, clear the checkpoints."""
        where, half = device(), self.recipe.precision == "bfloat16"
        self.model.to(where, memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(),
            lr=self.recipe.learning_rate,
            betas=self.recipe.betas,
            weight_decay=self.recipe.weight_decay,
        )
        self._resume()
        tensors = [tensor.to(where) for tensor in self.tensors]
        saved = started = time.monotonic()
        bar = tqdm(
            range(len(self.losses), self.recipe.epochs),
            desc=f"{self.name}, seed {self.seed}",
            initial=len(self.losses),
            total=self.recipe.epochs,
            unit="epoch",
            disable=None,
        )
        before = self.seconds
        for epoch in bar:
            self.losses.append(self._epoch(epoch, tensors, half))
            self.seconds = before + time.monotonic() - started
            if time.monotonic() - saved >= CHECKPOINT_SECONDS and epoch + 1 < self.recipe.epochs:
                self._checkpoint()
                saved = time.monotonic()
        if _write(self.path, self.model.state_dict(), {**self._about(), "kind": "model"}):
            for file in [*self.checkpoints, *self.folder.glob(f"{self.path.stem}.*.part")]:
                file.unlink(missing_ok=True)

    def _epoch(self, epoch: int, tensors: list[Tensor], half: bool) -> float:
        """Train one epoch and return its mean loss. All randomness follows from seed and epoch."""
        where, recipe = tensors[0].device, self.recipe
        torch.manual_seed((self.seed + 1) * 1_000_003 + epoch)
        rate = recipe.learning_rate * (recipe.drop_by if epoch >= recipe.drop_at * recipe.epochs else 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        batches = torch.randperm(len(tensors[0])).to(where).split(recipe.batch_size)
        losses = torch.zeros(len(batches), device=where)
        for step, index in enumerate(batches):
            images, *others = (tensor[index] for tensor in tensors)
            with torch.autocast(where.type, torch.bfloat16, enabled=half):
                value = self.loss(self.model, channels_last(self.prepare(images)), *others)
            self.optimizer.zero_grad(set_to_none=True)
            value.backward()
            self.optimizer.step()
            losses[step] = value.detach()
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            step = int(bad[0])
            raise FloatingPointError(
                f"{self.name}: the loss is {losses[step].item()} in epoch {epoch + 1} of {recipe.epochs}, "
                f"batch {step + 1} of {len(batches)}, seed {self.seed}"
            )
        if not all(weight.isfinite().all() for weight in self.model.parameters()):
            raise FloatingPointError(
                f"{self.name}: weights are not finite after epoch {epoch + 1} of {recipe.epochs}, "
                f"batch {len(batches)} of {len(batches)}, seed {self.seed}"
            )
        return (losses * torch.tensor([len(one) for one in batches], device=where)).sum().item() / len(tensors[0])

    def _about(self) -> dict:
        return {"key": self.key, "losses": self.losses, "seconds": round(self.seconds, 3), "made_of": self.made_of}

    def _checkpoint(self) -> None:
        current, before = self.checkpoints
        moments = {
            f"optimizer.{k}.{name}": value
            for k, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        weights = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        _write(current, weights | moments, {**self._about(), "kind": "checkpoint"}, keep_as=before)

    def _resume(self) -> None:
        found = _read_good(self.checkpoints, self.key, "checkpoint")
        if found is None:
            return
        tensors, about = found
        weights = {name[6:]: value for name, value in tensors.items() if name.startswith("model.")}
        self.model.load_state_dict(weights)
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, k, part = name.split(".")
                state.setdefault(int(k), {})[part] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.losses, self.seconds = list(about["losses"]), about["seconds"]
        _say(f"{self.name}, seed {self.seed}: goes on after epoch {len(self.losses)} of {self.recipe.epochs}")


def channels_last(images: Tensor) -> Tensor:
    """Return images (N, C, H, W) laid out channels last, which CPUs and GPUs compute faster; others unchanged."""
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images


@torch.no_grad()
def predict(
    model: nn.Module,
    images: Tensor,
    prepare: Callable[[Tensor], Tensor] | None = None,
    *,
    function: Callable[[nn.Module, Tensor], Tensor] | None = None,
    batch_size: int = 100,
    precision: str = "float32",
    batch_statistics: bool = False,
) -> Tensor:
    """Apply a model to many images without gradients.

    Parameters
    ----------
    model : nn.Module
        Left as it is, its mode and running statistics included.
    images : tensor (N, ...)
    prepare : callable, optional
        Applied to each batch, as in `fit`.
    function : callable, optional
        ``function(model, batch)``, for instance `XCNN.heatmap`; default is the model's own output.
    batch_size : int
        Small batches stay in a processor's cache: 100 are two to three times faster there than 1,000.
    precision : str
        ``float32`` or ``bfloat16`` (autocast).
    batch_statistics : bool
        Leave the model in training mode, so that BatchNorm normalises each batch by its own mean and variance; results
        then depend on which images share a batch.

    Returns
    -------
    tensor (N, ...), float32, on the CPU

    Raises
    ------
    ValueError
        `precision` is unknown.
    """
    _check_precision(precision)
    if batch_statistics:
        model = copy.deepcopy(model).train()
    where = next(model.parameters(), torch.empty(0)).device
    function = function or (lambda net, batch: net(batch))
    with contextlib.nullcontext() if batch_statistics else evaluating(model):
        parts = []
        for batch in images.split(batch_size):
            batch = channels_last(prepare(batch.to(where)) if prepare else batch.to(where))
            with torch.autocast(where.type, torch.bfloat16, enabled=precision == "bfloat16"):
                parts.append(function(model, batch).float().cpu())
    return torch.cat(parts)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put a model in eval mode, and each of its parts back in its own mode afterwards."""
    modes = {part: part.training for part in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for part, mode in modes.items():
            part.training = mode


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _write(path: Path, tensors: dict[str, Tensor], about: dict, keep_as: Path | None = None) -> bool:
    """Write tensors and what they are in one step; on a failing disk say so and return False."""
    text = json.dumps(about, sort_keys=True)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    metadata = {"about": text, "sha256": provenance.tensors_sha256(tensors, text)}
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part, metadata=metadata)
        with open(part, "rb") as stream:
            os.fsync(stream.fileno())
        if keep_as and path.exists():
            path.replace(keep_as)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        _say(f"{path} could not be written ({error}); training goes on, what was kept before stays")
        return False
    return True


def read(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Read a file that `fit` kept: its tensors and what they are.

    Raises
    ------
    ValueError
        The file is damaged: not safetensors, or its SHA-256 is not the one inside.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    found = provenance.tensors_sha256(tensors, metadata.get("about", ""))
    if found != metadata.get("sha256"):
        raise ValueError(f"{path} is damaged: SHA-256 expected {metadata.get('sha256')}, found {found}")
    return tensors, json.loads(metadata["about"])


def _read_good(paths: Sequence[Path], key: str, kind: str) -> tuple[dict[str, Tensor], dict] | None:
    """Return the first readable file of that key and kind; say what was wrong with those before it."""
    for path in paths:
        try:
            tensors, about = read(path)
        except FileNotFoundError:
            continue
        except (ValueError, OSError) as error:
            _say(f"{error}; it is put aside")
            with contextlib.suppress(OSError):
                path.replace(path.with_name(f"{path.name}.damaged"))
            continue
        if about["key"] == key and about["kind"] == kind:
            return tensors, about
    return None
