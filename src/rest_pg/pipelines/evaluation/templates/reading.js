// Two kinds of tables to read in: held-out examples, and what each iteration drew. Texts are only ever set as text.
const code = new Blob([document.getElementById("datatables").textContent], { type: "text/javascript" });
const { default: DataTable, set_or_remove_dark_class } = await import(URL.createObjectURL(code));
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

function cut(value, type) {
  const most = matchMedia("(max-width: 700px)").matches ? 60 : 90;
  return type === "display" && value.length > most ? `${value.slice(0, most)}…` : value;
}

function figure(name, digits) {
  return (row, type) => {
    const value = name.split(".").reduce((found, key) => found?.[key], row);
    return type === "display" ? (value === undefined ? "–" : value.toFixed(digits)) : (value ?? -1);
  };
}

// a search finds all texts of a row, though no column shows them
const searched = {
  title: "", data: null, visible: false,
  render: (value, type, row) => (type === "filter" ? JSON.stringify(row).replaceAll("\\n", " ") : ""),
};

function show(id, data, columns, order, read) {
  const escape = DataTable.render.text().display;
  const named = [...columns.map(({ digits, ...column }) => ({
    ...column,
    title: column.title ?? column.data,
    ...(digits === undefined
      ? { render: (value, type) => (type === "display" ? escape(cut(value, type)) : value) }
      : { data: null, render: (value, type, row) => figure(column.data, digits)(row, type) }),
  })), searched];
  const table = new DataTable(document.getElementById(id), {
    data, columns: named, order, pageLength: 10, lengthMenu: [10, 25, 100], autoWidth: false,
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

const rewards = held_out.systems.map((system) => ({ data: `rewards.${system}`, title: system, digits: 3, className: "roomy" }));
const gain = { data: "gain", title: "gain", digits: 3 };
const examples = show("examples", held_out.examples, [
  { data: "user", className: "name" }, { data: "request", className: "long" }, { data: "split", className: "roomy" },
  { data: "words", digits: 0, className: "roomy" }, ...rewards, gain,
], [[4 + rewards.length, "desc"]], readExample);
for (const { name, prompts } of iterations) {
  show(name, prompts, [
    { data: "user", className: "name" }, { data: "request", className: "long" }, { data: "kept", digits: 0 },
    { data: "mean", digits: 3, className: "roomy" }, { data: "best", digits: 3 },
  ], [[4, "desc"]], readPrompt);
}
const first = examples.row(examples.rows({ order: "applied" }).indexes()[0]);
if (first.data()) first.child(readExample(first.data()), "child").show();
