"""Image files by class, in a folder or a zip: ``class/x.png``, or ``train/class/x.png`` and ``test/...``."""

import stat
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np

from worker.lab.data.checking import Array, BadSourceError, Source
from worker.lab.data.readers.decoding import ImageStack
from worker.lab.data.readers.zips import open_zip

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
MAX_FILE_BYTES = 64 * 2**20
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_IGNORED = {"__MACOSX", "Thumbs.db", "desktop.ini"}

Load = Callable[[PurePosixPath], bytes]


def read_folder(folder: Path, size: int | None, most_bytes: int) -> Source:
    """The images in ``folder``. Raises BadSourceError."""
    paths = [PurePosixPath(p.relative_to(folder).as_posix()) for p in folder.rglob("*") if p.is_file()]
    return _read(str(folder), paths, lambda path: (folder / path).read_bytes(), size, most_bytes)


def read_zip(path: Path, size: int | None, most_bytes: int) -> Source:
    """The images in the zip at ``path``, which is never unpacked to disk. Raises BadSourceError."""
    try:
        with open_zip(path) as archive:
            members = _members(archive, most_bytes)
            return _read(
                str(path), list(members), lambda name: _content(archive, members[name]), size, most_bytes
            )
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise BadSourceError(f"{path} is not a readable zip: {error}") from error


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """The bytes of a member, at most one more than its declared size: an unbounded read would unpack a zip bomb."""
    with archive.open(member) as file:
        return file.read(member.file_size + 1)


def _members(archive: zipfile.ZipFile, most_bytes: int) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """The files of ``archive`` by path. Raises BadSourceError for unsafe paths, links, and sizes over the limits."""
    members: dict[PurePosixPath, zipfile.ZipInfo] = {}
    total = 0
    for member in archive.infolist():
        if member.is_dir():
            continue
        path, name = PurePosixPath(member.filename), member.filename
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
            raise BadSourceError(f"the zip contains {name!r}, which is not a plain relative path")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise BadSourceError(f"the zip contains a link, {name!r}; only regular files are accepted")
        if member.flag_bits & 1:
            raise BadSourceError(f"the zip contains an encrypted file, {name!r}")
        if path in members:
            raise BadSourceError(f"the zip contains {name!r} twice")
        total += member.file_size
        if member.file_size > MAX_FILE_BYTES or total > most_bytes:
            raise BadSourceError(
                f"the zip is too large at {name!r}: at most {MAX_FILE_BYTES >> 20} MiB per file "
                f"and {most_bytes >> 20} MiB in all"
            )
        members[path] = member
    return members


def _read(source: str, paths: list[PurePosixPath], load: Load, size: int | None, most_bytes: int) -> Source:
    paths = [p for p in paths if not _IGNORED & set(p.parts) and not any(q.startswith(".") for q in p.parts)]
    splits = _by_split(_without_wrapper(paths), source)
    names = _class_order({path.parts[depth] for depth, files in splits.values() for path, _ in files})
    if "train" not in splits:
        raise BadSourceError(f"{source} has a test folder but no train folder")
    x, y = _stack(*splits["train"], names, load, size, most_bytes)
    if "test" not in splits:
        return Source(x, y, class_names=names)
    x_test, y_test = _stack(*splits["test"], names, load, size, most_bytes)
    return Source(x, y, x_test, y_test, names)


Named = tuple[PurePosixPath, PurePosixPath]  # the path below any wrapping folder, and the path in the source


def _without_wrapper(paths: list[PurePosixPath]) -> list[Named]:
    """Paths without a single top folder that wraps all images, as archives often have."""
    named = [(path, path) for path in paths]
    while True:
        images = [path for path, _ in named if path.suffix.lower() in SUFFIXES]
        tops = {path.parts[0] for path in images}
        if len(tops) != 1 or min(len(path.parts) for path in images) < 3 or tops <= set(_SPLITS):
            return named
        named = [(PurePosixPath(*p.parts[1:]), full) for p, full in named if p.parts[0] in tops]


def _by_split(named: list[Named], source: str) -> dict[str, tuple[int, list[Named]]]:
    """For each part ("train", "test"): the position of the class in the paths, and the files."""
    tops = {p.parts[0].lower() for p, _ in named if len(p.parts) > 1}
    split = bool(tops) and tops <= set(_SPLITS)
    depth, result = (1 if split else 0), dict[str, tuple[int, list[Named]]]()
    for path, full in sorted(named):
        is_image = path.suffix.lower() in SUFFIXES
        if len(path.parts) != depth + 2:
            if is_image or len(path.parts) > depth + 2:
                layout = "train/CLASS/FILE and test/CLASS/FILE" if split else "CLASS/FILE"
                raise BadSourceError(f"{full} is not in a class's folder; allowed is {layout}")
            continue  # a README beside the classes
        if not is_image:
            raise BadSourceError(f"{full} is not an image; allowed are {', '.join(sorted(SUFFIXES))}")
        part = _SPLITS[path.parts[0].lower()] if split else "train"
        result.setdefault(part, (depth, []))[1].append((path, full))
    if not result:
        raise BadSourceError(f"{source} has no images in folders by class")
    return result


def _class_order(names: set[str]) -> tuple[str, ...]:
    """Class names in alphabetical order; by value if all are numbers."""
    return tuple(sorted(names, key=(lambda n: (int(n), n)) if all(n.isdecimal() for n in names) else None))


def _stack(
    depth: int, files: list[Named], names: tuple[str, ...], load: Load, size: int | None, most_bytes: int
) -> tuple[Array, Array]:
    label = {name: i for i, name in enumerate(names)}
    stack = ImageStack(len(files), size, most_bytes)
    for _, full in files:
        stack.add(str(full), load(full))
    return stack.array(), np.array([label[path.parts[depth]] for path, _ in files], np.int64)
