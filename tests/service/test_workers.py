"""Threads that run what they are given."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref

import pytest

from service.workers import Workers

_SECONDS = 10


def _names() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("own_"))


def _ended(threads: list[threading.Thread]) -> bool:
    for thread in threads:
        thread.join(_SECONDS)
    return not any(thread.is_alive() for thread in threads)


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("own_")]


def test_as_many_calls_run_at_once_as_there_are_threads() -> None:
    """Started when they are needed, not before; a further call waits for a free one."""
    workers = Workers(2, "own")
    assert _names() == []
    gate, both, third = threading.Event(), threading.Barrier(3), threading.Event()

    def held() -> None:
        both.wait(_SECONDS)
        gate.wait(_SECONDS)

    workers.submit(held)
    assert _names() == ["own_0"]
    workers.submit(held)
    both.wait(_SECONDS)
    workers.submit(third.set)
    assert _names() == ["own_0", "own_1"]
    assert not third.is_set()
    gate.set()
    assert third.wait(_SECONDS)
    workers.close()
    assert _ended(_threads())


def test_what_runs_when_it_closes_ends_and_what_waits_is_forgotten() -> None:
    """Closing waits for nobody."""
    workers = Workers(1, "own")
    begun, gate, ended, later = (threading.Event() for _ in range(4))

    def held() -> None:
        begun.set()
        gate.wait(_SECONDS)
        ended.set()

    workers.submit(held)
    workers.submit(later.set)
    assert begun.wait(_SECONDS)
    workers.close()
    gate.set()
    assert ended.wait(_SECONDS)
    assert _ended(_threads())
    assert not later.is_set()


def test_threads_end_with_their_owner() -> None:
    """Also where nobody closed it; what a call held is let go of when the call is over."""
    workers = Workers(1, "own")
    done = threading.Event()

    class Held:
        def __call__(self) -> None:
            done.set()

    call = Held()
    watched = weakref.ref(call)
    workers.submit(call)
    assert done.wait(_SECONDS)
    del call
    over = threading.Event()
    workers.submit(over.set)
    assert over.wait(_SECONDS)
    assert watched() is None
    threads = _threads()
    del workers
    gc.collect()
    assert _ended(threads)


def test_no_further_thread_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any thread it says so, as else the caller would wait for ever; with one the call waits for that."""
    workers, start = Workers(2, "own"), threading.Thread.start

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    done = threading.Event()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start"):
        workers.submit(done.set)
    monkeypatch.setattr(threading.Thread, "start", start)
    workers.submit(lambda: None)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    workers.submit(done.set)
    assert done.wait(_SECONDS)
    assert _names() == ["own_0"]
    monkeypatch.undo()
    workers.close()
    assert _ended(_threads())


@pytest.mark.parametrize(
    ("calls", "seconds", "said"),
    [(1, 0.5, "over\nended\n"), (1, 600, "over\n"), (20, 600, "over\n")],
    ids=["short", "one that hangs", "twenty that hang"],
)
def test_the_process_s_end_waits_for_calls_a_while(calls: int, seconds: float, said: str) -> None:
    """Two seconds for all of them together; twenty times two would be more than this waits for."""
    code = (
        "import time; from service.workers import Workers\n"
        f"def call(): time.sleep({seconds}); print('ended', flush=True)\n"
        f"workers = Workers({calls}, 'own')\n"
        f"for _ in range({calls}): workers.submit(call)\n"
        "time.sleep(.1); print('over', flush=True)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, said, "")
