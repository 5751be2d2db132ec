// Two kinds of tables to read in: held-out examples, and what each iteration drew. Texts are only ever set as text.
const { default: DataTable, set_or_remove_dark_class } = globalThis.bundle;
set_or_remove_dark_class();
const { held_out, iterations } = JSON.parse(document.getElementById("browse").textContent);

function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

function card(title, note, ...paragraphs) {
  return make("div", "card", make("h4", "", make("span", "", title), make("small", "", note)), ...paragraphs);
}

function answer(title, sample) {
  const notes = [`reward ${sample.reward.toFixed(3)}`, `${sample.words} words`];
  if (!sample.finished) notes.push("not ended");
  const paragraphs = sample.malformed
    ? [make("p", "soft", `malformed: ${sample.malformed}`), make("p", "", sample.whole)]
    : [make("p", "", ...sample.text.map(([text, changed]) => (changed ? make("mark", "", text) : text)))];
  if (sample.path) paragraphs.unshift(make("p", "path", sample.path));
  return card(title, notes.join(" · "), ...paragraphs);
}

function readExample(example) {
  const answers = held_out.systems.flatMap((system) =>
    (example.answers[system] ?? []).map((sample, i) => answer(i ? `${system} (${i + 1})` : system, sample)));
  const reference = card("what the user wrote", `${example.words} words`, make("p", "", example.reference));
  const documents = example.documents.map((document) =>
    card(document.id, `similarity ${document.similarity.toFixed(2)}`, make("p", "", document.text)));
  const retrieved = make("details", "", make("summary", "", "Retrieved from the profile"), make("div", "inside cards", ...documents));
  return make("div", "", make("p", "", example.request), make("div", "cards", reference, ...answers), retrieved);
}

function readPrompt(prompt) {
  const samples = prompt.samples.map((sample) => {
    const shown = answer(sample.weight > 0 ? "kept" : sample.weight < 0 ? "rejected" : "left out", sample);
    if (sample.weight) shown.classList.add(sample.weight > 0 ? "kept" : "rejected");
    return shown;
  });
  const reference = card("what the user wrote", "", make("p", "", prompt.reference));
  return make("div", "", make("p", "", prompt.request), make("div", "cards", reference, ...samples));
}

// DataTables reads HTML wherever a text may stand: in cells, in headings, and in what its filter searches.
const escape = DataTable.render.text().display;

function cut(value) {
  const most = matchMedia("(max-width: 700px)").matches ? 60 : 90;
  const characters = Array.from(value);
  return characters.length > most ? `${characters.slice(0, most).join("")}…` : value;
}

// the filter decodes HTML, and finds nothing in a text that holds some kinds of line ends
const searchable = (value) => escape(value.replace(/\s+/g, " "));

// what a column gives to be shown, searched and sorted
const asText = (read) => (row, type) => {
  const value = String(read(row));
  return type === "display" ? escape(cut(value)) : type === "filter" ? searchable(value) : value;
};
const asFigure = (read, digits) => (row, type) => {
  const value = read(row);
  if (type === "display" || type === "filter") return value === undefined ? "–" : value.toFixed(digits);
  return value ?? -1;
};
const text = (title, className, read = (row) => row[title]) => ({ title, className, type: "string", data: asText(read) });
const figure = (title, digits, className = "", read = (row) => row[title]) => ({ title, className, type: "num", data: asFigure(read, digits) });

// a search finds all texts of a row, though no column shows them
function textsOf(value) {
  if (typeof value === "string") return [value];
  return value && typeof value === "object" ? Object.values(value).flatMap(textsOf) : [];
}
const searched = {
  title: "", visible: false, type: "string",
  data: (row, type) => (type === "filter" ? searchable(textsOf(row).join(" ")) : ""),
};

function show(id, data, columns, order, read) {
  const table = new DataTable(document.getElementById(id), {
    data, order, pageLength: 10, lengthMenu: [10, 25, 100], autoWidth: false,
    columns: [...columns, searched].map((column) => ({ ...column, title: escape(column.title) })),
    language: { search: "", searchPlaceholder: "search all texts", lengthMenu: "_MENU_ rows" },
  });
  table.on("click", "tbody tr:not(.child)", (event) => {
    if (event.target.closest("td.child")) return;
    const row = table.row(event.target.closest("tr"));
    if (!row.data()) return;
    if (row.child.isShown()) row.child.hide();
    else row.child(read(row.data()), "child").show();
  });
  return table;
}

const rewards = held_out.systems.map((system) => figure(system, 3, "roomy", (row) => row.rewards[system]));
const examples = show("examples", held_out.examples, [
  text("user", "name"), text("request", "long"), text("split", "roomy"), figure("words", 0, "roomy"), ...rewards, figure("gain", 3),
], [[4 + rewards.length, "desc"]], readExample);
for (const [i, { prompts }] of iterations.entries()) {
  show(`iteration-${i}`, prompts, [
    text("user", "name"), text("request", "long"), figure("kept", 0), figure("mean", 3, "roomy"), figure("best", 3),
  ], [[4, "desc"]], readPrompt);
}
const first = examples.row(examples.rows({ order: "applied" }).indexes()[0]);
if (first.data()) first.child(readExample(first.data()), "child").show();
