"""Downloads the files of a repository on the Hugging Face hub.

The endpoint, the login, the layout of the cache and the errors are huggingface_hub's. Only the transfer of the bytes is
written here, because since version 2 its own download starts a file from zero after every interruption, and a shard of
the 8B has 5 GB.
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

from llama3.checkpoint.chat_template import TEMPLATE
from llama3.checkpoint.folder import CONFIGS, TOKENIZERS
from llama3.checkpoint.shards import find_weights, weight_files
from llama3.errors import CheckpointError, DownloadError

UNREACHABLE = (TransportError, OfflineModeIsEnabled, LocalEntryNotFoundError)
TRY_AGAIN = (408, 429, 500, 502, 503, 504)  # HTTP statuses of temporary failures
MAX_FAILURES = 6  # attempts in a row that brought no byte; then the download fails
TIMEOUT = constants.HF_HUB_DOWNLOAD_TIMEOUT  # seconds without a byte


@dataclass(frozen=True)
class File:
    """A file of a repository, as the hub describes it."""

    name: str  # its path in the repository
    url: str
    etag: str  # a hash of its contents: SHA-256 for a large file, git's hash for a small one
    size: int  # bytes


def fetch(repo: str, to: Path | None, revision: str | None) -> Path:
    """The implementation of `hub.download`."""
    with explain_errors(repo):
        try:
            commit, names = needed_files(repo, revision)
        except UNREACHABLE:
            if to is None and (folder := cached(repo, revision)):
                return folder
            raise
        return fetch_to_folder(repo, commit, names, to) if to else fetch_to_cache(repo, commit, names, revision)


def needed_files(repo: str, revision: str | None) -> tuple[str, list[str]]:
    """The commit of the revision, and the names of the files to download, small files first.

    Raises DownloadError for a repository that is not in Hugging Face's form.
    """
    info = HfApi().model_info(repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    names = sorted(sibling.rfilename for sibling in info.siblings or [])
    top = [name for name in names if "/" not in name]
    weights = [name for name in top if name.endswith(".safetensors")]
    # A repository may also hold the same weights as consolidated.safetensors.
    weights = [name for name in weights if name.startswith("model")] or weights
    if not weights or not any(name in CONFIGS for name in top):
        found = ", ".join(names[:6]) + ", ..." * (len(names) > 6) or "nothing"
        raise DownloadError(f"{repo}: expected config.json and *.safetensors, the Hugging Face form; it holds {found}")
    vocabulary = [name for name in TOKENIZERS if name in names and not name.endswith(".json")][:1]
    small = [name for name in top if name.endswith(".json") or name == TEMPLATE]
    return str(info.sha), small + vocabulary + weights


def cached(repo: str, revision: str | None = None) -> Path | None:
    """The folder of the model in the hub's cache, if it has a config and all the weights; otherwise None."""
    for name in CONFIGS:
        try:
            found = try_to_load_from_cache(repo, name, revision=revision)
        except HFValidationError:
            return None  # not a valid name of a repository: `fetch` raises the error
        if isinstance(found, str):
            try:
                weight_files(find_weights(Path(found).parent))
            except CheckpointError:
                return None
            return Path(found).parent
    return None


def fetch_to_cache(repo: str, commit: str, names: list[str], revision: str | None) -> Path:
    """Download the files that the hub's cache lacks. Returns the cache's folder for the commit."""
    missing = [name for name in names if not isinstance(try_to_load_from_cache(repo, name, revision=commit), str)]
    cache, cache_name = Path(constants.HF_HUB_CACHE), f"models--{repo.replace('/', '--')}"
    blobs = {cache / cache_name / "blobs" / file.etag: file for file in describe(repo, commit, missing)}
    transfer_all(repo, blobs, locks=cache / ".locks" / cache_name)
    # The library finds the contents in place and only links them into the commit's folder. When that is complete, a
    # request for a small file under the revision's own name makes this name point to the commit.
    for name in missing:
        hf_hub_download(repo, name, revision=commit)
    return Path(hf_hub_download(repo, names[0], revision=revision)).parent


def fetch_to_folder(repo: str, commit: str, names: list[str], to: Path) -> Path:
    """Download the files to `to`, which is created when all of them have arrived. Returns `to`."""
    files = {Path(file.name).name: file for file in describe(repo, commit, names)}
    if to.exists() and (to.is_file() or any(to.iterdir())):
        if all((to / name).is_file() and size(to / name) == file.size for name, file in files.items()):
            return to
        raise DownloadError(f"{to} exists and does not hold this model: delete it, or name another folder")
    partial = to.with_name(to.name + ".partial")
    blobs = {partial / f"{name}.{file.etag}": file for name, file in files.items()}
    transfer_all(repo, blobs, locks=partial)
    for path in set(partial.iterdir()) - set(blobs):
        path.unlink()  # a lock, or a file of an earlier attempt that the repository no longer holds
    for name, path in zip(files, blobs):
        path.rename(partial / name)
    if to.exists():
        to.rmdir()
    return partial.rename(to)


