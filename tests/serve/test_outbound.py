"""Where the service may be sent by a stranger: nowhere inside. A canary on loopback that must stay silent."""

import asyncio
import re
from collections.abc import Iterator

import pytest

from recapture.client.errors import InvalidRequest
from recapture.serve.safe_http import AddressRefused, Outbound
from recapture.serve.settings import Settings

from ..engine.test_pipeline import write_clip
from .receiver import Receiver
from .service import Server

# {port} is the canary's. Names are answered by `resolve` below.
HOSTILE = [
    # loopback, in all its spellings
    "http://127.0.0.1:{port}/",
    "https://127.0.0.1:{port}/",
    "http://localhost:{port}/",
    "https://localhost:{port}/",
    "https://LOCALHOST:{port}/",
    "https://localhost.:{port}/",
    "https://127.1:{port}/",
    "https://127.0.1:{port}/",
    "https://2130706433:{port}/",
    "https://0x7f000001:{port}/",
    "https://0x7f.0.0.1:{port}/",
    "https://0177.0.0.1:{port}/",
    "https://017700000001:{port}/",
    "https://127.0.0.1.:{port}/",
    "https://0:{port}/",
    "https://0.0.0.0:{port}/",
    "https://[::1]:{port}/",
    "https://[::]:{port}/",
    "https://[::ffff:127.0.0.1]:{port}/",
    "https://[::ffff:7f00:1]:{port}/",
    "https://[0:0:0:0:0:0:0:1]:{port}/",
    "https://[::127.0.0.1]:{port}/",
    "https://[64:ff9b::7f00:1]:{port}/",
    "https://[2002:7f00:1::]:{port}/",
    "https://[2001:0:7f00:1::1]:{port}/",
    "https://[::1%25lo]:{port}/",
    "https://127.0.0.2:{port}/",
    "https://127.255.255.254:{port}/",
    # other private ranges, link-local, metadata, multicast, reserved
    "https://10.0.0.1/",
    "https://172.16.0.1/",
    "https://172.31.255.255/",
    "https://192.168.0.1/",
    "https://169.254.169.254/latest/meta-data/",
    "http://169.254.169.254/latest/meta-data/",
    "https://100.64.0.1/",
    "https://192.0.0.1/",
    "https://198.18.0.1/",
    "https://192.0.2.1/",
    "https://224.0.0.1/",
    "https://240.0.0.1/",
    "https://255.255.255.255/",
    "https://[fe80::1]/",
    "https://[fc00::1]/",
    "https://[fd00:ec2::254]/",
    "https://[ff02::1]/",
    "https://[2001:db8::1]/",
    # names that lead inside
    "https://inside.example:{port}/",
    "https://both.example:{port}/",
    "https://six.example:{port}/",
    "https://mapped.example:{port}/",
    "https://metadata.google.internal/",
    "https://nowhere.example:{port}/",
    "https://printer.local/",
    # what parsers disagree about
    "https://example.com@127.0.0.1:{port}/",
    "https://127.0.0.1:{port}@inside.example/",
    "https://user:pass@inside.example/",
    "https://127.0.0.1:{port}\\@example.com/",
    "https://example.com#@127.0.0.1:{port}/",
    "https://127.0.0.1:{port}#.example.com/",
    "https://127.0.0.1%00.example.com:{port}/",
    "https://127.0.0.1%2f@example.com/",
    "https://example.com\t.localhost/",
    "https://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{port}/",
    "https://127。0。0。1:{port}/",
    "https:///127.0.0.1:{port}/",
    "https:127.0.0.1:{port}/",
    "https://[::1]@inside.example:{port}/",
    "https://127.0.0.1:{port}:80/",
    "https:// 127.0.0.1:{port}/",
    # other schemes and ports
    "file:///etc/passwd",
    "gopher://127.0.0.1:{port}/_x",
    "ftp://127.0.0.1:{port}/",
    "data:text/plain,x",
    "unix:///var/run/docker.sock",
    "https+unix://x/",
    "//127.0.0.1:{port}/",
    "https://example.com:22/",
    "https://example.com:0/",
    "https://example.com:99999/",
    "https://inside.example:6379x/",
    "https://",
    "",
]

