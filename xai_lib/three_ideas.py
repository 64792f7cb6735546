r"""The three ideas side by side: XCNN, explanation module and concept VAE on the same images, with the same measures.

XCNN draws its one map itself. The other two have parts, and one map is made of these:

.. math:: \text{module: } \sum_n v_n E_n(x)\, M_n(x), \qquad
    \text{concept VAE: } \operatorname{mean}_{c \in \text{on}} \lvert \hat x - \hat x_{-c} \rvert

with the map :math:`M_n` of x-feature n and what it adds to the logit, the drawing :math:`\hat x` of the decoder, and
the drawing :math:`\hat x_{-c}` with concept map c switched off. Neither sum is in a paper.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from xai_lib import (
    attribution,
    comparison,
    concept_vae,
    explanation,
    faithfulness,
    generators,
    losses,
    metrics,
    training,
    xcnn,
)

METHODS = {
    "xcnn": "XCNN",
    "module": "explanation module",
    "vae": "concept VAE",
    "gradient": "gradient × ink",
    "lrp": "LRP",
    "digit": "the digit itself",
    "edges": "its edges",
    "noise": "noise",
}  # in the order of tables and figures; from the fourth on rivals that cost little
IDEAS = tuple(METHODS)[:3]
Seeds = Mapping[int, Float[Tensor, " n"]]  # one number for each image, for each seed


def chances(judge: nn.Module, classes: Int64[Tensor, " n"], images: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Return the probability (N,) that the judge gives each prepared image's own class: what deletion watches."""
    return training.predict(judge, images).softmax(1).gather(1, classes[:, None])[:, 0]


def single_maps(
    judge: nn.Module,
    own: xcnn.XCNN,
    sign: int,
    images: UInt8[Tensor, "n c h w"],
    prepare: Callable[[Tensor], Tensor],
    seed: int = 0,
) -> dict[str, Float[Tensor, "n 1 h w"]]:
    """Return the maps of those `METHODS` that draw one map of each image, on the CPU.

    Gradient and LRP explain the class that the judge predicts. The gradient is multiplied by the ink, what a pixel has
    above the background: the first-order estimate of what setting it to the background takes away, up to a factor.

    Parameters
    ----------
    judge : nn.Module
        The classifier that is explained.
    own, sign : XCNN, and the sign of its maps (`xcnn.map_sign`)
    images : uint8 tensor (N, C, H, W), background 0
    prepare : callable
        Makes what both networks take.
    seed : int
        Of the noise.
    """
    where = next(judge.parameters()).device
    x, ink = prepare(images), images.float() / 255
    classes = training.predict(judge, x).argmax(1)
    explain = partial(attribution.explain, model=judge, images=x.to(where), target=classes.to(where))
    return {
        "xcnn": sign * comparison.own_maps(own, images, prepare),
        "gradient": explain("gradient").cpu() * ink.mean(1, keepdim=True),
        "lrp": explain("lrp").cpu(),
        "digit": ink.mean(1, keepdim=True),
        "edges": generators.edges(ink),
        "noise": torch.rand(ink[:, :1].shape, generator=torch.Generator().manual_seed(seed)),
    }


def module_parts(
    module: explanation.ExplanationModule,
    images: UInt8[Tensor, "n c h w"],
    classes: Int64[Tensor, " n"],
    at: str | None = None,
) -> tuple[Float[Tensor, "n x"], Float[Tensor, "n x h w"]]:
    """Return what each x-feature adds to the logit of each image's own class, and its c-MWP map.

    `at` names the layer where maps are read, as in `explanation.unit_maps`.

    Raises
    ------
    ValueError
        The module is not trained for one of the classes.
    """
    missing = sorted(set(classes.tolist()) - set(module.categories))
    if missing:
        raise ValueError(f"classes must be among {module.categories}, which the module explains; got {missing}")
    added, maps = [torch.empty(0)] * len(images), [torch.empty(0)] * len(images)
    for category in classes.unique().tolist():
        rows = (classes == category).nonzero()[:, 0]
        found = module.contributions(images[rows])[module.categories.index(category)]
        for row, one, drawn in zip(rows.tolist(), found, module.maps(images[rows], category, at), strict=True):
            added[row], maps[row] = one, drawn
    return torch.stack(added), torch.stack(maps)


def vanished(
    model: concept_vae.ConceptVAE, x: Float[Tensor, "n c h w"], numbers: Sequence[int]
) -> Float[Tensor, "n k h w"]:
    """Return what vanishes from the drawing with each of K layer-3 maps switched off, for `training.predict`.

    The drawing with all maps minus that without one of them, -1 to 1, mean over channels: positive is ink that is gone,
    negative is ink that is new.
    """
    maps = concept_vae.feature_maps(model, x)
    whole, found = model.finish(maps).sigmoid(), []
    for number in numbers:
        without = maps.clone()
        without[:, number] = 0
        found.append((whole - model.finish(without).sigmoid()).mean(1))
    return torch.stack(found, 1)


