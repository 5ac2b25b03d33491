"""What a run's values did: raw logs, judgements, and the estimates made from them. `load_run` opens a run's folder."""

from vdengine.drift.load import load_run
from vdengine.drift.run import Readout, Run

__all__ = ["Readout", "Run", "load_run"]
