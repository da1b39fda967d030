"""Draw the comparison: python benchmarks/plot.py FILE < results as JSON."""

from __future__ import annotations

import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TITLES = {"talk": "no history", "history": "100 messages of history"}
NAMES = {"magpie": "Magpie\n(durable)", "aiogram": "aiogram", "ptb": "python-\ntelegram-bot", "bolt": "slack_bolt"}
results = json.load(sys.stdin)
figure, rows = plt.subplots(1, 2, figsize=(10, 4))
for axis, column, title in zip(
    rows, ("rate", "cpu_us"), ("messages a second, one core", "CPU a message (µs)"), strict=True
):
    for number, (name, found) in enumerate(results.items()):
        bots = list(found)
        places = [n + (number - 0.5) * 0.38 for n in range(len(bots))]
        bars = axis.bar(places, [found[bot][column] for bot in bots], 0.36, label=TITLES[name])
        axis.bar_label(bars, fmt="%.0f", fontsize=8)
    axis.set_xticks(range(len(bots)), [NAMES[bot] for bot in bots], fontsize=9)
    axis.set_title(title)
    axis.spines[["top", "right"]].set_visible(False)
rows[0].legend(frameon=False)
figure.tight_layout()
figure.savefig(sys.argv[1], dpi=110)
