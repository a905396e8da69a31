"""What a checkpoint can be exported for: the tasks that optimum knows of its model type."""

from __future__ import annotations

__all__ = ["Part", "Task", "parts_of", "task_for"]

from dataclasses import dataclass
from typing import Any

from qxcompiler.errors import ExportError
from qxcompiler.models.mixtures import register_mixtures

_WITH_PAST = "-with-past"


@dataclass(frozen=True)
class Task:
    """A task of one model type.

    Attributes:
        name: optimum's name of it, `-with-past` included.
        loader: the class of transformers, most often an `AutoModelFor...`, that loads the model with its head.
    """

    name: str
    loader: Any


@dataclass(frozen=True)
class Part:
    """One of the ONNX files that a model becomes.

    Attributes:
        name: the file's, without `.onnx`.
        module: the model of transformers, or the part of it.
        config: optimum's `OnnxConfig`: the inputs and outputs.
    """

    name: str
    module: Any
    config: Any


def task_for(config: Any, requested: str | None, source: object) -> Task:
    """The task to export a model for.

    A model that generates keeps its past key values: `text-generation` is `text-generation-with-past` wherever
    there is such a task.

    Args:
        config: the model's configuration.
        requested: a task, or None for that of the architecture which `config` names.
        source: what an error is about.

    Raises:
        ExportError: optimum does not export this type of model, or not for this task; or no task is requested and
            the architecture has none. The message lists the tasks there are.
    """
    import optimum.exporters.onnx.model_configs  # noqa: F401  (fills the table)
    from optimum.exporters.tasks import TasksManager

    register_mixtures()
    kind = config.model_type
    try:
        known = TasksManager.get_supported_tasks_for_model_type(kind, "onnx", library_name="transformers")
    except KeyError:
        raise ExportError(
            source,
            f"optimum exports no models of type {kind!r} to ONNX",
            "export it by other means (qxc compile takes any ONNX file)",
        ) from None
    names = list(dict.fromkeys(name.removesuffix(_WITH_PAST) for name in known))
    if requested is None:
        name = next((name for name in names if _architecture(config) in _classes(name, config)), "")
        problem = f"is a {_architecture(config) or kind}, whose task is not known"
        remedy = f"name one with --task: {', '.join(names)}"
    else:
        name = TasksManager.map_from_synonym(requested)
        problem = f"a {kind} model cannot be exported for the task {requested!r}"
        remedy = f"its tasks are {', '.join(names)}"
    if name not in known:
        raise ExportError(source, problem, remedy)
    if name != "feature-extraction" and name + _WITH_PAST in known:
        name += _WITH_PAST
    return Task(name, _loader(name, config))


def parts_of(model: Any, task: Task) -> list[Part]:
    """The files that optimum makes of a model."""
    from optimum.exporters.onnx.utils import _get_submodels_and_onnx_configs

    _, parts = _get_submodels_and_onnx_configs(
        model,
        task.name,
        monolith=False,
        custom_onnx_configs={},
        custom_architecture=False,
        _variant="default",
        library_name="transformers",
    )
    return [Part(name, module, config) for name, (module, config) in parts.items()]


def _architecture(config: Any) -> str | None:
    return next(iter(config.architectures or ()), None)


def _loader(task: str, config: Any) -> Any:
    from optimum.exporters.tasks import TasksManager

    return TasksManager.get_model_class_for_task(task, model_type=config.model_type)


def _classes(task: str, config: Any) -> set[str]:
    """The names of the classes that models of this type and task have."""
    try:
        loader = _loader(task, config)
    except (KeyError, ValueError):  # transformers has no such class
        return set()
    mapping = getattr(loader, "_model_mapping", None)
    found = loader if mapping is None else mapping.get(type(config), ())
    return {cls.__name__ for cls in (found if isinstance(found, tuple) else (found,))}
