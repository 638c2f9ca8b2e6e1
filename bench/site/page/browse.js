// The grid of images, sorted by the difference of two methods; and the records behind one mean.

const browse = { set: 0, a: 0, b: 1, metric: 0, order: "worst", from: null, to: null, shown: 0 };
const PAGE = 60; // cards that are added at a time

function startBrowse() {
  fill($("browse-set"), data.sets.map((set, index) => option(index, set.display)), 0);
  $("browse-set").closest("label").hidden = data.sets.length < 2;
  $("browse-set").addEventListener("change", () => {
    remember({ view: "browse", set: data.sets[$("browse-set").value].name });
    showBrowse(state());
  });
  for (const [id, key] of [["browse-a", "a"], ["browse-b", "b"], ["browse-metric", "metric"]]) {
    $(id).addEventListener("change", () => {
      browse[key] = Number($(id).value);
      if (key === "metric") Object.assign(browse, { from: null, to: null });
      drawBrowse();
    });
  }
  $("browse-order").addEventListener("change", () => {
    browse.order = $("browse-order").value;
    drawBrowse();
  });
  for (const key of ["from", "to"]) {
    $(`browse-${key}`).addEventListener("input", () => {
      browse[key] = $(`browse-${key}`).value === "" ? null : Number($(`browse-${key}`).value);
      drawBrowse();
    });
  }
  $("more").addEventListener("click", () => showCards(browse.shown + PAGE));
  new IntersectionObserver((seen) => seen[0].isIntersecting && !$("more").hidden && showCards(browse.shown + PAGE), { rootMargin: "600px" }).observe($("more"));
}

function showBrowse(values) {
  notice("");
  browse.set = setOf(values.get("set"));
  const set = data.sets[browse.set];
  const find = (list, name, otherwise) => {
    const found = list.findIndex((item) => item.name === name);
    return found < 0 ? Math.min(otherwise, Math.max(list.length - 1, 0)) : found;
  };
  const number = (key) => (values.get(key) === null || Number.isNaN(Number(values.get(key))) ? null : Number(values.get(key)));
  browse.metric = find(set.metrics, values.get("metric"), 0);
  const seen = set.methods.map((_, method) => set.names.filter((_, image) => pictures(set, image)?.has(method)).length);
  browse.a = find(set.methods, values.get("a"), seen.lastIndexOf(Math.max(...seen)));
  browse.b = find(set.methods, values.get("b"), 0);
  browse.order = values.get("order") === "best" ? "best" : "worst";
  Object.assign(browse, { from: number("from"), to: number("to") });
  $("browse-set").value = browse.set;
  const methods = () => set.methods.map((method, index) => option(index, method.display));
  fill($("browse-a"), methods(), browse.a);
  fill($("browse-b"), methods(), browse.b);
  fill($("browse-metric"), set.metrics.map((metric, index) => option(index, arrow(metric))), browse.metric);
  drawBrowse();
}

/** The images in the order asked for, as {image, mine, theirs, gain}; `gain` is positive where A is better. */
function sortedImages() {
  const set = data.sets[browse.set];
  const metric = set.metrics[browse.metric];
  if (!metric || !set.methods.length) return [];
  const [mine, theirs] = [browse.a, browse.b].map((method) => set.values[browse.metric][method]);
  const found = set.names.map((_, image) => ({ image, mine: mine[image], theirs: theirs[image] }))
    .filter(({ mine: one, theirs: two }) => one !== null && two !== null)
    .filter(({ mine: one }) => (browse.from === null || one >= browse.from) && (browse.to === null || one <= browse.to));
  for (const item of found) item.gain = (item.mine - item.theirs) * (metric.higher ? 1 : -1);
  return found.sort((p, q) => (browse.order === "worst" ? p.gain - q.gain : q.gain - p.gain));
}

