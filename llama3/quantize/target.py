"""The folder that is written: it does not exist until it is complete. Until then the files are in TO.partial.

There, a note says what the files are made of, so that only a run of the same kind continues an interrupted one.
"""

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # a lazy import

from llama3.checkpoint.json_file import read_json_file
from llama3.errors import CheckpointError
from llama3.quantize.plan import Shard

NOTE = "quantize.json"  # of which files, and with how many bits


def partial_folder(to: Path) -> Path:
    return to.with_name(to.name + ".partial")


def is_complete(to: Path, made_of: dict[str, Any]) -> bool:
    """Whether an interrupted run lacked its last step only: to delete its note. Then this deletes it."""
    if (to / NOTE).is_file() and read_json_file(to / NOTE) == made_of:
        (to / NOTE).unlink()
        return True
    return False


def open_partial(to: Path, made_of: dict[str, Any]) -> Path:
    """TO.partial, new or of an interrupted run. Raises CheckpointError if TO is in use, or the run was another one."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise CheckpointError(f"{to} exists and is not an empty folder: delete it, or name another one")
    folder = partial_folder(to)
    if folder.is_dir():
        (folder / f"{NOTE}.incomplete").unlink(missing_ok=True)  # of a run that ended before its note was whole
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not (folder / NOTE).is_file() or read_json_file(folder / NOTE) != made_of:
            other = "is of another source or number of bits" if (folder / NOTE).is_file() else "holds other files"
            raise CheckpointError(f"{folder} {other}: delete it, or name another target")
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / NOTE, made_of)
    return folder


@contextmanager
def only_run(to: Path) -> Iterator[None]:
    """Raises CheckpointError if another run writes the same folder. A lock ends with its process, however that ends."""
    lock = to.with_name(to.name + ".partial.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(lock, timeout=1))
        except TimeoutError:
            raise CheckpointError(
                f"{to}: another run writes it at the moment: wait for that one, or name another target"
            ) from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def check_space(folder: Path, shards: list[Shard]) -> None:
    """Raises CheckpointError if the disk has too little space for the shards that are not there yet."""
    needed = sum(shard.size for shard in shards if not (folder / shard.name).exists())
    if (free := shutil.disk_usage(folder).free) < needed:
        raise CheckpointError(f"{folder}: {needed / 1e9:.2f} GB are to be written, but only {free / 1e9:.2f} are free")


def complete(folder: Path, to: Path) -> None:
    """Give the folder its final name."""
    if to.exists():
        to.rmdir()
    folder.rename(to)
    (to / NOTE).unlink()


def write_json(path: Path, fields: dict[str, Any]) -> None:
    """Write the file as a whole or not at all."""
    incomplete = path.with_name(path.name + ".incomplete")
    incomplete.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    incomplete.replace(path)


@contextmanager
def explain_errors(to: Path) -> Iterator[None]:
    """Turn an OSError into a CheckpointError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(
                f"{to}: the disk is full: free some space and run the command again; finished files are kept in "
                f"{partial_folder(to)}"
            ) from error
        raise CheckpointError(f"{error.filename or to}: {error.strerror}") from error
