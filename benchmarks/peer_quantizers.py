"""Quantize a language model with somebody else's quantizer, in the environment where that is installed.

    ENVIRONMENT/bin/python -P benchmarks/peer_quantizers.py METHOD BITS GROUP MODEL OUT

`benchmarks/peers.py` calls it. MODEL is a Hugging Face folder that also holds `calibration.safetensors`, `ids` of shape
[samples, length]. OUT gets the weights of the blocks' linear layers as the quantizer would compute with them, in
float32; a JSON file beside it says how long that took. All quantize to integers with zero points.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

Weights = dict[str, torch.Tensor]


def load(folder: Path) -> Any:
    """The model in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def weights(model: Any, weight: Callable[[Any], torch.Tensor]) -> Weights:
    """What `weight` gives of each linear layer, wherever the quantizer put its own class in its place."""
    layers = {name: layer for name, layer in model.named_modules() if name.endswith("_proj")}
    return {f"{name}.weight": weight(layer).detach().float().contiguous() for name, layer in layers.items()}


def auto_round(folder: Path, ids: torch.Tensor, bits: int, group: int, **options: Any) -> Weights:
    """AutoRound (arXiv 2309.05516): rounding and clipping learned block by block with signed gradients."""
    from auto_round import AutoRound

    batches = [{"input_ids": batch, "attention_mask": torch.ones_like(batch)} for batch in ids.split(8)]
    model, _ = AutoRound(
        load(folder), AutoTokenizer.from_pretrained(folder), bits=bits, group_size=group, sym=False, dataset=batches,
        nsamples=len(ids), seqlen=ids.shape[1], batch_size=8, device_map="cpu", enable_torch_compile=False, **options,
    ).quantize()  # fmt: skip
    return weights(model, lambda layer: layer.weight)


def gptqmodel(folder: Path, ids: torch.Tensor, bits: int, group: int, *, gptaq: bool = False) -> Weights:
    """GPTQ (arXiv 2210.17323), or GPTAQ (arXiv 2504.02692), by GPTQModel. Its older format stores zero points
    less one, and so would be read wrong here."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # with fewer cores than three it stops otherwise
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel.quantization.config import GPTAQConfig

    config = QuantizeConfig(
        bits=bits, group_size=group, sym=False, device="cpu", offload_to_disk=False, format="gptq_v2",
        gptaq=GPTAQConfig() if gptaq else None,
    )  # fmt: skip
    model = GPTQModel.load(str(folder), config, dtype=torch.float32)
    samples = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids.tolist()]
    model.quantize(samples, batch_size=1, backend=BACKEND.TORCH)
    return weights(model.model, lambda layer: layer.dequantize_weight()[: layer.in_features].T)


class Both(torch.nn.Module):
    """A block that gets what the quantized blocks before it pass on, or with quantization off what the originals do."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, quantized: torch.Tensor, original: torch.Tensor, **options: Any) -> torch.Tensor:
        on = self.block.mlp.down_proj.weight_quant.is_quant_enabled
        output = self.block(quantized if on else original, **options)
        return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def brevitas(folder: Path, ids: torch.Tensor, bits: int, group: int, *, qronos: bool) -> Weights:
    """GPTQ, or Qronos (arXiv 2505.11695), by Brevitas: block by block, where its own loop for that needs CUDA."""
    from brevitas.graph.calibrate import quantization_status_manager
    from brevitas.graph.gpfq import gpfq_mode
    from brevitas.graph.gptq import gptq_mode
    from brevitas.graph.qronos import Qronos
    from brevitas.graph.quantize import layerwise_quantize
    from brevitas_examples.common.generative.quantize import generate_quant_maps, generate_quantizers

    model = load(folder)
    quantizers = generate_quantizers(
        weight_bit_width=bits, weight_quant_type="asym", weight_quant_granularity="per_group", weight_group_size=group,
        weight_param_method="mse", weight_scale_precision="float_scale", quantize_weight_zero_point=True,
        input_quant_format="int", input_scale_precision="float_scale",
    )  # fmt: skip
    maps = generate_quant_maps(**quantizers, dtype=torch.float32, device="cpu", quantize_embedding=False)
    model = layerwise_quantize(model, compute_layer_map=maps, name_blacklist=["lm_head"]).eval()
    start: list[tuple[torch.Tensor, dict[str, Any]]] = []
    blocks = model.model.layers

    def catch(_: Any, arguments: tuple[torch.Tensor, ...], options: dict[str, Any]) -> None:
        start.append((arguments[0], options))
        raise StopIteration

    hook = blocks[0].register_forward_pre_hook(catch, with_kwargs=True)
    for row in ids:
        try:
            model(row[None], use_cache=False)
        except StopIteration:
            continue
    hook.remove()
    samples = [(hidden, hidden, options) for hidden, options in start]
    mode = partial(gpfq_mode, algorithm_impl=Qronos) if qronos else gptq_mode
    parallel = [[f"block.{name}_proj" for name in names] for names in (
        ("self_attn.q", "self_attn.k", "self_attn.v"), ("self_attn.o",), ("mlp.gate", "mlp.up"), ("mlp.down",)
    )]  # fmt: skip
    for block in blocks:
        both = Both(block)
        both(samples[0][0], samples[0][1], **samples[0][2])  # sets the scales
        with mode(both, act_order=True, group_of_parallel_layers=parallel) as algorithm:
            for _ in range(algorithm.num_layers):
                for quantized, original, options in samples:
                    algorithm.model(quantized, original, **options)
                algorithm.update()
        outputs = [both(quantized, original, **options) for quantized, original, options in samples]
        with quantization_status_manager(both, disable_weight_quant=True):
            originals = [both(quantized, original, **options) for quantized, original, options in samples]
        samples = [(*pair, options) for *pair, (_, _, options) in zip(outputs, originals, samples, strict=True)]
    return weights(model, lambda layer: layer.quant_weight().value)


METHODS: dict[str, tuple[str, Callable[..., Weights]]] = {
    "auto-round-light": ("auto-round", partial(auto_round, iters=50, lr=5e-3)),
    "auto-round": ("auto-round", partial(auto_round, iters=200)),
    "gptqmodel-gptq": ("gptqmodel", gptqmodel),
    "gptqmodel-gptaq": ("gptqmodel", partial(gptqmodel, gptaq=True)),
    "brevitas-gptq": ("brevitas", partial(brevitas, qronos=False)),
    "brevitas-qronos": ("brevitas", partial(brevitas, qronos=True)),
}


def main() -> None:
    """Quantize as the command line says."""
    method, bits, group, folder, out = sys.argv[1:]
    package, quantize = METHODS[method]
    ids = load_file(Path(folder, "calibration.safetensors"))["ids"]
    start = time.perf_counter()
    quantized = quantize(Path(folder), ids, int(bits), int(group))
    figures = {
        "version": version(package),
        "seconds": time.perf_counter() - start,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    save_file(quantized, out)
    Path(out).with_suffix(".json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
