// The submit form: builds the spec from what was changed, has the API check it, shows faults beside their fields.
"use strict";
(() => {
  const el = (id) => document.getElementById(id);
  const form = el("spec");
  let number = 1; // of the next defence
  let previewed = "", shown = "";

  const READ = {
    integer: Number, number: Number, text: (t) => t, choice: (t) => t, boolean: (t) => t === "true",
    json: (t) => { try { return JSON.parse(t); } catch { return t; } },
    list: (t) => t.split(/[\s,]+/).filter(Boolean).map((part) => (part === "" || Number.isNaN(Number(part)) ? part : Number(part))),
    tags: (t) => Object.fromEntries(t.trim().split(/\s+/).map((pair) => { const [key, ...rest] = pair.split(":"); return [key, rest.join(":")]; })),
  };

  // What the inputs of `scope` say, as an object; those that are empty are left out.
  function values(scope) {
    const found = {};
    for (const input of scope) {
      const { field, kind } = input.dataset;
      if (kind === undefined) continue;
      if (kind === "check") { if (input.checked) found[field] = true; continue; }
      if (input.validity && input.validity.badInput) { put(found, field, "not a number"); continue; }
      if (input.value.trim() !== "") put(found, field, READ[kind](input.value));
    }
    return found;
  }

  function put(into, path, value) {
    const names = path.split(".");
    const last = names.pop();
    names.reduce((at, name) => (at[name] ??= {}), into)[last] = value;
  }

  const inputs = (box) => [...box.querySelectorAll("[data-field]")];
  const parts = () => [...form.querySelectorAll("fieldset[data-part]:not(.defense)")];
  const defenses = () => [...form.querySelectorAll("fieldset.defense")];

  function spec() {
    const made = values(inputs(form).filter((input) => !input.closest("[data-part]")));
    for (const box of parts()) {
      const part = values(inputs(box));
      const chosen = el(`${box.dataset.part}-name`);
      if (chosen) {
        const [name, key] = chosen.value.split("/");
        made[box.dataset.part] = key ? { name, key, ...part } : { name, ...part };
      } else if (Object.keys(part).length) made[box.dataset.part] = part;
    }
    if (defenses().length) made.defenses = defenses().map((box) => ({ name: box.dataset.name, ...values(inputs(box)) }));
    return made;
  }

  // The input that a fault is about: "attack.size", "defenses[1].gamma", "seeds[0]", "tags.study".
  function blamed(path) {
    const [, place, inner] = path.match(/^defenses\[(\d+)\]\.?(.*)$/) || [];
    const box = place === undefined ? parts().find((b) => path.startsWith(`${b.dataset.part}.`)) : defenses()[Number(place)];
    if (box) {
      const field = place === undefined ? path.slice(box.dataset.part.length + 1) : inner;
      return inputs(box).find((input) => input.dataset.field === field || field.startsWith(`${input.dataset.field}[`));
    }
    return inputs(form).find((input) => !input.closest("[data-part]") && path.split(/[.[]/)[0] === input.dataset.field.split(".")[0]);
  }

  function clear() {
    form.querySelectorAll(".fault").forEach((line) => line.remove());
    form.querySelectorAll("[aria-invalid]").forEach((input) => {
      input.removeAttribute("aria-invalid");
      input.removeAttribute("aria-errormessage");
    });
    el("faults").replaceChildren();
    el("faults").hidden = true;
  }

  function blame(fault) {
    const input = blamed(fault.field);
    const line = document.createElement(input ? "p" : "li");
    if (!input) {
      line.textContent = `${fault.field}: ${fault.message}`;
      el("faults").append(line);
      el("faults").hidden = false;
      return;
    }
    line.className = "fault";
    line.id = `${input.id}-fault`;
    line.textContent = fault.message;
    input.setAttribute("aria-invalid", "true");
    input.setAttribute("aria-errormessage", line.id);
    input.closest("details")?.setAttribute("open", "");
    input.after(line);
  }

  const post = (url, body, headers = {}) => fetch(url, {
    method: "POST", headers: { "Content-Type": "application/json", ...headers }, body: JSON.stringify(body),
  });

  async function told(answer) {
    clear();
    const problem = await answer.json();
    const faults = problem.errors || [];
    faults.forEach(blame);
    el("verdict").textContent = faults.length
      ? `${faults.length} field${faults.length > 1 ? "s need" : " needs"} another value: ${faults.map((f) => f.field).join(", ")}.`
      : problem.detail;
  }

  // A preset changes other defaults; the canonical spec says what an empty field stands for.
  function defaults(canonical) {
    const show = (box, of) => inputs(box).forEach((input) => {
      const value = input.dataset.field.split(".").reduce((at, name) => at?.[name], of);
      if (value === undefined || value === null) return;
      const text = value === true ? "yes" : value === false ? "no" : typeof value === "string" ? value : JSON.stringify(value);
      if (input.tagName === "SELECT") { if (!input.value) input.options[0].textContent = `default (${text})`; }
      else if (!input.value) input.placeholder = text;
    });
    parts().forEach((box) => show(box, canonical[box.dataset.part]));
    defenses().forEach((box, place) => show(box, canonical.defenses[place]));
  }

  async function check() {
    const made = spec();
    const text = JSON.stringify(made, null, 2);
    shown = text;
    el("json").textContent = text;
    el("curl").textContent = `curl -sf ${location.origin}/v1/experiments -H 'Content-Type: application/json' -d '${JSON.stringify(made).replaceAll("'", "'\\''")}'`;
    const answer = await post("/v1/experiments:validate", made);
    if (shown !== text) return; // changed meanwhile
    if (!answer.ok) { await told(answer); return; }
    const found = await answer.json();
    clear();
    defaults(found.spec);
    el("verdict").textContent = `It can run: arms ${found.arms.join(", ")}; ${found.stages.length} stages, ${found.cached} of them already computed.`;
    preview(made);
  }

  async function preview(made) {
    const body = { dataset: made.dataset, attack: made.attack };
    const text = JSON.stringify(body);
    if (text === previewed) return;
    previewed = text;
    el("preview-said").textContent = "Drawing…";
    const answer = await post("/v1/previews", body);
    if (previewed !== text) return;
    const image = el("preview");
    if (!answer.ok) {
      image.hidden = true;
      el("preview-said").textContent = (await answer.json()).detail;
      return;
    }
    URL.revokeObjectURL(image.src);
    image.src = URL.createObjectURL(await answer.blob());
    image.alt = `Test images of ${made.dataset.key || made.dataset.name} without the trigger of ${made.attack.name}, with it, and the difference.`;
    image.hidden = false;
    el("preview-said").textContent = "Without the trigger, with it, and the difference.";
  }

  let waiting;
  function soon() {
    clearTimeout(waiting);
    waiting = setTimeout(check, 300);
  }

  form.addEventListener("input", soon);
  document.addEventListener("htmx:after:swap", soon);
  form.addEventListener("click", (event) => {
    const remove = event.target.closest(".remove");
    if (!remove) return;
    remove.closest("fieldset").remove();
    el("add").focus();
    soon();
  });
  el("add").addEventListener("click", async () => {
    await htmx.ajax("GET", `/new/defense?name=${encodeURIComponent(el("add-name").value)}&number=${number++}`, { target: "#defenses", swap: "beforeend" });
    defenses().at(-1)?.querySelector("summary").focus();
  });
  el("copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText(el("json").textContent);
    el("copy").textContent = "Copied";
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    el("submit").disabled = true;
    const key = `form-${Date.now()}-${Math.random().toString(36).slice(2)}`;
    const answer = await post("/v1/experiments", spec(), { "Idempotency-Key": key });
    if (answer.ok) {
      location.assign(`/experiments/${(await answer.json()).id}`);
      return;
    }
    await told(answer);
    el("submit").disabled = false;
    form.querySelector("[aria-invalid]")?.focus();
  });
  check();
})();
