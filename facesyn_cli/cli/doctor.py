"""`facesyn doctor`: check packages, devices, disk and packaged networks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from facesyn_cli.cli.stage_command import Json, print_result, start
from facesyn_cli.errors import UserError

if TYPE_CHECKING:
    from facesyn_cli.artifacts.text_tables import Block

EXAMPLES = (
    "facesyn doctor",
    "facesyn doctor --work /scratch/runs/a",
    "facesyn doctor --json",
)

_PACKAGES = {
    "core": ("torch", "torchvision", "accelerate", "diffusers", "safetensors", "numpy", "pillow", "pydantic"),
    "onnx": ("onnxruntime", "onnx", "onnx2torch"),
    "align": ("opencv-python-headless",),
    "formats": ("lmdb", "pyarrow"),
    "timm": ("timm",),
    "tracking": ("tensorboard",),
}
_WORKS = "works"


def command(
    work: Annotated[Path, typer.Option(help="Folder whose disk is checked.")] = Path("work"),
    json: Json = False,
) -> None:
    """Check that this machine is ready.

    The exit code is 2 when it is not.
    """
    from facesyn_cli.cli import next_step

    start()
    report = examine(work)
    print_result(report, json, _blocks)
    if report["problems"]:
        raise typer.Exit(2)
    if report["starter"]["packaged"]:
        next_step.show(next_step.line(["demo"]), json)


def examine(work: Path) -> dict:
    """Return versions, devices, memory, disk and packaged networks, and a list of problems in words."""
    import os
    import shutil
    import sys
    from importlib.metadata import PackageNotFoundError, version

    from facesyn_cli import __version__

    versions: dict[str, dict[str, str]] = {}
    problems = []
    for group, names in _PACKAGES.items():
        versions[group] = {}
        for name in names:
            try:
                versions[group][name] = version(name)
            except PackageNotFoundError:
                versions[group][name] = "missing"
                if group == "core":
                    problems.append(f"{name} is not installed: pip install facesyn")
    devices = _devices(problems)
    working = [name for name, about in devices.items() if about.endswith(_WORKS)]
    at = next(folder for folder in (work.resolve(), *work.resolve().parents) if folder.exists())
    if not os.access(at, os.W_OK):
        problems.append(f"{at} is not writable; choose another --work")
    starter = _starter(problems)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return {
        "facesyn": __version__,
        "python": sys.version.split()[0],
        "packages": versions,
        "devices": devices,
        "precision": {name: _precision(name) for name in working},
        "starter": starter,
        "autoencoders": _autoencoders(problems),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "disk_free_gib": round(shutil.disk_usage(at).free / 2**30, 1),
        "problems": problems,
    }


def _starter(problems: list[str]) -> dict[str, Any]:
    """Return sizes and digests of the packaged starter, each file checked, or what is missing."""
    from facesyn_cli.artifacts.starter_files import PACKAGED, find_starter, missing, packaged_folder

    if absent := missing(packaged_folder()):
        return {"packaged": False, "missing": absent}
    try:
        described = find_starter(PACKAGED).describe()
    except UserError as error:
        problems.append(f"starter: {error}; install facesyn again")
        return {"packaged": True, "damaged": str(error)}
    parts = {name: {"bytes": part["bytes"], "digest": part["digest"]} for name, part in described["parts"].items()}
    return {"packaged": True, "bytes": described["bytes"], "parts": parts}


def _autoencoders(problems: list[str]) -> dict[str, str]:
    """Return the digest of each packaged autoencoder's weights, all its files checked, or what is wrong with it."""
    from facesyn_cli.artifacts.packaged_networks import AUTOENCODERS, check_autoencoder

    found = {}
    for name, network in AUTOENCODERS.items():
        try:
            check_autoencoder(name)
            found[name] = network.files["diffusion_pytorch_model.safetensors"]
        except UserError as error:
            problems.append(f"autoencoder {name}: {error}")
            found[name] = str(error)
    return found


def _devices(problems: list[str]) -> dict[str, str]:
    """Return each device with the result of a small matrix product on it."""
    try:
        import torch
        import torchvision.transforms.functional  # noqa: F401 (a torchvision of another torch fails here)
    except Exception as error:
        problems.append(f"torch or torchvision does not import: {error}")
        return {}
    names = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    found = {}
    for name in names:
        about = torch.cuda.get_device_name(name) if name.startswith("cuda") else f"{torch.get_num_threads()} threads"
        try:
            product = torch.ones(8, 8, device=name) @ torch.ones(8, 8, device=name)
            is_right = bool((product == 8).all())
        except RuntimeError as error:
            is_right, about = False, str(error).split("\n")[0]
        found[name] = f"{about}, {_WORKS if is_right else 'DOES NOT WORK'}"
        if not is_right:
            problems.append(f"device {name} does not work: {about}")
    return found


def _precision(device: str) -> dict[str, Any]:
    """Return which number format pays in matrix products on a device, and how fast the others are against fp32."""
    import torch

    from facesyn_cli.models.precision import products_that_pay

    pays, gains = products_that_pay(torch.device(device))
    return {"pays": pays, "times_as_fast_as_fp32": {name: float(f"{gain:.2g}") for name, gain in gains.items()}}


def _blocks(report: dict[str, Any]) -> list[Block]:
    from facesyn_cli.artifacts.text_tables import Column, Table

    packages = [[group, ", ".join(f"{name} {number}" for name, number in versions.items())]
                for group, versions in report["packages"].items()]
    devices = []
    for name, about in report["devices"].items():
        found = report["precision"].get(name, {"pays": "", "times_as_fast_as_fp32": {}})
        gains = ", ".join(f"{other} {gain:g}" for other, gain in found["times_as_fast_as_fp32"].items())
        devices.append([name, about, found["pays"], gains])
    state = [f"PROBLEM: {problem}" for problem in report["problems"]] or ["ready"]
    return [
        f"facesyn {report['facesyn']}, Python {report['python']}",
        Table([Column("packages", is_text=True), Column("versions", is_text=True)], packages),
        Table([Column("device", is_text=True), Column("state", is_text=True), Column("precision that pays"),
               Column("speed of matrix products, fp32 = 1", rank=1)], devices),
        "precision: small networks gain less than matrix products; precision=auto measures the network",
        f"cpus: {report['cpus']}\nmemory: {report['memory_gib']} GiB\n"
        f"free on the disk of --work: {report['disk_free_gib']} GiB\nstarter: {_about_starter(report['starter'])}\n"
        f"packaged autoencoders: {', '.join(report['autoencoders'])}",
        "\n".join(state),
    ]


def _about_starter(starter: dict[str, Any]) -> str:
    if not starter["packaged"]:
        return f"not packaged ({', '.join(starter['missing'])} missing)"
    if "damaged" in starter:
        return "damaged"
    parts = ", ".join(f"{name} {part['bytes'] / 1e6:.1f}" for name, part in starter["parts"].items())
    return f"packaged, {starter['bytes'] / 1e6:.1f} MB ({parts})"
