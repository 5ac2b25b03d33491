"""Answers to judge, a judge that says what it is told, and annotation sheets."""

import csv

from vdengine.drift.answer_log import Answer, AnswerLog
from vdengine.drift.judgements import Verdict
from vdengine.errors import InputError
from vdengine.panels.panel import Panel


def rows_of(path):
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def write(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


MINI = Panel.load("values-mini")
PANEL = Panel("three", MINI.probes[:3])


def answered(folder, texts, anchors=(0, 4), panel=PANEL):
    """A run folder with these answers to every probe at every anchor."""
    log = AnswerLog.create(folder, panel, "tokenizer", samples=len(texts), max_tokens=8)
    for anchor in anchors:
        log.append([Answer(anchor, p.id, k, [k], True, t) for p in panel.probes for k, t in enumerate(texts)])
    return log


class Scripted:
    """A judge that gives the stances it is told, or verdicts, and counts what it is asked."""

    def __init__(self, give=lambda item: (0.7, 0.2, 0.1), name="scripted", version=1, stop_after=None):
        self.name, self.identity, self.give, self.stop_after = name, {"version": version}, give, stop_after
        self.asked = []

    def estimate(self, items):
        return f"{len(items)} answers"

    def judge(self, items):
        for i in range(len(items)):
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise InputError("scripted: its quota is used up")
            self.asked.append(items[i])
            given = self.give(items[i])
            yield i, given if isinstance(given, Verdict) else Verdict(given)
