"""What a computation costs: seconds, arithmetic, memory."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Cost:
    """The cost of one call.

    Attributes
    ----------
    seconds : float, median of the repetitions
    flops : int, floating-point operations of convolutions and matrix products, backward passes included
    memory : int, bytes of tensors made in the call, where most of them were alive at once
    """

    seconds: float
    flops: int
    memory: int


class _Counter(TorchDispatchMode):
    """Counts operations, and keeps the largest number of bytes of new tensors that were alive at once."""

    def __init__(self):
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.flops = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        known = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        result = func(*args, **kwargs)
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        self.storages = {key: kept for key, kept in self.storages.items() if not kept[0].expired()}
        for one in tree_leaves(result):
            if isinstance(one, Tensor) and (storage := one.untyped_storage())._cdata not in known:
                self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.storages.values()))
        return result


def cost(function: Callable[[], object], repeat: int = 3) -> Cost:
    """Measure a call: `repeat` times by the clock, after one call under counters that warms up as well.

    Times depend on the machine and on what else it does; flops and memory do not.

    Parameters
    ----------
    function : callable
        Without arguments.
    repeat : int
        1 or more.

    Raises
    ------
    ValueError
        `repeat` is below 1.
    """
    if repeat < 1:
        raise ValueError(f"repeat must be at least 1; got {repeat}")
    with _Counter() as counter:
        function()
    times = []
    for _ in range(repeat):
        begin = _now()
        function()
        times.append(_now() - begin)
    return Cost(statistics.median(times), counter.flops, counter.peak)


def _now() -> float:
    """Return seconds, once a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
