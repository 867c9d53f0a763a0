"""Tensors of numpy and PyTorch as dense bytes, and back, with at most one copy (none where they are dense already)."""
from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import InvalidArgumentError, UnimplementedError

_NUMPY_NAMES = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16"}  # bfloat16: of ml_dtypes


def is_torch(tensor: Any) -> bool:
    """Without importing PyTorch: whoever holds one of its tensors has done so."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(tensor, getattr(torch, "Tensor", ()))


@dataclass(frozen=True)
class Tensor:
    """A caller's tensor under its name in messages; `dtype` as the service calls it: f32, f64, bf16 or f16."""

    name: str
    value: Any
    shape: tuple[int, ...]
    dtype: str

    def bytes(self) -> memoryview:
        """Its elements in row-major order, little endian. Copies where they lie otherwise, or on another device."""
        if is_torch(self.value):
            return _torch_bytes(self.value.detach().to("cpu").contiguous())
        array = np.ascontiguousarray(self.value)
        if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
            array = array.byteswap()
        return array.reshape(-1).view(np.uint8).data

    def new(self, shape: tuple[int, ...], dtype: str) -> tuple[Any, memoryview]:
        """A tensor of the same library, on the CPU, with its bytes to be filled. `dtype` is this one's, f32 or f64."""
        if is_torch(self.value):
            import torch

            kind = self.value.dtype if dtype == self.dtype else getattr(torch, "float32" if dtype == "f32" else "float64")
            tensor = torch.empty(shape, dtype=kind, device="cpu")
            return tensor, _torch_bytes(tensor)
        kind = np.dtype("<f4" if dtype == "f32" else "<f8")
        array = np.empty(shape, self.value.dtype.newbyteorder("<") if dtype == self.dtype else kind)
        return array, array.reshape(-1).view(np.uint8).data

    def restored(self, tensor: Any) -> Any:
        """What `new` made, filled, on the device of this one."""
        return tensor.to(self.value.device) if is_torch(self.value) else tensor


def _torch_bytes(tensor: Any) -> memoryview:
    import torch

    array: np.ndarray[Any, Any] = tensor.view(-1).view(torch.uint8).numpy()
    return array.data


def _torch_dtype(name: str, tensor: Any, boolean: bool) -> str:
    import torch

    if tensor.requires_grad and torch.is_grad_enabled():
        raise UnimplementedError(
            f"{name} requires a gradient, and autograd does not see the client's calls: use ringserve.torch.context_parallel, "
            "or call it under torch.no_grad()")
    names = {torch.float32: "f32", torch.float64: "f64", torch.float16: "f16", torch.bfloat16: "bf16"}
    if boolean and tensor.dtype == torch.bool:
        return "bool"
    if tensor.layout != torch.strided or tensor.dtype not in names:
        raise InvalidArgumentError(f"{name} is {tensor.layout} of {tensor.dtype}: must be dense float32, float64, "
                                   "float16 or bfloat16")
    return names[tensor.dtype]


def tensor_of(name: str, value: Any, bf16_bits: bool = False, boolean: bool = False) -> Tensor:
    """`bf16_bits`: uint16 of numpy holds the bits of bf16. `boolean`: bool is a type, too, called "bool"."""
    if is_torch(value):
        return Tensor(name, value, tuple(value.shape), _torch_dtype(name, value, boolean))
    array = np.asarray(value)
    if boolean and array.dtype == np.bool_:
        return Tensor(name, array, array.shape, "bool")
    dtype = "bf16" if bf16_bits and array.dtype == np.uint16 else _NUMPY_NAMES.get(array.dtype.name)
    if dtype is None:
        raise InvalidArgumentError(
            f"{name} has dtype {array.dtype}: must be float32, float64, float16 or ml_dtypes.bfloat16, or uint16 with "
            'dtype="bf16"')
    return Tensor(name, array, array.shape, dtype)