NAMES = {
    "inside.example": ["127.0.0.1"],
    "both.example": ["93.184.216.34", "127.0.0.1"],
    "six.example": ["::1"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "metadata.google.internal": ["169.254.169.254"],
    "printer.local": ["192.168.1.9"],
}


async def resolve(host: str, port: int) -> list[str]:
    return NAMES.get(host, [])


@pytest.fixture(scope="module")
def canary() -> Iterator[Receiver]:
    with Receiver() as canary:
        yield canary


def post(outbound: Outbound, url: str) -> int:
    return asyncio.run(outbound.post(url, b"{}", {"webhook-id": "m"}, timeout_s=5))


def test_the_table_is_long_enough():
    assert len(set(HOSTILE)) >= 60


@pytest.mark.parametrize("url", HOSTILE)
def test_nothing_inside_is_reached(url, canary):
    with pytest.raises(AddressRefused):
        post(Outbound(resolve=resolve), url.format(port=canary.port))
    assert canary.came == []


def test_the_canary_sings(canary):
    """The table would be worth nothing if the canary could not be reached at all."""
    before = len(canary.came)
    open_inside = Outbound(networks=["127.0.0.0/8"], resolve=resolve)
    assert post(open_inside, f"http://127.0.0.1:{canary.port}/") == 204
    assert post(open_inside, f"http://inside.example:{canary.port}/a?b") == 204
    assert canary.came[-1].headers["Host"] == f"inside.example:{canary.port}"
    assert len(canary.came) == before + 2
    del canary.came[before:]


def test_a_name_that_changes_its_mind_gains_nothing(canary):
    answers = iter([["93.184.216.34"], ["127.0.0.1"]])

    async def rebinding(host: str, port: int) -> list[str]:
        return next(answers)

    outbound = Outbound(resolve=rebinding)

    async def locate() -> str:
        return await outbound.locate(outbound.check("https://rebind.example/", param="url"), param="url")

    assert asyncio.run(locate()) == "93.184.216.34"  # this, and no name, is what is connected to
    with pytest.raises(AddressRefused):
        asyncio.run(locate())
    assert canary.came == []


def test_a_network_that_is_opened_opens_no_other(canary):
    outbound = Outbound(networks=["10.1.0.0/16"], resolve=resolve)
    for url in (
        "http://127.0.0.1:{port}/",
        "http://inside.example:{port}/",
        "http://10.2.0.1/",
        "http://93.184.216.34/",
    ):
        with pytest.raises(AddressRefused):
            post(outbound, url.format(port=canary.port))
    assert canary.came == []


def test_only_listed_hosts_are_asked_where_some_are_listed():
    outbound = Outbound(hosts=["hooks.example.com", "*.studio.example"], resolve=resolve)
    for url in ("https://hooks.example.com/x", "https://a.studio.example/", "https://HOOKS.example.com/"):
        outbound.check(url, param="url")
    for url in ("https://studio.example/", "https://evil-studio.example/", "https://hooks.example.com.evil.example/"):
        with pytest.raises(AddressRefused):
            outbound.check(url, param="url")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    settings = Settings(data=tmp_path_factory.mktemp("data"), max_active=1000)
    with Server(settings) as server, server.client() as client:
        from recapture.serve.webhooks import webhook_secret

        database = settings.open_database()
        webhook_secret(database, "studio")
        database.close()
        yield client, client.uploads.create(write_clip(tmp_path_factory.mktemp("clip") / "walk.mp4"))


# Names are looked up at delivery and not in a request: there they look like any other.
NAMED = re.compile(r"https://[a-z]+\.example:\{port\}/$")


@pytest.mark.parametrize("url", [url for url in HOSTILE if not NAMED.match(url)])
def test_as_webhook_it_is_refused_over_http(url, service, canary):
    from pydantic import ValidationError

    client, upload = service
    url = url.format(port=canary.port)
    with pytest.raises((InvalidRequest, ValidationError)):
        client.renders.create(upload, "static", webhook_url=url)
    raw = {"input": {"upload": upload.id}, "camera": "static", "webhook_url": url}
    answer = client._http.post(f"{client.base_url}/v1/renders", json=raw, headers=client._headers)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "webhook_url"
    assert canary.came == []
