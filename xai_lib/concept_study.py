"""The experiments on the concept VAE (arXiv 2109.00479): training that is watched, clusters, maps, interventions.

Images are uint8, with labels below the first label of a concept for digits; networks are asked by the mean of the
latent image. Where the paper is silent, ours are:

- Correlation of a map with a sample: over the pixels of the map, 0 for one that is constant; of a map with a concept:
  the mean over samples. Without concept loss no map has a concept: each concept is matched to one map, one to one, by
  the largest absolute correlation on training samples, and the sign there is the sign of the map.
- The representatives of a digit (3.5) are the decoded centres of the clusters in which it is the most frequent digit;
  where there is none, that of the cluster that holds most of its images, as the sampler needs one for each digit.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int64, UInt8
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional

from xai_lib import concept_vae, concepts, data, training
from xai_lib.concept_vae import CONCEPT_LAYER, ConceptVAE

UNIT = data.Normalize(0.0, 1.0)  # uint8 to 0 to 1
_HIDDEN = [f"{side}.layer_{k}" for side in ("encoder", "decoder") for k in range(5)]
LAYERS = (*_HIDDEN[:5], "latent", *_HIDDEN[5:], "decoder.output")  # with weights, in the order of computation
CLASSIFIER_LAYERS = 7  # of `xcnn.small_cnn`, up to the ReLU of its second block: 14 x 14 on MNIST
Batch = Float[Tensor, "n c h w"]  # 0 to 1
Images = UInt8[Tensor, "n c h w"]
Labels = Int64[Tensor, " n"]
Chosen = Int64[Tensor, " concepts"]
Table = Float[Tensor, "concepts maps"]  # correlations
Clusters = tuple[Float[Tensor, "k d"], Int64[Tensor, " n"]]  # centres, and the number of the cluster of each point


class Watched(ConceptVAE):
    """A `ConceptVAE` whose training by `Watching` leaves notes, which are kept with its weights.

    Parameters
    ----------
    epochs, watch : int
        Epochs of the training; first steps whose gradients are noted.
    **settings : object
        Those of `ConceptVAE`.

    Attributes
    ----------
    steps : int64 tensor (), steps done
    curve : float tensor (epochs,), NLL on held-out digits in nats after each epoch, NaN after the last one
    norms : float tensor (watch, 12), norm of the gradient of the weights of `LAYERS`, NaN for steps not done
    """

    def __init__(self, epochs: int, watch: int = 200, **settings):
        super().__init__(**settings)
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("curve", torch.full((epochs,), math.nan))
        self.register_buffer("norms", torch.full((watch, len(LAYERS)), math.nan))
        for k, layer in enumerate(one for one in self.modules() if isinstance(one, nn.Conv2d | nn.ConvTranspose2d)):
            layer.weight.register_post_accumulate_grad_hook(partial(self._note, k))

    def _note(self, layer: int, weight: Tensor) -> None:
        if self.steps <= len(self.norms):
            self.norms[self.steps - 1, layer] = weight.grad.norm()


@dataclass(frozen=True, eq=False)
class Watching:
    """An objective for `training.fit` that keeps the notes of a `Watched` network; the training itself is unchanged.

    `digits` (N, C, H, W), uint8, are held-out ones, scored in float32 after each epoch of so many `steps`.
    """

    objective: Callable
    digits: Tensor
    steps: int

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Float[Tensor, ""]:
        """Return the loss of a batch."""
        done = int(model.steps)
        if done and done % self.steps == 0:
            model.curve[done // self.steps - 1] = mean_scores(model, self.digits)[0]
        model.steps += 1
        return self.objective(model, images, labels)


def mean_scores(model: ConceptVAE, images: Images) -> Float[Tensor, " 3"]:
    """Return the mean of each of `concept_vae.SCORES` over images."""
    return training.predict(model, images, UNIT, function=concept_vae.scores).double().mean(0).float()


def mixture(digits: Tensor, samples: Tensor) -> Tensor:
    """Return scores (...) averaged over digits and concept samples as 60,000 to 54,000 (3.5)."""
    return (60 * digits + 54 * samples) / 114


def joined(digits: data.ImageSet, samples: concepts.Concepts) -> tuple[Images, Labels]:
    """Return digits and concept samples as one training set."""
    return torch.cat([digits.images, samples.images]), torch.cat([digits.labels, samples.labels])


def paced(tensors: Sequence[Tensor], steps: int) -> tuple[list[Tensor], int]:
    """Return tensors (N, ...) and the batch size with which an epoch takes just so many steps, 1 to N.

    Where no batch size does, the first rows come twice, as few as possible.
    """
    size = math.ceil(len(tensors[0]) / steps)
    return repeated(tensors, max(len(tensors[0]), size * (steps - 1) + 1)), size


def repeated(tensors: Sequence[Tensor], count: int) -> list[Tensor]:
    """Return the first `count` rows of tensors (N, ...), which begin anew after their end."""
    return [one[torch.arange(count) % len(one)] for one in tensors]


def untrained(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return the network that `training.fit` starts from with this seed, in eval mode on its device."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().to(training.device()).eval()


def steps_to(curve: Float[Tensor, " epochs"], target: float, steps: int) -> int:
    """Return the steps, `steps` an epoch, to a loss at the target or below; never counts as an epoch more than all."""
    reached = (curve <= target).nonzero()[:, 0]
    return steps * (int(reached[0]) + 1 if len(reached) else len(curve) + 1)


def least_nll(images: Images) -> Float[Tensor, " n"]:
    """Return the least NLL that any reconstruction can have: the summed entropy of the pixels in nats, 0 if binary."""
    x = images.double() / 255
    return (torch.special.entr(x) + torch.special.entr(1 - x)).flatten(1).sum(1)


def explained_variance(images: Images, reconstructions: Batch) -> float:
    """Return the percent of the pixel variance of images about their mean that reconstructions explain.

    At most 100, higher is better; 0 is as good as the mean image, less is worse.

    Raises
    ------
    ValueError
        The images are all the same.
    """
    x = images.double() / 255
    whole = (x - x.mean(0)).square().sum().item()
    if whole < 1e-9:
        raise ValueError(f"images must differ; got {len(images)} without variance")
    return 100 * (1 - (reconstructions.double() - x).square().sum().item() / whole)


def diversity(samples: concepts.Concepts) -> float:
    """Return the variance of pixels (0 to 1) over a concept's samples, summed, mean over concepts; 0 without any."""
    own = [samples.images[samples.labels == one].double() / 255 for one in samples.labels.unique()]
    return sum(one.var(0, correction=0).sum().item() for one in own) / max(1, len(own))


