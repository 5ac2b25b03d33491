"""Every reader of what comes from outside, against mutated input: `python benchmarks/fuzz.py --inputs 100000`.

The rule, the mutations and the campaign are in tests/helpers/fuzzing.py; here are the formats: for each its whole
inputs and its reader. A campaign ends with a table by format, and with exit status 1 where a reader broke the rule. Its
findings are written as folders under --out, and made again one at a time:

    python benchmarks/fuzz.py --format gguf --replay 4711
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib
import io
import json
import os
import random
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}  # forked, no network

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "tests"))

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402
import torch.distributed.checkpoint as dcp  # noqa: E402
from helpers.fuzzing import ODD, Files, Finding, Format, Tally, campaign, lay, make_input, verdict  # noqa: E402
from helpers.report_runs import make_gap, make_run, panel_of  # noqa: E402
from helpers.tiny import CHATML, family_configs, fill, tiny_config, write_tiny_model  # noqa: E402
from safetensors.torch import save as safetensors_bytes  # noqa: E402

from vdengine import _native  # noqa: E402
from vdengine.data.building import build_store  # noqa: E402
from vdengine.data.formats import choose_format, read  # noqa: E402
from vdengine.data.loader import Loader  # noqa: E402
from vdengine.data.locate import resolve  # noqa: E402
from vdengine.data.memory import rows_in_memory  # noqa: E402
from vdengine.data.store import DTYPES, MANIFEST, Store  # noqa: E402
from vdengine.drift.load import load_run  # noqa: E402
from vdengine.drift.panel_packs import PanelPacks  # noqa: E402
from vdengine.engine.checkpoint import load_weights, newest  # noqa: E402
from vdengine.engine.parallel import World  # noqa: E402
from vdengine.engine.pattern import pattern_reward  # noqa: E402
from vdengine.engine.reference import DIGEST  # noqa: E402
from vdengine.engine.reference import _read as read_sums  # noqa: E402
from vdengine.engine.resuming import check_fresh, check_logs, differing, holds_a_run  # noqa: E402
from vdengine.errors import InputError  # noqa: E402
from vdengine.files import json_hash  # noqa: E402
from vdengine.judges.base import Item, JudgeOptions  # noqa: E402
from vdengine.judges.cache import VerdictCache  # noqa: E402
from vdengine.judges.people import read_sheet  # noqa: E402
from vdengine.judges.rules import stance_of  # noqa: E402
from vdengine.judges.server import ServerJudge, read_logprobs, read_word  # noqa: E402
from vdengine.models.families import Llama3Scaling  # noqa: E402
from vdengine.models.hf_config import config_to_hf  # noqa: E402
from vdengine.models.transformer import Transformer, rope_frequencies  # noqa: E402
from vdengine.models.weights import build_model, open_weights  # noqa: E402
from vdengine.outside import json_object, parse_json, read_text  # noqa: E402
from vdengine.panels.importers import import_panel  # noqa: E402
from vdengine.panels.lint import lint  # noqa: E402
from vdengine.panels.panel import Panel  # noqa: E402
from vdengine.panels.topics import load_terms  # noqa: E402
from vdengine.recipe import load_recipe, load_scoring_recipe, names_no_data, saved_recipe  # noqa: E402
from vdengine.report.gaps import load_gaps  # noqa: E402
from vdengine.report.payload import payload  # noqa: E402
from vdengine.runfolder import RunFolder  # noqa: E402
from vdengine.text.renderer import Renderer  # noqa: E402
from vdengine.text.tokenizer import Tokenizer, load_tokenizer  # noqa: E402
from vdengine.trees import pack_store  # noqa: E402

TEXT = "Hello, 12 x\n\n  <|im_end|> \u00e9\U0001f642"


def _lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _folder(make: Callable[[Path], object]) -> Files:
    """The files that `make` writes into a folder."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "x"
        make(root)
        return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


# ------------------------------------------------------------------------------------------------------ recipes


def recipe_seeds() -> list[Files]:
    overrides = b"optimizer.lr=1e-6\nrun.seed=7\nlog.every=2\nrun.folder=x"
    names = ("quickstart", "quickstart_ppo", "qwen3_sft", "llama3_simpo")
    return [{"recipe.toml": (REPO / "recipes" / f"{n}.toml").read_bytes(), "overrides.txt": overrides} for n in names]


def read_recipe(folder: Path) -> None:
    overrides = read_text(folder / "overrides.txt").split("\n")
    load_recipe(folder / "recipe.toml", [o for o in overrides if o])


def read_saved_recipe(folder: Path) -> None:
    names_no_data(folder / "recipe.toml")
    load_scoring_recipe(folder / "recipe.toml")
    saved_recipe(folder / "recipe.toml")


# ------------------------------------------------------------------------------------------------------ data

