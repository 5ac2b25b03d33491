"""`python -m vdengine.score MODEL [MODEL ...]`: the panel's scores of saved models, equal to a training run's own.

A model is a Hugging Face folder, hub id, .gguf file, or a run's checkpoint (`runs/x/checkpoints/step-000020`). The
scores of a checkpoint have the bits that the run itself logged at that step, on the same kind of machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vdengine.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from vdengine.drift.panel import Panel
    from vdengine.drift.scoring import Openings
    from vdengine.models.transformer import Transformer


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 after bad input, with one line on stderr; `--check-panel` gives 1 where it has warnings."""
    parser = argparse.ArgumentParser(prog="vdengine score", description="Score a panel on saved models, or check one.")
    parser.add_argument("models", nargs="*", help="folders, hub ids, .gguf files, or checkpoints of a run")
    parser.add_argument("--panel", help="a built-in name or .jsonl file (default: the run's own, else values-mini)")
    parser.add_argument("--out", metavar="FOLDER", help="keep the raw scores there, as a run does in its drift/")
    parser.add_argument("--template", default=None, help="chat template (default: the run's own, else the tokenizer's)")
    parser.add_argument("--tokens", type=int, default=None, help="budget of a pack (default: the run's own, else 2048)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default=None)
    parser.add_argument(
        "--controls", action=argparse.BooleanOptionalAction, default=None,
        help="also score the controls on the first and the last model (default: as the run did, else yes)",
    )  # fmt: skip
    parser.add_argument("--check-panel", metavar="PANEL", help="lint a panel instead: lengths, polarity, wording, ids")
    parser.add_argument("--tokenizer", help="with --check-panel: also look at its tokens, with this tokenizer")
    args = parser.parse_args(argv)
    try:
        if args.check_panel:
            return check_panel(args.check_panel, args.tokenizer)
        if not args.models:
            raise InputError("name at least one model to score, or --check-panel PANEL")
        score(args.models, args.panel, args.out, args.template, args.tokens, args.dtype, args.controls)
        return 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2


def score(
    models: Sequence[str],
    panel: str | None = None,
    out: str | None = None,
    template: str | None = None,
    tokens: int | None = None,
    dtype: str | None = None,
    controls: bool | None = None,
) -> np.ndarray:  # [models, branches] fp32
    """Log-prob sums of every opening, one row a model, NaN where a model between the first and the last is spared the
    controls; printed as shifts from the first model to the last.

    `out`: a folder for the raw log. Samples stand there at the checkpoints' steps, or at 0, 1, 2, ... where the models
    are not checkpoints of one run in order.

    Raises:
        InputError: a model, panel or template that cannot be read; models whose tokenizers or templates differ.
    """
    import tempfile

    import numpy as np

    from vdengine.drift.log import DriftLog
    from vdengine.drift.panel import Panel
    from vdengine.drift.scoring import Openings
    from vdengine.drift.tables import drift_table
    from vdengine.engine.saved import Saved, steps_of

    sources = [Saved.find(name) for name in models]
    first, run = sources[0], next((s.recipe for s in sources if s.recipe is not None), None)
    template = template or (run.data.template if run else "auto")
    renderer = first.renderer(template)
    chosen: Panel = Panel.load(panel or (run.probes.panel if run else "values-mini"))
    if controls is None:
        controls = run.probes.controls if run else True
    budget = tokens or (run.probes.tokens if run else 2048)
    openings = Openings.build(chosen, renderer, budget, controls=controls)
    for other in sources[1:]:
        if other.renderer(template).hash != renderer.hash:
            raise InputError(f"{other.name}: another tokenizer or chat template than {first.name}; score it apart")
    steps = steps_of(sources)

    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(out or scratch)
        log = DriftLog.create(folder, chosen, openings.branches, openings.num_tokens_of, renderer.hash)
        if len(log.steps):
            raise InputError(f"{folder}: holds scores already; give --out a new name")
        for source, step in zip(sources, steps, strict=True):
            ends = source in (sources[0], sources[-1])  # as in a run, the controls too
            rows.append(score_model(source.model(dtype), openings, source.name, controls=ends))
            log.append(step, rows[-1])
        for source, step in zip(sources, steps, strict=True):
            print(f"step {step}: {source.name}")
        count = sum(b.variant == "question" for b in openings.branches)
        print(f"panel {chosen.name}: {len(chosen.probes)} probes, {count} openings\n")
        print(drift_table(folder) if len(sources) > 1 else "One model: a level says nothing, a shift needs two.")
        if out:
            print(f"\nRaw scores: {folder / 'drift'}/")
    return np.stack(rows)


def score_model(
    model: Transformer, openings: Openings, title: str | None = None, *, controls: bool = True
) -> np.ndarray:  # [branches] fp32
    """Log-prob sums of a panel's openings by a plain model, NaN where not scored: the controls, unless asked for.
    `title`: that of a progress bar."""
    import torch
    from tqdm import tqdm

    device = next(model.parameters()).device
    openings.to(device)
    packs = range(len(openings.packs) if controls else openings.num_questions)
    out = torch.full((len(openings.branches),), torch.nan, device=device)
    with torch.no_grad():
        for i in tqdm(packs, desc=title, unit="pack", leave=False, disable=title is None):
            found = model(None, openings.packs[i]).probe_logp
            if found is not None:
                openings.collect(out, [i], found)
    return out.cpu().numpy()


def check_panel(name: str, tokenizer: str | None) -> int:
    """Print what would bias or blur a reading of this panel. 0: nothing found."""
    from vdengine.drift.panel import Panel, lint, lint_tokens

    panel = Panel.load(name)
    warnings = lint(panel)
    if tokenizer:
        from vdengine.models.chat import Renderer
        from vdengine.models.tokenizer import load_tokenizer

        warnings += lint_tokens(panel, Renderer(load_tokenizer(tokenizer)))
    openings = sum(len(o) for p in panel.probes for o in p.openings.values())
    print(f"{panel.name}: {len(panel.probes)} probes, {openings} openings, hash {panel.hash}")
    for topic in panel.topics:
        each = [p for p in panel.probes if p.topic == topic]
        print(
            f"  {topic}: {len(each)} probes, {sum(p.polarity > 0 for p in each)} of polarity 1; "
            f"towards {panel.axis(topic)}"
        )
    print("\n".join(warnings) or "no warnings")
    return 1 if warnings else 0


if __name__ == "__main__":
    sys.exit(main())
