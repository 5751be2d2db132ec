"""No leak into prompts, no pickle, no network, no listening socket, and deletion that deletes."""

from __future__ import annotations

import ast
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch
from conftest import Malicious, build_policy

from rest_pg.backends.models import import_model
from rest_pg.prompts import compile_template

from .conftest import FULL, PROJECT, Ledger, Project, Run

SOURCES = sorted((PROJECT / "src").rglob("*.py"))
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


# what of transformers, sentence-transformers and vLLM runs a model maker's code, unless told not to
RUNS_CODE = re.compile(
    r"(\w+\.)*(Auto\w+\.(from_pretrained|from_config)|kind\.from_pretrained|get_class_from_dynamic_module"
    r"|SentenceTransformer|SparseEncoder|CrossEncoder|transformers\.pipeline|LLM|\w*EngineArgs)"
)


def may_run_code(called: str) -> bool:
    return RUNS_CODE.fullmatch(called) is not None


def test_calls_that_may_run_code_are_told_from_others() -> None:
    calls = ("AutoConfig.from_pretrained", "transformers.AutoTokenizer.from_pretrained")
    calls += ("AutoModelForCausalLM.from_config", "SentenceTransformer", "vllm.LLM", "EngineArgs")
    assert all(map(may_run_code, calls))
    others = ("LoraConfig.from_pretrained", "GenerationConfig.from_pretrained", "Pipeline")
    assert not any(map(may_run_code, others))


