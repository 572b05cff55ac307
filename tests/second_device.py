"""A second device where there is none: what a GPU would refuse, refused on a CPU.

Tensors "on" torch's meta device are wrapped here around CPU tensors with the real data, and an operation
that mixes the two kinds fails, as one that mixes a CPU's tensors with a GPU's does. Import this before
anything of Bartleby, in a process of its own: it replaces parts of torch.
"""

from __future__ import annotations

import accelerate
import diffusers
import torch
import torch.optim.optimizer as torch_optimizer
import transformers.initialization  # noqa: F401  looks at torch.Generator when imported
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

DEVICE = torch.device("meta")
INDEXING = {"index.Tensor", "index_put_.default", "index_put.default", "_index_put_impl_.default"}


class Elsewhere(torch.Tensor):
    """A tensor whose data are on the CPU and that says it is on the second device."""

    @staticmethod
    def __new__(cls, data: torch.Tensor, requires_grad: bool | None = None):
        data = data.data_here if isinstance(data, Elsewhere) else data
        return torch.Tensor._make_wrapper_subclass(
            cls,
            data.shape,
            strides=data.stride(),
            storage_offset=data.storage_offset(),
            dtype=data.dtype,
            device=DEVICE,
            requires_grad=bool(requires_grad),
        )

    def __init__(self, data: torch.Tensor, requires_grad: bool | None = None):
        self.data_here = data.data_here if isinstance(data, Elsewhere) else data
        if requires_grad is not None:
            self._is_param = True

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})

    def __repr__(self) -> str:
        return f"Elsewhere({self.data_here})"

    def tolist(self):
        return self.data_here.tolist()


class SecondDevice(TorchDispatchMode):
    """Within, "meta" is a device that holds data."""

    def __enter__(self):
        self.lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *exception):
        torch._C._set_only_lift_cpu_tensors(self.lifted)
        return super().__exit__(*exception)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


def _run(operation, args, kwargs):
    name = operation.__name__
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    elsewhere = [isinstance(tensor, Elsewhere) for tensor in tensors]
    moves = name.startswith("_to_copy") or "copy_" in name
    if any(elsewhere) and not moves and name not in INDEXING:
        here = [t.shape for t, away in zip(tensors, elsewhere, strict=True) if not away and t.ndim]
        if here:
            raise RuntimeError(f"two devices in {name}: tensors of shapes {here} are on the CPU")
    device = kwargs.get("device")
    there = any(elsewhere) if device is None else torch.device(device) == DEVICE
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}

    def unwrapped(leaf):
        return leaf.data_here if isinstance(leaf, Elsewhere) else leaf

    result = operation(*tree_map(unwrapped, args), **tree_map(unwrapped, kwargs))
    if not there or name.startswith("_local_scalar"):
        return result

    def wrapped(tensor):
        for given in tensors:  # of an operation in place: the tensor itself
            if isinstance(given, Elsewhere) and given.data_here is tensor:
                return given
        return Elsewhere(tensor)

    return tree_map_only(torch.Tensor, wrapped, result)


def _making_then_moving(make):
    """torch.tensor makes nothing on meta; and what is made elsewhere must be seen on its way there."""

    def made(data, *args, device=None, **kwargs):
        if device is None or torch.device(device) != DEVICE:
            return make(data, *args, device=device, **kwargs)
        return make(data, *args, **kwargs).to(device)

    return made


class _Generator(torch.Generator):
    """A generator of the second device is one of the CPU, as its data are."""

    def __new__(cls, device="cpu"):
        device = "cpu" if torch.device(device) == DEVICE else device
        return torch._C.Generator.__new__(torch._C.Generator, device)


def _replace_parts_of_torch() -> None:
    torch.tensor, torch.as_tensor = map(_making_then_moving, (torch.tensor, torch.as_tensor))
    torch.Generator = _Generator
    torch.inference_mode = torch.no_grad  # which hides moves from a dispatch mode
    autocast = torch.autocast
    torch.autocast = lambda kind, *args, **kwargs: autocast(
        "cpu" if kind == "meta" else kind, *args, **kwargs
    )
    torch_optimizer._get_fused_kernels_supported_devices = lambda: ["cpu", "meta"]
    accelerate.Accelerator.device = property(lambda self: DEVICE)


assert diffusers.DDPMScheduler  # loaded before torch is changed
_replace_parts_of_torch()
