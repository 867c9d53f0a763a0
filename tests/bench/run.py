#!/usr/bin/env python3
"""The measurements of ./dev bench.

  run.py --bin BIN --deps DEPS compare [--peers]   end to end against unsharded LibTorch and PyTorch's ring
  run.py --bin BIN --deps DEPS proxy               the coordinator's memory and CPU time for a 1 GiB request
  run.py --bin BIN --deps DEPS python              256 MiB by the Python client and by the C++ client

Contestants take turns on the same tensors, and each one's best time counts: noise only adds. Every
answer that is timed is also compared with fp64 attention.
"""
import argparse
import contextlib
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
WORKERS = 2
SHAPES = [(length, dtype) for length in (2048, 8192, 32768) for dtype in ("f32", "bf16")]
MIN_ROUNDS, MAX_ROUNDS, ROUNDS_SECONDS = 5, 15, 10  # more rounds where they are short
PEER_METHODS = ("alltoall", "allgather")


def note(text):
    print(text, file=sys.stderr, flush=True)


class Program:
    """A process that answers each line with one JSON object."""

    def __init__(self, arguments, **kwargs):
        self.name = pathlib.Path(arguments[0]).name
        self.process = subprocess.Popen([str(a) for a in arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, bufsize=1, **kwargs)

    def tell(self, line):
        self.process.stdin.write(line + "\n")

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"bench: {self.name} ended with status {self.process.wait()}")
        return json.loads(line)

    def ask(self, line):
        self.tell(line)
        return self.answer()

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def local_cluster(bin_folder, log):
    """A coordinator and WORKERS workers of one thread; yields {role: pid, "address": ...}."""
    up = subprocess.Popen([bin_folder / "ringctl", "up", "--workers", str(WORKERS), "--threads", "1",
                           "--listen", "127.0.0.1:0", "--log-level", "warn"],
                          stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        members = {}
        for line in up.stdout:
            *role, value = line.split()
            if role == ["ready"]:
                members["address"] = value
                break
            members[" ".join(role[:-1])] = int(value)
        if "address" not in members:
            raise SystemExit("bench: the local cluster did not start")
        yield members
    except BaseException:
        log.seek(0)
        sys.stderr.write(log.read())
        raise
    finally:
        up.terminate()
        up.wait()


@contextlib.contextmanager
def peer_ring(folder, scratch):
    environment = dict(os.environ, PYTHONPATH=str(folder), GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1")
    ranks = [Program([sys.executable, HERE / "peer_ring.py", rank, WORKERS, scratch / "store"], env=environment)
             for rank in range(WORKERS)]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.close()


def ask_all(programs, line):
    for program in programs:
        program.tell(line)
    return [program.answer() for program in programs]


def measure(stopwatch, peers, scratch, length, dtype):
    """One shape: every contestant's times, in turn, and the phases of ringserve's best."""
    shape = stopwatch.ask(f"shape {length} {dtype}")
    if peers:
        stopwatch.ask(f"write {scratch}")
        ask_all(peers, f"load {scratch} {length} {dtype}")
    local, remote, peer = [], [], {method: [] for method in PEER_METHODS}
    begin = time.monotonic()
    for turn in range(-1, MAX_ROUNDS):  # the first warms everything up
        if turn >= MIN_ROUNDS and time.monotonic() - begin > ROUNDS_SECONDS:
            break
        local.append(stopwatch.ask("local")["seconds"])
        remote.append(stopwatch.ask(f"remote {WORKERS}"))
        for method in PEER_METHODS if peers else ():
            peer[method].append(max(a["seconds"] for a in ask_all(peers, f"run {method}")))
    errors = stopwatch.ask("errors")
    best = min(remote[1:], key=lambda r: r["seconds"])
    return {"length": length, "dtype": dtype, **shape, "rounds": len(local) - 1,
            "local": min(local[1:]), "local_median": statistics.median(local[1:]),
            "remote": best["seconds"], "remote_median": statistics.median(r["seconds"] for r in remote[1:]),
            "peer": min(min(times[1:]) for times in peer.values()) if peers else None,
            "phases": best, "errors": errors}


def show_machine(rows):
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
                 platform.machine())
    print(f"\n{model}, {os.cpu_count()} cores, LibTorch on {rows[0]['threads']} threads with {rows[0]['capability']}; "
          f"load average {os.getloadavg()[0]:.1f}")
    print(f"causal, batch 1, 8 query heads, 2 K/V heads, dim 128; ringserve: {WORKERS} workers of 1 thread, end to end "
          "over TCP;\nseconds: the best of each one's turns (in brackets: the median)")


def show_compare(rows):
    show_machine(rows)
    with_peer = rows[0]["peer"] is not None
    print(f"\n{'S':>6} {'type':>4} | {'unsharded':>17} | {'ringserve':>17} {'ratio':>6}"
          + (f" | {'PyTorch ring':>12} {'ratio':>6}" if with_peer else "") + " | turns")
    for row in rows:
        peer = f" | {row['peer']:12.4f} {row['remote'] / row['peer']:6.2f}" if with_peer else ""
        print(f"{row['length']:6} {row['dtype']:>4} | {row['local']:8.4f} ({row['local_median']:6.4f}) | "
              f"{row['remote']:8.4f} ({row['remote_median']:6.4f}) {row['remote'] / row['local']:6.2f}{peer} | "
              f"{row['rounds']:5}")
    if with_peer:
        print("PyTorch ring: 2 processes of 1 thread over Gloo, the better of its two rotate methods; without cutting, "
              "bringing and restoring")
    print("\nringserve's best turn, and the largest errors against fp64")
    print(f"{'':6} {'':4} | {'seconds':34} | {'MB':23} | {'error of out':20} | {'error of lse':20}\n"
          f"{'S':>6} {'type':>4} | {'upload':>7} {'wait':>7} {'compute':>8} {'download':>9} | {'up':>6} {'between':>8} "
          f"{'down':>7} | {'unsharded':>10} {'ringserve':>9} | {'unsharded':>10} {'ringserve':>9}")
    for row in rows:
        p, e = row["phases"], row["errors"]
        print(f"{row['length']:6} {row['dtype']:>4} | {p['upload']:7.4f} {p['wait']:7.4f} {p['compute']:8.4f} "
              f"{p['download']:9.4f} | {p['upload_bytes'] / 1e6:6.1f} {p['exchanged_bytes'] / 1e6:8.1f} "
              f"{p['download_bytes'] / 1e6:7.1f} | {e['local_out']:10.1e} {e['remote_out']:9.1e} | "
              f"{e['local_lse']:10.1e} {e['remote_lse']:9.1e}")


def compare(given, scratch, log):
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(local_cluster(given.bin, log))
        stopwatch = Program([given.bin / "ringserve_bench", "--server", cluster["address"]])
        stack.callback(stopwatch.close)
        peers = stack.enter_context(peer_ring(given.deps / "torch-2.15.0-cp311-full", scratch)) if given.peers else []
        rows = []
        for length, dtype in SHAPES:
            if given.lengths and length not in given.lengths:
                continue
            note(f"==> S={length} {dtype}")
            rows.append(measure(stopwatch, peers, scratch, length, dtype))
    show_compare(rows)
    return rows


class Watched:
    """A process's memory and CPU time, from /proc."""

    def __init__(self, pid):
        self.folder = pathlib.Path(f"/proc/{pid}")

    def status(self, key):
        line = next(line for line in (self.folder / "status").read_text().splitlines() if line.startswith(key + ":"))
        return int(line.split()[1]) * 1024

    def forget_peak(self):
        (self.folder / "clear_refs").write_text("5")

    def cpu_seconds(self):
        fields = (self.folder / "stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def proxy(given, scratch, log):
    """One request of 1 GiB of q, k and v at a time."""
    large = ["--batch", "64", "--q-len", "2730"]
    small = ["--batch", "1", "--q-len", "64"]
    dims = ["--q-heads", "8", "--kv-heads", "2", "--head-dim", "128", "--mask", "causal"]

    def attend(address, which):
        result = subprocess.run([given.bin / "ringctl", "--server", address, "bench", "--json", "--requests", "1",
                                 "--concurrency", "1", "--deadline", "600", "--workers", str(WORKERS), *dims, *which],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if result.returncode != 0:
            raise SystemExit(f"bench: the request failed: {result.stderr}{result.stdout}")
        return json.loads(result.stdout)

    rows = []
    with local_cluster(given.bin, log) as cluster:
        coordinator = Watched(cluster["coordinator"])
        attend(cluster["address"], small)
        time.sleep(1)
        idle = coordinator.status("VmRSS")  # after a small request, before the first large one
        for turn in range(3):
            coordinator.forget_peak()
            before = coordinator.cpu_seconds()
            load = attend(cluster["address"], large)
            cpu, peak = coordinator.cpu_seconds() - before, coordinator.status("VmHWM")
            forwarded = load["bytes_per_second"] * load["seconds"]
            rows.append({"idle_rss": idle, "peak_rss": peak, "cpu_seconds": cpu, "bytes": forwarded,
                         "cpu_seconds_per_gb": cpu / (forwarded / 1e9), "seconds": load["latency_seconds"]["max"]})
            note(f"==> turn {turn + 1} of 3: {load['latency_seconds']['max']:.1f} s")
    print("\nOne request of 1 GiB of q, k and v (batch 64, S 2730, heads 8:2, dim 128, f32) through the coordinator:")
    print(f"{'forwarded':>10} {'seconds':>8} | RSS {'idle':>9} {'peak':>9} {'above idle':>11} | CPU {'seconds':>8} "
          f"{'s per GB':>9}")
    for row in rows:
        print(f"{row['bytes'] / 1e9:7.2f} GB {row['seconds']:8.2f} |     {row['idle_rss'] / 2**20:5.1f} MiB "
              f"{row['peak_rss'] / 2**20:5.1f} MiB {(row['peak_rss'] - row['idle_rss']) / 2**20:7.1f} MiB |     "
              f"{row['cpu_seconds']:8.2f} {row['cpu_seconds_per_gb']:9.2f}")
    return rows


def python_client(given, scratch, log):
    """The bytes' way through each client: every query sees one key, so that there is next to no arithmetic."""
    import numpy

    source = HERE.parents[1]
    subprocess.run(["protoc", f"-I{source / 'proto'}", f"--descriptor_set_out={scratch / 'protocol.binpb'}",
                    "ringserve/v1/tensor.proto", "ringserve/v1/attention.proto"], check=True)
    shutil.copytree(source / "client/python/ringserve", scratch / "ringserve")
    shutil.move(scratch / "protocol.binpb", scratch / "ringserve")
    sys.path.insert(0, str(scratch))
    import ringserve

    heads, length, dim = 8, 32768, 64
    tensors = [numpy.random.default_rng(i).standard_normal((1, heads, length, dim), numpy.float32) for i in range(3)]
    rows = []
    with local_cluster(given.bin, log) as cluster, ringserve.Client(cluster["address"]) as client:
        ringctl = [given.bin / "ringctl", "bench", "--server", cluster["address"], "--requests", "1", "--concurrency", "1",
                   "--json", "--q-heads", str(heads), "--q-len", str(length), "--head-dim", str(dim), "--window", "0,0",
                   "--workers", str(WORKERS)]
        for _ in range(2 * MIN_ROUNDS):
            start = time.monotonic()
            result = client.attend(*tensors, mask=ringserve.masks.window(0, 0), workers=WORKERS)
            seconds = time.monotonic() - start
            assert numpy.allclose(result.out, tensors[2], atol=1e-6)
            run = subprocess.run(ringctl, stdout=subprocess.PIPE, stderr=log, text=True, check=True)
            rows.append({"python": seconds, "c++": json.loads(run.stdout)["latency_seconds"]["max"]})
    best = {name: min(row[name] for row in rows) for name in rows[0]}
    print(f"\n256 MiB of q, k, v and out (S {length}, heads {heads}, dim {dim}, f32), best and median of {len(rows)} turns:")
    for name, seconds in best.items():
        middle = statistics.median(row[name] for row in rows)
        print(f"{name:>7}  {seconds:6.3f} s  {middle:6.3f} s  {256 / seconds:6.0f} MiB/s")
    print(f"Python reaches {best['c++'] / best['python']:.2f} of the C++ client's throughput.")
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", type=pathlib.Path, required=True, help="folder of the built programs")
    parser.add_argument("--deps", type=pathlib.Path, required=True, help="where PyTorch is kept")
    parser.add_argument("--json", type=pathlib.Path, help="write the figures to this file, too")
    commands = parser.add_subparsers(dest="command", required=True)
    with_peers = commands.add_parser("compare")
    with_peers.add_argument("--peers", action="store_true", help="PyTorch's ring attention as well")
    with_peers.add_argument("--lengths", type=int, nargs="+", help="only these sequence lengths")
    commands.add_parser("proxy")
    commands.add_parser("python")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, open(pathlib.Path(scratch) / "log", "w+") as log:
        rows = {"compare": compare, "proxy": proxy, "python": python_client}[given.command](given, pathlib.Path(scratch), log)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
