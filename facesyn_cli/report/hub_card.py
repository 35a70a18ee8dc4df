"""The card of a folder on the hub: a new one where the folder has none, and the license in the head of any card."""

from __future__ import annotations

import json
import re

import yaml

from facesyn_cli.artifacts.file_manifest import CARD, MAX_CARD
from facesyn_cli.artifacts.local_paths import without_local_paths
from facesyn_cli.artifacts.publication import STARTER, Publication
from facesyn_cli.errors import UserError
from facesyn_cli.report.rendering import printable, render_markdown
from facesyn_cli.untrusted.input_files import read_text
from facesyn_cli.untrusted.parsing import parse_yaml

_ABOUT = {
    "BenchmarkTable": "Verification results of a face recognizer on benchmarks.",
    "ContextSet": "Contexts: one embedding for each identity to generate.",
    "EmbeddingSet": "Embeddings of face images, one for each image.",
    "ImageSet": "Face images in one folder for each identity.",
    "PairSet": "Pairs of face images for verification.",
    "RecordSet": "Face images with identity labels, packed for training.",
    "Report": "Quality, diversity and privacy of sets of face images: open `report.html`.",
    STARTER: "Small networks and contexts to generate face images with.",
    "Study": "Comparison of schedulers and sampling steps on one latent diffusion model.",
    "Weights": "Weights of a network for face generation or recognition.",
}
_ROLES = ("identity", "recorded", "growing")  # roles of settings that affect the result
_HEAD = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_LICENSE_LINES = re.compile(r"^license(?:_name|_link)?:.*\r?\n", re.MULTILINE)
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
UNKNOWN = "other"  # what the hub calls a license that is none of its list; so do the cards of `pack` and `report`


def card_of(made: Publication, repo: str, license: str | None) -> str:
    """Return the card of a folder: its own `README.md`, or a new one, with the license in its head.

    Args:
        made: The folder.
        repo: Repository that it goes to.
        license: Name of the hub for a license, for example `cc-by-nc-4.0`; None: that of the card.

    Raises:
        UserError: The card states another license, or its head is no YAML.
    """
    if license is not None and not _LICENSE.fullmatch(license):
        raise UserError(f"license {license!r}: a name as the hub has it was expected, for example cc-by-nc-4.0, "
                        "apache-2.0 or other")
    path = made.folder / CARD
    text = read_text(path, MAX_CARD, "a card") if path.is_file() else _new_card(made, repo)
    return text if license is None else _with_license(text, license, str(path))


def license_of(card: str, where: str) -> str | None:
    """Return the license in the head of a card; None where there is none, or only the placeholder `other`, `unknown`.

    Raises:
        UserError: The head is no YAML.
    """
    head = _head_of(card, where)
    license = head.get("license")
    return None if license is None or (license == UNKNOWN and head.get("license_name") == "unknown") else str(license)


def _with_license(text: str, license: str, where: str) -> str:
    """Return a card with a license in its head; every other line stays as it is."""
    stated = license_of(text, where)
    if stated == license:
        return text
    if stated is not None:
        raise UserError(f"{where} states the license {stated}, --license {license}; leave --license out, or change the "
                        "card")
    match = _HEAD.match(text)
    line = f"license: {license}\n"
    if match is None:
        return f"---\n{line}---\n\n{text}"
    return f"---\n{line}{_LICENSE_LINES.sub('', match[1])}---\n{text[match.end():]}"


def _head_of(card: str, where: str) -> dict:
    match = _HEAD.match(card)
    if match is None:
        return {}
    try:
        head = parse_yaml(match[1])
    except UserError as error:
        raise UserError(f"the head of {where}: {error}") from error
    if not isinstance(head, dict):
        raise UserError(f"the head of {where} is no YAML mapping")
    return head


def _new_card(made: Publication, repo: str) -> str:
    header = made.header
    network = ["pytorch"] if made.repo_type == "model" else []
    synthetic = ["synthetic"] if made.origin == "generated" else []
    head = {
        "license": UNKNOWN, "license_name": "unknown",
        "tags": ["facesyn", "face-recognition", *network, *synthetic],
    }
    settings = {role: header.config[role] for role in _ROLES if header.config.get(role)} if header else {}
    settings = json.loads(without_local_paths(json.dumps(settings)))
    counts = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in header.counts.items()) if header \
        else ""
    return render_markdown(
        "hub_card.md.j2", head=yaml.safe_dump(head, sort_keys=False), title=printable(repo.partition("/")[2]),
        about=_ABOUT.get(made.kind, f"A {made.kind} of facesyn."), counts=counts, origin=made.origin, repo=repo,
        header=header, recipe=yaml.safe_dump(settings, sort_keys=True, allow_unicode=True) if settings else "",
    )
