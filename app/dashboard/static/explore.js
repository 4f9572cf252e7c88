// The prediction explorer: one image through every arm's model.
"use strict";
(() => {
  const form = document.getElementById("ask");
  if (!form) return;
  const el = (id) => document.getElementById(id);
  const index = el("index"),
    trigger = el("trigger"),
    said = el("said");
  const MOST = 10;
  const names = JSON.parse(form.dataset.names);
  let shown; // URL of the picture, to be given back
  let latest = 0;

  // The address names what is shown, so that it can be sent to somebody.
  const asked = new URLSearchParams(location.search);
  if (asked.has("index")) index.value = asked.get("index");
  if (trigger) trigger.checked = asked.get("triggered") === "true";
  if ([...el("seed").options].some((option) => option.value === asked.get("seed")))
    el("seed").value = asked.get("seed");

  async function ask() {
    if (!index.reportValidity()) return;
    const turn = ++latest;
    said.textContent = "Asking…";
    const body = {
      index: index.valueAsNumber,
      triggered: Boolean(trigger && trigger.checked),
      seed: Number(el("seed").value),
    };
    history.replaceState(null, "", `?${new URLSearchParams(body)}`);
    const answer = await fetch(form.dataset.predict, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    const told = await answer.json();
    if (turn !== latest) return; // another question was asked meanwhile
    if (!answer.ok) {
      said.textContent = told.detail;
      return;
    }
    said.textContent =
      `Image ${body.index}, ${body.triggered ? "with" : "without"} the trigger: ` +
      told.arms.map((arm) => `${arm.arm} says ${arm.class_name}`).join(", ") +
      ".";
    show(told, body);
  }

  function show(told, body) {
    const bytes = Uint8Array.from(atob(told.picture), (c) => c.charCodeAt(0));
    if (shown) URL.revokeObjectURL(shown);
    shown = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
    el("picture").src = shown;
    el("picture").alt =
      `Test image ${body.index}, of class ${told.image.label_name}${body.triggered ? ", with the trigger" : ""}`;
    el("truth").textContent = `Test image ${body.index}: its true class is ${told.image.label_name}`;
    el("arms").replaceChildren(...told.arms.map((arm) => card(arm, told.image, body.triggered)));
    el("answer").hidden = false;
  }

  function card(arm, image, triggered) {
    const box = document.createElement("section");
    box.className = "card";
    const right = arm.class === image.label;
    const fooled = !right && triggered && String(arm.class) === form.dataset.target;
    const verdict = right ? "right" : fooled ? "the attacker's target" : "wrong";
    box.innerHTML = `<h3></h3><p>says <strong></strong> <span class="tag"></span></p><table><tbody></tbody></table>`;
    box.querySelector("h3").textContent = arm.arm;
    box.querySelector("strong").textContent = arm.class_name;
    const tag = box.querySelector(".tag");
    tag.textContent = verdict;
    tag.classList.add(right ? "good" : "bad");
    const best = arm.probabilities
      .map((p, k) => [p, k])
      .sort((a, b) => b[0] - a[0])
      .slice(0, MOST);
    for (const [p, k] of best.filter(([p], place) => place < 3 || p >= 0.001)) {
      const row = box.querySelector("tbody").insertRow();
      const name = document.createElement("th");
      name.scope = "row";
      name.textContent = names[k];
      const bar = document.createElement("progress");
      bar.value = p;
      bar.setAttribute("aria-label", `Probability of ${name.textContent}`);
      row.append(name);
      row.insertCell().append(bar);
      const value = row.insertCell();
      value.className = "number";
      value.textContent = `${(100 * p).toFixed(1)} %`;
    }
    return box;
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  const step = (by) => {
    index.value = Math.max(0, (index.valueAsNumber || 0) + by);
    ask();
  };
  el("previous").addEventListener("click", () => step(-1));
  el("following").addEventListener("click", () => step(1));
  index.addEventListener("change", ask);
  el("seed").addEventListener("change", ask);
  if (trigger) trigger.addEventListener("change", ask);
  ask();
})();
