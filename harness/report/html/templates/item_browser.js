// The browser for all items. Their data is JSON in an inert <template>; a few items are rendered at a time.
const itemData = document.getElementById("item-data");
if (itemData) {
  const { suites, items } = JSON.parse(itemData.content.textContent);
  const [SUITE, QUESTION, REFERENCE, BEFORE, AFTER, VALUE_BEFORE, VALUE_AFTER, FLAGS] = [0, 1, 2, 3, 4, 5, 6, 7];
  const [BEFORE_CUT, AFTER_CUT, BEFORE_EMPTY, AFTER_EMPTY] = [1, 2, 4, 8];
  const PER_PAGE = 20;
  const form = document.getElementById("item-filter");
  const list = document.getElementById("item-list");
  const count = document.getElementById("item-count");
  const more = document.getElementById("item-more");
  const isBinary = suites.map(() => true);
  for (const item of items) {
    for (const value of [item[VALUE_BEFORE], item[VALUE_AFTER]]) {
      if (value !== 0 && value !== 1) isBinary[item[SUITE]] = false;
    }
  }

  if (isBinary.every(Boolean)) {
    for (const [value, text] of [["worse", "right → wrong"], ["better", "wrong → right"]]) {
      const option = form.querySelector(`option[value=${value}]`);
      if (option) option.textContent = text;
    }
  }

  // Above 0 the item got better, below 0 worse; 0 without scores.
  const change = (item) => {
    const higher = suites[item[SUITE]].higher;
    if (item[VALUE_BEFORE] === null || item[VALUE_AFTER] === null || higher === null) return 0;
    return (item[VALUE_AFTER] - item[VALUE_BEFORE]) * (higher ? 1 : -1);
  };
  const tests = {
    all: () => true,
    worse: (item) => change(item) < 0,
    better: (item) => change(item) > 0,
    changed: (item) => item[BEFORE] !== item[AFTER],
    empty: (item) => (item[FLAGS] & (BEFORE_EMPTY | AFTER_EMPTY)) !== 0,
    cut: (item) => (item[FLAGS] & (BEFORE_CUT | AFTER_CUT)) !== 0,
  };

  const normalize = (text) => text.normalize("NFKC").toLowerCase();
  const searchTexts = new Array(items.length);
  const searchText = (index) => {
    searchTexts[index] ??= normalize([QUESTION, REFERENCE, BEFORE, AFTER].map((key) => items[index][key] ?? "").join("\n"));
    return searchTexts[index];
  };

  const element = (name, className, text) => {
    const created = document.createElement(name);
    if (className) created.className = className;
    if (text !== undefined) created.textContent = text;
    return created;
  };
  const quote = (label, text, kind, isCut) => {
    const box = element("div", `quote ${kind}`);
    const term = element("dt", "", label);
    if (isCut) term.append(" ", element("span", "cut", "cut at max_new_tokens"));
    const description = element("dd");
    if (text === null) {
      description.append(element("em", "bounds", "(no answer)"));
    } else if (text.trim() === "") {
      description.append(element("em", "bounds", "(empty)"));
    } else {
      const content = element("div", "text", text);
      content.dir = "auto";
      content.tabIndex = 0;
      description.append(content);
    }
    box.append(term, description);
    return box;
  };
  const format = (value) => Number(value.toPrecision(3)).toString().replace("-", "−");
  const heading = (item) => {
    const suite = suites[item[SUITE]];
    const line = element("p", "item-heading");
    line.append(element("strong", "", suite.name));
    if (item[VALUE_BEFORE] !== null && item[VALUE_AFTER] !== null) {
      line.append(` ${suite.score} ${format(item[VALUE_BEFORE])} → ${format(item[VALUE_AFTER])} `);
      const difference = change(item);
      const words = isBinary[item[SUITE]] ? ["right → wrong", "wrong → right"] : ["worse", "better"];
      if (difference < 0) line.append(element("span", "mark worse", `✗ ${words[0]}`));
      if (difference > 0) line.append(element("span", "mark better", `✓ ${words[1]}`));
    }
    return line;
  };
  const render = (item) => {
    const article = element("article", "example");
    const quotes = element("dl");
    const answers = element("div", "answers");
    answers.append(
      quote("base model", item[BEFORE], "answer", (item[FLAGS] & BEFORE_CUT) !== 0),
      quote("after training", item[AFTER], "answer after", (item[FLAGS] & AFTER_CUT) !== 0),
    );
    quotes.append(
      quote("question", item[QUESTION], "question", false), quote("reference", item[REFERENCE], "reference", false), answers,
    );
    article.append(heading(item), quotes);
    return article;
  };

  let found = [];
  let shown = 0;
  const showMore = () => {
    const next = found.slice(shown, shown + PER_PAGE);
    list.append(...next.map((index) => render(items[index])));
    shown += next.length;
    more.hidden = shown === found.length;
  };
  const update = () => {
    const suite = form.elements.suite.value;
    const show = form.elements.show.value;
    const words = normalize(form.elements.search.value).split(/\s+/).filter(Boolean);
    found = [];
    items.forEach((item, index) => {
      if (suite !== "" && item[SUITE] !== Number(suite)) return;
      if (tests[show](item) && words.every((word) => searchText(index).includes(word))) found.push(index);
    });
    if (show === "worse" || show === "better") {
      found.sort((one, other) => Math.abs(change(items[other])) - Math.abs(change(items[one])) || one - other);
    }
    shown = 0;
    list.replaceChildren();
    count.textContent = `${found.length.toLocaleString("en")} of ${items.length.toLocaleString("en")} items`;
    showMore();
  };
  let timer;
  form.addEventListener("input", (event) => {
    clearTimeout(timer);
    timer = setTimeout(update, event.target.name === "search" ? 150 : 0);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", showMore);
  form.hidden = false;
  update();
}
