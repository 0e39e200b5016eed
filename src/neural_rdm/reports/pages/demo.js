// The page of `python -m neural_rdm.demo`: asks its own server for samples, one drawing at a time, the newest wish last.
const at = (id) => document.getElementById(id);
const names = JSON.parse(at("names").textContent);
const post = async (path, asked) => {
  const answer = await fetch(path, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(asked),
  });
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error);
  return told;
};
const kept = () => Number(at("units").value);
const unit = () => {
  at("unit").textContent = kept() === names.length ? `all ${names.length} units`
    : kept() === 0 ? "no unit at all" : `${kept()} of ${names.length}: ${names[kept() - 1]}`;
};
const wish = () => {
  const asked = {
    guidance: Number(at("guidance").value), steps: Number(at("steps").value), seed: Number(at("seed").value),
    weights: at("weights").value, units: kept(),
  };
  if (at("class")) asked.class = Number(at("class").value);
  if (at("prompt")) asked.prompt = at("prompt").value;
  return asked;
};
let drawing = false;
let again = false;
const draw = async () => {
  if (drawing) { again = true; return; }
  drawing = true;
  at("said").textContent = "Drawing ...";
  try {
    const told = await post("/draw", wish());
    const of = told.units === names.length ? "all units" : `the first ${told.units} of ${names.length} units`;
    at("drawn").src = told.image;
    at("drawn").alt = `Samples drawn by ${of}`;
    at("drawn").hidden = false;
    at("said").textContent = `Drawn by ${of} in ${told.seconds} s.`;
  } catch (error) {
    at("said").textContent = `Not drawn: ${error.message}`;
  }
  drawing = false;
  if (again) { again = false; draw(); }
};
at("ask").addEventListener("submit", (event) => { event.preventDefault(); draw(); });
at("next").addEventListener("click", () => { at("seed").value = Number(at("seed").value) + 1; draw(); });
at("units").addEventListener("input", unit);
for (const id of ["units", "weights", "class"]) at(id)?.addEventListener("change", draw);
at("measure").addEventListener("click", async () => {
  at("chart").textContent = "Measuring ...";
  try {
    at("chart").innerHTML = (await post("/sensitivity", { weights: at("weights").value })).html;
  } catch (error) {
    at("chart").textContent = `Not measured: ${error.message}`;
  }
});
unit();
draw();
