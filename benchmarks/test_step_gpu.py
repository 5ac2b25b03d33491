"""One training step of Qwen3's shapes on one GPU, with random weights: this engine against TRL, with and without Liger.

DPO and SFT on the same token rows in the same steps, with fp32 master weights and bf16 compute, each engine in a
process of its own (`step_engines.py`); the first step is warm-up. Then this engine's step again with probes:
values-mini, and a panel of 550 made of its probes. The text is English (the built-in synthetic pairs, joined to the
length of chats) with a real tokenizer, so that the frequencies of tokens are those of a run.

tokens/s counts the same rows for every engine, as unpadded sequences: sharing a prompt counts as speed, padding does
not. MFU counts the FLOPs that the layout of an engine needs: 3 forwards of its tokens, and one more for a live
reference.

"MFU predicted" is that of a device which never waits for its host (`predict.py`), from rates measured here. A profile
of two steps says whether it waits. Memory is given above the floor that every engine needs: weights, gradients and two
moments in fp32, and the weights of a live reference in bf16.

The cost of probes is measured beside the batch of this benchmark, and also stated for 128 pairs per step, because the
cost of a panel does not depend on the batch.

With --quick: two tiny layers, on a CPU too. The row of an engine is reported as soon as it is known.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import common  # noqa: E402
import predict  # noqa: E402
import step_engines  # noqa: E402
from common import REPO, gpu, in_fresh_process  # noqa: E402
from step_engines import LAYERS, STEPS  # noqa: E402

REAL_BATCH, REAL_EVERY = 128, 10  # pairs per step and steps between samples, for which the cost of probes is stated


class Engine(dict[str, Any]):
    """The options of an engine's process. With "summary" it is measured without --full too."""


def ours(reference: str, pack_tokens: int = 8192, checkpoint: str = "selective", **more: Any) -> Engine:
    """Options of vdengine."""
    return Engine(engine="vdengine", reference=reference, pack_tokens=pack_tokens, checkpoint=checkpoint, **more)


def trl(checkpointing: bool, liger: bool, **more: Any) -> Engine:
    """Options of TRL."""
    return Engine(engine="trl", checkpointing=checkpointing, liger=liger, **more)


ENGINES = {
    "dpo": {
        "vdengine cached": ours("cached", summary=True, profile=True, probes=True),
        "vdengine live": ours("live", summary=True),
        "vdengine cached (packs of 16384)": ours("cached", 16384, summary=True),
        "vdengine cached (no checkpointing)": ours("cached", 8192, "none", summary=True),
        "vdengine live (packs of 16384; no checkpointing)": ours("live", 16384, "none", summary=True),
        "vdengine cached (packs of 4096)": ours("cached", 4096),
        "TRL + Liger": trl(True, True, summary=True),
        "TRL": trl(True, False, summary=True),
        "TRL + Liger no checkpointing": trl(False, True),
        "TRL no checkpointing": trl(False, False),
    },
    "sft": {
        "vdengine": ours("none", summary=True, probes=True),
        "TRL + Liger": trl(True, True, summary=True),
        "TRL": trl(True, False),
        "TRL + Liger no checkpointing": trl(False, True),
        "TRL no checkpointing": trl(False, False),
    },
}


