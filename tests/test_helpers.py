"""What tests rely on without seeing it: that one scenario's failure is its own, and that processes end."""

from __future__ import annotations

import os

import pytest
import torch
from helpers import scenarios
from helpers.launch import Ended, launch
from helpers.runs import GROUPS, SCENARIOS, failure_file

NAMES = GROUPS["bits"][:4]


def launches(monkeypatch, tmp_path, outcome) -> tuple[scenarios.Scenarios, list[list[str]]]:
    """Scenarios that end as `outcome(name)` says: "ok", "raises", "dies" (without a word), "import" (before any)."""
    calls: list[list[str]] = []

    def fake(ranks, module, out, model, data, *names) -> Ended:
        calls.append(list(names))
        for name in names:
            if outcome(name) == "import":
                return Ended(1, "ImportError: no such name")
            (out / f"{name}.begun").touch()
            if outcome(name) == "raises":
                failure_file(out, name).write_text(f"rank 0\nKeyError: '{name}'\n")
            if outcome(name) != "ok":
                return Ended(1, f"the end of {name}")
            torch.save({"name": name}, out / f"{name}.pt")
        return Ended(0, "")

    monkeypatch.setattr(scenarios, "launch", fake)
    return scenarios.Scenarios(2, [*NAMES, *GROUPS["ppo"]], tmp_path, tmp_path, tmp_path), calls


def test_every_scenario_is_in_one_group() -> None:
    """Guards against a scenario that is never launched, or twice."""
    assert sorted(name for group in GROUPS.values() for name in group) == sorted(SCENARIOS)


@pytest.mark.parametrize(("how", "says"), [("raises", f"KeyError: '{NAMES[1]}'"), ("dies", f"the end of {NAMES[1]}")])
def test_a_failed_scenario_fails_alone(monkeypatch, tmp_path, how, says) -> None:
    """Guards the others of its group: those before it count, those behind it are launched again, once."""
    found, calls = launches(monkeypatch, tmp_path, lambda name: how if name == NAMES[1] else "ok")
    assert found[NAMES[3]]["name"] == NAMES[3] and found[NAMES[0]]["name"] == NAMES[0]
    with pytest.raises(pytest.fail.Exception, match=f"scenario {NAMES[1]} on 2 ranks: (.|\n)*{says}"):
        found[NAMES[1]]
    assert found[NAMES[2]]["name"] == NAMES[2] and calls == [list(NAMES), list(NAMES[2:])]
    assert found["ppo"]["name"] == "ppo" and calls[2:] == [list(GROUPS["ppo"])]


def test_what_fails_before_the_first_scenario_fails_all(monkeypatch, tmp_path) -> None:
    """Guards against a launch for each scenario where none can begin."""
    found, calls = launches(monkeypatch, tmp_path, lambda name: "import")
    for name in NAMES:
        with pytest.raises(pytest.fail.Exception, match="ImportError"):
            found[name]
    assert calls == [list(NAMES)]


@pytest.mark.slow
def test_a_launch_that_hangs_is_ended(tmp_path) -> None:
    """Guards against tests that wait for ever, and ranks that stay behind."""
    ended = launch(1, "workers", tmp_path / "pid", seconds=15)
    assert ended.status is None and "did not end in time" in str(ended)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
