// Which view is shown is in the address.

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

startTheme();
startOverview();
startCompare();
startBrowse();
addEventListener("hashchange", () => {
  show();
  scrollTo(0, 0);
});
show();
