"""Fetch what `facesyn push` published, or weights of others, by a name of the list, a repository or an address."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from facesyn_cli.artifacts.atomic_files import TEMPORARY_PREFIX, writing
from facesyn_cli.artifacts.download import fetch, file_name
from facesyn_cli.artifacts.file_manifest import CARD, MANIFEST, MAX_CARD, MAX_MANIFEST, FileManifest, check_name
from facesyn_cli.artifacts.hub import HubName, RepoType, download, fetch_from_hub, listed_files, read_file
from facesyn_cli.artifacts.lock import Lock
from facesyn_cli.artifacts.packaged_networks import AUTOENCODERS
from facesyn_cli.artifacts.publication import check_finished
from facesyn_cli.console import log
from facesyn_cli.errors import UserError
from facesyn_cli.models.catalog import CATALOG

WEIGHTS = Path("weights")  # default folder of what facesyn did not push
_SHOWN = 3                 # files that a message names
_CACHE = ".cache"          # of the client, in a folder that it downloads to


def pull(name: str, out: Path | None = None, revision: str | None = None, sha256: str | None = None) -> dict[str, Any]:
    """Download a folder that was pushed, or weights, by a name of the list, a repository of the hub or an address.

    A pushed folder appears whole, after the digest of every file has been verified, or not at all. An interrupted
    download resumes. Nothing that is downloaded is executed.

    Args:
        name: For example `owner/name`, `datasets/owner/name`, `owner/name/file.safetensors`, `sd-vae-ft-mse` or
            `https://...`.
        out: Folder to write; None: `name` for a pushed folder, else `weights`, with a folder in it for a repository.
        revision: Branch, tag or commit of a repository; None: main.
        sha256: Expected checksum of a single file.

    Returns:
        JSON values: of a pushed folder `folder`, `kind`, `state` (new, or finished where it is there already), `repo`,
        `repo_type`, `commit`, `files`, `bytes`; else `folder` or `file`, with `hub` and `digest` where known.

    Raises:
        UserError: The name is unknown, the server cannot be reached, a file is damaged, or `out` has other content.
    """
    if "://" in name:
        file = (out or WEIGHTS) / file_name(name)
        digest = fetch(name, file, sha256)
        if sha256 is None:
            log.warning(f"{file}: no checksum was given; compare {digest} with the one that its author publishes")
        return {"file": str(file), "digest": digest}
    if name in AUTOENCODERS:
        raise UserError(f"{name} comes with facesyn, so there is nothing to download: give it by this name, for example"
                        f" train-ldm --autoencoder {name}")
    entry = CATALOG.get(name)
    hub = HubName.parse(name if entry is None else entry.hub or "")
    if entry is not None and hub is None:
        raise UserError(f"{name} has no address to download it from; get it by hand: {entry.where}")
    if hub is None:
        raise UserError(f"{name} is not in the list (facesyn models list), no hub id owner/name and no address")
    if revision is not None:
        if hub.revision not in (None, revision):
            raise UserError(f"{name} names the revision {hub.revision}, --revision {revision}; give one of them")
        hub = HubName(hub.repo, hub.repo_type, revision, hub.file)
    if hub.file is None and sha256 is None and entry is None:
        if (pushed := _pull_pushed(hub, out)) is not None:
            return pushed
    where = out if out is not None else WEIGHTS if hub.file else WEIGHTS / hub.short
    return fetch_from_hub(str(hub), where, sha256)


def _pull_pushed(hub: HubName, out: Path | None) -> dict[str, Any] | None:
    """Fetch a repository that `facesyn push` wrote; None for any other one of a model."""
    found = listed_files(hub, hub.revision)
    if found is None:
        raise UserError(f"{hub.repo} does not come from the hub: there is no such repository, or you may not see it; "
                        "for a private one log in with `hf auth login`, or set HF_TOKEN")
    repo_type, commit, listed = found
    for file in listed:
        check_name(file, hub.repo)
    if MANIFEST not in listed:
        if repo_type == "model":
            return None
        raise UserError(f"{hub.repo} is a dataset that `facesyn push` did not write ({MANIFEST} is missing); download "
                        f"it with: hf download {hub.repo} --repo-type dataset --local-dir {hub.short}")
    manifest = FileManifest.parse(read_file(hub, repo_type, commit, MANIFEST, MAX_MANIFEST), hub.repo)
    if missing := sorted(set(manifest.files) - set(listed)):
        raise UserError(f"{hub.repo} lacks {len(missing)} of its {len(manifest.files)} files, first {missing[0]}; its "
                        "owner has to push it again")
    if wrong := {name: f"has {listed[name]} bytes" for name, facts in manifest.files.items()
                 if listed[name] != facts.size}:
        raise UserError(f"{hub.repo} does not hold the files that were pushed ({_listed(wrong)}); its owner has to "
                        "push it again")
    folder = out if out is not None else Path(hub.short)
    if folder.name in ("", ".."):
        raise UserError(f"--out {folder}: a folder with a name was expected, for example {hub.short}")
    is_there = _is_there(folder, manifest)
    if is_there:
        log.info(f"{folder} is there already, with the same {len(manifest.files)} files")
    else:
        _fetch(hub, repo_type, commit, listed, manifest, folder)
        log.info(f"{folder} is complete ({manifest.kind}, {len(manifest.files)} files); every digest is verified")
    return {
        "folder": str(folder), "kind": manifest.kind, "state": "finished" if is_there else "new", "repo": hub.repo,
        "repo_type": repo_type, "commit": commit, "files": len(manifest.files), "bytes": manifest.num_bytes,
    }


def _is_there(folder: Path, manifest: FileManifest) -> bool:
    """Return whether a folder holds the files of a manifest already.

    Raises:
        UserError: It holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; give a new folder with --out")
    if differences := manifest.differences(folder):
        raise UserError(f"{folder} exists with other content ({_listed(differences)}); give a new folder with --out")
    return True


