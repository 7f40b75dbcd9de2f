"""Write the rows of the general presets that are made by templates: arithmetic, reading and code, English and Chinese.

Usage: PYTHONPATH=.:plugins python benchmarks/make_general.py

Every answer is computed: of arithmetic by Python, of code by running it, of reading by the table that the text states.
The rows are the same on every run. The rows for training have templates of their own (`TRAINED_…`), so that `harness
check` finds no overlap with those for evaluation. The digests of all files are written to the tests, also of those that
are written by hand.
"""

# ruff: noqa: E501
from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "plugins" / "harness_general" / "v1"
DIGESTS = Path(__file__).resolve().parents[1] / "tests" / "plugins" / "harness_general" / "digests.json"
"""The digests of all rows, which a test holds."""
EVALUATED = {"arithmetic": 60, "reading": 40, "code": 40}
TRAINED = {"arithmetic": 60, "reading": 30, "code": 30}


# -- arithmetic -------------------------------------------------------------------------------------------------------

ARITHMETIC = {
    "en": [
        ("What is {a} plus {b}?", lambda a, b: a + b, (11, 98), (11, 98)),
        ("What is {a} minus {b}?", lambda a, b: a - b, (50, 99), (11, 49)),
        ("What is {a} times {b}?", lambda a, b: a * b, (3, 12), (3, 12)),
        ("Divide {c} by {a}.", lambda a, b: b, (3, 12), (3, 12)),
        ("Double {a} and add {b}.", lambda a, b: 2 * a + b, (6, 40), (2, 9)),
        ("A book costs {a} euros and a pen costs {b} euros. What do a book and two pens cost?", lambda a, b: a + 2 * b, (8, 30), (2, 6)),
        ("Tom has {c} sweets and shares them equally among {a} children. How many does each child get?", lambda a, b: b, (3, 9), (3, 12)),
        ("A train leaves at {a}:00 and travels for {b} hours. At what hour of the 24-hour clock does it arrive?", lambda a, b: a + b, (6, 12), (2, 9)),
        ("There are {a} rows of chairs with {b} chairs each. How many chairs are there?", lambda a, b: a * b, (4, 15), (5, 12)),
        ("Anna is {a} years old. Her brother is {b} years younger. How old is her brother?", lambda a, b: a - b, (12, 40), (2, 10)),
        ("What is {b}0 percent of {a}0?", lambda a, b: a * b, (2, 40), (1, 9)),
        ("A box holds {b} eggs. How many eggs are in {a} boxes?", lambda a, b: a * b, (3, 14), (6, 12)),
    ],
    "zh": [
        ("{a}加{b}等于多少？", lambda a, b: a + b, (11, 98), (11, 98)),
        ("{a}减{b}等于多少？", lambda a, b: a - b, (50, 99), (11, 49)),
        ("{a}乘以{b}等于多少？", lambda a, b: a * b, (3, 12), (3, 12)),
        ("{c}除以{a}等于多少？", lambda a, b: b, (3, 12), (3, 12)),
        ("把{a}翻倍再加上{b}，得多少？", lambda a, b: 2 * a + b, (6, 40), (2, 9)),
        ("一本书{a}元，一支笔{b}元。买一本书和两支笔一共要多少元？", lambda a, b: a + 2 * b, (8, 30), (2, 6)),
        ("小明有{c}颗糖，平均分给{a}个孩子，每个孩子分到几颗？", lambda a, b: b, (3, 9), (3, 12)),
        ("火车{a}点出发，行驶{b}个小时，按24小时制几点到达？", lambda a, b: a + b, (6, 12), (2, 9)),
        ("教室里有{a}排椅子，每排{b}把，一共有多少把椅子？", lambda a, b: a * b, (4, 15), (5, 12)),
        ("小红今年{a}岁，弟弟比她小{b}岁，弟弟今年几岁？", lambda a, b: a - b, (12, 40), (2, 10)),
        ("{a}0的百分之{b}0是多少？", lambda a, b: a * b, (2, 40), (1, 9)),
        ("一盒有{b}个鸡蛋，{a}盒一共有多少个鸡蛋？", lambda a, b: a * b, (3, 14), (6, 12)),
    ],
}  # fmt: skip
TRAINED_ARITHMETIC = {
    "en": [
        ("Add {a} and {b}.", lambda a, b: a + b, (11, 98), (11, 98)),
        ("Take {b} away from {a}.", lambda a, b: a - b, (50, 99), (11, 49)),
        ("Multiply {a} by {b}.", lambda a, b: a * b, (3, 12), (3, 12)),
        ("How often does {a} fit into {c}?", lambda a, b: b, (3, 12), (3, 12)),
        ("What is half of {c}?", lambda a, b: b, (2, 2), (11, 99)),
        ("{a} birds, {b} fly off: how many stay?", lambda a, b: a - b, (12, 40), (2, 10)),
        ("{b} euros a week for {a} weeks: how much?", lambda a, b: a * b, (3, 12), (4, 15)),
        ("Lunch {a} euros, a drink {b}: what is the sum?", lambda a, b: a + b, (7, 19), (2, 6)),
    ],
    "zh": [
        ("求{a}与{b}的和。", lambda a, b: a + b, (11, 98), (11, 98)),
        ("求{a}与{b}的差。", lambda a, b: a - b, (50, 99), (11, 49)),
        ("求{a}与{b}的积。", lambda a, b: a * b, (3, 12), (3, 12)),
        ("{c}里面有几个{a}？", lambda a, b: b, (3, 12), (3, 12)),
        ("树上有{a}只鸟，飞走{b}只，还剩几只？", lambda a, b: a - b, (12, 40), (2, 10)),
        ("每周存{b}元，{a}周后共存多少元？", lambda a, b: a * b, (3, 12), (4, 15)),
        ("午饭{a}元，饮料{b}元，共花多少元？", lambda a, b: a + b, (7, 19), (2, 6)),
    ],
}  # fmt: skip
NUMBER_ONLY = {"en": " Reply with the number only.", "zh": "只回答数字。"}
TRAINED_NUMBER_ONLY = {"en": " Give just the result.", "zh": "请只写结果。"}


