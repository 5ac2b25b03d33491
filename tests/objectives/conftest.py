"""Models and a tokenizer that our objectives and TRL's trainers share."""

from __future__ import annotations

import pytest
from helpers.peers import hf_model, ours
from helpers.trl_trainers import MODELS, number_words


@pytest.fixture(scope="module", params=MODELS)
def models(request, tmp_path_factory):
    """(transformers' policy, our policy, transformers' reference, our reference): other weights in the reference,
    or its terms would cancel."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("trl") / request.param
    hf, hf_reference = (hf_model(**MODELS[request.param], seed=seed) for seed in (0, 1))
    return hf, ours(hf, folder / "policy"), hf_reference, ours(hf_reference, folder / "reference")


@pytest.fixture(scope="module")
def tokenizer():
    pytest.importorskip("transformers")
    return number_words()
