"""``famsam serve`` with a certificate of its own, and clients that do and do not know who issued it."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import pytest
from famsam import Session, Volume
from famsam.checkpoints import save_model
from famsam.client import Connection, ConnectionLostError, RemoteSession, ServerRefusal
from server_fixtures import CENTRE_RAS_MM, RAS_FROM_IJK, ball_zyx

trustme = pytest.importorskip("trustme", reason="making a certificate needs trustme, of the extra 'test'")

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "correct-horse-battery"
SERVE = (
    "import argparse, sys; from famsam.server.command import add_serve_arguments, serve; "
    "parser = argparse.ArgumentParser(); add_serve_arguments(parser); sys.exit(serve(parser.parse_args()))"
)

pytestmark = pytest.mark.skipif(
    os.name == "nt", reason="ends the server as Ctrl+C does, which POSIX can send to a child"
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the certificate and key of 127.0.0.1, and the certificate of the authority that issued it."""
    folder = tmp_path_factory.mktemp("certificates")
    issuer = trustme.CA()
    issuer.cert_pem.write_to_path(str(folder / "authority.pem"))
    issued = issuer.issue_cert("127.0.0.1")
    for number, part in enumerate(issued.cert_chain_pems):
        part.write_to_path(str(folder / "chain.pem"), append=number > 0)
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    return folder


@pytest.fixture(scope="module")
def address(authority: Path, model: Any) -> Iterator[str]:
    weights = authority / "weights.safetensors"
    save_model(model, weights)
    files = ["--tls-certificate", str(authority / "chain.pem"), "--tls-key", str(authority / "key.pem")]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, "--port", "0", "--model", str(weights), "--precision", "fp32", *files],
        env={**os.environ, "PYTHONPATH": str(ROOT / "FaMSAMSlicer"), "FAMSAM_TOKEN": TOKEN},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        told = process.stdout.readline().split()
        yield next(word for word in told if word.startswith("https://127.0.0.1:"))
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def knowing(authority: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority / "authority.pem"))


def reached(connection: Connection) -> Any:
    """The server's description, when it is up."""
    for _ in range(600):
        try:
            return connection.get("/v1/server")
        except ConnectionLostError as error:
            if "certificate" in str(error):
                raise
            time.sleep(0.1)
    raise AssertionError("the server did not start")


def test_a_session_over_tls_is_that_of_the_local_model(address: str, authority: Path, model: Any) -> None:
    volume = Volume(ball_zyx(), RAS_FROM_IJK)
    local = Session(model)
    local.set_image(volume)
    with closing(Connection(address, TOKEN, tls=knowing(authority))) as connection:
        assert reached(connection)["name"] == "famsam"
        remote = RemoteSession(connection)
        remote.set_image(volume)
        seen = remote.add_point(CENTRE_RAS_MM).mask_zyx
        remote.close()
    np.testing.assert_array_equal(seen, local.add_point(CENTRE_RAS_MM).mask_zyx)


def test_the_token_is_asked_for_over_tls(address: str, authority: Path) -> None:
    with closing(Connection(address, tls=knowing(authority))) as connection, pytest.raises(ServerRefusal) as refusal:
        reached(connection)
    assert refusal.value.code == "wrong_token"


def test_an_unknown_authority_is_not_trusted(address: str) -> None:
    says = pytest.raises(ConnectionLostError, match=r"certificate.*cannot be trusted.*SSL_CERT_FILE")
    with closing(Connection(address, TOKEN)) as connection, says:
        reached(connection)


def test_an_authority_can_be_named_in_the_environment(
    address: str, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority / "authority.pem"))
    with closing(Connection(address, TOKEN)) as connection:
        assert reached(connection)["name"] == "famsam"


def test_a_certificate_of_another_name_is_not_trusted(address: str, authority: Path) -> None:
    elsewhere = address.replace("127.0.0.1", "localhost")
    says = pytest.raises(ConnectionLostError, match="cannot be trusted")
    with closing(Connection(elsewhere, TOKEN, tls=knowing(authority))) as connection, says:
        reached(connection)


def test_plain_http_gets_no_answer_from_it(address: str, authority: Path) -> None:
    with closing(Connection(address, TOKEN, tls=knowing(authority))) as connection:
        reached(connection)
    plain = address.replace("https:", "http:")
    with closing(Connection(plain, TOKEN)) as connection, pytest.raises(ConnectionLostError):
        connection.get("/v1/server")
