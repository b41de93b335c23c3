"""Several rules in one stream: `mixture` (side by side) and `curriculum` (one after the other)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitwarm.errors import RuleError
from vitwarm.rules.base import Bools, Ceiling, Ids, Rows, Rule, to_rows
from vitwarm.seeding import mix_u64


@dataclass(frozen=True, kw_only=True)
class Blend(Rule):
    """Every sequence comes whole from one member, under that member's own rules for hiding.

    A member that refuses a length fills it with its own pads.
    """

    pads: ClassVar[bool] = False
    shares_field: ClassVar[str]
    """The parameter with the members' shares of the sequences; None there: equal ones."""

    of: tuple[Rule, ...]
    """The members: rules, names, or mappings with `name` and `params`."""
    ids: Literal["shared", "disjoint"] = "shared"
    """`shared`: all members use the same ids from 0 on; `disjoint`: each has a range of its own."""

    def __post_init__(self) -> None:
        self.check("of", bool(self.of), "needs at least 1 rule")
        for member in self.of:
            if member.name == "curriculum" or member.name == self.name:
                raise self.refuse("of", member.name, f"cannot hold a {member.name}; list its rules")
        self.check_ids()
        shares, n_rules = getattr(self, self.shares_field), len(self.of)
        if shares is not None:
            fine = len(shares) == n_rules
            self.check(self.shares_field, fine, f"takes one for each of {n_rules} rules")
            fine = min(shares) > 0 and abs(sum(shares) - 1) <= 1e-6  # not where one is NaN
            self.check(self.shares_field, fine, "takes numbers above 0 that sum to 1")

    @property
    def member_shares(self) -> NDArray[np.float64]:
        """Share of the sequences that comes from each member."""
        given = getattr(self, self.shares_field)
        return np.array(given if given else [1 / len(self.of)] * len(self.of))

    @abstractmethod
    def choose(self, seed: int, rows_B: Rows) -> NDArray[np.int64]:
        """Returns the member that each row comes from: int64 [B]."""

    @property
    def offsets(self) -> list[int]:
        """The first id of each member."""
        sizes = [member.n_ids for member in self.of]
        return [0 if self.ids == "shared" else sum(sizes[:i]) for i in range(len(sizes))]

    @property
    def n_ids(self) -> int:
        """The largest member's ids, or those of all together."""
        sizes = [member.n_ids for member in self.of]
        return max(sizes) if self.ids == "shared" else sum(sizes)

    @property
    def hide_share(self) -> float:
        """The members' mean; `make_batch` hides each member's own share."""
        return float(self.member_shares @ [member.hide_share for member in self.of])

    def fit_length(self, n_tokens: int) -> int:
        """Returns `n_tokens`; members that refuse it add pads, but not where all is too short."""
        for member in self.of:
            member.fit_length(n_tokens)
        return n_tokens

    def parts(self, seed: int, rows_B: Rows) -> list[tuple[Rule, NDArray[np.int64], int]]:
        """Lists the plain rules behind these rows: (rule, positions in `rows_B`, id offset)."""
        chosen = self.choose(seed, rows_B)
        found = []
        for number, (member, offset) in enumerate(zip(self.of, self.offsets, strict=True)):
            places = np.flatnonzero(chosen == number)
            for rule, inner, more in member.parts(seed, rows_B[places]):
                if len(inner):
                    found.append((rule, places[inner], offset + more))
        return found

    def fill(self, out_BT: Ids, seed: int, rows_B: Rows) -> None:
        n_tokens = out_BT.shape[1]
        for rule, places, offset in self.parts(seed, rows_B):
            n_words = rule.fit_length(n_tokens)
            words = np.empty((len(places), n_words), dtype=np.int16)
            rule.fill(words, seed, rows_B[places])
            out_BT[places, :n_words] = words + np.int16(offset)
            out_BT[places, n_words:] = (rule.pad_id or 0) + offset

    def _readings(self, ids: Ids) -> Iterator[tuple[int, Rule, Ids, Bools]]:
        """Lists members that may have made rows: number, member, words, which end in its pads."""
        for number, (member, offset) in enumerate(zip(self.of, self.offsets, strict=True)):
            try:
                n_words = member.fit_length(ids.shape[1])
            except RuleError:  # none of its words is so short
                continue
            padded = (ids[:, n_words:] == (member.pad_id or 0) + offset).all(axis=1)
            if padded.any():
                yield number, member, np.maximum(ids[:, :n_words] - offset, -1), padded

    def accepts(self, ids_BT: ArrayLike) -> Bools:
        """Words of any member."""
        return self._any(ids_BT, lambda member, words: member.accepts(words))

    def accepts_any_order(self, ids_BT: ArrayLike) -> Bools:
        """Words of any member in any order."""
        return self._any(ids_BT, lambda member, words: member.accepts_any_order(words))

    def _any(self, ids_BT: ArrayLike, accepts: Callable[[Rule, Ids], Bools]) -> Bools:
        ids = to_rows(ids_BT)
        found = np.zeros(len(ids), dtype=np.bool_)
        for _, member, words, padded in self._readings(ids):
            found |= accepts(member, words) & padded
        return found

    def maskable(self, ids_BT: ArrayLike) -> Bools:
        """What any member that accepts a row may hide in it.

        `make_batch` knows the member that a row comes from, and hides by that one alone.
        """
        ids = to_rows(ids_BT)
        maskable = np.zeros(ids.shape, dtype=np.bool_)
        for _, member, words, padded in self._readings(ids):
            its = member.accepts(words) & padded
            maskable[:, : words.shape[1]] |= its[:, None] & member.maskable(words)
        return maskable

    def may_hide(self, ids_BT: Ids, seed: int, rows_B: Rows) -> tuple[Bools, NDArray[Any]]:
        """Returns what may be hidden, bool [B, T], and which share of it, float64 [B]."""
        maskable = np.zeros(ids_BT.shape, dtype=np.bool_)
        share = np.zeros(len(ids_BT))
        for rule, places, offset in self.parts(seed, rows_B):
            n_words = rule.fit_length(ids_BT.shape[1])
            words = ids_BT[places, :n_words] - np.int16(offset)
            maskable[places, :n_words], share[places] = rule.may_hide(words, seed, rows_B[places])
        return maskable, share

    def ceiling(self, ids_BT: Ids, visible_BT: Ids) -> Ceiling:
        """Bounds what can be reached on these rows, which one of the members made each.

        `high` is what an oracle reaches that is told the member: of the members that accept a row,
        the one with most. `low` counts only what is sure: with disjoint ids the visible tokens tell
        the member; with shared ones a predictor can always take the rows for the same member's.
        """
        hidden = visible_BT == self.n_ids
        n_hidden = hidden.sum(axis=1)
        low_MB = np.zeros((len(self.of), len(ids_BT)))
        high_MB = np.zeros_like(low_MB)
        accepts_MB = np.zeros(low_MB.shape, dtype=np.bool_)
        for number, member, words, padded in self._readings(ids_BT):
            accepts_MB[number] = padded & member.accepts(words)
            visible = _hide(member, words, hidden)
            for row in np.flatnonzero(accepts_MB[number] & (n_hidden > 0)):
                low, high, _ = member.ceiling(words[row, None], visible[row, None])
                low_MB[number, row], high_MB[number, row] = low, high
        weight_B = n_hidden / max(int(n_hidden.sum()), 1)
        high = float(high_MB.max(axis=0) @ weight_B)
        if self.ids == "disjoint":
            low = float(low_MB.max(axis=0) @ weight_B)
            told = "disjoint ids tell the member"
        else:
            alone_B = accepts_MB.sum(axis=0) == 1
            low = float(((low_MB * alone_B) @ weight_B).max())
            told = "one member assumed throughout, and an oracle told the member"
        return Ceiling(low, high, f"bounds over {' and '.join(m.name for m in self.of)}: {told}")


