// What a ranking of the training images shows, as charts: precision against recall, and histograms.
"use strict";
const Suspicion = (() => {
  const CUTS = 300,
    BINS = 40;
  const percent = (share) => `${(100 * share).toFixed(1)} %`;

  // Every chart gets its place before the first is drawn, because its width depends on how many there are.
  const planned = [];
  function chart(title, says, more) {
    const place = document.createElement("div");
    document.getElementById("charts").append(place);
    planned.push({ box: place, title, says, ...more });
  }

  function curve(rows, poison, isolated) {
    const x = [],
      precision = [],
      cut = [];
    let found = 0,
      taken = 0;
    const points = rows.map((row) => {
      found += row.is_poisoned;
      taken += 1;
      return [found / poison, found / taken];
    });
    const kept = points.filter((_, i) => i % Math.ceil(points.length / CUTS) === 0 || i === isolated - 1);
    for (const point of kept) {
      x.push(point[0]);
      precision.push(point[1]);
      cut.push(point === points[isolated - 1] ? point[1] : null);
    }
    const [recall, at] = points[isolated - 1] || [0, 0];
    const says = isolated
      ? `At the chosen cut precision is ${percent(at)} and recall ${percent(recall)}.`
      : "Nothing was set aside, so there is no chosen cut.";
    chart(
      isolated
        ? "Precision against recall; the circle is the chosen cut"
        : "Precision against recall, over every cut",
      says,
      {
        x,
        lines: [
          { name: "precision", place: 0, values: precision },
          { name: "chosen cut", place: 1, values: cut },
        ],
        percent: true,
        percentX: true,
        xLabel: "recall: poison found",
        yLabel: "precision",
      },
    );
  }

  // Losses lie within a few powers of ten, so their bins are equal on a logarithmic axis.
  function histogram(rows, name, label, log) {
    const values = rows.map((row) => row[name]);
    const least = log ? values.reduce((a, b) => (b > 0 && b < a ? b : a), Infinity) : 0;
    const scale = log ? (value) => Math.log(Math.max(value, least)) : (value) => value;
    const back = log ? Math.exp : (value) => value;
    const low = values.reduce((a, b) => Math.min(a, scale(b)), Infinity),
      high = values.reduce((a, b) => Math.max(a, scale(b)), -Infinity);
    const width = (high - low) / BINS || 1;
    const count = (poisoned) => {
      const bins = new Array(BINS + 1).fill(0);
      for (const row of rows)
        if (row.is_poisoned === poisoned)
          bins[Math.min(BINS - 1, Math.floor((scale(row[name]) - low) / width))] += 1;
      bins[BINS] = bins[BINS - 1]; // the right edge of the last bin
      return bins.map((n) => n || null);
    };
    const x = Array.from({ length: BINS + 1 }, (_, i) => back(low + i * width));
    chart(
      `${label} of clean (solid) and poisoned (dashed) images`,
      `Histogram of ${label.toLowerCase()} from ${x[0].toPrecision(3)} to ${x[BINS].toPrecision(3)}, on a logarithmic count.`,
      {
        x,
        lines: [
          { name: "clean", place: 0, values: count(0) },
          { name: "poisoned", place: 1, values: count(1) },
        ],
        log: true,
        logX: log,
        steps: true,
        gaps: true,
        xLabel: label.toLowerCase(),
        yLabel: "images",
      },
    );
  }

  function draw(rows, poison, isolated) {
    if (poison) curve(rows, poison, isolated);
    if ("loss" in rows[0]) histogram(rows, "loss", "Loss", true);
    histogram(rows, "suspicion", "Suspicion", false);
    planned.forEach(Charts.draw);
  }

  return { draw, percent };
})();
