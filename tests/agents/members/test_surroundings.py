"""Whose fault it is: proxies, certificates, names and addresses are told as what they are, and nobody is told a key."""

import asyncio
import socket
import ssl
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trustme
from tests.agents.fault_server import FaultServer, Ok
from tests.agents.in_memory import QUESTION

from moekit.agents import AgentsConfig, AnswerFailed, Engine
from moekit.core.errors import MoekitError, UsageError

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
PASSWORD, KEY = "hunter2", "sk-of-the-tests"
OURS = "http://127.0.0.1:9/v1"

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("TESTS_KEY", KEY)
    monkeypatch.setattr("moekit.agents.calls.retried_call._FIRST_WAIT_S", 0.001)


def config(url: str) -> AgentsConfig:
    endpoint = {"url": url, "key_variable": "TESTS_KEY"}
    return AgentsConfig.model_validate(
        {"endpoints": {"e": endpoint}, "members": {"a": {"endpoint": "e", "model": "m"}}, "retries": 1}
    )


async def problems(url: str) -> list[str]:
    """What is said where the endpoint is checked, and where it is asked without a check."""
    found: list[MoekitError] = []
    try:
        async with Engine(config(url)) as engine:
            for work in (engine.check(), engine.answer(QUESTION)):
                try:
                    await work
                except (UsageError, AnswerFailed) as error:
                    found.append(error)
    except UsageError as error:
        found.append(error)
    for error in found:
        told = "".join(traceback.format_exception(error)) + str(error)
        assert PASSWORD not in told
        assert KEY not in told
        assert "\n" not in str(error)
    return [str(error) for error in found]


async def beside(talk: Talk, url: str, **options: ssl.SSLContext) -> list[str]:
    """The same, where `talk` speaks at the port that stands for PORT in the URL."""

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(close, "127.0.0.1", 0, **options) as listening:
        return await problems(url.replace("PORT", str(listening.sockets[0].getsockname()[1])))


def says(data: bytes) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(data)
        await writer.drain()

    return talk


# Proxies


