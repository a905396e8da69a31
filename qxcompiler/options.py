"""What a user can ask of a compile."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qxcompiler.errors import UsageError, first_invalid

__all__ = ["Options"]


class Options(BaseModel):
    """The options of `compile` and `compile_folder`.

    Attributes:
        weights: weight format of the linear layers other than the head; by default what the target prefers.
        activations: precision of activations; by default what the target prefers.
        head: format of the head, or `float`; by default what the target prefers.
        embedding: format of embeddings, or `float`; by default what the target prefers.
        allocation: how schemes are chosen: `uniform`, `budget`, or what a package adds; by default `budget` where
            there is one, else `uniform`.
        bits_per_weight: at most so many for the linear layers other than the head, everything counted. Of the format
            of `weights` every layer gets those bits that serve the model best.
        quantizer: the algorithm that chooses the codes.
        samples: how many samples to calibrate on, at most.
        tune: how many samples, at most, to tune the scales and tables of the quantized weights on, so that the whole
            model follows the original's outputs; 0 leaves them as the quantizer chose them.
        length: tokens a sample; by default 512, or the model's context where that is shorter.
        keep: a regular expression; sites whose name or role it finds stay in float.
        plan: a plan file that says every site's scheme, instead of `weights`, `activations`, `head`, `embedding` and
            `keep`.
        device: where the algebra on weights runs: `cpu`, `cuda`, or `auto` for CUDA where there is one.
        seed: of the random generators that quantizers may use, and that make up inputs for verification.
        verification: run the compiled model beside the original before it is handed over, on samples held back from
            calibration, or on inputs made up where there are none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: str | None = None
    activations: Literal["a32", "a16", "a8"] | None = None
    head: str | None = None
    embedding: str | None = None
    allocation: str | None = None
    bits_per_weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    quantizer: str = "gptq"
    samples: int = Field(default=48, ge=1)
    tune: int = Field(default=0, ge=0)
    length: int | None = Field(default=None, ge=1)
    keep: str | None = None
    plan: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    verification: bool = True

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
