"""`PanelScorer`: a panel scored by the model of another trainer, as it stands, and logged in a run folder."""

from __future__ import annotations

import json
import operator
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vdengine.data.batching import deal
from vdengine.drift.capability_log import CapabilityLog, Check, LoggedTask, check_of, logged_tasks
from vdengine.drift.live import Live, LivePanel
from vdengine.drift.panel_log import DriftLog, write_about
from vdengine.drift.panel_packs import PanelPacks
from vdengine.errors import InputError
from vdengine.files import Lock, rewind
from vdengine.integrations.foreign import LAYOUTS, ForeignModel, Forward, root_of
from vdengine.models.transformer import Transformer
from vdengine.models.weights import check_vocabulary
from vdengine.panels.panel import OPENINGS, Panel, Request
from vdengine.recipe import READOUTS, CapabilityKeys
from vdengine.runfolder import RunFolder
from vdengine.tasks.task import Task, check_names
from vdengine.tasks.task_packs import TaskPacks
from vdengine.text.renderer import Renderer
from vdengine.text.tokenizer import load_tokenizer
from vdengine.trees import Pack, Tree, pack


@dataclass(frozen=True)
class Sample:
    """What `PanelScorer.score` returns, the same on every rank."""

    step: int
    # [branches, and choices of tasks behind them] fp32, nats: log-prob sums in the logs' order; NaN where not scored
    logp: np.ndarray
    live: Live  # shifts since the first sample
    seconds: float
    note: str  # what is worth saying once, e.g. why the model is given rows; else ""
    check: Check | None = None  # of the tasks, where they were scored

    @property
    def scalars(self) -> dict[str, float]:
        """For a tracker: those of `Live` and of `Check`, and probe_seconds."""
        checked = {} if self.check is None else self.check.scalars
        return self.live.scalars | checked | {"value/probe_seconds": self.seconds}


