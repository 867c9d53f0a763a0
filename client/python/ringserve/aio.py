"""The client for asyncio."""
from __future__ import annotations

import asyncio
import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from . import client as blocking
from . import results
from ._request import AttendRequest, BackwardRequest, Request, Spec

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._request import AttendOptions, BackwardOptions, Options

_MOST_CALLS = 1024  # at a time


class Client:
    """As ringserve.Client, but to be awaited.

    Each call that runs has a thread. grpc.aio is not used: where a server ends a call while the client still writes, it
    may forget the server's status for one of its own, and it is that status which says whether to try again.
    """

    def __init__(self, server: str = "127.0.0.1:7070", *, tls_ca: str | os.PathLike[str] | None = None,
                 tls_cert: str | os.PathLike[str] | None = None, tls_key: str | os.PathLike[str] | None = None,
                 connect_timeout: float = 5.0) -> None:
        self._client = blocking.Client(server, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key,
                                       connect_timeout=connect_timeout)
        self._threads = ThreadPoolExecutor(_MOST_CALLS, "ringserve")

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection and cancels what runs."""
        self._client.close()
        self._threads.shutdown(wait=False)

    async def attend(self, q: Any, k: Any, v: Any, **options: Unpack[AttendOptions]) -> results.AttendResult:
        """As ringserve.Client.attend. A task that is cancelled cancels the call; on_retry is called in another thread."""
        result: results.AttendResult = await self._call(AttendRequest(q, k, v, **options))
        return result

    async def backward(self, q: Any, k: Any, v: Any, out: Any, lse: Any, d_out: Any, *, d_lse: Any = None,
                       **options: Unpack[BackwardOptions]) -> results.BackwardResult:
        """As ringserve.Client.backward, and as attend here."""
        result: results.BackwardResult = await self._call(BackwardRequest(q, k, v, out, lse, d_out, d_lse, **options))
        return result

    async def _call(self, request: Request) -> Any:
        loop = asyncio.get_running_loop()
        answer = loop.run_in_executor(self._threads, self._client._call, request)
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            request.cancel()
            with contextlib.suppress(Exception):
                await answer  # until then the thread has the tensors
            raise

    async def plan(self, spec: Spec, *, backward: bool = False, **options: Unpack[Options]) -> results.DryRun:
        """As ringserve.Client.plan."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: self._client.plan(spec, backward=backward, **options))

    async def status(self) -> results.ClusterStatus:
        """As ringserve.Client.status."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._client.status)
