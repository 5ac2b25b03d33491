"""The tokenizer: the same ids as transformers from folders and GGUF files, round trips, and bad files."""

from __future__ import annotations

import json
import os
import random
import shutil

import numpy as np
import pytest
from helpers.fuzzing import damage, read_or_refused

from vdengine.errors import InputError
from vdengine.gguf import GGUFFile
from vdengine.text.gguf_vocabulary import read_vocabulary
from vdengine.text.tokenizer import Tokenizer, load_tokenizer

TEXTS = [
    "Hello  world, it's 2024 and 12345.67!",
    "\tif x:\n\n\n    return  1 \r\n",
    "Grüße 😀 日本語 e\u0301 👩‍👩‍👧 שלום مرحبا \u200b",
    "<b>&amp;</b> {{ x }} {% y %} \\n ```py\n```",
    "",
    " ",
    "a   9  b",
]


def random_texts(count: int = 200) -> list[str]:
    rng = random.Random(0)
    alphabet = " \n\tabcdeABC0123456789.,'!?<>|_-()éß日本😀"
    return ["".join(rng.choice(alphabet) for _ in range(rng.randint(1, 60))) for _ in range(count)]


@pytest.mark.parametrize("kind", ["qwen3", "llama3"])
def test_ids_are_those_of_transformers(kind, real_tokenizer):
    """Guards against another normalizer, pre-tokenizer or an added BOS."""
    transformers = pytest.importorskip("transformers")
    folder = str(real_tokenizer(kind))
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS + random_texts():
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)
    assert ours.vocab_size == max(theirs.get_vocab().values()) + 1
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)


def test_special_tokens_are_text_unless_asked_for(real_tokenizer):
    """Guards against '<|im_end|>' in a data row becoming the token that ends a turn."""
    tokenizer = load_tokenizer(str(real_tokenizer("qwen3")))
    end = tokenizer.token_id("<|im_end|>")
    for _ in range(2):  # the switch is turned both ways
        assert tokenizer.encode("a<|im_end|>", special=True)[-1] == end
        assert end not in tokenizer.encode("a<|im_end|>")
        assert tokenizer.decode(tokenizer.encode("a<|im_end|>")) == "a<|im_end|>"


def test_end_of_turn_and_stop_ids(real_tokenizer, smollm2_gguf):
    """Guards against generation that runs past a turn: Llama-3's EOS here is not what ends its turns."""
    llama3 = load_tokenizer(str(real_tokenizer("llama3")))
    assert llama3.token(llama3.end_of_turn_id) == "<|eot_id|>" and llama3.token(llama3.eos_id) == "<|end_of_text|>"
    assert llama3.stop_ids == [llama3.end_of_turn_id, llama3.eos_id]
    smollm2 = load_tokenizer(str(smollm2_gguf))
    assert smollm2.stop_ids == [smollm2.token_id("<|im_end|>")]
    assert not smollm2.uses_bos  # its bos_token_id is <|im_start|>, and add_bos_token says no


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3", "llama3", "smollm2"])
def test_save_opens_in_transformers(kind, request, real_tokenizer, tmp_path):
    """Guards against an export whose tokenizer gives other ids, or loses its special tokens or template."""
    transformers = pytest.importorskip("transformers")
    source = str(request.getfixturevalue("smollm2_gguf") if kind == "smollm2" else real_tokenizer(kind))
    ours = load_tokenizer(source)
    ours.encode("x")  # leaves the special-token switch on: it must not be saved
    ours.save(tmp_path)
    theirs, again = transformers.AutoTokenizer.from_pretrained(str(tmp_path)), load_tokenizer(str(tmp_path))
    messages = [{"role": "user", "content": "Hi 2024  7"}, {"role": "assistant", "content": "Hello\n"}]
    for text in TEXTS + random_texts(50):
        assert ours.encode(text) == again.encode(text) == theirs.encode(text, add_special_tokens=False)
    ids = ours.render(messages).ids
    assert ids == again.render(messages).ids == theirs.apply_chat_template(messages, return_dict=False)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert again.hash == ours.hash


