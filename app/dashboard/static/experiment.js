// The experiment page while it is open: progress and curves as they come, the rest anew when something happened.
"use strict";
(() => {
  const id = document.getElementById("experiment").dataset.id;
  const base = `/v1/experiments/${id}`;
  const STAGES = JSON.parse(document.getElementById("experiment").dataset.stages);
  const PANELS = [
    { title: "Accuracy on clean test images", metrics: ["clean_accuracy"], percent: true },
    { title: "Attack success", metrics: ["attack_success_rate"], percent: true },
    { title: "Training loss", metrics: ["train_loss"], percent: false },
    { title: "Isolation precision", metrics: ["isolation_precision"], percent: true },
  ];
  const seed = document.getElementById("seed");
  const boxes = PANELS.map(() => document.createElement("div"));
  document.getElementById("charts").append(...boxes);

  async function curves() {
    const answer = await fetch(`${base}/metrics?points=300&seed=${seed.value}`);
    if (!answer.ok) return;
    const { series } = await answer.json();
    const arms = [...new Set(series.map((s) => s.arm))].filter((arm) => arm !== "attack");
    const shown = arms.sort((a, b) => order(a) - order(b));
    document.getElementById("curves").hidden = !series.length;
    Charts.legend(document.getElementById("legend"), shown);
    PANELS.forEach((panel, i) => {
      const found = series.filter((s) => panel.metrics.includes(s.name) && shown.includes(s.arm));
      boxes[i].hidden = !found.length;
      if (!found.length) return;
      const x = [...new Set(found.flatMap((s) => s.steps))].sort((a, b) => a - b);
      const at = new Map(x.map((step, place) => [step, place]));
      const lines = found.map((s) => {
        const values = new Array(x.length).fill(null);
        s.steps.forEach((step, j) => {
          values[at.get(step)] = s.values[j];
        });
        return { name: s.arm, place: shown.indexOf(s.arm), values };
      });
      const last = found.map(
        (s) => `${s.arm} ends at ${say(s.values.at(-1), panel.percent)} after ${s.steps.at(-1)} epochs`,
      );
      Charts.draw({
        box: boxes[i],
        title: panel.title,
        says: `${panel.title}: ${last.join("; ")}.`,
        x,
        lines,
        xLabel: "epoch",
        whole: true,
        yLabel: panel.percent ? "" : "nats",
        percent: panel.percent,
      });
    });
  }

  const order = (arm) => ["clean", "undefended"].indexOf(arm) >>> 0;
  const say = (value, percent) =>
    value == null ? "nothing" : percent ? `${(100 * value).toFixed(1)} %` : value.toPrecision(3);

  const span = (seconds) => (seconds < 100 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`);

  // At most one call in `pause` milliseconds, and one more for what came meanwhile.
  function calmly(call, pause) {
    let again = false,
      busy = false;
    return async function run() {
      if (busy) {
        again = true;
        return;
      }
      busy = true;
      await call();
      setTimeout(() => {
        busy = false;
        if (again) {
          again = false;
          run();
        }
      }, pause);
    };
  }

  const redraw = calmly(curves, 2000);
  const refresh = calmly(async () => {
    htmx.trigger("#state", "changed");
    htmx.trigger("#files", "changed");
  }, 1000);

  function follow() {
    const opened = Date.now();
    const events = new EventSource(`${base}/events`);
    events.addEventListener("error", () => {
      if (events.readyState !== EventSource.OPEN) Live.trouble(0);
    });
    events.addEventListener("open", Live.well);
    events.addEventListener("progress", (event) => {
      const now = JSON.parse(event.data);
      const bar = document.getElementById("fraction");
      if (!bar) return;
      bar.value = now.fraction;
      const left = now.seconds_left == null ? "" : `, about ${span(now.seconds_left)} left`;
      const where = [`seed ${now.seed}`, now.arm].filter((part) => part != null).join(", ");
      document.getElementById("now").textContent =
        `${Math.round(100 * now.fraction)} %: ${where}: ${STAGES[now.stage] || now.stage.replaceAll("_", " ")}, epoch ${now.epoch} of ${now.epochs}${left}`;
      redraw();
    });
    for (const kind of ["state", "result", "warning", "artifact"]) {
      events.addEventListener(kind, (event) => {
        if (Date.parse(JSON.parse(event.data).at) < opened - 3000) return; // the page shows it already
        refresh();
        redraw();
        if (kind === "state" && ["succeeded", "failed", "canceled"].includes(JSON.parse(event.data).status))
          events.close();
      });
    }
  }

  seed.addEventListener("change", curves);
  curves();
  if (["queued", "running"].includes(document.getElementById("state").dataset.status)) follow();
})();
