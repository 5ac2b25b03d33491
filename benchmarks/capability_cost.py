"""What tasks cost beside a panel: `python benchmarks/capability_cost.py [--rows 50] [--repeat 5]`.

A training step of SmolLM2-135M (DPO's layout: pairs as trees, forward and backward) is timed alone, with the panel's
leads in its forward, with tasks in that forward too, and with tasks in a forward of their own after it. The tasks are
the rows of the tests (`tests/helpers/task_rows.py`): half of them letters after a question with its choices, half of
them sentences. Ways are measured in turns; the median of each is printed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import REPO, SMOLLM2  # noqa: E402

sys.path.insert(0, str(REPO / "tests"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50, help="of each of two tasks (default: 50)")
    parser.add_argument("--pairs", type=int, default=8, help="of a training step (default: 8)")
    parser.add_argument("--probes", type=int, default=48, help="of values-mini (default: all)")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()

    import torch
    from helpers.task_rows import write_tasks

    import vdengine as vd
    from vdengine.drift.panel_packs import PanelPacks
    from vdengine.models.device import default_device
    from vdengine.tasks.task import Task
    from vdengine.tasks.task_packs import TaskPacks

    device = torch.device(default_device())
    model, tokenizer = vd.load_model(SMOLLM2, dtype=torch.float32, device=device), vd.load_tokenizer(SMOLLM2)
    mini = vd.Panel.load("values-mini")
    panel = PanelPacks.build(vd.Panel("part", mini.probes[: args.probes]), tokenizer.renderer, 2048, readouts=["lead"])
    with tempfile.TemporaryDirectory() as folder:
        files = write_tasks(Path(folder))
        tasks = TaskPacks.build([Task.load(files[n], args.rows) for n in ("facts", "goals")], tokenizer.renderer, 4096)
    panel.to(device), tasks.to(device)
    words = tokenizer.encode("the quick brown fox jumps over the lazy dog and sleeps under a tree " * 20)
    batch = vd.pack([vd.Tree(words[:100], [words[100:180], words[60:140]]) for _ in range(args.pairs)]).to(device)

    def step(probes: list[vd.Pack], after: list[vd.Pack]) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        model(batch, probes or None).logp.sum().backward()
        for p in model.parameters():
            p.grad = None
        if after:
            with torch.no_grad():
                model(None, after)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    ways = {
        "training alone": ([], []),
        "+ panel in its forward": (panel.packs, []),
        "+ panel and tasks in its forward": ([*panel.packs, *tasks.packs], []),
        "+ panel in its forward, tasks in their own": (panel.packs, tasks.packs),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.repeat + 1):
        for name, (probes, after) in ways.items():
            seconds = step(probes, after)
            if turn:  # the first is to warm up
                times[name].append(seconds)
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}; {args.pairs} pairs of 260 tokens")
    print(f"panel {panel.num_tokens:,} tokens; {2 * args.rows} rows of tasks {tasks.num_tokens:,} tokens\n")
    alone = statistics.median(times["training alone"])
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"{name:44} {middle:8.3f} s  {middle / alone:6.2f}x  (best {min(seconds):.3f})")


if __name__ == "__main__":
    main()
