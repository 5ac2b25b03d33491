"""A byte tokenizer of transformers, and a small panel."""

from typing import Any

import pytest
from helpers.causal_lms import small_panel, tokenizer

from vdengine.panels.panel import Panel


@pytest.fixture(scope="session")
def tok(tiny_models) -> Any:
    return tokenizer(tiny_models["llama"])


@pytest.fixture(scope="session")
def panel() -> Panel:
    return small_panel()
