"""The examples, and their models as TorchScript, served in C++: what they give is what they give here."""
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

needs_program = pytest.mark.skipif(not PROGRAM.exists(), reason="served_module is not built: it needs LibTorch")
needs_encoder = pytest.mark.skipif("RINGSERVE_ENCODER" not in os.environ,
                                   reason="its weights are fetched by examples/encoder.py itself")


def run_training(source, cluster, steps, tokens, *more):
    printed = run_example(source, cluster, "training.py", "--steps", str(steps), "--tokens", str(tokens), *more)
    assert f"{3 * steps} attention calls and {3 * steps} of their backward passes served by 2 workers" in printed
    assert "generated, the same" in printed and "plumbing, not language" in printed


def folder():
    return tempfile.TemporaryDirectory(prefix="ringserve-")


@pytest.fixture(scope="module")
def trained(cluster, source):
    """Where the example of a training has written its model."""
    with folder() as made:
        run_training(source, cluster, 3, 48, "--script", made)
        yield pathlib.Path(made)


@pytest.fixture(scope="module")
def encoder(cluster, source):
    """Where the example of an encoder has written its model."""
    with folder() as made:
        printed = run_example(source, cluster, "encoder.py", "--passages", "8", "--model", os.environ["RINGSERVE_ENCODER"],
                              "--script", made)
        assert "6 attention calls served" in printed
        yield pathlib.Path(made)


def run(cluster, model, *masks):
    """Exit status, calls served, and the largest difference."""
    environment = dict(os.environ, OMP_WAIT_POLICY="PASSIVE")  # its threads spin else, on cores that the workers need
    program = subprocess.run([PROGRAM, model / "model.pt", model / "inputs.pt", cluster.address, *masks],
                             capture_output=True, text=True, check=False, env=environment)
    found = re.fullmatch(r"(\d+) attention calls served, the last by 2 workers\n"
                         r"largest difference of \d+ numbers, of the largest: (\S+)\n", program.stdout)
    assert found, program.stdout + program.stderr
    return program.returncode, int(found[1]), float(found[2])


def test_the_example_of_a_causal_model_gets_the_same_logits(cluster, source):
    assert "3 attention calls served by 2 workers" in run_example(source, cluster, "context_parallel.py", "--tokens", "700")


def test_the_example_of_a_training_gets_the_same_losses(trained):
    assert (trained / "model.pt").exists()


@pytest.mark.long
def test_the_example_of_a_training_gets_the_same_losses_for_long(cluster, source):
    run_training(source, cluster, 60, 512)


@needs_encoder
def test_the_example_of_a_pretrained_encoder_gets_the_same_embeddings(encoder):
    assert (encoder / "model.pt").exists()


@needs_program
def test_a_trained_causal_model_gives_the_same_logits(cluster, trained):
    status, calls, difference = run(cluster, trained)
    assert (status, calls) == (0, 3) and difference < 1e-5
    (trained / "window.json").write_text('{"window": {"left": 30}}')
    status, calls, difference = run(cluster, trained, trained / "window.json")
    assert (status, calls) == (1, 3) and difference > 1e-4


@needs_program
@needs_encoder
def test_a_pretrained_encoder_gives_packed_what_it_gives_padded(cluster, encoder):
    status, calls, difference = run(cluster, encoder, encoder / "mask.json")
    assert (status, calls) == (0, 6) and difference < 1e-5
    status, calls, difference = run(cluster, encoder)
    assert (status, calls) == (1, 6) and difference > 1e-2
    # One key counted to the passage before its own.
    mask = json.loads((encoder / "mask.json").read_text())
    first, second, *others = map(int, mask["documents"]["qLengths"])
    mask["documents"]["kvLengths"] = [first + 1, second - 1, *others]
    (encoder / "leaky.json").write_text(json.dumps(mask))
    status, calls, difference = run(cluster, encoder, encoder / "leaky.json")
    assert (status, calls) == (1, 6) and difference > 1e-2
