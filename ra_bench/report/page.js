"use strict";
// Unpacks the rows, filters them, and hands each chart what it shows. All text from rows goes through textContent.

const ALL = "*";
const MOST_ROWS = 300; // of a table under a figure
const root = document.documentElement;
const narrow = () => window.innerWidth < 520;
const state = { chosen: {}, hidden: new Set(), theme: "auto" };
const views = new Map();
let content;

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function rowsOf({ size, columns }) {
  const names = Object.keys(columns);
  const lists = names.map((name) => {
    const { words, places } = columns[name];
    return words ? places.map((place) => words[place]) : columns[name];
  });
  return Array.from({ length: size }, (_, i) => {
    const row = {};
    for (let j = 0; j < names.length; j++) row[names[j]] = lists[j][i];
    return row;
  });
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// Filters: one value each; a change keeps the others where rows exist for them, and else moves them.

function passes(row, names) {
  return names.every((name) => {
    const wanted = state.chosen[name];
    return wanted === undefined || wanted === ALL || !(name in row) || row[name] === wanted;
  });
}

// What the first verb settles, a later one does not move: it has no rows then until it is chosen.
function agree(changed) {
  const settled = new Set(changed ? [changed] : []);
  for (const scopes of Object.values(content.scopes)) {
    if (!scopes.length || (changed && !(changed in scopes[0]))) continue;
    const names = Object.keys(scopes[0]);
    const allowed = scopes.filter((scope) => !changed || state.chosen[changed] === ALL || scope[changed] === state.chosen[changed]);
    const score = (scope) => names.filter((name) => state.chosen[name] === ALL || scope[name] === state.chosen[name]).length;
    const best = allowed.reduce((a, b) => (b && (!a || score(b) > score(a)) ? b : a), null);
    if (best) for (const name of names) if (state.chosen[name] !== ALL && !settled.has(name)) state.chosen[name] = best[name];
    if (best) names.forEach((name) => settled.add(name));
  }
}

function makeSelect(label, options, value, change) {
  const select = element("select");
  options.forEach(([_, text], place) => select.append(element("option", { value: String(place) }, text)));
  select.value = String(Math.max(0, options.findIndex(([one]) => one === value)));
  select.addEventListener("change", () => change(options[Number(select.value)][0]));
  return element("label", {}, label, select);
}

function drawFilters() {
  const form = document.getElementById("filters");
  const active = document.activeElement?.closest("#filters label")?.dataset.name;
  form.replaceChildren();
  for (const { name, label, options } of content.filters) {
    if (options.length < 2) continue;
    const made = makeSelect(label, options, state.chosen[name], (value) => {
      state.chosen[name] = value;
      agree(name);
      drawFilters();
      refresh();
    });
    made.dataset.name = name;
    form.append(made);
    if (name === active) made.querySelector("select").focus();
  }
  if (state.hidden.size) {
    const back = element("button", { type: "button" }, `Show all (${state.hidden.size} hidden)`);
    back.addEventListener("click", () => { state.hidden.clear(); drawFilters(); refresh(); });
    form.append(back);
  }
  form.hidden = !form.childElementCount;
}

// Figures

function rowsShown(figure) {
  const scoped = figure.rows.filter((row) => passes(row, figure.filters));
  for (const choice of figure.choices) if (choice.kind === "rows") offer(figure, choice, scoped);
  return scoped.filter((row) => figure.choices.every(({ kind, name }) => kind !== "rows" || row[name] === figure.chosen[name]));
}

// A choice among values that the scope lacks moves to one that it has.
function offer(figure, choice, rows) {
  const present = new Set(rows.map((row) => row[choice.name]));
  if (rows.length && !present.has(figure.chosen[choice.name])) {
    const first = choice.options.find(([value]) => present.has(value));
    if (first) figure.chosen[choice.name] = first[0];
  }
}

function variantOf(figure) {
  return figure.choices.filter(({ kind }) => kind === "variant").map(({ name }) => figure.chosen[name]).join("|");
}

function colourOf(index) {
  const place = content.indexes.indexOf(index);
  const colours = content.colours[currentTheme()];
  return place < 0 ? "var(--quiet)" : colours[place % colours.length];
}

const SHAPES = {
  circle: "M7 2a5 5 0 1 0 .01 0z",
  square: "M2.5 2.5h9v9h-9z",
  "triangle-up": "M7 1.8l5.6 10H1.4z",
  "triangle-down": "M7 12.2l5.6-10H1.4z",
  diamond: "M7 1l4.6 6L7 13 2.4 7z",
  cross: "M5.2 2h3.6v3.2H12v3.6H8.8V12H5.2V8.8H2V5.2h3.2z",
};

function swatch(index) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const path = document.createElementNS(space, "path");
  svg.setAttribute("viewBox", "0 0 14 14");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", SHAPES[content.shapes[content.indexes.indexOf(index)]] ?? SHAPES.circle);
  path.setAttribute("fill", colourOf(index));
  svg.append(path);
  return svg;
}

