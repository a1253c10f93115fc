"""The bar that evaluations show on stderr while they run."""

from __future__ import annotations

from collections.abc import Iterator


def run_all(steps: Iterator[str], total: int) -> bool:
    """Takes all steps, each of which tells its name. False when Ctrl-C ended that."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=total)
        try:
            for name in steps:
                progress.update(bar, description=name)
                progress.advance(bar)
        except KeyboardInterrupt:
            return False
    return True
