"""Work that is waited for at most so long."""

from __future__ import annotations

import asyncio

import pytest

from service.begun import within


async def test_what_waits_for_nothing_needs_no_time() -> None:
    """Its result, or what it raised, is there at once, even where no time is left."""

    async def known() -> int:
        return 7

    async def failing() -> int:
        raise ValueError("no")

    assert await within(0.0, known()) == 7
    with pytest.raises(ValueError, match="no"):
        await within(0.0, failing())


async def test_what_waits_is_resumed_with_what_it_waited_for() -> None:
    """Several times, values and errors alike."""
    queue: asyncio.Queue[int] = asyncio.Queue()
    failed: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def work() -> tuple[int, int, str]:
        first, second = await queue.get(), await queue.get()
        try:
            await failed
        except ValueError as error:
            return first, second, str(error)
        raise AssertionError("it failed")

    working = asyncio.ensure_future(within(5.0, work()))
    for value in (1, 2):
        await asyncio.sleep(0)
        queue.put_nowait(value)
    await asyncio.sleep(0.01)
    failed.set_exception(ValueError("no"))
    assert await working == (1, 2, "no")


@pytest.mark.parametrize("own", [True, False])
async def test_what_is_late_or_cut_is_cancelled(own: bool) -> None:
    """By its time or from outside; either way the work may clean up."""
    cleaned = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            cleaned.set()

    working = asyncio.ensure_future(within(0.01 if own else 60.0, work()))
    await asyncio.sleep(0)
    if not own:
        working.cancel()
    with pytest.raises(TimeoutError if own else asyncio.CancelledError):
        await working
    assert cleaned.is_set()
