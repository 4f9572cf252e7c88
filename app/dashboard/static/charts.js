// Line charts through uPlot in the colors of the page; every line also differs by its dashes.
"use strict";
const Charts = (() => {
  const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3], [5, 5], [1, 4], [12, 4], [6, 2, 1, 2]];
  const drawn = [];
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function axis(extra) {
    return {
      stroke: css("--muted"),
      grid: { stroke: css("--line"), width: 1 },
      ticks: { stroke: css("--line"), width: 1 },
      ...extra,
    };
  }

  // chart: {box, title, says, x, lines: [{name, place, values}], xLabel, yLabel, percent, log}
  function plot(chart) {
    chart.box.textContent = "";
    const figure = document.createElement("figure");
    figure.className = "chart";
    const caption = document.createElement("figcaption");
    caption.textContent = chart.title;
    const canvas = document.createElement("div");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", chart.says);
    figure.append(caption, canvas);
    chart.box.append(figure);
    const number = (v) =>
      v == null ? "–" : chart.percent ? `${(100 * v).toFixed(1)} %` : String(Number(v.toPrecision(4)));
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
        axis({
          label: chart.xLabel,
          labelSize: 22,
          size: 34,
          space: 45,
          incrs: chart.percentX
            ? undefined
            : chart.whole
              ? [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
              : undefined,
          values: (u, ticks) =>
            ticks.map((t) =>
              t == null ? "" : chart.percentX ? `${Math.round(100 * t)} %` : String(Number(t.toPrecision(3))),
            ),
        }),
        axis({
          label: chart.yLabel,
          labelSize: 20,
          size: 56,
          values: (u, ticks) =>
            ticks.map((t) =>
              t == null ? "" : chart.percent ? `${Math.round(100 * t)} %` : String(Number(t.toPrecision(3))),
            ),
        }),
      ],
      series: [
        { label: chart.xLabel },
        ...chart.lines.map((line) => ({
          label: line.name,
          stroke: css(`--c${line.place % 8}`),
          width: 2,
          dash: DASHES[line.place % 8],
          spanGaps: !chart.gaps,
          paths: chart.steps ? uPlot.paths.stepped({ align: 1 }) : undefined,
          points: { show: line.values.filter((v) => v != null).length === 1 },
          value: (u, v) => number(v),
        })),
      ],
    };
    chart.plot = new uPlot(options, [chart.x, ...chart.lines.map((line) => line.values)], canvas);
  }

  function draw(chart) {
    const known = drawn.find((other) => other.box === chart.box);
    if (known) drawn.splice(drawn.indexOf(known), 1);
    drawn.push(chart);
    plot(chart);
  }

  function legend(list, names) {
    list.textContent = "";
    names.forEach((name, place) => {
      const item = document.createElement("li");
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      svg.setAttribute("viewBox", "0 0 40 12");
      svg.setAttribute("aria-hidden", "true");
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("d", "M0 6h40");
      path.setAttribute("class", `stroke${place % 8}`);
      path.setAttribute("stroke-dasharray", DASHES[place % 8].join(" ") || "none");
      svg.append(path);
      item.append(svg, name);
      list.append(item);
    });
  }

  const again = () => drawn.forEach(plot);
  document.addEventListener("theme", again);
  let waiting;
  window.addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(again, 150);
  });
  return { draw, legend };
})();
