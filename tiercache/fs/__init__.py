"""The fsspec filesystem ``tiercache://``: all mounts behind the interface that libraries speak.

import fsspec

with fsspec.open("tiercache://imagenet/train-0001.tar") as file:
    header = file.read(512)
"""

from tiercache.fs.filesystem import TierCacheFileSystem

__all__ = ["TierCacheFileSystem"]
