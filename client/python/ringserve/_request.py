"""One request: checked, its header made, its results' place prepared. Sends nothing; both clients do that with it."""
from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from . import _protocol, results
from ._retry import Retries
from ._tensors import Tensor, tensor_of
from ._wire import Answer, upload_messages
from .errors import DeadlineExceededError, InvalidArgumentError, RingserveError
from .masks import Mask

if TYPE_CHECKING:
    from typing_extensions import Unpack

_LONGEST_DEADLINE = 365 * 24 * 3600.0
_LONGEST_REQUEST_ID = 128
_LEAST_CONNECT_TIMEOUT = 1.0  # seconds, at the end of a wait for readiness


@dataclass(frozen=True)
class Spec:
    """The dims of a request, for a dry run without tensors. `dtype`: f32, f64, bf16, f16; `layout`: bhsd, bshd."""

    q_heads: int
    q_len: int
    head_dim: int
    batch: int = 1
    kv_heads: int | None = None  # None: as q_heads
    kv_len: int | None = None  # None: as q_len
    value_dim: int | None = None  # None: as head_dim
    dtype: str = "f32"
    layout: str = "bhsd"

    @staticmethod
    def of(q: Any, k: Any, v: Any, *, layout: str = "bhsd", dtype: str | None = None) -> Spec:
        """The dims of these tensors. `dtype="bf16"`: arrays of uint16 hold the bits of bf16."""
        return _spec_of(*_tensors(q, k, v, dtype), layout)


class ComputeOptions(TypedDict, total=False):
    """Which attention is computed and how."""

    mask: Mask | Sequence[Mask] | None  # one for all batch rows, or one each; None: full
    scale: float | None  # None: 1 / sqrt(head_dim)
    balancer: str  # auto, contiguous, head-tail, per-document, ptrr
    rotate: str  # auto, all-to-all, all-gather, pass-q (forward only)
    workers: int  # 0: the planner chooses
    worker_weights: Sequence[float]
    ptrr_block: int
    ptrr_count_blocks: bool


class Options(ComputeOptions, total=False):
    """Those of a dry run."""

    return_lse: bool


class BackwardOptions(ComputeOptions, total=False):
    """What else is given, and how the call is made."""

    layout: str  # bhsd, bshd: the order of the tensors' dimensions
    dtype: str | None  # "bf16": arrays of uint16 hold the bits of bf16
    bias: Any  # [B or 1, Hq or 1, Tq, Tk], added to the scaled scores; or bool: False hides
    sink_logits: Any  # [Hq], f32: learned sinks
    alibi_slopes: Any  # [Hq], f32
    lse_without_sinks: bool  # lse, and d_lse, are those before the sink logits were added
    deadline: float  # seconds for all attempts together, default 600
    max_attempts: int  # default 5; 1: no retry
    wait_for_ready: float  # seconds for which a server that is not there, drains or has too few workers is asked again
    request_id: str  # for the server's logs
    on_retry: Callable[[int, RingserveError], None]  # before each further attempt: its number, and why


class AttendOptions(Options, BackwardOptions, total=False):
    """Those of attend."""


def _tensors(q: Any, k: Any, v: Any, dtype: str | None) -> tuple[Tensor, Tensor, Tensor]:
    if dtype not in (None, "bf16"):
        raise InvalidArgumentError(f'dtype is "{dtype}": only "bf16" can be said of uint16; tensors say their own else')
    found = tuple(tensor_of(name, value, dtype == "bf16") for name, value in (("q", q), ("k", k), ("v", v)))
    for tensor in found:
        if len(tensor.shape) != 4:
            raise InvalidArgumentError(f"{tensor.name} has shape {tensor.shape}: must have 4 dimensions")
        if dtype is not None and tensor.dtype != dtype:
            raise InvalidArgumentError(f'dtype is "{dtype}", {tensor.name} is {tensor.dtype}: nothing is converted')
        if tensor.dtype != found[0].dtype:
            raise InvalidArgumentError(f"{tensor.name} is {tensor.dtype}, q is {found[0].dtype}: must be the same")
    return found  # type: ignore[return-value]


