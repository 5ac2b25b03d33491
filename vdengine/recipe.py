"""A recipe is one TOML file and one run. These dataclasses are its keys, defaults, ranges and meaning.

    recipe = load_recipe("recipes/quickstart.toml", ["optimizer.lr=1e-5"])

An unknown key, a value out of range, or a key that the chosen objective ignores is an `InputError`: nothing a
user writes is silently without effect.

The file is above 500 lines because a recipe's keys, their rules, and reading and writing are looked up together.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from vdengine import objectives
from vdengine.errors import InputError
from vdengine.objectives import Objective, OnPolicy
from vdengine.objectives.base import ADAPTER_OFF
from vdengine.outside import MIB, first_line, parse_toml, printable, read_text
from vdengine.runfolder import RunFolder
from vdengine.settings import Where, coerce, key, nearest, read_section, shown

MOST_STEPS = 10_000_000  # of a run: four months at a second each; the steps of its samples are a list in memory
MOST_SAMPLES = 4096  # of one prompt, in a rollout or at an anchor

LEAD, TEXT = "lead", "text_likelihood"
READOUTS = (LEAD, TEXT)  # of a panel, by log-prob

FORMATS = (
    "auto", "preference", "messages", "prompt_completion", "alpaca", "hh_rlhf", "ultrafeedback", "wildchat", "prompt",
)  # fmt: skip


# What stands in a run folder's recipe for a source that was an object and not a name, and in place of data.train where
# the run had no rows because each step was given its own.
IN_MEMORY, OWN_BATCHES = "in memory", "own batches"
# What such a source is given as to the Trainer.
_GIVEN_AS = {
    "model.source": "model=",
    "model.tokenizer": "tokenizer=",
    "data.train": "data=",
    "data.eval": "eval_data=",
    "probes.panel": "panel=",
}

# Which objectives read a key, by what they declare.


def on_rows(o: Objective) -> bool:
    """Learns from the answers in the data, not from what it samples."""
    return o.rollout is None


def rolls_out(o: Objective) -> bool:
    """Learns from what it samples."""
    return o.rollout is not None


def has_critic(o: Objective) -> bool:
    """Trains a value model beside the policy."""
    return o.critic


def has_log_probs(o: Objective) -> bool:
    """Trains a language model, not one that gives a score."""
    return o.head == "causal"


def is_fused(o: Objective) -> bool:
    """Has a form in one launch."""
    return o.fused is not None


@dataclass
class RunKeys:
    folder: str = key("runs/run", result=False)
    after: str | None = key(None)  # folder of the run whose export this one starts from: the next stage of its history
    seed: int = key(0, low=0, high=2**63 - 1)  # one word of the hash that numbers are drawn by
    steps: int | None = key(None, low=1, high=MOST_STEPS)  # optimizer steps; or
    epochs: float | None = key(None, above=0, high=1e6)  # passes over the data; MOST_STEPS at most
    resume: bool = key(True, result=False)  # an existing folder goes on from its newest checkpoint
    deterministic: bool = key(True)


@dataclass
class ModelKeys:
    source: str = key("")  # folder | hub id | *.gguf | package://package/file.gguf
    tokenizer: str = key("")  # same forms; default: source
    dtype: str = key("auto", choices=("auto", "float32", "bfloat16"))  # compute; master weights are fp32


@dataclass
class LoraKeys:  # a low-rank adapter is trained, and the model is frozen; rank or start turns it on
    rank: int | None = key(None, low=1, high=8192)
    alpha: float = key(32.0, above=0)  # the adapter's term is multiplied by alpha / rank
    # linear layers by the end of their names, "q_proj" or "layers.3.mlp.up_proj"; all but embedding and head
    targets: list[str] = key(["all-linear"])
    dropout: float = key(0.0, low=0.0, high=0.99)
    rslora: bool = key(False)  # alpha / sqrt(rank)
    start: str = key("")  # an adapter in PEFT's format to begin with, which says the rest


@dataclass
class DataKeys:
    train: list[str] = key([])  # files, folders, hub ids or built-in names
    weights: list[float] = key([], above=0, high=1e4)  # passes over each source per epoch; default 1.0 each
    format: str = key("auto", choices=FORMATS)
    template: str = key("auto")  # chat template: auto (the tokenizer's) | plain | alpaca | a .jinja file
    max_tokens: int = key(1024, low=2)  # of prompt + one branch
    overlong: str = key("drop", choices=("drop", "truncate"), only=on_rows)
    eval: str = key("", only=on_rows)  # held-out data: a source like train's, or empty
    eval_fraction: float = key(0.0, low=0.0, high=0.5, only=on_rows)  # or this share of train, held out
    eval_every: int = key(0, low=0, only=on_rows, result=False)  # steps; 0: at the end only
    eval_examples: int = key(256, low=1, only=on_rows)  # at most so many held-out examples
    cache: str = key("~/.cache/vdengine", result=False)  # tokenised data and reference log-probs


@dataclass
class RolloutKeys:  # what an objective that rolls out samples at each step; it may have other defaults
    samples: int = key(1, low=1, high=MOST_SAMPLES, only=rolls_out)  # completions of a prompt
    max_new_tokens: int = key(53, low=1, only=rolls_out)
    temperature: float = key(0.7, above=0, only=rolls_out)  # also divides the logits of every log-prob that is compared
    slots: int = key(
        64, low=1, high=MOST_SAMPLES, only=rolls_out, result=False
    )  # completions that a rank samples side by side
    weights: str = key("auto", choices=("auto", "gathered", "sharded"), only=rolls_out, result=False)
    show_every: int = key(
        10, low=0, only=rolls_out, result=False
    )  # steps between samples kept in completions.jsonl; 0: none
    show: int = key(4, low=1, only=rolls_out, result=False)  # prompts of those steps


@dataclass
class RewardKeys:
    source: str = key("", only=rolls_out)  # a reward model's folder or hub id, regex:PATTERN; or Trainer(reward=...)
    normalize: bool = key(False, only=rolls_out)  # by mean and deviation of the first rollout's scores


@dataclass
class ValueKeys:
    source: str = key("", only=has_critic)  # default: the reward model; without one, model.source
    lr: float | None = key(None, low=0.0, only=has_critic)  # default: optimizer.lr


@dataclass
class BatchKeys:
    examples: int = key(16, low=1)  # per optimizer step, over all ranks
    tokens: int = key(8192, low=2)  # budget of one pack on one rank


@dataclass
class OptimizerKeys:
    lr: float = key(5e-7, low=0.0)
    betas: list[float] = key([0.9, 0.95], low=0.0, high=0.9999999)
    eps: float = key(1e-8, above=0)
    weight_decay: float = key(0.0, low=0.0)
    warmup: float = key(0.1, low=0.0, high=1.0)  # share of the steps
    schedule: str = key("cosine", choices=("constant", "linear", "cosine"))
    min_lr: float = key(0.0, low=0.0, high=1.0)  # floor of the schedule, as a share of lr
    clip: float = key(1.0, low=0.0)  # gradient norm; 0: no clipping


@dataclass
class ProbesKeys:
    panel: str = key("values-mini", only=has_log_probs)  # built-in name or a .jsonl file
    every: int | None = key(None, low=0)  # steps between samples; 0: no probes; or
    budget: float | None = key(None, above=0, high=1.0, only=has_log_probs)  # share of step time; default 0.03
    # of the panel at each sample: 1, 1/2, 1/3, ...; the parts rotate
    fraction: float = key(1.0, above=0, high=1.0, only=has_log_probs)
    tokens: int = key(2048, low=64, only=has_log_probs)  # budget of one probe pack
    # what is read: the side that an answer begins with (prompts alone are run), the likelihood of texts of either side
    readouts: list[str] = key(list(READOUTS), choices=READOUTS, only=has_log_probs)
    # at the first and last sample also: a paraphrase of each question, and trivial matters
    controls: bool = key(True, only=has_log_probs)


@dataclass
class AnswersKeys:  # to the panel's questions: what the model says, by a judge that reads them after the run
    # of a probe at an anchor; 0: none are drawn. Default: 2 with anchors or a budget of them, else 0
    samples: int | None = key(None, low=0, high=MOST_SAMPLES, only=has_log_probs)
    # steps with new answers: how many, dense early, or which beside the first and the last; default: what the budgets
    # below pay for, without them 12
    anchors: int | list[int] | None = key(None, low=1, high=MOST_STEPS, only=has_log_probs)
    generated_tokens: int | None = key(None, low=1, only=has_log_probs)  # at most, all anchors together
    # at most, all anchors together; a judge is asked up to two questions an answer (docs/judging.md)
    most_answers: int | None = key(None, low=1, only=has_log_probs)
    base: int | None = key(None, low=1, high=MOST_SAMPLES, only=has_log_probs)  # at step 0; default 4 x samples
    max_tokens: int = key(64, low=1, only=has_log_probs)  # of an answer
    probes: int = key(0, low=0, only=has_log_probs)  # a stratified part of the panel; 0: all of it
    # at every n-th sample of the panel the last anchor's answers are weighted; 0: never, and no anchor is asked for
    weights_every: int = key(0, low=0, only=has_log_probs)
    max_anchors: int = key(8, low=2, only=has_log_probs)  # in all: those the weights or the alarm ask for included
    alarm: float = key(0.02, low=0.0, only=has_log_probs)  # panel's text shift, nats per byte, that asks; 0: never


@dataclass
class CapabilityKeys:  # what the model still can: tasks of multiple choice, read in the same forward as the panel
    # task files of lm-evaluation-harness (.yaml) without code, or rows in a shape that is known (docs/capability.md)
    tasks: list[str] = key([], only=has_log_probs)
    every: int = key(0, low=0, only=has_log_probs)  # steps between checks; 0: at the start and at the end alone
    limit: int = key(0, low=0, only=has_log_probs)  # of each task the first so many rows; 0: all
    chat: bool = key(False, only=has_log_probs)  # prompts in the chat template, their examples as turns of their own
    tokens: int = key(4096, low=64, only=has_log_probs)  # budget of one pack of tasks


_ELEMENTWISE = ("auto", "triton", "reference")


@dataclass
class KernelsKeys:  # a backend for each; "auto": by device
    rms_norm: str = key("auto", choices=_ELEMENTWISE)
    rope: str = key("auto", choices=_ELEMENTWISE)
    swiglu: str = key("auto", choices=_ELEMENTWISE)
    attention: str = key("auto", choices=("auto", "flash", "varlen", "sdpa"))
    head: str = key("auto", choices=("auto", "triton", "torch", "native", "reference"), only=has_log_probs)
    preference: str = key("auto", choices=_ELEMENTWISE, only=is_fused)


@dataclass
class ParallelKeys:
    replicate: int = key(1, low=1)  # HSDP: copies of the sharded model
    shard: str | int = key("all", low=1)  # ranks to a copy; "all": world size / replicate
    activation_checkpoint: str = key("selective", choices=("none", "selective", "full"), result=False)
    head_saved_bytes: int | None = key(
        None, low=0, high=2**50, result=False
    )  # softmax chunks kept until backward; 0 recomputes


@dataclass
class CheckpointKeys:
    every: int = key(100, low=0, result=False)  # steps; 0: at the end only
    keep: int = key(2, low=1, result=False)  # the newest so many, and the newest one known to be good
    keep_every: int = key(0, low=0, result=False)  # those of every so many steps stay as well; 0: none
    export: bool = key(True, result=False)  # a Hugging Face folder at the end


@dataclass
class LogKeys:
    every: int = key(1, low=1, result=False)
    trackers: list[str] = key([], choices=("tensorboard", "wandb", "trackio"), result=False)
    profile: int = key(0, low=0, result=False)  # trace this many steps, after two of warm-up


@dataclass
class Recipe:
    run: RunKeys = field(default_factory=RunKeys)
    model: ModelKeys = field(default_factory=ModelKeys)
    lora: LoraKeys = field(default_factory=LoraKeys)
    data: DataKeys = field(default_factory=DataKeys)
    objective: Any = field(default_factory=lambda: objectives.find("dpo").keys())  # by its name: `Objective.keys`
    rollout: RolloutKeys = field(default_factory=RolloutKeys)
    reward: RewardKeys = field(default_factory=RewardKeys)
    value: ValueKeys = field(default_factory=ValueKeys)
    batch: BatchKeys = field(default_factory=BatchKeys)
    optimizer: OptimizerKeys = field(default_factory=OptimizerKeys)
    probes: ProbesKeys = field(default_factory=ProbesKeys)
    answers: AnswersKeys = field(default_factory=AnswersKeys)
    capability: CapabilityKeys = field(default_factory=CapabilityKeys)
    kernels: KernelsKeys = field(default_factory=KernelsKeys)
    parallel: ParallelKeys = field(default_factory=ParallelKeys)
    checkpoint: CheckpointKeys = field(default_factory=CheckpointKeys)
    log: LogKeys = field(default_factory=LogKeys)

    @property
    def has_lora(self) -> bool:
        """Whether an adapter is trained, and not the model."""
        return self.lora.rank is not None or bool(self.lora.start)

    @property
    def forwards(self) -> int:
        """FLOPs of a training step, in those of a forward: 3, or 2 where the weights are frozen and only their inputs
        have gradients. A reference is not counted."""
        return 2 if self.has_lora else 3

    @property
    def models(self) -> list[str]:
        """The names of all models and tokenizers that a run reads."""
        named = (self.model.source, self.model.tokenizer, self.lora.start, self.reward.source, self.value.source)
        return [name for name in named if name and name != IN_MEMORY and not name.startswith("regex:")]


def load_recipe(
    path: str | Path,
    overrides: Sequence[str] = (),
    objective: Objective | None = None,
    given: Mapping[str, str] | None = None,
) -> Recipe:
    """Read a TOML recipe and dotted overrides (`section.key=value`, values as in TOML; bare words are strings).

    Args:
        objective: one's own, which the recipe's objective.name may name; without a name it is meant.
        given: as in `make_recipe`.

    Raises:
        InputError: the file is missing or malformed; a key is unknown, mistyped, out of range or without effect.
    """
    tables, where = _read(Path(path))
    for override in overrides:
        _apply_override(tables, override, where)
    run = tables.get("run")
    if isinstance(run, dict):  # of two ways to say how long a run is, the command line's
        for name, other in (("steps", "epochs"), ("epochs", "steps")):
            if ("run", name) in where.overridden and ("run", other) not in where.overridden:
                run.pop(other, None)
    return make_recipe(tables, where, objective, given)


def saved_recipe(path: str | Path, objective: Objective | None = None) -> Recipe:
    """The recipe in a run folder, which may say that a source was in memory.

    Raises:
        InputError: as `load_recipe`; the file is empty.
    """
    tables, where = _read(Path(path))
    if not tables:
        raise InputError(f"{printable(path)}: is empty, so what the run's numbers belong to is lost")
    return _make(tables, where, objective)


def _read(path: Path) -> tuple[dict[str, Any], Where]:
    text = read_text(path, MIB)
    return parse_toml(text, printable(path)), Where(printable(path), text)


def names_no_data(path: str | Path) -> bool:
    """Whether a recipe says nothing of what it trains on, or that each step was given its own rows.

    Raises:
        InputError: the file is missing or malformed.
    """
    tables, _ = _read(Path(path))
    return without_data(tables)


def without_data(tables: Mapping[str, Any]) -> bool:
    """`names_no_data` of nested dictionaries."""
    data = tables.get("data")
    return not isinstance(data, dict) or data.get("train", []) in ([], "", OWN_BATCHES, [OWN_BATCHES])


def load_scoring_recipe(path: str | Path) -> Recipe:
    """Of a run's recipe what its saved weights are read by: model, data and probes. The objective does not matter, and
    may be one that is not known here.

    Raises:
        InputError: as `load_recipe`; the model or its tokenizer was in memory, so the run's checkpoints alone do not
            make a model.
    """
    tables, where = _read(Path(path))
    kept = {name: tables[name] for name in ("run", "model", "data", "batch", "probes", "capability") if name in tables}
    recipe = _make(kept | {"objective": {"name": "sft"}}, where)
    if IN_MEMORY in (recipe.model.source, recipe.model.tokenizer):
        what = "model" if recipe.model.source == IN_MEMORY else "tokenizer"
        raise InputError(
            f"{path}: the run's {what} was in memory, so no file says what its checkpoints belong to; use the folder "
            "export/ beside it instead (checkpoint.export), or one written by vd.save_model"
        )
    if recipe.probes.panel == IN_MEMORY:  # the log of its scores holds it
        recipe.probes.panel = str(RunFolder.at(Path(path).parent).drift / "panel.jsonl")
    return recipe


def make_recipe(
    tables: dict[str, dict[str, Any]],
    where: Where | None = None,
    objective: Objective | None = None,
    given: Mapping[str, str] | None = None,
) -> Recipe:
    """A checked recipe from nested dictionaries, as a TOML file gives them.

    Args:
        objective: one's own, which objective.name may name; without a name it is meant.
        given: keys whose value the program has in memory, as IN_MEMORY or OWN_BATCHES. The tables leave them out.

    Raises:
        InputError: as `load_recipe`; a key of `given` that the tables have too.
    """
    where, given = where or Where("recipe", ""), given or {}
    merged = {name: dict(table) if isinstance(table, dict) else table for name, table in tables.items()}
    for dotted, marker in given.items():
        section, name = dotted.split(".")
        table = merged.setdefault(section, {})
        if isinstance(table, dict):
            if table.get(name) not in (None, "", [], marker, [marker]):
                raise InputError(
                    f"{where(section, name)}: {dotted} = {table[name]!r}, but {_GIVEN_AS[dotted]} is given too; "
                    "leave one of them out"
                )
            table[name] = marker
    recipe = _make(merged, where, objective)
    _check_sources(recipe, where, given)
    return recipe


def _check_sources(r: Recipe, where: Where, given: Mapping[str, str]) -> None:
    """Every source has a name, or is given to the Trainer."""
    for dotted, argument in _GIVEN_AS.items():
        section, name = dotted.split(".")
        value = getattr(getattr(r, section), name)
        if dotted in given:
            continue
        if not value and dotted in ("model.source", "data.train"):
            raise InputError(f"{where(section, name)}: {dotted} is missing: every recipe must name it")
        if value in (IN_MEMORY, [IN_MEMORY]):
            raise InputError(f"{where(section, name)}: {dotted} was in memory; give it to the Trainer as {argument}")
        if value == [OWN_BATCHES]:
            raise InputError(f"{where(section, name)}: the run had no data but each step's own; use vd.Trainer")


def _plain(objective: Objective) -> Recipe:
    """The recipe of an objective in which nothing is written: all defaults."""
    defaults = objective.rollout.defaults if objective.rollout is not None else {}
    return Recipe(objective=objective.keys(), rollout=RolloutKeys(**defaults))


def _make(tables: dict[str, dict[str, Any]], where: Where, objective: Objective | None = None) -> Recipe:
    """`make_recipe`, whose sources may be missing."""
    recipe = Recipe()
    sections = {f.name for f in dataclasses.fields(Recipe)}
    for name, table in tables.items():
        if name not in sections:
            known = f"sections: {', '.join(sorted(sections))}"
            told = printable(name[:100])
            raise InputError(f"{where(name)}: unknown section [{told}]{nearest(name, sections)}; {known}")
        if not isinstance(table, dict):
            raise InputError(f"{where(name)}: {name} must be a section: write [{name}] above its keys")
    if "name" in (own := tables.get("objective", {})):
        named = coerce(own["name"], str, "objective.name", where("objective", "name"))
        try:
            recipe = _plain(objectives.find(named[:100], objective))
        except InputError as error:
            raise InputError(f"{where('objective', 'name')}: {error}") from None
    elif objective is not None:
        recipe = _plain(objective)
    for name, table in tables.items():
        read_section(getattr(recipe, name), name, table, where, partial(_unknown, recipe, name))
    _check_together(recipe, tables, where)
    return recipe


def _unknown(recipe: Recipe, section: str, name: str) -> str:
    """The message on a key that a section does not have: where it belongs."""
    if section == "objective":
        readers = [o for o in objectives.BUILT_IN if name in {f.name for f in dataclasses.fields(o.keys)}]
        if readers:
            name = f"objective.{name}"
            return (
                f'{name} has no effect with objective.name = "{recipe.objective.name}"; it belongs to {_names(readers)}'
            )
    known = {s.name: {f.name for f in dataclasses.fields(getattr(recipe, s.name))} for s in dataclasses.fields(Recipe)}
    others = sorted(f"{s}.{name}" for s, keys in known.items() if name in keys)
    hint = f"; did you mean {others[0]}?" if others else nearest(name, known[section])
    return f"unknown key {section}.{printable(name[:100])}{hint}"


def _names(readers: Sequence[Objective]) -> str:
    return ", ".join(o.name for o in readers)


def check(recipe: Recipe, given: Mapping[str, str] | None = None) -> Recipe:
    """The recipe checked and with its defaults filled in, however it was made. A new object.

    Args:
        given: as in `make_recipe`.

    Raises:
        InputError: as `load_recipe`; a key counts as written where it differs from its default.
    """
    tables: dict[str, dict[str, Any]] = {}
    plain = _plain(recipe.objective.declaration)
    for section in dataclasses.fields(Recipe):
        now, default = getattr(recipe, section.name), getattr(plain, section.name)
        names = [f.name for f in dataclasses.fields(now) if getattr(now, f.name) != getattr(default, f.name)]
        tables[section.name] = {name: getattr(now, name) for name in names}
    tables["objective"] = {"name": recipe.objective.name} | tables["objective"]
    return make_recipe(tables, None, recipe.objective.declaration, given)


def _check_together(r: Recipe, given: dict[str, dict[str, Any]], where: Where) -> None:
    """Rules over several keys, and the defaults that depend on the objective."""
    objective: Objective = r.objective.declaration
    for section in given:
        for f in dataclasses.fields(getattr(r, section)):
            only = f.metadata["only"]
            if only and not only(objective) and f.name in given[section]:
                raise InputError(
                    f"{where(section, f.name)}: {section}.{f.name} has no effect with objective.name = "
                    f'"{objective.name}"; it belongs to {_names([o for o in objectives.BUILT_IN if only(o)])}'
                )
    if r.run.after:
        r.model.source = _source_after(r, where)
    if (r.run.steps is None) == (r.run.epochs is None):
        raise InputError(f"{where('run', 'steps')}: give one of run.steps and run.epochs")
    if r.data.weights and len(r.data.weights) != len(r.data.train):
        raise InputError(
            f"{where('data', 'weights')}: data.weights has {len(r.data.weights)} values for "
            f"{len(r.data.train)} sources in data.train"
        )
    if len(r.optimizer.betas) != 2:
        raise InputError(f"{where('optimizer', 'betas')}: optimizer.betas must be two numbers")
    if r.data.eval and r.data.eval_fraction:
        raise InputError(f"{where('data', 'eval')}: give one of data.eval and data.eval_fraction")
    if r.data.eval_every and not (r.data.eval or r.data.eval_fraction):
        raise InputError(
            f"{where('data', 'eval_every')}: data.eval_every has no effect without data.eval or data.eval_fraction"
        )
    if r.data.eval_examples != DataKeys().eval_examples and not (r.data.eval or r.data.eval_fraction):
        raise InputError(
            f"{where('data', 'eval_examples')}: data.eval_examples has no effect without data.eval or "
            "data.eval_fraction"
        )
    if r.optimizer.schedule == "constant" and r.optimizer.min_lr:
        raise InputError(
            f'{where("optimizer", "min_lr")}: optimizer.min_lr has no effect with optimizer.schedule = "constant"'
        )
    parts = round(1 / r.probes.fraction)
    if abs(r.probes.fraction * parts - 1) > 0.01:
        raise InputError(
            f"{where('probes', 'fraction')}: probes.fraction = {r.probes.fraction:g} must be one n-th, so that "
            f"the parts rotate evenly; the nearest is {1 / parts:.4g} (1/{parts})"
        )
    if objective.head == "scalar":  # it has no log-probs to read
        if r.probes.every:
            raise InputError(f"{where('probes', 'every')}: probes.every must be 0: a reward model has no log-probs")
        r.probes.every = 0
    if r.probes.every == 0:  # off, whatever else is said
        r.probes.budget = None
    if r.probes.every is not None and r.probes.budget is not None:
        raise InputError(f"{where('probes', 'budget')}: give one of probes.every and probes.budget")
    if r.probes.every is None and r.probes.budget is None:
        r.probes.budget = 0.03
    if not r.probes.readouts or len(set(r.probes.readouts)) < len(r.probes.readouts):
        raise InputError(
            f"{where('probes', 'readouts')}: probes.readouts = {r.probes.readouts} must name at least one of "
            f"{', '.join(READOUTS)}, and none twice; probes.every = 0 turns them off"
        )
    _check_answers(r, given, where)
    _check_lora(r, given, where)
    if not r.capability.tasks:
        for name in given.get("capability", {}):
            if getattr(r.capability, name) != getattr(CapabilityKeys(), name):
                raise InputError(
                    f"{where('capability', name)}: capability.{name} has no effect without capability.tasks"
                )
    if r.batch.tokens < r.data.max_tokens:
        raise InputError(
            f"{where('batch', 'tokens')}: batch.tokens = {r.batch.tokens} is smaller than data.max_tokens = "
            f"{r.data.max_tokens}: one row may not fit a pack"
        )
    if isinstance(r.parallel.shard, str) and r.parallel.shard != "all":
        raise InputError(f'{where("parallel", "shard")}: parallel.shard must be "all" or a number of ranks')
    if objective.rollout and r.rollout.max_new_tokens >= r.data.max_tokens:
        raise InputError(
            f"{where('rollout', 'max_new_tokens')}: rollout.max_new_tokens = {r.rollout.max_new_tokens} leaves no room "
            f"for a prompt within data.max_tokens = {r.data.max_tokens}"
        )
    if objective.rollout:
        _check_rollout(r, objective.rollout, where)
    if objective.batch_kl and r.batch.examples < 2:
        raise InputError(
            f"{where('batch', 'examples')}: batch.examples = 1: {objective.name} needs at least 2, because its KL is "
            "of answers to the prompts of other rows"
        )
    if objective.check is not None and (problem := objective.check(r)) is not None:
        section, name, message = problem
        raise InputError(f"{where(section, name)}: {message}")


def _source_after(r: Recipe, where: Where) -> str:
    """What a run starts from that goes on after another: the other's export."""
    export = str(RunFolder(run_path(str(r.run.after), f"{where('run', 'after')}: run.after")).export)
    if r.model.source and os.path.realpath(os.path.expanduser(r.model.source)) != os.path.realpath(export):
        raise InputError(
            f"{where('model', 'source')}: model.source = {shown(r.model.source)}, but run.after = {shown(r.run.after)} "
            f"starts from {export}; leave one of them out"
        )
    return export


