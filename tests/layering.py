#!/usr/bin/env python3
"""Layering test: who may include whom, read from the include lines, through every header of ours.

`layering.py [ROOT]` prints each forbidden include with the way that leads to it; exit status 1 if there is one.
"""
import pathlib
import re
import sys

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.M)
CLOCK = re.compile(r"_clock::now\s*\(|absl::Now\s*\(|\bgettimeofday\s*\(|\bclock_gettime\s*\(")

TORCH = ("ATen/", "c10/", "torch/", "caffe2/")
GRPC = ("grpcpp/", "grpc/", "ringserve/v1/*.grpc.pb.h")
THREADS = ("thread", "mutex", "condition_variable", "future", "semaphore", "absl/synchronization/", "absl/time/clock.h")
LOGS = ("spdlog/", "absl/log/")
PURE = GRPC + THREADS + LOGS
CLIENT = ("client/", "ringserve/client.h", "ringserve/merge.h", "ringserve/torch.h")

# (sources it holds for, what they must not include, not even through another header, why)
RULES = [
    (r"proto/", ("server/", "worker/") + CLIENT, "proto/ stands below everything"),
    (r"server/", ("worker/",) + CLIENT, "the server sees proto/ alone"),
    (r"client/", ("server/", "worker/"), "the client sees proto/ alone"),
    (r"worker/", ("server/",) + CLIENT, "the worker sees proto/ alone"),
    (r"(proto|server|client(?!/torch/)|tests/(?!worker/|gpu/|bench/|support/|integration/|client/torch/|client/install/torch_))/?", TORCH,
     "LibTorch stays in worker/, client/torch/ and in what tests them"),
    (r"worker/comm/(?!nccl_)", TORCH, "a communicator moves bytes, not tensors"),
    (r"worker/attention/", GRPC + LOGS + ("proto/", "ringserve/v1/", "worker/comm/grpc", "worker/comm/nccl"),
     "attention is arithmetic"),
    (r"(?!worker/comm/nccl_)", ("nccl.h",), "NCCL stays in its communicator"),
    (r"server/(plan/|membership|admission|run_order|progress_watch)|proto/(band|chunk_sequence|tensor_shape|validate)", PURE,
     "pure: no gRPC, threads, clocks or logs"),
    (r"(proto|server|client|worker)/", ("tests/", "gtest/", "gmock/"), "sources do not see tests"),
]


def matches(include, pattern):
    if "*" in pattern:
        head, tail = pattern.split("*")
        return include.startswith(head) and include.endswith(tail)
    return include.startswith(pattern) if pattern.endswith("/") else include == pattern


def includes_of(text):
    return [name for _, name in INCLUDE.findall(text)]


def reach(name, sources):
    """What `name` includes, directly or through our own headers: {include: the way to it}."""
    ways, open_files = {}, [(name, [name])]
    while open_files:
        current, way = open_files.pop()
        for include in includes_of(sources[current]):
            if include in ways:
                continue
            ways[include] = way
            ours = "client/" + include if include in CLIENT else include
            if ours in sources:
                open_files.append((ours, way + [ours]))
    return ways


def violations(sources):
    for name in sorted(sources):
        ways = reach(name, sources)
        for where, forbidden, why in RULES:
            if not re.match(where, name):
                continue
            for include, way in sorted(ways.items()):
                if any(matches(include, pattern) for pattern in forbidden):
                    yield f"{' -> '.join(way)} includes {include}: {why}"
            if forbidden is PURE and CLOCK.search(sources[name]):
                yield f"{name} reads a clock: {why}"


def main(root="."):
    root = pathlib.Path(root)
    sources = {
        path.relative_to(root).as_posix(): path.read_text()
        for top in ("proto", "server", "client", "worker", "tests")
        for path in (root / top).rglob("*") if path.suffix in (".h", ".cc", ".cu")
    }
    if not sources:
        print(f"layering: no sources under {root}", file=sys.stderr)
        return 1
    # The rules must bite, or a typing error in one would pass everything.
    probe = dict(sources, **{"server/plan/probe.h": "#include <mutex>\n", "worker/attention/probe.h": '#include "proto/wire.h"\n'})
    if len(list(violations(probe))) < 2 + len(found := list(violations(sources))):
        print("layering: the rules miss a planted fault", file=sys.stderr)
        return 1
    for line in found:
        print(line, file=sys.stderr)
    print(f"layering: {len(sources)} files, {len(found)} forbidden includes")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
