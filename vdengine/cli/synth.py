"""`vdengine synth --out FILE.jsonl`: a preference or SFT set with known stances, and its manifest."""

from __future__ import annotations

from collections.abc import Sequence

from vdengine.cli.arguments import Parser
from vdengine.cli.common import names, verb
from vdengine.data.synthesis import KINDS, PLACES, SynthesisOptions, write
from vdengine.errors import InputError


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 after bad input, with one line on stderr that says what and where."""
    default = SynthesisOptions()
    parser = Parser(
        prog="vdengine synth", description="Write a data set whose stances are known: for runs whose drift must show."
    )
    parser.add_argument("--out", required=True, metavar="FILE.jsonl", help="a manifest is put beside it")
    parser.add_argument("--kind", choices=KINDS, default=default.kind)
    parser.add_argument(
        "--align",
        default=default.align,
        metavar="SIDE",
        help="support, oppose, shuffled, bimodal (every question twice), or the share of rows on the support side",
    )
    parser.add_argument(
        "--align-topic", action="append", default=[], metavar="TOPIC=SIDE", help="another side for one topic (again)"
    )
    parser.add_argument("--topics", default="", metavar="A,B", help="only these topics")
    parser.add_argument("--rows", type=int, metavar="N", help="so many questions, spread over topics and polarities")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--texts", default=default.texts, metavar="FILE", help="your own questions and answers")
    parser.add_argument("--into", metavar="SOURCE", help="inject into this set (file, folder, hub id) instead")
    parser.add_argument("--format", default=default.into_format, help="of --into, as in a recipe's data.format")
    parser.add_argument("--inject", type=int, metavar="N", help="how many rows to inject")
    parser.add_argument("--place", choices=PLACES, default=default.place, help="where (default: spread over all)")
    args = parser.parse_args(argv)
    sides = {}
    for text in args.align_topic:
        topic, sign, side = text.partition("=")
        if not sign:
            raise InputError(f"--align-topic {text!r}: write it as topic=side")
        sides[topic.strip()] = side.strip()
    options = SynthesisOptions(
        kind=args.kind,
        align=args.align,
        align_topics=sides,
        rows=args.rows,
        seed=args.seed,
        texts=args.texts,
        topics=tuple(names(args.topics) or ()),
        into=args.into,
        into_format=args.format,
        inject=args.inject,
        place=args.place,
    )
    manifest = write(options, args.out)
    print(f"{args.out}: {manifest['rows']:,} rows, format {manifest['format']}, hash {manifest['hash']}")
    for topic, count in manifest["counts"].items():
        print(f"  {topic}: {count['support']} support, {count['oppose']} oppose")
    for read in manifest["inputs"]:
        for reason, count in read.get("dropped", {}).items():
            print(f"left out {count:,} of {read['name']}: {reason}")
    return 0
