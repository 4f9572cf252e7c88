// The experiment page: its curves, and while the experiment is active, its progress from the event stream.
import { alignCurves, drawChart, drawLegend, percent } from "./charts.js";
import { connectionLost, connectionRestored } from "./connection.js";

const PANELS = [
  { title: "Accuracy on clean test images", metric: "clean_accuracy", percent: true },
  { title: "Attack success", metric: "attack_success_rate", percent: true },
  { title: "Training loss", metric: "train_loss", percent: false },
  { title: "Isolation precision", metric: "isolation_precision", percent: true },
];
const FIRST_ARMS = ["clean", "undefended"];
const ACTIVE = ["queued", "running"];
const { id, stages } = document.getElementById("experiment").dataset;
const STAGE_NAMES = JSON.parse(stages);
const base = `/v1/experiments/${id}`;
const seed = document.getElementById("seed");
const boxes = PANELS.map(() => document.createElement("div"));
document.getElementById("charts").append(...boxes);

const formatValue = (value, panel) => {
  if (value == null) return "no value";
  return panel.percent ? percent(value) : value.toPrecision(3);
};
const formatDuration = (seconds) =>
  seconds < 100 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`;

function drawPanel(panel, box, series, arms) {
  const curves = series.filter((curve) => curve.name === panel.metric && arms.includes(curve.arm));
  box.hidden = !curves.length;
  if (!curves.length) return;
  const ends = curves.map((curve) => {
    const end = formatValue(curve.values.at(-1), panel);
    return `${curve.arm} ends at ${end} after ${curve.steps.at(-1)} epochs`;
  });
  drawChart({
    ...alignCurves(curves, arms, (curve) => curve.arm),
    box,
    title: panel.title,
    description: `${panel.title}: ${ends.join("; ")}.`,
    xLabel: "epoch",
    yLabel: panel.percent ? "" : "nats",
    epochs: true,
    percent: panel.percent,
  });
}

async function drawCurves() {
  const response = await fetch(`${base}/metrics?points=300&seed=${seed.value}`);
  if (!response.ok) return;
  const { series } = await response.json();
  const names = new Set(series.map((curve) => curve.arm));
  names.delete("attack");
  const arms = [...FIRST_ARMS.filter((arm) => names.delete(arm)), ...names];
  document.getElementById("curves").hidden = !series.length;
  drawLegend(document.getElementById("legend"), arms);
  PANELS.forEach((panel, i) => drawPanel(panel, boxes[i], series, arms));
}

// Calls `action` at most once in `pause` milliseconds; calls in between are merged into one more.
function throttled(action, pause) {
  let again = false;
  let busy = false;
  return async function run() {
    if (busy) {
      again = true;
      return;
    }
    busy = true;
    await action();
    setTimeout(() => {
      busy = false;
      if (again) {
        again = false;
        run();
      }
    }, pause);
  };
}

const redrawCurves = throttled(drawCurves, 2000);
const refreshPage = throttled(() => {
  htmx.trigger("#state", "changed");
  htmx.trigger("#files", "changed");
}, 1000);

function showProgress(progress) {
  const bar = document.getElementById("fraction");
  if (!bar) return;
  bar.value = progress.fraction;
  const { stage, epoch, epochs, seconds_left: left } = progress;
  const place = [`seed ${progress.seed}`, progress.arm].filter((part) => part != null).join(", ");
  const stageName = STAGE_NAMES[stage] || stage.replaceAll("_", " ");
  const remaining = left == null ? "" : `, about ${formatDuration(left)} left`;
  document.getElementById("progress").textContent =
    `${Math.round(100 * progress.fraction)} %: ${place}: ${stageName}, epoch ${epoch} of ${epochs}${remaining}`;
}

function followEvents() {
  const openedAt = Date.now();
  const events = new EventSource(`${base}/events`);
  events.addEventListener("error", () => {
    if (events.readyState !== EventSource.OPEN) connectionLost(0);
  });
  events.addEventListener("open", connectionRestored);
  events.addEventListener("progress", (event) => {
    showProgress(JSON.parse(event.data));
    redrawCurves();
  });
  for (const kind of ["state", "result", "warning", "artifact"]) {
    events.addEventListener(kind, (event) => {
      const { at, status } = JSON.parse(event.data);
      if (Date.parse(at) < openedAt - 3000) return; // replayed; the page already shows it
      refreshPage();
      redrawCurves();
      if (kind === "state" && !ACTIVE.includes(status)) events.close();
    });
  }
}

seed.addEventListener("change", drawCurves);
drawCurves();
if (ACTIVE.includes(document.getElementById("state").dataset.status)) followEvents();
