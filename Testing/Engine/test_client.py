"""The torch-free client against a live server, and against a local session."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np
import pytest
from famsam import PromptError, Session, SessionError, Volume
from famsam.client import Connection, ConnectionLostError, RemoteSession, ServerRefusal, session_on
from famsam.errors import ConfigError, VolumeError

for package in ("fastapi", "uvicorn", "httpx"):
    pytest.importorskip(package, reason="the client's tests run a server: extras 'server' and 'test'")
sys.path.insert(0, str(Path(__file__).parent / "server"))

from famsam.server.app import create_app  # noqa: E402
from famsam.server.limits import Limits  # noqa: E402
from famsam.server.security import Access  # noqa: E402
from server_fixtures import CENTRE_RAS_MM, RAS_FROM_IJK, Relay, ball_zyx, live  # noqa: E402

OBLIQUE = np.array([[0.9, -0.3, 0.1, 7], [0.3, 1.4, 0, -3], [-0.1, 0.2, 2.4, 11], [0, 0, 0, 1.0]])  # sheared as well


@pytest.fixture(scope="module")
def model() -> Any:
    import torch
    from famsam.model.famsam import Famsam

    torch.manual_seed(0)
    return Famsam().eval()


@pytest.fixture(scope="module")
def server(model: Any) -> Iterator[Any]:
    with live(create_app(model)) as client:
        yield client


@pytest.fixture
def remote(server: Any) -> Iterator[RemoteSession]:
    with closing(Connection(str(server.base_url))) as connection:
        session = RemoteSession(connection)
        session.set_image(Volume(ball_zyx(), RAS_FROM_IJK))
        yield session
        session.close()


def centre_of(ras_from_ijk: np.ndarray) -> Any:
    return (ras_from_ijk @ (14, 12, 10, 1))[:3]


@pytest.mark.parametrize("matrix", [RAS_FROM_IJK, OBLIQUE], ids=["flipped", "oblique"])
def test_verbs_agree_with_a_local_session(remote: RemoteSession, model: Any, matrix: np.ndarray) -> None:
    local = Session(model)
    for each in (remote, local):
        each.set_image(Volume(ball_zyx(), matrix))
    centre, other = centre_of(matrix), (matrix @ (17, 12, 10, 1))[:3]
    verbs = [
        lambda s: s.add_point(centre),
        lambda s: s.add_point(other, positive=False),
        lambda s: s.move_point(1, (matrix @ (4, 4, 4, 1))[:3]),
        lambda s: s.undo(),
        lambda s: s.redo(),
        lambda s: s.remove_point(0),
        lambda s: s.add_box(centre - 6, centre + 6),
        lambda s: s.add_box((matrix @ (9, 4, 3, 1))[:3], (matrix @ (2, 12, 10, 1))[:3], along_scan=True),
        lambda s: s.set_mask(ball_zyx() > 250),
        lambda s: s.set_mask(np.where(ball_zyx() > 250, np.float32(1), np.float32(np.nan))),
        lambda s: s.add_point(centre),
        lambda s: s.reset(),
        lambda s: s.undo(),
    ]
    for number, verb in enumerate(verbs):
        seen, expected = verb(remote), verb(local)
        np.testing.assert_array_equal(seen.mask_zyx, expected.mask_zyx, err_msg=f"verb {number}")
        assert seen.changed_box_zyx == expected.changed_box_zyx
        assert seen.box_zyx == expected.box_zyx
        assert seen.quality == pytest.approx(expected.quality, rel=1e-4), "rounding depends on the number of threads"
        assert (remote.can_undo, remote.can_redo) == (local.can_undo, local.can_redo)
        assert [p.to_dict() for p in remote.prompts] == [p.to_dict() for p in local.prompts]
    np.testing.assert_array_equal(remote.preview(other).mask_zyx, local.preview(other).mask_zyx)
    np.testing.assert_array_equal(remote.result.mask_zyx, local.result.mask_zyx)
    state = remote.to_dict()
    assert state["prompts"] == local.to_dict()["prompts"]
    np.testing.assert_array_equal(local.restore(state).mask_zyx, remote.restore(local.to_dict()).mask_zyx)


def test_a_host_asks_for_a_session_without_knowing_where_the_model_is(remote: RemoteSession, model: Any) -> None:
    assert isinstance(session_on(model), Session)
    assert isinstance(session_on(remote.connection), RemoteSession)


def test_errors_are_those_of_a_local_session(remote: RemoteSession) -> None:
    for bad in ((9000, 0, 0), (float("nan"), 0, 0), (1, 2)):
        with pytest.raises(PromptError):
            remote.add_point(bad)
    with pytest.raises(PromptError):
        remote.add_box((5, 5, 30), (-5, -5, 30))
    with pytest.raises(PromptError):
        remote.set_mask(np.zeros((2, 2, 2)))
    with pytest.raises(PromptError, match="bools or numbers"):
        remote.set_mask(np.full(ball_zyx().shape, "a"))
    with pytest.raises(SessionError):
        remote.undo()
    with pytest.raises(SessionError, match="set_image"):
        RemoteSession(remote.connection).add_point((0, 0, 0))
    assert remote.prompts == ()


def test_another_segment_of_the_same_scan(remote: RemoteSession) -> None:
    first = remote.add_point(CENTRE_RAS_MM)
    other = remote.another()
    assert not other.result.mask_zyx.any()
    np.testing.assert_array_equal(other.add_point(CENTRE_RAS_MM).mask_zyx, first.mask_zyx)
    assert other._volume_id == remote._volume_id
    other.close()


def test_encoding_ahead_and_uncertainty_as_of_a_local_session(remote: RemoteSession, model: Any) -> None:
    local = Session(model)
    local.set_image(remote.volume)
    assert remote.encode_ahead(CENTRE_RAS_MM) == local.encode_ahead(CENTRE_RAS_MM) is True
    while remote.encode_ahead(CENTRE_RAS_MM):
        pass
    for session in (remote, local):
        with pytest.raises(PromptError):
            session.encode_ahead((9000, 0, 0))
        with pytest.raises(SessionError):
            session.uncertainty()
        session.add_point(CENTRE_RAS_MM)
    seen, expected = remote.uncertainty(decodes=2), local.uncertainty(decodes=2)
    assert seen.box_zyx == expected.box_zyx
    np.testing.assert_allclose(seen.probability_zyx, expected.probability_zyx, atol=0.003)
    assert seen.expected_ml == pytest.approx(expected.expected_ml, rel=0.01)
    for decodes in (0, 17):
        with pytest.raises(PromptError):
            remote.uncertainty(decodes)


def test_candidates_as_of_a_local_session() -> None:
    import torch
    from famsam.model.famsam import Famsam, FamsamConfig
    from famsam.model.proposal_head import MASK_CHANNELS
    from famsam.proposing import ProposalOptions

    torch.manual_seed(0)
    tiny: Any = {"stem_channels": (8, 8, 8, 8), "token_channels": 16, "depth": 1, "heads": 2}
    config = FamsamConfig(**tiny, decoder_channels=(8, 8, 16), decoder_depth=1, proposals=True)
    model: Any = Famsam(config).eval().requires_grad_(False)
    model.proposal_head.kernels[-1].bias[MASK_CHANNELS] = 2.0  # masks of any weights are not empty then
    model.decoder.masks.bias[:] = 0.0
    # Of undecided logits some voxels are ties, which another number of threads may break.
    model.follows_edges = False

    def agree(one: Any, other: Any) -> bool:
        return bool((one != other).mean() < 1e-3)

    local, options = Session(model), ProposalOptions(least_quality=0.0, per_view=6, most=3)
    with live(create_app(model)) as server, closing(Connection(str(server.base_url))) as connection:
        assert connection.get("/v1/server")["proposes"] is True
        remote = RemoteSession(connection)
        for each in (remote, local):
            each.set_image(Volume(ball_zyx(), OBLIQUE))
            each.add_point(centre_of(OBLIQUE))
        before, seen, expected = remote.to_dict(), remote.propose(options), local.propose(options)
        assert 1 <= len(seen) == len(expected) <= 3 and remote.to_dict() == before
        for one, other in zip(seen, expected):
            assert one.box_zyx == other.box_zyx and one.quality == pytest.approx(other.quality, abs=1e-4)
            np.testing.assert_array_equal(one.mask_zyx, other.mask_zyx)
            np.testing.assert_array_equal(one.mask_in(one.box_zyx), other.mask_in(one.box_zyx))
        taken = remote.take(seen[0])
        np.testing.assert_array_equal(taken.mask_zyx, local.take(expected[0]).mask_zyx)
        assert taken.quality == pytest.approx(seen[0].quality, abs=1e-6) and remote.prompts == ()
        point = centre_of(OBLIQUE)
        assert agree(remote.add_point(point).mask_zyx, local.add_point(point).mask_zyx)
        for _ in range(2):
            assert agree(remote.undo().mask_zyx, local.undo().mask_zyx)
        assert len(remote.prompts) == 1
        remote.set_image(Volume(ball_zyx()[:-1], OBLIQUE))
        with pytest.raises(PromptError, match="propose"):
            remote.take(seen[0])
        remote.close()


def test_weights_without_a_head_propose_nothing(remote: RemoteSession, server: Any, model: Any) -> None:
    local = Session(model)
    local.set_image(remote.volume)
    for session in (remote, local):
        with pytest.raises(ConfigError, match="proposal head"):
            session.propose()
    assert server.get("/v1/server").json()["proposes"] is False
    refused = server.post(f"/v1/sessions/{remote._session_id}/proposals", json={})
    assert refused.status_code == 422 and refused.json()["code"] == "not_this_model"


def test_a_scan_above_the_servers_limit_is_not_sent(model: Any) -> None:
    limits = Limits(upload_bytes=4096)
    with live(create_app(model, limits=limits)) as server, closing(Connection(str(server.base_url))) as connection:
        remote = RemoteSession(connection)
        with pytest.raises(VolumeError, match="opens at most"):
            remote.set_image(Volume(ball_zyx(), RAS_FROM_IJK))


def test_a_server_of_something_else_is_told() -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, content = self.path.strip("/").split("/")
            self.send_response(int(status))
            self.send_header("content-type", content.replace("-", "/"))
            self.end_headers()
            self.wfile.write(b"<html>log in</html>")

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        for path in ("/200/text-html", "/302/text-html", "/200/application-json"):
            with pytest.raises(ServerRefusal, match="no famsam server"):
                Connection(f"http://127.0.0.1:{other.server_port}").get(path)
        other.shutdown()


def test_a_proxy_that_finds_no_server_behind_it_is_a_lost_connection() -> None:
    class NobodyBehind(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(502)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), NobodyBehind) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        with pytest.raises(ConnectionLostError, match=r"502.*when it is back"):
            Connection(f"http://127.0.0.1:{proxy.server_port}").get("/v1/server")
        proxy.shutdown()


def test_a_machine_that_does_not_answer_at_all_is_soon_a_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("famsam.connection.CONNECT_S", 0.2)
    with closing(socket.socket()) as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # what comes after them is neither taken nor refused
            waiting = stack.enter_context(closing(socket.socket()))
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        with pytest.raises(ConnectionLostError, match="no connection to the server"):
            Connection(f"http://127.0.0.1:{full.getsockname()[1]}", timeout_s=20).get("/v1/server")


@contextlib.contextmanager
def answering_nothing(before: Callable[[str], None]) -> Iterator[str]:
    """The address of a server that answers every GET with nothing, after it has done something with the path."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            before(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_slow_answer_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("famsam.connection.CONNECT_S", 0.2)
    with answering_nothing(lambda path: time.sleep(0.5)) as address:
        Connection(address).get("/v1/server")


