"""Masked-token training of the trunk on a rule (Lightning).

    config ─► plan ─► sequences, generated ahead on a thread ─► TokenModel ─► hidden tokens only ─►
    trunk.safetensors + record.json

Source: arXiv 2511.13945, Table 9, and its authors' code: AdamW 2e-3, weight decay 0.05 on all
trainables, linear ramp then cosine to 1e-6, batch 256, half of the closing tokens hidden.
"""

from vitwarm.warmup.module import WarmupModule, hidden_loss
from vitwarm.warmup.plan import (
    WarmupPlan,
    make_loader,
    make_module,
    make_token_model,
    plan_warmup,
    warmup_folder,
)
from vitwarm.warmup.run import run_warmup, show_plan

__all__ = [
    "WarmupModule",
    "WarmupPlan",
    "hidden_loss",
    "make_loader",
    "make_module",
    "make_token_model",
    "plan_warmup",
    "run_warmup",
    "show_plan",
    "warmup_folder",
]
