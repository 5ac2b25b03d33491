"""Process groups one after another in the ranks of one launch; now one rank comes late to the next, now the other."""

import time

import torch
import torch.distributed as dist

from vdengine.engine.parallel import start_world
from vdengine.recipe import ParallelKeys

for turn in range(5):
    world = start_world(ParallelKeys(), False)
    total = torch.tensor(1 + world.rank)
    dist.all_reduce(total)
    assert total == 3
    if world.rank == turn % 2:
        time.sleep(1)  # the other rank is at its next group by now
    world.close()
    assert not dist.is_initialized()
