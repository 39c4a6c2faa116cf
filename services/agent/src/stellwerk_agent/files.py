"""Files on the node: safe paths, copies, atomic writes."""

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from stellwerk.names import portable as portable
from stellwerk_agent.failure import StepFailed
from stellwerk_protos.common.v1 import common_pb2

_FICLONE = 0x40049409


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replaces a file; a crash leaves the old or the new content."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def check_paths(files: Iterable[common_pb2.File]) -> None:
    """Raises `StepFailed` unless all files stay below one folder and none lies below another."""
    seen: set[str] = set()
    folders: set[str] = set()
    for file in files:
        pure = PurePosixPath(file.path)
        if not is_inside(file.path):
            raise StepFailed(
                "UNSAFE_PATH",
                f"The path {file.path[:200]!r} would leave its folder.",
                "Give paths relative to the folder, without '..'.",
            )
        if file.link_target and not is_inside(file.link_target):
            raise StepFailed(
                "UNSAFE_PATH",
                f"The link {file.path[:200]!r} would lead to {file.link_target[:200]!r}, out of its folder.",
                "Point links at files of the same folder.",
            )
        seen.add(str(pure))
        folders.update(str(parent) for parent in pure.parents)
    if clash := seen & folders:
        raise StepFailed("UNSAFE_PATH", f"{min(clash)!r} is both a file and a folder.", "Rename one of them.")


def is_inside(path: str) -> bool:
    """Whether a path stays below the folder that it is relative to, as long as nothing there is a link."""
    parts = path.split("/")
    return bool(path) and "\0" not in path and not any(part in ("", ".", "..") for part in parts)


def copy(source: Path, target: Path, mode: int) -> None:
    """A copy that shares nothing that could be written; on file systems that can, it takes no space."""
    target.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(source, "rb") as reader, open(os.open(target, flags, 0o600), "wb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM):
                raise
            shutil.copyfileobj(reader, writer, 1 << 20)
        os.fchmod(writer.fileno(), mode)


def link(target: Path, name: str, link_target: str) -> None:
    """A symbolic link below `target`; both paths are relative to it and checked."""
    path = target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.relpath(link_target, os.path.dirname(name) or "."))


def protect(folder: Path) -> None:
    """Makes a folder and all below read-only."""
    for path, _, names in os.walk(folder):
        for name in names:
            file = Path(path, name)
            if not file.is_symlink():
                file.chmod(file.stat().st_mode & ~0o222)
        os.chmod(path, 0o555)


def remove(folder: Path) -> None:
    """Removes a folder, also one that its owner closed; nothing happens when there is none."""
    if not folder.is_dir() or folder.is_symlink():
        folder.unlink(missing_ok=True)
        return
    closed = [str(folder)]
    while closed:
        path = closed.pop()
        if stat.S_IMODE(os.stat(path).st_mode) & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(path, stat.S_IRWXU)
        with os.scandir(path) as entries:
            closed += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    shutil.rmtree(folder)


def tail(path: Path, size_bytes: int = 4096) -> str:
    """The end of a text file, "" without one."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - size_bytes))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
