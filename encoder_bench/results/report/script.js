"use strict";

// Tables: a click on a heading sorts each half by that column; the form above filters rows.
for (const section of document.querySelectorAll("section[id^='table-']")) {
  const table = section.querySelector("table");
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") !== "descending";
      headings.forEach((each) => each.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      for (const body of table.tBodies) sortRows(body, column, down);
    });
  });
  const form = section.querySelector("form");
  const update = () => filterRows(table, form);
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
}

function sortRows(body, column, down) {
  const value = (row) => {
    const text = row.cells[column].textContent.trim();
    const number = parseFloat(text.replace(/,/g, ""));
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
  const half = form.querySelector("[data-half]").value;
  const blind = form.querySelector("[data-blind]").checked;
  let shown = 0;
  let all = 0;
  for (const body of table.tBodies) {
    for (const row of body.rows) {
      const isBlind = row.classList.contains("blind");
      const text = row.textContent.toLowerCase();
      const mode = row.cells[0].textContent.trim();
      const fits = words.every((word) => text.includes(word)) && (!half || mode === half);
      row.hidden = isBlind ? !blind || (half && mode !== half) : !fits;
      all += !isBlind;
      shown += !isBlind && !row.hidden;
    }
  }
  form.querySelector("[data-count]").textContent = `${shown} of ${all} rows`;
}

// Samples: read once, shown twenty at a time. Every text goes in as text, never as markup.
const source = document.getElementById("sample-data");
if (source) browseSamples(JSON.parse(source.textContent));

function browseSamples(data) {
  const pageSize = 20;
  const pick = (name) => document.getElementById(`pick-${name}`);
  let page = 0;
  const choices = (select, names, selected) => {
    select.replaceChildren(
      ...names.map((name, index) => new Option(name, String(index), false, index === selected)),
    );
  };
  const entry = () => data.tables[Number(pick("table").value)];
  const task = () => Object.keys(entry().tasks)[Number(pick("task").value)];
  const newTable = () => {
    choices(pick("task"), Object.keys(entry().tasks), 0);
    choices(pick("a"), entry().runs, 0);
    choices(pick("b"), entry().runs, Math.min(1, entry().runs.length - 1));
    newPage(0);
  };
  const fits = (sample) => {
    const a = sample.answers[Number(pick("a").value)];
    const b = sample.answers[Number(pick("b").value)];
    const words = pick("text").value.toLowerCase();
    if (words && !JSON.stringify([sample.question, sample.references, sample.answers]).toLowerCase().includes(words)) return false;
    switch (pick("rule").value) {
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
    const shown = found.slice(page * pageSize, (page + 1) * pageSize);
    document.getElementById("sample-count").textContent =
      `${found.length} samples, page ${page + 1} of ${pages}`;
    document.getElementById("previous").disabled = page === 0;
    document.getElementById("next").disabled = page + 1 >= pages;
    document.getElementById("sample-list").replaceChildren(...shown.map(card));
  };
  const card = (sample) => {
    const box = element("article", "sample");
    const left = element("div");
    if (data.images[sample.image]) {
      const image = element("img");
      image.src = data.images[sample.image];
      image.alt = `image ${sample.image}`;
      image.loading = "lazy";
      left.append(image);
    } else {
      left.append(element("div", "none", "no picture"));
    }
    const right = element("div");
    right.append(element("h3", "", sample.question || "Caption"));
    right.append(element("div", "id", `${sample.id} · image ${sample.image}`));
    right.append(element("div", "", `People: ${tally(sample.references)}`));
    const table = element("table");
    sample.answers.forEach((answer, index) => {
      if (!answer) return;
      const row = table.insertRow();
      const picked = [pick("a").value, pick("b").value].includes(String(index));
      row.append(element("td", picked ? "picked" : "", entry().runs[index]));
      row.append(element("td", "", answer.text === "" ? "(empty)" : answer.text));
      const score = answer.unparsed ? "unparsed" : answer.score === null ? "" : String(answer.score);
      row.append(element("td", "n", score));
    });
    right.append(table);
    box.append(left, right);
    return box;
  };
  choices(pick("table"), data.tables.map((each) => each.heading), 0);
  pick("table").addEventListener("input", newTable);
  for (const name of ["task", "a", "b", "rule", "text"]) {
    pick(name).addEventListener("input", () => newPage(0));
  }
  document.getElementById("previous").addEventListener("click", () => newPage(page - 1));
  document.getElementById("next").addEventListener("click", () => newPage(page + 1));
  document.getElementById("sample-filter").addEventListener("submit", (event) => event.preventDefault());
  newTable();
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
