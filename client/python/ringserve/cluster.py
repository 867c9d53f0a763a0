"""A cluster of this machine's own, for notebooks and tests."""
from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from .client import Client
from .errors import InvalidArgumentError, UnavailableError

_END_SECONDS = 20.0  # what `ringctl up` gets to stop its processes
_SHOWN_LINES = 20


def _find_ringctl(bin: str | os.PathLike[str] | None) -> str:
    folder = bin or os.environ.get("RINGSERVE_BIN")
    if folder:
        program = pathlib.Path(folder) / "ringctl"
        if os.access(program, os.X_OK):
            return str(program)
        raise InvalidArgumentError(f"there is no ringctl in {folder}: build it with ./dev build release ringserve-server "
                                   "ringserve-worker ringctl")
    found = shutil.which("ringctl")
    if found is None:
        raise InvalidArgumentError("ringctl is not on the PATH: set RINGSERVE_BIN to the folder that holds it, "
                                   "ringserve-server and ringserve-worker")
    return found


class LocalCluster:
    """`address` is where it serves, `client` a client of it, `log()` what its processes have said."""

    def __init__(self, process: subprocess.Popen[str], address: str, log: pathlib.Path) -> None:
        self.address = address
        self.client = Client(address)
        self.pid = process.pid  # of `ringctl up`
        self._log = log

    def log(self) -> str:
        return self._log.read_text(errors="replace")


@contextmanager
def local_cluster(workers: int = 2, *, threads: int | None = None, bin: str | os.PathLike[str] | None = None,
                  timeout: float = 60.0) -> Iterator[LocalCluster]:
    """Runs `ringctl up` on a free loopback port until the block (or this process) ends, and with it all it started.

    The programs are found in `bin`, or in RINGSERVE_BIN, or on the PATH. `threads`: of each worker; None: the cores
    shared out. InvalidArgumentError: no programs. UnavailableError: not ready within `timeout` seconds; has the log.
    """
    command = [_find_ringctl(bin), "up", "--listen", "127.0.0.1:0", "--workers", str(workers),
               "--until-eof"]
    if threads is not None:
        command += ["--threads", str(threads)]
    with tempfile.TemporaryDirectory(prefix="ringserve-") as folder:
        log = pathlib.Path(folder) / "log"
        with log.open("wb") as stderr:
            # Its input ends with this process, however that ends; and so does the cluster.
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True)
        try:
            cluster = LocalCluster(process, _await_ready(process, log, timeout), log)
            with cluster.client:
                yield cluster
        finally:
            _stop(process)


def _await_ready(process: subprocess.Popen[str], log: pathlib.Path, timeout: float) -> str:
    """The address; the rest of what the process prints is read and forgotten."""
    assert process.stdout is not None
    ready = threading.Event()
    address: list[str] = []

    def read(lines: IO[str]) -> None:
        for line in lines:
            if line.startswith("ready "):
                address.append(line.split()[1])
                ready.set()
        ready.set()

    threading.Thread(target=read, args=(process.stdout,), daemon=True).start()
    end = time.monotonic() + timeout
    ready.wait(max(0.0, end - time.monotonic()))
    if address:
        return address[0]
    last = "\n".join(log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:])
    raise UnavailableError(f"the local cluster did not become ready within {timeout} s; the end of its log:\n{last}")


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
