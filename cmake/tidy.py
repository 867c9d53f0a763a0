#!/usr/bin/env python3
"""clang-tidy-14 and clang's thread-safety analysis: `tidy.py [-j N] BUILD_DIR FILE...`.

Files that BUILD_DIR does not compile are named and left out. Exit status 1 where anything was found.
"""
import argparse
import concurrent.futures
import json
import pathlib
import re
import subprocess
import sys
import tempfile

EXTRA = ["-Wthread-safety", "-Wno-unknown-warning-option", "-Wno-unused-command-line-argument"]


def tidy(build, file):
    command = ["clang-tidy-14", "--quiet", "-p", str(build), *(f"--extra-arg={arg}" for arg in EXTRA), str(file)]
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return run.returncode, run.stdout if run.returncode == 0 else run.stdout + run.stderr


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-j", type=int, default=1)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    commands = (args.build / "compile_commands.json").read_text()
    compiled = {pathlib.Path(unit["file"]) for unit in json.loads(commands)}
    files = [file.resolve() for file in args.files]
    for file in sorted(set(files) - compiled):
        print(f"not compiled in {args.build}, not checked: {file}")
    failed = False
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(args.j) as pool:
        # clang cannot read what GCC has precompiled, and without it sees what a source forgets to include.
        (pathlib.Path(folder) / "compile_commands.json").write_text(re.sub(r"-include \S*/cmake_pch\.hxx ", "", commands))
        checked = [file for file in files if file in compiled]
        for file, (status, output) in zip(checked, pool.map(lambda file: tidy(folder, file), checked)):
            failed |= status != 0
            print(f"{'FAILED' if status else 'ok    '} {file}", flush=True)
            if output.strip():
                print(output, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
