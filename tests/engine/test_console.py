"""What a person sees while a run goes on."""

import io

import numpy as np
import pytest
from helpers.runs import recipe_of

from vdengine import objectives
from vdengine.drift.answer_log import Answer, AnswerLog
from vdengine.engine import console
from vdengine.engine.eta import duration
from vdengine.engine.trainer import Trainer
from vdengine.panels.panel import Panel


@pytest.mark.slow
def test_plan_and_movers(tmp_path, tiny_models, data):
    """Guards what is printed: the budget of answers before the run, the topics that move and new anchors during it."""
    trainer = Trainer(recipe_of("weighted", tmp_path, str(tiny_models["qwen3"]), str(data)))
    plan = console.plan(trainer)
    assert "answers 2 anchors, at steps 0, 4, and at up to 2 more where the weights or" in plan
    # 8 x (6 + 3 x 4) answers of 6 tokens
    assert "4 answers to each of 8 probes (6 at the start), 144 in all, at most 864 tokens, " in plan
    rows = [trainer.step()]
    assert "6 answers to each of 8 probes drawn (as planned)" in trainer.probes.note
    rows += [trainer.step() for _ in range(3)]
    trainer.close()
    gates = [r for r in rows if "answers/kl" in r]
    assert gates and all(r["answers/ess"] <= 1 + 1e-6 and np.isfinite(r["answers/kl"]) for r in gates)
    lead, line = console.movers(trainer.probes.latest)
    assert lead.startswith("lead at step 3: at most") and lead.endswith("begin with yes or no, so nothing is said")
    assert line.startswith("text at step 3") and any(t in line for t in trainer.probes.panel_packs.panel.topics)


ROW = {
    "step": 7, "loss": 0.6931, "rewards/margins": 0.1, "rewards/accuracies": 0.5, "grad_norm": 123.45,
    "learning_rate": 5e-7, "step_seconds": 13.37, "tokens_per_second": 123456.0, "mfu": 0.41, "memory_bytes": 80 << 30,
    "probe_seconds": 0.42, "answers_seconds": 12.3, "answers/kl": 0.12, "answers/open": 1.0, "answers/pareto_k": 0.3,
    "rollout_seconds": 5.0, "score_seconds": 1.0, "train_seconds": 7.0,
}  # fmt: skip


def test_a_step_fits_the_terminal():
    """Guards lines that wrap: at most 100 columns whatever is known of a step; the step, the loss and its time stay."""
    for name in ("dpo", "sft", "ppo", "reward", "orpo"):
        objective = objectives.find(name)
        row = ROW | {metric: 0.1234 for _, metric, _ in objective.shown}
        for total in (20, 10_000_000):
            line = console.step_line(row, total, objective)
            assert len(line) <= 100 and "loss 0.6931" in line and "13.37 s" in line, line
    short = {k: ROW[k] for k in list(ROW)[:10]} | {"probe_seconds": 0.0}
    assert "lr 5.0e-07" in console.step_line(short, 20, objectives.find("sft"))  # where there is room all is there
    closed = console.step_line(ROW | {"answers/pareto_k": float("nan")}, 20, objectives.find("sft"), width=400)
    assert "weights not known" in closed and "KL" not in closed


@pytest.mark.parametrize(
    ("number", "said"), [(8.03e9, "8.03B"), (134_515_008, "135M"), (1.5e6, "1.50M"), (66_240, "66K"), (12, "12")]
)
def test_parameters_in_their_unit(number, said):
    """Guards "0M parameters"."""
    assert console.count(number) == said


def test_durations():
    """Guards units that a person can use."""
    assert [duration(s) for s in (0.4, 9.96, 42, 300, 9000, 3 * 86400)] == [
        "0.4 s", "10.0 s", "42 s", "5 min", "2.5 h", "3 days",
    ]  # fmt: skip


def test_what_the_model_says(tmp_path):
    """Guards the words of the first and the last step side by side: wrapped, without what would move a terminal, and
    nothing where there is one anchor only."""
    panel = Panel("p", Panel.load("values-mini").probes[::12][:3])  # of three topics
    log = AnswerLog.create(tmp_path, panel, "hash", samples=1, max_tokens=4)
    log.append([Answer(0, p.id, 0, [1], True, "Before \x1b[2J " + "long " * 80) for p in panel.probes])
    assert console.words(log) == ""
    log.append([Answer(20, p.id, 0, [1], True, "After") for p in panel.probes])
    said = console.words(log).splitlines()
    assert "step 0" in said[0] and said[0].endswith("step 20") and panel.probes[0].prompt in said[1]
    assert "Before \\x1b[2J long" in said[2] and said[2].endswith("| After") and max(map(len, said)) <= 100
    assert not any(panel.probes[2].prompt in line for line in said)


class Terminal(io.StringIO):
    """A stream that says that somebody watches."""

    def isatty(self) -> bool:
        return True


def test_bars_are_for_terminals(tmp_path, tiny_models, data, capsys):
    """Guards both: a pipe gets lines without carriage returns, a terminal a bar that moves with every pack."""
    recipe = recipe_of("small_packs", tmp_path, str(tiny_models["qwen3"]), str(data))
    trainer = Trainer(recipe)
    plain, watched = io.StringIO(), Terminal()
    for stream in (plain, watched):
        screen = console.Console(trainer, stream)
        screen.say(console.plan(trainer))
        trainer.step()
        screen.step()
        screen.close()
    trainer.close()
    assert "\r" not in plain.getvalue() and "step 1/4 | loss" in plain.getvalue()
    assert "qwen3, 78K parameters" in plain.getvalue() and "time    about" in plain.getvalue()
    assert "step 2/4" in watched.getvalue() and "pack 2/" in watched.getvalue()
    said = capsys.readouterr()
    assert "\r" not in said.err and "reference log-probs: 4 steps" in said.err
