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

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, make_dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vdengine.settings import key

if TYPE_CHECKING:
    from torch import Tensor

    from vdengine.trees import Pack

ROWS = ("sft", "preference", "unpaired", "prompts")
HEADS = ("causal", "scalar")
REFERENCES = ("cached", "live", "none")
ADAPTER_OFF = "adapter_off"  # a reference of every objective that has one, where there is an adapter
# what a batch has so many of
UNITS = {"sft": "examples", "preference": "pairs", "unpaired": "examples", "prompts": "prompts"}


@dataclass(frozen=True, eq=False)
class Rolled:
    """A whole rollout: of each prompt `samples` completions, one after another, B in all and N tokens, completion b's
    at `offsets[b] : offsets[b + 1]` of everything of length N. On the CPU, and the same on every rank."""

    samples: int
    offsets: Tensor  # [B+1] int64; no completion is empty
    stopped: Tensor  # [B] bool: it ended by itself
    rewards: Tensor  # [B] fp32, as they were given
    scores: Tensor  # [B] fp32: the same, or normalised where the recipe says so
    logp: Tensor | None  # [N] fp32, of the policy that made it; None: `OnPolicy.logp` says that it is not read
    reference: Tensor | None  # [N] fp32, log-probs of the reference model; None: there is none
    values: Tensor | None  # [N] fp32, the critic's, of the state before each token; None: there is none


@dataclass(frozen=True, eq=False)
class Advantages:
    """What a rollout is worth, and what is to be said of it."""

    advantages: Tensor  # [N] fp32
    metrics: dict[str, float]  # by TRL's names
    returns: Tensor | None = None  # [N] fp32, what a critic learns
    counted: Tensor | None = None  # [B] bool: completions that are learned from; None: all
    state: dict[str, float] = field(default_factory=dict)  # what the next rollout is told: `OnPolicy.state`


@dataclass(frozen=True, eq=False)
class OnPolicy:
    """Of an objective that learns from what the policy samples: how a rollout becomes advantages, and how often it is
    gone over. The engine samples, scores, and goes over minibatches; it knows no more of PPO, GRPO or RLOO than this.
    """

    advantages: Callable[[Rolled, Any, Mapping[str, float]], Advantages]  # (rollout, settings, state)
    passes: Callable[[Any], tuple[int, int]]  # of the settings: passes over a rollout, updates in each
    kl: str  # the key of the settings that weighs the distance from the reference
    critic: bool = False  # with a value model of its own
    least_samples: int = 1  # completions of a prompt that advantages need
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of the recipe's [rollout]
    logp: Callable[[Any], bool] = lambda settings: True  # whether `advantages` reads `Rolled.logp`
    refers: Callable[[Any], bool] = lambda settings: True  # whether a reference is asked for, if there is a choice
    state: Callable[[Any], dict[str, float]] = lambda settings: {}  # before the first rollout; part of a checkpoint


@dataclass(frozen=True, eq=False)
class Sampled:
    """Of a rollout: what belongs to the R scored tokens of one pack, each [R] fp32, and counts of its update."""

    old_logp: Tensor  # log-probs of the policy that made the rollout
    advantages: Tensor
    counted: Tensor  # 1, or 0 where the completion is not learned from
    completions: int  # of the update, over all ranks and packs
    counted_tokens: int  # the same, those of completions that are learned from; at least 1
    max_tokens: int  # that a completion may have
    reference: Tensor | None = None  # log-probs of the reference model; None: there is none
    values: Tensor | None = None  # the critic's, of the state before each token; differentiable. None: there is none
    old_values: Tensor | None = None  # the same when the rollout was made
    returns: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Scored:
    """What an objective reads of one pack: R scored tokens, B branches (of a pair: chosen, then rejected), n trees."""

    pack: Pack
    logp: Tensor  # [R] fp32, log p of each scored token; differentiable. Of a scalar head: [0]
    values: Tensor | None = None  # [T] fp32, a scalar head's output at every token; differentiable
    reference: Tensor | None = None  # [B] fp32, branch sums of the reference model; None: there is none
    row_margins: Callable[[Pack], Tensor] | None = None  # of a pack's trees, [n] fp32
    row_labels: Callable[[Pack], Tensor] | None = None  # of a pack's trees, [n] bool
    batch_kl: Tensor | None = None  # [] fp32, of an objective that declares it
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

    @property
    def labels(self) -> Tensor:
        """[n] bool: whether each row's answer is a wanted one."""
        if self.row_labels is None:
            raise ValueError('an objective that reads labels declares rows="unpaired"')
        return self.row_labels(self.pack)


# Losses, and metrics by TRL's names: each [n] for `per` "example", [R] for "token". A metric that is a mean over
# something else is a pair (values, weights) of equal shape: its mean is sum(values * weights) / sum(weights) over the
# whole batch, and it is left out where all weights are 0.
Metrics = Mapping[str, "Tensor | tuple[Tensor, Tensor]"]
Losses = tuple["Tensor", Metrics]
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
    # | "token": what losses are averaged over, in the whole batch; "sum": over nothing, they are terms of a sum
    per: str = "example"
    rollout: OnPolicy | None = None  # learns from what the policy samples
    batch_kl: bool = False  # reads `Scored.batch_kl`: KL from the reference, of answers to other rows' prompts
    settings: type = NoSettings  # dataclass of `settings.key`s: the rest of the recipe's [objective]
    fused: LossFunction | None = None  # the same in fewer launches, on CUDA
    check: Callable[[Any], tuple[str, str, str] | None] | None = None  # of a recipe: (section, key, what is wrong)
    at_start: tuple[str, float] | None = None  # a metric whose value is known before the first update
    # of the means of each of a step's updates, what a row of metrics says; default: their means
    summary: Callable[[list[dict[str, float]]], dict[str, float]] | None = None
    shown: tuple[tuple[str, str, str], ...] = ()  # (label, metric, format) of the console's line
    usual_lr: tuple[float, float] | None = None  # peak rates of AdamW outside of which a full fine-tuning is rare

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"Objective: name must be a plain word; got {self.name!r}")
        for what, value, allowed in (
            ("rows", self.rows, ROWS),
            ("head", self.head, HEADS),
            ("per", self.per, ("example", "token", "sum")),
        ):
            if value not in allowed:
                raise ValueError(f"Objective {self.name}: {what} must be one of {', '.join(allowed)}; got {value!r}")
        if unknown := [r for r in self.reference if r not in REFERENCES]:
            raise ValueError(f"Objective {self.name}: reference {unknown[0]!r} is not one of {', '.join(REFERENCES)}")
        if (self.rollout is not None) != (self.rows == "prompts"):
            raise ValueError(f'Objective {self.name}: rows="prompts" and a rollout go together')
        if self.batch_kl and (self.rows != "unpaired" or not self.reference):
            raise ValueError(f'Objective {self.name}: batch_kl needs rows="unpaired" and a reference')
        if self.branches != (2 if self.rows == "preference" else 1):
            raise ValueError(f"Objective {self.name}: a row of {self.rows} has {3 - self.branches} branches")

    @property
    def critic(self) -> bool:
        """Whether a value model is trained beside the policy."""
        return self.rollout is not None and self.rollout.critic

    @property
    def learns_answers(self) -> bool:
        """Whether a language model learns from the answers of rows: how they end is what it learns of ends."""
        return self.head == "causal" and self.rollout is None

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
