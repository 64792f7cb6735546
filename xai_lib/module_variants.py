r"""Beside the explanation module's paper: linear modules, restarts, and differences in pairs.

`linear` embeds a layer :math:`Z` by NMF (Lee, Seung 1999) or principal components and fits a linear head to the logit:
what `srae` does without learning its x-features for the logit. ``regression`` is a linear model of the logit on all of
:math:`Z`, one x-feature that says how much of the logit is linear in the layer.

A sample counts by its weight throughout, as in equation 4: components are those of :math:`\sqrt{w_i}\, Z^{(i)}`, for
PCA less the weighted mean. NMF's codes are the layer times the pseudo-inverse of its components, rectified, in place of
an optimisation for each sample: with x-features so defined, NMF is a module like the others, and a map starts from it.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from xai_lib import explanation_metrics, srae, training

METHODS = ("nmf", "pca", "regression")
NEW_SEED = 1_000_003  # added to a module's seed by each restart


class LinearModules(nn.Module):
    """C linear embeddings of one layer with a linear head each, asked like `srae.Autoencoders`.

    Parameters
    ----------
    encoder, bias : tensors (C, n, S), (C, n), from the layer to x-features
    head, intercept : tensors (C, n), (C,), from x-features to the logit
    decoder, mean : tensors (C, n, S), (C, S), from x-features back to the layer
    rectified : bool, whether x-features end in a ReLU
    """

    def __init__(
        self,
        encoder: Float[Tensor, "c n z"],
        bias: Float[Tensor, "c n"],
        head: Float[Tensor, "c n"],
        intercept: Float[Tensor, " c"],
        decoder: Float[Tensor, "c n z"],
        mean: Float[Tensor, "c z"],
        rectified: bool,
    ):
        super().__init__()
        self.rectified = rectified
        self.encoder, self.bias = nn.Parameter(encoder), nn.Parameter(bias)
        self.head, self.intercept = nn.Parameter(head), nn.Parameter(intercept)
        self.decoder, self.mean = nn.Parameter(decoder), nn.Parameter(mean)

    def encode(self, z: Float[Tensor, "b z"]) -> Float[Tensor, "c b n"]:
        """Return the x-features of each sample."""
        e = z @ self.encoder.transpose(1, 2) + self.bias[:, None]
        return torch.relu(e) if self.rectified else e

    def contributions(self, z: Float[Tensor, "b z"]) -> Float[Tensor, "c b n"]:
        """Return what each x-feature adds to the logit; with the intercept, they sum to the module's output."""
        return self.head[:, None] * self.encode(z)

    def forward(self, z: Float[Tensor, "b z"]) -> Float[Tensor, "b c"]:
        """Return the approximated logits."""
        return self.contributions(z).sum(2).T + self.intercept

    def single(self, k: int) -> nn.Sequential:
        """Return one embedding as a plain network, layer (B, S) to x-features (B, n)."""
        return nn.Sequential(_layer(self.encoder[k], self.bias[k]), *[nn.ReLU()] * self.rectified)

    def single_decoder(self, k: int) -> nn.Sequential:
        """Return the way back as a plain network, x-features (B, n) to layer (B, S)."""
        return nn.Sequential(_layer(self.decoder[k].T, self.mean[k]))


def _layer(weight: Tensor, bias: Tensor) -> nn.Linear:
    one = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
    one.weight, one.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    return one


