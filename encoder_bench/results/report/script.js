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
    // Captions are neither right nor wrong.
    const graded = entry().graded[task()];
    for (const option of pick("rule").querySelectorAll("[data-graded]")) {
      option.hidden = option.disabled = !graded;
      if (option.disabled && option.selected) pick("rule").value = "all";
    }
    newPage(0);
  };
  const newTable = () => {
    choices(pick("task"), Object.keys(entry().tasks), 0);
    choices(pick("a"), entry().runs, 0);
    choices(pick("b"), entry().runs, Math.min(1, entry().runs.length - 1));
    newTask();
  };
  const fits = (sample) => {
    const a = sample.answers[Number(pick("a").value)];
    const b = sample.answers[Number(pick("b").value)];
    const words = pick("text").value.toLowerCase();
    if (words && !JSON.stringify([sample.question, sample.references, sample.answers]).toLowerCase().includes(words)) return false;
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
    const table = element("table");
    sample.answers.forEach((answer, index) => {
      if (!answer) return;
      const row = table.insertRow();
      const picked = [pick("a").value, pick("b").value].includes(String(index));
      row.append(element("td", picked ? "picked" : "", entry().runs[index]));
      row.append(element("td", "", answer.text === "" ? "(empty)" : answer.text));
      const score = answer.unparsed ? "unparsed" : answer.score === null ? "" : String(answer.score);
      const graded = entry().graded[task()];
      const verdict = !graded || answer.unparsed ? "" : isRight(answer) ? "right" : "wrong";
      row.append(element("td", "n", score), element("td", verdict, verdict));
    });
    right.append(table);
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

// A sample is right from 50 points on: VQA's are 0, 30, 60, 90 or 100.
function isRight(answer) {
  return !answer.unparsed && answer.score !== null && answer.score >= 50;
}

// Charts: each can be saved as it stands in a paper, in the light theme's colours.
const chartStyle = document.getElementById("chart-style").textContent;
for (const figure of document.querySelectorAll(".charts figure")) {
  const svg = figure.querySelector("svg");
  const bar = element("div", "save");
  for (const kind of ["SVG", "PNG"]) {
    const button = element("button", "", kind);
    button.type = "button";
    button.setAttribute("aria-label", `Save ${svg.getAttribute("aria-label")} as ${kind}`);
    button.addEventListener("click", () => saveChart(svg, kind));
    bar.append(button);
  }
  figure.append(bar);
}

async function saveChart(svg, kind) {
  const copy = svg.cloneNode(true);
  const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  copy.setAttribute("height", height);
  const style = document.createElementNS(copy.namespaceURI, "style");
  style.textContent = chartStyle;
  copy.prepend(style);
  const text = new XMLSerializer().serializeToString(copy);
  const name = svg.getAttribute("aria-label").toLowerCase().replace(/[^a-z0-9]+/g, "-");
  if (kind === "SVG") {
    download(new Blob([text], { type: "image/svg+xml" }), `${name}.svg`);
    return;
  }
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const canvas = element("canvas");
  canvas.width = 3 * width;
  canvas.height = 3 * height;
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  canvas.toBlob((blob) => download(blob, `${name}.png`), "image/png");
}

function download(blob, name) {
  const link = element("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
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
