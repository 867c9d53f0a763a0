"""PyTorch programs without a change of their model: a scope in which scaled_dot_product_attention is served.

    with ringserve.torch.context_parallel(client) as scope:
        y = model(x)
    print(scope.calls)

Forward only: a call whose tensors require a gradient is refused, so wrap it in torch.no_grad(). What is served are the
calls of torch.nn.functional.scaled_dot_product_attention that Python makes, those of nn.MultiheadAttention
(need_weights=False) included, also of functions that torch.compile compiled; not those inside TorchScript.
"""
from __future__ import annotations

import contextlib
import math
import threading
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from . import masks
from .client import Client
from .errors import InvalidArgumentError, UnimplementedError
from .masks import Mask
from .results import Statistics

_SERVED = frozenset({functional.scaled_dot_product_attention, torch.ops.aten.scaled_dot_product_attention,
                     torch.ops.aten.scaled_dot_product_attention.default})

# PyTorch's own, but that it does not hand itself over to the scope again: so that the scope sees the call inside it.
_multi_head_attention = types.FunctionType(
    functional.multi_head_attention_forward.__code__,
    {**vars(functional), "has_torch_function": lambda tensors: False},
    argdefs=functional.multi_head_attention_forward.__defaults__)
_multi_head_attention.__kwdefaults__ = functional.multi_head_attention_forward.__kwdefaults__


