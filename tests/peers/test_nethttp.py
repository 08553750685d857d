"""This machine's Go reads the answers in tests/answers.py as is written there, and so as we do
(tests/service/images/registry/test_http.py).
"""

from __future__ import annotations

import base64
import json
import subprocess

from tests.answers import CASES
from tests.interop.programs import go_program


def test_go_takes_and_refuses_what_we_do() -> None:
    """Status and body of each answer, or a refusal, are compared."""
    questions = "\n".join(
        json.dumps({"method": case.method, "raw": base64.b64encode(case.raw).decode()}) for case in CASES
    )
    done = subprocess.run(
        [go_program("nethttp")], input=questions, capture_output=True, text=True, timeout=100, check=True
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    found = {
        case.name: None if answer["error"] else (answer["status"], base64.b64decode(answer["body"] or ""))
        for case, answer in zip(CASES, answers, strict=True)
    }
    assert found == {case.name: None if case.body is None else (case.status, case.body) for case in CASES}
