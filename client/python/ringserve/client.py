"""The blocking client."""
from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import grpc

from . import _channel, _protocol, results
from ._request import AttendRequest, BackwardRequest, Request, Spec, plan_request
from ._wire import Answer
from .errors import InvalidArgumentError, RingserveError, UnavailableError, from_grpc

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._request import AttendOptions, BackwardOptions, Options

_RETRY_AFTER_SHUTDOWN = 0.5  # seconds


class _Connection:
    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.calls = 0  # that run on it


class Client:
    """A connection to a ringserve cluster. Threads may share it; calls may run side by side.

    `server`: HOST:PORT or unix:PATH. `tls_*`: PEM files; `tls_ca` alone: TLS without a client certificate. Connects on
    first use. Use as a context manager, or call `close`.
    """

    def __init__(self, server: str = "127.0.0.1:7070", *, tls_ca: str | os.PathLike[str] | None = None,
                 tls_cert: str | os.PathLike[str] | None = None, tls_key: str | os.PathLike[str] | None = None,
                 connect_timeout: float = 5.0) -> None:
        _channel.check(server, connect_timeout)
        self.server = server
        self._connect_timeout = connect_timeout
        self._credentials = _channel.credentials(tls_ca, tls_cert, tls_key)
        self._lock = threading.Lock()
        self._connection: _Connection | None = self._new_connection()  # None: closed
        self._connections = {self._connection}  # with those that calls still run on

    def _new_connection(self) -> _Connection:
        options = _channel.options(self._connect_timeout)
        if self._credentials is None:
            return _Connection(grpc.insecure_channel(self.server, options))
        return _Connection(grpc.secure_channel(self.server, self._credentials, options))

    @contextlib.contextmanager
    def _channel_in_use(self) -> Iterator[Any]:
        """A channel for one call. One that was UNAVAILABLE broke, or its server goes away: the next call gets another."""
        with self._lock:
            connection = self._connection
            if connection is None:
                raise InvalidArgumentError("the client is closed")
            connection.calls += 1
        try:
            yield connection.channel
        except UnavailableError:
            with self._lock:
                if self._connection is connection:
                    self._connection = self._new_connection()
                    self._connections.add(self._connection)
            raise
        finally:
            with self._lock:
                connection.calls -= 1
                if connection.calls == 0 and connection is not self._connection:
                    self._connections.discard(connection)
                    connection.channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and cancels what runs."""
        with self._lock:
            self._connection = None
            for connection in self._connections:
                connection.channel.close()

    def attend(self, q: Any, k: Any, v: Any, **options: Unpack[AttendOptions]) -> results.AttendResult:
        """Attention of q [B, Hq, Tq, D] over k [B, Hkv, Tk, D] and v [B, Hkv, Tk, Dv], of numpy or PyTorch.

        Options: mask, scale, layout ("bhsd"; "bshd"), return_lse, balancer, rotate, workers, worker_weights,
        ptrr_block, ptrr_count_blocks, dtype ("bf16" where uint16 of numpy holds it), bias, sink_logits, alibi_slopes,
        lse_without_sinks, deadline (600 seconds, for all attempts), max_attempts (5), wait_for_ready (0 seconds),
        request_id, on_retry.

        A lost worker or a full queue is tried again, and for wait_for_ready a server that is not there, drains or has too few
        workers; anything else, or the last attempt's error, is raised as the RingserveError of its status. Tensors must not
        change before it returns. PyTorch's autograd does not see the call, so tensors that require a gradient are refused:
        `ringserve.torch` serves those, from `backward`.
        """
        result: results.AttendResult = self._call(AttendRequest(q, k, v, **options))
        return result

    def backward(self, q: Any, k: Any, v: Any, out: Any, lse: Any, d_out: Any, *, d_lse: Any = None,
                 **options: Unpack[BackwardOptions]) -> results.BackwardResult:
        """The gradients of q, k, v (and sink_logits) from those of `out` and, where it was used, of `lse`.

        `out` and `lse` are what attend gave with return_lse=True for the same tensors; the options are those of that
        call but return_lse. With lse_without_sinks, `lse` and `d_lse` are of the scores without the sink logits. A bias
        and alibi_slopes get no gradients; rotate "pass-q" is refused. Retries, errors and tensors as for attend.
        """
        result: results.BackwardResult = self._call(BackwardRequest(q, k, v, out, lse, d_out, d_lse, **options))
        return result

    def _call(self, request: Request) -> Any:
        while True:
            answer = request.answer()
            try:
                with self._channel_in_use() as channel:
                    self._run(channel, request, answer)
                return request.result(answer)
            except RingserveError as error:
                delay = request.delay_after(error, answer)
            request.cancelled.wait(delay)

    def plan(self, spec: Spec, *, backward: bool = False, **options: Unpack[Options]) -> results.DryRun:
        """What `attend` (or `backward`) would do with a request of these dims: nothing is computed. Spec.of(q, k, v) has
        theirs."""
        return results.dry_run(self._ask(_protocol.PLAN, plan_request(spec, backward, **options), _protocol.PlanResponse))

    def status(self) -> results.ClusterStatus:
        """What the cluster is and does now."""
        return results.cluster_status(self._ask(_protocol.GET_CLUSTER, _protocol.GetClusterRequest(), _protocol.GetClusterResponse))

    def _run(self, channel: Any, request: Request, answer: Answer) -> None:
        # The server has answered a moment ago and may come back (a coordinator that restarts): then it is awaited. Who waits
        # for readiness is told of each refusal, and comes again.
        patient = request.attempt > 1 and not request.waits_for_ready
        connect_timeout = request.connect_timeout(self._connect_timeout)
        call = channel.stream_stream(request.method)(request.messages(), timeout=request.remaining(),
                                                     wait_for_ready=patient)
        lonely = threading.Event()

        def give_up() -> None:
            if not request.connected:
                lonely.set()
                call.cancel()

        watch = threading.Timer(connect_timeout, give_up) if request.attempt > 1 else None
        try:
            if watch is not None:
                watch.start()
            request.cancel_by(call.cancel)
            for message in call:
                answer.receive(message)
        except grpc.RpcError as error:
            if lonely.is_set():
                raise UnavailableError(f"no connection to {self.server} within {connect_timeout:g} s") from error
            if error.code() is grpc.StatusCode.CANCELLED and not request.cancelled.is_set() and self._connection is not None:
                # Not by us: a server that shuts down ends so what reaches it then. It may soon be back.
                raise UnavailableError("the server ended the call: it shuts down",
                                       retry_after=_RETRY_AFTER_SHUTDOWN) from error
            raise from_grpc(error) from error
        finally:
            call.cancel()  # of no effect where it has ended
            if watch is not None:
                watch.cancel()

    def _ask(self, method: str, query: Any, answer: Any) -> Any:
        with self._channel_in_use() as channel:
            ask = channel.unary_unary(method, query.__class__.SerializeToString, answer.FromString)
            try:
                return ask(query, timeout=_channel.CONTROL_DEADLINE)
            except grpc.RpcError as error:
                raise from_grpc(error) from error
