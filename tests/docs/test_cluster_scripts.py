"""The scripts of docs/tutorials/cluster.md: what can be known of them without a cluster."""

from __future__ import annotations

import json
import re
import shlex
import stat
import subprocess

import pytest
import yaml
from support.paths import ROOT
from torch.distributed.run import get_args_parser

from harness.cli.main import _build_parser
from harness.distributed import launch

PAGE = (ROOT / "docs/tutorials/cluster.md").read_text(encoding="utf-8")

SRUN = """#!/bin/bash
highest=0
for rank in 0 1 2 3; do
  SLURM_PROCID=$rank SLURM_LOCALID=$((rank % 2)) "$@"
  code=$?
  if [ $code -gt $highest ]; then highest=$code; fi
done
exit $highest
"""
"""Runs the tasks of two nodes one after the other."""

HARNESS = """#!/usr/bin/env python3
import json, os, pathlib, sys
names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
with open("calls.jsonl", "a") as calls:
    calls.write(json.dumps([sys.argv[1:], {name: os.environ[name] for name in names}]) + "\\n")
folder = pathlib.Path("runs/7/my-1")
is_new = "--resume" not in sys.argv
folder.mkdir(parents=True, exist_ok=True)
(folder / "spec.json").touch()
sys.exit(75 if is_new and os.environ["RANK"] == "0" else 0)
"""
"""Is interrupted by a signal the first time."""

SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo node1; echo node2; else echo "$@" >> requeued; fi
"""


def blocks(language):
    """The code blocks of the page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def script():
    (text,) = [block for block in blocks("bash") if block.startswith("#!")]
    return text


@pytest.fixture
def submit(script, tmp_path):
    """A function that runs the script as SLURM would, and returns its exit code and the calls of harness."""
    (tmp_path / "job.sh").write_text(script)
    for name, text in {"srun": SRUN, "harness": HARNESS, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(stat.S_IRWXU)
    job = {
        "SLURM_JOB_ID": "7",
        "SLURM_NTASKS": "4",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_JOB_NODELIST": "node[1-2]",
    }

    def run(*words):
        (tmp_path / "calls.jsonl").unlink(missing_ok=True)
        environment = {**job, "PATH": f"{tmp_path}:/usr/local/bin:/usr/bin:/bin"}
        ended = subprocess.run(["bash", "job.sh", *words], cwd=tmp_path, env=environment, check=False, timeout=60)
        return ended.returncode, [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]

    return run


def test_the_slurm_script_has_no_syntax_error(script):
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert "--signal=USR1@300" in script, "all processes receive it, not only the script"


def test_the_slurm_script_requeues_an_interrupted_run_and_resumes_it(submit, tmp_path):
    code, calls = submit("my.json")
    assert code == 75
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    for words, _ in calls:
        assert words == ["run", "my.json", "--set", "output=runs/7"]
        assert _build_parser(words).parse_args(words).overrides == ["output=runs/7"]
    for rank, (_, environment) in enumerate(calls):
        assert (launch.get_world_size(environment), launch.get_rank(environment)) == (4, rank)
        assert (launch.get_local_world_size(environment), launch.get_local_rank(environment)) == (2, rank % 2)
        assert environment["MASTER_ADDR"] == "node1"
    code, calls = submit("my.json")
    assert code == 0
    assert (tmp_path / "requeued").read_text() == "requeue 7\n", "not once more"
    for words, _ in calls:
        assert words == ["run", "--resume", "runs/7/my-1"]
        assert _build_parser(words).parse_args(words).resume == "runs/7/my-1"


def test_a_failed_run_is_resumed_by_its_folder(submit):
    code, calls = submit("--resume", "runs/6/my-1")
    assert code == 0
    for words, _ in calls:
        assert words == ["run", "--resume", "runs/6/my-1"]
        assert _build_parser(words).parse_args(words).overrides == []


def torchrun_commands():
    """The words after `torchrun` of the command on the page, and of the job."""
    (line,) = [
        block.replace("\\\n", " ").removeprefix("torchrun ") for block in blocks("text") if block.startswith("torchrun")
    ]
    (manifest,) = blocks("yaml")
    _, job = yaml.safe_load_all(manifest)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"][0] == "torchrun"
    return [shlex.split(line), [*container["command"][1:], *container["args"]]]


@pytest.mark.parametrize("number", [0, 1])
def test_the_commands_of_torchrun_are_understood(number):
    arguments = get_args_parser().parse_args(
        [word.replace("$(JOB_COMPLETION_INDEX)", "1") for word in torchrun_commands()[number]]
    )
    assert (arguments.nnodes, arguments.nproc_per_node) == ("2", "8")
    assert arguments.module
    assert arguments.training_script == "harness"
    assert _build_parser().parse_args(arguments.training_script_args).spec == "my.json"


def test_the_kubernetes_job_fits_together():
    (manifest,) = blocks("yaml")
    service, job = yaml.safe_load_all(manifest)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    name = job["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert f"--master-addr={name}-0.{pod['subdomain']}" in container["args"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    assert f"--nproc-per-node={container['resources']['limits']['nvidia.com/gpu']}" in container["command"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    (timeout,) = [word.partition("=")[2] for word in container["args"] if word.startswith("--shutdown-timeout")]
    assert int(timeout) < pod["terminationGracePeriodSeconds"]
