"""Certificates for tests: an authority, and what it signs, made by openssl in a folder."""

from __future__ import annotations

import subprocess
from pathlib import Path

NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")


class Authority:
    """A certificate authority of one test."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self.folder = folder
        self.certificate, self.key = self._make(name, ())

    def sign(self, name: str) -> tuple[Path, Path]:
        """Certificate and key of `name`, good for 127.0.0.1 and localhost."""
        alternatives = f"subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:{name}"
        return self._make(name, ("-CA", str(self.certificate), "-CAkey", str(self.key), "-addext", alternatives))

    def _make(self, name: str, options: tuple[str, ...]) -> tuple[Path, Path]:
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}-key.pem"
        files = ("-subj", f"/CN={name}", "-out", str(certificate), "-keyout", str(key))
        subprocess.run(["openssl", "req", "-x509", *NEW_KEY, *files, *options], check=True, capture_output=True)
        return certificate, key
