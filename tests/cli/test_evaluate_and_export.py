from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.command_line import Outcome
from cli.tiny_models import TINY

Run = Callable[[str], Outcome]


@pytest.fixture
def converted(moeify: Run) -> None:
    """The tiny model as the folder `out`, half of its experts on."""
    assert moeify(f"convert model.pt -o out {TINY} --experts 4 --top-k 2 --quiet").code == 0


@pytest.fixture
def complete(moeify: Run) -> None:
    """The tiny model as the folder `all`, all experts on."""
    assert moeify(f"convert model.pt -o all {TINY} --experts 4 --top-k 4 --quiet").code == 0


@pytest.mark.usefixtures("complete", "converted")
def test_an_evaluation_compares_with_the_dense_model(moeify: Run) -> None:
    def relative_error(folder: str) -> float:
        done = moeify(f"evaluate {folder} --data rows.pt --dense model.pt {TINY} --json")
        assert (done.code, done.err) == (0, "")
        (score,) = [s for s in done.data["scores"] if s["name"] == "converted"]
        error = score["divergence"]["relative_error"]
        assert isinstance(error, float)
        return error

    assert relative_error("all") < 1e-6
    assert relative_error("out") > 1e-3


@pytest.mark.usefixtures("converted")
def test_an_evaluation_is_shown_as_a_table(moeify: Run) -> None:
    done = moeify(f"evaluate out --data rows.pt --dense model.pt {TINY}")
    assert done.code == 0
    head, *rows = done.out.splitlines()
    assert head.split()[0] == "model"
    assert [row.split()[0] for row in rows][:2] == ["dense", "converted"]
    verbose = moeify(f"evaluate out --data rows.pt --dense model.pt {TINY} --verbose")
    assert "balance" in verbose.out
    assert moeify(f"evaluate out --data rows.pt {TINY} --quiet").out == ""


@pytest.mark.usefixtures("converted")
def test_an_evaluation_is_kept_on_request_alone(moeify: Run) -> None:
    line = f"evaluate out --data rows.pt --dense model.pt {TINY} --json"
    moeify(line)
    assert not Path("out/evaluations.json").exists()
    done = moeify(f"{line} --record")
    assert json.loads(Path("out/evaluations.json").read_text("utf-8")) == [done.data]
    Path("out/evaluations.json").write_text("nothing")
    done = moeify(f"{line} --record")
    assert done.code != 0
    assert "out/evaluations.json: cannot be read" in done.err
    assert "delete it, and evaluate again with --record" in done.err


@pytest.mark.usefixtures("converted")
def test_null_models_are_compared_with_on_request(moeify: Run) -> None:
    done = moeify(f"evaluate out --data rows.pt --dense model.pt {TINY} --nulls --json")
    assert done.code == 0
    assert len(done.data["scores"]) > 3


@pytest.mark.usefixtures("converted")
@pytest.mark.parametrize(
    ("caption", "data", "words"),
    [
        ("empty data", "empty.txt", ("empty.txt", "empty")),
        ("garbage", "garbage.bin", ("garbage.bin", "text")),
        ("rows of another width", "wide-rows.pt", ("wide-rows.pt", "[64, 9]")),
    ],
)
def test_wrong_data_to_evaluate_on_is_one_line(caption: str, data: str, words: tuple[str, ...], moeify: Run) -> None:
    done = moeify(f"evaluate out --data {data} {TINY}")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1), caption
    assert all(word in done.err for word in words), done.err


@pytest.mark.slow
@pytest.mark.usefixtures("converted")
def test_an_export_writes_a_file_that_can_be_inspected(moeify: Run, tmp_path: Path) -> None:
    done = moeify(f"export out -o model.onnx {TINY} --json")
    assert (done.code, done.err) == (0, "")
    assert len(done.data["moe_layers"]) == 2
    assert (tmp_path / "model.onnx").is_file()
    found = moeify("inspect model.onnx --json")
    assert (found.code, found.err) == (0, "")
    assert found.data["kind"] == "onnx"
    assert [row["experts"] for row in found.data["rows"]] == [4, 4]
    refused = moeify(f"export out -o model.onnx {TINY}")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err == "moeify: error: model.onnx: exists already; choose another name, or pass --force to replace it\n"
    forced = moeify(f"export out -o model.onnx {TINY} --force")
    assert forced.code == 0
    assert forced.out.startswith("model.onnx: ")