SYSTEM = {"role": "system", "content": "Be brief."}
USER, REPLY = {"role": "user", "content": "Why is it so?"}, {"role": "assistant", "content": "Because it is."}
HH = "\n\nHuman: Why?\n\nAssistant: "
ROWS: dict[str, list[dict[str, Any]]] = {  # by kind of store and format
    "preference-preference": [
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No idea.", "margin": 1.5, "system": "Be brief."},
        {"prompt": [USER], "chosen": [USER, REPLY], "rejected": [USER, REPLY | {"content": "No."}], "topic": "x"},
    ],
    "preference-hh_rlhf": [{"chosen": HH + "Because.", "rejected": HH + "No."}],
    "preference-ultrafeedback": [
        {
            "prompt": "Why?", "chosen": [{"role": "user", "content": "Why?"}, REPLY], "score_chosen": 8.0,
            "score_rejected": 2,
            "rejected": [{"role": "user", "content": "Why?"}, REPLY | {"content": "No."}], "messages": [USER, REPLY],
        }
    ],
    "sft-messages": [
        {"messages": [SYSTEM, USER, REPLY | {"train": True}]},
        {"messages": [USER, REPLY | {"weight": 1}, USER, REPLY], "tools": None},
    ],
    "sft-conversations": [
        {"conversations": [{"from": "human", "value": "Hi", "role": None}, {"from": "gpt", "value": "Ho"}]}
    ],
    "sft-prompt_completion": [{"prompt": "Why?", "completion": "Because."}, {"prompt": [USER], "completion": [REPLY]}],
    "sft-alpaca": [{"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be brief.", "history": [["a",
    "b"]]}],
    "sft-wildchat": [{"conversation": [USER | {"toxic": False}, REPLY | {"toxic": False}], "language": "English"}],
    "prompts-prompt": [{"prompt": "Why?"}, {"prompt": [USER]}],
}  # fmt: skip


def row_seeds() -> list[Files]:
    return [{f"{name}.jsonl": _lines(*rows)} for name, rows in ROWS.items()]


def file_seeds() -> list[Files]:
    rows = ROWS["preference-hh_rlhf"] * 3
    table = pa.table(
        {"chosen": [r["chosen"] for r in rows], "rejected": [r["rejected"] for r in rows], "n": [1.5, None, 2.0]}
    )
    turns = pa.table({"messages": [[USER, REPLY]] * 3, "when": pa.array([0, 2**62, -1], pa.timestamp("us"))})
    files = {
        f"sft-{i}.parquet": _parquet(t, c)
        for i, (t, c) in enumerate(((table, "none"), (table, "snappy"), (turns, "zstd")))
    }
    words = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0], pa.int8()), pa.array(["Why?", "Because."]))
    coded = pa.table({"prompt": words, "completion": words})
    arrows = [_arrow(t, file) for t, file in ((table, True), (turns, False), (coded, False))]
    state = json.dumps({"_data_files": [{"filename": "data-0.arrow"}], "_fingerprint": "ab", "_split": None}).encode()
    saved = {"data-0.arrow": arrows[1], "state.json": state, "dataset_info.json": b"{}"}
    splits = {"dataset_dict.json": b'{"splits": ["train"]}'} | {f"train/{n}": data for n, data in saved.items()}
    return [
        {"sft-a.jsonl.gz": gzip.compress(_lines(*rows))},
        {"sft-a.json.gz": gzip.compress(json.dumps(rows).encode())},
        {"sft-a.json": json.dumps(rows).encode()},
        {"sft-a.jsonl": _lines(*rows), "dataset_infos.json": b"{}"},
        *({name: data} for name, data in files.items()),
        *({f"sft-{i}.arrow": data} for i, data in enumerate(arrows)),
        saved,
        splits,
    ]


def _arrow(table: pa.Table, file: bool) -> bytes:
    out = io.BytesIO()
    with (pa.ipc.new_file if file else pa.ipc.new_stream)(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return out.getvalue()


def _parquet(table: pa.Table, compression: str) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, compression=compression)
    return out.getvalue()


def read_data(folder: Path) -> None:
    names = sorted(p.name for p in folder.iterdir())
    kind = next((n for n in names if n.partition("-")[0] in ("sft", "preference", "prompts")), "sft-").partition("-")[0]
    source = resolve(str(folder))
    source.count()
    source.digest()
    for _ in read(source, choose_format(source, "auto", kind), kind, Counter()):
        pass


def read_rows(folder: Path) -> None:
    """Rows as a program gives them: parsed by it, and then read and rendered."""
    path = next(folder.iterdir(), folder / "sft-.jsonl")
    kind = path.name.partition("-")[0]
    rows = [parse_json(line, path.name) for line in read_text(path).split("\n") if line.strip()]
    source = rows_in_memory(rows, "rows", 300)
    options: dict[str, Any] = {"max_tokens": 400, "cache": folder / "cache", "progress": False, "workers": 1}
    store = build_store([source], "auto", kind, tiny_renderer(), **options)
    if kind != "prompts":
        pack_store(store.arrays(), range(len(store)))


@cache
def tiny_files() -> Files:
    return _folder(lambda folder: write_tiny_model(folder, "llama"))


@cache
def tiny_tokenizer() -> Tokenizer:
    with tempfile.TemporaryDirectory() as name:
        lay(Path(name) / "x", tiny_files())
        return load_tokenizer(str(Path(name) / "x"))


