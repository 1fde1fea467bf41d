from __future__ import annotations

import os
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.command_line import Outcome
from cli.tiny_models import TINY

Run = Callable[[str], Outcome]
Golden = Callable[[str, str], None]

CONVERT = f"convert model.pt {TINY} --experts 4"


def test_a_conversion_writes_a_folder_and_shows_its_layers(moeify: Run, tmp_path: Path, golden: Golden) -> None:
    done = moeify(f"{CONVERT} -o out --top-k 2")
    assert done.code == 0
    assert (tmp_path / "out" / "moeify.json").is_file()
    assert sorted(os.listdir(tmp_path)) == ["model.pt", "out"]
    golden("cli/convert.txt", done.out)
    assert done.err == (
        "moeify: note: no calibration data: calibrate was left out, the conversion goes by the weights alone\n"
    )  # fmt: skip


def test_json_is_the_report_and_nothing_else(moeify: Run) -> None:
    done = moeify(f"{CONVERT} -o out --top-k 2 --json")
    assert (done.code, done.err) == (0, "")
    assert (done.data["folder"], done.data["recipe"]) == ("out", "emoe")
    assert [layer["path"] for layer in done.data["layers"]] == ["0", "1"]
    assert all(layer["top_k"] == 2 and layer["sizes"] == [8] * 4 for layer in done.data["layers"])
    assert done.data["active_fraction"] == pytest.approx((16 * 16 + 4 * 8) / (32 * 16))


def test_quiet_prints_nothing(moeify: Run) -> None:
    assert moeify(f"{CONVERT} -o out --quiet") == Outcome(0, "", "")


def test_verbose_adds_times_and_the_figures_of_layers(moeify: Run) -> None:
    plain = moeify(f"{CONVERT} -o out")
    verbose = moeify(f"{CONVERT} -o out-verbose --verbose")
    assert verbose.code == 0
    assert "seconds" in verbose.out
    assert "cluster-neurons" in verbose.out
    assert "seconds" not in plain.out
    assert "loading" in verbose.err
    assert "seconds" in moeify(f"{CONVERT} -o out-json --verbose --json").data


def test_a_dry_run_tells_what_would_be_done_and_writes_nothing(moeify: Run, tmp_path: Path, golden: Golden) -> None:
    done = moeify(f"{CONVERT} --top-k 2 --dry-run")
    assert done.code == 0
    lines = done.out.splitlines()
    golden("cli/dry-run.txt", "\n".join([*lines[:-1], lines[-1].partition(", peak")[0]]) + "\n")
    assert os.listdir(tmp_path) == ["model.pt"]


def test_a_dry_run_foresees_what_the_conversion_does(moeify: Run) -> None:
    planned = moeify(f"{CONVERT} --active 0.7 --dry-run --json").data
    done = moeify(f"{CONVERT} --active 0.7 -o out --json").data
    assert [(row["path"], row["experts"]) for row in planned["layers"]] == [
        (layer["path"], len(layer["sizes"])) for layer in done["layers"]
    ]
    for name in ("kind", "activation", "top_k", "parameters_before", "parameters_after", "active_fraction"):
        assert [row[name] for row in planned["layers"]] == [layer[name] for layer in done["layers"]], name
    assert planned["active_fraction"] == done["active_fraction"] <= 0.7


def test_calibration_data_of_several_sources_are_mixed(moeify: Run, tmp_path: Path) -> None:
    line = f"{CONVERT} --recipe markers --top-k 2 --calibrate rows.pt --calibrate cli.tiny_models:batches"
    assert moeify(f"{line} --dry-run").code == 0
    assert not (tmp_path / "out").exists()
    said = moeify(f"{line} -o out --json").data["data"]
    assert (said["kind"], said["name"], said["digest"]) == ("mixed", "rows.pt + cli.tiny_models:batches", None)
    assert [part["name"] for part in said["sources"]] == ["rows.pt", "cli.tiny_models:batches"]
    assert all(part["tokens"] > 0 for part in said["sources"])


@pytest.mark.parametrize("more", ["", "--dry-run"])
def test_a_second_source_that_cannot_be_read_is_one_error_and_leaves_nothing(more: str, moeify: Run, tmp_path: Path) -> None:
    done = moeify(f"{CONVERT} -o out --recipe markers --top-k 2 --calibrate rows.pt --calibrate garbage.bin {more}")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("moeify: error: garbage.bin: holds no data that moeify reads")
    assert done.err.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["garbage.bin", "model.pt", "rows.pt"]


def test_options_of_the_command_reach_the_recipe_that_the_folder_carries(moeify: Run, tmp_path: Path) -> None:
    options = "--top-k 3 --layers last-half --tokens 64 --seed 5 --set cluster-neurons.by=random --set match-dense.tokens=32"
    assert moeify(f"{CONVERT} -o out --calibrate rows.pt {options}").code == 0
    recipe = tomllib.loads((tmp_path / "out" / "recipe.toml").read_text("utf-8"))
    find, loop = recipe["pass"]
    steps = {step["name"]: step for step in loop["pass"]}
    assert recipe["seed"] == 5
    assert find["layers"] == "last-half"
    assert steps["calibrate"]["tokens"] == 64
    assert steps["cluster-neurons"] == {
        "name": "cluster-neurons", "experts": 4, "shared_experts": 0, "shared_by": "rate", "unequal": False,
        "by": {"kind": "random"},
    }  # fmt: skip
    assert steps["match-dense"]["tokens"] == 32
    assert steps["insert-router"]["top_k"] == 3


