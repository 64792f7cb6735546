"""What the pages need from Sphinx: figures and widgets of runs, a policy that keeps pages to this site, names for all.

``{run-figure} notebook tag`` shows the figure that the cell tagged so drew in the published run; where this machine has
a run of its own, that run's figure stands in a second tab. Alt texts come from the notebook. ``{run-widget} notebook
widget-tag figure-tag`` shows a widget in the same way; the figure stands there until it runs, or where it cannot.
"""

import json
import re
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

POLICY = (
    "default-src 'self' file: data: blob: 'unsafe-inline'; base-uri 'none'; object-src 'none'; form-action 'self' file:"
)
LATE = "loaded-when-seen"  # class of figures behind a tab
LABELS = {"published": "Published run", "own": "Your run"}


class RunFigure(SphinxDirective):
    """A figure with caption, one tab a run."""

    required_arguments = 2
    has_content = True
    option_spec = {"name": directives.unchanged}

    def run(self):
        notebook, tag = self.arguments[0], self.arguments[-1]
        runs = Path(self.env.srcdir) / "runs"
        found = [which for which in LABELS if (runs / which / notebook / f"{tag}.png").exists()]
        if not found:
            raise self.error(f"no run of {notebook} has a figure {tag}")
        blocks = [self._figure(runs, which, notebook, tag, first=which == found[0]) for which in found]
        if len(found) == 1:
            lines = blocks[0][1]
        else:
            lines = [":::::{tab-set}"]
            for label, block in blocks:
                lines += [f"::::{{tab-item}} {label}", *block, "::::"]
            lines += [":::::"]
        node = nodes.Element()
        self.state.nested_parse(StringList(lines, source=self.env.docname), self.content_offset, node)
        return node.children

    def _figure(self, runs, which, notebook, tag, first):
        about = json.loads((runs / which / notebook / "figures.json").read_text(encoding="utf-8"))
        name = [f":name: {self.options['name']}"] if first and "name" in self.options else []
        late = [] if first else [f":class: {LATE}"]
        lines = [f":::{{figure}} /runs/{which}/{notebook}/{tag}.png", *name, *late, f":alt: {about['alt'][tag]}", ""]
        return f"{LABELS[which]} ({about['profile']})", [*lines, *self.content, ":::"]


class RunWidget(RunFigure):
    """A widget, with a figure of the same run as its static picture."""

    required_arguments = 3

    def _figure(self, runs, which, notebook, tag, first):
        label, lines = super()._figure(runs, which, notebook, tag, first)
        about = json.loads((runs / which / notebook / "figures.json").read_text(encoding="utf-8"))
        widget = self.arguments[1]
        if widget not in about["widgets"]:
            raise self.error(f"the {which} run of {notebook} has no widget {widget}")
        kind = about["widgets"][widget]
        start = f'<div class="xai-widget" data-widget="{which}/{notebook}/{widget}" data-kind="{kind}">'
        return label, ["```{raw} html", start, "```", "", *lines, "", "```{raw} html", "</div>", "```"]


def tidy_head(app, pagename, templatename, context, doctree):
    """Put a Content-Security-Policy into the head of every page; leave out Thebe, which would need a server."""
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    context["metatags"] = f"{context.get('metatags', '')}\n{policy}\n"
    scripts = context.get("script_files", [])
    scripts[:] = [one for one in scripts if "thebe" not in f"{one.filename} {one.attributes}".lower()]
    if 'class="xai-widget"' in context.get("body", ""):
        context["body"] += f'<script src="{context["pathto"]("widgets/host.js", 1)}"></script>'


def name_toggles(app, pagename, templatename, context, doctree):
    """Give the arrows of the side bar, which are pictures alone, a name that a screen reader can say."""
    draw = context["generate_toctree_html"]

    def named(*arguments, **settings):
        return re.sub(
            r'(<a class="[^"]*reference internal" href="[^"]*">\s*([^<]*?)\s*</a>\s*<details[^>]*>\s*<summary)>',
            r'\1 aria-label="Pages of \2">',
            str(draw(*arguments, **settings)),
        )

    context["generate_toctree_html"] = named


def tidy_body(app, pagename, templatename, context, doctree):
    """Mend roles: Sphinx sets the parameters of a long signature as definitions without terms, docutils calls a
    bibliography a list and its entries something else. Figures behind a tab wait until they are seen.
    """
    body = re.sub(rf'<img (?=[^>]*class="[^"]*{LATE})', '<img loading="lazy" ', context.get("body", ""))
    body = body.replace('<div role="list" class="citation-list">', '<div class="citation-list">')
    context["body"] = re.sub(
        r"<dl>\n((?:<dd>.*?</dd>\n)+)</dl>",
        lambda found: '<div class="parameters">' + re.sub("(</?)dd>", r"\1div>", found[1]) + "</div>",
        body,
    )


def drop_icon_script(app, exception):
    """Take Font Awesome's script, 1.5 MB a page, out again: the theme's font has the same icons."""
    for path in Path(app.outdir).rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r'<script defer src="[^"]*fontawesome\.js[^"]*"></script>', "", text), encoding="utf-8")


def setup(app):
    """Register all of it with Sphinx."""
    app.add_directive("run-figure", RunFigure)
    app.add_directive("run-widget", RunWidget)
    app.connect("html-page-context", tidy_head)
    app.connect("html-page-context", tidy_body)
    app.connect("html-page-context", name_toggles, priority=900)  # after the theme has laid its functions there
    app.connect("build-finished", drop_icon_script)
    app.add_css_file("book.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
