"use strict";

// Tables: a click on a heading sorts each mode by that column; the form above filters rows.
for (const section of document.querySelectorAll("section[id^='table-']")) {
  const table = section.querySelector("table");
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      // The best comes first, and names from A on; a second click turns the order.
      const first = heading.classList.contains("n") && button.textContent !== "Mean Rank" ? "descending" : "ascending";
      const down = (heading.getAttribute("aria-sort") === first) !== (first === "descending");
      headings.forEach((each) => each.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      for (const body of table.tBodies) sortRows(body, column, down);
    });
  });
  const notes = new Map();
  for (const note of section.querySelectorAll(".notes li")) {
    const letter = note.querySelector("sup");
    if (letter) notes.set(letter.textContent, note.textContent.slice(letter.textContent.length + 1));
  }
  for (const sup of table.querySelectorAll("sup")) {
    sup.title = sup.textContent.split(",").map((letter) => notes.get(letter)).join("; ");
  }
  const form = section.querySelector("form");
  const update = () => filterRows(table, form);
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
}

function sortRows(body, column, down) {
  const value = (row) => {
    const text = row.cells[column].textContent.trim();
    const counted = text.replace(/,/g, "").match(/^([+-]?[\d.]+)\s*([KMB]?)\b/);
    const scale = { "": 1, K: 1e3, M: 1e6, B: 1e9 };
    const number = counted ? parseFloat(counted[1]) * scale[counted[2]] : NaN;
    return { text, number };
  };
  const rows = [...body.rows].map((row) => ({ row, ...value(row) }));
  rows.sort((a, b) => {
    const blind = a.row.classList.contains("blind") - b.row.classList.contains("blind");
    if (blind) return blind;
    const lacking = Number.isNaN(a.number) - Number.isNaN(b.number);
    if (lacking) return lacking;
    const order = Number.isNaN(a.number) ? a.text.localeCompare(b.text) : a.number - b.number;
    return down ? -order : order;
  });
  body.append(...rows.map((each) => each.row));
}

function filterRows(table, form) {
  const words = form.querySelector("[data-filter]").value.toLowerCase().split(/\s+/).filter(Boolean);
  const mode = form.querySelector("[data-mode]").value;
  const withBlind = form.querySelector("[data-blind]").checked;
  let shown = 0;
  let all = 0;
  for (const body of table.tBodies) {
    for (const row of body.rows) {
      const isBlind = row.classList.contains("blind");
      const text = row.textContent.toLowerCase();
      const ofMode = !mode || row.cells[0].textContent.trim() === mode;
      row.hidden = !ofMode || (isBlind ? !withBlind : !words.every((word) => text.includes(word)));
      all += !isBlind;
      shown += !isBlind && !row.hidden;
    }
  }
  form.querySelector("[data-count]").textContent = `${shown} of ${all} rows`;
}

addEventListener("beforeprint", () => {
  for (const notes of document.querySelectorAll("details.notes")) notes.open = true;
});

// Samples: read once, shown six at a time. Every text goes in as text, never as markup.
const source = document.getElementById("sample-data");
if (source) browseSamples(JSON.parse(source.textContent));

