#!/usr/bin/env python3
"""Exact attention from any gRPC client: sends numpy arrays, reads the answer, checks it against numpy.

  mkdir gen
  protoc -Iproto --python_out=gen --grpc_out=gen --plugin=protoc-gen-grpc=/usr/bin/grpc_python_plugin \
    proto/ringserve/v1/tensor.proto proto/ringserve/v1/attention.proto
  PYTHONPATH=gen client/examples/attend.py --server 127.0.0.1:7070

(Without the plugin: pip install grpcio-tools; python3 -m grpc_tools.protoc ... --grpc_python_out=gen.)
"""
import argparse
import pathlib

import grpc
import numpy as np
from ringserve.v1 import attention_pb2 as api, attention_pb2_grpc as service, tensor_pb2 as tensor

CHUNK_BYTES = 1 << 20


def attend(stub, header, inputs, outputs):
    """inputs and outputs: {tensor id: dense array}. Fills the outputs and returns the statistics."""
    def requests():
        yield api.AttendRequest(header=header)
        for name, array in inputs.items():
            data = array.tobytes()
            for at in range(0, len(data), CHUNK_BYTES):
                chunk = tensor.Chunk(tensor=name, offset=at, data=data[at:at + CHUNK_BYTES])
                yield api.AttendRequest(chunks=[chunk])

    views = {name: memoryview(array).cast("B") for name, array in outputs.items()}
    for response in stub.Attend(requests(), timeout=600):
        for chunk in response.chunks:  # in any order
            views[chunk.tensor][chunk.offset:chunk.offset + len(chunk.data)] = chunk.data
    return response.statistics


def reference(q, k, v):
    """Causal attention and its log-sum-exp by their definitions, in fp64."""
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1).astype(np.float64) for x in (k, v))
    scores = q.astype(np.float64) @ k.swapaxes(2, 3) / np.sqrt(q.shape[3])
    scores[..., np.triu(np.ones(scores.shape[2:], bool), 1)] = -np.inf
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    return weights / total @ v, (top + np.log(total))[..., 0]


def main():
    flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    flags.add_argument("--server", default="127.0.0.1:7070")
    flags.add_argument("--tokens", type=int, default=1000)
    for flag in ("--tls-ca", "--tls-cert", "--tls-key"):
        flags.add_argument(flag, type=pathlib.Path, metavar="PEM")
    given = flags.parse_args()

    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((1, heads, given.tokens, 64), np.float32) for heads in (8, 2, 2))
    header = api.AttendHeader(
        spec=api.AttentionSpec(batch=1, q_heads=8, kv_heads=2, q_len=given.tokens, kv_len=given.tokens,
                               head_dim=64, dtype=tensor.DTYPE_F32, masks=[api.Mask(causal=True)]),
        options=api.AttentionOptions(return_lse=True))
    out, lse = np.empty_like(q), np.empty(q.shape[:3], np.float32)

    if given.tls_ca:
        pem = [file and file.read_bytes() for file in (given.tls_ca, given.tls_key, given.tls_cert)]
        channel = grpc.secure_channel(given.server, grpc.ssl_channel_credentials(*pem))
    else:
        channel = grpc.insecure_channel(given.server)
    with channel:
        statistics = attend(service.AttentionStub(channel), header,
                            {tensor.TENSOR_ID_Q: q, tensor.TENSOR_ID_K: k, tensor.TENSOR_ID_V: v},
                            {tensor.TENSOR_ID_OUT: out, tensor.TENSOR_ID_LSE: lse})
    errors = [np.abs(got - right).max() for got, right in zip((out, lse), reference(q, k, v))]
    print(f"workers {statistics.plan.workers}, seconds {statistics.total_seconds:.3f}, "
          f"largest error: out {errors[0]:.1e}, lse {errors[1]:.1e}")
    return 0 if max(errors) < 1e-5 else 1


if __name__ == "__main__":
    raise SystemExit(main())
