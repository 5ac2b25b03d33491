"""LoRA (Hu et al., arXiv 2106.09685): linear layers with an adapter, and the noise of its dropout.

    add_lora(model, Lora(rank=16))      # freezes the model, and gives its layers adapters that change nothing yet
    with model.adapter_off():           # the plain base model: DPO's reference, without a second copy
        ...

A layer keeps its `.weight` under its Hugging Face name, and has `.lora_A` [r, in] and `.lora_B` [out, r] beside it. Its
forward takes what a stream says (`transformer.Stream`): whether adapters are on, and what their dropout leaves of x.

Dropout is in the training stream alone, and counted: whether an element is dropped is a hash of the seed, the step, the
token (its row of the data, branch, position, id), the layer and the column. So it is the same in any pack and on any
rank, when a layer is computed again in backward, and in a run that is taken up again; and probes draw nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vdengine.errors import InputError
from vdengine.kernels.lora_linear import lora_linear
from vdengine.models.families import ModelConfig
from vdengine.models.peft_config import Lora, trained_whole
from vdengine.noise import ADAPTER, DROPOUT, mix, uniform

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vdengine.trees import Pack

LANES = 4  # columns that one hash of 64 bits decides on; so a probability has a resolution of 2^-16


class LoraLinear(nn.Linear):
    """A frozen linear layer with an adapter, uninitialised: y = W x + bias + scale * B A x.

    Args:
        number: of the layer among those of its model; part of the dropout's noise.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool, *, rank: int, scale: float, dropout: float, number: int
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.empty(rank, in_features, dtype=torch.float32))
        self.lora_B = nn.Parameter(torch.empty(out_features, rank, dtype=torch.float32))
        self.scale, self.dropout, self.number = scale, dropout, number

    def forward(self, x: Tensor, dropped: Tensor | None = None, on: bool = True) -> Tensor:  # [T, in] -> [T, out]
        """The layer's output. `dropped`: what its adapter sees in place of x; not `on`: the base layer's output."""
        if not on:
            return F.linear(x, self.weight, self.bias)
        return lora_linear(x, self.weight, self.lora_A, self.lora_B, scale=self.scale, bias=self.bias, dropped=dropped)

    def extra_repr(self) -> str:
        """As that of `nn.Linear`."""
        return f"{super().extra_repr()}, rank={self.lora_A.shape[0]}, scale={self.scale:g}, dropout={self.dropout:g}"


def add_lora(model: nn.Module, lora: Lora, seed: int = 0) -> None:
    """Give a model (`Transformer`) adapters, in place, and freeze the rest of it but for a scalar head, which is
    trained whole. A is drawn, B is zero: the model's outputs are what they were, to the bit. Before `shard`.

    The adapters are fp32, also of a bf16 model, which they are computed in. On the meta device, and of a model that is
    loaded later, they are left uninitialised.

    Raises:
        InputError: targets that the model has not, adapters that it has already, or a sharded model.
    """
    config: ModelConfig = model.config  # type: ignore[assignment]
    if getattr(model, "lora", None) is not None:
        raise InputError("add_lora: the model has an adapter already")
    if any(isinstance(p, DTensor) for p in model.parameters()):
        raise InputError("add_lora: the model is sharded already; give it the adapter before (vd.shard)")
    modules = lora.modules(config)
    model.requires_grad_(False)
    for name in trained_whole(config):
        model.get_parameter(name).requires_grad_(True)
    for number, (name, (rank, scale)) in enumerate(modules.items()):
        parent, _, attribute = name.rpartition(".")
        plain: Any = model.get_submodule(name)
        with torch.device("meta"):
            layer = LoraLinear(
                plain.in_features, plain.out_features, plain.bias is not None,
                rank=rank, scale=scale, dropout=lora.dropout, number=number,
            )  # fmt: skip
        layer.weight, layer.bias = plain.weight, plain.bias
        if not plain.weight.is_meta:
            for factor in ("lora_A", "lora_B"):
                empty = torch.empty_like(getattr(layer, factor), device=plain.weight.device)
                setattr(layer, factor, nn.Parameter(empty))
        setattr(model.get_submodule(parent), attribute, layer.train(plain.training))
    model.lora = lora  # type: ignore[assignment]
    if not any(p.is_meta for p in model.parameters()):
        with torch.no_grad():
            for name, parameter in adapter_parameters(model).items():
                parameter.copy_(first_value(name, parameter, seed))


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The factors of all adapters, by name: `model.layers.0.self_attn.q_proj.lora_A`."""
    return {name: p for name, p in model.named_parameters() if is_factor(name)}


def is_factor(name: str) -> bool:
    """Whether a parameter is an adapter's, by its name."""
    return name.endswith((".lora_A", ".lora_B"))


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """The layers with an adapter, by name."""
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLinear))


