"""The queue: batches of what waits, refusals, failures, cancellation, the end."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Sequence

import pytest

from service.batching import BatchQueue, Stage, run_batch
from service.errors import NotReady, Shed
from tests.service.serving import eventually


class Gate:
    """Work that waits for leave, and remembers its batches."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.open.wait(5)
        return [item * 10 for item in items]


def _same(items: Sequence[int]) -> Sequence[int]:
    return items


async def _blocked(queue: BatchQueue, stage: Stage[int, int], gate: Gate) -> asyncio.Task[int]:
    """One item that keeps the only worker busy."""
    task = asyncio.ensure_future(queue.submit(stage, 0))
    await eventually(lambda: bool(gate.batches))
    return task


async def test_a_lone_item_does_not_wait_and_what_waits_becomes_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first goes alone at once; those that come meanwhile go together, up to the size."""
    monkeypatch.setattr("service.batching._LONGEST_BATCH_SECONDS", 60.0)  # the gate is no slow model
    queue, gate = BatchQueue(1, 100), Gate()
    stage = queue.stage("work", gate, 3)
    first = await _blocked(queue, stage, gate)
    rest = [asyncio.ensure_future(queue.submit(stage, item)) for item in range(1, 6)]
    await asyncio.sleep(0)
    assert queue.waiting_items == 5
    gate.open.set()
    assert await asyncio.gather(first, *rest) == [0, 10, 20, 30, 40, 50]
    assert gate.batches == [[0], [1, 2, 3], [4, 5]]
    assert queue.waiting_items == 0
    assert queue.longest_running_seconds == 0
    await queue.aclose()


async def test_later_stages_go_first() -> None:
    """What finishes a request goes before what begins one."""
    queue, gate = BatchQueue(1, 100), Gate()
    order: list[str] = []
    early = queue.stage("early", gate, 1, step=0)

    def note(items: Sequence[int]) -> Sequence[int]:
        order.append("late")
        return items

    late = queue.stage("late", note, 1, step=1)
    first = await _blocked(queue, early, gate)
    waiting = [asyncio.ensure_future(queue.submit(early, 1)), asyncio.ensure_future(queue.submit(late, 2))]
    await asyncio.sleep(0)
    gate.open.set()
    await asyncio.gather(first, *waiting)
    assert order == ["late"]
    assert gate.batches == [[0], [1]]
    await queue.aclose()


async def test_the_queue_keeps_no_stage_in_which_nothing_waits() -> None:
    """A bundle that is no longer served takes its stages along."""
    queue, gate = BatchQueue(1, 100), Gate()
    stage = queue.stage("work", gate, 1)
    left = weakref.ref(gate)
    first = await _blocked(queue, stage, gate)
    gone = asyncio.ensure_future(queue.submit(stage, 1))
    await asyncio.sleep(0)
    gone.cancel()
    gate.open.set()
    await first
    await asyncio.gather(gone, return_exceptions=True)
    del stage, gate, first, gone
    await eventually(lambda: left() is None)
    assert left() is None
    await queue.aclose()


async def test_only_the_guilty_item_of_a_failed_batch_fails() -> None:
    """The others are tried one by one, once."""

    def fussy(items: Sequence[int]) -> list[int]:
        if 3 in items:
            raise ValueError("three")
        return list(items)

    queue = BatchQueue(1, 100)
    stage = queue.stage("fussy", fussy, 8)
    outcomes = await asyncio.gather(*(queue.submit(stage, item) for item in range(5)), return_exceptions=True)
    assert [own for own in outcomes if not isinstance(own, BaseException)] == [0, 1, 2, 4]
    assert str(outcomes[3]) == "three"
    await queue.aclose()


def test_a_stage_that_loses_items_is_a_failure() -> None:
    """Results that do not match the items are never handed to the wrong waiter."""

    def first_only(items: Sequence[int]) -> Sequence[int]:
        return items[:1]

    def none(items: Sequence[int]) -> Sequence[int]:
        return []

    assert list(run_batch(first_only, [1, 2])) == [1, 2]
    (lost,) = run_batch(none, [1])
    assert isinstance(lost, RuntimeError)


async def test_a_full_queue_refuses_and_later_steps_of_accepted_requests_pass() -> None:
    """The bound counts items; steps that end requests are not bounded by it."""
    queue, gate = BatchQueue(1, 2), Gate()
    bounded = queue.stage("bounded", gate, 8)
    unbounded = queue.stage("unbounded", _same, 8, bounded=False)
    first = await _blocked(queue, bounded, gate)
    waiting = [asyncio.ensure_future(queue.submit(bounded, item)) for item in (1, 2)]
    await asyncio.sleep(0)
    with pytest.raises(Shed) as refused:
        await queue.submit(bounded, 3)
    assert refused.value.reason == "queue_full"
    with pytest.raises(Shed):
        queue.admit({bounded: 1}, 10.0)
    waiting.append(asyncio.ensure_future(queue.submit(unbounded, 4)))
    await asyncio.sleep(0)
    gate.open.set()
    assert await asyncio.gather(first, *waiting) == [0, 10, 20, 4]
    with queue.admit({bounded: 1000}, 10.0):
        pass
    await queue.aclose()


async def test_what_was_promised_counts_until_it_is_done() -> None:
    """Wherever it is: nothing of it has come to the queue yet. Half of the time left is too much, before a long deadline not."""
    queue = BatchQueue(2, 100)
    stage, other = queue.stage("work", _same, 1), queue.stage("other", _same, 1)
    stage.seconds_per_item, other.seconds_per_item = 0.1, 0.2
    with queue.admit({stage: 4, other: 2}, 0.8) as first:
        assert queue.estimated_wait_seconds() == pytest.approx(0.4)
        with pytest.raises(Shed) as refused:
            queue.admit({stage: 1}, 0.8)
        assert (refused.value.reason, refused.value.retry_after_seconds) == ("wait_too_long", 1)
        with queue.admit({stage: 1}, 5.0):
            assert queue.estimated_wait_seconds() == pytest.approx(0.45)
        first.done(other)
        first.done(stage)
        assert queue.estimated_wait_seconds() == pytest.approx(0.25)
        for _ in range(9):
            first.done(stage)
        assert queue.estimated_wait_seconds() == pytest.approx(0.1)
    assert queue.estimated_wait_seconds() == 0
    await queue.aclose()


async def test_batches_of_slow_items_are_small() -> None:
    """What waits behind a batch waits for its end: so long at most, or one item."""
    queue, gate = BatchQueue(1, 100, longest_batch_seconds=0.05), Gate()
    stage = queue.stage("work", gate, 8)
    first = await _blocked(queue, stage, gate)
    stage.seconds_per_item = 0.02
    waiting = [asyncio.ensure_future(queue.submit(stage, item)) for item in range(1, 5)]
    await asyncio.sleep(0)
    assert stage.fair_batch() == 2
    stage.seconds_per_item = 3.0
    assert stage.fair_batch() == 1
    gate.open.set()
    assert await asyncio.gather(first, *waiting) == [0, 10, 20, 30, 40]
    assert gate.batches[1] == [1]
    await queue.aclose()


async def test_slow_items_go_in_longer_batches_while_nobody_quick_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request without them ends that for a while: it must not wait so long."""
    queue = BatchQueue(1, 100, longest_batch_seconds=0.05)
    slow, quick = queue.stage("slow", _same, 8), queue.stage("quick", _same, 8, step=1)
    for request, together in (({slow: 1, quick: 1}, [4, 1]), ({quick: 1}, [2, 2, 1])):
        gate = Gate()
        slow.run = gate
        with queue.admit(request, 100.0):
            pass
        first = await _blocked(queue, slow, gate)
        waiting = [asyncio.ensure_future(queue.submit(slow, item)) for item in range(1, 6)]
        await asyncio.sleep(0)
        monkeypatch.setattr("service.batching._AVERAGE_KEEPS", 1.0)
        slow.seconds_per_item = 0.025
        gate.open.set()
        await asyncio.gather(first, *waiting)
        assert [len(batch) for batch in gate.batches] == [1, *together]
    await queue.aclose()


