"""Talks to the Hugging Face hub: what a repository holds, and its files into the hub's own cache. Nothing else of us
uses the network, but for one benchmark's data.

Endpoint, token and cache are what the hub's variables say (HF_ENDPOINT, HF_TOKEN, HF_HOME). The hub's library goes on
with a broken download within one call only, and forgets it when the process ends; so the part that came is kept here,
beside where the whole file will be, and enters the cache when its checksum is right.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal, NoReturn

from deltamem_cli.models import hub_settings
from deltamem_cli.models.errors import ModelError, Stopped
from deltamem_cli.models.hub_settings import STAYS

_TIMEOUT = 10  # seconds until a silent hub counts as absent
_COMMIT = re.compile(r"[0-9a-f]{40}")
Kind = Literal["model", "dataset"]
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository, as the hub describes it."""

    name: str
    size: int
    sha256: str | None  # of what lies in the hub's large file storage
    blob: str  # git's own hash

    @property
    def digest(self) -> str:
        """What the hub's cache calls it by."""
        return self.sha256 or self.blob


@dataclass(frozen=True)
class Repository:
    """A repository at one commit; files by their paths in it."""

    name: str
    commit: str
    license: str | None
    files: dict[str, RemoteFile]
    kind: Kind = "model"


def look(repo: str, kind: Kind = "model") -> Repository:
    """What the repository holds now. Raises ModelError, at once when there is no network."""
    hub_settings.check(repo)
    with _in_one_sentence(repo):
        from huggingface_hub import HfApi
        from huggingface_hub.utils import logging

        logging.set_verbosity_error()  # its warnings are our errors, and some hold signed addresses
        try:
            ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
            info = ask(repo, files_metadata=True, timeout=_TIMEOUT)
        except (LookupError, TypeError, AttributeError) as error:  # it takes the answer's form for granted
            raise ValueError("its listing is none of a repository") from error
        if not _COMMIT.fullmatch(str(info.sha)):
            raise ValueError("the commit in its listing is none")
        files = {one.rfilename: _remote_file(one) for one in info.siblings or []}
    license = info.card_data.get("license") if info.card_data else None
    return Repository(repo, str(info.sha), license if isinstance(license, str) else None, files, kind)


def _remote_file(listed: Any) -> RemoteFile:
    """Raises ValueError for what no hub says of a file, whose name becomes a path here."""
    name, size = listed.rfilename, listed.size or 0
    file = RemoteFile(name, size, listed.lfs.sha256 if listed.lfs else None, listed.blob_id or "")
    if not isinstance(name, str) or not _stays_inside(name):
        raise ValueError("a file in its listing has a name that is none")
    if type(size) is not int or size < 0:
        raise ValueError(f"the size of {name} in its listing is none")
    return file


def _stays_inside(name: str) -> bool:
    """Whether a name, on any system, is that of a file below the folder that it is put into."""
    whole, windows = PurePosixPath(name), PureWindowsPath(name)
    anchored = whole.anchor or windows.anchor or any(PureWindowsPath(part).drive for part in whole.parts)
    return bool(whole.parts) and not anchored and ".." not in windows.parts and "\0" not in name


def download(repository: Repository, names: Sequence[str]) -> list[Path]:
    """Where the files lie in the hub's cache, complete and checked; goes on where an earlier call stopped.

    Raises ModelError, and Stopped for Ctrl-C.
    """
    with _in_one_sentence(repository.name):
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        of_repository = repo_folder_name(repo_id=repository.name, repo_type=repository.kind)
        folder = Path(constants.HF_HUB_CACHE) / of_repository / "blobs"
        files = [repository.files[name] for name in names]
        for file in files:
            if not _DIGEST.fullmatch(str(file.digest)):
                raise ValueError(f"the checksum of {file.name} in its listing is none")
        missing = [file for file in files if not (folder / file.digest).exists()]
        folder.mkdir(parents=True, exist_ok=True)
        _check_room(folder, missing)
        for file in missing:
            _fetch(repository, file, folder / file.digest)
        return [_in_snapshot(repository, file, folder / file.digest) for file in files]


