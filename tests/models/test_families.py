"""Every row of the table against transformers; a model's config, read from a folder and written to one.

The first part is parametrised over the table: a new family is tested by its row alone. Rounding is counted as in
`test_transformer`, in units of EPS = 2^-23 of the largest value.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.fuzzing import change_value, read_or_refused
from helpers.tiny import family_configs, tiny_config
from helpers.weights import one_line, same_weights

import vdengine as vd
from vdengine.models.families import (
    FAMILIES,
    LinearScaling,
    Llama3Scaling,
    Rope,
    YarnScaling,
    expected_shapes,
)
from vdengine.models.generate import Sampling, generate
from vdengine.models.hf_config import config_from_hf, config_to_hf
from vdengine.models.transformer import Transformer
from vdengine.models.weights import open_weights

EPS = 2.0**-23
CONFIGS = family_configs()

# ---------------------------------------------------------------------------------------- every row of the table


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    """(transformers' model, ours) with the same weights, of each config of each family."""
    pytest.importorskip("transformers")
    from helpers.peers import hf_of, ours

    config = CONFIGS[request.param]
    hf = hf_of(config)
    model = ours(hf, tmp_path_factory.mktemp("weights") / "m")
    assert model.config == config  # what transformers understood and wrote is what was meant
    return hf, model


@pytest.fixture(scope="module")
def trees():
    """Longer than the window and than the positions that the scalings know; prompts that a branch sees the end of."""
    from helpers.peers import random_ids

    g = torch.Generator().manual_seed(1)
    vocab = CONFIGS["llama"].vocab_size
    shapes = [(40, [13, 7, 1]), (5, [50]), (1, [3, 20]), (12, [9, 10])]
    return [vd.Tree(random_ids(p, g, vocab), [random_ids(b, g, vocab) for b in bs]) for p, bs in shapes]


def gradients(model, logp):
    """Of a signed sum of the log-probs, a third of which does not count."""
    upstream = torch.randn(len(logp), generator=torch.Generator().manual_seed(2))
    upstream[::3] = 0.0
    model.zero_grad()
    (logp * upstream).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_log_probs_and_gradients_equal_transformers(pair, trees):
    """Guards the row of a family: biases, norms and their place, windows in trees, rotary embeddings, activation,
    scales."""
    from helpers.peers import hf_logp

    hf, model = pair
    logp = model(vd.pack(trees)).logp
    expected = hf_logp(hf, trees)
    assert (logp - expected).abs().max() < 1e-4
    got, theirs = gradients(model, logp), gradients(hf, expected)
    assert got.keys() == theirs.keys()
    for name, g in got.items():
        assert (g - theirs[name]).abs().max() <= 128 * EPS * theirs[name].abs().max(), name


def test_what_a_row_says_matters(pair, trees):
    """Guards the test above: without the window, or with one key more, with one rotary embedding for all layers,
    without its scaling, or with another scale of the scores, these trees have other log-probs."""
    _, model = pair
    changes = {}
    c = model.config
    if c.sliding_window is not None:
        changes["wider"] = {"sliding_window": c.sliding_window + 1}
        changes["full"] = {"sliding_window": None, "layer_types": None, "local_rope_theta": None}
    if c.layer_types is not None:
        changes["all"] = {"layer_types": None}
    if c.local_rope_theta is not None:
        changes["one rope"] = {"local_rope_theta": None}
    if c.query_pre_attn_scalar is not None:
        changes["scale"] = {"query_pre_attn_scalar": None}
    changes["scaling"] = {"rope_scaling": None}
    with torch.no_grad():
        expected = model(vd.pack(trees)).logp
        for name, change in changes.items():
            other = Transformer(replace(c, **change))
            other.load_state_dict(model.state_dict())
            assert (other(vd.pack(trees)).logp - expected).abs().max() > 1e-3, name


def test_export_opens_in_transformers_and_here(pair, trees, tmp_path):
    """Guards an export that transformers reads as another model, or that does not come back bit by bit."""
    transformers = pytest.importorskip("transformers")
    hf, model = pair
    vd.save_model(model, None, tmp_path / "out")
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()) and type(theirs) is type(hf)
    ids = torch.tensor([trees[0].prompt])
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, hf(ids).logits)
    again = vd.load_model(str(tmp_path / "out"))
    assert again.config == model.config
    same_weights(again, model.state_dict())
    for key in ("num_parameters", "flops"):
        assert getattr(again.config, key) == getattr(model.config, key)
    assert model.config.num_parameters == sum(p.numel() for p in hf.parameters())


