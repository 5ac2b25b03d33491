"""The vocabulary in a GGUF file as a tokenizer of the `tokenizers` library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vdengine.errors import InputError
from vdengine.gguf import GGUFFile
from vdengine.outside import parsing
from vdengine.settings import shown

if TYPE_CHECKING:
    import tokenizers

# How each `tokenizer.ggml.pre` splits text before the merges: (regex, or None for GPT-2's; whether digits are split
# off; ignore_merges; NFC). These are the rules of the models' own tokenizer.json files. transformers' GGUF import
# differs: it does not split off digits for "smollm", so spaces before a digit ("x  1") get other ids than in the
# model's training.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_PRE: dict[str, tuple[str | None, bool, bool, bool]] = {
    "gpt-2": (None, False, False, False),
    "smollm": (None, True, False, False),
    "llama-bpe": (_LLAMA3, False, True, False),
    "llama3": (_LLAMA3, False, True, False),
    "llama-v3": (_LLAMA3, False, True, False),
    "qwen2": (_QWEN2, False, False, True),
    "dbrx": (_LLAMA3, False, False, False),  # OLMo 2's; DBRX's own tokenizer has not been compared
}
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # tokenizer.ggml.token_type


def read_vocabulary(file: GGUFFile) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The tokenizer in a GGUF file, and the settings of a `Tokenizer` beside it.

    Raises:
        InputError: a kind of vocabulary that is not supported, or parts of it that do not fit together.
    """
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    meta, path = file.metadata, file.path

    def get(key: str) -> Any:
        return meta.get(f"tokenizer.ggml.{key}")

    if not isinstance(get("model"), str) or get("model") != "gpt2":
        raise InputError(f"{path}: tokenizer.ggml.model = {shown(get('model'))} is not supported; only gpt2 (byte BPE)")
    if not isinstance(get("pre"), str) or get("pre") not in _PRE:
        raise InputError(
            f"{path}: tokenizer.ggml.pre = {shown(get('pre'))} is not supported; supported: {', '.join(_PRE)}"
        )
    regex, digits, ignore_merges, nfc = _PRE[get("pre")]
    tokens, merges, types = get("tokens"), get("merges"), get("token_type")
    if not _is_texts(tokens) or not _is_texts(merges) or not isinstance(types, np.ndarray) or len(types) != len(tokens):
        raise InputError(f"{path}: tokenizer.ggml.tokens, .merges and .token_type must be lists, one type per token")
    # converters name unused rows of the embedding with "unused" tokens, which the model's own tokenizer does not have
    vocab = {token: i for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind != _UNUSED}
    if len(vocab) != int((types != _UNUSED).sum()):
        raise InputError(f"{path}: tokenizer.ggml.tokens has a token twice")
    with parsing(f"{path}: tokenizer.ggml.merges", "list of pairs of tokens"):
        pairs = [tuple(merge.split(" ")) for merge in merges]
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=ignore_merges))
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if regex is not None:
        steps.append(pre_tokenizers.Split(tokenizers.Regex(regex), behavior="isolated", invert=False))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    if nfc:
        backend.normalizer = normalizers.NFC()
    added = [(t, int(kind)) for t, kind in zip(tokens, types, strict=True) if kind in (_CONTROL, _USER_DEFINED)]
    with parsing(f"{path}: tokenizer.ggml.tokens", "list of tokens"):
        backend.add_tokens([tokenizers.AddedToken(t, special=k == _CONTROL, normalized=False) for t, k in added])
    if any(backend.token_to_id(t) != vocab[t] for t, _ in added):
        raise InputError(f"{path}: tokenizer.ggml.tokens: the control tokens come out with other ids than they have")

    def token_id(key: str) -> int | None:
        number = get(f"{key}_token_id")
        if number is None:
            return None
        if type(number) is not int or not 0 <= number < len(tokens) or types[number] == _UNUSED:
            raise InputError(f"{path}: tokenizer.ggml.{key}_token_id = {shown(number)} is not the id of a token")
        return number

    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    ids = {f"{name}_token": token_id(key) for name, key in names.items()}
    template, add_bos = meta.get("tokenizer.chat_template"), get("add_bos_token")
    if not isinstance(template, str | None):
        raise InputError(f"{path}: tokenizer.chat_template is a {type(template).__name__}, not text")
    if not isinstance(add_bos, bool | None):
        raise InputError(f"{path}: tokenizer.ggml.add_bos_token = {shown(add_bos)}, not true or false")
    return backend, {
        "special_tokens": {name: tokens[i] for name, i in ids.items() if i is not None},
        "chat_template": template,
        "add_bos": add_bos,
        "generation_eos": [i for i in (token_id("eot"), token_id("eom")) if i is not None],
    }


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)
