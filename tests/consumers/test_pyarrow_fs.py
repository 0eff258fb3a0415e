"""pyarrow's own suite for filesystems, unmodified: every test of theirs that takes ``fs``.

Their suite knows that an object store behind fsspec has no empty directories: it compares the
filesystem's type name with that of s3fs, and then expects that ``create_dir`` leaves nothing, or
calls ``pytest.xfail``. For those tests alone ours bears that name.
"""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import dataset, parquet
from pyarrow import fs as arrow
from pyarrow.tests import test_fs as theirs
from pyarrow.tests.conftest import (  # noqa: F401  # fixtures of their tests
    builtin_pickle,
    cloudpickle,
    pickle_module,
)
from pyarrow.tests.test_fs import (  # noqa: F401  # fixtures of their tests
    allow_append_to_file,
    allow_move_dir,
    fs,
    pathfn,
    pickle_with_and_without_subtree_filesystem,
)

from tests.consumers.conftest import Tier

# What they expect of s3fs is met: no directory without a file.
WITHOUT_EMPTY_DIRECTORIES = {"test_get_file_info", "test_get_file_info_with_selector"}
# These make an empty directory and look for it; for s3fs they are expected to fail.
NEED_EMPTY_DIRECTORIES = {
    "test_filesystem_is_functional_after_pickling",
    "test_create_dir",
    "test_delete_dir",
    "test_delete_dir_with_explicit_subdir",
    "test_delete_dir_contents",
}
# Where appending is not allowed they expect the error of pyarrow's own C++ filesystems, which no
# filesystem in Python raises; ours is tested below.
NOT_FOR_PYTHON_FILESYSTEMS = {"test_open_append_stream"}


class NamedAsS3fs(arrow.FSSpecHandler):  # type: ignore[misc]  # pyarrow is untyped
    def get_type_name(self) -> str:
        return "fsspec+('s3', 's3a')"


@pytest.fixture
def filesystem_config(
    request: pytest.FixtureRequest, flat_tier: Tier, new_path: Callable[[], str]
) -> dict[str, Any]:
    named = request.node.originalname in WITHOUT_EMPTY_DIRECTORIES | NEED_EMPTY_DIRECTORIES
    handler = (NamedAsS3fs if named else arrow.FSSpecHandler)(flat_tier.filesystem())
    return {
        "fs": arrow.PyFileSystem(handler),
        "pathfn": (new_path() + "/").__add__,
        "allow_move_dir": False,
        "allow_append_to_file": False,
    }


THEIRS = {
    name: test
    for name, test in vars(theirs).items()
    if name.startswith("test_")
    and "fs" in inspect.signature(test).parameters
    and name not in NOT_FOR_PYTHON_FILESYSTEMS
}
globals().update(THEIRS)


def test_theirs_are_found() -> None:
    assert len(THEIRS) >= 18
    assert set(THEIRS) >= (WITHOUT_EMPTY_DIRECTORIES | NEED_EMPTY_DIRECTORIES)


def test_appending_is_refused(
    fs: arrow.PyFileSystem,  # noqa: F811  # the fixture
    pathfn: Callable[[str], str],  # noqa: F811  # as above
) -> None:
    with pytest.raises(NotImplementedError, match="cannot be changed in place"):
        fs.open_append_stream(pathfn("file"))


def test_directories_with_files_and_pickling(
    fs: arrow.PyFileSystem,  # noqa: F811  # the fixture
    pathfn: Callable[[str], str],  # noqa: F811  # as above
) -> None:
    with fs.open_output_stream(pathfn("a/b/c")) as stream:
        stream.write(b"data")
    restored = pickle.loads(pickle.dumps(fs))
    kinds = [info.type for info in restored.get_file_info([pathfn("a/b"), pathfn("a/b/c")])]
    assert kinds == [arrow.FileType.Directory, arrow.FileType.File]
    restored.delete_dir_contents(pathfn("a"))
    assert restored.get_file_info(pathfn("a/b/c")).type == arrow.FileType.NotFound
    with pytest.raises(FileNotFoundError):
        fs.delete_dir(pathfn("a"))


def test_parquet_through_the_filesystem(flat_tier: Tier, new_path: Callable[[], str]) -> None:
    filesystem, path = flat_tier.filesystem(), new_path()
    table = pa.table({"part": [0, 0, 1], "x": [1.5, 2.5, 3.5]})
    parquet.write_to_dataset(table, path, partition_cols=["part"], filesystem=filesystem)
    read = dataset.dataset(path, filesystem=filesystem, partitioning="hive").to_table()
    assert sorted(read["x"].to_pylist()) == [1.5, 2.5, 3.5]