def test_greedy_equals_transformers(pair):
    """Guards decoding of each family: windows and rotary embeddings in the cache, biases, norms of whole rows."""
    from helpers.peers import random_ids

    hf, model = pair
    g = torch.Generator().manual_seed(3)
    prompts = [random_ids(n, g, model.config.vocab_size) for n in (1, 17, 30)]
    steps = 16
    got = generate(model, prompts, Sampling(max_tokens=steps, temperature=0), slots=2)
    hf.generation_config.eos_token_id = None
    for prompt, (completion,) in zip(prompts, got, strict=True):
        ids = torch.tensor(
            [prompt]
        )  # all of it counts: without a mask transformers passes over tokens like the padding
        out = hf.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=steps, pad_token_id=0
        )
        assert completion.tokens == out[0, len(prompt) :].tolist()
    trees = [vd.Tree(p, [c.tokens]) for p, (c,) in zip(prompts, got, strict=True)]
    with torch.no_grad():
        expected = model(vd.pack(trees)).logp
    assert (torch.tensor([x for (c,) in got for x in c.logp]) - expected).abs().max() <= 64 * EPS * expected.abs().max()


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_other_backends_sample_the_same(kind, backend, tmp_path):
    """Guards a window, or a scale of the scores, that one backend of decoding passes over."""
    from helpers.tiny import fill

    model = fill(Transformer(CONFIGS[kind]))
    prompts, sampling = [list(range(20)), [5]], Sampling(max_tokens=4, temperature=0)
    got = generate(model, prompts, sampling, backend=backend)
    expected = generate(model, prompts, sampling)
    for a, b in zip(got, expected, strict=True):
        assert a[0].tokens == b[0].tokens
        assert max(abs(x - y) for x, y in zip(a[0].logp, b[0].logp, strict=True)) < 64 * EPS * 10


@pytest.mark.parametrize("kind", FAMILIES)
def test_reward_model_equals_transformers(kind, trees, tmp_path):
    """Guards reward heads of each family, in both directions."""
    transformers = pytest.importorskip("transformers")
    from helpers.peers import hf_of, ours

    config = replace(CONFIGS[kind], head="scalar")
    hf = hf_of(config)
    model = ours(hf, tmp_path / "m")
    assert model.config == config
    row = trees[0].prompt
    vd.save_model(model, None, tmp_path / "out")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        got = model(vd.pack([vd.Tree(row[:-3], [row[-3:]])])).values[-1]
        expected = hf(torch.tensor([row])).logits[0, 0]
        assert abs(got - expected) < 1e-4
        assert again(torch.tensor([row])).logits[0, 0] == expected


@pytest.mark.parametrize("kind", FAMILIES)
def test_bf16_noise_is_no_worse_than_transformers(kind, trees, tmp_path):
    """Guards an avoidable rounding in bf16: of 1 + weight, of a bias, of the scale of embeddings that is not theirs.
    A quarter above transformers' own noise, as in `test_transformer`."""
    transformers = pytest.importorskip("transformers")
    from helpers.peers import hf_logp, hf_of, ours

    model = ours(hf_of(CONFIGS[kind]), tmp_path / "m")
    vd.save_model(model, None, tmp_path / "bf16", dtype=torch.bfloat16)
    exact, half = (vd.load_model(str(tmp_path / "bf16"), dtype=d) for d in (torch.float32, torch.bfloat16))
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "bf16", dtype=torch.bfloat16)
    with torch.no_grad():
        expected = exact(vd.pack(trees)).logp
        noise, theirs = (
            (logp - expected).square().mean().sqrt() for logp in (half(vd.pack(trees)).logp, hf_logp(hf, trees))
        )
    assert noise <= 1.25 * theirs


@pytest.mark.parametrize("kind", FAMILIES)
def test_activation_checkpointing_is_bitwise(kind, trees):
    """Guards recomputation in blocks of another shape."""
    from helpers.tiny import fill

    model = fill(Transformer(CONFIGS[kind]))
    expected = gradients(model, model(vd.pack(trees)).logp)
    for mode in ("selective", "full"):
        for block in model.blocks:
            block.activation_checkpoint = mode
        got = gradients(model, model(vd.pack(trees)).logp)
        assert all(torch.equal(got[name], expected[name]) for name in expected)


