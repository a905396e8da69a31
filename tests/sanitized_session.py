"""Runs models in onnxruntime, for a process that preloads AddressSanitizer: reads models, writes results.

    python sanitized_session.py LIBRARY FOLDER

Nothing is imported but what a session needs: everything here runs in the sanitizer's shadow.
"""

from __future__ import annotations

import ctypes
import mmap
import pickle
import sys
from pathlib import Path

import numpy as np
import onnxruntime

_LIBC = ctypes.CDLL(None, use_errno=True)


class _Guarded:
    """Arrays that end right before a page that must not be touched."""

    def __init__(self) -> None:
        self.maps: list[mmap.mmap] = []

    def copy(self, array: np.ndarray) -> np.ndarray:
        pages = -(-array.nbytes // mmap.PAGESIZE)
        memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        if _LIBC.mprotect(ctypes.c_void_p(start + pages * mmap.PAGESIZE), mmap.PAGESIZE, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
        self.maps.append(memory)
        inside = np.frombuffer(memory, array.dtype, array.size, pages * mmap.PAGESIZE - array.nbytes)
        inside[:] = array.reshape(-1)
        return inside.reshape(array.shape)


def _session(library: str, model: str | bytes, threads: int, optimize: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena = False  # each tensor in a malloc of its own, which the sanitizer sees
    options.enable_mem_pattern = False
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.register_custom_ops_library(library)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _results(library: str, folder: Path, run: tuple) -> list[tuple[str, object]]:
    """("output", array), or ("error", class and text), of each run; one error where there is no session."""
    model, external, feeds, threads, optimize, guarded = run
    if external is not None:
        (folder / "data").write_bytes(external)
        (folder / "model.onnx").write_bytes(model)
        model = str(folder / "model.onnx")
    try:
        session = _session(library, model, threads, optimize)
    except Exception as error:
        return [("error", (type(error).__name__, str(error)))]
    results: list[tuple[str, object]] = []
    for feed in feeds:
        memory = _Guarded()
        inside = {n: memory.copy(a) if guarded and a.nbytes else a.copy() for n, a in feed.items()}
        try:
            results.append(("output", session.run(None, inside)[0]))
        except Exception as error:
            results.append(("error", (type(error).__name__, str(error))))
    return results


def main(library: str, folder: str) -> None:
    replies = sys.stdout.buffer
    sys.stdout = sys.stderr  # onnxruntime prints too
    while True:
        try:
            run = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(_results(library, Path(folder), run), replies)
        replies.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
