"""The processes that train together: who computes what, and how gradients become one.

Knows no network. One process needs no process group; several are started by ``accelerate launch``. Every worker
computes the whole loss from gathered embeddings, whose gradient flows only through its own part; summing the
workers' gradients gives the single process's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mufin.inputs import Int64Array

if TYPE_CHECKING:
    from accelerate import Accelerator


class Workers:
    """This process among ``count``."""

    def __init__(self, accelerator: Accelerator | None = None) -> None:
        """None: a single process."""
        self._accelerator = accelerator
        self.count = accelerator.num_processes if accelerator is not None else 1
        self.rank = accelerator.process_index if accelerator is not None else 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def wait(self) -> None:
        """Until every worker is here."""
        if self._accelerator is not None and self.count > 1:
            self._accelerator.wait_for_everyone()

    def same(self, arrays: list[Tensor]) -> list[Tensor]:
        """Rank 0's tensors on every worker: what is drawn from must not differ by a bit among them."""
        if self.count == 1:
            return arrays
        held = [arrays]
        torch.distributed.broadcast_object_list(held, src=0)
        return held[0]

    def all_agree(self, flag: bool) -> bool:
        """Whether ``flag`` is true on every worker."""
        if self.count == 1:
            return flag
        flags: list[bool] = [flag] * self.count
        torch.distributed.all_gather_object(flags, flag)
        return all(flags)

    def same_buffers(self, module: nn.Module) -> None:
        """Rank 0's running statistics on every worker, as DistributedDataParallel sends them."""
        if self.count > 1:
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def share(self, rows: Int64Array) -> Int64Array:
        """This worker's part of a step's rows, consecutive, sizes differing by one at most."""
        bounds = [len(rows) * r // self.count for r in (self.rank, self.rank + 1)]
        return rows[bounds[0] : bounds[1]]

    def gather(self, own: Tensor, total: int) -> Tensor:
        """All workers' rows (total, D) in order; the gradient flows through this worker's own rows."""
        if self.count == 1:
            return own
        sizes = [total * (r + 1) // self.count - total * r // self.count for r in range(self.count)]
        parts = [torch.zeros((size, *own.shape[1:]), dtype=own.dtype, device=own.device) for size in sizes]
        padded = max(sizes)
        buffer = torch.zeros((padded, *own.shape[1:]), dtype=own.dtype, device=own.device)
        buffer[: len(own)] = own.detach()
        received = [torch.zeros_like(buffer) for _ in sizes]
        torch.distributed.all_gather(received, buffer)
        parts = [r[:size] for r, size in zip(received, sizes, strict=True)]
        parts[self.rank] = own
        return torch.cat(parts)

    def reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum every parameter's gradient over the workers; one that no worker has stays None.

        A worker without one (its part of the batch had no image, say) adds zero, sparse where the others' are.
        """
        if self.count == 1:
            return
        own = list(parameters)
        kinds = [0 if p.grad is None else 2 if p.grad.is_sparse else 1 for p in own]
        agreed = torch.tensor(kinds, device=own[0].device) if own else torch.zeros(0)
        torch.distributed.all_reduce(agreed, op=torch.distributed.ReduceOp.MAX)
        for parameter, kind in zip(own, agreed.tolist(), strict=True):
            if kind == 0:
                continue
            if parameter.grad is None:
                zero = torch.zeros_like(parameter)
                parameter.grad = zero if kind == 1 else _no_rows(parameter)
            if parameter.grad.is_sparse:
                parameter.grad = _gather_sparse(parameter.grad.coalesce(), self.count)
            else:
                torch.distributed.all_reduce(parameter.grad)

    def total(self, loss: Tensor) -> float:
        """The loss to report; workers that each hold the whole loss agree on it already."""
        return float(loss)


def _no_rows(parameter: nn.Parameter) -> Tensor:
    """A row-sparse gradient without rows."""
    rows = torch.zeros((1, 0), dtype=torch.int64, device=parameter.device)
    values = torch.zeros((0, *parameter.shape[1:]), dtype=parameter.dtype, device=parameter.device)
    return torch.sparse_coo_tensor(rows, values, parameter.shape, check_invariants=False).coalesce()


def _gather_sparse(gradient: Tensor, count: int) -> Tensor:
    """Sum of row-sparse gradients of all workers: padded to one length on the way."""
    indices, values = gradient.indices()[0], gradient.values()
    length = torch.tensor([len(indices)], device=indices.device)
    lengths = [torch.zeros_like(length) for _ in range(count)]
    torch.distributed.all_gather(lengths, length)
    longest = max(int(item) for item in lengths)
    padded_rows = torch.zeros(longest, dtype=indices.dtype, device=indices.device)
    padded_rows[: len(indices)] = indices
    padded_values = torch.zeros((longest, values.shape[1]), dtype=values.dtype, device=values.device)
    padded_values[: len(values)] = values
    all_rows = [torch.zeros_like(padded_rows) for _ in range(count)]
    all_values = [torch.zeros_like(padded_values) for _ in range(count)]
    torch.distributed.all_gather(all_rows, padded_rows)
    torch.distributed.all_gather(all_values, padded_values)
    kept = [int(item) for item in lengths]
    rows = torch.cat([r[:k] for r, k in zip(all_rows, kept, strict=True)])
    total = torch.cat([v[:k] for v, k in zip(all_values, kept, strict=True)])
    return torch.sparse_coo_tensor(rows[None], total, gradient.shape, check_invariants=False).coalesce()