def test_smollm2_splits_digits_as_the_model_was_trained(smollm2_gguf):
    """Guards against GPT-2's rules for SmolLM2: digits are split off first, and so the spaces before them too."""
    tokenizer = load_tokenizer(str(smollm2_gguf))

    def tokens(text: str) -> list[str | None]:
        return [tokenizer.token(i) for i in tokenizer.encode(text)]

    assert tokens("1234") == list("1234")
    assert tokens("a  9") == ["a", "ĠĠ", "9"]  # GPT-2's: a, Ġ, Ġ, 9
    assert tokenizer.vocab_size == 49152


def from_gguf(file) -> Tokenizer:
    backend, settings = read_vocabulary(file)
    return Tokenizer(backend, "x.gguf", **settings)


def as_gguf(folder, pre: str) -> GGUFFile:
    """The metadata that a converter writes for a tokenizer.json."""
    raw = json.loads((folder / "tokenizer.json").read_text())
    vocab = dict(raw["model"]["vocab"])
    kinds = dict.fromkeys(vocab, 1)
    for token in raw["added_tokens"]:
        vocab[token["content"]] = token["id"]
        kinds[token["content"]] = 3 if token["special"] else 4
    size = max(vocab.values()) + 5
    tokens, types = [f"[PAD{i}]" for i in range(size)], np.full(size, 5, np.int32)
    for token, i in vocab.items():
        tokens[i], types[i] = token, kinds[token]
    merges = [m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]]
    keys = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types, "merges": merges, "eos_token_id": 7}
    return GGUFFile(folder / "x.gguf", {f"tokenizer.ggml.{k}": v for k, v in keys.items()}, {}, np.empty(0, np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("kind, pre", [("qwen3", "qwen2"), ("llama3", "llama-bpe")])
def test_gguf_vocabulary_equals_the_folder(kind, pre, real_tokenizer):
    """Guards against pre-tokenizer rules for GGUF files that differ from the model's own tokenizer.json."""
    folder = real_tokenizer(kind)
    ours, gguf = load_tokenizer(str(folder)), from_gguf(as_gguf(folder, pre))
    for text in [*TEXTS, *random_texts(), "<|im_end|><|eot_id|> x", "<think>\n"]:
        for special in (False, True):
            assert gguf.encode(text, special) == ours.encode(text, special)
    assert gguf.vocab_size == ours.vocab_size


@pytest.mark.slow
def test_olmo2_rules_of_a_gguf_file(real_tokenizer, tmp_path):
    """Guards against another model's rules for OLMo 2's files, which name them "dbrx": pieces that are tokens are built
    by merges, and not looked up as Llama-3's. The rules are those of its tokenizer.json, here with Llama-3's tokens."""
    raw = json.loads((real_tokenizer("llama3") / "tokenizer.json").read_text())
    split, byte_level = raw["pre_tokenizer"]["pretokenizers"]
    raw["pre_tokenizer"]["pretokenizers"] = [split | {"behavior": "Removed", "invert": True}, byte_level]
    raw["model"]["ignore_merges"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    ours, gguf = load_tokenizer(str(tmp_path)), from_gguf(as_gguf(tmp_path, "dbrx"))
    for text in [*TEXTS, *random_texts()]:
        assert gguf.encode(text) == ours.encode(text)


def test_bad_gguf_vocabularies(real_tokenizer):
    """Guards against a traceback, or wrong ids, from a GGUF file with an unknown or broken vocabulary."""
    good = as_gguf(real_tokenizer("llama3"), "llama-bpe")
    broken = {
        "model": ("llama", "byte"),
        "pre": ("default", "supported: gpt-2, smollm"),
        "merges": (["no such pair here"], "merges"),
        "tokens": (["a", "a"], "one type per token"),
        "token_type": (None, "one type per token"),
        "eos_token_id": (10**9, "not the id of a token"),
    }
    for key, (value, reason) in broken.items():
        meta = good.metadata | {f"tokenizer.ggml.{key}": value}
        with pytest.raises(InputError, match=reason):
            from_gguf(GGUFFile(good.path, meta, {}, good.data))


def test_config_files(tmp_path, tiny_models):
    """Guards against special tokens, templates or stop ids that a folder names in another file or form."""
    folder = tmp_path / "m"
    shutil.copytree(tiny_models["llama"], folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["eos_token"] = {"__type": "AddedToken", "content": "<|im_end|>", "special": True}
    config["chat_template"] = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    config.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<|endoftext|>"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [256, 258, 10**7]}))
    with pytest.warns(UserWarning, match=r"generation_config.json: eos_token_id \[10000000\]: the tokenizer has no"):
        tokenizer = load_tokenizer(str(folder))
    assert tokenizer.chat_template == "d" and tokenizer.eos_id == 258 and tokenizer.pad_id == 256
    assert tokenizer.stop_ids == [258, 256]
    (folder / "generation_config.json").unlink()
    before = (folder / "config.json").read_text()
    for ids in ([99999], [-1], [258, 10**400]):
        (folder / "config.json").write_text(json.dumps(json.loads(before) | {"eos_token_id": ids}))
        with pytest.warns(UserWarning, match=r"/config.json: eos_token_id \[(99999\]|-1\]|10+\.+): the tokenizer has"):
            assert load_tokenizer(str(folder)).end_ids == [258]
    (folder / "config.json").write_text(before)
    (folder / "chat_template.jinja").write_text("file")
    with pytest.warns(
        UserWarning, match="chat_template.jinja is used; the chat_template in tokenizer_config.json is anot"
    ):
        assert load_tokenizer(str(folder)).chat_template == "file"


def test_truncation_and_dropout_are_off(tmp_path, tiny_models):
    """Guards against a tokenizer.json that cuts rows short or gives other ids each time."""
    folder = tmp_path / "m"
    shutil.copytree(tiny_models["llama"], folder)
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    raw["model"]["vocab"]["ab"] = 300
    raw["model"]["merges"], raw["model"]["dropout"] = [["a", "b"]], 0.5
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.warns(UserWarning, match="the added token '<.endoftext.>' has the id 256; it has the id 257"):
        tokenizer = load_tokenizer(str(folder))
    assert {tuple(tokenizer.encode("abababab")) for _ in range(20)} == {(300,) * 4}


def test_bad_folders(tmp_path, tiny_models):
    """Guards against a traceback from files that are missing, cut short or of the wrong form."""
    with pytest.raises(InputError, match="no such folder"):
        load_tokenizer(str(tmp_path / "none"))
    with pytest.raises(InputError, match="no tokenizer.json"):
        load_tokenizer(str(tmp_path))

    def broken(name: str, text: str) -> str:
        folder = tmp_path / "m"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tiny_models["llama"], folder)
        (folder / name).write_text(text)
        with pytest.raises(InputError) as error:
            load_tokenizer(str(folder))
        assert "\n" not in str(error.value)
        return str(error.value)

    whole = (tiny_models["llama"] / "tokenizer.json").read_text()
    assert "broken JSON" in broken("tokenizer.json", whole[: len(whole) // 2])
    assert "line 2: broken JSON" in broken("tokenizer_config.json", '{"eos_token":\n"x')
    assert "not in the vocabulary" in broken("tokenizer_config.json", '{"eos_token": "<eos>"}')
    assert "not a JSON object" in broken("tokenizer_config.json", "[]")
    assert "not text" in broken("tokenizer_config.json", '{"chat_template": 3}')
    assert "no 'default'" in broken("tokenizer_config.json", '{"chat_template": [{"name": "a", "template": "b"}]}')
    assert "at most" in broken("chat_template.jinja", "x" * (1 << 21))


def test_lone_surrogates_are_refused(tiny_models):
    """Guards against a traceback from text that is half a character (JSON can spell one)."""
    with pytest.raises(InputError, match="not Unicode"):
        load_tokenizer(str(tiny_models["llama"])).encode("\ud83d")


def test_a_tokenizer_in_memory_is_that_of_the_folder_it_is_saved_to(tiny_models, tmp_path):
    """Guards that a run of another trainer and `vdengine score` on its checkpoint have the same ids and hash; and that
    the live tokenizer, which the trainer goes on with, is not changed."""
    from transformers import PreTrainedTokenizerFast

    live = PreTrainedTokenizerFast.from_pretrained(tiny_models["llama"])
    live.backend_tokenizer.enable_padding(length=64)
    live.backend_tokenizer.enable_truncation(8)
    found = load_tokenizer(live)
    live.save_pretrained(tmp_path / "saved")
    saved = load_tokenizer(str(tmp_path / "saved"))
    assert found.hash == saved.hash and found.renderer.hash == saved.renderer.hash
    assert found.encode("a longer text than eight bytes") == saved.encode("a longer text than eight bytes")
    assert live.backend_tokenizer.padding is not None and live.backend_tokenizer.truncation is not None
    assert load_tokenizer(found) is found and load_tokenizer(tiny_models["llama"]).hash

    class Processor:
        tokenizer = live

    assert load_tokenizer(Processor()).hash == found.hash
    with pytest.raises(InputError, match="a dict is not a tokenizer; give one of transformers or of vdengine"):
        load_tokenizer({})


@pytest.fixture
def folder(tmp_path, tiny_models):
    return shutil.copytree(tiny_models["llama"], tmp_path / "copy")


def change(file, **keys) -> None:
    raw = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({k: v for k, v in (raw | keys).items() if v is not ...}))


@pytest.mark.parametrize("file, keys, reason", [
    ("tokenizer_config.json", {"add_bos_token": "false"}, "add_bos_token is 'false', not true or false"),
    ("tokenizer_config.json", {"eos_token": 5}, "eos_token is 5, not a token"),
    ("tokenizer_config.json", {"eos_token": "\ud83d"}, "not in the vocabulary"),
    ("tokenizer_config.json", {"added_tokens_decoder": {"5": {"content": "<|im_end|>"}}}, "has the id 5 in .*, 258 in"),
    ("tokenizer_config.json", {"added_tokens_decoder": {"-1": {"content": "x"}}}, "is no token and its id"),
    ("tokenizer_config.json", {"added_tokens_decoder": {"900": {"content": "<new>"}}}, "has the id 900 in .*, 259 in"),
    ("tokenizer_config.json", {"chat_template": [{"name": "default"}, "x"]}, "not a list of names and templates"),
    ("added_tokens.json", {"<|im_end|>": 4}, "has the id 4 in added_tokens.json, 258 in"),
    ("generation_config.json", {"eos_token_id": "2"}, "eos_token_id = '2'; token ids are needed"),
    ("generation_config.json", {"eos_token_id": [2, True]}, "token ids are needed"),
    ("config.json", {"eos_token_id": 2.0}, "token ids are needed"),
    ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 2**32 - 1}, "merges": []}}, "id 4294967295; whole num"),
    ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, "has the id -1"),
    ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 1.0}, "merges": []}}, "has the id 1.0"),
    ("tokenizer.json", {"added_tokens": [{"id": 2**32 - 2, "content": "x"}]}, "has the id 4294967294"),
    ("tokenizer.json", {"model": [1]}, "it has no model"),
    ("tokenizer.json", {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaa"}] * 40}}, "more than 4096 times as long"),
])  # fmt: skip
def test_what_files_say_is_checked(file, keys, reason, folder):
    """Guards against a tokenizer's word that is passed over, other ids than a file says, or a request for gigabytes
    that ends the process."""
    change(folder / file, **keys)
    with pytest.raises(InputError, match=f"^[^\n]*{reason}[^\n]*$"):
        load_tokenizer(str(folder))


