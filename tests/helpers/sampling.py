"""Prompts to sample from; and what test_generate.py runs on two ranks: `torchrun ... -m helpers.sampling OUT MODEL`."""

import json
import sys
from pathlib import Path

import torch

import vdengine as vd
from helpers.workers import leave
from vdengine.errors import InputError
from vdengine.models.generate import BLOCK, Sampling, gather_model, generate
from vdengine.models.transformer import Transformer


def ids(n: int, seed: int = 0, vocab: int = 259) -> list[int]:
    return torch.randint(0, vocab, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


# no prefill, a tail alone, full blocks alone, both, and one that is longer than a pack of 32
PROMPTS = [ids(n, seed=n) for n in (1, 6, BLOCK + 1, 2 * BLOCK + 5, 2, 40)]
SHORT = Sampling(max_tokens=30, stop_ids=tuple(range(0, 259, 16)))  # ends after some 15 tokens, at 30 at the latest


def two_ranks(out: Path, source: str) -> None:
    import torch.distributed as dist

    from vdengine.engine.parallel import shard_model, start_world
    from vdengine.models.weights import load_into, open_weights
    from vdengine.recipe import ParallelKeys

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), start_world(ParallelKeys(), deterministic=True)
    weights = open_weights(source)
    with torch.device("meta"):
        model = Transformer(weights.config)
    shard_model(model, world, dtype=torch.float32, activation_checkpoint="none")
    load_into(model, weights)
    pack = vd.pack([vd.Tree(PROMPTS[3], [PROMPTS[1], PROMPTS[2]])])
    before = model(pack).logp.detach()

    mine = range(4) if rank == 0 else range(4, 6)
    options = {"samples": 2, "seed": 5, "prompt_ids": mine, "slots": 3 + rank, "prefill_tokens": 32}
    prompts = [PROMPTS[i] for i in mine]
    found = {"sharded": generate(model, prompts, SHORT, **options)}
    found["gathered"] = generate(gather_model(model, torch.float32), prompts, SHORT, **options)
    found["alone"] = generate(model, PROMPTS if rank == 0 else [], SHORT, samples=2, seed=5)
    try:
        generate(model, [[1], []] if rank == 0 else [[1]], SHORT)
    except InputError as error:
        found["error"] = str(error)
    found["same"] = torch.equal(before, model(pack).logp.detach())

    with torch.device("meta"):
        half = Transformer(weights.config)
    shard_model(half, world, dtype=torch.bfloat16, activation_checkpoint="none")  # of fp32 shards
    load_into(half, weights)
    found["half"] = generate(half, prompts, SHORT, **options)
    found["half gathered"] = generate(gather_model(half, torch.bfloat16), prompts, SHORT, **options)
    (out / f"{rank}.json").write_text(json.dumps(found))
    leave()


if __name__ == "__main__":
    two_ranks(Path(sys.argv[1]), sys.argv[2])
