"""What a run's values did: raw logs, judgements, and what comes of them. `load_run` opens a run's folder."""

from vdengine.drift.run import Readout, Run, load_run

__all__ = ["Readout", "Run", "load_run"]