function browseSamples(data) {
  const pageSize = 6;
  const pick = (name) => document.getElementById(`pick-${name}`);
  let page = 0;
  let shown = [];
  let opened = 0;
  const dialog = document.getElementById("sample-open");
  const choices = (select, names, selected) => {
    select.replaceChildren(
      ...names.map((name, index) => new Option(name, String(index), false, index === selected)),
    );
  };
  const entry = () => data.tables[Number(pick("table").value)];
  const task = () => Object.keys(entry().tasks)[Number(pick("task").value)];
  const newTask = () => {
    // Graded answers, such as captions, are neither right nor wrong.
    const judged = entry().right[task()] !== null;
    for (const option of pick("rule").querySelectorAll("[data-verdict]")) {
      option.hidden = option.disabled = !judged;
    }
    const alone = pick("a").value === pick("b").value;
    pick("rule").value = alone ? "all" : judged ? "right-a" : "a";
    newPage(0);
  };
  const newTable = () => {
    choices(pick("task"), Object.keys(entry().tasks), 0);
    choices(pick("a"), entry().runs, 0);
    choices(pick("b"), entry().runs, entry().second);
    newTask();
  };
  const isRight = (answer) =>
    !answer.unparsed && answer.score !== null && answer.score >= entry().right[task()];
  const fits = (sample) => {
    const a = sample.answers[Number(pick("a").value)];
    const b = sample.answers[Number(pick("b").value)];
    const words = pick("text").value.toLowerCase();
    const answers = sample.answers.map((answer) => (answer ? answer.text : ""));
    const texts = [sample.question, ...sample.references, ...answers].join("\n").toLowerCase();
    if (!texts.includes(words)) return false;
    switch (pick("rule").value) {
      case "right-a": return Boolean(a && b && isRight(a) && !isRight(b));
      case "right-b": return Boolean(a && b && isRight(b) && !isRight(a));
      case "wrong": return Boolean(a && b && !isRight(a) && !isRight(b));
      case "every": return sample.answers.every((answer) => !answer || !isRight(answer));
      case "a": return Boolean(a && b && a.score > b.score);
      case "b": return Boolean(a && b && b.score > a.score);
      case "differ": return Boolean(a && b && a.text !== b.text);
      case "unparsed": return Boolean(a && a.unparsed);
      default: return true;
    }
  };
  const newPage = (to) => {
    const found = (entry().tasks[task()] || []).filter(fits);
    const pages = Math.max(1, Math.ceil(found.length / pageSize));
    page = Math.min(Math.max(0, to), pages - 1);
    shown = found.slice(page * pageSize, (page + 1) * pageSize);
    document.getElementById("sample-count").textContent =
      `${found.length} samples, page ${page + 1} of ${pages}`;
    document.getElementById("previous").disabled = page === 0;
    document.getElementById("next").disabled = page + 1 >= pages;
    document.getElementById("sample-list").replaceChildren(
      ...shown.map((sample, index) => card(sample, () => open(index))),
    );
  };
  // One sample at a time, with its picture larger; arrow keys go on, Escape closes.
  const open = (index) => {
    const turn = index < 0 ? -1 : index >= shown.length ? 1 : 0;
    if (turn && !document.getElementById(turn < 0 ? "previous" : "next").disabled) {
      newPage(page + turn);
      index = turn < 0 ? shown.length - 1 : 0;
    }
    opened = (index + shown.length) % shown.length;
    dialog.querySelector("[data-body]").replaceChildren(card(shown[opened], null));
    if (!dialog.open) dialog.showModal();
  };
  for (const button of dialog.querySelectorAll("[data-step]")) {
    button.addEventListener("click", () => open(opened + Number(button.dataset.step)));
  }
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) open(opened + step);
  });
  const card = (sample, onOpen) => {
    const box = element("article", "sample");
    const left = element("div");
    if (data.images[sample.image]) {
      const image = element("img");
      image.src = data.images[sample.image];
      image.alt = `image ${sample.image}`;
      left.append(image);
    } else {
      left.append(element("div", "none", "no picture"));
    }
    const right = element("div");
    const heading = element("h3");
    if (onOpen) {
      const button = element("button", "", sample.question || "Caption");
      button.type = "button";
      button.addEventListener("click", onOpen);
      heading.append(button);
    } else {
      heading.textContent = sample.question || "Caption";
    }
    right.append(heading);
    right.append(element("div", "id", `${sample.id} · image ${sample.image}`));
    right.append(element("div", "", `People: ${tally(sample.references)}`));
    const row = (index, letter) => {
      const answer = sample.answers[index];
      const made = element("tr");
      const score = answer.unparsed ? "unparsed" : answer.score === null ? "" : String(answer.score);
      const judged = entry().right[task()] !== null;
      const verdict = !judged || answer.unparsed ? "" : isRight(answer) ? "right" : "wrong";
      made.append(
        element("td", letter ? "picked" : "", letter + entry().runs[index]),
        element("td", "", answer.text === "" ? "(empty)" : answer.text),
        element("td", "n", score),
        element("td", verdict, verdict),
      );
      return made;
    };
    const picked = [...new Set([pick("a").value, pick("b").value].map(Number))];
    const table = element("table");
    picked.forEach((index, n) => sample.answers[index] && table.append(row(index, `${"AB"[n]}: `)));
    const others = sample.answers.flatMap((answer, n) => (answer && !picked.includes(n) ? [n] : []));
    const more = element("details");
    if (others.length) {
      more.append(element("summary", "", `${others.length} other answers`));
      more.addEventListener("toggle", () => {
        if (more.childElementCount > 1) return;
        const rest = element("table");
        rest.append(...others.map((index) => row(index, "")));
        more.append(rest);
      });
    }
    right.append(table);
    if (others.length) right.append(more);
    box.append(left, right);
    return box;
  };
  choices(pick("table"), data.tables.map((each) => each.heading), 0);
  pick("table").closest("label").hidden = data.tables.length < 2;
  pick("table").addEventListener("input", newTable);
  pick("task").addEventListener("input", newTask);
  for (const name of ["a", "b", "rule", "text"]) {
    pick(name).addEventListener("input", () => newPage(0));
  }
  document.getElementById("previous").addEventListener("click", () => newPage(page - 1));
  document.getElementById("next").addEventListener("click", () => newPage(page + 1));
  document.getElementById("sample-filter").addEventListener("submit", (event) => event.preventDefault());
  newTable();
}

