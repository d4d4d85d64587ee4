"""Gradients of several processes become one process's."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.multiprocessing.spawn import spawn

from mufin.training.workers import Workers


class Accelerator:
    """As much of accelerate's as Workers asks for."""

    num_processes = 2

    def __init__(self, rank: int) -> None:
        self.process_index = rank


def reduce(rank: int, folder: str) -> None:
    """One of two processes: rank 1 has seen no image and none of the sparse rows."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    dense, image, unused = (nn.Parameter(torch.zeros(2, 3)) for _ in range(3))
    sparse = nn.Embedding(5, 2, sparse=True)
    dense.grad = torch.full((2, 3), float(rank + 1))
    if rank == 0:
        image.grad = torch.ones(2, 3)
        sparse(torch.tensor([1, 3])).sum().backward()
    parameters: list[nn.Parameter] = [dense, image, unused, sparse.weight]  # type: ignore[list-item]
    Workers(Accelerator(rank)).reduce_gradients(parameters)
    torch.save([dense.grad, image.grad, unused.grad, sparse.weight.grad], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_a_worker_without_a_gradient_adds_zero_and_one_that_nobody_has_stays_none(tmp_path: Path) -> None:
    """Dense and sparse gradients that one worker lacks come out on both; a parameter nobody used gets no decay."""
    spawn(reduce, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    for rank in range(2):
        dense, image, unused, sparse = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(dense, torch.full((2, 3), 3.0))
        assert torch.equal(image, torch.ones(2, 3))
        assert unused is None
        assert sparse.is_sparse and sparse.coalesce().indices().tolist() == [[1, 3]]
        assert torch.equal(sparse.to_dense()[[1, 3]], torch.ones(2, 2))


def test_one_process_leaves_gradients_alone() -> None:
    """Nothing to reduce, nothing changed."""
    parameter = nn.Parameter(torch.zeros(2))
    Workers().reduce_gradients([parameter])
    assert parameter.grad is None
