"""Draw a digit: XCNN reads each stroke in the browser, in plain JavaScript.

The network is handed over as a list of layers (`layers`), each of a type that ``digit.js`` knows. BatchNorm, as it is
in eval mode, is folded into the convolution before it, in float64: the outputs stay the same up to rounding.
"""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional

from xai_lib import data, training, xcnn
from xai_lib.widgets import base

SIDE = 28  # of the images that the drawing is prepared to


def layers(network: nn.Module, name: str = "network") -> list[dict]:
    """Return a network as the layers that it applies one after the other, in eval mode.

    Parameters
    ----------
    network : nn.Module
        `xcnn.Generator`, or `nn.Sequential` of convolution, BatchNorm (right after a convolution), ReLU, tanh, average
        and maximum pooling, flatten, linear.
    name : str
        What errors call it.

    Returns
    -------
    list of dict
        Each with ``type`` and, where the type has them, ``weight`` and ``bias`` (float32), ``padding``, ``side``.

    Raises
    ------
    ValueError
        A layer is of another type or has a setting that the browser does not know; names it.
    """
    found: list[dict] = []
    for path, layer in _leaves(network, name):
        if type(layer) is nn.BatchNorm2d:
            _fold(found, path, layer)
        elif type(layer) in _DESCRIBED:
            found.append(_DESCRIBED[type(layer)](path, layer))
        else:
            known = ", ".join(sorted(one.__name__ for one in [*_DESCRIBED, nn.BatchNorm2d]))
            raise ValueError(f"{path}: the browser knows no layer {type(layer).__name__}; it knows {known}")
    numbers = {"weight", "bias"}
    return [{key: one.float() if key in numbers else one for key, one in layer.items()} for layer in found]


