"""The Hugging Face Hub through `huggingface_hub`: names of repositories, downloads, and its errors in one line.

`huggingface_hub` finds the token (`HF_TOKEN`, or the login of `hf auth login`) and the endpoint (`HF_ENDPOINT`).
"""

from __future__ import annotations

import queue
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from facesyn_cli import signals
from facesyn_cli.artifacts.atomic_files import writing
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.download import parse_checksum
from facesyn_cli.errors import UserError
from facesyn_cli.progress import progress
from facesyn_cli.untrusted.input_files import read_bytes

RepoType = Literal["model", "dataset"]
_NAME = re.compile(
    r"((?P<type>models|datasets)/)?(?P<repo>[\w-][\w.-]*/[\w.-]+?)(@(?P<revision>[\w./-]+?))?"
    r"(/(?P<file>[\w-][\w ./-]*\.\w+))?"
)
_LEFT_OUT = ["*.msgpack", "*.h5", "*.ot", "*.tflite", "flax_*", "tf_*"]  # the same weights for other frameworks
_CLIENTS = ("huggingface_hub", "httpx", "httpx2", "httpcore", "requests", "urllib3")  # with errors of their own
_THREADS = 8  # files that are downloaded at the same time
_NO_DOWNLOAD = "does not come from the hub"
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
_ANSWERS = {  # status of an answer -> what it means
    401: f"the token is missing or not accepted (401); {_LOGIN}",
    403: "the token does not allow this (403); a token with write access to this repository is needed to push",
    404: f"no such repository, revision or file, or not visible to you (404); for a private repository {_LOGIN}",
    429: "too many requests (429); wait some minutes and run the same command again",
}


@dataclass(frozen=True)
class HubName:
    """A repository, or a file of it, as users write it.

    Args:
        repo: `owner/name`.
        repo_type: model or dataset, where the name begins with `models/` or `datasets/`; else None.
        revision: Branch, tag or commit after `@`, or None.
        file: File of the repository, or None.
    """

    repo: str
    repo_type: RepoType | None = None
    revision: str | None = None
    file: str | None = None

    @staticmethod
    def parse(text: str) -> HubName | None:
        """Return the parts of `[datasets/]owner/name[@revision][/file.ending]`; None for any other text."""
        match = _NAME.fullmatch(text)
        if match is None or ".." in text:
            return None
        repo_type = {"models": "model", "datasets": "dataset", None: None}[match["type"]]
        return HubName(match["repo"], repo_type, match["revision"], match["file"])

    def __str__(self) -> str:
        prefix = f"{self.repo_type}s/" if self.repo_type else ""
        revision, file = f"@{self.revision}" if self.revision else "", f"/{self.file}" if self.file else ""
        return f"{prefix}{self.repo}{revision}{file}"

    @property
    def short(self) -> str:
        """The name without its owner."""
        return self.repo.partition("/")[2]


def client() -> Any:
    """Return a `huggingface_hub.HfApi`. Its own progress bars, one for each file, are off."""
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    return huggingface_hub.HfApi(library_name="facesyn")


@contextmanager
def hub_errors(name: str, action: str) -> Iterator[None]:
    """Turn an error of the client or of the hub in the block into a UserError; a stop signal ends the block.

    Args:
        name: Repository, for messages.
        action: What fails: `does not come from the hub`, `cannot be pushed`.
    """
    try:
        with signals.interruptible():
            yield
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, (OSError, ValueError, RuntimeError)) and not _is_of_client(error):
            raise
        raise UserError(f"{name} {action}: {_reason(error)}") from error


def fetch_from_hub(name: str, folder: Path, sha256: str | None = None) -> dict[str, Any]:
    """Fetch a whole repository, or one file of it, into a folder.

    Raises:
        UserError: Not reachable, no such repository or file, no access, or another checksum.
    """
    hub, expected = HubName.parse(name), parse_checksum(sha256)
    if hub is None:
        raise UserError(f"{name[:300]!r} is no name on the hub; owner/name or owner/name/file.ending was expected")
    if sha256 is not None and hub.file is None:
        raise UserError(f"--sha256 belongs to a single file; {name} is a whole repository (name a file: {name}/FILE)")
    import huggingface_hub

    if sys.stderr.isatty():
        huggingface_hub.utils.enable_progress_bars()
    with hub_errors(name, _NO_DOWNLOAD):
        if hub.file is None:
            huggingface_hub.snapshot_download(
                hub.repo, repo_type=hub.repo_type, revision=hub.revision, local_dir=folder, ignore_patterns=_LEFT_OUT
            )
            # its client takes any folder that is there where it reaches nobody
            if not any(p.is_file() and ".cache" not in p.relative_to(folder).parts for p in folder.rglob("*")):
                raise UserError(f"{name} does not come from the hub: nothing has arrived in {folder}; is this "
                                "machine online?")
            return {"folder": str(folder), "hub": name}
        path = Path(huggingface_hub.hf_hub_download(
            hub.repo, hub.file, repo_type=hub.repo_type, revision=hub.revision, local_dir=folder
        ))
    digest = file_digest(path)
    if expected not in (None, digest):
        path.unlink()
        raise UserError(f"{name}: has checksum {digest}, expected {sha256}; the file is removed")
    return {"file": str(path), "hub": name, "digest": digest}


