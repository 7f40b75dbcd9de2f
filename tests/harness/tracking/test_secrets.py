"""A tracking store contains no secret: not in parameters, tags, logs, datasets or artifacts."""

from __future__ import annotations

import json
import logging
import sqlite3
from types import SimpleNamespace

import pytest
from support import example_run

from harness.tracking.tracker import MlflowTracker

SECRETS = {
    "uri": "uri-pass-0001",
    "api key": "api-key-0002",
    "storage": "storage-0003",
    "signature": "signature-0004",
    "hub token": "hf_abcdefghijklmnop0005",
    "environment": "environment-0006",
    "header": "header-0007",
    "key id": "key-id-0008",
    "in a list": "list-0009",
    "private": "private-0010",
    "in a name": "sk-abcdefghijklmnopq-0011",
}


def spec_with_secrets():
    """Return a spec with a secret at each key that may contain one."""
    return {
        "track": {"mlflow": {"uri": f"https://me:{SECRETS['uri']}@track.example"}},
        "model": {"path": f"models/{SECRETS['environment']}"},
        "description": f"made with {SECRETS['hub token']}",
        "sources": {
            "helpdesk": {"jsonl": {"path": f"https://x.example/a.jsonl?X-Amz-Signature={SECRETS['signature']}"}},
            SECRETS["in a name"]: {"jsonl": {"path": "b.jsonl"}},
            "general": {
                "jsonl": {
                    "path": ["a.jsonl", f"s3://me:{SECRETS['in a list']}@bucket/a.jsonl"],
                    "storage": {"anything": SECRETS["storage"], "key": SECRETS["key id"], "anon": False},
                }
            },
        },
        "evaluate": {
            "helpdesk": {
                "server": {
                    "url": "https://llm.example",
                    "api_key": SECRETS["api key"],
                    "headers": {"X-Team": SECRETS["header"]},
                    "extra": {"private_key": SECRETS["private"]},
                }
            }
        },
    }


@pytest.fixture(scope="module")
def store_with_secrets(tmp_path_factory):
    """A store with a failed and a successful run whose settings, files and messages all contain secrets."""
    folder = tmp_path_factory.mktemp("secrets")
    text = f"failed at https://me:{SECRETS['uri']}@track.example: " + " ".join(SECRETS.values())
    warnings, lines = [], []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", SECRETS["environment"])
        for name in ("PWD", "OLDPWD", "CACHE_SECRET"):  # a shell sets the first two
            patch.setenv(name, str(folder))
        patch.setenv("NAME_SECRET", SECRETS["in a name"])
        for name, fail in (("good", False), ("bad", True)):
            run_folder = folder / "runs" / name / SECRETS["in a name"]
            (run_folder / "predictions").mkdir(parents=True)
            (run_folder / "plots").mkdir()
            for file in ("data.json", "report.html", "plots/loss.svg", "predictions/general-stage0.jsonl",
                         f"predictions/{SECRETS['in a name']}-stage0.jsonl"):  # fmt: skip
                (run_folder / file).write_text(json.dumps({"text": text}) + "\n")
            plan = example_run.made_plan(
                sources={name: next(iter(source.items())) for name, source in spec_with_secrets()["sources"].items()}
            )
            tracker = MlflowTracker(
                {"enabled": True, "experiment": SECRETS["in a name"], "uri": f"sqlite:///{folder}/store/mlflow.db"},
                "x",
                warnings.append,
            )
            storage = spec_with_secrets()["sources"]["general"]["jsonl"]["storage"]
            changes = {"sources.general.jsonl.storage": storage, "hub.token": SECRETS["hub token"]}
            example_run.feed(
                tracker,
                run_folder,
                settings=spec_with_secrets(),
                plan=plan,
                fail=fail,
                error=text,
                steps=2,
                started={
                    "environment": {"model": {"path": text}, "argv": [text]},
                    "arm": {"name": "one", "changes": changes},
                },
            )
    logging.getLogger().removeHandler(handler)
    return SimpleNamespace(folder=folder, warnings=warnings, lines=lines)


@pytest.mark.slow
def test_all_parameters_tags_and_artifacts_are_stored(store_with_secrets):
    assert store_with_secrets.warnings == []
    with sqlite3.connect(store_with_secrets.folder / "store" / "mlflow.db") as database:
        params = dict(database.execute("select key, value from params"))
        tags = dict(database.execute("select key, value from tags"))
    assert params["sources.general.jsonl.storage.anything"] == "(left out)"
    assert params["sources.general.jsonl.storage.anon"] == "false"
    assert params["track.mlflow.uri"] == "https://track.example"
    assert params["arm/hub.token"] == "(left out)"
    assert tags["error"].startswith("failed at https://track.example: (left out)")
    assert tags["model"] == "models/(left out)", "tags are redacted when the run is created"
    assert tags["harness.folder"].startswith(str(store_with_secrets.folder)), "a folder is not a secret"
    names = {file.name for file in (store_with_secrets.folder / "store").rglob("*")}
    assert {"report.html", "loss.svg", "data.json", "spec.json", "helpdesk.json", "general-stage0.jsonl"} <= names
    assert "(left out)-stage0.jsonl" in names


@pytest.mark.parametrize("secret_name", SECRETS)
def test_no_secret_is_in_the_store_or_in_a_log(store_with_secrets, secret_name):
    secret = SECRETS[secret_name]
    files = [file for file in (store_with_secrets.folder / "store").rglob("*") if file.is_file()]
    assert len(files) > 10
    assert [file.name for file in files if secret.encode() in file.read_bytes()] == []
    assert not [line for line in store_with_secrets.lines if secret in line]
    for run in ("good", "bad"):
        (info,) = (store_with_secrets.folder / "runs" / run).glob("*/mlflow.json")
        assert secret not in info.read_text()
