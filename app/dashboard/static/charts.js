// Line charts drawn by uPlot in the colors of the page. Lines also differ by their dashes.
const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3], [5, 5], [1, 4], [12, 4], [6, 2, 1, 2]];
const EPOCH_STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];
const charts = [];

export const percent = (fraction) => `${(100 * fraction).toFixed(1)} %`;

const probe = document.createElement("span");
probe.hidden = true;
document.body.append(probe);

// The value of a CSS variable in the theme that is shown; a canvas cannot resolve `light-dark()` by itself.
function themeColor(variable) {
  probe.style.color = `var(${variable})`;
  return getComputedStyle(probe).color;
}

function axis(label, isPercent, options) {
  const tickLabel = (t) => (isPercent ? `${Math.round(100 * t)} %` : String(Number(t.toPrecision(3))));
  const line = { stroke: themeColor("--line"), width: 1 };
  return {
    label,
    stroke: themeColor("--muted"),
    grid: line,
    ticks: line,
    values: (_, ticks) => ticks.map((t) => (t === null ? "" : tickLabel(t))),
    ...options,
  };
}

function series(chart, line) {
  return {
    label: line.name,
    stroke: themeColor(`--c${line.place % 8}`),
    width: 2,
    dash: DASHES[line.place % 8],
    spanGaps: !chart.gaps,
    paths: chart.steps ? uPlot.paths.stepped({ align: 1 }) : undefined,
    points: { show: line.values.filter((value) => value !== null).length === 1 },
  };
}

function draw(chart) {
  const figure = document.createElement("figure");
  figure.className = "chart";
  const caption = document.createElement("figcaption");
  caption.textContent = chart.title;
  const canvas = document.createElement("div");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", chart.description);
  figure.append(caption, canvas);
  chart.box.replaceChildren(figure);
  const options = {
    width: Math.max(260, chart.box.clientWidth),
    height: 240,
    legend: { show: false },
    cursor: { drag: { x: false, y: false } },
    scales: {
      x: { time: false, distr: chart.logX ? 3 : 1 },
      y: { distr: chart.log ? 3 : 1, range: chart.percent ? [-0.02, 1.04] : undefined },
    },
    axes: [
      axis(chart.xLabel, chart.percentX, {
        labelSize: 22,
        size: 34,
        space: 45,
        incrs: chart.epochs ? EPOCH_STEPS : undefined,
      }),
      axis(chart.yLabel, chart.percent, { labelSize: 20, size: 56 }),
    ],
    series: [{ label: chart.xLabel }, ...chart.lines.map((line) => series(chart, line))],
  };
  new uPlot(options, [chart.x, ...chart.lines.map((line) => line.values)], canvas);
}

// Draws a chart into its `box`, in place of an earlier one, and again when the theme or the window changes.
// Beside `title`, `description` (for screen readers), `xLabel` and `yLabel` it has `x` and `lines`, each
// {name, place, values} with its place in the legend; and the flags percent, percentX, log, logX, epochs (whole
// numbers on the x axis), steps (a histogram) and gaps (null values interrupt a line).
export function drawChart(chart) {
  const earlier = charts.findIndex((other) => other.box === chart.box);
  if (earlier >= 0) charts.splice(earlier, 1);
  charts.push(chart);
  draw(chart);
}

// Curves with `steps` and `values` over one common x axis; each curve's line is named `nameOf(curve)` and has
// its place among `names`.
export function alignCurves(curves, names, nameOf) {
  const x = [...new Set(curves.flatMap((curve) => curve.steps))].toSorted((a, b) => a - b);
  const lines = curves.map((curve) => {
    const byStep = new Map(curve.steps.map((step, i) => [step, curve.values[i]]));
    const name = nameOf(curve);
    return { name, place: names.indexOf(name), values: x.map((step) => byStep.get(step) ?? null) };
  });
  return { x, lines };
}

export function drawLegend(list, names) {
  const SVG = "http://www.w3.org/2000/svg";
  const items = names.map((name, place) => {
    const item = document.createElement("li");
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", "0 0 40 12");
    svg.setAttribute("aria-hidden", "true");
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", "M0 6h40");
    path.style.stroke = `var(--c${place % 8})`;
    path.setAttribute("stroke-dasharray", DASHES[place % 8].join(" ") || "none");
    svg.append(path);
    item.append(svg, name);
    return item;
  });
  list.replaceChildren(...items);
}

const redraw = () => charts.forEach(draw);
document.addEventListener("theme", redraw);
let pending;
window.addEventListener("resize", () => {
  clearTimeout(pending);
  pending = setTimeout(redraw, 150);
});
