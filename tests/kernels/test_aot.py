"""Every kernel compiles ahead of time for sm_80, sm_90 and sm_100, without a GPU, as real shapes launch it."""

import importlib.util
import json
import subprocess
import sys

import pytest
from helpers.launch import environment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def compiled():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("no triton on this platform")
    compiling = {k: v for k, v in environment().items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-m", "helpers.aot"], env=compiling, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_no_kernel_spills_registers(compiled):
    """Guards speed where no GPU is at hand: a spilled register is a trip to memory in the innermost loop."""
    assert {row["arch"] for row in compiled} == {80, 90, 100}
    spilled = [f"{row['kernel']} sm_{row['arch']}: {row['spilled']} bytes" for row in compiled if row["spilled"]]
    assert not spilled, spilled


def test_shared_memory_fits(compiled):
    """Guards launches: a block that asks for more than the part has does not start."""
    assert all(row["shared"] <= row["limit"] for row in compiled)


def test_kernels_bound_by_memory_load_16_bytes_at_a_time(compiled):
    """Guards bandwidth: where a shape is divisible, the compiler must see it. (The preference loss and the sums of a
    pack's branches read a few thousand numbers.)"""
    bound = ("head_rows", "gather_sum", "rms_norm", "qk_rope", "swiglu", "decode", "sample")
    streaming = [row for row in compiled if row["aligned"] and row["kernel"].startswith(bound)]
    assert {row["kernel"] for row in streaming} >= {"head_rows_kernel", "rms_norm_backward_kernel", "swiglu_kernel"}
    # the others are a row's own scalars, what all rows share (angles, a weight), and the numbers of a cache's blocks, 4
    # bytes for 16 keys, which Triton 3.6 fetches one by one
    least = {
        "head_rows_kernel": 0.5, "gather_sum_kernel": 0.4, "qk_rope_backward_kernel": 0.5,
        "decode_attention_kernel": 0.55,
    }  # fmt: skip
    narrow = [
        f"{row['kernel']} sm_{row['arch']}: {row['wide_loads']} of {row['loads']} loads, {row['constants']}"
        for row in streaming
        if row["wide_loads"] < least.get(row["kernel"], 0.65) * row["loads"]
    ]
    assert not narrow, narrow
