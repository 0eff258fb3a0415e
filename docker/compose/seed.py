"""Put small data sets into the three object stores, waiting until each answers."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable

from azure.core.exceptions import AzureError
from botocore.exceptions import BotoCoreError, ClientError

from tiercache.ending import end
from tiercache.testing.datasets import object_bytes, small_files, tar_shards
from tiercache.testing.object_servers import AzureServer, GcsServer, ObjectServer, S3Server

WAIT_S = 120.0
# What the three vendors' clients raise of a server that is still starting.
NOT_YET = (OSError, RuntimeError, BotoCoreError, ClientError, AzureError)


def fill(server: ObjectServer, bucket: str, items: Iterable[tuple[str, bytes]]) -> int:
    """Make the bucket and put the objects; return how many."""
    server.make_bucket(bucket)
    return server.put_many(bucket, items)


def wait_for(server: ObjectServer) -> None:
    """Return when the server takes an object. Raises what it last said after two minutes."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            server.make_bucket("ready-probe")
            server.put("ready-probe", "probe", b"1")
            return
        except NOT_YET:
            if time.monotonic() > deadline:
                raise
        time.sleep(1.0)


def main() -> int:
    s3 = S3Server(os.environ["S3_ENDPOINT"])
    gcs = GcsServer(os.environ["GCS_ENDPOINT"])
    azure = AzureServer(os.environ["AZURE_ENDPOINT"])
    for server in (s3, gcs, azure):
        wait_for(server)
    shards = tar_shards("compose", shard_count=4, samples_per_shard=64)
    tables = ((f"part-{i:05}.bin", object_bytes(f"table {i}", 1 << 20)) for i in range(4))
    samples = small_files("compose", 200, 16 * 1024)
    print(fill(s3, "train-data", ((f"imagenet/{name}", data) for name, data in shards)), "shards")
    print(fill(gcs, "warehouse", ((f"events/{name}", data) for name, data in tables)), "tables")
    print(fill(azure, "features", ((f"v1/{name}", data) for name, data in samples)), "samples")
    return 0


if __name__ == "__main__":
    sys.exit(end(main()))
