"""What the pages of runs, experiments and comparisons say, and that nothing in them can do more than be read."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import pytest
from support import html_reader, run_folders

from harness.errors import HarnessError
from harness.report.html import comparison_page, page, write
from harness.statistics.intervals import Estimate


def read(file: Path):
    return html_reader.parse(file.read_text(encoding="utf-8"))


def document(folder: Path, name: str = "report.json"):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def numbers(row):
    return [float(one.attrs["value"]) for one in row.all("data")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    gate = [
        run_folders.condition("helpdesk/rougeL", gains_at_least=0.1),
        run_folders.condition("general/rougeL", loses_at_most=0.001),
    ]
    made = run_folders.finished(tmp_path_factory.mktemp("runs") / "mixed-1", stages=2, gate=gate)
    write.write_run_page(made)
    return made


@pytest.fixture(scope="module")
def shown(folder):
    return read(folder / "report.html")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    made = run_folders.experiment(tmp_path_factory.mktemp("arms") / "sweep", missing={"ewc": "interrupted"})
    write.write_experiment_page(made)
    return made


# -- a run ------------------------------------------------------------------------------------------------------------


def test_the_verdict_stands_first_and_says_what_got_better_what_was_forgotten_and_whether_the_gate_held(shown):
    headings = [one.text for one in shown.all() if re.fullmatch("h[1-6]", one.tag)]
    assert headings[0] == "Helpdesk got better; no evidence that general was forgotten; the gate failed."
    told = [one.text for one in shown.one("ul", class_="verdict").all("li")]
    assert told[0].startswith("helpdesk (n = 40): rougeL 0.220 → 0.620, +0.400 [")
    assert told[-1] == "gate failed: 1 of 2 conditions not met, first: general/rougeL must lose at most 0.001"


def test_every_section_is_there_and_the_contents_lead_to_it(shown):
    sections = [one.attrs["id"] for one in shown.all("section")]
    assert sections == ["before-after", "gate", "forgetting", "training", "data", "answers", "again", "files"]
    assert [one.attrs["href"] for one in shown.one("nav").all("a")] == [f"#{one}" for one in sections]


def test_the_numbers_of_the_scores_are_those_of_the_report(folder, shown):
    for change in document(folder)["changes"]:
        row = shown.one("tr", data_score=f"{change['suite']}/{change['name']}")
        wanted = [change[side][key] for side in ("before", "after", "difference") for key in ("value", "low", "high")]
        assert numbers(row) == wanted
        assert change["verdict"] in row.text


def test_the_numbers_of_the_summaries_are_those_of_the_report(folder, shown):
    for matrix in document(folder)["forgetting"]:
        assert matrix["summaries"]
        for name, given in matrix["summaries"].items():
            row = shown.one("tr", data_summary=f"{name}:{matrix['score']}")
            assert numbers(row) == [given["value"], given["low"], given["high"]]


def test_the_gate_shows_each_condition_with_what_was_found(folder, shown):
    rows = list(shown.one("section", id="gate").one("tbody").all("tr"))
    for row, given in zip(rows, document(folder)["gate"], strict=True):
        assert given["text"] in row.text
        assert numbers(row) == [given["found"], given["bound"]]
        assert ("passed" if given["passed"] else "failed") in row.text


def test_heat_maps_and_curves_are_vector_drawings_with_a_title_and_a_description(shown):
    plots = list(shown.all("svg"))
    assert len(plots) == 2 + 4 + 3  # matrices; loss, rate, penalties, gradient; shares and two histograms
    ids = [one.attrs["id"] for one in shown.all() if "id" in one.attrs]
    assert len(ids) == len(set(ids))
    for plot in plots:
        assert plot.attrs["role"] == "img"
        for named in plot.attrs["aria-labelledby"].split():
            assert plot.one(id=named).text.strip()
        assert not list(plot.all("image"))
    text = {one.text for one in plots[0].all("text")}
    assert {"helpdesk", "general *", "base", "stage-1", "stage-2", "0.220", "0.420", "+0.200"} <= text


def test_drawings_follow_the_colours_of_the_page(shown):
    source = "".join(f"{one.attrs.get('style', '')} {one.attrs.get('fill', '')}" for one in shown.one("main").all())
    assert "var(--gain)" in source
    assert not re.search(r"#[0-9a-f]{6}", source)


def test_the_plots_are_files_too_and_old_ones_go(folder):
    (folder / "plots" / "old.svg").write_text("<svg/>")
    write.write_run_page(folder)
    names = {one.name for one in (folder / "plots").iterdir()}
    assert names >= {"matrix-rougel.svg", "loss.svg", "learning-rate.svg", "penalties.svg", "shares.svg"}
    assert "old.svg" not in names
    drawn = (folder / "plots" / "loss.svg").read_text(encoding="utf-8")
    assert "var(" not in drawn
    assert "#0072b2" in drawn


def test_the_same_folder_gives_the_same_bytes(folder):
    def everything():
        return {one.name: one.read_bytes() for one in [write.write_run_page(folder), *(folder / "plots").iterdir()]}

    assert everything() == everything()


def test_answers_of_the_report_and_of_other_suites_are_shown_before_and_after(folder, shown):
    section = shown.one("section", id="answers")
    assert [one.text for one in section.all("h3")] == ["helpdesk", "general"]
    articles = list(section.all("article"))
    assert len(articles) == 6
    first = document(folder)["examples"][0]
    assert [one.text for one in articles[0].all("div", class_="text")] == [
        first["prompt"], first["reference"], first["before"], first["after"],
    ]  # fmt: skip


def test_shares_counts_and_totals_of_the_stages_are_shown(shown):
    text = " ".join(shown.one("section", id="data").text.split())
    assert "89.8 %" in text
    assert "93.0 %" in text
    assert "12 rows of helpdesk are cut" in text
    assert "4,096" in shown.one("section", id="training").text


def test_the_spec_can_be_copied_and_is_the_same_document(folder, shown):
    assert json.loads(shown.one("pre", id="spec").text) == document(folder, "spec.json")
    assert json.loads(shown.one("pre", id="environment").text) == document(folder, "environment.json")
    copied = {one.attrs["data-copy"] for one in shown.all("button")}
    assert copied <= {one.attrs["id"] for one in shown.all() if "id" in one.attrs}
    assert {"spec", "environment", "place"} <= copied


def test_no_secret_of_the_spec_is_in_the_page(tmp_path):
    spec = run_folders.spec_of(
        sources={"a": {"s3": {"path": "s3://me:hunter2@bucket/x", "secret_access_key": "hunter3"}}},
        hub={"token": "hunter4"},
    )
    made = run_folders.finished(tmp_path / "run", spec=spec)
    report = document(made)
    report["run"]["uri"] = "mysql://me:hunter5@host/db"
    (made / "report.json").write_text(json.dumps(report))
    (made / "environment.json").write_text(json.dumps({"url": "https://me:hunter6@host/"}))
    text = write.write_run_page(made).read_text(encoding="utf-8")
    assert "hunter" not in text
    assert "without its secrets" in text
    assert "(left out)" in text


def test_a_run_with_its_report_alone_is_shown_as_far_as_it_goes(tmp_path):
    made = run_folders.finished(tmp_path / "run")
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "report.json").write_bytes((made / "report.json").read_bytes())
    root = read(write.write_run_page(tmp_path / "alone"))
    assert [one.attrs["id"] for one in root.all("section")] == [
        "before-after",
        "forgetting",
        "answers",
        "again",
        "files",
    ]


def test_what_cannot_be_read_is_said(tmp_path):
    made = run_folders.finished(tmp_path / "run")
    (made / "data.json").write_text("{")
    with (made / "stages" / "stage-1" / "steps.jsonl").open("a") as file:
        file.write('{"step": 121, "lo')
    text = read(write.write_run_page(made)).text
    assert "data.json cannot be read" in text
    assert "stage-1/steps.jsonl has 1 line(s) that cannot be read" in text


def test_facts_of_other_shapes_leave_their_place_empty(tmp_path):
    made = run_folders.finished(tmp_path / "run")
    (made / "data.json").write_text(
        json.dumps({"counts": [1], "shares": {}, "lengths": {"a": {"edges": ["x"]}, "b": 3}})
    )
    (made / "spec.json").write_text(json.dumps({"mode": "mixed", "mitigations": None}))
    (made / "stages" / "stage-1" / "trained.json").write_text(json.dumps({"steps": None}))
    root = read(write.write_run_page(made))
    assert "data" not in [one.attrs.get("id") for one in root.all("section")]


def test_a_report_of_no_suite_says_so(tmp_path):
    empty = {"name": "x", "seed": 0, "run": {}, "stages": ["base", "one"], "changes": []}
    (tmp_path / "report.json").write_text(json.dumps(empty))
    assert read(write.write_run_page(tmp_path)).one("h1").text == "Nothing was evaluated: the spec has no suite."


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "has no report.json"),
        ("{", "cannot be read"),
        ("[]", "object"),
        ('{"name": "x"}', "no report of run that this version can show"),
        ('{"name": "x", "seed": 0, "run": {}, "stages": ["base"], "changes": [{}]}', "KeyError"),
    ],
)
def test_a_folder_that_is_no_run_is_named_in_one_line(tmp_path, content, told):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(HarnessError, match=re.escape(told)) as caught:
        write.write_run_page(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "report.html").exists()


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(HarnessError, match="is not a folder"):
        write.write_run_page(tmp_path / "nowhere")


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    made = run_folders.finished(tmp_path / "run")
    (made / "plots").write_text("a file where the plots are to be")
    with pytest.raises(HarnessError, match="cannot be written"):
        write.write_run_page(made)


# -- nothing does more than be read -----------------------------------------------------------------------------------


def nasty_run(folder: Path) -> Path:
    """A run whose every text is hostile: answers, names of suites, stages and scores, keys and values of the spec."""
    spec = run_folders.spec_of(
        name=run_folders.NASTY, template={run_folders.NASTY: {run_folders.NASTY: run_folders.NASTY}}
    )
    made = run_folders.finished(folder, stages=2, spec=spec, text=lambda one: f"{one} {run_folders.NASTY}",
                         gate=[run_folders.condition("helpdesk/rougeL", gains_at_least=0.1)])  # fmt: skip
    report = document(made)

    def spoil(value):
        if isinstance(value, dict):
            keep = ("finish", "verdict", "role")
            return {key: one if key in keep else spoil(one) for key, one in value.items()}
        if isinstance(value, list):
            return [spoil(one) for one in value]
        return f"{value} {run_folders.NASTY}" if isinstance(value, str) else value

    (made / "report.json").write_text(json.dumps(spoil(report)))
    (made / "data.json").write_text(json.dumps(spoil(document(made, "data.json"))))
    return made


def quiet(root, text: str) -> None:
    """Nothing of the hostile text is markup, and nothing of it hides."""
    assert len(list(root.all("script"))) == 1
    assert not [one for one in root.all() if one.tag in ("img", "iframe", "object", "embed", "base", "form")]
    for one in root.all():
        assert not [key for key in one.attrs if key.startswith("on")], one.attrs
    hidden = {one for one in text if unicodedata.category(one) in ("Cc", "Cf", "Cs") and one not in "\n\t"}
    assert hidden == set()


def test_hostile_text_is_shown_and_does_nothing(tmp_path):
    file = write.write_run_page(nasty_run(tmp_path / "run"))
    text = file.read_text(encoding="utf-8")
    root = html_reader.parse(text)
    quiet(root, text)
    answer = next(root.one("section", id="answers").all("div", class_="text")).text
    assert answer.endswith("<img src=x onerror=alert(2)>␛[31m\\u202egnorw\\u2066\\u200b\\ud83d$x^2$")
    assert "</script><script>" in root.one("h1").text
    for plot in (file.parent / "plots").iterdir():
        drawn = plot.read_text(encoding="utf-8")
        assert "<script" not in drawn
        assert "\u202e" not in drawn


def test_a_hostile_spec_is_copied_as_it_is_and_hides_nothing(tmp_path):
    made = nasty_run(tmp_path / "run")
    shown = read(write.write_run_page(made)).one("pre", id="spec").text
    assert "\\u202e" in shown
    assert json.loads(shown) == document(made, "spec.json")


def test_hostile_arms_do_nothing(tmp_path):
    made = run_folders.experiment(tmp_path / "sweep", text=lambda one: f"{one} {run_folders.NASTY}")
    given = json.loads(json.dumps(document(made, "arms.json")).replace("naive", json.dumps(run_folders.NASTY)[1:-1]))
    (made / "arms.json").write_text(json.dumps(given))
    file = write.write_experiment_page(made)
    quiet(read(file), file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("which", ["folder", "sweep"])
def test_a_page_asks_the_network_for_nothing(request, which):
    text = (request.getfixturevalue(which) / "report.html").read_text(encoding="utf-8")
    root = html_reader.parse(text)
    assert not re.search(r"https?:|=.//|@import|url\((?!#)", text, re.IGNORECASE)
    for one in root.all():
        for key in ("src", "href"):
            assert re.match(r"#|data:,$|arms/", one.attrs.get(key, "#")), one.attrs
    assert text.index("Content-Security-Policy") < text.index("<style>") < text.index("<script>")


def test_the_policy_lets_the_one_script_run_and_nothing_load(shown):
    import base64
    import hashlib

    policy = shown.one("meta", http_equiv="Content-Security-Policy").attrs["content"]
    digest = base64.b64encode(hashlib.sha256(shown.one("script").text.encode()).digest()).decode()
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in policy
    assert "connect-src" not in policy


def test_a_value_of_a_template_cannot_be_left_unescaped_by_it():
    shown = page._jinja_environment().from_string('<p title="{{ one }}">{{ one }}</p>').render(one='<b>"\x1b\u202e')
    assert shown == '<p title="&lt;b&gt;&#34;␛\\u202e">&lt;b&gt;&#34;␛\\u202e</p>'


def test_a_name_may_be_broken_after_its_marks_and_a_number_may_not():
    assert page._with_line_breaks("a_b/c.d=0.25<") == "a_<wbr>b/<wbr>c.<wbr>d=<wbr>0.25&lt;"
    assert page._with_line_breaks("general/nll of share=0.1", "_/") == "general/<wbr>nll of share=0.1"


# -- an experiment ----------------------------------------------------------------------------------------------------


def test_the_advice_stands_first_and_the_points_are_those_of_the_file(sweep):
    root, given = read(sweep / "report.html"), document(sweep, "arms.json")
    said = given["advised"]
    assert root.one("h1").text == said["headline"][0].upper() + said["headline"][1:] + "."
    told = root.one("ul", class_="verdict").text.lower()
    assert said["cost"]
    assert said["enough"]
    assert all(said[key].lower() in told for key in ("cost", "enough", "rests"))
    assert all(arm in told for arm in said["alike"])
    assert said["headline"] in given["advice"]
    assert "no result of ewc: interrupted" in root.one("ul", class_="verdict").text
    for point in given["points"]:
        row = root.one("tr", data_arm=point["arm"])
        wanted = [point[side][key] for side in ("gain", "forgotten") for key in ("value", "low", "high")]
        assert numbers(row)[:6] == wanted
        assert ("●" in row.text) == point["efficient"]


def test_every_score_of_every_arm_is_that_of_the_file(sweep):
    root, given = read(sweep / "report.html"), document(sweep, "arms.json")
    assert len(given["scores"]) == 12
    for one in given["scores"]:
        found = numbers(root.one("tr", data_score=f"{one['arm']}:{one['suite']}/{one['score']}"))
        assert found[:4] == [one["before"]["value"], *(one["after"][key] for key in ("value", "low", "high"))]
        assert found[4] == one["change"]["value"]
        if one["against"] is not None:
            assert found[7] == one["against"]["value"]
            assert found[-1] == one["p_holm"]


def test_arms_that_differ_in_one_number_are_drawn_over_it(sweep):
    drawn = html_reader.parse((sweep / "plots" / "sweep.svg").read_text().partition("?>")[2])
    text = [one.text for one in drawn.all("text")]
    assert {"0 %", "10 %", "mitigations.mixing.share"} <= set(text)
    said = document(sweep, "arms.json")["advised"]
    assert f"enough: {100 * said['value']:g} %" in text
    figure = next(
        one for one in read(sweep / "report.html").all("figure") if one.one("figcaption").text.endswith("share")
    )
    assert said["enough"] in figure.one("p", class_="note").text
    assert (sweep / "plots" / "gain-forgetting.svg").is_file()
    points = html_reader.parse((sweep / "plots" / "gain-forgetting.svg").read_text().partition("?>")[2])
    assert {"naive", "share=0.01", "share=0.1"} <= {one.text for one in points.all("text")}


def test_an_experiment_of_an_earlier_version_is_shown_by_its_advice_alone(sweep, tmp_path):
    given = document(sweep, "arms.json")
    for key in ("advised", "joint", "intransigence"):
        del given[key]
    (tmp_path / "arms.json").write_text(json.dumps(given))
    root = read(write.write_experiment_page(tmp_path))
    assert root.one("h1").text == given["advice"][0].upper() + given["advice"][1:] + "."
    assert "intransigence" not in [one.attrs.get("id") for one in root.all("section")]


def test_what_an_arm_forgets_by_an_interval_that_is_no_number_is_not_marked_as_an_improvement(sweep, tmp_path):
    given = document(sweep, "arms.json")
    point = next(one for one in given["points"] if one["arm"] == given["advised"]["arm"])
    for low, high, n, mark in (
        (None, None, 1, "few"),
        (0.1, 0.3, 29, "few"),
        (0.1, 0.3, 60, "worse"),
        (-3, -1, 60, "better"),
    ):
        value = 0.2 if low is None else (low + high) / 2
        point["forgotten"] |= {"value": value, "low": low, "high": high, "n": n}
        (tmp_path / "arms.json").write_text(json.dumps(given))
        said = read(write.write_experiment_page(tmp_path)).one("ul", class_="verdict").all("li")
        (line,) = (one for one in said if given["advised"]["cost"].lower() in one.text.lower())
        assert line.attrs["class"].split()[-1] == mark


def test_options_that_only_some_arms_have_are_one_row_and_what_varies_is_its_own(tmp_path):
    def ewc(strength):
        return run_folders.spec_of(mitigations={"ewc": {"strength": strength, "source": "general", "decay": 1}})

    specs = {"naive": run_folders.spec_of(mitigations={}), "share=0.01": ewc(1), "share=0.1": ewc(10)}
    root = read(write.write_experiment_page(run_folders.experiment(tmp_path / "sweep", specs=specs)))
    rows = [
        [one.text for one in row.all() if one.tag in ("th", "td")]
        for row in root.one("section", id="differences").one("tbody").all("tr")
    ]
    together = '{"source": "general", "decay": 1}'
    assert sorted(rows) == [
        ["mitigations.ewc", "–", together, together],
        ["mitigations.ewc.strength", "–", "1", "10"],
    ]


def test_what_the_arms_differ_in_and_what_each_answered_is_shown(sweep):
    root = read(sweep / "report.html")
    row = root.one("section", id="differences").one("tbody").one("tr")
    assert [one.text for one in row.all() if one.tag in ("th", "td")] == [
        "mitigations.mixing.share",
        "–",
        "0.01",
        "0.1",
    ]
    article = next(root.one("section", id="answers").all("article"))
    asked = [one.text for one in article.all("dt")]
    assert asked == ["question", "reference", "base model", "naive", "share=0.01", "share=0.1"]


def test_arms_with_a_page_of_their_own_are_linked(tmp_path):
    made = run_folders.experiment(tmp_path / "sweep")
    write.write_run_page(made / "arms" / "share=0.01")
    root = read(write.write_experiment_page(made))
    (link,) = [one for one in root.all("a") if one.attrs["href"].startswith("arms/")]
    assert link.attrs["href"] == "arms/share%3D0.01/report.html"


def test_a_run_is_no_experiment_and_an_experiment_is_no_run(folder, sweep):
    with pytest.raises(HarnessError, match="one run and not of an experiment"):
        write.write_experiment_page(folder)
    with pytest.raises(HarnessError, match=r"has no report\.json"):
        write.write_run_page(sweep)


# -- a comparison -----------------------------------------------------------------------------------------------------


def comparison(**changes):
    def row(score, verdict, difference):
        made = Estimate(difference, 0.1, difference - 0.05, difference + 0.05, 50)
        value = Estimate(0.4, 0.1, 0.3, 0.5, 50)
        return comparison_page.ScoreRow(
            "helpdesk", score, True, 50, (value, value), (None, made), (None, 0.01), (None, verdict)
        )

    rows = (row("rougeL", "better", 0.2), row("chrf", "no evidence", 0.01))
    facts = {
        "title": "two runs",
        "columns": (
            comparison_page.RunColumn("first", {"mode": "domain"}),
            comparison_page.RunColumn("second", {"mode": "mixed", "ended": "finished"}),
        ),
        "rows": rows,
        "differences": {"mitigations.mixing.share": (None, "0.1"), "hub.token": ("hunter2", "hunter3")},
        "items": (
            comparison_page.ItemRow("helpdesk", "id1", "why?", "so", ("because", None), ("rougeL 0.1", "rougeL 0.9")),
        ),
        "notes": ("2 items are not in both",),
    }
    return comparison_page.ComparisonPage(**{**facts, **changes})


def test_a_comparison_says_what_its_verdicts_say_and_no_more(tmp_path):
    root = read(write.write_comparison_page(comparison(), tmp_path / "two.html"))
    assert root.one("h1").text == "Against first: second is better in 1 of 2 scores."
    assert numbers(root.one("tr", data_score="1:helpdesk/rougeL"))[3] == 0.2
    assert "2 items are not in both" in root.one("ul", class_="verdict").text
    sections = [f"#{one.attrs['id']}" for one in root.all("section")]
    assert [one.attrs["href"] for one in root.one("nav").all("a")] == sections
    assert "hunter" not in root.text
    assert "(no answer)" in root.one("article").text
    even = comparison(rows=comparison().rows[1:])
    assert (
        "no evidence that second differs"
        in read(write.write_comparison_page(even, tmp_path / "even.html")).one("h1").text
    )
    alone = comparison(columns=comparison().columns[:1], rows=(), items=(), differences={})
    assert "nothing is compared" in read(write.write_comparison_page(alone, tmp_path / "one.html")).one("h1").text
    assert sorted(one.name for one in tmp_path.iterdir()) == ["even.html", "one.html", "two.html"]


def test_a_hostile_comparison_does_nothing(tmp_path):
    nasty = run_folders.NASTY
    given = comparison(
        title=nasty,
        notes=(nasty,),
        columns=(comparison_page.RunColumn(nasty, {nasty: nasty}),) * 2,
        items=(comparison_page.ItemRow(nasty, nasty, nasty, nasty, (nasty, nasty), (nasty, nasty)),),
    )
    file = write.write_comparison_page(given, tmp_path / "two.html")
    quiet(read(file), file.read_text(encoding="utf-8"))