def test_files_that_disagree(folder):
    """Guards against a choice between two files without a word; the choice is that of transformers."""
    change(folder / "special_tokens_map.json", eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y", None]})
    with pytest.warns(UserWarning) as said:
        assert load_tokenizer(str(folder)).eos_id == 258
    texts = [str(w.message) for w in said]
    assert any("eos_token is '<|im_end|>' in tokenizer_config.json, which is used, and '<|endo" in t for t in texts)
    assert any("auto_map names code of the checkpoint, which is not run" in t for t in texts)


def test_ends_of_a_text(folder):
    """Guards stop ids: generation_config.json goes first, as in transformers; config.json counts where it has none, but
    not the default of a config class that the tokenizer knows nothing of."""
    change(folder / "config.json", eos_token_id=[256, 2])
    assert load_tokenizer(str(folder)).end_ids == [258, 256]
    change(folder / "generation_config.json", eos_token_id=257)
    assert load_tokenizer(str(folder)).end_ids == [258, 257]


def test_tokens_that_only_the_config_declares(folder):
    """Guards against a special token that transformers adds from tokenizer_config.json and is text here."""
    transformers = pytest.importorskip("transformers")
    new = {"content": "<tool>", "special": True, "normalized": False, "lstrip": False, "rstrip": False,
           "single_word": False}  # fmt: skip
    change(folder / "tokenizer_config.json", added_tokens_decoder={"259": new})
    ours, theirs = load_tokenizer(str(folder)), transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))
    ids = ours.encode("a<tool>b", special=True)
    assert ids == theirs.encode("a<tool>b", add_special_tokens=False) and 259 in ids