def run_path(name: str, key: str) -> Path:
    """The folder of a run that a recipe names, whether it is there or not.

    Args:
        key: names it in errors: "run.after".

    Raises:
        InputError: no path that can be: "~who" of no user here, a NUL, a name that is too long.
    """
    try:
        path = RunFolder.at(name).path
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # a recipe may be of another machine
        return path
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: of expanduser
        why = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{key} = {shown(name)} is no folder's name: {why}") from None
    return path


def _check_rollout(r: Recipe, rule: OnPolicy, where: Where) -> None:
    name = r.objective.name
    if r.rollout.samples < rule.least_samples:
        raise InputError(
            f"{where('rollout', 'samples')}: rollout.samples = {r.rollout.samples}: {name} compares the completions of "
            f"a prompt with each other and needs at least {rule.least_samples}"
        )
    if r.objective.reference == "none" and getattr(r.objective, rule.kl):
        raise InputError(
            f'{where("objective", "reference")}: objective.reference = "none" needs objective.{rule.kl} = 0: the '
            "penalty is on the distance from the reference"
        )
    _, updates = rule.passes(r.objective)
    if updates > r.batch.examples:
        raise InputError(
            f"{where('objective', 'num_mini_batches')}: {updates} minibatches of {r.batch.examples} prompts "
            "(batch.examples): at least one prompt each"
        )


