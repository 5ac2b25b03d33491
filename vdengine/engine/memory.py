"""What a run will take of memory, estimated before it starts: one function, without torch and without a GPU.

Weights, gradients and AdamW's moments are counted exactly; what lives for a part of a step only (activations, gathered
layers, logits) is counted by what autograd keeps. Of what an allocator rounds up and libraries keep for themselves
nothing is known here. `tests/engine/test_memory.py` holds the parts against measured ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vdengine.models.families import BLOCK_NORMS, ModelConfig
from vdengine.models.peft_config import Lora
from vdengine.objectives import Objective
from vdengine.recipe import Recipe

FP32 = 4
HEAD_ROWS = {"cuda": 4096, "cpu": 512}  # whose logits exist at a time (`kernels.rows`)
SAVED_SHARE = 0.05  # of a GPU's memory, or 2 GiB: parallel.head_saved_bytes (`kernels.linear_logprob`)
# Of a process with torch and our extension loaded: 0.32 to 0.45 GiB resident were seen on a CPU. CUDA's context beside
# it, which torch's counters do not see, is a guess.
PROCESS = {"cpu": 450 << 20, "cuda": 512 << 20}


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at the peak of a step, by what they are for. On a CPU `host` and `device` are one memory."""

    device: Mapping[str, int]
    host: Mapping[str, int]  # beside it, of a GPU's machine
    checkpoint: int  # of all ranks, on disk
    export: int  # of the Hugging Face folder at the end, on disk

    @property
    def total(self) -> int:
        """Bytes of the device."""
        return sum(self.device.values())


@dataclass(frozen=True)
class Load:
    """What passes through the model at a time, on one rank: the largest pack of a step, and the probes beside it."""

    tokens: int
    scored: int  # of them, that go through the head
    branches: float = 1.0  # of a tree: above 1 each branch has the keys and values of its prompt too
    prompt_share: float = 0.5  # of the tokens
    probe_tokens: int = 0
    probe_pack: int = 0  # the largest probe pack


