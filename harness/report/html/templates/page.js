"use strict";
// Copies also from a local file: with the clipboard API if the browser grants it, otherwise by a selection.
for (const button of document.querySelectorAll("button[data-copy]")) {
  const source = document.getElementById(button.dataset.copy);
  const label = button.textContent;
  const showResult = (text) => {
    button.textContent = text;
    setTimeout(() => { button.textContent = label; }, 1600);
  };
  const select = () => {
    const selection = window.getSelection();
    selection.removeAllRanges();
    const range = document.createRange();
    range.selectNodeContents(source);
    selection.addRange(range);
  };
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(source.textContent);
      showResult("Copied");
    } catch {
      select();
      showResult(document.execCommand("copy") ? "Copied" : "Selected: press Ctrl+C");
    }
  });
}