def test_an_answer_that_does_not_come_is_waited_for_until_that_is_interrupted() -> None:
    asked, released, ended = threading.Event(), threading.Event(), []

    def hang(path: str) -> None:
        if path == "/hang":
            asked.set()
            released.wait(60)

    def ask() -> None:
        connection.get("/v1/server")
        try:
            connection.get("/hang")
        except ConnectionLostError as error:
            ended.append(str(error))
        ended.append(connection.get("/v1/server"))

    with answering_nothing(hang) as address:
        connection = Connection(address)
        thread = threading.Thread(target=ask)
        thread.start()
        assert asked.wait(60)
        time.sleep(0.1)
        connection.interrupt()
        thread.join(10)
        released.set()
        thread.join()
    assert len(ended) == 2 and "no connection" in ended[0] and ended[1] == b""


def test_a_request_that_is_interrupted_while_it_connects_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, interrupted, plain = threading.Event(), threading.Event(), HTTPConnection.connect

    def slow(connection: HTTPConnection) -> None:
        begun.set()
        assert interrupted.wait(60)
        plain(connection)

    def interrupt() -> None:
        assert begun.wait(60)
        connection.interrupt()
        interrupted.set()

    monkeypatch.setattr(HTTPConnection, "connect", slow)
    with socket.socket() as hanging:
        hanging.bind(("127.0.0.1", 0))
        hanging.listen()
        connection = Connection(f"http://127.0.0.1:{hanging.getsockname()[1]}", timeout_s=60)
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(ConnectionLostError, match="interrupted"):
            connection.get("/v1/server")
        thread.join()