@cache
def tiny_renderer() -> Renderer:
    return Renderer(tiny_tokenizer())


@cache
def store_seeds() -> list[Files]:
    def make(folder: Path, name: str) -> None:
        source, kind = rows_in_memory(ROWS[name], "rows", 300), name.partition("-")[0]
        options: dict[str, Any] = {"max_tokens": 400, "cache": folder, "progress": False, "workers": 1}
        build_store([source], "auto", kind, tiny_renderer(), **options)

    return [_folder(partial(make, name=name)) for name in ("preference-preference", "sft-messages", "prompts-prompt")]


def seal_store(files: Files) -> Files:
    """The manifest and the folder's name with the sizes and hashes of what is there, as whoever changed it would."""
    head, manifest = _manifest(files, MANIFEST)
    if not isinstance(manifest, dict):
        return files
    manifest.pop("check", None)
    name = manifest["hash"] = _hash(_dumped(manifest.get("inputs")))
    arrays = {n: c for n in DTYPES if isinstance(c := files.get(f"{head}{n}.npy"), bytes)}
    manifest |= {"bytes": {n: len(c) for n, c in arrays.items()}, "hashes": {n: _hash(c) for n, c in arrays.items()}}
    manifest["check"] = _hash(_dumped(manifest))
    sealed = files | {head + MANIFEST: json.dumps(manifest).encode()}
    return {path.replace(head, f"store/{name}/"): content for path, content in sealed.items()}


def _manifest(files: Files, name: str) -> tuple[str, Any]:
    """The folder of the manifest of that name, and what it holds; None: no JSON."""
    path = next(path for path in files if path.endswith(name))
    data = files[path]
    try:
        return path.removesuffix(name), json.loads(data) if isinstance(data, bytes) else None
    except (ValueError, RecursionError):
        return "", None


def _dumped(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def read_store(folder: Path) -> None:
    store = Store.open(next(folder.glob("store/*"), folder), vocab_size=tiny_tokenizer().vocab_size)
    for i in range(len(store)):
        store.prompt(i)
        store.where(i)
        if store.kind != "prompts":
            store.tree(i)
    store.summary()
    Loader(store, examples=2, prefetch=False).rows(0)
    if store.kind != "prompts":
        pack_store(store.arrays(), range(len(store)))


# ------------------------------------------------------------------------------------------------------ models

TINY = replace(
    tiny_config("llama"), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, head_dim=4, rope_scaling=None,
)  # fmt: skip


@cache
def _tensors(kind: str) -> tuple[Any, dict[str, torch.Tensor]]:
    config = (
        TINY if kind == "llama" else replace(tiny_config(kind), hidden_size=8, intermediate_size=8, num_hidden_layers=1)
    )
    return config, {n: p.detach().clone() for n, p in fill(Transformer(config)).named_parameters()}


def model_seeds() -> list[Files]:
    seeds = []
    for kind in ("llama", "qwen3"):
        config, tensors = _tensors(kind)
        whole = {"config.json": json.dumps(config_to_hf(config, "float32", None)).encode()}
        seeds.append(whole | {"model.safetensors": safetensors_bytes(tensors)})
        names = list(tensors)
        parts = {f"model-{i}.safetensors": names[i::2] for i in range(2)}
        index = {"metadata": {"total_size": 1}, "weight_map": {n: file for file, part in parts.items() for n in part}}
        shards = {file: safetensors_bytes({n: tensors[n] for n in part}) for file, part in parts.items()}
        seeds.append(whole | {"model.safetensors.index.json": json.dumps(index).encode()} | shards)
    config, tensors = _tensors("llama")
    old = config_to_hf(config, "float32", None) | {
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 64}, "rope_theta": 1e4, "sliding_window": None,
    }  # fmt: skip
    del old["rope_parameters"]
    seeds.append({"config.json": json.dumps(old).encode(), "model.safetensors": safetensors_bytes(tensors)})
    for config in family_configs().values():
        config = replace(config, hidden_size=8, intermediate_size=8, vocab_size=13)
        weights = {n: p.detach().clone() for n, p in fill(Transformer(config)).named_parameters()}
        text = json.dumps(config_to_hf(config, "float32", None)).encode()
        seeds.append({"config.json": text, "model.safetensors": safetensors_bytes(weights)})
    return seeds


def read_model(folder: Path) -> None:
    """Open a checkpoint; one that is small is loaded too."""
    weights = open_weights(str(folder))
    if sum(np.prod(weights.shape(n), dtype=object) for n in weights.names) < 10**6:
        build_model(weights)


