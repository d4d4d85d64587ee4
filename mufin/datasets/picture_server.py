"""Serves the images of one catalogue folder over HTTP, for demonstrations and tests; on the loopback interface unless told.

Knows no titles and no service; nothing but files under ``images/`` is handed out, nothing is listed.
"""

from __future__ import annotations

import argparse
import mimetypes
import signal
import sys
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

IMAGES_FOLDER = "images"


class PictureServer(ThreadingHTTPServer):
    """One thread a connection; ``server_close`` waits for none of them."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, folder: Path, port: int = 0, host: str = "127.0.0.1") -> None:
        """Port 0 takes a free one, see ``url``. FileNotFoundError without an images folder."""
        if not (folder / IMAGES_FOLDER).is_dir():
            raise FileNotFoundError(f"{folder} has no folder {IMAGES_FOLDER}; give a catalogue with pictures")
        self.folder = folder.resolve()
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        """Without a slash at the end; an item's image path follows it."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def picture(self, target: str) -> Path | None:
        """The file a request means; None for whatever is no file under images/."""
        parts = PurePosixPath(unquote(urlsplit(target).path)).parts[1:]
        if parts[:1] != (IMAGES_FOLDER,) or "\0" in target or "%00" in target:
            return None
        try:
            path = self.folder.joinpath(*parts).resolve()
            return path if path.is_relative_to(self.folder / IMAGES_FOLDER) and path.is_file() else None
        except OSError:  # e.g. a name longer than the file system allows
            return None


class _Handler(BaseHTTPRequestHandler):
    server: PictureServer
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        path = self.server.picture(self.path)
        if path is None:
            self.send_error(HTTPStatus.NOT_FOUND, "no such picture")
            return
        content = path.read_bytes()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", mimetypes.guess_type(path.name)[0] or "application/octet-stream")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: the demonstration's terminal belongs to the service."""


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m mufin.datasets.picture_server FOLDER --port N``; SIGINT and SIGTERM end it."""
    parser = argparse.ArgumentParser(prog="python -m mufin.datasets.picture_server", description=__doc__)
    parser.add_argument("folder", type=Path, help="catalogue folder")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        server = PictureServer(options.folder, options.port, options.host)
    except OSError as error:
        parser.error(str(error))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(f"pictures of {options.folder} on {server.url}/{IMAGES_FOLDER}/", flush=True)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
