"""docs/troubleshooting.md: moeify answers what stands there, and what is to be done helps."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cli.command_line import Outcome
from cli.small_files import FILES, state
from data.small_tokenizers import TEXT, byte_level
from export.test_hf_import import foreign
from moeify import api

Run = Callable[[str], Outcome]

pytestmark = pytest.mark.xdist_group("troubleshooting")

PAGE = (Path(__file__).parent.parent.parent / "docs" / "troubleshooting.md").read_text("utf-8")

_MODELS = "from cli.tiny_models import example as batch, stack as make\n"


def sections() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Title, and commands with what they answer on standard error."""
    for title, body in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL):
        lines = "".join(re.findall(r"^```console\n(.*?)^```", body, re.MULTILINE | re.DOTALL))
        if commands := re.findall(r"^\$ moeify (.*)\n((?:moeify: .*\n)?)", lines, re.MULTILINE):
            yield title, commands


SECTIONS = dict(sections())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the page speaks of."""
    folder = tmp_path_factory.mktemp("home")
    FILES["llama"](folder / "bare-model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        import zoo_huggingface

        small: Any = zoo_huggingface.build("llama")
        type(small)(
            type(small.config)(**{**small.config.to_dict(), "vocab_size": 400, "num_hidden_layers": 1})
        ).save_pretrained(folder / "my-model")
    byte_level().save_pretrained(folder / "my-model")
    shutil.copytree(folder / "my-model", folder / "Llama-3.2-1B")
    shutil.copytree(folder / "my-model", folder / "bin-model")
    (folder / "bin-model" / "model.safetensors").rename(folder / "bin-model" / "pytorch_model.bin")
    api.convert(folder / "my-model", folder / "old-moe", experts=4)
    foreign("mixtral", num_local_experts=4).save_pretrained(folder / "my-mixtral")
    torch.save(state(), folder / "weights.pt")
    torch.save({"input_ids": torch.arange(64).reshape(8, 8) % 40}, folder / "ids.pt")
    (folder / "text.txt").write_text(TEXT[:1500], "utf-8")
    (folder / "models.py").write_text(_MODELS, "utf-8")
    return folder


def test_the_page_has_the_six_most_likely_mistakes_and_more() -> None:
    assert len(SECTIONS) >= 6
    assert all(commands[0][1] for commands in SECTIONS.values()), "each begins with a mistake and its answer"


@pytest.mark.sampled
@pytest.mark.parametrize("title", SECTIONS)
def test_a_mistake_is_answered_as_written_and_what_is_to_be_done_helps(
    title: str, moeify: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(home, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    before = {path.name for path in Path.cwd().iterdir()}
    for line, answer in SECTIONS[title]:
        done = moeify(line)
        if answer:
            assert (done.code in (1, 2), done.out, done.err) == (True, "", answer)
            assert {path.name for path in Path.cwd().iterdir()} == before
        else:
            assert done.code == 0, done
