"""A second device on a machine that has none, to find code that mixes tensors of two devices.

Its tensors hold ordinary ones and compute with them, but say that they are elsewhere, and refuse to meet tensors of the
CPU wherever those of a GPU would. The name of the device is torch's "meta", which is the only other one whose backward
pass every build of torch can run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
CPU = torch.device("cpu")
_aten = torch.ops.aten
_CROSSING = {_aten._to_copy.default, _aten.copy_.default}
_JOINING = {_aten.cat.default, _aten.stack.default}
_INDEXING = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
    _aten._unsafe_index.Tensor,
}


class MixedDevicesError(RuntimeError):
    """What would fail on a GPU."""


class Elsewhere(Tensor):
    """A tensor of the other device; ``held`` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Elsewhere":
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.held.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.held!r})"


class _Operators(TorchDispatchMode):
    """Sees every operator, those that make a tensor out of nothing included."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = tree_flatten((args, kwargs))[0]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    asked = kwargs.get("device")
    if not ours and asked != DEVICE:
        return func(*args, **kwargs)
    if ours and len(ours) < len(tensors):
        _refuse_mixtures(func, args, tensors)
    if asked is not None:
        kwargs = {**kwargs, "device": CPU}
    outer = {id(tensor.held): tensor for tensor in ours}
    result = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    # Only a copy into a tensor of the CPU stays there without being told so.
    there = asked == DEVICE if asked is not None else func not in _CROSSING or isinstance(args[0], Elsewhere)

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in outer:  # an operator in place
            return outer[id(value)]
        return Elsewhere(value) if there else value

    return tree_map(wrap, result)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Elsewhere) else value


def _refuse_mixtures(func: Any, args: Any, tensors: list[Tensor]) -> None:
    """As CUDA: numbers without dimensions may come from the CPU, and so may the indices into a tensor of the device."""
    if func in _CROSSING:
        return
    strangers = [t for t in tensors if not isinstance(t, Elsewhere)]
    if func in _INDEXING and isinstance(args[0], Elsewhere):
        indices = [t for t in args[1] if t is not None]
        strangers = [t for t in strangers if not any(t is index for index in indices)]
    first = args[0] if args and isinstance(args[0], Tensor) else None
    in_place = func._schema.is_mutable and first is not None and not isinstance(first, Elsewhere)
    if in_place or any(t.ndim or func in _JOINING for t in strangers):
        places = ", ".join(f"{list(t.shape)} on {t.device.type}" for t in tensors)
        raise MixedDevicesError(f"{func}: tensors of two devices: {places}")


class _Generator(torch.Generator):
    """A generator that knows which device it was made for; the numbers come from the CPU in any case."""

    made_for: torch.device

    def __new__(cls, device: torch.device | str = "cpu") -> "_Generator":
        made: _Generator = super().__new__(cls)
        made.made_for = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.made_for


class _Functions(TorchFunctionMode):
    """What does not come to an operator as it was called: `torch.tensor`, and where a generator is from."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device) == DEVICE:
            return func(*args, **{**kwargs, "device": CPU}).to(DEVICE)
        result = func(*args, **kwargs)
        generator = kwargs.get("generator")
        if generator is not None and isinstance(result, Tensor) and generator.device != result.device:
            raise MixedDevicesError(f"{func}: a generator of {generator.device} for {result.device}")
        return result


@contextmanager
def other_device() -> Iterator[torch.device]:
    """A second device, in this thread, as long as this lasts."""
    import torch._dynamo  # noqa: PLC0415  # slow; torch does so itself at some factories, and had better not do it below

    with pytest.MonkeyPatch.context() as patch, _Functions(), _Operators():
        patch.setattr(torch, "Generator", _Generator)
        # In inference mode torch itself stumbles over tensors that hold others.
        patch.setattr(torch, "inference_mode", torch.no_grad)
        yield DEVICE
