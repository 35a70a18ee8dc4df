"""The settings of a latent diffusion model beside its weights."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from facesyn_cli.untrusted.parsing import validated


class _Autoencoder(BaseModel):
    """The autoencoder of an LDM, as `models.loading.load_autoencoder` records it."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: str
    settings: dict[str, Any] = {}
    path: str | None = None
    digest: str | None = None


NOISE_SCHEDULE = ("num_timesteps", "beta_schedule", "beta_start", "beta_end", "zero_terminal_snr")


class FlowTimes(BaseModel):
    """Times t at which a rectified flow is trained; `diffusion/flow.py` has the formulas."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mean: float = Field(
        0.0, description="mean of logit(t) before the shift; above 0 trains more on noise", ge=-20, le=20
    )
    std: float = Field(1.0, description="standard deviation of logit(t)", gt=0, le=20)
    shift: float = Field(
        1.0, description="moves t towards noise (above 1) or towards the latents; also the default of the schedulers",
        gt=0, le=1000,
    )


class LdmSettings(BaseModel):
    """The `config.json` of a `2-ldm` folder.

    The defaults are those of the published system, whose files hold no settings (IDiff-Face, arXiv:2308.04995, as used
    by ADMIS).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["ldm"] = "ldm"
    denoiser: dict[str, Any]                                # plugin section: name and settings
    num_timesteps: int = Field(1000, ge=1, le=100_000)      # T
    beta_schedule: str | list[float] = "linear"             # name from diffusion/schedule.py, or the betas
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_terminal_snr: bool = False                         # rescale the schedule to end in pure noise
    prediction: Literal["epsilon", "v", "x0", "flow"] = "epsilon"   # quantity that the denoiser predicts
    flow: FlowTimes | None = None                           # of prediction flow, in place of the noise schedule
    latent_channels: int = Field(3, ge=1, le=65_536)
    latent_size: int = Field(32, ge=1, le=8192)             # side of the latent grid
    latent_mean: list[float] | None = None                  # per channel; None: latents are not normalized
    latent_std: list[float] | None = None
    image_size: int = Field(128, ge=1, le=8192)             # side of a decoded image
    output_size: int = Field(112, ge=1, le=8192)            # side of a finished image
    autoencoder: dict[str, Any] | None = None               # name, settings, path, digest; None: must be given
    embedder: str | None = None                             # digest of the recognizer of its contexts
    teacher: str | None = None                              # digest of the one that it learned from, whose contexts fit
    embedding_size: int = Field(512, ge=1, le=65_536)

    def embedder_beside(self, other: str | None) -> str | None:
        """Return the digest to compare with that of another recognizer: the teacher's, where it is the other one."""
        return self.teacher if other is not None and other == self.teacher else self.embedder

    @field_validator("denoiser")
    @classmethod
    def _names_a_plugin(cls, section: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(section.get("name"), str):
            raise ValueError("the name of a denoiser was expected")
        return section

    @field_validator("autoencoder")
    @classmethod
    def _is_autoencoder(cls, section: dict[str, Any] | None) -> dict[str, Any] | None:
        if section is not None:
            _Autoencoder.model_validate(section)
        return section

    @model_validator(mode="before")
    @classmethod
    def _has_one_process(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if given.get("prediction") != "flow":
            if given.get("flow") is not None:
                raise ValueError("flow belongs to prediction flow")
            return given
        if stated := [name for name in NOISE_SCHEDULE if name in given]:
            raise ValueError(f"prediction flow has no noise schedule, but {', '.join(stated)} given")
        return {**given, "flow": {} if given.get("flow") is None else given["flow"]}

    @model_serializer(mode="wrap")
    def _without_the_other_process(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        absent = NOISE_SCHEDULE if self.prediction == "flow" else ("flow",)
        return {name: value for name, value in handler(self).items() if name not in absent}

    @model_validator(mode="after")
    def _betas_fit(self) -> LdmSettings:
        if isinstance(self.beta_schedule, list):
            if len(self.beta_schedule) != self.num_timesteps:
                raise ValueError(f"beta_schedule has {len(self.beta_schedule)} betas, num_timesteps is "
                                 f"{self.num_timesteps}")
            if not all(0 < beta < 1 for beta in self.beta_schedule):
                raise ValueError("beta_schedule: betas between 0 and 1 were expected")
        return self

    @model_validator(mode="after")
    def _statistics_fit(self) -> LdmSettings:
        for name in ("latent_mean", "latent_std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.latent_channels:
                raise ValueError(f"{name} has {len(values)} values for {self.latent_channels} latent channels")
        if (self.latent_mean is None) != (self.latent_std is None):
            raise ValueError("latent_mean and latent_std must be given together")
        if self.latent_std is not None and min(self.latent_std) <= 0:
            raise ValueError("latent_std must be positive")
        return self

    @staticmethod
    def published(denoiser: dict[str, Any]) -> LdmSettings:
        """Return the settings of a published checkpoint with a given denoiser section."""
        return LdmSettings(denoiser=denoiser)

    @staticmethod
    def from_json(value: Any, where: str) -> LdmSettings:
        """Validate a `config.json`; `where` is named in the error."""
        return validated(LdmSettings, value, where, "the config.json of a latent diffusion model")
