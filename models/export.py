"""From a Hugging Face model, a folder or a GGUF file to ONNX with its tokenizer and configuration."""

from __future__ import annotations

__all__ = ["export"]

import errno
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import onnx_ir as ir
import torch

from qxcompiler.companions import COMPANIONS, CONFIGURATIONS, VOCABULARIES, copy_files
from qxcompiler.errors import ExportError, OutputError, QxcError
from qxcompiler.models.missing_weights import MissingWeights
from qxcompiler.models.tasks import Part, Task, parts_of, task_for
from qxcompiler.models.tie_weights import TieWeights
from qxcompiler.models.verify import verify
from qxcompiler.progress import Track, silent
from qxcompiler.staging import staged

# Bytes of weights within the ONNX file itself: they come into memory with it, and those of external data when used.
_INLINE_LIMIT = 1 << 26
_DOWNLOADED = [*CONFIGURATIONS, *COMPANIONS, "*.safetensors", "*.safetensors.index.json"]
_PICKLES = {".bin", ".ckpt", ".pkl", ".pt", ".pth"}


def export(source: str | Path, output: str | Path, task: str | None = None, *, track: Track = silent) -> Path:
    """Export a model to ONNX with the head of its task, check it, and put its tokenizer and configuration beside it.

    Weights are read from safetensors or GGUF only, never from pickles, and no code that comes with a model is
    run. A tied embedding is stored once. Weights of more than 2 GB go to `<model>.onnx.data`.

    Args:
        source: a Hugging Face id; a folder with `config.json` and safetensors, or with one GGUF file; or a
            GGUF file.
        output: the folder to write. Files of an earlier export are replaced, others are left alone.
        task: what the model is to do, by optimum's names (`text-classification`, `fill-mask`, ...); by default
            what the architecture in `config.json` does.
        track: shows how far the export is.

    Returns:
        The folder, with `model.onnx`, or for an encoder-decoder with `encoder_model.onnx`, `decoder_model.onnx`
        and `decoder_with_past_model.onnx`.

    Raises:
        ExportError: the source cannot be found, read or exported, or not for this task; it lacks weights that the
            task needs; or what came out differs from it.
        OutputError: the output cannot be written.
    """
    for package in ("transformers", "optimum", "accelerate", "gguf"):
        if find_spec(package) is None:
            raise ExportError(source, f"the export needs {package}", "pip install '.[export]' in the checkout")
    output = Path(output)
    folder, gguf_file = _locate(str(source))
    if output.resolve() == folder.resolve():
        raise OutputError(output, "is the source itself", "name another folder")
    with _quiet(), staged(output) as stage, TemporaryDirectory(prefix=".qxc-export.", dir=stage.parent) as scratch:
        job = _Job(str(source), folder, gguf_file, task, Path(scratch), stage)
        for step in track([job.load, job.trace, job.store, job.check], "export"):
            step()
    return output


class _Job:
    """The steps of one export, in order: `scratch` holds what optimum wrote, `stage` what is handed over."""

    model: Any
    task: Task
    parts: list[Part]
    missing: MissingWeights

    def __init__(
        self, source: str, folder: Path, gguf_file: str | None, requested: str | None, scratch: Path, stage: Path
    ) -> None:
        self.source, self.folder, self.gguf_file, self.requested = source, folder, gguf_file, requested
        self.scratch, self.stage = scratch, stage

    def load(self) -> None:
        """Read the weights into a model of transformers, and save the tokenizer."""
        import transformers
        from optimum.exporters.utils import DisableCompileContextManager

        if self.gguf_file is None:
            _check_config(self.folder / "config.json")
            self._copy(self.folder, COMPANIONS)
        options = {"gguf_file": self.gguf_file, "trust_remote_code": False, "local_files_only": True}
        with _one_line(self.source, "cannot be read"), _gguf_parsed_once(), DisableCompileContextManager():
            config = transformers.AutoConfig.from_pretrained(self.folder, **options)
            if self.requested is None and self.gguf_file is not None:
                self.requested = "text-generation"  # such a file names no architecture, but holds a language model
            self.task = task_for(config, self.requested, self.source)
            self.model, info = self.task.loader.from_pretrained(
                self.folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=self.gguf_file is None,
                output_loading_info=True,
                **options,
            )
            self.model.config.architectures = [type(self.model).__name__]
            self.missing = MissingWeights(self.model, info["missing_keys"])
            self.parts = parts_of(self.model, self.task)
            if any(name.endswith("input_ids") for part in self.parts for name in part.config.inputs):
                self._save_tokenizer(options)

    def _save_tokenizer(self, options: dict[str, Any]) -> None:
        import transformers

        if (self.stage / "tokenizer.json").is_file():
            return
        other = any(True for pattern in VOCABULARIES for _ in self.stage.glob(pattern))
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder, **options)
        except Exception as error:
            if other:  # a form that takes a package we do not need; it was copied as it is
                return
            if self.gguf_file is not None:
                raise
            raise ExportError(self.source, "has no tokenizer.json", "add the one of this model") from error
        if self.gguf_file is not None:
            _follow_gguf(self.folder / self.gguf_file, tokenizer)
        tokenizer.save_pretrained(self.stage)
        if not other and not (self.stage / "tokenizer.json").is_file():
            raise ExportError(self.source, "has no tokenizer.json", "add the one of this model")

    def trace(self) -> None:
        """Let optimum write the graph."""
        from optimum.exporters.onnx import onnx_export_from_model

        self.model.eval()
        # The weights are plain numbers by now, whatever they were stored as.
        self.model.config.__dict__.pop("quantization_config", None)
        with _one_line(self.source, "cannot be exported"), _image_sizes(self.folder):
            onnx_export_from_model(
                self.model, self.scratch, task=self.task.name, do_validation=False, no_post_process=True
            )

    def store(self) -> None:
        """Write the final files."""
        self._copy(self.scratch, CONFIGURATIONS)
        for part in self.parts:
            path = self.scratch / f"{part.name}.onnx"
            graph = ir.load(path)
            self.missing.check(graph, self.source)
            TieWeights()(graph)
            with _one_line(self.source, "cannot be stored"):
                _save(graph, self.stage / path.name)

    def check(self) -> None:
        """Compare the final files with the model."""
        with _one_line(self.source, "cannot be checked"), _image_sizes(self.folder):
            verify(self.stage, self.parts, self.source)

    def _copy(self, folder: Path, patterns: Iterable[str]) -> None:
        with _one_line(self.source, "cannot be copied"):
            copy_files(folder, self.stage, patterns)