def test_a_restarted_server_goes_on_from_the_prompts(model: Any) -> None:
    with live(create_app(model)) as first:
        remote = RemoteSession(Connection(str(first.base_url)))
        remote.set_image(Volume(ball_zyx(), RAS_FROM_IJK))
        before = remote.add_point(CENTRE_RAS_MM).mask_zyx
    with pytest.raises(ConnectionLostError, match="when it is back"):
        remote.add_point((RAS_FROM_IJK @ (4, 4, 4, 1))[:3], positive=False)
    np.testing.assert_array_equal(remote.result.mask_zyx, before)
    with live(create_app(model)) as second:
        remote.connection = Connection(str(second.base_url))
        remote.add_point((RAS_FROM_IJK @ (4, 4, 4, 1))[:3], positive=False)
        assert len(remote.prompts) == 2
        after = remote.result.mask_zyx
        np.testing.assert_array_equal(remote.undo().mask_zyx, before)
        assert not remote.undo().mask_zyx.any() and not remote.can_undo  # a step from before the restart
        np.testing.assert_array_equal(remote.redo().mask_zyx, before)
        np.testing.assert_array_equal(remote.redo().mask_zyx, after)
        np.testing.assert_array_equal(remote.undo().mask_zyx, before)
        remote.connection.close()


