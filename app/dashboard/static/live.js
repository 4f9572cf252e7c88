// Says so when a page that keeps itself up to date cannot, and that it can again.
"use strict";
const Live = (() => {
  const box = document.getElementById("trouble");
  let since;

  function trouble(status) {
    if (status === 404) {
      box.textContent = "This is gone; somebody deleted it meanwhile.";
      box.hidden = false;
      return;
    }
    since ??= new Date();
    const why =
      status === 401 || status === 403
        ? "The service does not let this browser in any more"
        : status
          ? `The service answers with an error (${status})`
          : "The service does not answer";
    box.textContent = `${why}. What is shown is as it was at ${since.toLocaleTimeString("en-GB")}; this page goes on trying.`;
    box.hidden = false;
  }
  function well() {
    since = undefined;
    box.hidden = true;
  }

  document.addEventListener("htmx:response:error", (event) => trouble(event.detail.ctx.response.status));
  document.addEventListener("htmx:error", (event) => {
    if (!event.detail.ctx?.response) trouble(0);
  });
  document.addEventListener("htmx:after:swap", well);
  return { trouble, well };
})();
