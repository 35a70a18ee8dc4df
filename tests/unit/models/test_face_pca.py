"""The closed form of `face-pca`: it finds the subspace that faces were drawn from, and knows what it is worth."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pydantic
import pytest
import torch

from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry

SMALL = {
    "name": "face-pca", "image_size": 16, "patch": 4, "patch_components": 48, "latent_channels": 6, "refine_patch": 4,
    "refine_channels": 8, "refine_blocks": 1, "smooth": 4,
}


def build(**settings):
    torch.manual_seed(0)
    return registry.build("autoencoder", registry.configure("autoencoder", {**SMALL, **settings})).eval()


def faces(count: int = 64, rank: int = 6) -> torch.Tensor:
    """Images of a symmetric subspace of `rank` dimensions whose variances fall, and a mean."""
    generator = torch.Generator().manual_seed(1)
    half = torch.randn(rank, 3, 16, 8, generator=generator)
    signs = torch.tensor([1.0, -1.0]).repeat(rank)[:rank].view(-1, 1, 1, 1)
    basis = torch.cat([half, signs * half.flip(-1)], dim=-1).flatten(1)
    basis = torch.linalg.qr(basis.T)[0].T
    weights = torch.randn(count, rank, generator=generator) * torch.linspace(3, 1, rank)
    return (weights @ basis + 0.1).view(-1, 3, 16, 16)


def fitted(pixels: torch.Tensor, **settings):
    model = build(**settings)
    model.fit(lambda: iter(pixels.split(10)))
    return model


def test_faces_of_the_subspace_come_back_exactly():
    pixels = faces()
    model = fitted(pixels)
    assert (model.decode_linear(model.encode(pixels)) - pixels).abs().max() < 1e-4
    assert model.decode(model.encode(pixels)).equal(model.decode_linear(model.encode(pixels))), "begins as the identity"


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_variances_fall_as_whitening_says(whitening):
    """v_i^(1 - w) up to a factor, of mean 1, where v_i are the variances of the singular value decomposition."""
    pixels = faces()
    both = torch.cat([pixels, pixels.flip(-1)]).flatten(1).double()
    variances = torch.linalg.svdvals(both - both.mean(0))[:6] ** 2 / len(both)
    wanted = variances ** (1 - whitening)
    latents = fitted(pixels, whitening=whitening).encode(torch.cat([pixels, pixels.flip(-1)]))[:, :, 0, 0]
    assert torch.allclose(latents.var(0, unbiased=False).double(), wanted / wanted.mean(), rtol=1e-3)
    assert latents.mean(0).abs().max() < 1e-4


def test_fewer_components_lose_what_the_spectrum_says():
    """The mean squared error is the sum of the variances left out: Eckart and Young 1936."""
    pixels = faces()
    both = torch.cat([pixels, pixels.flip(-1)])
    flat = both.flatten(1).double()
    lost = (torch.linalg.svdvals(flat - flat.mean(0))[4:] ** 2).sum() / len(both)
    model = fitted(pixels, latent_channels=4)
    error = (model.decode_linear(model.encode(both)) - both).square().sum() / len(both)
    assert abs(error.item() / lost.item() - 1) < 1e-3


def test_the_order_of_batches_does_not_matter_much_and_the_same_batches_give_the_same():
    pixels = faces()
    first, again = fitted(pixels), fitted(pixels)
    for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert a.equal(b)
    other = build()
    other.fit(lambda: iter(pixels.flip(0).split(7)))
    assert (other.encode(pixels) - first.encode(pixels)).abs().max() < 1e-3, "signs are fixed"


def test_processes_that_share_the_photos_fit_what_one_fits():
    """Two of them, as threads that add their moments."""
    pixels, meet, shares = faces(), threading.Barrier(2), [torch.zeros(())] * 2
    models = [build(), build()]

    def fit(rank: int) -> None:
        def total(share: torch.Tensor) -> torch.Tensor:
            shares[rank] = share
            meet.wait(60)
            found = shares[0] + shares[1]
            meet.wait(60)
            return found

        models[rank].fit(lambda: iter(pixels.split(10)[rank::2]), total)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fit, (0, 1)))
    for a, b in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        assert a.equal(b)
    assert (models[0].encode(pixels) - fitted(pixels).encode(pixels)).abs().max() < 1e-3, "signs are fixed"


def test_halves_have_what_they_need():
    pixels = faces(20)
    model = fitted(pixels)
    encoder, decoder = build(part="encoder"), build(part="decoder")
    encoder.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("decoder.")}, strict=True)
    decoder.load_state_dict(model.state_dict(), strict=True)
    assert decoder.decode(encoder.encode(pixels)).equal(model.decode(model.encode(pixels)))
    with pytest.raises(UserError, match="only the encoder"):
        encoder.decode(encoder.encode(pixels))
    with pytest.raises(UserError, match="only the decoder"):
        decoder.encode(pixels)


def test_training_teaches_the_decoder_alone():
    pixels = faces(20)
    model = fitted(pixels, latent_noise=0.3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = model.train().training_pass(pixels, torch.ones(20, 6, 1, 1)).pixels
    assert torch.allclose(made, model.decode(model.encode(pixels) + 0.3)), "noise is on the latents"
    made.square().sum().backward()
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None} == {"decoder"}
    assert model.last_layer().grad.abs().max() > 0 and model.latent_side() == []
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("more", [{"refine_fine": 8}, {"refine_latent": True}], ids=str)
def test_finer_decoders_begin_as_the_plain_one_and_learn(more):
    plain, model = build(), build(**more)
    assert set(plain.state_dict()) < set(model.state_dict())
    model.load_state_dict(plain.state_dict(), strict=False)
    latents = torch.randn(2, 6, 1, 1, generator=torch.Generator().manual_seed(3))
    for network in (plain, model):
        for parameter in network.decoder.after.parameters():
            torch.nn.init.constant_(parameter, 0.1)
        torch.nn.init.constant_(network.decoder.leave.weight, 0.1)
    assert torch.equal(model.decode(latents), plain.decode(latents))
    new = {name for name in model.state_dict() if name not in plain.state_dict()}
    named = dict(model.decoder.named_parameters(prefix="decoder"))
    zero = [named[name] for name in sorted(new) if not named[name].any()]
    assert zero
    for parameter in zero:
        torch.nn.init.constant_(parameter, 0.1)
    torch.nn.init.constant_(model.decoder.inner[0].body[5].weight, 0.1)
    model.decode(latents).square().mean().backward()
    assert all(named[name].grad.abs().sum() > 0 for name in new)
    with torch.no_grad():
        assert not torch.equal(model.decode(latents), plain.decode(latents))


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="3 photos are too few"):
        fitted(faces(3))
    with pytest.raises(ValueError, match="side 16"):
        build().encode(torch.zeros(1, 3, 8, 8))
    for wrong in ({"patch": 5}, {"patch_components": 49}, {"latent_channels": 16 * 48 + 1}, {"refine_patch": 16},
                  {"refine_patch": 1, "refine_fine": 8}):
        with pytest.raises(pydantic.ValidationError, match="must be divisible|is more than|even refine_patch"):
            build(**wrong)