@pytest.fixture
def relayed(server: Any) -> Iterator[Any]:
    """A session that reaches the server through a relay, and the relay."""
    relay = Relay(server.base_url.port)
    with closing(relay), closing(Connection(relay.address)) as connection:
        session = RemoteSession(connection)
        session.set_image(Volume(ball_zyx(), RAS_FROM_IJK))
        yield session, relay
        session.close()


def test_a_verb_whose_answer_was_lost_counts_once(relayed: Any, server: Any, model: Any) -> None:
    remote, relay = relayed
    remote.add_point(CENTRE_RAS_MM)
    left = remote._session_id
    relay.swallows_next_answer = True
    other = (RAS_FROM_IJK @ (4, 4, 4, 1))[:3]
    with pytest.raises(ConnectionLostError):
        remote.add_point(other, positive=False)
    assert len(server.get(f"/v1/sessions/{left}/state").json()["state"]["prompts"]) == 2  # it had been carried out
    seen = remote.add_point(other, positive=False)
    state = server.get(f"/v1/sessions/{remote._session_id}/state").json()["state"]
    assert len(state["prompts"]) == len(remote.prompts) == 2
    assert server.get(f"/v1/sessions/{left}/state").status_code == 404
    local = Session(model)
    local.set_image(remote.volume)
    local.add_point(CENTRE_RAS_MM)
    np.testing.assert_array_equal(seen.mask_zyx, local.add_point(other, positive=False).mask_zyx)