def _hide(member: Rule, words: Ids, hidden: Bools) -> Ids:
    """Puts a member's mask id where tokens are hidden."""
    return np.where(hidden[:, : words.shape[1]], member.n_ids, words).astype(np.int16)


@dataclass(frozen=True, kw_only=True)
class Mixture(Blend):
    """Each sequence from one of several rules, drawn with weights."""

    name: ClassVar[str] = "mixture"
    aliases: ClassVar[tuple[str, ...]] = ("mix",)
    shares_field: ClassVar[str] = "weights"

    weights: tuple[float, ...] | None = None
    """Probability of each member, with sum 1; none: equal."""

    def choose(self, seed: int, rows_B: Rows) -> NDArray[np.int64]:
        """Draws the member of each row, whatever the batch."""
        uniform = (mix_u64(rows_B, int(self.key(seed))) >> np.uint64(11)) * 2.0**-53
        inner = np.cumsum(self.member_shares)[:-1]
        return np.searchsorted(inner, uniform, side="right").astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Curriculum(Blend):
    """Rules one after the other; the last one goes on beyond the stated total.

    An evaluation should read the last stage: from row `evaluation_start` of its own stream on.
    """

    name: ClassVar[str] = "curriculum"
    shares_field: ClassVar[str] = "shares"

    n_sequences: int
    """The total that the shares refer to: the sequences of the whole warm-up."""
    shares: tuple[float, ...] | None = None
    """Share of the total that each rule takes, with sum 1; none: equal."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fine = bool((np.diff(self._ends, prepend=0) >= 1).all())
        self.check("n_sequences", fine, "needs at least 1 sequence for every stage")

    @property
    def _ends(self) -> NDArray[np.int64]:
        return np.rint(np.cumsum(self.member_shares) * self.n_sequences).astype(np.int64)

    @property
    def evaluation_start(self) -> int:
        """The first row of the last stage."""
        return int(self._ends[-2]) if len(self.of) > 1 else 0

    def ceiling(self, ids_BT: Ids, visible_BT: Ids) -> Ceiling:
        """Returns the last stage's ceiling: of rows from `evaluation_start` on."""
        member, offset = self.of[-1], self.offsets[-1]
        words = ids_BT[:, : member.fit_length(ids_BT.shape[1])] - np.int16(offset)
        low, high, method = member.ceiling(words, _hide(member, words, visible_BT == self.n_ids))
        return Ceiling(low, high, f"the last stage, {member.name}: {method}")

    def choose(self, seed: int, rows_B: Rows) -> NDArray[np.int64]:
        """Returns the stage of each row."""
        return np.searchsorted(self._ends[:-1], rows_B.astype(np.int64), side="right")
