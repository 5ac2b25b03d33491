"""vdengine: post-training that watches a language model's values while they move.

Attributes load on first use, so `import vdengine.kernels` pulls in the kernels alone.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "InputError": "vdengine.errors",
    "Tree": "vdengine.trees",
    "Pack": "vdengine.trees",
    "pack": "vdengine.trees",
    "Transformer": "vdengine.models.transformer",
    "Scores": "vdengine.models.head",
    "load_model": "vdengine.models.weights",
    "save_model": "vdengine.models.export",
    "save_adapter": "vdengine.models.export",
    "Lora": "vdengine.models.peft_config",
    "add_lora": "vdengine.models.lora",
    "load_tokenizer": "vdengine.text.tokenizer",
    "linear_logprob": "vdengine.kernels",
    "Panel": "vdengine.panels.panel",
    "Task": "vdengine.tasks.task",
    "DriftLog": "vdengine.drift.panel_log",
    "PanelScorer": "vdengine.integrations.scorer",
    "Objective": "vdengine.objectives.base",
    "Trainer": "vdengine.engine.trainer",
    "shard": "vdengine.engine.parallel",
    "load_recipe": "vdengine.recipe",
    "make_recipe": "vdengine.recipe",
    "Recipe": "vdengine.recipe",
}
_MODULES = (
    "kernels",
    "objectives",
    "text",
    "models",
    "data",
    "panels",
    "tasks",
    "drift",
    "judges",
    "audits",
    "engine",
    "integrations",
    "report",
)
__all__ = [*_WHERE, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"vdengine.{name}")
    raise AttributeError(f"module 'vdengine' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
