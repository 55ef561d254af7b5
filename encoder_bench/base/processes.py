"""The processes that do one run together, as `accelerate launch` or `torchrun` started them."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from encoder_bench.base.errors import EncoderBenchError

T = TypeVar("T")

_TIMEOUT = timedelta(days=2)
"""One process may encode many images while the others wait for its gradients."""


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those of one run; index 0 is the main one, which writes and scores."""

    index: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.index == 0

    def broadcast(self, value: T) -> T:
        """Return the main process's value on every process; the others' own is not used.

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
    """Connect to the other processes of this run; `cpu` keeps the model off an accelerator."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=cpu, timeout=_TIMEOUT)
    return Processes(state.process_index, state.num_processes)