function toggle(index) {
  if (!state.hidden.delete(index)) state.hidden.add(index);
  document.getElementById("status").textContent = `${index} ${state.hidden.has(index) ? "hidden" : "shown"}`;
  drawFilters();
  refresh();
}

function drawLegend(figure, rows) {
  const legend = figure.place.querySelector(".legend");
  const focused = legend.contains(document.activeElement) ? document.activeElement.dataset.index : null;
  legend.replaceChildren();
  if (figure.legend !== "indexes") return;
  const present = new Set(rows.filter(({ role }) => !role || role === "index").map((row) => row.index));
  for (const index of content.indexes.filter((one) => present.has(one))) {
    const button = element("button", { type: "button", "aria-pressed": String(!state.hidden.has(index)) }, swatch(index), index);
    button.dataset.index = index;
    button.addEventListener("click", () => toggle(index));
    legend.append(button);
    if (index === focused) button.focus();
  }
}

function drawChoices(figure) {
  const place = figure.place.querySelector(".choices");
  if (place.contains(document.activeElement)) return; // its select has the value already
  place.replaceChildren();
  for (const { name, label, options } of figure.choices) {
    if (options.length < 2) continue;
    place.append(makeSelect(label, options, figure.chosen[name], (value) => {
      figure.chosen[name] = value;
      draw(figure);
    }));
  }
}

function cell(value, { digits }) {
  if (value === null || value === undefined || value === "") return "–";
  if (typeof value !== "number" || digits === null) return String(value);
  return value.toLocaleString("en", { maximumSignificantDigits: digits });
}

function drawTable(figure, rows) {
  const place = figure.place.querySelector(".table");
  const build = () => table(figure, rows);
  const bare = !Object.keys(figure.specs).length;
  if (bare) return place.replaceChildren(build());
  let details = place.querySelector("details");
  if (!details) {
    details = element("details", {}, element("summary", {}, "Numbers"));
    details.addEventListener("toggle", () => draw(figure, true));
    place.append(details);
  }
  while (details.children.length > 1) details.lastChild.remove();
  if (details.open) details.append(build());
}

function table(figure, rows) {
  const columns = figure.columns.filter(({ field }) => rows.some((row) => row[field] !== null && row[field] !== undefined));
  const sort = figure.sort;
  const sorted = sort ? [...rows].sort((a, b) => sort.sign * compareCells(a[sort.field], b[sort.field])) : rows;
  const head = element("tr", {}, ...columns.map(({ field, title }) => {
    const button = element("button", { type: "button" }, title);
    button.addEventListener("click", () => {
      figure.sort = { field, sign: sort?.field === field ? -sort.sign : 1 };
      draw(figure, true);
      figure.place.querySelector(`th[data-field="${field}"] button`)?.focus();
    });
    const th = element("th", { scope: "col" }, button);
    th.dataset.field = field;
    if (sort?.field === field) th.setAttribute("aria-sort", sort.sign > 0 ? "ascending" : "descending");
    return th;
  }));
  const body = sorted.slice(0, MOST_ROWS).map((row) => element("tr", {}, ...columns.map((column, place) => {
    const td = element("td", {});
    if (place === 0 && column.field === "index" && figure.legend === "indexes") {
      const mark = element("i");
      mark.style.background = colourOf(row.index);
      td.append(mark);
    }
    td.append(cell(row[column.field], column));
    return td;
  })));
  const made = element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
  const box = element("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": `Numbers of: ${figure.title}` }, made);
  if (rows.length <= MOST_ROWS) return box;
  return element("div", {}, box, element("p", { className: "how" }, `The first ${MOST_ROWS} of ${rows.length.toLocaleString("en")} rows.`));
}

