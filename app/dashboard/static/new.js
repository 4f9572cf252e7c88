// The submit form: has the API check what was typed, shows faults beside their fields, previews the trigger, submits.
"use strict";
(() => {
  const el = (id) => document.getElementById(id);
  const form = el("spec");
  const spec = SpecForm(form);
  const count = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
  const { url, page, says } = {
    experiment: {
      url: "/v1/experiments",
      page: "/experiments",
      says: (found) =>
        `It can run: arms ${found.arms.join(", ")}; ${count(found.stages.length, "stage")}, ${found.cached} of them already computed.`,
    },
    sweep: {
      url: "/v1/sweeps",
      page: "/sweeps",
      says: (found) =>
        `It can run: ${count(found.cells, "cell")} with ${count(found.models, "model")} to measure; ${count(found.stages, "stage")}, ${found.cached} of them already computed.`,
    },
    study: {
      url: "/v1/studies",
      page: "/studies",
      says: (found) =>
        `It can run: ${count(found.cells, "cell")}, ${found.reused} of which have their numbers already; ${count(found.experiments, "experiment")} for the rest, of ${count(found.stages, "stage")}, ${found.cached} of them already computed.`,
    },
  }[form.dataset.kind];
  let number = 100; // of the next defense or attack
  let previewed = "",
    shown = "";

  async function check() {
    const { body, faults } = spec.request();
    const text = (shown = JSON.stringify(body, null, 2));
    el("json").textContent = text;
    el("curl").textContent =
      `curl -sf ${location.origin}${url} -H 'Content-Type: application/json' -d '${JSON.stringify(body).replaceAll("'", "'\\''")}'`;
    el("paths")?.replaceChildren(...spec.paths().map((path) => new Option(path, path)));
    if (faults.length) {
      el("verdict").textContent = Api.say(form, faults, spec.find);
      return;
    }
    const answer = await Api.send("POST", `${url}:validate`, body);
    if (shown !== text) return; // changed meanwhile
    if (!answer.ok) {
      el("verdict").textContent = await Api.refused(form, answer, spec.find);
      return;
    }
    const found = await answer.json();
    Api.clear(form);
    if (found.spec) spec.defaults(found.spec);
    el("verdict").textContent = says(found);
    preview(body.base || body);
  }

  async function preview(made) {
    if (!el("preview")) return;
    const body = { dataset: made.dataset, attack: made.attack };
    const text = JSON.stringify(body);
    if (text === previewed) return;
    previewed = text;
    el("preview-said").textContent = "Drawing…";
    const answer = await Api.send("POST", "/v1/previews", body);
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

  form.addEventListener("click", async (event) => {
    const remove = event.target.closest(".remove");
    const add = event.target.closest(".add");
    if (remove) {
      const box = remove.closest(".listed, .axis");
      const beside = box.parentElement.parentElement.querySelector(".add, #add-axis");
      box.remove();
      beside?.focus();
      soon();
    }
    if (add) {
      const part = add.dataset.adds;
      const target = part === "row" ? "#rows" : "#defenses";
      await htmx.ajax(
        "GET",
        `/new/${part}?name=${encodeURIComponent(el(`add-${part}-name`).value)}&number=${number++}`,
        { target, swap: "beforeend" },
      );
      [...document.querySelectorAll(`${target} summary`)].at(-1)?.focus();
    }
  });

  // A field that varies, and its values.
  function axis(path = "", values = "") {
    const id = `axis${number++}`;
    const box = document.createElement("div");
    box.className = "axis fields";
    box.id = id;
    const field = (name, label, value, more) => {
      const part = document.createElement("div");
      part.className = "field";
      const input = Object.assign(document.createElement("input"), {
        id: `${id}-${name}`,
        value,
        autocomplete: "off",
        ...more,
      });
      part.append(
        Object.assign(document.createElement("label"), { htmlFor: input.id, textContent: label }),
        input,
      );
      return part;
    };
    const first = field("path", "Field", path, { placeholder: "attack.poisoning_rate" });
    first.querySelector("input").setAttribute("list", "paths");
    const remove = Object.assign(document.createElement("button"), {
      type: "button",
      className: "quiet remove",
      textContent: "Remove",
    });
    remove.setAttribute("aria-label", "Remove this field");
    box.append(
      first,
      field("values", "Values, with commas between", values, { placeholder: "0.02, 0.05, 0.1" }),
      remove,
    );
    el("axes").append(box);
    return first.querySelector("input");
  }
  if (el("axes")) {
    axis("attack.poisoning_rate", "0.05, 0.1");
    el("add-axis").addEventListener("click", () => {
      axis().focus();
      soon();
    });
  }

  el("copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText(el("json").textContent);
    el("copy").textContent = "Copied";
  });

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const { body, faults } = spec.request();
    if (faults.length) {
      await check();
      form.querySelector("[aria-invalid]")?.focus();
      return;
    }
    el("submit").disabled = true;
    const key = `form-${Date.now()}-${Math.random().toString(36).slice(2)}`;
    const answer = await Api.send("POST", url, body, { "Idempotency-Key": key });
    if (answer.ok) {
      location.assign(`${page}/${(await answer.json()).id}`);
      return;
    }
    el("verdict").textContent = await Api.refused(form, answer, spec.find);
    el("submit").disabled = false;
    form.querySelector("[aria-invalid]")?.focus();
  });
  check();
})();
