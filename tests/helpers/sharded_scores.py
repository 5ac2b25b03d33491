"""Each of two ranks: models that FSDP2, DDP or DeepSpeed's ZeRO-3 have wrapped, trained in plain loops with and without
the callback's hooks."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from helpers.causal_lms import by_its_own_logits, causal_lm, sampled, small_panel, tokenizer
from helpers.workers import leave
from vdengine.drift.panel_log import DriftLog
from vdengine.errors import InputError
from vdengine.integrations.scorer import PanelScorer
from vdengine.integrations.transformers import DriftCallback

STEPS = 3
NATS = 64 * 2.0**-23 * 512  # see integrations/test_foreign.py


def batch(step: int, rank: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(10 * step + rank)
    return torch.randint(0, 256, (2, 17), generator=g)


def full(p: Any) -> torch.Tensor:
    whole = p.full_tensor() if hasattr(p, "full_tensor") else p
    return whole.detach().clone()


def loop(model: Any, update: Any, callback: DriftCallback | None, tok: Any) -> None:
    """A loop that calls a callback's hooks as `transformers.Trainer` does."""
    rank = dist.get_rank()
    args = SimpleNamespace(seed=0, learning_rate=1e-2, report_to=[], load_best_model_at_end=False)
    state = SimpleNamespace(global_step=0, max_steps=STEPS, best_model_checkpoint=None)

    def event(name: str) -> None:
        if callback is not None:
            getattr(callback, name)(args, state, None, model=model, processing_class=tok)

    model.train()
    event("on_train_begin")
    for step in range(STEPS):
        event("on_step_begin")
        tokens = batch(step, rank)
        update(model(input_ids=tokens, labels=tokens, use_cache=False).loss)
        state.global_step += 1
        event("on_step_end")
    event("on_train_end")


def fsdp2(kind: str) -> Any:
    from torch.distributed.fsdp import fully_shard

    model = causal_lm(kind)
    for layer in model.model.layers:
        fully_shard(layer)
    if not model.config.tie_word_embeddings:
        fully_shard(model.lm_head)
    return fully_shard(model)


def by_steps(model: Any) -> Any:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def update(loss: torch.Tensor) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return update


def trained(model: Any, callback: DriftCallback | None, tok: Any) -> list[torch.Tensor]:
    loop(model, by_steps(model), callback, tok)
    return [full(p) for p in model.parameters()]


def check_wrapped(make: Any, kind: str, folder: Path, tok: Any) -> None:
    """Bit-equal weights, and the last sample that of the gathered weights."""
    plain = trained(make(kind), None, tok)
    callback = DriftCallback(small_panel(), run=folder, every=2, tokens=1024)
    model = make(kind)
    scored = trained(model, callback, tok)
    assert all(torch.equal(a, b) for a, b in zip(plain, scored, strict=True)), kind
    alone = causal_lm(kind)
    with torch.no_grad():
        for p, value in zip(alone.parameters(), scored, strict=True):
            p.copy_(value)
    assert callback.sample is not None and callback.sample.step == STEPS
    own = sampled(callback.scorer)
    error = np.abs(callback.sample.logp[own] - by_its_own_logits(alone, small_panel(), tok)).max()
    assert error < NATS, (kind, error)
    if dist.get_rank() == 0:
        assert DriftLog.open(folder).steps.tolist() == [0, 2, 3]
    dist.barrier()


def ddp(kind: str) -> Any:
    return torch.nn.parallel.DistributedDataParallel(causal_lm(kind))


def check_uneven(folder: Path, tok: Any) -> None:
    """Panels of one pack (a rank has none), of three, and in rows; an error of one rank is one of all."""
    for probes, layout in ((1, "trees"), (5, "trees"), (1, "rows"), (5, "rows")):
        panel, model = small_panel(probes), fsdp2("qwen3")
        whole = by_its_own_logits(causal_lm("qwen3"), panel, tok)
        scorer = PanelScorer(panel, tok, controls=False, tokens=1024, layout=layout)
        assert np.abs(scorer.score(model, 0).logp - whole).max() < NATS, (probes, layout)
    taken = PanelScorer(small_panel(2), tok, folder / "taken", controls=False)
    taken.score(fsdp2("qwen3"), 0)
    again = PanelScorer(small_panel(2), tok, folder / "taken", controls=False)
    try:
        again.score(fsdp2("qwen3"), 1)
    except InputError as error:
        assert ("drift is already being written" if dist.get_rank() == 0 else "another rank") in str(error), error
    else:
        raise AssertionError("two wrote to one folder")
    try:
        taken.score(fsdp2("qwen3"), 0)
    except InputError as error:
        assert "steps must ascend" in str(error)
    else:
        raise AssertionError("a step went back")


