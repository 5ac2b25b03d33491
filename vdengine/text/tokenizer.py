"""The tokenizer of a checkpoint: text to ids and back, its special tokens and its chat template.

It wraps the `tokenizers` library, with a Hugging Face folder's tokenizer.json or a GGUF file's vocabulary. It never
adds a token by itself: BOS and end-of-turn come from the chat template (`vdengine.text.renderer`).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdengine.errors import InputError
from vdengine.gguf import read_gguf
from vdengine.hub import locate
from vdengine.outside import LARGE, json_object, parse_json, parsing, read_text
from vdengine.settings import shown
from vdengine.text.gguf_vocabulary import read_vocabulary

if TYPE_CHECKING:
    import tokenizers

    from vdengine.text.renderer import RenderedText, Renderer

MAX_TEMPLATE_CHARS = 1 << 20
MAX_IDS = 1 << 24  # far above any vocabulary
MAX_GROWTH, MAX_STEPS = 1 << 12, 1 << 10  # of a text, by the steps of a normalizer or decoder; how many they may be
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
            if _id_of(backend, text) is None:
                raise InputError(f"{source}: {name} is {shown(text)}, which is not in the vocabulary")
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
            InputError: text that is not valid Unicode (a lone surrogate), or that this tokenizer cannot express (it
                lacks an unknown token, or its pattern takes too long).
        """
        with parsing(self.source, "tokenizer"):
            try:
                with self._lock:  # `encode_special_tokens` is a property of the backend, which threads share
                    if self._backend.encode_special_tokens == special:
                        self._backend.encode_special_tokens = not special
                    return self._backend.encode(text, add_special_tokens=False).ids
            except (UnicodeEncodeError, TypeError):
                raise InputError(f"{text[:40]!r}: not Unicode text") from None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included."""
        with parsing(self.source, "tokenizer"):
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
        return [token for token in self.added_tokens if token.special]

    @cached_property
    def added_tokens(self) -> list[Any]:
        """The tokens beside the model's vocabulary, special or not, as `tokenizers.AddedToken`s, by id."""
        added = self._backend.get_added_tokens_decoder()
        return [added[i] for i in sorted(added)]

    @property
    def end_ids(self) -> list[int]:
        """The ids that end a text by the checkpoint's own word: EOS, and those of its generation config. What ends an
        answer is `Renderer.stop_ids`."""
        return list(dict.fromkeys([*([] if self.eos_id is None else [self.eos_id]), *self._generation_eos]))

    @cached_property
    def uses_bos(self) -> bool:
        """Whether text for this model begins with BOS: as the config says, else if the post-processor adds it or the
        template writes it."""
        if self.bos_id is None:
            return False
        if self.add_bos is not None:
            return self.add_bos
        with parsing(self.source, "tokenizer"):
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
        """The token that ends an assistant turn of its own chat template (`Renderer.end_of_turn_id`); EOS without
        one."""
        return self.eos_id if self.chat_template is None else self.renderer.end_of_turn_id

    @cached_property
    def stop_ids(self) -> list[int]:
        """`Renderer.stop_ids` of its own chat template; `end_ids` without one, or with one that cannot render an answer
        or ends it with no token."""
        if self.chat_template is None:
            return self.end_ids
        try:
            return self.renderer.stop_ids
        except InputError:
            return self.end_ids

    def save(self, folder: str | Path, template: str | None = None) -> None:
        """Write tokenizer.json, tokenizer_config.json and chat_template.jinja, which AutoTokenizer can open.

        Args:
            template: Jinja text in place of the tokenizer's own.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.encode_special_tokens = False
        self._backend.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | self._config
        config |= self.special_tokens
        if self.add_bos is not None:
            config["add_bos_token"] = self.add_bos
        template = self.chat_template if template is None else template
        if template is not None:
            config["chat_template"] = template  # for transformers before 4.45; later ones read the file
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def load_tokenizer(source: Any) -> Tokenizer:
    """The tokenizer of a Hugging Face folder, hub id, .gguf path or package://pkg/file.gguf; or one that is in memory.

    Where two files of a folder disagree, the one that transformers goes by is used and a warning names both.

    Args:
        source: a name; or a tokenizer or processor of transformers, which is copied as `save_pretrained` writes it, so
            that the copy is the tokenizer of a checkpoint saved with it. A `Tokenizer` is returned as it is.

    Raises:
        InputError: there is none, it is broken, or of a kind that is not supported.
    """
    if isinstance(source, Tokenizer):
        return source
    if not isinstance(source, str | Path):
        return _from_memory(getattr(source, "tokenizer", source))  # a processor has a tokenizer
    source = str(source)
    path = locate(source, ("*.json", "*.jinja"))
    if path.is_file():
        backend, settings = read_vocabulary(read_gguf(path))
        return Tokenizer(backend, source, **settings)
    return _from_folder(source, path)


def _say(text: str) -> None:
    warnings.warn(text, stacklevel=4)


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
    file = folder / "tokenizer.json"
    if not file.exists():
        raise InputError(f"{folder}: no tokenizer.json (a SentencePiece tokenizer.model alone is not supported)")
    backend = _backend(read_text(file, LARGE), file)
    config = _optional_json(folder / "tokenizer_config.json")
    if "auto_map" in config:
        _say(f"{folder}/tokenizer_config.json: auto_map names code of the checkpoint, which is not run")
    _add_declared(backend, folder, config)
    add_bos = config.get("add_bos_token")
    if not isinstance(add_bos, bool | None):
        raise InputError(f"{folder}/tokenizer_config.json: add_bos_token is {shown(add_bos)}, not true or false")
    return Tokenizer(
        backend,
        source,
        special_tokens=_special_tokens(folder, config),
        chat_template=_chat_template(folder, config),
        add_bos=add_bos,
        generation_eos=_eos_of_configs(backend, folder),
        config=config,
    )


def _backend(text: str, file: Path) -> tokenizers.Tokenizer:
    """The tokenizer in the text of a tokenizer.json.

    Raises:
        InputError: it is none, or has ids that are out of bounds.
    """
    import tokenizers

    raw = parse_json(text, str(file))
    if not isinstance(raw, dict) or not isinstance(raw.get("model"), dict):
        raise InputError(f"{file}: not a tokenizer: it has no model")
    added = raw.get("added_tokens") or []
    vocab = raw["model"].get("vocab")
    numbers = list(vocab.values()) if isinstance(vocab, dict) else []
    if not isinstance(added, list) or not all(isinstance(t, dict) for t in added):
        raise InputError(f"{file}: added_tokens is not a list of objects")
    # the library makes room for all ids up to the largest, and ends the process where there is none
    for number in [*numbers, *(t.get("id") for t in added)]:
        if type(number) is not int or not 0 <= number < MAX_IDS:
            raise InputError(f"{file}: a token has the id {shown(number)}; whole numbers below {MAX_IDS} are allowed")
    _check_growth(raw, file)
    with parsing(file, "tokenizer"):
        backend = tokenizers.Tokenizer.from_str(text)
    for token in added:
        found = backend.token_to_id(str(token.get("content")))
        if found != token["id"]:
            _say(
                f"{file}: says that the added token {shown(token.get('content'))} has the id {token['id']}; it has "
                f"the id {found}, in transformers too, because added ids follow those of the vocabulary without a gap"
            )
    return backend


def _check_growth(raw: dict[str, Any], file: Path) -> None:
    """A chain of replacements can turn a letter into gigabytes.

    Raises:
        InputError: the steps before or after the model can make a text more than MAX_GROWTH times as long.
    """
    for part in ("normalizer", "decoder"):
        growth, steps, todo = 1.0, 0, [raw.get(part)]
        while todo:
            step, steps = todo.pop(), steps + 1
            if not isinstance(step, dict):
                continue
            for key in ("normalizers", "decoders"):
                if isinstance(step.get(key), list):
                    todo += step[key]
            added = sum(
                len(step[k].encode(errors="replace")) for k in ("content", "prepend") if isinstance(step.get(k), str)
            )
            pattern = step.get("pattern")
            literal = pattern.get("String") if isinstance(pattern, dict) else None
            growth *= (
                max(1.0, added / max(1, len(literal.encode(errors="replace"))))
                if isinstance(literal, str)
                else 1.0 + added
            )
            if growth > MAX_GROWTH or steps > MAX_STEPS:
                raise InputError(f"{file}: its {part} can make a text more than {MAX_GROWTH} times as long")


def _add_declared(backend: tokenizers.Tokenizer, folder: Path, config: dict[str, Any]) -> None:
    """Add the tokens that tokenizer_config.json and added_tokens.json name and tokenizer.json lacks, as transformers
    does.

    Raises:
        InputError: a token that has another id, or an id that has another token, than the files say.
    """
    import tokenizers

    declared: dict[str, tuple[int, dict[str, Any], str]] = {}
    for name, table in (
        ("added_tokens.json", _optional_json(folder / "added_tokens.json")),
        ("tokenizer_config.json", config.get("added_tokens_decoder") or {}),
    ):
        if not isinstance(table, dict):
            raise InputError(f"{folder}/{name}: added_tokens_decoder is not an object")
        for key, value in table.items():
            content, number = (key, value) if name == "added_tokens.json" else (value, key)
            options = content if isinstance(content, dict) else {"content": content}
            text, number = (
                options.get("content"),
                int(number) if str(number).isdecimal() and len(str(number)) < 10 else -1,
            )
            if not isinstance(text, str) or not 0 <= number < MAX_IDS:
                raise InputError(f"{folder}/{name}: {shown(key)}: {shown(value)} is no token and its id")
            declared[text] = (number, options, name)
    for text, (number, options, name) in sorted(declared.items(), key=lambda item: item[1][0]):
        found = _id_of(backend, text)
        if found is None:
            flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
            chosen = {k: options[k] for k in flags if isinstance(options.get(k), bool)}
            with parsing(f"{folder}/{name}", "tokenizer"):
                backend.add_tokens([tokenizers.AddedToken(text, **chosen)])
            found = backend.token_to_id(text)
        if found != number:
            raise InputError(f"{folder}: {text!r} has the id {number} in {name}, {found} in tokenizer.json")


def _special_tokens(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, ...: of tokenizer_config.json, else of special_tokens_map.json."""
    found: dict[str, dict[str, str | None]] = {}
    for file, table in (("tokenizer_config.json", config), ("special_tokens_map.json", None)):
        values = _optional_json(folder / file) if table is None else table
        for name in _SPECIAL_NAMES:
            if name not in values:
                continue
            value = values[name]
            if isinstance(value, dict):  # a serialised AddedToken
                value = value.get("content")
            if not isinstance(value, str | None):
                raise InputError(f"{folder}/{file}: {name} is {shown(values[name])}, not a token")
            found.setdefault(name, {})[file] = value
    tokens = {}
    for name, by_file in found.items():
        value = next(iter(by_file.values()))
        if len(set(by_file.values())) > 1 and None not in by_file.values():
            other = by_file["special_tokens_map.json"]
            _say(
                f"{folder}: {name} is {value!r} in tokenizer_config.json, which is used, and {other!r} in "
                "special_tokens_map.json"
            )
        if value is not None:
            tokens[name] = value
    return tokens