// Charts: colours are the page's CSS variables, so that they follow its theme; a saved chart has
// those of the light theme.
const charts = JSON.parse(document.getElementById("chart-data").textContent);
const chartOptions = { renderer: "svg", actions: false, ast: true, config: charts.config };
chartOptions.tooltip = { disableDefaultStyle: true };
for (const box of document.querySelectorAll("[data-chart]")) drawChart(box);

async function drawChart(box) {
  const spec = charts.specs[Number(box.dataset.chart)];
  await vegaEmbed(box, spec, chartOptions);
  box.querySelector("svg").setAttribute("aria-label", spec.description);
  const bar = element("div", "save");
  for (const kind of ["SVG", "PNG"]) {
    const button = element("button", "", kind);
    button.type = "button";
    button.setAttribute("aria-label", `Save ${spec.description} as ${kind}`);
    button.addEventListener("click", () => saveChart(spec, kind.toLowerCase()));
    bar.append(button);
  }
  box.parentElement.append(bar);
}

async function saveChart(spec, kind) {
  const text = JSON.stringify([spec, charts.config]);
  const light = text.replace(/var\(--(\w+)\)/g, (_, name) => charts.light[name]);
  const [copy, config] = JSON.parse(light);
  const { view } = await vegaEmbed(element("div"), copy, { ...chartOptions, config });
  const link = element("a");
  link.href = await view.toImageURL(kind, kind === "png" ? 3 : 1);
  link.download = `${spec.description.toLowerCase().replace(/[^a-z0-9]+/g, "-")}.${kind}`;
  link.click();
  view.finalize();
}

function element(name, css = "", text = null) {
  const made = document.createElement(name);
  if (css) made.className = css;
  if (text !== null) made.textContent = text;
  return made;
}

// "2 (8), 3 (2)" for ten answers; captions as they are.
function tally(references) {
  const counts = new Map();
  for (const each of references) counts.set(each, (counts.get(each) || 0) + 1);
  return [...counts].map(([text, count]) => (count > 1 ? `${text} (${count})` : text)).join(" · ");
}
