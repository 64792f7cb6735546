r"""The XCNN paper's comparison, with numbers where the paper has eyes (Tavanaei 2020, figures 4 and 5, section 3.4).

Seven known methods explain the classifier alone; XCNN draws its own map. Scores that say which of them is better, and a
rule for the sign of XCNN's map, which training leaves open: the next convolution can absorb it, and the authors negate
maps by hand.

.. math:: \text{deletion gain} = \frac{1}{p_0} \int_0^1 \bigl(p_{\text{random}}(s) - p_{\text{map}}(s)\bigr)\, ds

where p(s) is the model's probability of the class while a share s of the pixels is replaced, in random order or in
falling order of the map, and :math:`p_0` that of the whole image.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from xai_lib import attribution, faithfulness, generators, localisation, training

SEVEN = ("gradient", "guided_backprop", "deconvolution", "deep_taylor", "lrp", "patternnet", "pattern_attribution")
METHODS = (*SEVEN, "xcnn")  # from left to right in figures 4 and 5
BEST = ("xcnn", "deep_taylor", "pattern_attribution")  # the paper's three best (3.2, 3.3)
OTHERS = tuple(method for method in METHODS if method not in BEST)


def drawers(
    plain: nn.Module, own: nn.Module, known: Float[Tensor, "m c h w"], bounds: tuple[float, float]
) -> dict[str, Callable[[Tensor, int | Tensor], Tensor]]:
    """Return a function for each of `METHODS` that draws its maps: (images, target) to (N, T, H, W), on the CPU.

    Parameters
    ----------
    plain : nn.Module
        The classifier that the seven methods explain.
    own : nn.Module
        The XCNN, whose map is drawn by its generator.
    known : tensor (M, C, H, W)
        Training images, prepared, on which patterns are fitted.
    bounds : (float, float)
        Lowest and highest value of a prepared pixel, for deep Taylor.
    """
    where = next(plain.parameters()).device
    patterns = attribution.fit_patterns(plain, known.to(where), "two-component")
    extra = {
        "deep_taylor": {"bounds": bounds},
        "patternnet": {"patterns": patterns},
        "pattern_attribution": {"patterns": patterns},
    }

    def drawer(method: str) -> Callable[[Tensor, int | Tensor], Tensor]:
        model, settings = own if method == "xcnn" else plain, extra.get(method, {})
        return lambda images, target: attribution.explain(method, model, images.to(where), target, **settings).cpu()

    return {method: drawer(method) for method in METHODS}


def own_maps(
    model: nn.Module, images: Tensor, prepare: Callable[[Tensor], Tensor] | None = None
) -> Float[Tensor, "n 1 h w"]:
    """Return the maps that an XCNN's generator draws of many images, with the sign that they have, on the CPU."""
    return training.predict(model, images, prepare, function=lambda network, batch: network.heatmap(batch))


def all_correct(
    logits: Iterable[Float[Tensor, "n k"]], labels: Int64[Tensor, " n"], count: int, seed: int = 0
) -> Tensor:
    """Return the indices of `count` images that all of several networks classify correctly, drawn by the seed.

    Where there are fewer, all of them; sorted. Without any network, every image counts.

    Raises
    ------
    ValueError
        There is no such image.
    """
    answers = [one.argmax(1) == labels for one in logits]
    right = torch.stack([torch.ones_like(labels, dtype=torch.bool), *answers]).all(0).nonzero()[:, 0]
    if not len(right):
        raise ValueError(f"logits: no image of {len(labels)} is classified correctly by all networks")
    order = torch.randperm(len(right), generator=torch.Generator().manual_seed(seed))
    return right[order[:count]].sort().values


def deletion_gains(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    maps: Mapping[Hashable, Float[Tensor, "n 1 h w"]],
    *,
    steps: int = 20,
    seed: int = 0,
) -> dict[Hashable, Float[Tensor, " n"]]:
    """Return how much faster the model loses its class by the order of each map than by a random order.

    Pixels become 0, which is the training mean of prepared images. The class is the one that the model predicts for the
    whole image. Range -1 / p0 to 1 / p0, higher is better, 0 is as good as a random order. Degenerate: 0 for a constant
    map, which names no order.

    Parameters
    ----------
    model : nn.Module
        The model that the maps explain.
    images : tensor (N, C, H, W)
        Prepared.
    maps : mapping
        {name: maps}, all of the same images.
    steps : int
        Pixels go in so many groups.
    seed : int
        Of the random order, another one for each image.
    """
    where = training.predict(model, images).argmax(1)

    def score(batch: Tensor) -> Tensor:
        return training.predict(model, batch).softmax(1).gather(1, where[:, None])[:, 0]

    noise = torch.rand(len(images), 1, *images.shape[2:], generator=torch.Generator().manual_seed(seed))
    random = faithfulness.deletion(score, images, noise, 0, steps, seed)
    start = random.scores[:, 0]
    gains = {}
    for name, drawn in maps.items():
        area = faithfulness.deletion(score, images, drawn, 0, steps, seed).area
        gains[name] = ((random.area - area) / start).nan_to_num(0)
    return gains


