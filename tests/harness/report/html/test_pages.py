"""Contents of the pages of runs, experiments and comparisons; hostile text in them is only run_html."""

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


def parse_page(file: Path):
    return html_reader.parse_html(file.read_text(encoding="utf-8"))


def load_json(folder: Path, name: str = "report.json"):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def data_values(row):
    return [float(element.attrs["value"]) for element in row.find_all("data")]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    gate = [
        run_folders.gate_condition("helpdesk/rougeL", gains_at_least=0.1),
        run_folders.gate_condition("general/rougeL", loses_at_most=0.001),
    ]
    folder = run_folders.write_run(tmp_path_factory.mktemp("runs") / "mixed-1", stages=2, gate=gate)
    write.write_run_page(folder)
    return folder


@pytest.fixture(scope="module")
def run_html(run_folder):
    return parse_page(run_folder / "report.html")


@pytest.fixture(scope="module")
def experiment_folder(tmp_path_factory) -> Path:
    folder = run_folders.write_experiment(tmp_path_factory.mktemp("arms") / "sweep", missing={"ewc": "interrupted"})
    write.write_experiment_page(folder)
    return folder


# -- a run ------------------------------------------------------------------------------------------------------------


def test_run_page_starts_with_the_headline_and_its_statements(run_html):
    headings = [element.text for element in run_html.find_all() if re.fullmatch("h[1-6]", element.tag)]
    assert headings[0] == (
        "Helpdesk improved; 40 items cannot tell whether general was kept; later stages kept helpdesk; "
        "the gate lacks evidence."
    )
    statements = [element.text for element in run_html.find("ul", class_="verdict").find_all("li")]
    assert statements[0].startswith("general ability: not enough items to tell; general ")
    assert statements[1].startswith("earlier tasks: kept; helpdesk ")
    assert statements[2].startswith("helpdesk (n = 40): rougeL 0.220 → 0.620, +0.400 [")
    assert (
        statements[-1]
        == "gate lacks evidence: 1 of 2 conditions not met, first: general/rougeL must lose at most 0.001"
    )


def test_contents_link_to_every_section(run_html):
    sections = [element.attrs["id"] for element in run_html.find_all("section")]
    assert sections == [
        "before-after",
        "gate",
        "forgetting",
        "training",
        "data",
        "changed",
        "answers",
        "items",
        "reproduce",
        "files",
    ]
    assert [element.attrs["href"] for element in run_html.find("nav").find_all("a")] == [
        f"#{section_id}" for section_id in sections
    ]


def test_score_rows_equal_the_report(run_folder, run_html):
    for change in load_json(run_folder)["changes"]:
        row = run_html.find("tr", data_score=f"{change['suite']}/{change['name']}")
        expected = [change[side][key] for side in ("before", "after", "difference") for key in ("value", "low", "high")]
        assert data_values(row) == expected
        assert change["verdict"] in row.text


def test_summary_rows_equal_the_report(run_folder, run_html):
    for matrix in load_json(run_folder)["forgetting"]:
        assert matrix["summaries"]
        for name, summary in matrix["summaries"].items():
            row = run_html.find("tr", data_summary=f"{name}:{matrix['score']}")
            assert data_values(row) == [summary["value"], summary["low"], summary["high"]]


def test_gate_table_shows_each_condition_with_its_value(run_folder, run_html):
    rows = list(run_html.find("section", id="gate").find("tbody").find_all("tr"))
    for row, result in zip(rows, load_json(run_folder)["gate"], strict=True):
        assert result["text"] in row.text
        assert data_values(row) == [result["found"], result["bound"]]
        assert result["outcome"] in row.text


def test_plots_are_inline_svg_with_title_and_description(run_html):
    plots = list(run_html.find_all("svg"))
    assert len(plots) == 2 + 4 + 3  # matrices; loss, rate, penalties, gradient; shares and two histograms
    ids = [element.attrs["id"] for element in run_html.find_all() if "id" in element.attrs]
    assert len(ids) == len(set(ids))
    for plot in plots:
        assert plot.attrs["role"] == "img"
        for named in plot.attrs["aria-labelledby"].split():
            assert plot.find(id=named).text.strip()
        assert not list(plot.find_all("image"))
    text = {element.text for element in plots[0].find_all("text")}
    assert {"helpdesk", "general *", "base", "stage-1", "stage-2", "0.220", "0.420", "+0.200"} <= text


