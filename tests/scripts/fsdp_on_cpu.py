"""Runs a program in processes whose Trainer shards its model over gloo: accelerate does so on accelerators alone.

    torchrun --nproc_per_node 2 tests/scripts/fsdp_on_cpu.py recipes/moondream_lora.py --use_cpu True --fsdp ...

Without it `--fsdp` is silently DDP on a CPU. What it tells accelerate is that these processes are those of GPUs.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

import accelerate
from accelerate.state import DistributedType, PartialState

plain_init = accelerate.Accelerator.__init__


def init(self: accelerate.Accelerator, *args: Any, **options: Any) -> None:
    PartialState().distributed_type = DistributedType.MULTI_GPU  # all of them share what they hold
    plain_init(self, *args, **options)
    assert self.distributed_type == DistributedType.FSDP, self.distributed_type


accelerate.Accelerator.__init__ = init
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
