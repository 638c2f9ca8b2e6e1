// The colours: as the system, light or dark, by a button; remembered by the browser, where it allows that.

function startTheme() {
  const themes = { auto: ["Auto", "as the system"], light: ["Light", "light"], dark: ["Dark", "dark"] };
  let theme = "auto";
  const apply = () => {
    document.documentElement.dataset.theme = theme;
    $("theme").textContent = themes[theme][0];
    $("theme").setAttribute("aria-label", `Colours: ${themes[theme][1]}`);
  };
  try {
    const kept = localStorage.getItem("bench-site-theme");
    if (Object.hasOwn(themes, kept ?? "")) theme = kept;
  } catch { /* storage is closed to this page */ }
  $("theme").addEventListener("click", () => {
    const names = Object.keys(themes);
    theme = names[(names.indexOf(theme) + 1) % names.length];
    apply();
    try {
      localStorage.setItem("bench-site-theme", theme);
    } catch { /* not kept */ }
  });
  apply();
}
