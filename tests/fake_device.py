"""
A fake accelerator. Its tensors are stored and computed on the host but claim to be on another device. Code that chooses by
device therefore runs its version for accelerators, and mixing tensors of two devices is an error. Each time that the host
reads a value from the device is counted, because a real accelerator would have to finish all its work first.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch as th
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = "lazy"
"""A device type that PyTorch knows by name but has no kernels for."""

READINGS = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "unique_consecutive", "equal"}
"""Operations whose result, or its size, the host must know; ``item``, ``bool`` and ``int`` call the first of them."""


class OnDevice(th.Tensor):
    """
    A tensor on the fake device.

    :param host: the tensor on the host that holds its values
    """

    host: th.Tensor

    @staticmethod
    def __new__(cls, host: th.Tensor) -> "OnDevice":
        layout = {"strides": host.stride(), "storage_offset": host.storage_offset(), "dtype": host.dtype}
        made: Any = th.Tensor._make_wrapper_subclass(cls, host.shape, **layout, device=DEVICE)
        made.host = host
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("A tensor of the fake device is used outside of the context in which the device exists.")

    def tolist(self) -> Any:
        return self.cpu().tolist()


class HostGenerator(th.Generator):
    """A random generator of the fake device, whose numbers are drawn on the host."""

    def __new__(cls, device: th.device | str = "cpu") -> "HostGenerator":
        return super().__new__(cls)

    def __init__(self, device: th.device | str = "cpu"):
        self.pretended = th.device(device)

    @property
    def device(self) -> th.device:
        return self.pretended


class FakeDevice(TorchDispatchMode):
    """Computes on the fake device, and counts by operation how often the host reads from it."""

    def __init__(self) -> None:
        super().__init__()
        self.readings: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, th.Tensor)]
        ours = any(isinstance(each, OnDevice) for each in tensors)
        target = None if kwargs.get("device") is None else th.device(kwargs["device"])
        if ours:
            self._count(name, args, target)
            _check_devices(name, tensors, target)
        stays = ours if target is None else target.type == DEVICE
        if target is not None:
            kwargs["device"] = "cpu"
        result = func(*tree_map(_host, args), **tree_map(_host, kwargs))
        if not stays:
            return result
        result = tree_map(lambda each: OnDevice(each) if isinstance(each, th.Tensor) else each, result)
        return return_and_correct_aliasing(func, args, kwargs, result) if ours else result

    def _count(self, name: str, args: Any, target: th.device | None) -> None:
        if name in READINGS:
            self.readings[name] += 1
        elif target is not None and target.type == "cpu":
            self.readings["copy to the host"] += 1
        elif name == "copy_" and not isinstance(args[0], OnDevice):
            self.readings["copy to the host"] += 1
        elif name in ("index", "index_put_", "_index_put_impl_") and any(map(_is_mask, args[1])):
            self.readings["mask"] += 1
        elif name == "repeat_interleave" and isinstance(args[0], OnDevice):  # the host must read the numbers of repeats
            self.readings[name] += 1

    @contextmanager
    def read(self) -> Iterator[Counter[str]]:
        """Counts the readings within the context."""
        self.readings.clear()
        yield self.readings


def _host(each: Any) -> Any:
    return each.host if isinstance(each, OnDevice) else each


def _is_mask(index: Any) -> bool:
    return isinstance(index, OnDevice) and index.dtype == th.bool


def _check_devices(name: str, tensors: list[th.Tensor], target: th.device | None) -> None:
    may_mix = target is not None or name in ("copy_", "index", "index_put_", "_index_put_impl_")
    if not may_mix and any(each.dim() > 0 and not isinstance(each, OnDevice) for each in tensors):
        raise AssertionError(f"{name} got tensors of two devices.")


@contextmanager
def fake_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDevice]:
    """
    :param monkeypatch: replaces the random generator and the check for fused optimizers, and restores them afterwards
    :return: a context in which the device exists
    """
    monkeypatch.setattr(th, "Generator", HostGenerator)
    fused = [*_foreach_utils._get_fused_kernels_supported_devices(), DEVICE]
    for each in (th.optim.Adam, th.optim.Optimizer):
        monkeypatch.setattr(sys.modules[each.__module__], "_get_fused_kernels_supported_devices", lambda: fused, raising=False)
    swaps = th.__future__.get_swap_module_params_on_conversion()
    th.__future__.set_swap_module_params_on_conversion(True)  # an optimizer keeps its parameters when a network is moved
    lifts = th._C._only_lift_cpu_tensors()
    th._C._set_only_lift_cpu_tensors(True)  # makes the copy in torch.tensor(..., device=...) visible
    try:
        with FakeDevice() as device:
            yield device
    finally:
        th.__future__.set_swap_module_params_on_conversion(swaps)
        th._C._set_only_lift_cpu_tensors(lifts)
