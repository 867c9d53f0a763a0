"""A local cluster for all tests, and a server that does what a test says."""
import os
import pathlib
import queue
from concurrent import futures

import grpc
import pytest

import ringserve
from ringserve import _protocol


@pytest.fixture(scope="session")
def cluster():
    with ringserve.local_cluster(workers=2, threads=1) as running:
        yield running


@pytest.fixture(scope="session")
def client(cluster):
    return cluster.client


@pytest.fixture(scope="session")
def source():
    return pathlib.Path(os.environ["RINGSERVE_SOURCE"])


class FakeServer:
    """An Attention service whose Attend is `script(requests, context, attempt)`: it yields messages or aborts."""

    def __init__(self, script, address, credentials):
        self.headers = queue.SimpleQueue()
        self.calls = 0
        self._script = script
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("ringserve.v1.Attention", {
            "Attend": grpc.stream_stream_rpc_method_handler(
                self._attend, _protocol.AttendRequest.FromString,
                lambda message: message if isinstance(message, bytes) else message.SerializeToString())}),))
        port = (self._server.add_insecure_port(address) if credentials is None else
                self._server.add_secure_port(address, credentials))
        self.address = f"127.0.0.1:{port}"
        self._server.start()

    def _attend(self, requests, context):
        self.calls += 1
        self.headers.put(next(requests).header)
        yield from self._script(requests, context, self.calls)

    def stop(self):
        self._server.stop(None).wait()


@pytest.fixture
def fake_server():
    servers = []

    def start(script, address="127.0.0.1:0", credentials=None):
        servers.append(FakeServer(script, address, credentials))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def accepted():
    response = _protocol.AttendResponse()
    response.accepted.plan.workers = 1
    return response


def chunk(tensor, offset, data):
    response = _protocol.AttendResponse()
    response.chunks.add(tensor=_protocol.TensorId.number(tensor), offset=offset, data=data)
    return response


def statistics():
    response = _protocol.AttendResponse()
    response.statistics.total_seconds = 1
    return response


def upload(requests):
    """What the client sent, by tensor id."""
    tensors = {}
    for request in requests:
        for piece in request.chunks:
            tensor = tensors.setdefault(_protocol.TensorId.name(piece.tensor), bytearray())
            assert piece.offset == len(tensor)
            tensor += piece.data
    return tensors


def echo(requests, context, attempt):
    """Answers out = q, last piece first."""
    q = bytes(upload(requests)["q"])
    yield accepted()
    for end in range(len(q), 0, -1000):
        begin = max(0, end - 1000)
        yield chunk("out", begin, q[begin:end])
    yield statistics()
