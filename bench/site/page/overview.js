// The overview: sorting, downloads, method cards, tooltips, and three charts that follow one metric and one reference.

function startOverview() {
  for (const table of document.querySelectorAll("table.sortable")) makeSortable(table);
  for (const section of document.querySelectorAll(".charts")) startCharts(section);
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-card], [data-download]");
    if (button?.dataset.card) $(`card-${button.dataset.card}`).showModal();
    if (button?.dataset.download) download(button.closest(".report").dataset.page, button.dataset.download);
  });
  for (const box of document.querySelectorAll("[data-paper]")) {
    box.addEventListener("change", () => (box.closest(".report").querySelector(".paper").hidden = !box.checked));
  }
  startTips();
}

function showOverview(values) {
  const named = values.get("table");
  const first = data.board ? "board" : "0";
  const chosen = named !== null && (data.pages[named] || (named === "board" && data.board)) ? named : first;
  for (const report of document.querySelectorAll(".report")) report.hidden = report.dataset.page !== chosen;
  for (const tab of document.querySelectorAll("#tables a")) {
    if (tab.dataset.table === chosen) tab.setAttribute("aria-current", "true");
    else tab.removeAttribute("aria-current");
  }
}

/** Sorts the rows by a column on a click on its header; rows without a number stay last. */
function makeSortable(table) {
  table.tHead?.addEventListener("click", (event) => {
    const header = event.target.closest("button")?.closest("th");
    if (!header) return;
    const down = header.getAttribute("aria-sort") === "ascending";
    for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const column = header.cellIndex;
    const key = (row) => {
      const cell = row.cells[column];
      const text = cell.dataset.value ?? cell.textContent.trim();
      const number = text === "" ? NaN : Number(text.replace("−", "-").split(" ")[0]);
      return header.classList.contains("text") ? text : number;
    };
    const rows = [...table.tBodies[0].rows];
    const direction = down ? -1 : 1;
    rows.sort((p, q) => {
      const [one, two] = [key(p), key(q)];
      if (typeof one === "string") return direction * one.localeCompare(two, undefined, { numeric: true });
      if (Number.isNaN(one) || Number.isNaN(two)) return Number.isNaN(one) - Number.isNaN(two);
      return direction * (one - two);
    });
    table.tBodies[0].append(...rows);
  });
}

