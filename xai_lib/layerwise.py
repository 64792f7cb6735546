"""A network's forward pass, call by call, so that each layer's backward pass can follow a rule of its own.

Rules of attribution (LRP, deep Taylor, Excitation Backprop, ...) belong to layers, but a network is any Python code:
layers as modules, as functions, used twice, joined by a plus sign. `Layerwise` sees every call of torch in the forward
pass, gives each layer to a rule as an `nn.Module` that does the same, and names the layer for which there is none.
Nothing of the network is replaced or copied, so there is nothing to put back but its mode and its flags.

Deviation from zennit, whose rules are used: it finds layers as modules and merges BatchNorm by their order in the
network; here both follow the data, which covers functional code and residual sums as well.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from xai_lib import calls, training


@dataclass(eq=False)
class Layer:
    """One layer of a forward pass.

    Attributes
    ----------
    name : str, the module in which it was called; its second call there ends in ``#2``
    module : nn.Module of one input that does what the call did, with BatchNorm merged
    """

    name: str
    module: nn.Module


Rule = Callable[[Layer, Tensor, Tensor], Tensor]


class _Ruled(torch.autograd.Function):
    """Output `y` of a layer with input `x`, whose backward pass is ``back(x, R)``."""

    @staticmethod
    def forward(ctx, x, y, back):
        ctx.save_for_backward(x)
        ctx.back = back
        return y.view_as(y)

    @staticmethod
    def backward(ctx, relevance):
        return ctx.back(*ctx.saved_tensors, relevance), None, None


def ruled(x: Tensor, y: Tensor, back: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return `y`, from which relevance R flows on to `x` as ``back(x, R)``."""
    return _Ruled.apply(x, y.detach(), back)


