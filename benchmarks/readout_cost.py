"""What each readout of a panel costs, in tokens and in FLOPs: `python benchmarks/readout_cost.py`.

Counted, not timed: the packs of a sample as they are laid out, by `ModelConfig.flops`, as a share of a training step (a
step is three forwards of its rows). For the quickstart with its own rows; for Qwen3-8B with the batch of
`recipes/qwen3_dpo.toml`, at a stated number of tokens a pair. Times: `pytest benchmarks/test_probe_cost.py`.

    python benchmarks/readout_cost.py --tokenizer FOLDER    # with Qwen-3's tokenizer, also the second table
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import REPO  # noqa: E402

# Qwen/Qwen3-8B, config.json
QWEN3_8B = {
    "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288,
    "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-6,
    "rope_theta": 1e6, "rope_scaling": None, "tie_word_embeddings": False, "max_position_embeddings": 40960,
}  # fmt: skip


def rows(panel_name: str, renderer, pack_tokens: int, flops: dict[str, float], step_flops: float) -> list[str]:
    """A line a readout."""
    from vdengine.drift.panel_packs import PanelPacks
    from vdengine.panels.panel import Panel
    from vdengine.recipe import LEAD, READOUTS, TEXT

    panel, lines = Panel.load(panel_name), []
    for readouts in ([LEAD], [TEXT], list(READOUTS)):
        packs = PanelPacks.build(panel, renderer, pack_tokens, readouts=readouts)
        whole = packs.part(0, 1)
        tokens, scored = (sum(getattr(packs.packs[i], n) for i in whole) for n in ("num_tokens", "num_scored"))
        share = packs.flops(flops, whole) / step_flops
        count = len(panel.probes)
        lines.append(
            f"| {' and '.join(readouts)} | {tokens:,} | {tokens / count:.0f} | {scored / count:.0f} | {share:.1%} |"
        )
    return lines


HEAD = ["| readout | tokens run, a sample | a probe | scored, a probe | of a step's FLOPs |", "|---|---|---|---|---|"]


def quickstart() -> list[str]:
    """By the outlook of the recipe, which reads its rows."""
    from vdengine.engine.outlook import outlook
    from vdengine.engine.preflight import preflight
    from vdengine.models.weights import open_causal
    from vdengine.recipe import load_recipe
    from vdengine.text.tokenizer import load_tokenizer

    recipe = load_recipe(REPO / "recipes" / "quickstart.toml", [f"run.folder={tempfile.mkdtemp()}/run"])
    step = outlook(recipe, preflight(recipe))["run"]["step_flops"]
    config = open_causal(recipe.model.source).config
    renderer = load_tokenizer(recipe.model.source).renderer
    return rows(recipe.probes.panel, renderer, recipe.probes.tokens, config.flops, step)


def qwen3_8b(tokenizer: str, tokens_per_pair: int) -> list[str]:
    """By formula: 128 pairs; half of a pair's tokens are scored; attention is left out of the step."""
    from vdengine.models.families import ModelConfig
    from vdengine.recipe import load_recipe
    from vdengine.text.tokenizer import load_tokenizer

    recipe, config = load_recipe(REPO / "recipes" / "qwen3_dpo.toml"), ModelConfig(**QWEN3_8B)
    per_pair = tokens_per_pair * (config.flops["linear"] + config.flops["head"] / 2)
    step = 3 * recipe.batch.examples * per_pair
    return rows(recipe.probes.panel, load_tokenizer(tokenizer).renderer, recipe.probes.tokens, config.flops, step)


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tokenizer", help="a folder with Qwen-3's tokenizer")
    parser.add_argument("--tokens-per-pair", type=int, default=800)
    args = parser.parse_args()
    print("Quickstart: SmolLM2-135M, values-mini, 8 pairs a step\n")
    print("\n".join(HEAD + quickstart()))
    if args.tokenizer:
        print(f"\nQwen3-8B, values, 128 pairs a step of {args.tokens_per_pair} tokens\n")
        print("\n".join(HEAD + qwen3_8b(args.tokenizer, args.tokens_per_pair)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