def test_notebooks_load_no_model_but_through_the_package() -> None:
    for path in sorted((PROJECT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                assert "from_pretrained" not in "".join(cell["source"]), path


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_our_code_loads_no_pickle_trusts_no_remote_code_and_compiles_no_open_template(
    path: Path,
) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not {alias.name.partition(".")[0] for alias in node.names} & PICKLES
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in PICKLES
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            named = {own.arg: ast.unparse(own.value) for own in node.keywords}
            assert named.get("trust_remote_code", "False") == "False"
            assert named.get("allow_pickle", "False") == "False"
            assert called not in ("torch.load", "yaml.load", "yaml.unsafe_load", "eval", "exec")
            assert not called.endswith(("read_pickle", "to_pickle"))
            assert called != "Template"
            if called.endswith("Environment"):
                assert called == "ImmutableSandboxedEnvironment"
                assert named["undefined"] == "StrictUndefined"
            if may_run_code(called):
                assert named.get("trust_remote_code") == "False", f"{path}:{node.lineno} {called}"
            if re.match(r"AutoModel\w*\.from_pretrained", called):
                assert named.get("use_safetensors") == "True" or "gguf_file" in named
            if called == "SentenceTransformer":
                assert "'use_safetensors': True" in named["model_kwargs"]


def test_the_configuration_names_no_pickle_and_trusts_no_remote_code() -> None:
    files = sorted((PROJECT / "conf").rglob("*.yml"))
    assert len(files) > 10
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert "trust_remote_code" not in text, path
        assert not re.search(r"type: *\S*pickle|backend: *\S*pickle", text, re.IGNORECASE), path


def test_a_malicious_pickle_is_not_run(tmp_path: Path, ledger: Ledger) -> None:
    policy = build_policy(tmp_path / "model")
    (policy.path / "model.safetensors").unlink()
    torch.save({"x": Malicious(tmp_path / "ran")}, policy.path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="can't be loaded as a causal language model"):
        import_model(str(policy.path))
    survived = not (tmp_path / "ran").exists()
    ledger.add("malicious pickle as a model", survived=survived)
    assert survived


def test_a_malicious_model_repository_is_not_run(tmp_path: Path, ledger: Ledger) -> None:
    policy = build_policy(tmp_path / "model")
    config = policy.path / "config.json"
    text = config.read_text().replace(
        '"model_type": "llama"',
        '"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", '
        '"AutoModelForCausalLM": "evil.Model"}',
    )
    config.write_text(text)
    (policy.path / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    with pytest.raises(ValueError, match="can't be loaded as a causal language model"):
        import_model(str(policy.path))
    survived = not (tmp_path / "ran").exists()
    ledger.add("malicious model repository", survived=survived)
    assert survived


def test_a_users_text_is_no_template(ledger: Ledger) -> None:
    render = compile_template("documents: {{ context }}")
    attack = "{{ ''.__class__.__mro__ }}{% for x in range(9) %}a{% endfor %}"
    survived = render(context=attack) == f"documents: {attack}"
    ledger.add("template in a user's text", survived=survived)
    assert survived
    with pytest.raises(Exception, match="unsafe"):
        compile_template("{{ ''.__class__.__mro__ }}")(context="")


@pytest.mark.slow
def test_no_reference_is_in_a_prompt_no_target_in_its_profile_and_no_user_in_two_splits(
    project: Project, finished: tuple[Run, dict[str, bytes]], ledger: Ledger
) -> None:
    def newest(pattern: str) -> list[dict]:
        (place,) = project.root.glob(pattern)
        text = (max(place.iterdir()) / place.name).read_text()
        return [json.loads(line) for line in text.splitlines()]

    examples = newest("data/03_primary/examples.jsonl")
    splits: dict[str, set[str]] = {}
    for example in examples:
        splits.setdefault(example["user_id"], set()).add(example["split"])
        texts = [document["text"] for document in example["profile"]]
        assert example["reference"] not in texts
    assert all(len(own) == 1 for own in splits.values())
    sent = newest("data/05_model_input/prompts.jsonl")
    for prompt in [*sent, *newest("data/05_model_input/direct_prompts.jsonl")]:
        survived = prompt["reference"] not in prompt["text"]
        ledger.add("reference looked for in a prompt", survived=survived)
        assert survived


@pytest.mark.slow
def test_a_local_run_opens_no_socket_but_mlflows_file(project: Project, ledger: Ledger) -> None:
    """The whole of it in a process whose sockets are refused."""
    program = (
        "import socket, sys\n"
        "calls = sys.argv[1]\n"
        "def refuse(what, *rest, **more):\n"  # in a file: libraries swallow what a thread of theirs raises
        "    with open(calls, 'a') as file:\n"
        "        print(what, rest, file=file)\n"
        "    raise OSError('refused')\n"
        "class Refused(socket.socket):\n"
        "    connect = connect_ex = listen = sendto = refuse\n"
        "    def bind(self, address):\n"
        "        if address == ('::1', 0):\n"  # urllib3 asks so, as it is imported, whether there is IPv6
        "            raise OSError('no IPv6')\n"
        "        refuse(self, address)\n"
        "socket.socket = Refused\n"
        "socket.getaddrinfo = socket.create_connection = refuse\n"
        "from kedro.framework.cli.cli import main\n"
        "sys.argv[1:] = ['run', '--env', 'trust']\n"
        "main()\n"
    )
    project.clean()
    calls = project.root / "calls"
    # none of the variables that keep libraries quiet: not pytest's and CI's either, which MLflow heeds
    bare = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", program, str(calls)],
        cwd=project.root,
        env=bare | {"PYTHONPATH": str(project.root / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    called = calls.read_text() if calls.exists() else ""
    survived = done.returncode == 0 and not called
    ledger.add("network refused during a run", survived=survived)
    assert survived, called + done.stdout[-2000:] + done.stderr[-2000:]


RECORDER = """
import json
from rest_pg.backends.resumable import ResumableGenerator

class Recorder(ResumableGenerator):
    def generate(self, policy, requests, *given, **named):
        with open("sent.jsonl", "a") as file:
            for request in requests:
                print(json.dumps({"id": request.example_id, "text": request.prompt}), file=file)
        return super().generate(policy, requests, *given, **named)
"""


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="a run; the test of the prompts' files is the short part")
def test_no_prompt_that_is_sent_holds_a_reference_or_another_users_text(
    project: Project, ledger: Ledger
) -> None:
    catalog = project.root / "conf" / "trust" / "catalog.yml"
    plain = catalog.read_text()
    recorder = project.root / "src" / "recorder.py"
    recorder.write_text(RECORDER)
    catalog.write_text(
        plain.replace("rest_pg.backends.resumable.ResumableGenerator", "recorder.Recorder")
    )
    project.clean()
    try:
        run = project.kedro()
        assert run.status == 0, run.text
        (place,) = project.root.glob("data/03_primary/examples.jsonl")
        lines = (max(place.iterdir()) / place.name).read_text().splitlines()
        examples = {e["example_id"]: e for e in map(json.loads, lines)}
        sent = [json.loads(x) for x in (project.root / "sent.jsonl").read_text().splitlines()]
        # for training, and by three systems of users whom none has seen
        n = Counter(example["split"] for example in examples.values())
        assert len(sent) == n["train"] + 3 * (n["validation"] + n["test"])
        for prompt in sent:
            own = examples[prompt["id"]]
            others = {
                document["text"]
                for example in examples.values()
                if example["user_id"] != own["user_id"]
                for document in example["profile"]
            }
            shown = any(d["text"] in prompt["text"] for d in own["profile"])
            leaked = own["reference"] in prompt["text"] or any(t in prompt["text"] for t in others)
            ledger.add("leak looked for in a prompt that was sent", survived=shown and not leaked)
            assert shown  # it would be seen if it were there
            assert not leaked
    finally:
        catalog.write_text(plain)
        recorder.unlink()
        project.clean()


SERVERS = {"ui": "5000", "viz": "4141", "serve": "5001"}


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="each server takes half a minute to start")
@pytest.mark.parametrize("target", SERVERS)
def test_servers_listen_on_this_machine_only(
    project: Project, finished: tuple[Run, dict[str, bytes]], ledger: Ledger, target: str
) -> None:
    if target == "serve":
        run = project.kedro("--only-missing-outputs")  # other tests clean up
        assert run.status == 0, run.text
        shipped = project.kedro("--pipelines", "ship")
        assert shipped.status == 0, shipped.text
    makefile = (PROJECT / "Makefile").read_text().replace("\\\n", " ")
    recipe = re.search(rf"^{target}: .*\n\t(.*)$", makefile, re.MULTILINE)
    assert recipe
    port = str(20_000 + os.getpid() % 20_000)
    binaries = str(Path(sys.executable).parent)
    command = recipe[1].replace("$(CURDIR)/$(BIN)", binaries).replace("$(BIN)", binaries)
    command = command.replace("$(or $(ALIAS),champion)", "champion").replace("$$", "$")
    process = subprocess.Popen(
        ["bash", "-c", f"exec env {command.replace(SERVERS[target], port)}"],
        cwd=project.root,
        env=os.environ | {"PYTHONPATH": str(project.root / "src")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        addresses: set[str] = set()
        for _ in range(180):
            time.sleep(0.5)
            addresses |= listening(process.pid)
            if addresses and answers(int(port)):
                break
        children = psutil.Process(process.pid).children(recursive=True)
        jobs = [c for c in children if "huey" in " ".join(c.cmdline())]
        survived = addresses == {"127.0.0.1"} and not jobs
        ledger.add("listening sockets of servers", survived=survived)
        assert addresses == {"127.0.0.1"}
        assert not jobs  # MLflow would run them in processes of their own
    finally:
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            child.terminate()
        process.wait(timeout=20)


def listening(pid: int) -> set[str]:
    """Where a process and its children listen."""
    root = psutil.Process(pid)
    found = set()
    for process in [root, *root.children(recursive=True)]:
        try:
            connections = process.net_connections(kind="inet")
        except psutil.NoSuchProcess:
            continue
        found |= {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
    return found


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
