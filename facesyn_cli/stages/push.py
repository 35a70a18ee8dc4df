"""Publish a finished folder on the Hugging Face Hub: one commit with its files, their digests and a card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from facesyn_cli.artifacts.digest import bytes_digest
from facesyn_cli.artifacts.file_manifest import CARD, MANIFEST, MAX_CARD, MAX_MANIFEST, FileManifest
from facesyn_cli.artifacts.hub import HubName, RepoType, client, hub_errors, listed_files, read_file
from facesyn_cli.artifacts.origins import PHOTO, UNKNOWN
from facesyn_cli.artifacts.publication import Publication
from facesyn_cli.console import log
from facesyn_cli.errors import UserError
from facesyn_cli.progress import progress
from facesyn_cli.report.hub_card import card_of, license_of

_FAILS = "cannot be pushed"
_LARGE = 10_000_000  # bytes of a file that is sent on its own
_REAL = {PHOTO: "holds photos of real people, or data made from them",
         UNKNOWN: "may hold photos of real people, or data made from them: its headers do not say"}


def push(
    folder: Path, repo: str, private: bool = True, revision: str | None = None, message: str | None = None,
    license: str | None = None, allow_real: bool = False, dry_run: bool = False,
) -> dict[str, Any]:
    """Upload a finished folder into a repository of the hub, which is made if there is none.

    All files arrive in one commit, so nobody ever sees a half of them. After an interruption, run it again: large files
    that have arrived are not sent again. Files of an earlier push that the folder no longer holds are deleted.

    Args:
        folder: A finished folder of a stage, or a starter.
        repo: `owner/name`.
        private: Only for its owner. A public repository is refused then; a private one always stays private.
        revision: Branch to commit to, made if there is none; None: main.
        message: Message of the commit.
        license: Name of the hub for the license, for example `cc-by-nc-4.0`; None: that of the folder's card.
        allow_real: Also push faces of real people, or of unknown origin.
        dry_run: Check and list everything, without a connection.

    Returns:
        JSON values: `state` (new, updated, unchanged; with `dry_run` planned), `repo`, `repo_type`, `url`, `commit`,
        `kind`, `private`, `license`, `files`, `bytes`, `left_out`, `without_local_paths`, `card`.

    Raises:
        UserError: The folder is unfinished, damaged, or shows real people; no token, no access, no connection.
    """
    name = HubName.parse(repo)
    if name is None or name.file or name.revision:
        raise UserError(f"{repo[:300]!r} is no name of a repository; owner/name was expected")
    made = Publication.of(folder)
    if name.repo_type not in (None, made.repo_type):
        raise UserError(f"{repo}: a {made.kind} goes to a {made.repo_type} repository")
    if made.origin in _REAL and not allow_real:
        raise UserError(f"{folder} {_REAL[made.origin]}; add --allow-real if you have the right to share them")
    card = card_of(made, name.repo, license)
    manifest = FileManifest.of(made.kind, card, made.contents)
    result = {
        "state": "planned", "repo": name.repo, "repo_type": made.repo_type, "kind": made.kind, "private": private,
        "license": license_of(card, str(folder / CARD)), "files": len(manifest.files), "bytes": manifest.num_bytes,
        "left_out": dict(made.left_out), "without_local_paths": made.replaced,
        "card": "of the folder" if (folder / CARD).is_file() else "new",
    }
    if made.naming_paths:
        log.warning(f"{', '.join(made.naming_paths[:3])}: names folders of this machine, and is pushed as it is")
    if result["license"] is None:
        log.warning("no license is stated: nobody may use it; give one with --license, for example cc-by-nc-4.0")
    return result if dry_run else result | _upload(made, manifest, card, name.repo, private, revision, message)


def _upload(
    made: Publication, manifest: FileManifest, card: str, repo: str, private: bool, revision: str | None,
    message: str | None,
) -> dict[str, Any]:
    """Commit what differs from the repository."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, get_token

    if get_token() is None:
        raise UserError(f"{repo} {_FAILS}: no token is known; log in with `hf auth login`, or set HF_TOKEN")
    place = HubName(repo, made.repo_type)
    api = client()
    is_new, is_private = _open_repository(place, private, revision)
    listed = listed_files(place, revision)
    if listed is None:
        raise UserError(f"{repo} {_FAILS}: it has been made, but cannot be seen; run the same command again")
    _, commit, remote = listed
    earlier = _earlier(place, made.repo_type, commit, remote)
    if earlier is None and (theirs := sorted(set(remote) & {*manifest.files, MANIFEST})):
        raise UserError(f"{repo} {_FAILS}: it holds files that facesyn did not push there ({', '.join(theirs[:3])}); "
                        "give another repository")
    contents = {**made.contents, MANIFEST: manifest.to_bytes(), CARD: card.encode()}
    kept = CARD in remote and _is_edited(place, made.repo_type, commit, earlier)
    if kept:
        del contents[CARD]
        log.info(f"{CARD} of {repo} was edited on the hub and stays as it is")
    gone = sorted((set(earlier.files) if earlier else set()) & set(remote) - set(contents))
    operations = [CommitOperationAdd(file, content) for file, content in sorted(contents.items())]
    operations += [CommitOperationDelete(file) for file in gone]
    large = [one for one in operations if isinstance(one, CommitOperationAdd) and one.upload_info.size >= _LARGE]
    with hub_errors(repo, _FAILS), progress(repo, manifest.num_bytes, "bytes") as bar:
        for one in large:  # one by one in this thread, which a stop signal can end
            api.preupload_lfs_files(repo, [one], repo_type=made.repo_type, revision=revision, free_memory=False)
            bar.advance(one.upload_info.size)
        done = api.create_commit(
            repo, operations, repo_type=made.repo_type, revision=revision,
            commit_message=message or f"{made.kind} by facesyn",
        )
        bar.advance(manifest.num_bytes - bar.done)
    state = "new" if is_new else "unchanged" if done.oid == commit else "updated"
    url = f"{api.endpoint}/{'datasets/' if made.repo_type == 'dataset' else ''}{repo}"
    log.info(f"to get it: facesyn pull {url.removeprefix(api.endpoint).lstrip('/')}")
    found = {"state": state, "url": url, "commit": done.oid, "private": is_private, "deleted": gone}
    return found | ({"card": "of the hub"} if kept else {})