def _check_answers(r: Recipe, given: dict[str, dict[str, Any]], where: Where) -> None:
    a, plain = r.answers, AnswersKeys()
    written = [name for name in given.get("answers", {}) if getattr(a, name) != getattr(plain, name)]
    how_many = [name for name in ("anchors", "generated_tokens", "most_answers") if name in written]
    if a.samples is None and how_many:
        a.samples = 2
    for names, switch, hint in (
        (set(written) - {"samples"}, "samples", "; answers.anchors or a budget of tokens asks for some"),
        ({"max_anchors", "alarm"}.intersection(written), "weights_every", ": no anchor is asked for"),
    ):
        if names and not getattr(a, switch):
            name = min(names, key=written.index)
            raise InputError(f"{where('answers', name)}: answers.{name} has no effect with answers.{switch} = 0{hint}")
    if not a.samples:
        return
    if "alarm" in written and TEXT not in r.probes.readouts:
        raise InputError(
            f"{where('answers', 'alarm')}: answers.alarm has no effect: it is of the text likelihood, which is not "
            "among probes.readouts"
        )
    if a.anchors is not None and len(how_many) > 1 and not a.weights_every:
        raise InputError(
            f"{where('answers', 'anchors')}: give one of answers.anchors and answers.{how_many[1]}: either says how "
            "many there are"
        )
    if a.anchors == 1:
        raise InputError(f"{where('answers', 'anchors')}: answers.anchors = 1: at least 2, the start and the end")
    if r.probes.every == 0:
        raise InputError(f"{where('answers', 'samples')}: answers are to the panel's questions: probes.every is 0")
    if a.base is not None and a.base < a.samples:
        raise InputError(
            f"{where('answers', 'base')}: answers.base = {a.base} is below answers.samples = {a.samples}: the first "
            "anchor's answers include its bank"
        )


