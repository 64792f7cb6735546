# Commands of the project; `make` alone lists them.
PROFILE ?= quick
PYTHON ?= python3
SETS ?= mnist cifar10
IN = .venv/bin/

# Tensors are big and short-lived: keep their memory instead of asking the kernel for it anew at every step (glibc).
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 2147483648
# Threads wait for each other actively for microseconds, then give way to others (OpenMP): without any such wait a
# training takes a quarter longer, with one ten times as long two trainings at once take twice the time.
export GOMP_SPINCOUNT ?= 1000
# One GPU is used; the others need not be woken.
export CUDA_VISIBLE_DEVICES ?= 0

help:  ## list these commands
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## ?/  make \1 \t/' | expand -t 18

book: .venv/installed  ## run the notebooks of PROFILE=smoke|quick|desk|paper and build the book
	@$(IN)python -m workflow.build --profile $(PROFILE)

test: .venv/installed  ## run all tests
	@CUDA_VISIBLE_DEVICES= $(IN)python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

site: .venv/installed  ## build the book from the published runs alone
	@$(IN)python -m workflow.build --profile published

pdf: site  ## print the text of that book as build/published/book.pdf, by Chromium
	@$(IN)python -m workflow.pdf published

run: .venv/installed  ## run one notebook: NOTEBOOK=xcnn_mnist PROFILE=desk [SEEDS=0,1,2]
	@$(IN)python -m workflow.build --profile $(PROFILE) --notebook "$(NOTEBOOK)" $(if $(SEEDS),--seeds "$(SEEDS)")

compare: .venv/installed  ## compare two run records: A=one.json B=two.json
	@$(IN)python -m xai_lib.ledger compare "$(A)" "$(B)"

data: .venv/installed  ## fetch real data into XAI_DATA (default data/): SETS="mnist cifar10 cub tinyimagenet"
	@$(IN)python -m xai_lib.download $(SETS)

serve: .venv/installed  ## serve the site of PROFILE on this machine alone, port 8000
	@$(IN)python -m http.server --bind 127.0.0.1 --directory build/$(PROFILE)/site 8000

lab: .venv/installed  ## open JupyterLab
	@XAI_DATA="$${XAI_DATA:+$$(realpath -m "$$XAI_DATA")}" $(IN)jupyter lab

results: .venv/installed  ## print paper and ours, published runs
	@$(IN)python -m xai_lib.ledger

benchmark: .venv/installed  ## time one of benchmarks/, on an idle machine: NAME=srae
	@$(IN)python benchmarks/$(NAME).py

publish: .venv/installed  ## copy the run of NOTEBOOK in PROFILE to results/, and its table to the README
	@mkdir -p results/$(PROFILE)
	@cp build/$(PROFILE)/runs/$(NOTEBOOK).json build/$(PROFILE)/runs/$(NOTEBOOK).ipynb results/$(PROFILE)/
	@$(IN)python -m workflow.weights $(PROFILE) $(NOTEBOOK)
	@$(IN)python -m workflow.readme

clean:  ## remove everything that was built, the environment kept
	@rm -rf build .snakemake

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v < (3, 14) and \
		"Python 3.11 to 3.13 is needed; %s is %d.%d. Name another with PYTHON=..." % (sys.executable, *v))'
	@echo "installing the environment into .venv, about 3 minutes the first time"
	@$(PYTHON) -m venv .venv
	@$(IN)python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(IN)python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: help book test site pdf run compare data serve lab results benchmark publish clean
.DEFAULT_GOAL := help
