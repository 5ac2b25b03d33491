"""The tuner without a GPU: what it writes, what it tries, and that it cannot write a launch whose result is wrong."""

import json

import pytest
import torch

from vdengine.kernels import _triton, table, tune

CPU = torch.device("cpu")


def test_the_committed_table_is_the_rule_where_it_was_not_measured():
    """A row edited by hand would be a launch that nobody measured."""
    rows = {entry[:4]: entry for entry in table.table()}
    assert len(rows) == len(table.table()), "two rows for one shape"
    for entry in tune.by_rule():
        assert entry[:4] in rows, f"no row for {entry[:4]}: python -m vdengine.kernels.tune"
    for entry in rows.values():
        if entry.measured is None:
            assert (entry.block, entry.warps) == table.rule(entry.kernel, entry.width), entry


def test_rule_writes_a_table_that_reads_back(tmp_path):
    out = tmp_path / "table.json"
    assert tune.main(["--rule", "--out", str(out), "--kernels", "head,rope"]) == 0
    found = [table.Entry(**row) for row in json.loads(out.read_text())]
    assert {e.kernel for e in found} == {"head", "rope"} and {e.arch for e in found} == set(tune.ARCHITECTURES)
    assert all(e.measured is None for e in found)
    assert tune.to_json(found) == out.read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a CUDA device")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path, capsys):
    assert tune.main(["--out", str(tmp_path / "table.json")]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_unknown_kernel_is_named(capsys):
    with pytest.raises(SystemExit):
        tune.main(["--rule", "--kernels", "heads"])
    assert "'heads'" in capsys.readouterr().err


def test_trying_replaces_the_table_and_gives_it_back():
    """A candidate that did not reach `launch` would time the default again and again."""
    usual = table.launch("swiglu", torch.bfloat16, 3072, 90)
    with table.trying("swiglu", table.Launch(64, 1)):
        assert table.launch("swiglu", torch.bfloat16, 3072, 90) == (64, 1)
        assert table.launch("gather", torch.bfloat16, 3072, 90) == table.rule("gather", 3072)
    assert table.launch("swiglu", torch.bfloat16, 3072, 90) == usual


@pytest.mark.slow
@pytest.mark.skipif(not _triton.INTERPRETED, reason="needs Triton's interpreter")
@pytest.mark.parametrize(
    "kernel, width",
    [
        ("head", 2048),
        ("gather", 256),
        ("rms_norm", 64),
        ("rope", 64),
        ("swiglu", 256),
        ("decode", 64),
        ("sample", 2048),
    ],
)
def test_every_kernel_can_be_searched(kernel, width, monkeypatch):
    """Its case runs, its candidates agree, and the one that the clock favours is chosen."""
    (case,) = tune.cases([kernel], CPU, num_rows=8, only=[width])
    usual = table.rule(kernel, width)
    candidates = case.candidates[:2]
    favoured = candidates[-1]
    asked = []

    def clock(variants, samples, device):
        asked.extend(variants)
        for variant in variants.values():
            variant(lambda: None)
        return {n: [[1.0 if n == f"{favoured.block} {favoured.warps}" else 2.0]] * samples for n in variants}

    monkeypatch.setattr(tune, "interleaved", clock)
    assert tune.search(case._replace(candidates=candidates), CPU) == (favoured, 1.0)
    assert set(asked) == {f"{at.block} {at.warps}" for at in (usual, *candidates)}
    assert case.num_bytes > 0


def test_a_candidate_with_another_result_is_an_error():
    """Else the fastest launch could be one that leaves out part of the work."""

    def run():
        return (torch.full((4,), float(table.launch("head", torch.float32, 64, 0).block)),)

    case = tune.Case("head", torch.float32, 64, run, 1, [table.Launch(32, 1)])
    with pytest.raises(RuntimeError, match="off from"):
        tune.search(case, CPU)


def test_interleaved_times_parts_and_rotates():
    """Always the same order would give one variant the warm chip."""
    calls = []

    def parts(mark):
        calls.append("a")
        mark()

    found = tune.interleaved({"a": parts, "b": lambda mark: calls.append("b")}, 4, CPU)
    assert [len(t) for t in found["a"]] == [2] * 4 and [len(t) for t in found["b"]] == [1] * 4
    assert calls == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert all(s >= 0 for t in found.values() for sample in t for s in sample)
