"""PyTorch programs without a change of their model: a scope in which scaled_dot_product_attention is served.

    with ringserve.torch.context_parallel(client) as scope:
        y = model(x)
        y.sum().backward()
    print(scope.calls, scope.backward_calls)

What is served are the calls of torch.nn.functional.scaled_dot_product_attention that Python makes, those of
nn.MultiheadAttention (need_weights=False) included, also of functions that torch.compile compiled; not those inside
TorchScript. A call whose query, key or value requires a gradient (or whose scope's sink_logits do) keeps them, its
result and its log-sum-exp, and its backward is served, too, wherever and in whatever thread that runs; only what runs
attention once more (torch.utils.checkpoint) has to run backward inside the scope, to have that served.
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
from torch.autograd import forward_ad
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from . import masks
from .client import Client
from .errors import InvalidArgumentError, UnimplementedError
from .masks import Mask
from .results import AttendResult, BackwardResult, Statistics

_SERVED = frozenset({functional.scaled_dot_product_attention, torch.ops.aten.scaled_dot_product_attention,
                     torch.ops.aten.scaled_dot_product_attention.default})


def _seen_through(function: Any) -> Any:
    """PyTorch's function, but that it does not hand itself over to the scope again: the scope sees the calls inside it."""
    alone = {"has_torch_function": lambda tensors: False, "has_torch_function_unary": lambda tensor: False}
    copy = types.FunctionType(function.__code__, {**function.__globals__, **alone}, argdefs=function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


# What may call scaled_dot_product_attention; backward does in a torch.utils.checkpoint.
_SEEN_THROUGH = {function: _seen_through(function) for function in (
    functional.multi_head_attention_forward, torch.Tensor.backward, torch.autograd.backward, torch.autograd.grad)}

_EXTRAS = ("sink_logits", "bias", "alibi_slopes")  # options that may be tensors; the first gets a gradient
_ANSWERS = (*_EXTRAS, "mask", "scale")  # options that another answer comes of


class context_parallel(contextlib.ContextDecorator):
    """While it lasts, scaled_dot_product_attention on this thread is computed by the service. Also a decorator.

    `mask`: one, or one per batch row, that holds beside what a call says by is_causal and attn_mask. `local_fallback`:
    what cannot be served (dropout, a gradient of attn_mask) runs here instead of raising, which a warning says once;
    not beside what a local run would not have: a mask, bias, alibi_slopes, sink_logits or scale of the scope.
    Further options (balancer, rotate, workers, sink_logits, deadline, ...) are those of Client.attend; a `scale` is for
    calls that have none. Scopes nest, the innermost serves; one scope may be entered by several threads; nothing is left of it after an exception.

    `calls`, `backward_calls`: how many forward and backward passes were served; `statistics`, `backward_statistics`: of
    the last one.
    """

    def __init__(self, client: Client, *, mask: Mask | Sequence[Mask] | None = None, local_fallback: bool = False,
                 **options: Any) -> None:
        self.calls = self.backward_calls = 0
        self.statistics: Statistics | None = None
        self.backward_statistics: Statistics | None = None
        self._client = client
        for name in options.keys() & {"layout", "dtype", "return_lse"}:
            raise InvalidArgumentError(f"{name} is the scope's own: what a call hands over says it")
        own = [name for name, value in {"mask": mask, **options}.items() if name in _ANSWERS and value is not None]
        if local_fallback and own:
            raise InvalidArgumentError(f"local_fallback is set beside {own[0]}: what runs locally would not have it")
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
            call = _Call(self._mask, self._options, *args, **kwargs)
            out = call.answered(self)
        except UnimplementedError as error:
            if not self._local_fallback:
                raise
            if not self._warned:
                self._warned = True
                warnings.warn(f"ringserve: an attention call runs locally: {error.message}", stacklevel=4)
            return original(*args, **kwargs)
        return out.reshape(call.out_shape)

    def _attend(self, tensors: Sequence[torch.Tensor], options: dict[str, Any]) -> AttendResult:
        result = self._client.attend(*tensors, **options)
        with self._lock:
            self.calls += 1
            self.statistics = result.statistics
        return result

    def _backward(self, tensors: Sequence[torch.Tensor], options: dict[str, Any]) -> BackwardResult:
        result = self._client.backward(*tensors, **options)
        with self._lock:
            self.backward_calls += 1
            self.backward_statistics = result.statistics
        return result


class _Scope(TorchFunctionMode):
    def __init__(self, owner: context_parallel) -> None:
        super().__init__()
        self._owner = owner

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        if func in _SERVED:
            return self._owner._serve(func, args, kwargs or {})
        if func in _SEEN_THROUGH:
            with self:
                return _SEEN_THROUGH[func](*args, **(kwargs or {}))
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

    def __init__(self, scope_masks: list[Mask], scope_options: dict[str, Any], query: torch.Tensor, key: torch.Tensor,
                 value: torch.Tensor, attn_mask: torch.Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False, *,
                 scale: float | None = None, enable_gqa: bool = False) -> None:
        _check(query, key, value, attn_mask, dropout_p, is_causal)
        for name, tensor in (("attn_mask", attn_mask), *((name, scope_options.get(name)) for name in _EXTRAS[1:])):
            _check_needs_no_gradient(name, tensor)
        lead = torch.broadcast_shapes(*(x.shape[:-3] for x in (query, key, value)))
        self.tensors = tuple(_with_batch(_autocast(x), lead) for x in (query, key, value))
        q, k, v = self.tensors
        if not enable_gqa and not q.shape[1] == k.shape[1] == v.shape[1]:
            raise InvalidArgumentError(
                f"query, key and value have {q.shape[1]}, {k.shape[1]} and {v.shape[1]} heads: that takes enable_gqa=True")
        heads = query.shape[-3:-2]  # none where the call has no dimension for them
        self.out_shape = (*lead, *heads, q.shape[2], v.shape[3])
        found = scope_masks
        self.options = dict(scope_options)
        if scale is not None:
            self.options["scale"] = scale
        if is_causal:
            found = [_made_causal(mask) for mask in found or [Mask()]]
        elif attn_mask is not None:
            dense = _shrunk(_seen(_dense(attn_mask, lead, q.shape[1], q.shape[2], k.shape[2])))
            own = _recognised(dense)
            if own is None and self.options.get("bias") is not None:
                raise InvalidArgumentError("attn_mask is no mask of bands, and the scope has a bias: a request takes one")
            if own is None:
                self.options["bias"] = dense if dense.dtype == torch.bool else dense.to(q.dtype)
            else:
                found = _joined(found, own)
        self.options["mask"] = found or None

    def answered(self, scope: context_parallel) -> torch.Tensor:
        """Out, by the service: with a backward where autograd will ask for one."""
        differentiated = (*self.tensors, self.options.get(_EXTRAS[0]))
        if not torch.is_grad_enabled() or not any(isinstance(x, torch.Tensor) and x.requires_grad for x in differentiated):
            return scope._attend(self.tensors, self.options).out
        if self.options.get("rotate") == "pass-q":
            raise UnimplementedError('rotate is "pass-q": a call with a backward needs one of the other methods')
        extras = [value if isinstance(value := self.options.get(name), torch.Tensor) else None for name in _EXTRAS]
        out, _ = _Attention.apply(scope, self.options, *self.tensors, *extras)
        return out


class _Attention(torch.autograd.Function):
    """(out, lse) of q, k, v and _EXTRAS. These are inputs, so that autograd notices who changes them before backward."""

    @staticmethod
    def forward(scope: context_parallel, options: dict[str, Any], *inputs: Any) -> Any:
        result = scope._attend(inputs[:3], {**_with_extras(options, inputs[3:]), "return_lse": True})
        return result.out, result.lse

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.scope, ctx.options, *tensors = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, d_out: torch.Tensor, _: Any) -> Any:
        q, k, v, sinks, *others, out, lse = ctx.saved_tensors
        gradients = _Gradients.apply(ctx.scope, ctx.options, q, k, v, out, lse, d_out, sinks, *others)
        return (None, None, *gradients, *(None for _ in others))


