"""Prints every skipped test with its reason, and fails on one that is not on the list.

    python .ci/check_skips.py ALLOWED REPORT.xml...

ALLOWED: a line `pattern of the test's name | part of the reason`; `#` starts a comment that says why it may be skipped.
"""

import fnmatch
import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def allowed(path: Path) -> list[tuple[str, str]]:
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [(name.strip(), reason.strip()) for name, _, reason in (line.partition("|") for line in lines if line)]


def skipped(report: Path) -> list[tuple[str, str]]:
    cases = ET.parse(report).iter("testcase")
    return [(f"{c.get('classname')}.{c.get('name')}", s.get("message") or "") for c in cases for s in c.findall("skipped")]


def main(list_path: str, *reports: str) -> int:
    rules = allowed(Path(list_path))
    unlisted = 0
    for report in map(Path, reports):
        for name, reason in skipped(report):
            listed = any(fnmatch.fnmatchcase(name, pattern) and part in reason for pattern, part in rules)
            unlisted += not listed
            print(f"{'SKIP' if listed else 'SKIP, NOT ON THE LIST'} ({report.stem}) {name}: {reason}")
    if unlisted:
        print(f"{unlisted} skipped tests are not on {list_path}")
    return 1 if unlisted else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