def first_value(name: str, like: Tensor, seed: int) -> Tensor:  # [r, in] or [out, r], on the CPU
    """What a factor begins with: B zeros, A uniform in +-1/sqrt(in), as in PEFT. A seed gives the same A on any machine
    and for any number of ranks."""
    if name.endswith(".lora_B"):
        return torch.zeros(like.shape)
    state = torch.zeros(1, dtype=torch.int64)
    for word in (ADAPTER, seed - 2**63 * (seed >= 2**63), *name.encode()):
        state = mix(state, word)
    drawn = uniform(state, torch.arange(like.numel())).reshape(like.shape)  # [r, in] float64 in [0, 1)
    return ((2 * drawn - 1) * like.shape[1] ** -0.5).float()


def merged(
    weight: Tensor,  # [N, K]
    lora_A: Tensor,  # [r, K]
    lora_B: Tensor,  # [N, r]
    scale: float,
) -> Tensor:  # [N, K] fp32
    """weight + scale * lora_B @ lora_A."""
    return torch.addmm(weight.float(), lora_B.float(), lora_A.float(), alpha=scale)


# ----------------------------------------------------------------------------------------------------------- dropout


def token_keys(pack: Pack, seed: int, step: int) -> Tensor:  # [T] int64
    """The hash of each token of a pack under (seed, step): of its tree's id, the branch that it is in (the prompt of a
    tree of several branches is none), its position and its id. The host does not wait for the device."""
    device, segments = pack.tokens.device, len(pack.lengths.q)
    with_rows = pack.tree_of_branch[: pack.num_branches - pack.num_firsts]
    # branches before each tree [trees + 1], and of each; its attention segments are one more if there are several
    first = torch.searchsorted(with_rows, torch.arange(pack.num_trees + 1, device=device))
    branches = first.diff()
    segments_of = branches + (branches > 1).long()  # [trees]
    last = segments_of.cumsum(0)  # up to the end of each tree
    segment = torch.arange(segments, device=device)
    tree = torch.searchsorted(last, segment, right=True)  # [S]
    within = segment - (last - segments_of)[tree]  # [S], 0 for a prompt
    state = torch.zeros(1, dtype=torch.int64, device=device)
    for word in (DROPOUT, seed, step):
        state = mix(state, word)
    of_segment = mix(mix(state, pack.tree_ids[tree]), within)  # [S]
    sizes = pack.cu_seqlens_q.diff().long()
    of_token = of_segment.repeat_interleave(sizes, output_size=pack.num_tokens)
    return mix(mix(of_token, pack.positions.long()), pack.tokens)


def dropout(
    x: Tensor,  # [T, K]
    keys: Tensor,  # [T] int64, `token_keys`
    probability: float,
    number: int,  # of the layer
) -> Tensor:  # [T, K]
    """x with elements dropped, and the rest divided by the share that stays."""
    limit = min(round(probability * 2**16), 2**16 - 1)  # of 2^16 lanes so many are dropped
    columns = torch.arange(-(-x.shape[1] // LANES), device=x.device)
    lanes = mix(mix(keys, number)[:, None], columns).view(torch.int16)[:, : x.shape[1]]  # [T, K], in +-2^15
    return (x * (2**16 / (2**16 - limit))).masked_fill(lanes < limit - 2**15, 0.0)
