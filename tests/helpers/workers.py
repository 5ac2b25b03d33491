"""The end of a process that is one of several ranks of a test."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch.distributed as dist


def leave() -> None:
    """End this process, its work done: the group first, all ranks together, and nothing of what Python does at exit.

    Threads of gloo may still run then; one of them in a thousand times aborts a process that has passed.
    """
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":  # what test_helpers.py ends: it says where it is, and sleeps
    Path(sys.argv[1]).write_text(str(os.getpid()))
    time.sleep(600)
