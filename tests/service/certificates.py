"""An authority of our own and server certificates good and bad, made with the openssl program.

Knows no test; certificates live in a temporary folder for one run.
"""

from __future__ import annotations

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest

Kind = Literal["good", "self_signed", "wrong_host", "expired", "not_yet"]

_CONFIG = """
[req]
distinguished_name = name
prompt = no
x509_extensions = authority
[name]
CN = test authority
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[ca]
default_ca = here
[here]
new_certs_dir = .
database = index.txt
serial = serial
default_md = sha256
policy = policy
unique_subject = no
x509_extensions = server
[policy]
commonName = supplied
[server]
basicConstraints = CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = ${ENV::SAN}
"""


@dataclass(frozen=True)
class Authority:
    """Issues certificates for shop.example; ``folder`` holds all files."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Authority:
        """A new authority; skips the test where there is no openssl program."""
        if shutil.which("openssl") is None:
            pytest.skip("needs the openssl program")
        authority = cls(folder)
        (folder / "openssl.cnf").write_text(_CONFIG, encoding="ascii")
        (folder / "index.txt").write_text("", encoding="ascii")
        (folder / "serial").write_text("01", encoding="ascii")
        authority._key("authority")
        authority._run("req", "-x509", "-new", "-key", "authority.key", "-days", "3650", "-out", "authority.pem")
        return authority

    def trusting(self) -> ssl.SSLContext:
        """A client's context that believes this authority alone."""
        return ssl.create_default_context(cafile=str(self.folder / "authority.pem"))

    def server(self, kind: Kind) -> ssl.SSLContext:
        """A server's context with a certificate of that kind."""
        if not (self.folder / f"{kind}.pem").exists():
            self._issue(kind)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / f"{kind}.pem", self.folder / f"{kind}.key")
        return context

    def _issue(self, kind: Kind) -> None:
        host = "elsewhere.example" if kind == "wrong_host" else "shop.example"
        days = {"expired": (-60, -30), "not_yet": (30, 60)}.get(kind, (-1, 30))
        begin, end = ((datetime.now(UTC) + timedelta(days=own)).strftime("%Y%m%d%H%M%SZ") for own in days)
        self._key(kind)
        self._run("req", "-new", "-key", f"{kind}.key", "-subj", "/CN=server", "-out", f"{kind}.csr")
        signer = ("-selfsign", "-keyfile", f"{kind}.key")
        if kind != "self_signed":
            signer = ("-cert", "authority.pem", "-keyfile", "authority.key")  # type: ignore[assignment]
        self._run(
            "ca", "-batch", "-notext", *signer, "-in", f"{kind}.csr", "-out", f"{kind}.pem",
            "-startdate", begin, "-enddate", end, host=host,
        )  # fmt: skip

    def _key(self, name: str) -> None:
        self._run("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{name}.key", config=False)

    def _run(self, command: str, *arguments: str, host: str = "shop.example", config: bool = True) -> None:
        chosen = ["-config", "openssl.cnf"] if config else []
        done = subprocess.run(
            ["openssl", command, *chosen, *arguments],
            cwd=self.folder,
            env={"SAN": f"DNS:{host}", "PATH": "/usr/local/bin:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
