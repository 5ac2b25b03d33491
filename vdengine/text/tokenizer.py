"""The tokenizer of a checkpoint: text to ids and back, its special tokens and its chat template.

It wraps the `tokenizers` library, with a Hugging Face folder's tokenizer.json or a GGUF file's vocabulary. It never
adds a token by itself: BOS and end-of-turn come from the chat template (`vdengine.text.renderer`).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdengine.errors import InputError
from vdengine.gguf import GGUFFile, read_gguf
from vdengine.hub import locate
from vdengine.outside import json_object

if TYPE_CHECKING:
    import tokenizers

    from vdengine.text.renderer import RenderedText, Renderer

MAX_TEMPLATE_CHARS = 1 << 20
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """Text to ids and back. Made by `load_tokenizer`.

    Attributes:
        source: as the user named it.
        special_tokens: text of bos_token, eos_token, ..., as a chat template sees them.
        bos_id, eos_id, pad_id: their ids; None where there is no such token.
        add_bos: whether text begins with BOS; None if the checkpoint does not say.
        chat_template: Jinja text, or None.

    Raises:
        InputError: a special token that is not in the vocabulary, or a chat template that is too long.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        source: str,
        *,
        special_tokens: dict[str, str],
        chat_template: str | None = None,
        add_bos: bool | None = None,
        generation_eos: Sequence[int] = (),
        config: dict[str, Any] | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        if getattr(backend.model, "dropout", None):
            backend.model.dropout = None  # equal text must give equal ids
        self.source, self.special_tokens, self.add_bos = source, special_tokens, add_bos
        self._backend, self._config, self._lock = backend, dict(config or {}), threading.Lock()
        for name, text in special_tokens.items():
            if backend.token_to_id(text) is None:
                raise InputError(f"{source}: {name} is {text!r}, which is not in the vocabulary")
        self.bos_id = self._special_id("bos_token")
        self.eos_id = self._special_id("eos_token")
        self.pad_id = self._special_id("pad_token")
        if chat_template is not None and len(chat_template) > MAX_TEMPLATE_CHARS:
            size = len(chat_template)
            raise InputError(f"{source}: the chat template has {size} characters; at most {MAX_TEMPLATE_CHARS}")
        self.chat_template = chat_template
        self._generation_eos = [i for i in generation_eos if backend.id_to_token(i) is not None]

    def _special_id(self, name: str) -> int | None:
        text = self.special_tokens.get(name)
        return None if text is None else self._backend.token_to_id(text)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """The ids of `text`, without additions. '<|im_end|>' and the like are plain text unless `special` is True.

        Raises:
            InputError: text that is not valid Unicode (a lone surrogate).
        """
        try:
            with self._lock:  # `encode_special_tokens` is a property of the backend, which threads share
                if self._backend.encode_special_tokens == special:
                    self._backend.encode_special_tokens = not special
                return self._backend.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError):
            raise InputError(f"{text[:40]!r}: not Unicode text") from None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def token(self, id: int) -> str | None:
        """A token as the vocabulary spells it; None for an id it does not have."""
        return self._backend.id_to_token(id)

    def token_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it; None for a token it does not have."""
        return self._backend.token_to_id(token)

    @cached_property
    def vocab_size(self) -> int:
        """The largest id plus one."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def added_special_tokens(self) -> list[Any]:
        """The special tokens as `tokenizers.AddedToken`s, by id."""
        added = self._backend.get_added_tokens_decoder()
        return [added[i] for i in sorted(added) if added[i].special]

    @cached_property
    def uses_bos(self) -> bool:
        """Whether text for this model begins with BOS: as the config says, else if the post-processor adds it or the
        template writes it."""
        if self.bos_id is None:
            return False
        if self.add_bos is not None:
            return self.add_bos
        added_ids = self._backend.encode("", add_special_tokens=True).ids
        return added_ids[:1] == [self.bos_id] or "bos_token" in (self.chat_template or "")

    @cached_property
    def hash(self) -> str:
        """Content hash of the vocabulary and rules, the special tokens and the chat template: 32 hex digits."""
        settings = json.dumps([self.special_tokens, self.add_bos, self.chat_template], sort_keys=True)
        return hashlib.blake2b(f"{self._backend.to_str()}\0{settings}".encode(), digest_size=16).hexdigest()

    @cached_property
    def vocabulary_hash(self) -> str:
        """Content hash of the token of each id: 32 hex digits. Tokenizers with equal hashes decode ids alike."""
        vocabulary = sorted(self._backend.get_vocab(with_added_tokens=True).items())
        return hashlib.blake2b(json.dumps(vocabulary).encode(), digest_size=16).hexdigest()

    @cached_property
    def renderer(self) -> Renderer:
        """The renderer of the tokenizer's own chat template.

        Raises:
            InputError: it has none.
        """
        from vdengine.text.renderer import Renderer

        return Renderer(self)

    def render(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool = False) -> RenderedText:
        """The ids and the mask of a conversation in the tokenizer's own chat template; see `Renderer.render`."""
        return self.renderer.render(messages, add_generation_prompt=add_generation_prompt)

    @cached_property
    def end_of_turn_id(self) -> int | None:
        """The token that ends an assistant turn: that of the chat template, or EOS without a template."""
        if self.chat_template is None:
            return self.eos_id
        token = self.renderer.end_of_turn
        return self.eos_id if token is None else self.token_id(token)

    @cached_property
    def stop_ids(self) -> list[int]:
        """The ids that end sampling: the end of a turn, EOS, and those of the checkpoint's generation config."""
        try:
            turn_end = self.end_of_turn_id
        except InputError:  # the template cannot render a question with an answer
            turn_end = None
        ids = [turn_end, self.eos_id, *self._generation_eos]
        return list(dict.fromkeys(i for i in ids if i is not None))

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and chat_template.jinja, which AutoTokenizer can open."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.encode_special_tokens = False
        self._backend.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | self._config
        config |= self.special_tokens
        if self.add_bos is not None:
            config["add_bos_token"] = self.add_bos
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template  # for transformers before 4.45; later ones read the file
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def load_tokenizer(source: Any) -> Tokenizer:
    """The tokenizer of a Hugging Face folder, hub id, .gguf path or package://pkg/file.gguf; or one that is in memory.

    Args:
        source: a name; or a tokenizer or processor of transformers, which is copied as `save_pretrained` writes it, so
            that the copy is the tokenizer of a checkpoint saved with it. A `Tokenizer` is returned as it is.

    Raises:
        InputError: there is none, or it is of a kind that is not supported.
    """
    if isinstance(source, Tokenizer):
        return source
    if not isinstance(source, str | Path):
        return _from_memory(getattr(source, "tokenizer", source))  # a processor has a tokenizer
    source = str(source)
    path = locate(source, ("*.json", "*.jinja"))
    return _from_gguf(source, read_gguf(path)) if path.is_file() else _from_folder(source, path)


