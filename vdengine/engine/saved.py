"""Models on disk, as users name them: a Hugging Face folder, hub id, .gguf file, or a run's checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vdengine.engine.checkpoint import load_weights
from vdengine.models.chat import Renderer
from vdengine.models.tokenizer import load_tokenizer
from vdengine.models.transformer import Transformer
from vdengine.models.weights import build_model, open_causal
from vdengine.recipe import Recipe, load_recipe


@dataclass
class Saved:
    """A model on disk: where its weights, tokenizer and settings are."""

    name: str
    recipe: Recipe | None  # of the run that a checkpoint belongs to
    step: int | None

    @classmethod
    def find(cls, name: str) -> Saved:
        folder = Path(name)
        if not (folder / "manifest.json").exists() or not folder.name.startswith("step-"):
            return cls(name, None, None)
        return cls(name, load_recipe(folder.parent.parent / "recipe.toml"), int(folder.name.removeprefix("step-")))

    def renderer(self, template: str) -> Renderer:
        r = self.recipe
        tokenizer = load_tokenizer((r.model.tokenizer or r.model.source) if r else self.name)
        return Renderer(tokenizer, template=template)

    def model(self, dtype: str | None) -> Transformer:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = dtype or (self.recipe.model.dtype if self.recipe else "auto")
        auto = torch.bfloat16 if device == "cuda" else torch.float32
        wanted = auto if dtype == "auto" else getattr(torch, dtype)
        model = build_model(open_causal(self.recipe.model.source if self.recipe else self.name), wanted, device)
        if self.recipe is not None:
            load_weights(Path(self.name), model)
        return model


def steps_of(models: Sequence[Saved]) -> list[int]:
    """The steps of checkpoints of one run in order; 0, 1, 2, ... where they are not."""
    known = [m.step for m in models]
    steps = [s for s in known if s is not None]
    in_order = len(steps) == len(known) and all(a < b for a, b in zip(steps, steps[1:], strict=False))
    return steps if in_order else list(range(len(models)))
