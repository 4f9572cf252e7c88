// The predictions page: sends one test image through the model of every arm.
import { percent } from "./charts.js";

const MOST_CLASSES = 10;
const el = (id) => document.getElementById(id);
const form = el("predict");
const index = el("index");
const trigger = el("trigger");
const message = el("message");
let pictureUrl;
let latest = 0;

function classRow(name, probability) {
  const row = document.createElement("tr");
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = name;
  const bar = document.createElement("progress");
  bar.value = probability;
  bar.setAttribute("aria-label", `Probability of ${name}`);
  row.append(head);
  row.insertCell().append(bar);
  const value = row.insertCell();
  value.className = "number";
  value.textContent = percent(probability);
  return row;
}

function showDetection(line, { suspicion, threshold, flagged }) {
  const tag = document.createElement("span");
  tag.className = `tag ${flagged ? "bad" : "good"}`;
  tag.textContent = flagged ? "flagged as triggered" : "not flagged";
  const [score, limit] = [suspicion, threshold].map((value) => Number(value.toPrecision(4)));
  line.append("input detection: ", tag, ` suspicion ${score}, threshold ${limit}`);
  line.hidden = false;
}

function armCard(prediction, image, triggered) {
  const card = document.createElement("section");
  card.className = "card";
  card.innerHTML = `<h3></h3><p>predicts <strong></strong> <span class="tag"></span></p><p class="detection" hidden></p><table><tbody></tbody></table>`;
  card.querySelector("h3").textContent = prediction.arm;
  card.querySelector("strong").textContent = prediction.class_name;
  const correct = prediction.class === image.label;
  const attacked = triggered && String(prediction.class) === form.dataset.target;
  const tag = card.querySelector(".tag");
  tag.textContent = correct ? "correct" : attacked ? "the attack's target" : "wrong";
  tag.classList.add(correct ? "good" : "bad");
  if (prediction.detection) showDetection(card.querySelector(".detection"), prediction.detection);
  const names = JSON.parse(form.dataset.names);
  const likeliest = prediction.probabilities
    .map((probability, k) => [names[k], probability])
    .toSorted((a, b) => b[1] - a[1])
    .slice(0, MOST_CLASSES)
    .filter(([, probability], place) => place < 3 || probability >= 0.001);
  card.querySelector("tbody").append(...likeliest.map(([name, probability]) => classRow(name, probability)));
  return card;
}

function showPredictions({ arms, image, picture }, { index: number, triggered }) {
  const bytes = Uint8Array.from(atob(picture), (character) => character.charCodeAt(0));
  URL.revokeObjectURL(pictureUrl);
  pictureUrl = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
  el("picture").src = pictureUrl;
  el("picture").alt =
    `Test image ${number}, class ${image.label_name}${triggered ? ", with the trigger" : ""}`;
  el("truth").textContent = `Test image ${number}, true class: ${image.label_name}`;
  el("arms").replaceChildren(...arms.map((arm) => armCard(arm, image, triggered)));
  el("predictions").hidden = false;
}

async function predict() {
  if (!index.reportValidity()) return;
  const request = ++latest;
  message.textContent = "Running the models…";
  const body = {
    index: index.valueAsNumber,
    triggered: Boolean(trigger?.checked),
    seed: Number(el("seed").value),
  };
  history.replaceState(null, "", `?${new URLSearchParams(body)}`); // so that the URL can be shared
  const response = await fetch(form.dataset.url, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  const result = await response.json();
  if (request !== latest) return; // a later request was sent in the meantime
  if (!response.ok) {
    message.textContent = result.detail;
    return;
  }
  const predictions = result.arms.map((arm) => `${arm.arm} predicts ${arm.class_name}`).join(", ");
  message.textContent = `Image ${body.index}, ${body.triggered ? "with" : "without"} the trigger: ${predictions}.`;
  showPredictions(result, body);
}

function readUrl() {
  const query = new URLSearchParams(location.search);
  if (query.has("index")) index.value = query.get("index");
  if (trigger) trigger.checked = query.get("triggered") === "true";
  const seeds = [...el("seed").options].map((option) => option.value);
  if (seeds.includes(query.get("seed"))) el("seed").value = query.get("seed");
}

function showNeighbor(offset) {
  index.value = Math.max(0, (index.valueAsNumber || 0) + offset);
  predict();
}

if (form) {
  readUrl();
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    predict();
  });
  el("previous").addEventListener("click", () => showNeighbor(-1));
  el("next").addEventListener("click", () => showNeighbor(1));
  index.addEventListener("change", predict);
  el("seed").addEventListener("change", predict);
  trigger?.addEventListener("change", predict);
  predict();
}
