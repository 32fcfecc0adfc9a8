"""One question of the benchmarks from the command line: measure, print, write the table and the chart."""

from __future__ import annotations

import argparse
import time

from benchmarks import report
from benchmarks.harness import Check, Question, measure

__all__ = ["answer", "main"]


def answer(question: Question, rounds: int, full: bool = False) -> list[Check]:
    """Measure, print and write."""
    print(f"{question.title}: {question.about}", flush=True)
    start = time.perf_counter()
    rows = question.rows(full)
    measure(rows, rounds, lambda line: print(line, flush=True))
    print("\n" + report.write(question, rows, rounds, time.perf_counter() - start), flush=True)
    return question.checks(rows)


def main(question: Question) -> None:
    """The command line of one question."""
    parser = argparse.ArgumentParser(description=question.about)
    parser.add_argument("--rounds", type=int, default=3, help="medians of so many rounds (default: 3)")
    parser.add_argument("--full", action="store_true", help="also what takes long")
    arguments = parser.parse_args()
    answer(question, arguments.rounds, arguments.full)
