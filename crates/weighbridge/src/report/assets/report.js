// The list of samples. Everything else on the page works without a script.
// Text of models and data is inserted with textContent only.
"use strict";
(function () {
  const PAGE = 50;
  const dataElement = document.getElementById("sample-data");
  const browser = document.getElementById("browser");
  if (!dataElement || !browser) return;
  const data = JSON.parse(dataElement.textContent);
  const list = document.getElementById("sample-list");
  const status = document.getElementById("sample-status");
  const challengerSelect = document.getElementById("sample-challenger");
  const sliceSelect = document.getElementById("sample-slice");
  const search = document.getElementById("sample-search");
  const openAll = document.getElementById("sample-open");
  const state = { challenger: data.challengers[0] || null, relation: "all", slice: "", query: "", page: 0 };

  // Characters that hide, turn the reading direction or drive a terminal.
  const HIDDEN =
    /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u2069\ufeff\u{e0000}-\u{e007f}]/gu;

  const RELATIONS = {
    agree: ["=", "agree", "plain"],
    challenger_better: ["\u25b2", "challenger better", "good"],
    current_better: ["\u25bc", "current better", "bad"],
    differ: ["\u2260", "differ", "open"],
    one_fails: ["!", "one fails", "open"],
  };
  const SEVERITY = { current_better: 4, one_fails: 3, differ: 2, challenger_better: 1, agree: 0 };

  function make(name, className, text) {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  /** Appends text with hidden characters made visible, such as \u{202e}. */
  function say(element, text) {
    const plain = String(text).replace(/\r\n/g, "\n");
    let end = 0;
    for (const match of plain.matchAll(HIDDEN)) {
      element.append(plain.slice(end, match.index));
      const code = match[0].codePointAt(0).toString(16);
      const shown = make("span", "escape", "\\u{" + code + "}");
      shown.title = "a character that is not visible";
      element.append(shown);
      end = match.index + match[0].length;
    }
    element.append(plain.slice(end));
    return element;
  }

  function badge(text, kind) {
    return make("span", "badge " + kind, text);
  }

  function shown(value) {
    return typeof value === "string" ? value : JSON.stringify(value, null, 1);
  }

  function milliseconds(value) {
    if (value >= 1000) return (value / 1000).toFixed(2) + " s";
    return value.toFixed(value >= 100 ? 0 : value >= 10 ? 1 : 2) + " ms";
  }

  function count(n) {
    return n.toLocaleString("en-US");
  }

  function firstAnswer(sample, candidate) {
    return sample.answers.find((a) => a.candidate === candidate && a.repeat === 0);
  }

  function relationOf(sample) {
    const found = sample.relations.find(([name]) => name === state.challenger);
    return found ? found[1] : null;
  }

  function scoreOf(answer) {
    const judged = answer && answer.scores.length ? answer.scores[0][1] : null;
    return judged && judged.score ? judged.score.value : null;
  }

  function isAnswered(answer) {
    const isMissing = answer.scores.some(([, judged]) => judged.missing !== undefined);
    return !isMissing && !answer.error && answer.outcome !== "not_run";
  }

  /** Group, confidence and relation: the same order as the samples were chosen by. */
  function badness(sample) {
    const answer = firstAnswer(sample, state.challenger);
    const severity = SEVERITY[relationOf(sample)] || 0;
    if (!answer) return [0, -Infinity, severity];
    const score = scoreOf(answer);
    const confidence = answer.mean_logprob === undefined ? -Infinity : answer.mean_logprob;
    if (score !== null && score <= 0) return [3, confidence, severity];
    if (score !== null && score < 1) return [2, -score, severity];
    if (score === null && (!isAnswered(answer) || severity === 2)) return [1, -Infinity, severity];
    return [0, -Infinity, severity];
  }

  let ordered = [];
  function order() {
    const keyed = data.samples.map((sample) => [badness(sample), sample]);
    keyed.sort(([a], [b]) => {
      for (let i = 0; i < a.length; i += 1) if (a[i] !== b[i]) return b[i] > a[i] ? 1 : -1;
      return 0;
    });
    ordered = keyed.map(([, sample]) => sample);
  }

  const texts = new WeakMap();
  function searchText(sample) {
    let text = texts.get(sample);
    if (text === undefined) {
      const parts = [sample.id, ...Object.values(sample.fields).map(shown)];
      for (const answer of sample.answers) {
        parts.push(answer.text, answer.outcome);
        for (const [, judged] of answer.scores) if (judged.score && judged.score.note) parts.push(judged.score.note);
      }
      text = parts.join("\n").toLowerCase();
      texts.set(sample, text);
    }
    return text;
  }

  function isIn(relation, wanted) {
    if (wanted === "all") return true;
    if (wanted === "disagree") {
      return relation === "current_better" || relation === "challenger_better" || relation === "differ";
    }
    return relation === wanted;
  }

  function scoreBadge(judged) {
    if (!judged) return null;
    if (judged.score) {
      const value = judged.score.value;
      if (value >= 1) return badge("\u2713 1", "good");
      if (value <= 0) return badge("\u2717 0", "bad");
      return badge(value.toFixed(2), "open");
    }
    if (judged.unscored !== undefined) return badge("unscored", "open");
    return badge("no answer", "open");
  }

  function answerView(answer, role) {
    const view = make("article", "answer");
    const head = make("div", "answer-head");
    head.append(say(make("strong"), answer.candidate));
    if (role) head.append(make("span", "tag", role));
    if (answer.repeat > 0) head.append(make("span", "tag", "repeat " + (answer.repeat + 1)));
    const first = scoreBadge(answer.scores.length ? answer.scores[0][1] : null);
    if (first) head.append(first);
    if (answer.outcome !== "ok") head.append(badge(answer.outcome, "open"));
    view.append(head);
    if (answer.text) {
      const text = say(make("pre", "answer-text"), answer.text);
      text.dir = "auto";
      view.append(text);
    } else {
      view.append(make("p", "quiet", "no text"));
    }
    for (const call of answer.tool_calls || []) {
      view.append(say(make("pre", "answer-text"), "\u2192 " + call.name + "(" + call.arguments + ")"));
    }
    if (answer.error) view.append(say(make("p", "error"), answer.error.kind + ": " + answer.error.message));
    answer.scores.forEach(([name, judged], i) => {
      const line = make("p", "note");
      if (i > 0) {
        line.append(scoreBadge(judged), " ");
        say(line, name);
      }
      const score = judged.score;
      const reason = score ? score.note : judged.unscored !== undefined ? judged.unscored : null;
      if (reason) say(line, (i > 0 ? ": " : "") + reason);
      if (line.hasChildNodes()) view.append(line);
      if (score && score.parts && score.parts.length > 0) {
        const parts = make("p", "parts");
        for (const [part, value] of score.parts) {
          const mark = value >= 1 ? "\u2713" : value <= 0 ? "\u2717" : value.toFixed(2);
          parts.append(say(make("span", value >= 1 ? "part good" : "part bad"), mark + " " + part));
        }
        view.append(parts);
      }
    });
    const facts = [];
    if (typeof answer.total_ms === "number") facts.push(milliseconds(answer.total_ms));
    if (typeof answer.mean_logprob === "number") {
      facts.push("mean log-probability " + answer.mean_logprob.toFixed(3).replace("-", "\u2212"));
    }
    if (facts.length) view.append(make("p", "quiet facts-line", facts.join(" \u00b7 ")));
    return view;
  }

  function fieldsView(sample) {
    const details = make("details", "input");
    details.open = openAll.checked;
    const summary = make("summary");
    const entries = Object.entries(sample.fields);
    const preview = entries.map(([name, value]) => name + ": " + shown(value)).join(" \u00b7 ");
    const line = say(make("span", "preview"), preview.replace(/\s+/g, " ").slice(0, 400));
    summary.append(make("span", "part-name", "Input"), " ", line);
    details.append(summary);
    const terms = make("dl", "fields");
    for (const [name, value] of entries) {
      const text = say(make("dd"), shown(value));
      text.dir = "auto";
      terms.append(say(make("dt"), name), text);
    }
    details.append(terms);
    return details;
  }

  function sampleView(sample) {
    const view = make("article", "sample");
    view.tabIndex = -1;
    const head = make("div", "sample-head");
    head.append(say(make("h3"), sample.id));
    const relation = RELATIONS[relationOf(sample)];
    if (relation) head.append(badge(relation[0] + " " + relation[1], relation[2]));
    if (sample.is_sensitive) head.append(badge("sensitive", "open"));
    for (const slice of sample.slices) head.append(say(make("span", "tag"), slice));
    if (sample.cluster) head.append(say(make("span", "tag"), "cluster " + sample.cluster));
    view.append(head, fieldsView(sample));
    const pair = make("div", "answers");
    const others = [];
    for (const name of [data.current, state.challenger]) {
      const column = make("div", "answer-column");
      for (const answer of sample.answers) {
        if (answer.candidate === name) {
          column.append(answerView(answer, name === data.current ? "in use" : null));
        }
      }
      if (column.hasChildNodes()) pair.append(column);
    }
    for (const answer of sample.answers) {
      if (answer.candidate !== data.current && answer.candidate !== state.challenger) others.push(answer);
    }
    view.append(pair);
    if (others.length) {
      const more = make("details", "more");
      more.append(make("summary", "", "other answers (" + others.length + ")"));
      // Filled when opened: most are never read.
      more.addEventListener("toggle", () => {
        if (more.childElementCount > 1) return;
        const grid = make("div", "answers");
        for (const answer of others) grid.append(answerView(answer, null));
        more.append(grid);
      });
      view.append(more);
    }
    return view;
  }

  function draw() {
    const counts = {};
    const matching = [];
    for (const sample of ordered) {
      if (state.slice && !sample.slices.includes(state.slice)) continue;
      if (state.query && !searchText(sample).includes(state.query)) continue;
      const relation = relationOf(sample);
      for (const wanted of ["all", "disagree", "current_better", "challenger_better", "one_fails", "agree"]) {
        if (isIn(relation, wanted)) counts[wanted] = (counts[wanted] || 0) + 1;
      }
      if (isIn(relation, state.relation)) matching.push(sample);
    }
    for (const element of browser.querySelectorAll("[data-count]")) {
      element.textContent = count(counts[element.dataset.count] || 0);
    }
    const nPages = Math.max(1, Math.ceil(matching.length / PAGE));
    state.page = Math.min(state.page, nPages - 1);
    const from = state.page * PAGE;
    const page = matching.slice(from, from + PAGE);
    const range = page.length
      ? count(from + 1) + "\u2013" + count(from + page.length) + " of " + count(matching.length)
      : "none";
    status.textContent = page.length ? "Samples " + range : "No sample matches these filters.";
    for (const pager of browser.querySelectorAll(".pager")) {
      pager.hidden = nPages === 1;
      pager.querySelector(".range").textContent = "page " + count(state.page + 1) + " of " + count(nPages);
      pager.querySelector('[data-page="-1"]').disabled = state.page === 0;
      pager.querySelector('[data-page="1"]').disabled = state.page === nPages - 1;
    }
    list.replaceChildren(...page.map(sampleView));
    return page;
  }

  function redraw() {
    state.page = 0;
    draw();
  }

  /** Shows one sample: filters off, its page, focus on it. */
  function show(id) {
    const index = ordered.findIndex((sample) => sample.id === id);
    if (index < 0) return false;
    Object.assign(state, { relation: "all", slice: "", query: "", page: Math.floor(index / PAGE) });
    browser.querySelector('input[name="relation"][value="all"]').checked = true;
    sliceSelect.value = "";
    search.value = "";
    draw();
    const view = list.children[index - state.page * PAGE];
    view.querySelector("details.input").open = true;
    view.classList.add("found");
    view.focus({ preventScroll: true });
    view.scrollIntoView({ block: "start" });
    return true;
  }

  function option(value, text) {
    const element = say(make("option"), text);
    element.value = value;
    return element;
  }

  challengerSelect.append(...data.challengers.map((name) => option(name, name)));
  challengerSelect.closest("label").hidden = data.challengers.length < 2;
  const slices = [...new Set(data.samples.flatMap((sample) => sample.slices))].sort();
  sliceSelect.append(option("", "all"), ...slices.map((name) => option(name, name)));
  sliceSelect.closest("label").hidden = slices.length === 0;

  challengerSelect.addEventListener("change", () => {
    state.challenger = challengerSelect.value;
    order();
    redraw();
  });
  sliceSelect.addEventListener("change", () => {
    state.slice = sliceSelect.value;
    redraw();
  });
  browser.querySelector("fieldset").addEventListener("change", (event) => {
    state.relation = event.target.value;
    redraw();
  });
  let timer = 0;
  search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      state.query = search.value.trim().toLowerCase();
      redraw();
    }, 150);
  });
  openAll.addEventListener("change", () => {
    for (const details of list.querySelectorAll("details.input")) details.open = openAll.checked;
  });
  browser.addEventListener("click", (event) => {
    const button = event.target.closest("[data-page]");
    if (!button) return;
    state.page += Number(button.dataset.page);
    draw();
    list.focus({ preventScroll: true });
    browser.scrollIntoView({ block: "start" });
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-sample]");
    if (link && show(link.dataset.sample)) event.preventDefault();
  });
  // Paper shows everything that is folded away.
  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });

  order();
  draw();
  browser.hidden = false;
})();
