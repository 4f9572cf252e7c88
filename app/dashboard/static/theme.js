// The light or dark theme: the reader's last choice, otherwise that of the system. A classic script, which runs
// before the page is drawn.
(() => {
  const root = document.documentElement;
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const choice = localStorage.getItem("theme");
  if (choice) root.dataset.theme = choice;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const update = () => {
      button.setAttribute("aria-pressed", String(isDark()));
      document.dispatchEvent(new Event("theme"));
    };
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      localStorage.setItem("theme", root.dataset.theme);
      update();
    });
    system.addEventListener("change", update);
    update();
  });
})();
