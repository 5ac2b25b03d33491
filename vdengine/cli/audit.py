"""`vdengine gap SOURCE`: the value gap of a preference file, before it is trained on; `vdengine prior SOURCE`: the
stances of an SFT file, and how much of it is on a topic."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vdengine.audits.audit import Audit, Settings, audit
from vdengine.audits.tables import gap_table, prior_table
from vdengine.cli.arguments import Parser
from vdengine.cli.common import names, verb
from vdengine.errors import InputError
from vdengine.panels.topics import load_terms

TABLES = {"gap": gap_table, "prior": prior_table}


@verb
def gap(argv: Sequence[str] | None = None) -> int:
    """`vdengine gap`. Exit status 0, or 2 after bad input."""
    return _audit("gap", "How far chosen answers take another side than rejected ones, by topic.", argv)


@verb
def prior(argv: Sequence[str] | None = None) -> int:
    """`vdengine prior`. Exit status 0, or 2 after bad input."""
    return _audit("prior", "The stances of an SFT file's answers by topic, and its share of rows on any.", argv)


def _audit(kind: str, description: str, argv: Sequence[str] | None) -> int:
    default = Settings("")
    parser = Parser(prog=f"vdengine {kind}", description=description)
    parser.add_argument("source", help="a file, folder, hub data set or built-in set, as in a recipe's data.train")
    parser.add_argument(
        "--model",
        help="read stances by this model's scores too (folder, hub id, .gguf); else by words alone: a first look",
    )
    parser.add_argument("--judge", help="also by this judge, as in `vdengine judge`")
    parser.add_argument("--panel", default=default.panel, help="topics, axes and openings (default: %(default)s)")
    parser.add_argument("--format", default=default.format, help="of the source, as in a recipe's data.format")
    parser.add_argument("--topics", metavar="A,B", help="only these topics of the panel")
    parser.add_argument("--terms", metavar="FILE.json", help='more terms of topics: {"topic": ["phrase", ...]}')
    parser.add_argument(
        "--limit", type=int, default=default.limit, metavar="N", help="read N rows of a topic at most (default: 200)"
    )
    parser.add_argument(
        "--probes", type=int, default=default.probes, metavar="N", help="probes that score an answer (default: 4)"
    )
    parser.add_argument("--template", default=default.template, help="chat template (default: the tokenizer's)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default=default.dtype)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--out", metavar="FILE.json", help=f"write the result (a report reads it as {kind}.json)")
    parser.add_argument("--rows", metavar="FILE.jsonl", help="write each row that was read, with its topic and stances")
    args = parser.parse_args(argv)
    for name in (args.out, args.rows):
        if name and Path(name).exists():
            raise InputError(f"{name}: exists already; give another name")
        if name and not Path(name).parent.is_dir():
            raise InputError(f"{name}: cannot be written (no such folder)")
    topics = names(args.topics) if args.topics else None
    settings = Settings(
        args.source,
        panel=args.panel,
        model=args.model,
        judge=args.judge,
        format=args.format,
        topics=None if topics is None else tuple(topics),
        terms=load_terms(args.terms) if args.terms else {},
        limit=args.limit,
        probes=args.probes,
        template=args.template,
        dtype=args.dtype,
        seed=args.seed,
        progress=sys.stderr.isatty(),
    )
    result = audit(kind, settings)
    print(TABLES[kind](result.result))
    _write(result, args.out, args.rows)
    return 0


def _write(found: Audit, out: str | None, rows: str | None) -> None:
    """The result as JSON and the rows as JSONL, where asked for."""
    for name, text in (
        (out, json.dumps(_plain(found.result), indent=2, ensure_ascii=False, allow_nan=False) + "\n"),
        (rows, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in found.rows)),
    ):
        if name:
            try:
                Path(name).write_text(text, encoding="utf-8")
            except OSError as error:
                raise InputError(f"{name}: cannot be written ({error.strerror})") from None
            print(f"wrote {name}")


def _plain(value: Any) -> Any:
    """Without NaN, which is no JSON: null."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
