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
  const equal = (a, b) => a === b;
  const close = (a, b) => Math.abs(a - b) <= Math.max(0.005, b / 5);
  const questions = [
    ["Is the training set poisoned?", "poisoned", yesNo, equal],
    ["Which class is the target?", "target_class", target, equal],
    ["What is the poisoning rate?", "poisoning_rate", percent, close],
  ];
  for (const [question, field, format, agree] of questions) {
    const estimate = format(believes[field]);
    if (truth === null) {
      appendRow(el("belief"), question, [
        ["Estimate", estimate],
        ["Truth", "not known"],
      ]);
      continue;
    }
    const correct = agree(believes[field], truth[field]);
    appendRow(el("belief"), question, [
      ["Estimate", `${estimate} (${correct ? "correct" : "wrong"})`, correct ? "good" : "bad"],
      ["Truth", format(truth[field])],
    ]);
  }
  // Divided classes whose sides explain each other are as they should be.
  const unexplained = (believes.removal_tests ?? []).filter((test) => test.unexplained !== false);
  for (const test of unexplained) {
    const name = className(test.label);
    const found = test.poison ? "found to be poison" : "not found to be poison";
    const rows = [
      [`${test.images} images of ${name}, ${found}: recognized by a model trained without them`, test.known],
      [`Other images of ${name} that this model has not seen: recognized by it`, test.known_held_out],
    ];
    for (const [question, share] of rows) {
      appendRow(el("belief"), question, [
        ["Estimate", percent(share)],
        ["Truth", "–"],
      ]);
    }
  }
  for (const decoy of believes.power ?? []) {
    appendRow(
      el("belief"),
      `A ${decoy.trigger} on ${percent(decoy.share)} of a class would be noticed here`,
      [
        ["Estimate", decoy.noticed ? "yes" : "no"],
        ["Truth", "–"],
      ],
    );
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
    const isKnown = data.unknown === undefined;
    const isTarget = data.target !== "" && row.class === Number(data.target);
    const wrong = isKnown && Boolean(row.flagged) !== isTarget;
    appendRow(el("classes"), className(row.class), [
      ...scores.map((name) => [name, String(Number(row[name].toPrecision(4))), "number"]),
      ["flagged", row.flagged ? "flagged" : "–", row.flagged && wrong ? "bad" : ""],
      ["truth", isKnown ? (isTarget ? "the target" : "–") : "not known", isTarget && wrong ? "bad" : ""],
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
  item.append(canvas, `#${image.index}, label ${className(image.label)}`);
  if (image.is_poisoned !== undefined) {
    const truth = image.is_poisoned
      ? { textContent: "poisoned", className: "bad" }
      : { textContent: "clean", className: "good" };
    item.append(create("br"), create("strong", truth));
  }
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
  const isKnown = "is_poisoned" in rows[0];
  const poisoned = rows.filter((image) => image.is_poisoned).length;
  const isolated = rows.filter((image) => image.isolated).length;
  const hits = rows.filter(FILTERS.found).length;
  const total = formatCount(rows.length);
  const count = isolated ? `${formatCount(isolated)} of ${total}` : `None of the ${total}`;
  const summary = `${count} training images were isolated`;
  const found = isolated
    ? `; ${formatCount(hits)} of these are poisoned (precision ${percent(hits / isolated)})`
    : "";
  if (!isKnown) el("message").textContent = `${summary}. It is not known which images are poisoned.`;
  else if (poisoned) {
    const recall = `(recall ${percent(hits / poisoned)})`;
    el("message").textContent =
      `${summary}${found}, out of ${formatCount(poisoned)} poisoned images ${recall}.`;
  } else el("message").textContent = `${summary}${found}. None of the images are poisoned.`;
  if (!isKnown) el("filter").closest("p").hidden = true;
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
