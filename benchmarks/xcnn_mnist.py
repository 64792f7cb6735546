"""Time one epoch of the paper's MNIST XCNN, and accuracy over training and test set, in three ways side by side.

a. The authors' published recipe as a plain script: torchvision's data set and DataLoader, batch 128; accuracy of the
   training set in batches of 128 and of the test set one image at a time, in training mode and with gradients.
   BatchNorm then uses each batch's (here: each image's) own statistics: another accuracy than that of b and c.
b. The same training; accuracy in eval mode, without gradients, 1,000 images at a time.
c. This project: the same network with `fast.Generator`, by `training.fit` (its hashing of the data and writing of the
   model included) and `training.predict`, in bfloat16, accuracy in eval mode.

Each run has a process and a seed of its own, on the CPU, with one number of threads, DataLoaders in the main process
(torch's default). All three get the settings of memory and threads that the Makefile makes; with `--settings ours` only
c has them, and a and b run as a script does that somebody starts by hand. Reading the files is not timed, and each run
first sees a few images untimed. The order is a b c, then c b a, and so on. Accuracies agree within seed noise where the
means differ by at most two standard errors of the difference; two repetitions estimate that error roughly, five or more
well.

On an idle machine: `make benchmark NAME=xcnn_mnist`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms
from torchvision.datasets import MNIST

from xai_lib import data, fast, losses, metrics, training, xcnn

MEAN, STD = 0.1307, 0.3081
WARM_UP = 256  # images of each set that every variant sees before the timing
SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GOMP_SPINCOUNT")  # exported by the Makefile


class Sets(NamedTuple):
    """Training and test set, twice: torchvision's data sets, and the same images as this project's tensors."""

    plain: list[Dataset]
    ours: list[data.ImageSet]

    def first(self, *counts: int) -> "Sets":
        """Return the first images of each set, as many as `counts` says."""
        kept = [range(min(count, len(one))) for count, one in zip(counts, self.ours, strict=True)]
        ours = [one.take(torch.tensor(k), f"{one.name}[:{len(k)}]") for one, k in zip(self.ours, kept, strict=True)]
        return Sets([Subset(one, k) for one, k in zip(self.plain, kept, strict=True)], ours)


class Run(NamedTuple):
    """Seconds of training, of the two accuracy passes and of both; accuracies in percent, training and test set."""

    train: float
    accuracy: float
    total: float
    accuracies: list[float]


def timed(train: Callable[[], nn.Module], measure: Callable[[nn.Module], list[float]]) -> Run:
    """Train a model, measure its accuracies, and time both."""
    started = time.perf_counter()
    model = train()
    trained = time.perf_counter()
    accuracies, ended = measure(model), time.perf_counter()
    return Run(trained - started, ended - trained, ended - started, accuracies)


def load_sets() -> Sets:
    """Return all of MNIST; files are looked for under `data.root()`."""
    ours = [data.load("mnist", split) for split in data.SPLITS]
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])
    return Sets([MNIST(data.root(), train=split == "train", transform=transform) for split in data.SPLITS], ours)


def plain_network() -> nn.Sequential:
    """Return the paper's MNIST network in torch's own modules: 29,899 parameters."""
    layers = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)]
    layers += [nn.UpsamplingBilinear2d(scale_factor=2), nn.Conv2d(32, 1, 3, padding=1), nn.Tanh()]  # corners aligned
    for before, after in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(576, 10))


def plain_train(dataset: Dataset, seed: int) -> nn.Module:
    """Train the plain network for one epoch by the authors' recipe; return it in training mode."""
    torch.manual_seed(seed)
    model = plain_network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-6)
    for images, labels in DataLoader(dataset, batch_size=128, shuffle=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model


def plain_accuracy(model: nn.Module, dataset: Dataset, batch_size: int) -> float:
    """Return the accuracy in percent; mode of the model and recording of gradients are the caller's."""
    batches = DataLoader(dataset, batch_size=batch_size)
    right = sum((model(images).argmax(1) == labels).sum().item() for images, labels in batches)
    return 100 * right / len(dataset)


def run_plain(sets: Sets, seed: int, *, careful: bool) -> Run:
    """Time variant a, or b where `careful`: eval mode, no gradients and batches of 1,000 for the accuracies."""

    def measure(model: nn.Module) -> list[float]:
        model.train(not careful)
        sizes = (1000, 1000) if careful else (128, 1)
        with torch.set_grad_enabled(not careful):
            return [plain_accuracy(model, one, size) for one, size in zip(sets.plain, sizes, strict=True)]

    return timed(lambda: plain_train(sets.plain[0], seed), measure)


def our_network() -> xcnn.XCNN:
    """Return the paper's MNIST network, its generator computed the fast way."""
    return xcnn.XCNN(fast.Generator(1, 32), xcnn.small_cnn())


def run_ours(sets: Sets, seed: int) -> Run:
    """Time variant c: `training.fit` into a fresh folder, then `training.predict`, both in bfloat16."""
    prepare, half = data.Normalize(MEAN, STD), "bfloat16"
    recipe, tensors = training.Recipe(epochs=1, precision=half), (sets.ours[0].images, sets.ours[0].labels)

    def measure(model: nn.Module) -> list[float]:
        # batches that fit the processor's cache; in eval mode their size changes no result
        logits = (training.predict(model, one.images, prepare, precision=half, batch_size=100) for one in sets.ours)
        return [metrics.accuracy(found, one.labels) for found, one in zip(logits, sets.ours, strict=True)]

    with tempfile.TemporaryDirectory() as folder:
        options = {"seed": seed, "name": "xcnn", "folder": Path(folder), "prepare": prepare}
        given = (our_network, losses.cross_entropy, tensors, recipe)
        return timed(lambda: training.fit(*given, **options).model, measure)


VARIANTS: dict[str, tuple[str, Callable[[Sets, int], Run]]] = {
    "a": ("authors' recipe", lambda sets, seed: run_plain(sets, seed, careful=False)),
    "b": ("careful PyTorch", lambda sets, seed: run_plain(sets, seed, careful=True)),
    "c": ("this project", run_ours),
}


def table(runs: dict[str, list[Run]]) -> str:
    """Return the times (median, min-max), their ratio to those of c and the mean test accuracies."""
    row = "{:<20} {:>22} {:>22} {:>22} {:>11} {:>15}".format
    lines = [row("variant", "train, s", "accuracy, s", "total, s", "total / c's", "test accuracy")]
    for key, done in runs.items():
        *times, accuracies = zip(*done, strict=True)
        cells = [f"{statistics.median(one):.2f} ({min(one):.2f}-{max(one):.2f})" for one in times]
        ratio = statistics.median(times[-1]) / statistics.median(run.total for run in runs["c"])
        mean = statistics.mean(test for _, test in accuracies)
        lines.append(row(f"{key} {VARIANTS[key][0]}", *cells, f"{ratio:.2f}", f"{mean:.2f} %"))
    return "\n".join(lines)


def agreement(one: list[float], two: list[float]) -> str:
    """Say whether the means of two independent samples differ by at most two standard errors of the difference."""
    difference = statistics.mean(one) - statistics.mean(two)
    if len(one) < 2:
        return f"difference {difference:+.2f} points; seed noise unknown with one run each"
    error = (statistics.variance(one) / len(one) + statistics.variance(two) / len(two)) ** 0.5
    verdict = "agree within seed noise" if abs(difference) <= 2 * error else "do NOT agree within seed noise"
    return f"difference {difference:+.2f} points, standard error {error:.2f} ({len(one)} runs each): {verdict}"


def arguments() -> argparse.Namespace:
    """Return the command line's arguments, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DEST", default=data.root(), help="folder that holds MNIST/raw")
    parser.add_argument("--threads", type=int, default=2, help="of torch; default %(default)s")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each variant; default %(default)s")
    parser.add_argument("--limit", type=int, metavar="N", default=60_000, help="first N training, N/6 test images")
    parser.add_argument("--settings", choices=("all", "ours"), default="all", help="who gets those of the Makefile")
    parser.add_argument("--only", choices=tuple(VARIANTS), help=argparse.SUPPRESS)  # one run, in a process of its own
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads < 1 or args.repeats < 1 or args.limit < 6:
        parser.error("--threads and --repeats must be at least 1, --limit at least 6")
    return args


def run_here(args: argparse.Namespace) -> None:
    """Do the one run that is asked for, and print it as JSON."""
    torch.set_num_threads(args.threads)
    sets = load_sets().first(args.limit, args.limit // 6)
    variant = VARIANTS[args.only][1]
    variant(sets.first(WARM_UP, WARM_UP), 0)
    print(json.dumps(variant(sets, args.seed)._asdict()))


def run_apart(args: argparse.Namespace, key: str, seed: int) -> Run:
    """Do one run in a process of its own, and return it."""
    plain = key != "c" and args.settings == "ours"
    environment = {name: value for name, value in os.environ.items() if not (plain and name in SETTINGS)}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "XAI_DATA": str(args.data)}  # `fit` would take a GPU, the script not
    command = [sys.executable, __file__, "--only", key, "--seed", str(seed), "--data", str(args.data)]
    command += ["--threads", str(args.threads), "--limit", str(args.limit)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Run(**json.loads(done.stdout))


def main() -> None:
    """Run the comparison and print it."""
    args = arguments()
    if args.only:
        run_here(args)
        return
    missing = [name for name in SETTINGS if name not in os.environ]
    print(f"first {args.limit:,} training images; torch {torch.__version__}, CPU, {args.threads} threads", flush=True)
    print(f"settings of the Makefile for {args.settings}; not set: {', '.join(missing) or 'none'}", flush=True)
    runs: dict[str, list[Run]] = {key: [] for key in VARIANTS}
    for repeat in range(args.repeats):
        for key in sorted(VARIANTS, reverse=repeat % 2 == 1):
            seed = repeat * len(VARIANTS) + list(VARIANTS).index(key)
            run = run_apart(args, key, seed)
            runs[key].append(run)
            shares = "accuracy {:.2f} % (training set), {:.2f} % (test set)".format(*run.accuracies)
            print(f"{repeat + 1} of {args.repeats}, {key}, seed {seed}: {run.total:.2f} s, {shares}", flush=True)
    print(f"\n{table(runs)}\n")
    for one, two in (("a", "c"), ("b", "c"), ("a", "b")):
        accuracies = ([run.accuracies[1] for run in runs[key]] for key in (one, two))
        print(f"test accuracy {one} - {two}: {agreement(*accuracies)}")


if __name__ == "__main__":
    main()
