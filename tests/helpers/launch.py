"""Modules of these helpers as processes of their own, one or several ranks."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent


def environment(**more: str) -> dict[str, str]:
    """Of a process that can import these helpers, and imports the package from where the tests do: not from the folder
    that it is started in, which `python -m` would look into first."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"} | more


@dataclass(frozen=True)
class Ended:
    status: int | None  # None: it ran past its time, and was ended
    output: str  # the last of it

    def __str__(self) -> str:
        how = "did not end in time" if self.status is None else f"ended with status {self.status}"
        return f"torchrun {how}:\n{self.output}"


def launch(ranks: int, module: str, *arguments: object, seconds: float = 600) -> Ended:
    """Run `helpers.<module>` on so many processes, each with one thread, to its end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "-m", f"helpers.{module}", *map(str, arguments)], stdout=log, stderr=log,
            env=environment(OMP_NUM_THREADS="1"),
        )  # fmt: skip
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                process.terminate()  # torchrun ends its ranks then
                process.wait(60)
        log.seek(0)
        return Ended(status, log.read().decode(errors="replace")[-6000:])


def torchrun(ranks: int, module: str, *arguments: object, seconds: float = 600) -> None:
    """`launch`, and an error where it does not end well."""
    ended = launch(ranks, module, *arguments, seconds=seconds)
    assert ended.status == 0, str(ended)
