"""Branches of prompt trees scored by a model that is not ours: any causal language model of transformers, in whatever
it is wrapped, or a model that takes token ids and has a linear head.

Its forward is called as a whole, so that FSDP2 and ZeRO-3 gather what they have sharded. A hook at the head takes the
last hidden states: the log-probs are computed there, by the fused kernel, and of the logits only one row is.

A forward takes either trees (one row of tokens, and a mask of who sees whom) or plain rows (each branch with its
prompt, padded on the right). Which of them a model computes rightly is tried out with one branch, before the first
score, against the logits of its own forward of that branch alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from vdengine.errors import InputError
from vdengine.integrations.causal_lm import POINTS, Head, read_head, unwrap
from vdengine.kernels.gather import segment_sum
from vdengine.kernels.linear_logprob import linear_logprob
from vdengine.trees import Pack

Forward = Callable[[nn.Module, Tensor], Any]
LAYOUTS = ("trees", "rows")
MASKED = ("sdpa", "eager")  # attention of transformers that takes a mask of any form
# A token's log-prob by two forwards of one model. In fp32 an operation rounds by 2^-24: a logit of 50 that has gone
# through 80 layers of ten operations is off by 2e-3 at most. In 16 bits, and where the matrix products of fp32 have
# fewer than theirs (TF32), a layer adds 2^-8 of an activation. An opening that
# sees another one is off by tenths and more.
TOLERANCE = {torch.float32: 2e-3, torch.float64: 2e-3}
TOLERANCE_HALF = 0.5
PADDING = 8  # of the row that is tried out


@dataclass(frozen=True, eq=False)
class Unit:
    """What one forward scores: tokens [n, L], R scored tokens, B branches."""

    tokens: Tensor  # [n, L] int64
    positions: Tensor  # [n, L] int64
    rows: Tensor  # [R] int64, into n * L: the row that predicts each scored token
    targets: Tensor  # [R] int64
    offsets: Tensor  # [B+1] int64: where each branch's scored tokens begin
    slots: Tensor  # [B] int64: the branches' places in the forest's order
    tree: Tensor | None = None  # [L] int64: of trees, the tree that each token is of; None: plain rows
    branch: Tensor | None = None  # [L] int64: its branch; -1 in a prompt
    lengths: Tensor | None = None  # [n] int64: of plain rows, without their padding

    def sees(self, window: int | None) -> Tensor:  # [1, 1, L, L] bool
        """Which token attends to which: to those before it in its prompt and its own branch, of the last `window`."""
        if self.tree is None or self.branch is None:
            raise RuntimeError("plain rows need no mask")
        back = self.positions[0][:, None] - self.positions[0][None, :]  # how far the key lies back
        same = (self.tree[:, None] == self.tree[None, :]) & (back >= 0)
        same &= (self.branch[None, :] == -1) | (self.branch[None, :] == self.branch[:, None])
        return (same if window is None else same & (back < window))[None, None]


def tree_unit(pack: Pack, slots: Tensor) -> Unit:
    """A pack as it is: every prompt once."""
    tree, branch = torch.empty(pack.num_tokens, dtype=torch.int64), torch.full((pack.num_tokens,), -1)
    start, number = 0, -1
    for segment, (queries, keys) in enumerate(zip(pack.lengths.q, pack.lengths.k, strict=True)):
        if queries == keys:  # a prompt, or a whole tree of one branch
            number += 1
        else:
            branch[start : start + queries] = segment
        tree[start : start + queries] = number
        start += queries
    tokens, positions = pack.tokens[None], pack.positions[None].long()
    return Unit(tokens, positions, pack.rows, pack.targets, pack.branch_offsets, slots, tree, branch)


class _Row(NamedTuple):
    """A row of tokens, and what is scored in it: one branch, or the firsts of one tree."""

    tokens: Tensor  # [L] int64, with the prompt
    rows: Tensor  # [R] int64, into L
    targets: Tensor  # [R] int64
    counts: list[int]  # [B] scored tokens of each branch
    slots: list[int]  # [B]


def row_units(packs: Sequence[tuple[Pack, Tensor]], max_tokens: int) -> list[Unit]:
    """Each branch of these packs (and their slots) with its prompt, and each prompt alone that has firsts, several to a
    forward: at most `max_tokens` tokens with their padding, or one row."""
    flat = [row for pack, slots in packs for row in _rows(pack, slots)]
    flat.sort(key=lambda row: -len(row.tokens))  # rows of one length need no padding
    units = []
    while flat:
        longest = len(flat[0].tokens)
        count = max(1, max_tokens // longest)
        chosen, flat = flat[:count], flat[count:]
        units.append(
            Unit(
                torch.stack([F.pad(row.tokens, (0, longest - len(row.tokens))) for row in chosen]),
                torch.arange(longest).expand(len(chosen), -1),
                torch.cat([row.rows + n * longest for n, row in enumerate(chosen)]),
                torch.cat([row.targets for row in chosen]),
                torch.tensor([0, *(n for row in chosen for n in row.counts)]).cumsum(0),
                torch.tensor([slot for row in chosen for slot in row.slots]),
                lengths=torch.tensor([len(row.tokens) for row in chosen]),
            )
        )
    return units


def _rows(pack: Pack, slots: Tensor) -> Iterator[_Row]:
    keys = _keys_of_branches(pack)
    tree_of_branch = pack.tree_of_branch.tolist()
    for b, own in enumerate(keys):
        scored = slice(int(pack.branch_offsets[b]), int(pack.branch_offsets[b + 1]))
        rows = pack.positions[pack.rows[scored]].long()  # a tree's positions run on from its prompt to each branch
        yield _Row(pack.tokens[own], rows, pack.targets[scored], [len(rows)], [int(slots[b])])
    by_tree: dict[int, list[int]] = {}  # branches without rows of their own
    for b in range(len(keys), pack.num_branches):
        by_tree.setdefault(tree_of_branch[b], []).append(b)
    for tree, firsts in by_tree.items():
        end = int(pack.ends[firsts[0]])  # the last row of the prompt
        prompt = keys[tree_of_branch.index(tree)]
        prompt = prompt[: int(pack.positions[end]) + 1]
        targets = pack.targets[pack.branch_offsets[:-1][firsts]]
        rows = torch.full((len(firsts),), len(prompt) - 1)
        yield _Row(pack.tokens[prompt], rows, targets, [1] * len(firsts), slots[firsts].tolist())


def _keys_of_branches(pack: Pack) -> list[Tensor]:
    """Of each branch that has rows, those of its prompt and its own, in order: [p + b] int64 each."""
    run = pack.num_branches - pack.num_firsts
    branches = torch.bincount(pack.tree_of_branch[:run], minlength=pack.num_trees)  # [trees]
    index = torch.arange(len(pack.tokens)) if pack.kv_index is None else pack.kv_index
    keys, segment = [], 0
    for count in branches.tolist():
        segment += count > 1  # the prompt has a segment of its own
        for _ in range(count):
            keys.append(index[int(pack.cu_seqlens_k[segment]) : int(pack.cu_seqlens_k[segment + 1])])
            segment += 1
    return keys


class ForeignModel:
    """A causal language model that scores units.

    Args:
        model: of transformers, plain or wrapped by PEFT, DDP, FSDP2, DeepSpeed, torch.compile or accelerate; or any
            module whose forward takes token ids [n, L], with `head`.
        head: the output head of a model that does not tell it: a linear layer whose output is the logits.
        forward: of a model that takes more than token ids: calls it, as (model, token ids [n, L]) -> logits.

    Raises:
        InputError: no head, or one that is not supported; what `causal_lm.unwrap` refuses.
    """

    def __init__(self, model: nn.Module, head: nn.Module | None = None, forward: Forward | None = None) -> None:
        if head is not None and not isinstance(head, nn.Linear):
            raise InputError(f"head is a {type(head).__name__}: only nn.Linear is supported")
        self.head: Head = read_head(model) if head is None else Head(head, None, 1.0)
        self.forward = forward or (None if hasattr(unwrap(model), "get_output_embeddings") else nn.Module.__call__)
        self.inner = unwrap(model)
        self.root = root_of(model)
        self.name = type(self.inner).__name__

    @property
    def vocab_size(self) -> int:
        """Rows of the head, sharded or not."""
        weight: Any = self.head.weight
        return int(getattr(weight, "ds_shape", weight.shape)[0])

    @property
    def device(self) -> torch.device:
        """Where the model computes; its shards may be elsewhere (offloaded)."""
        weight: Any = self.head.weight
        sharded = isinstance(weight, DTensor) and weight.device_mesh.device_type == "cuda" or hasattr(weight, "ds_id")
        if sharded and torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return weight.device

    @cached_property
    def _arguments(self) -> set[str]:
        return set(inspect.signature(self.inner.forward).parameters)

    @cached_property
    def _config(self) -> Any:
        config: Any = getattr(self.inner, "config", None)
        return config.get_text_config() if hasattr(config, "get_text_config") else None

    @property
    def no_trees(self) -> str | None:
        """Why the model cannot be given a mask of trees; None if it can, as far as its interface says."""
        attention = getattr(self._config, "_attn_implementation", None)
        if self.forward is not None:
            return f"{self.name} is no model of transformers, and is given token ids alone"
        if missing := {"attention_mask", "position_ids"} - self._arguments:
            return f"the forward of {self.name} takes no {' and no '.join(sorted(missing))}"
        if attention not in MASKED:
            return f"attention {attention!r} takes no mask of trees (these do: {', '.join(MASKED)})"
        return None

    def units(self, packs: Sequence[tuple[Pack, Tensor]], layout: str, max_tokens: int) -> list[Unit]:
        """The forwards that score these packs, each with its slots: those of every rank."""
        if layout == "rows":
            return row_units(packs, max_tokens)
        return [tree_unit(pack, slots) for pack, slots in packs]

    def sums(self, unit: Unit) -> Tensor:  # [B] fp32
        """The log-prob sum of each branch of the unit, in nats. A collective where the weights are sharded."""
        return segment_sum(self.score(unit)[0], unit.offsets.to(self.device))

    @torch.no_grad()
    def score(self, unit: Unit) -> tuple[Tensor, torch.dtype]:
        """[R] fp32, nats: the log-prob of each scored token, and the dtype that it was computed in. A forward, and
        so a collective where the weights are sharded."""
        unit, taken = _to(unit, self.device), []

        def take(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden = args[0]  # [n, L, H]
            logp = self._at_head(hidden.flatten(0, -2).index_select(0, unit.rows), unit.targets)
            taken.append((logp, _precision(hidden)))
            return (hidden[:, :1], *args[1:])  # the model's own logits: of one row

        with _hooked(self.head.module.register_forward_pre_hook(take)), _evaluating(self.root):
            self._forward(unit)
        if len(taken) != 1:
            raise InputError(f"the forward of {self.name} calls its head {len(taken)} times; it must do so once")
        return taken[0]

    def _at_head(self, hidden: Tensor, targets: Tensor) -> Tensor:  # [R, H], [R] -> [R] fp32
        head = self.head
        return linear_logprob(hidden, head.weight, targets, bias=head.bias, softcap=head.softcap, scale=head.scale)

    @torch.no_grad()
    def logits(self, unit: Unit) -> Tensor:  # [R, V] fp32
        """The logits of the model's own forward at the scored rows."""
        unit = _to(unit, self.device)
        with _evaluating(self.root):
            out = self._forward(unit)
        logits = out if isinstance(out, Tensor) else getattr(out, "logits", None)  # [n, L, V]
        if not isinstance(logits, Tensor):
            raise InputError(f"the forward of {self.name} gives no logits, but a {type(out).__name__}")
        if logits.shape[-1] < self.vocab_size:
            raise InputError(
                f"the forward of {self.name} gives {logits.shape[-1]} numbers a token, and its head has "
                f"{self.vocab_size} rows: it must return logits"
            )
        return logits.flatten(0, -2).index_select(0, unit.rows).float()

    @torch.no_grad()
    def check_logits(self, unit: Unit) -> None:
        """Show the model's forward known numbers as logits, and see what it makes of them. Rounding of activations,
        which is large in 16 bits, has no part in it.

        Raises:
            InputError: something else than its config says.
        """
        unit = _to(unit, self.device)

        def points(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            return output.new_tensor(POINTS).expand(*output.shape[:-1], -1)

        with _hooked(self.head.module.register_forward_hook(points)), _evaluating(self.root):
            try:
                out = self._forward(unit)
            except IndexError as error:
                raise InputError(f"{self.name} changes single logits ({error}): not supported") from None
        logits = out if isinstance(out, Tensor) else out.logits
        if logits.shape[-1] != len(POINTS):
            raise InputError(
                f"the forward of {self.name} calls its head 0 times, or does not return what it gives: logits must be "
                "the head's, scaled and soft-capped"
            )
        self.head.check(self.inner, logits.flatten(0, -2)[0])

    def _forward(self, unit: Unit) -> Any:
        if self.forward is not None:
            return self.forward(self.root, unit.tokens)
        options: dict[str, Any] = {"use_cache": False} if "use_cache" in self._arguments else {}
        if unit.lengths is None:
            options |= {"attention_mask": self._mask(unit), "position_ids": unit.positions}
        elif "attention_mask" in self._arguments:
            options["attention_mask"] = (unit.positions < unit.lengths[:, None]).long()
        return self.root(input_ids=unit.tokens, **options)

    def _mask(self, unit: Unit) -> Any:
        """The mask of a unit of trees as the model's attention takes it: one, or one for each kind of layer."""
        config = self._config
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        kinds = set(getattr(config, "layer_types", None) or [])
        if not kinds:
            return self._form(unit.sees(window))
        if unknown := kinds - {"full_attention", "sliding_attention"}:
            raise InputError(f"{self.name} has layers of {', '.join(sorted(unknown))}")
        windows = {"full_attention": None, "sliding_attention": window}
        return {kind: self._form(unit.sees(windows[kind])) for kind in windows if kind in kinds}

    def _form(self, sees: Tensor) -> Tensor:
        if self._config._attn_implementation == "sdpa":
            return sees
        dtype = self.head.weight.dtype  # eager attention adds its mask to the scores
        return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, torch.finfo(dtype).min)

    # ------------------------------------------------------------------------------------------- which layout

    def layout_for(self, pack: Pack, wanted: str, agree: Callable[[bool], bool]) -> tuple[str, str]:
        """Which layout the model computes rightly, and why it is not trees ("" if it is): tried out with the last
        branch of a pack. All ranks together.

        Args:
            wanted: "auto" | "trees" | "rows".
            agree: of a flag, whether any rank has it.

        Raises:
            InputError: neither is right, or not the wanted one.
        """
        slots = torch.arange(pack.num_branches)
        last = next(u for u in row_units([(pack, slots)], max_tokens=1) if int(u.slots) == int(slots[-1]))
        targets = last.targets.to(self.device)
        expected = self.logits(last).log_softmax(-1).gather(-1, targets[:, None])[:, 0]  # [R'] fp32
        if not expected.isfinite().all():
            raise InputError(f"{self.name}: its log-probs are not finite: there is nothing to score")
        self.check_logits(last)
        reason = "" if wanted == "rows" else self.no_trees or ""
        if wanted != "rows" and not reason:
            try:
                found, dtype = self.score(tree_unit(pack, slots))
                off = _off(found[int(pack.branch_offsets[-2]) :], expected, dtype)
                reason = "" if not off else f"{self.name} does not keep to a mask of trees (log-probs are off by {off})"
            except torch.OutOfMemoryError:
                raise
            except (TypeError, AttributeError, LookupError, AssertionError, RuntimeError, ValueError) as error:
                first_line = (str(error) or type(error).__name__).splitlines()[0]
                reason = f"{self.name} takes no mask of trees ({first_line[:120]})"
        if wanted != "rows" and not agree(bool(reason)):
            return "trees", ""
        if wanted == "trees":
            raise InputError(f"layout 'trees': {reason or 'another rank cannot: see its message'}")
        length = last.tokens.shape[1] + PADDING
        padded = replace(last, tokens=F.pad(last.tokens, (0, PADDING)), positions=torch.arange(length)[None])
        found, dtype = self.score(padded)
        off = _off(found, expected, dtype)
        if agree(bool(off)):
            raise InputError(
                f"{self.name}: log-probs at its head, of a row that is padded on the right, are off by "
                f"{off or 'too much on another rank'} from those of its own logits without padding: not supported"
            )
        return "rows", reason


