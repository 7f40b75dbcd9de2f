"use strict";
/* The page of harness rate. Every text of the server is set as text, never as HTML. */

const TEXTS = {
  en: {
    start: "Start", name: "Your name", nameHint: "It is stored with your ratings. Use the same name to resume.",
    progress: (done, total) => `${done} of ${total}`, question: "Question", answer: "Answer", left: "Answer A", right: "Answer B",
    reference: "Reference response", skip: "Skip", undo: "Undo", comment: "Comment", rubric: "Rubric", finish: "Finish",
    notApplicable: "Does not apply", empty: "(empty answer)", save: "Save", cancel: "Cancel", close: "Close",
    commentLabel: "Comment on this item", keys: "Keys",
    keyList: [["1–5", "choose a level"], ["0", "does not apply, or both are bad"], ["↑ ↓", "go to another row"], ["s", "skip the item"],
      ["u", "undo the last decision"], ["c", "comment"], ["?", "rubric and keys"]],
    done: "All items are rated.", doneHint: "Finish to see the results. After that, nothing can be changed.",
    finishHint: (done, total) => `${done} of ${total} items are done. After finishing you see the results, and cannot rate any more.`,
    offline: "The server does not respond. Your last decision is not saved. Start harness rate again, or try again.",
    retry: "Try again", expired: "This address is no longer valid. Open the address that harness rate prints.",
    results: "Results", mean: "mean", interval: "95 % interval", agreement: "equal ratings", alpha: "Krippendorff's alpha", items: "items",
    wins: "Items won", ties: "ties", bothBad: "ratings “both are bad”", signTest: "sign test: p", leftRate: "answer A (the left one) preferred",
    repeats: "repeated items rated equally, all raters", raters: "raters", commented: "has a comment",
    verdicts: {"too few items": "too few items for a verdict (30 are needed)", "no evidence": "no evidence of a difference",
      better: "is preferred", worse: "is preferred"},
    noRatings: "no ratings",
  },
  zh: {
    start: "开始", name: "您的姓名", nameHint: "姓名会随评分一起保存。使用相同的姓名可以继续评分。",
    progress: (done, total) => `${done} / ${total}`, question: "问题", answer: "回答", left: "回答 A", right: "回答 B",
    reference: "参考回答", skip: "跳过", undo: "撤销", comment: "备注", rubric: "评分标准", finish: "结束",
    notApplicable: "不适用", empty: "（空回答）", save: "保存", cancel: "取消", close: "关闭",
    commentLabel: "对此条目的备注", keys: "按键",
    keyList: [["1–5", "选择等级"], ["0", "不适用，或两个都不好"], ["↑ ↓", "切换行"], ["s", "跳过此条目"], ["u", "撤销上一个决定"],
      ["c", "备注"], ["?", "评分标准和按键"]],
    done: "所有条目均已评分。", doneHint: "结束后可查看结果，之后不能再修改。",
    finishHint: (done, total) => `已完成 ${done} / ${total} 个条目。结束后显示结果，不能再评分。`,
    offline: "服务器没有响应，您的上一个决定没有保存。请重新启动 harness rate，或重试。",
    retry: "重试", expired: "此地址已失效。请打开 harness rate 显示的地址。",
    results: "结果", mean: "均值", interval: "95 % 区间", agreement: "评分一致", alpha: "Krippendorff α", items: "条目",
    wins: "胜出的条目", ties: "平局", bothBad: "“两个都不好”的评分", signTest: "符号检验 p", leftRate: "偏好 A（左边）",
    repeats: "重复条目中评分一致（所有评分者）", raters: "评分者", commented: "有备注",
    verdicts: {"too few items": "条目太少，无法得出结论（需要 30 个）", "no evidence": "没有差异的证据", better: "更受偏好", worse: "更受偏好"},
    noRatings: "没有评分",
  },
};
const GUARD_MS = 250; // a key that is pressed twice must not rate the next item

const address = new URLSearchParams(location.hash.slice(1));
const token = address.get("token") || "";
let rater = address.get("rater") || "";
let state = null;
let language = navigator.language.startsWith("zh") ? "zh" : "en";
let activeRow = 0;
let shownAt = 0;
let queue = Promise.resolve();

