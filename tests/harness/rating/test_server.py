"""The interface of the page: access, blindness, decisions on disk, several raters and tabs, hostile answers."""

from __future__ import annotations

import json
import re
import socket

import pytest
from starlette.testclient import TestClient
from support import run_folders

from harness.rating.server import STATIC_FOLDER, Access, create_app
from harness.rating.session import RatingSession

TOKEN = "a-token"


class Page:
    """What the page of one rater does."""

    def __init__(self, app, rater, token=TOKEN, host="127.0.0.1:8000"):
        self.client = TestClient(app, base_url=f"http://{host}")
        self.headers = {"Authorization": f"Bearer {token}", "X-Rater": rater, "Origin": f"http://{host}"}

    def get(self, path="/api/state", **headers):
        return self.client.get(path, headers={**self.headers, **headers})

    def post(self, action, headers=(), **body):
        return self.client.post(f"/api/{action}", headers={**self.headers, **dict(headers)}, json=body)

    @property
    def state(self):
        response = self.get()
        assert response.status_code == 200, response.text
        return response.json()

    def rate_item(self, value=4):
        """Rate the current item on every dimension."""
        state = self.state
        for dimension in state["task"]["dimensions"]:
            position = state["item"]["position"]
            assert self.post("rate", position=position, dimension=dimension["key"], value=value).status_code == 200


def open_page(task, rater="alice", access=None, finished=None):
    """Start a server over the task's files, as after a restart."""
    session = RatingSession(task, (lambda summary: None) if finished is None else finished.append)
    return Page(create_app(session, access or Access(TOKEN)), rater)


@pytest.mark.slow
def test_ten_items_are_rated_with_reloads_a_restart_and_a_second_rater(scores_task):
    alice, finished = open_page(scores_task), []
    total = alice.state["total"]
    assert total == 13  # 12 items, and one of them again
    for _ in range(5):
        alice.rate_item(4)
    before = alice.state
    assert before["done"] == 5
    alice = open_page(scores_task, finished=finished)  # the server was killed
    assert alice.state == before
    bob = Page(alice.client.app, "bob")
    assert bob.state["done"] == 0
    bob.rate_item(2)
    while alice.state["item"]:
        alice.rate_item(5)
    state = alice.post("finish").json()
    assert state["finished"]
    assert state["results"]["models"] == ["first"]
    assert state["results"]["dimensions"][0]["mean"]["n"] == 12
    assert [(rater.name, rater.rated) for rater in finished[0].raters] == [("alice", 12), ("bob", 1)]
    assert not bob.state["finished"]


def test_nothing_shows_which_run_is_which_before_the_end(comparison_task):
    alice = open_page(comparison_task)
    answers = [answer for item in comparison_task.items for answer in item.answers]
    state = alice.get().text
    for answer in answers:
        state = state.replace(json.dumps(answer)[1:-1], "")
    assert not re.search(r"first|second|runs/|seed", state)
    assert comparison_task.digest not in state
    for path in ("/", "/rate.js", "/rate.css"):  # the same bytes for every task
        assert alice.get(path).content == (STATIC_FOLDER / {"/": "rate.html"}.get(path, path[1:])).read_bytes()


def test_the_answers_are_on_the_sides_that_are_recorded(comparison_task):
    alice = open_page(comparison_task)
    sides = set()
    for showing in comparison_task.showings("alice")[:12]:
        item = alice.state["item"]
        assert item["answers"] == [showing.item.answers[showing.left], showing.item.answers[1 - showing.left]]
        sides.add(showing.left)
        alice.rate_item(1)
    assert sides == {0, 1}
    record = json.loads((comparison_task.folder / "ratings-alice.jsonl").read_text().splitlines()[0])
    assert (record["value"], record["left"]) == (1, comparison_task.showings("alice")[0].left)


def test_each_decision_is_on_disk_before_the_next_is_shown(scores_task):
    alice = open_page(scores_task)
    file = scores_task.folder / "ratings-alice.jsonl"
    for count, dimension in enumerate(("relevance", "accuracy"), start=1):
        alice.post("rate", position=0, dimension=dimension, value=3, ms=1200)
        assert len(file.read_text().splitlines()) == count
    assert alice.state["item"]["values"] == {"relevance": 3, "accuracy": 3}


def test_undo_skip_comment_and_not_applicable(scores_task):
    alice = open_page(scores_task)
    assert alice.post("undo").status_code == 409
    assert alice.post("comment", position=0, comment="<b>odd</b>").json()["item"]["comment"] == "<b>odd</b>"
    assert alice.post("skip", position=0).json()["item"]["position"] == 1
    assert alice.post("undo").json()["item"]["position"] == 0
    assert alice.post("rate", position=0, dimension="safety", value="na").json()["item"]["values"] == {"safety": "na"}


@pytest.mark.parametrize(
    ("dimension", "value"),
    [("fluency", "na"), ("relevance", 0), ("relevance", 6), ("relevance", True), ("relevance", "5"), ("nothing", 3),
     ("relevance", None), ("relevance", 2.5), ("relevance", "both_bad")],
)  # fmt: skip
def test_values_that_do_not_exist_are_refused(scores_task, dimension, value):
    alice = open_page(scores_task)
    assert alice.post("rate", position=0, dimension=dimension, value=value).status_code == 409
    assert not list(scores_task.folder.glob("ratings-*"))