# ---------------------------------------------------------------------------------------------------- config.json


@pytest.mark.parametrize("name", CONFIGS)
def test_config_round_trip_without_a_tokenizer(name):
    """Guards against a config key that is written in one way and read in another."""
    config = CONFIGS[name]
    raw = json.loads(json.dumps(config_to_hf(config, "float32", None)))
    assert config_from_hf(raw, "x") == config
    del raw["rope_parameters"]  # as transformers 4 writes it; it had no window's theta but Gemma's
    local = None if "rope_local_base_freq" not in raw else config.local_rope_theta
    scaled = FAMILIES[config.model_type].local_rope and config.sliding_window and local is None
    expected = replace(config, local_rope_theta=config.rope_theta if scaled else local)
    assert config_from_hf(raw, "x") == expected


def test_the_table_is_frozen():
    """Guards against a row that one part of a process changes under another."""
    with pytest.raises(TypeError):
        FAMILIES["llama"] = FAMILIES["qwen3"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        FAMILIES["llama"].qkv_bias = True


def test_parameters_and_flops_are_counted():
    """Guards plans of memory and time: counted by hand for the smallest and for the largest block."""
    c = CONFIGS["gemma3_text tied"]
    layer = 36 * 10 * (6 + 2 + 2) + 60 * 36 + 3 * 36 * 50
    assert c.num_parameters == 131 * 36 + 3 * (layer + 4 * 36 + 2 * 10) + 36
    assert c.flops == {"linear": 2 * 3 * layer, "quadratic": 4 * 3 * 6 * 10, "head": 2 * 131 * 36}
    c = replace(CONFIGS["qwen2"], head="scalar")
    assert c.num_parameters == 131 * 36 + 3 * (layer + 2 * 36 + 10 * 10) + 2 * 36
    assert list(expected_shapes(c))[-1] == "score.weight" and c.flops["head"] == 0


FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize("kind, change, window, layers", [
    ("llama", {"sliding_window": 5}, None, None),  # a key that the family does not read
    ("mistral", {"sliding_window": 5}, 5, None),
    ("mistral", {"sliding_window": None}, None, None),
    ("mistral", {}, 4096, None),  # what transformers takes for an absent key
    ("qwen2", {"use_sliding_window": False, "sliding_window": 5}, None, None),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}, 5, (FULL, SLIDING, SLIDING)),
    ("qwen3", {"use_sliding_window": True, "max_window_layers": 28}, None, None),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}, 5, None),
    ("olmo3", {"sliding_window": 5, "num_hidden_layers": 4}, 5, (SLIDING, SLIDING, SLIDING, FULL)),
    ("olmo3", {"sliding_window": 5, "layer_types": [FULL, FULL, FULL]}, None, None),
    ("gemma3_text", {"sliding_window_pattern": 2, "sliding_window": 7}, 7, (SLIDING, FULL, SLIDING)),
    ("gemma3_text", {}, 4096, None),  # three layers of which the sixth would be full
])  # fmt: skip
def test_which_layers_have_a_window(kind, change, window, layers):
    """Guards windows that a config states by other keys than its list of layers, against transformers' own reading."""
    transformers = pytest.importorskip("transformers")
    raw = config_to_hf(CONFIGS[f"{kind} tied"], "float32", None)
    for key in ("sliding_window", "use_sliding_window", "layer_types"):
        raw.pop(key, None)
    raw |= change
    config = config_from_hf(raw, "x")
    assert (config.sliding_window, config.layer_types) == (window, layers)
    theirs = transformers.AutoConfig.for_model(**raw)
    types = getattr(theirs, "layer_types", None)
    if kind != "llama":  # of which transformers reads neither
        n = config.num_hidden_layers
        if types is None:
            types = [FULL if theirs.sliding_window is None else SLIDING] * n
        assert [FULL if config.window(i) is None else SLIDING for i in range(n)] == types
        assert window is None or theirs.sliding_window == window