const find = (id) => document.getElementById(id);
const text = () => TEXTS[language];

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") node.addEventListener("click", value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

async function request(path, body) {
  const headers = {"Authorization": `Bearer ${token}`, "X-Rater": encodeURIComponent(rater)};
  const options = body === undefined ? {headers} : {method: "POST", headers: {...headers, "Content-Type": "application/json"}, body: JSON.stringify(body)};
  let response, reply;
  try {
    response = await fetch(`/api/${path}`, options);
    reply = await response.json();
  } catch {
    showMessage(text().offline, true);
    return false;
  }
  if (response.status === 401) {
    showMessage(text().expired);
    return false;
  }
  if (!reply.task) {
    showMessage(reply.error || text().offline);
    return false;
  }
  hideMessage();
  if (response.status !== 200) showMessage(reply.error);
  adopt(reply);
  return response.status === 200;
}

function adopt(reply) {
  const before = state && state.item ? state.item.position : null;
  state = reply;
  language = reply.task.language in TEXTS ? reply.task.language : "en";
  const position = reply.item ? reply.item.position : null;
  activeRow = reply.item ? Math.max(0, reply.task.dimensions.findIndex((dimension) => !(dimension.key in reply.item.values))) : 0;
  if (position !== before) {
    shownAt = performance.now();
    window.scrollTo(0, 0);
  }
  render();
  if (position !== before) find("main").focus({preventScroll: true});
}

/* One request after the other. What belongs to an item that is no longer shown is dropped. `makeBody` runs when it is its turn. */
function enqueue(path, makeBody = () => ({})) {
  const position = state && state.item ? state.item.position : null;
  queue = queue.then(() => {
    const current = state && state.item ? state.item.position : null;
    const body = current === position ? makeBody() : null;
    return body && request(path, {...body, position, ms: Math.round(performance.now() - shownAt)});
  });
  return queue;
}

function showMessage(message, retry = false) {
  const node = find("message");
  node.replaceChildren(message);
  if (retry) node.append(" ", element("button", {type: "button", onclick: () => request("state")}, text().retry));
  node.hidden = false;
}

function hideMessage() {
  find("message").hidden = true;
}

function render() {
  document.documentElement.lang = language;
  document.title = state.task.title;
  find("progress-text").textContent = text().progress(state.done, state.total);
  find("progress").value = state.total ? state.done / state.total : 0;
  find("progress").setAttribute("aria-label", text().progress(state.done, state.total));
  for (const id of ["undo", "skip", "comment", "rubric", "finish"]) {
    const button = find(id);
    button.replaceChildren(text()[id], ...(button.dataset.key ? [" ", element("kbd", {}, button.dataset.key)] : []));
  }
  find("toolbar").hidden = state.finished;
  find("undo").disabled = !state.can_undo;
  find("skip").disabled = find("comment").disabled = !state.item;
  find("comment").classList.toggle("used", Boolean(state.item && state.item.comment));
  if (state.item && state.item.comment) find("comment").append(` · ${text().commented}`);
  find("finish").disabled = !state.can_undo;
  find("main").replaceChildren(...(state.finished ? resultsView() : state.item ? itemView() : doneView()));
}

function itemView() {
  const {item, task} = state;
  const names = task.comparison ? [text().left, text().right] : [text().answer];
  const answers = item.answers.map((answer, index) =>
    element("section", {class: "card answer", "aria-label": names[index]},
      element("h2", {}, names[index]),
      element("p", {class: answer.trim() ? "text" : "text empty"}, answer.trim() ? answer : text().empty)));
  return [
    element("section", {class: "card question", "aria-label": text().question}, element("h2", {}, text().question), element("p", {class: "text"}, item.prompt)),
    element("div", {class: task.comparison ? "answers two" : "answers"}, ...answers),
    element("details", {class: "card"}, element("summary", {}, text().reference), element("p", {class: "text"}, item.reference)),
    element("div", {class: task.comparison ? "rows comparison" : "rows"}, ...task.dimensions.map(rowView)),
  ];
}

