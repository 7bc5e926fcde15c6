# SPDX-License-Identifier: Apache-2.0
"""Scores `tallax lint` on labelled places: `python -m benchmarks.lint_labels LABELS.jsonl [CHECKOUTS]`.

LABELS has an object a line with `repo`, `commit`, `path`, `line`, `rule` (a slug), `label` (`bug` or `ok`) and `kind`
(`adjacent` is out of scope). CHECKOUTS has a folder for each repository and commit, `owner+name@` and eight digits; if
it is omitted, the environment variable `TALLAX_LINT_CHECKOUTS` names it. Repositories that are not there are listed
and not counted. Exits with 1 if less than 85% of all bugs are found or more than 4% of the fine places are reported,
and with 2 if nothing was scored. Rules below 70% are named, but do not fail: a set has too few places of most rules.
"""

from __future__ import annotations

import collections
import json
import os
import pathlib
import sys

from tallax.lint import Config, lint
from tallax.lint.rules import RULES

# The share of bugs to be found over all rules, and the share of fine places that may be reported.
_ALL, _WRONGLY = 0.85, 0.04
# Each rule that has a few bugs is named if it finds a smaller share.
_EACH, _FEW = 0.70, 5


def main(labels: str, checkouts: str = "") -> None:
    """Prints what is found of the bugs, and reported of the places that are fine, by rule."""
    places = [json.loads(line) for line in pathlib.Path(labels).read_text().splitlines()]
    checkouts = checkouts or os.environ.get("TALLAX_LINT_CHECKOUTS", "")
    folders = {_folder(place) for place in places}
    absent = {name for name in folders if not checkouts or not (pathlib.Path(checkouts) / name).is_dir()}
    for name in sorted(absent):
        print(f"not scored, no checkout: {name}")
    places = [place for place in places if _folder(place) not in absent]
    if not places:
        print("did not run: TALLAX_LINT_CHECKOUTS names no folder with a checkout of these repositories")
        sys.exit(2)
    known = {rule.slug for rule in RULES}
    found: set[tuple[str, int, str]] = set()
    for name in sorted({_folder(place) for place in places}):
        report = lint([str(pathlib.Path(checkouts) / name)], Config())
        found |= {(finding.path, finding.line, finding.slug) for finding in report.findings}
    counts: dict[str, collections.Counter[tuple[str, bool]]] = collections.defaultdict(collections.Counter)
    for place in places:
        if place["kind"] == "adjacent" or place["rule"] not in known:
            continue
        path = str(pathlib.Path(checkouts) / _folder(place) / place["path"])
        hit = (path, place["line"], place["rule"]) in found
        counts[place["rule"]][place["label"], hit] += 1
        if hit != (place["label"] == "bug"):
            what = "reported" if hit else "missed"
            print(f"{what}: {place['rule']} {place['path']}:{place['line']} {place['note']}")
    short = []
    for slug, count in sorted(counts.items()):
        bugs, fine = (sum(count[label, hit] for hit in (True, False)) for label in ("bug", "ok"))
        hits = count["bug", True], count["ok", True]
        print(f"{slug:20} {hits[0]} of {bugs} bugs found, {hits[1]} of {fine} fine places reported")
        if bugs >= _FEW and hits[0] < _EACH * bugs:
            short.append(slug)
    whole = sum(counts.values(), collections.Counter())
    bugs, fine = (sum(whole[label, hit] for hit in (True, False)) for label in ("bug", "ok"))
    print(f"{'all':20} {whole['bug', True]} of {bugs} bugs found, {whole['ok', True]} of {fine} fine places reported")
    if short:
        print(f"below {_EACH:.0%}: {', '.join(short)}")
    if whole["bug", True] < _ALL * bugs or whole["ok", True] > _WRONGLY * fine:
        sys.exit(f"promised: at least {_ALL:.0%} of the bugs, and at most {_WRONGLY:.0%} of the fine places")


def _folder(place: dict[str, str]) -> str:
    return f"{place['repo'].replace('/', '+')}@{place['commit'][:8]}"


if __name__ == "__main__":
    main(*sys.argv[1:])
