// Requests to the JSON API, and its error messages beside the form inputs that they are about.

// Without a response from the service, the result is a problem document with status 503.
export const sendRequest = (method, url, body, headers = {}) =>
  fetch(url, {
    method,
    headers: { "Content-Type": "application/json", ...headers },
    ...(body !== undefined && { body: JSON.stringify(body) }),
  }).catch(() => Response.json({ detail: "The service does not respond. Try again." }, { status: 503 }));

export function clearErrors(form) {
  form.querySelectorAll("p.error").forEach((line) => line.remove());
  form.querySelectorAll("[aria-invalid]").forEach((input) => {
    input.removeAttribute("aria-invalid");
    input.removeAttribute("aria-errormessage");
  });
  form.querySelectorAll(".errors").forEach((list) => {
    list.replaceChildren();
    list.hidden = true;
  });
}

function showInputError(input, message) {
  if (input.hasAttribute("aria-invalid")) return; // the first error of an input is enough
  const line = document.createElement("p");
  line.textContent = message;
  line.className = "error";
  line.id = `${input.id}-error`;
  input.setAttribute("aria-invalid", "true");
  input.setAttribute("aria-errormessage", line.id);
  input.closest("details")?.setAttribute("open", "");
  input.after(line);
}

function showListedError(list, { field, message }) {
  const line = document.createElement("li");
  line.textContent = `${field}: ${message}`;
  list.append(line);
  list.hidden = false;
}

// Shows `errors`, each {field, message}, and returns one line about all of them. `findInput` maps a field's
// path to its input; errors of other fields go to the form's list of errors, if it has one.
export function showErrors(form, errors, findInput) {
  clearErrors(form);
  const list = form.querySelector(".errors");
  for (const error of errors) {
    const input = findInput(error.field);
    if (input) showInputError(input, error.message);
    else if (list) showListedError(list, error);
  }
  const names = [...new Set(errors.map((error) => error.field))];
  const listed = names.slice(0, 4).join(", ") + (names.length > 4 ? ", …" : "");
  return `${names.length} field${names.length > 1 ? "s are" : " is"} not valid: ${listed}.`;
}

// Shows the errors of a problem document and returns one line about them.
export async function showProblem(form, response, findInput) {
  const problem = await response.json();
  if (problem.errors?.length) return showErrors(form, problem.errors, findInput);
  clearErrors(form);
  return problem.detail;
}
