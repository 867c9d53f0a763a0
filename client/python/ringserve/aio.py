"""The client for asyncio."""
from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from . import _channel, _protocol, results
from ._request import AttendRequest, Spec, plan_request
from ._wire import Answer
from .errors import RingserveError, UnavailableError, from_grpc

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._request import AttendOptions, Options


class Client:
    """As ringserve.Client, but to be awaited. Belongs to the event loop that runs when it is made."""

    def __init__(self, server: str = "127.0.0.1:7070", *, tls_ca: str | os.PathLike[str] | None = None,
                 tls_cert: str | os.PathLike[str] | None = None, tls_key: str | os.PathLike[str] | None = None,
                 connect_timeout: float = 5.0) -> None:
        _channel.check(server, connect_timeout)
        self.server = server
        self._connect_timeout = connect_timeout
        self._credentials = _channel.credentials(tls_ca, tls_cert, tls_key)
        self._channels = [self._new_channel()]  # the last is in use; calls may still run on those before

    def _new_channel(self) -> Any:
        options = _channel.options(self._connect_timeout)
        if self._credentials is None:
            return grpc.aio.insecure_channel(self.server, options)
        return grpc.aio.secure_channel(self.server, self._credentials, options)

    def _replace(self, channel: Any) -> None:
        """The connection broke, or belongs to a server that goes away: further calls get another."""
        if self._channels[-1] is channel:
            self._channels.append(self._new_channel())

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection and cancels what runs."""
        for channel in self._channels:
            await channel.close()

    async def attend(self, q: Any, k: Any, v: Any, **options: Unpack[AttendOptions]) -> results.AttendResult:
        """As ringserve.Client.attend. A task that is cancelled cancels the call."""
        request = AttendRequest(q, k, v, **options)
        while True:
            answer, channel = request.answer(), self._channels[-1]
            try:
                await self._run(channel, request, answer)
                return request.result(answer)
            except RingserveError as error:
                if isinstance(error, UnavailableError):
                    self._replace(channel)
                delay = request.delay_after(error, answer)
            await asyncio.sleep(delay)

    async def plan(self, spec: Spec, **options: Unpack[Options]) -> results.DryRun:
        """As ringserve.Client.plan."""
        return results.dry_run(await self._ask(_protocol.PLAN, plan_request(spec, **options), _protocol.PlanResponse))

    async def status(self) -> results.ClusterStatus:
        """As ringserve.Client.status."""
        return results.cluster_status(await self._ask(_protocol.GET_CLUSTER, _protocol.GetClusterRequest(), _protocol.GetClusterResponse))

    async def _run(self, channel: Any, request: AttendRequest, answer: Answer) -> None:
        # A connection that was there a moment ago may come back (a coordinator that restarts): then it is awaited.
        patient = request.attempt > 1
        call = channel.stream_stream(_protocol.ATTEND)(request.messages(), timeout=request.remaining(),
                                                       wait_for_ready=patient)
        lonely = False

        def give_up() -> None:
            nonlocal lonely
            if not request.connected:
                lonely = True
                call.cancel()

        watch = asyncio.get_running_loop().call_later(self._connect_timeout, give_up) if patient else None
        try:
            async for message in call:
                answer.receive(message)
        except grpc.RpcError as error:
            raise from_grpc(error) from error
        except asyncio.CancelledError:
            if not lonely:
                raise
            raise UnavailableError(f"no connection to {self.server} within {self._connect_timeout} s") from None
        finally:
            call.cancel()  # of no effect where it has ended
            if watch is not None:
                watch.cancel()

    async def _ask(self, method: str, query: Any, answer: Any) -> Any:
        channel = self._channels[-1]
        ask = channel.unary_unary(method, query.__class__.SerializeToString, answer.FromString)
        try:
            return await ask(query, timeout=_channel.CONTROL_DEADLINE)
        except grpc.RpcError as error:
            converted = from_grpc(error)
            if isinstance(converted, UnavailableError):
                self._replace(channel)
            raise converted from error
