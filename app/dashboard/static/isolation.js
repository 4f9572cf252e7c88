// The isolation page: the ranking's own file, read and drawn here.
"use strict";
(() => {
  const box = document.getElementById("ranking");
  const said = document.getElementById("said");
  const PAGE = 60, CUTS = 300, BINS = 40;
  const percent = (share) => `${(100 * share).toFixed(1)} %`;

  async function read(url) {
    const answer = await fetch(url);
    if (!answer.ok) throw new Error((await answer.json()).detail);
    const [head, ...lines] = (await answer.text()).trim().split(/\r?\n/).map((line) => line.split(","));
    return lines.map((cells) => Object.fromEntries(head.map((name, i) => [name, Number(cells[i])])));
  }

  // Every chart gets its place before the first is drawn, because its width depends on how many there are.
  const planned = [];
  function chart(title, says, more) {
    const place = document.createElement("div");
    document.getElementById("charts").append(place);
    planned.push({ box: place, title, says, ...more });
  }

  function curve(rows, poison, isolated) {
    const x = [], precision = [], cut = [];
    let found = 0, taken = 0;
    const points = rows.map((row) => { found += row.is_poisoned; taken += 1; return [found / poison, found / taken]; });
    const kept = points.filter((_, i) => i % Math.ceil(points.length / CUTS) === 0 || i === isolated - 1);
    for (const point of kept) {
      x.push(point[0]); precision.push(point[1]);
      cut.push(point === points[isolated - 1] ? point[1] : null);
    }
    const [recall, at] = points[isolated - 1] || [0, 0];
    chart("Precision against recall, over every cut", `At the chosen cut precision is ${percent(at)} and recall ${percent(recall)}.`, {
      x, lines: [{ name: "precision", place: 0, values: precision }, { name: "chosen cut", place: 1, values: cut }],
      percent: true, percentX: true, xLabel: "recall: poison found", yLabel: "precision",
    });
  }

  function histogram(rows, name, label) {
    const values = rows.map((row) => row[name]);
    const low = Math.min(...values), high = Math.max(...values);
    const width = (high - low) / BINS || 1;
    const count = (poisoned) => {
      const bins = new Array(BINS).fill(0);
      for (const row of rows) if (row.is_poisoned === poisoned) bins[Math.min(BINS - 1, Math.floor((row[name] - low) / width))] += 1;
      return bins.map((n) => n || null);
    };
    const x = Array.from({ length: BINS }, (_, i) => low + i * width);
    chart(`${label} of clean (solid) and poisoned (dashed) images`, `Histogram of ${label.toLowerCase()} from ${low.toPrecision(3)} to ${high.toPrecision(3)}, on a logarithmic count.`, {
      x, lines: [{ name: "clean", place: 0, values: count(0) }, { name: "poisoned", place: 1, values: count(1) }],
      log: true, steps: true, xLabel: label.toLowerCase(), yLabel: "images",
    });
  }

  function thumbnails(rows) {
    const { sheet, columns, width, height } = box.dataset;
    if (!sheet) return;
    const picture = new Image();
    let next = 0;
    const more = document.getElementById("more");
    const list = document.getElementById("thumbs");
    function show() {
      const most = Math.min(rows.length, Math.round((picture.width / width) * (picture.height / height)));
      for (const end = Math.min(most, next + PAGE); next < end; next += 1) {
        const row = rows[next];
        const item = document.createElement("li");
        const canvas = document.createElement("canvas");
        canvas.width = width; canvas.height = height;
        canvas.getContext("2d").drawImage(picture, (next % columns) * width, Math.floor(next / columns) * height, width, height, 0, 0, width, height);
        canvas.setAttribute("role", "img");
        canvas.setAttribute("aria-label", `Training image ${row.index}`);
        const truth = document.createElement("strong");
        truth.textContent = row.is_poisoned ? "poisoned" : "clean";
        truth.className = row.is_poisoned ? "bad" : "good";
        item.append(canvas, `#${row.index}, label ${row.label}`, document.createElement("br"), truth);
        if (row.isolated) item.append(document.createElement("br"), "set aside");
        list.append(item);
      }
      more.hidden = next >= most;
    }
    more.addEventListener("click", show);
    picture.addEventListener("load", () => { document.getElementById("images").hidden = false; show(); });
    picture.src = sheet;
  }

  read(box.dataset.table).then((rows) => {
    const poison = rows.filter((row) => row.is_poisoned).length;
    const isolated = rows.filter((row) => row.isolated).length;
    const hit = rows.filter((row) => row.isolated && row.is_poisoned).length;
    said.textContent = `${isolated.toLocaleString("en")} of ${rows.length.toLocaleString("en")} training images were set aside; ` +
      `${hit} of these are poisoned (precision ${isolated ? percent(hit / isolated) : "–"}), out of ${poison} poisoned in all (recall ${poison ? percent(hit / poison) : "–"}).`;
    if (poison) curve(rows, poison, isolated);
    if ("loss" in rows[0]) histogram(rows, "loss", "Loss");
    histogram(rows, "suspicion", "Suspicion");
    planned.forEach(Charts.draw);
    thumbnails(rows);
  }).catch((error) => { said.textContent = `The ranking cannot be read: ${error.message}`; });
})();