function rowView(dimension, index) {
  const {item, task} = state;
  const chosen = item.values[dimension.key];
  const isActive = index === activeRow;
  const other = task.comparison ? ["both_bad", task.both_bad, ""] : dimension.not_applicable ? ["na", text().notApplicable, dimension.not_applicable] : null;
  const level = (value, key, label, hint) =>
    element("button", {
      type: "button", class: "level", "aria-pressed": String(chosen === value), title: isActive ? null : label,
      "aria-label": `${dimension.name}: ${key}, ${label}${hint ? `. ${hint}` : ""}`, onclick: () => enqueue("rate", () => ({dimension: dimension.key, value})),
    }, element("kbd", {}, key), isActive ? element("span", {}, label, hint ? element("small", {}, hint) : null) : null);
  return element("fieldset", {class: isActive ? "row active" : "row", "data-row": String(index)},
    element("legend", {}, element("strong", {}, dimension.name), " ", element("span", {}, dimension.question)),
    element("div", {class: "levels"},
      ...dimension.levels.map((label, number) => level(number + 1, String(number + 1), label, "")),
      other ? level(other[0], "0", other[1], other[2]) : null));
}

function doneView() {
  return [element("section", {class: "card done"}, element("h2", {}, text().done), element("p", {}, text().doneHint),
    element("button", {type: "button", class: "primary", id: "finish-now", onclick: () => enqueue("finish")}, text().finish, " ", element("kbd", {}, "Enter")))];
}

const number = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const percent = (value) => (value === null || value === undefined ? "–" : `${Math.round(100 * value)} %`);

function resultsView() {
  const results = state.results;
  const agreement = (entry) => (entry.pairs ? `${percent(entry.equal)} (${entry.pairs})` : "–");
  const alpha = (entry) => (entry.pairs ? (entry.note || number(entry.alpha)) : "–");
  const rows = [];
  if (results.comparison) {
    const found = results.comparison;
    const winner = results.models[found.wins >= found.losses ? 1 : 0];
    const verdict = text().verdicts[found.verdict];
    rows.push(
      [`${text().wins}: ${results.models[1]}`, String(found.wins)], [`${text().wins}: ${results.models[0]}`, String(found.losses)],
      [text().ties, String(found.ties)], [text().bothBad, String(found.both_bad)],
      [text().signTest, `${number(found.p, 3)}: ${found.verdict === "better" || found.verdict === "worse" ? `${winner} ` : ""}${verdict}`],
      [text().leftRate, found.left_rate ? `${percent(found.left_rate.value)} [${percent(found.left_rate.low)}, ${percent(found.left_rate.high)}]` : "–"],
      [text().agreement, agreement(found.agreement)], [text().alpha, alpha(found.agreement)]);
  }
  rows.push([text().repeats, results.repeats ? `${percent(results.repeats_equal)} (${results.repeats})` : "–"],
    [text().raters, results.raters.map((one) => `${one.name} (${one.rated})`).join(", ")]);
  const plain = element("table", {}, element("tbody", {}, ...rows.map(([name, value]) => element("tr", {}, element("th", {scope: "row"}, name), element("td", {}, value)))));
  const header = ["", text().mean, text().interval, text().items, text().agreement, text().alpha];
  const dimensions = results.comparison ? null : element("div", {class: "scroll"}, element("table", {},
    element("thead", {}, element("tr", {}, ...header.map((name) => element("th", {scope: "col"}, name)))),
    element("tbody", {}, ...results.dimensions.map((entry) => element("tr", {}, element("th", {scope: "row"}, entry.name),
      ...(entry.mean ? [number(entry.mean.value), entry.mean.low === null ? "–" : `[${number(entry.mean.low)}, ${number(entry.mean.high)}]`, String(entry.mean.n)] : ["–", text().noRatings, "0"])
        .concat([agreement(entry.agreement), alpha(entry.agreement)]).map((value) => element("td", {}, value)))))));
  return [element("section", {class: "card results"}, element("h2", {}, `${text().results}: ${results.models.join(" · ")}`), dimensions, plain, element("p", {class: "note"}, results.power))];
}

function rubricView() {
  const {task} = state;
  return [
    element("h2", {}, task.title), element("p", {}, task.instructions),
    ...task.dimensions.flatMap((dimension) => [
      element("h3", {}, `${dimension.name}: ${dimension.question}`),
      element("ol", {}, ...dimension.levels.map((label) => element("li", {}, label))),
      dimension.not_applicable ? element("p", {class: "note"}, `0 · ${text().notApplicable}: ${dimension.not_applicable}`) : null,
    ]).filter((node) => node !== null),
    element("h3", {}, text().keys),
    element("dl", {class: "keys"}, ...text().keyList.flatMap(([key, label]) => [element("dt", {}, element("kbd", {}, key)), element("dd", {}, label)])),
  ];
}