@pytest.mark.slow
@pytest.mark.usefixtures("converted")
def test_a_lowering_is_chosen_and_reported(moeify: Run) -> None:
    done = moeify(f"export out -o standard.onnx {TINY} --lowering standard --tokens 64 --json")
    assert (done.code, done.err) == (0, "")
    assert done.data["native_library"] == "unused"
    assert [(row["layer"], row["lowering"]) for row in done.data["lowered"]] == [
        ("0.down.layer", "standard"),
        ("1.down.layer", "standard"),
    ]
    assert "4 experts of 8 neurons, top-2; expected speed / dense: " in done.data["lowered"][0]["reason"]
    assert " at 64 tokens" in done.data["lowered"][0]["reason"]
    shown = moeify(f"export out -o contrib.onnx {TINY} --lowering contrib")
    assert (shown.code, shown.err) == (0, "")
    assert "  2 layers (0.down.layer to 1.down.layer): contrib, com.microsoft::MoE: 4 experts of 8 neurons, top-2" in shown.out
    auto = moeify(f"export out -o auto.onnx {TINY}")
    assert "  2 layers (0.down.layer to 1.down.layer): portable, " in auto.out
    assert "  native library: runs these layers where it is registered\n" in auto.out


@pytest.mark.usefixtures("converted")
def test_what_genai_does_not_run_is_one_line(moeify: Run, tmp_path: Path) -> None:
    done = moeify(f"export out --to genai -o genai {TINY}")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "Sequential: onnxruntime-genai is given decoders of text of transformers alone" in done.err
    assert not (tmp_path / "genai").exists()


@pytest.mark.usefixtures("converted")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--lowering fast", "lowering is 'fast': choose one of auto, portable, standard, contrib, native"),
        ("--tokens 1,many", "--tokens is '1,many': give whole numbers with commas between, such as 1,128"),
        ("--tokens 0", "tokens is 0: give numbers from 1, such as 1,128"),
    ],
)
def test_wrong_lowerings_are_one_line(options: str, message: str, moeify: Run) -> None:
    done = moeify(f"export out -o model.onnx {TINY} {options}")
    assert (done.code, done.out, done.err) == (2, "", f"moeify: error: {message}\n")


@pytest.mark.usefixtures("converted")
def test_an_export_is_calibrated(moeify: Run) -> None:
    done = moeify(f"export out -o model.onnx {TINY} --precision int8 --calibrate rows.pt --calibration-tokens 48 --json")
    assert (done.code, done.err) == (0, "")
    assert [choice["error"] <= choice["nearest"] for choice in done.data["calibrated"]] == [True] * 2


@pytest.mark.usefixtures("converted")
def test_an_export_is_calibrated_on_several_sources(moeify: Run) -> None:
    rows, batches = "--calibrate rows.pt", "--calibrate cli.tiny_models:batches"
    command = f"export out -o model.onnx {TINY} --precision int8 --calibration-tokens 192 --json --force"
    found = [moeify(f"{command} {sources}").data["calibrated"] for sources in (rows, batches, f"{rows} {batches}")]
    assert len({choices[0]["nearest"] for choices in found}) == 3


@pytest.mark.usefixtures("converted")
def test_calibration_is_refused_where_it_chooses_nothing(moeify: Run, tmp_path: Path) -> None:
    for options, word in (
        ("", "this is fp32"),
        ("--precision fp16", "this is fp16"),
        ("--to hf", "--calibrate is for --to onnx"),
    ):
        done = moeify(f"export out -o there {TINY} --calibrate rows.pt {options}")
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert word in done.err
    done = moeify(f"export out -o there {TINY} --precision int8 --calibrate empty.txt")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert not (tmp_path / "there").exists()
