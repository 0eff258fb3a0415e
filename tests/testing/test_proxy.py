"""The faulty network passes everything unchanged, counts it, and breaks it as asked."""

from __future__ import annotations

import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import obstore
import pytest
from botocore.config import Config
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    ReadTimeoutError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from obstore.store import AzureStore, GCSStore, S3Store

from tiercache.testing.network import Fault, NetworkProfile
from tiercache.testing.object_servers import (
    AZURE_ACCOUNT,
    AZURE_KEY,
    REGION,
    S3_ACCESS_KEY,
    S3_SECRET_KEY,
    AzureServer,
    GcsServer,
    ObjectServer,
    S3Server,
)
from tiercache.testing.proxy import FaultyProxy

MIB = 1024 * 1024
NewBucket = Callable[[ObjectServer], str]


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(s3.endpoint) as running:
        yield running


@pytest.fixture
def bucket(s3: S3Server, new_bucket: NewBucket) -> str:
    return new_bucket(s3)


def client_of(proxy: FaultyProxy, *, read_timeout_s: float = 20.0) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=proxy.url,
        region_name=REGION,
        aws_access_key_id=S3_ACCESS_KEY,
        aws_secret_access_key=S3_SECRET_KEY,
        config=Config(
            connect_timeout=2,
            read_timeout=read_timeout_s,
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
        ),
    )


def s3_store(proxy: FaultyProxy, bucket: str) -> S3Store:
    return S3Store(
        bucket,
        endpoint=proxy.url,
        region=REGION,
        access_key_id=S3_ACCESS_KEY,
        secret_access_key=S3_SECRET_KEY,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True, "timeout": "20s"},
        retry_config={"max_retries": 0},
    )


def test_passes_signed_requests_of_boto3(proxy: FaultyProxy, bucket: str) -> None:
    client = client_of(proxy)
    data = bytes(range(256)) * 4096 * 3
    client.put_object(Bucket=bucket, Key="a b/ü%.bin", Body=data)
    assert client.get_object(Bucket=bucket, Key="a b/ü%.bin")["Body"].read() == data
    part = client.get_object(Bucket=bucket, Key="a b/ü%.bin", Range="bytes=10-1033")
    assert part["Body"].read() == data[10:1034]
    client.head_object(Bucket=bucket, Key="a b/ü%.bin")
    client.delete_object(Bucket=bucket, Key="a b/ü%.bin")
    with pytest.raises(ClientError, match="404"):
        client.head_object(Bucket=bucket, Key="a b/ü%.bin")

    assert proxy.counts() == {"PUT": 1, "GET": 2, "HEAD": 2, "DELETE": 1}
    whole, ranged = proxy.exchanges("GET", path_contains="a b/ü%.bin")
    assert (whole.status, whole.body_bytes, whole.span()) == (200, len(data), None)
    assert (ranged.status, ranged.body_bytes, ranged.span()) == (206, 1024, (10, 1034))
    assert proxy.exchanges("PUT")[0].upload_bytes >= len(data)  # boto3 adds chunk signatures
    assert proxy.bytes_out("a b/ü%.bin") >= len(data) + 1024
    proxy.clear()
    assert not proxy.exchanges()


def test_passes_signed_requests_of_obstore(proxy: FaultyProxy, bucket: str) -> None:
    store = s3_store(proxy, bucket)
    data = bytes(range(256)) * 4096 * 24
    obstore.put(store, "dir/big.bin", data, chunk_size=8 * MIB)  # multipart
    assert bytes(obstore.get(store, "dir/big.bin").bytes()) == data
    assert (
        bytes(obstore.get_range(store, "dir/big.bin", start=MIB, length=99)) == data[MIB : MIB + 99]
    )
    assert [found["path"] for page in obstore.list(store) for found in page] == ["dir/big.bin"]
    assert proxy.exchanges("GET", "big.bin")[-1].span() == (MIB, MIB + 99)
    assert 1 <= proxy.peak_in_flight <= 8


