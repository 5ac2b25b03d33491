"""Models on disk, as users name them (a Hugging Face folder, hub id, .gguf file, or a run's checkpoint), and what they
say: a panel's openings scored, a panel's questions answered."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vdengine.drift.answer_log import Answer, AnswerLog
from vdengine.drift.opening_log import DriftLog
from vdengine.drift.openings import Openings
from vdengine.drift.summary import drift_table
from vdengine.engine.checkpoint import load_weights
from vdengine.errors import InputError
from vdengine.models.device import compute_dtype, default_device
from vdengine.models.generate import Sampling, generate
from vdengine.models.transformer import Transformer
from vdengine.models.weights import build_model, open_causal
from vdengine.panels.panel import Panel
from vdengine.recipe import Recipe, load_recipe
from vdengine.runfolder import MANIFEST, RunFolder
from vdengine.text.renderer import Renderer
from vdengine.text.tokenizer import load_tokenizer


def tell(text: str) -> None:
    """Print, and do not wait for more: a model takes minutes."""
    print(text, flush=True)


@dataclass
class SavedModel:
    """A model on disk: where its weights, tokenizer and settings are."""

    name: str
    recipe: Recipe | None  # of the run that a checkpoint belongs to
    step: int | None

    @classmethod
    def find(cls, name: str) -> SavedModel:
        """The model that `name` names; nothing is loaded yet.

        Raises:
            InputError: a checkpoint whose run has no recipe that can be read.
        """
        folder = Path(name)
        if not (folder / MANIFEST).exists() or not folder.name.startswith("step-"):
            return cls(name, None, None)
        run = RunFolder(folder.parent.parent)
        return cls(name, load_recipe(run.recipe), int(folder.name.removeprefix("step-")))

    def renderer(self, template: str) -> Renderer:
        """Its chat template, or the one that `template` names."""
        r = self.recipe
        tokenizer = load_tokenizer((r.model.tokenizer or r.model.source) if r else self.name)
        return Renderer(tokenizer, template=template)

    def model(self, dtype: str | None) -> Transformer:
        """The model with its weights, on the default device. dtype: default that of its run, else "auto"."""
        device = default_device()
        wanted = compute_dtype(dtype or (self.recipe.model.dtype if self.recipe else "auto"), device)
        model = build_model(open_causal(self.recipe.model.source if self.recipe else self.name), wanted, device)
        if self.recipe is not None:
            load_weights(Path(self.name), model)
        return model


def steps_of(models: Sequence[SavedModel]) -> list[int]:
    """The steps of checkpoints of one run in order; 0, 1, 2, ... where they are not."""
    known = [m.step for m in models]
    steps = [s for s in known if s is not None]
    in_order = len(steps) == len(known) and all(a < b for a, b in zip(steps, steps[1:], strict=False))
    return steps if in_order else list(range(len(models)))


def _open(names: Sequence[str], template: str | None, done: str) -> tuple[list[SavedModel], Recipe | None, Renderer]:
    """The models, the recipe of the first that is a checkpoint, and the template that all share."""
    models = [SavedModel.find(name) for name in names]
    run = next((m.recipe for m in models if m.recipe is not None), None)
    template = template or (run.data.template if run else "auto")
    renderers = [m.renderer(template) for m in models]
    for model, renderer in zip(models, renderers, strict=True):
        if renderer.hash != renderers[0].hash:
            raise InputError(f"{model.name}: another tokenizer or chat template than {names[0]}; {done} it apart")
    return models, run, renderers[0]


def score(
    names: Sequence[str],
    panel: str | None = None,
    out: str | None = None,
    template: str | None = None,
    tokens: int | None = None,
    dtype: str | None = None,
    controls: bool | None = None,
    say: Callable[[str], None] = tell,
) -> np.ndarray:  # [models, branches] fp32
    """Log-prob sums of every opening, one row a model, NaN where a model between the first and the last is spared the
    controls; said as shifts from the first model to the last.

    The scores of a checkpoint have the bits that the run itself logged at that step, on the same kind of machine.
    `out`: a folder for the raw log. Samples stand there at the checkpoints' steps, or at 0, 1, 2, ... where the models
    are not checkpoints of one run in order.

    Raises:
        InputError: a model, panel or template that cannot be read; models whose tokenizers or templates differ.
    """
    models, run, renderer = _open(names, template, "score")
    chosen = Panel.load(panel or (run.probes.panel if run else "values-mini"))
    if controls is None:
        controls = run.probes.controls if run else True
    budget = tokens or (run.probes.tokens if run else 2048)
    openings = Openings.build(chosen, renderer, budget, controls=controls)
    steps = steps_of(models)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(out or scratch)
        log = DriftLog.create(folder, chosen, openings.branches, openings.num_tokens_of, renderer.hash)
        if len(log.steps):
            raise InputError(f"{folder}: holds scores already; give --out a new name")
        for model, step in zip(models, steps, strict=True):
            ends = model in (models[0], models[-1])  # as in a run, the controls too
            packs = None if ends else openings.part(0, 1)
            rows.append(openings.score(model.model(dtype), packs, model.name).cpu().numpy())
            log.append(step, rows[-1])
        for model, step in zip(models, steps, strict=True):
            say(f"step {step}: {model.name}")
        count = sum(b.variant == "question" for b in openings.branches)
        say(f"panel {chosen.name}: {len(chosen.probes)} probes, {count} openings\n")
        say(drift_table(folder) if len(models) > 1 else "One model: a level says nothing, a shift needs two.")
        if out:
            say(f"\nRaw scores: {RunFolder(folder).drift}/")
    return np.stack(rows)


def sample_answers(
    names: Sequence[str], out: Path, *, panel: str | None = None, samples: int = 5, temperature: float = 0.7,
    max_tokens: int = 256, template: str | None = None, dtype: str | None = None, seed: int = 0, slots: int = 64,
    dry_run: bool = False, say: Callable[[str], None] = tell,
) -> None:  # fmt: skip
    """Answers of saved models to a panel's questions, and the panel's openings scored by the same models, in `out`
    as a run keeps them. Models that are sampled already are passed over.

    Raises:
        InputError: a model or panel that cannot be read, options out of range, or a folder that holds others' answers.
    """
    if samples < 1:
        raise InputError(f"--samples {samples}: at least 1 answer to a question")
    models, run, renderer = _open(names, template, "sample")
    chosen = Panel.load(panel or (run.probes.panel if run else "values"))
    steps = steps_of(models)
    try:
        sampling = Sampling(max_tokens, temperature, stop_ids=tuple(renderer.tokenizer.stop_ids))
    except ValueError as error:
        raise InputError(f"sampling: {error}") from None
    count = len(chosen.probes) * samples
    say(
        f"{len(models)} models x {len(chosen.probes)} questions x {samples} answers, up to {max_tokens} tokens at "
        f"T = {temperature:g}: at most {len(models) * count * max_tokens:,} tokens to generate and "
        f"{len(models) * count:,} answers to judge"
    )
    if dry_run:
        return
    folder = RunFolder(out)
    known = {str(step): model.name for step, model in zip(steps, models, strict=True)}
    if folder.models.exists() and json.loads(folder.models.read_text(encoding="utf-8")) != known:
        raise InputError(f"{out}: holds answers of other models (see {folder.models.name}); give --out a new name")
    log = AnswerLog.create(out, chosen, renderer.hash, samples=samples, max_tokens=max_tokens, temperature=temperature)
    folder.models.write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    prompts = [renderer.prompt_ids([{"role": "user", "content": p.prompt}], opening=True) for p in chosen.probes]
    decode = renderer.tokenizer.decode
    for model, step in zip(models, steps, strict=True):
        if step in log.anchors:
            continue
        say(f"step {step}: {model.name}")
        completions = generate(
            model.model(dtype), prompts, sampling, samples=samples, seed=seed, step=step, slots=slots
        )
        log.append([
            Answer(step, p.id, k, c.tokens, c.stopped, decode(c.tokens[: len(c.tokens) - c.stopped]).strip())
            for p, cs in zip(chosen.probes, completions, strict=True)
            for k, c in enumerate(cs)
        ])  # fmt: skip
    if len(models) > 1 and all(p.has_openings for p in chosen.probes) and not folder.has_openings:
        score(names, panel, str(out), template, None, dtype, say=say)
