"""What must hold before a run goes on in its folder: the folder is whole, its logs are those of the checkpoint, and
what has been done so far is what the recipe would do."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vdengine import recipe as recipes
from vdengine.drift.answer_log import AnswerLog
from vdengine.engine.learning_rate import learning_rate
from vdengine.errors import InputError
from vdengine.files import digest
from vdengine.objectives import Objective
from vdengine.outside import LARGE, is_count, parse_json, read_bytes
from vdengine.runfolder import RunFolder

# Keys in which a run that goes on may differ, as long as the steps so far are the same (`check_length`).
LENGTH = ("run.steps", "run.epochs", "optimizer.warmup")
# Likewise: when panel and answers are sampled. A longer run may need the steps in words to keep those it has.
SAMPLED = (
    "probes.every", "probes.budget", "answers.anchors", "answers.generated_tokens", "answers.most_answers",
    "capability.every",
)  # fmt: skip

# Names of what a run reads. Their contents are compared (`inputs.json`, the log's panel), so they may have moved.
BY_CONTENTS = (
    "run.after", "model.source", "model.tokenizer", "lora.start", "data.train", "data.eval", "data.template",
    "reward.source", "value.source", "probes.panel", "capability.tasks",
)  # fmt: skip


def holds_a_run(files: RunFolder) -> bool:
    """Whether the folder is one that a run goes on in. Nothing or a lock alone is none.

    Raises:
        InputError: there are logs or checkpoints, but not what says what they are of.
    """
    begun = [p for p in (files.metrics, files.checkpoints, files.drift, files.capability) if p.exists()]
    for needed in (files.recipe, files.inputs):
        if not needed.exists() or not needed.stat().st_size:
            if begun:
                state = "empty" if needed.exists() else "missing"
                raise InputError(
                    f"{needed}: {state}, and {begun[0].name} beside it is of a run: put the file back, or name another "
                    "run.folder"
                )
            return False
    return True


def check_folder(recipe: recipes.Recipe, objective: Objective) -> recipes.Recipe | None:
    """Check that a recipe may write to its run folder, or go on there. Returns the recipe of the run that goes on.

    Raises:
        InputError: it may not: another recipe's run, something that is no run, or one that is not to be gone on with.
    """
    files = RunFolder.at(recipe.run.folder)
    if files.path.is_dir() and not files.recipe.exists():
        models = ("config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json")
        if files.path.resolve() in (Path.cwd(), Path.home(), Path("/")) or any(
            (files.path / n).exists() for n in models
        ):
            raise InputError(f"run.folder: {files.path} is another thing's folder; name one for the run alone")
    if not holds_a_run(files):
        return None
    if not recipe.run.resume:
        raise InputError(f"{files.path}: exists already; give run.folder a new name or set run.resume = true")
    old = recipes.saved_recipe(files.recipe, objective)
    both = (old, recipe)
    compared = {"reward.source"} if any(r.reward.source.startswith("regex:") for r in both) else set()
    compared |= {"data.train"} if any(r.data.train == [recipes.OWN_BATCHES] for r in both) else set()
    moved = [name for name in BY_CONTENTS if name not in compared]
    if changed := recipes.differences(old, recipe, but=(*LENGTH, *SAMPLED, *moved)):
        if len(changed) > 4:  # another objective has other keys
            changed = [*changed[:3], f"and {len(changed) - 3} more"]
        raise InputError(
            f"{files.path}: cannot resume, the recipe differs: {'; '.join(changed)}; name another run.folder"
        )
    return old


def check_logs(files: RunFolder, step: int, logs: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that the logs have what they had when the checkpoint of `step` was saved.

    Args:
        logs: of its manifest.

    Raises:
        InputError: one has lost something of the steps before it; it names the log.
    """
    for name, entry in logs.items():
        path, size = files.path / name, entry["bytes"]
        if ".." in name.split("/") or name.startswith("/"):
            raise InputError(f"{files.checkpoint(step)}: names the log {name!r}, which is not in the run folder")
        wrong = ""
        if not path.is_file():
            wrong = "is missing"
        elif (now := path.stat().st_size) < size:
            wrong = f"has only {now:,} of the {size:,} bytes"
        elif digest(path, size) != entry["hash"]:
            wrong = "has other contents than"
        if wrong:
            had = f" that it had at the checkpoint of step {step}" if wrong != "is missing" else ""
            raise InputError(
                f"{path}: {wrong}{had}: the run would go on with a hole in its log; put the file back, or name another "
                "run.folder"
            )