def clusters(points: Float[Tensor, "n *d"], count: int, seed: int = 0, kind: str = "kmeans") -> Clusters:
    """Return clusters by ``kmeans`` (the paper) or a Gaussian ``mixture`` with full covariances (the public code).

    Raises
    ------
    ValueError
        `count` is not from 1 to the number of points; another kind.
    """
    from sklearn import cluster, mixture  # here, as sklearn takes a second to load

    if not 1 <= count <= len(points):
        raise ValueError(f"count must be from 1 to the {len(points)} points; got {count}")
    flat = points.flatten(1).double().numpy()
    if kind == "kmeans":
        found = cluster.KMeans(count, n_init=10, random_state=seed).fit(flat)
        return torch.from_numpy(found.cluster_centers_), torch.from_numpy(found.labels_).long()
    if kind != "mixture":
        raise ValueError(f"kind must be kmeans or mixture; got {kind!r}")
    found = mixture.GaussianMixture(count, max_iter=500, random_state=seed).fit(flat)
    return torch.from_numpy(found.means_), torch.from_numpy(found.predict(flat)).long()


def counted(found: Clusters, labels: Labels) -> Int64[Tensor, "k classes"]:
    """Return how many points of each label, 0 to the largest, each cluster holds."""
    shape = len(found[0]), int(labels.max()) + 1
    return torch.bincount(found[1] * shape[1] + labels, minlength=shape[0] * shape[1]).view(shape)


