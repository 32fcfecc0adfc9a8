"""Questions 1 to 5, and all numbers to reach in one table at the end."""

from __future__ import annotations

import argparse

from benchmarks import full_scores, length, real_network, report, stitching, whole_body
from benchmarks.command import answer

QUESTIONS = (stitching, length, whole_body, real_network, full_scores)

parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
parser.add_argument("--rounds", type=int, default=3, help="medians of so many rounds (default: 3)")
parser.add_argument("--full", action="store_true", help="also what takes long")
arguments = parser.parse_args()

checks = []
for module in QUESTIONS:
    for check in answer(module.QUESTION, arguments.rounds, arguments.full):
        checks.append(check.named(module.TITLE))
summary = report.checks_table(checks)
(report.RESULTS / "summary.md").write_text(summary + "\n")
print(summary)
