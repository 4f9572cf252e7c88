// The inputs of a submit form as the JSON that they stand for, and back from a path in it to its input.
"use strict";
const SpecForm = (form) => {
  const kind = form.dataset.kind;
  const READ = {
    integer: Number,
    number: Number,
    text: (t) => t,
    choice: (t) => t,
    boolean: (t) => t === "true",
    json: (t) => {
      try {
        return JSON.parse(t);
      } catch {
        return t;
      }
    },
    list: (t) =>
      t
        .split(/[\s,]+/)
        .filter(Boolean)
        .map((part) => (Number.isNaN(Number(part)) ? part : Number(part))),
    tags: (t) =>
      Object.fromEntries(
        t
          .trim()
          .split(/\s+(?=[\w.-]+:)/)
          .map((pair) => {
            const [key, ...rest] = pair.split(":");
            return [key, rest.join(":")];
          }),
      ),
  };

  const inputs = (box) => [...box.querySelectorAll("[data-field]")];
  const all = (selector) => [...form.querySelectorAll(selector)];
  const parts = () => all("fieldset[data-part]:not(.listed)");
  const listed = (part) => all(`fieldset.listed[data-part="${part}"]`);
  const axes = () => all(".axis");
  const named = (box) => form.querySelector(`#${box.dataset.part}-name`);
  const outside = () => inputs(form).filter((input) => !input.closest("[data-part]"));

  function put(into, path, value) {
    const names = path.split(".");
    const last = names.pop();
    names.reduce((at, name) => (at[name] ??= {}), into)[last] = value;
  }

  // What these inputs say, as an object; those that are empty are left out.
  function values(some) {
    const found = {};
    for (const input of some) {
      const { field, kind: read } = input.dataset;
      if (read === undefined) continue;
      if (read === "check") {
        if (input.checked) found[field] = true;
        else if (kind === "study") found[field] = false;
        continue;
      }
      if (input.validity?.badInput) {
        put(found, field, "not a number");
        continue;
      }
      if (input.value.trim() !== "") put(found, field, READ[read](input.value));
    }
    return found;
  }

  function spec() {
    const made = values(outside());
    for (const box of parts()) {
      const part = values(inputs(box));
      if (named(box)) {
        const [name, key] = named(box).value.split("/");
        made[box.dataset.part] = key ? { name, key, ...part } : { name, ...part };
      } else if (Object.keys(part).length) made[box.dataset.part] = part;
    }
    if (kind === "study") {
      made.attacks = listed("row").map((box) => {
        const label = box.querySelector("[data-label]").value.trim();
        return { attack: { name: box.dataset.name, ...values(inputs(box)) }, ...(label && { label }) };
      });
    }
    const defenses = listed("defense").map((box) => ({ name: box.dataset.name, ...values(inputs(box)) }));
    if (defenses.length) made.defenses = defenses;
    return made;
  }

  // "0.02, 0.05" and "true" as JSON; what is none is text.
  function several(text) {
    try {
      return JSON.parse(`[${text}]`);
    } catch {
      /* not all of it is JSON */
    }
    return text
      .split(",")
      .map((one) => one.trim())
      .filter(Boolean)
      .map((one) => {
        try {
          return JSON.parse(one);
        } catch {
          return one;
        }
      });
  }

  // {body, faults}: the request, and what is wrong with it before anybody is asked.
  function request() {
    const made = spec();
    if (kind !== "sweep") return { body: made, faults: [] };
    const { name, ...base } = made;
    const grid = {},
      faults = [];
    for (const box of axes()) {
      const [path, text] = [...box.querySelectorAll("input")].map((input) => input.value.trim());
      const blame = (input, message) => faults.push({ field: `${box.id}.${input}`, message });
      if (!path && !text) continue;
      if (!path) blame("path", "which field takes these values?");
      else if (!text) blame("values", "give two values or more, with commas between");
      else if (path in grid) blame("path", `${path} is there already`);
      else grid[path] = several(text);
    }
    if (!Object.keys(grid).length && !faults.length)
      faults.push({ field: `${axes()[0]?.id}.path`, message: "name a field that varies" });
    return { body: { ...(name && { name }), base, grid }, faults };
  }

  // The input that a fault is about: "attack.size", "defenses[1].gamma", "seeds[0]", "cells[3].attack.size", "attacks[0].label".
  function find(path) {
    const axis = axes().find((box) => path.startsWith(`${box.id}.`));
    if (axis) return form.querySelector(`#${CSS.escape(path.replace(".", "-"))}`);
    const cell = path.match(/^cells\[\d+\]\.(.+)$/);
    if (cell || path.startsWith("grid")) return ofAxis(cell ? cell[1] : path.slice(5));
    const inside = kind === "sweep" ? path.replace(/^base\./, "") : path;
    const [, list, place, rest] = inside.match(/^(defenses|attacks)\[(\d+)\]\.?(.*)$/) || [];
    if (list) {
      const box = listed(list === "attacks" ? "row" : "defense")[Number(place)];
      if (rest === "label") return box?.querySelector("[data-label]");
      return box && within(box, rest.replace(/^attack\./, ""));
    }
    const box = parts().find((b) => inside.startsWith(`${b.dataset.part}.`));
    if (box) return within(box, inside.slice(box.dataset.part.length + 1));
    return outside().find((input) => inside.split(/[.[]/)[0] === input.dataset.field.split(".")[0]);
  }

  const within = (box, field) =>
    inputs(box).find((input) => input.dataset.field === field || field.startsWith(`${input.dataset.field}[`));

  function ofAxis(field) {
    const dotted = `${field.replaceAll("[", ".").replaceAll("]", "")}.`;
    return axes()
      .map((box) => box.querySelectorAll("input"))
      .find(([path]) => {
        const name = `${path.value.trim()}.`;
        return dotted.startsWith(name) || name.startsWith(dotted);
      })?.[1];
  }

  // A preset changes other defaults; the canonical spec says what an empty field stands for.
  function defaults(canonical) {
    const show = (box, of) =>
      inputs(box).forEach((input) => {
        const value = input.dataset.field.split(".").reduce((at, name) => at?.[name], of);
        if (value === undefined || value === null) return;
        const text =
          value === true
            ? "yes"
            : value === false
              ? "no"
              : typeof value === "string"
                ? value
                : JSON.stringify(value);
        if (input.tagName === "SELECT") {
          if (!input.value) input.options[0].textContent = `default (${text})`;
        } else if (!input.value) input.placeholder = text;
      });
    parts().forEach((box) => show(box, canonical[box.dataset.part]));
    listed("defense").forEach((box, place) => show(box, canonical.defenses[place]));
  }

  // Every path that a sweep can vary.
  function paths() {
    const of = (box, prefix) =>
      inputs(box)
        .filter((input) => input.dataset.kind)
        .map((input) => `${prefix}.${input.dataset.field}`);
    return [
      "seeds",
      ...parts().flatMap((box) => of(box, box.dataset.part)),
      ...listed("defense").flatMap((box, place) => of(box, `defenses.${place}`)),
    ];
  }

  return { request, find, defaults, paths };
};