function drawBrowse() {
  const set = data.sets[browse.set];
  const metric = set.metrics[browse.metric];
  browse.found = sortedImages();
  browse.shown = 0;
  $("browse-order").value = browse.order;
  for (const key of ["from", "to"]) if (document.activeElement !== $(`browse-${key}`)) $(`browse-${key}`).value = browse[key] ?? "";
  remember({
    view: "browse", set: set.name, a: set.methods[browse.a]?.name, b: set.methods[browse.b]?.name, metric: metric?.name,
    order: browse.order === "best" ? "best" : null, from: browse.from, to: browse.to,
  });
  $("range-label").textContent = metric ? `${metric.display} of A from` : "A from";
  $("cards").replaceChildren();
  const gains = browse.found.map(({ gain }) => gain);
  const better = gains.filter((gain) => gain > 0).length;
  $("browse-note").textContent = !metric ? "No values of single images are in the records." :
    `${gains.length} of ${set.names.length} images. ${set.methods[browse.a].display} is better on ${better}, worse on ${gains.filter((gain) => gain < 0).length}.`;
  showCards(PAGE);
}

function showCards(count) {
  const set = data.sets[browse.set];
  const metric = set.metrics[browse.metric];
  const added = browse.found.slice(browse.shown, count);
  browse.shown = Math.min(count, browse.found.length);
  $("cards").append(...added.map(({ image, mine, theirs }) => {
    const { a, b } = browse;
    const href = address({ view: "compare", set: set.name, image: set.names[image], a: set.methods[a].name, b: set.methods[b].name });
    const gap = signed(mine - theirs, metric.decimals);
    return element("li", {}, element("a", { class: "card", href },
      pictures(set, image) ? element("span", { class: "pair" }, thumbnail(set, image, a), thumbnail(set, image, b)) : null,
      element("span", { class: "facts" },
        element("span", { class: "name" }, set.names[image]), element("span", {}, `${gap} ${metric.display}`),
        element("span", { class: "values" }, `A ${decimals(mine, metric.decimals)} · B ${decimals(theirs, metric.decimals)}`))));
  }));
  $("more").hidden = browse.shown >= browse.found.length;
}

/** The part of the strip that shows one method, cut out by a box with hidden overflow. */
function thumbnail(set, image, method) {
  const known = pictures(set, image);
  const box = element("span", { class: "thumb" });
  if (!known.has(method)) {
    box.classList.add("gone");
    box.append("not here");
    return box;
  }
  const strip = element("img", { src: source(set, image), loading: "lazy", decoding: "async", alt: `${set.names[image]}: ${set.methods[method].display}` });
  strip.style.width = `${known.tile * (set.methods.length + 2)}px`;
  strip.style.transform = `translateX(${-known.tile * (method + 0.5)}px)`;
  strip.style.clipPath = `inset(0 ${known.tile * (set.methods.length + 1 - method)}px 0 ${known.tile * method}px)`;
  box.append(strip);
  return box;
}

function showRecords(values) {
  notice("");
  const set = data.sets[setOf(values.get("set"))];
  const [method, metric] = [Number(values.get("a")), Number(values.get("metric"))];
  if (!set.methods[method] || !set.metrics[metric]) return notice("This link names a method or a metric that is not here.");
  const { display, decimals: digits, higher } = set.metrics[metric];
  const all = set.values[metric];
  $("records-title").textContent = `${display} of ${set.methods[method].display} on ${set.display}`;
  const file = set.methods[method].folder && `${set.methods[method].folder}/scores.${set.metrics[metric].name}.jsonl`;
  $("records-note").replaceChildren(
    "The mean in the table is the mean of these values. Rank is among the methods here, on that image. ",
    file ? element("a", { href: file }, "The records themselves") : "The records themselves are in the run's folder, records/.",
    file ? " hold the protocol, the versions and the hashes of the compared files." : "");
  const head = [["Image", "text"], [arrow(set.metrics[metric]), ""], ["Rank", ""]];
  $("records-table").tHead.replaceChildren(element("tr", {}, ...head.map(([text, kind]) =>
    element("th", { scope: "col", class: kind }, element("button", { type: "button" }, text)))));
  $("records-table").tBodies[0].replaceChildren(...set.names.flatMap((name, image) => {
    const value = all[method][image];
    if (value === null) return [];
    const rank = ranks(all.map((of) => of[image]), higher)[method];
    const link = set.images[image] ? element("a", { href: address({ view: "compare", set: set.name, image: name, a: set.methods[method].name }) }, name) : name;
    return [element("tr", {}, element("th", { scope: "row", class: "text", "data-value": name }, link),
      element("td", { "data-value": value }, decimals(value, digits + 2)), element("td", {}, String(rank)))];
  }));
}
