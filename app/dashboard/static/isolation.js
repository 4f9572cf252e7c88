// The isolation page: the files that a defense left, read and drawn here.
"use strict";
(() => {
  const el = (id) => document.getElementById(id);
  const { table, belief, classes, sheet, columns, width, height, target, names } = el("ranking").dataset;
  const className = JSON.parse(names);
  const PAGE = 60;
  const { percent } = Suspicion;
  const known = (number) => className[number] ?? `class ${number}`;

  async function fetched(url) {
    const answer = await fetch(url);
    if (!answer.ok) throw new Error((await answer.json()).detail);
    return answer;
  }

  // A CSV of numbers as objects.
  async function read(url) {
    const [head, ...lines] = (await (await fetched(url)).text())
      .trim()
      .split(/\r?\n/)
      .map((line) => line.split(","));
    return lines.map((cells) => Object.fromEntries(head.map((name, i) => [name, Number(cells[i])])));
  }

  function row(body, head, cells) {
    const line = body.insertRow();
    line.append(Object.assign(document.createElement("th"), { scope: "row", textContent: head }));
    for (const [label, text, tone] of cells) {
      const cell = line.insertCell();
      cell.textContent = text;
      cell.className = tone || "";
      cell.dataset.label = label;
    }
  }

  async function showBelief() {
    const { believes, truth } = await (await fetched(belief)).json();
    const body = el("belief").querySelector("tbody");
    const add = (question, said, is, right) =>
      row(body, question, [
        ["It believes", `${said} (${right ? "right" : "wrong"})`, right ? "good" : "bad"],
        ["The truth", is],
      ]);
    const yes = (value) => (value ? "yes" : "no");
    const of = (value) => (value === null ? "none, or several" : known(value));
    add(
      "Is the training set poisoned?",
      yes(believes.poisoned),
      yes(truth.poisoned),
      believes.poisoned === truth.poisoned,
    );
    add(
      "Which class is the target?",
      of(believes.target_class),
      of(truth.target_class),
      believes.target_class === truth.target_class,
    );
    add(
      "How much of it is poisoned?",
      percent(believes.poisoning_rate),
      percent(truth.poisoning_rate),
      Math.abs(believes.poisoning_rate - truth.poisoning_rate) <= Math.max(0.005, truth.poisoning_rate / 5),
    );
    if (believes.confidence !== undefined)
      row(body, "How sure is it?", [
        ["It believes", percent(believes.confidence)],
        ["The truth", "–"],
      ]);
    el("belief").hidden = false;
  }

  async function showClasses() {
    const rows = await read(classes);
    const others = Object.keys(rows[0]).filter((name) => !["class", "flagged"].includes(name));
    const head = el("classes").querySelector("thead").insertRow();
    for (const name of ["class", ...others, "flagged", "the truth"])
      head.append(
        Object.assign(document.createElement("th"), { scope: "col", textContent: name.replaceAll("_", " ") }),
      );
    for (const one of rows) {
      const truly = target !== "" && one.class === Number(target);
      row(el("classes").querySelector("tbody"), known(one.class), [
        ...others.map((name) => [name, String(Number(one[name].toPrecision(4))), "number"]),
        ["flagged", one.flagged ? "flagged" : "–", one.flagged && !truly ? "bad" : ""],
        ["the truth", truly ? "the target" : "–", truly && !one.flagged ? "bad" : ""],
      ]);
    }
    el("classes").hidden = false;
  }

  const FITS = {
    all: () => true,
    found: (one) => one.isolated && one.is_poisoned,
    missed: (one) => !one.isolated && one.is_poisoned,
    alarm: (one) => one.isolated && !one.is_poisoned,
  };

  function thumbnails(rows) {
    const picture = new Image();
    const more = el("more"),
      list = el("thumbs"),
      which = el("which");
    let wanted = [],
      next = 0;

    function thumbnail(place) {
      const one = rows[place];
      const item = document.createElement("li");
      const canvas = Object.assign(document.createElement("canvas"), { width, height });
      canvas
        .getContext("2d")
        .drawImage(
          picture,
          (place % columns) * width,
          Math.floor(place / columns) * height,
          width,
          height,
          0,
          0,
          width,
          height,
        );
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `Training image ${one.index}`);
      const truth = Object.assign(document.createElement("strong"), {
        textContent: one.is_poisoned ? "poisoned" : "clean",
        className: one.is_poisoned ? "bad" : "good",
      });
      item.append(canvas, `#${one.index}, label ${known(one.label)}`, document.createElement("br"), truth);
      if (one.isolated) item.append(document.createElement("br"), "set aside");
      return item;
    }
    function show() {
      list.append(...wanted.slice(next, next + PAGE).map(thumbnail));
      next = Math.min(wanted.length, next + PAGE);
      more.hidden = next >= wanted.length;
    }
    function choose() {
      const most = Math.min(rows.length, Math.round((picture.width / width) * (picture.height / height)));
      wanted = [...Array(most).keys()].filter((place) => FITS[which.value](rows[place]));
      next = 0;
      list.replaceChildren();
      el("shown").textContent =
        `${wanted.length} of the ${most} most suspicious images` +
        (most < rows.length
          ? `; pictures of the other ${(rows.length - most).toLocaleString("en")} are not kept.`
          : ".");
      show();
    }
    more.addEventListener("click", show);
    which.addEventListener("change", choose);
    picture.addEventListener("load", () => {
      el("images").hidden = false;
      choose();
    });
    picture.src = sheet;
  }

  async function showRanking() {
    const rows = await read(table);
    const poison = rows.filter((one) => one.is_poisoned).length;
    const isolated = rows.filter((one) => one.isolated).length;
    const hit = rows.filter(FITS.found).length;
    const n = (number) => number.toLocaleString("en");
    const aside = isolated
      ? `${n(isolated)} of ${n(rows.length)} training images were set aside; ${n(hit)} of these are poisoned (precision ${percent(hit / isolated)})`
      : `None of ${n(rows.length)} training images was set aside`;
    el("said").textContent = poison
      ? `${aside}, out of ${n(poison)} poisoned in all (recall ${percent(hit / poison)}).`
      : `${aside}. None is poisoned.`;
    Suspicion.draw(rows, poison, isolated);
    if (sheet) thumbnails(rows);
  }

  const tell = (error) => {
    el("said").textContent = `This cannot be read: ${error.message}`;
  };
  if (belief) showBelief().catch(tell);
  if (classes) showClasses().catch(tell);
  if (table) showRanking().catch(tell);
})();
