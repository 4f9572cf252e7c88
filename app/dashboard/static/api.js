// Asking the JSON API, and showing what it refuses beside the fields that it is about.
"use strict";
const Api = (() => {
  const send = (method, url, body, headers = {}) =>
    fetch(url, {
      method,
      headers: { "Content-Type": "application/json", ...headers },
      body: body === undefined ? undefined : JSON.stringify(body),
    }).catch(() =>
      Response.json(
        { detail: "The service does not answer; nothing was changed. Try again." },
        { status: 503 },
      ),
    );

  function clear(form) {
    form.querySelectorAll("p.fault").forEach((line) => line.remove());
    form.querySelectorAll("[aria-invalid]").forEach((input) => {
      input.removeAttribute("aria-invalid");
      input.removeAttribute("aria-errormessage");
    });
    form.querySelectorAll(".faults").forEach((list) => {
      list.replaceChildren();
      list.hidden = true;
    });
  }

  // Each fault is {field, message}; `find` gives the input that a field's path is about, or nothing.
  function blame(form, faults, find) {
    for (const fault of faults) {
      const input = find(fault.field);
      const line = document.createElement(input ? "p" : "li");
      line.textContent = input ? fault.message : `${fault.field}: ${fault.message}`;
      if (!input) {
        const list = form.querySelector(".faults");
        if (list) {
          list.append(line);
          list.hidden = false;
        }
      } else if (!input.hasAttribute("aria-invalid")) {
        // one fault at a time is enough to mend
        line.className = "fault";
        line.id = `${input.id}-fault`;
        input.setAttribute("aria-invalid", "true");
        input.setAttribute("aria-errormessage", line.id);
        input.closest("details")?.setAttribute("open", "");
        input.after(line);
      }
    }
  }

  // Shows the faults and returns one line about all of them.
  function say(form, faults, find) {
    clear(form);
    blame(form, faults, find);
    const names = [...new Set(faults.map((fault) => fault.field))];
    const some = names.slice(0, 4).join(", ") + (names.length > 4 ? ", …" : "");
    return `${names.length} field${names.length > 1 ? "s need" : " needs"} another value: ${some}.`;
  }

  // The same for an answer that is a refusal.
  async function refused(form, answer, find) {
    const problem = await answer.json();
    if (problem.errors?.length) return say(form, problem.errors, find);
    clear(form);
    return problem.detail;
  }

  return { send, clear, say, refused };
})();
