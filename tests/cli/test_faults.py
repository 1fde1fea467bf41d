"""Wrong use and bad files: an exact exit code, one line that helps, and nothing half done."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.command_line import Outcome
from cli.small_files import write_files
from cli.tiny_models import TINY
from cli.upcycling_faults import RECIPES as UPCYCLE_RECIPES
from cli.upcycling_faults import UPCYCLING
from moeify.pipeline import memory

# caption, command line, exit code, what the message says (each must occur)
Fault = tuple[str, str, int, tuple[str, ...]]

USAGE: list[Fault] = [
    ("no command", "", 2, ("no command", "convert, inspect", "--help")),
    ("a misspelt command", "convrt", 2, ("'convrt'", "'convert'")),
    ("an unknown option", "convert model.pt -o out --expert 4", 2, ("--expert", "--experts")),
    ("an option without its value", "convert model.pt -o", 2, ("-o", "argument")),
    ("no model", "convert -o out", 2, ("model",)),
    ("two models", "convert model.pt llama -o out", 2, ("llama",)),
    ("no output", "convert model.pt", 2, ("no output", "--output", "--dry-run")),
    ("no data to evaluate on", "evaluate out", 2, ("--data",)),
    ("no file to export to", "export out", 2, ("--output",)),
    ("no experts", "convert model.pt -o out --experts 0", 2, ("--experts", "'0'", "from 1")),
    ("experts in words", "convert model.pt -o out --experts four", 2, ("--experts", "'four'", "from 1")),
    ("top-k of nothing", "convert model.pt -o out --top-k 0", 2, ("--top-k", "'0'", "from 1")),
    ("a fraction above 1", "convert model.pt -o out --active 25", 2, ("--active", "'25'", "0.5")),
    ("a fraction of nothing", "convert model.pt -o out --active 0", 2, ("--active", "'0'", "0.5")),
    ("a fraction that is no number", "convert model.pt -o out --active nan", 2, ("--active", "'nan'", "0.5")),
    ("a negative seed", "convert model.pt -o out --seed -1", 2, ("--seed", "'-1'", "from 0")),
    ("a seed of halves", "convert model.pt -o out --seed 1.5", 2, ("--seed", "'1.5'", "from 0")),
    ("too few tokens", "convert model.pt -o out --tokens 1", 2, ("--tokens", "'1'", "from 2")),
    ("two budgets", "convert model.pt -o out --active 0.5 --top-k 2", 2, ("--active", "--top-k", "one of them")),
    ("quiet and verbose", "convert model.pt -o out --quiet --verbose", 2, ("--quiet", "--verbose")),
    ("an unknown export", f"convert model.pt -o out {TINY} --export gguf", 2, ("'gguf'", "torch, onnx")),
    ("an unknown dtype", f"convert model.pt -o out {TINY} --dtype fp8", 2, ("'fp8'", "fp32, bf16")),
    ("an unknown device", f"convert model.pt -o out {TINY} --device tpux", 2, ("'tpux'", "cpu")),
    ("a device that is not there", f"convert model.pt -o out {TINY} --device cuda", 2, ("'cuda'", "cpu")),
    ("a setting without a value", "convert model.pt -o out --set cluster-neurons.experts", 2,
     ("'cluster-neurons.experts'", "PASS.OPTION=VALUE")),
    ("a setting without an option", "convert model.pt -o out --set experts=4", 2, ("'experts=4'", "PASS.OPTION=VALUE")),
    ("a setting of a misspelt pass", "convert model.pt -o out --set cluster-neuron.experts=4", 2,
     ("'cluster-neuron'", "did you mean 'cluster-neurons'?", "emoe")),
    ("a setting of a misspelt option", "convert model.pt -o out --set cluster-neurons.expert=4", 2,
     ("'expert'", "did you mean 'experts'?", "cluster-neurons")),
    ("a setting of a wrong type", "convert model.pt -o out --set cluster-neurons.experts=many", 2,
     ("cluster-neurons.experts", "'many'", "choose a number")),
    ("a setting of a misspelt strategy", "convert model.pt -o out --set cluster-neurons.by=randm", 2,
     ("cluster-neurons.by", "'randm'", "did you mean 'random'?")),
    ("a pattern of layers that is none", "convert model.pt -o out --layers every:0", 2, ("every:0",)),
    ("an unknown pass to explain", "passes insert-rooter", 2, ("'insert-rooter'", "did you mean 'insert-router'?")),
    ("an unknown recipe to print", "recipes emo", 2, ("'emo'", "did you mean 'emoe'?")),
    ("an unknown format", "export old-folder -o out.onnx --to gguf", 2, ("'gguf'", "onnx")),
]  # fmt: skip

RECIPES: list[Fault] = [
    ("an unknown recipe", "convert model.pt -o out --recipe emo", 2, ("'emo'", "did you mean 'emoe'?", ".toml")),
    ("a recipe that is not there", "convert model.pt -o out --recipe absent.toml", 2, ("absent.toml", "No such file")),
    ("a recipe that is no TOML", "convert model.pt -o out --recipe broken.toml", 2, ("broken.toml", "TOML", "line 1")),
    ("a recipe without passes", "convert model.pt -o out --recipe empty.toml", 2, ("empty.toml", "[[pass]]")),
    ("a recipe with an unknown key", "convert model.pt -o out --recipe key.toml", 2, ("key.toml", "'title'", "[[pass]]")),
    ("a recipe with a misspelt pass", "convert model.pt -o out --recipe pass.toml", 2,
     ("'split-expert'", "did you mean 'split-experts'?")),
    ("a recipe with a misspelt option", "convert model.pt -o out --recipe option.toml", 2,
     ("cluster-neurons", "'expert'", "did you mean 'experts'?")),
    ("a recipe with a wrong type", "convert model.pt -o out --recipe type.toml", 2,
     ("cluster-neurons.experts", "[4]", "give int or str")),
    ("a recipe with a misspelt strategy", "convert model.pt -o out --recipe strategy.toml", 2,
     ("cluster-neurons.by", "'randm'", "did you mean 'random'?")),
    ("a recipe in a wrong order", "convert model.pt -o out --recipe order.toml", 2,
     ("insert-router needs Experts", "put split-experts before it")),
    ("a recipe that finds nothing first", "convert model.pt -o out --recipe no-find.toml", 2,
     ("each-layer needs FeedForwards",)),
    ("a recipe that needs data", f"convert model.pt -o out {TINY} --recipe markers", 2,
     ("cluster-neurons", "calibration data", "--calibrate")),
    ("a text file for a recipe", "convert model.pt -o out --recipe text.txt", 2, ("text.txt", "TOML")),
]  # fmt: skip

MODELS: list[Fault] = [
    ("a model that is not there", "convert absent.pt -o out", 1, ("absent.pt", "no such file")),
    ("an empty file", f"convert empty.pt -o out {TINY}", 1, ("empty.pt", "empty")),
    ("garbage", f"convert garbage.pt -o out {TINY}", 1, ("garbage.pt", "GGUF")),
    ("a truncated file", f"convert cut.pt -o out {TINY}", 1, ("cut.pt", "truncated")),
    ("a file with a flipped byte", f"convert flipped.pt -o out {TINY}", 1, ("flipped.pt", "damaged")),
    ("garbage that says it is GGUF", "convert garbage.gguf -o out", 1, ("garbage.gguf",)),
    ("garbage that says it is safetensors", f"convert garbage.safetensors -o out {TINY}", 1, ("garbage.safetensors",)),
    ("a pickled module of its own class", "convert module.pt -o out", 1,
     ("module.pt", "cli.tiny_models.Block", "state_dict", "--allow-pickle")),
    ("a pickled module of a class that is gone", "convert gone.pt -o out --allow-pickle", 1,
     ("gone.pt", "no_such_module", "PYTHONPATH")),
    ("a pickled module of a class that has moved", "convert moved.pt -o out --allow-pickle", 1,
     ("moved.pt", "NoBlock", "cli.tiny_models", "PYTHONPATH")),
    ("a pickled module that takes two inputs", "convert two-inputs.pt -o out", 1, ("Transformer", "--example")),
    ("an exported program with a pickle", "convert pickled.pt2 -o out", 1,
     ("pickled.pt2", "the pickle weight_0", "torch.export.save")),
    ("an exported program that calls", "convert calling.pt2 -o out", 1, ("calling.pt2", "torch.os.mkdir", "could run code")),
    ("a truncated exported program", "convert cut.pt2 -o out", 1, ("cut.pt2", "truncated")),
    ("an empty exported program", "convert empty.pt2 -o out", 1, ("empty.pt2", "empty")),
    ("garbage that says it is a zip", "convert garbage.pt2 -o out", 1, ("garbage.pt2", "zip")),
    ("an exported program in other numbers", "convert program.pt2 -o out --dtype bf16", 1,
     ("program.pt2", "float32", "bfloat16")),
    ("a factory for an exported program", "convert program.pt2 -o out --factory cli.tiny_models:stack", 2,
     ("factory", "program.pt2")),
    ("an adapter whose model is not on disk", "convert adapter -o out", 1, ("adapter", "some/model", "merge_and_unload")),
    ("a list", f"convert list.pt -o out {TINY}", 1, ("list.pt", "list", "state_dict")),
    ("an empty folder", "convert empty-folder -o out", 1, ("empty-folder", "config.json")),
    ("a Hugging Face folder with a broken config", "convert broken-llama -o out", 1, ("broken-llama", "config.json")),
    ("a Hugging Face folder with truncated weights", "convert cut-llama -o out", 1, ("cut-llama", "model.safetensors")),
    ("weights that are not numbers", f"convert nan.pt -o out {TINY}", 1, ("nan.pt", "1.down.weight", "NaN")),
    ("weights of another shape", f"convert shape.pt -o out {TINY}", 1, ("shape.pt", "0.up.weight", "[3, 8]", "[32, 8]")),
    ("weights that are not there", f"convert missing.pt -o out {TINY}", 1, ("missing.pt", "missing: 0.up.weight", "factory")),
    ("a state_dict without a factory", "convert model.pt -o out", 1, ("model.pt", "--factory")),
    ("a factory of another size",
     "convert model.pt -o out --factory cli.tiny_models:wide_stack --example cli.tiny_models:example", 1,
     ("model.pt", "[32, 8]", "[64, 8]", "factory")),
    ("a factory that is not there", "convert model.pt -o out --factory cli.tiny_models:stak", 2,
     ("'stak'", "did you mean 'stack'?")),
    ("a factory of a module that is not there", "convert model.pt -o out --factory no_such_module:stack", 2,
     ("no_such_module",)),
    ("a factory without a module", "convert model.pt -o out --factory stack", 2, ("'stack'", "package.module:callable")),
    ("a factory that raises", "convert model.pt -o out --factory cli.tiny_models:failing", 1,
     ("cli.tiny_models:failing", "RuntimeError: no weights at home")),
    ("a factory that leaves", "convert model.pt -o out --factory cli.tiny_models:leaving", 1,
     ("cli.tiny_models:leaving", "SystemExit")),
    ("a factory that gives a number", "convert model.pt -o out --factory cli.tiny_models:number", 1,
     ("cli.tiny_models:number", "int", "nn.Module")),
    ("a factory for what needs none", "convert llama -o out --factory cli.tiny_models:stack", 2, ("factory", "llama")),
    ("an example that is not there",
     "convert model.pt -o out --factory cli.tiny_models:stack --example absent.pt", 1, ("absent.pt",)),
    ("an example that does not fit",
     "convert model.pt -o out --factory cli.tiny_models:stack --example cli.tiny_models:wrong_example", 1, ("example",)),
    ("a model that cannot be traced",
     "convert model.pt -o out --factory cli.tiny_models:branching --example cli.tiny_models:example", 1, ("trace",)),
    ("a model without an FFN",
     "convert linear.pt -o out --factory cli.tiny_models:linear --example cli.tiny_models:example", 1,
     ("no feed-forward network", "inspect")),
    ("experts that do not divide the neurons", f"convert model.pt -o out {TINY} --experts 5", 2, ("5", "32", "unequal")),
    ("more experts than neurons", f"convert model.pt -o out {TINY} --experts 64", 2, ("64", "32")),
    ("top-k above the experts", f"convert model.pt -o out {TINY} --experts 4 --top-k 5", 2, ("5", "4 experts", "top_k")),
    ("a budget that nothing fits", f"convert model.pt -o out {TINY} --experts 4 --active 0.01", 2, ("0.01", "active")),
    ("layers that match nothing", f"convert model.pt -o out {TINY} --experts 4 --layers '*.mlp'", 2, ("*.mlp",)),
    ("an inspection of nothing", "inspect absent", 1, ("absent", "no such file")),
    ("an inspection of an empty ONNX file", "inspect empty.onnx", 1, ("empty.onnx", "empty")),
    ("an inspection of a garbage ONNX file", "inspect garbage.onnx", 1, ("garbage.onnx",)),
    ("a plan for a model that is not there", "convert absent.pt --dry-run", 1, ("absent.pt", "no such file")),
    ("a plan that does not divide", f"convert model.pt --dry-run {TINY} --experts 5", 2, ("5", "32", "unequal")),
]  # fmt: skip

DATA: list[Fault] = [
    ("data that is not there", f"convert model.pt -o out {TINY} --experts 4 --calibrate absent.txt", 1, ("absent.txt",)),
    ("an empty file", f"convert model.pt -o out {TINY} --experts 4 --calibrate empty.txt", 1, ("empty.txt", "empty")),
    ("garbage", f"convert model.pt -o out {TINY} --experts 4 --calibrate garbage.bin", 1, ("garbage.bin", "text")),
    ("text for a model without a tokenizer", "convert llama -o out --experts 4 --calibrate text.txt", 1,
     ("text.txt", "tokenizer")),
    ("text for a model of numbers", f"convert model.pt -o out {TINY} --experts 4 --calibrate text.txt", 1,
     ("text.txt", "tensors")),
    ("rows of another width", f"convert model.pt -o out {TINY} --experts 4 --calibrate wide-rows.pt", 1,
     ("wide-rows.pt", "[64, 9]", "8")),
    ("rows that are not numbers", f"convert model.pt -o out {TINY} --experts 4 --calibrate nan-rows.pt", 1,
     ("nan-rows.pt", "NaN")),
    ("a callable that is not there", f"convert model.pt -o out {TINY} --experts 4 --calibrate cli.tiny_models:batchs", 2,
     ("'batchs'", "did you mean 'batches'?")),
    ("a callable that breaks half-way",
     f"convert model.pt -o out {TINY} --recipe markers --experts 4 --calibrate cli.tiny_models:failing_batches", 1,
     ("failing_batches", "ValueError", "the reader broke")),
    ("a callable that gives nothing",
     f"convert model.pt -o out {TINY} --recipe markers --experts 4 --calibrate cli.tiny_models:no_batches", 1,
     ("no_batches", "no batch")),
]  # fmt: skip

OUTPUTS: list[Fault] = [
    ("a folder that exists", f"convert model.pt -o old-folder {TINY} --experts 4", 1, ("old-folder", "--force")),
    ("a file that exists", f"convert model.pt -o a-file {TINY} --experts 4", 1, ("a-file", "--force")),
    ("a folder inside a file", f"convert model.pt -o a-file/out {TINY} --experts 4", 1, ("a-file", "file")),
    ("a folder that no one may write", f"convert model.pt -o /proc/out {TINY} --experts 4", 1, ("/proc/out", "written")),
    ("the current folder", f"convert model.pt -o . {TINY} --experts 4 --force", 1, ("--force", "current")),
    ("an export of what is no converted folder", "export empty-folder -o out.onnx", 1, ("empty-folder",)),
    ("an export of nothing", "export absent -o out.onnx", 1, ("absent",)),
    ("an evaluation of nothing", "evaluate absent --data rows.pt", 1, ("absent",)),
    ("an evaluation of a dense model", "evaluate llama --data rows.pt", 1, ("llama",)),
]  # fmt: skip

FAULTS = [*USAGE, *RECIPES, *MODELS, *DATA, *OUTPUTS, *UPCYCLING]


@pytest.mark.sampled
@pytest.mark.parametrize(("caption", "line", "code", "words"), FAULTS, ids=[f"{f[0]}: {f[1]}" for f in FAULTS])
def test_a_fault_is_one_line_and_leaves_nothing(
    caption: str,
    line: str,
    code: int,
    words: tuple[str, ...],
    moeify: Callable[[str], Outcome],
    tmp_path: Path,
    kept: Path,
) -> None:
    write_files(re.split(r"[\s=/\"\[\],]+", line), tmp_path, kept)
    before = contents(tmp_path)
    done = moeify(line)
    assert done.code == code, done.err
    assert done.out == ""
    assert done.err.count("\n") == 1
    message = done.err.removesuffix("\n")
    assert message.startswith("moeify: error: ")
    assert not [word for word in words if word not in message], message
    assert contents(tmp_path) == before


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("recipe", "model"),
    [
        *((recipe, f"nan.pt {TINY}") for recipe in UPCYCLE_RECIPES),
        *(("lora-experts", model) for model in ("nan-llama", "nan-adapter", "nan-module.pt", "nan.pt2")),
    ],
)
def test_copies_that_exceed_the_memory_are_refused_before_a_weight_is_read(
    recipe: str, model: str, moeify: Callable[[str], Outcome], tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "machine_memory", lambda: 10_000)
    write_files([model.split()[0]], tmp_path, kept)
    done = moeify(f"convert {model} -o out --recipe {recipe} --experts 64")
    assert (done.code, done.out) == (2, "")
    assert re.fullmatch(r"moeify: error: the converted weights take .* choose fewer experts \(--experts\), .*\n", done.err)
    assert not (tmp_path / "out").exists()


def contents(folder: Path) -> dict[str, int]:
    """Every file and folder below, and its size."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file() or path.is_dir()}
