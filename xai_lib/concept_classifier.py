r"""The concept loss in a classifier (arXiv 2109.00479, sections 1 and 5): on the maps of any layer, given by its name.

.. math:: L = \mathrm{CE} + w \sum_c \mathrm{mean}_{x \in c}\,\mathrm{MSE}(F_c(x), x)

CE is the mean cross-entropy in nats of the images that have a class; samples of concepts carry none. The rest is that
of `concept_vae`: F_c is map number c of the layer, x a sample of concept c at the size of the map.

The paper says that its method can be used for classification, and shows no classifier; all of this is our reading.
Images and samples share a batch, so that a network's BatchNorm sees both. A layer behind a ReLU suits: its maps are 0
or more, as samples are. The network takes images of 0 to 1, since the loss compares its maps with what it is given; one
that needs another range has its normalisation as its first layer.
"""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from xai_lib import concept_study, concept_vae, concepts

Images = Float[Tensor, "n c h w"]  # 0 to 1
Maps = Float[Tensor, "n k s t"]
Logits = Float[Tensor, "n classes"]


@dataclass(frozen=True)
class Objective:
    """The loss to minimise, for `training.fit`.

    Attributes
    ----------
    layer : str, name of a module that gives maps, as in ``network.named_modules()``
    first : int, smallest label of a concept, 1 or more; images of smaller labels have a class
    weight : float, weight w of the concept loss, 0 or more; 0 leaves samples without effect but for BatchNorm's

    Raises
    ------
    ValueError
        A value out of its range; when called, images outside 0 to 1, and what `maps_and_logits` and
        `concept_vae.concept_error` raise.
    """

    layer: str
    first: int
    weight: float = 1.0

    def __post_init__(self):
        for name, least in (("first", 1), ("weight", 0)):
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise ValueError(f"{name} must be at least {least} and finite; got {value}")

    def __call__(self, network: nn.Module, images: Images, labels: Int64[Tensor, " n"]) -> Float[Tensor, ""]:
        """Return the loss of a batch; one without classes or without concepts has no such part."""
        low, high = images.aminmax()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"images must be from 0 to 1; got {low:g} to {high:g}")
        maps, logits = maps_and_logits(network, images, self.layer)
        has_class = labels < self.first
        own = logits[has_class].float()
        loss = functional.cross_entropy(own, labels[has_class], reduction="sum") / max(1, len(own))
        return loss + self.weight * concept_vae.concept_loss(maps, images, labels, self.first)


def maps_and_logits(network: nn.Module, images: Images, layer: str) -> tuple[Maps, Logits]:
    """Return the maps of a layer, as it gives them, and what the network gives. A layer that runs twice counts last.

    Raises
    ------
    ValueError
        There is no such layer (names those like it), the network does not run it, or it gives no maps (N, K, S, T).
    """
    names = [name for name, _ in network.named_modules() if name]
    if layer not in names:
        near = difflib.get_close_matches(layer, names, 3, 0.3) or names[-3:]
        raise ValueError(f"layer must be a module of the network, for instance {', '.join(near)}; got {layer!r}")
    found: list[Tensor] = []

    def note(module, inputs, output):
        if not isinstance(output, Tensor) or output.ndim != 4:
            kind = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"layer must give maps (N, K, S, T); got {kind} from {layer!r}")
        found.append(output.clone())  # what comes next may change it in place, as ReLU does in torchvision's networks

    handle = network.get_submodule(layer).register_forward_hook(note)
    try:
        logits = network(images)
    finally:
        handle.remove()
    if not found:
        raise ValueError(f"layer {layer!r} is not run by {type(network).__name__}")
    return found[-1], logits


def layer_maps(network: nn.Module, images: Images, layer: str) -> Maps:
    """Return the maps of a layer, for `training.predict`; raises what `maps_and_logits` does."""
    return maps_and_logits(network, images, layer)[0]


def concept_scores(
    network: nn.Module, learnt: concepts.Concepts, unseen: concepts.Concepts, maps: Callable | int
) -> dict[str, float]:
    """Return how well maps find their concepts, as correlations with unseen samples, means over concepts.

    ``map_c``: of map c with samples of concept c, -1 to 1, higher is better. ``others``: of the maps of the other
    concepts with the same samples. The loss does not ask map c to be silent there, so a map that copies whatever it
    sees has a perfect first score; only what is above the second is a map of one concept. ``matched``: absolute, of the
    map that fits a concept best on learnt samples, one to one: what a network without concept loss has to offer.

    Parameters
    ----------
    network : nn.Module
    learnt, unseen : concepts.Concepts
        Samples of the same concepts, two or more, of images that were trained on and of others.
    maps : callable or int
        ``maps(network, images)``, for instance `layer_maps` with a layer; or a decoder layer of a `ConceptVAE`.

    Raises
    ------
    ValueError
        Fewer than two concepts; unseen ones that are not learnt or the other way round.
    """
    labels = unseen.labels.unique()
    if len(labels) < 2 or labels.tolist() != learnt.labels.unique().tolist():
        told = f"{learnt.labels.unique().tolist()} and {labels.tolist()}"
        raise ValueError(f"learnt and unseen must hold the same two concepts or more; got {told}")
    before, after = (
        concept_study.map_table(network, of.images, of.labels, labels.tolist(), maps) for of in (learnt, unseen)
    )
    own = after[torch.arange(len(labels)), labels].mean().item()
    best = after.gather(1, concept_study.match(before)[0][:, None])
    others = own - concept_study.selective(after, labels)
    return {"map_c": own, "others": others, "matched": best.abs().mean().item()}
