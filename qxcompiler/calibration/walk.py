"""Walk through a model segment after segment, on samples, with weights that change on the way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

import onnx_ir as ir
import torch

from qxcompiler.calibration.samples import Sample
from qxcompiler.calibration.segment_runner import SegmentRunner, TokenWeights
from qxcompiler.calibration.statistics import InputRows, InputStatistics
from qxcompiler.formats import Scheme
from qxcompiler.graph import Segment, Site, Weight, find_segments
from qxcompiler.memory import give_back
from qxcompiler.progress import Track, silent

__all__ = ["Calibration", "Stop", "walk"]


@dataclass
class Stop:
    """One segment of a walk, before the walk goes on to the next.

    Attributes:
        segment: where the walk is.
        weights: float32 [N, K] of every weight of the segment. What stands here when the walk goes on is what the
            later segments' inputs are computed with: whoever quantizes a weight puts what is left of it here.
    """

    segment: Segment
    weights: dict[Weight, torch.Tensor]
    _runner: SegmentRunner
    _originals: dict[Weight, torch.Tensor]
    _streams: list[Sample]
    _float_streams: list[Sample] | None
    _device: torch.device
    _token_weights: TokenWeights

    def statistics(self, wanted: Collection[Weight]) -> dict[Weight, InputStatistics]:
        """Of the inputs of some weights' linear sites, computed with the weights that earlier segments were left with.

        On a walk with `float_too`, also of how far they have drifted from the original model's.

        Raises:
            UnrunnableError: onnxruntime cannot load the segment.
            ModelError: it fails on the samples.
        """
        empty = partial(InputStatistics.empty, device=self._device)
        original = None if self._float_streams is None else (self._float_streams, self._originals)
        return self._runner.collect(self._streams, self.weights, wanted, empty, self._token_weights, original)

    def rows(self, wanted: Collection[Weight]) -> dict[Weight, InputRows]:
        """Some rows of the same inputs, for what depends on more than statistics say."""
        empty = partial(InputRows.empty, device=self._device)
        return self._runner.collect(self._streams, self.weights, wanted, empty, {})

    def _advance(self, still_read: Collection[str | None]) -> None:
        self._runner.advance(self._streams, self.weights, still_read)
        if self._float_streams is not None:
            self._runner.advance(self._float_streams, self._originals, still_read)


def walk(
    model: ir.Model,
    segments: Sequence[Segment],
    samples: Sequence[Sample],
    device: torch.device,
    *,
    track: Track = silent,
    description: str = "calibrate",
    weight: Callable[[Weight], torch.Tensor] = Weight.matrix,
    float_too: bool = False,
    token_weights: TokenWeights = MappingProxyType({}),
) -> Iterator[Stop]:
    """Stop at every segment of a model, with what the samples become on the way there.

    Memory holds one segment's weights and the activations that pass between segments.

    Args:
        model: a normalized model.
        segments: its segments, as `find_segments` gives them.
        samples: inputs of the model, at least one.
        device: where statistics are kept.
        track: shows progress.
        description: what for.
        weight: the matrix, float32 [N, K], that a weight is when the walk comes to it.
        float_too: run the original weights beside, for the drift of the inputs.
        token_weights: how often each token counts in the statistics, where not once.

    Raises:
        UnrunnableError: onnxruntime cannot load a segment by itself.
        ModelError: it fails on the samples.
    """
    streams = [dict(sample) for sample in samples]
    float_streams = [dict(sample) for sample in samples] if float_too else None
    for index, segment in enumerate(track(segments, description)):
        used = dict.fromkeys(site.weight for site in [*segment.others, *segment.sites])
        originals = {each: each.matrix() for each in used} if float_too else {}
        weights = {each: weight(each) for each in used}
        runner = SegmentRunner(model, segment)
        stop = Stop(segment, weights, runner, originals, streams, float_streams, device, token_weights)
        yield stop
        if index + 1 < len(segments):
            stop._advance({value.name for later in segments[index + 1 :] for value in later.inputs})
        give_back()


@dataclass(frozen=True)
class Calibration:
    """What a pass or an allocation that asks for statistics is given.

    Attributes:
        sites: all of the model.
        samples: inputs of the model; none where there is no calibration.
        device: where to keep statistics.
        track: shows progress.
        schemes: what the plan says of the sites that will be quantized; empty before there is one. A pass changes the
            weights of these alone, by `Weight.change`, and may put nodes before or after them.
        token_weights: how often each token counts in the statistics, where not once.
    """

    sites: Sequence[Site]
    samples: Sequence[Sample]
    device: torch.device
    track: Track = silent
    schemes: Mapping[Site, Scheme] = field(default_factory=dict)
    token_weights: TokenWeights = field(default_factory=dict)

    def walk(self, model: ir.Model, description: str) -> Iterator[Stop]:
        """Stop at every segment of the model as it is now, with statistics of what its sites read."""
        segments = find_segments(model, self.sites)
        return walk(
            model,
            segments,
            self.samples,
            self.device,
            track=self.track,
            description=description,
            token_weights=self.token_weights,
        )
