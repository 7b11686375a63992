"""HTTPS of a real process: its certificate is replaced without a restart, and files that do not match are refused."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import structlog
from typer.testing import CliRunner

from service.cli.certificate import Certificate, CertificateUnusable
from service.cli.main import app
from tests.service.process import Process, running, wait_until


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a self-signed certificate for 127.0.0.1, with `name` as its common name, and its key."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name}"
    extensions = ["-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-out", str(certificate), "-keyout", str(key)]
    subprocess.run([*command.split(), *extensions, *files], check=True, capture_output=True)
    return certificate, key


def put(source: tuple[Path, Path], certificate: Path, key: Path) -> None:
    """Replace the files of another certificate and its key, as a renewal does."""
    for file, target in zip(source, (certificate, key), strict=True):
        fresh = target.with_suffix(".new")
        fresh.write_bytes(file.read_bytes())
        fresh.replace(target)


def presented_by(url: str) -> str:
    """Certificate that a server presents, as PEM."""
    address = httpx2.URL(url)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((address.host, address.port or 443), timeout=10) as connection,
        context.wrap_socket(connection) as tls,
    ):
        return ssl.DER_cert_to_PEM_cert(tls.getpeercert(binary_form=True) or b"")


@pytest.fixture
def first(tmp_path: Path) -> tuple[Path, Path]:
    return make_certificate(tmp_path, "first")


@pytest.fixture
def second(tmp_path: Path) -> tuple[Path, Path]:
    return make_certificate(tmp_path, "second")


@pytest.fixture
def files(tmp_path: Path, first: tuple[Path, Path]) -> tuple[Path, Path]:
    """Files of the service, which hold the first certificate."""
    paths = tmp_path / "tls.crt", tmp_path / "tls.key"
    put(first, *paths)
    return paths


@pytest.fixture
def process(
    tiny_checkpoint: Path, files: tuple[Path, Path], first: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Process]:
    monkeypatch.setenv("SSL_CERT_FILE", str(first[0]))
    certificate, key = files
    with running(tiny_checkpoint, NOTELLM_TLS_CERTIFICATE=str(certificate), NOTELLM_TLS_KEY=str(key)) as process:
        yield process


@pytest.mark.slow
def test_renewed_certificate_is_presented_without_a_restart(
    process: Process, files: tuple[Path, Path], first: tuple[Path, Path], second: tuple[Path, Path]
) -> None:
    assert httpx2.post(f"{process.url}/notes", json={"id": "a", "title": "bread"}).status_code == 201
    assert process.run("similar", "a").returncode == 0
    assert presented_by(process.url) == first[0].read_text()
    with httpx2.Client(base_url=process.url) as open_connection:
        open_connection.get("/livez")
        put(second, *files)
        wait_until(lambda: presented_by(process.url) == second[0].read_text())
        assert open_connection.get("/livez").status_code == 200
    files[1].write_text("no key")
    wait_until(lambda: "certificate_not_reloaded" in process.log)
    assert presented_by(process.url) == second[0].read_text()
    process.end(signal.SIGTERM)
    assert f'"url": "{process.url}"' in process.log


def test_files_that_change_between_two_looks_wait_for_the_next(
    files: tuple[Path, Path], second: tuple[Path, Path]
) -> None:
    certificate = Certificate(*files)
    with structlog.testing.capture_logs() as lines:
        put((second[0], files[1]), *files)  # the certificate is new, its key is not yet
        certificate.reload_if_changed()
        put(second, *files)
        certificate.reload_if_changed()
        assert lines == []
        certificate.reload_if_changed()
        certificate.reload_if_changed()
    assert [line["event"] for line in lines] == ["certificate_reloaded"]


def test_files_that_vanish_change_nothing(files: tuple[Path, Path]) -> None:
    certificate = Certificate(*files)
    files[1].unlink()
    with structlog.testing.capture_logs() as lines:
        for _ in range(4):
            certificate.reload_if_changed()
    assert [line["event"] for line in lines] == ["certificate_not_reloaded"]


def test_key_of_another_certificate_is_refused(files: tuple[Path, Path], second: tuple[Path, Path]) -> None:
    with pytest.raises(CertificateUnusable, match="NOTELLM_TLS_KEY"):
        Certificate(files[0], second[1])


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"NOTELLM_TLS_CERTIFICATE": "/nowhere/c"}, "NOTELLM_TLS_KEY and NOTELLM_TLS_CERTIFICATE must be set together"),
        ({"NOTELLM_TLS_KEY": "/nowhere/k"}, "NOTELLM_TLS_KEY and NOTELLM_TLS_CERTIFICATE must be set together"),
        ({"NOTELLM_TLS_CERTIFICATE": "/nowhere/c", "NOTELLM_TLS_KEY": "/nowhere/k"}, "No such file or directory"),
    ],
)
def test_missing_file_is_refused_in_one_line(variables: dict[str, str], words: str) -> None:
    clean = {name: None for name in os.environ if name.startswith("NOTELLM_")}
    result = CliRunner().invoke(app, ["serve"], env=clean | variables)
    (line,) = result.stderr.splitlines()
    assert (result.exit_code, words in line) == (2, True)


@pytest.mark.slow
def test_older_version_of_tls_than_1_2_is_refused(process: Process) -> None:
    address = httpx2.URL(process.url)
    for version in (ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers("DEFAULT@SECLEVEL=0")  # otherwise the client would refuse the old version
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = version
        with socket.create_connection((address.host, address.port or 443), timeout=10) as connection:
            if version is ssl.TLSVersion.TLSv1_1:
                with pytest.raises(ssl.SSLError):
                    context.wrap_socket(connection)
            else:
                with context.wrap_socket(connection) as tls:
                    assert tls.version() == "TLSv1.2"