async def test_only_requests_with_less_to_do_shorten_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Titles: those with more to do do not, those with less do for a while."""
    queue = BatchQueue(1, 100, longest_batch_seconds=0.05)
    pictures, titles = queue.stage("pictures", _same, 8), queue.stage("titles", _same, 8, step=1)
    known = queue.stage("known", _same, 8, step=2, bounded=False)
    for kind, lately, together in ((pictures, 5.0, 4), (titles, 5.0, 4), (known, 5.0, 2), (known, 0.0, 4)):
        gate = Gate()
        titles.run = gate
        with queue.admit({kind: 1, known: 1}, 100.0):
            pass
        first = await _blocked(queue, titles, gate)
        waiting = [asyncio.ensure_future(queue.submit(titles, item)) for item in range(1, 6)]
        await asyncio.sleep(0)
        monkeypatch.setattr("service.batching._AVERAGE_KEEPS", 1.0)
        monkeypatch.setattr("service.batching._LATELY_SECONDS", lately)
        titles.seconds_per_item = 0.025
        gate.open.set()
        await asyncio.gather(first, *waiting)
        assert len(gate.batches[1]) == together, (kind.name, lately)
    await queue.aclose()


async def test_a_wait_past_the_deadline_is_refused_with_an_estimate() -> None:
    """Retry-After says how long the queue is."""
    queue, gate = BatchQueue(1, 100), Gate()
    stage = queue.stage("work", gate, 1)
    stage.seconds_per_item = 3.0
    first = await _blocked(queue, stage, gate)
    waiting = asyncio.ensure_future(queue.submit(stage, 1))
    await asyncio.sleep(0)
    with pytest.raises(Shed) as refused:
        queue.admit({stage: 1}, 0.8)
    assert refused.value.reason == "wait_too_long"
    assert refused.value.retry_after_seconds == 3
    gate.open.set()
    await asyncio.gather(first, waiting)
    await queue.aclose()


async def test_a_cancelled_waiter_is_skipped() -> None:
    """Nobody computes what nobody waits for."""
    queue, gate = BatchQueue(1, 100), Gate()
    stage = queue.stage("work", gate, 8)
    first = await _blocked(queue, stage, gate)
    gone, stays = (asyncio.ensure_future(queue.submit(stage, item)) for item in (1, 2))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    assert queue.waiting_items == 1
    gate.open.set()
    assert (await first, await stays) == (0, 20)
    assert gate.batches == [[0], [2]]
    await queue.aclose()


async def test_an_item_that_is_not_there_in_time_is_given_up() -> None:
    """One that waits is taken out, one under way is computed for nobody; whoever has time is answered."""
    queue, gate = BatchQueue(1, 100), Gate()
    stage = queue.stage("work", gate, 8)
    first = asyncio.ensure_future(queue.submit(stage, 0, 0.02))
    await eventually(lambda: bool(gate.batches))
    late, timely = (asyncio.ensure_future(queue.submit(stage, item, own)) for item, own in ((1, 0.02), (2, 60.0)))
    for own in (first, late):
        with pytest.raises(TimeoutError):
            await own
    assert queue.waiting_items == 1
    gate.open.set()
    assert await timely == 20
    assert gate.batches == [[0], [2]]
    await queue.aclose()


async def test_the_end_answers_everybody() -> None:
    """Running batches end, waiting items are told, new ones refused."""
    queue, gate = BatchQueue(1, 100), Gate()
    stage = queue.stage("work", gate, 1)
    first = await _blocked(queue, stage, gate)
    waiting = asyncio.ensure_future(queue.submit(stage, 1))
    await asyncio.sleep(0)
    threading.Timer(0.05, gate.open.set).start()
    await queue.aclose(grace_seconds=5.0)
    assert await first == 0
    with pytest.raises(NotReady):
        await waiting
    with pytest.raises(NotReady):
        await queue.submit(stage, 2)


async def test_batches_are_observed_and_a_busy_worker_shows() -> None:
    """What metrics and liveness are made of."""
    seen: list[tuple[str, int]] = []
    queue, gate = BatchQueue(1, 100, lambda stage, items, seconds: seen.append((stage, items))), Gate()
    stage = queue.stage("work", gate, 8)
    first = await _blocked(queue, stage, gate)
    await asyncio.sleep(0.01)
    assert queue.longest_running_seconds > 0
    gate.open.set()
    await first
    assert seen == [("work", 1)]
    await queue.aclose()


def test_a_batch_that_was_held_up_does_not_make_everybody_wait() -> None:
    """One stall of the machine leaves the average where it can be lived with; items that stay slow are known for it soon."""
    stage: Stage[int, int] = Stage("kept", list, 8, 0, True, 0.08)
    stage.took(0.001, 1)
    assert stage.seconds_per_item == 0.001  # the first batch is all that is known
    stage.took(0.3, 1)
    assert stage.seconds_per_item < 0.002
    for _ in range(20):
        stage.took(0.8, 8)
    assert 0.05 < stage.seconds_per_item < 0.1


def test_a_crowd_is_soon_known_to_cost_less_than_one_by_one() -> None:
    """A burst after a quiet hour is reckoned by what batches cost; what became slower is learned as it was, also one by one."""
    stage: Stage[int, int] = Stage("kept", list, 64, 0, True, 0.08)
    for _ in range(50):
        stage.took(0.006, 1)
    assert stage.fair_batch() == 13
    for batch in (13, 17, 21, 23):
        stage.took(0.003 * batch, batch)
    assert stage.fair_batch() >= 24
    for _ in range(50):
        stage.took(0.048, 1)
    assert 0.045 < stage.seconds_per_item < 0.05
    stage.took(0.00001, 64)  # broken, and so at once: no reason to take on twice as much
    assert stage.seconds_per_item > 0.02
