"""moeify.json: what is written is read back; whatever is wrong with it is one line that names the field."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moeify.errors import InputError
from moeify.export.manifest import LayerEntry, Manifest, parse_manifest, read_manifest
from moeify.frontend.loaded import SourceInfo
from moeify.ir.composition import Composition
from moeify.ir.feed_forward import Rewrite
from moeify.ir.moe_config import MoEConfig, RouterConfig
from moeify.ir.weight_place import WeightPlace

MANIFEST = Manifest(
    source=SourceInfo("state-dict", "m.pt", "my.models.Tiny", {"m.pt": "00ff"}, "my.models:make"),
    dtype=torch.bfloat16,
    layers={
        "z.mlp": LayerEntry(
            Rewrite("submodule", {"ffn": "z.mlp"}, output_dropout=0.1),
            MoEConfig(4, 4, "gelu", True, (2, 5, 9), RouterConfig("linear"), top_k=1, threshold=0.5, rank=3),
            {
                "up": WeightPlace("z.mlp.both", (9, 4), (9, 18), transposed=True),
                "gate": WeightPlace("z.mlp.both", (9, 4), (0, 9), transposed=True),
                "down": WeightPlace("z.mlp.down", (9, 4)),
            },
        ),
        "l.mlp": LayerEntry(
            Rewrite("submodule", {"ffn": "l.mlp"}),
            MoEConfig(4, 4, "gelu", False, (0, 3, 6), neurons=3, shards=1, composed=Composition("lora", 2, 4.0)),
        ),
        "a.mlp": LayerEntry(Rewrite("identity", {"up": "a.u", "down": "a.d"}), MoEConfig(4, 6, "relu", False, (0, 3))),
    },
    aliases={"head.weight": "embedding.weight"},
    digests={"moeify.safetensors": "aa", "source/config.json": "bb"},
    versions={"moeify": "0.1.0"},
)
GOOD: dict[str, Any] = json.loads(MANIFEST.to_json())


def test_what_is_written_is_read_back_in_its_order() -> None:
    again = parse_manifest(json.loads(MANIFEST.to_json()), "m")
    assert again == MANIFEST
    assert list(again.layers) == ["z.mlp", "l.mlp", "a.mlp"]
    assert again.to_json() == MANIFEST.to_json()


def test_a_manifest_of_before_upcycling_is_read() -> None:
    old, now = copy.deepcopy(GOOD), copy.deepcopy(GOOD)
    for data in (old, now):
        data["layers"] = [layer for layer in data["layers"] if layer["config"]["composed"] is None]
    for layer in old["layers"]:
        for name in ("neurons", "shards", "detach_sum", "composed"):
            del layer["config"][name]
    assert parse_manifest(old, "m") == parse_manifest(now, "m")
    assert MANIFEST.layers["z.mlp"].config.dense_neurons == 9


def _at(*way: str | int) -> Callable[[dict[str, Any]], Any]:
    def find(data: dict[str, Any]) -> Any:
        found: Any = data
        for step in way:
            found = found[step]
        return found

    return find


_LAYER = _at("layers", 0)
_CONFIG = _at("layers", 0, "config")
_REWRITE = _at("layers", 0, "rewrite")
_DENSE = _at("layers", 0, "dense")
_COMPOSED = _at("layers", 1, "config", "composed")

#: caption, what is changed, what the message says
FAULTS: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("a newer format", lambda d: d.update(format=2), "has format 2, this moeify reads up to 1; upgrade moeify"),
    ("an older format", lambda d: d.update(format=0), "field format is 0"),
    ("no format", lambda d: d.pop("format"), "field format is missing"),
    ("a format of text", lambda d: d.update(format="1"), "field format is a text, not a whole number"),
    ("a format of true", lambda d: d.update(format=True), "field format is true or false, not a whole number"),
    ("an unknown field", lambda d: d.update(layer=[]), "field 'layer' is unknown; did you mean 'layers'"),
    *[
        (f"no {name}", lambda d, name=name: d.pop(name), f"field {name} is missing")
        for name in sorted(GOOD)
        if name != "format"
    ],
    ("a dtype of no torch", lambda d: d.update(dtype="float33"), "field dtype is 'float33'"),
    ("a dtype that is something else", lambda d: d.update(dtype="load"), "field dtype is 'load'"),
    ("layers of a table", lambda d: d.update(layers={}), "field layers is a table, not a list"),
    ("a layer of null", lambda d: d["layers"].append(None), r"layers\[3\]: is null, not a table"),
    ("a layer twice", lambda d: d["layers"].append(d["layers"][0]), "names a path twice"),
    ("a layer without a path", lambda d: _LAYER(d).pop("path"), r"layers\[0\]: field path is missing"),
    (
        "an unknown way",
        lambda d: _REWRITE(d).update(way="stach"),
        r"layers\[0\]: rewrite: field way is 'stach'; did you mean 'stash'",
    ),
    (
        "modules of numbers",
        lambda d: _REWRITE(d).update(modules={"ffn": 1}),
        "modules: field ffn is a whole number, not a text",
    ),
    ("channels of a number", lambda d: _REWRITE(d).update(channels=1), "rewrite: field channels is a whole number"),
    ("a size of text", lambda d: _CONFIG(d).update(hidden="4"), r"layers\[0\]: config: field hidden is a text"),
    ("a size of 4.0", lambda d: _CONFIG(d).update(hidden=4.0), "field hidden is a number, not a whole number"),
    ("offsets of text", lambda d: _CONFIG(d).update(offsets=["a"]), "field offsets is not a list of whole numbers"),
    ("offsets that fall", lambda d: _CONFIG(d).update(offsets=[5, 2]), "config: .*do not describe at least one expert"),
    ("top_k of all and more", lambda d: _CONFIG(d).update(top_k=7), "top_k is 7"),
    ("an unknown activation", lambda d: _CONFIG(d).update(activation="gelo"), "unknown activation 'gelo'"),
    ("a field that no layer has", lambda d: _CONFIG(d).update(colour="red"), "description of an MoE layer is damaged"),
    ("neurons of text", lambda d: _CONFIG(d).update(neurons="9"), "config: field neurons is a text, not a whole number"),
    ("shards of true", lambda d: _CONFIG(d).update(shards=True), "config: field shards is true or false"),
    ("shards that do not divide", lambda d: _CONFIG(d).update(shards=3), "config: .*shards is 3: the 2 experts cannot"),
    ("a detached sum of text", lambda d: _CONFIG(d).update(detach_sum="no"), "config: field detach_sum is a text"),
    ("a detached sum of nothing", lambda d: _CONFIG(d).update(detach_sum=True), "config: .*set normalize too"),
    (
        "a core of text",
        lambda d: _at("layers", 1, "config")(d).update(composed="lora"),
        "field composed is a text, not a table",
    ),
    ("an unknown composition", lambda d: _COMPOSED(d).update(kind="loar"), r"layers\[1\]: config: .*composition is 'loar'"),
    ("a rank of text", lambda d: _COMPOSED(d).update(rank="2"), "config: composed: field rank is a text, not a whole number"),
    ("no alpha", lambda d: _COMPOSED(d).pop("alpha"), "config: composed: field alpha is missing"),
    ("a negative rank", lambda d: _COMPOSED(d).update(rank=-1), "config: .*rank of lora is -1"),
    ("a core of another size", lambda d: _at("layers", 1, "config")(d).update(neurons=2), "as many rows as the core, 2"),
    ("a router of text", lambda d: _CONFIG(d).update(router="linear"), "description of an MoE layer is damaged"),
    ("dense weights of a list", lambda d: _LAYER(d).update(dense=[]), r"layers\[0\]: field dense is a list, not a table"),
    ("dense weights without up", lambda d: _DENSE(d).pop("up"), r"layers\[0\]: dense: field up is missing"),
    ("a dense weight of no name", lambda d: _DENSE(d).update(side={}), "dense: field 'side' is unknown"),
    ("a place of text", lambda d: _DENSE(d).update(up="z.mlp.up"), "dense: field up is a text, not a table"),
    ("a shape of one size", lambda d: _DENSE(d)["up"].update(shape=[9]), "dense: up: field shape holds 1 numbers, not 2"),
    ("rows of three", lambda d: _DENSE(d)["up"].update(rows=[0, 1, 2]), "dense: up: field rows holds 3 numbers, not 2"),
    ("an unknown kind of source", lambda d: d["source"].update(kind="tape"), "source: field kind is 'tape'"),
    ("a factory of a number", lambda d: d["source"].update(factory=1), "source: field factory is a whole number"),
    ("a digest of null", lambda d: d["digests"].update(x=None), "digests: field x is null"),
    ("a file outside", lambda d: d["digests"].update({"../x": "00"}), "names the file '../x', which is outside"),
    ("a file anywhere", lambda d: d["digests"].update({"/etc/passwd": "00"}), "names the file '/etc/passwd'"),
    ("aliases of a list", lambda d: d.update(aliases=[]), "field aliases is a list, not a table"),
]


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in FAULTS], ids=[c[0] for c in FAULTS])
def test_every_fault_is_one_line_that_names_the_field(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    data = copy.deepcopy(GOOD)
    change(data)
    (tmp_path / "moeify.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=message) as caught:
        read_manifest(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000, b'{"format": 1'])
def test_a_file_that_is_no_manifest_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "moeify.json").write_bytes(content)
    with pytest.raises(InputError, match=r"damaged|is a list, not a table|is a whole number, not a table") as caught:
        read_manifest(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_none_of_ours_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not an output folder of moeify"):
        read_manifest(tmp_path)
    with pytest.raises(InputError, match="there is no such folder"):
        read_manifest(tmp_path / "nowhere")
    (tmp_path / "model.onnx").write_bytes(b"1")
    with pytest.raises(InputError, match=r"model\.onnx: is a file, not a folder; give one that moeify convert wrote$"):
        read_manifest(tmp_path / "model.onnx")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*GOOD, "hidden", "path", "x"]), inner),
    max_leaves=5,
)


@given(name=st.sampled_from(sorted(GOOD)), value=_JSON)
def test_no_value_of_a_field_is_more_than_one_clear_error(name: str, value: Any) -> None:
    data = copy.deepcopy(GOOD)
    data[name] = value
    message = ""
    try:
        found = parse_manifest(data, "m")
    except InputError as error:
        message = str(error)
    else:
        assert json.loads(found.to_json()) == data
    assert "\n" not in message