function compareCells(a, b) {
  const numbers = [a, b].map((one) => (typeof one === "number" ? one : parseFloat(String(one ?? "").replace(/[^\d.eE+-]/g, ""))));
  if (numbers.every(Number.isFinite)) return numbers[0] - numbers[1];
  return String(a ?? "").localeCompare(String(b ?? ""));
}

function drawCaption(figure) {
  const fits = (run) => figure.verbs.includes(run.verb)
    && [["data", run.data], ["model", run.model], ["context", run.context]].every(([name, values]) =>
      !values.length || !figure.filters.includes(name) || values.includes(state.chosen[name]))
    && (!figure.filters.includes("split") || !run.split || run.split === state.chosen.split)
    && (!figure.filters.includes("machine") || state.chosen.machine === ALL || run.machines.includes(state.chosen.machine));
  const runs = content.runs.filter(fits);
  const facts = runs.map((run) => {
    const threads = run.threads.length ? `${run.threads.join(", ")} ${run.threads.join() === "1" ? "thread" : "threads"}` : "";
    return [[...run.data, ...run.model].join(", "), run.sizes.join("; "), ...run.context, ...run.machines, threads].filter(Boolean).join(" · ");
  });
  const commands = [...new Set(runs.flatMap((run) => run.commands))];
  const environments = [...new Set(runs.flatMap((run) => run.environments))];
  const caption = figure.place.querySelector("figcaption");
  const open = caption.querySelector("details")?.open;
  const details = element("details", { open: Boolean(open) }, element("summary", {}, "Environment"));
  details.append(...environments.map((text) => element("p", {}, text)));
  caption.replaceChildren(
    ...[...new Set(facts)].map((text) => element("p", {}, text)),
    ...commands.map((text) => element("pre", {}, text)),
    ...(environments.length ? [details] : []),
  );
}

async function draw(figure, onlyTable = false) {
  const inScope = rowsShown(figure);
  const rows = inScope.filter((row) => !state.hidden.has(row.index));
  drawTable(figure, rows);
  if (onlyTable) return;
  drawChoices(figure);
  drawLegend(figure, inScope);
  drawCaption(figure);
  const empty = figure.place.querySelector(".empty");
  const chart = figure.place.querySelector(".chart");
  const why = !inScope.length ? "No rows for what is chosen above." : !rows.length ? "Every index is hidden." : "";
  empty.textContent = why;
  empty.hidden = !why;
  const spec = figure.specs[variantOf(figure)];
  chart.hidden = Boolean(why) || !spec;
  if (!spec || why) return;
  const key = JSON.stringify([variantOf(figure), currentTheme(), chart.clientWidth, layoutOf(spec, rows, chart.clientWidth)]);
  const view = views.get(figure.name);
  if (view?.key === key) {
    view.view.data("rows", rows);
    await view.view.runAsync();
  } else {
    await embed(figure, spec, rows, chart, key);
  }
}

async function embed(figure, spec, rows, chart, key) {
  views.get(figure.name)?.finalize();
  const theme = content.themes[currentTheme()];
  const legend = figure.legend === "own" ? { ...theme.legend, columns: chart.clientWidth < 420 ? 1 : chart.clientWidth < 700 ? 2 : 4, gradientLength: 200 } : { disable: true };
  const made = await vegaEmbed(chart, fitted(spec, rows, chart.clientWidth), {
    config: { ...theme, legend },
    renderer: "svg",
    logLevel: 1, // errors only: it warns of every layer that has no rows
    actions: { export: true, source: false, compiled: false, editor: false },
    downloadFileName: figure.name,
    tooltip: { theme: "light" },
  });
  views.set(figure.name, { key, view: made.view, finalize: made.finalize });
  made.view.addEventListener("click", (_, item) => {
    const index = item?.datum?.index;
    if (figure.legend === "indexes" && content.indexes.includes(index)) toggle(index);
  });
  chart.setAttribute("aria-label", `${figure.title}. The numbers are in the table below.`);
}

