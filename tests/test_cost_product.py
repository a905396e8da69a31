"""The cost of one product, against simulations written here, brute force, and closed forms."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qxcompiler.cost.arrays import folds
from qxcompiler.cost.operands import ways
from qxcompiler.cost.product import Traffic, cost_of_attention_product, cost_of_product
from qxcompiler.cost.tiling import Operands, best_tiling
from qxcompiler.errors import TargetError, UnsupportedByTargetError
from qxcompiler.formats import MX_FORMATS, Scheme
from qxcompiler.packing import packed_bytes
from qxcompiler.targets import Target, load_target, target_names
from qxcompiler.targets.hardware import Array

NPU = load_target("npu-int8").model_dump(exclude_none=True)


def target(**changes) -> Target:
    """The generic NPU, with some sections merged over."""

    def merged(base, over):
        if isinstance(base, dict) and isinstance(over, dict):
            return base | {key: merged(base.get(key), value) for key, value in over.items()}
        return over

    return Target.model_validate(merged(NPU, changes))


def cost(hardware: Target, M: int, N: int, K: int, scheme: str | None = "int4g32/a8"):
    return cost_of_product(hardware, M, N, K, scheme and Scheme.parse(scheme))


# Systolic arrays, cycle by cycle: numbers move one processing element a cycle, and the results must be right.


def stationary(stays: np.ndarray, streams: np.ndarray) -> tuple[np.ndarray, int]:
    """`stays` [R, C] is loaded a row a cycle; `streams` [T, R] enters skewed; partial sums leave at the bottom."""
    R, C = stays.shape
    T = len(streams)
    moving, sums = np.zeros((R, C)), np.zeros((R, C))
    out, left, cycle = np.zeros((T, C)), T * C, 0
    while left:
        entering = [streams[cycle - r, r] if 0 <= cycle - r < T else 0.0 for r in range(R)]
        moving = np.column_stack([entering, moving[:, :-1]])
        sums = np.vstack([np.zeros(C), sums[:-1]]) + moving * stays
        for c in range(C):
            row = cycle - (R - 1) - c
            if 0 <= row < T:
                out[row, c] = sums[-1, c]
                left -= 1
        cycle += 1
    return out, R + cycle


def output_stationary(X: np.ndarray, W: np.ndarray) -> tuple[np.ndarray, int]:
    """X [R, T] enters from the left, W [T, C] from above, both skewed; the sums are shifted out at the end."""
    (R, T), C = X.shape, W.shape[1]
    across, down, sums = np.zeros((R, C)), np.zeros((R, C)), np.zeros((R, C))
    done, cycle = np.zeros((R, C), int), 0
    while (done < T).any():
        left = [X[r, cycle - r] if 0 <= cycle - r < T else 0.0 for r in range(R)]
        above = [W[cycle - c, c] if 0 <= cycle - c < T else 0.0 for c in range(C)]
        across = np.column_stack([left, across[:, :-1]])
        down = np.vstack([above, down[:-1]])
        sums += across * down
        places = cycle - np.add.outer(np.arange(R), np.arange(C))
        done += (places >= 0) & (places < T)
        cycle += 1
    return sums, cycle + R


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 7), (5, 4, 3), (6, 9, 8), (4, 3, 12)])
@pytest.mark.parametrize("dataflow", ["output-stationary", "weight-stationary", "input-stationary"])
def test_folds_are_those_of_a_simulated_array(shape, dataflow):
    M, N, K = shape
    R, C = 3, 4
    X, W = (np.random.default_rng(0).integers(-3, 4, size).astype(float) for size in ((M, K), (K, N)))
    Y, cycles, reads = np.zeros((M, N)), 0, {"x": 0, "w": 0, "y": 0}

    def block(matrix: np.ndarray, i: int, j: int, rows: int, columns: int) -> np.ndarray:
        """A piece, filled up with zeros to what the array has."""
        piece = matrix[i : i + rows, j : j + columns]
        return np.pad(piece, ((0, rows - piece.shape[0]), (0, columns - piece.shape[1])))

    if dataflow == "output-stationary":
        for i, j in product(range(0, M, R), range(0, N, C)):
            y, taken = output_stationary(block(X, i, 0, R, K), block(W, 0, j, K, C))
            cycles += taken
            reads["x"] += min(R, M - i) * K
            reads["w"] += min(C, N - j) * K
            reads["y"] += min(R, M - i) * min(C, N - j)
            Y[i : i + R, j : j + C] = y[: M - i, : N - j]
    else:
        weights = dataflow == "weight-stationary"
        A, B = (X, W) if weights else (W.T, X.T)  # [T, K] streams past [K, columns]
        result = np.zeros((len(A), B.shape[1]))
        for i, j in product(range(0, K, R), range(0, B.shape[1], C)):
            y, taken = stationary(block(B, i, j, R, C), block(A, 0, i, len(A), R))
            cycles += taken
            reads["x" if weights else "w"] += len(A) * min(R, K - i)
            reads["w" if weights else "x"] += min(R, K - i) * min(C, B.shape[1] - j)
            reads["y"] += len(A) * min(C, B.shape[1] - j)
            result[:, j : j + C] += y[:, : B.shape[1] - j]
        Y = result if weights else result.T
    np.testing.assert_array_equal(Y, X @ W)
    found = folds(Array(rows=R, columns=C, dataflow=dataflow), M, N, K)
    assert found.cycles == cycles
    assert found.input_reads * M * K == reads["x"]
    assert found.weight_reads * N * K == reads["w"]
    assert found.output_writes * M * N == reads["y"]


# Tilings, by walking through every loop nest.


def up(size: float, burst: int) -> float:
    return -(-size // burst) * burst


def walked(o: Operands, order: str, tile: dict[str, int]) -> float:
    """Bytes that pass, if one tile of each operand is kept: the loops, turn by turn."""
    sizes = {"m": o.M, "n": -(-o.N // o.unit_n), "k": -(-o.K // o.unit_k)}
    weight = o.weight_bytes / (sizes["n"] * sizes["k"])
    real = {"m": lambda a: a, "n": lambda a: min(a * o.unit_n, o.N), "k": lambda a: min(a * o.unit_k, o.K)}
    whole = {loop: tile[loop] >= sizes[loop] for loop in sizes}
    held: dict[str, tuple] = {}
    done: dict[tuple, int] = {}
    moved = 0.0

    def size_of(name: str, at: dict[str, int], each: int) -> float:
        ends = {loop: min(at[loop] + tile[loop], sizes[loop]) for loop in at}
        m = ends["m"] - at["m"]
        n, k = (real[loop](ends[loop]) - real[loop](at[loop]) for loop in "nk")
        if name == "w":
            units_n, units_k = ends["n"] - at["n"], ends["k"] - at["k"]
            if whole["k"]:  # goes on where the tile before ended
                return units_n * sizes["k"] * weight
            return units_n * up(units_k * weight, o.burst_bytes)
        columns, is_whole = (k, whole["k"]) if name == "x" else (n, whole["n"])
        if is_whole:
            return m * columns * each
        return m * up(columns * o.value_bytes, o.burst_bytes) * each / o.value_bytes

    places = {loop: range(0, sizes[loop], tile[loop]) for loop in sizes}
    turns = [dict(zip(order, at, strict=True)) for at in product(*(places[loop] for loop in order))]
    for at in turns:
        for name, key in (("x", (at["m"], at["k"])), ("w", (at["n"], at["k"]))):
            if held.get(name) != key:
                held[name] = key
                moved += size_of(name, at, o.value_bytes)
        key = (at["m"], at["n"])
        if held.get("y") != key:
            if "y" in held and done[held["y"]] < len(places["k"]):
                m, n = held["y"]
                moved += size_of("y", {"m": m, "n": n, "k": 0}, 4)  # partial sums go
            held["y"] = key
            if key in done:
                moved += size_of("y", at, 4)  # and come back
        done[key] = done.get(key, 0) + 1
        if done[key] == len(places["k"]):
            moved += size_of("y", at, o.value_bytes)
    return moved


def by_hand(o: Operands, capacity: int) -> float | None:
    sizes = {"m": o.M, "n": -(-o.N // o.unit_n), "k": -(-o.K // o.unit_k)}
    weight = o.weight_bytes / (sizes["n"] * sizes["k"])
    best = None
    for m, n, k in product(*(range(1, size + 1) for size in sizes.values())):
        columns, rows = n * o.unit_n, k * o.unit_k
        if n * k * weight + m * rows * o.value_bytes + m * columns * 4 > capacity:
            continue
        for order in permutations("mnk"):
            moved = walked(o, "".join(order), {"m": m, "n": n, "k": k})
            best = moved if best is None else min(best, moved)
    return best


@pytest.mark.parametrize(
    ("M", "N", "K", "bits", "value", "burst"),
    [
        (5, 48, 96, 4, 2, 1),
        (7, 40, 70, 8, 1, 1),
        (1, 80, 64, 3, 4, 1),
        (12, 16, 96, 8, 2, 1),
        (4, 48, 64, 4, 1, 64),
        (3, 33, 100, 5, 2, 32),
    ],
)
def test_the_best_tiling_is_that_of_brute_force(M, N, K, bits, value, burst):
    weights = -(-N // 16) * -(-K // 32) * 64 * bits
    operands = Operands(M, N, K, weights, value, 16, 32, burst)
    fitted = 0
    for capacity in (100, 700, 1500, 2500, 4000, 7000, 100_000):
        found, expected = best_tiling(operands, capacity), by_hand(operands, capacity)
        assert (found is None) == (expected is None)
        if found is not None:
            fitted += 1
            # whole matrices end with a burst, and a tile of another size that makes as many tiles may waste less
            assert found.bytes == pytest.approx(expected, rel=1e-9 if burst == 1 else 0.1)
            assert found.bytes >= expected * (1 - 1e-9)
    assert fitted >= 4


def test_all_passes_once_where_all_fits():
    operands = Operands(64, 256, 512, 70_000, 2, 16, 32, 1)
    found = best_tiling(operands, 1 << 30)
    assert found.bytes == 64 * 512 * 2 + 70_000 + 64 * 256 * 2
    assert (found.m, found.n, found.k, found.transfers, found.partial_bytes) == (64, 256, 512, 3, 0)


# Closed forms.


def test_decoding_is_bytes_over_bandwidth_where_memory_binds():
    slow = target(memory={"dram": {"bandwidth_bytes_per_second": 1e8, "read_latency_cycles": 0}})
    for scheme in ("int2g32/a8", "int4g32/a8", "int8/a8"):
        size = packed_bytes(Scheme.parse(scheme).format, 1024, 2048)
        found = cost(slow, 1, 1024, 2048, scheme)
        assert found.seconds == pytest.approx(size / 1e8, rel=1e-3)
        assert found.binding == "dram"


def test_an_array_that_never_waits_takes_its_folds():
    memory = {name: {"bandwidth_bytes_per_second": 1e15, "read_latency_cycles": 0, "write_latency_cycles": 0}
              for name in ("sram", "dram")}  # fmt: skip
    vectors = {"operand": "int8", "values_per_cycle": 1e9, "dequantization_values_per_cycle": {"int": 1e9}}
    fast = target(memory=memory, vector_unit=vectors)
    expected = (-(-40 // 32)) * (-(-100 // 32)) * (2 * 32 + 32 + 256 - 2)
    found = cost(fast, 40, 100, 256)
    assert found.seconds * 1e9 == pytest.approx(expected)
    assert found.binding == "array"


def test_padding_is_moved_too():
    assert cost(target(), 1, 17, 64).traffic["dram"].read == cost(target(), 1, 32, 64).traffic["dram"].read
    assert cost(target(), 1, 16, 64).traffic["dram"].read < cost(target(), 1, 17, 64).traffic["dram"].read


def test_transfers_are_whole_bursts():
    long = target(memory={"dram": {"burst_length_bytes": 1 << 20}})
    assert cost(long, 1, 64, 64).traffic["dram"].read == 1 << 20


def test_without_overlap_moving_and_computing_add_up():
    together, apart = target(), target(dma={"overlaps_compute": False})
    a, b = cost(together, 1, 2048, 2048), cost(apart, 1, 2048, 2048)
    near = max(time for name, time in b.busy.items() if name != "dram")
    assert a.seconds == pytest.approx(max(a.busy.values()) + 100e-9)
    assert b.seconds == pytest.approx(b.busy["dram"] + near + 100e-9)


def test_without_overlap_every_tile_waits_and_channels_wait_together():
    for channels, waits in ((1, 5), (2, 3), (8, 1)):
        apart = target(dma={"overlaps_compute": False, "channels": channels}, memory_mode={"cache_size_bytes": 1 << 20})
        found = cost(apart, 1, 4096, 2048)  # 4.7 MB
        near = max(time for name, time in found.busy.items() if name != "dram")
        assert found.seconds - found.busy["dram"] - near == pytest.approx(waits * 100e-9)


@pytest.mark.parametrize(("entries", "width", "fits"), [(16, 8, True), (8, 8, False), (16, 4, False)])
def test_a_codebook_is_decoded_where_the_table_holds_it(entries, width, fits):
    table = {"table_entries": entries, "table_width_bits": width}
    hardware = target(vector_unit={"dequantization_values_per_cycle": {"lut": 32}, **table})
    if fits:
        assert cost(hardware, 1, 64, 64, "lut4g32/a8").seconds > 0
    else:
        with pytest.raises(UnsupportedByTargetError):
            cost(hardware, 1, 64, 64, "lut4g32/a8")


def test_energy_is_the_sum_of_its_parts():
    found = cost(target(), 1, 512, 1024)
    macs, around = 512 * 1024, 1024 + 512  # X rounded, Y scaled
    decoded = 512 * 1024
    expected = macs * 0.3 + (decoded + around) * 1.5
    for name, energy in (("sram", 12), ("dram", 160)):
        expected += (found.traffic[name].read + found.traffic[name].written) * energy
    assert found.joules == pytest.approx(expected * 1e-12)
    assert cost(target(vector_unit={"value_energy_pj": None}), 1, 512, 1024).joules is None


def test_fewer_bits_save_multiplications_on_a_bit_serial_unit_alone():
    serial, array = load_target("npu-bitserial"), target()
    two, eight = (cost(serial, 64, 512, 512, f"int{bits}g32/a8") for bits in (2, 8))
    assert eight.busy["planes"] == pytest.approx(4 * two.busy["planes"])
    two, eight = (cost(array, 64, 512, 512, f"int{bits}g32/a8") for bits in (2, 8))
    assert eight.busy["array"] == two.busy["array"]


def test_weights_of_the_operands_bits_are_not_decoded():
    narrow, wide = cost(target(), 64, 512, 512, "int4g32/a8"), cost(target(), 64, 512, 512, "int8g32/a8")
    around = (64 * 512 + 64 * 512) / 64
    assert wide.busy["vector unit"] * 1e9 == pytest.approx(around)
    assert narrow.busy["vector unit"] * 1e9 == pytest.approx(around + 2 * 512 * 512 / 64)  # two folds down, so twice


def test_microscaling_weights_are_multiplied_at_the_rate_of_their_bits():
    hardware = load_target("npu-mx")
    for name in MX_FORMATS:
        found = cost_of_product(hardware, 256, 512, 512, Scheme.parse(f"{name}/a8"))
        assert found.busy["blocks"] * 1e9 == pytest.approx(256 * 512 * 512 / (2048 if name == "mxfp4" else 1024)), name


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [("mxfp4/a8", 8), ("mxfp6e2m3/a8", 8), ("mxfp6e3m2/a8", 16), ("mxfp8e4m3/a8", None), ("fp8e5m2g32/a8", None)],
)
def test_a_small_float_is_decoded_to_integers_that_hold_it(scheme, bits):
    """In units of the smallest: E2M1 up to 12, E2M3 up to 60, E3M2 up to 448, E4M3 up to 229376."""
    decodes = {"dequantization_values_per_cycle": {"mx": 32, "fp": 32}}
    for width in (8, 16):
        wider = {"array": {"macs_per_cycle": {f"int{width} x int8": 1024}}}
        hardware = target(compute_units=wider, vector_unit=decodes)
        units = {way.unit for way in ways(hardware, Scheme.parse(scheme))}
        assert ("array" in units) == (bits is not None and width >= bits)


def test_cores_share_the_output_features():
    rk3588 = load_target("rk3588-npu")
    found = cost_of_product(rk3588, 256, 3000, 1024, Scheme.parse("int8/a8"))
    assert found.busy["cores"] * 1e9 == pytest.approx(256 * 1000 * 1024 / 1024)


def test_the_same_product_on_a_look_up_table_and_on_multipliers():
    lut = load_target("npu-lut")
    assert "tables" in cost_of_product(lut, 8, 256, 256, Scheme.parse("lut3g32/a8")).busy
    assert "tables" in cost_of_product(lut, 8, 256, 256, Scheme.parse("int4g32/a8")).busy
    assert "multipliers" in cost_of_product(lut, 8, 256, 256, Scheme.parse("int8g32/a8")).busy


def test_every_preferred_scheme_can_be_multiplied():
    for name in target_names():
        hardware = load_target(name)
        for scheme in (hardware.preferred.linear, hardware.preferred.head):
            assert cost_of_product(hardware, 4, 256, 256, scheme).seconds > 0


def test_what_no_unit_multiplies_is_refused():
    with pytest.raises(
        UnsupportedByTargetError, match="target npu-int8: has no unit that multiplies weights as lut3g32/a8"
    ):
        cost(target(), 1, 64, 64, "lut3g32/a8")
    with pytest.raises(UnsupportedByTargetError, match="multiplies weights as float"):
        cost_of_product(load_target("ethos-u85"), 1, 64, 64, None)


def test_a_descriptor_without_hardware_has_no_cost():
    bare = Target.model_validate({name: NPU[name] for name in NPU if name not in ("memory", "memory_mode")})
    with pytest.raises(TargetError, match="has no section `memory`"):
        cost(bare, 1, 64, 64)


def test_a_memory_too_small_for_a_tile_is_named():
    with pytest.raises(TargetError, match=r"cannot hold the smallest tile .* in sram"):
        cost(target(memory={"sram": {"size_bytes": 64}}), 512, 512, 512)


def test_products_of_activations_run_in_what_the_cache_may_be():
    floats = target(kv_cache=["float16"])
    assert "array" not in cost_of_attention_product(floats, 8, 64, 64, cached=True).busy
    assert "array" in cost_of_attention_product(target(), 8, 64, 64, cached=True).busy
    far = cost_of_attention_product(target(), 8, 64, 64, cached=True).traffic["dram"].read
    assert far == 64 * 64 * 2
    near = cost_of_attention_product(target(), 8, 64, 64, cached=False)
    assert near.traffic.get("dram", Traffic()).read == 0


def test_rotated_inputs_cost_what_their_additions_do():
    plain, rotated = (cost(target(hadamard=True), 8, 512, 512, f"int4g32{h}/a8") for h in ("", "h"))
    apart = rotated.busy["vector unit"] - plain.busy["vector unit"]
    assert apart * 1e9 == pytest.approx(8 * 512 * (6 + 1) / 64)
    assert rotated.traffic["dram"] == plain.traffic["dram"]
    assert rotated.seconds > plain.seconds


# What was measured goes first.


def measured(**kernels):
    listed = [{"scheme": name.replace("_", "/"), "weights_per_second": rates} for name, rates in kernels.items()]
    fields = {"threads": 1, "read_bandwidth_bytes_per_second": {1: 1e10}, "operator_overhead_seconds": 1e-5}
    return {"measured": fields | {"kernels": listed}}


def test_measured_rates_are_interpolated_in_rows():
    hardware = target(**measured(int4g32_a8={1: 1e9, 5: 2.5e8, 16: 1e8}))
    weights = 256 * 512

    def seconds(rows: int) -> float:
        return cost(hardware, rows, 256, 512).busy["kernel"]

    assert seconds(1) == pytest.approx(weights / 1e9)
    assert seconds(5) == pytest.approx(weights / 2.5e8)
    assert seconds(3) == pytest.approx((seconds(1) + seconds(5)) / 2)
    assert seconds(16) == pytest.approx(weights / 1e8)
    assert seconds(64) == pytest.approx(4 * seconds(16))
    assert "kernel" not in cost(hardware, 1, 256, 512, "int8g32/a8").busy


def test_the_nearest_group_size_serves():
    hardware = target(**measured(int4g32_a8={1: 1e9}, int4g128_a8={1: 2e9}, int4g32a_a8={1: 5e9}))
    rates = {
        group: 1e6 / cost(hardware, 1, 1000, 1000, f"int4{group}/a8").busy["kernel"] for group in ("g32", "g64", "")
    }
    assert rates["g32"] == pytest.approx(1e9)
    assert rates["g64"] in (pytest.approx(1e9), pytest.approx(2e9))
    assert rates[""] == pytest.approx(2e9)


def test_memory_bounds_what_was_measured_in_a_cache():
    hardware = target(**measured(int4g32_a8={1: 1e14}))
    found = cost(hardware, 1, 256, 512)
    assert found.binding == "dram"
    assert found.seconds == packed_bytes(Scheme.parse("int4g32").format, 256, 512) / 1e10


# Monotony.

SHAPES = st.tuples(st.integers(1, 300), st.integers(1, 2000), st.integers(2, 2000))
SETTINGS = settings(max_examples=100, deadline=None)


@SETTINGS
@given(shape=SHAPES, level=st.sampled_from(["sram", "dram"]), factor=st.floats(1, 100))
def test_more_bandwidth_is_never_slower(shape, level, factor):
    rate = NPU["memory"][level]["bandwidth_bytes_per_second"] * factor
    faster = target(memory={level: {"bandwidth_bytes_per_second": rate}})
    assert cost(faster, *shape).seconds <= cost(target(), *shape).seconds


@SETTINGS
@given(shape=SHAPES, bits=st.sampled_from([(2, 3), (3, 4), (4, 8)]), group=st.sampled_from(["g32", "g128", ""]))
def test_fewer_bits_are_never_more_bytes(shape, bits, group):
    few, many = (cost(target(), *shape, f"int{each}{group}/a8").traffic["dram"].read for each in bits)
    assert few <= many


@SETTINGS
@given(shape=SHAPES, size=st.integers(1 << 14, 1 << 20), factor=st.floats(1, 8))
def test_a_larger_cache_never_moves_more(shape, size, factor):
    small, large = (target(memory={"sram": {"size_bytes": int(each)}}) for each in (size, size * factor))
    moved = [cost(each, *shape).traffic["dram"] for each in (small, large)]
    assert moved[1].read + moved[1].written <= (moved[0].read + moved[0].written) * (1 + 1e-9)


@SETTINGS
@given(shape=SHAPES)
def test_more_rows_are_never_faster(shape):
    M, N, K = shape
    assert cost(target(), M, N, K).seconds <= cost(target(), M + 1, N, K).seconds * (1 + 1e-9)