def _off(found: Tensor, expected: Tensor, dtype: torch.dtype) -> str:  # [R] each
    """By how much log-probs differ, if it is more than rounding in `dtype`; else ""."""
    off = float((found - expected).abs().max())
    return "" if off <= TOLERANCE.get(dtype, TOLERANCE_HALF) else f"{off:.2g} nats a token"


def _precision(hidden: Tensor) -> torch.dtype:
    """The dtype in which matrix products of the forward are: autocast's; bf16, for TF32 and the like; or else that of
    the hidden states."""
    if torch.is_autocast_enabled(hidden.device.type):
        return torch.get_autocast_dtype(hidden.device.type)
    if hidden.dtype == torch.float32:
        try:
            reduced = torch.get_float32_matmul_precision() != "highest"
        except RuntimeError:  # set by torch's newer interface (fp32_precision), which this one does not read
            reduced = True
        return torch.bfloat16 if reduced else torch.float32
    return hidden.dtype


def root_of(model: Any) -> nn.Module:
    """What is called for a forward: without DDP and DeepSpeed's engine, which only see to gradients; with PEFT's model,
    and with everything that is hooked into modules (FSDP2, ZeRO-3, autocast)."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif type(model).__name__ in ("DistributedDataParallel", "DataParallel", "DeepSpeedEngine"):
            model = model.module
        else:
            return model


@contextmanager
def _hooked(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _evaluating(root: nn.Module) -> Iterator[None]:
    """With every module in eval mode, and then as it was; and with no weights left gathered, which the next forward
    would take for those after an update. What is compiled runs as it was written: hooks that came after compilation are
    passed over, and every shape of a panel would be compiled anew, until training itself is no longer compiled. Buffers
    that a forward puts others in the place of (frequencies of a dynamic rotary embedding) are put back."""
    modes = [(module, module.training) for module in root.modules()]
    buffers = [(module, dict(module._buffers)) for module in root.modules() if module._buffers]
    lengths = [(m, k, v) for m, _ in buffers for k, v in vars(m).items() if k.endswith("max_seq_len_cached")]
    root.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module, own in buffers:
            module._buffers.update(own)
        for module, name, length in lengths:
            setattr(module, name, length)
        for module in root.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def _to(unit: Unit, device: torch.device) -> Unit:
    parts: dict[str, Any] = {f.name: getattr(unit, f.name) for f in fields(unit)}
    moved: dict[str, Any] = {name: part if part is None else part.to(device) for name, part in parts.items()}
    return Unit(**moved)
