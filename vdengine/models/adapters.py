"""LoRA adapters in PEFT's format: a folder with adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from vdengine.errors import InputError
from vdengine.files import digest
from vdengine.hub import locate
from vdengine.models.families import ModelConfig
from vdengine.models.hf_config import some_names
from vdengine.models.peft_config import (
    CONFIG,
    TENSORS,
    WHOLE,
    Lora,
    PeftConfig,
    linear_layers,
    read_peft_config,
    trained_whole,
)
from vdengine.models.safetensors_files import open_file
from vdengine.outside import json_object, printable
from vdengine.runfolder import MARK

PREFIX = "base_model.model."  # that PEFT puts before the names of the base model
_FACTOR = re.compile(re.escape(PREFIX) + r"([\w.]+)\.(lora_[AB])\.weight")
_PATTERNS = ("*.json", "*.jinja", TENSORS)


def peft_name(name: str) -> str:
    """PEFT's name of a factor, or of a parameter that is trained whole."""
    return PREFIX + (f"{name}.weight" if name.endswith((".lora_A", ".lora_B")) else name)


class Adapter:
    """An adapter on disk, its tensors not read yet.

    Attributes:
        config: what its adapter_config.json says.
        base_hash: of the weights that it was trained on, where vdengine wrote it; else None.

    Raises:
        InputError: no LoRA adapter, one with parts that are not supported, a file that is cut short, tensors that do
            not belong to an adapter, or one factor without the other.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        folder = locate(source, _PATTERNS)
        if not folder.is_dir() or not (folder / CONFIG).exists():
            raise InputError(f"{printable(source)}: no adapter: it has no {CONFIG}")
        self.config: PeftConfig = read_peft_config(folder)
        self.file = folder / TENSORS
        if not self.file.exists():
            pickle = " (there is adapter_model.bin: pickles are not read)" * (folder / "adapter_model.bin").exists()
            raise InputError(f"{folder}: no {TENSORS}{pickle}")
        self._slices: dict[str, Any] = {}
        for name, part in open_file(self.file).items():
            factor = _FACTOR.fullmatch(name)
            whole = name.removeprefix(PREFIX)
            if factor is None and not (self.config.scalar and whole in ("score.weight", "classifier.weight")):
                raise InputError(f"{self.file}: {printable(name)[:100]} is no factor of LoRA, which alone is supported")
            if part.get_dtype() not in ("F64", "F32", "F16", "BF16"):
                raise InputError(f"{self.file}: {name} is {part.get_dtype()}; F32, F16, BF16 and F64 are read")
            self._slices[f"{factor[1]}.{factor[2]}" if factor else "score.weight"] = part
        if not self.layers:
            raise InputError(f"{self.file}: no factor of LoRA")
        self.base_hash: str | None = None
        if (mark := folder / MARK).exists():
            base_hash = json_object(mark).get("base")
            self.base_hash = base_hash if isinstance(base_hash, str) else None

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """The layers that it has factors for."""
        names = {name.rpartition(".")[0] for name in self._slices if name != "score.weight"}
        for name in sorted(names):
            for factor in ("lora_A", "lora_B"):
                if f"{name}.{factor}" not in self._slices:
                    raise InputError(f"{self.file}: {name} has no {factor}")
        return tuple(sorted(names))

    def read(self, name: str) -> Tensor:
        """A factor, or "score.weight", on the CPU and in the file's dtype."""
        return self._slices[name][:]

    @cached_property
    def hash(self) -> str:
        """BLAKE2b over the config and the file: 32 hex digits."""
        return hashlib.blake2b(f"{self.config} {digest(self.file)}".encode(), digest_size=16).hexdigest()

    def lora(self, config: ModelConfig, base_hash: str | None = None) -> Lora:
        """What it is as an adapter of a base model with this config.

        Args:
            base_hash: of the base model's weights, which are compared where the adapter knows its own.

        Raises:
            InputError: it is one for another base model.
        """
        there = linear_layers(config)
        other = f"{printable(self.source)}: an adapter for another base model"
        if self.config.base:
            other += f" ({printable(self.config.base)})"
        if heads := sorted({n for n in self.layers if n.rpartition(".")[2] in WHOLE}):
            raise InputError(
                f"{printable(self.source)}: has an adapter of {heads[0]}; embedding and heads have none here"
            )
        if strangers := {*self.layers} - there.keys():
            raise InputError(
                f"{other}: this {config.model_type} of {config.num_hidden_layers} layers has no {some_names(strangers)}"
            )
        ranks = {}
        for name in self.layers:
            a, b = (tuple(self._slices[f"{name}.{factor}"].get_shape()) for factor in ("lora_A", "lora_B"))
            outputs, inputs = there[name]
            if len(a) != 2 or a[0] < 1 or a[1:] != (inputs,) or b != (outputs, a[0]):
                raise InputError(
                    f"{other}: of {name}, [{outputs}, {inputs}] here, the factors are {list(b)} and {list(a)}"
                )
            ranks[name] = a[0]
        if self.config.scalar != (config.head == "scalar"):
            kinds = ("a language model's", "a reward model's")
            have, want = (kinds[s] for s in (self.config.scalar, config.head == "scalar"))
            raise InputError(f"{printable(self.source)}: {have} adapter; {want} is needed here")
        if trained_whole(config) and self._slices.get("score.weight", None) is None:
            raise InputError(f"{self.file}: no {PREFIX}score.weight")
        if base_hash is not None and self.base_hash not in (None, base_hash):
            raise InputError(f"{other}: its weights had the hash {self.base_hash}, here they have {base_hash}")
        self._check_config(ranks, config)
        return self.config.lora(ranks, config)

    def other_base(self, source: str) -> list[str]:
        """A line if it names another base model than `source` and does not know that one's hash: the shapes fit, and
        one model has many names."""
        if self.base_hash is not None or not self.config.base or Path(self.config.base).name == Path(source).name:
            return []
        return [f"{printable(self.source)}: says that its base model is {printable(self.config.base)}"]

    def _check_config(self, ranks: Mapping[str, int], config: ModelConfig) -> None:
        """The config must say what the tensors are: a scale is made of both."""
        c = self.config
        for name, rank in ranks.items():
            if rank != c.rank_of(name):
                raise InputError(f"{c.where}: r = {c.rank_of(name)}, but {name} has rank {rank} in {self.file.name}")
        if (meant := c.targeted(config)) is not None and (lacking := {*meant} - ranks.keys()):
            raise InputError(f"{c.where}: target_modules names {some_names(lacking)}, which {self.file.name} lacks")
