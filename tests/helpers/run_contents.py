"""What a run has left, for a comparison with another run of the same recipe."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

# Keys of metrics that depend on the clock or the machine.
CLOCKED = re.compile(r".*(_seconds|_per_second|_bytes)|mfu")
# Files whose bytes are not compared: what the console printed, and who holds the folder.
PASSED_OVER = ("log.txt", "lock")


def newest(run: Path) -> int:
    """Step of the newest checkpoint by name, 0 without one."""
    steps = [int(p.name[5:]) for p in (run / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", p.name)]
    return max(steps, default=0)


def contents(folder: Path) -> dict[str, Any]:
    """All that a run has left, by name: of a log the lines, of other files a hash; of the newest checkpoint the hash of
    every tensor."""
    run, found = folder / "run", {}
    for path in sorted([*run.rglob("*"), *(folder / "cache").rglob("*")]):
        name = str(path.relative_to(folder))
        if name.startswith("run/checkpoints/") or path.name in PASSED_OVER:
            continue
        if path.is_dir():
            found[f"{name}/"] = ""
        elif name.endswith(".jsonl"):
            found[name] = [unclocked(line) for line in path.read_bytes().split(b"\n")]
        else:
            data = path.read_bytes().replace(os.fsencode(folder), b"FOLDER")
            found[name] = hashlib.sha256(data).hexdigest()
    checkpoints = run / "checkpoints"
    found["run/checkpoints/"] = sorted(path.name for path in checkpoints.iterdir())
    return found | (tensors_of(checkpoints / f"step-{step:06d}") if (step := newest(run)) else {})


def unclocked(line: bytes) -> str:
    """A line of a log without what depends on the clock."""
    try:
        row = json.loads(line)
    except ValueError:
        return line.decode(errors="backslashreplace")
    if not isinstance(row, dict):
        return str(row)
    return json.dumps({k: v for k, v in row.items() if not CLOCKED.fullmatch(k)}, ensure_ascii=False)


def tensors_of(checkpoint: Path) -> dict[str, str]:
    """A hash of every tensor of a checkpoint."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    state: dict[str, Any] = {}
    _load_state_dict(state, dcp.FileSystemReader(checkpoint), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    names = {f"{checkpoint.name}: {name}": tensor for name, tensor in state.items()}
    return {n: hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest() for n, t in sorted(names.items())}


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What differs, in words; a log by its first line that does."""
    said = [f"{name} is missing" for name in expected.keys() - found.keys()]
    said += [f"{name} is left over" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        a, b = expected[name], found[name]
        if a == b:
            continue
        if not isinstance(a, list):
            said.append(f"{name} differs")
            continue
        first = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        lines = [part[first][:200] if first < len(part) else "nothing" for part in (a, b)]
        said.append(f"{name}, line {first + 1} of {len(b)} (of {len(a)}): {lines[1]} and not {lines[0]}")
    return sorted(said)
