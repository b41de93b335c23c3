"""What a warm-up has learned, on sequences drawn apart from training, and what that is worth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch import nn

from vitwarm.loop.meters import Metrics
from vitwarm.loop.module import StepCallback
from vitwarm.records import Record, RunFolder, read_metrics
from vitwarm.rules import held_out_seed
from vitwarm.rules.masking import Masked, make_batch
from vitwarm.rules.stats import hidden_groups, octave_name, order_blind_accuracy
from vitwarm.trunk import blocks_of
from vitwarm.units import format_seconds
from vitwarm.warmup.module import WarmupModule, hidden_loss
from vitwarm.warmup.plan import WarmupPlan
from vitwarm.warmup.sequences import pack

Verdict = Literal["learned", "not learned", "saturated early"]

#: From this accuracy on hidden tokens on, the rule counts as solved.
SATURATED_PERCENT = 99.0

#: Steps between two looks of `until: saturated`, whatever the log's: they decide when it ends.
SATURATION_STEPS = 50

#: Share of the gap to 100 % that has to be closed to count as learned. Ours: far above what noise
#: closes on 2,048 held-out sequences, far below any warm-up worth a hand-off.
LEARNED_SHARE = 0.05

#: What the groups of `Record.hidden_accuracy_by` are called in a terminal.
GROUP_LABELS = {"match_distance": "distance", "depth": "depth", "equal_id_distance": "same id"}

#: Held-out sequences of a look on the way; the final evaluation reads `warmup.eval_sequences`.
PROBE_SEQUENCES = 256

#: Held-out sequences on which ceilings are found: some methods take milliseconds for each.
CEILING_SEQUENCES = 128

#: Training sequences among which the held-out ones are looked for, and how many make a warning.
SEEN_AMONG = 100_000
SEEN_PERCENT = 5.0
_ROWS = 1000


@dataclass(eq=False)
class Probe(StepCallback):
    """Evaluates on the way and writes what it found, with the blocks' norms, to metrics.jsonl."""

    plan: WarmupPlan
    run: RunFolder

    def on_step_end(self, trainer: Trainer, module: Any) -> None:
        step = module.steps_done
        if not trainer.is_global_zero or step not in self.plan.eval_steps:
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
    """Returns rows [start, start + n_sequences) of a stream that no training step reads."""
    return make_batch(
        plan.rule,
        seed=held_out_seed(plan.config.seed),
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


def find_seen(plan: WarmupPlan, n_samples: int) -> float:
    """Returns the share of held-out sequences that are among those of the training, in percent.

    Streams are drawn apart, but a rule may have few sequences: an elementary automaton 2^columns.
    At most `SEEN_AMONG` of the training's are looked through, so that it is a lower bound.

    Args: n_samples: sequences that the training read.
    """
    rule, seed = plan.rule, plan.config.seed

    def rows(stream: int, n_rows: int) -> Iterator[bytes]:
        for start in range(0, n_rows, _ROWS):
            first, n = rule.evaluation_start + start, min(_ROWS, n_rows - start)
            yield from map(bytes, rule.sample(stream, first, n, plan.n_words))

    trained = set(rows(seed, min(SEEN_AMONG, n_samples - rule.evaluation_start)))
    held_out = list(rows(held_out_seed(seed), _ROWS))
    return 100 * sum(row in trained for row in held_out) / len(held_out)


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


def find_saturation(run: RunFolder) -> int | None:
    """Returns the first logged step from which on the training accuracy stayed above 99 %."""
    first: int | None = None
    for line in read_metrics(run.path):
        accuracy = line.get("hidden_accuracy_percent")
        if line["kind"] != "train" or accuracy is None:
            continue
        if accuracy < SATURATED_PERCENT:
            first = None
        elif first is None:
            first = int(line["step"])
    return first


def is_solved(run: RunFolder) -> bool:
    """Whether the last two lines of a run's training accuracy are above 99 %.

    Read from the file, not from memory: a resumed run must stop where an uninterrupted one does.
    """
    lines = [line for line in read_metrics(run.path) if line["kind"] == "train"][-2:]
    solved = [line.get("hidden_accuracy_percent") or 0.0 for line in lines]
    return len(solved) == 2 and min(solved) >= SATURATED_PERCENT


@dataclass(eq=False)
class StopWhenSaturated(StepCallback):
    """Ends the training at the second log line in a row above 99 % on hidden tokens."""

    metrics: Metrics
    run: RunFolder

    def on_step_end(self, trainer: Trainer, module: Any) -> None:
        if self.metrics.marked_step == module.steps_done and is_solved(self.run):
            trainer.should_stop = True


def judge(
    *,
    accuracy_percent: float,
    chance_percent: float,
    order_blind_percent: float | None = None,
    saturated_at: int | None,
    n_steps: int,
) -> Verdict:
    """Says what a warm-up was worth.

    Args:
        accuracy_percent, chance_percent: on hidden tokens of held-out sequences.
        order_blind_percent: what can be reached there without the order of the tokens, which is
            the ceiling of the rule's shuffled control; None: not known.
        saturated_at: as `find_saturation` returns it.
        n_steps: of the budget, also where the warm-up ended before.
    Returns: `not learned` if less than a twentieth of the gap between chance, or what the tokens
        tell without their order, and 100 % was closed: so a shuffled control that learned all it
        can has not learned either; `saturated early` if the rule was solved in the first half of
        the steps (easy tasks transfer worst, and weight decay erodes what was learned); else
        `learned`.
    """
    floor = max(chance_percent, order_blind_percent or 0.0)
    if accuracy_percent < floor + LEARNED_SHARE * (100 - floor):
        return "not learned"
    if saturated_at is not None and saturated_at < n_steps / 2:
        return "saturated early"
    return "learned"


def reached(plan: WarmupPlan, run: RunFolder, module: WarmupModule) -> dict[str, Any]:
    """Returns what a finished warm-up reached and what that is worth, as its record has it."""
    warm = plan.config.warmup
    found = evaluate(module, plan, device=plan.device, n_sequences=warm.eval_sequences)
    found["order_blind_percent"] = find_order_blind(plan)
    found["seen_percent"] = find_seen(plan, module.steps_done * warm.batch_size)
    found["saturated_at_step"] = find_saturation(run)
    found["verdict"] = judge(
        accuracy_percent=found["hidden_accuracy_percent"],
        chance_percent=found["chance_percent"],
        order_blind_percent=found["order_blind_percent"],
        saturated_at=found["saturated_at_step"],
        n_steps=plan.budget.steps,
    )
    return found


def describe(record: Record) -> str:
    """Says in a few lines what a finished warm-up reached, and warns where it went wrong."""
    accuracy, chance = record.hidden_accuracy_percent or 0.0, record.chance_percent or 0.0
    text = (
        f"finished  {record.steps or 0:,} steps in {format_seconds(record.wall_seconds or 0)}\n"
        f"reached   held-out accuracy {accuracy:.1f} % on hidden tokens "
        f"(chance {chance:.1f} %, order-blind baseline {record.order_blind_percent or 0:.1f} %, "
        f"ceiling {_ceiling_of(record)}), "
        f"loss {record.hidden_loss or 0:.3f} nats\n"
    )
    for group, bins in record.hidden_accuracy_by.items():
        right = ", ".join(
            f"{name}: {found['accuracy_percent']:.0f}" for name, found in bins.items()
        )
        text += f"{GROUP_LABELS.get(group, group):<9} {right} (accuracy, %)\n"
    text += f"data      waited {record.data_wait_percent or 0:.2f} % of the time for sequences"
    if (seen := record.seen_percent or 0.0) >= SEEN_PERCENT:
        text += (
            f"\nWARNING   {seen:.0f} % of the held-out sequences were seen in training: the rule "
            "has few of this length,\n          and what was learned by heart counts as learned. "
            "Take more tokens, columns or symbols."
        )
    if record.verdict == "not learned":
        text += (
            "\nWARNING   held-out accuracy is hardly above the order-blind baseline: expected of a "
            "control;\n          otherwise a failed warm-up is worse than none. Train longer, or "
            "lower warmup.lr,\n          before the hand-off of this trunk."
        )
    elif record.verdict == "saturated early":
        text += (
            f"\nWARNING   solved from step {record.saturated_at_step or 0:,} on: easy tasks "
            "transfer worst. Use a harder rule or a smaller budget."
        )
    return text


def _ceiling_of(record: Record) -> str:
    found = record.extra.get("ceiling") or {}
    low, high = found.get("low_percent"), found.get("high_percent")
    if low is None or high is None:
        return "unknown"
    return f"{low:.1f} %" if low == high else f"{low:.1f} to {high:.1f} %"
