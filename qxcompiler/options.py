"""What a user can ask of a compile."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from qxcompiler.errors import UsageError, first_invalid

__all__ = ["LIMITS", "ErrorTerm", "Options", "parse_size"]

LIMITS = {
    "bits_per_weight": "--bpw",
    "max_size": "--max-size",
    "min_tokens_per_second": "--min-tokens-per-second",
    "max_joules_per_token": "--max-joules-per-token",
    "max_perplexity_increase": "--max-perplexity-increase",
}
"""What limits a budget, by the names of options, as the command line names it."""

ErrorTerm: TypeAlias = Literal["divergence", "output", "frobenius", "curvature", "attention", "measured"]

_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_size(text: str) -> int:
    """Bytes of `60MB` or `57.2 MiB`.

    Raises:
        ValueError: it is no number with a unit.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([A-Za-z]+)", text, re.ASCII)
    if not match or match[2] not in _UNITS:
        raise ValueError(f"write a number and one of {', '.join(_UNITS)}, such as 60MB")
    return int(Decimal(match[1]) * _UNITS[match[2]])


def _size(value: Any) -> Any:
    return parse_size(value) if isinstance(value, str) else value


def _share(value: Any) -> Any:
    """Of `5%`, 0.05."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d{1,4}(?:\.\d{1,9})?) ?%", value, re.ASCII)
    if not match:
        raise ValueError("write a number and %, such as 5%")
    return float(Decimal(match[1]) / 100)


class Options(BaseModel):
    """The options of `compile` and `compile_folder`.

    Attributes:
        weights: weight format of the linear layers other than the head; by default what the target prefers.
        activations: precision of activations; by default what the target prefers.
        head: format of the head, or `float`; by default what the target prefers.
        embedding: format of embeddings, or `float`; by default what the target prefers.
        allocation: how schemes are chosen: `uniform`, `budget`, or what a package adds; if neither this nor a recipe
            says it, `budget` where one of `LIMITS` is given, else `uniform`. A budget without limits is what `uniform`
            would take, in bytes and in seconds as the target's cost model predicts.
        bits_per_weight: at most so many for the linear layers other than the head, everything counted. Of the format
            of `weights` every layer gets those bits that serve the model best; where none is named, of some formats of
            the target.
        max_size: at most so many bytes for the compiled model's files, head, embeddings, what stays in float and the
            graph itself among them; a number, or text with a unit, such as `60MB`. Spent as `bits_per_weight` is.
        min_tokens_per_second: at least so many, as the target's cost model predicts: of decoding one after 512 others,
            or of a pass over an input of 512 where a model keeps no keys and values. Spent as `bits_per_weight` is.
        max_joules_per_token: at most so many, predicted as the rate is. Spent as `bits_per_weight` is.
        max_perplexity_increase: the perplexity on samples held back from calibration is to be at most this share above
            the original's: a number, or text such as `5%`. Plans of a language model are compiled and measured until
            the smallest that keeps to it is found.
        error: what is made small within these limits: `divergence` of the predictions (by their derivatives), squared
            `output` of the layers, `frobenius` norm of the weights, their `curvature`, `divergence` but for queries and
            keys that of the `attention`, or the divergence as `measured` with one group of layers at a time.
        quantizer: the algorithm that chooses the codes.
        samples: how many samples to calibrate on, at most.
        tune: how many samples, at most, to tune the scales and tables of the quantized weights on, so that the whole
            model follows the original's outputs; 0 leaves them as the quantizer chose them.
        length: tokens a sample; by default 512, or the model's context where that is shorter.
        keep: a regular expression; sites whose name or role it finds stay in float.
        plan: a plan file that says every site's scheme, instead of `weights`, `activations`, `head`, `embedding` and
            `keep`; beside a budget, one that says some sites' schemes, which the others are chosen around.
        device: where the algebra on weights runs: `cpu`, `cuda`, or `auto` for CUDA where there is one.
        seed: of the random generators that quantizers may use, and that make up inputs for verification.
        kv: how attention keeps keys and values, as numbers or in a format of `formats/cache.py`; by default as the
            model has them.
        plain: leave attention and norms as the model's own operators, instead of computing each in one of ours.
        verification: run the compiled model beside the original before it is handed over, on samples held back from
            calibration, or on inputs made up where there are none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: str | None = None
    activations: Literal["a32", "a16", "a8", "a8s"] | None = None
    head: str | None = None
    embedding: str | None = None
    allocation: str | None = None
    bits_per_weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_size: Annotated[int, BeforeValidator(_size)] | None = Field(default=None, gt=0)
    min_tokens_per_second: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_joules_per_token: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_perplexity_increase: Annotated[float, BeforeValidator(_share)] | None = Field(
        default=None, gt=0, allow_inf_nan=False
    )
    error: ErrorTerm = "divergence"
    quantizer: str = "gptaq"
    samples: int = Field(default=48, ge=1)
    tune: int = Field(default=0, ge=0)
    length: int | None = Field(default=None, ge=1)
    keep: str | None = None
    plan: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    kv: Literal["float32", "float16", "int8", "int4"] | None = None
    plain: bool = False
    verification: bool = True

    @property
    def limits(self) -> list[str]:
        """The limits that an allocation has to keep, as the command line names them."""
        return [option for name, option in LIMITS.items() if getattr(self, name) is not None]

    @property
    def budget_option(self) -> str | None:
        """The option by which every layer gets a format of its own: a limit, or the allocation; None if none does."""
        return next(iter(self.limits), "--allocation budget" if self.allocation == "budget" else None)

    @classmethod
    def checked(cls, given: dict[str, Any]) -> Options:
        """Options from keyword arguments.

        Raises:
            UsageError: there is no such option, or its value is out of range.
        """
        try:
            return cls(**given)
        except ValidationError as error:
            name, problem = first_invalid(error)
            raise UsageError(f"option {name}", problem, f"choose among {', '.join(cls.model_fields)}") from error