def test_templates_in_a_folder_of_their_own(folder):
    """Guards against the newest place of several templates: unread, or another one than the default in use."""
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    change(folder / "tokenizer_config.json", chat_template=...)
    with pytest.raises(InputError, match="no default.jinja, only tool_use"):
        load_tokenizer(str(folder))
    (folder / "additional_chat_templates" / "default.jinja").write_text("default")
    assert load_tokenizer(str(folder)).chat_template == "default"


@pytest.mark.parametrize("model, pattern, text", [
    ({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<unk>"}, None, "b"),
    ({"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "<unk>", "continuing_subword_prefix": "##",
      "max_input_chars_per_word": 9}, None, "b"),
    ({"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}, "(a+)+$", "a" * 30 + "b"),
])  # fmt: skip
def test_texts_that_a_tokenizer_cannot_express(model, pattern, text, folder):
    """Guards against an error of the library, some of which are no `Exception`, in the middle of a run."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    keys = {"model": model, "added_tokens": [], "pre_tokenizer": split if pattern else None}
    change(folder / "tokenizer.json", **keys, post_processor=None, decoder=None, normalizer=None)
    (folder / "tokenizer_config.json").write_text("{}")
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.encode("a") == [0]
    with pytest.raises(InputError, match="not a usable tokenizer"):
        tokenizer.encode(text)
    with pytest.raises(InputError, match="not a usable tokenizer"):
        tokenizer.decode([2**40])


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"])
def test_files_that_are_no_files(name, folder):
    """Guards against a FIFO that is waited for."""
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(InputError, match=f"{name}: not a regular file"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize("seed", range(3))
def test_any_change_of_a_file_is_read_or_refused(seed, folder):
    """Guards the kind: whatever stands in a tokenizer's files, the end is a tokenizer or one line."""
    rng = random.Random(seed)
    files = [folder / name for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json")]
    files[2].write_text('{"eos_token_id": [258, 256]}')
    wholes = {file: file.read_bytes() for file in files}
    for _ in range(60):
        file = rng.choice(files)
        file.write_bytes(damage(rng, file.name, wholes[file]))
        read_or_refused(lambda: load_tokenizer(str(folder)).encode("a b <|im_end|>"))
        file.write_bytes(wholes[file])
