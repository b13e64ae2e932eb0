// Before anything is painted: the theme that was chosen. (Not a module: those run later.)
"use strict";
try {
  const theme = localStorage.getItem("jido-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // A browser that keeps nothing gets the system's theme.
}
