"""What a run keeps in its folder, and under which names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFolder:
    """Paths in a run's folder, whether they are there or not."""

    path: Path

    @classmethod
    def at(cls, path: str | Path) -> RunFolder:
        """The folder that a user names."""
        return cls(Path(path))

    @property
    def recipe(self) -> Path:
        """The recipe with all its defaults."""
        return self.path / "recipe.toml"

    @property
    def inputs(self) -> Path:
        """Hashes of data, weights and tokenizer."""
        return self.path / "inputs.json"

    @property
    def metrics(self) -> Path:
        """A line for each logged step."""
        return self.path / "metrics.jsonl"

    @property
    def completions(self) -> Path:
        """Of a run that samples: a line for each completion kept, its step that of the weights that made it."""
        return self.path / "completions.jsonl"

    @property
    def console(self) -> Path:
        """What stood on the screen."""
        return self.path / "log.txt"

    @property
    def checkpoints(self) -> Path:
        """`step-NNNNNN/` each."""
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        """The trained model, a Hugging Face folder."""
        return self.path / "export"

    @property
    def reference(self) -> Path:
        """Cached log-probs of the reference; in a data cache too."""
        return self.path / "reference"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def report(self) -> Path:
        """What `vdengine report` writes."""
        return self.path / "report"

    @property
    def models(self) -> Path:
        """Beside answers of saved models: which model each step is."""
        return self.path / "models.json"

    @property
    def drift(self) -> Path:
        """The raw log of openings (`drift.opening_log`)."""
        return self.path / "drift"

    @property
    def answers(self) -> Path:
        """The raw log of sampled answers (`drift.answer_log`)."""
        return self.drift / "answers"

    @property
    def judgements(self) -> Path:
        """A file for each judge (`drift.judgements`)."""
        return self.drift / "judgements"

    @property
    def has_openings(self) -> bool:
        """Whether openings were scored here."""
        return (self.drift / MANIFEST).exists()

    @property
    def has_answers(self) -> bool:
        """Whether answers were sampled here."""
        return (self.answers / MANIFEST).exists()


MANIFEST = "manifest.json"  # of a log or a checkpoint: written last, its presence means that the rest is whole
