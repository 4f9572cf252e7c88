"""Where webhooks do not go: addresses that are not public, however they are written or come about; and no further."""

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from app.webhooks import transport
from app.webhooks.addresses import literal, refusal
from app.webhooks.transport import Outcome, Transport
from tests.app.receiver import Authority, Receiver, drip, receiving

PUBLIC = ("8.8.8.8", "2606:4700:4700::1111", "64:ff9b::8.8.8.8", "::ffff:8.8.8.8")
OWN = {
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "::1": "loopback",
    "::ffff:127.0.0.1": "loopback",
    "::127.0.0.1": "loopback",
    "64:ff9b::127.0.0.1": "loopback",
    "10.1.2.3": "private",
    "172.31.0.1": "private",
    "192.168.1.1": "private",
    "100.64.0.1": "private",
    "fd12:3456::1": "private",
    "::ffff:10.0.0.1": "private",
}
NEVER = {
    "169.254.169.254": "metadata",
    "::ffff:169.254.169.254": "metadata",
    "64:ff9b::a9fe:a9fe": "metadata",
    "fd00:ec2::254": "metadata",
    "100.100.100.200": "metadata",
    "168.63.129.16": "metadata",
    "169.254.1.1": "link-local",
    "fe80::1": "link-local",
    "fe80::1%lo": "link-local",
    "0.0.0.0": "not an address",
    "::": "not an address",
    "224.0.0.1": "not an address",
    "ff02::1": "not an address",
    "255.255.255.255": "not an address",
    "240.0.0.1": "not an address",
    "0.1.2.3": "special",
    "192.0.2.1": "special",
    "198.18.0.1": "special",
    "203.0.113.9": "special",
    "2001:db8::1": "special",
    "2002:7f00:1::": "special",
    "2001::7f00:1": "special",
    "64:ff9b:1::1": "not an address",
}


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    assert refusal(address, private=False) is None


@pytest.mark.parametrize(("address", "word"), OWN.items())
def test_ones_own_addresses_are_allowed_where_the_setting_says_so(address: str, word: str) -> None:
    assert word in str(refusal(address, private=False))
    assert refusal(address, private=True) is None


@pytest.mark.parametrize(("address", "word"), NEVER.items())
def test_special_addresses_are_never_allowed(address: str, word: str) -> None:
    for private in (False, True):
        assert word in str(refusal(address, private=private))


