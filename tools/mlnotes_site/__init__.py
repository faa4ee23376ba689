"""The documentation site: equations and snippets rendered when it is built.

`python -m mlnotes_site build` makes the whole site; everything special about it is here:

- `pages`: the Markdown pages, their front matter, code fences and equation labels;
- `snippets` and `worker`: run the Python blocks of a page and keep what they print and draw;
- `katex`: mathematics to HTML, in one Node process;
- `extension`: the Python-Markdown extension that puts the three together. It uses no interface
  of the site builder, so MkDocs and Zensical build the same sources;
- `assets`, `inventories`, `notebooks`: the files that are made before a build;
- `check`: what must hold of the built site.
"""
