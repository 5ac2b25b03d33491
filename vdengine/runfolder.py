"""The files in the folder of a run, and their names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vdengine.errors import InputError


@dataclass(frozen=True)
class RunFolder:
    """Paths in the folder of a run, whether they exist or not."""

    path: Path

    @classmethod
    def at(cls, path: str | Path) -> RunFolder:
        """The run folder at a path; "~" is the user's home, as everywhere.

        Raises:
            InputError: the home of a user that there is not.
        """
        try:
            return cls(Path(path).expanduser())
        except RuntimeError:
            raise InputError(f"{str(path)[:100]!r}: no user of that name, whose home it would be in") from None

    @property
    def recipe(self) -> Path:
        """The recipe with all its defaults."""
        return self.path / "recipe.toml"

    @property
    def trainer(self) -> Path:
        """Of a run of another trainer: what is known of it, as JSON under the names of a recipe's sections and keys."""
        return self.path / "trainer.json"

    @property
    def lock(self) -> Path:
        """Locked by the process that writes to the folder; it names that process."""
        return self.path / "lock"

    @property
    def inputs(self) -> Path:
        """Hashes of the data, weights and tokenizer that the run used."""
        return self.path / "inputs.json"

    @property
    def adapter(self) -> Path:
        """Of a run with LoRA: what its checkpoints are adapters of, in the words of PEFT."""
        return self.path / "adapter_config.json"

    @property
    def metrics(self) -> Path:
        """One JSON line per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def completions(self) -> Path:
        """Of a run that samples: one JSON line per completion that is kept, its step that of the weights that made
        it."""
        return self.path / "completions.jsonl"

    @property
    def console(self) -> Path:
        """The output of the console."""
        return self.path / "log.txt"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints, each `step-NNNNNN/`."""
        return self.path / "checkpoints"

    @property
    def saved(self) -> Path:
        """There once a checkpoint has been saved, so that lost ones are missed."""
        return self.path / "saved"

    def checkpoint(self, step: int) -> Path:
        """The checkpoint after `step` updates."""
        return self.checkpoints / f"{CHECKPOINT}{step:06d}"

    @property
    def export(self) -> Path:
        """The trained model as a Hugging Face folder."""
        return self.path / "export"

    @property
    def reference(self) -> Path:
        """The folder of cached log-probs of the reference model. A data cache has one too."""
        return self.path / "reference"

    def profile(self, rank: int) -> Path:
        """The trace of torch's profiler on one rank (Chrome trace format)."""
        return self.path / f"profile-rank{rank}.json"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def report(self) -> Path:
        """The folder that `vdengine report` writes."""
        return self.path / "report"

    @property
    def models(self) -> Path:
        """Of a folder with scores or answers of saved models: by step the model, and its stage."""
        return self.path / "models.json"

    @property
    def drift(self) -> Path:
        """The folder of the raw log of a panel (`drift.panel_log`)."""
        return self.path / "drift"

    @property
    def answers(self) -> Path:
        """The folder of the raw log of sampled answers (`drift.answer_log`)."""
        return self.drift / "answers"

    @property
    def capability(self) -> Path:
        """The folder of the raw log of tasks (`drift.capability_log`)."""
        return self.path / "capability"

    @property
    def judgements(self) -> Path:
        """The folder of judgements, one file per judge (`drift.judgements`)."""
        return self.drift / "judgements"

    @property
    def has_panel_scores(self) -> bool:
        """Whether the folder has a panel's scores by log-prob."""
        return (self.drift / MANIFEST).exists()

    @property
    def has_capability(self) -> bool:
        """Whether the folder has scores of tasks."""
        return (self.capability / MANIFEST).exists()

    @property
    def has_answers(self) -> bool:
        """Whether the folder has sampled answers."""
        return (self.answers / MANIFEST).exists()


CHECKPOINT = "step-"  # the name of a checkpoint begins with this; the number of updates follows

# Of a log or a checkpoint. It is written last, so its presence means that the rest is complete.
MANIFEST = "manifest.json"

# Of an export: what makes a folder ours to replace, the version that wrote it and the bytes of each file. A file of its
# own, because transformers copies the keys of a config.json that it has read into what it saves.
MARK = "vdengine.json"
