"""Noise drawn ahead, and CUDA graphs whose capture runs out of memory, tested without a GPU."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import pytest
import torch

from facesyn_cli.diffusion.guidance import NoGuidanceConfig, build_none
from facesyn_cli.diffusion.schedule import build_schedule
from facesyn_cli.diffusion.schedulers import DdimConfig, build_ddim
from facesyn_cli.sampling.conditions import Conditions
from facesyn_cli.sampling.engine import BatchEngine
from facesyn_cli.sampling.inference import CudaGraph
from facesyn_cli.sampling.pipeline import LdmPipeline
from facesyn_cli.sampling.workers import threads_on

CPU = torch.device("cpu")


class Noted(Conditions):
    """Notes in which order the noise of batches is drawn."""

    def __init__(self):
        super().__init__([str(k) for k in range(4)], torch.eye(4), 2, 0, (1, 2, 2))
        self.drawn = []

    def noise(self, images, attempts=None):
        self.drawn.append((list(images), attempts))
        return super().noise(images, attempts)


def engine_of(conditions, ahead):
    pipeline = LdmPipeline(
        lambda x, t, context: 0.5 * x, build_schedule(), build_ddim(DdimConfig(name="ddim", steps=2)),
        build_none(NoGuidanceConfig(name="none")), (1, 2, 2),
        lambda latents: ((latents * 40 + 128).clamp(0, 255).to(torch.uint8), torch.ones(len(latents), dtype=bool)),
    )
    engine = BatchEngine(pipeline, conditions, 3)
    engine._noise_thread = threads_on(CPU, 1, "noise") if ahead else None
    return engine


def test_noise_drawn_ahead_is_the_same_and_drawn_once():
    batches = [range(0, 3), range(3, 6), range(6, 8)]
    plain, ahead = Noted(), Noted()
    one, two = engine_of(plain, ahead=False), engine_of(ahead, ahead=True)
    for number, batch in enumerate(batches):
        then = batches[number + 1] if number < 2 else None
        expected, actual = one.start(batch, then=then), two.start(batch, then=then)
        assert all((expected(row) == actual(row)).all() for row in range(len(batch)))
    assert ahead.drawn == plain.drawn == [([0, 1, 2], None), ([3, 4, 5], None), ([6, 7, 7], None)]


def test_another_batch_than_the_one_that_was_announced_gets_its_own_noise():
    conditions = Noted()
    engine = engine_of(conditions, ahead=True)
    engine.start([0, 1], [2, 2], then=[2, 3])
    surprising = engine.start([4, 5, 6], [2, 2, 2])
    expected = engine_of(Noted(), ahead=False).start([4, 5, 6], [2, 2, 2])
    assert all((surprising(row) == expected(row)).all() for row in range(3))
    engine._noise_thread.shutdown()  # the two may be drawn in any order
    assert sorted(conditions.drawn[1:]) == [([2, 3, 3], [2, 2, 2]), ([4, 5, 6], [2, 2, 2])]


def test_what_goes_wrong_ahead_is_raised_where_the_batch_is_due():
    class Broken(Noted):
        def noise(self, images, attempts=None):
            if 3 in images:
                raise ValueError("no noise")
            return super().noise(images, attempts)

    engine = engine_of(Broken(), ahead=True)
    engine.start(range(0, 3), then=range(3, 6))
    with pytest.raises(ValueError, match="no noise"):
        engine.start(range(3, 6))


def test_a_recording_that_ran_out_of_memory_is_made_again(monkeypatch):
    events = []

    class Graph:
        def replay(self):
            events.append("replay")

    @contextmanager
    def record(graph, **options):
        events.append("record")
        if events.count("record") == 1:
            raise torch.OutOfMemoryError("full")
        yield

    class Stream:
        def wait_stream(self, other):
            pass

    monkeypatch.setattr("torch.cuda.CUDAGraph", Graph)
    monkeypatch.setattr("torch.cuda.graph", record)
    monkeypatch.setattr("torch.cuda.Stream", Stream)
    monkeypatch.setattr("torch.cuda.current_stream", Stream)
    monkeypatch.setattr("torch.cuda.stream", lambda stream: nullcontext())
    replay = CudaGraph(lambda x, t, context: x + 1)
    inputs = torch.zeros(2), torch.zeros(2), torch.zeros(2)
    with pytest.raises(torch.OutOfMemoryError):
        replay(*inputs)
    assert replay(*inputs).tolist() == [1, 1]
    assert events == ["record", "record", "replay"]
