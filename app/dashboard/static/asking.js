// Forms that ask the JSON API: faults beside their fields, what came of it below, then the tables anew.
// data-method and data-url say what is asked; data-then which part of the page is fetched again, or data-goto which page is next.
"use strict";
(() => {
  const el = (id) => document.getElementById(id);
  const found = (form) => (path) =>
    form.querySelector(`[name="${CSS.escape(path.split(/[.[]/)[0])}"]:not([type="checkbox"])`);

  // What a form's inputs say; an empty number is null, checkboxes of one name are a list, a hidden input is JSON.
  function values(form) {
    const body = {};
    for (const input of form.querySelectorAll("input[name]")) {
      if (input.type === "checkbox") {
        body[input.name] ??= [];
        if (input.checked) body[input.name].push(input.value);
      } else if (input.type === "number")
        body[input.name] = input.validity.badInput
          ? "not a number"
          : input.value === ""
            ? null
            : Number(input.value);
      else if (input.type === "hidden") body[input.name] = JSON.parse(input.value);
      else body[input.name] = input.value.trim();
    }
    return body;
  }

  // A secret that the service tells once.
  function reveal(secret) {
    el("secret").textContent = secret;
    el("copy").textContent = "Copy it";
    el("made").hidden = false;
    el("made").focus();
  }

  async function ask(form) {
    const { method, url, then, goto } = form.dataset;
    const button = form.querySelector("button[type=submit]");
    const said = form.querySelector(".said");
    button.disabled = true;
    said.textContent = "";
    const body = values(form);
    const answer = await Api.send(method, url, Object.keys(body).length ? body : undefined);
    button.disabled = false;
    if (!answer.ok) {
      said.textContent = await Api.refused(form, answer, found(form));
      form.querySelector("[aria-invalid]")?.focus();
      return;
    }
    Api.clear(form);
    if (goto) {
      location.assign(goto);
      return;
    }
    const told = await answer.json();
    if (then) htmx.trigger(then, "changed");
    if (told.key || told.secret) reveal(told.key || told.secret);
    else said.textContent = told.status ? [told.status, told.reason].filter(Boolean).join(": ") : "Done.";
  }

  document.addEventListener("submit", (event) => {
    const form = event.target.closest("form.ask");
    if (!form) return;
    event.preventDefault();
    ask(form);
  });
  el("copy")?.addEventListener("click", async () => {
    await navigator.clipboard.writeText(el("secret").textContent);
    el("copy").textContent = "Copied";
  });
})();
