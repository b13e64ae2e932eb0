"""The end of a run: the auditor looks at what is stored, and what was counted is printed."""

import json
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from tests.chaos.clients import Load
from tests.chaos.deployment import Deployment
from tests.tools import audit


class Measured(NamedTuple):
    """What a run has measured itself."""

    faults: Counter[str]
    answered_s: float
    orphaned_s: float


async def report(deployment: Deployment, load: Load, seed: int, measured: Measured) -> int:
    """Audit what is stored, and print what was counted and every violation; the exit code."""
    evidence = await audit.read(deployment.url)
    answers = _write_answers(load, deployment.folder / "answers.jsonl")
    violations = deployment.violations + audit.audit(
        *evidence, answers=answers, quiet=True, all_ended=True, restores=deployment.restores
    )
    print(f"seed {seed}: {sum(measured.faults.values())} faults: {dict(measured.faults)}")
    claims = sum(message.subject.startswith("jido.fence.") for message in evidence.messages)
    print(f"sessions {load.wanted}, messages {len(evidence.messages)}, of them {claims} claims")
    lost = sum(restore.took(answer.at) for answer in answers for restore in deployment.restores)
    print(f"restores {[(r.copied, r.back) for r in deployment.restores]}, answers that they excuse: {lost}")
    print(f"answers {dict(Counter(answer['code'] or 'ok' for answer in load.answers))}")
    ends = _orphan_ends(deployment, evidence.messages)
    print(f"owner_lost ends {len(ends)}; after the kill, s: p50 {_at(ends, 0.5):.1f}, max {_at(ends, 1):.1f}")
    print(f"the last orphan's end, beyond the lease time: {measured.orphaned_s - deployment.lease_s:.1f} s (goal: 5)")
    print(f"first answer {measured.answered_s:.2f} s after the server came back from 2 s away")
    for violation in violations[:50]:
        print(f"VIOLATION {violation}")
    print(f"violations: {len(violations)}")
    return 1 if violations else 0


def _write_answers(load: Load, file: Path) -> list[audit.Answer]:
    """As the auditor reads them."""
    file.write_text("".join(json.dumps(answer, default=str) + "\n" for answer in load.answers))
    return audit.read_answers(file)


def _orphan_ends(deployment: Deployment, messages: list[audit.Message]) -> list[float]:
    """Seconds from the last death of a manager before it to each `owner_lost`."""
    kills = sorted(death for manager in deployment.managers for death in manager.deaths)
    ends = []
    for message in messages:
        if b'"owner_lost"' in message.data and b'"session_terminated"' in message.data:
            at = msgspec.json.decode(message.data, type=_Ended).updated_at.timestamp()
            before = [kill for kill in kills if kill <= at]
            if before:
                ends.append(at - before[-1])
    return sorted(ends)


def _at(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))] if values else 0.0


class _Ended(msgspec.Struct):
    updated_at: datetime