class _Gradients(torch.autograd.Function):
    """The backward of _Attention: a function of its own, so that it is this one that autograd asks for a second one."""

    @staticmethod
    def forward(scope: context_parallel, options: dict[str, Any], *inputs: Any) -> Any:
        options = {name: value for name, value in _with_extras(options, inputs[6:]).items() if name != "return_lse"}
        found = scope._backward(inputs[:6], options)
        return found.d_q, found.d_k, found.d_v, None if inputs[6] is None else found.d_sink_logits

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise UnimplementedError("attention is differentiated twice: the service computes first gradients only")


def _with_extras(options: dict[str, Any], extras: Sequence[Any]) -> dict[str, Any]:
    return {**options, **{name: value for name, value in zip(_EXTRAS, extras) if value is not None}}


def _check(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None,
           dropout_p: float, is_causal: bool) -> None:
    given = [("query", query), ("key", key), ("value", value)] + ([] if attn_mask is None else [("attn_mask", attn_mask)])
    for name, tensor in given:
        if forward_ad.unpack_dual(tensor).tangent is not None:
            raise UnimplementedError(f"{name} has a tangent: forward-mode derivatives are not served")
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


def _check_needs_no_gradient(name: str, tensor: Any) -> None:
    if isinstance(tensor, torch.Tensor) and tensor.requires_grad and torch.is_grad_enabled():
        raise UnimplementedError(f"{name} requires a gradient: the service computes those of query, key, value and sink_logits")


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