def describe(repo: str, commit: str, names: list[str]) -> list[File]:
    """The hub's description of each file, by one HEAD request for each."""
    files = []
    for name in names:
        url = hf_hub_url(repo, name, revision=commit)
        head = get_hf_file_metadata(url)
        # The ETag becomes the name of a file, so it must not be a path.
        if head.size is None or not re.fullmatch(r"[0-9A-Za-z][\w.-]*", head.etag or ""):
            raise DownloadError(f"{url}: the response lacks a size or a plain ETag: is HF_ENDPOINT really a hub?")
        files.append(File(name, url, str(head.etag), head.size))
    return files


def transfer_all(repo: str, blobs: dict[Path, File], locks: Path) -> None:
    """Download every file to its path, one after the other. Paths that exist already are skipped.

    blobs: path -> file; all paths are in one folder. Raises DownloadError if the disk has too little space.
    """
    if not blobs:
        return
    folder = next(iter(blobs)).parent
    for needed in (folder, locks):
        needed.mkdir(parents=True, exist_ok=True)
    total = sum(file.size for file in blobs.values())
    present = sum(size(path) or size(incomplete(path)) for path in blobs)
    if (free := shutil.disk_usage(folder).free) < total - present:
        raise DownloadError(
            f"{folder}: {(total - present) / 1e9:.2f} GB must be downloaded, but only {free / 1e9:.2f} GB are free"
        )
    progress = {"total": total, "initial": present, "desc": repo, "unit": "B", "unit_scale": True}
    with tqdm(**progress, disable=None) as bar:  # type: ignore[no-untyped-call]  # None: silent unless on a terminal
        for path, file in blobs.items():
            with WeakFileLock(locks / f"{path.name}.lock"):  # another process may be downloading the same file
                if not path.exists():
                    transfer(file, incomplete(path), bar)
                    incomplete(path).replace(path)


def transfer(file: File, path: Path, bar: tqdm) -> None:
    """Append to `path` until the file is complete. After a broken connection, it continues at the next byte.

    Raises DownloadError for contents that do not match the ETag, and the last failure after MAX_FAILURES in a row.
    """
    failures = 0
    with path.open("ab") as output:
        if output.tell() > file.size:
            bar.update(-truncate(output))
        while (start := output.tell()) < file.size:
            headers = build_hf_headers() | {"range": f"bytes={start}-", "accept-encoding": "identity"}
            failure: Exception = TransportError("the server ended the file too early")
            try:
                with get_session().stream("GET", file.url, headers=headers, timeout=TIMEOUT) as response:
                    hf_raise_for_status(response)
                    if start and response.status_code != 206:  # the server ignores ranges and sends the whole file
                        bar.update(-truncate(output))
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
            if failures == MAX_FAILURES:
                raise failure
            if output.tell() < file.size:
                time.sleep(min(0.25 * 2**failures, 8))
    with path.open("rb") as received:
        intact = size(path) == file.size and (
            len(file.etag) != 64 or hashlib.file_digest(received, "sha256").hexdigest() == file.etag
        )
    if not intact:
        path.unlink()
        raise DownloadError(
            f"{file.url}: damaged in transfer (wrong size or SHA-256), and deleted: run the command again"
        )


def truncate(output: BinaryIO) -> int:
    """Empty the file. Returns how many bytes it had."""
    n_bytes = output.tell()
    output.seek(0)
    output.truncate()
    return n_bytes


def incomplete(path: Path) -> Path:
    return path.with_name(path.name + ".incomplete")  # huggingface_hub's own suffix: `hf cache` clears such files


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def explain_errors(repo: str) -> Iterator[None]:
    """Turn the errors of a download into a DownloadError that says what to do."""
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
            f"{repo} is not complete on this machine, and {hub} cannot be reached ({reason}): "
            "run the command again when it can; what has arrived is kept"
        ) from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "the disk is full: free some space and run the command again; what has arrived is kept"
        raise DownloadError(f"{repo}: {advice if full else error}") from error
    except HFValidationError as error:
        raise DownloadError(f"{repo!r} is not a name on the hub; expected OWNER/NAME") from error
    except ValueError as error:
        raise DownloadError(f"{repo}: {hub} does not respond like a Hugging Face hub ({error})") from error


def refusal(repo: str, error: HfHubHTTPError) -> str:
    """The message for an HTTP error: the repository is gated, private or not there, or the token is wrong."""
    hub, status = constants.ENDPOINT, error.response.status_code
    if isinstance(error, GatedRepoError) or status == 403:
        page = f"{hub}/{repo}"
        account = "the account of your token has" if get_token() else "without a login you have"
        return (
            f"{repo} is gated, and {account} no access: accept its licence at {page}\n"
            f"then set HF_TOKEN to a token from {hub}/settings/tokens, or run `hf auth login`, and try again"
        )
    if isinstance(error, RepositoryNotFoundError):
        return f"{repo}: no such folder here, and no such repository on {hub} (if it is private, set HF_TOKEN)"
    if status == 401:
        return f"{repo}: {hub} refuses your token (HF_TOKEN or `hf auth login`): it is wrong or has expired"
    return f"{repo}: {hub} responds with {status}: {str(error).strip().splitlines()[0]}"