class PanelScorer:
    """Scores a panel by log-prob inside of any training loop:

        scorer = vd.PanelScorer("values", tokenizer, run="runs/x", total_steps=1000)
        for step, batch in enumerate(batches):
            if step % 10 == 0:
                scorer.score(model, step)  # before the update: the weights after `step` updates
            ...
        scorer.score(model, len(batches))

    Training is bit for bit as without it: no random number is drawn, no weight, gradient or mode is changed. A score is
    a forward of its own, without gradient. Inside of the training forward, where it saves a second gathering of
    sharded weights, it is only in `vdengine.Trainer`.

    With several ranks `score` is a collective: every rank calls it, at the same steps. The panel's packs are dealt out
    to the ranks, and all run the same number of forwards, so that FSDP2 and ZeRO-3 gather together.

    Args:
        panel: a `Panel`, a built-in name, or the path of a .jsonl file.
        tokenizer: of transformers or ours, in memory or by name.
        run: the run folder, which `vdengine report` and `vd.drift.load_run` read. None: nothing is written.
        template: chat template, as in `Renderer`.
        tokens: of a pack of the panel, which is a forward. A model without trees takes the same number with padding.
        controls: score paraphrases and trivial matters too, on the first and the last sample.
        tasks: tasks of multiple choice, or what `Task.load` reads, which say whether the model still can what it could.
            They are scored on the first and the last sample, and at every `tasks_every`-th step that is sampled.
        tasks_every: 0: on the first and the last sample alone.
        chat: prompts of tasks are chats in the template; else text.
        readouts: what is read: "lead", the side that an answer begins with, for which prompts alone are run;
            "text_likelihood", by the panel's openings. Default: both.
        total_steps: of the run, if known: the last sample is that one, and drift times are fractions of it.
        layout: "auto": trees in one forward where the model's attention takes a mask, else plain rows; "trees"; "rows".
        head: the output head of a model that is not of transformers, a linear layer whose output is the logits.
        forward: of such a model, if it takes more than token ids: calls it, as (model, token ids [n, L]) -> logits.
        group: the ranks that packs are dealt out to, each with the whole model or all with shards of it (data
            parallel). Default: all. Ranks that compute one forward together (tensor parallel) take the same packs, so
            there it must be given.
        about: what is known of the run, under the names of a recipe's sections and keys, for the report.

    Raises:
        InputError: a panel, tokenizer or template that cannot be read; arguments out of range.
    """

    def __init__(
        self,
        panel: Panel | str | Path,
        tokenizer: Any,
        run: str | Path | None = None,
        *,
        template: str = "auto",
        tokens: int = 2048,
        controls: bool = True,
        readouts: Sequence[str] = READOUTS,
        tasks: Sequence[Task | str | Path] = (),
        tasks_every: int = 0,
        chat: bool = False,
        total_steps: int | None = None,
        layout: str = "auto",
        head: nn.Module | None = None,
        forward: Forward | None = None,
        group: dist.ProcessGroup | None = None,
        about: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        if layout not in LAYOUTS and layout != "auto":
            raise InputError(f"layout {layout!r}: allowed are auto, {', '.join(LAYOUTS)}")
        if total_steps is not None and total_steps < 1:
            raise InputError(f"total_steps = {total_steps}: at least 1")
        self.panel = panel if isinstance(panel, Panel) else Panel.load(panel)
        self.tokenizer = load_tokenizer(tokenizer)
        self.renderer = Renderer(self.tokenizer, template)
        self.packs = PanelPacks.build(self.panel, self.renderer, tokens, controls=controls, readouts=readouts)
        self.task_packs: TaskPacks | None = None
        if tasks:
            own = [task if isinstance(task, Task) else Task.load(task) for task in tasks]
            check_names(own)
            self.task_packs = TaskPacks.build(own, self.renderer, max(tokens, CapabilityKeys.tokens), chat=chat)
        self.tasks_every = tasks_every
        self.run = None if run is None else RunFolder.at(run)
        self.tokens, self.total_steps, self.group, self.wanted = tokens, total_steps, group, layout
        self.head, self.forward = head, forward
        self.about = {name: dict(table) for name, table in (about or {}).items()}
        self.layout: str | None = None  # that is used: known after the first score
        self._live = LivePanel(self.panel, self.packs.requests)
        self._log: DriftLog | None = None
        self._tasks: list[LoggedTask] = []
        self._task_log: CapabilityLog | None = None
        self._first_check: np.ndarray | None = None  # [choices] fp32, nats
        self._lock: Lock | None = None
        self._opened, self._last = False, -1
        self._notes: list[str] = []  # what is to be said with the next sample
        self._model: tuple[nn.Module, ForeignModel | OwnModel] | None = None
        self._units: dict[tuple[bool, bool], Sequence[Any]] = {}  # by: with the controls, with the tasks

    # ------------------------------------------------------------------------------------------------- the folder

    def open(self, step: int = 0) -> None:
        """Make the run folder, or go on at `step` where it has earlier samples: those of `step` and later are dropped,
        and taken again. `score` calls it where nobody did. A collective.

        Raises:
            InputError: the folder is of another run, of another panel or tokenizer, or is being written to; a rank that
                has another panel, tokenizer or options than rank 0.
        """
        if self._opened:
            raise InputError("the scorer is open already: close() it first")
        error: Exception | None = None
        if self.is_main and self.run is not None:
            try:
                self._open_folder(self.run, step)
            except (InputError, OSError) as failure:
                error = failure
        self._agree(error)
        options = [self.panel.hash, self.renderer.hash, self.tokens, len(self.packs.requests), self.wanted, step]
        if self.task_packs is not None:
            options += [task.hash for task in self.task_packs.tasks]
            self._tasks = logged_tasks(self.task_packs)
        seen = self._log.samples()[[0, -1]] if self._log is not None and len(self._log.steps) else None
        last = int(self._log.steps[-1]) if self._log is not None and seen is not None else -1
        if self._task_log is not None and len(self._task_log.steps):
            self._first_check = self._task_log.channel.values[0]
        theirs, seen, last, self._first_check = self._from_main((options, seen, last, self._first_check))
        if options != theirs:
            error = InputError("this rank has another panel, tokenizer, step or other options than rank 0")
        self._agree(error)
        if seen is not None:
            self._live.continue_from(seen)
        if step and seen is None and self.run is not None:
            self._notes.append(f"no sample before step {step}: drift is counted from there")
        self._last, self._opened = last, True

    def _open_folder(self, run: RunFolder, step: int) -> None:
        if run.recipe.exists():
            raise InputError(f"{run.path}: the folder of a run of vdengine's own trainer; name another run folder")
        once = "add a callback once, and close a scorer before another"
        self._lock = Lock(run.lock, f"drift is already being written ({once})")
        try:
            log = DriftLog.create(run.path, self.panel, self.packs.requests, self.renderer.hash)
            if step == 0 and len(log.steps):
                raise InputError(
                    f"{run.path}: holds a run of its own, up to step {log.steps[-1]}; go on from a checkpoint of it "
                    "(resume_from_checkpoint, or open(step)), name another run folder, or delete this one"
                )
            log.rewind(step)
            if self.task_packs is not None:
                self._task_log = CapabilityLog.create(run.path, self.task_packs, self.renderer.hash)
                self._task_log.rewind(step)
            rewind(run.metrics, step)
            write_about(run, self.about, self.total_steps)
            self._log = log
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        """Give the run folder free."""
        if self._lock is not None:
            self._lock.close()
        self._log, self._lock, self._opened, self._model = None, None, False, None
        self._task_log, self._first_check = None, None
        self._live = LivePanel(self.panel, self.packs.requests)

    # ---------------------------------------------------------------------------------------------------- scoring

    def score(self, model: nn.Module, step: int, *, controls: bool | None = None, tasks: bool | None = None) -> Sample:
        """Score the panel, and tasks where they are due, with the model's weights. A collective.

        Args:
            model: a causal language model of transformers, plain or wrapped by PEFT, DDP, FSDP2, DeepSpeed (ZeRO),
                accelerate or torch.compile; or ours; or with `head` any module that takes token ids.
            step: updates that the weights have had.
            controls: whether to score the controls; default: on the first sample, and at `total_steps`.
            tasks: whether to score the tasks; default: likewise, and as `tasks_every` says.

        Raises:
            InputError: a model that is not supported, and why; a step that is not above the last one; a tokenizer of
                another vocabulary; the folder, as `open`.
        """
        started = time.perf_counter()
        try:
            step = operator.index(step)
        except TypeError:
            raise InputError(f"step {step!r}: a whole number, not a {type(step).__name__}") from None
        if not self._opened:
            self.open()
        back = f"step {step}: the last sample is of step {self._last}; steps must ascend"
        self._agree(None if step > self._last else InputError(back))
        scored = self._prepare(model)
        at_end = self._live.first is None or step == self.total_steps
        if controls is None:
            controls = at_end
        if tasks is None:
            tasks = at_end or bool(self.tasks_every) and step % self.tasks_every == 0
        units = self._units_of(scored, controls, tasks and self.task_packs is not None)
        size, rank = self._ranks
        count = self.packs.num_branches
        out = torch.zeros(count + (self.task_packs.num_branches if self.task_packs is not None else 0))
        for share in deal(units, size, rank, -(-len(units) // size)):
            # every rank makes a forward for each share, whether it has a unit or not
            sums = scored.sums(share[0] if share else units[0])
            if share:
                out[share[0].slots] = sums.cpu()
        if size > 1:
            out = out.to(_collective_device())
            dist.all_reduce(out, group=self.group)  # exact: each branch was scored by one rank, the others have zeros
        logp = np.full(len(out), np.nan, dtype=np.float32)
        slots = torch.cat([unit.slots for unit in units]).numpy()
        logp[slots] = out.cpu().numpy()[slots]
        if lost := int((~np.isfinite(logp[slots])).sum()):
            self._notes.append(
                f"step {step}: {lost} of {len(slots)} log-probs are not finite, and count as not sampled"
            )
            logp[~np.isfinite(logp)] = np.nan
        note, self._notes = "; ".join(self._notes), []
        check = None
        if tasks and self.task_packs is not None:
            check = check_of(self._tasks, step, logp[count:], self._first_check)
            self._first_check = logp[count:] if self._first_check is None else self._first_check
        seconds = time.perf_counter() - started
        sample = Sample(step, logp, self._live.add(step, logp[:count]), seconds, note, check)
        self._agree(self._write(sample))
        self._last = step
        return sample

    def _prepare(self, model: nn.Module) -> ForeignModel | OwnModel:
        """The model, ready to be scored; at its first score it is looked at and tried out. A collective."""
        if self._model is not None and self._model[0] is model:
            return self._model[1]
        scored: ForeignModel | OwnModel | None = None
        error: InputError | None = None
        try:
            scored = self._look_at(model)
        except InputError as failure:
            error = failure
        self._agree(error)
        if scored is None:
            raise RuntimeError("an error was agreed on")
        self.layout, reason = scored.layout_for(self._try_out(), self.wanted, self._any)
        if reason:
            self._notes.append(f"{reason}: the panel is scored in padded rows")
        self._model, self._units = (model, scored), {}
        return scored

    def _look_at(self, model: nn.Module) -> ForeignModel | OwnModel:
        if not isinstance(model, nn.Module):
            raise InputError(f"a {type(model).__name__} is not a model")
        own = root_of(model)
        scored = OwnModel(own) if isinstance(own, Transformer) else ForeignModel(model, self.head, self.forward)
        check_vocabulary(scored.vocab_size, self.tokenizer)
        if self.group is None and (dimension := _model_parallel(model)):
            raise InputError(
                f"the weights are sharded over {dimension}, whose ranks compute one forward together: give group=, the "
                "process group of the data parallel ranks"
            )
        return scored

    def _try_out(self) -> Pack:
        """The largest tree, after as many others as a forward has room for: what a model does wrongly beyond some row
        or position shows in it."""
        trees: dict[tuple[str, str], list[Request]] = {}
        some = [r for r in self.packs.requests if r.branch.channel == OPENINGS and r.branch.variant != "null"]
        for request in some or self.packs.requests:
            trees.setdefault((request.branch.probe.id, request.branch.variant), []).append(request)
        size = {k: len(own[0].prompt_ids) + sum(len(r.answer_ids) for r in own) for k, own in trees.items()}
        largest, *others = sorted(trees, key=lambda k: -size[k])
        chosen, room = [largest], self.tokens - size[largest]
        for k in others:
            if size[k] <= room:
                chosen, room = [k, *chosen], room - size[k]
        return pack([Tree(trees[k][0].prompt_ids, [r.answer_ids for r in trees[k]]) for k in chosen])

    def _units_of(self, scored: ForeignModel | OwnModel, controls: bool, tasks: bool) -> Sequence[Any]:
        if (controls, tasks) not in self._units:
            p = self.packs
            packs = [(p.packs[i], p.slots[i]) for i in (range(len(p.packs)) if controls else p.part(0, 1))]
            units = [*scored.units(packs, self.layout or "trees", self.tokens)]
            if tasks and (t := self.task_packs) is not None:  # their choices stand behind the panel's branches
                behind = [(pack, slots + p.num_branches) for pack, slots in zip(t.packs, t.slots, strict=True)]
                units += scored.units(behind, self.layout or "trees", max(self.tokens, CapabilityKeys.tokens))
            self._units[controls, tasks] = units
        return self._units[controls, tasks]

    def _write(self, sample: Sample) -> Exception | None:
        """Log a sample, on rank 0; the error, if there is one."""
        if self._log is None or self.run is None:
            return None
        try:
            count = self.packs.num_branches
            self._log.append(sample.step, sample.logp[:count])
            if self._task_log is not None and sample.check is not None:
                self._task_log.append(sample.step, sample.logp[count:])
            with open(self.run.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": sample.step, "probe_seconds": round(sample.seconds, 4)}) + "\n")
        except (InputError, OSError) as error:
            return error
        return None

    # ------------------------------------------------------------------------------------------------------ ranks

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the folder."""
        return not dist.is_initialized() or dist.get_rank() == 0

    @property
    def _ranks(self) -> tuple[int, int]:
        """Number of ranks that packs are dealt out to, and which of them this is."""
        if not dist.is_initialized():
            return 1, 0
        return dist.get_world_size(self.group), dist.get_rank(self.group)

    def _any(self, flag: bool) -> bool:
        """Whether any rank has the flag. A collective."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return flag
        flags = torch.tensor(float(flag), device=_collective_device())
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return bool(flags)

    def _from_main(self, value: Any) -> Any:
        """Rank 0's value. A collective."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=_collective_device())
        return box[0]

    def _agree(self, error: Exception | None) -> None:
        """Raise an error that one rank has on all of them, which would wait for it. A collective."""
        if self._any(error is not None):
            raise error or InputError("another rank cannot go on: see its message")


class OwnModel:
    """A model of vdengine, plain or sharded, with the methods of `ForeignModel`."""

    def __init__(self, model: Transformer) -> None:
        if model.config.head != "causal":
            raise InputError("a scalar model gives no log-probs; a language model is needed")
        self.model, self.vocab_size = model, model.config.vocab_size

    def layout_for(self, pack: Pack, wanted: str, agree: Any) -> tuple[str, str]:
        """Trees: it knows no other."""
        if wanted == "rows":
            raise InputError("layout 'rows': a model of vdengine takes trees")
        return "trees", ""

    def units(self, packs: Sequence[tuple[Pack, Tensor]], layout: str, max_tokens: int) -> list[OwnUnit]:
        """The forwards that score these packs: one each."""
        return [OwnUnit(pack, slots) for pack, slots in packs]

    def sums(self, unit: OwnUnit) -> Tensor:  # [B] fp32
        """The log-prob sum of each branch, in nats. A collective where the weights are sharded."""
        pack = unit.pack.to(self.model.model.norm.weight.device)
        with torch.no_grad():
            probe_logp = self.model(None, [pack]).probe_logp
        if probe_logp is None:
            raise RuntimeError("a forward of probes alone gives their log-probs")
        return pack.branch_sum(probe_logp)


class OwnUnit(NamedTuple):
    """A pack, and its branches' places in the panel's order."""

    pack: Pack
    slots: Tensor  # [B] int64


def _collective_device() -> torch.device:
    """Where tensors of a collective have to be."""
    if torch.cuda.is_available() and dist.get_backend() != "gloo":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _model_parallel(model: nn.Module) -> str | None:
    """The mesh dimension over which ranks compute one forward together; None if there is none."""
    for parameter in model.parameters():
        if isinstance(parameter, DTensor):
            names = parameter.device_mesh.mesh_dim_names or ()
            for name in names:
                if name in ("tp", "cp", "ep", "pp"):
                    return f"the mesh dimension {name!r}"
            if sum(placement.is_shard() for placement in parameter.placements) > 1:
                return "two mesh dimensions"
    return None