# ------------------------------------------------------------------------------------------------- Hugging Face folders


def _from_memory(live: Any) -> Tokenizer:
    kind = type(live).__name__
    if not hasattr(live, "save_pretrained"):
        raise InputError(f"a {kind} is not a tokenizer; give one of transformers or of vdengine, or the name of one")
    if not getattr(live, "is_fast", False):
        raise InputError(f"{kind}: a slow tokenizer; only fast ones, of the library tokenizers, are supported")
    with tempfile.TemporaryDirectory() as folder:
        live.save_pretrained(folder)
        return _from_folder(str(getattr(live, "name_or_path", "") or kind), Path(folder))


def _from_folder(source: str, folder: Path) -> Tokenizer:
    import tokenizers

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise InputError(f"{folder}: no tokenizer.json (a SentencePiece tokenizer.model alone is not supported)")
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exceptions
        raise InputError(f"{file}: not a tokenizer: {_first_line(error)}") from None
    config = _optional_json(folder / "tokenizer_config.json")
    special_map = _optional_json(folder / "special_tokens_map.json")
    special_tokens = {}
    for name in _SPECIAL_NAMES:
        value = config[name] if name in config else special_map.get(name)
        if isinstance(value, dict):  # a serialised AddedToken
            value = value.get("content")
        if isinstance(value, str):
            special_tokens[name] = value
    add_bos = config.get("add_bos_token")
    eos = _optional_json(folder / "generation_config.json").get("eos_token_id")
    eos = eos if isinstance(eos, list) else [eos]
    return Tokenizer(
        backend,
        source,
        special_tokens=special_tokens,
        chat_template=_chat_template(folder, config),
        add_bos=add_bos if isinstance(add_bos, bool) else None,
        generation_eos=[i for i in eos if isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 2**31],
        config=config,
    )


