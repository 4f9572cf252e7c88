// Charts of a ranking of the training images: precision against recall, and histograms of its scores.
import { drawChart, percent } from "./charts.js";

const MOST_POINTS = 300;
const BINS = 40;

function precisionRecallChart(rows, poisoned, isolated) {
  let hits = 0;
  const points = rows.map((row, i) => {
    hits += row.is_poisoned;
    return { recall: hits / poisoned, precision: hits / (i + 1) };
  });
  const step = Math.ceil(points.length / MOST_POINTS);
  const drawn = points.filter((_, i) => i % step === 0 || i === isolated - 1);
  const cut = points[isolated - 1];
  return {
    title: `Precision against recall${cut ? "; the circle is the chosen cut" : ", over every cut"}`,
    description: cut
      ? `At the chosen cut, precision is ${percent(cut.precision)} and recall is ${percent(cut.recall)}.`
      : "No images were isolated, so there is no chosen cut.",
    x: drawn.map((point) => point.recall),
    lines: [
      { name: "precision", place: 0, values: drawn.map((point) => point.precision) },
      {
        name: "chosen cut",
        place: 1,
        values: drawn.map((point) => (point === cut ? point.precision : null)),
      },
    ],
    percent: true,
    percentX: true,
    xLabel: "recall",
    yLabel: "precision",
  };
}

// Losses span a few powers of ten, so their bins have equal width on a logarithmic axis.
function histogram(rows, name, label, logX) {
  const scores = rows.map((row) => row[name]);
  const smallest = scores.reduce((a, b) => (b > 0 && b < a ? b : a), Infinity);
  const scale = (score) => (logX ? Math.log(Math.max(score, smallest)) : score);
  const unscale = (value) => (logX ? Math.exp(value) : value);
  const low = scores.reduce((a, b) => Math.min(a, scale(b)), Infinity);
  const high = scores.reduce((a, b) => Math.max(a, scale(b)), -Infinity);
  const width = (high - low) / BINS || 1;
  const isKnown = "is_poisoned" in rows[0];
  const countBins = (isPoisoned) => {
    const bins = Array.from({ length: BINS }, () => 0);
    for (const row of rows.filter((one) => one.is_poisoned === isPoisoned)) {
      bins[Math.min(BINS - 1, Math.floor((scale(row[name]) - low) / width))] += 1;
    }
    bins.push(bins[BINS - 1]); // the right edge of the last bin
    return bins.map((count) => count || null);
  };
  const x = Array.from({ length: BINS + 1 }, (_, i) => unscale(low + i * width));
  return {
    title: isKnown
      ? `${label} of clean (solid) and poisoned (dashed) images`
      : `${label} of all training images`,
    description:
      `Histogram of ${label.toLowerCase()} from ${x[0].toPrecision(3)} to ${x[BINS].toPrecision(3)}, ` +
      "with logarithmic counts.",
    x,
    lines: isKnown
      ? [
          { name: "clean", place: 0, values: countBins(0) },
          { name: "poisoned", place: 1, values: countBins(1) },
        ]
      : [{ name: "images", place: 0, values: countBins(undefined) }],
    log: true,
    logX,
    steps: true,
    gaps: true,
    xLabel: label.toLowerCase(),
    yLabel: "images",
  };
}

export function drawRankingCharts(rows, poisoned, isolated) {
  const charts = [histogram(rows, "suspicion", "Suspicion", false)];
  if ("loss" in rows[0]) charts.unshift(histogram(rows, "loss", "Loss", true));
  if (poisoned) charts.unshift(precisionRecallChart(rows, poisoned, isolated));
  // All boxes are placed before the first chart is drawn, because their width depends on how many there are.
  const boxes = charts.map(() => document.createElement("div"));
  document.getElementById("charts").append(...boxes);
  charts.forEach((chart, i) => drawChart({ ...chart, box: boxes[i] }));
}
