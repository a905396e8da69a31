"""The packed operators: their ONNX definition, and the kernels of the library that `qxcompiler_runtime` carries."""
