"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const MOST = 1000; // images in the grid at first
const natural = new Intl.Collator("en", {numeric: true});
const at = (id) => document.getElementById(id);

function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

// -- what is known of an image --------------------------------------------------------------------

const by_id = new Map(data.images.map((image) => [image.row.sample_id, image]));
const is_kept = (image, selection) => image.kept.includes(selection);
const label_of = (image) => (image.row.label === null ? null : String(image.row.label));
const chosen_selection = () => at("by-selection")?.value ?? "";
const chosen_scoring = () => at("scoring")?.value ?? "";

for (const image of data.images) {
  const values = Object.values(image.row).filter((value) => value !== null);
  image.text = `${values.join("\n")}\ncluster ${image.cluster}`.toLowerCase();
}

// A name that is written from right to left, so that the text around it keeps its order.
function isolate(name) {
  return /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/.test(name) ? `\u2068${name}\u2069` : name;
}

function describe(image) {
  const parts = [isolate(image.row.key)];
  if (image.row.label !== null) parts.push(`class ${isolate(image.row.label)}`);
  const scoring = chosen_scoring(), score = image.row[scoring];
  if (typeof score === "number") parts.push(`${scoring} ${score.toPrecision(3)}`);
  if (chosen_selection()) parts.push(is_kept(image, chosen_selection()) ? "kept" : "dropped");
  return parts.join(", ");
}

// -- pictures -------------------------------------------------------------------------------------

function draw(image, source, text) {
  if (image.thumbnail === null) return element("span", {className: "missing"}, text);
  const is_tiny = Math.max(image.width, image.height) <= 64;
  return element("img", {
    src: source,
    alt: describe(image),
    className: is_tiny ? "tiny" : "",
    decoding: "async",
  });
}

// `images` is the list that a picture belongs to: arrow keys and the dialog walk through it.
function picture(image, images, mark) {
  const button = element("button", {type: "button", title: describe(image), tabIndex: -1});
  button.append(draw(image, image.thumbnail, "no image"));
  if (image.thumbnail === null) button.setAttribute("aria-label", `${describe(image)}, no image`);
  if (mark) button.append(element("span", {className: "mark"}, mark));
  button.addEventListener("click", () => open_detail(image, images));
  return element("li", {}, button);
}