def test_inline_plots_use_the_css_variables_of_the_page(run_html):
    source = "".join(
        f"{element.attrs.get('style', '')} {element.attrs.get('fill', '')}"
        for element in run_html.find("main").find_all()
    )
    assert "var(--gain)" in source
    assert not re.search(r"#[0-9a-f]{6}", source)


def test_plots_are_also_files_and_outdated_files_are_deleted(run_folder):
    (run_folder / "plots" / "old.svg").write_text("<svg/>")
    write.write_run_page(run_folder)
    names = {file.name for file in (run_folder / "plots").iterdir()}
    assert names >= {"matrix-rougel.svg", "loss.svg", "learning-rate.svg", "penalties.svg", "shares.svg"}
    assert "old.svg" not in names
    drawn = (run_folder / "plots" / "loss.svg").read_text(encoding="utf-8")
    assert "var(" not in drawn
    assert "#0072b2" in drawn


@pytest.mark.slow
def test_page_is_byte_identical_for_the_same_folder(run_folder):
    def read_files():
        return {
            file.name: file.read_bytes()
            for file in [write.write_run_page(run_folder), *(run_folder / "plots").iterdir()]
        }

    assert read_files() == read_files()


def test_answers_of_every_suite_are_shown_before_and_after_training(run_folder, run_html):
    section = run_html.find("section", id="answers")
    assert [element.text for element in section.find_all("h3")] == ["helpdesk", "general"]
    articles = list(section.find_all("article"))
    assert len(articles) == 6
    first = load_json(run_folder)["examples"][0]
    assert [element.text for element in articles[0].find_all("div", class_="text")] == [
        first["prompt"], first["reference"], first["before"], first["after"],
    ]  # fmt: skip


def test_shares_counts_and_stage_totals_are_shown(run_html):
    text = " ".join(run_html.find("section", id="data").text.split())
    assert "89.8 %" in text
    assert "93.0 %" in text
    assert "12 rows of helpdesk are cut" in text
    assert "4,096" in run_html.find("section", id="training").text


def test_copyable_spec_equals_the_stored_spec(run_folder, run_html):
    assert json.loads(run_html.find("pre", id="spec").text) == load_json(run_folder, "spec.json")
    assert json.loads(run_html.find("pre", id="environment").text) == load_json(run_folder, "environment.json")
    buttons = [element for element in run_html.find_all("button") if element.attrs.get("id") != "item-more"]
    copied = {element.attrs["data-copy"] for element in buttons}
    assert copied <= {element.attrs["id"] for element in run_html.find_all() if "id" in element.attrs}
    assert {"spec", "environment", "folder"} <= copied


def test_page_contains_no_secret(tmp_path):
    spec = run_folders.run_spec(
        sources={"a": {"s3": {"path": "s3://me:hunter2@bucket/x", "secret_access_key": "hunter3"}}},
        hub={"token": "hunter4"},
    )
    folder = run_folders.write_run(tmp_path / "run", spec=spec)
    report = load_json(folder)
    report["run"]["uri"] = "mysql://me:hunter5@host/db"
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "environment.json").write_text(json.dumps({"url": "https://me:hunter6@host/"}))
    text = write.write_run_page(folder).read_text(encoding="utf-8")
    assert "hunter" not in text
    assert "without secrets" in text
    assert "(left out)" in text


def test_run_with_only_report_json_has_a_page(tmp_path):
    folder = run_folders.write_run(tmp_path / "run")
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "report.json").write_bytes((folder / "report.json").read_bytes())
    root = parse_page(write.write_run_page(tmp_path / "alone"))
    assert [element.attrs["id"] for element in root.find_all("section")] == [
        "before-after",
        "changed",
        "answers",
        "reproduce",
        "files",
    ]


def test_unreadable_files_are_named_on_the_page(tmp_path):
    folder = run_folders.write_run(tmp_path / "run")
    (folder / "data.json").write_text("{")
    with (folder / "stages" / "stage-1" / "steps.jsonl").open("a") as file:
        file.write('{"step": 121, "lo')
    text = parse_page(write.write_run_page(folder)).text
    assert "data.json cannot be read" in text
    assert "stage-1/steps.jsonl has 1 line(s) that cannot be read" in text