def estimate(
    recipe: Recipe,
    config: ModelConfig,
    load: Load,
    *,
    ranks: int = 1,
    device: str = "cuda",
    dtype_bytes: int = 2,
    device_bytes: int | None = None,
    reward: ModelConfig | None = None,
    value: ModelConfig | None = None,
    lora: Lora | None = None,
) -> Memory:
    """The memory of a run.

    Args:
        ranks: among which each copy of the model is sharded (`parallel.shard`).
        device: "cuda" or "cpu".
        dtype_bytes: of the compute dtype.
        device_bytes: of one GPU, for defaults that are a share of it.
        reward, value: a rollout's other models, where they are not the policy's.
        lora: the adapter that is trained, and nothing else; default: all parameters are.
    """
    objective: Objective = recipe.objective.declaration
    count, mode = config.num_parameters, recipe.parallel.activation_checkpoint
    trained = count if lora is None else _adapter(lora, config)
    shared = dict(ranks=ranks, dtype_bytes=dtype_bytes)
    parts = {
        # What is frozen is kept in the compute dtype, what is trained in fp32; FSDP2 gathers a layer in the first
        "frozen weights": dtype_bytes * count // ranks if lora is not None else 0,
        "weights (fp32)": FP32 * trained // ranks,
        "gradients (fp32)": FP32 * trained // ranks,
        "AdamW's moments (fp32)": 2 * FP32 * trained // ranks,
        "gathered layers": _gathered(config, lora is None, dtype_bytes),
        "activations": activations(config, load, mode, dtype_bytes, device, lora=lora),
        "output head": _head(recipe, config, load, device, dtype_bytes, device_bytes),
        "probes": _probes(config, load, device, dtype_bytes),
    }
    refers = objective.rollout is None or objective.rollout.refers(recipe.objective)
    if objective.reference and recipe.objective.reference == "live" and refers:
        parts["reference model"] = dtype_bytes * count // ranks
    if objective.critic:
        critic = value or reward or config
        frozen = 0 if lora is None else dtype_bytes * critic.num_parameters
        critic_trained = critic.num_parameters if lora is None else _adapter(lora.without_patterns(), critic)
        own = (frozen + 4 * FP32 * critic_trained) // ranks
        parts["value model, trained"] = own + _gathered(critic, lora is None, dtype_bytes)
    if objective.rollout:
        if reward is not None:
            parts["reward model"] = dtype_bytes * reward.num_parameters // ranks
    if objective.rollout or recipe.answers.samples:
        parts |= _sampling(recipe, config, device, device_bytes, lora=lora, **shared)
    parts["process"] = PROCESS[device]
    # what is trained and its moments, in fp32: what a checkpoint holds, and what its copy in host memory takes while it
    # is written
    state = 3 * FP32 * trained
    if objective.critic:
        state += 3 * FP32 * critic_trained
    staging = {"checkpoint's copy": state // ranks}
    if device == "cpu":
        parts |= staging
        staging = {}
    return Memory(
        {k: v for k, v in parts.items() if v}, staging, state, FP32 * trained if recipe.checkpoint.export else 0
    )


def _adapter(lora: Lora, config: ModelConfig) -> int:
    """Parameters that are trained where an adapter is."""
    return lora.num_parameters(config) + (config.hidden_size if config.head == "scalar" else 0)


def activations(
    config: ModelConfig,
    load: Load,
    mode: str,
    dtype_bytes: int,
    device: str,
    *,
    backward: bool = True,
    lora: Lora | None = None,
) -> int:
    """Bytes that the layers keep for backward, of one pack.

    With H = hidden_size, I = intermediate_size, Q = heads * head_dim and K = kv_heads * head_dim, and a norm twice a
    layer in most families, a layer keeps of each token (`models/transformer.py`, `Block._layer`)

        none, fused       2 H a norm, 3 Q + 3 K, 3 I   what goes into a norm and comes out; q and k before and after
                                                       the rotation, v, attention's output; gate, up, their product
        none, on a CPU    3 H a norm, 3 Q + 2 K, 4 I   and what the plain formulas of norm and SwiGLU keep between, and
                                                       2 (Q + K) for norms of queries and keys
        selective         3 H, 2 Q + 2 K, 2 I          the input, and the outputs of matrices and attention
        full              H                            the input

    and in trees of several branches the prompt's keys and values for each branch. An adapter's layer keeps its inner
    row too, in all modes but full, and without checkpointing what dropout leaves of its input; the plain formula of a
    frozen norm keeps H less. In the two latter modes one layer is computed again at a time, and keeps for that what it
    keeps in mode none.

    Args:
        backward: False leaves the layer that is computed again out: what is kept when the forward is over.
    """
    h, i = config.hidden_size, config.intermediate_size
    q, k = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    norms, has_qk_norm = len(BLOCK_NORMS[config.family.norm]), config.family.qk_norm != "none"
    shared = 2 * k * load.branches * load.prompt_share if load.branches > 1 else 0.0
    if device == "cuda":
        whole = 2 * h * norms + 3 * q + 3 * k + 3 * i + shared
    else:
        whole = (3 - (lora is not None)) * h * norms + 3 * q + 2 * k + 4 * i + shared + 2 * (q + k) * has_qk_norm
    kept = {"none": whole, "selective": 3 * h + 2 * q + 2 * k + 2 * i, "full": h}[mode]
    if lora is not None:
        ranks = sum(adapted.rank for adapted in lora.modules(config).values()) / config.num_hidden_layers
        whole += ranks + (2 * h + q + i) * (lora.dropout > 0)
        kept = {"none": whole, "selective": kept + ranks, "full": kept}[mode]
    again = whole if backward and mode != "none" else 0.0
    return round(load.tokens * dtype_bytes * (config.num_hidden_layers * kept + again))


def _layer_parameters(config: ModelConfig) -> int:
    """The parameters of one layer, by what is left without embedding and head."""
    embeddings = config.vocab_size * config.hidden_size
    tables = 1 if config.tie_word_embeddings or config.head == "scalar" else 2
    return max(config.num_parameters - tables * embeddings, 0) // config.num_hidden_layers


def _gathered(config: ModelConfig, trained: bool, dtype_bytes: int) -> int:
    """Whole weights that a rank has for a moment: FSDP2 gathers a unit while the one before it runs. The head's unit is
    the largest, its gradient, if it has one, is fp32 and stands beside it until it is scattered."""
    table = config.vocab_size * config.hidden_size if config.head == "causal" else 0
    layer = _layer_parameters(config)
    return dtype_bytes * (table + 2 * layer) + (FP32 * table + FP32 * layer if trained else 0)


def _head(
    recipe: Recipe, config: ModelConfig, load: Load, device: str, dtype_bytes: int, device_bytes: int | None
) -> int:
    """Logits of a chunk of rows in fp32, softmax rows kept for backward (of a head that is trained), hidden rows and
    their gradient."""
    if config.head == "scalar":
        return FP32 * load.tokens
    limit = recipe.parallel.head_saved_bytes
    if limit is None:
        limit = round(SAVED_SHARE * device_bytes) if device == "cuda" and device_bytes else 2 << 30
    kept = 0 if recipe.has_lora else min(limit, load.scored * config.vocab_size * dtype_bytes)
    chunk = min(load.scored, HEAD_ROWS[device]) * config.vocab_size * FP32
    return kept + chunk + 4 * load.scored * config.hidden_size * dtype_bytes


def _probes(config: ModelConfig, load: Load, device: str, dtype_bytes: int) -> int:
    """Probe packs in the training forward: the rows of all, one layer's work on one, a chunk of its logits."""
    if not load.probe_tokens:
        return 0
    one = Load(load.probe_pack, load.probe_pack, branches=6.0, prompt_share=0.3)
    layer = activations(config, one, "none", dtype_bytes, device) // config.num_hidden_layers
    rows = load.probe_tokens * config.hidden_size * dtype_bytes
    return rows + layer + min(512, load.probe_pack) * config.vocab_size * FP32


def _sampling(
    recipe: Recipe,
    config: ModelConfig,
    device: str,
    device_bytes: int | None,
    *,
    ranks: int,
    dtype_bytes: int,
    lora: Lora | None,
) -> dict[str, int]:
    """The copy of the weights that tokens are sampled with, if it is gathered, and the cache of keys and values."""
    objective: Objective = recipe.objective.declaration
    # on one rank the copy shares what is frozen
    count = config.num_parameters if lora is None or ranks > 1 else lora.num_parameters(config)
    copy = 0 if recipe.rollout.weights == "sharded" else dtype_bytes * count
    new = max(
        recipe.rollout.max_new_tokens if objective.rollout else 0,
        recipe.answers.max_tokens if recipe.answers.samples else 0,
    )
    length = (recipe.data.max_tokens if objective.rollout else 128) + new
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype_bytes
    cache = recipe.rollout.slots * length * per_token
    if device == "cuda" and device_bytes:
        cache = min(cache, device_bytes // 4)
    return {"copy for sampling": copy, "keys and values of samples": cache}


def size(num_bytes: float) -> str:
    """Bytes as a person reads them: 3.2 GiB, 45 MiB."""
    if num_bytes >= 1 << 30:
        return f"{num_bytes / 2**30:.1f} GiB"
    return f"{math.ceil(num_bytes / 2**20)} MiB"