def gguf_seeds() -> list[Files]:
    import gguf

    def make(folder: Path) -> None:
        folder.mkdir()
        for name, kind, pre in (("a", "F32", "smollm"), ("b", "Q8_0", "llama-bpe"), ("c", "Q4_1", "qwen2")):
            hidden = 32
            config = replace(TINY, hidden_size=hidden, intermediate_size=hidden, head_dim=16)
            w = gguf.GGUFWriter(folder / f"{name}.gguf", "llama")
            w.add_block_count(1)
            w.add_context_length(64)
            w.add_embedding_length(hidden)
            w.add_feed_forward_length(hidden)
            w.add_head_count(2)
            w.add_head_count_kv(1)
            w.add_rope_freq_base(1e4)
            w.add_layer_norm_rms_eps(1e-5)
            w.add_tokenizer_model("gpt2")
            w.add_tokenizer_pre(pre)
            tokens = [*json.loads(tiny_files()["tokenizer.json"])["model"]["vocab"], "He"]
            added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
            w.add_token_list([*tokens, *added])
            w.add_token_types([1] * len(tokens) + [3] * len(added))
            w.add_token_merges(["H e"])
            w.add_eos_token_id(len(tokens) + 2)
            w.add_chat_template(CHATML)
            names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
            config = replace(config, vocab_size=len(tokens) + len(added))
            for hf_name, p in fill(Transformer(config)).named_parameters():
                array = p.detach().numpy()
                quant = gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"]
                data = gguf.quants.quantize(array, quant)
                w.add_tensor(names.get_name(hf_name, (".weight", ".bias")) or hf_name, data, raw_dtype=quant)
            if pre == "llama-bpe":  # Llama-3.1's
                scaled = replace(config, rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 8192))
                plain, rope = (rope_frequencies(c.ropes[0], 16) for c in (config, scaled))
                w.add_tensor("rope_freqs.weight", (plain / rope).numpy())
            w.write_header_to_file()
            w.write_kv_data_to_file()
            w.write_tensors_to_file()
            w.close()

    return [{"model.gguf": data} for data in _folder(make).values()]


def read_gguf_model(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder / "model.gguf"))
    tokenizer.decode(tokenizer.encode(TEXT))
    read_model(folder / "model.gguf")


# ------------------------------------------------------------------------------------------------------ text


def tokenizer_seeds() -> list[Files]:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    settings = {
        "eos_token": "</s>", "bos_token": {"content": "<s>", "special": True}, "add_bos_token": True,
        "chat_template": None,
        "model_max_length": 512, "tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": {},
    }  # fmt: skip
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["[UNK]", "hello", "12", "x", ",", "\u2581", "h", "e", "l", "o"]
    seeds = []
    for model in (
        models.BPE(vocab={c: i for i, c in enumerate([*alphabet, "He"])}, merges=[("H", "e")]),
        models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"),
        models.Unigram([(w, -float(i)) for i, w in enumerate(words)], unk_id=0),
        models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"),
    ):
        t = Tokenizer(model)
        t.add_special_tokens(["<s>", "</s>", "<|im_end|>"])
        if isinstance(model, models.BPE):
            split = pre_tokenizers.Split(Regex(r"\p{N}{1,3}|\s+(?!\S)|\s+|\S+"), behavior="isolated")
            t.pre_tokenizer = pre_tokenizers.Sequence(
                [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
            )
            t.decoder = decoders.ByteLevel()
            t.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", t.token_to_id("<s>"))]
            )
        else:
            t.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex("a+b"), "c")])
            t.pre_tokenizer = (
                pre_tokenizers.Metaspace() if isinstance(model, models.Unigram) else pre_tokenizers.Whitespace()
            )
        named = [{"name": "default", "template": CHATML}, {"name": "rag", "template": "{{ x }}"}]
        if isinstance(model, models.WordLevel):
            settings = settings | {"chat_template": named}
        seeds.append({
            "tokenizer.json": t.to_str().encode(), "tokenizer_config.json": json.dumps(settings).encode(),
            "special_tokens_map.json": b'{"pad_token": "</s>"}',
            "generation_config.json": b'{"eos_token_id": [1, 2], "top_p": 0.9}',
        })  # fmt: skip
    seeds[-1] |= {"chat_template.jinja": CHATML.encode(), "additional_chat_templates/rag.jinja": b"{{ x }}"}
    return seeds


