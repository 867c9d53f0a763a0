"""A local cluster for all tests, and a server that does what a test says."""
import functools
import importlib
import os
import pathlib
import queue
import subprocess
import sys
from concurrent import futures

import grpc
import numpy as np
import pytest

import ringserve
from ringserve import _protocol


def pytest_configure(config):
    config.addinivalue_line("markers", "long: takes a minute; runs only where -m names it")


def pytest_collection_modifyitems(config, items):
    if not config.option.markexpr:
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.fixture(scope="session")
def cluster():
    with ringserve.local_cluster(workers=2, threads=1) as running:
        yield running


@pytest.fixture(scope="session")
def client(cluster):
    return cluster.client


@pytest.fixture
def scope(client):
    """A scope over two workers; of tests that have PyTorch."""
    return importlib.import_module("ringserve.torch").context_parallel(client, workers=2)


@pytest.fixture(scope="session")
def source():
    return pathlib.Path(os.environ["RINGSERVE_SOURCE"])


def run_example(source, cluster, name, *arguments):
    example = subprocess.run([sys.executable, source / "client/python/examples" / name, "--server", cluster.address,
                              *arguments], capture_output=True, text=True, check=False)
    assert example.returncode == 0, example.stdout + example.stderr
    return example.stdout


def bf16_bits(x):
    """Rounded toward zero: any bf16 will do."""
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def widened(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


class FakeServer:
    """An Attention service whose Attend is `script(requests, context, attempt)`: it yields messages or aborts. So is its
    AttendBackward, `backward`."""

    def __init__(self, script, address, credentials, backward):
        self.headers = queue.SimpleQueue()
        self.calls = 0
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("ringserve.v1.Attention", {
            method: grpc.stream_stream_rpc_method_handler(
                functools.partial(self._answer, script), _protocol.AttendRequest.FromString,
                lambda message: message if isinstance(message, bytes) else message.SerializeToString())
            for method, script in (("Attend", script), ("AttendBackward", backward))}),))
        port = (self._server.add_insecure_port(address) if credentials is None else
                self._server.add_secure_port(address, credentials))
        self.address = f"127.0.0.1:{port}"
        self._server.start()

    def _answer(self, script, requests, context):
        self.calls += 1
        self.headers.put(next(requests).header)
        yield from script(requests, context, self.calls)

    def stop(self):
        self._server.stop(None).wait()


@pytest.fixture
def fake_server():
    servers = []

    def start(script, address="127.0.0.1:0", credentials=None, backward=None):
        servers.append(FakeServer(script, address, credentials, backward))
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
