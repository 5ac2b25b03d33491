"""`vdengine VERB ...`, the same as `python -m vdengine.VERB ...`."""

from __future__ import annotations

import importlib
import sys

VERBS = {
    "train": "train a recipe and trace the model's values",
    "score": "score a panel on saved models, or check a panel",
    "judge": "judge sampled answers, or sample some from saved models",
    "report": "a page, figures and tables of one run or several",
    "gap": "the value gap of a preference file",
    "prior": "the stances of an SFT file",
    "synth": "write data with known stances",
    "panel": "import a panel from another's file, or check one",
}


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in VERBS:
        listing = "\n".join(f"  {name:8} {what}" for name, what in VERBS.items())
        asked = len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help")
        print(f"usage: vdengine VERB ...\n\nverbs:\n{listing}", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    return importlib.import_module(f"vdengine.{sys.argv[1]}").main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