def _fetch(
    hub: HubName, repo_type: RepoType, commit: str, listed: dict[str, int], manifest: FileManifest, folder: Path
) -> None:
    """Download to a temporary folder beside `folder`, verify, and rename; the temporary folder stays for a resume."""
    temporary = folder.parent / f"{TEMPORARY_PREFIX}pull-{folder.name}"
    wanted = {*manifest.files, *([CARD] if listed.get(CARD, 0) <= MAX_CARD else [])}
    if ignored := sorted(set(listed) - wanted - {MANIFEST, ".gitattributes"}):
        log.info(f"{len(ignored)} files of {hub.repo} are not of the pushed folder and left out: {_listed(ignored)}")
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with Lock(folder.parent, f"pull-{folder.name}"):
            _require_space(manifest, folder.parent, temporary)
            download(hub, repo_type, commit, temporary, {file: listed[file] for file in sorted(wanted & set(listed))})
            if damaged := manifest.differences(temporary):
                for file in damaged:
                    (temporary / file).unlink(missing_ok=True)  # a resume would keep it
                raise UserError(f"{hub.repo} comes damaged from the hub ({_listed(damaged)}); run the same command "
                                "again, and if that does not help, its owner has to push it again")
            _remove_others(temporary, wanted)
            kind, _ = check_finished(temporary)
            if kind != manifest.kind:
                raise UserError(f"{hub.repo} is a {kind}, {MANIFEST} says {manifest.kind}; its owner has to push it "
                                "again")
            os.replace(temporary, folder)


def _require_space(manifest: FileManifest, place: Path, temporary: Path) -> None:
    there = sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file()) if temporary.is_dir() else 0
    if manifest.num_bytes - there > shutil.disk_usage(place).free:
        raise UserError(f"no space for {manifest.num_bytes / 1e9:.1f} GB in {place}; free some space and run the same "
                        "command again")


def _remove_others(folder: Path, wanted: set[str]) -> None:
    """Remove what is not of the folder: the state of the download, and files of an earlier revision."""
    shutil.rmtree(folder / _CACHE, ignore_errors=True)
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            if Path(place, name).relative_to(folder).as_posix() not in wanted:
                Path(place, name).unlink()
        with suppress(OSError):  # not empty
            os.rmdir(place)


def _listed(names: dict[str, str] | list[str]) -> str:
    """Return the first names, with what is wrong with them."""
    words = [f"{name} {what}" for name, what in names.items()] if isinstance(names, dict) else names
    more = [f"{len(words) - _SHOWN} more"] if len(words) > _SHOWN else []
    return ", ".join([*words[:_SHOWN], *more])
