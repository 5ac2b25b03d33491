"""`vdengine VERB ...`."""

from __future__ import annotations

import importlib
import sys

# verb: (what it does, its module, its function)
VERBS = {
    "train": ("train a recipe and trace the model's values", "vdengine.train", "main"),
    "score": ("score a panel on saved models, or check a panel", "vdengine.cli.score", "main"),
    "judge": ("judge sampled answers, or sample some from saved models", "vdengine.cli.judge", "main"),
    "report": ("a page, figures and tables of one run or several", "vdengine.cli.report", "main"),
    "gap": ("the value gap of a preference file", "vdengine.cli.audit", "gap"),
    "prior": ("the stances of an SFT file", "vdengine.cli.audit", "prior"),
    "synth": ("write data with known stances", "vdengine.cli.synth", "main"),
    "panel": ("import a panel from another's file, or check one", "vdengine.cli.panel", "main"),
}


def main() -> int:
    """The verb's exit status; 2 where there is no such verb."""
    if len(sys.argv) < 2 or sys.argv[1] not in VERBS:
        listing = "\n".join(f"  {name:8} {what}" for name, (what, *_) in VERBS.items())
        asked = len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help")
        print(f"usage: vdengine VERB ...\n\nverbs:\n{listing}", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    _, module, function = VERBS[sys.argv[1]]
    return getattr(importlib.import_module(module), function)(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
