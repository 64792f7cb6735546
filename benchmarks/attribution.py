"""Attribution methods side by side with zennit's, called as its user would: one image at a time, and as a batch.

Methods that zennit does not have are timed alone. Same network, same images, same threads, in one process; zennit has
BatchNorm merged by its canonizer. Then five maps of one image by contrastive Excitation Backprop: in one call, in five
calls, and in five pairs of passes by zennit's Excitation Backprop, for the unit and its dual, which is how one would do
it without ours. Times are medians; memory is that of the tensors alive at once.

Usage: ``python benchmarks/attribution.py [images] [threads]``.
"""

import copy
import sys
from functools import partial

import torch
from torch import Tensor, nn
from zennit import composites
from zennit.attribution import Gradient
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.rules import Epsilon, ZBox, ZPlus
from zennit.types import Convolution, Linear

from xai_lib import attribution, costs, xcnn

SIZE, CLASSES = 64, 10


def zennit_composites() -> dict[str, object]:
    """Return zennit's composite for each method that it has."""
    base = composites.layer_map_base()
    canonizers = [SequentialMergeBatchNorm()]
    preset = [(Convolution, ZPlus()), (Linear, Epsilon())]
    positive = [(Linear, ZPlus(zero_params="bias"))]
    pixels = [(Convolution, ZBox(0.0, 1.0, zero_params="bias"))]
    deep = composites.SpecialFirstLayerMapComposite
    return {
        "gradient": None,
        "guided_backprop": composites.GuidedBackprop(),
        "deconvolution": composites.DeconvNet(),
        "deep_taylor": deep(layer_map=base + positive, first_map=pixels, canonizers=canonizers),
        "lrp": composites.LayerMapComposite(layer_map=base + preset, canonizers=canonizers),
        "excitation_bp": composites.ExcitationBackprop(canonizers=canonizers, zero_params="bias"),
    }


def by_zennit(model: nn.Module, composite: object, starts_from_logit: bool, images: Tensor, target: Tensor) -> Tensor:
    """Return maps (N, 1, H, W) as zennit's documentation shows it."""
    chosen = torch.eye(CLASSES)[target]
    start = (lambda output: chosen * output) if starts_from_logit else chosen
    with Gradient(model=model, composite=composite) as attributor:
        _, relevance = attributor(images.clone().requires_grad_(), start)
    return relevance.sum(1, keepdim=True)


def one_by_one(call, images: Tensor, target: Tensor) -> Tensor:
    """Return the maps of a call for single images."""
    return torch.cat([call(image[None], one[None]) for image, one in zip(images, target, strict=True)])


def five_by_zennit(model: nn.Sequential, image: Tensor) -> Tensor:
    """Return c-MWP of five units by two passes of zennit's Excitation Backprop each."""
    dual = copy.deepcopy(model)
    dual[-1].weight.data.neg_()
    found = []
    for unit in range(5):
        passes = []
        for network in (model, dual):
            composite = composites.ExcitationBackprop(canonizers=[SequentialMergeBatchNorm()], zero_params="bias")
            with Gradient(model=network, composite=composite) as attributor:
                _, relevance = attributor(image.clone().requires_grad_(), torch.eye(CLASSES)[[unit]])
            passes.append(relevance.sum(1, keepdim=True))
        found.append(passes[0] - passes[1])
    return torch.cat(found, 1)


def main(count: int, threads: int) -> None:
    """Print both tables."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = xcnn.small_cnn((32, 64, 64, 64), CLASSES, in_channels=3, size=SIZE).eval()
    images, target = torch.rand(count, 3, SIZE, SIZE), torch.arange(count) % CLASSES
    print(f"{count} images of {SIZE} px, {threads} threads; seconds, and ratio zennit / ours")
    columns = ("one by one", "ours", "ratio", "batch", "ours", "ratio", "MB", "ours", "difference")
    print(f"{'method':<26}" + "".join(f"{one:>12}" for one in columns))
    patterns = attribution.fit_patterns(model, images)
    for method in attribution.METHODS[:-1]:
        settings = {"layer": ""} if method == "excitation_bp" else {}
        ours = partial(attribution.explain, method, model, patterns=patterns, **settings)
        if method not in zennit_composites():
            mine = costs.cost(partial(one_by_one, ours, images, target)), costs.cost(partial(ours, images, target))
            numbers = ("-", mine[0].seconds, "-", "-", mine[1].seconds, "-", "-", mine[1].memory / 1e6, "-")
            print(f"{method:<26}" + "".join(f"{one:>12{'' if one == '-' else '.3f'}}" for one in numbers))
            continue
        theirs = partial(by_zennit, model, zennit_composites()[method], method in ("deep_taylor", "lrp"))
        single = [costs.cost(partial(one_by_one, call, images, target)) for call in (theirs, ours)]
        batch = [costs.cost(partial(call, images, target)) for call in (theirs, ours)]
        apart = (theirs(images, target) - ours(images, target)).abs().max() / theirs(images, target).abs().max()
        numbers = [
            *(one.seconds for one in single),
            single[0].seconds / single[1].seconds,
            *(one.seconds for one in batch),
            batch[0].seconds / batch[1].seconds,
            *(one.memory / 1e6 for one in batch),
        ]
        print(f"{method:<26}" + "".join(f"{number:12.3f}" for number in numbers) + f"{apart:12.0e}")
    image, units = images[:1], torch.arange(5)[None]
    call = partial(attribution.explain, "contrastive_excitation_bp", model, image, layer="")
    ways = {
        "one call for five": lambda: call(units),
        "five calls": lambda: torch.cat([call(unit) for unit in range(5)], 1),
        "zennit, ten passes": lambda: five_by_zennit(model, image),
    }
    results = {name: way() for name, way in ways.items()}
    found = {name: costs.cost(way, repeat=15) for name, way in ways.items()}
    forward = costs.cost(lambda: model(image).detach()).flops
    first = next(iter(ways))
    print("five maps of one image by contrastive Excitation Backprop, down to the pixels")
    for name, one in found.items():
        apart = (results[name] - results[first]).abs().max() / results[first].abs().max()
        print(
            f"{name:<20}{1000 * one.seconds:8.1f} ms, {one.seconds / found[first].seconds:5.2f} times the first;"
            f" arithmetic of {one.flops / forward:5.1f} forward passes; difference {apart:.0e}"
        )


if __name__ == "__main__":
    words = [int(one) for one in sys.argv[1:]]
    main(*(words + [32, 2][len(words) :]))
