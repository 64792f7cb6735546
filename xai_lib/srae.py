r"""SRAE, the sparse reconstruction autoencoder of an explanation module (Qi, Khorram, Li 2017, section 2.3).

It embeds a layer :math:`Z` of a network into a few *x-features* :math:`E(Z; \theta)`, from which a linear head gives
one logit :math:`\hat y` back, and a decoder the dimensions of :math:`Z` that matter for it:

.. math:: \frac1m \sum_i (v^\top E(Z^{(i)}) - \hat y^{(i)})^2 + \frac{\beta}{S_z} \sum_k \log(1 + q\,Q_k)
   + \lambda (\|\theta\|^2 + \|\tilde\theta\|^2 + \|v\|^2), \quad
   Q_k = \frac1m \sum_i \big(\phi^{-1}(E(Z^{(i)}))_k - Z^{(i)}_k\big)^2 \tag{equation 4}

without weight decay on biases. Without the second term it is the paper's NN, with the sum of :math:`Q_k` in place of
the logarithms its SAE. One module explains one logit; `Autoencoders` holds many, which see the same batches and share
nothing else, so that training them together gives what training one by one gives.

Choices where the paper is silent. A sample's weight counts in both terms. A batch gives an estimate of :math:`Q_k`,
whose logarithm is too small on average (it is concave); ``over="data"`` takes the slope of the logarithm at a running
mean instead. One :math:`\lambda` serves for all three.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from xai_lib import training

PENALTIES = ("log", "l1", "epsilon_l1", "kl", "none")
METHODS = {"srae": "log", "nn": "none", "sae": "l1"}  # the paper's three, by their penalty on the reconstruction errors
EPSILON = 0.01  # of epsilon-L1 (Lee et al. 2007)
TARGET = 0.05  # of KL, the share that an error Q / (1 + Q) is drawn to (Ng 2011)
MEMORY = 0.01  # weight of a batch in the running mean of the errors


class Autoencoders(nn.Module):
    """C autoencoders of one layer, each with ReLUs, a mirrored decoder (ReLU on its output too) and a linear head.

    Parameters
    ----------
    inputs : int
        Dimensions of the layer, S_z.
    hidden : sequence of int
        Units between the layer and the x-features, 800 and 100 in the paper.
    features : int
        Number of x-features, n.
    seeds : sequence of int
        One for each autoencoder: its initial weights depend on nothing else. Weights after He et al. 2015, biases 0;
        the signs of the head alternate, because x-features are 0 or more: where all start with one sign, a logit that
        takes both signs is out of reach, and the module dies.
    decoder : bool
        Whether there is one; NN needs none.

    Raises
    ------
    ValueError
        A number is below 1, or there are more x-features than dimensions.
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int] = (800, 100),
        features: int = 5,
        seeds: Sequence[int] = (0,),
        decoder: bool = True,
    ):
        super().__init__()
        sizes = (inputs, *hidden, features)
        if min(sizes) < 1 or not len(seeds):
            raise ValueError(f"inputs, hidden, features and seeds must be 1 or more; got {sizes}, {len(seeds)} seeds")
        if features > inputs:
            raise ValueError(f"features must be at most the {inputs} dimensions of the layer; got {features}")
        self.encoder = nn.ModuleList(_Linear(*pair) for pair in zip(sizes, sizes[1:], strict=False))
        back = sizes[::-1] if decoder else ()
        self.decoder = nn.ModuleList(_Linear(*pair) for pair in zip(back, back[1:], strict=False))
        self.register_buffer("mean_errors", torch.zeros(len(seeds), inputs if decoder else 0))
        signs = torch.tensor([(-1.0) ** k for k in range(features)])
        drawn = []
        for generator in map(_generator, seeds):  # the head before the decoder: NN starts as SRAE does
            encoder = [layer.draw(generator) for layer in self.encoder]
            head = signs * _he(generator, 1, features)[0].abs()
            drawn.append([head, *encoder, *(layer.draw(generator) for layer in self.decoder)])
        heads, *weights = (torch.stack(each) for each in zip(*drawn, strict=True))
        for layer, weight in zip((*self.encoder, *self.decoder), weights, strict=True):
            layer.weight = nn.Parameter(weight)
            layer.bias = nn.Parameter(torch.zeros(len(seeds), weight.shape[1]))
        self.head = nn.Parameter(heads)

    def encode(self, z: Float[Tensor, "b z"]) -> Float[Tensor, "c b n"]:
        """Return the x-features E of each sample, one set for each autoencoder; 0 or more."""
        return self._through(self.encoder, z)

    def decode(self, e: Float[Tensor, "c b n"]) -> Float[Tensor, "c b z"]:
        """Return the layer as it is reconstructed from x-features; 0 or more."""
        return self._through(self.decoder, e)

    def contributions(self, z: Float[Tensor, "b z"]) -> Float[Tensor, "c b n"]:
        """Return v_n E_n, what each x-feature adds to the logit; their sum is the module's output."""
        return self.head[:, None] * self.encode(z)

    def forward(self, z: Float[Tensor, "b z"]) -> Float[Tensor, "b c"]:
        """Return the approximated logits v^T E."""
        return self.contributions(z).sum(2).T

    def single(self, k: int) -> nn.Sequential:
        """Return the encoder of one autoencoder as a plain network, layer (B, S_z) to x-features (B, n)."""
        return _plain(self.encoder, k)

    def single_decoder(self, k: int) -> nn.Sequential:
        """Return the decoder of one autoencoder as a plain network, x-features (B, n) to layer (B, S_z)."""
        return _plain(self.decoder, k)

    def weights(self) -> list[Tensor]:
        """Return all parameters but the biases, each with the autoencoder as its first dimension."""
        return [*(layer.weight for layer in (*self.encoder, *self.decoder)), self.head]

    @staticmethod
    def _through(layers: nn.ModuleList, x: Tensor) -> Tensor:
        for layer in layers:
            x = torch.relu(layer(x))
        return x


