"""Catalog of published weights: network, publisher, license, download location, and the options that take them.

Most of them are distributed by forms or drives that cannot be downloaded automatically; `facesyn models pull` fetches
those with a `hub` id.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownWeights:
    """One published network.

    Args:
        kind: Plugin kind, or another kind of network.
        architecture: Plugin name with its variant.
        source: Publisher.
        license: License of the weights as stated.
        where: Download location.
        use: Commands and options that take it.
        hub: Hugging Face Hub id, or None.
    """

    kind: str
    architecture: str
    source: str
    license: str
    where: str
    use: str
    hub: str | None = None


_IDIFF = "https://github.com/fdbtrs/IDiff-Face"
_ADMIS = "https://github.com/zzzweakman/CVPR24_FRCSyn_ADMIS"
_TFACE = "https://github.com/Tencent/TFace"
_DCFACE = "https://github.com/mk-minchul/dcface"
_NONE = "none stated"

CATALOG: dict[str, KnownWeights] = {
    "admis-ldm": KnownWeights(
        "denoiser", "idiff-unet (ca, CPD 25 %), 216,341,187 parameters",
        "ADMIS, FRCSyn at CVPR 2024: ema_averaged_model_200000.ckpt, trained on CASIA-WebFace",
        f"{_NONE}; its code derives from IDiff-Face (CC BY-NC-SA 4.0)", f"Google Drive, linked from {_ADMIS}",
        "sample --ldm",
    ),
    "idiff-face-ldm": KnownWeights("denoiser", "idiff-unet (ca, CPD 25 % or 50 %), 216,341,187 parameters",
                                   "IDiff-Face, arXiv:2308.04995: ema_averaged_model.ckpt, trained on FFHQ",
                                   "CC BY-NC-SA 4.0", f"on request by a form, {_IDIFF}", "sample --ldm"),
    "uiface-ldm": KnownWeights(
        "denoiser", "idiff-unet (ca, learned empty context)", "UIFace, arXiv:2502.19803, trained on CASIA-WebFace",
        "code Apache-2.0", f"Google Drive, linked from {_TFACE} (generation/uiface)",
        "sample --ldm; gen-contexts --source two-stage --ldm",
    ),
    "negfacediff-ldm": KnownWeights(
        "denoiser", "idiff-unet (ca)", "NegFaceDiff, arXiv:2508.09661: IDiff-Face trained on CASIA-WebFace",
        "CC BY-NC", "on request, https://github.com/EduardaCaldeira/NegFaceDiff", "sample --ldm",
    ),
    "vq-f4-ffhq": KnownWeights(
        "autoencoder", "vq-f4, whole or first_stage_{encoder,decoder}_state_dict.pt",
        "CompVis latent-diffusion (FFHQ 256), arXiv:2112.10752", "code MIT; FFHQ-derived weights are non-commercial",
        f"split files with the weights of {_ADMIS} and {_IDIFF}", "train-ldm, sample, gen-contexts --autoencoder",
    ),
    "compvis-kl": KnownWeights(
        "autoencoder", "kl-f4 or kl-f8, whole checkpoints", "CompVis latent-diffusion, arXiv:2112.10752", "code MIT",
        "https://github.com/CompVis/latent-diffusion", "train-ldm --autoencoder",
    ),
    "sd-vae-ft-mse": KnownWeights(
        "autoencoder", "diffusers AutoencoderKL, f = 8", "Stability AI", "see its page on the hub",
        "Hugging Face Hub", "train-ldm --autoencoder", hub="stabilityai/sd-vae-ft-mse",
    ),
    "dcface-stage1": KnownWeights("generator", "guided-diffusion UNet, 93,563,910 parameters, 256 px",
                                  "DCFace stage 1, arXiv:2304.07060: ffhq_10m.pt, trained on FFHQ",
                                  f"{_NONE} (FFHQ-derived: non-commercial)", f"linked from {_DCFACE}",
                                  "gen-contexts --source guided-diffusion --generator"),
    "ddpm-celebahq-256": KnownWeights(
        "generator", "diffusers DDPM pipeline, 256 px", "Google, arXiv:2006.11239, trained on CelebA-HQ",
        "see its page on the hub", "Hugging Face Hub", "gen-contexts --source diffusers --generator",
        hub="google/ddpm-ema-celebahq-256",
    ),
    "ldm-celebahq-256": KnownWeights(
        "generator", "diffusers LDM pipeline, 256 px", "CompVis, arXiv:2112.10752, trained on CelebA-HQ",
        "see its page on the hub", "Hugging Face Hub", "gen-contexts --source diffusers --generator",
        hub="CompVis/ldm-celebahq-256",
    ),
    "elasticface-arc-r100": KnownWeights(
        "backbone", "iresnet-100, 65,156,160 parameters",
        "ElasticFace, arXiv:2109.09416: 295672backbone.pth, trained on MS1MV2", "CC BY-NC-SA 4.0",
        "linked from https://github.com/fdbtrs/ElasticFace (Arc, Cos, Arc+ and Cos+ share the file name)",
        "embed, gen-contexts, eval --weights; the published LDMs are conditioned on it",
    ),
    "tface-ir": KnownWeights("backbone", "ir-50, ir-101 and others", "TFace", "Apache-2.0", f"linked from {_TFACE}",
                             "embed, eval --weights"),
    "admis-fr": KnownWeights(
        "backbone", "ir-50, 43,585,600 parameters", "ADMIS: IR-50 + ArcFace on Syn_10k and Syn_30k", _NONE,
        f"Google Drive, linked from {_ADMIS}", "eval --weights",
    ),
    "tface-mobilefacenet": KnownWeights(
        "backbone", "mobilefacenet, 112 px", "TFace", "Apache-2.0", f"linked from {_TFACE}", "embed, eval --weights",
    ),
    "tface-head": KnownWeights(
        "head", "kernel (512, classes), in HEAD_Epoch_<E>_Split_<rank> files", "TFace, ADMIS: saved by each training",
        "that of the training they are from", "beside the Backbone_Epoch_<E> file of a training",
        "train-fr initial_head=; models convert joins the parts",
    ),
    "insightface-onnx": KnownWeights(
        "backbone", "ONNX recognizers, 112 px", "InsightFace model packs (buffalo_sc: MobileFaceNet, WebFace600K)",
        "non-commercial research only", "https://github.com/deepinsight/insightface", "embed, eval --weights",
    ),
    "arcface-torch": KnownWeights(
        "backbone", "iresnet-18 to iresnet-100, mbf, mbf-large", "InsightFace arcface_torch",
        "code MIT; models non-commercial", "Baidu or OneDrive, linked from https://github.com/deepinsight/insightface",
        "embed, eval --weights",
    ),
    "adaface-ir": KnownWeights("backbone", "ir-18, ir-50, ir-101 and others in a Lightning checkpoint, BGR input",
                               "AdaFace, arXiv:2204.00964", "unknown; see its page",
                               "linked from https://github.com/mk-minchul/AdaFace", "embed, eval --weights"),
    "curricularface": KnownWeights(
        "backbone", "ir-101 and others with variant=curricularface", "CurricularFace, arXiv:2004.00288",
        "unknown; see its page", "its authors' page", "embed, eval --weights",
    ),
    "face-evolve": KnownWeights("backbone", "ir-50 and others with variant=face-evolve", "face.evoLVe", "code MIT",
                                "linked from https://github.com/ZhaoJ9014/face.evoLVe", "embed, eval --weights"),
    "magface": KnownWeights(
        "backbone", "iresnet-18 to iresnet-100 with variant=magface, BGR in [0, 1]", "MagFace, arXiv:2103.06627",
        "unknown; see its page", "its authors' page", "embed, eval --weights",
    ),
    "cvlface": KnownWeights(
        "backbone", "IR and IResNet; model.yaml beside the file says RGB or BGR", "CVLface (14 models)",
        "code MIT; see the page of each model",
        "Hugging Face Hub, linked from https://github.com/mk-minchul/CVLface; pull OWNER/NAME", "embed, eval --weights",
    ),
    "edgeface-xxs": KnownWeights("backbone", "timm edgenext_* with 512 outputs, or ONNX", "EdgeFace, arXiv:2307.01838",
                                 "BSD-3; its weight pages may be stricter", "unknown; its authors' page",
                                 "eval --weights; a judge recognizer independent of the generator"),
    "yunet": KnownWeights(
        "detector", "YuNet, ONNX, 5 landmarks", "OpenCV FaceDetectorYN", "Apache-2.0", "OpenCV's model zoo",
        "align: finds faces in raw photos",
    ),
}
