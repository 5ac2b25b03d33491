"""The page: all data as one JSON block, and the program that draws it, in one file that needs no network."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from vdengine.drift.run import Run
from vdengine.report.gaps import Gap
from vdengine.report.payload import payload

PROGRAM = ("tools.js", "plots.js", "drift.js", "run.js", "js")  # page.*, in the order in which they are put together


def build(runs: Sequence[Run], gaps: Sequence[Gap], topics: Sequence[str], title: str, readout: str | None) -> str:
    """The page's HTML; topics: those to show; readout: the name of the reading to start with, None: the first."""
    from plotly.offline import get_plotlyjs

    folder = resources.files("vdengine.report")
    text = {name: folder.joinpath(f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", *PROGRAM)}
    # One scope, in one script element, whose digest the policy names.
    program = "".join(('"use strict";\n(() => {\n', *(text[name] for name in PROGRAM), "})();\n"))
    parts = {
        "css": text["css"],
        "data": as_script(payload(runs, gaps, topics, title, readout)),
        "plotly": _script(get_plotlyjs()),
        "program": _script(program),
    }
    # Only these two scripts may run and nothing may be fetched, whatever a text in the data holds.
    allowed = " ".join(f"'sha256-{_digest(parts[name])}'" for name in ("plotly", "program"))
    parts["policy"] = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], text["html"])


def as_script(data: Any) -> str:
    """Data as JSON that cannot end the script element around it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(char, f"\\u{ord(char):04x}")
    # A lone surrogate, from an escape in a log, has no UTF-8.
    return re.sub("[\ud800-\udfff]", lambda m: f"\\u{ord(m[0]):04x}", text)


def _script(text: str) -> str:
    """A program, as a script element may hold it."""
    if "</script" in text.lower() or "<!--" in text:
        raise ValueError("a program of the page would end its own script element")
    return text.replace("\r\n", "\n").replace("\r", "\n")  # as a browser reads it, which takes the digest


def _digest(text: str) -> str:
    """SHA-256 in base64, as a content security policy names a script."""
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
