"""What grouping rows by length spares: positions of padded batches over tokens, drawn in any order and grouped.

    python benchmarks/padding.py [--batch-size 8] [--max-length 256]

Over one epoch of packaged data, as SmolLM2's tokenizer counts them; nothing is trained.
"""

from __future__ import annotations

import argparse

from inoculate.data.mix import Mix, Part
from inoculate.models.load import load_tokenizer

DATA = ("asdiv", "fiqa", "vader-movies")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=256)
    given = parser.parse_args()
    tokenizer = load_tokenizer("asset:smollm2")
    for source in DATA:
        mix = Mix(roles={"align": (Part(source=source),)}, max_length=given.max_length)
        shares = []
        for sampling in ("random", "group_by_length"):
            feed = mix.feeds(tokenizer, given.batch_size, 0, "padded", sampling=sampling)["align"]
            steps = [[len(row.ids) for row in feed.rows_at(step)] for step in range(feed.order.steps_per_epoch)]
            shares.append(sum(max(rows) * len(rows) for rows in steps) / sum(map(sum, steps)))
        print(f"{source}, {len(feed)} rows: {shares[0]:.3f} positions per token, grouped by length {shares[1]:.3f}")


if __name__ == "__main__":
    main()