class _Linear(nn.Module):
    """Linear layers side by side: inputs (B, I), shared, or (C, B, I), to outputs (C, B, O)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.sizes = outputs, inputs

    def draw(self, generator: torch.Generator) -> Tensor:
        return _he(generator, *self.sizes)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 2:  # one product of matrices for all
            all_at_once = functional.linear(x, self.weight.flatten(0, 1), self.bias.flatten())
            return all_at_once.unflatten(1, self.bias.shape).transpose(0, 1)
        return torch.baddbmm(self.bias[:, None], x, self.weight.transpose(1, 2))


def _plain(layers: nn.ModuleList, k: int) -> nn.Sequential:
    found: list[nn.Module] = []
    for layer in layers:
        one = nn.Linear(layer.weight.shape[2], layer.weight.shape[1], device=layer.weight.device)
        one.weight, one.bias = (nn.Parameter(values[k].detach()) for values in (layer.weight, layer.bias))
        found += [one, nn.ReLU()]
    return nn.Sequential(*found)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _he(generator: torch.Generator, outputs: int, inputs: int) -> Tensor:
    return torch.randn(outputs, inputs, generator=generator) * math.sqrt(2 / inputs)


# ---------------------------------------------------------------------------------------------------------------------
# The objective


@dataclass(frozen=True)
class Objective:
    """Equation 4 and its relatives, for `training.fit`; a number holds for all modules, a tuple has one for each.

    Attributes
    ----------
    penalty : of the reconstruction errors Q_k, one of `PENALTIES`; ``log`` is SRAE, ``l1`` SAE, ``none`` NN
    beta : weight of the reconstruction, 0 or more
    q : sparsity of the log penalty, above 0
    decay : lambda, weight decay of all weights but the biases
    pull_away : weight of the mean squared cosine between the contributions of two x-features (authors' public code)
    over : ``batch`` or ``data``, what Q_k is the mean over
    """

    penalty: str = "log"
    beta: float | tuple[float, ...] = 1.0
    q: float | tuple[float, ...] = 10.0
    decay: float | tuple[float, ...] = 1e-4
    pull_away: float | tuple[float, ...] = 0.0
    over: str = "batch"

    def __post_init__(self):
        if self.penalty not in PENALTIES:
            raise ValueError(f"penalty must be one of {', '.join(PENALTIES)}; got {self.penalty!r}")
        if self.over not in ("batch", "data"):
            raise ValueError(f"over must be batch or data; got {self.over!r}")
        for name in ("beta", "q", "decay", "pull_away"):
            lowest = min(_tuple(getattr(self, name)))
            if not lowest >= 0 or (name == "q" and lowest == 0):
                raise ValueError(f"{name} must be {'above 0' if name == 'q' else '0 or more'}; got {lowest}")

    def __call__(
        self,
        model: Autoencoders,
        z: Float[Tensor, "b z"],
        logits: Float[Tensor, "b c"],
        weights: Float[Tensor, "b c"],
    ) -> Float[Tensor, ""]:
        """Return the objective of each module on a batch, summed: no module sees another's gradient.

        Raises
        ------
        ValueError
            Predictions, logits and weights differ in shape, settings and modules in number, or a decoder is needed.
        """
        e = model.encode(z)
        found = model.head[:, None] * e
        predicted = found.sum(2).T
        if not predicted.shape == logits.shape == weights.shape:
            shapes = f"{tuple(predicted.shape)}, {tuple(logits.shape)} and {tuple(weights.shape)}"
            raise ValueError(f"logits must have the shape of the prediction and of the weights; got {shapes}")
        total = (weights * (predicted - logits).square()).mean(0)
        if self.penalty != "none":
            if not len(model.decoder):
                raise ValueError(f"penalty must be none for modules without a decoder; got {self.penalty!r}")
            errors = torch.bmm(weights.T[:, None], (model.decode(e) - z).square())[:, 0] / len(z)
            total = total + self._each("beta", model) * self._penalty(model, errors).mean(1)
        if any(_tuple(self.pull_away)):
            total = total + self._each("pull_away", model) * pull_away(found * weights.T[:, :, None].sqrt())
        size = sum(weight.flatten(1).square().sum(1) for weight in model.weights())
        return (total + self._each("decay", model) * size).sum()

    def _each(self, name: str, model: Autoencoders) -> Tensor:
        values = getattr(self, name)
        if isinstance(values, tuple) and len(values) != len(model.head):
            raise ValueError(f"{name} must be one number or {len(model.head)}, one for each module; got {len(values)}")
        return torch.tensor(values, dtype=model.head.dtype, device=model.head.device)

    def _penalty(self, model: Autoencoders, errors: Tensor) -> Tensor:
        if self.over == "data" and model.training:
            with torch.no_grad():
                started = model.mean_errors.any(1, keepdim=True)  # not before a module's first sample
                share = torch.where(started, MEMORY, 1.0).to(model.mean_errors)
                model.mean_errors.lerp_(errors.to(model.mean_errors), share)
            at = model.mean_errors.clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.sparsity(at, model).sum(), at)
            return slope * errors
        return self.sparsity(errors, model)

    def sparsity(self, errors: Float[Tensor, "c z"], model: Autoencoders) -> Float[Tensor, "c z"]:
        """Return the penalty of each dimension's error Q_k; 0 where the error is 0, but for KL and epsilon-L1."""
        if self.penalty == "log":
            return torch.log1p(self._each("q", model).reshape(-1, 1) * errors)
        if self.penalty == "epsilon_l1":
            return (errors.square() + EPSILON).sqrt()
        if self.penalty == "kl":
            share = (errors / (1 + errors)).clamp(1e-6, 1 - 1e-6)
            return TARGET * (TARGET / share).log() + (1 - TARGET) * ((1 - TARGET) / (1 - share)).log()
        return errors


def _tuple(values: float | tuple[float, ...]) -> tuple[float, ...]:
    return values if isinstance(values, tuple) else (values,)


def pull_away(contributions: Float[Tensor, "c b n"]) -> Float[Tensor, " c"]:
    """Return the mean squared cosine between the contributions of two x-features over a batch, 0 to 1; 0 for n = 1."""
    unit = functional.normalize(contributions, dim=1)
    cosines = torch.bmm(unit.transpose(1, 2), unit).square()
    n = cosines.shape[1]
    apart = cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(1)
    return apart / max(n * (n - 1), 1)


# ---------------------------------------------------------------------------------------------------------------------
# Training


@dataclass(frozen=True)
class Size:
    """Shape of the modules: units between layer and x-features, and number of x-features."""

    hidden: tuple[int, ...] = (800, 100)
    features: int = 5


def fit(
    z: Float[Tensor, "n z"],
    logits: Float[Tensor, "n c"],
    weights: Float[Tensor, "n c"],
    objective: Objective,
    size: Size,
    recipe: training.Recipe,
    *,
    seeds: Sequence[int],
    order: int,
    name: str,
    folder: Path,
    greedy: int = 0,
) -> training.Fit:
    """Train C modules together on one layer, each on its own logit; see `training.fit`.

    Parameters
    ----------
    z : tensor (N, S_z)
        Activations of the layer, 0 or more.
    logits, weights : tensors (N, C)
        What each module has to approximate, and how much each sample counts (`one_vs_all.sample_weights`).
    objective : Objective
    size : Size
    recipe : training.Recipe
        Its weight decay must be 0: equation 4 spares the biases, so the objective has it.
    seeds : sequence of int
        Of the initial weights, one for each module.
    order : int
        Seed of the order of the samples, the same for all modules.
    name, folder : str, Path
    greedy : int
        Epochs of layer-wise pretraining (see `pretrained`), 0 for none.

    Raises
    ------
    ValueError
        Negative activations, shapes that do not fit, a weight decay in the recipe.
    """
    _check(z, logits, weights, seeds, recipe)
    build = partial(Autoencoders, z.shape[1], size.hidden, size.features, tuple(seeds), objective.penalty != "none")
    if greedy and objective.penalty != "none":
        first = pretrained(build, z, replace(recipe, epochs=greedy), order=order, name=name, folder=folder)
        build = partial(_loaded, build, first)
    return training.fit(build, objective, (z, logits, weights), recipe, seed=order, name=name, folder=folder)


def _check(z: Tensor, logits: Tensor, weights: Tensor, seeds: Sequence[int], recipe: training.Recipe) -> None:
    if z.ndim != 2 or logits.shape != (len(z), len(seeds)) or weights.shape != logits.shape:
        shapes = f"{tuple(z.shape)}, {tuple(logits.shape)}, {tuple(weights.shape)}"
        raise ValueError(f"z, logits and weights must be (N, S), (N, {len(seeds)}) and (N, {len(seeds)}); got {shapes}")
    if z.min() < 0:
        raise ValueError(f"z must be non-negative, the layer after its ReLU; got {z.min().item():.3g}")
    if recipe.weight_decay:
        raise ValueError(f"recipe.weight_decay must be 0, the objective spares the biases; got {recipe.weight_decay}")


@dataclass(frozen=True)
class _Layerwise:
    """Squared error with which one layer of the encoder and its mirror reconstruct what comes to them."""

    layer: int

    def __call__(self, model: Autoencoders, z: Tensor) -> Tensor:
        with torch.no_grad():
            x = model._through(model.encoder[: self.layer], z)
        back = torch.relu(model.decoder[len(model.decoder) - 1 - self.layer](torch.relu(model.encoder[self.layer](x))))
        return (back - x).square().mean((1, 2)).sum()


def pretrained(build: partial, z: Tensor, recipe: training.Recipe, *, order: int, name: str, folder: Path) -> dict:
    """Return weights after greedy pretraining: each layer in turn learns to reconstruct its input (Bengio et al. 2007).

    An option of the authors' public code, not in the paper.
    """
    model = build()
    for k in range(len(model.encoder)):
        stage = training.fit(build, _Layerwise(k), (z,), recipe, seed=order, name=f"{name}_layer{k + 1}", folder=folder)
        build, model = partial(_loaded, build, stage.model.state_dict()), stage.model
    return model.state_dict()


def _loaded(build, state: dict) -> Autoencoders:
    model = build()
    model.load_state_dict(state)
    return model


def degenerate(contributions: Float[Tensor, "c b n"]) -> Tensor:
    """Say of which modules (C,) the public code would start training again.

    Those with fewer than two x-features that contribute positively on average over the samples (positives), or whose
    second one contributes less than 0.3 of the first.
    """
    means = contributions.mean(1).sort(1, descending=True).values
    if means.shape[1] < 2:
        return torch.ones(len(means), dtype=torch.bool)
    return ~((means[:, 1] > 0) & (means[:, 1] >= 0.3 * means[:, 0]))