@pytest.mark.parametrize("kind, change, expected", [
    ("gemma3_text", {}, (Rope(1e6, None), Rope(1e4, None))),
    ("gemma3_text", {"rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear",
     "factor": 8.0}}, (Rope(5e5, LinearScaling(8.0)), Rope(2e4, None))),
    ("olmo3", {}, (Rope(5e5, None),)),
    ("olmo3", {"rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512}},
     (Rope(5e5, YarnScaling(8.0, 0.1 * math.log(8) + 1, 32.0, 1.0, 512)), Rope(5e5, None))),
    ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "mscale": 1.0,
     "mscale_all_dim": 0.5}, "rope_theta": 1e6},
     (Rope(1e6, YarnScaling(4.0, (0.1 * math.log(4) + 1) / (0.05 * math.log(4) + 1), 32.0, 1.0, 512)),)),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 3e4}},
     (Rope(3e4, LinearScaling(2.0)),)),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
     (Rope(1e4, Llama3Scaling(2.0, 1.0, 4.0, 4096)),)),
])  # fmt: skip
def test_rotary_embeddings_of_a_config(kind, change, expected):
    """Guards each place in which releases state theta and scaling, and what they leave out."""
    raw = config_to_hf(CONFIGS[kind], "float32", None)
    for key in ("rope_parameters", "rope_theta", "rope_scaling", "rope_local_base_freq"):
        raw.pop(key, None)
    assert config_from_hf(raw | change, "x").ropes == expected


@pytest.fixture
def folder(tmp_path, tiny_models) -> Path:
    return Path(shutil.copytree(tiny_models["qwen3"], tmp_path / "m"))


