# Two commands matter: `make course` (set up, run everything) and `make test` (set up, check everything).
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
BOOK := .venv-book/bin

# TORCH=cpu adds PyTorch's own index of CPU-only builds: a far smaller download for laptops, where it can be reached.
ifeq ($(TORCH),cpu)
TORCH_INDEX := --extra-index-url https://download.pytorch.org/whl/cpu
endif

# WHEELS=folder installs from a folder that `make wheelhouse` filled, without any network.
ifdef WHEELS
TORCH_INDEX := --no-index --find-links $(WHEELS)
endif

.PHONY: course test .notebooks .book test-chinese rehearse lab notebooks book check-book wheelhouse data clean

course: $(READY)
	$(BIN)/python -m tools.build.course

# Unit tests, then each notebook as it is, and the exercises solved, two processes at a time; the book where a browser is.
test: $(READY)
	@mkdir -p runs && date +%s > runs/.test-began
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest tests -n 2 --dist loadfile
	$(BIN)/python -m tools.build.solved runs/solved
	@$(MAKE) --no-print-directory -j 2 .notebooks .book  # while the browser waits, a notebook computes
	@echo "make test took $$(( $$(date +%s) - $$(cat runs/.test-began) )) s"

.notebooks:
	$(BIN)/python -m pytest --nbmake runs/solved/solved.ipynb notebooks/*.ipynb -n 2 --nbmake-timeout=300

.book:
	@if command -v chromium chromedriver >/dev/null; then $(MAKE) --no-print-directory check-book; \
	else echo "No Chromium here: the book was not looked at (make check-book)."; fi

# The Chinese notebooks have the same code, which `make test` proves; a weekly workflow executes them all the same.
test-chinese: $(READY)
	$(BIN)/python -m pytest --nbmake notebooks/zh -n 2 --nbmake-timeout=300

# Every notebook at `full` and `mid` on this CPU, against small stand-ins: what CI has of the scales that need a GPU.
rehearse: $(READY)
	$(BIN)/python -m tools.rehearse --edition both --jobs 2

lab: $(READY)
	$(BIN)/jupyter lab --ServerApp.root_dir=. $(LAB) notebooks/00_start_here.ipynb

# notebooks/text/*.py -> notebooks/*.ipynb, executed, outputs kept
notebooks: $(READY)
	$(BIN)/python -m tools.build.notebooks
	$(BIN)/python -m tools.build.chinese

# Both languages as static pages, from the notebooks' committed outputs: nothing is executed, and no PyTorch is needed.
book: .venv-book/.ready
	@mkdir -p book/_build
	$(BOOK)/python -m sphinx -q -W --keep-going -c book -d book/_build/doctrees . book/_build/html
	@echo "Open book/_build/html/index.html. Its model needs a server: python3 -m http.server --directory book/_build/html"

# Links, search, every page in headless Chromium, and the model in it; --noconftest, because the other tests' set-up imports PyTorch.
check-book: .venv-book/.ready
	$(BOOK)/python -m pytest --noconftest tests/pages/test_book.py tests/pages/test_islands.py

# Everything a set-up installs, as files: for a stick, or a room with bad Wi-Fi. Same system and Python as the laptops.
wheelhouse:
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --dest wheelhouse $(TORCH_INDEX) -c constraints.txt setuptools wheel '.[dev]'
	@rm -f wheelhouse/aurora_course-*
	@du -sh wheelhouse

# Rewrites the bundled rows, questions and probes; CONTRIBUTING says what comes after.
data: $(READY)
	$(BIN)/python -m tools.build.benchmarks
	$(BIN)/python -m tools.build.data

clean:
	rm -rf .venv .venv-book book/_build runs .hypothesis .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "Python 3.11 to 3.13 is needed, this is %d.%d. Try: make PYTHON=python3.12 ..." % v)'
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "This Python has no venv module. On Debian or Ubuntu: apt install python3-venv"; exit 1; }
	@echo "Setting up .venv: PyTorch and the other pinned packages, 2 GB or more, some minutes ..."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH_INDEX) -c constraints.txt -e '.[dev]'
	@touch $@

.venv-book/.ready: book/requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "Python 3.11 to 3.13 is needed, this is %d.%d. Try: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv .venv-book
	$(BOOK)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r book/requirements.txt
	@touch $@
