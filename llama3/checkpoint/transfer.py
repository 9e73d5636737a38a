"""Files of a repository on the Hugging Face hub -> this machine.

huggingface_hub knows the endpoint, the login, the cache's layout and the errors. Only the transfer of the bytes is
written here: since version 2 its own download starts a file from zero after every interruption, and a shard of the 8B
has 5 GB.
"""

import errno
import hashlib
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from httpx2 import HTTPError, InvalidURL, TransportError
from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    get_session,
    get_token,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # mypy does not follow their lazy imports
    WeakFileLock,
    build_hf_headers,
    hf_raise_for_status,
    tqdm,
)

from llama3.checkpoint.folder import CONFIGS, TOKENIZERS
from llama3.checkpoint.shards import find_weights, weight_files
from llama3.errors import CheckpointError, DownloadError

UNREACHABLE = (TransportError, OfflineModeIsEnabled, LocalEntryNotFoundError)
TRY_AGAIN = (408, 429, 500, 502, 503, 504)  # HTTP statuses that pass
ATTEMPTS = 6  # in a row without a byte; then the connection is given up
TIMEOUT = constants.HF_HUB_DOWNLOAD_TIMEOUT  # seconds without a byte


@dataclass(frozen=True)
class File:
    name: str  # its path in the repository
    url: str
    etag: str  # names its bytes: the SHA-256 of a large file, git's hash of a small one
    size: int  # bytes


def fetch(repo: str, to: Path | None, revision: str | None) -> Path:
    """See `hub.download`."""
    with explained(repo):
        try:
            commit, names = needed_files(repo, revision)
        except UNREACHABLE:
            if to is None and (folder := cached(repo, revision)):
                return folder
            raise
        return into_folder(repo, commit, names, to) if to else into_cache(repo, commit, names, revision)


