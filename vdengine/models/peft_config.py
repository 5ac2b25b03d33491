"""What a LoRA adapter is (Hu et al., arXiv 2106.09685), and how PEFT writes it down: adapter_config.json. No torch
here, so that what is wrong with an adapter is said before it loads."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from vdengine.errors import InputError
from vdengine.hub import locate_here
from vdengine.models.families import ModelConfig, expected_shapes
from vdengine.outside import is_text, json_object, printable
from vdengine.settings import shown

MAX_ADAPTERS = 8  # over one another
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
ALL_LINEAR = "all-linear"  # PEFT's word for every linear layer but the head
WHOLE = ("lm_head", "embed_tokens", "score")  # what no adapter is made for
MOST_RANK = 8192

# Keys of adapter_config.json that say nothing of the numbers of an adapter that has its tensors already.
_NO_EFFECT = {
    "inference_mode", "auto_mapping", "revision", "peft_version", "megatron_core", "qalora_group_size", "eva_config",
    "exclude_modules", "layers_to_transform", "layers_pattern", "runtime_config", "corda_config", "loftq_config",
    "lora_ga_config",
}  # fmt: skip
_READ = {
    "peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "target_modules",
    "rank_pattern", "alpha_pattern", "use_rslora", "bias", "modules_to_save", "init_lora_weights",
}  # fmt: skip
# Ways to begin that leave the base model as it is. The others (pissa, olora, corda, loftq) change its weights.
_INITS = (None, True, False, "gaussian", "eva", "orthogonal")


class Adapted(NamedTuple):
    """The adapter of one layer."""

    rank: int
    scale: float  # of its term: alpha / rank, or alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732)


@dataclass(frozen=True)
class Lora:
    """A low-rank adapter: y = W x + scale * B A dropout(x), W frozen.

    Args:
        rank: r, rows of A and columns of B.
        alpha: the scale is alpha / rank.
        targets: names of linear layers: "all-linear", or ends of their names as PEFT's target_modules are ("q_proj",
            "layers.3.mlp.up_proj").
        dropout: probability, of the adapter's input, in training.
        rslora: the scale is alpha / sqrt(rank).
        rank_pattern, alpha_pattern: of layers, by their whole names, that differ.

    Raises:
        InputError: a value out of range, no target, or the head or the embedding as one.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = (ALL_LINEAR,)
    dropout: float = 0.0
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, rank in (("rank", self.rank), *self.rank_pattern.items()):
            if not 1 <= rank <= MOST_RANK:
                raise InputError(f"LoRA: {name} = {rank} is out of range; allowed: 1 to {MOST_RANK}")
        for name, alpha in (("alpha", self.alpha), *self.alpha_pattern.items()):
            if not (math.isfinite(alpha) and alpha > 0):
                raise InputError(f"LoRA: {name} = {alpha} is out of range; allowed: > 0")
        if not 0 <= self.dropout < 1:
            raise InputError(f"LoRA: dropout = {self.dropout} is out of range; allowed: >= 0 and < 1")
        if not self.targets:
            raise InputError(f'LoRA: no targets; name linear layers, or "{ALL_LINEAR}"')
        for target in self.targets:
            if target.rpartition(".")[2] in WHOLE:
                raise InputError(f"LoRA: {target} cannot be a target: embedding and heads have no adapter")

    def modules(self, config: ModelConfig) -> dict[str, Adapted]:
        """The layers of a model that have an adapter, by name and in the model's order.

        Raises:
            InputError: a target or a pattern that no layer of the model fits.
        """
        layers = linear_layers(config)
        for target in self.targets:
            if not any(_fits(name, target) for name in layers):
                kinds = sorted({name.rpartition(".")[2] for name in layers})
                raise InputError(
                    f"LoRA: target {printable(target)!r} fits no linear layer of this {config.model_type} of "
                    f"{config.num_hidden_layers} layers; there are {', '.join(kinds)}, or {ALL_LINEAR}"
                )
        chosen = [name for name in layers if any(_fits(name, target) for target in self.targets)]
        for name in (*self.rank_pattern, *self.alpha_pattern):
            if name not in chosen:
                raise InputError(f"LoRA: {printable(name)} has a rank or alpha of its own and is no target")
        adapted = {}
        for name in chosen:
            rank, alpha = self.rank_pattern.get(name, self.rank), self.alpha_pattern.get(name, self.alpha)
            adapted[name] = Adapted(rank, alpha / (math.sqrt(rank) if self.rslora else rank))
        return adapted

    def without_patterns(self) -> Lora:
        """The same for another model (PPO's critic): by kind of layer, each with the common rank and alpha."""
        kinds = tuple(dict.fromkeys(target.rpartition(".")[2] for target in self.targets))
        return replace(self, targets=kinds, rank_pattern={}, alpha_pattern={})

    def num_parameters(self, config: ModelConfig) -> int:
        """Parameters of the adapter, without those that are trained beside it (`trained_whole`)."""
        layers = linear_layers(config)
        return sum(a.rank * sum(layers[name]) for name, a in self.modules(config).items())


