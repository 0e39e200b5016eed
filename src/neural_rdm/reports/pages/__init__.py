"""Pages in HTML, each one file that needs nothing else: pictures stand in it, and no request leaves it.

`render` fills a template of this folder (Jinja, everything escaped) and embeds pictures; `frame.html`, `style.css`,
`script.js` and `macros.html` are what all pages share. A page of its own extends `frame.html`, as `comparison.html`
does, whose contents `comparison`, `samples` and `origins` gather; `run` makes that of a single run, `index` the list of
all, and `charts` their small drawings. Begin with `comparison.write_page`.
"""
