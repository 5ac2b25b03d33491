"""Runs that are killed, resumed, and compared with one that was not: `python -m helpers.kill_server WORK NUMBER`.

The server imports what a run imports, once, starts no thread, and forks each run from itself, which saves the seconds
of the imports. Requests are lines on stdin and answers lines on stdout, both JSON. `helpers.kills.Servers` starts
several, which share the folder WORK.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import itertools
import json
import os
import random
import select
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.kills import Kill, Outcome, Point
from helpers.run_contents import contents, differences, newest
from helpers.watched import Board, Watch, phase

STEPS = 5
# Longer than on any busy machine: what is later hangs. How long it really takes is measured by kill_points.py.
RUN_SECONDS = 600
SURVIVOR_SECONDS = 120  # of a rank that has lost the other one


@dataclass(frozen=True)
class Inputs:
    """What every run reads, in one folder."""

    folder: Path

    @property
    def complete(self) -> bool:
        """Whether all is there: the panel is written last, and named then."""
        return (self.folder / "panel.jsonl").exists()

    def prepare(self) -> None:
        """Write model, rows and panel."""
        from helpers.tiny import write_tiny_model
        from vdengine.panels.panel import Panel

        write_tiny_model(self.folder / "model", "llama")
        words = "the a value of people think that law is right wrong free world".split()
        random_ = random.Random(0)

        def text(most: int) -> str:
            return " ".join(random_.choices(words, k=random_.randint(1, most)))

        rows = [{"prompt": text(6), "chosen": text(8), "rejected": text(8)} for _ in range(16)]
        (self.folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        mini = Panel.load("values-mini")
        Panel("small", mini.probes[:2] + mini.probes[-2:]).save(self.folder / "panel.part")
        (self.folder / "panel.part").rename(self.folder / "panel.jsonl")

    def write_recipe(self, kind: str, folder: Path) -> Path:
        """The recipe of a run in `folder`."""
        from helpers.runs import PPO, WEIGHTED, tables
        from vdengine.recipe import make_recipe, to_toml

        changes: dict[str, dict[str, dict[str, Any]]] = {
            "sft": {"objective": {"name": "sft", "beta": None}, "checkpoint": {"every": 1}},
            "dpo": {"checkpoint": {"keep": 1}, "log": {"every": 2}, "probes": {"controls": True}},
            "ppo": PPO
            | {
                "rollout": PPO["rollout"] | {"show_every": 1},
                "run": {"steps": 3},
                "checkpoint": {"every": 1},
                "data": {"eval_fraction": None, "eval_every": None},
            },
            "answers": {
                "answers": WEIGHTED["answers"] | {"samples": 2, "base": 3, "probes": 4, "max_tokens": 4, "anchors": [2]}
            },
        }
        t = tables(folder, str(self.folder / "model"), str(self.folder / "pairs.jsonl"), "run")
        t["run"]["steps"] = STEPS
        t["data"] |= {"eval_fraction": 0.25, "eval_every": 2}
        t["batch"]["examples"] = 4
        t["probes"] |= {"panel": str(self.folder / "panel.jsonl"), "tokens": 2048}
        t["checkpoint"] |= {"every": 2, "export": True}
        for section, keys in changes[kind].items():
            t[section] = {k: v for k, v in {**t.get(section, {}), **keys}.items() if v is not None}
        path = folder / "recipe.toml"
        path.write_text(to_toml(make_recipe(t)))
        return path


@dataclass
class Ended:
    """A run that was started and has ended."""

    codes: list[int]  # of each rank
    states: list[dict[str, Any]]  # each one's last words
    seconds: float
    log: Path
    killed: bool = False  # at the moment that it was told
    survivor_seconds: float | None = None
    hung: str = ""

    @property
    def failed(self) -> str:
        """Why it was no good end; "" if it was one."""
        if self.hung or any(self.codes):
            return f"{self.hung or f'exit codes {self.codes}'}: {last_lines(self.log)}"
        return ""

    @property
    def without_a_word(self) -> str:
        """What is wrong with the end of a run that could not go on; "" if every rank said so, in a line."""
        text = self.log.read_text(errors="replace")
        if not any(self.codes):  # a rank that has no part in what could not be written may be done
            return f"exit codes {self.codes} though it could not write"
        if "Traceback (most recent call last)" in text or "error" not in text:
            return f"no line but: {last_lines(self.log)}"
        return ""


class Server:
    """Forks runs. Answers {"baseline": [kind, ranks]} with its operations and seconds, and {"point": name, "plant":
    fault or ""} with an `Outcome`."""

    def __init__(self, work: Path, number: int) -> None:
        self.work, self.inputs = work, Inputs(work / "inputs")
        self.folder = work / f"server-{number}"
        self.folder.mkdir(parents=True)
        self.numbers = itertools.count()
        import_all(["torch", "vdengine.train"])
        if number == 0:
            forked(self.inputs.prepare)
        while not self.inputs.complete:
            time.sleep(0.05)
        first = self._new_folder("answers")
        import_all(forked(lambda: self._imports(first)))
        shutil.rmtree(first)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if "baseline" in request:
            return self.baseline(*request["baseline"])
        return vars(self.point(Point.parse(request["point"]), request.get("plant", "")))

    def _imports(self, folder: Path) -> list[str]:
        """In a forked process: the names of all modules that are there after a run."""
        from vdengine.train import main

        with open(folder / "log", "w") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            if main([str(folder / "recipe.toml")]):
                raise RuntimeError(f"a run that is not killed: {last_lines(folder / 'log')}")
        return [name for name in sys.modules if not name.startswith(("helpers", "__"))]

    def _baseline_file(self, kind: str, ranks: int) -> Path:
        return self.work / f"baseline-{kind}-{ranks}.json"

    def baseline(self, kind: str, ranks: int) -> dict[str, Any]:
        """The run that is not killed: what it does, what it takes, and for `point` what it leaves."""
        folder = self._new_folder(kind)
        ended = self.run(folder, ranks, None)
        if ended.failed:
            raise RuntimeError(f"{kind} on {ranks} ranks, not killed: {ended.failed}")
        operations = [(folder / f"operations-{rank}").read_text().splitlines() for rank in range(ranks)]
        known = {"operations": operations, "seconds": ended.seconds}
        left = forked(lambda: contents(folder))
        self._baseline_file(kind, ranks).write_text(json.dumps(known | {"contents": left}))
        shutil.rmtree(folder)
        return known

    def point(self, point: Point, plant: str) -> Outcome:
        """The run, killed and resumed until it has ended, and what differs from the one that was not killed."""
        known = json.loads(self._baseline_file(point.kind, point.ranks).read_text())
        outcome, folder = Outcome(point.name), self._new_folder(point.kind)
        started = time.perf_counter()
        for kill in (*point.kills, None):
            expected = newest(folder / "run")
            ended = self.run(folder, point.ranks, kill, known["seconds"], plant)
            outcome.resumes += bool(outcome.phases)
            hit = ended.killed or any(state.get("hit") for state in ended.states)
            if kill is not None:
                outcome.phases.append(phase(ended.states[kill.rank]) if hit else "none")
            if ended.states[0].get("resumed", expected) != expected:
                at = ended.states[0]["resumed"]
                outcome.problems.append(f"went on at step {at}; the newest checkpoint was of step {expected}")
            outcome.survivor_seconds = ended.survivor_seconds or outcome.survivor_seconds
            if kill is not None and kill.how == "full" and hit:
                problem = ended.hung or ended.without_a_word
            else:
                problem = ended.hung if hit else ended.failed
            if problem:
                outcome.problems.append(problem)
            if outcome.problems or not hit:
                break
        if not outcome.problems:
            outcome.problems = differences(known["contents"], forked(lambda: contents(folder)))
        if outcome.problems:
            outcome.kept = str(folder)
        else:
            shutil.rmtree(folder)
        outcome.seconds = time.perf_counter() - started
        return outcome

    def _new_folder(self, kind: str) -> Path:
        folder = self.folder / f"{next(self.numbers):05d}"
        folder.mkdir()
        self.inputs.write_recipe(kind, folder)
        return folder

    def run(self, folder: Path, ranks: int, kill: Kill | None, whole: float = 0.0, plant: str = "") -> Ended:
        """One run to its end. whole: seconds that a whole one takes."""
        if len(os.listdir("/proc/self/task")) > 1:
            raise RuntimeError("the server has threads: what they hold would be held for ever in a fork")
        board, log = Board(ranks), folder / f"log-{len(list(folder.glob('log-*')))}"
        port = free_port()
        pids: list[int] = []
        started = time.perf_counter()
        for rank in range(ranks):
            if (pid := os.fork()) == 0:
                leave_with(lambda rank=rank: self._child(folder, rank, ranks, port, board, kill, plant, log, pids))
            os.setpgid(pid, pids[0] if pids else pid)  # here and in the child: whoever comes first
            pids.append(pid)
        ended = Ended([0] * ranks, [], 0.0, log)
        descriptors = {os.pidfd_open(pid): rank for rank, pid in enumerate(pids)}
        deadline = started + RUN_SECONDS
        moment = started + kill.at * whole if kill is not None and kill.how == "time" else None
        alone = kill is not None and kill.alone
        lost: float | None = None  # when a rank was killed that was to be killed alone
        while descriptors:
            now = time.perf_counter()
            until = deadline if moment is None else min(moment, deadline)
            ready, _, _ = select.select(list(descriptors), [], [], max(0.0, until - now))
            for descriptor in ready:
                rank = descriptors.pop(descriptor)
                os.close(descriptor)
                ended.codes[rank] = os.waitstatus_to_exitcode(os.waitpid(pids[rank], 0)[1])
                if ended.codes[rank] == -signal.SIGKILL and alone and lost is None:
                    lost, deadline = time.perf_counter(), time.perf_counter() + SURVIVOR_SECONDS
                    if not any(board.read(r).get("group") for r in range(ranks)):
                        with contextlib.suppress(ProcessLookupError):
                            os.killpg(pids[0], signal.SIGKILL)  # no group yet: only a launcher can know of the loss
                        lost = None
                elif ended.codes[rank] and lost is None and not ended.killed and descriptors:
                    deadline = min(deadline, time.perf_counter() + SURVIVOR_SECONDS)
            now = time.perf_counter()
            if moment is not None and now >= moment and descriptors:
                moment, ended.killed = None, True
                if kill is not None and alone and kill.rank in descriptors.values():
                    os.kill(pids[kill.rank], signal.SIGKILL)
                else:
                    os.killpg(pids[0], signal.SIGKILL)
            elif now >= deadline and descriptors:
                left = ", ".join(f"rank {rank}" for rank in descriptors.values())
                after = f"{SURVIVOR_SECONDS} s after the other had gone" if lost or any(ended.codes) else "for ever"
                ended.hung = f"{left} ran {after}"
                os.killpg(pids[0], signal.SIGKILL)
                deadline = now + RUN_SECONDS
        ended.seconds = time.perf_counter() - started
        if lost is not None:
            ended.survivor_seconds = time.perf_counter() - lost
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pids[0], signal.SIGKILL)  # a process that renders templates may be left
        ended.states = [board.read(rank) for rank in range(ranks)]
        return ended

    def _child(
        self,
        folder: Path,
        rank: int,
        ranks: int,
        port: int,
        board: Board,
        kill: Kill | None,
        plant: str,
        log: Path,
        pids: list[int],
    ) -> int:
        """In a forked process: the run."""
        os.setpgid(0, pids[0] if pids else 0)
        end_with_parent()
        with open(log, "a") as output, open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        if ranks > 1:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
            }  # fmt: skip
        Watch(folder, board, rank, kill, plant).install()
        from vdengine.train import main

        return main([str(folder / "recipe.toml")])


def import_all(modules: Iterable[str]) -> None:
    """What a run imports, once for all of them. A name that is no module of its own is passed over."""
    for name in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def leave_with(function: Callable[[], Any]) -> None:
    """In a forked process: call the function and end, with what it returns. What it raises is printed, as by Python."""
    code = 1
    try:
        code = function() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def forked(function: Callable[[], Any]) -> Any:
    """What a function returns in a forked process: JSON. It may start threads there."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:

        def child() -> None:
            end_with_parent()
            with open(writing, "w") as file:
                json.dump(function(), file)

        leave_with(child)
    os.close(writing)
    with open(reading) as file:
        text = file.read()
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("a forked process failed; see the server's stderr")
    return json.loads(text)


def end_with_parent() -> None:
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def last_lines(log: Path, count: int = 3) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-count:])[-600:]


def serve(work: Path, number: int) -> None:
    """Until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")  # what runs print does not come between
    os.dup2(2, 1)
    os.set_inheritable(answers.fileno(), False)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        server = Server(work, number)
        say({"ready": True})
        for line in sys.stdin:
            say(server.answer(json.loads(line)))
    except Exception as error:
        traceback.print_exc()
        say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
