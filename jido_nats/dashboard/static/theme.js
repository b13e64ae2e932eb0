// Apply the chosen theme before the first paint. (Not a module: modules run later.)
"use strict";
try {
  const theme = localStorage.getItem("jido-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Without local storage: the system's theme.
}
