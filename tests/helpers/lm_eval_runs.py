"""lm-evaluation-harness on task files, for comparison: per row the log-prob of every choice, and the metrics.

`python tests/helpers/lm_eval_runs.py MODEL OUT.json` writes the figures that `tests/tasks/lm_eval.json` keeps; it needs
lm-eval and transformers, and vdengine not at all.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def evaluate(model: str, files: Mapping[str, Path], *, chat: bool = False, limit: int | None = None) -> dict[str, Any]:
    """By task: `logp` [rows][choices], nats, and the metrics with their standard errors, under lm-eval's names.

    Args:
        model: a Hugging Face folder.
        files: by name of the task.
    """
    import lm_eval
    import yaml

    tasks: list[Any] = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in files.values()]
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": model, "dtype": "float32", "device": "cpu"},
        tasks=tasks,
        batch_size=1,
        limit=limit,
        apply_chat_template=chat,
        log_samples=True,
        verbosity="ERROR",
    )
    out: dict[str, Any] = {}
    for name in files:
        samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
        results = {key.removesuffix(",none"): value for key, value in found["results"][name].items()}
        out[name] = {
            "logp": [[float(response[0]) for response in sample["filtered_resps"]] for sample in samples],
            "metrics": {k: v for k, v in results.items() if k.startswith("acc") and isinstance(v, float)},
        }
    return out


def main(model: str, out: str) -> None:
    import importlib.metadata

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from helpers.task_rows import write_tasks

    with tempfile.TemporaryDirectory() as folder:
        files = write_tasks(Path(folder))
        versions = {name: importlib.metadata.version(name) for name in ("lm_eval", "transformers", "torch")}
        figures = {"versions": versions, "text": evaluate(model, files), "chat": evaluate(model, files, chat=True)}
    for way in ("text", "chat"):
        for task in figures[way].values():
            task["logp"] = [[round(x, 4) for x in row] for row in task["logp"]]
    Path(out).write_text(json.dumps(figures) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