def _check_lora(r: Recipe, given: dict[str, dict[str, Any]], where: Where) -> None:
    """Rules of adapters, and the reference that is the default with one."""
    lora, plain, objective = r.lora, LoraKeys(), r.objective.declaration
    written = [name for name in given.get("lora", {}) if getattr(lora, name) != getattr(plain, name)]
    if lora.start and lora.rank is not None:
        raise InputError(f"{where('lora', 'rank')}: give one of lora.rank and lora.start: an adapter has its rank")
    for name in written:
        if not r.has_lora:
            raise InputError(f"{where('lora', name)}: lora.{name} has no effect without lora.rank or lora.start")
        if lora.start and name not in ("start", "dropout"):
            raise InputError(f"{where('lora', name)}: lora.{name} has no effect with lora.start: the adapter says it")
    if not lora.targets:
        raise InputError(f'{where("lora", "targets")}: lora.targets is empty; name linear layers, or "all-linear"')
    for target in lora.targets:
        if target.rpartition(".")[2] in ("lm_head", "embed_tokens", "score"):
            raise InputError(
                f"{where('lora', 'targets')}: lora.targets: {printable(target)} has no adapter; linear layers of the "
                "blocks may have one (q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj)"
            )
    if lora.dropout and objective.rollout:
        raise InputError(
            f"{where('lora', 'dropout')}: lora.dropout must be 0 with {objective.name}: what is sampled and what is "
            "trained would be two policies"
        )
    if not objective.reference:
        return
    if objective.rollout and not objective.rollout.refers(r.objective):
        if r.objective.reference not in (None, "none"):
            raise InputError(
                f"{where('objective', 'reference')}: objective.reference has no effect with objective."
                f"{objective.rollout.kl} = 0: no distance from a reference is weighed"
            )
        r.objective.reference = "none"
    elif r.objective.reference is None:  # a new adapter begins as the plain model; one to start with does not
        r.objective.reference = ADAPTER_OFF if r.has_lora and not lora.start else objective.reference[0]
    elif r.objective.reference == ADAPTER_OFF and not r.has_lora:
        raise InputError(
            f'{where("objective", "reference")}: objective.reference = "{ADAPTER_OFF}" needs an adapter: lora.rank or '
            f"lora.start; without one: {', '.join(objective.reference)}"
        )


