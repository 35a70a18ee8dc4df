"""The texts behind the figures of a report, one entry each; `definitions.py` adds families of names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Definition:
    """The meaning of one figure, histogram, curve or list.

    Args:
        title: Its name for people.
        text: What it is, in a sentence or two that need no training in biometrics.
        formula: How it is computed, in plain text; empty for pictures.
        source: Where the definition is from; empty when it is ours.
        better: `higher`, `lower`, or None when neither is.
    """

    title: str
    text: str
    formula: str = ""
    source: str = ""
    better: str | None = None


_IDIFF = "IDiff-Face, arXiv:2308.04995"
_DCFACE = "DCFace, arXiv:2304.07060"
_VEC2FACE = "Vec2Face, arXiv:2409.02979"
_VIGFACE = "VIGFace, arXiv:2403.08277"
_VARIFACE = "VariFace, arXiv:2412.06235"
UNVEILING = "Unveiling Synthetic Faces, arXiv:2410.24015"
_PRDC = "Naeem et al., arXiv:2002.09797"
_RECALL = "Kynkaanniemi et al., arXiv:1904.06991"
_ISO = "ISO/IEC 19795-1"
_ZHANG = "Zhang et al., arXiv:1801.03924, Eq. 1"
_RFW = "RFW, arXiv:1812.00194"
_PERCEPTUAL = "sum over maps of the mean over places of |w (a - b)|^2, a and b of unit length over channels"

DEFINITIONS: dict[str, Definition] = {
    # identity
    "identity.genuine_mean": Definition(
        "Genuine mean", "Mean score of two images with the same label.",
        "mean of cos(e_i, e_j) over pairs with one label", _IDIFF, "higher"),
    "identity.impostor_mean": Definition(
        "Impostor mean", "Mean score of two images with different labels.",
        "mean of cos(e_i, e_j) over pairs with two labels", _IDIFF, "lower"),
    "identity.eer": Definition(
        "Equal error rate", "Share of wrong decisions at the threshold where different people are accepted as often "
        "as the same person is rejected.", "(FMR(t) + FNMR(t)) / 2 at the t with the least |FMR(t) - FNMR(t)|", _IDIFF,
        "lower"),
    "identity.fmr100": Definition(
        "FMR100", "Share of same-person pairs rejected when 1 % of different-person pairs are accepted.",
        "FNMR(t) at the t with FMR(t) closest to 1 %", _IDIFF, "lower"),
    "identity.fmr1000": Definition(
        "FMR1000", "Share of same-person pairs rejected when 0.1 % of different-person pairs are accepted.",
        "FNMR(t) at the t with FMR(t) closest to 0.1 %", _IDIFF, "lower"),
    "identity.fdr": Definition(
        "Fisher discriminant ratio", "How far genuine and impostor scores lie apart, measured in their spread.",
        "(mean_G - mean_I)^2 / (var_G + var_I)", _IDIFF, "higher"),
    "identity.dprime": Definition(
        "d-prime", "Distance of genuine and impostor scores in units of their common standard deviation.",
        "|mean_G - mean_I| / sqrt((var_G + var_I) / 2)", _IDIFF, "higher"),
    "identity.unique_share": Definition(
        "Unique identities (U_class)", "Share of identities left when every one too close to an earlier one is "
        "dropped: how many different people there are for each one claimed.",
        "|U| / C; class centers in order, c joins U when cos(c, u) < r for every u in U", _DCFACE, "higher"),
    "identity.unique_040": Definition(
        "Unique identities at 0.40", "The same at the fixed threshold that Vec2Face publishes.",
        "|U| / C; c joins U when cos(c, u) < 0.40 for every u in U", _VEC2FACE, "higher"),
    "identity.separate_040": Definition(
        "Separate identities at 0.40", "Share of identities that no other identity comes close to.",
        "share of centers c with max over others of cos(c, c') <= 0.40", _VEC2FACE, "higher"),
    "identity.consistent_share": Definition(
        "Consistent images (C_intra)", "Share of images that show the person their label says, averaged over "
        "identities. Too close to 100 % means that the images of a person vary little.",
        "mean over classes of the share of images with cos(e, center) > r", _DCFACE, "higher"),
    "identity.consistency": Definition(
        "Consistency", "Mean score of two images of one identity, averaged over identities.",
        "mean over identities of the mean of cos(e_i, e_j) inside each", _VIGFACE, "higher"),
    "identity.separability": Definition(
        "Separability", "Mean distance of an identity's center to the centers of the others.",
        "mean over pairs of classes of 1 - cos(c, c')", _VIGFACE, "higher"),
    "identity.wrong_label_share": Definition(
        "Wrong labels", "Share of images that are nearer to another identity than to their own.",
        "share of images whose best match among all other identities' centers beats their own center, computed "
        "without the image", "", "lower"),
    "identity.mixed_identities": Definition(
        "Mixed identities", "Labels under which the images fall into two people.", "", "", "lower"),
    "identity.split_identities": Definition(
        "Split identities", "Pairs of labels that show one and the same person.", "", "", "lower"),
    "identity.scores": Definition(
        "Genuine and impostor scores", "How similar two images of one person are, and two images of different people. "
        "The less the two hills overlap, the better the labels can be learned."),
    "identity.nearest_center": Definition(
        "Nearest other identity", "For every identity, the score of the most similar other one. A hill on the right "
        "is people who were made twice."),
    "identity.det": Definition(
        "Detection error trade-off", "Both kinds of error at every threshold; the closer to the lower left corner, "
        "the better.", "FMR(t) = share of impostor scores >= t; FNMR(t) = share of genuine scores < t", _ISO),
    "identity.roc": Definition(
        "Receiver operating characteristic", "Share of same-person pairs accepted against the share of "
        "different-person pairs accepted.", "TMR(t) = 1 - FNMR(t) against FMR(t)", _ISO),
    "identity.unique_by_count": Definition(
        "Unique identities by size", "How the share of unique identities falls as the set grows: where the source of "
        "identities runs dry.", "U_class of the first n identities", _DCFACE),
    "identity.best": Definition("Most typical images", "Images closest to the center of their identity."),
    "identity.worst": Definition(
        "Least typical images", "Images farthest from the center of their identity: bad pictures, odd poses or "
        "wrong labels."),
    "identity.wrong_labels": Definition(
        "Images with a doubtful label", "Images nearer to another identity than to their own, worst first."),
    "identity.mixed": Definition("Identities that hold two people", "Labels whose images fall into two groups."),
    "identity.split": Definition("Identities that are one person", "Pairs of labels that seem to show one person."),
    # diversity
    "diversity.vendi": Definition(
        "Face Vendi Score", "Effective number of different faces among the images: 1 when all are alike, the number "
        "of images when all are unlike.", "exp(-sum l ln l), l the eigenvalues of K / n, K the cosines", _VARIFACE,
        "higher"),
    "diversity.vendi_centers": Definition(
        "Vendi Score of the identities", "Effective number of different people: the same over class centers.",
        "exp(-sum l ln l), l the eigenvalues of K / C, K the cosines of class centers", _VARIFACE, "higher"),
    "diversity.vendi_within": Definition(
        "Vendi Score within an identity", "Effective number of different images of one person, averaged over "
        "identities. It grows with wrong labels as well: read it beside the consistent images.",
        "mean over identities of exp(-sum l ln l)", _VARIFACE, "higher"),
    "diversity.d_intra": Definition(
        "Style coverage (D_intra)", "Share of real styles that the images of one person reach, averaged over "
        "identities. Images that do not look like one person reach far, too: read it beside the consistency.",
        "per class: share of real features within the k-nearest-neighbor radius of a generated one",
        f"{_DCFACE}; recall of {_RECALL}", "higher"),
    "diversity.within_spread": Definition(
        "Spread within an identity", "Mean distance of an image to the center of its identity.",
        "mean over identities of the mean of 1 - cos(e, center)", ""),
    "diversity.near_duplicates_within": Definition(
        "Near-duplicates within identities", "Share of images that nearly repeat another image of the same identity.",
        "", "", "lower"),
    "diversity.near_duplicates_between": Definition(
        "Near-duplicates between identities", "Share of images that nearly repeat an image of another identity.",
        "", "", "lower"),
    "diversity.vendi_per_identity": Definition(
        "Variety per identity", "Effective number of different images, of every identity."),
    "diversity.near_duplicates": Definition("Near-duplicates", "Pairs of images that are almost the same picture."),
    "diversity.least_varied": Definition("Least varied identities", "Identities whose images are most alike."),
    "diversity.perceptual": Definition(
        "Perceptual distance within an identity", "How different two images of one identity look, in the feature maps "
        "of the judge; near 0 they are the same picture again. It is LPIPS's form without its learned weights, so "
        "compare it only within one judge.", _PERCEPTUAL + ", w = 1", _ZHANG, "higher"),
    "diversity.perceptual_between": Definition(
        "Perceptual distance between identities", "The same for images of two different identities, to compare.",
        _PERCEPTUAL + ", w = 1", _ZHANG),
    "diversity.perceptual_real": Definition(
        "Perceptual distance of real photos", "The same for real photos of one person, to compare.",
        _PERCEPTUAL + ", w = 1", _ZHANG),
    "diversity.perceptual_per_identity": Definition(
        "Perceptual distance per identity", "Mean distance of the images of every identity that was looked at."),
    "diversity.perceptual_least": Definition(
        "Identities that look least varied", "Identities whose images look most alike, by perceptual distance."),
    "diversity.lpips": Definition(
        "LPIPS within an identity", "How different two images of one identity look, by a distance learned from "
        "people's judgements; near 0 they are the same picture again.", _PERCEPTUAL + ", w learned", _ZHANG, "higher"),
    "diversity.lpips_between": Definition(
        "LPIPS between identities", "The same for images of two different identities, to compare.",
        _PERCEPTUAL + ", w learned", _ZHANG),
    "diversity.lpips_real": Definition(
        "LPIPS of real photos", "The same for real photos of one person, to compare.", _PERCEPTUAL + ", w learned",
        _ZHANG),
    "diversity.lpips_per_identity": Definition(
        "LPIPS per identity", "Mean distance of the images of every identity that was looked at."),
    "diversity.lpips_least": Definition(
        "Least varied identities by LPIPS", "Identities whose images look most alike."),
    # quality
    "quality.frechet": Definition(
        "Frechet distance", "How far the images as a whole are from the real reference, in the features of the judge. "
        "Comparable only between sets measured with the same judge, reference and number of images.",
        "|m1 - m2|^2 + trace(S1 + S2 - 2 (S1 S2)^(1/2))", "Heusel et al., arXiv:1706.08500", "lower"),
    "quality.frechet_floor": Definition(
        "Frechet distance of real to real", "The same between two halves of the reference with different people: "
        "what even real images hardly go below. Of fewer images it comes out higher.",
        "Frechet distance of two random halves of the reference", "", None),
    "quality.kernel": Definition(
        "Kernel distance", "As the Frechet distance, but unbiased: its expectation does not depend on the number of "
        "images.", "squared MMD with k(a, b) = (a.b / d + 1)^3, unbiased", "Binkowski et al., arXiv:1801.01401",
        "lower"),
    "quality.precision": Definition(
        "Precision", "Share of images that look like something in the reference: fidelity.",
        "share of generated features within the k-nearest-neighbor radius of a real one", _RECALL, "higher"),
    "quality.recall": Definition(
        "Recall", "Share of the reference that the set could have produced: coverage of what is real.",
        "share of real features within the k-nearest-neighbor radius of a generated one", _RECALL, "higher"),
    "quality.density": Definition(
        "Density", "How many real neighborhoods an image falls into, relative to a real image; robust against "
        "outliers in the reference, may exceed 1.",
        "mean over generated features of (real k-NN balls that hold it) / k", _PRDC, "higher"),
    "quality.coverage": Definition(
        "Coverage", "Share of real images with at least one generated image in their neighborhood.",
        "share of real k-NN balls that hold a generated feature", _PRDC, "higher"),
    "features.d_intra": Definition(
        "Style coverage (D_intra), Inception", "Share of real images that the images of one person come near to, "
        "averaged over identities, as DCFace publishes it.",
        "per class: share of real features within the k-nearest-neighbor radius of a generated one, k = 3",
        f"{_DCFACE}; recall of {_RECALL}", "higher"),
    # privacy
    "privacy.copies": Definition(
        "Copies", "Images that are a training image again: exact, re-encoded, mirrored or cropped.", "", UNVEILING,
        "lower"),
    "privacy.copied_share": Definition(
        "Copied share", "Copies as a share of the images.", "copies / images", UNVEILING, "lower"),
    "privacy.nearest": Definition(
        "Nearest training face", "For every image, the score of the most similar training face; and, to compare, the "
        "same of every real person with all other real people. A synthetic curve to the right of the real one is "
        "memorised people.", "max over training faces of the cosine", UNVEILING),
    "privacy.nearest_curve": Definition(
        "Nearest training face, from above", "Share of images whose nearest training face has at least this score; "
        "and, to compare, the same of real people among strangers.", "share with max over training faces >= x",
        UNVEILING),
    "privacy.top_pairs": Definition(
        "Closest pairs", "The images closest to a training face, beside that face: look at them.", "", UNVEILING),
    # fairness
    "fairness.images": Definition("Images of a group", "How many images belong to the group."),
    "fairness.identities": Definition("Identities of a group", "How many identities have images in the group."),
    "fairness.fmr": Definition(
        "False match rate", "Share of different-person pairs of a group accepted at the threshold common to all "
        "groups.", "FMR_group(t), t common to all groups", _ISO, "lower"),
    "fairness.fnmr": Definition(
        "False non-match rate", "Share of same-person pairs of a group rejected at the threshold common to all "
        "groups.", "FNMR_group(t), t common to all groups", _ISO, "lower"),
    "fairness.benchmark_accuracy": Definition(
        "Accuracy", "Share of pairs of one group that the recognizer decides rightly, mean over the folds; the error "
        "is the spread over the folds.", "mean over folds of the accuracy at the best threshold of the others", _RFW,
        "higher"),
    "fairness.benchmark_eer": Definition(
        "Equal error rate", "Share of wrong decisions on pairs of one group, where both kinds of error are equal.",
        "(FMR(t) + FNMR(t)) / 2 at the t with the least |FMR(t) - FNMR(t)|", _IDIFF, "lower"),
    "fairness.benchmark_mean": Definition(
        "Mean over groups", "Mean accuracy of the groups.", "mean over groups", _RFW, "higher"),
    "fairness.benchmark_std": Definition(
        "Standard deviation over groups", "How much the accuracy differs between the groups.",
        "sqrt(sum (accuracy - mean)^2 / (groups - 1))", _RFW, "lower"),
    # pixels
    "pixels.brightness": Definition(
        "Brightness", "Mean brightness of an image: 0 is black, 1 is white.", "mean of the luma of all pixels / 255"),
    "pixels.contrast": Definition(
        "Contrast", "How much light and dark differ within an image.", "standard deviation of the luma / 255"),
    "pixels.brightness_spread": Definition(
        "Brightness spread", "How much images differ in brightness.",
        "standard deviation over images of the brightness"),
    "pixels.faces_found": Definition(
        "Faces found", "Share of images in which a face detector finds a face; profiles are often missed.",
        "images with a face / images", "", "higher"),
    "pixels.yaw": Definition(
        "Yaw", "How far faces look to the side: 0 is frontal, as a ratio and not in degrees.",
        "offset of the nose from the middle of the eyes along them / distance of the eyes"),
    "pixels.pitch": Definition(
        "Pitch", "How far faces look down (more) or up (less), as a ratio and not in degrees.",
        "height of the nose below the eyes / height of the mouth below the eyes"),
    "pixels.yaw_spread": Definition(
        "Yaw spread", "How much images differ in yaw.", "standard deviation over images of the yaw", "", "higher"),
    "pixels.pitch_spread": Definition(
        "Pitch spread", "How much images differ in pitch.", "standard deviation over images of the pitch", "",
        "higher"),
    "pixels.yaw_within": Definition(
        "Yaw spread of a person", "How much the images of one identity differ in yaw.",
        "mean over identities of the standard deviation of the yaw", "", "higher"),
    "pixels.pitch_within": Definition(
        "Pitch spread of a person", "How much the images of one identity differ in pitch.",
        "mean over identities of the standard deviation of the pitch", "", "higher"),
    "pixels.contrast_spread": Definition(
        "Contrast spread", "How much images differ in contrast.",
        "standard deviation over images of the contrast"),
}
