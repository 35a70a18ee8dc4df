"""The kinds of plugins, their interfaces, and the modules of the built-in plugins.

Only names; nothing is imported here, so listing plugins is fast.
"""

from __future__ import annotations

KINDS: dict[str, str] = {
    "backbone": "face pixels, or their latents -> embedding",
    "head": "embedding and label -> logits with a margin",
    "denoiser": "noisy latent, timestep, context -> prediction of noise, v or x0",
    "autoencoder": "pixels <-> latents",
    "scheduler": "diffusion sampler: steps from noise to a latent",
    "guidance": "combination of denoiser outputs under several contexts",
    "contexts": "source of new identities",
    "context_filter": "selection of candidate contexts",
    "context_variation": "variation of the context from image to image of an identity",
    "sample_filter": "rejection of sampled images, which are drawn again",
    "augmentation": "images added to a sampled set",
    "transform": "random image transform during training",
    "record_format": "file format of a packed set",
    "benchmark": "verification or identification benchmark",
}

# Return type of the builders of each kind, as shown by `facesyn plugins`.
INTERFACES: dict[str, str] = {
    "backbone": "facesyn_cli.models.interfaces.Backbone",
    "head": "facesyn_cli.models.heads.margin.Head",
    "denoiser": "facesyn_cli.models.interfaces.Denoiser",
    "autoencoder": "facesyn_cli.models.interfaces.Autoencoder",
    "scheduler": "facesyn_cli.diffusion.schedulers.MakeScheduler",
    "guidance": "facesyn_cli.diffusion.guidance.Guidance",
    "contexts": "facesyn_cli.contexts.source.ContextSource",
    "context_filter": "facesyn_cli.contexts.source.ContextFilter",
    "context_variation": "facesyn_cli.contexts.variation.ContextVariation",
    "sample_filter": "facesyn_cli.sampling.consistency.SampleFilter",
    "augmentation": "facesyn_cli.augmentations.addition.Augmentation",
    "transform": "facesyn_cli.data.transforms.Transform",
    "record_format": "facesyn_cli.artifacts.record_set.RecordFormat",
    "benchmark": "facesyn_cli.evaluation.benchmarks.Benchmark",
}

_MODELS = "facesyn_cli.models"

BUILTIN: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}

BUILTIN["backbone"] = {
    **{f"ir-{d}": f"{_MODELS}.ir" for d in (18, 34, 50, 101, 152, 200)},
    **{f"ir-se-{d}": f"{_MODELS}.ir" for d in (18, 34, 50, 101, 152, 200)},
    **{f"iresnet-{d}": f"{_MODELS}.iresnet" for d in (18, 34, 50, 100)},
    "iresnet": f"{_MODELS}.iresnet",
    "ir-tiny": f"{_MODELS}.ir",
    "ir-lite": f"{_MODELS}.ir",
    "latent-ir": f"{_MODELS}.latent_ir",
    **{name: f"{_MODELS}.mobilefacenet" for name in ("mobilefacenet", "mbf", "mbf-large")},
    "onnx": f"{_MODELS}.onnx_backbone",
    "timm": f"{_MODELS}.timm_backbone",
}
BUILTIN["head"] = {
    **{name: f"{_MODELS}.heads.{name}" for name in ("adaface", "curricularface", "magface")},
    **{f"elasticface-{kind}": f"{_MODELS}.heads.elasticface" for kind in ("arc", "arc-plus", "cos", "cos-plus")},
    **{name: f"{_MODELS}.heads.fixed_margin"
       for name in ("arcface", "combined-margin", "cosface", "normface", "softmax")},
}
BUILTIN["denoiser"] = {"idiff-unet": f"{_MODELS}.idiff_unet", "dit": f"{_MODELS}.dit"}
BUILTIN["autoencoder"] = {
    "vq-f4": f"{_MODELS}.vq_f4",
    "kl-f4": f"{_MODELS}.kl_autoencoder",
    "kl-f8": f"{_MODELS}.kl_autoencoder",
    "diffusers": f"{_MODELS}.diffusers_autoencoder",
    "pixels": f"{_MODELS}.pixel_autoencoder",
    "face-kl": f"{_MODELS}.face_autoencoder",
    "face-vq": f"{_MODELS}.face_autoencoder",
}
BUILTIN["scheduler"] = {
    **{
        name: "facesyn_cli.diffusion.schedulers"
        for name in ("ddim", "ddim-admis", "ddpm", "dpm-solver++", "euler", "lcm", "unipc")
    },
    **{name: "facesyn_cli.diffusion.flow_schedulers" for name in ("flow-euler", "flow-heun")},
}
BUILTIN["guidance"] = {
    **{name: "facesyn_cli.diffusion.guidance" for name in ("none", "cfg")},
    **{name: "facesyn_cli.diffusion.guidance_negative" for name in ("negfacediff", "adaptdiff")},
    "internal": "facesyn_cli.diffusion.guidance_internal",
    "scoremix": "facesyn_cli.diffusion.guidance_scoremix",
    "uiface": "facesyn_cli.diffusion.guidance_uiface",
}
BUILTIN["contexts"] = {
    "sphere": "facesyn_cli.contexts.sphere",
    "pca": "facesyn_cli.contexts.pca",
    "mix": "facesyn_cli.contexts.mix",
    "repulsion": "facesyn_cli.contexts.repulsion",
    "embeddings": "facesyn_cli.contexts.from_embeddings",
    "images": "facesyn_cli.contexts.from_images",
    "diffusers": "facesyn_cli.contexts.diffusers_pipeline",
    "guided-diffusion": "facesyn_cli.contexts.guided_diffusion_source",
    "two-stage": "facesyn_cli.contexts.two_stage",
}
BUILTIN["context_filter"] = {
    "unique": "facesyn_cli.contexts.unique",
    "novel": "facesyn_cli.contexts.novel",
    "quality": "facesyn_cli.contexts.quality",
}
BUILTIN["context_variation"] = {
    "idperturb": "facesyn_cli.contexts.idperturb",
    "gaussian": "facesyn_cli.contexts.gaussian_variation",
    "shared-noise": "facesyn_cli.contexts.shared_noise",
    "given": "facesyn_cli.contexts.given_variation",
}
BUILTIN["sample_filter"] = {"consistency": "facesyn_cli.sampling.consistency"}
BUILTIN["augmentation"] = {
    "oversample": "facesyn_cli.augmentations.oversample",
    "photometric": "facesyn_cli.augmentations.photometric",
}
BUILTIN["transform"] = {
    name: "facesyn_cli.data.transforms" for name in (
        "flip", "random-resized-crop", "random-erasing", "low-resolution", "photometric",
    )
}
BUILTIN["record_format"] = {
    "tfrecord": "facesyn_cli.data.tfrecord",
    "rec": "facesyn_cli.data.rec_format",
    "webdataset": "facesyn_cli.data.webdataset_format",
    "lmdb": "facesyn_cli.data.lmdb_format",
    "parquet": "facesyn_cli.data.parquet_format",
    "folder": "facesyn_cli.data.folder_format",
}
BUILTIN["benchmark"] = {
    name: "facesyn_cli.evaluation.benchmarks"
    for name in ("lfw", "cfp-fp", "cfp-ff", "cplfw", "agedb-30", "calfw", "rfw", "ijb-b", "ijb-c", "tinyface", "folder")
}

# Plugins of earlier releases -> what to do instead.
REMOVED: dict[tuple[str, str], str] = {
    ("autoencoder", "face-pca"): "train face-kl, or use the packaged taesd3",
    ("denoiser", "residual-mlp"): "train dit",
}
