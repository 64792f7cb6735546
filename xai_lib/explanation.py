"""Explanation modules on a layer of a trained network (Qi, Khorram, Li 2017, sections 2.1 and 2.4).

A module compresses one logit to a few x-features and shows where each is in the image, by contrastive Excitation
Backprop (c-MWP) from the x-feature through module and network. `srae` trains it; here it meets the network, whose
weights stay as they are::

    module = ExplanationModule.attach(network, "classifier.1", prepare)
    module.fit(train.images, train.labels, categories=[3, 7], folder=folder)
    maps = module.maps(test.images, category=3)  # one for each x-feature
"""

import contextlib
import difflib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from xai_lib import attribution, one_vs_all, srae, training

RECIPE = training.Recipe(epochs=30, batch_size=100, weight_decay=0.0)


class _Reached(Exception):  # noqa: N818 - no error
    """Ends a forward pass at a layer, whose output it carries."""


class Front(nn.Module):
    """A network up to a layer, and what comes on top of it: images to (B, outputs).

    Parameters
    ----------
    network : nn.Module
    layer : str
        Name of the last module that runs, as in ``network.named_modules()``. Its output is flattened to (B, S).
    top : nn.Module, optional
        From (B, S); default: the layer itself comes out.

    Raises
    ------
    ValueError
        There is no such layer; names those like it.
    """

    def __init__(self, network: nn.Module, layer: str, top: nn.Module | None = None):
        super().__init__()
        self.network, self.layer, self.top = network, check_layer(network, layer), top

    def forward(self, images: Tensor) -> Tensor:
        """Return what `top` makes of the layer.

        Raises
        ------
        ValueError
            The network does not run the layer.
        """
        with _stopping(self.network.get_submodule(self.layer)):
            try:
                self.network(images)
            except _Reached as reached:
                z = reached.args[0].flatten(1)
                return z if self.top is None else self.top(z)
        raise ValueError(f"layer {self.layer!r} is not run by {type(self.network).__name__}")


@contextlib.contextmanager
def _stopping(module: nn.Module) -> Iterator[None]:
    def stop(module, inputs, output):
        raise _Reached(output)

    handle = module.register_forward_hook(stop)
    try:
        yield
    finally:
        handle.remove()


def check_layer(network: nn.Module, layer: str) -> str:
    """Return the name of a layer that the network has.

    Raises
    ------
    ValueError
        There is none of this name; names those like it.
    """
    names = [name for name, _ in network.named_modules() if name]
    if layer not in names:
        near = difflib.get_close_matches(str(layer), names, 3, 0.3) or names[-3:]
        raise ValueError(f"layer must be a module of the network, for instance {', '.join(near)}; got {layer!r}")
    return layer


def activations(
    network: nn.Module, layer: str, images: Tensor, prepare: Callable[[Tensor], Tensor] | None = None
) -> tuple[Float[Tensor, "n z"], Float[Tensor, "n k"]]:
    """Return the output of a layer (N, S), flattened, and the logits (N, K).

    Parameters
    ----------
    network : nn.Module
    layer : str
        As in `Front`.
    images : tensor (N, ...)
    prepare : callable, optional
        Applied to each batch; see `training.predict`.

    Raises
    ------
    ValueError
        There is no such layer, or it has negative activations.
    """
    z = training.predict(Front(network, layer), images, prepare)
    if z.min() < 0:
        raise ValueError(f"layer {layer!r} must be non-negative, as after a ReLU; got {z.min().item():.3g}")
    return z, training.predict(network, images, prepare)


def unit_maps(
    network: nn.Module,
    layer: str,
    images: Float[Tensor, "n c h w"],
    units: Sequence[int] | Int64[Tensor, " t"],
    top: nn.Module | None = None,
    at: str | None = None,
    batch_size: int = 100,
) -> Float[Tensor, "n t h w"]:
    """Return the c-MWP map of each of T units on top of a layer, or of the layer itself; signed.

    Parameters
    ----------
    network, layer : nn.Module, str
        See `Front`.
    images : tensor (N, C, H, W)
        As the network takes them.
    units : T numbers
        Which outputs.
    top : nn.Module, optional
        See `Front`.
    at : str, optional
        Name of the network's module at whose output the map is read, then upsampled; default: the first non-negative
        one. A coarser place gives calmer maps where the first convolutions have strides.
    batch_size : int
        Images at a time.

    Raises
    ------
    ValueError
        See `attribution.explain`.
    """
    targets = torch.as_tensor(units).expand(len(images), -1)
    front, place = Front(network, layer, top), at and f"network.{check_layer(network, at)}"
    return attribution.explain("contrastive_excitation_bp", front, images, targets, layer=place, batch_size=batch_size)


