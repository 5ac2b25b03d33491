"""`vdengine check RECIPE`: what a run will do and need, without training, within seconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from vdengine.cli.arguments import RecipeParser
from vdengine.cli.common import verb

EXAMPLE_LINES = 24


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 if the run can start, warnings or none; 2 where it cannot, with one line on stderr."""
    parser = RecipeParser(
        prog="vdengine check",
        description="What a run will do and need, from its recipe and files and a sample of its rows; nothing is "
        "trained or written.",
    )
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="estimate for N ranks (default: 1)")
    parser.add_argument("--rows", type=int, default=300, metavar="N", help="read N rows of each source (default: 300)")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    args, recipe = parser.read(argv)
    for name in ("ranks", "rows"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    from vdengine.engine.preflight import preflight

    found = preflight(recipe)
    from vdengine.engine.outlook import outlook

    out = outlook(recipe, found, ranks=args.ranks, rows=args.rows)
    print(json.dumps(out, indent=2, ensure_ascii=False) if args.json else text(out))
    return 0


def text(out: dict[str, Any]) -> str:
    """The outlook for a terminal, warnings first."""
    from vdengine.engine.console import count
    from vdengine.engine.memory import size

    model, run, template, memory, disk = (out[k] for k in ("model", "run", "template", "memory", "disk"))
    lines = [f"warning: {warning}" for warning in out["warnings"]] + [""] * bool(out["warnings"])

    def add(label: str, first: str, *rest: str) -> None:
        lines.extend([f"{label:9}{first}", *(f"{'':9}{line}" for line in rest)])

    add(
        "model",
        model["source"],
        f"{model['family']}, {count(model['parameters'])} parameters, {model['dtype']} on {model['ranks']} x "
        f"{model['device']}",
    )
    stops = ", ".join(f"{stop['token']} ({stop['id']})" for stop in template["stops"])
    add("template", f"{template['name']}; an answer ends with {stops or 'nothing'}")
    for s in out["data"]:
        about = "about " if s["estimate"] else ""
        details = [
            f"format {s['format']}; {s['rows']:,} rows, {about}{s['examples']:,} examples"
            + (f" (estimated from the first {s['rows_read']:,})" if s["estimate"] else ""),
            f"tokens of prompt and answer: {s['lengths']['median']:,} in the median, {s['lengths']['p95']:,} at 95%, "
            f"{s['lengths']['longest']:,} the longest",
        ]
        details += [f"dropped {n:,} of {s['rows_read']:,}: {reason}" for reason, n in sorted(s["dropped"].items())]
        if s["too_long"]:
            details.append(f"too long for data.max_tokens: {s['too_long']:,} of {s['rows_read']:,}")
        if s["unread"]:
            details.append(f"columns not read: {', '.join(s['unread'][:8])}" + " and more" * (len(s["unread"]) > 8))
        add("data", s["source"], *details)
    about = "about " if run["estimate"] else ""
    if out["model"]["adapter"] is not None:
        add("adapter", f"{out['model']['adapter']:,} parameters are trained, the model is frozen")
    add(
        "train",
        f"{out['recipe']['objective']}, {run['steps']:,} steps of {run['examples_per_step']} = {about}"
        f"{run['epochs']:.2f} epochs of {run['steps_per_epoch']:,} steps",
        f"{run['tokens_per_step']:,} tokens a step ({run['scored_share']:.0%} scored) in "
        f"{run['packs_per_step']} pack{'s' * (run['packs_per_step'] > 1)} a rank, {run['step_flops']:.2g} FLOPs",
    )
    if p := out["probes"]:
        steps = p["steps"]
        shown = ", ".join(map(str, steps if len(steps) <= 12 else [*steps[:8], "...", steps[-1]]))
        add(
            "probes",
            f"{p['panel']}: {p['probes']} probes, {', '.join(p['readouts'])}; {p['tokens']:,} tokens a sample",
            f"{len(steps)} samples, at steps {shown}" + ", the first and last with controls" * p["controls"],
            f"{p['cost']:.1%} of the training FLOPs",
        )
    else:
        add("probes", "off")
    if a := out["answers"]:
        add("answers", *a["summary"].splitlines())
    if t := out["tasks"]:
        add("tasks", *t["summary"].splitlines())
    add(
        "memory",
        f"about {size(memory['total'])} a rank at the peak; {size(memory['available'])} there",
        *(f"{size(n):>9}  {name}" for name, n in sorted(memory["parts"].items(), key=lambda item: -item[1])),
        *(f"{size(n):>9}  {name}, in host memory" for name, n in memory["host"].items()),
    )
    add(
        "disk",
        f"{disk['folder']}{' (exists: it would be resumed)' * disk['exists']}: checkpoints up to "
        f"{size(disk['checkpoints'])}, export {size(disk['export'])}; {size(disk['free'])} free",
    )
    example = out["first_example"]
    shown = example["text"].splitlines()
    clipped = [line[:160] for line in shown[:EXAMPLE_LINES]] + ["..."] * (len(shown) > EXAMPLE_LINES)
    return "\n".join([*lines, "", "the first example of step 1:" if example["exact"] else "an example:", *clipped])
