"""A table of the benchmark, measured on both daemons in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from bench.peers import Peer


class Table:
    """Rows as they are measured: the medians of both daemons, and their ratio, ours to containerd's."""

    def __init__(self, both: list[Peer], only: str, rounds: int) -> None:
        self._both, self._only, self._rounds = both, only, rounds
        self.rows: list[dict[str, object]] = []
        print(f"{'':34}{both[0].name:>14}{both[1].name:>14}{'ratio':>9}   aim", flush=True)

    def wanted(self, name: str) -> bool:
        """Whether a row was asked for."""
        return self._only in name

    def measure(
        self, name: str, unit: str, work: Callable[[Peer], float], *, rounds: int | None = None, aim: str = ""
    ) -> None:
        """Run ``work`` on both in turn, ``rounds`` times, and print the row."""
        if not self.wanted(name):
            return
        figures: dict[str, list[float]] = {peer.name: [] for peer in self._both}
        for i in range(rounds or self._rounds):
            for peer in self._both if i % 2 == 0 else reversed(self._both):
                figures[peer.name].append(work(peer))
        self.add(name, unit, figures, aim)

    def alone(self, name: str, unit: str, ours: float, aim: str = "") -> None:
        """Print and keep a row that only we have."""
        print(f"{name + ', ' + unit:34}{'':14}{ours:14.2f}{'':9}   {aim}", flush=True)
        self.rows.append({"name": name, "unit": unit, "splitd": [ours], "aim": aim})

    def add(self, name: str, unit: str, figures: dict[str, list[float]], aim: str = "") -> None:
        """Print and keep a row of measured figures."""
        theirs, ours = (statistics.median(figures[peer.name]) for peer in self._both)
        print(f"{name + ', ' + unit:34}{theirs:14.2f}{ours:14.2f}{ours / theirs:9.2f}   {aim}", flush=True)
        self.rows.append(
            {
                "name": name,
                "unit": unit,
                "containerd": figures["containerd"],
                "splitd": figures["splitd"],
                "ratio": ours / theirs,
                "aim": aim,
            }
        )