@pytest.mark.parametrize("objective", ["dpo", "sft"])
@pytest.mark.parametrize("model", LAYERS)
def test_step(model, objective, settings, report, tmp_path):
    device = gpu(settings)
    if settings.quick and model == "Qwen3-1.7B":
        pytest.skip("--quick runs two shapes")
    if model != "Qwen3-0.6B" and not (settings.quick or settings.full or settings.engines):
        pytest.skip("a shape of --full")
    tokenizer = settings.tokenizer or (None if settings.quick else str(REPO / "tests" / "tokenizers" / "qwen3"))
    if tokenizer and not settings.tokenizer and not Path(tokenizer, "tokenizer.json").exists():
        pytest.skip("needs tests/tokenizers/qwen3, or another with --tokenizer")
    folder = tmp_path if settings.work is None else Path(settings.work) / f"{model}-{objective}"
    task = {
        "model": model,
        "objective": objective,
        "folder": str(folder),
        "tokenizer": tokenizer,
        "quick": settings.quick,
        "examples": 16,
        "micro": 4,
        "max_tokens": 2048,
        "texts": 8,
    }
    if settings.quick:
        task |= {"examples": 2, "micro": 1, "texts": 1}
    chosen = settings.engines.split(",") if settings.engines else None
    if unknown := [name for name in chosen or [] if name not in ENGINES[objective]]:
        pytest.fail(f"--engines: unknown {unknown[0]!r}; allowed: {', '.join(ENGINES[objective])}", pytrace=False)
    if not (folder / "prepared.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        prepared = in_fresh_process(
            step_engines.__file__, task | {"engine": "prepare"}, settings.threads, settings.limit
        )
        (folder / "prepared.json").write_text(json.dumps(prepared))
    prepared = json.loads((folder / "prepared.json").read_text())

    step = Step(f"{objective} step, {model} shapes", task, prepared, report, device)
    missing_trl = common.missing("trl", "transformers", "datasets", "accelerate")
    failed = []
    for name, options in ENGINES[objective].items():
        selected = (
            name in chosen
            if chosen
            else (options.get("summary") or settings.full)
            and not (settings.quick and ("(" in name or options.get("liger")))
        )
        if not selected:
            continue
        reason = None  # to skip it
        if options["engine"] == "trl":
            rows = None if (folder / "rows.json").exists() else "needs the rows of an engine of ours: run one first"
            reason = missing_trl or rows
        if options.get("liger"):
            reason = reason or common.missing("liger_kernel") or (None if device.type == "cuda" else "needs a GPU")
        if reason:
            step.note(f"{name}: skipped, {reason}")
            continue
        if settings.quick and options["engine"] == "vdengine":
            options = options | {"pack_tokens": 2500}
        try:
            step.add(name, in_fresh_process(step_engines.__file__, task | options, settings.threads, settings.limit))
        except common.Failed as e:
            step.note(f"{name}: {e.reason}")
            if options["engine"] == "vdengine":
                failed.append(str(e))
    step.targets()
    failed += step.different
    assert not failed, "\n".join(failed)


