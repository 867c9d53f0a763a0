#!/usr/bin/env python3
"""One file of what `./dev test --gpu` found: `report.py REPORTS OUT` reads ctest.xml and PROGRAM.json (googletest's) of
the folder REPORTS, and selftest.json (`ringctl selftest --report`), and writes OUT, one JSON object that can be sent to
the maintainers. Prints why test cases were skipped, and a line of sums. Exit status 1 where anything failed.
"""
import json
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree

SKIPPED = re.compile(r"^(?:\S+: Skipped\n)?(no GPU: .*)$", re.M)


def program(reports, entry):
    """One test program: its cases with their outcomes, and what it printed unless all passed."""
    name, cases = entry.get("name"), {}
    try:
        for suite in json.loads((reports / f"{name}.json").read_text())["testsuites"]:
            for case in suite["testsuite"]:
                skipped = case.get("result") == "SKIPPED" or case.get("status") == "NOTRUN"
                outcome = "failed" if case.get("failures") else "skipped" if skipped else "passed"
                cases[f"{suite['name']}.{case['name']}"] = outcome
    except (OSError, ValueError, KeyError) as error:
        cases[name] = f"failed: no report ({error})"
    found = {"program": name, "seconds": float(entry.get("time", 0)), "cases": cases}
    ended_well = entry.get("status") == "run" and entry.find("failure") is None
    if not ended_well and not any(outcome.startswith("failed") for outcome in cases.values()):
        cases[name] = "failed: it ended badly"
    if set(cases.values()) != {"passed"}:
        found["output"] = entry.findtext("system-out", "")
    return found


def commit():
    """Of the sources; empty where git does not say."""
    asked = ["git", "-C", str(pathlib.Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def main(reports, out):
    reports = pathlib.Path(reports)
    try:
        entries = list(xml.etree.ElementTree.parse(reports / "ctest.xml").getroot().iter("testcase"))
    except (OSError, xml.etree.ElementTree.ParseError) as error:
        print(f"{reports}/ctest.xml: no results ({error})", file=sys.stderr)
        entries = []
    programs = [program(reports, entry) for entry in entries]
    try:
        selftest = json.loads((reports / "selftest.json").read_text())
    except (OSError, ValueError) as error:
        selftest = {"summary": {"passed": 0, "failed": 1, "skipped": 0}, "error": f"no report ({error})"}
    outcomes = [outcome.split(":")[0] for one in programs for outcome in one["cases"].values()]
    sums = {key: outcomes.count(key) for key in ("passed", "failed", "skipped")}
    found = {"commit": commit(), "tests": {"summary": sums, "programs": programs}, "selftest": selftest}
    pathlib.Path(out).write_text(json.dumps(found, indent=1))

    for reason in sorted({reason for one in programs for reason in SKIPPED.findall(one.get("output", ""))}):
        print(f"SKIPPED: {reason}")
    for what, counts in (("test cases", sums), ("self-test", selftest["summary"])):
        print(f"{what}: " + ", ".join(f"{counts[key]} {key}" for key in ("passed", "failed", "skipped")))
    print(f"report: {out}")
    return 1 if not programs or sums["failed"] or selftest["summary"]["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