// How many squares fit in a row, how many maps beside each other, and where a title must break.

function layoutOf(spec, rows, width) {
  const inner = spec.spec ?? spec;
  if (!inner.width?.step) return null;
  const squares = Math.max(1, new Set(rows.map((row) => row.kv_head)).size);
  const maps = new Set(rows.map((row) => row.index)).size;
  const room = Math.max(width / Math.min(maps, 4) - 50, Math.min(width - 74, 120));
  const step = Math.max(6, Math.min(inner.width.step, Math.floor(room / squares)));
  return { step, columns: Math.max(1, Math.floor((width - 40) / (squares * step + 34))), maps };
}

function fitted(spec, rows, width) {
  const made = structuredClone(spec);
  made.data = { name: "rows", values: rows };
  const layout = layoutOf(spec, rows, width);
  if (layout) {
    (made.spec ?? made).width = { step: layout.step };
    if (made.facet) made.columns = layout.columns;
  }
  breakTitles(made, width);
  return made;
}

function breakTitles(part, width) {
  if (!part || typeof part !== "object") return;
  for (const [channel, room] of [["x", width - 90], ["y", 300]]) {
    const title = part.encoding?.[channel]?.title;
    const labels = channel === "x" && part.encoding?.y?.type === "nominal" ? 110 : 0;
    if (typeof title === "string") part.encoding[channel].title = lines(title, (room - labels) / 6.4);
  }
  for (const inner of [...(part.layer ?? []), part.spec]) breakTitles(inner, width);
}

function lines(text, letters) {
  const made = [""];
  for (const word of text.split(" ")) {
    if (made.at(-1) && made.at(-1).length + word.length + 1 > letters) made.push(word);
    else made[made.length - 1] += (made.at(-1) ? " " : "") + word;
  }
  return made.length > 1 ? made : text;
}

function drawHeadlines() {
  const place = document.getElementById("headlines");
  if (!place) return;
  const names = ["data", "machine", "split", "k"];
  const tiles = content.headlines.filter((row) => passes(row, names)).slice(0, 4);
  place.replaceChildren(...tiles.map(({ title, value, detail }) =>
    element("div", { className: "tile" }, element("p", {}, title), element("b", {}, value), element("p", {}, detail))));
}

async function refresh() {
  drawHeadlines();
  for (const figure of content.figures) await draw(figure);
}

// Theme

function currentTheme() {
  if (state.theme !== "auto") return state.theme;
  return window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

function setTheme(theme) {
  state.theme = theme;
  root.dataset.theme = currentTheme();
  document.getElementById("theme").textContent = `Theme: ${theme}`;
}

async function start() {
  setTheme("auto");
  content = await unpack(document.getElementById("data").textContent);
  const datasets = content.datasets.map(rowsOf);
  for (const { name, options } of content.filters) if (options.length) state.chosen[name] = options[0][0];
  agree();
  for (const figure of content.figures) {
    figure.rows = datasets[figure.dataset];
    figure.place = document.getElementById(figure.name);
    figure.chosen = Object.fromEntries(figure.choices.map(({ name, options, start }) => [name, start ?? options[0]?.[0]]));
  }
  drawFilters();
  await refresh();
  document.getElementById("theme").addEventListener("click", () => {
    const order = ["auto", "light", "dark"];
    setTheme(order[(order.indexOf(state.theme) + 1) % order.length]);
    refresh();
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { setTheme(state.theme); refresh(); });
  let waiting;
  window.addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(refresh, 150); });
  root.dataset.ready = String(Math.round(performance.now()));
}

start().catch((error) => {
  root.dataset.failed = String(error);
  console.error(error);
});
