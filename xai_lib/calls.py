"""Calls of torch's functions as layers: what relevance needs to know of each.

`LAYERS` has a function for each kind of call. It takes the call as it came and returns ``(module, input)``, a layer of
one input that does the same; None where relevance follows the values by the plain gradient; a tensor, which is then the
result; or a text, why there is no rule.
"""

import functools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves
from zennit.layer import Sum


class Elementwise(nn.Module):
    """A call with its settings as a layer of one input, single values to single values: an activation, a scaling."""

    def __init__(self, function: Callable, *args, **kwargs):
        super().__init__()
        self.call = functools.partial(_call, function, args, kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the call gives for `x`."""
        return self.call(x)


class Rectifier(Elementwise):
    """An activation other than ReLU whose values are non-negative."""


class Upsample(Elementwise):
    """Interpolation: linear, without parameters."""


class MaxPool(Elementwise):
    """Maximum over windows: the winner takes all."""


class SpatialMean(nn.AdaptiveAvgPool2d):
    """Mean over all positions, with or without the empty dimensions."""

    def __init__(self, keepdim: bool):
        super().__init__(1)
        self.keepdim = keepdim

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C) or (N, C, 1, 1)."""
        return x.mean((2, 3), keepdim=self.keepdim)


LINEAR = (nn.Conv2d, nn.Linear)  # with weights, so that a BatchNorm can be merged
MEANS = (Sum, nn.AvgPool2d, nn.AdaptiveAvgPool2d, Upsample)  # linear, with non-negative weights and no parameters
RECTIFIERS = (nn.ReLU, Rectifier)


def is_tracked(x: object) -> bool:
    """Say whether a value of a pass was computed from the images."""
    return isinstance(x, Tensor) and (x.requires_grad or hasattr(x, "waiting"))


def is_nonnegative(x: Tensor) -> bool:
    """Say whether a tensor of a pass is non-negative by construction: it comes from ReLUs, sums and means of such."""
    return getattr(x, "nonnegative", False)


def passed(x: Tensor) -> frozenset[str]:
    """Return the names of the layers through which everything in a tensor of a pass has come."""
    return getattr(x, "passed", frozenset())


def inherited(result, sources: Iterable[Tensor], name: str | None = None, nonnegative: bool | None = None):
    """Return the result of a call with what is known of its `sources`: where they came through, and their sign.

    `name` is the layer that they passed in the call; `nonnegative` says that the result is so, or may not be.
    """
    sources = list(sources)
    through = frozenset.intersection(*map(passed, sources)) | ({name} if name is not None else set())
    sign = all(map(is_nonnegative, sources)) if nonnegative is None else nonnegative
    for one in tree_leaves(result):
        if isinstance(one, Tensor):
            one.passed, one.nonnegative = through, sign
    return result


def related(result, sources: Iterable[Tensor]):
    """Return the result of a call, noted where it is a view of the same memory as one of its sources."""
    for source in sources:
        for one in tree_leaves(result):
            if isinstance(one, Tensor) and one.untyped_storage().data_ptr() == source.untyped_storage().data_ptr():
                source.family = one.family = [*getattr(source, "family", [source]), one]
                for other in source.family:
                    other.family = source.family
    return result


def relatives(x: Tensor) -> list[Tensor]:
    """Return the other tensors of a pass that are views of the same memory."""
    x = getattr(x, "finished", x)
    return [one for one in getattr(x, "family", ()) if one is not x]


def is_in_place(func: Callable, kwargs: dict) -> bool:
    """Say whether a call overwrites its first argument."""
    name = getattr(func, "__name__", "")
    ends = name.endswith("_") and not name.endswith("__") and name not in ("requires_grad_", "share_memory_")
    return func in OUT_OF_PLACE or ends or name == "__setitem__" or kwargs.get("inplace") is True


def _call(function: Callable, args: tuple, kwargs: dict, x: Tensor) -> Tensor:
    return function(x, *args, **kwargs)


def with_weights(like: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Return a layer with the settings of another and weights of its own."""
    settings = {key: value for key, value in vars(like).items() if key[0] != "_" and key != "training"}
    return _stand_in(type(like), weight, bias, **settings)


def _stand_in(kind: type, weight: Tensor, bias: Tensor | None, **settings) -> nn.Module:
    """Make a layer around weights that are there, without drawing new ones."""
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    module.weight = nn.Parameter(weight.detach(), requires_grad=False)
    module.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))
    vars(module).update(settings, training=False)
    return module


def _pair(value) -> tuple | str:
    """Return a setting of a convolution as nn.Conv2d keeps it."""
    if isinstance(value, str):
        return value
    value = (value,) if isinstance(value, int) else tuple(value)
    return value * 2 if len(value) == 1 else value


def _conv2d(function, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    stride, padding, dilation = map(_pair, (stride, padding, dilation))
    sides = {"kernel_size": tuple(weight.shape[2:]), "stride": stride, "dilation": dilation}
    channels = {"in_channels": weight.shape[1] * groups, "out_channels": weight.shape[0], "groups": groups}
    edges = {"padding": padding, "padding_mode": "zeros", "transposed": False, "output_padding": (0, 0)}
    return _stand_in(nn.Conv2d, weight, bias, **sides, **channels, **edges), input


def _linear(function, input, weight, bias=None):
    return _stand_in(nn.Linear, weight, bias, in_features=weight.shape[1], out_features=weight.shape[0]), input


def _batch_norm(function, input, mean, var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    if training or mean is None:
        return "with batch statistics"
    return Elementwise(function, mean, var, weight, bias, False, momentum, eps), input


def _torch_batch_norm(function, input, weight, bias, mean, var, training, momentum, eps, cudnn_enabled):
    return _batch_norm(functional.batch_norm, input, mean, var, weight, bias, training, momentum, eps)


def _add(function, input, other, *, alpha=1):
    if not (is_tracked(input) and is_tracked(other)):
        return _scale(function, input, other, **({} if alpha == 1 else {"alpha": alpha}))
    if alpha != 1:
        return "with alpha"
    return Sum(-1), inherited(torch.stack(torch.broadcast_tensors(input, other), -1), (input, other))


def _scale(function, input, other=1, **kwargs):
    """A product with a constant or a sum with it: as the only source, the input has all of the relevance."""
    if is_tracked(input) and is_tracked(other):
        return "of two computed values"
    if is_tracked(other) and function in _functions("div __truediv__"):
        return "by a computed value"
    x, constant = (input, other) if is_tracked(input) else (other, input)
    if isinstance(constant, Tensor) and torch.broadcast_shapes(constant.shape, x.shape) != x.shape:
        return "with a constant of a larger shape"
    if x is input:
        return Elementwise(function, *(() if function in _functions("neg __neg__") else (other,)), **kwargs), x
    return Elementwise(lambda one: function(input, one, **kwargs)), x


def _mean(function, input, dim=None, keepdim=False, axis=None, **kwargs):
    dim = axis if dim is None else dim
    dims = {one % input.ndim for one in ((dim,) if isinstance(dim, int) else dim or ())}
    return (SpatialMean(keepdim), input) if input.ndim == 4 and dims == {2, 3} else "over other dimensions than 2 and 3"


def _relu(function, input, inplace=False):
    return nn.ReLU(), input


def _activation(function, input, *args, inplace=False, **kwargs):
    if args and isinstance(args[-1], bool):  # inplace by position; not done, as others may read the input later
        args = args[:-1]
    floor = args[0] if args else kwargs.get("min_val", -1)
    rectifies = function in _functions("sigmoid softplus relu6") or (function is functional.hardtanh and floor >= 0)
    return (Rectifier if rectifies else Elementwise)(function, *args, **kwargs), input


def _pool(kind):
    return lambda function, input, *args, **kwargs: (kind(*args, **kwargs), input)


def _max_pool(function, input, *args, **kwargs):
    return MaxPool(function, *args, **kwargs), input


def _interpolate(function, input, *args, **kwargs):
    mode = kwargs.get("mode", args[2] if len(args) > 2 else "nearest")
    if mode == "bicubic":
        return "by bicubic curves, whose weights have both signs,"
    return Upsample(function, *args, **kwargs), input


def _dropout(function, input, p=0.5, training=True, inplace=False, train=None):
    training = training if train is None else train  # torch.dropout's word
    return "that is active in eval mode" if training else input


def _functions(names: str) -> list[Callable]:
    """Return the functions of these names, wherever torch has them."""
    homes = (torch, Tensor, functional)
    found = [getattr(home, name, None) for name in names.split() for home in homes]
    return [one for one in found if callable(one)]  # torch.float is a type of numbers


LAYERS = {
    function: build
    for names, build in {
        "conv2d": _conv2d,
        "linear": _linear,
        "add __add__ __radd__": _add,
        "mul __mul__ __rmul__ div __truediv__ sub __sub__ rsub __rsub__ neg __neg__": _scale,
        "mean": _mean,
        "avg_pool2d": _pool(nn.AvgPool2d),
        "adaptive_avg_pool2d": _pool(nn.AdaptiveAvgPool2d),
        "max_pool2d adaptive_max_pool2d": _max_pool,
        "interpolate": _interpolate,
        "relu": _relu,
        "relu6 leaky_relu elu selu celu gelu silu mish tanh sigmoid softplus hardtanh hardswish softsign": _activation,
        "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout": _dropout,
    }.items()
    for function in _functions(names)
}
LAYERS |= {functional.batch_norm: _batch_norm, torch.batch_norm: _torch_batch_norm}
# Values change place and nothing else.
PASSIVE = set(
    _functions(
        "flatten unflatten view view_as reshape reshape_as permute transpose t swapaxes movedim contiguous clone to "
        "float double squeeze unsqueeze expand expand_as __getitem__ chunk split narrow select unbind cat concat stack "
        "pad flip roll pixel_shuffle channel_shuffle"
    )
)
OUT_OF_PLACE = {
    function: getattr(torch, name)
    for name in ("relu", "add", "mul", "div", "sub", "neg", "tanh", "sigmoid")
    for function in _functions(f"{name}_ __i{name}__")
}