def _spec_of(q: Tensor, k: Tensor, v: Tensor, layout: str) -> Spec:
    if layout not in ("bhsd", "bshd"):
        raise InvalidArgumentError(f'layout is "{layout}": must be bhsd or bshd')
    heads, length = (1, 2) if layout == "bhsd" else (2, 1)
    for a, b, dim, what in ((k, q, 0, "batch rows"), (v, q, 0, "batch rows"), (v, k, heads, "heads"),
                            (v, k, length, "positions"), (k, q, 3, "elements a head")):
        if a.shape[dim] != b.shape[dim]:
            raise InvalidArgumentError(f"{a.name} has shape {a.shape} and {b.name} {b.shape} ({layout}): {what} differ")
    return Spec(batch=q.shape[0], q_heads=q.shape[heads], kv_heads=k.shape[heads], q_len=q.shape[length],
                kv_len=k.shape[length], head_dim=q.shape[3], value_dim=v.shape[3], dtype=q.dtype, layout=layout)


def _number(what: str, name: str, names: _protocol.Enum) -> int:
    number = names.number(name)
    if number is None:
        raise InvalidArgumentError(f'{what} is "{name}": must be one of {", ".join(names.names())}')
    return number


def _fill(message: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        try:
            setattr(message, name, value)
        except (TypeError, ValueError, OverflowError) as error:  # out of the field's range, or no number
            raise InvalidArgumentError(f"{name} is {value!r}: {error}") from error


def _mask_message(mask: Any) -> Any:
    if not isinstance(mask, Mask):
        raise InvalidArgumentError(f"mask is {mask!r}: must be a ringserve.Mask, or one for each batch row; see "
                                   "ringserve.masks")
    try:
        return mask.to_message()
    except InvalidArgumentError:
        raise
    except (TypeError, ValueError, OverflowError) as error:  # a field that is no number, or too large
        raise InvalidArgumentError(f"mask is {mask!r}: {error}") from error


def _fill_header(message: Any, spec: Spec, mask: Mask | Sequence[Mask] | None = None, scale: float | None = None,
                 balancer: str = "auto", rotate: str = "auto", workers: int = 0, worker_weights: Sequence[float] = (),
                 ptrr_block: int = 0, ptrr_count_blocks: bool = False, return_lse: bool = False,
                 lse_without_sinks: bool = False) -> None:
    """Fills `spec` and `options` of a message that has them."""
    _fill(message.spec, {
        "batch": spec.batch, "q_heads": spec.q_heads, "q_len": spec.q_len, "head_dim": spec.head_dim,
        "kv_heads": spec.q_heads if spec.kv_heads is None else spec.kv_heads,
        "kv_len": spec.q_len if spec.kv_len is None else spec.kv_len,
        "value_dim": spec.head_dim if spec.value_dim is None else spec.value_dim,
        "dtype": _number("dtype", spec.dtype, _protocol.DType),
        "tensor_layout": _number("layout", spec.layout, _protocol.TensorLayout)})
    if scale is not None:
        _fill(message.spec, {"scale": scale})
    for one in [mask] if isinstance(mask, (Mask, str)) else mask or ():
        message.spec.masks.append(_mask_message(one))
    _fill(message.options, {
        "balancer": _number("balancer", balancer, _protocol.Balancer),
        "rotate": _number("rotate", rotate, _protocol.RotateMethod),
        "workers": workers, "ptrr_block": ptrr_block, "ptrr_count_blocks": ptrr_count_blocks, "return_lse": return_lse,
        "lse_without_sinks": lse_without_sinks})
    try:
        message.options.worker_weights.extend(worker_weights)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"worker_weights are {worker_weights!r}: {error}") from error


def plan_request(spec: Spec, backward: bool = False, **options: Unpack[Options]) -> Any:
    """The PlanRequest message."""
    request = _protocol.PlanRequest(backward=backward)
    _fill_header(request, spec, **options)
    return request


