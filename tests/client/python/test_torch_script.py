"""The models of the examples as TorchScript, served in C++: what they give is what they give here."""
import json
import os
import pathlib
import re
import subprocess
import tempfile

import pytest

pytest.importorskip("torch", reason="PyTorch is not importable: ./dev setup --pytorch brings it")

from conftest import run_example  # noqa: E402

PROGRAM = pathlib.Path(os.environ["RINGSERVE_BIN"]) / "served_module"

pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="served_module is not built: it needs LibTorch")


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="ringserve-") as made:
        yield pathlib.Path(made)


def run(cluster, folder, *masks):
    """Exit status, calls served, and the largest difference."""
    environment = dict(os.environ, OMP_WAIT_POLICY="PASSIVE")  # its threads spin else, on cores that the workers need
    program = subprocess.run([PROGRAM, folder / "model.pt", folder / "inputs.pt", cluster.address, *masks],
                             capture_output=True, text=True, check=False, env=environment)
    found = re.fullmatch(r"(\d+) attention calls served, the last by 2 workers\n"
                         r"largest difference of \d+ numbers, of the largest: (\S+)\n", program.stdout)
    assert found, program.stdout + program.stderr
    return program.returncode, int(found[1]), float(found[2])


def test_a_trained_causal_model_gives_the_same_logits(cluster, source, folder):
    run_example(source, cluster, "training.py", "--steps", "3", "--tokens", "48", "--script", folder)
    status, calls, difference = run(cluster, folder)
    assert (status, calls) == (0, 3) and difference < 1e-5
    (folder / "mask.json").write_text('{"window": {"left": 30}}')
    status, calls, difference = run(cluster, folder, folder / "mask.json")
    assert (status, calls) == (1, 3) and difference > 1e-4


@pytest.mark.skipif("RINGSERVE_ENCODER" not in os.environ, reason="its weights are fetched by examples/encoder.py itself")
def test_a_pretrained_encoder_gives_packed_what_it_gives_padded(cluster, source, folder):
    run_example(source, cluster, "encoder.py", "--passages", "8", "--model", os.environ["RINGSERVE_ENCODER"],
                "--script", folder)
    status, calls, difference = run(cluster, folder, folder / "mask.json")
    assert (status, calls) == (0, 6) and difference < 1e-5
    status, calls, difference = run(cluster, folder)
    assert (status, calls) == (1, 6) and difference > 1e-2
    # One key counted to the passage before its own.
    mask = json.loads((folder / "mask.json").read_text())
    first, second, *others = map(int, mask["documents"]["qLengths"])
    mask["documents"]["kvLengths"] = [first + 1, second - 1, *others]
    (folder / "leaky.json").write_text(json.dumps(mask))
    status, calls, difference = run(cluster, folder, folder / "leaky.json")
    assert (status, calls) == (1, 6) and difference > 1e-2
