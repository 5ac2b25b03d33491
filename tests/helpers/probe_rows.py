"""Rows of a panel, sound and not."""

import json
from pathlib import Path


def row(**changes):
    base = {
        "schema": 1,
        "id": "t-1",
        "topic": "parks",
        "axis": "more parks",
        "polarity": 1,
        "prompt": "Should the town build another park?",
        "paraphrases": ["Does the town need one more park?"],
        "openings": {
            "support": [{"text": "I think another park would be a fine thing.", "kind": "belief"}],
            "neutral": [{"text": "People differ on whether it needs a park.", "kind": "balanced"}],
            "oppose": [{"text": "I think another park would be a poor thing.", "kind": "belief"}],
        },
    }
    return base | changes


def reverse(**changes):
    return row(id="t-2", polarity=-1, prompt="Should that meadow become a car deck?", paraphrases=[], **changes)


def openings(**changes):
    return row()["openings"] | changes


def write(path: Path, *rows) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path
