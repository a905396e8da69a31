"""Text that a language model writes by itself, to calibrate it on where there is none.

As LLM-QAT (Liu et al. 2023, section 3.1) the model's own words stand for the data that it was trained on; as Magpie
(Xu et al. 2024) a chat template without words makes it write both sides of a conversation.
"""

from __future__ import annotations

__all__ = ["can_write", "write_texts"]

import logging
from collections import deque
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import onnx_ir as ir
from tokenizers import Tokenizer

from qxcompiler.calibration.samples import input_specs
from qxcompiler.errors import CalibrationError, ModelError, TokenizerError
from qxcompiler.evaluation.running import Runner
from qxcompiler.progress import Track
from qxcompiler_runtime.caches import is_past
from qxcompiler_runtime.chat import chat_template, put_in_template
from qxcompiler_runtime.configuration import end_of_sequence
from qxcompiler_runtime.decoder import Decoder
from qxcompiler_runtime.inputs import InputSpec, derive
from qxcompiler_runtime.sampling import pick
from qxcompiler_runtime.tokens import encode, load_tokenizer

_log = logging.getLogger(__name__)

_AT_ONCE = 32  # texts side by side: the weights are read once for all of them
_WORDS = "WORDS-OF-THE-USER"  # stands in a chat template until it is cut there
_BEGINNINGS = (
    "The history of",
    "def ",
    "1. ",
    "Once upon a time",
    "#include <",
    "In this paper, we",
    "Question:",
    "<!DOCTYPE html>",
    "Dear ",
    "# ",
    "According to",
    "import ",
    '"',
    "{",
    "How to ",
    "- ",
)


def can_write(model: ir.Model, path: Path) -> bool:
    """Whether a model is a language model with a past, of any batch and length, and has a tokenizer beside it."""
    try:
        inputs = input_specs(model)
    except CalibrationError:
        return False
    ids = [spec for spec in inputs if spec.name.endswith("input_ids")]
    if len(ids) != 1 or "logits" not in {value.name for value in model.graph.outputs}:
        return False
    sample = {ids[0].name: np.zeros((1, 1), np.int64)}
    if not any(is_past(spec.name) for spec in inputs) or any(
        spec not in ids and derive(spec, sample, 0) is None for spec in inputs
    ):
        return False
    grows = all(_grows(spec) for spec in inputs if spec in ids or is_past(spec.name))
    return grows and (path.parent / "tokenizer.json").is_file()


def _grows(spec: InputSpec) -> bool:
    """Whether an input is of any batch, which leads, and free along another axis as well."""
    if spec.shape is None:
        return True
    batch, *others = spec.shape or (0,)
    return not isinstance(batch, int) and not all(isinstance(size, int) for size in others)


def write_texts(model: Path, *, texts: int, length: int, seed: int, track: Track) -> list[str]:
    """Let a language model write, each token drawn from its own predictions (at temperature 1).

    Texts begin in many ways: with a random token, with the beginnings of stories, lists, programs and others, and as
    the model's chat template begins, where it has one. Where the model ends one, another begins.

    Args:
        model: the ONNX file, with its tokenizer beside it.
        texts: how many.
        length: tokens of each.
        seed: of all draws.
        track: shows progress.

    Raises:
        ModelError: the model is no language model with a past, or its predictions are not finite.
        TokenizerError: it has no tokenizer.
    """
    tokenizer = load_tokenizer(model)
    runner = Runner(model)
    if not Decoder(runner).uses_past:
        raise ModelError(model, "keeps no past: it would write for too long", "give --calibration FILE")
    end = end_of_sequence(model.parent)
    random = np.random.default_rng(seed)
    openings = _openings(tokenizer, model.parent, end, random)
    written: list[str] = []
    for start in track(range(0, texts, _AT_ONCE), "write"):
        decoder = Decoder(runner)
        pages = [_Page(openings, end) for _ in range(min(_AT_ONCE, texts - start))]
        tokens = [page.take(None) for page in pages]
        for _ in range(length - 1):
            logits = decoder.step([[token] for token in tokens])
            if not np.isfinite(logits.max(-1)).all():
                raise ModelError(model, "logits hold NaN, or nothing finite", "give --calibration FILE")
            drawn = [pick(row, temperature=1.0, top_p=1.0, draws=random) for row in logits]
            tokens = [page.take(token) for page, token in zip(pages, drawn, strict=True)]
        written += [tokenizer.decode(page.tokens, skip_special_tokens=False) for page in pages]
    return written


@dataclass(frozen=True)
class _Opening:
    """How a text begins.

    Attributes:
        tokens: its first ones, one at least.
        answer: what follows where the model ends for the first time, and before it writes on.
    """

    tokens: Sequence[int]
    answer: Sequence[int] = ()


class _Page:
    """What is written so far, one opening after the other."""

    def __init__(self, openings: Iterator[_Opening], end: Set[int]) -> None:
        self.tokens: list[int] = []
        self._openings, self._end = openings, end
        self._answer: Sequence[int] = ()
        self._waiting: deque[int] = deque()
        self._begin()

    def take(self, drawn: int | None) -> int:
        """The next token: the one that was drawn, unless an opening is not yet written."""
        token = self._waiting.popleft() if self._waiting else drawn
        assert token is not None
        self.tokens.append(token)
        if token in self._end and not self._waiting:
            if self._answer:
                self._waiting.extend(self._answer)
                self._answer = ()
            else:
                self._begin()
        return token

    def _begin(self) -> None:
        opening = next(self._openings)
        self._waiting.extend(opening.tokens)
        self._answer = opening.answer


def _openings(tokenizer: Tokenizer, folder: Path, end: Set[int], random: np.random.Generator) -> Iterator[_Opening]:
    """Without end: a random token, a beginning, a conversation, in turn."""
    beginnings = [_Opening(tokens) if (tokens := _tokens(tokenizer, text)) else None for text in _BEGINNINGS]
    template = chat_template(folder)
    conversation = None if template is None else _conversation(tokenizer, template, end)
    for beginning in cycle(beginnings):
        yield _Opening([int(random.integers(tokenizer.get_vocab_size()))])
        yield from (opening for opening in (beginning, conversation) if opening is not None)


def _tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """Empty where the tokenizer has none for it: one of molecules, or of another script."""
    try:
        ids: list[int] = encode(tokenizer, text, "an opening", add_special_tokens=False).ids
    except TokenizerError:
        return []
    return ids


def _conversation(tokenizer: Tokenizer, template: str, end: Set[int]) -> _Opening | None:
    """What the template writes before the user's words, and between them and the answer."""
    try:
        rendered = put_in_template(template, _WORDS)
    except TokenizerError as error:
        _log.info("%s", error)
        return None
    before, words, between = rendered.partition(_WORDS)
    first, answer = _tokens(tokenizer, before), _tokens(tokenizer, between)
    if not (words and first):
        return None
    return _Opening(first, answer[1:] if answer and answer[0] in end else answer)
