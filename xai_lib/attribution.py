"""Eleven ways to draw a heatmap, behind one door: ``explain(method, model, images, target)``.

=============================  =======================================================  ==========================
name                           source                                                   starts from
=============================  =======================================================  ==========================
``gradient``                   Simonyan et al. 2013                                     1
``guided_backprop``            Springenberg et al. 2015                                 1
``deconvolution``              Zeiler, Fergus 2014                                      1
``deep_taylor``                Montavon et al. 2017, bounded rule at the pixels         the logit
``lrp``                        Bach et al. 2015, the XCNN paper's preset                the logit
``patternnet``                 Kindermans et al. 2017                                   1
``pattern_attribution``        Kindermans et al. 2017                                   the logit
``excitation_bp``              Zhang et al. 2016, see `excitation`                      1
``contrastive_excitation_bp``  the same, c-MWP                                          1, and 1 at the dual unit
``grad_cam``                   Selvaraju et al. 2017, equations 1 and 2                 1
``xcnn``                       Tavanaei 2020, equation 1: the generator's own map       nothing: one map for all
=============================  =======================================================  ==========================

zennit's rules do the arithmetic of all that it has. Its normaliser adds `epsilon` with the sign of the sum. Choices:
``lrp`` is the epsilon rule in dense layers and alpha1-beta0 in convolutions, where (positive) biases take their share;
``deep_taylor`` leaves biases out, so that relevance is conserved wherever a neuron has a positive contribution: what
reaches one that is active by its bias alone is lost. Averages, upsampling and residual sums share
relevance by contribution, a maximum gives it to the winner, and what has one source alone (an activation, a scaling, a
BatchNorm that follows no layer with weights) hands it on.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from zennit import composites, core, rules
from zennit.types import Convolution, Linear

from xai_lib import calls, excitation, training
from xai_lib.excitation import pixel_probabilities
from xai_lib.layerwise import Layer, Layerwise, check, ruled
from xai_lib.patterns import Patterns, fit_patterns

__all__ = ["METHODS", "explain", "fit_patterns", "pixel_probabilities"]

_GRADIENTS = ("gradient", "guided_backprop", "deconvolution", "grad_cam")
_RELEVANCE = ("deep_taylor", "lrp", "pattern_attribution")  # start from the value of the logit
METHODS = (
    *_GRADIENTS[:3],
    *_RELEVANCE[:2],
    "patternnet",
    "pattern_attribution",
    *excitation.METHODS,
    "grad_cam",
    "xcnn",
)


@torch.inference_mode(False)
@torch.enable_grad()
def explain(
    method: str,
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    target: int | Tensor,
    *,
    layer: str | None = None,
    bounds: tuple[float | Tensor, float | Tensor] = (0.0, 1.0),
    composite: core.Composite | None = None,
    patterns: Patterns | None = None,
    epsilon: float = 1e-6,
    batch_size: int = 100,
) -> Float[Tensor, "n t h w"]:
    """Draw one heatmap per image, or one for each of several targets: signed sums over channels.

    Parameters
    ----------
    method : str
        One of `METHODS`.
    model : nn.Module
        Images to logits (N, K); in eval mode for the time, and left as it was. The layers may be modules or functions,
        used once or twice, joined by sums; a call that no rule covers is an error that names it.
    images : float tensor (N, C, H, W)
        As the model takes them.
    target : int or int64 tensor (N,) or (N, T)
        The logit to explain: one for all, one per image, or T per image.
    layer : str, optional
        ``grad_cam`` and Excitation Backprop: the module whose output carries the map. Default: for ``grad_cam`` the
        last activations with more than one position that all paths pass, for Excitation Backprop see `excitation`
        (``""``: the pixels).
    bounds : (float or tensor, float or tensor)
        ``deep_taylor``: lowest and highest value of the pixels; a tensor (C, 1, 1) where channels differ.
    composite : zennit Composite, optional
        ``lrp``: its rules in place of the preset's.
    patterns : Patterns
        ``patternnet`` and ``pattern_attribution``: what `fit_patterns` returned for this model.
    epsilon : float
        Stabiliser of the relevance rules.
    batch_size : int
        Images at a time, which bounds the memory; without effect on the maps.

    Returns
    -------
    float tensor (N, 1, H, W), or (N, T, H, W) for a target (N, T)

    Raises
    ------
    ValueError
        Bad arguments, images that the model cannot take, a layer that no rule covers.
    """
    _check(method, composite, patterns, epsilon, batch_size)
    check(model, images)
    targets = _targets(target, len(images)).to(images.device)
    if method == "xcnn":
        return _own_map(model, images, batch_size).repeat(1, targets.shape[1], 1, 1)
    if method == "deep_taylor":
        bounds = _bounds(bounds, images)
    if layer and layer not in dict(model.named_modules()):
        some = ", ".join(name for name, _ in list(model.named_modules())[1:6])
        raise ValueError(f"layer must be a module of the model ({some}, ...); got {layer!r}")
    draw = {
        **{name: partial(_excited, contrastive=name.startswith("c"), layer=layer) for name in excitation.METHODS},
        "grad_cam": partial(_grad_cam, layer=layer),
    }.get(method) or partial(_backward, _rule(method, bounds, composite, patterns, epsilon), method)
    parts = zip(images.split(batch_size), targets.split(batch_size), strict=True)
    return torch.cat([draw(model, *part) for part in parts])


def _backward(make: Callable, method: str, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Return (N, T, H, W) maps: one forward pass under a rule, one backward pass for each of T targets."""
    images = images.detach().clone().requires_grad_()
    with Layerwise(model, make(), strict=method not in _GRADIENTS) as network:
        logits = _checked_logits(network.output(images), targets)
        found = []
        for one in targets.T:
            chosen = logits.gather(1, one[:, None])
            start = chosen.detach() if method in _RELEVANCE else torch.ones_like(chosen)
            found.append(torch.autograd.grad(chosen, images, start, retain_graph=True)[0].sum(1))
    return torch.stack(found, 1)


