"""The model types of the sweep, none of them in the zoo."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_NAMES = (
    # text encoders
    "bert-generation", "big_bird", "camembert", "convbert", "data2vec-text", "deberta", "dpr", "ernie", "esm", "eurobert",
    "flaubert", "fnet", "gte", "ibert", "jina_embeddings_v3", "layoutlm", "luke", "markuplm", "megatron-bert", "mobilebert",
    "mpnet", "nomic_bert", "nystromformer", "rembert", "roberta-prelayernorm", "roc_bert", "roformer", "splinter", "tapas",
    "visual_bert", "xlm", "xlm-roberta", "xlnet", "yoso",
    # text decoders
    "apertus", "arcee", "bamba", "biogpt", "bitnet", "codegen", "cohere", "cohere2", "cpmant", "ctrl", "ernie4_5",
    "exaone4", "glm", "glm4", "gpt_bigcode", "gpt_neo", "gpt_neox_japanese", "granitemoe", "helium", "imagegpt",
    "jamba", "jetmoe", "lfm2", "modernbert-decoder", "mpt", "olmo", "olmo3", "olmoe", "openai-gpt", "persimmon", "rwkv",
    "seed_oss", "stablelm", "trocr", "vaultgemma", "xglm",
    # text encoder-decoders
    "bigbird_pegasus", "blenderbot", "fsmt", "led", "longt5", "m2m_100", "mbart", "mt5", "mvp", "pegasus", "plbart",
    "switch_transformers", "t5gemma", "umt5",
    # pictures and films
    "aimv2_vision_model", "beit", "convnextv2", "data2vec-vision", "deit", "dinov2_with_registers", "dinov3_convnext",
    "dinov3_vit", "focalnet", "hiera", "ijepa", "mobilevit", "regnet", "resnet", "segformer", "swiftformer",
    "timesformer", "vit_mae", "vit_msn", "vitdet", "vivit", "yolos",
    # sound
    "audio-spectrogram-transformer", "hubert", "moonshine", "speech_to_text", "speecht5", "unispeech", "wavlm",
    # text together with pictures
    "aimv2", "altclip", "aya_vision", "chinese_clip", "clipseg", "flava", "git", "groupvit", "idefics3", "llava", "mgp-str",
    "owlvit",
)  # fmt: skip

#: Type -> fields of its config that do not follow from the names of sizes.
MODEL_TYPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    dict.fromkeys(_NAMES, MappingProxyType({}))
    | {
        "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16, "attn_layer_indices": [1]},
        "codegen": {"n_head": 4, "rotary_dim": 4},
        "esm": {"vocab_size": 33, "position_embedding_type": "rotary", "pad_token_id": 1, "mask_token_id": 32},
        "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
        "jamba": {"num_experts": 1, "num_experts_per_tok": 1, "attn_layer_offset": 1, "attn_layer_period": 2},
        "mobilevit": {"image_size": 64},
        "olmoe": {"num_experts_per_tok": 2},
    }
)