class Request:
    """One call: what is sent in each attempt, where the answer goes, and whether to try again."""

    method: str  # of the service

    def __init__(self, q: Any, k: Any, v: Any, *, layout: str = "bhsd", dtype: str | None = None,
                 bias: Any = None, sink_logits: Any = None, alibi_slopes: Any = None, deadline: float = 600.0,
                 max_attempts: int = 5, wait_for_ready: float = 0.0, request_id: str = "",
                 on_retry: Callable[[int, RingserveError], None] | None = None, **options: Any) -> None:
        if not 0 < deadline <= _LONGEST_DEADLINE:
            raise InvalidArgumentError(f"deadline is {deadline} s: must be above 0 and at most {_LONGEST_DEADLINE:.0f}")
        if max_attempts < 1:
            raise InvalidArgumentError(f"max_attempts is {max_attempts}: must be at least 1")
        if not 0 <= wait_for_ready <= _LONGEST_DEADLINE:
            raise InvalidArgumentError(f"wait_for_ready is {wait_for_ready} s: must be at least 0 and at most {_LONGEST_DEADLINE:.0f}")
        tensors = _tensors(q, k, v, dtype)
        self._spec = _spec_of(*tensors, layout)
        self._header = _protocol.AttendRequest()
        _fill_header(self._header.header, self._spec, **options)
        self._uploads = [(_id(tensor.name), tensor.bytes()) for tensor in tensors]
        if bias is not None:
            self._uploads.append((_id("bias"), self._dense_bias(bias, tensors[0].dtype)))
        self._extras: dict[str, Tensor] = {}
        for name, extra in (("alibi_slopes", alibi_slopes), ("sink_logits", sink_logits)):
            if extra is not None:
                _fill(self._header.header.spec, {name: True})
                self._extras[name] = self._upload(name, extra, (self._spec.q_heads,), "f32")
        self._tensors = tensors
        self._out_shape = (*tensors[0].shape[:3], tensors[2].shape[3])
        self._lse_shape = (self._spec.batch, self._spec.q_heads, self._spec.q_len)
        self._lse_dtype = "f64" if self._spec.dtype == "f64" else "f32"
        self._outputs: list[tuple[int, memoryview]] = []
        self._request_id = request_id
        self._deadline, self._end = deadline, time.monotonic() + deadline
        self._on_retry = on_retry
        self._retries = Retries(max_attempts, wait_for_ready)
        self.waits_for_ready = wait_for_ready > 0
        self.attempt = 1
        self.connected = False  # in this attempt
        self.cancelled = threading.Event()
        self._cancel: Callable[[], Any] | None = None

    def cancel(self) -> None:
        """Ends the call, from another thread: the running attempt's status will be CANCELLED."""
        self.cancelled.set()
        if self._cancel is not None:
            self._cancel()

    def cancel_by(self, cancel: Callable[[], Any]) -> None:
        """How the attempt that runs now is cancelled."""
        self._cancel = cancel
        if self.cancelled.is_set():  # perhaps just before
            cancel()

    def _dense_bias(self, value: Any, dtype: str) -> memoryview:
        tensor = tensor_of("bias", value, dtype == "bf16", boolean=True)
        spec = self._spec
        batch, heads = tensor.shape[:2] if len(tensor.shape) == 4 else (0, 0)
        if (tensor.dtype not in ("bool", dtype) or batch not in (1, spec.batch) or heads not in (1, spec.q_heads)
                or tensor.shape[2:] != (spec.q_len, spec.kv_len)):
            raise InvalidArgumentError(
                f"bias is {tensor.dtype} of shape {tensor.shape}: must be bool or {dtype} of shape ({spec.batch} or 1, "
                f"{spec.q_heads} or 1, {spec.q_len}, {spec.kv_len})")
        self._header.header.spec.bias.SetInParent()
        _fill(self._header.header.spec.bias, {"boolean": tensor.dtype == "bool", "per_batch": batch == spec.batch > 1,
                                              "per_head": heads == spec.q_heads > 1})
        return tensor.bytes()

    def _upload(self, name: str, value: Any, shape: tuple[int, ...], dtype: str) -> Tensor:
        """Sends it along, where it is of this shape and type."""
        tensor = tensor_of(name, value, dtype == "bf16")
        if tensor.shape != shape or tensor.dtype != dtype:
            raise InvalidArgumentError(f"{name} is {tensor.dtype} of shape {tensor.shape}: must be {dtype} of shape {shape}")
        self._uploads.append((_id(name), tensor.bytes()))
        return tensor

    def _expect(self, name: str, like: Tensor, shape: tuple[int, ...], dtype: str) -> Any:
        """A tensor of the library of `like` that the answer will fill."""
        tensor, view = like.new(shape, dtype)
        self._outputs.append((_id(name), view))
        return tensor

    def remaining(self) -> float:
        """Seconds until the deadline, at least 0."""
        return max(0.0, self._end - time.monotonic())

    def connect_timeout(self, most: float) -> float:
        """Seconds; where the call waits for readiness, its end bounds a connect too."""
        if self._retries.ready_by is None:
            return most
        return min(most, max(_LEAST_CONNECT_TIMEOUT, self._retries.ready_by - time.monotonic()))

    def header(self) -> bytes:
        """The first message of this attempt."""
        request_id = self._request_id
        if request_id and self.attempt > 1:  # a second request: the server's logs must not mix them
            suffix = f"-retry{self.attempt - 1}"
            request_id = request_id[:_LONGEST_REQUEST_ID - len(suffix)] + suffix
        _fill(self._header.header, {"request_id": request_id})
        encoded: bytes = self._header.SerializeToString()
        return encoded

    def messages(self) -> Any:
        """What is sent, message by message."""
        self.connected = False
        yield self.header()
        self.connected = True  # or nobody would ask for more
        yield from upload_messages(self._uploads)

    def answer(self) -> Answer:
        """A new one for each attempt."""
        return Answer(self._outputs)

    def delay_after(self, error: RingserveError, answer: Answer) -> float:
        """Seconds to wait before the next attempt, which is then the current one; raises where none is due."""
        error.attempts = self.attempt
        if self.remaining() == 0:
            late = DeadlineExceededError(f"no answer within {self._deadline} s, in attempt {self.attempt}: {error}")
            late.attempts = self.attempt
            raise late from error
        delay = self._retries.delay_after(error, answer.accepted, time.monotonic())
        if delay is None or delay >= self.remaining():
            raise error
        self.attempt += 1
        if self._on_retry is not None:
            self._on_retry(self.attempt, error)
        return delay

    def result(self, answer: Answer) -> Any:
        """After the server ended with OK."""
        raise NotImplementedError


