"""Retries, deadline, in-flight limit and endpoint around any origin.

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

from tiercache.clock import Clock
from tiercache.errors import (
    NotFound,
    OriginThrottled,
    OriginUnavailable,
    PreconditionFailed,
    TiercacheError,
)
from tiercache.model import ObjectInfo
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

_T = TypeVar("_T")


class _Call:
    """One operation with its attempts. ``started_s`` is when the first one left the gate's
    queue: waiting for room is back-pressure, not the origin's slowness."""

    __slots__ = ("attempts", "started_s")

    def __init__(self) -> None:
        self.attempts = 0
        self.started_s = 0.0


class ResilientOrigin:
    """An origin that retries what is safe to retry, within ``policy.deadline_s`` an operation.

    Owned by the event loop. ``attempt_timeout_s`` is the bound that the wrapped origin itself
    keeps for one request; where the deadline is shorter, the deadline is kept here. A stream
    (``put_stream``, pages of a listing after the first) is not bounded by the deadline.
    """

    def __init__(
        self,
        origin: Origin,
        *,
        endpoint: Endpoint,
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

    @property
    def answered_s(self) -> float:
        """When its server last answered anybody (the clock's seconds), 0.0 where never."""
        return self.endpoint.answered_s

    def snapshot(self) -> dict[str, Any]:
        """Return counters and breaker for the status document. ``breaker.since_s`` is for how long
        the endpoint has not answered, 0.0 while it is closed."""
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
        }

    def __repr__(self) -> str:
        return f"ResilientOrigin({self._origin!r})"

    async def head(self, key: str) -> ObjectInfo:
        counters = self.counters

        async def once() -> ObjectInfo:
            counters.requests_head += 1
            return await self._origin.head(key)

        counters.calls += 1
        return await self._safely(once)

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
        fetched = await self._safely(once)
        counters.bytes_read += len(fetched.data)
        return fetched

    async def list(
        self, prefix: str, *, recursive: bool, limit: int | None = None
    ) -> AsyncIterator[ListPage]:
        """Yield pages; retried until the first page came, since a stream cannot be resumed."""
        counters = self.counters
        pages: AsyncIterator[ListPage]

        async def first() -> ListPage | None:
            nonlocal pages
            pages = self._origin.list(prefix, recursive=recursive, limit=limit)
            return await following()

        async def following() -> ListPage | None:
            counters.requests_list += 1
            return await anext(pages, None)

        counters.calls += 1
        page = await self._safely(first)
        try:
            while page is not None:
                yield page
                page = await self._attempt(following, _Call(), bounded=False, is_read=True)
        finally:
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
        info = await self._once(once, settle, path=f"{self.url}/{key}")
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
            return await self._origin.put_stream(key, chunks, condition=condition, write_id=own_id)

        counters.calls += 1
        try:
            info = await self._attempt(once, _Call(), bounded=False)
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

    async def delete(self, key: str, *, may_repeat: bool = True) -> None:
        counters = self.counters
        path = f"{self.url}/{key}"

        async def once() -> bool:
            counters.requests_delete += 1
            await self._origin.delete(key, may_repeat=may_repeat)
            return True

        async def settle() -> bool | None:
            if not may_repeat:
                raise _unknown(None, path)
            # Where the object is still (or again) there, a second delete does what was asked.
            return None if await self._head_or_none(key, None) else True

        counters.calls += 1
        await self._once(once, settle, path=path)

    async def copy(self, source_key: str, target_key: str) -> None:
        counters = self.counters

        async def once() -> bool:
            counters.requests_copy += 1
            await self._origin.copy(source_key, target_key)
            return True

        async def settle() -> None:
            return None  # copying once more over whatever is there is what was asked

        counters.calls += 1
        await self._once(once, settle, path=f"{self.url}/{target_key}")

    async def refuses_wrong_token(self, key: str, token: str) -> bool:
        """Return whether the server itself refuses a GET under a false condition; false where the
        wrapped origin cannot tell."""
        asks = getattr(self._origin, "refuses_wrong_token", None)
        if asks is None:
            return False

        async def once() -> bool:
            self.counters.requests_get += 1
            return bool(await asks(key, token))

        return await self._safely(once)

    async def close(self) -> None:
        self.endpoint.rest()
        await self._origin.close()

    async def _safely(self, once: Callable[[], Awaitable[_T]]) -> _T:
        """Attempt a read until it succeeds, fails for good or the deadline is near."""
        call = _Call()
        while True:
            try:
                return await self._attempt(once, call, is_read=True)
            except OriginUnavailable as error:
                await self._pause_or_raise(error, call)

    async def _once(
        self,
        once: Callable[[], Awaitable[_T]],
        settle: Callable[[], Awaitable[_T | None]],
        *,
        path: str,
    ) -> _T:
        """Attempt a write; repeat it only where the server refused it unread (OriginThrottled) or
        ``settle`` found that repeating is right (None). ``settle`` returns the result where the
        lost attempt had succeeded, and raises OriginUnavailable where nobody can know."""
        call = _Call()
        lost = False
        while True:
            sent_before = call.attempts
            try:
                return await self._attempt(once, call)
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
        *,
        bounded: bool = True,
        is_read: bool = False,
    ) -> _T:
        """Send one request through gate and breaker, and tell the endpoint how it went."""
        endpoint = self.endpoint
        gate = endpoint.gate
        await gate.acquire()
        try:
            refused = endpoint.refusal(self.url)
            if refused is not None:
                self.counters.rejected += 1
                raise refused
            call.attempts += 1
            if call.attempts == 1:
                call.started_s = self._clock.now()
                bounded = bounded and not self._first_is_bounded
            try:
                with endpoint.request(is_read=is_read):
                    result = await (self._bounded(once, call) if bounded else once())
            except OriginUnavailable as error:
                self._count_failure(error)
                raise
            except TiercacheError:
                endpoint.answered()  # if only to refuse
                raise
            endpoint.answered()
            return result
        finally:
            gate.release()

    async def _bounded(self, once: Callable[[], Awaitable[_T]], call: _Call) -> _T:
        left_s = remaining_s(self._clock.now() - call.started_s, policy=self._policy)
        try:
            async with asyncio.timeout(max(left_s, 0.001)):
                return await once()
        except TimeoutError as error:
            raise OriginUnavailable(
                f"no answer within {self._policy.deadline_s:g} s", path=self.url
            ) from error

    def _count_failure(self, error: OriginUnavailable) -> None:
        if isinstance(error, OriginThrottled):
            self.counters.throttles += 1
            self.endpoint.throttled(error)
        else:
            self.counters.errors += 1
            self.endpoint.failed(error)

    async def _pause_or_raise(self, error: OriginUnavailable, call: _Call) -> None:
        """Wait before the next attempt; raise ``error`` where there is none."""
        if call.attempts == 0 or self.endpoint.is_offline:
            raise error
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
