"""Feature maps inside the decoder of an autoencoder, without the work of its later layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn


class _Reached(Exception):
    """The last module that matters has been reached."""


def inputs_of(modules: Sequence[nn.Module], run: Callable[[], object]) -> list[Tensor]:
    """Return what each of the modules is given in `run`, which ends before the last of them is computed.

    Args:
        modules: At least one, in the order in which they run, each once.
        run: Runs a network that holds them.
    """
    found: list[Tensor] = []

    def keep(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        found.append(arguments[0])
        if module is modules[-1]:
            raise _Reached

    handles = [module.register_forward_pre_hook(keep) for module in modules]
    try:
        run()
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found


def diffusers_upsamplers(decoder: nn.Module) -> list[nn.Module]:
    """Return the modules of a decoder of diffusers that enlarge, in the order in which they run."""
    if hasattr(decoder, "up_blocks"):
        return [module for block in decoder.up_blocks for module in block.upsamplers or ()]
    return [module for module in decoder.modules() if isinstance(module, nn.Upsample)]  # of AutoencoderTiny