def _locate(source: str) -> tuple[Path, str | None]:
    """The folder that holds the source, downloaded if need be, and the name of the GGUF file in it, if it is
    one."""
    path = Path(source)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ExportError(source, "is no model to export", "give a folder, a .gguf file or a Hugging Face id")
        return path.parent, path.name
    if not path.is_dir():
        path = _download(source)
    if not (path / "config.json").is_file():
        files = sorted(path.glob("*.gguf"))
        if len(files) != 1:
            raise ExportError(source, f"holds no config.json and {len(files)} .gguf files", "give one model")
        return path, files[0].name
    if not any(path.glob("*.safetensors")):
        pickles = sorted(file.name for file in path.iterdir() if file.suffix in _PICKLES)
        problem = f"has its weights in a pickle, {pickles[0]}, which can run code" if pickles else "has no weights"
        raise ExportError(source, problem, "give them as .safetensors")
    return path, None


def _download(source: str) -> Path:
    if source.endswith(".gguf") or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source):
        raise ExportError(source, "no such file or folder", "check the path")
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    with _one_line(source, "no such folder, and cannot be had from the Hugging Face hub"):
        # No subfolders: they hold the same weights in other formats.
        return Path(snapshot_download(source, allow_patterns=_DOWNLOADED, ignore_patterns=["*/*"]))


def _check_config(path: Path) -> None:
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ExportError(path, f"cannot be read ({error})", "give the model's config.json") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ExportError(path, "names no model_type", "give the model's config.json")


def _follow_gguf(path: Path, tokenizer: Any) -> None:
    """Let a leading `<s>` be as the GGUF file says; transformers always adds one to Llama's.

    To tokens of bytes transformers adds SentencePiece's decoder, which onnxruntime-genai takes for SentencePiece.
    """
    import gguf
    from tokenizers import decoders, pre_tokenizers

    backend = tokenizer.backend_tokenizer
    if isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        backend.decoder = decoders.ByteLevel()

    fields = gguf.GGUFReader(path).fields
    says = fields.get("tokenizer.ggml.add_bos_token")
    # Unsaid, it is the habit of SentencePiece ("llama") vocabularies alone.
    adds = bool(says.contents()) if says else fields["tokenizer.ggml.model"].contents() == "llama"
    if getattr(tokenizer, "add_bos_token", adds) != adds:
        tokenizer.add_bos_token = adds


@contextmanager
def _gguf_parsed_once() -> Iterator[None]:
    """Keep what transformers would work out anew for the configuration, every module of the model and the
    tokenizer."""
    import gguf

    with ExitStack() as stack:
        for name in ("GGUFReader", "get_tensor_name_map"):
            stack.enter_context(patch.object(gguf, name, cache(getattr(gguf, name))))
        yield


@contextmanager
def _image_sizes(folder: Path) -> Iterator[None]:
    """Tell optimum what `preprocessor_config.json` says; it would load a preprocessor that reads images, too."""
    from transformers.image_processing_base import ImageProcessingMixin

    path = folder / "preprocessor_config.json"
    preprocessor = ImageProcessingMixin(**(json.loads(path.read_bytes()) if path.is_file() else {}))
    with patch("optimum.utils.save_utils.maybe_load_preprocessors", lambda *_, **__: [preprocessor]):
        yield


def _save(model: ir.Model, path: Path) -> None:
    """Write a model, its weights in the same file if they are few."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):  # `save` moves initializers alone
        for name, attribute in list(node.attributes.items()):
            if isinstance(attribute.value, ir.ExternalTensor):
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(attribute.value.numpy().copy()))
    weights = [v.const_value for graph in model.graphs() for v in graph.initializers.values() if v.const_value]
    if sum(weight.nbytes for weight in weights) > _INLINE_LIMIT:
        ir.save(model, path, external_data=f"{path.name}.data")
    else:
        ir.external_data.load_to_model(model)
        ir.save(model, path)


@contextmanager
def _one_line(source: str, what: str) -> Iterator[None]:
    """Turn whatever a library raises into one line."""
    try:
        yield
    except QxcError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise  # `staged` says it
        raise ExportError(source, f"{what} ({_first_line(error)})", "check the source") from error
    except Exception as error:
        raise ExportError(source, f"{what} ({_first_line(error)})", "check the source") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries from talking."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    loggers = {logger: logger.level for logger in map(logging.getLogger, ("transformers", "optimum", "torch.onnx"))}
    bar = partial(modeling_gguf_pytorch_utils.tqdm, disable=True)
    with warnings.catch_warnings(), patch.object(modeling_gguf_pytorch_utils, "tqdm", bar):
        warnings.simplefilter("ignore")
        transformers_logging.disable_progress_bar()
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in loggers.items():
                logger.setLevel(level)
            if bars:
                transformers_logging.enable_progress_bar()
