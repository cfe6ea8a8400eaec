# Every target works from a fresh clone: each installs what it needs first.
.PHONY: demo test check bench chaos lock

demo:
	./deploy/demo

test:
	./deploy/test

check:
	./deploy/setup dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

bench:
	./deploy/setup dev
	.venv/bin/python -m tests.bench.copy $(BENCH)
	.venv/bin/python -m tests.bench.backup $(BENCH_BACKUP)
	.venv/bin/python -m tests.bench.nodes $(BENCH_NODES)
	.venv/bin/python -m tests.bench.flower
	.venv/bin/python -m tests.bench.throttle
	.venv/bin/python -m tests.bench.page

chaos:
	./deploy/test tests/chaos

lock:
	@command -v uv >/dev/null || { echo "make lock needs uv, which is not in the lock: install it (pipx install uv), then run this again." >&2; exit 1; }
	uv pip compile --quiet --generate-hashes --no-header --no-annotate --python-version 3.11 --extra dev -o deploy/requirements-dev.txt pyproject.toml
	uv pip compile --quiet --generate-hashes --no-header --no-annotate --python-version 3.11 -c deploy/requirements-dev.txt -o deploy/requirements.txt pyproject.toml