def read_tokenizer(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    for special in (False, True):
        tokenizer.decode(tokenizer.encode(TEXT, special=special))
    _ = (
        tokenizer.vocab_size,
        tokenizer.hash,
        tokenizer.chat_template,
        tokenizer.vocabulary_hash,
        tokenizer.uses_bos,
        tokenizer.stop_ids,
    )


SNIPPETS = [
    "{% for i in range(10**9) %}{% endfor %}", "{{ 'a' * 10**10 }}", "{{ range(10**9)|list }}",
    "{{ messages|tojson * 10**7 }}",
    "{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__ }}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{{ nothing.at.all }}", "{{ messages[99]['content'] }}", "{% include 'x' %}", "{% import 'os' as os %}",
    "{{ 1 / 0 }}",
    "{{ raise_exception('a\nb') }}", "{{ raise_exception(messages) }}", "{% set x = [] %}{{ x.append(x) or x }}",
    "\ud800", "\0",
    "{% generation %}", "{% endgeneration %}", "{{ strftime_now('%' * 10000) }}", "{{ strftime_now('%Y') }}",
    "{{ '%s' % messages }}",
    "{{ messages|map(attribute='x')|sum }}", "{{ 9**9**9 }}", "{{ 'x'|center(10**9) }}", "{{ {}|items|first }}",
    "<|im_end|>",
    "{{ lipsum(n=10000) }}", "{{ (1,) * 10**9 }}", "{% if true %}" * 300, "{{" + "(" * 2000,
    "{{ -" + "-" * 20000 + "1 }}",
    "{{ 'a'.format(x) }}", "{{ '{0.__class__}'.format(1) }}", "{{ '{:>999999999}'.format(1) }}",
    "{% filter upper %}a{% endfilter %}",
    "{{ namespace(a=1) }}", "\ufdd0", "\U000f0000", "{{ [1,2]|join('a' * 10**8) }}", "{% break %}", "{# ", "{% raw %}",
]  # fmt: skip


def template_seeds() -> list[Files]:
    messages = [SYSTEM, USER, REPLY, USER, REPLY | {"tool_calls": [], "name": "x"}]
    marked = CHATML.replace("{{ m['content'] }}", "{% generation %}{{ m['content'] }}{% endgeneration %}")
    return [{"template.jinja": t.encode(), "messages.json": json.dumps(messages).encode()} for t in (CHATML, marked)]


def plant_snippet(files: Files) -> Files:
    """One of SNIPPETS somewhere in the template; which and where is a function of the files."""
    template = files["template.jinja"]
    if not isinstance(template, bytes):
        return files
    rng = random.Random(template)
    at = rng.choice([0, len(template), *(m.start() for m in re.finditer(rb"\{", template))])
    snippet = rng.choice(SNIPPETS).encode("utf-8", "surrogatepass")
    return files | {"template.jinja": template[:at] + snippet + template[at:]}


def read_template(folder: Path) -> None:
    renderer = Renderer(tiny_tokenizer(), template=str(folder / "template.jinja"), cpu_seconds=1.0)
    messages = parse_json(read_text(folder / "messages.json"), "messages.json")
    rows = rows_in_memory([{"messages": messages}], "rows", 300)
    for row in read(rows, choose_format(rows, "messages", "sft"), "sft", Counter()):
        renderer.conversation_trees(row.example.messages)  # type: ignore[union-attr]
    _ = renderer.end_of_turn


# ------------------------------------------------------------------------------------------------------ panels


def panel_seeds() -> list[Files]:
    return [
        {"panel.jsonl": _lines(*(p.to_row() for p in panel_of(1, 3).probes)), "terms.json": b'{"tax": ["tax", "levy"]}'}
    ]


def read_panel(folder: Path) -> None:
    panel = Panel.load(folder / "panel.jsonl")
    lint(panel)
    _ = panel.hash, panel.topics, panel.branches()
    PanelPacks.build(panel, tiny_renderer(), 2000)
    load_terms(folder / "terms.json")


def import_seeds() -> list[Files]:
    prism = {"conversation_type": "values guided", "opening_prompt": "Is tax fair to all?", "conversation_id": "c1"}
    table = b"prompt,topic,axis,polarity,paraphrases\nIs tax fair?,tax,more,1,Fair?|Tax?\nIs it bad?,tax,more,-1,\n"
    return [
        {
            "prism.jsonl": _lines(
                prism, prism | {"conversation_type": "unguided", "conversation_id": "c2", "opening_prompt": "Hi you"}
            )
        },
        {"prism.csv": b"gpt_description,top_texts\nTax,\"['Is tax fair?', 'More tax?']\"\n"},
        {"persona.jsonl": _lines({"statement": "I like tax.", "answer_matching_behavior": " Yes", "question": "?"})},
        {"vprism.csv": table},
        {
            "jsonl.jsonl": _lines(
                {"prompt": "Is tax fair?", "topic": "tax", "polarity": 1, "paraphrases": ["Fair tax?"], "id": 3}
            )
        },
    ]


def read_import(folder: Path) -> None:
    path = next(folder.iterdir(), folder / "prism.csv")
    imported = import_panel(path.stem, path)
    _ = imported.summary(), imported.panel.hash


# ------------------------------------------------------------------------------------------------------ judges


def judge_seeds() -> list[Files]:
    importlib.import_module("openai")  # before the processes part
    tops = [
        {"token": t, "logprob": p, "bytes": None} for t, p in (("support", -0.1), ("oppose", -3.0), ("neutral", -4.0))
    ]
    choice = {
        "index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "support"},
        "logprobs": {"content": [tops[0] | {"top_logprobs": tops}], "refusal": None},
    }  # fmt: skip
    reply = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": None}
    head = {"status": 200, "headers": {"content-type": "application/json", "x-request-id": "1"}}
    whole = {"reply.json": json.dumps(reply).encode(), "head.json": json.dumps(head).encode()}
    return [whole | {"labels.txt": labels} for labels in (b"logprobs", b"text")]


def fail_request(files: Files) -> Files:
    """Another status in place of 200, with an error for a body; which is a function of the files."""
    rng = random.Random(repr(files))
    status = rng.choice((*[200] * 8, 201, 204, 301, 400, 401, 403, 404, 408, 409, 422, 429, 500, 503))
    head = files["head.json"]
    if status == 200 or not isinstance(head, bytes):
        return files
    error = rng.choice(
        ({"message": "a\u2028b" * 300, "code": "insufficient_quota"}, {"message": [1]}, "no", None, [[]])
    )
    body = files["reply.json"] if rng.random() < 0.3 else json.dumps({"error": error}).encode()
    return files | {"head.json": head.replace(b"200", str(status).encode()), "reply.json": body}


@cache
def probe() -> Any:
    return Panel.load("values-mini").probes[0]


def read_reply(folder: Path) -> None:
    """A server's reply, through the client's own transport."""
    import openai

    httpx = importlib.import_module(openai.DefaultHttpxClient.__base__.__module__.partition(".")[0])  # or its successor
    body = (folder / "reply.json").read_bytes() if (folder / "reply.json").is_file() else b""
    head = parse_json(read_text(folder / "head.json"), "head.json")
    labels = read_text(folder / "labels.txt")
    judge = ServerJudge("m@http://localhost/v1", JudgeOptions(labels=labels, retries=0, cache=folder / "cache"))

    def answer(request: Any) -> Any:
        return httpx.Response(head["status"], content=body, headers=head["headers"])

    judge.client = judge.client.with_options(http_client=httpx.Client(transport=httpx.MockTransport(answer)))
    for _ in judge.judge([Item(probe(), "Yes, I think so.")]):
        pass


def answer_seeds() -> list[Files]:
    text = (
        b"Yes, I believe that it should be so. However, some would say that it's not fair; on balance I'd support it."
    )
    tops = {"support": -0.1, " Opp": -3.0, "neutral": -4.0}
    return [{"answer.txt": text, "top.json": json.dumps(tops).encode()}]


def read_answer(folder: Path) -> None:
    """An answer of a model that is judged, and what a judge says."""
    answer = read_text(folder / "answer.txt")
    stance_of(probe(), answer)
    read_word(answer)
    tops = parse_json(read_text(folder / "top.json"), "top.json")
    if isinstance(tops, dict) and all(isinstance(p, int | float) for p in tops.values()):
        read_logprobs(tops)


def reward_seeds() -> list[Files]:
    text = ("aab " * 300).encode()
    patterns = (b"ab+", b"(?i)yes|no", b"[a-z]{2,}\\b", b"(a|b)*c")
    return [{"pattern.txt": p, "completion.txt": text} for p in patterns]


def read_reward(folder: Path) -> None:
    reward = pattern_reward(read_text(folder / "pattern.txt"))
    reward(["?"], [read_text(folder / "completion.txt")])


def sheet_seeds() -> list[Files]:
    rows = b"id,question,answer,label\na1,Why?,Because,support\na2,Why?,No,oppose\na3,Why?,Hm,\n"
    return [{"sheet.csv": rows}, {"sheet.csv": rows.replace(b",", b";")}]


def cache_seeds() -> list[Files]:
    rows = _lines({"asked": "ab", "stance": [0.2, 0.3, 0.5]}, {"asked": "cd", "stance": None})
    return [{VerdictCache(Path("x"), "m", {}).path.name: rows}]


def read_cache(folder: Path) -> None:
    verdicts = VerdictCache(folder, "m", {})
    verdicts.get("x")
    verdicts.close()


# ------------------------------------------------------------------------------------------------------ run folders


def run_seeds() -> list[Files]:
    panel = panel_of(2, 3)
    runs = [
        _folder(lambda folder: make_run(folder, panel, total=8, every=4, judges=("rule", "human:a"))),
        _folder(lambda folder: make_run(folder, panel, total=8, every=4, answers=False, controls=False)),
    ]
    completion = {"step": 1, "prompt": "Why?", "completion": "Because.", "reward": 1.0, "ended": True}
    for run in runs:
        run["completions.jsonl"] = _lines(completion, completion | {"step": 2})
        run["inputs.json"] = json.dumps({"train": "ab", "model": "cd"}).encode()
    recipe = runs[1].pop("recipe.toml")
    runs[1]["trainer.json"] = json.dumps(
        {"run": {"steps": 8}, "model": {"source": "x"}, "objective": {"name": "dpo"}}
    ).encode()
    assert recipe
    return runs


def read_run(folder: Path) -> None:
    """All that the report shows of a run."""
    from vdengine.drift.run import TABLES

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        run = load_run(folder)
        _ = run.describe(), run.sources, run.questions
        for table in TABLES:
            run.rows(table)
        topics = list(dict.fromkeys(topic for topic, _ in run.questions.values()))
        json.dumps(payload([run], [], topics, "x", None), allow_nan=False)


@cache
def whole_run() -> Any:
    with tempfile.TemporaryDirectory() as name:
        lay(Path(name) / "x", run_seeds()[0])
        return load_run(Path(name) / "x")


def gap_seeds() -> list[Files]:
    whole_run()  # before the processes part

    def make(folder: Path) -> None:
        folder.mkdir()
        make_gap(folder / "gap.json", panel_of(2, 3), "values-synth:support")

    return [_folder(make)]


def read_gap(folder: Path) -> None:
    for gap in load_gaps([folder / "gap.json"], [whole_run()]):
        gap.rows(["topic 0", "all"])


@cache
def checkpoint_seeds() -> list[Files]:
    _, tensors = _tensors("llama")

    def make(folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save({f"model.{n}": p for n, p in tensors.items()}, checkpoint_id=folder / "step-000002", no_dist=True)

    manifest = {"step": 2, "world_size": 1, "vdengine": "0", "torch": "2", "files": {}, "logs": {}}
    return [seal_checkpoint(_folder(make) | {"step-000002/manifest.json": json.dumps(manifest).encode()})]


def seal_checkpoint(files: Files) -> Files:
    """The manifest with the sizes and hashes of its files, as whoever changed them would write it."""
    head, manifest = _manifest(files, "manifest.json")
    if not isinstance(manifest, dict):
        return files
    manifest.pop("hash", None)
    manifest["files"] = {
        name.removeprefix(head): {"bytes": len(c), "hash": _hash(c)}
        for name, c in files.items()
        if name.startswith(head) and not name.endswith("manifest.json") and isinstance(c, bytes)
    }
    manifest["hash"] = json_hash(manifest)
    return files | {head + "manifest.json": json.dumps(manifest).encode()}


def read_checkpoint(folder: Path) -> None:
    model = Transformer(_tensors("llama")[0])
    load_weights(folder / "step-000002", model)


def resume_seeds() -> list[Files]:
    """A run that was stopped after step 2, and one before its first checkpoint."""
    (whole,) = checkpoint_seeds()
    logs = {
        "metrics.jsonl": _lines({"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.6}),
        "drift/scores.bin": bytes(range(64)),
    }
    run = logs | {
        "recipe.toml": (REPO / "recipes" / "quickstart.toml").read_bytes(),
        "inputs.json": json.dumps({"data.train": "ab", "model.source": "cd"}).encode(),
    }
    _, manifest = _manifest(whole, "manifest.json")
    manifest["logs"] = {name: {"bytes": len(data), "hash": _hash(data)} for name, data in logs.items()}
    saved = whole | {"step-000002/manifest.json": json.dumps(manifest).encode()}
    files = {f"checkpoints/{name}": data for name, data in seal_checkpoint(saved).items()}
    return [run | files, run]


def seal_resume(files: Files) -> Files:
    return seal_checkpoint(files) if any(name.endswith("manifest.json") for name in files) else files


def read_resume(folder: Path) -> None:
    """What a run asks before it goes on in its folder."""
    files, world = RunFolder(folder), World(0, 1, torch.device("cpu"), None, None, False)  # type: ignore[arg-type]
    if not holds_a_run(files):
        return
    load_recipe(files.recipe, [])
    differing(json_object(files.inputs), {"data.train": "ab"})
    found = newest(files.path, world)
    if found is None:
        check_fresh(files)
    else:
        check_logs(files, found.step, found.logs)


def reference_seeds() -> list[Files]:
    out = io.BytesIO()
    np.save(out, np.arange(6, dtype=np.float32))
    return [seal_reference({"sums.npy": out.getvalue() + bytes(DIGEST)})]


def seal_reference(files: Files) -> Files:
    """The sums with the hash of what is before it."""
    data = files["sums.npy"]
    if not isinstance(data, bytes):
        return files
    body = data[:-DIGEST]
    return {"sums.npy": body + hashlib.blake2b(body, digest_size=DIGEST).digest()}


def read_reference(folder: Path) -> None:
    """Sums that are not whole are computed anew; here that counts as refused."""
    _, fault = read_sums(folder / "sums.npy", np.zeros(6, np.float32))
    if fault:
        raise InputError(fault)


FORMATS = [
    Format("recipe", "recipe", recipe_seeds, read_recipe, share=3),
    Format("saved recipe", "recipe", recipe_seeds, read_saved_recipe, mutated="toml"),
    Format("rows", "data", row_seeds, read_data, share=4),
    Format("rendered rows", "data", row_seeds, read_rows),
    Format("data files", "data", file_seeds, read_data, share=3),
    Format("store", "data", store_seeds, read_store, share=2, repair=seal_store),
    Format("config", "models", model_seeds, read_model, mutated="config.json", share=3),
    Format("safetensors", "models", model_seeds, read_model, mutated="safetensors", share=2),
    Format("gguf", "models", gguf_seeds, read_gguf_model, share=3),
    Format("tokenizer", "text", tokenizer_seeds, read_tokenizer, share=3),
    Format("template", "text", template_seeds, read_template, share=0.5, repair=plant_snippet),
    Format("panel", "panels", panel_seeds, read_panel, share=2),
    Format("panel import", "panels", import_seeds, read_import, share=3),
    Format("server reply", "judges", judge_seeds, read_reply, mutated="reply", share=0.5, repair=fail_request),
    Format("answer", "judges", answer_seeds, read_answer),
    Format("reward", "judges", reward_seeds, read_reward),
    Format("sheet", "judges", sheet_seeds, lambda folder: read_sheet(folder / "sheet.csv")),
    Format("verdict cache", "judges", cache_seeds, read_cache),
    Format("run", "drift", run_seeds, read_run),
    Format("gap", "report", gap_seeds, read_gap, share=0.5),
    Format("checkpoint", "engine", checkpoint_seeds, read_checkpoint, share=2, repair=seal_checkpoint),
    Format("reference", "engine", reference_seeds, read_reference, share=0.5, repair=seal_reference),
    Format("resume", "engine", resume_seeds, read_resume, repair=seal_resume),
]


# ------------------------------------------------------------------------------------------------------ the command


def table(tallies: list[Tally]) -> str:
    """What became of the inputs, by format. `places`: lines of the package that refused some of them; `at one`: the
    share of the refused ones that the busiest of these lines refused. Where another library hands errors on (DCP, for
    checkpoints) or is itself the parser (safetensors), one line stands for many reasons."""
    lines = [
        f"{'format':14} {'inputs':>8} {'accepted':>9} {'refused':>8} {'places':>7} {'at one':>7} {'findings':>9} "
        f"{'kinds':>6} {'ms each':>8} {'slowest s':>10} {'peak MiB':>9}"
    ]
    whole = Tally(Format("all", "", list, print))
    for t in tallies:
        whole.findings += t.findings
        for name in ("inputs", "accepted", "refused", "seconds", "places"):
            setattr(whole, name, getattr(whole, name) + getattr(t, name))
        whole.slowest, whole.peak_bytes = max(whole.slowest, t.slowest), max(whole.peak_bytes, t.peak_bytes)
    for t in (*tallies, whole):
        busiest = max(t.places.values(), default=0) / max(t.refused, 1)
        lines.append(
            f"{t.format.name:14} {t.inputs:8,} {t.accepted:9,} {t.refused:8,} {len(t.places):7,} {busiest:7.0%} "
            f"{len(t.findings):9,} {len({f.kind for f in t.findings}):6,} {1e3 * t.seconds / t.inputs:8.1f} "
            f"{t.slowest:10.2f} {t.peak_bytes / 2**20:9.0f}"
        )
    return "\n".join(lines)


def replay(format: Format, seed: int, number: int, out: Path) -> int:
    """Read one input again, here, and say all."""
    seeds = format.seeds()
    files = make_input(format, seeds, seed, number)
    folder = out / f"{format.name.replace(' ', '-')}-{number}"
    lay(folder, files)
    print(f"the input is in {folder}")
    for name in files:
        if files[name] in ODD:
            print(f"{name}: {files[name]}")
    outcome, what = verdict(format.target, folder, whole=number < len(seeds))
    try:
        lay(folder, files)
        format.target(folder)
    except BaseException:
        traceback.print_exc()
    print(f"{outcome}: {what}")
    return outcome == "finding"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=2000, help="in all, dealt to the formats")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", action="append", help=f"only this one: {', '.join(f.name for f in FORMATS)}")
    parser.add_argument("--replay", type=int, metavar="NUMBER", help="one input of --format, in this process")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="a folder for findings")
    options = parser.parse_args()
    names = [f.name for f in FORMATS]
    if unknown := [n for n in options.format or [] if n not in names]:
        parser.error(f"no format {unknown[0]!r}; there are {', '.join(names)}")
    formats = [f for f in FORMATS if not options.format or f.name in options.format]
    torch.set_num_threads(1)
    _native.set_num_threads(1)
    if options.replay is not None:
        if len(formats) != 1:
            parser.error("--replay needs one --format")
        return replay(formats[0], options.seed, options.replay, options.out)

    seen: Counter[str] = Counter()

    def tell(finding: Finding) -> None:
        seen[finding.kind] += 1
        if seen[finding.kind] == 1:
            print(f"[{finding.room}] --format {finding.format!r} --replay {finding.number}: {finding.what}", flush=True)

    begin = time.monotonic()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        tallies = campaign(
            formats, options.inputs, seed=options.seed, jobs=options.jobs, folder=Path(folder), told=tell
        )
    print(table(tallies))
    inputs, seconds = sum(t.inputs for t in tallies), time.monotonic() - begin
    print(f"{seconds:.0f} s, {inputs / seconds:.0f} inputs a second with {options.jobs} processes, seed {options.seed}")
    if not seen:
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    by_kind: dict[str, Finding] = {}
    for t in tallies:
        seeds = t.format.seeds()
        for finding in t.findings:
            if by_kind.setdefault(finding.kind, finding) is finding:
                name = f"{finding.format.replace(' ', '-')}-{finding.number}"
                lay(options.out / name, make_input(t.format, seeds, options.seed, finding.number))
    lines = [f"{f.room}\t{f.format}\t{f.number}\t{seen[kind]}\t{f.what}\n" for kind, f in sorted(by_kind.items())]
    (options.out / "findings.tsv").write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
    print(f"{len(by_kind)} kinds of findings, with their inputs, are in {options.out}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
