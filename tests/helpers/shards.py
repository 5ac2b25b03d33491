"""A process of test_export.py, one of several ranks."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from helpers.workers import leave
from vdengine.errors import InputError
from vdengine.models.export import save_model
from vdengine.models.transformer import Transformer
from vdengine.models.weights import load_into, load_model, open_weights
from vdengine.text.tokenizer import load_tokenizer


def shard_worker(rank: int, ranks: int, folder: str, source: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init{ranks}", rank=rank, world_size=ranks)
    weights = open_weights(source)
    rows_read: list[int] = []
    read = weights.read
    weights.read = lambda n, a=0, b=None: rows_read.append((b or 0) - a) or read(n, a, b)  # type: ignore[method-assign]
    if ranks == 4:  # HSDP
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    else:
        mesh = init_device_mesh("cpu", (ranks,))
    with torch.device("meta"):
        model = Transformer(weights.config)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    if model.config.tie_word_embeddings:
        fully_shard([model.model.embed_tokens, model.lm_head], mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    load_into(model, weights)
    shards = mesh.size(-1)
    total = sum(weights.shape(n)[0] for n in weights.names)
    assert sum(rows_read) <= total / shards + shards * len(weights.names)  # its own rows, not all
    plain = load_model(source)
    for (name, parameter), (_, whole) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(parameter.full_tensor(), whole), name
    save_model(model, load_tokenizer(source), f"{folder}/out{ranks}")
    assert (Path(folder) / f"out{ranks}" / "config.json").exists()  # on every rank, when the call returns
    try:
        save_model(model, None, f"{folder}/taken{ranks}")
    except (InputError, OSError) as error:
        assert "mine.txt" in str(error)  # every rank, not only the writer
    else:
        raise AssertionError("no error")
    leave()