def _leaves(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    if type(module) in (nn.Sequential, xcnn.Generator):
        for name, child in module.named_children():
            yield from _leaves(child, f"{path}.{name}")
    else:
        yield path, module


def _convolution(path: str, layer: nn.Conv2d) -> dict:
    steps = layer.stride == layer.dilation == (1, 1) and layer.groups == 1
    one_padding = not isinstance(layer.padding, str) and len(set(layer.padding)) == 1
    if not steps or not one_padding or layer.padding_mode != "zeros":
        raise ValueError(f"{path}: the browser knows stride, dilation, groups of 1 and one padding of 0, got {layer}")
    return {"type": "convolution", "padding": layer.padding[0], **_numbers(layer)}


def _linear(path: str, layer: nn.Linear) -> dict:
    return {"type": "linear", **_numbers(layer)}


def _numbers(layer: nn.Conv2d | nn.Linear) -> dict:
    weight = layer.weight.detach().cpu().double()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().cpu().double()
    return {"weight": weight, "bias": bias}


def _flatten(path: str, layer: nn.Flatten) -> dict:
    if (layer.start_dim, layer.end_dim) != (1, -1):
        raise ValueError(f"{path}: the browser flattens all but the batch, got {layer}")
    return {"type": "flatten"}


def _pooling(path: str, layer: nn.MaxPool2d | nn.AvgPool2d) -> dict:
    plain = type(layer)(layer.kernel_size)
    differs = any(getattr(plain, name) != getattr(layer, name) for name in layer.__constants__)
    if differs or not isinstance(layer.kernel_size, int):
        raise ValueError(f"{path}: the browser knows pooling of whole squares side by side, got {layer}")
    return {"type": "maximum" if type(layer) is nn.MaxPool2d else "mean", "side": layer.kernel_size}


_DESCRIBED = {
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    nn.MaxPool2d: _pooling,
    nn.AvgPool2d: _pooling,
    nn.ReLU: lambda path, layer: {"type": "relu"},
    nn.Tanh: lambda path, layer: {"type": "tanh"},
    nn.Flatten: _flatten,
    xcnn.BilinearUpsample: lambda path, layer: {"type": "upsampling"},
}


def _fold(found: list[dict], path: str, norm: nn.BatchNorm2d) -> None:
    """Let the convolution that was found last do what BatchNorm does behind it in eval mode."""
    last = found[-1] if found else {"type": "nothing"}
    if last["type"] != "convolution" or len(last["bias"]) != norm.num_features or norm.running_mean is None:
        raise ValueError(f"{path}: BatchNorm2d must keep averages and follow a convolution; it follows {last['type']}")
    mean, variance = norm.running_mean.cpu().double(), norm.running_var.cpu().double()
    factor = (variance + norm.eps).rsqrt()
    shift = -mean * factor
    if norm.affine:
        gain = norm.weight.detach().cpu().double()
        factor, shift = factor * gain, shift * gain + norm.bias.detach().cpu()
    last["weight"], last["bias"] = last["weight"] * factor[:, None, None, None], last["bias"] * factor + shift


def replay(found: list[dict], images: Tensor) -> Tensor:
    """Return what `layers` give when they are applied as the browser applies them, by torch.

    Parameters
    ----------
    found : list of dict
    images : float tensor (N, C, H, W)
        Upsampling goes to their height and width.
    """
    act = {
        "convolution": lambda x, one: functional.conv2d(x, one["weight"], one["bias"], padding=one["padding"]),
        "linear": lambda x, one: functional.linear(x, one["weight"], one["bias"]),
        "maximum": lambda x, one: functional.max_pool2d(x, one["side"]),
        "mean": lambda x, one: functional.avg_pool2d(x, one["side"]),
        "upsampling": lambda x, one: xcnn.BilinearUpsample()(x, images.shape[-2:]),
        "relu": lambda x, one: x.relu(),
        "tanh": lambda x, one: x.tanh(),
        "flatten": lambda x, one: x.flatten(1),
    }
    x = images
    for one in found:
        x = act[one["type"]](x, one)
    return x


def parts(model: xcnn.XCNN) -> tuple[list[dict], list[dict]]:
    """Return the `layers` of generator and classifier.

    A classifier that takes several channels gets the heatmap in each; here it takes one, with the sum of their weights.

    Raises
    ------
    ValueError
        As `layers`.
    """
    generator, discriminator = layers(model.generator, "generator"), layers(model.discriminator, "discriminator")
    if model.channels > 1:
        first = next(one for one in discriminator if one["type"] == "convolution")
        first["weight"] = first["weight"].sum(1, keepdim=True)
    return generator, discriminator


class Digit(base.Widget):
    """Draw a digit and see the heatmap and the classes' probabilities change with each stroke.

    Parameters
    ----------
    model : xcnn.XCNN
        Takes grey images of 28x28; of the layers that `layers` knows.
    prepare : data.Normalize
        As the network was trained.
    samples : data.ImageSet
        Digits that the reader can begin with, uint8 (N, 1, 28, 28), 1 to 100; the names of the classes.
    sign : {1, -1}
        Of the maps that are shown, see `xcnn.map_sign`.

    Raises
    ------
    ValueError
        A layer is unknown to the browser, the network takes other images or has other classes, or there are no samples.
    """

    _esm = base.source("digit")
    _css = base.style()

    def __init__(self, model: nn.Module, prepare: data.Normalize, samples: data.ImageSet, sign: int = 1) -> None:
        _check(model, samples, sign)
        generator, discriminator = (
            [{name: _packed(value) for name, value in one.items()} for one in part] for part in parts(model)
        )
        shown = {
            "generator": generator,
            "discriminator": discriminator,
            "mean": float(prepare.mean),
            "std": float(prepare.std),
            "sign": sign,
            "classes": list(samples.classes),
            "samples": base.pack(samples.images.cpu().numpy(), "uint8"),
            "labels": samples.labels.tolist(),
        }
        super().__init__(shown, "Draw a digit")


def _packed(value: object) -> object:
    return base.pack(value.numpy(), "float32") if isinstance(value, Tensor) else value


def _check(model: nn.Module, samples: data.ImageSet, sign: int) -> None:
    shape, classes = tuple(samples.images.shape), len(samples.classes)
    if not isinstance(model, xcnn.XCNN):
        raise ValueError(f"model must be an xcnn.XCNN; got {type(model).__name__}")
    if shape[1:] != (1, SIDE, SIDE) or not 1 <= shape[0] <= 100:
        raise ValueError(f"samples must be 1 to 100 images (N, 1, {SIDE}, {SIDE}); got shape {shape}")
    if sign not in (1, -1):
        raise ValueError(f"sign must be 1 or -1; got {sign}")
    parts(model)  # says which layer is unknown
    try:
        found = tuple(training.predict(model, samples.images[:1].float()).shape)
    except RuntimeError as error:
        raise ValueError(f"model must take grey images of {SIDE}x{SIDE}: {str(error).splitlines()[0]}") from None
    if found != (1, classes):
        raise ValueError(f"model must give a logit for each of {classes} classes; got shape {found} for one image")
