"""Certificate for HTTPS, which is loaded again when its files change, so that a renewal needs no restart."""

from __future__ import annotations

import ssl
from pathlib import Path

import structlog

from service.settings import Settings

log = structlog.get_logger(__name__)


class CertificateUnusable(Exception):
    """The files are not a certificate and its key; the message names the settings to change."""


class Certificate:
    """Certificate chain and key for HTTPS, read from files. `context`: the TLS context of a server.

    Raises CertificateUnusable if the files are not a certificate and its key.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key
        self._loaded = self._seen = self._read_times()
        self.context = self._load()

    def reload_if_changed(self) -> None:
        """Use the current content of the files for new connections. Files that cannot be used change nothing.

        To be called about once a second. Files are loaded once they have not changed between two calls, since a renewal
        may write one after the other.
        """
        times = self._read_times()
        settled, self._seen = times == self._seen, times
        if times == self._loaded or not settled:
            return
        self._loaded = times
        try:
            self._load()  # on another context first: one that refuses a key has already lost its old one
            self.context.load_cert_chain(self._certificate, self._key)
        except (CertificateUnusable, OSError) as error:
            log.error("certificate_not_reloaded", detail=f"{error}; the previous certificate is still used")
        else:
            log.info("certificate_reloaded", certificate=str(self._certificate))

    def _read_times(self) -> tuple[int, ...]:
        """Return the modification times of the files in nanoseconds; () if one is missing."""
        try:
            return tuple(file.stat().st_mtime_ns for file in (self._certificate, self._key))
        except OSError:
            return ()

    def _load(self) -> ssl.SSLContext:
        """Return a context for TLS 1.2 or newer with the content of the files."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self._certificate, self._key, password="")
        except (OSError, ValueError) as error:  # ValueError: the key has a password
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "the key has a password"
            raise CertificateUnusable(
                f"NOTELLM_TLS_CERTIFICATE is {str(self._certificate)!r} and NOTELLM_TLS_KEY {str(self._key)!r}; they "
                f"must be files with a certificate and its private key without a password: {reason}"
            ) from error
        return context


def read_certificate(settings: Settings) -> Certificate | None:
    """Read the certificate for HTTPS; None for HTTP. Raises CertificateUnusable."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return Certificate(settings.tls_certificate, settings.tls_key)
