// The curves of several experiments over each other, as means over seeds.
"use strict";
(async () => {
  const section = document.getElementById("curves");
  const ids = section.dataset.ids.split(",");
  const answer = await fetch(`/v1/compare?ids=${ids.join(",")}&points=200`);
  if (!answer.ok) return;
  const { arms, curves } = await answer.json();
  if (!curves.length) return;
  section.hidden = false;
  const name = (curve) => `${String.fromCharCode(65 + ids.indexOf(curve.experiment_id))}: ${curve.arm}`;
  // As in the table: A before B, and of each the arms in the order of its spec.
  const known = arms.map((row) => row.arm);
  const place = (curve) =>
    100 * ids.indexOf(curve.experiment_id) +
    (known.includes(curve.arm) ? known.indexOf(curve.arm) : known.length);
  const names = [...new Set([...curves].sort((a, b) => place(a) - place(b)).map(name))];
  Charts.legend(document.getElementById("legend"), names);
  const panels = [
    ["Accuracy on clean test images", "clean_accuracy"],
    ["Attack success", "attack_success_rate"],
  ]
    .map(([title, metric]) => ({
      title,
      found: curves.filter((curve) => curve.name === metric),
      box: document.createElement("div"),
    }))
    .filter((panel) => panel.found.length);
  document.getElementById("charts").append(...panels.map((panel) => panel.box));
  for (const { title, found, box } of panels) {
    const x = [...new Set(found.flatMap((curve) => curve.steps))].sort((a, b) => a - b);
    const at = new Map(x.map((step, place) => [step, place]));
    const lines = found.map((curve) => {
      const values = new Array(x.length).fill(null);
      curve.steps.forEach((step, j) => {
        values[at.get(step)] = curve.values[j];
      });
      return { name: name(curve), place: names.indexOf(name(curve)), values };
    });
    const ends = found.map((curve) => `${name(curve)} ends at ${(100 * curve.values.at(-1)).toFixed(1)} %`);
    Charts.draw({
      box,
      title,
      says: `${title}: ${ends.join("; ")}.`,
      x,
      lines,
      xLabel: "epoch",
      whole: true,
      yLabel: "",
      percent: true,
    });
  }
})();