def parts_on(sizes: Float[Tensor, "n p"], share: float | int = 0.01) -> Bool[Tensor, "n p"]:
    """Say which parts of an explanation count in each image: at least `share` of what all its parts amount to.

    Sizes count without their sign. None is on where all are 0.

    Raises
    ------
    ValueError
        A share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie above 0 and not above 1; got {share}")
    sizes = sizes.abs().double()
    return (sizes > 0) & (sizes >= share * sizes.sum(1, keepdim=True))


def weighted(parts: Float[Tensor, "n p h w"], weights: Float[Tensor, "n p"]) -> Float[Tensor, "n 1 h w"]:
    """Return one map of each image: its parts' maps, each times its weight, summed."""
    return (parts * weights[:, :, None, None]).sum(1, keepdim=True)


def mean_change(changes: Float[Tensor, "n k h w"], on: Bool[Tensor, "n k"]) -> Float[Tensor, "n 1 h w"]:
    """Return the mean absolute change over the parts that are on, 0 or more; 0 everywhere where none is."""
    return weighted(changes.abs(), on / on.sum(1, keepdim=True).clamp(min=1))


def told(
    known: Sequence[Tensor], new: Sequence[Tensor], recipe: training.Recipe, *, seed: int, name: str, folder: Path
) -> float:
    """Return how many new images a linear decoder tells the class of, from the parts of their explanation: in percent.

    Parameters
    ----------
    known, new : (parts, labels)
        Tensors (N, ...) and (N,): the decoder is fitted on `known`; mean and spread of its parts scale both.
    recipe, seed, name, folder : see `training.fit`
    """
    mean, spread = known[0].mean(), known[0].std().clamp(min=1e-12)
    scaled = [((parts - mean) / spread).flatten(1) for parts, _ in (known, new)]
    sizes = scaled[0].shape[1], int(known[1].max()) + 1
    tensors = scaled[0], known[1]
    decoder = training.fit(
        partial(nn.Linear, *sizes), losses.cross_entropy, tensors, recipe, seed=seed, name=name, folder=folder
    )
    return metrics.accuracy(training.predict(decoder.model, scaled[1]), new[1])


def agreement(
    maps: Mapping[int, Mapping[str, Float[Tensor, "n 1 h w"]]],
) -> dict[tuple[str, str], dict[object, float]]:
    """Return how alike methods rank the pixels of the same images: Spearman's rank correlation, mean over images.

    Parameters
    ----------
    maps : mapping
        {seed: {method: maps}}.

    Returns
    -------
    dict
        {(method, another): {seed: -1 to 1}}, each pair once, in the order given; and {(method, method): {"0 and 1":
        -1 to 1}}, a number for each two seeds, empty for one. A constant map ranks nothing: such images do not count.
    """
    names, alike = list(next(iter(maps.values()))), {}
    for one, other in combinations(names, 2):
        alike[one, other] = {seed: _correlation(drawn[one], drawn[other]) for seed, drawn in maps.items()}
    for name in names:
        alike[name, name] = {
            f"{a} and {b}": _correlation(maps[a][name], maps[b][name]) for a, b in combinations(maps, 2)
        }
    return alike


def _correlation(one: Tensor, other: Tensor) -> float:
    return faithfulness.rank_correlation(one, other).nanmean().item()


def paired(one: Seeds, other: Seeds) -> tuple[dict[str, float], dict[str, float]]:
    """Return the differences of two methods on the same images: of seeds, and of images, both counted from 0.

    The first has one number a seed, its mean over images: what other networks would give. The second has one number
    an image, its mean over seeds: what other images would give these networks. An image where a measure is not defined
    in some seed counts in neither.

    Raises
    ------
    ValueError
        The seeds differ, or no image is left.
    """
    if one.keys() != other.keys():
        raise ValueError(f"other must have the seeds of one, {list(one)}; got {list(other)}")
    apart = torch.stack([one[seed].double() - other[seed].double() for seed in one])
    apart = apart[:, ~apart.isnan().any(0)]
    if not apart.shape[1]:
        raise ValueError("one and other must both be defined for some image; got none")
    seeds, images = ({str(k): one for k, one in enumerate(apart.mean(over).tolist())} for over in (1, 0))
    return seeds, images


def training_seconds(model: nn.Module, folder: Path, name: str) -> float | None:
    """Return the seconds that training a model took, as its file (`training.fit`) tells, None where it has none.

    The file is known by its weights, so that a call which hides the `training.Fit` can be asked, too.
    """
    weights = model.state_dict()
    for kept, about in _files(folder, name):
        if kept.keys() == weights.keys() and all(torch.equal(kept[key], weights[key].cpu()) for key in kept):
            return about["seconds"]
    return None


def _files(folder: Path, name: str) -> Iterator[tuple[dict[str, Tensor], dict]]:
    for path in sorted(folder.glob(f"{name}-*.safetensors")):
        try:
            yield training.read(path)
        except (OSError, ValueError):  # gone or damaged: not the model that is there
            continue
