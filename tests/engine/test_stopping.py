"""How ranks agree to stop."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.launch import environment
from helpers.runs import recipe_of

from vdengine.engine.stopping import Stopping
from vdengine.recipe import to_toml

CPU = torch.device("cpu")


def test_ranks_agree_on_one_signal():
    """Guards against ranks that stop at different steps: all see the same sum."""
    ranks = [Stopping(CPU, lag=False) for _ in range(3)]
    ranks[1].ask(signal.SIGUSR1)
    total = sum(rank.flags(failed=False) for rank in ranks)
    for rank in ranks:
        rank.agree(total)
    assert [rank.signal for rank in ranks] == [signal.SIGUSR1] * 3 and not ranks[0].failed


def test_different_signals_and_a_failed_save():
    """Guards the exit code: the first of the list that any rank has had, the same on all."""
    ranks = [Stopping(CPU, lag=False) for _ in range(2)]
    ranks[0].ask(signal.SIGINT)
    ranks[1].ask(signal.SIGTERM)
    total = ranks[0].flags(failed=True) + ranks[1].flags(failed=False)
    for rank in ranks:
        rank.agree(total)
    assert {rank.signal for rank in ranks} == {signal.SIGTERM} and all(rank.failed for rank in ranks)


def test_on_a_gpu_it_is_known_a_step_later():
    """Guards the host's lead on a GPU: what is looked at is the step before, on every rank."""
    stopping = Stopping(CPU, lag=True)
    stopping.ask(signal.SIGTERM)
    stopping.agree(stopping.flags(failed=False))
    assert stopping.signal is None
    stopping.agree(stopping.flags(failed=False))
    assert stopping.signal == signal.SIGTERM


def test_other_signals_are_refused():
    """Guards an embedding program's mistake."""
    with pytest.raises(ValueError, match="allowed are SIGTERM, SIGUSR1, SIGINT"):
        Stopping(CPU, lag=False).ask(signal.SIGHUP)


@pytest.fixture
def recipe(tmp_path, tiny_models, data) -> Path:
    """A recipe of far more steps than a test waits for."""
    r = recipe_of("sft", tmp_path, str(tiny_models["qwen3"]), str(data))
    r.run.steps, r.probes.every, r.checkpoint.export = 100_000, 0, False
    r.optimizer.schedule, r.checkpoint.every = "constant", 5
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(r))
    return path


class Running:
    """A run of a recipe in processes of its own, up to its third step."""

    def __init__(self, recipe: Path, ranks: int) -> None:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
        self.output = recipe.with_suffix(".out")
        self.process = subprocess.Popen(
            [sys.executable, *launcher, "-m", "vdengine.train", str(recipe)],
            stdout=self.output.open("w"), stderr=subprocess.STDOUT, env=environment(OMP_NUM_THREADS="1"),
        )  # fmt: skip
        self.metrics = recipe.parent / "sft" / "metrics.jsonl"
        while len(self.steps()) < 3:
            assert self.process.poll() is None, self.output.read_text()
            time.sleep(0.05)

    def steps(self) -> list[int]:
        lines = self.metrics.read_bytes().split(b"\n")[:-1] if self.metrics.exists() else []
        return [json.loads(line)["step"] for line in lines]

    def rank(self, rank: int) -> int:
        """Its process id."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                    if parent == self.process.pid and f"RANK={rank}".encode() in (
                        (entry / "environ").read_bytes().split(b"\0")
                    ):
                        return int(entry.name)
                except (OSError, IndexError):
                    continue
        raise AssertionError(f"no rank {rank}")

    def end(self, seconds: float = 60) -> tuple[int, str]:
        status = self.process.wait(seconds)
        return status, self.output.read_text()


def newest(recipe: Path) -> int:
    return max(int(p.name.removeprefix("step-")) for p in (recipe.parent / "sft" / "checkpoints").glob("step-??????"))


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(recipe, signum):
    """Guards a scheduler's warning and Ctrl-C: the step is finished and saved, one line says how to resume, and the
    exit code tells a scheduler which signal it was."""
    run = Running(recipe, 1)
    run.process.send_signal(signum)
    status, output = run.end()
    assert status == 128 + signum, output
    step = run.steps()[-1]
    assert newest(recipe) == step and f"{signum.name}: stopped after step {step} of 100000, and saved" in output
    assert f"vdengine train {recipe}" in output and "Traceback" not in output


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds ranks through /proc")
@pytest.mark.parametrize("whom", ["torchrun", "one rank"])
def test_two_ranks_stop_at_the_same_step(recipe, whom):
    """Guards a job of several ranks: whether the launcher or one rank alone is told, all save the same step."""
    run = Running(recipe, 2)
    os.kill(run.process.pid if whom == "torchrun" else run.rank(1), signal.SIGTERM)
    status, output = run.end()
    assert status != 0
    step = run.steps()[-1]
    assert newest(recipe) == step and f"SIGTERM: stopped after step {step} of 100000, and saved" in output
    if whom == "one rank":
        assert "exitcode  : 143" in output  # torchrun's own is its own


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds ranks through /proc")
def test_a_killed_rank_ends_the_job(recipe):
    """Guards the others of a job against waiting for a dead rank: it ends within 15 seconds, one line says what
    happened, and torchrun names the rank."""
    run = Running(recipe, 2)
    os.kill(run.rank(1), signal.SIGKILL)
    status, output = run.end(15)
    assert status != 0
    cause = output[output.index("Root Cause") :]
    assert "rank      : 1" in cause and "SIGKILL" in cause
    assert "error (rank 0): another rank has ended" in output
