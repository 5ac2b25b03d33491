"""Models and a tokenizer that our objectives and TRL's trainers share."""

from __future__ import annotations

import pytest
from helpers.peers import VOCAB, hf_model, ours
from helpers.trl_trainers import EOS, MODELS


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
    """Words are the numbers themselves: the text "5 17 <eos>" is the ids [5, 17, 2]."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {"<unk>": 0, "<pad>": 1, "<eos>": EOS} | {str(i): i for i in range(3, VOCAB)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
