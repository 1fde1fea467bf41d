"""The dense model of a folder is found by its name and told by its digests."""

from __future__ import annotations

from pathlib import Path

import pytest

from moeify.errors import InputError
from moeify.frontend.loaded import SourceInfo, file_digest
from moeify.frontend.recorded_source import differing, recorded_source


@pytest.fixture
def info(tmp_path: Path) -> SourceInfo:
    """Of a model folder of two files, at `right/model` and, with other weights, at `wrong/model`."""
    for place, weights in (("right", "1"), ("wrong", "2")):
        (tmp_path / place / "model").mkdir(parents=True)
        (tmp_path / place / "model" / "config.json").write_text("{}")
        (tmp_path / place / "model" / "model.safetensors").write_text(weights)
    names = ("config.json", "model.safetensors")
    digests = {name: file_digest(tmp_path / "right" / "model" / name) for name in names}
    return SourceInfo("huggingface", "model", "transformers.LlamaForCausalLM", digests)


def test_the_place_whose_digests_fit_is_taken(info: SourceInfo, tmp_path: Path) -> None:
    places = (tmp_path / "nowhere", tmp_path / "wrong", tmp_path / "right")
    assert recorded_source(info, places) == tmp_path / "right" / "model"
    assert differing(info, tmp_path / "right" / "model") is None
    assert differing(info, tmp_path / "wrong" / "model") == tmp_path / "wrong" / "model" / "model.safetensors"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (
            "wrong",
            "wrong/model/model.safetensors: is not what the folder was made from (sha256): give the dense model ",
        ),
        ("nowhere", "the model that it was made from, model, is not beside it: give the dense model (--dense, dense=)"),
    ],
)
def test_any_other_is_refused(place: str, message: str, info: SourceInfo, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        recorded_source(info, (tmp_path / place,))
    assert message in str(caught.value)


def test_a_missing_file_and_a_model_in_memory(info: SourceInfo, tmp_path: Path) -> None:
    (tmp_path / "right" / "model" / "config.json").unlink()
    assert differing(info, tmp_path / "right" / "model") == tmp_path / "right" / "model" / "config.json"
    with pytest.raises(InputError, match=r"it was made in memory: give the dense model \(--dense, dense=\)"):
        recorded_source(SourceInfo("module", "Net", "somewhere.Net"), (tmp_path,))


def test_a_single_file(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"weights")
    info = SourceInfo("state-dict", "model.pt", "pkg.Net", {"model.pt": file_digest(tmp_path / "model.pt")})
    assert recorded_source(info, (tmp_path,)) == tmp_path / "model.pt"
    (tmp_path / "model.pt").rename(tmp_path / "other.pt")
    assert differing(info, tmp_path / "other.pt") is None
