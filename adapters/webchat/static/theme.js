// Runs before the first paint: light or dark, as chosen on this page or as the system says.
"use strict";
(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    let chosen = null;
    try {
      chosen = localStorage.getItem("magpie.theme");
    } catch { /* storage is blocked in some frames; then the system decides */ }
    document.documentElement.dataset.theme = chosen ?? (system.matches ? "dark" : "light");
  };
  system.addEventListener("change", apply);
  apply();
})();
