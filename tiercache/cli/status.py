"""status: everything that the agent knows of itself, for people and for programs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiercache.cli import session
from tiercache.cli.names import JSON
from tiercache.cli.output import on_terminal, out, out_json, say, table
from tiercache.units import format_bytes, format_duration

if TYPE_CHECKING:
    from tiercache.settings import Settings

# Identities that wait, named in one line; tiercache qos top has all.
SHOWN_WAITING = 5
CLEAR = "\x1b[H\x1b[2J"


def read_status(settings: Settings) -> dict[str, Any] | None:
    """Return the running agent's status document; None where none runs, and none is started."""
    import msgspec

    from tiercache import wire

    link = session.running_agent(settings)
    if link is None:
        return None
    try:
        document: dict[str, Any] = msgspec.json.decode(
            link.request(wire.StatusQuery(), wire.Status).body
        )
    finally:
        link.close()
    return document


def status(
    ctx: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again and again.")] = False,
    interval: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="How often with --watch.")
    ] = 2.0,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Show cache, mounts, origins, jobs, pins and clients of the running agent. Starts none."""
    settings = session.settings(ctx)
    while True:
        document = read_status(settings)
        if watch and on_terminal() and not as_document:
            out(CLEAR.rstrip("\n"))
        _print(document, settings, as_document)
        if not watch:
            return 0
        time.sleep(interval)


def _print(document: dict[str, Any] | None, settings: Settings, as_document: bool) -> None:
    if as_document:
        out_json(
            {"running": document is not None, "cache_dir": settings.cache.dir} | (document or {})
        )
    elif document is None:
        say(f"no agent runs in {settings.cache.dir}; the first use of the cache starts one")
    else:
        print_status(document)


def print_status(document: dict[str, Any]) -> None:
    """Print the document as tables, leaving out what is empty."""
    _print_head(document)
    _print_mounts(document)
    _print_origins(document)
    _print_endpoints(document)
    if document["jobs"]:
        from tiercache.cli.prefetch import print_jobs

        out("")
        print_jobs(document["jobs"])
    if document["pins"]:
        out("")
        table(("pinned",), [(path,) for path in document["pins"]])
    if document["clients"]:
        rows = [
            (str(c["pid"]), c["version"] or "-", str(c["requests"])) for c in document["clients"]
        ]
        out("")
        table(("client", "version", "requests"), rows, right=(2,))


def _print_head(document: dict[str, Any]) -> None:
    agent, cache, memory = document["agent"], document["cache"], document["memory"]
    capacity, used = cache["capacity_bytes"], cache["used_bytes"]
    rows = [
        ("agent", f"{agent['version']}, process {agent['pid']}, format {agent['format_version']}, "
         f"wire {agent['wire_version']}"),
        ("directory", cache["dir"]),
        ("capacity", format_bytes(capacity)),
        ("used", f"{format_bytes(used)} ({100 * used // capacity if capacity else 0} %), "
         f"index {format_bytes(cache['index_bytes'])}, "
         f"pinned {format_bytes(cache['pinned_bytes'])}"),
        ("extents", f"{cache['extents']}, of these packs {cache['packs']}"),
        ("evicted", f"{cache['evicted_extents']} extents, {format_bytes(cache['evicted_bytes'])}"),
        ("memory", f"{format_bytes(memory['held_bytes'])} of "
         f"{format_bytes(memory['limit_bytes'])}"),
        ("corrupt pages", str(cache["corrupt_pages"])),
        *_metadata(document["metadata"]),
        # An agent of a version before this one tells of none.
        *qos_rows(document.get("qos", {})),
    ]  # fmt: skip
    if cache["device_problem"]:
        rows.append(("DEVICE", f"{cache['device_problem']} ({cache['device_failures']} failures)"))
    if agent["internal_errors"] or agent["dropped_peers"]:
        rows.append(
            (
                "errors",
                f"{agent['internal_errors']} internal, {agent['dropped_peers']} dropped peers",
            )
        )
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        out(f"{name:<{width}}  {value}")


def _metadata(metadata: dict[str, Any]) -> list[tuple[str, str]]:
    if not metadata["url"]:
        return []
    text = f"{metadata['url']}, {metadata['state']}, commit {metadata['sequence']}"
    if metadata["pending_keys"]:
        text += f", {metadata['pending_keys']} records wait"
    rows = [("metadata", text)]
    if metadata["problem"]:
        rows.append(("METADATA", metadata["problem"]))
    return rows


def qos_rows(qos: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what is to be said of the QoS policy: nothing where there is none."""
    rows = []
    if qos.get("generation"):
        identities = qos["identities"]
        waiting = [one["identity"] for one in identities if one["waiting"]]
        text = f"generation {qos['generation']}, {len(identities)} identities"
        if waiting:
            text += f"; {', '.join(waiting[:SHOWN_WAITING])} "
            text += "wait" if len(waiting) > 1 else "waits"
        rows.append(("qos", text))
    if qos.get("error"):
        # Several mistakes are several lines; tiercache qos show has them all.
        rows.append(("QOS", qos["error"].partition("\n")[0]))
    return rows


def _print_mounts(document: dict[str, Any]) -> None:
    reads = document["reads"]
    mounts = {mount["path"]: mount for mount in document["mounts"]}
    rows = []
    for path in sorted(mounts.keys() | reads.keys()):
        counts = reads.get(path, {})
        mount = mounts.get(path)
        rows.append(
            (
                path,
                mount["origin"] if mount else "(implicit)",
                mount["consistency"] if mount else "-",
                str(counts.get("hits", 0)),
                format_bytes(counts.get("hit_bytes", 0)),
                format_bytes(counts.get("filled_bytes", 0)),
                format_bytes(counts.get("read_through_bytes", 0)),
            )
        )
    if rows:
        out("")
        header = ("mount", "origin", "consistency", "hits", "hit", "filled", "read through")
        table(header, rows, right=(3, 4, 5, 6))


def _print_origins(document: dict[str, Any]) -> None:
    rows = []
    for origin in document["origins"]:
        requests, breaker = origin.get("requests", {}), origin.get("breaker", {})
        rows.append(
            (
                origin["url"],
                str(sum(requests.values())),
                str(origin.get("errors", "-")),
                str(origin.get("retries", "-")),
                str(origin.get("throttled", "-")),
                format_bytes(origin.get("bytes_read", 0)),
                format_bytes(origin.get("bytes_written", 0)),
                breaker.get("mode", "-"),
            )
        )
    if rows:
        out("")
        header = (
            "origin", "requests", "errors", "retries", "throttled", "read", "written", "breaker",
        )  # fmt: skip
        table(header, rows, right=(1, 2, 3, 4, 5, 6))


def _print_endpoints(document: dict[str, Any]) -> None:
    rows = []
    # An agent of a version before this one tells of none.
    for endpoint in document.get("endpoints", ()):
        probe = f"in {format_duration(endpoint['next_probe_s'])}"
        rows.append(
            (
                endpoint["name"],
                endpoint["state"],
                format_duration(endpoint["since_s"]),
                probe if endpoint["state"] == "offline" else "-",
                str(endpoint["pending_revalidations"]),
                endpoint["last_error"] or "-",
            )
        )
    if rows:
        out("")
        header = ("endpoint", "state", "for", "next probe", "to revalidate", "last error")
        table(header, rows, right=(2, 4))
