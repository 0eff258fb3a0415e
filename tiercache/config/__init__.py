"""From files, environment and arguments to ``Settings``, with the place of every value.

Later sources override earlier ones key by key: /etc/tiercache/config.toml,
$XDG_CONFIG_HOME/tiercache/config.toml, the file that TIERCACHE_CONFIG names,
TIERCACHE_SECTION__KEY, arguments. ``docs/configuration.md`` is generated from ``schema``.

``loading`` is where to begin. Nothing is imported here: an agent without a policy reads no file.
"""