def check_fresh(files: RunFolder) -> list[str]:
    """What is worth saying of a run that starts over because it has no checkpoint.

    Raises:
        InputError: there were checkpoints, or there is an export: starting over would remove what was done.
    """
    step = last_step(files)
    if files.saved.exists() or files.export.exists():
        raise InputError(
            f"{files.checkpoints}: no checkpoint, though the run came to step {step}; starting over would overwrite "
            "its logs: put the checkpoints back, or name another run.folder"
        )
    return [f"no checkpoint yet (the run came to step {step}): starting over"] if step else []


def last_step(files: RunFolder) -> int:
    """The step of the last whole line of metrics; 0 where there is none."""
    return last_metrics(files).get("step", 0)


def last_metrics(files: RunFolder, name: str = "step") -> dict[str, Any]:
    """The last whole line of metrics that has a step, and the metric `name`; {} where there is none."""
    if not files.metrics.exists():
        return {}
    for line in reversed(read_bytes(files.metrics, LARGE).split(b"\n")[:-1]):
        try:
            row = parse_json(line, str(files.metrics))
        except InputError:
            continue  # of a crash; the line before it counts
        if isinstance(row, dict) and is_count(row.get("step")) and name in row:
            return row
    return {}


def check_length(
    old: recipes.Recipe,
    new: recipes.Recipe,
    *,
    totals: tuple[int, int],
    done: int,
    sampled: Sequence[int],
    checked: Sequence[int],
    anchors: Sequence[int],
) -> None:
    """Check that a run of another length, or with other samples to come, is the same up to where it stands.

    Args:
        totals: planned steps, of the old recipe and the new one.
        done: steps so far.
        sampled: of these, those before which the new schedule samples probes and the log has no sample, or the other
            way round.
        checked: likewise of tasks.
        anchors: likewise of answers.

    Raises:
        InputError: it is not; the message says what could be done.
    """
    before, after = totals
    planned = recipes.differences(old, new, but=BY_CONTENTS)  # of `LENGTH` and `SAMPLED`: `check_folder`
    if before == after and not planned:
        return
    what = f"run.steps: {before} -> {after}" if before != after else "; ".join(planned)
    if after < done:
        raise InputError(f"{what}: cannot resume, {done} steps are done already")
    for k in range(done):
        rates = [learning_rate(r.optimizer, k, total) for r, total in ((old, before), (new, after))]
        if rates[0] != rates[1]:
            if new.optimizer.schedule == "constant":
                same = old.optimizer.warmup * before / after
                advice = f"the warm-up is another; the same one is optimizer.warmup = {same:.6g}"
            else:
                advice = (
                    f"the {new.optimizer.schedule} schedule of {after} steps has another learning rate already at step "
                    f'{k + 1}; only optimizer.schedule = "constant" can be made longer. To train on from the end of '
                    "this run, start another: model.source = its export, and a new run.folder"
                )
            raise InputError(f"cannot resume with {what}: {advice}")
    if sampled:
        raise InputError(
            f"cannot resume with {what}: the samples of probes would be at other steps (as at step {sampled[0]}); set "
            "probes.every to what the plan says instead of probes.budget"
        )
    if checked:
        raise InputError(
            f"cannot resume with {what}: tasks would be checked at other steps (as at step {checked[0]}); leave "
            "capability.every as it was"
        )
    if anchors:
        raise InputError(
            f"cannot resume with {what}: the anchors of answers would be at other steps (as at step {anchors[0]}), and "
            "more than planned: give answers.anchors as a list of steps, those there are and those to come"
        )


def keep_old_end(files: RunFolder, step: int) -> list[str]:
    """Before a run is made longer: keep a copy of the answers at its old end, which the longer run does not have.
    Returns what is worth saying."""
    if not files.has_answers:
        return []
    log = AnswerLog.open(files.path)
    taken_out = [answer for answer in log.answers if answer.anchor >= step]
    if not taken_out:
        return []
    copy = log.answers_path.with_name(f"answers-until-step-{step}.jsonl")
    shutil.copyfile(log.answers_path, copy)
    return [f"a longer run has no answers at its old end: the {len(taken_out)} of step {step} are kept in {copy}"]


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The keys whose values differ, or that only one has."""
    return [name for name in {**a, **b} if a.get(name) != b.get(name)]
