"""boto3 straight: one client, which its documentation lets threads share."""

from __future__ import annotations

from typing import Any

from benchmarks.contenders.contender import Recipe, missing_package
from benchmarks.contenders.obstore_s3 import Straight
from benchmarks.registry import contender
from tiercache.testing.object_servers import REGION, S3_ACCESS_KEY, S3_SECRET_KEY

CONNECTIONS = 64


@contender("boto3")
class Boto3(Straight):
    name = "boto3"

    def why_missing(self) -> str:
        return missing_package("boto3")

    def recipe(self) -> Recipe:
        return Recipe(Boto3Reader, self._arguments)


class Boto3Reader:
    def __init__(self, endpoint: str, bucket: str) -> None:
        import boto3
        from botocore.config import Config

        self._client: Any = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name=REGION,
            aws_access_key_id=S3_ACCESS_KEY,
            aws_secret_access_key=S3_SECRET_KEY,
            config=Config(max_pool_connections=CONNECTIONS, s3={"addressing_style": "path"}),
        )
        self._bucket = bucket

    def read(self, key: str, offset: int, length: int) -> object:
        span = f"bytes={offset}-{offset + length - 1}"
        answer = self._client.get_object(Bucket=self._bucket, Key=key, Range=span)
        return answer["Body"].read()

    def close(self) -> None:
        self._client.close()
