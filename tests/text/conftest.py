"""Real tokenizers."""

from __future__ import annotations

import pytest

from vdengine.text.tokenizer import Tokenizer, load_tokenizer

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def llama3(real_tokenizer) -> Tokenizer:
    return load_tokenizer(str(real_tokenizer("llama3")))


@pytest.fixture(scope="module")
def qwen3(real_tokenizer) -> Tokenizer:
    return load_tokenizer(str(real_tokenizer("qwen3")))
