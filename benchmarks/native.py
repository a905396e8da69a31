"""The C library called from Python, and a plain read beside it: see timing.cpp."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np

from qxcompiler.formats import E8M0, FLOAT16, TWO_LEVEL, Format

_ROOT = Path(__file__).parent.parent
CODES = {"Int": 0, "UInt": 1, "Lut": 2, "Fp": 3, "E2M3": 4, "E3M2": 5, "E4M3": 6, "E5M2": 7}
SCALES = {FLOAT16: 0, E8M0: 1, TWO_LEVEL: 2}
_ACTIVATIONS = {"a8": 0, "a16": 1, "a32": 2}
_ALIGNMENT = 64


class Weight(ctypes.Structure):
    """`qxc_weight` of qxc/kernels.h."""

    _fields_ = [
        ("code", ctypes.c_int),
        ("scale", ctypes.c_int),
        ("bits", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("group_size", ctypes.c_int64),
        ("codebook_per_tensor", ctypes.c_int32),
        ("packed", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("row_scales", ctypes.c_void_p),
        ("zero_points", ctypes.c_void_p),
        ("codebook", ctypes.c_void_p),
    ]


class MatMul(ctypes.Structure):
    """`qxc_matmul` of qxc/kernels.h."""

    _fields_ = [
        ("kernels", ctypes.c_void_p),
        ("weight", Weight),
        ("activation", ctypes.c_int),
        ("element", ctypes.c_int),
        ("epilogue", ctypes.c_int),
        ("rows", ctypes.c_int64),
        ("a", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("bias_stride", ctypes.c_int64),
        ("workspace", ctypes.c_void_p),
    ]


def aligned_zeros(size: int) -> np.ndarray:
    """uint8 [size], zeros, aligned as the kernels ask."""
    memory = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size]


class Library:
    """The kernels with the timing of `timing.cpp`, built from the sources beside this file."""

    def __init__(self) -> None:
        folder = _ROOT / "build" / "benchmarks"
        configure = ["cmake", "-S", str(_ROOT / "runtime_ops"), "-B", str(folder), "-DQXC_BENCHMARKS=ON"]
        for command in (configure, ["cmake", "--build", str(folder), "--target", "qxc_timing", "--parallel", "2"]):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        self._library = ctypes.CDLL(str(folder / "libqxc_timing.so"))
        self._library.qxc_kernels_for.restype = ctypes.c_void_p
        self._library.qxc_kernels_for.argtypes = [ctypes.c_char_p]
        self._library.qxc_kernels_name.restype = ctypes.c_char_p
        self._library.qxc_kernels_name.argtypes = [ctypes.c_void_p]

    def kernels(self, isa: str | None) -> int:
        """The kernels of an instruction set, or the best ones.

        Raises:
            ValueError: this machine has none of that name.
        """
        kernels = self._library.qxc_kernels_for(isa.encode() if isa else None)
        if not kernels:
            raise ValueError(f"no kernels for {isa}")
        return int(kernels)

    def name(self, kernels: int) -> str:
        """The instruction set of kernels."""
        return str(self._library.qxc_kernels_name(kernels).decode())

    def product(
        self,
        kernels: int,
        fmt: Format,
        activation: str,
        a: np.ndarray,
        tensors: dict[str, np.ndarray],
        N: int,
        *,
        gated: bool = False,
    ) -> tuple[MatMul, list[np.ndarray]]:
        """A product of A, float32 [M, K], with packed tensors, or silu(gate) * up; and the arrays that it points to."""
        M, K = a.shape
        y = np.empty((M, N // 2 if gated else N), np.float32)
        weight = Weight(
            code=CODES[fmt.code_type],
            scale=SCALES[fmt.scale_type],
            bits=fmt.bits,
            rows=N,
            columns=K,
            group_size=fmt.group_length(K),
            codebook_per_tensor=fmt.codebook_rows(N) == 1,
            **{name: tensor.ctypes.data for name, tensor in tensors.items()},
        )
        product = MatMul(
            kernels=kernels,
            weight=weight,
            activation=_ACTIVATIONS[activation],
            element=0,
            epilogue=int(gated),
            rows=M,
            a=a.ctypes.data,
            y=y.ctypes.data,
            bias=None,
            bias_stride=0,
            workspace=None,
        )
        size = ctypes.c_size_t()
        if status := self._library.qxc_matmul_check(ctypes.byref(product), ctypes.byref(size)):
            raise ValueError(f"the library refuses {fmt.name}: status {status}")
        workspace = aligned_zeros(size.value)
        product.workspace = workspace.ctypes.data
        return product, [a, y, workspace, *tensors.values()]

    def time_pairs(
        self, products: list[MatMul], read_bytes: int, threads: int, pairs: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Seconds of products, and of plain reads of `read_bytes` around each: float64 [pairs], twice."""
        array = (MatMul * len(products))(*products)
        seconds, reads = np.empty(pairs), np.empty(pairs)
        self._library.time_pairs(
            array,
            ctypes.c_int64(len(products)),
            ctypes.c_size_t(read_bytes),
            ctypes.c_int32(threads),
            ctypes.c_int32(pairs),
            ctypes.c_void_p(seconds.ctypes.data),
            ctypes.c_void_p(reads.ctypes.data),
        )
        return seconds, reads

    def time_in_turn(self, products: list[MatMul], threads: int, rounds: int) -> np.ndarray:
        """Seconds of all products, one after the other, `rounds` times over: float64 [rounds, products]."""
        seconds = np.empty((rounds, len(products)))
        self._library.time_in_turn(
            (MatMul * len(products))(*products),
            ctypes.c_int64(len(products)),
            ctypes.c_int32(threads),
            ctypes.c_int32(rounds),
            ctypes.c_void_p(seconds.ctypes.data),
        )
        return seconds
