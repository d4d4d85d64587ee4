"""Reading images by path and by URL, against a real server on the loopback interface."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mufin.catalogue import ImageReader
from mufin.errors import CatalogueError


class _Origin(ThreadingHTTPServer):
    """Answers /good, /big, /flaky (503 once, then good), /moved; everything else is 404."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: _Origin

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        first_time = self.server.asked.count(self.path) == 1
        status, content = {
            "/good": (200, b"good"),
            "/big": (200, b"x" * 5000),
            "/flaky": (503 if first_time else 200, b"flaky"),
            "/moved": (302, b""),
        }.get(self.path, (404, b"none"))
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/good")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def origin() -> Iterator[_Origin]:
    """A server that counts what it is asked."""
    with _Origin() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_path_is_read_from_the_folder(tmp_path: Path) -> None:
    """Names are relative to the catalogue."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(b"a")
    assert ImageReader(tmp_path).read("images/a.png") == b"a"


@pytest.mark.parametrize(
    ("image", "message"),
    [("b.png", "restore the file"), ("../b.png", "leaves the catalogue"), ("ftp://h/b.png", "neither http")],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, image: str, message: str) -> None:
    """A missing file, a path out of the folder, another scheme."""
    with pytest.raises(CatalogueError, match=message):
        ImageReader(tmp_path).read(image)


def test_a_packed_image_is_a_part_of_its_file(tmp_path: Path) -> None:
    """FILE.bin#OFFSET+LENGTH; other names with # are files like any other."""
    (tmp_path / "a.bin").write_bytes(b"0123456789")
    (tmp_path / "a.png#1+2").write_bytes(b"whole")
    reader = ImageReader(tmp_path, max_image_bytes=5)
    assert reader.read("a.bin#2+3") == b"234"
    assert reader.read("a.bin#9+1") == b"9"
    assert reader.read("a.png#1+2") == b"whole"
    for image, message in (
        ("a.bin#9+2", "ends before byte 11"), ("a.bin#0+6", "6 bytes, allowed are 5"), ("a.bin#0+0", "has no bytes"),
        ("b.bin#0+1", "restore the file of packed images"), ("../a.bin#0+1", "leaves the catalogue"),
        ("/a.bin#0+1", "leaves the catalogue"), ("a.bin#-1+2", "restore the file"), ("a.bin#٣+1", "restore the file"),
    ):  # fmt: skip
        with pytest.raises(CatalogueError, match=message):
            reader.read(image)


def test_a_url_is_fetched_once_and_kept(tmp_path: Path, origin: _Origin) -> None:
    """A second reader finds it on disk, with the server asked once; redirects are followed."""
    with ImageReader(tmp_path) as reader:
        assert reader.read(f"{origin.url}/good") == reader.read(f"{origin.url}/moved") == b"good"
    with ImageReader(tmp_path) as again:
        assert again.read(f"{origin.url}/good") == b"good"
    assert origin.asked == ["/good", "/moved", "/good"]
    assert len(list((tmp_path / ".image-cache").iterdir())) == 2


def test_fetched_images_go_to_the_cache_folder_given(tmp_path: Path, origin: _Origin) -> None:
    """The catalogue folder may be read-only."""
    with ImageReader(tmp_path / "catalogue", tmp_path / "cache") as reader:
        assert reader.read(f"{origin.url}/good") == b"good"
    assert not (tmp_path / "catalogue").exists()


def test_a_busy_server_is_asked_again_but_a_missing_picture_is_not(tmp_path: Path, origin: _Origin) -> None:
    """5xx is tried again; 404 is final, and named with its URL."""
    with ImageReader(tmp_path) as reader:
        assert reader.read(f"{origin.url}/flaky") == b"flaky"
        with pytest.raises(CatalogueError, match=r"/none cannot be fetched \(the server answered 404\)"):
            reader.read(f"{origin.url}/none")
    assert origin.asked == ["/flaky", "/flaky", "/none"]


def test_large_images_and_dead_servers_are_refused(tmp_path: Path, origin: _Origin) -> None:
    """The limit holds for files and for URLs while they arrive; a closed port is a CatalogueError, too."""
    (tmp_path / "big.png").write_bytes(b"x" * 5000)
    with ImageReader(tmp_path, max_image_bytes=100, attempts=1) as reader:
        for image in ("big.png", f"{origin.url}/big"):
            with pytest.raises(CatalogueError, match="100"):
                reader.read(image)
        with pytest.raises(CatalogueError, match="ConnectError"):
            reader.read("http://127.0.0.1:9/a.png")