def test_unexpected_json_shapes_leave_sections_out(tmp_path):
    folder = run_folders.write_run(tmp_path / "run")
    (folder / "data.json").write_text(
        json.dumps({"counts": [1], "shares": {}, "lengths": {"a": {"edges": ["x"]}, "b": 3}})
    )
    (folder / "spec.json").write_text(json.dumps({"mode": "mixed", "mitigations": None}))
    (folder / "stages" / "stage-1" / "trained.json").write_text(json.dumps({"steps": None}))
    root = parse_page(write.write_run_page(folder))
    assert "data" not in [element.attrs.get("id") for element in root.find_all("section")]


def test_headline_says_that_nothing_was_evaluated(tmp_path):
    empty = {"name": "x", "seed": 0, "run": {}, "stages": ["base", "one"], "changes": []}
    (tmp_path / "report.json").write_text(json.dumps(empty))
    assert parse_page(write.write_run_page(tmp_path)).find("h1").text == "Nothing was evaluated: the spec has no suite."


def test_page_of_an_unfinished_run_is_refused_with_the_command_that_finishes_it(tmp_path):
    (tmp_path / "spec.json").write_text("{}")
    with pytest.raises(HarnessError, match=r"has no report\.json") as caught:
        write.write_run_page(tmp_path)
    assert caught.value.hint == f"finish the run first: harness run --resume {tmp_path}"


@pytest.mark.parametrize(("field", "value"), [("suite", True), ("n", "many"), ("name", None)])
def test_report_with_a_value_of_another_type_is_a_one_line_error(tmp_path, field, value):
    folder = run_folders.write_run(tmp_path / "run")
    report = json.loads((folder / "report.json").read_text())
    report["changes"][0][field] = value
    (folder / "report.json").write_text(json.dumps(report))
    match = rf"report\.json: is not a valid run report for this version \(TypeError: {field} is {type(value).__name__} "
    with pytest.raises(HarnessError, match=match):
        write.write_run_page(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no report.json"),
        ("{", "cannot be read"),
        ("[]", "object"),
        ('{"name": "x"}', "is not a valid run report for this version"),
        ('{"name": "x", "seed": 0, "run": {}, "stages": ["base"], "changes": [{}]}', "KeyError"),
    ],
)
def test_folder_without_a_valid_report_is_a_one_line_error(tmp_path, content, message):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(HarnessError, match=re.escape(message)) as caught:
        write.write_run_page(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "report.html").exists()


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(HarnessError, match="is not a folder"):
        write.write_run_page(tmp_path / "nowhere")


def test_unwritable_folder_is_an_error(tmp_path):
    folder = run_folders.write_run(tmp_path / "run")
    (folder / "plots").write_text("a file with the name of the folder")
    with pytest.raises(HarnessError, match="cannot write the report"):
        write.write_run_page(folder)


# -- hostile text -----------------------------------------------------------------------------------------------------