def _eos_of_configs(backend: tokenizers.Tokenizer, folder: Path) -> list[int]:
    """The ids that end a text: those of generation_config.json; if it has none, those of config.json that are added
    tokens (config classes have a default there, which the tokenizer need not have)."""

    def eos(file: str) -> list[int]:
        value = _optional_json(folder / file).get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(i) is int for i in ids):
            raise InputError(f"{folder}/{file}: eos_token_id = {shown(value)}; token ids are needed")
        return ids

    named, configs = eos("generation_config.json"), eos("config.json")
    known = {i for i in {*named, *configs} if 0 <= i < MAX_IDS and backend.id_to_token(i) is not None}
    for file, ids in (("generation_config.json", named), ("config.json", configs)):
        if lost := sorted(set(ids) - known):
            _say(f"{folder}/{file}: eos_token_id {shown(lost)}: the tokenizer has no such token")
    if named:
        return [i for i in named if i in known]
    return [i for i in configs if i in backend.get_added_tokens_decoder()]


def _optional_json(path: Path) -> dict[str, Any]:
    return json_object(path, LARGE) if path.exists() else {}


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """The template that transformers goes by: chat_template.jinja, or additional_chat_templates/default.jinja; else the
    chat_template of the config, text or the one named "default" of several.

    Raises:
        InputError: there are several and none is named "default", or one is not text.
    """
    named = config.get("chat_template")
    if isinstance(named, list):
        if not all(isinstance(t, dict) and isinstance(t.get("name"), str) for t in named):
            raise InputError(f"{folder}/tokenizer_config.json: chat_template is not a list of names and templates")
        named = {t["name"]: t.get("template") for t in named}
    if isinstance(named, dict) and named and "default" not in named:
        names = ", ".join(sorted(named))
        raise InputError(f"{folder}/tokenizer_config.json: chat_template has no 'default', only {names}")
    template = named.get("default") if isinstance(named, dict) else named
    if not isinstance(template, str | None):
        raise InputError(f"{folder}/tokenizer_config.json: chat_template is a {type(template).__name__}, not text")
    for file in (folder / "chat_template.jinja", folder / "additional_chat_templates" / "default.jinja"):
        if file.exists():
            text = read_text(file)
            if template not in (None, text):
                _say(f"{file} is used; the chat_template in tokenizer_config.json is another one")
            return text
    if template is None and (more := sorted(p.stem for p in folder.glob("additional_chat_templates/*.jinja"))):
        raise InputError(f"{folder}/additional_chat_templates: no default.jinja, only {', '.join(more)}")
    return template


def _id_of(backend: tokenizers.Tokenizer, token: str) -> int | None:
    """The id of a token, None if there is none; half a character (JSON can spell one) is none."""
    try:
        return backend.token_to_id(token)
    except UnicodeEncodeError:
        return None
