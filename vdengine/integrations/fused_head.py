"""`linear_logprob` as the head of a transformers model, in other people's trainers.

`use_linear_logprob(model)` is for `transformers.Trainer` and plain loops: `model(input_ids, labels=...)` returns the
loss that transformers would, and no logits. `use_in_trl()` is for TRL's trainers, whose models return log-probs.

How it works. The classes of the model and of its head are replaced by subclasses, as `fully_shard` does. While the
model's forward runs with labels, its head computes the log-probs within its own forward, where FSDP2 and ZeRO-3 have
gathered the weight, and returns a few known numbers as logits; the loss function takes the log-probs. What the model
has made of the known numbers shows whether it does something to logits that its config does not say.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor, nn

from vdengine.errors import InputError
from vdengine.integrations.causal_lm import POINTS, Head, read_head, unwrap
from vdengine.kernels.head_chunks import STATS
from vdengine.kernels.linear_logprob import Described, Scored, linear_logprob

PLACE = "_linear_logprob"  # the attribute of both modules


def use_linear_logprob(model: nn.Module, *, saved_bytes: int | None = None, backend: str = "auto") -> FusedHead:
    """Let a causal language model of transformers compute its loss by `linear_logprob`, without logits.

    With labels, `model(...)` returns the same loss (label shift, `shift_labels`, `ignore_index`, `num_items_in_batch`
    as transformers takes them), computed from fp32 logits of the scored rows only, and no `logits`. Without labels the
    model is what it was: `generate`, and logits. For `compute_metrics` and `predict` of a Trainer, which need both,
    leave it out. `torch.save` of the whole model cannot pickle it; state dicts and `save_pretrained` are as ever.

    Call it before or after PEFT, `fully_shard`, DDP and accelerate have wrapped the model. Weights, names of
    parameters, checkpoints and the other modules stay as they are.

    Args:
        saved_bytes, backend: of `linear_logprob`.

    Returns:
        A handle: `.remove()`, or the end of a `with` block, undoes it.

    Raises:
        InputError: a model that has it already, one without a linear head in floating point (`read_head`), or one whose
            loss is not transformers' causal language-model loss.
    """
    inner, head = unwrap(model), read_head(model)
    name = type(inner).__name__
    if hasattr(inner, PLACE) or hasattr(head.module, PLACE):
        raise InputError(f"use_linear_logprob: {name} has it already; remove() the first")
    from transformers.loss.loss_utils import ForCausalLMLoss

    loss = getattr(inner, "loss_function", None)
    calls = getattr(inspect.unwrap(type(inner).forward), "__code__", None)
    own = loss is None or (calls is not None and "loss_function" not in calls.co_names)
    if own or loss is not ForCausalLMLoss:
        what = "computes its loss in its forward" if own else f"has the loss function {_name(loss)}"
        raise InputError(f"use_linear_logprob: {name} {what}; only ForCausalLMLoss of transformers is supported")
    return FusedHead(inner, head, saved_bytes, backend)


class FusedHead:
    """The handle of `use_linear_logprob`."""

    def __init__(self, model: nn.Module, head: Head, saved_bytes: int | None, backend: str) -> None:
        self._modules = (model, head.module)
        call = _Call(head, saved_bytes, backend)
        for module, members in zip(self._modules, (_model_members, _head_members), strict=True):
            setattr(module, PLACE, call)
            _subclass(module, members)

    def remove(self) -> None:
        """Give the model its own head again. Of a model that was sharded in the meantime the subclasses stay; they do
        nothing then."""
        for module in self._modules:
            if hasattr(module, PLACE):
                delattr(module, PLACE)
            if PLACE in vars(type(module)):
                (module.__class__,) = type(module).__bases__

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.remove()


@dataclass
class _Call:
    """What the model and its head share, and what they pass to each other during one forward."""

    head: Head
    saved_bytes: int | None
    backend: str
    checked: bool = False  # that the model does to its logits what its config says
    targets: Tensor | None = None  # [B, L] int64, while a forward with labels runs
    ignore_index: int = -100
    logp: Tensor | None = field(default=None, repr=False)  # [R] fp32, of the targets that are scored

    def begin(self, labels: Tensor, shift_labels: Tensor | None, ignore_index: int) -> None:
        """A forward with labels."""
        self.targets = F.pad(labels, (0, 1), value=ignore_index)[..., 1:] if shift_labels is None else shift_labels
        self.ignore_index, self.logp = ignore_index, None

    def end(self) -> None:
        """Of that forward, however it ends."""
        self.targets = self.logp = None

    def score(
        self,
        module: Any,
        hidden: Tensor,  # [B, L, H]
        targets: Tensor,  # [B, L] int64
    ) -> Tensor:  # [B, L, POINTS] fp32
        """Keep the log-probs; what is returned carries no numbers but POINTS, and is part of their graph, so that what
        hangs on the module's output (FSDP2's gathering for backward) happens before the log-probs' backward."""
        if hidden.shape[:-1] != targets.shape:
            raise InputError(
                f"use_linear_logprob: {list(targets.shape)} labels for {list(hidden.shape[:-1])} positions; "
                "logits_to_keep does not go with labels"
            )
        flat = targets.to(hidden.device).flatten()
        rows = (flat != self.ignore_index).nonzero()[:, 0]  # [R]: the others need no head
        logp = linear_logprob(
            hidden.flatten(0, -2).index_select(0, rows),
            module.weight,
            flat[rows],
            bias=module.bias,
            scale=self.head.scale,
            softcap=self.head.softcap,
            saved_bytes=self.saved_bytes,
            backend=self.backend,
        )
        self.logp = logp
        return (logp.new_tensor(POINTS) + logp[:0].sum()).expand(*targets.shape, -1)

    def loss(
        self,
        model: nn.Module,
        logits: Tensor,  # [B, L, POINTS], of `score`, and what the model has made of them
        *_: Any,  # labels, vocab_size: known
        num_items_in_batch: Tensor | int | None = None,
        **__: Any,
    ) -> Tensor:  # [] fp32
        """ForCausalLMLoss: a mean, or the sum over `num_items_in_batch`."""
        if self.logp is None:
            raise InputError(f"use_linear_logprob: {type(model).__name__} did not call its head")
        if not self.checked and logits.numel():
            self.head.check(model, logits.flatten(0, -2)[0])
            self.checked = True
        count = self.logp.numel() if num_items_in_batch is None else num_items_in_batch
        if isinstance(count, Tensor):
            count = count.to(self.logp.device)
        return logits[..., :0].sum() - self.logp.sum() / count


