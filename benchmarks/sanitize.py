"""csrc under AddressSanitizer and UndefinedBehaviorSanitizer: `python benchmarks/sanitize.py`.

Builds the extension with both, out of the tree, and calls each entry point with random valid shapes (none, one, odd
ones, wide strides, rows that begin anywhere) and, for each of them, with every invalid argument that it is to refuse.
A valid call must return and an invalid one must raise a ValueError or a TypeError; a sanitizer ends the process at the
first fault in memory. Buffers have exactly the size that a call may touch. Needs gcc, its libasan and pybind11; exit
status 1: a fault, 2: something is lacking.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

REPO = Path(__file__).resolve().parent.parent
FLAGS = [
    "-std=c++17", "-O1", "-g1", "-fPIC", "-shared", "-fvisibility=hidden", "-fopenmp", "-Wno-psabi",
    "-ffp-contract=fast",
    "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer",
]  # fmt: skip
FAR = 2**62


# ------------------------------------------------------------------------------------------------------ building


def lacking() -> str | None:
    """What this machine lacks, in words."""
    if shutil.which("g++") is None:
        return "g++ is not installed"
    if not Path(library("libasan.so")).is_file():
        return "gcc's libasan is not installed"
    try:
        import pybind11  # noqa: F401
    except ImportError:
        return "pybind11 is not installed: pip install pybind11"
    return None


def library(name: str) -> str:
    """The path of one of gcc's libraries."""
    found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return os.path.realpath(found.stdout.strip())


def build(folder: Path) -> Path:
    """The instrumented extension, in `folder`. Objects are compiled two at a time; those that are newer than csrc/ are
    kept."""
    import pybind11

    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    sources = sorted((REPO / "csrc").glob("*.cpp"))
    objects = [folder / f"{s.stem}.o" for s in sources]
    newest = max(p.stat().st_mtime for p in (REPO / "csrc").iterdir())
    compile_all = [
        ["g++", *(f for f in FLAGS if f != "-shared"), *includes, "-c", str(s), "-o", str(o)]
        for s, o in zip(sources, objects, strict=True)
        if not o.exists() or o.stat().st_mtime < newest
    ]
    for first in range(0, len(compile_all), 2):
        running = [subprocess.Popen(command) for command in compile_all[first : first + 2]]
        if any([p.wait() for p in running]):
            raise SystemExit("csrc does not compile")
    out = folder / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run(["g++", *FLAGS, *map(str, objects), "-o", str(out)], check=True)
    return out


# ------------------------------------------------------------------------------------------------------ calls


@dataclass(frozen=True)
class Call:
    """Arguments by name. An array given for a `*_ptr` becomes its address."""

    function: str
    arguments: dict[str, Any]

    def run(self, native: Any) -> Any:
        def plain(name: str, value: Any) -> Any:
            return value.ctypes.data if name.endswith("_ptr") and isinstance(value, np.ndarray) else value

        return getattr(native, self.function)(**{n: plain(n, v) for n, v in self.arguments.items()})

    def but(self, **changes: Any) -> Call:
        return Call(self.function, self.arguments | changes)


def size(rng: np.random.Generator) -> int:
    """None, one, few, or around the widths of vectors and tiles."""
    return int(rng.choice([0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 65, 255, 257, 600]))


def matrix(rng: np.random.Generator, rows: int, columns: int, dtype: str) -> tuple[np.ndarray, int]:
    """Values of [rows, columns] in a buffer that ends with its last row, and their row stride. The first row begins
    anywhere in a vector."""
    stride = columns + int(rng.choice([0, 0, 1, 5, 64]))
    count = (rows - 1) * stride + columns if rows and columns else 0
    lead = int(rng.integers(0, 5))
    values = rng.standard_normal(lead + count).astype(np.float32) * rng.choice([0.1, 5, 1e30])
    values[rng.random(len(values)) < 0.01] = rng.choice([np.nan, np.inf, -np.inf, 0])
    with np.errstate(all="ignore"):
        typed = values if dtype == "float32" else (values.view(np.uint32) >> 16).astype(np.uint16)
    return typed[lead:], stride


def dtype_of(rng: np.random.Generator) -> str:
    return str(rng.choice(["float32", "bfloat16"]))


def addresses(call: Call, *names: str) -> Iterator[Call]:
    """Memory that is not there, or not aligned."""
    for name in names:
        value = call.arguments[name]
        yield call.but(**{name: 0})
        yield call.but(**{name: value.ctypes.data + 1})
        yield call.but(**{name: -8})


