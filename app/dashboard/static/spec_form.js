// The inputs of a submission form as the JSON that they stand for, and paths in it as inputs again.

function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

const PARSERS = {
  integer: Number,
  number: Number,
  text: (text) => text,
  choice: (text) => text,
  boolean: (text) => text === "true",
  json: parseJson,
  list: (text) =>
    text
      .split(/[\s,]+/)
      .filter(Boolean)
      .map((part) => (Number.isNaN(Number(part)) ? part : Number(part))),
  tags: (text) =>
    Object.fromEntries(
      text
        .trim()
        .split(/\s+(?=[\w.-]+:)/)
        .map((pair) => {
          const [key, ...rest] = pair.split(":");
          return [key, rest.join(":")];
        }),
    ),
};

// "0.02, 0.05" and "true" are JSON; anything else is text.
function parseValues(text) {
  const values = parseJson(`[${text}]`);
  if (Array.isArray(values)) return values;
  return text
    .split(",")
    .map((part) => part.trim())
    .filter(Boolean)
    .map(parseJson);
}

function setPath(target, path, value) {
  const names = path.split(".");
  const last = names.pop();
  names.reduce((object, name) => (object[name] ??= {}), target)[last] = value;
}

function formatDefault(value) {
  if (typeof value === "boolean") return value ? "yes" : "no";
  return typeof value === "string" ? value : JSON.stringify(value);
}

const inputsOf = (box) => [...box.querySelectorAll("[data-field]")];
const findInput = (box, field) =>
  inputsOf(box).find(({ dataset }) => dataset.field === field || field.startsWith(`${dataset.field}[`));

export class SpecForm {
  constructor(form) {
    this.form = form;
    this.kind = form.dataset.kind;
  }

  // A part is a fieldset with `data-part`. Defenses, and the attacks of a study, are lists of such fieldsets.
  parts = () => [...this.form.querySelectorAll("fieldset[data-part]:not(.listed)")];
  listed = (part) => [...this.form.querySelectorAll(`fieldset.listed[data-part="${part}"]`)];
  axes = () => [...this.form.querySelectorAll(".axis")];
  inputsOutsideParts = () => inputsOf(this.form).filter((input) => !input.closest("[data-part]"));

  // The values of inputs as an object; empty inputs are left out.
  readValues(inputs) {
    const values = {};
    for (const input of inputs) {
      const { field, kind } = input.dataset;
      if (kind === "check") {
        if (input.checked || this.kind === "study") values[field] = input.checked;
      } else if (input.validity?.badInput) setPath(values, field, "not a number");
      else if (kind && input.value.trim() !== "") setPath(values, field, PARSERS[kind](input.value));
    }
    return values;
  }

  readListed = (box) => ({ name: box.dataset.name, ...this.readValues(inputsOf(box)) });

  readSpec() {
    const spec = this.readValues(this.inputsOutsideParts());
    for (const box of this.parts()) {
      const { part } = box.dataset;
      const values = this.readValues(inputsOf(box));
      const select = this.form.querySelector(`#${part}-name`);
      if (select) {
        const [name, key] = select.value.split("/");
        spec[part] = { name, ...(key && { key }), ...values };
      } else if (Object.keys(values).length) spec[part] = values;
    }
    if (this.kind === "study") {
      spec.attacks = this.listed("row").map((box) => {
        const label = box.querySelector("[data-label]").value.trim();
        return { attack: this.readListed(box), ...(label && { label }) };
      });
    }
    const defenses = this.listed("defense").map(this.readListed);
    if (defenses.length) spec.defenses = defenses;
    return spec;
  }

  readGrid() {
    const grid = {};
    const errors = [];
    for (const box of this.axes()) {
      const [path, text] = [...box.querySelectorAll("input")].map((input) => input.value.trim());
      const reject = (input, message) => errors.push({ field: `${box.id}.${input}`, message });
      if (!path && !text) continue;
      if (!path) reject("path", "enter the field that takes these values");
      else if (!text) reject("values", "enter two or more values, separated by commas");
      else if (path in grid) reject("path", `${path} is listed already`);
      else grid[path] = parseValues(text);
    }
    if (!Object.keys(grid).length && !errors.length) {
      errors.push({ field: `${this.axes()[0]?.id}.path`, message: "enter a field that varies" });
    }
    return { grid, errors };
  }

  // {body, errors}: the request, and the errors that are found without asking the service.
  readRequest() {
    const spec = this.readSpec();
    if (this.kind !== "sweep") return { body: spec, errors: [] };
    const { name, ...base } = spec;
    const { grid, errors } = this.readGrid();
    return { body: { ...(name && { name }), base, grid }, errors };
  }

  // The input of an error's path, such as attack.size, defenses[1].gamma, seeds[0], cells[3].attack.size or
  // attacks[0].label.
  findInput = (path) => {
    const axis = this.axes().find((box) => path.startsWith(`${box.id}.`));
    if (axis) return this.form.querySelector(`#${CSS.escape(path.replace(".", "-"))}`);
    const cell = path.match(/^cells\[\d+\]\.(.+)$/);
    if (cell || path.startsWith("grid")) return this.findAxisValues(cell ? cell[1] : path.slice(5));
    const inSpec = this.kind === "sweep" ? path.replace(/^base\./, "") : path;
    const [, list, place, rest] = inSpec.match(/^(defenses|attacks)\[(\d+)\]\.?(.*)$/) || [];
    if (list) {
      const box = this.listed(list === "attacks" ? "row" : "defense")[Number(place)];
      if (rest === "label") return box?.querySelector("[data-label]");
      return box && findInput(box, rest.replace(/^attack\./, ""));
    }
    const part = this.parts().find((box) => inSpec.startsWith(`${box.dataset.part}.`));
    if (part) return findInput(part, inSpec.slice(part.dataset.part.length + 1));
    const [first] = inSpec.split(/[.[]/);
    return this.inputsOutsideParts().find((input) => input.dataset.field.split(".")[0] === first);
  };

  findAxisValues(field) {
    const dotted = `${field.replaceAll("[", ".").replaceAll("]", "")}.`;
    const pairs = this.axes().map((box) => box.querySelectorAll("input"));
    return pairs.find(([path]) => {
      const name = `${path.value.trim()}.`;
      return dotted.startsWith(name) || name.startsWith(dotted);
    })?.[1];
  }

  // Shows the defaults of the canonical spec in empty inputs, because a preset changes defaults.
  showDefaults(canonical) {
    const show = (box, values) =>
      inputsOf(box).forEach((input) => {
        const value = input.dataset.field.split(".").reduce((object, name) => object?.[name], values);
        if (value === undefined || value === null || input.value) return;
        const text = formatDefault(value);
        if (input.tagName === "SELECT") input.options[0].textContent = `default (${text})`;
        else input.placeholder = text;
      });
    this.parts().forEach((box) => show(box, canonical[box.dataset.part]));
    this.listed("defense").forEach((box, place) => show(box, canonical.defenses[place]));
  }

  // The paths of all fields that a sweep can vary.
  sweepPaths() {
    const paths = (box, prefix) =>
      inputsOf(box)
        .filter((input) => input.dataset.kind)
        .map((input) => `${prefix}.${input.dataset.field}`);
    const inParts = this.parts().flatMap((box) => paths(box, box.dataset.part));
    const inDefenses = this.listed("defense").flatMap((box, place) => paths(box, `defenses.${place}`));
    return ["seeds", ...inParts, ...inDefenses];
  }
}