def listed_files(name: HubName, revision: str | None) -> tuple[RepoType, str, dict[str, int]] | None:
    """Return the type of a repository, the commit of a revision, and its files with their sizes in bytes.

    A name without `models/` or `datasets/` is a model if there is one of that name, else a data set.

    Returns:
        None where there is no such repository, or none that the user may see.

    Raises:
        UserError: Not reachable, no such revision, no access.
    """
    from huggingface_hub.utils import GatedRepoError, RepositoryNotFoundError

    for repo_type in (name.repo_type,) if name.repo_type else ("model", "dataset"):
        with hub_errors(name.repo, _NO_DOWNLOAD):
            try:
                info = client().repo_info(name.repo, repo_type=repo_type, revision=revision)
            except GatedRepoError:
                raise
            except RepositoryNotFoundError:
                continue
            tree = client().list_repo_tree(name.repo, repo_type=repo_type, revision=info.sha, recursive=True)
            return repo_type, str(info.sha), {item.path: item.size for item in tree if hasattr(item, "size")}
    return None


def download(name: HubName, repo_type: RepoType, commit: str, folder: Path, sizes: dict[str, int]) -> None:
    """Download files of a commit into a folder; those that are there are not fetched again, and halves are resumed.

    A stop signal ends it at once: the threads are daemons, which `huggingface_hub.snapshot_download` does not have.

    Args:
        name: The repository.
        repo_type: Its type.
        commit: Its commit, so that all files are of one state.
        folder: Where the files go, and in `.cache/` the state of unfinished ones.
        sizes: File -> size in bytes.
    """
    import huggingface_hub

    client()
    folder.mkdir(parents=True, exist_ok=True)
    waiting, results = iter(sizes), queue.SimpleQueue()
    lock, is_over = threading.Lock(), threading.Event()

    def work() -> None:
        while not is_over.is_set():
            with lock:
                file = next(waiting, None)
            if file is None:
                return
            try:
                huggingface_hub.hf_hub_download(
                    name.repo, file, repo_type=repo_type, revision=commit, local_dir=folder
                )
                results.put((file, None))
            except BaseException as error:
                results.put((file, error))
                return

    try:
        with (
            writing(folder), hub_errors(name.repo, _NO_DOWNLOAD),
            progress(name.repo, sum(sizes.values()), "bytes") as bar,
        ):
            for _ in range(min(_THREADS, len(sizes))):
                threading.Thread(target=work, daemon=True).start()
            for _ in sizes:
                file, error = results.get()
                if error is not None:
                    raise error
                bar.advance(sizes[file])
    finally:
        is_over.set()


def read_file(name: HubName, repo_type: RepoType, commit: str, file: str, limit: int) -> bytes:
    """Return the content of a small file of a commit.

    Raises:
        UserError: As `download`, or it is larger than `limit` bytes.
    """
    import huggingface_hub

    client()
    with tempfile.TemporaryDirectory() as folder:
        with hub_errors(name.repo, _NO_DOWNLOAD):
            path = huggingface_hub.hf_hub_download(
                name.repo, file, repo_type=repo_type, revision=commit, local_dir=folder
            )
        return read_bytes(path, limit, f"{file} of {name.repo}")


def _reason(error: BaseException) -> str:
    """Return the first error in a chain that says what is wrong, as one line."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    for cause in chain:
        if type(cause).__name__ == "OfflineModeIsEnabled":
            return "HF_HUB_OFFLINE is set, which forbids to reach the hub"
    for cause in chain:
        if type(cause).__name__ == "GatedRepoError":
            return "its owner admits readers one by one; ask for access on its page, then log in with `hf auth login`"
        if type(cause).__name__ == "RevisionNotFoundError":
            return "it has no such revision"
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status in _ANSWERS:
            return _ANSWERS[status]
        if isinstance(status, int) and status >= 500:
            return f"the hub has a problem ({status}); run the same command again later"
    for cause in reversed(chain):
        if type(cause).__name__ in ("ConnectError", "ConnectionError", "ConnectTimeout", "ReadTimeout", "ReadError",
                                    "NewConnectionError", "RemoteProtocolError"):
            return f"the hub cannot be reached ({_one_line(cause)}); is this machine online?"
    return _one_line(error) or type(error).__name__


def _is_of_client(error: Exception) -> bool:
    return any(kind.__module__.partition(".")[0] in _CLIENTS for kind in type(error).__mro__)


def _one_line(text: object) -> str:
    return "".join(c for c in " ".join(str(text).split()) if c.isprintable())[:200]
