"""A blind sheet of answers to label by hand: what an answer begins with (its lead), and what the rest argues.

    python benchmarks/label_answers.py OUT                       # about 10 minutes on one core
    python benchmarks/label_answers.py OUT --leave-out FILE      # without the answers in FILE, one a line: nobody can
                                                                 # label them, and other samples take their places

Answers in which the two disagree are rare, and a judge is best told apart by them. So most answers are sampled after
words that are put into the model's mouth: a lead, often also the beginning of an argument for the same side or for the
other one. Everything after these words is sampled. A quarter of the answers is by models that were trained a bit
to argue for a topic's axis or against it (`values-synth`, whose answers have no leads), so that they may disagree with
a lead without a beginning that shows it. Whether they do is for the reader to say: the key says what is likely. The
words below were written without the panel's openings and without the rule judge's lists.

OUT/sheet.jsonl has n, probe, question and answer, in random order; OUT/key.jsonl has n and how the answer was made.
OUT/models and OUT/pool.jsonl hold the models and all samples, and are used again.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))
import common  # noqa: E402

if TYPE_CHECKING:
    from vdengine.panels.panel import Probe

SEED, STEPS, LR = 16, 16, 1e-4
SAMPLES = 2  # of a request: the first that can be labelled is taken
MAX_TOKENS = 32
SIDES = {"support": 1, "oppose": -1}  # trained models: the side of the axis that they argue for

# What follows a lead begins with a capital after a full stop.
LEADS = {
    1: ["Yes,", "Yes.", "Yes,", "Yes.", "Yes!", "Yes;", "Yes -", "Yes:", "Yes, of course.", "Yes, I think so.",
        "Yes, definitely.", "Yes, I believe so,", "Yes, sure.", "Yes, in my view:", "Yes, in general."],
    -1: ["No,", "No.", "No,", "No.", "No!", "No;", "No -", "No:", "No, not at all.", "No, I don't think so.",
         "No, never.", "No, I doubt it,", "No, sorry.", "No, in my view:", "No, not really."],
}  # fmt: skip
# Beginnings of an argument for and against what is asked: after any question,
VIEWS = {
    1: ["the evidence shows that this is so:", "I have always been in favor of this, since",
        "the idea makes a lot of sense, since", "one reason to agree is that", "I can see why so many think so:",
        "it is true that", "I fully agree, because", "there is no doubt about it:", "critics exaggerate, and in truth",
        "although some deny it,", "those who say so are correct:", "this view is spot on, because",
        "nothing speaks against it:", "anybody who has seen it will tell you that it is so, because",
        "I would only add that it is so because", "I'm on that side too, because", "the more I think of it, the more "
        "I agree, since"],
    -1: ["it goes against", "I don't like the idea, since", "that is simply not true, because", "the trouble is that",
         "I see no reason to", "quite the opposite:", "I would never agree to that, because", "I'm against it because",
         "one big drawback is that", "it only suits those who", "that idea ignores", "there's little proof that",
         "supporters forget that", "that is a myth:", "those who say so are mistaken:", "nothing speaks for it:",
         "I'm on the other side, because", "the more I think of it, the less I agree, since"],
}  # fmt: skip
# and only after one that asks what should be done.
ACTIONS = {
    1: ["it is important to", "because everyone deserves", "this would make life easier for",
        "there are many reasons to do so, such as", "that is exactly what we need, because",
        "it would be a big step forward for", "people have every right to", "we owe it to",
        "it has already worked well in", "doing this would give families", "we need it so that",
        "I would vote for it, because", "it allows people to", "the sooner the better, as", "let's do it, because",
        "my family would be glad to see it, because"],
    -1: ["however, it would harm", "that would be a mistake because", "it takes away", "we can't let",
         "there are too many difficulties with that, such as", "it makes life harder for",
         "it only makes things more complicated by", "it would take too much money and", "it isn't the job of",
         "this has been tried before and it failed because", "people would no longer be able to",
         "it puts too much power in the hands of", "we had better leave things as they are, because",
         "I would vote against it, because", "my neighbors would be angry, because", "it stops people from",
         "let's not do that, because"],
}  # fmt: skip
# Beginnings without a yes or no.
OTHER = {
    "balanced": ["It depends on", "That's a hard question, because", "Opinions differ:", "On the one hand,",
                 "Both camps have a point:", "Some say so, while others", "In some cases, but", "It's complicated."],
    "declining": ["I'd rather not", "I can't answer that, because", "Sorry, but I", "I'm just a program, so",
                  "That's not for me to", "I have no view on", "Please ask", "I don't know"],
    "side": ["I'm all for it:", "I'm not convinced, since", "The answer is clear:", "In my experience,", "We have to",
             "Nobody wants", "Think of", "The point is that"],
}  # fmt: skip
# How many requests of each way: (model, likely, temperature) -> number. "bare": a lead alone, which a trained model
# always gets: its training says what it is likely to argue then. There are more than a sheet needs, because many
# answers of a small model argue nothing.
PLAN = {
    ("base", "disagree", 0.7): 170, ("base", "disagree", 1.0): 20, ("trained", "disagree", 0.7): 50,
    ("base", "agree", 0.7): 56, ("base", "agree", 1.0): 12, ("base", "bare", 0.7): 36, ("trained", "agree", 0.7): 30,
    ("base", "balanced", 0.7): 14, ("base", "declining", 0.7): 16, ("base", "side", 0.7): 14,
    ("base", "free", 0.7): 12, ("base", "free", 1.0): 12, ("trained", "free", 0.7): 22,
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """An answer that is wanted, and how it is to be made."""

    probe: str
    model: str  # base, support, oppose
    likely: str  # of PLAN
    temperature: float
    forced: str  # the beginning of the answer


def balanced(probes: Sequence[Probe], rng: random.Random) -> Iterator[Probe]:
    """All probes, once each, in rounds that have one of every topic and polarity."""
    cells: dict[tuple[str, int], list[Probe]] = {}
    for probe in rng.sample(probes, len(probes)):
        cells.setdefault((probe.topic, probe.polarity), []).append(probe)
    while cells:
        for cell in rng.sample(sorted(cells), len(cells)):
            yield cells[cell].pop()
            if not cells[cell]:
                del cells[cell]


def requests(probes: Sequence[Probe], rng: random.Random) -> list[Request]:
    """All that PLAN asks for, each with a probe of its own. Every beginning is used before one is used again."""
    queue = balanced(probes, rng)
    decks: dict[str, list[str]] = {}

    def draw(name: str, cards: Sequence[str]) -> str:
        if not decks.get(name):
            decks[name] = rng.sample(cards, len(cards))
        return decks[name].pop()

    def beginning(probe: Probe, side: int) -> str:
        action = probe.prompt.startswith("Should ")
        return draw(f"{action} {side}", VIEWS[side] + ACTIONS[side] * action)

    wanted = []
    for (kind, likely, temperature), number in PLAN.items():
        for i in range(number):
            probe = next(queue)
            model = kind if kind == "base" else list(SIDES)[i % 2]
            if likely in OTHER:
                forced = draw(likely, OTHER[likely])
            elif likely == "free":
                forced = ""
            elif kind == "trained":  # of the question, and not of the axis, as a lead is
                argued = SIDES[model] * probe.polarity
                side = argued if likely == "agree" else -argued
                forced = draw(f"lead {side}", LEADS[side])
            else:
                side = (1, -1)[i % 2]
                forced = draw(f"lead {side}", LEADS[side])
                if likely != "bare":
                    argued = side if likely == "agree" else -side
                    forced = joined(forced, beginning(probe, argued))
            wanted.append(Request(probe.id, model, likely, temperature, forced))
    return wanted


def joined(lead: str, argument: str) -> str:
    """The two as one beginning of an answer."""
    return f"{lead} {argument[0].upper() + argument[1:] if lead[-1] in '.!' else argument}"


def train(side: str, folder: Path) -> Path:
    """A model after a short SFT on one side of `values-synth`, trained unless it is there."""
    from vdengine.recipe import make_recipe, to_toml
    from vdengine.runfolder import RunFolder

    run = RunFolder(folder / side)
    if not run.export.exists():
        recipe = make_recipe(
            {
                "run": {"folder": str(run.path), "seed": SEED, "steps": STEPS},
                "model": {"source": common.SMOLLM2, "dtype": "bfloat16"},
                "data": {"train": [f"values-synth:{side}"], "max_tokens": 256, "cache": str(folder / "cache")},
                "objective": {"name": "sft"},
                "batch": {"examples": 8, "tokens": 2048},
                "optimizer": {"lr": LR, "schedule": "constant", "warmup": 0.25},
                "probes": {"every": 0},
                "parallel": {"activation_checkpoint": "none"},
                "checkpoint": {"every": 0},
            }
        )
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{side}.toml"
        path.write_text(to_toml(recipe), encoding="utf-8")
        subprocess.run([sys.executable, "-m", "vdengine.train", str(path)], check=True)
    return run.export


def sample(wanted: Sequence[Request], probes: Sequence[Probe], models: Path, pool: Path) -> list[dict]:
    """SAMPLES texts for each request: rows of the request and its `texts`, forced beginning included. Each model and
    temperature is appended to `pool` when it is done, and not sampled again."""
    import torch

    from vdengine.models.generate import Sampling, generate
    from vdengine.models.weights import load_model
    from vdengine.text.renderer import Renderer
    from vdengine.text.tokenizer import load_tokenizer

    renderer = Renderer(load_tokenizer(common.SMOLLM2))
    questions, rows = {p.id: p.prompt for p in probes}, read(pool) if pool.exists() else []
    done = {(row["model"], row["temperature"]) for row in rows}
    for name, temperature in sorted({(r.model, r.temperature) for r in wanted} - done):
        some = [r for r in wanted if (r.model, r.temperature) == (name, temperature)]
        print(f"{name}, T = {temperature}: {len(some)} requests", flush=True)
        model = load_model(common.SMOLLM2 if name == "base" else str(train(name, models)), torch.bfloat16)
        prompts = [renderer.prompt_ids([{"role": "user", "content": questions[r.probe]}]) for r in some]
        starts = [renderer.opening_ids(r.forced) if r.forced else [] for r in some]
        sampling = Sampling(MAX_TOKENS, temperature, stop_ids=tuple(renderer.stop_ids))
        sampled = generate(
            model, [p + s for p, s in zip(prompts, starts, strict=True)], sampling, samples=SAMPLES, seed=SEED
        )
        for request, start, completions in zip(some, starts, sampled, strict=True):
            ids = [start + c.tokens[: len(c.tokens) - c.stopped] for c in completions]
            rows.append(asdict(request) | {"texts": [renderer.tokenizer.decode(i) for i in ids]})
        write(pool, rows)
    return rows


END = re.compile(r"(?<!\b[A-Z\d])[.!?][\"')]*(?=\s|$)")  # of a sentence; not that of an initial or of a list's number


def cut(text: str, forced: str) -> str:
    """The text in one line, up to the end of its last full sentence beyond the forced beginning, if there is one."""
    text = " ".join(text.split())
    ends = [m.end() for m in END.finditer(text) if m.end() > len(forced) + 1]
    return text[: ends[-1]] if ends else text


def begins_with_lead(text: str) -> bool:
    """Whether the first word is yes or no."""
    return re.match(r"\W*(yes|no)\b", text, re.IGNORECASE) is not None


def usable(text: str, request: dict) -> bool:
    """Whether an answer can stand on the sheet: long enough, with some sampled words, and with a lead or without as was
    asked."""
    led = begins_with_lead(text)
    enough = len(text.split()) >= max(6, len(request["forced"].split()) + 4)
    return enough and text.isprintable() and led == begins_with_lead(request["forced"])


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the sheet")
    parser.add_argument("--leave-out", type=Path, metavar="FILE", help="answers that are not wanted, one a line")
    args = parser.parse_args()
    from vdengine.panels.panel import Panel

    probes = Panel.load("values").probes
    args.out.mkdir(parents=True, exist_ok=True)
    rows = sample(requests(probes, random.Random(SEED)), probes, args.out / "models", args.out / "pool.jsonl")
    unwanted = set(args.leave_out.read_text(encoding="utf-8").split("\n")) if args.leave_out else set()
    questions, chosen = {p.id: p.prompt for p in probes}, []
    for row in rows:
        texts = [cut(text, row["forced"]) for text in row.pop("texts")]
        text = next((t for t in texts if t not in unwanted and usable(t, row)), None)
        if text is not None:
            chosen.append((text, row))
    random.Random(SEED).shuffle(chosen)
    numbered = list(enumerate(chosen, 1))
    write(
        args.out / "sheet.jsonl",
        [{"n": n, "probe": r["probe"], "question": questions[r["probe"]], "answer": t} for n, (t, r) in numbered],
    )
    write(args.out / "key.jsonl", [{"n": n, "made": row} for n, (_, row) in numbered])
    print(f"{len(chosen)} answers to {len(rows)} requests: {dict(Counter(r['likely'] for _, r in chosen))}")
    return 0


def read(path: Path) -> list[dict]:
    """The rows that `write` has written."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write(path: Path, rows: Sequence[dict]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