def agreement(found: Clusters, labels: Labels) -> dict[str, float]:
    """Return how clusters agree with labels, higher for better ones.

    ``covered``: labels that are the most frequent one of some cluster (the smallest of equals). ``purity``: share of
    points, 0 to 1, with the most frequent label of their cluster. ``information``: adjusted mutual information, 0 by
    chance, 1 where clusters and labels are the same.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    counts = counted(found, labels)
    covered = float(len(counts[counts.sum(1) > 0].argmax(1).unique()))
    information = adjusted_mutual_info_score(labels.numpy(), found[1].numpy())
    return {"covered": covered, "purity": counts.amax(1).sum().item() / len(labels), "information": float(information)}


def latents(model: ConceptVAE, images: Images) -> Float[Tensor, "n d"]:
    """Return the means of latent images, flattened."""
    return training.predict(model, images, UNIT, function=lambda net, x: net.encode(x)[0]).flatten(1)


def representatives(model: ConceptVAE, digits: data.ImageSet, found: Clusters) -> dict[int, Tensor]:
    """Return the decoded centres of each digit (3.5, step 1), uint8 (K, C, H, W), for `concepts.sample`."""
    counts, images = counted(found, digits.labels), (255 * concept_vae.generate(model, found[0])).round().byte()
    first = counts.argmax(1).masked_fill(counts.sum(1) == 0, -1)
    return {
        digit: images[first == digit] if (first == digit).any() else images[counts[:, digit].argmax()][None]
        for digit in digits.labels.unique().tolist()
    }


def map_clusters(model: ConceptVAE, images: Images, count: int, seed: int = 0) -> tuple[Clusters, Tensor]:
    """Return k-means of layer-3 maps, those of an image one point in 50 principal components at most, and the maps."""
    from sklearn.decomposition import PCA

    maps = training.predict(model, images, UNIT, function=concept_vae.feature_maps)
    flat = maps.flatten(1).numpy()
    reduced = PCA(min(50, *flat.shape), svd_solver="randomized", random_state=seed).fit_transform(flat)
    return clusters(torch.from_numpy(reduced), count, seed), maps


def correlations(maps: Float[Tensor, "n k s t"], images: Batch) -> Float[Tensor, "n k"]:
    """Return the correlation of each map with its image at the size of the map; 0 for a constant map or image."""
    sample = functional.interpolate(images.mean(1, keepdim=True), maps.shape[-2:], mode="bilinear", align_corners=False)
    pair = [each.double().flatten(2) for each in (maps, sample)]
    centred = [each - each.mean(2, keepdim=True) for each in pair]
    size = [each.norm(dim=2) for each in centred]
    told = [norm > 1e-5 * each.norm(dim=2) for norm, each in zip(size, pair, strict=True)]  # else rounding alone
    return torch.where(told[0] & told[1], (centred[0] * centred[1]).sum(2) / (size[0] * size[1]), 0.0).float()


def map_table(
    model: nn.Module, images: Images, labels: Labels, wanted: Sequence[int], maps: Callable | int = CONCEPT_LAYER
) -> Table:
    """Return the correlation of each map with each concept, -1 to 1; `maps` is a decoder layer or ``maps(model, x)``.

    Raises
    ------
    ValueError
        A concept has no sample.
    """
    missing = sorted(set(wanted) - set(labels.tolist()))
    if missing:
        raise ValueError(f"labels must hold each concept; got none of {missing}")
    draw = partial(concept_vae.feature_maps, layer=maps) if isinstance(maps, int) else maps
    found = training.predict(model, images, UNIT, function=lambda net, x: correlations(draw(net, x), x))
    return torch.stack([found[labels == one].mean(0) for one in wanted])


def match(table: Table) -> tuple[Chosen, Float[Tensor, " concepts"]]:
    """Return the map of each concept, by the largest sum of absolute correlations, and its sign, 1 or -1.

    One to one; with repetition where there are fewer maps than concepts.
    """
    chosen = table.abs().argmax(1)
    if table.shape[1] >= len(table):
        chosen = torch.from_numpy(linear_sum_assignment(-table.abs().numpy())[1]).long()
    return chosen, torch.where(table.gather(1, chosen[:, None])[:, 0] < 0, -1.0, 1.0)


def selective(table: Table, chosen: Chosen) -> float:
    """Return the mean correlation of a concept with its own map minus that with the maps of the other concepts."""
    own, own_map = table[:, chosen], table[:, chosen].diagonal()
    return (own_map - (own.sum(1) - own_map) / (len(own) - 1)).mean().item()


def firing(model: ConceptVAE, digits: data.ImageSet, chosen: Chosen) -> Float[Tensor, "concepts classes"]:
    """Return the area under the ROC curve by which the mean activation of a map tells each class from all others.

    0.5 is chance, also for a map that is the same on all images.
    """
    from sklearn.metrics import roc_auc_score

    mean = training.predict(
        model, digits.images, UNIT, function=lambda net, x: concept_vae.feature_maps(net, x)[:, chosen].mean((2, 3))
    )
    own = [(digits.labels == one).numpy() for one in range(len(digits.classes))]
    return torch.tensor([[roc_auc_score(one, each.numpy()) for one in own] for each in mean.T])


def composed(model: ConceptVAE, x: Batch, kept: Sequence[int]) -> Batch:
    """Return the images, 0 to 1, that are decoded from some layer-3 maps alone, the others set to zero."""
    maps = concept_vae.feature_maps(model, x)
    only = torch.zeros_like(maps)
    only[:, list(kept)] = maps[:, list(kept)]
    return model.finish(only).sigmoid()


def removal(model: ConceptVAE, digits: data.ImageSet, windows: Sequence[concepts.Window]) -> Float[Tensor, " concepts"]:
    """Return where digits of each window's class change as its map is switched off, in points.

    Share of the absolute change inside the window minus share of the decoded ink there: -100 to 100, above 0 if the
    change prefers the window; 0 where nothing changes. Mean over the digits of the class.
    """

    def points(net, x, window):
        before = net(x)
        change = (composed(net, x, [k for k in range(net.channels[CONCEPT_LAYER]) if k != window.label]) - before).abs()
        inside = [concepts.cut(one, window.edges.to(x.device)).flatten(1).sum(1) for one in (change, before)]
        whole = [one.flatten(1).sum(1) for one in (change, before)]
        return torch.where(whole[0] > 0, 100 * (inside[0] / whole[0] - inside[1] / whole[1]), 0.0)

    own = {one: digits.images[digits.labels == one.digit] for one in windows}
    each = [training.predict(model, x, UNIT, function=partial(points, window=one)) for one, x in own.items()]
    return torch.stack([one.mean() for one in each])


def quadrant_share(model: ConceptVAE, images: Images) -> float:
    """Return how much of the squared change of the latent mean lies in the quadrant whose ink was taken, in percent.

    0 to 100, chance 25, higher is better. Mean over images and their quadrants; those without any ink do not count.
    """

    def shares(net, x):
        mean, quadrants = net.encode(x)[0], torch.eye(4, device=x.device).view(4, 1, 2, 2)
        here, there = (functional.interpolate(quadrants, one.shape[-2:]) for one in (x, mean))
        change = torch.stack([(net.encode(x * (1 - one))[0] - mean).square() for one in here], 1)
        share = (change * there).flatten(2).sum(2) / change.flatten(2).sum(2)
        return share.masked_fill((x[:, None] * here).flatten(2).sum(2) == 0, math.nan)

    return 100 * training.predict(model, images, UNIT, function=shares).nanmean().item()


def classifier_maps(model: nn.Sequential, x: Batch) -> Float[Tensor, "n k s t"]:
    """Return the maps of the second block of an `xcnn.small_cnn` after the ReLU, before pooling."""
    return model[:CLASSIFIER_LAYERS](x)


@dataclass(frozen=True)
class ClassifierObjective:
    """Cross-entropy of the digits, and `weight` times the concept loss of samples, which carry no class (section 5).

    Concepts have labels from `first` on.
    """

    weight: float = 1.0
    first: int = 10

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Float[Tensor, ""]:
        """Return the loss of a batch; one without digits or without concepts has no such part."""
        maps, digits = classifier_maps(model, images), labels < self.first
        logits = model[CLASSIFIER_LAYERS:](maps)[digits].float()
        loss = functional.cross_entropy(logits, labels[digits], reduction="sum") / max(1, len(logits))
        return loss + self.weight * concept_vae.concept_loss(maps, images, labels, self.first)
