"""How fast another runtime reads and writes text, in the environment where it is installed.

    ENVIRONMENT/bin/python -P benchmarks/runtime_peers.py PEER MODEL THREADS PROMPT_TOKENS NEW_TOKENS REPETITIONS

`benchmarks/runtimes.py` calls it. A peer is `llama.cpp`, or `llama.cpp-q8_0` with keys and values in 8 bits, and MODEL
a GGUF file; or `onnxruntime-genai`, and a folder. Prints tokens a second as JSON: medians, after a run to warm up.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

Run = Callable[[list[int], int], Iterator[None]]
VOCABULARY = 10_000  # random tokens are below


def llama_cpp(model: str, threads: int, tokens: int, *, quantized_cache: bool) -> Run:
    """Flash attention, as its own benchmark has it."""
    import llama_cpp

    cache = llama_cpp.GGML_TYPE_Q8_0 if quantized_cache else llama_cpp.GGML_TYPE_F16
    loaded = llama_cpp.Llama(
        model, n_ctx=tokens, n_threads=threads, n_threads_batch=threads, n_batch=512, n_ubatch=512,
        flash_attn=True, type_k=cache, type_v=cache, verbose=False,
    )  # fmt: skip

    def step(ids: list[int]) -> None:
        context: Any = loaded.ctx  # which goes with the model
        array = (llama_cpp.llama_token * len(ids))(*ids)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(ids))):
            raise RuntimeError("llama_decode failed")
        llama_cpp.llama_synchronize(context)
        llama_cpp.llama_get_logits_ith(context, -1)

    def run(ids: list[int], prompt: int) -> Iterator[None]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(loaded.ctx), True)
        for start in range(0, prompt, 512):
            step(ids[start : min(start + 512, prompt)])
        yield
        for token in ids[prompt:]:
            step([token])
        yield

    return run


def genai(model: str, threads: int, tokens: int) -> Run:
    """Its own choice of the next token, the most likely one."""
    import numpy as np
    import onnxruntime_genai

    config = onnxruntime_genai.Config(model)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    loaded = onnxruntime_genai.Model(config)

    def run(ids: list[int], prompt: int) -> Iterator[None]:
        params = onnxruntime_genai.GeneratorParams(loaded)
        params.set_search_options(max_length=tokens, min_length=tokens, do_sample=False)
        generator = onnxruntime_genai.Generator(loaded, params)
        generator.append_tokens(np.array(ids[:prompt], np.int32))
        generator.generate_next_token()
        yield
        for _ in ids[prompt + 1 :]:
            generator.generate_next_token()
        yield

    return run


def main(peer: str, model: str, *numbers: str) -> None:
    """Measure one peer."""
    threads, prompt, new, repetitions = map(int, numbers)
    made = genai(model, threads, prompt + new) if peer == "onnxruntime-genai" else None
    run = made or llama_cpp(model, threads, prompt + new, quantized_cache=peer == "llama.cpp-q8_0")
    draws = random.Random(0)  # noqa: S311
    prefills, decodes = [], []
    for _ in range(repetitions + 1):
        times = [time.perf_counter()]
        for _ in run([draws.randrange(3, VOCABULARY) for _ in range(prompt + new)], prompt):
            times.append(time.perf_counter())
        prefills.append(prompt / (times[1] - times[0]))
        decodes.append((new - (peer == "onnxruntime-genai")) / (times[2] - times[1]))
    rates = {"prefill": statistics.median(prefills[1:]), "decode": statistics.median(decodes[1:])}
    print(json.dumps(rates))


if __name__ == "__main__":
    main(*sys.argv[1:])
