"""Thirty explanation modules trained together, and the same thirty one after the other.

Same samples, same order, same initial weights, same loop, in one process. Each way is run twice, over few steps and
over many: the difference gives the time of a step, the rest is what a run costs before and after (drawing weights,
writing files). Outputs are compared after the few steps, because rounding errors grow with every step. Batches are of
50, as in the authors' public code. The first sizes are those of runs on two processor cores, an eighth of the paper's;
the last are the paper's own, where Adam alone keeps 3 GiB. Memory is the process's peak so far.

Usage: ``make benchmark NAME=srae``, in the same environment variables as notebooks, or
``python benchmarks/srae.py [modules] [threads]``.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import torch

from xai_lib import srae, training

BATCH = 50
SIZES = {  # inputs, hidden layers, steps of the short run and of the long one
    "narrow": (256, (100, 50), 20, 420),
    "512": (512, (100, 50), 20, 420),
    "paper": (4096, (800, 100), 2, 22),
}


def train(z, logits, weights, size: srae.Size, together: bool) -> tuple[float, torch.Tensor]:
    """Return the time of one epoch, in which no checkpoint is written, and the outputs of all modules."""
    recipe = training.Recipe(1, BATCH, weight_decay=0.0)
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
    """Print for each size: times, their ratio, the largest difference of outputs, and memory."""
    torch.set_num_threads(threads)
    for name, (inputs, hidden, few, many) in SIZES.items():
        generator = torch.Generator().manual_seed(0)
        z = torch.rand(many * BATCH, inputs, generator=generator)
        logits = torch.randn(many * BATCH, modules, generator=generator)
        whole = z, logits, torch.ones_like(logits)
        part = [each[: few * BATCH] for each in whole]
        size = srae.Size(hidden)
        train(*part, size, together=True)  # warm
        (short, one), (short_alone, other) = train(*part, size, together=True), train(*part, size, together=False)
        (long, _), (long_alone, _) = train(*whole, size, together=True), train(*whole, size, together=False)
        step, alone = (long - short) / (many - few), (long_alone - short_alone) / (many - few)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{name}: {inputs}-{'-'.join(map(str, hidden))}-5, {modules} modules\n"
            f"  {many} steps: one after the other {long_alone:.1f} s, together {long:.1f} s, "
            f"{long_alone / long:.2f} times faster\n"
            f"  a step: {1000 * alone:.1f} ms, {1000 * step:.1f} ms, {alone / step:.2f} times faster\n"
            f"  outputs after {few} steps differ by at most {(one - other).abs().max():.1e}, "
            f"they reach {other.abs().max():.2f}; peak {memory:.2f} GiB",
            flush=True,
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