@pytest.mark.parametrize("kind, change, reason", [
    ("llama", {"model_type": "mamba"}, "model_type = \"mamba\" is not supported; supported: llama, qwen2, qwen3, "),
    ("llama", {"architectures": ["LlamaForTokenClassification"]}, "architectures"),
    ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "num_labels"),
    ("llama", {"attention_bias": True}, "attention_bias"),
    ("llama", {"mlp_bias": True}, "mlp_bias"),
    ("llama", {"use_sliding_window": True}, "use_sliding_window = true is not supported; LlamaForCausalLM has full"),
    ("olmo2", {"layer_types": [FULL, SLIDING, FULL]}, "layer_types"),
    ("qwen3", {"layer_types": [FULL, SLIDING]}, "a list of num_hidden_layers = 3 names is needed"),
    ("qwen3", {"layer_types": [FULL, SLIDING, FULL]}, "without a sliding_window .and use_sliding_window."),
    ("qwen3", {"layer_types": [FULL, FULL, "chunked_attention"]}, "layer_types = \"chunked_attention\""),
    ("mistral", {"sliding_window": None, "layer_types": [SLIDING, FULL, FULL]}, "layer_types"),
    ("mistral", {"sliding_window": 0}, "sliding_window"),
    ("olmo3", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_parameters"),
    ("olmo3", {"rope_parameters": {SLIDING: {"rope_type": "linear", "factor": 2.0}}}, "rope_type = \"linear\""),
    ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0 is not supported; only null"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma3_text", {"hidden_activation": "gelu"}, "hidden_activation = \"gelu\" is not supported; only \"gelu_py"),
    ("gemma3_text", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type = \"dynamic\" is not supported; suppor"),
    ("qwen3", {"rope_parameters": {"rope_type": "longrope", "factor": 4.0}}, "default, linear, llama3, yarn"),
    ("llama", {"rope_scaling": {"rope_type": "linear"}}, "factor"),
    ("qwen2", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": False}}, "truncate"),
    ("qwen2", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 1, "beta_slow": 2}}, "beta_fast"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
    ("llama", {"rope_scaling": [1]}, "rope_scaling"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ("llama", {"hidden_size": "40"}, "hidden_size"),
    ("llama", {"vocab_size": None}, "vocab_size"),
    ("llama", {"num_key_value_heads": 4}, "num_key_value_heads"),
    ("llama", {"head_dim": 15}, "head_dim"),
    ("llama", {"rms_norm_eps": -1}, "rms_norm_eps"),
    ("llama", {"tie_word_embeddings": "false"}, "tie_word_embeddings = \"false\" is not supported; true or false"),
    ("llama", {"tie_word_embeddings": 0}, "tie_word_embeddings"),
    ("llama", {"tie_word_embeddings": [True]}, "tie_word_embeddings"),
    ("llama", {"vocab_size": 259.0}, "vocab_size"),
    ("llama", {"vocab_size": True}, "vocab_size"),
    ("llama", {"hidden_size": 10**30}, "hidden_size"),
    ("llama", {"hidden_size": [40]}, "hidden_size"),
    ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ("llama", {"rope_theta": 10**400}, "rope_theta"),
    ("llama", {"architectures": "LlamaForCausalLM"}, "architectures"),
    ("llama", {"architectures": ["LlamaModel"]}, "architectures"),
    ("llama", {"attention_bias": "false"}, "attention_bias"),
    ("llama", {"attention_bias": 0}, "attention_bias"),
    ("llama", {"mlp_bias": True}, "mlp_bias"),
    ("llama", {"logit_scale": 0.0625}, "logit_scale = 0.0625 is not supported; only 1"),
    ("llama", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("qwen3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ("llama", {"residual_multiplier": 0.2}, "residual_multiplier"),
    ("llama", {"num_local_experts": 8}, "num_local_experts"),
    ("llama", {"quantization": {"group_size": 64, "bits": 4}}, "quantization"),
    ("llama", {"attention_dropout": "0.1"}, "attention_dropout"),
    ("llama", {"rope_scaling": {"factor": 4.0}}, "factor"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 4.0}}, "rope_type"),
    ("llama", {"rope_scaling": {"rope_type": ["linear"], "factor": 4.0}}, "rope_type"),
    ("llama", {"rope_scaling": {"rope_type": "default", "mrope_section": [16, 24, 24]}}, "mrope_section"),
    ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, "full_attention"),
    ("llama", {"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 1e4}, "rope_theta .* different values"),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_scaling": {
        "rope_type": "linear", "factor": 4.0}}, "rope_parameters and rope_scaling differ"),
    ("qwen2", {"original_max_position_embeddings": 128, "rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}, "its rotary embedding says 64"),
    ("qwen3", {"max_window_layers": -1, "use_sliding_window": True, "sliding_window": 8}, "max_window_layers"),
    ("qwen3", {"use_sliding_window": "false", "sliding_window": 8}, "use_sliding_window"),
])  # fmt: skip
def test_unsupported_configs_are_refused(kind, change, reason):
    """Guards against a config key that changes the numbers and is passed over."""
    raw = config_to_hf(tiny_config(kind), "float32", None) | {"rope_parameters": None} | change
    with one_line(reason) as error:
        config_from_hf(raw, "m/config.json")
    assert str(error.value).startswith("m/config.json: ")


def test_numbers_of_labels():
    """Guards against a classifier of two labels read as a reward model, or a number that contradicts the labels."""
    raw = config_to_hf(replace(tiny_config("qwen3"), head="scalar"), "float32", None)
    assert config_from_hf(raw | {"num_labels": 1}, "m").head == "scalar"
    for change in ({"id2label": None}, {"num_labels": 2}, {"num_labels": True}, {"id2label": {"0": "a", "1": "b"}}):
        with one_line("num_labels"):
            config_from_hf(raw | change, "m")


def test_dropout_is_said():
    """Guards against a dropout that transformers would train with and this engine does not, without a word."""
    raw = config_to_hf(tiny_config("llama"), "float32", None)
    with pytest.warns(UserWarning, match="attention_dropout = 0.1: nothing is dropped out here"):
        config_from_hf(raw | {"attention_dropout": 0.1}, "m")


@pytest.mark.parametrize("seed", range(2))
def test_any_config_is_read_or_refused(seed):
    """Guards the kind: whatever the values are, the end is a config whose numbers are in range, or one line."""
    rng = random.Random(seed)
    raws = [config_to_hf(config, "float32", None) for config in CONFIGS.values()]
    for _ in range(400):
        raw = change_value(rng, copy.deepcopy(rng.choice(raws)))
        read_or_refused(lambda raw=raw: expected_shapes(config_from_hf(raw, "m")))


def test_broken_config_file(folder):
    """Guards against a traceback from a config.json that is not one."""
    (folder / "config.json").write_text('{\n"a": 1,\n}')
    with one_line("config.json: line 3: broken JSON"):
        open_weights(str(folder))
    (folder / "config.json").unlink()
    with one_line("config.json: no such file"):
        open_weights(str(folder))
