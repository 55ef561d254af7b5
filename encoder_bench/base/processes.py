"""The processes that do one run together, as `accelerate launch` or `torchrun` started them.

What belongs here: which of them this is, waiting for the others, and hearing what the main one
decided. What each does is `run.py`'s and `helping.py`'s business; how a step is divided among
them is `training/`'s.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from encoder_bench.base.errors import EncoderBenchError

T = TypeVar("T")

_PATIENCE = timedelta(days=2)


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those of one run.

    Attributes:
        index: of this process; 0 is the main one, which reads, writes, scores and prints.
        count: how many there are.
    """

    index: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.index == 0

    def barrier(self) -> None:
        """Return when every process has come here.

        Raises:
            EncoderBenchError: another process has stopped.
        """
        self.broadcast(None)

    def broadcast(self, value: T) -> T:
        """Return the main process' value to every process; the others' own is not used.

        Raises:
            EncoderBenchError: another process has stopped.
        """
        if self.count == 1:
            return value
        import torch.distributed

        values = [value]
        try:
            torch.distributed.broadcast_object_list(values, src=0)
            torch.distributed.barrier()
        except RuntimeError as error:
            raise EncoderBenchError(
                f"process {self.index} of {self.count}: another process has stopped; what it "
                "printed says why"
            ) from error
        return values[0]


def join_processes(*, cpu: bool) -> Processes:
    """Connect to the other processes of this run, if it was launched as several.

    Waiting has no short time limit, since the main process may encode a large data set while the
    others wait for its features.

    Args:
        cpu: whether the model stays on the CPU although there is an accelerator.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=cpu, timeout=_PATIENCE)
    return Processes(state.process_index, state.num_processes)