function openDialog(content, buttons) {
  const dialog = find("dialog");
  dialog.replaceChildren(...content, element("p", {class: "buttons"}, ...buttons));
  dialog.showModal();
  dialog.scrollTop = 0; // the focus of the button below has scrolled it
}

const closeButton = (label) => element("button", {type: "button", onclick: () => find("dialog").close()}, label);

function openRubric() {
  openDialog(rubricView(), [closeButton(text().close)]);
}

function openComment() {
  if (!state.item) return;
  const field = element("textarea", {id: "comment-field", rows: "4", maxlength: "2000"});
  field.value = state.item.comment;
  const save = () => {
    find("dialog").close();
    enqueue("comment", () => ({comment: field.value}));
  };
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
  });
  openDialog([element("label", {for: "comment-field"}, text().commentLabel), field],
    [element("button", {type: "button", class: "primary", id: "save-comment", onclick: save}, text().save), closeButton(text().cancel)]);
  field.focus();
}

function confirmFinish() {
  const finish = () => {
    find("dialog").close();
    enqueue("finish");
  };
  openDialog([element("p", {}, text().finishHint(state.done, state.total))],
    [element("button", {type: "button", class: "primary", id: "confirm-finish", onclick: finish}, text().finish), closeButton(text().cancel)]);
}

/* Keys that are typed fast go to one row after the other, so the row is the active one when the key's turn comes. */
function chooseLevel(key) {
  enqueue("rate", () => {
    const dimension = state.task.dimensions[activeRow];
    if (key !== "0") return {dimension: dimension.key, value: Number(key)};
    if (state.task.comparison) return {dimension: dimension.key, value: "both_bad"};
    return dimension.not_applicable ? {dimension: dimension.key, value: "na"} : null;
  });
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || !state) return;
  if (find("dialog").open) {
    if (event.key === "?" && !find("comment-field")) find("dialog").close();
    return;
  }
  if (["INPUT", "TEXTAREA"].includes(document.activeElement.tagName)) return;
  const actions = {"?": openRubric, u: () => state.can_undo && enqueue("undo")};
  if (state.item && performance.now() - shownAt >= GUARD_MS) {
    Object.assign(actions, {s: () => enqueue("skip"), c: openComment});
    for (const key of ["0", "1", "2", "3", "4", "5"]) actions[key] = () => chooseLevel(key);
    actions.ArrowDown = () => moveRow(1);
    actions.ArrowUp = () => moveRow(-1);
  }
  if (!state.item && !state.finished && document.activeElement.tagName !== "BUTTON") actions.Enter = () => enqueue("finish");
  const act = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (act) {
    event.preventDefault();
    act();
  }
}

function moveRow(step) {
  const last = state.task.dimensions.length - 1;
  activeRow = Math.min(last, Math.max(0, activeRow + step));
  render();
  document.querySelector(".row.active").scrollIntoView({block: "nearest"});
}

function startView() {
  document.documentElement.lang = language;
  const field = element("input", {id: "name", name: "name", maxlength: "40", autocomplete: "name", required: true});
  const form = element("form", {class: "card start"}, element("label", {for: "name"}, text().name), field, element("p", {class: "note"}, text().nameHint),
    element("button", {type: "submit", class: "primary"}, text().start));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    rater = field.value.trim();
    if (rater) begin();
  });
  find("main").replaceChildren(form);
  field.focus();
}

async function begin() {
  history.replaceState(null, "", `#${new URLSearchParams({token, rater})}`);
  if (await request("state") && state.done === 0 && state.item && !state.can_undo) openRubric();
}

document.addEventListener("keydown", onKey);
find("undo").addEventListener("click", () => enqueue("undo"));
find("skip").addEventListener("click", () => enqueue("skip"));
find("comment").addEventListener("click", openComment);
find("rubric").addEventListener("click", openRubric);
find("finish").addEventListener("click", confirmFinish);
if (rater) begin();
else startView();