def with_bad(values: np.ndarray, *bad: int) -> Iterator[np.ndarray]:
    """Copies with one entry that is out of range, at either end."""
    for number in bad:
        for at in {0, len(values) - 1}:
            copy = values.copy()
            copy[at] = number
            yield copy


def rows_call(rng: np.random.Generator) -> Call:
    n, v = size(rng), max(1, size(rng))
    logits_dtype, p_dtype = dtype_of(rng), dtype_of(rng)
    logits, stride = matrix(rng, n, v, logits_dtype)
    p, p_stride = matrix(rng, n, v, p_dtype)
    if rng.random() < 0.3:
        p, p_stride, p_dtype = logits, stride, logits_dtype
    return Call("log_softmax_rows", {
        "logits_ptr": logits, "logits_dtype": logits_dtype, "n": n, "v": v, "row_stride": stride,
        "targets_ptr": rng.integers(0, v, n), "inv_temperature": float(rng.choice([1, 0.1, 10, 1e-30, 1e30])),
        "logp_ptr": np.empty(n, np.float32), "lse_ptr": np.empty(n, np.float32) if rng.random() < 0.8 else 0,
        "entropy_ptr": np.empty(n, np.float32) if rng.random() < 0.5 else 0, "p_ptr": p if rng.random() < 0.7 else 0,
        "p_dtype": p_dtype, "p_row_stride": p_stride, "threads": int(rng.integers(0, 4)),
    })  # fmt: skip


def rows_bad(call: Call) -> Iterator[Call]:
    n, v = call.arguments["n"], call.arguments["v"]
    yield from (call.but(n=-1), call.but(n=-FAR), call.but(v=0), call.but(v=-3), call.but(logits_dtype="float16"))
    yield from (call.but(inv_temperature=t) for t in (0.0, -1.0, float("nan"), float("inf"), 1e-31))
    yield from (call.but(threads=t) for t in (-1, 2**31 - 1, 2**31, 1025))
    yield from (call.but(simd="sse9"), call.but(p_dtype=""), call.but(n="1"), call.but(n=None), call.but(n=2**64))
    if n:
        yield from addresses(call, "logits_ptr", "targets_ptr", "logp_ptr")
        targets = call.arguments["targets_ptr"]
        yield from (call.but(targets_ptr=t) for t in with_bad(targets, -1, v, 2**63 - 1, -(2**63)))
    if n > 1:
        yield from (call.but(row_stride=s) for s in (v - 1, 0, -v, -FAR))


