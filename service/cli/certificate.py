"""The certificate of HTTPS, which is read again when its files change: a renewal needs no restart."""

from __future__ import annotations

import ssl
from pathlib import Path

import structlog

from service.settings import Settings

log = structlog.get_logger(__name__)


class CertificateUnusable(Exception):
    """The files are no certificate and its key; the message names the settings to change."""


class Certificate:
    """Files of a certificate with its chain, and of its key. `context`: what a server makes connections with.

    Raises CertificateUnusable where the files do not fit.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key
        self._loaded = self._seen = self._read_times()
        self.context = self._load()

    def reload_if_changed(self) -> None:
        """Give connections to come what the files hold now. Files that do not fit change nothing.

        To be called about once a second. Files are read once they have not changed between two calls, since a renewal
        may write one after the other.
        """
        times = self._read_times()
        settled, self._seen = times == self._seen, times
        if times == self._loaded or not settled:
            return
        self._loaded = times
        try:
            self._load()  # a context that refuses a key has lost its old one: so another one tries it first
            self.context.load_cert_chain(self._certificate, self._key)
        except (CertificateUnusable, OSError) as error:
            log.error("certificate_not_reloaded", detail=f"{error}; the one before is still used")
        else:
            log.info("certificate_reloaded", certificate=str(self._certificate))

    def _read_times(self) -> tuple[int, ...]:
        """When the files were last changed; () where one is missing."""
        try:
            return tuple(file.stat().st_mtime_ns for file in (self._certificate, self._key))
        except OSError:
            return ()

    def _load(self) -> ssl.SSLContext:
        """Return a context of TLS 1.2 or newer with what the files hold."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self._certificate, self._key, password="")
        except (OSError, ValueError) as error:  # ValueError: the key has a password
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "the key has a password"
            raise CertificateUnusable(
                f"NOTELLM_TLS_CERTIFICATE is {str(self._certificate)!r} and NOTELLM_TLS_KEY {str(self._key)!r}; they "
                f"must be files of a certificate and its key without a password: {reason}"
            ) from error
        return context


def read_certificate(settings: Settings) -> Certificate | None:
    """Read the certificate of HTTPS; None for HTTP. Raises CertificateUnusable."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return Certificate(settings.tls_certificate, settings.tls_key)
