// The curves of the compared experiments in common charts, as means over seeds.
import { alignCurves, drawChart, drawLegend, percent } from "./charts.js";

const PANELS = [
  ["Accuracy on clean test images", "clean_accuracy"],
  ["Attack success", "attack_success_rate"],
];
const section = document.getElementById("curves");
const ids = section.dataset.ids.split(",");

function panelChart(title, curves, names, nameOf) {
  const box = document.createElement("div");
  document.getElementById("charts").append(box);
  const ends = curves.map((curve) => `${nameOf(curve)} ends at ${percent(curve.values.at(-1))}`);
  const description = `${title}: ${ends.join("; ")}.`;
  return { ...alignCurves(curves, names, nameOf), box, title, description };
}

function drawCurves(arms, curves) {
  section.hidden = false;
  const nameOf = (curve) => `${String.fromCharCode(65 + ids.indexOf(curve.experiment_id))}: ${curve.arm}`;
  // As in the table: A before B, and within an experiment the arms in the order of its spec.
  const order = arms.map((row) => row.arm);
  const rank = (curve) =>
    100 * ids.indexOf(curve.experiment_id) +
    (order.includes(curve.arm) ? order.indexOf(curve.arm) : order.length);
  const names = [...new Set(curves.toSorted((a, b) => rank(a) - rank(b)).map(nameOf))];
  drawLegend(document.getElementById("legend"), names);
  const charts = PANELS.map(([title, metric]) => [title, curves.filter((curve) => curve.name === metric)])
    .filter(([, ofMetric]) => ofMetric.length)
    .map(([title, ofMetric]) => panelChart(title, ofMetric, names, nameOf));
  for (const chart of charts)
    drawChart({ ...chart, xLabel: "epoch", yLabel: "", epochs: true, percent: true });
}

const response = await fetch(`/v1/compare?ids=${ids.join(",")}&points=200`);
if (response.ok) {
  const { arms, curves } = await response.json();
  if (curves.length) drawCurves(arms, curves);
}
