# Two commands do everything: `make demo` and `make test`. Each makes its own virtual environment first.

PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
SHARED_THREADS = OMP_NUM_THREADS=2

.PHONY: demo test engine-test slicer-test viewer-test lint clean

demo: $(VENV)/.demo
	mkdir -p out
	$(VENV)/bin/famsam segment sample -o out/ventricle.nii.gz --point=10,-15,24 --picture out/ventricle.png

test: $(VENV)/.test lint engine-test slicer-test viewer-test

lint: $(VENV)/.test
	$(VENV)/bin/ruff check FaMSAMSlicer Testing
	$(VENV)/bin/mypy

engine-test viewer-test: $(VENV)/.test
	$(SHARED_THREADS) $(VENV)/bin/python -m pytest Testing/$(FOLDER)

engine-test: FOLDER = Engine
viewer-test: FOLDER = Viewer

# The panels run in a process of their own, away from what other tests left behind in Qt and VTK.
slicer-test: $(VENV)/.test
	$(SHARED_THREADS) $(VENV)/bin/python -m pytest Testing/Slicer --ignore Testing/Slicer/test_slicer_widgets.py
	$(SHARED_THREADS) $(VENV)/bin/python -m pytest Testing/Slicer/test_slicer_widgets.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e ".[demo]"
	touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) out build *.egg-info