function download(number, kind) {
  const page = number === "board" ? data.board : data.pages[number];
  const types = { csv: "text/csv", tex: "application/x-tex", jsonl: "application/jsonl" };
  const content = kind === "jsonl" ? jsonLines(page) : page[kind];
  const link = element("a", { href: URL.createObjectURL(new Blob([content], { type: types[kind] })), download: `${page.name}.${kind}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** One line for each value of a table's test sets: what the means are means of. */
function jsonLines(page) {
  const lines = [];
  for (const section of page.sections) {
    const set = data.sets[section.set];
    for (const method of section.methods)
      for (const metric of section.metrics)
        set.values[metric][method].forEach((value, image) => {
          if (value === null) return;
          const names = { testset: set.name, method: set.methods[method].name, metric: set.metrics[metric].name };
          const line = JSON.stringify({ ...names, name: set.names[image], value });
          lines.push(line.replace(/[\u2028\u2029]/g, (end) => `\\u${end.charCodeAt(0).toString(16)}`) + "\n");
        });
  }
  return lines.join("");
}

/** One tooltip for everything with `data-tip`, on hover and on focus; Escape closes it. */
function startTips() {
  const tip = $("tip");
  const show = (event) => {
    const target = event.target.closest?.("[data-tip]");
    tip.hidden = !target;
    if (!target) return;
    tip.textContent = target.dataset.tip;
    target.setAttribute("aria-describedby", "tip");
    const place = target.getBoundingClientRect();
    const left = Math.min(Math.max(8, place.left + place.width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
    tip.style.left = `${left}px`;
    tip.style.top = `${place.top - tip.offsetHeight - 6 < 4 ? place.bottom + 6 : place.top - tip.offsetHeight - 6}px`;
  };
  document.addEventListener("mouseover", show);
  document.addEventListener("focusin", show);
  document.addEventListener("keydown", (event) => event.key === "Escape" && (tip.hidden = true));
  document.addEventListener("scroll", () => (tip.hidden = true), true);
}

function startCharts(section) {
  const set = data.sets[section.dataset.set];
  const methods = section.dataset.methods.split(" ").map(Number);
  const metrics = section.dataset.metrics.split(" ").map(Number);
  const metric = element("select", {}, ...metrics.map((index) => option(index, arrow(set.metrics[index]))));
  const reference = element("select", {}, ...methods.map((index) => option(index, set.methods[index].display)));
  reference.value = section.dataset.reference;
  section.querySelector(".controls").append(
    element("label", {}, "Metric ", metric),
    element("label", {}, "Differences to ", reference),
  );
  const timed = data.timings.map((one, index) => ({ one, index })).filter(({ one }) => one.sets[section.dataset.set].filter((row, place) => row && methods.includes(place)).length > 1);
  const clock = element("select", {}, ...timed.map(({ one, index }) => option(index, `bench latency: ${one.label}`)), option("", "of the run"));
  if (timed.length) section.querySelector(".controls").append(element("label", {}, "Seconds ", clock));
  const draw = () => {
    drawForest(section.querySelector(".forest"), set, methods, Number(metric.value), Number(reference.value));
    drawSpread(section.querySelector(".spread"), set, methods, Number(metric.value));
    drawTime(section.querySelector(".time"), set, methods, Number(metric.value), section.dataset.machines, data.timings[clock.value]);
  };
  clock.addEventListener("change", draw);
  metric.addEventListener("change", draw);
  reference.addEventListener("change", draw);
  draw();
}

function caption(figure, title, note) {
  figure.querySelector("figcaption").replaceChildren(title, element("small", {}, note));
}

/** Round numbers that span [low, high]. */
function ticks(low, high) {
  const step = 10 ** Math.floor(Math.log10((high - low) / 4));
  const wide = [1, 2, 5, 10].map((factor) => factor * step).find((width) => (high - low) / width <= 6);
  const first = Math.ceil(low / wide - 1e-9);
  const digits = Math.max(0, -Math.floor(Math.log10(wide) + 1e-9));
  return Array.from({ length: Math.floor(high / wide + 1e-9) - first + 1 }, (_, index) => {
    const value = (first + index) * wide;
    return { value, text: decimals(Math.abs(value) < wide / 1e6 ? 0 : value, digits) };
  });
}

/** Places values on a horizontal axis, as percentages, with some room at both ends. */
function scale(values) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (high - low < 1e-12) [low, high] = [low - 0.5, high + 0.5];
  const room = (high - low) * 0.05;
  [low, high] = [low - room, high + room];
  const at = (value) => `${(((value - low) / (high - low)) * 100).toFixed(3)}%`;
  return { at, ticks: ticks(low, high) };
}

/** A table whose middle column is a plot: one row a method, an axis in the head, the numbers as text on the right. */
function plot(figure, axis, rows, heading) {
  const head = drawn("svg", { height: 20, "aria-hidden": "true" }, ...axis.ticks.map(({ value, text }) =>
    drawn("text", { x: axis.at(value), y: 14, "text-anchor": "middle" }, text)));
  const table = element("table", { class: "plot" },
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, element("span", { class: "hidden" }, "Method")),
      element("td", {}, head), element("td", { class: "value" }, heading))),
    element("tbody", {}, ...rows.map(({ title, marks, text, sure, height = 30, reference }) => {
      const grid = axis.ticks.map(({ value }) => drawn("line", { class: "axis", x1: axis.at(value), x2: axis.at(value), y1: -8, y2: height + 8 }));
      const svg = drawn("svg", { height, class: sure ? "sure" : null, "aria-hidden": "true" }, ...grid, ...marks);
      return element("tr", { class: reference ? "reference" : null },
        element("th", { scope: "row" }, title), element("td", {}, svg), element("td", { class: "value" }, text));
    })));
  figure.querySelector(".chart").replaceChildren(table);
}

const FEWEST = 6; // images from which on a difference is called better or worse, as in bench/report/summarize.py

function drawForest(figure, set, methods, metric, reference) {
  const { higher, decimals: digits, display } = set.metrics[metric];
  const found = methods.filter((method) => method !== reference)
    .map((method) => ({ method, gap: difference(set, metric, method, reference) }));
  const known = found.filter(({ gap }) => gap);
  caption(figure, `Difference in ${display} to ${set.methods[reference].display}`,
    `Paired, image by image: mean and 95 % interval. ${higher ? "Right" : "Left"} is better. Filled: the interval excludes zero.`);
  const axis = scale([0, ...known.flatMap(({ gap }) => [gap.mean, gap.low ?? gap.mean, gap.high ?? gap.mean])]);
  const rows = found.map(({ method, gap }) => {
    const zero = drawn("line", { class: "zero", x1: axis.at(0), x2: axis.at(0), y1: -8, y2: 38 });
    if (!gap) return { title: set.methods[method].display, marks: [zero], text: "not on the same images" };
    const sure = gap.n >= FEWEST && gap.low !== null && (gap.low > 0 || gap.high < 0);
    const better = gap.mean > 0 === higher ? " ▲" : " ▼";
    return {
      title: set.methods[method].display,
      sure,
      text: gap.low === null ? signed(gap.mean, digits)
        : `${signed(gap.mean, digits)} [${signed(gap.low, digits)}, ${signed(gap.high, digits)}]${sure ? better : " \u2007"}`,
      marks: [
        zero,
        gap.low === null ? null : drawn("line", { class: "interval", x1: axis.at(gap.low), x2: axis.at(gap.high), y1: 15, y2: 15 }),
        drawn("circle", { class: "mark", cx: axis.at(gap.mean), cy: 15, r: 5 }),
      ].filter(Boolean),
    };
  });
  plot(figure, axis, rows, "mean [95 % interval] \u2007");
}

function quantile(sorted, share) {
  const place = (sorted.length - 1) * share;
  const low = Math.floor(place);
  return sorted[low] + (place - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
}

const MOST_DOTS = 400; // of a method; beyond that, bars

function drawSpread(figure, set, methods, metric) {
  const { display, decimals: digits } = set.metrics[metric];
  caption(figure, `${display} of every image`, "Line: middle half of the images, with the median. A dot leads to its image.");
  const known = methods.map((method) => set.values[metric][method].map((value, image) => ({ value, image })).filter(({ value }) => value !== null));
  const all = known.flat().map(({ value }) => value);
  if (!all.length) return figure.querySelector(".chart").replaceChildren();
  const axis = scale([all.reduce((p, q) => Math.min(p, q)), all.reduce((p, q) => Math.max(p, q))]);
  const rows = methods.map((method, row) => {
    const values = known[row];
    const sorted = values.map(({ value }) => value).sort((p, q) => p - q);
    if (!sorted.length) return { title: set.methods[method].display, marks: [], text: "not measured" };
    const [first, median, third] = [0.25, 0.5, 0.75].map((share) => quantile(sorted, share));
    const marks = values.length > MOST_DOTS ? bars(sorted, axis) : values.map(({ value, image }) => dot(set, method, image, axis.at(value), `${set.names[image]}: ${decimals(value, digits)}`));
    return {
      title: set.methods[method].display,
      height: 40,
      text: `${decimals(median, digits)} [${decimals(first, digits)}, ${decimals(third, digits)}]`,
      marks: [
        ...marks,
        drawn("line", { class: "box", x1: axis.at(first), x2: axis.at(third), y1: 33, y2: 33 }),
        drawn("line", { class: "box", x1: axis.at(median), x2: axis.at(median), y1: 28, y2: 38 }),
      ],
    };
  });
  plot(figure, axis, rows, "median [middle half]");
}

function dot(set, method, image, cx, text) {
  const other = pictures(set, image)?.has(set.methods.length + 1) ? TRUTH : INPUT;
  const href = address({ view: "compare", set: set.name, image: set.names[image], a: set.methods[method].name, b: other });
  const cy = 6 + ((image * 7) % 5) * 4; // spread, so that equal values stay apart
  return drawn("a", { href, tabindex: -1 }, drawn("circle", { class: "dot", cx, cy, r: 3.5 }, drawn("title", {}, text)));
}

function bars(sorted, axis) {
  const count = 60;
  const [low, high] = [sorted[0], sorted[sorted.length - 1]];
  const bins = new Array(count).fill(0);
  for (const value of sorted) bins[Math.min(count - 1, Math.floor(((value - low) / (high - low || 1)) * count))] += 1;
  const most = Math.max(...bins);
  return bins.map((bin, index) => {
    const [x1, x2] = [index, index + 1].map((edge) => parseFloat(axis.at(low + ((high - low) * edge) / count)));
    const height = (bin / most) * 24;
    return drawn("rect", { class: "bin", x: `${x1}%`, width: `${Math.max(x2 - x1, 0.1)}%`, y: 26 - height, height });
  });
}

/** Quality against seconds: those of the run, or with `clock` those of `bench latency`, with their intervals. */
function drawTime(figure, set, methods, metric, machines, clock) {
  const { display, decimals: digits, higher } = set.metrics[metric];
  const points = methods.map((method) => {
    const values = set.values[metric][method].filter((value) => value !== null);
    const [seconds, low, high, same] = clock ? clock.sets[data.sets.indexOf(set)][method] ?? [null, null, null, true] : [set.seconds[method], null, null, true];
    const title = set.methods[method].display + (same ? "" : " (timed with other weights or settings)");
    return { title, seconds, low, high, value: values.reduce((p, q) => p + q, 0) / values.length };
  }).filter(({ seconds, value }) => seconds !== null && !Number.isNaN(value))
    .filter((point, index, all) => !clock || index === all.findIndex((other) => other.seconds === point.seconds && other.value === point.value)); // once, if two runs have the same
  figure.hidden = points.length < 2;
  if (figure.hidden) return;
  caption(figure, `${display} against seconds per image`,
    (clock ? `Figure 1: median seconds by bench latency, ${clock.label}, with 95 % interval (${clock.machine}).`
      : `Wall seconds of the run${machines ? ` (${machines})` : ""}, not a measurement of latency.`) + ` ${higher ? "Top" : "Bottom"} left is better.`);
  const height = 300;
  const logs = points.flatMap(({ seconds, low, high }) => [seconds, low, high].filter((one) => one !== null).map(Math.log10));
  const across = scale(logs);
  const values = points.map(({ value }) => value);
  const up = scale(values);
  const y = (value) => height - 30 - (parseFloat(up.at(value)) / 100) * (height - 50);
  const powers = [];
  for (let power = Math.floor(Math.min(...logs)); power <= Math.ceil(Math.max(...logs)); power++)
    for (const factor of [1, 2, 5]) {
      const place = parseFloat(across.at(power + Math.log10(factor)));
      if (place >= 0 && place <= 100 && (factor === 1 || Math.max(...logs) - Math.min(...logs) < 1.3)) powers.push([place, `${Number((factor * 10 ** power).toPrecision(1))} s`]);
    }
  const marks = [
    ...up.ticks.flatMap(({ value, text }) => [
      drawn("line", { class: "axis", x1: "0%", x2: "100%", y1: y(value), y2: y(value) }),
      drawn("text", { x: "0%", y: y(value) - 4 }, text),
    ]),
    ...powers.map(([place, text]) => drawn("text", { x: `${place}%`, y: height - 6, "text-anchor": "middle" }, text)),
  ];
  const width = figure.clientWidth || 1000;
  const places = points.sort((p, q) => q.value - p.value)
    .map((point) => ({ ...point, left: (parseFloat(across.at(Math.log10(point.seconds))) / 100) * width, top: y(point.value) }));
  const lines = []; // labels that are set: their middles
  for (const { title, seconds, low, high, left, top } of places) {
    const crowded = (sign) => places.some((other) => other.left !== left && Math.abs(other.top - top) < 12 && sign * (other.left - left) > 0 && sign * (other.left - left) < 60);
    const wide = title.length * 7 + 14; // about, in pixels
    const right = left + wide < width && !(crowded(1) && left > wide);
    let line = low === null ? top + 4 : top - 8; // beside the point, or above its interval
    while (lines.some(([taken, from, to]) => Math.abs(taken - line) < 15 && left + (right ? wide : 0) > from && left - (right ? 0 : wide) < to)) line += 15;
    lines.push([line, left - (right ? 0 : wide), left + (right ? wide : 0)]);
    const x = across.at(Math.log10(seconds));
    if (low !== null) marks.push(drawn("line", { class: "interval", x1: across.at(Math.log10(low)), x2: across.at(Math.log10(high)), y1: top, y2: top }));
    marks.push(drawn("circle", { class: "point", cx: x, cy: top, r: 4.5 }));
    marks.push(drawn("text", { class: "name", x, dx: right ? 10 : -10, y: line, "text-anchor": right ? "start" : "end" }, title));
  }
  const text = points.map(({ title, seconds, value }) => `${title}: ${decimals(value, digits)} in ${seconds.toPrecision(2)} s`).join("; ");
  figure.querySelector(".chart").replaceChildren(drawn("svg", { height, role: "img", "aria-label": text }, ...marks));
}
