"""`python -m calibration [--write]`: how often the stable rules are right, on runs that set no threshold."""

from __future__ import annotations

import argparse
import itertools
import os
import pickle
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch

from calibration.case import Case
from calibration.groups import groups, made
from calibration.score import THRESHOLDS, Score, chosen, fires, score, wilson
from throughtime.diagnosis.rule import registry
from throughtime.progress import bar

PAGE = Path(__file__).parent.parent / "docs" / "calibration.md"
LABELS = (
    "A label is how the network was built, what training then did, or what float64 autograd says; never a rule's own number "
    "(`calibration/groups/`). Vanishing: this beginning fails while another beginning of the same task, cell and seed learns. "
    "Exploding: gradient descent throws the network off, and does not when it is clipped at its median norm. Cut: float64 "
    "autograd gives exactly zero at the needed lag. Not a gradient problem: not vanishing, and the rest of the training gains "
    "nothing, because of shuffled labels, a tiny learning rate or too few units. Runs that neither learn nor clearly fail "
    "judge nothing. All networks are small (24 or 32 units) and all trainings short (150 or 200 steps)."
)
WEAK = """\
- Both halves share tasks, cells and ways to begin; only seeds differ. Thresholds were set on even seeds alone, but the rules'
  form (needed lags judged from one to the next; norms against their neighbours) and the labels were worked out on runs of both,
  so precision on tasks of another kind may well be lower.
- TT101 before training says what the gradient is, and labels say what training made of it. Within two decades of the
  threshold that depends on the number of steps; and Elman networks under Adam at 1e-2 move far enough in 200 steps to learn
  what hardly reached them at first: most of the false alarms.
- TT102 sees the network that is measured. An explosion that only develops in training is not seen in the fresh one; a small
  enough learning rate makes bursts harmless, and the rule does not know it; without norms by training step little is found.
- TT190 takes a plateau for a stall: where training would have got over it, that is a false alarm.
- TT103, TT401 and TT402 are decided exactly, and their labels lie close to their definitions: the tables say that they are
  implemented rightly, and little about how often such faults are met."""
NOTE = (
    "F½ counts precision twice as much as recall: a false alarm costs more trust than a miss. One value is not the best here: "
    "`HEAVY_BY_SEQUENCE`, the stand-in where no norms by training step are known. Growth alone is healthy, and too few of "
    "these runs grow without harm to show it; so the rule asks for a factor of ten there, and its finding is an info only."
)
STABLE = [code for code, rule in registry().items() if not rule.preview]


def main() -> None:
    """Run everything, print the tables, and write the page where asked to."""
    arguments = argparse.ArgumentParser(prog="python -m calibration", description=__doc__)
    arguments.add_argument("--write", action="store_true", help="write docs/calibration.md")
    arguments.add_argument("--keep", type=Path, help="keep the cases in this file, or use those that it holds")
    arguments.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 8), help="processes")
    given = arguments.parse_args()
    begun = time.monotonic()
    if given.keep and given.keep.exists():
        cases = pickle.loads(given.keep.read_bytes())
    else:
        cases = run(given.jobs)
        if given.keep:
            given.keep.write_bytes(pickle.dumps(cases))
    text = page(cases)
    print(text)
    print(f"{time.monotonic() - begun:.0f} s")
    if given.write:
        PAGE.write_text(text, encoding="utf-8")


def run(jobs: int) -> list[Case]:
    """All cases, in the order of the groups."""
    todo = groups()
    done: dict[int, list[Case]] = {}
    # One thread a process: small products gain nothing from more, and results do not depend on the machine's load.
    with (
        bar() as tell,
        ProcessPoolExecutor(
            jobs, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool,
    ):
        waiting = {pool.submit(made, place): place for place in range(len(todo))}
        for future in as_completed(waiting):
            place = waiting[future]
            done[place] = future.result()
            tell(len(done), len(todo), todo[place][0])
    return [case for place in sorted(done) for case in done[place]]


def page(cases: list[Case]) -> str:
    """The tables, as Markdown."""
    setting = [case for case in cases if case.seed % 2 == 0]
    judging = [case for case in cases if case.seed % 2 == 1]
    runs = {(case.family, case.name, case.seed) for case in cases}
    moments = list(dict.fromkeys(case.moment for case in cases))
    lines = [
        "# Calibration of the rules",
        "",
        f"Made by `make calibrate` from {len(runs)} labelled runs and {len(cases)} judgements of them. Runs of even "
        "seeds set the thresholds. The tables of right and wrong are of the odd seeds alone, "
        f"{len(judging)} judgements that set none.",
        "",
        LABELS,
        "",
        "## Right and wrong",
        "",
        "| rule | measured | faults | precision (95 % interval) | recall (95 % interval) | false alarms |",
        "|---|---|---|---|---|---|",
    ]
    for code, moment in itertools.product(STABLE, moments):
        found = score(code, [case for case in judging if case.moment == moment])
        if found != Score():
            lines.append(_row(f"{code} {registry()[code].name}", moment, found))
    lines += [
        "",
        "## Thresholds, set on the other half",
        "",
        NOTE,
        "",
        "| constant | value | best F½ |",
        "|---|---|---|",
    ]
    for threshold in THRESHOLDS:
        best, scores = chosen(threshold, setting)
        top = max(each.merit for each in scores)
        span = f"{best[0]:.2g}" if len(best) == 1 else f"{min(best):.2g} to {max(best):.2g}"
        lines.append(f"| {threshold.code} `{threshold.name}` | {threshold.current:g} | {top:.2f} at {span} |")
    lines += [
        "",
        "## Every wrong judgement of the odd seeds",
        "",
        "| rule | run | measured | said |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {code} | {case.family}: {case.name} | {case.moment} | {'false alarm' if fires(code, case) else 'missed'} |"
        for code, case in itertools.product(STABLE, judging)
        if code in case.truth and fires(code, case) != case.truth[code]
    ]
    lines += ["", "## What is weak", "", WEAK, "", "## Runs by label", "", "| label | runs |", "|---|---|"]
    lines += [f"| {family} | {count} |" for family, count in sorted(Counter(family for family, *_ in runs).items())]
    return "\n".join(lines) + "\n"


def _row(name: str, what: str, found: Score) -> str:
    precision, recall = (_share(*pair) for pair in (found.precision, found.recall))
    sound = found.false_alarms + found.quiet
    return f"| {name} | {what} | {recall[1]} | {precision[0]} | {recall[0]} | {found.false_alarms} of {sound} |"


def _share(right: int, of: int) -> tuple[str, int]:
    if not of:
        return "–", 0
    low, high = wilson(right, of)
    return f"{right / of:.2f} ({low:.2f}–{high:.2f}), {right} of {of}", of


if __name__ == "__main__":
    main()
