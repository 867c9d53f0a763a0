#!/usr/bin/env python3
"""Sum up test runs: `sum_results.py [--add PASSED FAILED] REPORTS...` prints `N passed, N failed[, N skipped]`.

Each REPORTS is a folder that ctest and the test programs wrote: ctest.xml (JUnit, one entry per program) and
PROGRAM.json (googletest's report, one entry per case) or PROGRAM.xml (pytest's). A program without a report counts as one test; one that
ended badly without a failed case (a crash, a time-out, a sanitizer's verdict at exit) counts as one failure.
Exit status 1 where anything failed or nothing ran.
"""
import json
import pathlib
import sys
import xml.etree.ElementTree


def cases(report):
    """(passed, failed, skipped) of one googletest report."""
    passed = failed = skipped = 0
    for suite in report["testsuites"]:
        for case in suite["testsuite"]:
            if case.get("failures"):
                failed += 1
            elif case.get("result") == "SKIPPED" or case.get("status") == "NOTRUN":
                skipped += 1
            else:
                passed += 1
    return passed, failed, skipped


def junit_cases(report):
    """(passed, failed, skipped) of one JUnit report."""
    passed = failed = skipped = 0
    for case in report.iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return passed, failed, skipped


def program(reports, entry):
    """(passed, failed, skipped) of one ctest entry."""
    path = reports / f"{entry.get('name')}.json"
    junit = path.with_suffix(".xml")
    ok = entry.get("status") == "run" and entry.find("failure") is None
    try:
        if junit.exists():
            passed, failed, skipped = junit_cases(xml.etree.ElementTree.parse(junit))
        else:
            passed, failed, skipped = cases(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, xml.etree.ElementTree.ParseError):
        if entry.find("skipped") is not None and entry.get("status") == "notrun":
            return 0, 0, 1
        return (1, 0, 0) if ok and not path.exists() and not junit.exists() else (0, 1, 0)
    return passed, failed + (not ok and failed == 0), skipped


def main(folders):
    total = [0, 0, 0]
    if folders[:1] == ["--add"]:
        total[:2] = map(int, folders[1:3])
        folders = folders[3:]
    for folder in map(pathlib.Path, folders):
        try:
            entries = list(xml.etree.ElementTree.parse(folder / "ctest.xml").getroot().iter("testcase"))
        except (OSError, xml.etree.ElementTree.ParseError) as error:
            print(f"{folder}: no results ({error})", file=sys.stderr)
            entries, total[1] = [], total[1] + 1
        for entry in entries:
            total = [a + b for a, b in zip(total, program(folder, entry))]
    passed, failed, skipped = total
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
