"""The tokenizer: the same ids as transformers from folders and GGUF files, round trips, and bad files."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pytest

from vdengine.errors import InputError
from vdengine.gguf import GGUFFile
from vdengine.text.tokenizer import _from_gguf, load_tokenizer

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
    ours, gguf = load_tokenizer(str(folder)), _from_gguf("x.gguf", as_gguf(folder, pre))
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
    ours, gguf = load_tokenizer(str(tmp_path)), _from_gguf("x.gguf", as_gguf(tmp_path, "dbrx"))
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
            _from_gguf("x.gguf", GGUFFile(good.path, meta, {}, good.data))


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
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.chat_template == "d" and tokenizer.eos_id == 258 and tokenizer.pad_id == 256
    assert tokenizer.stop_ids == [258, 256]
    (folder / "chat_template.jinja").write_text("file")
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
    assert "tokenizer.json: not a tokenizer" in broken("tokenizer.json", whole[: len(whole) // 2])
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
