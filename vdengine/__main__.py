"""`vdengine VERB ...`."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

import vdengine

# verb: (what it does, its module, its function)
VERBS = {
    "train": ("train a recipe and trace the model's values", "vdengine.train", "main"),
    "check": ("what a recipe will do and need, within seconds", "vdengine.cli.check", "main"),
    "export": ("a checkpoint of a run as a Hugging Face folder", "vdengine.cli.export", "main"),
    "score": ("score a panel on saved models, or check a panel", "vdengine.cli.score", "main"),
    "judge": ("judge sampled answers, or sample some from saved models", "vdengine.cli.judge", "main"),
    "report": ("a page, figures and tables of one run or several", "vdengine.cli.report", "main"),
    "gap": ("the value gap of a preference file", "vdengine.cli.audit", "gap"),
    "prior": ("the stances of an SFT file", "vdengine.cli.audit", "prior"),
    "synth": ("write data with known stances", "vdengine.cli.synth", "main"),
    "panel": ("import a panel from another's file, or check one", "vdengine.cli.panel", "main"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The verb's exit status; 2 where there is no such verb."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["help"]:  # `help VERB` is `VERB --help`
        arguments = [*arguments[1:2], "--help"]
    first = arguments[0] if arguments else "--help"
    if first in VERBS:
        _, module, function = VERBS[first]
        return getattr(importlib.import_module(module), function)(arguments[1:])
    if first in ("-h", "--help"):
        print(_usage())
        return 0
    if first in ("-V", "--version"):
        print(f"vdengine {vdengine.__version__}")
        return 0
    print(f"error: {_unknown(first)}; see vdengine --help", file=sys.stderr)
    return 2


def _usage() -> str:
    listing = "\n".join(f"  {name:8} {what}" for name, (what, *_) in VERBS.items())
    return (
        f"usage: vdengine VERB ...\n\nverbs:\n{listing}\n\n"
        "vdengine VERB --help says what a verb takes; vdengine --version its version.\n"
        "A first run: vdengine train recipes/quickstart.toml"
    )


def _unknown(word: str) -> str:
    """The message on a word that is no verb."""
    if word.endswith(".toml"):
        return f"{word!r} is no verb; did you mean: vdengine train {word}"
    if word.startswith("-"):
        return f"{word} is no option of vdengine itself; a verb comes first ({', '.join(VERBS)})"
    close = difflib.get_close_matches(word.lower(), list(VERBS), n=1, cutoff=0.5)
    return f"{word!r} is no verb; " + (f"did you mean {close[0]}?" if close else f"verbs: {', '.join(VERBS)}")


if __name__ == "__main__":
    sys.exit(main())
