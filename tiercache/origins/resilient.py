"""Retries, deadline, limits and endpoint around any origin.

Reads are retried. A write whose answer was lost is settled by a HEAD that looks for its write
id: our own success is never reported as a conflict, and a write that may have happened is never
reported as one that did not.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from tiercache.clock import Clock
from tiercache.errors import (
    NotFound,
    OriginThrottled,
    OriginUnavailable,
    PreconditionFailed,
    TiercacheError,
)
from tiercache.model import ObjectInfo
from tiercache.origins.backend import ENDPOINT, Ask, Backends, Grant
from tiercache.origins.bucket import Kind
from tiercache.origins.counters import OriginCounters
from tiercache.origins.endpoint import Endpoint
from tiercache.policy.retry import RetryPolicy, next_delay_s, remaining_s
from tiercache.ports import (
    Always,
    Buffer,
    Condition,
    Fetched,
    IfAbsent,
    IfVersion,
    ListPage,
    Origin,
    OriginCapabilities,
)

# What a stream is taken to be written in: a request for each such part (the adapters' own parts).
PART_BYTES = 8 << 20

_T = TypeVar("_T")


class _Call:
    """One operation with its attempts. ``arrived`` is its place in the queue, the same for all of
    them, which it joined at ``asked_s``; ``first_s`` is when the first one left it. ``started_s``
    is that without the time that later ones waited: waiting for room or tokens is back-pressure,
    not the origin's slowness."""

    __slots__ = ("arrived", "asked_s", "attempts", "first_s", "is_held", "is_over", "started_s")

    def __init__(self, arrived: int, asked_s: float) -> None:
        self.arrived = arrived
        self.asked_s = asked_s
        self.attempts = 0
        self.first_s = 0.0
        self.started_s = 0.0
        self.is_held = False  # by the limits: the next attempt leaves when it is time
        self.is_over = False  # the limits see no hope


