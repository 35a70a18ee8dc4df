"""The gallery of a report, from its inputs and the cached embeddings of its first judge."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

from facesyn_cli import __version__
from facesyn_cli.artifacts.origins import GENERATED
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.leakage import REFERENCE
from facesyn_cli.report.gallery import FOLDER, PAGE, GallerySet, write_gallery
from facesyn_cli.report.gallery_rows import GalleryRows, gallery_rows
from facesyn_cli.report.measured_sets import Measurer
from facesyn_cli.report.metric_sections import reference_images
from facesyn_cli.report.network_passes import ReportInputs
from facesyn_cli.report.pictures import data_uri
from facesyn_cli.report.provenance import origins_text
from facesyn_cli.report.set_pictures import NamedSet, SetPictures


def add_gallery(
    inputs: ReportInputs, pictures: SetPictures, measurer: Measurer, data: dict[str, Any], most: int | None,
    max_pairs: int, seed: int,
) -> None:
    """Write the gallery of a report, unless it is there already or `most` is 0.

    Args:
        inputs: Inputs of the report.
        pictures: Reads the images.
        measurer: Its caches hold the embeddings; what is missing there is computed.
        data: Content of `report.json`.
        most: Images of a set at most; 0: no gallery, None: all.
        max_pairs: See `gallery_rows`.
        seed: See `gallery_rows`.
    """
    if most == 0:
        return
    judge_name, judge = next(iter(inputs.judges.items()))
    options = measurer.options

    def faces(held: NamedSet) -> LabeledEmbeddings:
        judge.module.to(options.device)
        return measurer.faces(held, judge_name, judge, measurer.small(held))

    @cache
    def training() -> LabeledEmbeddings | None:
        return faces(inputs.reference) if inputs.reference else None

    def compute(held: NamedSet) -> GalleryRows:
        lengths = measurer.embedding_lengths(held, judge_name, judge)
        return gallery_rows(faces(held), lengths, training(), most, max_pairs, seed)

    def training_keys() -> list[str]:
        found = training()
        return found.keys if found else []

    keys = reference_images(data)
    uris = {key: data_uri(pictures.encoded(REFERENCE, key)) for key in keys}
    photos = {key: uri for key, uri in uris.items() if uri}
    described = {one["name"]: one for one in data["sets"]}
    sets = [
        GallerySet(
            held.name, _about_origin(described[held.name]), judge_name,
            training_keys, photos, partial(compute, held),
        ) for held in inputs.sets
    ]
    made_from = {
        "facesyn": __version__, "sets": [[held.name, held.images.digest, held.keys_digest] for held in inputs.all_sets],
        "judge": [judge_name, judge.digest, options.flip, options.fit, options.precision], "images": most,
        "max_pairs": max_pairs, "seed": seed, "photos": sorted(photos),
    }
    write_gallery(inputs.folder, sets, made_from, pictures.pixels, options.workers)
    judge.module.to("cpu")


def _about_origin(one: dict[str, Any]) -> str:
    """Return where the images of a set are from, with a warning where they may show real people."""
    text = origins_text(one)
    if set(one["origins"]) <= {GENERATED}:
        return text
    return f"{text} The gallery holds a thumbnail of each: share it only where the people shown agree."


def gallery_link(folder: Path) -> str | None:
    """Return the address of a report's gallery for a link on its page; None where there is no gallery."""
    return f"{FOLDER}/{PAGE}" if (folder / FOLDER / PAGE).is_file() else None
