// Figures, in the page's own colours. Their labels are escaped where they are made.
const ink = getComputedStyle(document.documentElement);
for (const data of document.querySelectorAll("script.figure")) {
  const figure = JSON.parse(data.textContent);
  const line = ink.getPropertyValue("--line");
  Object.assign(figure.layout, { font: { color: ink.getPropertyValue("--ink"), size: 13 } });
  for (const axis of ["xaxis", "yaxis"]) Object.assign(figure.layout[axis] ??= {}, { gridcolor: line, zerolinecolor: line, automargin: true });
  for (const shape of figure.layout.shapes ?? []) shape.line.color = line;
  Plotly.newPlot(data.dataset.for, figure.data, figure.layout, { responsive: true, displayModeBar: false });
}
