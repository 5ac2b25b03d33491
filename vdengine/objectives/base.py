"""What an objective is to the engine: a declaration, beside the pure function that it is about.

    @dataclass
    class Settings:
        beta: float = key(0.1, above=0)

    MINE = Objective(
        "mine",
        lambda scored, settings: mine(scored.sums, beta=settings.beta),
        rows="preference",
        branches=2,
        settings=Settings,
    )

A declaration loads without torch, so that what is wrong with a recipe is said at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, make_dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vdengine.settings import key

if TYPE_CHECKING:
    from torch import Tensor

    from vdengine.trees import Pack

ROWS = ("sft", "preference", "prompts")
HEADS = ("causal", "scalar")
REFERENCES = ("cached", "live", "none")
ADAPTER_OFF = "adapter_off"  # a reference of every objective that has one, where there is an adapter
UNITS = {"sft": "examples", "preference": "pairs", "prompts": "prompts"}  # what a batch has so many of


@dataclass(frozen=True, eq=False)
class Sampled:
    """Of a rollout: what belongs to the R scored tokens of one pack, each [R] fp32."""

    values: Tensor  # the critic's, of the state before each token; differentiable
    old_values: Tensor  # the same when the rollout was made
    old_logp: Tensor  # log-probs of the policy that made the rollout
    advantages: Tensor
    returns: Tensor


@dataclass(frozen=True, eq=False)
class Scored:
    """What an objective reads of one pack: R scored tokens, B branches (of a pair: chosen, then rejected), n trees."""

    pack: Pack
    logp: Tensor  # [R] fp32, log p of each scored token; differentiable. Of a scalar head: [0]
    values: Tensor | None = None  # [T] fp32, a scalar head's output at every token; differentiable
    reference: Tensor | None = None  # [B] fp32, branch sums of the reference model; None: there is none
    row_margins: Callable[[Pack], Tensor] | None = None  # of a pack's trees, [n] fp32
    sampled: Sampled | None = None  # of an objective that rolls out

    @cached_property
    def sums(self) -> Tensor:
        """[B] fp32: sum of log p over each branch's scored tokens."""
        return self.pack.branch_sum(self.logp)

    @property
    def lengths(self) -> Tensor:
        """[B] int64: scored tokens of each branch, the end-of-turn token included; may be 0."""
        return self.pack.branch_lengths

    @property
    def scores(self) -> Tensor:
        """[B] fp32: a scalar head's output at each branch's last token."""
        if self.values is None:
            raise ValueError('an objective that reads scores declares head="scalar"')
        return self.values[self.pack.ends]

    @property
    def margins(self) -> Tensor:
        """[n] fp32: how much better each pair's chosen answer is, as its row says; 1 where it does not say."""
        if self.row_margins is None:
            raise ValueError('an objective that reads margins declares rows="preference"')
        return self.row_margins(self.pack)


# losses, and metrics by TRL's names: each [n] for `per` "example", [R] for "token"
Losses = tuple["Tensor", "dict[str, Tensor]"]
LossFunction = Callable[[Scored, Any], Losses]


@dataclass
class NoSettings:
    """Of an objective without keys of its own."""


@dataclass(frozen=True, eq=False)
class Objective:
    """The declaration of an objective: all that recipe, trainer and console know of it.

    Raises:
        ValueError: a declaration that contradicts itself.
    """

    name: str  # objective.name in a recipe
    fn: LossFunction  # (scored, settings) -> (losses, metrics)
    rows: str = "preference"  # what a row of data must be: one of ROWS
    branches: int = 2  # of a row's tree: 1 answer, 2 of a pair; of a prompt: 1
    head: str = "causal"  # | "scalar": a model that gives one score
    reference: tuple[str, ...] = ()  # where reference log-probs may come from, of REFERENCES; the first is the default
    per: str = "example"  # | "token": what losses are averaged over, in the whole batch
    rollout: bool = False  # learns from what the policy samples
    critic: bool = False  # with a value model of its own
    settings: type = NoSettings  # dataclass of `settings.key`s: the rest of the recipe's [objective]
    fused: LossFunction | None = None  # the same in fewer launches, on CUDA
    check: Callable[[Any], tuple[str, str, str] | None] | None = None  # of a recipe: (section, key, what is wrong)
    at_start: tuple[str, float] | None = None  # a metric whose value is known before the first update
    shown: tuple[tuple[str, str, str], ...] = ()  # (label, metric, format) of the console's line
    usual_lr: tuple[float, float] | None = None  # peak rates of AdamW outside of which a full fine-tuning is rare

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"Objective: name must be a plain word; got {self.name!r}")
        for what, value, allowed in (
            ("rows", self.rows, ROWS),
            ("head", self.head, HEADS),
            ("per", self.per, ("example", "token")),
        ):
            if value not in allowed:
                raise ValueError(f"Objective {self.name}: {what} must be one of {', '.join(allowed)}; got {value!r}")
        if unknown := [r for r in self.reference if r not in REFERENCES]:
            raise ValueError(f"Objective {self.name}: reference {unknown[0]!r} is not one of {', '.join(REFERENCES)}")
        if self.rollout != (self.rows == "prompts"):
            raise ValueError(f'Objective {self.name}: rows="prompts" and rollout=True go together')
        if self.critic and not self.rollout:
            raise ValueError(f"Objective {self.name}: a critic needs a rollout")
        if self.branches != (2 if self.rows == "preference" else 1):
            raise ValueError(f"Objective {self.name}: a row of {self.rows} has {3 - self.branches} branches")

    @property
    def learns_answers(self) -> bool:
        """Whether a language model learns from the answers of rows: how they end is what it learns of ends."""
        return self.head == "causal" and not self.rollout

    @property
    def unit(self) -> str:
        """What a batch has so many of: "examples", "pairs", "prompts"."""
        return UNITS[self.rows]

    @cached_property
    def keys(self) -> type:
        """The dataclass of a recipe's [objective]: `name`, `reference` where there is a choice, and the settings."""
        common: list[tuple[str, Any, Any]] = [("name", str, key(self.name))]
        if self.reference:  # None: the first, or with an adapter ADAPTER_OFF
            common.append(("reference", str | None, key(None, choices=(*self.reference, ADAPTER_OFF))))
        return make_dataclass(f"{self.name}_keys", common, bases=(self.settings,), namespace={"declaration": self})
