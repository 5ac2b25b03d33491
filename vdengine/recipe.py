"""A recipe is one TOML file and one run. These dataclasses are its keys, defaults, ranges and meaning.

    recipe = load_recipe("recipes/quickstart.toml", ["optimizer.lr=1e-5"])

An unknown key, a value out of range, or a key that the chosen objective ignores is an `InputError`: nothing a
user writes is silently without effect.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vdengine.errors import InputError

OBJECTIVES = ("sft", "dpo", "simpo", "reward", "ppo")
FORMATS = (
    "auto", "preference", "messages", "prompt_completion", "alpaca", "hh_rlhf", "ultrafeedback", "wildchat", "prompt",
)  # fmt: skip
_ON_ROWS = ("sft", "dpo", "simpo", "reward")  # learn from rows of data; PPO from what it samples
_LOG_PROBS = ("sft", "dpo", "simpo", "ppo")  # train a language model; "reward" one that gives a score
_PPO = ("ppo",)


def key(default: Any, *, low=None, high=None, above=None, choices=None, only=None, result=True) -> Any:
    """A recipe key: its default and what is allowed.

    low/high are inclusive bounds, `above` an exclusive lower one. `only`: the objectives that read this key.
    result=False: the key does not change the numbers of a run, so a resumed run may change it.
    """
    meta = {"low": low, "high": high, "above": above, "choices": choices, "only": only, "result": result}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=meta)
    return field(default=default, metadata=meta)


@dataclass
class RunKeys:
    folder: str = key("runs/run", result=False)
    seed: int = key(0, low=0)
    steps: int | None = key(None, low=1)  # optimizer steps; or
    epochs: float | None = key(None, above=0)  # passes over the data
    resume: bool = key(True, result=False)  # an existing folder goes on from its newest checkpoint
    deterministic: bool = key(True)


@dataclass
class ModelKeys:
    source: str = key("")  # folder | hub id | *.gguf | package://package/file.gguf
    tokenizer: str = key("")  # same forms; default: source
    dtype: str = key("auto", choices=("auto", "float32", "bfloat16"))  # compute; master weights are fp32


@dataclass
class DataKeys:
    train: list[str] = key([])  # files, folders, hub ids or built-in names
    weights: list[float] = key([])  # passes over each source per epoch; default 1.0 each
    format: str = key("auto", choices=FORMATS)
    template: str = key("auto")  # chat template: auto (the tokenizer's) | plain | alpaca | a .jinja file
    max_tokens: int = key(1024, low=2)  # of prompt + one branch
    overlong: str = key("drop", choices=("drop", "truncate"), only=_ON_ROWS)
    eval: str = key("", only=_ON_ROWS)  # held-out data: a source like train's, or empty
    eval_fraction: float = key(0.0, low=0.0, high=0.5, only=_ON_ROWS)  # or this share of train, held out
    eval_every: int = key(0, low=0, only=_ON_ROWS, result=False)  # steps; 0: at the end only
    eval_examples: int = key(256, low=1, only=_ON_ROWS)  # at most so many held-out examples
    cache: str = key("~/.cache/vdengine", result=False)  # tokenised data and reference log-probs


@dataclass
class ObjectiveKeys:
    name: str = key("dpo", choices=OBJECTIVES)
    beta: float | None = key(None, above=0, only=("dpo", "simpo"))  # default: dpo 0.1, simpo 2.0
    label_smoothing: float = key(0.0, low=0.0, high=0.5, only=("dpo",))  # conservative DPO
    reference: str | None = key(None, choices=("cached", "live", "none"), only=("dpo", "ppo"))  # cached; ppo: live
    gamma_beta_ratio: float = key(0.5, low=0.0, only=("simpo",))
    margin: float = key(0.0, low=0.0, only=("reward",))  # times each row's own margin, 1 where it has none
    center_rewards_coefficient: float = key(0.0, low=0.0, only=("reward",))  # keeps scores around 0
    kl_coef: float = key(0.05, low=0.0, only=_PPO)  # of the penalty on log p / log p_reference, in the reward
    kl_estimator: str = key("k1", choices=("k1", "k3"), only=_PPO)
    kl_target: float | None = key(None, above=0, only=_PPO)  # nats a completion: adapts kl_coef towards it
    kl_horizon: int = key(10_000, low=1, only=_PPO)  # completions over which it adapts
    cliprange: float = key(0.2, above=0, only=_PPO)  # of the probability ratio
    cliprange_value: float = key(0.2, above=0, only=_PPO)  # of a value's move from the rollout's
    vf_coef: float = key(0.1, low=0.0, only=_PPO)
    gamma: float = key(1.0, above=0, high=1.0, only=_PPO)
    lam: float = key(0.95, low=0.0, high=1.0, only=_PPO)
    num_ppo_epochs: int = key(4, low=1, only=_PPO)  # passes over a rollout
    num_mini_batches: int = key(1, low=1, only=_PPO)  # updates in a pass
    whiten_rewards: bool = key(False, only=_PPO)
    missing_eos_penalty: float = key(0.0, low=0.0, only=_PPO)  # off the score of a completion that does not end


@dataclass
class RolloutKeys:  # what PPO samples at each step
    samples: int = key(1, low=1, only=_PPO)  # completions of a prompt
    max_new_tokens: int = key(53, low=1, only=_PPO)
    temperature: float = key(0.7, above=0, only=_PPO)  # also divides the logits of every log-prob that is compared
    slots: int = key(64, low=1, only=_PPO, result=False)  # completions that a rank samples side by side
    weights: str = key("auto", choices=("auto", "gathered", "sharded"), only=_PPO, result=False)
    show_every: int = key(
        10, low=0, only=_PPO, result=False
    )  # steps between samples kept in completions.jsonl; 0: none
    show: int = key(4, low=1, only=_PPO, result=False)  # prompts of those steps


@dataclass
class RewardKeys:
    source: str = key("", only=_PPO)  # folder or hub id of a reward model, or regex:PATTERN; or Trainer(reward=...)
    normalize: bool = key(False, only=_PPO)  # by mean and deviation of the first rollout's scores


@dataclass
class ValueKeys:
    source: str = key("", only=_PPO)  # default: the reward model; without one, model.source
    lr: float | None = key(None, low=0.0, only=_PPO)  # default: optimizer.lr


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
    panel: str = key("values-mini", only=_LOG_PROBS)  # built-in name or a .jsonl file
    every: int | None = key(None, low=0)  # steps between samples; 0: no probes; or
    budget: float | None = key(None, above=0, high=1.0, only=_LOG_PROBS)  # share of step time; with neither given 0.03
    # of the panel at each sample: 1, 1/2, 1/3, ...; the parts rotate
    fraction: float = key(1.0, above=0, high=1.0, only=_LOG_PROBS)
    tokens: int = key(2048, low=64, only=_LOG_PROBS)  # budget of one probe pack
    # at the first and last sample also: a paraphrase of each question, no question at all, and trivial matters
    controls: bool = key(True, only=_LOG_PROBS)


@dataclass
class AnswersKeys:  # to the panel's questions: what the model says, by a judge that reads them after the run
    samples: int = key(0, low=0, only=_LOG_PROBS)  # of a probe at an anchor, 16 or more; 0: none are drawn
    base: int | None = key(None, low=1, only=_LOG_PROBS)  # at step 0; default 3 x samples
    max_tokens: int = key(64, low=1, only=_LOG_PROBS)  # of an answer
    probes: int = key(0, low=0, only=_LOG_PROBS)  # a stratified part of the panel; 0: all of it
    every: int = key(1, low=0, only=_LOG_PROBS)  # weights at every n-th sample of the panel; 0: at anchors only
    anchors: list[int] = key([], only=_LOG_PROBS)  # steps with new answers, beside the first and the last
    max_anchors: int = key(8, low=2, only=_LOG_PROBS)  # in all: those the weights or the alarm ask for included
    alarm: float = key(0.02, low=0.0, only=_LOG_PROBS)  # panel's openings shift, nats per byte, that asks; 0: never
    generated_tokens: int | None = key(None, low=1, only=_LOG_PROBS)  # at most, all anchors together
    judge_calls: int | None = key(None, low=1, only=_LOG_PROBS)  # at most, all answers together


_ELEMENTWISE = ("auto", "triton", "reference")


@dataclass
class KernelsKeys:  # a backend for each; "auto": by device
    rms_norm: str = key("auto", choices=_ELEMENTWISE)
    rope: str = key("auto", choices=_ELEMENTWISE)
    swiglu: str = key("auto", choices=_ELEMENTWISE)
    attention: str = key("auto", choices=("auto", "flash", "varlen", "sdpa"))
    head: str = key("auto", choices=("auto", "triton", "torch", "native", "reference"), only=_LOG_PROBS)
    preference: str = key("auto", choices=_ELEMENTWISE, only=("dpo", "simpo"))


@dataclass
class ParallelKeys:
    replicate: int = key(1, low=1)  # HSDP: copies of the sharded model
    shard: str | int = key("all")  # ranks to a copy; "all": world size / replicate
    activation_checkpoint: str = key("selective", choices=("none", "selective", "full"), result=False)
    head_saved_bytes: int | None = key(None, low=0, result=False)  # softmax chunks kept until backward; 0 recomputes


@dataclass
class CheckpointKeys:
    every: int = key(100, low=0, result=False)  # steps; 0: at the end only
    keep: int = key(2, low=1, result=False)
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
    data: DataKeys = field(default_factory=DataKeys)
    objective: ObjectiveKeys = field(default_factory=ObjectiveKeys)
    rollout: RolloutKeys = field(default_factory=RolloutKeys)
    reward: RewardKeys = field(default_factory=RewardKeys)
    value: ValueKeys = field(default_factory=ValueKeys)
    batch: BatchKeys = field(default_factory=BatchKeys)
    optimizer: OptimizerKeys = field(default_factory=OptimizerKeys)
    probes: ProbesKeys = field(default_factory=ProbesKeys)
    answers: AnswersKeys = field(default_factory=AnswersKeys)
    kernels: KernelsKeys = field(default_factory=KernelsKeys)
    parallel: ParallelKeys = field(default_factory=ParallelKeys)
    checkpoint: CheckpointKeys = field(default_factory=CheckpointKeys)
    log: LogKeys = field(default_factory=LogKeys)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a TOML recipe and dotted overrides (`section.key=value`, values as in TOML; bare words are strings).

    Raises:
        InputError: the file is missing or malformed; a key is unknown, mistyped, out of range or without effect.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such recipe") from None
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{path}: cannot be read as a recipe: {e}") from None
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise InputError(f"{path}: not valid TOML: {e}") from None
    where = _Where(str(path), text)
    for override in overrides:
        _apply_override(tables, override, where)
    return make_recipe(tables, where)


def make_recipe(tables: dict[str, dict[str, Any]], where: _Where | None = None) -> Recipe:
    """A checked recipe from nested dictionaries, as a TOML file gives them.

    Raises:
        InputError: as `load_recipe`.
    """
    where = where or _Where("recipe", "")
    recipe = Recipe()
    sections = {f.name for f in dataclasses.fields(Recipe)}
    for name, table in tables.items():
        if name not in sections:
            hint = _nearest(name, sections)
            raise InputError(f"{where(name)}: unknown section [{name}]{hint}; sections: {', '.join(sorted(sections))}")
        if not isinstance(table, dict):
            raise InputError(f"{where(name)}: {name} must be a section: write [{name}] above its keys")
        section = getattr(recipe, name)
        fields = {f.name: f for f in dataclasses.fields(section)}
        hints = typing.get_type_hints(type(section))
        for k, value in table.items():
            at = where(name, k)
            if k not in fields:
                others = sorted(f"{s}.{f.name}" for s in sections for f in dataclasses.fields(getattr(recipe, s)))
                elsewhere = [o for o in others if o.split(".")[1] == k]
                hint = f"; did you mean {elsewhere[0]}?" if elsewhere else _nearest(k, fields)
                raise InputError(f"{at}: unknown key {name}.{k}{hint}")
            value = _coerce(value, hints[k], f"{name}.{k}", at)
            _check_range(value, fields[k].metadata, f"{name}.{k}", at)
            setattr(section, k, value)
    _check_together(recipe, tables, where)
    return recipe


def check(recipe: Recipe) -> Recipe:
    """The recipe checked and with its defaults filled in, however it was made. A new object.

    Raises:
        InputError: as `load_recipe`; a key counts as given where it differs from its default.
    """
    plain = Recipe()
    given: dict[str, dict[str, Any]] = {}
    for section in dataclasses.fields(Recipe):
        now, default = getattr(recipe, section.name), getattr(plain, section.name)
        names = [f.name for f in dataclasses.fields(now) if getattr(now, f.name) != getattr(default, f.name)]
        given[section.name] = {name: getattr(now, name) for name in names}
    return make_recipe(given)


def _check_together(r: Recipe, given: dict[str, dict[str, Any]], where: _Where) -> None:
    """Rules over several keys, and the defaults that depend on the objective."""
    for section in given:
        for f in dataclasses.fields(getattr(r, section)):
            only = f.metadata["only"]
            if only and r.objective.name not in only and f.name in given[section]:
                raise InputError(
                    f"{where(section, f.name)}: {section}.{f.name} has no effect with objective.name = "
                    f'"{r.objective.name}"; it belongs to {", ".join(only)}'
                )
    for section, name in (("model", "source"), ("data", "train")):
        if not getattr(getattr(r, section), name):
            raise InputError(f"{where(section, name)}: {section}.{name} is missing: every recipe must name it")
    if (r.run.steps is None) == (r.run.epochs is None):
        raise InputError(f"{where('run', 'steps')}: give one of run.steps and run.epochs")
    if r.data.weights and len(r.data.weights) != len(r.data.train):
        raise InputError(
            f"{where('data', 'weights')}: data.weights has {len(r.data.weights)} values for "
            f"{len(r.data.train)} sources in data.train"
        )
    if any(w <= 0 for w in r.data.weights):
        raise InputError(f"{where('data', 'weights')}: data.weights must be > 0; got {r.data.weights}")
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
    if r.objective.name == "reward":  # a reward model has no log-probs to read
        if r.probes.every:
            raise InputError(f"{where('probes', 'every')}: probes.every must be 0: a reward model has no log-probs")
        r.probes.every = 0
    if r.probes.every == 0:  # off, whatever else is said
        r.probes.budget = None
    if r.probes.every is not None and r.probes.budget is not None:
        raise InputError(f"{where('probes', 'budget')}: give one of probes.every and probes.budget")
    if r.probes.every is None and r.probes.budget is None:
        r.probes.budget = 0.03
    _check_answers(r, given, where)
    if r.batch.tokens < r.data.max_tokens:
        raise InputError(
            f"{where('batch', 'tokens')}: batch.tokens = {r.batch.tokens} is smaller than data.max_tokens = "
            f"{r.data.max_tokens}: one row may not fit a pack"
        )
    if isinstance(r.parallel.shard, str) and r.parallel.shard != "all" or r.parallel.shard == 0:
        raise InputError(f'{where("parallel", "shard")}: parallel.shard must be "all" or a number of ranks')
    if r.objective.beta is None:
        r.objective.beta = {"dpo": 0.1, "simpo": 2.0}.get(r.objective.name)
    if r.objective.reference is None:
        r.objective.reference = {"dpo": "cached", "ppo": "live"}.get(r.objective.name)
    if r.objective.name == "ppo":
        _check_ppo(r, where)


def _check_answers(r: Recipe, given: dict[str, dict[str, Any]], where: _Where) -> None:
    a, plain = r.answers, AnswersKeys()
    if not a.samples:
        for name in given.get("answers", {}):
            if getattr(a, name) != getattr(plain, name):
                raise InputError(f"{where('answers', name)}: answers.{name} has no effect with answers.samples = 0")
        return
    if r.probes.every == 0:
        raise InputError(f"{where('answers', 'samples')}: answers are to the panel's questions: probes.every is 0")
    if a.base is not None and a.base < a.samples:
        raise InputError(
            f"{where('answers', 'base')}: answers.base = {a.base} is below answers.samples = {a.samples}: the first "
            "anchor's answers include its bank"
        )


def _check_ppo(r: Recipe, where: _Where) -> None:
    o = r.objective
    if o.reference == "cached":
        raise InputError(
            f'{where("objective", "reference")}: objective.reference = "cached" does not go with ppo, whose '
            "completions are new at every step; allowed: live, none"
        )
    if o.reference == "none" and (o.kl_coef or o.kl_target):
        raise InputError(
            f'{where("objective", "reference")}: objective.reference = "none" needs objective.kl_coef = 0: the penalty '
            "is on the distance from the reference"
        )
    if o.kl_target and not o.kl_coef:
        raise InputError(f"{where('objective', 'kl_coef')}: objective.kl_target cannot adapt a kl_coef of 0")
    if o.num_mini_batches > r.batch.examples:
        raise InputError(
            f"{where('objective', 'num_mini_batches')}: {o.num_mini_batches} minibatches of {r.batch.examples} prompts "
            "(batch.examples): at least one prompt each"
        )
    if r.rollout.max_new_tokens >= r.data.max_tokens:
        raise InputError(
            f"{where('rollout', 'max_new_tokens')}: rollout.max_new_tokens = {r.rollout.max_new_tokens} leaves no room "
            f"for a prompt within data.max_tokens = {r.data.max_tokens}"
        )


class _Where:
    """Names the file, and the line where a key stands, for error messages."""

    def __init__(self, file: str, text: str) -> None:
        self.file, self.lines, self.overridden = file, text.splitlines(), set[tuple[str, str | None]]()

    def __call__(self, section: str, name: str | None = None) -> str:
        if (section, name) in self.overridden:
            return "command line"
        current = ""
        for number, line in enumerate(self.lines, 1):
            if m := re.match(r"\s*\[([^\]]+)\]", line):
                current = m[1].strip()
                if current == section and name is None:
                    return f"{self.file}:{number}"
            elif name and current == section and re.match(rf"\s*{re.escape(name)}\s*=", line):
                return f"{self.file}:{number}"
        return self.file


def _apply_override(tables: dict[str, Any], override: str, where: _Where) -> None:
    dotted, equals, text = override.partition("=")
    section, dot, name = dotted.strip().partition(".")
    if not (equals and dot and section and name):
        raise InputError(f"command line: {override!r} is not an override; write section.key=value")
    where.overridden.add((section, name))
    where.overridden.add((section, None))
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word or path
    table = tables.setdefault(section, {})
    if not isinstance(table, dict):
        raise InputError(f"{where.file}: {section} must be a section: write [{section}] above its keys")
    table[name] = value


def _nearest(name: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(sorted(known))}"


def _coerce(value: Any, hint: Any, name: str, at: str) -> Any:
    """The value as the annotated type, or an error. int is a fine float, a string a fine one-item list."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if typing.get_origin(option) is list:
            (item,) = typing.get_args(option)
            return [_coerce(v, item, name, at) for v in (value if isinstance(value, list) else [value])]
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if option in (str, bool) and isinstance(value, option):
            return value
    words = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    wanted = " or ".join(words[o] for o in options if o in words)
    raise InputError(f"{at}: {name} must be {wanted}; got {value!r}")