def make_arithmetic(lang: str, count: int, rng: random.Random, trained: bool) -> list[dict[str, str]]:
    templates = (TRAINED_ARITHMETIC if trained else ARITHMETIC)[lang]
    ending = (TRAINED_NUMBER_ONLY if trained else NUMBER_ONLY)[lang]
    rows: list[dict[str, str]] = []
    taken: set[str] = set()
    while len(rows) < count:
        text, compute, bounds_a, bounds_b = templates[len(rows) % len(templates)]
        a, b = rng.randint(*bounds_a), rng.randint(*bounds_b)
        prompt = text.format(a=a, b=b, c=a * b) + ending
        if prompt not in taken:
            taken.add(prompt)
            rows.append({"instruction": prompt, "output": str(compute(a, b))})
    return rows


# -- reading ----------------------------------------------------------------------------------------------------------

PEOPLE = {
    "en": ["Maya", "Oscar", "Lena", "Victor", "Priya", "Hugo", "Elsa", "Omar", "Ruth", "Felix", "Nadia", "Simon"],
    "zh": ["王芳", "李雷", "张敏", "刘洋", "陈静", "赵强", "周婷", "吴昊", "孙丽", "马超", "何欢", "林涛"],
}
CITIES = {
    "en": ["Porto", "Bergen", "Tallinn", "Graz", "Ghent", "Split", "Turin", "Cork", "Malmo", "Leipzig"],
    "zh": ["青岛", "昆明", "西安", "厦门", "大连", "桂林", "苏州", "长沙", "南宁", "银川"],
}
JOBS = {
    "en": ["baker", "nurse", "pilot", "teacher", "carpenter", "gardener", "dentist", "tailor", "painter", "plumber"],
    "zh": ["面包师", "护士", "飞行员", "老师", "木匠", "园丁", "牙医", "裁缝", "画家", "水管工"],
}
PETS = {
    "en": ["a parrot", "a rabbit", "a turtle", "two cats", "an old dog", "a hamster", "a pony", "three hens"],
    "zh": ["一只鹦鹉", "一只兔子", "一只乌龟", "两只猫", "一条老狗", "一只仓鼠", "一匹小马", "三只母鸡"],
}
DAYS = {
    "en": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "zh": ["星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日"],
}
TEXTS = {
    "en": [
        "{p} works as a {job} in {city} and keeps {pet}. {q}, who lives next door, is a {job2} and moved there from {city2}. They meet for tea every {day}.",
        "On {day} {p} took the early train from {city} to {city2} to visit {q}. {p} is a {job}; {q} used to be one too but now works as a {job2}. At the station {q} was waiting with {pet}.",
        "The house in {city} has two flats. In the upper one lives {p}, a {job} who owns {pet}. The lower one belongs to {q}, a {job2} from {city2} who is at home only on {day}.",
        "Every {day} the market of {city} is full. {p}, a {job}, comes with {pet} and always stops at the stall of {q}. Before the stall, {q} was a {job2} in {city2}.",
    ],
    "zh": [
        "{p}在{city}当{job}，养了{pet}。邻居{q}是{job2}，从{city2}搬来。他们每逢{day}一起喝茶。",
        "{day}，{p}坐早班火车从{city}去{city2}看望{q}。{p}是{job}，{q}以前也是，现在当{job2}。{q}带着{pet}在车站等候。",
        "{city}的这栋房子有两套公寓。楼上住着{job}{p}，养了{pet}。楼下属于{q}，他是来自{city2}的{job2}，只有{day}在家。",
        "每逢{day}，{city}的集市都很热闹。{job}{p}带着{pet}来，总在{q}的摊位前停下。摆摊之前，{q}在{city2}当{job2}。",
    ],
}  # fmt: skip
QUESTIONS = {
    "en": [("What is the job of {p}?", "job"), ("Which day of the week does the text mention?", "day"), ("Which city does the text name first?", "first"), ("Which animals does the text mention?", "pet"), ("Which person is named first in the text?", "person"), ("Which city does the text name last?", "last")],
    "zh": [("{p}的职业是什么？", "job"), ("文中提到星期几？", "day"), ("文中最先提到哪个城市？", "first"), ("文中提到了什么动物？", "pet"), ("文中最先提到的人是谁？", "person"), ("文中最后提到哪个城市？", "last")],
}  # fmt: skip
TRAINED_TEXTS = {
    "en": [
        "{p} left {city} as a young {job} and settled in {city2}, where {q} had a workshop. On {day} both of them feed {pet} in the yard.",
        "Nobody in {city} knew that {p} had {pet}. Only {q}, the {job2} with an office in {city2}, heard of it on {day} from an old {job}.",
        "{q} wrote to {p} from {city}: The new {job} arrives on {day} and brings {pet}. Do not tell the {job2} in {city2}.",
    ],
    "zh": [
        "年轻的{job}{p}离开{city}，在{city2}安了家，{q}在那里开着作坊。{day}，两人一起在院子里喂{pet}。",
        "{city}没有人知道{p}有{pet}。只有在{city2}上班的{job2}{q}，{day}才从一位老{job}那里听说。",
        "{q}从{city}写信给{p}：新来的{job}{day}到，还会带上{pet}，别告诉{city2}的{job2}。",
    ],
}  # fmt: skip
TRAINED_QUESTIONS = {
    "en": [("When does it happen, that is, on which day?", "day"), ("Name the animals.", "pet"), ("Name the place that comes first.", "first"), ("Who is mentioned at the start?", "person")],
    "zh": [("事情发生在哪一天？", "day"), ("请说出动物。", "pet"), ("请说出最早出现的地名。", "first"), ("开头说的是谁？", "person")],
}  # fmt: skip
TRAINED_WORDS_ONLY = {"en": " Quote the passage.", "zh": "请摘录原文。"}
WORDS_ONLY = {"en": " Answer with words from the text only.", "zh": "只用文中的词语回答。"}


