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
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
