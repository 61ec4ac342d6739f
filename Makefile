# make demo   a video from a prompt, with the embedded miniature model
# make test   the test suite
# Both create .venv on first use and are quick afterwards.

VENV    ?= .venv
PYTHON  ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10 python; do \
             $$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
             && { echo $$p; break; }; done)
BIN     := $(VENV)/bin
# MediaPipe wants an environment of its own: older numpy, and no newer Python.
SUBMAKE           = $(MAKE)# by another name: with -n it is then printed, and not run
MEDIAPIPE_VENV   ?= .venv-mediapipe
MEDIAPIPE_PYTHON ?= $(shell for p in python3.12 python3.11 python3.10 python3 python; do \
             $$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
             && { echo $$p; break; }; done)
# Only files that have such a test: the others need what is not installed there.
MEDIAPIPE_TESTS   = $$(grep -rl --include='test_*.py' 'mark\.mediapipe' tests)
# The tests with a pretended GPU want an ordinary CUDA build of torch, the newest: 5.6 GB, and no driver.
CUDA_VENV ?= .venv-cuda
CUDA_BUILD = import sys, torch; torch.version.cuda or sys.exit('make pretend-cuda needs a CUDA build of torch, and $(CUDA_VENV) has ' + torch.__version__ + ': remove $(CUDA_VENV), and take indexes for CPUs alone out of PIP_ARGS')
# `make gpu` takes the torch of the Python that is named, else of $(VENV) if it is there.
GPU_PYTHON = $(if $(filter command line environment,$(origin PYTHON)),$(PYTHON),$(firstword $(wildcard $(BIN)/python) $(PYTHON)))
# Options of pip, for example a CPU-only package index.
PIP_ARGS ?=

TASK    ?= t2v
SEED    ?= 0
DEMO    ?= outputs/demo-$(TASK)
TASK_ID  = $(or $(TASK_$(TASK)),$(TASK))
TASK_t2v  = t2v-A14B
TASK_i2v  = i2v-A14B
TASK_ti2v = ti2v-5B
TASK_s2v  = s2v-14B
TASK_animate = animate-14B
TASK_replace = animate-14B
SHEET     = from wan.media import contact_sheet, read_video; contact_sheet(read_video('$(DEMO).mp4')[0], '$(DEMO).png')
ifeq ($(TASK),s2v)
SHEET     = from wan.nano.talks import draw_strip; draw_strip('$(DEMO).mp4', '$(DEMO).png')
PROMPT   ?= a round shape in front of a yellow wall
IMAGE    ?= examples/face.png
AUDIO    ?= examples/voice.wav
endif
ifneq ($(filter animate replace,$(TASK)),)
PERFORMANCE ?= examples/performance
SHEET     = import os; from wan.nano.acts import draw_strip; draw_strip('$(DEMO).mp4', os.environ['PERFORMANCE'], '$(DEMO).png')
export PERFORMANCE
PROMPT   ?=
endif
ifeq ($(origin PROMPT),undefined)
PROMPT   := a big $(if $(filter i2v,$(TASK))$(IMAGE),yellow triangle,red $(if $(filter ti2v,$(TASK)),square,circle)) moves right on a navy background
endif
ifeq ($(TASK),i2v)
IMAGE    ?= examples/first_frame.png
endif
# Text of the user as one shell word, whatever quotes or dollar signs it holds.
quoted    = '$(subst ','\'',$(value $(1)))'

.PHONY: demo test test-mediapipe pretend-cuda gpu bench format lint clean help
.DEFAULT_GOAL := help

help:
	@echo 'make demo [PROMPT="..."] [SEED=0]              generate a video with the embedded miniature model'
	@echo 'make demo TASK=i2v [IMAGE=FILE]                the same from an image (examples/first_frame.png)'
	@echo 'make demo TASK=ti2v [IMAGE=FILE]               the same from text, or from text and an image'
	@echo 'make demo TASK=s2v [AUDIO=FILE IMAGE=FILE]     a face that talks (examples/voice.wav, examples/face.png)'
	@echo 'make demo TASK=animate [PERFORMANCE=FOLDER]    a figure that moves as another one does (examples/performance)'
	@echo 'make demo TASK=replace [PERFORMANCE=FOLDER]    a figure that takes the place of another one'
	@echo 'make test [ARGS="..."]                         run the test suite (ARGS go to pytest)'
	@echo 'make test-mediapipe [ARGS="..."]               run the tests with MediaPipe, in $(MEDIAPIPE_VENV)'
	@echo 'make pretend-cuda [ARGS="..."]                 run whole pipelines on a pretended GPU, in $(CUDA_VENV) (5.6 GB)'
	@echo 'make gpu [PYTHON=... RESULTS=DIR DEVICE=cpu]   all that only a card can show, in 10 minutes; a CPU tries it out'
	@echo 'make bench [ARGS=--save]                       run the benchmarks; --save: into benchmarks/results'
	@echo 'make format | lint | clean'

