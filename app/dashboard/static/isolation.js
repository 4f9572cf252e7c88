// The isolation page: reads and shows the files in which a defense stored what it suspected.
import { percent } from "./charts.js";
import { drawRankingCharts } from "./ranking_charts.js";

const PAGE = 60;
const FILTERS = {
  all: () => true,
  found: (image) => image.isolated && image.is_poisoned,
  missed: (image) => !image.isolated && image.is_poisoned,
  alarm: (image) => image.isolated && !image.is_poisoned,
};
const el = (id) => document.getElementById(id);
const data = el("ranking").dataset;
const names = JSON.parse(data.names);
const className = (number) => names[number] ?? `class ${number}`;
const formatCount = (number) => number.toLocaleString("en");
const create = (tag, properties) => Object.assign(document.createElement(tag), properties);

async function load(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error((await response.json()).detail);
  return response;
}

// The rows of a CSV file of numbers, as objects.
async function loadTable(url) {
  const text = await (await load(url)).text();
  const [head, ...lines] = text
    .trim()
    .split(/\r?\n/)
    .map((line) => line.split(","));
  return lines.map((cells) => Object.fromEntries(head.map((name, i) => [name, Number(cells[i])])));
}

// Appends a row with its header cell and its cells, each [label, text, CSS class].
function appendRow(section, header, cells) {
  const row = section.querySelector("tbody").insertRow();
  row.append(create("th", { scope: "row", textContent: header }));
  for (const [label, textContent, cssClass] of cells) {
    const cell = Object.assign(row.insertCell(), { textContent, className: cssClass || "" });
    cell.dataset.label = label;
  }
}

async function showBelief() {
  const { believes, truth } = await (await load(data.belief)).json();
  const yesNo = (value) => (value ? "yes" : "no");
  const target = (value) => (value === null ? "none, or several" : className(value));
  const error = Math.abs(believes.poisoning_rate - truth.poisoning_rate);
  const questions = [
    ["Is the training set poisoned?", "poisoned", yesNo, believes.poisoned === truth.poisoned],
    ["Which class is the target?", "target_class", target, believes.target_class === truth.target_class],
    [
      "What is the poisoning rate?",
      "poisoning_rate",
      percent,
      error <= Math.max(0.005, truth.poisoning_rate / 5),
    ],
  ];
  for (const [question, field, format, correct] of questions) {
    const estimate = `${format(believes[field])} (${correct ? "correct" : "wrong"})`;
    appendRow(el("belief"), question, [
      ["Estimate", estimate, correct ? "good" : "bad"],
      ["Truth", format(truth[field])],
    ]);
  }
  if (believes.confidence !== undefined) {
    appendRow(el("belief"), "How confident is the defense?", [
      ["Estimate", percent(believes.confidence)],
      ["Truth", "–"],
    ]);
  }
  el("belief").hidden = false;
}

async function showClasses() {
  const rows = await loadTable(data.classes);
  const scores = Object.keys(rows[0]).filter((name) => !["class", "flagged"].includes(name));
  const head = el("classes").querySelector("thead tr");
  for (const name of ["class", ...scores, "flagged", "truth"]) {
    head.append(create("th", { scope: "col", textContent: name.replaceAll("_", " ") }));
  }
  for (const row of rows) {
    const isTarget = data.target !== "" && row.class === Number(data.target);
    const wrong = Boolean(row.flagged) !== isTarget;
    appendRow(el("classes"), className(row.class), [
      ...scores.map((name) => [name, String(Number(row[name].toPrecision(4))), "number"]),
      ["flagged", row.flagged ? "flagged" : "–", row.flagged && wrong ? "bad" : ""],
      ["truth", isTarget ? "the target" : "–", isTarget && wrong ? "bad" : ""],
    ]);
  }
  el("classes").hidden = false;
}

function thumbnail(image, place, sheet) {
  const { columns, width, height } = data;
  const item = document.createElement("li");
  const canvas = create("canvas", { width, height });
  const [left, top] = [(place % columns) * width, Math.floor(place / columns) * height];
  canvas.getContext("2d").drawImage(sheet, left, top, width, height, 0, 0, width, height);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Training image ${image.index}`);
  const truth = image.is_poisoned
    ? { textContent: "poisoned", className: "bad" }
    : { textContent: "clean", className: "good" };
  item.append(
    canvas,
    `#${image.index}, label ${className(image.label)}`,
    create("br"),
    create("strong", truth),
  );
  if (image.isolated) item.append(create("br"), "isolated");
  return item;
}

function showThumbnails(rows, sheet) {
  const stored = Math.min(rows.length, Math.round((sheet.width / data.width) * (sheet.height / data.height)));
  let places = [];
  let shown = 0;
  function showMore() {
    const page = places.slice(shown, shown + PAGE);
    el("thumbs").append(...page.map((place) => thumbnail(rows[place], place, sheet)));
    shown += page.length;
    el("more").hidden = shown >= places.length;
  }
  function applyFilter() {
    const matches = FILTERS[el("filter").value];
    places = [...rows.keys()].filter((place) => place < stored && matches(rows[place]));
    shown = 0;
    el("thumbs").replaceChildren();
    const rest = rows.length - stored;
    el("count").textContent =
      `${places.length} of the ${stored} most suspicious images` +
      (rest ? `; the other ${formatCount(rest)} images are not stored.` : ".");
    showMore();
  }
  el("more").addEventListener("click", showMore);
  el("filter").addEventListener("change", applyFilter);
  el("images").hidden = false;
  applyFilter();
}

async function showRanking() {
  const rows = await loadTable(data.table);
  const poisoned = rows.filter((image) => image.is_poisoned).length;
  const isolated = rows.filter((image) => image.isolated).length;
  const hits = rows.filter(FILTERS.found).length;
  const total = formatCount(rows.length);
  const summary = isolated
    ? `${formatCount(isolated)} of ${total} training images were isolated; ${formatCount(hits)} of these are ` +
      `poisoned (precision ${percent(hits / isolated)})`
    : `None of the ${total} training images were isolated`;
  el("message").textContent = poisoned
    ? `${summary}, out of ${formatCount(poisoned)} poisoned images (recall ${percent(hits / poisoned)}).`
    : `${summary}. None of the images are poisoned.`;
  drawRankingCharts(rows, poisoned, isolated);
  if (!data.sheet) return;
  const sheet = new Image();
  sheet.addEventListener("load", () => showThumbnails(rows, sheet));
  sheet.src = data.sheet;
}

const showError = (error) => {
  el("message").textContent = `Cannot read the files of this page: ${error.message}`;
};
if (data.belief) showBelief().catch(showError);
if (data.classes) showClasses().catch(showError);
if (data.table) showRanking().catch(showError);
