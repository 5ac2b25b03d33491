"""Scores and answers of saved models: a panel's openings scored, or its questions answered, by a Hugging Face folder, a
hub id, a .gguf file, or a run's checkpoint."""

from __future__ import annotations

import json
import re
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
from vdengine.recipe import Recipe, load_scoring_recipe
from vdengine.runfolder import CHECKPOINT, MANIFEST, RunFolder
from vdengine.text.renderer import Renderer
from vdengine.text.tokenizer import load_tokenizer


def tell(text: str) -> None:
    """Print and flush, because the next model takes minutes."""
    print(text, flush=True)


@dataclass
class SavedModel:
    """A model on disk."""

    name: str  # as the user named it
    recipe: Recipe | None  # of a checkpoint's run
    step: int | None  # of a checkpoint, ours or of transformers' Trainer (checkpoint-100)

    @classmethod
    def find(cls, name: str) -> SavedModel:
        """The model of this name, without loading anything.

        Raises:
            InputError: a checkpoint whose run has no recipe that can be read.
        """
        folder = Path(name)
        if not (folder / MANIFEST).exists() or not folder.name.startswith(CHECKPOINT):
            number = re.fullmatch(r"checkpoint-(\d+)", folder.resolve().name) if folder.is_dir() else None
            return cls(name, None, int(number[1]) if number else None)
        run = RunFolder(folder.parent.parent)
        return cls(name, load_scoring_recipe(run.recipe), int(folder.name.removeprefix(CHECKPOINT)))

    def renderer(self, template: str) -> Renderer:
        """Its tokenizer with a chat template, as `Renderer` names it."""
        r = self.recipe
        tokenizer = load_tokenizer((r.model.tokenizer or r.model.source) if r else self.name)
        return Renderer(tokenizer, template=template)

    def model(self, dtype: str | None) -> Transformer:
        """The model with its weights, on the default device. `dtype`: default that of its run, else "auto"."""
        device = default_device()
        torch_dtype = compute_dtype(dtype or (self.recipe.model.dtype if self.recipe else "auto"), device)
        model = build_model(open_causal(self.recipe.model.source if self.recipe else self.name), torch_dtype, device)
        if self.recipe is not None:
            load_weights(Path(self.name), model)
        return model


def steps_of(models: Sequence[SavedModel]) -> list[int]:
    """The steps under which the models are logged: their own if they are checkpoints with ascending steps, else 0, 1,
    2, ..."""
    all_steps = [model.step for model in models]
    steps = [step for step in all_steps if step is not None]
    in_order = len(steps) == len(all_steps) and all(a < b for a, b in zip(steps, steps[1:], strict=False))
    return steps if in_order else list(range(len(models)))


def _open(names: Sequence[str], template: str | None) -> tuple[list[SavedModel], Recipe | None, list[Renderer]]:
    """The models, the recipe of the first checkpoint among them, and their renderers."""
    models = [SavedModel.find(name) for name in names]
    run = next((model.recipe for model in models if model.recipe is not None), None)
    template = template or (run.data.template if run else "auto")
    return models, run, [m.renderer(template) for m in models]


