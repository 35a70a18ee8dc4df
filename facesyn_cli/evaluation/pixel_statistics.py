"""Brightness, contrast, sharpness and pose of the images of a set.

Sharpness is the variance of the Laplacian of an image in gray levels (Pech-Pacheco et al. 2000, ICPR, "Diatom
autofocusing in brightfield microscopy", section 3): the four neighbors minus four times the pixel. It depends on the
size of the image, so only sets of one size compare.

Pose is measured by the two ratios of `data/pose.py`. Profiles, where one eye is hidden, are mostly missed by detectors;
the share of images with a face is therefore reported as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from facesyn_cli import signals
from facesyn_cli.data.pose import pose_of
from facesyn_cli.data.sharding import share
from facesyn_cli.distributed import Processes
from facesyn_cli.evaluation.metrics import Metric, declare
from facesyn_cli.evaluation.section import SPREAD, Figure, Histogram, Section, clustered_error, mean_over_identities

MAX_IMAGES = 2000  # images of a set in the sample for sharpness and pose
Find = Callable[[NDArray[np.uint8]], list[tuple[NDArray[np.float64], float]]]
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow's mode L

declare(
    Metric("pixels.brightness", "Brightness", "Mean brightness of an image: 0 is black, 1 is white.",
        formula="mean of the luma of all pixels / 255"),
    Metric("pixels.contrast", "Contrast", "How much light and dark differ within an image.",
        formula="standard deviation of the luma / 255"),
    Metric("pixels.brightness_spread", "Brightness spread", "How much images differ in brightness.",
        formula="standard deviation over images of the brightness"),
    Metric("pixels.sharpness", "Sharpness", "How sharp images are: blurred ones have low values, noise and hard edges "
        "high ones. Compare sets of one image size only.", formula="median over images of the variance of the "
        "Laplacian of the luma, in gray levels", source="Pech-Pacheco et al. 2000"),
    Metric("pixels.face_score", "Detector score", "How sure the face detector is of the faces that it finds.",
        formula="mean over images with a face of the highest score", better="higher"),
    Metric("pixels.faces_found", "Faces found", "Share of images in which a face detector finds a face; profiles are "
        "often missed.", formula="images with a face / images", better="higher", unit="share"),
    Metric("pixels.yaw", "Yaw", "How far faces look to the side: 0 is frontal, as a ratio and not in degrees.",
        formula="offset of the nose from the middle of the eyes along them / distance of the eyes"),
    Metric("pixels.pitch", "Pitch", "How far faces look down (more) or up (less), as a ratio and not in degrees.",
        formula="height of the nose below the eyes / height of the mouth below the eyes"),
    Metric("pixels.yaw_spread", "Yaw spread", "How much images differ in yaw.",
        formula="standard deviation over images of the yaw", better="higher"),
    Metric("pixels.pitch_spread", "Pitch spread", "How much images differ in pitch.",
        formula="standard deviation over images of the pitch", better="higher"),
    Metric("pixels.yaw_within", "Yaw spread of a person", "How much the images of one identity differ in yaw.",
        formula="mean over identities of the standard deviation of the yaw", better="higher"),
    Metric("pixels.pitch_within", "Pitch spread of a person", "How much the images of one identity differ in pitch.",
        formula="mean over identities of the standard deviation of the pitch", better="higher"),
    Metric("pixels.contrast_spread", "Contrast spread", "How much images differ in contrast.",
        formula="standard deviation over images of the contrast"),
)


def pixel_section(thumbnails: NDArray[np.uint8], owner: NDArray) -> Section:
    """Return mean and spread of brightness and contrast of the pictures, gray values from 0 (black) to 1 (white)."""
    mean, square = np.empty(len(thumbnails)), np.empty(len(thumbnails))
    for start in range(0, len(thumbnails), 65536):
        gray = thumbnails[start : start + 65536].reshape(-1, thumbnails[0].size) / 255.0
        mean[start : start + 65536], square[start : start + 65536] = gray.mean(1), np.square(gray).mean(1)
    contrast = np.sqrt(np.maximum(square - np.square(mean), 0))
    section = Section()
    edges = np.linspace(0, 1, 65)
    for name, values in (("brightness", mean), ("contrast", contrast)):
        section.figures += [
            Figure(f"pixels.{name}", float(values.mean()), len(values), "images",
                   error=clustered_error(values, owner), error_from=SPREAD),
            Figure(f"pixels.{name}_spread", float(values.std()), len(values), "images"),
        ]
        section.histograms.append(Histogram(
            f"pixels.{name}", name, edges, {"images": np.histogram(values, edges)[0]}
        ))
    return section


def sharpness_of(pixels_u8: NDArray[np.uint8]) -> float:
    """Return the variance of the Laplacian of an image, in squared gray levels; NaN where a side is below 3 pixels.

    Args:
        pixels_u8: (H, W, 3) uint8, RGB.
    """
    if min(pixels_u8.shape[:2]) < 3:
        return float("nan")
    gray = pixels_u8 @ _LUMA
    around = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:]
    return float((around - 4 * gray[1:-1, 1:-1]).var())


def measure_sample(
    keys: Sequence[str], owner: NDArray, read: Callable[[str], NDArray[np.uint8] | None], find: Find | None, seed: int,
    processes: Processes,
) -> NDArray[np.float64]:
    """Measure a sample of a set. A collective.

    Args:
        keys: (N,) keys of the images.
        owner: (N,) identity of each.
        read: From a key to (H, W, 3) uint8, or None where it cannot be read.
        find: Finds the faces of an image, best first; see `models.yunet.Yunet.find`. None: there is no detector.
        seed: Seed of the sample of whole identities, where there are more than `MAX_IMAGES` images.
        processes: Those that divide the images.

    Returns:
        (n, 4): sharpness, score of the best face, yaw, pitch; NaN where an image is unreadable or has no face.
    """
    mine = []
    for row in share(sample_rows(owner, seed).tolist(), processes.rank, processes.world_size):
        pixels_u8 = read(keys[row])
        faces = find(pixels_u8) if find and pixels_u8 is not None else []
        sharpness = np.nan if pixels_u8 is None else sharpness_of(pixels_u8)
        mine.append((sharpness, faces[0][1], *pose_of(faces[0][0])) if faces else (sharpness, *[np.nan] * 3))
        signals.check()
    shares = processes.gather_objects(mine)
    measured = np.empty((sum(map(len, shares)), 4))
    for rank, part in enumerate(shares):
        measured[rank::len(shares)] = np.reshape(part, (-1, 4))
    return measured


def sharpness_section(measured: NDArray[np.float64], owner: NDArray) -> Section:
    """Return the sharpness of a set; arguments as of `pose_section`."""
    values = measured[:, 0][np.isfinite(measured[:, 0])]
    return Section([Figure("pixels.sharpness", float(np.median(values)) if len(values) else None, len(values), "images",
                           len(measured) == len(owner))])


def pose_section(measured: NDArray[np.float64], owner: NDArray, seed: int) -> Section:
    """Return what a detector found: faces, its scores, the spread of yaw and pitch over a set and inside identities.

    Args:
        measured: What `measure_sample` returned.
        owner: (N,) identity of each image of the set.
        seed: Seed of the sample.
    """
    chosen, scores, poses = sample_rows(owner, seed), measured[:, 1], measured[:, 2:]
    has_face, found = np.isfinite(scores), np.isfinite(poses).all(axis=1)
    is_exact, people = len(chosen) == len(owner), owner[chosen]
    section = Section([
        Figure("pixels.faces_found", float(has_face.mean()), len(chosen), "images", is_exact,
               clustered_error(has_face, people), SPREAD),
        Figure("pixels.face_score", float(scores[has_face].mean()) if has_face.any() else None, int(has_face.sum()),
               "images with a face", is_exact, clustered_error(scores[has_face], people[has_face]), SPREAD),
    ])
    edges = {"yaw": np.linspace(-0.6, 0.6, 61), "pitch": np.linspace(0, 1.2, 61)}
    for column, name in enumerate(("yaw", "pitch")):
        values, owners = poses[found, column], people[found]
        within = [values[owners == one].std(ddof=1) for one in np.unique(owners) if (owners == one).sum() > 1]
        section.figures += [
            Figure(f"pixels.{name}_spread", float(values.std()) if len(values) else None, len(values),
                   "images with a face", exact=is_exact),
            mean_over_identities(f"pixels.{name}_within", within, "identities with two faces", exact=is_exact),
        ]
        clipped = np.clip(values, edges[name][0], edges[name][-1])
        section.histograms.append(Histogram(
            f"pixels.{name}", name, edges[name], {"images": np.histogram(clipped, edges[name])[0]}, exact=is_exact
        ))
    return section


def sample_rows(owner: NDArray, seed: int) -> NDArray[np.int64]:
    """Return the rows of randomly drawn identities, up to `MAX_IMAGES`, in order; all rows where there are no more."""
    if len(owner) <= MAX_IMAGES:
        return np.arange(len(owner))
    people, sizes = np.unique(owner, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(people))
    count = max(1, int(np.searchsorted(np.cumsum(sizes[order]), MAX_IMAGES, side="right")))
    return np.flatnonzero(np.isin(owner, people[order[:count]]))