class ExplanationModule(nn.Module):
    """Modules for some categories on one layer of a network, images (B, ...) to approximated logits (B, C).

    Attributes
    ----------
    network, layer, prepare : what it is attached to; `prepare` makes the network's input from images
    categories : tuple of int, the classes explained, in order
    autoencoders : srae.Autoencoders, after `fit`
    """

    def __init__(self, network: nn.Module, layer: str, prepare: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        self.network, self.layer, self.prepare = network, check_layer(network, layer), prepare
        self.categories: tuple[int, ...] = ()
        self.autoencoders: srae.Autoencoders | None = None

    @classmethod
    def attach(
        cls, network: nn.Module, layer: str, prepare: Callable[[Tensor], Tensor] | None = None
    ) -> "ExplanationModule":
        """Return a module on a layer of a network, not trained yet.

        Raises
        ------
        ValueError
            There is no such layer; names those like it.
        """
        return cls(network, layer, prepare)

    def fit(
        self,
        images: Tensor,
        labels: Int64[Tensor, " n"],
        categories: Sequence[int],
        *,
        folder: Path,
        objective: srae.Objective = srae.Objective(),  # noqa: B008 - frozen
        size: srae.Size = srae.Size(),  # noqa: B008
        recipe: training.Recipe = RECIPE,
        positives: int | None = None,
        negatives: int | None = None,
        seed: int = 0,
        name: str = "explanation",
    ) -> "ExplanationModule":
        """Train one module for each category on images and what the network says of them; return itself.

        Parameters
        ----------
        images : tensor (N, ...)
        labels : int64 tensor (N,)
            Which images are a category's positives.
        categories : sequence of int
        folder : Path
            Trained modules are kept there and used again; see `training.fit`.
        objective, size, recipe : see `srae.fit`
        positives, negatives : int, optional
            Images of the category and of other classes that each module is trained on, default all.
        seed, name : int, str

        Raises
        ------
        ValueError
            A category that the network does not have, or without positives; see also `srae.fit`.
        """
        z, logits = activations(self.network, self.layer, images, self.prepare)
        wrong = [one for one in categories if not 0 <= one < logits.shape[1]]
        if wrong or not len(categories):
            raise ValueError(f"categories must lie between 0 and {logits.shape[1] - 1}; got {wrong or 'none'}")
        self.autoencoders = srae.fit(
            z,
            logits[:, list(categories)],
            one_vs_all.sample_weights(labels, categories, positives, negatives, seed=seed),
            objective,
            size,
            recipe,
            seeds=[1000 * seed + one for one in categories],
            order=seed,
            name=name,
            folder=folder,
        ).model
        self.categories = tuple(categories)
        return self

    def forward(self, images: Tensor) -> Float[Tensor, "n c"]:
        """Return the approximated logits of the categories."""
        return self.contributions(images).sum(2).T

    def contributions(self, images: Tensor) -> Float[Tensor, "c n x"]:
        """Return what each x-feature adds to the logit of its category, v_n E_n.

        Raises
        ------
        ValueError
            It is not trained yet.
        """
        self._index(None)
        z = training.predict(Front(self.network, self.layer), images, self.prepare)
        with torch.no_grad():
            return self.autoencoders.contributions(z.to(self.autoencoders.head.device)).cpu()

    def maps(
        self, images: Tensor, category: int, at: str | None = None, batch_size: int = 100
    ) -> Float[Tensor, "n x h w"]:
        """Return the c-MWP map of each x-feature of a category, all from one pass; signed. For `at` see `unit_maps`.

        Raises
        ------
        ValueError
            It is not trained for this category.
        """
        k = self._index(category)
        where = next(self.network.parameters(), torch.empty(0)).device
        top, units = self.autoencoders.single(k).to(where), torch.arange(self.autoencoders.head.shape[1])
        prepare = self.prepare or (lambda batch: batch)
        parts = (prepare(batch.to(where)) for batch in images.split(batch_size))
        return torch.cat([unit_maps(self.network, self.layer, one, units, top, at, batch_size).cpu() for one in parts])

    def _index(self, category: int | None) -> int:
        if self.autoencoders is None:
            raise ValueError("categories: the module is not trained yet, call fit; got none")
        if category is not None and category not in self.categories:
            raise ValueError(f"category must be one of {', '.join(map(str, self.categories))}; got {category}")
        return 0 if category is None else self.categories.index(category)