def _check_range(value: Any, meta: Any, name: str, at: str) -> None:
    low, high, above, choices = meta["low"], meta["high"], meta["above"], meta["choices"]
    for v in value if isinstance(value, list) else [value]:
        if choices is not None and v not in choices:
            raise InputError(f"{at}: {name} = {v!r} is not known; allowed: {', '.join(choices)}")
        if not isinstance(v, int | float) or isinstance(v, bool):
            continue
        too_low = (low is not None and v < low) or (above is not None and v <= above)
        if not math.isfinite(v) or too_low or (high is not None and v > high):
            bounds = [f">= {low}"] if low is not None else [f"> {above}"] if above is not None else []
            bounds += [f"<= {high}"] if high is not None else []
            raise InputError(f"{at}: {name} = {v} is out of range; allowed: {' and '.join(bounds) or 'finite'}")


def to_tables(recipe: Recipe, *, result_only: bool = False) -> dict[str, dict[str, Any]]:
    """The recipe as nested dictionaries: every key that has an effect, defaults included."""
    tables: dict[str, dict[str, Any]] = {}
    for section in dataclasses.fields(Recipe):
        s = getattr(recipe, section.name)
        tables[section.name] = {
            f.name: value
            for f in dataclasses.fields(s)
            if (value := getattr(s, f.name)) is not None
            and (f.metadata["only"] is None or recipe.objective.name in f.metadata["only"])
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


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Keys that differ and change a run's numbers, as `section.key: old -> new`."""
    a, b = to_tables(old, result_only=True), to_tables(new, result_only=True)
    out = []
    for section in a:
        for k in sorted(a[section].keys() | b[section].keys()):
            was, now = a[section].get(k), b[section].get(k)
            if was != now:
                out.append(f"{section}.{k}: {was!r} -> {now!r}")
    return out
