"""The raw log of a run's answers, as sampled at anchors, and of their log-probs under later weights.

It is the folder `<run>/drift/answers/`:

    manifest.json   schema, panel name and hash, tokenizer hash, how the answers were sampled
    panel.jsonl     the probes that are answered: the run's panel or a stratified part of it
    answers.jsonl   one line per answer, anchor by anchor: anchor, probe, sample, ids, stopped, text
    weights.bin     one record per reading: step, anchor (int64), then the log-prob sum (float32, nats) of each answer
                    of that anchor's bank under the weights of that step

An anchor is a step at which answers were sampled (0: before training). Its bank is the first `samples` answers of each
probe, probe by probe: the answers whose log-probs are computed in training forwards. At step 0 there may be more
answers, for a less noisy baseline. Judgements are kept apart (`drift/judgements.py`): they can be made later, by
several judges, without training again.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdengine.drift.channels import RECORDS
from vdengine.errors import InputError
from vdengine.files import write_bytes, write_text
from vdengine.outside import is_count, is_text, json_lines, json_object, printable, read_bytes
from vdengine.panels.panel import Panel
from vdengine.recipe import MOST_SAMPLES
from vdengine.runfolder import MANIFEST, RunFolder
from vdengine.settings import shown

SCHEMA = 1
_MOST_CELLS = 2**24


class Answer(NamedTuple):
    """One sampled answer to a probe's prompt."""

    anchor: int  # step: the number of updates the weights had had
    probe: str  # id
    sample: int  # 0, 1, ...
    ids: list[int]  # with the stop token, if one ended it
    stopped: bool  # a stop token ended it, not the limit
    text: str  # without the stop token


class Support(NamedTuple):
    """Whether the answers of an anchor are of kinds that the anchor before it has.

    Importance weights cannot represent a kind that was never drawn. A kind is how an answer begins (its first two
    words) and whether it ended by itself. Arrays are [P] float64, NaN for probes with too few answers.
    """

    anchor: int  # step of the fresh answers
    against: int  # step of the old ones
    novel: np.ndarray  # share of fresh answers whose kind no old answer has
    expected: np.ndarray  # share of old answers whose kind no other old answer has: what chance alone gives

    @property
    def excess(self) -> np.ndarray:
        """[P] float64: novel less expected; around 0 while the model gives the same kinds of answers."""
        return self.novel - self.expected


