"""Saving beside training: a checkpoint's tensors are copied while the next step computes, and written behind it.

    save        returns at once: a thread copies the tensors, another writes them then
    staged      is called before weights move: waits for the copy, which by then has had a forward and a backward
    wait        the checkpoint is on disk, or it is said why not

Files are written under a temporary name, synced and hashed by each rank; rank 0 writes the manifest and renames the
folder. The collectives of all this have a process group of their own, so that they never meet those of training.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

import vdengine
from vdengine.engine.checkpoint import Trained, checkpoints, size_of, state_of, step_of
from vdengine.engine.metadata import cause
from vdengine.engine.parallel import World, broadcast
from vdengine.errors import InputError
from vdengine.files import Lock, check_space, digest, json_hash, sync, write_text
from vdengine.recipe import CheckpointKeys
from vdengine.runfolder import MANIFEST, RunFolder

SAVED = "checkpoints have been saved here\n"  # of RunFolder.saved
SPARE = 64 * 2**20  # bytes that are left free beside a checkpoint: names, manifests, logs


class Saver:
    """Writes the checkpoints of a run. Every rank has one, and calls the same methods at the same steps.

    Args:
        lock: of the run folder, on rank 0.
        settings: `keep`: the newest so many stay, and the newest one that an update has followed: weights whose next
            update was skipped as not finite may be spoilt already, and are no ground to give up the ones before.
            `keep_every`: those of every so many steps stay as well.
        newest: step of the checkpoint that the run went on from.
        base: hash of the frozen weights, for the manifest; None: all are trained.
    """

    def __init__(
        self,
        files: RunFolder,
        world: World,
        lock: Lock | None,
        settings: CheckpointKeys,
        newest: int | None,
        base: str | None = None,
    ) -> None:
        self.base = base
        self.files, self.world, self.lock = files, world, lock
        self.settings, self.newest = settings, newest
        self.notes: list[str] = []  # what is worth saying, until someone has said it
        cuda = world.device.type == "cuda"
        self.group: Any = dist.new_group(backend="gloo")
        # A CUDA device copies to pinned memory on a stream of its own.
        options = StagingOptions(
            use_pinned_memory=cuda, use_shared_memory=False, use_async_staging=True, use_non_blocking_copy=cuda
        )
        self._stager = DefaultStager(options)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._copied: Future[None] | None = None  # of the save that is going on
        self._written: Future[None] | None = None
        if world.is_main:  # what a run that was killed in the middle of a save has left
            for leftover in files.checkpoints.glob("*.tmp"):
                shutil.rmtree(leftover, ignore_errors=True)

    def save(
        self, step: int, trained: Sequence[Trained], numbers: Mapping[str, float], logs: Mapping[Path, int], proven: int
    ) -> Path:
        """Begin a checkpoint, after the one before is complete. Returns the folder that it will have. A collective.

        Equal steps have equal bits, so a checkpoint of this step is not written again.

        Args:
            logs: of rank 0: bytes of each log that are of the steps before this one.
            proven: the newest step whose weights an update that was not skipped has followed; -1: none.

        Raises:
            InputError: the checkpoint before failed, there is no room, or the run folder is gone.
        """
        self.wait()
        final = self.files.checkpoint(step)
        if step == self.newest:
            if self.world.is_main:
                self._prune(proven)  # which a kill may have cut short
            return final
        temporary, problem = final.with_name(final.name + ".tmp"), ""
        if self.world.is_main:
            try:
                if self.lock is not None and self.lock.removed:
                    raise InputError(f"{self.files.path}: was removed while the run wrote to it")
                check_space(self.files.checkpoints, size_of(trained) + SPARE, f"the checkpoint of step {step}")
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            except (InputError, OSError) as error:
                problem = self._sentence(step, error)
        if problem := broadcast(self.world, problem):
            raise InputError(problem)
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()  # the stream that copies does not wait for the one that computes
        copied: Any = self._stager.stage(state_of(trained, numbers))  # a future, of a stager that is asynchronous
        self._copied = copied
        self._written = self._thread.submit(self._write, copied, step, logs, proven)
        return final

    def staged(self) -> None:
        """Wait until the tensors of a save that is going on are copied, or cannot be, which is `failed`. Before weights
        move."""
        if self._copied is not None:
            copied, self._copied = self._copied, None
            wait([copied])

    @property
    def failed(self) -> bool:
        """Whether a save has ended, and not well, so that `wait` says why."""
        return self._written is not None and self._written.done() and self._written.exception() is not None

    def wait(self) -> None:
        """Wait until the save that is going on is complete, if there is one.

        Raises:
            InputError: it failed, on this rank or another.
        """
        self.staged()
        if self._written is not None:
            written, self._written = self._written, None
            written.result()

    def close(self) -> None:
        """`wait`, and end the threads.

        Raises:
            InputError: as `wait`.
        """
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._stager.close()
            if dist.is_initialized() and self.group is not None:
                dist.destroy_process_group(self.group)
                self.group = None

    # ------------------------------------------------------------------------------------- in the saving thread

    def _write(self, copied: Future[dict[str, Any]], step: int, logs: Mapping[Path, int], proven: int) -> None:
        """Write what has been copied, hash and publish it: `dcp.async_save` in parts, so that all ranks learn of an
        error of any, that of a copy too, before one of them waits for another in a collective."""
        final = self.files.checkpoint(step)
        temporary, problem = final.with_name(final.name + ".tmp"), ""
        entries: dict[str, Any] = {}
        error = copied.exception()
        self._raise_any("" if error is None else self._sentence(step, error))
        try:
            writer = dcp.FileSystemWriter(temporary, sync_files=True)
            with warnings.catch_warnings():  # torch will change what an existing folder means
                warnings.filterwarnings("ignore", message="Detected an existing checkpoint")
                dcp.save(copied.result(), storage_writer=writer, process_group=self.group)
            own = sorted(temporary.glob(f"__{self.world.rank}_*")) + [temporary / ".metadata"] * self.world.is_main
            entries = {path.name: _entry(path) for path in own}
        except (Exception, dcp.api.CheckpointException) as error:
            problem = self._sentence(step, error)
        parts = self._raise_any(problem, entries)
        if self.world.is_main:
            try:
                files = {name: entry for part in parts for name, entry in part.items()}
                self._publish(step, temporary, final, files, logs)
            except Exception as error:
                problem = self._sentence(step, error)
        self._raise_any(problem)
        self.newest = step
        if self.world.is_main:
            self._prune(proven)

    def _raise_any(self, problem: str, value: Any = None) -> list[Any]:
        """The values of all ranks, if none has a problem. A collective.

        Raises:
            InputError: one has.
        """
        parts: list[Any] = [None] * self.world.size
        dist.all_gather_object(parts, (problem, value), group=self.group)
        if found := next((told for told, _ in parts if told), ""):
            if self.world.is_main:
                for leftover in self.files.checkpoints.glob("*.tmp"):
                    shutil.rmtree(leftover, ignore_errors=True)
            raise InputError(found)
        return [value for _, value in parts]

    def _publish(
        self, step: int, temporary: Path, final: Path, files: dict[str, Any], logs: Mapping[Path, int]
    ) -> None:
        for path, size in logs.items():
            if size:
                sync(path)  # what the manifest says of it must outlast a power cut, as the checkpoint does
        manifest: dict[str, Any] = {
            "step": step,
            "world_size": self.world.size,
            "vdengine": vdengine.__version__,
            "torch": torch.__version__,
            **({} if self.base is None else {"base": self.base}),
            "files": files,
            "logs": {
                path.relative_to(self.files.path).as_posix(): {"bytes": size, "hash": digest(path, size)}
                for path, size in logs.items()
                if size
            },
        }
        manifest["hash"] = json_hash(manifest)
        write_text(temporary / MANIFEST, json.dumps(manifest, indent=2) + "\n")
        _remove(final)
        temporary.rename(final)
        sync(final.parent)
        # After the checkpoint: a mark without one would keep a run that was killed in between from starting over.
        if not self.files.saved.exists():
            self.files.saved.write_text(SAVED)
        sync(self.files.path)

    def _prune(self, proven: int) -> None:
        """Remove the checkpoints that need not stay. One that cannot be removed is no reason to end a run."""
        found, every = checkpoints(self.files.path), self.settings.keep_every
        good = [folder for folder in found if step_of(folder) <= proven]
        stay = {*found[-self.settings.keep :], *good[-1:]}
        gone = [folder for folder in found if folder not in stay and not (every and step_of(folder) % every == 0)]
        for folder in (*gone, *self.files.checkpoints.glob("*.damaged")):
            if folder.suffix and step_of(folder.with_suffix("")) > (-1 if self.newest is None else self.newest):
                continue  # of a step that has not been saved anew
            try:
                _remove(folder)
            except OSError as error:
                self.notes.append(f"{folder}: cannot be removed ({error.strerror})")

    def _sentence(self, step: int, error: BaseException) -> str:
        if isinstance(error, InputError):
            reason = str(error)
        else:
            reason = f"{self.files.checkpoint(step)}: cannot be written: {cause(error)}"
        whole = [step_of(folder) for folder in checkpoints(self.files.path)]
        if not whole:
            return f"{reason}; there is no checkpoint before it"
        return f"{reason}; started again, the run goes on from step {whole[-1]}"


def _entry(path: Path) -> dict[str, Any]:
    """Of a file, for a manifest."""
    return {"bytes": path.stat().st_size, "hash": digest(path)}


def _remove(folder: Path) -> None:
    """Remove a checkpoint. It loses its name first: killed in the middle, none is left that looks whole."""
    if folder.exists():
        going = folder.with_name(folder.name + ".old.tmp")
        shutil.rmtree(going, ignore_errors=True)
        folder.rename(going)
        shutil.rmtree(going)
