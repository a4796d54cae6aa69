"""An S3 server on this machine (moto), and URIs of its buckets."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from moto.server import ThreadedMotoServer

OPTIONS = "region=eu-north-1&scheme=http&allow_bucket_creation=true&endpoint_override="


@contextmanager
def s3_server() -> Iterator[str]:
    """Options that follow `s3://bucket?`, for this process and its children."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test-key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        running.start()
        try:
            yield f"{OPTIONS}127.0.0.1:{running.get_host_and_port()[1]}"
        finally:
            running.stop()
