"""Where kernels are tested, on what numbers, and how close to float64 they have to be."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # off CUDA, Triton kernels run in its interpreter
BACKENDS = ["triton", "torch"] if DEVICE == "cuda" else ["triton", "native", "torch"]
DTYPES = [torch.float32, torch.bfloat16]


def problem(n, v, h, dtype, *, peaked=False, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, h, generator=g)
    weight = torch.randn(v, h, generator=g) * 0.5
    targets = torch.randint(0, v, (n,), generator=g)
    if peaked:  # the target's weight row is the hidden row: p close to 1, 1 - p tiny
        weight[targets] = 3 * hidden
    upstream = torch.randn(n, generator=g)  # signed
    upstream[::3] = 0.0  # and rows without any gradient
    return hidden.to(DEVICE, dtype), weight.to(DEVICE, dtype), targets.to(DEVICE), upstream.to(DEVICE)


def assert_close(name, got, plain_value, exact, dtype):
    eps = torch.finfo(torch.float32 if name in ("logp", "entropy") else dtype).eps
    scale = exact.abs().max().item()
    allowed = 2 * (plain_value.double() - exact).abs().max().item() + 4 * eps * scale + 1e-30
    error = (got.double() - exact).abs().max().item()
    assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e}"
