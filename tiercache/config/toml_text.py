"""TOML to tables. Whatever the text, the only error is ConfigError."""

from __future__ import annotations

import tomllib

from tiercache.errors import ConfigError


def parse_toml(text: str, file: str) -> dict[str, object]:
    """Return the tables of a file. Raises ConfigError naming file and line."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        line = message.partition("at line ")[2].partition(",")[0]
        place = f"{file}:{line}" if line.isdecimal() else f"{file}:{text.count(chr(10)) + 1}"
        raise ConfigError(f"not TOML: {message}", path=place) from None
    except (ValueError, RecursionError) as error:
        # Integers of thousands of digits, and arrays within hundreds of arrays.
        raise ConfigError(f"not TOML: {error}", path=file) from None