def _fits(name: str, target: str) -> bool:
    return target == ALL_LINEAR or name == target or name.endswith(f".{target}")


def linear_layers(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """The linear layers of a model's blocks by name: (out_features, in_features)."""
    return {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in expected_shapes(config).items()
        if len(shape) == 2 and name.startswith("model.layers.")
    }


def trained_whole(config: ModelConfig) -> tuple[str, ...]:
    """Parameters that are trained beside an adapter: the head of a scalar model, which is new (PEFT's
    modules_to_save)."""
    return ("score.weight",) if config.head == "scalar" else ()


def is_adapter(folder: Path) -> bool:
    """Whether a folder is an adapter and no model."""
    return (folder / CONFIG).exists() and not (folder / "config.json").exists()


def tokenizer_of(source: str) -> str:
    """The model whose tokenizer a model has: itself, or the base of an adapter that comes without one."""
    here = locate_here(source)
    if here is None or not is_adapter(here) or (here / "tokenizer.json").exists():
        return source
    return read_peft_config(here).base or source


# --------------------------------------------------------------------------------------------- adapter_config.json


@dataclass(frozen=True)
class PeftConfig:
    """What an adapter_config.json says. Which layers have an adapter, and of which rank, is read from the tensors."""

    where: str  # the file, for messages
    base: str  # name of the base model; "": it does not say
    rank: int
    ranks: Mapping[str, int]  # of layers by the end of their names
    alpha: float
    alphas: Mapping[str, float]  # likewise
    dropout: float
    rslora: bool
    targets: tuple[str, ...] | None  # None: layers are chosen by an expression, or some are left out
    scalar: bool  # of a model with a scalar head, which is in the file too

    def rank_of(self, name: str) -> int:
        """The rank of a layer, that of the first pattern which fits it, as in PEFT."""
        return next((rank for end, rank in self.ranks.items() if _fits(name, end)), self.rank)

    def lora(self, layers: Iterable[str], config: ModelConfig) -> Lora:
        """The adapter of these layers of a model."""
        layers = list(layers)
        alphas = {n: next((a for end, a in self.alphas.items() if _fits(n, end)), self.alpha) for n in layers}
        return Lora(
            rank=self.rank,
            alpha=self.alpha,
            targets=short_names(layers, config),
            dropout=self.dropout,
            rslora=self.rslora,
            rank_pattern={name: rank for name in layers if (rank := self.rank_of(name)) != self.rank},
            alpha_pattern={name: alpha for name, alpha in alphas.items() if alpha != self.alpha},
        )

    def targeted(self, config: ModelConfig) -> list[str] | None:
        """The layers of a model that `targets` name; None where it takes an expression to say which."""
        if self.targets is None:
            return None
        return [name for name in linear_layers(config) if any(_fits(name, target) for target in self.targets)]


def read_peft_config(folder: Path) -> PeftConfig:
    """Read adapter_config.json.

    Raises:
        InputError: it is no LoRA adapter, or one with parts that are not supported; the message names them.
    """
    path = folder / CONFIG
    raw, where = json_object(path), printable(path)
    if (kind := raw.get("peft_type")) != "LORA":
        raise InputError(f"{where}: peft_type = {shown(kind)} is not supported; LORA is")
    for key, value in raw.items():
        if key not in _READ | _NO_EFFECT and value not in (None, False, "", [], {}):
            raise InputError(f"{where}: {printable(key[:60])} = {shown(value)} is not supported")
    if (init := raw.get("init_lora_weights", True)) not in _INITS:
        raise InputError(
            f"{where}: init_lora_weights = {shown(init)} is not supported: it changes the base model's weights; "
            "convert the adapter to plain LoRA first (PEFT's path_initial_model_for_weight_conversion)"
        )
    if (bias := raw.get("bias", "none")) != "none":
        raise InputError(f"{where}: bias = {shown(bias)} is not supported; none is")
    task, saved = raw.get("task_type"), raw.get("modules_to_save") or []
    scalar = task == "SEQ_CLS"
    if task not in (None, "CAUSAL_LM", "SEQ_CLS"):
        raise InputError(f"{where}: task_type = {shown(task)} is not supported; CAUSAL_LM and SEQ_CLS are")
    if saved and not (scalar and isinstance(saved, list) and {*map(str, saved)} <= {"score", "classifier"}):
        raise InputError(f"{where}: modules_to_save = {shown(saved)} is not supported; of a SEQ_CLS model score is")
    targets = raw.get("target_modules")
    listed = isinstance(targets, list) and all(is_text(t) for t in targets)
    if not listed and not is_text(targets):
        raise InputError(f"{where}: target_modules must be a list of names, or a text; got {shown(targets)}")
    chosen = any(raw.get(key) for key in ("exclude_modules", "layers_to_transform", "layers_pattern"))
    base = raw.get("base_model_name_or_path")
    if base is not None and not is_text(base):
        raise InputError(f"{where}: base_model_name_or_path must be a text; got {shown(base)}")
    return PeftConfig(
        where,
        base or "",
        rank=int(_number(raw.get("r", 8), "r", where, whole=True)),
        ranks={name: int(rank) for name, rank in _pattern(raw, "rank_pattern", where, whole=True).items()},
        alpha=_number(raw.get("lora_alpha", 8), "lora_alpha", where),
        alphas=_pattern(raw, "alpha_pattern", where),
        dropout=_number(raw.get("lora_dropout", 0.0), "lora_dropout", where),
        rslora=bool(raw.get("use_rslora")),
        targets=tuple(targets) if isinstance(targets, list) and not chosen else None,
        scalar=scalar,
    )


def peft_config(lora: Lora, config: ModelConfig, base: str) -> dict[str, Any]:
    """The adapter_config.json of an adapter, as PEFT reads it.

    Args:
        base: name of the base model.
    """
    scalar = config.head == "scalar"
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if scalar else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": _whole(lora.alpha),
        "lora_dropout": lora.dropout,
        "target_modules": list(short_names(lora.modules(config), config)),
        "rank_pattern": dict(lora.rank_pattern),
        "alpha_pattern": {name: _whole(alpha) for name, alpha in lora.alpha_pattern.items()},
        "use_rslora": lora.rslora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": ["score"] if scalar else None,
        "inference_mode": True,
    }