def delete(paths: list[Path]) -> None:
    """Takes downloaded files out of the hub's cache that they lie in. Raises ModelError."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    # CACHE/models--OWNER--REPO/snapshots/COMMIT/FILE
    places = [parent for path in paths for parent in path.parents if parent.name == "snapshots"]
    if not places:
        raise ModelError(f"{paths[0]} is not in the hub's cache: delete it yourself if you don't need it.")
    try:
        cache = scan_cache_dir(places[0].parent.parent)
    except CacheNotFound:
        return  # gone already
    blobs = {path.resolve() for path in paths}
    found = [
        (repo, file)
        for repo in cache.repos
        for revision in repo.revisions
        for file in revision.files
        if file.blob_path.resolve() in blobs
    ]
    selected = {file for _, file in found}
    for repo in {repo for repo, _ in found}:
        if all(file in selected for revision in repo.revisions for file in revision.files):
            cache.delete_revisions(*(revision.commit_hash for revision in repo.revisions)).execute()
            return
    cache.delete_files(*selected).execute()


def _in_snapshot(repository: Repository, file: RemoteFile, blob: Path) -> Path:
    """The file's name in the cache, where the hub's own tools look for it.

    Not by hf_hub_download(), which would ask again and make paths of whatever the server then calls commit and digest.
    """
    from huggingface_hub.file_download import _cache_commit_hash_for_specific_revision, _create_symlink

    cache = blob.parent.parent
    path = cache / "snapshots" / repository.commit / file.name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _create_symlink(str(blob), str(path))
    _cache_commit_hash_for_specific_revision(str(cache), "main", repository.commit)
    return path


def _fetch(repository: Repository, file: RemoteFile, blob: Path) -> None:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get, xet_get
    from huggingface_hub.utils import build_hf_headers

    part = _part(blob)
    with _alone(file, blob):
        done = part.stat().st_size if part.exists() else 0
        if done > file.size:
            part.unlink()
            done = 0
        url = hf_hub_url(repository.name, file.name, repo_type=repository.kind, revision=repository.commit)
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}  # ranges of what is packed make no sense
        shown: dict[str, Any] = {"expected_size": file.size, "displayed_filename": file.name}
        try:
            if file.size > constants.MAX_HTTP_DOWNLOAD_SIZE:  # such a one the hub serves from its Xet storage alone
                storage = get_hf_file_metadata(url).xet_file_data
                if storage is None:
                    raise ValueError(f"{file.name} has no Xet storage")
                xet_get(incomplete_path=part, xet_file_data=storage, headers=build_hf_headers(), **shown)
            else:
                with part.open("ab") as out:
                    http_get(url, out, resume_size=done, headers=headers, **shown)
        except KeyboardInterrupt:
            came = part.stat().st_size
            raise Stopped(
                f"Stopped with {came / 1e6:,.1f} of {file.size / 1e6:,.1f} MB of {file.name}: run the same command "
                "to resume."
            ) from None
        _check(repository, file, part)
        part.replace(blob)


@contextlib.contextmanager
def _alone(file: RemoteFile, blob: Path) -> Iterator[None]:
    """Two processes must not append to one file; the lock is the one that the hub's library takes for it."""
    from huggingface_hub.utils import WeakFileLock

    repo = blob.parent.parent
    lock = repo.parent / ".locks" / repo.name / f"{blob.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(lock, timeout=1))
        except TimeoutError:
            raise ModelError(f"{file.name} is being downloaded by another process: wait for that one.") from None
        yield


def _part(blob: Path) -> Path:
    """What came of it so far: a name that the hub's own tools know how to clean up."""
    return blob.with_name(f"{blob.name}.incomplete")


