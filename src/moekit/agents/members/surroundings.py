"""What stands between this process and a server: proxies, certificates, names, the connection; and whose fault it is.

Proxies and certificates are those of the environment, as httpx2 and curl read it: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY,
NO_PROXY, SSL_CERT_FILE, SSL_CERT_DIR. A proxy's name and password are never told.
"""

import os
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2
import openai

from moekit.core.errors import UsageError


@dataclass(frozen=True)
class Proxy:
    """A proxy that the environment names.

    Attributes:
        variable: of the environment.
        url: as it stands there; it may hold a password.
    """

    variable: str
    url: str

    def __str__(self) -> str:
        """Say where it is, and who says so."""
        parts = urlsplit(self.url)
        return f"the proxy {parts.netloc.rpartition('@')[2] or parts.path} of {self.variable}"


@dataclass(frozen=True, kw_only=True)
class ConnectionFault:
    """Why a request has no response, or not all of it.

    Attributes:
        text: a sentence without its full stop.
        is_sent: the server may have read the request, and counted it.
        may_pass: another attempt may succeed.
    """

    text: str
    is_sent: bool
    may_pass: bool


def http_client(url: str) -> httpx2.AsyncClient:
    """Make a client for the server at `url`, with the proxies and certificates that the environment names.

    What the environment says about other servers than this one does not matter. Raises UsageError, naming the variable,
    where it names a proxy or certificates that cannot be used.
    """
    verify = _certificates() if urlsplit(url).scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # A redirect would carry prompts to where nobody sent them.
    given: dict[str, Any] = {"follow_redirects": False, "timeout": None, "verify": verify}
    try:
        return openai.DefaultAsyncHttpxClient(**given)
    except (httpx2.InvalidURL, ValueError, ImportError):
        proxy = proxy_for(url)  # of all that the environment names, one may be wrong that is not meant for this server
    try:
        return openai.DefaultAsyncHttpxClient(**given, trust_env=False, proxy=proxy.url if proxy is not None else None)
    except (httpx2.InvalidURL, ValueError, ImportError) as error:
        assert proxy is not None
        why = "SOCKS takes the package socksio" if isinstance(error, ImportError) else "it is no http://host:port"
        raise UsageError(
            f"The environment variable {proxy.variable} names a proxy that cannot be used: {why}; "
            f"NO_PROXY={urlsplit(url).hostname} goes past it."
        ) from None


def proxy_for(url: str) -> Proxy | None:
    """Find the proxy through which the environment has requests to `url` go."""
    parts = urlsplit(url)
    proxies = getproxies()
    scheme = next((scheme for scheme in (parts.scheme, "all") if proxies.get(scheme)), None)
    if scheme is None or proxy_bypass(parts.hostname or ""):
        return None
    variables = (f"{scheme}_proxy", f"{scheme}_proxy".upper())
    found = proxies[scheme]
    return Proxy(
        variable=next((variable for variable in variables if os.environ.get(variable)), variables[1]),
        url=found if "://" in found else f"http://{found}",
    )


def connection_fault(error: BaseException, url: str, *, begun: bool) -> ConnectionFault:
    """Say why a request to `url` failed on its way. begun: a part of the answer had come."""
    if begun:
        return ConnectionFault(text="the connection broke in the middle of its answer", is_sent=True, may_pass=True)
    parts, proxy, first = urlsplit(url), proxy_for(url), next(_told_causes(error), None)
    if isinstance(first, ssl.SSLCertVerificationError):
        text = f"the certificate of {parts.hostname} is not accepted ({first.verify_message.rstrip('.')}); "
        return _unsent(f"{text}SSL_CERT_FILE can name a file with the one that signed it", proxy, may_pass=False)
    if isinstance(first, ssl.SSLError):
        text = f"no TLS connection comes about with {parts.netloc} ({first.reason}); is it http:// there?"
        return _unsent(text.rstrip("?"), proxy, may_pass=False)
    if isinstance(first, httpx2.ProxyError):
        return _unsent(f"{proxy or 'the proxy'} does not connect to {parts.netloc}: {str(first).rstrip('.')}", None)
    if isinstance(first, OSError):
        return _unsent(_unreachable(first, url, proxy), None)
    if isinstance(first, httpx2.LocalProtocolError):
        return _unsent("its request cannot be sent: a header holds what no header can", None, may_pass=False)
    if isinstance(first, httpx2.RemoteProtocolError) and "disconnected" not in str(first):
        text = f"what answers at {url} does not speak HTTP; is it https:// there"
        return ConnectionFault(text=_through(text, proxy), is_sent=True, may_pass=False)
    text = _through("the connection broke before it answered", proxy)
    return ConnectionFault(text=text, is_sent=True, may_pass=True)


def _certificates() -> ssl.SSLContext:
    try:
        return httpx2.create_ssl_context()
    except OSError as error:
        variable = next((name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)), None)
        if variable is None:
            raise UsageError(f"The certificates of this machine cannot be read: {error}.") from None
        why = "no certificate stands in it" if isinstance(error, ssl.SSLError) else error.strerror
        raise UsageError(
            f"The environment variable {variable} names {os.environ[variable]!r}, which cannot be used: {why}; "
            "let it name certificates in PEM form, or unset it."
        ) from None


def _told_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield, of what led to the error, what says something: the inmost first, since it is the reason of the others."""
    causes = []
    following: BaseException | None = error
    while following is not None:
        causes.append(following)
        # Of a host with several addresses, one refusal each: the first stands for all.
        group = following.exceptions[0] if isinstance(following, BaseExceptionGroup) else None
        following = group or following.__cause__ or following.__context__
    told = (OSError, httpx2.ProxyError, httpx2.ProtocolError)
    # A connection that was there and is lost says nothing of who is at fault.
    lost = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
    yield from (cause for cause in reversed(causes) if isinstance(cause, told) and not isinstance(cause, lost))


def _unreachable(error: OSError, url: str, proxy: Proxy | None) -> str:
    host = urlsplit(url).hostname
    past = f"; NO_PROXY={host} goes past it" if proxy is not None else ""
    told = (error.strerror or str(error) or type(error).__name__).rstrip(".")
    if isinstance(error, socket.gaierror):
        whom = f"the name of {proxy}" if proxy is not None else f"the name {host}"
        return f"{whom} is not known here ({told}){past or '; is it spelt right, and is there a network'}"
    if proxy is not None:
        return f"{proxy} cannot be reached ({told}){past}"
    if isinstance(error, ConnectionRefusedError):
        return f"nothing answers at {url}"
    return f"{url} cannot be reached ({told})"


def _unsent(text: str, proxy: Proxy | None, *, may_pass: bool = True) -> ConnectionFault:
    return ConnectionFault(text=_through(text, proxy), is_sent=False, may_pass=may_pass)


def _through(text: str, proxy: Proxy | None) -> str:
    return text if proxy is None else f"{text} (through {proxy})"
