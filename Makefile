# Two commands: `make demo` and `make test`. Both create .venv on first use and install nothing the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := outputs/demo

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/python scripts/inference_vae.py --ckpt_path assets/weights/tae-tiny.safetensors \
		--csv_path assets/clips/test.csv --video_folder assets/clips \
		--num_frames 32 --image_size 128 --output_path $(DEMO) --save_vis
	$(BIN)/python scripts/inference.py --pipeline assets/shapes --prompts_file assets/shapes/prompts.txt \
		--batch_size 6 --seed_per_prompt --output_path $(DEMO)/generated

test: $(VENV)/.installed-test lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=15

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) outputs

# The stamp is written last, so an interrupted installation is taken up again by the next call.
$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 13) else "Python 3.11 or 3.12 is needed, this is %d.%d; call make PYTHON=python3.11" % v[:2])'
	@# Ask for pip, not for python: an interrupted or failed creation leaves a python without it.
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) \
		|| { echo "error: $(PYTHON) cannot create $(VENV); on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@# mindone brings an OpenCV that needs libGL; the headless build, put over it, does not.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps \
		$$(grep '^opencv-python-headless' requirements.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

$(VENV)/.installed-test: requirements-test.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	@# Without torchvision, which would replace the CPU build of torch; the tests bring what it takes from there.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps lpips==0.1.4
	touch $@
