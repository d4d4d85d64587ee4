"""The demonstration's picture server, asked over the wire."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from mufin.datasets.picture_server import PictureServer, main


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PictureServer]:
    """Serves one picture; a file beside the images folder must stay unseen."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a b.png").write_bytes(b"picture")
    (tmp_path / "products.jsonl").write_text("secret")
    (tmp_path / "images/link.png").symlink_to(tmp_path / "products.jsonl")
    with PictureServer(tmp_path) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def _ask(server: PictureServer, method: str, target: str) -> tuple[int, str | None, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    try:
        connection.request(method, target)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type"), answer.read()
    finally:
        connection.close()


def test_a_picture_is_served_with_its_type(server: PictureServer) -> None:
    """GET brings the bytes, HEAD only the header; a query string does no harm."""
    assert _ask(server, "GET", "/images/a%20b.png?size=1") == (200, "image/png", b"picture")
    assert _ask(server, "HEAD", "/images/a%20b.png") == (200, "image/png", b"")


@pytest.mark.parametrize(
    "target",
    ["/", "/images", "/images/", "/images/z.png", "/products.jsonl", "/images/../products.jsonl", "/images/link.png",
     "/images/%2e%2e/products.jsonl", "/images/..%2fproducts.jsonl", "/images/a%00.png", "/images/" + "x" * 5000,
     "//images/a.png", "*"],
)  # fmt: skip
def test_nothing_else_is_handed_out(server: PictureServer, target: str, capfd: pytest.CaptureFixture[str]) -> None:
    """No listing, no other file, no way out of images/ by dots, escapes or links - and no traceback."""
    status, _, content = _ask(server, "GET", target)
    assert status == 404
    assert b"secret" not in content
    assert capfd.readouterr().err == ""


def test_only_reading_is_possible(server: PictureServer) -> None:
    """Other methods are unknown to it."""
    assert _ask(server, "PUT", "/images/a%20b.png")[0] == 501


def test_the_command_serves_until_it_is_ended(tmp_path: Path) -> None:
    """It prints where it serves, and SIGTERM ends it with 0."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(b"picture")
    command = [sys.executable, "-m", "mufin.datasets.picture_server", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:\d+/images/", process.stdout.readline())
        assert address is not None
        with urllib.request.urlopen(address[0] + "a.png", timeout=10) as answer:
            assert answer.read() == b"picture"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_folder_without_pictures_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message names what is missing."""
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "has no folder images" in capsys.readouterr().err
