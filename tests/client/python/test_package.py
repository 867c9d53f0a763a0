"""The installed package: from the wheel, typed, and of the protocol in the repository."""
import importlib.metadata
import pathlib
import subprocess

import ringserve
from ringserve import _protocol


def test_is_the_wheels_and_typed():
    package = pathlib.Path(ringserve.__file__).parent
    assert package.parent.name in ("site", "site-packages")
    assert (package / "py.typed").exists()
    assert importlib.metadata.version("ringserve") == ringserve.__version__


def test_its_protocol_is_the_repositorys(source, tmp_path):
    subprocess.run(["protoc", f"-I{source / 'proto'}", f"--descriptor_set_out={tmp_path / 'now'}",
                    "ringserve/v1/tensor.proto", "ringserve/v1/attention.proto"], check=True)
    carried = pathlib.Path(ringserve.__file__).parent / "protocol.binpb"
    assert carried.read_bytes() == (tmp_path / "now").read_bytes()


def test_every_name_it_uses_is_in_the_protocol():
    assert _protocol.Balancer.names()[:2] == ["auto", "contiguous"]
    assert _protocol.TensorId.number("sink-logits") == 8
    assert set(ringserve.__all__) <= set(dir(ringserve))
