// Keys and limits: forms that ask the JSON API and then show the tables anew.
"use strict";
(() => {
  const el = (id) => document.getElementById(id);
  const found = (form) => (path) => form.querySelector(`[name="${CSS.escape(path.split(/[.[]/)[0])}"]:not([type="checkbox"])`);

  // What a form's inputs say; an empty number is null, checkboxes of one name are a list.
  function values(form) {
    const body = {};
    for (const input of form.querySelectorAll("input[name]")) {
      if (input.type === "checkbox") { body[input.name] ??= []; if (input.checked) body[input.name].push(input.value); }
      else if (input.type === "number") body[input.name] = input.validity.badInput ? "not a number" : input.value === "" ? null : Number(input.value);
      else body[input.name] = input.value.trim();
    }
    return body;
  }

  async function send(form, method, url, done) {
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
    await done(await answer.json(), said);
  }

  el("new-key").addEventListener("submit", (event) => {
    event.preventDefault();
    send(event.target, "POST", "/v1/keys", (made) => {
      const first = !document.querySelector("#keys tr[id]");
      el("key").textContent = made.key;
      el("afterwards").textContent = first
        ? "The service is closed now: reload this page, give any name, and this key as the password."
        : `It acts for ${made.owner} and may: ${made.scopes.join(", ")}.`;
      el("copy").textContent = "Copy the key";
      el("made").hidden = false;
      el("made").focus();
      if (!first) htmx.trigger("#keys", "changed");
    });
  });
  el("copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText(el("key").textContent);
    el("copy").textContent = "Copied";
  });

  document.addEventListener("submit", (event) => {
    const form = event.target.closest("form.ask");
    if (!form) return;
    event.preventDefault();
    send(form, form.dataset.method, form.dataset.url, (_, said) => {
      said.textContent = "Done.";
      htmx.trigger("#keys", "changed");
    });
  });
})();