def _check_room(folder: Path, files: Sequence[RemoteFile]) -> None:
    parts = [_part(folder / file.digest) for file in files]
    needed = sum(file.size for file in files) - sum(part.stat().st_size for part in parts if part.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ModelError(
            f"{files[0].name} needs {needed / 1e6:,.1f} MB more and {folder} has {free / 1e6:,.1f} MB free: make room, or point "
            "HF_HOME to another disk."
        )


def _check(repository: Repository, file: RemoteFile, part: Path) -> None:
    """Raises ModelError, and takes the file away, unless its bytes are those that the hub promised."""
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    with part.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != file.digest:
        part.unlink()
        raise ModelError(
            f"The download of {file.name} from {repository.name} had the wrong checksum and was deleted: try again, and "
            "suspect the network or the mirror if it happens again."
        )


@contextlib.contextmanager
def _in_one_sentence(repo: str) -> Iterator[None]:
    """Whatever the hub's library raises, as a ModelError."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when the library is imported
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 (told apart below; what is not known is raised again)
        _translate(error, repo)


def _translate(error: Exception, repo: str) -> NoReturn:
    import errno
    import ssl

    import httpx2
    from huggingface_hub import constants, errors

    host = constants.ENDPOINT.split("://")[-1]
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, errors.GatedRepoError):
        raise ModelError(
            f"{repo} requires you to accept its terms: do so at {constants.ENDPOINT}/{repo}, and put your "
            "token into HF_TOKEN."
        ) from error
    if isinstance(error, errors.RepositoryNotFoundError):
        raise ModelError(
            f"{host} has no repository {repo}, or it is private: check the name, or put your token into HF_TOKEN."
        ) from error
    if isinstance(error, errors.EntryNotFoundError):
        raise ModelError(f"{repo} no longer has that file: try again.") from error
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        hints = {
            401: "put a valid token into HF_TOKEN",
            403: "put a valid token into HF_TOKEN",
            404: "check HF_ENDPOINT",
        }
        hint = hints.get(status, "try again later; the partial download is kept")
        raise ModelError(f"{host} answered {status} for {repo}: {hint}.") from error
    if isinstance(error, errors.HFValidationError):
        raise ModelError(f"{repo} can't be the name of a repository: it must be owner/repo.") from error
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        raise ModelError(
            f"The certificate of {host} is not trusted ({_reason(error)}): if your network has its own, name its "
            "file in SSL_CERT_FILE."
        ) from error
    if isinstance(error, ssl.SSLError) and os.environ.get("SSL_CERT_FILE"):
        raise ModelError(
            f"SSL_CERT_FILE names {os.environ['SSL_CERT_FILE']}, which has no readable certificate ({_reason(error)}): "
            "fix it or unset it."
        ) from error
    if isinstance(error, (httpx2.HTTPError, errors.OfflineModeIsEnabled)):
        proxy = hub_settings.proxy_for(constants.ENDPOINT)
        through = f" through the proxy {proxy}" if proxy else ""
        raise ModelError(
            f"{host} can't be reached{through} ({_reason(error)}): check the network and try again; {STAYS}."
        ) from error
    if isinstance(error, UnicodeEncodeError):  # of what is sent, that is not ours alone
        raise ModelError("The token in HF_TOKEN has invalid characters: put a valid token there.") from error
    if isinstance(error, (errors.FileMetadataError, ValueError)):  # no JSON, other JSON or headers than a hub's
        raise ModelError(f"{host} does not answer like a hub ({_reason(error)}): check HF_ENDPOINT.") from error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise ModelError(
            f"The disk is full, so {repo} can't be downloaded to {constants.HF_HUB_CACHE}: make room, and the same "
            "command goes on from there."
        ) from error
    if isinstance(error, OSError):
        raise ModelError(
            f"{repo} can't be downloaded to {constants.HF_HUB_CACHE} ({_reason(error)}): try again."
        ) from error
    raise error


def _reason(error: Exception) -> str:
    text = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
    return text if len(text) <= 120 else text[:119] + "…"
