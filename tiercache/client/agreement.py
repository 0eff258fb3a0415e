"""What a client says to an agent that was started with other settings than its own."""

from __future__ import annotations

import logging

from tiercache import wire
from tiercache.errors import ConfigError
from tiercache.policy import agreement
from tiercache.settings import Settings

log = logging.getLogger("tiercache.client")


def accept(settings: Settings, welcome: wire.Welcome) -> None:
    """Raise ConfigError where the agent does not keep the limits that ``settings`` name, and warn
    where it does otherwise what the client can do without."""
    if welcome.cache is None or welcome.agent is None:
        return  # an older agent, which does not say
    refused = agreement.refused(settings.cache, welcome.cache)
    if welcome.metadata is not None:
        refused += agreement.refused_metadata(settings.metadata, welcome.metadata)
    if welcome.qos is not None:
        refused += agreement.refused_qos(settings.qos, welcome.qos)
    if refused:
        raise ConfigError("; ".join(refused), path=settings.cache.dir, remedy=agreement.REMEDY)
    for sentence in agreement.ignored(settings.agent, welcome.agent):
        log.warning("%s; %s", sentence, agreement.REMEDY)
