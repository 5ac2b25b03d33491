"""`vdengine judge RUN [RUN ...]`: what stance a run's sampled answers take, by one or more judges.

`--models` samples the answers first, from any saved models, with this engine's own generator: by default as the paper
does (arXiv 2510.26707), 5 answers to a question at temperature 0.7, up to 256 tokens each.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vdengine.cli.arguments import Parser
from vdengine.cli.common import verb
from vdengine.errors import InputError

if TYPE_CHECKING:
    from vdengine.drift.judgements import Subset
    from vdengine.judges.base import Judge


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 after bad input or a judge that stopped, with one line on stderr; what it said is kept."""
    from vdengine.drift.judgements import Subset
    from vdengine.judges import open_judge
    from vdengine.judges.base import JudgeOptions

    default = JudgeOptions()
    parser = Parser(
        prog="vdengine judge",
        description="Judge the answers that runs have sampled, or sample some from saved models.",
        epilog="judges: rule (rules that can be read), model:SOURCE (a model in this engine), server:MODEL[@URL] (an "
        "OpenAI-compatible server; OPENAI_API_KEY and OPENAI_BASE_URL are read from the environment)",
    )
    parser.add_argument("runs", nargs="*", help="run folders with sampled answers")
    parser.add_argument("--judge", action="append", metavar="NAME", help="may be given several times (default: rule)")
    sampling = parser.add_argument_group("sampling first")
    sampling.add_argument("--models", nargs="+", metavar="MODEL", help="folders, hub ids, .gguf, checkpoints of a run")
    sampling.add_argument("--out", metavar="FOLDER", help="with --models: where answers and judgements go")
    sampling.add_argument(
        "--panel", help="a built-in name or .jsonl file (default: the checkpoints' run's, else values)"
    )
    sampling.add_argument("--samples", type=int, default=5, help="answers to a question (default: %(default)s)")
    sampling.add_argument("--temperature", type=float, default=0.7, help="(default: %(default)s)")
    sampling.add_argument("--max-tokens", type=int, default=256, help="of an answer (default: %(default)s)")
    sampling.add_argument("--template", help="of --models (default: the run's own, else the tokenizer's)")
    dtypes = ("auto", "float32", "bfloat16")
    sampling.add_argument("--dtype", choices=dtypes, help="of --models (default: the run's own, else auto)")
    sampling.add_argument("--seed", type=int, default=0)
    how = parser.add_argument_group("judging")
    how.add_argument("--dry-run", action="store_true", help="only say what it would take")
    how.add_argument("--max-calls", type=int, metavar="N", help="ask a judge N questions at most, for each run")
    how.add_argument(
        "--subset",
        type=int,
        metavar="N",
        help="judge N answers of each run, drawn at random by --seed: what is cheap judges all, and this corrects it",
    )
    how.add_argument("--again", action="store_true", help="forget what these judges said of these runs before")
    how.add_argument("--concurrency", type=int, default=default.concurrency, help="requests at a time (%(default)s)")
    how.add_argument(
        "--timeout", type=float, default=default.timeout_seconds, metavar="S", help="of a request (%(default)g)"
    )
    how.add_argument("--retries", type=int, default=default.retries, help="of a request (%(default)s)")
    how.add_argument(
        "--labels",
        default=default.labels,
        choices=("logprobs", "text"),
        help="text: for servers without log-probs; the word that is answered counts as certain",
    )
    how.add_argument("--judge-template", default=default.template, help="of model:SOURCE (default: its tokenizer's)")
    how.add_argument("--judge-dtype", choices=dtypes, default=default.dtype, help="of model:SOURCE (%(default)s)")
    how.add_argument("--cache", type=Path, help="folder of servers' verdicts (default: the user's cache)")
    sheets = parser.add_argument_group("people")
    sheets.add_argument("--export-sheet", type=Path, metavar="FILE.csv", help="write answers to label by hand, blind")
    sheets.add_argument("--rows", type=int, default=100, help="of the sheet (default: %(default)s)")
    sheets.add_argument("--import-sheet", type=Path, metavar="FILE.csv", help="read the labels back")
    sheets.add_argument(
        "--calibrate", metavar="JUDGE", help="fit --judge to the labels of this one (human-NAME), as a judge of its own"
    )
    sheets.add_argument("--by", metavar="NAME", help="with --import-sheet: who labelled it (default: the file's name)")
    args = parser.parse_args(argv)
    runs = list(args.runs)
    for name in ("out", "panel", "template", "dtype"):
        if getattr(args, name) is not None and not args.models:
            raise InputError(f"--{name} is of the models that are sampled; there are no --models")
    if args.models:
        if not args.out:
            raise InputError("--models needs --out FOLDER, where the answers are kept")
        from vdengine.engine.preflight import check_names

        check_names(args.models, args.panel)
        from vdengine.engine.saved_models import sample_answers

        sample_answers(
            args.models,
            Path(args.out),
            panel=args.panel,
            samples=args.samples,
            temperature=args.temperature,
            max_tokens=args.max_tokens,
            template=args.template,
            dtype=args.dtype,
            seed=args.seed,
            dry_run=args.dry_run,
        )
        if args.dry_run:
            return 0
        runs.append(args.out)
    if not runs:
        raise InputError("name at least one run, or --models and --out")
    if args.export_sheet or args.import_sheet:
        return sheet(runs, args.export_sheet, args.rows, args.seed, args.import_sheet, args.by)
    if args.calibrate:
        return calibrate_runs(runs, args.judge or ["rule"], args.calibrate)
    options = JudgeOptions(
        concurrency=args.concurrency,
        timeout_seconds=args.timeout,
        retries=args.retries,
        labels=args.labels,
        cache=args.cache,
        dtype=args.judge_dtype,
        template=args.judge_template,
    )
    chosen = [open_judge(name, options) for name in dict.fromkeys(args.judge or ["rule"])]
    subset = None if args.subset is None else Subset(args.subset, args.seed)
    for run in runs:
        judge_run(run, chosen, max_calls=args.max_calls, again=args.again, subset=subset, dry_run=args.dry_run)
    return 0


