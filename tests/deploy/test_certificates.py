"""`deploy/cluster/certificates.sh`: two CAs, and for each server a certificate of each."""

import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.deploy.secrets import CERTIFICATES_SCRIPT, certificates, readable_by_others, turn_into_version_0_1

# A certificate, and the CA that signs it.
SIGNED: Final = (("server.pem", "ca.pem"), ("route.pem", "routes-ca.pem"))


def extension(certificate: Path, name: str) -> str:
    """What openssl prints of an extension."""
    command = ["openssl", "x509", "-in", str(certificate), "-noout", "-ext", name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def is_signed_by(ca: Path, certificate: Path) -> bool:
    """Whether a certificate is the CA's."""
    done = subprocess.run(["openssl", "verify", "-CAfile", ca, certificate], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.parametrize("file", ["server.pem", "route.pem"])
def test_a_certificate_is_good_for_every_name_it_was_made_for(tmp_path: Path, file: str) -> None:
    certificates(tmp_path, "nats,*.nats-headless,10.1.2.3", "other")

    text = extension(tmp_path / "nats" / file, "subjectAltName")

    assert "DNS:localhost, IP Address:127.0.0.1, DNS:nats, DNS:*.nats-headless, IP Address:10.1.2.3" in text


@pytest.mark.parametrize(("file", "ca"), SIGNED)
@pytest.mark.parametrize("server", ["nats", "other"])
def test_a_certificate_is_the_ca_s(tmp_path: Path, server: str, file: str, ca: str) -> None:
    certificates(tmp_path, "nats")
    certificates(tmp_path, "other")  # signed by the CAs that are there

    assert is_signed_by(tmp_path / ca, tmp_path / server / file)


@pytest.mark.parametrize(("file", "ca"), [("server.pem", "routes-ca.pem"), ("route.pem", "ca.pem")])
def test_a_certificate_is_not_the_other_ca_s(tmp_path: Path, file: str, ca: str) -> None:
    certificates(tmp_path, "nats")

    assert not is_signed_by(tmp_path / ca, tmp_path / "nats" / file)


def test_the_certificate_of_the_clients_port_is_no_client_s(tmp_path: Path) -> None:
    certificates(tmp_path, "nats")

    text = extension(tmp_path / "nats/server.pem", "extendedKeyUsage")

    assert "TLS Web Server Authentication" in text
    assert "Client" not in text


def test_a_server_gets_what_it_uses_without_the_keys_of_the_cas(tmp_path: Path) -> None:
    certificates(tmp_path, "nats")

    files = {path.name for path in (tmp_path / "nats").iterdir()}

    assert files == {"server.pem", "server.key", "ca.pem", "route.pem", "route.key", "routes-ca.pem"}


def test_only_their_owner_can_read_keys(tmp_path: Path) -> None:
    certificates(tmp_path / "new/tls", "nats")

    assert len([*tmp_path.rglob("*.key")]) == 4
    assert readable_by_others(tmp_path / "new") == []


def test_a_folder_of_version_0_1_gets_certificates_for_routes(tmp_path: Path) -> None:
    certificates(tmp_path, "nats")
    turn_into_version_0_1(tmp_path)
    ca = (tmp_path / "ca.pem").read_bytes()

    certificates(tmp_path, "nats")

    assert (tmp_path / "ca.pem").read_bytes() == ca  # what clients trust
    assert is_signed_by(tmp_path / "ca.pem", tmp_path / "nats/server.pem")
    assert is_signed_by(tmp_path / "routes-ca.pem", tmp_path / "nats/route.pem")
    assert readable_by_others(tmp_path / "nats") == []


def test_a_ca_whose_key_is_elsewhere_is_not_replaced(tmp_path: Path) -> None:
    certificates(tmp_path, "nats")
    ca = (tmp_path / "ca.pem").read_bytes()
    (tmp_path / "ca.key").unlink()

    done = subprocess.run([CERTIFICATES_SCRIPT, tmp_path, "nats"], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "ca.key" in done.stderr
    assert (tmp_path / "ca.pem").read_bytes() == ca