def _excited(model: nn.Module, images: Tensor, targets: Tensor, **settings) -> Tensor:
    return excitation.maps(model, images, lambda logits: (_checked_logits(logits, targets), targets)[1], **settings)


def _grad_cam(model: nn.Module, images: Tensor, targets: Tensor, layer: str | None) -> Tensor:
    """Return ReLU of the activations weighted by their mean gradient, upsampled (N, T, H, W)."""
    places: dict[str, Tensor] = {}

    def keep(one: Layer, x: Tensor, y: Tensor) -> Tensor:
        carries = isinstance(one.module, (*calls.LINEAR, *calls.RECTIFIERS, calls.Sum))
        if carries and y.ndim == 4 and y.shape[2] * y.shape[3] > 1:
            places[one.name] = y
        return y

    images = images.detach().clone().requires_grad_()
    with Layerwise(model, keep, strict=False, watch=layer or None) as network:
        logits = _checked_logits(network.output(images), targets)
        on_all_paths = [name for name in places if name in calls.passed(logits)]
        place = network.watched if layer else places.get((on_all_paths or [*places] or [""])[-1])
        if not isinstance(place, Tensor) or place.ndim != 4:
            raise ValueError(f"layer must give (N, C, h, w) activations for grad_cam; got {layer!r} in {_name(model)}")
        found = []
        for one in targets.T:
            (slope,) = torch.autograd.grad(logits.gather(1, one[:, None]).sum(), place, retain_graph=True)
            found.append((slope.mean((2, 3), keepdim=True) * place.detach()).sum(1).clamp(min=0))
    return functional.interpolate(torch.stack(found, 1), size=images.shape[2:], mode="bilinear", align_corners=False)


