// Tells the reader when a page that refreshes itself cannot do so, and hides the message when it can again.
const box = document.getElementById("connection");
let lostAt;

// `status` is that of an HTTP error, or 0 without a response.
export function connectionLost(status) {
  box.hidden = false;
  if (status === 404) {
    box.textContent = "This page no longer exists.";
    return;
  }
  lostAt ??= new Date();
  let cause = status ? `The service returned an error (${status})` : "The service does not respond";
  if (status === 401 || status === 403) cause = "The service no longer accepts this browser's key";
  box.textContent = `${cause}. This page shows the state at ${lostAt.toLocaleTimeString("en-GB")} and keeps retrying.`;
}

export function connectionRestored() {
  lostAt = undefined;
  box.hidden = true;
}

document.addEventListener("htmx:response:error", (event) => connectionLost(event.detail.ctx.response.status));
document.addEventListener("htmx:error", (event) => {
  if (!event.detail.ctx?.response) connectionLost(0);
});
document.addEventListener("htmx:after:swap", connectionRestored);