class ResilientOrigin:
    """An origin that retries what is safe to retry, within ``policy.deadline_s`` an operation, and
    sends what ``backends`` grants.

    Owned by the event loop. ``attempt_timeout_s`` is the bound that the wrapped origin itself
    keeps for one request; where the deadline is shorter, the deadline is kept here. A stream
    (``put_stream``, pages of a listing after the first) is not bounded by the deadline.
    """

    def __init__(
        self,
        origin: Origin,
        *,
        endpoint: Endpoint,
        backends: Backends,
        clock: Clock,
        policy: RetryPolicy,
        attempt_timeout_s: float,
        rng: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        # Constant after construction
        self._origin = origin
        self.endpoint = endpoint
        endpoint.attach(origin)
        self.counters = OriginCounters()
        self._backends = backends
        self._limits = backends.of(url=origin.url, server=endpoint, scope=self._scope())
        self._clock = clock
        self._policy = policy
        self._first_is_bounded = attempt_timeout_s <= policy.deadline_s
        self._rng = rng
        self._sleep = sleep

    @property
    def url(self) -> str:
        return self._origin.url

    @property
    def capabilities(self) -> OriginCapabilities:
        return self._origin.capabilities

    @property
    def raw(self) -> Origin:
        """The origin itself, for a probe that wants the first answer."""
        return self._origin

    @property
    def has_own_endpoint(self) -> bool:
        """Whether the server is not the cloud's own: its identity then ends with it, behind the
        account that an Azure identity has in any case."""
        scheme, _, rest = self.url.partition("://")
        return rest.count("@") > (1 if scheme == "az" else 0)

    def _scope(self) -> str:
        """Return what the server limits as a whole: S3 and GCS a bucket, Azure an account, which
        is its endpoint, and of a server of its own nobody knows."""
        by_bucket = self.url.startswith(("s3://", "gs://")) and not self.has_own_endpoint
        return self.url if by_bucket else f"{ENDPOINT}{self.endpoint.name}"

    @property
    def answered_s(self) -> float:
        """When its server last answered anybody (the clock's seconds), 0.0 where never."""
        return self.endpoint.answered_s

    def snapshot(self) -> dict[str, Any]:
        """Return counters and breaker for the status document. ``breaker.since_s`` is for how long
        the endpoint has not answered, 0.0 while it is closed; ``limits`` are the BackendStatus of
        what its requests must be granted by, which other origins may share."""
        counters, endpoint = self.counters, self.endpoint
        return {
            "requests": counters.by_method(),
            "bytes_read": counters.bytes_read,
            "bytes_written": counters.bytes_written,
            "errors": counters.errors,
            "throttled": counters.throttles,
            "retries": counters.retries,
            "rejected": counters.rejected,
            "settled": counters.settled,
            "breaker": {
                "endpoint": endpoint.name,
                "mode": str(endpoint.mode),
                "since_s": endpoint.down_s,
            },
            "limits": [msgspec.to_builtins(one) for one in self._limits.report()],
        }

    def __repr__(self) -> str:
        return f"ResilientOrigin({self._origin!r})"

    async def head(self, key: str) -> ObjectInfo:
        counters = self.counters

        async def once() -> ObjectInfo:
            counters.requests_head += 1
            return await self._origin.head(key)

        counters.calls += 1
        return await self._safely(once, Ask(Kind.GET, key))

    async def get(
        self, key: str, *, start: int = 0, end: int | None = None, token: str | None = None
    ) -> Fetched:
        counters = self.counters

        async def once() -> Fetched:
            counters.requests_get += 1
            sent_s = self._clock.now()
            fetched = await self._origin.get(key, start=start, end=end, token=token)
            self.endpoint.throughput.received(len(fetched.data), sent_s=sent_s)
            return fetched

        counters.calls += 1
        announced = 0 if end is None else end - start
        fetched = await self._safely(
            once, Ask(Kind.GET, key, announced), moved=lambda found: len(found.data)
        )
        counters.bytes_read += len(fetched.data)
        return fetched

    async def list(
        self, prefix: str, *, recursive: bool, limit: int | None = None, position: str = ""
    ) -> AsyncIterator[ListPage]:
        """Yield pages. The first is retried, and each that follows one which told a position."""
        counters = self.counters
        pages: AsyncIterator[ListPage] | None = None
        left = limit

        async def following() -> ListPage | None:
            nonlocal pages
            if pages is None:
                pages = self._origin.list(
                    prefix, recursive=recursive, limit=left, position=position
                )
            counters.requests_list += 1
            try:
                return await anext(pages, None)
            except BaseException:
                pages = None  # what has raised would end now, as if that had been all
                raise

        counters.calls += 1
        ask = Ask(Kind.LIST, prefix)
        page = await self._safely(following, ask)
        try:
            while page is not None:
                yield page
                if left is not None:
                    left -= len(page.objects) + len(page.prefixes)
                    if left <= 0:
                        return
                if position := page.position:
                    page = await self._safely(following, ask)
                else:
                    page = await self._attempt(
                        following, self._call(), ask, bounded=False, is_read=True
                    )
        finally:
            if pages is not None:
                await _close(pages)

    async def put(
        self, key: str, data: Buffer, *, condition: Condition = Always(), write_id: str = ""
    ) -> ObjectInfo:
        own_id = write_id or secrets.token_hex(8)
        counters = self.counters

        async def once() -> ObjectInfo:
            counters.requests_put += 1
            return await self._origin.put(key, data, condition=condition, write_id=own_id)

        async def settle() -> ObjectInfo | None:
            return await self._settle_put(key, condition, own_id)

        counters.calls += 1
        ask = Ask(Kind.PUT, key, memoryview(data).nbytes)
        info = await self._once(once, settle, ask)
        counters.bytes_written += info.size_bytes
        return info

    async def put_stream(
        self,
        key: str,
        chunks: AsyncIterator[Buffer],
        *,
        condition: Condition = Always(),
        write_id: str = "",
    ) -> ObjectInfo:
        own_id = write_id or secrets.token_hex(8)
        counters = self.counters

        async def once() -> ObjectInfo:
            counters.requests_put += 1
            paced = self._paced(key, chunks)
            return await self._origin.put_stream(key, paced, condition=condition, write_id=own_id)

        counters.calls += 1
        try:
            info = await self._attempt(once, self._call(), Ask(Kind.PUT, key), bounded=False)
        except OriginThrottled:
            raise  # refused, so nothing is visible; the chunks cannot be asked for again
        except OriginUnavailable as error:
            found = await self._head_or_none(key, error)
            if found is None or found.write_id != own_id:
                raise _unknown(error, f"{self.url}/{key}") from error
            counters.settled += 1
            info = found
        counters.bytes_written += info.size_bytes
        return info

    async def _paced(self, key: str, chunks: AsyncIterator[Buffer]) -> AsyncIterator[Buffer]:
        """Let a stream's bytes, and a request for each part that they fill, wait for the limits;
        the request that began it has been granted."""
        part_bytes = 0
        async for chunk in chunks:
            count_bytes = memoryview(chunk).nbytes
            part_bytes += count_bytes
            kind = Kind.PUT if part_bytes > PART_BYTES else None
            part_bytes %= PART_BYTES
            ask = Ask(kind, key, count_bytes)
            await self._limits.charged(ask, patience_s=self._policy.deadline_s)
            yield chunk

    async def delete(self, key: str, *, may_repeat: bool = True) -> None:
        counters = self.counters

        async def once() -> bool:
            counters.requests_delete += 1
            await self._origin.delete(key, may_repeat=may_repeat)
            return True

        async def settle() -> bool | None:
            if not may_repeat:
                raise _unknown(None, f"{self.url}/{key}")
            # Where the object is still (or again) there, a second delete does what was asked.
            return None if await self._head_or_none(key, None) else True

        counters.calls += 1
        await self._once(once, settle, Ask(Kind.PUT, key))

    async def copy(self, source_key: str, target_key: str) -> None:
        counters = self.counters

        async def once() -> bool:
            counters.requests_copy += 1
            await self._origin.copy(source_key, target_key)
            return True

        async def settle() -> None:
            return None  # copying once more over whatever is there is what was asked

        counters.calls += 1
        await self._once(once, settle, Ask(Kind.PUT, target_key))

    async def refuses_wrong_token(self, key: str, token: str) -> bool:
        """Return whether the server itself refuses a GET under a false condition; false where the
        wrapped origin cannot tell."""
        asks = getattr(self._origin, "refuses_wrong_token", None)
        if asks is None:
            return False

        async def once() -> bool:
            self.counters.requests_get += 1
            return bool(await asks(key, token))

        return await self._safely(once, Ask(Kind.GET, key))

    async def close(self) -> None:
        self._backends.forget(self._limits)
        self.endpoint.rest()
        await self._origin.close()

    def _call(self) -> _Call:
        return _Call(self._backends.arrive(), self._clock.now())

    async def _safely(
        self,
        once: Callable[[], Awaitable[_T]],
        ask: Ask,
        *,
        moved: Callable[[_T], int] | None = None,
    ) -> _T:
        """Attempt a read until it succeeds, fails for good or the deadline is near. ``moved``
        tells the bytes of an answer."""
        call = self._call()
        while True:
            try:
                return await self._attempt(once, call, ask, moved=moved, is_read=True)
            except OriginUnavailable as error:
                await self._pause_or_raise(error, call)

    async def _once(
        self,
        once: Callable[[], Awaitable[_T]],
        settle: Callable[[], Awaitable[_T | None]],
        ask: Ask,
    ) -> _T:
        """Attempt a write; repeat it only where the server refused it unread (OriginThrottled) or
        ``settle`` found that repeating is right (None). ``settle`` returns the result where the
        lost attempt had succeeded, and raises OriginUnavailable where nobody can know."""
        call = self._call()
        path = f"{self.url}/{ask.key}"
        lost = False
        while True:
            sent_before = call.attempts
            try:
                return await self._attempt(once, call, ask)
            except OriginThrottled as error:
                await self._pause_or_raise(error, call)
            except PreconditionFailed as error:
                if not lost:
                    raise
                result = await settle()
                if result is None:
                    raise _unknown(error, path) from error
                return result
            except OriginUnavailable as error:
                if call.attempts == sent_before and not lost:
                    raise  # the breaker refused: nothing was sent
                lost = True
                result = await settle()
                if result is not None:
                    return result
                try:
                    await self._pause_or_raise(error, call)
                except OriginUnavailable:
                    raise _unknown(error, path) from error

    async def _settle_put(self, key: str, condition: Condition, write_id: str) -> ObjectInfo | None:
        path = f"{self.url}/{key}"
        if not self.capabilities.write_id:
            if isinstance(condition, Always):
                return None
            raise _unknown(None, path)
        found = await self._head_or_none(key, None)
        if found is not None and found.write_id == write_id:
            self.counters.settled += 1
            return found
        match condition:
            case Always():
                repeat = True
            case IfAbsent(may_repeat):
                repeat = found is None and may_repeat
            case IfVersion(token):
                repeat = found is not None and found.token == token
        if not repeat:
            # Another's object is there, or none: ours was refused, or stood there for a moment.
            raise _unknown(None, path)
        return None

    async def _head_or_none(self, key: str, cause: Exception | None) -> ObjectInfo | None:
        """HEAD to settle a write; a HEAD that fails too leaves the outcome unknown."""
        try:
            return await self.head(key)
        except NotFound:
            return None
        except OriginUnavailable as error:
            raise _unknown(cause or error, f"{self.url}/{key}") from error

    async def _attempt(
        self,
        once: Callable[[], Awaitable[_T]],
        call: _Call,
        ask: Ask,
        *,
        moved: Callable[[_T], int] | None = None,
        bounded: bool = True,
        is_read: bool = False,
    ) -> _T:
        """Send one request through limits and breaker, and tell both how it went."""
        endpoint = self.endpoint
        grant = await self._granted(call, ask)
        try:
            refused = endpoint.refusal(self.url)
            if refused is not None:
                self.counters.rejected += 1
                raise refused
            call.attempts += 1
            bounded = bounded and not (call.attempts == 1 and self._first_is_bounded)
            try:
                with endpoint.request(is_read=is_read):
                    result = await (self._bounded(once, call) if bounded else once())
            except OriginUnavailable as error:
                self._count_failure(error, call, grant)
                raise
            except TiercacheError:
                endpoint.answered()  # if only to refuse
                grant.answered()
                raise
            endpoint.answered()
            grant.answered()
            if moved is not None:
                grant.transferred(moved(result))
            return result
        finally:
            grant.release()

    async def _granted(self, call: _Call, ask: Ask) -> Grant:
        """Wait until the attempt may leave."""
        queued_s = self._clock.now()
        try:
            grant = await self._limits.admitted(
                ask,
                arrived=call.arrived,
                since_s=call.asked_s,
                patience_s=self._policy.deadline_s,
            )
        except OriginThrottled:
            call.is_over = True
            raise
        now_s = self._clock.now()
        if call.attempts == 0:
            call.first_s = call.started_s = now_s
        else:
            call.started_s += now_s - queued_s
        return grant

    async def _bounded(self, once: Callable[[], Awaitable[_T]], call: _Call) -> _T:
        left_s = remaining_s(self._clock.now() - call.started_s, policy=self._policy)
        try:
            async with asyncio.timeout(max(left_s, 0.001)):
                return await once()
        except TimeoutError as error:
            raise OriginUnavailable(
                f"no answer within {self._policy.deadline_s:g} s", path=self.url
            ) from error

    def _count_failure(self, error: OriginUnavailable, call: _Call, grant: Grant) -> None:
        call.is_held = False
        if isinstance(error, OriginThrottled):
            self.counters.throttles += 1
            self.endpoint.throttled(error)
            call.is_held = grant.throttled(error)
        else:
            self.counters.errors += 1
            self.endpoint.failed(error)

    async def _pause_or_raise(self, error: OriginUnavailable, call: _Call) -> None:
        """Wait before the next attempt; raise ``error`` where there is none. A throttled one that
        the limits hold back waits there, with its place in the queue."""
        if call.attempts == 0 or call.is_over or self.endpoint.is_offline:
            raise error
        if call.is_held:
            if self._clock.now() - call.first_s >= self._policy.deadline_s:
                raise error
            self.counters.retries += 1
            return
        wait_s = next_delay_s(
            call.attempts,
            self._rng(),
            elapsed_s=self._clock.now() - call.started_s,
            policy=self._policy,
            retry_after_s=error.retry_after_s if isinstance(error, OriginThrottled) else 0.0,
        )
        if wait_s is None:
            raise error
        self.counters.retries += 1
        await self._sleep(wait_s)


def _unknown(error: Exception | None, path: str) -> OriginUnavailable:
    cause = f": {error.message}" if isinstance(error, TiercacheError) else ""
    return OriginUnavailable(
        f"the answer to a write was lost and its outcome is unknown{cause}",
        path=path,
        remedy="look at the object before writing again",
    )


async def _close(pages: AsyncIterator[ListPage]) -> None:
    """Close a listing that is an async generator, so that its request ends now."""
    aclose = getattr(pages, "aclose", None)
    if aclose is not None:
        await aclose()