def test_the_recipe_of_a_folder_makes_the_same_folder_again(moeify: Run, tmp_path: Path) -> None:
    assert moeify(f"{CONVERT} -o first --seed 3 --set cluster-neurons.by=random").code == 0
    assert moeify(f"convert model.pt {TINY} -o second --recipe first/recipe.toml").code == 0
    assert moeify(f"{CONVERT} -o third --seed 4 --set cluster-neurons.by=random").code == 0

    def weights(name: str) -> bytes:
        (file,) = (tmp_path / name).glob("*.safetensors")
        return file.read_bytes()

    assert weights("first") == weights("second")
    assert weights("first") != weights("third")


def test_a_recipe_may_be_a_file(moeify: Run) -> None:
    done = moeify(f"convert model.pt {TINY} -o out --recipe good.toml --json")
    assert done.code == 0
    assert {layer["top_k"] for layer in done.data["layers"]} == {2}


def test_data_may_be_a_callable(moeify: Run) -> None:
    done = moeify(f"{CONVERT} -o out --recipe markers --calibrate cli.tiny_models:batches --json")
    assert (done.code, done.err) == (0, "")
    assert {layer["measured"]["calibration_tokens"] for layer in done.data["layers"]} == {128}
    (note,) = done.data["notes"]
    assert note.startswith("the calibration data end before layers could be judged on tokens of their own")


def test_force_replaces_the_output(moeify: Run, tmp_path: Path) -> None:
    assert moeify(f"{CONVERT} -o out").code == 0
    (tmp_path / "out" / "stale.txt").write_text("of an older version")
    assert moeify(f"{CONVERT} -o out --force").code == 0
    assert not (tmp_path / "out" / "stale.txt").exists()
    assert (tmp_path / "out" / "moeify.json").is_file()


def test_force_does_not_delete_what_moeify_did_not_write(moeify: Run, tmp_path: Path) -> None:
    done = moeify(f"{CONVERT} -o old-folder --force")
    assert done.code == 1
    assert "moeify did not write it" in done.err
    assert (tmp_path / "old-folder" / "precious.txt").exists()


def test_a_hugging_face_folder_needs_neither_factory_nor_example(moeify: Run) -> None:
    done = moeify("convert llama -o out --experts 4 --top-k 4 --json")
    assert (done.code, done.err) == (0, "")
    assert [layer["path"] for layer in done.data["layers"]] == [f"model.layers.{i}.mlp" for i in range(2)]


def test_what_a_model_that_grows_will_take_is_told_first(moeify: Run, tmp_path: Path) -> None:
    told = "parameters 1,104 -> 8,848, active for one token 2,256; training with AdamW takes 0.1 MiB besides the weights"
    upcycle = f"convert model.pt {TINY} --recipe upcycle -o out"
    planned = moeify(f"{upcycle} --dry-run").out.splitlines()
    assert planned[-1] == told
    assert not (tmp_path / "out").exists()
    done = moeify(upcycle)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[0] == told
    broken = moeify(f"{upcycle} --force --set match-dense.tolerance=1e-30")
    assert broken.code == 1
    assert broken.out.splitlines() == [told]
    assert "parameters" not in moeify(f"{upcycle} --force --json").out.splitlines()[0]


def test_of_experts_on_a_frozen_core_only_what_is_trained_needs_an_optimizer(moeify: Run) -> None:
    done = moeify(
        f"convert model.pt {TINY} -o out --recipe lora-experts --experts 8 --set 'upcycle-experts.by={{kind=\"lora\", rank=4}}'"
    )
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[0] == (
        "parameters 1,104 -> 6,352, active for one token 2,512; training the 5,248 that are not frozen with AdamW takes 0.1 MiB"
        " besides the weights"
    )
    assert done.out.splitlines()[-1].startswith(
        "converted 2 feed-forward networks with recipe lora-experts, active fraction 237.5%"
    )


def test_bfloat16_halves_the_weights(moeify: Run, tmp_path: Path) -> None:
    def size(name: str) -> int:
        return sum(file.stat().st_size for file in (tmp_path / name).glob("*.safetensors"))

    assert moeify(f"{CONVERT} -o whole").code == 0
    half = "--factory cli.tiny_models:stack --example cli.tiny_models:half_example --dtype bf16"
    assert moeify(f"convert model.pt {half} --experts 4 -o half").code == 0
    assert size("half") < 0.7 * size("whole")


def test_onnx_stands_in_the_folder_where_it_was_asked_for(moeify: Run, tmp_path: Path) -> None:
    done = moeify(f"{CONVERT} -o out --export torch,onnx --json")
    assert (done.code, done.err) == (0, "")
    assert (tmp_path / "out" / "model.onnx").is_file()


def test_a_converted_folder_is_not_converted_again(moeify: Run, tmp_path: Path) -> None:
    assert moeify(f"{CONVERT} -o out --quiet").code == 0
    done = moeify(f"convert out -o again {TINY} --experts 4")
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "moeify: error: out: is a converted model already; give the dense model, or open it with moeify.load\n"
    )  # fmt: skip
    assert not (tmp_path / "again").exists()