def gather_call(rng: np.random.Generator) -> Call:
    src_rows, m, width = size(rng), size(rng), size(rng)
    counts = rng.integers(0, 4, m) if src_rows else np.zeros(m, np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    src_dtype, out_dtype = dtype_of(rng), dtype_of(rng)
    src, src_stride = matrix(rng, src_rows, width, src_dtype)
    out, out_stride = matrix(rng, m, width, out_dtype)
    return Call("gather_sum", {
        "src_ptr": src, "src_dtype": src_dtype, "src_rows": src_rows, "width": width, "src_row_stride": src_stride,
        "order_ptr": rng.integers(0, max(1, src_rows), offsets[-1]), "num_order": int(offsets[-1]),
        "offsets_ptr": offsets,
        "m": m, "out_ptr": out, "out_dtype": out_dtype, "out_row_stride": out_stride, "threads": int(rng.integers(0,
        4)),
    })  # fmt: skip


def gather_bad(call: Call) -> Iterator[Call]:
    a = call.arguments
    yield from (call.but(**{name: -1}) for name in ("m", "width", "src_rows", "num_order"))
    yield from (call.but(src_dtype="int8"), call.but(out_dtype="x"), call.but(m=1.5))
    if not (a["m"] and a["width"]):
        return
    yield from (call.but(threads=t) for t in (-1, 10**6))
    yield call.but(src_row_stride=-1)
    yield from addresses(call, "out_ptr", "offsets_ptr")
    if a["m"] > 1:
        yield from (call.but(out_row_stride=s) for s in (a["width"] - 1, -FAR))
    yield from (call.but(offsets_ptr=o) for o in with_bad(a["offsets_ptr"], -1, FAR, -FAR))
    if a["num_order"]:
        yield from addresses(call, "src_ptr", "order_ptr")
        yield call.but(num_order=a["num_order"] - 1)
        order = a["order_ptr"]
        yield from (call.but(order_ptr=o) for o in with_bad(order, -1, a["src_rows"], FAR, -(2**63)))


def linear_call(rng: np.random.Generator) -> Call:
    rows, width, dtype = size(rng) % 40, max(1, size(rng)), dtype_of(rng)
    x, x_stride = matrix(rng, rows, width, "float32")
    weights = []
    for _ in range(int(rng.integers(0, 4))):
        columns = size(rng) % 70
        weights.append((*matrix(rng, columns, width, dtype), columns))
    y = np.empty(rows * sum(columns for *_, columns in weights), np.float32)
    return Call("thin_linear", {
        "x_ptr": x, "rows": rows, "width": width, "x_row_stride": x_stride,
        "weights": [(Address(w), columns, stride) for w, stride, columns in weights], "weight_dtype": dtype, "y_ptr": y,
        "threads": int(rng.integers(0, 4)),
    })  # fmt: skip


class Address(int):
    """The address of an array, which it keeps."""

    def __new__(cls, array: np.ndarray) -> Address:
        address = super().__new__(cls, array.ctypes.data)
        address.array = array  # type: ignore[attr-defined]
        return address


def linear_bad(call: Call) -> Iterator[Call]:
    a = call.arguments
    yield from (call.but(rows=-1), call.but(width=0), call.but(width=-FAR), call.but(weight_dtype="int4"))
    yield from (call.but(x_row_stride=-1), call.but(weights=None), call.but(weights=[(1, 2)]))
    for i, (address, columns, stride) in enumerate(a["weights"]):
        others = a["weights"][:i], a["weights"][i + 1 :]
        bad = [(address, -1, stride), (address, FAR, stride), (address, columns, -1)]
        if columns:
            bad += [(0, columns, stride), (address + 1, columns, stride)]
        yield from (call.but(weights=[*others[0], b, *others[1]]) for b in bad)
    if a["rows"] and len(a["y_ptr"]):
        yield from addresses(call, "x_ptr", "y_ptr")


def decode_call(rng: np.random.Generator) -> Call:
    rows, kv_heads, group, dim = (
        int(rng.integers(0, 6)),
        int(rng.integers(1, 4)),
        int(rng.integers(1, 6)),
        max(1, size(rng) % 130),
    )
    block, max_blocks, dtype = int(rng.integers(1, 20)), int(rng.integers(0, 8)), dtype_of(rng)
    num_blocks = int(rng.integers(1, 12)) if max_blocks else int(rng.integers(0, 3))
    q, q_stride = matrix(rng, rows, kv_heads * group * dim, dtype)
    keys, values = (matrix(rng, 1, num_blocks * block * kv_heads * dim, dtype)[0] for _ in range(2))
    lengths = rng.integers(0, max_blocks * block + 1, rows).astype(np.int32)
    table = rng.integers(0, max(1, num_blocks), rows * max_blocks).astype(np.int32)
    out, _ = matrix(rng, 1, rows * kv_heads * group * dim, dtype)
    return Call("decode_attention", {
        "q_ptr": q, "dtype": dtype, "rows": rows, "heads": kv_heads * group, "kv_heads": kv_heads, "dim": dim,
        "q_row_stride": q_stride, "keys_ptr": keys, "values_ptr": values, "num_blocks": num_blocks, "block": block,
        "table_ptr": table, "max_blocks": max_blocks, "table_row_stride": max_blocks, "lengths_ptr": lengths,
        "scale": float(rng.choice([0.1, 1, 0, -1, 1e30, np.nan, np.inf])), "out_ptr": out,
        "threads": int(rng.integers(0, 4)), "window": int(rng.choice([0, 0, 1, 7, 100])),
    })  # fmt: skip


def decode_bad(call: Call) -> Iterator[Call]:
    a = call.arguments
    names = (
        "rows",
        "heads",
        "kv_heads",
        "dim",
        "block",
        "num_blocks",
        "max_blocks",
        "q_row_stride",
        "table_row_stride",
        "window",
    )
    yield from (call.but(**{name: number}) for name in names for number in (-1, -FAR))
    yield from (call.but(**{name: 0}) for name in ("heads", "kv_heads", "dim", "block"))
    yield from (call.but(heads=FAR, kv_heads=1), call.but(dim=FAR), call.but(block=2**63 - 1), call.but(max_blocks=FAR))
    yield from (
        (call.but(heads=a["heads"] + 1, kv_heads=a["heads"]), call.but(dtype="float64")) if a["heads"] > 1 else ()
    )
    if not a["rows"]:
        return
    yield from addresses(call, "q_ptr", "lengths_ptr", "out_ptr")
    lengths, most = a["lengths_ptr"], a["max_blocks"] * a["block"]
    yield from (call.but(lengths_ptr=v) for v in with_bad(lengths, -1, most + 1, 2**31 - 1, -(2**31)))
    if lengths[0] and lengths[-1]:
        yield from addresses(call, "keys_ptr", "values_ptr", "table_ptr")
        table = a["table_ptr"].copy()
        for bad in (-1, a["num_blocks"], 2**31 - 1, -(2**31)):
            table[0] = bad
            yield call.but(table_ptr=table.copy())


def plan_call(rng: np.random.Generator) -> Call:
    n, budget = int(rng.choice([0, 1, 2, 5, 40, 300, 3000])), int(rng.choice([1, 2, 10, 1000, 2**31 - 1]))
    tokens = rng.integers(1, budget + 1, n)
    if rng.random() < 0.3:
        tokens = np.full(n, max(1, budget // 2 + 1))
    scale = float(rng.choice([0, 1e-300, 1, 1e18, 1e300]))
    return Call("plan_packs", {
        "num_tokens": tokens, "cost": rng.random(n) * scale, "ranks": int(rng.choice([1, 2, 7, 64, 2**10])),
        "budget": budget,
    })  # fmt: skip


def plan_bad(call: Call) -> Iterator[Call]:
    tokens, cost = call.arguments["num_tokens"], call.arguments["cost"]
    yield from (call.but(ranks=r) for r in (0, -1, -FAR, 2**20 + 1, FAR))
    yield from (call.but(budget=b) for b in (0, -1, FAR, 2**63 - 1))
    yield from array_bad(call, "num_tokens", "cost")
    if len(tokens):
        yield from (
            call.but(num_tokens=t) for t in with_bad(tokens, 0, -1, call.arguments["budget"] + 1, 2**63 - 1, -(2**63))
        )
        for bad in (np.nan, np.inf, -np.inf, -1e-300):
            yield from (
                call.but(cost=np.concatenate([cost[:-1], [bad]])),
                call.but(cost=np.concatenate([[bad], cost[1:]])),
            )
    if len(tokens) > 1:
        yield call.but(cost=np.full(len(tokens), 1.7e308))


def array_bad(call: Call, *names: str) -> Iterator[Call]:
    """Arrays of another dtype, shape, order, place or length."""
    for name in names:
        x = call.arguments[name]
        yield from (call.but(**{name: bad}) for bad in (None, x.tolist(), np.zeros(len(x), np.float16), x[None],
        x.astype(x.dtype.newbyteorder())
                                                        if x.itemsize > 1 else 3, np.int64(3)))  # fmt: skip
        if len(x) > 1:
            yield call.but(**{name: np.repeat(x, 2)[::2]})
            yield call.but(**{name: x[::-1]})
        if len(x) and x.itemsize > 1:
            yield call.but(**{name: np.frombuffer(b"\0" + x.tobytes(), x.dtype, len(x), offset=1)})


def assemble_call(rng: np.random.Generator) -> Call:
    length, n = max(1, size(rng)), size(rng) % 20
    branches = rng.integers(1, 4, n)
    tree_start = np.concatenate([[0], np.cumsum(branches)]).astype(np.int64)

    def spans(count: int) -> tuple[np.ndarray, np.ndarray]:
        lengths = rng.integers(1, min(length, 20) + 1, count)
        return rng.integers(0, length - lengths + 1), lengths

    prompt_start, prompt_len = spans(n)
    branch_start, branch_len = spans(int(tree_start[-1]))
    tokens = rng.integers(0, rng.choice([1, 300, 2**31 - 1]), length).astype(np.int32)
    return Call("assemble", {
        "tokens": tokens, "scored": rng.integers(0, rng.choice([1, 2, 256]), length).astype(np.uint8),
        "tree_start": tree_start,
        "prompt_start": prompt_start, "prompt_len": prompt_len, "branch_start": branch_start, "branch_len": branch_len,
        "select": rng.integers(0, max(1, n), size(rng) % 30 if n else 0),
    })  # fmt: skip


def assemble_bad(call: Call) -> Iterator[Call]:
    a = call.arguments
    length, n = len(a["tokens"]), len(a["prompt_start"])
    yield from array_bad(call, *a)
    yield from (call.but(select=np.array([bad])) for bad in (-1, n, FAR, -(2**63)))
    for name in ("tree_start", "prompt_len", "branch_len", "scored"):
        yield call.but(
            **{name: np.append(a[name], a[name][-1:] if len(a[name]) else a[name].dtype.type(0))[: len(a[name]) + 1]}
        )
    if not n:
        return
    everything = call.but(select=np.arange(n))
    for name, bad in (
        ("prompt_start", (-1, length, FAR, 2**63 - 1, -(2**63))), ("branch_start", (-1, length, FAR, 2**63 - 1,
        -(2**63))),
        ("prompt_len", (0, -1, length + 1, FAR, 2**63 - 1, -(2**63))), ("branch_len", (0, -1, length + 1, FAR,
        2**63 - 1, -(2**63))),
    ):  # fmt: skip
        yield from (everything.but(**{name: values}) for values in with_bad(a[name], *bad))
    yield from (everything.but(tree_start=t) for t in with_bad(a["tree_start"], FAR, -FAR))
    yield from (everything.but(tokens=np.full_like(a["tokens"], t)) for t in (-1, -(2**31)))


CALLS: dict[str, tuple[Callable[[np.random.Generator], Call], Callable[[Call], Iterator[Call]]]] = {
    "plan_packs": (plan_call, plan_bad),
    "assemble": (assemble_call, assemble_bad),
    "log_softmax_rows": (rows_call, rows_bad),
    "gather_sum": (gather_call, gather_bad),
    "thin_linear": (linear_call, linear_bad),
    "decode_attention": (decode_call, decode_bad),
}


def drive(native: Any, rounds: int, seed: int) -> Counter[tuple[str, str]]:
    """Valid and invalid calls of every entry point; how many of each.

    Raises:
        AssertionError: an invalid call returned.
    """
    counts: Counter[tuple[str, str]] = Counter()
    levels = native.simd_levels()
    for number in range(rounds):
        for name, (valid, invalid) in CALLS.items():
            rng = np.random.default_rng([seed, number, list(CALLS).index(name)])
            call = valid(rng)
            if name in ("log_softmax_rows", "thin_linear", "decode_attention"):
                call = call.but(simd=levels[number % len(levels)])
            call.run(native)
            counts[name, "valid"] += 1
            for bad in invalid(call) if number % 4 == 0 else ():
                try:
                    bad.run(native)
                except (ValueError, TypeError):
                    counts[name, "refused"] += 1
                    continue
                changed = {k: v for k, v in bad.arguments.items() if v is not call.arguments.get(k)}
                raise AssertionError(f"{name}, round {number}, seed {seed}: took {changed!r}"[:600])
    for bad_threads in (-1, 2**31 - 1, 1025):
        try:
            native.set_num_threads(bad_threads)
        except ValueError:
            counts["set_num_threads", "refused"] += 1
            continue
        raise AssertionError(f"set_num_threads took {bad_threads}")
    return counts


# ------------------------------------------------------------------------------------------------------ the command


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000, help="valid calls of each entry point")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keeps the build, for the next time")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)  # the folder of the extension: in the child
    options = parser.parse_args()
    if options.drive is not None:
        sys.path.insert(0, str(options.drive))
        counts = drive(importlib.import_module("_native"), options.rounds, options.seed)
        for (name, what), count in sorted(counts.items()):
            print(f"{name:18} {what:8} {count:8,}")
        return 0
    if reason := lacking():
        print(f"cannot run: {reason}")
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        begin, name = time.monotonic(), str(options.folder or temporary)
        Path(name).mkdir(parents=True, exist_ok=True)
        build(Path(name))
        print(f"built in {time.monotonic() - begin:.0f} s", flush=True)
        environment = os.environ | {
            "LD_PRELOAD": f"{library('libasan.so')}:{library('libstdc++.so')}",
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:detect_stack_use_after_return=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "OMP_NUM_THREADS": "2",
            "PYTHONMALLOC": "malloc",  # so that objects too have the sanitizer's borders
        }
        arguments = ["--drive", name, "--rounds", str(options.rounds), "--seed", str(options.seed)]
        code = subprocess.run([sys.executable, __file__, *arguments], env=environment).returncode
    print("no fault" if code == 0 else f"a fault: exit status {code}", f"in {time.monotonic() - begin:.0f} s")
    return int(code != 0)


if __name__ == "__main__":
    sys.exit(main())
