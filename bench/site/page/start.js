// Which view is shown is in the address; the colours are remembered by the browser, where it allows that.

const views = { overview: showOverview, compare: showCompare, browse: showBrowse, records: showRecords };

function show() {
  const values = state();
  const named = values.get("view") ?? (values.has("image") ? "compare" : "overview");
  const view = Object.hasOwn(views, named) ? named : "overview";
  notice("");
  for (const section of document.querySelectorAll(".view")) section.hidden = section.id !== view;
  for (const link of document.querySelectorAll("[data-view]")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  $("main").classList.toggle("wide", view === "compare");
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
  $("tip").hidden = true;
  views[view](values);
}

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

startTheme();
startOverview();
startCompare();
startBrowse();
addEventListener("hashchange", () => {
  show();
  scrollTo(0, 0);
});
show();
