"""What a warm-up has learned so far, on sequences that no training step has seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch import nn

from vitwarm.loop import StepCallback, evaluation_steps
from vitwarm.records import RunFolder
from vitwarm.rules.baselines import order_blind_accuracy
from vitwarm.rules.masking import Masked, make_batch
from vitwarm.rules.stats import hidden_groups, octave_name
from vitwarm.seeding import seed_of
from vitwarm.trunk import blocks_of
from vitwarm.warmup.module import WarmupModule, hidden_loss
from vitwarm.warmup.plan import WarmupPlan
from vitwarm.warmup.sequences import pack

#: Held-out sequences of a look on the way; the final evaluation reads `warmup.eval_sequences`.
PROBE_SEQUENCES = 256

#: Held-out sequences on which ceilings are found: some methods take milliseconds for each.
CEILING_SEQUENCES = 128


class Probe(StepCallback):
    """Evaluates on the way and writes what it found, with the blocks' norms, to metrics.jsonl."""

    def __init__(self, plan: WarmupPlan, run: RunFolder) -> None:
        self.plan = plan
        self.run = run
        self.steps = evaluation_steps(plan.budget.steps, plan.config.warmup.evaluations)

    def on_step_end(self, trainer: Trainer, module: Any) -> None:
        step = module.steps_done
        if not trainer.is_global_zero or step not in self.steps:
            return
        n_sequences = min(PROBE_SEQUENCES, self.plan.config.warmup.eval_sequences)
        found = evaluate(module, self.plan, device=module.device, n_sequences=n_sequences)
        module.train()
        norms = block_norms(module.tokens.model)
        self.run.append_metrics(kind="eval", step=step, **found, block_norms=norms)


@torch.no_grad()
def evaluate(
    module: WarmupModule, plan: WarmupPlan, *, device: torch.device, n_sequences: int
) -> dict[str, Any]:
    """Measures loss and accuracy on hidden tokens of held-out sequences; leaves `eval` mode on.

    Returns: `hidden_accuracy_percent`, `hidden_loss` in nats per hidden token, `chance_percent`
        (the accuracy of always answering the most frequent hidden id), and `hidden_accuracy_by` as
        `Record` has it.
    """
    module.to(device).eval()
    counts = np.zeros(plan.rule.n_ids, dtype=np.int64)
    loss = 0.0
    right: list[NDArray[np.bool_]] = []
    groups: dict[str, list[NDArray[np.int64]]] = {}
    size = min(plan.cut.micro_batch_size, n_sequences)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=plan.numbers.bf16):
        for start in range(0, n_sequences, size):
            batch = held_out_batch(plan, start, min(size, n_sequences - start))
            targets = batch.target_ids[batch.hidden].astype(np.int64)
            counts += np.bincount(targets, minlength=plan.rule.n_ids)
            packed = pack(
                batch.input_ids, batch.target_ids, n_hidden=len(targets), places=len(targets)
            )
            inputs, hidden, wanted, _ = (tensor.to(device) for tensor in packed)
            logits_KV = module(inputs, hidden)
            loss += float(hidden_loss(logits_KV, wanted).loss)
            right.append((logits_KV.argmax(dim=-1) == wanted).cpu().numpy())
            for name, values in _groups_of(plan, batch).items():
                groups.setdefault(name, []).append(values)
    hits = np.concatenate(right)
    return {
        "hidden_accuracy_percent": 100 * float(hits.sum()) / max(len(hits), 1),
        "hidden_loss": loss / max(len(hits), 1),
        "chance_percent": 100 * float(counts.max()) / max(len(hits), 1),
        "hidden_accuracy_by": {
            name: _by_octave(np.concatenate(values), hits) for name, values in groups.items()
        },
    }


def held_out_batch(plan: WarmupPlan, start: int, n_sequences: int) -> Masked:
    """Returns rows [start, start + n_sequences) of the sequences that no training step reads."""
    return make_batch(
        plan.rule,
        seed=seed_of(plan.config.seed, "held-out"),
        start=plan.rule.evaluation_start + start,  # a curriculum: its last stage
        n_sequences=n_sequences,
        n_tokens=plan.n_tokens,
        hide_share=plan.hide_share,
    )


def find_ceiling(plan: WarmupPlan) -> dict[str, Any]:
    """Returns the best accuracy on hidden tokens that any model could reach, in percent.

    Returns: `low_percent`, which some predictor reaches, `high_percent`, which none exceeds, and
        the `method`.
    """
    ids, visible = _words(plan, held_out_batch(plan, 0, CEILING_SEQUENCES))
    found = plan.rule.ceiling(ids, visible)
    return {
        "low_percent": 100 * found.low,
        "high_percent": 100 * found.high,
        "method": found.method,
    }


def find_order_blind(plan: WarmupPlan) -> float:
    """Returns what no predictor exceeds that does not see the order of the tokens, in percent."""
    words = _words(plan, held_out_batch(plan, 0, CEILING_SEQUENCES))
    return 100 * order_blind_accuracy(plan.rule, *words)


def block_norms(model: nn.Module) -> list[float]:
    """Returns the Euclidean norm of all weights of each block, first to last. Synchronises."""
    norms = [
        torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(p.detach()) for p in block.parameters()])
        )
        for block in blocks_of(model).values()
    ]
    return [round(norm, 4) for norm in torch.stack(norms).tolist()]


def _words(plan: WarmupPlan, batch: Masked) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """The sequences as the rule made them, and the same with the mask id; both without the pad."""
    return batch.ids[:, : plan.n_words], batch.input_ids[:, : plan.n_words]


def _groups_of(plan: WarmupPlan, batch: Masked) -> dict[str, NDArray[np.int64]]:
    ids, visible = _words(plan, batch)
    return hidden_groups(plan.rule, ids, visible == plan.rule.n_ids)


def _by_octave(values: NDArray[np.int64], hits: NDArray[np.bool_]) -> dict[str, dict[str, float]]:
    octaves = np.log2(np.maximum(values, 1)).astype(np.int64) + (values > 0)  # 0: there is none
    n = np.bincount(octaves)
    right = np.bincount(octaves, weights=hits)
    return {
        octave_name(octave - 1) if octave else "none": {
            "n": int(n[octave]),
            "accuracy_percent": round(100 * float(right[octave] / n[octave]), 3),
        }
        for octave in np.flatnonzero(n).tolist()
    }
