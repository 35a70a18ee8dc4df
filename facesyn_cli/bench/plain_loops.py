"""The plain loops of published code, which the stages are compared with.

They are correct, short, and nothing in them is slow on purpose: float32, one process, images read and written in the
loop, results copied to the host where published code does.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from facesyn_cli.data.tfrecord_framing import frame

SIDE = 112  # pixels, of the faces that recognizers read


def sample(
    denoiser: nn.Module, autoencoder: nn.Module, contexts: Tensor, per_id: int, steps: int,
    latent_shape: tuple[int, int, int], size: int, folder: Path, device: torch.device,
) -> None:
    """DDIM as in ADMIS: one identity per batch, noise drawn on the host, a check of the latents after every step.

    `contexts` are (N, E) float32 and encoded at every step; images of `size` pixels go to `<identity>/<sample>.png`.
    """
    alpha_bars = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    timesteps = [round(1000 - i * 1000 / steps) - 1 for i in range(steps)]
    for row, context in enumerate(contexts):
        condition = context.expand(per_id, -1).to(device)
        x = torch.randn(per_id, *latent_shape).to(device)
        for t, after in zip(timesteps, [*timesteps[1:], None], strict=True):
            with torch.no_grad():
                eps = denoiser(x, torch.full((per_id,), t, device=device), condition)
            a, p = float(alpha_bars[t]), 1.0 if after is None else float(alpha_bars[after])
            x0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
            x = p**0.5 * x0 + (1 - p) ** 0.5 * eps
            x.abs().max().item()
        with torch.no_grad():
            pixels = autoencoder.decode(x).clamp(-1, 1)
            pixels = F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False)
        images = ((pixels + 1) / 2 * 255 + 0.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        (folder / str(row)).mkdir(parents=True, exist_ok=True)
        for k, image in enumerate(images):
            Image.fromarray(image).save(folder / str(row) / f"{k}.png")


def embed(network: nn.Module, paths: Sequence[Path], batch_size: int, device: torch.device) -> np.ndarray:
    """Embed images batch by batch; returns (N, D) float32 unit rows."""
    rows = []
    for start in range(0, len(paths), batch_size):
        pixels = _read_batch(paths[start : start + batch_size]).to(device)
        with torch.no_grad():
            rows.append(F.normalize(network(pixels).float()).cpu())
    return torch.cat(rows).numpy()


def verify(
    network: nn.Module, paths: Sequence[Path], is_same: np.ndarray, batch_size: int, device: torch.device
) -> float:
    """Return the accuracy over 10 folds of pairs, images 2 i and 2 i + 1, with flip test and 400 thresholds."""
    rows = []
    for start in range(0, len(paths), batch_size):
        pixels = _read_batch(paths[start : start + batch_size]).to(device)
        with torch.no_grad():
            rows.append((network(pixels) + network(pixels.flip(-1))).cpu())
    unit = F.normalize(torch.cat(rows)).numpy()
    distance = np.square(unit[0::2] - unit[1::2]).sum(axis=1)
    thresholds = np.arange(0, 4, 0.01)
    folds = np.array_split(np.arange(len(is_same)), 10)
    accuracies = []
    for fold in folds:
        train = np.setdiff1d(np.arange(len(is_same)), fold)
        best = max(thresholds, key=lambda limit: ((distance[train] < limit) == is_same[train]).mean())
        accuracies.append(((distance[fold] < best) == is_same[fold]).mean())
    return float(np.mean(accuracies))


def face_loader(folder: Path, batch_size: int, workers: int, device: torch.device) -> DataLoader:
    """Return shuffled batches of float32 pixels in [-1, 1] and labels, changed at random as in ADMIS."""
    crop = transforms.RandomResizedCrop(SIDE, scale=(0.2, 1.0), ratio=(0.75, 1.3333))
    change = transforms.Compose([
        transforms.RandomHorizontalFlip(), transforms.RandomApply([crop], p=0.2), transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.5] * 3),
    ])
    is_pinned = device.type == "cuda"
    return DataLoader(
        ImageFolder(str(folder), change), batch_size, shuffle=True, num_workers=workers, pin_memory=is_pinned,
        drop_last=True,
    )


def train_recognizer(
    network: nn.Module, num_classes: int, folder: Path, batch_size: int, epochs: int, workers: int,
    device: torch.device,
) -> None:
    """Train with an ArcFace head (arXiv:1801.07698, s 64, m 0.5) on a folder of identities, as TFace and ADMIS."""
    width = network(torch.zeros(2, 3, SIDE, SIDE, device=device)).shape[1]
    centers = nn.Parameter(0.01 * torch.randn(num_classes, width, device=device))
    network.train().requires_grad_(True)
    optimizer = torch.optim.SGD([*network.parameters(), centers], lr=0.01, momentum=0.9, weight_decay=5e-4)
    loader = face_loader(folder, batch_size, workers, device)
    for pixels, target in chain.from_iterable(loader for _ in range(epochs)):
        pixels, target = pixels.to(device, non_blocking=True), target.to(device, non_blocking=True)
        cosines = F.linear(F.normalize(network(pixels)), F.normalize(centers)).clamp(-1 + 1e-6, 1 - 1e-6)
        angle = torch.acos(cosines.gather(1, target[:, None])) + 0.5
        logits = 64 * cosines.scatter(1, target[:, None], torch.cos(angle))
        loss = F.cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()


def train_ldm(
    denoiser: nn.Module, autoencoder: nn.Module, paths: Sequence[Path], contexts: Tensor, image_size: int,
    batch_size: int, steps: int, device: torch.device,
) -> None:
    """Train a denoiser, as IDiff-Face: images encoded at every step, Adam, an average of the weights by hand.

    `contexts` are (N, E), of the N paths; `image_size` is the side that the autoencoder sees, in pixels.
    """
    alpha_bars = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0).to(device)
    denoiser.train().requires_grad_(True)
    average = [parameter.detach().clone() for parameter in denoiser.parameters()]
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-4)
    for step in range(steps):
        chosen = [(step * batch_size + i) % len(paths) for i in range(batch_size)]
        pixels = _read_batch([paths[i] for i in chosen]).to(device)
        pixels = F.interpolate(pixels, (image_size, image_size), mode="bilinear", align_corners=False)
        with torch.no_grad():
            latents = autoencoder.encode(pixels)
        t = torch.randint(1000, (batch_size,), device=device)
        noise = torch.randn_like(latents)
        a = alpha_bars[t].view(-1, 1, 1, 1)
        eps = denoiser(a.sqrt() * latents + (1 - a).sqrt() * noise, t, contexts[chosen].to(device))
        loss = F.mse_loss(eps, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        for mean, parameter in zip(average, denoiser.parameters(), strict=True):
            mean.mul_(0.9999).add_(parameter.detach(), alpha=1e-4)


def pack(paths: Sequence[Path], labels: Sequence[int], target: Path) -> None:
    """Write a TFRecord of (bytes, label): each image is decoded as a check, and its bytes are written unchanged."""
    with open(target, "wb") as file:
        for path, label in zip(paths, labels, strict=True):
            data = path.read_bytes()
            _read_batch([path])
            file.write(frame(label.to_bytes(8, "little") + data))


def _read_batch(paths: Sequence[Path]) -> Tensor:
    """Return (B, 3, H, W) float32 in [-1, 1]."""
    faces = []
    for path in paths:
        with Image.open(path) as image:
            faces.append(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1)
    return torch.stack(faces)

