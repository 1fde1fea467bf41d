"""Text encoders."""

from __future__ import annotations

from typing import Any

from zoo_rows import HIDDEN, NEURONS, TEXT, VOCABULARY, Row, layers

_BERT: dict[str, Any] = {key: value for key, value in TEXT.items() if key not in ("bos_token_id", "eos_token_id")}
_DISTIL = {
    "vocab_size": VOCABULARY, "dim": HIDDEN, "hidden_dim": NEURONS, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
_DEBERTA = _BERT | {
    "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "max_relative_positions": 16,
    "share_att_key": True,
}  # fmt: skip
_MODERN = TEXT | {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 8}
_SQUEEZE = _BERT | {"embedding_size": HIDDEN, "intermediate_groups": 1, "output_groups": 1}

ENCODERS = {
    "bert": Row(
        "BertForSequenceClassification", "BertConfig", _BERT, "ids",
        layers("bert.encoder.layer.{}", "two-matrix", "gelu"), "identity",
    ),
    "roberta": Row(
        "RobertaForMaskedLM", "RobertaConfig", _BERT, "ids",
        layers("roberta.encoder.layer.{}", "two-matrix", "gelu"), "identity",
    ),
    "electra": Row(
        "ElectraForMaskedLM", "ElectraConfig", _BERT | {"embedding_size": 8}, "ids",
        layers("electra.encoder.layer.{}", "two-matrix", "gelu"), "identity",
    ),
    "deberta-v2": Row(
        "DebertaV2ForMaskedLM", "DebertaV2Config", _DEBERTA, "ids",
        layers("deberta.encoder.layer.{}", "two-matrix", "gelu"), "identity",
    ),
    "albert": Row(
        "AlbertModel", "AlbertConfig", _BERT | {"embedding_size": 8, "num_hidden_layers": 3}, "ids",
        layers("encoder.albert_layer_groups.0.albert_layers.0", "two-matrix", "gelu-tanh", 1), "identity",
    ),
    "distilbert": Row(
        "DistilBertForMaskedLM", "DistilBertConfig", _DISTIL, "ids",
        layers("distilbert.transformer.layer.{}.ffn", "two-matrix", "gelu"), "submodule",
    ),
    "modernbert": Row(
        "ModernBertForMaskedLM", "ModernBertConfig", _MODERN, "ids",
        layers("model.layers.{}.mlp", "gated", "gelu"), "submodule",
    ),
    "squeezebert": Row(
        "SqueezeBertForMaskedLM", "SqueezeBertConfig", _SQUEEZE, "ids",
        layers("transformer.encoder.layers.{}", "two-matrix", "gelu"), "identity",
    ),
    "squeezebert-grouped": Row("SqueezeBertForMaskedLM", "SqueezeBertConfig", _SQUEEZE | {"output_groups": 4}, "ids"),
}  # fmt: skip
