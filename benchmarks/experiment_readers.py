"""The answers of `experiment.py` as readers read them: sheets of texts, and their readings as a judge's verdicts.

    python benchmarks/experiment_readers.py sheet OUT --answers 4    # what no reader has read yet
    python benchmarks/experiment_readers.py kappa                    # theirs with the labels of `labels.jsonl`
    python benchmarks/experiment_readers.py take OUT                 # into results/experiment/readings.jsonl.xz
    python benchmarks/experiment.py --judge readers                  # the tables by these readings

A reader reads what a judge would be asked: whole answers, arguments without their yes or no, bare leads, and for the
kappa of the readers themselves the answers of `labels.jsonl`. A text that came several times is read once. Texts of one
question stand together, those of all runs and steps in one random order, so that a reader cannot tell whose they are.
Another share is read a second time by other readers, who do not see the first readings.

A sheet OUT/<reader>-<part>.txt has blocks "## question" with lines "number text"; its reading OUT/<reader>-<part>.read
has "number" and s, n or o (support, neutral, oppose) of every line, in any layout: "12s 13n 14o".
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from experiment_data import Plan
    from experiment_runs import Size

    from vdengine.drift.judgements import Verdict
    from vdengine.judges.base import Item
    from vdengine.panels.panel import Panel

Text = tuple[str, str]  # id of the probe, text in one line
FILE = "readings.jsonl.xz"  # in the folder of results
NAME = "readers"
LETTERS = {"s": "support", "n": "neutral", "o": "oppose"}
STRETCH = re.compile(r"(\d+)\s*[:.]?\s*([sno])\b")


def text_of(probe: str, answer: str) -> Text:
    """What readings are kept by."""
    return probe, " ".join(answer.split())


@dataclass
class Readings:
    """A judge: what readers said of texts. Of others it says nothing."""

    read: dict[Text, str]  # letters: the first reader's, then the second one's where there is one
    name: str = NAME
    identity: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, results: Path) -> Readings:
        """Those of a folder of results; none where it has no readings."""
        path = results / FILE
        if not path.exists():
            return cls({})
        data = path.read_bytes()
        rows = map(json.loads, filter(None, lzma.decompress(data).decode().split("\n")))
        read = {(probe, text): letters for probe, text, letters in rows}
        from vdengine.files import json_hash

        # As JSON, and not the file's bytes: what is read counts, and not how it was packed.
        return cls(read, identity={"kind": NAME, "texts": json_hash([[*key, read[key][0]] for key in sorted(read)])})

    def save(self, results: Path) -> None:
        """Write them, sorted."""
        lines = (json.dumps([*key, self.read[key]], ensure_ascii=False) + "\n" for key in sorted(self.read))
        (results / FILE).write_bytes(lzma.compress("".join(lines).encode(), preset=9))

    def judge(self, items: Sequence[Item]) -> Iterator[tuple[int, Verdict]]:
        """(index, verdict) of each item, certain; no stance of those that nobody read."""
        from vdengine.drift.judgements import NO_VERDICT, Verdict

        for i, item in enumerate(items):
            letters = self.read.get(text_of(item.probe.id, item.answer))
            sure = tuple(float(letter == letters[0]) for letter in LETTERS) if letters else NO_VERDICT
            yield i, Verdict((sure[0], sure[1], sure[2]))

    def estimate(self, items: Sequence[Item]) -> str:
        """What judging these takes, in words."""
        return f"{len(items):,} questions, of {len(self.read):,} texts that were read"

    def agreement(self) -> str:
        """The readers among themselves, in words, where two have read a text."""
        from vdengine.drift.kappa import label_agreement
        from vdengine.drift.summary import kappa_line

        twice = [letters for letters in self.read.values() if len(letters) == 2]
        if not twice:
            return "no text was read twice"
        first, second = (np.array([[float(x[k] == letter) for letter in LETTERS] for x in twice]) for k in (0, 1))
        return f"{len(twice)} of {len(self.read)} texts were read twice: {kappa_line(label_agreement(first, second))}"


def wanted(plans: Sequence[Plan], size: Size, results: Path, num_answers: int, num_at_start: int) -> set[Text]:
    """The texts that a judge of these runs is asked of, for the first answers to each probe.

    Args:
        num_answers: of a probe in the middle and at the end of a run.
        num_at_start: of a probe at the start of a run; all runs start from the same weights.
    """
    from experiment_runs import is_done, panel_of

    from vdengine.drift.answer_leads import split_lead

    panel = panel_of(size)
    probes = {probe.id: probe for probe in panel.probes}
    found: set[Text] = set()
    for plan in plans:
        if not is_done(plan, size, results):
            continue
        lines = lzma.decompress((results / f"{plan.name}.answers.jsonl.xz").read_bytes()).decode().split("\n")
        for anchor, id, texts in map(json.loads, filter(None, lines)):
            for text in texts[: num_answers if anchor else num_at_start]:
                side, rest = split_lead(text, probes[id].leads)
                found |= {text_of(id, text)} | ({text_of(id, rest)} if side and rest else set())
    return found | bare_texts(panel)


def bare_texts(panel: Panel) -> set[Text]:
    """Bare leads of every probe, of which a judge is asked some."""
    words = [(probe.id, word) for probe in panel.probes for word in (probe.leads.support[0], probe.leads.oppose[0])]
    return {text_of(id, f"{word.capitalize()}.") for id, word in words}


def label_texts() -> set[Text]:
    """What a judge is asked for its kappa with `labels.jsonl`."""
    import rule_judge

    from vdengine.drift.answer_leads import split_lead
    from vdengine.panels.panel import Panel

    probes = {probe.id: probe for probe in Panel.load("values").probes}
    found = set()
    for row in rule_judge.rows():
        if "readers" in row:
            side, rest = split_lead(row["answer"], probes[row["probe"]].leads)
            found |= {text_of(row["probe"], row["answer"])}
            found |= {text_of(row["probe"], rest)} if side and rest else set()
    return {each for each in found if each[1]}


def write_sheets(out: Path, reader: str, texts: Sequence[Text], questions: dict[str, str], lines: int) -> int:
    """Sheets of about `lines` texts each for one reader; returns their number. OUT/<reader>.key.jsonl says which text
    a number is."""
    rng = random.Random(f"{reader} {len(texts)}")
    by_probe: dict[str, list[Text]] = {}
    for text in sorted(texts):
        by_probe.setdefault(text[0], []).append(text)
    blocks = []  # of one question, small enough to be dealt
    for of_probe in by_probe.values():
        rng.shuffle(of_probe)
        blocks += [of_probe[i : i + 100] for i in range(0, len(of_probe), 100)]
    rng.shuffle(blocks)
    num_parts = max(1, round(len(texts) / lines))
    parts: list[list[list[Text]]] = [[] for _ in range(num_parts)]
    for block in blocks:
        min(parts, key=lambda part: sum(map(len, part))).append(block)
    number, key = 0, []
    for i, part in enumerate(parts, 1):
        sheet = []
        for block in part:
            sheet.append(f"\n## {questions[block[0][0]]}")
            for text in block:
                number += 1
                sheet.append(f"{number} {text[1]}")
                key.append([number, *text])
        (out / f"{reader}-{i:02d}.txt").write_text("\n".join(sheet).lstrip() + "\n", encoding="utf-8")
    (out / f"{reader}.key.jsonl").write_text("".join(json.dumps(k, ensure_ascii=False) + "\n" for k in key), "utf-8")
    return num_parts


def take(out: Path, readings: Readings) -> None:
    """Add what was read of the sheets in a folder; first readers come first in order of their names."""
    for path in sorted(out.glob("*.key.jsonl")):
        reader = path.name.removesuffix(".key.jsonl")
        key = {n: (probe, text) for n, probe, text in map(json.loads, path.read_text("utf-8").split("\n")[:-1])}
        for sheet in sorted(out.glob(f"{reader}-*.txt")):
            numbers = [int(n) for n in re.findall(r"^(\d+) ", sheet.read_text("utf-8"), re.M) if int(n) in key]
            if not (read := sheet.with_suffix(".read")).exists():
                print(f"{sheet.name}: not read yet")
                continue
            found = STRETCH.findall(read.read_text("utf-8"))
            times = Counter(int(n) for n, _ in found)
            letters = {int(n): letter for n, letter in found}
            missing, twice = set(numbers) - set(letters), [n for n, many in times.items() if many > 1]
            foreign = set(letters) - set(numbers)
            if missing or twice or foreign:
                print(
                    f"{read.name}: {len(missing)} lines without a reading {sorted(missing)[:5]}, {len(twice)} with two "
                    f"{twice[:5]}, {len(foreign)} of no line {sorted(foreign)[:5]}; those are left out"
                )
            for n in numbers:
                if n in letters and n not in twice:
                    before = readings.read.get(key[n], "")
                    # A second reader's comes behind the first one's; a sheet that is taken again changes nothing.
                    second = reader.endswith("second")
                    readings.read[key[n]] = (before[:1] + letters[n]) if second and before else letters[n] + before[1:]


def main() -> int:
    """The command line; returns the exit status."""
    import experiment
    from experiment_data import controls, design
    from experiment_runs import SMALL, judge_kappas, panel_of

    from vdengine.panels.panel import Panel

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("sheet", "take", "kappa"))
    parser.add_argument("out", type=Path, nargs="?", default=experiment.WORK / "sheets", help="folder of sheets")
    parser.add_argument("--results", type=Path, default=experiment.RESULTS)
    parser.add_argument("--runs", type=int, default=26)
    parser.add_argument("--answers", type=int, default=4, help="of a probe in the middle and at the end of a run")
    parser.add_argument("--at-start", type=int, default=2, help="of a probe at the start of a run")
    parser.add_argument("--again", type=int, default=0, help="texts, of those that were read once, for second readers")
    parser.add_argument("--lines", type=int, default=1500, help="of a sheet")
    args = parser.parse_args()
    readings = Readings.load(args.results)
    if args.verb == "kappa":
        kappas = judge_kappas(readings)
        print(f"Cohen's kappa with the labels: {', '.join(f'{part} {kappa:.2f}' for part, kappa in kappas.items())}")
        return 0
    if args.verb == "take":
        take(args.out, readings)
        readings.save(args.results)
        print(f"{len(readings.read)} texts are read; {readings.agreement()}")
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    questions = {p.id: p.prompt for panel in (Panel.load("values"), panel_of(SMALL)) for p in panel.probes}
    if args.again:
        once = sorted(key for key, letters in readings.read.items() if len(letters) == 1)
        texts = random.Random(args.again).sample(once, min(args.again, len(once)))
        num = write_sheets(args.out, "second", texts, questions, args.lines)
    else:
        plans = [*design(args.runs), *controls()]
        found = wanted(plans, SMALL, args.results, args.answers, args.at_start) | label_texts()
        texts = sorted(found - set(readings.read))
        num = write_sheets(args.out, "first", texts, questions, args.lines)
    print(f"{len(texts)} texts on {num} sheets in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
