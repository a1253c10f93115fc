"""What was measured, answer by answer, and the tables made of it; measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass, field
from typing import Any

from deltamem_cli.evaluation.shares import Share

NONE, ZERO, DONOR, MEMORY, REPLAY, CONTEXT = "none", "zero", "donor", "memory", "replay", "context"
BOTH = "context and memory"  # of public benchmarks alone
SEEN, NEW_KINDS = "seen", "new_kinds"  # of cases of their own
MODES = (NONE, ZERO, DONOR, MEMORY, REPLAY, CONTEXT, SEEN, NEW_KINDS)
NAMES = {
    NONE: "no memory",
    ZERO: "empty memory (zero)",
    DONOR: "foreign memory (donor)",
    MEMORY: "memory",
    REPLAY: "memory + last turns",
    CONTEXT: "all turns, no memory",
    BOTH: "all turns and memory",
    SEEN: "memory, trained values",
    NEW_KINDS: "memory, kinds not trained",
}
OWN = (MEMORY, REPLAY, CONTEXT)  # asked in the conversation's own sessions

FACTS, DISTANCE, BEFORE, AFTER = "facts", "distance", "before update", "after update"


@dataclass(frozen=True)
class RecordedAnswer:
    """One answer. facts: how many were told; distance: tokens of unrelated talk between telling and asking."""

    test: str
    mode: str
    facts: int
    distance: int
    kind: str
    question: str
    value: str
    answer: str
    recalled: bool
    tokens: int


# by what the row is about, then by mode
Table = dict[Any, dict[str, list[RecordedAnswer]]]


@dataclass
class RecallReport:
    """Filled while it is measured, so that what there is can be shown at any time."""

    records: list[RecordedAnswer] = field(default_factory=list)
    stock_perplexity: float | None = None
    perplexities: list[float] = field(default_factory=list)  # of filled memories

    def table(self, row: Callable[[RecordedAnswer], Hashable | None]) -> Table:
        """Records by what `row` says of them (None: none of this table), then by mode, both in order."""
        found: Table = {}
        for record in self.records:
            if (key := row(record)) is not None:
                found.setdefault(key, {}).setdefault(record.mode, []).append(record)
        return {key: {m: found[key][m] for m in MODES if m in found[key]} for key in sorted(found)}

    @property
    def facts(self) -> Table:
        """Answers by mode and by number of facts told."""
        return self.table(lambda r: r.facts if r.test == FACTS else None)

    @property
    def distances(self) -> Table:
        """Distance 0 is what was asked of the same conversations before the talk."""
        first = min((r.facts for r in self.records if r.test == DISTANCE), default=None)
        return self.table(
            lambda r: r.distance if r.test in (FACTS, DISTANCE) and r.facts == first and r.mode in OWN else None
        )

    @property
    def kinds(self) -> Table:
        """Answers by mode and by kind of fact."""
        return self.table(
            lambda r: r.kind if r.test == FACTS and r.mode in (MEMORY, SEEN, NEW_KINDS, CONTEXT) else None
        )

    @property
    def update(self) -> tuple[Share, Share]:
        """Of the cases: the old value was recalled before the update; of those: the new one was after it."""
        before, after = (Share.of(r.recalled for r in self.records if r.test == test) for test in (BEFORE, AFTER))
        return before, after

    def relative(self, distance: int) -> float | None:
        """Recall over `distance` as a part of what it is without; None where nothing was recalled."""
        table = self.distances
        own, far = (share(table.get(d, {}).get(MEMORY, [])) for d in (0, distance))
        return far.value / own.value if own.hits and far.n else None

    @property
    def perplexity_ratio(self) -> float | None:
        """Mean over the filled memories, against the model without memory."""
        if self.stock_perplexity is None or not self.perplexities:
            return None
        return sum(self.perplexities) / len(self.perplexities) / self.stock_perplexity


def share(records: list[RecordedAnswer]) -> Share:
    """How many of the answers recalled the value."""
    return Share.of(r.recalled for r in records)


def mean_tokens(records: list[RecordedAnswer]) -> float:
    """Tokens processed per answer, on average. `records` must not be empty."""
    return sum(r.tokens for r in records) / len(records)


def document(report: RecallReport) -> dict[str, Any]:
    """Everything as one JSON document. `cases`, `intervals` and `tokens` are laid out as the tables they belong to."""
    tables: dict[str, Table] = {"facts": report.facts, "distance": report.distances, "kinds": report.kinds}

    def each(of: Callable[[list[RecordedAnswer]], Any]) -> dict[str, Any]:
        return {
            name: {str(key): {mode: of(records) for mode, records in row.items()} for key, row in table.items()}
            for name, table in tables.items()
        }

    before, after = report.update
    intervals = each(lambda records: [round(end, 4) for end in share(records).interval])
    return {
        **each(lambda records: round(share(records).value, 4)),
        "relative": {str(d): _rounded(report.relative(d)) for d in report.distances if d},
        "update": {"before": round(before.value, 4), "after": round(after.value, 4)},
        "perplexity": {
            "stock": _rounded(report.stock_perplexity),
            "memory": [round(p, 4) for p in report.perplexities],
            "ratio": _rounded(report.perplexity_ratio),
        },
        "cases": {**each(len), "update": {"before": before.n, "after": after.n}},
        "intervals": {
            **intervals,
            "update": {
                name: [round(end, 4) for end in s.interval] for name, s in (("before", before), ("after", after))
            },
        },
        "tokens": each(lambda records: round(mean_tokens(records), 1)),
        "answers": [asdict(record) for record in report.records],
    }


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 4)
