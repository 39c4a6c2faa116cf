"""A folder of downloaded files as one zip archive, the same bytes for the same files."""

import os
import shutil
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path

from stellwerk_protos.common.v1 import common_pb2

# The oldest time that zip has; real times would make two archives of one snapshot differ.
_TIME = (1980, 1, 1, 0, 0, 0)


def write_zip(files: Sequence[common_pb2.File], folder: Path, archive: Path) -> None:
    """Puts the files below `folder` into `archive`, with their modes and links."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        for file in sorted(files, key=lambda file: file.path):
            entry = zipfile.ZipInfo(file.path, _TIME)
            entry.create_system = 3  # Unix: the upper half of the attributes is the mode
            if file.link_target:
                entry.external_attr = (stat.S_IFLNK | 0o777) << 16
                out.writestr(entry, os.path.relpath(file.link_target, os.path.dirname(file.path) or "."))
                continue
            entry.external_attr = (stat.S_IFREG | (0o755 if file.executable else 0o644)) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.file_size = file.size_bytes
            with (folder / file.path).open("rb") as source, out.open(entry, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)
