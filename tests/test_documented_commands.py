"""Every command of the documentation that runs Kedro is run, on a tiny policy and short texts.

Left to others are those that need an engine of their own (vLLM, Ray: `make test-vllm`, `make test-cluster`)
and those of `make`, which CI runs.
"""

import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
import yaml
from pipelines.test_longlamp import abstract
from test_docs import commands
from test_mail import write_mbox
from trust.conftest import WORDS, copy_project

ELSEWHERE = ("--env vllm", "--env servers", "--env cluster")
FIRST, LAST = "kedro run", "forget"

TEXT = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 48}
SMALL: dict[str, Any] = {
    "passages": {"min_words": 4, "max_words": 24},
    "examples": {
        "validation_share": 0.25,
        "test_share": 0.25,
        "examples_per_user": {"train": 2, "validation": 1, "test": 1},
        "max_users": 8,
        "max_profile_size": 2,
        "min_profile_size": 2,
        "max_reference_words": 24,
        "n_key_items": 1,
        "opening_words": 3,
    },
    "longlamp": {
        "max_examples": {"train": 4, "validation": 2, "test": 2},
        "max_document_words": 12,
        "max_reference_words": 24,
    },
    "retrieval": {"k": 1},
    "prompt": {"max_tokens": 1000},
    "response_format": {"reasoning": False},  # random weights keep to no format
    # enough for random weights to end a text now and then
    "sft": {"epochs": 6, "learning_rate": 1e-2, "max_tokens": 2000, "lora": None},
    "maximization": {"max_tokens": 2000, "preference": None},
    "selection": {"threshold": 0.0, "relative_to": "zero", "rejected_per_prompt": 0},
    "expectation": {"samples_per_prompt": 4, "decoding": TEXT},
    "evaluation": {"samples_per_prompt": 1, "decoding": TEXT, "n_bootstrap": 100},
    "calibration": {"passages_per_user": 2, "attacked_examples": 1, "n_bootstrap": 100},
    "doctor": {"examples": 8},
    "n_iterations": "${runtime_params:n_iterations, 1}",
}
"""In the place of the parameters of the same name, wherever they stand."""

DRIVER = """
import json, os, sys
import kedro.framework.cli.cli, kedro.framework.cli.project, kedro.framework.session, kedro_mlflow
import mlflow, torch, transformers, trl, peft, plotly.express
import rest_pg.doctor.examination, rest_pg.backends.sft_trainer, rest_pg.pipelines.evaluation.report
for line in sys.stdin:  # each command in a process of its own, that has imported everything
    arguments, log = json.loads(line)
    child = os.fork()
    if not child:
        with open(log, "w") as file:
            os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        sys.argv = ["kedro", *arguments]
        try:
            status = kedro.framework.cli.cli.main()
        except SystemExit as end:
            status = end.code
        except BaseException:
            import traceback
            traceback.print_exc()
            status = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(int(status or 0))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Shell:
    """A small project, and a process that runs one command after another in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        copy_project(root)
        for path in (root / "conf").glob("*/parameters*.yml"):
            shrink(path, SMALL | {"base_policy": {"source": str(root / "model")}})
        teacher = root / "conf" / "llm_teacher" / "catalog.yml"  # a token is a byte here
        teacher.write_text(teacher.read_text().replace("max_tokens: 640", "max_tokens: 4000"))
        self.files = write_inputs(root)
        self._driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root / "src"), "COLUMNS": "200"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, command: str) -> tuple[int, str]:
        for word, value in self.files.items():
            command = re.sub(word, value, command)
        if "…" in command:
            with sqlite3.connect(self.root / "mlflow.db") as runs:
                ((run_id,),) = runs.execute("SELECT run_uuid FROM runs LIMIT 1")
            command = command.replace("…", run_id)
        _, *arguments = shlex.split(command)
        log = self.root / "command.log"
        assert self._driver.stdin is not None
        assert self._driver.stdout is not None
        print(json.dumps([arguments, str(log)]), file=self._driver.stdin, flush=True)
        status = self._driver.stdout.readline()
        assert status, "the driver ended"
        return int(status), log.read_text()

    def close(self) -> None:
        assert self._driver.stdin is not None
        self._driver.stdin.close()
        self._driver.wait(30)


def shrink(path: Path, small: dict[str, Any]) -> None:
    values = yaml.safe_load(path.read_text())
    for name in small.keys() & values.keys():
        new, old = small[name], values[name]
        values[name] = new
        if isinstance(old, dict):
            values[name] = old | {key: value for key, value in new.items() if key in old}
    path.write_text(yaml.safe_dump(values, sort_keys=False))


def write_inputs(root: Path) -> dict[str, str]:
    """Write what a user would bring; return what stands for each placeholder of the documentation."""
    texts = [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(9)) for i in range(7)]
    with (root / "documents.jsonl").open("w") as file:
        for user in range(8):
            for day, text in enumerate(texts):
                record = {
                    "user": f"user{user}",
                    "text": f"{text} {user}",
                    "date": f"2001-01-1{day}",
                }
                file.write(json.dumps(record) + "\n")
    with (root / "requests.jsonl").open("w") as file:
        request = {"user": "new", "request": "Write of the harbour.", "documents": texts[:2]}
        file.write(json.dumps(request) + "\n")
    raw = root / "data" / "01_raw"  # where requests are looked for if no file is named
    raw.mkdir(parents=True)
    shutil.copy(root / "requests.jsonl", raw)
    letters = []
    for user in range(8):
        for day, text in enumerate(texts):
            letter = EmailMessage()
            letter["From"] = f"user{user}@example.org"
            letter["Subject"] = "The harbour"
            letter["Date"] = f"1{day} Jan 2001 10:00:00 +0000"
            letter["Message-ID"] = f"<{user}-{day}@example.org>"
            letter.set_content(f"{text} {user}")
            letters.append(letter)
    write_mbox(root / "own.mbox", *letters)
    (root / "longlamp").mkdir()
    for split, users in (("train", "abc"), ("val", "de"), ("test", "fg")):
        lines = [json.dumps(longer_abstract(user, n)) for user in users for n in range(2)]
        (root / "longlamp" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return {
        r"requests=FILE": f"requests={root / 'requests.jsonl'}",
        r"documents=FILE": f"documents={root / 'documents.jsonl'}",
        r"own\.mbox": str(root / "own.mbox"),
        r"DIRECTORY": str(root / "model"),
        r"DIR\b": str(root / "longlamp"),
        r"forget (ID|USER)\b": "forget user1",
        "world_size=8": "world_size=2",
        "batch_size=64": "batch_size=2",
    }


def longer_abstract(user: str, number: int) -> dict[str, Any]:
    """A record of LongLaMP's abstracts whose profile's texts are all different."""
    record = abstract(user, number)
    for document in record["profile"]:
        document["abstract"] += f" by {user}"
    return record


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    shell = Shell(tmp_path_factory.mktemp("documented") / "project")
    status, log = shell.run(FIRST)
    assert status == 0, textwrap.shorten(log[-3000:], 3000)
    yield shell
    shell.close()


def documented() -> list[str]:
    """Commands in an order in which they can run: who forgets a user comes last."""
    names = ("kedro run", "kedro doctor", "kedro forget")
    found = {command for name in names for _, command in commands(name)}
    return sorted(
        (c for c in found if not any(word in c for word in ELSEWHERE)),
        key=lambda command: (LAST in command, command),
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", documented())
def test_a_documented_command_runs(shell: Shell, command: str) -> None:
    status, log = shell.run(command)
    assert status == 0, log[-3000:]
