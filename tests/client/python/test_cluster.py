"""local_cluster: it starts, it serves, and nothing of it is left."""
import os
import subprocess
import sys
import time

import numpy as np
import pytest

import ringserve
from ringserve import errors


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_serves_and_leaves_no_process_behind_even_after_an_exception():
    pids = []
    with pytest.raises(KeyError):
        with ringserve.local_cluster(workers=1, threads=1) as cluster:
            pids = [cluster.pid, *(worker.pid for worker in cluster.client.status().workers)]
            x = np.ones((1, 1, 3, 4), np.float32)
            np.testing.assert_array_equal(cluster.client.attend(x, x, x).out, x)
            assert "listening address=" in cluster.log()
            raise KeyError
    assert len(pids) == 2 and not any(alive(pid) for pid in pids)


def test_ends_with_the_process_that_started_it():
    program = ("import os, ringserve\n"
               "with ringserve.local_cluster(workers=1, threads=1) as cluster:\n"
               "    print(cluster.pid, *(worker.pid for worker in cluster.client.status().workers), flush=True)\n"
               "    os.kill(os.getpid(), 9)\n")
    killed = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=False)
    pids = [int(pid) for pid in killed.stdout.split()]
    assert killed.returncode == -9 and len(pids) == 2
    end = time.monotonic() + 30
    while any(alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(alive(pid) for pid in pids)


def test_says_where_it_looked_for_the_programs(tmp_path, monkeypatch):
    with pytest.raises(errors.InvalidArgumentError, match=str(tmp_path)):
        with ringserve.local_cluster(bin=tmp_path):
            pass
    monkeypatch.delenv("RINGSERVE_BIN")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.InvalidArgumentError, match="PATH"):
        with ringserve.local_cluster():
            pass


def test_a_cluster_that_does_not_start_shows_its_log(tmp_path):
    program = tmp_path / "ringctl"
    program.write_text("#!/bin/sh\necho it is broken >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(errors.UnavailableError, match="it is broken"):
        with ringserve.local_cluster(bin=tmp_path, timeout=20):
            pass
