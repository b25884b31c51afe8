"""The processes of one run, as ``torchrun`` starts them, and what they tell each other (`torch.distributed`).

A batch is made of `TrainConfig.parts` parts of equal size. Part i of every batch comes from the pairs of group i, which
no other part sees, so a process holds only the pairs of its own parts, and no pair is seen twice in an epoch. What a
part holds, and how it is augmented, depends on the recipe and the step alone: two processes with a part each do what
one process does with both, and a run goes on with another number of processes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from seisbind.model.encoders.embedder import choose_device
from seisbind.model.errors import InvalidConfig

STARTED = {"WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"}  # variables that torch.distributed reads


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of the run; by itself it is the only one.

    Attributes:
        rank: 0 to ``count`` - 1; the first writes log, checkpoint and weights.
        device: for `choose_device`.
    """

    rank: int = 0
    count: int = 1
    device: str = "auto"

    @property
    def first(self) -> bool:
        return self.rank == 0

    def groups(self, parts: int) -> range:
        """The groups of pairs that are this process's, of ``parts``, which ``count`` divides."""
        each = parts // self.count
        return range(self.rank * each, (self.rank + 1) * each)

    def rows(self, count: int, parts: int) -> Tensor:
        """Which of ``count`` pairs are this process's, ascending: pair i is of group i modulo ``parts``."""
        own = self.groups(parts)
        group = torch.arange(count) % parts
        return torch.nonzero((group >= own.start) & (group < own.stop))[:, 0]

    def total(self, number: int) -> int:
        """The sum of a number over the processes."""
        if self.count == 1:
            return number
        found = torch.tensor(number, device=choose_device(self.device))
        dist.all_reduce(found)
        return int(found)

    def gathered(self, own: Tensor) -> Tensor:
        """``own`` of all processes ``(n, …)``, joined in their order; the numbers of rows may differ."""
        if self.count == 1:
            return own
        length = torch.tensor([len(own)], device=own.device)
        lengths = [torch.empty_like(length) for _ in range(self.count)]
        dist.all_gather(lengths, length)
        counts = [int(each) for each in lengths]
        padded = own.new_zeros((max(counts), *own.shape[1:]))
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in range(self.count)]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def in_order(self, own: Tensor, parts: int) -> Tensor:
        """A value of each pair of the run, in the run's order, from those of this process's pairs (`rows`)."""
        if self.count == 1:
            return own
        joined = self.gathered(own)
        places = torch.cat([Ranks(rank, self.count).rows(len(joined), parts) for rank in range(self.count)])
        return joined[places.argsort().to(joined.device)]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, the same bits in all of them."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])  # one message, not hundreds
        dist.all_reduce(flat)
        sizes = [tensor.numel() for tensor in tensors]
        for tensor, part in zip(tensors, torch.split(flat, sizes), strict=True):
            tensor.copy_(part.view_as(tensor))

    def check_same(self, number: int, what: str) -> None:
        """Raises InvalidConfig, in every process, where ``number`` is not the same in all."""
        found = self.gathered(torch.tensor([number], device=choose_device(self.device))).tolist()
        if len(set(found)) > 1:
            raise InvalidConfig(f"The processes of the run disagree on {what}: {found}. They need the same folders.")


ALONE = Ranks()


@contextmanager
def joined(device: str = "auto") -> Iterator[Ranks]:
    """This process among those that ``torchrun``, or what sets the same variables, started; else the only one.

    On GPUs each process takes its own, and they talk by NCCL; on CPUs by gloo.

    Raises:
        InvalidConfig: more processes on a host than it has GPUs.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or not os.environ.keys() >= STARTED:
        yield replace(ALONE, device=device)
        return
    target = choose_device(device)
    if target.type == "cuda":
        target = choose_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(target)
    dist.init_process_group("nccl" if target.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), count, str(target))
    finally:
        dist.destroy_process_group()


def parts_for(parts: int, ranks: Ranks) -> int:
    """The least multiple of a recipe's ``parts`` that the processes share out evenly."""
    return math.lcm(parts, ranks.count)