@pytest.mark.parametrize(
    "host", ["127.1", "2130706433", "0x7f.1", "0177.0.0.1", "::1", "localhost", "LOCALHOST.", "x.localhost"]
)
def test_every_notation_of_a_loopback_address_is_known(host: str) -> None:
    assert [refusal(address, private=False) for address in literal(host)] == ["a loopback address"]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    made = Authority(tmp_path_factory.mktemp("ca"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(made.file))
        yield made


@pytest.fixture
def receiver(authority: Authority) -> Iterator[Receiver]:
    with receiving(authority) as running:
        yield running


def send(url: str, *, private: bool = True, timeout: float = 2.0) -> Outcome:
    return Transport(timeout, private=private).post(url, {"webhook-id": "x"}, b"{}")


def test_what_resolves_to_this_machine_is_refused_before_a_connection_is_made(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected: list[Any] = []
    monkeypatch.setattr(socket, "create_connection", lambda *given, **_: connected.append(given))
    outcome = send(receiver.url, private=False)
    assert outcome.error == "localhost is a loopback address; webhooks require a public address"
    assert connected == []


def test_one_bad_address_among_good_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[Any] = []
    monkeypatch.setattr(socket, "create_connection", lambda *given, **_: connected.append(given))
    monkeypatch.setattr(transport, "resolve", lambda _host, _port, _timeout: ["8.8.8.8", "10.0.0.7"])
    outcome = send("https://two.example/", private=False)
    assert "two.example is a private address" in str(outcome.error)
    assert "10.0.0.7" not in str(outcome.error)  # what inner names lead to is nobody's business
    assert connected == []


def test_a_look_up_takes_no_longer_than_the_rest_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that does not answer, for which the system waits half a minute."""
    silent = threading.Event()

    def wait(*_: Any, **__: Any) -> list[Any]:
        silent.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    began = time.monotonic()
    outcome = send("https://slow.example/", timeout=0.3)
    silent.set()
    assert outcome.error == "no answer within 0.3 s"
    assert time.monotonic() - began < 5


def test_the_connection_goes_to_the_address_that_was_checked(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that leads elsewhere when it is looked up again (DNS rebinding)."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def rebinding(host: Any, *more: Any, **named: Any) -> Any:
        if host != "hooks.example":
            return real(host, *more, **named)
        asked.append(host)
        return real("127.0.0.1" if len(asked) == 1 else "169.254.169.254", *more, **named)

    with receiving(authority, "hooks.example") as receiver:
        monkeypatch.setattr(socket, "getaddrinfo", rebinding)
        outcome = send(receiver.url)
    assert (outcome.status, len(asked)) == (200, 1)
    port = receiver.url.split(":")[2].split("/")[0]
    assert receiver.got[0].headers["host"] == f"hooks.example:{port}"


def test_the_certificate_must_be_good_for_the_name(receiver: Receiver, tmp_path_factory: Any) -> None:
    wrong_name = send(receiver.url.replace("localhost", "127.0.0.1"))
    assert "CERTIFICATE_VERIFY_FAILED" in str(wrong_name.error).upper().replace(" ", "_")
    with receiving(Authority(tmp_path_factory.mktemp("other"))) as stranger:
        assert "certificate verify failed" in str(send(stranger.url).error).lower()
    assert receiver.got == stranger.got == []


def test_redirects_are_not_followed(authority: Authority, receiver: Receiver) -> None:
    with receiving(authority) as inner:
        receiver.status, receiver.headers = 307, {"Location": inner.url}
        outcome = send(receiver.url)
        assert (outcome.status, outcome.good) == (307, False)
        assert inner.got == []


def test_a_proxy_of_the_environment_is_not_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would make connections to addresses that nobody checked."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert send(receiver.url).status == 200


def test_a_large_answer_is_not_read_to_its_end(receiver: Receiver) -> None:
    receiver.headers = {"Content-Length": str(10**12), "Content-Encoding": "gzip"}
    receiver.answer = b"y" * 100_000
    outcome = send(receiver.url)
    assert (outcome.status, outcome.response) == (200, "y" * transport.EXCERPT_BYTES)


def test_there_is_one_deadline_for_everything(authority: Authority, receiver: Receiver) -> None:
    receiver.on_request = drip(1.0)
    assert send(receiver.url, timeout=0.3).error == "no answer within 0.3 s"
    outcome, seconds = dripping(authority)
    assert outcome.error == "no answer within 0.5 s"
    assert seconds < 1.5


def dripping(authority: Authority) -> tuple[Outcome, float]:
    """What comes of a receiver that always sends one more byte in time, and how long it held the sender."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def serve() -> None:
        plain, _ = listener.accept()
        try:
            with authority.context("localhost").wrap_socket(plain, server_side=True) as connection:
                connection.recv(10_000)
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                while not stop.wait(0.05):
                    connection.sendall(b"x")
        except OSError:  # the sender went away
            pass

    thread = threading.Thread(target=serve)
    thread.start()
    began = time.monotonic()
    outcome = send(f"https://localhost:{listener.getsockname()[1]}/", timeout=0.5)
    seconds = time.monotonic() - began
    stop.set()
    thread.join()
    listener.close()
    return outcome, seconds


@pytest.mark.parametrize("url", ["https://127.0.0.1:9/", "https://name.invalid/"])
def test_what_cannot_be_reached_says_why(url: str) -> None:
    outcome = send(url)
    assert outcome.status is None
    assert outcome.error
    assert not outcome.good