class context_parallel(contextlib.ContextDecorator):
    """While it lasts, scaled_dot_product_attention on this thread is computed by the service. Also a decorator.

    `mask`: one, or one per batch row, that holds beside what a call says by is_causal and attn_mask. `local_fallback`:
    what cannot be served (dropout, gradients) runs here instead of raising, which a warning says once. Further options
    (balancer, rotate, workers, deadline, ...) are those of Client.attend. Scopes nest, the innermost serves; one scope
    may be entered by several threads; nothing is left of it after an exception.

    `calls`: how many were served; `statistics`: of the last.
    """

    def __init__(self, client: Client, *, mask: Mask | Sequence[Mask] | None = None, local_fallback: bool = False,
                 **options: Any) -> None:
        self.calls = 0
        self.statistics: Statistics | None = None
        self._client = client
        self._mask: list[Mask] = [mask] if isinstance(mask, Mask) else list(mask or ())
        self._local_fallback, self._warned = local_fallback, False
        self._options = options
        self._lock = threading.Lock()
        self._entered = threading.local()

    def __enter__(self) -> context_parallel:
        mode = _Scope(self)
        mode.__enter__()
        if not hasattr(self._entered, "modes"):
            self._entered.modes = []
        self._entered.modes.append(mode)
        return self

    def __exit__(self, *error: Any) -> None:
        self._entered.modes.pop().__exit__(*error)

    def _serve(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            call = _Call(self._mask, *args, **kwargs)
            result = self._client.attend(*call.tensors, **{**call.options, **self._options})
        except UnimplementedError as error:
            if not self._local_fallback:
                raise
            if not self._warned:
                self._warned = True
                warnings.warn(f"ringserve: an attention call runs locally: {error.message}", stacklevel=4)
            return original(*args, **kwargs)
        with self._lock:
            self.calls += 1
            self.statistics = result.statistics
        return result.out.reshape(call.out_shape)


class _Scope(TorchFunctionMode):
    def __init__(self, owner: context_parallel) -> None:
        super().__init__()
        self._owner = owner

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        if func in _SERVED:
            return self._owner._serve(func, args, kwargs or {})
        if func is functional.multi_head_attention_forward:
            with self:
                return _multi_head_attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class ContextParallel(torch.nn.Module):
    """A module whose forward runs in a scope of its own: `ContextParallel(module, client, mask=...)`."""

    def __init__(self, module: torch.nn.Module, client: Client, **options: Any) -> None:
        super().__init__()
        self.module = module
        self.scope = context_parallel(client, **options)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self.scope:
            return self.module(*args, **kwargs)


class _Call:
    """One call of scaled_dot_product_attention in the service's words; names and meaning of arguments are PyTorch's."""

    def __init__(self, scope_masks: list[Mask], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                 attn_mask: torch.Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False, *,
                 scale: float | None = None, enable_gqa: bool = False) -> None:
        _check(query, key, value, attn_mask, dropout_p, is_causal)
        lead = torch.broadcast_shapes(*(x.shape[:-3] for x in (query, key, value)))
        self.tensors = tuple(_with_batch(_autocast(x), lead) for x in (query, key, value))
        q, k, v = self.tensors
        if not enable_gqa and not q.shape[1] == k.shape[1] == v.shape[1]:
            raise InvalidArgumentError(
                f"query, key and value have {q.shape[1]}, {k.shape[1]} and {v.shape[1]} heads: that takes enable_gqa=True")
        heads = query.shape[-3:-2]  # none where the call has no dimension for them
        self.out_shape = (*lead, *heads, q.shape[2], v.shape[3])
        found = scope_masks
        self.options: dict[str, Any] = {"scale": scale}
        if is_causal:
            found = [_made_causal(mask) for mask in found or [Mask()]]
        elif attn_mask is not None:
            dense = _shrunk(_seen(_dense(attn_mask, lead, q.shape[1], q.shape[2], k.shape[2])))
            own = _recognised(dense)
            if own is None:
                self.options["bias"] = dense if dense.dtype == torch.bool else dense.to(q.dtype)
            else:
                found = _joined(found, own)
        self.options["mask"] = found or None


def _check(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None,
           dropout_p: float, is_causal: bool) -> None:
    given = [("query", query), ("key", key), ("value", value)] + ([] if attn_mask is None else [("attn_mask", attn_mask)])
    for name, tensor in given:
        if tensor.requires_grad and torch.is_grad_enabled():
            raise UnimplementedError(f"{name} requires a gradient: the service computes no backward; call it under torch.no_grad()")
        if tensor.layout != torch.strided or tensor.is_nested:
            raise UnimplementedError(f"{name} is nested or sparse: only dense tensors are served")
    if dropout_p > 0:
        raise UnimplementedError(f"dropout_p is {dropout_p}: the service drops nothing; 0 is served")
    if is_causal and attn_mask is not None:
        raise InvalidArgumentError("attn_mask and is_causal are both given: PyTorch takes one of them")
    for name, tensor in given[:3]:
        if tensor.ndim < 2:
            raise InvalidArgumentError(f"{name} has shape {tuple(tensor.shape)}: must have at least 2 dimensions")
        if tensor.ndim != query.ndim and min(tensor.ndim, query.ndim) < 3:
            raise InvalidArgumentError(f"{name} has {tensor.ndim} dimensions, query has {query.ndim}")


def _autocast(tensor: torch.Tensor) -> torch.Tensor:
    """As torch.autocast would have it: it acts below the scope, which sees the call first."""
    kind = tensor.device.type
    if tensor.is_floating_point() and tensor.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return tensor.to(torch.get_autocast_dtype(kind))
    return tensor


def _with_batch(tensor: torch.Tensor, lead: torch.Size) -> torch.Tensor:
    """[..., H, S, D] as [B, H, S, D]; without heads, or without both, one of each."""
    while tensor.ndim < 3:
        tensor = tensor.unsqueeze(0)
    return tensor.expand(*lead, *tensor.shape[-3:]).reshape(math.prod(lead), *tensor.shape[-3:])


def _dense(attn_mask: torch.Tensor, lead: torch.Size, heads: int, q_len: int, kv_len: int) -> torch.Tensor:
    """attn_mask, which broadcasts to [..., H, Tq, Tk], as [B or 1, H or 1, Tq, Tk]."""
    whole = (*lead, heads, q_len, kv_len)
    shape = (1,) * (len(whole) - attn_mask.ndim) + tuple(attn_mask.shape)
    if len(shape) != len(whole) or any(a not in (1, b) for a, b in zip(shape, whole)):
        raise InvalidArgumentError(f"attn_mask has shape {tuple(attn_mask.shape)}: must broadcast to {whole}")
    dense = attn_mask.reshape(shape).expand(*shape[:-2], q_len, kv_len)
    if math.prod(shape[:-3]) == 1:
        return dense.reshape(1, *dense.shape[-3:])
    return dense.expand(*lead, *dense.shape[-3:]).reshape(-1, *dense.shape[-3:])


def _seen(dense: torch.Tensor) -> torch.Tensor:
    """Numbers that only show (0) or hide (-inf), as bool: the same mask."""
    if dense.dtype == torch.bool:
        return dense
    shown = dense == 0
    return shown if bool((shown | (dense == -math.inf)).all()) else dense


def _shrunk(dense: torch.Tensor) -> torch.Tensor:
    """[B, H, Tq, Tk] with one batch row, one head, where all are alike."""
    for dim in (0, 1):
        if dense.shape[dim] > 1 and bool((dense == dense.narrow(dim, 0, 1)).all()):
            dense = dense.narrow(dim, 0, 1)
    return dense


def _recognised(dense: torch.Tensor) -> list[Mask] | None:
    """A mask for all batch rows, or one each, where it is boolean and a structure of bands."""
    if dense.dtype != torch.bool or dense.shape[1] > 1:
        return None
    try:
        return [masks.dense(row[0].cpu().numpy()) for row in dense]
    except InvalidArgumentError:
        return None


def _joined(ours: list[Mask], theirs: list[Mask]) -> list[Mask]:
    count = max(len(ours), len(theirs))
    ours, theirs = (x * count if len(x) == 1 else x for x in (ours or [Mask()], theirs))
    if len(ours) != len(theirs):
        raise InvalidArgumentError(f"the scope has {len(ours)} masks, attn_mask has {len(theirs)} batch rows")
    return [a & b for a, b in zip(ours, theirs)]


def _made_causal(mask: Mask) -> Mask:
    """With is_causal, which aligns query 0 with key 0 of the sequence."""
    aligned = not mask.q_offset and not mask.bottom_right and mask.kv_documents in (None, mask.documents)
    if not aligned or mask.prefix:
        raise InvalidArgumentError("is_causal aligns the first query with the first key; the scope's mask aligns otherwise, "
                                   "or has a prefix: they cannot be joined")
    return replace(mask, causal=True)
