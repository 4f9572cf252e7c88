// A form that is submitted while the page's scripts are still loading waits for them. Otherwise the browser would
// send a form that a script handles, and its input would be lost. A classic script, which runs before the forms exist.
(() => {
  const wait = (event) => {
    event.preventDefault();
    event.stopImmediatePropagation();
    const { target, submitter } = event;
    document.addEventListener("DOMContentLoaded", () => target.requestSubmit(submitter), { once: true });
  };
  document.addEventListener("submit", wait, { capture: true });
  // Module scripts run before this event, and this listener before those that `wait` adds.
  document.addEventListener("DOMContentLoaded", () =>
    document.removeEventListener("submit", wait, { capture: true }),
  );
})();