def map_sign(model: nn.Module, images: Float[Tensor, "n c h w"], steps: int = 20, seed: int = 0) -> int:
    """Return the sign (1 or -1) of an XCNN's map by a rule that needs neither masks nor labels, on *training* images.

    The sign with the larger mean of `deletion_gains`: positive is what the network misses first.

    Parameters
    ----------
    model : nn.Module
        An XCNN.
    images : tensor (N, C, H, W)
        Prepared training images.
    steps, seed : int
        As in `deletion_gains`.
    """
    drawn = own_maps(model, images)
    gains = deletion_gains(model, images, {1: drawn, -1: -drawn}, steps=steps, seed=seed)
    return 1 if gains[1].mean() >= gains[-1].mean() else -1


def inside(maps: Float[Tensor, "n 1 h w"], masks: Bool[Tensor, "n h w"]) -> Float[Tensor, " n"]:
    """Return `localisation.inside_share`, with the share of the mask's area for a map without positive part.

    Range 0 to 1, higher is better; so a map that says nothing counts as chance, and every image counts.
    """
    found, chance = localisation.inside_share(maps, masks), localisation.area_share(masks)
    return torch.where(found.isnan(), chance, found)


def inside_of_both(
    maps: Float[Tensor, "n 1 h w"], asked: Bool[Tensor, "n h w"], other: Bool[Tensor, "n h w"]
) -> Float[Tensor, " n"]:
    """Return the positive part of maps on the object asked for, as a share of that on both objects.

    Range 0 to 1, higher is better. A map that treats both alike has the share of their areas; so does, by definition,
    one without positive part on either.

    Raises
    ------
    ValueError
        An empty mask, masks of another size, maps that are not finite.
    """
    one, two = (localisation.inside_share(maps, mask) for mask in (asked, other))
    a, b = (localisation.area_share(mask) for mask in (asked, other))
    return torch.where(one + two > 0, one / (one + two), a / (a + b))


def detail(
    maps: Float[Tensor, "n 1 h w"], images: Float[Tensor, "n c h w"], masks: Bool[Tensor, "n h w"]
) -> Float[Tensor, " n"]:
    """Return the correlation, over the pixels of each mask, of the edges of the map with those of the image.

    Range -1 to 1; high means that the map shows the image's detail, whether or not it matters to the class. Degenerate:
    0 where either has no edges, or all equal ones, in the mask.

    Raises
    ------
    ValueError
        An empty mask, masks of another size, maps or images that are not finite.
    """
    weight, share, parts, told = masks.double(), localisation.area_share(masks), [], []
    for each in (maps, images):
        grey = each.double().mean(1, keepdim=True)
        localisation.is_constant(grey)  # checks it
        edges = generators.edges(grey)[:, 0]
        mean = (edges * weight).mean((1, 2)) / share
        parts.append((edges - mean[:, None, None]) * weight)
        size = (grey[:, 0].abs() * weight).amax((1, 2))
        told.append(parts[-1].square().mean((1, 2)).sqrt() > 1e-6 * size)  # else rounding alone
    one, two = parts
    found = (one * two).sum((1, 2)) / (one.square().sum((1, 2)) * two.square().sum((1, 2))).sqrt()
    return torch.where(told[0] & told[1], found, 0)


def lead(scores: Mapping[str, Mapping[int, float]], method: str, others: Sequence[str]) -> dict[int, float]:
    """Return, for each seed, the score of a method minus the highest among `others`: positive where it leads.

    Parameters
    ----------
    scores : mapping
        {method: {seed: score}}.
    method, others : str, sequence of str
        `method` itself is left out of `others`.
    """
    rivals = [scores[other] for other in others if other != method]
    return {seed: value - max(rival[seed] for rival in rivals) for seed, value in scores[method].items()}


def kept_for_gradients(function: Callable[[], object]) -> int:
    """Return the bytes of tensors that automatic differentiation keeps for its way back: the most at any of its starts.

    Counted where `function` calls ``torch.autograd.grad``; 0 where it never does. Each piece of memory counts once;
    weights and images do not count, since they are there anyway, nor does what a rule holds beside the graph.
    """
    with _Saved() as saved:
        function()
    return saved.most


class _Saved(TorchFunctionMode):
    """Looks at the graph behind the outputs whenever gradients are asked for."""

    most = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.autograd.grad:
            self.most = max(self.most, _saved_bytes(args[0]))
        return func(*args, **(kwargs or {}))


def _saved_bytes(outputs: Tensor | Sequence[Tensor]) -> int:
    """Return the bytes of the tensors saved in the graph behind some outputs."""
    waiting = [one.grad_fn for one in ([outputs] if isinstance(outputs, Tensor) else outputs)]
    seen, storages = set(), {}
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        saved = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        for one in tree_leaves([saved, getattr(node, "saved_tensors", ())]):
            if isinstance(one, Tensor) and not _is_there(one):
                storages[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
    return sum(storages.values())


def _is_there(tensor: Tensor) -> bool:
    """Say whether a saved tensor is a weight, a view of one, or a leaf that gradients are asked for."""
    owner = tensor if tensor._base is None else tensor._base
    return isinstance(owner, nn.Parameter) or (tensor.is_leaf and tensor.requires_grad)
