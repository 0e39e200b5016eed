"use strict";
// Everything can be read without this. It adds buttons that copy commands, lets the keyboard reach figures that scroll,
// and opens what is folded before printing.
for (const pre of document.querySelectorAll("pre")) {
  const button = document.createElement("button");
  const label = "Copy" + (pre.getAttribute("aria-label") ? ": " + pre.getAttribute("aria-label") : "");
  button.type = "button";
  button.textContent = "Copy";
  button.setAttribute("aria-label", label);
  button.addEventListener("click", async () => {
    const range = document.createRange();
    range.selectNodeContents(pre);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    let copied = false;
    try {
      await navigator.clipboard.writeText(pre.textContent);
      copied = true;
    } catch {
      copied = document.execCommand("copy"); // a page that was opened as a file may have no clipboard
    }
    button.textContent = copied ? "Copied" : "Selected";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  pre.parentElement.append(button);
}
const reach = () => {
  for (const plate of document.querySelectorAll(".plate")) {
    if (plate.scrollWidth > plate.clientWidth) plate.tabIndex = 0;
    else plate.removeAttribute("tabindex");
  }
};
addEventListener("load", reach);
addEventListener("resize", reach);
document.addEventListener("toggle", reach, true);
// A page of what still goes on reads itself anew, but not under the hands of who is reading or has unfolded something.
const seconds = Number(document.body.dataset.reload);
if (seconds) {
  setInterval(() => {
    const busy = document.querySelector("details[open]") || String(getSelection());
    const typing = [...document.querySelectorAll("input")].some((input) => input.value);
    if (document.visibilityState === "visible" && !busy && !typing) location.reload();
  }, 1000 * seconds);
}
// The list of runs, narrowed to those that have every word that is typed.
const find = document.getElementById("find");
if (find) {
  const runs = [...document.querySelectorAll(".runs > li")];
  const told = document.getElementById("found");
  find.parentElement.hidden = false;
  find.addEventListener("input", () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const run of runs) run.hidden = !words.every((word) => run.textContent.toLowerCase().includes(word));
    told.textContent = words.length ? `${runs.filter((run) => !run.hidden).length} of ${runs.length} shown` : "";
  });
}
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
