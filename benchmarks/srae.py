"""Thirty explanation modules trained together, and the same thirty one after the other.

Same samples, same order, same initial weights, same loop, in one process; the outputs are compared. Batches are of 50,
as in the authors' public code. The first sizes are those of runs on two processor cores, an eighth of the paper's;
the last are the paper's own, where the weights no longer fit into a processor's cache. Memory is the process's peak.

Usage: ``python benchmarks/srae.py [modules] [threads]``.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import torch

from xai_lib import srae, training

SIZES = {"narrow": (256, (100, 50), 1000, 2), "512": (512, (100, 50), 1000, 2), "paper": (4096, (800, 100), 100, 1)}


def seconds(z, logits, weights, size: srae.Size, recipe: training.Recipe, together: bool) -> tuple[float, torch.Tensor]:
    """Return the training time and the outputs of all modules."""
    count = logits.shape[1]
    groups = [list(range(count))] if together else [[k] for k in range(count)]
    found, spent = [], 0.0
    for group in groups:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            part = (z, logits[:, group], weights[:, group], srae.Objective(), size, recipe)
            model = srae.fit(*part, seeds=group, order=0, name="one", folder=Path(folder)).model
            spent += time.perf_counter() - started
            found.append(training.predict(model, z))
    return spent, torch.cat(found, 1)


def main(modules: int = 30, threads: int = 2) -> None:
    """Print times, their ratio, the largest difference of outputs, and memory."""
    torch.set_num_threads(threads)
    for name, (inputs, hidden, samples, epochs) in SIZES.items():
        generator = torch.Generator().manual_seed(0)
        z = torch.rand(samples, inputs, generator=generator)
        logits, weights = torch.randn(samples, modules, generator=generator), torch.ones(samples, modules)
        setting = (z, logits, weights, srae.Size(hidden), training.Recipe(epochs, 50, weight_decay=0.0))
        seconds(*setting[:4], training.Recipe(1, samples, weight_decay=0.0), True)  # warm
        together, one = seconds(*setting, together=True)
        alone, other = seconds(*setting, together=False)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{name}: {inputs}-{'-'.join(map(str, hidden))}-5, {modules} modules, {len(z) // 50 * epochs} steps: "
            f"one after the other {alone:.1f} s, together {together:.1f} s, {alone / together:.2f} times faster; "
            f"outputs differ by {(one - other).abs().max():.1e} of {other.abs().max():.2f}; peak {memory:.2f} GiB",
            flush=True,
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
