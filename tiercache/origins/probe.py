"""What an origin honours, seen rather than assumed."""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import replace

from tiercache.errors import NotFound, PreconditionFailed, Unsupported
from tiercache.ports import Condition, IfAbsent, IfVersion, Origin, OriginCapabilities

_WRONG_TOKEN = '"00000000000000000000000000000000"'


async def probe(
    origin: Origin, *, key: str = "", prefix: str = "", probe_writes: bool = False
) -> OriginCapabilities:
    """Return what this origin honours, asking it.

    ``conditional_get`` comes from a GET under a wrong condition, of ``key`` or of the first
    object below ``prefix``; where there is none, what is assumed stays. Only with
    ``probe_writes`` is anything written: one small object below ``prefix``, removed again, to
    see whether a second ``IfAbsent`` and an ``IfVersion`` of another version are refused, that of
    the right one is not, and the write id comes back.
    Raises what the origin raises: an unreachable one is not one without capabilities.
    """
    found = origin.capabilities
    key = key or await _any_key(origin, prefix)
    if key:
        with contextlib.suppress(NotFound):  # removed since it was named: nothing learnt
            found = replace(found, conditional_get=await _honours_if_match(origin, key))
    if probe_writes:
        found = await _probe_writes(origin, prefix, found)
    return found


async def _any_key(origin: Origin, prefix: str) -> str:
    async for page in origin.list(prefix, recursive=True, limit=1):
        for info in page.objects:
            return info.key
    return ""


async def _honours_if_match(origin: Origin, key: str) -> bool:
    """Whether the server itself refuses; the adapter refuses in any case, but then has read the
    bytes already. An adapter that can tell says so by ``refuses_wrong_token``."""
    asks = getattr(origin, "refuses_wrong_token", None)
    if asks is None:
        return False
    return bool(await asks(key, _WRONG_TOKEN))


async def _probe_writes(
    origin: Origin, prefix: str, found: OriginCapabilities
) -> OriginCapabilities:
    key = f"{prefix}.tiercache-probe-{secrets.token_hex(8)}"
    written_id = secrets.token_hex(8)
    try:
        await origin.put(key, b"probe", condition=IfAbsent(), write_id=written_id)
        refuses = not await _takes(origin, key, IfAbsent())
        written = await origin.head(key)
        keeps = written.write_id == written_id or not refuses
        replaces = await _replaces(origin, key, written.token)
        target = f"{key}-copy"
        try:
            await origin.copy(key, target)
            copies = True
        except (Unsupported, NotFound):
            copies = False
        else:
            await origin.delete(target)
        return replace(
            found,
            conditional_put=refuses,
            conditional_replace=replaces,
            write_id=keeps,
            copy=copies,
        )
    except Unsupported:
        return replace(
            found, conditional_put=False, conditional_replace=False, write_id=False, copy=False
        )
    finally:
        await origin.delete(key)


async def _replaces(origin: Origin, key: str, token: str) -> bool:
    """Whether a write over another version is refused, and one over this version is not."""
    try:
        if await _takes(origin, key, IfVersion(_WRONG_TOKEN)):
            return False
        return await _takes(origin, key, IfVersion(token))
    except Unsupported:
        return False


async def _takes(origin: Origin, key: str, condition: Condition) -> bool:
    try:
        await origin.put(key, b"probe", condition=condition, write_id=secrets.token_hex(8))
    except PreconditionFailed:
        return False
    return True
