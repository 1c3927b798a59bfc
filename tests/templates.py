"""Chat templates of a folder (*.jinja) by fastllm and by transformers: python tests/templates.py DIR [-v]

Each is rendered for some conversations by both. Says how many give the same text or are refused by both, and of the
others what each of them wrote. -v: also why both refuse. Templates of others are not kept here; llama.cpp's
models/templates, axolotl's and trl's are collections of them.
"""

import sys
from collections import Counter
from pathlib import Path

from helpers.conversations import CONVERSATIONS, ours, theirs


def main():
    verbose, counts = "-v" in sys.argv, Counter()
    for path in sorted(Path(sys.argv[1]).glob("*.jinja")):
        source, outcomes = path.read_text(), Counter()
        for name, (messages, variables) in CONVERSATIONS.items():
            found, expected = ours(source, messages, variables), theirs(source, messages, variables)
            errors = isinstance(found, Exception), isinstance(expected, Exception)
            outcome = "both refuse" if all(errors) else "equal" if found == expected else "differ"
            outcomes[outcome] += 1
            if outcome == "differ" or (verbose and all(errors)):
                print(f"{path.name}, {name}: {outcome}\n  fastllm: {found!r:.300}\n  transformers: {expected!r:.300}")
        counts.update(outcomes)
        counts["templates that differ" if outcomes["differ"] else "templates that are equal"] += 1
    print(", ".join(f"{what}: {count}" for what, count in sorted(counts.items())))


if __name__ == "__main__":
    main()