def _optional_json(path: Path) -> dict[str, Any]:
    return json_object(path) if path.is_file() else {}


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """chat_template.jinja, else the chat_template of the config: text, or the one named "default" of a list."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: cannot be read: {error}") from None
    template = config.get("chat_template")
    if isinstance(template, list):
        by_name = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = by_name.get("default")
        if template is None:
            names = ", ".join(sorted(str(name) for name in by_name))
            raise InputError(f"{folder}/tokenizer_config.json: chat_template has no 'default', only {names}")
    if template is not None and not isinstance(template, str):
        raise InputError(f"{folder}/tokenizer_config.json: chat_template is a {type(template).__name__}, not text")
    return template


# ----------------------------------------------------------------------------------------------------------------- GGUF

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


def _from_gguf(source: str, file: GGUFFile) -> Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    meta, path = file.metadata, file.path

    def get(key: str) -> Any:
        return meta.get(f"tokenizer.ggml.{key}")

    if get("model") != "gpt2":
        raise InputError(f"{path}: tokenizer.ggml.model = {get('model')!r} is not supported; only gpt2 (byte BPE)")
    if get("pre") not in _PRE:
        raise InputError(f"{path}: tokenizer.ggml.pre = {get('pre')!r} is not supported; supported: {', '.join(_PRE)}")
    regex, digits, ignore_merges, nfc = _PRE[get("pre")]
    tokens, merges, types = get("tokens"), get("merges"), get("token_type")
    if not isinstance(tokens, list) or not isinstance(merges, list) or types is None or len(types) != len(tokens):
        raise InputError(f"{path}: tokenizer.ggml.tokens, .merges and .token_type must be lists, one type per token")
    # converters name unused rows of the embedding with "unused" tokens, which the model's own tokenizer does not have
    vocab = {token: i for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind != _UNUSED}
    if len(vocab) != int((types != _UNUSED).sum()):
        raise InputError(f"{path}: tokenizer.ggml.tokens has a token twice")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    try:
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=ignore_merges))
    except Exception as error:  # the library raises bare Exceptions
        raise InputError(f"{path}: tokenizer.ggml.merges do not fit the tokens: {_first_line(error)}") from None
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if regex is not None:
        steps.append(pre_tokenizers.Split(tokenizers.Regex(regex), behavior="isolated", invert=False))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    if nfc:
        backend.normalizer = normalizers.NFC()
    added = [(t, int(kind)) for t, kind in zip(tokens, types, strict=True) if kind in (_CONTROL, _USER_DEFINED)]
    backend.add_tokens([tokenizers.AddedToken(t, special=k == _CONTROL, normalized=False) for t, k in added])

    special_tokens = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        number = get(f"{key}_token_id")
        if number is None:
            continue
        if not isinstance(number, int) or not 0 <= number < len(tokens) or types[number] == _UNUSED:
            raise InputError(f"{path}: tokenizer.ggml.{key}_token_id = {number!r} is not the id of a token")
        special_tokens[f"{name}_token"] = tokens[number]
    template = meta.get("tokenizer.chat_template")
    end_of_turn = get("eot_token_id")
    return Tokenizer(
        backend,
        source,
        special_tokens=special_tokens,
        chat_template=template if isinstance(template, str) else None,
        add_bos=bool(get("add_bos_token")) if get("add_bos_token") is not None else None,
        generation_eos=[end_of_turn] if isinstance(end_of_turn, int) and 0 <= end_of_turn < len(tokens) else [],
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