demo: $(VENV)/.core $(if $(filter s2v,$(TASK)),$(VENV)/.s2v) $(if $(filter animate replace,$(TASK)),$(VENV)/.animate)
	@mkdir -p $(dir $(DEMO))
	@$(BIN)/python generate.py --task $(TASK_ID) $(if $(value PROMPT),--prompt $(call quoted,PROMPT)) --base_seed $(SEED) \
	  $(if $(IMAGE),--image $(call quoted,IMAGE)) $(if $(AUDIO),--audio $(call quoted,AUDIO)) \
	  $(if $(PERFORMANCE),--src_root_path $(call quoted,PERFORMANCE)) $(if $(filter replace,$(TASK)),--replace_flag) \
	  --save_file $(DEMO).mp4 --overwrite
	@$(BIN)/python -c "$(SHEET)"
	@echo 'video:         $(DEMO).mp4'
	@echo 'contact sheet: $(DEMO).png'

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

test-mediapipe:
	@if [ -z "$(MEDIAPIPE_PYTHON)" ]; then \
	  echo 'The tests with MediaPipe are left out: it needs Python 3.10 to 3.12, and none was found.'; \
	else \
	  $(SUBMAKE) --no-print-directory VENV=$(MEDIAPIPE_VENV) PYTHON=$(MEDIAPIPE_PYTHON) $(MEDIAPIPE_VENV)/.mediapipe && \
	  $(MEDIAPIPE_VENV)/bin/python -m pytest -m mediapipe $(MEDIAPIPE_TESTS) $(ARGS); \
	fi

pretend-cuda:
	@$(SUBMAKE) --no-print-directory VENV=$(CUDA_VENV) $(CUDA_VENV)/.cuda
	@$(CUDA_VENV)/bin/python -c "$(CUDA_BUILD)"
	$(CUDA_VENV)/bin/python -m pytest -m pretend_cuda tests/test_pretend_cuda.py $(ARGS)

gpu:
	@$(GPU_PYTHON) -m benchmarks.gpu $(if $(DEVICE),--device $(call quoted,DEVICE)) $(if $(RESULTS),--results $(call quoted,RESULTS)) $(ARGS)

bench: $(VENV)/.bench
	for name in dit vae t5 load parallel s2v animate preprocess counted; do $(BIN)/python -m benchmarks.$$name $(ARGS) || exit 1; done

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) $(MEDIAPIPE_VENV) $(CUDA_VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo 'No Python 3.10-3.13 found. Install one, or name it: make PYTHON=/path/to/python' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo 'Could not create $(VENV) with "$(PYTHON) -m venv". On Debian and Ubuntu: sudo apt install python3-venv.' >&2; \
	  echo 'Or name another interpreter: make PYTHON=/path/to/python' >&2; exit 1; }
	@touch $@

$(VENV)/.core: requirements.txt $(VENV)/.python
	@echo 'Installing requirements.txt into $(VENV) (once) ...'
	@$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt requirements_s2v.txt requirements_animate.txt $(VENV)/.core
	@echo 'Installing requirements-dev.txt into $(VENV) (once) ...'
	@$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) -r requirements-dev.txt
	@touch $@

$(VENV)/.animate: requirements_animate.txt $(VENV)/.core
	@echo 'Installing requirements_animate.txt into $(VENV) (once) ...'
	@$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) -r requirements_animate.txt
	@touch $@

$(VENV)/.s2v: requirements_s2v.txt $(VENV)/.core
	@echo 'Installing requirements_s2v.txt into $(VENV) (once) ...'
	@$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) -r requirements_s2v.txt
	@touch $@

# The core but for its numpy, and pytest.
$(VENV)/.mediapipe: requirements_animate_mediapipe.txt requirements.txt requirements-dev.txt $(VENV)/.python
	@echo 'Installing requirements_animate_mediapipe.txt into $(VENV) (once) ...'
	@{ grep -v '^numpy==' requirements.txt; grep '^pytest' requirements-dev.txt; cat requirements_animate_mediapipe.txt; } > $(VENV)/requirements.txt
	@$(BIN)/python -m pip install --disable-pip-version-check -q --no-compile $(PIP_ARGS) -r $(VENV)/requirements.txt
	@touch $@

# The core and what all tasks need, but torch of any version, and pytest.
$(VENV)/.cuda: requirements.txt requirements_s2v.txt requirements_animate.txt requirements-dev.txt $(VENV)/.python
	@echo 'Installing torch for CUDA into $(VENV) (once) ...'
	@{ echo torch; cat requirements.txt requirements_s2v.txt requirements_animate.txt requirements-dev.txt | grep -E '^(numpy|safetensors|tokenizers|ftfy|Pillow|av|einops|tqdm|transformers|pytest)==' | sort -u; } > $(VENV)/requirements.txt
	@$(BIN)/python -m pip install --disable-pip-version-check -q --no-compile $(PIP_ARGS) -r $(VENV)/requirements.txt
	@touch $@

# Formatting needs ruff alone, not torch.
$(VENV)/.lint: requirements-dev.txt $(VENV)/.python
	@$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) $$(grep '^ruff==' requirements-dev.txt)
	@touch $@

$(VENV)/.bench: pyproject.toml $(VENV)/.dev
	@echo 'Installing what the benchmarks compare with (once) ...'
	@$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) diffusers transformers accelerate
	@touch $@