def test_passes_azure_and_gcs(azure: AzureServer, gcs: GcsServer, new_bucket: NewBucket) -> None:
    with FaultyProxy(azure.endpoint) as proxy:
        assert proxy.url.endswith("/devstoreaccount1")
        store = AzureStore(
            new_bucket(azure),
            endpoint=proxy.url,
            account_name=AZURE_ACCOUNT,
            account_key=AZURE_KEY,
            client_options={"allow_http": True},
        )
        obstore.put(store, "key", b"azure data")
        assert bytes(obstore.get_range(store, "key", start=6, length=4)) == b"data"
        assert proxy.exchanges("GET")[0].span() == (6, 10)
    with FaultyProxy(gcs.endpoint) as proxy:
        bucket = new_bucket(gcs)
        gcs.put(bucket, "key", b"gcs data")
        through = GCSStore(
            bucket,
            config={"base_url": proxy.url},
            skip_signature=True,
            client_options={"allow_http": True},
        )
        assert bytes(obstore.get(through, "key").bytes()) == b"gcs data"
        assert GcsServer(proxy.url).keys(bucket) == ["key"]


def test_delays_the_first_byte(proxy: FaultyProxy, s3: S3Server, bucket: str) -> None:
    s3.put(bucket, "key", b"data")
    client = client_of(proxy)
    proxy.inject(Fault(methods=("GET",), first_byte_delay_s=0.3, times=1))
    started = time.monotonic()
    client.get_object(Bucket=bucket, Key="key")
    assert time.monotonic() - started >= 0.3
    started = time.monotonic()
    client.get_object(Bucket=bucket, Key="key")
    assert time.monotonic() - started < 0.3


def test_limits_the_rate(s3: S3Server, bucket: str) -> None:
    s3.put(bucket, "key", bytes(MIB))
    narrow = NetworkProfile(name="narrow", source="this test", total_bytes_per_s=4 * MIB)
    with FaultyProxy(s3.endpoint, network=narrow) as proxy:
        started = time.monotonic()
        client_of(proxy).get_object(Bucket=bucket, Key="key")["Body"].read()
        assert time.monotonic() - started >= 0.24
    with FaultyProxy(s3.endpoint) as proxy:
        proxy.inject(Fault(connection_bytes_per_s=4 * MIB))
        started = time.monotonic()
        client_of(proxy).get_object(Bucket=bucket, Key="key")["Body"].read()
        assert time.monotonic() - started >= 0.24


def test_swallows_in_a_black_hole(proxy: FaultyProxy, s3: S3Server, bucket: str) -> None:
    s3.put(bucket, "key", b"data")
    client = client_of(proxy, read_timeout_s=0.5)
    proxy.black_hole()
    with pytest.raises((ReadTimeoutError, ConnectTimeoutError)):
        client.get_object(Bucket=bucket, Key="key")
    proxy.heal()
    assert client.get_object(Bucket=bucket, Key="key")["Body"].read() == b"data"


def test_refuses_and_listens_again(proxy: FaultyProxy, s3: S3Server, bucket: str) -> None:
    s3.put(bucket, "key", b"data")
    client = client_of(proxy)
    client.head_object(Bucket=bucket, Key="key")
    proxy.refuse()
    with pytest.raises((EndpointConnectionError, BotoConnectionError, HTTPClientError)):
        client.head_object(Bucket=bucket, Key="key")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port), timeout=5)
    proxy.heal()
    client.head_object(Bucket=bucket, Key="key")
    proxy.drop_connections()
    assert client_of(proxy).get_object(Bucket=bucket, Key="key")["Body"].read() == b"data"


@pytest.mark.parametrize("cut_bytes", [0, 1, 70_000, MIB])
def test_resets_and_truncates(
    proxy: FaultyProxy, s3: S3Server, bucket: str, cut_bytes: int
) -> None:
    s3.put(bucket, "key", bytes(2 * MIB))
    proxy.inject(Fault(reset_after_bytes=cut_bytes, times=1))
    assert read_raw(proxy, bucket) == (cut_bytes, "ConnectionResetError")
    proxy.inject(Fault(truncate_after_bytes=cut_bytes, times=1))
    assert read_raw(proxy, bucket) == (cut_bytes, "end")
    proxy.inject(Fault(truncate_after_bytes=cut_bytes, truncate_stalls=True, times=1))
    assert read_raw(proxy, bucket) == (cut_bytes, "TimeoutError")
    assert read_raw(proxy, bucket)[0] == 2 * MIB
    assert [found.body_bytes for found in proxy.exchanges("GET")] == [cut_bytes] * 3 + [2 * MIB]


