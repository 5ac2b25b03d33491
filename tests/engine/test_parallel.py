"""Sharding that keeps weights; and what of the process a run starts and switches on, and ends."""

import os

import pytest
import torch
from helpers.launch import torchrun
from torch.distributed.tensor import DTensor

import vdengine as vd
from vdengine.engine import parallel
from vdengine.models.lora import adapter_parameters
from vdengine.recipe import ParallelKeys


def test_a_backward_is_strict_only_while_it_lasts():
    """Guards attention's ordered backward on CUDA, and everything else: the switch is set back, after an error too,
    and where nobody has asked for warnings nothing is switched."""
    ordered = parallel.ordered

    def state() -> tuple[bool, bool]:
        on = torch.are_deterministic_algorithms_enabled()
        return on, torch.is_deterministic_algorithms_warn_only_enabled()

    with ordered(True):
        assert state() == (False, False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with ordered(False):
            assert state() == (True, True)
        with pytest.raises(KeyError), ordered(True):
            assert state() == (True, False)
            raise KeyError
        assert state() == (True, True)
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_allocators_setting(monkeypatch):
    """Guards memory on CUDA: segments grow, unless the user has decided or CUDA runs already."""
    made = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", made.append)
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    parallel.expand_segments()
    assert made == []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512")
    parallel.expand_segments()
    assert made == []
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    parallel.expand_segments()
    assert made == ["expandable_segments:True"] and os.environ["PYTORCH_ALLOC_CONF"] == made[0]
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")


def test_shard_keeps_weights(tiny_models):
    """Guards loops of one's own: a loaded model keeps its weights, its frozen part and its log-probs, tied or not, in
    a group of this process alone; and learns."""
    try:
        for kind in ("llama", "qwen3"):
            plain, model = (vd.load_model(str(tiny_models[kind])) for _ in range(2))
            model.model.embed_tokens.weight.requires_grad_(False)
            assert vd.shard(model) is model
            for (name, a), (other, b) in zip(plain.named_parameters(), model.named_parameters(), strict=True):
                assert name == other and isinstance(b, DTensor) and torch.equal(a, b.full_tensor())
                assert b.requires_grad == (name != "model.embed_tokens.weight")
            pack = vd.pack([vd.Tree([1, 2, 3], [[4, 5], [6]])])
            assert torch.equal(plain(pack).logp, model(pack).logp)
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
            (-model(pack).logp.sum()).backward()
            optimizer.step()
            assert model(pack).logp.sum() > plain(pack).logp.sum()
    finally:
        torch.distributed.destroy_process_group()


def test_shard_in_bf16_keeps_the_rotary_tables(tiny_models):
    """Guards the policy: FSDP2's own casts a forward's inputs, and the angles of the rotary embedding with them. In
    bf16 over fp32 weights the log-probs are those of the bf16 model, to the bit."""
    try:
        half = vd.load_model(str(tiny_models["qwen3"]), dtype=torch.bfloat16)
        model = vd.shard(vd.load_model(str(tiny_models["qwen3"])), dtype=torch.bfloat16)
        pack = vd.pack([vd.Tree(list(range(1, 60)), [[4, 5], [6]])])
        assert torch.equal(half(pack).logp, model(pack).logp)
        assert model.model.norm.weight.dtype == torch.float32
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_shard_of_a_model_with_adapters(tiny_models, dtype):
    """Guards fp32 adapters beside frozen weights of another dtype in one unit, a forward without them between forward
    and backward, and adapters that are added too late: bits of log-probs and gradients are those of the plain model."""
    pack = vd.pack([vd.Tree([1, 2, 3], [[4, 5], [6]], id=7)])
    model = vd.load_model(str(tiny_models["qwen3"]), dtype=dtype)
    vd.add_lora(model, vd.Lora(rank=4, dropout=0.2))
    factors = adapter_parameters(model)
    with torch.no_grad():
        for factor in factors.values():
            factor.fill_(0.05)
    plain = model(pack, dropout=(0, 1)).logp
    plain.sum().backward()
    expected = {name: factor.grad for name, factor in factors.items()}
    model.zero_grad()
    try:
        vd.shard(model)
        logp = model(pack, dropout=(0, 1)).logp
        with torch.no_grad(), model.adapter_off():
            model(pack)
        logp.sum().backward()
        assert torch.equal(logp, plain)
        for name, factor in adapter_parameters(model).items():
            assert factor.dtype == torch.float32 and torch.equal(factor.grad.full_tensor(), expected[name])
        other = vd.shard(vd.load_model(str(tiny_models["qwen3"])))
        with pytest.raises(vd.InputError, match="add_lora: the model is sharded already"):
            vd.add_lora(other, vd.Lora())
    finally:
        torch.distributed.destroy_process_group()


def test_no_call_loses_weights(tiny_models):
    """Guards against sharding that wipes a loaded model, or is done twice, or finds no weights at all."""
    model = vd.load_model(str(tiny_models["llama"]))
    world = parallel.start_world(ParallelKeys(), deterministic=True)
    try:
        with pytest.raises(ValueError, match="the model has weights, which would be lost; `shard` keeps them"):
            parallel.shard_model(model, world, dtype=torch.float32, activation_checkpoint="none")
        with pytest.raises(vd.InputError, match="is on the meta device: load the weights first"):
            vd.shard(vd.Transformer(model.config).to("meta"))
        with pytest.raises(vd.InputError, match="activation_checkpoint = 'some' is not known; allowed: none, sel"):
            vd.shard(model, activation_checkpoint="some")
        with pytest.raises(vd.InputError, match="gradients = 'product' is not known; allowed: mean, sum"):
            vd.shard(model, gradients="product")
        vd.shard(model)
        with pytest.raises(vd.InputError, match="is sharded already"):
            vd.shard(model)
    finally:
        world.close()
    assert not torch.distributed.is_initialized()


def test_what_the_program_has_started_is_left_alone():
    """Guards an embedding program: its own process group, and its own switches of torch, outlive every World."""
    dist = torch.distributed
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        parallel.start_world(ParallelKeys(), deterministic=True).close()
        assert dist.is_initialized()
        with pytest.raises(vd.InputError, match="replicate = 2 x shard = all does not make the 1 ranks"):
            parallel.start_world(ParallelKeys(replicate=2), deterministic=True)
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()
    with pytest.raises(vd.InputError, match="replicate = 2 x shard = all does not make the 1 ranks"):
        parallel.start_world(ParallelKeys(replicate=2), deterministic=True)
    assert not dist.is_initialized()


def test_the_last_one_sets_the_switches_back():
    """Guards `use_deterministic_algorithms` on CUDA (its counting, which runs here): it is on while any of several
    Worlds needs it, in whatever order they close, and what the program had set itself stays."""
    dist, switch = torch.distributed, torch.utils.deterministic

    def state() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), switch.fill_uninitialized_memory

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        users = parallel.Users.of(dist.group.WORLD)
        assert parallel.Users.of(dist.group.WORLD) is users and state() == (False, True)
        first, second, third = (users.join(False, deterministic) for deterministic in (True, True, False))
        assert (first, second, third) == (True, True, False) and state() == (True, False)
        users.leave(first)
        users.leave(third)
        assert state() == (True, False)
        users.leave(second)
        assert state() == (False, True)
        torch.use_deterministic_algorithms(True)
        assert users.join(False, True) is False
        users.leave(False)
        assert torch.are_deterministic_algorithms_enabled() and dist.is_initialized()
    finally:
        torch.use_deterministic_algorithms(False)
        dist.destroy_process_group()


@pytest.mark.slow
def test_groups_one_after_another():
    """Guards Trainers in turn under torchrun: a rank that is early at the second group finds the addresses of the first
    in the launcher's store, and would wait for ranks that have left them."""
    torchrun(2, "two_groups", seconds=120)
