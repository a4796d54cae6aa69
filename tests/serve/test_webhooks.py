"""Webhooks, to a real receiver: signed, tried again, kept over a crash, delivered once a render."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa

from recapture.client import WebhookInvalid, verify_webhook
from recapture.client.errors import InvalidRequest
from recapture.client.webhooks import sign_webhook
from recapture.serve import database as db
from recapture.serve.database import Database
from recapture.serve.jobs.jobs import Jobs
from recapture.serve.processes.maintenance import Maintenance
from recapture.serve.settings import Settings
from recapture.serve.webhooks import HOLD_S, RETRY_S, Messages, webhook_secret

from ..engine.test_pipeline import write_clip
from .databases import postgres_binaries, postgres_server
from .receiver import Receiver
from .service import Server

LOOPBACK = ["127.0.0.0/8"]


class Clock:
    def __init__(self) -> None:
        self.now = float(int(time.time()))

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request, tmp_path) -> Iterator[Settings]:
    if request.param == "sqlite":
        yield Settings(data=tmp_path, webhook_networks=LOOPBACK)
        return
    if postgres_binaries() is None:
        pytest.skip("the Debian package postgresql is not installed")
    with postgres_server() as url:
        yield Settings(data=tmp_path, database=url, webhook_networks=LOOPBACK)


def ended(database: Database, url: str, clock: Clock, tenant: str = "studio") -> str:
    """A render that was cancelled, with a webhook."""
    jobs = Jobs(database, clock=clock)
    job, _ = jobs.submit(tenant, "render", {"webhook_url": url}, "f" * 64)
    jobs.cancel(job.id)
    jobs.cancel(job.id)  # says nothing more
    return job.id


def deliver(maintenance: Maintenance) -> int:
    return asyncio.run(maintenance.deliver_due())


def test_signatures_are_those_of_the_standard():
    # The example of the specification.
    secret, message, body = (
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        b'{"test": 2432232314}',
    )
    assert sign_webhook(secret, message, 1614265330, body) == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_what_is_not_the_services_is_refused():
    secret = "whsec_" + "A" * 44
    body = json.dumps(
        {"type": "render.failed", "timestamp": "t", "data": {"id": "r", "status": "failed", "created_at": 1}}
    ).encode()
    good = {
        "Webhook-Id": "msg_1",
        "Webhook-Timestamp": "1000",
        "webhook-signature": sign_webhook(secret, "msg_1", 1000, body),
    }
    event = verify_webhook(body, good, secret, now=1200)
    assert (event.id, event.data.status) == ("msg_1", "failed")
    two = {**good, "webhook-signature": f"v1,AAAA {good['webhook-signature']}"}
    assert verify_webhook(body, two, secret, now=1000) == event  # while a secret is changed
    for change, now in [
        ({}, 1301),
        ({}, 699),
        ({"Webhook-Id": "msg_2"}, 1000),
        ({"Webhook-Timestamp": "1001"}, 1000),
        ({"Webhook-Timestamp": "x"}, 1000),
        ({"Webhook-Timestamp": "-1000"}, 1000),
        ({"webhook-signature": ""}, 1000),
        ({"webhook-signature": "v1,é"}, 1000),
        ({"webhook-signature": "v2," + good["webhook-signature"][3:]}, 1000),
    ]:
        with pytest.raises(WebhookInvalid):
            verify_webhook(body, {**good, **change}, secret, now=now)
    for bad in (body + b" ", body.replace(b"failed", b"failxd")):
        with pytest.raises(WebhookInvalid):
            verify_webhook(bad, good, secret, now=1000)
    with pytest.raises(WebhookInvalid):
        verify_webhook(body, good, "whsec_" + "B" * 44, now=1000)
    with pytest.raises(WebhookInvalid, match="webhook-id"):
        verify_webhook(body, {}, secret)
    with pytest.raises(ValueError, match="whsec_"):
        verify_webhook(body, good, "none!", now=1000)


def test_a_long_reason_is_cut(settings):
    clock, database = Clock(), settings.open_database()
    webhook_secret(database, "studio")
    messages = Messages(database, clock=clock)
    ended(database, "https://example.com/hook", clock)
    assert messages.failed(messages.take(), "no" * 400) is not None
    with database.reading() as connection:
        assert connection.execute(sa.select(db.webhooks.c.error)).scalar() == "no" * 150
    database.close()


def test_a_message_is_tried_until_it_is_taken(settings):
    clock, database = Clock(), settings.open_database()
    secret = webhook_secret(database, "studio")
    maintenance = Maintenance(settings, clock=clock)
    with Receiver(lambda n: [(500, {}), (302, {"Location": "/elsewhere"}), (200, {})][n]) as receiver:
        render = ended(database, receiver.url + "/hook?x=1", clock)
        assert deliver(maintenance) == 1
        assert deliver(maintenance) == 0  # not at once
        clock.now += 1.2 * RETRY_S[0]
        assert deliver(maintenance) == 1
        clock.now += 1.2 * RETRY_S[1]
        assert deliver(maintenance) == 1
        clock.now += 1e9
        assert deliver(maintenance) == 0
        assert [(came.method, came.path) for came in receiver.came] == 3 * [("POST", "/hook?x=1")]  # no redirect
        events = [
            verify_webhook(came.body, came.headers, secret, now=clock.now, tolerance_s=2e9) for came in receiver.came
        ]
        assert len({event.id for event in events}) == len({came.body for came in receiver.came}) == 1
        assert len({came.headers["webhook-timestamp"] for came in receiver.came}) == 3
        assert (events[0].type, events[0].data.id, events[0].data.status) == ("render.cancelled", render, "cancelled")
    assert maintenance.messages.counts() == {"delivered": 1}
    maintenance.messages.tidy()
    assert maintenance.messages.counts() == {}
    database.close()


def test_what_is_never_taken_is_given_up(settings):
    clock, database = Clock(), settings.open_database()
    webhook_secret(database, "studio")
    maintenance = Maintenance(settings, clock=clock)
    with Receiver(lambda n: (503, {})) as receiver, Receiver(lambda n: (410, {})) as gone:
        ended(database, receiver.url, clock)
        ended(database, gone.url, clock)
        for pause_s in (0, *RETRY_S, 1e6):
            clock.now += 1.2 * pause_s
            deliver(maintenance)
        assert len(receiver.came) == len(RETRY_S) + 1
        assert len(gone.came) == 1
    assert maintenance.messages.counts() == {"failed": 2}
    database.close()


def test_a_keeper_that_dies_with_a_message_costs_a_wait(settings):
    clock, database = Clock(), settings.open_database()
    webhook_secret(database, "studio")
    with Receiver() as receiver:
        ended(database, receiver.url, clock)
        assert Maintenance(settings, clock=clock).messages.take() is not None  # and is never heard of again
        maintenance = Maintenance(settings, clock=clock)
        assert deliver(maintenance) == 0
        clock.now += HOLD_S + 1
        assert deliver(maintenance) == 1
        assert len(receiver.came) == 1
    database.close()


def test_a_changed_secret_signs_beside_the_one_before(settings):
    clock, database = Clock(), settings.open_database()
    old = webhook_secret(database, "studio")
    assert webhook_secret(database, "studio") == old
    new = webhook_secret(database, "studio", rotate=True)
    assert webhook_secret(database, "other") not in (old, new)
    with Receiver() as receiver:
        ended(database, receiver.url, clock)
        deliver(Maintenance(settings, clock=clock))
        (came,) = receiver.came
        assert verify_webhook(came.body, came.headers, old) == verify_webhook(came.body, came.headers, new)
        clock.now += 2 * 86_400
        ended(database, receiver.url, clock)
        deliver(Maintenance(settings, clock=clock))
        late = receiver.came[1]
        assert verify_webhook(late.body, late.headers, new, now=clock.now).type == "render.cancelled"
        with pytest.raises(WebhookInvalid):
            verify_webhook(late.body, late.headers, old, now=clock.now)
    database.close()


def maintenance_process(settings: Settings) -> subprocess.Popen[bytes]:
    import os

    environment = {**os.environ, **settings.variables()}
    return subprocess.Popen(
        [sys.executable, "-m", "recapture.serve.processes.maintenance"], env=environment, stderr=subprocess.DEVNULL
    )


def until(true: Any, seconds: float = 60) -> None:
    patience = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < patience
        time.sleep(0.05)


def test_the_keeper_delivers_for_renders_asked_for_over_http(tmp_path):
    settings = Settings(data=tmp_path / "data", webhook_networks=LOOPBACK)
    clip = write_clip(tmp_path / "walk.mp4")
    with Server(settings) as server, server.client() as client, Receiver() as receiver:
        upload = client.uploads.create(clip)
        with pytest.raises(InvalidRequest) as refused:
            client.renders.create(upload, "static", webhook_url=receiver.url)
        assert (refused.value.code, refused.value.param) == ("no_webhook_secret", "webhook_url")
        database = settings.open_database()
        secret = webhook_secret(database, "studio")
        first = client.renders.create(upload, "static", webhook_url=receiver.url)
        client.renders.cancel(first)
        maintenance = maintenance_process(settings)
        # Killed between the answer and the record it would send the message again: that is `at least once`, not this test.
        until(lambda: Messages(database).counts() == {"delivered": 1})
        maintenance.kill()
        maintenance.wait()
        second = client.renders.create(upload, "pan(1deg)", webhook_url=receiver.url)
        client.renders.cancel(second)  # while no maintenance process lives
        client.renders.delete(second)
        maintenance = maintenance_process(settings)
        until(lambda: len(receiver.came) == 2)
        maintenance.send_signal(signal.SIGTERM)
        assert maintenance.wait(30) == 0
        events = [verify_webhook(came.body, came.headers, secret) for came in receiver.came]
        assert [event.data.id for event in events] == [first.id, second.id]
        with httpx2.Client(headers=client._headers) as http:
            assert 'recapture_webhooks{status="delivered"} 2.0' in http.get(f"{server.url}/metrics").text
        database.close()