@dataclass
class AnswerLog:
    """Answers by anchor, and the readings between anchors.

    `manifest` is manifest.json, `panel` holds the probes that are answered.
    """

    folder: Path  # <run>/drift/answers
    manifest: dict[str, Any]
    panel: Panel
    answers: list[Answer] = field(default_factory=list)

    @classmethod
    def create(
        cls,
        run_folder: str | Path,
        panel: Panel,
        tokenizer_hash: str,
        *,
        samples: int,
        max_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> AnswerLog:
        """Start or continue the answers of a run.

        Args:
            samples: answers of a probe in a bank.
            max_tokens, temperature, top_p: how answers are sampled.

        Raises:
            InputError: the folder holds answers of another panel or tokenizer, or sampled in another way.
        """
        folder = RunFolder.at(run_folder).answers
        manifest = {
            "schema": SCHEMA,
            "panel": panel.name,
            "panel_hash": panel.hash,
            "tokenizer_hash": tokenizer_hash,
            "probes": [p.id for p in panel.probes],
            "samples": samples,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
        }
        if (folder / MANIFEST).exists():
            old = cls.open(run_folder)
            if changed := [k for k in manifest if old.manifest.get(k) != manifest[k]]:
                raise InputError(f"{folder}: holds answers of another kind ({', '.join(changed)} differ)")
            return old
        folder.mkdir(parents=True, exist_ok=True)
        panel.save(folder / "panel.jsonl")
        for name in ("answers.jsonl", "weights.bin"):
            (folder / name).touch()
        # Last: where a manifest is, the folder is complete.
        write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
        return cls(folder, manifest, panel)

    @classmethod
    def open(cls, run_folder: str | Path) -> AnswerLog:
        """Open a run's answers. A last line that was cut short is left out.

        Raises:
            InputError: there are none, or they are damaged.
        """
        folder = RunFolder.at(run_folder).answers
        path = folder / MANIFEST
        if not path.exists():
            raise InputError(f"{printable(run_folder)}: no answers here (expected {printable(path)})")
        manifest = json_object(path)
        if manifest.get("schema") != SCHEMA:
            raise InputError(f"{printable(path)}: schema is {shown(manifest.get('schema'))}; this reads {SCHEMA}")
        panel = Panel.load(folder / "panel.jsonl")
        if panel.hash != manifest.get("panel_hash"):
            raise InputError(f"{printable(folder / 'panel.jsonl')}: is not the panel that these answers belong to")
        samples = manifest.get("samples")
        if (
            not is_text(manifest.get("panel"))
            or manifest.get("probes") != [probe.id for probe in panel.probes]
            or not (is_count(samples, MOST_SAMPLES + 1) and samples)
        ):
            raise InputError(f"{printable(path)}: its panel, probes or samples are not those of the answers")
        return cls(folder, manifest, panel.renamed(manifest["panel"]), _read_answers(folder, panel, samples))

    @property
    def samples(self) -> int:
        """Answers of a probe in a bank."""
        return self.manifest["samples"]

    @property
    def anchors(self) -> list[int]:
        """Steps at which answers were sampled, in order."""
        return sorted({a.anchor for a in self.answers})

    def at(self, anchor: int) -> list[Answer]:
        """All answers of one anchor, probe by probe."""
        return [a for a in self.answers if a.anchor == anchor]

    def bank(self, anchor: int) -> list[Answer]:
        """The answers of an anchor whose log-probs are read later, in the order of a reading's log-probs."""
        return [a for a in self.at(anchor) if a.sample < self.samples]

    def append(self, answers: Sequence[Answer]) -> None:
        """Add one anchor's answers, in panel order, samples of a probe together."""
        text = "".join(json.dumps(a._asdict(), ensure_ascii=False) + "\n" for a in answers)
        with open(self.answers_path, "a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self.answers += answers

    def support(self) -> list[Support]:
        """Each anchor's answers against the bank of the anchor before it."""
        kinds: dict[tuple[int, str], list[tuple[Any, ...]]] = {}
        for answer in self.answers:
            if answer.sample < self.samples:
                kind = (*answer.text.lower().split()[:2], answer.stopped)
                kinds.setdefault((answer.anchor, answer.probe), []).append(kind)
        supports, anchors = [], self.anchors
        for old, new in zip(anchors, anchors[1:], strict=False):
            shares = []  # by probe: (novel, expected)
            for probe in self.panel.probes:
                old_kinds, new_kinds = Counter(kinds.get((old, probe.id), [])), kinds.get((new, probe.id), [])
                num_old = sum(old_kinds.values())
                if num_old > 1 and new_kinds:
                    novel = sum(kind not in old_kinds for kind in new_kinds)
                    alone = sum(count == 1 for count in old_kinds.values())
                    shares.append((novel / len(new_kinds), alone / num_old))
                else:
                    shares.append((np.nan, np.nan))
            supports.append(Support(new, old, *np.array(shares).T))
        return supports

    @property
    def answers_path(self) -> Path:
        """`answers.jsonl`."""
        return self.folder / "answers.jsonl"

    # ----------------------------------------------------------------------------- readings between anchors

    @property
    def weights_path(self) -> Path:
        """`weights.bin`."""
        return self.folder / "weights.bin"

    @property
    def record_bytes(self) -> int:
        """Bytes of one reading in `weights.bin`."""
        return self._record.itemsize

    @property
    def _record(self) -> np.dtype:
        size = len(self.manifest["probes"]) * self.samples
        return np.dtype([("step", "<i8"), ("anchor", "<i8"), ("logp", "<f4", (size,))])

    def readings(self) -> np.ndarray:
        """All readings, in order: structured array [readings] of step, anchor, logp [P * samples] float32, nats.

        The first reading of an anchor is at its own step; later ones are compared with it.
        """
        data = read_bytes(self.weights_path, RECORDS)
        records = np.frombuffer(data, dtype=self._record, count=len(data) // self._record.itemsize)
        if (
            (records["step"] < records["anchor"]).any()
            or (records["anchor"] < 0).any()
            or (records["step"] >= 2**53).any()
        ):
            raise InputError(f"{printable(self.weights_path)}: damaged: a reading has no such step")
        return records

    def append_reading(self, step: int, anchor: int, logp: np.ndarray) -> None:
        """Add a reading: log-prob sums logp [P * samples] float32, nats, of a bank under the weights of `step`."""
        record = np.zeros(1, dtype=self._record)
        record["step"], record["anchor"], record["logp"] = step, anchor, logp
        with open(self.weights_path, "ab") as file:
            file.write(record.tobytes())
            file.flush()
            os.fsync(file.fileno())

    def rewind(self, step: int) -> None:
        """Drop anchors and readings of `step` and later: a run resumed at `step` takes them again."""
        readings = self.readings()
        kept = readings[readings["step"] < step].tobytes()
        write_bytes(self.weights_path, kept)
        self.answers = [a for a in self.answers if a.anchor < step]
        write_text(self.answers_path, "".join(json.dumps(a._asdict(), ensure_ascii=False) + "\n" for a in self.answers))


def _read_answers(folder: Path, panel: Panel, samples: int) -> list[Answer]:
    """The answers in answers.jsonl, checked; samples: of a bank.

    Raises:
        InputError: a line is no answer to this panel, or the samples of a probe do not count from 0.
    """
    path = folder / "answers.jsonl"
    answers: list[Answer] = []
    drawn = Counter[tuple[int, str]]()  # by anchor and probe
    known = {probe.id for probe in panel.probes}
    for place, row in json_lines(path):
        if not isinstance(row, dict) or set(row) != set(Answer._fields):
            raise InputError(f"{place}: damaged: an answer has {', '.join(Answer._fields)}")
        answer = Answer(**row)
        if not (
            is_count(answer.anchor)
            and isinstance(answer.probe, str)
            and answer.probe in known
            and is_count(answer.sample, MOST_SAMPLES * 4)
            and isinstance(answer.ids, list)
            and all(is_count(id, 2**31) for id in answer.ids)
            and isinstance(answer.stopped, bool)
            and is_text(answer.text)
        ):
            raise InputError(f"{place}: damaged: not an answer to a probe of {printable(panel.name)}")
        if answer.sample != drawn[answer.anchor, answer.probe]:
            raise InputError(f"{place}: damaged: sample {answer.sample} of {answer.probe} is not the next one")
        drawn[answer.anchor, answer.probe] += 1
        answers.append(answer)
    # What an estimate lays out: a cell for each sample of each probe at each anchor.
    if len({anchor for anchor, _ in drawn}) * len(known) * max(samples, *drawn.values(), 0) > _MOST_CELLS:
        raise InputError(f"{printable(path)}: has too few answers for so many anchors and samples")
    return answers
