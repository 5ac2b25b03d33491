"""Compile every Triton kernel for GPUs that need not be here, exactly as the ops would launch it.

Run by itself (`PYTHONPATH=tests python -m helpers.aot`): the tests run their kernels in the interpreter, which cannot
compile. Each op is called on small CPU tensors of real widths with launching replaced by recording; what was recorded
is compiled, with the alignment that its arguments have. Prints one JSON line for each kernel, specialisation and
architecture: spilled bytes and registers (from ptxas), shared memory, and how many loads from memory the PTX has and
how many are 16 bytes wide.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vdengine.kernels import (
    _triton,
    decode_attention,
    gather_sum,
    preference_loss,
    qk_rope,
    rms_norm,
    sample,
    segment_sum,
    swiglu,
)
from vdengine.kernels.rows import Transform, TritonRowKernel
from vdengine.kernels.swiglu import ACTIVATIONS

ARCHITECTURES = (80, 90, 100)
SHARED_BYTES = {
    80: 163 << 10,
    90: 227 << 10,
    100: 227 << 10,
}  # of one block (CUDA programming guide)
# query heads, key heads, head_dim, with norms: Qwen3-0.6B, Qwen3-8B, SmolLM2-135M
HEADS = ((16, 8, 128, True), (32, 8, 128, True), (9, 3, 64, False))
# SmolLM2-135M, Qwen3-0.6B and 4B, Llama-3.1-8B, a 70B; 1000 is no multiple of 16. Each block size of the table occurs.
WIDTHS = {torch.bfloat16: (576, 1000, 1024, 2560, 4096, 8192), torch.float32: (1000, 4096)}
VOCABULARIES = (50257, 151936)
TYPES = {
    torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64", torch.int64: "*i64", torch.int32: "*i32",
}  # fmt: skip
SAMPLED = ({"temperature": 0}, {}, {"top_k": 50}, {"top_p": 0.9}, {"top_k": 50, "top_p": 0.9})
N = 4096  # rows: enough for the loops of the weights' gradients


def run_ops() -> None:
    """Every op once in each of its variants, forward and backward."""
    targets, logp = torch.zeros(2, dtype=torch.int64), torch.empty(2)
    for vocab in VOCABULARIES:
        bias = torch.empty(vocab)
        transforms = Transform(1.0), Transform(1.0, None, bias), Transform(30.0, 1 / 30), Transform(30.0, 1 / 30, bias)
        for p in (None, torch.empty(2, vocab), torch.empty(2, vocab, dtype=torch.bfloat16)):
            for entropy in (None, torch.empty(2)):
                for transform in transforms:
                    TritonRowKernel().rows(torch.empty(2, vocab), targets, transform, logp, entropy, p)
        for options in SAMPLED:
            sample(torch.empty(2, vocab), torch.empty(2, dtype=torch.float64), backend="triton", **options)
    order = torch.arange(64)
    offsets = torch.arange(0, 65, 4)
    for dtype, widths in WIDTHS.items():
        for width in widths:
            gather_sum(torch.empty(64, width, dtype=dtype), order, offsets, backend="triton")
            gather_sum(torch.empty(64, width, dtype=dtype), order, offsets, dtype=torch.float32, backend="triton")
    x = torch.empty(64, requires_grad=True)
    segment_sum(x, offsets, backend="triton")
    for options in ({"reference": torch.empty(16)}, {}, {"name": "simpo"}):
        preference_loss(x, offsets, order="interleaved", beta=0.1, backend="triton", **options).losses.sum().backward()
        preference_loss(x.detach(), offsets, order="interleaved", beta=0.1, backend="triton", **options)
    for dtype, widths in WIDTHS.items():

        def make(*shape: int, grad: bool = True, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, requires_grad=grad)

        for width in widths:
            for trained in (True, False) if width == 4096 else (True,):
                weight = make(width, grad=trained)
                rms_norm(make(N, width), weight, backend="triton").sum().backward()
                y, s = rms_norm(make(N, width), weight, residual=make(N, width), backend="triton")
                (y.sum() + s.sum()).backward()
            if dtype == torch.bfloat16:  # Gemma's scale: 1 + weight, in fp32
                rms_norm(make(N, width), make(width, dtype=torch.float32), backend="triton").sum().backward()
            for activation in ACTIVATIONS:
                y = swiglu(make(16, 3 * width), make(16, 3 * width), activation=activation, backend="triton")
                y.sum().backward()
        for q, k, d, norm in HEADS:
            angles = torch.empty(N, d // 2)
            for trained in (True, False) if norm else (False,):
                weights = {f"{x}_weight": make(d, grad=trained) for x in "qk"} if norm else {}
                a, b = qk_rope(make(N, q, d), make(N, k, d), angles, angles, backend="triton", **weights)
                (a.sum() + b.sum()).backward()
            cache, index = make(9, 16, k, d, grad=False), torch.ones(16, 32, dtype=torch.int32)
            lengths = index[:, 0].contiguous()
            for window in (None, 1024):
                decode_attention(
                    make(16, q, d, grad=False), cache, cache, index, lengths, window=window, backend="triton"
                )


def record(arch: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """What `run_ops` would launch on `arch`, each specialisation once: how to compile it, by a readable name."""
    found: dict[str, Callable[[], dict[str, Any]]] = {}

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **constants: Any) -> None:
        options = {name: constants.pop(name) for name in ("num_warps", "enable_fp_fusion") if name in constants}
        signature: dict[str, str] = {}
        fixed, attributes, aligned = dict(constants), {}, True
        for i, (name, value) in enumerate(zip(kernel.arg_names, args, strict=False)):
            if isinstance(value, torch.Tensor):
                signature[name], multiple = TYPES[value.dtype], value.data_ptr() % 16 == 0
            elif isinstance(value, float):
                signature[name], multiple = "fp32", False
            elif value == 1:  # what Triton makes a constant of its own accord
                fixed[name], signature[name], multiple = 1, "constexpr", False
            else:
                signature[name], multiple = "i32", value % 16 == 0
                aligned &= multiple or name in ("num_rows", "rows_each", "num_tokens", "tokens_each", "n", "top_k")
            if multiple:
                attributes[(i,)] = [["tt.divisibility", 16]]
        signature |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(kernel, signature, fixed, attributes)
        name = f"{kernel.__name__} {json.dumps([*signature.values(), fixed, sorted(attributes), options])}"
        found[name] = lambda: compiled(source, arch, options, aligned)

    triton.JITFunction.run = run
    _triton.INTERPRETED = True  # so that "triton" is accepted for CPU tensors: nothing is launched
    for module in ("decode_attention", "gather", "rms_norm", "rope", "rows", "sample", "swiglu"):
        importlib.import_module(f"vdengine.kernels.{module}").arch = lambda device: arch
    run_ops()
    return found


def compiled(source: ASTSource, arch: int, options: dict[str, Any], aligned: bool) -> dict[str, Any]:
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    ptx = made.asm["ptx"]
    loads = re.findall(r"ld\.global\S*|cp\.async\.c[ag]\.shared\.global", ptx)
    wide = [
        x for x in loads if re.search(r"v4\.[a-z]32|v2\.[a-z]64|v8\.[a-z]16|v8\.[a-z]32|v4\.[a-z]64|cp\.async\.cg", x)
    ]
    return {
        "kernel": source.fn.__name__, "arch": arch, "warps": options["num_warps"], "constants": str(source.constants),
        **assembled(ptx, arch, options.get("enable_fp_fusion", True)), "shared": made.metadata.shared,
        "limit": SHARED_BYTES[arch], "loads": len(loads), "wide_loads": len(wide), "aligned": aligned,
    }  # fmt: skip


def assembled(ptx: str, arch: int, fusion: bool) -> dict[str, int]:
    """Spilled bytes and registers, from the assembler's own report."""
    # the older assembler that comes along does not read the PTX that is written for newer parts
    tool = Path(triton.__file__).parent / "backends/nvidia/bin" / ("ptxas-blackwell" if arch >= 90 else "ptxas")
    target = re.search(r"\.target (sm_\w+)", ptx).group(1)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [tool, "-v", f"--gpu-name={target}", f"--fmad={str(fusion).lower()}", file.name, "-o", "/dev/null"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = [int(x) for x in re.findall(r"(\d+) bytes spill", report)]
    if not spills:
        raise RuntimeError(f"ptxas reports no spills, not even zero: {report}")
    return {"spilled": sum(spills), "registers": int(re.search(r"Used (\d+) registers", report).group(1))}


def compile_for(arch: int) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    return [make() for make in record(arch).values()]


if __name__ == "__main__":
    with ProcessPoolExecutor(2) as pool:
        for found in pool.map(compile_for, [int(a) for a in sys.argv[1:]] or ARCHITECTURES):
            for row in found:
                print(json.dumps(row), flush=True)
