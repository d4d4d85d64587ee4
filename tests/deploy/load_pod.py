"""Requests without pause from inside a cluster: python load_pod.py HOST PORT. Standard library alone: it runs in the serving image.

Half of the clients keep their connection, as a gateway does, until an answer asks for its end; half take a new one for
every request. Nothing is sent twice. A line of JSON a second says what became of all requests so far.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from collections import Counter

CLIENTS = 6
PAUSE_SECONDS = 0.05
_KEPT_FAILURES = 20


class Tally:
    """Of all clients."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answered: Counter[str] = Counter()
        self._failures: list[str] = []
        self._failed = 0

    def answered(self, bundle: str) -> None:
        """In full, by a bundle."""
        with self._lock:
            self._answered[bundle] += 1

    def failed(self, reason: str) -> None:
        """In any way."""
        with self._lock:
            self._failed += 1
            if len(self._failures) < _KEPT_FAILURES:
                self._failures.append(f"{time.strftime('%H:%M:%S')} {reason}")

    def line(self) -> str:
        """JSON."""
        with self._lock:
            return json.dumps({"answered": self._answered, "failed": self._failed, "failures": self._failures})


def ask(connection: http.client.HTTPConnection, title: str) -> str:
    """One request; the answering bundle's id. Raises OSError, http.client.HTTPException, or ValueError for another status."""
    body = json.dumps({"product": {"title": title}, "k": 3})
    connection.request("POST", "/recommend", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise ValueError(f"status {answer.status}: {content[:200]!r}")
    return str(json.loads(content)["bundle"]["id"])


def client(host: str, port: int, number: int, tally: Tally) -> None:
    """Until the process ends."""
    connection, turn = http.client.HTTPConnection(host, port, timeout=10), 0
    while True:
        turn += 1
        try:
            tally.answered(ask(connection, f"red shoe {number} {turn}"))
        except (OSError, http.client.HTTPException, ValueError) as error:
            tally.failed(f"client {number}: {error!r}")
            connection.close()
        if number % 2:
            connection.close()
        time.sleep(PAUSE_SECONDS)


def main() -> None:
    """Start the clients, report."""
    host, port, tally = sys.argv[1], int(sys.argv[2]), Tally()
    for number in range(CLIENTS):
        threading.Thread(target=client, args=(host, port, number, tally), daemon=True).start()
    while True:
        time.sleep(1)
        print(tally.line(), flush=True)


if __name__ == "__main__":
    main()