class AttendRequest(Request):
    """One call of attend."""

    method = _protocol.ATTEND

    def __init__(self, q: Any, k: Any, v: Any, **options: Any) -> None:
        super().__init__(q, k, v, **options)
        self._q = self._tensors[0]
        self._out = self._expect("out", self._q, self._out_shape, self._q.dtype)
        self._lse = None
        if options.get("return_lse", False):
            self._lse = self._expect("lse", self._q, self._lse_shape, self._lse_dtype)

    def result(self, answer: Answer) -> results.AttendResult:
        """After the server ended with OK."""
        statistics = results.statistics(answer.finish())
        return results.AttendResult(self._q.restored(self._out), None if self._lse is None else self._q.restored(self._lse),
                                    statistics, self.attempt)


class BackwardRequest(Request):
    """One call of backward."""

    method = _protocol.ATTEND_BACKWARD

    def __init__(self, q: Any, k: Any, v: Any, out: Any, lse: Any, d_out: Any, d_lse: Any, **options: Any) -> None:
        super().__init__(q, k, v, **options)
        dtype = self._spec.dtype
        for name, value in (("out", out), ("d_out", d_out)):
            self._upload(name, value, self._out_shape, dtype)
        self._upload("lse", lse, self._lse_shape, self._lse_dtype)
        if d_lse is not None:
            _fill(self._header.header, {"d_lse": True})
            self._upload("d_lse", d_lse, self._lse_shape, self._lse_dtype)
        sinks = self._extras.get("sink_logits")
        self._gradients = [(tensor, self._expect("d_" + tensor.name, tensor, tensor.shape, tensor.dtype))
                           for tensor in (*self._tensors, *([] if sinks is None else [sinks]))]

    def result(self, answer: Answer) -> results.BackwardResult:
        """After the server ended with OK."""
        statistics = results.statistics(answer.finish())
        found = [tensor.restored(gradient) for tensor, gradient in self._gradients]
        d_q, d_k, d_v, d_sinks = found if len(found) == 4 else (*found, None)
        return results.BackwardResult(d_q, d_k, d_v, d_sinks, statistics, self.attempt)


def _id(name: str) -> int:
    number = _protocol.TensorId.number(name.replace("_", "-"))
    assert number is not None, name
    return number