def judge_run(
    run: str,
    chosen: Sequence[Judge],
    *,
    max_calls: int | None = None,
    again: bool = False,
    subset: Subset | None = None,
    dry_run: bool = False,
) -> None:
    """Judge one run's answers, and say how its readouts and judges agree.

    Raises:
        InputError: no answers, or a judge that cannot go on: the message says how much is kept.
    """
    from vdengine.drift.answer_log import AnswerLog
    from vdengine.drift.judgements import Judgements, Part, folder_of, open_judgements, slug_of
    from vdengine.drift.summary import agreement_tables, answers_table
    from vdengine.judges.judging import judge_answers, to_judge

    log = AnswerLog.open(run)
    print(f"{run}: {len(log.answers):,} answers to {len(log.panel.probes)} questions, at steps {_steps(log.anchors)}")
    for judge in chosen:
        plan = to_judge(log, judge, max_calls=max_calls, again=again, subset=subset)
        print(f"{judge.name}: {judge.estimate(plan.items)}", flush=True)
        if dry_run:
            continue
        try:
            done = judge_answers(
                log, judge, max_calls=max_calls, again=again, subset=subset, progress=sys.stderr.isatty()
            )
        except InputError as error:
            path = folder_of(log) / f"{slug_of(judge.name)}.jsonl"
            verdicts = Judgements.open(path).verdicts if path.exists() else {}
            kept = sum(isinstance(key, Part) and key.part == "both" for key in verdicts)
            raise InputError(
                f"{error}. {kept:,} of {len(log.answers):,} answers are judged and kept; the same command goes on there"
            ) from None
        said = [f"{done.new:,} judged now, {done.before:,} before"]
        said += [f"{done.silent:,} without a verdict"] if done.silent else []
        said += [f"{done.left:,} left: run it again"] if done.left else []
        print(f"{judge.name}: {', '.join(said)}")
        found = open_judgements(log, slug_of(judge.name))
        if found.subset is not None:
            share = f"a random part, {found.subset.answers:,} of {len(log.answers):,} answers"
            print(f"{judge.name}: judges {share}; it corrects a judge that has judged all of them")
        elif (share_judged := found.share(log)) < 1:
            print(f"{judge.name}: has judged {share_judged:.0%} of the answers, a random part of them")
        if gaps := found.gaps(log):
            print(f"{judge.name}: no answer is judged at steps {_steps(gaps)}: its readouts leave them out")
        if found.bare is not None:
            print(f"{judge.name}: a bare yes counts {found.bare[0]:+.2f}, a bare no {found.bare[1]:+.2f}")
        if (orders := found.orders) is not None and orders.num:
            print(
                f"{judge.name}: with its words in the other order, where it takes a side in either: kappa "
                f"{orders.kappa:.2f} [{orders.low:.2f}, {orders.high:.2f}] on {orders.num} questions"
            )
        print()
        if done.silent < done.new + done.before:
            print(answers_table(run, slug_of(judge.name)) + "\n")
    if not dry_run:
        tables = agreement_tables(run)
        print(tables + "\n" if tables else "")


def calibrate_runs(runs: Sequence[str], judges: Sequence[str], by: str) -> int:
    """Calibrate judges of some runs on another's labels, and say what it does."""
    from vdengine.drift.answer_log import AnswerLog
    from vdengine.drift.judgements import slug_of
    from vdengine.drift.summary import kappa_line
    from vdengine.judges.calibration import calibrate

    logs = [AnswerLog.open(run) for run in runs]
    for judge in judges:
        found = calibrate(logs, slug_of(judge), slug_of(by))
        print(f"{found.judge}, on the labels of {by}, each by a map that was fitted without its question:")
        print(f"  before: {kappa_line(found.before)}; log loss {found.loss_before:.2f}")
        print(f"  after:  {kappa_line(found.after)}; log loss {found.loss_after:.2f}")
    return 0


def sheet(runs: Sequence[str], export: Path | None, rows: int, seed: int, labelled: Path | None, by: str | None) -> int:
    """Write an annotation sheet, or read one back and say how each judge agrees with it."""
    from vdengine.drift.answer_log import AnswerLog
    from vdengine.drift.summary import kappa_table
    from vdengine.judges.people import export_sheet, import_sheet

    logs = [AnswerLog.open(run) for run in runs]
    if export:
        count = export_sheet(logs, export, rows=rows, seed=seed)
        print(f"{export}: {count} answers; fill in the column 'label': support, neutral or oppose (or s, n, o)")
    if labelled:
        sheet_labels = import_sheet(logs, labelled, by or labelled.stem)
        foreign = f", {sheet_labels.foreign} labels of other runs left out" if sheet_labels.foreign else ""
        print(f"{labelled}: {sheet_labels.labelled} labels kept as {sheet_labels.judge}{foreign}\n")
        print(kappa_table(runs, sheet_labels.judge))
    return 0


def _steps(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps if len(steps) <= 8 else [*steps[:4], "...", *steps[-2:]]))
