"""What a rule is: an algorithm that writes token sequences, and an independent reader of them."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

from vitwarm.errors import RuleError, nearest
from vitwarm.seeding import hash_bits


class Rule(ABC):
    """Generates sequences of ids in [0, n_ids); the mask id is n_ids.

    Row i is a pure function of (parameters, seed, i, n_tokens): the same in any batch, on any
    worker, rank or machine. Subclasses take keyword parameters alone, keep each under its own name,
    and are final.
    """

    name: ClassVar[str]
    n_ids: int
    pad_id: int | None = None
    hide_share: float = 0.5

    def sample(
        self,
        seed: int,
        start: int,
        n_sequences: int,
        n_tokens: int,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Returns the rows [start, start + n_sequences) of a seed's stream.

        Args:
            seed: any integer; held-out sequences take `seeding.seed_of(seed, "held-out")`.
            start: number of the first row, at least 0.
            n_sequences: rows.
            n_tokens: tokens per row; a length that `fit_length` would change is refused.
            out: int16 [n_sequences, n_tokens] to fill, C-contiguous.
        Returns: int16 [n_sequences, n_tokens].
        Raises: RuleError: a length the language has no words of.
        """
        self.check_length(n_tokens)
        if out is None:
            out = np.empty((n_sequences, n_tokens), dtype=np.int16)
        self._fill(out, self.key(seed), start)
        return out

    def key(self, seed: int, *path: str | int) -> np.uint64:
        """Returns the key of a draw of this rule: seed, name and parameters, and the path."""
        return np.uint64(hash_bits(seed, "rules", self.name, repr(self.params()), *path))

    def check_length(self, n_tokens: int) -> None:
        """Raises RuleError for a length that the language has no words of."""
        if n_tokens < 1 or self.fit_length(n_tokens) != n_tokens:
            raise RuleError(
                f"n_tokens is {n_tokens}; {self.name} has no sequences of that length. "
                f"Use {max(self.fit_length(n_tokens), self.fit_length(n_tokens + 1))}."
            )

    def fit_length(self, n_tokens: int) -> int:
        """Returns the largest length up to `n_tokens` that the rule can make."""
        return n_tokens

    @abstractmethod
    def _fill(self, out: np.ndarray, key: np.uint64, start: int) -> None:
        """Writes the rows from `start` on into `out`."""

    @abstractmethod
    def accepts(self, ids: np.ndarray) -> np.ndarray:
        """Says for each row [B, T] whether it belongs to the language; bool [B]."""

    @abstractmethod
    def maskable(self, ids: np.ndarray) -> np.ndarray:
        """Says which tokens may be hidden; bool [B, T]."""

    def accepts_any_order(self, ids: np.ndarray) -> np.ndarray:
        """Says for each row whether some order of its tokens could belong; bool [B].

        Here only that all tokens are ids of the rule; rules that know more say more.
        """
        return np.asarray(((ids >= 0) & (ids < self.n_ids)).all(axis=1))

    def params(self) -> dict[str, Any]:
        """Returns every parameter by name, as plain JSON values."""
        names = inspect.signature(type(self)).parameters
        return {name: _plain(getattr(self, name)) for name in names}


def _plain(value: Any) -> Any:
    if isinstance(value, Rule):
        return {"name": value.name, "params": value.params()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def build(cls: type[Rule], params: dict[str, Any]) -> Rule:
    """Makes a rule, refusing parameters that its signature does not have."""
    known = inspect.signature(cls).parameters
    for name in params:
        if name not in known:
            raise RuleError(
                f"rule.params has {name!r}, which {cls.name} does not take.{nearest(name, known)} "
                f"It takes {', '.join(known)}."
            )
    missing = [n for n, p in known.items() if p.default is p.empty and n not in params]
    if missing:
        raise RuleError(f"rule.params lacks {missing[0]!r}, which {cls.name} needs.")
    return cls(**params)


def check_int(rule: str, name: str, value: Any, low: int, high: int) -> int:
    """Returns an integer parameter, or refuses it. Raises: RuleError: with its range."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RuleError(
            f"rule.params.{name} is {value!r}; {rule} takes an integer from {low} to {high}."
        )
    return value


def check_share(rule: str, name: str, value: Any, *, open_ends: bool = True) -> float:
    """Returns a share in (0, 1), or [0, 1] without open ends. Raises: RuleError: with its range."""
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not (0 < value < 1 if open_ends else 0 <= value <= 1):
        ends = "above 0 and below 1" if open_ends else "from 0 to 1"
        raise RuleError(f"rule.params.{name} is {value!r}; {rule} takes a number {ends}.")
    return float(value)


def check_choice(rule: str, name: str, value: Any, known: tuple[str, ...]) -> str:
    """Returns one of the known words. Raises: RuleError: with the nearest and the list."""
    if value not in known:
        raise RuleError(
            f"rule.params.{name} is {value!r}; {rule} takes {' or '.join(known)}."
            f"{nearest(str(value), known)}"
        )
    return str(value)