def _subclass(module: nn.Module, members: Any) -> None:
    """Replace the class of a module by a subclass of the same name with these members."""
    base = type(module)
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__, PLACE: None}
    module.__class__ = type(base.__name__, (base,), names | members(base))


def _head_members(base: Any) -> dict[str, Any]:
    @functools.wraps(base.forward)
    def forward(self: Any, hidden: Tensor) -> Tensor:
        call: _Call | None = vars(self).get(PLACE)
        if call is None or call.targets is None:
            return base.forward(self, hidden)  # type: ignore[no-any-return]
        return call.score(self, hidden, call.targets)

    return {"forward": forward}


def _model_members(base: Any) -> dict[str, Any]:
    signature = inspect.signature(base.forward)

    @functools.wraps(base.forward)  # Trainer and generate look at its signature
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        call: _Call | None = vars(self).get(PLACE)
        labels = kwargs.get("labels", signature.bind_partial(self, *args).arguments.get("labels"))
        if call is None or labels is None:
            return base.forward(self, *args, **kwargs)
        if not hasattr(self.get_output_embeddings(), PLACE):
            read_head(self)  # says what is wrong with it
            raise InputError(f"use_linear_logprob: the head of {base.__name__} was replaced afterwards")
        call.begin(labels, kwargs.get("shift_labels"), kwargs.get("ignore_index", -100))
        try:
            out = base.forward(self, *args, **kwargs)
        finally:
            call.end()
        if isinstance(out, tuple):
            return (out[0], None, *out[2:])
        return type(out)(**{key: value for key, value in out.items() if key != "logits"})

    def loss_function(self: Any) -> Any:
        call: _Call | None = vars(self).get(PLACE)
        own = base.loss_function.fget(self)
        return own if call is None or call.targets is None else functools.partial(call.loss, self)

    return {"forward": forward, "loss_function": property(loss_function, base.loss_function.fset)}


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


# ---------------------------------------------------------------------------------------------------------------- TRL


def use_in_trl() -> TRLKernel:
    """Let the fused head of TRL's trainers (`add_fused_lm_head`: DPO, SFT, KTO, GRPO, RLOO) run `linear_logprob`.

    It holds for all models of the process, those of trainers made before and after, until it is removed. What the
    trainers see is TRL's `FusedCausalLMOutput`, as before. One GEMM in four less than TRL's kernel while `saved_bytes`
    suffices, and log-probs from fp32 logits.

    Returns:
        A handle: `.remove()`, or the end of a `with` block, undoes it.

    Raises:
        InputError: it is in use already, or a TRL that has no fused head (1.16 has).
    """
    import trl
    from trl.trainer import utils

    theirs = getattr(utils, TRL_KERNEL, None)
    if theirs is None:
        raise InputError(f"use_in_trl: TRL {trl.__version__} has no fused head that is known here; 1.16 has")
    if theirs is TRLKernel:
        raise InputError("use_in_trl: it is in use already; remove() the first")
    setattr(utils, TRL_KERNEL, TRLKernel)
    return TRLKernel(theirs)


TRL_KERNEL = "_ChunkedLogProbFunction"  # in trl.trainer.utils


class TRLKernel:
    """The handle of `use_in_trl`, and what stands in the place of TRL's autograd function."""

    def __init__(self, theirs: Any) -> None:
        self._theirs = theirs

    def remove(self) -> None:
        """Give TRL its own kernel again."""
        from trl.trainer import utils

        setattr(utils, TRL_KERNEL, self._theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.remove()

    @staticmethod
    def apply(
        hidden: Tensor,  # [N, H]
        weight: Tensor,  # [V, H]
        bias: Tensor | None,  # [V]
        targets: Tensor,  # [N] int64
        temperature: float,
        chunk_size: int,  # of their tiles
        softcap: float | None,
        scale: float,
        outputs: tuple[str, ...],
    ) -> tuple[Tensor | None, ...]:
        """log_probs, entropy, log_sum_sq_probs, mean_logits, is_top1: each [N], or None if not among `outputs`."""
        if hasattr(weight, "ds_id"):
            raise InputError("use_in_trl: DeepSpeed ZeRO-3 is not supported, remove() it: TRL's own kernel is")
        stats = tuple(name for name in STATS if name in outputs)
        out = linear_logprob(
            hidden,
            weight,
            targets,
            bias=bias,
            scale=scale,
            softcap=softcap,
            temperature=temperature,
            entropy="entropy" in outputs,
            stats=stats,
        )
        if isinstance(out, Tensor):
            out = Described(out, None, {})
        elif isinstance(out, Scored):
            out = Described(*out, {})
        is_top1 = out.stats.get("is_top1")
        return (
            out.logp,
            out.entropy,
            out.stats.get("log_sum_sq_probs"),
            out.stats.get("mean_logits"),
            None if is_top1 is None else is_top1.bool(),
        )