def linear(
    z: Float[Tensor, "n z"],
    logits: Float[Tensor, "n c"],
    weights: Float[Tensor, "n c"],
    method: str,
    features: int = 5,
) -> LinearModules:
    """Fit linear modules, each on its own samples, without training; on the device that `training` uses.

    Parameters
    ----------
    z : tensor (N, S)
        Activations of the layer, 0 or more.
    logits, weights : tensors (N, C)
        As in `srae.fit`.
    method : str
        One of `METHODS`. Principal components are turned so that each raises the logit.
    features : int
        Number of components, below S; ``regression`` has one x-feature.

    Raises
    ------
    ValueError
        An unknown method, negative activations, shapes that do not fit, or too many components.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if z.ndim != 2 or len(z) != len(logits) or weights.shape != logits.shape:
        shapes = ", ".join(str(tuple(one.shape)) for one in (z, logits, weights))
        raise ValueError(f"z, logits and weights must be (N, S), (N, C) and (N, C); got {shapes}")
    if z.min() < 0:
        raise ValueError(f"z must be non-negative, the layer after its ReLU; got {z.min().item():.3g}")
    if not 1 <= features < z.shape[1]:
        raise ValueError(f"features must lie between 1 and {z.shape[1] - 1}, below the layer's size; got {features}")
    found = []
    for target, weight in zip(logits.T, weights.T, strict=True):
        rows = weight > 0
        found.append(_one(*(values[rows].double().numpy() for values in (z, target, weight)), method, features))
    parts = (torch.from_numpy(np.stack(part)).float() for part in zip(*found, strict=True))
    return LinearModules(*parts, rectified=method == "nmf").to(training.device())


def _one(z: np.ndarray, logit: np.ndarray, weight: np.ndarray, method: str, features: int) -> tuple[np.ndarray, ...]:
    """Return encoder, bias, head, intercept, decoder and mean of one module."""
    from sklearn.linear_model import LinearRegression  # here, as sklearn takes a second to load

    mean = np.zeros(z.shape[1]) if method == "nmf" else np.average(z, axis=0, weights=weight)
    if method == "regression":
        fit = LinearRegression().fit(z - mean, logit, weight)
        nothing = np.zeros((1, z.shape[1]))
        return fit.coef_[None], -fit.coef_[None] @ mean, np.ones(1), np.asarray(fit.intercept_), nothing, mean
    decoder = _components(np.sqrt(weight)[:, None] * (z - mean), method, features)
    encoder = np.linalg.pinv(decoder).T
    e = (z - mean) @ encoder.T
    fit = LinearRegression().fit(np.maximum(e, 0) if method == "nmf" else e, logit, weight)
    sign = np.where(fit.coef_ < 0, -1.0, 1.0) if method == "pca" else np.ones(features)
    encoder, decoder = sign[:, None] * encoder, sign[:, None] * decoder
    return encoder, -encoder @ mean, sign * fit.coef_, np.asarray(fit.intercept_), decoder, mean


def _components(rows: np.ndarray, method: str, count: int) -> np.ndarray:
    """Return the components (n, S) of rows (N, S)."""
    from sklearn.decomposition import NMF, TruncatedSVD

    if method == "nmf":
        return NMF(count, init="nndsvda", tol=1e-3, max_iter=1000, random_state=0).fit(rows).components_
    return TruncatedSVD(count, algorithm="arpack", random_state=0).fit(rows).components_


# ---------------------------------------------------------------------------------------------------------------------
# Restarts


@dataclass(frozen=True)
class Restarted:
    """Modules after restarts.

    Attributes
    ----------
    model : srae.Autoencoders, of each module the try with the smallest error on its training samples
    before, after : bool tensors (C,), which were and which are degenerate
    tries : int64 tensor (C,), how often each was trained again
    """

    model: srae.Autoencoders
    before: Bool[Tensor, " c"]
    after: Bool[Tensor, " c"]
    tries: Int64[Tensor, " c"]


def restarted(
    z: Float[Tensor, "n z"],
    logits: Float[Tensor, "n c"],
    weights: Float[Tensor, "n c"],
    positive: Bool[Tensor, "n c"],
    objective: srae.Objective,
    size: srae.Size,
    recipe: training.Recipe,
    *,
    seeds: Sequence[int],
    order: int,
    name: str,
    folder: Path,
    times: int,
) -> Restarted:
    """Train modules, and those that are degenerate again with a new seed, each at most so many times.

    Which try is kept, its training error alone decides: the weighted squared error of the logit, equation 4's first
    term. So a module may stay degenerate, where its first try copies the logit best. The public code also changes the
    objective at each restart; here it stays.

    Parameters
    ----------
    z, logits, weights : tensors
        As in `srae.fit`.
    positive : bool tensor (N, C)
        Each category's positives among its training samples, of which `srae.degenerate` judges.
    objective, size, recipe, seeds, order, name, folder : as in `srae.fit`
        The objective with numbers for all modules.
    times : int
        Most restarts of a module, 0 or more.

    Raises
    ------
    ValueError
        Negative `times`, a category without positives; see also `srae.fit`.
    """
    if times < 0:
        raise ValueError(f"times must be 0 or more; got {times}")
    without = (~positive.any(0)).nonzero()[:, 0].tolist()
    if without:
        raise ValueError(f"positive must hold one for each category; got none for {without[0]}")

    def train(some: Tensor, attempt: int) -> srae.Autoencoders:
        chosen = [seeds[k] + NEW_SEED * attempt for k in some.tolist()]
        given, label = (z, logits[:, some], weights[:, some]), f"{name}_again_{attempt}" if attempt else name
        return srae.fit(*given, objective, size, recipe, seeds=chosen, order=order, name=label, folder=folder).model

    model = copy.deepcopy(train(torch.arange(len(seeds)), 0))
    errors = _errors(model, z, logits, weights)
    before = dead = degenerate(model, z, positive)
    tries = torch.zeros(len(seeds), dtype=torch.int64)
    for attempt in range(1, times + 1):
        if not dead.any():
            break
        rows = dead.nonzero()[:, 0]
        new = train(rows, attempt)
        found = _errors(new, z, logits[:, rows], weights[:, rows])
        better = found < errors[rows]
        _put(model, rows[better], new, better)
        errors[rows[better]] = found[better]
        tries[rows] += 1
        dead = degenerate(model, z, positive)
    return Restarted(model, before, dead, tries)


def degenerate(model: srae.Autoencoders, z: Float[Tensor, "n z"], positive: Bool[Tensor, "n c"]) -> Bool[Tensor, " c"]:
    """Say which modules are degenerate on their own positives (`srae.degenerate`)."""
    found = contributions(model, z)
    return torch.cat([srae.degenerate(one[None, rows]) for one, rows in zip(found, positive.T, strict=True)])


def _errors(model: srae.Autoencoders, z: Tensor, logits: Tensor, weights: Tensor) -> Tensor:
    return (weights * (training.predict(model, z) - logits).square()).mean(0)


@torch.no_grad()
def _put(model: srae.Autoencoders, rows: Tensor, other: srae.Autoencoders, chosen: Tensor) -> None:
    """Put modules of another model into these rows: the first dimension of all that a model holds is the module."""
    state = other.state_dict()
    for name, value in model.state_dict().items():
        value[rows.to(value.device)] = state[name][chosen.to(value.device)]


# ---------------------------------------------------------------------------------------------------------------------
# Measures


def contributions(model: nn.Module, z: Float[Tensor, "n z"]) -> Float[Tensor, "c n x"]:
    """Return what each x-feature adds to the logits of many samples, on the CPU."""
    found = training.predict(model, z, function=lambda modules, batch: modules.contributions(batch).transpose(0, 1))
    return found.transpose(0, 1)


def active_units(model: nn.Module, z: Float[Tensor, "n z"], positive: Bool[Tensor, "n c"]) -> Float[Tensor, " c"]:
    """Return how many x-features each of the first C modules uses on its positives (`explanation_metrics.used`)."""
    found = contributions(model, z)
    return torch.tensor([float(explanation_metrics.used(found[k, own]).sum()) for k, own in enumerate(positive.T)])


@torch.no_grad()
def rebuilt(model: nn.Module, z: Float[Tensor, "n z"], count: int) -> Float[Tensor, " c"]:
    """Return the percentage of the layer's variance that each of the first `count` modules rebuilds.

    Minus infinity to 100, higher is better; over all dimensions together, so that those that vary most count most.
    NaN for a constant layer.
    """
    total = (z.double() - z.double().mean(0)).square().sum()
    ways = (nn.Sequential(model.single(k), model.single_decoder(k)) for k in range(count))
    left = torch.stack([(training.predict(way, z).double() - z).square().sum() for way in ways])
    return torch.where(total > 0, 100 * (1 - left / total), torch.nan)


def paired(values: Float[Tensor, "s c"], others: Float[Tensor, "s c"]) -> dict[str, float]:
    """Return {"seed/category": difference}, both counted from 0; pairs that are not finite are left out."""
    rows = enumerate((values.double() - others.double()).tolist())
    return {f"{s}/{c}": one for s, row in rows for c, one in enumerate(row) if np.isfinite(one)}
