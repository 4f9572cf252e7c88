"""The files of a folder or a zip, without what operating systems leave in them."""

import stat
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from worker.lab.data.checking import BadSourceError
from worker.lab.data.readers.zips import open_zip

MAX_FILE_BYTES = 64 * 2**20
"""Largest accepted member of a zip that is read into memory."""
CHUNK_BYTES = 2**20
_LITTER = {"__macosx", "@eadir", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"}
_NAMES_IN_UTF_8 = 0x800


class Tree(Protocol):
    """A folder or a zip. ``files`` and ``folders`` are sorted paths, without litter; ``name`` is for messages."""

    name: str
    files: list[PurePosixPath]
    folders: list[PurePosixPath]

    def read(self, path: PurePosixPath) -> bytes:
        """The content of a file. Raises BadSourceError if it is too large."""
        ...

    def open(self, path: PurePosixPath) -> BinaryIO:
        """A file that can be read anywhere; the caller closes it."""
        ...


class Folder:
    """The files below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.name, self._folder = str(folder), folder
        found = {PurePosixPath(path.relative_to(folder).as_posix()): path for path in folder.rglob("*")}
        kept = sorted(path for path in found if not _is_litter(path))
        self.files = [path for path in kept if found[path].is_file()]
        self.folders = [path for path in kept if found[path].is_dir()]

    def read(self, path: PurePosixPath) -> bytes:
        return (self._folder / path).read_bytes()

    def open(self, path: PurePosixPath) -> BinaryIO:
        return (self._folder / path).open("rb")


class Zip:
    """The members of ``archive``, of at most ``most_bytes`` together; it is never unpacked to disk as a whole.

    ``encoding`` is that of names that are not declared as UTF-8. Raises BadSourceError for unsafe paths and links.
    """

    def __init__(
        self, archive: zipfile.ZipFile, name: str, most_bytes: int, encoding: str | None = None
    ) -> None:
        self.name, self._archive = name, archive
        self._members: dict[PurePosixPath, zipfile.ZipInfo] = {}
        folders: set[PurePosixPath] = set()
        total = 0
        for member, member_name in zip(archive.infolist(), _names(archive, encoding), strict=True):
            path = PurePosixPath(member_name)
            if path.is_absolute() or ".." in path.parts or ":" in member_name:
                raise BadSourceError(f"the zip contains {member_name!r}, which is not a plain relative path")
            if _is_litter(path):
                continue
            folders.update(path.parents)
            if member_name.endswith("/"):
                folders.add(path)
                continue
            if stat.S_ISLNK(member.external_attr >> 16):
                raise BadSourceError(
                    f"the zip contains a link, {member_name!r}; only regular files are accepted"
                )
            if member.flag_bits & 1:
                raise BadSourceError(f"the zip contains an encrypted file, {member_name!r}")
            if path in self._members:
                raise BadSourceError(f"the zip contains {member_name!r} twice")
            total += member.file_size
            if total > most_bytes:
                raise BadSourceError(
                    f"the zip is too large at {member_name!r}: at most {most_bytes >> 20} MiB in all"
                )
            self._members[path] = member
        self.files = sorted(self._members)
        self.folders = sorted(folders - {PurePosixPath()})

    def read(self, path: PurePosixPath) -> bytes:
        member = self._members[path]
        if member.file_size > MAX_FILE_BYTES:
            raise BadSourceError(
                f"the zip is too large at {str(path)!r}: at most {MAX_FILE_BYTES >> 20} MiB per file"
            )
        # At most one byte more than the declared size: an unbounded read would unpack a zip bomb.
        with self._archive.open(member) as file:
            return file.read(member.file_size + 1)

    def open(self, path: PurePosixPath) -> BinaryIO:
        member = self._members[path]
        unpacked: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  # the caller closes it
        left = member.file_size
        with self._archive.open(member) as file:
            while left and (chunk := file.read(min(left, CHUNK_BYTES))):
                unpacked.write(chunk)
                left -= len(chunk)
        unpacked.seek(0)
        return unpacked


@contextmanager
def open_tree(path: Path, most_bytes: int, zip_encoding: str | None = None) -> Iterator[Tree]:
    """The files of the folder or zip at ``path``. Raises BadSourceError, also when damage is found while it is read."""
    if path.is_dir():
        yield Folder(path)
        return
    try:
        with open_zip(path) as archive:
            yield Zip(archive, str(path), most_bytes, zip_encoding)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise BadSourceError(f"{path} is not a readable zip: {error}") from error


def _is_litter(path: PurePosixPath) -> bool:
    """Whether the path is hidden, or one that an operating system or a storage appliance adds by itself."""
    return any(part.startswith(".") or part.lower() in _LITTER for part in path.parts)


def _names(archive: zipfile.ZipFile, encoding: str | None) -> list[str]:
    """The members' names, with / between the parts, which some programs for Windows write as a backslash.

    A name that is not declared as UTF-8 may be in the code page of whoever wrote it, which ``encoding`` names. Without
    one they are taken as UTF-8 if all of them are valid, as macOS writes them. Raises BadSourceError otherwise.
    """
    names = []
    for member in archive.infolist():
        name = member.filename
        if not member.flag_bits & _NAMES_IN_UTF_8 and not name.isascii():
            raw = name.encode("cp437", errors="surrogateescape")  # what zipfile decoded
            try:
                name = raw.decode(encoding or "utf-8")
            except UnicodeDecodeError:
                if encoding is not None:
                    raise BadSourceError(
                        f"the zip contains a name that is not {encoding}, the bytes {raw!r}", "zip_encoding"
                    ) from None
                raise BadSourceError(
                    f"required, because the zip contains a name that is not UTF-8, the bytes {raw!r}; for example gbk "
                    "(Chinese), shift_jis (Japanese) or cp1252 (Western Europe); or pack it again with names in UTF-8",
                    "zip_encoding",
                ) from None
            if not name.isprintable():
                raise BadSourceError(
                    f"the bytes {raw!r} of a name are {name!r} in {encoding}", "zip_encoding"
                )
        names.append(name.replace("\\", "/"))
    return names
