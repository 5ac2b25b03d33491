"""SIGKILL in the middle of a run: what is resumed ends as if nothing had been. The short form of
benchmarks/kill_points.py."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from helpers.kills import KINDS, Kill, Outcome, Point, Servers, draw, draw_full
from helpers.run_contents import differences, unclocked

linux = pytest.mark.skipif(sys.platform != "linux", reason="forks, and looks into /proc")
RUNS = [(kind, 1) for kind in KINDS] + [("dpo", 2)]


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    with Servers(tmp_path_factory.mktemp("kills") / "work", 2) as started:
        yield started


@pytest.fixture(scope="module")
def operations(servers) -> dict[tuple[str, int], list[list[str]]]:
    """Of each run, by rank."""
    return {run: known["operations"] for run, known in servers.baselines(RUNS).items()}


def points_of(kind: str, ranks: int, operations: list[list[str]]) -> list[Point]:
    """A write of a checkpoint that is cut in half; its rename, and then an early operation of the resume; the export.
    On two ranks, one alone in the first."""

    def at(what: str, share: float, cut: float = 0.0) -> Kill:
        found = [n for n, other in enumerate(operations[0], start=1) if other == what]
        return Kill("op", found[int(share * (len(found) - 1))], cut=cut)

    return [
        Point(kind, ranks, (replace(at("checkpoint write", 0.6, 0.5), alone=ranks > 1),)),
        Point(kind, ranks, (at("checkpoint rename", 0.5), at("log rename", 0.0) if ranks == 1 else Kill("time", 0.3))),
        Point(kind, ranks, (at("export write", 0.3, 0.7),)),
    ]


@pytest.fixture(scope="module")
def outcomes(servers, operations) -> dict[tuple[str, int], list[Outcome]]:
    """Of each run, point by point."""
    found: dict[tuple[str, int], list[Outcome]] = {}
    for outcome in servers.points([p for run in RUNS for p in points_of(*run, operations[run])]):
        point = Point.parse(outcome.point)
        found.setdefault((point.kind, point.ranks), []).append(outcome)
    return found


@linux
@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run[0]}-{run[1]}")
def test_a_killed_run_ends_as_if_nothing_had_been(run, outcomes) -> None:
    """Guards against all that a kill may do: a half checkpoint taken for a whole one, log lines lost or written twice,
    a file left over, other bits, a rank that waits for one that has gone."""
    wrong = {o.point: o.problems for o in outcomes[run] if o.problems}
    assert not wrong
    assert all(o.phases[0] != "none" for o in outcomes[run])


@linux
@pytest.mark.slow
def test_a_full_disk_loses_nothing(servers, operations) -> None:
    """Guards against a disk that fills up at any sort of write: each rank ends with a line and not with a traceback,
    and with room again the run ends as if nothing had been."""
    points = draw_full("dpo", 1, 6, 0, operations["dpo", 1])
    wrong = {o.point: o.problems for o in servers.points(points) if o.problems}
    assert not wrong


@linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("plant", "said"),
    [
        ("lost rename", "run/checkpoints/"),
        ("repeated line", "run/metrics.jsonl, line"),
        ("flipped bit", "run/export/model.safetensors differs"),
    ],
)
def test_a_planted_fault_is_found(plant, said, servers, operations) -> None:
    """Guards the harness itself, which would pass everything if it compared nothing."""
    late = max(n for n, what in enumerate(operations["sft", 1][0], start=1) if what == "log write")
    [outcome] = servers.points([Point("sft", 1, (Kill("op", late),))], plant)
    assert any(said in problem for problem in outcome.problems), outcome


def test_a_name_says_all_of_a_point() -> None:
    """Guards `--replay`: a point is what its name says, and a seed gives the same points again."""
    operations = [["log write", "checkpoint write", "checkpoint rename"] * 9, ["checkpoint write"] * 30]
    points = draw("ppo", 2, 60, 7, operations)
    assert [Point.parse(p.name) for p in points] == points == draw("ppo", 2, 60, 7, operations)
    assert points != draw("ppo", 2, 60, 8, operations)
    hit = [operations[k.rank][int(k.at) - 1] for p in points for k in p.kills[:1] if k.how == "op"]
    assert all(8 <= hit.count(what) <= 12 for what in ("log write", "checkpoint write", "checkpoint rename"))
    assert sum(len(p.kills) == 2 for p in points) == 10 and sum(p.kills[0].alone for p in points) == 15


def test_what_differs_is_said() -> None:
    """Guards the comparison: a line that is missing, repeated or changed; a file too many or too few; clocks do not
    count."""
    line = b'{"step": 1, "loss": 0.5, "step_seconds": 0.1, "memory_bytes": 5}'
    assert unclocked(line) == '{"step": 1, "loss": 0.5}' and unclocked(b'{"step": 1, "lo') == '{"step": 1, "lo'
    log = [unclocked(line), unclocked(line.replace(b"1", b"2")), ""]
    left = {"m.jsonl": log, "a.bin": "00", "names": ["a", "b"]}
    assert not differences(left, dict(left))
    for changed, said in (
        ({"m.jsonl": log[1:]}, "m.jsonl, line 1 of 2 (of 3)"),
        ({"m.jsonl": [log[0], *log]}, "m.jsonl, line 2 of 4"),
        ({"m.jsonl": log[:1]}, "line 2 of 1 (of 3): nothing and not"),
        ({"a.bin": "01"}, "a.bin differs"),
        ({"names": ["a", "b", "b.tmp"]}, "names, line 3 of 3 (of 2): b.tmp and not nothing"),
        ({"new": ""}, "new is left over"),
    ):
        [difference] = differences(left, left | changed)
        assert said in difference
    assert differences(left, {"a.bin": "00"}) == ["m.jsonl is missing", "names is missing"]