class Layerwise:
    """A context in which a network's forward pass follows a rule layer by layer, for ``output(images)``.

    The backward pass belongs inside as well. On leaving, also by an exception, the network's mode, flags and hooks are
    what they were.

    Parameters
    ----------
    model : nn.Module
        In eval mode inside.
    rule : callable
        ``rule(layer, x, y)`` with a `Layer`, its input and its output returns the output to go on with: `y`, whose
        backward pass is the gradient, or `ruled`.
    strict : bool
        Raise where a call is no layer that a rule could cover, and merge BatchNorm into the layer before it. Else any
        call runs as it is, and goes backward by its gradient.
    watch : str, optional
        Name of a module; its output is left in `watched`.
    """

    def __init__(self, model: nn.Module, rule: Rule, strict: bool = True, watch: str | None = None):
        self.model, self.rule, self.strict, self.watch = model, rule, strict, watch
        self.watched: Tensor | None = None
        self.names: list[str] = []
        self.uses: dict[str, int] = {}
        self.ruling = False  # a rule is at work; its own calls are no layers
        self.families: list[list[Tensor]] = []  # of tensors in one memory
        self.around = contextlib.ExitStack()

    def __enter__(self):
        with contextlib.ExitStack() as around:
            around.enter_context(training.evaluating(self.model))
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    around.callback(parameter.requires_grad_, True)
                    parameter.requires_grad_(False)
            for name, module in self.model.named_modules():
                around.callback(module.register_forward_pre_hook(functools.partial(self._enter, name)).remove)
                around.callback(module.register_forward_hook(functools.partial(self._leave, name)).remove)
            self.around = around.pop_all()
        return self

    def __exit__(self, *error):
        self.around.close()
        for family in self.families:  # they hold each other and the graph, which no garbage collector can see
            for one in family:
                vars(one).pop("family", None)
        self.families.clear()

    def _enter(self, name: str, *_):
        self.names.append(name)

    def _leave(self, name: str, module: nn.Module, inputs: tuple, output):
        self.names.pop()
        if name == self.watch:
            self.watched = output = self._resolved(output)
        return output

    def output(self, images: Tensor) -> Tensor:
        """Return the network's output for `images`, which require a gradient.

        Raises
        ------
        ValueError
            No rule covers a call, or a layer cannot take its input.
        """
        with _Seen(self):
            found = self.model(images)
        return self._resolved(_latest(found))

    def called(self, func: Callable, args: tuple, kwargs: dict):
        """Run a call of the pass, or say in one line which layer cannot take its input.

        Raises
        ------
        ValueError
            No rule covers the call, or torch refuses its input.
        """
        if self.ruling:
            return func(*args, **kwargs)
        try:
            return self._called(func, args, kwargs)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError) as error:
            shape = next((tuple(one.shape) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)), ())
            why = str(error).splitlines()[0]
            raise ValueError(f"images: {self._place()} cannot take an input of shape {shape}: {why}") from None

    def _called(self, func: Callable, args: tuple, kwargs: dict):
        """Run a call; one in place on a copy, which then stands for what was overwritten."""
        args, kwargs = tree_map(_latest, (args, kwargs))
        if not any(map(calls.is_tracked, tree_leaves((args, kwargs)))):
            return func(*args, **kwargs)
        if not calls.is_in_place(func, kwargs) or not calls.is_tracked(args[0]):
            return self._ran(func, args, kwargs)
        target = args[0]
        if func in calls.OUT_OF_PLACE or func in calls.LAYERS:
            changed = result = self._ran(calls.OUT_OF_PLACE.get(func, func), args, kwargs)
        elif self.strict:
            raise ValueError(f"model: no rule covers {_title(func)} in {self._place()}")
        else:
            changed = target.clone()
            result = func(changed, *args[1:], **kwargs)
        if changed is target:
            return result  # nothing was written: a dropout that is off
        target.overwritten = changed
        for other in calls.relatives(target):
            other.spoiled = f"model: {_title(func)} in {self._place()} writes in place into memory that others view"
        return result

    def _ran(self, func: Callable, args: tuple, kwargs: dict):
        if func not in calls.LAYERS and func not in calls.PASSIVE:
            result = func(*args, **kwargs)
            if not any(isinstance(one, Tensor) for one in tree_leaves(result)):
                return result  # a shape, a device: no step of the computation
            if self.strict:
                raise ValueError(f"model: no rule covers {_title(func)} in {self._place()}")
            return self._related(result, filter(calls.is_tracked, tree_leaves((args, kwargs))))
        if self.strict and func is functional.batch_norm and hasattr(args[0], "waiting"):
            merged = self._merged(*args, **kwargs)
            if merged is not None:
                return merged
        args, kwargs = tree_map(self._resolved, (args, kwargs))
        found = calls.LAYERS[func](func, *args, **kwargs) if func in calls.LAYERS else None
        if isinstance(found, str) and self.strict:
            raise ValueError(f"model: no rule covers {_title(func)} {found} in {self._place()}")
        if found is None or isinstance(found, str):
            sources = list(filter(calls.is_tracked, tree_leaves((args, kwargs))))
            return self._related(calls.inherited(func(*args, **kwargs), sources), sources)
        return found if isinstance(found, Tensor) else self._run(*found)

    def _related(self, result, sources: Iterable[Tensor]):
        """Note views of one memory, to be forgotten at the end of the pass."""
        calls.related(result, sources)
        self.families += [one.family for one in tree_leaves(result) if hasattr(one, "family")]
        return result

    def _run(self, module: nn.Module, x: Tensor) -> Tensor:
        """Run a layer; a linear one waits for a BatchNorm before its rule is applied."""
        name = self.names[-1] if self.names else ""
        self.uses[name] = self.uses.get(name, 0) + 1
        layer = Layer(name if self.uses[name] == 1 else f"{name}#{self.uses[name]}", module)
        if not (self.strict and isinstance(module, calls.LINEAR)):
            return self._finished(layer, x, module(x))
        with torch.no_grad():
            y = module(x)
        y.waiting = (layer, x)
        return y

    def _merged(self, y, mean, var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5) -> Tensor | None:
        """Return the output of a linear layer with the BatchNorm after it merged in, which waits in its turn."""
        layer, x = y.waiting
        if training or mean is None or (isinstance(layer.module, nn.Linear) and y.ndim != 2):
            return None
        y.is_merged = True
        scale = torch.rsqrt(var + eps) if weight is None else weight * torch.rsqrt(var + eps)
        shift = -mean * scale if bias is None else bias - mean * scale
        old = layer.module
        shift = shift if old.bias is None else shift + old.bias * scale
        merged = calls.with_weights(old, old.weight * scale.view(-1, *[1] * (old.weight.ndim - 1)), shift)
        with torch.no_grad():
            result = functional.batch_norm(y, mean, var, weight, bias, False, momentum, eps)
        result.waiting = (Layer(f"{layer.name}#merged" if hasattr(y, "finished") else layer.name, merged), x)
        return result

    def _resolved(self, y):
        """Return a tensor with the rule of the layer behind it applied, where that waited."""
        if not hasattr(y, "waiting"):
            return y
        if not hasattr(y, "finished"):
            layer, x = y.waiting
            if hasattr(y, "is_merged"):  # read with its BatchNorm and without
                layer = Layer(f"{layer.name}#raw", layer.module)
            y.finished = self._finished(layer, x, y)
        return y.finished

    def _finished(self, layer: Layer, x: Tensor, y: Tensor) -> Tensor:
        self.ruling = True
        y = self.rule(layer, x, y)
        if not y.requires_grad:  # the output of a linear layer as it came
            y = layer.module(x)
        self.ruling = False
        kept = calls.is_nonnegative(x) and isinstance(layer.module, (*calls.MEANS, calls.MaxPool))
        return calls.inherited(y, [x], layer.name, kept or isinstance(layer.module, calls.RECTIFIERS))

    def _place(self) -> str:
        name = self.names[-1] if self.names else ""
        return f"layer {name!r}" if name else f"the forward of {type(self.model).__name__}"


class _Seen(TorchFunctionMode):
    """Hands every call of torch to a `Layerwise`."""

    def __init__(self, network: Layerwise):
        super().__init__()
        self.network = network

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self.network.called(func, args, kwargs or {})


def _latest(x):
    """Return what calls in place have made of a tensor."""
    while hasattr(x, "overwritten"):
        x = x.overwritten
    spoiled = getattr(getattr(x, "finished", x), "spoiled", None)
    if spoiled:
        raise ValueError(spoiled)
    return x


def check(model: nn.Module, images: Tensor) -> None:
    """Check that a model can take a batch of images.

    Raises
    ------
    ValueError
        The images are not (N, C, H, W), float32 or float64 and finite, or differ from the model in type or device.
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images must be (N, C, H, W), at least one; got shape {tuple(images.shape)}")
    if images.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"images must be float32 or float64; got {images.dtype}")
    if not images.isfinite().all():
        bad = (~images.isfinite()).flatten(1).any(1).nonzero()[:, 0]
        raise ValueError(f"images must be finite; image {bad[0].item()} holds NaN or infinity ({len(bad)} such in all)")
    for one in model.parameters():
        if one.is_floating_point() and (one.dtype, one.device) != (images.dtype, images.device):
            wanted = f"{images.dtype} on {images.device} as the images are"
            raise ValueError(f"model must be {wanted}; it is {one.dtype} on {one.device}")


def _title(func: Callable) -> str:
    return getattr(func, "__name__", str(func))
