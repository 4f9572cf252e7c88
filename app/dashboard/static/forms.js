// Forms that send a request to the JSON API. Their data attributes: `method` and `url` of the request; after
// success, `refresh` selects the part of the page to fetch again, or `goto` is the page to open.
import { clearErrors, sendRequest, showProblem } from "./api.js";

const el = (id) => document.getElementById(id);

const inputFinder = (form) => (path) =>
  form.querySelector(`[name="${CSS.escape(path.split(/[.[]/)[0])}"]:not([type="checkbox"])`);

// An empty number is null, checkboxes of one name are a list, a hidden input is JSON.
function readValues(form) {
  const body = {};
  for (const input of form.querySelectorAll("input[name]")) {
    if (input.type === "checkbox") {
      body[input.name] ??= [];
      if (input.checked) body[input.name].push(input.value);
    } else if (input.type === "number") {
      const number = input.value === "" ? null : Number(input.value);
      body[input.name] = input.validity.badInput ? "not a number" : number;
    } else body[input.name] = input.type === "hidden" ? JSON.parse(input.value) : input.value.trim();
  }
  return body;
}

function showSecret(secret) {
  el("secret").textContent = secret;
  el("copy").textContent = "Copy";
  el("created").hidden = false;
  el("created").focus();
}

async function submit(form) {
  const { method, url, refresh, goto } = form.dataset;
  const button = form.querySelector("button[type=submit]");
  const outcome = form.querySelector(".outcome");
  button.disabled = true;
  outcome.textContent = "";
  const body = readValues(form);
  const response = await sendRequest(method, url, Object.keys(body).length ? body : undefined);
  button.disabled = false;
  if (!response.ok) {
    outcome.textContent = await showProblem(form, response, inputFinder(form));
    form.querySelector("[aria-invalid]")?.focus();
    return;
  }
  clearErrors(form);
  if (goto) {
    location.assign(goto);
    return;
  }
  const result = await response.json();
  if (refresh) htmx.trigger(refresh, "changed");
  if (result.key || result.secret) showSecret(result.key || result.secret);
  else
    outcome.textContent = result.status ? [result.status, result.reason].filter(Boolean).join(": ") : "Done.";
}

document.addEventListener("submit", (event) => {
  const form = event.target.closest("form.api-form");
  if (!form) return;
  event.preventDefault();
  submit(form);
});
el("copy")?.addEventListener("click", async () => {
  await navigator.clipboard.writeText(el("secret").textContent);
  el("copy").textContent = "Copied";
});