def _check_ids(panel: Panel, names: Sequence[str], renderers: Sequence[Renderer], done: str) -> None:
    """Check that all models read the same ids of a panel's texts. Hashes alone would not do: transformers saves a
    tokenizer in other words than it was read from.

    Raises:
        InputError: they do not; `done` ("score") says in the message what to do separately.
    """

    def ids(renderer: Renderer) -> list[list[int]]:
        found = []
        for probe in panel.probes:
            found.append(renderer.prompt_ids([{"role": "user", "content": probe.prompt}], opening=True))
            found += [renderer.opening_ids(branch.text) for branch in probe.branches()]
        return found

    expected = None
    for name, renderer in zip(names, renderers, strict=True):
        if renderer.hash != renderers[0].hash:
            expected = ids(renderers[0]) if expected is None else expected
            if ids(renderer) != expected:
                raise InputError(f"{name}: another tokenizer or chat template than {names[0]}; {done} it apart")


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
    """The log-prob sum of every opening by every model, and a printed table of the shifts from the first to the last.

    The scores of a checkpoint have the bits that its run logged at that step, on the same kind of machine. Only the
    first and the last model score the controls; for the others they are NaN.

    Args:
        names: of models.
        panel: default: that of the first checkpoint's run, else "values-mini".
        out: a folder for the raw log, with the steps of `steps_of`.
        template: as in `Renderer`; default: that of the run, else "auto".
        tokens: of a pack of openings; default: that of the run, else 2048.
        dtype: that the models compute in; default: that of the run, else "auto".
        controls: whether to score them; default: as in the run, else yes.
        say: prints.

    Raises:
        InputError: a model, panel or template that cannot be read; models with different tokenizers or templates; a
            folder that has scores already.
    """
    models, run, renderers = _open(names, template)
    chosen, renderer = Panel.load(panel or (run.probes.panel if run else "values-mini")), renderers[0]
    _check_ids(chosen, names, renderers, "score")
    if controls is None:
        controls = run.probes.controls if run else True
    budget = tokens or (run.probes.tokens if run else 2048)
    openings = Openings.build(chosen, renderer, budget, controls=controls)
    steps = steps_of(models)
    rows = []  # of each model: [branches] fp32
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(out or scratch)
        log = DriftLog.create(folder, chosen, openings.branches, openings.num_tokens_of, renderer.hash)
        if len(log.steps):
            raise InputError(f"{folder}: holds scores already; give --out a new name")
        for model, step in zip(models, steps, strict=True):
            with_controls = model in (models[0], models[-1])  # as in a run
            packs = None if with_controls else openings.part(0, 1)
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
    names: Sequence[str],
    out: Path,
    *,
    panel: str | None = None,
    samples: int = 5,
    temperature: float = 0.7,
    max_tokens: int = 256,
    template: str | None = None,
    dtype: str | None = None,
    seed: int = 0,
    slots: int = 64,
    dry_run: bool = False,
    say: Callable[[str], None] = tell,
) -> None:
    """Write the answers of saved models to a panel's questions, and their scores of the panel's openings, to the folder
    `out`, with the files of a run. Models that are sampled already are skipped.

    Args:
        samples: answers of each model to each question.
        slots: rows that decode together.
        dry_run: only print how many tokens and answers there would be.
        panel, template, dtype, say: as in `score`, but the default panel is "values".

    Raises:
        InputError: a model or panel that cannot be read, options out of range, or a folder that has answers of other
            models.
    """
    if samples < 1:
        raise InputError(f"--samples {samples}: at least 1 answer to a question")
    models, run, renderers = _open(names, template)
    chosen, renderer = Panel.load(panel or (run.probes.panel if run else "values")), renderers[0]
    _check_ids(chosen, names, renderers, "sample")
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
    model_names = {str(step): model.name for step, model in zip(steps, models, strict=True)}
    if folder.models.exists() and json.loads(folder.models.read_text(encoding="utf-8")) != model_names:
        raise InputError(f"{out}: holds answers of other models (see {folder.models.name}); give --out a new name")
    log = AnswerLog.create(out, chosen, renderer.hash, samples=samples, max_tokens=max_tokens, temperature=temperature)
    folder.models.write_text(json.dumps(model_names, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    prompts = [renderer.prompt_ids([{"role": "user", "content": p.prompt}], opening=True) for p in chosen.probes]
    decode = renderer.tokenizer.decode
    for model, step in zip(models, steps, strict=True):
        if step in log.anchors:
            continue
        say(f"step {step}: {model.name}")
        completions = generate(
            model.model(dtype), prompts, sampling, samples=samples, seed=seed, step=step, slots=slots
        )
        log.append(
            [
                Answer(step, p.id, k, c.tokens, c.stopped, decode(c.tokens[: len(c.tokens) - c.stopped]).strip())
                for p, cs in zip(chosen.probes, completions, strict=True)
                for k, c in enumerate(cs)
            ]
        )
    if len(models) > 1 and all(p.has_openings for p in chosen.probes) and not folder.has_openings:
        score(names, panel, str(out), template, None, dtype, say=say)