@pytest.mark.parametrize(
    ("variable", "value", "url", "said"),
    [
        (
            "HTTP_PROXY",
            f"http://u:{PASSWORD}@127.0.0.1:9",
            OURS,
            "the proxy 127.0.0.1:9 of HTTP_PROXY cannot be reached",
        ),
        ("http_proxy", "127.0.0.1:9", OURS, "the proxy 127.0.0.1:9 of http_proxy cannot be reached"),
        ("ALL_PROXY", "http://127.0.0.1:9", OURS, "the proxy 127.0.0.1:9 of ALL_PROXY cannot be reached"),
        ("HTTPS_PROXY", "http://127.0.0.1:9", "https://there.test/v1", "the proxy 127.0.0.1:9 of HTTPS_PROXY cannot"),
        (
            "HTTP_PROXY",
            "http://no.such.host.invalid:9",
            OURS,
            "the name of the proxy no.such.host.invalid:9 of HTTP_PROXY",
        ),
        (
            "HTTP_PROXY",
            f"http://u:{PASSWORD}@host:port",
            OURS,
            "The environment variable HTTP_PROXY names a proxy that",
        ),
        (
            "HTTP_PROXY",
            "ftp://127.0.0.1",
            OURS,
            "The environment variable HTTP_PROXY names a proxy that cannot be used",
        ),
        (
            "ALL_PROXY",
            "socks4://127.0.0.1",
            OURS,
            "The environment variable ALL_PROXY names a proxy that cannot be used",
        ),
        (
            "ALL_PROXY",
            "socks5://127.0.0.1",
            OURS,
            "ALL_PROXY names a proxy that cannot be used: SOCKS takes the package",
        ),
        ("HTTP_PROXY", "http://[::1", OURS, "The environment variable HTTP_PROXY names a proxy that cannot be used"),
    ],
)
def test_a_proxy_that_is_at_fault_is_named(
    variable: str, value: str, url: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    found = asyncio.run(problems(url))
    assert found
    for each in found:
        assert said in each
        assert "NO_PROXY=" in each


@pytest.mark.parametrize(
    "given",
    [
        {"HTTP_PROXY": "ftp://x", "NO_PROXY": "127.0.0.1"},
        {"ALL_PROXY": "socks5://127.0.0.1", "NO_PROXY": "*"},
        {"HTTPS_PROXY": "http://host:port"},
        {"HTTPS_PROXY": "http://127.0.0.1:9", "SSL_CERT_FILE": "/no/such/file"},
    ],
)
def test_what_is_wrong_for_other_servers_does_not_matter(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    with FaultServer() as server:
        server.behave("m", Ok())
        assert asyncio.run(problems(server.url)) == []
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "scheme", "said"),
    [
        (b"HTTP/1.1 407 Who\r\nContent-Length: 0\r\n\r\n", "http", "of http_proxy wants a name and a password"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "http", "status 503: it says no more (through the proxy"),
        (b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", "https", "does not connect to there.test: 403 No"),
        (b"", "http", "(through the proxy 127.0.0.1:"),
    ],
)
def test_a_proxy_that_refuses_is_named(answer: bytes, scheme: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> list[str]:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(talk, "127.0.0.1", 0) as proxy:
            monkeypatch.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
            return await problems(f"{scheme}://there.test/v1")

    assert said in asyncio.run(main())[-1]


# Certificates


@pytest.mark.parametrize(
    ("variable", "content", "why"),
    [
        ("SSL_CERT_FILE", None, "No such file or directory"),
        ("SSL_CERT_FILE", "", "no certificate stands in it"),
        ("SSL_CERT_FILE", "no certificate", "no certificate stands in it"),
        ("SSL_CERT_FILE", "-----BEGIN CERTIFICATE-----\nxxxx\n-----END CERTIFICATE-----\n", "no certificate stands"),
    ],
)
def test_certificates_that_cannot_be_read(
    variable: str, content: str | None, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "certificates.pem"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv(variable, str(file))
    (found,) = asyncio.run(problems("https://127.0.0.1:9/v1"))
    assert found.startswith(f"The environment variable {variable} names '{file}', which cannot be used: {why}")


def context(authority: trustme.CA) -> ssl.SSLContext:
    """Give what a server of another name says of itself."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("elsewhere.example").configure_cert(made)
    return made


def test_a_certificate_of_an_authority_that_nobody_knows_is_the_connections_fault() -> None:
    for found in asyncio.run(beside(says(b""), "https://127.0.0.1:PORT/v1", ssl=context(trustme.CA()))):
        assert "the certificate of 127.0.0.1 is not accepted (unable to get local issuer certificate)" in found
        assert "SSL_CERT_FILE can name" in found


def test_a_certificate_for_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, known = trustme.CA(), tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(known))
    monkeypatch.setenv("SSL_CERT_FILE", str(known))
    for found in asyncio.run(beside(says(b""), "https://127.0.0.1:PORT/v1", ssl=context(authority))):
        assert "the certificate of 127.0.0.1 is not accepted (IP address mismatch" in found


# Addresses


def test_tls_where_there_is_none() -> None:
    for found in asyncio.run(beside(says(b"HTTP/1.1 400 Bad\r\n\r\n"), "https://127.0.0.1:PORT/v1")):
        assert "no TLS connection comes about with 127.0.0.1:" in found
        assert "is it http:// there" in found


def test_none_where_there_is_tls() -> None:
    for found in asyncio.run(beside(says(b"\x15\x03\x01\x00\x02\x02\x46"), "http://127.0.0.1:PORT/v1")):
        assert "does not speak HTTP; is it https:// there" in found


def test_a_name_that_nobody_knows() -> None:
    for found in asyncio.run(problems("http://no.such.host.invalid/v1")):
        assert "the name no.such.host.invalid is not known here" in found


def test_a_port_at_which_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for host in ("127.0.0.1", "localhost"):
        for found in asyncio.run(problems(f"http://{host}:{port}/v1")):
            assert found.startswith(("endpoints.e.url: nothing answers at", "a: nothing answers at"))


def test_a_url_without_v1_is_told_with_the_right_one() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            found = b" /v1/" in head.splitlines()[0]
            body = b'{"object": "list", "data": []}' if found else b"<html><title>404 Not Found</title></html>"
            status = b"200 OK" if found else b"404 Not Found"
            kind = b"application/json" if found else b"text/html"
            writer.write(b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (status, kind, len(body)))
            writer.write(body)
            await writer.drain()

    checked, asked = asyncio.run(beside(talk, "http://127.0.0.1:PORT"))
    assert "did you mean http://127.0.0.1:" in checked
    assert checked.endswith("/v1?")
    assert "status 404: 404 Not Found; is http://127.0.0.1:" in asked


# What a user gives


@pytest.mark.parametrize("key", ["sk-a\nb", "sk-ü", "sk-a\x00b", "sk-\u200bhidden"])
def test_a_key_that_no_header_holds(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "\x00" in key:
        monkeypatch.setattr("os.environ", {"TESTS_KEY": key})
    else:
        monkeypatch.setenv("TESTS_KEY", key)
    (found,) = asyncio.run(problems(OURS))
    assert found == (
        "endpoints.e.key_variable: the environment variable TESTS_KEY holds characters that no header of a request can."
    )


def test_a_message_that_is_no_text_is_not_the_servers_fault() -> None:
    async def main() -> None:
        async with Engine(config(OURS)) as engine:
            with pytest.raises(
                UsageError, match=r"^A message is not UTF-8: what stands at character 3 is no character"
            ):
                await engine.answer([type(QUESTION[0])(role="user", content="caf\udce9")])

    asyncio.run(main())
