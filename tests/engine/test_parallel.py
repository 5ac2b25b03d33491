"""Switches of torch that a run sets, and sets back."""

import os

import pytest
import torch


def test_a_backward_is_strict_only_while_it_lasts():
    """Guards attention's ordered backward on CUDA, and everything else: the switch is set back, after an error too,
    and where nobody has asked for warnings nothing is switched."""
    from vdengine.engine.parallel import ordered

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
    from vdengine.engine import parallel

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
