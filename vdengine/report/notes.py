"""What is said of runs beside their numbers: leads that differ."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vdengine.drift.run import Run
from vdengine.errors import InputError
from vdengine.panels.panel import LEADS

MAX_NAMED = 6  # spellings that a sentence names

Spelled = dict[str, tuple[frozenset[str], frozenset[str]]]  # by probe: texts of tokens for its question, and against


def note_leads(runs: Sequence[Run]) -> None:
    """Note, with each run, that its leads are read over other tokens than those of the first run that has any: another
    tokenizer spells yes and no in other ways.

    Raises:
        InputError: the leads themselves differ, so that their probabilities are of different things.
    """
    first: tuple[Run, Spelled] | None = None
    for run in runs:
        spelled = _spelled(run)
        if not spelled:
            continue
        if first is None:
            first = run, spelled
            continue
        known, of_known = first
        for probe in (probe for probe in of_known if probe in spelled):
            here, there = _words(spelled[probe]), _words(of_known[probe])
            if here != there:
                raise InputError(
                    f"{known.folder} and {run.folder}: leads differ: answers to {probe!r} are read by {_told(there)} "
                    f"in the first and by {_told(here)} in the second; report them apart"
                )
        mine, theirs = ({text for sides in each.values() for side in sides for text in side} for each in
                        (spelled, of_known))  # fmt: skip
        differing = [
            f"only {name} has {_listed([repr(text) for text in sorted(some)])}"
            for name, some in ((run.name, mine - theirs), (known.name, theirs - mine))
            if some
        ]
        if differing:
            run.notes.append(
                f"leads are read over other tokens than in {known.name}: {' and '.join(differing)}. Compare shifts, "
                "not levels."
            )


def _spelled(run: Run) -> Spelled:
    """The tokens that leads after the questions are read over; {} without leads."""
    sides: dict[str, tuple[set[str], set[str]]] = {}
    for item in run.log.items(LEADS) if run.log is not None else ():
        if item["variant"] == "question":
            sides.setdefault(item["probe"], (set(), set()))[item["stance"] == "oppose"].add(item["text"])
    return {probe: (frozenset(support), frozenset(oppose)) for probe, (support, oppose) in sides.items()}


def _words(sides: tuple[frozenset[str], frozenset[str]]) -> tuple[frozenset[str], frozenset[str]]:
    """The words that these tokens spell."""
    support, oppose = (frozenset(re.sub(r"^\W+|\W+$", "", text).casefold() for text in side) for side in sides)
    return support, oppose


def _told(words: tuple[frozenset[str], frozenset[str]]) -> str:
    return " against ".join(_listed(sorted(side)) for side in words)


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + rest