def _own_map(model: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    if not hasattr(model, "generator"):
        raise ValueError(f"model must be an XCNN for method 'xcnn', with a generator; got {_name(model)}")
    with torch.no_grad(), training.evaluating(model):
        return torch.cat([model.heatmap(batch) for batch in images.split(batch_size)])


def _rule(method: str, bounds: Sequence, composite: core.Composite | None, fitted: Patterns | None, epsilon: float):
    """Return a function that makes the rule of a method for one forward pass."""
    if method == "gradient":
        return lambda: lambda layer, x, y: y
    if method in ("guided_backprop", "deconvolution"):
        hook = rules.ReLUGuidedBackprop() if method == "guided_backprop" else rules.ReLUDeconvNet()
        return lambda: lambda layer, x, y: by_hook(hook, layer, x, y) if isinstance(layer.module, nn.ReLU) else y
    if method.startswith("pattern"):
        return lambda: partial(_by_pattern, fitted, method == "pattern_attribution")
    if composite is None:
        weighted = _preset(method, epsilon)
        composite = composites.LayerMapComposite(layer_map=composites.layer_map_base(epsilon) + weighted)
    return lambda: partial(_by_composite, composite, {}, epsilon, bounds if method == "deep_taylor" else None)


def _preset(method: str, epsilon: float) -> list[tuple]:
    if method == "deep_taylor":
        return [(Linear, rules.ZPlus(epsilon, zero_params="bias"))]
    return [(Convolution, rules.ZPlus(epsilon)), (Linear, rules.Epsilon(epsilon))]


def by_hook(hook: core.Hook, layer: Layer, x: Tensor, y: Tensor) -> Tensor:
    """Return `y`, from which relevance flows to `x` by a zennit rule, without running the layer again."""
    hook, y = hook.copy(), y.detach()  # not `y` itself: it knows the output that holds this rule, a circle
    keywords = [{}] if len(inspect.signature(hook.forward).parameters) == 4 else []  # since zennit 1.0
    hook.forward(layer.module, (x.detach(),), *keywords, y)

    def back(x: Tensor, relevance: Tensor) -> Tensor:
        # Only rules for ReLUs read the gradient itself; the others want its shape.
        slope = relevance * (y > 0) if isinstance(layer.module, nn.ReLU) else x
        found = hook.backward(layer.module, (slope,), (relevance,))
        return slope if found is None else found[0]

    return ruled(x, y, back)


def _by_composite(composite, context: dict, epsilon: float, bounds, layer: Layer, x: Tensor, y: Tensor) -> Tensor:
    """Follow a composite, and where it is silent: share by contribution, or hand on."""
    module = layer.module
    if bounds is not None and isinstance(module, calls.LINEAR) and not context.get("pixels"):
        context["pixels"] = True
        low, high = (_like_input(one, x) for one in bounds)
        return by_hook(rules.ZBox(low, high, epsilon, zero_params="bias"), layer, x, y)
    hook = composite.module_map(context, layer.name, module)
    if hook is not None:
        return by_hook(hook, layer, x, y)
    if isinstance(module, calls.LINEAR):
        raise ValueError(f"composite: no rule for layer {layer.name!r} ({type(module).__name__})")
    if isinstance(module, calls.MEANS):
        return by_hook(rules.Norm(epsilon), layer, x, y)
    return y if isinstance(module, calls.MaxPool) else ruled(x, y, lambda x, relevance: relevance)


def _by_pattern(fitted: Patterns, attribution: bool, layer: Layer, x: Tensor, y: Tensor) -> Tensor:
    """Go back through patterns, or weights times patterns, in place of weights."""
    module = layer.module
    if isinstance(module, calls.LINEAR):
        pattern = fitted.of.get(layer.name)
        if pattern is None or pattern.shape != module.weight.shape:
            found = "none" if pattern is None else tuple(pattern.shape)
            raise ValueError(
                f"patterns do not fit the model: layer {layer.name!r} has weights {tuple(module.weight.shape)}, "
                f"its pattern: {found}"
            )
        pattern = pattern.to(x)
        stand_in = calls.with_weights(module, module.weight * pattern if attribution else pattern, None)
        return ruled(x, y, lambda x, relevance: torch.func.vjp(stand_in, x)[1](relevance)[0])
    smooth = isinstance(module, calls.Elementwise) and not isinstance(module, (calls.MaxPool, calls.Upsample))
    return ruled(x, y, lambda x, relevance: relevance) if attribution and smooth else y


def _like_input(bound: Tensor, x: Tensor) -> Tensor:
    """Return bounds (C, H, W) of the pixels in the shape of a layer's input, where it holds the pixels."""
    if bound.numel() == x[0].numel():
        return bound.reshape(1, *x.shape[1:])
    if bound.unique().numel() == 1:
        return bound.flatten()[:1].reshape(1, *[1] * (x.ndim - 1)).expand(1, *x.shape[1:])
    raise ValueError(f"bounds per channel need a first layer that takes the pixels; it takes {tuple(x.shape[1:])}")


def _bounds(bounds: Sequence, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest and highest values of the pixels as tensors (C, H, W)."""
    one = [torch.as_tensor(bound).to(images) for bound in bounds]
    try:
        low, high = (bound.broadcast_to(1, *images.shape[1:])[0] for bound in one)
    except RuntimeError:
        shapes = [tuple(bound.shape) for bound in one]
        raise ValueError(f"bounds must be numbers or of shape (C, 1, 1); got shapes {shapes}") from None
    if not (low < high).all():
        raise ValueError(f"bounds must be (lowest, highest); got {low.max().item():g} and {high.min().item():g}")
    slack = 1e-4 * (high - low)
    if ((images < low - slack) | (images > high + slack)).any():
        reach = f"{images.min().item():.3g} to {images.max().item():.3g}"
        raise ValueError(
            f"bounds ({low.min().item():g}, {high.max().item():g}) must hold all pixels; images reach from {reach}"
        )
    return low, high


def _check(method: str, composite: core.Composite | None, patterns: Patterns | None, epsilon: float, batch_size: int):
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if composite is not None and method != "lrp":
        raise ValueError(f"composite is for lrp; got one with {method}")
    if method.startswith("pattern") and patterns is None:
        raise ValueError(f"patterns must be given for {method}: attribution.fit_patterns(model, images); got None")
    if not 0 < epsilon < float("inf"):
        raise ValueError(f"epsilon must be above 0 and finite; got {epsilon}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")


def _targets(target: int | Tensor, count: int) -> Tensor:
    """Return targets as (N, T)."""
    found = torch.as_tensor(target)
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise ValueError(f"target must be whole numbers; got {found.dtype}")
    if found.ndim == 0:
        found = found.expand(count)
    if found.ndim not in (1, 2) or len(found) != count or not found.numel():
        raise ValueError(f"target must be a number, (N,) or (N, T) for {count} images; got shape {tuple(found.shape)}")
    return found.long().reshape(count, -1)


def _checked_logits(logits: object, targets: Tensor) -> Tensor:
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model must return logits (N, K); got {found}")
    if targets.min() < 0 or targets.max() >= logits.shape[1]:
        wrong = targets.min().item() if targets.min() < 0 else targets.max().item()
        raise ValueError(f"target must lie between 0 and {logits.shape[1] - 1}; got {wrong}")
    return logits


def _name(model: nn.Module) -> str:
    return type(model).__name__
