// Blocks that scroll sideways can be reached by keyboard, and only those; tables marked sortable become so.
document.addEventListener("DOMContentLoaded", () => {
  const blocks = [...document.querySelectorAll(".medq-scroll, .medq-interactive")];
  const reach = () => blocks.forEach((block) => {
    const wide = block.scrollWidth > block.clientWidth + 1;
    if (wide) {
      block.tabIndex = 0;
      block.setAttribute("role", "region");
      if (!block.hasAttribute("aria-label")) block.setAttribute("aria-label", "Scrolls sideways");
    } else {
      block.removeAttribute("tabindex");
      if (block.tagName === "DIV") block.removeAttribute("role");
      if (block.tagName === "DIV" && block.getAttribute("aria-label")) {
        block.dataset.label = block.getAttribute("aria-label");
        block.removeAttribute("aria-label");
      }
    }
    if (wide && block.dataset.label) block.setAttribute("aria-label", block.dataset.label);
  });
  const sidebar = document.getElementById("pst-primary-sidebar");
  if (sidebar) {  // the theme leaves logo and search outside of every landmark
    sidebar.setAttribute("role", "complementary");
    sidebar.setAttribute("aria-label", "Book");
  }
  const tables = window.medqTables;
  if (tables) document.querySelectorAll(".medq-sortable table").forEach((table, number) => {
    table.querySelectorAll("td.number").forEach((cell) => {
      const value = parseFloat(cell.textContent.replace("−", "-").replace(/[^0-9.eE+-]/g, ""));
      cell.dataset.order = Number.isNaN(value) ? -1e99 : value;
    });
    const many = table.tBodies[0].rows.length > 30;
    tables.jQuery(table).DataTable({
      order: [], autoWidth: false, info: false, paging: many, pageLength: 25, language: { search: "Filter rows: " },
      layout: { topStart: "search", topEnd: null, bottomStart: many ? "paging" : null, bottomEnd: null },
    });
    table.closest(".medq-sortable").querySelectorAll("nav").forEach((nav) => {
      nav.setAttribute("aria-label", `Rows of table ${number + 1}`);
    });
  });
  reach();
  window.addEventListener("resize", reach);
  window.addEventListener("load", () => {
    if (window.Plotly) document.querySelectorAll(".js-plotly-plot").forEach((plot) => window.Plotly.Plots.resize(plot));
    reach();
  });
});
