// The submission form: validates the input while it is typed, previews the trigger, and submits.
import { clearErrors, sendRequest, showErrors, showProblem } from "./api.js";
import { SpecForm } from "./spec_form.js";

const el = (id) => document.getElementById(id);
const form = el("spec");
const specForm = new SpecForm(form);
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
const stages = (plan) =>
  `${plural(plan.stages.length ?? plan.stages, "stage")}, ${plan.cached} already computed`;
const { path, summarize } = {
  experiment: {
    path: "/experiments",
    summarize: (plan) => `arms ${plan.arms.join(", ")}; ${stages(plan)}`,
  },
  sweep: {
    path: "/sweeps",
    summarize: (plan) =>
      `${plural(plan.cells, "cell")} with ${plural(plan.models, "model")} to measure; ${stages(plan)}`,
  },
  study: {
    path: "/studies",
    summarize: (plan) =>
      `${plural(plan.cells, "cell")}, ${plan.reused} with results already; ` +
      `${plural(plan.experiments, "experiment")} for the rest, with ${stages(plan)}`,
  },
}[form.dataset.kind];
let nextNumber = 100; // of the next defense, attack or axis; the page itself numbers from 0
let validated = "";
let previewed = "";
let pending;

async function showPreview({ dataset, attack }) {
  const image = el("preview");
  const body = { dataset, attack };
  const text = JSON.stringify(body);
  if (!image || text === previewed) return;
  previewed = text;
  el("preview-message").textContent = "Rendering…";
  const response = await sendRequest("POST", "/v1/previews", body);
  if (text !== previewed) return; // changed in the meantime
  image.hidden = !response.ok;
  if (!response.ok) {
    el("preview-message").textContent = (await response.json()).detail;
    return;
  }
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(await response.blob());
  image.alt =
    `Test images of ${dataset.key || dataset.name} without and with the trigger of ${attack.name}, ` +
    "and the difference.";
  el("preview-message").textContent = "Without the trigger, with it, and the difference.";
}

async function validate() {
  const { body, errors } = specForm.readRequest();
  const text = JSON.stringify(body, null, 2);
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  validated = text;
  el("json").textContent = text;
  el("curl").textContent =
    `curl -sf ${location.origin}/v1${path} -H 'Content-Type: application/json' -d '${quoted}'`;
  el("paths")?.replaceChildren(...specForm.sweepPaths().map((field) => new Option(field, field)));
  if (errors.length) {
    el("verdict").textContent = showErrors(form, errors, specForm.findInput);
    return;
  }
  const response = await sendRequest("POST", `/v1${path}:validate`, body);
  if (text !== validated) return; // changed in the meantime
  if (!response.ok) {
    el("verdict").textContent = await showProblem(form, response, specForm.findInput);
    return;
  }
  const plan = await response.json();
  clearErrors(form);
  if (plan.spec) specForm.showDefaults(plan.spec);
  el("verdict").textContent = `Valid: ${summarize(plan)}.`;
  showPreview(body.base || body);
}

function validateSoon() {
  clearTimeout(pending);
  pending = setTimeout(validate, 300);
}

async function submit() {
  const { body, errors } = specForm.readRequest();
  if (errors.length) {
    await validate();
    form.querySelector("[aria-invalid]")?.focus();
    return;
  }
  el("submit").disabled = true;
  const key = `form-${Date.now()}-${Math.random().toString(36).slice(2)}`;
  const response = await sendRequest("POST", `/v1${path}`, body, { "Idempotency-Key": key });
  if (response.ok) {
    location.assign(`${path}/${(await response.json()).id}`);
    return;
  }
  el("verdict").textContent = await showProblem(form, response, specForm.findInput);
  el("submit").disabled = false;
  form.querySelector("[aria-invalid]")?.focus();
}

async function addListed(part) {
  const target = part === "row" ? "#rows" : "#defenses";
  const query = new URLSearchParams({ name: el(`add-${part}-name`).value, number: nextNumber++ });
  await htmx.ajax("GET", `/new/${part}?${query}`, { target, swap: "beforeend" });
  [...document.querySelectorAll(`${target} summary`)].at(-1)?.focus();
}

function removeBox(box) {
  const addButton = box.parentElement.parentElement.querySelector(".add, #add-axis");
  box.remove();
  addButton?.focus();
  validateSoon();
}

// An axis is a field of the spec that a sweep varies, with its values.
function addAxis(field, values) {
  const box = el("axis-template").content.firstElementChild.cloneNode(true);
  box.id = `axis${nextNumber++}`;
  const labels = box.querySelectorAll("label");
  const inputs = box.querySelectorAll("input");
  [field, values].forEach((value, i) => {
    inputs[i].id = labels[i].htmlFor = `${box.id}-${inputs[i].name}`;
    inputs[i].value = value;
  });
  el("axes").append(box);
  return inputs[0];
}

if (el("axes")) {
  addAxis("attack.poisoning_rate", "0.05, 0.1");
  el("add-axis").addEventListener("click", () => {
    addAxis("", "").focus();
    validateSoon();
  });
}
form.addEventListener("input", validateSoon);
document.addEventListener("htmx:after:swap", validateSoon);
form.addEventListener("click", (event) => {
  const remove = event.target.closest(".remove");
  const add = event.target.closest(".add");
  if (remove) removeBox(remove.closest(".listed, .axis"));
  if (add) addListed(add.dataset.adds);
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
el("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText(el("json").textContent);
  el("copy").textContent = "Copied";
});
validate();
