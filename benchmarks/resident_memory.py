"""Memory that a language model takes while it writes, beside its files and its cache.

    python benchmarks/resident_memory.py COMPILED/model.onnx [--tokens 128]

Megabytes resident: once Python and onnxruntime are imported, once the session is made, and at most while half of the
tokens are read and the other half is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from qxcompiler_runtime.decoder import Decoder
from qxcompiler_runtime.model import ModelFile


def main(
    model: Path, tokens: Annotated[int, typer.Option(min=2, help="Capacity of the cache, all of it used.")] = 128
) -> None:
    """Print megabytes."""
    imported = resident("VmRSS")
    file = ModelFile(model, threads=1)
    loaded = resident("VmRSS")
    decoder = Decoder(file, context=tokens)
    ids = np.random.default_rng(0).integers(3, 1000, tokens).tolist()
    decoder.step([ids[: tokens // 2]])
    for token in ids[tokens // 2 :]:
        decoder.step([[token]])
    most = resident("VmHWM")
    files = sum(path.stat().st_size for path in model.parent.glob(f"{model.name}*"))
    cache = sum(value.numpy().nbytes for value in decoder.past.values())
    ours = most - imported
    print(f"imported {imported / 1e6:.1f}, session {loaded / 1e6:.1f}, at most {most / 1e6:.1f} MB")
    print(f"files {files / 1e6:.1f}, cache {cache / 1e6:.1f} MB; at most, less what is imported: {ours / 1e6:.1f} MB,")
    print(f"{ours / (files + cache):.2f} of files and cache")


def resident(field: str) -> int:
    """Bytes, from the field of /proc/self/status."""
    return 1024 * int(Path("/proc/self/status").read_text(encoding="ascii").split(f"{field}:")[1].split()[0])


if __name__ == "__main__":
    typer.run(main)
