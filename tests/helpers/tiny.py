"""Small random models with a byte-level tokenizer, as Hugging Face folders: real files for the real loaders."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from vdengine.models.families import ModelConfig, RopeScaling
from vdengine.models.transformer import Transformer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_config(kind: str, vocab_size: int = 259) -> ModelConfig:
    """llama: tied head, llama3 rope scaling. qwen3: untied, heads * head_dim != hidden size, odd vocabulary."""
    return ModelConfig(
        model_type=kind, vocab_size=vocab_size, hidden_size=40, intermediate_size=72, num_hidden_layers=3,
        num_attention_heads=6, num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-5,
        rope_theta=1e4 if kind == "llama" else 1e6,
        rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64) if kind == "llama" else None,
        tie_word_embeddings=kind == "llama", max_position_embeddings=4096,
    )  # fmt: skip


def fill(model: Transformer, seed: int = 0) -> Transformer:
    """Random weights, norms included, of a size at which attention and the head matter."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(
                torch.rand(p.shape, generator=g) + 0.5 if "norm" in name else torch.randn(p.shape, generator=g) * 0.12
            )
    return model


def write_tiny_model(folder: Path, kind: str) -> Path:
    folder.mkdir(parents=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None, "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    c = tiny_config(kind, tokenizer.get_vocab_size())
    raw = {
        "architectures": ["LlamaForCausalLM" if kind == "llama" else "Qwen3ForCausalLM"], "model_type": kind,
        "vocab_size": c.vocab_size, "hidden_size": c.hidden_size, "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers, "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads, "head_dim": c.head_dim, "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": c.rope_theta, "tie_word_embeddings": c.tie_word_embeddings, "hidden_act": "silu",
        "max_position_embeddings": c.max_position_embeddings, "torch_dtype": "float32",
    }  # fmt: skip
    if s := c.rope_scaling:
        raw["rope_scaling"] = {
            "rope_type": "llama3", "factor": s.factor, "low_freq_factor": s.low_freq_factor,
            "high_freq_factor": s.high_freq_factor,
            "original_max_position_embeddings": s.original_max_position_embeddings,
        }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(raw))
    model = fill(Transformer(c))
    save_file({n: p.detach().clone() for n, p in model.named_parameters()}, folder / "model.safetensors")
    return folder