def test_a_connection_lost_while_prompts_are_brought_back_loses_none(
    server: Any, remote: RemoteSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = remote.add_point(CENTRE_RAS_MM).mask_zyx
    server.delete(f"/v1/volumes/{remote._volume_id}")
    request, other = remote.connection.request, (RAS_FROM_IJK @ (4, 4, 4, 1))[:3]

    def lose_the_state(method: str, path: str, *rest: Any, **more: Any) -> Any:
        if path.endswith("/state"):
            raise ConnectionLostError("lost")
        return request(method, path, *rest, **more)

    with monkeypatch.context() as patched, pytest.raises(ConnectionLostError):
        patched.setattr(remote.connection, "request", lose_the_state)
        remote.add_point(other, positive=False)
    left = remote._left_id
    remote.add_point(other, positive=False)
    assert len(remote.prompts) == 2
    assert server.get(f"/v1/sessions/{left}/state").status_code == 404
    np.testing.assert_array_equal(remote.undo().mask_zyx, before)


def test_a_verb_that_was_interrupted_counts_once(remote: RemoteSession, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: HTTPResponse) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(HTTPResponse, "read", interrupted)
        remote.add_point(CENTRE_RAS_MM)
    remote.add_point(CENTRE_RAS_MM)
    assert len(remote.prompts) == 1 and remote.result.mask_zyx.any()


def test_connections_that_were_closed_while_idle_go_unnoticed(relayed: Any) -> None:
    remote, relay = relayed
    for count in (1, 2):
        relay.drop_connections()
        remote.add_point(CENTRE_RAS_MM)
        assert len(remote.prompts) == count


def test_a_session_that_expired_is_opened_again(server: Any, remote: RemoteSession) -> None:
    before = remote.add_point(CENTRE_RAS_MM).mask_zyx
    server.delete(f"/v1/volumes/{remote._volume_id}")
    after = remote.preview(CENTRE_RAS_MM)
    assert after.changed_box_zyx is None or after.mask_zyx.any()
    np.testing.assert_array_equal(remote.result.mask_zyx, before)


def test_undo_right_after_the_server_forgot(server: Any, remote: RemoteSession) -> None:
    first = remote.add_point(CENTRE_RAS_MM).mask_zyx
    second = remote.add_point((RAS_FROM_IJK @ (4, 4, 4, 1))[:3], positive=False).mask_zyx
    server.delete(f"/v1/volumes/{remote._volume_id}")
    undone = remote.undo()
    np.testing.assert_array_equal(undone.mask_zyx, first)
    server.delete(f"/v1/volumes/{remote._volume_id}")
    np.testing.assert_array_equal(remote.redo().mask_zyx, second)


def test_a_session_that_outgrew_its_history_goes_on(model: Any) -> None:
    limits = Limits(history_bytes=1_500_000)  # of three steps
    with live(create_app(model, limits=limits)) as server, closing(Connection(str(server.base_url))) as connection:
        remote = RemoteSession(connection)
        remote.set_image(Volume(ball_zyx(), RAS_FROM_IJK))
        for _ in range(3):
            remote.reset()
        first = remote._session_id
        remote.add_point(CENTRE_RAS_MM)
        assert remote._session_id != first and len(remote.prompts) == 1


def test_the_token(model: Any) -> None:
    with live(create_app(model, access=Access(token="correct-horse-battery"))) as server:
        stranger = Connection(str(server.base_url))
        with closing(stranger), pytest.raises(ServerRefusal, match="token") as refusal:
            stranger.get("/v1/server")
        assert refusal.value.code == "wrong_token"
        with closing(Connection(str(server.base_url), token="correct-horse-battery")) as known:
            assert known.get("/v1/server")["name"] == "famsam"


@pytest.mark.parametrize(
    "address",
    [
        "",
        "ftp://127.0.0.1",
        "http://",
        "http://127.0.0.1:seven",
        "http://127.0.0.1:99999",
        "http://[::1",
        "http://my server",
        "http://scans..org",
    ],
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ConnectionLostError, match="address"):
        Connection(address)


@pytest.mark.parametrize("address, port", [("http://[2001:db8::5]", 80), ("https://[2001:db8::5]", 443)])
def test_an_ipv6_address_without_a_port(address: str, port: int) -> None:
    connection = Connection(address)._connect()
    assert (connection.host, connection.port) == ("2001:db8::5", port)


def test_tokens_as_they_are_pasted() -> None:
    assert Connection("127.0.0.1", token=" correct-horse-battery\n")._token == "correct-horse-battery"
    with pytest.raises(ConnectionLostError, match="ASCII"):
        Connection("127.0.0.1", token="correct\u2013horse\u2013battery")


def test_nobody_there() -> None:
    with pytest.raises(ConnectionLostError, match="Check that it runs"):
        Connection("127.0.0.1:9", timeout_s=2).get("/v1/server")


def test_the_client_needs_no_torch() -> None:
    code = "import sys, famsam.client; sys.exit(any(m in sys.modules for m in ('torch', 'fastapi', 'SimpleITK')))"
    root = Path(__file__).resolve().parents[2] / "FaMSAMSlicer"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(root)}).returncode == 0
