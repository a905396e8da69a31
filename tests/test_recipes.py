"""Options under a name."""

from __future__ import annotations

import pytest
from test_config import contents, written

import qxcompiler
from qxcompiler.config import CONFIG, load_config
from qxcompiler.errors import QxcError, UsageError
from qxcompiler.options import Options
from qxcompiler.quantizers import find_quantizer
from qxcompiler.recipes import load_recipe, recipe_names

COARSE = "weights: lut2g16\nquantizer: rtn\nsamples: 5\n"


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_that_come_along(name):
    find_quantizer(load_recipe(name).options["quantizer"])


def test_they_spend_more_and_more():
    assert recipe_names() == ["balanced", "best", "fast"]
    fast, balanced, best = (load_recipe(name).options["tune"] for name in ("fast", "balanced", "best"))
    assert fast == 0 < balanced < best


def test_a_format_that_is_given_is_meant_for_every_layer():
    balanced = load_recipe("balanced")
    assert balanced.applied({}).allocation == "budget"
    assert balanced.applied({"weights": None, "plan": None}).allocation == "budget"
    assert balanced.applied({"weights": "int4g32"}).allocation is None
    assert balanced.applied({"weights": "int4g32", "bits_per_weight": 4}).budget_option == "--bpw"
    assert balanced.applied({"plan": "plan.yaml"}).allocation is None
    assert balanced.applied({"weights": "int4g32", "allocation": "budget"}).allocation == "budget"


def test_what_is_given_goes_before_the_recipe_and_the_recipe_before_the_file(tiny, tmp_path, qxc):
    recipe, mine = tmp_path / "coarse.yaml", tmp_path / "mine.yaml"
    recipe.write_text(COARSE)
    mine.write_text("model: tiny/model.onnx\ntarget: cpu-x86\nweights: int8g32\nsamples: 3\nseed: 9\n")
    assert qxc("compile", "--config", mine, "--recipe", recipe, "-o", tmp_path / "out", "--samples", 7).returncode == 0
    said = written(tmp_path / "out")
    assert (said["weights"], said["quantizer"], said["samples"], said["seed"]) == ("lut2g16", "rtn", 7, 9)
    assert "recipe" not in said  # all that it set stands there
    assert qxc("compile", "--config", tmp_path / "out" / CONFIG, "-o", tmp_path / "again").returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "again")
    report = qxcompiler.compile(tiny.model, "cpu-x86", tmp_path / "python", recipe=recipe, seed=9, samples=7)
    assert report.samples == 0
    assert (tmp_path / "python" / "model.onnx").read_bytes() == (tmp_path / "out" / "model.onnx").read_bytes()


def test_a_configuration_names_a_recipe(tiny, tmp_path, qxc):
    (tmp_path / "coarse.yaml").write_text(COARSE)
    (tmp_path / "mine.yaml").write_text("recipe: coarse.yaml\nsamples: 3\n")
    assert load_config(tmp_path / "mine.yaml").recipe == str(tmp_path / "coarse.yaml")
    assert (
        qxc(
            "compile", tiny.model, "--target", "cpu-x86", "--config", tmp_path / "mine.yaml", "-o", tmp_path / "out"
        ).returncode
        == 0
    )
    said = written(tmp_path / "out")
    assert (said["weights"], said["quantizer"], said["samples"]) == ("lut2g16", "rtn", 3)
    (tmp_path / "mine.yaml").write_text("recipe: best\n")
    assert load_config(tmp_path / "mine.yaml").recipe == "best"


def test_a_recipe_lets_a_language_model_write(tiny, tmp_path, qxc):
    options = {"weights": "int4g16", "length": 12}
    fast = qxcompiler.compile(tiny.model, "cpu-x86", tmp_path / "fast", recipe="fast", **options)
    assert fast.samples == load_recipe("fast").options["samples"]
    assert "gptaq" in {site.quantizer for site in fast.sites}  # embeddings are rounded
    assert written(tmp_path / "fast")["calibration"] == "self"
    given = qxcompiler.compile(
        tiny.model, "cpu-x86", tmp_path / "given", recipe="fast", calibration=tiny.calibration, **options
    )
    assert given.samples == fast.samples
    assert not (tmp_path / "given" / "self-calibration.jsonl").exists()
    (tmp_path / "mine.yaml").write_text(
        "model: tiny/model.onnx\ntarget: cpu-x86\ncalibration: tiny/calibration.txt\ntune: 9\n"
    )
    command = ("compile", "--config", tmp_path / "mine.yaml", "--recipe", "fast", "-o", tmp_path / "file")
    assert qxc(*command, *(f"--{name}={value}" for name, value in options.items())).returncode == 0
    assert (written(tmp_path / "file")["calibration"], written(tmp_path / "file")["tune"]) == (
        "../tiny/calibration.txt",
        0,
    )
    (tiny.folder / "tokenizer.json").unlink()  # it cannot write then
    none = qxcompiler.compile(tiny.model, "cpu-x86", tmp_path / "none", recipe="fast", **options)
    assert none.samples == 0 and {site.quantizer for site in none.sites} == {"rtn"}
    assert written(tmp_path / "none")["quantizer"] == "rtn"
    with pytest.raises(QxcError, match="--quantizer gptq: needs samples"):
        qxcompiler.compile(tiny.model, "cpu-x86", tmp_path / "asked", recipe="fast", quantizer="gptq", **options)
    budgets = qxcompiler.pareto(
        tiny.model, "cpu-x86", tmp_path / "front", budgets=[9.0], recipe="fast", error="frobenius"
    )
    assert budgets.points


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "coarse.yaml: no such recipe: name one of balanced, best, fast, or a YAML file"),
        ("weight: int4", "field weight: Extra inputs are not permitted: choose among weights, "),
        ("samples: 0", "field samples: Input should be greater than or equal to 1"),
        ("calibration: text.txt", "field calibration: can only be `self`"),
        ("plan: plan.yaml", "field plan: a plan belongs to one model"),
        ("- tune", "not a mapping of fields"),
    ],
)
def test_files_that_are_no_recipes(tiny, tmp_path, content, said):
    recipe = tmp_path / "coarse.yaml"
    if content is not None:
        recipe.write_text(content)
    with pytest.raises(QxcError) as error:
        qxcompiler.compile(tiny.model, "cpu-x86", tmp_path / "out", recipe=recipe)
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_target_may_prefer_a_recipe(tiny, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ninherit: cpu-x86\npreferred: {recipe: balanced}\n")
    wishes = {"weights": "int4g16", "samples": 8, "length": 12}
    preferred, asked, other = (
        qxcompiler.compile(tiny.model, target, tmp_path / name, calibration=tiny.calibration, **wishes, **recipe)
        and written(tmp_path / name)
        for name, target, recipe in (
            ("preferred", path, {}),
            ("asked", "cpu-x86", {"recipe": "balanced"}),
            ("other", path, {"recipe": "fast"}),
        )
    )
    ours = {name: preferred[name] for name in Options.model_fields}
    assert ours == {name: asked[name] for name in Options.model_fields}
    assert ours != {name: other[name] for name in Options.model_fields}
    path.write_text("name: mine\ninherit: cpu-x86\npreferred: {recipe: gourmet}\n")
    with pytest.raises(UsageError, match="gourmet: no such recipe"):
        qxcompiler.compile(tiny.model, path, tmp_path / "none", weights="int4g16")