def _apply_override(tables: dict[str, Any], override: str, where: Where) -> None:
    dotted, equals, text = override.partition("=")
    section, dot, name = dotted.strip().partition(".")
    if not (equals and dot and section and name):
        raise InputError(f"command line: {shown(override)} is not an override; write section.key=value")
    where.overridden.add((section, name))
    where.overridden.add((section, None))
    table = tables.setdefault(section, {})
    if not isinstance(table, dict):
        raise InputError(f"{where.file}: {section} must be a section: write [{section}] above its keys")
    table[name] = _value(override, text.strip())


def _value(override: str, text: str) -> Any:
    """What is on the right of an override: a value of TOML, or a bare word. What begins as a list, a table or a quoted
    text is meant as one."""
    try:
        tables = parse_toml(f"x = {text}", f"command line: {shown(override)}")
    except InputError:
        if text[:1] in ("[", "{", '"', "'") and text:
            raise
        return text
    if len(tables) != 1 or "\n" in text and not isinstance(tables["x"], str | list):
        raise InputError(f"command line: {shown(override)} is more than one value")
    # A folder may be called 2026-01-31; no key is a date.
    return tables["x"] if isinstance(tables["x"], str | int | float | list | dict) else text


def to_tables(recipe: Recipe, *, result_only: bool = False) -> dict[str, dict[str, Any]]:
    """The recipe as nested dictionaries: every key that has an effect, defaults included."""
    tables: dict[str, dict[str, Any]] = {}
    for section in dataclasses.fields(Recipe):
        s = getattr(recipe, section.name)
        tables[section.name] = {
            f.name: value
            for f in sorted(dataclasses.fields(s), key=lambda f: f.name != "name")  # an objective's name first
            if (value := getattr(s, f.name)) is not None
            and (f.metadata["only"] is None or f.metadata["only"](recipe.objective.declaration))
            and (f.metadata["result"] or not result_only)
        }
    return tables


def to_toml(recipe: Recipe) -> str:
    """The resolved recipe as TOML; `load_recipe` reads it back to an equal recipe."""
    return "\n".join(
        f"[{section}]\n" + "".join(f"{k} = {_toml(v)}\n" for k, v in table.items())
        for section, table in to_tables(recipe).items()
    )


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        escaped = re.sub(r"[\x00-\x1f\x7f]", lambda m: f"\\u{ord(m[0]):04x}", escaped)
        return f'"{escaped}"'
    if isinstance(value, list):
        return f"[{', '.join(_toml(v) for v in value)}]"
    return repr(value)


def differences(old: Recipe, new: Recipe, but: Collection[str] = ()) -> list[str]:
    """Keys that differ and change a run's numbers, as `section.key: old -> new`; those of `but` aside."""
    a, b = to_tables(old, result_only=True), to_tables(new, result_only=True)
    out = []
    for section in a:
        for k in sorted(a[section].keys() | b[section].keys()):
            was, now = a[section].get(k), b[section].get(k)
            if was != now and f"{section}.{k}" not in but:
                out.append(f"{section}.{k}: {was!r} -> {now!r}")
    return out
