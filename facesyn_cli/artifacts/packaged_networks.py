"""Networks that come with the package, under names that settings take in place of a path.

    autoencoders/taesd3/    diffusion_pytorch_model.safetensors  config.json  LICENSE  README.md
    starter/<part>/         a part of the starter, `starter-<part>`; see `starter_files`

The weights in `autoencoders/` are published ones of others, with their license and a card.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.starter_files import AUTOENCODER, IDENTITY, PACKAGED, PART_PREFIX, PARTS, find_starter
from facesyn_cli.errors import UserError


@dataclass(frozen=True)
class PackagedNetwork:
    """A published network inside the package.

    Args:
        kind: Plugin kind.
        architecture: Class of the network.
        source: Publisher.
        license: License of the weights.
        use: Commands and options that take it.
        files: File name -> digest of the files that are loaded.
    """

    kind: str
    architecture: str
    source: str
    license: str
    use: str
    files: dict[str, str]


AUTOENCODERS = {
    "taesd3": PackagedNetwork(
        "autoencoder", "AutoencoderTiny, 16 latent channels, downscale 8, 2,458,899 parameters",
        "Ollin Boer Bohan, https://github.com/madebyollin/taesd, in the package", "MIT",
        "default autoencoder of train-ldm",
        {
            "config.json": "sha256:da2a3f03e5b1eaf2d484b267016d3228e5b0f386dd491c7f87e07d85c301f8a2",
            "diffusion_pytorch_model.safetensors":
                "sha256:b7317097b1c450907c0dfc1e7c307877a199f003f10eb69e199b6d66fd3e61e6",
        },
    ),
}


def autoencoder_folder(name: str) -> Path:
    """Return the folder of one of `AUTOENCODERS` inside the package."""
    return Path(__file__).resolve().parents[1] / "autoencoders" / name


def packaged_name(folder: Path) -> str | None:
    """Return the name of the packaged autoencoder in a folder; None: the folder is another one."""
    return next((name for name in AUTOENCODERS if folder.resolve() == autoencoder_folder(name)), None)


def check_autoencoder(name: str) -> None:
    """Compare the files of a packaged autoencoder with their digests.

    Raises:
        UserError: A file is missing or has changed.
    """
    for file, expected in AUTOENCODERS[name].files.items():
        path = autoencoder_folder(name) / file
        if not path.is_file():
            raise UserError(f"{path} is missing: install facesyn again")
        if (digest := file_digest(path)) != expected:
            raise UserError(f"{path} has changed: it is {digest[:19]}, but {expected[:19]} was packaged; install "
                            "facesyn again")


def packaged_path(name: str) -> Path | None:
    """Return the folder that a name stands for, one of `AUTOENCODERS` or `starter-<part>`; None: it is no such name.

    Raises:
        UserError: No starter is packaged, a file or folder in the current folder has this name, or the name is the
            former `starter-autoencoder`.
    """
    if name == f"{PART_PREFIX}{AUTOENCODER}" and not Path(name).exists():
        raise UserError(f"{name} is no longer part of the package: the packaged starter uses the autoencoder taesd3. "
                        "Name taesd3 instead; an LDM trained on latents of the former one needs that one's file")
    part = name.removeprefix(PART_PREFIX)
    is_part = part != name and part in PARTS and part != AUTOENCODER
    if not is_part and name not in AUTOENCODERS:
        return None
    if part == IDENTITY and part not in find_starter(PACKAGED).digests:
        raise UserError(f"the packaged starter has no recognizer of latents; give the folder of one, not {name}")
    if Path(name).exists():
        what = "a part of the packaged starter" if is_part else "a network of the package"
        raise UserError(f"{name} is {what} and also a file or folder here; rename that, or give its whole path")
    return find_starter(PACKAGED).part(part) if is_part else autoencoder_folder(name)