def short_names(modules: Iterable[str], config: ModelConfig) -> tuple[str, ...]:
    """Targets that mean these layers: "q_proj" where every layer of that name is among them, else whole names."""
    chosen, layers = set(modules), linear_layers(config)
    names = []
    for kind in dict.fromkeys(name.rpartition(".")[2] for name in layers):
        of_kind = [name for name in layers if name.endswith(f".{kind}")]
        names += [kind] if chosen.issuperset(of_kind) else [name for name in of_kind if name in chosen]
    return tuple(names)


def _whole(x: float) -> int | float:
    return int(x) if x == int(x) else x


def _pattern(raw: dict[str, Any], key: str, where: str, whole: bool = False) -> dict[str, float]:
    """Numbers by the end of layers' names. PEFT's patterns may be any expression; one of a stranger's is not run."""
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        raise InputError(f"{where}: {key} must map names to numbers; got {shown(value)}")
    numbers = {}
    for pattern, number in value.items():
        name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
        if re.fullmatch(r"[\w.]+", name) is None:
            raise InputError(f"{where}: {key}: {shown(pattern)} is an expression; names of layers are read")
        numbers[name] = _number(number, key, where, whole)
    return numbers


def _number(value: Any, key: str, where: str, whole: bool = False) -> float:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 <= value < 2**31:
        raise InputError(f"{where}: {key} = {shown(value)} is no such number")
    return float(value)
