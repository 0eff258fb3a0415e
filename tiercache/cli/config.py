"""config show, path, check, schema."""

from __future__ import annotations

from typing import Annotated

import typer

from tiercache.cli import session
from tiercache.cli.names import JSON
from tiercache.cli.output import out, out_json, say


def show(
    ctx: typer.Context,
    origin: Annotated[
        bool, typer.Option("--origin", help="Say where each value came from.")
    ] = False,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Print the configuration in force, as TOML that can be read again."""
    from tiercache.config.rendering import show as shown

    loaded = session.loaded_config(ctx)
    out(shown(loaded, with_origin=origin, as_json=as_document).rstrip("\n"))
    return 0


def path(ctx: typer.Context, as_document: Annotated[bool, JSON] = False) -> int:
    """Print the configuration files that are read, weakest first; nothing where there is none."""
    files = session.loaded_config(ctx).files
    if as_document:
        out_json(list(files))
        return 0
    for file in files:
        out(file)
    if not files:
        say("no configuration file: defaults, environment and arguments apply")
    return 0


def check(ctx: typer.Context, as_document: Annotated[bool, JSON] = False) -> int:
    """Check the configuration; exit 4 and the place of the first mistake where it has one."""
    loaded = session.loaded_config(ctx)
    count = len(loaded.settings.mounts)
    if as_document:
        out_json({"files": list(loaded.files), "mounts": count})
    else:
        out(f"the configuration is valid: {count} mounts, from {', '.join(loaded.files) or 'none'}")
    return 0


def schema(as_document: Annotated[bool, JSON] = False) -> int:
    """Print every key with its type, default and meaning."""
    from tiercache.config.document import document
    from tiercache.config.schema import SECTIONS

    if not as_document:
        out(document().rstrip("\n"))
        return 0
    out_json(
        [
            {
                "section": section.name,
                "key": field.key,
                "kind": str(field.kind),
                "choices": list(field.choices),
                "required": field.required,
                "meaning": field.meaning,
            }
            for section in SECTIONS
            for field in section.fields
        ]
    )
    return 0
