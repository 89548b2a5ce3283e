# Two commands do everything: `make demo` and `make test`. Each makes its own virtual environment first.

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
SHARED_THREADS = OMP_NUM_THREADS=2

.PHONY: demo view test engine-test slicer-test viewer-test lint clean

# Three clicks on the sample and a picture of what they found; then, where there is a screen, the page to go on clicking.
demo: $(VENV)/.demo
	mkdir -p out
	$(VENV)/bin/famsam segment sample -o out/ventricle.nii.gz --point=10,-15,24 --point=22,-38,18 --point=4,10,12 \
		--picture out/ventricle.png
	$(VENV)/bin/famsam view --if-screen

# The page alone, or with a scan of one's own: `make view SCAN=scan.nii.gz`; without a screen it prints the address.
view: $(VENV)/.demo
	$(VENV)/bin/famsam view $(if $(SCAN),"$(SCAN)")

test: $(VENV)/.test lint engine-test slicer-test viewer-test

lint: $(VENV)/.test
	$(VENV)/bin/ruff check FaMSAMSlicer Testing
	$(VENV)/bin/mypy

engine-test viewer-test: $(VENV)/.test
	$(SHARED_THREADS) $(VENV)/bin/python -m pytest Testing/$(FOLDER)

engine-test: FOLDER = Engine
viewer-test: FOLDER = Viewer

# The panels run in a process of their own, away from what other tests left behind in Qt and VTK.
slicer-test: $(VENV)/.test $(VENV)/.views
	$(SHARED_THREADS) FAMSAM_TRAME_PYTHON=$(abspath $(VENV)/views/bin/python) \
		$(VENV)/bin/python -m pytest Testing/Slicer --ignore-glob "*/test_slicer_widgets*"
	$(SHARED_THREADS) $(VENV)/bin/python -m pytest Testing/Slicer/test_slicer_widgets*.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	$(PIP) install -q -c $(CONSTRAINTS) -e ".[demo,server]"
	touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	$(PIP) install -q -c $(CONSTRAINTS) -e ".[dev]"
	touch $@

# Slicer's real views need an environment of their own; where it cannot be had, their tests are skipped.
$(VENV)/.views: $(VENV)/bin/python Testing/Slicer/views_environment.py
	$(VENV)/bin/python Testing/Slicer/views_environment.py $(VENV)/views
	touch $@

clean:
	rm -rf $(VENV) out build *.egg-info
