"""Where runs are killed: points, drawn from a seed, and the servers that run them (`helpers.kill_server`).

A point says which run is killed, and where. An operation is one that changes the run folder or the data cache: a file
opened for writing, a write, an fsync, a rename, a folder made, something removed. The process counts them itself and
ends itself (SIGKILL) before the n-th; of a write a share of the bytes arrives first. The other way is a moment: the
server ends the run from outside, in the middle of whatever it does. With two ranks both are ended, or one alone, and
then the other has to end by itself. Linux only.
"""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from helpers.launch import environment

KINDS = ("sft", "dpo", "ppo", "answers")  # of runs: `helpers.kill_server.Inputs`


@dataclass(frozen=True)
class Kill:
    """One SIGKILL, or a disk that is full.

    Its name has five parts: `r0:op:17:0.50:all` is before rank 0's 17th operation, of which, if it is a write, half of
    the bytes arrive; `r1:time:0.433:0.00:alone` ends rank 1 alone, after 0.433 of the time that a whole run takes. With
    `r0:full:17:0.50:all` nobody is ended: from that operation on rank 0 has no room for what it writes.
    """

    how: str  # "op" | "time" | "full"
    at: float  # which operation, from 1; or share of a run's time
    rank: int = 0
    cut: float = 0.0  # share of the bytes of a write
    alone: bool = False

    @property
    def name(self) -> str:
        at = f"{self.at:.3f}" if self.how == "time" else f"{self.at:.0f}"
        return f"r{self.rank}:{self.how}:{at}:{self.cut:.2f}:{'alone' if self.alone else 'all'}"

    @classmethod
    def parse(cls, name: str) -> Kill:
        rank, how, at, cut, whom = name.split(":")
        return cls(how, float(at), int(rank.removeprefix("r")), float(cut), whom == "alone")


@dataclass(frozen=True)
class Point:
    """A run of a kind on so many ranks, and its kills: the first one in the run, others in its resumes. Its name says
    all of it: `dpo-2/r0:op:17:0.50:all+r0:time:0.433:0.00:all`."""

    kind: str
    ranks: int
    kills: tuple[Kill, ...]

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.ranks}/{'+'.join(kill.name for kill in self.kills)}"

    @classmethod
    def parse(cls, name: str) -> Point:
        run, kills = name.split("/")
        kind, ranks = run.split("-")
        return cls(kind, int(ranks), tuple(Kill.parse(kill) for kill in kills.split("+")))


@dataclass
class Outcome:
    """What came of a point."""

    point: str
    phases: list[str] = field(default_factory=list)  # in which each kill hit; "none": the run had ended before
    resumes: int = 0
    seconds: float = 0.0
    survivor_seconds: float | None = None  # after which the rank that was left alone had ended
    problems: list[str] = field(default_factory=list)  # none: as if nothing had been
    kept: str = ""  # the folder of a point with problems


def draw(kind: str, ranks: int, count: int, seed: int, operations: Sequence[Sequence[str]]) -> list[Point]:
    """So many points of a kind. operations: of a whole run, by rank; what and where each is.

    Half of them are operations: of each sort (as the renames of checkpoints) equally many. The others are moments.
    Every sixth is followed by a kill in the resume. On two ranks one in four ends one rank alone.
    """
    random_ = random.Random(f"{seed} {kind} {ranks}")
    turns = _turns(operations, random_)

    def operation(alone: bool) -> Kill:
        rank, n = next(turns)
        return Kill("op", n, rank, round(random_.random(), 2), alone)

    def moment(alone: bool) -> Kill:
        return Kill("time", round(random_.random(), 3), random_.randrange(ranks), 0.0, alone)

    points = []
    for i in range(count):
        alone = ranks > 1 and i % 4 == 3
        kills = [(operation if i % 2 else moment)(alone)]
        if i % 6 == 5:
            kills.append((operation if random_.random() < 0.5 else moment)(False))
        points.append(Point(kind, ranks, tuple(kills)))
    return points


def draw_full(kind: str, ranks: int, count: int, seed: int, operations: Sequence[Sequence[str]]) -> list[Point]:
    """As `draw`: so many points at which the disk is full from a write on, of each sort equally many."""
    random_ = random.Random(f"full {seed} {kind} {ranks}")
    writes = [[what if what.endswith("write") else "" for what in of_rank] for of_rank in operations]
    turns = _turns(writes, random_)
    kills = [Kill("full", n, rank, round(random_.random(), 2)) for rank, n in itertools.islice(turns, count)]
    return [Point(kind, ranks, (kill,)) for kill in kills]


def _turns(operations: Sequence[Sequence[str]], random_: random.Random) -> Iterator[tuple[int, int]]:
    """Rank and number of operations for ever, of each sort in turn; none twice before all of its sort have come.
    Operations without a name are left out."""
    sorts: dict[str, list[tuple[int, int]]] = {}
    for rank, of_rank in enumerate(operations):
        for n, what in enumerate(of_rank, start=1):
            if what:
                sorts.setdefault(what, []).append((rank, n))
    left: dict[str, list[tuple[int, int]]] = {}
    while sorts:
        for sort in random_.sample(sorted(sorts), len(sorts)):
            if not left.get(sort):
                left[sort] = random_.sample(sorts[sort], len(sorts[sort]))
            yield left[sort].pop()


class Servers:
    """Several servers, to which requests are dealt. A context; it ends them."""

    def __init__(self, work: Path, count: int) -> None:
        self.work = work
        self._free: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
        self._all: list[subprocess.Popen[str]] = []
        for number in range(count):
            self._start(number)
        for server in self._all:
            self._read(server)
            self._free.put(server)

    def _start(self, number: int) -> None:
        command = [sys.executable, "-m", "helpers.kill_server", str(self.work), str(number)]
        server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false"),
        )  # fmt: skip
        self._all.append(server)

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._all:
            server.kill()
            server.communicate()

    def _read(self, server: subprocess.Popen[str]) -> dict[str, Any]:
        line = server.stdout.readline() if server.stdout else ""
        answer = json.loads(line) if line else {"error": "the server has ended"}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer of a server that is free."""
        server = self._free.get()
        try:
            if server.stdin is None:
                raise RuntimeError("the server has no stdin")
            server.stdin.write(json.dumps(request) + "\n")
            server.stdin.flush()
            return self._read(server)
        finally:
            self._free.put(server)

    def baselines(self, runs: Iterable[tuple[str, int]]) -> dict[tuple[str, int], dict[str, Any]]:
        """Of each (kind, ranks), not killed: the `operations` of each rank, and the `seconds`. Points need them."""
        runs = list(runs)
        with ThreadPoolExecutor(len(self._all)) as pool:
            return dict(zip(runs, pool.map(lambda run: self.ask({"baseline": run}), runs), strict=True))

    def points(self, points: Iterable[Point], plant: str = "") -> Iterator[Outcome]:
        """The outcome of each, in order, as they come."""
        with ThreadPoolExecutor(len(self._all)) as pool:
            for answer in pool.map(lambda p: self.ask({"point": p.name, "plant": plant}), points):
                yield Outcome(**answer)
