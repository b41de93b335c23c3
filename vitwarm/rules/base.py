"""What a rule is: it makes token sequences, knows its own language, and says what may be hidden."""

from __future__ import annotations

import functools
import itertools
import os
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitwarm.errors import RuleError
from vitwarm.seeding import hash_bits, seed_of

Ids = NDArray[np.int16]
Rows = NDArray[np.uint64]
Bools = NDArray[np.bool_]

#: The ids of a rule and the mask id above them are int16.
MOST_IDS = 2**15 - 1

#: Tokens of the longest sequence, and cells of the widest automaton, that a rule makes.
MOST_TOKENS = 2**24

#: Rows of a stream; the number of the last one still fits into a signed 64-bit integer.
MOST_ROWS = 2**63

#: Parts that each thread's share of the rows is cut into.
_SPANS_PER_THREAD = 16


class Ceiling(NamedTuple):
    """The best accuracy on hidden tokens that any predictor can reach, as a share, and how found.

    Some predictor reaches `low`, and none more than `high`: they are equal where it is known.
    """

    low: float
    high: float
    method: str


#: Where `solve` can fill in everything.
SOLVED = Ceiling(1.0, 1.0, "exact: what is visible determines every hidden token")


class Rule(ABC):
    """A generator of token sequences. Subclasses are frozen dataclasses of their parameters.

    Row i of a stream is a pure function of (parameters, seed, i, n_tokens). Training and held-out
    sequences come from different seeds: see `held_out_seed`.
    """

    name: ClassVar[str]
    """Its name in `RULES`."""
    aliases: ClassVar[tuple[str, ...]] = ()
    """Other names that `make_rule` takes."""
    pads: ClassVar[bool] = True
    """Whether the last id is a pad; a rule without one makes every length."""

    @property
    @abstractmethod
    def n_ids(self) -> int:
        """Number of ids, separators and pad included; the mask id is this number."""

    @property
    def pad_id(self) -> int | None:
        """The id that fills a length which the rule refuses; None where it refuses none."""
        return self.n_ids - 1 if self.pads else None

    @property
    def separator_ids(self) -> tuple[int, ...]:
        """Ids that mark places, pads included: they stay where they are in the shuffled control."""
        return () if self.pad_id is None else (self.pad_id,)

    @property
    def hide_share(self) -> float:
        """Share of the maskable tokens that is hidden."""
        return 0.5

    @property
    def determined(self) -> bool:
        """Whether what is visible leaves one possibility for every hidden token (`solve`)."""
        return False

    @property
    def evaluation_start(self) -> int:
        """First row of the part of a stream that an evaluation should read."""
        return 0

    @abstractmethod
    def fill(self, out_BT: Ids, seed: int, rows_B: Rows) -> None:
        """Writes the sequences of these rows; `sample` has checked everything."""

    @abstractmethod
    def accepts(self, ids_BT: ArrayLike) -> Bools:
        """Says of each row whether it is a word of the rule's language: bool [B].

        Written from the definition of the language, never from the generator.
        """

    @abstractmethod
    def maskable(self, ids_BT: ArrayLike) -> Bools:
        """Says of each token whether it may be hidden: bool [B, T]."""

    @abstractmethod
    def accepts_any_order(self, ids_BT: ArrayLike) -> Bools:
        """Says of rows whether some order of their tokens (separators stay) is a word: bool [B]."""

    def fit_length(self, n_tokens: int) -> int:
        """Returns the largest length up to `n_tokens` that the rule can make.

        Raises: RuleError: there is none.
        """
        self.check_tokens(n_tokens, at_least=1)
        return n_tokens

    def makes(self, n_tokens: int) -> bool:
        """Says whether there are words of this length."""
        try:
            return self.fit_length(n_tokens) == n_tokens
        except RuleError:
            return False

    def solve(self, visible_BT: ArrayLike) -> Ids:
        """Fills in the hidden tokens (id `n_ids`) of sequences with what the visible ones demand.

        Returns: int16 [B, T]; the mask id stays where what is visible leaves several possibilities.
        Raises: RuleError: the rule has no such solution.
        """
        raise RuleError(
            f"rule.name is {self.name!r}; its hidden tokens are not determined by the visible "
            "ones, so there is nothing to solve. `ceiling` tells what can be reached."
        )

    def ceiling(self, ids_BT: Ids, visible_BT: Ids) -> Ceiling:
        """Returns the best accuracy that can be reached on the hidden tokens of these sequences.

        Args:
            ids_BT: the sequences, as `sample` makes them.
            visible_BT: the same with the mask id (`n_ids`) where tokens are hidden.
        """
        if self.determined:
            return SOLVED
        hidden = visible_BT == self.n_ids
        solved = (self.solve(visible_BT) != self.n_ids) & hidden
        share = float(solved.sum() / max(hidden.sum(), 1))
        return Ceiling(share, 1.0, "bounds: the hidden tokens that `solve` can fill in, and all")

    def has_ids(self, ids_BT: Ids) -> Bools:
        """Says of each row whether it holds nothing but ids of the rule, and no pad: bool [B]."""
        return np.array(((ids_BT >= 0) & (ids_BT < self.n_ids - self.pads)).all(axis=1))

    def maskable_in_any_order(self, ids_BT: ArrayLike) -> Bools:
        """Says which tokens of a sequence whose order was destroyed may be hidden: bool [B, T]."""
        return self.maskable(ids_BT)

    def may_hide(self, ids_BT: Ids, seed: int, rows_B: Rows) -> tuple[Bools, NDArray[Any]]:
        """Returns what may be hidden, bool [B, T], and which share of it, float64 [B]."""
        return self.maskable(ids_BT), np.full(len(ids_BT), self.hide_share)

    def parts(self, seed: int, rows_B: Rows) -> list[tuple[Rule, NDArray[np.int64], int]]:
        """Lists the plain rules behind these rows: (rule, positions in `rows_B`, id offset)."""
        return [(self, np.arange(len(rows_B)), 0)]

    def sample(
        self,
        seed: int,
        start: int,
        n_sequences: int,
        n_tokens: int,
        out: Ids | None = None,
        *,
        n_threads: int = 1,
    ) -> Ids:
        """Returns the sequences [start, start + n_sequences) of a stream.

        Args:
            seed: any integer; streams of different seeds are drawn independently, so that a rule
                with few sequences of a length repeats them.
            start: number of the first row, from 0 on.
            n_sequences: number of rows, B.
            n_tokens: length of each, T: one that `fit_length` returns.
            out: int16 [B, T], C-contiguous, filled and returned instead of a new array.
            n_threads: threads that share the rows; the result does not depend on it.
        Returns: int16 [B, T], ids in [0, n_ids).
        Raises: RuleError: a length that the rule refuses, a negative start, or a wrong `out`.
        """
        if (fits := self.fit_length(n_tokens)) != n_tokens:
            raise RuleError(
                f"n_tokens is {n_tokens}; rule {self.name} makes no words of this length. "
                f"Use {fits}, or `make_batch`, which adds a visible pad."
            )
        given = f"start is {start} and n_sequences is {n_sequences}"
        if start < 0 or n_sequences < 0:
            raise RuleError(f"{given}; neither may be negative.")
        if start + n_sequences > MOST_ROWS:
            raise RuleError(f"{given}; a stream has {MOST_ROWS:,} rows. Start earlier.")
        shape = n_sequences, n_tokens
        out = np.empty(shape, dtype=np.int16) if out is None else out
        if out.dtype != np.int16 or out.shape != shape or not out.flags.c_contiguous:
            raise RuleError(
                f"out is {out.dtype} {list(out.shape)}; it must be contiguous int16 {list(shape)}."
            )
        if not out.flags.writeable:
            raise RuleError("out is read-only; give a buffer that may be written.")
        rows_B = np.arange(start, start + n_sequences, dtype=np.uint64)
        if n_threads <= 1 or n_sequences <= 1:
            self.fill(out, seed, rows_B)
            return out
        # More spans than threads: a thread whose core is busy elsewhere takes fewer of them.
        n_spans = min(n_sequences, n_threads * _SPANS_PER_THREAD)
        cuts = np.linspace(0, n_sequences, n_spans + 1).astype(int)
        spans = [slice(a, b) for a, b in itertools.pairwise(cuts)]
        list(_pool(n_threads).map(lambda span: self.fill(out[span], seed, rows_B[span]), spans))
        return out

    def key(self, seed: int) -> np.uint64:
        """Returns the key of this rule's random numbers under a seed."""
        return np.uint64(hash_bits(seed, "rules", self.name))

    def check_tokens(self, n_tokens: int, *, at_least: int) -> None:
        """Raises RuleError where a length is too short for the rule, or too long for anyone."""
        if n_tokens > MOST_TOKENS:
            raise RuleError(
                f"n_tokens is {n_tokens}; rule {self.name} makes at most {MOST_TOKENS:,} tokens."
            )
        if n_tokens < at_least:
            tokens = f"{at_least} token{'s' if at_least > 1 else ''}"
            raise RuleError(
                f"n_tokens is {n_tokens}; rule {self.name} needs at least {tokens} with these "
                "parameters."
            )

    def check_ids(self) -> None:
        """Raises RuleError where the ids and the mask do not fit into int16."""
        if self.n_ids > MOST_IDS:
            raise RuleError(
                f"rule {self.name} has {self.n_ids:,} ids; at most {MOST_IDS:,} and the mask fit "
                "into 16 bits. Use a smaller vocabulary."
            )

    def check(self, field: str, fine: bool, allowed: str) -> None:
        """Raises RuleError for a parameter that is not fine; `allowed` ends the sentence."""
        if not fine:
            value = getattr(self, field)
            raise self.refuse(field, list(value) if isinstance(value, tuple) else value, allowed)

    def check_range(self, field: str, low: int, high: int, allowed: str) -> None:
        """Raises RuleError for a number outside of [low, high]; None is fine."""
        value = getattr(self, field)
        self.check(field, value is None or low <= value <= high, allowed)

    def check_acts(self, field: str, *, where: str) -> None:
        """Raises RuleError where a parameter was set that acts elsewhere alone."""
        default = getattr(type(self), field)
        allowed = f"looks at {field} with {where} alone; leave it at {default}"
        self.check(field, getattr(self, field) == default, allowed)

    def refuse(self, field: str, value: object, allowed: str) -> RuleError:
        """Returns the error for a parameter: where, what was given, what is allowed."""
        return RuleError(f"rule.params.{field} is {value!r}; rule {self.name} {allowed}.")


@functools.lru_cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    """Kept: threads made anew for every call start on the caller's core."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="rules")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a fork leaves the threads behind


def held_out_seed(seed: int) -> int:
    """Returns the seed of the sequences that are kept from the training with `seed`.

    It is hashed, not added to: no training seed or row reaches the same stream by arithmetic.
    """
    return seed_of(seed, "held-out")


def to_rows(ids_BT: ArrayLike) -> Ids:
    """Returns sequences as int16 [B, T]; one sequence [T] becomes a batch of one.

    Raises: RuleError: no integers, more than two dimensions, or beyond 16 bits.
    """
    ids = np.atleast_2d(np.asarray(ids_BT))
    whole = ids.dtype.kind in "iu" or ids.size == 0
    if not whole or ids.ndim != 2 or (ids.size and (ids.min() < -(2**15) or ids.max() > MOST_IDS)):
        raise RuleError(
            f"ids are {ids.dtype} of shape {ids.shape}; sequences are 16-bit integers [B, T]."
        )
    return np.ascontiguousarray(ids, dtype=np.int16)