class Step:
    """The table of one model and objective, filled row by row. Results are kept in the folder of the task, so that a
    later call compares with them.

    Args:
        prepared: the result of the process "prepare".
    """

    def __init__(self, title: str, task: dict[str, Any], prepared: dict[str, Any], report: Any, device: Any) -> None:
        self.title, self.task, self.prepared, self.report = title, task, prepared, report
        self.device, self.peak = device, prepared["peak_flops"]
        self.different: list[str] = []  # engines with other losses: they do not train on the same rows
        self.file = Path(task["folder"], "results.json")
        self.results: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.rows: dict[str, dict[str, Any]] = {}
        self.table = report.table(title)

    def note(self, text: str) -> None:
        """Add a note to the table."""
        self.table.note(text)

    def add(self, name: str, result: dict[str, Any]) -> None:
        """Add the result of an engine, and compare its losses with those of the others."""
        row = self.row(name, result)
        self.rows[name] = row
        self.table.row(row)
        self.results[name] = result
        self.file.write_text(json.dumps(self.results))
        for other_name, other in self.results.items():
            for k, (x, y) in enumerate(zip(other["losses"], result["losses"], strict=True)):
                if abs(x - y) >= 5e-2:  # bf16 activations are rounded differently in every engine
                    text = f"{name} and {other_name} differ in step {k + 1}: {result['losses']}, {other['losses']}"
                    self.different.append(text)
                    self.note(text)
                    break
        if common.CUT in result:
            self.note(f"{name}: {result[common.CUT]}; what is shown was known before")
        if profile := result.get("profile"):
            self.profile(name, profile)
        if probes := result.get("probes"):
            self.probes(name, result["step_seconds"], probes)

    def row(self, name: str, result: dict[str, Any]) -> dict[str, Any]:
        """The row of an engine. TRL's has the work of an engine of ours, which trained on the same rows."""
        task, is_ours = self.task, "work" in result
        work = result["work"] if is_ours else next((r["work"] for r in self.results.values() if "work" in r), None)
        live = name.startswith("TRL") or "live" in name
        # bytes per parameter: fp32 weight, gradient and two moments, and 2 for the bf16 weight of a live reference
        floor = self.prepared["parameters"] * (18 if live and task["objective"] == "dpo" else 16)
        row: dict[str, Any] = {
            "engine": name,
            "s/step": result["step_seconds"],
            "examples/s": task["examples"] / result["step_seconds"],
            "tokens/s": work["tokens_sequences"] / result["step_seconds"] if work else None,
            "MFU": None,
            "MFU predicted": None,
        }
        if work and self.peak:
            flops = work["flops_trees" if is_ours else "flops_sequences"] * (
                4 / 3 if live and task["objective"] == "dpo" else 1
            )
            row["MFU"] = flops / result["step_seconds"] / self.peak
            if is_ours:
                seconds = predict.device_seconds(
                    predict.Work(live=live, **work["step"], **self.prepared["shape"]),
                    predict.Rates(**self.prepared["rates"]),
                )["total"]
                row["MFU predicted"] = flops / seconds / self.peak
        peak = result["peak_bytes"]
        return row | {"peak MB": peak / 1e6, "floor MB": floor / 1e6, "above floor MB": (peak - floor) / 1e6}

    def profile(self, name: str, profile: dict[str, Any]) -> None:
        """Report a table of the slowest kernels."""
        table = self.report.table(f"profile of two steps, {name}, {self.title}")
        for row in profile["slowest"]:
            table.row(row)
        table.note(profile["summary"])

    def probes(self, name: str, step_seconds: float, probe_seconds: dict[str, float]) -> None:
        """Report a table of what probes add to a step, by panel."""
        table = self.report.table(f"probes, {name}, {self.title}")
        examples = self.task["examples"]
        real_step_seconds = step_seconds * REAL_BATCH / examples
        for panel, seconds in probe_seconds.items():
            share = seconds / REAL_EVERY / (real_step_seconds + seconds / REAL_EVERY)
            table.row(
                {
                    "panel": panel,
                    "s a sample": seconds,
                    f"share of a step of {examples}, every step": seconds / (step_seconds + seconds),
                    f"share of a step of {REAL_BATCH}, every {REAL_EVERY} steps": share,
                }
            )
        table.note(
            f"the last column is arithmetic: the measured sample beside {REAL_BATCH / examples:g} measured steps"
        )
        if self.device.type == "cuda" and self.task["objective"] == "dpo":
            target = f"550 probes every {REAL_EVERY} steps of {REAL_BATCH} pairs, share of the time"
            table.target(target, share, "<=", 0.02)

    def targets(self) -> None:
        """Add the note on the work, and on CUDA the targets."""
        work = next((r["work"] for r in self.results.values() if "work" in r), None)
        if work:
            self.note(
                f"{self.task['examples']} examples a step, medians of {STEPS - 1} steps; a step has "
                f"{work['tokens_trees']:.0f} tokens as trees, {work['tokens_sequences']:.0f} as sequences, "
                f"{work['tokens_padded']:.0f} padded to the longest"
            )
        if self.device.type != "cuda":
            return
        rows = {name: self.row(name, result) for name, result in self.results.items()}
        our_name = "vdengine" if self.task["objective"] == "sft" else "vdengine live"
        if our_row := rows.get(our_name):
            if our_row["MFU predicted"] and our_name in self.rows:
                ratio = our_row["MFU"] / our_row["MFU predicted"]
                self.table.target(f"{our_name}: MFU / predicted for a device that never waits", ratio, ">=", 0.8)
            liger = [row for name, row in rows.items() if name.startswith("TRL + Liger")]
            if liger and any(name.startswith("TRL + Liger") for name in self.rows):
                speed = our_row["examples/s"] / max(row["examples/s"] for row in liger)
                memory = our_row["above floor MB"] / min(row["above floor MB"] for row in liger)
                self.table.target(f"{our_name}: speed / TRL + Liger", speed, ">=", 1.3)
                self.table.target(f"{our_name}: memory above the floor / TRL + Liger", memory, "<=", 0.5)
