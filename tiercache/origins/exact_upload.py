"""Conditional multipart upload: what obstore has not, and S3 has.

Parts go up while they are made; the condition is checked when the upload is completed, and
nothing is visible before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Protocol, cast

from tiercache.errors import TiercacheError
from tiercache.model import ObjectInfo
from tiercache.origins.exact import ExactNames, ExactThreads
from tiercache.ports import Buffer, Condition


class ExactUploads(ExactNames, Protocol):
    """Blocking, thread safe; parts are numbered from 1."""

    def start_upload(self, key: str, write_id: str) -> str: ...

    def upload_part(self, key: str, upload_id: str, number: int, data: bytes) -> str: ...

    def complete_upload(
        self, key: str, upload_id: str, e_tags: tuple[str, ...], condition: Condition
    ) -> ObjectInfo: ...

    def abort_upload(self, key: str, upload_id: str) -> None: ...


async def upload(
    threads: ExactThreads,
    key: str,
    buffers: AsyncIterator[Buffer],
    *,
    condition: Condition,
    write_id: str,
    part_bytes: int,
    parts_in_flight: int,
) -> ObjectInfo:
    """Write a stream under a condition. Holds ``parts_in_flight`` + 1 parts in memory. After
    any failure the parts are dropped. ``threads`` must be of an ExactUploads."""

    def start(names: ExactNames) -> str:
        return cast(ExactUploads, names).start_upload(key, write_id)

    def send(number: int, part: bytes, names: ExactNames) -> str:
        return cast(ExactUploads, names).upload_part(key, upload_id, number, part)

    def complete(names: ExactNames) -> ObjectInfo:
        done = tuple(task.result() for task in sent)
        return cast(ExactUploads, names).complete_upload(key, upload_id, done, condition)

    def abort(names: ExactNames) -> None:
        cast(ExactUploads, names).abort_upload(key, upload_id)

    upload_id = await threads.run(start, key=key)
    sent: list[asyncio.Task[str]] = []
    gate = asyncio.Semaphore(parts_in_flight)
    try:
        async with asyncio.TaskGroup() as group:
            async for part in _parts(buffers, part_bytes):
                await gate.acquire()
                call = partial(send, len(sent) + 1, part)
                task = group.create_task(threads.run(call, key=key))
                task.add_done_callback(lambda _: gate.release())
                sent.append(task)
        return await threads.run(complete, key=key)
    except BaseException as error:
        try:
            await asyncio.shield(threads.run(abort, key=key))
        except TiercacheError:
            pass  # gone already (the answer to its completion was lost), or left to expire
        if isinstance(error, BaseExceptionGroup):
            raise error.exceptions[0] from None
        raise


async def _parts(buffers: AsyncIterator[Buffer], part_bytes: int) -> AsyncIterator[bytes]:
    held = bytearray()
    async for buffer in buffers:
        held += buffer
        while len(held) >= part_bytes:
            yield bytes(memoryview(held)[:part_bytes])
            del held[:part_bytes]
    if held:
        yield bytes(held)
