"""A folder as the list of its files, by the ignore rules that users of Azure ML know.

Only `.amlignore` in the root counts, else `.gitignore` in the root; both have the meaning that git
gives them. In source folders symlinks that stay inside are kept as links, unless what they point to is
left out; in data and models they are kept as the content that they point to.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from stellwerk.errors import StellwerkError, invalid

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

ALWAYS_LEFT_OUT = frozenset({".git", ".stellwerk", "__pycache__", ".ipynb_checkpoints"})
IGNORE_FILES = (".amlignore", ".gitignore")


@dataclass(frozen=True)
class LocalFile:
    """A file to upload. `path` is relative, with "/"; `sha256` is empty until it was hashed."""

    path: str
    source: Path
    size_bytes: int
    executable: bool
    sha256: str = ""
    link_target: str = ""
    """For a link: the path that it points to, relative to the root; then there is no digest."""


def pack(path: Path, *, ignore: bool = False, hashed: Callable[[int], None] | None = None) -> list[LocalFile]:
    """The files of a folder, or one file, sorted by path and hashed in threads.

    `ignore` applies the ignore rules (source folders do, data and models do not). `hashed` is told the
    bytes of each file once it was read. Raises `StellwerkError` for what cannot be packed.
    """
    files = sorted(_files(path, ignore), key=lambda file: file.path)

    def digest(file: LocalFile) -> LocalFile:
        if file.link_target:
            return file
        result = _hash(file)
        if hashed is not None:
            hashed(result.size_bytes)
        return result

    with ThreadPoolExecutor(max_workers=min(8, (os.cpu_count() or 1) + 2)) as pool:
        return list(pool.map(digest, files))


def _files(path: Path, ignore: bool) -> Sequence[LocalFile]:
    if not path.exists():
        raise StellwerkError(
            "PATH_NOT_FOUND", f"There is no file or folder {path}.", "Check the path.", code="NOT_FOUND"
        )
    if path.is_file() and ignore:
        raise invalid("CODE_NOT_A_FOLDER", f"{path} is a file.", "Name the folder of your code.")
    if path.is_file():
        return [_local(path.name, path)]
    if not path.is_dir():
        raise _special(str(path))
    root = path.resolve()
    if not ignore:
        return list(_walk(root, root, "", None, (root,)))
    rules = ignore_rules(root)
    return _settled(root, list(_walk(root, root, "", rules, (root,), links=True)), rules)


def _settled(root: Path, files: list[LocalFile], rules: "GitIgnoreSpec") -> list[LocalFile]:
    """A link whose target does not travel is replaced by the content that it points to."""
    there = {file.path for file in files if not file.link_target}
    there |= {str(parent) for path in there for parent in PurePosixPath(path).parents}
    result: list[LocalFile] = []
    for file in files:
        if not file.link_target or file.link_target in there:
            result.append(file)
        elif (target := root / file.link_target).is_dir():
            above = (root, *reversed(target.parents), target)
            result += _walk(root, target, f"{file.path}/", rules, above)
        else:
            result.append(_local(file.path, target))
    return result


def ignore_rules(root: Path) -> "GitIgnoreSpec":
    """The rules of the one ignore file that counts; none without a file."""
    from pathspec import GitIgnoreSpec

    for name in IGNORE_FILES:
        if (root / name).is_file():
            text = (root / name).read_text(encoding="utf-8", errors="replace")
            try:
                return GitIgnoreSpec.from_lines(text.splitlines())
            except ValueError as error:
                raise invalid(
                    "IGNORE_FILE_INVALID",
                    f"{root / name} has a pattern that cannot be read: {error}.",
                    "Repair the pattern.",
                ) from error
    return GitIgnoreSpec.from_lines([])


def _walk(
    root: Path,
    folder: Path,
    prefix: str,
    rules: "GitIgnoreSpec | None",
    above: tuple[Path, ...],
    *,
    links: bool = False,
) -> Iterator[LocalFile]:
    """Files below `folder`; what is excluded is not looked into, as in git. `above` finds link loops.

    With `links` a link is handed out as such, else what it points to.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(prefix or str(root), error) from error
    for entry in entries:
        name = prefix + entry.name
        if rules is not None and (entry.name in ALWAYS_LEFT_OUT or _ignored(rules, entry, name)):
            continue
        place = Path(entry.path)
        if entry.is_symlink():
            place = _target(root, place, name)
            if links and place != root:
                target = place.relative_to(root).as_posix()
                yield LocalFile(name, Path(entry.path), 0, False, link_target=_utf8(target))
                continue
        if place.is_dir():
            real = place.resolve()
            if real in above:
                raise invalid(
                    "LINK_LOOP",
                    f"The symlink {name} points to a folder that holds it.",
                    "Remove it, or exclude it in .amlignore.",
                )
            yield from _walk(root, place, f"{name}/", rules, (*above, real), links=links)
        else:
            yield _local(name, place)


def _ignored(rules: "GitIgnoreSpec", entry: "os.DirEntry[str]", name: str) -> bool:
    # For git a symlink is never a folder, whatever it points to.
    path = f"{name}/" if entry.is_dir(follow_symlinks=False) else name
    for pattern in reversed(rules.patterns):
        if pattern.include is None or pattern.regex is None or not (found := pattern.regex.match(path)):
            continue
        # A pattern that names a folder above was judged there; here it says nothing.
        mark = found.start("ps_d") if "ps_d" in pattern.regex.groupindex else -1
        if mark in (-1, len(path) - 1):
            return bool(pattern.include)
    return False


def _target(root: Path, link: Path, name: str) -> Path:
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise invalid(
            "LINK_BROKEN", f"The symlink {name} points to nothing.", "Remove it, or exclude it in .amlignore."
        ) from error
    if not target.is_relative_to(root):
        raise invalid(
            "LINK_OUTSIDE",
            f"The symlink {name} points outside of the folder, to {target}.",
            "Copy the file into the folder, register it as a dataset, or exclude it in .amlignore.",
        )
    return target


def _local(name: str, place: Path) -> LocalFile:
    _utf8(name)
    try:
        facts = place.stat()
    except OSError as error:
        raise _unreadable(name, error) from error
    if not stat.S_ISREG(facts.st_mode):
        raise _special(name)
    return LocalFile(name, place, facts.st_size, bool(facts.st_mode & stat.S_IXUSR))


def _utf8(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise invalid(
            "FILE_NAME_INVALID", f"The file name {name!r} is not UTF-8.", "Rename or exclude the file."
        ) from None
    return name


def _hash(file: LocalFile) -> LocalFile:
    try:
        with file.source.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256")
            return replace(file, sha256=digest.hexdigest(), size_bytes=stream.tell())
    except OSError as error:
        raise _unreadable(file.path, error) from error


def _special(name: str) -> StellwerkError:
    return invalid(
        "SPECIAL_FILE",
        f"{name} is a pipe, socket or device and cannot be uploaded.",
        "Remove it, or exclude it in .amlignore.",
    )


def _unreadable(name: str, error: OSError) -> StellwerkError:
    return invalid(
        "FILE_UNREADABLE", f"{name} cannot be read: {error.strerror}.", "Change its mode or exclude it."
    )
