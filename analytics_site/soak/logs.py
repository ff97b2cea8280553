"""What the processes said that a person would have to look at."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

LEVELS = ("error", "critical")
NAME_LENGTH = 80  # characters; what libraries say holds addresses and counts


def events_of(lines: Iterable[str], levels: tuple[str, ...] = LEVELS) -> Counter[str]:
    """How many lines of some levels, by event. What is not JSON nobody of ours wrote: it counts as its first words."""
    found: Counter[str] = Counter()
    for line in filter(None, (line.strip() for line in lines)):
        try:
            said = json.loads(line)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            if levels == LEVELS:
                found[f"not JSON: {line[:NAME_LENGTH]}"] += 1
        elif said.get("level") in levels:
            found[str(said.get("event"))[:NAME_LENGTH]] += 1
    return found


def summarise(folder: Path, levels: tuple[str, ...] = LEVELS) -> dict[str, dict[str, int]]:
    """By process, then by event."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for file in sorted(folder.glob("*.log")):
        with file.open(errors="replace") as lines:
            if counted := events_of(lines, levels):
                found[file.stem] = dict(counted.most_common())
    return dict(found)
