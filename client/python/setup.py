"""Builds the wheel: pure Python, and the protocol as the descriptors that `protoc` makes of proto/.

Descriptors, not generated code: they do not tie the wheel to one version of protobuf.
"""
import pathlib
import shutil
import subprocess
import sys

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = pathlib.Path(__file__).resolve().parent
FILES = ("ringserve/v1/tensor.proto", "ringserve/v1/attention.proto")
# Beside this file in a source distribution, at the root of the repository else.
PROTO = next((path for path in (HERE / "proto", HERE / "../../proto") if (path / FILES[0]).exists()), HERE / "proto")


def compile_protocol(descriptors):
    arguments = [f"-I{PROTO}", f"--descriptor_set_out={descriptors}", *FILES]
    protoc = shutil.which("protoc")
    command = [protoc] if protoc else [sys.executable, "-m", "grpc_tools.protoc"]
    subprocess.run([*command, *arguments], check=True)


class BuildWithProtocol(build_py):
    def run(self):
        super().run()
        folder = HERE / "ringserve" if self.editable_mode else pathlib.Path(self.build_lib) / "ringserve"
        folder.mkdir(parents=True, exist_ok=True)
        compile_protocol(folder / "protocol.binpb")


class SourceWithProtocol(sdist):
    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        for name in FILES:
            target = pathlib.Path(base_dir) / "proto" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PROTO / name, target)


setup(cmdclass={"build_py": BuildWithProtocol, "sdist": SourceWithProtocol})
