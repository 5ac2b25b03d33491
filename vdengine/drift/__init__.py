"""What a run's values did: raw logs, judgements, and the estimates made from them. `load_run` opens the folder of a
run, `load_history` that and the stages before it as one history."""

from vdengine.drift.history import load_history
from vdengine.drift.load import load_run
from vdengine.drift.run import Readout, Run, Stage

__all__ = ["Readout", "Run", "Stage", "load_history", "load_run"]