def _open_repository(place: HubName, private: bool, revision: str | None) -> tuple[bool, bool]:
    """Make a repository, and the branch in it, unless they exist.

    Returns:
        Whether it is new, and whether it is private.

    Raises:
        UserError: It exists and is public, and a private one was asked for.
    """
    from huggingface_hub.utils import GatedRepoError, RepositoryNotFoundError

    api, kind = client(), {"repo_type": place.repo_type}
    with hub_errors(place.repo, _FAILS):
        try:
            is_private, is_new = bool(api.repo_info(place.repo, **kind).private), False
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            api.create_repo(place.repo, private=private, exist_ok=True, **kind)
            is_private, is_new = private, True
        if private and not is_private:
            raise UserError(f"{place.repo} {_FAILS}: it exists and everybody can see it; add --public to push there")
        if not private and is_private:
            log.info(f"{place.repo} is private and stays so; its settings on the hub make it public")
        if revision not in (None, "main"):
            api.create_branch(place.repo, branch=revision, exist_ok=True, **kind)
    return is_new, is_private


def _earlier(place: HubName, repo_type: RepoType, commit: str, remote: dict[str, int]) -> FileManifest | None:
    """Return the manifest of the last push; None without one."""
    if MANIFEST not in remote:
        return None
    return FileManifest.parse(read_file(place, repo_type, commit, MANIFEST, MAX_MANIFEST), place.repo)


def _is_edited(place: HubName, repo_type: RepoType, commit: str, earlier: FileManifest | None) -> bool:
    """Return whether the card in a repository is another one than facesyn pushed."""
    card = read_file(place, repo_type, commit, CARD, MAX_CARD)
    return earlier is None or bytes_digest(card) != earlier.card