def check_resumed(folder: Path, tok: Any) -> None:
    """Taken up again, every rank knows what rank 0 reads in the folder: without it, ranks would score controls or not,
    each as it thinks, and wait for each other. And a panel of its own on one rank is an error of all."""
    first = PanelScorer(small_panel(), tok, folder, tokens=1024)
    first.score(fsdp2("qwen3"), 0)
    first.close()
    again = PanelScorer(small_panel(), tok, folder, tokens=1024)
    again.open(5)
    sample = again.score(fsdp2("qwen3"), 5)
    assert np.isnan(sample.logp).any(), "controls are scored once"
    seen: list[Any] = [None, None]
    dist.all_gather_object(seen, (sample.logp.tobytes(), sample.live.scalars))
    assert seen[0] == seen[1] and any(abs(v) > 0 or v == 0 for v in sample.live.scalars.values())
    other = PanelScorer(small_panel(2 + 2 * dist.get_rank()), tok, controls=False)
    try:
        other.score(fsdp2("qwen3"), 0)
    except InputError as error:
        assert ("another panel" if dist.get_rank() else "another rank") in str(error), error
    else:
        raise AssertionError("ranks scored different panels")


def check_refused(tok: Any) -> None:
    """What cannot be scored rightly, by name."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import distribute_tensor
    from torch.distributed.tensor.placement_types import Shard

    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    model = causal_lm("qwen3")
    weight = model.model.layers[0].mlp.up_proj.weight
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(distribute_tensor(weight.data, mesh, [Shard(0)]))
    for wrapped, message in (
        (model, "sharded over the mesh dimension 'tp'.*give group="),
        (FullyShardedDataParallel(causal_lm("qwen3"), device_id=torch.device("cpu")), "FSDP1"),
    ):
        try:
            PanelScorer(small_panel(2), tok, controls=False).score(wrapped, 0)
        except InputError as error:
            import re

            assert re.search(message, str(error)), error
        else:
            raise AssertionError(message)


def zero3(folder: Path, tok: Any) -> None:
    """DeepSpeed's own ZeRO-3, with a batch size that it wants to know."""
    import deepspeed

    def engine(model: Any) -> Any:
        config = {
            "train_micro_batch_size_per_gpu": 2, "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}, "gradient_clipping": 0.0,
        }  # fmt: skip
        return deepspeed.initialize(
            model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2), config=config
        )[0]

    def result(callback: DriftCallback | None) -> list[torch.Tensor]:
        wrapped = engine(causal_lm("qwen3"))

        def update(loss: torch.Tensor) -> None:
            wrapped.backward(loss)
            wrapped.step()

        loop(wrapped, update, callback, tok)
        with deepspeed.zero.GatheredParameters(list(wrapped.module.parameters())):
            return [p.detach().clone() for p in wrapped.module.parameters()]

    plain = result(None)
    callback = DriftCallback(small_panel(), run=folder, every=2, tokens=1024)
    scored = result(callback)
    assert all(torch.equal(a, b) for a, b in zip(plain, scored, strict=True))
    alone = causal_lm("qwen3")
    with torch.no_grad():
        for p, value in zip(alone.parameters(), scored, strict=True):
            p.copy_(value)
    assert callback.sample is not None
    own = sampled(callback.scorer)
    assert np.abs(callback.sample.logp[own] - by_its_own_logits(alone, small_panel(), tok)).max() < NATS


def main(what: str, folder: str, source: str) -> None:
    tok, root = tokenizer(Path(source)), Path(folder)
    if what == "zero3":
        import deepspeed

        deepspeed.init_distributed("gloo")
        zero3(root / "zero3", tok)
    else:
        dist.init_process_group("gloo")
        for make, kind in ((fsdp2, "llama"), (fsdp2, "qwen3"), (ddp, "qwen3")):
            check_wrapped(make, kind, root / f"{make.__name__}-{kind}", tok)
        check_uneven(root, tok)
        check_resumed(root / "resumed", tok)
        check_refused(tok)
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