function pictures(images, {row = false, mark = () => ""} = {}) {
  const list = element("ul", {className: row ? "pictures row" : "pictures"});
  list.append(...images.map((image) => picture(image, images, mark(image))));
  const buttons = [...list.querySelectorAll("button")];
  if (buttons.length) buttons[0].tabIndex = 0;
  list.addEventListener("keydown", (event) => {
    const step = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(buttons), ArrowUp: -columns(buttons)}[event.key];
    const next = buttons[buttons.indexOf(document.activeElement) + (step ?? NaN)];
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
  list.addEventListener("focusin", (event) => {
    for (const button of buttons) button.tabIndex = button === event.target ? 0 : -1;
  });
  return list;
}

function columns(buttons) {
  const top = buttons[0].getBoundingClientRect().top;
  const below = buttons.findIndex((button) => button.getBoundingClientRect().top > top + 1);
  return below < 0 ? buttons.length : below;
}

function group(title, detail, list) {
  const heading = element("h4", {dir: "auto"}, title);
  if (detail) heading.append(element("span", {}, ` ${detail}`));
  return element("section", {className: "group"}, heading, list);
}

// -- the enlarged image ---------------------------------------------------------------------------

let shown = {images: [], index: 0};

function open_detail(image, images) {
  shown = {images, index: images.indexOf(image)};
  fill_detail(image);
  if (!at("detail").open) at("detail").showModal();
}

function fill_detail(image) {
  at("detail-title").textContent = describe(image);
  const source = image.real ?? image.thumbnail;
  const picture = draw(image, source, image.problem);
  at("detail-image").className = "";
  at("detail-image").replaceChildren(picture);
  at("detail-size").textContent = "";
  if (image.thumbnail !== null) {
    const show_size = () => {
      const {naturalWidth: width, naturalHeight: height} = picture;
      const is_real = width === image.width && height === image.height;
      // Small images are enlarged by a whole number, pixel by pixel.
      const zoom = Math.max(1, Math.floor(Math.min(320, innerWidth * 0.8) / Math.max(width, height)));
      if (is_real && zoom > 1) picture.width = width * zoom;
      at("detail-size").textContent = is_real
        ? `${width} × ${height} pixels${zoom > 1 ? `, shown ${zoom} times as large` : ", its own; click for one to one"}`
        : `${width} × ${height} of ${image.width} × ${image.height} pixels: curate report --max-megabytes makes room for more`;
    };
    picture.addEventListener("load", show_size);
    picture.addEventListener("click", () => at("detail-image").classList.toggle("actual"));
  }
  at("detail-row").replaceChildren(...Object.entries(image.row).map(([name, value]) => {
    const row = element("tr", {}, element("th", {scope: "row"}, name));
    row.append(element("td", {dir: "auto"}, value === null ? "" : String(value)));
    return row;
  }), element("tr", {}, element("th", {scope: "row"}, "kept by"), element("td", {}, image.kept.join(", "))));
}

function step_detail(step) {
  const index = shown.index + step;
  if (index < 0 || index >= shown.images.length) return;
  shown.index = index;
  fill_detail(shown.images[index]);
}
at("previous").addEventListener("click", () => step_detail(-1));
at("next").addEventListener("click", () => step_detail(1));
at("detail").addEventListener("keydown", (event) => {
  if (event.key === "ArrowRight") step_detail(1);
  if (event.key === "ArrowLeft") step_detail(-1);
});

// -- the grid -------------------------------------------------------------------------------------

function find_images() {
  const words = at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const selection = chosen_selection(), kept = at("by-kept").value;
  const label = at("by-label").value, cluster = at("by-cluster").value;
  const scoring = chosen_scoring();
  const low = parseFloat(at("low")?.value), high = parseFloat(at("high")?.value);
  const column = at("by-column")?.value ?? "", wanted = at("by-value")?.value ?? "";
  const score = (image) => image.row[scoring];
  const found = data.images.filter((image) =>
    words.every((word) => image.text.includes(word))
    && (kept === "" || is_kept(image, selection) === (kept === "kept"))
    && (label === "" || label_of(image) === label)
    && (cluster === "" || String(image.cluster) === cluster)
    && (column === "" || wanted === "" || String(image.row[column]) === wanted)
    && (Number.isNaN(low) || score(image) >= low)
    && (Number.isNaN(high) || score(image) <= high));
  const sign = at("order")?.value === "easy" ? 1 : -1;
  return found.sort((a, b) => sign * ((score(a) ?? 0) - (score(b) ?? 0)));
}

function show(most = MOST) {
  const found = find_images(), images = found.slice(0, most), by = at("group").value;
  const kept = at("by-kept").value, selection = chosen_selection();
  at("count").textContent = `${found.length} of the ${data.images.length} images in this page. `
    + "Click one to enlarge it; arrow keys walk.";
  const mark = (image) => (kept === "" && selection && !is_kept(image, selection) ? "dropped" : "");
  const groups = new Map();
  for (const image of images) {
    const name = by === "class" ? label_of(image) ?? "without a class"
      : by === "cluster" ? String(image.cluster ?? "none") : "";
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(image);
  }
  const sizes = new Map((data.groups[by] ?? []).map((one) => [one.name, one]));
  const lost = (name) => { const one = sizes.get(name); return one ? one.num_dropped / one.num_samples : 0; };
  const is_about = selection === data.selection;
  const names = [...groups.keys()].sort((a, b) => (is_about ? lost(b) - lost(a) : 0) || natural.compare(a, b));
  at("grid").replaceChildren(...names.map((name) => {
    const list = pictures(groups.get(name), {mark}), size = sizes.get(name);
    if (by === "") return list;
    const detail = size && is_about && selection
      ? `${size.num_dropped.toLocaleString("en")} of ${size.num_samples.toLocaleString("en")} dropped, ${groups.get(name).length} shown`
      : `${groups.get(name).length} shown`;
    return group(`${by} ${isolate(name)}`, detail, list);
  }));
  if (found.length > images.length) {
    const button = element("button", {type: "button", className: "more"}, `show all ${found.length}`);
    button.addEventListener("click", () => show(found.length));
    at("grid").append(button);
  }
}

// -- easiest and hardest, duplicates --------------------------------------------------------------

function show_ends() {
  const by = at("by-group").value;
  const images_of = (ids) => ids.map((id) => by_id.get(id)).filter(Boolean);
  const groups = data.groups[by].filter((one) => images_of([...one.easy, ...one.hard]).length);
  groups.sort((a, b) => natural.compare(a.name, b.name));
  at("ends").replaceChildren(...groups.map((one) => {
    const easy = images_of(one.easy);
    const hard = images_of(one.hard).filter((image) => !easy.includes(image));
    const mark = (image) => (easy.includes(image) ? "easy" : "hard");
    return group(by === "all" ? "the corpus" : `${by} ${isolate(one.name)}`, "", pictures([...easy, ...hard.reverse()], {row: true, mark}));
  }));
}

function show_duplicates() {
  const groups = data.duplicates.map((ids) => ids.map((id) => by_id.get(id)).filter(Boolean));
  at("copies").replaceChildren(...groups.filter((images) => images.length > 1).map((images, index) => {
    const labels = new Set(images.map(label_of));
    const detail = labels.size > 1 ? `labels contradict: ${[...labels].map(isolate).join(", ")}` : "";
    return group(`group ${index + 1}`, detail, pictures(images, {row: true, mark: (image) => (image === images[0] ? "stays" : "")}));
  }));
}

// -- filters --------------------------------------------------------------------------------------

function add_options(select, values) {
  const sorted = [...new Set(values)].sort(natural.compare);
  select.append(...sorted.map((value) => element("option", {value}, value)));
}

// The values that a column has among the images shown here, the first 200 of them.
function list_values() {
  const name = at("by-column").value;
  at("by-value").replaceChildren(element("option", {value: ""}, "all"));
  if (name !== "") {
    const values = [...new Set(data.images.map((image) => String(image.row[name])))];
    add_options(at("by-value"), values.sort(natural.compare).slice(0, 200));
  }
}

function set_up() {
  const labels = data.images.map(label_of).filter((label) => label !== null);
  const clusters = data.images.map((image) => image.cluster).filter((cluster) => cluster !== null);
  add_options(at("by-label"), labels);
  add_options(at("by-cluster"), clusters.map(String));
  if (!labels.length) at("group").value = clusters.length ? "cluster" : "";
  at("filters").addEventListener("input", (event) => {
    if (event.target === at("by-column")) list_values();
    show();
  });
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  at("filters").addEventListener("reset", () => setTimeout(show));
  show();
  const kinds = {class: "each class", cluster: "each cluster", all: "the whole corpus"};
  for (const [kind, text] of Object.entries(kinds)) {
    const has_ends = data.groups[kind].some((one) => one.easy.some((id) => by_id.has(id)));
    if (has_ends) at("by-group").append(element("option", {value: kind}, text));
  }
  if (at("by-group").options.length) {
    at("ends-part").hidden = false;
    at("by-group").addEventListener("input", show_ends);
    show_ends();
  }
  if (data.duplicates.length) {
    at("duplicates-part").hidden = false;
    show_duplicates();
  }
}
set_up();

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, index) => head.firstElementChild.addEventListener("click", () => {
    const is_descending = head.getAttribute("aria-sort") === "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", is_descending ? "descending" : "ascending");
    const is_number = head.classList.contains("number");
    const value = (row) => {
      const text = row.cells[index].textContent;
      return is_number ? (text === "" ? -Infinity : parseFloat(text.replaceAll(",", ""))) : text;
    };
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const x = value(a), y = value(b);
      return x < y ? -1 : x > y ? 1 : 0;
    });
    if (is_descending) rows.reverse();
    table.tBodies[0].append(...rows);
  }));
}
