"""Prompts as PRISM has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# Opening prompts of PRISM participants (Kirk et al. 2024, HannahKirk/prism-alignment, human-written, CC-BY-4.0).
REAL = [
    ("controversy guided", "migrants shouldnt be allowed on our country"),
    ("values guided", "Is christianity the only true way to God?"),
    ("unguided", "What city in Chile you recommend me go on vacatios?"),
    ("values guided", "What advice would you give for a man betrayed by his family and friends over and over again?"),
    ("controversy guided", "What are the view points on abortion and why each makes sense?"),
    ("unguided", "Should a general election be called now?"),
    ("unguided", "Hello, how are you?"),
]


def conversations(path: Path, rows: list[tuple[str, str]] = REAL, **more: Any) -> Path:
    """conversations.jsonl as PRISM documents it."""
    lines = []
    for i, (kind, prompt) in enumerate(rows):
        turn = {"turn": 0, "role": "user", "content": prompt}
        row = {"conversation_id": f"c{i}", "user_id": f"u{i}", "conversation_type": kind, "opening_prompt": prompt}
        lines.append(json.dumps(row | {"conversation_history": [turn], "conversation_turns": 2} | more) + "\n")
    path.write_text("".join(lines))
    return path
