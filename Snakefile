# The graph of the work: notebooks of a profile, then the book.
#
# A notebook runs again when its state changes (code, parameters, data; see workflow/profiles.py): the state is a
# parameter of the rule, and snakemake remembers with which one each output was made.
import json

from workflow import profiles, site

PROFILE = config["profile"]
ONLY = config.get("only")
PLAN = {} if PROFILE == "published" else profiles.read(PROFILE, ONLY, config.get("seeds"))
BUILD = f"build/{PROFILE}"


rule book:
    input:
        f"{BUILD}/site/index.html",


rule runs:
    input:
        expand(f"{BUILD}/runs/{{name}}.ipynb", name=PLAN),


for NAME, ENTRY in PLAN.items():

    rule:
        name:
            NAME
        input:
            [f"{BUILD}/runs/{one}.ipynb" for one in ENTRY["after"]],
        output:
            f"{BUILD}/runs/{NAME}.ipynb",
            f"{BUILD}/runs/{NAME}.json",
        params:
            state=json.dumps(profiles.state(NAME, ENTRY), sort_keys=True),
            parameters=json.dumps(ENTRY["parameters"]),
            notebook=NAME,
            minutes=ENTRY["minutes"],
        threads: 2
        shell:
            "python -m workflow.execute {params.notebook} {PROFILE} {params.parameters:q} {params.minutes}"


rule site:
    input:
        rules.runs.input,
    output:
        f"{BUILD}/site/index.html",
    params:
        state=site.state(),
    shell:
        "python -m workflow.site {PROFILE}"