def test_a_tab_that_shows_an_earlier_item_rates_nothing(scores_task):
    alice = open_page(scores_task)
    alice.rate_item(4)
    response = alice.post("rate", position=0, dimension="relevance", value=1)
    assert response.status_code == 409
    assert response.json()["item"]["position"] == 1
    assert alice.state["item"]["values"] == {}


def test_after_the_reveal_nothing_can_be_changed(scores_task):
    alice = open_page(scores_task)
    assert alice.post("finish").status_code == 409  # nothing is rated yet
    alice.rate_item(4)
    assert alice.post("finish").status_code == 200
    for action in ("rate", "skip", "undo", "comment", "finish"):
        body = {"position": 1, "dimension": "relevance", "value": 1, "comment": ""}
        assert alice.post(action, **body).status_code == 409, action


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_text_of_a_hostile_run_is_data_and_no_page_can_run_it(write_run, language):
    from harness.rating.rated_answers import find_rated_models
    from harness.rating.task import TaskRequest, open_task

    folder = write_run("hostile", text=lambda text: run_folders.HOSTILE_TEXT + text)
    task = open_task(find_rated_models([folder], with_base=False), TaskRequest(rubric=language))
    response = open_page(task).get()
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"
    item = response.json()["item"]
    for text in (item["prompt"], item["reference"], *item["answers"]):
        assert "</script><script>alert(1)</script>" in text
        assert not set(text) & {"\x1b", "\u202e", "\u200b"}


def test_the_page_sets_texts_and_never_html():
    script = (STATIC_FOLDER / "rate.js").read_text(encoding="utf-8")
    forbidden = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc")
    assert [name for name in forbidden if name in script] == []
    page = (STATIC_FOLDER / "rate.html").read_text(encoding="utf-8")
    assert re.findall(r"https?://", script + page) == []
    assert re.findall(r"\son\w+=|<script>|<style|style=", page) == []


def test_the_policy_allows_only_files_of_the_server(scores_task):
    for path, status in (("/", 200), ("/rate.css", 200), ("/api/state", 200), ("/nowhere", 404)):
        response = open_page(scores_task).get(path)
        assert response.status_code == status
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'")
        assert "unsafe" not in policy
        assert response.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": f"Bearer {TOKEN}x"}, 401),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
        ({"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}, 403),
        ({"Host": "192.168.0.9:8000", "Origin": "http://192.168.0.9:8000"}, 403),
        ({"Host": "localhost:9999", "Origin": "http://localhost:9999"}, 200),
    ],
)
def test_requests_without_access_are_refused(scores_task, headers, status):
    alice = open_page(scores_task)
    assert alice.post("skip", headers, position=0).status_code == status
    assert bool(list(scores_task.folder.glob("ratings-*"))) == (status == 200)


def test_a_post_needs_an_origin(scores_task):
    alice = open_page(scores_task)
    del alice.headers["Origin"]
    assert alice.post("skip", position=0).status_code == 403


def test_a_shared_server_needs_the_token_too(scores_task):
    access = Access(TOKEN, host="0.0.0.0")
    app = open_page(scores_task, access=access).client.app
    assert Page(app, "alice", host="192.168.0.9:8000").get().status_code == 200
    assert Page(app, "alice", host="192.168.0.9:8000", token="wrong").get().status_code == 401
    assert Page(app, "alice", host="evil.example").get().status_code == 403


def test_the_names_of_the_machine_are_asked_for_once(scores_task, monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getfqdn", lambda *_: asked.append("name") or "Box.example")
    access = Access.create("0.0.0.0")
    app = open_page(scores_task, access=access).client.app
    for _ in range(3):
        assert Page(app, "alice", host="box.example:8000", token=access.token).get().status_code == 200
        assert Page(app, "alice", host="evil.example", token=access.token).get().status_code == 403
    assert asked == ["name"]
    Access.create("127.0.0.1")
    assert asked == ["name"], "only a shared page has other names"


def test_the_script_uses_each_of_its_texts():
    script = (STATIC_FOLDER / "rate.js").read_text(encoding="utf-8")
    texts, code = script.split("const GUARD_MS")
    names = set(re.findall(r"(?:^|[{,]) ?(\w+): ", re.sub(r"\"[^\"]*\"", "_", texts).replace("    ", ""), re.MULTILINE))
    by_id = {"undo", "skip", "comment", "rubric", "finish"}  # buttons, as `text()[id]`
    other = {"en", "zh", "better", "worse", "_"}  # languages, and names in quotation marks
    assert {"question", "verdicts", "keys"} <= names
    assert names - set(re.findall(r"text\(\)\.(\w+)", code)) - by_id - other == set()


def test_each_start_has_another_token_and_the_address_keeps_it_out_of_requests():
    first, second = Access.create("127.0.0.1"), Access.create("127.0.0.1")
    assert first.token != second.token
    assert len(first.token) >= 32
    assert re.fullmatch(r"http://127\.0\.0\.1:8123/#token=[\w-]+&rater=al", first.address(8123, "al"))


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 5000, b'{"comment": "' + b"x" * 70_000 + b'"}'])
def test_bodies_that_are_not_a_small_object_are_refused(scores_task, body):
    alice = open_page(scores_task)
    assert alice.client.post("/api/comment", headers=alice.headers, content=body).status_code == 400


@pytest.mark.parametrize("rater", ["", "%00", "x" * 50])
def test_raters_need_a_name(scores_task, rater):
    assert open_page(scores_task, rater).get().status_code == 400