def read_raw(proxy: FaultyProxy, bucket: str) -> tuple[int, str]:
    """Return how many body bytes came and what ended them. Reads a presigned URL."""
    url = client_of(proxy).generate_presigned_url(
        "get_object", Params={"Bucket": bucket, "Key": "key"}
    )
    target = url.removeprefix(proxy.url)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=0.5) as sock:
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{proxy.port}\r\n\r\n".encode())
        received = bytearray()
        ending = "end"
        try:
            while block := sock.recv(MIB):
                received += block
        except OSError as error:
            ending = type(error).__name__
    return len(received) - received.index(b"\r\n\r\n") - 4, ending


def test_answers_with_a_status(proxy: FaultyProxy, s3: S3Server, bucket: str) -> None:
    s3.put(bucket, "key", b"data")
    client = client_of(proxy)
    proxy.inject(Fault(respond_status=503, retry_after_s=7, times=2))
    with pytest.raises(ClientError) as caught:
        client.get_object(Bucket=bucket, Key="key")
    answer = caught.value.response["ResponseMetadata"]
    assert answer["HTTPStatusCode"] == 503
    assert answer["HTTPHeaders"]["retry-after"] == "7"
    with pytest.raises(ClientError, match="503"):
        client.put_object(Bucket=bucket, Key="other", Body=bytes(MIB))
    client.get_object(Bucket=bucket, Key="key")
    proxy.inject(Fault(respond_status=429))
    for _ in range(3):
        with pytest.raises(ClientError, match="429"):
            client.head_object(Bucket=bucket, Key="key")
    proxy.heal()
    client.head_object(Bucket=bucket, Key="key")
    assert s3.keys(bucket) == ["key"]


def test_loses_the_answer_of_a_write_that_happened(
    proxy: FaultyProxy, s3: S3Server, bucket: str
) -> None:
    proxy.inject(Fault(methods=("PUT",), lose_answer=True, times=1))
    with pytest.raises((BotoConnectionError, HTTPClientError)):
        client_of(proxy).put_object(Bucket=bucket, Key="key", Body=b"data")
    assert s3.get(bucket, "key") == b"data"
    assert proxy.exchanges("PUT")[0].status == 0


def test_ignores_if_match(proxy: FaultyProxy, s3: S3Server) -> None:
    bucket = s3.make_bucket("open-if-match")
    s3.put(bucket, "key", b"new")
    client = client_of(proxy)
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.get_object(Bucket=bucket, Key="key", IfMatch='"0123"')
    proxy.inject(Fault(ignore_if_match=True))
    answer = client.get_object(Bucket=bucket, Key="key", IfMatch='"0123"')
    assert answer["Body"].read() == b"new"


def test_the_latest_matching_fault_acts(proxy: FaultyProxy, s3: S3Server, bucket: str) -> None:
    s3.put(bucket, "key", b"data")
    proxy.inject(Fault(respond_status=500))
    proxy.inject(Fault(path_contains=f"{bucket}/key", respond_status=429, times=1))
    client = client_of(proxy)
    for expected in ("429", "500"):
        with pytest.raises(ClientError, match=expected):
            client.head_object(Bucket=bucket, Key="key")


def test_a_dead_server_looks_dead(s3: S3Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with FaultyProxy(f"http://127.0.0.1:{port}") as proxy:
        with pytest.raises(OSError, match=r"reset|refused|closed"):
            urllib.request.urlopen(proxy.url, timeout=5)
        assert proxy.exchanges()[0].status == 0


def test_an_upload_that_breaks_off_before_its_first_byte_leaves_no_empty_object(
    proxy: FaultyProxy, s3: S3Server, bucket: str
) -> None:
    """SeaweedFS takes a head and an orderly end of the connection for an empty object."""
    s3.put(bucket, "k", b"before")
    url = client_of(proxy).generate_presigned_url("put_object", {"Bucket": bucket, "Key": "k"})
    place, target = url.removeprefix("http://").split("/", 1)
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", proxy.port)) as sock:
            head = f"PUT /{target} HTTP/1.1\r\nHost: {place}\r\nContent-Length: 3000\r\n\r\n"
            sock.sendall(head.encode())
            time.sleep(0.05)  # the server has the head
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            assert s3.get(bucket, "k") == b"before"
