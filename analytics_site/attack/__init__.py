"""Attacks on an installation, over HTTP alone, as a member of one org who wants what is another's.

One module is one kind of attack: a function `attack(trial)` that calls `trial.attempt` for each thing it tries. To add a
kind, write such a module and name it in `KINDS`; to add an attempt, add a line to the module it belongs to. `trial.a` attacks,
`trial.b` is attacked; canaries that only B can know are looked for in every answer without a further word.
"""

from collections.abc import Callable, Mapping

from . import (
    assignment,
    browsers,
    exhaustion,
    guessing,
    ids,
    injection,
    links,
    pages,
    reading,
    sql,
    tokens,
    tricks,
    writing,
)
from .trial import Trial

KINDS: Mapping[str, Callable[[Trial], None]] = {
    module.__name__.rpartition(".")[2]: module.attack
    for module in (
        reading,
        writing,
        ids,
        pages,
        links,
        tricks,
        tokens,
        assignment,
        sql,
        injection,
        browsers,
        exhaustion,
        guessing,
    )
}