def write_hostile_run(folder: Path) -> Path:
    """Write a run in which every text is hostile: answers, names of suites, stages and scores, spec keys and values."""
    spec = run_folders.run_spec(
        name=run_folders.HOSTILE_TEXT,
        template={run_folders.HOSTILE_TEXT: {run_folders.HOSTILE_TEXT: run_folders.HOSTILE_TEXT}},
    )
    folder = run_folders.write_run(folder, stages=2, spec=spec, text=lambda text: f"{text} {run_folders.HOSTILE_TEXT}",
                         gate=[run_folders.gate_condition("helpdesk/rougeL", gains_at_least=0.1)])  # fmt: skip
    report = load_json(folder)

    def make_hostile(value):
        if isinstance(value, dict):
            keep = ("finish", "verdict", "role")
            return {key: entry if key in keep else make_hostile(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [make_hostile(entry) for entry in value]
        return f"{value} {run_folders.HOSTILE_TEXT}" if isinstance(value, str) else value

    (folder / "report.json").write_text(json.dumps(make_hostile(report)))
    (folder / "data.json").write_text(json.dumps(make_hostile(load_json(folder, "data.json"))))
    return folder


def assert_harmless(root, text: str) -> None:
    """Assert that hostile text added no markup and contains no invisible character."""
    assert len(list(root.find_all("script"))) == 1
    assert not [
        element for element in root.find_all() if element.tag in ("img", "iframe", "object", "embed", "base", "form")
    ]
    for element in root.find_all():
        assert not [key for key in element.attrs if key.startswith("on")], element.attrs
    hidden = {char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs") and char not in "\n\t"}
    assert hidden == set()


def test_hostile_text_is_shown_as_text(tmp_path):
    file = write.write_run_page(write_hostile_run(tmp_path / "run"))
    text = file.read_text(encoding="utf-8")
    root = html_reader.parse_html(text)
    assert_harmless(root, text)
    answer = next(root.find("section", id="answers").find_all("div", class_="text")).text
    assert answer.endswith("<img src=x onerror=alert(2)>␛[31m\\u202egnorw\\u2066\\u200b\\ud83d$x^2$")
    assert "</script><script>" in root.find("h1").text
    for plot in (file.parent / "plots").iterdir():
        drawn = plot.read_text(encoding="utf-8")
        assert "<script" not in drawn
        assert "\u202e" not in drawn


def test_hostile_spec_is_copied_unchanged_with_visible_escapes(tmp_path):
    folder = write_hostile_run(tmp_path / "run")
    run_html = parse_page(write.write_run_page(folder)).find("pre", id="spec").text
    assert "\\u202e" in run_html
    assert json.loads(run_html) == load_json(folder, "spec.json")


def test_hostile_arm_names_are_shown_as_text(tmp_path):
    folder = run_folders.write_experiment(tmp_path / "sweep", text=lambda text: f"{text} {run_folders.HOSTILE_TEXT}")
    arms_json = json.loads(
        json.dumps(load_json(folder, "arms.json")).replace("naive", json.dumps(run_folders.HOSTILE_TEXT)[1:-1])
    )
    (folder / "arms.json").write_text(json.dumps(arms_json))
    file = write.write_experiment_page(folder)
    assert_harmless(parse_page(file), file.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("fixture", ["run_folder", "experiment_folder"])
def test_page_references_no_network_resource(request, fixture):
    text = (request.getfixturevalue(fixture) / "report.html").read_text(encoding="utf-8")
    root = html_reader.parse_html(text)
    assert not re.search(r"https?:|=.//|@import|url\((?!#)", text, re.IGNORECASE)
    for element in root.find_all():
        for key in ("src", "href"):
            assert re.match(r"#|data:,$|arms/", element.attrs.get(key, "#")), element.attrs
    assert text.index("Content-Security-Policy") < text.index("<style>") < text.index("<script>")


def test_content_security_policy_allows_only_the_page_script(run_html):
    import base64
    import hashlib

    policy = run_html.find("meta", http_equiv="Content-Security-Policy").attrs["content"]
    digest = base64.b64encode(hashlib.sha256(run_html.find("script").text.encode()).digest()).decode()
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in policy
    assert "connect-src" not in policy


def test_environment_escapes_every_template_value():
    html = page._jinja_environment().from_string('<p title="{{ text }}">{{ text }}</p>').render(text='<b>"\x1b\u202e')
    assert html == '<p title="&lt;b&gt;&#34;␛\\u202e">&lt;b&gt;&#34;␛\\u202e</p>'


def test_names_have_line_breaks_and_numbers_do_not():
    assert page._with_line_breaks("a_b/c.d=0.25<") == "a_<wbr>b/<wbr>c.<wbr>d=<wbr>0.25&lt;"
    assert page._with_line_breaks("general/nll of share=0.1", "_/") == "general/<wbr>nll of share=0.1"


# -- an experiment ----------------------------------------------------------------------------------------------------


def test_experiment_page_starts_with_the_recommendation_and_its_points_equal_the_file(experiment_folder):
    root, arms_json = parse_page(experiment_folder / "report.html"), load_json(experiment_folder, "arms.json")
    recommendation = arms_json["advised"]
    assert root.find("h1").text == recommendation["headline"][0].upper() + recommendation["headline"][1:] + "."
    statements = root.find("ul", class_="verdict").text.lower()
    assert recommendation["cost"]
    assert recommendation["enough"]
    assert all(recommendation[key].lower() in statements for key in ("cost", "enough", "rests"))
    assert all(arm in statements for arm in recommendation["alike"])
    assert recommendation["headline"] in arms_json["advice"]
    assert "no result of ewc: interrupted" in root.find("ul", class_="verdict").text
    for point in arms_json["points"]:
        row = root.find("tr", data_arm=point["arm"])
        expected = [point[side][key] for side in ("gain", "forgotten") for key in ("value", "low", "high")]
        assert data_values(row)[:6] == expected
        assert ("●" in row.text) == point["efficient"]


def test_arm_score_rows_equal_the_file(experiment_folder):
    root, arms_json = parse_page(experiment_folder / "report.html"), load_json(experiment_folder, "arms.json")
    assert len(arms_json["scores"]) == 12
    for score in arms_json["scores"]:
        values = data_values(root.find("tr", data_score=f"{score['arm']}:{score['suite']}/{score['score']}"))
        assert values[:4] == [score["before"]["value"], *(score["after"][key] for key in ("value", "low", "high"))]
        assert values[4] == score["change"]["value"]
        if score["against"] is not None:
            assert values[7] == score["against"]["value"]
            assert values[-1] == score["p_holm"]


def test_arms_that_differ_in_one_number_have_a_sweep_plot(experiment_folder):
    drawn = html_reader.parse_html((experiment_folder / "plots" / "sweep.svg").read_text().partition("?>")[2])
    text = [element.text for element in drawn.find_all("text")]
    assert {"0 %", "10 %", "mitigations.mixing.share"} <= set(text)
    recommendation = load_json(experiment_folder, "arms.json")["advised"]
    assert f"sufficient: {100 * recommendation['value']:g} %" in text
    figure = next(
        element
        for element in parse_page(experiment_folder / "report.html").find_all("figure")
        if element.find("figcaption").text.endswith("share")
    )
    assert recommendation["enough"] in figure.find("p", class_="note").text
    assert (experiment_folder / "plots" / "gain-forgetting.svg").is_file()
    points = html_reader.parse_html(
        (experiment_folder / "plots" / "gain-forgetting.svg").read_text().partition("?>")[2]
    )
    assert {"naive", "share=0.01", "share=0.1"} <= {element.text for element in points.find_all("text")}


def test_experiment_of_an_earlier_version_shows_its_advice(experiment_folder, tmp_path):
    arms_json = load_json(experiment_folder, "arms.json")
    for key in ("advised", "joint", "intransigence"):
        del arms_json[key]
    (tmp_path / "arms.json").write_text(json.dumps(arms_json))
    root = parse_page(write.write_experiment_page(tmp_path))
    assert root.find("h1").text == arms_json["advice"][0].upper() + arms_json["advice"][1:] + "."
    assert "intransigence" not in [element.attrs.get("id") for element in root.find_all("section")]


@pytest.mark.slow
def test_forgetting_statement_is_marked_by_its_interval_and_number_of_items(experiment_folder, tmp_path):
    arms_json = load_json(experiment_folder, "arms.json")
    point = next(arm_point for arm_point in arms_json["points"] if arm_point["arm"] == arms_json["advised"]["arm"])
    for low, high, n, mark in (
        (None, None, 1, "few"),
        (0.1, 0.3, 29, "few"),
        (0.1, 0.3, 60, "worse"),
        (-3, -1, 60, "better"),
    ):
        value = 0.2 if low is None else (low + high) / 2
        point["forgotten"] |= {"value": value, "low": low, "high": high, "n": n}
        (tmp_path / "arms.json").write_text(json.dumps(arms_json))
        statements = parse_page(write.write_experiment_page(tmp_path)).find("ul", class_="verdict").find_all("li")
        (statement,) = (
            element for element in statements if arms_json["advised"]["cost"].lower() in element.text.lower()
        )
        assert statement.attrs["class"].split()[-1] == mark


def difference_rows(root):
    """Return the cells of the table of what the arms differ in, its header first."""
    return [
        [element.text for element in row.find_all() if element.tag in ("th", "td")]
        for row in root.find("section", id="differences").find_all("tr")
    ]


def test_equal_options_of_a_component_are_merged_into_one_column(tmp_path):
    def ewc(strength):
        return run_folders.run_spec(mitigations={"ewc": {"strength": strength, "source": "general", "decay": 1}})

    specs = {"naive": run_folders.run_spec(mitigations={}), "share=0.01": ewc(1), "share=0.1": ewc(10)}
    root = parse_page(write.write_experiment_page(run_folders.write_experiment(tmp_path / "sweep", specs=specs)))
    merged = '{"source": "general", "decay": 1}'
    assert difference_rows(root) == [
        ["arm", "mitigations.ewc.strength", "mitigations.ewc"],
        ["naive", "–", "–"],
        ["share=0.01", "1", merged],
        ["share=0.1", "10", merged],
    ]


@pytest.mark.slow
def test_a_component_that_an_arm_adds_has_no_defaults(tmp_path):
    filled = {"rank": 4, "alpha": None, "dropout": 0.0}
    specs = {
        "naive": run_folders.run_spec(mitigations={}),
        "share=0.01": run_folders.run_spec(mitigations={"lora": filled}),
        "share=0.1": run_folders.run_spec(mitigations={"l2sp": {"strength": 1.0, "anchor": "base"}}),
    }
    folder = run_folders.write_experiment(tmp_path / "sweep", specs=specs)
    named = {
        "naive": {},
        "share=0.01": {"mitigations.lora": {"rank": 4}},
        "share=0.1": {"mitigations.l2sp": {}},
    }
    arms = {"named": named, "matrix": {}, "seeds": None, "baseline": "naive", "joint": None, "gate": None}
    (folder / "spec.json").write_text(json.dumps({"arms": arms}))
    assert difference_rows(parse_page(write.write_experiment_page(folder))) == [
        ["arm", "mitigations.lora", "mitigations.l2sp"],
        ["naive", "–", "–"],
        ["share=0.01", '{"rank": 4}', "–"],
        ["share=0.1", "–", "{}"],
    ]


def test_spec_differences_and_answers_of_all_arms_are_shown(experiment_folder):
    root = parse_page(experiment_folder / "report.html")
    assert difference_rows(root) == [
        ["arm", "mitigations.mixing.share"],
        ["naive", "–"],
        ["share=0.01", "0.01"],
        ["share=0.1", "0.1"],
    ]
    article = next(root.find("section", id="answers").find_all("article"))
    labels = [element.text for element in article.find_all("dt")]
    assert labels == ["question", "reference", "base model", "naive", "share=0.01", "share=0.1"]


@pytest.mark.slow
def test_pages_of_arms_are_linked(tmp_path):
    folder = run_folders.write_experiment(tmp_path / "sweep")
    write.write_run_page(folder / "arms" / "share=0.01")
    root = parse_page(write.write_experiment_page(folder))
    (link,) = [element for element in root.find_all("a") if element.attrs["href"].startswith("arms/")]
    assert link.attrs["href"] == "arms/share%3D0.01/report.html"


def test_run_and_experiment_folders_are_not_interchangeable(run_folder, experiment_folder):
    with pytest.raises(HarnessError, match="one run and not of an experiment"):
        write.write_experiment_page(run_folder)
    with pytest.raises(HarnessError, match=r"has no report\.json"):
        write.write_run_page(experiment_folder)


# -- a comparison -----------------------------------------------------------------------------------------------------


def build_comparison(**changes):
    def row(score, verdict, difference):
        estimate = Estimate(difference, 0.1, difference - 0.05, difference + 0.05, 50)
        value = Estimate(0.4, 0.1, 0.3, 0.5, 50)
        return comparison_page.ScoreRow(
            "helpdesk", score, True, 50, (value, value), (None, estimate), (None, 0.01), (None, verdict)
        )

    rows = (row("rougeL", "better", 0.2), row("chrf", "no evidence", 0.01))
    fields = {
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
    return comparison_page.ComparisonPage(**{**fields, **changes})


def test_comparison_headline_claims_only_what_the_verdicts_support(tmp_path):
    root = parse_page(write.write_comparison_page(build_comparison(), tmp_path / "two.html"))
    assert root.find("h1").text == "Against first: second is better in 1 of 2 scores."
    assert data_values(root.find("tr", data_score="1:helpdesk/rougeL"))[3] == 0.2
    assert "2 items are not in both" in root.find("ul", class_="verdict").text
    sections = [f"#{element.attrs['id']}" for element in root.find_all("section")]
    assert [element.attrs["href"] for element in root.find("nav").find_all("a")] == sections
    assert "hunter" not in root.text
    assert "(no answer)" in root.find("article").text
    even = build_comparison(rows=build_comparison().rows[1:])
    assert (
        "no evidence that second differs"
        in parse_page(write.write_comparison_page(even, tmp_path / "even.html")).find("h1").text
    )
    alone = build_comparison(columns=build_comparison().columns[:1], rows=(), items=(), differences={})
    assert (
        "nothing is compared" in parse_page(write.write_comparison_page(alone, tmp_path / "one.html")).find("h1").text
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["even.html", "one.html", "two.html"]


def test_hostile_comparison_is_shown_as_text(tmp_path):
    hostile = run_folders.HOSTILE_TEXT
    page_contents = build_comparison(
        title=hostile,
        notes=(hostile,),
        columns=(comparison_page.RunColumn(hostile, {hostile: hostile}),) * 2,
        items=(comparison_page.ItemRow(hostile, hostile, hostile, hostile, (hostile, hostile), (hostile, hostile)),),
    )
    file = write.write_comparison_page(page_contents, tmp_path / "two.html")
    assert_harmless(parse_page(file), file.read_text(encoding="utf-8"))
