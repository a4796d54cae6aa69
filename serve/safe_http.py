"""Requests to addresses that a stranger named: one parser, one resolution, public addresses only, no redirect followed.

The name is resolved once, every address it has is judged, and the connection goes to the one that was judged: a name
that answers otherwise the second time gains nothing.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2

from ..engine.errors import InputError

MOST_URL = 2000
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?:{_LABEL}\.)*[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?")
"""The last label begins with a letter: `127.1`, `0x7f.1` and `2130706433` are addresses to the system's resolver."""
_URL = re.compile(r"[\x21\x23-\x5b\x5d\x5f\x61-\x7a\x7e]+")
"""ASCII without space, quote, backslash, caret, backtick and braces, which parsers disagree about."""
_INNER = tuple(
    ipaddress.ip_network(network)
    for network in ("::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
)
"""IPv6 ranges that hold an IPv4 address, by which a private one would look public."""

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]


class AddressRefused(InputError):
    """The service makes no request there."""

    code = "address_refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A URL taken apart."""

    scheme: str
    host: str
    """In lower case; an IPv6 address without its brackets."""
    port: int
    target: str
    """Path and query."""

    @property
    def authority(self) -> str:
        """For the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == {"http": 80, "https": 443}[self.scheme] else f"{host}:{self.port}"


def parse_address(url: str, *, param: str) -> Address:
    """The parts of a URL, if it can be read in one way only.

    Raises:
        AddressRefused: it is none, or carries a user, a fragment, or an address in disguise.
    """
    wanted = "give https://HOST[:PORT]/PATH, in ASCII and without user, fragment or blanks"
    if len(url) > MOST_URL or not _URL.fullmatch(url):
        raise AddressRefused(wanted, param=param)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise AddressRefused(wanted, param=param) from None
    if parts.scheme not in ("http", "https") or not url.lower().startswith(f"{parts.scheme}://"):
        raise AddressRefused(wanted, param=param)
    if "@" in parts.netloc or "#" in url or "%" in parts.netloc or not parts.hostname or parts.netloc.endswith(":"):
        raise AddressRefused(wanted, param=param)
    port = port if port is not None else {"http": 80, "https": 443}[parts.scheme]
    if port not in (80, 443) and not 1024 <= port <= 65535:
        raise AddressRefused("ports are 80, 443 and from 1024 on", param=param)
    host = parts.hostname
    if _ip(host) is None and not _HOST.fullmatch(host):
        raise AddressRefused(wanted, param=param)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Address(scheme=parts.scheme, host=host, port=port, target=target)


class Outbound:
    """Checks where requests may go, and makes them.

    Args:
        hosts: allowed names, `*.example.com` for all below one; empty allows any name.
        networks: private networks that are allowed too, also by http (`127.0.0.0/8` for a test).
        resolve: the addresses of a name; the system's resolver if absent.
    """

    def __init__(
        self, *, hosts: Sequence[str] = (), networks: Sequence[str] = (), resolve: Resolve | None = None
    ) -> None:
        self._hosts = [host.lower() for host in hosts]
        self._networks = [ipaddress.ip_network(network) for network in networks]
        self._resolve = resolve or _system

    def check(self, url: str, *, param: str) -> Address:
        """Check all that needs no name service, for requests that must not wait for it.

        Raises:
            AddressRefused: the URL cannot be read, or its scheme, host or literal address is not allowed.
        """
        address = parse_address(url, param=param)
        if address.scheme == "http" and not self._networks:
            raise AddressRefused("only https is spoken", param=param)
        if self._hosts and not any(_below(address.host, host) for host in self._hosts):
            raise AddressRefused(f"{address.host} is not one of {', '.join(self._hosts)}", param=param)
        if (ip := _ip(address.host)) is not None:
            self._judge(ip, address, param)
        elif not self._networks and f".{address.host}".endswith((".localhost", ".local", ".internal")):
            raise AddressRefused(f"{address.host} is not a public name", param=param)
        return address

    async def locate(self, address: Address, *, param: str) -> str:
        """The one IP address to connect to.

        Raises:
            AddressRefused: the name has none, or one that is not allowed.
        """
        literal = _ip(address.host)
        try:
            found = [str(literal)] if literal is not None else await self._resolve(address.host, address.port)
        except OSError:
            found = []
        if not found:
            raise AddressRefused(f"{address.host} has no address", param=param)
        for text in found:
            ip = _ip(text)
            if ip is None:
                raise AddressRefused(f"{address.host} has an address that is not allowed", param=param)
            self._judge(ip, address, param)
        return found[0]

    async def post(
        self, url: str, content: bytes, headers: Mapping[str, str], *, timeout_s: float, param: str = "url"
    ) -> int:
        """Send a body; the answer's status. Its body is not read, and a redirect is an answer like any other.

        Raises:
            AddressRefused: it may not be sent there.
            httpx2.TransportError, TimeoutError: there was no answer.
        """
        async with asyncio.timeout(timeout_s):
            address = self.check(url, param=param)
            ip = await self.locate(address, param=param)
            where = f"{address.scheme}://{f'[{ip}]' if ':' in ip else ip}:{address.port}{address.target}"
            # The certificate is checked for the name, though the connection is made to the address.
            more: dict[str, Any] = {} if _ip(address.host) else {"sni_hostname": address.host}
            async with httpx2.AsyncClient(trust_env=False, follow_redirects=False, timeout=timeout_s) as client:
                request = client.build_request(
                    "POST", where, content=content, headers={**headers, "Host": address.authority}, extensions=more
                )
                answer = await client.send(request, stream=True)
                await answer.aclose()
                return answer.status_code

    def _judge(self, ip: Ip, address: Address, param: str) -> None:
        if any(ip in network for network in self._networks):
            return
        if address.scheme != "https":
            raise AddressRefused("only https is spoken", param=param)
        inner = ip.version == 6 and any(ip in network for network in _INNER)
        if inner or not ip.is_global or ip.is_multicast or ip.is_reserved:
            raise AddressRefused(f"{address.host} is not at a public address", param=param)


async def _system(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def _ip(text: str) -> Ip | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _below(host: str, allowed: str) -> bool:
    return host.endswith(allowed[1:]) if allowed.startswith("*.") else host == allowed
