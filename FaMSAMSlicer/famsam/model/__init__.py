"""The promptable networks: one interface, three named configurations."""

from __future__ import annotations

from .attention import AttentionPattern
from .base import Embedding, PromptableModel
from .config import attention_ablation, with_attention
from .registry import MODEL_NAMES, build_model, config_from_dict, config_to_dict, default_config

__all__ = [
    "MODEL_NAMES",
    "AttentionPattern",
    "Embedding",
    "PromptableModel",
    "attention_ablation",
    "build_model",
    "config_from_dict",
    "config_to_dict",
    "default_config",
    "with_attention",
]