def make_reading(lang: str, count: int, rng: random.Random, trained: bool) -> list[dict[str, str]]:
    texts = (TRAINED_TEXTS if trained else TEXTS)[lang]
    questions = (TRAINED_QUESTIONS if trained else QUESTIONS)[lang]
    ending = (TRAINED_WORDS_ONLY if trained else WORDS_ONLY)[lang]
    rows: list[dict[str, str]] = []
    taken: set[str] = set()
    while len(rows) < count:
        p, q = rng.sample(PEOPLE[lang], 2)
        city, city2 = rng.sample(CITIES[lang], 2)
        job, job2 = rng.sample(JOBS[lang], 2)
        names = {"p": p, "q": q, "city": city, "city2": city2, "job": job, "job2": job2}
        names |= {"pet": rng.choice(PETS[lang]), "day": rng.choice(DAYS[lang])}
        text = texts[len(rows) % len(texts)].format(**names)
        question, key = questions[(len(rows) // 2) % len(questions)]
        by_place = sorted((city, city2), key=text.rindex)
        answers = {**names, "first": min((city, city2), key=text.index), "last": by_place[-1]}
        answers["person"] = min((p, q), key=text.index)
        if text not in taken:
            taken.add(text)
            prompt = question.format(**names) + ending
            rows.append({"instruction": prompt, "input": text, "output": answers[key]})
    return rows


# -- code -------------------------------------------------------------------------------------------------------------

PROGRAMS = [
    "print({a} + {b} * 2)",
    "x = {a}\nx -= {b}\nprint(x)",
    "words = ['{w}', '{v}']\nprint(words[1])",
    "print(len('{w}'))",
    "print('{w}'.upper())",
    "total = 0\nfor n in range({s}):\n    total += n\nprint(total)",
    "print({a} > {b})",
    "print('{w}'[0] + '{v}'[-1])",
    "def f(n):\n    return n * 3\n\nprint(f({s}))",
    "values = [{a}, {b}, {s}]\nprint(max(values))",
    "ages = {{'{w}': {a}, '{v}': {b}}}\nprint(ages['{v}'])",
    "print({a} % {s})",
    "n = {a}\nif n > {b}:\n    print('{w}')\nelse:\n    print('{v}')",
    "print('-'.join(['{w}', '{v}']))",
    "print(sorted([{b}, {s}, {a}])[0])",
    "print('{w}'[::-1])",
    "count = 0\nwhile count < {s}:\n    count += 2\nprint(count)",
    "print([n for n in range({s}) if n % 2 == 1])",
    "print('{w}'.replace('{c}', '_'))",
    "a, b = {a}, {b}\na, b = b, a\nprint(a)",
]
TRAINED_PROGRAMS = [
    "m = {a}\nm += {b}\nprint(m)",
    "print(min({a}, {b}))",
    "print('{w}'.capitalize())",
    "fruits = ('{w}', '{v}')\nprint(fruits[0])",
    "print('{w}' == '{v}')",
    "print({s} ** 2)",
    "for letter in '{w}'[:2]:\n    print(letter)",
    "print('{w}'.count('{c}'))",
    "def g(k):\n    return k - 1\n\nprint(g({a}))",
    "print({a} // {s})",
    "print(sum([{a}, {s}]))",
    "print('{c}' in '{v}')",
    "if {a} < {b}:\n    print('less')\nelse:\n    print('not less')",
]
CODE_WORDS = ["lamp", "river", "stone", "cloud", "piano", "tiger", "bread", "north", "candle", "window", "orange", "silver"]  # fmt: skip
CODE_QUESTION = {
    "en": "What does this Python program print? Reply with the output only.",
    "zh": "这段Python程序会输出什么？只回答输出内容。",
}


TRAINED_CODE_QUESTION = {"en": "Run this code in your head and write its output.", "zh": "请写出下面代码的运行结果。"}


def make_code(lang: str, count: int, rng: random.Random, trained: bool) -> list[dict[str, str]]:
    programs = TRAINED_PROGRAMS if trained else PROGRAMS
    question = (TRAINED_CODE_QUESTION if trained else CODE_QUESTION)[lang]
    rows: list[dict[str, str]] = []
    taken: set[str] = set()
    while len(rows) < count:
        w, v = rng.sample(CODE_WORDS, 2)
        numbers = {"a": rng.randint(10, 60), "b": rng.randint(5, 50), "s": rng.randint(3, 16)}
        program = programs[len(rows) % len(programs)].format(w=w, v=v, c=w[1], **numbers)
        if program not in taken:
            taken.add(program)
            rows.append({"instruction": question, "input": program, "output": run_program(program)})
    return rows


def run_program(program: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(program, {})
    return output.getvalue().rstrip("\n")


MAKERS = {"arithmetic": make_arithmetic, "reading": make_reading, "code": make_code}


def make_rows() -> dict[str, list[dict[str, str]]]:
    """Return file below `ROOT` -> its rows."""
    files: dict[str, list[dict[str, str]]] = {}
    for lang in ("en", "zh"):
        for kind, make in MAKERS.items():
            rng = random.Random(f"general-{lang}-{kind}")
            files[f"{lang}/{kind}.jsonl"] = make(lang, EVALUATED[kind], rng, trained=False)
            files.setdefault(f"{lang}/train_computed.jsonl", []).extend(make(lang, TRAINED[kind], rng, trained=True))
    return files


def format_rows(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def make_digests() -> dict[str, str]:
    """Return file below `ROOT` -> its SHA-256; also of the files that are written by hand."""
    files = sorted(ROOT.rglob("*.jsonl"))
    return {path.relative_to(ROOT).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


if __name__ == "__main__":
    for name, rows in make_rows().items():
        (ROOT / name).write_text(format_rows(rows), encoding="utf-8")
        print(f"{name}: {len(rows)} rows")
    DIGESTS.write_text(json.dumps(make_digests(), indent=2) + "\n", encoding="utf-8")