def needed_files(repo: str, revision: str | None) -> tuple[str, list[str]]:
    """The commit that the revision stands for, and the names of the files to fetch, small ones first."""
    info = HfApi().model_info(repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    names = sorted(sibling.rfilename for sibling in info.siblings or [])
    top = [name for name in names if "/" not in name]
    weights = [name for name in top if name.endswith(".safetensors")]
    # A repository may hold the same weights a second time, as consolidated.safetensors.
    weights = [name for name in weights if name.startswith("model")] or weights
    if not weights or not any(name in CONFIGS for name in top):
        found = ", ".join(names[:6]) + ", ..." * (len(names) > 6) or "nothing"
        raise DownloadError(f"{repo}: expected config.json and *.safetensors, the Hugging Face form; it holds {found}")
    vocabulary = [name for name in TOKENIZERS if name in names and not name.endswith(".json")][:1]
    return str(info.sha), [name for name in top if name.endswith(".json")] + vocabulary + weights


def cached(repo: str, revision: str | None = None) -> Path | None:
    """The snapshot in the hub's cache, if a config and all the weights are there."""
    for name in CONFIGS:
        try:
            found = try_to_load_from_cache(repo, name, revision=revision)
        except HFValidationError:
            return None  # no name of a repository, as `fetch` will say
        if isinstance(found, str):
            try:
                weight_files(find_weights(Path(found).parent))
            except CheckpointError:
                return None
            return Path(found).parent
    return None


def into_cache(repo: str, commit: str, names: list[str], revision: str | None) -> Path:
    missing = [name for name in names if not isinstance(try_to_load_from_cache(repo, name, revision=commit), str)]
    cache, name_there = Path(constants.HF_HUB_CACHE), f"models--{repo.replace('/', '--')}"
    blobs = {cache / name_there / "blobs" / file.etag: file for file in describe(repo, commit, missing)}
    transfer_all(repo, blobs, locks=cache / ".locks" / name_there)
    # Now the library finds every blob there and only links it into the snapshot. Last, when the snapshot is whole, one
    # look at a small file under the revision's own name makes that name point to it.
    for name in missing:
        hf_hub_download(repo, name, revision=commit)
    return Path(hf_hub_download(repo, names[0], revision=revision)).parent


def into_folder(repo: str, commit: str, names: list[str], to: Path) -> Path:
    files = {Path(file.name).name: file for file in describe(repo, commit, names)}
    if to.exists() and (to.is_file() or any(to.iterdir())):
        if all((to / name).is_file() and size(to / name) == file.size for name, file in files.items()):
            return to
        raise DownloadError(f"{to} exists and does not hold this model: delete it, or name another folder")
    gathering = to.with_name(to.name + ".partial")
    blobs = {gathering / f"{name}.{file.etag}": file for name, file in files.items()}
    transfer_all(repo, blobs, locks=gathering)
    for path in set(gathering.iterdir()) - set(blobs):
        path.unlink()  # a lock, or from an earlier attempt, when the repository held other files
    for name, path in zip(files, blobs):
        path.rename(gathering / name)
    if to.exists():
        to.rmdir()
    return gathering.rename(to)


def describe(repo: str, commit: str, names: list[str]) -> list[File]:
    files = []
    for name in names:
        url = hf_hub_url(repo, name, revision=commit)
        head = get_hf_file_metadata(url)
        # The ETag becomes a file's name, so it must not be a path.
        if head.size is None or not re.fullmatch(r"[0-9A-Za-z][\w.-]*", head.etag or ""):
            raise DownloadError(f"{url}: the answer lacks a size or a plain ETag: is HF_ENDPOINT really a hub?")
        files.append(File(name, url, str(head.etag), head.size))
    return files


def transfer_all(repo: str, blobs: dict[Path, File], locks: Path) -> None:
    """Bring every file to its path (all in one folder), one after the other; those that are there already stay."""
    if not blobs:
        return
    folder = next(iter(blobs)).parent
    for needed in (folder, locks):
        needed.mkdir(parents=True, exist_ok=True)
    total = sum(file.size for file in blobs.values())
    here = sum(size(path) or size(incomplete(path)) for path in blobs)
    if (free := shutil.disk_usage(folder).free) < total - here:
        raise DownloadError(
            f"{folder}: {(total - here) / 1e9:.2f} GB are to come, but only {free / 1e9:.2f} GB are free"
        )
    progress = {"total": total, "initial": here, "desc": repo, "unit": "B", "unit_scale": True}
    with tqdm(**progress, disable=None) as bar:  # type: ignore[no-untyped-call]  # None: silent unless on a terminal
        for path, file in blobs.items():
            with WeakFileLock(locks / f"{path.name}.lock"):  # another process may be fetching the same file
                if not path.exists():
                    transfer(file, incomplete(path), bar)
                    incomplete(path).replace(path)


def transfer(file: File, path: Path, bar: tqdm) -> None:
    """Append to `path` until the file is whole. A connection that breaks is taken up again at that byte."""
    failures = 0
    with path.open("ab") as output:
        if output.tell() > file.size:
            bar.update(-restart(output))
        while (start := output.tell()) < file.size:
            headers = build_hf_headers() | {"range": f"bytes={start}-", "accept-encoding": "identity"}
            failure: Exception = TransportError("the server ends the file too early")
            try:
                with get_session().stream("GET", file.url, headers=headers, timeout=TIMEOUT) as response:
                    hf_raise_for_status(response)
                    if start and response.status_code != 206:  # not the range asked for: the whole file comes again
                        bar.update(-restart(output))
                    for chunk in response.iter_bytes():
                        output.write(chunk)
                        bar.update(len(chunk))
            except TransportError as error:
                failure = error
            except HfHubHTTPError as error:
                if error.response.status_code not in TRY_AGAIN:
                    raise
                failure = error
            failures = 0 if output.tell() > start else failures + 1
            if failures == ATTEMPTS:
                raise failure
            if output.tell() < file.size:
                time.sleep(min(0.25 * 2**failures, 8))
    with path.open("rb") as received:
        intact = size(path) == file.size and (
            len(file.etag) != 64 or hashlib.file_digest(received, "sha256").hexdigest() == file.etag
        )
    if not intact:
        path.unlink()
        raise DownloadError(f"{file.url}: damaged on the way (size or SHA-256), and deleted: run the command again")


def restart(output: BinaryIO) -> int:
    """Empties the file. Returns how many bytes it had."""
    had = output.tell()
    output.seek(0)
    output.truncate()
    return had


def incomplete(path: Path) -> Path:
    return path.with_name(path.name + ".incomplete")  # the hub's own ending: `hf cache` knows and clears these


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def explained(repo: str) -> Iterator[None]:
    """Turns what goes wrong on the way into a DownloadError that says what to do."""
    hub = constants.ENDPOINT
    try:
        yield
    except DownloadError:
        raise
    except RevisionNotFoundError as error:
        raise DownloadError(f"{repo} has no such revision; see {hub}/{repo}/tree/main") from error
    except HfHubHTTPError as error:
        raise DownloadError(refusal(repo, error)) from error
    except (HTTPError, InvalidURL, OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        reason = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else str(error).partition("\n")[0]
        raise DownloadError(
            f"{repo} is not whole on this machine, and {hub} cannot be reached ({reason}): "
            "run the command again when it can; what has arrived is kept"
        ) from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "the disk is full: free some space and run the command again; what has arrived is kept"
        raise DownloadError(f"{repo}: {advice if full else error}") from error
    except HFValidationError as error:
        raise DownloadError(f"{repo!r} is not a name on the hub; expected OWNER/NAME") from error
    except ValueError as error:
        raise DownloadError(f"{repo}: {hub} does not answer as a hub does ({error})") from error


def refusal(repo: str, error: HfHubHTTPError) -> str:
    hub, status = constants.ENDPOINT, error.response.status_code
    if isinstance(error, GatedRepoError) or status == 403:
        page = f"{hub}/{repo}"
        account = "the account of your token has" if get_token() else "without a login you have"
        return (
            f"{repo} is gated, and {account} no access: accept its licence at {page}\n"
            f"then set HF_TOKEN to a token from {hub}/settings/tokens, or run `hf auth login`, and try again"
        )
    if isinstance(error, RepositoryNotFoundError):
        return f"{repo}: no such folder here, and no such repository on {hub} (or a private one: then set HF_TOKEN)"
    if status == 401:
        return f"{repo}: {hub} refuses your token (HF_TOKEN or `hf auth login`): it is wrong or has expired"
    return f"{repo}: {hub} answers {status}: {str(error).strip().splitlines()[0]}"
