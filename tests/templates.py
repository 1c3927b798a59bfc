"""A script, no test: compares fastllm's chat templates with transformers' for the templates (*.jinja) of a folder.

    python tests/templates.py DIR [-v]

Renders each template for the conversations of helpers/conversations.py with both. Prints how many give equal texts, how
many both refuse, and both texts where they differ; with -v also why both refuse. No published templates are kept here:
collections are llama.cpp's models/templates, axolotl's and trl's.
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
